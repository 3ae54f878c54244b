# generated from notebooks/text/08_generation.py: edit there
"""Generation: how do you draw text from it, and fast?"""

import torch
from torch import Tensor

from tinygpt_lib.basics.checks import check_float, check_int
from tinygpt_lib.basics.devices import device_of
from tinygpt_lib.basics.evaluation import evaluating
from tinygpt_lib.gpt import EMBEDDINGS, GPT, POSITIONS, GPTConfig

__all__ = [
    "LAYER_CACHES",
    "READERS",
    "KVCache",
    "LayerCache",
    "check_generation",
    "generate",
    "pick",
]

# --- Cutting off the tail ---


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
    # 1e-30 is greedy already; below it float32 would overflow, or divide by zero.
    probabilities = (logits / max(temperature, 1e-30)).softmax(dim=-1)
    if top_k is not None or top_p is not None:
        order = logits.argsort(dim=-1, descending=True, stable=True)
        ordered = probabilities.gather(-1, order)
        if top_p is not None and top_p < 1:
            before = ordered.cumsum(-1) - ordered
            ordered[before >= max(top_p, 1e-30)] = 0.0  # enough without it
        if top_k is not None:
            ordered[:, top_k:] = 0.0
        probabilities = probabilities.scatter(-1, order, ordered)
    if generator is not None:
        probabilities = probabilities.to(generator.device)
    return torch.multinomial(probabilities, 1, generator=generator).to(logits.device)


# --- The cache ---


class LayerCache:
    """Keys and values that one attention layer has computed so far."""

    endless = False  # can it take any number of tokens?

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.length = 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Adds k and v (B, H, T, D); returns all so far, (B, H, length, D)."""
        B, H, T, D = k.shape
        if self.length == 0:
            self.k = k.new_empty(B, H, self.capacity, D)
            self.v = torch.empty_like(self.k)
        end = self.length + T
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens, not {end}")
        self.k.narrow(2, self.length, T).copy_(k)
        self.v.narrow(2, self.length, T).copy_(v)
        self.length = end
        return self.k.narrow(2, 0, end), self.v.narrow(2, 0, end)


LAYER_CACHES = {}  # name in ATTENTIONS: the kind of cache it wants, if another


class KVCache:
    """One `LayerCache` for each block of a GPT: its memory of the text so far."""

    def __init__(self, config: GPTConfig):
        kind = LAYER_CACHES.get(config.attention, LayerCache)
        room = config.window or config.block_size
        self.layers = [kind(room) for _ in range(config.n_layer)]
        self.endless = kind.endless and POSITIONS[config.position].endless
        self.block_size = config.block_size
        self.looks_back = EMBEDDINGS[config.embedding].looks_back
        self.last = None  # the tokens that the embedding looks back on

    @property
    def length(self) -> int:
        """Tokens taken in so far."""
        return self.layers[0].length

    def has_room(self, length: int) -> bool:
        """Whether it can hold a text of `length` tokens."""
        return self.endless or length <= self.block_size

    def before(self, ids: Tensor) -> Tensor | None:
        """The last tokens before ids (B, T), those that the embedding looks back on.

        The end of ids is remembered for the next call.
        """
        before = self.last
        if self.looks_back:
            seen = ids if before is None else torch.cat([before, ids], dim=1)
            self.last = seen[:, -self.looks_back :]
        return before


# --- Past the window ---

READERS = {}  # device type: model -> the same model, quicker at single tokens


@torch.no_grad()
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
    block_size: the model sees the last block_size tokens (all of them where positions
    and cache are endless). The same generator state gives the same text, with and
    without cache. ValueError for what is out of range.
    """
    check_generation(model, ids, n_tokens, temperature, top_k, top_p)
    B, T0 = ids.shape
    window = model.config.block_size
    out = torch.empty(B, T0 + n_tokens, dtype=torch.int64, device=device_of(model))
    out[:, :T0] = ids
    with evaluating(model):
        cache = KVCache(model.config)
        reader = READERS.get(out.device.type, lambda model: model)(model)
        for end in range(T0, T0 + n_tokens):
            if use_cache and cache.has_room(end):
                logits = reader(out[:, cache.length : end], cache)
            else:
                begin = 0 if cache.has_room(end) else end - window
                logits = model(out[:, begin:end])
            choice = pick(logits[:, -1].float(), temperature, top_k, top_p, generator)
            out[:, end : end + 1] = choice
    return out


def check_generation(model, ids, n_tokens, temperature, top_k, top_p) -> None:
    """ValueError, naming the culprit, for what `generate` can't do."""
    V = model.config.vocab_size
    if ids.dim() != 2 or ids.shape[0] < 1:
        raise ValueError(f"ids have shape {tuple(ids.shape)}; it must be (B, T0)")
    if ids.shape[1] < 1:
        raise ValueError("the prompt is empty; it must hold at least one token")
    if ids.dtype != torch.int64:
        raise ValueError(f"ids are {ids.dtype}; they must be torch.int64")
    if ids.min() < 0 or ids.max() >= V:
        raise ValueError(
            f"the prompt holds ids from {ids.min()} to {ids.max()}; the model's "
            f"vocabulary allows 0..{V - 1}"
        )
    check_int("n_tokens", n_tokens, low=0)
    allowed = "at least 0 (0 takes the likeliest token)"
    check_float("temperature", temperature, allowed, lambda t: t >= 0)
    if top_k is not None:
        check_int("top_k", top_k, low=1, high=V)
    if top_p is not None:
        check_float("top_p", top_p, "above 0 and at most 1", lambda p: 0 < p <= 1)
