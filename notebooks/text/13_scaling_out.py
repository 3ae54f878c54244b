# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,jupyter,-all
#     formats: notebooks///ipynb,notebooks/text///py:percent
#     notebook_metadata_filter: kernelspec,jupytext,-jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 13 · Scaling out
# > What if one machine is not enough?
#
# Where we are: GPTs of about a million parameters, trained in minutes on two cores. The models that
# people talk to have some hundred thousand times as many parameters, and have read a million times as
# much text. Training takes about six operations for each parameter and each token (chapter 12
# counted them). So, for 70 billion parameters, 1.4 trillion tokens, and a machine that does 100 billion
# operations a second:

# %% tags=["nbval-check-output"]
operations = 6 * 70e9 * 1.4e12
f"{operations / 100e9 / 86400 / 365:,.0f} years"

# %% [markdown]
# And before the first step such a model would have to fit: its weights, their gradients and the two
# averages of AdamW are 16 bytes for each parameter, 1.1 terabytes together. So many machines have to
# work on one model, and learn what one would, but for rounding. This chapter does that with two
# processes on one machine, by the same calls that a thousand would use, and checks
# that the result is the same. Then it asks the question that comes before anybody pays for a
# thousand machines: what loss will they get for it? We fit a law to small models, and see what it
# forecasts for one that it has not seen. The number to be forecast is 1.611 nats.

# %%
import inspect
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch.nn.functional as F

from course import BLUE, GREEN, ORANGE, PINK, RED, SKY, plt, show
from tinygpt_lib import load_shakespeare
from tinygpt_lib.basics.devices import shapes_only
from tinygpt_lib.bigram import training_step
from tinygpt_lib.gpt import GPTConfig
from tinygpt_lib.runs.checkpoints import read_run
from tinygpt_lib.runs.processes import processes, threads_each
from tinygpt_lib.runs.run import Run
from tinygpt_lib.speed import step_operations
from tinygpt_lib.text import CharTokenizer, get_batch, split
from tinygpt_lib.training import AdamW

tokenizer = CharTokenizer.from_text(load_shakespeare())
train_ids, val_ids = split(tokenizer.encode(load_shakespeare()))

# %%
#| export
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

# %% [markdown]
# ## Two halves of a batch
# A batch is many windows, and the loss is the mean over all of them. The gradient of a mean is the
# mean of the gradients. So whoever has the gradients of two halves of a batch has the gradient of
# the batch. Is it so, for every parameter? In float64, where rounding hides nothing:


# %%
def small_gpt(seed=0):
    """Two blocks, 32 wide, in float64."""
    torch.manual_seed(seed)
    return GPT(GPTConfig(tokenizer.vocab_size, 16, n_layer=2, n_embd=32)).double()


def gradient(model, inputs, targets):
    """The loss, and its gradient as one long vector."""
    model.zero_grad()
    loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()])


model = small_gpt()
inputs, targets = get_batch(train_ids, 8, 16, torch.Generator().manual_seed(0))
_, whole = gradient(model, inputs, targets)
_, first = gradient(model, inputs[:4], targets[:4])
_, second = gradient(model, inputs[4:], targets[4:])
difference = ((first + second) / 2 - whole).abs().max().item()
assert difference < 1e-15
whole.norm().item(), difference

# %% [markdown]
# That is nearly all there is to it. The halves need not be computed at the same time, nor at the same
# place. Each of these freedoms has its use.
#
# ## One after the other
# If a batch does not fit into memory, go through it in parts. `backward` adds to the gradients that
# are there already, so the parts' losses, each divided by the number of parts, leave their mean
# behind. Only then comes the step. This is *gradient accumulation*, and it is three lines:

# %%
parts = small_gpt()
for x, y in zip(inputs.chunk(4), targets.chunk(4), strict=True):
    loss = F.cross_entropy(parts(x).flatten(0, 1), y.flatten()) / 4
    loss.backward()
summed = torch.cat([p.grad.flatten() for p in parts.parameters()])
assert (summed - whole).abs().max().item() < 1e-15
(summed - whole).abs().max().item()

# %% [markdown]
# It costs no accuracy, and what has to be kept for the backward pass shrinks to
# a quarter. In the config it is `accumulate`; `batch_size` stays the number of windows in a whole
# batch, whatever is done with them.
#
# ## Side by side
# Two processes share no memory. Each has its own copy of the model, takes its own half of the
# batch, and computes its own gradient. Then both must get the sum. That is one call, `all_reduce`: every
# process gives a tensor, and every process gets the sum of all.
#
# Here is the whole of it as a script. `torchrun` starts it twice, and tells each process by
# environment variables which one it is (its *rank*) and how many there are. `gloo` is the engine that
# moves the numbers; among GPUs it would be `nccl`.

# %%
script = """
import sys, torch, torch.distributed as dist
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()

model, inputs, targets = torch.load(sys.argv[1], weights_only=False)
mine = slice(rank * len(inputs) // size, (rank + 1) * len(inputs) // size)
logits = model(inputs[mine])
torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets[mine].flatten()).backward()
g = torch.cat([p.grad.flatten() for p in model.parameters()])
before = g.norm().item()
dist.all_reduce(g)
torch.save((before, g / size), f"{sys.argv[1]}.{rank}")
dist.destroy_process_group()
"""

# %% [markdown]
# A program that waits for others can wait for ever, so everything that this chapter starts has a time
# limit. The processes talk over the *loopback* interface, the network that a machine has with
# itself, so no other is needed. They find each other at a port; we look for a free one.


