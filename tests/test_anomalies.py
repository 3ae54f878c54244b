"""Anomaly detection: p-values, readings, the detector, and events as they come."""

import math
from collections import Counter
from dataclasses import replace
from functools import partial
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from course import logdata as _logdata
from tinygpt_lib.anomalies import (
    apart,
    distances,
    known_ends,
    p_values,
    read_sessions,
    root_counts,
    weigh,
)
from tinygpt_lib.basics.files import CheckpointError, read_tensors, write_tensors
from tinygpt_lib.logs import (
    END,
    EventTokenizer,
    SessionFinder,
    group_lines,
    learn,
    surprisals,
)
from tinygpt_lib.runs.detectors import (
    SCORES,
    AnomalyDetector,
    check_rate,
)
from tinygpt_lib.runs.streams import EventStream
from tinygpt_lib.speed import FastGPT


def quick(ids, config, seed, learn=learn):
    """Learns in a second."""
    small = {"block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 16}
    return learn(ids, replace(config, **small), seed)


def blank(ids, config, seed):
    """Learns nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return FastGPT(config).eval()


untaught = partial(quick, learn=blank)  # where it doesn't matter what was learned


def normal_session(rng):
    """Opened, read or written some times, closed."""
    return ["open", *[rng.choice(["read", "write"])] * rng.randrange(1, 4), "close"]


@pytest.fixture(scope="module")
def normal():
    rng = Random(0)
    return [normal_session(rng) for _ in range(240)]


@pytest.fixture(scope="module")
def detector(normal):
    return AnomalyDetector.fit(normal, false_alarms=0.01, learn=quick)


@pytest.fixture
def kept(detector, monkeypatch):
    """The detector, for a test that sets something in it."""
    for name in ("_false_alarms", "score_name", "held_out"):
        monkeypatch.setattr(detector, name, getattr(detector, name))
    return detector


# p-values


@given(
    st.lists(st.lists(st.integers(0, 9), max_size=8), min_size=1, max_size=3),
    st.data(),
)
def test_p_values_are_counts(folds, data):
    count = st.lists(st.integers(0, 9), min_size=len(folds), max_size=len(folds))
    scores = data.draw(st.lists(count, min_size=1, max_size=4))
    kept = [torch.tensor(sorted(fold), dtype=torch.float64) for fold in folds]
    found = p_values(kept, torch.tensor(scores, dtype=torch.float64).T)
    n = sum(map(len, folds))
    for p, own in zip(found.tolist(), scores, strict=True):
        above = sum(k >= s for fold, s in zip(folds, own, strict=True) for k in fold)
        assert p == pytest.approx((1 + above) / (1 + n))


def test_scores_that_only_rounding_parts_tie():
    kept = [torch.tensor([1.0, 2.0, 3.0])]
    scores = torch.tensor([[3.0 + 1e-4, 3.0 - 1e-4, 3.0 + 1e-2]])
    assert p_values(kept, scores).tolist() == [0.5, 0.5, 0.25]


def test_the_promise_holds_whatever_the_scores_are():
    """Of draws from one hat, the share with p <= 0.05 is 0.05 (here of 20,000)."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(1000, 20 + 99, generator=generator).exp()
    low = 0
    for row in draws:
        low += (p_values([row[20:].sort().values], row[None, :20]) <= 0.05).sum().item()
    assert abs(low / 20_000 - 0.05) < 0.007  # eight deviations, but rows share draws


@pytest.mark.parametrize(
    ("rate", "n"), [(0.002, 999), (0.01, 199), (0.5, 3), (0.1, 19)]
)
def test_how_many_normal_sessions_a_rate_needs(rate, n):
    check_rate(rate, n)
    with pytest.raises(
        ValueError, match=f"needs at least {n} normal sessions"
    ) as error:
        check_rate(rate, n - 1)
    said = str(error.value)
    assert f"and there are {n - 1}: give more" in said
    assert ("or allow a rate of" in said) == (n > 1)


@given(st.integers(5, 10**7))
def test_the_rate_that_is_advised_is_accepted(n):
    with pytest.raises(ValueError, match="give more, or allow a rate of") as error:
        check_rate(0.5 / (n + 1), n)
    advised = float(str(error.value).split()[-1])
    check_rate(advised, n)
    assert advised <= 2.2 / (n + 1)


@pytest.mark.parametrize(("rate", "n"), [(0.002, 499), (0.002, 999), (0.1, 9)])
def test_at_its_limit_a_rate_still_raises_alarms(rate, n):
    kept = [torch.arange(n).double()]
    p = p_values(kept, torch.tensor([[float(n)]]).double())
    assert p.item() <= rate


@pytest.mark.parametrize("rate", [0, 1, -0.1, 2, math.nan, "0.1", None, True])
def test_rates_that_are_none(rate):
    with pytest.raises(ValueError, match="false_alarms is"):
        check_rate(rate, 1000)


# Readings


def test_a_reading_is_what_the_models_say():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 7, generator=generator)
    ids = torch.tensor([0, 6, 3, 3])
    reading = weigh(logits, ids, price=3.0)
    logits[..., EventTokenizer.begin] = -math.inf  # never within a session
    mean = logits.softmax(-1).mean(0)
    assert reading.nats[:, 0].tolist() == [3.0] * 3  # unknown
    for t, i in enumerate(ids.tolist()):
        own = [min(3, -math.log(logits[k, t].softmax(-1)[i])) for k in range(3)]
        assert t == 0 or reading.nats[:, t].tolist() == pytest.approx(own, rel=1e-5)
        order = mean[t].argsort(descending=True).tolist()
        assert reading.rank[t] == order.index(i) + 1
        assert reading.likeliest[t].tolist() == order[:3]
        assert reading.chances[t].tolist() == pytest.approx(mean[t][order[:3]].tolist())


