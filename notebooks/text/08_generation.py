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
# Where we are: a trained GPT that predicts the next character at about 1.8 nats. At the end of
# chapter 07 it wrote a little, by drawing one character after the other. Two things were left open.
# *How* should one draw? Always the likeliest, or by the probabilities, or something in between?
# And: every new character made the model read the last 64 again, although it had read 63 of them a
# moment before. How much of that work can be saved?
#
# The number to beat is a speed: tokens per second, for a model of ten million parameters that
# reads its whole window anew for every token.

# %%
import time
from collections import Counter

from course import BLUE, RED, plt, show
from course.models import trained
from tinygpt_lib import load_shakespeare
from tinygpt_lib.bigram import evaluate
from tinygpt_lib.multi_head import MultiHeadAttention
from tinygpt_lib.text import CharTokenizer, split
from tinygpt_lib.training import cpu_preset

text = load_shakespeare()
tokenizer = CharTokenizer.from_text(text)
V = tokenizer.vocab_size
train_ids, val_ids = split(tokenizer.encode(text))

# %%
#| export
import torch
from torch import Tensor

from tinygpt_lib.basics.evaluation import evaluating
from tinygpt_lib.gpt import GPT

# %% [markdown]
# We need a model that has learnt something: the one of chapter 07. It is loaded from the folder
# `runs`, or trained now if it isn't there, which takes a minute or two.

# %%
model, history = trained("cpu", *cpu_preset(V), train_ids, val_ids, tokenizer)
_, val_loss = history.evaluations[-1]
val_loss

# %% [markdown]
# ## One prediction, looked at
# What does it expect after `ROMEO:\nI will n`? The model returns logits for every place; the last
# place is the one that has a future.

# %%
prompt = tokenizer.encode("ROMEO:\nI will n")[None]  # (1, T)
with torch.no_grad():
    logits = model(prompt)[0, -1]  # (V,)
top = logits.softmax(-1).topk(6)
[
    (tokenizer.decode(i), round(p.item(), 3))
    for p, i in zip(top.values, top.indices, strict=True)
]

# %% [markdown]
# Always taking the likeliest is called **greedy**. It sounds reasonable, and this is what comes of
# it:


# %%
def draw(choose, n=200, texts=1, start="ROMEO:\n"):
    """n characters after start, each picked by choose(logits); the slow way."""
    ids = tokenizer.encode(start).repeat(texts, 1)
    with torch.no_grad():
        for _ in range(n):
            last = model(ids[:, -64:])[:, -1]  # (texts, V)
            ids = torch.cat([ids, choose(last)], dim=1)
    return [tokenizer.decode(row) for row in ids]


(greedy,) = draw(lambda logits: logits.argmax(-1, keepdim=True))
print(greedy)

# %% [markdown]
# It goes in circles. The likeliest next character is nearly always the dullest one, and once a
# phrase has come up twice, a third time is likelier still. People don't speak in most likely words,
# and real text surprises this model all the time, by 1.8 nats a character. A text without surprise
# is not like it.
#
# ## Temperature
# Drawing by the probabilities gives the surprise back, and with it now and then a character that
# the model itself thought very unlikely; one such slip, and the rest of the word is ruined. So
# one wants to turn the surprise down a little, without turning it off. Divide the logits by a
# number, the **temperature**, before the softmax: below 1 the differences grow and the likely gets
# likelier, above 1 everything evens out. Three logits, three temperatures:

# %% tags=["nbval-check-output"]
three = torch.tensor([2.0, 1.0, 0.0])
for temperature in (0.5, 1.0, 2.0):
    print(temperature, (three / temperature).softmax(-1))

# %% [markdown]
# As the temperature goes to 0, the largest logit takes all: greedy is temperature 0. On the
# prediction from above:

# %%
fig, axes = plt.subplots(1, 3, figsize=(9.5, 2.7), sharey=True)
order = logits.argsort(descending=True)[:12]
names = [repr(tokenizer.decode(i))[1:-1] for i in order]
for ax, temperature in zip(axes, (0.5, 1.0, 2.0), strict=True):
    ax.bar(range(12), (logits / temperature).softmax(-1)[order], color=BLUE)
    ax.set_xticks(range(12), names)
    ax.set(title=f"temperature {temperature}", xlabel="next character")
