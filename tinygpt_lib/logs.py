# generated from notebooks/text/15_logs.py: edit there
"""Logs: is a log a language?"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinygpt_lib.basics.checks import check_int
from tinygpt_lib.basics.devices import device_of
from tinygpt_lib.basics.evaluation import evaluating
from tinygpt_lib.basics.loglines import (
    CLOCK,
    CODE,
    DATED,
    DATES,
    LONGEST_LINE,
    MASKS,
    RUNS,
    VALUES,
    EventText,
    compiled,
    seconds_of,
)
from tinygpt_lib.speed import MODERN, FastConfig, FastGPT, muon
from tinygpt_lib.training import TrainConfig, Trainer

__all__ = [
    "BEGIN",
    "END",
    "MANY",
    "NEW",
    "UNKNOWN",
    "EventTokenizer",
    "Form",
    "LogPlan",
    "LogTrainer",
    "Masks",
    "Session",
    "SessionFinder",
    "Template",
    "Templates",
    "Words",
    "bits_per_event",
    "few_values",
    "group_lines",
    "in_windows",
    "is_code",
    "learn",
    "log_config",
    "mask",
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
        """The event of a line; blanks count once, and what is overlong is cut off."""
        event = line[:LONGEST_LINE]
        for word, pattern in self._compiled:
            event = pattern.sub(word, event)
        return " ".join(event.split())


mask = Masks()

MANY, NEW = "<*>", "<new>"  # a place with many values; a value that is none of the few


class Words(dict):
    """Words to what is fixed in them, and their values; each is looked at once.

    Forgets them all when there are `room`.
    """

    room = 100_000

    def __missing__(self, word: str) -> tuple[str, tuple[str, ...]]:
        values = VALUES.findall(word)
        fixed = RUNS.sub(MANY, VALUES.sub(MANY, word))
        if fixed.count(MANY) < len(values):  # some that followed each other are one
            values = [word]
            fixed = MANY.join((fixed.partition(MANY)[0], fixed.rpartition(MANY)[2]))
        if len(self) >= self.room:
            self.clear()
        self[word] = found = fixed, tuple(values)
        return found


@dataclass
class Template:
    """A kind of line: its words, None for any word, and what stands at its codes.

    `codes` are {(word, value in it): the few that were seen there}.
    """

    words: list[str | None]
    codes: dict[tuple[int, int], list[str]] = field(default_factory=dict)
    events: dict[tuple, str] = field(default_factory=dict)

    def event(self, words: list[tuple[str, tuple[str, ...]]]) -> str:
        """The text of the kind, with the codes of a line of it."""
        said = tuple(
            [
                words[i][0] if self.words[i] is None else words[i][1][j]
                for i, j in self.codes
            ]
        )
        if said not in self.events:
            self.events[said] = self.text(said)
        return self.events[said]

    def text(self, said: Sequence[str]) -> str:
        """The words, with these at the places of codes."""
        few = zip(self.codes.items(), said, strict=True)
        shown = {place: x if x in seen else NEW for (place, seen), x in few}
        out = []
        for i, word in enumerate(self.words):
            first, *rest = (word or MANY).split(MANY)
            parts = (shown.get((i, j), MANY) + x for j, x in enumerate(rest))
            out.append("".join((first, *parts)))
        return " ".join(out)


class Templates:
    """Lines to events, learnt from normal lines, and frozen: a line is what it was.

    `masks`, {word: regular expression}, are put in first.
    """

    similar = 0.75  # share of the fixed words that lines of a kind have in common
    room = 1000  # kinds of one length and beginning; forms remembered, a hundredfold

    def __init__(
        self, templates: Iterable[Template] = (), masks: dict[str, str] | None = None
    ):
        self.masks, self.words = Masks(masks or {}), Words()
        self.kinds: dict[tuple, list[Template]] = {}
        self.known: dict[tuple, Template | None] = {}
        for template in templates:
            self.add(template)

    def add(self, template: Template) -> None:
        """Takes in a kind, if there is room among those that begin alike."""
        alike = self.kinds.setdefault((len(template.words), template.words[0]), [])
        if len(alike) < self.room:
            alike.append(template)

    def cut(self, line: str) -> list[tuple[str, tuple[str, ...]]]:
        """The words of a line, each with its values."""
        if self.masks.patterns:
            line = self.masks(line)
        if CLOCK.search(line):
            line = DATES.sub("<time>", line)
        words = self.words
        return [words[word] for word in line.split()]

    def closest(self, form: tuple[str, ...], similar: float = 1.0) -> Template | None:
        """The kind that a form fits best; None where too few fixed words agree."""
        best, most = None, (similar, -1)
        for template in self.kinds.get((len(form), form[0]), ()):
            agree = [
                word == other
                for word, other in zip(template.words, form, strict=True)
                if word is not None and not word == other == MANY
            ]
            share = sum(agree) / len(agree) if agree else 1.0
            if (share, len(agree)) > most:
                best, most = template, (share, len(agree))
        return best

    def kind(self, form: tuple[str, ...]) -> Template | None:
        """The kind of a form, remembered; None for one that is of none."""
        if form not in self.known:
            if len(self.known) >= 100 * self.room:
                self.known.clear()
            self.known[form] = self.closest(form)
        return self.known[form]

    def __call__(self, line: str) -> str:
        """The event of a line; of one that is of no kind, what is fixed in it."""
        if not (words := self.cut(line)):
            return ""
        form = tuple([fixed for fixed, _ in words])
        template = self.kind(form)
        return " ".join(form) if template is None else template.event(words)

    @classmethod
    def learn(
        cls, lines: Iterable[str], masks: dict[str, str] | None = None
    ) -> "Templates":
        """The kinds of normal lines."""
        self = cls(masks=masks)
        # 1. The forms of the lines, how often each came, and with which values.
        forms: dict[tuple, Form] = {}
        for line in lines:
            if not (words := self.cut(line)):
                continue
            form = tuple([fixed for fixed, _ in words])
            values = [value for _, values in words for value in values]
            if form not in forms:
                if len(forms) >= 100 * self.room:
                    continue
                forms[form] = Form(len(values))
            forms[form].count(values)
        # 2. Forms that differ in few words are one kind: those that are common first.
        for form in sorted(forms, key=lambda form: (-forms[form].times, form)):
            template = self.closest(form, self.similar)
            if template is None:
                self.add(Template(list(form)))
                continue
            pairs = zip(template.words, form, strict=True)
            template.words = [a if a == b else None for a, b in pairs]
        # 3. Places of a kind that have few values are codes.
        members: dict[int, list[tuple]] = {}
        for form in forms:
            members.setdefault(id(self.kind(form)), []).append(form)
        for alike in self.kinds.values():
            for template in alike:
                found = [(form, forms[form]) for form in members.get(id(template), ())]
                template.codes = few_values(template.words, found)
        return self

    def to_dict(self) -> dict:
        """All that was learnt, as plain JSON data."""
        kinds = [
            [kind.words, [[i, j, seen] for (i, j), seen in kind.codes.items()]]
            for alike in self.kinds.values()
            for kind in alike
        ]
        return {"masks": self.masks.patterns, "kinds": kinds}

    @classmethod
    def from_dict(cls, data: dict) -> "Templates":
        """What `to_dict` described."""
        kinds = (
            Template(list(words), {(i, j): list(seen) for i, j, seen in codes})
            for words, codes in data["kinds"]
        )
        return cls(kinds, data["masks"])


class Form:
    """A line with its values hidden: how often it came, and with which values."""

    few = 8  # values that a code may have

    def __init__(self, places: int):
        self.times, self.values = 0, [Counter() for _ in range(places)]

    def count(self, values: Iterable[str]) -> None:
        """Takes in a line of the form."""
        self.times += 1
        for counter, value in zip(self.values, values, strict=True):
            if len(counter) <= self.few:  # else it is none already
                counter[value] += 1


def few_values(
    words: Sequence[str | None], forms: Sequence[tuple[tuple[str, ...], Form]]
) -> dict[tuple[int, int], list[str]]:
    """The places at which lines of some forms have few values that come again."""
    places: dict[tuple[int, int], Counter] = {}
    for form, seen in forms:
        values = iter(seen.values)
        for i, (word, own) in enumerate(zip(words, form, strict=True)):
            for j in range(own.count(MANY)):
                counter = next(values)
                if word is not None:
                    places.setdefault((i, j), Counter()).update(counter)
            if word is None:
                times = 0 if MANY in own else seen.times  # then it has not been counted
                places.setdefault((i, 0), Counter())[own] += times
    n = sum(seen.times for _, seen in forms)
    return {
        place: sorted(counter)
        for place, counter in places.items()
        if is_code(counter, n)
    }


def is_code(seen: Counter, n: int) -> bool:
    """Whether a place, seen n times, has few values, and another would be news.

    Of values to come a share of about (those seen once + 1) / (n + 1) will be new
    (Good, 1953).
    """
    once = sum(times == 1 for times in seen.values())
    numbers = sorted(int(value) for value in seen if value.isdigit())
    counted = (
        len(numbers) > 1
        and numbers != [0, 1]
        and numbers[-1] - numbers[0] < 2 * len(numbers)
    )
    return (
        len(seen) <= Form.few
        and sum(seen.values()) == n
        and (once + 1) / (n + 1) <= 0.1
        and not counted
        and all(CODE.fullmatch(value) for value in seen)
    )


# --- Sessions ---


@dataclass(slots=True)
class Session:
    """Events that belong together, and where in the log their lines are."""

    id: str
    events: list[str] = field(default_factory=list)
    line_numbers: list[int] = field(default_factory=list)  # from 1


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
        found = self.pattern.search(line)
        parts = () if found is None else (*found.groups(), found.group())
        text = next((part for part in parts if part), None)
        if self.seconds is None:
            return text
        time = seconds_of(text, self.time_format) if text else None
        if time is not None:
            start = math.floor(time / self.seconds) * self.seconds
            self.last = f"{datetime.fromtimestamp(start, UTC):%Y-%m-%dT%H:%M:%S}"
        return self.last


def group_lines(
    lines: Iterable[str],
    finder: SessionFinder,
    to_event: Callable[[str], str] = mask,
) -> dict[str, Session]:
    """Sessions by id, in the order of their first lines; other lines are left out.

    ValueError, showing a line, if there are lines and none of them has a session.
    """
    sessions: dict[str, Session] = {}
    shared: dict[str, str] = {}  # one string for all lines of a kind: logs are long
    number, example = 0, ""
    for number, line in enumerate(lines, start=1):
        name = finder(line)
        if name is None:
            example = example or line
            continue
        event = to_event(line)
        if event:
            session = sessions.setdefault(name, Session(name))
            session.events.append(shared.setdefault(event, event))
            session.line_numbers.append(number)
    if number and not sessions:
        raise ValueError(
            f"none of {number:,} lines belongs to a session by "
            f"{finder.pattern.pattern!r}; one of them is {example[:200]!r}"
        )
    return sessions


# --- Numbers for events ---

UNKNOWN, BEGIN, END = "<unknown>", "<begin>", "<end>"


class EventTokenizer(EventText):
    """One token per event; 0 is an unknown event, 1 and 2 begin and end a session."""

    unknown, begin, end = range(3)

    def __init__(self, events: Sequence[str]):
        self.events = list(events)
        self.names = [UNKNOWN, BEGIN, END, *self.events]
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
    parts = [tokenizer.encode_session(session) for session in sessions]
    if not parts:
        raise ValueError("there is no session to make a stream of")
    return torch.cat(parts)


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
    # Windows of about the same length together: little is filled up in vain.
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

    batch_size: int = 16
    learning_rate: float = 0.01
    matrix_rate: float = 0.02
    warmup: float = 0.02
    cooldown: float = 0.6
    cooldown_shape: str = "linear"
    weight_decay: float = 0.0
    beta2: float = 0.95


class LogTrainer(Trainer):
    """Chapter 07's loop with chapter 12's optimizer."""

    def new_optimizer(self):
        return muon(self.model, self.config)


def log_config(vocab_size: int) -> FastConfig:
    """A GPT of 0.1 million parameters for the events of a log."""
    shape = {"block_size": 64, "n_layer": 2, "n_head": 4, "n_embd": 64}
    return FastConfig(vocab_size, **shape, **MODERN)


def learn(ids: Tensor, config: FastConfig, seed: int = 0) -> FastGPT:
    """A GPT that has learnt a stream of ids (N,): ten times over, if it is short.

    In 100 to 800 steps, where the ids are. Your random numbers stay as they were.
    """
    plan = LogPlan(seed=seed)
    ten_times = 10 * len(ids) // (plan.batch_size * config.block_size)
    plan.steps = min(max(ten_times, 100), 800)
    ids = ids.repeat(-(-(config.block_size + 1) // len(ids)))  # at least one window
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        trainer = LogTrainer(FastGPT(config).to(ids.device), ids, plan)
        while trainer.step < plan.steps:
            trainer.take_step()
    return trainer.model.eval()
