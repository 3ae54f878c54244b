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
# # 05 · Blocks
# > How do layers stack without breaking?
#
# *An hour to read, half a minute to run. Needs chapter 04. Trains one small model, and reads the losses of
# fifty-one from a file.*
#
# Where we are: one layer of attention with four heads, 2.20 nats. Tokens fetch letters from their
# past, but nothing works with what they fetch, and there is only one round of fetching. To look for
# *words*, a token would have to look at what other tokens have found, in a second layer and a third.
#
# So we need two things: a step in which a token works by itself, and a way to stack layers. This chapter stacks
# layers in the plainest way, watches them fail, and mends the stack, above all by a plus sign. What comes out
# is the **block**, the unit that every GPT repeats.
#
# The number to beat is 2.20 nats.

# %%
import json
import math
from collections import Counter
from pathlib import Path
from statistics import mean, stdev

import torch.nn.functional as F

from course import BLUE, GREEN, ORANGE, PROMPT, RED, plt, show, show_ladder
from tinygpt_lib import load_shakespeare
from tinygpt_lib.bigram import SGD, evaluate, training_step
from tinygpt_lib.text import CharTokenizer, get_batch, split

text = load_shakespeare()
tokenizer = CharTokenizer.from_text(text)
V = tokenizer.vocab_size
train_ids, val_ids = split(tokenizer.encode(text))
train_text, _ = split(text)

# %%
#| export
from functools import partial

import torch
from torch import Tensor, nn

from tinygpt_lib.multi_head import MultiHeadAttention

# %% [markdown]
# ## Time to think
# What follows an `h`? That depends on what stands before it:

# %% tags=["nbval-check-output"]
for pair in ("th", "wh", "sh", "gh"):
    share = train_text.count(pair + "e") / train_text.count(pair)
    print(f"after {pair}: e in {share:.0%}")

# %% [markdown]
# So it pays to know that *a `t` was here* **and** *I am an `h`*. Suppose a head has fetched the first
# fact, so that a token holds two numbers: $t$ is 1 if the character before is a `t`, and $h$ is 1 if
# this one is an `h`. We want a number that is 1 if both are 1, and otherwise 0.
#
# No weighted sum can do that. Take any sum $f = w_1 t + w_2 h + b$. Then $f(0,0) + f(1,1)$ is the
# same as $f(1,0) + f(0,1)$, since both contain each weight once. But the first should be 0 + 1, and
# the second 0 + 0. What helps is a bend. ReLU, $\max(0, x)$, cuts off what is negative.
# Here are the four cases:

# %% tags=["nbval-check-output"]
t = torch.tensor([0.0, 1.0, 0.0, 1.0])
h = torch.tensor([0.0, 0.0, 1.0, 1.0])
F.relu(t + h - 1)

# %% [markdown]
# The sum gives −1, 0, 0 and 1, and the bend drops the −1. A weighted sum with a bend is a detector, and a
# **feed-forward** part, or MLP (*multi-layer perceptron*), is many of them. A first matrix makes $4C$
# weighted sums (the 4 is a convention), the bend makes detectors of them, and a second matrix says what
# each one writes when it fires. Every token goes through the same two matrices, alone. Without the bend
# they would be just one:

# %%
torch.manual_seed(0)
widen, narrow = nn.Linear(8, 32, bias=False), nn.Linear(32, 8, bias=False)
x = torch.randn(5, 8)
one_matrix = narrow.weight @ widen.weight
assert torch.allclose(narrow(widen(x)), x @ one_matrix.T, atol=1e-6)

# %% [markdown]
# For inputs that leave a detector silent, ReLU's slope is zero, so the detector can't learn from them.
# GPT-2 uses a smoother bend, **GELU** (Hendrycks & Gimpel, 2016): $x$ times the probability that
# a standard normal number is smaller than $x$. Like GPT-2 we compute it by a formula with a tanh that is
# nearly the same.


