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
# # 06 · GPT
# > What is a GPT, whole?
#
# Where we are: all parts are on the table. Tokens become points (03), look back with several heads
# (04), and pass through blocks that stack (05); three blocks reached about 2.04 nats. What is
# missing is not a new idea but care: putting the parts together so that one small description,
# the *config*, says everything about a model; knowing how many numbers it will learn before
# building it; and drawing the first weights so that it starts from an honest *I don't know*.
#
# That last state has a known loss, $\ln 65 = 4.174$, and it is the number to meet in this chapter.
# To beat 2.04 takes better training too, and has to wait for the next one.

# %%
import json
import math
from pathlib import Path

from course import BLUE, GREEN, ORANGE, RED, plt, show
from tinygpt_lib import load_shakespeare
from tinygpt_lib.bigram import SGD, evaluate, training_step
from tinygpt_lib.text import CharTokenizer, get_batch, split

text = load_shakespeare()
tokenizer = CharTokenizer.from_text(text)
V = tokenizer.vocab_size
train_ids, val_ids = split(tokenizer.encode(text))

# %%
#| export
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tinygpt_lib.basics.checks import check_bool, check_float, check_int
from tinygpt_lib.blocks import Block, Dropout, LayerNorm

# %% [markdown]
# ## The whole on one page
# Ids of shape (B, T) come in at the top, logits of shape (B, T, V) leave at the bottom. In between
# runs the residual stream, (B, T, C) all the way; every part reads it at the side and adds to it. Everything between the two
# ends has one shape, and that is what allows any number of blocks.
#
# ![The whole GPT, from top to bottom: ids become embeddings, positions are added, one stream runs past N blocks that read it at the side and add to it, and at the end a norm and the head make logits of it.](drawings/gpt.svg)
#
# Before filling it in, let the shapes flow through the two ends alone, with nothing in between:

# %%
torch.manual_seed(0)
B, T, C = 2, 8, 16
token_embedding, position_embedding = nn.Embedding(V, C), nn.Embedding(T, C)
head = nn.Linear(C, V, bias=False)
ids = train_ids[: B * T].view(B, T)
x = token_embedding(ids) + position_embedding(torch.arange(T))
head(x).shape

# %% [markdown]
# A GPT without blocks: it knows the character and its place, and nothing of the past. In other
# words, a bigram model. Everything below the bigram's 2.48 nats has to come from the middle.

# %% [markdown]
# ## A config
# A model should be describable in one line, so that it can be built again, compared and
# saved. We use a dataclass, one field for each choice. Some fields name *kinds of parts*. Each
# name is looked up in a table; whoever wants to try another norm or another feed-forward adds an
# entry to a table and changes nothing else. (Chapter 10 does that.)

# %% [markdown]
# The embedding of tokens is a part like the others. Ours looks at the token alone; one that also
# looks at the tokens before it (chapter 12) says by `looks_back` how many it has to be told.


# %% [markdown]
# Positions get a table too. Ours is the one of chapter 03, a learnt vector for each place that is
# added to the token's. Unlike the other parts it can run out: there is no vector for a place beyond
# the last. (Other kinds of positions work inside the attention; `steps` are for them.)


# %% [markdown]
# Wrong settings are best refused before any work is done, in a sentence that names the setting and
# what is allowed. An `n_embd` that can't be divided among the heads, say, would otherwise show up
# as a complaint about shapes somewhere deep in a view. The `check_` functions do nothing but raise
# such a `ValueError`. (The fields from `position` on are for Part II, which finds other values for
# them. Until then they stay as they are.)


# %%
#| export
@dataclass
class GPTConfig:
    """All that describes a GPT; ValueError for a setting that makes no sense."""

    vocab_size: int  # how many different tokens
    block_size: int = 64  # longest context, in tokens
    n_layer: int = 4  # blocks
    n_head: int = 4  # attention heads in a block
    n_embd: int = 128  # width of the residual stream
    dropout: float = 0.0  # share of numbers zeroed in training
    bias: bool = True  # biases in linear layers and norms, as GPT-2 has them

    def __post_init__(self):
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            check_int(name, getattr(self, name), low=1)
        if self.n_embd % self.n_head:
            raise ValueError(
                f"n_embd {self.n_embd} can't be split into n_head {self.n_head} equal "
                "heads; n_embd must be a multiple of n_head"
            )
        below_one = "at least 0 and below 1"
        check_float("dropout", self.dropout, below_one, lambda p: 0 <= p < 1)
        check_bool("bias", self.bias)


