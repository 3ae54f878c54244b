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
# # 01 · Text
# > How does text become numbers, and what is there to predict?
#
# A GPT is a program that has read a lot of text and now answers one question, over and over:
# *what comes next?* Before we can build one, two things have to be settled. A network computes
# with numbers, so text has to become numbers, without losing anything on the way. And "what comes
# next" has to become a task with a score, so that we can say whether one model is better than
# another.
#
# Both are settled in this chapter, without any network. At its end we have a few scores that cost
# no learning at all. They are the first numbers to beat.

# %% [markdown]
# ## The text
# We use one small file through the whole course: *Tiny Shakespeare*, about 40,000 lines of plays.
# It is small enough that a laptop can learn from it in minutes, and rich enough that learning is
# visible: names, spelling, verse, the layout of a play.
#
# `load_shakespeare` finds the file on this machine or fetches it, and checks its fingerprint, so
# that you and I work on the same text to the last character.

# %%
from tinygpt_lib import load_shakespeare

text = load_shakespeare()
print(text[:148])

# %% [markdown]
# A play, then: a speaker's name in a line of its own, a colon, the speech, an empty line. The
# empty lines and colons are characters like any other. A model that is to write plays will have
# to learn the layout too, and from nothing but examples.
#
# How long is the text, and how many *different* characters does it use?

# %% tags=["nbval-check-output"]
characters = sorted(set(text))
print(f"{len(text):,} characters, {len(characters)} different ones")
"".join(characters)

# %% [markdown]
# The first one is the line break, `\n`, then the blank. Note the lonely digit: there is a `3` but
# no other digit. One play is called *3 King Henry VI*, and its title was left standing between the
# speeches, 27 times. Data always has such corners; it pays to look.
#
# The 65 characters are far from equally common, and that alone can be used to predict.

# %%
from collections import Counter

from tinygpt_lib._figures import BLUE, RED, plt, show

counts = Counter(text)
ordered = counts.most_common()
visible = {"\n": "\\n", " ": "␣"}
labels = [visible.get(c, c) for c, _ in ordered]

fig, ax = plt.subplots(figsize=(9, 3))
ax.bar(range(65), [n / len(text) * 100 for _, n in ordered])
ax.axhline(100 / 65, color=RED, label="if all 65 were equally common")
ax.set_xticks(range(65), labels, fontsize=7)
ax.set(xlabel="character", ylabel="share of the text (%)", xlim=(-1, 65))
ax.legend()
show(
    fig,
    alt="Bar chart of the share of each of the 65 characters, from the blank at "
    "15 % down to the dollar sign, which occurs once, with a line at 1.5 %.",
)

# %% [markdown]
# *About every seventh character is a blank (␣), every twelfth an e. The rarer half of the 65
# make up only 6 % of the text.*

# %% [markdown]
# ## Numbers for characters
# A network needs numbers. The plainest way is to write all different characters in a row and to
# use each one's place in the row as its number. On a word small enough to check by hand:

# %% tags=["nbval-check-output"]
row = sorted(set("hello"))
place = {character: i for i, character in enumerate(row)}
numbers = [place[character] for character in "hello"]
row, numbers

# %% [markdown]
# Back again is a look into the row. If this did not give `hello`, something was lost, and no
# model could bring it back.

# %% tags=["nbval-check-output"]
"".join(row[i] for i in numbers)

# %% [markdown]
# The numbers are names, not amounts. That `o` is 3 and `h` is 1 does not make `o` three times as
# much of anything. Chapter 03 gives each number a list of learnt values to live with; until then
# it is only an index.
#
# One such unit of text is called a **token**, its number a **token id**, the row of all tokens the
# **vocabulary**, and the thing that translates a **tokenizer**. Here a token is a character.
# Chapter 09 tries other units, bytes, pieces of words and whole words, and finds out what each
# is good for.
#
# What should happen with a character that is not in the row? It must not vanish, and it must not
# become something else silently: either would give a model that was tested on a text nobody wrote.
# So it is an error, one that says which character and where.
#
# All computing in this course is done with *torch* (PyTorch), a library for arrays of numbers. Its
# word for such an array is **tensor**: numbers of one kind, with a shape. A list of $N$ ids is a
# tensor of shape `(N,)`, a table of $B$ rows and $T$ columns one of shape `(B, T)`. The kind is
# called `dtype`; ids are whole numbers of 64 bits, `int64`.
#
# A cell that begins with `#| export`, like the next one, becomes part of the library
# `tinygpt_lib`, so that later chapters (and your own programs) can import it.