def test_readings_of_many_are_those_of_each(detector):
    generator = torch.Generator().manual_seed(1)
    V, lengths = detector.tokenizer.vocab_size, (2, 9, 2, 10, 3, 30, 8, 17, 13)
    sessions = [torch.randint(2, V, (n,), generator=generator) for n in lengths]
    together = read_sessions(detector.members, sessions, price=99.0)
    begin, by_member = torch.tensor([detector.tokenizer.begin]), []
    for member in detector.members:
        hook = member.register_forward_hook(
            lambda _, ids, logits: logits.index_fill(-1, begin, -math.inf)
        )
        by_member.append(surprisals(member, sessions))
        hook.remove()
    for i, ids in enumerate(sessions):
        alone = read_sessions(detector.members, [ids], price=99.0)[0]
        for name in ("nats", "rank", "likeliest", "chances"):
            found, expected = getattr(together[i], name), getattr(alone, name)
            assert torch.allclose(found.double(), expected.double(), atol=1e-4)
        for k, nats in enumerate(by_member):
            assert torch.allclose(together[i].nats[k], nats[i], atol=1e-4)


# Counts


COUNTED = st.lists(
    st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=2, max_size=12
)


@given(COUNTED)
def test_distances_by_loop(counts):
    rows = torch.tensor(counts).float().sqrt()
    both, too_much = distances(rows, rows), distances(rows, rows, ended=False)
    for i, a in enumerate(rows.tolist()):
        for j, b in enumerate(rows.tolist()):
            gaps = [x - y for x, y in zip(a, b, strict=True)]
            assert both[i, j].item() == pytest.approx(sum(map(abs, gaps)), abs=1e-5)
            excess = sum(gap for gap in gaps if gap > 0)
            assert too_much[i, j].item() == pytest.approx(excess, abs=1e-5)


@given(COUNTED, st.booleans())
def test_each_session_is_compared_with_the_others(counts, ended):
    rows = torch.tensor(counts).float().sqrt()
    kinds, far = apart(rows, ended)
    assert len(kinds) == len({tuple(row) for row in counts})
    for i, row in enumerate(rows):
        others = torch.cat([rows[:i], rows[i + 1 :]])
        expected = distances(row[None], others, ended).min().item()
        same = pytest.approx(expected, abs=1e-5)
        assert far[i] == (same if len(kinds) > 1 else 0)


