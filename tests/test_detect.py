"""The command `detect`: what it prints, what it refuses, and files that grow."""

import gzip
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import torch

from tinygpt_lib.basics import growing as _growing
from tinygpt_lib.basics.files import checksum, read_tensors
from tinygpt_lib.commands import follow as _follow
from tinygpt_lib.commands import main, reading
from tinygpt_lib.logs import learn
from tinygpt_lib.runs.detectors import AnomalyDetector
from tinygpt_lib.runs.streams import EventStream
from tinygpt_lib.speed import FastGPT


def quick(ids, config, seed, learn=learn):
    """Learns in a second."""
    small = {"block_size": 16, "n_layer": 1, "n_head": 2, "n_embd": 16}
    return learn(ids, replace(config, **small), seed)


def blank(ids, config, seed):
    """Learns nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return FastGPT(config).eval()


SETTINGS = AnomalyDetector.fit.__func__.__kwdefaults__


@pytest.fixture(autouse=True, scope="module")
def fast():
    """Detectors that are small, so that fitting takes a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SETTINGS, "learn", quick)
        yield


@pytest.fixture
def untaught(monkeypatch):
    """Detectors that learn next to nothing, where that is not what is asked."""
    monkeypatch.setitem(SETTINGS, "learn", partial(quick, learn=blank))


def lines_of(number, rng, texts=None):
    """Lines of one connection, as an SSH server writes them."""
    host = f"203.0.113.{rng.randrange(1, 255)}"
    texts = texts or [
        f"Connection from {host} port {rng.randrange(1024, 65536)}",
        f"Accepted publickey for deploy from {host} port 51022 ssh2",
        f"Disconnected from user deploy {host}",
    ]
    return [f"Nov 25 03:12:01 gate sshd[{number}]: {text}" for text in texts]


def write_log(path, count, extra=()):
    """A log of `count` connections with two of them mixed at a time, and more lines."""
    rng, lines = Random(0), []
    for number in range(4000, 4000 + count, 2):
        pair = zip(lines_of(number, rng), lines_of(number + 1, rng), strict=True)
        lines += [line for both in pair for line in both]
    path.write_text("\n".join([*lines, *extra]) + "\n")
    return path


SSHD = ["--session-regex", r"sshd\[(\d+)\]"]


@pytest.fixture(scope="module")
def gate(tmp_path_factory):
    """A detector of connections."""
    folder = tmp_path_factory.mktemp("gate")
    log = write_log(folder / "old.log", 200)
    fit = ["detect", "fit", "--normal", log, "--out", folder / "run", *SSHD]
    assert main([*map(str, fit), "--false-alarms", "0.01", "--folds", "2"]) == 0
    return folder / "run"


