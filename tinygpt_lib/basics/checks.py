"""Refusing nonsense in settings, in one sentence that names it and what is allowed."""

import sys
from collections.abc import Sequence

import torch

from tinygpt_lib.basics.ids import Ids


def brief(value) -> str:
    """A value as it is written in Python, on one line that has an end."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def check_int(name: str, value, low: int, high: int | None = None) -> None:
    """ValueError unless value is a whole number in low..high (2**63 - 1 if None)."""
    allowed = f"in the range {low}..{high}"
    if high is None:
        allowed, high = f"at least {low} and below 2**63", 2**63 - 1
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not low <= value <= high:
        raise ValueError(
            f"{name} is {brief(value)}; it must be a whole number {allowed}"
        )


def check_float(name: str, value, allowed: str, inside) -> None:
    """ValueError unless value is a finite number and inside(value) holds."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # A comparison, because math.isfinite fails for an int that no float can hold.
    finite = number and abs(value) <= sys.float_info.max
    if not finite or not inside(value):
        raise ValueError(f"{name} is {brief(value)}; it must be {allowed}")


def check_choice(name: str, value, choices) -> None:
    """ValueError unless value is one of choices."""
    if value not in list(choices):
        known = ", ".join(repr(c) for c in sorted(choices))
        raise ValueError(f"{name} is {brief(value)}; it must be one of {known}")


def check_bool(name: str, value) -> None:
    """ValueError unless value is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {brief(value)}; it must be True or False")


def check_ids(name: str, ids, dims: int, vocab_size: int | None) -> None:
    """ValueError unless ids are int64, of `dims` dimensions, and below vocab_size."""
    wanted = {1: "(N,)", 2: "(B, T)"}[dims]
    if isinstance(ids, Ids):
        ids = torch.tensor([ids.largest()])
    if not isinstance(ids, torch.Tensor):
        raise ValueError(
            f"{name} are a {type(ids).__name__}; they must be a torch.Tensor {wanted}"
        )
    if ids.dim() != dims or ids.dtype != torch.int64:
        raise ValueError(
            f"{name} have shape {tuple(ids.shape)} and type {ids.dtype}; they must be "
            f"{wanted} and torch.int64"
        )
    if vocab_size and ids.numel() and not 0 <= ids.min() <= ids.max() < vocab_size:
        raise ValueError(
            f"{name} hold ids from {ids.min()} to {ids.max()}; the model's vocabulary "
            f"allows 0..{vocab_size - 1}"
        )


def each(value: bool | Sequence[bool], count: int) -> list[bool]:
    """One value for each of `count` things, from one for all or from as many."""
    values = [value] * count if isinstance(value, bool) else [*map(bool, value)]
    if len(values) != count:
        raise ValueError(f"{len(values)} values were given for {count} sessions")
    return values