def test_one_more_session_never_moves_the_others_apart():
    """So their distances leave one out promise what is proven of all together."""
    rows = torch.rand(20, 5, generator=torch.Generator().manual_seed(0))
    assert (apart(rows, True)[1][:19] <= apart(rows[:19], True)[1] + 1e-6).all()


def test_counts_leave_out_begin_and_end():
    tokenizer = EventTokenizer(["a", "b"])
    ids = [tokenizer.encode_session(s) for s in (["a", "a", "x", "a", "a"], [])]
    assert root_counts(ids, 5).tolist() == [[1, 0, 0, 2, 0], [0] * 5]


# The detector


def test_normal_sessions_pass_and_faults_do_not(detector, normal):
    rng = Random(1)
    fresh = [normal_session(rng) for _ in range(200)]
    assert sum(r.anomalous for r in detector.score(fresh)) <= 8  # 2 are to be expected
    for session in (
        ["open", "read"],
        ["open", "close"],
        ["close", "open"],
        ["open", "read", "write", "close"],
        ["open", "read", "close", "close"],
        [],
    ):
        report = detector.score([session])[0]
        assert report.anomalous and report.p_value <= 0.01, session
        assert report.n_events == len(session) and report.n_unknown == 0


def test_the_report_says_where_and_what_was_expected(detector):
    report = detector.score([["open", "read", "write", "close"]])[0]
    worst = report.worst
    assert (worst.position, worst.event, worst.known) == (2, "write", True)
    assert {event for event, _ in worst.expected[:2]} == {"read", "close"}
    assert 1 >= worst.expected[0][1] >= worst.expected[1][1] >= worst.expected[2][1] > 0
    assert worst.rank >= 3 and worst.surprisal > 3
    every = detector.explain(["open", "read", "write", "close"])
    assert [e.event for e in every] == ["open", "read", "write", "close", END]
    assert every[2] == worst


def test_a_session_that_is_cut_is_odd_only_where_its_end_counts(detector):
    cut = ["open", "read"]
    assert detector.score([cut])[0].worst.event == END
    assert not detector.score([cut], ended=False)[0].anomalous
    whole, open_ = detector.score([cut, cut], ended=[True, False])
    assert whole.anomalous and not open_.anomalous
    with pytest.raises(ValueError, match="2 values were given for 1 sessions"):
        detector.score([cut], ended=[True, False])
    assert detector.score([[]], ended=False)[0].worst is None


def test_unknown_events_raise_an_alarm_and_are_counted(detector):
    report = detector.score([["open", "panic", "read", "panic", "close"]])[0]
    assert report.anomalous and report.n_unknown == 2
    assert (report.worst.position, report.worst.event) == (1, "panic")
    assert not report.worst.known
    assert report.worst.surprisal == pytest.approx(math.log(detector.n_events + 1))


def test_what_only_counts_see_and_what_only_the_gpt_sees(detector):
    many = ["open", *["read"] * 9, "close"]
    report = detector.score([many])[0]
    assert report.counts[0] == ("read", 9, 3) and report.anomalous
    swapped = detector.score([["read", "open", "close"]])[0]
    assert swapped.anomalous and not swapped.counts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.pop("normal-open"), "another version.*'normal-open'"),
        (lambda x: x.update({"normal-open": x["normal-open"][:, 1:]}), "counts must"),
        (lambda x: x.update({"normal-ended": x["normal-ended"] - 9}), "not below 0"),
        (lambda x: x.update({"held-out-open-0": torch.tensor([0.0])}), "of float64"),
        (lambda x: x["held-out-ended-0"].fill_(math.nan), "no numbers"),
    ],
)
def test_nonsense_in_a_file_is_refused(detector, tmp_path, change, message):
    detector.save(tmp_path)
    path = tmp_path / "detector.safetensors"
    tensors, settings = read_tensors(path)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_tensors(path, tensors, settings)
    with pytest.raises(CheckpointError, match=message):
        AnomalyDetector.load(tmp_path)


