"""Logs: lines to events, events to sessions, sessions to ids, and surprise."""

import gzip
import io
import json
import math
import re
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import pytest
import torch
from dateutil import parser
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from course import logdata as _logdata
from tinygpt_lib import load_checkpoint, logs
from tinygpt_lib.basics.corpus import data_folder
from tinygpt_lib.basics.loglines import (
    LONGEST_LINE,
    MASKS,
    from_iso,
    read_lines,
    seconds_of,
)
from tinygpt_lib.logs import (
    END,
    EventTokenizer,
    Masks,
    SessionFinder,
    bits_per_event,
    group_lines,
    in_windows,
    learn,
    log_config,
    stream,
    surprisals,
)
from tinygpt_lib.runs.checkpoints import save_checkpoint
from tinygpt_lib.runs.presets import log_preset
from tinygpt_lib.runs.run import train
from tinygpt_lib.runs.tokenizers import tokenizer_from_dict
from tinygpt_lib.speed import FastConfig, FastGPT
from tinygpt_lib.tokenizers import score_text

# Masks

mask = Masks()


@pytest.mark.parametrize(
    ("line", "event"),
    [
        ("Received block blk_-160 of size 911", "Received block blk_-X of size X"),
        ("Received block blk_-1608999687919862906", "Received block <id>"),
        ("from /10.251.73.220:42557", "from <address>"),
        ("from 10.0.0.1", "from <address>"),
        ("peer fe80::1ff:fe23:4567:890a up", "peer <address> up"),
        ("loop ::1 up", "loop <address> up"),
        ("mac 00:1a:2B:3c:4d:5e up", "mac <address> up"),
        ("mac 52:54:00:12:34:56 up", "mac <address> up"),
        ("mac 52:54:00:ab:cd:ef up", "mac <address> up"),
        ("GET https://a.example/x?y=1#z now", "GET <url> now"),
        ("at 25/Nov/2026:03:12:01 +0100 up", "at <time> up"),
        ("attempt_200811092030_0001_m_000590_0 done", "<id> done"),
        ("session123456 begins", "<id> begins"),
        ("took 12ms, 3.5s and 64kB", "took X, X and X"),
        ("/system/job_200811092030_0001/job.jar", "<path>"),
        ("open /var/log/x-1.log now", "open <path> now"),
        ("open / now", "open / now"),
        ("took 0x1f, 3.5 and 12%", "took <number>, <number> and <number>"),
        ("commit DEADBEEF12 ok", "commit <id> ok"),
        ("facade decade ok", "facade decade ok"),
        ("id 123e4567-e89b-12d3-a456-426614174000.", "id <id>."),
        ("2024-05-01T10:00:00.123Z up", "<time> up"),
        ("May  1 10:00:00 host up", "<time> host up"),
        ("sshd[4121]: x", "sshd[<number>]: x"),
        ("a \t b", "a b"),
        ("utf8 stays, ipv4 too", "utf8 stays, ipv4 too"),
        ("", ""),
    ],
)
def test_what_varies_is_masked(line, event):
    assert mask(line) == event.replace("X", "<number>")


def test_a_time_of_the_clock_is_no_address():
    assert mask("at 10:15:30 it rained") == "at <time> it rained"
    assert mask("std::vector holds x:y") == "std::vector holds x:y"


PIECES = [
    "1",
    "23",
    ".",
    ":",
    "a",
    "ff",
    "0x",
    "/",
    "-",
    " ",
    "\n",
    "\t",
    "=",
    ">",
    "é",
]


@given(st.text() | st.lists(st.sampled_from(PIECES)).map("".join))
def test_any_text_becomes_an_event_of_one_line(line):
    event = mask(line)
    assert "\n" not in event
    if not re.search(r"[:.>]", line):  # an address may begin where another one ended
        assert mask(event) == event


@pytest.mark.parametrize("piece", ["1.", "a:", "/x", "0", ":", "-1", "Aa_1", "f", "1f"])
def test_a_long_line_is_masked_in_time(piece):
    line = piece * LONGEST_LINE
    begin = time.process_time()
    mask(line)
    assert time.process_time() - begin < 5  # a pattern that backtracks takes hours


def test_own_patterns_and_bad_ones():
    assert Masks({r"\1": "x"})("axb") == r"a\1b"
    users = Masks({"<user>": r"(?<=user )\w+", **MASKS})
    assert users("user bob from 10.0.0.1") == "user <user> from <address>"
    with pytest.raises(ValueError, match="the mask for <x> is no regular expression"):
        Masks({"<x>": "("})


