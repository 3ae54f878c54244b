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
# *An hour to read, half a minute to run. It needs the GPT (06), its training (07) and the n-grams of chapter 02
# as an idea. It trains three small models for a few seconds each.*
#
# Where we are: Part I built a GPT whose unit is the character, and chapter 07 brought it to 1.80 nats per
# character. We never questioned that unit. A smaller one, the byte, could spell any text there is. With a
# larger one, the word, the same window of 64 tokens would reach several times further back.
#
# This chapter builds three more tokenizers with the interface of chapter 01, and trains the same model on
# each of them for the same time. The number to beat is what characters reach in that time. That takes a
# score that means the same for every unit.

# %%
import json
import time
from pathlib import Path

import torch.nn.functional as F

from course import BLUE, GREEN, PROMPT, RED, plt, show
from tinygpt_lib import load_shakespeare
from tinygpt_lib.generation import generate
from tinygpt_lib.gpt import GPT
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

import regex
import torch
from torch import Tensor

from tinygpt_lib.basics.tokens import hardened_bpe, hardened_bytes, hardened_words
from tinygpt_lib.bigram import evaluate

# %% [markdown]
# ## Bytes
# A character tokenizer can't say what it has never met. Ours has met 65 characters, and one French
# letter stops it:

# %% tags=["nbval-check-output"]
characters = CharTokenizer.from_text(text)
try:
    characters.encode("Où est Roméo?")
except ValueError as error:
    print(error)

# %% [markdown]
# A longer list is no way out, since Unicode has more than 150,000 characters and still grows.
# But every text is stored as bytes, and there are only 256 of those. The usual way to write characters as
# bytes is **UTF-8**: one byte for each character that English needs, two to four for all others.

# %% tags=["nbval-check-output"]
for character in "aù€😀":
    print(character, list(character.encode()))

# %% [markdown]
# So 256 tokens can spell every text. A model, though, may write bytes in an order that is not UTF-8. `decode` then shows `�`, the character that stands for what can't be read.
# `pieces` says which bytes each token stands for; we will need it to keep the score.


# %%
#| export
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


# %% [markdown]
# `@hardened_bytes` is, as in chapter 01, the library's business: clear errors, saving and loading. (It gives
# that chapter's tokenizer `pieces`, too.) Nothing is lost on the way to ids and back. If the text is cut inside
# a character, here between the two bytes of `ù`, the gap shows:

# %% tags=["nbval-check-output"]
ids = ByteTokenizer().encode("Où")
assert ByteTokenizer().decode(ids) == "Où"
ids.tolist(), ByteTokenizer().decode(ids[:2])

# %% [markdown]
# The price is length. A Greek text has nearly twice as many bytes as characters, a Chinese one three times
# as many. Shakespeare's bytes are his characters, so all that we gain here is 191 tokens that never occur.

# %% [markdown]
# ## Merging, by hand
# Now for larger units. **Byte-pair encoding** (Gage, 1994, to compress files; Sennrich et al., 2016, for
# words; Radford et al., 2019, on bytes, for GPT-2) has one idea: find the pair of tokens that stands side
# by side most often, and make it a new token. Then do it again.
#
# Do it by hand once, on `aaabdaaabac`. Before you run the next cell: which pair is the most frequent, and
# how often does it occur?

# %% tags=["nbval-check-output"]
ids = list(b"aaabdaaabac")
counts = Counter(pairwise(ids))
{chr(a) + chr(b): n for (a, b), n in counts.items()}

# %% [markdown]
# `aa` occurs four times, because `aaa` contains it twice. The first new token, number 256, is `aa`. We
# replace from left to right, and what was used is used up: of `aaa` the first two become the token, and the
# third stays.


# %%
#| export
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


# %% tags=["nbval-check-output"]
ids = replace_pair(ids, (97, 97), 256)
counts = Counter(pairwise(ids))
ids, counts.most_common(3)

# %% [markdown]
# Eleven tokens have become nine. Now two pairs occur twice: `aa` with `a`, and `a` with `b`. A tie needs a
# rule, or two programs would learn different tokens from the same text. Ours: **among equally frequent pairs, the
# one that comes first in the text.** That is `(256, 97)`, so token 257 is `aaa`.
#
# ![Three merges on aaabdaaabac, row by row: the commonest pair, first aa, then aa a, then aaa b, becomes one token of its own, so 11 tokens become 9, 7 and 5, until no pair occurs twice.](drawings/merges.svg)
#
# We stop when no pair occurs twice. Merging a pair that was seen once would shorten this text, but nothing says that it will
# come again. The whole method takes ten lines:


# %% tags=["nbval-check-output"]
def plain_merges(chunks, n_merges):
    """Counts everything anew and replaces everything anew, for each merge."""
    merges = []
    while len(merges) < n_merges:
        counts = Counter(pair for chunk in chunks for pair in pairwise(chunk))
        if not counts or max(counts.values()) < 2:
            break
        pair = max(counts, key=counts.get)  # the first of the most frequent
        chunks = [replace_pair(chunk, pair, 256 + len(merges)) for chunk in chunks]
        merges.append(pair)
    return merges, chunks


plain_merges([b"aaabdaaabac"], 10)

# %% [markdown]
# ## Cut first
# What does this learn from a real text, taken as one long string?


# %% tags=["nbval-check-output"]
def spelled(merges):
    """The text of each new token."""
    tokens = [bytes([b]) for b in range(256)]
    for a, b in merges:
        tokens.append(tokens[a] + tokens[b])
    return [token.decode() for token in tokens[256:]]


sample = train_text[:20_000]
print(spelled(plain_merges([sample.encode()], 40)[0]))

# %% [markdown]
# Some of these are no units at all. `, ` glues a comma to a space; `e ` glues the end of one word to the gap
# before the next. So one word gets several names. GPT-2 therefore cuts the text first and never merges across a cut. Its pattern keeps
# a word together with the space before it, and splits off endings such as `'ll`, numbers, punctuation and
# line breaks. `\p{L}` is a letter of any script, `\p{N}` a digit or another number. Python's own `re` knows
# neither, so the package `regex` does the cutting.


# %%
#| export
def chunks_of(text: str) -> list[str]:
    """text cut as GPT-2 cuts it, nothing left out: words, numbers, signs, spaces."""
    words = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
    return regex.findall(rf"{words}|\s+(?!\S)|\s+", text)


# %% [markdown]
# Four years later GPT-4 came with another pattern. Here are the two side by side:

# %% tags=["nbval-check-output"]
GPT4_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
for line in ("we'll, WE'LL", "in 12345", "(who, x_y", "    x = 1", "stop!\n\n\n\nGo"):
    ours, theirs = chunks_of(line), regex.findall(GPT4_PATTERN, line)
    assert "".join(ours) == "".join(theirs) == line
    print(f"GPT-2  {ours}\nGPT-4  {theirs}\n")

# %% [markdown]
# Nothing is ever left out, so joining the chunks gives the text back. GPT-4's pattern knows `'LL` in
# capitals. It cuts numbers into threes, where GPT-2's lets merges decide. Any single sign may open a word, not
# only a space, which suits code: `(who` and `_y` are chunks.
#
# We stay with GPT-2's. Forty merges within chunks look like this:

# %% tags=["nbval-check-output"]
chunks = [chunk.encode() for chunk in chunks_of(sample)]
expected, merged = plain_merges(chunks, 40)
print(spelled(expected))

# %% [markdown]
# Beginnings of words with their space, common endings, and the first whole words.

# %% [markdown]
# ## Touch only what changes
# The plain way goes through the whole text for each merge, which takes minutes for a million characters and 768
# merges. Three observations save nearly all of it.
#
# **The same chunks come again and again.** Keep each different one once, with the number of times it occurs:

# %% tags=["nbval-check-output"]
cut = Counter(chunks_of(train_text))
print(f"{sum(cut.values()):,} chunks, {len(cut):,} different ones")
cut.most_common(5)

# %% [markdown]
# **A merge changes little.** Go back to the first merge by hand. `aa` stood at two places, and only pairs
# that touch these places changed. Guess from the drawing which counts fell and which are new:

# %% tags=["nbval-check-output"]
before = Counter(pairwise(b"aaabdaaabac"))
after = Counter(pairwise(replace_pair(b"aaabdaaabac", (97, 97), 256)))
{
    pair: after[pair] - before[pair]
    for pair in before | after
    if before[pair] != after[pair]
}

# %% [markdown]
# So we keep `total`, how often each pair occurs, and `places`, where. All chunks lie in one `row`, with a -1
# before and after each, and `weight` says how often the chunk at a place occurs. A merge visits the places of
# its pair and corrects the pairs to the left and right of each. Nothing in the row ever moves: a token of three
# bytes keeps its three places and writes its number at the first and at the last. Its `size` says where its
# neighbours are.


# %%
#| export
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


# %% tags=["nbval-check-output"]
def show_pairs(pairs):
    print(pairs.row)
    for a, b in (pair for pair in pairs.total if pairs.total[pair]):
        print((a, b), pairs.total[a, b], list(pairs.places[a, b]))


pairs = Pairs({b"aaabdaaabac": 1})
show_pairs(pairs)

# %% [markdown]
# Now the merge of `aa`, which is the pair (97, 97):

# %% tags=["nbval-check-output"]
made = pairs.merge((97, 97))
show_pairs(pairs)
made

