"""Where a model computes: finding, choosing and checking the device."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

DEVICES = ("auto", "cpu", "cuda", "mps")


class DeviceError(RuntimeError):
    """A device that was asked for is not there, or computes wrong."""


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter or buffer; the CPU if it has none."""
    for tensor in chain(model.parameters(), model.buffers()):
        return tensor.device
    return torch.device("cpu")


def choose_device(name: str = "auto") -> torch.device:
    """The device called `name`; "auto" takes CUDA where there is one, else the CPU.

    Apple's "mps" is taken only when it is asked for, and only after its fused attention
    was found to agree with the explicit one. ValueError for any other name;
    DeviceError when the device is not there or fails the check.
    """
    base, colon, index = name.partition(":")
    numbered = base in ("cpu", "cuda", "mps") and index.isdecimal()
    if base not in DEVICES or (colon and not numbered):
        raise ValueError(f"device is {name!r}; it must be one of {', '.join(DEVICES)}")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if base == "cuda" and not torch.cuda.is_available():
        raise DeviceError("device 'cuda' was asked for, but torch finds no CUDA here")
    if base == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise DeviceError(
            f"device {name!r} was asked for, but torch finds only "
            f"{torch.cuda.device_count()} here, counted from 0"
        )
    if base == "mps":
        if not torch.backends.mps.is_available():
            raise DeviceError("device 'mps' was asked for, but torch finds none here")
        check_attention(torch.device("mps"))
    return torch.device(name)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Modules made within have shapes and no numbers: no memory, no time."""
    with torch.device("meta"), Undrawn():
        yield


class Undrawn(TorchFunctionMode):
    """Leaves out torch.nn.init, and all angles but one, which no checkpoint keeps.

    For "meta" numbers torch imports 800 modules.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(function, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        if function is torch.arange:
            return torch.zeros(1, device="cpu")
        return function(*args, **kwargs)


def check_attention(device: torch.device, tolerance: float = 1e-4) -> None:
    """DeviceError unless fused and explicit attention agree on `device`."""
    from tinygpt_lib.multi_head import fused_attention
    from tinygpt_lib.single_head import attention

    generator = torch.Generator().manual_seed(0)
    shape = (3, 2, 4, 48, 32)  # q, k, v of (B, H, T, D)
    q, k, v = torch.randn(shape, generator=generator).to(device)
    for last in (48, 5, 1):  # fewer queries than keys is how a cache calls it
        q = q[:, :, -last:]
        difference = (fused_attention(q, k, v) - attention(q, k, v)).abs().max().item()
        if not difference <= tolerance:
            raise DeviceError(
                f"fused and explicit attention differ by {difference:.1e} on {device} "
                f"(allowed: {tolerance:.0e}); use another device"
            )
