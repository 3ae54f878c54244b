"""Alarms that are news: windows, one rate for all, and a detector kept up."""

import json
import os
import signal
from functools import partial
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from logsamples import FAULTS, sample
from test_detect import SETTINGS, alarms_in, blank, cli, fails, quick, sessions_in

from tinygpt_lib.basics import growing as _growing
from tinygpt_lib.basics.files import CheckpointError, read_json, write_tensors
from tinygpt_lib.commands import follow as _follow
from tinygpt_lib.runs import upkeep as _upkeep
from tinygpt_lib.runs.alarms import Judge, Tally
from tinygpt_lib.runs.detectors import AnomalyDetector
from tinygpt_lib.runs.reading import LogReading
from tinygpt_lib.runs.upkeep import Normal, least_rate, undo, versions
from tinygpt_lib.runs.watch import ALL, LONG, Watch, Watching, cells_of

cli = cli  # a fixture of there


@pytest.fixture(autouse=True, scope="module")
def fast():
    """Detectors that learn next to nothing: what is asked here are events and times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SETTINGS, "learn", partial(quick, learn=blank))
        yield


# Windows


def told_at(rates, seconds, seed):
    """Events at random times: {event: how many in a second}."""
    rng, pairs = np.random.default_rng(seed), []
    for event, rate in rates.items():
        count = rng.poisson(rate * seconds)
        pairs += [(float(t), event) for t in rng.uniform(0, seconds, count)]
    return sorted(pairs)


RATES = {"often": 3.0, "seldom": 0.2, "rare": 0.01}


@pytest.fixture(scope="module")
def watch():
    return Watch.fit(*cells_of(told_at(RATES, 3000, 0)))


def odd_in(watch, pairs, limit=0.002):
    watching = Watching(watch, limit)
    return [odd for n, (t, e) in enumerate(pairs) for odd in watching.take(t, e, n)]


def test_ordinary_times_raise_no_alarm(watch):
    assert watch.seconds == 2 and watch.n == 1500
    found = [
        odd for seed in range(1, 6) for odd in odd_in(watch, told_at(RATES, 3000, seed))
    ]
    assert len(found) <= 2  # of 7,500 windows; 15 are promised


def test_a_burst_a_silence_and_another_rate_are_told_once(watch):
    pairs = told_at(RATES, 3000, 7)
    burst = [*pairs, *((1500 + i / 50, "rare") for i in range(60))]
    (odd,) = odd_in(watch, sorted(burst))
    assert (odd.kind, odd.event, odd.usual) == ("burst", "rare", (0, 1))
    assert odd.number > 20 and odd.p_value == 1 / 1501
    silent = [(t, e) for t, e in pairs if not 1500 < t < 1700]
    (odd,) = odd_in(watch, silent)
    assert (odd.kind, odd.event) == ("silence", ALL) and 194 <= odd.number <= 200
    (odd,) = odd_in(watch, [(t, e) for t, e in pairs if e != "often" or t < 1500])
    assert (odd.kind, odd.event) in {("silence", "often"), ("rate", "often")}
    more = sorted([*pairs, *((1500 + t, e) for t, e in told_at({"often": 2}, 1500, 9))])
    kinds = {(odd.kind, odd.event) for odd in odd_in(watch, more)}
    assert ("rate", "often") in kinds or ("rate", ALL) in kinds


def test_normal_windows_are_compared_with_all_others():
    """By loop: of each window by how much it beats the record of those apart."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.7, (100, 3)) * rng.integers(0, 2, (100, 3))
    watch = Watch.of_counts(counts, [ALL, "a", "b"], 1.0)
    assert watch.most.tolist() == counts.max(0).tolist()
    sums = np.array([counts[i : i + LONG].sum(0) for i in range(100 - LONG + 1)])
    assert watch.high.tolist() == sums.max(0).tolist()
    assert watch.low.tolist() == sums.min(0).tolist()
    longest = [0] * 3
    for column in range(3):
        run = 0
        for count in counts[:, column]:
            run = 0 if count else run + 1
            longest[column] = max(longest[column], run)
    assert watch.gap.tolist() == longest
    root = np.sqrt(counts)
    bursts = [
        max(root[i, c] - np.delete(root[:, c], i).max() for c in range(3))
        for i in range(100)
    ]
    assert watch.scores.max() >= max(bursts) - 1e-9 and watch.n == 100


