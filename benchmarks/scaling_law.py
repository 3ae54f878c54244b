"""Losses of a grid of small models and texts, which the chapter on scaling laws fits.

    python benchmarks/scaling_law.py            # all that is missing; about 70 minutes
    python benchmarks/scaling_law.py list       # what there is, and what is missing
    python benchmarks/scaling_law.py run 64 400000 0    # one run: width, tokens, seed
    python benchmarks/scaling_law.py try 64 400000 0 0.02    # at another learning rate

Every run takes a number of steps that is fixed beforehand, on one thread, and is put
into benchmarks/scaling_law.json when it is done; so a stopped grid goes on where it
was. LARGER is the run to be forecast, LONGER the one that decides: no fit sees them.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from harness import corpus, machine, merged, update, versions

from tinygpt_lib import FastConfig, TrainConfig, evaluate, new_model, train

RESULTS = Path(__file__).with_suffix(".json")
WIDTHS = (32, 48, 64, 96, 128)
TOKENS = (200_000, 400_000, 800_000, 1_600_000)
AGAIN = (200_000, 400_000)  # with a second seed, to see what the seed does
LARGER = (192, 2_000_000)
LONGER = (192, 10_000_000)
BLOCK, BATCH, HEAD = 64, 8, 16


def config_of(width: int) -> FastConfig:
    """Three blocks, heads of 16, the parts of chapter 10 but the gate."""
    return FastConfig(
        65,
        block_size=BLOCK,
        n_layer=3,
        n_head=width // HEAD,
        n_embd=width,
        bias=False,
        norm="rms",
        position="rotary",
        qk_norm="rms",
    )


def rate_of(width: int) -> float:
    """The one rule for the learning rate; its trials are kept beside the runs."""
    return 0.64 / width


def jobs() -> list[tuple[int, int, int]]:
    """Width, tokens and seed: the grid, the larger one, the grid again, the longest."""
    grid = [(width, tokens, 0) for tokens in TOKENS for width in WIDTHS]
    again = [(width, tokens, 1) for tokens in AGAIN for width in WIDTHS]
    return [*grid, (*LARGER, 0), *again, (*LONGER, 0)]


def done() -> set[tuple]:
    """The runs that are in the file."""
    runs = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []
    return {key_of(r)[:3] for r in runs}


def key_of(result: dict) -> tuple:
    return result["width"], result["tokens"], result["seed"], result["rate"]


def keep(result: dict, where: str = "runs") -> None:
    """Puts a run into the file, and what all have in common."""

    def change(data):
        data["machine"], data["versions"] = machine(), versions()
        data["windows"], data["context"] = BATCH, BLOCK
        data["larger"] = LARGER
        data[where] = merged(data.get(where, []), [result], key_of)

    update(RESULTS, change)


def run(width: int, tokens: int, seed: int, rate: float | None = None) -> dict:
    """One model, trained for `tokens` characters; its loss on all validation text."""
    torch.set_num_threads(1)
    _, train_ids, val_ids = corpus()
    torch.manual_seed(seed)
    model = new_model(config_of(width))
    config = TrainConfig(
        steps=round(tokens / (BATCH * BLOCK)),
        batch_size=BATCH,
        learning_rate=rate_of(width) if rate is None else rate,
        eval_every=0,
        seed=seed,
    )
    begin = time.perf_counter()
    history = train(model, train_ids, val_ids, config, progress=False)
    return {
        "width": width,
        "parameters": model.n_parameters(),
        "tokens": tokens,
        "steps": config.steps,
        "rate": round(config.learning_rate, 5),
        "seed": seed,
        "loss": round(history.evaluations[-1][1], 5),
        "train_loss": round(evaluate(model, train_ids[: len(val_ids)]), 5),
        "seconds": round(time.perf_counter() - begin, 1),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = options.add_subparsers(dest="command")
    commands.add_parser("list")
    for name in ("run", "try"):
        one = commands.add_parser(name)
        for argument in ("width", "tokens", "seed"):
            one.add_argument(argument, type=int)
        if name == "try":
            one.add_argument("rate", type=float)
    options = options.parse_args()
    if options.command == "try":
        trial = run(options.width, options.tokens, options.seed, options.rate)
        keep(trial, "trials")
        print(json.dumps(trial))
        return
    wanted = [job for job in jobs() if job not in done()]
    if options.command == "run":
        wanted = [(options.width, options.tokens, options.seed)]
    for job in wanted:
        if options.command == "list":
            print(*job)
            continue
        keep(result := run(*job))
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