# %% tags=["nbval-check-output"]
for wrong in (
    {"n_embd": 100, "n_head": 3},
    {"n_layer": 0},
    {"dropout": 1.0},
    {"norm": "nrom"},
):
    try:
        GPTConfig(vocab_size=65, **wrong)
    except ValueError as error:
        print(error)

# %% [markdown]
# The table of places, tried out: three tokens that come after five others take the vectors 5, 6
# and 7.

# %%
positions = LearnedPositions(GPTConfig(V, block_size=8, n_embd=C))
nothing = torch.zeros(1, 3, C)
assert torch.equal(positions(nothing, start=5)[0], positions.weight[5:8])

# %% [markdown]
# ## The model
# Now the drawing from above, line by line. `cache` is again the optional memory for chapter 08; if
# there is one, the new tokens take their places after those it already holds, and it says which
# were the last. What the config leaves at its default (`window`, `tie_weights`, `zero_outputs`) can
# be read over: it is for Part II.


# %%
#| export
@torch.no_grad()
def draw_weights(model: "GPT") -> None:
    """A stream that keeps its scale from the start, and a head with no opinion."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for block in model.blocks:  # all 2L additions together as loud as one
        for part in (block.attention, block.feed_forward):
            part.output.weight.mul_((2 * len(model.blocks)) ** -0.5)
    nn.init.normal_(model.head.weight, std=0.2 * model.head.in_features**-0.5)


# %%
#| export
class GPT(nn.Module):
    """Predicts every next token from all before it: embeddings, blocks, norm, head.

    ids (B, T) int64 with T <= block_size -> logits (B, T, vocab_size). Radford et al.,
    2019.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        c = self.config = config
        self.token_embedding = nn.Embedding(c.vocab_size, c.n_embd)
        self.position_embedding = nn.Embedding(c.block_size, c.n_embd)
        self.dropout = Dropout(c.dropout)
        self.blocks = nn.ModuleList(
            Block(c.n_embd, c.n_head, c.dropout, c.bias) for _ in range(c.n_layer)
        )
        self.norm = LayerNorm(c.n_embd, c.bias)
        self.head = nn.Linear(c.n_embd, c.vocab_size, bias=False)
        draw_weights(self)

    def places(self, start: int, end: int) -> Tensor:
        """The vectors of places start..end - 1: (end - start, C)."""
        if end > self.config.block_size:
            raise ValueError(
                f"{end} tokens are more than block_size {self.config.block_size}; "
                "give the model at most the last block_size tokens"
            )
        return self.position_embedding.weight[start:end]

    def embed(self, ids: Tensor, start: int = 0) -> Tensor:
        """What each token is plus where it stands: ids (B, T) -> (B, T - start, C)."""
        return self.token_embedding(ids[:, start:]) + self.places(start, ids.shape[1])

    def read_out(self, x: Tensor) -> Tensor:
        """What the stream says of the next token: (B, T, C) -> (B, T, vocab_size)."""
        return self.head(self.norm(x))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.dropout(self.embed(ids))  # (B, T, C)
        for block in self.blocks:
            x = block(x)
        return self.read_out(x)  # (B, T, V)

    def n_parameters(self) -> int:
        """How many numbers the model learns."""
        return sum(p.numel() for p in self.parameters())


# %% [markdown]
# Every part of it has been checked against torch's in its own chapter. What could still be wrong is
# how they are put together, so the tests of this course copy random weights into Hugging Face's
# GPT-2 and demand the same logits. Here, the shapes and the arrow of time:

# %%
torch.manual_seed(0)
model = GPT(GPTConfig(vocab_size=V))
ids, targets = get_batch(train_ids, 4, 64, torch.Generator().manual_seed(0))
logits = model(ids)
changed = ids.clone()
changed[:, 40:] = 0
assert torch.equal(model(changed)[:, :40], logits[:, :40])
assert not torch.equal(model(changed)[:, 40:], logits[:, 40:])
logits.shape

# %% [markdown]
# And the two ways to attend, the one of chapter 03 and the fused one, through the whole model:

# %%
explicit = GPT(GPTConfig(vocab_size=V, attention="explicit"))
explicit.load_state_dict(model.state_dict())
assert torch.allclose(explicit(ids), logits, atol=1e-6)

# %% [markdown]
# ## Counting parameters
# How many numbers does it learn? First by thinking. A block holds, for width $C$: queries, keys and
# values $3C^2 + 3C$; the attention's output $C^2 + C$; the feed-forward $4C^2 + 4C$ to widen and
# $4C^2 + C$ to narrow; two norms of $2C$ each. Together $12C^2 + 13C$. Outside the blocks:
# $VC$ for the tokens, $TC$ for the places, $2C$ for the last norm, $VC$ for the head.


# %% tags=["nbval-check-output"]
def count(c: GPTConfig):
    """Parameters by the formula, (in the blocks, outside them); biases included."""
    C = c.n_embd
    blocks = c.n_layer * (12 * C**2 + 13 * C)
    return blocks, (2 * c.vocab_size + c.block_size + 2) * C


blocks, outside = count(model.config)
assert blocks + outside == model.n_parameters()
f"{blocks:,} in the blocks + {outside:,} outside = {model.n_parameters():,}"

# %% [markdown]
# 0.8 million. Now trust the formula on something that we can't build here, GPT-2 itself: 12 layers,
# width 768, 50,257 tokens, 1,024 places. GPT-2 uses one matrix for both embedding and head, so we
# take one off:

# %% tags=["nbval-check-output"]
gpt2 = GPTConfig(vocab_size=50257, block_size=1024, n_layer=12, n_head=12, n_embd=768)
total = sum(count(gpt2)) - gpt2.vocab_size * gpt2.n_embd
f"{total:,}"

# %% [markdown]
# 124 million, the figure that is printed on the box. Where do the parameters sit? In our model 97 %
# are in the blocks. In GPT-2 31 % are the table of tokens, and in a narrower model that keeps its
# vocabulary it is far more:

# %%
widths = [32, 64, 128, 256, 512]
fig, axes = plt.subplots(1, 2, figsize=(8.5, 3), sharey=True)
for ax, vocabulary in zip(axes, (65, 50257), strict=True):
    shares = []
    for C in widths:
        inside, out = count(GPTConfig(vocabulary, n_embd=C))
        shares.append(100 * inside / (inside + out))
    ax.bar(range(5), shares, color=BLUE, label="blocks")
    ax.bar(
        range(5),
        [100 - s for s in shares],
        bottom=shares,
        color=ORANGE,
        label="the rest",
    )
    ax.set_xticks(range(5), widths)
    ax.set(xlabel="n_embd", title=f"{vocabulary:,} tokens, 4 layers")
axes[0].set_ylabel("share of parameters (%)")
axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
show(
    fig,
    alt="Stacked bars: with 65 tokens the blocks hold 89 to 99 % of the parameters; "
    "with 50,257 tokens embeddings and head hold 80 to 98 % of them.",
)

# %% [markdown]
# *"The rest" is embeddings, last norm and head, with a matrix of its own for each end. A large
# vocabulary makes a small model mostly a dictionary. It is one reason to begin with characters.*

# %% [markdown]
# ## An honest start
# Before training the model knows nothing, so its best guess is 1/65 for everything, and its loss
# $\ln 65$. Anything above says that it begins with opinions, all of them unfounded. (What those cost
# in training, the end of the chapter measures.) How do the weights have to be drawn?
#
# `_draw_weights` above follows the stream, as chapter 05 did. The two embeddings have variance 1
# each, so the stream starts at scale $\sqrt 2$. A matrix with `in_features` inputs sums that many
# terms; drawn with variance 1/`in_features`, it hands on numbers of the same scale that it got. The
# last matrix of each part is made quieter by $1/\sqrt{2L}$, so that the stream nearly keeps its
# scale. And the head is drawn small, because what it says before training is noise.
#
# Torch's layers, left to themselves, draw a little differently: matrices from a uniform
# distribution with variance 1/(3 · `in_features`), biases too, no part quieter than another, and
# the head like any other. The same model both ways:


# %%
def with_torchs_weights(config):
    """The same model with the weights that torch's layers draw for themselves."""
    model = GPT(config)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.reset_parameters()
    return model


def first_loss(model):
    return evaluate(model, val_ids[:20_001])


