# generated from notebooks/text/16_anomalies.py: edit there
"""Anomalies: can surprise find faults?"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass
from operator import itemgetter
from random import Random
from typing import Self

import torch
from torch import Tensor

from tinygpt_lib.basics.checks import each
from tinygpt_lib.basics.devices import device_of
from tinygpt_lib.gpt import GPT
from tinygpt_lib.logs import END, EventTokenizer, in_windows, learn, log_config

__all__ = [
    "AnomalyDetector",
    "EventReport",
    "Reading",
    "SessionReport",
    "apart",
    "distances",
    "known_ends",
    "p_values",
    "read_sessions",
    "root_counts",
    "weigh",
]

# --- Has it ended? ---


def known_ends(
    sessions: Sequence, times: Sequence, moment: float, normal: tuple | None = None
) -> list[bool]:
    """Of which sessions the end is known at a moment, in seconds or lines of the log.

    Those that have been silent for longer than any other was after the same event and
    then went on: any of these, or of `normal`, which are (sessions, times).
    """
    pauses: dict[str, float] = {}
    for events, own in zip(*(normal or (sessions, times)), strict=True):
        for event, a, b in zip(events, own, own[1:], strict=False):
            pauses[event] = max(pauses.get(event, 0.0), b - a)
    return [
        not events or moment - own[-1] > pauses.get(events[-1], -1.0)
        for events, own in zip(sessions, times, strict=True)
    ]


# --- What the model says ---


@dataclass(slots=True)
class Reading:
    """What K models say of the events of a session, n with its end."""

    nats: Tensor  # (K, n): surprisal of each by each model
    rank: Tensor  # (n,): 1 and how many events were likelier, by all models together
    likeliest: Tensor  # (n, 3): ids that were expected most
    chances: Tensor  # (n, 3): and their probabilities


def weigh(logits: Tensor, ids: Tensor, price: float) -> Reading:
    """The reading of ids (...) that came, by logits (K, ..., V) of what might come.

    No event is dearer than `price`, which is what an unknown one costs. BEGIN gets no
    chance: it never comes within a session.
    """
    begin = torch.tensor(EventTokenizer.begin, device=ids.device)
    logs = logits.float().index_fill(-1, begin, -math.inf).log_softmax(-1)
    wanted = ids[..., None]  # (..., 1)
    nats = -logs.gather(-1, wanted.expand(len(logs), *wanted.shape))[..., 0]
    nats = nats.clamp(max=price).masked_fill(ids == EventTokenizer.unknown, price)
    chances = logs.exp().mean(0)  # (..., V)
    rank = 1 + (chances > chances.gather(-1, wanted)).sum(-1)
    best = chances.topk(min(3, chances.shape[-1]))
    return Reading(nats, rank, best.indices, best.values)


@torch.no_grad()
def read_sessions(
    members: Sequence[GPT], sessions: Sequence[Tensor], price: float
) -> list[Reading]:
    """Readings of sessions of ids (N,), each with its begin and end."""
    config, device = members[0].config, device_of(members[0])
    readings: list = [[] for _ in sessions]
    at_once = 2**22 // config.vocab_size // len(members)  # logits of 16 MB
    for ids, rows in in_windows(sessions, config.block_size, min(16_384, at_once)):
        ids = ids.to(device)
        logits = torch.stack([member(ids[:, :-1]) for member in members])
        found = weigh(logits, ids[:, 1:], price)
        nats, *rest = (part.cpu() for part in astuple(found))
        for row, (i, start, first, end) in enumerate(rows):
            own = [nats[:, row, first:end], *(part[row, first:end] for part in rest)]
            readings[i].append((start, own))
    for i, parts in enumerate(readings):
        parts = [own for _, own in sorted(parts, key=itemgetter(0))]
        nats, *rest = zip(*parts, strict=True)
        readings[i] = Reading(torch.cat(nats, 1), *map(torch.cat, rest))
    return readings


# --- What the counts say ---


def root_counts(sessions: Sequence[Tensor], vocab_size: int) -> Tensor:
    """Square roots of how often each event comes in sessions of ids: (N, V)."""
    rows = [torch.bincount(ids[1:-1], minlength=vocab_size) for ids in sessions]
    return torch.stack(rows).float().sqrt()


def distances(rows: Tensor, others: Tensor, ended: bool = True) -> Tensor:
    """L1 distances of root counts (N, V) from those of others (R, V): (N, R).

    Of a session that may go on, only what it has too much: the rest may still come.
    """
    found = torch.cdist(rows, others, p=1)
    if not ended:
        found = (found + rows.sum(1, keepdim=True) - others.sum(1)) / 2
    return found


def apart(rows: Tensor, ended: bool, most: int = 4096) -> tuple[Tensor, Tensor]:
    """The different rows (R, V), commonest first; how far each row is from another."""
    kinds, place, times = rows.unique(dim=0, return_inverse=True, return_counts=True)
    kept = kinds[times.argsort(descending=True, stable=True)[:most]]
    nearest = torch.zeros(len(kinds))  # where there are two of a kind
    for i in (times == 1).nonzero()[:, 0].split(1024):
        found = distances(kinds[i], kept, ended)
        itself = (kinds[i, None] == kept).all(-1)
        nearest[i] = found.masked_fill(itself, math.inf).amin(1)
    return kept, nearest[place]


# --- Where does an alarm begin? ---


def p_values(held_out: Sequence[Tensor], scores: Tensor) -> Tensor:
    """Conformal p-values (N,) of scores (K, N) by K models, each with its own fold.

    `held_out` are, for each model, the scores of normal sessions it has not learned
    from, in rising order. Scores that differ by rounding tie. Vovk, 2015.
    """
    at_least = torch.zeros(scores.shape[1:], dtype=torch.int64)
    for kept, own in zip(held_out, scores, strict=True):
        at_least += len(kept) - torch.searchsorted(kept, own.contiguous() - 1e-3)
    return (1 + at_least).double() / (1 + sum(map(len, held_out)))


# --- The detector ---


@dataclass(frozen=True, slots=True)
class EventReport:
    """What a detector says of one event."""

    position: int  # in its session, from 0; its end has the place after the last
    event: str
    surprisal: float  # nats
    rank: int  # 1: nothing was likelier
    expected: tuple[tuple[str, float], ...]  # likeliest events, with probabilities
    known: bool


@dataclass(frozen=True, slots=True)
class SessionReport:
    """What a detector says of one session."""

    score: float  # nats; a distance of 1 is worth log(N + 1)
    p_value: float  # what share of normal sessions is as odd
    anomalous: bool  # p_value is within the promised rate, or an event is unknown
    n_events: int
    n_unknown: int
    worst: EventReport | None  # an unknown event, else the most surprising one
    counts: tuple[tuple[str, int, int], ...]  # events, how often, how often elsewhere
    windowed: bool  # longer than what the models see at once
    by: str = "order"  # the witness with the smaller p-value, or "counts"


class AnomalyDetector:
    """Finds sessions that are unlike normal ones, and says what is odd about them.

    `normal` are root counts of normal sessions (R, V), {whether only of those that have
    ended}; `far` how far those were from another; `held_out` the surprise, by each
    member, at the sessions that it has not learned from, {whether their ends count}.
    `news`: what share of normal sessions will hold unknown events; `about`: plain data.
    """

    most = 4096  # kinds of events, and of their counts, that are kept

    def __init__(
        self,
        members: Sequence[GPT],
        tokenizer: EventTokenizer,
        normal: dict[bool, Tensor],
        far: dict[bool, Tensor],
        held_out: dict[bool, list[Tensor]],
        *,
        n_events: int,
        false_alarms: float,
        score: str = "max",
        news: float = 0.0,
        about: dict | None = None,
    ):
        self.members, self.tokenizer, self.n_events = list(members), tokenizer, n_events
        self.normal, self.far, self.held_out = normal, far, held_out
        self.price = math.log(n_events + 1)  # of an event that was never seen
        self.false_alarms, self.score_name, self.news = false_alarms, score, news
        self.about = dict(about or {})

    @staticmethod
    def deal(ended: Sequence[bool], folds: int, seed: int) -> list[list[int]]:
        """Places of sessions in folds, by chance; those that have ended are even."""
        order = list(range(len(ended)))
        Random(seed).shuffle(order)
        order.sort(key=lambda i: not ended[i])
        folds = min(folds, sum(ended))
        return [sorted(order[k::folds]) for k in range(folds)]

    @classmethod
    def fit(
        cls,
        sessions: Iterable[Sequence],
        *,
        ended: bool | Sequence[bool] = True,
        false_alarms: float = 0.002,
        score: str = "max",
        folds: int = 3,
        seed: int = 0,
        learn: Callable = learn,
        about: dict | None = None,
    ) -> Self:
        """A detector that knows normal sessions, of events (strings or ids).

        `ended` says of which the end is known; of the others it learns no end. It
        raises alarms for about a share `false_alarms` of sessions like these; those for
        unknown events come on top. ValueError where too few have ended.
        """
        sessions = [tuple(map(str, session)) for session in sessions]
        over = torch.tensor(each(ended, len(sessions)))
        if false_alarms * (1 + over.sum()) < 2 - 1e-9:
            raise ValueError(f"{over.sum()} sessions can't promise {false_alarms:g}")
        # 1. What there is to know.
        seen = Counter(event for session in sessions for event in {*session})
        often = sorted(seen, key=lambda event: (-seen[event], event))[: cls.most]
        tokenizer = EventTokenizer(sorted(often))
        coded = [tokenizer.encode_session(session) for session in sessions]
        new = {event for event in seen if seen[event] == 1} | {*seen} - {*often}
        news = sum(not new.isdisjoint(session) for session in sessions) / len(sessions)
        # 2. Counts, and how far each session is from another one.
        rows = root_counts(coded, tokenizer.vocab_size)
        # What would have been news raises an alarm of its own, and is left out here.
        extra = rows[:, [name in new for name in tokenizer.names]].sum(1)
        known = [tuple(e for e in session if e not in new) for session in sessions]
        normal, far = {}, {}
        for end, there in ((True, over), (False, torch.ones_like(over))):
            normal[end], distance = apart(rows[there], end, cls.most)
            far[end] = (distance - extra[there]).double().sort().values
        # 3. Models, each of which never sees one fold, and what they say of that.
        n_events = sum(map(len, sessions))
        parts = normal, far, {True: [], False: []}
        settings = {"n_events": n_events, "false_alarms": false_alarms, "score": score}
        detector = cls([], tokenizer, *parts, **settings, news=news, about=about)
        for k, fold in enumerate(cls.deal(over.tolist(), folds, seed)):
            rest = {*range(len(coded))}.difference(fold)
            stream = torch.cat([coded[i][: None if over[i] else -1] for i in rest])
            stream = stream[stream != tokenizer.unknown]
            model = learn(stream, log_config(tokenizer.vocab_size), seed + k)
            readings = detector.read([known[i] for i in fold], [model])
            for end, kept in detector.held_out.items():
                pairs = zip(fold, readings, strict=True)
                own = [reading for i, reading in pairs if over[i] or not end]
                scores = torch.cat([detector.surprise(one, end) for one in own])
                kept.append(scores.sort().values)
            detector.members.append(model)
        return detector

    def read(self, sessions: Sequence[tuple], members=None) -> list[Reading]:
        """What the members say of each event, and end, of sessions; equal ones once."""
        places = {session: i for i, session in enumerate(dict.fromkeys(sessions))}
        coded = [self.tokenizer.encode_session(session) for session in places]
        readings = read_sessions(members or self.members, coded, self.price)
        return [readings[places[session]] for session in sessions]

    def surprise(self, reading: Reading, ended: bool) -> Tensor:
        """The largest surprisal of a session, or the mean, by each member: (K,)."""
        nats = reading.nats if ended else reading.nats[:, :-1]
        if not nats.shape[1]:
            return torch.zeros(len(nats)).double()
        return (nats.mean(1) if self.score_name == "mean" else nats.amax(1)).double()

    def score(
        self, sessions: Iterable[Sequence], ended: bool | Sequence[bool] = True
    ) -> list[SessionReport]:
        """A report of each session; `ended` says of which the end is known."""
        sessions = [tuple(map(str, session)) for session in sessions]
        keys = list(zip(sessions, each(ended, len(sessions)), strict=True))
        different = list(dict.fromkeys(keys))
        readings = self.read([session for session, _ in different])
        read = dict(zip(different, readings, strict=True))
        done = {}
        for end in (True, False):
            own = [key for key in different if key[1] == end]
            for part in (own[i : i + 1000] for i in range(0, len(own), 1000)):
                known = [read[key] for key in part]
                found = self.reports([session for session, _ in part], known, end)
                done.update(zip(part, found, strict=True))
        return [done[key] for key in keys]

    def reports(
        self, sessions: Sequence, readings: Sequence[Reading], ended: bool = True
    ) -> list[SessionReport]:
        """The reports of sessions, which have ended or may go on, from readings."""
        coded = [self.tokenizer.encode_session(session) for session in sessions]
        worst: list[EventReport | None] = []
        for events, ids, reading in zip(sessions, coded, readings, strict=True):
            nats = reading.nats.mean(0)[: len(events) + ended]
            nats[ids[1 : len(nats) + 1] == self.tokenizer.unknown] += math.inf
            place = nats.argmax().item() if len(nats) else 0
            event = self.report_event((*events, END)[place], reading, place)
            worst.append(event if len(nats) else None)
        nats = torch.stack([self.surprise(reading, ended) for reading in readings], 1)
        rows = root_counts(coded, self.tokenizer.vocab_size)
        return self.verdicts(nats, rows, worst, ended)

    def report_event(
        self, event: str, reading: Reading, t: int, position: int | None = None
    ) -> EventReport:
        """The report of an event from place t of a reading."""
        names = [self.tokenizer.names[i] for i in reading.likeliest[t].tolist()]
        expected = tuple(zip(names, reading.chances[t].tolist(), strict=True))
        nats, rank = reading.nats[:, t].mean().item(), reading.rank[t].item()
        known = event == END or event in self.tokenizer
        place = t if position is None else position
        return EventReport(place, event, nats, rank, expected, known)

    def verdicts(
        self, nats: Tensor, rows: Tensor, worst, ended: bool, among: bool | None = None
    ) -> list[SessionReport]:
        """The reports, judged among sessions that have ended, or among all.

        By surprise (K, N), root counts (N, V), and reports of their worst events.
        """
        among, kinds = ended if among is None else among, self.normal[ended]
        # 1. How odd are they, by their order and by their counts?
        far, nearest = distances(rows, kinds, ended).min(1)
        p, scores = p_values(self.held_out[among], nats), nats.mean(0)
        by_counts = torch.zeros_like(p, dtype=torch.bool)
        if self.score_name == "max":
            q = p_values([self.far[among]], far[None].double())
            by_counts, p = q < p, (2 * torch.minimum(p, q)).clamp(max=1)
            scores = scores + self.price * far.double()
        # 2. Which counts are odd?
        usual = kinds[nearest]
        gaps = (rows - usual).abs() if ended else (rows - usual).clamp(min=0)
        gaps, places = gaps.topk(min(3, gaps.shape[1]))
        often, normally = (x.square().round().int() for x in (rows, usual))
        columns = scores, p, by_counts, often[:, 0], often.sum(1), places, gaps
        columns += often.gather(1, places), normally.gather(1, places)
        reports, size = [], self.members[0].config.block_size
        for event, *row in zip(worst, *(x.tolist() for x in columns), strict=True):
            score, p_value, counted, unknown, n, *most = row
            odd = [x for x in zip(*most, strict=True) if x[1] > 0]
            counts = tuple((self.tokenizer.names[i], a, b) for i, _, a, b in odd)
            alarm, by = p_value <= self.false_alarms, "counts" if counted else "order"
            how = n, unknown, event, counts, n >= size, by
            reports.append(SessionReport(score, p_value, alarm or unknown > 0, *how))
        return reports
