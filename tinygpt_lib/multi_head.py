# generated from notebooks/text/04_multi_head.py: edit there
"""Several heads: why several heads?"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["MultiHeadAttention", "fused_attention"]

# --- Attention in one operation ---


def fused_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same as `attention`, in one operation of torch.

    q (B, H, Tq, D), k and v (B, H, Tk, D) -> (B, H, Tq, D). Dao et al., 2022.
    """
    Tq, Tk = q.shape[-2], k.shape[-2]
    if Tq > Tk:
        raise ValueError(f"{Tq} queries for {Tk} keys: every query needs its own key")
    if Tq == 1 or Tq == Tk:
        return F.scaled_dot_product_attention(q, k, v, is_causal=Tq > 1)
    allowed = torch.ones(Tq, Tk, dtype=torch.bool, device=q.device).tril(Tk - Tq)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)


# --- Multi-head attention ---


class MultiHeadAttention(nn.Module):
    """Tokens exchange what they know, through n_head independent weighted means.

    x (B, T, C) -> (B, T, C); no output depends on a later token. ValueError when n_embd
    is not a multiple of n_head. Vaswani et al., 2017.
    """

    def __init__(self, n_embd: int, n_head: int, bias: bool = True):
        super().__init__()
        if n_head < 1 or n_embd % n_head:
            raise ValueError(
                f"n_embd {n_embd} can't be split into n_head {n_head} heads"
            )
        self.n_head = n_head
        self.to_qkv = nn.Linear(n_embd, 3 * n_embd, bias=bias)
        self.output = nn.Linear(n_embd, n_embd, bias=bias)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of every head, each (B, H, T, D)."""
        B, T, C = x.shape
        qkv = self.to_qkv(x).view(B, T, 3, self.n_head, C // self.n_head)
        return qkv.permute(2, 0, 3, 1, 4).unbind()

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What each head takes in, (B, H, Tq, D)."""
        return fused_attention(q, k, v)

    def merge(self, y: Tensor) -> Tensor:
        """Heads (B, H, T, D) side by side and mixed: (B, T, C)."""
        return self.output(y.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.merge(self.attend(*self.project(x)))
