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
# # 02 · Bigram: solutions

# %%
import torch
import torch.nn.functional as F
from torch import nn

from tinygpt_lib import load_shakespeare
from tinygpt_lib.bigram import SGD, training_step
from tinygpt_lib.text import CharTokenizer, get_batch, split

text = load_shakespeare()
train_text, _ = split(text)
tokenizer = CharTokenizer.from_text(text)
train_ids, _ = split(tokenizer.encode(text))
V = tokenizer.vocab_size

# %% [markdown]
# ## 1. The prediction minus the truth


# %%
#| exercise 1
def gradient(logits, targets):
    """The slopes of F.cross_entropy for logits (N, V) and targets (N,): (N, V)."""
    #| hole
    slopes = logits.softmax(dim=1)
    slopes[torch.arange(len(targets)), targets] -= 1
    return slopes / len(targets)


# %%
logits = torch.randn(5, V, requires_grad=True)
targets = torch.tensor([3, 1, 4, 1, 5])
F.cross_entropy(logits, targets).backward()
assert torch.allclose(gradient(logits.detach(), targets), logits.grad, atol=1e-6)

# %% [markdown]
# <!-- hints: gradient
# "Which way is down?" has it for one pair: the prediction minus the truth.
#
# `slopes[torch.arange(N), targets]` are the places of what came, one in each row. And a mean over N
# gives each row an N-th of the slope.
# -->
#
# Each row is *the prediction minus the truth*, and the mean gives every row an equal, small share.
# That share is why the learning rate had to be so large.

# %% [markdown]
# ## 2. What is left is noise


# %%
#| exercise 2
def gradient_lengths(model, optimizer, batches):
    """Trains on each (inputs, targets); the length of model.table's gradient each time."""
    #| hole
    found = []
    for inputs, targets in batches:
        training_step(model, optimizer, inputs, targets)
        found.append(model.table.grad.norm().item())
    return found


# %%
class Bigram(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(V, V))

    def forward(self, ids):
        return self.table[ids]


def lengths(windows):
    model, draws = Bigram(), torch.Generator().manual_seed(0)
    optimizer = SGD(model.parameters(), learning_rate=20.0)
    batches = (get_batch(train_ids, windows, 64, draws) for _ in range(300))
    return gradient_lengths(model, optimizer, batches)


few, many = lengths(windows=16), lengths(windows=128)
assert sum(few[-50:]) < 0.8 * sum(few[:50])
assert sum(many[-50:]) < 0.6 * sum(few[-50:])
few[0], few[-1], many[-1]

# %% [markdown]
# <!-- hints: gradient_lengths
# After `training_step` the gradient of its batch still lies in `model.table.grad`.
# -->
#
# Most of what is left is noise: each batch points somewhere else. A mean over eight times as many
# tokens should have $\sqrt 8 = 2.8$ times less of it. We see a factor of 2.4, because after so few
# steps a part of the gradient is still real. Either one takes larger batches, or one shrinks the
# learning rate at the end, as we did.

# %% [markdown]
# ## 3. Mostly empty


# %%
#| exercise 3
def occurring(text, k):
    """The share of all possible texts of k of its characters that stand in the text."""
    #| hole
    histories = {text[i : i + k] for i in range(len(text) - k + 1)}
    return len(histories) / len(set(text)) ** k


# %%
[f"{occurring(train_text, k):.3g}" for k in range(1, 6)]

# %% [markdown]
# <!-- hints: occurring
# How many different pieces of k characters are there (a set), and how many could there be, with V
# choices at each of k places?
# -->
#
# Each further character divides the share by more: by 3, 8, 15 and 24. Nearly all of a large table would stay
# empty.
