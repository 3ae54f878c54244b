"""What a longer context costs and brings; chapter 11 plots the results.

    python benchmarks/long_context.py cost     # time and memory, 64 to 4,096 tokens
    python benchmarks/long_context.py memory   # memory alone
    python benchmarks/long_context.py peak fused 2048   # memory of one point
    python benchmarks/long_context.py steps    # seconds a step of each model
    python benchmarks/long_context.py run 512 40 0    # model, budget in seconds, seed
    python benchmarks/long_context.py all      # all of these: over an hour

Results go into benchmarks/long_context.json, one by one, so a run can be added later.
`cost` and `steps` want a quiet machine with two threads; `run` takes as many steps as
fit into the budget at the speed that `steps` measured, so it may run anywhere.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from operator import itemgetter
from pathlib import Path

import harness
import torch
from harness import corpus, machine

from tinygpt_lib import TrainConfig, evaluate, loss_by_position, new_model, train
from tinygpt_lib.runs.presets import PRESETS
from tinygpt_lib.runs.run import Run

RESULTS = Path(__file__).with_suffix(".json")
CONTEXTS = (64, 128, 256, 512, 1024, 2048, 4096)
WINDOW = 128
ATTENTIONS = {
    "explicit": {"attention": "explicit", "window": 0},
    "fused": {"attention": "fused", "window": 0},
    "sliding": {"attention": "sliding", "window": WINDOW},
}
# The model of the preset "long", trained on windows of 64 and of 512. Every batch holds
# 1,024 tokens; the learning rates were chosen as benchmarks/LOG.md says.
MODELS = {  # name: changes of the preset, windows in a batch, learning rate
    "64": ({"block_size": 64, "attention": "fused", "window": 0}, 16, 5e-3),
    "512": ({}, 2, 5e-3),
    "512full": ({"attention": "fused", "window": 0}, 2, 3e-3),
}
BUDGETS = (20, 40, 80, 160)  # seconds
SEEDS = (0, 1, 2)


def keep(name: str, value) -> None:
    """Puts a result into the file, whoever else is writing there."""
    harness.keep(RESULTS, name, value)


def add_run(result: dict) -> None:
    """Adds one model's run to those that are there, in place of an older one."""

    def change(data):
        key = itemgetter("budget", "model", "seed")
        data["runs"] = harness.merged(data.get("runs", []), [result], key)

    harness.update(RESULTS, change)


# --- What it costs ---