# %% [markdown]
# These are the changes found above. In front of the second `aa`, `da` has become (100, 256). (97, 98) was left alone,
# because the third `a` was.
#
# **A count can only fall.** Whatever a merge puts into the row contains the new token, so a pair that
# already exists gains nothing. That makes it cheap to find the most frequent pair. A *heap* is a list that
# always has its smallest entry ready. Here is what it would hold now:

# %% tags=["nbval-check-output"]
sorted(pairs.entry(pair) for pair, n in pairs.total.items() if n > 1)

# %% [markdown]
# Both pairs occur twice, and (256, 97) comes first in the text, as it did by hand. By the time an entry
# comes out on top it may be out of date, but then it promised too much, never too little. If it still holds,
# it is the best of all. If not, it goes back corrected.


# %%
#| export
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


# %% [markdown]
# Merge for merge it finds what the plain way found, on both texts. And the time, for 40 merges of 20,000
# characters:

# %%
assert learn_merges({b"aaabdaaabac": 1}, 10) == [(97, 97), (256, 97), (257, 98)]
start = time.perf_counter()
plain_merges(chunks, 40)
plain_seconds = time.perf_counter() - start
start = time.perf_counter()
assert learn_merges(Counter(chunks), 40) == expected
fast_seconds = time.perf_counter() - start
assert fast_seconds < plain_seconds
print(f"{plain_seconds:.3f} s, then {fast_seconds:.3f} s")

# %% [markdown]
# Here it is on a million characters and
# 1,024 tokens, one thread (`benchmarks/bpe_speed.py`), beside minbpe, which works as our plain way does, and Hugging Face's tokenizers, which are written in Rust:

# %%
speed = json.loads(Path("../benchmarks/bpe_speed.json").read_text())
assert speed["merges equal to minbpe's"] and speed["ids equal to minbpe's"]
for what, measured_in in speed["seconds"].items():
    print(f"{what:14} {measured_in['median']:8.2f} s")

# %% [markdown]
# ## Encoding
# To encode a new text means to make the same merges *in the order in which they were learned*. Order
# matters. With `ab` learned before `bc`, the text `abc` becomes `ab`, `c`; the other way round it is `a`, `bc`. So
# for each chunk we look for the earliest merge that is possible, make it everywhere, and look again.
#
# The class is a byte tokenizer with more tokens, so `decode` and `pieces` stay as they are. Each different
# chunk is merged once. **Special tokens**, numbered after the last merge, stand for what is not text; one comes below.


# %%
#| export
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


# %% tags=["nbval-check-output"]
ab, bc = (97, 98), (98, 99)
BPETokenizer([ab, bc]).merged(b"abc"), BPETokenizer([bc, ab]).merged(b"abc")

# %% [markdown]
# The string from above once more, and texts that break tokenizers: nothing at all, accents, emoji, line
# ends as Windows writes them, one letter 100,000 times.

# %% tags=["nbval-check-output"]
tiny = BPETokenizer.from_text("aaabdaaabac", vocab_size=259)
for odd in ("", "Où est\r\n  Roméo? 👍🏽\t\x00", "a" * 100_000):
    assert tiny.decode(tiny.encode(odd)) == odd
tiny.encode("aaabdaaabac"), tiny.encode("a" * 100_000).shape

# %% [markdown]
# Now the plays. Merges are learned from the *training* text alone, because they are fitted to a text just as
# weights are.

# %% tags=["nbval-check-output"]
bpe = BPETokenizer.from_text(train_text, vocab_size=1024)
print([bpe.decode([i]) for i in range(256, 276)])
print([bpe.decode([i]) for i in range(1004, 1024)])

# %% [markdown]
# The first twenty are mostly pairs. Among the last twenty are whole words with their space, a speaker's name,
# and still many pieces of words. In the library `merged` uses a heap
# as well. Does it agree with the lines above, which `super` finds, on the whole validation text?

# %%
chunks = [chunk.encode() for chunk in set(chunks_of(val_text))]
as_above = super(BPETokenizer, bpe).merged
assert all(bpe.merged(chunk) == as_above(chunk) for chunk in chunks)

# %% [markdown]
# How is one line cut as the vocabulary grows?


# %%
def draw_tokens(ax, y, pieces, label):
    """The pieces of a text side by side, in boxes of two tints."""
    x = 0
    for i, piece in enumerate(pieces):
        shown = piece.decode("utf-8", errors="replace").replace("\n", "⏎")
        color = ("#cfe3f1", "#fbe3b5")[i % 2]
        ax.barh(y, len(shown), left=x, color=color, height=0.7)
        ax.text(
            x, y, shown.replace(" ", "·"), family="monospace", va="center", size=12.5
        )
        x += len(shown)
    ax.text(-1, y, f"{label}: {len(pieces)}", ha="right", va="center")


line = "KATHARINA:\nI see a woman may be made a fool,"
sizes = (256, 300, 1024, 4096)
by_size = {n: BPETokenizer.from_text(train_text, vocab_size=n) for n in sizes}
fig, ax = plt.subplots(figsize=(6.6, 2.0))
for y, (size, tokenizer) in enumerate(by_size.items()):
    draw_tokens(ax, -y, tokenizer.pieces(line), f"{size:,}")
