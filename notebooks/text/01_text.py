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
# This chapter settles both without any network. At its end we have two scores that cost no
# learning at all. One is the top rung of a ladder that we go down a chapter at a time, since a
# lower score is better. The other belongs to an opponent who already stands far below.

# %% [markdown]
# ## The text
# We use one small file through the whole course: *Tiny Shakespeare*, 40,000 lines of plays. It is
# small enough for a laptop to learn from in minutes, and rich enough that you can watch the
# learning happen: first spelling, then names, then verse and the layout of a play.
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
# between the speeches, 27 times. Data always has such corners, and it pays to look for them.
#
# The 65 characters are far from equally common:

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

# %% [markdown]
# *About one character in seven is a space (␣), one in twelve an e. The rarer half of the 65 make up
# only 6 % of the text.*

# %% [markdown]
# ## A tokenizer in five lines
# The plainest way from characters to numbers is to write all different characters in a row, and to
# use each one's place in the row as its number. Here it is on a word short enough to check by eye.

# %% tags=["nbval-check-output"]
word = "hello"

characters = sorted(set(word))
number = {c: i for i, c in enumerate(characters)}
ids = [number[c] for c in word]
back = "".join(characters[i] for i in ids)
assert back == word

characters, ids

# %% [markdown]
# That is a complete **tokenizer**. The row of characters is its **vocabulary**, one entry of it is
# a **token**, and the place of a token in the row is its **id**. Turning text into ids is called
# *encoding*, turning ids into text *decoding*. The assert is the check that matters: if decoding
# did not give `hello` back, something would be lost, and no model could ever restore it.
#
# The ids are names, not amounts. That `o` is 3 and `h` is 1 does not make `o` three times as much of
# anything. In chapter 03 every id gets a list of learned numbers to live with; until then it is
# only an index.
#
# A token need not be a character. Chapter 09 tries bytes, pieces of words and whole words, and finds
# out what each is good for. Characters come first because nothing is simpler.
#
# ## The tokenizer as a class
# Later chapters need the tokenizer too, so it goes into the library that comes out of this course.
# **A cell that begins with `#| export`, like the next one, becomes part of `tinygpt_lib`**, and
# every later chapter (or a program of yours) can import it.
#
# All computing in this course is done with PyTorch, a library for arrays of numbers. Its word for
# such an array is **tensor**: numbers of one kind, with a shape. A list of $N$ ids is a tensor of
# shape `(N,)`; a table with $B$ rows and $T$ columns has the shape `(B, T)`. Ids are whole numbers of
# 64 bits, `int64`.

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
        return cls(sorted(set(text)))

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> Tensor:
        return torch.tensor([self.number[c] for c in text], dtype=torch.int64)

    def decode(self, ids) -> str:
        return "".join(self.characters[i] for i in ids)


# %% [markdown]
# You will find the five lines in there, one by one. The line `@hardened` belongs to the library and
# not to the lesson. It wraps the class in what a program needs when it meets strangers' files: the
# vocabulary can be saved and loaded again, and whatever is wrong with it, or with a text, gets a
# clear error. Without that line the class computes the same.
#
# The same word gives the same ids:

# %% tags=["nbval-check-output"]
hello = CharTokenizer.from_text("hello")
assert hello.encode("hello").tolist() == ids
hello.encode("hole"), hello.decode([1, 0, 2, 2, 3])

# %% [markdown]
# What about a character that is not in the vocabulary? It must not vanish, and it must not silently
# turn into another one. Either way we would be testing a model on a text that nobody wrote. So it
# is an error:

# %% tags=["nbval-check-output"]
try:
    hello.encode("hell!")
except ValueError as error:
    print(error)

# %% [markdown]
# Now the whole of Shakespeare, there and back.

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
# ![A triangle of nine rows from the ten tokens “First Citi”: each row holds one token more and asks for the next; stored as two rows, the targets are the inputs moved by one place.](drawings/context.svg)

# %% tags=["nbval-check-output"]
ten = ids[:10]
for i in range(1, 10):
    print(f"{tokenizer.decode(ten[:i])!r:14} -> {tokenizer.decode(ten[i : i + 1])!r}")

