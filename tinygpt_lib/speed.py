# generated from notebooks/text/12_speed.py: edit there
"""Speed: where does the time go?"""

import copy
import ctypes
import math
import os
import shutil
import sys
import time
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.optim.adamw import adamw

from tinygpt_lib.basics.devices import device_of, shapes_only
from tinygpt_lib.blocks import Dropout, FeedForward, LayerNorm
from tinygpt_lib.generation import READERS
from tinygpt_lib.gpt import (
    EMBEDDINGS,
    FEED_FORWARDS,
    GPT,
    POSITIONS,
    QK_NORMS,
    GPTConfig,
    TokenEmbedding,
)
from tinygpt_lib.modern_parts import (
    GatedFeedForward,
    QueryKeyNorm,
    Rotary,
    RotaryPositions,
)
from tinygpt_lib.multi_head import MultiHeadAttention
from tinygpt_lib.training import AdamW

__all__ = [
    "MODERN",
    "FusedAdamW",
    "Muon",
    "NGramEmbedding",
    "QuickRotary",
    "QuickRotaryPositions",
    "Rotate",
    "SlicedLinear",
    "SquaredReLU",
    "bfloat16",
    "compiled",
    "has_bfloat16",
    "keep_freed_memory",
    "muon",
    "newton_schulz",
    "quick_reader",
    "step_operations",
    "turned",
]

# --- The roof ---


def step_operations(config: GPTConfig, context: int | None = None) -> dict[str, float]:
    """Operations in matrix products that training costs per token: forward, backward.

    "matrices": 6 for each number in a matrix (2 forward, 4 backward); an embedding is
    looked up and costs nothing, unless it is tied to the head. "attention": a token
    meets (context + 1) / 2 keys on average, no more than the window, which makes 12 ·
    n_layer · n_embd of them. Norms, activations and the optimizer are not counted.
    """
    T = config.block_size if context is None else context
    with shapes_only():
        model = GPT(config)
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    matrices = sum(m.weight.numel() for m in linear)
    if config.tie_weights:
        matrices += model.token_embedding.weight.numel()
    w = min(config.window or T, T)
    keys = w - w * (w - 1) / (2 * T)  # (T + 1) / 2 where everything is in sight
    return {
        "matrices": 6 * matrices,
        "attention": 12 * config.n_layer * config.n_embd * keys,
    }


# --- Memory that is handed back ---


def keep_freed_memory(at_most: int = 2**30) -> bool:
    """Tells the C library to keep blocks of up to `at_most` bytes once they are free.

    Then large results need no new pages from the system, step after step. Counts for
    the whole process; only glibc (Linux) listens: False where nothing was changed.
    """
    trim_threshold, mmap_threshold = -1, -3  # their numbers in glibc's malloc.h
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    for size in (at_most, min(at_most, 2**25)):  # older ones refuse more than 32 MB
        if mallopt(mmap_threshold, size) and mallopt(trim_threshold, at_most):
            return True
    return False


# --- Fewer passes ---

FEED_FORWARDS["gelu_exact"] = partial(FeedForward, activation=nn.functional.gelu)


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


class SquaredReLU(torch.autograd.Function):
    """Zero below zero, the square above, in two passes there and two back."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        positive = x.relu()
        ctx.save_for_backward(positive)
        return positive.square()

    @staticmethod
    @once_differentiable
    def backward(ctx, slope: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return (slope * positive).mul_(2)


FEED_FORWARDS["relu2"] = partial(FeedForward, activation=SquaredReLU.apply)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The same as `rotate`, up to rounding, into one new tensor."""
    dtype = torch.promote_types(x.dtype, cos.dtype)  # autocast hands in 16 bits
    y = x.new_empty(x.shape, dtype=dtype)
    (a, b), (c, d) = x.chunk(2, dim=-1), y.chunk(2, dim=-1)
    torch.mul(a, cos, out=c).addcmul_(b, sin, value=-1)
    torch.mul(a, sin, out=d).addcmul_(b, cos)
    return y