def test_a_log_of_nothing_but_new_lines_does_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(AnomalyDetector, "most", 4)
    sessions = [["open", "read", f"at {i:02}", "close"] for i in range(40)]
    found = AnomalyDetector.fit(sessions, learn=untaught, folds=2, false_alarms=0.1)
    assert found.tokenizer.events == ["at 00", "close", "open", "read"]
    assert found.news == 1 and found.score(sessions[1:2])[0].n_unknown == 1


def test_events_may_be_numbers(detector):
    numbers = [[1, 2, 3]] * 60
    found = AnomalyDetector.fit(numbers, false_alarms=0.05, folds=2, learn=quick)
    assert not found.score([[1, 2, 3]])[0].anomalous
    assert found.score([(3, 2, 1)])[0].anomalous


def test_reports_do_not_depend_on_what_else_is_in_a_batch(detector, normal):
    together = detector.score([*normal[:50], ["open", *["read"] * 30]])
    for session, report in zip(normal[:50], together, strict=False):
        alone = detector.score([session])[0]
        assert alone.score == pytest.approx(report.score, abs=1e-4)
        assert alone.p_value == pytest.approx(report.p_value, abs=0.01)
        assert alone.worst.position == report.worst.position
    assert detector.score([]) == []


def test_a_text_is_no_session(detector):
    for use in (detector.score, AnomalyDetector.fit):
        with pytest.raises(ValueError, match="'open read' is a text"):
            use(["open read"])


def test_long_sessions_are_read_in_windows(detector):
    report = detector.score([["open", *["read"] * 40, "close"]])[0]
    assert report.windowed and report.n_events == 42
    assert not detector.score([["open", "read", "close"]])[0].windowed


@pytest.mark.parametrize(
    ("sessions", "settings", "message"),
    [
        ([], {}, "hold no event"),
        ([["a"]], {}, "needs at least 999 normal sessions, and there are 1"),
        ([["a"]] * 99, {"false_alarms": 0.001}, "1,999 normal sessions"),
        ([["a"]] * 9, {"score": "best"}, "score is 'best'"),
        ([["a"]] * 9, {"folds": 1}, "folds is 1"),
        ([["a"]] * 9, {"ended": [True] * 8}, "8 values were given for 9 sessions"),
        (
            [["a"]] * 600,
            {"ended": [True] + [False] * 599},
            "of 600 sessions 599 may go on.*and there are 1: give",
        ),
        ([[]] * 9, {"false_alarms": 0.5}, "hold no event"),
    ],
)
def test_what_can_not_be_fitted(sessions, settings, message):
    with pytest.raises(ValueError, match=message):
        AnomalyDetector.fit(sessions, learn=quick, **settings)


def test_ends_of_sessions_that_were_cut_off_are_not_learned(normal):
    """Half of the sessions break off; that is normal only if it is taken for an end."""
    cut = [session[: 1 + i % 2] for i, session in enumerate(normal)]
    sessions, ended = normal + cut, [True] * len(normal) + [False] * len(cut)
    fit = partial(AnomalyDetector.fit, false_alarms=0.01, folds=2, learn=quick)
    knows, all_ended = fit(sessions, ended=ended), fit(sessions)
    assert sum(map(len, knows.held_out[True])) == len(normal)
    assert sum(map(len, knows.held_out[False])) == len(sessions)
    broken = [["open", "read"], ["open"]]
    assert all(r.anomalous and r.worst.event == END for r in knows.score(broken))
    assert not any(r.anomalous for r in knows.score(broken, ended=False))
    assert not any(r.anomalous for r in all_ended.score(broken))
    # That a session breaks off half the time makes no event of the others unlikelier.
    whole = knows.explain(["open", "read", "close"])
    assert whole[0].surprisal < 0.1 and whole[-1].surprisal < 0.1
    assert 0.3 < whole[1].surprisal < 1.2 and whole[2].surprisal < 1.6


