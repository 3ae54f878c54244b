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
# # 12 · Speed
# > Where does the time go?
#
# Where we are: chapter 07's run takes a minute or two and ends at 1.80. Is that fast? A number of
# seconds alone does not say. It needs a *roof*: the least time in which this machine could do the
# work. Then there are two ways to be faster, and they multiply: come nearer to the roof, or need
# less work for the same loss.
#
# The number to beat comes from nanoGPT, whose command for laptops takes 2,000 steps of 768
# characters to reach 1.898 over the whole validation text. How fast can we be there, the start of
# the program included?

# %%
import inspect
import json
import statistics
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from course import BLUE, GREEN, ORANGE, PINK, RED, SKY, plt, show
from tinygpt_lib import load_shakespeare
from tinygpt_lib.bigram import evaluate
from tinygpt_lib.blocks import fast_gelu
from tinygpt_lib.generation import generate
from tinygpt_lib.gpt import NORMS
from tinygpt_lib.modern_parts import rotate, squared_relu
from tinygpt_lib.runs.presets import PRESETS, WITH_MUON, best_preset, speedrun_preset
from tinygpt_lib.runs.run import Run, train
from tinygpt_lib.runs.settings import ENGINES, TrainConfig
from tinygpt_lib.text import CharTokenizer, split

text = load_shakespeare()
tokenizer = CharTokenizer.from_text(text)
V = tokenizer.vocab_size
train_ids, val_ids = split(tokenizer.encode(text))

# %%
#| export
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from tinygpt_lib.basics.checks import check_choice
from tinygpt_lib.basics.devices import shapes_only
from tinygpt_lib.blocks import Dropout
from tinygpt_lib.gpt import GPT, GPTConfig
from tinygpt_lib.long_context import LongConfig, LongGPT
from tinygpt_lib.modern_parts import GatedFeedForward
from tinygpt_lib.multi_head import MultiHeadAttention
from tinygpt_lib.training import AdamW

# %% [markdown]
# ## The roof
# Nearly all arithmetic of a GPT is in products of matrices. A product of $m \times k$ with $k
# \times n$ has $mkn$ multiplications and as many additions: $2mkn$ operations. How many of them can
# this machine do in a second (*FLOP/s*)? Time a product that is large enough to keep it busy. One
# timing is noise, so what follows takes the median of some. The roof is what the machine can do
# when nothing disturbs it: the fastest of many.


# %%
def seconds(function, times=9, which=statistics.median):
    """The median of some calls, after two that nobody counts; or which other one."""
    taken = []
    for _ in range(times + 2):
        begin = time.perf_counter()
        function()
        taken.append(time.perf_counter() - begin)
    return which(taken[2:])


a, b, product = torch.randn(3, 1024, 1024)
peak = 2 * 1024**3 / seconds(lambda: torch.mm(a, b, out=product), 60, min)
f"{peak / 1e9:.0f} thousand million operations a second (GFLOP/s)"

# %% [markdown]
# That is one roof. The other is memory: numbers must come to where they are multiplied. An array of
# 1 GB, far larger than what a processor keeps beside its cores, is added to in place; each number is
# read once and written once:

# %%
far = torch.zeros(2**28)
bandwidth = 2 * far.nbytes / seconds(partial(far.add_, 1.0), 5, min)
del far
f"{bandwidth / 1e9:.0f} GB/s: {peak / (bandwidth / 8):.0f} operations while one number comes and goes"

# %% [markdown]
# The second number is the one to remember. While one number of four bytes is fetched and written
# back, many operations could be done. A product of large matrices uses each number that it
# fetched many times and can reach the first roof. Adding two arrays uses each number once: it waits
# for memory, whatever the processor could do.
#
# Now count what a training step has to do. A token meets each number of each matrix once on the way
# forward: one multiplication, one addition. On the way back it does so twice: for the slope of what
# came in, and for the slope of the matrix. So it is **6 operations for each number in a matrix and
# each token**. Attention comes on top: a token's query meets on average $(T + 1) / 2$ keys, then as
# many values, in every layer: $2C$ operations for a score and $2C$ for a value, and three times
# that with the way back, $12 C$.


# %%
#| export
def step_operations(config: GPTConfig, context: int | None = None) -> dict[str, float]:
    """Operations in matrix products that training costs per token: forward, backward.

    "matrices": 6 for each number in a matrix (2 forward, 4 backward); an embedding is
    looked up and costs nothing, unless it is tied to the head. "attention": a token
    meets (context + 1) / 2 keys on average, no more than the window, which makes 12 ·
    n_layer · n_embd of them. Norms, activations and the optimizer are not counted.
    """
    config = FastConfig(**asdict(config))
    T = config.block_size if context is None else context
    with shapes_only():
        model = FastGPT(config)
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    matrices = sum(m.weight.numel() for m in linear)
    if config.tie_weights:
        matrices += model.token_embedding.weight.numel()
    w = min(config.window or T, T)
    keys = w - w * (w - 1) / (2 * T)  # (T + 1) / 2 where everything is in sight
    return {
        "matrices": 6 * matrices,
        "attention": 12 * config.n_layer * config.n_embd * keys,
    }


# %% [markdown]
# For the shape of nanoGPT's command, 4 layers of 128 with windows of 64 and 12 of them in a batch,
# the roof is:

# %%
shape = {"block_size": 64, "n_layer": 4, "n_head": 4, "n_embd": 128}
config = GPTConfig(V, **shape, bias=False)
B, T = 12, 64
operations = step_operations(config)
least = B * T * sum(operations.values()) / peak
f"{B * T * sum(operations.values()) / 1e9:.1f} GFLOP: at least {1000 * least:.0f} ms"

# %% [markdown]
# And how long does it take, with chapter 07's AdamW?


# %%
def new_run(config, **settings):
    """A training run that is ready to take steps."""
    torch.manual_seed(0)
    return Run(GPT(config), train_ids, val_ids, TrainConfig(steps=10_000, **settings))


run = new_run(config)
run.optimizer = AdamW(run.model.parameters(), run.config.learning_rate)
measured = seconds(run.take_step, 30)
f"{1000 * measured:.0f} ms, {least / measured:.0%} of the roof"

# %% [markdown]
# ## Where the time goes
# So where does the rest go? A *profiler* writes down each operation that torch carries out, and for
# how long. There are dozens of kinds in a step; put into a few groups they tell more. ("Autograd"
# is the bookkeeping of `backward`, outside of any operation.)

# %%
GROUPS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm"),
    "attention": ("attention",),
    "activation": ("gelu", "relu", "silu"),
    "norms": ("norm",),
    "moving numbers": ("copy_", "cat", "clone", "contiguous", "fill_", "zero_"),
}


