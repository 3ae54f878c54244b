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
# # 06 · GPT: solutions

# %%
import torch

from tinygpt_lib.gpt import GPT, GPTConfig

# %% [markdown]
# ## 1. Two thirds


# %%
#| exercise 1
def share(C):
    """The share of a block's parameters that its feed-forward part has."""
    #| hole
    return (8 * C**2 + 5 * C) / (12 * C**2 + 13 * C)


# %% tags=["nbval-check-output"]
share(4), share(512)

# %% [markdown]
# <!-- hints: share
# The table of the chapter has both: widening and narrowing, and the whole block.
# -->
#
# It tends to two thirds. Attention gives the Transformer its fame, but most of its numbers sit in the part
# that looks at each token alone.

# %% [markdown]
# ## 2. The suspect


# %%
#| exercise 2
def fits(vocab_size, shapes):
    """Whether that vocabulary gives the millions of all (n_layer, width, millions)."""
    #| hole
    for n_layer, C, millions in shapes:
        total = n_layer * (12 * C**2 + 13 * C) + (vocab_size + 1024 + 2) * C
        if round(total / 1e6) != millions:
            return False
    return True


# %% tags=["nbval-check-output"]
paper = [(12, 768, 117), (24, 1024, 345), (36, 1280, 762), (48, 1600, 1542)]
suspects = [v for v in range(30_000, 60_000) if fits(v, paper)]
40_478 in suspects, 50_257 in suspects, len(suspects)

# %% [markdown]
# <!-- hints: fits
# Blocks: 12C² + 13C each. Around them: V times C once, 1,024 positions of C, and a norm of 2C.
#
# Round to millions and compare; *all* have to fit.
# -->
#
# Of the 30,000 vocabularies only 345 fit, and the old one is among them. So the paper's figures look like
# those of GPT-2's shapes with GPT-1's vocabulary. That is evidence and no proof.

# %% [markdown]
# ## 3. Six for each parameter and token


# %%
#| exercise 3
def flops(config):
    """Multiplications and additions of a forward pass over block_size tokens."""
    #| hole
    C, L, V = config.n_embd, config.n_layer, config.vocab_size
    return 2 * config.block_size * (L * 12 * C**2 + V * C)


# %% [markdown]
# Torch counts them as they happen: `mm` is a matrix product, and `addmm` one with a bias.

# %% tags=["nbval-check-output"]
from torch.utils.flop_counter import FlopCounterMode

counter, config = FlopCounterMode(display=False), GPTConfig(65)
with torch.no_grad(), counter:
    GPT(config)(torch.zeros(1, config.block_size, dtype=torch.int64))
counted = counter.get_flop_counts()["Global"]
assert flops(config) == counted[torch.ops.aten.mm] + counted[torch.ops.aten.addmm]
f"{flops(config) / 64 / GPT(config).n_parameters():.2f} for each parameter and token"

# %% [markdown]
# <!-- hints: flops
# A product of (T, n) with (n, m) makes T · m numbers, each from n multiplications and n additions.
#
# So every weight of a matrix counts twice for each token. Which matrices are there in a block, and which outside?
# Embeddings are looked up, not multiplied.
# -->
#
# Each weight of a matrix takes part in one multiplication and one addition for each token: two FLOPs
# forward, four backward, six in all. (1.94 and not 2, because embeddings, norms and biases are parameters
# that take part in no product.) *Six times parameters times tokens* is the rule by which the cost of
# any GPT is estimated. Attention between the tokens comes on top; these two operations don't contain it.
