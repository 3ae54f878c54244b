"""The command `detect`: a detector for logs in files, fitted and used."""

import argparse
import itertools
import json
import math
import os
import queue
import shutil
import stat
import sys
import tempfile
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import IO

from tinygpt_lib.anomalies import (
    EventReport,
    SessionReport,
    has_ended,
    longest_pauses,
)
from tinygpt_lib.basics.checks import check_int
from tinygpt_lib.basics.devices import choose_device
from tinygpt_lib.basics.interrupts import held_interrupt
from tinygpt_lib.basics.loglines import (
    LONGEST_LINE,
    bounded_lines,
    in_order,
    read_lines,
)
from tinygpt_lib.commands import inspect
from tinygpt_lib.commands.common import add_command
from tinygpt_lib.logs import Session
from tinygpt_lib.runs.detectors import SCORES, AnomalyDetector, check_rate
from tinygpt_lib.runs.reading import LineReader, LogReading

AT_ONCE = 10_000  # sessions that are judged together
POLL = 0.2  # seconds between two looks at a file that grows


def add_grouping(command: argparse.ArgumentParser, default: str) -> None:
    """The options that say which lines belong together."""
    group = command.add_argument_group(f"which lines belong together ({default})")
    how = group.add_mutually_exclusive_group()
    how.add_argument(
        "--session-regex",
        metavar="RE",
        help=r"lines in which it finds the same, as 'blk_-?\d+'; of groups, the first",
    )
    how.add_argument(
        "--seconds", type=float, metavar="S", help="lines of the same S seconds"
    )
    how.add_argument(
        "--events",
        action="store_true",
        help="each line is a session already: event ids with blanks between them",
    )
    group.add_argument(
        "--time-regex", metavar="RE", help="finds a line's time, for --seconds"
    )
    group.add_argument(
        "--time-format", metavar="F", help="how the time is written, as for strptime"
    )


def add_fit(command: argparse.ArgumentParser) -> None:
    """The options of `detect fit`."""
    command.add_argument(
        "--normal",
        nargs="+",
        required=True,
        metavar="FILE",
        help="logs of a time in which nothing was wrong; may be gzipped; - is stdin",
    )
    command.add_argument(
        "--out", type=Path, required=True, help="folder for the detector; must be new"
    )
    add_grouping(command, "default: an id that comes again, else time")
    command.add_argument(
        "--field", metavar="NAME", help="that holds the message, in lines of fields"
    )
    command.add_argument(
        "--mask",
        action="append",
        default=[],
        metavar="WORD=RE",
        help="put WORD in place of what RE finds, before all else; repeatable",
    )
    command.add_argument(
        "--open-ends",
        action="store_true",
        help="sessions may go on after the log: learn no end of those that are silent, "
        "when it stops, for no more lines than one that went on after the same event",
    )
    command.add_argument(
        "--false-alarms",
        type=float,
        metavar="SHARE",
        help="of normal sessions that may raise an alarm (default: 0.002, or what the "
        "number of sessions can promise)",
    )
    command.add_argument(
        "--score",
        choices=sorted(SCORES),
        default="max",
        help="of a session: largest surprisal and counts, or the mean surprisal "
        "alone, for logs whose sessions are all different (default: max)",
    )
    command.add_argument(
        "--folds", type=int, default=3, help="models to fit (default: 3)"
    )
    command.add_argument("--seed", type=int, default=0, help="(default: 0)")


def add_inspect(command: argparse.ArgumentParser) -> None:
    """The options of `detect inspect`."""
    command.add_argument(
        "files", nargs="+", metavar="FILE", help="logs; may be packed; - is stdin"
    )
    add_grouping(command, "default: an id that comes again, else time")
    command.add_argument(
        "--field", metavar="NAME", help="that holds the message, in lines of fields"
    )


def run_inspect(options) -> int:
    """Says what a log is taken for; writes nothing."""
    rule = grouping(options, {})
    if rule.get("events"):
        raise ValueError("there is nothing to inspect in lines of event ids")
    with rereadable(in_order(options.files)) as files:
        lines = Lines(files)
        reading = LogReading.fit(lines, rule, field=options.field)
        for text in inspect.report(lines, reading):
            print(printable(text))
    return 0