def time_by_group(step, n=10):
    """Milliseconds of a step in each group of operations."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(n):
            step()
    spent = Counter()
    for event in recorded.key_averages():
        name = event.key.removeprefix("aten::")
        for group, words in GROUPS.items():
            exact = group == "matrix products"
            if name in words if exact else any(word in name for word in words):
                break
        else:
            group = "all else" if event.key.startswith("aten::") else "autograd"
        spent[group] += event.self_cpu_time_total / 1000 / n
    return spent


groups = time_by_group(run.take_step)
{group: round(ms, 1) for group, ms in groups.most_common()}

# %%
fig, ax = plt.subplots(figsize=(6.5, 2.6))
names, ms = zip(*reversed(groups.most_common()), strict=True)
ax.barh(names, ms, color=BLUE)
ax.axvline(1000 * least, color=RED, ls="--", label="the roof: all that has to be done")
ax.set(xlabel="time in a step (ms)")
ax.legend(loc="lower right", bbox_to_anchor=(1, 1))
show(
    fig,
    alt="Bars of the milliseconds that a training step spends in groups of operations. "
    "Matrix products are by far the longest, a little beyond the dashed line of the roof.",
)

# %% [markdown]
# *Matrix products take more than half of the time, as they should, and they alone are near the
# roof. So no trick will make this step ten times faster. What can be saved is what stands below
# them: passes over the numbers that compute little. And one thing that such a list does not name.*

# %% [markdown]
# ## Memory that is handed back
# An operation writes its result into new memory, a moment later that is free again, and the next
# step wants the same amount. On Linux the C library returns pieces of more than about 32 MB to the
# system at once. Asking for them anew means that the system hands out memory in small pieces
# (*pages*), one by one, and fills them with zeros. A copy of 64 MB into new memory, and the same
# copy into memory that is already ours:

# %%
large = torch.zeros(16 * 2**20)
target = torch.empty_like(large)
new = seconds(lambda: large.clone())
old = seconds(lambda: target.copy_(large))
f"into new memory {1000 * new:.0f} ms, into used memory {1000 * old:.0f} ms: {new / old:.1f} times"

# %% [markdown]
# The GNU C library can be told to keep what it has. (On other systems there is nothing to be told,
# and the function says so.) It is a setting of the whole process: a library that somebody
# else imports has no business to change it unasked, but the command line does.


# %% [markdown]
# The same copy once more:

# %%
kept = keep_freed_memory()
new_kept = seconds(lambda: large.clone(), 60)
f"kept: {kept}; {1000 * new:.0f} ms before, {1000 * new_kept:.0f} ms after"

# %% [markdown]
# It matters for large results only. Small ones, such as all those of a step of 768 tokens, come
# from memory that is kept anyway. (Measured on one machine: products of 8,192 × 256 × 1,024 rose
# from 78 to 104 GFLOP/s, nanoGPT's step stayed as it was.)

# %% [markdown]
# ## Fewer passes
# Next, passes over the numbers that compute little. Among the longest bars of the figure after products
# is a single operation, GELU. Chapter 05 took GPT-2's formula with $\tanh$, which once was faster
# than the error function of the exact GELU. Is it still? Torch has each as one operation. For the hidden
# layer of nanoGPT's step, there and back:


# %%
def there_and_back(function, x, slope):
    function(x).backward(slope)
    x.grad = None


x = torch.randn(768, 512, requires_grad=True)
slope = torch.randn(768, 512)
kinds = {"tanh": fast_gelu, "exact": F.gelu}
assert (fast_gelu(x) - F.gelu(x)).abs().max() < 1e-3
taken = {
    name: seconds(partial(there_and_back, gelu, x, slope), 30)
    for name, gelu in kinds.items()
}
{name: f"{1000 * t:.2f} ms" for name, t in taken.items()}

# %% [markdown]
# No: on the two machines of the log the exact one takes about half as long. (`fast_gelu` was named for
# being faster than our own eight passes.) `gelu` stays what it is, for the sake of all checkpoints that
# name it. nanoGPT has the exact one, and where it is compared with ours, so have we.
#
# Then the optimizer. How many numbers does AdamW's step touch for each parameter? Count in chapter 07's
# code, reading and writing: the mean slope 3, its square 2 and then 3, the decay 2, the scale 2, 2 and 2,
# the move 4. That is 20. With all of it in one pass, four are read (parameter, slope, two averages) and
# three written, which is 7. So a third of the time, if memory is what it waits for. Torch has such a pass.
# It is called *fused*, and takes our averages as they are:


# %%
#| export
class FusedAdamW(AdamW):
    """The same as AdamW, up to rounding; on CPU and CUDA in one pass over numbers."""

    @torch.no_grad()
    def step(self) -> None:
        """Moves every parameter that has a gradient, in place."""
        everything = zip(self.parameters, self.means, self.squares, strict=True)
        moved = [part for part in everything if part[0].grad is not None]
        if any(p.device.type not in ("cpu", "cuda") for p, _, _ in moved):
            return super().step()
        for matrices in (True, False):
            chosen = [part for part in moved if (part[0].dim() >= 2) == matrices]
            if not chosen:
                continue
            parameters, means, squares = map(list, zip(*chosen, strict=True))
            steps = torch.full((len(chosen),), self.steps, dtype=torch.float32)
            adamw(
                parameters,
                [p.grad for p in parameters],
                means,
                squares,
                [],
                list(steps.to(parameters[0].device).unbind()),  # it adds one to each
                fused=True,
                amsgrad=False,
                maximize=False,
                lr=self.learning_rate,
                beta1=self.betas[0],
                beta2=self.betas[1],
                weight_decay=self.weight_decay if matrices else 0.0,
                eps=self.eps,
            )
        self.steps += 1


# %% [markdown]
# Ten steps of each from the same place, and their times, for two million numbers:

# %%
torch.manual_seed(0)
begin = [torch.randn(8191, 80) for _ in range(3)] + [torch.randn(80)]
slopes = [torch.randn_like(p) for p in begin]
optimizers, taken = {}, {}
for kind in (AdamW, FusedAdamW):
    optimizer = kind([nn.Parameter(p.clone()) for p in begin], 0.01)
    for p, grad in zip(optimizer.parameters, slopes, strict=True):
        p.grad = grad
    for _ in range(10):
        optimizer.step()
    optimizers[kind.__name__] = [p.detach().clone() for p in optimizer.parameters]
    taken[kind.__name__] = seconds(optimizer.step, 30)
for p, q in zip(*optimizers.values(), strict=True):
    assert torch.allclose(p, q, atol=1e-5)
by_hand, fused = taken.values()
f"{1000 * by_hand:.1f} ms by hand, {1000 * fused:.1f} ms in one pass: {by_hand / fused:.1f} times as fast"

# %% [markdown]
# The estimate was 2.9 times. In the log's runs it was five times for numbers as many as here, and three
# times for nanoGPT's 0.8 million; why more than the estimate was not looked into.
#
# Both together, in the step of the beginning:

# %%
better = new_run(replace(config, feed_forward="gelu_exact"))
before, after = seconds(run.take_step, 30), seconds(better.take_step, 30)
f"{1000 * before:.0f} ms before, {1000 * after:.0f} ms after: {least / after:.0%} of the roof"

# %% [markdown]
# And beside nanoGPT? `make bench` lets both programs train in turns, as the same architecture (exact
# GELU, no biases, one matrix for embedding and head), each in its own loop:

# %%
results = json.loads(Path("../benchmarks/results.json").read_text())
pace = results["training"]
ratio = pace["times as fast"]["nanoGPT"]
print(f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}) times as fast")
{name: f"{ms:.1f} ms a step" for name, ms in pace["ms per step"].items()}

# %% [markdown]
# And most of that is in the loop around the model: with its model in a loop like ours, a step of nanoGPT's
# took 26.6 ms ([LOG](../benchmarks/LOG.md)). The models themselves are made of the same operations of torch.
# In such a step products, each at its best by itself, would take 12.0 ms; attention, GELU and norms, as torch
# has them, took 6.6. So 8 ms lie between, and much of that can't be had. What remains is to do less work.
#
# But first the passes of other models. Those with chapter 10's parts have more of them than this step. The
# squared ReLU is written there as `relu`, then `square`. On the way back torch undoes one operation after
# the other: for the square it raises the input to the power of one, multiplies by two and by the slope from
# above, and then sets to zero what `relu` had: four passes over the widest tensor of the block where two
# would do, and new memory for nearly each. But the slope of $\max(x, 0)^2$ is just $2 \max(x, 0)$, which
# already is zero where it has to be. An `autograd.Function` lets us say so: what to keep on the way there,
# and what to do on the way back.


# %% [markdown]
# Equal to the plain one there and back, and how much faster, for the hidden layer of 8,192 tokens
# of width 256?

# %%
x = torch.randn(8192, 1024, requires_grad=True)
slope = torch.randn(8192, 1024)
plain_y, quick_y = squared_relu(x), SquaredReLU.apply(x)
(expected,) = torch.autograd.grad(plain_y, x, slope)
(grad,) = torch.autograd.grad(quick_y, x, slope)
assert torch.equal(quick_y, plain_y) and torch.equal(grad, expected)


plain = seconds(lambda: there_and_back(squared_relu, x, slope))
quick = seconds(lambda: there_and_back(SquaredReLU.apply, x, slope))
f"{1000 * plain:.0f} ms plain, {1000 * quick:.0f} ms with its own way back"

# %% [markdown]
# The entry `relu2` of the table is now this one; models and checkpoints that name it don't notice.
#
# Turning queries and keys (chapter 10) is such a case too: four products, a difference, a sum, and
# two halves laid side by side, each into new memory, and again on the way back. By hand it is one new
# tensor with two passes into each of its halves. Nor is there anything to derive for the way back.
# A rotation is a matrix, so slopes come back through its transpose, and the transpose of a rotation
# turns by the same angle the other way, with the same cosine and minus the sine.


# %% [markdown]
# The same result as `rotate`, there and back, up to rounding; and the time, for the queries of 32
# windows of 256 with four heads:

# %%
x = torch.randn(32, 4, 256, 64, requires_grad=True)
slope = torch.randn(32, 4, 256, 64)
table = Rotary(64, 256, base=10_000, scale=1).table(0, 256)
plain_y, quick_y = rotate(x, *table), Rotate.apply(x, *table)
(expected,) = torch.autograd.grad(plain_y, x, slope)
(grad,) = torch.autograd.grad(quick_y, x, slope)
assert torch.allclose(quick_y, plain_y, atol=1e-5)
assert torch.allclose(grad, expected, atol=1e-5)

plain = seconds(lambda: there_and_back(lambda x: rotate(x, *table), x, slope))
quick = seconds(lambda: there_and_back(lambda x: Rotate.apply(x, *table), x, slope))
f"{1000 * plain:.0f} ms plain, {1000 * quick:.0f} ms with its own way back"

# %% [markdown]
# For norms nothing has to be written. RMSNorm computes less than LayerNorm, yet takes longer here:
# torch (2.13) has one operation for LayerNorm, there and back, but on a processor puts RMSNorm together
# from several. (At chapter 10's size it did not show.) In the stream, chapter 10 could not tell the two
# apart by their loss. So that a model can have LayerNorm for its queries and keys as well, the table
# gets an entry. It bounds scores as the other does:

# %%
q, k = QK_NORMS["layer"](64)(100 * torch.randn(1, 4, 256, 64), torch.randn(256, 64), 0)
assert (q @ k.mT / 64**0.5).abs().max() <= 64**0.5 + 1e-4

x = torch.randn(8192, 256, requires_grad=True)
slope = torch.randn(8192, 256)
norms = {name: NORMS[name](256) for name in ("rms", "layer")}
taken = {
    name: seconds(partial(there_and_back, n, x, slope)) for name, n in norms.items()
}
{name: f"{1000 * t:.1f} ms" for name, t in taken.items()}

# %% [markdown]
# What does it come to in a whole step? For six blocks of width 256 and 8,192 tokens, on the machine
# that runs this chapter's longest run below: norms 7 %, turning 5 % ([LOG](../benchmarks/LOG.md)).

# %% [markdown]
# ## A better direction
# So now the other way: fewer steps. Chapter 07's AdamW looks at every number by itself. But a matrix
# is more than a heap of numbers: it takes vectors in and gives vectors out. What does a gradient
# look like as a matrix? Every matrix is a sum of terms $\sigma u v^\top$: it asks how much of a
# direction $v$ there is in its input, and puts out $\sigma$ times as much of a direction $u$. All
# $u$ have length 1 and stand at right angles to each other, and so do all $v$. Its *singular
# values* $\sigma$, the largest first, say which of these terms are strong. Their squares add up to
# the squared *length* of the matrix, the sum of the squares of all its numbers. Here are those of
# one gradient, after 100 steps.

# %%
run = new_run(config, warmup=0.0)
for _ in range(100):
    run.take_step()
weight = run.model.blocks[1].feed_forward.widen.weight  # its gradient is still there
singular = torch.linalg.svdvals(weight.grad)
strong = (singular[:8] ** 2).sum() / (singular**2).sum()
print(f"{strong:.0%} of the squared length in 8 of {len(singular)} directions")
fig, ax = plt.subplots(figsize=(6, 2.8))
ax.semilogy(singular[:-1] / singular[0], color=BLUE)
ax.set(xlabel="direction, the strongest first", ylabel="singular value (largest = 1)")
show(
    fig,
    alt="The singular values of a gradient fall from 1 to about a hundredth and below: "
    "a few directions are far stronger than all others.",
)

# %% [markdown]
# *(The last direction is left out: its value is zero but for rounding. What a LayerNorm puts out
# has mean zero, so one direction never occurs in this matrix's input.) A few directions hold most
# of the gradient. A step along it moves the matrix in these few, and in the others, which may
# matter as much for rare things, hardly at all.*
#
# **Muon** (Jordan et al., 2024) makes all directions count the same. Write the gradient as $G = U S
# V^\top$, with the singular values in the diagonal of $S$, and step along $U V^\top$: the same
# directions, all singular values 1. Torch can do this exactly, by the singular value decomposition:

# %%
U, S, Vt = torch.linalg.svd(weight.grad, full_matrices=False)
exact = U @ Vt
exact.shape, torch.linalg.svdvals(exact).aminmax()

# %% [markdown]
# But it takes long, and there are two dozen such matrices in a step. There is a way with matrix
# products alone, at which the machine is good. Since $U^\top U = V^\top V = I$, the product $X
# X^\top X$ is $U S^3 V^\top$: only $S$ changes. So a polynomial with odd powers, $a X + b\,X X^\top
# X + c\,(X X^\top)^2 X$, does to every singular value $s$ what it does to a number: $a s + b s^3 +
# c s^5$. So find one that pushes all numbers between 0 and 1 towards 1, and apply it a few times.
# This is a *Newton-Schulz iteration*; the coefficients 3.4445, -4.7750 and 2.0315 are Jordan's,
# chosen so that small values rise fast, at the price that large ones end up only near 1, between
# 0.7 and 1.2.

# %%
a, b, c = 3.4445, -4.7750, 2.0315
s = torch.linspace(0, 1, 500)
fig, ax = plt.subplots(figsize=(5, 2.3))
values = s
for times, color in zip(range(1, 6), (SKY, ORANGE, PINK, GREEN, BLUE), strict=True):
    values = a * values + b * values**3 + c * values**5
    if times in (1, 2, 5):
        ax.plot(s, values, color=color, label=f"after {times}")
ax.set(xlabel="singular value before", ylabel="after", ylim=(0, 1.4))
ax.legend(loc="lower right")
show(
    fig,
    alt="Three curves over the interval from 0 to 1. After one round small values have "
    "grown about threefold; after five all but the tiniest lie between 0.7 and 1.2.",
)

# %% [markdown]
# *After five rounds everything above about a hundredth has become roughly 1. "Roughly" is enough: which
# directions count is what matters, not whether by 0.8 or by 1.1.*
#
# To begin with, all singular values must be at most 1. Dividing by the length of the whole matrix
# makes sure of it. The function takes many matrices of one shape at once: one call for all of them.


# %%
#| export
def newton_schulz(x: Tensor, rounds: int = 5) -> Tensor:
    """Matrices (..., m, n) with the same directions and all singular values near 1.

    That is U V^T of the singular value decomposition U S V^T, with singular values
    between about 0.7 and 1.2 where S is above a hundredth of the matrix's length.
    Cheapest with m <= n. Jordan et al., 2024.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(rounds):
        square = x @ x.mT  # (..., m, m)
        x = a * x + (b * square + c * square @ square) @ x
    return x


