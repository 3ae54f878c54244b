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
# # 05 · Blocks: solutions

# %%
import torch
import torch.nn.functional as F
from torch import nn

from tinygpt_lib.blocks import Block, FeedForward

# %% [markdown]
# ## 1. Either, but not both


# %%
#| exercise 1
def either():
    """A FeedForward(4, activation=F.relu): 1 in the third number for exactly one of two."""
    layer = FeedForward(4, activation=F.relu)
    with torch.no_grad():
        for p in layer.parameters():
            p.zero_()
        #| hole: two detectors, and what each writes when it fires
        layer.widen.weight[:2, :2] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
        layer.output.weight[2, :2] = 1
    return layer


# %% tags=["nbval-check-output"]
four = torch.tensor([[0.0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0]])
either()(four)[:, 2].tolist()

# %% [markdown]
# <!-- hints: either
# A row of `layer.widen.weight` is a detector: its first two weights are those of the first two numbers. Which
# one fires for *the first without the second*?
#
# Column i of `layer.output.weight` is what detector i writes; row 2 is the third number.
# -->
#
# One detector finds *the first without the second*, another *the second without the first*. A single one
# rises or falls along one direction and cannot do both.

# %% [markdown]
# ## 2. A quiet start


# %%
#| exercise 2
def quiet(block):
    """Makes the block the identity; the names of the parameters that now get a slope."""
    #| hole
    for part in (block.attention.output, block.feed_forward.output):
        nn.init.zeros_(part.weight)
        nn.init.zeros_(part.bias)
    parts, kinds = ("attention", "feed_forward"), ("weight", "bias")
    return {f"{part}.output.{kind}" for part in parts for kind in kinds}


# %%
block, x = Block(64, 4), torch.randn(2, 10, 64)
predicted = quiet(block)
assert torch.equal(block(x), x)
block(x).pow(2).sum().backward()
assert {n for n, p in block.named_parameters() if p.grad.abs().max() > 0} == predicted

# %% [markdown]
# <!-- hints: quiet
# Each part ends in a matrix that writes to the stream. If that matrix, and its bias, are zero, what does the
# part add?
#
# A slope reaches everything before a matrix *through* the matrix. Which parameters are behind no zero?
# -->
#
# Only the zeros themselves learn in the first step, since every other slope passes through them. Then
# they are no longer zero, and the rest joins in. Chapter 12's model begins like this.

# %% [markdown]
# ## 3. Ten times as loud


# %%
#| exercise 3
def contribution(block, x):
    """What the block's attention adds to the stream x (B, T, C)."""
    #| hole
    return block.attention(block.attention_norm(x))


# %%
block = Block(64, 4)
assert torch.allclose(contribution(block, 10 * x), contribution(block, x), atol=1e-3)

# %% [markdown]
# <!-- hints: contribution
# What does a part read, in a pre-norm block: the stream, or something made of it?
# -->
#
# Nothing. A stream ten times as large gets the same addition, so in proportion it is changed by a tenth
# as much. The larger a stream has become, the less a later layer can change it.
