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
# # 07 · Training
# > How does it learn, and how do you know that it does?
#
# *An hour to read, four minutes to run on two cores. It uses the bigram's step (02) and the GPT (06), and trains about thirty
# small models for seconds each and one larger model for a minute or two.*
#
# Where we are: a whole GPT that starts honestly, at ln 65 = 4.17 nats. In chapter 06 a few hundred steps of gradient
# descent brought it a little above 2.5 nats, far from what 0.8 million parameters can do.
#
# Four things are missing: a better step (AdamW), a plan for the learning rate, protection against the odd bad
# batch, and a loop that puts them together. Just as important is the habit of distrusting every curve until you can
# explain it. The next rung to beat is chapter 05's 2.04 nats; the opponent in the distance is still the counted
# 7-gram, at 1.59.

# %%
import copy
import json
from pathlib import Path

from course import BLUE, RED, plt, show, show_ladder
from course.models import trained
from tinygpt_lib import load_shakespeare
from tinygpt_lib.bigram import SGD, training_step
from tinygpt_lib.text import CharTokenizer, split

text = load_shakespeare()
tokenizer = CharTokenizer.from_text(text)
train_ids, val_ids = split(tokenizer.encode(text))
V = tokenizer.vocab_size

# %%
#| export
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from tinygpt_lib.bigram import evaluate
from tinygpt_lib.gpt import GPT, GPTConfig
from tinygpt_lib.text import get_batch

# %% [markdown]
# ## First, one batch
# Before you train on a million characters, train on four windows, over and over. A model with a hundred
# thousand parameters should be able to memorize 128 characters and bring the loss close to zero. If it can't, something is
# broken, and you have found out in seconds instead of an hour. All small experiments in this chapter use the same
# little GPT.


# %%
def small_gpt(seed=0, dropout=0.0):
    """Two blocks, 64 wide: learns in seconds."""
    torch.manual_seed(seed)
    return GPT(GPTConfig(V, block_size=32, n_layer=2, n_embd=64, dropout=dropout))


def batches(ids, seed=0):
    """Batches of 16 windows, one after the other, the same ones for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield get_batch(ids, 16, 32, generator)


one_batch = get_batch(train_ids, 4, 32, torch.Generator().manual_seed(0))
model = small_gpt()
sgd = SGD(model.parameters(), learning_rate=0.2, momentum=0.9)
memorized = [training_step(model, sgd, *one_batch) for _ in range(300)]
assert memorized[-1] < 0.1
memorized[0], memorized[-1]

# %% [markdown]
# Four windows, because with many more the loss could not come this close to zero: two windows that begin with the same character
# give the model no way to tell which of them it is in.

# %% [markdown]
# ## Down a ravine
# Gradient descent multiplies every slope by the same learning rate. That works as long as the slopes are of similar
# size. Here is the smallest landscape in which they are not: steep across, a hundred times flatter along.
# $$L(x, y) = \tfrac{1}{2}\left(\tfrac{1}{20}\, x^2 + 5\, y^2\right)$$


# %%
def walk(make_optimizer, steps=60):
    """The way from (-4, 1) through the ravine, and the loss at its end."""
    place = torch.tensor([-4.0, 1.0], requires_grad=True)
    optimizer, way = make_optimizer([place]), [place.tolist()]
    for _ in range(steps):
        loss = (place[0] ** 2 / 20 + 5 * place[1] ** 2) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        way.append(place.tolist())
    return way, loss.item()


{
    rate: round(walk(lambda p, r=rate: SGD(p, r))[1], 3)
    for rate in (0.1, 0.3, 0.38, 0.41)
}

# %% [markdown]
# No rate is right. At 0.1 the walk along the valley floor has hardly begun after 60 steps; at 0.41 it is thrown
# from wall to wall, further out each time. The steep direction sets the limit, and the flat one pays for it. A network has
# millions of directions. How different are their slopes? Here is the typical gradient (root mean square) of a few of
# the parameters in a fresh model:

# %%
model = small_gpt()
F.cross_entropy(model(one_batch[0]).flatten(0, 1), one_batch[1].flatten()).backward()
for name, p in model.named_parameters():
    if name.startswith(
        (
            "position",
            "blocks.0.attention.to_qkv.w",
            "blocks.0.feed_forward.output.w",
            "head",
        )
    ):
        print(f"{name:38} {p.grad.pow(2).mean().sqrt():.1e}")

# %% [markdown]
# The head's slopes are nearly thirty times as large as those of the queries and keys. A rate that suits the head barely moves the others; a rate that suits
# the queries makes the head jump. What we want is a step whose length doesn't depend on the size of the slope.
#
# ## AdamW
# **Adam** (Kingma & Ba, 2014) keeps two running averages for every single parameter: $m$, of the slope, and $v$, of
# its square. It then steps by $m / \sqrt v$. If the slope keeps its sign, that ratio is close to ±1, however large or small
# the slope is; if the slope flickers around zero, the ratio is small. So the learning rate finally means what its name
# says: about how far a parameter moves in one step.
#
# A running average keeps a share $\beta$ of itself and takes the rest from the new value. We use 0.9 for $m$, which then
# remembers about ten steps, and 0.99 for $v$, about a hundred. Both start at zero, so at first they are too small. After
# $t$ steps the weights of everything that went in add up to $1 - \beta^t$; dividing by that repairs them. Check it by hand
# on a slope that is always 0.5. Each step should be the learning rate exactly:

# %% tags=["nbval-check-output"]
x, m, v = 3.0, 0.0, 0.0
for t in (1, 2, 3):
    slope = 0.5
    m = 0.9 * m + 0.1 * slope
    v = 0.99 * v + 0.01 * slope**2
    x -= 0.1 * (m / (1 - 0.9**t)) / (v / (1 - 0.99**t)) ** 0.5
    print(f"step {t}: x = {x:.4f}")

# %% [markdown]
# The W in **AdamW** (Loshchilov & Hutter, 2017) stands for *weight decay*: at every step each matrix shrinks by a tiny
# share. A weight that nothing pulls on fades away, and only what the data keep asking for stays large. Biases and the
# gains of norms are left alone; they are few, and nothing says they should be near zero.
#
# Three of torch's methods save memory here. The underscore means *in place*. `m.lerp_(g, 0.1)` moves $m$ a tenth of the way to $g$,
# which is the running average; `addcmul_` adds a product, `addcdiv_` a quotient, each times `value`. The tiny `eps`
# keeps a parameter whose slope has always been zero from dividing by zero.


# %%
#| export
class AdamW:
    """Steps of about the learning rate, whatever the size of the slope; matrices decay.

    Each parameter moves by mean(slope) / sqrt(mean(slope²)), both running means with
    their start corrected (Kingma and Ba, 2014). Parameters with two or more dimensions
    also shrink by learning_rate · weight_decay (Loshchilov and Hutter, 2017).
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        learning_rate: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ):
        self.parameters = list(parameters)
        self.learning_rate = learning_rate
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.steps = 0
        self.means = [torch.zeros_like(p) for p in self.parameters]
        self.squares = [torch.zeros_like(p) for p in self.parameters]

    def zero_grad(self) -> None:
        """Forgets the gradients of the last step; backward would add to them."""
        for p in self.parameters:
            p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Moves every parameter that has a gradient, in place."""
        self.steps += 1
        beta1, beta2 = self.betas
        start1, start2 = 1 - beta1**self.steps, 1 - beta2**self.steps
        for p, m, v in zip(self.parameters, self.means, self.squares, strict=True):
            if p.grad is None:
                continue
            m.lerp_(p.grad, 1 - beta1)
            v.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
            if p.dim() >= 2:
                p.mul_(1 - self.learning_rate * self.weight_decay)
            scale = (v / start2).sqrt_().add_(self.eps)
            p.addcdiv_(m, scale, value=-self.learning_rate / start1)

    def state_dict(self) -> dict[str, Tensor]:
        """All that it remembers, as tensors."""
        state = {"steps": torch.tensor(self.steps)}
        for i, (m, v) in enumerate(zip(self.means, self.squares, strict=True)):
            state[f"means.{i}"], state[f"squares.{i}"] = m, v
        return state

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes over what `state_dict` gave."""
        self.steps = int(state["steps"])
        for i, (m, v) in enumerate(zip(self.means, self.squares, strict=True)):
            m.copy_(state[f"means.{i}"])
            v.copy_(state[f"squares.{i}"])


