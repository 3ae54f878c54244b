"""How the lines of a log become sessions of events: found in a normal log, and kept."""

import gc
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from math import floor, inf, nan
from typing import Self

import numpy as np

from tinygpt_lib.basics.logformats import BY_DIGIT, SAMPLE, LogFormat, Reader, Record
from tinygpt_lib.basics.logsessions import find_groupings, window_of
from tinygpt_lib.logs import Session, SessionFinder, Templates

KINDS_IN = 100_000  # lines that the kinds are learned from, and every tenth after them
ALIKE = bytes.maketrans(b"123456789", b"000000000")
ROOM = 100_000  # ids, and beginnings of lines, that are remembered
WINDOW_LINES = 10  # of a window, where lines have no times
ALONE = "(no session)"  # before the name of a window of lines without an id


def event_of(record: Record, kinds: Callable[[str], str]) -> str:
    """The event of a line: its level and code, if it has them, and its kind."""
    event = kinds(record.message)
    if event and (record.level or record.code):
        words = (record.level, record.code, event)
        return " ".join(word for word in words if word)
    return event


class Pauses:
    """How long ids are silent between two of their lines."""

    def __init__(self, rule: dict):
        self.finder = SessionFinder(session_regex=rule["session_regex"])
        self.last: dict[str, float] = {}
        self.seconds = array("d")

    def take(self, record: Record) -> None:
        if record.time is None or (name := self.finder(record.text)) is None:
            return
        last = self.last.get(name)
        if last is not None:
            self.seconds.append(abs(record.time - last))
        self.last[name] = record.time

    def silence(self) -> float | None:
        """A hundred times what 99 of 100 pauses stay below, a minute at least."""
        if not self.seconds:
            return None
        return max(60.0, 100 * float(np.quantile(self.seconds, 0.99)))


def messages(
    reader: Reader, lines: Iterable[str], pauses: Pauses | None = None
) -> Iterator[str]:
    """The messages of lines that don't go on with the line before them."""
    for number, line in enumerate(lines):
        if number > KINDS_IN and number % 10:
            continue
        record = reader(line)
        if not record.goes_on:
            if pauses and number <= KINDS_IN:
                pauses.take(record)
            yield record.message


