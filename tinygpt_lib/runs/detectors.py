"""Chapter 16's detector, safe to use: checked, kept in a folder, judging as it goes."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tinygpt_lib import anomalies
from tinygpt_lib.anomalies import EventReport, SessionReport, weigh
from tinygpt_lib.basics.checks import check_choice, check_float, check_int, each
from tinygpt_lib.basics.devices import device_of
from tinygpt_lib.basics.files import CheckpointError, read_tensors, write_tensors
from tinygpt_lib.generation import KVCache
from tinygpt_lib.logs import END, learn
from tinygpt_lib.runs.checkpoints import fingerprint, load_checkpoint, save_checkpoint
from tinygpt_lib.speed import FastConfig

SCORES = ("max", "mean")
TOGETHER = 1000  # sessions whose new events are read at once


def check_rate(false_alarms: float, n_normal: int | None = None) -> None:
    """ValueError for a rate that is none, or that n normal sessions can't promise."""
    allowed = "above 0 and below 1"
    check_float("false_alarms", false_alarms, allowed, lambda rate: 0 < rate < 1)
    if n_normal is not None and false_alarms * (n_normal + 1) < 2 - 1e-9:
        needed = math.ceil(2 / false_alarms - 1e-9) - 1
        least, unit = 2 / (n_normal + 1), 10 ** -len(str(n_normal + 1)) / 10
        advice = f", or allow a rate of {math.ceil(least / unit) * unit:.3g}"
        raise ValueError(
            f"a false-alarm rate of {false_alarms:g} needs at least {needed:,} normal "
            f"sessions, and there are {n_normal:,}: give more"
            f"{advice if n_normal > 1 else ''}"
        )


def check_session(session: Sequence) -> Sequence:
    """The session; ValueError for a text, which is none."""
    if isinstance(session, str):
        raise ValueError(
            f"a session is a list of events, and {session[:50]!r} is a text: split it"
        )
    return session


def weights_of(member) -> str:
    """A sha256 over a model's weights."""
    return fingerprint(*member.state_dict().values())


