"""Logs as they are: formats, times, kinds of lines, sessions that nobody described."""

import bz2
import json
import lzma
import re
import time
from collections import Counter
from datetime import UTC, datetime

import logsamples
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygpt_lib.basics.logformats import LogFormat, Reader
from tinygpt_lib.basics.loglines import LONGEST_LINE, in_order, read_lines
from tinygpt_lib.basics.logsessions import find_groupings
from tinygpt_lib.commands import main
from tinygpt_lib.logs import Templates
from tinygpt_lib.runs.reading import LogReading, event_of

# Times

NOW = datetime(2026, 11, 28, tzinfo=UTC)
USUAL = [  # all at 25 November 2026, 15:12:01
    "Nov 25 15:12:01 gate sshd[1]: x",
    "<13>Nov 25 15:12:01 gate x: y",
    "2026-11-25T15:12:01.000000+00:00 gate sshd[1]: x",
    "2026-11-25T16:12:01+01:00 x",
    "2026-11-25T15:12:01Z x",
    "2026-11-25 15:12:01,000 INFO x",
    "2026-11-25 15:12:01 status installed bash:amd64 5.2",
    "2026-11-25 15:12:01.000 UTC [123] LOG:  x",
    "2026.11.25 15:12:01 x",
    "2026-11-25 03:12:01 PM x",
    "[2026-11-25 15:12:01 +0000] [123] [INFO] x",
    "Start-Date: 2026-11-25  15:12:01",
    "2026/11/25 15:12:01 [error] 12#12: x",
    '10.0.0.1 - - [25/Nov/2026:16:12:01 +0100] "GET / HTTP/1.1" 200 1',
    "[Wed Nov 25 15:12:01 2026] usb 1-1: new device",
    "[Wed Nov 25 15:12:01.000000 2026] [core:error] [pid 123] x",
    "Wed Nov 25 15:12:01 UTC 2026 x",
    "Wed, 25 Nov 2026 15:12:01 GMT x",
    "25-Nov-2026 15:12:01.000 INFO [main] org.x.Catalina.start x",
    "1234:M 25 Nov 2026 15:12:01.000 * Ready to accept connections",
    "[1234] 25 Nov 15:12:01.000 * Ready",
    "Nov 25, 2026 3:12:01 PM org.apache.catalina.core x",
    "Nov 25 2026 15:12:01: %ASA-6-302013: x",
    "*Nov 25 15:12:01.000: %LINK-3-UPDOWN: x",
    "I1125 15:12:01.000000    1187 x.go:12] hello",
    "1795619521 x",
    "1795619521.000    456 10.0.0.1 TCP_MISS/200 512 GET http://a/",
    "1795619521000 x",
    "1795619521000000 x",
    "type=SYSCALL msg=audit(1795619521.000:456): arch=c000003e",
    "11/25/2026 3:12:01 PM x",
    "25/11/2026 15:12:01 x",
    "25.11.2026 15:12:01 x",
    "11/25/26 15:12:01 x",
    "26/11/25 15:12:01 INFO x",
    "11-25 15:12:01.000  1702  2395 D WindowManager: x",
    "261125 151201 148 INFO x: y",
    "20261125T151201Z x",
    "20261125-15:12:1:000|Step|123|x",
    '{"time": "2026-11-25T15:12:01Z", "msg": "x"}',
    '{"ts": 1795619521.0, "msg": "x"}',
    '{"timestamp": 1795619521000, "message": "x"}',
    '{"__REALTIME_TIMESTAMP": "1795619521000000", "MESSAGE": "x"}',
    "ts=2026-11-25T15:12:01Z level=info msg=x",
]


@pytest.mark.parametrize("line", USUAL)
def test_usual_times_are_read_without_being_told(line):
    record = Reader(LogFormat.of([line] * 3), NOW)(line)
    moment = datetime.fromtimestamp(record.time, UTC)
    assert moment == datetime(2026, 11, 25, 15, 12, 1, tzinfo=UTC)
    assert not re.search("15|:12|2026|Nov", record.message)  # no part of it is left