def add_score(command: argparse.ArgumentParser) -> None:
    """The options of `detect score`."""
    command.add_argument("folder", type=Path, help="what `detect fit` made")
    command.add_argument(
        "files", nargs="+", metavar="FILE", help="logs; may be gzipped; - is stdin"
    )
    command.add_argument(
        "--before",
        action="append",
        default=[],
        metavar="FILE",
        help="a log of the time before: sessions that began there and go on are judged "
        "whole, those that ended there are not judged; repeatable, the oldest first",
    )
    add_grouping(command, "default: as `detect fit` was told")
    command.add_argument(
        "--false-alarms", type=float, metavar="SHARE", help="(default: as fitted)"
    )
    command.add_argument(
        "--open-ends",
        action="store_true",
        help="sessions may go on after the log: don't judge where they end",
    )
    command.add_argument(
        "--json", action="store_true", help="every session as a line of JSON"
    )
    command.add_argument(
        "--follow", action="store_true", help="go on reading as the (one) file grows"
    )
    command.add_argument(
        "--idle",
        type=float,
        default=600.0,
        metavar="S",
        help="with --follow: a session that is silent for S seconds is over "
        "(default: 600)",
    )
    command.add_argument(
        "--max-sessions",
        type=int,
        default=1000,
        metavar="N",
        help="with --follow: sessions that are kept in memory; when there are more, "
        "the one that has been silent longest is closed, its end not judged "
        "(default: 1000)",
    )


def grouping(options, kept: dict) -> dict:
    """The rule for sessions: that of the command line, else the one that is kept."""
    timed = {
        name: value
        for name in ("seconds", "time_regex", "time_format")
        if (value := getattr(options, name)) is not None
    }
    rule = dict(kept)
    if options.events:
        rule = {"events": True}
    elif options.session_regex is not None:
        rule = {"session_regex": options.session_regex}
    elif "seconds" in timed and "seconds" not in kept:
        rule = {}
    if timed and ("session_regex" in rule or "events" in rule):
        flag = "--" + next(iter(timed)).replace("_", "-")
        raise ValueError(f"{flag} is for lines that are grouped by time; these are not")
    return {**rule, **timed}


def event_sessions(lines: Iterable[str]) -> Iterator[Session]:
    """Sessions that are a line each; their ids are the lines' numbers."""
    for number, line in enumerate(lines, start=1):
        # One string for all events of a kind: logs are long.
        if events := [sys.intern(event) for event in line.split()]:
            yield Session(str(number), events, [number])


def sessions_of(lines: Iterable[str], reading: LogReading | None) -> Iterator[Session]:
    """Sessions of lines, a line each if there is no reading; ValueError for none."""
    number = 0
    sessions = event_sessions(lines) if reading is None else reading.sessions(lines)
    for session in sessions:
        number += 1
        yield session
    if not number:
        raise ValueError("no session was found: there is no line with anything in it")


def check_kinds(sessions: Sequence[Session]) -> None:
    """ValueError where most lines are of kinds that were seen once."""
    seen = Counter(event for session in sessions for event in session.events)
    once = [event for event, n in seen.items() if n == 1]
    if len(once) > 20 and len(once) > seen.total() / 2:
        raise ValueError(
            f"{len(once):,} of {seen.total():,} lines are of a kind of their own, as "
            f"{once[0][:100]!r} and {once[-1][:100]!r}: names or numbers vary in them "
            "that were not found; give a --mask for them, or more lines"
        )


def own_masks(options) -> dict[str, str]:
    """The masks of the command line."""
    own: dict[str, str] = {}
    for text in options.mask:
        word, equals, pattern = text.partition("=")
        if not (word and equals and pattern):
            raise ValueError(f"--mask {text!r} is not of the form WORD=RE")
        own[word] = f"(?:{own[word]})|(?:{pattern})" if word in own else pattern
    return own