def peak_bytes() -> int:
    """The most memory that this process has had.

    Linux hands ru_maxrss of the parent down to a new process; VmHWM is one's own.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def point(attention: str, context: int, repeats: int) -> dict:
    """Median ms and peak MB of forward and backward over one window, in this process.

    The memory is what comes on top of the model, its gradients and the libraries.
    """
    torch.manual_seed(0)
    config = replace(PRESETS["long"](65)[0], block_size=max(CONTEXTS))
    model = new_model(replace(config, **ATTENTIONS[attention]))
    ids = torch.randint(65, (1, context + 1))

    def once(T):
        logits = model(ids[:, :T])
        loss = torch.nn.functional.cross_entropy(logits[0], ids[0, 1 : T + 1])
        loss.backward()

    once(16)
    before, times = peak_bytes(), []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        once(context)
        times.append(time.perf_counter() - begin)
    return {
        "attention": attention,
        "context": context,
        "ms": round(1000 * statistics.median(times[1:] or times), 2),
        "MB": round((peak_bytes() - before) / 1e6, 1),
    }


def fresh_point(attention: str, context: int, repeats: int, pool: bool) -> dict:
    """A `point` in a process of its own, so that no other one's memory counts.

    Without a pool the C library gives every freed tensor back to the system, so that
    the peak is what was needed, not what was left over; that takes time.
    """
    command = [sys.executable, __file__, "point", attention, str(context), str(repeats)]
    environment = os.environ | ({} if pool else {"MALLOC_MMAP_THRESHOLD_": "65536"})
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment
    )
    return json.loads(done.stdout)


def cost(what: str, rounds: int = 3) -> None:
    """ "ms" or "MB" of every point, each in `rounds` processes that take turns."""
    found = {}
    for _ in range(rounds):
        for context in CONTEXTS:
            for attention in ATTENTIONS:
                repeats = 1 if what == "MB" else 3 if context > 2000 else 9
                got = fresh_point(attention, context, repeats, pool=what == "ms")
                found.setdefault((attention, context), []).append(got[what])
    keep("window", WINDOW)
    keep(
        f"cost_{what}",
        [
            {
                "attention": attention,
                "context": context,
                "median": statistics.median(values),
                "all": values,
            }
            for (attention, context), values in found.items()
        ],
    )


# --- What it brings ---


def config_of(name: str):
    """The preset "long", with the changes that `name` stands for."""
    return replace(PRESETS["long"](65)[0], **MODELS[name][0])


def steps(rounds: int = 12) -> None:
    """Median seconds of a training step, the models taking turns."""
    runs = {}
    _, train_ids, val_ids = corpus()
    for name, (_, batch_size, _) in MODELS.items():
        config = TrainConfig(steps=10_000, batch_size=batch_size)
        runs[name] = Run(new_model(config_of(name)), train_ids, val_ids, config)
    times = {name: [] for name in MODELS}
    for _ in range(rounds):
        for name, started in runs.items():
            for i in range(6):
                begin = time.perf_counter()
                started.take_step()
                if i:  # the first one finds the caches full of the other's numbers
                    times[name].append(time.perf_counter() - begin)
    medians = {name: round(statistics.median(t), 5) for name, t in times.items()}
    keep("machine", machine())
    keep("seconds_per_step", medians)


def run(name: str, budget: int, seed: int) -> None:
    """One model, trained for `budget` seconds' worth of steps; nats per character."""
    _, train_ids, val_ids = corpus()
    per_step = json.loads(RESULTS.read_text())["seconds_per_step"][name]
    _, batch_size, learning_rate = MODELS[name]
    config = TrainConfig(
        steps=round(budget / per_step),
        batch_size=batch_size,
        learning_rate=learning_rate,
        eval_every=0,
        seed=seed,
    )
    torch.manual_seed(seed)
    model = new_model(config_of(name))
    train(model, train_ids, val_ids, config, progress=False)
    result = {"model": name, "budget": budget, "seed": seed, "steps": config.steps}
    result["nats"] = round(evaluate(model, val_ids), 4)
    # Every token again, with at least half a window before it.
    half = model.config.block_size // 2
    late, _ = loss_by_position(model, val_ids, stride=half)
    result["nats_overlapped"] = round(late[half:].mean().item(), 4)
    if name == "64":  # the preset: the same weights, sliding along 512 tokens
        slid = new_model(config_of("512"))
        slid.load_state_dict(model.state_dict())
        result["nats_slid"] = round(evaluate(slid, val_ids), 4)
    mean, _ = loss_by_position(model, val_ids)
    edges = [0, *(2**i for i in range(1, model.config.block_size.bit_length()))]
    result["nats_by_position"] = {
        f"{a + 1}-{b}": round(mean[a:b].mean().item(), 4) for a, b in pairwise(edges)
    }
    add_run(result)
    print(json.dumps(result), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("cost", "memory", "steps", "all"):
        commands.add_parser(name)
    arguments = commands.add_parser("point")
    arguments.add_argument("attention", choices=ATTENTIONS)
    arguments.add_argument("context", type=int)
    arguments.add_argument("repeats", type=int)
    arguments = commands.add_parser("peak")
    arguments.add_argument("attention", choices=ATTENTIONS)
    arguments.add_argument("context", type=int)
    arguments = commands.add_parser("run")
    arguments.add_argument("model", choices=MODELS)
    arguments.add_argument("budget", type=int)
    arguments.add_argument("seed", type=int)
    options = parser.parse_args()
    if options.command == "point":
        print(json.dumps(point(options.attention, options.context, options.repeats)))
    if options.command == "peak":
        print(json.dumps(fresh_point(options.attention, options.context, 1, False)))
    if options.command == "run":
        run(options.model, options.budget, options.seed)
    if options.command in ("cost", "all"):
        cost("ms")
    if options.command in ("memory", "cost", "all"):
        cost("MB", rounds=2)
    if options.command in ("steps", "all"):
        steps()
    if options.command == "all":
        for budget in BUDGETS:
            for seed in SEEDS:
                for name in MODELS:
                    run(name, budget, seed)


if __name__ == "__main__":
    main()
