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
# # 03 · One head
# > How can a token look back, and choose where?
#
# Where we are: a bigram sees one character and costs 2.48 nats. A table over six characters costs
# 1.59, and each further one brings less, because long contexts are often new, and for a table no
# context is like another. We want a model that looks back over many characters without a row for every
# possible past.
#
# The way there: let every token be a point, given by a list of numbers, let it look at all
# tokens before it, and let it decide, from what it is and what they are, which ones matter.
# That decision is called **attention**. This chapter builds one *head* of it.
#
# The number to beat is the bigram's 2.48 nats.

# %%
import torch.nn.functional as F
from torch import nn

from tinygpt_lib import load_shakespeare
from tinygpt_lib._figures import BLUE, GREEN, RED, plt, show
from tinygpt_lib.bigram import SGD, evaluate, training_step
from tinygpt_lib.text import CharTokenizer, get_batch, split

text = load_shakespeare()
tokenizer = CharTokenizer.from_text(text)
V = tokenizer.vocab_size
train_ids, val_ids = split(tokenizer.encode(text))

# %%
#| export
import math

import torch
from torch import Tensor

# %% [markdown]
# ## A token as a point
# The bigram model gave each character a row of 65 logits. Now each gets a list of $C$ numbers
# (`n_embd`), its **embedding**. They are learnt like everything else. One can think of them as
# coordinates: characters that behave alike can end up near each other, and what is learnt for one
# then holds for its neighbours. A table of embeddings is `nn.Embedding`, and using it is a look-up
# of rows.

# %%
torch.manual_seed(0)
C = 4
embedding = nn.Embedding(V, C)
word = tokenizer.encode("hello")
x = embedding(word)
assert torch.equal(x, embedding.weight[word])
x.shape

# %% [markdown]
# At the other end, $C$ numbers have to become 65 logits again. That is a matrix product,
# `nn.Linear`, which torch stores as a matrix of shape (out, in): each logit is a weighted sum of
# the $C$ numbers. (Unless told `bias=False`, it also adds a learnt constant to each, the *bias*.)
# We call this last matrix the **output head**. It is not to be confused with the attention head
# that this chapter is about; the field uses the word for both.

# %%
head = nn.Linear(C, V, bias=False)
assert torch.allclose(head(x), x @ head.weight.T)
head(x).shape

# %% [markdown]
# Embedding and output head together are again a bigram model, only written as a product of two
# thin matrices. Nothing is gained yet. But now there is room in between, and there the tokens
# will exchange what they know.

# %% [markdown]
# ## Averaging the past
# The simplest exchange: every token takes the mean of itself and everything before it. Not of what
# comes after! The next character is what we want to predict, and a model that may look at it
# learns nothing. As a loop, on numbers that can be checked by eye, three tokens with two numbers
# each:

# %% tags=["nbval-check-output"]
x = torch.tensor([[2.0, 0.0], [4.0, 6.0], [0.0, 3.0]])  # (T, C)
looped = torch.stack([x[: t + 1].mean(dim=0) for t in range(3)])
looped

# %% [markdown]
# The first token has only itself; the second has (2 + 4)/2 and (0 + 6)/2; the third the mean of
# all three.
#
# ## The same as a matrix
# A mean is a weighted sum with equal weights. Put the weights of token $t$ into row $t$ of a
# matrix, with zeros for the future, and the loop becomes one matrix product. `tril` keeps the lower
# left triangle:

# %% tags=["nbval-check-output"]
weights = torch.tril(torch.ones(3, 3))
weights = weights / weights.sum(dim=1, keepdim=True)
assert torch.allclose(weights @ x, looped)
weights

# %% [markdown]
# ## The same as a softmax
# Chapter 02 had a way to make weights that are positive and sum to one from any numbers at all. So
# let there be *scores*, for now all zero, and make the weights with a softmax. A forbidden place
# gets the score $-\infty$, because $e^{-\infty} = 0$: no weight at all. The forbidden places are
# the triangle above the diagonal: `triu` with `diagonal=1`.

# %% tags=["nbval-check-output"]
scores = torch.zeros(3, 3)
future = torch.triu(torch.ones(3, 3, dtype=torch.bool), diagonal=1)
scores = scores.masked_fill(future, float("-inf"))
weights = scores.softmax(dim=1)
assert torch.allclose(weights @ x, looped)
scores