# %% [markdown]
# Back in the ravine, plain gradient descent at its best rate beside Adam:

# %%
ways = {
    "gradient descent, rate 0.38": walk(lambda p: SGD(p, 0.38)),
    "Adam, rate 0.3": walk(lambda p: AdamW(p, 0.3, weight_decay=0.0)),
}
fig, ax = plt.subplots(figsize=(8, 2.6))
x, y = torch.meshgrid(
    torch.linspace(-4.3, 1.2, 100), torch.linspace(-1.2, 1.2, 60), indexing="ij"
)
ax.contour(x, y, (x**2 / 20 + 5 * y**2) / 2, levels=12, colors="gray", linewidths=0.5)
for (name, (way, end)), color in zip(ways.items(), (RED, BLUE), strict=True):
    ax.plot(
        *zip(*way, strict=True),
        "o-",
        ms=3,
        lw=1,
        color=color,
        label=f"{name}: {end:.4f}",
    )
ax.set(xlabel="x, the flat direction", ylabel="y, the steep one")
ax.legend(loc="lower right")
show(
    fig,
    alt="A long narrow valley. Gradient descent zigzags between the walls and creeps along; Adam "
    "heads down the valley, overshoots the lowest point and circles back to it.",
)

# %% [markdown]
# *Sixty steps each; the legend gives the loss at the end. Gradient descent jumps from wall to wall and creeps forward.
# Adam's first steps are equally long in both directions. Later its average $m$ carries it past the lowest point, as momentum would, and it circles in.*
#
# Is ours the real AdamW? Torch's own has to be told which parameters decay, so they come in two groups. Both get the same
# gradients for 50 steps. How far apart are the two models afterwards?

# %%
ours, theirs = small_gpt(), small_gpt()
adamw = AdamW(ours.parameters(), 3e-3, weight_decay=0.1)
groups = [
    {"params": [p for p in theirs.parameters() if p.dim() >= 2], "weight_decay": 0.1},
    {"params": [p for p in theirs.parameters() if p.dim() < 2], "weight_decay": 0.0},
]
reference = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.99))
generator = torch.Generator().manual_seed(0)
for _ in range(50):
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        p.grad = torch.randn(p.shape, generator=generator)
        q.grad = p.grad.clone()
    adamw.step()
    reference.step()
pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
apart = max((p - q).abs().max().item() for p, q in pairs)
assert apart < 1e-6
apart

# %% [markdown]
# ## Find the valley first
# Now the comparison that all this was for: the same GPT and the same batches, each optimizer at several learning rates,
# since a rate that suits one says nothing about the other.


