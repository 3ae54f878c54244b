"""AdamW, Muon, Muon with n-grams: how many characters does each need for a loss?

Muon has two rates, one for the matrices of the blocks; so AdamW may have two as well.

    python benchmarks/muon_race.py                            what is not there yet
    python benchmarks/muon_race.py rate OPTIMIZER RATE RATE   one trial of rates
    python benchmarks/muon_race.py run CONTENDER STEPS SEED   one run of the race

Rates were tried on a slice of the training text; the race is measured on the whole
validation text, each length a run with its own cool-down, three seeds. Results go to
muon_race.json. The steps are fixed, so runs may go side by side, one thread each.
"""

import json
import sys
import time
from itertools import product
from pathlib import Path

import torch
from harness import corpus, update

from tinygpt_lib import FastConfig, TrainConfig, new_model, train
from tinygpt_lib.runs.settings import OPTIMIZERS
from tinygpt_lib.speed import MODERN, FusedAdamW, Muon

RESULTS = Path(__file__).with_suffix(".json")
HELD_OUT = 100_000  # characters at the end of the training text
RATE_STEPS = 200
RATES = {  # of AdamW, for all or for what is no matrix; of Muon for matrices
    "adamw": ((0.0025, 0), (0.005, 0), (0.01, 0), (0.02, 0), (0.04, 0)),
    "muon": ((0.02, 0.015), (0.02, 0.03), (0.02, 0.06), (0.01, 0.03), (0.04, 0.03)),
    "adamw2": (
        (0.015, 0.0025),
        (0.015, 0.005),
        (0.03, 0.0025),
        (0.03, 0.005),
        (0.03, 0.01),
        (0.06, 0.005),
    ),
}
STEPS, SEEDS = (100, 200, 400), (0, 1, 2)
NGRAMS = "muon+ngrams"  # at the rates found for Muon without them
CONTENDERS = (*RATES, NGRAMS)
MODEL = {
    "block_size": 64,
    "n_layer": 3,
    "n_head": 3,
    "n_embd": 96,
    **MODERN,
}


class TwoRates(Muon):
    """AdamW for the matrices too, at their own rate: Muon in all but the step."""

    def __init__(self, matrices, others, rate, weight_decay=0.0):
        super().__init__([], others, rate)
        self.theirs = FusedAdamW(
            [p for p, _ in matrices], rate, others.betas, weight_decay=weight_decay
        )

    def zero_grad(self) -> None:
        super().zero_grad()
        self.theirs.zero_grad()

    def step(self) -> None:
        self.theirs.learning_rate = self.rate * self.learning_rate / self.highest
        self.theirs.step()
        super().step()


def two_rates(model, config) -> TwoRates:
    """AdamW with a rate for the matrices of the blocks and one for all else."""
    both = Muon.of(model, config)
    matrices = [pair for group in both.groups.values() for pair in group]
    return TwoRates(matrices, both.others, both.rate, both.weight_decay)


OPTIMIZERS["adamw2"] = two_rates


def trained(contender: str, rates, steps: int, seed: int, train_ids, val_ids) -> dict:
    """The loss after a run, and what it took."""
    torch.manual_seed(seed)
    rate, matrix_rate = rates
    optimizer = contender.removesuffix("+ngrams")
    embedding = "ngrams" if contender == NGRAMS else "token"
    config = TrainConfig(
        steps=steps,
        batch_size=16,
        optimizer=optimizer,
        learning_rate=rate,
        matrix_rate=matrix_rate or TrainConfig.matrix_rate,
        weight_decay=0.0,
        beta2=0.95,
        warmup=0.02,
        cooldown=0.5,
        cooldown_shape="linear",
        eval_every=0,
        seed=seed,
    )
    model = new_model(FastConfig(corpus()[0].vocab_size, embedding=embedding, **MODEL))
    begin = time.perf_counter()
    history = train(model, train_ids, val_ids, config, progress=False)
    return {
        "loss": round(history.evaluations[-1][1], 4),
        "characters": steps * config.batch_size * MODEL["block_size"],
        "seconds": round(time.perf_counter() - begin, 1),
    }


def rate(optimizer: str, rates: tuple[float, float]) -> None:
    """One trial of a rate, on the end of the training text."""
    _, ids, _ = corpus()
    result = trained(optimizer, rates, RATE_STEPS, 0, ids[:-HELD_OUT], ids[-HELD_OUT:])
    store("rates", label(optimizer, *rates), result)


def best(optimizer: str) -> tuple[float, float]:
    """The rates whose trial ended lowest."""
    trials = json.loads(RESULTS.read_text())["rates"]
    return min(RATES[optimizer], key=lambda r: trials[label(optimizer, *r)]["loss"])


def label(*parts) -> str:
    return " ".join(p if isinstance(p, str) else f"{p:g}" for p in parts)


def run(contender: str, steps: int, seed: int) -> None:
    """One run of the race."""
    rates = best(contender.removesuffix("+ngrams"))
    result = trained(contender, rates, steps, seed, *corpus()[1:])
    store("race", label(contender, steps, seed), result)


def store(part: str, name: str, result: dict) -> None:
    print(part, name, result, flush=True)
    update(RESULTS, lambda data: data.setdefault(part, {}).update({name: result}))


def missing(part: str, name: str) -> bool:
    """Whether a result is not there yet."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return name not in known.get(part, {})


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["rate"]:
        rate(arguments[1], tuple(map(float, arguments[2:])))
    elif arguments[:1] == ["run"]:
        run(arguments[1], int(arguments[2]), int(arguments[3]))
    else:
        for optimizer, tried in RATES.items():
            for rates in tried:
                if missing("rates", label(optimizer, *rates)):
                    rate(optimizer, rates)
        for steps, contender, seed in product(STEPS, CONTENDERS, SEEDS):
            if missing("race", label(contender, steps, seed)):
                run(contender, steps, seed)


if __name__ == "__main__":
    main(sys.argv[1:])
