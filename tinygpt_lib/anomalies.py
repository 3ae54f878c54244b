# generated from notebooks/text/15_anomalies.py: edit there
"""Anomalies: can surprise find faults?"""

import math
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Self

import torch
from torch import Tensor

from tinygpt_lib.basics.checks import check_choice, check_float, check_int
from tinygpt_lib.basics.devices import device_of
from tinygpt_lib.basics.files import CheckpointError, read_tensors, write_tensors
from tinygpt_lib.generation import KVCache
from tinygpt_lib.gpt import GPT
from tinygpt_lib.logs import END, EventTokenizer, in_windows, log_preset
from tinygpt_lib.runs.checkpoints import fingerprint, load_checkpoint, save_checkpoint
from tinygpt_lib.runs.run import train
from tinygpt_lib.speed import FastGPT

__all__ = [
    "MOST_EVENTS",
    "SCORES",
    "TIE",
    "AnomalyDetector",
    "Calibrated",
    "EventReport",
    "EventStream",
    "Panel",
    "Reading",
    "Running",
    "SessionReport",
    "check_rate",
    "deal",
    "each",
    "events_of",
    "fit_member",
    "folds_of",
    "has_ended",
    "learnt_from",
    "longest_pauses",
    "p_values",
    "read_events",
    "read_sessions",
    "row_of",
    "score_of",
    "seen_in",
    "session_scores",
    "share_with_news",
    "weigh",
    "weights_of",
    "with_fault",
    "with_unknown",
    "worse",
]

# --- Has it ended? ---


def longest_pauses(
    sessions: Iterable[Sequence[str]], times: Iterable[Sequence[float]]
) -> dict[str, float]:
    """How long sessions were silent after each event at most, and then went on.

    In the units of `times`: seconds, or lines of the log.
    """
    pauses: dict[str, float] = {}
    for events, moments in zip(sessions, times, strict=True):
        for event, a, b in zip(events, moments, moments[1:], strict=False):
            pauses[event] = max(pauses.get(event, 0.0), b - a)
    return pauses


def has_ended(events: Sequence[str], silent: float, pauses: dict[str, float]) -> bool:
    """Whether a session that has been silent for some time is over."""
    return not events or silent > pauses.get(events[-1], -1.0)


# --- One session by hand ---

SCORES = {"max": math.inf, "power": 8.0, "mean": 1.0}  # name: power of the power mean


def score_of(name: str, nats: Tensor) -> Tensor:
    """The score called `name` of surprisals (..., n); 0 where there is no event."""
    if not nats.shape[-1]:
        return nats.new_zeros(nats.shape[:-1])
    power = SCORES[name]
    if power == math.inf:
        return nats.amax(-1)
    return (nats**power).mean(-1) ** (1 / power)


# --- Where does an alarm begin? ---

TIE = 1e-4  # nats: equal sessions must tie, however a batch rounds their scores


def p_values(held_out: Sequence[Tensor], scores: Tensor) -> Tensor:
    """Conformal p-values (N,) of scores (K, N) by K models, each with its own folds.

    `held_out` are, for each model, the scores of normal sessions it has not learnt
    from, in rising order; what is less by no more than TIE counts. Vovk, 2015.
    """
    at_least = torch.zeros(scores.shape[1:], dtype=torch.int64)
    for kept, own in zip(held_out, scores, strict=True):
        at_least += len(kept) - torch.searchsorted(kept, own - TIE)
    return (1 + at_least).double() / (1 + sum(map(len, held_out)))


# --- Several models, one reading ---


@dataclass(slots=True)
class Reading:
    """What K models say of the events of a session, n with its end."""

    nats: Tensor  # (K, n): surprisal of each by each model
    rank: Tensor  # (n,): 1 and how many events were likelier, by all models together
    likeliest: Tensor  # (n, 3): ids that were expected most
    chances: Tensor  # (n, 3): and their probabilities
    known: Tensor  # (K, n): whether it has learnt from such an event

    def at(self, place: int) -> Self:
        """The reading of a single event: the same without n."""
        rest = (self.rank, self.likeliest, self.chances)
        return type(self)(
            self.nats[:, place], *(part[place] for part in rest), self.known[:, place]
        )


