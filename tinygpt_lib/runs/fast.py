"""The same numbers in less time: parts with fewer passes, engines, a quicker reader.

Chapter 12 shows what time goes where; what these save on one machine or another is in
benchmarks/LOG.md.
"""

import copy
import ctypes
import math
import os
import shutil
import sys
import time

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tinygpt_lib.basics.devices import device_of
from tinygpt_lib.gpt import GPT
from tinygpt_lib.modern_parts import Rotary, squared_relu
from tinygpt_lib.speed import FastConfig, FastGPT

# --- Fewer passes ---


class SquaredReLU(torch.autograd.Function):
    """Zero below zero, the square above, in two passes forward and two backward."""

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


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The same as `rotate`, up to rounding, into one new tensor."""
    dtype = torch.promote_types(x.dtype, cos.dtype)  # autocast hands in 16 bits
    y = x.new_empty(x.shape, dtype=dtype)
    (a, b), (c, d) = x.chunk(2, dim=-1), y.chunk(2, dim=-1)
    torch.mul(a, cos, out=c).addcmul_(b, sin, value=-1)
    torch.mul(a, sin, out=d).addcmul_(b, cos)
    return y


class Rotate(torch.autograd.Function):
    """`rotate`, whose gradient is turned by the opposite angle."""

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

    def turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # a compiler saves the passes by itself
            return super().turn(x, cos, sin)
        return Rotate.apply(x, cos, sin)


class QuickGPT(FastGPT):
    """A FastGPT with quicker parts in the places of its own."""

    def __init__(self, config: FastConfig):
        super().__init__(config)
        for module in self.modules():
            if type(module) is Rotary:
                module.__class__ = QuickRotary
            if getattr(module, "activation", None) is squared_relu:
                module.activation = SquaredReLU.apply


# --- Memory that is not handed back ---


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


# --- Engines: (model, config) -> what computes the logits ---


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