# %%
def gelu(x):
    """x times (nearly) the probability that a normal number lies below x."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


xs = torch.linspace(-4, 4, 200)
assert torch.allclose(gelu(xs), F.gelu(xs, approximate="tanh"), atol=1e-6)

fig, ax = plt.subplots(figsize=(5, 2.6))
ax.plot(xs, F.relu(xs), color=RED, ls="--", label="ReLU")
ax.plot(xs, gelu(xs), color=BLUE, label="GELU")
ax.set(xlabel="in", ylabel="out")
ax.legend()
show(
    fig,
    alt="ReLU is zero up to zero and then a straight line; GELU follows it with a "
    "smooth bend that dips a little below zero.",
)

# %% [markdown]
# *Far from zero the two agree. Just below zero GELU still has a slope.*
#
# Here is the class, with torch's GELU. (`partial` fills in one argument of a function.)

# %%
#| export
fast_gelu = partial(nn.functional.gelu, approximate="tanh")


class FeedForward(nn.Module):
    """Each token by itself: widen, bend, narrow. x (..., C) -> (..., C)."""

    def __init__(self, n_embd: int, bias: bool = True, activation=fast_gelu):
        super().__init__()
        self.activation = activation
        self.widen = nn.Linear(n_embd, 4 * n_embd, bias=bias)
        self.output = nn.Linear(4 * n_embd, n_embd, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        #| hole
        return self.output(self.activation(self.widen(x)))


# %% [markdown]
# <!-- hints: FeedForward.forward
# Three calls, in the order of the docstring.
# -->
#
# Chapter 04 promised a feed-forward that is set by hand. Here it is. A token is four numbers, of which the
# first two are $t$ and $h$. A single detector adds them, subtracts 1, and writes what is left into the third; all
# other weights are zero. Where in *With what contempt he wore the humble weed* will it fire?

# %% tags=["nbval-check-output"]
by_hand = FeedForward(4, activation=F.relu)
with torch.no_grad():
    for p in by_hand.parameters():
        p.zero_()
    by_hand.widen.weight[0, :2] = 1
    by_hand.widen.bias[0] = -1
    by_hand.output.weight[2, 0] = 1

line = "With what contempt he wore the humble weed"
x = torch.zeros(len(line), 4)
x[1:, 0] = torch.tensor([c == "t" for c in line[:-1]])
x[:, 1] = torch.tensor([c == "h" for c in line])
fires = by_hand(x)[:, 2]
print(line)
print("".join("^" if fire else " " for fire in fires))

# %% [markdown]
# It fires twice. It stays silent in `what`, across the space in `contempt he`, and in `humble`. A model of
# width 64 has 256 detectors in each layer, and all of them are learned. At the end of the chapter we
# check whether ours has learned this one.
#
# ## Stacking, and failing
# One layer is attention, in which tokens exchange what they know, and a feed-forward part, in which each
# works on it. We stack twelve in the plainest way. Two things will change in the course of the chapter, so
# they are arguments. `connect(x, part)` says how a part is applied; for now it is just `part(x)`. `last` is
# what stands between the last part and the output head; for now nothing does.


# %%
def plain(x, part):
    return part(x)


class Stack(nn.Module):
    """Embeddings, n_layer layers of attention and feed-forward, an output head."""

    def __init__(self, n_layer, connect, last=None):
        super().__init__()
        self.connect, self.last = connect, last
        self.token_embedding = nn.Embedding(V, 64)
        self.position_embedding = nn.Embedding(32, 64)
        self.parts = nn.ModuleList()
        for _ in range(n_layer):
            self.parts += [MultiHeadAttention(64, n_head=4), FeedForward(64)]
        self.head = nn.Linear(64, V)

    def embed(self, ids):
        positions = torch.arange(ids.shape[1])
        return self.token_embedding(ids) + self.position_embedding(positions)

    def forward(self, ids):
        x = self.embed(ids)
        for part in self.parts:
            x = self.connect(x, part)
        return self.head(self.last(x) if self.last else x)


# %% [markdown]
# Before any training, look at the gradient. It has to travel from the loss back through all later
# layers, and a layer can only learn from what reaches it. We take its length (the root of the sum of
# its squares) in each layer's widening matrix. Two more arguments are for experiments: `louder` multiplies
# all matrices by a number, and `bend` stands in for GELU.


# %%
def gradient_by_layer(connect, last=None, louder=1.0, bend=fast_gelu):
    """Length of the gradient of each of 12 layers' widening matrix, before training."""
    torch.manual_seed(0)
    model = Stack(12, connect, last)
    for part in model.parts[1::2]:
        part.activation = bend
    with torch.no_grad():
        for layer in model.parts.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(louder)
    inputs, targets = get_batch(train_ids, 16, 32, torch.Generator().manual_seed(0))
    F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
    return [part.widen.weight.grad.norm().item() for part in model.parts[1::2]]


alone = gradient_by_layer(plain)
assert alone[0] < 1e-9 * alone[-1]
print(f"layer 12: {alone[-1]:.1e}, layer 1: {alone[0]:.1e}")

