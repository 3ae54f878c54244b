"""What every command writes: whole or not at all, whatever happens; nothing is lost.

One table for all commands and all their ways of writing. A command without a row fails
`test_every_command_has_a_row`; with one it is in all that follows.
"""

import argparse
import errno
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from test_detect import SETTINGS, blank, quick

from tinygpt_lib import commands
from tinygpt_lib.basics.files import CheckpointError
from tinygpt_lib.commands import main, parser
from tinygpt_lib.runs.checkpoints import load_checkpoint, read_run
from tinygpt_lib.runs.detectors import AnomalyDetector
from tinygpt_lib.runs.huggingface import load_hf
from tinygpt_lib.runs.upkeep import Normal, versions

# Shapes of rotary positions would take torch a second of imports.
TINY = "--n-layer 1 --n-embd 16 --block-size 16 --batch-size 4 --dropout 0.1 "
TINY += "--position learned --norm layer --feed-forward gelu --qk-norm none "
TINY = (TINY + "--embedding token --steps 1 --save-every 1").split()
STOPS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@dataclass
class Row:
    """One way in which a command writes."""

    arguments: Callable  # (what there is to work on, the target) -> after `tinygpt`
    whole: Callable | None = None  # loads the target, or raises; None: it only prints
    again: Callable | None = None  # as `arguments`, for a target that is whole already
    begun: str | None = None  # what the target is a copy of, where it has to be there
    least: int = 6  # dealings with files


def run_is_whole(out):
    load_checkpoint(out)
    read_run(out)


def page_is_whole(out):
    if not out.is_file() or not out.read_bytes().rstrip().endswith(b"</html>"):
        raise CheckpointError(f"{out} is no whole page")


def detector_is_whole(out):
    for folder in (out, *versions(out)):
        AnomalyDetector.load(folder)
        Normal.load(folder)


def play(things, out):
    return ["play", things.run, "--out", out, "--no-open"]


def accept(things, out):
    return ["detect", "accept", out, "--event", "something \u2603 new"]


def settle(out):
    """Accepts what is known: nothing to do but what one that was killed has left."""
    known = AnomalyDetector.load(out).tokenizer.events[0]
    return ["detect", "accept", out, "--event", known]


def update(things, out):
    if any("something" in event for event in Normal.load(out).events()):
        return settle(out)
    return ["detect", "update", out, things.news]


def undo(things, out):
    if not AnomalyDetector.load(out).about.get("accepted"):
        return settle(out)
    return ["detect", "undo", out]


def go_on(things, out):
    return ["train", "--out", out, "--resume"]


def fit(things, out):
    given = "--session-regex \\w+ --false-alarms 0.2 --folds 2".split()
    return ["detect", "fit", "--normal", things.log, "--out", out, *given]


ROWS = {
    "train": [
        Row(
            lambda things, out: ["train", "--out", out, "--text", things.text, *TINY],
            run_is_whole,
            again=go_on,
        ),
        Row(go_on, run_is_whole, again=go_on, begun="half"),
    ],
    "sample": [
        Row(lambda t, out: ["sample", t.run, "--prompt", "9 \u2603", "--tokens", 3])
    ],
    "evaluate": [Row(lambda things, out: ["evaluate", things.run])],
    "play": [
        Row(play, page_is_whole, again=play, begun="page", least=3),
        Row(play, page_is_whole, again=play, begun="nothing", least=3),
    ],
    "convert": [
        Row(lambda things, out: ["convert", things.run, "--to", "hf", out], load_hf),
        Row(
            lambda t, out: ["convert", "--from", "hf", t.exported, "--out", out],
            load_checkpoint,
        ),
    ],
    "detect fit": [Row(fit, AnomalyDetector.load)],
    "detect inspect": [Row(lambda things, out: ["detect", "inspect", things.log])],
    "detect accept": [Row(accept, detector_is_whole, again=accept, begun="detector")],
    "detect update": [Row(update, detector_is_whole, again=update, begun="detector")],
    "detect undo": [Row(undo, detector_is_whole, again=undo, begun="accepted")],
    "detect status": [Row(lambda things, out: ["detect", "status", things.detector])],
    "detect score": [
        Row(lambda things, out: ["detect", "score", things.detector, things.news]),
        Row(lambda t, out: ["detect", "score", t.detector, t.news, "--json"]),
    ],
}
ALL = [
    pytest.param(row, id=f"{name}-{i}")
    for name, rows in ROWS.items()
    for i, row in enumerate(rows)
]
WRITING = [param for param in ALL if param.values[0].whole]
NEW = [param for param in WRITING if not param.values[0].begun]