axes[0].set_ylabel("probability")
show(
    fig,
    alt="Probabilities of the twelve likeliest characters at three temperatures: one bar "
    "dominates at 0.5, they are more even at 2.",
)

# %% [markdown]
# *The same logits three times. The order never changes, only how much the first is preferred. (The
# last label is a space.)*
#
# Which temperature is good? Two measures that pull in opposite directions: what share of the words
# it writes exist in the training text, and what share of its words are different from each other (a
# text in circles has few). Eight short texts at each temperature:

# %%
known_words = set(text[: len(train_ids)].split())
at = (0.2, 0.4, 0.6, 0.8, 1.0, 1.3)


def sample(temperature, generator):
    return lambda z: torch.multinomial(
        (z / temperature).softmax(-1), 1, generator=generator
    )


existing, different = [], []
for temperature in at:
    generator = torch.Generator().manual_seed(0)
    texts = draw(sample(temperature, generator), n=190, texts=8)
    words = [word for each in texts for word in each.split()[1:-1]]
    existing.append(sum(w in known_words for w in words) / len(words))
    different.append(len(set(words)) / len(words))

fig, ax = plt.subplots(figsize=(6, 3.1))
ax.plot(at, existing, "o-", color=BLUE, label="words that exist")
ax.plot(at, different, "s-", color=RED, label="words different from each other")
words = text[len(train_ids) :][:1500].split()[1:-1]
for share, color in (
    (sum(w in known_words for w in words) / len(words), BLUE),
    (len(set(words)) / len(words), RED),
):
    ax.axhline(share, color=color, ls="--", lw=1)
ax.set(xlabel="temperature", ylabel="share of words", ylim=(0, 1))
ax.legend()
show(
    fig,
    alt="Against temperature, the share of existing words falls and the share of different "
    "words rises; they cross below 1.",
)

# %%
assert existing[0] > existing[-1] and different[0] < different[-1]

# %% [markdown]
# *Cold, it repeats a few correct words. Hot, it hardly repeats any, but half of them don't exist.
# The broken lines are what 1,500 characters of the validation text have. No temperature gives both: this
# model has not learnt enough words. At 0.8 it repeats itself little and most of its words exist; we use
# that from here on.*

# %% [markdown]
# ## Cutting off the tail
# Temperature treats all characters alike, but the trouble comes from the tail: dozens of characters
# with next to no chance each. How much do all have together, on average, whose chance is below one in
# a hundred? And how often is the real next character one of them?

# %%
with torch.no_grad():
    windows = val_ids[:6400].view(100, 64)
    tail = model(windows).softmax(-1).flatten(0, 1)
n = (tail < 0.01).sum(-1).float().mean()
real = (tail.gather(-1, val_ids[1:6401, None]) < 0.01).float().mean()
f"{n:.0f} characters have {(tail * (tail < 0.01)).sum(-1).mean():.1%}, and come {real:.1%}"

# %% [markdown]
# So the chances are about right: real text lands in the tail as well. But the rare character of a play
# belongs to a rare word. One that is drawn from dozens mostly belongs to none, and the model has to go
# on from it.
#
# Two ways to cut the tail off. **Top-k** keeps the $k$ likeliest. **Top-p** (Holtzman et al., 2019, *The
# Curious Case of Neural Text Degeneration*) keeps the fewest whose probabilities reach $p$ together:
# few when the model is sure, many when it is not. By hand, on five probabilities:

# %% tags=["nbval-check-output"]
p = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05])
before = p.cumsum(0) - p  # what the likelier ones have together
p[:2], p[before < 0.75]

