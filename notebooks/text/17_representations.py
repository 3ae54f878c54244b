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
# # 17 · Representations
# > What has it learned on the way?
#
# *An hour to read, a minute to run. Needs chapters 04, 06 and 15. Trains four small models.*
#
# Where we are: GPTs that predict the next character of a play, or the next line of a log; the best of them
# better than anything that only counts. Nothing else was asked of them. To do it they turn each token into
# a vector, and each block rewrites these vectors. This chapter opens a model and looks. What does each
# layer already know? Where do its heads look? Can we find the parts that do one job, and prove that they
# do it? And are the vectors of use for questions that nobody trained it for?
#
# It is easy to see in such pictures what one hopes to see. So every finding gets a number, and a number
# to beat: that of a GPT of the same shape that has learned nothing, and that of a **bag of n-grams**
# (which short pieces occur, and how often), which needs no GPT at all. For the speaker of a speech, one
# of ten, the bag scores a macro-F1 of 0.30. (It is explained below; 1 is perfect, and names drawn by
# chance score 0.10.)
#
# If the first output says SYNTHETIC, the log was made by a program, and the numbers of the last sections
# will differ.

# %%
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch.nn.functional as F

from course import BLACK, BLUE, GREEN, ORANGE, plt, show
from course.logdata import load_log
from course.models import trained
from course.probing import confusions, f1_interval, macro_f1, on_bags, on_vectors, probe
from course.tasks import workload_task
from tinygpt_lib import CharTokenizer, FastConfig, load_shakespeare, new_model, train
from tinygpt_lib.logs import EventTokenizer, SessionFinder, group_lines, stream
from tinygpt_lib.runs.presets import WITH_MUON, log_preset
from tinygpt_lib.speed import MODERN

log = load_log()
log.origin

# %%
#| export
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tinygpt_lib.basics.checks import check_choice, check_int
from tinygpt_lib.basics.devices import device_of
from tinygpt_lib.basics.evaluation import evaluating
from tinygpt_lib.gpt import GPT
from tinygpt_lib.logs import in_windows

# %% [markdown]
# ## A model to open
# It has read plays. Its shape is that of chapter 12, small: four blocks of four heads, 96 wide. Beside it
# stands a model of the same shape that has learned nothing. (Chapter 12's model begins with blocks that
# add nothing, which would be too easy to beat. This one begins with outputs drawn at random, as in Part I.)

# %%
text = load_shakespeare()
chars = CharTokenizer.from_text(text)
train_ids, val_ids = chars.encode(text).tensor_split([-25_601])
shape = {"block_size": 128, "n_layer": 4, "n_head": 4, "n_embd": 96}
verse_config = FastConfig(chars.vocab_size, **shape, **MODERN)
plan = replace(WITH_MUON, steps=120, batch_size=16, learning_rate=0.02, eval_every=0)
verse, history = trained("17-verse", verse_config, plan, train_ids, val_ids, chars)

torch.manual_seed(1)
fresh_verse = new_model(replace(verse.config, zero_outputs=False)).eval()
f"{verse.n_parameters():,} parameters, {history.evaluations[-1][1]:.2f} nats per character"

# %% [markdown]
# ## What lies between
# In chapter 06 a GPT was: embed, go through the blocks, read out. We walk that way ourselves, and
# keep what lies on it.

# %%
line = chars.encode("But soft! what light through yonder window breaks?")[None]
x = verse.embed(line)
states = [x]
for block in verse.blocks:
    x = block(x)
    states.append(x)
assert torch.equal(verse.read_out(x), verse(line))
[tuple(state.shape) for state in states]

# %% [markdown]
# A vector of 96 numbers for each character, five times: before the first block, and after each. Reading
# out the last gives the model's own prediction, bit for bit. As a function:


# %%
#| export
def hidden_states(model: GPT, ids: Tensor) -> list[Tensor]:
    """What the first block is given, and what each block makes of it: (B, T, C) each.

    ids (B, T) -> n_layer + 1 states; `model.read_out` of the last gives `model(ids)`.
    Gradients and dropout are as in that call.
    """
    states = [model.dropout(model.embed(ids))]
    for block in model.blocks:
        states.append(block(states[-1]))
    return states


# %%
again = hidden_states(verse, line)
assert all(torch.equal(a, b) for a, b in zip(states, again, strict=True))
[round(state.square().mean().sqrt().item(), 1) for state in states]

# %% [markdown]
# These are their typical sizes. They grow: what the blocks add outweighs what they cancel.
#
# ## What each layer already knows
# If reading out the last state gives a prediction, what does reading out an earlier one give? Such
# a state was never trained to be read. But blocks only add to a common stream, so a half-finished
# sum may already point the right way. This is called the *logit lens* (nostalgebraist, 2020).
#
# Below is one line, letter by letter. Under each character that comes stands what each state expects in
# its place (a slash is a line break). Each guess is made after the true letters, not after the guesses
# before it, so the rows can't be read as words. Count what is right. What would someone score who always
# says a space?

