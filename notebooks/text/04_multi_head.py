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
# # 04 · Several heads
# > Why several heads?
#
# Where we are: one head of attention lets a token take *one* weighted mean of its past, and
# brought the loss from 2.48 down to about 2.37 nats. A mean blurs. A token that wants to know two
# things, the last letter and the one before it, gets both in one blend and can't tell them apart.
#
# The idea of this chapter costs next to nothing: split the same width into several heads that
# look at different things, and put their answers side by side. The number to beat is 2.37.

# %%
import json
import time
from pathlib import Path

from course import BLUE, RED, plt, show
from tinygpt_lib import load_shakespeare
from tinygpt_lib.bigram import SGD, evaluate, training_step
from tinygpt_lib.single_head import attention, attention_weights
from tinygpt_lib.text import CharTokenizer, get_batch, split

text = load_shakespeare()
tokenizer = CharTokenizer.from_text(text)
V = tokenizer.vocab_size
train_ids, val_ids = split(tokenizer.encode(text))

# %%
#| export
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# %% [markdown]
# ## What one mean loses
# The smallest case in which one head fails. A token wants to know its two predecessors *in order*.
# The values are as clear as they can be: `a` is (1, 0) and `b` is (0, 1). One head that looks at both
# places with equal weight sees this after `ab` and after `ba`:

# %% tags=["nbval-check-output"]
value = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([0.0, 1.0])}


def one_head(before, last):
    """One weighted mean of the two predecessors."""
    return 0.5 * value[before] + 0.5 * value[last]


assert torch.equal(one_head("a", "b"), one_head("b", "a"))
one_head("a", "b")

# %% [markdown]
# Half an `a`, half a `b`, and no way to tell which came first. Positions added to the tokens would
# not help: equal weights add up the same two letters and the same two places, whichever letter
# stood where. Other weights would (0.3 and 0.7, say), but then the weights have to say *where* a
# letter stood, and are no longer free to say how much it matters. Two heads have no such trouble:
# one looks at the last place, the other at the one before, and the results stand side by side.


# %% tags=["nbval-check-output"]
def two_heads(before, last):
    """Two means, each of one predecessor, side by side."""
    return torch.cat([value[before], value[last]])


assert not torch.equal(two_heads("a", "b"), two_heads("b", "a"))
two_heads("a", "b"), two_heads("b", "a")

# %% [markdown]
# ## Several heads as a list
# So: $H$ heads (`n_head`), each with its own queries, keys and values, each of width $D = C / H$.
# Side by side their outputs have width $C$ again. At the end one more matrix mixes what the heads
# found. (Without it, the first head could only ever write into the first $D$ numbers. That will matter
# in chapter 05, where the result is added to what the token already was.) Here is that idea in the most
# literal way, a list of heads:


# %%
class ListOfHeads(nn.Module):
    """H separate heads, their outputs side by side, mixed by one matrix."""

    def __init__(self, n_embd, n_head):
        super().__init__()
        D = n_embd // n_head
        self.queries = nn.ModuleList(nn.Linear(n_embd, D) for _ in range(n_head))
        self.keys = nn.ModuleList(nn.Linear(n_embd, D) for _ in range(n_head))
        self.values = nn.ModuleList(nn.Linear(n_embd, D) for _ in range(n_head))
        self.output = nn.Linear(n_embd, n_embd)

    def forward(self, x):
        heads = zip(self.queries, self.keys, self.values, strict=True)
        return self.output(
            torch.cat([attention(q(x), k(x), v(x)) for q, k, v in heads], dim=-1)
        )


torch.manual_seed(0)
B, T, C, H = 2, 10, 32, 4
listed = ListOfHeads(C, H)
x = torch.randn(B, T, C)
listed(x).shape

