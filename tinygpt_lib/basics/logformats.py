"""Formats of logs: found in a log's first lines, then each line taken apart by them."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from itertools import islice
from typing import Self

__all__ = ["TIMES", "LogFormat", "Reader", "Record", "clean"]

MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec".split()
_YEAR, _MONTH, _DATE = r"(?P<Y>(?:19|20)\d\d)", r"(?P<m>[01]\d)", r"(?P<d>[0-3]\d)"
_NAME, _DAY = r"(?P<b>[A-Z][a-z]{2})", r"(?P<d>[0-3]?\d)"
_WEEKDAY = r"(?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]*,?\s+)?"
_CLOCK = (
    r"(?P<H>\d{1,2}):(?P<M>\d\d?)(?::(?P<S>\d\d?)(?:[.,:](?P<f>\d{1,9}))?)?"
    r"(?:\s?(?P<p>[AaPp][Mm])\b)?"
)
_ZONE = r"(?:\s?(?P<z>Z|UTC|GMT|[A-Z]{2,3}T(?=[\s\]])|[+-]\d\d:?\d\d))?"
_TIGHT = r"(?P<H>[0-2]\d)(?P<M>[0-5]\d)(?P<S>[0-5]\d)(?:\.(?P<f>\d+))?"
# Name -> how a time is written. The first that most lines of a log have is taken.
TIMES = {
    name: re.compile(pattern)
    for name, pattern in {
        "ISO 8601": rf"\b{_YEAR}[-/.]{_MONTH}[-/.]{_DATE}"
        rf"(?:T|,?\s{{1,2}}){_CLOCK}{_ZONE}",
        "BlueGene": rf"\b{_YEAR}-{_MONTH}-{_DATE}-"
        r"(?P<H>\d\d)\.(?P<M>\d\d)\.(?P<S>\d\d)(?:\.(?P<f>\d+))?",
        "web server": rf"{_DATE}/{_NAME}/{_YEAR}:{_CLOCK}{_ZONE}",
        "ctime": rf"{_WEEKDAY}{_NAME}\s+{_DAY} {_CLOCK} (?:[A-Z]{{3,4}} )?{_YEAR}\b",
        "day first": rf"{_WEEKDAY}\b{_DAY}[ -]{_NAME}[a-z]*[ -]{_YEAR}"
        rf"[ T:]{_CLOCK}{_ZONE}",
        "month first": rf"\b{_NAME}\s+{_DAY},? {_YEAR},? {_CLOCK}",
        "syslog": rf"{_WEEKDAY}\b{_NAME}\s+{_DAY} {_CLOCK}",
        "day month": rf"\b{_DAY} {_NAME} {_CLOCK}",
        "klog": rf"^(?P<l>[IWEF]){_MONTH}{_DATE} {_CLOCK}",
        "compact": rf"\b{_YEAR}{_MONTH}{_DATE}[-T _]?{_CLOCK}(?P<z>Z)?",
        "squeezed": rf"\b{_YEAR}{_MONTH}{_DATE}T?{_TIGHT}(?P<z>Z)?\b",
        "month/day/year": rf"\b(?P<m>\d\d?)/{_DAY}/{_YEAR}[ T,]\s?{_CLOCK}",
        "day/month/year": rf"\b{_DAY}[/.](?P<m>\d\d?)[/.]{_YEAR}[ T,]\s?{_CLOCK}",
        "yy/month/day": rf"\b(?P<y>\d\d)/{_MONTH}/{_DATE} {_CLOCK}",
        "month/day/yy": rf"\b{_MONTH}/{_DATE}/(?P<y>\d\d) {_CLOCK}",
        "month-day": rf"(?<![\d.-]){_MONTH}[-./]{_DATE} {_CLOCK}",
        "yymmdd": rf"^(?P<y>\d\d){_MONTH}{_DATE} +{_TIGHT}\b",
        "yymmdd clock": rf"^(?P<y>\d\d){_MONTH}{_DATE} +{_CLOCK}",
        "epoch": r"(?<![\w.-])(?P<e>1\d{9}|[1-9]\d{8})(?:\.(?P<f>\d{1,9}))?(?![\w.])",
        "epoch milliseconds": r"(?<![\w.-])(?P<ms>1\d{12})(?![\w.])",
        "epoch microseconds": r"(?<![\w.-])(?P<us>1\d{15})(?![\w.])",
        "since boot": r"^\[\s*(?P<e>\d+)\.(?P<f>\d{6})\]",
        "clock": rf"^\W?{_CLOCK}(?=\W)",
    }.items()
}
LEVELS = (
    "emerg emergency panic alert crit critical fatal severe error err failure warn "
    "warning notice info information log statement detail hint debug debug1 verbose "
    "trace fine finer finest config audit"
).split()
_LEVEL = "|".join(sorted({*LEVELS, *map(str.upper, LEVELS), *map(str.title, LEVELS)}))
BY_LETTER = {"I": "info", "W": "warning", "E": "error", "F": "fatal", "D": "debug"}
BY_LETTER |= {"V": "verbose", "T": "trace", "C": "critical", "N": "notice"}
BY_NUMBER = "emerg alert crit error warning notice info debug".split()
_NESTED = r"\[(?:[^\[\]]|\[[^\[\]]*\])*\]"
# What may stand between a line's time and its message: each, where nearly all lines
# have it, is cut off, and the next is looked for. (s: source, l: level, c: a code)
_AGAIN = ("BlueGene", "ISO 8601", "web server", "syslog")  # a second time, told so
PARTS = [
    *(re.compile(rf".{{0,60}}?{TIMES[name].pattern}") for name in _AGAIN),
    *(
        re.compile(rf"[\s\]|:,-]{{0,40}}{pattern}")
        for pattern in (
            # PostgreSQL, klog, nginx, then whatever has a level
            rf"(?P<pid>\[\d+\]) \S+ (?P<c>[0-9A-Z]{{5}}) (?P<l>{_LEVEL}):",
            r"\d+ (?P<s>[\w.-]+:\d+)\]",
            rf"\[(?P<l>{_LEVEL})\](?: \d+#\d+:)?",
            rf"(?:\S+\s+){{0,5}}?[(<]?\b(?P<l>{_LEVEL})\b[)>]?:?",
            r"\d+\s+\d+ (?P<l>[VDIWEF])(?=\s)",  # Android
            r"std(?:out|err) [FP](?=\s)",  # Kubernetes
            r"\S+ +(?:-- )?(?P<s>[^\s\[:]+(?: [^\s\[:]+)?)(?:\[(?P<pid>\d+)\])?"
            r"(?: \([^)]*\))?:(?=\s|$)",  # syslog
            r"\|(?P<s>[^|]*)\|[^|]*\|",
            _NESTED,
            r"(?P<s>[\w.$/@-]+)\s*:(?=\s)",
            r"(?P<s>[A-Za-z][\w.-]*(?: \*?\w+)?) -(?=\s)",
            r"(?P<s>[A-Za-z]+\w*(?:[.$][\w$]+)+)(?=\s)",
            # RFC 5424, then columns of words and of numbers
            r"(?:\S+ )?(?P<s>\S+) (?P<pid>\S+) \S+ (?:-|(?:\[[^\]]*\])+)(?=\s)",
            r"(?P<s>\w+)(?=\s{2,})",
            r"(?<=[\s-])\d+(?=\s)",
        )
    ),
]
COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
GOES_ON = re.compile(  # a line that belongs to the one before it
    r"\s|[)}\]]+[;,]?$|Caused by:|Suppressed:|Traceback |\.\.\. \d+ |"
    r"[a-zA-Z_][\w.$]*(?:Exception|Error|Throwable)\b"
)
PAIR = re.compile(r'(?<![\w.])([A-Za-z_@][\w.@/-]{0,60})=("(?:[^"\\]|\\.)*"|[^\s"]*)')
MESSAGES = ("MESSAGE", "message", "msg", "log", "text", "body", "event", "eventName")
TIMED = (
    "__REALTIME_TIMESTAMP _SOURCE_REALTIME_TIMESTAMP @timestamp timestamp time ts t "
    "eventTime datetime date asctime"
).split()
LEVELLED = (
    "level",
    "severity",
    "lvl",
    "levelname",
    "log.level",
    "PRIORITY",
    "loglevel",
)
SOURCES = (
    "SYSLOG_IDENTIFIER logger name source component service eventSource module unit"
).split()
MOST = 0.9  # share of lines that have to agree
SAMPLE = 2000  # lines that a format is found in
# What another digit in its place would change: lines told by digits alone are alike.
BY_DIGIT = re.compile(r"debug\d", re.IGNORECASE)


def clean(line: str) -> str:
    """The line without a terminal's colours, and without a mark of its encoding."""
    return (
        COLOURS.sub("", line).lstrip("\ufeff")
        if "\x1b" in line or "\ufeff" in line
        else line
    )


