"""How `detect` reads logs: lines of several files, events, sessions, times."""

import os
import shutil
import stat
import sys
import tempfile
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from tinygpt_lib import anomalies
from tinygpt_lib.basics.loglines import read_lines
from tinygpt_lib.logs import Session
from tinygpt_lib.runs.detectors import AnomalyDetector
from tinygpt_lib.runs.reading import LogReading


def grouping(options, kept: dict) -> dict:
    """The rule for sessions: that of the command line, else the one that is kept."""
    asked = {name: x for name, x in vars(options).items() if x is not None}
    names = ("seconds", "time_regex", "time_format")
    timed = {name: asked[name] for name in names if name in asked}
    rule = dict(kept)
    if asked.get("events"):
        rule = {"events": True}
    elif "session_regex" in asked:
        rule = {"session_regex": asked["session_regex"]}
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


def read_log(
    lines: Iterable[str], reading: LogReading | None
) -> tuple[list[Session], Sequence[float]]:
    """The sessions of lines, and when each line was written, NaN for one of no time.

    Without a reading each line is a session, of no time. ValueError for no session.
    """
    found = event_sessions(lines) if reading is None else reading.sessions(lines)
    sessions = list(found)
    if not sessions:
        raise ValueError("no session was found: there is no line with anything in it")
    return sessions, () if reading is None else found.times


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

    By silence in lines, as in chapter 16; of windows of time all but the last.
    """
    if rule.get("events"):
        raise ValueError("--open-ends can't be used with --events: lines are whole")
    last = max(session.line_numbers[-1] for session in sessions)
    if "session_regex" not in rule:
        return [session.line_numbers[-1] < last for session in sessions]
    events, numbers = zip(*((s.events, s.line_numbers) for s in sessions), strict=True)
    return anomalies.known_ends(events, numbers, last)


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


def told_in_order(
    times: Sequence[float], sessions: Iterable[Session]
) -> Iterator[tuple[int, float, str]]:
    """Number, time and event of each line that has them, in the order of the log."""
    events = [""] * len(times)
    for session in sessions if len(times) else ():
        for number, event in zip(session.line_numbers, session.events, strict=True):
            events[number - 1] = event
    for number, (time, event) in enumerate(zip(times, events, strict=True), start=1):
        if event and time == time:
            yield number, time, event


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
    path, kept = options.folder / "detector.safetensors", detector.about.get("sessions")
    rule = grouping(options, kept if isinstance(kept, dict) else {})
    if rule.get("events"):
        if "kinds" in detector.about:
            raise ValueError(f"{path} knows lines; these are no ids of events")
        return rule, None
    if not rule or "kinds" not in detector.about:
        raise ValueError(
            f"{path} does not say how lines become sessions: it was not made by "
            "`detect fit` of logs; give --events, or fit anew"
        )
    try:
        return rule, LogReading.from_dict({**detector.about, "sessions": rule})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


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
