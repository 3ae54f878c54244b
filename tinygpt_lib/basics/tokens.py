"""Around the tokenizers: ids checked, nonsense refused, saved as plain data.

The lessons say how a tokenizer works; what keeps strangers' files and odd arguments
away from it stands here.
"""

import heapq
from collections.abc import Iterable, Sequence
from functools import cached_property, wraps
from itertools import pairwise
from typing import Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from tinygpt_lib.basics.checks import check_int

__all__ = [
    "check_merges",
    "checked_ids",
    "hardened",
    "hardened_bpe",
    "hardened_bytes",
    "hardened_words",
    "utf8",
]

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

        def pieces(self, text: str) -> list[bytes]:
            """What each token of text stands for; joined, they are its UTF-8 bytes."""
            return [character.encode() for character in text]

        def to_dict(self) -> dict:
            """The tokenizer as plain JSON data."""
            data = {"type": "char", "characters": "".join(self.characters)}
            return data if self.unk is None else {**data, "unk": self.unk}

        @classmethod
        def from_dict(cls, data: dict) -> Self:
            """The tokenizer that `to_dict` described."""
            return cls(data["characters"], data.get("unk"))

    return named_as(lesson, Hardened)


def named_as(lesson: Lesson, made: type) -> Lesson:
    """What was made of a lesson's class, under its name."""
    made.__doc__, made.__module__ = lesson.__doc__, lesson.__module__
    made.__name__ = made.__qualname__ = lesson.__name__
    return made


# --- Chapter 09's ---


def guarded(lesson: Lesson) -> Lesson:
    """The lesson's tokenizer, which names half a surrogate pair, or a false id."""

    class Guarded(lesson):
        @classmethod
        @wraps(lesson.from_text.__func__)
        def from_text(cls, text: str, *given, **named) -> Self:
            utf8(text)
            return super().from_text(text, *given, **named)

        @wraps(lesson.encode)
        def encode(self, text: str, *given, **named) -> Tensor:
            utf8(text)
            return super().encode(text, *given, **named)

        @wraps(lesson.decode)
        def decode(self, ids: Tensor | Sequence[int]) -> str:
            return super().decode(checked_ids(ids, self.vocab_size))

    return named_as(lesson, Guarded)


def hardened_bytes(lesson: Lesson) -> Lesson:
    """The lesson's ByteTokenizer, which refuses nonsense and can be saved."""

    class Hardened(guarded(lesson)):
        @wraps(lesson.encode)
        def encode(self, text: str) -> Tensor:
            ids = np.frombuffer(utf8(text), np.uint8)  # no list of 20 million ints
            return torch.from_numpy(ids.astype(np.int64))

        def to_dict(self) -> dict:
            """The tokenizer as plain JSON data."""
            return {"type": "byte"}

        @classmethod
        def from_dict(cls, data: dict) -> Self:
            """The tokenizer that `to_dict` described."""
            return cls()

    return named_as(lesson, Hardened)


def hardened_bpe(lesson: Lesson) -> Lesson:
    """The lesson's BPETokenizer, which refuses nonsense, is quick, and can be saved.

    Of GPT-2's, `byte_order[i]` is the byte that id i < 256 stands for (default: i).
    """

    class Hardened(guarded(lesson)):
        def __init__(
            self,
            merges: Iterable[tuple[int, int]],
            byte_order: Sequence[int] | None = None,
            special: Sequence[str] = (),
        ):
            order = [*range(256)] if byte_order is None else list(byte_order)
            numbers = all(type(b) is int for b in order)
            if not numbers or sorted(order) != [*range(256)]:
                raise ValueError("byte_order must hold each of 0..255 once")
            special = list(special)
            if not all(isinstance(s, str) and s for s in special):
                raise ValueError("special tokens must be strings, none of them empty")
            if len(set(special)) != len(special):
                raise ValueError("special tokens must not hold the same one twice")
            for name in special:
                utf8(name)
            merges = check_merges(merges)
            super().__init__(merges, special=special)
            self.byte_order, n = order, 256 + len(merges)
            self.tokens[:n] = [t.translate(bytes(order)) for t in self.tokens[:n]]
            self._numbers = bytes(np.argsort(order).tolist())  # of each byte

        @classmethod
        @wraps(lesson.from_text.__func__)
        def from_text(
            cls, text: str, vocab_size: int = 1024, special: Sequence[str] = ()
        ) -> Self:
            check_int("vocab_size", vocab_size, low=256 + len(special))
            return super().from_text(text, vocab_size, special)

        def merged(self, chunk: bytes) -> list[int]:
            """The lesson's ids of a chunk of n bytes, in n log n steps."""
            ids, row = self.number, [*chunk.translate(self._numbers), -1]
            before, after = list(range(-1, len(row) - 1)), list(range(1, len(row) + 1))
            pairs = enumerate(pairwise(row))
            heap = [(ids[pair], p) for p, pair in pairs if pair in ids]
            heapq.heapify(heap)
            while heap:
                new, p = heapq.heappop(heap)
                q = after[p]
                if ids.get((row[p], row[q])) != new:
                    continue  # one of the two was merged with another neighbour since
                row[p], row[q] = new, -1
                left, right = before[p], after[q]
                after[p], before[right] = right, p
                for place, pair in ((left, (row[left], new)), (p, (new, row[right]))):
                    if pair in ids:
                        heapq.heappush(heap, (ids[pair], place))
            return [i for i in row if i >= 0]

        def to_dict(self) -> dict:
            """The tokenizer as plain JSON data."""
            data = {"type": "bpe", "merges": [list(pair) for pair in self.merges]}
            if self.byte_order != [*range(256)]:
                data["byte_order"] = self.byte_order
            return {**data, "special": self.special} if self.special else data

        @classmethod
        def from_dict(cls, data: dict) -> Self:
            """The tokenizer that `to_dict` described; ValueError for nonsense."""
            merges, order = data.get("merges"), data.get("byte_order")
            special = data.get("special", [])
            if not all(isinstance(x, list) for x in (merges, order or [], special)):
                raise ValueError("merges, byte_order and special must be lists")
            return cls(merges, order, special)

    return named_as(lesson, Hardened)


def hardened_words(lesson: Lesson) -> Lesson:
    """The lesson's WordTokenizer, which refuses nonsense and can be saved."""

    class Hardened(guarded(lesson)):
        def __init__(self, words: Sequence[str]):
            words = list(words)
            if not all(isinstance(word, str) and word for word in words):
                raise ValueError("words must be strings of at least one character")
            for word in words:
                utf8(word)
            if len({self.unk, *words}) != 1 + len(words):
                raise ValueError(f"words must not hold a word twice, nor {self.unk!r}")
            super().__init__(words)

        @classmethod
        @wraps(lesson.from_text.__func__)
        def from_text(cls, text: str, vocab_size: int = 4096) -> Self:
            check_int("vocab_size", vocab_size, low=2)
            return super().from_text(text, vocab_size)

        def to_dict(self) -> dict:
            """The tokenizer as plain JSON data."""
            return {"type": "word", "words": self.words[1:]}

        @classmethod
        def from_dict(cls, data: dict) -> Self:
            """The tokenizer that `to_dict` described; ValueError for nonsense."""
            if not isinstance(data.get("words"), list):
                raise ValueError("words must be a list")
            return cls(data["words"])

    return named_as(lesson, Hardened)