class Rotate(torch.autograd.Function):
    """`rotate` with a way back of its own: the turn by the opposite angle."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return turned(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx, slope: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return turned(slope, cos, -sin), None, None


class QuickRotary(Rotary):
    """Rotary with fewer passes."""

    def forward(self, q: Tensor, k: Tensor, start: int) -> tuple[Tensor, Tensor]:
        if torch.compiler.is_compiling():  # a compiler saves the passes by itself
            return super().forward(q, k, start)
        cos, sin = self.table(start, start + q.shape[-2])
        return Rotate.apply(q, cos, sin), Rotate.apply(k, cos, sin)


class QuickRotaryPositions(RotaryPositions):
    """Chapter 10's rotary positions, turned by `QuickRotary`."""

    turn = QuickRotary


POSITIONS["rotary"] = QuickRotaryPositions

QK_NORMS["layer"] = partial(QueryKeyNorm, norm=LayerNorm)

# --- A better direction ---


def newton_schulz(x: Tensor, rounds: int = 5) -> Tensor:
    """Matrices (..., m, n) with the same directions and all singular values near 1.

    That is U V^T of the singular value decomposition U S V^T, with singular values
    between about 0.7 and 1.2 where S is above a hundredth of the matrix's length.
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
    matrix by itself. `rate` is theirs; `others` has its own, and both follow the plan:
    setting `learning_rate` scales the two. Jordan et al., 2024.
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
        others = {k: v for k, v in state.items() if k.startswith("others.")}
        self.others.load_state_dict(
            {k.removeprefix("others."): v for k, v in others.items()}
        )


def muon(model: GPT, config) -> Muon:
    """Muon for the matrices of a GPT's blocks, AdamW for all else."""
    matrices = {}
    for module in model.blocks.modules():
        if isinstance(module, MultiHeadAttention):
            matrices[module.to_qkv.weight] = 3
        if isinstance(module, GatedFeedForward):
            matrices[module.widen.weight] = 2
        if isinstance(module, nn.Linear):
            matrices.setdefault(module.weight, 1)
    betas = config.beta1, config.beta2
    others = FusedAdamW(
        [p for p in model.parameters() if p not in matrices],
        config.learning_rate,
        betas,
        weight_decay=config.weight_decay,
    )
    rate, decay = config.matrix_rate, config.weight_decay
    return Muon(matrices.items(), others, rate, weight_decay=decay)


# --- Is it worth it? ---

MODERN = {
    "bias": False,
    "norm": "rms",
    "position": "rotary",
    "qk_norm": "rms",
    "feed_forward": "relu2",
    "zero_outputs": True,
}

# --- Look up, don't multiply ---


class NGramEmbedding(TokenEmbedding):
    """Sum of learnt vectors for each token and each n-gram that ends with it.

    ids (B, T) -> (B, T, C). Pairs and longer ones have a table each, of up to `ROWS`
    rows that they share. Tokens before the first one of ids are `before` (B, any), or
    nothing. Bojanowski et al., 2016; Huang et al., 2025.
    """

    LONGEST = 4
    ROWS = 8191  # a prime
    looks_back = LONGEST - 1

    def __init__(self, config: GPTConfig):
        super().__init__(config)
        numbers = [(config.vocab_size + 1) ** n for n in range(2, self.LONGEST + 1)]
        self.tables = nn.ParameterList(
            torch.zeros(min(number, self.ROWS), config.n_embd) for number in numbers
        )
        self.dropout = Dropout(config.dropout)

    def forward(self, ids: Tensor, before: Tensor | None = None) -> Tensor:
        x = super().forward(ids)
        # 1. The tokens before the first one; the id V stands for nothing.
        T, V = ids.shape[1], self.num_embeddings
        seen = ids if before is None else torch.cat([before, ids], dim=1)
        missing = self.looks_back + T - seen.shape[1]
        seen = nn.functional.pad(seen, (missing, 0), value=V)
        # 2. The number of each pair, then of each triple, and so on: (B, T).
        number = ids
        for n, table in enumerate(self.tables, start=1):
            start = self.looks_back - n
            number = number * (V + 1) + seen[:, start : start + T]
            row = nn.functional.embedding(number % len(table), table)
            x = x + self.dropout(row)
        return x