# %%
with torch.no_grad():
    guesses = [verse.read_out(state).argmax(-1)[0] for state in states]
right = [(guess[:-1] == line[0, 1:]).sum().item() for guess in guesses]
print("comes:   " + chars.decode(line[0, 1:]).replace("\n", "/"))
for i, guess in enumerate(guesses):
    said = chars.decode(guess[:-1]).replace("\n", "/")
    print(f"layer {i}: {said}   {right[i]} right")
assert right[-1] > right[0]
print(f"always a space: {(line[0, 1:] == chars.encode(' ')).sum()} right")

# %% [markdown]
# One line proves little. Here is the loss of each state, over the whole validation text, beside that of
# the model that has learned nothing:


# %%
@torch.no_grad()
def losses_by_layer(model, windows):
    """Nats per token of each state, read out as if it were the last."""
    states, targets = hidden_states(model, windows[:, :-1]), windows[:, 1:].flatten()
    logits = [model.read_out(state).flatten(0, 1) for state in states]
    return [F.cross_entropy(z, targets).item() for z in logits]


windows = val_ids.unfold(0, 129, 128)
lens = {"trained": losses_by_layer(verse, windows)}
lens["untrained"] = losses_by_layer(fresh_verse, windows)
assert lens["trained"] == sorted(lens["trained"], reverse=True)
assert np.isclose(lens["trained"][-1], history.evaluations[-1][1], atol=1e-4)

fig, ax = plt.subplots(figsize=(5, 2.6))
for (name, losses), color in zip(lens.items(), (BLUE, ORANGE), strict=True):
    ax.plot(losses, "o-", color=color, label=name)
ax.axhline(np.log(chars.vocab_size), color=BLACK, ls=":", lw=1, label="guessing")
ax.set(xlabel="blocks passed", ylabel="nats per character", xticks=range(5), ylim=0)
ax.legend()
show(
    fig,
    alt="Loss of each state read out as if it were the last. For the trained model it falls from "
    "block to block, for the untrained one it stays at the loss of guessing.",
)
[round(loss, 2) for loss in lens["trained"]]

# %% [markdown]
# *The state before the first block holds nothing but the token itself. Each block takes the prediction
# further, and the last is the loss measured above.*
#
# ## Where it looks
# A head's weights say how much each token takes in from each earlier one (chapter 03). The fused
# attention never stores them. But any attention can be made to show them: hand it the rows of an
# identity matrix as values. What it returns for a token is then the weighted mean of those rows, and
# that is the row of weights itself.


# %%
#| export
def attention_maps(model: GPT, ids: Tensor) -> list[Tensor]:
    """How much each token looks at each other: (B, H, T, T) for every layer.

    ids (B, T), T at most block_size. Rows sum to one. The model computes the same on
    its way, but never stores it; in training mode dropout is as in that call.
    """
    maps, T = [], ids.shape[1]
    for block, x in zip(model.blocks, hidden_states(model, ids), strict=False):
        q, k, _ = block.attention.project(block.attention_norm(x))
        rows = torch.eye(T).to(k).expand(*k.shape[:2], T, T)
        maps.append(block.attention.attend(q, k, rows))
    return maps


# %% [markdown]
# Is that what the model does? If so, its values weighted by these maps must be what its attention gives.

# %%
with torch.no_grad():
    maps = attention_maps(verse, line)
    attention, read = (
        verse.blocks[0].attention,
        verse.blocks[0].attention_norm(states[0]),
    )
    q, k, v = attention.project(read)
    assert torch.allclose(attention.merge(maps[0] @ v), attention(read), atol=1e-5)

short = chars.encode("But soft! what light")[None]
letters = [c.replace(" ", "␣") for c in chars.decode(short[0])]
with torch.no_grad():
    maps = attention_maps(verse, short)
fig, axes = plt.subplots(1, 4, figsize=(10, 2.9))
for head, ax in enumerate(axes):
    ax.imshow(maps[1][0, head], vmin=0, vmax=1, cmap="Oranges")
    ax.set_xticks(range(len(letters)), letters, fontsize=7)
    ax.set_yticks(range(len(letters)), letters, fontsize=7)
    ax.set(title=f"head {head}", xlabel="looked at")
    ax.grid(False)
axes[0].set_ylabel("who looks")
show(
    fig,
    alt="Attention maps of the four heads of the second block on a line of verse: some "
    "keep close to the diagonal, others spread their weight.",
)

# %% [markdown]
# *The four heads of the second block. A dark line just below the diagonal is a head that looks one
# character back.*
#
# ## Heads by a score
# Four maps of one line prove nothing. What a head does *as a rule* is a mean over many texts. How much does
# each head look at the token just before? That is the mean of the first diagonal below the main one. More
# generally, of the diagonal `back` places below:


# %%
#| export
def looks_back(maps: Sequence[Tensor], back: int, since: int = 0) -> Tensor:
    """How much each head looks at the token `back` places before, on average: (L, H).

    `maps` are L of (B, H, T, T); only tokens from place `since` on are asked.
    """
    check_int("back", back, low=0, high=maps[0].shape[-1] - 1)
    check_int("since", since, low=0, high=maps[0].shape[-1] - 1)
    lines = torch.stack(
        [m.diagonal(-back, -2, -1) for m in maps]
    )  # (L, B, H, T - back)
    return lines[..., max(0, since - back) :].mean(dim=(1, 3))


# %% tags=["nbval-check-output"]
example = torch.tensor([[1.0, 0, 0], [0.9, 0.1, 0], [0.2, 0.5, 0.3]])[None, None]
looks_back([example], 1), looks_back([example], 1, since=2), looks_back([example], 2)

# %% [markdown]
# A head that always looked at the token before would score 1. One that looks at all tokens alike scores
# about $1/t$ at place $t$, 0.035 on average over 128 places. Rows are blocks, columns are heads:

# %%
with torch.no_grad():
    before = looks_back(attention_maps(verse, windows[:64, :-1]), 1)
    by_chance = looks_back(attention_maps(fresh_verse, windows[:64, :-1]), 1)
assert before.max() > 3 * by_chance.max()
print(f"untrained: at most {by_chance.max():.2f}")
before.round(decimals=2)

# %% [markdown]
# A score says where a head looks, not whether that matters. For that we have to step in: change what a
# head found, and see what becomes of the prediction. Chapter 04's three steps, *project*, *attend* and
# *merge*, leave the right place open. After `attend`, and before the output matrix mixes the heads,
# `change` may put something else in.


# %%
#| export
@torch.no_grad()
def intervene(
    model: GPT, ids: Tensor, change: Callable[[int, Tensor], Tensor]
) -> Tensor:
    """The logits for ids (B, T) if `change` alters what the heads find: (B, T, V).

    `change(layer, found)` gets what each head of a layer found, (B, H, T, D), and
    returns what goes on in its place. Without dropout.
    """
    x = model.embed(ids)
    for layer, block in enumerate(model.blocks):
        q, k, v = block.attention.project(block.attention_norm(x))
        found = change(layer, block.attention.attend(q, k, v))
        x = x + block.attention.merge(found)
        x = x + block.feed_forward(block.feed_forward_norm(x))
    return model.read_out(x)


# %% [markdown]
# If nothing is changed, the prediction must be the model's own. Then take out one head at a time. Its
# findings become their mean over all texts and places, so that it says the same whatever it reads. (Zeros
# would silence it too, but a constant that later layers count on would be missing as well.) By how much
# does the loss rise?

# %%
assert torch.equal(intervene(verse, line, lambda layer, found: found), verse(line))


def loss_without(layer, head):
    """Nats per character when one head finds the same everywhere."""

    def change(at, found):
        if at == layer:
            found[:, head] = found[:, head].mean(dim=(0, 1))
        return found

    logits = intervene(verse, windows[:100, :-1], change)
    return F.cross_entropy(logits.flatten(0, 1), windows[:100, 1:].flatten()).item()


whole = losses_by_layer(verse, windows[:100])[-1]
costs = torch.tensor(
    [[loss_without(layer, head) - whole for head in range(4)] for layer in range(4)]
)
most = divmod(costs.argmax().item(), 4)
print(f"most: row {most[0]}, column {most[1]}, which looks back {before[most]:.2f}")
costs.round(decimals=3)

# %% [markdown]
# The two heads that matter most look back with 0.46 and 0.44. Without either, the loss rises by 0.08 nats. But
# the score alone would not have told: the head that looks back most surely, with 0.56, costs less than half
# of that.
#
# ## Copying
# Another kind of head was found in large models: the *induction head* (Olsson et al., 2022). If the text
# so far holds `… A B … A`, it looks at `B`, the token that came after the last `A`, and so predicts that
# `B` will come again. A test: $T$ tokens drawn at random, then the same ones once more. In the second
# half, the token that came after the last time is $T - 1$ places back. How much does each head look there,
# and how much cheaper is the second half?


# %%
def repeated(ids, length, count, seed=0):
    """Rows of `length` ids drawn at random, twice each: (count, 2 length)."""
    dice = torch.Generator().manual_seed(seed)
    half = ids[torch.randint(len(ids), (count, length), generator=dice)]
    return torch.cat([half, half], dim=1)


@torch.no_grad()
def induction(model, ids, T=24):
    """How much each head looks after the last time, and the loss in both halves."""
    twice = repeated(ids, T, 64)
    scores = looks_back(attention_maps(model, twice), T - 1, since=T)
    logits = model(twice[:, :-1]).transpose(1, 2)
    nats = F.cross_entropy(logits, twice[:, 1:], reduction="none")
    halves = nats[:, : T - 1].mean().item(), nats[:, T:].mean().item()
    return scores, [round(half, 2) for half in halves]


every = torch.arange(chars.vocab_size)
scores, halves = induction(verse, every)
by_chance = induction(fresh_verse, every)[0]
f"highest score {scores.max():.2f}, untrained {by_chance.max():.2f}; halves {halves} nats"