# Reading


def test_files_of_all_kinds_in_turn(tmp_path, monkeypatch):
    plain, zipped = tmp_path / "a.log", tmp_path / "b"
    plain.write_bytes(b"one\r\n\ntw\xff")
    zipped.write_bytes(gzip.compress(b"three\n" + b"x" * 50_000 + b"\nfour\n"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"five\n")))
    lines = list(read_lines(str(plain), str(zipped), "-"))
    assert lines[:4] == ["one", "", "tw\ufffd", "three"]
    assert lines[4] == "x" * LONGEST_LINE
    assert lines[5:] == ["four", "five"]


@pytest.mark.parametrize("length", [LONGEST_LINE * 4 + d for d in (-1, 0, 1)])
def test_a_line_about_as_long_as_the_room_for_it(tmp_path, length):
    path = tmp_path / "long"
    path.write_bytes(b"x" * length + b"\nnext")
    assert [len(line) for line in read_lines(str(path))] == [LONGEST_LINE, 4]


def test_what_cannot_be_read(tmp_path):
    broken = tmp_path / "broken.gz"
    broken.write_bytes(gzip.compress(b"line\n" * 1000)[:-20])
    with pytest.raises(ValueError, match=r"broken\.gz is damaged"):
        list(read_lines(str(broken)))
    with pytest.raises(OSError):
        list(read_lines(str(tmp_path / "absent")))
    assert list(read_lines()) == []


# Sessions


def test_sessions_by_what_a_pattern_finds():
    lines = ["start job=7 x", "nothing", "", "start job=8", "stop job=7"]
    sessions = group_lines(lines, SessionFinder(r"job=(\d+)"))
    assert {s.id: s.line_numbers for s in sessions.values()} == {"7": [1, 5], "8": [4]}
    assert sessions["7"].events == ["start job=<number> x", "stop job=<number>"]


def test_sessions_by_time():
    lines = [
        "no time yet",
        "2024-05-01 10:00:01 a",
        "its second line",
        "2024-05-01 10:00:59 b",
        "2024-05-01 10:01:00 c",
        "2024-05-01T12:01:00+02:00 d",
    ]
    sessions = group_lines(lines, SessionFinder(seconds=60))
    assert {s.id: s.line_numbers for s in sessions.values()} == {
        "2024-05-01T10:00:00": [2, 3, 4],
        "2024-05-01T10:01:00": [5, 6],
    }
    own = SessionFinder(seconds=3600, time_regex=r"at=(\S+)")
    assert own("x at=2024-05-01T10:59:00 y") == "2024-05-01T10:00:00"


def test_a_line_with_a_clock_and_no_date_belongs_to_the_line_before_it():
    finder = SessionFinder(seconds=60)
    assert finder("10:00:00 a") is None
    assert finder("2024-05-01 10:00:01 b") == finder("11:00:00 c")


def test_no_line_with_a_session_is_an_error_that_shows_one():
    with pytest.raises(
        ValueError, match=r"none of 2 lines belongs .* 'job=.*'; .* 'a'"
    ):
        group_lines(["a", "b"], SessionFinder(r"job=\d+"))
    assert group_lines([], SessionFinder(r"job=\d+")) == {}


def test_any_of_several_groups_gives_the_id():
    finder = SessionFinder(r"a(\d+)|b(\d+)|c()")
    assert [finder(x) for x in ("a1", "b2", "c", "d")] == ["1", "2", "c", None]