def test_every_session_is_dealt_once():
    ended = [i % 3 > 0 for i in range(23)]
    parts = AnomalyDetector.deal(ended, 5, seed=1)
    assert sorted(i for part in parts for i in part) == list(range(23))
    assert {len(part) for part in parts} == {4, 5}
    assert {sum(ended[i] for i in part) for part in parts} == {3}
    assert all(part == sorted(part) for part in parts)
    assert (
        parts
        == AnomalyDetector.deal(ended, 5, seed=1)
        != AnomalyDetector.deal(ended, 5, seed=2)
    )
    assert len(AnomalyDetector.deal([True, False, True], 5, seed=0)) == 2


def test_no_member_learns_from_the_fold_that_it_scores(normal):
    learned = []

    def recorded(ids, config, seed):
        learned.append(ids)
        return untaught(ids, config, seed)

    marked = [[*s[:-1], f"id{i // 4}", s[-1]] for i, s in enumerate(normal)]
    ended = [i % 7 > 0 for i in range(len(marked))]
    fit = partial(AnomalyDetector.fit, false_alarms=0.01, learn=recorded)
    found = fit(marked, ended=ended)
    for ids, part in zip(learned, AnomalyDetector.deal(ended, 3, 0), strict=True):
        rest = [marked[i] for i in range(len(marked)) if i not in part]
        whole = sum(ended[i] for i in range(len(marked)) if i not in part)
        got = Counter(found.tokenizer.names[i] for i in ids.tolist())
        assert (got.pop("<begin>"), got.pop("<end>")) == (len(rest), whole)
        assert got == Counter(e for s in rest for e in s)


def test_held_out_scores_are_those_of_sessions_not_learned(detector, normal):
    rows = root_counts(
        [detector.tokenizer.encode_session(s) for s in normal],
        detector.tokenizer.vocab_size,
    )
    assert torch.equal(apart(rows, True)[1].sort().values, detector.far[True])
    for k, part in enumerate(AnomalyDetector.deal([True] * len(normal), 3, 0)):
        own = [tuple(normal[i]) for i in part]
        readings = detector.read(own, detector.members[k : k + 1])
        scores = [reading.nats.max().item() for reading in readings]
        kept = detector.held_out[True][k].tolist()
        assert kept == pytest.approx(sorted(scores), abs=1e-4)


def test_news_are_estimated_from_the_other_sessions():
    sessions = [["a"], ["a", "b"], ["a", "b", "b"], ["a", "c", "c"], ["d", "a"]]
    found = AnomalyDetector.fit(sessions, learn=untaught, false_alarms=0.5)
    assert found.news == pytest.approx(2 / 5)  # by c and d


def test_unknown_events_leave_the_promised_rate_alone(normal):
    odd = [*normal[:-6], *([*s, f"once {i}"] for i, s in enumerate(normal[-6:]))]
    found = AnomalyDetector.fit(odd, false_alarms=0.01, folds=2, learn=quick)
    assert found.news == pytest.approx(6 / 240)
    report = found.score([["open", "read", "write", "close"]])[0]
    assert report.n_unknown == 0 and report.anomalous


def test_the_rate_can_be_set_anew(kept):
    with pytest.raises(ValueError, match="there are 240"):
        kept.false_alarms = 0.001
    session = ["read", "open", "close"]
    kept.held_out = {True: [torch.linspace(0, 9, 80).double()] * 3}
    kept.false_alarms = p = kept.score([session])[0].p_value
    assert 0.01 < p < 1 and kept.score([session])[0].anomalous
    kept.false_alarms = math.nextafter(p, 0)
    assert not kept.score([session])[0].anomalous


# Saving


