# generated from notebooks/text/10_modern_parts.py: edit there
"""Modern parts: what changed since GPT-2, and does it matter at this size?"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from tinygpt_lib.basics.checks import check_bool, check_choice, check_float, check_int
from tinygpt_lib.blocks import Block, Dropout, FeedForward, LayerNorm
from tinygpt_lib.gpt import GPT, GPTConfig, draw_weights
from tinygpt_lib.multi_head import MultiHeadAttention, fused_attention

__all__ = [
    "PARTS",
    "GatedFeedForward",
    "ModernAttention",
    "ModernBlock",
    "ModernConfig",
    "ModernGPT",
    "RMSNorm",
    "Rotary",
    "angles",
    "squared_relu",
]

# --- A norm without a mean ---


class RMSNorm(nn.Module):
    """Each token's numbers at one size: (..., C) -> same. Zhang and Sennrich, 2019."""

    def __init__(self, n_embd: int, bias: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_embd))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, self.weight.shape, self.weight, 1e-5)


# --- Positions as angles ---


def angles(start: int, end: int, D: int, base: float, scale: float) -> Tensor:
    """Radians that each pair of D numbers turns at each place: (end - start, D / 2)."""
    places = torch.arange(start, end, dtype=torch.float64) / scale  # far ones, too
    speeds = base ** -(torch.arange(0, D, 2, dtype=torch.float64) / D)
    return torch.outer(places, speeds)


class Rotary(nn.Module):
    """The last queries (B, H, Tq, D) and all keys, turned by place. Su et al., 2021."""

    def __init__(self, D: int, length: int, base: float, scale: float):
        super().__init__()
        self.about = D, base, scale
        turns = angles(0, min(length, 2**15), *self.about)  # further ones: see `table`
        self.register_buffer("cos", turns.cos().float(), persistent=False)
        self.register_buffer("sin", turns.sin().float(), persistent=False)

    @staticmethod
    def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Turns each pair (i, i + D/2) of x (..., T, D); cos and sin are (T, D / 2)."""
        a, b = x.chunk(2, dim=-1)  # (..., T, D / 2)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)

    def table(self, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of places start..end - 1, each (end - start, D / 2)."""
        if end <= len(self.cos):
            return self.cos[start:end], self.sin[start:end]
        turns = angles(start, end, *self.about)
        return turns.cos().to(self.cos), turns.sin().to(self.sin)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        Tq, Tk = q.shape[-2], k.shape[-2]
        cos, sin = self.table(0, Tk)
        return self.turn(q, cos[Tk - Tq :], sin[Tk - Tq :]), self.turn(k, cos, sin)


# --- A gate ---