# %%
def short_run(make_optimizer, steps=200):
    """Training losses of a small GPT."""
    model = small_gpt()
    optimizer, stream = make_optimizer(model.parameters()), batches(train_ids)
    return [training_step(model, optimizer, *next(stream)) for _ in range(steps)]


def at_the_end(losses):
    """Mean of the last 50 losses; infinite if the run blew up."""
    mean = sum(losses[-50:]) / 50
    return mean if math.isfinite(mean) else math.inf


sgd_runs = {
    r: short_run(lambda p, r=r: SGD(p, r, momentum=0.9)) for r in (0.1, 0.3, 1.0)
}
rates = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
adam_runs = {r: short_run(lambda p, r=r: AdamW(p, r)) for r in rates}
best_sgd = min(sgd_runs, key=lambda r: at_the_end(sgd_runs[r]))
best_adam = min(adam_runs, key=lambda r: at_the_end(adam_runs[r]))
assert at_the_end(adam_runs[best_adam]) < at_the_end(sgd_runs[best_sgd]) - 0.05
{
    name: {r: round(at_the_end(run), 2) for r, run in runs.items()}
    for name, runs in (("SGD", sgd_runs), ("AdamW", adam_runs))
}


# %%
def smooth(losses, over=10):
    """Means of `over` losses each, and the steps in their middle."""
    n = len(losses) // over
    means = torch.tensor(losses)[: n * over].view(n, over).mean(1)
    return range(over // 2, n * over, over), means


fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.2))
left.plot(*smooth(sgd_runs[best_sgd]), color=RED, label=f"SGD, rate {best_sgd:g}")
left.plot(*smooth(adam_runs[best_adam]), color=BLUE, label=f"AdamW, rate {best_adam:g}")
left.set(xlabel="step", ylabel="training loss (nats)", title="the best of each")
left.legend()
right.semilogx(
    rates, [min(at_the_end(adam_runs[r]), 4.2) for r in rates], "o-", color=BLUE
)
right.set(xlabel="learning rate of AdamW", ylabel="loss at the end (nats)")
show(
    fig,
    alt="Left, AdamW falls faster than SGD. Right, the loss against the learning rate is a "
    "valley with its bottom near 0.01.",
)

# %% [markdown]
# *Left: the best run of each. Right: each point is one run of AdamW. To the left of the valley the steps are too
# small to get anywhere; to the right they are too large to settle.* The wrong rate costs as much as the wrong optimizer, and more.
# So look for this valley before you compare anything else, and stay slightly to the left of its floor, because the right wall is steeper.

# %% [markdown]
# ## A plan for the learning rate
# One rate isn't best for a whole run. At the start, $m$ and $v$ rest on a handful of batches and the weights are far from
# anything sensible, so the rate should begin small and rise: the **warm-up**. At the end, large steps jump back and forth
# across the best weights instead of settling, so the rate should fall to zero: the **cool-down**, along half a cosine
# (Loshchilov & Hutter, 2016) or a straight line. Both are shares of the run, so the plan keeps its shape when
# you change the number of steps.
#
# Everything that describes a run goes into one config.


# %%
#| export
COOLDOWNS = {  # share of the cool-down that is left -> share of the rate
    "cosine": lambda left: 0.5 * (1 - math.cos(math.pi * left)),
    "linear": lambda left: left,
}


@dataclass
class TrainConfig:
    """All that describes a training run."""

    steps: int = 1000  # gradient steps
    batch_size: int = 12  # windows in a batch
    learning_rate: float = 3e-3  # the highest, between warm-up and cool-down
    warmup: float = 0.05  # share of the run in which the rate rises to it
    cooldown: float = 0.95  # share of the run in which it falls to zero
    cooldown_shape: str = "cosine"  # or "linear"
    weight_decay: float = 0.1  # of matrices, a step shrinks them by rate · decay
    beta1: float = 0.9  # memory of AdamW's mean slope
    beta2: float = 0.99  # memory of AdamW's mean squared slope
    clip: float = 1.0  # longest gradient that is let through
    eval_every: int = 250  # steps between looks at all of the validation text; 0: end
    seed: int = 0  # of the batches


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """The rate of step 0, 1, ...: up in a line, level, then down to zero."""
    done = (step + 1) / config.steps
    left = (config.steps - step) / config.steps
    if done < config.warmup:
        return config.learning_rate * done / config.warmup
    if left < config.cooldown:
        shape = COOLDOWNS[config.cooldown_shape]
        return config.learning_rate * shape(left / config.cooldown)
    return config.learning_rate


# %%
plans = {
    "constant": {"warmup": 0.0, "cooldown": 0.0},
    "warm-up only": {"warmup": 0.05, "cooldown": 0.0},
    "both, long cool-down": {"warmup": 0.05, "cooldown": 0.95},
    "both, short cool-down": {"warmup": 0.05, "cooldown": 0.4},
}
fig, ax = plt.subplots(figsize=(6.5, 2.6))
for (name, plan), style in zip(plans.items(), [":", "-.", "-", "--"], strict=True):
    config = TrainConfig(learning_rate=1.0, **plan)
    ax.plot([learning_rate_at(s, config) for s in range(1000)], style, label=name)
ax.set(xlabel="step", ylabel="share of the learning rate")
ax.legend()
show(
    fig,
    alt="Four schedules: a constant line; a short rise to a level line; a short rise and a long "
    "cosine fall; a short rise, a level part and a cosine fall over the last 40 percent.",
)