ax.set(xlim=(-9, len(line) + 1))
ax.axis("off")
show(
    fig,
    alt="One line of a play cut into tokens four times: single letters for 256 tokens, "
    "pieces of two letters for 300, mostly whole words for 1,024 and 4,096.",
)

# %% [markdown]
# *Left, the size of the vocabulary and the number of tokens in the line. A dot is a space, ⏎ a line break.
# From 1,024 on, most words are one token. Rare words stay in pieces, so nothing is ever unknown.*
#
# How many characters does a token stand for, on text that the merges were not learned from?

# %%
shorter = {n: len(val_text) / len(t.encode(val_text)) for n, t in by_size.items()}
assert 2 < shorter[1024] < 2.5 and shorter[4096] > 2.8
{n: round(characters_each, 2) for n, characters_each in shorter.items()}

# %% [markdown]
# Sixteen times the vocabulary cuts a text to about a third of its tokens. A window of 64 pieces out of 1,024 holds
# 64 · 2.26, about 145 characters.

# %% [markdown]
# ## What text must not say
# In training, documents are strung together, and between two of them a token has to say that one ended.
# GPT-2's is called `<|endoftext|>`. It is a token and not text, and that difference matters as soon as
# strangers may write text:

# %% tags=["nbval-check-output"]
chat = BPETokenizer(bpe.merges, special=["<|endoftext|>"])
end = chat.vocab_size - 1
stranger = "Farewell.<|endoftext|>"
plain, obeyed = chat.encode(stranger), chat.encode(stranger, special=True)
assert end not in plain and obeyed[-1] == end
assert chat.decode(plain) == chat.decode(obeyed) == stranger
len(plain), len(obeyed)

# %% [markdown]
# Both ids decode to the same text, but only one of them ends the document. If a program writes its own marks
# and a stranger's words into one string and encodes it with `special=True`, the stranger can close
# the document, or speak in another's name. So `encode` makes special tokens only on request, and a careful program never asks for them
# on text that it did not write. It encodes the parts and joins the ids:

# %%
prompt = torch.cat([chat.encode(stranger), torch.tensor([end])])
assert (prompt == end).sum() == 1

# %% [markdown]
# ## GPT-2's own merges
# GPT-2's tokenizer is of exactly this kind, with 50,000 merges. `read_gpt2(folder)` reads OpenAI's two files, which are
# not part of this project. `benchmarks/gpt2_ids.py` put them through the class above and compared all ids with those of
# tiktoken and of Hugging Face:

# %%
gpt2 = json.loads(Path("../benchmarks/gpt2_ids.json").read_text("utf-8"))
for name, found in gpt2["compared"].items():
    assert found["equal to tiktoken's"] and found["equal to Hugging Face's"]
    each = found["characters"] / found["tokens"]
    print(f"{name:15} {found['tokens']:8,} equal ids, {each:.2f} characters each")
print(f"our 1,024 on all the plays: {len(text) / len(bpe.encode(text)):.2f}")

# %% [markdown]
# With 49 times our vocabulary, GPT-2 needs only a quarter fewer tokens for all the plays. But then our merges
# have read nine tenths of them, and GPT-2's the web.

# %% [markdown]
# ## Words
# Why stop at pieces? Let every word be a token, with the space before it, and every sign and line break.
# This cut loses nothing either. But there is no end of words, so the vocabulary keeps the most frequent ones
# and the rest become `<unk>`, *unknown*. A second unknown token has a space before it.


# %%
#| export
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


# %% tags=["nbval-check-output"]
words = WordTokenizer.from_text(train_text, vocab_size=4096)
line = "GREMIO:\nHer affability and bashful modesty,\n"
print(words.decode(words.encode(line)))
[piece.decode() for piece in words.pieces(line)]

# %% [markdown]
# How many of the validation text's tokens are unknown? Guess for 4,096 words, and for every word of the
# training text:

# %%
unknown = {}
for size in (512, 4096, 10**6):
    tokenizer = WordTokenizer.from_text(train_text, vocab_size=size)
    share = (tokenizer.encode(val_text) < 2).float().mean().item()
    unknown[tokenizer.vocab_size] = f"{100 * share:.1f} %"
unknown

# %% [markdown]
# Even with all of them one token in twenty is unknown, above all names that occur nowhere else, such as `PROSPERO`.

# %% [markdown]
# Four tokenizers, one interface. The library keeps them in a table by name, in which a saved model finds its
# own again. On the command line it is `train --tokenizer bpe --vocab-size 1024`.

# %%
for tokenizer in (characters, ByteTokenizer(), bpe, words):
    again = tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert torch.equal(again.encode(val_text), tokenizer.encode(val_text))

