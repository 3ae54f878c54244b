# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,jupyter,-all
#     formats: notebooks///ipynb,notebooks/text///py:percent
#     notebook_metadata_filter: kernelspec,jupytext,-jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 09 · Tokenizers
# > What is the right unit?
#
# Where we are: Part I built a GPT whose unit is the character. In chapter 07 it reached 1.80 nats a
# character. The unit was never put to the test: we took the first one that came to mind. A smaller
# one, the byte, would know every text there is. A larger one, the word, would let the same window
# of 64 tokens see several times as far.
#
# This chapter builds three more tokenizers behind the interface of chapter 01, and trains the same
# model on each for the same time. The number to beat is what the character model reaches in that
# time. Before anything can be compared, though, we need a score that means the same for every unit.

# %%
import json
import time
from pathlib import Path

from course import BLUE, GREEN, ORANGE, RED, plt, show
from tinygpt_lib import load_shakespeare
from tinygpt_lib.generation import generate
from tinygpt_lib.gpt import GPT
from tinygpt_lib.runs.huggingface import gpt2_alphabet, read_gpt2
from tinygpt_lib.runs.run import train
from tinygpt_lib.runs.settings import TrainConfig
from tinygpt_lib.runs.tokenizers import tokenizer_from_dict
from tinygpt_lib.text import CharTokenizer, split
from tinygpt_lib.training import cpu_preset

text = load_shakespeare()
train_text, val_text = split(text)

# %%
#| export
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

# %% [markdown]
# ## Bytes
# What a character tokenizer has not met, it can't say. Ours has met 65 characters, and a single
# letter outside English stops it:

# %% tags=["nbval-check-output"]
characters = CharTokenizer.from_text(text)
try:
    characters.encode("Où est Roméo?")
except ValueError as error:
    print(error)

# %% [markdown]
# Listing more characters does not end the trouble: Unicode has more than 150,000, and new ones are
# added nearly every year. But every text is stored as bytes, and there are only 256 of those. The
# usual way to write characters as bytes is **UTF-8**: one byte for each character that English
# needs, two to four for all others.

# %% tags=["nbval-check-output"]
for character in "aù€😀":
    print(character, list(character.encode("utf-8")))

# %% [markdown]
# So a tokenizer with 256 tokens knows every text. Two things can still go wrong. Python strings may
# hold half of a *surrogate pair*, a leftover of another way to store text; alone it is no character
# and has no bytes. And a model may write bytes in an order that is not UTF-8. The first is an
# error that says where, the second is shown as `�`, the character U+FFFD that stands for
# what can't be read.


# %% [markdown]
# With this and chapter 01's `checked_ids` the byte tokenizer needs nothing else. `pieces` says
# which bytes each token stands for; we will need it to keep the score.


# %%
#| export
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


# %% [markdown]
# Nothing is lost on the way there and back. Cut inside a character, the second half of `ù` missing,
# it shows the gap:

# %% tags=["nbval-check-output"]
ids = ByteTokenizer().encode("Où")
assert ByteTokenizer().decode(ids) == "Où"
ids.tolist(), ByteTokenizer().decode(ids[:2])

# %% [markdown]
# The price: a text in Greek gets nearly twice as many tokens as characters, one in Chinese three
# times as many. On Shakespeare, bytes and characters are the same thing, only with 191 tokens that
# never occur.

# %% [markdown]
# ## Merging, by hand
# Now for larger units. **Byte-pair encoding** (Gage, 1994, to compress files; Sennrich et al.,
# 2016, for words; Radford et al., 2019, on bytes, for GPT-2) has one idea: find the pair of tokens
# that stands side by side most often, and make it a new token. Then do it again.
#
# Here is a string that can be followed by hand.
#
# ![Three merges on aaabdaaabac, row by row: the commonest pair, first aa, then aa a, then aaa b, becomes one token of its own, so 11 tokens become 9, 7 and 5, until no pair occurs twice.](drawings/merges.svg)
#
# How often does each pair occur at first?

# %% tags=["nbval-check-output"]
ids = list(b"aaabdaaabac")
counts = Counter(pairwise(ids))
{chr(a) + chr(b): n for (a, b), n in counts.items()}

