"""Chapter 09's byte pairs, for large texts: the same merges and ids, by numpy.

The lesson goes from place to place; here all places of a pair are merged together.
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

import numpy as np

from tinygpt_lib.basics.bars import bar
from tinygpt_lib.tokenizers import BPETokenizer

Pair = tuple[int, int]


class Row:
    """Chunks of tokens in one row, each linked to its neighbours: a merge moves none.

    A -1 stands before, between and after the chunks, and where a token was merged away.
    """

    def __init__(self, chunks: Iterable[bytes], token_of: np.ndarray):
        chunks = list(chunks)
        self.ends = np.cumsum([0, *(len(chunk) + 1 for chunk in chunks)])
        inside = np.ones(self.ends[-1] + 1, dtype=bool)
        inside[self.ends] = False
        self.tokens = np.full(len(inside), -1, dtype=np.int32)
        joined = np.frombuffer(b"".join(chunks), dtype=np.uint8)
        self.tokens[inside] = token_of.astype(np.int32)[joined]
        self.before = np.arange(-1, len(inside) - 1, dtype=np.int32)
        self.after = np.arange(1, len(inside) + 1, dtype=np.int32)

    def pairs(self) -> Iterator[tuple[Pair, np.ndarray]]:
        """Each pair, as long as nothing was merged, and its places from the left."""
        both = (self.tokens[:-1] >= 0) & (self.tokens[1:] >= 0)
        places = np.flatnonzero(both).astype(np.int32)
        keys = (self.tokens[places] * 256 + self.tokens[places + 1]).astype(np.uint16)
        order = np.argsort(keys, kind="stable").astype(np.int32)
        places, keys = places[order], keys[order]
        for key, part in cut(keys, places):
            yield divmod(key, 256), part

    def stands(self, pair: Pair, places: np.ndarray) -> np.ndarray:
        """At which of the places the pair stands still."""
        left = self.tokens[places] == pair[0]
        left[left] = self.tokens[self.after[places[left]]] == pair[1]
        return left

    def merge(self, pair: Pair, places: np.ndarray, new: int):
        """Puts a new token where the pair stands, from left to right.

        Of the pairs beside it that are no more, and of those there are instead: their
        first tokens, their second ones, and their places.
        """
        tokens, before, after = self.tokens, self.before, self.after
        places = places[self.stands(pair, places)]
        seconds = after[places]
        if pair[0] == pair[1]:  # of three in a row the first two
            index = np.arange(len(places))
            begins = np.append(True, places[1:] != seconds[:-1])
            begin = np.maximum.accumulate(np.where(begins, index, 0))
            first = (index - begin) % 2 == 0
            places, seconds = places[first], seconds[first]
        lefts, rights = before[places], after[seconds]
        apart = np.append(True, lefts[1:] != seconds[:-1])[: len(places)]
        lefts = lefts[apart]  # where two of the pair touch, the place between is one
        x, y, where = tokens[lefts], tokens[rights], np.append(lefts, places)
        tokens[places], tokens[seconds] = new, -1
        after[places], before[rights] = rights, places
        real = np.append(x, y) >= 0
        gone = beside(x, pair, y, where, real)
        return gone, beside(x, (new, new), tokens[rights], where, real)


def beside(x, pair: Pair, y, places, real):
    """The pairs (x, pair[0]) and (pair[1], y): first tokens, second ones, places."""
    firsts = np.append(x, np.full_like(y, pair[1]))
    seconds = np.append(np.full_like(x, pair[0]), y)
    return firsts[real], seconds[real], places[real]


def cut(keys: np.ndarray, places: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each of the keys, which are in order, and its places."""
    edges = [0, *(np.flatnonzero(keys[1:] != keys[:-1]) + 1).tolist(), len(keys)]
    for start, stop in pairwise(edges):
        if start < stop:
            yield int(keys[start]), places[start:stop]


def by_pair(firsts, seconds, places):
    """Each pair and its places, in their order."""
    keys = firsts.astype(np.int64) << 32 | seconds
    order = np.argsort(keys, kind="stable")
    for key, part in cut(keys[order], places[order]):
        yield (key >> 32, key & 0xFFFFFFFF), part


def learn_merges(counts: Mapping[bytes, int], n_merges: int) -> list[Pair]:
    """What chapter 09's `learn_merges` finds, in the same order."""
    row = Row(counts, np.arange(256))
    often = np.fromiter(counts.values(), dtype=np.int64, count=len(counts))
    often = often.astype(np.min_scalar_type(often.max(initial=0)))
    often = np.append(0, np.repeat(often, np.diff(row.ends)))  # of each place's chunk
    total, places, queue = {}, {}, []

    def add(pair: Pair, where: np.ndarray) -> None:
        n = int(often[where].sum(dtype=np.int64))
        if n > 1:  # a pair can lose places and never gains one
            total[pair], places[pair] = n, where
            heapq.heappush(queue, (-n, int(where[0]), pair))

    for pair, where in row.pairs():
        add(pair, where)
    merges: list[Pair] = []
    with bar(n_merges, "learning merges", "merge") as shown:
        while queue and len(merges) < n_merges:
            n, first, pair = heapq.heappop(queue)
            now, where = total.get(pair, 0), places.get(pair)
            if now < 2:
                continue
            if not row.stands(pair, where[:1]).all():
                where = places[pair] = where[row.stands(pair, where)]
            if (-now, where[0]) != (n, first):  # out of date: it was too good
                heapq.heappush(queue, (-now, int(where[0]), pair))
                continue
            new = 256 + len(merges)
            merges.append(pair)
            gone, made = row.merge(pair, where, new)
            del total[pair], places[pair]
            for other, lost in by_pair(*gone):
                if other in total:
                    total[other] -= int(often[lost].sum(dtype=np.int64))
                    if total[other] < 2:
                        del total[other], places[other]
            for other, found in by_pair(*made):
                add(other, found)
            shown.update()
    return merges


def encode_chunks(
    tokenizer: BPETokenizer, chunks: Iterable[bytes]
) -> tuple[np.ndarray, np.ndarray]:
    """The ids of all chunks, one after the other, and how many each has."""
    ids = {pair: i for i, pair in enumerate(tokenizer.merges, start=256)}
    row = Row(chunks, np.argsort(tokenizer.byte_order))
    waiting = {ids[pair]: where for pair, where in row.pairs() if pair in ids}
    queue = sorted(waiting)
    with bar(len(ids), "merging", "merge") as shown:
        while queue:
            new = heapq.heappop(queue)
            _, made = row.merge(tokenizer.merges[new - 256], waiting.pop(new), new)
            for pair, where in by_pair(*made):
                # What a merge makes can only be merged later, and is made by it alone.
                if later := ids.get(pair):
                    waiting[later] = where
                    heapq.heappush(queue, later)
            shown.update(new - 255 - shown.n)
    kept = row.tokens >= 0
    sizes = np.diff(np.cumsum(kept, dtype=np.int32)[row.ends])
    return row.tokens[kept], sizes
