# generated from notebooks/text/10_modern_parts.py: edit there
"""Modern parts: what changed since GPT-2, and does it matter at this size?"""

from functools import partial

import torch
from torch import Tensor, nn

from tinygpt_lib.blocks import FeedForward
from tinygpt_lib.gpt import FEED_FORWARDS, NORMS, POSITIONS, QK_NORMS, GPTConfig

__all__ = [
    "GatedFeedForward",
    "QueryKeyNorm",
    "RMSNorm",
    "Rotary",
    "RotaryPositions",
    "angles",
    "rms_norm",
    "rotate",
    "squared_relu",
]

# --- A norm without a mean ---


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Each token's numbers (..., C) divided by their root mean square, then rescaled.

    Zhang and Sennrich, 2019. Written out; `RMSNorm` computes the same in one go.
    """
    mean_square = (x**2).mean(dim=-1, keepdim=True)
    return x / torch.sqrt(mean_square + eps) * weight


class RMSNorm(nn.Module):
    """Each token's numbers at one typical size, learnt per channel: (..., C) -> same.

    No mean is taken off and there is no bias; the argument is there so that it fits
    where LayerNorm does. Zhang and Sennrich, 2019.
    """

    def __init__(self, n_embd: int, bias: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_embd))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, self.weight.shape, self.weight, 1e-5)


NORMS["rms"] = RMSNorm

# --- Positions as angles ---


def angles(start: int, end: int, D: int, base: float, scale: float) -> Tensor:
    """By how much each pair of a head's numbers turns at each place: (T, D / 2).

    In radians, float64: far into a text a float32 no longer knows its place.
    """
    places = torch.arange(start, end, dtype=torch.float64) / scale
    speeds = base ** -(torch.arange(0, D, 2, dtype=torch.float64) / D)
    return torch.outer(places, speeds)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair (i, i + D/2) of the last dimension of x (..., T, D).

    cos and sin are (T, D / 2); lengths stay as they are. Su et al., 2021.
    """
    a, b = x.chunk(2, dim=-1)  # (..., T, D / 2)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class Rotary(nn.Module):
    """Queries and keys (B, H, T, D) turned by their places; one table for all blocks.

    Scores then depend on distances alone. D must be even. Su et al., 2021.
    """

    ROWS = 2**15  # of the table, at most; places beyond it are computed when they come

    def __init__(self, D: int, length: int, base: float, scale: float):
        super().__init__()
        self.D, self.base, self.scale = D, base, scale
        turns = angles(0, min(length, self.ROWS), D, base, scale)
        self.register_buffer("cos", turns.cos().float(), persistent=False)
        self.register_buffer("sin", turns.sin().float(), persistent=False)

    def table(self, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of places start..end - 1, each (T, D / 2)."""
        if end <= len(self.cos):
            return self.cos[start:end], self.sin[start:end]
        turns = angles(start, end, self.D, self.base, self.scale)
        return turns.cos().to(self.cos), turns.sin().to(self.sin)

    def forward(self, q: Tensor, k: Tensor, start: int) -> tuple[Tensor, Tensor]:
        cos, sin = self.table(start, start + q.shape[-2])
        return rotate(q, cos, sin), rotate(k, cos, sin)


class RotaryPositions(nn.Module):
    """Nothing added to the tokens; queries and keys are turned instead."""

    endless = True
    turn = Rotary

    def __init__(self, config: GPTConfig):
        super().__init__()
        D, base = config.n_embd // config.n_head, config.rotary_base
        self.steps = (self.turn(D, config.block_size, base, config.rotary_scale),)

    @staticmethod
    def check(config: GPTConfig) -> None:
        """ValueError for heads of an odd size: numbers are turned in pairs."""
        D = config.n_embd // config.n_head
        if D % 2:
            raise ValueError(
                f"n_embd {config.n_embd} with n_head {config.n_head} gives heads of "
                f"size {D}; rotary positions need an even size"
            )

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        return x


POSITIONS["rotary"] = RotaryPositions

# --- Queries and keys of one length ---


class QueryKeyNorm(nn.Module):
    """Queries and keys (B, H, T, D) at one length, so that scores stay in bounds.

    Henry et al., 2020; Dehghani et al., 2023.
    """

    def __init__(self, D: int, norm=RMSNorm):
        super().__init__()
        self.query, self.key = norm(D, bias=False), norm(D, bias=False)

    def forward(self, q: Tensor, k: Tensor, start: int) -> tuple[Tensor, Tensor]:
        return self.query(q), self.key(k)


QK_NORMS["rms"] = QueryKeyNorm

# --- A gate ---


class GatedFeedForward(nn.Module):
    """Each token by itself: widen twice, one as the gate of the other, narrow.

    x (..., C) -> (..., C), with a width of 8/3 C, rounded up to a multiple of 8, so
    that it has about the parameters of `FeedForward`. Shazeer, 2020 (SwiGLU).
    """

    def __init__(self, n_embd: int, bias: bool = True):
        super().__init__()
        width = (n_embd + 2) // 3 * 8  # a multiple of 8, as processors like
        self.widen = nn.Linear(n_embd, 2 * width, bias=bias)
        self.output = nn.Linear(width, n_embd, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.widen(x).chunk(2, dim=-1)
        return self.output(nn.functional.silu(gate) * value)


def squared_relu(x: Tensor) -> Tensor:
    """Zero below zero, the square above. So et al., 2021."""
    return x.relu().square()


FEED_FORWARDS["swiglu"] = GatedFeedForward
FEED_FORWARDS["relu2"] = partial(FeedForward, activation=squared_relu)
