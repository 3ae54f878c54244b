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
# *An hour to read, two minutes to run on two cores. It uses the training step (02), the GPT (06), the trainer (07) and the
# count of operations (12). It trains a few models for seconds, most of them in two processes.*
#
# Where we are: GPTs of a few million parameters, trained in minutes on two cores. The models that people talk to have a hundred
# thousand times as many parameters, and have read a million times as much text. Chapter 12 counted about six operations for each
# parameter and token. So, for 70 billion parameters, 1.4 trillion tokens, and a machine that does 100 billion operations a second:

# %% tags=["nbval-check-output"]
operations = 6 * 70e9 * 1.4e12
f"{operations / 100e9 / 86400 / 365:,.0f} years"

# %% [markdown]
# And before the first step such a model has to fit. Weights, gradients and the two averages of AdamW are 16 bytes for each
# parameter, 1.1 terabytes together. So many machines have to work on one model and learn what one would. This
# chapter does that with two processes on one machine, by the same calls that a thousand would use, and checks that the
# result is the same. The number to beat is the number that one process gets: two have to equal it.

# %%
import inspect
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from course import BLUE, ORANGE, PINK, SKY, plt, show
from tinygpt_lib import load_shakespeare
from tinygpt_lib.basics.devices import shapes_only
from tinygpt_lib.bigram import training_step
from tinygpt_lib.gpt import GPTConfig
from tinygpt_lib.runs.checkpoints import read_run
from tinygpt_lib.runs.processes import threads_each
from tinygpt_lib.runs.run import Run
from tinygpt_lib.speed import FastConfig, FastGPT, FusedAdamW, step_operations
from tinygpt_lib.text import CharTokenizer, get_batch, split

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
# A batch is many windows, and the loss is the mean over all of them. The gradient of a mean is the mean of the
# gradients. So the mean of the gradients of two halves is the gradient of the whole batch. Is it, for every
# parameter? In float64, where rounding hides nothing:


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
# That is nearly all there is to it. The halves need not be computed at the same time, nor in the same place, and each
# of these freedoms has its use.
#
# ## One after the other
# If a batch does not fit into memory, go through it in parts. `backward` adds to the gradients that are there already, so
# the parts' losses, each divided by the number of parts, leave their mean behind. Only then comes the step. This is
# *gradient accumulation*, and it is three lines:

# %%
parts = small_gpt()
for x, y in zip(inputs.chunk(4), targets.chunk(4), strict=True):
    loss = F.cross_entropy(parts(x).flatten(0, 1), y.flatten()) / 4
    loss.backward()
summed = torch.cat([p.grad.flatten() for p in parts.parameters()])
assert (summed - whole).abs().max().item() < 1e-15
(summed - whole).abs().max().item()

# %% [markdown]
# It costs no accuracy, and what has to be kept for the backward pass shrinks to a quarter. The price is time: four small
# products keep a machine less busy than one large one (chapter 12). In the config it is `accumulate`; `batch_size` stays
# the number of windows in a whole batch.
#
# ## Side by side
# Two processes share no memory. Each has its own copy of the model, takes its own half of the batch and computes its own
# gradient. Then both must get the sum. That is one call, `all_reduce`: every process gives a tensor, and every process gets
# the sum of all.
#
# Here is the whole of it as a script. `torchrun` starts it twice, and tells each process by environment variables
# which one it is (its *rank*), how many there are, and at which port they meet (torch calls that the *rendezvous*). `gloo` is
# the engine that moves the numbers; among GPUs it would be `nccl`.

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
# A program that waits for others can wait forever, so everything that this chapter starts has a time limit. The
# processes talk over the *loopback* interface, the network that a machine has with itself.