# %%
def free_port():
    """A port that nobody listens at."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def launch(*command, processes=2, threads=1, seconds=120):
    """Runs a script (or -m module) in several processes; what they printed."""
    program = [sys.executable]
    if processes > 1:
        program += ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        program += ["--master-port", free_port()]
    loopback = next(n for _, n in socket.if_nameindex() if n.startswith("lo"))
    settings = {"OMP_NUM_THREADS": str(threads), "GLOO_SOCKET_IFNAME": loopback}
    process = subprocess.Popen(
        [*program, *map(str, command)],
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said, errors = process.communicate(timeout=seconds)
    finally:
        process.terminate()  # torchrun then ends those that it has started
    assert process.returncode == 0, errors
    return said


folder = Path(tempfile.mkdtemp())
(folder / "halves.py").write_text(script)
torch.save((small_gpt(), inputs, targets), folder / "given.pt")
launch(folder / "halves.py", folder / "given.pt")
results = [torch.load(folder / f"given.pt.{rank}") for rank in range(2)]

# %%
assert torch.equal(results[0][1], results[1][1])
assert (results[0][1] - whole).abs().max().item() < 1e-15
[round(before, 4) for before, _ in results], round(results[0][1].norm().item(), 4)

# %% [markdown]
# Two gradients of different lengths went in, and the same one came out of both: that of the whole
# batch. (It is shorter than either: where the halves disagree, by noise, they cancel.) Since
# both processes began with the same weights and now take the same step, they end with the
# same weights, for as long as they go on like this. Nothing else has to be sent.
#
# How can everybody get the sum, without one process that is sent everything? Each cuts its tensor
# into as many parts as there are processes, $n$. In a first round, process $i$ adds up everybody's
# part $i$ (*reduce-scatter*); in a second, each gives its finished part to all others (*all-gather*).
# In each round a process sends $(n - 1) / n$ of a tensor, so together nearly twice the tensor, however
# many they are. (Engines often do it in a *ring*, each process sending to its neighbour only.)


# %%
def all_reduce(tensors):
    """The sum for everybody, in two rounds."""
    cut = [tensor.chunk(len(tensors)) for tensor in tensors]
    finished = [sum(part) for part in zip(*cut, strict=True)]  # process i has the i-th
    return [torch.cat(finished) for _ in tensors]


assert torch.equal(all_reduce([first, second])[1], first + second)

# %% [markdown]
# How long does it take? The gradients of ten million parameters are 43 MB. And while we are timing:
# what if not everybody takes part?

# %%
script = """
import os, time, torch, torch.distributed as dist
from datetime import timedelta
torch.set_num_threads(1)
dist.init_process_group("gloo")
hasty = dist.new_group(timeout=timedelta(seconds=3))
g = torch.ones(10_700_000)
taken = []
for _ in range(5):
    dist.barrier()
    begin = time.perf_counter()
    dist.all_reduce(g)
    taken.append(time.perf_counter() - begin)
if dist.get_rank() == 0:
    least = min(taken)
    print(f"{1000 * least:.0f} ms, {g.nbytes / least / 1e9:.1f} GB/s sent by each", flush=True)
    try:
        dist.all_reduce(g, group=hasty)  # by the first alone
    except RuntimeError as error:
        print("after 3 s:", str(error).splitlines()[0].split("] ")[-1], flush=True)
else:
    time.sleep(6)
os._exit(0)  # a broken connection can't be taken down in good order
"""
(folder / "timing.py").write_text(script)
print(launch(folder / "timing.py").strip())

# %% [markdown]
# That is the one rule behind everything that follows: **every process makes the same calls in the same
# order.** Else it waits for a partner that never comes; without a limit, for as long as it is let. The
# mistake looks harmless: `if rank == 0: print(evaluate(model))` hangs as soon as the model is cut into
# parts, since its forward pass then asks all the others for theirs.

# %% [markdown]
# ## Joining
# What the script did in one line takes some care in a library. A process must know its device (`RANK` counts over all
# machines, `LOCAL_RANK` on this one: it says which GPU to take) and its share of the cores. It must not wait forever for
# a partner that has died. Only one process may write files, and when that one fails, the others have to hear of it, or they
# would wait for someone who has long given up. All this is `tinygpt_lib/runs/processes.py`: `processes` is a
# `with` inside which a script trains, and outside of `torchrun` it does nothing. Two questions are all that this
# chapter's own code has to ask.


# %%
#| export
def process_rank() -> int:
    """Which of the processes this is; 0 if it is alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def n_processes() -> int:
    """How many processes work on the run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


# %%
with processes(torch.device("cpu")):
    alone = n_processes(), process_rank()
alone

# %% [markdown]
# ## A run of many
# Now the loop of chapter 07, shared out. All processes draw the *same* batch, from the same
# generator, and each takes its slice. So what is learnt does not depend on how many there are.
# (Elsewhere the batch size often counts for each process. Eight processes then have a batch eight
# times as large, which takes fewer steps and wants another learning rate: the commonest surprise of
# a first run on many GPUs.) Two things to get right. The mean of means is the mean only if all
# parts have equally many targets; where some don't count, as with padding, divide by the number in
# the whole batch. And a gradient that is too long (chapter 07) is cut after the sum, never before.
#
# To add up the gradients we use torch's engine, `DistributedDataParallel` (DDP; Li et al., 2020).
# Our script had to wait for the backward pass to finish and then sent everything at once. But the
# gradient of the last layer is ready first, while those of the layers below are still to be
# computed. DDP collects gradients in buckets, and starts to send a bucket as soon as it is full, so
# that sending and computing overlap.
#
# ![Two processes over time, each with half of the batch: both run forward, then backward from layer 4 to layer 1; the gradients of layers 4 and 3 are averaged between them while backward still runs, then those of 2 and 1, and both take the same step.](drawings/processes.svg)
#
# With accumulation, only the last part's backward pass need send;
# the ones before it are told to keep quiet, or there would be as many messages as parts.
#
# Ctrl-C reaches the processes at different moments, but they have to stop after the same step, or
# those who go on would wait for the others. So a wish to stop is added up along with every step's
# loss.
#
# And there are two traps. One is dropout. Each process has random numbers of its own, but all began
# with the same seed, so all would drop the same units of their slices. That is less random than it
# ought to be. So all but the first begin elsewhere. The other is the order of adding. After its
# first pass DDP arranges its buckets anew, in the order in which gradients turned out to be ready,
# and with three or more processes other buckets mean sums in another order. A run that goes on
# after a stop would begin with the first arrangement again, and no longer be the same to the last
# bit. So every run begins with a pass that only serves to arrange the buckets.


# %%
print(inspect.getsource(Run.learn))

# %% [markdown]
# That is how the library's run learns from a batch (`tinygpt_lib/runs/run.py`). What it stands on: DDP, told not to
# send buffers around before every step (ours are tables of cosines, the same everywhere), and seeds.


# %%
#| export
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


# %% [markdown]
# The validation text is shared out as well. A sum of floating-point numbers depends on the order, and a
# result that depends on the number of processes would be a nuisance. So the text is cut just as
# `evaluate` cuts it, and the sums of the pieces are added in the order of the text.


# %%
#| export
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


# %% [markdown]
# ## Every process a part of the model
# DDP makes training faster, not models larger: each process holds all weights, gradients and
# averages, and at 16 bytes for a parameter that is soon too much. It is also waste, since all hold
# the same. So let each of $n$ processes keep one $n$-th of each tensor (*sharding*; ZeRO,
# Rajbhandari et al., 2019). Whoever needs a block's weights to compute gathers them from all, uses
# them, and lets them go again, once in the forward pass and once in the backward pass. Gradients
# are added up as before, but each process keeps only the part that belongs to its weights, and
# steps only with that. So in a step every parameter is sent three times (two gathers, one
# reduce-scatter) where DDP sends it twice.
#
# One need not go so far. Between the two rounds of `all_reduce` each process has the finished sum of one
# part. Let it step with that part only, and in the second round send the new weights instead of the
# gradients: then just AdamW's averages are cut, half of the 16 bytes, and nothing more is sent than by
# DDP. That is ZeRO's first stage. The second cuts the gradients as well; the third is the one above,
# which also cuts the weights.
#
# Again there is an engine in torch: `fully_shard` (FSDP, in its second form). After it, a parameter is a
# `DTensor`, which looks whole and is one part of a whole here. AdamW works number by number, so ours
# takes them as they are. The length of the gradient needs all parts; `norm` of a DTensor knows
# that. But an optimizer that needs whole matrices would have to gather them first, and is refused.


# %%
#| export
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


# %% [markdown]
# Two limits. It saves memory while it trains, not before: each process makes the model whole and
# then cuts it, the first one puts a checkpoint together, and to go on every process reads all of
# it. That is simple, and goes as far as a machine's main memory does. For 70 billion parameters one
# makes the model without numbers, cuts it, fills in each part, and lets every process write its own
# (`torch.distributed.checkpoint`). And accumulation undoes some of it: a process that keeps quiet
# keeps whole gradients until the last part. Where they don't fit, every part has to send.
#
# What is kept, then, in one process? Whole: 4 bytes a weight, 4 a gradient, 8 for the averages. In
# two parts: half of that. On top come what the forward pass keeps for the backward pass (its
# slice's share, whatever the sharding) and, sharded, the block at work. The script below measures both:
# what is kept after a step, by adding up tensors, and the peak of the whole process, as the system
# saw it (each time a new process, and freed memory given back at once: chapter 11 tells why).

# %%
script = """
import json, resource, sys, torch
from functools import partial
from pathlib import Path
from torch.utils.checkpoint import checkpoint
from tinygpt_lib import GPT, GPTConfig, TrainConfig
from tinygpt_lib.runs.processes import processes
from tinygpt_lib.runs.run import Run
from tinygpt_lib.scaling_out import process_rank, shard

