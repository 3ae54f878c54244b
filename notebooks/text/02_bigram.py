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
# # 02 · Bigram
# > What can one character of memory do?
#
# Where we are: a model that knows how common each character is, and nothing else, costs 3.35 nats
# a character; the best everyday compressor 1.66. The first of the two never looks at what
# came before. Now we look, at one single character, and get two things out of it. The first is a
# model that only counts, whose best possible loss we can compute exactly. The second is the same
# model, but *learnt*, step by step, by the method that trains every network in this course. Since
# we know the right answer, we can see whether the method finds it.
#
# The number to beat is 3.35 nats.

# %%
from collections import Counter
from math import exp, log

import torch

from tinygpt_lib import load_shakespeare
from tinygpt_lib._figures import BLUE, GREEN, RED, plt, show
from tinygpt_lib.text import CharTokenizer, get_batch, split

text = load_shakespeare()
tokenizer = CharTokenizer.from_text(text)
V = tokenizer.vocab_size
train_ids, val_ids = split(tokenizer.encode(text))

# %% [markdown]
# ## Counting pairs
# The smallest experiment: in the word `hello`, what follows `l`? Once another `l`, once an `o`. So
# after an `l` we expect either, with probability one half. That is all that a **bigram** model
# does: one count for each pair of neighbours.
#
# For the whole training text the counts fill a table of 65 rows (the character we stand on) and 65
# columns (the one that follows). We count every pair with one call. `index_put_` puts a 1 at
# each place `(now, next)`, and `accumulate=True` makes places that come up again add up. (The
# underscore at the end is torch's sign for *this changes the tensor itself*.)

# %% tags=["nbval-check-output"]
counts = torch.zeros(V, V)
pairs = (train_ids[:-1], train_ids[1:])
counts.index_put_(pairs, torch.ones(len(train_ids) - 1), accumulate=True)

assert counts.sum() == len(train_ids) - 1
q, u = tokenizer.encode("qu")
qu, other = counts[q, u], counts[q].sum() - counts[q, u]
f"q is followed by u {qu:.0f} times, by anything else {other:.0f} times"

# %% [markdown]
# Divide every row by its sum, and it becomes the probabilities of what comes next. `dim=1` sums
# along each row; `keepdim=True` keeps the 65 sums standing as a column, so that each row is divided
# by its own. Here is the table as a picture, for the lower-case letters and the blank.

# %%
probabilities = counts / counts.sum(dim=1, keepdim=True)
letters = "abcdefghijklmnopqrstuvwxyz "
shown = tokenizer.encode(letters)

fig, ax = plt.subplots(figsize=(6, 5.2))
image = ax.imshow(probabilities[shown][:, shown], vmax=0.6)
ax.set_xticks(range(27), letters[:-1] + "␣", fontsize=8)
ax.set_yticks(range(27), letters[:-1] + "␣", fontsize=8)
ax.set(xlabel="next character", ylabel="character now")
ax.grid(False)
fig.colorbar(image, label="probability", extend="max")
show(
    fig,
    alt="Heat map of the probability of the next character for each character; "
    "brightest at q then u, v then e, z then e; bright in the column of the blank.",
)

# %% [markdown]
# *Each row sums to one (with the columns not shown). Three cells reach the end of the scale, 0.6 and
# more: q → u, v → e and z → e. And look at the bright last column: a blank follows d and y about every
# second time. (Commas and line ends, which are not shown, end further words.)*

# %% [markdown]
# ## What it costs
# Chapter 01 gave the score: the mean of $-\ln p(\text{what came})$. For a table of
# probabilities, that is one look-up for each pair of neighbours. First on the text that we counted:

# %%
counted_train = -probabilities[train_ids[:-1], train_ids[1:]].log().mean().item()
counted_train

# %% [markdown]
# This number is special. Among *all* tables of bigram probabilities, the relative counts are the
# ones with the smallest loss on the text they were counted on. Whatever we learn later with one
# character of memory, on this text it can come close to 2.452 but never below. We will use that.
#
# And on the validation text?

# %%
counted_val = -probabilities[val_ids[:-1], val_ids[1:]].log().mean().item()
counted_val

