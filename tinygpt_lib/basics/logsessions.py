"""Which lines of a log belong together: by an id that comes again, found in the log."""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from statistics import median

from tinygpt_lib.basics.loglines import DATED, compiled, seconds_of

__all__ = ["Grouping", "SessionFinder", "find_groupings", "window_of"]

SAMPLE = 10_000  # lines that are looked at
# What may be an id: how to find one -> how a place is found, as its name and the id.
PLACES = {
    r"{name}\[?\"?([\w./:@-]*\w)": re.compile(
        r"\b([A-Za-z_][\w.-]*\"?\s?[=:]\s?)\[?\"?(?=[\w./:@-]*\d)([\w./:@-]*\w)"
    ),
    r"\b({name}[\w-]*\w)": re.compile(r"\b([A-Za-z]{2,}[_-])(?=[\w-]*\d)([\w-]*\w)"),
    r"\[(\d{{2,}})\]": re.compile(r"\[()(\d{2,})\]"),
    r"\[([0-9a-fA-F]{{6,}})\]": re.compile(r"\[()(?=[a-f]*\d)([0-9a-fA-F]{6,})\]"),
    r"\b([0-9a-f]{{8}}(?:-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}})\b": re.compile(
        r"()\b([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\b"
    ),
}


@dataclass
class Grouping:
    """A rule for sessions, and what it made of the lines that it was found in."""

    regex: str
    share: float  # of the lines in which it finds an id
    ids: int
    lines: float  # an id has, in the middle

    def __str__(self) -> str:
        return (
            f"an id in {self.share:.0%} of the lines, {self.ids:,} different ones of "
            f"{self.lines:g} lines each (median)"
        )


class SessionFinder:
    """To which session a line belongs: by what `session_regex` finds, or by time.

    The id is the first group that has found something, or all that the expression
    finds. Without one, sessions are windows of `seconds`, at least 1; a line's time is
    what `time_regex` finds, read by `seconds_of`, and a line without one belongs to the
    line before it. One finder serves one log. ValueError for settings that make no
    sense.
    """

    def __init__(
        self,
        session_regex: str | None = None,
        seconds: float | None = None,
        time_regex: str | None = None,
        time_format: str | None = None,
    ):
        if (session_regex is None) == (seconds is None):
            raise ValueError("give either session_regex or seconds, to group lines by")
        if seconds is not None and not 1 <= seconds < float("inf"):
            raise ValueError(f"seconds is {seconds}; it must be at least 1")
        self.seconds, self.time_format = seconds, time_format
        regex = session_regex if seconds is None else (time_regex or DATED)
        self.pattern = compiled(regex, repr(regex))
        self.last: str | None = None

    def __call__(self, line: str) -> str | None:
        """The id of the line's session; None for a line that belongs to none."""
        found, text = self.pattern.search(line), None
        if found is not None:
            first = (
                next(filter(None, found.groups()), None) if found.lastindex else None
            )
            text = first or found.group() or None
        if self.seconds is None:
            return text
        time = seconds_of(text, self.time_format) if text else None
        if time is not None:
            start = math.floor(time / self.seconds) * self.seconds
            self.last = f"{datetime.fromtimestamp(start, UTC):%Y-%m-%dT%H:%M:%S}"
        return self.last


def escaped(name: str) -> str:
    """As `re.escape`, but for marks that mean nothing."""
    return re.sub(r"\\([ \"_:=-])", r"\1", re.escape(name))


def _places(line: str) -> Iterator[tuple[str, str]]:
    """Expressions that would find an id in a line, and the ids."""
    for form, pattern in PLACES.items():
        for name, found in pattern.findall(line):
            yield form.format(name=escaped(name)), found


def find_groupings(lines: Iterable[str]) -> list[Grouping]:
    """Ids that come again, and make sessions, best first.

    Most lines have one, there are many, each in some lines that stand near each other.
    """
    seen: dict[str, dict[str, list[int]]] = {}
    n = 0
    for n, line in enumerate(islice(lines, SAMPLE), 1):
        there: set[str] = set()
        for regex, found in _places(line[:2000]):
            if regex not in there and (regex in seen or len(seen) < 500):
                there.add(regex)
                seen.setdefault(regex, {}).setdefault(found, []).append(n)
    good = []
    for regex, ids in seen.items():
        sizes = [len(numbers) for numbers in ids.values()]
        spans = [numbers[-1] - numbers[0] for numbers in ids.values() if numbers[1:]]
        share, again = sum(sizes) / n, sum(size for size in sizes if size > 1) / n
        if len(ids) < 20 or again < 0.5 or max(sizes) > 0.2 * n:
            continue
        if median(sizes) >= 2 and median(spans) <= 0.1 * n:
            good.append(Grouping(regex, share, len(ids), median(sizes)))
    return sorted(good, key=lambda g: (-round(g.share, 2), -g.lines, len(g.regex)))


def window_of(seconds: float) -> float:
    """The usual length of a window that is not longer than so many seconds."""
    usual = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 21_600, 86_400)
    return float(max(s for s in usual if s <= max(1, seconds)))