@lru_cache(maxsize=4096)
def _day(year: int, month: int, day: int) -> float | None:
    try:
        return datetime(year, month, day, tzinfo=UTC).timestamp()
    except ValueError:
        return None


@lru_cache(maxsize=256)
def _offset(zone: str | None) -> int:
    """Seconds east of Greenwich; 0 for a name of letters, as good as unknown."""
    if not zone or zone[0] not in "+-":
        return 0
    hours, minutes = int(zone[1:3]), int(zone[-2:])
    return (1 if zone[0] == "+" else -1) * (hours * 3600 + minutes * 60)


class Clock:
    """Reads times that one of TIMES has found; the year that some leave out is guessed.

    It is the latest in which the first such time is not after tomorrow; from then on a
    time half a year before the last one is of the next year.
    """

    def __init__(self, now: datetime | None = None):
        self.now = now or datetime.now(UTC)
        self.year: int | None = None
        self.last = 0.0
        self.told: tuple = (None, None)  # what it read last
        self.read: float | None = None

    def __call__(self, found: re.Match) -> float | None:
        """Seconds since 1970, UTC where no zone is said; None for no possible time."""
        told = found.re, found.group()
        if told != self.told:  # many lines of a log are of one second
            self.told, self.read = told, self.seconds(found.groupdict())
        return self.read

    def seconds(self, got: dict[str, str | None]) -> float | None:
        """As of the parts of a time."""
        fraction = float("0." + got["f"]) if got.get("f") else 0.0
        for name, unit in (("e", 1), ("ms", 1e3), ("us", 1e6)):
            if got.get(name):
                return int(got[name]) / unit + fraction
        month = got.get("m")
        if name := got.get("b"):
            month = 1 + MONTHS.index(name.lower()) if name.lower() in MONTHS else 0
        clock = int(got["H"]) * 3600 + int(got["M"]) * 60 + int(got.get("S") or 0)
        if half := got.get("p"):
            clock += (half[0] in "Pp") * 43_200 - (got["H"] == "12") * 43_200
        clock += fraction - _offset(got.get("z"))
        if month is None:  # a clock without a date
            return clock
        month, day = int(month), int(got["d"])
        if got.get("Y") or got.get("y"):
            start = _day(int(got.get("Y") or 2000 + int(got["y"])), month, day)
            return None if start is None else start + clock
        return self.guessed(month, day, clock)

    def guessed(self, month: int, day: int, clock: float) -> float | None:
        first = self.year is None
        year = self.now.year if self.year is None else self.year
        years = range(year, year - 8, -1) if first else range(year, year + 8)
        starts = ((y, _day(y, month, day)) for y in years)  # 29 February is not in all
        for year, start in starts:
            if start is None:
                continue
            time = start + clock
            if first and time > self.now.timestamp() + 86_400:
                continue
            if not first and time < self.last - 183 * 86_400:
                continue
            self.year, self.last = year, time
            return time
        return None