def test_saved_and_loaded_it_says_the_same(detector, normal, tmp_path):
    detector.about["sessions"] = {"events": True}
    detector.save(tmp_path / "a")
    again = AnomalyDetector.load(tmp_path / "a")
    sessions = [*normal[:40], ["open", "panic"], ["close"]]
    for one, other in zip(detector.score(sessions), again.score(sessions), strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-5)
        assert one.worst.position == other.worst.position
        same = {"score": 0, "worst": None}
        assert replace(one, **same) == replace(other, **same)
    assert again.about == detector.about
    assert (again.false_alarms, again.score_name) == (0.01, "max")


def test_a_damaged_detector_is_refused(detector, tmp_path):
    folder = tmp_path / "a"
    with pytest.raises(CheckpointError):
        AnomalyDetector.load(folder)
    detector.save(folder)
    main = folder / "detector.safetensors"
    data = main.read_bytes()
    for broken in (b"", data[:-9], data[:-1] + b"\x00", b"x" * 100):
        main.write_bytes(broken)
        with pytest.raises(CheckpointError, match=r"detector\.safetensors"):
            AnomalyDetector.load(folder)
    main.write_bytes(data)
    (folder / "member-1" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="member-1"):
        AnomalyDetector.load(folder)


def test_members_of_another_save_are_refused(detector, tmp_path):
    """A save that was cut short over an older one must not be taken for either."""
    detector.save(tmp_path / "a")
    places = [tmp_path / "a" / f"member-{i}" for i in range(2)]
    places[0].rename(tmp_path / "first")
    places[1].rename(places[0])
    (tmp_path / "first").rename(places[1])  # its own, in another order
    with pytest.raises(CheckpointError, match="not those that it was saved with"):
        AnomalyDetector.load(tmp_path / "a")


def test_fitting_leaves_random_numbers_alone(normal):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    AnomalyDetector.fit(normal[:40], false_alarms=0.1, folds=2, learn=untaught)
    assert torch.equal(torch.get_rng_state(), before)


# Events as they come


def test_an_alarm_on_the_way_is_one_at_the_end(kept):
    """Where ends surprise most, open sessions have the lower threshold."""
    assert kept.score_name == "max"
    kept.false_alarms = 0.1
    rng, early = Random(7), 0
    events = kept.tokenizer.events
    for _ in range(60):
        session = [rng.choice(events) for _ in range(rng.randrange(1, 6))]
        stream, told = kept.stream(), False
        for event in session:
            stream.push("x", event)
            told |= stream.report("x", as_ended=True).anomalous
        early += told
        assert stream.close("x").anomalous or not told
    assert early > 5


@pytest.mark.parametrize("age", [-1, math.nan, -math.inf])
def test_an_age_that_is_none(detector, age):
    with pytest.raises(ValueError, match="max_age is"):
        detector.stream(max_age=age)


def test_a_stream_says_what_a_batch_says(detector):
    rng = Random(3)
    events = [*detector.tokenizer.events, "panic"]
    sessions = [[rng.choice(events) for _ in range(n)] for n in (0, 1, 3, 8, 9, 30, 41)]
    stream = EventStream(detector)
    for place in range(41):
        for i, session in enumerate(sessions):
            if place < len(session):
                stream.push(str(i), session[place])
    batch, open_ = detector.score(sessions), detector.score(sessions, ended=False)
    for i, session in enumerate(sessions):
        if not session:
            continue
        for ended, expected in ((False, open_[i]), (True, batch[i])):
            found = stream.close(str(i)) if ended else stream.report(str(i))
            assert found.score == pytest.approx(expected.score, abs=1e-4)
            assert found.p_value == pytest.approx(expected.p_value, abs=0.01)
            assert found.worst.position == expected.worst.position
            assert found.worst.surprisal == pytest.approx(
                expected.worst.surprisal, abs=1e-5
            )
            assert (found.n_unknown, found.n_events) == (
                expected.n_unknown,
                expected.n_events,
            )
    assert not stream.running


