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

import regex
import torch
from torch import Tensor

from tinygpt_lib.basics.tokens import hardened_bpe, hardened_bytes, hardened_words
from tinygpt_lib.bigram import evaluate

__all__ = [
    "BPETokenizer",
    "ByteTokenizer",
    "Pairs",
    "TextScore",
    "WordTokenizer",
    "chunks_of",
    "learn_merges",
    "replace_pair",
    "score_text",
]

# --- Bytes ---


@hardened_bytes
class ByteTokenizer:
    """One token per byte of the text in UTF-8; the id is the byte. Knows every text."""

    def __init__(self) -> None:
        self.tokens = [bytes([b]) for b in range(256)]

    @classmethod
    def from_text(cls, text: str) -> Self:
        """The same for every text: there is nothing to learn."""
        return cls()

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    def encode(self, text: str) -> Tensor:
        """Ids of shape (bytes of text,), int64."""
        return torch.tensor([*text.encode()], dtype=torch.int64)

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """The text of ids (N,), with U+FFFD where they are not UTF-8."""
        return b"".join(self.tokens[i] for i in ids).decode(errors="replace")

    def pieces(self, text: str) -> list[bytes]:
        """What each token of text stands for; joined, they are its UTF-8 bytes."""
        return [self.tokens[i] for i in self.encode(text).tolist()]


# --- Merging, by hand ---


def replace_pair(ids: Sequence[int], pair: tuple[int, int], new: int) -> list[int]:
    """ids with every such pair, from left to right, replaced by one new id."""
    out, i = [], 0
    while i < len(ids):
        if tuple(ids[i : i + 2]) == pair:
            out.append(new)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


# --- Cut first ---


def chunks_of(text: str) -> list[str]:
    """text cut as GPT-2 cuts it, nothing left out: words, numbers, signs, spaces."""
    words = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
    return regex.findall(rf"{words}|\s+(?!\S)|\s+", text)


# --- Touch only what changes ---


class Pairs:
    """Chunks in one row, how often each pair of neighbours occurs there, and where."""

    def __init__(self, counts: Mapping[bytes, int]):
        self.row, self.weight, self.size = [-1], [0], [1] * 256
        for chunk, n in counts.items():
            self.row += [*chunk, -1]
            self.weight += [n] * (len(chunk) + 1)
        self.total, self.places = defaultdict(int), defaultdict(deque)
        for p, pair in enumerate(pairwise(self.row)):
            if -1 not in pair:
                self.add(pair, p)

    def add(self, pair: tuple[int, int], p: int) -> None:
        self.total[pair] += self.weight[p]
        self.places[pair].append(p)

    def merge(self, pair: tuple[int, int]) -> set[tuple[int, int]]:
        """Makes one new token of the pair at all its places; the pairs it now makes."""
        (a, b), row, size, made = pair, self.row, self.size, set()
        new = len(size)
        size.append(size[a] + size[b])
        for p in self.places.pop(pair):
            if (row[p], row[p + size[a]]) == pair:
                x, y = row[p - 1], row[p + size[new]]
                row[p + size[a]] = -1
                row[p] = row[p + size[new] - 1] = new
                left = (x, a), (x, new), p - size[x]
                right = (b, y), (new, y), p
                for old, now, place in (left, right):
                    if -1 not in old:
                        self.total[old] -= self.weight[p]
                        self.add(now, place)
                        made.add(now)
        del self.total[pair]
        return made

    def entry(self, pair: tuple[int, int]):
        """Minus its count, its first place, the pair: the smallest entry is next."""
        where, n = self.places[pair], self.size[pair[0]]
        while (self.row[where[0]], self.row[where[0] + n]) != pair:  # no more
            where.popleft()
        return -self.total[pair], where[0], pair


def learn_merges(counts: Mapping[bytes, int], n_merges: int) -> list[tuple[int, int]]:
    """The pairs that byte-pair encoding merges in chunks, given how often each occurs.

    The most frequent pair first; among equals, the one that comes first in the chunks.
    Merge i makes token 256 + i. Fewer than n_merges when no pair that is left occurs
    twice. Gage, 1994; Sennrich et al., 2016.
    """
    pairs, merges = Pairs(counts), []
    heap = sorted(pairs.entry(pair) for pair, n in pairs.total.items() if n > 1)
    while heap and len(merges) < n_merges:
        top = heapq.heappop(heap)
        changed = {top[2]}
        if pairs.total[top[2]] > 1 and pairs.entry(top[2]) == top:
            merges.append(top[2])
            changed = pairs.merge(top[2])
        for pair in changed:
            if pairs.total[pair] > 1:
                heapq.heappush(heap, pairs.entry(pair))
    return merges


