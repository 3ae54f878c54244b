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
# # 08 · Generation
# > How do you draw text from it, and fast?
#
# *Fifty minutes to read, one to run, and a minute or two more where chapter 07 hasn't left its model. Needs
# the attention of chapter 04 and the trained GPT of chapter 07.*
#
# Where we are: a trained GPT that predicts the next character at about 1.80 nats. At the end of chapter 07
# it wrote a little, by drawing one character after the other. Two questions were left open. *How* should we
# draw: always the likeliest character, or by the probabilities, or something in between? And how much work
# can be saved? For every new character the model read its last 64 characters again, although it had read 63
# of them a moment before.
#
# The number to beat is a speed this time: eleven tokens per second on one processor core. That is how fast a model of ten million parameters writes when it reads its window of 256 tokens anew for every
# token.

# %%
import copy
import json
import re
import time
from functools import partial
from pathlib import Path

from course import BLUE, GREEN, PROMPT, RED, plt, show
from course.models import trained
from tinygpt_lib import load_shakespeare
from tinygpt_lib.bigram import NGram, evaluate
from tinygpt_lib.gpt import GPTConfig
from tinygpt_lib.multi_head import MultiHeadAttention
from tinygpt_lib.text import CharTokenizer, split
from tinygpt_lib.training import cpu_preset

text = load_shakespeare()
tokenizer = CharTokenizer.from_text(text)
V = tokenizer.vocab_size
train_ids, val_ids = split(tokenizer.encode(text))
train_text, val_text = split(text)

# %%
#| export
import torch
from torch import Tensor

from tinygpt_lib.basics.evaluation import evaluating
from tinygpt_lib.gpt import GPT

# %% [markdown]
# `trained` loads the model of chapter 07 from the folder `runs`, or trains it now if it isn't there.

# %%
model, history = trained("cpu", *cpu_preset(V), train_ids, val_ids, tokenizer)
_, val_loss = history.evaluations[-1]
f"{val_loss:.2f} nats"

# %% [markdown]
# ## One prediction
# What does the model expect after `ROMEO:` and a line that begins `I will n`? It returns logits for every
# position of the text. Only the last position's logits predict a character that we don't have yet.

# %%
prompt = tokenizer.encode("ROMEO:\nI will n")[None]  # (1, T)
with torch.no_grad():
    logits = model(prompt)[0, -1]  # (V,)
p, i = logits.softmax(-1).topk(5)
{c: round(p, 3) for c, p in zip(tokenizer.decode(i), p.tolist(), strict=True)}

# %% [markdown]
# Always taking the likeliest is called **greedy**. It sounds reasonable. What do you expect it to write?


# %%
def draw(choose, n=200):
    """The prompt and n characters more, each picked by choose(logits): the slow way."""
    ids = tokenizer.encode(PROMPT)[None]
    with torch.no_grad():
        for _ in range(n):
            last = model(ids[:, -64:])[:, -1]  # (1, V)
            ids = torch.cat([ids, choose(last)], dim=1)
    return tokenizer.decode(ids[0])


greedy = draw(lambda logits: logits.argmax(-1, keepdim=True))
print(greedy)

# %% [markdown]
# It goes in circles. Sooner or later it had to: greedy leaves nothing to chance, and the model sees only 64
# characters. Once the same 64 come up again, everything that followed them follows again, for ever. That it
# happens so soon fits what Holtzman et al. (2019) saw in larger models: each repetition makes the next one
# likelier. And real text isn't a chain of likeliest characters: Shakespeare surprises this model by 1.80 nats a
# character.

# %% [markdown]
# ## Temperature
# Drawing by the probabilities brings the surprise back. It also brings, now and then, a character that the
# model itself thought very unlikely. We want something in between. Divide the logits by a number, the
# **temperature**, before the softmax. Below 1 the likely gets likelier; above 1 everything evens out.
# Before you look: three logits, 2, 1 and 0. At temperature 1 each is $e$ times as likely as the next. What
# does temperature 0.5 make of the factor?

# %% tags=["nbval-check-output"]
three = torch.tensor([2.0, 1.0, 0.0])
for temperature in (0.5, 1.0, 2.0):
    print(temperature, (three / temperature).softmax(-1))

# %% [markdown]
# The factor is squared: $e^2 = 7.4$. As the temperature goes to 0 the largest logit takes all, so greedy is
# temperature 0. To watch the probabilities move with the temperature, run `python -m tinygpt_lib play
# runs/cpu`.