# %% [markdown]
# ## One score for all
# Which tokenizer gives the best model? The loss can't say. Take a model that knows nothing and gives all
# tokens the same chance. Per token, the larger vocabulary looks worse:

# %%
tokenizers = {"char": characters, "BPE 1,024": bpe, "word 4,096": words}
for name, tokenizer in tokenizers.items():
    n = len(tokenizer.encode(val_text))
    nats = math.log(tokenizer.vocab_size)
    print(f"{name:10}  {nats:.2f} nats a token, {nats * n / 1000:,.0f} thousand in all")

# %% [markdown]
# And yet over the whole text it is ahead, because its tokens are fewer. A token is no fair unit when
# every tokenizer has its own. What all of them share is the text. So add up the nats of all tokens, convert
# them to bits, and divide by the bytes of text that the tokens stand for:
#
# $$\text{bits per byte} = \frac{\text{nats per token} \cdot \text{tokens}}{\ln 2 \cdot \text{bytes}}$$
#
# For characters on plain English text this is the old loss in another measure: 1.80 nats per character are 2.60 bits per
# byte.
#
# Two details decide whether the score is honest. The first token is not predicted, so its bytes must not
# count. And for an unknown word a model pays for the fact that *some* unknown word comes, but not for which one. That makes its
# score too good, so it must always come with the number of unknown tokens. We find them by decoding: a
# token is unknown if it does not give back what it stands for.


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


# %% [markdown]
# ## Which unit is best?
# Now the experiment: the model of chapter 07, 3 layers, 4 heads, 144 wide, windows of 64 tokens, with each
# tokenizer. *Equal time* has to be made precise, because a larger vocabulary makes a larger output layer and slower steps.
# Each kind got as many steps as fit into 40 seconds by timings taken in turns, and three seeds. That takes half an hour, so it is done by
# `benchmarks/tokenizers_compare.py`.
#
# Before you look: which vocabulary do you expect to win? And what else differs between the models?

# %%
results = json.loads(Path("../benchmarks/tokenizers.json").read_text())


def measured(name, what):
    """Values of three seeds."""
    return torch.tensor([results["runs"][f"{name} seed {i}"][what] for i in range(3)])


def print_row(name, window=64):
    """One kind's model, what it read, and how well it predicts."""
    bits, run = measured(name, "bits_per_byte"), results["runs"][f"{name} seed 0"]
    parameters = results["times"][name.removesuffix(" less")]["parameters"]
    sees = window * run["bytes"] / run["tokens"]
    unknown = f"  {100 * run['unknown'] / run['tokens']:4.1f} % unknown"
    print(
        f"{name:14}{parameters / 1e6:6.2f}{run['steps']:8}{run['epochs']:8.2f}"
        f"{sees:8.0f}{bits.mean():10.3f} ± {bits.std():.3f}"
        f"{unknown if run['unknown'] else ''}"
    )


names = ["char", "byte", *(f"bpe {n}" for n in (300, 512, 1024, 2048, 4096))]
names.append("word 4096")
print("million parameters   steps   texts  window   bits per byte")
for name in names:
    print_row(name)

# %% [markdown]
# *Texts: how many times the training text was read. Window: how many characters it holds. Then the mean and standard deviation of
# three seeds.*
#
# From characters to 1,024 pieces the score falls by more than a tenth. Beyond that it rises again: each token is met
# less often, the output layer grows, and fewer steps fit into the time. 512 and 1,024 are too close for three seeds to rank,
# and bytes and characters overlap. The best size belongs to this text, this model and this
# time; GPT-2, with 40 GB of text, took 50,257. In nats per character, 1,024 pieces are at 1.61 where characters are at
# 1.82. That is within a hair of the 7-grams' 1.59, after 40 seconds.
#
# The word model seems to beat all others by far. But about one token in eleven is unknown to it,
# and it never has to say which word that was. Let chapter 02's counts of six characters spell
# those words out, and add the bill. Each unknown word then costs:

# %%
spelled_out = measured("word 4096", "bits_per_byte_spelled")
left_out = spelled_out - measured("word 4096", "bits_per_byte")
n_bytes, n_unknown = (measured("word 4096", what)[0] for what in ("bytes", "unknown"))
print(f"{(left_out * n_bytes / n_unknown).mean():.1f} bits, and the words get")
print(f"{spelled_out.mean():.3f} ± {spelled_out.std():.3f} bits per byte")

# %% [markdown]
# That puts them between 2,048 and 4,096 pieces, with the help of a second model. What can be claimed over every
# seed:

# %%
best = measured("bpe 1024", "bits_per_byte")
for name, margin in (("char", 0.2), ("bpe 300", 0.1), ("bpe 4096", 0.1)):
    assert best.max() < measured(name, "bits_per_byte").min() - margin
