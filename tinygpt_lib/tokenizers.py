# generated from notebooks/text/09_tokenizers.py: edit there
"""Tokenizers: what is the right unit?"""

import heapq
import math
import re
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Self

import numpy as np
import torch
from torch import Tensor

from tinygpt_lib.basics.checks import check_int
from tinygpt_lib.basics.tokens import check_merges, checked_ids, utf8
from tinygpt_lib.bigram import evaluate

__all__ = [
    "GPT2_PATTERN",
    "WORD_PATTERN",
    "BPETokenizer",
    "ByteTokenizer",
    "TextScore",
    "WordTokenizer",
    "chunks_of",
    "learn_merges",
    "pieces_of",
    "score_text",
]

# --- Bytes ---


class ByteTokenizer:
    """One token per byte of the text in UTF-8; the id is the byte. Knows every text."""

    vocab_size = 256

    @classmethod
    def from_text(cls, text: str) -> Self:
        """The same for every text: there is nothing to fit."""
        return cls()

    def encode(self, text: str) -> Tensor:
        """Ids of shape (bytes of text,), int64; ValueError for a lone surrogate."""
        ids = np.frombuffer(utf8(text), dtype=np.uint8)  # no list of 20 million ints
        return torch.from_numpy(ids.astype(np.int64))

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """The text of ids (N,), U+FFFD where not UTF-8; ValueError for a bad id."""
        return bytes(checked_ids(ids, 256)).decode("utf-8", errors="replace")

    def pieces(self, text: str) -> list[bytes]:
        """What each token of text stands for; joined, they are its UTF-8 bytes."""
        return [bytes([b]) for b in utf8(text)]

    def to_dict(self) -> dict:
        """The tokenizer as plain JSON data."""
        return {"type": "byte"}

    @classmethod
    def from_dict(cls, data: dict) -> Self:
        """The tokenizer that `to_dict` described."""
        return cls()


# --- Chunks first ---

GPT2_PATTERN = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)


def chunks_of(text: str) -> list[str]:
    """text cut as GPT-2 cuts it, nothing left out: words, numbers, signs, blanks."""
    import regex  # \p{L}, any letter of any script, is unknown to Python's own re

    return regex.findall(GPT2_PATTERN, text)


# --- Touching only what changes ---


def learn_merges(counts: Mapping[bytes, int], n_merges: int) -> list[tuple[int, int]]:
    """The pairs that byte-pair encoding merges in chunks, given how often each occurs.

    The most frequent pair first; among equals, the one that comes first in the chunks,
    in their order. Merge i makes token 256 + i. Fewer than n_merges when no pair that
    is left occurs twice. Gage, 1994; Sennrich et al., 2016.
    """
    # 1. All chunks in one row, a -1 before, between and after them, and each place
    #    linked to its neighbours, so that a merge moves nothing.
    row, weight = [-1], [0]
    for chunk, n in counts.items():
        row += [*chunk, -1]
        weight += [n] * (len(chunk) + 1)
    before, after = list(range(-1, len(row) - 1)), list(range(1, len(row) + 1))

    # 2. How often each pair occurs, and where, from left to right.
    total, places = defaultdict(int), defaultdict(deque)
    for p in range(len(row) - 1):
        if row[p] >= 0 and row[p + 1] >= 0:
            pair = row[p], row[p + 1]
            total[pair] += weight[p]
            places[pair].append(p)

    def entry(pair):
        """(-count, first place, pair), the smallest of which is merged next."""
        where = places[pair]
        while (row[where[0]], row[after[where[0]]]) != pair:  # merged away since
            where.popleft()
        return -total[pair], where[0], pair

    queue = [entry(pair) for pair in total if total[pair] > 1]
    heapq.heapify(queue)
    merges = []
    while queue and len(merges) < n_merges:
        # 3. An entry may be out of date, but only too good: a pair that exists can
        #    lose places and never gains one. So the first that is true is the best.
        old = heapq.heappop(queue)
        pair = old[2]
        if total[pair] < 2:
            continue
        now = entry(pair)
        if now != old:
            heapq.heappush(queue, now)
            continue
        # 4. Merge it where it still stands; only the pairs beside it change.
        (a, b), new, made = pair, 256 + len(merges), set()
        merges.append(pair)
        for p in places.pop(pair):
            q = after[p]
            if row[p] != a or row[q] != b:
                continue
            left, right, n = before[p], after[q], weight[p]
            row[p], row[q] = new, -1
            after[p], before[right] = right, p
            x, y = row[left], row[right]
            if x >= 0:
                total[x, a] -= n
                total[x, new] += n
                places[x, new].append(left)
                made.add((x, new))
            if y >= 0:
                total[b, y] -= n
                total[new, y] += n
                places[new, y].append(p)
                made.add((new, y))
        total[pair] = 0
        for pair in made:
            if total[pair] > 1:
                heapq.heappush(queue, entry(pair))
    return merges