# %% [markdown]
# Infinite! Some pair occurs in the validation text that the training text never shows. `SP` is
# one: `PROSPERO` only speaks in the last tenth, 63 times. The table calls it impossible, and being
# sure and wrong costs without limit. *Never seen* must not mean *impossible*. The oldest cure is to
# pretend that we saw every pair a little: add a constant to every count before dividing. Look at the
# losses: here it hardly matters which constant. We go on with the last one, 0.1.

# %%
for constant in (0.01, 1, 3, 0.1):
    smoothed = (counts + constant) / (counts + constant).sum(dim=1, keepdim=True)
    bigram_val = -smoothed[val_ids[:-1], val_ids[1:]].log().mean().item()
    print(f"{constant:5} {bigram_val:.3f}")
assert counts[tuple(tokenizer.encode("SP"))] == 0
assert 2.45 < bigram_val < 2.52
bigram_val

# %% [markdown]
# From 3.35 down to 2.48 nats, by looking at one character. Nats are hard to feel, so people
# often take $e^{\text{loss}}$, the **perplexity**: with how many equally likely characters would
# one be just as unsure?

# %%
for name, loss in {"uniform": log(V), "unigram": 3.347, "bigram": bigram_val}.items():
    print(f"{name:8} {loss:.2f} nats: as unsure as between {exp(loss):.1f} characters")

# %% [markdown]
# ## Writing with it
# A table of probabilities can write. Stand on a character, take its row, draw the next character
# by the row's probabilities (`torch.multinomial` does that), stand on that one. Four lines:

# %%
generator = torch.Generator().manual_seed(2)
out = [tokenizer.encode("\n").item()]
for _ in range(200):
    out.append(torch.multinomial(smoothed[out[-1]], 1, generator=generator).item())
print(tokenizer.decode(out))

# %% [markdown]
# Not English. But compare it with chapter 01's last exercise: vowels and consonants mostly take
# turns, capitals begin lines, and a comma is followed by a blank or a line break. `glllen` shows
# the limit: after an `l` another `l` is likely, and the model cannot know that it has just
# written two.

# %% [markdown]
# ## From scores to probabilities
# Now the same table, learnt. A network does not produce probabilities directly, it produces any
# numbers at all, called **logits**: one for each possible next token, the larger the likelier.
# To become probabilities they have to be positive and sum to one. $e^x$ makes anything
# positive, and dividing by the sum does the rest. This is the **softmax**:
#
# $$p_i = \frac{e^{x_i}}{\sum_j e^{x_j}}$$


# %%
def softmax(x):
    """Probabilities from logits, over the last dimension."""
    e = torch.exp(x - x.max(dim=-1, keepdim=True).values)
    return e / e.sum(dim=-1, keepdim=True)


softmax(torch.tensor([1.0, 2.0, 3.0]))

# %% [markdown]
# Why subtract the largest value first? It changes nothing in theory, since a factor $e^{-\max}$
# cancels out of the fraction. In practice $e^{1000}$ is too large for a computer's number, and
# infinity divided by infinity is not a number at all:

# %% tags=["nbval-check-output"]
large = torch.tensor([1000.0, 1001.0])
torch.exp(large) / torch.exp(large).sum(), softmax(large)

# %% [markdown]
# The loss of a batch is then the mean of $-\ln p$ at the targets, which we write out once; the two
# indices pick from each row the probability of its target. Torch has both steps in one function,
# `cross_entropy`; ours has to agree with it.

# %%
import torch.nn.functional as F


def cross_entropy(logits, targets):
    """Mean surprise of targets (N,) under logits (N, V), in nats."""
    return -softmax(logits)[torch.arange(len(targets)), targets].log().mean()


logits = torch.randn(100, V, generator=generator)
targets = torch.randint(V, (100,), generator=generator)
assert torch.allclose(
    cross_entropy(logits, targets), F.cross_entropy(logits, targets), atol=1e-6
)
F.cross_entropy(torch.zeros(100, V), targets)

# %% [markdown]
# The last line is a check with a known answer: all logits equal means all characters equally
# likely, and that costs $\ln 65 = 4.174$.

# %% [markdown]
# ## Which way is down?
# We have a table of 65 · 65 logits, all zero at first, and a loss. We want to change the logits so
# that the loss shrinks. Take a single one of them, that of `u` after `q`, vary it, and look at
# the loss of this one pair. (`[None]` makes a batch of one out of a single row.)

