"""Several processes of one run: how they join, agree, and leave when one dies."""

import hashlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from tinygpt_lib.basics.devices import DeviceError
from tinygpt_lib.basics.interrupts import exit_code, handling
from tinygpt_lib.scaling_out import n_processes, process_rank

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
ENDED = "another process of this run died, or the run was told to end"


def by_torchrun() -> bool:
    """Whether `torchrun` started this process."""
    return all(name in os.environ for name in TORCHRUN)


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
            stopped = isinstance(error, KeyboardInterrupt)
            raise SystemExit(exit_code(error) if stopped else 1) from None
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


def cut_as(part: Tensor, tensor: Tensor) -> Tensor:
    """This process's part of a whole tensor, which all have, cut like `part`."""
    from torch.distributed.tensor import distribute_tensor

    tensor = tensor.to(part.device)
    return distribute_tensor(tensor, part.device_mesh, part.placements)


class LostProcessError(RuntimeError):
    """Another process of the run died, or does not answer any more."""


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

    def end(signum, frame):
        raise LostProcessError(ENDED)

    with handling(end, [signal.SIGTERM]):
        try:
            yield
        except LostProcessError:  # a second one would cut the explanation short
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            raise