torch.manual_seed(1)
models = {"ours": GPT(GPTConfig(V)), "torch's": with_torchs_weights(GPTConfig(V))}
first = {name: first_loss(model) for name, model in models.items()}
print(f"ln 65 {math.log(V):.3f}", *(f"  {n} {loss:.3f}" for n, loss in first.items()))

# %% [markdown]
# After the last norm each of the $C$ numbers of a token has variance 1. A logit is a sum of $C$ of
# them, each multiplied by a weight of variance $s^2$, so it has variance $C s^2$. For torch's head
# $s^2 = 1/(3C)$, which gives logits of variance 1/3; for ours $s = 0.2/\sqrt C$, which gives 0.04,
# whatever the width. And a softmax over logits with a small variance costs about half that variance
# more than $\ln 65$: 0.17 and 0.02. Measured:

# %%
excess = {}
for name, m in models.items():
    variance = m(ids).var().item()
    excess[name] = first[name] - math.log(V)
    print(
        f"{name:7} variance {variance:.3f}  predicted +{variance / 2:.3f}  measured {excess[name]:+.3f}"
    )
assert abs(excess["ours"]) < 0.05 < excess["torch's"]

# %% [markdown]
# The prediction is an average over all ways to draw the head; what this one happens to think of a
# few very common characters moves the result by a hundredth or two.
#
# Torch's 0.16 nats look harmless. It would be much worse with one shared matrix for embedding and
# head, as GPT-2 has it (and therefore draws it small, with a standard deviation of 0.02). Drawn
# with variance 1, it gives logits of variance $C$ or more:

# %%
shared = with_torchs_weights(GPTConfig(V))
shared.head.weight = shared.token_embedding.weight
worst = first_loss(shared)
assert worst > 20
print(f"one matrix of variance 1 for both ends: first loss {worst:.1f} nats")

# %%
fig, ax = plt.subplots(figsize=(6.5, 3))
for m, name, color in (
    (shared, "shared matrix, variance 1", RED),
    (models["torch's"], "torch's", ORANGE),
    (models["ours"], "ours", BLUE),
):
    p = m(ids).detach().softmax(-1).flatten().log10()
    ax.hist(
        p.clamp(min=-12),
        bins=120,
        range=(-12, 0),
        density=True,
        alpha=0.7,
        color=color,
        label=name,
    )
ax.axvline(-math.log10(V), color="k", ls="--", label="1/65")
ax.set(
    xlabel="log10 of a predicted probability, before training",
    ylabel="density",
    ylim=(0, 6),
)
ax.legend()
show(
    fig,
    alt="Histogram of predicted probabilities: ours is a narrow peak at one 65th, torch's a "
    "wider one; with the shared matrix nearly all are 1e-12 or less, and a few are 1.",
)

# %% [markdown]
# *What the untrained model believes. Ours gives every character about the same chance. With a
# shared matrix drawn too large it is certain of things it can't know: it gives nearly all
# characters no chance at all (the tall bar collects everything from $10^{-12}$ down) and expects
# with certainty the one that it just read (the small bar at $10^0 = 1$).*

# %% [markdown]
# ## Does it learn?
# Short runs with the optimizer that we have, for our weights and for torch's, each at three
# learning rates: what suits one need not suit the other. `benchmarks/part_one.py` has made all six
# with this loop.

# %%
steps = 140


