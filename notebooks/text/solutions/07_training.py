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
# # 07 · Training: solutions

# %%
import torch
import torch.nn.functional as F

from tinygpt_lib import load_shakespeare
from tinygpt_lib.gpt import GPT, GPTConfig
from tinygpt_lib.text import CharTokenizer, get_batch, split
from tinygpt_lib.training import AdamW

# %% [markdown]
# ## 1. The first step


# %%
#| exercise 1
def first_step(beta1, beta2):
    """Its length, in units of the learning rate, without the correction for the start."""
    #| hole
    return (1 - beta1) / (1 - beta2) ** 0.5


# %%
first_step(0.9, 0.99), first_step(0.9, 0.999)

# %% [markdown]
# <!-- hints: first_step
# Both averages start at zero. After the first slope g, how large is m, how large v? And the step is m / sqrt(v).
# -->
#
# After the first slope $g$, $m$ is $(1 - \beta_1) g$ and $v$ is $(1 - \beta_2) g^2$. With 0.9 and 0.99 the two errors
# happen to cancel on the first step. With 0.9 and 0.999 the first step would be more than three times too
# long, at the moment when the model knows least about where to go.

# %% [markdown]
# ## 2. Decay is no penalty


# %%
#| exercise 2
def penalized(weight, slope):
    """A number after one Adam step, rate 0.1, its loss with a penalty of decay 0.1."""
    #| hole
    p = torch.tensor([[weight]], requires_grad=True)
    optimizer = AdamW([p], 0.1, weight_decay=0.0)
    p.grad = torch.tensor([[slope + 0.1 * weight]])
    optimizer.step()
    return p.item()


# %%
for weight, slope in ((1.0, 3.0), (2.0, -0.5), (-1.0, 0.01)):
    p = torch.tensor([[weight]], requires_grad=True)
    reference = torch.optim.Adam([p], lr=0.1, betas=(0.9, 0.99), weight_decay=0.1)
    p.grad = torch.tensor([[slope]])
    reference.step()
    assert abs(penalized(weight, slope) - p.item()) < 1e-6

# %% [markdown]
# <!-- hints: penalized
# The penalty's own slope is decay · weight. It becomes part of the slope that Adam sees.
#
# `AdamW` with weight_decay=0 is Adam. Or do it on paper: how long is Adam's first step, whatever the slope?
# -->
#
# In the loss, the penalty becomes part of the slope, and Adam divides the slope by its own size. A weight
# with large slopes then hardly decays at all, and one with tiny slopes decays at full speed. AdamW shrinks
# all of them by the same share.

# %% [markdown]
# ## 3. Forgetful


# %%
#| exercise 3
def forgetful(model, optimizer, batches):
    """The losses of a loop that never clears its gradients."""
    #| hole: one step for each (inputs, targets) in `batches`, until they end
    losses = []
    for inputs, targets in batches:
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# %%
text = load_shakespeare()
tokenizer = CharTokenizer.from_text(text)
train_ids, _ = split(tokenizer.encode(text))
torch.manual_seed(0)
shape = GPTConfig(tokenizer.vocab_size, block_size=32, n_layer=2, n_embd=64)
model, generator = GPT(shape), torch.Generator().manual_seed(0)
batches = (get_batch(train_ids, 16, 32, generator) for _ in range(150))
losses = forgetful(model, AdamW(model.parameters(), 1e-2), batches)
assert sum(losses[-50:]) / 50 > 3  # a healthy run is at 2.4 by then
losses[0], sum(losses[-50:]) / 50

# %% [markdown]
# <!-- hints: forgetful
# Predict, measure, backward, step. The one line that is missing is the exercise.
#
# To try it, hand over batches that end. The chapter's `batches(train_ids)` never do, but
# `itertools.islice(batches(train_ids), 150)` are the first 150 of them.
# -->
#
# All gradients since the first step add up, so each step follows the average slope of the whole past. Adam
# divides by the size of that sum, so the steps don't explode; they just point in the wrong direction, and
# the run ends worse than it began.
