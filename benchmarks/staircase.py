"""From nanoGPT's recipe to ours, one thing at a time: what is each worth?

    python benchmarks/staircase.py --rates          AdamW's rates, held out
    python benchmarks/staircase.py --losses SEED .. losses at some lengths
    python benchmarks/staircase.py --times          CPU time of a step, interleaved

Every length is a run of its own, cooled down at its end; the loss is over the whole
validation text. Where it crosses 1.898, chapter 12 reads off the steps, linear in their
logarithm; nanoGPT's recipe keeps its own 2,000. Losses may be made beside other work.
Times are of one thread, as the system counts them (other work slows them little), in
rounds: what drifts, drifts for all. Results: staircase.json.
"""

import argparse
import json
import math
import random
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from harness import corpus, machine, significant, update, versions

from tinygpt_lib import FastConfig, TrainConfig, new_model, train
from tinygpt_lib.runs.run import Run
from tinygpt_lib.speed import MODERN

RESULTS = Path(__file__).with_suffix(".json")
HELD_OUT = 100_000  # characters at the end of the training text, for rates
WIDE = {"block_size": 64, "n_layer": 4, "n_head": 4, "n_embd": 128}  # nanoGPT's
SMALL = {"block_size": 64, "n_layer": 2, "n_head": 3, "n_embd": 96}
PLAIN = {"bias": False, "feed_forward": "gelu_exact", "position": "learned"}
TIED = {"tie_weights": True}
TABLES = {"embedding": "ngrams"}
THEIRS = TrainConfig(learning_rate=1e-3, eval_every=0)  # batch 12, cosine, beta2 0.99
OURS = replace(
    THEIRS,
    warmup=0.02,
    cooldown=0.5,
    cooldown_shape="linear",
    weight_decay=0.0,
    beta2=0.95,
)
MUON = replace(OURS, optimizer="muon", learning_rate=0.03)
RATES = (0.0025, 0.005, 0.01, 0.02, 0.04)  # upwards, for as long as it helps
# name: model, plan, the lengths that it is run at, where AdamW's rate is tried
UP = {
    "nanoGPT's recipe": (WIDE | PLAIN | TIED, THEIRS, (2000,), None),
    "rate and plan": (WIDE | PLAIN | TIED, OURS, (700, 1000), 300),
    "modern parts": (WIDE | MODERN, OURS, (500, 800), 300),
    "Muon": (WIDE | MODERN, MUON, (200, 300), None),
    "tables": (WIDE | MODERN | TABLES, MUON, (90, 140), None),
    "two small blocks": (SMALL | MODERN | TABLES, MUON, (90, 140), None),
}
WITHOUT = {
    "rate and plan": (
        SMALL | MODERN | TABLES,
        replace(THEIRS, optimizer="muon"),
        (140, 280),
        None,
    ),
    "modern parts": (SMALL | PLAIN | TABLES, MUON, (140, 280), None),
    "Muon": (SMALL | MODERN | TABLES, OURS, (140, 280), 140),
    "tables": (SMALL | MODERN, MUON, (140, 280, 420), None),
    "two small blocks": (*UP["tables"][:2], (), None),  # measured above
}
ARMS = UP | {f"without {name}": arm for name, arm in WITHOUT.items()}


def known() -> dict:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def store(part: str, name: str, value) -> None:
    print(part, name, value, flush=True)

    def change(data):
        data["machine"], data["versions"] = machine(), versions()
        data.setdefault(part, {})[name] = value

    update(RESULTS, change)


def ended(model: dict, plan: TrainConfig, train_ids, val_ids) -> float:
    """The loss that a run ends at."""
    torch.manual_seed(plan.seed)
    network = new_model(FastConfig(65, **model))
    history = train(network, train_ids, val_ids, plan, progress=False)
    return round(history.evaluations[-1][1], 4)


def rates() -> None:
    """AdamW's rate for each arm that has its own, by the end of the training text."""
    _, ids, _ = corpus()
    for name, (model, plan, _, steps) in ARMS.items():
        best = math.inf
        for rate in RATES if steps else ():
            label = f"{name}: {rate:g}"
            if label not in known().get("rates", {}):
                tried = replace(plan, steps=steps, learning_rate=rate)
                loss = ended(model, tried, ids[:-HELD_OUT], ids[-HELD_OUT:])
                store("rates", label, loss)
            if known()["rates"][label] > best:
                break
            best = known()["rates"][label]


def plan_of(name: str) -> TrainConfig:
    """The arm's plan, at the rate whose trial ended lowest."""
    _, plan, _, steps = ARMS[name]
    if not steps:
        return plan
    tried = known()["rates"]
    rate = min(RATES, key=lambda rate: tried.get(f"{name}: {rate:g}", math.inf))
    return replace(plan, learning_rate=rate)


def losses(seed: int) -> None:
    """The loss of each arm at its lengths."""
    _, train_ids, val_ids = corpus()
    for name, (model, _, lengths, _) in reversed(ARMS.items()):  # short ones first
        for steps in lengths:
            label = f"{name}, {steps} steps, seed {seed}"
            if label not in known().get("losses", {}):
                plan = replace(plan_of(name), steps=steps, seed=seed)
                store("losses", label, ended(model, plan, train_ids, val_ids))


def times(rounds: int = 15, steps: int = 6) -> None:
    """CPU milliseconds of a step of each arm, the arms in turns."""
    _, train_ids, val_ids = corpus()
    runs, taken = {}, {name: [] for name in ARMS}
    for name, (model, plan, *_) in ARMS.items():
        torch.manual_seed(0)
        network = new_model(FastConfig(65, **model))
        runs[name] = Run(network, train_ids, val_ids, replace(plan, steps=10_000))
        runs[name].take_step()
    for turn in range(rounds):
        for name in random.Random(turn).sample(sorted(runs), len(runs)):
            begin = time.process_time()
            for _ in range(steps):
                runs[name].take_step()
            taken[name].append(1000 * (time.process_time() - begin) / steps)
    first = taken["nanoGPT's recipe"]
    for name, ms in taken.items():
        shares = [a / b for a, b in zip(ms, first, strict=True)]
        quarter, half, three = statistics.quantiles(shares, n=4)
        store(
            "times",
            name,
            {
                "ms": significant(statistics.median(ms), 3),
                "of nanoGPT's": round(half, 3),
                "quartiles": [round(quarter, 3), round(three, 3)],
            },
        )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rates", action="store_true")
    options.add_argument("--losses", type=int, metavar="SEED", nargs="*")
    options.add_argument("--times", action="store_true")
    options = options.parse_args()
    torch.set_num_threads(1)
    if options.rates:
        rates()
    for seed in options.losses or ():
        losses(seed)
    if options.times:
        times()


if __name__ == "__main__":
    main()
