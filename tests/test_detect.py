"""The command `detect`: what it prints, what it refuses, and files that grow."""

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from random import Random

import pytest

from tinygpt_lib import _detect
from tinygpt_lib.__main__ import main
from tinygpt_lib.anomalies import AnomalyDetector, EventStream
from tinygpt_lib.logs import MASKS, log_preset


def quick(vocab_size):
    """A preset that takes a second."""
    model, training = log_preset(vocab_size)
    model = replace(model, block_size=16, n_layer=1, n_head=2, n_embd=16)
    return model, replace(training, steps=150, batch_size=16)


@pytest.fixture(autouse=True, scope="module")
def fast():
    """Detectors that are small, so that fitting takes a second."""
    settings = AnomalyDetector.fit.__func__.__kwdefaults__
    before = settings["preset"]
    settings["preset"] = quick
    yield
    settings["preset"] = before


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


def fails(cli, *arguments):
    """The one line with which a command fails."""
    code, out, err = cli(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


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
    found = [json.loads(line) for line in out.splitlines()]
    assert [f["id"] for f in found] == [*map(str, range(4000, 4010)), "7000", "7001"]
    assert [f["anomalous"] for f in found] == [False] * 10 + [True] * 2
    fatal, cut = found[-2:]
    assert fatal["worst"]["line"] == 32 and fatal["worst"]["position"] == 1
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
    assert ODD[1] in out and ODD[2] in out
    assert "line 33 is the last one, and an end there is worth" in out
    assert "12 sessions, alarms: 2, of them 1 with unknown events" in out
    _, out, _ = cli("score", gate, log, "--open-ends")
    assert "12 sessions, alarms: 1," in out


def test_sessions_that_a_log_cuts_off_teach_no_end(cli, tmp_path):
    torn = lines_of(7, Random(7))[:2]
    log = write_log(tmp_path / "log", 120, torn)
    fit = ["fit", *SSHD, "--false-alarms", "0.01", "--folds", "2", "--normal"]
    code, out, _ = cli(*fit, log, "--out", tmp_path / "all")
    assert code == 0 and "may go on" not in out
    code, out, _ = cli(*fit, log, "--out", tmp_path / "open", "--open-ends")
    assert code == 0 and "\n1 may go on after the log: it has learnt no end of" in out
    assert AnomalyDetector.load(tmp_path / "open").n_held_out == 120
    assert AnomalyDetector.load(tmp_path / "all").n_held_out == 121
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


def test_of_windows_of_time_the_last_may_go_on(cli, tmp_path):
    times = [f"2026-11-25T{h:02}:{m:02}:07" for h in range(8) for m in range(60)]
    log = tmp_path / "log"
    log.write_text("".join(f"{t} tick\n{t} tock\n" for t in times))
    fit = ["fit", "--normal", log, "--false-alarms", "0.01", "--folds", "2"]
    code, out, _ = cli(*fit, "--out", tmp_path / "run", "--open-ends")
    assert code == 0 and "480 sessions" in out and "\n1 may go on" in out


def test_sessions_that_began_before_are_judged_whole(cli, gate, tmp_path):
    lines = write_log(tmp_path / "all.log", 10).read_text().splitlines()
    old, new = tmp_path / "old.log", tmp_path / "new.log"
    old.write_text("\n".join(lines[:14]) + "\n")  # two in the middle of their lives
    new.write_text("\n".join(lines[14:]) + "\n")
    _, out, _ = cli("score", gate, new, "--json")
    torn = [json.loads(line) for line in out.splitlines()]
    assert [f["id"] for f in torn if f["anomalous"]] == ["4004", "4005"]
    _, out, _ = cli("score", gate, new, "--json", "--before", old)
    whole = [json.loads(line) for line in out.splitlines()]
    assert [f["id"] for f in whole] == [*map(str, range(4004, 4010))]
    assert not any(f["anomalous"] for f in whole)
    assert {f["file"] for f in whole} <= {str(old), str(new)}
    # The line that counts may be in the older file, by its number there.
    odd = lines[12].replace("Connection from", "Bad greeting of")
    old.write_text("\n".join([*lines[:12], odd, lines[13]]) + "\n")
    _, out, _ = cli("score", gate, new, "--before", old)
    assert f"line 13 of {old} was never seen before" in out and odd in out
    assert "6 sessions, alarms: 1," in out
    whole = "--before can't be used with"
    assert f"{whole} --follow" in fails(
        cli, "score", gate, new, "--before", old, "--follow"
    )
    assert f"{whole} --events" in fails(
        cli, "score", gate, new, "--before", old, "--events"
    )
    new.write_text("nothing of any session\n")
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
    (folder / "train").write_text("5 22 5\n5 22 5 5 \n" * 60)
    fit = ["detect", "fit", "--normal", folder / "train", "--out", folder / "run"]
    more = ["--events", "--false-alarms", "0.01", "--folds", "2"]
    assert main([*map(str, fit), *more]) == 0
    return folder / "run"


def test_events_give_a_session_a_line(cli, ids, tmp_path):
    (tmp_path / "test").write_text("5 22 5\n\n22 22\n9\n5 22 5 5")
    code, out, _ = cli("score", ids, tmp_path / "test", "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [(f["id"], f["anomalous"]) for f in found] == [
        ("1", False),
        ("3", True),
        ("4", True),
        ("5", False),
    ]
    assert [f["worst"]["line"] for f in found] == [1, 3, 4, 5]


def test_score_may_group_otherwise(cli, ids, tmp_path):
    (tmp_path / "log").write_text("a 5\nb 5\na 22\nb 22\na 5\nb 22\n")
    regex = ["--session-regex", r"^\w"]
    code, out, _ = cli("score", ids, tmp_path / "log", "--json", *regex)
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [f["id"] for f in found] == ["a", "b"]


def test_masks_of_ones_own_and_windows_of_time(cli, tmp_path):
    lines = [
        f"2026-11-25 03:{m:02}:{s:02} user {name} came"
        for m in range(60)
        for s, name in ((1, f"u{m}x"), (30, f"u{m}y"))
    ]
    (tmp_path / "log").write_text("\n".join(lines))
    fit = ["fit", "--normal", tmp_path / "log", "--out", tmp_path / "run"]
    more = ["--mask", r"<user>=(?<=user )\w+", "--false-alarms", "0.05", "--folds", "2"]
    code, out, err = cli(*fit, *more)
    assert code == 0 and "60 sessions of 2 to 2 events, 1 kinds of events" in out
    assert err.splitlines() == ["model 1 of 2", "model 2 of 2"]
    code, out, _ = cli("score", tmp_path / "run", tmp_path / "log")
    assert code == 0 and "60 sessions, alarms: 0," in out
    assert "exists already" in fails(cli, *fit)


def test_lines_that_are_never_the_same_ask_for_a_mask(cli, tmp_path):
    names = [f"{a}{b}" for a in "abcdefgh" for b in "mnopqrst"]
    lines = [
        f"2026-11-25 03:{i:02}:01 user {name} came" for i, name in enumerate(names)
    ]
    (tmp_path / "log").write_text("\n".join(lines[:60]))
    fit = ["fit", "--normal", tmp_path / "log", "--folds", "2", "--false-alarms", "0.1"]
    _, out, _ = cli(*fit, "--out", tmp_path / "plain")
    assert "about 100.00% of normal sessions" in out and "give a --mask" in out
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
    said = fails(cli, *fit, few, *SSHD)
    assert "needs at least 499 normal sessions, and there are 10" in said
    assert "No such file" in fails(cli, *fit, tmp_path / "none", *SSHD)
    assert "no regular expression" in fails(cli, *fit, few, "--session-regex", "(")
    assert "not of the form" in fails(cli, *fit, few, *SSHD, "--mask", "x")
    assert "false_alarms is 0" in fails(cli, *fit, few, *SSHD, "--false-alarms", "0")
    assert "detector.safetensors" in fails(cli, "score", tmp_path, few)
    assert "needs at least" in fails(cli, "score", gate, few, "--false-alarms", "1e-6")
    assert "one file" in fails(cli, "score", gate, few, few, "--follow")
    assert not new.exists()
    code, out, _ = cli("score", ids, junk, "--json")  # junk is sessions of its own
    assert code == 0 and all(json.loads(x)["anomalous"] for x in out.splitlines())


def test_a_detector_of_a_program_needs_to_be_told_what_a_session_is(cli, ids, tmp_path):
    detector = AnomalyDetector.load(ids)
    detector.about = {}
    detector.save(tmp_path / "own")
    (tmp_path / "log").write_text("5 22 5\n")
    score = ["score", tmp_path / "own", tmp_path / "log"]
    assert "give --session-regex" in fails(cli, *score)
    code, out, _ = cli(*score, "--events")
    assert code == 0 and "1 sessions, alarms: 0," in out


# A file that grows


def test_growing_files_are_read_line_by_line(tmp_path, monkeypatch):
    monkeypatch.setattr(_detect, "POLL", 0.01)
    path = tmp_path / "log"
    path.write_bytes(b"one\ntw")
    lines = _detect.growing(str(path))
    assert next(lines) == (1, "one")
    assert next(lines) == (1, None)  # a line that is not whole yet
    with open(path, "ab") as file:
        file.write(b"o\nthree\n")
    assert next(lines) == (2, "two") and next(lines) == (3, "three")
    path.write_bytes(b"anew\n")  # cut
    assert next(line for line in lines if line[1]) == (4, "anew")
    with open(path, "ab") as file:
        file.write(b"not yet read\nnor this")
    (tmp_path / "other").write_bytes(b"rotated\n")
    os.replace(tmp_path / "other", path)
    told = [next(line for line in lines if line[1]) for _ in range(3)]
    assert told == [(5, "not yet read"), (6, "nor this"), (7, "rotated")]


def test_standard_input_is_waited_for(monkeypatch):
    monkeypatch.setattr(_detect, "POLL", 0.05)
    reading, writing = os.pipe()
    with open(reading) as end:
        monkeypatch.setattr(sys, "stdin", end)
        lines = _detect.growing("-")
        assert next(lines) == (0, None)
        os.write(writing, b"one\ntwo\n")
        told = [next(line for line in lines if line[1]) for _ in range(2)]
        assert told == [(1, "one"), (2, "two")]
        os.close(writing)
        assert all(line is None for _, line in lines)


def test_follow_tells_at_once_and_when_a_session_is_over(cli, gate, monkeypatch):
    lines = enumerate([*lines_of(1, Random(0)), *ODD, *[None] * 3], start=1)
    monkeypatch.setattr(_detect, "growing", lambda path: lines)
    code, out, _ = cli("score", gate, "x", "--follow", "--json")
    told = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [(t["id"], t["anomalous"], t["ended"]) for t in told] == [
        ("7000", True, False),  # at its second line
        ("1", False, True),
        ("7000", True, True),
        ("7001", True, True),
    ]
    assert [t["worst"]["line"] for t in told[:1]] == [5]


def test_follow_in_words_tells_once(cli, gate, monkeypatch):
    lines = enumerate([*lines_of(1, Random(0)), *ODD], start=1)
    monkeypatch.setattr(_detect, "growing", lambda path: lines)
    code, out, _ = cli("score", gate, "x", "--follow")
    assert code == 0 and out.count("7000: p") == out.count("7001: p") == 1
    assert ODD[1] in out and ODD[2] in out and "1: p" not in out.split("7000")[0]


def test_follow_runs_as_a_program_until_it_is_stopped(gate, tmp_path):
    log = write_log(tmp_path / "log", 2, ODD[:2])
    command = [sys.executable, "-m", "tinygpt_lib", "detect", "score", str(gate)]
    run = subprocess.Popen(
        [*command, str(log), "--follow"],
        stdout=subprocess.PIPE,
        text=True,
        # Where the tests run in the background, a process inherits a deaf ear.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    watchdog = threading.Timer(60, run.kill)
    watchdog.start()
    try:
        assert run.stdout.readline().startswith("7000: p ")  # it is there and reads
        with open(log, "a") as file:
            file.write("\n".join(ODD[:2]).replace("7000", "7002") + "\n")
        rest = iter(run.stdout.readline, "")
        assert any(line.startswith("7002: p ") for line in rest)
        run.send_signal(signal.SIGINT)
        assert run.wait() == 130
    finally:
        watchdog.cancel()
        run.kill()
        run.communicate()


def test_ctrl_c_waits_until_an_event_is_read(cli, gate, monkeypatch):
    """In the middle of one, its session would be there and not be known yet."""
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as in the foreground
    push = EventStream.push

    def interrupted(self, name, *rest):
        if name == "7000":
            os.kill(os.getpid(), signal.SIGINT)
        return push(self, name, *rest)

    monkeypatch.setattr(EventStream, "push", interrupted)
    lines = enumerate([*lines_of(1, Random(0))[:2], *ODD], start=1)
    monkeypatch.setattr(_detect, "growing", lambda path: lines)
    try:
        code, out, _ = cli("score", gate, "x", "--follow", "--json")
    finally:
        signal.signal(signal.SIGINT, before)
    told = [json.loads(line) for line in out.splitlines()]
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
    assert told == {"4000", "4001", "7000", "7001"}


def test_it_ends_while_standard_input_stays_open(gate):
    command = [sys.executable, "-m", "tinygpt_lib", "detect", "score", str(gate), "-"]
    run = subprocess.Popen(
        [*command, "--follow"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    watchdog = threading.Timer(60, run.kill)
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


def test_follow_of_events_judges_each_line(cli, ids, monkeypatch):
    lines = [(1, "5 22 5"), (1, None), (2, ""), (3, "9 9")]
    monkeypatch.setattr(_detect, "growing", lambda path: iter(lines))
    code, out, _ = cli("score", ids, "x", "--follow", "--json")
    told = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [(t["id"], t["anomalous"]) for t in told] == [("1", False), ("3", True)]


def test_of_several_files_the_line_is_named_with_its_file(cli, gate, tmp_path):
    one, two = write_log(tmp_path / "one", 4), write_log(tmp_path / "two", 2, ODD)
    _, out, _ = cli("score", gate, one, two)
    assert f"line 8 of {two} was never seen before" in out
    _, out, _ = cli("score", gate, one, two, "--json")
    told = [json.loads(line) for line in out.splitlines()]
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


def test_options_of_time_go_with_the_rule_that_was_kept(cli, tmp_path):
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


def test_masks_of_ones_own_join_the_usual_ones():
    class Options:
        mask = ("<id>=u[0-9]x", "<user>=alice", "<user>=bob")

    masks = _detect.custom_masks(Options)
    assert masks("u1x alice bob blk_-1608999687919862906") == "<id> <user> <user> <id>"
    assert list(masks.patterns)[-6:] == list(MASKS)


def test_nobody_reads_any_more(gate, tmp_path):
    log = write_log(tmp_path / "log", 2000)
    command = f"{sys.executable} -m tinygpt_lib detect score {gate} {log} --json"
    run = subprocess.run(
        f"{command} | head -1", shell=True, capture_output=True, text=True
    )
    assert run.stderr == "" and run.stdout.count("\n") == 1


def test_room_for_few_sessions(cli, gate, monkeypatch):
    lines = enumerate([*lines_of(1, Random(0))[:2], *lines_of(2, Random(0))], start=1)
    monkeypatch.setattr(_detect, "growing", lambda path: lines)
    score = ["score", gate, "x", "--follow", "--json", "--max-sessions", 1]
    told = [json.loads(line) for line in cli(*score)[1].splitlines()]
    assert [(t["id"], t["ended"], t["anomalous"]) for t in told] == [
        ("1", False, False),
        ("2", True, False),
    ]