# %% [markdown]
# Ten tokens hold nine questions, each with its answer, and nobody had to write the answers
# down. The text is its own teacher. That is why a language model can learn from any text at all.
#
# The answers are simply the text moved by one place. So we keep two rows: the **inputs**, which are
# all tokens but the last, and the **targets**, which are all tokens but the first. Below each input
# stands the token that should be predicted there.

# %% tags=["nbval-check-output"]
inputs, targets = ten[:-1], ten[1:]
print("inputs ", tokenizer.decode(inputs))
print("targets", tokenizer.decode(targets))
for i in range(9):
    assert targets[i] == ids[i + 1]  # the answer to the question that ends at i

# %% [markdown]
# ## What must stay unseen
# A student who has memorized the answers looks better in the exam than she is, and so does a model.
# We therefore set a part of the text aside, never learn from it, and measure on it. It is called
# the **validation** text.
#
# Which part should it be? Lines drawn at random would be a poor choice. Neighbouring lines
# belong to the same scene and share names and turns of phrase, so a model could profit from having
# seen the lines around its exam. We cut once instead: the first 90 % to learn from, the last
# 10 % to measure on. Most people cut this text in the same place, so our losses can be compared with
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
train_text, val_text = split(text)
assert tokenizer.decode(val_ids) == val_text
print(f"{len(train_ids):,} to train on, {len(val_ids):,} to validate on")

# %% [markdown]
# ## Batches
# A million characters are too many to look at before each small step of learning. Instead we cut a
# few short windows out of the text at random places. Two numbers describe such a **batch**: how many
# windows it has, $B$ (`batch_size`), and how many tokens each window holds, $T$ (`block_size`). The
# second is also called the *context length*, because a model that only ever sees windows of $T$
# tokens cannot look further back than that.
#
# Each window needs $T + 1$ tokens, since the targets reach one further than the inputs. In a text of
# $N$ tokens it may therefore start anywhere from $0$ to $N - T - 1$. Mistakes hide at that last
# start: one too many and we read past the end, one too few and the last token of the text is never
# asked for.


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
    last = len(ids) - block_size - 1
    starts = torch.randint(last + 1, (batch_size, 1), generator=generator)
    places = starts + torch.arange(block_size)  # (B, T)
    return ids[places], ids[places + 1]


# %% [markdown]
# `torch.randint(n, ...)` draws whole numbers from $0$ to $n - 1$, so the last start can come up.
# `starts` is a column of $B$ numbers, and `arange` is the row 0, 1, ..., $T - 1$. Adding a column and
# a row gives a table with every sum in it. Looking up a table of places in `ids` gives a table of tokens. The
# `generator` is a source of random numbers: started from the same number, its *seed*, it draws the
# same batches again.
#
# Let us see four windows of eight on the ten tokens from above. A window of eight with its targets
# takes nine, so there are two places where it can start:

# %% tags=["nbval-check-output"]
generator = torch.Generator().manual_seed(1)
inputs, targets = get_batch(ten, batch_size=4, block_size=8, generator=generator)
for x, y in zip(inputs, targets, strict=True):
    print(f"{tokenizer.decode(x)!r:12} {tokenizer.decode(y)!r}")

# %% [markdown]
# Every row on the right is its row on the left moved by one place, with one new character at
# the end. To be sure of the last start, we draw often from the smallest text that holds a window of
# three. Only one window can come out:

# %% tags=["nbval-check-output"]
inputs, targets = get_batch(torch.arange(4), batch_size=100, block_size=3)
assert (inputs == inputs[0]).all() and (targets == targets[0]).all()
inputs[0], targets[0]

# %% [markdown]
# And with one token more there are two windows, which both turn up:

# %% tags=["nbval-check-output"]
inputs, _ = get_batch(torch.arange(5), 100, 3, torch.Generator().manual_seed(0))
inputs[:, 0].unique()