# %% [markdown]
# `aa` occurs four times (in `aaa` it is counted twice, since the two overlap). So the first new
# token, number 256, is `aa`. Replacing goes from left to right, and what was used is used up: of
# `aaa` the first two become the token, and the third stays.


# %% tags=["nbval-check-output"]
def replace_pair(ids, pair, new):
    """ids with every pair, from left to right, replaced by one new id."""
    out, i = [], 0
    while i < len(ids):
        if tuple(ids[i : i + 2]) == pair:
            out.append(new)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


ids = replace_pair(ids, (97, 97), 256)
ids

# %% [markdown]
# Count again. Now two pairs occur twice: `aa` with `a`, and `a` with `b`.

# %% tags=["nbval-check-output"]
counts = Counter(pairwise(ids))
counts.most_common()

# %% [markdown]
# A tie needs a rule, or two programs learn different tokens from the same text. Ours: **among
# equally frequent pairs, the one that comes first in the text.** Here this is `(256, 97)`, so token
# 257 is `aaa`. And we stop when no pair occurs twice. Merging what was seen once makes the text
# shorter, but there is no reason to expect it again.
#
# The whole thing, for a text that is already cut into chunks (why it is cut, we see in a moment):


# %%
def naive_merges(chunks, n_merges):
    """Counts everything anew and replaces everything anew, for each merge."""
    chunks, merges = [list(chunk) for chunk in chunks], []
    while len(merges) < n_merges:
        counts = Counter(pair for chunk in chunks for pair in pairwise(chunk))
        if not counts or max(counts.values()) < 2:
            break
        pair = max(counts, key=counts.get)  # the first of them, as counted
        chunks = [replace_pair(c, pair, 256 + len(merges)) for c in chunks]
        merges.append(pair)
    return merges, chunks


# %% [markdown]
# Three merges turn eleven bytes into five tokens:

# %% tags=["nbval-check-output"]
naive_merges([b"aaabdaaabac"], 10)

# %% [markdown]
# It stopped at three by itself: after `aaab` nothing occurs twice.
#
# ## Chunks first
# What happens on real text, taken as one long string?

# %% tags=["nbval-check-output"]
sample = train_text[:20_000]


def spelled(merges):
    """The text of each new token."""
    tokens = [bytes([b]) for b in range(256)]
    for a, b in merges:
        tokens.append(tokens[a] + tokens[b])
    return [token.decode() for token in tokens[256:]]


print(spelled(naive_merges([sample.encode()], 40)[0]))

# %% [markdown]
# Some of these are no units at all: `, ` glues a comma to a blank, `e ` the end of one word to the
# gap before the next. A token that ends with a blank forces the next to begin without one, so that
# one word gets several names. GPT-2 therefore cuts the text first, and never merges across a cut.
# Its pattern takes a word with the blank before it, and keeps endings such as `'ll`, numbers,
# punctuation and line breaks apart. `\p{L}` means a letter of any script and `\p{N}` a number sign.
# Python's own `re` does not know them, so the package `regex` does the cutting.


# %%
#| export
GPT2_PATTERN = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)


def chunks_of(text: str) -> list[str]:
    """text cut as GPT-2 cuts it, nothing left out: words, numbers, signs, blanks."""
    import regex  # \p{L}, any letter of any script, is unknown to Python's own re

    return regex.findall(GPT2_PATTERN, text)


# %% [markdown]
# No character is left out, the blanks included, so that joining the chunks gives the text back.

# %% tags=["nbval-check-output"]
line = "Don't stop:  we'll sail in 1623!\n\n"
assert "".join(chunks_of(line)) == line
chunks_of(line)

# %% [markdown]
# Forty merges again, now within chunks. There are beginnings of words, common endings, and the first
# whole words:

# %% tags=["nbval-check-output"]
chunks = [chunk.encode() for chunk in chunks_of(sample)]
expected, merged = naive_merges(chunks, 40)
print(spelled(expected))