# %%
def free_port():
    """A port that nobody listens on."""
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
# Two gradients of different lengths went in, and the same one came out of both: that of the whole batch. It is shorter than
# either, because where the halves disagree, by noise, they cancel. Both processes began with the same weights and now take
# the same step, so they end with the same weights, and nothing else has to be sent.
#
# How can everybody get the sum without sending everything to one process? Each cuts its tensor into as many parts as
# there are processes, $n$. In a first round process $i$ adds up everybody's part $i$ (*reduce-scatter*); in a second each
# gives its finished part to all others (*all-gather*). In each round a process sends $(n - 1) / n$ of a tensor, so together
# nearly twice the tensor, however many they are.


# %%
def all_reduce(tensors):
    """The sum for everybody, in two rounds."""
    cut = [tensor.chunk(len(tensors)) for tensor in tensors]
    finished = [sum(part) for part in zip(*cut, strict=True)]  # process i has the i-th
    return [torch.cat(finished) for _ in tensors]


assert torch.equal(all_reduce([first, second])[1], first + second)

# %% [markdown]
# How long does it take? The gradients of ten million parameters are 43 MB. And while we are timing: what if not everybody
# takes part? Predict what the script below prints last.

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
# That is the one rule behind everything that follows: **every process makes the same calls in the same order.** Otherwise it
# waits for a partner that never comes. The mistake looks harmless: `if rank == 0: print(evaluate(model))` hangs as soon
# as the model is cut into parts, since its forward pass asks all the others for theirs.
#
# So the chapter's own code has to ask two questions:


# %%
#| export
def process_rank() -> int:
    """Which of the processes this is; 0 if it is alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def n_processes() -> int:
    """How many processes work on the run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


# %%
process_rank(), n_processes()  # this notebook is alone

# %% [markdown]
# ## A run of many
# Now the loop of chapter 07, shared out. All processes draw the *same* batch, from the same generator, and each takes
# its slice. So what is learned does not depend on how many there are. (Elsewhere the batch size often counts for each process. Eight
# processes then have a batch eight times as large, which wants another learning rate: the commonest surprise of a first run on many GPUs.)
#
# To add up the gradients we use torch's engine, `DistributedDataParallel` (DDP; Li et al., 2020). Our script waited for the
# backward pass to finish and then sent everything at once. But the gradient of the last layer is ready first. DDP collects
# gradients in buckets, and starts to send a bucket as soon as it is full, so that sending and computing overlap.
#
# ![Two processes over time, each with half of the batch: both run forward, then backward from layer 4 to layer 1; the gradients of layers 4 and 3 are averaged between them while backward still runs, then those of 2 and 1, and both take the same step.](drawings/processes.svg)
#
# *Two processes over time. What one process waits for, the other is computing.*
#
# Four things have to be right. With accumulation only the last part's backward pass may send. A gradient that is too long (chapter 07) is cut after the sum, never before. Ctrl-C
# reaches the processes at different moments, but they have to stop after the same step, so a wish to stop is added up along with every step's loss. And each process needs random numbers of its own for dropout,
# or all would drop the same units of their slices.


# %%
print(inspect.getsource(Run.learn))

# %% [markdown]
# That is how the library's run learns from a batch (`tinygpt_lib/runs/run.py`). `send_gradients` says whether this part of the batch sends, `agree`
# adds up losses and wishes to stop, `brake` cuts a gradient that is too long. What it stands on is DDP, told not to send
# buffers around before every step (ours are tables of cosines, the same everywhere), and the seeds.


# %%
#| export
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


# %% [markdown]
# The validation text is shared out as well. A sum of floating-point numbers depends on the order, and a result that depends
# on the number of processes would be a nuisance. So the text is cut just as `evaluate` cuts it, and the sums of the pieces
# are added in the order of the text.


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


