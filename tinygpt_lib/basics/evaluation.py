"""Around chapter 02's `evaluate`: the model's mode, the windows, the memory."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from tinygpt_lib.basics.checks import check_ids
from tinygpt_lib.basics.devices import device_of

__all__ = ["evaluating", "most_tokens", "windows_of"]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """While it lasts the model is not training; then it is what it was before."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:  # Ctrl-C too leaves the model as it was
        model.train(was_training)


def most_tokens(model: nn.Module) -> int:
    """How many tokens to read at once: 16,384, or what makes 2**24 logits.

    They and their logarithms, which the loss is made of, take 64 MB each.
    """
    config = getattr(model, "config", None)  # the vocabulary is mostly small
    return 16_384 if config is None else min(16_384, 2**24 // config.vocab_size)


def windows_of(
    model: nn.Module,
    ids: Tensor,
    block_size: int | None = None,
    tokens_at_once: int | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of inputs (B, T) and targets (B, T), where the model is, each token once.

    Windows of `block_size` (default: the model's own) stand side by side, the last one
    shorter; `tokens_at_once` (default: `most_tokens`) only changes time and memory.
    ValueError for fewer than two tokens, and for ids outside the model's vocabulary.
    """
    check_ids(
        "ids", ids, 1, getattr(getattr(model, "config", None), "vocab_size", None)
    )
    if block_size is None:
        block_size = model.config.block_size
    if block_size < 1:
        raise ValueError(f"block_size is {block_size}; it must be at least 1")
    n = len(ids) - 1
    if n < 1:
        raise ValueError(
            f"ids hold {len(ids)} tokens; at least 2 are needed: one to stand on "
            "and one to predict"
        )
    inputs, targets = ids[:-1].to(device_of(model)), ids[1:].to(device_of(model))
    whole = n - n % block_size  # tokens in full windows
    rows = max(1, (tokens_at_once or most_tokens(model)) // block_size)
    yield from zip(
        inputs[:whole].view(-1, block_size).split(rows),
        targets[:whole].view(-1, block_size).split(rows),
        strict=True,
    )
    if whole < n:
        yield inputs[None, whole:], targets[None, whole:]
