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
# *An hour to read, twenty seconds to run. Needs chapter 01 and slopes from school calculus. Trains
# a table of 4,225 numbers, in two seconds.*
#
# Where we are: counting characters costs 3.35 nats per character. Now a model looks at what came
# before, at one single character, and we build it twice. First we count, and can say exactly what
# the best possible loss is. Then the same table is *learned*, with the method that trains every
# network in this course.
#
# The number to beat is 3.35. The opponent is bzip2, at 1.66.

# %%
from collections import Counter
from math import log

import torch

from course import BLUE, GREEN, ORANGE, PROMPT, RED, plt, show, show_ladder
from tinygpt_lib import load_shakespeare
from tinygpt_lib.text import CharTokenizer, get_batch, split

text = load_shakespeare()
train_text, val_text = split(text)
tokenizer = CharTokenizer.from_text(text)
V = tokenizer.vocab_size
train_ids, val_ids = split(tokenizer.encode(text))

# %% [markdown]
# ## Counting pairs
# In the word `hello`, what follows an `l`? Once another `l`, once an `o`. So after an `l` we expect
# either, with probability 1/2. That is all a **bigram** model does: it keeps one count for every
# pair of neighbours.
#
# For a whole text the counts fill a table, with a row for the character now and a column for the
# one that follows.


# %% tags=["nbval-check-output"]
def count_pairs(ids):
    """How often each token (row) is followed by each token (column)."""
    counts = torch.zeros(V, V)
    for now, following in zip(ids[:-1].tolist(), ids[1:].tolist(), strict=True):
        counts[now, following] += 1
    return counts


hello = count_pairs(tokenizer.encode("hello"))
after_l = hello[tokenizer.number["l"]]
after_l[tokenizer.encode("lo")], hello.sum()

# %% [markdown]
# A million pairs take this loop a while. Torch does it in one call: `index_put_` puts a 1 at each
# place `(now, following)`, and with `accumulate=True` the ones add up. The last underscore says
# that it changes the tensor itself.


# %% tags=["nbval-check-output"]
def count_pairs(ids):
    ones = torch.ones(len(ids) - 1)
    return torch.zeros(V, V).index_put_((ids[:-1], ids[1:]), ones, accumulate=True)


assert torch.equal(count_pairs(tokenizer.encode("hello")), hello)
counts = count_pairs(train_ids)
q, u = tokenizer.encode("qu")
f"after q: u {counts[q, u]:.0f} times, others {counts[q].sum() - counts[q, u]:.0f}"

# %% [markdown]
# Divide each row by its sum, and it holds the probabilities of what comes next. `keepdim=True`
# leaves the 65 sums standing as a column, so that each row is divided by its own.

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
    "brightest at q then u, v then e, z then e; bright in the column of the space.",
)

# %% [markdown]
# *Three cells reach the end of the scale, 0.6 and more: q → u, v → e and z → e. In the last column,
# a space follows d and y about every second time.*

# %% [markdown]
# ## What it costs
# The loss is the mean of $-\ln p$ over all pairs, and each $p$ is one look-up in the table.
# Indexing with two lists picks one entry for each pair: the row from the first list, the column
# from the second. First, the text that we counted:


# %%
def table_loss(table, ids):
    """Mean nats a token, if each row of the table says what follows."""
    return -table[ids[:-1], ids[1:]].log().mean().item()


counted_train = table_loss(probabilities, train_ids)
counted_train

# %% [markdown]
# No other table of bigrams has a smaller loss on the text that was counted. Let $f_i$ be the
# counted shares of one row. Other chances $p_i$ change its loss by $-\sum_i f_i \ln (p_i / f_i)$,
# summed over the characters that occur. Since $\ln x \le x - 1$, that is at least
# $\sum_i (f_i - p_i) = 1 - \sum_i p_i$, which can't be negative. Whatever we learn later with one
# character of memory, on this text it can't get below 2.452. And on the validation text?

# %% tags=["nbval-check-output"]
times = {
    name: (train_text.count(name), val_text.count(name)) for name in ("SP", "PROSPERO")
}
table_loss(probabilities, val_ids), times

