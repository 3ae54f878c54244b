"""Around chapter 02's `NGram`: what can't be counted is refused."""

import math

from torch import Tensor

__all__ = ["check_counting"]


def check_counting(ids: Tensor, n: int, vocab_size: int, strength: float) -> None:
    """ValueError for what an n-gram model of ids (N,) can't be made of."""
    if not 1 <= n <= len(ids):
        raise ValueError(f"n is {n}; it must lie between 1 and {len(ids)} tokens")
    if vocab_size**n > 2**63:
        raise ValueError(
            f"n is {n}; contexts of {vocab_size} tokens fit 64 bits up to n = "
            f"{int(63 / math.log2(vocab_size))}"
        )
    if not strength > 0:
        raise ValueError(f"strength is {strength}; it must be above 0")
    if len(ids) < 2:
        raise ValueError("ids hold 1 token; at least 2 are needed to count a pair")
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise ValueError(
            f"ids go from {ids.min()} to {ids.max()}; a vocabulary of "
            f"{vocab_size} allows 0..{vocab_size - 1}"
        )
