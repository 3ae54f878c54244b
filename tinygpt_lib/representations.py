# generated from notebooks/text/17_representations.py: edit there
"""Representations: what has it learned on the way?"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tinygpt_lib.basics.checks import check_choice, check_int
from tinygpt_lib.basics.devices import device_of
from tinygpt_lib.basics.evaluation import evaluating
from tinygpt_lib.gpt import GPT
from tinygpt_lib.logs import in_windows

__all__ = ["attention_maps", "embed", "hidden_states", "intervene", "looks_back"]

# --- What lies between ---


def hidden_states(model: GPT, ids: Tensor) -> list[Tensor]:
    """What the first block is given, and what each block makes of it: (B, T, C) each.

    ids (B, T) -> n_layer + 1 states; `model.read_out` of the last gives `model(ids)`.
    Gradients and dropout are as in that call.
    """
    states = [model.dropout(model.embed(ids))]
    for block in model.blocks:
        states.append(block(states[-1]))
    return states


# --- Where it looks ---


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


# --- Heads by a score ---


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


# --- One vector for a whole text ---


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