@dataclass(slots=True)
class Record:
    """A line taken apart."""

    text: str  # as it was read
    message: str
    time: float | None = None
    level: str = ""
    source: str = ""
    code: str = ""  # that the format writes before each message, as an SQLSTATE
    goes_on: bool = False  # it belongs to the record before it


def flat(data: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Fields of an object, those of objects in it too, with their full names."""
    for name, value in data.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def as_json(line: str) -> dict | None:
    """The object that a line is; None for another line."""
    start = line.find("{")
    if start < 0 or not line.rstrip().endswith("}") or start > 100:
        return None
    try:
        data = json.loads(line[start:])
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def as_pairs(line: str) -> dict | None:
    """The fields of a line of logfmt; None for a line with other words between them."""
    pairs = PAIR.findall(line)
    if len(pairs) < 2 or sum(len(k) + len(v) + 2 for k, v in pairs) < 0.9 * len(line):
        return None
    return {k: v.strip('"').replace('\\"', '"') for k, v in pairs}


def first_of(fields: dict, names: Sequence[str]) -> str | None:
    return next((name for name in names if fields.get(name) not in (None, "")), None)


@dataclass
class LogFormat:
    """How a log's lines are written: found by `of`, kept as plain data."""

    kind: str  # "text", "json" or "logfmt"
    times: dict[str, list[int]]  # of text: names of TIMES -> places of PARTS to cut off
    field: str | None = None  # that holds the message; None: the first of MESSAGES
    share: float = 1.0  # of the lines it was found in that it can read

    @classmethod
    def of(cls, lines: Iterable[str], field: str | None = None) -> Self:
        """The format that most of the first lines of a log have."""
        sample = [clean(line) for line in islice(lines, SAMPLE)]
        sample = [line for line in sample if line.strip()]
        for kind, parse in (("json", as_json), ("logfmt", as_pairs)):
            share = sum(parse(line) is not None for line in sample) / max(
                1, len(sample)
            )
            if sample and share >= MOST:
                return cls(kind, {}, field, share)
        left, times = sample, {}
        while left:
            found = {name: [] for name in TIMES}
            for line in left:
                for name, pattern in TIMES.items():
                    match = pattern.search(line[:120])
                    if match and Clock()(match) is not None:
                        found[name].append((line, match))
            name = max(found, key=lambda name: _worth(found[name]))
            if len(found[name]) < max(3, 0.01 * len(sample)):
                break
            times[name] = _parts([line[match.end() :] for line, match in found[name]])
            read = {id(line) for line, _ in found[name]}
            left = [line for line in left if id(line) not in read]
        starts = [line for line in left if not GOES_ON.match(line)]
        return cls("text", times, field, 1 - len(starts) / max(1, len(sample)))

    def to_dict(self) -> dict:
        return {"kind": self.kind, "times": self.times, "field": self.field}

    @classmethod
    def from_dict(cls, data: dict) -> Self:
        """The format that `to_dict` described; ValueError for nonsense."""
        times = data.get("times")
        good = data.get("kind") in ("text", "json", "logfmt") and isinstance(
            times, dict
        )
        if not good or not {*times} <= {*TIMES}:
            raise ValueError("the log's format is none that is known")
        if not all(0 <= i < len(PARTS) for places in times.values() for i in places):
            raise ValueError("the log's format has parts that are unknown")
        return cls(data["kind"], times, data.get("field"))

    @property
    def stamp(self) -> re.Pattern | None:
        """What finds most times, where what follows is read by any digits alike."""
        name, places = next(iter(self.times.items()), (None, [0]))
        alike = name not in (None, "klog") and min(places, default=99) >= len(_AGAIN)
        return TIMES[name] if alike else None

    def __str__(self) -> str:
        if self.kind == "text":
            return "lines of text, " + (
                "with times as " + " and ".join(self.times)
                if self.times
                else "no times"
            )
        return {"json": "an object of JSON a line", "logfmt": "fields (logfmt)"}[
            self.kind
        ]


def _worth(found: list) -> tuple[int, float]:
    """More lines are better; of two that find as many, the one that stands earlier."""
    starts = [match.start() for _, match in found]
    spelt = sum(match.end() - match.start() for _, match in found)
    return len(found), spelt / max(1, len(found)) - sum(starts) / max(1, len(found))


def _parts(rests: list[str]) -> list[int]:
    """Places of the PARTS that nearly all lines have after their time, in turn."""
    places: list[int] = []
    while rests and len(places) < 6:
        for i, part in enumerate(PARTS):
            left = [m.string[m.end() :] for m in map(part.match, rests) if m]
            if len(left) >= MOST * len(rests):
                places, rests = [*places, i], left
                break
        else:
            break
    return places


SAID = {"l": "level", "s": "source", "c": "code"}  # by groups of PARTS


class Reader:
    """Takes the lines of a log apart, one after the other, and counts what it can't."""

    def __init__(self, form: LogFormat, now: datetime | None = None):
        self.form, self.clock = form, Clock(now)
        self.counts: Counter[str] = Counter()  # "read", "joined", "not read"
        self.unread: list[str] = []  # the first lines that could not be read
        self.last: float | None = None
        self._times = [
            (TIMES[name], [(PARTS[i], [*PARTS[i].groupindex]) for i in places])
            for name, places in form.times.items()
        ]

    def __call__(self, line: str) -> Record:
        """The record of the next line."""
        line = clean(line)
        record = self.structured(line) if self.form.kind != "text" else self.plain(line)
        if record is None:
            goes_on = bool(self.counts) and bool(
                GOES_ON.match(line) or not line.strip()
            )
            record = Record(line, line.strip(), self.last, goes_on=goes_on)
            timed = self.form.kind != "text" or self.form.times
            kind = "joined" if goes_on else "not read" if timed else "read"
            if kind == "not read" and len(self.unread) < 5:
                self.unread.append(line)
        else:
            kind = "read"
            self.last = record.time if record.time is not None else self.last
        self.counts[kind] += 1
        return record

    def plain(self, line: str) -> Record | None:
        """A line of text; None where its time can't be found."""
        for pattern, parts in self._times:
            if (found := pattern.search(line, 0, 120)) is None:
                continue
            time = self.clock(found)
            if time is None:
                continue
            record = Record(line, "", time)
            if "l" in pattern.groupindex:
                record.level = BY_LETTER[found["l"]]
            if line[0] == "<" and (priority := re.match(r"<(\d{1,3})>", line)):
                record.level = BY_NUMBER[int(priority[1]) & 7]
            at = found.end()
            for part, names in parts:
                if (match := part.match(line, at)) is None:
                    continue
                at = match.end()
                for name in names:
                    if name in "lsc" and (value := match[name]):
                        setattr(record, SAID[name], value)
            if record.level:
                record.level = BY_LETTER.get(record.level, record.level.lower())
            record.message = line[at:].lstrip(" \t|:]-,") or line[at:].strip()
            return record
        return None

    def structured(self, line: str) -> Record | None:
        """A line of fields; None where it is none."""
        fields = as_json(line) if self.form.kind == "json" else as_pairs(line)
        if fields is None:
            return None
        used = {self.form.field or first_of(fields, MESSAGES)}
        if isinstance(message := fields.get(next(iter(used)) or ""), list | dict):
            message = json.dumps(message)
        record = Record(line, str(message or "").strip())
        if name := first_of(fields, TIMED):
            used.add(name)
            record.time = self.time_of(str(fields[name]))
        else:
            record.time = self.time_of(line)
        if name := first_of(fields, LEVELLED):
            used.add(name)
            level = str(fields[name]).lower()
            number = name == "PRIORITY" and level.isdigit() and int(level) < 8
            record.level = BY_NUMBER[int(level)] if number else level
        if name := first_of(fields, SOURCES):
            used.add(name)
            record.source = str(fields[name])
        if "MESSAGE" not in used:  # a journal's other fields are of the journal
            rest = sorted(flat({k: v for k, v in fields.items() if k not in used}))
            words = (f"{name}={_word(value)}" for name, value in rest)
            record.message = " ".join((record.message, *words)).strip()
        return record

    def time_of(self, text: str) -> float | None:
        """The first time that a text tells; None where there is none."""
        for pattern in TIMES.values():
            if found := pattern.search(text[:120]):
                return self.clock(found)
        return None


def _word(value: object) -> str:
    """What a field says, if it is short and can be one of few; its kind, if not."""
    text = json.dumps(value) if not isinstance(value, str) else value
    return (
        text
        if re.fullmatch(r"\d{1,3}|true|false|null|[A-Za-z_-]{1,24}", text)
        else "0*"
    )