def test_times_in_words_of_their_own():
    assert seconds_of("1970-01-01 00:01:00") == 60
    assert seconds_of("1970-01-01T01:00:00+01:00") == 0
    assert seconds_of("Nov 25 03:12:01") - seconds_of("Nov 25 03:12:00") == 1
    assert seconds_of("Feb 29 00:00:00") is not None
    assert seconds_of("no time") is None
    assert seconds_of("1700000000.5") == 1700000000.5
    assert seconds_of("01/Jan/1970:01:00:00 +0100") == 0
    assert seconds_of("1970/01/01 00:00:01") == 1
    assert seconds_of("020170 00:00", "%d%m%y %H:%M") == 86_400
    assert seconds_of("Jan 2", "%b %d") == seconds_of("2000-01-02")
    assert seconds_of("Feb 29 10:00", "%b %d %H:%M") == seconds_of("2000-02-29 10:00")
    assert seconds_of("1900-01-02", "%Y-%m-%d") == seconds_of("1900-01-02T00:00:00")
    assert seconds_of("Jan 2", "%Y") is None
    assert seconds_of("9" * 400) is None
    assert seconds_of("1612010912300") == 1612010912.3  # no day in 1612
    assert seconds_of("1612010912300000") == 1612010912.3
    assert from_iso("1612010912300") is None


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="its zone can't be set")
@pytest.mark.parametrize("zone", ["EST5", "IST-5:30"])
def test_times_without_a_zone_are_utc_wherever_the_machine_is(monkeypatch, zone):
    with monkeypatch.context() as patch:
        patch.setenv("TZ", zone)
        time.tzset()
        seconds_of.cache_clear()
        at_two = [
            seconds_of("1970-01-02 02:00:00"),
            seconds_of("Jan  2 02:00:00 1970"),
            seconds_of("02/Jan/1970:02:00:00"),
            seconds_of("1970 Jan 2 02", "%Y %b %d %H"),
        ]
        window = SessionFinder(seconds=3600)("2024-05-01 10:20:00 a")
    time.tzset()
    assert at_two == [26 * 3600] * 4
    assert window == "2024-05-01T10:00:00"


@given(
    st.datetimes(datetime(1970, 1, 2), datetime(2100, 1, 1)),
    st.sampled_from([" ", "T", "TZ", "T+01:00", "T-0530"]),
    st.sampled_from(["minutes", "seconds", "milliseconds", "microseconds"]),
    st.sampled_from(".,"),
)
def test_the_quick_way_to_read_iso_times_says_the_same(moment, kind, to, point):
    text = moment.isoformat(kind[0], to).replace(".", point) + kind[1:]
    assert from_iso(text) is not None
    slow = parser.parse(text, default=datetime(2000, 1, 1))
    slow = slow if slow.tzinfo else slow.replace(tzinfo=UTC)
    assert seconds_of(text) == slow.timestamp()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "either session_regex or seconds"),
        ({"session_regex": "x", "seconds": 1}, "either session_regex or seconds"),
        ({"session_regex": "("}, "is no regular expression"),
        ({"seconds": 0.5}, "seconds is 0.5"),
        ({"seconds": math.inf}, "seconds is inf"),
        ({"seconds": math.nan}, "seconds is nan"),
    ],
)
def test_nonsense_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SessionFinder(**settings)


# Numbers for events

events = st.text(min_size=1).filter(lambda e: "\n" not in e)


@given(st.lists(st.lists(events, min_size=1), min_size=1))
def test_every_session_comes_back(sessions):
    tokenizer = EventTokenizer.from_sessions(sessions)
    for session in sessions:
        ids = tokenizer.encode_session(session).tolist()
        assert [tokenizer.names[i] for i in ids[1:-1]] == session
        assert (ids[0], ids[-1]) == (tokenizer.begin, tokenizer.end)
    plain = json.loads(json.dumps(tokenizer.to_dict()))
    assert tokenizer_from_dict(plain).to_dict() == tokenizer.to_dict()


def test_unknown_events_and_the_text_form():
    tokenizer = EventTokenizer.from_text("open\nclose\n\nopen")
    assert tokenizer.names == ["<unknown>", "<begin>", END, "close", "open"]
    text = f"<begin>\nopen\n<unknown>\n{END}\n"
    assert tokenizer.encode(text).tolist() == [1, 4, 0, 2]
    assert tokenizer.decode([1, 4, 0, 2]) == text
    assert tokenizer.encode("").shape == (0,)
    with pytest.raises(ValueError, match="id 5 is not"):
        tokenizer.decode([5])


@pytest.mark.parametrize("bad", [["a", "a"], ["a\nb"], [""], [3]])
def test_events_that_are_none(bad):
    with pytest.raises(ValueError, match="events must"):
        EventTokenizer(bad)


def test_the_score_of_a_log_as_a_text():
    text = "open\nclose\nopen\nwrite\n\nclose\n"
    tokenizer = EventTokenizer(["close", "open"])
    assert b"".join(tokenizer.pieces(text)) == text.encode()
    model = FastGPT(FastConfig(tokenizer.vocab_size, 8, n_layer=1, n_head=1, n_embd=8))
    score = score_text(model, tokenizer, text)
    assert (score.n_tokens, score.n_unknown) == (4, 1)
    assert score.n_bytes == len(text) - len("open\n")