# --- Encoding ---


@hardened_bpe
class BPETokenizer(ByteTokenizer):
    """Byte-pair encoding: bytes, and what merging their most frequent pairs makes.

    Merge i makes token 256 + i; `special` names the tokens after the last merge.
    Sennrich et al., 2016; on bytes: Radford et al., 2019.
    """

    def __init__(self, merges: Iterable[tuple[int, int]], special: Sequence[str] = ()):
        super().__init__()
        self.merges, self.special = list(merges), list(special)
        self.number = {pair: i for i, pair in enumerate(self.merges, start=256)}
        for a, b in self.merges:
            self.tokens.append(self.tokens[a] + self.tokens[b])
        self.tokens += [name.encode() for name in self.special]

    @classmethod
    def from_text(cls, text: str, vocab_size: int = 1024, special=()) -> Self:
        """As many merges from text as vocab_size has room for, or as occur twice."""
        counts = Counter(map(str.encode, chunks_of(text)))
        merges = learn_merges(counts, vocab_size - 256 - len(special))
        return cls(merges, special=special)

    def merged(self, chunk: bytes) -> list[int]:
        """The ids of a chunk: of its possible merges the earliest, again and again."""
        ids = list(chunk)
        while possible := self.number.keys() & set(pairwise(ids)):
            pair = min(possible, key=self.number.get)
            ids = replace_pair(ids, pair, self.number[pair])
        return ids

    def ids_of(self, text: str) -> list[int]:
        """The ids of any text; none of them is special."""
        chunks = chunks_of(text)
        known = {chunk: self.merged(chunk.encode()) for chunk in set(chunks)}
        return list(chain.from_iterable(map(known.__getitem__, chunks)))

    def encode(self, text: str, special: bool = False) -> Tensor:
        """Ids (N,) of text; with `special`, a special token's name becomes its id."""
        parts, names = [text], sorted(self.special, key=len, reverse=True)
        if special and names:
            parts = re.split(f"({'|'.join(map(re.escape, names))})", text)
        first, ids = 256 + len(self.merges), self.ids_of(parts[0])
        for name, after in zip(parts[1::2], parts[2::2], strict=True):
            ids += [first + self.special.index(name), *self.ids_of(after)]
        return torch.tensor(ids, dtype=torch.int64)


# --- Words ---


@hardened_words
class WordTokenizer(ByteTokenizer):
    """One token per word or sign, with the space before it; <unk> for the rest."""

    unk = "<unk>"
    pattern = re.compile(r" ?\w+|'\w+| ?[^\w\s]|\s")

    def __init__(self, words: Sequence[str]):
        self.words = [self.unk, *words]
        self.number = {word: i for i, word in enumerate(self.words)}
        self.tokens = [word.encode() for word in self.words]

    @classmethod
    def from_text(cls, text: str, vocab_size: int = 4096) -> Self:
        """The most frequent words of text; among equals, those that come first."""
        counts = Counter(cls.pattern.findall(text))
        known = [word for word, _ in counts.most_common(vocab_size - 2)]
        return cls([f" {cls.unk}", *known])

    def encode(self, text: str) -> Tensor:
        """Ids (N,) of any text: 0 and 1 for unknown words, 1 after a space."""
        spaced = self.number.get(f" {self.unk}", 0)
        words = self.pattern.findall(text)
        ids = [self.number.get(w, spaced if w[0] == " " else 0) for w in words]
        return torch.tensor(ids, dtype=torch.int64)

    def pieces(self, text: str) -> list[bytes]:
        """What each token of text stands for; joined, they are its UTF-8 bytes."""
        return [word.encode() for word in self.pattern.findall(text)]


# --- One score for all ---


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
        return self.nats_per_token * self.n_tokens / math.log(2) / self.n_bytes


def score_text(model, tokenizer, text: str) -> TextScore:
    """The score of a GPT on text; ValueError for a text of fewer than two tokens."""
    ids = tokenizer.encode(text)
    nats = evaluate(model, ids)
    pieces = tokenizer.pieces(text)[1:]
    alone = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
    shown = [piece.decode(errors="replace") for piece in pieces]
    unknown = sum(alone[i] != s for i, s in zip(ids[1:].tolist(), shown, strict=True))
    return TextScore(len(ids) - 1, unknown, sum(map(len, pieces)), nats)
