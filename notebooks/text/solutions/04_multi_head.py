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
# # 04 · Several heads: solutions

# %%
import torch

from tinygpt_lib.multi_head import MultiHeadAttention
from tinygpt_lib.single_head import attention

# %% [markdown]
# ## 1. Without a head


# %%
#| exercise 1
def without(attend, heads):
    """Like attend(q, k, v) -> (B, H, T, D), but the heads in the list find only zeros."""
    #| hole

    def rest(q, k, v):
        found = attend(q, k, v).clone()
        found[:, heads] = 0.0
        return found

    return rest


# %%
q, k, v = torch.randn(3, 1, 4, 5, 8)
without(attention, [1, 2])(q, k, v).abs().sum(dim=(0, 2, 3))

# %% [markdown]
# <!-- hints: without
# A function inside the function: it calls `attend`, wipes out some heads, and is returned itself.
#
# Heads are the second dimension: `found[:, heads]` takes a list of them. What `attend` gave back may
# belong to somebody else, so wipe a copy.
# -->
#
# With the chapter's model the four cost 2.42, 2.64, 2.38 and 2.40 nats, one at a time, instead of 2.20. All
# are needed. The one that looks at the token itself is missed most: without it the model hardly knows where
# it stands. Without all of them only the bias of the output head is left, and no constant guess gets below
# 3.3 nats.

# %% [markdown]
# ## 2. Heads set by hand


# %%
#| exercise 2
def by_hand():
    """A MultiHeadAttention(4, 2) that puts out a token's letter and the one before it."""
    layer = MultiHeadAttention(4, 2, bias=False)
    with torch.no_grad():
        #| hole: the rows of to_qkv and of output, all of them
        quarter = torch.tensor(
            [[0.0, 1.0], [-1.0, 0.0]]
        )  # turns a position back by one
        layer.to_qkv.weight.zero_()
        queries, keys, values = layer.to_qkv.weight.split(4)
        queries[:2, 2:] = 30 * torch.eye(2)  # head 0 looks for its own position
        queries[2:, 2:] = 30 * quarter  # head 1 for the one before
        keys[:2, 2:] = keys[2:, 2:] = torch.eye(2)
        values[:2, :2] = values[2:, :2] = torch.eye(2)
        layer.output.weight.copy_(torch.eye(4))
    return layer


# %% tags=["nbval-check-output"]
positions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
letters = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])  # abba
with torch.no_grad():
    y = by_hand()(torch.cat([letters, positions], dim=1)[None])[0]
(y[1:] + 0.0).round(decimals=2).abs()

# %% [markdown]
# <!-- hints: by_hand
# `layer.to_qkv.weight` has 12 rows: four for queries, four for keys, four for values; of each four the first
# two are head 0's. The columns are the input: two for the letter, two for the position.
#
# Keys are positions. Head 0 asks for its own position, and head 1 for the one a quarter turn back. Which matrix
# turns a vector by a quarter? Make the queries large, so that the softmax is certain.
#
# Values are letters, and the output matrix can leave everything as it is.
# -->
#
# Positions as angles, and a matrix that turns them: *one back* is the same turn everywhere.
# Chapter 10 builds its positions on this idea.

# %% [markdown]
# ## 3. A careless merge


# %%
#| exercise 3
def moved_by_last(n, heads):
    """Which of n outputs of `Careless` move when the last token does: a sorted list."""
    #| hole
    # Row n - 1 of each head moves. Read on in memory, it is row h * n + n - 1 of all,
    # and the careless merge gives `heads` rows to each position.
    return sorted({(h * n + n - 1) // heads for h in range(heads)})


# %% tags=["nbval-check-output"]
moved_by_last(10, 4), moved_by_last(8, 8)

# %% [markdown]
# <!-- hints: moved_by_last
# Number the rows of (H, T, D) as they lie in memory: head 0's T rows first, then head 1's. Which of them belong
# to the last token?
#
# `reshape` to (T, H · D) hands out `heads` of these rows to each position, in that order.
# -->
#
# With as many heads as positions, every output knows the last token. It is the leak of the wrong cut,
# from the other end.