def weigh(logits: Tensor, ids: Tensor) -> Reading:
    """The reading of ids (...) that came, by logits (K, ..., V) of what might come."""
    logs = logits.float().log_softmax(-1)
    wanted = ids[..., None]  # (..., 1)
    nats = -logs.gather(-1, wanted.expand(len(logs), *wanted.shape))[..., 0]
    chances = logs.exp().mean(0)  # (..., V)
    rank = 1 + (chances > chances.gather(-1, wanted)).sum(-1)
    best = chances.topk(min(3, chances.shape[-1]))
    known = torch.ones_like(nats, dtype=torch.bool)
    return Reading(nats, rank, best.indices, best.values, known)


class Panel:
    """K GPTs of one shape that read the same: ids (B, T) -> logits (K, B, T, V).

    BEGIN is given no chance: it never follows. For reading only; what they learn later
    is not seen. `met` (K, V)
    says which tokens each has learnt from: all but UNKNOWN, unless given.
    """

    def __init__(self, members: Sequence[GPT], met: Tensor | None = None):
        self.members = [member.eval() for member in members]
        self.config, self.device = members[0].config, device_of(members[0])
        shape = (len(members), self.config.vocab_size)
        if met is None:
            met = torch.arange(shape[1]).expand(shape) != EventTokenizer.unknown
        if met.shape != shape or met.dtype != torch.bool:
            raise ValueError(
                f"met must be {shape} of bool, got {tuple(met.shape)} of {met.dtype}"
            )
        self.met = met

    def cache(self) -> list[KVCache]:
        """An empty cache for each of them."""
        return [KVCache(member) for member in self.members]

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> Tensor:
        return self.without_begin([member(ids) for member in self.members])

    @torch.no_grad()
    def read(self, ids: Tensor, caches: list[KVCache]) -> Tensor:
        """Logits (K, V) after ids (N,), by caches that have read all but the end."""
        return self.without_begin([cache.read(ids[None]) for cache in caches])[:, 0]

    def without_begin(self, logits: list[Tensor]) -> Tensor:
        logits = torch.stack(logits)
        logits[..., EventTokenizer.begin] = -math.inf
        return logits

    def price(self, reading: Reading, ids: Tensor, n_events: int) -> None:
        """Puts log(n_events + 1) where a member has not learnt from what came: ids."""
        reading.known = self.met[:, ids]
        reading.nats[~reading.known] = math.log(n_events + 1)