# %% [markdown]
# ## Touching only what changes
# The naive way goes over the whole text for each merge. On a million characters and 768 merges,
# that is hundreds of millions of pairs to look at, minutes of Python. Two observations save nearly
# all of it.
#
# First, the same chunks come again and again. It is enough to keep each *different* chunk once,
# with the number of times it occurs:

# %% tags=["nbval-check-output"]
cut = Counter(chunks_of(train_text))
print(f"{sum(cut.values()):,} chunks, {len(cut):,} different ones")
cut.most_common(5)

# %% [markdown]
# Second, a merge changes little. Where `t`, `h` become one, only the pair that ends in this `t`,
# the pair itself, and the pair that begins with this `h` are affected, and only in the places where
# it stands. So we remember for each pair how often it occurs *and where*, and each merge visits its
# own places only. All chunks lie in one row, and every place knows its neighbours, so that a merged
# token can drop out without moving the others.
#
# Finding the most frequent pair is the job of a *heap*, a list that always has its smallest entry
# ready. Counts go in with a minus sign, so the most frequent pair is the smallest entry, and its
# place comes second and settles ties. Its entries go out of date as counts fall, but they can only
# be too good: a pair that exists can lose places and never gains one, since every new place has the
# new token in it. So an entry that is still true when it comes out on top really is the best. And
# because the unique chunks keep the order in which they first occurred, *first in the row* is
# *first in the text*, and the rule for ties stays the same.


# %%
#| export
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


# %% [markdown]
# The old result inside the new one, merge for merge, on both texts:

# %%
assert learn_merges({b"aaabdaaabac": 1}, 10) == [(97, 97), (256, 97), (257, 98)]
assert learn_merges(Counter(chunks), 40) == expected

# %% [markdown]
# And the time, for 40 merges of 20,000 characters:

# %%
start = time.perf_counter()
naive_merges(chunks, 40)
naive_seconds = time.perf_counter() - start
start = time.perf_counter()
learn_merges(Counter(chunks), 40)
fast_seconds = time.perf_counter() - start
assert fast_seconds < naive_seconds
print(f"{naive_seconds:.3f} s, then {fast_seconds:.3f} s")

# %% [markdown]
# The longer the text and the more merges, the larger the gain: cutting and counting are paid for
# once, and later merges have fewer and fewer places.

# %% [markdown]
# ## Byte-pair encoding
# To encode a new text means to do the same merges *in the order in which they were learnt*. Order
# matters. With the merges `ab`, then `bc`, the text `abc` becomes `ab`, `c`; in the other order it
# would be `a`, `bc`. So for each chunk a heap holds the merges that are possible now, the earliest
# on top, from left to right. That takes about $n \log n$ steps for a chunk of $n$ bytes, even if it
# is 100,000 bytes without a blank, where looking for the earliest pair anew each time would take
# $n^2$.
#
# Merges may come from a file, so the library's `check_merges` looks at them first. Sixty merges, each of the
# last token with itself, are a small file and a token of $2^{60}$ bytes.


# %% [markdown]
# The class itself. Each different chunk is encoded once per call. `byte_order` and `special` are
# only for tokenizers that others made; below, GPT-2's needs them.


# %%
#| export
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


# %% [markdown]
# The string from above once more, and some texts that break tokenizers: nothing at all, accents,
# emoji, line ends as Windows writes them, and one letter 100,000 times.

# %% tags=["nbval-check-output"]
tiny = BPETokenizer.from_text("aaabdaaabac", vocab_size=259)
for odd in ("", "Où est\r\n  Roméo? 👍🏽\t\x00", "a" * 100_000):
    assert tiny.decode(tiny.encode(odd)) == odd
tiny.encode("aaabdaaabac"), tiny.encode("a" * 100_000).shape

# %% [markdown]
# Now on the plays. The merges are learnt from the *training* text alone. They are fitted to a text,
# as weights are, and the validation text has to stay unseen by both. (For characters we took the
# whole text. It makes no difference, since its first nine tenths hold all 65.)

# %% tags=["nbval-check-output"]
bpe = BPETokenizer.from_text(train_text, vocab_size=1024)
print([bpe.decode([i]) for i in range(256, 276)])
print([bpe.decode([i]) for i in range(1004, 1024)])

