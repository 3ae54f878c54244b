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
# # 03 · One head: solutions

# %%
import math

import torch
import torch.nn.functional as F
from torch import nn

from tinygpt_lib import load_shakespeare
from tinygpt_lib.bigram import SGD, training_step
from tinygpt_lib.single_head import attention, attention_weights
from tinygpt_lib.text import CharTokenizer, get_batch, split

# %% [markdown]
# ## 1. Looking at the one before


# %%
#| exercise 1
def previous(n):
    """q, k (n, D): token t gives nearly all its weight to token t - 1."""
    #| hole
    places = torch.eye(n + 1)
    return 50 * places[:n], places[1:]


# %%
weights = attention_weights(*previous(5))
assert (weights[1:].diagonal() > 0.99).all() and weights[0, 0] == 1
weights.round(decimals=2)

# %% [markdown]
# <!-- hints: previous
# Give each token a place, as a vector with a single 1. What is the dot product of two of them?
#
# Let token t *be* place t + 1, in its key. What must it *ask for*, in its query?
#
# How large must a score be, next to n - 1 zeros, for a weight of 0.99? Remember that attention divides
# it by the square root of D, and D grows with n if each token has a place of its own.
# -->
#
# Token $t$ asks for place $t$, and is place $t + 1$. A head that copies the previous token is the first
# half of an *induction head* (Olsson et al., 2022): with a second one behind it, a model can continue
# whatever it has seen before. Chapter 17 looks for such heads.

# %% [markdown]
# ## 2. Which masks leak


# %%
#| exercise 2
def leaks(attend):
    """The pairs (i, j), j > i, for which token j of six changes the output of token i."""
    #| hole
    q, k, v = torch.randn(3, 6, 8)
    before, found = attend(q, k, v), []
    for j in range(6):
        k2, v2 = k.clone(), v.clone()
        k2[j] += 1.0
        v2[j] += 1.0
        moved = (attend(q, k2, v2) != before).any(dim=1)
        found += [(i, j) for i in range(j) if moved[i]]
    return found


# %%
def unmasked(q, k, v):
    return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v


leaks(attention), len(leaks(unmasked))

# %% [markdown]
# <!-- hints: leaks
# This chapter has done it for the last token: copy, change, compare. Do it for each token in turn.
#
# Change its key *and* its value, one at a time is not enough, and see which rows of the output are
# different afterwards. Only those before it count.
# -->
#
# Now the run with the unmasked head:


# %%
text = load_shakespeare()
tokenizer = CharTokenizer.from_text(text)
train_ids, val_ids = split(tokenizer.encode(text))


class Unmasked(nn.Module):
    """The chapter's `SingleHead`, but every token sees the whole window."""

    def __init__(self, n_embd=64, block_size=32):
        super().__init__()
        self.token_embedding = nn.Embedding(tokenizer.vocab_size, n_embd)
        self.position_embedding = nn.Embedding(block_size, n_embd)
        self.to_qkv = nn.Linear(n_embd, 3 * n_embd, bias=False)
        self.head = nn.Linear(n_embd, tokenizer.vocab_size)

    def forward(self, ids):
        x = self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]
        return self.head(unmasked(*self.to_qkv(x).chunk(3, dim=-1)))


torch.manual_seed(0)
cheat, generator = Unmasked(), torch.Generator().manual_seed(0)
optimizer, losses = SGD(cheat.parameters(), 0.3, momentum=0.9), []
for _ in range(500):
    batch = get_batch(train_ids, 16, 32, generator)
    losses.append(training_step(cheat, optimizer, *batch))
cheating_loss = sum(losses[-100:]) / 100
x, y = get_batch(val_ids, 2000, 32, generator)
with torch.no_grad():
    honest_loss = F.cross_entropy(cheat(x)[:, -1], y[:, -1]).item()
assert (
    cheating_loss < 2.1 and honest_loss > 2.8
)  # one masked head: 2.37, a bigram: 2.48
cheating_loss, honest_loss

# %% [markdown]
# The model has learned to read the answer off the next place, and where there is no next place it
# does worse than counting characters, 3.35. In a run you would only see the first number, and it looks
# like a triumph. A loss that falls much faster than expected is a reason to check the mask.