def known_ends(sessions: Sequence[Session], rule: dict) -> list[bool]:
    """Of which sessions the end is known where a log stops that may cut some off.

    By silence in lines, see `longest_pauses`; of windows of time all but the last.
    """
    if rule.get("events"):
        raise ValueError("--open-ends can't be used with --events: lines are whole")
    last = max(session.line_numbers[-1] for session in sessions)
    if "session_regex" not in rule:
        return [session.line_numbers[-1] < last for session in sessions]
    pauses = longest_pauses(
        (session.events for session in sessions),
        (session.line_numbers for session in sessions),
    )
    return [
        has_ended(session.events, last - session.line_numbers[-1], pauses)
        for session in sessions
    ]


class Lines:
    """The lines of several files in turn, and in which of them each one is."""

    def __init__(self, files: Sequence[str]):
        self.files, self.starts = list(files), []

    def __iter__(self) -> Iterator[str]:
        self.starts, number = [], 0
        for file in self.files:
            self.starts.append(number)
            for line in read_lines(file):
                number += 1
                yield line

    def where(self, number: int) -> tuple[int, int]:
        """The place of a file, and the number there, of a line numbered over all."""
        file = bisect_left(self.starts, number) - 1
        return file, number - self.starts[file]


def usual_rate(sessions: int) -> float:
    """A false-alarm rate of 0.002, or the least that so many sessions can promise."""
    return min(max(0.002, math.ceil(2e4 / (sessions + 1)) / 1e4), 0.5)


def run_fit(options) -> int:
    """Fits a detector on normal logs and writes it."""
    if options.out.exists():
        raise ValueError(f"{options.out} exists already: choose a new folder")
    check_int("folds", options.folds, low=2)
    check_int("seed", options.seed, low=0)
    if options.false_alarms is not None:
        check_rate(options.false_alarms)
    device = choose_device(options.device)
    rule, masks = grouping(options, {}), own_masks(options)
    about: dict = {"sessions": rule}
    with rereadable(in_order(options.normal)) as files:
        reading, lines = None, Lines(files)
        if not rule.get("events"):
            least = math.ceil(2 / options.false_alarms) if options.false_alarms else 0
            reading = LogReading.fit(lines, rule, masks, options.field, least)
            about, rule = reading.to_dict(), reading.rule
        sessions = list(sessions_of(lines, reading))
        if reading is not None:
            check_kinds(sessions)
    ended = [True] * len(sessions)
    if options.open_ends:
        ended = known_ends(sessions, rule)
    rate = options.false_alarms
    if rate is None:
        rate = usual_rate(sum(ended))
    detector = AnomalyDetector.fit(
        [session.events for session in sessions],
        ended=ended,
        false_alarms=rate,
        score=options.score,
        folds=options.folds,
        seed=options.seed,
        device=device,
        about=about,
        progress=lambda text: print(text, file=sys.stderr),
    )
    detector.save(options.out)
    if reading is not None:
        print(reading)
    lengths = sorted(len(session.events) for session in sessions)
    kinds = len(detector.tokenizer.events)
    print(
        f"{options.out}: {len(sessions):,} sessions of {lengths[0]:,} to "
        f"{lengths[-1]:,} events, {kinds:,} kinds of events"
    )
    if open_ended := ended.count(False):
        print(f"{open_ended:,} may go on after the log: it has learnt no end of them")
    if detector.news:
        print(
            f"about {detector.news:.2%} of normal sessions will hold events that are "
            "unknown; each raises an alarm, apart from the promised rate"
        )
    if detector.news > 0.1:
        print("so many mean that names or numbers vary in the lines: give a --mask")
    size = detector.members[0].config.block_size
    if long := sum(length >= size for length in lengths):
        print(f"{long:,} are longer than what the models see at once ({size} events)")
    return 0


