"""A detector's judgement of events as they come, one at a time or many at once."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from itertools import islice

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tinygpt_lib.anomalies import (
    AnomalyDetector,
    EventReport,
    Reading,
    SessionReport,
    weigh,
)
from tinygpt_lib.basics.checks import check_int
from tinygpt_lib.basics.devices import device_of
from tinygpt_lib.generation import KVCache
from tinygpt_lib.logs import END

TOGETHER = 1000  # sessions whose new events are read at once
KNOWN = 2000  # verdicts that are kept, for sessions that are equal


def batched(things: Iterable, size: int) -> Iterator[list]:
    """Things in lists of up to `size`."""  # itertools has it from Python 3.12 on
    rest = iter(things)
    while part := list(islice(rest, size)):
        yield part


@dataclass(slots=True)
class Running:
    """A session that is not over, as far as it was read."""

    ids: list[int]  # of the window that the members are in
    caches: list[KVCache]
    logits: Tensor  # (K, V): of the next event, by each member
    counts: Tensor  # (V,): how often each event has come
    totals: Tensor  # (K,): largest surprisal so far, or the sum
    n: int = 0  # surprisals in it
    seen: float = 0.0  # when the last event came
    worst: EventReport | None = None


def worse(first: EventReport | None, second: EventReport) -> EventReport:
    """The worse of two events: the first unknown one, else the more surprising one."""
    if first is None:
        return second
    later = not second.known or second.surprisal > first.surprisal
    return second if first.known and later else first


class EventStream:
    """Judges events as they come, of up to `max_sessions` sessions at a time.

    `on_close` is called for each session that is closed because it was silent for more
    than `max_age` (in the units of `now`), or because there was no more room: with its
    name, its report, and whether its end was counted. With `count_ends` off it never
    is. A running session takes about 64 kB for each member, however long it is.
    """

    def __init__(
        self,
        detector: AnomalyDetector,
        max_sessions: int = 1000,
        max_age: float = math.inf,
        count_ends: bool = True,
        on_close: Callable[[str, SessionReport, bool], None] = lambda *told: None,
    ):
        check_int("max_sessions", max_sessions, low=1)
        if not max_age >= 0:  # nor NaN
            raise ValueError(f"max_age is {max_age}; it must be at least 0")
        self.detector, self.on_close = detector, on_close
        self.max_sessions, self.max_age = max_sessions, max_age
        self.count_ends = count_ends
        self.running: dict[str, Running] = {}  # the one silent longest comes first
        self.device = device_of(detector.members[0])
        self.at_begin: Tensor | None = None  # what is expected first, (K, V)
        self.known: dict[tuple, SessionReport] = {}

    @torch.no_grad()
    def push(self, name: str, event: str, now: float = 0.0) -> EventReport:
        """Takes in the next event of a session, and says what it thinks of it."""
        self.expire(now)
        event = str(event)
        session = self.running.pop(name, None) or self.begin()
        self.make_room(1)
        self.running[name] = session
        token = self.detector.tokenizer.encode_session([event])[1].item()
        report = self.weigh(session, token, event)
        session.counts[token] += 1
        session.seen = now
        self.feed(session, token)
        return report

    @torch.no_grad()
    def push_many(self, arrived: Mapping[str, Sequence[str]], now: float = 0.0) -> None:
        """Takes in the next events of many sessions, as `push` does one by one.

        The models read what is new of all of them together, equal windows once.
        """
        self.expire(now)
        for names in batched(arrived, min(self.max_sessions, TOGETHER)):
            sessions = [self.running.pop(name, None) or self.begin() for name in names]
            self.make_room(len(names))
            self.running.update(zip(names, sessions, strict=True))
            self.read_on(sessions, [arrived[name] for name in names])
            for session in sessions:
                session.seen = now

    def read_on(self, sessions: list[Running], events: list[Sequence[str]]) -> None:
        """Weighs the new events of sessions, each of which follows what was read."""
        tokenizer, size = self.detector.tokenizer, self.detector.size
        windows: dict[tuple[int, ...], int] = {}  # and their places
        wanted: list[tuple[int, int]] = []  # windows and places that tell what comes
        tokens = [tokenizer.encode_session(new)[1:-1].tolist() for new in events]
        for session, new in zip(sessions, tokens, strict=True):
            ids, places = session.ids, []
            for token in new:
                places.append(len(ids) - 1)
                if len(ids) == size:
                    window = windows.setdefault(tuple(ids), len(windows))
                    wanted += [(window, place) for place in places]
                    ids, places = ids[size // 2 :], []
                ids = [*ids, token]
            window = windows.setdefault(tuple(ids), len(windows))
            wanted += [(window, place) for place in (*places, len(ids) - 1)]
            session.ids, session.caches = ids, []
        logits = self.logits_of(list(windows), wanted)
        came = torch.tensor([i for own in tokens for i in (*own, 0)]).to(self.device)
        reading = self.read_all(logits, came)  # of a 0 it is of no use
        start = 0
        for session, new, own in zip(sessions, events, tokens, strict=True):
            self.add_all(session, new, own, reading, start)
            session.logits = logits[:, start + len(new)].clone()
            start += len(new) + 1

    def read_all(self, logits: Tensor, ids: Tensor) -> Reading:
        """The reading of ids (N,) by logits (K, N, V), some at a time."""
        K, _, V = logits.shape
        some = max(1, 2**22 // V // K)
        pairs = zip(logits.split(some, 1), ids.split(some), strict=True)
        parts = [astuple(weigh(*pair, self.detector.price)) for pair in pairs]
        nats, *rest = zip(*parts, strict=True)
        nats = torch.cat(nats, 1).cpu().double()
        return Reading(nats, *(torch.cat(part).cpu() for part in rest))

    def logits_of(self, windows: list[tuple[int, ...]], wanted) -> Tensor:
        """What each member expects behind places of windows: (K, N, V)."""
        rows = [torch.tensor(window) for window in windows]
        members, found = self.detector.members, []
        order = sorted(range(len(wanted)), key=lambda i: wanted[i])
        vocab_size = self.detector.tokenizer.vocab_size
        at_once = max(1, 2**22 // vocab_size // len(members) // self.detector.size)
        chosen = iter(order)
        pending = next(chosen, None)
        for start in range(0, len(rows), at_once):
            ids = pad_sequence(rows[start : start + at_once], batch_first=True)
            ids, here = ids.to(self.device), []
            while pending is not None and wanted[pending][0] < start + at_once:
                here.append((wanted[pending][0] - start, wanted[pending][1]))
                pending = next(chosen, None)
            row, place = torch.tensor(here).T.to(self.device)
            found.append(torch.stack([member(ids)[row, place] for member in members]))
        back = torch.tensor(order).argsort().to(self.device)
        return torch.cat(found, 1)[:, back]

    def add_all(
        self, session: Running, events, tokens: list[int], reading: Reading, start: int
    ) -> None:
        """Adds new events to a session's totals, from place `start` of a reading."""
        if not tokens:
            return
        nats = reading.nats[:, start : start + len(tokens)]
        if self.detector.score_name == "max":
            session.totals = torch.maximum(session.totals, nats.amax(1))
        else:
            session.totals = session.totals + nats.sum(1)
        ids = torch.tensor(tokens)
        session.counts += torch.bincount(ids, minlength=len(session.counts))
        unknown = self.detector.tokenizer.unknown
        t = tokens.index(unknown) if unknown in tokens else int(nats.mean(0).argmax())
        place, session.n = session.n + t, session.n + len(tokens)
        known, most = tokens[t] != unknown, nats[:, t].mean().item()
        worst = session.worst
        if not worst or (worst.known and (not known or most > worst.surprisal)):
            report = self.detector.report_event(events[t], reading, start + t, place)
            session.worst = report

    def make_room(self, number: int) -> None:
        """Closes those silent longest, until there is room for some more."""
        while len(self.running) > self.max_sessions - number:
            oldest = next(iter(self.running))
            report = self.report(oldest)
            del self.running[oldest]
            self.on_close(oldest, report, False)

    @torch.no_grad()
    def look(self, name: str, event: str) -> EventReport:
        """What it thinks of an event that comes next, without taking it in."""
        session = self.running.get(name) or self.begin()
        token = self.detector.tokenizer.encode_session([event])[1:2].to(self.device)
        reading = weigh(session.logits[:, None], token, self.detector.price)
        return self.detector.report_event(event, reading, 0, session.n)

    def report(self, name: str, as_ended: bool = False) -> SessionReport:
        """The report of a running session; KeyError if it is none.

        Its end is not counted. It is judged among sessions whose end was not, either,
        or `as_ended` among those whose end was, as it will be. Neither the largest
        surprisal nor what there is too much of can shrink, so an alarm there stays one.
        """
        return self.reports([name], as_ended)[0]

    def reports(self, names: Iterable[str], as_ended: bool) -> list[SessionReport]:
        """The reports of running sessions, as `report` gives them."""
        return self.verdicts([self.running[name] for name in names], False, as_ended)

    @torch.no_grad()
    def close(self, name: str) -> SessionReport:
        """Ends a session and gives its report; KeyError if it is not running."""
        session = self.running.pop(name)
        if self.count_ends:
            self.weigh(session, self.detector.tokenizer.end, END)
        return self.verdicts([session], self.count_ends)[0]

    def expire(self, now: float) -> None:
        """Closes the sessions that have been silent for more than `max_age`."""
        while self.running:
            name, session = next(iter(self.running.items()))
            if now - session.seen <= self.max_age:
                break
            self.on_close(name, self.close(name), self.count_ends)

    def state(self) -> dict:
        """The sessions that are running, as plain data."""
        plain = {}
        for name, session in self.running.items():
            often = session.counts.nonzero()[:, 0].tolist()
            plain[name] = {
                "ids": session.ids,
                "counts": [(i, int(session.counts[i])) for i in often],
                "totals": session.totals.tolist(),
                "n": session.n,
                "seen": session.seen,
                "worst": asdict(session.worst),
            }
        return plain

    @torch.no_grad()
    def go_on(self, state: dict) -> None:
        """Goes on with the sessions that `state` told; ValueError for nonsense."""
        vocab_size = self.detector.tokenizer.vocab_size
        for name, kept in state.items():
            ids, worst = kept["ids"], EventReport(**kept["worst"])
            if not 0 < len(ids) <= self.detector.size:
                raise ValueError("sessions of no window")
            if not all(isinstance(i, int) and 0 <= i < vocab_size for i in ids):
                raise ValueError("events that are none")
            session = self.begin()
            session.ids, session.n, session.worst = ids, kept["n"], worst
            session.seen = float(kept["seen"])
            session.totals = torch.tensor(kept["totals"]).double()
            if session.totals.shape != (len(self.detector.members),):
                raise ValueError("totals of other models")
            for i, number in kept["counts"]:
                session.counts[i] = number
            session.logits = self.logits_of([tuple(ids)], [(0, len(ids) - 1)])[:, 0]
            self.running[name] = session

    def weigh(self, session: Running, token: int, event: str) -> EventReport:
        """The report of what came, and the session's totals with it."""
        ids = torch.tensor([token], device=self.device)
        reading = weigh(session.logits[:, None], ids, self.detector.price)
        nats = reading.nats[:, 0].cpu().double()
        if self.detector.score_name == "max":
            session.totals = torch.maximum(session.totals, nats)
        else:
            session.totals = session.totals + nats
        place, session.n = session.n, session.n + 1
        report = self.detector.report_event(event, reading, 0, place)
        session.worst = worse(session.worst, report)
        return report

    def verdicts(
        self, sessions: Sequence[Running], ended: bool, as_ended: bool = False
    ) -> list[SessionReport]:
        """The reports of sessions as far as they have come; of equal ones, one."""
        detector, among = self.detector, ended or as_ended
        mean = detector.score_name == "mean"
        nats = [s.totals / (max(1, s.n) if mean else 1) for s in sessions]
        rows = [session.counts.sqrt() for session in sessions]
        how = ended, among, detector.false_alarms, detector.score_name
        both = zip(nats, rows, strict=True)
        keys = [(*(x.numpy().tobytes() for x in pair), how) for pair in both]
        if len(self.known) + len(keys) > KNOWN:
            self.known.clear()
        new = {key: i for i, key in enumerate(keys) if key not in self.known}
        if new:
            parts = torch.stack([nats[i] for i in new.values()], 1)
            counts = torch.stack([rows[i] for i in new.values()])
            worst = [sessions[i].worst for i in new.values()]
            found = detector.verdicts(parts, counts, worst, ended, among)
            self.known.update(zip(new, found, strict=True))
        pairs = zip(keys, sessions, strict=True)
        return [replace(self.known[key], worst=s.worst) for key, s in pairs]

    def begin(self) -> Running:
        """A session of which only the begin was read."""
        vocab_size = self.detector.tokenizer.vocab_size
        totals = torch.zeros(len(self.detector.members), dtype=torch.float64)
        begin = self.detector.tokenizer.begin
        if self.at_begin is None:
            self.at_begin = self.logits_of([(begin,)], [(0, 0)])[:, 0]
        return Running([begin], [], self.at_begin, torch.zeros(vocab_size), totals)

    def feed(self, session: Running, token: int) -> None:
        """Lets the members read a token, in a new window if the last one is full."""
        members, size = self.detector.members, self.detector.size
        if len(session.ids) == size:
            session.ids = session.ids[size // 2 :]
            session.caches = []
        if not session.caches:
            session.caches = [KVCache(member) for member in members]
        session.ids.append(token)
        ids = torch.tensor([session.ids], device=self.device)
        logits = [cache.read(ids)[0] for cache in session.caches]
        session.logits = torch.stack(logits)  # (K, V)