# %% [markdown]
# ## A score for predictions
# A model does not name *one* next character. It spreads its belief over all 65: an `e` with
# probability 0.2, a space with 0.1, and so on. Then the text reveals an `e`. How good was that?
#
# Think of two people who use the same model, one of whom sends the text to the other. They only
# need to send what the model leaves open. If it says that the next character is `a` or `b`, each
# with probability 1/2, one yes-or-no answer settles it: one **bit**. Four equally likely
# candidates take two bits, eight take three. A character to which the model gave the probability
# $p$ costs $-\log_2 p$ bits, so our `e` costs $-\log_2 0.2 = 2.3$ bits.
#
# It works for unequal chances too, and you can check that by hand. Suppose the model always
# believes in `a` with 1/2, in `b` with 1/4, and in `c` and `d` with 1/8 each. Then give the likely
# characters the short codes. No code is the beginning of another one, so the receiver always knows
# where one ends.

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
# Fourteen bits instead of the sixteen that two bits for each character would take. So **every
# predictor is a compressor**: the better it predicts, the fewer bits are left to send. (When
# $-\log_2 p$ is not a whole number, a method called *arithmetic coding* still gets the whole message
# to within two bits of the sum.) It also holds the other way round. A compressor that spends two
# bits on a character has treated it as something with probability 1/4, whether its author thought
# about probabilities or not. That lets us put compressors and language models on one scale.
#
# The score of a model is the mean cost of a character. Its full name is **cross-entropy**, and
# everybody calls it the **loss**. A prediction that is certain and right costs nothing. One that
# calls impossible what then happens costs infinitely much.
#
# One change of unit remains. Torch, like most of mathematics, prefers the natural logarithm:
# $-\ln p$. Then the unit is the **nat**, which is 1.44 bits. From now on losses are in nats per
# character. A model that knows nothing at all has to give each of the 65 characters the same chance:

# %%
uniform = -log(1 / tokenizer.vocab_size)
print(f"knowing nothing: {uniform:.3f} nats = {uniform / log(2):.3f} bits a character")

# %% [markdown]
# ## The first rung
# We saw that the characters are not equally common. So count them in the training text, and
# whatever came before, predict each one with its share. This is called the *unigram* model.

# %%
share = {c: n / len(train_text) for c, n in Counter(train_text).items()}
unigram = sum(-log(share[c]) for c in val_text) / len(val_text)
print(f"counting characters: {unigram:.3f} nats = {unigram / log(2):.3f} bits")

# %% [markdown]
# A fifth of the cost is gone. (Every character of the validation text also occurs in the training
# text. Otherwise its share would be zero and its cost infinite, and Python would have stopped with
# a missing key. In chapter 02 that danger becomes real.)
#
# A model that gives probabilities can also write: draw a character by its probability, then another.
# Every chapter's model will be asked to continue the same prompt, so that you can read how they
# get better. The prompt is a speaker's name on a line of its own.

# %%
import random

random.seed(1)
drawn = random.choices(list(share), share.values(), k=200)
print(PROMPT + "".join(drawn))

# %% [markdown]
# Those are the right letters, about as many of each as there should be, and that is all. This is
# what 3.35 nats look like.

# %% [markdown]
# ## The opponent
# Your computer already has programs that are good at prediction: compressors. We ask them the
# question that we will ask our models. *What does the validation text cost someone who has read the
# training text?* To find out, compress the training text alone, then both together, and
# take the difference.

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

# %%
fig, ax = plt.subplots(figsize=(7, 2.4))
names = list(losses)[::-1]
bars = ax.barh(names, [losses[name] for name in names], color=BLUE)
ax.bar_label(
    bars,
    [f"{losses[n]:.2f} nats = {losses[n] / log(2):.2f} bits" for n in names],
    padding=4,
)
ax.set(xlabel="nats a character on the validation text (less is better)", xlim=(0, 6))
show(
    fig,
    alt="Horizontal bars of nats a character: knowing nothing 4.17, counting "
    "characters 3.35, gzip 2.15, xz 1.74, bzip2 1.66.",
)

# %% [markdown]
# *All five scores come without any training. Counting saves a fifth of the bits, the compressors
# half to three fifths.*
#
# gzip looks for repetitions in the last 32,768 characters, xz in the whole text. bzip2 does
# something else: it sorts the text by what stands next to each character, so that whatever goes
# with `he ` is gathered in one place. It looks at *context*, and it wins. Our models will look at
# context too, from the next chapter on.
#
# From here on, keep two numbers apart. The first is the **number to beat**: the loss of the last
# model that we built, now 3.35. Each new model has to get below it; that is the next rung of the
# ladder. The second is the **opponent**: the best score that we have without any network, now
# bzip2's 1.66. It stays out of reach for a long while, and chapter 02 even replaces it with a stronger
# one. Here are both in one picture. It comes back at the end of the next chapters, each time with one
# more rung.