# %% [markdown]
# The first twenty tokens are mostly pairs, of letters or of a blank and a letter. Among the last
# twenty are some whole words with their blank and a speaker's name, and many pieces of words still.
# Here is how one line is cut as the vocabulary grows:


# %%
def draw_tokens(ax, y, pieces, label):
    """The pieces of a text side by side, in boxes of two tints."""
    x = 0
    for i, piece in enumerate(pieces):
        shown = piece.decode("utf-8", errors="replace").replace("\n", "⏎")
        color = ("#cfe3f1", "#fbe3b5")[i % 2]
        ax.barh(y, len(shown), left=x, color=color, height=0.7)
        ax.text(x, y, shown.replace(" ", "·"), family="monospace", va="center", size=9)
        x += len(shown)
    ax.text(-1, y, f"{label}: {len(pieces)}", ha="right", va="center")


line = "KATHARINA:\nI see a woman may be made a fool,"
rows = {"bytes": ByteTokenizer(), "BPE 300": None, "BPE 1,024": bpe, "BPE 4,096": None}
rows["BPE 300"] = BPETokenizer.from_text(train_text, vocab_size=300)
rows["BPE 4,096"] = BPETokenizer.from_text(train_text, vocab_size=4096)
fig, ax = plt.subplots(figsize=(9, 2.2))
for y, (label, tokenizer) in enumerate(rows.items()):
    draw_tokens(ax, -y, tokenizer.pieces(line), label)
ax.set(xlim=(-9, len(line) + 1))
ax.axis("off")
show(
    fig,
    alt="One line of a play cut into tokens four times: single letters for bytes, "
    "pieces of two letters for 300 tokens, whole words for 4,096.",
)

# %% [markdown]
# *A dot is a blank, ⏎ a line break; the number behind each name counts the tokens. With 1,024
# tokens and more, most words become one token with the blank before them. The rare ones stay in
# pieces, so nothing is ever unknown.*
#
# How fast is it? `benchmarks/bpe_speed.py` measured it on a million characters and 1,024 tokens,
# beside two others: minbpe, Andrej Karpathy's lesson in BPE, which counts anew for each merge, and
# Hugging Face's tokenizers, which are written in Rust. minbpe has the same rule for ties, and so
# the same merges. Hugging Face's has another, so its own merges part from ours at some point; given
# ours, it gives the same ids.

# %%
speed = json.loads(Path("../benchmarks/bpe_speed.json").read_text())
assert speed["merges equal to minbpe's"] and speed["ids equal to minbpe's"]
for what, measured_in in speed["seconds"].items():
    print(f"{what:14} {measured_in['median']:8.2f} s")

# %% [markdown]
# All on one thread (minbpe's training once, the rest as medians), and on a text where few different
# chunks come again and again, of which ours encodes each only once. On other text, or with more
# threads, the order may change.
#
# How much shorter does a text get? The more tokens there are, the more each one stands for:

# %%
sizes = (256, 300, 512, 1024, 2048, 4096, 8192)
per_token = {"training text": [], "validation text": []}
for size in sizes:
    tokenizer = BPETokenizer.from_text(train_text, vocab_size=size)
    for name, part in zip(per_token, (train_text, val_text), strict=True):
        per_token[name].append(len(part) / len(tokenizer.encode(part)))

fig, ax = plt.subplots(figsize=(6.5, 3.2))
for (name, values), color in zip(per_token.items(), [BLUE, RED], strict=True):
    ax.semilogx(sizes, values, "o-", color=color, label=name)
ax.set_xticks(sizes, [f"{n:,}" for n in sizes], fontsize=8)
ax.minorticks_off()
ax.set(xlabel="vocabulary (tokens)", ylabel="bytes per token", ylim=(0, None))
ax.legend()
show(
    fig,
    alt="Bytes per token against the size of the vocabulary: rising from 1 at 256 to "
    "about 3 at 4,096, on the training text a little faster than on the validation text.",
)

# %% [markdown]
# *The first doubling, from 256 to 512, nearly doubles what a token stands for. After that each one
# adds about a third of a byte on the validation text. The two curves part because some of the
# merges know the plays of the training text, and no others. The longest tokens show it:*

