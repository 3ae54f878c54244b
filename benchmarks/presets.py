"""Presets beside each other: the loss that they reach, and in what time.

    python benchmarks/presets.py                  chapter 07's recipe and the new cpu
    python benchmarks/presets.py NAME [SEED ...]  one preset, for some seeds

In turns, three seeds; "loss" is over the whole validation text, "test" over what
follows the corpus in its last play, which nothing was ever chosen by: 55,863 characters
of The Tempest. "seconds" are those of steps and evaluations, on all cores.
Results: presets.json, lists with an entry for each seed.
"""

import dataclasses
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch
from harness import corpus, machine, update

from tinygpt_lib import evaluate, generate, keep_freed_memory, new_model, train
from tinygpt_lib.basics.corpus import plays_from_wheel, rebuild
from tinygpt_lib.runs.presets import PRESETS
from tinygpt_lib.training import cpu_preset

RESULTS = Path(__file__).with_suffix(".json")
RECIPES = {**PRESETS, "chapter 07": cpu_preset}
LISTS = ("loss", "test", "seconds", "evaluations", "seeds")
SAMPLE = 400  # characters


@cache
def rest_of_the_tempest() -> str:
    """What the corpus leaves out of its last play."""
    with tempfile.TemporaryDirectory() as scratch:
        plays, edits = plays_from_wheel(Path(scratch))
    whole, kept = rebuild(plays, edits, lines=None), rebuild(plays, edits)
    return whole[len(kept) :]


def run(name: str, seed: int) -> None:
    """One run, its losses and its seconds added to the results."""
    test_text = rest_of_the_tempest()  # first: whoever has no network learns it now
    tokenizer, train_ids, val_ids = corpus()
    model_config, config = RECIPES[name](tokenizer.vocab_size)
    config = dataclasses.replace(config, seed=seed)
    torch.manual_seed(seed)
    model = new_model(model_config)
    history = train(model, train_ids, val_ids, config, progress=False)
    result = {
        "loss": history.evaluations[-1][1],
        "test": evaluate(model, tokenizer.encode(test_text)),
        "seconds": history.seconds,
        "evaluations": [(step, round(loss, 4)) for step, loss in history.evaluations],
        "seeds": seed,
    }
    print(name, result, flush=True)
    prompt = tokenizer.encode("\n")[None]
    ids = generate(model, prompt, SAMPLE, generator=torch.Generator().manual_seed(seed))

    recipe = {
        "model": dataclasses.asdict(model_config),
        "training": {
            k: v for k, v in dataclasses.asdict(config).items() if k != "seed"
        },
    }

    def add(data: dict) -> None:
        of = data.get(name, {})
        fits = of.keys() >= set(LISTS) and of["config"] == recipe
        if not fits:  # none yet, or runs of another kind
            of = data[name] = {"config": recipe, **{key: [] for key in LISTS}}
        if seed in of["seeds"]:
            place = of["seeds"].index(seed)
            for key in LISTS:
                of[key][place] = result[key]
        else:
            for key in LISTS:
                of[key].append(result[key])
        of["sample"] = tokenizer.decode(ids[0])
        of["machine"] = machine()

    update(RESULTS, add)


def main(arguments: list[str]) -> None:
    keep_freed_memory()
    names = arguments[:1] or ["chapter 07", "cpu"]
    for seed in map(int, arguments[1:] or (0, 1, 2)):
        for name in names:
            run(name, seed)


if __name__ == "__main__":
    main(sys.argv[1:])