# %% [markdown]
# Three ways to write the same mean, each with the same result. The last has a door in it: the
# zeros. If the scores were not all zero, some tokens of the past would count more than others. Who
# should set them? The tokens.

# %% [markdown]
# ## Letting the token choose
# Each token makes two more lists of numbers from its own: a **query**, *what am I looking for?*,
# and a **key**, *what do I have to offer?* The score of a pair is the dot product of the query of
# the one that looks and the key of the one that is looked at: large when they point the same way.
#
# One by hand. Four tokens, with keys that we write down, (vowel, consonant): two of them "are
# vowels", and the last token looks for vowels.

# %% tags=["nbval-check-output"]
k = torch.tensor(
    [
        [0.0, 1.0],  # h
        [1.0, 0.0],  # o
        [0.0, 1.0],  # l
        [1.0, 0.0],  # a
    ]
)
q_last = torch.tensor([3.0, 0.0])  # "a vowel, please"
scores = k @ q_last
weights = scores.softmax(dim=0)
scores, weights

# %% [markdown]
# The two vowels got 95 % of the weight. Now for real: query and key are not written down, they
# are computed from each token's numbers by two learnt matrices, for all tokens at once. And what
# is handed over is not the token's own numbers either, but a third list made from them, the
# **value**. So a token may be found by one thing and hand over another. All three lists have the
# same length $D$, the width of the head.

# %%
torch.manual_seed(1)
T, C, D = 6, 8, 4
x = torch.randn(T, C)
to_query, to_key, to_value = (nn.Linear(C, D, bias=False) for _ in range(3))

with torch.no_grad():
    q, k, v = to_query(x), to_key(x), to_value(x)  # each (T, D)

# %% [markdown]
# First the last token alone, as we did by hand. It may look at every key, its own included, and
# takes in the weighted sum of the values:

# %%
weights = (k @ q[-1]).softmax(dim=0)  # (T,)
last = sum(weights[t] * v[t] for t in range(T))
last

# %% [markdown]
# And for all tokens at once: one product for the scores, the mask, the softmax, one product for
# the sums. The last row is what we just had.

# %%
scores = q @ k.T  # (T, T): row = who looks, column = who is looked at
future = torch.triu(torch.ones(T, T, dtype=torch.bool), diagonal=1)
weights = scores.masked_fill(future, float("-inf")).softmax(dim=-1)
y = weights @ v  # (T, D)
assert torch.allclose(y[-1], last, atol=1e-6)

# %%
fig, axes = plt.subplots(1, 2, figsize=(7.5, 3))
for ax, matrix, title in zip(
    axes, [scores, weights], ["scores", "weights"], strict=True
):
    image = ax.imshow(matrix)
    ax.set(xlabel="looked at", ylabel="who looks", title=title, xticks=range(T))
    ax.grid(False)
    fig.colorbar(image)
show(
    fig,
    alt="Two 6 by 6 heat maps. The scores fill the square; the weights are zero above "
    "the diagonal and differ from place to place below it.",
)

# %% [markdown]
# *Left: what every token thinks of every token, future included. Right: the future removed, each
# row turned into weights that sum to one. The first token can only look at itself, weight 1.*

# %% [markdown]
# ## Why divide by the square root
# One thing is still missing, and it has to do with the size of the scores. Suppose the entries of
# queries and keys are random, independent, with mean 0 and variance 1 (the variance is the mean
# squared distance from the mean). A dot product is then a sum of $D$ terms with variance 1 each,
# so its variance is $D$: the wider the head, the larger the scores. Measured:

# %%
generator = torch.Generator().manual_seed(2)
widths = [1, 4, 16, 64, 256]
variances, sharpest = [], {"without": [], "with": []}
for D in widths:
    q, k = torch.randn(2, 1000, D, generator=generator)
    scores = q @ k.T
    variances.append(scores.var().item())
    sharpest["without"].append(scores[:, :32].softmax(-1).amax(-1).mean().item())
    scaled = scores / math.sqrt(D)
    sharpest["with"].append(scaled[:, :32].softmax(-1).amax(-1).mean().item())
assert all(abs(v / D - 1) < 0.1 for v, D in zip(variances, widths, strict=True))
{D: round(v, 2) for D, v in zip(widths, variances, strict=True)}