# %% tags=["nbval-check-output"]
assert per_token["training text"][-1] > per_token["validation text"][-1] > 3
[token.decode() for token in sorted(rows["BPE 4,096"].tokens, key=len)[-6:]]

# %% [markdown]
# ## GPT-2's own vocabulary
# GPT-2's tokenizer is of just this kind, with 50,000 merges. Its authors published it as two text
# files, and text files can't hold all bytes. So each byte is written as some visible character, the
# blank as `Ġ`. The visible ones come first, and that is also their order as ids: `!` is 0. The
# end of a document has a token of its own, which no text ever becomes. The library reads them by
# `read_gpt2(folder)`. Two small files of the same format, written by hand, show what is in them:


# %% tags=["nbval-check-output"]
import tempfile

merges = ["h e", "Ġ t", "Ġt he"]
tokens = [*gpt2_alphabet(), "he", "Ġt", "Ġthe", "<|endoftext|>"]
with tempfile.TemporaryDirectory() as folder:
    Path(folder, "vocab.bpe").write_text(
        "#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8"
    )
    numbers = {token: i for i, token in enumerate(tokens)}
    Path(folder, "encoder.json").write_text(json.dumps(numbers))
    small = read_gpt2(folder)
small.encode("!the the"), small.decode([258, 259])

# %% [markdown]
# ## Words
# Why stop at pieces? Let each word be a token, with the blank before it, and each sign and line
# break too. This cutting loses nothing. But there is no end of words, so a vocabulary of words has
# to be cut off: it keeps the most frequent ones, and all the rest become `<unk>`, *unknown*.


# %%
#| export
WORD_PATTERN = re.compile(r" ?\w+|'\w+| ?[^\w\s]|\s")

# %% [markdown]
# The rest is a list of words, with the unknown one in front. A second unknown one has a blank before
# it: what the word was is not known, but the blank is.


# %%
#| export
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


# %% [markdown]
# What is lost is lost for good: which word it was.

# %% tags=["nbval-check-output"]
words = WordTokenizer.from_text(train_text, vocab_size=4096)
line = "GREMIO:\nHer affability and bashful modesty,\n"
print(words.decode(words.encode(line)))
[piece.decode() for piece in words.pieces(line)]

# %% [markdown]
# How often does that happen on text that was not used for counting? It falls with every word that
# is added, but the last ones help little. Even with all words of the training text, some of the
# validation text is unknown, first of all names that occur nowhere else, such as `PROSPERO`.

# %%
sizes = (128, 512, 2048, 4096, 8192, 10**6)
known_sizes, unknown = [], []
for size in sizes:
    tokenizer = WordTokenizer.from_text(train_text, vocab_size=size)
    known_sizes.append(tokenizer.vocab_size)
    unknown.append(100 * (tokenizer.encode(val_text) < 2).float().mean().item())

fig, ax = plt.subplots(figsize=(6.5, 3))
ax.semilogx(known_sizes, unknown, "o-", color=ORANGE)
ax.set_xticks(known_sizes, [f"{n:,}" for n in known_sizes], fontsize=8)
ax.minorticks_off()
ax.set(xlabel="vocabulary (words and signs)", ylabel="unknown (%)", ylim=(0, None))
show(
    fig,
    alt="Share of unknown tokens in the validation text against the vocabulary: from "
    "above 30 % with 128 words down to about 5 % with all 14,000.",
)

# %% [markdown]
# *Unknown tokens in the validation text. The last point has every word of the training text.*

# %% tags=["nbval-check-output"]
pairs = zip(
    tokenizer.encode(val_text).tolist(), tokenizer.pieces(val_text), strict=True
)
missing = Counter(piece.decode() for number, piece in pairs if number < 2)
missing.most_common(5)

# %% [markdown]
# Four kinds, one interface. The library keeps a table of them by name, in which a saved model finds its
# tokenizer again, whatever kind it is:

# %%
for tokenizer in (characters, ByteTokenizer(), bpe, words):
    again = tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert torch.equal(again.encode(val_text), tokenizer.encode(val_text))

