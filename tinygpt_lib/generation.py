# generated from notebooks/text/08_generation.py: edit there
"""Generation: how do you draw text from it, and fast?"""

import torch
from torch import Tensor

from tinygpt_lib.basics.evaluation import evaluating
from tinygpt_lib.gpt import GPT

__all__ = ["KVCache", "generate", "pick"]

# --- Cutting off the tail ---


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


# --- The cache ---


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
        end = self.length + T
        self.past[i][:, :, :, self.length : end] = torch.stack([k, v])
        return self.past[i][:, :, :, :end].unbind()

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


# --- Generate ---


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
            if memory and ids.shape[1] <= memory.room:
                logits = memory.read(ids)
            else:  # past the window every position changes, and with it every key
                logits = model(ids[:, -model.config.block_size :])[:, -1]
            choice = pick(logits.float(), temperature, top_k, top_p, generator)
            ids = torch.cat([ids, choice], dim=1)
    return ids
