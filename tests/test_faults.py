"""Killed at any moment: the last checkpoint loads, and the run goes on bit for bit.

KILLS=25 python -m pytest tests/test_faults.py  kills more often than `make test` does,
SEED=1 at other moments.
"""

import fcntl
import itertools
import multiprocessing
import os
import pty
import random
import shutil
import signal
import sys
import termios
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from tinygpt_lib.basics.interrupts import Ended, held_interrupt, raising_ends
from tinygpt_lib.commands import main
from tinygpt_lib.runs.checkpoints import load_checkpoint, read_run

KILLS = int(os.environ.get("KILLS", "4"))
SEED = int(os.environ.get("SEED", "0"))
# Shapes of rotary positions would take torch a second of imports in each process.
TINY = "--n-layer 1 --n-embd 16 --block-size 16 --batch-size 4 --dropout 0.1 "
TINY = (TINY + "--position learned").split()

CLOSED = "the terminal is closed"

# Processes are forked from one that has imported everything and computed nothing: they
# start in a few milliseconds, and no thread of this process is missing in them.
forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(["tinygpt_lib.commands", "pytest"])


@pytest.fixture(autouse=True)
def same_arithmetic(one_thread):
    """As in the processes that are killed."""


def in_background(arguments, log, moment=None, folder=None, what=signal.SIGKILL):
    """A process that runs a command; see `act_at` for the moment."""
    given = ([str(a) for a in arguments], log, moment, folder, what)
    process = forks.Process(target=work, args=given)
    process.start()
    return process


def work(arguments, log, moment, folder, what):
    torch.set_num_threads(1)
    # As in the foreground, wherever the tests run: under nohup, say.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    if what == CLOSED:
        act = partial(os.close, own_terminal())
    else:
        sys.stdout = sys.stderr = open(log, "w")
        act = partial(os.kill, os.getpid(), what)
    if moment is not None:
        act_at(moment, folder, act)
    sys.exit(main(arguments))


def own_terminal():
    """Gives this process a terminal of its own; what to close for that to be closed."""
    os.setsid()
    host, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    sys.stdout = sys.stderr = open(terminal, "w")
    return host