# %% [markdown]
# On the command line this is `train --tokenizer bpe --vocab-size 1024`.

# %% [markdown]
# ## One score for all
# Which tokenizer gives the best model? The loss can't tell. Take a model that knows nothing and
# gives all tokens the same chance. In nats per token, the larger vocabulary looks worse:

# %%
tokenizers = {"char": characters, "BPE 1,024": bpe, "word 4,096": words}
for name, tokenizer in tokenizers.items():
    n = len(tokenizer.encode(val_text))
    nats = math.log(tokenizer.vocab_size)
    print(f"{name:10}  {nats:.2f} nats a token, {nats * n / 1000:,.0f} thousand in all")

# %% [markdown]
# And yet over the whole text it is ahead: its tokens are fewer, since each stands for several
# characters. A token is not a fair unit when every tokenizer has its own. What is the same for all
# is the text. So we add up the nats of all tokens, count in bits, and divide by the bytes of the
# text that they stand for:
#
# $$\text{bits per byte} = \frac{\text{nats per token} \cdot \text{tokens}}{\ln 2 \cdot \text{bytes}}$$
#
# For characters on plain English text it is the old loss in another measure: 1.80 nats a character
# are 2.60 bits per byte. And it has the meaning it had in chapter 01: to how many bits a byte the
# model could compress the text.
#
# Two details decide whether the score is honest. The first token is not predicted, so its bytes
# must not count. And an unknown word pays for the fact that *some* unknown word comes, but not for
# which one, so the score of a word model is too good. It must come with the number of unknown
# tokens. (A token is unknown if decoding it does not give back the text that it stands for.)


# %%
#| export
def pieces_of(tokenizer, text: str) -> list[bytes]:
    """What each token of text stands for, in bytes; joined, they are the text's."""
    if hasattr(tokenizer, "pieces"):
        return tokenizer.pieces(text)
    return [character.encode() for character in text]


# %%
#| export
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


# %% [markdown]
# On an untrained model, as a check of the arithmetic: the number of bytes is that of the text
# without its first token, whatever the unit.

# %%
some = val_text[:20_000]
for tokenizer in (characters, bpe, words):
    torch.manual_seed(0)
    model = GPT(cpu_preset(tokenizer.vocab_size)[0])
    score = score_text(model, tokenizer, some)
    first = pieces_of(tokenizer, some)[0]
    assert score.n_bytes == len(some.encode()) - len(first)
    print(
        f"{score.nats_per_token:.2f} nats a token, {score.bits_per_byte:.2f} bits a byte"
    )

# %% [markdown]
# ## Which unit is best?
# Now the experiment. The model of chapter 07 (3 layers, 4 heads, 144 wide, windows of 64 tokens),
# the same settings for all, only the tokenizer differs. *Equal time* has to be said precisely: a
# larger vocabulary makes a larger output layer, and every step takes longer. So the time of a step
# was measured for each tokenizer, all in turns on a quiet machine, and each got as many steps as
# fit into 40 seconds. Three seeds each. That takes half an hour, so it lives in
# `benchmarks/tokenizers_compare.py`, and its results are in a file beside it. (The words there still
# had one `<unk>` for all, with a blank or without.)

# %%
results = json.loads(Path("../benchmarks/tokenizers.json").read_text())


def measured(name, what):
    """Values of the three seeds."""
    return torch.tensor([results["runs"][f"{name} seed {s}"][what] for s in range(3)])


names = ["char", "byte", *(f"bpe {n}" for n in (300, 512, 1024, 2048, 4096))]
names.append("word 4096")
for name in names:
    bits, nats = measured(name, "bits_per_byte"), measured(name, "nats_per_token")
    steps = results["times"][name]["steps"]
    print(
        f"{name:10} {steps:5} steps   {nats.mean():.3f} nats a token   "
        f"{bits.mean():.3f} ± {bits.std():.3f} bits a byte   "
        f"{measured(name, 'unknown')[0]:.0f} unknown"
    )