def commands_of(top, name=""):
    """The names of all commands, by the parser itself."""
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, under in action.choices.items():
                yield from commands_of(under, f"{name} {word}".strip())
            return
    yield name


def test_every_command_has_a_row():
    assert {*commands_of(parser())} == ROWS.keys()


# --- What there is to work on ---


@pytest.fixture(autouse=True)
def quick_and_same(monkeypatch, one_thread):
    """Detectors that learn nothing; the same arithmetic in all runs."""
    monkeypatch.setitem(SETTINGS, "learn", partial(quick, learn=blank))
    monkeypatch.setattr(commands, "parser", cache(parser))  # it is what takes longest
    before = {number: signal.getsignal(number) for number in STOPS}
    for number in STOPS:  # as in the foreground, wherever the tests run
        signal.signal(number, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def things(song, tmp_path_factory):
    """A text, a run of it, half of one, the same in the form of others, a detector."""
    folder = tmp_path_factory.mktemp("things")
    names = "text run half exported log news detector accepted page nothing"
    things = SimpleNamespace(**{name: folder / name for name in names.split()})
    things.text.write_text(f"\u2603{song.text}\u2603", encoding="utf-8")
    lines = [f"s{i // 3} event {i % 3} \u2603" for i in range(60)]
    things.log.write_text("\n".join(lines), encoding="utf-8")
    things.news.write_text("s1 something \u2603 else\n" * 2, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SETTINGS, "learn", partial(quick, learn=blank))
        train = ["train", "--out", things.run, "--text", things.text, *TINY]
        for arguments in (
            train,
            ["convert", things.run, "--to", "hf", things.exported],
            play(things, things.page),
            fit(things, things.detector),
            fit(things, things.accepted),
            accept(things, things.accepted),
        ):
            assert call(arguments) == 0

        def stopped(*given):
            raise KeyboardInterrupt

        patch.setattr(torch.Tensor, "backward", stopped)
        assert call([*train[:2], things.half, *train[3:]]) == 130
    return things


def call(arguments):
    return main([str(argument) for argument in arguments])


def bring(things, row, target):
    """The target as it has to be there."""
    source = getattr(things, row.begun)
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.exists():
        shutil.copy(source, target)


def tree(folder):
    """All files and folders and what is in them, but for the lock of a run."""
    paths = (p for p in sorted(folder.rglob("*")) if p.name != ".lock")
    return {
        path.relative_to(folder): path.read_bytes() if path.is_file() else None
        for path in paths
    }


def result(target):
    """What is the same however often it was stopped: not how many seconds it took."""
    if target.is_file():
        return target.read_bytes()
    found = {k: v for k, v in tree(target).items() if ".partial" not in str(k)}
    if Path("training.safetensors") in found:
        found["losses"] = read_run(target).history.losses
    for path in target.rglob("*.safetensors"):  # says the same in any order
        tensors = load_file(path).items()
        found[path.relative_to(target)] = {k: t.tolist() for k, t in tensors}
    found.pop(Path("training.safetensors"), None)
    return found


def is_whole(row, target):
    try:
        row.whole(target)
        return True
    except CheckpointError:
        return False


# --- At each dealing with files ---


class Watch:
    """Calls what it was told before each change of a file in a folder."""

    def __init__(self):
        self.folder = self.act = None
        sys.addaudithook(self.hook)  # there is no way to remove one

    def hook(self, event, args):
        if self.act is None or not args or not isinstance(args[0], str | Path):
            return
        if not str(args[0]).startswith(str(self.folder)):
            return
        writes = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            self.pass_moment(event)

    def pass_moment(self, event, fd=None):
        act, self.act = self.act, None
        try:
            act(event, fd)
        finally:
            self.act = act

    @contextmanager
    def on(self, folder, act):
        def fsync(fd):
            if self.act:
                self.pass_moment("fsync", fd)

        self.folder, self.act = folder, act
        sync, os.fsync = os.fsync, fsync
        try:
            yield
        finally:
            self.act, os.fsync = None, sync


WATCH = Watch()


@pytest.fixture
def start(things, tmp_path):
    """Makes a folder to work in, and the target in it, as a row wants it."""
    numbers = itertools.count()

    def make(row, there):
        root = tmp_path / f"root{next(numbers)}"
        target = root / "out"
        root.mkdir()
        if row.begun:
            bring(things, row, target)
        elif there:
            target.mkdir()
            target.chmod(0o2750)
        return root, target

    return make


THERE = pytest.mark.parametrize("there", [False, True], ids=["new", "there"])


@THERE
@pytest.mark.parametrize("row", WRITING)
def test_killed_at_any_moment(row, there, things, start, tmp_path, capsys):
    """By kill -9: what is on the disk then is whole, or the command begins again.

    That is a copy of the disk at each moment; of what is not yet durable, half.
    """
    if row.begun and there:
        pytest.skip("the same")
    root, target = start(row, there)
    copies = []

    def copy(event, fd):
        copies.append(shutil.copytree(root, tmp_path / f"copy{len(copies)}"))
        if fd is not None and Path(f"/proc/self/fd/{fd}").exists():
            written = Path(os.readlink(f"/proc/self/fd/{fd}")).relative_to(root)
            os.truncate(copies[-1] / written, os.fstat(fd).st_size // 2)

    with WATCH.on(root, copy):
        assert call(row.arguments(things, target)) == 0
    row.whole(target)
    expected = result(target)
    assert len(copies) >= row.least
    before = None
    for i, copied in enumerate(copies):
        out = copied / "out"
        whole = is_whole(row, out)
        seen = whole, {name for name in tree(out) if "partial" not in str(name)}
        # What looks as it did a moment ago is tried every third time.
        if seen != before or i % 3 == 0:
            way = row.again if whole else row.arguments
            assert way is None or call(way(things, out)) == 0, capsys.readouterr().err
            assert result(out) == expected
            assert not (way and [*out.rglob(".*.partial")])
            if there:
                assert out.stat().st_mode & 0o7777 == 0o2750
        before = seen


def moments(row, things, start, there):
    """How many dealings with files there are."""
    root, target = start(row, there)
    passed = []
    with WATCH.on(root, lambda event, fd: passed.append(event)):
        assert call(row.arguments(things, target)) == 0
    return len(passed)


def assert_nothing_lost(row, root, target, before):
    """As it was, or whole, and nothing besides."""
    if not (target.exists() and is_whole(row, target)):
        assert tree(root) == before
    assert not [*root.rglob(".*.partial")]


@pytest.mark.parametrize("row", WRITING)
def test_a_disk_that_is_full_from_some_moment_on(row, things, start, capsys):
    for moment in range(moments(row, things, start, True)):
        root, target = start(row, moment % 2)
        before, passed = tree(root), itertools.count()

        def full(event, fd, passed=passed, moment=moment):
            if next(passed) >= moment and event not in ("os.remove", "os.rmdir"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        capsys.readouterr()
        with WATCH.on(root, full):
            code = call(row.arguments(things, target))
        err = capsys.readouterr().err
        if code:  # else there was nothing more to write
            last = err.splitlines()[-1]
            assert (code, last[:7]) == (1, "error: "), (moment, err)
            assert "No space left" in last and "partial" not in last
            assert_nothing_lost(row, root, target, before)
        else:
            row.whole(target)


@pytest.mark.parametrize("row", WRITING)
def test_told_to_end_at_any_moment(row, things, start, capsys):
    for moment in range(moments(row, things, start, True)):
        root, target = start(row, moment % 2)
        before, passed, number = tree(root), itertools.count(), STOPS[moment % 3]

        def end(event, fd, passed=passed, moment=moment, number=number):
            if next(passed) == moment:
                signal.raise_signal(number)

        with WATCH.on(root, end):
            code = call(row.arguments(things, target))
        assert code == 128 + number or (code == 0 and is_whole(row, target)), moment
        assert_nothing_lost(row, root, target, before)


# --- Where the target is ---


@contextmanager
def mounted(place, *options):
    """A file system of its own at a place; skips where that can't be had."""
    place.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", *options, "none", str(place)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


PLACES = ["deep", "private", "shared", "volume", "link", "broken", ".", "mount"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("row", NEW)
def test_a_target_of_any_kind_stays_what_it_is(
    row, place, things, tmp_path, monkeypatch, capsys
):
    """Renaming another folder to its place would fail for mount points."""
    monkeypatch.chdir(tmp_path)
    work = tmp_path / "work"
    real = work / {"link": "elsewhere", "broken": "elsewhere"}.get(place, "out")
    target = Path("work", "deep", "er") if place == "deep" else Path("work/out")
    work.mkdir()
    if place not in ("deep", "broken"):
        real.mkdir()
        real.chmod({"private": 0o700, "shared": 0o2770}.get(place, 0o755))
        if os.geteuid() == 0:
            os.chown(real, 12, 34)
    if place in ("link", "broken"):
        target.symlink_to(real)
    if place == "volume":
        (real / "lost+found").mkdir()
    if place == ".":
        monkeypatch.chdir(real)
        target = Path(".")
    with mounted(real) if place == "mount" else monkeypatch.context():
        before = real.stat() if real.exists() else None
        assert call(row.arguments(things, target)) == 0, capsys.readouterr().err
        row.whole(target)
        assert not [*work.rglob(".*.partial")]
        assert Path(target).is_symlink() == (place in ("link", "broken"))
        if before:
            for what in ("st_ino", "st_mode", "st_uid", "st_gid"):
                assert getattr(real.stat(), what) == getattr(before, what), what
        if place == "shared":
            assert {p.stat().st_gid for p in real.iterdir()} == {before.st_gid}


@pytest.mark.parametrize("kind", ["file", "full of things", "read-only", "tiny"])
@pytest.mark.parametrize("row", NEW)
def test_a_target_that_can_not_be(row, kind, things, tmp_path, capsys, monkeypatch):
    root = tmp_path / "root"
    target, options = root / "out", {"read-only": "ro", "tiny": "size=8k"}.get(kind)
    with mounted(root, "-o", options) if options else monkeypatch.context():
        root.mkdir(exist_ok=True)
        if kind == "file":
            target.write_text("mine")
        elif kind == "full of things":
            target.mkdir()
            (target / "config.json").write_text("mine")
            (target / "sub").mkdir()
        before = tree(root)
        capsys.readouterr()
        assert call(row.arguments(things, target)) == 1
        out, err = capsys.readouterr()
        last = err.splitlines()[-1]
        assert out == "" and last.startswith("error: ") and str(target) in last, last
        assert tree(root) == before


# --- Standard output ---


@pytest.fixture
def printing(things, tmp_path, monkeypatch):
    """Calls a row with another standard output."""

    def run(row, stream):
        target = tmp_path / "out"
        if row.begun:
            bring(things, row, target)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            code = call(row.arguments(things, target))
        if row.whole:
            row.whole(target)
        return code

    return run


@pytest.mark.parametrize("row", ALL)
def test_standard_output_that_is_closed(row, printing, capsys):
    assert printing(row, None) == 0


@pytest.mark.parametrize("row", ALL)
def test_nobody_reads_any_more(row, printing, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:
        assert printing(row, stream) == 1
    assert "error" not in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("row", ALL)
def test_standard_output_that_is_full(row, printing, capsys):
    with open("/dev/full", "w") as stream:
        assert printing(row, stream) == 1
    assert "error: [Errno 28] No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize("row", ALL)
def test_a_terminal_of_few_characters(row, printing, things):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    assert printing(row, stream) == 0
    stream.flush()
    said = stream.buffer.getvalue().decode("ascii")
    assert said.endswith("\n")
    if row is ROWS["sample"][0]:
        assert said.startswith("9 \\u2603")
    if row is ROWS["detect score"][0]:
        assert "s1 something \\u2603 else" in said
    if row is ROWS["detect score"][1]:
        assert "\u2603" in json.loads(said.splitlines()[0])["worst"]["event"]
