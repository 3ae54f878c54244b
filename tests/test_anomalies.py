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
from tinygpt_lib import anomalies
from tinygpt_lib.anomalies import (
    SCORES,
    AnomalyDetector,
    EventStream,
    Panel,
    check_rate,
    deal,
    folds_of,
    has_ended,
    learnt_from,
    longest_pauses,
    p_values,
    read_events,
    read_sessions,
    score_of,
    share_with_news,
    weigh,
    with_fault,
)
from tinygpt_lib.basics.files import CheckpointError, read_tensors, write_tensors
from tinygpt_lib.gpt import GPT
from tinygpt_lib.logs import (
    END,
    EventTokenizer,
    SessionFinder,
    group_lines,
    log_preset,
    surprisals,
)


def quick(vocab_size, steps=150):
    """A preset that takes a second."""
    model, training = log_preset(vocab_size)
    model = replace(model, block_size=8, n_layer=1, n_head=2, n_embd=16)
    return model, replace(training, steps=steps, batch_size=16)


untaught = partial(quick, steps=1)  # where it doesn't matter what was learnt


def normal_session(rng):
    """Opened, read or written some times, closed."""
    return ["open", *[rng.choice(["read", "write"])] * rng.randrange(1, 4), "close"]


@pytest.fixture(scope="module")
def normal():
    rng = Random(0)
    return [normal_session(rng) for _ in range(240)]


@pytest.fixture(scope="module")
def detector(normal):
    return AnomalyDetector.fit(normal, false_alarms=0.01, folds=3, preset=quick)


@pytest.fixture
def kept(detector, monkeypatch):
    """The detector, for a test that sets something in it."""
    monkeypatch.setattr(detector, "_false_alarms", detector.false_alarms)
    monkeypatch.setattr(detector, "_score_name", detector.score_name)
    monkeypatch.setattr(detector, "_held_out", detector._held_out)
    monkeypatch.setattr(detector, "_sorted", detector._sorted)
    monkeypatch.setattr(detector, "turn", detector.turn)
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
    scores = torch.tensor([[3.0 + 1e-5, 3.0 - 1e-5, 3.0 + 1e-3]])
    assert p_values(kept, scores).tolist() == [0.5, 0.5, 0.25]