def test_rare_events_can_stay_unknown():
    sessions = [["a", "b"], ["a"], ["c", "c"]]
    assert EventTokenizer.from_sessions(sessions, at_least=2).events == ["a", "c"]
    with pytest.raises(ValueError, match="at least 3 times"):
        EventTokenizer.from_sessions(sessions, at_least=3)


@pytest.mark.parametrize("data", [{}, {"events": "ab"}, {"events": [1]}])
def test_descriptions_of_no_tokenizer(data):
    with pytest.raises(ValueError, match="events must be"):
        tokenizer_from_dict({"type": "events", **data})


def test_no_sessions_no_vocabulary_and_no_stream():
    for nothing in ([], [[]]):
        with pytest.raises(ValueError, match="no event occurs"):
            EventTokenizer.from_sessions(nothing)
    with pytest.raises((RuntimeError, ValueError), match="non-empty"):  # torch's own
        stream([], EventTokenizer(["a"]))


# Surprise


def small_model(V=6, block_size=8, **more):
    torch.manual_seed(0)
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 8, "position": "rotary", **more}
    return FastGPT(FastConfig(V, block_size, **shape)).eval()


def by_hand(model, ids, block_size):
    """Each token's nats, in a window of its own that is as `surprisals` promises."""
    nats, step = [], block_size // 2
    for t in range(1, len(ids)):
        start = 0
        while t - start > block_size:
            start += step
        logits = model(ids[None, start:t])[0, -1]
        nats.append(-logits.log_softmax(-1)[ids[t]])
    return torch.stack(nats) if nats else torch.zeros(0)


@pytest.mark.parametrize("tokens_at_once", [1, 20, 16_384])
def test_surprisals_are_those_of_each_token_by_itself(tokens_at_once):
    model, generator = small_model(), torch.Generator().manual_seed(1)
    lengths = (2, 9, 1, 10, 3, 30, 8, 17, 13)
    sessions = [torch.randint(6, (n,), generator=generator) for n in lengths]
    with torch.no_grad():
        expected = [by_hand(model, ids, 8) for ids in sessions]
    found = surprisals(model, sessions, tokens_at_once=tokens_at_once)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_no_batch_of_windows_is_larger_than_was_said():
    lengths = (3, 40, 2, 9, 1, 17, 5, 6, 40, 3)
    sessions = [torch.arange(n) for n in lengths]
    counted = []
    for ids, rows in in_windows(sessions, 8, tokens_at_once=20):
        assert ids[:, 1:].numel() <= 20 and len(ids) == len(rows)
        for row, (i, start, first, end) in zip(ids, rows, strict=True):
            assert torch.equal(row[: end + 1], sessions[i][start : start + end + 1])
            counted += [(i, start + t) for t in range(first, end)]
    # Every token but the first of each session counts, once.
    assert sorted(counted) == [
        (i, t) for i, n in enumerate(lengths) for t in range(n - 1)
    ]


def test_surprisals_keep_the_mode_and_check_the_window():
    model = small_model(dropout=0.5)
    sessions = [torch.tensor([1, 2, 3])]
    expected = surprisals(model, sessions)[0]
    found = surprisals(model.train(), sessions)[0]  # and nothing is dropped
    assert torch.equal(found, expected) and len(found) == 2 and model.training
    with pytest.raises(ValueError, match="block_size is 1"):
        surprisals(model, sessions, 1)
    assert surprisals(model, []) == []


class Uniform(nn.Module):
    """Knows nothing: every token is as likely as any other."""

    def forward(self, ids):
        return torch.zeros(*ids.shape, 8)

    def parameters(self, recurse=True):
        return iter([torch.zeros(1)])


def test_bits_of_a_model_that_knows_nothing():
    sessions = [torch.tensor([1, 3, 2]), torch.tensor([1, 3, 4, 5, 2])]
    assert bits_per_event(Uniform(), sessions, 4) == pytest.approx(3)