# %%
fig, ax = plt.subplots(figsize=(6, 3.1))
ax.semilogx(widths, sharpest["without"], "o-", color=RED, label="scores as they are")
ax.semilogx(widths, sharpest["with"], "s-", color=BLUE, label="divided by √D")
ax.axhline(1 / 32, color="gray", ls="--", label="equal weights")
ax.set_xticks(widths, widths)
ax.minorticks_off()
ax.set(xlabel="head width D", ylabel="largest of 32 weights (mean)", ylim=(0, 1))
ax.legend()
show(
    fig,
    alt="The largest weight among 32 grows with the width to about 0.9 for raw scores "
    "and stays near 0.16 for scores divided by the square root of the width.",
)

# %% [markdown]
# *What the size of the scores does to an untrained head looking at 32 random tokens. With a wide
# head and no division, the softmax puts nearly everything on one token, chosen by chance.*
#
# Why is that bad? A softmax that is sure hardly changes when its scores change a little. The slope
# of a weight $w$ against its own score is $w (1 - w)$: 0.25 at one half, 0.01 at 0.99. With no
# slope there is nothing to learn from. Divided by $\sqrt D$ the scores have variance 1 whatever the
# width, and the head begins undecided:
#
# $$\text{attention}(q, k, v) = \text{softmax}\left(\frac{q k^\top}{\sqrt{D}} + \text{mask}\right) v$$
#
# The mask is 0 where looking is allowed and $-\infty$ where it is not. That is the formula of
# *Attention Is All You Need* (Vaswani et al., 2017), with the mask written out.

# %% [markdown]
# ## One head
# Here is the finished function. It works on the last two dimensions, so any dimensions in front
# (a batch, and soon several heads) come along for free. It also allows fewer queries than keys: the
# queries then belong to the *last* tokens. That is the case when a text is continued one token at
# a time and only the newest one has a question. The first of $T_q$ queries may then see
# $T_k - T_q$ keys more than its own place among the queries says, so the triangle moves to the
# right by as many: `tril(Tk - Tq)`. The weights come from a function of their own, so that we can
# look at them.


