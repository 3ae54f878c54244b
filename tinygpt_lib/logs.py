# generated from notebooks/text/15_logs.py: edit there
"""Logs: is a log a language?"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinygpt_lib.basics.checks import check_int
from tinygpt_lib.basics.devices import device_of
from tinygpt_lib.basics.evaluation import evaluating
from tinygpt_lib.basics.loglines import LONGEST_LINE, MASKS, EventText, compiled
from tinygpt_lib.basics.logsessions import SessionFinder
from tinygpt_lib.basics.logwords import CODE, MANY, Form, Kind, Kinds, values_at
from tinygpt_lib.bigram import evaluate
from tinygpt_lib.speed import MODERN, FastConfig, FastGPT, Muon
from tinygpt_lib.training import TrainConfig, Trainer

__all__ = [
    "END",
    "EventTokenizer",
    "LogPlan",
    "Masks",
    "Session",
    "Templates",
    "bits_per_event",
    "group_lines",
    "in_windows",
    "learn",
    "log_config",
    "stream",
    "surprisals",
]

# --- What varies, and what does not ---


class Masks:
    """Lines to events: what varies in a line, by patterns, becomes a word such as <id>.

    `patterns` are {word: regular expression}, applied in their order. ValueError for
    one that is no regular expression.
    """

    def __init__(self, patterns: dict[str, str] | None = None):
        self.patterns = dict(MASKS if patterns is None else patterns)
        self._compiled = [
            (word.replace("\\", r"\\"), compiled(pattern, f"the mask for {word}"))
            for word, pattern in self.patterns.items()
        ]

    def __call__(self, line: str) -> str:
        """The event of a line; spaces count once, and what is overlong is cut off."""
        event = line[:LONGEST_LINE]
        for word, pattern in self._compiled:
            event = pattern.sub(word, event)
        return " ".join(event.split())


# --- Sessions ---


@dataclass(slots=True)
class Session:
    """Events that belong together, and where in the log their lines are."""

    id: str
    events: list[str] = field(default_factory=list)
    line_numbers: list[int] = field(default_factory=list)  # from 1


def group_lines(
    lines: Iterable[str],
    finder: SessionFinder,
    to_event: Callable[[str], str] | None = None,
) -> dict[str, Session]:
    """Sessions by id, in the order of their first lines; other lines are left out.

    Events are those of Masks, unless `to_event` is given. ValueError, showing a line,
    if there are lines and none of them has a session.
    """
    sessions, to_event = {}, to_event or Masks()
    number, example = 0, ""
    for number, line in enumerate(lines, start=1):
        name = finder(line)
        if name is None:
            example = example or line
            continue
        event = to_event(line)
        if event:
            session = sessions.setdefault(name, Session(name))
            session.events.append(event)
            session.line_numbers.append(number)
    if number and not sessions:
        raise ValueError(
            f"none of {number:,} lines belongs to a session by "
            f"{finder.pattern.pattern!r}; one of them is {example[:200]!r}"
        )
    return sessions


# --- Numbers for events ---

END = "<end>"


class EventTokenizer(EventText):
    """One token per event; 0 is an unknown event, 1 and 2 begin and end a session."""

    unknown, begin, end = range(3)

    def __init__(self, events: Sequence[str]):
        self.events = list(events)
        self.names = ["<unknown>", "<begin>", END, *self.events]
        self._ids = {event: i for i, event in enumerate(self.events, start=3)}
        if len(self._ids) != len(self.events):
            raise ValueError("events must not hold the same event twice")
        if not all(isinstance(e, str) and e and "\n" not in e for e in self.events):
            raise ValueError("events must be strings of one line that are not empty")

    @classmethod
    def from_sessions(
        cls, sessions: Iterable[Sequence[str]], at_least: int = 1
    ) -> "EventTokenizer":
        """The tokenizer that knows every event seen `at_least` that often, sorted.

        ValueError if there is none.
        """
        counts = Counter(event for session in sessions for event in session)
        events = sorted(event for event, n in counts.items() if n >= at_least)
        if not events:
            raise ValueError(
                f"no event occurs at least {at_least} times: there is nothing to know"
            )
        return cls(events)

    @property
    def vocab_size(self) -> int:
        return len(self.names)

    def __contains__(self, event: str) -> bool:
        return event in self._ids

    def encode_session(self, events: Sequence[str]) -> Tensor:
        """Ids of a session between its begin and its end: (events + 2,), int64."""
        ids = [self._ids.get(event, self.unknown) for event in events]
        return torch.tensor([self.begin, *ids, self.end])


# --- What must stay unseen ---


def stream(sessions: Iterable[Sequence[str]], tokenizer: EventTokenizer) -> Tensor:
    """All sessions behind each other, as ids (N,) to train on."""
    return torch.cat([tokenizer.encode_session(session) for session in sessions])


# --- Surprise, event by event ---


def in_windows(
    sessions: Sequence[Tensor], block_size: int, tokens_at_once: int = 16_384
) -> Iterator[tuple[Tensor, list[tuple[int, int, int, int]]]]:
    """Sessions of ids (N,) cut into windows, laid below each other: ids (B, T + 1).

    With them, for each row: which session it is of, where in that it begins, and from
    which to which place (in the row) its predictions count.
    """
    step = block_size // 2
    windows = []
    for i, ids in enumerate(sessions):
        n = len(ids) - 1
        windows.append((i, 0, 0, min(n, block_size)))
        for s in range(step, n - block_size + step, step):
            windows.append((i, s, block_size - step, min(n - s, block_size)))
    # Windows of about the same length together: little is padded in vain.
    windows.sort(key=lambda window: window[-1])
    while windows:
        longest = windows[-1][-1]
        rows = max(1, tokens_at_once // max(1, longest))
        batch = windows[-rows:]
        del windows[-rows:]
        texts = [sessions[i][s : s + end + 1] for i, s, _, end in batch]
        yield nn.utils.rnn.pad_sequence(texts, batch_first=True), batch


@torch.no_grad()
def surprisals(
    model: nn.Module,
    sessions: Sequence[Tensor],
    block_size: int | None = None,
    tokens_at_once: int = 16_384,
) -> list[Tensor]:
    """Nats for every token of each session of ids (N,) but the first: (N - 1,) each.

    Given the tokens before it, up to `block_size` (default: the model's own) and at
    least half of that. Any model ids (B, T) -> logits (B, T, V) will do.
    """
    block_size = model.config.block_size if block_size is None else block_size
    check_int("block_size", block_size, low=2)
    results = [torch.zeros(max(0, len(ids) - 1)) for ids in sessions]
    with evaluating(model):
        for ids, rows in in_windows(sessions, block_size, tokens_at_once):
            ids = ids.to(device_of(model))
            logits = model(ids[:, :-1]).transpose(1, 2).float()  # (B, V, T)
            nats = F.cross_entropy(logits, ids[:, 1:], reduction="none").cpu()
            for (i, s, first, end), row in zip(rows, nats, strict=True):
                results[i][s + first : s + end] = row[first:end]
    return results


def bits_per_event(
    model: nn.Module, sessions: Sequence[Tensor], block_size: int | None = None
) -> float:
    """Mean surprisal in bits of all events and ends; begins are given, and free."""
    nats = surprisals(model, sessions, block_size)
    return (torch.cat(nats).mean() / math.log(2)).item()


@dataclass
class LogPlan(TrainConfig):
    """Chapter 07's plan, with a rate for the matrices that Muon moves."""

    steps: int = 800  # at most
    batch_size: int = 16
    learning_rate: float = 0.01
    matrix_rate: float = 0.02
    warmup: float = 0.02
    cooldown: float = 0.5
    cooldown_shape: str = "linear"
    weight_decay: float = 0.0
    beta2: float = 0.95


def log_config(vocab_size: int) -> FastConfig:
    """A GPT of 0.1 million parameters for the events of a log."""
    shape = {"block_size": 64, "n_layer": 2, "n_head": 4, "n_embd": 64}
    return FastConfig(vocab_size, **shape, **MODERN)


def learn(
    ids: Tensor, config: FastConfig, seed: int = 0, early: bool = True
) -> FastGPT:
    """A GPT that has learned a stream of ids (N,), a short one ten times at most.

    Stopping `early`: it is tried on the last tenth, 2,048 ids at most, which it never
    learns. Once that is no better by 1 % after 20 more steps, the rate falls to zero in
    as many steps as it took so far. Your random numbers stay.
    """
    plan, best = LogPlan(seed=seed), math.inf
    ten_times = 10 * len(ids) // (plan.batch_size * config.block_size)
    plan.steps = min(max(ten_times, 100), plan.steps)
    ids = ids.repeat(-(-2 * config.block_size // len(ids)))  # at least two windows
    cut = len(ids) - min(max(len(ids) // 10, 2), 2048)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = FastGPT(config).to(ids.device)
        trainer = Trainer(model, ids[:cut], plan)
        trainer.optimizer = Muon.of(model, plan)  # chapter 12's
        while trainer.step < plan.steps:
            trainer.take_step()
            if early and trainer.step % 20 == 0 and 2 * trainer.step < plan.steps:
                nats = evaluate(model, ids[cut:])
                if nats > 0.99 * best:
                    plan.steps = 2 * trainer.step
                best = min(best, nats)
    return model.eval()


# --- When nobody has written masks ---


class Templates(Kinds):
    """Lines to events, learned from normal lines, and frozen: a line is what it was."""

    similar = 0.75  # share of the fixed words that lines of a kind have in common

    def closest(self, form: tuple[str, ...], similar: float = 1.0) -> Kind | None:
        """The kind that a form fits best; None where too few fixed words agree."""
        best, most = None, (similar, -1)
        for kind in self.beginning_like(form):
            agree = [
                word == other
                for word, other in zip(kind.words, form, strict=True)
                if word is not None and word != MANY
            ]
            share = sum(agree) / len(agree) if agree else 1.0
            if (share, len(agree)) > most:
                best, most = kind, (share, len(agree))
        return best

    @staticmethod
    def is_code(seen: Counter, n: int) -> bool:
        """Whether a place, seen n times, has few values, and another would be news.

        About (seen once + 1) / (n + 1) of the lines to come have another (Good, 1953).
        Numbers that merely count (1, 2, 3) are no code, nor is one of four digits.
        """
        once = sum(times == 1 for times in seen.values())
        numbers = sorted(int(value) for value in seen if value.isdigit())
        counts = len(numbers) > 1 and numbers[-1] - numbers[0] < 2 * len(numbers)
        return (
            len(seen) <= Form.few
            and seen.total() == n  # else there were more than were counted
            and (once + 1) / (n + 1) <= 0.1
            and (numbers == [0, 1] or not counts)
            and all(CODE.fullmatch(value) for value in seen)
        )

    @classmethod
    def learn(
        cls, lines: Iterable[str], masks: dict[str, str] | None = None
    ) -> "Templates":
        """The kinds of normal lines; `masks`, as of Masks, come before all else."""
        self = cls(masks=masks)
        # 1. The forms of the lines, how often each came, and with which values.
        forms = self.forms(lines)
        # 2. Forms that differ in few words are one kind: those that are common first.
        for form in sorted(forms, key=lambda form: (-forms[form].times, form)):
            kind = self.closest(form, self.similar)
            if kind is None:
                self.add(Kind(list(form)))
            else:
                pairs = zip(kind.words, form, strict=True)
                kind.words = [a if a == b else None for a, b in pairs]
        # 3. Places of a kind that have few values are codes.
        for kind, members in self.members(forms):
            n = sum(forms[form].times for form in members)
            kind.codes = {
                place: sorted(seen)
                for place, seen in values_at(kind, members, forms).items()
                if cls.is_code(seen, n)
            }
        return self
