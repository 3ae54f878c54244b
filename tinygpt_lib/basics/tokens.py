"""Around the tokenizers: ids checked, nonsense refused, saved as plain data.

The lessons say how a tokenizer works; what keeps strangers' files and odd arguments
away from it stands here.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Self, TypeVar

import numpy as np
import torch
from torch import Tensor

__all__ = ["check_merges", "checked_ids", "hardened", "utf8"]

MAX_VOCABULARY_BYTES = 2**28  # of all tokens together; a false file could ask for 2**99
Lesson = TypeVar("Lesson", bound=type)

AT_ONCE = 2**14  # characters that are looked up together


def utf8(text: str) -> bytes:
    """The bytes of text; ValueError for half a surrogate pair, with its place."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"character {text[error.start]!r} at position {error.start} is half of a "
            "surrogate pair: alone it is no character and has no UTF-8 bytes"
        ) from None


def checked_ids(ids: Tensor | Sequence[int], vocab_size: int) -> list[int]:
    """ids (N,) as a list; ValueError for one outside the vocabulary."""
    ids = torch.as_tensor(ids, dtype=torch.int64).flatten()
    if len(outside := ids[(ids < 0) | (ids >= vocab_size)]):
        raise ValueError(f"id {outside[0]} is not in the range 0..{vocab_size - 1}")
    return ids.tolist()


def check_merges(merges: Iterable[Sequence[int]]) -> list[tuple[int, int]]:
    """merges as a list of pairs; ValueError unless each is made of earlier tokens."""
    pairs, lengths, total = {}, [1] * 256, 256
    for i, pair in enumerate(merges, start=256):
        two = isinstance(pair, list | tuple) and len(pair) == 2
        if not two or any(type(x) is not int or not 0 <= x < i for x in pair):
            raise ValueError(
                f"the merge that makes token {i} is {pair!r:.50}; it must be two ids "
                f"in the range 0..{i - 1}"
            )
        if pairs.setdefault(tuple(pair), i) != i:
            raise ValueError(f"merges hold the pair {pair!r} twice")
        lengths.append(lengths[pair[0]] + lengths[pair[1]])
        total += lengths[-1]
        if total > MAX_VOCABULARY_BYTES:
            raise ValueError(f"the tokens are longer than {MAX_VOCABULARY_BYTES} bytes")
    return list(pairs)


def hardened(lesson: Lesson) -> Lesson:
    """The lesson's CharTokenizer, safe to use: it refuses nonsense and can be saved.

    `unk`, one of the characters, stands in for every unknown one; without it, an
    unknown character is an error that names its place.
    """

    class Hardened(lesson):
        __doc__ = lesson.__doc__

        def __init__(self, characters: Sequence[str], unk: str | None = None):
            characters = list(characters)
            if any(len(c) != 1 for c in characters) or not characters:
                raise ValueError("characters must be one or more single characters")
            # With the second half behind it, it would be saved as one character.
            if any("\ud800" <= c <= "\udbff" for c in characters):
                raise ValueError(
                    "no character may be the first half of a surrogate pair"
                )
            if len(set(characters)) != len(characters):
                raise ValueError("characters must not hold the same character twice")
            if unk is not None and unk not in characters:
                raise ValueError(f"unk is {unk!r}; it must be one of the characters")
            super().__init__(characters)
            self.unk = unk

        @classmethod
        def from_text(cls, text: str, unk: str | None = None) -> Self:
            """The tokenizer whose vocabulary is every character of text, sorted."""
            if not text:
                raise ValueError(
                    "text is empty: a vocabulary needs at least one character"
                )
            return cls(sorted({*text, unk} - {None}), unk)

        def encode(self, text: str) -> Tensor:
            """Ids of shape (len(text),), int64; ValueError for an unknown character."""
            ids = np.empty(len(text), dtype=np.int64)
            for start in range(0, len(text), AT_ONCE):
                part = text[start : start + AT_ONCE]
                ids[start : start + AT_ONCE] = self.look_up(part, start)
            return torch.from_numpy(ids)

        def look_up(self, text: str, start: int) -> np.ndarray:
            """As `encode`, in 32 bits, of what begins at a place in a longer text."""
            data = text.encode("utf-32-le", "surrogatepass")
            numbers = np.frombuffer(data, dtype=np.uint32)
            found = self._table[np.minimum(numbers, len(self._table) - 1)]
            if len(unknown := np.flatnonzero(found < 0)):
                place = unknown[0]
                raise ValueError(
                    f"character {text[place]!r} at position {start + place} is not "
                    f"among the {self.vocab_size} characters that this tokenizer knows"
                )
            return found

        @cached_property
        def _table(self) -> np.ndarray:
            """The id for each character's number, last of all that for larger ones."""
            numbers = [ord(c) for c in self.characters]
            unknown = -1 if self.unk is None else self.number[self.unk]
            table = np.full(max(numbers) + 2, unknown, dtype=np.int32)
            table[numbers] = range(self.vocab_size)
            return table

        def decode(self, ids: Tensor | Sequence[int]) -> str:
            """The text of ids (N,); ValueError for an id outside the vocabulary."""
            return super().decode(checked_ids(ids, self.vocab_size))

        def to_dict(self) -> dict:
            """The tokenizer as plain JSON data."""
            data = {"type": "char", "characters": "".join(self.characters)}
            return data if self.unk is None else {**data, "unk": self.unk}

        @classmethod
        def from_dict(cls, data: dict) -> Self:
            """The tokenizer that `to_dict` described."""
            return cls(data["characters"], data.get("unk"))

    Hardened.__name__ = Hardened.__qualname__ = lesson.__name__
    Hardened.__module__ = lesson.__module__
    return Hardened