# %% [markdown]
# A matrix whose answer is known: of a diagonal one, only the signs should be left, 1, -1 and 1, up
# to that 0.7 to 1.2. And on the real gradient: all singular values but a few near 1, and a
# direction that agrees with the exact one (the *cosine* between both, all numbers taken as one long
# vector).

# %% tags=["nbval-check-output"]
newton_schulz(torch.diag(torch.tensor([3.0, -2.0, 0.5]))).round(decimals=1)

# %% [markdown]
# And the real one:

# %%
near = newton_schulz(weight.grad.T).T
cosine = F.cosine_similarity(near.flatten(), exact.flatten(), dim=0).item()
near_one = ((torch.linalg.svdvals(near) - 1).abs() < 0.35).sum().item()
assert cosine > 0.8
f"cosine {cosine:.3f}; {near_one} of {len(singular)} singular values near 1"

# %% [markdown]
# What does it cost? Estimate, then measure. For $m \times m$ a round is three products, $6m^3$
# operations, and five rounds are $30 m^3$, whereas the step itself does 6 operations for each of the
# $m^2$ numbers and each token: $6 m^2 \cdot BT$. The ratio is $5m / BT$; for the wide matrices it is
# $3.75\,m / BT$, for a whole block $4.2\,m / BT$. For $m = 128$ and 768 tokens that is 69 %, for 8,192
# tokens 7 %. So Muon wants large batches, and it will have to be worth it.