def learn(model, seed, rate):
    """Trains on random windows with a learning rate that falls to zero; the losses."""
    optimizer = SGD(model.parameters(), learning_rate=rate, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for step in range(steps):
        optimizer.learning_rate = rate * (1 - step / steps)
        batch = get_batch(train_ids, 12, model.config.block_size, generator)
        losses.append(training_step(model, optimizer, *batch))
    return losses


# %%
results = json.loads(Path("../benchmarks/part_one.json").read_text())["weights"]
curves, finals = {}, {}
for run in results:
    name, loss = run["weights"], run["loss"] or math.nan
    print(f"{name:7} rate {run['rate']:<5} {loss:.3f}")
    if loss < finals.get(name, math.inf):  # never true of nan
        curves[name], finals[name] = run["curve"], loss
assert max(finals.values()) < 3.0  # 3.3 is what knowing the frequencies alone is worth

# %% [markdown]
# One of them again, our weights at the middle rate:

# %%
torch.manual_seed(0)
model = GPT(GPTConfig(V))
learn(model, 0, rate=0.1)
again, in_file = evaluate(model, val_ids), results[1]["loss"]
assert abs(again - in_file) < 0.1  # processors round differently, and steps add to it
again, in_file

# %%
fig, ax = plt.subplots(figsize=(6.5, 3.2))
for (name, curve), color in zip(curves.items(), [BLUE, ORANGE], strict=True):
    label = f"{name}: {finals[name]:.2f}"
    ax.plot(range(5, steps, 10), curve, color=color, label=label)
ax.axhline(math.log(V), color=GREEN, ls="--", lw=1, label="ln 65")
ax.set(xlabel="step", ylabel="training loss (nats)")
ax.legend(title="validation loss")
show(
    fig,
    alt="Training loss of the GPT over the first steps, from about ln 65 down, for both "
    "ways to draw the weights, each at the best of three learning rates.",
)

# %% [markdown]
# *Each point is a mean of ten steps, so the start near ln 65 is already out of sight. The first
# fall, to about 3.3 nats, is only how common each character is, which needs no past at all. What
# comes after it is slower: to use the character at hand, and then those before it.*
#
# So a quiet start is no faster one here. The 0.15 nats that it saves at step 0 are made up within
# some dozens of steps, torch's weights end a little lower (one run each: less than we would trust),
# and at the largest rate ours fail where torch's don't. What the careful weights give is a start
# without surprises: they know nothing and say so. And plain gradient
# descent is not a good judge of weights: one learning rate has to suit embeddings, matrices and
# norms alike. Chapter 07 gives each number a step of its own size.

# %% [markdown]
# ## Summary
# A GPT is embeddings, blocks and a head, with one stream of width $C$ from end to end. A config
# of a few fields describes it, and $12C^2 + 13C$ for each block counts it: 0.8 million parameters for
# ours, 124 million for GPT-2. Drawn with care, its weights keep the stream at one scale, and a quiet
# head lets it start at ln 65, with no opinion. Some hundred steps of plain gradient descent bring
# it to about what a bigram knows, far from what the longer run of chapter 05 reached. What it can
# reach depends now on how it is trained, and that is the next chapter.

# %% [markdown]
# ## Exercises
# **1.** Of the parameters in a block, what share is in the feed-forward part? Take `C` to be large.
# ```python
# assert abs(share - measured_share) < 0.01
# ```
# **2.** Choose `n_embd` so that a model of 6 layers with 65 tokens, 256 places and 6 heads has about
# 10 million parameters, using the formula only.
# ```python
# big = GPT(GPTConfig(65, block_size=256, n_layer=6, n_head=6, n_embd=your_choice))
# assert 10e6 < big.n_parameters() < 11e6
# ```
# **3.** A floating-point operation (FLOP) is one multiplication or addition. Each weight of a matrix
# is used once for each token, in one multiplication and one addition. Estimate the FLOPs of a
# forward pass for one token, attention scores left out, and then the tokens per second that a
# machine of 100 GFLOP/s could at best train, if the backward pass costs twice the forward.
# ```python
# assert 15_000 < tokens_per_second < 25_000
# ```

# %% [markdown]
# ## Solutions

# %% jupyter={"source_hidden": true}
share = 8 / 12
block = GPT(GPTConfig(V, n_embd=512, n_layer=1)).blocks[0]
measured_share = sum(p.numel() for p in block.feed_forward.parameters()) / sum(
    p.numel() for p in block.parameters()
)
assert abs(share - measured_share) < 0.01
measured_share

# %% jupyter={"source_hidden": true}
# 6 · 12 · C² = 10 million gives C = 373; the next multiple of 6 that is round is 384.
your_choice = 384
big = GPT(GPTConfig(65, block_size=256, n_layer=6, n_head=6, n_embd=your_choice))
assert 10e6 < big.n_parameters() < 11e6
f"{big.n_parameters():,}"

# %% jupyter={"source_hidden": true}
config = GPTConfig(V)
matrix_weights = config.n_layer * 12 * config.n_embd**2 + V * config.n_embd
forward = 2 * matrix_weights
tokens_per_second = 100e9 / (3 * forward)
assert 15_000 < tokens_per_second < 25_000
f"{tokens_per_second:,.0f}"
