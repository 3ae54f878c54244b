"""What frozen GPTs know of questions that nobody trained them for.

    python benchmarks/representations.py      # writes representations.json, 20 minutes

Four tasks, three seeds: bags, a GPT, an untrained one of its shape, shuffled labels.
All choices (layer, pool, penalty) are made within the training part. Chapter 17
explains them and shows the table.
"""

import argparse
import json
import time
from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from sklearn.base import clone

from course.logdata import load_adfa, load_hdfs
from course.probing import (
    confusions,
    f1_interval,
    macro_f1,
    nearest,
    on_bags,
    on_vectors,
    probe,
)
from course.tasks import (
    Task,
    attack_task,
    deletion_task,
    speaker_task,
    workload_task,
)
from tinygpt_lib import (
    CharTokenizer,
    FastConfig,
    FastGPT,
    load_shakespeare,
    new_model,
)
from tinygpt_lib.basics.files import write_atomically
from tinygpt_lib.logs import (
    EventTokenizer,
    SessionFinder,
    group_lines,
    stream,
)
from tinygpt_lib.representations import embed
from tinygpt_lib.runs.presets import WITH_MUON, log_preset
from tinygpt_lib.runs.run import train
from tinygpt_lib.runs.settings import TrainConfig
from tinygpt_lib.speed import MODERN

OUT = Path(__file__).with_name("representations.json")
SEEDS = range(3)
POOLED = ("mean", "max")


def verse_preset(vocab_size: int) -> tuple[FastConfig, TrainConfig]:
    """A GPT for speeches, trained for two or three minutes."""
    shape = {"block_size": 128, "n_layer": 4, "n_head": 4, "n_embd": 128}
    plan = replace(WITH_MUON, steps=700, batch_size=32, learning_rate=0.02)
    return FastConfig(vocab_size, **shape, dropout=0.1, **MODERN), plan


def tasks(names: list[str]):
    """The tasks of these names, each with its tokenizer and the settings of its GPT."""
    if "speaker" in names:
        text = load_shakespeare()
        yield speaker_task(text), CharTokenizer.from_text(text), verse_preset
    if {"workload", "deletion"} & {*names}:
        log = load_hdfs()
        lines = (line.text for line in log.lines)
        blocks = list(group_lines(lines, SessionFinder(r"blk_-?\d+")).values())
        for task in (workload_task(log, blocks), deletion_task(blocks)):
            if task.name in names:
                tokenizer = EventTokenizer.from_sessions(task.pretraining)
                yield task, tokenizer, log_preset
    if "attack" in names:
        task = attack_task(load_adfa())
        yield task, EventTokenizer.from_sessions(task.pretraining), log_preset


def learnt(task: Task, tokenizer, preset, seed: int) -> tuple[FastGPT, float]:
    """A GPT that has learnt from what the task allows, and its last validation loss."""
    if isinstance(task.pretraining, str):
        ids = tokenizer.encode(task.pretraining)
    else:
        ids = stream(task.pretraining, tokenizer)
    config, plan = preset(tokenizer.vocab_size)
    torch.manual_seed(seed)
    model = new_model(config)
    cut = len(ids) * 19 // 20
    plan = replace(plan, seed=seed, eval_every=0)
    history = train(model, ids[:cut], ids[cut:], plan, progress=False)
    return model.eval(), history.evaluations[-1][1]


def quality(task: Task, guesses: np.ndarray, against: dict) -> dict:
    """Macro-F1 with its interval, and the intervals of its gain on other guesses."""
    rest = (task.labels, guesses, task.groups)
    return {
        "f1": macro(task, guesses),
        "interval": f1_interval(*rest),
        "gain on": {
            name: f1_interval(*rest, against=other) for name, other in against.items()
        },
    }


def of_layers(task: Task, model: FastGPT, tokenizer) -> tuple[list[list], list[float]]:
    """Vectors of all items by layer and pool, and the macro-F1 of each layer."""
    pools = [embed(model, tokenizer, task.items, pool=pool) for pool in POOLED]
    layers = [list(pair) for pair in zip(*pools, strict=True)]
    return layers, [macro(task, guess(task, on_vectors(*x))) for x in layers]


