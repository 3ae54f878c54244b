"""How `detect` reads logs: lines of several files, events, sessions, times."""

import math
import os
import re
import shutil
import stat
import sys
import tempfile
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from tinygpt_lib.anomalies import has_ended, longest_pauses
from tinygpt_lib.basics import loglines
from tinygpt_lib.basics.loglines import MASKS, read_lines, seconds_of
from tinygpt_lib.logs import Masks, Session, SessionFinder, group_lines
from tinygpt_lib.runs.detectors import AnomalyDetector

DATED = re.compile(loglines.DATED)


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


def sessions_of(lines: Iterable[str], rule: dict, masks: Masks) -> Iterator[Session]:
    """Sessions of lines by a rule; ValueError if there is none."""
    lines, number = iter(lines), 0
    if rule.get("events"):
        for session in event_sessions(lines):
            number += 1
            yield session
    else:
        for session in group_lines(lines, SessionFinder(**rule), masks).values():
            number += 1
            yield session
    if not number:
        raise ValueError("no session was found: there is no line with anything in it")


def custom_masks(options) -> Masks:
    """The usual masks, and in front of them those of the command line."""
    own: dict[str, str] = {}
    for text in options.mask:
        word, equals, pattern = text.partition("=")
        if not (word and equals and pattern):
            raise ValueError(f"--mask {text!r} is not of the form WORD=RE")
        own[word] = f"(?:{own[word]})|(?:{pattern})" if word in own else pattern
    usual = {
        word: f"(?:{own.pop(word)})|{pattern}" if word in own else pattern
        for word, pattern in MASKS.items()
    }
    return Masks({**own, **usual})


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


def moment_of(line: str, before: float) -> float:
    """When a line was written, in seconds; `before` if it doesn't tell."""
    found = DATED.search(line, 0, 200)
    moment = seconds_of(found.group()) if found else None
    return before if moment is None else moment


class Lines:
    """The lines of several files in turn: where each one is, and when it was written.

    `moments` are seconds, those of the line before for one that tells no time, and NaN
    before any is told; of the first time that the lines are read.
    """

    def __init__(self, files: Sequence[str], timed: bool = True):
        self.files, self.starts = list(files), []
        self.timed, self.moments = timed, array("d")

    def __iter__(self) -> Iterator[str]:
        self.starts, number, moment = [], 0, math.nan
        timed, self.timed = self.timed, False
        for file in self.files:
            self.starts.append(number)
            for line in read_lines(file):
                number += 1
                if timed:
                    moment = moment_of(line, moment)
                    self.moments.append(moment)
                yield line

    def where(self, number: int) -> tuple[int, int]:
        """The place of a file, and the number there, of a line numbered over all."""
        file = bisect_left(self.starts, number) - 1
        return file, number - self.starts[file]


def pairs_of(lines: Lines, sessions: Iterable[Session]) -> Iterator[tuple[float, str]]:
    """When each event came, in the order of the log; lines without a time left out."""
    for _, moment, event in told_in_order(lines, sessions):
        yield moment, event


def told_in_order(
    lines: Lines, sessions: Iterable[Session]
) -> Iterator[tuple[int, float, str]]:
    """Number, time and event of each line in its order; "" for one of no session."""
    if not lines.moments:
        return
    events = [""] * len(lines.moments)
    for session in sessions:
        for number, event in zip(session.line_numbers, session.events, strict=False):
            events[number - 1] = event
    for number, (moment, event) in enumerate(
        zip(lines.moments, events, strict=True), start=1
    ):
        if not math.isnan(moment):
            yield number, moment, event


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


def rules_of(detector: AnomalyDetector, options) -> tuple[dict, Masks]:
    """The rule for sessions and the masks that the detector was fitted with."""
    kept = detector.about.get("sessions", {})
    masks = detector.about.get("masks", MASKS)
    kept = kept if isinstance(kept, dict) else {}
    check_same_kind(options, kept)
    rule = grouping(options, kept)
    if not rule:
        raise ValueError(
            f"{options.folder} does not say how lines become sessions: it was not made "
            "by `detect fit`; give --session-regex, --seconds or --events"
        )
    try:
        if not rule.get("events"):
            SessionFinder(**rule)
        return rule, Masks(masks)
    except (TypeError, AttributeError) as error:
        raise ValueError(
            f"{options.folder} has a rule that is none: {error}"
        ) from error


def check_same_kind(options, kept: dict) -> None:
    """ValueError if other events are asked for than those that were learnt."""
    by_lines = options.session_regex is not None or options.seconds is not None
    if kept and options.events and "events" not in kept:
        raise ValueError(
            "--events is for lines of event ids, and this detector has learnt the "
            "events that it makes of whole lines: it would know none of them"
        )
    if "events" in kept and by_lines:
        raise ValueError(
            "this detector has learnt lines of event ids (--events), and would know no "
            "event of whole lines"
        )


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