def read_sessions(panel: Panel, sessions: Sequence[Tensor]) -> list[Reading]:
    """Readings of sessions of ids (N,), each with begin and end, by several models."""
    K, config = len(panel.members), panel.config
    top, readings = min(3, config.vocab_size), []
    for n in (len(ids) - 1 for ids in sessions):
        rank = torch.zeros(n, dtype=torch.int64)
        best = torch.zeros(n, top, dtype=torch.int64)
        known = torch.ones(K, n, dtype=torch.bool)
        chances = torch.zeros(n, top)
        readings.append(Reading(torch.zeros(K, n), rank, best, chances, known))
    # So many that the logits, K * V for each token, stay within 64 MB.
    at_once = min(16_384, 2**24 // config.vocab_size) // K
    for ids, rows in in_windows(sessions, config.block_size, at_once):
        ids = ids.to(panel.device)
        found = weigh(panel(ids[:, :-1]), ids[:, 1:])
        names = ("rank", "likeliest", "chances")
        nats, *rest = (getattr(found, name).cpu() for name in ("nats", *names))
        for row, (i, s, first, end) in enumerate(rows):
            to, here = readings[i], slice(s + first, s + end)
            to.nats[:, here] = nats[:, row, first:end]
            for name, part in zip(names, rest, strict=True):
                getattr(to, name)[here] = part[row, first:end]
    return readings


# --- What was never seen ---


def read_events(
    panel: Panel,
    tokenizer: EventTokenizer,
    n_events: int,
    sessions: Sequence[Sequence[str]],
) -> list[Reading]:
    """Readings of sessions of events, ends included, by models of `n_events` events.

    What a model has not learnt from is worth log(n_events + 1) to it. What none has
    learnt from has the last rank, and they read on as if it had not been there. Equal
    sessions are read once.
    """
    sessions = [tuple(session) for session in sessions]
    places = {session: i for i, session in enumerate(dict.fromkeys(sessions))}
    whole = [tokenizer.encode_session(session) for session in places]
    met = panel.met.any(0)
    given = [met[ids] for ids in whole]
    kept = [ids[there] for ids, there in zip(whole, given, strict=True)]
    readings = read_sessions(panel, kept)
    for i, there in enumerate(given):
        panel.price(readings[i], kept[i][1:], n_events)
        if not there.all():
            readings[i] = with_unknown(readings[i], there[1:], tokenizer, n_events)
    return [readings[places[session]] for session in sessions]


def with_unknown(
    reading: Reading, given: Tensor, tokenizer: EventTokenizer, n_events: int
) -> Reading:
    """The reading of all events, from that of those that were `given` (n,)."""
    place = given.cumsum(0) - given.long()  # of an unknown event: the next known one
    nats, rank = reading.nats[:, place], reading.rank[place]
    nats[:, ~given] = math.log(n_events + 1)
    rank[~given] = tokenizer.vocab_size
    known = reading.known[:, place] & given
    likeliest, chances = reading.likeliest[place], reading.chances[place]
    return Reading(nats, rank, likeliest, chances, known)


# --- The detector ---

MOST_EVENTS = 4096  # different ones that a detector knows


def deal(sessions: Sequence, folds: int, seed: int) -> list[list]:
    """Sessions dealt into folds of about the same size, by chance, in their order."""
    order = list(range(len(sessions)))
    Random(seed).shuffle(order)
    return [[sessions[i] for i in sorted(order[k::folds])] for k in range(folds)]


def folds_of(
    sessions: Sequence, ended: Sequence[bool], folds: int, seed: int, rate: float
) -> list[list[tuple]]:
    """Folds of sessions in their order, each with whether it has ended.

    Those that have ended are dealt apart from the others, so that each fold has some.
    ValueError where too few have ended to promise a rate, or to keep one back.
    """
    over, going_on = (
        [i for i, e in enumerate(ended) if bool(e) is kind] for kind in (True, False)
    )
    try:
        check_rate(rate, len(over))
        if len(over) < 2:
            raise ValueError("one session is not enough: none would be kept back")
    except ValueError as error:
        if not going_on:
            raise
        raise ValueError(
            f"of {len(sessions):,} sessions {len(going_on):,} may go on, and only the "
            f"others tell of ends: {error}"
        ) from error
    count = min(folds, len(over))
    parts = zip(deal(over, count, seed), deal(going_on, count, seed), strict=True)
    return [[(sessions[i], bool(ended[i])) for i in sorted(a + b)] for a, b in parts]


def learnt_from(part: Sequence[tuple], tokenizer: EventTokenizer) -> Tensor:
    """The known events of a fold as a stream of ids (N,), without ends not known."""
    ids = []
    for session, over in part:
        whole = tokenizer.encode_session([e for e in session if e in tokenizer])
        ids.append(whole if over else whole[:-1])
    return torch.cat(ids)


def seen_in(sessions: Iterable[Sequence[str]]) -> Counter[str]:
    """In how many sessions each event stands."""
    return Counter(event for session in sessions for event in {*session})


def share_with_news(sessions: Sequence[Sequence[str]], known: Container[str]) -> float:
    """Of all sessions, those with an event that is unknown or stands in no other."""
    counts = seen_in(sessions)
    news = {event for event, n in counts.items() if n == 1 or event not in known}
    return sum(not news.isdisjoint(session) for session in sessions) / len(sessions)


def fit_member(
    ids: Tensor, kept_back: Tensor, size: int, preset: Callable, seed: int, device
) -> GPT:
    """A GPT that has learnt from a stream of ids (N,), by the settings of a preset."""
    model_config, train_config = preset(size)
    least = model_config.block_size + 1  # a short log is read several times
    ids, kept_back = (t.repeat(-(-least // len(t))) for t in (ids, kept_back))
    plan = replace(train_config, seed=seed, eval_every=0)
    gpu = [device] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(gpu):  # the caller's random numbers stay as they are
        torch.manual_seed(seed)
        model = FastGPT(model_config).to(device)
        train(model, ids, kept_back, plan, progress=False)
    return model.eval()


def session_scores(
    name: str, readings: Sequence[Reading], ended: bool, unknown: bool = False
) -> Tensor:
    """Scores (K, N) of N sessions by K models: with their ends, with unknown events.

    Unknown is to each model what it has not learnt from.
    """
    scores = []
    for reading in readings:
        n = reading.nats.shape[1] - (not ended)
        nats, known = reading.nats[:, :n], reading.known[:, :n]
        if unknown or known.all():
            scores.append(score_of(name, nats))
        else:
            rows = zip(nats, known, strict=True)
            scores.append(torch.stack([score_of(name, own[k]) for own, k in rows]))
    return torch.stack(scores, dim=1).double()


def events_of(session: Sequence) -> list[str]:
    """The events of a session as strings; ValueError for a text, which is none."""
    if isinstance(session, str):
        raise ValueError(
            f"a session is a list of events, and {session[:50]!r} is a text: split it"
        )
    return [str(event) for event in session]


def each(value: bool | Sequence[bool], count: int) -> list[bool]:
    """One value for each of `count` things, from one for all or from as many."""
    values = [value] * count if isinstance(value, bool) else [*map(bool, value)]
    if len(values) != count:
        raise ValueError(f"{len(values)} values were given for {count} sessions")
    return values


def check_rate(false_alarms: float, n_normal: int | None = None) -> None:
    """ValueError for a rate that is none, or that n normal sessions can't promise."""
    allowed = "above 0 and below 1"
    check_float("false_alarms", false_alarms, allowed, lambda rate: 0 < rate < 1)
    if n_normal is not None and false_alarms * (n_normal + 1) < 1 - 1e-9:
        needed = math.ceil(1 / false_alarms - 1e-9) - 1
        least, unit = 1 / (n_normal + 1), 10 ** -len(str(n_normal + 1)) / 10
        advice = f", or allow a rate of {math.ceil(least / unit) * unit:.3g}"
        raise ValueError(
            f"a false-alarm rate of {false_alarms:g} needs at least {needed:,} normal "
            f"sessions, and there are {n_normal:,}: give more"
            f"{advice if n_normal else ''}"
        )


def weights_of(member: GPT) -> str:
    """A sha256 over a model's weights."""
    return fingerprint(*member.state_dict().values())


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

    score: float  # nats, unknown events counted
    p_value: float  # what share of normal sessions scores as much; by known events
    anomalous: bool  # p_value is within the promised rate, or an event is unknown
    n_events: int
    n_unknown: int
    worst: EventReport | None  # an unknown event, else the most surprising one
    windowed: bool  # longer than what the models see at once


class Calibrated:
    """Promises a rate of false alarms, by the scores of normal sessions.

    `held_out` are scores by each member, those of longest ago first: {(name of the
    score, are ends counted): [(n,), ...]}. It, `score_name` and `false_alarms` can be
    set anew. ValueError for a rate that so few can't promise.
    """

    def __init__(
        self,
        held_out: dict[tuple[str, bool], list[Tensor]],
        *,
        score: str,
        false_alarms: float,
        turn: int = 0,
    ):
        self._held_out = self._sorted = {}
        self._score_name, self._false_alarms = score, false_alarms
        self.held_out, self.score_name = held_out, score
        K = len(held_out[score, True])
        check_int("turn", turn, low=0, high=K - 1)
        self.turn = turn  # whose held-out scores are renewed next

    @property
    def held_out(self) -> dict[tuple[str, bool], list[Tensor]]:
        """Scores of normal sessions by members that have not learnt from them."""
        return self._held_out

    @held_out.setter
    def held_out(self, held_out: dict[tuple[str, bool], list[Tensor]]) -> None:
        check_rate(self.false_alarms, sum(map(len, held_out[next(iter(SCORES)), True])))
        self._held_out = held_out
        self._sorted = {
            key: [scores.sort().values for scores in by_member]
            for key, by_member in held_out.items()
        }

    @property
    def score_name(self) -> str:
        """The score of a session by its events: a name in SCORES."""
        return self._score_name

    @score_name.setter
    def score_name(self, name: str) -> None:
        check_choice("score", name, SCORES)
        self._score_name = name

    @property
    def false_alarms(self) -> float:
        """The share of normal sessions that may raise an alarm by their p-value."""
        return self._false_alarms

    @false_alarms.setter
    def false_alarms(self, rate: float) -> None:
        check_rate(rate, self.n_held_out)
        self._false_alarms = rate

    @property
    def n_held_out(self) -> int:
        """How many normal sessions stand behind the p-value of one that has ended."""
        return sum(map(len, self.held_out[self.score_name, True]))

    def p_value(self, scores: Tensor, ended: bool, name: str | None = None) -> float:
        """The p-value of a session from its scores (K, 1), its end counted or not.

        `name` says which scores they are (default: the detector's own).
        """
        held_out = self._sorted[name or self.score_name, ended]
        return p_values(held_out, scores).item()

    def renew(self, readings: Sequence[Reading], ended: Sequence[bool]) -> None:
        """Puts the scores of normal sessions in the place of the oldest ones."""
        K, anew = len(self.held_out[self.score_name, True]), {}
        for (name, with_end), by_member in self.held_out.items():
            anew[name, with_end] = kept = list(by_member)
            for k in range(K):
                own = [
                    reading
                    for i, reading in enumerate(readings)
                    if (i + self.turn) % K == k and (ended[i] or not with_end)
                ]
                if own:
                    new = session_scores(name, own, with_end)[k]
                    kept[k] = torch.cat([kept[k], new])[len(new) :]
        self.turn = (self.turn + len(readings)) % K
        self.held_out = anew


class AnomalyDetector(Calibrated):
    """Finds sessions that are unlike normal ones, and the event that makes them so.

    Made by `fit` or `load`; the rate and the score can be set anew, see `Calibrated`.
    `news`: what share of normal sessions will hold unknown events; `about`: plain data
    that is kept with it.
    """

    def __init__(
        self,
        members: Sequence[GPT],
        tokenizer: EventTokenizer,
        held_out: dict[tuple[str, bool], list[Tensor]],
        *,
        met: Tensor,
        n_events: int,
        false_alarms: float,
        score: str,
        news: float = 0.0,
        turn: int = 0,
        about: dict | None = None,
    ):
        check_int("n_events", n_events, low=1)
        check_float("news", news, "from 0 to 1", lambda share: 0 <= share <= 1)
        super().__init__(held_out, score=score, false_alarms=false_alarms, turn=turn)
        if any(len(kept) != len(members) for kept in held_out.values()):
            raise ValueError(f"held_out must hold scores of {len(members)} members")
        self.members, self.panel = list(members), Panel(members, met)
        always = met[:, [tokenizer.begin, tokenizer.end]]
        if met[:, tokenizer.unknown].any() or not always.all():
            raise ValueError("met must hold begin and end for all, UNKNOWN for none")
        if not met[:, tokenizer.unknown + 1 :].any(0).all():
            raise ValueError("met has an event of the tokenizer that no member has met")
        self.tokenizer, self.n_events, self.news = tokenizer, n_events, news
        self.about = dict(about or {})

    @classmethod
    def fit(
        cls,
        sessions: Iterable[Sequence],
        *,
        ended: bool | Sequence[bool] = True,
        false_alarms: float = 0.002,
        score: str = "max",
        folds: int = 10,
        seed: int = 0,
        preset: Callable = log_preset,
        device: str | torch.device = "cpu",
        about: dict | None = None,
        progress: Callable[[str], None] = lambda text: None,
    ) -> Self:
        """A detector that knows normal sessions, of events (strings or ids).

        `ended` says of which the end is known; of the others it learns no end. (What
        cuts them off must have nothing to do with what they would have told next.) By
        p-value it raises alarms for about a share `false_alarms` of sessions like
        these, or fewer; those for unknown events come on top. `progress` is told of
        each model. ValueError where the sessions that have ended are too few.
        """
        check_choice("score", score, SCORES)
        check_int("folds", folds, low=2)
        sessions = [events_of(session) for session in sessions]
        parts = folds_of(
            sessions, each(ended, len(sessions)), folds, seed, false_alarms
        )
        counts = seen_in(sessions)
        often = sorted(counts, key=lambda event: (-counts[event], event))
        if not often:
            raise ValueError("the sessions hold no event: there is nothing to know")
        tokenizer = EventTokenizer(sorted(often[:MOST_EVENTS]))
        streams = [learnt_from(part, tokenizer) for part in parts]
        n_events = max(1, sum(map(len, streams)) * (len(parts) - 1) // len(parts))
        kinds = (True, False)  # with the ends of sessions, and without
        held_out = {(name, with_end): [] for name in SCORES for with_end in kinds}
        members, size = [], tokenizer.vocab_size
        met = torch.zeros(len(parts), size, dtype=torch.bool)
        for i, part in enumerate(parts):
            progress(f"model {i + 1} of {len(parts)}")
            rest = torch.cat(streams[:i] + streams[i + 1 :])
            met[i, rest] = True
            members.append(fit_member(rest, streams[i], size, preset, seed + i, device))
            panel = Panel(members[-1:], met[i : i + 1])
            own = [session for session, _ in part]
            readings = read_events(panel, tokenizer, n_events, own)
            whole = [r for r, (_, over) in zip(readings, part, strict=True) if over]
            for (name, with_end), scores in held_out.items():
                some = whole if with_end else readings
                scores.append(session_scores(name, some, with_end)[0])
        return cls(
            members,
            tokenizer,
            held_out,
            met=met,
            n_events=n_events,
            false_alarms=false_alarms,
            score=score,
            news=share_with_news(sessions, tokenizer),
            about=about,
        )

    def read(self, sessions: Iterable[Sequence]) -> list[Reading]:
        """What the members say of each event, and end, of sessions."""
        sessions = [events_of(session) for session in sessions]
        return read_events(self.panel, self.tokenizer, self.n_events, sessions)

    def score(
        self, sessions: Iterable[Sequence], ended: bool | Sequence[bool] = True
    ) -> list[SessionReport]:
        """A report of each session; `ended` says of which the end is known."""
        sessions = [tuple(events_of(session)) for session in sessions]
        given = each(ended, len(sessions))
        readings, done = self.read(sessions), {}
        for key, reading in zip(
            zip(sessions, given, strict=True), readings, strict=True
        ):
            if key not in done:
                done[key] = self.report(key[0], reading, key[1])
        return [done[key] for key in zip(sessions, given, strict=True)]

    def explain(self, session: Sequence) -> list[EventReport]:
        """A report of each event of a session, and of its end."""
        events = events_of(session)
        reading = self.read([events])[0]
        return [
            self.report_event(t, event, reading.at(t))
            for t, event in enumerate([*events, END])
        ]

    def report(
        self, events: Sequence[str], reading: Reading, ended: bool = True
    ) -> SessionReport:
        """The report of a session from its reading."""
        unknown = [t for t, event in enumerate(events) if event not in self.tokenizer]
        worst = None
        if ended or events:
            nats = reading.nats if ended else reading.nats[:, :-1]
            place = unknown[0] if unknown else nats.mean(0).argmax().item()
            event = events[place] if place < len(events) else END
            worst = self.report_event(place, event, reading.at(place))
        own, whole = (
            session_scores(self.score_name, [reading], ended, with_unknown)
            for with_unknown in (False, True)
        )
        score = whole.mean().item()
        return self.verdict(own, score, ended, len(events), len(unknown), worst)

    def report_event(self, place: int, event: str, reading: Reading) -> EventReport:
        """The report of one event from its reading, of nats (K,)."""
        names = [self.tokenizer.names[i] for i in reading.likeliest.tolist()]
        return EventReport(
            position=place,
            event=event,
            surprisal=reading.nats.mean().item(),
            rank=reading.rank.item(),
            expected=tuple(zip(names, reading.chances.tolist(), strict=True)),
            known=bool(reading.known.any()),
        )

    def verdict(
        self,
        scores: Tensor,
        score: float,
        ended: bool,
        n_events: int,
        n_unknown: int,
        worst: EventReport | None,
        name: str | None = None,
    ) -> SessionReport:
        """The report of a session from the scores (K, 1) of its known events."""
        p_value = self.p_value(scores, ended, name)
        return SessionReport(
            score=score,
            p_value=p_value,
            anomalous=p_value <= self.false_alarms or n_unknown > 0,
            n_events=n_events,
            n_unknown=n_unknown,
            worst=worst,
            windowed=n_events - n_unknown + 1 > self.panel.config.block_size,
        )

    def recalibrate(
        self, sessions: Sequence[Sequence], ended: bool | Sequence[bool] = True
    ) -> None:
        """Puts sessions known to be normal in the place of the oldest held-out ones."""
        self.renew(self.read(sessions), each(ended, len(sessions)))

    def stream(self, **settings) -> "EventStream":
        """Judges events as they come; settings as for EventStream."""
        return EventStream(self, **settings)

    def save(self, folder: str | Path) -> None:
        """Writes the detector into a folder: JSON and safetensors, nothing else."""
        folder = Path(folder)
        for i, member in enumerate(self.members):
            save_checkpoint(folder / f"member-{i}", member, self.tokenizer)
        tensors = {
            f"{name}-{'ended' if ended else 'open'}-{i}": scores
            for (name, ended), by_member in self.held_out.items()
            for i, scores in enumerate(by_member)
        }
        tensors["met"] = self.panel.met
        settings = {
            "members": [weights_of(member) for member in self.members],
            "n_events": self.n_events,
            "false_alarms": self.false_alarms,
            "score": self.score_name,
            "news": self.news,
            "turn": self.turn,
            "about": self.about,
        }
        write_tensors(folder / "detector.safetensors", tensors, settings)

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> Self:
        """The detector that `save` wrote; CheckpointError for anything else."""
        path = Path(folder) / "detector.safetensors"
        tensors, settings = read_tensors(path)
        try:
            digests = settings.pop("members")
            count = len(digests)
            check_int("members", count, low=1, high=len(tensors))
            held_out = {
                (name, ended): [
                    tensors[f"{name}-{'ended' if ended else 'open'}-{i}"]
                    for i in range(count)
                ]
                for name in SCORES
                for ended in (True, False)
            }
            loaded = [
                load_checkpoint(Path(folder) / f"member-{i}", device)
                for i in range(count)
            ]
            members, tokenizers = zip(*loaded, strict=True)
            if any(t.to_dict() != tokenizers[0].to_dict() for t in tokenizers):
                raise ValueError("its members have different tokenizers")
            if [weights_of(member) for member in members] != digests:
                raise ValueError("its members are not those that it was saved with")
            return cls(members, tokenizers[0], held_out, met=tensors["met"], **settings)
        except CheckpointError:
            raise
        except KeyError as error:
            raise CheckpointError(
                f"{path} lacks {error}: no detector, or of another version; fit anew"
            ) from error
        except (ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise CheckpointError(f"{path} is no detector: {error}") from error


# --- Are the explanations right? ---


def with_fault(
    session: Sequence[str], kind: str, events: Sequence[str], rng: Random
) -> tuple[list[str], set[int]]:
    """A session with an event of `events` inserted, or one deleted or swapped.

    And the places where it is wrong, more than one where that can't be told. `kind` is
    "insert", "delete" or "swap"; the session has to hold two different events.
    """
    wrong, place = list(session), rng.randrange(len(session))
    if kind == "swap":
        unlike = [i for i in range(len(wrong) - 1) if wrong[i] != wrong[i + 1]]
        place = rng.choice(unlike)
        wrong[place : place + 2] = wrong[place + 1], wrong[place]
        return wrong, {place, place + 1}
    if kind == "insert":
        wrong.insert(place, rng.choice(events))
        return wrong, set(row_of(wrong, place))
    row = row_of(wrong, place)
    del wrong[place]
    return wrong, {row.stop - 1}  # where the last of the row should be


def row_of(events: Sequence[str], place: int) -> range:
    """The places around one that hold the same event."""
    first = last = place
    while first > 0 and events[first - 1] == events[place]:
        first -= 1
    while last + 1 < len(events) and events[last + 1] == events[place]:
        last += 1
    return range(first, last + 1)


# --- One event at a time ---


@dataclass(slots=True)
class Running:
    """A session that is not over, as far as it was read."""

    cache: list[KVCache]
    logits: Tensor  # (K, V): of the next event, by each member
    recent: deque[int]  # the tokens that the next window begins with
    ids: list[int]  # the tokens of this window
    seen: float  # when the last event came
    # Of known events, and of all, (2, K): largest surprisal or sum of powers.
    totals: Tensor
    counts: Tensor  # (2, K): of how many events
    n_events: int = 0
    n_unknown: int = 0
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
        self.score_name = detector.score_name  # it may be set anew there, not here
        self.power = SCORES[self.score_name]
        self.running: dict[str, Running] = {}  # the one silent longest comes first
        self.panel, self.block_size = detector.panel, detector.panel.config.block_size

    @torch.no_grad()
    def push(self, name: str, event: str, now: float = 0.0) -> EventReport:
        """Takes in the next event of a session, and says what it thinks of it."""
        self.expire(now)
        detector, event = self.detector, str(event)
        session = self.running.pop(name, None) or self.begin(now)
        while len(self.running) >= self.max_sessions:
            oldest = next(iter(self.running))
            report = self.report(oldest)
            del self.running[oldest]
            self.on_close(oldest, report, False)
        self.running[name] = session
        token = detector.tokenizer.encode_session([event])[1]
        reading = self.weigh(session, token)
        if event in detector.tokenizer:
            self.feed(session, token.item())
        else:
            reading.rank.fill_(detector.tokenizer.vocab_size)
            session.n_unknown += 1
        report = detector.report_event(session.n_events, event, reading)
        session.worst = worse(session.worst, report)
        session.n_events += 1
        session.seen = now
        return report

    def report(self, name: str, as_ended: bool = False) -> SessionReport:
        """The report of a running session; KeyError if it is none.

        Its end is not counted. It is judged among sessions whose end was not, either,
        or `as_ended` among those whose end was, as it will be: whose largest surprisal
        raises an alarm there will still raise it when it ends.
        """
        return self.verdict(self.running[name], as_ended)

    @torch.no_grad()
    def close(self, name: str) -> SessionReport:
        """Ends a session and gives its report; KeyError if it is not running."""
        session = self.running.pop(name)
        if not self.count_ends:
            return self.verdict(session, False)
        reading = self.weigh(session, torch.tensor(self.detector.tokenizer.end))
        report = self.detector.report_event(session.n_events, END, reading)
        session.worst = worse(session.worst, report)
        return self.verdict(session, True)

    def expire(self, now: float) -> None:
        """Closes the sessions that have been silent for more than `max_age`."""
        while self.running:
            name, session = next(iter(self.running.items()))
            if now - session.seen <= self.max_age:
                break
            self.on_close(name, self.close(name), self.count_ends)

    def weigh(self, session: Running, token: Tensor) -> Reading:
        """The reading of the token that came, and the session's totals with it."""
        reading = weigh(session.logits, token.to(self.panel.device))
        self.panel.price(reading, token, self.detector.n_events)
        counted = torch.stack([reading.known, torch.ones_like(reading.known)])
        nats = reading.nats.cpu().double() * counted
        if self.power == math.inf:
            session.totals = torch.maximum(session.totals, nats)
        else:
            session.totals = session.totals + nats**self.power
        session.counts = session.counts + counted
        return reading

    def verdict(self, session: Running, ended: bool) -> SessionReport:
        """The report of a session among those whose end was counted, or was not."""
        scores = session.totals
        if self.power != math.inf:
            means = session.totals / session.counts.clamp(min=1)
            scores = means ** (1 / self.power)
        return self.detector.verdict(
            scores[0, :, None],
            scores[1].mean().item(),
            ended,
            session.n_events,
            session.n_unknown,
            session.worst,
            self.score_name,
        )

    def begin(self, now: float) -> Running:
        """A session of which only the begin was read."""
        recent: deque[int] = deque(maxlen=self.block_size - self.block_size // 2)
        none = torch.zeros(2, len(self.panel.members), dtype=torch.float64)
        cache, logits = self.panel.cache(), torch.empty(0)
        session = Running(cache, logits, recent, [], now, none, none)
        self.feed(session, self.detector.tokenizer.begin)
        return session

    def feed(self, session: Running, token: int) -> None:
        """Lets the members read a token, in a new window if the last one is full."""
        session.ids.append(token)
        if len(session.ids) > self.block_size:
            session.cache, session.ids = self.panel.cache(), [*session.recent, token]
        session.recent.append(token)
        ids = torch.tensor(session.ids, device=self.panel.device)
        session.logits = self.panel.read(ids, session.cache)