# %%
row = torch.zeros(V)


def loss_at(x):
    """Loss for the pair q -> u when u's logit is x and the other 64 are zero."""
    changed = row.clone()
    changed[u] = x
    return F.cross_entropy(changed[None], u[None])


xs = torch.linspace(-2, 10, 100)
losses = torch.stack([loss_at(x) for x in xs])
slope = (loss_at(0.01) - loss_at(-0.01)) / 0.02

fig, ax = plt.subplots(figsize=(6, 3))
ax.plot(xs, losses, label="loss")
ax.plot(
    xs[:50],
    loss_at(0.0) + slope * xs[:50],
    "--",
    color=RED,
    label=f"slope at 0: {slope:.3f}",
)
ax.set(xlabel="logit of u after q", ylabel="loss (nats)")
ax.legend()
show(
    fig,
    alt="The loss falls from 6.2 as the logit grows, steeply first, and is flat near 0 "
    "from 8 on; the tangent at zero has a slope of about minus 0.98.",
)

# %% [markdown]
# *The slope tells which way is down, and how steep it is: around 0 the loss falls by 0.98 for each
# unit that the logit grows. Further right there is ever less to gain: `u` is already expected.*
#
# We found the slope by trying: a little more, a little less. With 4,225 numbers to set, that means
# 8,450 trials before a single move, and large models have billions of such numbers. But a loss is
# computed in small steps (exponentials, sums, a logarithm), and the slope of each is known from
# school calculus. Slopes of steps in a row multiply: if $y$ grows 3 times as fast as $x$, and $z$ 2
# times as fast as $y$, then $z$ grows 6 times as fast as $x$. This is the **chain rule**.
#
# Torch applies it for us. A tensor made with `requires_grad=True` (or told so later, by
# `requires_grad_()`) has its uses remembered, and `loss.backward()` walks back through that memory
# and leaves in `.grad` the slope for *every* entry at once. That collection of slopes is the
# **gradient**.

# %%
row.requires_grad_()
F.cross_entropy(row[None], u[None]).backward()
assert torch.allclose(row.grad[u], slope, atol=1e-3)
row.grad[u], slope

# %% [markdown]
# For softmax followed by cross-entropy the gradient even has a form that one can read: *what was
# predicted minus what came*. Going against it, the logit of what came is pushed up by what it
# lacked, and all others are pushed down by as much as they were believed. The pushes cancel, so
# the sum over the row is zero:

# %% tags=["nbval-check-output"]
by_hand = softmax(torch.zeros(V))
by_hand[u] -= 1
assert torch.allclose(row.grad, by_hand, atol=1e-7)
f"{row.grad.sum().abs():.4f}"

# %% [markdown]
# Now take all pairs that begin with the same character, `l` say. Over all of them, the pushes on a
# logit cancel exactly where the predicted probability is the share of the pairs in which that
# character came: the relative count. So the bottom of this valley is the table that we counted.

# %% [markdown]
# ## A step
# The numbers that are learnt, here the 4,225 logits, are called **parameters**. Move every one a
# little against its slope, look again, move again: that is *gradient descent*. How far to move is
# decided by one number, the **learning rate**, times the slope. And because each look uses a
# random batch instead of the whole text, the method is called *stochastic* gradient descent, SGD.
#
# A network is then: parameters, and a rule that turns ids into logits. In torch it is written as
# an `nn.Module`, where an `nn.Parameter` is a tensor that wants a gradient, and `forward` is the
# rule; `model(ids)` calls it.

# %%
#| export
import math
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinygpt_lib._device import device_of


# %%
class Bigram(nn.Module):
    """The logits of the next token are one row of a table, the row of the token now."""

    def __init__(self, vocab_size):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(vocab_size, vocab_size))

    def forward(self, ids):  # (B, T)
        return self.table[ids]  # (B, T, V)


model = Bigram(V)
model(torch.zeros(4, 8, dtype=torch.int64)).shape

# %% [markdown]
# Ids of shape `(B, T)` come in, logits of shape `(B, T, V)` go out: at every place of every window
# one guess at what comes next. Every model in this course has this shape, so whatever trains or
# measures this one will train and measure all of them.
#
# SGD itself is one line for each parameter. We add one refinement that will help the deeper models:
# **momentum**. Instead of following the latest slope, follow a running sum of the slopes, in which
# the past fades by a factor (0.9, say) with each step. A ball rolling down does not turn with every
# pebble. With momentum 0 it is plain SGD. (`no_grad` tells torch that what follows is a move, not
# a computation to remember.)


