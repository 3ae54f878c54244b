# generated from notebooks/text/13_scaling_out.py: edit there
"""Scaling out: what if one machine is not enough?"""

import hashlib
from collections.abc import Callable
from inspect import signature
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tinygpt_lib.basics.evaluation import most_tokens
from tinygpt_lib.bigram import evaluate
from tinygpt_lib.gpt import GPT

__all__ = [
    "evaluate_together",
    "n_processes",
    "own_seed",
    "process_rank",
    "replicated",
    "shard",
]

# --- Side by side ---


def process_rank() -> int:
    """Which of the processes this is; 0 if it is alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def n_processes() -> int:
    """How many processes work on the run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


# --- A run of many ---


def replicated(model: GPT, network: Callable) -> nn.Module:
    """The network, so that its backward pass also averages over all processes."""
    if not isinstance(network, nn.Module):
        wrapped = nn.ModuleList([model])  # a module with the model's parameters
        wrapped.forward = network
        network = wrapped
    ddp = nn.parallel.DistributedDataParallel
    new = "forward_sync_buffers" in signature(ddp).parameters  # its name since 2.13
    return ddp(
        network, **{"forward_sync_buffers" if new else "broadcast_buffers": False}
    )


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
        # A process that has none left repeats the last: sharded models work together.
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
