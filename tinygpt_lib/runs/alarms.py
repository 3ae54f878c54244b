"""Alarms that are news: one rate shared by all kinds, and equal causes told once."""

import math
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from tinygpt_lib.anomalies import EventReport, SessionReport
from tinygpt_lib.logs import END, Session
from tinygpt_lib.runs.detectors import AnomalyDetector
from tinygpt_lib.runs.watch import Odd, Watch, Watching

SESSIONS = 2 / 3  # of the promised rate, for sessions; the rest is for windows
ROUNDING = 1 + 1e-9  # 2 of 300 is no more than two thirds of 0.01
CAUSES = 10_000  # that are remembered
KEPT = 20_000  # reports of sessions that are kept, for those that are equal
RECENT = 1000  # sessions, among which drift is looked for
FEW = 100  # sessions that say nothing of it
LOW = 0.1  # p-values below this are rare, and drift makes them common first

Line = tuple[int, str]  # its number, and what it says


@dataclass(slots=True)
class Alarm:
    """A cause of alarm: what, where it was seen first, and how often since."""

    kind: str  # "new", "order", "counts", "burst", "silence" or "rate"
    event: str  # `watch.ALL`: the log as a whole
    p_value: float
    score: float
    line: int  # the number of the first line that raised it
    session: str | None = None
    report: SessionReport | None = None
    odd: Odd | None = None
    worst: EventReport | None = None  # of an event that is new
    before: Sequence[str] = ()  # the events before one that is new
    after: str = ""  # of an end, the event before it
    count: int = 1
    last: int = 0  # the line that raised it last

    @property
    def expected(self) -> Sequence[tuple[str, float]]:
        """Which events were expected most, and how likely each was."""
        if self.kind not in ("new", "order"):
            return ()
        worst = self.worst or (self.report.worst if self.report else None)
        return worst.expected if worst else ()

    @property
    def cause(self) -> str:
        """The same for what has the same cause."""
        what = [self.kind, self.event, *[self.after] * (self.event == END)]
        if self.kind == "counts":
            _, often, elsewhere = self.report.counts[0]
            what.append("more" if often > elsewhere else "fewer")
        return "\n".join(what)


@dataclass(slots=True)
class Judged:
    """A session, what the detector says of what it knows in it, and what is new."""

    session: Session  # without what is new, or accepted
    report: SessionReport | None  # None if nothing is left
    news: list[tuple[int, str, int]] = field(default_factory=list)
    # lines, events, and how many of the session's others come before


class Judge:
    """A detector and its watch, which share the promised rate.

    Of sessions like the normal ones, and of the windows beside them, at most about
    `promised` times the sessions raise an alarm, news apart: two thirds of these by
    their order and counts, the rest by windows.
    """

    def __init__(self, detector: AnomalyDetector):
        self.detector, self.promised = detector, detector.false_alarms
        kept = detector.about.get("watch")
        self.watch = None if kept is None else Watch.from_dict(kept)
        self.sessions = sum(map(len, detector.held_out[True]))
        if self.promised * (1 + self.sessions) < 3 - 1e-9:
            self.watch = None  # that is a rate for sessions alone
        if self.watch is not None:
            detector.false_alarms = SESSIONS * self.promised * ROUNDING
        self.known = frozenset(detector.tokenizer.events)
        self.accepted = frozenset(accepted_in(detector.about))
        self.reports: dict[tuple, SessionReport] = {}

    @property
    def p_news(self) -> float:
        """The p-value of an event that was never seen."""
        return (1 + self.detector.news * self.sessions) / (1 + self.sessions)

    def is_news(self, event: str) -> bool:
        """Whether an event was never seen, and not accepted either."""
        return event not in self.detector.tokenizer and event not in self.accepted

    def watching(self) -> Watching | None:
        """Looks at windows as they come; None for a detector that knows none."""
        if self.watch is None:
            return None
        share = (1 - SESSIONS) * self.promised * ROUNDING
        limit = share * (self.sessions + 1) / (self.watch.n + 1)
        return Watching(self.watch, limit)

    def judge(self, sessions: Sequence[Session], ended: bool) -> Iterator[Judged]:
        """Sessions, judged; those that are equal, once."""
        judged = [self.parted(session) for session in sessions]
        keys = [tuple(one.session.events) for one in judged]
        wanted = {key: None for key in keys if key and key not in self.reports}
        reports = self.detector.score(wanted, ended) if wanted else []
        if len(self.reports) > KEPT:
            known = {key: self.reports[key] for key in keys if key in self.reports}
            self.reports = known
        self.reports.update(zip(wanted, reports, strict=True))
        for one, key in zip(judged, keys, strict=True):
            one.report = self.reports.get(key)
            yield one

    def parted(self, session: Session) -> Judged:
        """A session, and apart from it what is new in it."""
        if self.known.issuperset(session.events):
            return Judged(session, None)
        kept, judged = Session(session.id), []
        numbers = session.line_numbers  # one, where a line is a session
        for event, number in zip_longest(
            session.events, numbers, fillvalue=numbers[-1]
        ):
            if event in self.detector.tokenizer:
                kept.events.append(event)
                kept.line_numbers.append(number)
            elif event not in self.accepted:
                judged.append((number, event, len(kept.events)))
        return Judged(kept, None, judged)

    def alarms(self, judged: Judged) -> Iterator[Alarm]:
        """The alarms that a session raises: one for each event that is new, and its."""
        size = self.detector.size
        for number, event, place in judged.news:
            before = judged.session.events[max(0, place - size) : place]
            yield self.of_news(judged.session.id, number, event, before=before)
        if judged.report is not None and self.is_odd(judged.report, judged.news):
            session = judged.session
            number = worst_line(session, judged.report.worst)
            last = session.events[-1]
            yield self.of_report(session.id, judged.report, number, last)

    def is_odd(self, report: SessionReport, news: Sequence[tuple]) -> bool:
        """Whether a session is odd, and not just where it lacks what its news replace.

        One fault is one alarm: where `GET /a 500` is new, `GET /a 200` is missing.
        """
        if not news or not report.anomalous:
            return report.anomalous
        if report.by == "order":
            return report.worst.position not in {place for *_, place in news}
        missing = [usual - often for _, often, usual in report.counts]
        return min(missing) < 0 or sum(missing) > len(news)

    def of_news(self, name: str, number: int, event: str, **known) -> Alarm:
        """The alarm for an event that was never seen."""
        price = self.detector.price
        return Alarm("new", event, self.p_news, price, number, name, **known)

    def expect(self, alarm: Alarm) -> None:
        """Lets an alarm for a new event say what was expected in its place."""
        if alarm.kind == "new" and alarm.worst is None:
            stream = self.detector.stream()
            stream.push_many({"": alarm.before} if alarm.before else {})
            alarm.worst = stream.look("", alarm.event)

    def of_report(
        self, name: str, report: SessionReport, number: int, last: str
    ) -> Alarm:
        """The alarm of a session that is unlike normal ones."""
        by = "counts" if report.by == "counts" and report.counts else "order"
        event = report.counts[0][0] if by == "counts" else report.worst.event
        p_value, score = report.p_value, report.score
        return Alarm(by, event, p_value, score, number, name, report, after=last)

    def of_odd(self, odd: Odd) -> Alarm:
        """The alarm of a window that is unlike normal ones."""
        score = odd.score * self.detector.price
        return Alarm(
            odd.kind, odd.event, odd.p_value, score, odd.number_of_line, odd=odd
        )