# %%
#| export
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

# %% [markdown]
# Ids that come back from a model, or from a file, may be wrong. Python would take -1 for the last
# character without a word, so they are checked:


# %%
#| export
def checked_ids(ids: Tensor | Sequence[int], vocab_size: int) -> list[int]:
    """ids (N,) as a list; ValueError for one outside the vocabulary."""
    ids = torch.as_tensor(ids, dtype=torch.int64).flatten().tolist()
    for i in ids:
        if not 0 <= i < vocab_size:
            raise ValueError(f"id {i} is not in the range 0..{vocab_size - 1}")
    return ids


# %% [markdown]
# Here is the tokenizer that we keep. `to_dict` and `from_dict` turn it into plain data and back: a
# trained model is useless without the very same row of characters, so the row has to be saved
# with it.


# %%
#| export
class CharTokenizer:
    """One token per character; the id is the character's place in the vocabulary.

    `unk`, one of the characters, stands in for every unknown one; without it, an
    unknown character is an error.
    """

    def __init__(self, characters: Sequence[str], unk: str | None = None):
        self.characters = list(characters)
        self.unk = unk
        self._ids = {c: i for i, c in enumerate(self.characters)}
        if any(len(c) != 1 for c in self.characters) or not self.characters:
            raise ValueError("characters must be one or more single characters")
        # With the second half behind it, it would be saved as one character.
        if any("\ud800" <= c <= "\udbff" for c in self.characters):
            raise ValueError("no character may be the first half of a surrogate pair")
        if len(self._ids) != len(self.characters):
            raise ValueError("characters must not hold the same character twice")
        if unk is not None and unk not in self.characters:
            raise ValueError(f"unk is {unk!r}; it must be one of the characters")

    @classmethod
    def from_text(cls, text: str, unk: str | None = None) -> Self:
        """The tokenizer whose vocabulary is every character of text and unk, sorted."""
        if not text:
            raise ValueError("text is empty: a vocabulary needs at least one character")
        return cls(sorted({*text, unk} - {None}), unk)

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> Tensor:
        """Ids of shape (len(text),), int64; ValueError for an unknown character."""
        if self.unk is not None:
            text = "".join(c if c in self._ids else self.unk for c in text)
        try:
            return torch.tensor([self._ids[c] for c in text], dtype=torch.int64)
        except KeyError as error:
            unknown = error.args[0]
            raise ValueError(
                f"character {unknown!r} at position {text.index(unknown)} is not among "
                f"the {self.vocab_size} characters that this tokenizer knows"
            ) from None

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """The text of ids (N,); ValueError for an id outside the vocabulary."""
        return "".join(self.characters[i] for i in checked_ids(ids, self.vocab_size))

    def to_dict(self) -> dict:
        """The tokenizer as plain JSON data."""
        data = {"type": "char", "characters": "".join(self.characters)}
        return data if self.unk is None else {**data, "unk": self.unk}

    @classmethod
    def from_dict(cls, data: dict) -> Self:
        """The tokenizer that `to_dict` described."""
        return cls(data["characters"], data.get("unk"))


# %% [markdown]
# The same word again, and the same numbers, now from the class:

# %% tags=["nbval-check-output"]
hello = CharTokenizer.from_text("hello")
assert hello.encode("hello").tolist() == numbers
hello.encode("hole"), hello.decode([1, 0, 2, 2, 3])

# %% [markdown]
# A character it has never met:

# %% tags=["nbval-check-output"]
try:
    hello.encode("hell!")
except ValueError as error:
    print(error)

# %% [markdown]
# Where going on matters more than being exact, one of the characters may be named to stand in for
# all unknown ones, with the setting `unk`. Then something is lost, but only because you asked.

# %% tags=["nbval-check-output"]
CharTokenizer.from_text("hello", unk="?").encode("hell!")

# %% [markdown]
# And the whole corpus, there and back. This is the check that matters: nothing is lost.

# %% tags=["nbval-check-output"]
tokenizer = CharTokenizer.from_text(text)
ids = tokenizer.encode(text)
assert tokenizer.decode(ids) == text
ids.shape, ids.dtype, ids[:10]

