"""Words of log lines: what may be a value in them, and kinds of lines.

What chapter 15's Templates needs to be quick, bounded and kept as plain data.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Self

from tinygpt_lib.basics.loglines import LONGEST_LINE, compiled

__all__ = ["CODE", "MANY", "NEW", "Form", "Kind", "Kinds", "Words", "values_at"]

MANY, NEW = "<*>", "<new>"  # a place with many values; a value that is none of the few
# Where there is no clock, there is no date to look for.
CLOCK = re.compile(r":\d\d(?!\d)")
DATES = re.compile(  # as they stand in messages
    r"(?:\b(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun),? +)?(?:"
    r"\b\d{4}[-/.]\d\d[-/.]\d\d[T ]\d\d:\d\d(?::\d\d)?(?:[.,]\d+)?"
    r"(?:Z|[+-]\d\d:?\d\d)?"
    r"|\b[A-Z][a-z]{2} +\d{1,2} \d\d:\d\d:\d\d(?:[.,]\d+)?(?: \d{4})?"
    r"|\b\d{1,2}[/ ][A-Z][a-z]{2}[/ ]\d{4}[: ]\d\d:\d\d:\d\d(?:[.,]\d+)?"
    r"(?: [+-]\d{4})?)"
)
_IN_WORD = r"[^\s=,;:()\[\]{}<>\"'|]"  # what goes on within a value
VALUES = re.compile(  # in a word: what can only be a value, unless it is one of few
    rf"(?<==){_IN_WORD}+"  # after an equals sign
    r"|(?:[0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F]{0,4}(?![\w:])"  # IPv6, MAC
    rf"|{_IN_WORD}*(?:[\d/\\@]|\.(?=\w))(?:{_IN_WORD}*{_IN_WORD}(?<![.!?]))?"
    r"|(?<=\")[^\"]+(?=\")|(?<=')[^']+(?=')"  # in quotation marks
    r"|(?<=\()(?=\))|(?<==)(?=[,;)\]]|$)"  # nothing, where something could be
)
RUNS = re.compile(r"<\*>(?:[:.,/|-]+<\*>)+")  # values with only marks between them
CODE = re.compile(r"[^\d\s]{1,40}|\d{1,3}")  # what may be one of few: no long number


class Words(dict):
    """Words to what is fixed in them, and their values; each is looked at once.

    Of a long one the end is a value. Forgets them all when there are `room`.
    """

    room, longest = 100_000, 256

    def __missing__(self, word: str) -> tuple[str, tuple[str, ...]]:
        if len(word) > self.longest:
            fixed, values = self[word[: self.longest]]
            return fixed + MANY, (*values, word[self.longest :])
        values = VALUES.findall(word)
        fixed = VALUES.sub(MANY, word)
        if (joined := RUNS.sub(MANY, fixed)) != fixed:  # values with marks between
            fixed, values = joined, [word]
            if joined.count(MANY) > 1:
                fixed = joined.partition(MANY)[0] + MANY + joined.rpartition(MANY)[2]
        if len(self) >= self.room:
            self.clear()
        self[word] = found = fixed, tuple(values)
        return found


class Fixed(dict):
    """Words to what is fixed in them alone."""

    def __init__(self, words: Words):
        self.words = words

    def __missing__(self, word: str) -> str:
        if len(self) >= self.words.room:
            self.clear()
        self[word] = fixed = self.words[word][0]
        return fixed


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


@dataclass
class Kind:
    """A kind of line: its words, None for any word, and what stands at its codes.

    `codes` are {(word, value in it): the few that were seen there}.
    """

    words: list[str | None]
    codes: dict[tuple[int, int], list[str]] = field(default_factory=dict)
    events: dict[tuple, str] = field(default_factory=dict, repr=False)

    def event(self, line: Sequence[str], known: Words) -> str:
        """The text of the kind, with the codes of a line of these words."""
        said = []
        for i, j in self.codes:
            fixed, values = known[line[i]]
            whole = self.words[i] is None or not values  # any word, in a value's place
            said.append(fixed if whole else values[j])
        said = tuple(said)
        if (text := self.events.get(said)) is None:
            text = self.text(said)
            if len(self.events) < 1000:
                self.events[said] = text
        return text

    def text(self, said: Sequence[str]) -> str:
        """The words, with these at the places of codes."""
        few = zip(self.codes.items(), said, strict=True)
        shown = {place: x if x in seen else NEW for (place, seen), x in few}
        out = []
        for i, word in enumerate(self.words):
            first, *rest = (MANY if word is None else word).split(MANY)
            parts = (shown.get((i, j), MANY) + x for j, x in enumerate(rest))
            out.append("".join((first, *parts)))
        return " ".join(out)


class Kinds:
    """Kinds of lines, found again by length and beginning; subclasses have `closest`.

    `masks`, {word: regular expression}, are put in first.
    """

    room = 1000  # kinds of one length and beginning; forms that are kept, a hundredfold

    def __init__(self, kinds: Iterable[Kind] = (), masks: dict[str, str] | None = None):
        self.masks, self.words = dict(masks or {}), Words()
        self.fixed = Fixed(self.words)
        self._compiled = [
            (word.replace("\\", r"\\"), compiled(pattern, f"the mask for {word}"))
            for word, pattern in self.masks.items()
        ]
        self.kinds: dict[tuple, list[Kind]] = {}
        self.known: dict[tuple, Kind | None] = {}
        for kind in kinds:
            self.add(kind)

    def add(self, kind: Kind) -> None:
        """Takes in a kind, if there is room among those that begin alike."""
        alike = self.kinds.setdefault((len(kind.words), kind.words[0]), [])
        if len(alike) < self.room:
            alike.append(kind)

    def beginning_like(self, form: tuple[str, ...]) -> Sequence[Kind]:
        """The kinds that are as long as a form and begin with the same word."""
        return self.kinds.get((len(form), form[0]), ())

    def cut(self, line: str) -> list[str]:
        """The words of a line, where masks have been."""
        line = line[:LONGEST_LINE]
        for word, pattern in self._compiled:
            line = pattern.sub(word, line)
        if MANY in line:
            line = line.replace(MANY, "*")  # it stands for a value here
        if CLOCK.search(line):
            line = DATES.sub("<time>", line)
        return line.split()

    def kind(self, form: tuple[str, ...]) -> Kind | None:
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
        form = tuple(map(self.fixed.__getitem__, words))
        kind = self.known.get(form) or self.kind(form)
        return " ".join(form) if kind is None else kind.event(words, self.words)

    def by_digits(self, line: str) -> bool:
        """Whether the event of a line may be another where its digits are others."""
        kind = self.known.get(tuple(self.fixed[word] for word in self.cut(line)))
        codes = "".join(map("".join, kind.codes.values())) if kind else ""
        return bool(self.masks) or any(map(str.isdigit, codes))

    def forms(self, lines: Iterable[str]) -> dict[tuple, Form]:
        """The forms of lines; those that are too many are left out."""
        forms: dict[tuple, Form] = {}
        for line in lines:
            if not (words := self.cut(line)):
                continue
            form = tuple(map(self.fixed.__getitem__, words))
            values = [value for word in words for value in self.words[word][1]]
            if (seen := forms.get(form)) is None:
                if len(forms) >= 100 * self.room:
                    continue
                seen = forms[form] = Form(len(values))
            seen.count(values)
        return forms

    def members(self, forms: Iterable[tuple]) -> Iterator[tuple[Kind, list[tuple]]]:
        """Kinds, and the forms that are of them."""
        found: dict[int, list[tuple]] = {}
        for form in forms:
            found.setdefault(id(self.kind(form)), []).append(form)
        for alike in self.kinds.values():
            for kind in alike:
                yield kind, found.get(id(kind), [])

    def to_dict(self) -> dict:
        """All that was learned, as plain JSON data."""
        kinds = [
            [kind.words, [[i, j, seen] for (i, j), seen in kind.codes.items()]]
            for alike in self.kinds.values()
            for kind in alike
        ]
        return {"masks": self.masks, "kinds": kinds}

    @classmethod
    def from_dict(cls, data: dict) -> Self:
        """What `to_dict` described; ValueError for nonsense."""
        try:
            kinds = [
                Kind(list(words), {(i, j): list(seen) for i, j, seen in codes})
                for words, codes in data["kinds"]
            ]
            for kind in kinds:
                for i, j in kind.codes:
                    if (kind.words[i] or MANY).count(MANY) <= j:
                        raise ValueError(f"there is no place {j} in {kind.words[i]!r}")
            return cls(kinds, data["masks"])
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"these are no kinds of lines: {error}") from error


def values_at(
    kind: Kind, members: Iterable[tuple], forms: dict[tuple, Form]
) -> dict[tuple[int, int], Counter]:
    """What stood at each place of a kind, in lines of its forms, and how often."""
    places: dict[tuple[int, int], Counter] = {}
    for form in members:
        counters = iter(forms[form].values)
        for i, (word, own) in enumerate(zip(kind.words, form, strict=True)):
            for j in range(own.count(MANY)):
                counter = next(counters)
                if word is not None:
                    places.setdefault((i, j), Counter()).update(counter)
            if word is None:  # any word; a value in it was not counted as a word
                times = 0 if MANY in own else forms[form].times
                places.setdefault((i, 0), Counter())[own] += times
    return places
