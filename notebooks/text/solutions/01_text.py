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
# # 01 · Text: solutions

# %%
import bz2
import gzip
import lzma
import random
from collections import Counter
from math import log

from tinygpt_lib import load_shakespeare
from tinygpt_lib.text import CharTokenizer, split

text = load_shakespeare()
train_text, val_text = split(text)

# %% [markdown]
# ## 1. Different windows


# %%
#| exercise 1
def starts(text, T):
    """In how many places a window of T tokens, and the target of its last, can start."""
    #| hole
    return len(text) - T


def different(text, T):
    """How many different windows of T tokens start there."""
    #| hole
    return len({text[i : i + T] for i in range(starts(text, T))})


# %% tags=["nbval-check-output"]
starts(train_text, 8), different(train_text, 8)

# %% [markdown]
# <!-- hints: starts
# The targets reach one further than the inputs. Try it on paper with the text `abcd` and T = 3.
# -->
#
# <!-- hints: different
# `text[i : i + T]` is a window, and a set holds each one once.
# -->
#
# Little more than half of the windows are different, although 65⁸ = 3 · 10¹⁴ of them could be
# written. Language repeats itself even over eight characters, and every repetition is something that
# can be predicted.

# %% [markdown]
# ## 2. Without capitals


# %%
#| exercise 2
class LowerTokenizer(CharTokenizer):
    """One token per character; capitals are small letters to it."""

    @classmethod
    def from_text(cls, text):
        #| hole
        return super().from_text(text.lower())

    def encode(self, text):
        #| hole
        return super().encode(text.lower())


# %%
lower = LowerTokenizer.from_text(text)
seen = Counter(train_text.lower())
lower_loss = sum(-log(seen[c] / len(train_text)) for c in val_text.lower())
lower.vocab_size, lower_loss / len(val_text)

# %% [markdown]
# <!-- hints: LowerTokenizer.from_text
# `super().from_text(...)` is what CharTokenizer does. What text should it get?
# -->
#
# The loss is lower, but the task is another one. Anyone who sends the lower-cased text hasn't sent
# the capitals, and the receiver can't put them back. Two losses can only be compared when both
# models could restore the same text.

# %% [markdown]
# ## 3. Shuffled


# %%
#| exercise 3
def bound(train_text, val_text):
    """What a character costs (mean, in nats) if only the shares of the first text count."""
    #| hole
    share = {c: n / len(train_text) for c, n in Counter(train_text).items()}
    return sum(-log(share[c]) for c in val_text) / len(val_text)


# %%
random.seed(1)
past, new = ("".join(random.sample(part, len(part))) for part in (train_text, val_text))
shuffled = {}
for compress in (gzip.compress, lzma.compress, bz2.compress):
    extra = len(compress((past + new).encode())) - len(compress(past.encode()))
    shuffled[compress.__module__] = 8 * log(2) * extra / len(new)
assert min(shuffled.values()) > bound(train_text, val_text) - 0.01
shuffled, bound(train_text, val_text)

# %% [markdown]
# <!-- hints: bound
# In shuffled text nothing is left but how common each character is. Which model of this chapter knows that?
#
# `Counter(train_text)` counts. The cost of a character with the share p is -log(p).
# -->
#
# In shuffled text nothing is left but how common each character is, so nobody can do much better than
# the unigram model, 3.35 nats. A compressor that adapts to the validation text's own shares could gain
# a few thousandths, hence the 0.01 in the assert. All that the compressors gained before, they gained
# from the *order* of the characters. That is what we are after.