# %% [markdown]
# Infinite! Some pairs of the validation text never occur in the training text. `SP` is one: all 63
# of its occurrences are in `PROSPERO`, who speaks only in the last tenth. The table calls it
# impossible, and the price of being certain and wrong is infinite.
#
# *Never seen* must not mean *impossible*. The oldest cure is **smoothing**: add a small constant to
# every count. But how much?
#
# One way is forbidden, here and later: trying constants on the validation text. The loss of the
# best constant would no longer tell us what the model costs on new text. Where a chapter breaks
# this rule, it says so. We hold out the last tenth of the *training* text, count on the rest, and
# choose there.


# %%
def smooth(counts, constant):
    return (counts + constant) / (counts + constant).sum(dim=1, keepdim=True)


fit_ids, choose_ids = split(train_ids)
tried = {
    constant: table_loss(smooth(count_pairs(fit_ids), constant), choose_ids)
    for constant in (0.001, 0.01, 0.1, 1, 10)
}
tried

# %%
constant = min(tried, key=tried.get)
smoothed = smooth(counts, constant)
bigram_val = table_loss(smoothed, val_ids)
assert 2.47 < bigram_val < 2.50
constant, bigram_val

# %% [markdown]
# From 3.35 down to 2.48 nats, by looking at one character.
#
# People often quote $e^{\text{loss}}$, the **perplexity**: the number of equally likely characters
# that would be just as hard to predict. It was 28 with chapter 01's shares and is 12 now.

# %% [markdown]
# ## Writing with it
# A table of probabilities can write. Take the row of the last character, draw the next one with the
# row's probabilities (`torch.multinomial` does that), and go on from there:

# %%
generator = torch.Generator().manual_seed(2)

out = tokenizer.encode(PROMPT).tolist()
for _ in range(200):
    out.append(torch.multinomial(smoothed[out[-1]], 1, generator=generator).item())
print(tokenizer.decode(out))

# %% [markdown]
# Unlike in chapter 01, vowels and consonants mostly take turns, capitals begin lines, and a space
# or a line break follows a comma. The limit shows, too. After an `l` another `l` is likely, and the
# model can't know that it has just written two.

# %% [markdown]
# ## From scores to probabilities
# Now we want to *learn* the table. A network produces any numbers at all, one for each possible
# next token, called **logits**: the larger, the likelier. To become probabilities they have to be
# positive and sum to one. $e^z$ is positive whatever $z$ is, and dividing by the sum does the rest.
# This is the **softmax**:
#
# $$p_i = \frac{e^{z_i}}{\sum_j e^{z_j}}$$


# %%
def softmax(z):
    """Probabilities from logits, over the last dimension."""
    return z.exp() / z.exp().sum(dim=-1, keepdim=True)


z = torch.tensor([0.0, log(2), log(5)])
softmax(z)

# %% [markdown]
# $e^z$ is 1, 2 and 5 here, so the probabilities are 1/8, 2/8 and 5/8. Only differences between
# logits count: add 100 to all three, and every $e^z$ grows by the same factor, which cancels. On
# paper, that is: a 32-bit floating-point number can't hold $e^{1000}$. It becomes infinity, and
# infinity divided by infinity is not a number:

# %% tags=["nbval-check-output"]
softmax(torch.tensor([0.0, 1000.0]))

# %% [markdown]
# Since only differences count, we may subtract the largest logit first. And since the loss needs
# $\ln p$ anyway, we take the logarithm by hand:
#
# $$\ln p_i = z_i - \ln \sum_j e^{z_j}$$
#
# This never takes the logarithm of a probability that was rounded to zero.


# %% tags=["nbval-check-output"]
def log_softmax(z):
    """The logarithms of the softmax, over the last dimension."""
    z = z - z.max(dim=-1, keepdim=True).values
    return z - z.exp().sum(dim=-1, keepdim=True).log()


assert torch.allclose(log_softmax(z).exp(), softmax(z))
log_softmax(torch.tensor([0.0, 1000.0]))

# %% [markdown]
# The loss of a batch is the mean of $-\ln p$ at the targets. Torch calls it `cross_entropy`, and
# ours has to agree.

# %%
import torch.nn.functional as F


def cross_entropy(logits, targets):
    """Mean nats of targets (N,) under logits (N, V)."""
    return -log_softmax(logits)[torch.arange(len(targets)), targets].mean()