# %% [markdown]
# Do they help? Each plan gets three rates, since a plan that falls can afford a higher one, and each pair two seeds. What
# counts is the loss on 20,000 characters of the validation text. [benchmarks/part_one.py](../benchmarks/part_one.py) made these
# 24 runs with the function below; the first of them is made again here.


# %%
def planned_run(rate, seed, steps=300, **plan):
    """Validation loss at the end of a short run whose rate follows a plan."""
    model = small_gpt(seed)
    optimizer, stream = AdamW(model.parameters()), batches(train_ids, seed)
    config = TrainConfig(steps=steps, learning_rate=rate, **plan)
    for step in range(steps):
        optimizer.learning_rate = learning_rate_at(step, config)
        training_step(model, optimizer, *next(stream))
    return evaluate(model, val_ids[:20_001])


kept = json.loads(Path("../benchmarks/part_one.json").read_text())["plans"]
for name, plan in plans.items():
    row = {run["rate"]: [] for run in kept}
    for run in kept:
        if all(run[key] == value for key, value in plan.items()):
            row[run["rate"]].append(round(run["loss"], 2))
    print(f"{name:21} {row}")

again = planned_run(0.01, seed=0, **plans["constant"])
assert (
    abs(again - kept[0]["loss"]) < 0.1
)  # far more than another machine's rounding makes
again, kept[0]["loss"]

# %% [markdown]
# Look first at the last column, whose rate is four times the valley's. Without a warm-up the run is wrecked from the start and never
# recovers (2.8); with one it ends at 2.4. At the valley's own rate the warm-up changes nothing. It is insurance: it widens the valley to
# the right. On top of that, the short cool-down gains 0.05 to 0.1 nats at every rate. The long one gains nothing at the valley's rate,
# because it spends most of the run taking small steps, and as much as the short one at four times that rate. So the run at the
# end of this chapter takes the plan that these runs prefer: warm up for a twentieth of the run, stay level, cool down over the last two
# fifths. (`TrainConfig` itself falls from the start by default, as most published recipes do.)

# %% [markdown]
# ## A brake
# Now and then a batch has a gradient many times longer than usual. With plain gradient descent that is one huge step,
# and it can undo a hundred good ones. AdamW's step stays about as long as ever, but its memory is spoilt. After a gradient
# a hundred times too long, $m$ is full of it and points that way for some twenty steps. Then comes the long part: $\sqrt v$ is
# ten times too large, so every step is ten times too short, and with $\beta_2 = 0.99$ it takes about 460 steps until $\sqrt v$
# is back within a factor of 1.4.
#
# So if the gradient, all parameters taken together as one long vector, is longer than `clip`, we scale it down to
# that length and keep its direction (Pascanu et al., 2012). The length is worth knowing anyway: if it isn't a number,
# the run is lost.