# %%
#| export
class SGD:
    """Gradient descent with momentum: each step follows a fading sum of gradients."""

    def __init__(self, parameters, learning_rate: float, momentum: float = 0.0):
        self.parameters = list(parameters)
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.velocities = [torch.zeros_like(p) for p in self.parameters]

    def zero_grad(self) -> None:
        """Forgets the gradients of the last step; backward would add to them."""
        for p in self.parameters:
            p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Moves every parameter that has a gradient, in place."""
        for p, v in zip(self.parameters, self.velocities, strict=True):
            if p.grad is not None:
                v.mul_(self.momentum).add_(p.grad)
                p.sub_(self.learning_rate * v)


# %% [markdown]
# On a case whose answer is known: the slope of $x^2$ at 3 is 6, so one step with learning rate 0.1
# leads to 3 − 0.6 = 2.4. There the slope is 4.8; with momentum 0.5 the second step follows
# 4.8 + 0.5 · 6 = 7.8 and leads to 1.62. Torch's own SGD goes the same way.

# %% tags=["nbval-check-output"]
x, y = (torch.tensor([3.0], requires_grad=True) for _ in range(2))
path = []
for p, sgd in [(x, SGD([x], 0.1, 0.5)), (y, torch.optim.SGD([y], 0.1, momentum=0.5))]:
    for _ in range(2):
        sgd.zero_grad()
        (p**2).sum().backward()
        sgd.step()
        path.append(round(p.item(), 4))
assert path[:2] == path[2:]
path

# %% [markdown]
# Now the step that every chapter up to the last will take: predict, measure, differentiate, move.
# `flatten` turns `(B, T, V)` into a list of $B \cdot T$ rows, since a loss does not care which
# window a guess came from. `before_step` is a place for whoever wants to do something with the
# gradients before they are used. We will look at them there in chapter 05, and chapter 07 tames
# them there.

# %%
#| export
from collections.abc import Callable


def training_step(
    model: nn.Module,
    optimizer,
    inputs: Tensor,
    targets: Tensor,
    before_step: Callable[[], None] | None = None,
) -> float:
    """Predict, measure, differentiate, move; returns the loss before the move, in nats.

    inputs and targets are (B, T) ids; `before_step` runs once the gradients are there.
    """
    logits = model(inputs)  # (B, T, V)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    optimizer.zero_grad()
    loss.backward()
    if before_step is not None:
        before_step()
    optimizer.step()
    return loss.item()


# %% [markdown]
# Does it find what we counted? The learning rate is large here, 50 at the start, because the loss
# is a mean over the 4,096 tokens of a batch, and a row of the table only feels the few that stand
# on it. Towards the end it shrinks to zero, so that the noise of the random batches averages out.

# %%
optimizer = SGD(model.parameters(), learning_rate=50.0)
generator = torch.Generator().manual_seed(3)
steps = 2000
losses = []
for step in range(steps):
    optimizer.learning_rate = 50.0 * (1 - step / steps)
    batch = get_batch(train_ids, batch_size=64, block_size=64, generator=generator)
    losses.append(training_step(model, optimizer, *batch))
losses[0], losses[-1]

# %% [markdown]
# The first loss is $\ln 65$, as it must be for a table of zeros. The last one is the loss of one
# random batch: another batch would give another number. To compare models we need a measure
# without luck.

# %% [markdown]
# ## A measure without luck
# The whole validation text, every token but the first predicted exactly once. We lay windows of
# `block_size` tokens side by side; the last one is shorter. No gradients are needed. (`device_of`
# says where the model's numbers are kept, in ordinary memory or on a graphics card; the ids have to
# be in the same place.)
#
# Two helpers first. Parts of a model that behave differently while they learn (chapter 05 has one) have
# to be told that this is no training, and to get their old mode back afterwards. And many windows are
# read at once, but not so many that their logits fill the memory: `vocab_size` numbers for each token.


# %%
#| export
@contextmanager
def evaluating(model: nn.Module):
    """While it lasts the model is not training; then it is what it was before."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:  # Ctrl-C too leaves the model as it was
        model.train(was_training)