# --- Byte-pair encoding ---


class BPETokenizer:
    """Byte-pair encoding: bytes, and what merging their most frequent pairs makes.

    Merge i is a pair of ids below 256 + i and makes token 256 + i. `byte_order[i]` is
    the byte that id i < 256 stands for (default: i); `special` are tokens after the
    last merge, which text never becomes but `decode` shows. ValueError for what can't
    be. Sennrich et al., 2016; on bytes: Radford et al., 2019.
    """

    def __init__(
        self,
        merges: Iterable[tuple[int, int]],
        byte_order: Sequence[int] | None = None,
        special: Sequence[str] = (),
    ):
        self.merges = check_merges(merges)
        self.byte_order = [*range(256)] if byte_order is None else list(byte_order)
        self.special = list(special)
        numbers = all(type(b) is int for b in self.byte_order)
        if not numbers or sorted(self.byte_order) != [*range(256)]:
            raise ValueError("byte_order must hold each of 0..255 once")
        if not all(isinstance(s, str) and s for s in self.special):
            raise ValueError("special tokens must be strings of at least one character")
        self._ids = {pair: i for i, pair in enumerate(self.merges, start=256)}
        self.tokens = [bytes([b]) for b in self.byte_order]
        for a, b in self.merges:
            self.tokens.append(self.tokens[a] + self.tokens[b])
        self.tokens += [utf8(s) for s in self.special]
        self._byte_ids = {b: i for i, b in enumerate(self.byte_order)}

    @classmethod
    def from_text(cls, text: str, vocab_size: int = 1024) -> Self:
        """As many merges from text as vocab_size leaves room for, or fewer.

        Fewer, because a pair has to occur twice to be merged. ValueError for a
        vocab_size below 256, or a lone surrogate.
        """
        check_int("vocab_size", vocab_size, low=256)
        utf8(text)  # names the place in the whole text, if need be
        counts = Counter(chunks_of(text))
        encoded = {chunk.encode(): n for chunk, n in counts.items()}
        return cls(learn_merges(encoded, vocab_size - 256))

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    def encode(self, text: str) -> Tensor:
        """Ids (N,), int64, of any text; ValueError for a lone surrogate."""
        utf8(text)
        chunks = chunks_of(text)
        known = {chunk: self._merged(chunk.encode()) for chunk in set(chunks)}
        ids = list(chain.from_iterable(map(known.__getitem__, chunks)))
        return torch.tensor(ids, dtype=torch.int64)

    def _merged(self, chunk: bytes) -> list[int]:
        """One chunk's ids: the earliest merge first, and each from left to right."""
        row = [*map(self._byte_ids.__getitem__, chunk), -1]  # -1: no neighbour
        before, after = list(range(-1, len(row) - 1)), list(range(1, len(row) + 1))
        ids = self._ids
        pairs = enumerate(pairwise(row))
        queue = [(ids[pair], p) for p, pair in pairs if pair in ids]
        heapq.heapify(queue)
        while queue:
            new, p = heapq.heappop(queue)
            q = after[p]
            if ids.get((row[p], row[q])) != new:
                continue  # one of the two was merged with another neighbour since
            row[p], row[q] = new, -1
            left, right = before[p], after[q]
            after[p], before[right] = right, p
            for place, pair in ((left, (row[left], new)), (p, (new, row[right]))):
                if pair in ids:
                    heapq.heappush(queue, (ids[pair], place))
        return [i for i in row if i >= 0]

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """The text of ids (N,), U+FFFD where not UTF-8; ValueError for a bad id."""
        ids = checked_ids(ids, self.vocab_size)
        joined = b"".join([self.tokens[i] for i in ids])
        return joined.decode("utf-8", errors="replace")

    def pieces(self, text: str) -> list[bytes]:
        """What each token of text stands for; joined, they are its UTF-8 bytes."""
        return [self.tokens[i] for i in self.encode(text).tolist()]

    def to_dict(self) -> dict:
        """The tokenizer as plain JSON data."""
        data = {"type": "bpe", "merges": [list(pair) for pair in self.merges]}
        if self.byte_order != list(range(256)):
            data["byte_order"] = self.byte_order
        if self.special:
            data["special"] = self.special
        return data

    @classmethod
    def from_dict(cls, data: dict) -> Self:
        """The tokenizer that `to_dict` described; ValueError for nonsense."""
        merges, order = data.get("merges"), data.get("byte_order")
        special = data.get("special", [])
        if not all(isinstance(x, list) for x in (merges, order or [], special)):
            raise ValueError("merges, byte_order and special must be lists")
        return cls(merges, order, special)


