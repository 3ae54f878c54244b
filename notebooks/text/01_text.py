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
# *Forty minutes to read, ten seconds to run. Needs Python and the logarithm from school.
# Trains nothing.*
#
# A GPT is a program that has read a lot of text and answers one question, over and over:
# *what comes next?* Before we can build one, we have to settle two things. A network computes
# with numbers, so text has to become numbers, and none of it may get lost on the way. And
# "what comes next" has to become a task with a score, so that we can tell which of two models is
# better.
#
# By the end we have six scores, none of which needs a network, and we will measure every later
# model against them.

# %% [markdown]
# ## The text
# We use one small file through the whole course: *Tiny Shakespeare*, 40,000 lines of plays. It is
# small enough for a laptop to learn from in minutes, and rich enough that you can watch the
# learning happen: first line breaks and capitals, then the layout of a play, then short words, and
# last of all spelling.
#
# `load_shakespeare` finds the file on your machine or fetches it. It also checks the file's
# fingerprint, so that you and I work on the same text down to the last character.

# %%
from tinygpt_lib import load_shakespeare

text = load_shakespeare()
print(text[:148])

# %% [markdown]
# A play, then: a speaker's name on a line of its own, a colon, the speech, an empty line. The
# colons and empty lines are characters like any other. A model that is to write plays has to learn
# the layout too, with nothing but examples to go by.
#
# How long is the text, and how many *different* characters does it use?

# %% tags=["nbval-check-output"]
print(f"{len(text):,} characters, {len(set(text))} different ones")
"".join(sorted(set(text)))

# %% [markdown]
# The first is the line break, `\n`, and the second is the space. Look at the lonely digit: there is
# a `3`, but no other. One of the plays is called *3 King Henry VI*, and its title was left standing
# between the speeches. Every data set has odd corners like this one, and it pays to look for them:

# %% tags=["nbval-check-output"]
text.count("3"), text.count("3 KING HENRY VI")

# %% [markdown]
# Nor are the 65 characters equally common. The next cell imports from `course`, a folder beside the
# notebooks. It holds what all chapters use to show their results: colours, plots, a prompt. No
# model depends on it.

# %%
from collections import Counter

from course import BLUE, PROMPT, RED, plt, show, show_ladder

ordered = Counter(text).most_common()
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
    alt="Bar chart of the share of each of the 65 characters, from the space at "
    "15 % down to the dollar sign, which occurs once, with a line at 1.5 %.",
)
f"the 32 rarest: {sum(n for _, n in ordered[33:]) / len(text):.1%} of the text"

# %% [markdown]
# *About one character in seven is a space (␣), one in twelve an e. The right half of the bars, the
# 32 rarest characters, makes up less than 6 % of the text.*

# %% [markdown]
# ## A tokenizer in five lines
# The simplest way to turn characters into numbers is to list the distinct characters and use each
# one's position in the list. Here it is on a word short enough to check by eye.

# %% tags=["nbval-check-output"]
word = "hello"

characters = sorted(set(word))
number = {c: i for i, c in enumerate(characters)}
ids = [number[c] for c in word]
back = "".join(characters[i] for i in ids)
assert back == word

characters, ids

# %% [markdown]
# That is a complete **tokenizer**. The list of characters is its **vocabulary**, an entry of it is a
# **token**, and the token's position in the list is its **id**. Turning text into ids is called
# *encoding*, turning ids into text *decoding*. The assert is the check that matters: if decoding
# didn't give `hello` back, something would be lost, and no model could ever restore it.
#
# The ids are names, not amounts. That `o` is 3 and `h` is 1 doesn't make `o` three times as much of
# anything. An id only says which row of a table to look up.
#
# A token need not be a character. Chapter 09 tries bytes, pieces of words and whole words.
# Characters come first because nothing is simpler.
#
# ## The tokenizer as a class
# Later chapters need the tokenizer too, so it goes into the course's library. **A cell that begins
# with `#| export`, like the next one, becomes part of `tinygpt_lib`**, and every later chapter (or
# a program of yours) can import it. A line `#| hole` in it marks what is yours to write in the
# workbooks that `make learn` makes.
#
# All computing in this course is done with PyTorch, a library for arrays of numbers. Its word for
# such an array is **tensor**: numbers of one kind, with a shape. $N$ ids are a tensor of shape `(N,)`.
# They are whole numbers of 64 bits, `int64`.

# %%
#| export
import torch
from torch import Tensor