# %% [markdown]
# ## Cutting off the tail
# Temperature acts on all characters alike. But perhaps the trouble sits in the **tail**: the dozens of
# characters that have next to no chance each. What probability do all characters below 1 % have together?
# And how often is the character that really comes one of them?

# %%
with torch.no_grad():
    p = model(val_ids[:6400].view(100, 64)).softmax(-1).flatten(0, 1)  # (6400, V)
tail = p < 0.01
real = tail.gather(-1, val_ids[1:6401, None]).float().mean()
n, mass = tail.sum(-1).float().mean(), (p * tail).sum(-1).mean()
f"{n:.0f} of {V} characters are in the tail, with {mass:.1%} together; {real:.1%} come from it"

# %% [markdown]
# About its tail the model is honest: as much of real text comes from there as it says. Exercise 1 asks
# whether it is as honest about the rest. Nothing is wrong with the tail as a *prediction*. For *writing* it
# may be wrong all the same. When Shakespeare writes an unlikely letter, he knows the word he is in. The
# model draws one of dozens of letters that it can't tell apart, and has to go on from there.
#
# Two ways to cut the tail off are common. **Top-k** (Fan et al., 2018) keeps the $k$ likeliest tokens.
# **Top-p**, also called nucleus sampling (Holtzman et al., 2019), keeps the fewest whose probabilities
# reach $p$ together. By hand, on five probabilities from the largest to the smallest:

# %% tags=["nbval-check-output"]
ordered = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05])
before = ordered.cumsum(0) - ordered  # what the likelier ones have together
ordered[:2], ordered[before < 0.75]

# %% [markdown]
# Top-2 keeps the first two. Top-p with 0.75 keeps three, because the first two have only 0.7 together. What
# is left is drawn from in the same ratio as before. Here are both on two predictions of our model, one sure
# and one unsure. Where will the cuts of top-5 and of top-p 0.9 fall?

# %%
visible = {"\n": "\\n", " ": "␣"}
fig, axes = plt.subplots(1, 2, figsize=(9.5, 2.6))
for ax, prompt in zip(axes, ("KING RICH", "ROMEO:\n"), strict=True):
    with torch.no_grad():
        p = model(tokenizer.encode(prompt)[None])[0, -1].softmax(-1)
    p, order = p.sort(descending=True)
    enough = (p.cumsum(0) - p < 0.9).sum()
    ax.bar(range(20), p[:20], color=BLUE)
    ax.axvline(4.5, color=GREEN, label="top-5")
    ax.axvline(enough - 0.5, color=RED, ls="--", label="top-p 0.9")
    ax.set_xticks(range(20), [visible.get(c, c) for c in tokenizer.decode(order[:20])])
    ax.set(title=repr(prompt), xlabel="next character", ylabel="probability")
axes[1].legend()
show(
    fig,
    alt="Probabilities of the twenty likeliest characters. After KING RICH nearly all is on A: "
    "top-p keeps one, top-5 five. After ROMEO: and a new line they fall slowly from 12 %: "
    "top-p keeps 15, top-5 five.",
)

# %% [markdown]
# *Each cut keeps what stands left of it. After `KING RICH` top-p keeps the A alone, and top-5 keeps four
# more that have next to no chance. At the start of a speech top-p keeps 15 characters and top-5 only the
# first five of them.*
#
# In a model's logits nothing is in order, so we have to sort, cut, and put everything back in its place.
# `argsort` says where the largest stands, where the second, and so on. `gather` picks the numbers in that
# order. `scatter` is its reverse and puts each one back where it came from. The same five, shuffled:

# %% tags=["nbval-check-output"]
shuffled = torch.tensor([0.1, 0.5, 0.05, 0.2, 0.15])
order = shuffled.argsort(descending=True)
ordered = shuffled.gather(0, order)
ordered[3:] = 0  # top-3
order, ordered, shuffled.scatter(0, order, ordered)

# %% [markdown]
# The function that turns logits into a choice does this for each row of a batch.