def run_score(options) -> int:
    """Judges the sessions of logs, or of a log that grows."""
    detector = AnomalyDetector.load(options.folder, choose_device(options.device))
    if options.false_alarms is not None:
        detector.false_alarms = options.false_alarms
    rule, reading = rules_of(detector, options)
    before = options.before
    if before and (options.follow or rule.get("events")):
        why = "--follow" if options.follow else "--events"
        raise ValueError(f"--before can't be used with {why}")
    if twice := {*before} & {*options.files}:
        raise ValueError(f"{min(twice)} can't be before itself")
    if options.follow:
        if len(options.files) > 1:
            raise ValueError("--follow reads one file; start a process for each")
        follow(detector, reading, options)
        return 0
    names = [*before, *in_order(options.files)]
    with rereadable(names) as files:
        lines = Lines(files)
        listing = Listing(lines, names)
        sessions = sessions_of(lines, reading)
        if before:
            sessions = going_on(sessions, lines, len(before))
        while batch := list(itertools.islice(sessions, AT_ONCE)):
            events = [session.events for session in batch]
            reports = detector.score(events, not options.open_ends)
            for session, report in zip(batch, reports, strict=True):
                number = worst_line(session, report.worst)
                if not options.json:
                    listing.add(session.id, report, number)
                elif len(files) == 1:
                    as_json(session.id, report, number)
                else:
                    file, number = lines.where(number)
                    as_json(session.id, report, number, file=names[file])
        if not options.json:
            listing.finish(detector)
    return 0


def going_on(
    sessions: Iterator[Session], lines: Lines, before: int
) -> Iterator[Session]:
    """Those of sessions that have lines after the first `before` files."""
    some = False
    for session in sessions:
        if session.line_numbers[-1] > lines.starts[before]:
            some = True
            yield session
    if not some:
        raise ValueError("all lines with a session are in the files before")


def rules_of(detector: AnomalyDetector, options) -> tuple[dict, LogReading | None]:
    """The rule for sessions, and the reading that the detector was fitted with.

    Unless the command line gives another rule; there is none where lines are events.
    """
    kept = detector.about.get("sessions", {})
    rule = grouping(options, kept if isinstance(kept, dict) else {})
    if rule.get("events"):
        if "kinds" in detector.about:
            raise ValueError(
                f"{options.folder} knows lines; these are no ids of events"
            )
        return rule, None
    if not rule or "kinds" not in detector.about:
        raise ValueError(
            f"{options.folder} does not say how lines become sessions: it was not made "
            "by `detect fit` of logs; give --events, or fit anew"
        )
    try:
        return rule, LogReading.from_dict({**detector.about, "sessions": rule})
    except ValueError as error:
        raise ValueError(f"{options.folder}: {error}") from error


@contextmanager
def rereadable(files: list[str]) -> Iterator[list[str]]:
    """The files, with copies of those that can be read only once, as standard input."""
    with ExitStack() as stack:
        paths = []
        for file in files:
            if file == "-" or stat.S_ISFIFO(os.stat(file).st_mode):
                copy = stack.enter_context(tempfile.NamedTemporaryFile())
                if file == "-":
                    shutil.copyfileobj(sys.stdin.buffer, copy)
                else:
                    with open(file, "rb") as pipe:
                        shutil.copyfileobj(pipe, copy)
                copy.flush()
                file = copy.name
            paths.append(file)
        yield paths


def worst_line(session: Session, report: EventReport) -> int:
    """The number of the line that holds an event; of an end, the last one's.

    Where a line is a whole session there is only one.
    """
    return session.line_numbers[min(report.position, len(session.line_numbers) - 1)]


def as_json(name: str, report: SessionReport, line: int, **more) -> None:
    """Prints a session, and the number of its worst line, as a line of JSON."""
    worst = report.worst
    data = {
        "id": name,
        "score": report.score,
        "p_value": report.p_value,
        "anomalous": report.anomalous,
        "events": report.n_events,
        "unknown": report.n_unknown,
        "windowed": report.windowed,
        "counts": report.counts,
        "worst": {
            "position": worst.position,
            "event": worst.event,
            "line": line,
            "surprisal": worst.surprisal,
            "rank": worst.rank,
            "expected": worst.expected,
        },
        **more,
    }
    print(json.dumps(data))