# %% [markdown]
# Later chapters will bring more kinds of tokenizers. A saved model has to find the right one
# again, so each kind is listed under the name that it writes into its dictionary as `type`.

# %%
#| export
TOKENIZERS = {"char": CharTokenizer}


def tokenizer_from_dict(data: dict):
    """The tokenizer, of whatever kind, that its own `to_dict` described."""
    kind = data.get("type")
    if kind not in TOKENIZERS:
        known = ", ".join(sorted(TOKENIZERS))
        raise ValueError(f"tokenizer type {kind!r} is not known; known are: {known}")
    return TOKENIZERS[kind].from_dict(data)


# %%
assert tokenizer_from_dict(tokenizer.to_dict()).decode(ids[:148]) == text[:148]

# %% [markdown]
# ## What is there to predict?
# Take the first ten tokens. At every place, the question is the same: given what came so far,
# what comes next?

# %% tags=["nbval-check-output"]
ten = ids[:10]
for i in range(1, 10):
    print(f"{tokenizer.decode(ten[:i])!r:14} -> {tokenizer.decode(ten[i])!r}")

# %% [markdown]
# Ten tokens hold nine questions with their answers, and nobody had to write the answers down: the
# text is its own teacher. This is why language models can learn from any text at all.
#
# The answers are the questions moved by one. So we store two rows: **inputs**, all tokens but the
# last, and **targets**, all tokens but the first. Below every input stands what should be
# predicted there.

# %% tags=["nbval-check-output"]
inputs, targets = ten[:-1], ten[1:]
print("inputs ", tokenizer.decode(inputs))
print("targets", tokenizer.decode(targets))
assert all(targets[i] == inputs[i + 1] for i in range(8))

# %% [markdown]
# ## What must stay unseen
# A model that is asked about text which it has learnt by heart will look better than it is. So we
# set a part of the text aside, never learn from it, and measure on it: the **validation** text.
#
# Which part? Picking characters or lines at random would be wrong. Neighbouring lines belong to
# the same scene, with the same names and turns of phrase, and a model could profit from having
# seen the lines around its exam. So we cut once: the first 90 % to learn from, the last 10 % to
# measure on. It is also the usual cut for this corpus, so our losses can be compared with
# published ones.


# %%
#| export
def split(ids: Tensor | str, fraction: float = 0.9) -> tuple:
    """The first `fraction` of ids (N,), or of a text, and the rest: to validate on."""
    if not 0 < fraction < 1:
        raise ValueError(f"fraction is {fraction}; it must lie between 0 and 1")
    cut = int(fraction * len(ids))
    return ids[:cut], ids[cut:]


# %% tags=["nbval-check-output"]
train_ids, val_ids = split(ids)
print(f"{len(train_ids):,} to train on, {len(val_ids):,} to validate on")
assert torch.equal(torch.cat([train_ids, val_ids]), ids)

# %% [markdown]
# ## Batches
# A million characters are too many to look at before each small step of learning. Instead we cut
# out a few short windows at random places. Two numbers describe such a **batch**: how many
# windows, $B$ (`batch_size`), and how many tokens each holds, $T$ (`block_size`, also called the
# *context length*: it will be the longest memory of our models).
#
# Each window needs $T + 1$ tokens, since the targets reach one further than the inputs. So a window
# may start at any place from $0$ to $N - T - 1$, and the last start is where mistakes hide: one too
# many and we read past the end, one too few and the last token is never asked for.