assert best.max() < spelled_out.min()

# %% [markdown]
# ## Is it the unit?
# The winner differs from the characters in three more ways. It has a third more parameters, all of them in the two
# tables that belong to the vocabulary. Its window reaches more than twice as far. And in the same 40 seconds it reads
# twice as much text. So here are two controls. One gives the characters windows of 145, in the same time. The other
# gives the pieces only as many steps as they need to read what the characters read, 19 seconds. Guess before you look: is it the
# window, or the text?

# %%
print("million parameters   steps   texts  window   bits per byte")
print_row("char")
print_row("char 145", window=145)
print_row("bpe 1024 less")
print_row("bpe 1024")

# %%
fig, ax = plt.subplots(figsize=(7, 3.4))
for group, marker, color, label in (
    (["char"], "s", RED, "characters"),
    (["char 145"], "<", RED, "characters, windows of 145"),
    (["byte"], "D", GREEN, "bytes"),
    ([name for name in names if name[:3] == "bpe"], "o-", BLUE, "pieces"),
    (["bpe 1024 less"], "v", BLUE, "pieces, as much text as characters"),
):
    x = [results["times"][n.removesuffix(" less")]["vocab_size"] for n in group]
    bits = torch.stack([measured(name, "bits_per_byte") for name in group])
    y, e = bits.mean(1), bits.std(1)
    ax.errorbar(x, y, e, fmt=marker, color=color, label=label, capsize=3)
ax.set_xscale("log")
ax.set_xticks([64, 256, 1024, 4096], ["64", "256", "1,024", "4,096"])
ax.minorticks_off()
ax.set(xlabel="vocabulary (tokens)", ylabel="bits per byte")
ax.legend(fontsize=8, loc="upper right")
show(
    fig,
    alt="Bits per byte against the vocabulary. Pieces fall from 2.50 at 300 tokens to "
    "2.33 at 1,024 and rise to 2.51 at 4,096. Characters and bytes lie above, near 2.65; "
    "characters with long windows far above, at 2.86; pieces that read less text at 2.50.",
)

# %% [markdown]
# *Bars are one standard deviation of three seeds.*
#
# In the same time a long window makes characters worse: a step over 145 of them takes 2.5 times as long, so
# far fewer fit in. Compare the two controls. They read about the same text, in windows of the same reach and as many
# steps. Only the unit differs, with its two tables, and the pieces are more than 0.3 bits ahead, in half the time.
# Against characters with short windows they win by 0.13 on the same text. The other 0.18 come from
# the text that they read in the time that is left. So the unit pays twice: it makes a step worth more, and it makes reading cheap.

# %%
less = measured("bpe 1024 less", "bits_per_byte")
assert less.max() < measured("char", "bits_per_byte").min() - 0.05
assert less.max() < measured("char 145", "bits_per_byte").min() - 0.2
assert less.min() > best.max() + 0.1

# %% [markdown]
# ## What they write
# Three models continue the same prompt. They are trained here, each for as many steps as took four seconds above.

# %%
models, fresh = {}, {}
for name, tokenizer in tokenizers.items():
    timed = results["times"][name.lower().replace(",", "")]
    steps = round(timed["steps"] / 10)
    torch.manual_seed(0)
    models[name] = model = GPT(cpu_preset(tokenizer.vocab_size)[0])
    fresh[name] = model.token_embedding.weight.detach().clone()
    ids = tokenizer.encode(train_text)
    config = TrainConfig(steps=steps, learning_rate=5e-3, eval_every=0)
    train(model, ids, ids[:1000], config, progress=False)

written = {}
for name, tokenizer in tokenizers.items():
    prompt = tokenizer.encode(PROMPT)[None]
    generator = torch.Generator().manual_seed(0)
    out = generate(models[name], prompt, 150, temperature=0.8, generator=generator)
    written[name] = tokenizer.decode(out[0])
    print(f"--- {name}\n{written[name]}\n")

# %%
assert len(written["char"]) < len(written["BPE 1,024"]) < len(written["word 4,096"])

# %% [markdown]
# Each drew 150 tokens, which give texts of very different length. After so short a training the characters
# make words that don't exist. The pieces make many that do, and where they go wrong they glue: a piece
# without its space follows another. The word model can't misspell anything. It says `<unk>` instead, and has
# hardly seen enough of each word to know what may follow.

# %% [markdown]
# ## What a token hides
# A model sees ids. Nobody tells it how a token is spelled. What looks alike to you has unrelated numbers:

# %% tags=["nbval-check-output"]
for word in ("the", " the", "The", "THE", " THE", "teh"):
    print(f"{word!r:7} {bpe.encode(word).tolist()}")

# %% [markdown]
# `THE` has nothing in common with `the`, and nothing with ` THE` but its end. What does this cost? We
# give all three models a part of the validation text in capitals, and once more with typos: about one small
# letter in twenty is swapped with the next. Guess which unit suffers most.