# %% [markdown]
# ## Muon
# The rest of Muon is small. The gradients of single batches are noisy, so it takes a running mean
# of them first, a *momentum*, and mixes the newest gradient in once more (after Nesterov, 1983). $U
# V^\top$ keeps the length of a vector; if it spreads $n$ numbers over $m > n$ of them, each becomes
# $\sqrt{n/m}$ times as large, and the factor $\sqrt{m/n}$ makes up for it. The projection to
# queries, keys and values is three matrices side by side, and so is treated as three. And what is
# no matrix between two layers (embeddings, the head, norms, biases) stays with AdamW, at AdamW's
# own rate.


# %%
#| export
class Muon:
    """Matrices step along all their directions alike; AdamW does the rest.

    `matrices` are pairs of a parameter (parts · m, n) and its number of parts, each a
    matrix by itself. `rate` is theirs; `others` has its own, and both follow the plan:
    setting `learning_rate` scales the two. Jordan et al., 2024.
    """

    def __init__(
        self,
        matrices: Iterable[tuple[Tensor, int]],
        others: AdamW,
        rate: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ):
        self.others, self.rate, self.momentum = others, rate, momentum
        self.weight_decay = weight_decay
        self.highest = others.learning_rate
        self.groups: dict[tuple[int, int], list[tuple[Tensor, int]]] = {}
        for p, parts in matrices:
            m, n = p.shape[0] // parts, p.shape[1]
            self.groups.setdefault((m, n), []).append((p, parts))
        self.means = [
            p.new_zeros(sum(parts for _, parts in group), min(m, n), max(m, n))
            for (m, n), group in self.groups.items()
            for p in [group[0][0]]
        ]

    @property
    def learning_rate(self) -> float:
        """AdamW's rate now; that of the matrices is in proportion to it."""
        return self.others.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self.others.learning_rate = value

    def zero_grad(self) -> None:
        """Forgets the gradients of the last step."""
        self.others.zero_grad()
        for group in self.groups.values():
            for p, _ in group:
                p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Moves every parameter, in place."""
        rate = self.rate * self.learning_rate / self.highest
        for ((m, n), group), mean in zip(self.groups.items(), self.means, strict=True):
            # 1. All matrices of one shape, lying down: (parts, min(m, n), max(m, n)).
            slopes = torch.cat([p.grad.view(parts, m, n) for p, parts in group])
            slopes = slopes.mT if m > n else slopes
            # 2. Their running mean, and a look ahead in it.
            mean.lerp_(slopes, 1 - self.momentum)
            steps = newton_schulz(slopes.lerp(mean, self.momentum))
            # 3. One step for each part, longer for tall ones.
            steps = steps.mT if m > n else steps
            length = rate * max(1, m / n) ** 0.5
            sizes = [parts for _, parts in group]
            for (p, parts), step in zip(group, steps.split(sizes), strict=True):
                p.mul_(1 - rate * self.weight_decay)
                p.view(parts, m, n).sub_(step, alpha=length)
        self.others.step()

    def state_dict(self) -> dict[str, Tensor]:
        """All that it remembers, as tensors."""
        state = {f"matrices.{i}": mean for i, mean in enumerate(self.means)}
        return state | {f"others.{k}": v for k, v in self.others.state_dict().items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes over what `state_dict` gave."""
        for i, mean in enumerate(self.means):
            mean.copy_(state[f"matrices.{i}"])
        others = {k: v for k, v in state.items() if k.startswith("others.")}
        self.others.load_state_dict(
            {k.removeprefix("others."): v for k, v in others.items()}
        )


# %% [markdown]
# Which parameters are such matrices? Those of the linear layers within blocks; where a layer holds
# several side by side, they are counted. Every training run can ask for Muon
# by its name, from the command line too (`--optimizer muon`).


# %%
#| export
def muon(model: GPT, config) -> Muon:
    """Muon for the matrices of a GPT's blocks, AdamW for all else."""
    matrices = {}
    for module in model.blocks.modules():
        if isinstance(module, MultiHeadAttention):
            rows, columns = module.to_qkv.weight.shape
            matrices[module.to_qkv.weight] = 3 if rows == 3 * columns else 1
        if isinstance(module, GatedFeedForward):
            matrices[module.widen.weight] = 2
        if isinstance(module, nn.Linear):
            matrices.setdefault(module.weight, 1)
    betas = config.beta1, config.beta2
    others = FusedAdamW(
        [p for p in model.parameters() if p not in matrices],
        config.learning_rate,
        betas,
        weight_decay=config.weight_decay,
    )
    rate, decay = config.matrix_rate, config.weight_decay
    return Muon(matrices.items(), others, rate, weight_decay=decay)


# %% [markdown]
# Does it do what it says? Without memory of earlier gradients, each of three parts must take the step $U
# V^\top$ of its own gradient times the rate, up to the 0.7 to 1.2 of the iteration.