@pytest.mark.parametrize("name", sorted(SCORES))
def test_many_events_at_once_are_as_one_by_one(kept, name):
    kept.score_name, rng = name, Random(3)
    events = [*kept.tokenizer.events, "panic"]
    left = {str(i): rng.choices(events, k=rng.randrange(1, 50)) for i in range(12)}
    names, singly, together = list(left), kept.stream(), kept.stream()
    while left := {name: rest for name, rest in left.items() if rest}:
        numbers = {name: rng.randrange(20) for name in left}
        part = {name: left[name][:n] for name, n in numbers.items() if n}
        pairs = [(name, event) for name, new in part.items() for event in new]
        left = {name: left[name][n:] for name, n in numbers.items()}
        for pair in pairs:
            assert singly.look(*pair) == singly.push(*pair)
        if rng.random() < 0.7:
            together.push_many(part)
        else:
            for pair in pairs:
                together.push(*pair)
    for name in names:
        for ask in (EventStream.report, EventStream.close):
            one, other = ask(singly, name), ask(together, name)
            assert one.score == pytest.approx(other.score, abs=1e-4)
            assert one.p_value == pytest.approx(other.p_value, abs=0.01)
            assert one.worst.position == other.worst.position
            assert one.n_unknown == other.n_unknown


@pytest.mark.parametrize("name", sorted(SCORES))
def test_a_stream_forgets_nothing_of_a_long_session(kept, name):
    kept.score_name = name
    session = ["open", "panic", *["read"] * 300, "write", *["read"] * 30, "close"]
    stream = kept.stream()
    for event in session:
        stream.push("long", event)
    expected, found = kept.score([session])[0], stream.close("long")
    assert found.score == pytest.approx(expected.score, abs=1e-4)
    assert found.p_value == pytest.approx(expected.p_value, abs=0.01)
    assert found.worst.position == expected.worst.position == 1


def test_without_ends_a_stream_counts_none(detector):
    stream = detector.stream(count_ends=False)
    stream.push("a", "open")
    report = stream.close("a")
    assert report.worst.event == "open" and not report.anomalous


def test_each_event_is_reported_as_explain_does(detector):
    session = ["open", "read", "panic", "read", "close"] * 4
    stream = EventStream(detector)
    for expected in detector.explain(session)[:-1]:
        found = stream.push("a", expected.event)
        assert found.surprisal == pytest.approx(expected.surprisal, abs=1e-5)
        assert (found.position, found.rank, found.known) == (
            expected.position,
            expected.rank,
            expected.known,
        )
        assert [e for e, _ in found.expected] == [e for e, _ in expected.expected]


def test_sessions_are_closed_by_age_and_by_room(detector):
    closed = []
    stream = EventStream(
        detector, max_sessions=2, max_age=10, on_close=lambda *told: closed.append(told)
    )
    stream.push("a", "open", now=0)
    stream.push("b", "open", now=1)
    stream.push("a", "read", now=2)
    stream.push("c", "open", now=3)  # no room: b has been silent longest
    assert [(name, r.worst.event, e) for name, r, e in closed] == [("b", "open", False)]
    assert set(stream.running) == {"a", "c"}
    stream.expire(now=12.5)  # a's end counts
    assert [(name, r.worst.event, e) for name, r, e in closed[1:]] == [("a", END, True)]
    stream.push("c", "read", now=13)
    assert stream.report("c").n_events == 2
    for unknown in (stream.report, stream.close):
        with pytest.raises(KeyError):
            unknown("a")


def test_an_age_counts_from_the_last_event(detector):
    closed = []
    stream = detector.stream(max_age=10, on_close=lambda *told: closed.append(told))
    stream.push("a", "open", now=0)
    stream.push("a", "read", now=8)
    stream.expire(now=18)  # silent for 10, and not for more
    assert not closed
    stream.push("b", "open", now=18.5)  # whoever comes, the silent ones are closed
    assert [(name, r.n_events) for name, r, _ in closed] == [("a", 2)]
    stream.push("b", "open", now=30)  # an old name, and a session that begins anew
    assert [name for name, *_ in closed] == ["a", "b"]
    assert stream.report("b").n_events == 1


# When a session is over


