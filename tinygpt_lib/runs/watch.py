"""Windows of a whole log: bursts of an event, silences, and rates that change."""

import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np

from tinygpt_lib.basics.checks import check_float, check_int

SPANS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400)
WINDOWS = 1000  # that a normal log is cut into, at least, where it is long enough
COLUMNS = 256  # all lines together, and the commonest events
ALL = ""  # the event that stands for all lines
LONG = 32  # windows over which a rate is taken
REGULAR = 20  # windows with an event, before its absence says something
NEVER = 1e18  # windows: longer than any silence
MARGIN = 1.0  # that a score must reach, however rare it is: see `Watch.score`

Cells = Counter[tuple[int, str]]  # how often an event came in a window


@dataclass(frozen=True, slots=True)
class Odd:
    """What is odd about a window."""

    kind: str  # "burst", "silence" or "rate"
    event: str  # ALL: the log as a whole
    number: int  # lines in the windows; of a silence, its seconds
    usual: tuple[int, int]  # between what that is in the normal log
    seconds: float  # that `number` is counted over
    number_of_line: int  # the line that shows it
    score: float
    p_value: float


class Watch:
    """What the windows of a normal log look like, and how odd any of them is.

    For each event: the most of it in a window (`most`), the longest time without it
    (`gap`, in windows), the most and the least of it in LONG windows (`high`, `low`).
    `scores` are those of the n normal windows that are above 0, in rising order.
    """

    def __init__(self, seconds, events, most, gap, high, low, scores, n):
        self.seconds, self.events, self.n = seconds, list(events), n
        self.most, self.gap, self.high, self.low, self.scores = (
            np.array(numbers, float) for numbers in (most, gap, high, low, scores)
        )

    @classmethod
    def fit(cls, cells: Cells, windows: int, seconds: float) -> Self | None:
        """From how often what came in windows; None where these are hardly any."""
        if windows < 2 * LONG:
            return None
        often: Counter[str] = Counter()
        for (_, event), number in cells.items():
            often[event] += number
        del often[ALL]
        common = [event for event, _ in often.most_common(COLUMNS - 1)]
        events = [ALL, *sorted(common)]
        place = {event: column for column, event in enumerate(events)}
        counts = np.zeros((windows, len(events)), np.int32)
        for (window, event), number in cells.items():
            if event in place:
                counts[window, place[event]] = number
        return cls.of_counts(counts, events, seconds)

    @classmethod
    def of_counts(cls, counts: np.ndarray, events: list[str], seconds: float) -> Self:
        """From how often each event came in each window: (W, V)."""
        n = len(counts)
        most, by_most = records(np.sqrt(counts), own=0)
        lengths = silences(counts)
        gap, by_gap = records(np.log2(lengths + 1.0), own=lengths)
        few = (counts > 0).sum(0) < REGULAR
        gap, by_gap = np.where(few, math.log2(NEVER), gap), np.where(few, 0, by_gap)
        sums = np.sqrt(
            np.lib.stride_tricks.sliding_window_view(counts, LONG, 0).sum(-1)
        )
        high, by_high = records(sums, own=LONG - 1)
        low, by_low = records(-sums, own=LONG - 1)
        scores = np.maximum(by_most, by_gap).max(1)
        scores[LONG - 1 :] = np.maximum(
            scores[LONG - 1 :], np.maximum(by_high, by_low).max(1)
        )
        return cls(
            seconds,
            events,
            np.round(most**2),
            np.round(2**gap - 1),
            np.round(high**2),
            np.round(low**2),
            np.sort(scores[scores > 0]),
            n,
        )

    def score(self, counts, runs, sums) -> tuple[float, str, int]:
        """How odd a window is, and by what: (score, kind, column).

        By how much it beats the record of the normal log: roots of counts, and the
        logarithm to base 2 of a silence, so that 1 is twice as long.
        """
        parts = {
            "burst": np.sqrt(counts) - np.sqrt(self.most),
            "silence": np.log2(runs + 1) - np.log2(self.gap + 1),
        }
        if sums is not None:
            root = np.sqrt(sums)
            over, under = root - np.sqrt(self.high), np.sqrt(self.low) - root
            parts["rate"] = np.maximum(over, under)
        best = {kind: int(values.argmax()) for kind, values in parts.items()}
        scores = {kind: float(parts[kind][column]) for kind, column in best.items()}
        kind = max(("burst", "silence"), key=scores.__getitem__)
        if scores[kind] < MARGIN:  # a rate changes by these, too
            kind = max(scores, key=scores.__getitem__)
        return scores[kind], kind, best[kind]

    def p_value(self, score: float) -> float:
        """What share of normal windows is as odd: conformal, as in chapter 16."""
        above = len(self.scores) - np.searchsorted(self.scores, score - 1e-9)
        return (1 + int(above if score > 0 else self.n)) / (1 + self.n)

    def to_dict(self) -> dict:
        """The watch as plain data."""
        names = ("most", "gap", "high", "low", "scores")
        numbers = {name: getattr(self, name).tolist() for name in names}
        return {"seconds": self.seconds, "events": self.events, "n": self.n, **numbers}

    @classmethod
    def from_dict(cls, data: dict) -> Self:
        """What `to_dict` described; ValueError for nonsense."""
        try:
            watch = cls(**data)
        except (TypeError, ValueError) as error:
            raise ValueError(f"its windows are none: {error}") from None
        check_float("seconds", watch.seconds, "above 0", lambda seconds: seconds > 0)
        check_int("n", watch.n, low=1)
        columns = [watch.most, watch.gap, watch.high, watch.low]
        shapes = {numbers.shape for numbers in columns}
        fine = all((numbers >= 0).all() for numbers in [*columns, watch.scores])
        if shapes != {(len(watch.events),)} or not fine or watch.scores.ndim != 1:
            raise ValueError("its windows are none: there must be a number each event")
        if not all(isinstance(event, str) for event in watch.events):
            raise ValueError("its windows are none: events must be strings")
        return watch