# %% [markdown]
# Top-2 keeps the first two. Top-p with 0.75 keeps three: the first two have only 0.7 together, so
# the third is still needed. What remains is drawn from as before. Here is the function that turns
# logits into one choice for each row of a batch.


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

    Temperature 0 takes the likeliest. top_k keeps that many, top_p the fewest that
    reach that probability together (Holtzman et al., 2019); with both, what both keep.
    """
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    probabilities = (logits / temperature).softmax(dim=-1)
    if top_k is not None or top_p is not None:
        order = logits.argsort(dim=-1, descending=True, stable=True)
        ordered = probabilities.gather(-1, order)
        if top_p is not None and top_p < 1:
            before = ordered.cumsum(-1) - ordered
            ordered[before >= top_p] = 0.0  # enough without it
        if top_k is not None:
            ordered[:, top_k:] = 0.0
        probabilities = probabilities.scatter(-1, order, ordered)
    if generator is not None:
        probabilities = probabilities.to(generator.device)
    return torch.multinomial(probabilities, 1, generator=generator).to(logits.device)


# %% [markdown]
# Drawn ten thousand times from the five probabilities, in the order in which they came, the kept
# ones must appear in the ratio 50 : 20 : 15 and the others never.

# %%
generator = torch.Generator().manual_seed(0)
many = p.log().expand(10_000, 5)
shares = (
    torch.bincount(pick(many, top_p=0.75, generator=generator).flatten(), minlength=5)
    / 10_000
)
expected = torch.tensor([0.5, 0.2, 0.15, 0, 0]) / 0.85
assert (shares - expected).abs().max() < 0.025  # five standard deviations of 0.005
assert (pick(many, top_k=1) == 0).all() and (pick(many, temperature=0) == 0).all()
shares

# %% [markdown]
# ## What is computed again and again
# Now for the speed. To write 200 characters, `draw` ran the whole model 200 times, on windows that
# differ by one character. Look into the first attention of the model, at the keys of a window and
# at those of the same window with one more character:


# %%
def first_keys(ids):
    """Keys of the first block, (H, T, D)."""
    block = model.blocks[0]
    with torch.no_grad():
        _, k, _ = block.attention.project(block.attention_norm(model.embed(ids)))
    return k[0]


ids = tokenizer.encode("ROMEO:\nI will not")[None]
shorter, longer = first_keys(ids[:, :-1]), first_keys(ids)
assert torch.allclose(longer[:, :-1], shorter, atol=1e-6)
shorter.shape, longer.shape

# %% [markdown]
# Four heads with 16 and 17 keys of 36 numbers each, and the first 16 are the same. So are the old
# values, and so is everything in every later block: since no token can see its future, a new
# character at the end changes nothing before it. All the new token needs from the old ones is their
# keys and values. Its own query asks them, and it is the only one with a question. So keep keys and
# values, feed in *one* token, and append its own.
#
# By hand, for one layer of attention: first five tokens at once, then the sixth alone.

# %%
torch.manual_seed(0)
layer = MultiHeadAttention(32, 4)
x = torch.randn(1, 6, 32)
with torch.no_grad():
    _, k_old, v_old = layer.project(x[:, :5])
    q, k, v = layer.project(x[:, 5:])
    k, v = torch.cat([k_old, k], dim=2), torch.cat([v_old, v], dim=2)
    sixth = layer.merge(layer.attend(q, k, v))
    assert torch.allclose(sixth, layer(x)[:, 5:], atol=1e-6)

# %% [markdown]
# ## The cache
# ![Three steps of generation: with the cache the first computes keys and values of all three tokens and each later step those of the new one alone, 5 in all; without it every step computes all of them again, 12 in all.](drawings/cache.svg)
#
# That is the whole trick. The class below is what `MultiHeadAttention` has been ready for since
# chapter 04. Instead of gluing tensors together for every token, which copies all old keys each
# time, it reserves room for a whole window once and fills it. (`narrow(2, a, n)` is the slice
# `[:, :, a : a + n]`, in less time: here it is asked for hundreds of times a second.)


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
        for kept, new in zip(self.past[i], (k, v), strict=True):
            kept.narrow(2, self.length, T).copy_(new)
        return self.past[i].narrow(3, 0, self.length + T).unbind()

    def read(self, ids: Tensor) -> Tensor:
        """Logits after ids (B, T), the whole text so far: (B, V).

        Only what was not read before is computed. T is at most `room`.
        """
        x = self.model.embed(ids, start=self.length)
        for i, block in enumerate(self.model.blocks):
            q, k, v = block.attention.project(block.attention_norm(x))
            heads = block.attention.attend(q, *self.join(i, k, v))
            x = x + block.attention.merge(heads)
            x = x + block.feed_forward(block.feed_forward_norm(x))
        self.length = ids.shape[1]
        return self.model.read_out(x[:, -1:])[:, 0]


# %% [markdown]
# A GPT needs one for each block. (`LAYER_CACHES` is for attentions that want to remember in another
# way, and `endless` for models whose window never runs out; ours is neither. `before` is for
# embeddings that look at more than one token: ours looks back on none, and is told nothing.)


# %% [markdown]
# Feeding a text piece by piece, in pieces of any size, has to give the same logits as feeding it
# whole:

# %%
ids = val_ids[None, :40]
with torch.no_grad():
    whole = model(ids)
    cache = KVCache(model.config)
    pieces = [
        model(ids[:, a:b], cache) for a, b in ((0, 17), (17, 18), (18, 30), (30, 40))
    ]
assert torch.allclose(torch.cat(pieces, dim=1), whole, atol=1e-5)
assert cache.length == 40

# %% [markdown]
# ## Past the window
# What happens when the text gets longer than `block_size`? The model has only 64 positions, so the
# oldest character has to go, and all others move up by one. But a key was computed from a character
# *and its position*. When the window slides, every position changes, and with it every key and
# value. Here are the keys of the same characters, one place further left:

# %%
window = val_ids[None, :64]
moved = first_keys(window)[:, 1:] - first_keys(window[:, 1:])
assert moved.abs().max() > 0.01
moved.abs().max().item()

# %% [markdown]
# Differences of several units are no rounding errors. Past the window the old keys are wrong, and
# the whole window is computed anew for every token, as without a cache. A program that went on
# using the old ones would write something, just not what this model says. (Chapter 11 builds a
# model that needs no such thing, and can write for ever.)
#
# That is the rule of the function that we export: below the window a cache, past it the last
# `block_size` tokens, and with or without a cache the same text. (`READERS` may hold another way to
# take in single tokens, for a kind of device; ours is empty, and the model itself does it.)


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
        memory = cache and cache(model)
        for _ in range(n_tokens):
            if memory and ids.shape[1] <= memory.room:
                logits = memory.read(ids)
            else:  # past the window every position changes, and with it every key
                logits = model(ids[:, -model.config.block_size :])[:, -1]
            choice = pick(logits.float(), temperature, top_k, top_p, generator)
            ids = torch.cat([ids, choice], dim=1)
    return ids


# %% [markdown]
# What it can't do, it says before any work is done:


# %% [markdown]
# The old result inside the new one: greedy, it writes what `draw` wrote, far past the window of 64.

# %%
start = tokenizer.encode("ROMEO:\n")[None]
out = generate(model, start, 200, temperature=0)
assert tokenizer.decode(out) == greedy

# %% [markdown]
# And with and without cache, token for token, for prompts shorter than, equal to and longer than
# the window, several texts at once, with the same seed:

# %%
for T0 in (1, 40, 63, 64, 65, 100):
    prompts = torch.stack([val_ids[:T0], val_ids[500 : 500 + T0]])
    texts = [
        generate(
            model,
            prompts,
            40,
            temperature=0.8,
            top_k=20,
            use_cache=use_cache,
            generator=torch.Generator().manual_seed(T0),
        )
        for use_cache in (True, False)
    ]
    assert torch.equal(*texts) and texts[0].shape == (2, T0 + 40)

# %% [markdown]
# ## How fast?
# First estimate. Without a cache, token number $T$ costs a pass over $T$ tokens; with it, a pass
# over one. So one would expect a factor of about $T$. But a pass over one token can't use the
# machine well: every weight has to be fetched from memory to be used in a single multiplication. So
# it will be less. Measured on a model of ten million parameters with a window of 256 (untrained;
# the speed does not care):

# %%
torch.manual_seed(0)
large = GPT(GPTConfig(V, block_size=256, n_layer=6, n_head=6, n_embd=384)).eval()


def median_seconds(function, *arguments, repeats=5):
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function(*arguments)
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[repeats // 2]


lengths, without, with_cache = (8, 32, 64, 128, 192, 250), [], []
with torch.no_grad():
    for T in lengths:
        ids, cache = val_ids[None, :T], KVCache(large.config)
        large(ids[:, : T - 6], cache)  # the six calls that follow fill it up to T
        without.append(median_seconds(large, ids))
        with_cache.append(median_seconds(large, ids[:, -1:], cache))

# %%
fig, ax = plt.subplots(figsize=(6.5, 3.2))
ax.loglog(lengths, [1 / s for s in with_cache], "o-", color=BLUE, label="with cache")
ax.loglog(lengths, [1 / s for s in without], "s--", color=RED, label="without")
ax.set_xticks(lengths, lengths)
ax.yaxis.set_major_locator(plt.LogLocator(subs=(1, 2, 5)))
ax.yaxis.set_major_formatter("{x:.0f}")
ax.minorticks_off()
ax.set(xlabel="tokens in the window", ylabel="new tokens per second")
ax.legend()
show(
    fig,
    alt="New tokens per second against the window's length, logarithmic: nearly level with "
    "a cache, falling steadily without.",
)

# %% [markdown]
# *With a cache the speed hardly depends on how much was written already. Without, it falls and
# falls, though less than in proportion to the length: in a short pass, most of the time goes into
# fetching the weights, and a few tokens more cost little.*
#
# And the number to beat, as a whole: a prompt of 192 tokens, then 64 more, in turns, and the better
# time of two, so that a slow moment of the machine hits neither.

# %%
prompt = val_ids[None, :192]
seconds = {True: [], False: []}
for _ in range(2):
    for use_cache in (True, False):
        begin = time.perf_counter()
        generate(large, prompt, 64, use_cache=use_cache)
        seconds[use_cache].append(time.perf_counter() - begin)
cached, uncached = min(seconds[True]), min(seconds[False])
ratio = uncached / cached
print(
    f"{64 / uncached:.0f} tokens/s without, {64 / cached:.0f} with: {ratio:.1f} times"
)

# %%
assert ratio > 3  # usually far more; left low because other programs may be running

# %% [markdown]
# ## A play
# Everything together. Temperature 0.8, the tail cut at 0.95, a speaker to begin with.

# %%
generator = torch.Generator().manual_seed(7)
start = tokenizer.encode("JULIET:\n")[None]
out = generate(model, start, 500, temperature=0.8, top_p=0.95, generator=generator)
print(tokenizer.decode(out[0]))

# %% [markdown]
# ## Summary
# Greedy goes in circles; drawing by the probabilities slips; temperature, top-k and top-p lie
# between and turn down or cut off what the model itself finds unlikely. Since no token sees its
# future, old keys and values never change, and a cache that keeps them turns a pass over the window
# into a pass over one token: several times the speed, and the same text to the last token. Past the
# window, learned positions force the whole window to be read anew.
#
# This ends Part I. You have built a GPT, all of it. Part II asks what could be better: other
# units of text, modern parts, longer memories, more speed, and other things to read than plays.

# %% [markdown]
# ## Exercises
# **1.** How much memory does the cache of the ten-million-parameter model take at its full window,
# in bytes? Compute it from the config, then measure.
# ```python
# assert estimate == sum(x.k.nbytes + x.v.nbytes for x in full_cache.layers)
# ```
# **2.** Does the model know how unsure it is? Let it write 2,000 characters at temperature 1 and
# evaluate it on its own text. If its probabilities are honest, its own text should surprise it
# about as much as Shakespeare does.
# ```python
# assert abs(own_loss - val_loss) < 0.2
# ```
# **3.** Write `repetition(text)`, the share of 10-character pieces that occur more than once, and
# show that greedy text repeats itself more than text at temperature 1.
# ```python
# assert repetition(greedy) > repetition(drawn)
# ```

# %% [markdown]
# ## Solutions

# %% jupyter={"source_hidden": true}
c = large.config
estimate = 2 * c.n_layer * c.block_size * c.n_embd * 4  # keys and values, 4 bytes each
full_cache = KVCache(c)
with torch.no_grad():
    large(val_ids[None, :256], full_cache)
assert estimate == sum(x.k.nbytes + x.v.nbytes for x in full_cache.layers)
f"{estimate:,} bytes"

# %% jupyter={"source_hidden": true}
generator = torch.Generator().manual_seed(0)
own = generate(model, tokenizer.encode("\n" * 8)[:, None], 250, generator=generator)
own_loss = sum(evaluate(model, row) for row in own) / len(own)
assert abs(own_loss - val_loss) < 0.2
own_loss, val_loss


# %% jupyter={"source_hidden": true}
def repetition(text):
    pieces = Counter(text[i : i + 10] for i in range(len(text) - 10))
    return sum(n for n in pieces.values() if n > 1) / sum(pieces.values())


drawn = tokenizer.decode(own[0])
assert repetition(greedy) > repetition(drawn)
repetition(greedy), repetition(drawn)
