# generated from notebooks/text/02_bigram.py: edit there
"""Bigram: what can one character of memory do?"""

import math
from collections.abc import Callable
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinygpt_lib._device import device_of

__all__ = ["SGD", "NGram", "evaluate", "evaluating", "most_tokens", "training_step"]

# --- A step ---


class SGD:
    """Gradient descent with momentum: each step follows a fading sum of gradients."""

    def __init__(self, parameters, learning_rate: float, momentum: float = 0.0):
        self.parameters = list(parameters)
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.velocities = [torch.zeros_like(p) for p in self.parameters]

    def zero_grad(self) -> None:
        """Forgets the gradients of the last step; backward would add to them."""
        for p in self.parameters:
            p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Moves every parameter that has a gradient, in place."""
        for p, v in zip(self.parameters, self.velocities, strict=True):
            if p.grad is not None:
                v.mul_(self.momentum).add_(p.grad)
                p.sub_(self.learning_rate * v)


def training_step(
    model: nn.Module,
    optimizer,
    inputs: Tensor,
    targets: Tensor,
    before_step: Callable[[], None] | None = None,
) -> float:
    """Predict, measure, differentiate, move; returns the loss before the move, in nats.

    inputs and targets are (B, T) ids; `before_step` runs once the gradients are there.
    """
    logits = model(inputs)  # (B, T, V)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    optimizer.zero_grad()
    loss.backward()
    if before_step is not None:
        before_step()
    optimizer.step()
    return loss.item()


# --- A measure without luck ---


@contextmanager
def evaluating(model: nn.Module):
    """While it lasts the model is not training; then it is what it was before."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:  # Ctrl-C too leaves the model as it was
        model.train(was_training)


def most_tokens(model: nn.Module) -> int:
    """How many tokens to read at once: 16,384, or what makes 2**26 logits (256 MB)."""
    config = getattr(model, "config", None)  # the vocabulary is mostly small
    return 16_384 if config is None else min(16_384, 2**26 // config.vocab_size)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    ids: Tensor,
    block_size: int | None = None,
    tokens_at_once: int | None = None,
) -> float:
    """Mean nats per token of ids (N,), every token but the first predicted once.

    Windows of `block_size` (default: the model's own) stand side by side, the last one
    shorter; `tokens_at_once` (default: `most_tokens`) only changes time and memory.
    ValueError for fewer than two tokens.
    """
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
    windows = [
        *zip(
            inputs[:whole].view(-1, block_size).split(rows),
            targets[:whole].view(-1, block_size).split(rows),
            strict=True,
        )
    ]
    if whole < n:
        windows.append((inputs[None, whole:], targets[None, whole:]))

    total = 0.0
    with evaluating(model):
        for x, y in windows:
            logits = model(x)
            total += F.cross_entropy(
                logits.flatten(0, 1).float(), y.flatten(), reduction="sum"
            ).item()
    return total / n


# --- Counting further back ---


class NGram(nn.Module):
    """Counts what follows each context of up to n-1 tokens; short ones back up long.

    ids (B, T) -> log-probabilities (B, T, vocab_size), which serve as logits.
    `strength` is how many sightings the next shorter context is worth (MacKay and
    Peto, 1995). ValueError for n, vocab_size or strength that can't work.
    """

    def __init__(self, ids: Tensor, n: int, vocab_size: int, strength: float = 10.0):
        super().__init__()
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
        self.n, self.vocab_size, self.strength = n, vocab_size, strength
        for k in range(n):  # k tokens of context
            contexts = self._codes(ids[None, :-1], k)[0, max(k - 1, 0) :]
            known, row = torch.unique(contexts, return_inverse=True)
            counts = torch.zeros(len(known), vocab_size, device=ids.device)
            following = ids[max(k, 1) :]
            ones = torch.ones(len(following), device=ids.device)
            counts.index_put_((row, following), ones, accumulate=True)
            self.register_buffer(f"known_{k}", known)
            self.register_buffer(f"counts_{k}", counts)

    def _codes(self, ids: Tensor, k: int) -> Tensor:
        """One number for the k tokens up to each place (B, T): digits in base V."""
        codes = torch.zeros_like(ids)
        for back in range(min(k, ids.shape[1])):
            codes[:, back:] += ids[:, : ids.shape[1] - back] * self.vocab_size**back
        return codes

    def forward(self, ids: Tensor) -> Tensor:
        p = torch.full((*ids.shape, self.vocab_size), 1 / self.vocab_size)
        p = p.to(ids.device)
        for k in range(self.n):
            known, counts = getattr(self, f"known_{k}"), getattr(self, f"counts_{k}")
            codes = self._codes(ids, k)
            row = torch.searchsorted(known, codes).clamp(max=len(known) - 1)
            c = counts[row] * (known[row] == codes)[..., None]  # (B, T, V)
            c[:, : max(k - 1, 0)] = 0  # too near the start to have k tokens before it
            p = (c + self.strength * p) / (c.sum(-1, keepdim=True) + self.strength)
        return p.log()
