"""benchmarks/: the harness's own logic, on numbers that are known; nothing is timed."""

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO / "benchmarks"))  # as for the scripts, which import by name

import bench  # noqa: E402
import compare  # noqa: E402
import harness  # noqa: E402
import peers  # noqa: E402
import report  # noqa: E402
import roof  # noqa: E402


def quiet(text):
    pass


# --- Statistics ---


def test_spread_is_median_least_and_most():
    assert harness.spread([3.0, 1.0, 10.0]) == {
        "median": 3.0,
        "min": 1.0,
        "max": 10.0,
        "all": [3.0, 1.0, 10.0],
    }


def test_ratios_are_taken_round_by_round():
    """The ratio of the medians would be 1: the machine was slow in other rounds."""
    assert harness.ratios([2.0, 4.0, 6.0], [4.0, 2.0, 6.0])["all"] == [0.5, 2.0, 1.0]
    with pytest.raises(ValueError):
        harness.ratios([1.0, 2.0], [1.0])


@pytest.mark.parametrize("unit, expected", [("s", 3.0), ("tokens/s", 1 / 3)])
def test_less_time_is_faster_and_more_per_time_is(unit, expected):
    found = harness.comparison({"ours": [2.0], "peer": [6.0]}, unit)
    assert found["times as fast"]["peer"]["median"] == pytest.approx(expected, rel=1e-3)
    assert "ours" not in found["times as fast"]


def test_significant_keeps_digits_not_decimals():
    assert harness.significant(123456.0) == 123500.0
    assert harness.significant(0.000123456) == 0.0001235


def test_slope_finds_the_power():
    sizes = [1, 10, 100, 1000]
    times = [[7 * s**0.5, 3 * s**0.75] for s in sizes]  # two rounds of each size
    assert roof.slopes(sizes, times)["all"] == [0.5, 0.75]


# --- Taking turns ---


def test_everybody_is_measured_once_a_round_in_changing_order():
    calls = []
    contenders = {n: lambda n=n: calls.append(n) or len(calls) for n in ("ours", "b")}
    got, failed = harness.take_turns(contenders, 8, quiet)
    assert failed == {} and [len(values) for values in got.values()] == [8, 8]
    rounds = [tuple(calls[i : i + 2]) for i in range(0, 16, 2)]
    assert set(rounds) == {("ours", "b"), ("b", "ours")}


def test_a_peer_that_fails_is_out_and_ours_is_not_forgiven():
    def broken():
        raise TypeError("no such option")

    got, failed = harness.take_turns({"ours": lambda: 1.0, "peer": broken}, 2, quiet)
    assert got == {"ours": [1.0, 1.0]}
    assert failed == {"peer": "failed: TypeError: no such option"}
    with pytest.raises(TypeError):
        harness.take_turns({"ours": broken, "peer": lambda: 1.0}, 2, quiet)


def test_a_process_that_fails_gives_its_own_last_words():
    command = [sys.executable, "-c", "import sys; sys.exit('one\\ntwo: no such file')"]
    with pytest.raises(Exception) as raised:
        harness.process(command)
    assert harness.reason(raised.value) == "two: no such file"


def test_a_peer_that_cannot_be_prepared_is_skipped():
    here, skipped = ["a", "b"], {"c": "skipped, not there"}
    assert harness.tried("a", lambda: 7, here, skipped) == 7
    assert harness.tried("b", lambda: [][0], here, skipped) is None
    assert here == ["a"]
    why = "failed: IndexError: list index out of range"
    assert skipped == {"c": "skipped, not there", "b": why}


# --- Peers ---


def test_missing_peers_are_named_with_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(peers.PACKAGES, "x-transformers", ("x", "no_such_module"))
    here, skipped = peers.Peers(minbpe=tmp_path).present(
        "nanoGPT", "minbpe", "x-transformers"
    )
    assert here == []
    assert skipped == {
        "nanoGPT": "skipped, no --nanogpt PATH",
        "minbpe": "skipped, minbpe/regex.py is not in the folder given",
        "x-transformers": "skipped, package x is not installed",
    }


def test_a_checkout_is_there_when_its_file_is(tmp_path):
    (tmp_path / "train.py").touch()
    assert peers.Peers(nanogpt=tmp_path).present("nanoGPT") == (["nanoGPT"], {})


def test_nanogpt_log_gives_its_iterations_and_not_its_evaluations():
    log = (
        "step 0: train loss 4.2874, val loss 4.2823\n"
        "iter 0: loss 4.2664, time 912.55ms, mfu -100.00%\n"
        "iter 1: loss 4.1, time 41.20ms, mfu -100.00%\n"
    )
    assert compare.nanogpt_milliseconds(log) == [912.55, 41.2]
    with pytest.raises(RuntimeError, match="no line"):
        compare.nanogpt_milliseconds("another format")


def test_the_warm_up_does_not_count():
    ms = [1000.0] * compare.WARM_UP + [12.0, 8.0, 10.0]
    assert compare.tokens_per_second(ms) == pytest.approx(12 * 64 / 0.010)