def cells_of(
    pairs: Iterable[tuple[float, str]], seconds: float | None = None
) -> tuple[Cells, int, float]:
    """How often each event came in each window, the number of these, and their length.

    `pairs` are times, in seconds, and events; of no length, a fitting one is taken.
    """
    pairs = list(pairs)
    if not pairs:
        return Counter(), 0, seconds or SPANS[0]
    first, last = (most(moment for moment, _ in pairs) for most in (min, max))
    seconds = seconds or span_of(last - first)
    cells: Cells = Counter(
        (int((moment - first) // seconds), event) for moment, event in pairs
    )
    for (window, event), number in [*cells.items()]:
        cells[window, ALL] += number * (event != ALL)
    return cells, int((last - first) // seconds) + 1, seconds


def span_of(seconds: float) -> float:
    """How long windows are in a log of so many seconds."""
    fits = [span for span in SPANS if seconds / span >= WINDOWS]
    return float(max(fits, default=SPANS[0]))


def silences(counts: np.ndarray) -> np.ndarray:
    """For how many windows each event has not come, as of each window: (W, V)."""
    places = np.arange(len(counts))[:, None]
    last = np.maximum.accumulate(np.where(counts > 0, places, -1), axis=0)
    return places - last


def records(values: np.ndarray, own) -> tuple[np.ndarray, np.ndarray]:
    """The largest of each column (V,), and by how much each value beats all others.

    The `own` values before and after one are no others: they are of the same silence,
    or of sums that share windows.
    """
    rows = np.arange(len(values))
    best = values.argmax(0)
    columns = np.arange(values.shape[1])
    reach = own[best, columns] if isinstance(own, np.ndarray) else own
    near = np.abs(rows[:, None] - best) <= reach
    others = np.where(near, -np.inf, values).max(0)
    others = np.where(np.isfinite(others), others, values.min(0))
    beats = np.where(near, values - others, 0).clip(min=0)
    return np.abs(values.max(0)), beats


class Watching:
    """Looks at the windows of a log as its lines come."""

    def __init__(self, watch: Watch, limit: float):
        self.watch, self.limit = watch, limit  # the largest p-value that is an alarm
        self.place = {event: i for i, event in enumerate(watch.events)}
        self.window: int | None = None
        self.over = -math.inf  # when the window is
        self.counts, self.runs = [0] * len(watch.events), np.zeros(len(watch.events))
        self.before: deque[np.ndarray] = deque(maxlen=LONG)
        self.active: tuple[str, str] | None = None  # what the last window was odd by
        self.first: dict[str, int] = {}  # of each event in the window, its first line
        self.last: dict[str, int] = {}  # of each event, the last line that held it
        self.judged = 0

    def take(self, moment: float, event: str, number: int) -> Iterable[Odd]:
        """Takes in a line; what is odd about the windows that are over by then."""
        odd = [*self.until(moment)] if moment >= self.over else ()
        for name in {ALL, event}:
            if (column := self.place.get(name)) is not None:
                if not self.counts[column]:
                    self.first[name] = number
                self.counts[column] += 1
                self.last[name] = number
        return odd

    def until(self, moment: float) -> Iterator[Odd]:
        """What is odd about the windows that are over at a moment."""
        window = math.floor(moment / self.watch.seconds)
        if self.window is None:
            self.window = window
        gone = window - self.window
        self.over = (max(window, self.window) + 1) * self.watch.seconds
        if gone <= 0:  # the same window, or a clock that was set back
            return
        yield from self.close()
        if gone > 1:  # with nothing in them
            quiet = gone - 2
            self.runs += quiet
            self.before.extend([np.zeros_like(self.runs)] * min(quiet, LONG))
            self.judged += quiet
            yield from self.close()
        self.window = window

    def close(self) -> Iterator[Odd]:
        """Judges the window and begins one with nothing in it."""
        self.judged += 1
        counts = np.array(self.counts, float)
        self.runs = np.where(counts > 0, 0, self.runs + 1)
        self.before.append(counts)
        sums = sum(self.before) if len(self.before) == LONG else None
        score, kind, column = self.watch.score(counts, self.runs, sums)
        p_value, event = self.watch.p_value(score), self.watch.events[column]
        odd = score >= MARGIN and p_value <= self.limit
        if odd and (kind, event) != self.active:
            yield self.described(kind, column, sums, score, p_value)
        if odd and kind != "rate":  # rates, and other silences, would tell the same
            self.before.clear()
            self.runs[1:] *= event != ALL
        self.active = (kind, event) if odd else None
        self.counts, self.first = [0] * len(self.counts), {}

    def described(self, kind: str, column: int, sums, score, p_value) -> Odd:
        """An odd window in numbers."""
        watch, event = self.watch, self.watch.events[column]
        number, usual, span, line = {
            "burst": lambda: (
                self.counts[column],
                (0, watch.most[column]),
                watch.seconds,
                self.first.get(event, 0),
            ),
            "silence": lambda: (
                self.runs[column] * watch.seconds,
                (0, watch.gap[column] * watch.seconds),
                watch.seconds,
                self.last.get(event, 0),
            ),
            "rate": lambda: (
                sums[column],
                (watch.low[column], watch.high[column]),
                watch.seconds * LONG,
                self.last.get(event, 0),
            ),
        }[kind]()
        low, high = map(int, usual)
        return Odd(kind, event, int(number), (low, high), span, line, score, p_value)

    def state(self) -> dict:
        """Where it is, as plain data."""
        return {
            "window": self.window,
            "counts": self.counts,
            "runs": self.runs.tolist(),
            "before": [counts.tolist() for counts in self.before],
            "active": self.active,
            "first": self.first,
            "last": self.last,
            "judged": self.judged,
        }

    def go_on(self, state: dict) -> None:
        """Goes on where `state` was told."""
        self.window, self.judged = state["window"], state["judged"]
        self.counts, self.runs = [*state["counts"]], np.array(state["runs"])
        self.before.extend(map(np.array, state["before"]))
        self.active = tuple(state["active"]) if state["active"] else None
        self.first, self.last = state["first"], state["last"]