def test_pauses_and_ends():
    sessions = [["a", "b", "a"], ["a", "b"], ["a", "b", "b"]]
    times = [[0, 5, 6], [0, 9], [0, 7, 7]]  # the longest is neither first nor last
    for events, silent, over in (
        (["b", "a"], 9.5, True),
        (["b", "a"], 9, False),
        (["a", "b"], 1.5, True),
        (["a", "b"], 1, False),
        (["c"], 0, True),
        ([], 0, True),
    ):
        own = [100.0 for _ in events]
        found = known_ends([events], [own], 100 + silent, (sessions, times))
        assert found == [over], (events, silent)
    assert known_ends(sessions, times, 10) == [False, False, True]  # by their own


# Faults that are put in


@given(
    st.lists(st.sampled_from("abc"), min_size=2, max_size=9).filter(
        lambda s: len(set(s)) > 1
    ),
    st.sampled_from(["insert", "delete", "swap"]),
    st.integers(0, 99),
)
def test_a_fault_is_where_it_says(session, kind, seed):
    wrong, places = _logdata.with_fault(session, kind, "abx", Random(seed))
    n = len(session)
    assert len(wrong) == n + {"insert": 1, "delete": -1, "swap": 0}[kind]
    assert places and all(0 <= place <= len(wrong) for place in places)
    if kind == "insert":  # without any one of the places it is the old session
        assert all(wrong[:p] + wrong[p + 1 :] == session for p in places)
    elif kind == "delete":
        (place,) = places
        assert any([*wrong[:place], e, *wrong[place:]] == session for e in "abc")
        assert place == len(wrong) or wrong[place] != session[place]
    else:
        assert [t for t in range(n) if wrong[t] != session[t]] == sorted(places)


# Data to try it on


def test_a_trial_by_time_has_no_session_on_both_sides():
    log = _logdata.synthetic_log(400, share=0.1, seed=3)
    found = group_lines((line.text for line in log.lines), SessionFinder(r"blk_-?\d+"))
    trial = _logdata.split_by_time(log, found.values())
    began = {}
    for line in log.lines:
        began.setdefault(line.session, line.seconds)
    late = [name for name, when in began.items() if when >= _logdata.CUT]
    assert len(trial.test) == len(late) and 0 < len(late) < 400
    assert sum(trial.anomalous) == sum(log.anomalous[name] for name in late)
    starts = [times[0] for times in trial.test_times]
    assert starts == sorted(starts) and starts[0] >= _logdata.CUT
    # Of the rest, nothing after the cut: neither events nor times.
    assert all(times[-1] < _logdata.CUT for times in trial.train_times)
    for told, times in zip(trial.train, trial.train_times, strict=True):
        assert len(told) == len(times) > 0
    early = [line for line in log.lines if line.seconds < _logdata.CUT]
    normal = [line for line in early if not log.anomalous[line.session]]
    left_out = {line.session for line in log.lines} - {*late}
    count = sum(line.session in left_out for line in normal)
    assert sum(map(len, trial.train)) == count
    torn = {line.session for line in log.lines if line.seconds >= _logdata.CUT}
    assert torn & {line.session for line in normal}  # some did go on
    assert len(trial.train) == len(began) - len(late) - sum(
        log.anomalous[name] for name in began if name not in late
    )


@pytest.mark.parametrize(
    ("load", "train", "normal", "abnormal"),
    [
        ("load_deeplog", 4855, (22_059, 553_366), 16_838),
        ("load_adfa", 833, (4372,), 746),
    ],
)
def test_the_real_trials_where_they_are_there(load, train, normal, abnormal):
    name = {"load_deeplog": _logdata.TRAIN, "load_adfa": _logdata.ADFA}[load]
    if not (_logdata.data_folder() / name).exists():
        pytest.skip(f"{name} is not in the cache")
    trial = getattr(_logdata, load)()
    assert len(trial.train) == train and sum(trial.anomalous) == abnormal
    count = len(trial.test) - abnormal
    assert count in normal
    assert load == "load_adfa" or trial.weight * count == pytest.approx(553_366)
    if load == "load_adfa":
        assert len(set(trial.kinds)) == 7