@pytest.fixture
def cli(capsys):
    """Runs `detect ...`; gives code, standard output, standard error."""

    def run(*arguments):
        capsys.readouterr()
        code = main(["detect", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def sessions_in(out):
    """The sessions among the lines of JSON."""
    records = map(json.loads, out.splitlines())
    return [record for record in records if record["record"] == "session"]


def alarms_in(out):
    """Kind and count of each cause of alarm among the lines of JSON."""
    records = map(json.loads, out.splitlines())
    return [(r["kind"], r["count"]) for r in records if r["record"] == "alarm"]


def fails(cli, *arguments):
    """The one line with which a command fails."""
    code, out, err = cli(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


ALONE = "(no session) 2026-11-25T03:13:00"  # where the last of these belongs
ODD = [
    "Nov 25 03:13:00 gate sshd[7000]: Connection from 203.0.113.9 port 1025",
    "Nov 25 03:13:01 gate sshd[7000]: fatal: no matching cipher",
    "Nov 25 03:13:02 gate sshd[7001]: Connection from 203.0.113.9 port 1026",
    "Nov 25 03:13:03 gate kernel: not of any session",
]


def test_json_has_every_session_in_the_order_of_the_input(cli, gate, tmp_path):
    log = write_log(tmp_path / "new.log", 10, ODD)
    code, out, err = cli("score", gate, log, "--json")
    assert (code, err) == (0, "")
    found = sessions_in(out)
    assert [f["id"] for f in found] == [
        *map(str, range(4000, 4010)),
        "7000",
        "7001",
        ALONE,
    ]
    assert [f["anomalous"] for f in found] == [False] * 10 + [True] * 3
    fatal, cut = found[-3:-1]
    assert fatal["worst"]["line"] == 32
    assert "no matching cipher" in fatal["worst"]["event"] and fatal["unknown"] == 1
    assert cut["worst"]["event"] == "<end>" and cut["worst"]["position"] == 1
    assert cut["worst"]["line"] == 33 and cut["p_value"] <= 0.01
    assert "Accepted publickey" in cut["worst"]["expected"][0][0]
    assert set(fatal["worst"]) == {
        "position",
        "event",
        "line",
        "surprisal",
        "rank",
        "expected",
    }


def test_the_listing_shows_the_line_and_why(cli, gate, tmp_path):
    log = write_log(tmp_path / "new.log", 10, ODD)
    code, out, _ = cli("score", gate, log)
    assert code == 0
    assert "7000: p " in out and "line 32 was never seen before" in out
    assert f"  > {ODD[1]}\n" in out and f"    {ODD[2]}\n" in out  # and what is around
    assert "line 33 is the last one, and an end there is worth" in out
    assert "13 sessions, alarms: 3 of 3 causes (2 new, 1 order)" in out
    _, out, _ = cli("score", gate, log, "--open-ends")
    assert "13 sessions, alarms: 2 of 2 causes (2 new)" in out


def test_sessions_that_a_log_cuts_off_teach_no_end(cli, tmp_path, untaught):
    torn = lines_of(7, Random(7))[:2]
    log = write_log(tmp_path / "log", 120, torn)
    fit = ["fit", *SSHD, "--false-alarms", "0.02", "--folds", "2", "--normal"]
    code, out, _ = cli(*fit, log, "--out", tmp_path / "all")
    assert code == 0 and "may go on" not in out
    code, out, _ = cli(*fit, log, "--out", tmp_path / "open", "--open-ends")
    assert code == 0 and "\n1 may go on after the log: it has learned no end of" in out
    kept = AnomalyDetector.load(tmp_path / "open").held_out[True]
    assert sum(map(len, kept)) == 120
    kept = AnomalyDetector.load(tmp_path / "all").held_out[True]
    assert sum(map(len, kept)) == 121
    # What goes on after 500 lines of silence says that the others may, too.
    first, *rest = lines_of(9999, Random(0))
    heads = [lines_of(n, Random(n))[0] for n in range(500)]
    log = write_log(tmp_path / "heads", 20, [first, *heads, *rest])
    said = fails(cli, *fit, log, "--out", tmp_path / "none", "--open-ends")
    assert "of 521 sessions 500 may go on, and only the others" in said
    assert "needs at least 99 normal sessions, and there are 21" in said
    said = fails(
        cli, "fit", "--events", "--normal", log, "--out", tmp_path / "e", "--open-ends"
    )
    assert "can't be used with --events" in said


def test_of_windows_of_time_the_last_may_go_on(cli, tmp_path, untaught):
    times = [f"2026-11-25T{h:02}:{m:02}:07" for h in range(8) for m in range(60)]
    log = tmp_path / "log"
    log.write_text("".join(f"{t} tick\n{t} tock\n{t} tack\n" for t in times))
    fit = ["fit", "--normal", log, "--false-alarms", "0.01", "--folds", "2"]
    fit += ["--seconds", "60"]
    code, out, _ = cli(*fit, "--out", tmp_path / "run", "--open-ends")
    assert code == 0 and "480 sessions" in out and "\n1 may go on" in out


def test_sessions_that_began_before_are_judged_whole(cli, gate, tmp_path):
    lines = write_log(tmp_path / "all.log", 10).read_text().splitlines()
    old, new = tmp_path / "old.log", tmp_path / "new.log"
    old.write_text("\n".join(lines[:14]) + "\n")  # two in the middle of their lives
    new.write_text("\n".join(lines[14:]) + "\n")
    _, out, _ = cli("score", gate, new, "--json")
    torn = sessions_in(out)
    assert [f["id"] for f in torn if f["anomalous"]] == ["4004", "4005"]
    _, out, _ = cli("score", gate, new, "--json", "--before", old)
    whole = sessions_in(out)
    assert [f["id"] for f in whole] == [*map(str, range(4004, 4010))]
    assert not any(f["anomalous"] for f in whole)
    assert {f["file"] for f in whole} <= {str(old), str(new)}
    # The line that counts may be in the older file, by its number there.
    odd = lines[12].replace("Connection from", "Bad greeting of")
    old.write_text("\n".join([*lines[:12], odd, lines[13]]) + "\n")
    _, out, _ = cli("score", gate, new, "--before", old)
    assert f"line 13 of {old} was never seen before" in out and odd in out
    assert "6 sessions, alarms: 1 of 1 causes (1 new)" in out
    whole = "--before can't be used with"
    assert f"{whole} --follow" in fails(
        cli, "score", gate, new, "--before", old, "--follow"
    )
    new.write_text("")
    assert "are in the files before" in fails(cli, "score", gate, new, "--before", old)
    assert "before itself" in fails(cli, "score", gate, new, "--before", new)


def test_gzipped_files_and_standard_input_say_the_same(
    cli, gate, tmp_path, monkeypatch
):
    log = write_log(tmp_path / "new.log", 10, ODD)
    packed = tmp_path / "new.log.gz"
    packed.write_bytes(gzip.compress(log.read_bytes()))
    for form in ([], ["--json"]):
        plain = cli("score", gate, log, *form)
        assert cli("score", gate, packed, *form) == plain
        stdin = io.TextIOWrapper(io.BytesIO(log.read_bytes()))
        monkeypatch.setattr(sys, "stdin", stdin)
        assert cli("score", gate, "-", *form) == plain


@pytest.fixture(scope="module")
def ids(tmp_path_factory):
    """A detector of sessions that are given as event ids."""
    folder = tmp_path_factory.mktemp("ids")
    (folder / "train").write_text("5 22 5\n5 22 5 5 \n" * 100)
    fit = ["detect", "fit", "--normal", folder / "train", "--out", folder / "run"]
    more = ["--events", "--false-alarms", "0.01", "--folds", "2"]
    assert main([*map(str, fit), *more]) == 0
    return folder / "run"


def test_events_give_a_session_a_line(cli, ids, tmp_path):
    (tmp_path / "test").write_text("5 22 5\n\n22 22\n9\n5 22 5 5")
    code, out, _ = cli("score", ids, tmp_path / "test", "--json")
    found = sessions_in(out)
    assert code == 0
    assert [(f["id"], f["anomalous"]) for f in found] == [
        ("1", False),
        ("3", True),
        ("4", True),
        ("5", False),
    ]
    assert [f["worst"]["line"] for f in found] == [1, 3, 4, 5]


def test_score_may_group_otherwise(cli, gate, ids, tmp_path):
    log = write_log(tmp_path / "log", 20)
    regex = ["--session-regex", r"sshd\[(\d+)\d"]
    code, out, _ = cli("score", gate, log, "--json", *regex)
    found = sessions_in(out)
    assert code == 0 and [f["id"] for f in found] == ["400", "401"]
    # But ids of events are no lines of a log, nor are lines such ids.
    assert "not made by `detect fit` of" in fails(cli, "score", ids, log, *regex)
    assert "are no ids of events" in fails(cli, "score", gate, log, "--events")
    why = "--before can't be used with --events"
    assert why in fails(cli, "score", ids, log, "--before", tmp_path, "--events")


def test_masks_of_ones_own_and_windows_of_time(cli, tmp_path, untaught):
    lines = [
        f"2026-11-25 03:{m:02}:{s:02} user {name} came"
        for m in range(60)
        for s, name in ((1, f"u{m}x"), (30, f"u{m}y"))
    ]
    (tmp_path / "log").write_text("\n".join(lines))
    fit = ["fit", "--normal", tmp_path / "log", "--out", tmp_path / "run"]
    more = ["--mask", r"<user>=(?<=user )\w+", "--false-alarms", "0.05", "--folds", "2"]
    more += ["--seconds", "60"]
    code, out, err = cli(*fit, *more)
    assert code == 0 and "60 sessions of 2 to 2 events, 1 kinds of events" in out
    assert err.splitlines() == ["model 1 of 2", "model 2 of 2"]
    code, out, _ = cli("score", tmp_path / "run", tmp_path / "log")
    assert code == 0 and "60 sessions, alarms: 0 of 0 causes." in out
    assert "exists and is not empty" in fails(cli, *fit)


def test_lines_that_are_never_the_same_ask_for_a_mask(cli, tmp_path, untaught):
    names = [f"{a}{b}" for a in "abcdefgh" for b in "mnopqrst"]
    lines = [
        f"2026-11-25 03:{i:02}:01 user {name} came" for i, name in enumerate(names)
    ]
    (tmp_path / "log").write_text("\n".join(lines[:60]))
    fit = ["fit", "--normal", tmp_path / "log", "--folds", "2", "--false-alarms", "0.1"]
    said = fails(cli, *fit, "--out", tmp_path / "plain")
    assert "60 of 60 lines are of a kind of their own" in said and "--mask" in said
    mask = ["--mask", r"<user>=(?<=user )\w+"]
    _, out, _ = cli(*fit, "--out", tmp_path / "masked", *mask)
    assert "unknown" not in out and "give a --mask" not in out


def test_long_sessions_are_said_to_be_windowed(cli, ids, tmp_path):
    (tmp_path / "long").write_text("5 22 " * 40 + "\n")
    _, out, _ = cli("score", ids, tmp_path / "long")
    assert "1 are longer than the 16 events" in out


# What can't be done


def test_bad_input_is_said_in_a_sentence(cli, gate, ids, tmp_path):
    empty, junk = tmp_path / "empty", tmp_path / "junk"
    empty.write_bytes(b"")
    junk.write_bytes(bytes(range(256)) * 20)
    new = tmp_path / "new"
    fit = ["fit", "--out", new, "--normal"]
    assert "no session was found" in fails(cli, *fit, empty, *SSHD)
    assert "no session was found" in fails(cli, *fit, empty, "--events")
    assert "no session was found" in fails(cli, "score", gate, empty)
    said = fails(cli, *fit, junk, *SSHD)
    assert "lines belongs to a session by" in said and "one of them is" in said
    few = write_log(tmp_path / "few", 10)
    said = fails(cli, *fit, few, *SSHD, "--false-alarms", "0.002")
    assert "needs at least 999 normal sessions, and there are 10" in said
    assert "No such file" in fails(cli, *fit, tmp_path / "none", *SSHD)
    assert "no regular expression" in fails(cli, *fit, few, "--session-regex", "(")
    assert "not of the form" in fails(cli, *fit, few, *SSHD, "--mask", "x")
    assert "false_alarms is 0" in fails(cli, *fit, few, *SSHD, "--false-alarms", "0")
    assert "detector.safetensors" in fails(cli, "score", tmp_path, few)
    assert "needs at least" in fails(cli, "score", gate, few, "--false-alarms", "1e-6")
    assert "one file" in fails(cli, "score", gate, few, few, "--follow")
    assert not new.exists()
    code, out, _ = cli("score", ids, junk, "--json")  # junk is sessions of its own
    assert code == 0 and all(s["anomalous"] for s in sessions_in(out))


def test_a_detector_of_a_program_needs_to_be_told_what_a_session_is(cli, ids, tmp_path):
    detector = AnomalyDetector.load(ids)
    detector.about = {}
    detector.save(tmp_path / "own")
    (tmp_path / "log").write_text("5 22 5\n")
    score = ["score", tmp_path / "own", tmp_path / "log"]
    assert "give --events" in fails(cli, *score)
    code, out, _ = cli(*score, "--events")
    assert code == 0 and "1 sessions, alarms: 0 of 0 causes." in out


# A file that grows


@pytest.fixture
def feed(monkeypatch):
    """Lines that --follow gets, one at a time; None where there is none."""

    def give(numbered):
        batches = ([(n, line)] if line is not None else [] for n, line in numbered)
        monkeypatch.setattr(_follow, "batches_of", lambda *given: (None, batches))

    return give


def test_follow_tells_at_once_and_when_a_session_is_over(cli, gate, feed):
    lines = enumerate([*lines_of(1, Random(0)), *ODD, *[None] * 3], start=1)
    feed(lines)
    code, out, _ = cli("score", gate, "x", "--follow", "--json")
    told = sessions_in(out)
    assert code == 0
    assert [(t["id"], t["anomalous"], t["ended"]) for t in told] == [
        ("1", False, True),
        ("7000", True, True),
        ("7001", True, True),
        (ALONE, True, True),
    ]
    assert alarms_in(out) == [("new", 1), ("new", 1), ("order", 1)]
    first = json.loads(out.splitlines()[0])
    assert (first["kind"], first["line"], first["text"]) == ("new", 5, ODD[1])


class Clock:
    """Lines as they come, each at its own time."""

    def __init__(self, *timed):
        self.timed, self.now = timed, 0.0

    def monotonic(self):
        return self.now

    def lines(self):
        for number, (now, line) in enumerate(self.timed, start=1):
            self.now = now
            yield number, line


def short(record):
    """What is told, in short: of an alarm (kind, id, line), of a session its end."""
    if record["record"] != "session":
        return record["kind"], record["id"], record["line"], record["count"]
    return record["id"], record["anomalous"], record["ended"], record["worst"]["line"]


@pytest.fixture
def followed(cli, feed, monkeypatch):
    """What is told of timed lines: (id, anomalous, ended, line), and the words.

    And when (`times`), the words after the rest.
    """

    def run(folder, timed, *more):
        clock, run.times = Clock(*timed), []
        over = _follow.Follower.over

        def timed_over(self, judged, data):
            run.times.append((clock.now, data["id"]))
            over(self, judged, data)

        monkeypatch.setattr(_follow.Follower, "over", timed_over)
        monkeypatch.setattr(_follow, "time", clock)
        score = ["score", folder, "x", "--follow", *more]
        feed(clock.lines())
        told = [json.loads(line) for line in cli(*score, "--json")[1].splitlines()]
        monkeypatch.setattr(_follow.Follower, "over", over)
        feed(clock.lines())
        return [short(record) for record in told], cli(*score)[1]

    return run


def test_a_session_that_is_silent_is_over_and_its_id_may_come_again(followed, gate):
    first, rest, last = lines_of(1, Random(0))
    timed = [(0, first), (5, rest), (604, None), (606, None)]  # 600 s after the 5th
    timed += [(700, ODD[0]), (701, ODD[1]), (1302, ODD[0]), (1303, ODD[1])]
    timed += [(1304, first), (1305, rest), (1306, last)]
    told, words = followed(gate, timed, "--idle", 600)
    assert told == [
        ("order", "1", 2, 1),  # its end is missed
        ("1", True, True, 2),
        ("new", "7000", 6, 1),
        ("7000", True, True, 6),
        ("7000", True, True, 8),  # of the same id; its causes are told already
        ("1", False, True, 11),
    ]
    assert followed.times[:2] == [(606, "1"), (1302, "7000")]  # 606: with no line
    assert words.count("7000: p") == 1 and words.count("\n1: p") == 0
    assert words.startswith("1: p") and "an end there is worth" in words
    told, words = followed(gate, timed[:4], "--open-ends")
    assert [t[:3] for t in told] == [("1", False, False)] and not words
    told, _ = followed(gate, timed[:4], "--idle", 602)
    assert [t[2] for t in told if t[0] == "1"] == [True]  # when there is no more
    told, _ = followed(gate, timed, "--idle", 1)
    assert [t[0] for t in told if t[2] is True][:3] == ["1", "1", "7000"]


def test_an_alarm_is_early_only_where_it_stays_one(followed, gate, tmp_path):
    """The largest surprisal only grows; a mean may fall again."""
    first, second, third = lines_of(1, Random(0))
    timed = [(0, third), (1, first), (2, second), (3, third)]
    told, _ = followed(gate, timed)
    assert told == [("order", "1", 1, 1), ("1", True, True, 1)]
    detector = AnomalyDetector.load(gate)
    detector.score_name = "mean"
    detector.save(tmp_path / "mean")
    told, _ = followed(tmp_path / "mean", timed)
    assert [t[2] for t in told if t[0] == "1"] == [True]
    # By what ends are judged by, unless no end will be.
    detector.score_name = "max"
    detector.held_out = {
        ended: [s + 99 * ended for s in scores]
        for ended, scores in detector.held_out.items()
    }
    detector.far = {ended: far + 99 * ended for ended, far in detector.far.items()}
    detector.save(tmp_path / "ends")
    told, _ = followed(tmp_path / "ends", timed)
    assert told[0] == ("1", False, True, told[0][-1]) and len(told) == 1
    told, _ = followed(tmp_path / "ends", timed, "--open-ends")
    assert told == [("order", "1", 1, 1), ("1", True, False, 1)]


def test_follow_in_words_tells_once(cli, gate, feed):
    lines = enumerate([*lines_of(1, Random(0)), *ODD], start=1)
    feed(lines)
    code, out, _ = cli("score", gate, "x", "--follow")
    assert code == 0 and out.count("7000: p") == out.count("7001: p") == 1
    assert ODD[1] in out and ODD[2] in out and "1: p" not in out.split("7000")[0]


@pytest.fixture
def foreground():
    """Ctrl-C as in the foreground, wherever the tests run."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_file_is_followed_until_it_is_stopped(
    cli, gate, tmp_path, monkeypatch, foreground
):
    log, naps = write_log(tmp_path / "log", 2, ODD[:2]), []

    def nap(seconds):
        """Before it looks again the log grows, and the second time Ctrl-C comes."""
        naps.append(seconds)
        if len(naps) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        with open(log, "a") as file:
            more = "\n".join(ODD[:2]).replace("7000", "7002")
            file.write(more.replace("no matching", "bad") + "\n")

    monkeypatch.setattr(_growing.time, "sleep", nap)
    code, out, err = cli("score", gate, log, "--follow")
    assert (code, err, naps) == (130, "\ninterrupted\n", [_growing.POLL] * 2)
    told = [line.split(";")[0].split(": p")[0] for line in out.splitlines()]
    assert [name for name in told if name.isdecimal()] == ["7000", "7002"]


def test_ctrl_c_waits_until_an_event_is_read(cli, gate, feed, monkeypatch, foreground):
    """In the middle of one, its session would be there and not be known yet."""
    push = EventStream.push

    def interrupted(self, name, *rest):
        if name == "7000":
            os.kill(os.getpid(), signal.SIGINT)
        return push(self, name, *rest)

    monkeypatch.setattr(EventStream, "push", interrupted)
    lines = enumerate([*lines_of(1, Random(0))[:2], *ODD], start=1)
    feed(lines)
    code, out, _ = cli("score", gate, "x", "--follow", "--json")
    told = sessions_in(out)
    assert code == 130
    assert [(t["id"], t["ended"]) for t in told] == [("1", False), ("7000", False)]


def test_a_pipe_can_be_followed(cli, gate, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    log = write_log(tmp_path / "log", 2, ODD)
    writer = threading.Thread(target=lambda: pipe.write_bytes(log.read_bytes()))
    writer.start()
    code, out, _ = cli("score", gate, pipe, "--follow", "--json")
    writer.join()
    assert code == 0
    told = {json.loads(line)["id"] for line in out.splitlines()}
    assert told == {"4000", "4001", "7000", "7001", ALONE}


def test_it_ends_while_standard_input_stays_open(gate):
    command = [sys.executable, "-m", "tinygpt_lib", "detect", "score", str(gate), "-"]
    run = subprocess.Popen(
        [*command, "--follow"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    watchdog = threading.Timer(300, run.kill)
    watchdog.start()
    try:
        run.stdin.write("".join(f"{line}\n" for line in ODD[:2]).encode())
        run.stdin.flush()
        assert run.stdout.readline().startswith(b"7000: p ")
        run.send_signal(signal.SIGINT)
        assert run.wait() == 130  # not killed by its own exit
    finally:
        watchdog.cancel()
        run.kill()
        _, errors = run.communicate()
    assert b"Fatal" not in errors


@pytest.mark.parametrize(
    "setting, why",
    [
        ("--false-alarms 0", "false_alarms is 0"),
        ("--folds 1", "folds is 1"),
        ("--seed -1", "seed is -1"),
        ("--device nonsense", "device is 'nonsense'"),
    ],
)
def test_settings_are_refused_before_anything_is_read(cli, tmp_path, setting, why):
    given = ["--normal", tmp_path / "none", "--out", tmp_path / "run"]
    assert why in fails(cli, "fit", *given, *setting.split())


def test_follow_of_events_judges_each_line(cli, ids, feed):
    lines = [(1, "5 22 5"), (1, None), (2, ""), (3, "9 9")]
    feed(lines)
    code, out, _ = cli("score", ids, "x", "--follow", "--json")
    told = sessions_in(out)
    assert code == 0
    assert [(t["id"], t["anomalous"]) for t in told] == [("1", False), ("3", True)]


def test_of_several_files_the_line_is_named_with_its_file(cli, gate, tmp_path):
    one, two = write_log(tmp_path / "one", 4), write_log(tmp_path / "two", 2, ODD)
    _, out, _ = cli("score", gate, one, two)
    assert f"line 8 of {two} was never seen before" in out
    _, out, _ = cli("score", gate, one, two, "--json")
    told = sessions_in(out)
    fatal = next(t for t in told if t["id"] == "7000")
    assert (fatal["file"], fatal["worst"]["line"]) == (str(two), 8)


def test_a_pipe_is_read_once(cli, gate, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    log = write_log(tmp_path / "log", 4, ODD)
    writer = threading.Thread(target=lambda: pipe.write_bytes(log.read_bytes()))
    writer.start()
    assert cli("score", gate, pipe)[1] == cli("score", gate, log)[1]
    writer.join()


def test_what_could_act_on_a_terminal_is_escaped(cli, gate, tmp_path):
    evil = ODD[0].replace("Connection", "\x1b[2Jowned\x07")
    log = write_log(tmp_path / "log", 2, [evil])
    _, out, _ = cli("score", gate, log)
    assert "\x1b" not in out and r"\x1b[2Jowned\x07" in out


def test_options_of_time_go_with_the_rule_that_was_kept(cli, tmp_path, untaught):
    lines = [f"2026-11-25 03:{m:02}:01 up" for m in range(60)]
    (tmp_path / "log").write_text("\n".join(lines))
    fit = ["fit", "--normal", tmp_path / "log", "--out", tmp_path / "run"]
    more = ["--seconds", "120", "--false-alarms", "0.1", "--folds", "2"]
    assert cli(*fit, *more)[0] == 0
    score = ["score", tmp_path / "run", tmp_path / "log"]
    time_regex = ["--time-regex", r"^.{19}"]
    assert "30 sessions" in cli(*score)[1]
    assert "30 sessions" in cli(*score, *time_regex)[1]
    assert "60 sessions" in cli(*score, "--seconds", "60")[1]
    regex = ["--session-regex", "up"]
    assert "these are not" in fails(cli, *score, *regex, *time_regex)


TIMED, NAMED, WHOLE = {"seconds": 60.0}, {"session_regex": "x"}, {"events": True}


@pytest.mark.parametrize(
    ("kept", "given", "rule"),
    [
        (TIMED, {}, TIMED),
        (NAMED, {}, NAMED),
        (WHOLE, {}, WHOLE),
        (TIMED, {"seconds": 5.0}, {"seconds": 5.0}),
        (NAMED, {"seconds": 5.0}, {"seconds": 5.0}),
        (WHOLE, {"seconds": 5.0}, {"seconds": 5.0}),
        (
            {**TIMED, "time_regex": "t"},
            {"seconds": 5.0},
            {"seconds": 5.0, "time_regex": "t"},
        ),
        (TIMED, {"time_format": "f"}, {**TIMED, "time_format": "f"}),
        (TIMED, {"events": True}, WHOLE),
        (NAMED, {"events": True}, WHOLE),
        (TIMED, {"session_regex": "y"}, {"session_regex": "y"}),
        (WHOLE, {"session_regex": "y"}, {"session_regex": "y"}),
        (NAMED, {"time_regex": "t"}, "--time-regex is for lines that are grouped by"),
        (WHOLE, {"time_format": "f"}, "--time-format is for lines that are grouped"),
        ({}, {}, {}),
    ],
)
def test_a_rule_that_is_given_goes_before_the_one_that_was_kept(kept, given, rule):
    names = ("session_regex", "seconds", "time_regex", "time_format")
    options = SimpleNamespace(**{**dict.fromkeys(names), "events": False, **given})
    before = dict(kept)
    if isinstance(rule, str):
        with pytest.raises(ValueError, match=rule):
            reading.grouping(options, kept)
    else:
        assert reading.grouping(options, kept) == rule
    assert kept == before


def test_masks_of_ones_own_with_the_same_word_are_one():
    options = SimpleNamespace(mask=("<id>=u[0-9]x", "<user>=alice", "<user>=bob"))
    masks = reading.own_masks(options)
    assert masks == {"<id>": "u[0-9]x", "<user>": "(?:alice)|(?:bob)"}


def test_nobody_reads_any_more(cli, gate, tmp_path, monkeypatch):
    """As of `| head -1`: no message, not even when Python closes the output."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        arguments = [str(gate), str(write_log(tmp_path / "log", 2000)), "--json"]
        assert main(["detect", "score", *arguments]) == 1
        monkeypatch.undo()  # what is still to be written goes nowhere


def test_room_for_few_sessions(cli, gate, feed):
    lines = enumerate([*lines_of(1, Random(0))[:2], *lines_of(2, Random(0))], start=1)
    feed(lines)
    score = ["score", gate, "x", "--follow", "--json", "--max-sessions", 1]
    told = [json.loads(line) for line in cli(*score)[1].splitlines()]
    assert [(t["id"], t["ended"], t["anomalous"]) for t in told] == [
        ("1", False, False),
        ("2", True, False),
    ]


# Every option has an effect

DAY = r"--time-regex=day (\S+)", "--time-format=%d.%m.%Y"
FIT = {  # what is given besides, and then the option
    "--device": ((), ["nonsense"]),
    "--normal": ((), ["old", "more"]),
    "--out": ((), ["elsewhere"]),
    "--session-regex": ((), [r"s(\d)\d*"]),
    "--seconds": ((), [120]),
    "--events": ((), []),
    "--time-regex": (("--seconds=60",), [r"at (\S+)"]),
    "--time-format": ((*DAY[:1], "--seconds=60"), ["%d.%m.%Y"]),
    "--field": ((), ["text"]),
    "--mask": ((), ["<day>=day .*"]),
    "--open-ends": ((), []),
    "--false-alarms": ((), [0.3]),
    "--score": ((), ["mean"]),
    "--folds": ((), [4]),
    "--seed": ((), [1]),
}
SCORE = {
    "--device": ((), ["nonsense"]),
    "--before": ((), ["old"]),
    "--session-regex": ((), [r"s(\d)\d*"]),
    "--seconds": ((), [120]),
    "--time-regex": (("--seconds=60", "--json"), [r"at (\S+)"]),
    "--time-format": ((*DAY[:1], "--seconds=60", "--json"), ["%d.%m.%Y"]),
    "--false-alarms": ((), [0.9]),
    "--open-ends": (("--json",), []),
    "--json": ((), []),
    "--all": ((), []),
    "--fail-on-alarm": ((), []),
    "--state": (("--follow",), ["state"]),
    "--follow": ((), []),
    "--idle": (("--follow", "--json"), [10_000]),
    "--max-sessions": (("--follow", "--json", "--idle=10000"), [1]),
}


def options_of(capsys, command):
    """The options in the help of a command."""
    with pytest.raises(SystemExit):
        main(["detect", command, "--help"])
    return set(re.findall(r"^  (--[a-z-]+)", capsys.readouterr().out, re.M))


def write_days(path, names):
    """Two lines for each session, with times of three kinds."""
    lines = (
        f"2026-11-25 03:{i % 60:02}:07 at 2026-11-2{i % 4}T03:{i % 7:02} s{name} "
        f"{what} day {1 + i % 9}.11.2026"
        for i, name in enumerate(names)
        for what in ("up", "down")
    )
    path.write_text("\n".join(lines) + "\n")


def test_every_option_of_fit_has_an_effect(
    cli, capsys, tmp_path, monkeypatch, untaught
):
    assert set(FIT) == options_of(capsys, "fit")

    def outcome(place, *given):
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        write_days(Path("old"), [f"{i}0" for i in range(30)])
        write_days(Path("more"), ["x"] * 9)
        required = ["--normal", "old", "--out", "run", "--false-alarms", 0.2]
        told = cli("fit", *required, "--folds", 2, *given)
        files = {path: read_tensors(path) for path in Path().rglob("*.safetensors")}
        return told, {
            path: checksum(tensors, json.dumps(about))
            for path, (tensors, about) in files.items()
        }

    kept = {(): outcome("first")}
    assert kept[()] == outcome("again") and kept[()][0][0] == 0
    for i, (option, (base, value)) in enumerate(FIT.items()):
        if base not in kept:
            kept[base] = outcome(f"{i} base", *base)
        found = outcome(f"{i}", *base, option, *value)
        assert found != kept[base] and found[0][0] == (option == "--device"), option


def test_every_option_of_score_has_an_effect(
    cli, capsys, tmp_path, feed, monkeypatch, untaught
):
    # `--events` is for another kind of detector.
    assert {*SCORE, "--events"} == options_of(capsys, "score")
    monkeypatch.chdir(tmp_path)
    write_days(Path("old"), [f"{i}0" for i in range(30)])
    write_days(Path("new"), ["7", "290", "8", "7", "8", "270"])
    with open("new", "a") as file:
        for word in "abcdefghijklmnop":  # more causes than a screen holds
            file.write(f"2026-11-25 03:09:07 {word * 9} s290 {word * 3}\n")
    fit = ["--normal", "old", "--out", "run", "--session-regex", r"s(\d+)"]
    assert cli("fit", *fit, "--false-alarms", 0.1, "--folds", 2)[0] == 0

    def outcome(*given):
        hours = enumerate(Path("new").read_text().splitlines())
        clock = Clock(*((3600.0 * hour / 9, line) for hour, line in hours))
        monkeypatch.setattr(_follow, "time", clock)
        feed(clock.lines())
        return *cli("score", "run", "new", *given), Path("state").exists()

    for option, (base, value) in SCORE.items():
        plain = outcome(*base)
        assert plain[0] == 0 and plain == outcome(*base)
        found = outcome(*base, option, *value)
        codes = {"--device": 1, "--events": 1, "--fail-on-alarm": 3}
        assert found != plain and found[0] == codes.get(option, 0), option