def most_tokens(model: nn.Module) -> int:
    """How many tokens to read at once: 16,384, or what makes 2**26 logits (256 MB)."""
    config = getattr(model, "config", None)  # the vocabulary is mostly small
    return 16_384 if config is None else min(16_384, 2**26 // config.vocab_size)


# %%
#| export
@torch.no_grad()
def evaluate(
    model: nn.Module,
    ids: Tensor,
    block_size: int | None = None,
    tokens_at_once: int | None = None,
) -> float:
    """Mean nats per token of ids (N,), every token but the first predicted once.

    Windows of `block_size` (default: the model's own) stand side by side, the last one
    shorter; `tokens_at_once` (default: `most_tokens`) only changes time and memory.
    ValueError for fewer than two tokens.
    """
    if block_size is None:
        block_size = model.config.block_size
    if block_size < 1:
        raise ValueError(f"block_size is {block_size}; it must be at least 1")
    n = len(ids) - 1
    if n < 1:
        raise ValueError(
            f"ids hold {len(ids)} tokens; at least 2 are needed: one to stand on "
            "and one to predict"
        )
    inputs, targets = ids[:-1].to(device_of(model)), ids[1:].to(device_of(model))
    whole = n - n % block_size  # tokens in full windows
    rows = max(1, (tokens_at_once or most_tokens(model)) // block_size)
    windows = [
        *zip(
            inputs[:whole].view(-1, block_size).split(rows),
            targets[:whole].view(-1, block_size).split(rows),
            strict=True,
        )
    ]
    if whole < n:
        windows.append((inputs[None, whole:], targets[None, whole:]))

    total = 0.0
    with evaluating(model):
        for x, y in windows:
            logits = model(x)
            total += F.cross_entropy(
                logits.flatten(0, 1).float(), y.flatten(), reduction="sum"
            ).item()
    return total / n


# %% [markdown]
# The bigram model has one character of memory, so it must not matter how the text is cut into
# windows, and the loss must be the plain mean over all pairs. For the models of the next chapters it
# will matter: the first prediction of a window has one token to go by, the last the whole window. So to
# their losses belongs a `block_size`.

# %%
learnt_val = evaluate(model, val_ids, block_size=64)
direct = F.cross_entropy(model.table[val_ids[:-1]], val_ids[1:]).item()
assert abs(learnt_val - direct) < 1e-5
assert abs(learnt_val - evaluate(model, val_ids, block_size=1000)) < 1e-5
learnt_val

# %% [markdown]
# ## Learnt equals counted
# We know the best that one character of memory can do on the training text: 2.452, by counting.
# The learnt table knows nothing of counts. It only ever saw slopes.

# %%
learnt_train = evaluate(model, train_ids, block_size=64)
assert counted_train < learnt_train < counted_train + 0.02
assert abs(learnt_val - bigram_val) < 0.02
print(f"training text:   counted {counted_train:.3f}, learnt {learnt_train:.3f}")
print(
    f"validation text: counted and smoothed {bigram_val:.3f}, learnt {learnt_val:.3f}"
)

# %% [markdown]
# On the validation text the counted table had to be smoothed, or it would have cost infinity. The learnt
# one needs nothing of the kind. A probability of exactly zero would take a logit of minus infinity,
# and 2,000 steps only go part of the way there: to stop early smooths too.

# %%
smooth = torch.tensor(losses).view(-1, 20).mean(dim=1)
fig, axes = plt.subplots(1, 2, figsize=(9, 3.2))
axes[0].plot(range(10, steps, 20), smooth, label="learnt (mean of 20 batches)")
axes[0].axhline(counted_train, color=RED, ls="--", label="counted: the floor")
axes[0].set(xlabel="step", ylabel="training loss (nats)", ylim=(2.3, 3.5))
axes[0].legend()
common = counts > 200
axes[1].loglog([1e-3, 1], [1e-3, 1], color=RED, lw=1)
axes[1].loglog(probabilities[common], softmax(model.table.detach())[common], ".", ms=3)
axes[1].set(xlabel="counted probability", ylabel="learnt probability")
show(
    fig,
    alt="Left, the training loss falls from 3.2 nearly to the dashed line at 2.45. "
    "Right, learnt against counted probabilities: nearly all are on the diagonal.",
)

# %% [markdown]
# *Left: the loss sinks towards the floor that counting gives, and ends about 0.015 above it. Right:
# each point is a pair that occurs more than 200 times, and on the line learnt equals counted;
# gradient descent has found the probabilities without ever being told. The few points below the
# line belong to rare characters such as j, z and Q, whose rows felt few pushes in 2,000 steps.*
#
# This is the most reassuring picture of the course. When the GPT of chapter 07 has a loss of 1.8,
# there will be no known best value to compare with. But it is the same step, and here we saw that
# it works.

# %% [markdown]
# ## Counting further back
# If one character of memory buys so much, why not count with more? After two characters, after
# five? The tables grow: 65 · 65 = 4,225 rows for two characters, more than a billion for five,
# almost all empty. So we keep only the rows of contexts that occur. And the danger from above
# returns with force, since most long contexts were seen once or never.
#
# What should the model say in a context of five characters that it saw only once? It should
# believe this one sighting a little, and for the rest ask what the model of *four* characters says,
# which in turn asks the one of three, and so on, down to a model $p_0$ that knows nothing and says
# 1/65. As a formula, with $c(x)$ how often $x$ followed the context, $N$ the sum of these counts,
# and a strength $s$ that says how many sightings the shorter context is worth:
#
# $$p_n(x) = \frac{c(x) + s \, p_{n-1}(x)}{N + s}$$
#
# With $N = 0$ it is the shorter model; with $N \gg s$ the counts. An **n-gram** model looks at
# $n-1$ tokens to predict the $n$-th; our bigram is $n = 2$. (It is what Bayes' rule gives to somebody
# who expects $p_{n-1}$ beforehand, with the weight of $s$ sightings: MacKay & Peto 1995, *A hierarchical
# Dirichlet language model*.)


# %%
#| export
class NGram(nn.Module):
    """Counts what follows each context of up to n-1 tokens; short ones back up long.

    ids (B, T) -> log-probabilities (B, T, vocab_size), which serve as logits.
    `strength` is how many sightings the next shorter context is worth (MacKay and
    Peto, 1995). ValueError for n, vocab_size or strength that can't work.
    """

    def __init__(self, ids: Tensor, n: int, vocab_size: int, strength: float = 10.0):
        super().__init__()
        if not 1 <= n <= len(ids):
            raise ValueError(f"n is {n}; it must lie between 1 and {len(ids)} tokens")
        if vocab_size**n > 2**63:
            raise ValueError(
                f"n is {n}; contexts of {vocab_size} tokens fit 64 bits up to n = "
                f"{int(63 / math.log2(vocab_size))}"
            )
        if not strength > 0:
            raise ValueError(f"strength is {strength}; it must be above 0")
        if len(ids) < 2:
            raise ValueError("ids hold 1 token; at least 2 are needed to count a pair")
        if ids.min() < 0 or ids.max() >= vocab_size:
            raise ValueError(
                f"ids go from {ids.min()} to {ids.max()}; a vocabulary of "
                f"{vocab_size} allows 0..{vocab_size - 1}"
            )
        self.n, self.vocab_size, self.strength = n, vocab_size, strength
        for k in range(n):  # k tokens of context
            contexts = self._codes(ids[None, :-1], k)[0, max(k - 1, 0) :]
            known, row = torch.unique(contexts, return_inverse=True)
            counts = torch.zeros(len(known), vocab_size, device=ids.device)
            following = ids[max(k, 1) :]
            ones = torch.ones(len(following), device=ids.device)
            counts.index_put_((row, following), ones, accumulate=True)
            self.register_buffer(f"known_{k}", known)
            self.register_buffer(f"counts_{k}", counts)

    def _codes(self, ids: Tensor, k: int) -> Tensor:
        """One number for the k tokens up to each place (B, T): digits in base V."""
        codes = torch.zeros_like(ids)
        for back in range(min(k, ids.shape[1])):
            codes[:, back:] += ids[:, : ids.shape[1] - back] * self.vocab_size**back
        return codes

    def forward(self, ids: Tensor) -> Tensor:
        p = torch.full((*ids.shape, self.vocab_size), 1 / self.vocab_size)
        p = p.to(ids.device)
        for k in range(self.n):
            known, counts = getattr(self, f"known_{k}"), getattr(self, f"counts_{k}")
            codes = self._codes(ids, k)
            row = torch.searchsorted(known, codes).clamp(max=len(known) - 1)
            c = counts[row] * (known[row] == codes)[..., None]  # (B, T, V)
            c[:, : max(k - 1, 0)] = 0  # too near the start to have k tokens before it
            p = (c + self.strength * p) / (c.sum(-1, keepdim=True) + self.strength)
        return p.log()


# %% [markdown]
# Each context of $k$ tokens becomes a single whole number, its tokens read as digits in base 65,
# so that finding a context is finding a number in a sorted list. (`register_buffer` is for tensors
# that belong to a module but are not learnt.) A case that can be checked by
# hand: in `abab`, with strength 1, what follows `b`? Seen once: `a`. The unigram model has counted
# the followers `b`, `a`, `b`, so it says $p_1(a) = (1 + \tfrac12)/(3 + 1) = 0.375$, and with it
# $p_2(a) = (1 + 0.375)/(1 + 1) = 0.6875$.

# %% tags=["nbval-check-output"]
abab = torch.tensor([0, 1, 0, 1])
after_b = NGram(abab, n=2, vocab_size=2, strength=1.0)(torch.tensor([[1]])).exp()
assert torch.allclose(after_b[0, 0], torch.tensor([0.6875, 0.3125]))
after_b

# %% [markdown]
# And for $n = 2$ with next to no strength it is the table of counts that we started with:

# %%
pair_model = NGram(train_ids, n=2, vocab_size=V, strength=1e-6)
assert abs(evaluate(pair_model, train_ids, 4096) - counted_train) < 1e-4

# %% [markdown]
# `strength` has to be chosen, and not on the validation text: a number that was picked because it
# looks good there no longer tells how good the model is on text that nobody picked for. So we hold
# out the last tenth of the *training* text for the choice.

# %%
fit_ids, choose_ids = split(train_ids)
chosen = {}
for strength in (1, 3, 10, 30, 100):
    chosen[strength] = evaluate(NGram(fit_ids, 6, V, strength), choose_ids, 4096)
chosen

# %% [markdown]
# With a small strength the model trusts single sightings too much, with a large one too little; 30
# is best. (These losses are for another piece of text, so don't compare them with the ones below.)
# Now every $n$ from 1 to 7, on the validation text and on a text that the model has counted:

# %%
strength = min(chosen, key=chosen.get)
assert strength == 30
orders = range(1, 8)
train_curve, val_curve = [], []
for n in orders:
    ngram = NGram(train_ids, n, V, strength)
    train_curve.append(evaluate(ngram, train_ids[:100_000], 4096))
    val_curve.append(evaluate(ngram, val_ids, 4096))
{n: round(loss, 3) for n, loss in zip(orders, val_curve, strict=True)}

# %% [markdown]
# The old numbers are in the new row: $n = 1$ is the 3.347 of chapter 01, and $n = 2$ our bigram,
# smoothed in another way.

# %%
assert abs(val_curve[0] - 3.347) < 0.001 and abs(val_curve[1] - bigram_val) < 0.01
fig, ax = plt.subplots(figsize=(6.5, 3.4))
ax.plot(orders, val_curve, "o-", color=BLUE, label="validation text")
ax.plot(orders, train_curve, "s--", color=GREEN, label="training text, first 100,000")
ax.set(xlabel="n (context of n - 1 characters)", ylabel="loss (nats a character)")
ax.legend()
show(
    fig,
    alt="Loss against n from 1 to 7: the training loss keeps falling, the "
    "validation loss flattens out from n = 5 on at about 1.6 nats.",
)

# %% [markdown]
# *With every character of context the model knows the training text better by heart. On the
# validation text the gain shrinks to almost nothing.* Why? How often was the context at each place of
# the validation text seen in the training text, and how often more than 30 times, which is when a row is
# believed more than the shorter one?

# %%
n = len(train_ids)
for k in (2, 4, 6):
    rows = Counter(text[i : i + k] for i in range(n - k + 1))
    seen = torch.tensor([rows[text[i : i + k]] for i in range(n, len(text) - k)])
    new, often = (seen == 0).float().mean(), (seen > 30).float().mean()
    print(f"{k} characters: {new:.0%} never seen, {often:.0%} more than 30 times")

# %% [markdown]
# Of the contexts of six characters a fifth is new, and more than half was seen too seldom to say much.
# A row that does not exist can say nothing.
#
# Look at the height of the blue curve, though. Counting, done with care, reaches about 1.59 nats
# a character, better than any compressor of chapter 01, in seconds and without a single step of
# learning. This is the number that a GPT has to justify itself against, and it is a harder
# opponent than it looks: the GPT of chapter 07 learns for a minute and ends at about 1.8. To pass
# 1.59 takes a larger model and a longer run.

# %%
best_ngram = min(val_curve)
assert 1.57 < best_ngram < 1.61
start = tokenizer.encode("\n")[None]
for _ in range(300):
    p = ngram(start[:, -6:])[0, -1].exp()
    start = torch.cat(
        [start, torch.multinomial(p, 1, generator=generator)[None]], dim=1
    )
print(tokenizer.decode(start))

# %% [markdown]
# Words, mostly. What it cannot do is to carry anything further than six characters: no sentence
# knows how it began. And it cannot use likeness. It saw `the king` and `the queen` in many
# places, but what it learnt about one never helps with the other; for a table, two contexts that
# end in different characters have nothing in common. The chapters that follow build a model whose
# contexts are not rows of a table but points in a space, where near things can share what they know.

# %% [markdown]
# ## Summary
# One character of memory takes the loss from 3.35 to 2.48 nats. Counting gives the table that is
# best on the training text, and gradient descent, which sees nothing but slopes, finds it to within
# 0.02 nats. The step is the same for every model to come: predict, measure with softmax and
# cross-entropy, differentiate, move. Counting with up to six characters of context reaches about
# 1.59 and gains little from more, as most long contexts are new or rare. The next chapter looks further
# back without a table.

# %% [markdown]
# ## Exercises
# **1.** How many of the 65³ possible contexts of three characters occur in the training text (with
# a character after them)? What does that say about tables?
# ```python
# assert occurring == len(ngram.known_3) and occurring / V**3 < 0.05
# ```
# **2.** Train `Bigram` with a learning rate 20 times as large, 1000, and watch the loss. Why does
# it not just learn faster?
# ```python
# assert max(wild[100:]) > 4.17
# ```
# **3.** `before_step` can look at gradients. Record the length of the gradient (the root of the sum
# of its squares, `.norm()`) over the first 500 steps of a fresh `Bigram` and show that it shrinks.
# Why not to zero?
# ```python
# assert sum(lengths[-50:]) < 0.7 * sum(lengths[:50])
# ```

# %% [markdown]
# ## Solutions

# %% jupyter={"source_hidden": true}
triples = {tuple(t) for t in train_ids[:-1].unfold(0, 3, 1).tolist()}
occurring = len(triples)
assert occurring == len(ngram.known_3) and occurring / V**3 < 0.05
occurring / V**3

# %% [markdown]
# Only 4 % of the possible contexts of three characters ever occur, and each further character
# makes the share smaller still: nearly all of a large table would stay empty.

# %% jupyter={"source_hidden": true}
torch.manual_seed(0)
wild_model = Bigram(V)
wild_optimizer = SGD(wild_model.parameters(), learning_rate=1000.0)
wild = []
for _ in range(200):
    batch = get_batch(train_ids, 64, 64, generator)
    wild.append(training_step(wild_model, wild_optimizer, *batch))
assert max(wild[100:]) > 4.17
max(wild)

# %% [markdown]
# The slope says which way is down *here*. A step that is too long overshoots to the other side of
# the valley, higher up than before, and from there the next one does the same.

# %% jupyter={"source_hidden": true}
fresh = Bigram(V)
fresh_optimizer = SGD(fresh.parameters(), learning_rate=50.0)
lengths = []
for _ in range(500):
    batch = get_batch(train_ids, 64, 64, generator)
    training_step(
        fresh,
        fresh_optimizer,
        *batch,
        before_step=lambda: lengths.append(fresh.table.grad.norm().item()),
    )
assert sum(lengths[-50:]) < 0.7 * sum(lengths[:50])
lengths[0], lengths[-1]

# %% [markdown]
# It shrinks, but not to zero: what is left is the noise of the batches, which point a little
# elsewhere each time, even at the bottom of the valley.