logits = torch.randn(100, V, generator=generator)
targets = torch.randint(V, (100,), generator=generator)
torchs = F.cross_entropy(logits, targets)
assert torch.allclose(cross_entropy(logits, targets), torchs, atol=1e-6)
cross_entropy(torch.zeros(100, V), targets)

# %% [markdown]
# The last line is a case whose answer we know: equal chances cost $\ln 65 = 4.174$.

# %% [markdown]
# ## Which way is down?
# Take a single one of the 65 · 65 logits, that of `u` after `q`, with all others at zero. Vary it,
# and watch the loss of this one pair. `[None]` makes a batch of one.

# %%
row = torch.zeros(V)


def loss_at(z):
    """Loss for the pair q -> u when u's logit is z and the other 64 are zero."""
    changed = row.clone()
    changed[u] = z
    return F.cross_entropy(changed[None], u[None])


zs = torch.linspace(-2, 10, 100)
losses = torch.stack([loss_at(z) for z in zs])
slope = (loss_at(0.01) - loss_at(-0.01)) / 0.02

fig, ax = plt.subplots(figsize=(6, 3))
ax.plot(zs, losses, label="loss")
tangent = loss_at(0.0) + slope * zs[:50]
ax.plot(zs[:50], tangent, "--", color=RED, label=f"slope at 0: {slope:.3f}")
ax.set(xlabel="logit of u after q", ylabel="loss (nats)")
ax.legend()
show(
    fig,
    alt="The loss falls from 6.2 as the logit grows, steeply first, and is flat near 0 "
    "from 8 on; the tangent at zero has a slope of about minus 0.98.",
)

# %% [markdown]
# *The slope says which way is down and how steep it is. At 0 the loss falls by 0.985 for each unit
# that the logit grows. Further right there is less and less to gain: `u` is expected already.*
#
# We found this slope by trying, a little to the left and a little to the right: two passes for one
# number. With billions of numbers that is hopeless. There is a way to get all slopes at once.

# %% [markdown]
# ## Backward by hand
# School calculus knows the slope of each small step of a computation. The rest is bookkeeping. The
# smallest example has one number, two intermediate results and a loss:
#
# ```
#            ┌── · 3 ──>  a = 6 ──┐
#    x = 2 ──┤                    ├── a · b ──>  loss = 24
#            └── ² ────>  b = 4 ──┘
# ```
#
# How much does the loss change when $x$ grows a little? Walk from right to left, and at each node
# write down the slope of the loss there.
#
# - The loss is $a \cdot b$. If $a$ grows a little, the loss grows by $b = 4$ times as much. So the slope
#   at $a$ is 4, and in the same way the slope at $b$ is $a = 6$.
# - Slopes in a row multiply. From $x$ to $a$ the slope is 3: along the upper path, $x$ moves the loss by
#   $3 \cdot 4 = 12$. From $x$ to $b$ it is $2x = 4$: along the lower path, by $4 \cdot 6 = 24$.
# - $x$ acts along both paths at once, and **where paths meet, their slopes add**: $12 + 24 = 36$.

# %%
x = 2.0
a, b = 3 * x, x**2
loss = a * b

d_loss = 1.0
d_a, d_b = d_loss * b, d_loss * a
d_x = d_a * 3 + d_b * 2 * x
d_a, d_b, d_x

# %% [markdown]
# It is right: the loss is $3x^3$, with the slope $9x^2 = 36$. This is the whole of
# **backpropagation**: multiply along a path, add where paths meet, and go from the end to the
# start, so that everything is computed once.
#
# Torch does it for us: it remembers every use of a tensor made with `requires_grad=True`, and
# `loss.backward()` walks back through that memory. It leaves the slopes in `.grad`, for
# intermediate results only when `retain_grad` asks for them.

# %%
x = torch.tensor(2.0, requires_grad=True)
a, b = 3 * x, x**2
a.retain_grad(), b.retain_grad()
loss = a * b
loss.backward()
assert (a.grad, b.grad, x.grad) == (d_a, d_b, d_x)
x.grad