# %%
#| export
def get_batch(
    ids: Tensor,
    batch_size: int,
    block_size: int,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Random windows of ids (N,): inputs (B, T) and their targets (B, T), one later.

    `generator` makes the draw repeatable. ValueError if ids are shorter than T + 1.
    """
    if len(ids) < block_size + 1:
        raise ValueError(
            f"the text has {len(ids)} tokens; a window of block_size {block_size} "
            f"and its targets need at least {block_size + 1}"
        )
    device = ids.device if generator is None else generator.device
    shape = (batch_size, 1)
    starts = torch.randint(
        len(ids) - block_size, shape, generator=generator, device=device
    )
    places = starts.to(ids.device) + torch.arange(block_size, device=ids.device)
    return ids[places], ids[places + 1]  # (B, T)


# %% [markdown]
# `starts` is a column of $B$ places, `arange` a row of $T$ steps; adding a column to a row gives a
# table with every sum, shape `(B, T)`. Looking up a table of places in `ids` gives the table of
# tokens there. `randint(n)` draws from $0$ to $n - 1$, so the last start is indeed $N - T - 1$. The
# `generator` is a source of chance that, started from the same number (the *seed*), gives the same
# draws again. And `device` only matters where the ids are kept on a graphics card.
#
# Four windows of eight:

# %% tags=["nbval-check-output"]
generator = torch.Generator().manual_seed(1)
inputs, targets = get_batch(train_ids, batch_size=4, block_size=8, generator=generator)
assert torch.equal(inputs[:, 1:], targets[:, :-1])
inputs

# %% [markdown]
# The assert says that every target but the last is the next input. In the picture, each target
# (below) is what stands one step to the right of its input (above):

# %%
fig, axes = plt.subplots(4, 1, figsize=(6, 4), sharex=True)
for ax, x, y in zip(axes, inputs, targets, strict=True):
    ax.imshow(torch.stack([x, y]), aspect="auto", cmap="Blues", vmin=-20, vmax=140)
    for t in range(8):
        for r, token in enumerate([x[t], y[t]]):
            c = tokenizer.decode(token)
            ax.text(t, r, visible.get(c, c), ha="center", va="center")
    ax.set_yticks([0, 1], ["input", "target"])
    ax.grid(False)
ax.set_xlabel("place in the window")
show(
    fig,
    alt="Four windows of eight characters; in each, the row of targets is the row "
    "of inputs moved one place to the left.",
)

# %% [markdown]
# *Four windows; the darker, the larger the id. Read a target row: it is the row above it, moved
# one step to the left, with one new character at the end.*
#
# Is the last start right? The smallest text that fits a window of 3 has 4 tokens, and however
# often we draw, only one window can come out:

# %% tags=["nbval-check-output"]
inputs, targets = get_batch(torch.arange(4), batch_size=100, block_size=3)
assert (inputs == inputs[0]).all() and (targets == targets[0]).all()
inputs[0], targets[0]

# %% [markdown]
# ## A score for predictions
# Suppose a model says: *the next character is an `e` with probability 0.2, a blank with 0.1, ...*
# and then the text shows an `e`. How good was that? The usual score is the **surprise**, the
# negative logarithm of the probability that was given to what really came:
#
# $$\text{surprise} = -\ln p(\text{what came})$$
#
# Here it is $-\ln 0.2 = 1.61$; had a blank come, it would have been $-\ln 0.1 = 2.30$. It is 0 for
# a prediction that was certain and right, and infinite for something that was declared
# impossible. The logarithm has a reason: the probability of a whole text is the *product* of the
# probabilities of its characters, each given those before it. So the surprise of a text is the
# *sum* of the surprises, and the mean over all characters is a fair score. That mean is called
# the **cross-entropy**, or simply the *loss*.
#
# With the natural logarithm the loss counts in **nats**; with the logarithm to base 2 in **bits**,
# 1 nat being 1.44 bits. Bits have a meaning that you can touch: a model with a loss of 2 bits a
# character can be used to compress the text to 2 bits a character, and a compressor is a
# predictor in disguise.
#
# A model that knows nothing must give each of the 65 characters the same chance:

# %%
from math import log, log2

uniform = -log(1 / tokenizer.vocab_size)
print(f"knowing nothing: {uniform:.3f} nats = {uniform / log(2):.3f} bits a character")

# %% [markdown]
# ## Numbers to beat
# The first thing worth knowing is how common each character is. We count on the training text
# and take the counts as probabilities, whatever came before. This is the *unigram* model.

# %%
train_text, val_text = text[: len(train_ids)], text[len(train_ids) :]
probability = {c: n / len(train_text) for c, n in Counter(train_text).items()}
unigram = sum(-log(probability[c]) for c in val_text) / len(val_text)
print(f"counting characters: {unigram:.3f} nats = {unigram / log(2):.3f} bits")

# %% [markdown]
# Every character of the validation text occurs in the training text too, otherwise its
# probability would be zero here, its surprise infinite, and Python would have complained of a
# missing key. Chapter 02 has to deal with that danger for real.
#
# Now for the compressors that every computer has. To ask them the same question that we will ask
# our models, *what does the validation text cost someone who has read the training text?*, we
# compress the training text alone, then both together, and take the difference.

# %%
import bz2
import gzip
import lzma

compressors = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}


def bits_per_character(compress):
    """Bits a character for the validation text, after the training text."""
    extra = len(compress(text.encode())) - len(compress(train_text.encode()))
    return 8 * extra / len(val_text)


bits = {name: bits_per_character(f) for name, f in compressors.items()}
bits

# %% [markdown]
# gzip looks back 32,768 characters at most, so most of the training text is out of its sight; xz
# remembers all of it. Yet bzip2 is the best of the three, although it works on blocks of 900,000
# characters, so that only the last 104,000 training characters share a block with the validation
# text. Instead of looking for repetitions it sorts the block by context: what stands before `he `
# is gathered in one place, and there it is mostly `t`. To look at the context, the one on the
# left, is what every model from chapter 02 on will do.

# %%
ladder = {"uniform": uniform / log(2), "unigram": unigram / log(2), **bits}
ladder = dict(sorted(ladder.items(), key=lambda item: item[1]))
assert ladder["unigram"] < ladder["uniform"] < log2(66)
assert max(bits.values()) < ladder["unigram"]

fig, ax = plt.subplots(figsize=(7, 2.4))
bars = ax.barh(list(ladder), list(ladder.values()), color=BLUE)
ax.bar_label(
    bars, [f"{b:.2f} bits = {b * log(2):.2f} nats" for b in ladder.values()], padding=4
)
ax.set(xlabel="bits a character on the validation text (less is better)", xlim=(0, 8.5))
show(
    fig,
    alt="Horizontal bars of bits a character: uniform 6.02, unigram 4.83, and the "
    "compressors well below: gzip 3.10, xz 2.52, bzip2 2.40.",
)

# %% [markdown]
# *Five scores without training. Counting characters saves a fifth of the bits, a
# compressor half to three fifths. The shortest bar is the one to get below in the end.*

# %% [markdown]
# ## Summary
# Text becomes numbers by listing its 65 characters and using places in that list, and nothing is
# lost on the way. The text itself supplies the questions and the answers: inputs, and targets one
# step later. 1,003,854 characters are there to learn from, 111,540 to be measured on. The score is
# the mean surprise in nats: knowing nothing costs 4.17, counting characters 3.35, and the best
# everyday compressor 1.66. The next chapter starts to look at what came before, at first at one
# single character.

# %% [markdown]
# ## Exercises
# Each exercise ends with an assert that your cell has to pass. My solutions follow, folded away.
#
# **1.** How many *different* windows of 8 tokens can `get_batch` cut out of the training text?
# Work it out, then check with a text so short that you can draw every window.
# ```python
# assert number_of_windows(n_tokens=4, block_size=3) == 1
# assert number_of_windows(n_tokens=len(train_ids), block_size=8) == 1_003_846
# ```
# **2.** Write a tokenizer that knows no upper case: it lowers every letter before it looks it up.
# How much smaller is the vocabulary, and what is lost?
# ```python
# lower = LowerTokenizer.from_text(text)
# assert lower.vocab_size == 39
# assert lower.decode(lower.encode("First Citizen")) == "first citizen"
# ```
# **3.** The unigram model gives probabilities, and from probabilities one can draw. Write 200
# characters with it. It will look like nothing, and that is the point: so much for 3.35 nats.
# ```python
# assert len(sample) == 200 and set(sample) <= set(text)
# ```

# %% [markdown]
# ## Solutions


# %% jupyter={"source_hidden": true}
def number_of_windows(n_tokens, block_size):
    return n_tokens - block_size


assert number_of_windows(n_tokens=4, block_size=3) == 1
assert number_of_windows(n_tokens=len(train_ids), block_size=8) == 1_003_846


# %% jupyter={"source_hidden": true}
class LowerTokenizer(CharTokenizer):
    @classmethod
    def from_text(cls, text):
        return super().from_text(text.lower())

    def encode(self, text):
        return super().encode(text.lower())


lower = LowerTokenizer.from_text(text)
assert lower.vocab_size == 39
assert lower.decode(lower.encode("First Citizen")) == "first citizen"

# %% [markdown]
# The vocabulary shrinks from 65 to 39, by the 26 capitals. Lost is where they stood: at the
# beginning of lines, in names, and in the many speakers written in capitals throughout.

# %% jupyter={"source_hidden": true}
import random

random.seed(1)
sample = "".join(random.choices(list(probability), probability.values(), k=200))
assert len(sample) == 200 and set(sample) <= set(text)
print(sample)