from tinygpt_lib.basics.tokens import hardened


@hardened
class CharTokenizer:
    """One token per character; its id is the character's place in the vocabulary."""

    def __init__(self, characters):
        self.characters = list(characters)
        self.number = {c: i for i, c in enumerate(self.characters)}

    @classmethod
    def from_text(cls, text: str) -> "CharTokenizer":
        #| hole: a tokenizer (`cls` makes one) of all characters in the text, sorted
        return cls(sorted(set(text)))

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> Tensor:
        #| hole: the id of each character, as a tensor (N,) of int64
        return torch.tensor([self.number[c] for c in text], dtype=torch.int64)

    def decode(self, ids) -> str:
        #| hole: the text of ids (N,), a tensor or a list
        return "".join(self.characters[i] for i in ids)


# %% [markdown]
# <!-- hints: CharTokenizer.from_text
# `set(text)` holds each character once, in no order. The ids must be the same tomorrow.
#
# `cls` is the class itself, so `cls(characters)` makes a tokenizer.
# -->
#
# <!-- hints: CharTokenizer.encode
# `self.number` maps a character to its id. Make a list of the ids, as in the five lines.
#
# `torch.tensor(a_list, dtype=torch.int64)` makes a tensor of whole numbers, of an empty list too.
# -->
#
# <!-- hints: CharTokenizer.decode
# `self.characters[i]` is the character with the id i, and `"".join(...)` glues strings together.
# -->
#
# You will find the five lines in there, one by one, and the same word gives the same ids:

# %% tags=["nbval-check-output"]
hello = CharTokenizer.from_text("hello")
assert hello.encode("hello").tolist() == ids
hello.encode("hole"), hello.decode([1, 0, 2, 2, 3])

# %% [markdown]
# The line `@hardened` belongs to the library and not to the lesson. It adds what a program needs
# when it meets strangers' files: the vocabulary can be saved and loaded, and bad input gets a clear
# error. A character that isn't in the vocabulary, for example, must neither vanish nor turn into
# another one; otherwise we would test a model on a text that nobody wrote. The tokenizer stops and
# says where.

# %% tags=["nbval-check-output"]
try:
    hello.encode("hell!")
except ValueError as error:
    print(error)

# %% [markdown]
# Now the whole text, encoded and decoded again:

# %% tags=["nbval-check-output"]
tokenizer = CharTokenizer.from_text(text)
ids = tokenizer.encode(text)
assert tokenizer.decode(ids) == text
ids.shape, ids.dtype, ids[:10]

# %% [markdown]
# ## What is there to predict?
# Take the first ten tokens. At every place the question is the same: given everything so far, what
# comes next?
#
# ![A triangle of nine rows from the ten tokens “First Citi”: each row holds one token more and asks for the next; stored as two rows, the targets are the inputs shifted by one.](drawings/context.svg)

# %% tags=["nbval-check-output"]
ten = ids[:10]
for i in range(1, 10):
    print(f"{tokenizer.decode(ten[:i])!r:14} -> {tokenizer.decode(ten[i : i + 1])!r}")

# %% [markdown]
# Ten tokens hold nine questions, each with its answer, and nobody had to write the answers
# down. The text is its own teacher. That is why a language model can learn from any text at all.
#
# The answers are the text shifted by one. So we keep two rows: the **inputs**, all tokens but the
# last, and the **targets**, all tokens but the first. Each target stands right below the input that
# it follows.

# %% tags=["nbval-check-output"]
inputs, targets = ten[:-1], ten[1:]
print("inputs ", tokenizer.decode(inputs))
print("targets", tokenizer.decode(targets))

# %% [markdown]
# ## What must stay unseen
# A student who has memorized the answers looks better in the exam than she is, and so does a model.
# We therefore set a part of the text aside, never learn from it, and measure on it. It is called
# the **validation** text.
#
# Which part should it be? Lines drawn at random would be a poor choice. Neighbouring lines belong
# to the same scene and share names and turns of phrase, so a model could profit from having seen
# the lines around its exam. We cut once instead: the first 90 % to learn from, the last 10 % to
# measure on. This has a price that we will meet again: the last tenth has scenes of its own, and
# speakers whom the first nine tenths never name.


# %%
#| export
def split(ids: Tensor | str, fraction: float = 0.9) -> tuple:
    """The first `fraction` of ids (N,), or of a text, and the rest: to validate on."""
    if not 0 < fraction < 1:
        raise ValueError(f"fraction is {fraction}; it must lie between 0 and 1")
    #| hole: the two parts
    cut = int(fraction * len(ids))
    return ids[:cut], ids[cut:]