def test_our_steps_are_all_timed():
    model, ms = peers.our_steps(3)
    assert len(ms) == 3 and min(ms) > 0
    assert model.config.tie_weights and not model.config.bias  # as nanoGPT's


def test_grids_change_one_thing_and_keep_the_tokens_against_context():
    grids = roof.grids()
    assert all(roof.BASE in points for points in grids.values())
    assert {p["context"] * p["batch_size"] for p in grids["context"]} == {
        roof.STEP_TOKENS
    }


# --- Files ---

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(plain)
def test_layout_is_the_same_data(value):
    assert json.loads(harness.layout(value)) == value


def test_layout_keeps_what_fits_on_a_line():
    long = {"runs": [{"loss": 1.5, "all": list(range(12))}] * 3, "n": 3}
    lines = harness.layout(long).splitlines()
    assert len(lines) == 8 and max(map(len, lines)) <= 90


def test_sections_are_kept_side_by_side(tmp_path):
    path = tmp_path / "results.json"
    harness.keep(path, "first", {"a": 1})
    harness.keep(path, "second", [2])
    assert harness.keep(path, "first", {"a": 3}) == {"first": {"a": 3}, "second": [2]}
    assert json.loads(path.read_text()) == {"first": {"a": 3}, "second": [2]}


def test_newer_results_take_the_place_of_older_ones():
    old = [{"seed": 1, "loss": 2.0}, {"seed": 0, "loss": 3.0}]
    new = [{"seed": 1, "loss": 1.0}, {"seed": 2, "loss": 4.0}]
    found = harness.merged(old, new, lambda r: r["seed"])
    assert [(r["seed"], r["loss"]) for r in found] == [(0, 3.0), (1, 1.0), (2, 4.0)]


def test_a_failed_change_leaves_the_file_alone(tmp_path):
    path = tmp_path / "results.json"
    harness.keep(path, "first", 1)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        harness.keep(path, "second", object())
    assert path.read_bytes() == before


# --- The bench ---


def test_sections_run_alone_and_a_failed_one_is_reported(tmp_path, monkeypatch, capsys):
    def works(peers, repeats):
        """Works."""
        return {"repeats": repeats, "skipped": {"nanoGPT": peers.missing("nanoGPT")}}

    def fails(peers, repeats):
        """Fails."""
        raise OSError("no room")

    monkeypatch.setattr(bench, "SECTIONS", {"w": (works, 4), "f": (fails, 4)})
    out = tmp_path / "results.json"
    readme = report.README.read_bytes()
    assert bench.main(["--out", str(out), "--only", "w"]) == 0
    kept = json.loads(out.read_text())["w"]
    assert kept["repeats"] == 4 and kept["date"] == harness.today()
    assert kept["machine"] == harness.machine() and kept["versions"]["torch"]
    assert bench.main(["--out", str(out), "--repeats", "2"]) == 1
    assert json.loads(out.read_text())["w"]["repeats"] == 2
    said = capsys.readouterr()
    assert "f failed: OSError: no room" in said.err
    assert "nanoGPT: skipped, no --nanogpt PATH" in said.out
    assert report.README.read_bytes() == readme


def test_repeats_must_be_at_least_one(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--repeats", "0"])
    assert "at least 1" in capsys.readouterr().err


# --- The README ---


def test_the_readme_says_what_results_json_says():
    results = json.loads(report.RESULTS.read_text("utf-8"))
    assert set(results) <= set(bench.SECTIONS)
    readme = report.README.read_text("utf-8")
    assert report.with_table(readme, results) == readme, "run benchmarks/report.py"


def test_only_the_marked_part_is_replaced():
    readme = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    new = report.with_table(readme, {})
    assert new.startswith("before\n") and new.endswith("\nafter\n") and "old" not in new
    with pytest.raises(ValueError, match="has no"):
        report.with_table("no marks", {})


def section(**values):
    return {"date": "2026-11-25", "machine": {"cpu": "A", "cores": 2}, **values}


def test_a_loss_above_the_target_is_not_hidden():
    found = harness.comparison({"ours": [10.0, 12.0], "nanoGPT": [90.0, 96.0]}, "s")
    endings = {
        "ours": [{"loss": 1.93, "context": 64}],
        "nanoGPT": [{"loss": 1.898, "context": 64, "step": 2000}],
    }
    rows = report.table(
        {
            "speedrun": section(
                preset="p", target=1.898, endings=endings, skipped={}, **found
            )
        }
    )
    assert "11 s, 1.930 nats, target missed |" in rows
    ending = "1.898 nats (weights of its step 2000): 8.50 times as fast (8.00 to 9.00)"
    assert ending in rows


def test_who_was_left_out_and_where_it_was_measured_is_said():
    found = harness.comparison({"ours": [10.0]}, "tokens/s")
    shape = {"n_layer": 4, "n_embd": 128, "block_size": 64, "batch_size": 12}
    why = {"nanoGPT": "skipped, no --nanogpt PATH"}
    table = report.table({"training": section(shape=shape, skipped=why, **found)})
    assert "Measured 2026-11-25 on A, 2 cores." in table
    assert "Left out: training: nanoGPT skipped, no --nanogpt PATH." in table
