# generated from notebooks/text/02_bigram.py: edit there
"""Bigram: what can one character of memory do?"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinygpt_lib.basics.counting import check_counting
from tinygpt_lib.basics.evaluation import evaluating, windows_of

__all__ = ["SGD", "NGram", "evaluate", "training_step"]

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
    model: nn.Module, optimizer, inputs: Tensor, targets: Tensor
) -> float:
    """Predict, measure, differentiate, move; the loss before the move, in nats."""
    logits = model(inputs)  # (B, T, V)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


# --- Measuring on the whole text ---


@torch.no_grad()
def evaluate(
    model: nn.Module,
    ids: Tensor,
    block_size: int | None = None,
    tokens_at_once: int | None = None,
) -> float:
    """Mean nats per token of ids (N,), every token but the first predicted once.

    Windows of `block_size` (default: the model's own) stand side by side, the last one
    shorter; `tokens_at_once` only changes time and memory. ValueError for N < 2.
    """
    total = 0.0
    with evaluating(model):
        for x, y in windows_of(model, ids, block_size, tokens_at_once):
            logits = model(x).flatten(0, 1).float()
            total += F.cross_entropy(logits, y.flatten(), reduction="sum").item()
    return total / (len(ids) - 1)


# --- Appendix: n-grams as a model ---


class NGram(nn.Module):
    """Counts what follows each context of up to n-1 tokens; short ones help long ones.

    ids (B, T) -> log-probabilities (B, T, vocab_size), which serve as logits.
    `strength` is how many sightings the next shorter context is worth (MacKay and
    Peto, 1995). ValueError for n, vocab_size or strength that can't work.
    """

    def __init__(self, ids: Tensor, n: int, vocab_size: int, strength: float = 10.0):
        super().__init__()
        check_counting(ids, n, vocab_size, strength)
        self.n, self.vocab_size, self.strength = n, vocab_size, strength
        for k in range(n):  # k tokens of context
            contexts = self._codes(ids[None, :-1], k)[0, max(k - 1, 0) :]
            known, row = torch.unique(contexts, return_inverse=True)
            following = ids[max(k, 1) :]
            counts = torch.zeros(len(known), vocab_size, device=ids.device)
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