# %% [markdown]
# Networks are full of matrix products, $y = x W$, with a row of $x$ and of $y$ for each token. Let
# $g$, `y.grad` below, hold the slopes at $y$. An input acts through *every* number in its row of
# $y$. If its weights are 3 and 4, and the slopes there 1 and 10, its paths add up to
# $1 \cdot 3 + 10 \cdot 4 = 43$. The product $x W$ runs down the columns of $W$; this sum runs along a row, a
# column of $W^\top$. So the slopes at $x$ are $g W^\top$. The weight $W_{ij}$ takes input $i$ to
# output $j$ in every row, and its slope there is that input. Its paths add up to column $i$ of $x$
# times column $j$ of $g$. So the slopes at $W$ are $x^\top g$:

# %%
x, W = torch.randn(5, 3), torch.randn(3, 2)
x.requires_grad_(), W.requires_grad_()
y = x @ W
y.retain_grad()
(y**2).sum().backward()  # any loss will do

assert torch.allclose(W.grad, x.T @ y.grad)
assert torch.allclose(x.grad, y.grad @ W.T)

# %% [markdown]
# Now our real loss. If the next token is $t$, it is $\ln \sum_j e^{z_j} - z_t$. Here, too, paths
# meet, as $z_t$ appears twice. Through the second term its slope is $-1$. Through the logarithm of
# the sum three slopes multiply: $1 / \sum_j e^{z_j}$ for the logarithm, 1 for the sum, $e^{z_t}$
# for the exponential. The product is exactly $p_t$. The two paths add to $p_t - 1$. Any other logit
# $z_i$ acts through the sum alone and has the slope $p_i$. So all slopes together, the
# **gradient**, are *the prediction minus the truth*: the probabilities, less 1 at the token that
# came.

# %%
row.requires_grad_()
F.cross_entropy(row[None], u[None]).backward()

by_hand = softmax(torch.zeros(V))
by_hand[u] -= 1
assert torch.allclose(row.grad, by_hand, atol=1e-7)
assert torch.allclose(row.grad[u], slope, atol=1e-3)
row.grad[u], row.grad[q], row.grad.sum().abs() < 1e-6

# %% [markdown]
# The 0.985 is back, and the slopes add up to zero. A step against the gradient raises the logit of
# the token that came in proportion to $1 - p$, and lowers every other in proportion to its own $p$.
# Here are the logits of `u` and `q`, the chance of `u`, and the loss, before and after a step of 1:

# %%
with torch.no_grad():
    for z in (row, row - 1.0 * row.grad):
        p = softmax(z)[u]
        print(f"logits {z[u]:.3f} {z[q]:.3f}, chance {p:.3f}, loss {-p.log():.2f}")

# %% [markdown]
# Over the whole text, the pushes on a logit cancel exactly where its probability is its counted
# share. So the bottom of this valley is where we have already been.

# %% [markdown]
# ## A step
# The numbers that are learned, here the 4,225 logits, are called **parameters**. *Gradient descent*
# moves each one against its slope, by the slope times one number, the **learning rate**, then looks
# again. Since each look takes a random batch instead of the whole text, the method is called
# *stochastic* gradient descent, SGD.
#
# In torch a network is an `nn.Module`: parameters, and a rule that turns ids into logits. An
# `nn.Parameter` is a tensor that wants a gradient, and `forward` is the rule, which `model(ids)`
# calls.

# %%
#| export
import torch
import torch.nn.functional as F
from torch import Tensor, nn


# %%
class Bigram(nn.Module):
    """The logits of the next token are one row of a table: that of the token now."""

    def __init__(self, vocab_size):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(vocab_size, vocab_size))

    def forward(self, ids):  # (B, T)
        return self.table[ids]  # (B, T, V)


model = Bigram(V)
model(torch.zeros(4, 8, dtype=torch.int64)).shape