def act_at(moment, folder, act):
    """Signals this process, say, at its moment-th dealing with files in the folder.

    That is before each file is opened, made durable (half of it is lost then), renamed
    or removed, before each folder is made or removed, and before the lock is taken.
    """
    passed = itertools.count()
    sync = os.fsync

    def pass_moment(lose=lambda: None):
        if next(passed) == moment:
            lose()
            print("at its moment", flush=True)
            act()

    def hook(event, args):
        events = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")
        if event in events and isinstance(args[0], str | bytes | Path):
            if os.fsdecode(args[0]).startswith(str(folder)):
                pass_moment()
        if event in ("fcntl.flock", "shutil.rmtree"):
            pass_moment()

    def fsync(fd):
        pass_moment(lambda: os.ftruncate(fd, os.fstat(fd).st_size // 2))
        sync(fd)

    sys.addaudithook(hook)
    os.fsync = fsync


def command(text, out, steps, save_every=1):
    """A run, or going on with one."""
    if out.exists():
        return ["train", "--out", out, "--resume"]
    given = [*TINY, "--steps", steps, "--save-every", save_every, "--eval-every", 5]
    return ["train", "--out", out, "--text", text, *given]


def run(arguments):
    assert main([str(a) for a in arguments]) == 0


def assert_sound(out):
    """Either there is no run yet, or all of it is there."""
    if out.exists():
        load_checkpoint(out)
        read_run(out)


def assert_same(out, reference):
    """The history of the run that was never stopped, and its model."""
    history, expected = read_run(out).history, read_run(reference).history
    assert history.losses == expected.losses
    assert history.evaluations == expected.evaluations
    weights = load_checkpoint(reference)[0].state_dict()
    for name, value in load_checkpoint(out)[0].state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert not list(out.glob(".*.partial"))


@pytest.fixture(scope="module")
def text(song, tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "song.txt"
    file.write_text(song.text)
    return file


def test_killed_at_random_moments(text, tmp_path):
    """Again and again, going on in between; nearly all of the time it is saving."""
    steps = 400 if KILLS > 10 else 50
    out, log, reference = tmp_path / "run", tmp_path / "log", tmp_path / "never killed"
    began = time.monotonic()
    process = in_background(command(text, reference, steps), log)
    process.join()
    whole = time.monotonic() - began  # on this machine, as busy as it is
    chance = random.Random(SEED)
    kills = 0
    while kills < KILLS:
        process = in_background(command(text, out, steps), log)
        # Before the process has read its arguments, in its first save, or later.
        process.join(chance.uniform(0.02, 0.9) * whole)
        process.kill()
        process.join()
        assert_sound(out)
        if process.exitcode == 0:  # it was faster; once more from the beginning
            assert_same(out, reference)
            shutil.rmtree(out)
            continue
        assert process.exitcode == -signal.SIGKILL, log.read_text()
        kills += 1
    run(command(text, out, steps))
    assert_same(out, reference)


def test_two_at_once(text, tmp_path, capsys):
    """The second is refused in one sentence, and the first does not notice.

    The first waits in the middle of its second save until the second has been refused.
    """
    reference, out, log = (tmp_path / name for name in ("undisturbed", "run", "log"))
    run(command(text, reference, steps=2))
    arguments = command(text, out, steps=2)
    first = in_background(arguments, log, 27, tmp_path, signal.SIGSTOP)
    while not log.exists() or "at its moment" not in log.read_text():
        assert first.is_alive()
        time.sleep(0.01)
    capsys.readouterr()
    for resume in ([], ["--resume"]):
        second = ["train", "--out", str(out), "--text", str(text), *resume]
        assert main(second) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        reason = "another process is training in" if resume else "is not empty"
        assert reason in error
        assert str(out) in error
    os.kill(first.pid, signal.SIGCONT)
    first.join()
    assert first.exitcode == 0
    assert_same(out, reference)
    # And when it has ended, the lock is open again.
    run(["train", "--out", out, "--resume"])


def test_two_begin_at_once(text, tmp_path):
    """One of them gets the folder; the other is refused, or goes on with nothing."""
    reference, out = tmp_path / "alone", tmp_path / "run"
    run(command(text, reference, steps=3))
    arguments = command(text, out, steps=3)
    logs = [tmp_path / f"log{i}" for i in range(3)]
    processes = [in_background(arguments, log) for log in logs]
    for process in processes:
        process.join()
    assert sorted(process.exitcode for process in processes) == [0, 1, 1]
    for process, log in zip(processes, logs, strict=True):
        last = log.read_text().splitlines()[-1]
        assert process.exitcode == 0 or last.startswith(f"error: {out} ")
    assert_same(out, reference)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["alone", "run", *(log.name for log in logs)]
    )


# --- Told to end ---


@pytest.mark.parametrize(
    ("what", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (CLOSED, 129)],
    ids=str,
)
def test_told_to_end_a_run_saves_and_says_how_to_go_on(text, tmp_path, what, code):
    """In the middle of a save, which is finished, as is the step after it."""
    out, log = tmp_path / "run", tmp_path / "log"
    process = in_background(command(text, out, 10**6), log, 27, tmp_path, what)
    process.join()
    assert process.exitcode == code
    assert_sound(out)
    assert len(read_run(out).history.losses) == 2
    if what != CLOSED:
        said = "stopped after step 2" if what == signal.SIGINT else f"by {what.name}"
        assert f"{said}; {out} holds the last checkpoint, go on" in log.read_text()


@pytest.mark.parametrize("what", [signal.SIGTERM, CLOSED], ids=str)
def test_told_to_end_before_there_is_a_run(text, tmp_path, what):
    """In the middle of the first save: nothing stays."""
    folder, log = tmp_path / "runs", tmp_path / "log"
    arguments = command(text, folder / "run", steps=2)
    process = in_background(arguments, log, 9, folder, what)
    process.join()
    assert process.exitcode == (129 if what == CLOSED else 143)
    assert list(folder.iterdir()) == []
    if what != CLOSED:
        assert log.read_text().endswith("\nended by SIGTERM\n")


def test_sigterm_is_heard_where_ctrl_c_is_ignored_and_handlers_come_back():
    """As in the background of a script; what is ignored stays so."""
    stops = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    before = [signal.getsignal(number) for number in stops]
    try:
        ours = [signal.SIG_IGN, signal.SIG_DFL, signal.SIG_IGN]
        for number, handler in zip(stops, ours, strict=True):
            signal.signal(number, handler)
        with pytest.raises(Ended) as stop, raising_ends():
            with held_interrupt() as told:
                signal.raise_signal(signal.SIGHUP)
                assert not told()
                signal.raise_signal(signal.SIGTERM)
                assert told()
        assert stop.value.number == signal.SIGTERM
        assert [signal.getsignal(number) for number in stops] == ours
    finally:
        for number, handler in zip(stops, before, strict=True):
            signal.signal(number, handler)