# --- Words ---

WORD_PATTERN = re.compile(r" ?\w+|'\w+| ?[^\w\s]|\s")


class WordTokenizer:
    """One token per word or sign, with the blank before it; <unk> for the rest.

    Id 0 is the unknown word, ids 1 and up are `words`; among them `from_text` puts the
    unknown one with a blank before it first. All that is lost is which word an unknown
    one was. ValueError for a word twice, or empty.
    """

    unk = "<unk>"

    def __init__(self, words: Sequence[str]):
        self.words = [self.unk, *words]
        if not all(isinstance(w, str) and w for w in self.words):
            raise ValueError("words must be strings of at least one character")
        for word in self.words:
            utf8(word)
        self._ids = {word: i for i, word in enumerate(self.words)}
        if len(self._ids) != len(self.words):
            raise ValueError(f"words must not hold a word twice, nor {self.unk!r}")

    @classmethod
    def from_text(cls, text: str, vocab_size: int = 4096) -> Self:
        """The vocab_size - 2 most frequent words of text, or all if it has fewer.

        Among equally frequent ones, those that come first. ValueError for a vocab_size
        below 2, or a lone surrogate.
        """
        check_int("vocab_size", vocab_size, low=2)
        utf8(text)
        counts = Counter(WORD_PATTERN.findall(text))
        known = [word for word, _ in counts.most_common(vocab_size - 2)]
        return cls([f" {cls.unk}", *known])

    @property
    def vocab_size(self) -> int:
        return len(self.words)

    def encode(self, text: str) -> Tensor:
        """Ids (N,), int64, of any text; ValueError for a lone surrogate."""
        utf8(text)
        after_blank = self._ids.get(f" {self.unk}", 0)
        ids = [
            self._ids.get(word, after_blank if word[0] == " " else 0)
            for word in WORD_PATTERN.findall(text)
        ]
        return torch.tensor(ids, dtype=torch.int64)

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """The text of ids (N,), with <unk> in it; ValueError for a bad id."""
        return "".join([self.words[i] for i in checked_ids(ids, self.vocab_size)])

    def pieces(self, text: str) -> list[bytes]:
        """What each token of text stands for; joined, they are its UTF-8 bytes."""
        return [word.encode() for word in WORD_PATTERN.findall(text)]

    def to_dict(self) -> dict:
        """The tokenizer as plain JSON data."""
        return {"type": "word", "words": self.words[1:]}

    @classmethod
    def from_dict(cls, data: dict) -> Self:
        """The tokenizer that `to_dict` described; ValueError for nonsense."""
        if not isinstance(data.get("words"), list):
            raise ValueError("words must be a list")
        return cls(data["words"])


# --- One score for all ---


def pieces_of(tokenizer, text: str) -> list[bytes]:
    """What each token of text stands for, in bytes; joined, they are the text's."""
    if hasattr(tokenizer, "pieces"):
        return tokenizer.pieces(text)
    return [character.encode() for character in text]


@dataclass
class TextScore:
    """How well a model predicts a text, every token but the first."""

    n_tokens: int  # predicted
    n_unknown: int  # of these, how many stood for something the tokenizer can't name
    n_bytes: int  # of text that the predicted tokens stand for
    nats_per_token: float

    @property
    def bits_per_byte(self) -> float:
        """The same for every unit; too low if n_unknown is not 0."""
        nats = self.nats_per_token * self.n_tokens
        return nats / math.log(2) / self.n_bytes


def score_text(model, tokenizer, text: str) -> TextScore:
    """The score of a GPT on text; ValueError for a text of fewer than two tokens."""
    ids = tokenizer.encode(text)
    nats = evaluate(model, ids)
    pieces = pieces_of(tokenizer, text)
    alone = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
    unknown = sum(
        alone[i] != piece.decode("utf-8", errors="replace")
        for i, piece in zip(ids[1:].tolist(), pieces[1:], strict=True)
    )
    n_bytes = sum(map(len, pieces[1:]))
    return TextScore(len(ids) - 1, unknown, n_bytes, nats)