class Listing:
    """A report for people: the alarms, with the lines that raised them."""

    def __init__(self, lines: Lines, names: list[str]):
        self.lines, self.names = lines, names
        self.alarms: list[tuple[str, SessionReport, int]] = []
        self.n_sessions = self.n_unknown = self.n_windowed = 0

    def add(self, name: str, report: SessionReport, line: int) -> None:
        """Takes in a session, and the number of its worst line."""
        self.n_sessions += 1
        self.n_unknown += report.n_unknown > 0
        self.n_windowed += report.windowed
        if report.anomalous:
            self.alarms.append((name, report, line))

    def finish(self, detector: AnomalyDetector) -> None:
        """Prints it all; the lines are read again, since they may be many."""
        wanted = {number for *_, number in self.alarms}
        texts = {}
        for number, line in enumerate(self.lines if wanted else (), start=1):
            if number in wanted:
                texts[number] = line
        for name, report, number in self.alarms:
            text = texts.get(number, "(the line is no longer there)")
            file, number = self.lines.where(number)
            place = f"line {number:,}"
            if len(self.names) > 1:
                place += f" of {self.names[file]}"
            print(described(name, report, place, text))
        expected = detector.false_alarms * self.n_sessions
        print(
            f"{self.n_sessions:,} sessions, alarms: {len(self.alarms):,}, of them "
            f"{self.n_unknown:,} with unknown events. If all were normal, about "
            f"{expected:.1f} would raise one for other reasons."
        )
        if self.n_windowed:
            size = detector.members[0].config.block_size
            print(
                f"{self.n_windowed:,} are longer than the {size} events that the "
                "models see at once, and were read in windows"
            )


def described(name: str, report: SessionReport, place: str, line: str) -> str:
    """An alarm in words: where, what, and what had been expected instead."""
    worst = report.worst
    if not worst.known:
        what = "was never seen before"
    elif worst.position == report.n_events:
        what = f"is the last one, and an end there is worth {worst.surprisal:.1f} nats"
    else:
        what = f"is worth {worst.surprisal:.1f} nats (rank {worst.rank})"
    text = [
        f"{name}: p {report.p_value:.2g}; {place} {what}",
        f"    {line.strip()[:300]}",
    ]
    text += [f"    expected {chance:6.1%}  {e[:150]}" for e, chance in worst.expected]
    text += [f"    {n} times, normally {m}: {e[:150]}" for e, n, m in report.counts]
    return "\n".join(map(printable, text))