def test_the_year_that_syslog_leaves_out():
    lines = [f"{day} 10:00:00 gate x: y" for day in ("Dec 30", "Dec 31", "Jan 1")]
    reader = Reader(LogFormat.of(lines), NOW)
    years = [datetime.fromtimestamp(reader(x).time, UTC).year for x in lines]
    assert years == [2025, 2025, 2026]
    leap = Reader(LogFormat.of(["Feb 29 10:00:00 gate x: y"] * 3), NOW)
    assert leap("Feb 29 10:00:00 gate x: y").time == 1709200800  # 2024
    assert leap("Feb 30 10:00:00 gate x: y").time == 1709200800  # of the one before


# Formats


@pytest.mark.parametrize("name", logsamples.JOBS)
def test_samples_are_taken_apart(name):
    lines = logsamples.sample(name, 60).lines
    reader = Reader(LogFormat.of(lines), NOW)
    records = [reader(line) for line in lines]
    assert reader.counts["not read"] == 0
    times = [record.time for record in records]
    assert times == sorted(times) and times[0] - logsamples.START.timestamp() < 60
    own = [record for record in records if not record.goes_on]
    assert len(own) < len(records) or name not in ("postgresql", "logback")
    assert not any(re.search("2026|03:1|Nov", record.message) for record in own) or (
        name == "haproxy"
    )
    levels = {record.level for record in own}
    if name not in ("nginx", "haproxy", "cloudtrail"):
        assert levels <= {"info", "debug", "warning", "warn", "log", "notice"}
        assert "" not in levels


def test_what_cannot_be_read_is_counted_and_shown():
    lines = ["2026-11-25 03:12:01 a", "  at x(y.java:1)", "", "what is this?"]
    reader = Reader(LogFormat.of(lines[:1] * 50), NOW)
    kinds = [(r.message, r.goes_on, r.time) for r in map(reader, lines)]
    moment = 1795576321.0
    assert kinds[0] == ("a", False, moment) and kinds[1][1] and kinds[2][1]
    assert kinds[3] == ("what is this?", False, moment)  # an event all the same
    assert reader.counts == {"read": 1, "joined": 2, "not read": 1}
    assert reader.unread == ["what is this?"]


def test_a_log_of_two_formats_and_one_with_colours():
    lines = logsamples.sample("nginx", 200).lines
    form = LogFormat.of(lines)
    assert list(form.times) == ["web server", "ISO 8601"]
    assert LogFormat.from_dict(json.loads(json.dumps(form.to_dict()))) == form
    line = "\x1b[32m2026-11-25 03:12:01\x1b[0m INFO all is well"
    assert Reader(LogFormat.of([line] * 3))(line).message == "all is well"


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"kind": "x", "times": {}},
        {"kind": "text", "times": {"x": []}},
        {"kind": "text", "times": {"syslog": [999]}},
    ],
)
def test_descriptions_of_no_format(data):
    with pytest.raises(ValueError, match="format"):
        LogFormat.from_dict(data)


def test_fields_in_another_order_are_the_same_event():
    fields = {"time": "2026-11-25T03:12:01Z", "level": "info", "msg": "done"}
    more = {"status": 200, "id": "a1b2c3d4e5", "took": 12.5}
    lines = [json.dumps(fields | more), json.dumps(more | fields)] * 10
    reading = LogReading.fit(lines, {"lines": 5})
    events = {e for session in reading.sessions(lines) for e in session.events}
    assert events == {"info done id=<*> status=200 took=<*>"}


# Kinds of lines


def test_values_vary_and_words_stay():
    lines = [f"GET /p/{i} {(200, 304)[i % 2]} {i * 7}ms" for i in range(50)]
    lines += [f"link eth{i % 3} is {('up', 'down')[i % 2]}" for i in range(40)]
    kinds = Templates.learn(lines)
    assert kinds("GET /etc/passwd 200 58000ms") == "GET <*> 200 <*>"
    assert kinds("GET /p/1 500 1ms") == "GET <*> <new> <*>"
    assert kinds("link eth7 is up") != kinds("link eth7 is down")
    assert kinds("a line of no kind, number 7") == "a line of no kind, number <*>"
    assert kinds("") == ""