# %% [markdown]
# ## Every process a part of the model
# DDP makes training faster, not models larger: each process holds all weights, gradients and averages. It is also wasteful,
# since all hold the same. So let each of $n$ processes keep one $n$-th of each tensor (*sharding*; ZeRO, Rajbhandari et
# al., 2019). A process that needs a block's weights gathers them from all, uses them, and lets them go again, once in the
# forward pass and once in the backward pass. Gradients are added up as before, but each process keeps only the part that
# belongs to its weights, and steps only with that. So in a step every parameter is sent three times (two gathers, one
# reduce-scatter) where DDP sends it twice.
#
# You need not go that far. Between the two rounds of `all_reduce` each process has the finished sum of one part. Let it step
# with that part only, and send the new weights in the second round instead of the gradients. Then only AdamW's averages are
# cut, half of the 16 bytes, and nothing more is sent than by DDP. That is ZeRO's first stage. The second also cuts the
# gradients; the third is the one above.
#
# Again torch has an engine: `fully_shard` (FSDP, in its second form). It wants a *mesh*, which says along which rows of processes the
# parts are spread; ours is one row of all. After it, a parameter is a `DTensor`, which looks whole and is one
# part of a whole here. AdamW works number by number, so ours takes them as they are. Muon needs whole
# matrices and is refused.


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


# %% [markdown]
# This saves memory while it trains, not before: each process makes the model whole and then cuts it. That goes as far as one machine's main
# memory does; beyond it, one makes the model without numbers and fills in each part.
#
# ## Memory, by a formula
# What does a process hold? For each parameter 4 bytes of weight, 4 of gradient, 8 of averages: 16. DDP's buckets are a second
# copy of the gradients: 4 more. Sharded over $n$ processes the 16 become $16 / n$, and on top comes the block at work: its weights and
# gradients are whole for a moment, and so is the copy of each that travels.
#
# Then there is what the forward pass keeps for the backward pass. Count it in each block, for each token, in units of the width $C$: the
# stream that comes in and its norm (2), queries, keys and values (3), what attention gives (1; being fused, it keeps no
# table), the stream and its norm again (2), and the widened numbers before and after the bend (8). That makes 16 in each
# layer; then $2C$ for the last norm, and the logits. A process keeps those of its own slice, however the weights are kept.
# Gradients and activations hardly meet: the old gradients are gone before the forward pass, and in the backward pass gradients appear as activations disappear. So at the peak only the larger of the two counts.


# %%
def activation_bytes(model, windows, bytes_each=4):
    """What the forward pass keeps for the backward pass."""
    c = model.config
    numbers = 16 * c.n_layer * c.n_embd + 2 * c.n_embd + c.vocab_size
    return bytes_each * windows * c.block_size * numbers