# %% [markdown]
# No head of the model does it. None looks there more than heads of an untrained model do, and the second
# half is about as hard as the first, though all of it could be copied. (Both cost far more than guessing:
# letters drawn at random are like nothing that it has read, and the model is sure and wrong.) Perhaps
# copies are of little use in verse, perhaps the model has read too little.
#
# Or is the score blind? Let another model read nothing but random tokens that come twice, 16 and
# the same 16 again. There, copying is all that can be learned. Then ask it at that length, and at
# two others.


# %%
def echo(lengths, steps):
    """A model that has read only tokens that come twice, in rows of some lengths."""
    halves = [repeated(torch.arange(32), T, 1200, seed=T) for T in lengths]
    dice = torch.Generator().manual_seed(0)
    order = torch.randperm(1200 * len(lengths), generator=dice).tolist()
    rows = [halves[i % len(lengths)][i // len(lengths)] for i in order]
    torch.manual_seed(0)
    shape = {"block_size": 32, "n_layer": 2, "n_head": 4, "n_embd": 64}
    model = new_model(FastConfig(32, **shape, **MODERN))
    plan = replace(WITH_MUON, steps=steps, batch_size=32, learning_rate=0.01)
    plan = replace(plan, eval_every=0)
    train(model, torch.cat(rows[:-100]), torch.cat(rows[-100:]), plan, progress=False)
    return model.eval()


def at_lengths(model):
    """The highest score of a head, and the losses of both halves, at three lengths."""
    found = {T: induction(model, torch.arange(32), T) for T in (16, 13, 9)}
    return {T: (round(s.max().item(), 2), nats) for T, (s, nats) in found.items()}


same_length = echo([16], 200)
at_lengths(same_length)

# %% [markdown]
# At 16 the score is high, and the second half is cheap. At other lengths both are gone. That was no
# induction head. It is a head that has learned to look 15 places back, whatever stands there. Had we asked
# at 16 only, we would have been fooled. So once more with rows of five lengths, asked at one of them and at
# two that it has never read:

# %%
copier = echo([8, 10, 12, 14, 16], 700)
echoes = at_lengths(copier)
assert all(score > 0.25 and nats[1] < nats[0] / 2 for score, nats in echoes.values())
echoes

# %% [markdown]
# Those are induction heads: they find the place at lengths that were never read. So the score sees them
# where they are.
#
# ## A circuit, taken apart
# How does a head find the token *after* the last `A`? What stands there is `B`, and nothing about `B` says
# that an `A` came before it. One layer can't do it. The proposal of Olsson et al. takes two:
#
# 1. In the first block, a head looks one back. At `B` it writes into the stream: *before me stood an `A`*.
# 2. In the second, a head at the new `A` looks for a token that says *before me stood an `A`*, finds `B`,
#    and passes on what it is.
#
# ![An induction circuit on the text … A B … A: in block 1, arrow 1, B looks one back and notes that an A stood before it; in block 2, arrow 2, the new A looks for that note and finds B; below, the same text sound, with the first A gone, with B gone.](drawings/circuit.svg)
#
# *Arrows point to where a head looks; what it finds flows back along them. The three texts below the line
# will be used to test this.*
#
# Here are the scores of the heads of both blocks, four in a row, for looking at the token itself, one back
# and after the last time:

# %%
with torch.no_grad():
    maps = attention_maps(copier, repeated(torch.arange(32), 13, 64))
one_back, after_last = looks_back(maps, 1), looks_back(maps, 12, since=13)
looks = {"at itself": looks_back(maps, 0), "one back": one_back}
for name, scores in {**looks, "after the last time": after_last}.items():
    for block, row in enumerate(scores.tolist(), 1):
        print(f"{name:20} block {block}", *(f"{score:6.2f}" for score in row))

# %% [markdown]
# It fits the proposal: looking back happens in the first block, looking after the last time in the second.
# But to fit is no proof. The heads of the first block may look back for a reason of their own. The
# proposal makes predictions that can fail, and **patching** tests them: run the model on a broken text, put
# in one thing that a head found in the sound text, and see how much of the answer comes back.
#
# The text can be broken in two ways, each at a single token of the first half: the last two rows of the
# drawing. The question is the same both times, *what follows the second `A`?*, and so is the right answer, `B`.
#
# If the proposal is right, what do you expect? When the *name* is gone, `B` no longer says *before me stood
# an `A`*. A head of the first block must be able to repair that, and **only at the place of `B`**. When the
# *answer* is gone, that place still says *before me stood an `A`*. The first block has nothing to repair.
# In the second block heads must repair both.

# %%
dice = torch.Generator().manual_seed(1)
drawn = torch.stack([torch.randperm(32, generator=dice)[:14] for _ in range(500)])
half, other = drawn[:, :13], drawn[:, 13]  # 13 tokens, and one that isn't among them
row, at = torch.arange(500), torch.randint(1, 12, (500,), generator=dice)
answer = half[row, at + 1]

sound = torch.cat([half, half], dim=1)
no_name, no_answer = sound.clone(), sound.clone()
no_name[row, at], no_answer[row, at + 1] = other, other


def sureness(logits):
    """Log-probability of B after the second A, averaged over the texts, in nats."""
    return logits[row, 13 + at].log_softmax(-1)[row, answer].mean().item()


# %% [markdown]
# Now the patch: what some heads find in the broken text is replaced by what they found in the sound one,
# everywhere or at one place in each text.

# %%
heard = {}  # what each layer's heads found in the sound text
intervene(copier, sound, lambda layer, found: heard.setdefault(layer, found))


def repaired(broken, layer, heads, places=slice(None)):
    """What share of the lost sureness comes back when some heads hear the sound text."""

    def change(now, found):
        if now == layer:
            found = found.clone()
            for head in heads:
                if isinstance(places, Tensor):
                    found[row, head, places] = heard[layer][row, head, places]
                else:
                    found[:, head] = heard[layer][:, head]
        return found

    low, high = sureness(copier(broken)), sureness(copier(sound))
    return (sureness(intervene(copier, broken, change)) - low) / (high - low)


# %%
with torch.no_grad():
    print(f"sound {sureness(copier(sound)):.2f} nats")
    for name, broken in {"no name": no_name, "no answer": no_answer}.items():
        print(f"{name} {sureness(copier(broken)):.2f} nats; what comes back:")
        for layer in (0, 1):
            shares = [repaired(broken, layer, [head]) for head in range(4)]
            shares.append(repaired(broken, layer, range(4)))
            print(
                f"  block {layer + 1}", *(f"{share:5.0%}" for share in shares), "(all)"
            )

# %% [markdown]
# The prediction for the lost *name* holds. The first block can repair nearly all of it, and most of that
# comes from the two heads that look back most. The second block repairs all of it, shared among its four
# heads. That had to be so. Nothing comes after it, so putting back all that it found puts back the answer.
# The first block is where the test could fail.
#
# The prediction for the lost *answer* fails for the first block. It repairs a third, where we expected
# nothing. At which places?

# %%
places = {"old A": at, "B": at + 1, "after B": at + 2, "new A": 13 + at}
with torch.no_grad():
    for name, broken in {"no name": no_name, "no answer": no_answer}.items():
        shares = {p: repaired(broken, 0, range(4), t) for p, t in places.items()}
        print(name, *(f"  at {p} {share:.0%}" for p, share in shares.items()))
        assert shares.pop("B") > 3 * max(shares.values())

# %% [markdown]
# At `B` only, in both cases. With the name gone, that is the proposal: the first block writes the name into
# the stream of the token behind it. And the third of the answer? It comes from the same place. No head looks
# one back only: between a quarter and a half of the weight stays with the token itself. What they take in
# from there probably says *I am `B`*, and in the sound text they wrote that down as well. Our prediction had
# forgotten it. That is what an intervention is good for: a picture of the weights would have let us tell the
# story without the third that doesn't fit.
#
# ## One vector for a whole text
# A question about a speech or a session needs one vector for all of it. The simplest is the mean of the
# states of its tokens, at one layer. Others are the largest value of each number, and the state of the last
# token, which has seen all before it. Texts longer than the context are cut into windows that overlap by
# half (chapter 15), and each token counts once.


# %%
#| export
@torch.no_grad()
def embed(
    model: GPT,
    tokenizer,
    items: Sequence,
    layer: int | None = None,
    pool: str = "mean",
    tokens_at_once: int = 16_384,
) -> Tensor:
    """A vector for each text or session: (N, C), or of all layers (n_layer + 1, N, C).

    `items` are strings, or lists of events for an EventTokenizer, which get their begin
    and end, or ids (n,). `layer` counts the blocks passed, from 0; `pool` ("mean",
    "max", "last") is how the states of tokens become one. Events that the tokenizer
    does not know are all the same to the model. ValueError for an item without a token.
    """
    check_choice("pool", pool, ("mean", "max", "last"))
    config, coded = model.config, []
    if layer is not None:
        check_int("layer", layer, low=0, high=config.n_layer)
    for i, item in enumerate(items):
        if isinstance(item, str):
            item = tokenizer.encode(item)
        elif not isinstance(item, Tensor):
            item = tokenizer.encode_session([str(event) for event in item])
        coded.append(item)
        if not len(coded[-1]):
            raise ValueError(f"item {i} is empty: it has no token to take a state of")
    check_int("block_size", config.block_size, low=2)
    chosen = slice(None) if layer is None else slice(layer, layer + 1)
    n_states = len(range(config.n_layer + 1)[chosen])
    start = -torch.inf if pool == "max" else 0.0
    vectors = torch.full((n_states, len(coded), config.n_embd), start)
    with evaluating(model):
        # A window ends with a token that is only predicted: here the last one again.
        rows = [torch.cat([ids, ids[-1:]]) for ids in coded]
        for ids, places in in_windows(rows, config.block_size, tokens_at_once):
            states = hidden_states(model, ids[:, :-1].to(device_of(model)))[chosen]
            states = torch.stack(states).float().cpu()
            for row, (i, s, first, end) in enumerate(places):
                part, n = states[:, row, first:end], len(coded[i])
                if pool == "mean":
                    vectors[:, i] += part.sum(1) / n
                elif pool == "max":
                    vectors[:, i] = torch.maximum(vectors[:, i], part.amax(1))
                elif s + end == n:
                    vectors[:, i] = part[:, -1]
    return vectors if layer is None else vectors[0]


# %% [markdown]
# For a text that fits the context it is the mean of the states above. One of 150 characters is read in
# two windows, and of the second only the last 22 states are new:

# %%
said = "But soft! what light through yonder window breaks?"
vectors = embed(verse, chars, [said, said * 3])
assert torch.allclose(vectors[2, 0], states[2][0].mean(0), atol=1e-5)
with torch.no_grad():
    long = chars.encode(said * 3)[None]
    parts = (
        hidden_states(verse, long[:, :128])[2],
        hidden_states(verse, long[:, 64:])[2],
    )
    both = torch.cat([parts[0], parts[1][:, 64:]], dim=1)[0]
assert torch.allclose(vectors[2, 1], both.mean(0), atol=1e-5)
tuple(vectors.shape)

# %% [markdown]
# ## Is it of any use?
# Freeze the GPT, take a vector for each item, and fit the simplest classifier there is on it, a linear one.
# Such a *probe* (Alain and Bengio, 2016) finds only what lies in the vectors ready to be read, so its score
# says something about the GPT. Some traps come with it.
#
# - *Compared with what?* With the bag: n-grams of characters, or runs of events. With the untrained GPT:
#   random layers scatter their input into so many directions that a linear probe finds plenty there. And
#   with guesses: always naming the most frequent of $K$ classes has an F1 in one class only, and guessing
#   each as often as it comes scores about $1/K$.
# - *Chosen by what?* Anyone who chooses layer, pool or penalty on the test reports luck. Here each is chosen
#   by cross-validation within the training part, for the bags just as for the GPTs.
# - *Counted how?* *Macro-F1* is the mean of the F1 of each class (chapter 16), so rare classes count as much
#   as frequent ones.
# - *Seen before?* Items that are alike must not stand on both sides of the split, and the GPT must not have
#   read what is tested. Shuffled labels, which are often shown instead, can't reveal either fault.
#
# The probes are scikit-learn's ridge classifier, on vectors or on counts of n-grams weighted by how rare
# they are (*tf-idf*), in [course/probing.py](course/probing.py). Their intervals come from the bootstrap:
# draw the tested items anew, with replacement, two thousand times.
#
# The question: which of three jobs wrote this block of a file system? The path that says so is masked in the
# events, so the answer has to show in what else was reported. Of all blocks with the same events one was
# drawn, and a third of these are tested. A small GPT has read the sessions that are left.

# %%
found = group_lines((line.text for line in log.lines), SessionFinder(r"blk_-?\d+"))
jobs = workload_task(log, list(found.values()))
events = EventTokenizer.from_sessions(jobs.pretraining)
log_config, log_plan = log_preset(events.vocab_size)
log_ids = stream(jobs.pretraining, events)
cut = len(log_ids) * 9 // 10
log_plan = replace(log_plan, steps=300, eval_every=0)
logs, history = trained(
    "17-logs", log_config, log_plan, log_ids[:cut], log_ids[cut:], events
)
torch.manual_seed(1)
fresh_logs = new_model(replace(logs.config, zero_outputs=False)).eval()
f"{history.evaluations[-1][1]:.3f} nats per event, {Counter(jobs.labels.tolist())}"

# %%
rest = (jobs.labels, jobs.splits, jobs.groups)
((known, tested),) = jobs.splits
guesses = {"always the same": np.full(len(jobs.labels), "", dtype=object)}
guesses["always the same"][tested] = Counter(jobs.labels[known]).most_common(1)[0][0]
guesses["bag of single events"] = probe(on_bags(jobs.items)[:3], *rest)
guesses["bag of runs up to three"] = probe(on_bags(jobs.items), *rest)
for name, gpt in (("untrained GPT", fresh_logs), ("GPT", logs)):
    guesses[name] = probe(on_vectors(*embed(gpt, events, jobs.items)), *rest)
for name, said in guesses.items():
    f1 = macro_f1(confusions(jobs.labels, said, jobs.groups).sum(0))
    low, high = f1_interval(jobs.labels, said, jobs.groups)
    print(f"{name:24} {f1:.3f}   {low:.3f} to {high:.3f}")

# %% [markdown]
# On the real log this is sobering. The probe on the GPT scores far above guesses, and a happy author would
# stop here. But the untrained GPT scores about the same, and the bag at least as well. The score of a probe
# alone says nothing about what was learned.
#
# ## Four questions, three seeds
# The same for four tasks, by [benchmarks/representations.py](../benchmarks/representations.py):
#
# - the **speaker** of a speech, one of ten, asked about the last 30 % of each one's speeches;
# - the **workload**, the job as above;
# - the **attack**, one of six, that a trace of system calls belongs to (ADFA, chapter 16), in five folds,
#   with traces of one run kept together;
# - and one that should fail, **deletion**: from the first ten lines of a block's life, will it be deleted
#   before the log ends? That is decided later, by others.
#
# For each, three GPTs were trained on what is not tested, and probed at every layer by mean and by largest
# values.

# %%
results = json.loads(Path("../benchmarks/representations.json").read_text())


def ranged(rows):
    """The mean of some macro-F1 and their range."""
    values = [row["f1"] for row in rows]
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


for name, task in results.items():
    print(f"{name}: {task['classes']} classes, {task['tested']} tested")
    low, high = task["bag"]["interval"]
    print(f"  always the same one  {task['majority']['f1']:.3f}")
    print(f"  bag                  {task['bag']['f1']:.3f} ({low:.3f} to {high:.3f})")
    for method in ("GPT", "untrained"):
        print(f"  {method:20} {ranged([seed[method] for seed in task['seeds']])}")
    for rival in ("bag", "untrained"):
        gains = [seed["GPT"]["gain on"][rival] for seed in task["seeds"]]
        text = ", ".join(f"{low:+.3f} to {high:+.3f}" for low, high in gains)
        print(f"  gain on {rival:12} {text}")

# %%
names = ("speaker", "workload", "attack", "deletion")
fig, axes = plt.subplots(1, 4, figsize=(9, 2.5))
for ax, name in zip(axes, names, strict=True):
    task = results[name]
    for key, color, marker, label in (
        ("by layer", BLUE, "o", "GPT"),
        ("untrained by layer", ORANGE, "s", "untrained"),
    ):
        rows = np.array([seed[key] for seed in task["seeds"]])
        ax.plot(rows.mean(0), marker=marker, color=color, label=label)
        ax.fill_between(
            range(rows.shape[1]), rows.min(0), rows.max(0), color=color, alpha=0.2
        )
    for method, color, style in (("bag", GREEN, "--"), ("majority", BLACK, ":")):
        ax.axhline(task[method]["f1"], color=color, ls=style, lw=1.5, label=method)
    ax.set(
        title=name, xlabel="blocks passed", xticks=range(rows.shape[1]), ylim=(0, 0.85)
    )
axes[0].set_ylabel("macro-F1 on what is tested")
axes[0].legend(fontsize=7)
show(
    fig,
    alt="Macro-F1 of probes on the states after each block, for four tasks, trained and untrained "
    "GPTs, with lines for the bag and for always guessing the most frequent class.",
)

# %% [markdown]
# *Bands: the range over three seeds; each point may choose between the two pools. Before the first
# block a state is the embedding of the token, and its mean over a text is the bag of single tokens,
# squeezed into as many numbers as the model is wide.*
#
# An honest reading. On none of the four does the GPT beat the bag. It is behind on speakers and attacks. On
# workloads it is behind in one seed of three and level in two. Deletion fails as it should, at 0.525, where
# guesses by chance score 0.5. But the bag is wider: it has a column for every n-gram found in two texts,
# a state has 128 numbers, 64 for logs. The rival of equal width is the untrained GPT. The trained one beats it by a
# little on speakers (in two seeds of three with an interval above zero) and on attacks (in one), on
# workloads not at all. We have tried to help: all layers side by side, the mean state of each kind of token,
# gradients in place of states. The best of these draw level with the bag, and what helps the trained GPT
# helps the untrained one ([benchmarks/LOG.md](../benchmarks/LOG.md)).
#
# The states of large models are used for just such things. Why not these? Ours have read a million
# characters or a few thousand sessions. That is enough to learn much of how words are spelled and in which
# order lines come. Apparently it is not enough to learn who speaks how; we have not tried more. So take the
# bag first. It costs nothing, and any representation that claims to be useful should beat it.
#
# One use needs no classifier: *which past incident looks like this one?* Look for the vector that points
# most nearly in the same direction. How often is the nearest trace, among those of other runs, of the same
# kind of attack?

# %%
attack = results["attack"]
for n, share in attack["nearest by bags"].items():
    print(f"bag of runs up to {n}  {share:.3f}")
for name, key in (("GPT", "nearest"), ("untrained", "nearest untrained")):
    last = [seed[key][-1] for seed in attack["seeds"]]
    print(f"{name:20} {min(last):.3f} to {max(last):.3f}, last layer, three seeds")

# %% [markdown]
# Beside a bag of single events the trained GPT looks like a success, in all three seeds. Let the bag hold runs
# of three, and the lead is gone: 65.5 % for the bag, 64 to 66 % for the GPT.
#
# ## Summary
# A GPT's states lie open: walk through its blocks and keep them. Attention maps, scored over many texts, say
# where heads look; only an intervention says what they are for. In a model that had to copy we found a
# circuit of two steps: heads that write *what stood before me*, which patching confirmed, and heads that
# look for it, which go blind without the first (Exercise 3). Tested at one length only, a head that counts
# would have passed for a head that searches. As features for questions about whole texts, the states of
# models this small are no better than bags of n-grams, and mostly no better than those of a model that has
# learned nothing. Without these two rivals we would have reported a success.
#
# ## Exercises
# **1.** How concentrated is a head's attention? Write `entropy(maps)`, the mean entropy in nats of the rows
# of each head, (L, H) for L maps (B, H, T, T). A row that looks at one token only has none; one
# that looks at t tokens alike has log t. (0 log 0 is 0.)
# ```python
# even = torch.ones(8, 8).tril().div(torch.arange(1, 9)[:, None])[None, None]
# assert entropy([torch.eye(8)[None, None]]).item() == 0
# assert math.isclose(entropy([even]).item(), math.lgamma(9) / 8, rel_tol=1e-5)
# ```
# **2.** What does a state decide? Write `patched(model, ids, other, layer, place)`: the logits for
# ids (1, T) when, after `layer` blocks, the state at one place is replaced by that of `other` (1,
# T) there, and the rest of the blocks goes on from it. Two texts that end with the same character:
# after how many blocks does the state of their last place decide which of the two the prediction
# there follows?
# ```python
# first, second = (chars.encode(text)[None] for text in
#                  ("But soft! what light thr", "Good morrow, dear old fr"))
# last = patched(verse, first, second, 4, 7)
# assert torch.equal(last[:, :7], verse(first)[:, :7])
# assert torch.allclose(last[:, 7], verse(second)[:, 7], atol=1e-4)
# ```
# **3.** Close the circuit. Suppose the heads of the copier's first block find nothing, their mean, at all
# places. What score do its induction heads have then? Write `blinded()`, the highest score of the
# second block for looking after the last time, at T = 13, and compare it with `after_last`. Before you run
# it: the second block itself is untouched, so why should it change?
# ```python
# assert blinded() < after_last[1].max() / 3
# ```

# %% [markdown]
# ## Solutions


# %% jupyter={"source_hidden": true}
import math


def entropy(maps):
    """Mean entropy of the rows of each head, in nats: (L, H)."""
    rows = [torch.special.entr(weights).sum(-1) for weights in maps]  # (B, H, T) each
    return torch.stack([row.mean((0, 2)) for row in rows])


even = torch.ones(8, 8).tril().div(torch.arange(1, 9)[:, None])[None, None]
assert entropy([torch.eye(8)[None, None]]).item() == 0
assert math.isclose(entropy([even]).item(), math.lgamma(9) / 8, rel_tol=1e-5)
entropy(attention_maps(verse, windows[:64, :-1])).detach().round(decimals=1)


# %% jupyter={"source_hidden": true}
@torch.no_grad()
def patched(model, ids, other, layer, place):
    """Logits for ids (1, T) with one state, after some blocks, from another text."""
    x = hidden_states(model, ids)[layer].clone()
    x[:, place] = hidden_states(model, other)[layer][:, place]
    for block in model.blocks[layer:]:
        x = block(x)
    return model.read_out(x)


texts = ("But soft! what light thr", "Good morrow, dear old fr")
first, second = (chars.encode(text)[None] for text in texts)
last = patched(verse, first, second, 4, 7)
assert torch.equal(last[:, :7], verse(first)[:, :7])
assert torch.allclose(last[:, 7], verse(second)[:, 7], atol=1e-4)
with torch.no_grad():
    goals = [verse(ids)[0, -1].log_softmax(-1) for ids in (first, second)]
    follows = []
    for layer in range(5):
        mixed = patched(verse, first, second, layer, -1)[0, -1].log_softmax(-1)
        follows.append([(goal.exp() * (goal - mixed)).sum().item() for goal in goals])
# By how many nats the prediction is off that for `first`, and off that for `second`. Before the
# first block both end with the same vector, so nothing is decided by it; after the last, all.
[[round(nats, 2) for nats in pair] for pair in follows]


# %% jupyter={"source_hidden": true}
@torch.no_grad()
def blinded():
    """The highest induction score when the first block's heads find their mean."""
    twice = repeated(torch.arange(32), 13, 64)
    first, second = copier.blocks
    x = copier.embed(twice)
    q, k, v = first.attention.project(first.attention_norm(x))
    found = first.attention.attend(q, k, v)
    x = x + first.attention.merge(found.mean(dim=(0, 2), keepdim=True).expand_as(found))
    x = x + first.feed_forward(first.feed_forward_norm(x))
    q, k, _ = second.attention.project(second.attention_norm(x))
    rows = torch.eye(26).expand(64, 4, 26, 26)
    return looks_back([second.attention.attend(q, k, rows)], 12, since=13).max()


assert blinded() < after_last[1].max() / 3
f"{blinded():.2f} instead of {after_last[1].max():.2f}"

# %% [markdown]
# The second block asks *who says that an `A` stood before it?*, and nobody says so any more. Its keys are
# made from what the first block wrote.