# %%
torch.manual_seed(0)
p = nn.Parameter(torch.zeros(96, 64))
p.grad = torch.randn(96, 64)
Muon([(p, 3)], AdamW([], 1.0), rate=0.1, momentum=0.0).step()
for moved, slope in zip(p.detach().chunk(3), p.grad.chunk(3), strict=True):
    U, S, Vt = torch.linalg.svd(slope, full_matrices=False)
    assert (U.T @ moved @ Vt.T).diagonal().div(-0.1).sub(0.95).abs().max() < 0.35
torch.linalg.svdvals(p.detach()[:32]).aminmax()

# %% [markdown]
# ## Is it worth it?
# A step with Muon costs more than one with AdamW. So compare at equal numbers of characters first,
# then ask for the time. The model has chapter 10's parts. Each optimizer runs at the best of five settings,
# tried on a slice of the training text (200 steps, one seed): one rate for AdamW, a pair for Muon, which
# has one for the matrices and one for the rest. (AdamW with two rates might come nearer. It was not
# tried.) Each point is the mean of three runs with different seeds, made for that length, with a
# cool-down of their own. The
# model is small, 3 layers of 96 ([benchmarks/muon_race.py](../benchmarks/muon_race.py)).

# %%
race = json.loads(Path("../benchmarks/muon_race.json").read_text())["race"]
points = {"adamw": {}, "muon": {}}
for name, result in race.items():
    optimizer, steps, seed = name.split()
    if optimizer in points:
        points[optimizer].setdefault(result["characters"], []).append(result["loss"])
raced = {
    f"{characters:,}": {
        name: f"{np.mean(of[characters]):.3f} ± {np.std(of[characters], ddof=1):.3f}"
        for name, of in points.items()
    }
    for characters in sorted(points["muon"])
}
mean = {name: {c: np.mean(v) for c, v in of.items()} for name, of in points.items()}
assert mean["muon"][204_800] < mean["adamw"][409_600]
raced

# %%
fig, ax = plt.subplots(figsize=(6.5, 3.2))
for (name, of), color, marker in zip(points.items(), (RED, BLUE), "so", strict=True):
    x = sorted(of)
    y = [np.mean(of[c]) for c in x]
    error = [np.std(of[c], ddof=1) for c in x]
    ax.errorbar(x, y, error, fmt=f"{marker}-", color=color, capsize=3, label=name)
ax.axhline(1.898, color="k", ls="--", lw=1, label="nanoGPT's command: 1.536 million")
ax.set_xscale("log")
ax.set(xlabel="characters read", ylabel="loss (nats)")
ax.legend()
show(
    fig,
    alt="Loss against characters read for AdamW and Muon. Muon's line lies below "
    "AdamW's at every length.",
)

# %% [markdown]
# *Mean and standard deviation of three seeds. Read it sideways: to get to a loss, Muon needs fewer
# than half of the characters that AdamW needs, and so of the steps.* How much longer is a step? The
# model's parts, which the rest of the chapter shares, get a name first. Two of them need a word.
# Squared ReLU was a little worse than GELU in chapter 10; it is here because it was cheap beside the GELU
# by tanh. And blocks
# begin by adding nothing (`zero_outputs`): their last matrices start at zero, which was a little better
# in a trial (1.868 instead of 1.891).


# %%
#| export
MODERN = {
    "bias": False,
    "norm": "rms",
    "position": "rotary",
    "qk_norm": "rms",
    "feed_forward": "relu2",
    "zero_outputs": True,
}

# %% [markdown]
# Then the same step with each optimizer:

# %%
small = GPTConfig(V, block_size=64, n_layer=3, n_head=3, n_embd=96, **MODERN)
runs = {
    name: new_run(small, batch_size=16, optimizer=name) for name in ("adamw", "muon")
}
taken = {name: seconds(run.take_step, 20) for name, run in runs.items()}
{name: f"{1000 * t:.0f} ms" for name, t in taken.items()}

# %% [markdown]
# Estimated: $4.2 \cdot 96 / 1{,}024$ is 39 % of the products, which are about half of a step, so a
# fifth. In six runs on two machines, before AdamW went in one pass, it was between 15 % and 46 %, mostly
# about a quarter. Fewer than half of the steps, each at most one and a half times as long: it pays, and
# more so for larger batches.

# %% [markdown]
# ## Look up, don't multiply
# What does a small model do with its first thousand steps? Mostly it finds out how to tell what the
# last few characters were, since nothing says more about the next one. Chapter 02 had that at once:
# it counted. There is a middle way. An embedding is a table from which rows are fetched, without
# any matrix product. Why should it have rows for single characters only? Let there be one for each
# *pair*, a character and the one before it, for each triple and each four in a row, and add them
# all up.
#
# There are $66^2$ = 4,356 pairs (65 characters, and "nothing" before the first one), but 287,496
# triples and 19 million fours, and most never occur. Tables for all would be far larger than the
# model. So a table gets at most 8,191 rows. Read an n-gram's characters as the digits of a number
# in base 66; the remainder of that number by the number of rows says which row is its own: a
# *hash*. Many n-grams then share a row and pull at it together; the blocks after it have to make up
# for that. With a *prime* number of rows, two that differ in a single character never meet.
# (Bojanowski et al., 2016, hash pieces of words like this; Huang et al., 2025, and Pagnoni et al.,
# 2024, do it in large language models.)
#
# The tables begin at zero, so at first the model is the one without them. Dropout falls on their
# rows too, where learning by heart is easiest. And where a cache is used, a new token comes alone,
# and what was before it is no longer in sight: `before` tells.


# %%
#| export
class NGramEmbedding(nn.Embedding):
    """A learnt vector for each token, and tables with one for each n-gram.

    `n_grams` sums those of the pair, the triple, ... that end with each token. Each
    table has up to `ROWS` rows, which longer n-grams share. Bojanowski et al., 2016;
    Huang et al., 2025.
    """

    LONGEST = 4
    ROWS = 8191  # a prime

    def __init__(self, weight: Tensor, dropout: float):
        V, C = weight.shape
        super().__init__(V, C, _weight=weight)
        numbers = [(V + 1) ** n for n in range(2, self.LONGEST + 1)]
        self.tables = nn.ParameterList(
            torch.zeros(min(number, self.ROWS), C, device=weight.device)
            for number in numbers
        )
        self.dropout = Dropout(dropout)

    def n_grams(self, ids: Tensor, start: int = 0) -> Tensor:
        """What the n-grams say that end at place `start` or later.

        ids (B, T) -> (B, T - start, C).
        """
        # 1. The tokens before the first one; the id V stands for nothing.
        T, V, back = ids.shape[1], self.num_embeddings, self.LONGEST - 1
        seen = nn.functional.pad(ids, (back, 0), value=V)  # place 0 is number `back`
        # 2. The number of each pair, then of each triple, and so on: (B, T - start).
        number, total = ids[:, start:], 0.0
        for n, table in enumerate(self.tables, start=1):
            number = number * (V + 1) + seen[:, start + back - n : T + back - n]
            row = nn.functional.embedding(number % len(table), table)
            total = total + self.dropout(row)
        return total


@dataclass
class FastConfig(LongConfig):
    """All that describes a GPT of this course, with every switch that it has."""

    embedding: str = "token"  # or "ngrams"

    def __post_init__(self):
        super().__post_init__()
        check_choice("embedding", self.embedding, ("token", "ngrams"))