# %% [markdown]
# The first layer gets nothing: a **vanishing gradient**.
#
# One cause is scale. Torch draws the weights of a matrix with $n$ inputs from the interval $\pm 1/\sqrt n$.
# Numbers spread evenly between $-a$ and $a$ have the variance $a^2/3$, here $1/(3n)$. Suppose the inputs are
# independent, with mean 0 and variance 1. By the argument of chapter 03 variances add: a sum of $n$ products,
# each of variance $1/(3n)$, has the variance 1/3. So every matrix makes the numbers $\sqrt 3$ times smaller. A
# layer has four of them in a row: values, attention's output, widening, narrowing. That is a factor of 9. The
# gradient goes back through the same four and, in all, loses as much: in widening it even gains a little, and
# in narrowing it loses the more. Eleven layers make $9^{11}$, about $3 \cdot 10^{10}$.
#
# The other cause is GELU. Near zero its slope is one half, and eleven of them make $2^{11}$, about 2,000.
# Together that is $6 \cdot 10^{13}$, and we measured $2 \cdot 10^{13}$. The last layer's gradient is spared,
# because its input doesn't fade: the biases of the layers before it see to that.
#
# If this is right, two changes together should make the layers level: matrices $\sqrt 3$ times as large,
# and no GELU. Where will the first one alone get us?

# %%
for name, bend in {"with GELU": fast_gelu, "without": nn.Identity()}.items():
    louder = gradient_by_layer(plain, louder=math.sqrt(3), bend=bend)
    print(f"{name:9}  layer 12: {louder[-1]:.1e}, layer 1: {louder[0]:.1e}")
    level = louder[0] / louder[-1]
    assert level < 0.1 if bend is fast_gelu else level > 0.2

# %% [markdown]
# Without GELU the layers are level. With it layer 1's gradient is still eighty times smaller than layer 12's. A
# rough estimate agrees: over normal numbers of variance 1 the root mean square of GELU's slope is 0.675, and
# $0.675^{11}$ is 1/75. But without the bend two matrices are just one. We need a way to stack that works
# whatever the parts are.
#
# ## A path around every layer
# The cure is a plus sign: instead of `x = part(x)` write `x = x + part(x)`, a **skip connection** (He et
# al., 2015, *Deep Residual Learning*). Each part no longer *replaces* what it got but *adds* to it. The
# slope of a sum is 1 for each of its terms. So the gradient has a way past every part, from the loss
# straight back to the first layer.


# %%
def residual(x, part):
    return x + part(x)


added = gradient_by_layer(residual)
assert 0.3 < added[0] / added[-1] < 3
print(f"layer 12: {added[-1]:.1e}, layer 1: {added[0]:.1e}")

# %% [markdown]
# With one addition, the first layer gets as much as the last.
#
# It also changes how to think about the network. One stream of $C$ numbers for each token runs from the
# embedding to the output head, the **residual stream**. Parts read from it and write to it. Its end is
# its beginning plus everything that was written. In two layers that is a sum of how many terms?

# %% tags=["nbval-check-output"]
torch.manual_seed(1)
stack = Stack(2, residual)
ids = train_ids[None, :8]
terms = [stack.embed(ids)]
for part in stack.parts:
    terms.append(part(sum(terms)))
assert torch.allclose(stack(ids), stack.head(sum(terms)), atol=1e-5)
len(terms)

# %% [markdown]
# Now the same with the larger matrices:

# %%
exploding = gradient_by_layer(residual, louder=math.sqrt(3))
assert exploding[0] > 1000 * exploding[-1]
print(f"layer 12: {exploding[-1]:.1e}, layer 1: {exploding[0]:.1e}")

# %% [markdown]
# The opposite failure, an **exploding gradient**. Everything that is added makes the stream larger, so
# every later part sees larger numbers, and adds still larger ones. Something has to keep the scale.
#
# ## A fixed scale
# Bring each token's $C$ numbers to mean 0 and variance 1 where they are read, and let the model learn
# a scale and a shift for each of them (`weight` and `bias`), in case it wants others. Each token is
# scaled by itself, since its numbers may not depend on another token's, least of all on a later one's.
# This is **LayerNorm** (Ba, Kiros & Hinton, 2016):
#
# $$y = \frac{x - \text{mean}(x)}{\sqrt{\text{var}(x) + \epsilon}} \cdot \text{weight} + \text{bias}$$
#
# The small $\epsilon$ avoids a division by zero when all $C$ numbers are equal. The norm also tames the way
# back. It divides by the size of the stream, so its slope is one over that size: the larger the stream has
# become, the less gradient goes back through the part.