@pytest.mark.parametrize(
    ("seen", "code"),
    [
        ({"200": 90, "304": 9, "500": 1}, True),
        ({"0": 9}, True),
        ({"0": 8}, False),  # too little to be sure
        ({"1": 30, "2": 30, "3": 30}, False),  # numbers that count
        ({"0": 30, "1": 30}, True),  # yes and no
        ({"5432": 90}, False),  # a long number
        (dict.fromkeys("abcdefghi", 20), False),  # too many
        ({"alice": 3, "bob": 1, "carol": 1}, False),
    ],
)
def test_few_values_that_come_again_are_a_code(seen, code):
    assert Templates.is_code(Counter(seen), sum(seen.values())) == code
    assert not Templates.is_code(
        Counter(seen), sum(seen.values()) + 1
    )  # one was not counted


PIECES = st.sampled_from(["a", "b", "1", "22", "=", ":", '"', "(", ")", ".", "/", " "])


@given(st.lists(st.lists(PIECES).map("".join), min_size=1, max_size=20))
def test_any_lines_can_be_learned_and_what_was_learned_is_kept(lines):
    kinds = Templates.learn(lines)
    again = Templates.from_dict(json.loads(json.dumps(kinds.to_dict())))
    others = [*lines, *(line.replace("1", "b") for line in lines)]
    for line in others:
        event = kinds(line)
        assert event == again(line) == kinds(line) and "\n" not in event
        assert bool(event) == bool(line.split())
    assert Templates.learn(lines[::-1]).to_dict()["kinds"] is not None
    assert {kinds(x) for x in lines} == {Templates.learn(lines[::-1])(x) for x in lines}


@pytest.mark.parametrize(
    "piece", ["1.", "a:", "/x", "a", "=", "-", "[", " ", "1f", "<*>", "'"]
)
def test_a_long_line_is_cut_in_time(piece):
    begin = time.process_time()
    line = piece * LONGEST_LINE
    Templates.learn([line])
    Reader(LogFormat.of([line]))(line)
    Reader(LogFormat.of(["2026-11-25 15:12:01 x"]))("2026-11-25 15:12:01" + line)
    find_groupings([line])
    assert time.process_time() - begin < 5  # a pattern that backtracks takes hours


@pytest.mark.parametrize(
    "data",
    [{}, {"kinds": 3, "masks": {}}, {"kinds": [[["a"], [[0, 3, []]]]], "masks": {}}],
)
def test_descriptions_of_no_kinds(data):
    with pytest.raises(ValueError, match="no"):
        Templates.from_dict(data)


@pytest.mark.parametrize("name", logsamples.JOBS)
def test_new_lines_and_new_codes_are_the_only_news(name):
    lines = logsamples.sample(name, 300, 1).lines
    faulty = logsamples.sample(name, 150, 2, logsamples.FAULTS)
    reading = LogReading.fit(lines)
    known = {event for s in reading.sessions(lines) for event in s.events}
    reader = reading.lines()
    events = [reader(line)[1] for line in faulty.lines]
    news = {n for n, event in enumerate(events, 1) if event and event not in known}
    new, *codes = (faulty.planted[fault] for fault in ("new", "status", "exit"))
    assert news == {*new, *codes[0], *codes[1]}


# Sessions


@pytest.mark.parametrize("name", logsamples.JOBS)
def test_sessions_are_found(name):
    lines = logsamples.sample(name, 100).lines
    reading = LogReading.fit(lines)
    sessions = list(reading.sessions(lines))
    if name in logsamples.WITH_SESSIONS:
        assert "session_regex" in reading.rule and len(sessions) == 100
        assert LogReading.from_dict(reading.to_dict()).rule == reading.rule
    else:
        assert reading.rule["seconds"] >= 10
        assert find_groupings(lines) == []


