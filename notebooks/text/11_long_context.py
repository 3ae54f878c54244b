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
# # 11 · Long context
# > How far back can it look, what does that cost, and is it worth it?
#
# Where we are: a GPT with modern parts, whose window holds 64 characters, about two lines of a
# play. Whoever spoke before that is forgotten. A longer window is one number in the config. But
# every token looks at every token before it, so the work grows with the square of the length, and
# a model that was trained on short windows has never seen a place beyond them.
#
# Four questions, each answered by measuring: how much of its window does a model use? What does a
# longer one cost in time and memory? What happens beyond the length it was trained on? And, for
# the same training time, is a long window worth it? The number to beat is that of a window of 64,
# trained for 160 seconds and evaluated side by side: 2.23 bits per byte.

# %%
import inspect
import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np

from course import BLUE, GREEN, ORANGE, RED, SKY, plt, show
from course.models import trained
from tinygpt_lib import load_shakespeare
from tinygpt_lib.bigram import evaluate
from tinygpt_lib import generate
from tinygpt_lib.modern_parts import angles
from tinygpt_lib.runs.models import new_model
from tinygpt_lib.runs.presets import PRESETS
from tinygpt_lib.runs.run import train
from tinygpt_lib.runs.settings import TrainConfig
from tinygpt_lib.speed import FastConfig
from tinygpt_lib.text import CharTokenizer, split

text = load_shakespeare()
tokenizer = CharTokenizer.from_text(text)
V = tokenizer.vocab_size
train_ids, val_ids = split(tokenizer.encode(text))

# %%
#| export
import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tinygpt_lib.basics.checks import check_choice, check_int
from tinygpt_lib.basics.devices import device_of
from tinygpt_lib.basics.evaluation import evaluating, most_tokens
from tinygpt_lib.generation import KVCache
from tinygpt_lib.gpt import GPT
from tinygpt_lib.modern_parts import ModernAttention, ModernConfig, ModernGPT, Rotary
from tinygpt_lib.multi_head import fused_attention
from tinygpt_lib.single_head import attention

# %% [markdown]
# ## How much of the window is used
# The loss that `evaluate` reports is a mean over all places of a window. The first of these
# predicts with one character in sight, the last with all of them. If a model makes use of far
# characters, the late places must be cheaper than the middle ones. So take the mean apart.
#
# Two small models for this chapter, with windows of 64. They differ in one thing: how they know
# places. One has a learnt vector for each (chapter 03), the other turns queries and keys (chapter
# 10). (`trained` trains them where it doesn't find them in the folder `runs`, from an earlier time.)

# %%
BLOCK = 64
small = FastConfig(V, block_size=BLOCK, n_layer=3, n_head=4, n_embd=96)
settings = TrainConfig(steps=300, batch_size=12, learning_rate=5e-3, eval_every=0)
models = {}
for position in ("learned", "rotary"):
    model_config = replace(small, position=position)
    given = model_config, settings, train_ids, val_ids, tokenizer
    models[position], _ = trained(f"11-{position}", *given)
whole = {position: evaluate(model, val_ids) for position, model in models.items()}
assert max(whole.values()) < 2.4  # the bigram's 2.48; seeds differ by about 0.02
{position: round(loss, 3) for position, loss in whole.items()}

# %% [markdown]
# One window by hand: what did each of its 64 characters cost, given those before it?

# %%
window = val_ids[: BLOCK + 1]
with torch.no_grad():
    log_p = models["rotary"](window[None, :-1])[0].log_softmax(-1)  # (T, V)
one = -log_p[torch.arange(BLOCK), window[1:]]
one[:6]

# %% [markdown]
# That is mostly about these characters and hardly about their places. Only many windows say
# something about a place, so put the first 500 windows of the validation text below each other, one row
# each, and take the mean of each column. The mean over the columns is then what `evaluate` says of them.

# %%
rows = []
for start in range(0, 500 * BLOCK, BLOCK):
    window = val_ids[start : start + BLOCK + 1]
    with torch.no_grad():
        log_p = models["rotary"](window[None, :-1])[0].log_softmax(-1)
    rows.append(-log_p[torch.arange(BLOCK), window[1:]])
looped = torch.stack(rows)  # (windows, T)
covered = val_ids[: len(rows) * BLOCK + 1]
assert torch.equal(looped[0], one)
assert abs(looped.mean().item() - evaluate(models["rotary"], covered)) < 1e-4
looped.shape

# %% [markdown]
# A mean over 500 windows is still uncertain: the characters themselves vary. The standard
# deviation of a column, divided by the square root of the number of rows, says by how much (the
# *standard error*). The function that we export gives both, runs many windows at once, and lets
# windows overlap: `stride` is the distance from one window's start to the next. With more windows
# every place is measured on more characters.