def printable(text: str) -> str:
    """The text with escapes for what could act on a terminal: logs hold anything."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


# --- A file that grows ---


def follow(detector: AnomalyDetector, reading: LogReading | None, options) -> None:
    """Judges lines as they come, until standard input ends or Ctrl-C."""
    lines = growing(options.files[0])
    if reading is None:
        for number, line in lines:
            if line and (events := line.split()):
                report = detector.score([events], not options.open_ends)[0]
                show_now(options, str(number), report, number, line)
        return
    follower = Follower(detector, reading.lines(), options)
    with held_interrupt() as pressed:  # not in the middle of an event
        for number, line in lines:
            follower.take(number, line)
            if pressed():
                follower.finish(stopped=True)
                raise KeyboardInterrupt
    follower.finish()


class Follower:
    """Tells of sessions once they are anomalous; with --json also at their end."""

    def __init__(self, detector, reader: LineReader, options):
        self.reader, self.options = reader, options
        self.stream = detector.stream(
            max_sessions=options.max_sessions,
            max_age=options.idle,
            count_ends=not options.open_ends,
            on_close=self.closed,
        )
        # The largest surprisal can only grow; any mean of a session that has just
        # begun is not like those of whole sessions, which the p-values are made of.
        self.grows = detector.score_name == "max"
        self.told: set[str] = set()
        self.newest: dict[str, tuple[int, str]] = {}  # of each session, a line
        self.worst: dict[str, tuple[int, str]] = {}

    def take(self, number: int, line: str | None) -> None:
        """The next line; None says that there is none yet."""
        now = time.monotonic()
        self.stream.expire(now)
        name, event = (None, "") if line is None else self.reader(line)
        if name is None:
            return
        worst = self.stream.push(name, event, now)
        self.newest[name] = (number, line)
        # By the scores that its end will be judged by: an alarm now is one then.
        report = self.stream.report(name, self.stream.count_ends)
        if report.worst == worst:
            self.worst[name] = (number, line)
        early = report.n_unknown > 0 or (self.grows and report.anomalous)
        if early and name not in self.told:
            self.told.add(name)
            show_now(self.options, name, report, *self.worst[name], ended=False)

    def closed(self, name: str, report: SessionReport, ended: bool) -> None:
        """Tells of a session that is over, unless people have been told already."""
        newest, worst = self.newest.pop(name), self.worst.pop(name)
        if self.options.json or name not in self.told:
            at_end = report.worst.position == report.n_events
            line = newest if at_end else worst
            show_now(self.options, name, report, *line, ended=ended)
        self.told.discard(name)

    def finish(self, stopped: bool = False) -> None:
        """Closes all sessions, when there is no more to read."""
        self.stream.count_ends &= not stopped
        for name in list(self.stream.running):
            self.closed(name, self.stream.close(name), self.stream.count_ends)


def show_now(options, name: str, report: SessionReport, number, line, **more) -> None:
    """Prints a report at once: as JSON, or in words if it is an alarm."""
    if options.json:
        as_json(name, report, number, **more)
    elif report.anomalous:
        print(described(name, report, f"line {number:,}", line))
    sys.stdout.flush()


def growing(path: str) -> Iterator[tuple[int, str | None]]:
    """Numbered lines of a file, and of what is added to it; None while there is none.

    A file that was cut or put in another's place is read from its beginning.
    """
    if path == "-":
        yield from arriving(own_stdin)
        return
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe
        yield from arriving(partial(open, path, "rb"))
        return
    number, room = 0, 4 * LONGEST_LINE
    while True:
        with open(path, "rb") as file:
            if file.peek(2)[:2] == b"\x1f\x8b":
                raise ValueError(f"{path} is gzipped: it can't be followed")
            line, over = b"", False
            while not over:
                part = file.readline(room)
                over = not part and replaced(path, file)
                line = (line + part)[: room + 1]
                if part.endswith(b"\n") or (over and line):
                    number += 1
                    text = line.decode("utf-8", errors="replace").rstrip("\r\n")
                    yield number, text[:LONGEST_LINE]
                    line = b""
                elif not part and not over:
                    yield number, None
                    time.sleep(POLL)


def own_stdin() -> IO[bytes]:
    """Standard input as a file of one's own.

    Python closes sys.stdin when it exits, and can't while a thread waits for a line.
    """
    try:
        return open(os.dup(sys.stdin.fileno()), "rb")
    except OSError:  # it is no real file
        return sys.stdin.buffer


def arriving(opened: Callable[[], IO[bytes]]) -> Iterator[tuple[int, str | None]]:
    """Numbered lines that another thread waits for; None while there is none."""
    waiting: queue.Queue[str | Exception | None] = queue.Queue(maxsize=1000)

    def fetch() -> None:
        try:
            for line in bounded_lines(opened()):
                waiting.put(line)
        except Exception as error:
            waiting.put(error)
        waiting.put(None)

    threading.Thread(target=fetch, daemon=True).start()
    number = 0
    while True:
        try:
            line = waiting.get(timeout=POLL)
        except queue.Empty:
            yield number, None
            continue
        if line is None:
            return
        if isinstance(line, Exception):
            raise line
        number += 1
        yield number, line


def replaced(path: str, file: IO[bytes]) -> bool:
    """Whether there is another file at path than this one, or it was cut."""
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False  # somebody is about to put a new one there
    here = os.fstat(file.fileno())
    same = (there.st_ino, there.st_dev) == (here.st_ino, here.st_dev)
    return not same or there.st_size < file.tell()


def add_detect(commands) -> None:
    detect = commands.add_parser(
        "detect",
        help="find what is unlike normal in logs",
        description="Find what is unlike normal in logs.",
        epilog="example: python -m tinygpt_lib detect score runs/gate auth.log",
    ).add_subparsers(required=True, metavar="COMMAND")
    look = add_command(
        detect,
        "inspect",
        run_inspect,
        "say what a log is taken for: format, sessions, kinds of lines; write nothing",
        "detect inspect auth.log",
    )
    add_inspect(look)
    fit = add_command(
        detect,
        "fit",
        run_fit,
        "learn what is normal from logs of a time in which nothing was wrong",
        r"detect fit --normal auth.log.1 --out runs/gate --session-regex 'sshd\[(\d+)'",
    )
    add_fit(fit)
    score = add_command(
        detect,
        "score",
        run_score,
        "judge the sessions of logs, and show the lines that raise an alarm",
        "detect score runs/gate auth.log",
    )
    add_score(score)