# %%
fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.4), sharex=True)
for ax, what in zip(axes, ("nats_per_token", "bits_per_byte"), strict=True):
    for group, marker, color, label in (
        (["char"], "s", RED, "characters"),
        (["byte"], "D", GREEN, "bytes"),
        ([n for n in names if n[:3] == "bpe"], "o-", BLUE, "BPE"),
        (["word 4096"], "^", ORANGE, "words, without the unknown"),
    ):
        x = [results["times"][n]["vocab_size"] for n in group]
        y = [measured(n, what).mean() for n in group]
        e = [measured(n, what).std() for n in group]
        ax.errorbar(x, y, e, fmt=marker, color=color, label=label, capsize=3)
    ax.set_xscale("log")
    ax.set_xticks([64, 256, 1024, 4096], ["64", "256", "1,024", "4,096"])
    ax.minorticks_off()
    ax.set(xlabel="vocabulary (tokens)", ylabel=what.replace("_", " "))
y = measured("word 4096", "bits_per_byte_spelled")
label = "words, the unknown spelled"
axes[1].errorbar(4096, y.mean(), y.std(), fmt="v", color="k", capsize=3, label=label)
axes[1].legend(fontsize=8)
show(
    fig,
    alt="Left, nats per token rise with the vocabulary. Right, bits per byte of the "
    "same models against the vocabulary, with characters, bytes and words beside BPE.",
)

# %% [markdown]
# *Left, the loss in its own unit puts the smallest unit first, and says nothing. Right, the same
# models by what they know about the text. Bars are one standard deviation of three seeds; on the
# left they are mostly hidden by the marks. (The black mark is explained below.)*
#
# From characters to 1,024 pieces the score falls by more than a tenth, for the same time of
# training. Why, we have not taken apart. A step reads 2.3 times as much text: a window of 64 pieces
# holds about 145 characters. It also reaches further back, though chapter 11 will show that such a
# model makes little of that. And a little of it is the measure: a window begins without any context
# every 145 characters instead of every 64, which chapter 11 finds to be worth some hundredths of a
# bit. (512 and 1,024 are too close for three seeds to rank them. The learning rate was chosen for
# characters.) Beyond, it rises again. Each token is met less often, the output layer grows, and
# fewer steps fit into the time: with 4,096 pieces 712, where 1,024 pieces had 1,171. The best size
# belongs to this text, this model and this time. GPT-2, with 40 GB of text, took 50,257.
#
# Bytes come out a little worse than characters, but the seeds overlap, so three can't settle it. On
# this text the two cut alike; all that differs is 191 useless rows in the first and the last layer,
# and the little time that they cost.
#
# The word model seems to beat all others by far. It doesn't. Nearly every eleventh token is unknown
# to it, and it never has to say which word that was. To make it pay, each unknown word is spelled
# out by the 6-gram of chapter 02, with all the text before it in sight, up to the character after
# its end. An unknown word then costs about this many bits:

# %%
left_out = measured("word 4096", "bits_per_byte_spelled")
left_out -= measured("word 4096", "bits_per_byte")
n_bytes, n_unknown = (measured("word 4096", what)[0] for what in ("bytes", "unknown"))
print(f"{(left_out * n_bytes / n_unknown).mean():.1f} bits for an unknown word")

# %% [markdown]
# With that bill paid (the black mark) words are better than 4,096 pieces, and worse than 512 to
# 2,048. But the speller is a second model, with its own table of counts, that had no clock. What
# can be claimed at all, over every seed:

# %%
best = measured("bpe 1024", "bits_per_byte")
assert best.max() < measured("char", "bits_per_byte").min() - 0.2
assert best.max() < measured("bpe 300", "bits_per_byte").min() - 0.1
assert best.max() < measured("bpe 4096", "bits_per_byte").min() - 0.1
spelled_out = measured("word 4096", "bits_per_byte_spelled")
assert best.max() < spelled_out.min()
assert spelled_out.max() < measured("bpe 4096", "bits_per_byte").min()

# %% [markdown]
# ## What their text looks like
# Scores aside, units show in the writing. Three models, 150 steps each, then one prompt.