# %%
#| export
def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float = 1e-5
) -> Tensor:
    """Each token's numbers (..., C) brought to mean 0 and variance 1, then rescaled.

    Ba, Kiros and Hinton, 2016. Written out; `LayerNorm` computes the same in one go.
    """
    #| hole: bring each token's numbers to mean 0 and variance 1
    mean = x.mean(dim=-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=-1, keepdim=True)
    #| hole: rescale and shift them; there may be no bias
    y = (x - mean) / torch.sqrt(variance + eps) * weight
    return y if bias is None else y + bias


# %% [markdown]
# <!-- hints: layer_norm
# Mean and variance are taken over the last dimension. `keepdim=True` leaves them as columns, so that
# each token is brought to its own scale.
#
# The variance is the mean of the squared distances from the mean: divide by C, not by C - 1 as
# `x.var()` does. Where does eps go, inside the root or outside?
# -->
#
# On paper: the mean of 2, 4, 6 and 8 is 5. The squared distances are 9, 1, 1 and 9, so the variance
# is 5, and 2 becomes $(2 - 5)/\sqrt 5 = -1.34$.

# %% tags=["nbval-check-output"]
layer_norm(torch.tensor([2.0, 4.0, 6.0, 8.0]), torch.ones(4), torch.zeros(4))

# %% [markdown]
# The class lets torch's fused operation do it, and the two have to agree:


# %%
#| export
class LayerNorm(nn.Module):
    """Each token's numbers at one learned scale. x (..., C) -> (..., C)."""

    def __init__(self, n_embd: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_embd))
        self.bias = nn.Parameter(torch.zeros(n_embd)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, self.weight.shape, self.weight, self.bias)


# %%
layer = LayerNorm(64)
with torch.no_grad():
    layer.weight.normal_()
    layer.bias.normal_()
x = 3 + 5 * torch.randn(2, 10, 64)
assert torch.allclose(layer_norm(x, layer.weight, layer.bias), layer(x), atol=1e-5)

# %% [markdown]
# Where does the norm go? The first Transformer normalized *after* adding, **post-norm**. Then the
# stream itself runs through every norm. GPT-2, and nearly everybody since, normalizes what a part
# *reads*, **pre-norm**, and leaves the stream alone; one more norm stands before the output head.
# Here are both, without the learned scale and shift.


# %%
def norm(x):
    """LayerNorm with nothing learned."""
    return F.layer_norm(x, x.shape[-1:])


def post_norm(x, part):
    return norm(x + part(x))


def pre_norm(x, part):
    return x + part(norm(x))


# %% [markdown]
# On the left is the gradient in every layer, with the matrices as torch draws them; on the right, for
# other sizes, layer 1's gradient divided by layer 12's. Level is good.

# %%
ways = {
    "plain": (plain,),
    "residual": (residual,),
    "post-norm": (post_norm,),
    "pre-norm": (pre_norm, norm),
}
sizes = [0.3, 1, math.sqrt(3), 3]
lengths = {
    name: {size: gradient_by_layer(*way, louder=size) for size in sizes}
    for name, way in ways.items()
}
ratios = {n: [by[s][0] / by[s][-1] for s in sizes] for n, by in lengths.items()}
for name in ("post-norm", "pre-norm"):
    assert all(0.2 < ratio < 5 for ratio in ratios[name])

fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
styles = zip(ways, [RED, ORANGE, GREEN, BLUE], "vs^o", strict=True)
for name, color, mark in styles:
    look = {"marker": mark, "color": color, "label": name}
    left.semilogy(range(1, 13), lengths[name][1], **look)
    right.loglog(sizes, [r if r > 0 else math.nan for r in ratios[name]], **look)
left.set(xlabel="layer", ylabel="length of the gradient", title="as torch draws them")
right.set(xlabel="matrices times", ylabel="layer 1 / layer 12", title="other sizes")
right.set_xticks(sizes, ["0.3", "1", "√3", "3"])
right.minorticks_off()
right.legend()
show(
    fig,
    alt="Left, the gradient by layer: that of the plain stack falls by thirteen orders of magnitude "
    "towards layer 1, the other three are level. Right, layer 1 against layer 12 by the size of "
    "the matrices: plain far below one, residual at one and then far above, both norms near "
    "one throughout.",
)

