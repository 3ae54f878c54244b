"""Presets beside each other: the loss that they reach, and in what time.

    python benchmarks/presets.py                  chapter 07's recipe and the new cpu
    python benchmarks/presets.py NAME [SEED ...]  one preset, for some seeds

In turns, three seeds; losses over the whole validation text, times of steps and
evaluations on all cores. Results: presets.json, a list for each preset and seed.
"""

import dataclasses
import sys
from pathlib import Path

import torch
from harness import corpus, machine, update

from tinygpt_lib import GPT, keep_freed_memory, train
from tinygpt_lib.training import PRESETS, cpu_preset

RESULTS = Path(__file__).with_suffix(".json")
RECIPES = {**PRESETS, "chapter 07": cpu_preset}


def run(name: str, seed: int) -> None:
    """One run, its loss and its seconds added to the results."""
    tokenizer, train_ids, val_ids = corpus()
    model_config, config = RECIPES[name](tokenizer.vocab_size)
    config = dataclasses.replace(config, seed=seed)
    torch.manual_seed(seed)
    history = train(GPT(model_config), train_ids, val_ids, config, progress=False)
    loss, seconds = history.evaluations[-1][1], history.seconds
    print(f"{name}, seed {seed}: {loss:.4f} nats, {seconds:.1f} s", flush=True)

    def add(data: dict) -> None:
        new = {"loss": [], "seconds": [], "seeds": [], "machine": machine()}
        of = data.setdefault(name, new)
        if seed in of["seeds"]:
            place = of["seeds"].index(seed)
            of["loss"][place], of["seconds"][place] = loss, seconds
        else:
            of["loss"].append(loss)
            of["seconds"].append(seconds)
            of["seeds"].append(seed)

    update(RESULTS, add)


def main(arguments: list[str]) -> None:
    keep_freed_memory()
    names = arguments[:1] or ["chapter 07", "cpu"]
    for seed in map(int, arguments[1:] or (0, 1, 2)):
        for name in names:
            run(name, seed)


if __name__ == "__main__":
    main(sys.argv[1:])