# %%
def with_typos(text, share=0.05):
    """text with about this share of small letters put behind the next one."""
    out, luck = list(text), torch.rand(len(text), generator=torch.manual_seed(0))
    for i in range(len(out) - 1):
        if luck[i] < share and out[i].islower() and out[i + 1].islower():
            out[i], out[i + 1] = out[i + 1], out[i]
    return "".join(out)


some = val_text[:20_000]
spoiled = {"as it is": some, "with typos": with_typos(some), "CAPITALS": some.upper()}
bits = {}
for name, tokenizer in tokenizers.items():
    for how, part in spoiled.items():
        score = score_text(models[name], tokenizer, part)
        bits[name, how] = score.bits_per_byte
        unknown = f", {score.n_unknown} unknown" if score.n_unknown else ""
        print(f"{name:10}  {how:10}  {score.bits_per_byte:.2f} bits a byte{unknown}")

# %%
for how in ("with typos", "CAPITALS"):
    lost = {n: bits[n, how] - bits[n, "as it is"] for n in ("char", "BPE 1,024")}
    assert lost["BPE 1,024"] > 1.3 * lost["char"]

# %% [markdown]
# Typos cost the pieces about twice as much as the characters, since one wrong
# letter breaks a word into pieces that the model has hardly met in that order. In capitals the pieces, at 6.81 bits, do worse than a blind guess among 65 characters, 6.02. The words only *look* better: unknown ones are free.
#
# **A space at the end.** People type `I am `, with a space, and wait. Is that harmless for a model of pieces? Here is what it
# expects with and without:

# %%
model = models["BPE 1,024"]
for prompt in ("ROMEO:\nI am", "ROMEO:\nI am "):
    with torch.no_grad():
        p = model(bpe.encode(prompt)[None])[0, -1].softmax(-1)
    print(f"{prompt!r}:", [bpe.decode([i]) for i in p.topk(6).indices])

ids = bpe.encode(train_text).tolist()
the = bpe.encode("the").item()
after_space = Counter(b for a, b in pairwise(ids) if a == 32)
assert after_space[the] == 0
after_space.total(), [(bpe.decode([i]), n) for i, n in after_space.most_common(4)]

# %% [markdown]
# Words carry their space in front. So in the training text a space stands alone only where what follows can't be merged with it,
# about 1,300 times in a million characters, and never before `the`. Ending in a space tells the model: *none of the usual words
# comes next*. How much does that cost, over 200 words of the validation text?


# %%
def nats(before, after):
    """What the model of pieces pays for `after`, the two encoded separately."""
    after = bpe.encode(after)
    ids = torch.cat([bpe.encode(before), after])[None, -65:]
    with torch.no_grad():
        logits = model(ids[:, :-1])[0, -len(after) :]
    return F.cross_entropy(logits, after, reduction="sum").item()


found = [m for m in re.finditer(r" \w+", some) if m.start() > 200][::10][:200]
cost = torch.tensor(
    [
        [nats(text_before, word), nats(text_before + " ", word[1:])]
        for text_before, word in (
            (some[m.start() - 150 : m.start()], m[0]) for m in found
        )
    ]
).mean(0)
assert cost[1] > cost[0] + 1
cost

# %% [markdown]
# Left, the nats for the word with its space; right, for the word alone, *after the space was given away for free*. It is
# 2.8 nats more, so the word is sixteen times less likely. Strip the space before you call such a model.
#
# **Numbers.** Merges cut them by what was frequent, not by place value. GPT-2's pieces of the numbers from 1000 to
# 9999, by their lengths:

# %%
print(gpt2["lengths of the pieces of 1000 to 9999"])
for text_shown, pieces in gpt2["pieces"].items():
    print(f"{text_shown!r:22}", pieces)

# %% [markdown]
# About half of them are cut into two and two digits, most others into one and three, and 176 are tokens of their own.
# To add two numbers one has to know which digits stand under which, and here that changes from number to number.
# GPT-4's pattern at least cuts all numbers of one length alike.
#
# The last line shows something odd: a user's name that is a single token. It was frequent in the text from which the merges were learned,
# and apparently rare in the text on which the models were trained. Such a *glitch token* more or less keeps the random row with which it
# began. Asked to repeat it, models answered with other words, evasions and insults (Rumbelow and Watkins, 2023). Do we have
# any? Exercise 2 looks for them.

# %% [markdown]
# ## Summary
# Bytes can spell every text. Byte-pair encoding merges what stands together most often, and gets from letters
# to words without ever meeting an unknown one. Words are the largest unit, and lose what their list lacks.
# Nats per token can't compare them; bits per byte can, as long as you also say what each model read. For the same 40
# seconds, characters reach 2.63 bits per byte, 1,024 pieces 2.33 and 4,096 pieces 2.51. Of the 0.31 bits between
# characters and 1,024 pieces, 0.13 remain when both read the same text; the rest is the text read in the time.
# In return a model of pieces doesn't see letters, digits or a space at the end as you do. The next chapter goes
# back to characters and changes the parts of the model.