class FastGPT(LongGPT):
    """A LongGPT that may look n-grams up: ids (B, T) -> logits (B, T, V)."""

    def __init__(self, config: FastConfig):
        super().__init__(config)
        if config.embedding == "ngrams":
            weight = self.token_embedding.weight
            self.token_embedding = NGramEmbedding(weight, config.dropout)

    def embed(self, ids: Tensor, start: int = 0) -> Tensor:
        x = super().embed(ids, start)
        if self.config.embedding == "token":
            return x
        loud = self.config.n_embd**0.5 if self.config.tie_weights else 1.0
        return x + loud * self.token_embedding.n_grams(ids, start)


# %% [markdown]
# Three checks: it begins as the plain one; tokens that stand in the same four get the same vector,
# others another one; and in pieces it gives what it gives whole.

# %%
torch.manual_seed(0)
embedding = NGramEmbedding(GPTConfig(V, n_embd=8, n_head=1))
ids = torch.tensor([[5, 7, 1, 2, 5, 7, 1, 2, 9, 1, 2]])
assert torch.equal(embedding(ids), nn.functional.embedding(ids, embedding.weight))
for table in embedding.tables:
    nn.init.normal_(table)
with torch.no_grad():
    x = embedding(ids)[0]
    assert torch.equal(x[3], x[7]) and not torch.equal(x[3], x[10])
    pieces = [embedding(ids[:, :5]), embedding(ids[:, 5:], before=ids[:, 2:5])]
assert torch.equal(torch.cat(pieces, dim=1)[0], x)

# %% [markdown]
# And does it help? The race again, at the same steps, with Muon:

# %%
ngrams = {}
for name, result in race.items():
    contender, steps, seed = name.split()
    if contender == "muon+ngrams":
        ngrams.setdefault(result["characters"], []).append(result["loss"])
assert np.mean(ngrams[102_400]) < mean["muon"][204_800]
{
    f"{characters:,}": {
        "without": raced[f"{characters:,}"]["muon"],
        "with tables": f"{np.mean(of):.3f} ± {np.std(of, ddof=1):.3f}",
    }
    for characters, of in sorted(ngrams.items())
}

# %% [markdown]
# Less than half of the characters again. And the price, in time for a step?

# %%
with_tables = new_run(
    replace(small, embedding="ngrams"), batch_size=16, optimizer="muon"
)
taken["muon, tables"] = seconds(with_tables.take_step, 20)
{name: f"{1000 * t:.0f} ms" for name, t in taken.items()}

# %% [markdown]
# Fetching rows needs no product, but AdamW goes over all 20,738 rows of the tables in every step (which
# makes it the place where one pass instead of many pays most). Half
# of the steps saved is worth more than that. The gain is largest early on, when blocks that know
# nothing are handed what the tables have; with more training the blocks would find it out by
# themselves, and the distance shrinks.

# %% [markdown]
# ## The run again
# Everything together, for one aim: to be at 1.898 as soon as possible. What all presets of this
# chapter share comes first: Muon, a rate that falls in a straight line, and an AdamW that forgets
# the size of old slopes sooner, since these runs are short. Then a model of only two blocks, since
# the tables learn within a few steps what the first blocks would have to work out:


# %%
print(WITH_MUON)
print(inspect.getsource(speedrun_preset))

# %% [markdown]
# Its settings were found on the end of the *training* text: more blocks and fewer, wider and
# narrower ones, other rates, tables up to fives, one seed each
# ([benchmarks/LOG.md](../benchmarks/LOG.md) has the trials). All but one: 110 steps, enough there,
# ended at 1.87 to 1.90 over the validation text, so there are 140 of them now. nanoGPT takes 2,000
# steps of the same 768 characters:

# %%
model_config, train_config = PRESETS["speedrun"](V)
torch.manual_seed(train_config.seed)
model = GPT(model_config)
history = train(model, train_ids, val_ids, train_config, progress=False)
loss = evaluate(model, val_ids)
assert loss < 1.898
f"{loss:.3f} nats after {history.seconds:.0f} s, the evaluation included"

# %% [markdown]
# How does that compare? `make bench` starts whole programs, Python and the imports included, ours
# and nanoGPT's command in turns, and evaluates both checkpoints in the same way:

# %%
duel = results["speedrun"]
assert duel["times as fast"]["nanoGPT"]["min"] > 5
{
    name: {
        "seconds": duel["measured"][name]["median"],
        "highest loss": round(max(e["loss"] for e in duel["endings"][name]), 3),
    }
    for name in duel["measured"]
} | {"times as fast": {k: v["median"] for k, v in duel["times as fast"].items()}}

# %% [markdown]
# ## More for the minute
# The same means serve another aim, the lowest loss in the minute or two that chapter 07 took. The preset `cpu` has four
# layers with the modern parts, Muon and the tables. From here
# on `make run` and `--preset cpu` train this one.


# %%
print(inspect.getsource(PRESETS["cpu"]))

# %% [markdown]
# It was run beside chapter 07's recipe, three seeds each. (There with the cosine over the whole run: 1.801 for
# seed 0, where the plan that chapter 07 takes in the end gives 1.796.)
# ([benchmarks/presets.py](../benchmarks/presets.py)):

# %%
presets = json.loads(Path("../benchmarks/presets.json").read_text())
{
    name: f"{np.mean(of['loss']):.3f} ± {np.std(of['loss'], ddof=1):.3f} nats, "
    f"{np.median(of['seconds']):.0f} s"
    for name in ("chapter 07", "cpu")
    for of in [presets[name]]
}

# %% [markdown]
# And the run of chapter 07 the other way round: how soon is the new one where the old one ended?
# With less than a fifth of its 1,400 steps:

# %%
shape, plan = PRESETS["cpu"](V)
torch.manual_seed(0)
plan = replace(plan, steps=250, eval_every=0)
sooner = train(GPT(shape), train_ids, val_ids, plan, progress=False)
assert sooner.evaluations[-1][1] < 1.80
f"{sooner.evaluations[-1][1]:.3f} nats after {sooner.seconds:.0f} s"

# %% [markdown]
# ## More for half an hour
# And how low can two cores get in half an hour? (Two with AVX-512, whose products run at 300 GFLOP/s. The
# other machine of the log does half of that.) For comparison: nanoGPT's README gives 1.4697 for ten million
# parameters and some minutes on a large GPU, the best of its looks at random windows of the validation
# text. One thing changes. The presets so far read the text
# about once at most; in half an hour it is read nearly ten times. Chapter 10 showed with a short text
# where that leads: what comes by often enough is learnt by heart. Tables of n-grams are good at just
# that. In a trial, six blocks of width 192 with tables ended at 1.48 over the end of the training text
# (which comes out lower than the validation text) after 2.9 million characters. After nine million, with
# dropout and decay both doubled, they ended at 1.49: three times the reading for nothing, while the loss
# on what they had read was down to 1.19. So here the tables go. (Whether they would pay beside what follows
# was not tried.)
#
# Against learning by heart there is dropout. It has a price: a random number for every number of every
# token costs a tenth of a step, and a model that is always disturbed learns more slowly. Chapter 07's
# *weight decay* costs nothing. Each step shrinks a matrix by the share *rate · decay*. At Muon's rate of
# 0.02 and the usual decay of 0.1 that is 0.2 %: after 500 steps, 37 % is left of what the matrix once
# learnt. At a decay of 1.2 that takes 41 steps. A step reads 8,192 of a million characters, so a given
# line comes by once in 120 steps. So at the highest rate, most of what a single line left behind is gone
# before it comes again, and what every batch says is written anew. (As the rate falls, memory gets longer;
# from about step 900 of the 1,200 on it outlasts the 120.) Kim et al., 2025, find that large models on too
# little text want decay thirty times as high as usual. That is the thought; what it is worth, only runs
# can tell.
#
# So ask a replica at an eighth of the size, in model, text and characters a step: a line comes back as often
# as in the full run, and after as many steps. It is judged by the end of the *training* text, which it has not
# read. Two seeds ([benchmarks/weight_decay.py](../benchmarks/weight_decay.py)):

