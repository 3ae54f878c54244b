# generated from notebooks/text/13_scaling_out.py: edit there
"""Scaling out: what if one machine is not enough?"""

import hashlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from inspect import signature
from itertools import pairwise

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tinygpt_lib._device import DeviceError
from tinygpt_lib.bigram import evaluate, most_tokens
from tinygpt_lib.gpt import GPT

__all__ = [
    "ENDED",
    "TORCHRUN",
    "LostProcessError",
    "Wrapped",
    "as_lost",
    "by_torchrun",
    "check_joining",
    "cut_as",
    "evaluate_together",
    "first_to_say",
    "from_first",
    "is_sharded",
    "loopback",
    "n_processes",
    "own_seed",
    "process_rank",
    "processes",
    "replicated",
    "shard",
    "threads_each",
    "told_to_end",
]

# --- Joining ---

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def by_torchrun() -> bool:
    """Whether `torchrun` started this process."""
    return all(name in os.environ for name in TORCHRUN)


def process_rank() -> int:
    """Which of the processes this is; 0 if it is alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def n_processes() -> int:
    """How many processes work on the run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def threads_each(n: int) -> int:
    """Threads for each of n processes: the cores shared out, unless told otherwise.

    That is by OMP_NUM_THREADS, but not by a 1: torchrun sets that by itself.
    """
    if os.environ.get("OMP_NUM_THREADS", "1") != "1":
        return torch.get_num_threads()
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return max(1, len(os.sched_getaffinity(0)) // n)
    return max(1, (os.cpu_count() or 1) // n)


def loopback() -> str:
    """The name of the interface by which a machine talks to itself."""
    return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))


def check_joining(device: torch.device) -> None:
    """DeviceError unless this process can have `device` for itself; a GPU is taken."""
    if sys.platform == "win32" or not dist.is_available():
        raise DeviceError("training in several processes needs Linux, macOS or WSL")
    if device.type not in ("cpu", "cuda") or device.index is not None:
        raise DeviceError(
            f"device {str(device)!r} can't be shared out among processes; use 'cpu' "
            "or 'cuda', of which each process takes one for itself"
        )
    local = int(os.environ["LOCAL_RANK"])
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise DeviceError(
                f"process {local} of this machine finds only "
                f"{torch.cuda.device_count()} GPUs: start no more processes than that"
            )
        torch.cuda.set_device(local)


@contextmanager
def processes(device: torch.device, patience: float = 300.0) -> Iterator[None]:
    """Joins the processes that `torchrun` started; for one alone it does nothing.

    All processes of the run must do so, and train within. Where all are on this
    machine they talk over its loopback interface: no network is needed. They wait for
    each other for at most `patience` seconds. DeviceError for a device that can't be
    shared out; LostProcessError when a process has died. Of an error that all have, one
    process tells, and the others exit.
    """
    if not by_torchrun():
        yield
        return
    check_joining(device)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    torch.set_num_threads(threads_each(here))
    if here == int(os.environ["WORLD_SIZE"]):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback())
    limit = timedelta(seconds=patience)
    store, rank, size = next(dist.rendezvous("env://", timeout=limit))
    engine = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    join = {"store": store, "rank": rank, "world_size": size, "timeout": limit}
    with told_to_end():
        joined = False
        try:
            dist.init_process_group(engine, **join)
            joined = True
            yield
        except BaseException as raised:
            error = as_lost(raised, patience) if joined else raised
            if joined and not isinstance(error, LostProcessError):
                dist.destroy_process_group()
            if first_to_say(store, error):
                raise error from None if error is raised else raised
            code = 130 if isinstance(error, KeyboardInterrupt) else 1
            raise SystemExit(code) from None
        dist.destroy_process_group()


def from_first(function: Callable[[], object]):
    """What `function` returns on the first process, on all of them; its error too."""
    if n_processes() == 1:
        return function()
    told = [None, None]
    if process_rank() == 0:
        try:
            told[0] = function()
        except Exception as error:
            told[1] = error
    dist.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise told[1]
    return told[0]


# --- A run of many ---


def replicated(model: GPT, network: Callable) -> nn.Module:
    """The network, so that its backward pass also averages over all processes."""
    if not isinstance(network, nn.Module):
        network = Wrapped(model, network)
    ddp = nn.parallel.DistributedDataParallel
    new = "forward_sync_buffers" in signature(ddp).parameters  # its name since 2.13
    return ddp(
        network, **{"forward_sync_buffers" if new else "broadcast_buffers": False}
    )


