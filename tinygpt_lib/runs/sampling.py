"""Chapter 08's `generate`, checked, by the quickest way that gives the same text."""

import math
from types import SimpleNamespace

import torch
from torch import Tensor

from tinygpt_lib import generation
from tinygpt_lib.basics.checks import check_float, check_ids, check_int
from tinygpt_lib.basics.devices import device_of
from tinygpt_lib.generation import KVCache
from tinygpt_lib.gpt import GPT
from tinygpt_lib.long_context import WindowCache
from tinygpt_lib.runs.fast import quick_reader


def anew(model: GPT) -> SimpleNamespace:
    """No cache at all: the whole text is read for every token."""
    return SimpleNamespace(room=math.inf, read=lambda ids: model(ids)[:, -1])


def generate(
    model: GPT,
    ids: Tensor,
    n_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    use_cache: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Continues ids (B, T0) by n_tokens: (B, T0 + n_tokens), the prompt included.

    temperature 0 is greedy; top_k and top_p as in `pick`. A prompt may be longer than
    block_size: the model sees the last block_size tokens, or all of them where it looks
    back on a window and has no learned positions. The same generator state gives the
    same text, with and without cache. ValueError for what is out of range.
    """
    check_generation(model, ids, n_tokens, temperature, top_k, top_p)
    device, config = device_of(model), model.config
    # Room for all of the text, or an error now and not in a year.
    torch.empty(len(ids), ids.shape[1] + n_tokens, dtype=torch.int64)
    endless = getattr(config, "window", 0) > 0 and config.position != "learned"
    cached = WindowCache if endless else KVCache
    return generation.generate(
        quick_reader(model) if device.type == "cpu" else model,
        ids.to(device, copy=True),
        n_tokens,
        # Below 1e-30 float32 would overflow; it is greedy by then, and top_p too.
        temperature=max(temperature, 1e-30) if temperature else 0.0,
        top_k=top_k,
        top_p=top_p and max(top_p, 1e-30),
        cache=cached if use_cache else anew if endless else None,
        generator=generator,
    )


def check_generation(model, ids, n_tokens, temperature, top_k, top_p) -> None:
    """ValueError, naming the culprit, for what `generate` can't do."""
    V = model.config.vocab_size
    check_ids("ids", ids, 2, V)
    if not ids.numel():
        raise ValueError("the prompt is empty; it must hold at least one token")
    check_int("n_tokens", n_tokens, low=0)
    allowed = "at least 0 (0 takes the likeliest token)"
    check_float("temperature", temperature, allowed, lambda t: t >= 0)
    if top_k is not None:
        check_int("top_k", top_k, low=1, high=V)
    if top_p is not None:
        check_float("top_p", top_p, "above 0 and at most 1", lambda p: 0 < p <= 1)