# %%
trials = json.loads(Path("../benchmarks/weight_decay.json").read_text())["runs"]
fig, ax = plt.subplots(figsize=(5.5, 2.8))
held_out = {}
for dropout, color, marker in ((0.0, BLUE, "o"), (0.1, ORANGE, "s")):
    runs = {}
    for name, result in trials.items():
        p, decay, seed = map(float, name.split())
        if p == dropout:
            runs.setdefault(decay, []).append((result["loss"], result["learnt"]))
    x = sorted(runs)
    y, learnt = np.array([np.mean(runs[decay], axis=0) for decay in x]).T
    label = f"dropout {dropout}" if dropout else "no dropout"
    ax.semilogx(x, y, f"{marker}-", color=color, label=f"{label}, held out")
    ax.semilogx(x, learnt, f"{marker}:", color=color, ms=3, label=f"{label}, learnt")
    held_out[label] = dict(zip(x, y.round(3).tolist(), strict=True))
ax.set_xticks(x, x)
ax.minorticks_off()
ax.set(xlabel="weight decay", ylabel="loss (nats)")
ax.legend(fontsize=8, ncols=2, loc="center", bbox_to_anchor=(0.5, 0.68))
show(
    fig,
    alt="Loss against weight decay from 0.1 to 2.4. Without dropout the held-out loss falls "
    "steeply to a flat bottom around 0.6 to 1.2; with dropout it is flat and above that "
    "bottom. The loss on the learnt text rises with the decay.",
)
print("\n".join(f"{label}: {losses}" for label, losses in held_out.items()))

# %% [markdown]
# *Solid: text that was not read. Dotted: the text that was learnt from. With the usual decay of 0.1 and no
# dropout the replica knows its text (1.01) and less of any other (2.15). Six to twelve times as much decay
# brings it to 2.00 and below, which dropout 0.1 does not reach at any decay (2.02 at best). Too much decay
# costs far less than too little.*
#
# At full size two recipes met the validation text, with one seed. Dropout 0.1 with a decay of 0.7 ended at
# 1.4375, no dropout with 1.2 at 1.4363. They end alike, so the one that has no random numbers to draw was
# taken:


# %%
print(inspect.getsource(best_preset))

# %% [markdown]
# How long should it take? Estimate by the roof of this machine (Muon's own products left out), then see what
# it took on the machine where it was measured, by
# [benchmarks/presets.py](../benchmarks/presets.py). That also keeps the loss over the validation text on the
# way, and that over a text which no choice was made by: the corpus breaks off within *The Tempest*, and
# 55,863 characters follow. They are harder for any model, as preset `cpu` shows.

# %%
shape, plan = PRESETS["best"](V)
read = plan.steps * plan.batch_size * shape.block_size
minutes = sum(step_operations(shape).values()) * read / peak / 60
print(
    f"{GPT(shape).n_parameters():,} parameters, {read / len(train_ids):.1f} times through"
)
print(f"by the roof: {minutes:.0f} minutes")
best = presets["best"]
assert max(best["loss"]) < 1.4697
{
    name: f"{np.mean(values):.4g} ± {np.std(values, ddof=1):.1g}"
    for name, values in (
        ("validation (nats)", best["loss"]),
        ("The Tempest (nats)", best["test"]),
        ("The Tempest, preset cpu", presets["cpu"]["test"]),
        ("minutes", np.array(best["seconds"]) / 60),
    )
}

# %%
fig, ax = plt.subplots(figsize=(5, 2.3))
for seed, curve in zip(best["seeds"], best["evaluations"], strict=True):
    color = (BLUE, GREEN, ORANGE)[seed]
    ax.plot(*zip(*curve, strict=True), "o-", color=color, ms=4, label=f"seed {seed}")
ax.axhline(1.4697, color="k", ls="--", lw=1, label="nanoGPT, on a large GPU")
ax.set(xlabel="step", ylabel="validation loss (nats)", xlim=(0, None))
ax.legend()
show(
    fig,
    alt="Validation loss of three runs with different seeds, four values each. They fall "
    "together, fastest in the last quarter, and end below the dashed line of nanoGPT.",
)

# %% [markdown]
# *After the first 300 steps, the last 300 gain most; there the rate goes to zero. So don't read the curve as
# "900 steps give 1.55": a run planned for 900 steps would have cooled down by then.*

# %% [markdown]
# ## Two engines
# Two more ways to be nearer to the roof need no thought about the model, only a machine that has what
# they ask for. Both are *engines*: they change how a step is computed, and the result by rounding only.
#
# **Lower precision.** Numbers of 16 bits are half as much to move, and some processors multiply
# them several times as fast. In *bfloat16* (1 bit for the sign, 8 for the size, 7 for the digits)
# the largest and smallest numbers are as in float32, but there are only two or three decimal
# digits. Products are rounded to it; weights, their sums and the loss stay in float32 (torch calls
# this *autocast*). On a processor without instructions for it, every number would be unpacked and
# packed again, many times slower. Even with them it may not pay: on one machine that this course
# was measured on, a server whose instructions for bfloat16 torch does use, its products run at half
# the speed of float32's. So we ask the clock, and refuse where it says no.
#
# **Compiling.** `torch.compile` (Ansel et al., 2024) looks at the whole step and writes a program for
# it, in which operations that follow each other become one pass over the numbers. It needs a C++
# compiler on the machine, and time to write and compile that program before the first step.


# %% [markdown]
# An engine gets the model and the run's settings, and returns what computes the logits:


# %% [markdown]
# Here is what this machine has:

# %%
available = {}
for name in ENGINES:
    try:
        ENGINES[name](GPT(config), TrainConfig(engine=name))
        available[name] = "yes"
    except ValueError as error:
        available[name] = str(error)
available

# %% [markdown]
# `make bench` times steps of ten million parameters in bfloat16 too, where that pays. What
# compiling gains depends on how much of a step is small passes. With 6 layers of 192 it gained
# nothing on one machine; on another a fifth, but with dropout hardly anything: drawing random
# numbers takes as long as before ([benchmarks/LOG.md](../benchmarks/LOG.md)).

# %% [markdown]
# ## One token at a time
# Training is products of large matrices. Writing is not: with a cache, one token at a time goes
# through all matrices, and each weight is fetched for a single multiplication. Estimate by the
# second roof, as if all ten million weights had to come from memory (a large cache can beat it):

# %%
torch.manual_seed(0)
writer = GPT(GPTConfig(V, block_size=256, n_layer=6, n_head=6, n_embd=384)).eval()
nbytes = sum(p.nbytes for p in writer.parameters())
f"{nbytes / 1e6:.0f} MB: about {1000 * nbytes / bandwidth:.1f} ms a token"