# %%
#| export
@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], longest: float) -> float:
    """Scales all gradients down, together, to a length of at most `longest`.

    Returns the length before, over all parameters as one vector. Pascanu et al., 2012.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    length = torch.stack([g.norm() for g in gradients]).norm().item()
    if length > longest:
        for g in gradients:
            g.mul_(longest / length)
    return length


# %% [markdown]
# The vector (3, 4) has length 5. Clipped to 10 it stays as it is; clipped to 1 it becomes (0.6, 0.8).

# %% tags=["nbval-check-output"]
p = torch.zeros(2, requires_grad=True)
p.grad = torch.tensor([3.0, 4.0])
assert clip_gradients([p], 10.0) == 5.0 and p.grad.tolist() == [3.0, 4.0]
clip_gradients([p], 1.0)
p.grad

# %% [markdown]
# Let us hit a run with one bad batch and see. At step 60 the gradient is multiplied by 100, once without the brake and
# once with it.


# %%
def run_with_a_blow(clip, steps=200, blow=60):
    """Losses of a run whose gradient at one step is a hundred times too long."""
    model, losses, lengths = small_gpt(), [], []
    optimizer, stream = AdamW(model.parameters(), 1e-2), batches(train_ids)
    for step in range(steps):
        inputs, targets = next(stream)
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        lengths.append(clip_gradients(model.parameters(), math.inf))
        for p in model.parameters():
            p.grad *= 100 if step == blow else 1
        clip_gradients(model.parameters(), clip)
        optimizer.step()
        losses.append(loss.item())
    return losses, torch.tensor(lengths)


fig, ax = plt.subplots(figsize=(7, 2.8))
for clip, color, label in ((math.inf, RED, "no brake"), (1.0, BLUE, "clipped to 1")):
    losses, lengths = run_with_a_blow(clip)
    ax.plot(*smooth(losses, 5), color=color, label=label)
ax.axvline(60, color="gray", ls="--", lw=1)
ax.set(xlabel="step", ylabel="training loss (nats)", ylim=(2.1, 3.6))
ax.legend()
show(
    fig,
    alt="Two falling curves; at step 60 the one without a brake jumps up and lags behind "
    "from then on, while the clipped one goes on as if nothing had happened.",
)
f"gradients without a blow: median {lengths.median():.2f}, longer than 1 in {(lengths > 1).sum()} of {len(lengths)} steps"

# %% [markdown]
# *Without the brake it takes about 70 steps to get back to where the run was before the blow, and at the end the loss is still 0.1 nats behind. With the brake you can't
# see where it happened.* In an ordinary run of this model the brake hardly ever acts. It costs next to nothing, and in a
# run of a week one blow is enough to make it worth having.

# %% [markdown]
# ## The loop
# We have all the parts. This is training, the whole of it:


# %%
def bare_loop(model, config):
    """Takes config.steps steps; returns the loss of each batch."""
    optimizer = AdamW(model.parameters(), weight_decay=config.weight_decay)
    generator, losses = torch.Generator().manual_seed(config.seed), []
    model.train()
    for step in range(config.steps):
        optimizer.learning_rate = learning_rate_at(step, config)
        size = config.batch_size, model.config.block_size
        inputs, targets = get_batch(train_ids, *size, generator)
        logits = model(inputs)  # (B, T, V)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        clip_gradients(model.parameters(), config.clip)
        optimizer.step()
        losses.append(loss.item())
    return losses


config = TrainConfig(steps=100, learning_rate=1e-2, eval_every=0)
bare = bare_loop(small_gpt(), config)
bare[0], bare[-1]

# %% [markdown]
# ![The loop as a circle: text, batch, model, loss, gradients, optimizer, weights](drawings/training.svg)
#
# Read it once more, line by line. A rate from the plan, a batch, logits, a loss; the old gradients go, the new ones come,
# the brake looks at them, the optimizer moves the weights. Every training script you will ever read has these lines in it,
# however much is wrapped around them.
#
# The library needs to stop between two steps, to look at the validation text or to save, and to go on later. So it keeps the
# same lines in a class, where everything that belongs to a run has a name and one call of `take_step` is one turn of the loop.
# One thing is new: if the loss or the gradient stops being a number, the run ends and says at which step. Going on would
# only turn every weight into NaN.


# %%
#| export
class DivergedError(RuntimeError):
    """Training produced a loss, a gradient or weights that are not finite numbers."""


@dataclass
class History:
    """What happened in a run, step by step."""

    losses: list[float] = field(default_factory=list)  # each step's batch, in nats
    evaluations: list[tuple[int, float]] = field(default_factory=list)  # (step, nats)
    seconds: float = 0.0  # spent on steps and evaluations


# %%
#| export
class Trainer:
    """A model in training: its optimizer, its place in the data, its past."""

    def __init__(self, model: GPT, train_ids: Tensor, config: TrainConfig):
        self.model, self.train_ids, self.config = model, train_ids, config
        self.context = model.config.block_size  # tokens in a window
        self.optimizer = self.new_optimizer()
        self.batches = torch.Generator().manual_seed(config.seed)
        self.history = History()

    def new_optimizer(self) -> AdamW:
        betas, decay = (self.config.beta1, self.config.beta2), self.config.weight_decay
        return AdamW(self.model.parameters(), betas=betas, weight_decay=decay)

    @property
    def step(self) -> int:
        """Steps done so far."""
        return len(self.history.losses)

    def take_step(self) -> None:
        """One turn of the loop. DivergedError when a number is no longer finite."""
        self.optimizer.learning_rate = learning_rate_at(self.step, self.config)
        size = self.config.batch_size, self.context
        loss = self.learn(*get_batch(self.train_ids, *size, self.batches))
        self.check_finite("the loss", loss)
        self.history.losses.append(loss)

    def learn(self, inputs: Tensor, targets: Tensor) -> float:
        """Learns from a batch of ids (B, T); returns the loss before that, in nats."""
        logits = self.model(inputs)  # (B, T, V)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        self.brake()
        self.optimizer.step()
        return loss.item()

    def brake(self) -> None:
        length = clip_gradients(self.model.parameters(), self.config.clip)
        self.check_finite("the gradient", length)

    def check_finite(self, what: str, number: float) -> None:
        if not math.isfinite(number):
            raise DivergedError(f"{what} is {number} at step {self.step}")


# %% [markdown]
# `train` is the loop around it, with a look at the whole validation text now and then.


# %%
#| export
def train(
    model: GPT, train_ids: Tensor, val_ids: Tensor, config: TrainConfig
) -> History:
    """Trains the model in place; returns what happened, and leaves it in eval mode."""
    trainer, began = Trainer(model, train_ids, config), time.perf_counter()
    history = trainer.history
    model.train()
    while trainer.step < config.steps:
        trainer.take_step()
        due = config.eval_every and trainer.step % config.eval_every == 0
        if due or trainer.step == config.steps:
            history.evaluations.append((trainer.step, evaluate(model, val_ids)))
    history.seconds = time.perf_counter() - began
    model.eval()
    return history


# %% [markdown]
# Same seed, same batches, same arithmetic: the class should give what the bare loop gave, to the last bit.

# %%
history = train(
    small_gpt(),
    train_ids,
    val_ids[:2_001],
    TrainConfig(steps=100, batch_size=12, learning_rate=1e-2),
)
assert history.losses == bare
history.losses[-1], bare[-1]

# %% [markdown]
# ## What sick curves look like
# A loss that falls proves little. Here is one healthy run and four that are ill. Three of the illnesses never cause an error; the fourth would be stopped by
# `Trainer`'s check, which we leave out here. *Rate too high*: twenty times that of the valley. *Memorizing*: only 5,000 characters to learn from. *Too good to be true*: someone
# forgot to shift the targets, so the model is asked for the very character it sees. *Broken*: at step 120 a single weight
# becomes infinite.


# %%
def run_with_both_losses(stream, rate=5e-3, steps=300, break_at=None):
    """(step, mean training loss of the last 25 steps, validation loss), every 25."""
    model, rows, recent = small_gpt(), [], []
    optimizer = AdamW(model.parameters(), rate)
    for step in range(1, steps + 1):
        recent.append(training_step(model, optimizer, *next(stream)))
        if step == break_at:
            model.head.weight.data[0, 0] = math.inf
        if step % 25 == 0:
            rows.append((step, sum(recent) / 25, evaluate(model, val_ids[:10_001])))
            recent = []
    return rows


patients = {
    "healthy": run_with_both_losses(batches(train_ids)),
    "rate too high": run_with_both_losses(batches(train_ids), rate=0.2),
    "memorizing": run_with_both_losses(batches(train_ids[:5_000])),
    "too good to be true": run_with_both_losses((x, x) for x, _ in batches(train_ids)),
    "broken": run_with_both_losses(batches(train_ids), break_at=120),
}


# %%
def draw_curves(patients):
    """Training and validation loss of each run, side by side."""
    fig, axes = plt.subplots(
        1, len(patients), figsize=(2.3 * len(patients), 2.7), sharey=True
    )
    for ax, (name, rows) in zip(axes, patients.items(), strict=True):
        steps, training, validation = zip(*rows, strict=True)
        ax.plot(steps, training, color=BLUE, label="training")
        ax.plot(steps, validation, color=RED, ls="--", label="validation")
        ax.set(title=name, xlabel="step", xlim=(0, 310), ylim=(0, 5))
    axes[0].set_ylabel("loss (nats)")
    axes[0].legend(fontsize=8)
    return fig


show(
    draw_curves(patients),
    alt="Five pairs of curves: healthy, both fall together; rate too high, both hang above 3 nats; "
    "memorizing, training falls while validation stays; too good, training goes to zero; broken, "
    "both curves end at step 100.",
)

# %% [markdown]
# *Healthy: both fall, close together. Rate too high: stuck near the unigram's 3.35 nats; the model makes almost no use of
# its input. Memorizing: the training loss sinks well below the healthy one while the validation loss stays near 3; the gap between
# the two is the diagnosis. Too good to be true: no text is that predictable. Asked for the next character, as
# `evaluate` does, this model is so wrong that its validation loss leaves the top of the figure. Broken: the curve simply ends.
# NaN can't be drawn, and it spreads: one bad weight spoils every logit, the loss, every gradient, and with the next step every
# weight.*

# %%
healthy, hot, memorizing, leak, broken = (rows[-1] for rows in patients.values())
assert abs(healthy[1] - healthy[2]) < 0.25
assert hot[1] > healthy[1] + 0.5
assert memorizing[2] > memorizing[1] + 0.5
assert leak[1] < 0.1 < 3 < leak[2]
assert math.isnan(broken[1]) and math.isnan(broken[2])

# %% [markdown]
# **Now you.** Two more patients. What is wrong with them? Write down a guess for each before you read on. Two numbers to keep in mind:
# 3.35, the loss of a model that knows only how frequent each character is, and 4.17.

# %% jupyter={"source_hidden": true}
mysteries = {
    "patient A": run_with_both_losses(
        (x, y[torch.randperm(16)]) for x, y in batches(train_ids)
    ),
    "patient B": run_with_both_losses(batches(train_ids), rate=1e-6),
}
show(
    draw_curves(mysteries),
    alt="Two pairs of curves. Patient A falls to 3.3 nats and stays there. Patient B hardly leaves 4.2.",
)

# %% [markdown]
# *A* learns how frequent each character is and nothing else, and a lower rate wouldn't help it, as it would "rate too high": its targets have been shuffled between the windows of a batch, so inputs
# and targets no longer belong together. A loader that reads inputs and targets from two files, one of them sorted differently, does
# this. *B* knows nothing at all and learns nothing: here the rate is five thousand times too low. An optimizer that was handed
# another model's parameters draws the same curve.
#
# Two habits follow. Always draw training *and* validation loss. And measure the validation loss over the whole validation
# text (for diagnosing an illness, a part will do): the losses of single batches differ by 0.1 and more from one to
# the next, so anyone who picks the best of many has only picked a lucky batch.

# %% [markdown]
# ## What does a run have to remember?
# Laptops get closed, batteries die. Suppose a run stops half-way, with its weights safely stored. Is that enough to carry on as
# if nothing had happened? There is an easy way to find out: train once straight through and once with a break, and compare
# the losses. If they differ anywhere, we forgot something.
#
# Here is everything that could matter, and a run that is taken apart and put together again from it, except for
# one thing. Dropout is on, because it draws random numbers of its own.


# %%
def memory_of(trainer):
    """All that a run might have to remember, by name."""
    return copy.deepcopy(
        {
            "weights": trainer.model.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "steps done": trainer.history.losses,
            "place in the data": trainer.batches.get_state(),
            "torch's random numbers": torch.get_rng_state(),
        }
    )


def resumed(memory, but=None):
    """A new trainer that takes over all of the memory but one thing."""
    trainer = Trainer(small_gpt(seed=9, dropout=0.1), train_ids, config)
    take_over = {
        "weights": trainer.model.load_state_dict,
        "optimizer": trainer.optimizer.load_state_dict,
        "steps done": trainer.history.losses.extend,
        "place in the data": trainer.batches.set_state,
        "torch's random numbers": torch.set_rng_state,
    }
    for name in take_over.keys() - {but}:
        take_over[name](memory[name])
    return trainer


# %% [markdown]
# Forty steps straight through, with a copy of the memory taken after twenty; then six runs that go on from that copy. The first of
# the six forgets nothing.

# %%
config = TrainConfig(steps=40, learning_rate=1e-2)
whole = Trainer(small_gpt(dropout=0.1), train_ids, config)
for step in range(40):
    if step == 20:
        memory = memory_of(whole)
    whole.take_step()

for forgotten in (None, *memory):
    trainer = resumed(memory, but=forgotten)
    for _ in range(20):
        trainer.take_step()
    differ = [
        a != b
        for a, b in zip(
            trainer.history.losses[-20:], whole.history.losses[20:], strict=True
        )
    ]
    where = f"at step {20 + differ.index(True)}" if any(differ) else "nowhere"
    print(f"without {forgotten or 'nothing':24} differs {where}")
    assert any(differ) == (forgotten is not None)

# %% [markdown]
# With everything remembered all twenty losses agree to the last bit. That is a strong statement and makes a good test, because
# anything forgotten shows up as a difference, however small.
#
# Look at *where* the others part ways. Without the weights, the place in the data or the random numbers for dropout, the very first loss
# is already different. Without the optimizer's averages, or without knowing which step it is, the first loss is right, because
# it is computed before anything moves. The move then has the wrong size, and the second loss shows it. Each of the two averages takes as many numbers as the weights, which is why a checkpoint that can be resumed is three times the size of one that can only
# be used.
#
# The library's `train(..., out="runs/mine")` keeps exactly these five things, on disk. It writes each file under another name and
# renames it once it is complete, so pulling the plug during a save costs you the save and not the run. And it uses
# safetensors, a format that holds tensors and nothing else. `torch.save` writes a *pickle*, and a pickle can run any code its
# author put there the moment you open it.

# %% [markdown]
# ## The run
# Now the real thing: three blocks of width 144 on the whole training text. In a run this short a few wide layers do a little better than many
# narrow ones ([benchmarks/LOG.md](../benchmarks/LOG.md) has the trials).


# %%
#| export
def cpu_preset(vocab_size: int) -> tuple[GPTConfig, TrainConfig]:
    """A GPT of 0.8 million parameters that learns in a minute or two on two cores."""
    return (
        GPTConfig(vocab_size, block_size=64, n_layer=3, n_head=4, n_embd=144),
        TrainConfig(steps=1400, learning_rate=5e-3, cooldown=0.4, eval_every=350),
    )


# %% [markdown]
# We take the first quarter of it by hand, so that we can stop on the way and let the model write: 60 characters each time, drawn one
# after the other as in chapter 02, always from the same prompt.


# %%
def write(model, length=60, prompt="ROMEO:\n"):
    """The prompt and what the model makes of it, with the same random numbers."""
    ids, generator = tokenizer.encode(prompt)[None], torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _ in range(length):
            p = model(ids[:, -64:])[0, -1].softmax(-1)
            drawn = torch.multinomial(p, 1, generator=generator)
            ids = torch.cat([ids, drawn[None]], dim=1)
    return tokenizer.decode(ids[0])


model_config, train_config = cpu_preset(V)
torch.manual_seed(0)
trainer = Trainer(GPT(model_config), train_ids, train_config)
for stop in (0, 100, 350):
    while trainer.step < stop:
        trainer.take_step()
    print(f"--- step {stop}\n{write(trainer.model)}\n")

# %% [markdown]
# Noise first. After a hundred steps there are line breaks, capitals after them, and pieces that could be words: about what a
# bigram knows. After 350 there are short words that exist, *me* and *my* among them.
#
# The whole run is the library's business: `trained` calls `train` with a folder to keep it in, and later chapters that need this
# model load it from there instead of training it again.

# %%
model, history = trained(
    "cpu", model_config, train_config, train_ids, val_ids, tokenizer
)
final = history.evaluations[-1][1]
assert final < 1.85
fig, ax = plt.subplots(figsize=(7, 3.4))
ax.plot(
    *smooth(history.losses, 20),
    color=BLUE,
    lw=1,
    label="training (mean of 20 batches)",
)
ax.plot(
    *zip(*history.evaluations, strict=True),
    "o-",
    color=RED,
    label="whole validation text",
)
for loss, name in (
    (2.48, "bigram"),
    (2.04, "three blocks, chapter 05"),
    (1.59, "7-gram"),
):
    ax.axhline(loss, color="gray", ls="--", lw=1)
    ax.text(900, loss + 0.02, name, fontsize=8, color="gray", ha="center")
ax.set(xlabel="step", ylabel="loss (nats)", ylim=(1.5, 3.4))
ax.legend()
show(
    fig,
    alt="Training loss falls steeply to 2.5, then ever more slowly to about 1.7; the "
    "validation loss ends a little above it, below 1.85.",
)
f"{model.n_parameters():,} parameters, {final:.3f} nats"

# %% [markdown]
# *The first hundred steps learn what a bigram knows; the rest is the gain from looking further back. From step 840 on the rate cools down, and the
# training loss falls faster again. (The dashed lines are losses on the validation text.)*
#
# The validation loss lies above the training loss, and the gap grows from 0.05 to almost 0.2: a little of this is the memorizing from above, though the validation loss is still falling. Part of the gap is
# the text itself: the validation text is the rest of one play, whose opening the training text has, and the beginning of another
# that it has never seen. How many speakers are new?


# %%
def speakers(part):
    """The names on the lines that end with a colon and follow an empty line."""
    return {block.split(":\n")[0] for block in part.split("\n\n")[1:] if ":\n" in block}


train_text, val_text = split(text)
new = speakers(val_text) - speakers(train_text)
len(new), len(speakers(val_text))

# %% [markdown]
# Two thirds of the names never appear in the training text, and a model that has never seen a name pays for each letter of it.
#
# The rung of 2.04 is taken. The 7-gram's 1.59 isn't: that takes a better model or a longer run, and both are still to come.

# %%
show_ladder("trained GPT", final, "7-grams")

# %% [markdown]
# What does the finished model write, if we let it go on?

# %%
print(write(model, length=400))

# %% [markdown]
# Verses of plausible length, most of them with a capital at the start, and words of which many exist. It has no idea
# what it is saying. But nobody told it what a word is, either: it found all of this in a minute or two, from nothing but *what comes next?*

# %% [markdown]
# ## Summary
# AdamW steps by the learning rate instead of the slope, and ours equals torch's to within a millionth. The rate rises, then falls to zero; long
# gradients are cut. The loop itself is fifteen lines. Memorize one batch first, find the valley of learning rates, draw training and validation loss together: that is
# how you know. A run that remembers five things goes on bit for bit after a break. In a minute or two the GPT comes from 4.17 to about
# 1.8 nats. The next chapter lets it write, and makes that fast.

# %% [markdown]
# ## Exercises
# **1.** Write `first_step(beta1, beta2)`: how long is the very first step, in units of the learning rate and for any constant slope, if you leave out the
# correction for the start (*bias correction*)? What does that say about the usual 0.9 and 0.999?
# ```python
# assert abs(first_step(0.9, 0.99) - 1.0) < 1e-9
# assert abs(first_step(0.9, 0.999) - 10**0.5) < 1e-9 and abs(first_step(0.5, 0.75) - 1.0) < 1e-9
# ```
# **2.** Is weight decay the same as adding ½ · decay · (sum of the squared weights) to the loss? For plain gradient descent it is. Write
# `penalized(weight, slope)`, the weight after one Adam step at rate 0.1 on the loss with a penalty of decay 0.1, and compare it with
# AdamW's. How does each treat a weight with large slopes and one with small slopes?
# ```python
# for weight, slope in ((1.0, 3.0), (2.0, -0.5), (-1.0, 0.01)):
#     p = torch.tensor([[weight]], requires_grad=True)
#     reference = torch.optim.Adam([p], lr=0.1, betas=(0.9, 0.99), weight_decay=0.1)
#     p.grad = torch.tensor([[slope]])
#     reference.step()
#     assert abs(penalized(weight, slope) - p.item()) < 1e-6
# ```
# **3.** Give patient C a diagnosis of your own making: forget `zero_grad`. Write `forgetful(steps)`, the losses of the small GPT in a loop without
# that line, at AdamW's rate 5e-3. Why don't its steps explode, and why does the run fail all the same?
# ```python
# losses = forgetful(150)
# healthy = short_run(lambda p: AdamW(p, 5e-3), 150)
# assert losses[0] == healthy[0] and losses[1] == healthy[1] and losses[2] != healthy[2]
# ```

# %% [markdown]
# ## Solutions


# %% jupyter={"source_hidden": true}
def first_step(beta1, beta2):
    return (1 - beta1) / (
        1 - beta2
    ) ** 0.5  # m is (1 - beta1) slope, v is (1 - beta2) slope²


assert abs(first_step(0.9, 0.99) - 1.0) < 1e-9
assert (
    abs(first_step(0.9, 0.999) - 10**0.5) < 1e-9
    and abs(first_step(0.5, 0.75) - 1.0) < 1e-9
)
first_step(0.9, 0.999)

# %% [markdown]
# With 0.9 and 0.99 the two errors happen to cancel on the first step. With 0.9 and 0.999 the first step would be more than three times too long, at
# the moment when the model knows least about where to go.


# %% jupyter={"source_hidden": true}
def penalized(weight, slope):
    p = torch.tensor([[weight]], requires_grad=True)
    optimizer = AdamW([p], 0.1, weight_decay=0.0)
    p.grad = torch.tensor([[slope + 0.1 * weight]])
    optimizer.step()
    return p.item()


for weight, slope in ((1.0, 3.0), (2.0, -0.5), (-1.0, 0.01)):
    p = torch.tensor([[weight]], requires_grad=True)
    reference = torch.optim.Adam([p], lr=0.1, betas=(0.9, 0.99), weight_decay=0.1)
    p.grad = torch.tensor([[slope]])
    reference.step()
    assert abs(penalized(weight, slope) - p.item()) < 1e-6

# %% [markdown]
# In the loss, the penalty becomes part of the slope, and Adam divides the slope by its own size. A weight with large slopes then hardly
# decays at all, and one with tiny slopes decays at full speed. AdamW shrinks all of them by the same share.


# %% jupyter={"source_hidden": true}
def forgetful(steps):
    model, losses = small_gpt(), []
    optimizer, stream = AdamW(model.parameters(), 5e-3), batches(train_ids)
    for _ in range(steps):
        inputs, targets = next(stream)
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


losses = forgetful(150)
healthy = short_run(lambda p: AdamW(p, 5e-3), 150)
assert losses[0] == healthy[0] and losses[1] == healthy[1] and losses[2] != healthy[2]
at_the_end(losses), at_the_end(healthy)

# %% [markdown]
# All gradients since the first step add up, so each step follows the average slope of the whole past. Adam divides by the size of that sum, so
# the steps don't explode; they just point in the wrong direction, and the run ends worse than it began.
