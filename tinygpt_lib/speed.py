# generated from notebooks/text/12_speed.py: edit there
"""Speed: where does the time go?"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from tinygpt_lib.basics.checks import check_bool, check_choice
from tinygpt_lib.blocks import Dropout
from tinygpt_lib.gpt import GPT
from tinygpt_lib.long_context import LongConfig, LongGPT
from tinygpt_lib.modern_parts import GatedFeedForward
from tinygpt_lib.multi_head import MultiHeadAttention
from tinygpt_lib.training import AdamW

__all__ = [
    "MODERN",
    "FastConfig",
    "FastGPT",
    "FusedAdamW",
    "Muon",
    "NGramEmbedding",
    "newton_schulz",
    "step_operations",
]

# --- The roof ---


def step_operations(model: GPT, context: int | None = None) -> dict[str, float]:
    """Operations in matrix products that training costs per token.

    6 for each number in a matrix, 12 · n_layer · n_embd for each key that it meets.
    """
    config = model.config
    T = config.block_size if context is None else context
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    matrices = sum(m.weight.numel() for m in linear)
    if getattr(config, "tie_weights", False):
        matrices += model.token_embedding.weight.numel()
    w = min(getattr(config, "window", 0) or T, T)
    keys = w - w * (w - 1) / (2 * T)  # (T + 1) / 2 where everything is in sight
    return {
        "matrices": 6 * matrices,
        "attention": 12 * config.n_layer * config.n_embd * keys,
    }


# --- Fewer passes ---


class FusedAdamW(AdamW):
    """The same as AdamW, up to rounding; on CPU and CUDA in one pass over numbers."""

    @torch.no_grad()
    def step(self) -> None:
        """Moves every parameter that has a gradient, in place."""
        everything = zip(self.parameters, self.means, self.squares, strict=True)
        moved = [part for part in everything if part[0].grad is not None]
        if any(p.device.type not in ("cpu", "cuda") for p, _, _ in moved):
            return super().step()
        for matrices in (True, False):
            chosen = [part for part in moved if (part[0].dim() >= 2) == matrices]
            if not chosen:
                continue
            parameters, means, squares = map(list, zip(*chosen, strict=True))
            steps = torch.full((len(chosen),), self.steps, dtype=torch.float32)
            adamw(
                parameters,
                [p.grad for p in parameters],
                means,
                squares,
                [],
                list(steps.to(parameters[0].device).unbind()),  # it adds one to each
                fused=True,
                amsgrad=False,
                maximize=False,
                lr=self.learning_rate,
                beta1=self.betas[0],
                beta2=self.betas[1],
                weight_decay=self.weight_decay if matrices else 0.0,
                eps=self.eps,
            )
        self.steps += 1


# --- A better direction ---


def newton_schulz(x: Tensor, rounds: int = 5) -> Tensor:
    """Matrices (..., m, n) with the same directions and all singular values near 1.

    Between about 0.7 and 1.2, where they were above a hundredth of the matrix's length.
    Cheapest with m <= n. Jordan et al., 2024.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(rounds):
        square = x @ x.mT  # (..., m, m)
        x = a * x + (b * square + c * square @ square) @ x
    return x


# --- Muon ---