# %%
#| export
def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """How much each query looks at each key, never at a later one; rows sum to one.

    q (..., Tq, D), k (..., Tk, D) with Tq <= Tk, the queries being those of the last Tq
    tokens -> (..., Tq, Tk). Vaswani et al., 2017.
    """
    Tq, Tk = q.shape[-2], k.shape[-2]
    if Tq > Tk:
        raise ValueError(f"{Tq} queries for {Tk} keys: every query needs its own key")
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (..., Tq, Tk)
    allowed = torch.ones(Tq, Tk, dtype=torch.bool, device=q.device).tril(Tk - Tq)
    return scores.masked_fill(~allowed, float("-inf")).softmax(dim=-1)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each token takes in the past's values, weighted by how its query meets keys.

    q (..., Tq, D), k and v (..., Tk, D) -> (..., Tq, D), as in `attention_weights`.
    """
    return attention_weights(q, k) @ v


# %% [markdown]
# First the old number inside the new result: with queries that are all zero, nobody has a
# preference, and the mean of the past from the beginning of the chapter comes back.

# %% tags=["nbval-check-output"]
x = torch.tensor([[2.0, 0.0], [4.0, 6.0], [0.0, 3.0]])
assert torch.allclose(attention(torch.zeros(3, 2), x, x), looped)
attention(torch.zeros(3, 2), x, x)

# %% [markdown]
# Then against torch's own, on random input with a batch in front:

# %%
q, k, v = torch.randn(3, 2, 10, 16, generator=generator)  # three of (B=2, T=10, D=16)
ours = attention(q, k, v)
torchs = F.scaled_dot_product_attention(q, k, v, is_causal=True)
assert torch.allclose(ours, torchs, atol=1e-6)
(ours - torchs).abs().max().item()

# %% [markdown]
# Now the check that matters most. If the mask were wrong, the model would see the answers, its
# training loss would look wonderful, and it would write nonsense. So we change the last token in
# every way it could have an influence, and demand that nothing before it moves, not even by a
# rounding error.

# %%
k2, v2 = k.clone(), v.clone()
k2[:, -1], v2[:, -1] = 100.0, -100.0
changed = attention(q, k2, v2)
assert torch.equal(changed[:, :-1], ours[:, :-1])
assert not torch.allclose(changed[:, -1], ours[:, -1])

# %% [markdown]
# What would happen without the mask? The same test catches it at once: what the *earlier* tokens
# take in moves by a hundred. (The 4 is $\sqrt{16}$.)

# %%
unmasked = (q @ k.transpose(-2, -1) / 4).softmax(-1) @ v
unmasked2 = (q @ k2.transpose(-2, -1) / 4).softmax(-1) @ v2
(unmasked2 - unmasked)[:, :-1].abs().max().item()

# %% [markdown]
# And the last token alone, asking all keys, gets what it got in company:

# %%
assert torch.allclose(attention(q[:, -1:], k, v), ours[:, -1:], atol=1e-6)

# %% [markdown]
# ## Blind to order
# Something is odd about this function. The mask says who may be looked at, but those form a heap:
# nothing says which came first. Shuffle the past, and the last token does not notice:

# %%
shuffled = torch.randperm(9, generator=generator)
order = torch.cat([shuffled, torch.tensor([9])])  # the last token stays the last
same = attention(q[:, -1:], k[:, order], v[:, order])
assert torch.allclose(same, ours[:, -1:], atol=1e-6)

# %% [markdown]
# For a text that is fatal: *dog bites man*, *man bites dog*. The cure is simple. Each place in the
# window gets an embedding of its own, learnt like those of the characters, and a token enters as
# the sum of the two: *what I am* plus *where I stand*. Keys and queries are then computed from
# both. Here is the whole model with one head.


# %%
class SingleHead(nn.Module):
    """Embeddings, one attention head, and an output head; positions can be left out."""

    def __init__(self, n_embd, block_size, use_positions=True):
        super().__init__()
        self.token_embedding = nn.Embedding(V, n_embd)
        self.position_embedding = nn.Embedding(block_size, n_embd)
        self.use_positions = use_positions
        self.to_query = nn.Linear(n_embd, n_embd, bias=False)
        self.to_key = nn.Linear(n_embd, n_embd, bias=False)
        self.to_value = nn.Linear(n_embd, n_embd, bias=False)
        self.head = nn.Linear(n_embd, V)

    def embed(self, ids):
        x = self.token_embedding(ids)  # (B, T, C)
        if self.use_positions:
            x = x + self.position_embedding(torch.arange(ids.shape[1]))
        return x

    def forward(self, ids):
        x = self.embed(ids)
        y = attention(self.to_query(x), self.to_key(x), self.to_value(x))
        return self.head(y)  # (B, T, V)


# %% [markdown]
# The same shuffle, on characters: what comes after `dog bites man`, and after the same letters in
# another order (with the last one in place)?

# %%
a = tokenizer.encode("dog bites man")[None]
b = tokenizer.encode("ma bites dogn")[None]
assert sorted(a[0].tolist()) == sorted(b[0].tolist()) and a[0, -1] == b[0, -1]
difference = {}
for use_positions in (False, True):
    torch.manual_seed(3)
    model = SingleHead(64, 32, use_positions)
    difference[use_positions] = (model(a) - model(b))[0, -1].abs().max().item()
assert difference[False] < 1e-6 < 1e-2 < difference[True]
difference

# %% [markdown]
# Without positions the two texts give the same logits up to rounding, with positions they do not.

# %% [markdown]
# ## Does it help?
# Three models, same width, same number of steps, same learning rate: one whose tokens cannot look
# back at all (each keeps its own value), one head without positions, one with. A single run can be
# lucky, so each gets three seeds. What counts is the loss on the whole validation text, as mean ±
# standard deviation over the seeds.


# %%
class NoLooking(SingleHead):
    """The same model with the attention left out."""

    def forward(self, ids):
        return self.head(self.to_value(self.token_embedding(ids)))


T, steps = 32, 1500


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
makers = {
    "no looking back": lambda: NoLooking(64, T),
    "one head, no positions": lambda: SingleHead(64, T, use_positions=False),
    "one head": lambda: SingleHead(64, T),
}
curves, finals = {}, {}
for name, make in makers.items():
    finals[name] = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = make()
        curves[name] = learn(model, seed)
        finals[name].append(evaluate(model, val_ids, T))

# %% [markdown]
# The loss on the validation text, mean and deviation over the seeds:

# %%
for name, losses in finals.items():
    losses = torch.tensor(losses)
    print(f"{name:24} {losses.mean():.3f} ± {losses.std():.3f} nats")

# %%
fig, ax = plt.subplots(figsize=(7, 3.4))
for (name, curve), color in zip(curves.items(), [RED, GREEN, BLUE], strict=True):
    smooth = torch.tensor(curve).view(-1, 50).mean(dim=1)
    ax.plot(range(25, steps, 50), smooth, color=color, label=name)
ax.axhline(2.452, color="gray", ls="--", label="bigram, counted on this text")
ax.set(xlabel="step", ylabel="training loss (nats)", ylim=(2.25, 3.2))
ax.legend()
show(
    fig,
    alt="Training loss of three models over 1500 steps; the model that cannot look "
    "back ends on the bigram line, the head with positions ends lowest.",
)

# %% [markdown]
# *The last seed of each, with the floor that chapter 02 found for a bigram on the training text,
# 2.452 nats. The model that cannot look back comes close to it. (Single batches may be lower; over the
# whole text it cannot be.) The head without
# positions knows which characters are around but not where, and gets a little below. With
# positions it gets clearly below.*

# %%
new = sum(finals["one head"]) / 3
assert max(finals["one head"]) < min(finals["no looking back"]) - 0.04
print(f"one head: {new:.2f} nats")

# %% [markdown]
# The gain is more than ten times the spread between seeds, so it is no luck, and three quarters of
# it need positions. Still it is small. One head takes *one* weighted mean of the past, so
# everything that it tells about up to thirty-two characters has to fit through one average. And so has
# what the token itself is: whatever weight goes to the past is taken from the present. The next chapter
# gives each token several means, and asks what of the gain is owed to which.
#
# (The curves still fall when the steps end. So these numbers compare how fast the models learn as much as
# what they can do. The rate of 0.3 is small against chapter 02's 50: there each row of the table was
# touched now and then, here every token moves the same matrices.)

# %% [markdown]
# ## Summary
# A token became a point, and its past a weighted mean of points. We wrote that mean as a loop, as a
# matrix, as a softmax, and then let each token set the weights: scores are dot products of queries
# and keys, divided by $\sqrt D$ so that the softmax stays undecided at first, with the future
# masked. Attention alone does not know order; a learnt embedding for each place tells it. One
# head takes the loss from 2.48 to about 2.37 nats.

# %% [markdown]
# ## Exercises
# **1.** Set the weights by hand: write `q` and `k` for 5 tokens so that each token looks (almost)
# only at the one before it. (The first has none and looks at itself.)
# ```python
# weights = attention_weights(q, k)
# assert (weights[1:].diagonal() > 0.99).all()
# ```
# **2.** A head in which every token looks only at itself is no head at all. Which `q` and `k` give
# that, and what is `attention(q, k, v)` then?
# ```python
# assert torch.allclose(attention(q, k, v), v, atol=1e-4)
# ```
# **3.** Without the mask the training loss is a lie. Train a `SingleHead` whose attention is
# unmasked, and compare its training loss with its loss on the last place of each window, the only
# one whose answer does not stand in the input.
# ```python
# assert honest_loss > cheating_loss + 0.3
# ```

# %% [markdown]
# ## Solutions

# %% jupyter={"source_hidden": true}
places = torch.eye(6)
q, k = 50 * places[:5], places[1:6]  # token t asks for place t, and is place t + 1
weights = attention_weights(q, k)
assert (weights[1:].diagonal() > 0.99).all()
weights.round(decimals=2)

# %% jupyter={"source_hidden": true}
q = k = 50 * torch.eye(5)
v = torch.randn(5, 5, generator=generator)
assert torch.allclose(attention(q, k, v), v, atol=1e-4)


# %% jupyter={"source_hidden": true}
class Unmasked(SingleHead):
    def forward(self, ids):
        x = self.embed(ids)
        q, k, v = self.to_query(x), self.to_key(x), self.to_value(x)
        return self.head((q @ k.transpose(-2, -1) / math.sqrt(64)).softmax(-1) @ v)


torch.manual_seed(0)
cheat = Unmasked(64, T)
cheating_loss = sum(learn(cheat, 0)[-100:]) / 100
x, y = get_batch(val_ids, 2000, T, generator)
with torch.no_grad():
    honest_loss = F.cross_entropy(cheat(x)[:, -1], y[:, -1]).item()
assert honest_loss > cheating_loss + 0.3
cheating_loss, honest_loss

# %% [markdown]
# The model has learnt to read the answer off the next place. Where there is no next place it
# does worse than the unigram model, which looks at nothing (3.35 nats).
