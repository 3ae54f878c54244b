"""Around chapter 02's `NGram`: what can't be counted is refused."""

import math

from torch import Tensor

from tinygpt_lib.basics.checks import check_float, check_ids, check_int

__all__ = ["check_counting"]


def check_counting(ids: Tensor, n: int, vocab_size: int, strength: float) -> None:
    """ValueError for what an n-gram model of ids (N,) can't be made of."""
    check_ids("ids", ids, 1, vocab_size)
    check_int("n", n, low=1, high=len(ids))
    check_float("strength", strength, "above 0", lambda strength: strength > 0)
    if vocab_size**n > 2**63:
        raise ValueError(
            f"n is {n}; contexts of {vocab_size} tokens fit 64 bits up to n = "
            f"{int(63 / math.log2(vocab_size))}"
        )
    if len(ids) < 2:
        raise ValueError("ids hold 1 token; at least 2 are needed to count a pair")