# %%
#| export
@torch.no_grad()
def loss_by_position(
    model: GPT,
    ids: Tensor,
    length: int | None = None,
    stride: int | None = None,
    tokens_at_once: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Nats at each place of a window: mean and standard error, each (length,).

    Windows of `length` tokens (default: the model's block_size) begin every `stride`
    tokens of ids (N,), by default side by side; an end too short for a whole window is
    left out. The error is that of the mean over windows. ValueError if fewer than two
    windows fit.
    """
    length = model.config.block_size if length is None else length
    check_int("length", length, low=1)
    stride = length if stride is None else stride
    check_int("stride", stride, low=1)
    if len(ids) < length + 1 + stride:
        raise ValueError(
            f"ids hold {len(ids)} tokens; two windows of length {length}, {stride} "
            f"apart, need at least {length + 1 + stride}"
        )
    windows = ids.to(device_of(model)).unfold(0, length + 1, stride)
    at_once = max(1, (tokens_at_once or most_tokens(model)) // length)
    losses = []
    with evaluating(model):
        for rows in windows.split(at_once):
            logits = model(rows[:, :-1]).transpose(1, 2).float()
            losses.append(F.cross_entropy(logits, rows[:, 1:], reduction="none"))
    losses = torch.cat(losses)  # (windows, length)
    return losses.mean(dim=0), losses.std(dim=0) / len(losses) ** 0.5


# %%
by_place, error = loss_by_position(models["rotary"], covered)
assert torch.allclose(by_place, looped.mean(0), atol=1e-4)
curves = {p: loss_by_position(m, val_ids, stride=32) for p, m in models.items()}
{
    p: [round(x, 2) for x in mean[[0, 1, 3, 15, 63]].tolist()]
    for p, (mean, _) in curves.items()
}

# %%
fig, ax = plt.subplots(figsize=(6, 2.8))
edges = [*range(8), *range(8, BLOCK + 1, 8)]  # place by place, then eight together
for (position, (mean, error)), color in zip(
    curves.items(), [ORANGE, BLUE], strict=True
):
    parts = [slice(a, b) for a, b in pairwise(edges)]
    x = [(part.start + 1 + part.stop) / 2 for part in parts]
    y = [mean[part].mean() for part in parts]
    spread = [2 * (error[p] ** 2).sum().sqrt() / len(error[p]) for p in parts]
    ax.errorbar(x, y, spread, fmt=".-", lw=1, color=color, label=position)
ax.set_xscale("log", base=2)
ax.set_xticks([1, 2, 4, 8, 16, 32, 64], [1, 2, 4, 8, 16, 32, 64])
ax.set(xlabel="characters in sight", ylabel="loss (nats)")
ax.legend(title="positions")
show(
    fig,
    alt="Loss against the number of characters in sight, for learned and rotary positions: "
    "a steep fall over the first eight characters, then nearly level; from three on rotary lies well below.",
)

# %% [markdown]
# *Mean over windows of the validation text, with bars of two standard errors to each side. The
# first few characters bring nearly everything. With learned positions the curve is level after two or
# three characters, with rotary ones after seven or eight: in 300 steps the first model has hardly
# learnt to look back.*
#
# So these models, trained for a short time, gain little from what lies more than eight characters
# back, though they may look at eight times as many. It is a warning for the rest of the chapter: a
# window is what a model *may* look at. To use it has to be learnt, and what far characters can
# tell (who is speaking, which scene this is) is worth little beside what the last word tells. The
# same for the rotary model, as means over a few ranges of places:

# %%
mean, error = curves["rotary"]
steps_down = {
    f"{a}-{b}": mean[a:b].mean().item()
    for a, b in ((0, 8), (8, 16), (16, 32), (32, 64))
}
assert steps_down["0-8"] > steps_down["32-64"] + 0.1  # many standard errors
{name: round(loss, 3) for name, loss in steps_down.items()}

# %% [markdown]
# ## How one measures is a part of the result
# Windows side by side treat a model with a short window badly: at each window's start it has to
# predict with next to nothing in sight. The same model, evaluated in windows of 8, 16 and 32, beside
# what it had above with 64. And the mean of as many first places of the curve, which must give the same.

# %%
side_by_side = {n: evaluate(models["rotary"], val_ids, n) for n in (8, 16, 32)}
side_by_side[BLOCK] = whole["rotary"]
for length, loss in side_by_side.items():
    predicted = mean[:length].mean().item()
    spread = error[:length].norm().item() / length  # other windows of the same text
    print(f"windows of {length:2}   {loss:.3f}   from the curve {predicted:.3f}")
    assert abs(loss - predicted) < 4 * spread

# %% [markdown]
# Nothing about the model has changed from line to line, and yet the loss falls. A longer window
# seems better even for a model that uses only the last few characters, because it has fewer
# beginnings. The fair question to a long window is therefore what the *late* places cost. We can
# ask it by windows that overlap by half, counting only the second half of each: then every
# character is predicted once, with at least half a window in sight. At the end of this chapter
# both numbers are given.

# %% [markdown]
# ## What it costs
# First estimate. Attention as chapter 03 wrote it makes a table of $T \times T$ weights for every
# head, and keeps it until the gradient has been computed. For one window of 2,048 characters, 4
# heads and 3 layers, at 4 bytes a number:

# %% tags=["nbval-check-output"]
T, n_head, n_layer = 2048, 4, 3
tables = n_layer * n_head * T * T * 4 / 1e6
f"{tables:.0f} MB"

# %% [markdown]
# Then there is what a single layer needs for a moment: scores before and after scaling, and the
# slopes of both. Fused attention (chapter 04) keeps none of these tables.
#
# To *measure* the most memory that a program ever had, ask the system. It counts for the whole
# process and never goes down, so each measurement needs a fresh process. (There is a trap in it.
# On Linux, the usual number, `ru_maxrss`, of a new process begins with that of the process that
# started it, this notebook for one. `VmHWM` does not.) The script
# [benchmarks/long_context.py](../benchmarks/long_context.py) starts such processes: forward and
# backward through the whole model, one window, with one of three attentions. The third, *sliding*,
# is built below. Here are the first two at 2,048, live:


# %%
def measure(attention, context):
    """Peak megabytes over the model alone, in a new process; see the script."""
    script = Path("../benchmarks/long_context.py")
    command = [sys.executable, script, "point", attention, str(context), "1"]
    at_once = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # freed memory is given back
    return json.loads(subprocess.check_output(command, env=os.environ | at_once))["MB"]


live = {name: measure(name, T) for name in ("explicit", "fused")}
assert live["explicit"] > tables > live["fused"]
live

# %% [markdown]
# The explicit one needs all its tables and some more at a time; the fused one less than the tables
# alone. For the figure, the same was run for windows from 64 to 4,096, three processes for each
# time and two for each peak, taking turns on a quiet machine. The straight lines are fits to the
# points from 512 up. (Below that the fixed price of each call hides the growth.) On logarithmic
# axes a power law $T^a$ is a line with slope $a$: twice the length costs $2^a$ times as much.

# %%
bench = json.loads(Path("../benchmarks/long_context.json").read_text())
slopes = {}
for what in ("ms", "MB"):
    for name in ("explicit", "fused", "sliding"):
        points = [p for p in bench[f"cost_{what}"] if p["attention"] == name]
        xy = np.log2(
            [(p["context"], p["median"]) for p in points if p["context"] >= 512]
        )
        slopes[what, name] = np.polyfit(*xy.T, 1)
{" ".join(key): round(fit[0].item(), 2) for key, fit in slopes.items()}

# %%
fig, axes = plt.subplots(1, 2, figsize=(8, 3))
colors = {"explicit": RED, "fused": BLUE, "sliding": GREEN}
for ax, what, label in zip(
    axes, ("ms", "MB"), ("time (ms)", "peak memory (MB)"), strict=True
):
    for name, marker in zip(colors, "os^", strict=True):
        points = [p for p in bench[f"cost_{what}"] if p["attention"] == name]
        x, y = zip(*((p["context"], p["median"]) for p in points), strict=True)
        slope, offset = slopes[what, name]
        line = np.array([512, 4096])
        ax.loglog(
            x, y, marker, ms=5, color=colors[name], label=f"{name}: slope {slope:.2f}"
        )
        ax.loglog(line, 2**offset * line**slope, color=colors[name], lw=1)
    ax.set_xticks(x, x, rotation=45)
    ax.minorticks_off()
    ax.set(xlabel="context (characters)", ylabel=label, title="forward + backward")
    ax.legend()
show(
    fig,
    alt="Time and peak memory against window length from 64 to 4,096 on logarithmic axes: "
    "explicit attention rises with slopes near two, fused memory and both of sliding with "
    "slopes near one, fused time in between.",
)

# %% [markdown]
# *The whole model of 0.8 million parameters, two cores; sliding means here that each token sees
# 128. Explicit attention tends to the square of the length in time and memory. In memory the slope is still
# below two, since the rest of the model counts. In time it may come out above two: from 1,024 to
# 2,048 the price jumps by more than the four times that were expected. (At that size the scores of
# one layer take 67 MB, and no longer fit into the processor's fast memory. That this is the reason
# was not measured.) Fused attention has turned memory into a straight proportion. In time it still
# has all the pairs to go through, but does it so fast that up to about 1,024 characters the rest of
# the model, which grows in proportion, takes most of it. Sliding attention is proportional in both;
# it takes a little more memory than fused attention, since its blocks overlap, and saves time.*

# %%
assert slopes["ms", "explicit"][0] > 1.7 and slopes["MB", "explicit"][0] > 1.5
assert slopes["MB", "fused"][0] < 1.1 and slopes["MB", "sliding"][0] < 1.1
assert slopes["ms", "sliding"][0] < 1.1 < slopes["ms", "fused"][0]

# %% [markdown]
# ## A window that slides
# If a model hardly uses what lies far back, why look there? Let each token see itself and a fixed
# number of tokens before it, $w$ together. This is *sliding-window attention* (in Sparse
# Transformers, Child et al., 2019; in Longformer, Beltagy et al., 2020; in Mistral, Jiang et al.,
# 2023). Six tokens, a window of three, one query after the other:

# %%
torch.manual_seed(0)
w = 3
q, k, v = torch.randn(3, 1, 1, 6, 4)  # three of (B, H, T, D)
seen = [slice(max(0, t - w + 1), t + 1) for t in range(6)]
looped = torch.cat(
    [attention(q[:, :, [t]], k[:, :, s], v[:, :, s]) for t, s in enumerate(seen)], dim=2
)
looped.shape

# %% [markdown]
# The same with a mask. Beside the future, it now forbids the far past, and what is left is a band:

# %% tags=["nbval-check-output"]
allowed = torch.ones(6, 6, dtype=torch.bool).tril().triu(1 - w)
scores = (q @ k.transpose(-2, -1) / 2).masked_fill(~allowed, float("-inf"))
banded = scores.softmax(-1) @ v
assert torch.allclose(banded, looped, atol=1e-6)
allowed.int()

# %% [markdown]
# Right, but nothing is saved: the table is as large as before, most of it computed and thrown
# away. To save something, cut the tokens into blocks of $w$. A query can see nothing but its own
# block and the one before it. So each block of $w$ queries needs a table of $w \times 2w$, and $T
# / w$ such tables together have $2wT$ entries: proportional to $T$. The second block by hand,
# queries 3 to 5:

# %% tags=["nbval-check-output"]
distance = torch.arange(w, 2 * w)[:, None] - torch.arange(2 * w)  # (w, 2w)
inside = (distance >= 0) & (distance < w)
scores = (q[:, :, 3:] @ k.transpose(-2, -1) / 2).masked_fill(~inside, float("-inf"))
assert torch.allclose(scores.softmax(-1) @ v, looped[:, :, 3:], atol=1e-6)
inside.int()

# %% [markdown]
# Every block after it has the same mask, so all of them can go through one fused call as if they
# were so many heads. Twelve tokens and a window of three, seen from above:

# %%
t = np.arange(12)
back = t[:, None] - t
band = (back >= 0) & (back < w)
computed = (t[:, None] // w - t // w >= 0) & (t[:, None] // w - t // w <= 1)
fig, ax = plt.subplots(figsize=(4.2, 3.6))
image = ax.imshow(computed.astype(int) + band, cmap="Blues", vmax=3)
for edge in np.arange(w, 12, w) - 0.5:
    ax.axhline(edge, color="k", lw=0.6)
    ax.axvline(edge, color="k", lw=0.6)
ax.set(xlabel="looked at", ylabel="who looks", xticks=t, yticks=t)
ax.grid(False)
show(
    fig,
    alt="A 12 by 12 grid cut into blocks of three. A dark band lies along the diagonal; the "
    "blocks on the diagonal and those left of them are light; the others are white.",
)

# %% [markdown]
# *Dark: what counts. Light: what is computed beside it and masked. White: what is never computed.
# The longer the text, the more is white.*
#
# The function that we export needs two fused calls: one for the first queries, which have less
# than a window behind them, and one for all blocks after that. (`unfold` gives a view of
# overlapping pieces, here of $2w$ keys, one every $w$.) Like `attention` it allows fewer queries
# than keys, for generation.


# %%
#| export
def sliding_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Attention in which each query sees its own token and the window - 1 before it.

    q (B, H, Tq, D), k and v (B, H, Tk, D) with Tq <= Tk, the queries being those of the
    last Tq tokens -> (B, H, Tq, D). Time and memory grow with Tq · window. ValueError
    for a window below 1. Child et al., 2019; Beltagy et al., 2020.
    """
    check_int("window", window, low=1)
    B, H, Tq, _ = q.shape
    if Tq > k.shape[-2]:
        raise ValueError(
            f"{Tq} queries for {k.shape[-2]} keys: every query needs its own key"
        )
    # 1. What lies before the first query's window is seen by nobody.
    k, v = (x[:, :, -(Tq + window - 1) :] for x in (k, v))
    # 2. The first queries see every key before them: those are fewer than a window.
    before = k.shape[-2] - Tq
    first = min(Tq, window - before)
    k_first, v_first = (x[:, :, : before + first] for x in (k, v))
    y = fused_attention(q[:, :, :first], k_first, v_first)
    rest = Tq - first
    if rest == 0:
        return y
    # 3. The others, in blocks of `window`: what a block may see lies in it and in the
    #    block before. The last block is filled up; the real queries don't see that far.
    missing = -rest % window

    def fold(x: Tensor, size: int) -> Tensor:
        """(B, H, T, D) -> (B, H · blocks, size, D), a block every `window` tokens."""
        blocks = F.pad(x, (0, 0, 0, missing)).unfold(2, size, window)
        return blocks.transpose(-1, -2).flatten(1, 2)

    mine = torch.arange(window, 2 * window, device=q.device)[:, None]
    distance = mine - torch.arange(2 * window, device=q.device)  # (window, 2 · window)
    y_rest = F.scaled_dot_product_attention(
        fold(q[:, :, first:], window),
        fold(k, 2 * window),
        fold(v, 2 * window),
        attn_mask=(distance >= 0) & (distance < window),
    )
    y_rest = y_rest.view(B, H, rest + missing, -1)
    return torch.cat([y, y_rest[:, :, :rest]], dim=2)


# %% [markdown]
# A name makes it known to every config, which then also has to say how wide the window is.

# %%
#| export
ATTENTIONS = {"explicit": attention, "fused": fused_attention}


@dataclass
class LongConfig(ModernConfig):
    """A ModernConfig that also says how far attention looks back."""

    attention: str = "fused"  # a name in ATTENTIONS, or "sliding"
    window: int = 0  # tokens that sliding attention looks back on

    def __post_init__(self):
        super().__post_init__()
        check_choice("attention", self.attention, (*ATTENTIONS, "sliding"))
        check_int("window", self.window, low=0, high=self.block_size)
        if (self.attention == "sliding") != (self.window > 0):
            needs = "at least 1" if self.window == 0 else "0: it looks at every token"
            raise ValueError(
                f"window is {self.window}; attention {self.attention!r} needs {needs}"
            )


class LongAttention(ModernAttention):
    """Attention over all of the past or a window of it: x (B, T, C) -> (B, T, C)."""

    def __init__(self, config: LongConfig, turns: Rotary | None):
        super().__init__(config, turns)
        self.kind, self.window = config.attention, config.window

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = self.meet(q, k, v)
        if self.kind == "sliding":
            return sliding_attention(q, k, v, self.window)
        return ATTENTIONS[self.kind](q, k, v)


class LongGPT(ModernGPT):
    """A ModernGPT that looks back as its config says: ids (B, T) -> (B, T, V)."""

    def new_attention(self) -> LongAttention:
        return LongAttention(self.config, self.turns)


# %% [markdown]
# The old numbers inside the new function; and a window that covers everything is full attention:

# %%
assert torch.allclose(sliding_attention(q, k, v, w), looped, atol=1e-6)
assert torch.equal(sliding_attention(q, k, v, 6), fused_attention(q, k, v))
for Tq in (1, 4):
    last = sliding_attention(q[:, :, -Tq:], k, v, w)
    assert torch.allclose(last, looped[:, :, -Tq:], atol=1e-6)

# %% [markdown]
# And the price, for a window of 128 in 2,048 tokens. By counting entries of tables one expects
# $\frac12 T^2$ against $2wT$, a factor of 4. Measured:


# %%
def seconds(function):
    """Forward and backward, 4 heads of 36 numbers."""
    q, k, v = torch.randn(3, 1, 4, 2048, 36, requires_grad=True)
    begin = time.perf_counter()
    function(q, k, v).sum().backward()
    return time.perf_counter() - begin


def slid(q, k, v):
    return sliding_attention(q, k, v, 128)


pairs = [(seconds(fused_attention), seconds(slid)) for _ in range(12)]
full, windowed = (min(times) for times in zip(*pairs, strict=True))
assert full > windowed  # the best of 12 in turns, as others may run
f"{full / windowed:.1f} times as fast"

# %% [markdown]
# That is less than counting promised. The blocks overlap, so keys and values are copied twice, and
# a mask has to be applied; an entry of a table is not all that costs.

# %% [markdown]
# ## A window is not a context
# With a window of 8, is everything further back than 8 lost? Not in a model with several layers.
# The token 7 places back has itself looked 7 places further. After three layers, news can have
# come from $3 \cdot 7$ places away. We change one token at a time and watch the last one's logits:

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
slim = LongGPT(LongConfig(V, 64, 3, 4, 96, attention="sliding", window=8))
ids = val_ids[:64].repeat(65, 1)
places = torch.arange(64)
ids[places, places] = (ids[places, places] + 1) % V  # row t: token t; row 64: none
with torch.no_grad():
    last = slim(ids)[:, -1]
reach = ((last - last[64]).abs().amax(-1) > 1e-6).sum().item()
assert reach == 3 * 7 + 1
reach

# %% [markdown]
# Twenty-one tokens back, and the last one itself.

# %% [markdown]
# ## A memory that does not grow
# Chapter 08 kept the keys and values of all tokens so far. Now that no token is asked for once it
# lies $w$ back, it need not be kept either. By hand: after each new token, keep the last three.

# %%
kept_k, kept_v, answers = k[:, :, :0], v[:, :, :0], []
for t in range(6):
    kept_k = torch.cat([kept_k, k[:, :, [t]]], dim=2)[:, :, -w:]
    kept_v = torch.cat([kept_v, v[:, :, [t]]], dim=2)[:, :, -w:]
    answers.append(attention(q[:, :, [t]], kept_k, kept_v))
assert torch.allclose(torch.cat(answers, dim=2), looped, atol=1e-6)
kept_k.shape

# %% [markdown]
# The class does the same for pieces of any size. A whole prompt may come first, longer than the
# window; all of its tokens have queries, so all of its keys are handed back once, and only then
# dropped.


# %%
#| export
class WindowCache(KVCache):
    """A cache that keeps the last `window` tokens, and so takes a text of any length.

    For sliding attention, where no place has to be learnt.
    """

    def __init__(self, model: LongGPT):
        super().__init__(model)
        self.room = math.inf

    def join(self, i: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self.past[i] is not None:
            pairs = zip(self.past[i], (k, v), strict=True)
            k, v = (torch.cat(pair, dim=2) for pair in pairs)
        # A copy: a mere view would keep all of the tensor behind it alive.
        window = self.model.config.window
        self.past[i] = [x[:, :, -window:].clone() for x in (k, v)]
        return k, v


# %% tags=["nbval-check-output"]
three = LongGPT(LongConfig(V, 64, 1, 1, 4, attention="sliding", window=w))
cache, answers, sizes = WindowCache(three), [], []
for piece in (slice(0, 4), slice(4, 5), slice(5, 6)):
    keys, values = cache.join(0, k[:, :, piece], v[:, :, piece])
    answers.append(sliding_attention(q[:, :, piece], keys, values, w))
    sizes.append((keys.shape[2], cache.past[0][0].shape[2]))
assert torch.allclose(torch.cat(answers, dim=2), looped, atol=1e-6)
sizes  # (keys handed out, keys kept)

# %% [markdown]
# There was a second reason why chapter 08 had to stop at the window's end: places ran out. Rotary
# positions don't, because scores depend on distances alone, and none is larger than $w-1$. With
# both, a model can write for ever, at a constant price for each token. No new training is needed to
# try this. The rotary model from above was trained with up to 64 characters in sight; with a
# sliding window of 64 it has the same weights and sees no distance that it does not know. (Don't
# expect this of every model. Large ones that were trained with full attention lean on the very
# first tokens of a text, and go wrong when these drop out of sight; to keep a few of them in the
# cache cures it: Xiao et al., 2023, *Efficient Streaming Language Models with Attention Sinks*.)

# %%
endless = new_model(replace(models["rotary"].config, attention="sliding", window=BLOCK))
endless.load_state_dict(models["rotary"].state_dict())
generator = torch.Generator().manual_seed(4)
start = tokenizer.encode("JULIET:\n")[None]
written = generate(endless, start, 1000, temperature=0.8, generator=generator)
print(tokenizer.decode(written[0, -300:]))

# %% [markdown]
# These are the last 300 of 1,008 characters, with a window of 64. Did the cache change anything?
# Feed the text in again, 200 characters and then one by one, and compare with one pass over all of
# it:

# %%
cache = WindowCache(endless)
with torch.no_grad():
    whole = endless(written)
    for end in range(200, 1009):
        logits = cache.read(written[:, :end])
        assert torch.allclose(logits, whole[:, end - 1], atol=1e-3)
cache.length, cache.past[0][0].shape  # read; kept (B, H, T, D)

# %% [markdown]
# ## Beyond the trained length
# The other way to a longer context is to stretch the model itself. Take weights trained on 64
# characters, let them see 256, and watch the places beyond 64. What do positions look like there?
#
# Learned ones have no row for place 64. One can draw new rows, which have learnt nothing, or
# spread the 64 old ones over 256 places, with means between them.
#
# Rotary ones exist everywhere. Recall from chapter 10 that each pair of numbers turns at its own
# speed, the fastest by one radian a place. The fast pairs have gone round at least once within 64
# places, so no angle is new to them. The slow ones have not, and beyond 64 they turn to angles that
# were never seen in training. Two ideas against that. *Position interpolation* (Chen et al., 2023)
# divides all places by 4, so that the last place stands where the 64th stood. But then neighbours
# also stand four times as close, and the fast pairs, which tell neighbours apart, see quarter steps
# that they don't know. *NTK-aware scaling* (bloc97, 2023; Peng et al., 2023; the name is that of a
# theory, the neural tangent kernel) raises the base instead, so that the fastest pair turns as
# before and the slowest is slowed by 4, with all others between. Those in the middle are slowed by
# less than 4, so they too leave what they know, only later: it should hold for some way beyond 64,
# not for all of 256. As numbers:

# %% tags=["nbval-check-output"]
D, ratio = small.n_embd // small.n_head, 4
ways = {
    "trained, 64 places": (64, 10_000, 1),
    "none, 256 places": (256, 10_000, 1),
    "interpolate": (256, 10_000, ratio),
    "ntk": (256, 10_000 * ratio ** (D / (D - 2)), 1),
}
for name, (length, base, scale) in ways.items():
    turns = angles(0, length, D, base, scale)  # (T, D / 2)
    print(
        f"{name:20} fastest, a step {turns[1, 0]:.2f}   slowest, in all {turns[-1, -1]:.3f}"
    )

# %% [markdown]
# First the table of learned places: continued by rows that have learnt nothing, or stretched, with
# means between the old rows.


# %%
#| export
def longer_table(table: Tensor, untrained: Tensor, method: str) -> Tensor:
    """Learned places (T, C), continued to the length of `untrained` or stretched."""
    if method == "none":
        return torch.cat([table, untrained[len(table) :].to(table)])
    places = torch.arange(len(untrained), device=table.device)
    places = (places * len(table) / len(untrained)).clamp(max=len(table) - 1)
    below, above = places.floor().long(), places.ceil().long()
    return torch.lerp(table[below], table[above], (places - below)[:, None].to(table))


# %% [markdown]
# Then the whole. It makes a new model of the same weights, whose config says all about it, so that
# it can be saved, loaded and trained like any other.


# %%
#| export
CONTEXT_METHODS = ("none", "interpolate", "ntk")


def with_context(model: GPT, block_size: int, method: str = "none") -> GPT:
    """The same weights as a new GPT with a longer context, which its config describes.

    "none": places beyond the old ones are new: drawn untrained for learned positions,
    simply counted on for rotary ones. "interpolate": places are squeezed into the old
    range, by a table interpolated or by rotary_scale (Chen et al., 2023). "ntk", for
    rotary positions: rotary_base is raised, so that near places hardly change and the
    slowest turn reaches no further than before (bloc97, 2023; Peng et al., 2023).
    ValueError for a shorter context, an unknown method, or one that doesn't fit.
    """
    old = model.config
    check_int("block_size", block_size, low=old.block_size)
    check_choice("method", method, CONTEXT_METHODS)
    position = getattr(old, "position", "learned")
    check_choice("position", position, ("learned", "rotary"))
    ratio = block_size / old.block_size
    changes = {}
    if method == "interpolate" and position == "rotary":
        changes["rotary_scale"] = old.rotary_scale * ratio
    if method == "ntk":
        D = old.n_embd // old.n_head
        if position != "rotary" or D < 4:
            raise ValueError(
                f"method 'ntk' needs rotary positions and heads of at least 4; the "
                f"model has position {position!r} and heads of {D}"
            )
        changes["rotary_base"] = old.rotary_base * ratio ** (D / (D - 2))
    with torch.random.fork_rng(devices=[]):  # draws no random numbers of yours
        longer = type(model)(replace(old, block_size=block_size, **changes))
    state = model.state_dict()
    if position == "learned":
        name = "position_embedding.weight"
        state[name] = longer_table(state[name], longer.state_dict()[name], method)
    longer.to(next(model.parameters())).load_state_dict(state)
    return longer.train(model.training)


# %% [markdown]
# Two cases whose answer is known. At the old length nothing may change. And in a table of learned
# places that is stretched to twice its length, every second row is an old one.

# %%
for model in models.values():
    same = with_context(model, BLOCK, "interpolate")
    assert torch.equal(same(val_ids[None, :BLOCK]), model(val_ids[None, :BLOCK]))
double = with_context(models["learned"], 2 * BLOCK, "interpolate")
old_table = models["learned"].position_embedding.weight
assert torch.equal(double.position_embedding.weight[::2], old_table)

# %% [markdown]
# Now five ways to stretch the two models to 256, and beside them the rotary model that slides, on a quarter of
# the validation text.

# %%
LONG = 4 * BLOCK
torch.manual_seed(0)
stretched = {
    f"{position}, {method}": with_context(models[position], LONG, method)
    for position, method in (
        ("learned", "none"),
        ("learned", "interpolate"),
        ("rotary", "none"),
        ("rotary", "interpolate"),
        ("rotary", "ntk"),
    )
}
some_ids = val_ids[: len(val_ids) // 4]
before = {n: loss_by_position(m, some_ids, LONG) for n, m in stretched.items()}
before["rotary, sliding"] = loss_by_position(endless, some_ids, LONG)

# %%
looks = {
    "learned, none": (ORANGE, ":"),
    "learned, interpolate": (ORANGE, "-"),
    "rotary, none": (RED, "-"),
    "rotary, interpolate": (SKY, "--"),
    "rotary, ntk": (BLUE, "-"),
    "rotary, sliding": (GREEN, "-"),
}


fig, ax = plt.subplots(figsize=(6.5, 3))
for name, (mean, error) in before.items():
    y = mean.view(-1, 16).mean(1)  # of 16 places each
    band = 2 * (error.view(-1, 16) ** 2).sum(1).sqrt() / 16
    x = np.arange(8, LONG, 16)
    color, style = looks[name]
    ax.plot(x, y, style, color=color, label=name)
    ax.fill_between(x, y - band, y + band, color=color, alpha=0.2, lw=0)
ax.axvline(BLOCK, color="k", lw=0.8, ls="--")
ax.set(xlabel="place in the window (characters)", ylabel="loss (nats)")
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
show(
    fig,
    alt="Loss by place up to 256 for models trained on 64: "
    "new learned rows jump up at 64, the interpolated "
    "table and interpolated rotary positions "
    "are high everywhere, plain rotary rises soon after 64, NTK later, sliding stays level.",
)

# %% [markdown]
# *Trained on 64 characters (dashed line), asked for 256, without further training; bands of two
# standard errors. New learned rows hurt from the very place on where they begin; the stretched
# table hurts everywhere, since nearly every row has changed. Rotary positions as they are hold for
# a while beyond the line and then fail. NTK scaling holds to about twice the trained length, for a
# small price inside, and then fails as well. Interpolation, untrained, is bad everywhere: the fast
# pairs are what this model tells neighbours apart by. The sliding window does not notice that
# anything has happened.*
#
# Chen et al. train their stretched models a little more, on long windows, and find that few steps
# (up to a thousand, for large models) are enough. We give each of the five 20 steps on windows of
# 256.

# %%
few = TrainConfig(steps=20, batch_size=4, learning_rate=1e-3, eval_every=0)
for model in stretched.values():
    train(model, train_ids, val_ids[: LONG + 1], few, progress=False)
after = {n: loss_by_position(m, some_ids, LONG) for n, m in stretched.items()}


def beyond(curve):
    """Mean loss of the places past the trained length, and its standard error."""
    mean, error = (x[BLOCK:] for x in curve)
    return mean.mean().item(), (error**2).sum().sqrt().item() / len(error)


for name in stretched:
    (a, da), (b, db) = beyond(before[name]), beyond(after[name])
    print(f"{name:21} {a:.3f} ± {da:.3f}   after 20 steps {b:.3f} ± {db:.3f}")
inside = before["rotary, none"][0][BLOCK // 2 : BLOCK].mean().item()
slides = beyond(before["rotary, sliding"])[0]
print(
    f"rotary, sliding, untouched {slides:.3f}; places 32 to 63 of the old: {inside:.3f}"
)

# %% [markdown]
# (± is the error over windows; each way was trained once.) The rotary models have come down a long way,
# and end lower with NTK scaling, and without any, than with interpolation. Learned positions stay behind.
# Of the new rows that says little: they are drawn with a deviation of 1, and at this rate 20 steps of
# AdamW move a number by about 0.02 at most. None has reached the model that slides.

# %%
late = {name: beyond(curve)[0] for name, curve in before.items()}
assert late["rotary, ntk"] < min(late["rotary, none"], late["rotary, interpolate"])
assert all(beyond(after[name])[0] < late[name] for name in stretched)
assert late["rotary, sliding"] < min(beyond(curve)[0] for curve in after.values())

# %% [markdown]
# ## Is it worth it?
# Now the question that matters to whoever trains a model: with the same time to train, should the
# windows be of 64 or of 512 characters? A longer window makes each step dearer, so there are fewer
# of them. And a batch holds fewer different texts: of 1,024 characters, two windows instead of
# sixteen. On the other side stands what can be seen.
#
# Both models have all the modern parts, rotary positions, and a sliding window of 64. On windows of
# 64 characters that is full attention. On 512 characters it reaches back 189 through the three
# layers, and only one place in eight is as near to a cold start. (Full attention over all 512 was
# tried for 40 seconds only, one seed at three rates: it is dearer still, and did worse. What it
# would do in more time is not known. [LOG.md](../benchmarks/LOG.md) has the trials.) First the
# price of a step was measured, the models taking turns (medians, two threads, a quiet machine;
# "512full" is the one with full attention):

# %%
{
    f"windows of {name}": f"{1000 * s:.1f} ms"
    for name, s in bench["seconds_per_step"].items()
}

# %% [markdown]
# Then each was given as many steps as fit into a budget at that price, with a learning rate that
# falls to zero within it. Losses are *bits per byte* (nats divided by $\ln 2$; a character is one
# byte here) over the whole validation text: one run each at 40 and 80 seconds, at 160 seconds mean ±
# standard deviation of three seeds.


# %%
def over_seeds(model, budget, key="bits"):
    """The values of all seeds for one model and budget, as a tensor."""
    runs = [r for r in bench["runs"] if (r["model"], r["budget"]) == (model, budget)]
    return torch.tensor([r[key] for r in runs])


def by_place_of(model, budget):
    """Characters in sight, and the loss there, as mean over the seeds."""
    runs = [r for r in bench["runs"] if (r["model"], r["budget"]) == (model, budget)]
    places = list(runs[0]["nats_by_position"])
    return places, [np.mean([r["nats_by_position"][p] for r in runs]) for p in places]


def summary(values):
    """Mean ± standard deviation; a single value has none."""
    spread = f" ± {values.std():.3f}" if len(values) > 1 else ""
    return f"{values.mean():.3f}{spread}"


measured = {
    name: {r["budget"] for r in bench["runs"] if r["model"] == name}
    for name in ("64", "512")
}
budgets = sorted(measured["64"] & measured["512"])
kinds = {
    "64": ("64", "bits"),
    "512": ("512", "bits"),
    "64 overlapping": ("64", "bits_overlapped"),
    "64, slid along 512": ("64", "bits_slid"),
    "512 overlapping": ("512", "bits_overlapped"),
}
bits = {k: {b: over_seeds(m, b, key) for b in budgets} for k, (m, key) in kinds.items()}
{kind: {b: summary(x) for b, x in row.items()} for kind, row in bits.items()}

# %%
fig, axes = plt.subplots(1, 2, figsize=(8.5, 3.1))
hues = dict(zip(kinds, (ORANGE, BLUE, ORANGE, GREEN, BLUE), strict=True))
for (kind, row), style in zip(
    bits.items(), ("o-", "s-", "o:", "^--", "s:"), strict=True
):
    means = [x.mean() for x in row.values()]
    spreads = [x.std(correction=min(1, len(x) - 1)) for x in row.values()]
    axes[0].errorbar(
        budgets, means, spreads, fmt=style, ms=4, color=hues[kind], label=kind
    )
longest = budgets[-1]
for name in ("64", "512"):
    x, y = by_place_of(name, longest)
    axes[1].plot(x, y, "o-", ms=4, color=hues[name], label=f"{name}, {longest} s")
axes[0].set_xscale("log", base=2)
axes[0].set_xticks(budgets, budgets)
axes[0].minorticks_off()
axes[0].set(xlabel="training time (s)", ylabel="bits per byte")
axes[1].set(xlabel="place in the window (characters)", ylabel="loss (nats)")
axes[1].tick_params(axis="x", rotation=45)
for ax in axes:
    ax.legend()
show(
    fig,
    alt="Left: bits per byte fall with training time; windows of 512 begin above windows "
    "of 64 and are level with them by 160 s; the model of 64 slid along 512 lies below both. Right: "
    "loss by place, 512 above 64 in every range that both have.",
)

# %% [markdown]
# *Left: trained on windows of 64 or of 512; the circles and the triangles are one and the same
# model, evaluated in three ways; bars are deviations over seeds, where there are several. Right:
# the loss by place, as means over ranges.*
#
# Side by side, windows of 512 begin far behind: a tenth of a bit after 40 seconds. Somewhere
# between 80 and 160 seconds they draw level, and after 160 they are slightly ahead. Is it because
# they use what lies far back? The right panel says no. In every range that both have, the model
# trained on short windows is still the better one. At the first places the difference is largest,
# since it has met nine times as many beginnings of windows; why it is ahead further on too (a fifth
# more steps in the same time? sixteen different texts in each instead of two?) we did not take
# apart. Even the late places of 512, from 65 on, cost more than the other's from 17 on. So it is
# not better late in the window; it has fewer early places. Read with overlapping windows, where
# cold starts hardly count, 512 stays behind at every budget (the last line of the table), though by
# half as much with each doubling of the time: a longer run may well bring it level. And since
# nothing more than 189 back can be heard of, nothing beyond is tested here.
#
# Fewer cold starts can be had for nothing. Look at the triangles. Positions are rotary and the window
# slides, so a model trained on 64 can read 512 at once as it stands: the weights stay, and only the
# config's `block_size` grows. At every budget it is the best of the lines that are evaluated side
# by side, and this is how much it gains:


# %%
gains = {
    b: (bits["64"][b] - bits["64, slid along 512"][b]).mean().item() for b in budgets
}
assert all(gain > 0.02 for gain in gains.values())
behind = {b: (bits["512"][b].mean() - bits["64"][b].mean()).item() for b in budgets}
assert behind[40] > 0.05 and behind[160] < 0.02
for b in budgets:
    assert bits["512"][b].mean() > bits["64, slid along 512"][b].mean()
{f"{b} s": f"{gain:.3f} bits" for b, gain in gains.items()}

# %% [markdown]
# How much of that is the model, and how much the measuring? The overlapping windows answer that.
# They give the model of 64 a fair chance, half a window in sight of every character, and cost
# about the same bits as sliding. So here, too, the gain is fewer cold starts and not the use of
# far characters. That is no shame: whoever reads or writes a long text in one go has only one cold
# start.
#
# The advice for a small model and little time is therefore: train on short windows, slide at
# reading. The preset `long` does just that. Its context is 512, and `context=64` tells the
# training loop to draw windows of 64. Since rotary positions have no weights, it is the model of
# the triangles, from the first step on.


# %%
print(inspect.getsource(PRESETS["long"]))

# %%
model = new_model(PRESETS["long"](V)[0])
f"{model.n_parameters():,} parameters, {model.config.block_size} characters at once"

# %% [markdown]
# On the command line it is `python -m tinygpt_lib train --preset long --out runs/long`.
#
# ## Summary
# Taken apart by place, the loss falls within a few characters and then hardly: a window is what a
# model may look at, not what it uses, and side by side short windows look worse than they are
# because of their cold starts. Explicit attention pays for length with its square, in time and
# memory; fused attention has made memory proportional, a sliding window both, and with rotary
# positions it writes without end from a cache that does not grow. Of the untrained ways to stretch,
# NTK scaling holds longest, to about twice the length; 20 steps bring rotary positions most of the
# way back, and learned ones not. For the same time, training on windows of 512 begins a tenth of a
# bit per byte behind windows of 64 and overtakes them between 80 and 160 seconds, but only when
# both are read side by side: it has fewer cold starts. So has the model trained on 64 once it
# slides along 512: 2.18 bits per byte after 160 seconds, where the same weights had 2.23 side by
# side. It has not become better; it is read better, in one pass.

# %% [markdown]
# ## Exercises
# **1.** A direct way to ask how much of the window is used: spoil what is far. Take windows of the
# validation text, replace their first 32 characters by random ones, and see by how much the loss
# of the *last* 16 places rises. (At least 16 characters before each of them are intact.)
# ```python
# assert 0 < spoilt_loss - intact_loss < 0.2
# ```
# **2.** What is the smallest window with which a model of 3 layers can hear of a token 511 places
# back?
# ```python
# assert heard_of(window, 511) and not heard_of(window - 1, 511)
# ```
# where
# ```python
# def heard_of(window, back):
#     torch.manual_seed(0)
#     config = replace(small, block_size=512, attention="sliding", window=window)
#     ids = val_ids[:512].repeat(2, 1)
#     ids[1, 511 - back] = (ids[1, 511 - back] + 1) % V
#     with torch.no_grad():
#         a, b = LongGPT(config).double()(ids)[:, -1]
#     return (a - b).abs().max().item() > 0
# ```
# **3.** How many bytes do all caches of `endless` hold after 1,000 tokens, and how many would a
# `KVCache` for 1,000 tokens hold? Compute both from the config, then measure the first.
# ```python
# assert estimate == sum(x.nbytes for kept in cache.past for x in kept)
# ```

# %% [markdown]
# ## Solutions

# %% jupyter={"source_hidden": true}
x = val_ids[: 800 * BLOCK + 1].unfold(0, BLOCK + 1, BLOCK)
spoilt = x.clone()
generator = torch.Generator().manual_seed(0)
spoilt[:, :32] = torch.randint(V, (800, 32), generator=generator)


def loss_of_last(ids):
    with torch.no_grad():
        logits = models["rotary"](ids[:, :-1])[:, -16:]
    return F.cross_entropy(logits.flatten(0, 1), ids[:, -16:].flatten()).item()


intact_loss, spoilt_loss = loss_of_last(x), loss_of_last(spoilt)
assert 0 < spoilt_loss - intact_loss < 0.2
intact_loss, spoilt_loss


# %% jupyter={"source_hidden": true}
def heard_of(window, back):
    torch.manual_seed(0)
    config = replace(small, block_size=512, attention="sliding", window=window)
    ids = val_ids[:512].repeat(2, 1)
    ids[1, 511 - back] = (ids[1, 511 - back] + 1) % V
    with torch.no_grad():
        a, b = LongGPT(config).double()(ids)[:, -1]
    return (a - b).abs().max().item() > 0


window = math.ceil(511 / 3) + 1  # each layer brings news from window - 1 places
assert heard_of(window, 511) and not heard_of(window - 1, 511)
window

# %% jupyter={"source_hidden": true}
c = endless.config
per_token = 2 * c.n_layer * c.n_embd * 4  # keys and values, 4 bytes each
estimate = c.window * per_token
cache = WindowCache(endless)
with torch.no_grad():
    cache.read(written[:, :1000])
assert estimate == sum(x.nbytes for kept in cache.past for x in kept)
f"{estimate:,} bytes, instead of {1000 * per_token:,}"