# %% [markdown]
# A product with a single row is so small a task that torch gives it to one thread, which can't ask for
# memory as fast as memory could answer. So cut each matrix into slices, and let torch multiply with
# all of them in one batched product, which does go to all threads. The weights are shared with the
# model, not copied, so there is nothing to keep in step.


# %% [markdown]
# The same numbers, and how much sooner for all 25 layers of the writer?

# %%
linear = nn.Linear(384, 1152)
sliced = SlicedLinear(linear)
row = torch.randn(1, 384)
with torch.no_grad():
    assert torch.allclose(sliced(row), linear(row), atol=1e-5)

layers = [m for m in writer.modules() if isinstance(m, nn.Linear)]
pairs = [(m, SlicedLinear(m), torch.randn(1, m.in_features)) for m in layers]
with torch.no_grad():
    plain = seconds(lambda: [m(x) for m, _, x in pairs], 30)
    cut = seconds(lambda: [s(x) for _, s, x in pairs], 30)
f"all {len(pairs)} layers: {1000 * plain:.1f} ms whole, {1000 * cut:.1f} ms in slices"

# %% [markdown]
# The model itself stays as it is. What reads the single tokens is a *twin*: the same parts, the same
# parameters, with sliced layers where they are large. (Small ones stay in a core's own fast memory,
# and are faster whole.) The table that chapter 08's `generate` looks in gets its entry for CPUs.


# %% [markdown]
# Token for token the same text, with the same seed. (Sums are rounded otherwise in slices; a token
# could only change where chance falls within a millionth of a border.) How much faster is a matter
# of the machine: one that fetched 20 GB a second from memory took 5.1 ms instead of 8.6 for the 25
# layers, and wrote 94 tokens a second instead of 83. Where the processor's own memory holds all 43
# MB, slices save nothing, and the two are about alike.


# %%
def write(n=32):
    generator = torch.Generator().manual_seed(0)
    return generate(writer, val_ids[None, :192], n, generator=generator)


quick, quick_seconds = write(), seconds(write, 5)
del READERS["cpu"]
slow, slow_seconds = write(), seconds(write, 5)
READERS["cpu"] = quick_reader
assert torch.equal(quick, slow)
f"{32 / slow_seconds:.0f} tokens a second before, {32 / quick_seconds:.0f} now, the reading of the prompt included"

# %% [markdown]
# ## How the cost grows
# Three things make a step dearer: more parameters, longer windows, and more windows in a batch.
# They also change how well the machine is used. Here is the time for each *token* against each of
# them, around 4 layers, width 256, context 128 and batch 8 (from `make bench`; where the context
# grows, the batch shrinks, so that a step has the same number of tokens):

# %%
growth = results["scaling_cost"]
fig, axes = plt.subplots(1, 3, figsize=(9.5, 2.9), sharey=True)
labels = ("parameters", "context (characters)", "windows in a batch")
for ax, what, label in zip(
    axes, ("parameters", "context", "batch"), labels, strict=True
):
    of = growth[what]["points"]
    x = [p["size"] for p in of]
    ax.loglog(x, [p["median"] for p in of], "o-", color=BLUE, ms=4)
    ax.vlines(x, [p["min"] for p in of], [p["max"] for p in of], color=BLUE, lw=1)
    ax.set(xlabel=label, title=f"slope {growth[what]['slope']['median']:.2f}")
axes[0].set_ylabel("time per token (µs)")
show(
    fig,
    alt="Three log-log panels of the time per token. It rises with the parameters with a slope "
    "somewhat below one, rises slowly with the context, and falls with the batch, but for "
    "the last point.",
)

# %% [markdown]
# *A slope of 1 would be in proportion. Parameters: nearly that, once matrices are large; small ones
# pay for the calls around them. Context: at this width attention is a small part, so eight times
# the window is far from eight times the price. Batch: more windows are cheaper per token, up to
# some point. (On the machine of the figure, 32 cost as much as one; why was not looked into. Bars: the least and the most of three rounds. The machine drifts: the same point
# reads differently in the three panels.)*

# %% [markdown]
# And what remains of the distance to the roof? For a model of ten million parameters, where
# matrices are large enough to keep the processor busy, the same bench measures products and steps
# in turns. (It was measured on the machine that is named; that need not be the one whose roof stands
# above.)

# %%
there = results["peak"]
setting = there["settings"]["float32"]
share = setting["share of peak"]["median"]
assert share > 0.4
print(there["machine"]["cpu"], there["machine"]["kernels"])
f"{setting['peak GFLOP/s']['median']:.0f} GFLOP/s in products, a step reaches {share:.0%} of it"

# %% [markdown]
# ## Summary
# More than half of a step's time is in matrix products, and those are near what the machine can do:
# the roof is the first thing to measure, since it says what is left to gain. Some of the rest can
# be had by keeping memory and by cheaper passes. The larger gain is in needing less: Muon steps
# along all directions of a matrix alike, and in a small model's short runs needs fewer than half of the
# characters; tables of
# n-grams, which are looked up and not multiplied, halve them again. Together they reach nanoGPT's
# 1.898 many times as fast as nanoGPT, the start of the program included, and end far below chapter
# 07's 1.80 in about its time. In half an hour the text is read ten times; there a model without tables and
# without dropout, with twelve times the usual weight decay, ends at 1.43.
#
# ## Exercises
# **1.** How far is a gradient from what Muon makes of it? Give the *cosine*
# between a gradient of `model` and its `newton_schulz`, for a batch of the training text.
# ```python
# assert 0 < cosine < 0.95
# ```
# **2.** How many operations did the run of `speedrun` take, and how many a second, its one
# evaluation left out? Compare with `peak`. (Muon's own products are not counted.)
# ```python
# assert 0 < reached / peak < 1
# ```
# **3.** The polynomial $1.5 s - 0.5 s^3$ is the classic Newton-Schulz iteration: it ends at exactly
# 1, but how many rounds does it need to bring 0.01 above 0.7, and how many does Jordan's?
# ```python
# assert rounds["classic"] > 2 * rounds["jordan"]
# ```

# %% [markdown]
# ## Solutions

# %% jupyter={"source_hidden": true}
x = train_ids[: 32 * 64].view(32, 64)
y = train_ids[1 : 32 * 64 + 1].view(32, 64)
model.zero_grad()
F.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
slope = model.blocks[1].attention.output.weight.grad
cosine = F.cosine_similarity(slope.flatten(), newton_schulz(slope).flatten(), dim=0)
assert 0 < cosine < 0.95
cosine.item()

# %% jupyter={"source_hidden": true}
tokens = train_config.steps * train_config.batch_size * model_config.block_size
work = tokens * sum(step_operations(model_config).values())
reached = work / (history.seconds - seconds(lambda: evaluate(model, val_ids), 1))
assert 0 < reached / peak < 1
f"{work / train_config.steps / 1e9:.1f} GFLOP a step, {reached / 1e9:.0f} GFLOP/s, {reached / peak:.0%} of the peak"

# %% jupyter={"source_hidden": true}
polynomials = {
    "classic": lambda s: 1.5 * s - 0.5 * s**3,
    "jordan": lambda s: 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5,
}
rounds = {}
for name, polynomial in polynomials.items():
    s, rounds[name] = 0.01, 0
    while s < 0.7:
        s, rounds[name] = polynomial(s), rounds[name] + 1
assert rounds["classic"] > 2 * rounds["jordan"]
rounds