# %% [markdown]
# Ids `(B, T)` go in, logits `(B, T, V)` come out: at each place of each window a guess at what
# comes next. Every model of this course does the same, so whatever trains or measures this one
# serves them all.
#
# SGD itself is one line per parameter. We add one refinement, **momentum**. Instead of the latest
# slope, follow a running sum of slopes in which everything old is multiplied by `momentum` at each
# step. With momentum 0 it is plain SGD. With 0.9, a slope that stays the same adds up to
# $1 + 0.9 + 0.9^2 + \dots = 10$ times itself. `no_grad` tells torch that a move is not a
# computation to remember.


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
            #| hole
            p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Moves every parameter that has a gradient, in place."""
        #| hole: new velocities (they fade by `momentum`), then the move
        for p, v in zip(self.parameters, self.velocities, strict=True):
            if p.grad is not None:
                v.mul_(self.momentum).add_(p.grad)
                p.sub_(self.learning_rate * v)


# %% [markdown]
# On paper: the slope of $x^2$ at 3 is 6, so a step with learning rate 0.1 leads to 2.4. There the
# slope is 4.8. With momentum 0.5 the second step follows 4.8 + 0.5 · 6 = 7.8 and leads to 2.4 −
# 0.78 = 1.62. Torch's own SGD goes the same way:

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
# And here is the step that every chapter will take. `flatten` turns `(B, T, V)` into a list of
# $B \cdot T$ rows, because the loss doesn't care which window a guess came from.


# %%
#| export
def training_step(
    model: nn.Module, optimizer, inputs: Tensor, targets: Tensor
) -> float:
    """Predict, measure, differentiate, move; the loss before the move, in nats."""
    #| hole: predict and measure
    logits = model(inputs)  # (B, T, V)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    #| hole: the gradients of this batch alone
    optimizer.zero_grad()
    loss.backward()
    #| hole: move; return the loss as a number
    optimizer.step()
    return loss.item()


# %% [markdown]
# <!-- hints: training_step
# Four lines of the loop that you have seen by hand: logits, loss, gradients, step.
#
# `F.cross_entropy` wants a list of rows and a list of targets: `logits.flatten(0, 1)` and
# `targets.flatten()`. `backward` *adds* to the gradients that are there, so clear them first.
#
# `.item()` makes a number of a tensor with one entry. Which loss is asked for, before or after?
# -->
#
# A thousand steps. The learning rate is large, 20 at the start, and with the momentum it acts
# like 200. It has to be: the loss is a mean over the 4,096 tokens of a batch, and only one in 65 of
# them, on average, uses any one row of the table. So the slopes of a row are small. From there
# the rate falls in a straight line to zero, so that the noise of the batches averages out.

# %%
optimizer = SGD(model.parameters(), learning_rate=20.0, momentum=0.9)
generator = torch.Generator().manual_seed(3)
steps, losses = 1000, []
for step in range(steps):
    optimizer.learning_rate = 20.0 * (1 - step / steps)
    batch = get_batch(train_ids, batch_size=64, block_size=64, generator=generator)
    losses.append(training_step(model, optimizer, *batch))
losses[0], losses[-1]

# %% [markdown]
# The first loss is $\ln 65$, as it must be for a table of zeros. The last one is that of a single
# batch.

# %% [markdown]
# ## Measuring on the whole text
# To compare models, predict every token of the validation text but the first exactly once. Lay
# windows of `block_size` tokens side by side; the last one may be shorter.


# %%
@torch.no_grad()
def plain_evaluate(model, ids, block_size):
    total = 0.0
    for start in range(0, len(ids) - 1, block_size):
        window = ids[start : start + block_size + 1]
        logits = model(window[None, :-1])[0]  # (T, V)
        total += F.cross_entropy(logits, window[1:], reduction="sum").item()
    return total / (len(ids) - 1)


learned_val = plain_evaluate(model, val_ids, block_size=64)
learned_val

# %% [markdown]
# This model needs one character of memory, so it can't matter how the text is cut. For later models
# it will: the first prediction of each window has one token to go by, the last one has the whole
# window. A loss therefore always comes with its `block_size`.
#
# The library's `evaluate` computes the same. `windows_of` hands over many windows at a time, and
# `evaluating` switches off what is only for training (chapter 05).

# %%
#| export
from tinygpt_lib.basics.evaluation import evaluating, windows_of


@torch.no_grad()
def evaluate(
    model: nn.Module,
    ids: Tensor,
    block_size: int | None = None,
    tokens_at_once: int | None = None,
) -> float:
    """Mean nats per token of ids (N,), every token but the first predicted once.

    Windows of `block_size` (default: the model's own) stand side by side, the last one
    shorter; `tokens_at_once` only changes time and memory. ValueError for N < 2.
    """
    total = 0.0
    with evaluating(model):
        for x, y in windows_of(model, ids, block_size, tokens_at_once):
            #| hole: add up the losses of all tokens of this batch
            logits = model(x).flatten(0, 1).float()
            total += F.cross_entropy(logits, y.flatten(), reduction="sum").item()
    #| hole: their mean
    return total / (len(ids) - 1)


# %% [markdown]
# <!-- hints: evaluate
# The last window is shorter. So a mean of means would count its tokens too much: add up, divide once.
#
# `F.cross_entropy(..., reduction="sum")` adds up. How many of the N tokens are predicted?
# -->
#
# However it is cut, the same number comes out:

# %%
assert abs(evaluate(model, val_ids, 64) - learned_val) < 1e-5
assert abs(evaluate(model, val_ids, 1000) - learned_val) < 1e-5

# %% [markdown]
# ## Learned equals counted
# How close to the floor of 2.452 does the learned table come? It was never shown a count, only
# slopes.

# %%
learned_train = evaluate(model, train_ids, block_size=64)
assert counted_train < learned_train < counted_train + 0.02
assert abs(learned_val - bigram_val) < 0.02
print(f"training text:   counted {counted_train:.3f}, learned {learned_train:.3f}")
print(f"validation text: counted {bigram_val:.3f}, learned {learned_val:.3f}")

# %%
table = softmax(model.table.detach())
common, rare = counts > 200, (counts > 0) & (counts <= 200)
fig, axes = plt.subplots(1, 2, figsize=(9, 3.2))
axes[0].plot(range(5, steps, 10), torch.tensor(losses).view(-1, 10).mean(dim=1))
axes[0].axhline(counted_train, color=RED, ls="--", label="counted: the floor")
axes[0].set(xlabel="step", ylabel="training loss (nats)", ylim=(2.3, 3.5))
axes[0].legend()
axes[1].loglog(probabilities[rare], table[rare], ".", ms=2, color=ORANGE)
axes[1].loglog(probabilities[common], table[common], ".", ms=3, color=BLUE)
axes[1].loglog([1e-5, 1], [1e-5, 1], color=RED, lw=1)
axes[1].set(xlabel="counted probability", ylabel="learned probability")
show(
    fig,
    alt="Left, the training loss falls from 3.4 to the dashed line at 2.45. Right, "
    "learned against counted probabilities: blue points of common pairs are on the "
    "diagonal; orange points of rare ones are above it at the left and below it further right.",
)

# %% [markdown]
# *Left: the loss (each point is the mean of ten batches) sinks to the floor that counting gives.
# Right: every point is a pair, blue if it occurs more than 200 times. On the line, learned equals
# counted: gradient descent has found the probabilities of common pairs. Of the rare ones (orange),
# the smallest are too large: all began at 1/65 and haven't been pushed down far enough. Larger ones
# are mostly a little too small, most of all in rows that few pushes have reached.*
#
# The counted table had to be smoothed. The learned one gives every pair a chance, because a probability
# of zero would take a logit of minus infinity. How much does it give to pairs that never occur?

# %%
rows = counts.sum(dim=1) > 1000
never = (table * (counts == 0))[rows].sum(dim=1).mean()
f"never seen: {never:.1%} of a row"

# %% [markdown]
# The push that lowers a logit is proportional to its own $p$, so it gets weaker and weaker, and $p$
# never arrives at zero. Stopping early is a kind of smoothing, but a crude one.

# %% [markdown]
# ## A better opponent
# One character of memory is little, and counting can do better. The first appendix counts strings
# of up to eight characters. Where a history is rare, it relies on a shorter one. With six
# characters of memory this costs 1.59 nats on the validation text, in seconds and without a single
# step of learning. That is below bzip2's 1.66, if not its 1.57 in one block. **These 7-grams are
# the opponent from now on.** They give probabilities, as our models do. No model of Part I gets
# there; a larger one in chapter 12 does.
#
# But a seventh character gains next to nothing. Long histories are mostly new or rare, and a table
# has no notion of likeness. What it learned after `the king` is almost no use after `the queen`.
# The next chapters build a model whose histories are points in a space, where neighbours can share
# what they know.

# %%
show_ladder("bigram", bigram_val, "7-grams")

# %% [markdown]
# *One rung further down.*

# %% [markdown]
# ## Summary
# One character of memory takes the loss from 3.35 to 2.48 nats. Counting gives the table that is
# best on the training text, and gradient descent comes within 0.008 nats of it. Slopes multiply
# along a path and add where paths meet; for softmax with cross-entropy the result is *the
# prediction minus the truth*. Counting with six characters of memory reaches 1.59. The next chapter
# looks further back without a table.

# %% [markdown]
# ## Exercises
# `make learn CHAPTER=02` makes a workbook that checks what you write here, and
# [the solutions](solutions/02_bigram.ipynb) have a notebook of their own.
#
# **1.** Compute the gradient of `F.cross_entropy(logits, targets)` by hand, for logits of shape
# `(N, V)`, without `backward`. Mind that the loss is a *mean*.
#
# **2.** Record the length of the gradient after each step (the root of the sum of its squares,
# `.norm()`), for a model with one table. Then train a fresh `Bigram` for 300 steps at a constant learning
# rate of 20, without momentum. The gradient shrinks, but not to zero. What happens to the part that is
# left when each batch has eight times as many windows, and what does that say about where it comes from?
#
# **3.** What share of all $V^k$ possible histories of $k$ characters occurs in a text with $V$ different
# ones? Look at it for the training text. What does that say about tables?

# %% [markdown]
# ## Appendix: counting further back
# With five characters of memory a table has more than a billion rows, nearly all of them empty. So
# we keep only what occurs: Python's `Counter` counts every string of up to eight characters.
#
# What should the model say after five characters that it has seen together only once? It should
# trust that sighting a little, and otherwise rely on the model with *four* characters of memory,
# that one on the model with three, and so on, down to $P_0$, which knows nothing and says 1/65. Let
# $N(h)$ be how often anything followed the history $h$, and $N(hc)$ how often the character $c$
# did. A strength $s$ says how many sightings the shorter memory is worth:
#
# $$P_n(c) = \frac{N(hc) + s \, P_{n-1}(c)}{N(h) + s}$$
#
# With $N(h) = 0$ that is the shorter model; with $N(h)$ far above $s$ it is the counts. A model
# that predicts the $n$-th token from $n - 1$ is called an **n-gram** model. Our bigram is $n = 2$.
#
# On paper: count the text `abab` over the alphabet `a`, `b`, with $s = 1$ and $P_0 = 1/2$. How
# likely is an `a` after `ab`? The last `ab` has nothing behind it and doesn't count.
#
# | $n$ | history | $N(h)$ | $N(ha)$ | $P_n(a)$ |
# |---|---|---|---|---|
# | 1 | none | 4 | 2 | (2 + 1/2) / (4 + 1) = 0.5 |
# | 2 | `b` | 1 | 1 | (1 + 0.5) / (1 + 1) = 0.75 |
# | 3 | `ab` | 1 | 1 | (1 + 0.75) / (1 + 1) = 0.875 |


# %%
class Counts:
    """What the formula needs: how often each string of up to n characters occurs."""

    def __init__(self, text, n):
        self.text, self.n = text, n
        self.times = Counter()
        for k in range(n + 1):  # strings of k characters
            self.times.update(text[i : i + k] for i in range(len(text) - k + 1))

    def chances(self, past, c, strength, p):
        """P_1, ..., P_n of the character c after the past; p is P_0."""
        answers = []
        for k in range(min(self.n, len(past) + 1)):  # k characters of memory
            h = past[len(past) - k :]
            N = self.times[h]
            if self.text.endswith(h):
                N -= 1  # nothing follows the last one
            p = (self.times[h + c] + strength * p) / (N + strength)
            answers.append(p)
        return answers


Counts("abab", 3).chances("ab", "a", strength=1, p=1 / 2)

# %% [markdown]
# As on paper. Both $s$ and $n$ have to be chosen, again on the end of the training text.


# %%
def ngram_losses(counted, text, strength):
    """Nats a character for every n from 1 up."""
    totals = [0.0] * counted.n
    for i in range(counted.n, len(text)):
        past = text[i - counted.n + 1 : i]
        for n, p in enumerate(counted.chances(past, text[i], strength, 1 / V)):
            totals[n] -= log(p)
    return [total / (len(text) - counted.n) for total in totals]


fit_text, choose_text = split(train_text)
fitted = Counts(fit_text, 8)
tried = {s: ngram_losses(fitted, choose_text, s) for s in (3, 10, 30, 100)}
for s, curve in tried.items():
    print(f"s = {s:3}, n = 4 to 8:", *(f"{loss:.3f}" for loss in curve[3:]))

# %% tags=["nbval-check-output"]
strength = min(tried, key=lambda s: min(tried[s]))
n = tried[strength].index(min(tried[strength])) + 1
strength, n

# %% [markdown]
# A small strength trusts single sightings too much, a large one too little. Best are 30 and
# $n = 7$. Here is every $n$ at that strength, on the validation text and on a piece of the counted text.

# %%
counted = Counts(train_text, 8)
val_curve = ngram_losses(counted, val_text, strength)
train_curve = ngram_losses(counted, train_text[:100_000], strength)
assert abs(val_curve[0] - 3.347) < 0.002 and abs(val_curve[1] - bigram_val) < 0.01

fig, ax = plt.subplots(figsize=(6.5, 3.4))
ax.plot(range(1, 9), val_curve, "o-", color=BLUE, label="validation text")
ax.plot(range(1, 9), train_curve, "s--", color=GREEN, label="counted text")
ax.set(xlabel="n (memory of n - 1 characters)", ylabel="loss (nats per character)")
ax.legend()
show(
    fig,
    alt="Loss against n from 1 to 8: on the counted text it keeps falling, to about 1; "
    "on the validation text it flattens out from n = 5 on, at 1.58.",
)
[round(loss, 3) for loss in val_curve]

# %% [markdown]
# *With each further character the model gets better at reciting the text that it counted. On the
# validation text the gain dwindles.* With $n = 7$ it costs 1.59 nats here, and 1.54 on the text
# where $n$ was chosen: a loss belongs to its text, and this one is harder. The assert finds chapter
# 01's 3.347 at $n = 1$ and our bigram at $n = 2$.
#
# Why does the gain dwindle? At how many places of the validation text was the history never seen in
# training, and at how many more than 30 times, so that its counts outweigh the shorter memory?

# %%
for k in (2, 4, 6):
    places = range(k, len(val_text))
    seen = torch.tensor([counted.times[val_text[i - k : i]] for i in places])
    new, often = (seen == 0).float().mean(), (seen > 30).float().mean()
    print(f"{k} characters: {new:.0%} never seen, {often:.0%} more than 30 times")

# %% [markdown]
# At a fifth of the places the six-character history is new, and at more than half it was seen too
# rarely to outweigh the shorter memory. Still, the opponent writes this:

# %%
written = PROMPT
for _ in range(300):
    p = [
        counted.chances(written[-6:], c, strength, 1 / V)[-1]
        for c in tokenizer.characters
    ]
    i = torch.multinomial(torch.tensor(p), 1, generator=generator).item()
    written += tokenizer.characters[i]
print(written)

# %% [markdown]
# Mostly words, but no sentence knows how it began.

# %% [markdown]
# ## Appendix: n-grams as a model
# Later chapters need the same formula for ids instead of strings, many windows at once. The tokens
# of a context are read as the digits of one whole number in base $V$, so that finding a context
# means finding a number in a sorted list (`searchsorted`). `register_buffer` is for tensors that
# belong to a module without being learned. The default strength of 10 was not chosen for this text:
# choose your own, as above.

# %%
#| export
from tinygpt_lib.basics.counting import check_counting


class NGram(nn.Module):
    """Counts what follows each context of up to n-1 tokens; short ones help long ones.

    ids (B, T) -> log-probabilities (B, T, vocab_size), which serve as logits.
    `strength` is how many sightings the next shorter context is worth (MacKay and
    Peto, 1995). ValueError for n, vocab_size or strength that can't work.
    """

    def __init__(self, ids: Tensor, n: int, vocab_size: int, strength: float = 10.0):
        super().__init__()
        check_counting(ids, n, vocab_size, strength)
        self.n, self.vocab_size, self.strength = n, vocab_size, strength
        for k in range(n):  # k tokens of context
            contexts = self._codes(ids[None, :-1], k)[0, max(k - 1, 0) :]
            known, row = torch.unique(contexts, return_inverse=True)
            following = ids[max(k, 1) :]
            counts = torch.zeros(len(known), vocab_size, device=ids.device)
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
# The same number as above comes out, up to a few characters at the edges:

# %%
ngram = NGram(train_ids, n=4, vocab_size=V, strength=strength)
assert abs(evaluate(ngram, val_ids, block_size=4096) - val_curve[3]) < 0.002