def test_the_loop_of_the_lesson_learns_what_a_run_learns(monkeypatch):
    monkeypatch.setattr(logs, "LogPlan", partial(logs.LogPlan, steps=30))
    sessions = [["open", *["read"] * (n % 3), "close"] for n in range(60)]
    ids = stream(sessions, EventTokenizer.from_sessions(sessions))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    by_lesson = learn(ids, log_config(6), seed=3)
    assert torch.equal(torch.get_rng_state(), before) and not by_lesson.training
    config, plan = log_preset(6)
    torch.manual_seed(3)
    by_run = FastGPT(config)
    plan = replace(plan, steps=30, seed=3, eval_every=0)
    train(by_run, ids[: -(len(ids) // 10)], ids, plan, progress=False)
    for one, other in zip(by_lesson.parameters(), by_run.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("nats", "steps"),
    [([5.0, 4.0, 3.99], 120), ([1.0, 1.0], 80), ([0.9**n for n in range(99)], 800)],
)
def test_it_stops_once_what_it_does_not_learn_gets_no_better(monkeypatch, nats, steps):
    def step(trainer):
        trainer.history.losses.append(0.0)
        assert 7 not in trainer.train_ids

    told = iter(nats)
    monkeypatch.setattr(logs.Trainer, "take_step", step)
    monkeypatch.setattr(logs, "evaluate", lambda model, ids: next(told))
    rates = []
    monkeypatch.setattr(logs.Muon, "of", lambda model, plan: rates.append(plan))
    ids = torch.ones(90_000, dtype=torch.int64)
    ids[-2048:] = 7
    learn(ids, log_config(8))
    learn(ids, log_config(8), early=False)
    assert [plan.steps for plan in rates] == [steps, 800]


@pytest.mark.parametrize("tokens", [1, 5, 64, 65, 200])
def test_a_short_stream_is_learned_too(monkeypatch, tokens):
    monkeypatch.setattr(logs, "LogPlan", partial(logs.LogPlan, steps=1))
    learn(torch.ones(tokens, dtype=torch.int64), log_config(4))


def test_what_was_learned_is_kept_with_its_masks(tmp_path):
    sessions = [["open", *["read"] * (n % 3), "close"] for n in range(60)]
    tokenizer = EventTokenizer.from_sessions(sessions)
    model = learn(stream(sessions, tokenizer), log_config(tokenizer.vocab_size))
    coded = [tokenizer.encode_session(s) for s in sessions]
    bits = bits_per_event(model, coded)
    assert bits < 1.0  # guessing among five: 2.3
    save_checkpoint(tmp_path / "run", model, tokenizer, {"masks": mask.patterns})
    again, words = load_checkpoint(tmp_path / "run")
    assert words.to_dict() == tokenizer.to_dict()
    assert bits_per_event(again, coded) == pytest.approx(bits)


# Data


def test_synthetic_logs_repeat_and_their_faults_are_where_they_say():
    log = _logdata.synthetic_log(400, share=0.3, seed=1)
    assert log.synthetic and log.lines == _logdata.synthetic_log(400, 0.3, 1).lines
    assert {s for s, bad in log.anomalous.items() if bad} == set(log.faults)
    assert {kind for kind, _ in log.faults.values()} == set(_logdata.FAULTS)
    times = [line.seconds for line in log.lines]
    assert times == sorted(times)
    sessions = group_lines(
        (line.text for line in log.lines), SessionFinder(r"blk_-?\d+")
    )
    assert sessions.keys() == log.anomalous.keys()
    for name, (kind, place) in log.faults.items():
        told = sessions[name].events
        if kind == "truncated":
            assert len(told) == place
        if kind == "exception":
            assert "received exception" in told[place]
        if kind == "repeated":  # what it says to be wrong is not what was due there
            assert told[place] != [*told[place + 1 :], None][0]
        if kind == "reordered":
            assert "Receiv" not in told[place] or "Received" in told[place]


def test_a_healthy_block_has_as_many_of_each_as_machines():
    log = _logdata.synthetic_log(200, share=0.0, seed=2)
    sessions = group_lines(
        (line.text for line in log.lines), SessionFinder(r"blk_-?\d+")
    )
    for session in sessions.values():
        told = "\n".join(session.events)
        copies = told.count("Receiving block")
        assert 2 <= copies <= 4
        assert told.count("addStoredBlock") == told.count("terminating") == copies
        assert told.count("Deleting block") in (0, copies)


def test_without_the_real_log_a_synthetic_one_is_given(monkeypatch):
    def closed(*given):
        raise _logdata.CorpusError("no way")

    monkeypatch.setattr(_logdata, "fetch", closed)
    log = _logdata.load_log()
    assert log.synthetic and log.origin.endswith("(no way)")


def test_the_real_log_where_it_is_there():
    folder = data_folder()
    if not (folder / _logdata.EVENTS).exists():
        pytest.skip("the HDFS lines are not in the cache")
    log = _logdata.load_log()
    assert len(log.lines) == 222_579 and not log.synthetic
    assert len(log.anomalous) == 11_501 and sum(log.anomalous.values()) == 350
    assert len({mask(line.text) for line in log.lines}) == 32