def peak():
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS

def begin(width, layers, windows, how="whole"):
    model = GPT(GPTConfig(65, 64, n_layer=layers, n_embd=width))
    model = shard(model) if how == "shard" else model
    for block in model.blocks if how == "again" else ():
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return Run(model, ids, ids, TrainConfig(batch_size=windows))

with processes(torch.device("cpu")):
    ids = torch.randint(65, (10_000,), generator=torch.Generator().manual_seed(0))
    begin(8, 1, 2, sys.argv[1]).take_step()  # so that what torch needs is there
    before = peak()
    run = begin(*map(int, sys.argv[2:]), sys.argv[1])
    for _ in range(2):
        run.take_step()
    local = lambda t: t.to_local() if hasattr(t, "to_local") else t
    kept = [local(t) for p in run.model.parameters() for t in (p, p.grad)]
    kept += [local(t) for t in run.optimizer.state_dict().values()]
    numbers = sum(t.nbytes for t in kept), peak() - before
    print(json.dumps([process_rank(), *[round(n / 1e6, 1) for n in numbers]]) + "\\n")
"""
(folder / "memory.py").write_text(script)
os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # only programs started later see it


# %%
def memory(how, width=384, layers=6, windows=4, processes=2):
    """Megabytes in each process: kept after a step, and the peak."""
    given = folder / "memory.py", how, width, layers, windows
    lines = launch(*given, processes=processes).splitlines()
    return [row[1:] for row in sorted(json.loads(x) for x in lines if x[:1] == "[")]


needs = {"alone": memory("whole", processes=1)}
needs |= {"replicated": memory("whole"), "sharded": memory("shard")}
needs

# %%
fig, ax = plt.subplots(figsize=(6, 2.4))
for i, ((kept, most), *_) in enumerate(needs.values()):
    ax.barh(i, kept, color=BLUE, label="kept after a step" if i == 0 else None)
    ax.barh(
        i,
        most - kept,
        left=kept,
        color=SKY,
        label="on top, at the peak" if i == 0 else None,
    )
ax.set_yticks(range(3), needs)
ax.invert_yaxis()
ax.set(xlabel="megabytes in each process (10.7 million parameters)")
ax.legend(loc="lower right")
show(
    fig,
    alt="Bars of the memory in a process: alone and replicated keep the same, with a "
    "somewhat higher peak; sharded keeps half of it, and its peak is much lower.",
)
assert abs(2 * needs["sharded"][0][0] / needs["alone"][0][0] - 1) < 0.01

# %% [markdown]
# *Kept: 16 bytes a parameter, and with two shards half of that. DDP saves nothing: its buckets are
# a second copy of the gradients, 43 MB, and its peak comes at the end of the backward pass, when
# hardly any activations are left.*

# %% [markdown]
# ## A run of many, in a folder
# What remains is the disk. Only the first process writes, reads and holds the lock. A checkpoint has
# the same files as before, with whole tensors in them, so that any number of processes can go on with
# it, or one, and so that `sample` and `evaluate` need not know how it was trained. Before it is
# written, the parts are gathered. And to go on bit for bit with the same number of processes, it also
# needs the state of everybody's random numbers, for dropout. With more processes than before, the
# new ones begin with a seed made from the step, so that nothing is drawn twice.


# %% [markdown]
# ## The command
# So this is how a model is trained by many: the command of chapter 07, with `torchrun` in front.
# ```
# torchrun --nproc-per-node 2 -m tinygpt_lib train --out runs/two
# torchrun --nproc-per-node 2 -m tinygpt_lib train --out runs/shards --shard --optimizer adamw
# ```
# On two machines of 8 GPUs each, the same command on both, but for the rank of the machine (this
# one was not run here):
# ```
# torchrun --nnodes 2 --node-rank 0 --nproc-per-node 8 --master-addr first --master-port 29500 \
#     -m tinygpt_lib train --out runs/many --device cuda --batch-size 64
# ```
# Only the first machine's folder is written. Here we start it as `python -m torch.distributed.run`,
# for which `torchrun` is short, on a part of the text, and in three ways: alone with all cores, then in two
# processes with half of them each, whole and sharded.


# %%
(folder / "part.txt").write_text(load_shakespeare()[:200_000], encoding="utf-8")


def command(name, *more, steps=10, width=96, layers=3):
    """A small training run in `folder`, as a command line."""
    given = f"-m tinygpt_lib train --device cpu --steps {steps} --batch-size 32 "
    given += f"--n-embd {width} --n-layer {layers} --optimizer adamw --eval-every 0"
    files = "--text", folder / "part.txt", "--out", folder / name
    return [*given.split(), *files, *more]


ways = {"alone": (1, []), "replicated": (2, []), "sharded": (2, ["--shard"])}
histories = {}
for name, (number, more) in ways.items():
    launch(*command(name, *more), processes=number, threads=threads_each(number))
    histories[name] = read_run(folder / name).history
for name, history in histories.items():
    apart = np.abs(np.subtract(history.losses, histories["alone"].losses)).max()
    assert apart < 1e-3
    print(f"{name:10}  {history.seconds:4.1f} s   losses at most {apart:.0e} apart")

# %% [markdown]
# The same losses, but for float32's rounding. Time can hardly be gained here: all cores were busy
# before, and now there is talking to do as well. Several processes pay where there are several
# machines, or GPUs. (Single runs, whose seconds vary, and count the look at the validation text
# too.)

# %% [markdown]
# ## When one of them dies
# The more machines, the sooner one of them breaks. The run that became Llama 3, on 16,384 GPUs, was
# broken off unexpectedly 419 times in 54 days, once in three hours (Llama Team, 2024). So a run
# must be able to go on, and a process must know how to leave. Whoever waits for a process that
# hangs waits half an hour by default, and then complains for a page. So when a connection breaks,
# when `torchrun` says that it is over (by the signal SIGTERM), or when nothing has been heard for
# five minutes, that shall be one error, in one clear sentence. And an error that all processes run
# into, such as a setting that makes no sense, is told by one of them. They agree on that by a small
# table that `torchrun` keeps for them: who is the first to write into it speaks.


# %% [markdown]
# We try it. The second of two sharded processes kills itself after 25 of 40 steps; a
# checkpoint is due every ten.

# %%
script = """
import os, signal, sys
from tinygpt_lib.commands import main
from tinygpt_lib.runs.run import SavedRun
from tinygpt_lib.scaling_out import process_rank