def test_an_id_that_comes_again_much_later_is_another_session():
    days = [f"Nov {d} 10:00:0{s} gate x[77]: {s}" for d in (1, 9) for s in range(3)]
    reading = LogReading.fit(days, {"session_regex": r"\[(\d+)\]", "silence": 3600})
    assert [(s.id, s.line_numbers) for s in reading.sessions(days)] == [
        ("77", [1, 2, 3]),
        ("77 #2", [4, 5, 6]),
    ]


def test_lines_without_an_id_and_another_kind_of_log():
    lines = logsamples.sample("rfc5424", 60).lines
    reading = LogReading.fit(lines)
    odd = "<134>1 2026-11-25T03:12:03.697Z host1 kernel 1 ID47 - out of memory"
    found = reading.sessions([*lines, odd])
    assert [s for s in found][-1].id == "(no session) 2026-11-25T03:12:00"
    assert found.alone == 1 and len(found.times) == len(lines) + 1
    with pytest.raises(ValueError, match="are not lines of text, with times as ISO"):
        list(reading.sessions(["what", "is", "this?"] * 9))


# Files


def test_packed_files_and_rotated_ones_in_their_order(tmp_path):
    for name, pack in (("a.bz2", bz2.compress), ("a.xz", lzma.compress)):
        (tmp_path / name).write_bytes(pack(b"one\ntwo\n"))
        assert list(read_lines(str(tmp_path / name))) == ["one", "two"]
    (tmp_path / "cut.xz").write_bytes(lzma.compress(b"line\n" * 1000)[:-20])
    with pytest.raises(ValueError, match=r"cut\.xz is damaged"):
        list(read_lines(str(tmp_path / "cut.xz")))
    rotated = ["x/log", "x/log.1", "x/log.10.gz", "x/log.2.gz", "b", "a"]
    order = ["x/log.10.gz", "x/log.2.gz", "x/log.1", "x/log", "b", "a"]
    assert in_order(rotated) == in_order(order) == order
    dated = ["m-20261125", "m", "m-20261118.gz"]
    assert in_order(dated) == ["m-20261118.gz", "m-20261125", "m"]


# `detect inspect`


def test_inspect_tells_all_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = [*logsamples.sample("klog", 40).lines, "what is this?"]
    (tmp_path / "log").write_text("\n".join(lines))
    assert main(["detect", "inspect", "log"]) == 0
    out = capsys.readouterr().out
    assert "with times as klog" in out and "an id in 100% of the lines" in out
    assert "level info, source kubelet.go:2410" in out and "Sessions: 41" in out
    assert "1 lines have no id" in out and "not read: 1\n  what is this?" in out
    assert re.search(r" 40  info .*exitCode=0", out) and "take about" in out
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


# Quicker, and the same


@pytest.mark.parametrize("name", [*logsamples.JOBS, "syslog"])
def test_lines_that_differ_in_digits_alone_are_read_as_any_other(name):
    if name == "syslog":  # codes without digits, digits in levels, an unknown time
        lines = [f"Nov 25 03:12:{i:02} gate x[{i}]: took {i} up" for i in range(60)]
        faulty = [f"{x} up" for x in lines] + [f"<13>{x}" for x in lines] + ["", "x"]
        faulty += [x.replace(" took", " debug7 took") for x in lines]
        faulty += [x.replace("Nov 25", "Nov 39") for x in lines]
    else:
        lines = logsamples.sample(name, 100, 1).lines
        faulty = logsamples.sample(name, 60, 2, logsamples.FAULTS).lines
    reading = LogReading.fit(lines)
    quick, reader = reading.lines(), Reader(reading.form)
    for line in [*lines, *faulty, *(re.sub("[1-9]", "4", x) for x in faulty)]:
        record = reader(line)
        event = "" if record.goes_on else event_of(record, reading.kinds)
        assert (quick.event(line), quick.time) == (event, record.time), line
    assert quick.reader.counts == reader.counts