# %% [markdown]
# ## Exercises
# **1.** Who pays for a vocabulary that was learned from English? Write `cost(tokenizer, text)`, in tokens per
# character, and try a sentence in your own language.
# ```python
# assert cost(ByteTokenizer(), "Ελλάδα") == 2 and cost(tiny, "aaabdaaabac") == 5 / 11
# assert cost(bpe, "The sea is calm tonight.") < 0.5 < cost(bpe, "Das Meer ist heute ruhig.")
# ```
# **2.** Find the rows that training never touched, *from the weights alone*: write `untouched(trained, drawn)`, the ids whose
# row of the embedding (V, C) still points exactly where it pointed when it was drawn. (Weight decay shortened all rows.) Which
# of these tokens can't occur, and which were just never drawn?
# ```python
# found = untouched(models["BPE 1,024"].token_embedding.weight, fresh["BPE 1,024"])
# often = Counter(bpe.encode(train_text).tolist())
# never = {i for i in range(1024) if i not in often}
# assert never <= set(found) and max(often[i] for i in found) < 60
# assert untouched(torch.eye(3) + torch.eye(3)[[0, 2, 1]], torch.eye(3)) == [0]
# ```
# **3.** There is another way to encode a chunk: take the longest token that it begins with, cut it off, and
# repeat. Write `longest_first(tokenizer, chunk)`. How often does it differ from the merges, and which of the two is shorter?
# ```python
# odd = BPETokenizer([(98, 99), (97, 98)])  # bc, then ab
# assert longest_first(odd, b"abcb") == [257, 99, 98] != odd.merged(b"abcb")
# assert all(bpe.decode(longest_first(bpe, c)).encode() == c for c in chunks)
# ```

# %% [markdown]
# ## Solutions


# %% jupyter={"source_hidden": true}
def cost(tokenizer, text):
    return len(tokenizer.encode(text)) / len(text)


assert cost(ByteTokenizer(), "Ελλάδα") == 2 and cost(tiny, "aaabdaaabac") == 5 / 11
assert (
    cost(bpe, "The sea is calm tonight.") < 0.5 < cost(bpe, "Das Meer ist heute ruhig.")
)
sentences = "The sea is calm tonight.", "Das Meer ist heute ruhig.", "海很平静。"
{sentence: round(cost(bpe, sentence), 2) for sentence in sentences}

# %% [markdown]
# In German the same thought takes more tokens, and in Chinese each character takes three. Where tokens are
# paid for, some readers pay more.


# %% jupyter={"source_hidden": true}
def untouched(trained, drawn):
    alike = F.cosine_similarity(trained.detach().double(), drawn.double(), dim=1)
    return [i for i, c in enumerate(alike.tolist()) if c > 1 - 1e-8]


found = untouched(models["BPE 1,024"].token_embedding.weight, fresh["BPE 1,024"])
often = Counter(bpe.encode(train_text).tolist())
never = {i for i in range(1024) if i not in often}
assert never <= set(found) and max(often[i] for i in found) < 60
assert untouched(torch.eye(3) + torch.eye(3)[[0, 2, 1]], torch.eye(3)) == [0]
[(bpe.decode([i]), often[i]) for i in found if i >= 256]

# %% [markdown]
# Those that occur 0 times are mostly parts of speakers' names in capitals, which occur only whole: steps on the way to a longer
# merge. The others are rare and were not drawn in so few steps. Land and Bartolo (2024) searched large models by their weights in a similar way, and
# found thousands.


# %% jupyter={"source_hidden": true}
def longest_first(tokenizer, chunk):
    number = {token: i for i, token in enumerate(tokenizer.tokens)}
    ids = []
    while chunk:
        n = next(n for n in range(len(chunk), 0, -1) if chunk[:n] in number)
        ids.append(number[chunk[:n]])
        chunk = chunk[n:]
    return ids


odd = BPETokenizer([(98, 99), (97, 98)])
assert longest_first(odd, b"abcb") == [257, 99, 98] != odd.merged(b"abcb")
assert all(bpe.decode(longest_first(bpe, c)).encode() == c for c in chunks)
others = [c for c in chunks if longest_first(bpe, c) != bpe.merged(c)]
saved = sum(len(bpe.merged(c)) - len(longest_first(bpe, c)) for c in others)
len(others), len(chunks), saved, sum(len(bpe.merged(c)) for c in chunks)

# %% [markdown]
# The two disagree on more than a quarter of the different chunks, and yet longest first saves only 81 tokens out of
# 11,746. What matters is that a model is asked in the cuts that it was trained on.