def guess(task: Task, candidates: list) -> np.ndarray:
    """What a probe makes of a task."""
    return probe(candidates, task.labels, task.splits, task.groups)


def macro(task: Task, guesses: np.ndarray) -> float:
    """Macro-F1 of guesses on all that is tested."""
    return float(macro_f1(confusions(task.labels, guesses, task.groups).sum(0)))


def same_class_nearest(task: Task, vectors: torch.Tensor) -> float:
    """How often the nearest item of another group has the same label."""
    hits = []
    for group in np.unique(task.groups):
        own = task.groups == group
        _, places = nearest(vectors[~own], vectors[own], k=1)
        found = task.labels[~own][places[:, 0].numpy()]
        hits += (found == task.labels[own]).tolist()
    return float(np.mean(hits))


def nearest_by_bags(task: Task) -> dict[str, float]:
    """The same for bags of runs up to 1, 2 and 3 events."""
    bags = dict(zip("123", on_bags(task.items)[::3], strict=True))
    return {
        n: same_class_nearest(
            task, torch.tensor(clone(bag[0][0]).fit_transform(task.items).toarray())
        )
        for n, bag in bags.items()
    }


def run(task: Task, tokenizer, preset) -> dict:
    """All that is measured of one task."""
    tested = np.concatenate([test for _, test in task.splits])
    majority = np.full(len(task.labels), "", dtype=object)
    for known, asked in task.splits:
        majority[asked] = Counter(task.labels[known]).most_common(1)[0][0]
    bags = on_bags(task.items)
    bag = guess(task, bags)
    result = {
        "classes": len(np.unique(task.labels)),
        "items": len(task.items),
        "tested": len(tested),
        "groups tested": len(np.unique(task.groups[tested])),
        "majority": quality(task, majority, {}),
        "bag": quality(task, bag, {"majority": majority}),
        "seeds": [],
    }
    if task.name == "attack":
        result["nearest by bags"] = nearest_by_bags(task)
    for seed in SEEDS:
        start = time.perf_counter()
        model, loss = learnt(task, tokenizer, preset, seed)
        seconds = time.perf_counter() - start
        torch.manual_seed(100 + seed)
        fresh = new_model(replace(model.config, zero_outputs=False)).eval()
        layers, by_layer = of_layers(task, model, tokenizer)
        fresh_layers, fresh_by_layer = of_layers(task, fresh, tokenizer)
        untrained = guess(task, on_vectors(*chain(*fresh_layers)))
        own = on_vectors(*chain(*layers))
        mixed = task.labels.copy()
        dice = np.random.default_rng(seed)
        for known, asked in task.splits[:1]:
            mixed[known] = dice.permutation(mixed[known])
            mixed[asked] = dice.permutation(mixed[asked])
        shuffled = replace(task, labels=mixed, splits=task.splits[:1])
        others = {"bag": bag, "untrained": untrained, "majority": majority}
        row = {
            "train_seconds": seconds,
            "val_loss": loss,
            "by layer": by_layer,
            "untrained by layer": fresh_by_layer,
            "GPT": quality(task, guess(task, own), others),
            "untrained": quality(task, untrained, {"bag": bag}),
            "shuffled": quality(shuffled, guess(shuffled, own), {}),
        }
        if task.name == "attack":
            row["nearest"] = [same_class_nearest(task, x[0]) for x in layers]
            row["nearest untrained"] = [
                same_class_nearest(task, x[0]) for x in fresh_layers
            ]
        result["seeds"].append(row)
        print(task.name, seed, json.dumps(row), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = ["speaker", "workload", "attack", "deletion"]
    parser.add_argument("names", nargs="*", default=every, choices=every)
    results = json.loads(OUT.read_text()) if OUT.exists() else {}
    for task, tokenizer, preset in tasks(parser.parse_args().names):
        results[task.name] = run(task, tokenizer, preset)
        write_atomically(OUT, (json.dumps(results, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