# %% tags=["nbval-check-output"]
train_ids, val_ids = split(ids)
train_text, val_text = split(text)
assert tokenizer.decode(val_ids) == val_text
print(f"{len(train_ids):,} to train on, {len(val_ids):,} to validate on")

# %% [markdown]
# ## Batches
# A million characters are too many to look at before each small step of learning. Instead we cut a
# few short windows out of the text at random places. Such a **batch** is a table, a tensor of shape
# `(B, T)`: $B$ windows (`batch_size`) of $T$ tokens each (`block_size`). $T$ is also called the
# *context length*, because a model that only ever sees windows of $T$ tokens can't look further
# back than that.
#
# Each window needs $T + 1$ tokens, since the targets reach one further than the inputs. In a text of
# $N$ tokens it may therefore start anywhere from $0$ to $N - T - 1$. The last start is the classic
# off-by-one: one too many and we read past the end, one too few and the last token of the text is
# never asked for.
#
# One trick saves a loop. Adding a column and a row gives a table with every sum in it, which torch
# calls *broadcasting*. Below, two windows of three start at 0 and at 1:

# %% tags=["nbval-check-output"]
torch.tensor([[0], [1]]) + torch.tensor([0, 1, 2])

# %% [markdown]
# `get_batch` draws the column of starts and looks up the whole table of places in `ids` at once.