# %%
#| export
def pick(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One token for each row of logits (B, V), drawn as told: (B, 1).

    Temperature 0 takes the likeliest. top_k keeps that many (Fan et al., 2018), top_p
    the fewest that reach that probability together (Holtzman et al., 2019); with both,
    what both keep.
    """
    #| hole: the likeliest at temperature 0; else the probabilities
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    probabilities = (logits / temperature).softmax(dim=-1)
    #| hole: of these, what top_k and top_p keep; the rest gets zero
    if top_k is not None or top_p is not None:
        order = logits.argsort(dim=-1, descending=True, stable=True)
        ordered = probabilities.gather(-1, order)
        if top_p is not None and top_p < 1:
            before = ordered.cumsum(-1) - ordered
            ordered[before >= top_p] = 0.0  # enough without it
        if top_k is not None:
            ordered[:, top_k:] = 0.0
        probabilities = probabilities.scatter(-1, order, ordered)
    #| end
    if generator is not None:
        probabilities = probabilities.to(generator.device)
    return torch.multinomial(probabilities, 1, generator=generator).to(logits.device)


# %% [markdown]
# <!-- hints: pick
# Temperature divides the logits, before the softmax. At 0 nothing is drawn: `argmax`, as a column (B, 1).
#
# Sort, cut, and put everything back in its place, as with the five above, but along `dim=-1` for each row.
# Top-k keeps the first k columns of what is ordered.
#
# Top-p drops a token if those *before* it reach top_p already: `cumsum` less the token itself. So the
# likeliest always stays. `multinomial` takes numbers that do not sum to one.
# -->
#
# With both, `top_p` counts the probabilities as they were before top-k cut any. Hugging Face renormalizes in
# between, so the same two numbers may keep fewer tokens there.
#
# Drawn ten thousand times from the shuffled five, the kept ones must appear in the ratio 50 : 20 : 15, each
# in its place, and the other two never.

# %%
generator = torch.Generator().manual_seed(0)
many = torch.tensor([0.1, 0.5, 0.05, 0.2, 0.15]).log().expand(10_000, 5)
drawn = pick(many, top_p=0.75, generator=generator).flatten()
shares = torch.bincount(drawn, minlength=5) / 10_000
expected = torch.tensor([0, 0.5, 0, 0.2, 0.15]) / 0.85
assert (shares - expected).abs().max() < 0.025  # five standard deviations of 0.005
assert (pick(many, top_k=1) == 1).all() and (pick(many, temperature=0) == 1).all()
shares

# %% [markdown]
# And the prompt of every chapter, continued with five settings and the same random numbers:

# %%
for how in (
    {"temperature": 0.5},
    {"temperature": 1.0},
    {"temperature": 1.5},
    {"top_k": 5},
    {"top_p": 0.9},
):
    generator = torch.Generator().manual_seed(1)
    drawn = draw(partial(pick, generator=generator, **how), 150)
    print(f"{how}\n{drawn.removeprefix(PROMPT)}\n")

# %% [markdown]
# At 0.5 the words exist, but `the` stands everywhere. At 1.5 hardly a line can be read. The two cuts lie in
# between. One sample each proves little, so below we measure.

# %% [markdown]
# ## What is computed again and again
# Now for the speed. To write 200 characters, `draw` ran the whole model 200 times, on windows that differ
# by one character. Look at the keys in each block for a text, and for the same text with one character
# more. Which of them will have changed?


# %%
def keys(model, ids):
    """The keys of every block for ids (1, T), each (H, T, D)."""
    found = []
    with torch.no_grad():
        x = model.embed(ids)
        for block in model.blocks:
            found.append(block.attention.project(block.attention_norm(x))[1][0])
            x = block(x)
    return found


ids = tokenizer.encode("ROMEO:\nI will not")[None]
for shorter, longer in zip(keys(model, ids[:, :-1]), keys(model, ids), strict=True):
    assert torch.allclose(longer[:, :-1], shorter, atol=1e-5)
shorter.shape, longer.shape

# %% [markdown]
# None of the old ones. Four heads have 16 keys of 36 numbers before and 17 after, and the first 16 are the
# same, in every block. No token can see its future, so a new character at the end changes nothing before
# it. All that the new token needs from the old ones is their keys and values. So keep these, feed in *one*
# token, and append its own.
#
# By hand, for one layer of attention: first five tokens at once, then the sixth alone. `project` returns
# queries, keys and values in this order, so `_, *kept` drops the five old queries.

# %%
torch.manual_seed(0)
layer = MultiHeadAttention(32, 4)
x = torch.randn(1, 6, 32)
with torch.no_grad():
    _, *kept = layer.project(x[:, :5])
    q, *new = layer.project(x[:, 5:])
    k, v = (torch.cat(pair, dim=2) for pair in zip(kept, new, strict=True))
    sixth = layer.merge(layer.attend(q, k, v))
    assert torch.allclose(sixth, layer(x)[:, 5:], atol=1e-6)
q.shape, k.shape

# %% [markdown]
# One query meets six keys. That is why `attention` in chapter 03 allowed fewer queries than keys. It treats
# them as those of the last tokens: of two queries for six keys, the first sees five keys and the second six.
#
# ## The cache
# ![Three steps of generation: with the cache the first computes keys and values of all three tokens and each later step those of the new one alone, 5 in all; without it every step computes all of them again, 12 in all.](drawings/cache.svg)
#
# The class below does this for a whole model. `read` walks through the model's own blocks, as
# `Block.forward` does, but between `project` and `attend` the new keys and values join the old ones. It
# takes the whole text so far and computes only what it has not read yet; that is what `start` in `embed` is
# for. Reading the prompt, all of it at once, is called **prefill**, and the steps of one token **decode**.
#
# `join` could glue tensors together, as we just did, but then all old keys would be copied for every token.
# Instead it reserves room for a whole window, keys and values in one tensor, and fills it from the left.


# %%
#| export
class KVCache:
    """Keys and values of the text read so far, and how to read on with them."""

    def __init__(self, model: GPT):
        self.model = model
        self.room = model.config.block_size  # tokens it can hold
        self.length = 0  # tokens read so far
        self.past = [None] * len(model.blocks)  # keys and values: (2, B, H, room, D)

    def join(self, i: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Block i's new k and v (B, H, T, D) behind all older ones: (B, H, Tk, D)."""
        B, H, T, D = k.shape
        if self.past[i] is None:
            self.past[i] = k.new_empty(2, B, H, self.room, D)
        #| hole: the new ones behind the old; then all that are there, as k and v
        end = self.length + T
        self.past[i][:, :, :, self.length : end] = torch.stack([k, v])
        return self.past[i][:, :, :, :end].unbind()

    def read(self, ids: Tensor) -> Tensor:
        """Logits after ids (B, T), the whole text so far: (B, V).

        Only what was not read before is computed. T is at most `room`.
        """
        #| hole: the stream of what was not read before
        x = self.model.embed(ids, start=self.length)
        #| end
        for i, block in enumerate(self.model.blocks):
            #| hole: as `Block.forward` does, but with the old keys and values, too
            q, k, v = block.attention.project(block.attention_norm(x))
            heads = block.attention.attend(q, *self.join(i, k, v))
            x = x + block.attention.merge(heads)
            x = x + block.feed_forward(block.feed_forward_norm(x))
        self.length = ids.shape[1]
        return self.model.read_out(x[:, -1:])[:, 0]


# %% [markdown]
# <!-- hints: KVCache.join
# `self.past[i]` has room for a whole window, (2, B, H, T_max, D); `self.length` of its places are filled. The T
# new ones go right behind: into `self.past[i][:, :, :, self.length : self.length + T]`, keys and values stacked.
#
# What comes back are keys and values of all self.length + T tokens. Do not move `self.length` here: the next
# block needs it as it is.
# -->
#
# <!-- hints: KVCache.read
# `self.model.embed(ids, start=...)` gives the stream of the new tokens alone, at their right places.
#
# For each block: `project` what the attention's norm reads; `join` the new keys and values to the old;
# `attend` with the new queries; `merge`, and add. Then feed-forward, as always. Dropout is off.
# -->
#
# A text that is read in pieces, of any size, has to lead to the same logits as one that is read whole:

# %%
ids = val_ids[None, :40]
cache = KVCache(model)
with torch.no_grad():
    whole = model(ids)
    for T in (17, 18, 30, 40):  # reads 17 tokens, then 1, then 12, then 10
        logits = cache.read(ids[:, :T])
        assert torch.allclose(logits, whole[:, T - 1], atol=1e-4)
cache.length, logits.shape

# %% [markdown]
# The price is memory: in every block a key and a value of `n_embd` numbers for each token, at four bytes
# each.

# %% tags=["nbval-check-output"]
c = model.config
full = 4 * 2 * c.n_layer * c.block_size * c.n_embd
assert full == sum(past.nbytes for past in cache.past)
f"{full:,} bytes; GPT-2 XL: {4 * 2 * 48 * 1024 * 1600:,}"

# %% [markdown]
# And that is for a single text: a server with fifty users needs fifty times as much. So chapter 10 tries
# attention with fewer keys and values.

# %% [markdown]
# ## Past the window
# What happens when the text gets longer than `block_size`? Our model has 64 positions. The oldest character
# has to go, and every other one moves from position $i$ to $i - 1$. Are their old keys still good?
#
# They can't be, for two reasons. A key was computed from a character *and its position*, and now every
# position is another. The second reason is easy to miss. In the second block a key is computed from a
# stream that has been through the first, where its token looked at *earlier tokens*. The character that was
# dropped is still in there. To see the two apart, we measure once with the model as it is, and once with
# all its positions set to zero. Each change is a share of the keys' own size. If old and new had nothing to do
# with each other, it would be about $\sqrt 2$, or 141 %. Which differences will be zero?

# %%
placeless = copy.deepcopy(model)
torch.nn.init.zeros_(placeless.position_embedding.weight)
window = val_ids[None, :65]  # one more than fits
for name, m in {"as it is": model, "without positions": placeless}.items():
    old, new = keys(m, window[:, :64]), keys(m, window[:, 1:])
    moved = [  # mean change of a key's entries, as a share of their mean size
        ((a[:, 1:] - b[:, :-1]).abs().mean() / a.abs().mean()).item()
        for a, b in zip(old, new, strict=True)
    ]
    print(f"{name:18}", *(f"  block {i}: {d:.1%}" for i, d in enumerate(moved, 1)))
assert moved[0] < 1e-5 < 1e-3 < min(moved[1:])

# %% [markdown]
# With the model as it is, the keys of the first block change by as much as their own size. Further up they
# change less, perhaps because the stream there holds more than a character and its position. Without positions
# the keys of the first block don't change at all: each was computed from its own character and nothing else.
# But in the second and third block they still change. That is the dropped character, seen through the tokens
# that had looked at it. A model trained without positions would have other keys, so this row shows *that* they
# change and not by how much. Better positions alone would not save the cache.
#
# So past the window the old keys are no longer those that a fresh pass would give. Chapter 11 shows a kind of attention
# that can live with old keys. Here the whole window has to be read anew for every token, or we compromise: drop half
# of it at once and read the rest anew. One long pass then serves 32 tokens, but the model sees as few as 33
# characters instead of 64. What does that cost, on 3,200 characters of real text?

# %%
targets = val_ids[65:3265]
with torch.no_grad():
    windows = val_ids[1:3264].unfold(0, 64, 1)  # (3200, 64), one for each target
    full = torch.cat([model(x)[:, -1] for x in windows.split(100)])
    windows = val_ids[32:3264].unfold(0, 64, 32)  # (100, 64), one for 32 targets
    halved = model(windows)[:, 32:].flatten(0, 1)
losses = [
    torch.nn.functional.cross_entropy(x, targets, reduction="none")
    for x in (full, halved)
]
error = (losses[1] - losses[0]).std() / 3200**0.5
"{:.3f} and {:.3f} nats, ± {:.3f}".format(*(x.mean() for x in losses), error)

# %% [markdown]
# Nothing that we can measure. The two differ by 0.004 nats, with a standard error of 0.004. (The 1.80 is for
# the whole validation text, in windows side by side, where a character may have only one before it.) What lies
# more than 33 characters back hardly helps this model. A model that used it would pay more.
#
# ## Generate
# The exported function doesn't compromise. It promises the same text with the cache as without, for any model
# (unless two choices are so close that rounding decides), and halving could not keep that promise. It uses the
# cache until the window is full. After that it reads the last `block_size` tokens anew for every token, and
# with `cache=None` it always does. `evaluating` turns dropout off meanwhile, and `.float()` is for models that
# compute in half precision.


# %%
#| export
@torch.no_grad()
def generate(
    model: GPT,
    ids: Tensor,
    n_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    cache: type[KVCache] | None = KVCache,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Continues ids (B, T0) by n_tokens: (B, T0 + n_tokens), the prompt included.

    temperature, top_k and top_p as in `pick`. The model sees the last block_size
    tokens. The same generator state gives the same text, with and without cache.
    """
    with evaluating(model):
        memory = None if cache is None else cache(model)
        for _ in range(n_tokens):
            #| hole: logits (B, V) of what comes next, with the cache while it has room
            if memory and ids.shape[1] <= memory.room:
                logits = memory.read(ids)
            else:  # past the window every position changes, and with it every key
                logits = model(ids[:, -model.config.block_size :])[:, -1]
            #| hole: pick one, and append it
            choice = pick(logits.float(), temperature, top_k, top_p, generator)
            ids = torch.cat([ids, choice], dim=1)
    return ids


# %% [markdown]
# <!-- hints: generate
# The window is `model.config.block_size`. The cache has room for as many tokens; past that, the model reads
# the last of them anew. Only the logits of the last place count.
#
# `pick` gives a column (B, 1), and `torch.cat(..., dim=1)` puts it behind the ids.
# -->
#
# Programs should use the package's own `tinygpt_lib.generate(..., use_cache=True)`, which checks every argument
# first.
#
# First find the old result in the new one. At temperature 0, `generate` must write what `draw` wrote, far past the
# window of 64.

# %%
out = generate(model, tokenizer.encode(PROMPT)[None], 200, temperature=0)
assert tokenizer.decode(out[0]) == greedy

# %% [markdown]
# And the same text with and without the cache, token for token: for prompts shorter than the window, equal
# to it and longer, for a batch of two texts, with the same seed.

# %%
for T0 in (1, 40, 63, 64, 65, 100):
    prompts = torch.stack([val_ids[:T0], val_ids[500 : 500 + T0]])
    same_dice = [torch.Generator().manual_seed(T0) for _ in range(2)]
    texts = [
        generate(model, prompts, 40, temperature=0.8, top_k=20, cache=c, generator=g)
        for c, g in zip((KVCache, None), same_dice, strict=True)
    ]
    assert torch.equal(*texts) and texts[0].shape == (2, T0 + 40)

# %% [markdown]
# ## How fast?
# Estimate first. Without a cache, token number $T$ costs a pass over $T$ tokens, with it a pass over one.
# So the factor should be about $T$, if a pass over $T$ tokens takes $T$ times as long. Past the window it
# is 1, since both read the whole window. Is it 256 at the end of a window of 256? Here is a model of
# ten million parameters, untrained, since the speed does not depend on what it knows. We count the
# processor's seconds, so that other programs don't disturb.

# %%
torch.manual_seed(0)
large = GPT(GPTConfig(V, block_size=256, n_layer=6, n_head=6, n_embd=384)).eval()


def median_seconds(function, arguments):
    """The median of some calls' processor time, after a first one to warm up."""
    times = []
    for argument in arguments:
        start = time.process_time()
        function(argument)
        times.append(time.process_time() - start)
    return sorted(times[1:])[len(times[1:]) // 2]


lengths, without, with_cache = (8, 32, 64, 128, 192, 256), [], []
with torch.no_grad():
    for T in lengths:
        ids, cache = val_ids[None, :T], KVCache(large)
        without.append(median_seconds(large, [ids] * 6))
        cache.read(ids[:, : T - 6])
        longer = [ids[:, :n] for n in range(T - 5, T + 1)]  # a token more each time
        with_cache.append(median_seconds(cache.read, longer))
assert without[-1] > 3 * with_cache[-1]  # mostly far more
per_second = [1 / seconds[-1] for seconds in (without, with_cache)]
"token 256: {:.0f} a second without, {:.0f} with".format(*per_second)

# %%
fig, ax = plt.subplots(figsize=(6.5, 3.2))
for name, seconds, look in (("with", with_cache, "o-"), ("without", without, "s--")):
    seconds = *seconds, without[-1], without[-1]  # past the window: a pass over 256
    ax.loglog([*lengths, 257, 400], [1 / s for s in seconds], look, label=name)
ax.set_xticks([*lengths, 400], [*lengths, 400])
ax.yaxis.set_major_locator(plt.LogLocator(subs=(1, 2, 5)))
ax.yaxis.set_major_formatter("{x:.0f}")
ax.minorticks_off()
ax.set(xlabel="tokens so far", ylabel="new tokens per core second")
ax.legend(title="cache")
show(
    fig,
    alt="New tokens per second against the tokens so far, logarithmic: nearly level with a "
    "cache, falling steadily without; past 256, the end of the window, both are equally slow.",
)

# %% [markdown]
# *With a cache the speed hardly depends on how much has been written already, up to 256, where the window ends. Without a
# cache it keeps falling, though less than in proportion to the length. The points past 256 aren't measured: there both
# read the whole window, so we drew the speed of a pass over 256.*
#
# The guess was 256, and it is 154 / 11 = 14. That is rough: the upper line wanders between about 120 and 155
# without a trend, so the factor is between 11 and 14. In a pass over 256 tokens each one takes 0.4
# milliseconds. A token alone takes 6.5, nearly twenty times as much, for the same arithmetic. So a step must
# have a price that is paid once, however many tokens share it: all ten million weights, 43 MB, are fetched from
# memory, and about a hundred operations of torch are started one by one. If so, eight texts that are written
# together should cost little more than one. How much?

# %%
with torch.no_grad():
    eight, cache = val_ids[:2048].view(8, 256), KVCache(large)
    cache.read(eight[:, :250])
    longer = [eight[:, :n] for n in range(251, 257)]
    together = median_seconds(cache.read, longer)
assert together < 8 * with_cache[-1]
f"eight texts at once take {together / with_cache[-1]:.1f} times as long as one"

# %% [markdown]
# That is more than a little, but far from eight. If a step costs a shared part plus a part for each text, the
# shared part is 1 − 1.3/7, about four fifths. This is why a server writes many texts together. Now the
# compromise past the window. How fast should it be?


# %%
def write_on(ids, n_tokens):
    """Like generate, but past the window's end half of the window is dropped at once."""
    start, cache = 0, KVCache(large)
    for _ in range(n_tokens):
        if ids.shape[1] - start > cache.room:
            start, cache = start + cache.room // 2, KVCache(large)
        ids = torch.cat([ids, pick(cache.read(ids[:, start:]))], dim=1)


with torch.no_grad():
    began = time.process_time()
    write_on(val_ids[None, :257], 128)  # from one halving to the next
f"{128 / (time.process_time() - began):.0f} tokens a second past the window"

# %% [markdown]
# That is within the range of the upper line in the figure: of these 128 steps, all but one read a single token.
#
# ## Does cutting help?
# What do the knobs do? We need a measure of good text. Three figures, none of which is enough by itself:
#
# - the share of its words that **exist** in the training text;
# - the number of **different** words divided by that of all words, because a text that repeats itself may
#   contain only good words;
# - what it costs a **rival**, chapter 02's 7-grams with the strength that was best there, in nats a character.
#   The rival is surprised by misspellings and bored by repetition. Good text should cost it what Shakespeare
#   costs.
#
# Every setting writes 16 texts of 250 characters, with three seeds: 36 runs, made by
# [benchmarks/part_one.py](../benchmarks/part_one.py) with these functions. Three quarters of each text lie
# past the window, where the cache is no help. A guess first: at temperature 1, what share of the words will
# exist in the training text?


# %%
def words_of(texts):
    """All words, but not the first and last of a text, which may be cut."""
    return [word for each in texts for word in re.findall(r"[A-Za-z']+", each)[1:-1]]


def judge(texts):
    """What share of words exists, what share differs, and nats for the 7-grams."""
    words, known = words_of(texts), set(words_of([train_text]))
    nats = [evaluate(rival, tokenizer.encode(each), 250) for each in texts]
    return {
        "exist": sum(word in known for word in words) / len(words),
        "different": len(set(words)) / len(words),
        "rival": sum(nats) / len(nats),
    }


def written(seed, **how):
    """16 texts of 250 characters, drawn as told."""
    generator = torch.Generator().manual_seed(seed)
    start = tokenizer.encode("\n").repeat(16, 1)
    out = generate(model, start, 250, generator=generator, **how)
    return [tokenizer.decode(row) for row in out]


# %%
rival = NGram(train_ids, n=7, vocab_size=V, strength=30.0)
kept = json.loads(Path("../benchmarks/part_one.json").read_text())["tails"]
runs = {}  # (how, strength) -> its three runs
for run in kept:
    runs.setdefault((run["how"], run["strength"]), []).append(run)

pieces = [val_text[i : i + 251] for i in range(0, len(val_text) - 251, 251)]
human = [judge(pieces[i : i + 16]) for i in range(0, 432, 16)]
again = judge(written(0, temperature=0.8))  # one of the runs, before your eyes
assert abs(again["exist"] - runs["temperature", 0.8][0]["exist"]) < 0.1
for (how, strength), three in {("Shakespeare", ""): human, **runs}.items():
    print(f"{how:12}{strength:<5}", end="")
    for key in ("exist", "different", "rival"):
        values = torch.tensor([each[key] for each in three])
        print(f"  {key} {values.mean():.3f} ± {values.std():.3f}", end="")
    print()

# %%
fig, ax = plt.subplots(figsize=(6.5, 3.8))
looks = {
    "temperature": ("o-", (4, 4)),
    "top_k": ("s-", (-13, -11)),
    "top_p": ("^-", (4, 4)),
}
for how, (look, aside) in looks.items():
    mine = {strength: three for (name, strength), three in runs.items() if name == how}
    x, y = (
        [sum(run[key] for run in three) / 3 for three in mine.values()]
        for key in ("different", "exist")
    )
    (line,) = ax.plot(x, y, look, label=how)
    note = {"xytext": aside, "textcoords": "offset points", "color": line.get_color()}
    for strength, *at in zip(mine, x, y, strict=True):
        ax.annotate(strength, at, fontsize=8, **note)
x, y = ([run[key] for run in human] for key in ("different", "exist"))
ax.plot(x, y, "k.", ms=4, label="Shakespeare")
ax.set(xlabel="different words / all words", ylabel="share of words that exist")
ax.legend()
show(
    fig,
    alt="Share of existing words against share of different words. Temperature, top-k and top-p "
    "run down almost the same line, from 93 % and 28 % to 68 % and 63 %, top-k a little lower "
    "where it is strict. Shakespeare's points lie to the right, around 94 % and 50 %.",
)

# %% [markdown]
# *Each point is the mean of three seeds, with the strength beside it. Every black dot is as much of
# Shakespeare as a run writes. Further up the words are better spelled, further to the right there are more
# of them.*
#
# No knob clearly beats temperature here: all three slide along almost the same line. Some of top-p's points lie
# a little above it, but three seeds can't settle that. Top-k falls behind where it is strict: it keeps three
# characters even where only one makes sense, and no more than three where ten do.
#
# Shakespeare is off the line. Where half of his words are different, 94 % exist; our model has about 79 %
# at that point, at any setting.
#
# Which strength shall we take? Temperature 0.4 comes closest to Shakespeare in existing words, 0.8 in different
# words. The rival notices both faults, but they cancel: misspellings raise its cost, and repetition lowers it.
# Top-k 5 costs it just what he does, 1.59, with 41 % of its words different and 85 % existing. So equal cost is
# no proof of equal text. We take temperature 0.8, the simplest knob. There the text is as varied as his, and
# the price is one word in five that doesn't exist.

# %% [markdown]
# ## A play
# Part I ends with a play, from the prompt of every chapter.

# %%
generator = torch.Generator().manual_seed(0)
start = tokenizer.encode(PROMPT)[None]
play = generate(model, start, 500, temperature=0.8, generator=generator)
print(tokenizer.decode(play[0]))

# %% [markdown]
# It knows how a play is laid out, about how long a line is, and how to spell the commoner words; of three speakers
# it has invented two. It doesn't know what a sentence is. Still, all it had was a million characters and a minute
# or two.
#
# How far can the same idea go? Chapter 12 trains a larger GPT with modern parts, for half an hour on two
# cores, and keeps a sample in [benchmarks/presets.json](../benchmarks/presets.json). It was drawn at
# temperature 1, after an empty line, so our model first writes under the same conditions:

# %%
best = json.loads(Path("../benchmarks/presets.json").read_text())["best"]
generator = torch.Generator().manual_seed(best["seeds"][-1])
ours = generate(model, tokenizer.encode("\n")[None], 400, generator=generator)
print(tokenizer.decode(ours[0]))

# %%
print(best["sample"])
print(f"\n{best['loss'][-1]:.2f} nats on the validation text")

# %%
known = set(words_of([train_text]))
for sample in (tokenizer.decode(ours[0]), best["sample"]):
    words = words_of([sample])
    print(f"{len(words)} words, unknown:", *(w for w in words if w not in known))

# %% [markdown]
# Both used the same random numbers, so they begin alike and soon part. In these two samples the better model's
# lines sound more like English, 92 % of its words occur in the training text, against 75 % of ours, and now and
# then a clause means something. It needed what Part II teaches: a better way to tell positions, a better
# optimizer, a window of 256, more weights. It also read the text ten times, where ours read it once.

# %% [markdown]
# ## Summary
# Greedy goes in circles. Temperature, top-k and top-p turn down or cut off what the model finds unlikely; here
# they trade variety against spelling along nearly the same line. Since no token sees its future, old keys and
# values stay as they are, and a cache turns a pass over the window into a pass over one token: the same text,
# and more than ten times as fast at the end of a window of 256. It isn't 256 times as fast, because a step has
# a price that even a single token pays in full. Past the window a fresh pass gives other keys, since positions
# have changed and later blocks remember what was dropped. To drop half of the window at once costs this model
# nothing measurable and keeps the speed.
#
# This ends Part I. You have built a GPT, all of it. Part II asks what could be better: other units of text,
# modern parts, longer memories, more speed, and other things to read than plays.

# %% [markdown]
# ## Exercises
# `make learn CHAPTER=08` makes a workbook that checks what you write here, and
# [the solutions](solutions/08_generation.ipynb) have a notebook of their own.
#
# **1.** Does the model know how unsure it is? What does text cost the model that wrote it, if it was drawn at
# some temperature? Write `own_cost(logits, temperature)`: the expected cost, in nats, of one token that is drawn
# from these logits at this temperature and judged, as always, at temperature 1. Then let the model write 2,000
# characters and `evaluate` it on its own text. If its probabilities are honest, its text at temperature 1
# should surprise it about as much as Shakespeare's does. What happens at 0.5?
#
# **2.** *Min-p* (Nguyen et al., 2024) cuts the tail in yet another way: it keeps every token that has at
# least the share $m$ of the likeliest token's probability. Write `min_p(probabilities, m)`, which gives the
# probabilities that are left, for a batch. When does it keep more tokens than top-p?
