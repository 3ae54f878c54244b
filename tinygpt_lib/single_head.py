# generated from notebooks/text/03_single_head.py: edit there
"""One head: how can a token look back, and choose where?"""

import math

import torch
from torch import Tensor

__all__ = ["attention", "attention_weights"]

# --- One head ---


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """How much each query looks at each key, never at a later one; rows sum to one.

    q (..., Tq, D), k (..., Tk, D) with Tq <= Tk, the queries being those of the last Tq
    tokens -> (..., Tq, Tk). Vaswani et al., 2017.
    """
    Tq, Tk = q.shape[-2], k.shape[-2]
    if Tq > Tk:
        raise ValueError(f"{Tq} queries for {Tk} keys: every query needs its own key")
    scores = q @ k.mT / math.sqrt(q.shape[-1])  # (..., Tq, Tk)
    past = torch.ones(Tq, Tk, dtype=torch.bool, device=q.device).tril(Tk - Tq)
    return scores.masked_fill(~past, -math.inf).softmax(dim=-1)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each token takes in the past's values, weighted by how its query meets keys.

    q (..., Tq, D), k and v (..., Tk, D) -> (..., Tq, D), as in `attention_weights`.
    """
    return attention_weights(q, k) @ v