class AnomalyDetector(anomalies.AnomalyDetector):
    __doc__ = anomalies.AnomalyDetector.__doc__

    def __init__(self, members, tokenizer, normal, far, held_out, **settings):
        check_int("n_events", settings["n_events"], low=1)
        share = settings.get("news", 0.0)
        check_float("news", share, "from 0 to 1", lambda share: 0 <= share <= 1)
        check_choice("score", settings.get("score", "max"), SCORES)
        check_rate(settings["false_alarms"])
        super().__init__(members, tokenizer, normal, far, held_out, **settings)

    @property
    def size(self) -> int:
        """How many events the models see at once."""
        return self.members[0].config.block_size

    @property
    def false_alarms(self) -> float:
        """The share of normal sessions that may raise an alarm by their p-value."""
        return self._false_alarms

    @false_alarms.setter
    def false_alarms(self, rate: float) -> None:
        kept = self.held_out[True]
        check_rate(rate, sum(map(len, kept)) if kept else None)
        self._false_alarms = rate

    @classmethod
    def fit(
        cls,
        sessions,
        *,
        ended: bool | Sequence[bool] = True,
        false_alarms: float = 0.002,
        folds: int = 3,
        seed: int = 0,
        learn: Callable = learn,
        device: str | torch.device = "cpu",
        progress: Callable[[str], None] = lambda text: None,
        **settings,
    ) -> Self:
        """As chapter 16's; `progress` is told of each model, learnt on a device."""
        check_int("folds", folds, low=2)
        check_int("seed", seed, low=0)
        check_choice("score", settings.get("score", "max"), SCORES)
        sessions = list(map(check_session, sessions))
        if not any(map(len, sessions)):
            raise ValueError("the sessions hold no event: there is nothing to know")
        over = each(ended, len(sessions))
        n, k = sum(over), min(folds, sum(over))
        try:
            check_rate(false_alarms, n)
        except ValueError as error:
            if n == len(sessions):
                raise
            raise ValueError(
                f"of {len(sessions):,} sessions {len(sessions) - n:,} may go on, and "
                f"only the others tell of ends: {error}"
            ) from error

        def told(ids: Tensor, config: FastConfig, own_seed: int):
            progress(f"model {own_seed - seed + 1} of {k}")
            return learn(ids.to(device), config, own_seed)

        return super().fit(
            sessions,
            ended=over,
            false_alarms=false_alarms,
            folds=folds,
            seed=seed,
            learn=told,
            **settings,
        )

    def score(self, sessions, ended: bool | Sequence[bool] = True):
        return super().score(map(check_session, sessions), ended)

    def explain(self, session: Sequence) -> list[EventReport]:
        """A report of each event of a session, and of its end."""
        events = tuple(map(str, check_session(session)))
        (reading,) = self.read([events])
        return [
            self.report_event(event, reading, t)
            for t, event in enumerate((*events, END))
        ]

    def stream(self, **settings) -> "EventStream":
        """Judges events as they come; settings as for EventStream."""
        return EventStream(self, **settings)

    def save(self, folder: str | Path) -> None:
        """Writes the detector into a folder: JSON and safetensors, nothing else."""
        folder = Path(folder)
        for i, member in enumerate(self.members):
            save_checkpoint(folder / f"member-{i}", member, self.tokenizer)
        tensors = {}
        for ended, name in ((True, "ended"), (False, "open")):
            tensors[f"normal-{name}"] = self.normal[ended].contiguous()
            tensors[f"far-{name}"] = self.far[ended]
            for i, scores in enumerate(self.held_out[ended]):
                tensors[f"held-out-{name}-{i}"] = scores
        settings = {
            "members": [weights_of(member) for member in self.members],
            "n_events": self.n_events,
            "false_alarms": self.false_alarms,
            "score": self.score_name,
            "news": self.news,
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
            check_int("members", len(digests), low=1, high=len(tensors))
            normal, far, held_out = {}, {}, {}
            for ended, name in ((True, "ended"), (False, "open")):
                normal[ended] = tensors[f"normal-{name}"]
                far[ended] = tensors[f"far-{name}"]
                held_out[ended] = [
                    tensors[f"held-out-{name}-{i}"] for i in range(len(digests))
                ]
            loaded = [
                load_checkpoint(Path(folder) / f"member-{i}", device)
                for i in range(len(digests))
            ]
            members, tokenizers = zip(*loaded, strict=True)
            if any(t.to_dict() != tokenizers[0].to_dict() for t in tokenizers):
                raise ValueError("its members have different tokenizers")
            if [weights_of(member) for member in members] != digests:
                raise ValueError("its members are not those that it was saved with")
            check_numbers(normal, far, held_out, tokenizers[0].vocab_size)
            return cls(members, tokenizers[0], normal, far, held_out, **settings)
        except CheckpointError:
            raise
        except KeyError as error:
            raise CheckpointError(
                f"{path} lacks {error}: no detector, or of another version; fit anew"
            ) from error
        except (ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise CheckpointError(f"{path} is no detector: {error}") from error


def check_numbers(normal: dict, far: dict, held_out: dict, vocab_size: int) -> None:
    """ValueError for counts or scores that are none."""
    for rows in normal.values():
        if rows.dtype != torch.float32 or rows.shape[1:] != (vocab_size,):
            raise ValueError(f"counts must be (R, {vocab_size}), got {rows.shape}")
        if not len(rows) or not (rows.isfinite() & (rows >= 0)).all():
            raise ValueError("counts must be some, finite, and not below 0")
    for ended, by_member in held_out.items():
        for scores in (far[ended], *by_member):
            if scores.dtype != torch.float64 or scores.dim() != 1:
                raise ValueError("held-out scores must be (n,) of float64")
            if scores.isnan().any() or (scores.diff() < 0).any():
                raise ValueError("held-out scores are no numbers in rising order")


# --- One event at a time ---


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
    def push_many(self, arrived: Iterable[tuple[str, str]], now: float = 0.0) -> None:
        """Takes in events of many sessions at once, as `push` does one by one.

        The models read what is new of all of them together, equal windows once.
        """
        self.expire(now)
        by_session: dict[str, list[str]] = {}
        for name, event in arrived:
            by_session.setdefault(name, []).append(event)
        for names in batched(by_session, min(self.max_sessions, TOGETHER)):
            sessions = [self.running.pop(name, None) or self.begin() for name in names]
            self.make_room(len(names))
            self.running.update(zip(names, sessions, strict=True))
            self.read_on(sessions, [by_session[name] for name in names])
            for session in sessions:
                session.seen = now

    def read_on(self, sessions: list[Running], events: list[list[str]]) -> None:
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
        start = 0
        for session, new, own in zip(sessions, events, tokens, strict=True):
            session.logits = logits[:, start + len(new)]
            self.add_all(session, new, own, logits[:, start : start + len(new)])
            start += len(new) + 1

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

    def add_all(self, session: Running, events, tokens: list[int], logits) -> None:
        """Adds new events (n) to a session's totals, by logits (K, n, V) before each."""
        ids = torch.tensor(tokens, device=self.device)
        reading = weigh(logits, ids, self.detector.price)
        nats = reading.nats.cpu().double()
        if self.detector.score_name == "max":
            session.totals = torch.maximum(session.totals, nats.amax(1))
        else:
            session.totals = session.totals + nats.sum(1)
        session.counts += torch.bincount(ids.cpu(), minlength=len(session.counts))
        unknown = self.detector.tokenizer.unknown
        t = tokens.index(unknown) if unknown in tokens else int(nats.mean(0).argmax())
        place, session.n = session.n + t, session.n + len(tokens)
        known, most = tokens[t] != unknown, nats[:, t].mean().item()
        worst = session.worst
        if not worst or (worst.known and (not known or most > worst.surprisal)):
            session.worst = self.detector.report_event(events[t], reading, t, place)

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
        return self.verdict(self.running[name], False, as_ended)

    @torch.no_grad()
    def close(self, name: str) -> SessionReport:
        """Ends a session and gives its report; KeyError if it is not running."""
        session = self.running.pop(name)
        if self.count_ends:
            self.weigh(session, self.detector.tokenizer.end, END)
        return self.verdict(session, self.count_ends)

    def expire(self, now: float) -> None:
        """Closes the sessions that have been silent for more than `max_age`."""
        while self.running:
            name, session = next(iter(self.running.items()))
            if now - session.seen <= self.max_age:
                break
            self.on_close(name, self.close(name), self.count_ends)

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

    def verdict(
        self, session: Running, ended: bool, as_ended: bool = False
    ) -> SessionReport:
        """The report of a session as far as it has come."""
        nats = session.totals
        if self.detector.score_name == "mean":
            nats = nats / max(1, session.n)
        row, among = session.counts.sqrt(), ended or as_ended
        return self.detector.verdict(nats, row, session.worst, ended, among)

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