def test_the_promise_holds_whatever_the_scores_are():
    """Of draws from one hat, the share with p <= 0.05 is 0.05 (here of 20,000)."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(1000, 20 + 99, generator=generator).exp()
    low = 0
    for row in draws:
        low += (p_values([row[20:].sort().values], row[None, :20]) <= 0.05).sum().item()
    assert abs(low / 20_000 - 0.05) < 0.007  # eight deviations, but rows share draws


@pytest.mark.parametrize(("rate", "n"), [(0.002, 499), (0.01, 99), (0.5, 1), (0.1, 9)])
def test_how_many_normal_sessions_a_rate_needs(rate, n):
    check_rate(rate, n)
    with pytest.raises(
        ValueError, match=f"needs at least {n} normal sessions"
    ) as error:
        check_rate(rate, n - 1)
    said = str(error.value)
    assert f"and there are {n - 1}: give more" in said
    assert ("or allow a rate of" in said) == (n > 1)


@given(st.integers(1, 10**7))
def test_the_rate_that_is_advised_is_accepted(n):
    with pytest.raises(ValueError, match="give more, or allow a rate of") as error:
        check_rate(0.5 / (n + 1), n)
    advised = float(str(error.value).split()[-1])
    check_rate(advised, n)
    assert advised <= 1.2 / (n + 1)


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
    reading = weigh(logits, ids)
    mean = logits.softmax(-1).mean(0)
    for t, i in enumerate(ids.tolist()):
        own = [-math.log(logits[k, t].softmax(-1)[i]) for k in range(3)]
        assert reading.nats[:, t].tolist() == pytest.approx(own, rel=1e-5)
        order = mean[t].argsort(descending=True).tolist()
        assert reading.rank[t] == order.index(i) + 1
        assert reading.likeliest[t].tolist() == order[:3]
        assert reading.chances[t].tolist() == pytest.approx(mean[t][order[:3]].tolist())


def test_readings_of_many_are_those_of_each(detector):
    generator = torch.Generator().manual_seed(1)
    V, lengths = detector.tokenizer.vocab_size, (2, 9, 1, 10, 3, 30, 8, 17, 13)
    begin = torch.tensor([detector.tokenizer.begin])
    sessions = [torch.randint(V, (n,), generator=generator) for n in lengths]
    for ids in sessions:  # a session begins once
        ids[1:][ids[1:] == begin] = detector.tokenizer.end
    together = read_sessions(detector.panel, sessions)
    by_member = []
    for member in detector.members:
        hook = member.register_forward_hook(
            lambda _, ids, logits: logits.index_fill(-1, begin, -math.inf)
        )
        by_member.append(surprisals(member, sessions))
        hook.remove()
    for i, ids in enumerate(sessions):
        alone = read_sessions(detector.panel, [ids])[0]
        for name in ("nats", "rank", "likeliest", "chances"):
            found, expected = getattr(together[i], name), getattr(alone, name)
            assert torch.allclose(found.double(), expected.double(), atol=1e-4)
        for k, nats in enumerate(by_member):
            assert torch.allclose(together[i].nats[k], nats[i], atol=1e-4)


def test_a_panel_says_what_its_members_say():
    plain = quick(9)[0]
    configs = [
        (plain, True),
        (replace(plain, tie_weights=True), False),
        (replace(plain, norm="layer", bias=True), False),
        (replace(plain, position="learned", feed_forward="gelu"), False),
    ]
    for config, stacked in configs:
        torch.manual_seed(0)
        members, ids = [GPT(config).eval() for _ in range(3)], torch.randint(9, (4, 7))
        with torch.no_grad():
            for parameter in (p for m in members for p in m.parameters()):
                parameter.add_(0.1 * torch.randn_like(parameter))
            expected = torch.stack([member(ids) for member in members])
        expected[..., EventTokenizer.begin] = -math.inf  # never within a session
        panel = Panel(members)
        assert (panel.stacked is not None) == stacked
        assert torch.allclose(panel(ids), expected, atol=1e-5)
        cache = panel.cache()
        first, rest = panel(ids[:, :3], cache), panel(ids[:, 3:], cache)
        assert torch.allclose(torch.cat([first, rest], 2), expected, atol=1e-5)


def test_unknown_events_cost_log_n_and_are_read_over():
    torch.manual_seed(0)
    tokenizer = EventTokenizer(["a", "b"])
    members = [GPT(quick(tokenizer.vocab_size)[0]).eval() for _ in range(2)]
    session = ["a", "b", "a", "a"]
    mixed = ["x", "a", "b", "y", "z", "a", "a", "x"]
    plain, odd = read_events(Panel(members), tokenizer, 99, [session, mixed])
    strange = torch.tensor([e not in tokenizer for e in mixed] + [False])
    assert torch.allclose(odd.nats[:, ~strange], plain.nats, atol=1e-6)
    assert odd.nats[:, strange].flatten().tolist() == pytest.approx([math.log(100)] * 8)
    assert odd.rank[strange].tolist() == [5] * 4
    assert torch.equal(odd.likeliest[3], plain.likeliest[2])  # what was due at y


# Scores


@pytest.mark.parametrize("name", sorted(SCORES))
def test_scores_grow_with_every_surprise(name):
    nats = torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.5, 0.5]])
    low, more = score_of(name, nats), score_of(name, nats + 1)
    assert low.shape == (2,) and (more > low).all() and low[0] > low[1]
    assert score_of(name, nats[:, :0]).tolist() == [0, 0]


def test_the_largest_and_the_mean():
    nats = torch.tensor([1.0, 2.0, 6.0])
    assert score_of("max", nats) == 6 and score_of("mean", nats) == 3
    assert 3 < score_of("power", nats) < 6


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


@pytest.fixture(scope="module")
def rare():
    """A detector, one of whose members has never met the event "once"."""
    sessions = [["open", *["read"] * (i % 3), "close"] for i in range(59)]
    sessions.append(["open", "once", "read", "close"])
    return AnomalyDetector.fit(sessions, preset=quick, folds=3, false_alarms=0.1)


ONCE = ["open", "once", "read", "close"]


def test_what_one_fold_had_is_known_to_the_members_that_learnt_from_it(rare):
    (reading,) = rare.read([ONCE])
    without = [bool(~known) for known in reading.known[:, 1]]
    assert sum(without) == 1 and reading.known[:, [0, 2, 3, 4]].all()
    own = without.index(True)
    price = math.log(rare.n_events + 1)
    assert reading.nats[own, 1].item() == pytest.approx(price)
    assert (reading.nats[[k for k in range(3) if k != own], 1] != price).all()
    report = rare.score([ONCE])[0]
    assert report.n_unknown == 0 and report.worst.known
    # The member that was kept from it read on as if it had not been there.
    without_it = rare.read([["open", "read", "close"]])[0].nats[own].max().item()
    kept = rare.held_out["max", True][own]
    assert (kept - without_it).abs().min() < 1e-4


@pytest.mark.parametrize("score", SCORES)
def test_what_some_members_know_counts_for_them_in_a_stream_as_in_a_batch(rare, score):
    session = [*ONCE, "never", *["read"] * 9, "once", "close"]  # longer than a window
    own = [bool(known) for known in rare.read([ONCE])[0].known[:, 1]].index(False)
    rare.score_name = score
    try:
        for ended in (True, False):
            expected = rare.score([session], ended)[0]
            stream = rare.stream(count_ends=ended)
            for event in session:
                stream.push("it", event)
            running = stream.running["it"]
            # Of 16 events one member knows 13, the others 15, and all were priced.
            assert running.counts[1].tolist() == [16] * 3
            assert sorted(running.counts[0].tolist()) == [13, 15, 15]
            assert running.counts[0, own] == 13
            found = stream.close("it")
            assert found.score == pytest.approx(expected.score, abs=1e-5)
            assert (found.p_value, found.n_unknown) == (expected.p_value, 1)
    finally:
        rare.score_name = "max"


def test_what_each_member_met_is_kept(rare, tmp_path):
    rare.save(tmp_path)
    loaded = AnomalyDetector.load(tmp_path)
    assert torch.equal(loaded.panel.met, rare.panel.met)
    assert not rare.panel.met[:, 1:].all()
    assert loaded.score([ONCE]) == rare.score([ONCE])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda met: met.int(), "of bool"),
        (lambda met: met[:, 1:], "met must be"),
        (lambda met: met | True, "UNKNOWN for none"),
        (lambda met: met & False, "begin and end for all"),
        (lambda met: met & (torch.arange(met.shape[1]) != 4), "no member has met"),
        (None, "'met'.*another version"),
    ],
)
def test_nonsense_about_what_was_met_is_refused(rare, tmp_path, change, message):
    rare.save(tmp_path)
    path = tmp_path / "detector.safetensors"
    tensors, settings = read_tensors(path)
    met = tensors.pop("met")
    if change is not None:
        tensors["met"] = change(met).contiguous()
    write_tensors(path, tensors, settings)
    with pytest.raises(CheckpointError, match=message):
        AnomalyDetector.load(tmp_path)


def test_a_log_of_nothing_but_new_lines_does_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(anomalies, "MOST_EVENTS", 4)
    sessions = [["open", "read", f"at {i:02}", "close"] for i in range(40)]
    found = AnomalyDetector.fit(sessions, preset=untaught, folds=2, false_alarms=0.1)
    assert found.tokenizer.events == ["at 00", "close", "open", "read"]
    assert found.news == 1 and found.score(sessions[1:2])[0].n_unknown == 1


def test_events_may_be_numbers(detector):
    numbers = [[1, 2, 3]] * 60
    found = AnomalyDetector.fit(numbers, false_alarms=0.05, folds=2, preset=quick)
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
    for use in (detector.score, detector.read, AnomalyDetector.fit):
        with pytest.raises(ValueError, match="'open read' is a text"):
            use(["open read"])


def test_long_sessions_are_read_in_windows(detector):
    report = detector.score([["open", *["read"] * 40, "close"]])[0]
    assert report.windowed and report.n_events == 42
    assert not detector.score([["open", "read", "close"]])[0].windowed


@pytest.mark.parametrize(
    ("sessions", "settings", "message"),
    [
        ([], {}, "needs at least 499 normal sessions, and there are 0"),
        ([["a"]], {}, "needs at least 499 normal sessions, and there are 1"),
        ([["a"]] * 99, {"false_alarms": 0.001}, "999 normal sessions"),
        ([["a"]] * 9, {"score": "best"}, "score is 'best'"),
        ([["a"]] * 9, {"folds": 1}, "folds is 1"),
        ([["a"]], {"false_alarms": 0.5}, "one session is not enough"),
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
        AnomalyDetector.fit(sessions, preset=quick, **settings)


def test_ends_of_sessions_that_were_cut_off_are_not_learnt(normal):
    """Half of the sessions break off; that is normal only if it is taken for an end."""
    cut = [session[: 1 + i % 2] for i, session in enumerate(normal)]
    sessions, ended = normal + cut, [True] * len(normal) + [False] * len(cut)
    fit = partial(AnomalyDetector.fit, false_alarms=0.01, folds=2, preset=quick)
    knows, all_ended = fit(sessions, ended=ended), fit(sessions)
    assert knows.n_held_out == len(normal) and all_ended.n_held_out == len(sessions)
    assert sum(map(len, knows.held_out["max", False])) == len(sessions)
    broken = [["open", "read"], ["open"]]
    assert all(r.anomalous and r.worst.event == END for r in knows.score(broken))
    assert not any(r.anomalous for r in knows.score(broken, ended=False))
    assert not any(r.anomalous for r in all_ended.score(broken))
    # That a session breaks off half the time makes no event of the others unlikelier.
    whole = knows.explain(["open", "read", "close"])
    assert whole[0].surprisal < 0.1 and whole[-1].surprisal < 0.1
    assert 0.3 < whole[1].surprisal < 1.2 and whole[2].surprisal < 1.6


def test_what_may_go_on_is_dealt_apart():
    parts = folds_of("aBcDeFgHI", [x.islower() for x in "aBcDeFgHI"], 10, 0, 0.3)
    assert len(parts) == 4 and all(sum(o for _, o in part) == 1 for part in parts)
    assert all(session.islower() == over for part in parts for session, over in part)
    assert sorted(s for part in parts for s, _ in part) == sorted("aBcDeFgHI")
    assert all(part == sorted(part, key=lambda x: x[0].lower()) for part in parts)
    tokenizer = EventTokenizer(["a", "b"])
    part = [(["b", "x"], False), (["a", "x", "b"], True), ([], False)]
    ids = learnt_from(part, tokenizer)
    begin, end = tokenizer.begin, tokenizer.end
    a, b = tokenizer.encode_session(["a", "b"])[1:3].tolist()
    assert ids.tolist() == [begin, b, begin, a, b, end, begin]


def test_every_session_is_dealt_once():
    parts = deal(range(23), 5, seed=1)
    assert sorted(i for part in parts for i in part) == list(range(23))
    assert {len(part) for part in parts} == {4, 5}
    assert all(part == sorted(part) for part in parts)
    assert parts == deal(range(23), 5, seed=1) != deal(range(23), 5, seed=2)


def test_no_member_learns_from_the_fold_that_it_scores(normal, monkeypatch):
    learnt = []

    def recorded(ids, kept_back, size, preset, seed, device):
        learnt.append(ids)
        return GPT(preset(size)[0]).eval()

    monkeypatch.setattr(anomalies, "fit_member", recorded)
    marked = [[*s[:-1], f"id{i // 4}", s[-1]] for i, s in enumerate(normal)]
    found = AnomalyDetector.fit(marked, false_alarms=0.01, folds=3, preset=quick)
    for ids, part in zip(learnt, deal(marked, 3, 0), strict=True):
        rest = list(marked)
        for session in part:
            rest.remove(session)
        expected = Counter(e for s in rest for e in s if e in found.tokenizer)
        got = Counter(found.tokenizer.names[i] for i in ids.tolist())
        assert got.pop("<begin>") == got.pop("<end>") == len(rest)
        assert got == expected


def test_held_out_scores_are_those_of_the_known_events(detector, normal):
    for i, part in enumerate(deal(normal, 3, 0)):
        panel = Panel(detector.members[i : i + 1])
        readings = read_events(panel, detector.tokenizer, detector.n_events, part)
        own = [r.nats.max().item() for r in readings]
        kept = detector.held_out["max", True][i].tolist()
        assert kept == pytest.approx(own, abs=1e-4)


def test_news_are_estimated_from_the_other_sessions():
    sessions = [["a"], ["a", "b"], ["a", "b", "b"], ["a", "c", "c"], ["d", "a"]]
    assert share_with_news(sessions, "abcd") == pytest.approx(2 / 5)  # by c and d
    assert share_with_news(sessions, "acd") == pytest.approx(4 / 5)


def test_unknown_events_leave_the_promised_rate_alone(normal):
    odd = [*normal[:-6], *([*s, f"once {i}"] for i, s in enumerate(normal[-6:]))]
    found = AnomalyDetector.fit(odd, false_alarms=0.01, folds=2, preset=quick)
    assert found.news == pytest.approx(6 / 240)
    report = found.score([["open", "read", "write", "close"]])[0]
    assert report.n_unknown == 0 and report.anomalous


def test_rate_and_score_can_be_set_anew(kept):
    with pytest.raises(ValueError, match="there are 240"):
        kept.false_alarms = 0.001
    with pytest.raises(ValueError, match="score is 'median'"):
        kept.score_name = "median"
    session = ["open", "read", "read", "close"]
    by_max = kept.score([session])[0].score
    kept.score_name = "mean"
    assert kept.score([session])[0].score < by_max


def test_recalibration_moves_the_threshold_and_keeps_the_size(kept):
    session = ["open", "read", "write", "close"]
    before = kept.score([session])[0].p_value
    kept.recalibrate([session] * 60)
    assert kept.n_held_out == 240
    assert before < 0.01 and kept.score([session])[0].p_value >= 60 / 241
    kept.recalibrate([])
    kept.recalibrate([["open", "read"]] * 3, ended=False)
    assert kept.n_held_out == 240


def test_each_calibration_is_renewed_by_its_own_sessions(kept):
    """Those without an end tell nothing of sessions whose end counts."""
    kept.turn = 1
    before, sessions = kept.held_out, [["open"], ["close"], ["read", "read"], ["write"]]
    ended = [False, True, False, False]
    readings = [kept.read([session])[0] for session in sessions]
    kept.recalibrate(sessions, ended)
    for (name, with_end), by_member in kept.held_out.items():
        for k, scores in enumerate(by_member):
            own = [
                score_of(name, r.nats[k] if with_end else r.nats[k, :-1])
                for i, r in enumerate(readings)
                if (i + 1) % 3 == k and (ended[i] or not with_end)
            ]
            old = before[name, with_end][k]
            expected = torch.cat([old, torch.tensor(own).double()])[len(own) :]
            assert torch.allclose(scores, expected, atol=1e-4)
    assert kept.turn == 2


def test_a_p_value_that_is_the_rate_raises_the_alarm(kept):
    kept.held_out = {key: [torch.linspace(0, 9, 80)] * 3 for key in kept.held_out}
    session = ["open", "read", "close"]
    kept.false_alarms = p = kept.score([session])[0].p_value
    assert 0.01 < p < 1 and kept.score([session])[0].anomalous
    kept.false_alarms = math.nextafter(p, 0)
    assert not kept.score([session])[0].anomalous


def test_one_by_one_the_members_take_turns(kept):
    for _ in range(9):
        kept.recalibrate([["open", "read", "write", "close"]])
    for scores in kept.held_out["max", True]:
        assert (scores[-3:] > 3).all()


# Saving


def test_saved_and_loaded_it_says_the_same(detector, normal, tmp_path):
    detector.about["sessions"] = {"events": True}
    detector.save(tmp_path / "a")
    again = AnomalyDetector.load(tmp_path / "a")
    sessions = [*normal[:40], ["open", "panic"], ["close"]]
    for one, other in zip(detector.score(sessions), again.score(sessions), strict=True):
        assert one == other
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


def test_members_of_another_save_are_refused(detector, rare, tmp_path):
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
    AnomalyDetector.fit(normal[:40], false_alarms=0.1, folds=2, preset=untaught)
    assert torch.equal(torch.get_rng_state(), before)


# Events as they come


def test_what_a_stream_measures_by_stays(kept):
    stream, session = kept.stream(), ["open", "read", "close"]
    for event in session:
        stream.push("a", event)
    expected = kept.score([session])[0]
    kept.score_name = next(name for name in SCORES if name != kept.score_name)
    found = stream.close("a")
    assert found.p_value == expected.p_value
    assert found.score == pytest.approx(expected.score, abs=1e-5)


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
    pauses = longest_pauses(sessions, times)
    assert pauses == {"a": 9, "b": 1}
    assert has_ended(["b", "a"], 9.5, pauses) and not has_ended(["b", "a"], 9, pauses)
    assert has_ended(["c"], 0, pauses) and has_ended([], 0, pauses)


# Faults that are put in


@given(
    st.lists(st.sampled_from("abc"), min_size=2, max_size=9).filter(
        lambda s: len(set(s)) > 1
    ),
    st.sampled_from(["insert", "delete", "swap"]),
    st.integers(0, 99),
)
def test_a_fault_is_where_it_says(session, kind, seed):
    wrong, places = with_fault(session, kind, "abx", Random(seed))
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