# %% [markdown]
# ## The same as one matrix product
# Twelve small matrix products (four heads, three each) are twelve calls, each with a price of its own,
# where one large product would do the same work. And they *are* one: stacking the
# matrices of all heads on top of each other gives a matrix whose product with `x` holds all the
# queries, all the keys and all the values next to each other, $3C$ numbers for each token. Here
# these are 96: first 32 for queries, 8 for each head, then 32 for keys, then 32 for values. So
# the keys of the second head are numbers 40 to 47. (`F.linear` is `x @ weight.T + bias`.) The drawing has two heads of
# two numbers each, and beside the right way to cut the columns a wrong one.
#
# ![Numbered q, k and v cells of two positions: view and transpose give head 0 the cells 0 1 and 12 13, a row for each position, while a view to (H, T, D) alone gives head 0 all of position 0 and head 1 all of position 1.](drawings/heads.svg)

# %%
stack = [*listed.queries, *listed.keys, *listed.values]
weight = torch.cat([layer.weight for layer in stack])
bias = torch.cat([layer.bias for layer in stack])
qkv = F.linear(x, weight, bias)  # (B, T, 3C)
assert torch.allclose(qkv[..., :8], listed.queries[0](x), atol=1e-6)
assert torch.allclose(qkv[..., 40:48], listed.keys[1](x), atol=1e-6)
qkv.shape

# %% [markdown]
# The rest is bookkeeping with shapes. The $3C$ numbers of a token are 3 kinds × $H$ heads × $D$
# numbers. `view` gives them these names without moving anything, `permute` reorders the
# dimensions, so that kind, batch and head come first and each head sees a table of (T, D), as in
# chapter 03. `attention` works on the last two dimensions and does not mind how many are in
# front. Afterwards `transpose` and `reshape` go the same way back.

# %%
D = C // H
q, k, v = qkv.view(B, T, 3, H, D).permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
y = attention(q, k, v)  # (B, H, T, D)
side_by_side = y.transpose(1, 2).reshape(B, T, C)
assert torch.allclose(listed.output(side_by_side), listed(x), atol=1e-6)
q.shape

# %% [markdown]
# The list of heads and the one product give the same numbers. A trap hides in this step: calling
# `reshape(B, H, T, D)` directly gives the right *shape*, runs without complaint, and mixes tokens
# up. Only comparing numbers shows it:

# %%
wrong = qkv[..., :C].reshape(B, H, T, D)
assert wrong.shape == q.shape
torch.allclose(wrong, q)

# %% [markdown]
# ## The same, faster
# The table of weights is $T \times T$ for every head, and our `attention` writes it to memory and
# reads it back several times: to scale, to mask, for the softmax, for the product. Torch has all
# these steps *fused* into a single operation that works through the table piece by piece and never
# stores it whole (the idea is FlashAttention's, Dao et al., 2022). We keep `attention` to
# understand and to check; we use the fused one to train.
#
# It needs to be told what our mask does. With as many queries as keys that is `is_causal`. A
# single query belongs to the last token and may see every key, so no mask is needed. For anything
# in between, the mask of chapter 03 is written out, because `is_causal` would take the queries for
# those of the *first* tokens. Both ways to attend get a name, by which chapter 06 can choose.