# %% [markdown]
# *Plain and residual overflow at 3, and at 0.3 plain's gradient is too small for the computer.* With a
# norm, layer 1's gradient stays within a factor of about four of layer 12's, over a tenfold range of
# sizes.
#
# ## How large to begin
# One thing is left to set, the size of what is added at the start. In $L$ layers $2L$ parts write to
# the stream. If their contributions are independent, their variances add, and the stream grows like
# $\sqrt{2L}$. The embedding, which says *which character this is*, becomes a small part of it.
# GPT-2 draws the last matrix of each part smaller, by $1/\sqrt{2L}$, so that all additions together
# weigh as much as one.
#
# Estimate it for 24 layers. If the embedding and each of 48 additions have variance 1, the stream
# ends at a scale of $\sqrt{49} = 7$, and with the factor at $\sqrt{1 + 1} = 1.4$. For the measurement we
# give matrices the variance $1/n$.


# %%
def stream_scale(shrink, n_layer=24):
    """Standard deviation of the stream after every part of a pre-norm stack."""
    torch.manual_seed(0)
    stack = Stack(n_layer, pre_norm, norm)
    with torch.no_grad():
        for layer in stack.parts.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        x = stack.token_embedding(train_ids[None, :32])
        scale = [x.std().item()]
        for part in stack.parts:
            part.output.weight.mul_(shrink)
            x = pre_norm(x, part)
            scale.append(x.std().item())
    return scale


loud, quiet = stream_scale(1.0), stream_scale(1 / math.sqrt(48))
assert loud[-1] > 4 * loud[0] and quiet[-1] < 1.5 * quiet[0]
loud[-1], quiet[-1]

# %% [markdown]
# Both end below the estimate, since averages and GELU make every addition smaller. But without the factor, the
# embedding is indeed only a fifth of the stream at its end. Chapter 06 draws its weights this way.
#
# ## A little noise
# A model that reads its text many times can memorize it. **Dropout** (Srivastava et al., 2014) makes that
# hard. During training it sets each number to zero with probability $p$, anew every time, so that
# nothing can rely on any one number. Those that stay are multiplied by $1/(1 - p)$, which keeps the mean.
# When the model is used, nothing is dropped.


# %%
#| export
class Dropout(nn.Module):
    """In training, zeroes a random share p of its input and scales up the rest.

    In evaluation, or with p = 0, the input passes untouched. Srivastava et al., 2014.
    """

    def __init__(self, p: float):
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout is {p}; it must be at least 0 and below 1")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        #| hole: keep each number with probability 1 - p, scaled up
        kept = torch.rand_like(x) >= self.p
        return x * kept / (1 - self.p)


# %%
torch.manual_seed(2)
dropout = Dropout(0.2)
dropout(torch.ones(10))

# %% [markdown]
# <!-- hints: Dropout.forward
# `torch.rand_like(x)` draws a number between 0 and 1 for each entry. With what probability is it
# at least p?
#
# What is kept is divided by 1 - p, so that the mean stays what it was.
# -->
#
# Here are the share of zeros, the scale against torch's, and a model in use:

# %%
dropped = dropout(torch.ones(1_000_000))
assert abs((dropped == 0).float().mean() - 0.2) < 0.002  # five standard deviations
assert dropped.unique().equal(F.dropout(torch.ones(1_000), 0.2).unique())
assert torch.equal(dropout.eval()(torch.ones(10)), torch.ones(10))

# %% [markdown]
# In 1,200 steps our runs read only six tenths as many characters as the training text has. There is next to
# nothing to memorize, so they keep $p = 0$. The class stays because GPT-2 has it.
#
# ## The block
# All of it together is the **Transformer block**. The tokens communicate, then each computes. Both
# parts read the stream through a norm and add to it.
#
# ![A block, from top to bottom: the stream x runs straight through; attention, then feed-forward, each read a normalized copy of it and add their result back.](drawings/block.svg)


# %%
#| export
class Block(nn.Module):
    """Communication, then computation, each through a norm and added to the stream.

    x (B, T, C) -> (B, T, C). Vaswani et al., 2017, with the norms of GPT-2 (2019).
    """

    def __init__(
        self, n_embd: int, n_head: int, dropout: float = 0.0, bias: bool = True
    ):
        super().__init__()
        self.attention_norm = LayerNorm(n_embd, bias)
        self.attention = MultiHeadAttention(n_embd, n_head, bias)
        self.feed_forward_norm = LayerNorm(n_embd, bias)
        self.feed_forward = FeedForward(n_embd, bias)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        #| hole: communication
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        #| hole: computation
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


# %% [markdown]
# <!-- hints: Block.forward
# Each part reads the stream through its norm, and what it says is added to the stream, through
# the dropout. The stream itself passes untouched.
#
# Feed-forward reads the stream with the attention's addition in it.
# -->
#
# With the same parts it must give the same numbers as the pre-norm stack. And the future must not reach
# the past, now through several blocks in a row:

# %%
stack, block = Stack(1, pre_norm), Block(64, 4)
block.attention, block.feed_forward = stack.parts
x = torch.randn(2, 10, 64)
expected = pre_norm(pre_norm(x, stack.parts[0]), stack.parts[1])
assert torch.allclose(block(x), expected, atol=1e-6)

blocks = nn.Sequential(*(Block(64, 4) for _ in range(3)))
x2 = x.clone()
x2[:, 6:] += 10.0
assert torch.equal(blocks(x2)[:, :6], blocks(x)[:, :6])

# %% [markdown]
# ## Do the parts help?
# All this was before training. [benchmarks/part_one.py](../benchmarks/part_one.py) has trained the four
# ways to stack with the loop below: six layers, 160 steps, three seeds, and two learning rates, so that
# none fails merely because the rate suits another.


# %%
def learn(model, seed, rate, steps):
    """Trains on random windows with a learning rate that falls to zero; the losses."""
    optimizer = SGD(model.parameters(), learning_rate=rate, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for step in range(steps):
        optimizer.learning_rate = rate * (1 - step / steps)
        batch = get_batch(train_ids, 16, 32, generator)
        losses.append(training_step(model, optimizer, *batch))
    return losses


# %%
kept = json.loads(Path("../benchmarks/part_one.json").read_text())
colors = {"plain": RED, "residual": ORANGE, "post_norm": GREEN, "pre_norm": BLUE}

fig, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
for run in kept["stacks"]:
    ax, look = axes[int(run["rate"] == 0.2)], {"color": colors[run["way"]]}
    if run["loss"] is None:  # it stands for nan, "not a number"
        ax.plot(10, 3.9, "x", **look)
        continue
    ax.plot(range(10, 160, 20), run["curve"], lw=1, **look)
    ax.plot(165, run["loss"], "o", ms=4, **look)
for ax, rate in zip(axes, (0.05, 0.2), strict=True):
    ax.set(xlabel="step", title=f"learning rate {rate}")
for way, color in colors.items():
    axes[1].plot([], color=color, label=way.replace("_", "-"))
axes[0].set_ylabel("loss (nats)")
axes[1].legend()
show(
    fig,
    alt="Loss of four stacks over 160 steps. Plain levels out near 3.35 at both rates. At 0.05 "
    "residual ends at 2.55, post-norm at 2.67, pre-norm at 2.72. At 0.2 residual fails at once, "
    "and the norms end at 2.51 and 2.53.",
)

# %% [markdown]
# *Lines: training loss. Dots: validation loss. Cross: runs that ended in `nan`, "not a number".*
#
# The plain stack learns how common each character is, which costs 3.35 nats, and nothing more. The plus sign
# turns it into a model that learns, and at the smaller rate it is the best of the four. At the larger one its
# numbers overflow. With a norm both rates work, and the larger one ends slightly lower than any stack at the
# smaller. So in this short test a norm hardly lowers the loss, but tolerates a larger rate.
#
# Post-norm is even slightly ahead here: by 0.04 nats at the smaller rate, in every seed, and by 0.02 at the
# larger, where the seeds overlap. We take pre-norm all the same, as GPT-2 did. Xiong et al. (2020, *On Layer
# Normalization in the Transformer Architecture*) found that post-norm needs very small first steps, and that
# pre-norm doesn't.

# %% [markdown]
# ## Do layers help?
# What does a second layer bring, and a third? And the feed-forward? `AttentionOnly` is a block without
# it. A block has $4C^2$ weights in attention and $8C^2$ in the feed-forward, so nine layers of attention
# alone have about as many as three whole blocks. `ReLUBlock` has the bend that GELU replaced.


# %%
class AttentionOnly(nn.Module):
    """A block without its feed-forward."""

    def __init__(self, n_embd, n_head):
        super().__init__()
        self.norm = LayerNorm(n_embd)
        self.attention = MultiHeadAttention(n_embd, n_head)

    def forward(self, x):
        return x + self.attention(self.norm(x))


class ReLUBlock(Block):
    """A block whose detectors bend sharply."""

    def __init__(self, n_embd, n_head):
        super().__init__(n_embd, n_head)
        self.feed_forward.activation = F.relu


class Blocks(nn.Module):
    """Embeddings, blocks, a last norm and the output head."""

    def __init__(self, n_layer, block=Block, width=64):
        super().__init__()
        self.token_embedding = nn.Embedding(V, width)
        self.position_embedding = nn.Embedding(32, width)
        self.blocks = nn.Sequential(*(block(width, n_head=4) for _ in range(n_layer)))
        self.norm = LayerNorm(width)
        self.head = nn.Linear(width, V)

    def forward(self, ids):
        positions = torch.arange(ids.shape[1])
        x = self.token_embedding(ids) + self.position_embedding(positions)
        return self.head(self.norm(self.blocks(x)))


# %% [markdown]
# Three seeds each, 1,200 steps, all at the same rate, from the file. One block with the first seed is trained
# again here. How much will the second and the third block bring?

# %%
torch.manual_seed(0)
model = Blocks(1)
learn(model, 0, rate=0.3, steps=1200)
again = evaluate(model, val_ids, 32)

depths = {}
for run in kept["depths"]:
    depths.setdefault((run["kind"], run["n_layer"]), []).append(run["loss"])
for (kind, n_layer), losses in depths.items():
    made = Blocks(n_layer, AttentionOnly if kind == "attention" else Block)
    size = sum(p.numel() for p in made.parameters())
    name = f"{n_layer} x {kind}{' alone' * (kind == 'attention')}"
    print(f"{name:21} {size:8,} {mean(losses):.3f} ± {stdev(losses):.3f} nats")
in_file = depths["block", 1][0]
assert max(depths["block", 1]) < min(depths["attention", 3]) - 0.05
assert max(depths["block", 3]) < min(depths["attention", 9]) - 0.05
assert abs(again - in_file) < 0.05  # rounding, as if by another seed
print(f"\none block again: {again:.3f}, in the file {in_file:.3f}")

# %% [markdown]
# The last row first: with ReLU one block ends where it does with GELU, to within the seeds. Now compare rows
# with equal numbers of parameters. One whole block has as many as three layers of attention alone, and is
# better by 0.07 nats, many times the spread. Three blocks against nine layers: 0.09. Attention alone gains
# nothing more from the last six layers. **In 1,200 steps, more looking does not replace the feed-forward.**
#
# The second and the third whole block bring 0.01 nats, and the seeds scatter by as much. Are they useless, or
# do they pay later? Here are one block and three with four times as many steps, two seeds each, and a single
# block of width 108, which has about as many parameters as the three:

# %%
long = {}
for run in kept["longer"]:
    long.setdefault((run["n_layer"], run["width"]), []).append(run["loss"])
assert max(long[3, 64]) < min(long[1, 64]) - 0.05
for (n_layer, width), losses in long.items():
    size = sum(p.numel() for p in Blocks(n_layer, width=width).parameters())
    print(
        f"{n_layer} of width {width:3} {size:8,}  ", *(f"{loss:.3f}" for loss in losses)
    )

fig, ax = plt.subplots(figsize=(6.5, 3.2))
for run, color in ((kept["longer"][0], RED), (kept["longer"][2], BLUE)):
    name = f"{run['n_layer']} block{'s' * (run['n_layer'] > 1)}"
    ax.plot(range(100, 4800, 200), run["curve"], color=color, label=name)
    ax.plot(4900, run["loss"], "o", color=color)
ax.set(xlabel="step", ylabel="loss (nats)", ylim=(1.5, 2.7))
ax.legend()
show(
    fig,
    alt="Training loss over 4800 steps: one block and three run together for about a thousand "
    "steps, then three blocks fall below, and end at 1.56 against 1.68. Validation loss: 1.73 "
    "against 1.84.",
)

# %% [markdown]
# *The first seed of each. Lines: training loss. Dots: validation loss.* For about a thousand steps the two can
# hardly be told apart. Then they part, and three blocks end 0.10 nats lower on the validation text, five times
# as much as the seeds differ. Had we stopped at 1,200 steps, we would have called them useless. And the nine
# layers of attention never got more than that.
#
# And is it the depth, or the size? Three blocks have 2.7 times the parameters of one. The single wide block
# covers a little more than half of the distance. So about half of the gain is size and the rest is depth, as
# far as two seeds can tell.

# %% [markdown]
# ## Has it learned "t and h"?
# The block that we trained has 256 detectors. Here is what they say, before the feed-forward narrows.


# %%
@torch.no_grad()
def detectors(windows):
    """What the block's detectors say, (windows, T, 256)."""
    positions = model.position_embedding(torch.arange(windows.shape[1]))
    x = model.token_embedding(windows) + positions
    (block,) = model.blocks
    x = x + block.attention(block.attention_norm(x))
    return fast_gelu(block.feed_forward.widen(block.feed_forward_norm(x)))


def means(windows):
    """Each detector's mean at h after t, other h, other characters after t, the rest."""
    id_t, id_h = tokenizer.encode("th")
    after_t, is_h = F.pad(windows[:, :-1] == id_t, (1, 0)), windows == id_h
    cases = [after_t & is_h, ~after_t & is_h, after_t & ~is_h, ~after_t & ~is_h]
    said = detectors(windows)
    return torch.stack([said[case].mean(dim=0) for case in cases])  # (4, 256)


# %% [markdown]
# Among 256 detectors, some will look good by luck. So we choose on the training text the one that is
# furthest above its other cases at `th`, and measure it on the validation text. Then we count which
# pairs of characters stand at the 200 positions where it says most.

# %%
generator = torch.Generator().manual_seed(0)
known, _ = get_batch(train_ids, 400, 32, generator)
unseen, _ = get_batch(val_ids, 400, 32, generator)
chosen = means(known)
best = (chosen[0] - chosen[1:].amax(dim=0)).argmax()
names = "th", "other h", "other after t", "the rest"
for name, said in zip(names, means(unseen)[:, best].tolist(), strict=True):
    print(f"{name:14}{said:5.2f}")

strongest = detectors(unseen)[:, 1:, best].flatten().topk(200).indices.tolist()
pairs = [unseen[i // 31, i % 31 : i % 31 + 2] for i in strongest]
Counter(tokenizer.decode(pair) for pair in pairs).most_common(3)

# %% [markdown]
# Partly. The detector says 1.47 at `th`. If it only added up the two facts, it would say $0.44 + 0.27 - 0.09 =
# 0.62$. It says more than twice that. The bend would do this for any two facts that push a detector up. What
# the model has learned is to let these two push the same one. But it is no pure specialist. Of its 200
# strongest positions 65 are `th` and 18 `Th`, 17 are `ha`, and the other hundred are other pairs, none with
# more than 17. What a network learns isn't filed under our names.
#
# And this is how that one block writes, at 2.05 nats:

# %%
generator = torch.Generator().manual_seed(2)
out = tokenizer.encode(PROMPT)[None]
with torch.no_grad():
    for _ in range(200):
        p = model(out[:, -32:])[0, -1].softmax(dim=0)
        out = torch.cat([out, torch.multinomial(p, 1, generator=generator)[None]], 1)
print(tokenizer.decode(out[0]))

# %% [markdown]
# There are short words, *thus boy!*, *and come*, *that my*; longer ones are still invented. The ladder takes
# the three blocks:

# %%
show_ladder("three blocks", mean(depths["block", 3]), "7-grams")

# %% [markdown]
# *Down to 2.03 nats, level with chapter 02's table over two characters, at 2.04.* The runs of 1,200 steps count
# here, since the rungs above had about as many. But with four times the steps the same three blocks were at
# 1.74. Chapter 07 comes back to that number.
#
# ## Summary
# A feed-forward part lets each token work by itself: a weighted sum with a bend detects that two things are
# true at once. In a plain stack of twelve layers the first one gets almost no gradient: each matrix and each
# GELU makes it smaller. The plus sign matters most. A path around every part lets signal and gradient through,
# and alone it took six layers from 3.4 nats to 2.6. A norm keeps the scale of what is read. In our short test
# it hardly lowered the loss, but it let us use a learning rate four times as large. Together they are the
# block: `x + part(norm(x))`, twice. In 1,200 steps, at equal numbers of parameters, the feed-forward is worth
# 0.07 to 0.09 nats. Three blocks reach 2.03 nats and one block 2.05. With four times as many steps three lead
# by 0.10.

# %% [markdown]
# ## Exercises
# `make learn CHAPTER=05` makes a workbook that checks what you write here, and
# [the solutions](solutions/05_blocks.ipynb) have a notebook of their own.
#
# **1.** Set a `FeedForward(4, activation=F.relu)` by hand that writes 1 into the third number when
# *exactly one* of the first two is 1, and 0 otherwise. One detector is not enough. Why?
#
# **2.** If the output matrices are small at the start, a block is almost the identity. Write
# `quiet(block)`, which makes it the identity exactly, by setting as few of its parameters as you can to
# zero. Then: which parameters get a gradient that is not zero? It returns their names.
#
# **3.** What does a part of a pre-norm block notice of the scale of the stream? Write
# `contribution(block, x)`, which returns what the attention of a block adds to a stream `x`. Then let the
# stream be ten times as large.