def accepted_in(about: dict) -> list[str]:
    """The events that were accepted, by what is said about a detector."""
    accepted = about.get("accepted", [])
    if not isinstance(accepted, list) or not all(isinstance(e, str) for e in accepted):
        raise ValueError(f"the events that it has accepted are none: {accepted!r:.100}")
    return accepted


def worst_line(session: Session, report: EventReport) -> int:
    """The number of the line that holds an event; of an end, the last one's.

    Where a line is a whole session there is only one.
    """
    return session.line_numbers[min(report.position, len(session.line_numbers) - 1)]


class Alarms:
    """The causes of alarm so far, each with its count."""

    def __init__(self):
        self.causes: dict[str, Alarm] = {}
        self.kinds: Counter[str] = Counter()  # of alarms, with those of one cause

    def add(self, alarm: Alarm) -> Alarm:
        """Takes in an alarm; gives its cause, which counts it."""
        self.kinds[alarm.kind] += 1
        cause = self.causes.setdefault(alarm.cause, alarm)
        if cause is not alarm:
            cause.count += 1
        elif len(self.causes) > CAUSES:
            del self.causes[next(iter(self.causes))]
        cause.last = alarm.line
        return cause

    def worst_first(self) -> list[Alarm]:
        """The causes, the least likely ones first."""
        return sorted(self.causes.values(), key=lambda a: (a.p_value, -a.score))

    def state(self) -> dict:
        """Which causes were told, as plain data."""
        told = {
            cause: [a.p_value, a.score, a.line, a.session, a.count, a.last]
            for cause, a in self.causes.items()
        }
        return {"causes": told, "kinds": dict(self.kinds)}

    def go_on(self, state: dict) -> None:
        """Goes on where `state` was told."""
        self.kinds.update(state["kinds"])
        for cause, (*first, count, last) in state["causes"].items():
            kind, event, *_ = cause.split("\n")
            told = Alarm(kind, event, *first, count=count, last=last)
            self.causes[cause] = told


class Tally:
    """How many sessions were judged, how many alarms they raised, and whether that is
    what was promised."""

    def __init__(self, judge: Judge):
        self.judge = judge
        self.sessions = self.with_news = self.low = 0
        self.recent: deque[tuple[bool, bool]] = deque(maxlen=RECENT)

    def add(self, judged: Judged) -> None:
        """Counts a session."""
        low = judged.report is not None and judged.report.p_value <= LOW
        self.sessions += 1
        self.low += low
        self.with_news += bool(judged.news)
        self.recent.append((low, bool(judged.news)))

    def state(self) -> list:
        """The counts, as plain data."""
        return [self.sessions, self.with_news, self.low, list(self.recent)]

    def go_on(self, state: list) -> None:
        """Goes on where `state` was told."""
        self.sessions, self.with_news, self.low, recent = state
        self.recent.extend((bool(low), bool(news)) for low, news in recent)

    def drift(self) -> list[str]:
        """In words, how the latest sessions differ from those that were promised for.

        By chance alone that is said once in ten thousand times: four deviations.
        """
        n, said = len(self.recent), []
        if n < FEW:
            return said
        shares = (LOW, max(self.judge.p_news, 1e-3))
        for name, promised, flags in zip(
            (f"have a p-value of at most {LOW:g}", "hold events that were never seen"),
            shares,
            zip(*self.recent, strict=True),
            strict=False,
        ):
            spread = math.sqrt(n * promised * (1 - promised))
            if sum(flags) > n * promised + 4 * spread + 1:
                said.append(
                    f"of the last {n:,} sessions {sum(flags):,} {name}; "
                    f"{n * promised:.0f} would be normal"
                )
        return said

    def to_dict(self) -> dict:
        """The tally as plain data."""
        names = ("sessions", "with_news", "low")
        return {name: getattr(self, name) for name in names} | {
            "promised": self.judge.promised,
            "foreseen": self.judge.p_news,
            "drift": self.drift(),
        }