def test_a_watch_is_plain_data(watch):
    data = json.loads(json.dumps(watch.to_dict()))
    again, pairs = Watch.from_dict(data), told_at(RATES, 300, 3)
    pairs += [(301 + i / 99, "seldom") for i in range(99)] + [(400, "often")]
    assert odd_in(again, pairs) == odd_in(watch, pairs) != []
    for change in (
        {"n": 0},
        {"most": [1.0]},
        {"gap": ["x"] * 4},
        {"seconds": -1},
        {"x": 1},
    ):
        with pytest.raises(ValueError, match=r"windows are none|must be"):
            Watch.from_dict({**data, **change})
    assert Watch.fit(*cells_of([(0.0, "a"), (9.0, "a")])) is None  # hardly any time


def test_watching_goes_on_where_it_was(watch):
    pairs = [(t, e) for t, e in told_at(RATES, 600, 4) if not 290 < t < 420]
    whole = odd_in(watch, pairs)
    first, found = Watching(watch, 0.002), []
    for cut in range(0, len(pairs), 97):
        second = Watching(watch, 0.002)
        second.go_on(json.loads(json.dumps(first.state())))
        for n, (t, e) in enumerate(pairs[cut : cut + 97], start=cut):
            found += second.take(t, e, n)
        first = second
    assert found == whole != []


def test_the_least_rate_is_enough_and_no_less_is():
    for n in (10, 299, 300, 1498, 10_000):
        rate = least_rate(n, 3)
        assert 3 <= rate * (n + 1) + 1e-9 and (rate - 1e-6) * (n + 1) < 3.02


# Logs as they are, with faults in them


def score(cli, folder, lines, *more):
    path = folder / "new.log"
    path.write_text("\n".join(lines) + "\n")
    _, out, _ = cli("score", folder / "run", path, "--json", *more)
    return [r for r in map(json.loads, out.splitlines()) if r["record"] == "alarm"]