EMBEDDINGS["ngrams"] = NGramEmbedding

# --- Two engines ---


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16 faster than in float32.

    A processor is asked by the clock: some have the instructions and are no faster.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    taken = {torch.bfloat16: [], torch.float32: []}
    for _ in range(8):  # in turns: a busy moment hits both
        for dtype, times in taken.items():
            x, y = torch.ones(768, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
            begin = time.perf_counter()
            x @ y
            times.append(time.perf_counter() - begin)
    return min(taken[torch.bfloat16]) < min(taken[torch.float32])


def bfloat16(model: GPT, config=None):
    """Matrix products in bfloat16, all else in float32; ValueError where that is slow.

    Micikevicius et al., 2017 (with float16); Kalamkar et al., 2019.
    """
    device = device_of(model)
    if not has_bfloat16(device):
        raise ValueError(
            f"engine 'bfloat16' would be slower than 'eager' on this {device.type}: "
            "its matrix products take longer than those in float32"
        )

    def network(ids: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(ids)
        return logits.float()

    return network


def compiled(model: GPT, config=None):
    """The model as a program made for it; ValueError where nothing can compile it."""
    compiler = os.environ.get("CXX") or "g++ clang++ c++ cl"
    if not any(shutil.which(name) for name in compiler.split()):
        raise ValueError("engine 'compiled' needs a C++ compiler, such as g++")
    return torch.compile(model)


# --- One token at a time ---


class SlicedLinear(nn.Linear):
    """The same as the nn.Linear it is made of; for few rows, in several products.

    A product with a single row runs on one thread, which can't fetch the weights as
    fast as memory gives them; cut into slices, they come through all threads. The
    weights are shared, not copied. x (..., n_in) -> (..., n_out); no gradients.
    """

    SLICES = 16  # at most
    FEW = 32  # rows; with more, the plain product is as fast or faster

    def __init__(self, linear: nn.Linear):
        nn.Module.__init__(self)
        self.__dict__.update(linear.__dict__)  # its weight and bias, its hooks too
        S = math.gcd(self.out_features, self.SLICES)
        weight, bias = self.weight.detach(), self.bias
        bias = weight.new_zeros(self.out_features) if bias is None else bias.detach()
        self.weights = weight.reshape(S, -1, self.in_features).transpose(1, 2)
        self.biases = bias.view(S, 1, -1)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)
        if len(rows) > self.FEW:
            return super().forward(x)
        rows = rows.expand(len(self.weights), *rows.shape)
        y = torch.baddbmm(self.biases, rows, self.weights)  # (S, rows, n_out / S)
        return y.transpose(0, 1).reshape(*x.shape[:-1], -1)


def quick_reader(module: nn.Module, large: int = 2**17) -> nn.Module:
    """A twin of a model, of the same parameters, that takes in single tokens faster.

    Built of the same parts, but for linear layers of at least `large` weights: fewer
    stay in a core's own fast memory. For reading only.
    """
    if type(module) is nn.Linear and module.weight.numel() >= large:
        return SlicedLinear(module)
    twin = copy.copy(module)  # shares whatever is not a module
    twin._modules = {
        name: quick_reader(part, large) for name, part in module._modules.items()
    }
    # Plain attributes too: nn.Module looks its parts up slowly.
    twin.__dict__.update(twin._modules | twin._parameters | twin._buffers)
    return twin


READERS["cpu"] = quick_reader