class Muon:
    """Matrices step along all their directions alike; AdamW does the rest.

    `matrices` are pairs of a parameter (parts · m, n) and its number of parts, each a
    matrix by itself. Setting `learning_rate` scales both rates. Jordan et al., 2024.
    """

    def __init__(
        self,
        matrices: Iterable[tuple[Tensor, int]],
        others: AdamW,
        rate: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ):
        self.others, self.rate, self.momentum = others, rate, momentum
        self.weight_decay = weight_decay
        self.highest = others.learning_rate
        self.groups: dict[tuple[int, int], list[tuple[Tensor, int]]] = {}
        for p, parts in matrices:
            m, n = p.shape[0] // parts, p.shape[1]
            self.groups.setdefault((m, n), []).append((p, parts))
        self.means = [
            p.new_zeros(sum(parts for _, parts in group), min(m, n), max(m, n))
            for (m, n), group in self.groups.items()
            for p in [group[0][0]]
        ]

    @classmethod
    def of(cls, model: GPT, config) -> "Muon":
        """Muon for the matrices of a GPT's blocks, AdamW for all else."""
        matrices = {}
        for module in model.blocks.modules():
            if isinstance(module, MultiHeadAttention):
                rows, columns = module.to_qkv.weight.shape
                matrices[module.to_qkv.weight] = 3 if rows == 3 * columns else 1
            if isinstance(module, GatedFeedForward):
                matrices[module.widen.weight] = 2
            if isinstance(module, nn.Linear):
                matrices.setdefault(module.weight, 1)
        others = [p for p in model.parameters() if p not in matrices]
        decay, betas = config.weight_decay, (config.beta1, config.beta2)
        adamw = FusedAdamW(others, config.learning_rate, betas, weight_decay=decay)
        return cls(matrices.items(), adamw, config.matrix_rate, weight_decay=decay)

    @property
    def learning_rate(self) -> float:
        """AdamW's rate now; that of the matrices is in proportion to it."""
        return self.others.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self.others.learning_rate = value

    def zero_grad(self) -> None:
        """Forgets the gradients of the last step."""
        self.others.zero_grad()
        for group in self.groups.values():
            for p, _ in group:
                p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Moves every parameter, in place."""
        rate = self.rate * self.learning_rate / self.highest
        for ((m, n), group), mean in zip(self.groups.items(), self.means, strict=True):
            # 1. All matrices of one shape, lying down: (parts, min(m, n), max(m, n)).
            slopes = torch.cat([p.grad.view(parts, m, n) for p, parts in group])
            slopes = slopes.mT if m > n else slopes
            # 2. Their running mean, and a look ahead in it.
            mean.lerp_(slopes, 1 - self.momentum)
            steps = newton_schulz(slopes.lerp(mean, self.momentum))
            # 3. One step for each part, longer for tall ones.
            steps = steps.mT if m > n else steps
            length = rate * max(1, m / n) ** 0.5
            sizes = [parts for _, parts in group]
            for (p, parts), step in zip(group, steps.split(sizes), strict=True):
                p.mul_(1 - rate * self.weight_decay)
                p.view(parts, m, n).sub_(step, alpha=length)
        self.others.step()

    def state_dict(self) -> dict[str, Tensor]:
        """All that it remembers, as tensors."""
        state = {f"matrices.{i}": mean for i, mean in enumerate(self.means)}
        return state | {f"others.{k}": v for k, v in self.others.state_dict().items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes over what `state_dict` gave."""
        for i, mean in enumerate(self.means):
            mean.copy_(state[f"matrices.{i}"])
        prefix, rest = "others.", state.items()
        others = {k.removeprefix(prefix): v for k, v in rest if k.startswith(prefix)}
        self.others.load_state_dict(others)


# --- The race ---

MODERN = {
    "bias": False,
    "norm": "rms",
    "position": "rotary",
    "qk_norm": "rms",
    "feed_forward": "relu2",
    "zero_outputs": True,
}

# --- Look up, don't multiply ---


class NGramEmbedding(nn.Embedding):
    """A learned vector for each token, and tables with one for each n-gram.

    Each table has up to `ROWS` rows, which longer n-grams share. Bojanowski et al.,
    2016; Huang et al., 2025.
    """

    LONGEST = 4
    ROWS = 8191  # a prime

    def __init__(self, weight: Tensor, dropout: float):
        V, C = weight.shape
        super().__init__(V, C, _weight=weight)
        numbers = [(V + 1) ** n for n in range(2, self.LONGEST + 1)]
        self.tables = nn.ParameterList(
            torch.zeros(min(number, self.ROWS), C, device=weight.device)
            for number in numbers
        )
        self.dropout = Dropout(dropout)

    def n_grams(self, ids: Tensor, start: int = 0) -> Tensor:
        """The sum for those that end at each place from `start`: (B, T - start, C)."""
        # 1. The tokens before the first one; the id V stands for nothing.
        T, V, back = ids.shape[1], self.num_embeddings, self.LONGEST - 1
        seen = nn.functional.pad(ids, (back, 0), value=V)  # place 0 is number `back`
        # 2. The number of each pair, then of each triple, and so on: (B, T - start).
        number, total = ids[:, start:], 0.0
        for n, table in enumerate(self.tables, start=1):
            number = number * (V + 1) + seen[:, start + back - n : T + back - n]
            row = nn.functional.embedding(number % len(table), table)
            total = total + self.dropout(row)
        return total


@dataclass
class FastConfig(LongConfig):
    """All that describes a GPT of this course, with every switch that it has."""

    embedding: str = "token"  # or "ngrams"
    zero_outputs: bool = False  # blocks begin by adding nothing

    def __post_init__(self):
        super().__post_init__()
        check_bool("zero_outputs", self.zero_outputs)
        check_choice("embedding", self.embedding, ("token", "ngrams"))


class FastGPT(LongGPT):
    """A LongGPT that may look n-grams up: ids (B, T) -> logits (B, T, V)."""

    def __init__(self, config: FastConfig):
        super().__init__(config)
        for block in self.blocks if config.zero_outputs else ():
            nn.init.zeros_(block.attention.output.weight)
            nn.init.zeros_(block.feed_forward.output.weight)
        if config.embedding == "ngrams":
            weight = self.token_embedding.weight
            self.token_embedding = NGramEmbedding(weight, config.dropout)

    def embed(self, ids: Tensor, start: int = 0) -> Tensor:
        x = super().embed(ids, start)
        if self.config.embedding == "token":
            return x
        loud = self.config.n_embd**0.5 if self.config.tie_weights else 1.0
        return x + loud * self.token_embedding.n_grams(ids, start)