class LogReading:
    """A log's format, its kinds of lines, and the rule that makes sessions of them.

    `rule` has one of "session_regex", "seconds" and "lines"; with the first, "silence":
    the seconds after which an id is free to be another session's; and "why".
    """

    def __init__(self, form: LogFormat, kinds: Callable[[str], str], rule: dict):
        self.form, self.kinds, self.rule = form, kinds, dict(rule)

    @classmethod
    def fit(
        cls,
        lines: Iterable[str],
        rule: dict | None = None,
        masks: dict[str, str] | None = None,
        field: str | None = None,
        least: int = 0,
    ) -> Self:
        """What lines of a normal log say of it; they are read more than once.

        Without a rule, sessions are made by an id that comes again, else by time, else
        by count: then into `least` windows or more.
        """
        form = LogFormat.of(lines, field)
        rule = dict(rule or {}) or cls.found_rule(lines, form, least)
        pauses = Pauses(rule) if "session_regex" in rule else None
        kinds = Templates.learn(messages(Reader(form), lines, pauses), masks)
        if pauses and (silence := pauses.silence()):
            rule.setdefault("silence", silence)
        return cls(form, kinds, rule)

    @staticmethod
    def found_rule(lines: Iterable[str], form: LogFormat, least: int = 0) -> dict:
        """The rule for sessions that fits a log."""
        reader, texts, times = Reader(form), [], array("d")
        for record in map(reader, islice(lines, KINDS_IN)):
            if not record.goes_on and len(texts) < SAMPLE:
                texts.append(record.text)
            if record.time is not None:
                times.append(record.time)
        if found := find_groupings(texts):
            return {"session_regex": found[0].regex, "why": str(found[0])}
        n = reader.counts.total()
        if len(times) > n / 2:
            span = max(times) - min(times)
            seconds = window_of(min(WINDOW_LINES / n, 0.9 / max(1, least)) * span)
            return {"seconds": seconds, "why": "no id comes again"}
        size = max(1, min(WINDOW_LINES, n // max(1, least)))
        return {"lines": size, "why": "no id comes again, and no times are read"}

    def __str__(self) -> str:
        """In words: the format, and what makes sessions, and why."""
        rule = self.rule
        how = f"what {rule.get('session_regex')!r} finds"
        if "seconds" in rule:
            how = f"windows of {rule['seconds']:g} seconds"
        elif "lines" in rule:
            how = f"windows of {rule['lines']} lines"
        why = f" ({rule['why']})" if "why" in rule else ""
        return f"read as {self.form}; a session is {how}{why}"

    def lines(self) -> "LineReader":
        """What takes a log's lines, one after the other."""
        return LineReader(self)

    def sessions(self, lines: Iterable[str]) -> "Sessions":
        """The sessions of a log."""
        return Sessions(self, lines)

    def to_dict(self) -> dict:
        """All of it as plain JSON data."""
        return {
            "format": self.form.to_dict(),
            "kinds": self.kinds.to_dict(),
            "sessions": self.rule,
        }

    @classmethod
    def from_dict(cls, data: dict) -> Self:
        """What `to_dict` described; ValueError for nonsense."""
        try:
            form = LogFormat.from_dict(data["format"])
            reading = cls(form, Templates.from_dict(data["kinds"]), data["sessions"])
            reading.lines()
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"it does not say how a log is read: {error}") from error
        return reading


class LineReader:
    """The session and the event of each line of a log, in turn."""

    def __init__(self, reading: LogReading):
        self.reading, self.reader = reading, Reader(reading.form)
        rule = reading.rule
        self.number = self.alone = 0
        self.finder: SessionFinder | None = None
        if "session_regex" in rule:
            self.finder = SessionFinder(session_regex=rule["session_regex"])
        elif "time_regex" in rule or "time_format" in rule:
            names = ("seconds", "time_regex", "time_format")
            self.finder = SessionFinder(**{n: rule[n] for n in names if n in rule})
        elif "seconds" in rule:
            SessionFinder(seconds=rule["seconds"])  # refuses nonsense
        elif not rule.get("lines", 0) >= 1:
            raise ValueError("there is no rule that says which lines belong together")
        self.silence = rule.get("silence", inf)
        self.latest: dict[str, tuple[float, int]] = {}  # of an id: when, how often over
        self.time: float | None = None  # of the line
        self.stamp, self.events = reading.form.stamp, {}
        self.named: tuple = (None, "")  # the last window

    def __call__(self, line: str) -> tuple[str | None, str]:
        """The name of the line's session and its event; None for one that goes on."""
        self.number += 1
        if not (event := self.event(line)):
            return None, ""
        if self.finder is not None and (name := self.finder(line)) is not None:
            return self.current(name, self.time), event
        window = self.window(self.time)
        if "session_regex" in self.reading.rule:
            self.alone += 1
            return f"{ALONE} {window}", event
        return window, event

    def event(self, line: str) -> str:
        """The event of a line; nothing for one that goes on.

        After their times, most lines differ from one before in digits alone.
        """
        reader, alike = self.reader, None
        found = self.stamp and self.stamp.search(line, 0, 120)
        if found and line[0] != "<" and (time := reader.clock(found)) is not None:
            rest = line[found.end() :].encode(errors="surrogatepass")
            alike = rest.translate(ALIKE)
            if event := self.events.get(alike):
                reader.counts["read"] += 1
                reader.last = self.time = time
                return event
        record = reader(line)
        self.time = record.time
        event = "" if record.goes_on else event_of(record, self.reading.kinds)
        said = record.level + record.code
        exact = BY_DIGIT.search(line) or any(map(str.isdigit, said))
        if alike and record.text == line and not exact:
            if len(self.events) < ROOM and not self.reading.kinds.by_digits(
                record.message
            ):
                self.events[alike] = event
        return event

    def current(self, name: str, time: float | None) -> str:
        """The id; with a number, if after a long silence it is another session's."""
        if time is None or self.silence == inf:
            return name
        last, times = self.latest.pop(name, (time, 0))
        times += time - last > self.silence
        self.latest[name] = max(time, last), times
        if len(self.latest) > ROOM:
            del self.latest[next(iter(self.latest))]
        return f"{name} #{times + 1}" if times else name

    def window(self, time: float | None) -> str:
        """The window that a line falls into, by its time or else by its number."""
        rule = self.reading.rule
        if time is None:
            size = rule.get("lines", WINDOW_LINES)
            return f"lines from {(self.number - 1) // size * size + 1}"
        seconds = rule.get("seconds", 60)
        if "lines" in rule:
            size = rule["lines"]
            return f"lines from {(self.number - 1) // size * size + 1}"
        start = floor(time / seconds) * seconds
        if start != self.named[0]:
            name = f"{datetime.fromtimestamp(start, UTC):%Y-%m-%dT%H:%M:%S}"
            self.named = start, name
        return self.named[1]


class Sessions:
    """Sessions of a log, in the order of their first lines; read when asked for.

    Afterwards `counts` tells what was read, `times` of each line when it was written
    (NaN: unknown), and `alone` how many lines had no session of their own.
    """

    def __init__(self, reading: LogReading, lines: Iterable[str]):
        self.reading, self.lines = reading, lines
        self.counts: Counter[str] = Counter()
        self.times, self.alone = array("d"), 0
        self.unread: list[str] = []
        self.named, self.example = False, ""

    def __iter__(self) -> Iterator[Session]:
        collecting = gc.isenabled()
        gc.disable()  # millions of strings and lists, none of which is garbage
        try:
            sessions = self.read()
        finally:
            if collecting:
                gc.enable()
        self.check()
        yield from sessions.values()

    def read(self) -> dict[str, Session]:
        """All sessions by their names."""
        sessions: dict[str, Session] = {}
        reader = self.reading.lines()
        self.times = array("d")
        for number, line in enumerate(self.lines, start=1):
            name, event = reader(line)
            time = reader.time
            self.times.append(nan if time is None else time)
            if name is not None:
                self.example = self.example or line
                session = sessions.get(name)
                if session is None:
                    session = sessions[name] = Session(name)
                session.events.append(event)
                session.line_numbers.append(number)
        self.counts, self.alone = reader.reader.counts, reader.alone
        self.unread = reader.reader.unread
        self.named = any(not name.startswith(ALONE) for name in sessions)
        return sessions

    def check(self) -> None:
        """ValueError where hardly a line could be read: it is another kind of log."""
        lost, n = self.counts["not read"], self.counts.total()
        if lost > 0.5 * n:
            raise ValueError(
                f"{lost:,} of {n:,} lines are not {self.reading.form}; one of them is "
                f"{self.unread[0][:200]!r}"
            )
        if "session_regex" in self.reading.rule and self.alone and not self.named:
            raise ValueError(
                f"none of {n:,} lines belongs to a session by "
                f"{self.reading.rule['session_regex']!r}; one of them is "
                f"{self.example[:200]!r}"
            )
