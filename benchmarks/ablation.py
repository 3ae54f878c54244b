"""Chapter 10's comparison: one modern part at a time, and all, against Part I's model.

    python benchmarks/ablation.py             # all that is missing, then the table
    python benchmarks/ablation.py --part 0/2  # every second run; another does 1/2
    python benchmarks/ablation.py --time      # milliseconds per step, alone

Every run goes into benchmarks/ablation.json as it ends, so a stopped comparison goes on
where it was; to run one again, take it out there. All runs see the same number of
tokens, and seed n draws the same batches for every model.
"""

import argparse
import json
import random
import statistics
import time
from operator import itemgetter

import torch
from harness import HERE, corpus, machine, merged, update, versions

from course import PROMPT
from tinygpt_lib import FastConfig, TrainConfig, new_model, train
from tinygpt_lib.generation import generate

RESULTS = HERE / "ablation.json"
KEY = itemgetter("kind", "name", "rate", "seed")
SHAPE = {"block_size": 64, "n_layer": 3, "n_head": 4, "n_embd": 144}
STEPS, RATE = 1000, 5e-3
ALL = {
    "norm": "rms",
    "position": "rotary",
    "qk_norm": "rms",
    "feed_forward": "swiglu",
}
VARIANTS = {
    "Part I": {},
    "dropout 0.1": {"dropout": 0.1},
    "tied weights": {"tie_weights": True},
    "RMSNorm": {"norm": "rms"},
    "rotary": {"position": "rotary"},
    "query/key norm": {"qk_norm": "rms"},
    "SwiGLU": {"feed_forward": "swiglu"},
    "squared ReLU": {"feed_forward": "relu2"},
    "rotary, query/key norm": {"position": "rotary", "qk_norm": "rms"},
    "four at once": ALL,
    "four, squared ReLU": {**ALL, "feed_forward": "relu2"},
    "learned at 0.1": {"drawn": 0.1},
    "learned at 0.02": {"drawn": 0.02},
    "sinusoidal": {"position": "sinusoidal"},
    "no positions": {"position": "none"},
    "1 head of keys": {"n_kv_head": 1},
    "learned at 2": {"drawn": 2.0},
}
SEEDS = range(5)
# How each of these takes to a learning rate that is too high: fewer steps, one seed.
RATES = (2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2, 8e-2)
SWEPT = ("Part I", "query/key norm")
SWEEP_STEPS = 400
SHOWN = ("four at once", 0)  # whose losses and sample chapter 10 prints


def jobs() -> list[dict]:
    """Every run, in the order in which they are worth having."""
    full = [
        {"kind": "parts", "name": name, "seed": seed, "steps": STEPS, "rate": RATE}
        for seed in SEEDS
        for name in VARIANTS
    ]
    sweep = [
        {"kind": "rates", "name": name, "seed": s, "steps": SWEEP_STEPS, "rate": rate}
        for s in range(1)
        for rate in RATES
        for name in SWEPT
    ]
    return sweep + full


def model_of(name: str, vocab_size: int, seed: int):
    """A variant with its first weights, learned positions as loud as `drawn` says."""
    settings = dict(VARIANTS[name])
    drawn = settings.pop("drawn", None)
    torch.manual_seed(seed)
    model = new_model(FastConfig(vocab_size, **SHAPE, **settings))
    if drawn is not None:
        model.position_embedding.weight.data.mul_(drawn)
    return model


def run(job: dict, data) -> dict:
    tokenizer, train_ids, val_ids = data
    model = model_of(job["name"], tokenizer.vocab_size, job["seed"])
    config = TrainConfig(
        steps=job["steps"], learning_rate=job["rate"], eval_every=0, seed=job["seed"]
    )
    history = train(model, train_ids, val_ids, config, progress=False)
    found = {
        **job,
        "parameters": model.n_parameters(),
        "loss": round(history.evaluations[-1][1], 5),
        "batch_loss": round(statistics.mean(history.losses[-50:]), 5),
    }
    if (job["kind"], job["name"], job["seed"]) == ("parts", *SHOWN):
        parts = torch.tensor(history.losses).view(-1, 25).mean(dim=1)
        found["curve"] = [round(loss, 4) for loss in parts.tolist()]
        generator = torch.Generator().manual_seed(1)
        start = tokenizer.encode(PROMPT)[None]
        written = generate(model, start, 300, generator=generator)[0]
        found["sample"] = tokenizer.decode(written)
    return found


def step_times(data, steps: int = 8, rounds: int = 9) -> dict[str, float]:
    """Milliseconds per step of every model, in turns; medians over the rounds.

    Each round has an order of its own, so that nobody always follows the same one.
    """
    tokenizer, train_ids, val_ids = data
    config = TrainConfig(steps=steps, eval_every=0)
    times = {name: [] for name in VARIANTS}
    for turn in range(rounds):
        for name in random.Random(turn).sample(list(times), len(times)):
            model = model_of(name, tokenizer.vocab_size, 0)
            begin = time.perf_counter()
            train(model, train_ids[:50_000], val_ids[:2], config, progress=False)
            times[name].append(1000 * (time.perf_counter() - begin) / steps)
    return {name: round(statistics.median(t[1:]), 2) for name, t in times.items()}


def keep(runs=(), timing: dict | None = None) -> dict:
    """New runs or timings beside all that the file has."""

    def change(data):
        data["shape"], data["variants"] = SHAPE, VARIANTS
        data["batch_size"] = TrainConfig().batch_size
        if timing:
            data["machine"], data["versions"] = machine(), versions()
            data["timing"] = timing
        data["runs"] = merged(data.get("runs", []), runs, KEY)

    return update(RESULTS, change)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--part", default="0/1", metavar="I/N")
    options.add_argument("--time", action="store_true")
    options = options.parse_args()
    data = corpus()
    if options.time:
        timing = {"threads": torch.get_num_threads(), "ms": step_times(data)}
        print(json.dumps(keep(timing=timing)["timing"], indent=1))
        return
    part, parts = map(int, options.part.split("/"))
    done = {KEY(run) for run in keep()["runs"]}
    for job in [job for job in jobs() if KEY(job) not in done][part::parts]:
        found = run(job, data)
        keep([found])
        print(found, flush=True)
    runs = keep()["runs"]
    for name in VARIANTS:
        losses = [r["loss"] for r in runs if (r["kind"], r["name"]) == ("parts", name)]
        if len(losses) > 1:
            mean, spread = statistics.mean(losses), statistics.stdev(losses)
            print(f"{name:22} {mean:.4f} +- {spread:.4f} ({len(losses)} seeds)")


if __name__ == "__main__":
    main()