@pytest.fixture(scope="module", params=["nginx", "klog", "haproxy", "logback"])
def kept(request, tmp_path_factory):
    """A detector of one format."""
    from tinygpt_lib.commands import main

    folder = tmp_path_factory.mktemp(request.param)
    normal = "\n".join(sample(request.param, 300, seed=1).lines)
    (folder / "normal.log").write_text(normal + "\n")
    fit = ["fit", "--normal", folder / "normal.log", "--out", folder / "run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SETTINGS, "learn", quick)
        assert main(["detect", *map(str, fit)]) == 0
    return request.param, folder


def test_faults_are_found_each_by_its_kind(cli, kept):
    name, folder = kept
    log = sample(name, 150, seed=0, faults=FAULTS)
    alarms = score(cli, folder, log.lines)
    for fault, kind in (
        ("new", "new"),
        ("status", "new"),
        ("exit", "new"),
        ("burst", "burst"),
        ("silence", "silence"),
    ):
        places = log.planted[fault]
        near = range(places[0] - 2, places[-1] + 3)
        assert any(a["kind"] == kind and a["line"] in near for a in alarms), fault
    if name == "klog":  # whose order never varies: of the same cause, one alarm
        by = [a for a in alarms if a["line"] in log.planted["missing"]]
        assert by[0]["kind"] == "order" and by[0]["count"] >= 2
        assert by[0]["last"] in log.planted["swapped"]
    planted = {
        n + i for lines in log.planted.values() for n in lines for i in range(-2, 3)
    }
    assert sum(alarm["line"] not in planted for alarm in alarms) <= 3
    assert len(score(cli, folder, sample(name, 150, seed=2).lines)) <= 3


# Causes


DOOR = ("opened the door", "walked through it", "closed the door")
LINES = [
    f"2026-11-25 0{3 + i // 600}:{i // 10 % 60:02}:{6 * i % 60:02} gate "
    f"app[{4000 + i // 3}]: {DOOR[i % 3]}"
    for i in range(1200)
]


@pytest.fixture
def door(cli, tmp_path):
    """A detector of a small log, and its folder."""
    (tmp_path / "normal.log").write_text("\n".join(LINES) + "\n")
    fit = ["fit", "--normal", tmp_path / "normal.log", "--out", tmp_path / "run"]
    assert cli(*fit, "--session-regex", r"app\[(\d+)\]")[0] == 0
    return tmp_path


def with_news(count, texts=("the roof is on fire",)):
    """Sessions with a line more, which no normal one has."""
    lines = []
    for i in range(count):
        three = [line.replace("app[4", "app[5") for line in LINES[3 * i : 3 * i + 3]]
        extra = [three[1].rsplit(": ")[0] + f": {text}" for text in texts]
        lines += [three[0], *extra, *three[1:]]
    return lines


def test_what_is_new_is_told_once_and_counted(cli, door):
    alarms = score(cli, door, with_news(40))
    assert [(a["kind"], a["count"], a["line"]) for a in alarms] == [("new", 40, 2)]
    (alarm,) = alarms
    assert alarm["last"] == 2 + 39 * 4 and 0 < alarm["p_value"] <= 0.01
    assert len(alarm["expected"]) == 3
    _, out, _ = cli("score", door / "run", door / "new.log")
    assert "never seen before, and 39 more like it" in out
    assert "40 sessions, alarms: 40 of 1 causes (40 new)" in out


def test_all_news_of_a_session_are_told(cli, door):
    texts = ("a backup was made", "disk sdb1 fails", "temperature too high")
    alarms = score(cli, door, with_news(1, texts))
    assert [a["kind"] for a in alarms].count("new") == 3  # and that is a burst
    _, out, _ = cli("score", door / "run", door / "new.log")
    assert all(f"> {line}\n" in out for line in with_news(1, texts)[1:4])


def test_programs_are_told_of_each_thing_once(cli, door):
    lines = with_news(3)
    (door / "log").write_text("\n".join(lines) + "\n")
    _, out, _ = cli("score", door / "run", door / "log", "--json")
    assert [s["unknown"] for s in sessions_in(out)] == [1, 1, 1]
    assert all(0 < s["p_value"] < 0.01 and s["anomalous"] for s in sessions_in(out))
    assert alarms_in(out) == [("new", 3)]


def test_an_alarm_may_end_with_a_status_of_its_own(cli, door):
    (door / "log").write_text("\n".join(with_news(1)) + "\n")
    assert cli("score", door / "run", door / "log", "--fail-on-alarm")[0] == 3
    assert cli("score", door / "run", door / "log")[0] == 0
    quiet = door / "normal.log"
    assert cli("score", door / "run", quiet, "--fail-on-alarm")[0] == 0


def test_a_report_fits_a_screen(cli, door):
    words = [f"{a}{b} happened" for a in "abcdefg" for b in ("xx", "yy", "zz", "uu")]
    (door / "log").write_text("\n".join(with_news(1, words)) + "\n")
    _, out, _ = cli("score", door / "run", door / "log")
    assert out.count("\n") <= 42 and "other causes" in out and "--all" in out
    _, out, _ = cli("score", door / "run", door / "log", "--all")
    assert out.count("was never seen before") == len(words)


# Kept up


def test_what_is_accepted_raises_no_alarm_until_that_is_undone(cli, door):
    lines = with_news(2)
    assert len(score(cli, door, lines)) == 1
    code, out, _ = cli("accept", door / "run", "--event", lines[1])
    assert (
        code == 0 and "accepted: the roof is on fire" in out and "1 events acc" in out
    )
    assert score(cli, door, lines) == []
    code, out, _ = cli("accept", door / "run", "--event", "the roof is on fire")
    assert code == 0 and "0 events accepted" in out
    code, out, _ = cli("undo", door / "run")
    assert code == 0 and "0 accepted" in out
    assert len(score(cli, door, lines)) == 1
    assert "holds no version from before" in fails(cli, "undo", door / "run")
    (door / "more").write_text("\n".join(lines) + "\n")
    code, out, _ = cli("accept", door / "run", "--from", door / "more")
    assert code == 0 and "1 events accepted, 3 known before" in out
    assert score(cli, door, lines) == []
    assert "either --event or --from" in fails(cli, "accept", door / "run")


def test_an_update_learns_without_forgetting(cli, door):
    news = with_news(30)
    (door / "week").write_text("\n".join(news) + "\n")
    assert cli("accept", door / "run", "--event", news[1])[0] == 0
    code, out, _ = cli("update", door / "run", door / "week")
    assert code == 0 and "30 sessions learned, beside 400 from before" in out
    assert "1 new kinds of events:\n    the roof is on fire\n" in out
    detector = AnomalyDetector.load(door / "run")
    assert "the roof is on fire" in detector.tokenizer
    assert not detector.about["accepted"]
    assert score(cli, door, news) == [] == score(cli, door, LINES)
    normal = Normal.load(door / "run")
    assert len(normal.sessions) == 430 and normal.windows > 1200
    # It is what a fit on both would be.
    assert sum(map(len, detector.held_out[True])) == 430
    assert cli("undo", door / "run")[0] == 0
    detector = AnomalyDetector.load(door / "run")
    assert "the roof is on fire" not in detector.tokenizer
    assert detector.about["accepted"] == ["the roof is on fire"]
    assert len(Normal.load(door / "run").sessions) == 400


def test_the_last_versions_are_kept(door):
    for number in range(5):
        _upkeep.accept(door / "run", [f"event {number}"])
    kept = [path.name for path in versions(door / "run")]
    assert kept == ["3", "4", "5"]
    undo(door / "run")
    detector = AnomalyDetector.load(door / "run")
    assert detector.about["accepted"] == [f"event {n}" for n in range(4)]


def test_an_update_needs_what_it_was_fitted_on(cli, door):
    (door / "run" / "normal.safetensors").unlink()
    said = fails(cli, "update", door / "run", door / "normal.log")
    assert "doesn't hold what it was fitted on" in said
    bad = {
        "ids": torch.tensor([0, 7], dtype=torch.int32),
        "lengths": torch.tensor([2], dtype=torch.int32),
        "ended": torch.tensor([1], dtype=torch.uint8),
        "cells": torch.zeros(0, 3, dtype=torch.int32),
    }
    about = {"events": ["a"], "windows": 1, "seconds": 1.0}
    write_tensors(door / "run" / "normal.safetensors", bad, about)
    with pytest.raises(CheckpointError, match="is not what was normal"):
        Normal.load(door / "run")


@pytest.mark.parametrize("said", [{"accepted": [[1]]}, {"watch": [1]}, {"watch": {}}])
def test_nonsense_about_a_detector_is_refused(cli, door, said):
    detector = AnomalyDetector.load(door / "run")
    detector.about |= said
    detector.save(door / "run")
    assert "are none" in fails(cli, "score", door / "run", door / "normal.log")


def test_a_promise_that_was_not_kept_is_said(cli, door):
    code, out, _ = cli("status", door / "run")
    assert code == 0 and out == "nothing was judged so far\n"
    assert cli("score", door / "run", door / "normal.log")[0] == 0
    _, out, _ = cli("status", door / "run")
    assert "400 sessions in 1 runs" in out and "alarms: none" in out
    assert "more than by chance" not in out and "drift" not in out
    score(cli, door, with_news(200))
    _, out, _ = cli("status", door / "run")
    assert "200 new" in out and "33.33% of sessions" in out
    assert "more than by chance" in out and "drift: of the last 200 sessions" in out
    (door / "run" / "status.json").write_text("[]")
    assert "status.json" in fails(cli, "status", door / "run")
    assert cli("score", door / "run", door / "normal.log")[0] == 0


def test_drift_is_not_said_by_chance():
    class Known:
        p_news = 0.01

    tally, rng = Tally(Known()), Random(0)
    for _ in range(1000):
        tally.recent.append((rng.random() < 0.1, rng.random() < 0.01))
    assert tally.drift() == []
    for _ in range(200):
        tally.recent.append((True, False))
    assert len(tally.drift()) == 1 and "p-value of at most 0.1" in tally.drift()[0]


# Followed


@pytest.fixture
def foreground():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def follow_until_it_waits(cli, monkeypatch, *arguments):
    """What is told until there is nothing more to read; then Ctrl-C comes."""

    def nap(seconds):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(_growing.time, "sleep", nap)
    code, out, err = cli("score", *arguments, "--follow", "--json")
    assert code == 130, err
    return [json.loads(line) for line in out.splitlines()]


def timed(lines):
    """The lines with a silence in the middle and a burst at the end."""
    half = len(lines) // 2
    later = [line.replace(" 03:", " 04:") for line in lines[half:]]
    burst = [later[-1].replace("closed the door", "walked through it")] * 50
    return [*lines[:half], *later, *burst, later[-1].replace(" 04:", " 05:")]


def test_it_goes_on_where_it_was_stopped(cli, door, monkeypatch, foreground):
    """No alarm is lost or doubled, wherever it is stopped, and rotated meanwhile."""
    lines, log = timed(with_news(40)), door / "app.log"
    log.write_text("\n".join(lines) + "\n")
    whole = follow_until_it_waits(
        cli, monkeypatch, door / "run", log, "--state", door / "whole"
    )
    kinds = {record["kind"] for record in whole if record["record"] == "alarm"}
    assert {"new", "silence", "burst"} <= kinds
    assert [r["count"] for r in whole if r["record"] == "count"] == [10]
    found, log = [], door / "other.log"
    for start in range(0, len(lines), 37):
        with open(log, "a") as file:
            file.write("\n".join(lines[start : start + 37]) + "\n")
        found += follow_until_it_waits(
            cli, monkeypatch, door / "run", log, "--state", door / "parts"
        )
        if start == 74:
            os.replace(log, door / "other.log.1")
    key = ("record", "kind", "id", "line", "count", "event")
    assert [[r.get(k) for k in key] for r in found] == [
        [r.get(k) for k in key] for r in whole
    ]
    assert read_json(door / "parts")["place"]["number"] == len(lines)


def test_a_state_of_nonsense_is_refused(cli, door, monkeypatch, foreground):
    log, state = door / "normal.log", door / "state"
    score = (door / "run", log, "--state", state)
    follow_until_it_waits(cli, monkeypatch, *score)
    data = json.loads(state.read_text())
    (session, *_) = data["sessions"].values()
    for change in (
        {"place": {}},
        {"sessions": {"a": {**session, "ids": [99999]}}},
        {"sessions": {"a": {**session, "totals": []}}},
        {"clock": "noon"},
        {"alarms": []},
    ):
        state.write_text(json.dumps({**data, **change}))
        said = fails(cli, "score", *score, "--follow")
        assert "is not the state of --follow" in said, change
    state.write_text("no JSON")
    assert "not valid JSON" in fails(cli, "score", *score, "--follow")
    assert "--state is for --follow" in fails(cli, "score", *score)


def test_memory_is_bounded_by_the_sessions_that_are_kept(door):
    """Also of those in which nothing is known."""
    detector = AnomalyDetector.load(door / "run")
    options = SimpleNamespace(
        idle=None, max_sessions=5, open_ends=False, json=True, state=None, folder=door
    )
    reading = LogReading.from_dict(detector.about)
    follower = _follow.Follower(Judge(detector), reading, options)
    for i in range(60):
        line = f"2026-11-25 03:12:{i:02} gate app[{6000 + i}]: what {'xyz'[i % 3]}"
        follower.take([(i, line)])
        assert len(follower.open) <= 6