class GatedFeedForward(nn.Module):
    """Widens twice, one the gate of the other: (..., C) -> same. Shazeer, 2020."""

    def __init__(self, n_embd: int, bias: bool = True):
        super().__init__()
        width = (n_embd + 2) // 3 * 8  # 8/3 C or a little more: a multiple of 8
        self.widen = nn.Linear(n_embd, 2 * width, bias=bias)
        self.output = nn.Linear(width, n_embd, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.widen(x).chunk(2, dim=-1)
        return self.output(nn.functional.silu(gate) * value)


def squared_relu(x: Tensor) -> Tensor:
    """Zero below zero, the square above. So et al., 2021."""
    return x.relu().square()


# --- One model with switches ---

PARTS = {
    "norm": {"layer": LayerNorm, "rms": RMSNorm},
    "qk_norm": {"none": nn.Identity, "layer": LayerNorm, "rms": RMSNorm},
    "feed_forward": {
        "gelu": FeedForward,
        "gelu_exact": partial(FeedForward, activation=nn.functional.gelu),
        "relu": partial(FeedForward, activation=nn.functional.relu),
        "relu2": partial(FeedForward, activation=squared_relu),
        "swiglu": GatedFeedForward,
    },
    "position": ("learned", "rotary", "sinusoidal", "none"),
}


@dataclass
class ModernConfig(GPTConfig):
    """A GPTConfig with a switch for each modern part, by its name in PARTS."""

    norm: str = "layer"
    feed_forward: str = "gelu"
    position: str = "learned"
    rotary_base: float = 10_000.0  # of rotary positions: the slowest turn
    rotary_scale: float = 1.0  # of rotary positions: places are divided by it
    qk_norm: str = "none"  # for queries and keys
    n_kv_head: int = 0  # heads of keys and values; 0: as many as of queries
    tie_weights: bool = False  # one matrix for token embedding and head

    def __post_init__(self):
        super().__post_init__()
        for name, choices in PARTS.items():
            check_choice(name, getattr(self, name), choices)
        for name in ("rotary_base", "rotary_scale"):
            allowed = "at least 1 and at most 1e9"
            check_float(name, getattr(self, name), allowed, lambda x: 1 <= x <= 1e9)
        n, D = self.n_head, self.n_embd // self.n_head
        check_int("n_kv_head", self.n_kv_head, low=0, high=n)
        if n % (self.n_kv_head or n):
            raise ValueError(f"n_kv_head {self.n_kv_head} does not divide n_head {n}")
        check_bool("tie_weights", self.tie_weights)
        if self.position == "rotary" and D % 2:  # numbers are turned in pairs
            raise ValueError(f"n_embd / n_head is {D}; rotary positions need it even")


class ModernAttention(MultiHeadAttention):
    """Attention, queries and keys normed and turned, keys shared: (B, T, C) -> same."""

    def __init__(self, config: ModernConfig, turns: Rotary | None):
        nn.Module.__init__(self)
        self.config, C, self.n_head = config, config.n_embd, config.n_head
        shared, D = config.n_kv_head or self.n_head, C // self.n_head
        self.sizes = [self.n_head, shared, shared]  # heads of queries, keys, values
        norm, self.turns = PARTS["qk_norm"][config.qk_norm], turns
        self.query_norm, self.key_norm = norm(D, bias=False), norm(D, bias=False)
        self.to_qkv = nn.Linear(C, sum(self.sizes) * D, bias=config.bias)
        self.output = nn.Linear(C, C, bias=config.bias)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heads = self.to_qkv(x).unflatten(2, (sum(self.sizes), -1))  # (B, T, heads, D)
        q, k, v = heads.transpose(1, 2).split(self.sizes, dim=1)
        return self.query_norm(q), self.key_norm(k), v

    def meet(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys turned; keys and values for every head of queries."""
        if self.turns is not None:
            q, k = self.turns(q, k)
        if (n := self.sizes[0] // self.sizes[1]) > 1:
            k, v = (x.repeat_interleave(n, dim=1) for x in (k, v))
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return fused_attention(*self.meet(q, k, v))


class ModernBlock(Block):
    """A block of the parts that its config names, around an attention."""

    def __init__(self, config: ModernConfig, attention: ModernAttention):
        nn.Module.__init__(self)
        norm, sizes = PARTS["norm"][config.norm], (config.n_embd, config.bias)
        self.attention_norm, self.attention = norm(*sizes), attention
        self.feed_forward_norm = norm(*sizes)
        self.feed_forward = PARTS["feed_forward"][config.feed_forward](*sizes)
        self.dropout = Dropout(config.dropout)


class ModernGPT(GPT):
    """A GPT of the parts that its config names: ids (B, T) -> logits (B, T, V)."""

    attention = ModernAttention

    def __init__(self, config: ModernConfig):
        nn.Module.__init__(self)
        c = self.config = config
        self.token_embedding = nn.Embedding(c.vocab_size, c.n_embd)
        if c.position == "learned":
            self.position_embedding = nn.Embedding(c.block_size, c.n_embd)
        about = c.n_embd // c.n_head, c.block_size, c.rotary_base, c.rotary_scale
        self.turns = Rotary(*about) if c.position == "rotary" else None
        self.dropout = Dropout(c.dropout)
        self.blocks = nn.ModuleList(
            ModernBlock(c, self.attention(c, self.turns)) for _ in range(c.n_layer)
        )
        self.norm = PARTS["norm"][c.norm](c.n_embd, c.bias)
        self.head = nn.Linear(c.n_embd, c.vocab_size, bias=False)
        draw_weights(self)
        if c.tie_weights:  # quiet for the head; `embed` makes it loud again
            del self.head
            self.token_embedding.weight.data.mul_(c.n_embd**-0.5)

    def embed(self, ids: Tensor, start: int = 0) -> Tensor:
        x = self.token_embedding(ids[:, start:])
        x = x * x.shape[-1] ** 0.5 if self.config.tie_weights else x
        if self.config.position == "learned":
            x = x + self.places(start, ids.shape[1])
        if self.config.position == "sinusoidal":
            turns = angles(start, ids.shape[1], x.shape[-1], 10_000, 1)  # (T, C / 2)
            x = x + torch.cat([turns.sin(), turns.cos()], dim=1).to(x)
        return x

    def read_out(self, x: Tensor) -> Tensor:
        if self.config.tie_weights:
            return nn.functional.linear(self.norm(x), self.token_embedding.weight)
        return super().read_out(x)