# %%
#| export
def fused_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same as `attention`, in one operation that never stores the weights.

    q (B, H, Tq, D), k and v (B, H, Tk, D) -> (B, H, Tq, D). Dao et al., 2022.
    """
    Tq, Tk = q.shape[-2], k.shape[-2]
    if Tq > Tk:
        raise ValueError(f"{Tq} queries for {Tk} keys: every query needs its own key")
    if Tq == 1 or Tq == Tk:
        return F.scaled_dot_product_attention(q, k, v, is_causal=Tq > 1)
    allowed = torch.ones(Tq, Tk, dtype=torch.bool, device=q.device).tril(Tk - Tq)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)


# %%
for Tq in (1, 4, 10):
    ours, fused = attention(q[:, :, -Tq:], k, v), fused_attention(q[:, :, -Tq:], k, v)
    assert torch.allclose(ours, fused, atol=1e-6)

# %% [markdown]
# Equal, and how much faster? Both are timed forward and backward, as training needs them, for
# windows from 64 to 1,024 tokens. Whatever else the machine does can only add to a time, so the best of
# six counts. The last line says how many times faster the fused one is.


# %%
def seconds(function, T, repeats=6):
    """Best time for forward and backward of 4 windows of T tokens, 4 heads of 32."""
    q, k, v = torch.randn(3, 4, 4, T, 32, requires_grad=True)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function(q, k, v).sum().backward()
        times.append(time.perf_counter() - start)
    return min(times)


lengths = [64, 128, 256, 512, 1024]
timing = {name: [seconds(f, T) for T in lengths] for name, f in ATTENTIONS.items()}
pairs = zip(timing["explicit"], timing["fused"], strict=True)
{T: round(e / f, 1) for T, (e, f) in zip(lengths, pairs, strict=True)}

# %%
fig, ax = plt.subplots(figsize=(6, 3.2))
for (name, times), marker in zip(timing.items(), "os", strict=True):
    ax.loglog(lengths, [1000 * t for t in times], marker + "-", label=name)
ax.set_xticks(lengths, lengths)
ax.minorticks_off()
ax.set(xlabel="window length T (tokens)", ylabel="forward + backward (ms)")
ax.legend()
show(
    fig,
    alt="Time against window length on logarithmic axes; both curves rise steeply, the one of "
    "fused attention below the other, by most at 1,024 tokens.",
)

# %% [markdown]
# *Both have to fill a table of T × T, so doubling T means four times the arithmetic; for short
# windows the fixed price of each call hides this. Up to 512 tokens the fused one is about twice as
# fast, at 1,024 several times. A likely reason: the sixteen tables of 1,024 × 1,024 numbers that
# the explicit one writes down no longer fit into the fast memory next to the processor (chapter 12
# measures what that means). Single points wobble with what else the machine does.*

# %% [markdown]
# ## Multi-head attention
# The finished class is three steps, and each is a method: **project** to queries, keys and values;
# **attend**; **merge** the heads. Between the first two there is room for two things that we leave
# empty for now: `steps`, which may change queries and keys before they meet (some later ideas about
# positions live there), and a *cache*, which remembers the keys and values of tokens that came
# before `x`. The cache is for chapter 08, where text is written one token at a time; `start` counts
# the tokens that it holds. (`unbind` takes the three kinds apart.)


# %%
#| export
class MultiHeadAttention(nn.Module):
    """Tokens exchange what they know, through n_head independent weighted means.

    x (B, T, C) -> (B, T, C); no output depends on a later token. ValueError when n_embd
    is not a multiple of n_head. Vaswani et al., 2017.
    """

    def __init__(self, n_embd: int, n_head: int, bias: bool = True):
        super().__init__()
        if n_head < 1 or n_embd % n_head:
            raise ValueError(
                f"n_embd {n_embd} can't be split into n_head {n_head} heads"
            )
        self.n_head = n_head
        self.to_qkv = nn.Linear(n_embd, 3 * n_embd, bias=bias)
        self.output = nn.Linear(n_embd, n_embd, bias=bias)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of every head, each (B, H, T, D)."""
        B, T, C = x.shape
        qkv = self.to_qkv(x).view(B, T, 3, self.n_head, C // self.n_head)
        return qkv.permute(2, 0, 3, 1, 4).unbind()

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What each head takes in, (B, H, Tq, D)."""
        return fused_attention(q, k, v)

    def merge(self, y: Tensor) -> Tensor:
        """Heads (B, H, T, D) side by side and mixed: (B, T, C)."""
        return self.output(y.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.merge(self.attend(*self.project(x)))


# %% [markdown]
# The old numbers inside the new class: give it the stacked weights of the list of heads.

# %%
ours = MultiHeadAttention(C, H)
with torch.no_grad():
    ours.to_qkv.weight.copy_(weight)
    ours.to_qkv.bias.copy_(bias)
    ours.output.load_state_dict(listed.output.state_dict())
assert torch.allclose(ours(x), listed(x), atol=1e-6)

# %% [markdown]
# And someone else's class. `nn.MultiheadAttention` stacks its weights in the same order, so they
# can be copied over. Its biases start at zero, so we first draw random ones (`normal_`), or they
# would go unchecked. Its mask says `True` where looking is *forbidden*, while torch's own fused
# operation wants `True` where it is *allowed*; it pays to check such things by numbers.

# %%
reference = nn.MultiheadAttention(C, H, batch_first=True)
with torch.no_grad():
    ours.to_qkv.weight.copy_(reference.in_proj_weight)
    ours.to_qkv.bias.copy_(reference.in_proj_bias.normal_())
    ours.output.load_state_dict(reference.out_proj.state_dict())
forbidden = torch.ones(T, T, dtype=torch.bool).triu(1)
expected, _ = reference(x, x, x, attn_mask=forbidden, need_weights=False)
assert torch.allclose(ours(x), expected, atol=1e-6)
(ours(x) - expected).abs().max().item()

# %% [markdown]
# Still no leak from the future:

# %%
x2 = x.clone()
x2[:, -1] += 10.0
assert torch.equal(ours(x2)[:, :-1], ours(x)[:, :-1])

# %% [markdown]
# ## Does it help?
# The model of chapter 03 with the mixing matrix added, and with one head of width 64 or four of
# width 16. Both have the same number of parameters, since the matrices only get divided
# differently. By hand, with $C = 64$: embeddings $65 C + 32 C$, attention $4 C^2$, output head
# $65 C + 65$.
#
# If four are better, it may be for a dull reason: one of the four can keep the token itself while the
# others look back, and a single head can't do both. So there is a second pair of models, in which
# the token is added to what attention found and gets to the output head by itself.


# %%
class Attending(nn.Module):
    """Embeddings with positions, multi-head attention, and an output head.

    With `around` the token also goes around attention.
    """

    def __init__(self, n_embd, n_head, block_size, around=False):
        super().__init__()
        self.around = around
        self.token_embedding = nn.Embedding(V, n_embd)
        self.position_embedding = nn.Embedding(block_size, n_embd)
        self.attention = MultiHeadAttention(n_embd, n_head, bias=False)
        self.head = nn.Linear(n_embd, V)

    def embed(self, ids):
        return self.token_embedding(ids) + self.position_embedding(
            torch.arange(ids.shape[1])
        )

    def forward(self, ids):
        x = self.embed(ids)
        found = self.attention(x)
        return self.head(x + found if self.around else found)


def parameters(model):
    """How many numbers the model learns."""
    return sum(p.numel() for p in model.parameters())


T = 32
assert parameters(Attending(64, 1, T)) == parameters(Attending(64, 4, T))
assert parameters(Attending(64, 4, T)) == 97 * 64 + 4 * 64**2 + 65 * 64 + 65
parameters(Attending(64, 4, T))

# %% [markdown]
# Four models with three seeds each are twelve runs of the loop of chapter 03, a few minutes in all.
# `benchmarks/part_one.py` has made them, with the definitions above and below, and its results are in
# a file beside it. The last of the twelve is made again here; it also gives us heads to look into.

# %%
steps = 1500


def learn(model, seed):
    """Trains on random windows with a learning rate that falls to zero; the losses."""
    optimizer = SGD(model.parameters(), learning_rate=0.3, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for step in range(steps):
        optimizer.learning_rate = 0.3 * (1 - step / steps)
        batch = get_batch(train_ids, 16, T, generator)
        losses.append(training_step(model, optimizer, *batch))
    return losses


# %%
torch.manual_seed(2)
model = Attending(64, 4, T)
learn(model, 2)
again = evaluate(model, val_ids, T)

curves, finals = {}, {}
for run in json.loads(Path("../benchmarks/part_one.json").read_text())["heads"]:
    key = f"heads: {run['n_head']}" + ", token around" * run["around"]
    curves[key] = run["curve"]
    finals.setdefault(key, []).append(run["loss"])

for key, losses in finals.items():
    losses = torch.tensor(losses)
    print(f"{key:24} {losses.mean():.3f} ± {losses.std():.3f} nats")
# Another processor rounds otherwise, and 1,500 steps may make another run of it, as
# another seed would: several times their spread, and far less than what is compared.
assert abs(again - finals["heads: 4"][2]) < 0.05
print(f"the last run again: {again:.3f}, in the file {finals['heads: 4'][2]:.3f}")

# %% [markdown]
# Look at the last two lines first. With a single head the new matrix brings nothing: it follows the
# value matrix, and two matrices in a row can do no more than one (with four it is the same here,
# since the output head follows). The loss is that of chapter 03, within the spread. Four heads are
# lower by about ten times the spread.
#
# Then the first two. With the token around, four heads still gain 0.09 over one, about ten times the
# spread. Without it they gained 0.19. So half of the gain remains where keeping the token can't be the
# reason.

# %%
fig, ax = plt.subplots(figsize=(6.5, 3.2))
for (key, curve), color, style in zip(
    curves.items(), [RED, BLUE] * 2, ["--", "--", "-", "-"], strict=True
):
    ax.plot(range(25, steps, 50), curve, color=color, ls=style, label=key)
ax.set(xlabel="step", ylabel="training loss (nats)", ylim=(2.05, 3.0))
ax.legend()
show(
    fig,
    alt="Training loss over 1500 steps of four models. Four heads lie clearly below one head; with "
    "the token around, both lie lower, and four heads lowest.",
)

# %% [markdown]
# *Same number of parameters, same steps, same data; the last seed of each, means of 50 steps. Broken lines: with the token
# around. Such a way around is the subject of chapter 05. The library's class is the plain one, and its
# number is the one to beat there.*

# %%
one, four = finals["heads: 1"], finals["heads: 4"]
assert max(four) < min(one) - 0.03
assert max(finals["heads: 4, token around"]) < min(finals["heads: 1, token around"])
print(f"four heads: {sum(four) / 3:.2f} nats")

# %% [markdown]
# ## What the heads look at
# If four heads do better than one, they should look at different things. For every head of the
# model that we have trained, here is how much weight it puts on the token 0, 1, 2, ... places back,
# averaged over 200 windows of the validation text. In a table of weights, *d places back* is the
# $d$-th diagonal below the main one.

# %%
with torch.no_grad():
    ids, _ = get_batch(val_ids, 200, T, torch.Generator().manual_seed(0))
    q, k, v = model.attention.project(model.embed(ids))
    weights = attention_weights(q, k).mean(dim=0)  # (H, T, T), mean over the windows

back = torch.stack([weights.diagonal(-d, 1, 2).mean(dim=1) for d in range(8)])
back.shape  # (places back, H)

# %%
fig, ax = plt.subplots(figsize=(6.5, 2.6))
ax.imshow(back.T, vmin=0)
for h in range(4):
    for d in range(8):
        color = "w" if back[d, h] < 0.5 * back.max() else "k"
        ax.text(d, h, f"{back[d, h]:.2f}", ha="center", va="center", color=color)
ax.set_yticks(range(4), [f"head {h}" for h in range(4)])
ax.set(xlabel="places back (0 = the token itself)")
ax.grid(False)
show(
    fig,
    alt="Heat map of four heads by places back: one head looks mostly at the token "
    "itself, one mostly one place back, two spread over the last two or three places.",
)

# %% [markdown]
# *Nobody told them to share the work. Compare the rows: head 3 looks mostly one place back, head 1
# mostly at the token itself, heads 0 and 2 divide their weight over the last two or three. Which
# head got which role is chance: at the start they differ only by their random numbers.*
#
# What they hardly do is to look far. With one layer a head can search for a letter or for a
# place, but not for anything that has to be worked out first, such as *the last speaker's name*.
# For that, attention has to be applied to the results of attention.
#
# And 2.20 is still worse than chapter 02's table over two characters (2.04). The heads fetch
# letters, but nothing works with what they fetch: each adds its share to the logits. How much weight
# the `t` of `th` gets may depend on the `h` that asks, but what it then says is the same after any
# letter. That, too, is chapter 05.

# %% [markdown]
# ## Summary
# One head takes one mean; several narrow heads take several, for the same number of parameters. We
# built them as a list, then as one matrix product with some care about shapes, found the same
# numbers, and found them again in torch's own class. The fused operation gives the same values
# without storing the table of weights. With four heads instead of one the loss falls from 2.38 to
# about 2.2 nats; half of that remains where the token itself goes around attention. Each head mixes
# the last few characters in its own way.

# %% [markdown]
# ## Exercises
# **1.** How does the loss change with 1, 2, 4, 8, 16 heads at the same width? 300 steps each will
# do; `by_heads[n_head]` is the validation loss. Predict it before you run it: what can a head of
# width 4 still express?
# ```python
# assert set(by_heads) == {1, 2, 4, 8, 16} and by_heads[4] < by_heads[1]
# ```
# **2.** Set the weights of a `MultiHeadAttention(4, 2)` by hand so that, for the `x` below, the
# output is the input: each token looks only at itself, and passes itself on.
# ```python
# x = 20 * torch.tensor([[[1.0, 0, 1, 0], [0, 1, 0, 1], [-1, 0, -1, 0], [0, -1, 0, -1]]])
# assert torch.allclose(layer(x), x, atol=1e-3)
# ```
# **3.** How many parameters does `MultiHeadAttention(n_embd, n_head)` have? Write the formula.
# ```python
# for C, H in ((32, 4), (64, 8), (64, 1)):
#     assert formula(C, H) == parameters(MultiHeadAttention(C, H))
# ```

# %% [markdown]
# ## Solutions

# %% jupyter={"source_hidden": true}
steps, by_heads = 300, {}
for n_head in (1, 2, 4, 8, 16):
    torch.manual_seed(0)
    narrow = Attending(64, n_head, T)
    learn(narrow, 0)
    by_heads[n_head] = round(evaluate(narrow, val_ids[:20_001], T), 3)
assert set(by_heads) == {1, 2, 4, 8, 16} and by_heads[4] < by_heads[1]
by_heads

# %% [markdown]
# The second head brings most of the gain. From 2 to 8 the differences are smaller than the spread
# between seeds, so this one run can't rank them. With 16 heads each has only four numbers to tell
# 65 characters and 32 places apart, and the loss seems to rise again.

# %% jupyter={"source_hidden": true}
# Distinct tokens far apart: each one's own key answers its query best by a wide margin.
layer = MultiHeadAttention(4, 2)
with torch.no_grad():
    eye = torch.eye(4)
    layer.to_qkv.weight.copy_(torch.cat([eye, eye, eye]))
    layer.to_qkv.bias.zero_()
    layer.output.weight.copy_(eye)
    layer.output.bias.zero_()
    x = 20 * torch.tensor(
        [[[1.0, 0, 1, 0], [0, 1, 0, 1], [-1, 0, -1, 0], [0, -1, 0, -1]]]
    )
    assert torch.allclose(layer(x), x, atol=1e-3)


# %% jupyter={"source_hidden": true}
def formula(C, H):
    return (3 * C * C + 3 * C) + (C * C + C)  # to_qkv, output; the heads do not matter


for C, H in ((32, 4), (64, 8), (64, 1)):
    assert formula(C, H) == parameters(MultiHeadAttention(C, H))
