"""What keeps a model from learning its text by heart: weight decay, or dropout?

    python benchmarks/weight_decay.py [SEED ...]

A replica of `--preset best` at an eighth of the size: an eighth of the text, of the
characters in a step and, about, of the parameters. So the text is read as often, and as
many steps lie between two readings of a line. "loss" is over the last 100,000
characters of the training text, which the replica does not learn from; "learnt" is over
the text that it does. Results: weight_decay.json, by dropout, decay and seed.
"""

import dataclasses
import sys
from pathlib import Path

import torch
from harness import corpus, machine, update

from tinygpt_lib import evaluate, keep_freed_memory, new_model, train
from tinygpt_lib.runs.presets import PRESETS

RESULTS = Path(__file__).with_suffix(".json")
TEXT, HELD_OUT = 125_000, 100_000  # characters
DECAYS, DROPOUTS = (0.1, 0.3, 0.6, 1.2, 2.4), (0.0, 0.1)


def run(dropout: float, decay: float, seed: int) -> None:
    """One run, its losses added to the results."""
    tokenizer, ids, _ = corpus()
    text, held_out = ids[:TEXT], ids[-HELD_OUT:]
    shape, plan = PRESETS["best"](tokenizer.vocab_size)
    shape = dataclasses.replace(
        shape, n_embd=96, n_head=3, block_size=128, dropout=dropout
    )
    plan = dataclasses.replace(
        plan, batch_size=8, weight_decay=decay, seed=seed, eval_every=0
    )
    torch.manual_seed(seed)
    model = new_model(shape)
    history = train(model, text, held_out, plan, progress=False)
    result = {
        "loss": history.evaluations[-1][1],
        "learnt": evaluate(model, text),
        "seconds": round(history.seconds, 1),
    }
    print(f"dropout {dropout}, decay {decay}, seed {seed}:", result, flush=True)

    def add(data: dict) -> None:
        data["machine"] = machine()
        data["parameters"] = model.n_parameters()
        data.setdefault("runs", {})[f"{dropout} {decay} {seed}"] = result

    update(RESULTS, add)


def main(seeds: list[str]) -> None:
    keep_freed_memory()
    for seed in map(int, seeds or (0, 1, 2)):
        for dropout in DROPOUTS:
            for decay in DECAYS:
                run(dropout, decay, seed)


if __name__ == "__main__":
    main(sys.argv[1:])
