# generated from notebooks/text/05_blocks.py: edit there
"""Blocks: how do layers stack without breaking?"""

from functools import partial

import torch
from torch import Tensor, nn

from tinygpt_lib.multi_head import MultiHeadAttention

__all__ = ["Block", "Dropout", "FeedForward", "LayerNorm", "fast_gelu", "layer_norm"]

# --- Time to think ---

fast_gelu = partial(nn.functional.gelu, approximate="tanh")


class FeedForward(nn.Module):
    """Each token by itself: widen, bend, narrow. x (..., C) -> (..., C)."""

    def __init__(self, n_embd: int, bias: bool = True, activation=fast_gelu):
        super().__init__()
        self.activation = activation
        self.widen = nn.Linear(n_embd, 4 * n_embd, bias=bias)
        self.output = nn.Linear(4 * n_embd, n_embd, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.activation(self.widen(x)))


# --- A fixed scale ---


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float = 1e-5
) -> Tensor:
    """Each token's numbers (..., C) brought to mean 0 and variance 1, then rescaled.

    Ba, Kiros and Hinton, 2016. Written out; `LayerNorm` computes the same in one go.
    """
    mean = x.mean(dim=-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=-1, keepdim=True)
    y = (x - mean) / torch.sqrt(variance + eps) * weight
    return y if bias is None else y + bias


class LayerNorm(nn.Module):
    """Each token's numbers at one learned scale. x (..., C) -> (..., C)."""

    def __init__(self, n_embd: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_embd))
        self.bias = nn.Parameter(torch.zeros(n_embd)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, self.weight.shape, self.weight, self.bias)


# --- A little noise ---


class Dropout(nn.Module):
    """In training, zeroes a random share p of its input and scales up the rest.

    In evaluation, or with p = 0, the input passes untouched. Srivastava et al., 2014.
    """

    def __init__(self, p: float):
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout is {p}; it must be at least 0 and below 1")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        kept = torch.rand_like(x) >= self.p
        return x * kept / (1 - self.p)


# --- The block ---


class Block(nn.Module):
    """Communication, then computation, each through a norm and added to the stream.

    x (B, T, C) -> (B, T, C). Vaswani et al., 2017, with the norms of GPT-2 (2019).
    """

    def __init__(
        self, n_embd: int, n_head: int, dropout: float = 0.0, bias: bool = True
    ):
        super().__init__()
        self.attention_norm = LayerNorm(n_embd, bias)
        self.attention = MultiHeadAttention(n_embd, n_head, bias)
        self.feed_forward_norm = LayerNorm(n_embd, bias)
        self.feed_forward = FeedForward(n_embd, bias)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