# %%
show_ladder("counting characters", unigram, "bzip2")

# %% [markdown]
# *The rungs are the models that we have built so far, the latest in red. The dashed line is the
# opponent.*

# %% [markdown]
# ## Summary
# Text becomes numbers by listing its 65 characters and using places in the list, and nothing is
# lost on the way. The text itself supplies the questions and the answers: inputs, and targets one
# place later. There are 1,003,854 characters to learn from and 111,540 to be measured on. The score is
# what a character costs, $-\ln p$ on average, and it makes predictors and compressors
# comparable: knowing nothing costs 4.17 nats, counting characters 3.35, the best everyday
# compressor 1.66. The next chapter starts to look at what came before, at first at one single
# character.

# %% [markdown]
# ## Exercises
# Each exercise ends with asserts that your cell has to pass. My solutions follow, folded away.
#
# **1.** In how many places can a window of $T$ tokens start, and how many *different* windows come
# out? Write both as functions of a text and $T$. Then look at the second number for $T = 8$ on the
# training text, and compare it with the number of starts. What does that tell you about the text?
# ```python
# assert (starts("abababab", 3), different("abababab", 3)) == (5, 2)
# assert (starts(train_text, 8), different(train_text, 8)) == (1_003_846, 559_503)
# ```
# **2.** Write a tokenizer without capitals: it lowers every letter before it looks it up. What does
# counting characters cost on the lower-cased text? Is that a better model?
# ```python
# lower = LowerTokenizer.from_text(text)
# assert lower.vocab_size == 39
# assert lower.decode(lower.encode("First Citizen")) == "first citizen"
# assert lower_loss < unigram - 0.1
# ```
# **3.** The compressors got far below 3.35. Shuffle the characters of the training text, and those
# of the validation text (`random.sample(s, len(s))`), and let the compressors try again. Before you
# run it: which number can none of them get below now, and why?
# ```python
# for name in compressors:
#     assert shuffled[name] > bound - 0.01 and shuffled[name] > losses[name] + 1
# ```

# %% [markdown]
# ## Solutions


# %% jupyter={"source_hidden": true}
def starts(text, T):
    return len(text) - T


def different(text, T):
    return len({text[i : i + T] for i in range(starts(text, T))})


assert (starts("abababab", 3), different("abababab", 3)) == (5, 2)
assert (starts(train_text, 8), different(train_text, 8)) == (1_003_846, 559_503)

# %% [markdown]
# Little more than half of the windows are different, although 65⁸ = 3 · 10¹⁴ of them could be
# written. Language repeats itself even over eight characters, and every repetition is something that
# can be predicted.


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

seen = Counter(train_text.lower())
lower_loss = sum(-log(seen[c] / len(train_text)) for c in val_text.lower())
lower_loss /= len(val_text)
assert lower_loss < unigram - 0.1
lower_loss

# %% [markdown]
# The loss is lower, but the task is another one. Anyone who sends the lower-cased text has not sent
# the capitals, and the receiver cannot put them back. Two losses can only be compared when both
# models could restore the same text.

# %% jupyter={"source_hidden": true}
random.seed(1)
mixed = [random.sample(part, len(part)) for part in (train_text, val_text)]
mixed = ["".join(part) for part in mixed]
bound = unigram
shuffled = {
    name: nats_per_character(compress, *mixed) for name, compress in compressors.items()
}
for name in compressors:
    assert shuffled[name] > bound - 0.01 and shuffled[name] > losses[name] + 1
shuffled

# %% [markdown]
# In shuffled text nothing is left but how common each character is, so nobody can do better than the
# unigram model, 3.35 nats. (A model that had counted the shuffled validation text itself would reach
# 3.34, and that is the end.) All that the compressors gained, they gained from
# the *order* of the characters. That is what we are after.