# %%
#| export
def get_batch(
    ids: Tensor,
    batch_size: int,
    block_size: int,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Random windows of ids (N,): inputs (B, T) and their targets (B, T), one later."""
    if len(ids) < block_size + 1:
        raise ValueError(
            f"the text has {len(ids)} tokens; a window of block_size {block_size} "
            f"and its targets need at least {block_size + 1}"
        )
    #| hole: random places to start at, a column (B, 1), drawn with the generator
    last = len(ids) - block_size - 1
    starts = torch.randint(last + 1, (batch_size, 1), generator=generator)
    #| hole: the windows that start there, and their targets
    places = starts + torch.arange(block_size)  # (B, T)
    return ids[places], ids[places + 1]


# %% [markdown]
# <!-- hints: get_batch
# `torch.randint(n, (batch_size, 1), generator=generator)` draws whole numbers from 0 to n - 1. How many
# places are there to start at, if the targets reach one further than the inputs?
#
# A column plus the row 0, 1, ..., T - 1 is a table of places. `ids[table]` looks all of them up.
#
# The targets are what stands at the same places, one further on.
# -->
#
# `torch.randint(n, ...)` draws whole numbers from $0$ to $n - 1$, so the last start can come up.
# `arange` is the row 0, 1, ..., $T - 1$. The `generator` is a source of random numbers: started from
# the same number, its *seed*, it draws the same batches again.
#
# Here are four windows of eight from the ten tokens above. A window of eight with its targets
# takes nine, so there are two places where it can start:

# %% tags=["nbval-check-output"]
generator = torch.Generator().manual_seed(1)
inputs, targets = get_batch(ten, batch_size=4, block_size=8, generator=generator)
for x, y in zip(inputs, targets, strict=True):
    print(f"{tokenizer.decode(x)!r:12} {tokenizer.decode(y)!r}")

# %% [markdown]
# Every row on the right is its row on the left shifted by one. To check the last start, draw a hundred
# windows of three from five tokens. Only two starts are possible, 0 and 1, and both should turn up:

# %% tags=["nbval-check-output"]
inputs, _ = get_batch(torch.arange(5), 100, 3, torch.Generator().manual_seed(0))
inputs[:, 0].unique()

# %% [markdown]
# ## A score for predictions
# A model doesn't name *one* next character. It spreads its belief over all 65: it gives an `e` a
# probability of 0.2, a space 0.1, and so on. Then the text reveals an `e`. How good was that?
#
# Suppose that you and I have the same model, and you send me the text. You only need to send what
# the model leaves open. If the model says that the next character is `a` or `b`, each with
# probability 1/2, one yes-or-no answer settles it: one **bit**. Four equally likely candidates take
# two bits, eight take three, and $n$ take $\log_2 n$. Each of the $n$ has the probability
# $p = 1/n$, so the price is $-\log_2 p$. We charge that for every $p$: our `e` costs
# $-\log_2 0.2 = 2.3$ bits.
#
# The price is right for unequal chances too, as you can check by hand. Suppose the model always
# gives `a` the probability 1/2, `b` 1/4, and `c` and `d` 1/8 each. Give the likelier characters the
# shorter codes. No code is the beginning of another one, so I always know where one ends.

# %% tags=["nbval-check-output"]
from math import log, log2

belief = {"a": 1 / 2, "b": 1 / 4, "c": 1 / 8, "d": 1 / 8}
code = {"a": "0", "b": "10", "c": "110", "d": "111"}

message = "abacabad"
sent = "".join(code[c] for c in message)
cost = sum(-log2(belief[c]) for c in message)
assert len(sent) == cost
sent, cost

# %% [markdown]
# Fourteen bits instead of the sixteen that two bits for each character would take. If the belief is
# right, no code does better on average, as Shannon proved in 1948. Costs add up
# because chances multiply: the probability of a whole text is that of its first character, times
# that of the second given the first, and so on, here $2^{-14}$. The logarithm turns the product into
# a sum.
#
# So **every predictor is a compressor**: the better it predicts, the fewer bits are left to send.
# When $-\log_2 p$ isn't a whole number, *arithmetic coding* lets neighbouring characters share a
# bit. The converse holds too. A compressor that spends two bits on a character has treated it as
# something with probability 1/4, whether its author thought about probabilities or not. That puts
# compressors and language models on one scale.
#
# The score of a model is the mean cost of a character, each one predicted from everything before it:
#
# $$\text{loss} = -\frac1N \sum_{t=1}^{N} \log_2 p(x_t \mid x_1 \dots x_{t-1})$$
#
# Its full name is **cross-entropy**, and everybody calls it the **loss**. A prediction that is certain
# and right costs nothing. If the model called the next character impossible, the cost is infinite.
#
# One change of unit remains. Torch, like most of mathematics, prefers the natural logarithm,
# $-\ln p$. Its unit is the **nat**, which is 1.44 bits. From now on losses are in nats per
# character. A model that knows nothing at all has to give each of the 65 characters the same chance.
# That is the top of the ladder:

# %%
uniform = -log(1 / tokenizer.vocab_size)
print(f"knowing nothing: {uniform:.3f} nats = {uniform / log(2):.3f} bits")

# %% [markdown]
# ## The first step down
# We saw that the characters aren't equally common. So count them in the training text, and predict
# each one with its share. This is the *unigram* model. It knows how common each character is, and
# nothing about what came before. Let it read one line of the validation text. Which characters will
# be expensive?

# %%
share = {c: n / len(train_text) for c, n in Counter(train_text).items()}
line = "Good morrow, neighbour Gremio."
assert line in val_text
costs = [-log(share[c]) for c in line]

fig, ax = plt.subplots(figsize=(9, 2.4))
ax.bar(range(len(line)), costs)
ax.axhline(uniform, color=RED, label="knowing nothing")
ax.set_xticks(range(len(line)), [visible.get(c, c) for c in line])
ax.set(xlabel="character", ylabel="cost (nats)", ylim=(0, 9))
ax.legend()
show(
    fig,
    alt="Bars of what each character of the line costs: space and e about 2 nats, the "
    "capital G above 6, with a line at 4.17 for knowing nothing.",
)
f"{sum(costs):.1f} nats for {len(line)} characters, {sum(costs) / len(line):.2f} each"

# %% [markdown]
# *Common characters cost less than 4.17 nats, rare ones more. Space and `o` cost the same wherever
# they stand: this model doesn't look at what came before.*
#
# And on average over the whole validation text?

# %%
unigram = sum(-log(share[c]) for c in val_text) / len(val_text)
print(f"counting characters: {unigram:.3f} nats = {unigram / log(2):.3f} bits")

# %% [markdown]
# A fifth of the cost is gone.
#
# Had the validation text contained a character that the training text lacks, Python would have
# stopped with a missing key. In chapter 02 that danger becomes real.
#
# A model that gives probabilities can also write: draw a character by its probability, then
# another. Every chapter's model will continue the same prompt, a speaker's name on a line of its
# own, so that you can read how they get better.

# %%
import random

random.seed(1)
drawn = random.choices(list(share), share.values(), k=200)
print(PROMPT + "".join(drawn))

# %% [markdown]
# The right letters, about as many of each as there should be, and that is all. This is what 3.35 nats
# look like.

# %% [markdown]
# ## The opponent
# Your computer already has programs that are good at prediction: compressors. We ask them the
# question that we will ask our models. *What does the validation text cost someone who has read the
# training text?* Compress the training text alone, then both together, and take the difference.
#
# gzip looks for repetitions in the last 32,768 characters, xz in the whole text. bzip2 cuts the
# text into blocks of 900,000 characters and forgets everything at the end of each. Our validation
# text falls into the second block, with only the last tenth of the training text before it. So we
# measure bzip2 twice: as it comes, and with a past so short that both texts fit into one block. A
# byte has 8 bits, and a bit is $\ln 2 = 0.69$ nats.

# %%
import bz2
import gzip
import lzma

compressors = {"gzip": gzip.compress, "xz": lzma.compress, "bzip2": bz2.compress}


def nats_per_character(compress, past, new):
    """What the text `new` costs a compressor that has read the text `past`."""
    extra = len(compress((past + new).encode())) - len(compress(past.encode()))
    return 8 * log(2) * extra / len(new)


losses = {"knowing nothing": uniform, "counting characters": unigram}
for name, compress in compressors.items():
    losses[name] = nats_per_character(compress, train_text, val_text)
one_block = train_text[-788_000:]  # with the validation text, just under 900,000
losses["bzip2, one block"] = nats_per_character(bz2.compress, one_block, val_text)

# %%
fig, ax = plt.subplots(figsize=(7, 2.4))
names = list(losses)[::-1]
bars = ax.barh(names, [losses[name] for name in names], color=BLUE)
ax.bar_label(
    bars,
    [f"{losses[n]:.2f} nats = {losses[n] / log(2):.2f} bits" for n in names],
    padding=4,
)
ax.set(xlabel="nats per character on the validation text (less is better)", xlim=(0, 6))
show(
    fig,
    alt="Horizontal bars of nats per character: knowing nothing 4.17, counting "
    "characters 3.35, gzip 2.15, xz 1.74, bzip2 1.66, bzip2 in one block 1.57.",
)

# %% [markdown]
# *Every compressor is far below counting. The best of them, bzip2 with all of its past in one
# block, pays less than half of it.*
#
# Why does bzip2 beat xz, even with a tenth of the past? gzip and xz live mostly by copying
# repetitions. bzip2 sorts all positions in the text by what *follows* them. The characters that
# stand before `he ` end up together. Seven of ten are a `t`, nearly all others a space, a `T` or an
# `s`, so they are easy to predict. bzip2 uses *context*, here the characters after a place. Our
# models will use those before it, from the next chapter on. The compressors keep one advantage:
# they go on learning from the validation text while they read it, and our models will not.
#
# From here on, keep two numbers apart. The first is the **number to beat**: the loss of the last
# model that we built, now 3.35. Each new model has to get below it, one rung further down. The
# second is the **opponent**: a program without a network that is far ahead of us, now bzip2 as your
# computer runs it, at 1.66. The picture below shows both. It returns in most chapters, each time
# with one more rung.

# %%
show_ladder("counting characters", unigram, "bzip2")

# %% [markdown]
# *The models that we have built so far, the latest in orange. The dashed line is the opponent.*

# %% [markdown]
# ## Summary
# Text becomes numbers by listing its 65 characters and using positions in the list, and nothing is
# lost on the way. The text itself supplies the questions and the answers: inputs, and targets
# shifted by one. There are 1,003,854 characters to learn from and 111,540 to be measured on. The
# score is what a character costs, $-\ln p$ on average, and it makes predictors and compressors
# comparable: knowing nothing costs 4.17 nats, counting characters 3.35, bzip2 1.66, or 1.57 with
# all of its past in one block. The next chapter starts to look at what came before, at first at one
# single character.

# %% [markdown]
# ## Exercises
# `make learn CHAPTER=01` makes a workbook that checks what you write here, and
# [the solutions](solutions/01_text.ipynb) have a notebook of their own.
#
# **1.** In how many places can a window of $T$ tokens start, and how many *different* windows come
# out? Write both as functions of a text and $T$. Then look at the second number for $T = 8$ on the
# training text, and compare it with the number of starts. What does that tell you about the text?
#
# **2.** Write a tokenizer without capitals: it lowers every letter before it looks it up. What does
# counting characters cost on the lower-cased text? Is that a better model?
#
# **3.** The compressors got far below 3.35. Shuffle the characters of the training text, and those
# of the validation text (`random.sample(s, len(s))`), and let the compressors try again. Before you
# run it: which number can none of them get below now, and why? Write it as a function of the two texts.