# %%
written = {}
for name, tokenizer in tokenizers.items():
    torch.manual_seed(0)
    model_config, config = cpu_preset(tokenizer.vocab_size)
    model = GPT(model_config)
    ids = tokenizer.encode(train_text)
    config = TrainConfig(steps=150, learning_rate=5e-3, eval_every=0)
    train(model, ids, ids[:1000], config, progress=False)
    prompt = tokenizer.encode("ROMEO:\n")[None]
    generator = torch.Generator().manual_seed(0)
    out = generate(model, prompt, 150, temperature=0.8, generator=generator)
    written[name] = tokenizer.decode(out[0])
    score = score_text(model, tokenizer, some)
    print(f"{name}: {score.bits_per_byte:.2f} bits a byte")

# %% [markdown]
# Each drew 150 tokens. From characters:

# %%
print(written["char"])

# %% [markdown]
# From 1,024 pieces:

# %%
print(written["BPE 1,024"])

# %% [markdown]
# And from 4,096 words:

# %%
print(written["word 4,096"])

# %%
assert len(written["char"]) < len(written["BPE 1,024"]) < len(written["word 4,096"])

# %% [markdown]
# The same number of tokens gives texts of very different length. After so short a training, the
# character model invents most of its words. The piece model writes many that exist, and where it
# goes wrong, it glues: a piece without its blank follows another, which makes words with a capital in
# their middle. The word model can't misspell anything. Instead it says `<unk>`, and it has hardly seen
# enough of each word to know what may follow.

# %% [markdown]
# ## Summary
# Bytes know every text. Byte-pair encoding merges what stands together most often, and gets from
# letters to words without ever meeting an unknown one. Words are the largest unit, and lose what
# their list does not hold. Nats per token can't compare them, bits per byte can. For the same 40
# seconds of training, characters reach 2.63 bits per byte, 1,024 pieces 2.33, and 4,096 pieces
# 2.51. The next chapter leaves the text alone and changes the parts of the model.

# %% [markdown]
# ## Exercises
# **1.** How many tokens does a character cost in other languages? Take a sentence in each, and see
# who pays for a vocabulary that was fitted on English; `cost[language]` is in tokens a character.
# ```python
# assert cost["English"] < 0.6 and cost["German"] > cost["English"] and cost["Greek"] > 1.5
# ```
# **2.** Which tokens of the 1,024 are never used, although they were learnt? A token may exist only
# as a step on the way to a longer one. Find those that do not occur in the *training* text.
# ```python
# assert 0 < len(never) < 50 and not set(never) & set(bpe.encode(train_text).tolist())
# ```
# **3.** Encode a chunk the simplest way: go through the merges in order, and replace. Show that the
# heap gives the same.
# ```python
# for chunk in chunks_of(val_text[:2000]):
#     assert simple(bpe, chunk) == bpe.encode(chunk).tolist()
# ```

# %% [markdown]
# ## Solutions

# %% jupyter={"source_hidden": true}
sentences = {
    "English": "The sea is calm tonight.",
    "German": "Heute Nacht ist das Meer ruhig.",
    "Greek": "Η θάλασσα είναι ήρεμη απόψε.",
}
cost = {name: len(bpe.encode(s)) / len(s) for name, s in sentences.items()}
assert (
    cost["English"] < 0.6 and cost["German"] > cost["English"] and cost["Greek"] > 1.5
)
cost

# %% [markdown]
# English, on which the merges were fitted, needs less than half a token a character. The others pay
# for not having been there: in Greek every byte is a token of its own.

# %% jupyter={"source_hidden": true}
used = set(bpe.encode(train_text).tolist())
never = [i for i in range(256, 1024) if i not in used]
assert 0 < len(never) < 50
[bpe.decode([i]) for i in never]

# %% [markdown]
# Nearly all are parts of speakers' names in capitals, which occur only whole. Their rows of the
# embedding never get a gradient, and all that their rows of the output layer learn is that they
# never come.


# %% jupyter={"source_hidden": true}
def simple(tokenizer, chunk):
    ids = list(chunk.encode())
    for i, pair in enumerate(tokenizer.merges, start=256):
        ids = replace_pair(ids, pair, i)
    return ids


for chunk in chunks_of(val_text[:2000]):
    assert simple(bpe, chunk) == bpe.encode(chunk).tolist()