def step_memory(model, windows, how="alone", processes=1, bytes_each=4):
    """Bytes that a process needs at the peak of a step, by what it holds them for."""
    n = model.n_parameters()
    block = sum(p.numel() for p in model.blocks[0].parameters())
    share = 1 / processes if how == "sharded" else 1
    activations = activation_bytes(model, windows // processes, bytes_each)
    return {
        "weights and averages": 12 * n * share,
        "buckets": 4 * n if how == "replicated" else 0,
        "block": 16 * block if how == "sharded" else 0,
        "gradients or activations": max(4 * n * share, activations),
    }


# %% [markdown]
# And measured: what is kept after a step, by adding up tensors (DDP reports the sizes of its buckets), and the
# peak of the whole process as the system saw it, each in a new process.

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

def begin(width, layers, windows, how):
    model = GPT(GPTConfig(65, 64, n_layer=layers, n_embd=width))
    model = shard(model) if how == "sharded" else model
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
    kept = sum(t.nbytes for t in kept)
    if sys.argv[1] == "replicated":
        told = run.network._get_ddp_logging_data()["rebuilt_bucket_sizes"]
        kept += sum(map(int, told.split(",")))
    print(json.dumps([process_rank(), kept, peak() - before]) + "\\n")
"""
(folder / "memory.py").write_text(script)
os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # freed memory goes back at once


# %%
def memory(how, width=384, layers=6, windows=4, processes=2):
    """Bytes in the first process: kept after a step, and the peak."""
    given = folder / "memory.py", how, width, layers, windows
    lines = launch(*given, processes=processes).splitlines()
    rows = sorted(json.loads(x) for x in lines if x[:1] == "[")
    return rows[0][1:]


model = GPT(GPTConfig(65, 64, n_layer=6, n_embd=384))
compared = {}
for how, n in (("alone", 1), ("replicated", 2), ("sharded", 2)):
    kept, most = memory(how, processes=n)
    paper = step_memory(model, 4, how, n)
    compared[how] = paper, kept, most
    state = paper["weights and averages"] * 4 / 3 + paper["buckets"]
    assert abs(kept / state - 1) < 0.02
    assert 0.8 < most / sum(paper.values()) < 1.25
    print(
        f"{how:10} kept {kept / 1e6:4.0f} MB, peak {most / 1e6:4.0f}; "
        f"on paper {sum(paper.values()) / 1e6:4.0f}"
    )

# %%
fig, ax = plt.subplots(figsize=(6.5, 2.4))
for i, (paper, _, most) in enumerate(compared.values()):
    left = 0
    for (part, x), color in zip(paper.items(), (BLUE, ORANGE, PINK, SKY), strict=True):
        ax.barh(i, x / 1e6, left=left, color=color, label=None if i else part)
        left += x / 1e6
    ax.plot([most / 1e6] * 2, [i - 0.4, i + 0.4], "k", label=None if i else "measured")
ax.set_yticks(range(3), compared)
ax.invert_yaxis()
ax.set(xlabel="megabytes in each process (10.7 million parameters)")
ax.legend(ncols=3, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1))
show(
    fig,
    alt="Bars of the memory in a process, by the formula: replicated needs a quarter more "
    "than alone, for the buckets; sharded two thirds. Black lines, the measured "
    "peaks, lie at or a little beyond the ends of the bars.",
)

# %% [markdown]
# *Bars: the formula. Black: the measured peak. DDP needs more than one process alone, by a copy of the gradients. Sharding halves the 16 bytes, and pays some of it back for the block at work.*
#
# That was a step that is mostly parameters. One that is nearly all activations? Those need not all be kept, either. Keep what goes into
# each block, and when the backward pass gets there compute the rest again (*recomputation*, or gradient checkpointing; Chen et
# al., 2016). Predict: it costs one more forward pass; what share of the operations is that?

# %%
model = GPT(GPTConfig(65, 64, n_layer=4, n_embd=128))
paper = step_memory(model, 64)
_, most = memory("alone", 128, 4, 64, processes=1)
_, again = memory("again", 128, 4, 64, processes=1)
assert 0.8 < most / sum(paper.values()) < 1.25 and again < 0.7 * most
print({part: f"{x / 1e6:.0f} MB" for part, x in paper.items()})
f"peak {most / 1e6:.0f} MB, with recomputation {again / 1e6:.0f} MB"

# %% [markdown]
# ## MFU and HFU
# One more forward pass, 2 operations beside 6: a third more. They are real work for the machine and none for the model. So there are two ways to say how
# well a machine is used. **MFU** (chapter 12) counts the 6 operations that the model needs. **HFU**, *hardware FLOPs utilization*, counts all that are done, 8 with recomputation. Without recomputation they are the same. The
# MFU tells how long training takes; the HFU tells whether the machine is busy.


# %%
model = GPT(GPTConfig(65, 64, n_layer=4, n_embd=256))
twin = GPT(GPTConfig(65, 64, n_layer=4, n_embd=256))
for block in twin.blocks:
    block.forward = partial(checkpoint, block.forward, use_reentrant=False)
batch, square = get_batch(train_ids, 16, 64), torch.randn(1024, 1024)
product = torch.empty_like(square)
steps = {
    "product": lambda: torch.mm(square, square, out=product),
    "as it is": partial(training_step, model, FusedAdamW(model.parameters()), *batch),
    "again": partial(training_step, twin, FusedAdamW(twin.parameters()), *batch),
}
least = dict.fromkeys(steps, np.inf)
for _ in range(12):  # in turns
    for name, step in steps.items():
        began = time.perf_counter()
        step()
        least[name] = min(least[name], time.perf_counter() - began)
peak = 2 * 1024**3 / least["product"]
work = 16 * 64 * sum(step_operations(model).values())
for name, done in (("as it is", work), ("again", work * 8 / 6)):
    mfu, hfu = (x / least[name] / peak for x in (work, done))
    print(f"{name:10} MFU {mfu:.0%}, HFU {hfu:.0%}")

# %% [markdown]
# The machine is about equally busy, but with recomputation a quarter of its work is repetition. (Chapter 12 timed its peak by itself, not between steps; so compare only these two rows.)
#
# ## The command
# This is how many processes train one model: the command of chapter 07 with `torchrun` in front.
# ```
# torchrun --nproc-per-node 2 -m tinygpt_lib train --out runs/two
# torchrun --nproc-per-node 2 -m tinygpt_lib train --out runs/shards --shard --optimizer adamw
# ```
# On two machines of 8 GPUs each it is the same command on both, but for the rank of the machine (not run here):
# ```
# torchrun --nnodes 2 --node-rank 0 --nproc-per-node 8 --master-addr first --master-port 29500 \
#     -m tinygpt_lib train --out runs/many --device cuda --batch-size 64
# ```
# A checkpoint holds whole tensors, so that any number of processes can go on with it. Here we start it as `python -m torch.distributed.run`, for which `torchrun` is short, on a part of
# the text, in three ways: alone with all cores, then in two processes with half of them each, whole and sharded.


# %%
(folder / "part.txt").write_text(load_shakespeare()[:200_000], encoding="utf-8")


def command(name, *more, steps=10, width=96, layers=3):
    """A small training run in `folder`, as a command line."""
    given = f"-m tinygpt_lib train --device cpu --steps {steps} --batch-size 32 "
    given += f"--n-embd {width} --n-layer {layers} --block-size 64 "
    given += "--optimizer adamw --eval-every 0"
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
# The same losses, but for float32's rounding. Two whole copies were faster here than one process with all cores, two sharded ones not. Don't read more into the seconds of ten steps: they differ between machines. Several processes pay on several machines, or GPUs.
#
# ## When one of them dies
# The more machines, the sooner one of them breaks. The run that became Llama 3, on 16,384 GPUs, was interrupted unexpectedly
# 419 times in 54 days, about once every three hours (Llama Team, 2024). So a run must be able to go on, and a process must know how
# to leave. `tinygpt_lib/runs/processes.py` takes care of joining, of leaving with one clear sentence, and of letting only the first process write.
#
# We try it. The second of two sharded processes kills itself after 25 of 40 steps; a checkpoint is due every ten. Then one process goes on with
# what two began. Predict: after how many steps does it go on?

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
print("saved:", len(read_run(folder / "broken").history.losses), "steps")

resume = "-m", "tinygpt_lib", "train", "--resume", "--out", folder / "broken"
print(launch(*resume, processes=1).strip().replace(str(folder), "FOLDER"))
state = read_run(folder / "broken")
assert len(state.history.losses) == 40

# %% [markdown]
# The survivor says what happened and what to do, in one line. (Had two gone on, it would be bit for bit the run
# that was never broken: `tests/test_scaling_out.py` does that.)
#
# How often should a run be saved? A save costs $s$ minutes. A break comes every $M$ minutes, and costs on average half the
# time between two saves, $t / 2$. Per minute that is $s / t + t / 2M$, which is least at $t = \sqrt{2 s M}$ (Young, 1974):
# with a minute for a save and three hours between breaks, every 19 minutes.
#
# ## Three models on paper
# Now the bill. Three models: GPT-2's smallest with 124 million parameters, its largest with 1.5 billion, and one of 70
# billion. In 16 bits an activation takes 2 bytes. A parameter still takes 16: weight and gradient 2 each, and AdamW's averages and a precise copy of
# the weight 4 each. Every parameter gets 20 tokens (Hoffmann et al., 2022; the next chapter asks why). The machine is an *H100*: 989 TFLOP/s in 16 bits, 80 GB. Those who trained Llama 3 on
# up to 16,000 of them report an MFU of 38 to 43 %, so take 40 %.

# %%
plans = {
    "124M": FastConfig(50_257, 1024, 12, 12, 768, tie_weights=True),
    "1.5B": FastConfig(50_257, 1024, 48, 25, 1600, tie_weights=True),
    "70B": FastConfig(32_000, 4096, 86, 64, 8192, bias=False, position="rotary"),
}
H100, MFU, day = 989e12, 0.4, 86400
for name, config in plans.items():
    with shapes_only():  # a model without numbers in it
        shell = FastGPT(config)
    n = shell.n_parameters()
    state = 16 * n / 1e9
    window = activation_bytes(shell, 1, bytes_each=2) / 1e9
    days = 20 * n * sum(step_operations(shell).values()) / (H100 * MFU) / day
    print(
        f"{name:5} {n:14,} parameters, {state:7,.0f} GB of state, "
        f"{window:5.1f} GB a window, {days:11,.1f} days on one H100"
    )

# %% [markdown]
# Our 65 characters hardly put the formula's logits to the test. With 50,000 tokens the loss, taken in
# 32 bits, makes a window of the 124M model about twice as large; for 70B it hardly counts.
#
# **124M** fits on any GPU. More of them only make it faster, and *data parallel* (DDP) is all that this needs. **1.5B** has 25 GB of state: it fits on an H100, but not on a GPU with 24 GB, where
# it has to be *sharded*. **70B** has 1.1 TB: at least 14 GPUs before a single activation is stored. One window's activations, 93 GB, don't fit either. With recomputation there remain each
# block's input, 5.8 GB, and what one block at work needs, 1.1 GB.
#
# That many days on one GPU are too long, so take many, each with a window of its own. A batch cannot grow forever, since beyond some size more tokens hardly make a step better (McCandlish et al., 2018). Llama 2 took 4 million tokens
# (Touvron et al., 2023), nearly a thousand windows of 4,096, so nearly a thousand GPUs. Does recomputation change the days? Not if 40 % is the MFU. If instead 40 % is all that the hardware reaches, its HFU, the MFU is only 30 %:

# %%
for name, mfu in (("an MFU of 40 %", MFU), ("an HFU of 40 %", MFU * 6 / 8)):
    total = 20 * n * sum(step_operations(shell).values())
    print(f"{name}: {total / (H100 * mfu) / (4e6 / 4096) / day:.0f} days")

# %% [markdown]
# Do the weights arrive in time? Sharded, each GPU is sent every parameter twice and sends its gradient once, 2 bytes a number each time. Inside a machine of 8 a GPU's links carry 450 GB/s, and between machines 50 GB/s for each GPU. What
# comes from outside is needed once in each machine, so its 8 GPUs share the 400 GB/s:

# %%
sent = 3 * 2 * n / (8 * 50e9)
work = 4096 * sum(step_operations(shell).values()) / (H100 * MFU)
print(f"{sent:.1f} s to send, {work:.1f} s to compute a window")

# %% [markdown]
# Inside, each GPU is handed all of it in 0.9 s meanwhile. Both can be hidden behind the work. With windows a quarter as long nothing would be left to spare.
#
# To finish sooner, several GPUs must work on the *same* window. There are two main ways to cut.
#
# *Tensor parallel* (Shoeybi et al., 2019) cuts the matrices: half of the hidden units of a feed-forward layer on one GPU, half on the other. Each makes its half of
# the sum, and one `all_reduce` adds them up. That is allowed because the bend acts on each hidden unit by itself:

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
# One such sum is due after attention and one after the feed-forward part, in the forward pass and again in the backward pass: four in each layer. Each sends about twice $C$ numbers of 2 bytes for every token, and meanwhile the GPU waits. For each token and layer
# 8 GPUs have $72 C^2 / 8$ operations each. Sending takes, as a share of computing at full speed:

# %%
for name, config in plans.items():
    computing = 72 * config.n_embd**2 / 8 / H100
    sending = {
        where: 4 * 2 * 2 * config.n_embd * 7 / 8 / link
        for where, link in (("inside", 450e9), ("between machines", 50e9))
    }
    print(name, {where: f"{t / computing:.0%}" for where, t in sending.items()})

# %% [markdown]
# A wide model can afford that inside a machine, a narrow one can't, and between machines nobody can.
#
# *Pipeline parallel* (Huang et al., 2019) cuts between the layers: the first machine has the first layers, and passes the stream on. Little is sent, but the last machine idles until the first part of the
# batch arrives (exercise 2). All four side by side:
#
# | | what is cut | sent in a step by each GPU | what it needs |
# |---|---|---|---|
# | data (DDP) | the batch | each parameter twice | a model that fits on one GPU |
# | sharded (FSDP) | the batch, and the 16 bytes | each parameter three times | a window for each GPU |
# | tensor | each matrix | the stream, four times a layer | a fast link: one machine |
# | pipeline | the layers | the stream, at each boundary | a batch of many parts |
#
# Anyone in a hurry with 70B uses all four. Up to rounding none of them changes what is learned, only where the numbers are.

# %% [markdown]
# ## Summary
# The gradient of a batch is the mean of its parts' gradients. So the parts may come one after the other (accumulation) or side by side (DDP), with one `all_reduce` before the step, and two processes learn what one does. A process holds 16 bytes
# a parameter, 20 with DDP's buckets, 16 over the number of processes when sharded, and what the backward pass needs; the formula agrees with measured peaks. MFU counts the work that the model needs, HFU all that is done. A process that
# dies ends the run in a sentence, and a checkpoint of two goes on with one. But what loss would a thousand machines get? That is the next chapter.
#
# ## Exercises
# **1.** Cut a batch of 8 windows into parts of 5 and 3. With which weights is the sum of their gradients that of the whole batch? Take `inputs`, `targets`, `small_gpt` and `gradient` from above.
# ```python
# assert (uneven - gradient(small_gpt(), inputs, targets)[1]).abs().max() < 1e-15
# ```
# **2.** A pipeline of `stages` machines passes on `parts` of a batch, forward only; each part takes one tick in each stage. Play it tick by tick and count: which share of all ticks are machines idle? How many parts keep 8 stages idle for
# less than a tenth?
# ```python
# assert idle(8, 8) == 7 / 15 and idle(8, enough) < 0.1 <= idle(8, enough - 1)
# ```
# **3.** Write `per_gpu(n, again)`: the bytes of state and activations in each of `n` GPUs that share the 70B model, sharded, with one window each and 2 bytes an activation. With recomputation, count each block's input and one block at work. From how many GPUs of
# 80 GB on does it fit, and what if nothing is computed again?
# ```python
# assert per_gpu(10_000, again=False) > 80e9
# assert per_gpu(smallest, again=True) < 80e9 <= per_gpu(smallest - 1, again=True)
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
with shapes_only():
    shell = FastGPT(plans["70B"])


def per_gpu(n, again):
    c, kept = shell.config, activation_bytes(shell, 1, bytes_each=2)
    if again:  # of each layer C instead of 16 C, but for the one at work
        kept -= 2 * c.block_size * 15 * c.n_embd * (c.n_layer - 1)
    return 16 * shell.n_parameters() / n + kept


smallest = next(n for n in range(2, 1000) if per_gpu(n, again=True) < 80e9)
assert per_gpu(10_000, again=False) > 80e9
assert per_gpu(smallest, again=True) < 80e9 <= per_gpu(smallest - 1, again=True)
smallest