learn = SavedRun.learn

def dying(run, *batch):
    if run.step == 25 and process_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return learn(run, *batch)

SavedRun.learn = dying
sys.exit(main(sys.argv[1:]))
"""
(folder / "dying.py").write_text(script)
often = "--save-every", "10", "--shard"
_, _, *given = command("broken", *often, steps=40, width=32, layers=2)
try:
    launch(folder / "dying.py", *given)
except AssertionError as death:
    (line,) = [x for x in str(death).splitlines() if "error: " in x]
print(line[line.index("error: ") :].replace(str(folder), "FOLDER"))
len(read_run(folder / "broken").history.losses)

# %% [markdown]
# The survivor says what happened and what to do, in one line. We do it, with a difference: one
# process goes on with what two began, and has all of the model instead of half. (Had two gone on,
# it would be bit for bit the run that was never broken: `tests/test_scaling_out.py` does that.)

# %%
resume = "-m", "tinygpt_lib", "train", "--resume", "--out", folder / "broken"
print(launch(*resume, processes=1).strip().replace(str(folder), "FOLDER"))
state = read_run(folder / "broken")
assert len(state.history.losses) == 40

# %% [markdown]
# How often should a run be saved? A save costs $s$ minutes. A break comes every $M$ minutes, and
# costs on average half the time between two saves, $t / 2$. Per minute that is $s / t + t / 2M$,
# which is least at $t = \sqrt{2 s M}$ (Young, 1974): with a minute for a save and three hours
# between breaks, every 19 minutes.

# %% [markdown]
# ## What loss for the money?
# Now a thousand machines could be told what to do. What would they get for it? That a larger model and
# more text give a lower loss is no news. The surprise (Kaplan et al., 2020) is how *regular* it is: over
# many powers of ten the loss follows a formula, here in the form of Hoffmann et al. (2022),
#
# $$L(N, D) = E + \frac{A}{N^a} + \frac{B}{D^b}$$
#
# with $N$ parameters and $D$ tokens of training. $E$ is what no model can do away with, since text
# is not fully foreseeable; $A / N^a$ is what the model is too small for, and $B / D^b$ what it had
# not enough text, or steps, to learn. Who knows the five numbers from small models can ask about
# large ones.
#
# We have trained 30 small models: five widths from 32 to 128, four budgets from 200,000 to 1.6
# million characters, the smaller budgets with two seeds, everything else by one rule
# ([benchmarks/scaling_law.py](../benchmarks/scaling_law.py); half an hour of one core). Each run
# cools down over its own budget: the loss halfway through a longer one, at a high rate, would be
# too high. Then one more, set aside before any fit: 1.35 million parameters, over twice the largest
# of them, and 2 million characters.

# %%
bench = json.loads(Path("../benchmarks/scaling_law.json").read_text())
larger_width, _ = bench["larger"]
(larger,) = (r for r in bench["runs"] if r["width"] == larger_width)
grid = [r for r in bench["runs"] if r["width"] < larger_width]
assert round(larger["loss"], 3) == 1.611
len(grid), len({r["width"] for r in grid}), len({r["tokens"] for r in grid})

# %% [markdown]
# The formula is awkward only in its exponents. Once $a$ and $b$ are chosen, it is linear in $E$,
# $A$ and $B$, and least squares gives $E$, $A$ and $B$. So try all pairs of exponents on a grid and
# keep the best whose three numbers are not negative. $N$ and $D$ are counted in units of the larger
# run. Then $A$ and $B$ are what these terms cost *there*, and the forecast is just $E + A + B$.
#
# The fit is also written for many *weightings* of the runs at once: that is for the next step.


# %%
def fit(runs, times=None):
    """E, A, B, a, b by least squares, for each row of `times` (how often a run counts)."""
    N, D, loss = np.array([(r["parameters"], r["tokens"], r["loss"]) for r in runs]).T
    N, D = N / larger["parameters"], D / larger["tokens"]
    times = np.ones((1, len(runs))) if times is None else times
    best, least = np.zeros((len(times), 5)), np.full(len(times), np.inf)
    for a in np.geomspace(0.05, 1.5, 45):
        for b in np.geomspace(0.05, 1.5, 45):
            x = np.stack([np.ones_like(N), N**-a, D**-b], axis=1)  # (runs, 3)
            xx = (times @ (x[:, :, None] * x[:, None]).reshape(-1, 9)).reshape(-1, 3, 3)
            xy = (times * loss) @ x
            p = np.linalg.solve(xx + 1e-9 * np.eye(3), xy[..., None])[..., 0]
            errors = (times * (p @ x.T - loss) ** 2).sum(axis=1)
            better = (errors < least) & (p >= 0).all(axis=1)
            least[better] = errors[better]
            best[better] = np.insert(p, 3, [[a], [b]], axis=1)[better]
    return best


law = fit(grid)[0]
dict(zip("E A B a b".split(), law.round(3).tolist(), strict=True))

# %% [markdown]
# A forecast without an interval is worth little. How sure can thirty runs make us? Let chance repeat the
# experiment (the *bootstrap*): draw thirty of the thirty runs, with replacement, so that some count
# twice and others not at all; fit again; and see how far the answers scatter.

# %%
rng = np.random.default_rng(0)
draws = rng.multinomial(len(grid), np.full(len(grid), 1 / len(grid)), size=2000)
laws = fit(grid, draws.astype(float))
low, high = np.percentile(laws, [2.5, 97.5], axis=0)
for name, best, *ends in zip("E A B a b".split(), law, low, high, strict=True):
    print(f"{name}   {best:.2f}   95 % interval {ends[0]:.2f} to {ends[1]:.2f}")

# %% [markdown]
# The five numbers are hardly determined at all. (Ends at 0.05 or near zero are the edges of our
# search, not the data's.) A lower $E$ with flatter powers fits nearly as well as a higher one with
# steeper powers: they are entangled. So nobody should read from these runs how foreseeable
# Shakespeare is. But the *sum*, at a place not far away, is another matter.
#
# Two things make that forecast unsure. One is the law, and the bootstrap has told how much. The other is
# the luck of the single run that is forecast. Where two runs differ by their seed alone, they tell: the
# square of a difference is on average twice the *variance* of one.

# %%
pairs = {}
for r in grid:
    pairs.setdefault((r["width"], r["tokens"]), []).append(r["loss"])
luck = np.array([p[0] - p[1] for p in pairs.values() if len(p) == 2])
noise = np.sqrt(np.mean(luck**2) / 2)
f"luck of one run {noise:.3f}; two are {np.median(abs(luck)):.3f} apart (median), at most {max(abs(luck)):.3f}"

# %%
forecasts = laws[:, :3].sum(axis=1)
forecasts = forecasts + rng.normal(0, noise, len(forecasts))
interval = np.percentile(forecasts, [2.5, 97.5])
forecast, measured = law[:3].sum(), larger["loss"]
seen = min(r["loss"] for r in grid)
print(f"forecast {forecast:.3f}, 95 % interval {interval[0]:.3f} to {interval[1]:.3f}")
print(f"measured {measured:.3f}, {measured - forecast:+.3f}")
print(
    f"lower than the grid's best by {seen - forecast:.3f} forecast, {seen - measured:.3f} measured"
)


# %%
def law_at(N, D):
    """The loss by the law."""
    E, A, B, a, b = law
    return E + A * (N / larger["parameters"]) ** -a + B * (D / larger["tokens"]) ** -b


misses = [r["loss"] - law_at(r["parameters"], r["tokens"]) for r in grid]
colors = dict(
    zip((2e5, 4e5, 8e5, 1.6e6, 2e6), (ORANGE, GREEN, BLUE, PINK, RED), strict=True)
)
fig, axes = plt.subplots(1, 2, figsize=(8.5, 3.2))
N = np.geomspace(35_000, 1.6e6, 50)
for D, color in colors.items():
    label = f"{D / 1e6:.1f} million characters"
    axes[0].semilogx(N, law_at(N, D), color=color, lw=1, label=label)
for run, miss in zip(grid, misses, strict=True):
    dot = {"marker": "o", "ms": 4, "color": colors[run["tokens"]]}
    axes[0].plot(run["parameters"], run["loss"], **dot)
    axes[1].semilogx(run["parameters"], miss, **dot)
ends = np.abs(interval - forecast)[:, None]
for ax, center in zip(axes, (forecast, 0.0), strict=True):
    bar = {"fmt": "_", "ms": 9, "capsize": 4, "color": RED}
    ax.errorbar(larger["parameters"], center, ends, **bar)
    star = {"marker": "*", "ms": 10, "mfc": "none", "color": RED}
    ax.plot(larger["parameters"], center + measured - forecast, **star)
axes[1].axhline(0, color="gray", lw=1)
axes[0].set(xlabel="parameters", ylabel="validation loss (nats)")
axes[1].set(xlabel="parameters", ylabel="measured less law (nats)")
axes[0].legend(fontsize=7, ncols=2, loc="upper right")
axes[0].set_ylim(1.58, 2.32)
show(
    fig,
    alt="Left: loss against parameters, falling curves of the law for five budgets with "
    "the runs on them; the star of the larger run lies at the lower end of its forecast's "
    "bar. Right: what the law misses; with much text, small models lie above zero and large "
    "ones below.",
)

# %% [markdown]
# *Left: the law (lines), the thirty runs, and the larger run (star) that it has not seen, beside
# the forecast and its interval (bar, 95 %). Right: what the law misses, run by run. Pink, the most
# text: above zero for the two smallest models, below it for the others.*

# %%
most = [m for r, m in zip(grid, misses, strict=True) if r["tokens"] == 1_600_000]
assert interval[0] < measured < interval[1] and most[0] > 0.02 and max(most[2:]) < 0
[round(m.item(), 3) for m in most]

# %% [markdown]
# Did it hold? It said 1.636, and 1.611 was measured, within the interval: the law is not refuted. (That is
# not much: the interval holds the grid's best, 1.669, too, and so would not have excluded a larger model
# that gains nothing.)
# It foresaw a bit more than half of what the larger run gained. And the misses have a pattern, on
# the right side of the figure: with most text (the list above, from the narrowest model to the
# widest) the small models are worse than the law and the large ones better. Those are five single
# runs; a second seed of each would tell. It may be that larger models make more of the same text,
# which a sum of one term for size and one for text cannot say. Then a larger model yet would do
# better than forecast again, and the interval does not know that: the bootstrap asks how sure the
# five numbers are *if the formula is right*.
#
# There is more that our runs can't tell. Windows are drawn at random from a million characters, so
# text is read again long before all of it has been read once, while the law was made for text that
# is always new. The loss over the first ninth of the training text is below that over the
# validation text by:

# %%
gaps = {}
for r in grid:
    gaps.setdefault(r["tokens"], []).append(r["loss"] - r["train_loss"])
{f"{tokens:,}": f"{min(of):.2f} to {max(of):.2f}" for tokens, of in gaps.items()}

# %% [markdown]
# One text may be easier than the other. But the distance grows, so these models learn things that
# hold only for the text that they read. (Text that is read up to four times was found to be nearly
# as good as new; Muennighoff et al., 2023.) And the rule for the learning rate, 0.64 / width, was
# tried at two widths only:

# %%
tried = {r["width"] for r in bench["trials"]}
same = [
    r for r in grid if r["width"] in tried and (r["tokens"], r["seed"]) == (200_000, 0)
]
for r in sorted(bench["trials"] + same, key=lambda r: (r["width"], r["rate"])):
    rule = "the rule" if r in same else ""
    print(
        f"width {r['width']:3}   rate {r['rate']:.4f}   {r['loss']:.3f} nats   {rule}"
    )

# %% [markdown]
# That is with 200,000 characters. For the wider model neither half nor double is better; for the
# narrowest half is a little better, by a quarter of what a second seed changes there. Had the rule
# favoured some width, the law would have learnt that as well.
#
# What is such a law used for, then? To share out a budget. Training takes about $6 N D$ operations,
# so for a given number $K$ of them, a larger model must see less text. Put $D = K / 6N$ into the
# law, look for the lowest loss, and the best size grows as $K^{b / (a + b)}$.

# %%
powers = laws[:, 4] / (laws[:, 3] + laws[:, 4])
at_best = law[4] / (law[3] + law[4])
f"{at_best:.2f}, 95 % interval {np.percentile(powers, 2.5):.2f} to {np.percentile(powers, 97.5):.2f}"

# %% [markdown]
# Our grid is far too small to say. Hoffmann and his colleagues had 400 models, up to 16 billion
# parameters, and found about a half: size and text should grow alike. Before, the models had grown and
# the text had hardly. They trained a model of 70 billion parameters on 1.4 trillion tokens, 20 for
# each parameter, and it beat one four times its size. That is where the numbers of this chapter's first
# page come from. Twenty is best if only training is paid for. A model that many will use is better made
# smaller and trained for longer: Llama 3 read 15 trillion tokens, over 200 for each parameter of its 70
# billion, and nearly 2,000 for each of its 8 billion (Llama Team, 2024).

# %% [markdown]
# ## On paper: memory
# Now the bill. Three models: GPT-2's smallest with 124 million parameters, its largest with 1.5
# billion, and one of 70 billion, as wide as Hoffmann's (whose layers have some more parameters each
# than ours, hence 86 layers).

# %% tags=["nbval-check-output"]
plans = {
    "124M": GPTConfig(50_257, 1024, 12, 12, 768, tie_weights=True),
    "1.5B": GPTConfig(50_257, 1024, 48, 25, 1600, tie_weights=True),
    "70B": GPTConfig(32_000, 4096, 86, 64, 8192, bias=False, position="rotary"),
}
sizes = {}
with shapes_only():  # a model without numbers in it
    for name, config in plans.items():
        sizes[name] = GPT(config).n_parameters()
sizes

# %% [markdown]
# What the backward pass needs from the forward pass can be counted block by block, for each token,
# in units of the width $C$: the stream that comes in and its norm (2), queries, keys and values
# (3), what attention gives (1; being fused, it keeps no table), the stream and its norm again (2),
# and the widened numbers before and after the bend (8). That makes 16, in each layer; then $2C$ for
# the last norm, and the logits. Both add up, since chapter 02's `training_step` keeps the old
# gradients until the forward pass is over.


# %%
def step_memory(config, n, windows, bytes_each=4):
    """Bytes of a training step: n parameters, and what the backward pass needs."""
    C, V = config.n_embd, config.vocab_size
    kept = windows * config.block_size * (16 * config.n_layer * C + 2 * C + V)
    return {"parameters": 16 * n, "activations": bytes_each * kept}


peaks = {(384, 6, 4): needs["alone"]}
peaks[128, 4, 64] = memory("whole", 128, 4, 64, processes=1)
for (width, layers, windows), ((kept, most),) in peaks.items():
    config = GPTConfig(65, 64, n_layer=layers, n_embd=width)
    paper = step_memory(config, GPT(config).n_parameters(), windows)
    ratio = 1e6 * most / sum(paper.values())
    assert 0.8 < ratio < 1.3 and abs(1e6 * kept / paper["parameters"] - 1) < 0.01
    parts = ", ".join(f"{name} {x / 1e6:.0f}" for name, x in paper.items())
    print(f"on paper {parts} MB; measured peak {most:.0f} MB, {ratio:.2f} times")

# %% [markdown]
# For a step that is mostly parameters and for one that is nearly all activations, paper and peak agree
# within a few per cent. So we may use the formula for what does not run here, but for its logits, which
# our 65 characters hardly put to the test. With 50,000 tokens they cost more than it says: the loss is
# taken in 32 bits, so besides the logits in 16 there are a copy and its logarithms of probabilities, 10
# bytes instead of 2. That doubles what a window of the 124M model needs; for 70B it hardly counts.
#
# Activations need not all be kept. Keep what goes into each block, and when the backward pass gets
# there, compute the rest again (*recomputation*, or gradient checkpointing; Chen et al., 2016): one
# more forward pass, a third more operations. Of the second of these models that leaves:

# %%
((kept, most),) = peaks[128, 4, 64]
((_, again),) = memory("again", 128, 4, 64, processes=1)
assert again < 0.7 * most
f"peak {most:.0f} MB, with recomputation {again:.0f} MB; {kept:.0f} MB of both are parameters"

# %% [markdown]
# ## On paper: time
# For operations we have `step_operations` of chapter 12. The time follows if one knows which share
# of the machine's peak a training step reaches. Here:


# %%
def seconds(step, n=3):
    """The fastest of n calls."""
    step()
    times = []
    for _ in range(n):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return min(times)


square = torch.randn(1024, 1024)
peak = 2 * 1024**3 / seconds(lambda: square @ square, 5)
for width, layers, windows in ((64, 2, 64), (128, 4, 32), (256, 6, 16)):
    model = GPT(GPTConfig(65, 64, n_layer=layers, n_embd=width))
    adamw, batch = AdamW(model.parameters()), get_batch(train_ids, windows, 64)
    took = seconds(lambda m=model, a=adamw, b=batch: training_step(m, a, *b))
    done = windows * 64 * sum(step_operations(model.config).values()) / took
    share = done / peak
    assert 0 < share < 1.2
    print(
        f"{model.n_parameters():9,} parameters: {done / 1e9:4.0f} GFLOP/s, {share:.0%} of the peak"
    )

# %% [markdown]
# The larger the matrices, the nearer the peak. On GPUs there is more in between, the network above
# all; those who trained Llama 3 on up to 16,000 of them report 38 to 43 % (Llama Team, 2024),
# waiting for others included. We take 40 %, and the *H100* that they used: 989 TFLOP/s in 16 bits,
# 80 GB of memory, 450 GB/s each way between a GPU and all others of its machine together, and 50
# GB/s from machine to machine, by a network card for each GPU.
#
# In 16 bits an activation takes 2 bytes. A parameter still takes 16: weight and gradient 2 each,
# and AdamW's averages and a precise copy of the weight 4 each. And every parameter gets 20 tokens,
# as Hoffmann found.

# %%
H100 = {"operations": 989e12 * 0.4, "memory": 80e9, "inside": 450e9, "between": 50e9}
print(
    "       state (GB)  a window (GB)  tokens   operations  years here  days on an H100"
)
for name, config in plans.items():
    n = sizes[name]
    need = step_memory(config, n, windows=1, bytes_each=2)
    work = 20 * n * sum(step_operations(config).values())
    state, window = (x / 1e9 for x in need.values())
    here, there = work / done / 3.15e7, work / H100["operations"] / 86400
    print(
        f"{name:5}{state:10,.0f}{window:14.1f}{20 * n:12.1e}{work:12.1e}{here:13,.1f}{there:14,.1f}"
    )

# %% [markdown]
# (On the first page it was 186,454 years: there at a round 100 billion operations a second, here at
# what the last of the three models reached, and with attention's operations.)
#
# **124M** fits on any GPU, with many windows at a time. One does it in hours; more
# only make it faster, and *data parallel* (DDP) is all that this needs.
#
# **1.5B** has 25 GB of state: it fits on an H100, and takes it nine days. So again data parallel,
# for the time: the 8 of one machine need little more than a day. On GPUs with 24 GB it does not
# fit, and there it has to be *sharded*. Since the state then shrinks with every GPU, while what is
# sent grows only by half, sharding is a good habit from here on.
#
# **70B** has 1.1 TB: at least 14 GPUs before a single activation is stored, so sharding is a must.
# And one window's activations, 93 GB, don't fit either. With recomputation there remain each
# block's input, 5.8 GB, and what one block at work needs, another 1.1 GB. Time asks for hundreds of
# GPUs. How many can share the work before the network becomes the limit? In each step a GPU
# computes, with recomputation, 8 operations per parameter for each of its tokens. And sharded, each
# parameter is sent three times at 2 bytes: gathered forward and backward, its gradient scattered.
# All 8 GPUs of a machine gather the *same* parameters, so these come in once, through all 8 cards
# together, and are passed on inside. Sending may go on during computing, but not take longer. The
# number of parameters cancels out:

# %%
to_machine = 8 * H100["between"]
least_tokens = H100["operations"] / 8 * (3 * 2) / to_machine
f"{least_tokens:,.0f} tokens for each GPU, in each step"

# %% [markdown]
# That is less than one window of 4,096, and would be if GPUs computed at their full 989 TFLOP/s
# (the 40 % has the waiting in it). So it is not the network that ends this, but the batch: every
# GPU needs a window. A batch cannot grow for ever, since beyond some size more tokens hardly make a
# step better (McCandlish et al., 2018). Llama 2 took 4 million (Touvron et al., 2023), nearly a
# thousand windows: so that is nearly a thousand GPUs, and three and a half weeks.

# %%
n = 4e6 / plans["70B"].block_size
days = (
    20
    * sizes["70B"]
    * 8
    / 6  # recomputation
    * sum(step_operations(plans["70B"]).values())
    / H100["operations"]
    / n
    / 86400
)
f"{n:.0f} GPUs, {days:.0f} days"

# %% [markdown]
# Whoever wants it sooner must let several GPUs work on the *same* window. There are two main ways
# to cut.
#
# *Tensor parallel* (Shoeybi et al., 2019) cuts the matrices. Half of the hidden units of a
# feed-forward layer on one GPU, half on the other; each makes its half of the sum, and one
# `all_reduce` adds them up. That is allowed because the bend acts on each hidden unit by itself,
# and the second matrix only sums over them. It is exact but for rounding, and attention goes the
# same way, head by head:

# %%
C = 64
widen, output = torch.randn(4 * C, C).double(), torch.randn(C, 4 * C).double()
x = torch.randn(10, C).double()
whole = F.gelu(x @ widen.T) @ output.T
halves = zip(widen.chunk(2, dim=0), output.chunk(2, dim=1), strict=True)
sums = [F.gelu(x @ w.T) @ o.T for w, o in halves]  # on two GPUs
assert torch.allclose(sum(sums), whole, rtol=0, atol=1e-10)
(sum(sums) - whole).abs().max().item()

# %% [markdown]
# But it happens four times in each layer, twice forward and twice back, each time with all tokens'
# streams of 2 bytes a number, sent about twice; and hardly anything can be computed meanwhile. For
# each token and layer, $n$ GPUs have $72 C^2 / n$ operations each. Sending takes, as a share of
# computing, for the 8 GPUs of one machine and for the 16 of two:

# %%
links = {8: H100["inside"], 16: to_machine}  # the slowest that all must pass
for name, config in plans.items():
    C = config.n_embd
    shares = {}
    for n, link in links.items():
        computing = 72 * C**2 / n / H100["operations"]
        sending = 4 * 2 * 2 * C * (n - 1) / n / link
        shares[f"{n} GPUs"] = f"{sending / computing:.0%}"
    print(name, shares)

# %% [markdown]
# Within a machine a wide model can afford that, and a narrow one cannot. Over two machines it takes more
# than twice the share. So: tensor parallel inside a machine, 8 GPUs at most.
#
# *Pipeline parallel* (Huang et al., 2019) cuts between the layers: the first machine has the first
# layers, and passes the stream on to the next. Little is sent, once per boundary; but the last
# machine idles until the first part of the batch arrives, and the first when it is done. The batch
# is therefore cut into many parts, as for accumulation. It is what remains when sharding would send too
# much between machines, and tensor parallel may not leave the machine. Four stages, forward only, with a
# batch whole and in eight parts:

# %%
fig, axes = plt.subplots(1, 2, figsize=(8.5, 2.2), sharex=True)
for ax, parts in zip(axes, (1, 8), strict=True):
    for stage in range(4):
        for part in range(parts):
            ax.barh(stage, 1 / parts, left=(stage + part) / parts, color=BLUE, ec="w")
    ax.set(yticks=range(4), title=f"in {parts} parts" if parts > 1 else "whole")
    ax.set(xlabel="time (one stage with the whole batch: 1)", xlim=(0, 4))
    ax.invert_yaxis()
axes[0].set_ylabel("stage")
show(
    fig,
    alt="Two charts of four stages over time. With the whole batch one stage works at a "
    "time, until time 4. In eight parts the stages overlap and are done before time 1.5.",
)

# %% [markdown]
# *Blue: at work. With the whole batch one machine works and three wait. In eight parts they overlap, and
# idle only at the beginning and at the end (exercise 2 counts how much).* All four side by side:
#
# | | what is cut | sent in a step by each GPU | what it needs |
# |---|---|---|---|
# | data (DDP) | the batch | each parameter twice | a model that fits on one GPU |
# | sharded (FSDP) | the batch, and the 16 bytes | each parameter three times | a window for each GPU |
# | tensor | each matrix | the stream, four times a layer | a fast link: one machine |
# | pipeline | the layers | the stream, at each boundary | a batch of many parts |
#
# A 70B model in a hurry has all of them: 8 GPUs of a machine share each matrix, a few machines form
# a pipeline, some dozens of such pipelines each take a part of the batch, and the optimizer's state
# is sharded among those. Torch has engines for the other two as well
# (`torch.distributed.tensor.parallel`, `torch.distributed.pipelining`). Two more cuts have their uses: a
# window too long for one GPU is cut along its tokens (*context parallel*), and a model made of many
# feed-forward layers, of which each token takes a few, puts them on different GPUs (*expert parallel*).
# None of these changes what is learnt. They change only where the numbers are.

# %% [markdown]
# ## Summary
# The gradient of a batch is the mean of its parts' gradients, so the parts may come one after the
# other (accumulation) or side by side (DDP), with one `all_reduce` between backward pass and step;
# two processes learn what one does. Sharding also cuts the 16 bytes that each parameter takes. One
# process writes for all, a checkpoint of two goes on with one, and a process that dies ends the run
# in a sentence. A law fitted to thirty small runs forecast 1.636 nats for a model over twice as
# large; it reached 1.611, within the interval, and the residuals hint at more. On paper, memory
# agrees with measured peaks within a few per cent, and tells what a model needs: one GPU is enough
# for 124M; 1.5B goes data parallel to save time; 70B must be sharded and make its activations anew,
# which does it in three and a half weeks on a thousand GPUs, and only who wants it sooner cuts matrices
# and layers too.
#
# ## Exercises
# **1.** Cut a batch of 8 windows into parts of 5 and 3. With which weights is the sum of their
# gradients that of the whole batch? Take `inputs`, `targets`, `small_gpt` and `gradient` from
# above.
# ```python
# assert (uneven - gradient(small_gpt(), inputs, targets)[1]).abs().max() < 1e-15
# ```
# **2.** A pipeline of `stages` machines passes on `parts` of a batch, forward only; each part takes
# one tick in each stage. Play it tick by tick and count: which share of all ticks are machines
# idle? How many parts keep 8 stages idle for less than a tenth?
# ```python
# assert idle(8, 8) == 7 / 15 and idle(8, enough) < 0.1 <= idle(8, enough - 1)
# ```
# **3.** The narrowest models miss the law most. Fit it without them. Is the forecast closer? (That
# idea came after the star was known, so it proves nothing. What would?)
# ```python
# assert abs(without - measured) < abs(forecast - measured)
# ```

# %% [markdown]
# ## Solutions

# %% jupyter={"source_hidden": true}
_, five = gradient(small_gpt(), inputs[:5], targets[:5])
_, three = gradient(small_gpt(), inputs[5:], targets[5:])
uneven = 5 / 8 * five + 3 / 8 * three
assert (uneven - gradient(small_gpt(), inputs, targets)[1]).abs().max() < 1e-15


# %% jupyter={"source_hidden": true}
def idle(stages, parts):
    tick, ready = 0, [parts] + [0] * stages  # ready[s]: parts that wait for stage s
    while ready[-1] < parts:
        for s in reversed(range(stages)):  # what arrives now is worked on next
            if ready[s]:
                ready[s], ready[s + 1] = ready[s] - 1, ready[s + 1] + 1
        tick += 1
    return (stages * tick - stages * parts) / (stages * tick)


enough = next(n for n in range(1, 100) if idle(8, n) < 0.1)
assert idle(8, 8) == 7 / 15 and idle(8, enough) < 0.1 <= idle(8, enough - 1)
enough

# %% jupyter={"source_hidden": true}
without = fit([r for r in grid if r["width"] > 32])[0, :3].sum()
assert abs(without - measured) < abs(forecast - measured)
f"{without:.3f} instead of {forecast:.3f}; measured {measured:.3f}"
