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
# # 08 · Generation: solutions

# %%
import torch

from tinygpt_lib.generation import pick

# %% [markdown]
# ## 1. Its own text


# %%
#| exercise 1
def own_cost(logits, temperature):
    """Expected nats of a token drawn from logits (V,) at a temperature, judged at 1."""
    #| hole
    drawn = (logits / temperature).softmax(dim=-1)
    return -(drawn * logits.log_softmax(dim=-1)).sum().item()


# %%
logits = torch.tensor([0.1, 0.5, 0.05, 0.2, 0.15]).log()
generator = torch.Generator().manual_seed(0)
for temperature in (0.5, 1.0, 2.0):
    rows = logits.expand(20_000, 5)
    drawn = pick(rows, temperature=temperature, generator=generator)
    measured = -logits[drawn].mean().item()
    assert abs(measured - own_cost(logits, temperature)) < 0.03  # five deviations
own_cost(logits, 1.0), own_cost(logits, 0.5)

# %% [markdown]
# <!-- hints: own_cost
# Each token is drawn with one probability and costs -ln of another. What is the mean over all tokens?
#
# Drawn: the softmax of logits / temperature. Judged: `log_softmax` of the logits as they are.
# -->
#
# With the chapter's model, 2,000 characters of its own cost 1.69 nats each at temperature 1, beside 1.80 for
# the validation text, with names that it has never seen, and 1.63 for the training text. So it is roughly
# honest. At temperature 0.5 its own text costs it 1.25: much more to its own taste, which is no sign of better
# text.

# %% [markdown]
# ## 2. Min-p


# %%
#| exercise 2
def min_p(probabilities, m):
    """What is left of probabilities (B, V): at least m times the likeliest one's."""
    #| hole
    enough = probabilities >= m * probabilities.amax(-1, keepdim=True)
    return (probabilities * enough) / (probabilities * enough).sum(-1, keepdim=True)


# %% tags=["nbval-check-output"]
both = torch.tensor([[0.1, 0.5, 0.05, 0.2, 0.15], [0.2, 0.2, 0.2, 0.2, 0.2]])
min_p(both, 0.4)

# %% [markdown]
# <!-- hints: min_p
# The likeliest of each row is `probabilities.amax(-1, keepdim=True)`. What is not enough becomes zero.
#
# What is left must sum to one again, row by row.
# -->
#
# Where the model hesitates between equals, as in the second row, min-p keeps all of them. Top-p with 0.75
# has to draw its line somewhere and drops one of the five, for no reason but the order.