class Wrapped(nn.Module):
    """A function that computes a model, as a module that has the model's parameters."""

    def __init__(self, model: nn.Module, function: Callable):
        super().__init__()
        self.model, self.function = model, function

    def forward(self, ids: Tensor) -> Tensor:
        return self.function(ids)


def own_seed(seed: int, step: int) -> int:
    """A seed for dropout that no other process has, nor this one at another step."""
    text = f"{seed} {step} {process_rank()}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])


def evaluate_together(
    model: GPT, ids: Tensor, tokens_at_once: int | None = None
) -> float:
    """`evaluate`, shared out among the processes: the same number to the last bit."""
    block_size, n = model.config.block_size, len(ids) - 1
    whole = n - n % block_size  # tokens in full windows
    tokens_at_once = tokens_at_once or most_tokens(model)
    step = max(1, tokens_at_once // block_size) * block_size
    edges = sorted({*range(0, whole, step), whole, n})
    pieces = [ids[a : b + 1] for a, b in pairwise(edges)]
    sums = {}
    for begin in range(0, len(pieces), n_processes()):
        # Those for whom none is left repeat the last: sharded models work together.
        i = min(begin + process_rank(), len(pieces) - 1)
        length = len(pieces[i]) - 1
        mean = evaluate(model, pieces[i], min(block_size, length), tokens_at_once)
        # It was one float32 before it was divided, so this is that number again.
        sums[i] = torch.tensor(mean * length, dtype=torch.float32).item()
    everyones = [None] * n_processes()
    dist.all_gather_object(everyones, sums)
    total = {i: x for part in everyones for i, x in part.items()}
    return sum(total[i] for i in range(len(pieces))) / n


# --- Every process a part of the model ---


def shard(model: GPT) -> GPT:
    """Leaves one part of each parameter in each process (FSDP2); returns the model.

    `train` then works as with a whole model, and its checkpoints hold whole ones. To be
    called within `processes`, on all of them, with the model on its device. ValueError
    outside. Rajbhandari et al., 2019; Zhao et al., 2023.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError("sharding needs processes to share with: start by torchrun")
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        raise ValueError("sharding needs torch 2.6 or later") from None
    for p in model.parameters():  # as the first process drew them
        dist.broadcast(p.data, src=0)
    mesh = init_device_mesh(next(model.parameters()).device.type, (n_processes(),))
    for part in (*model.blocks, model):
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    return model


def is_sharded(model: GPT) -> bool:
    """Whether `shard` has been there."""
    return any(hasattr(p, "full_tensor") for p in model.parameters())


# --- A run of many, in a folder ---


def cut_as(part: Tensor, tensor: Tensor) -> Tensor:
    """This process's part of a whole tensor, which all have, cut like `part`."""
    from torch.distributed.tensor import distribute_tensor

    tensor = tensor.to(part.device)
    return distribute_tensor(tensor, part.device_mesh, part.placements)


# --- When one of them dies ---


class LostProcessError(RuntimeError):
    """Another process of the run died, or does not answer any more."""


ENDED = "another process of this run died, or the run was told to end"


def as_lost(error: BaseException, patience: float) -> BaseException:
    """LostProcessError for what torch raises when others don't answer; else `error`."""
    text = str(error)
    network = isinstance(error, getattr(dist, "DistError", ())) or "gloo" in text
    if not isinstance(error, RuntimeError) or not network:
        return error
    if "imed out" in text or "imeout" in text:
        return LostProcessError(
            f"another process of this run has not answered for {patience:g} s"
        )
    return LostProcessError(ENDED)


def first_to_say(store, error: BaseException) -> bool:
    """Whether no other process has told of the same error before."""
    text = f"{type(error).__name__}: {error}"
    try:
        return store.add(hashlib.sha256(text.encode()).hexdigest(), 1) == 1
    except RuntimeError:  # who kept the table is gone
        return True


@contextmanager
def told_to_end() -> Iterator[None]:
    """Within, SIGTERM is a LostProcessError; after that, it is not heard any more."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(signum, frame):
        raise LostProcessError(ENDED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except LostProcessError:  # a second one would cut the explanation short
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise
    except BaseException:
        signal.signal(signal.SIGTERM, before)
        raise
    signal.signal(signal.SIGTERM, before)
