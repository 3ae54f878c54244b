"""A task that only distance can solve, and places beyond the trained length.

    python benchmarks/distance.py echo      # every way of knowing places, rates, seeds
    python benchmarks/distance.py stretch   # 64 characters stretched to 256, likewise

Chapter 11 shows the results, which go into benchmarks/distance.json run by run; a run
that is there is not done again. Minutes on one thread.
"""

import json
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import harness
import torch
import torch.nn.functional as F
from harness import corpus

from tinygpt_lib import TrainConfig, loss_by_position, new_model, train, with_context
from tinygpt_lib.speed import FastConfig
from tinygpt_lib.training import AdamW

RESULTS = Path(__file__).with_suffix(".json")
SEEDS = (0, 1, 2)

# --- Echo ---

LETTERS, BACK = 16, 32
WAYS = {  # how the model knows places, and how far a layer sees
    "learned": {"position": "learned"},
    "rotary": {"position": "rotary"},
    "none": {"position": "none"},
    **{
        f"window {w}": {"position": "rotary", "attention": "sliding", "window": w}
        for w in (17, 16)
    },
}
ECHO_RATES = (1e-3, 3e-3, 1e-2)


def echoes(n: int, generator: torch.Generator) -> torch.Tensor:
    """n times 32 random letters, and the same letters again: (n, 64)."""
    letters = torch.randint(LETTERS, (n, BACK), generator=generator)
    return letters.repeat(1, 2)


def echo_loss(model, ids: torch.Tensor) -> torch.Tensor:
    """Nats for each letter of the second half, which the first half decides."""
    logits = model(ids[:, :-1])[:, BACK - 1 :]
    return F.cross_entropy(logits.transpose(1, 2), ids[:, BACK:])


def learn_echo(way: str, rate: float, seed: int, steps: int = 250):
    """A model of two layers, trained on echoes, and its loss on new ones."""
    torch.manual_seed(seed)
    config = FastConfig(LETTERS, 2 * BACK, n_layer=2, n_head=2, n_embd=64, **WAYS[way])
    model, generator = new_model(config), torch.Generator().manual_seed(seed)
    optimizer = AdamW(model.parameters(), weight_decay=0.0)
    for step in range(steps):
        optimizer.learning_rate = rate * min(1, (step + 1) / 30, 2 - 2 * step / steps)
        loss = echo_loss(model, echoes(16, generator))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        new = echoes(500, torch.Generator().manual_seed(1000))
        return model, echo_loss(model, new).item()


def echo() -> None:
    for seed in SEEDS:
        for rate in ECHO_RATES:
            for way in WAYS:
                run = {"way": way, "rate": rate, "seed": seed}
                once("echo", run, lambda: learn_echo(way, rate, seed)[1])  # noqa: B023


# --- Stretch ---

SHORT, LONG = 64, 256
METHODS = (
    ("learned", "drawn"),
    ("learned", "none"),
    ("learned", "interpolate"),
    ("rotary", "none"),
    ("rotary", "interpolate"),
    ("rotary", "ntk"),
)
STRETCH_RATES = {  # 0: no training; the best lies within
    "learned": (0, 3e-4, 1e-3, 3e-3, 1e-2),
    "rotary": (0, 1e-3, 3e-3, 1e-2),
}


def short_model(position: str, seed: int, train_ids, val_ids):
    """Chapter 11's small model, trained on windows of 64."""
    torch.manual_seed(seed)
    model = new_model(FastConfig(65, SHORT, 3, 4, 96, position=position))
    config = TrainConfig(300, 12, learning_rate=5e-3, eval_every=0, seed=seed)
    train(model, train_ids, val_ids, config, progress=False)
    return model


def stretched(model, method: str):
    """The model for windows of 256, not trained further."""
    longer = with_context(model, LONG, "none" if method == "drawn" else method)
    if method == "drawn":  # as the old ones were
        with torch.no_grad():
            rows = longer.position_embedding.weight[SHORT:]
            rows.normal_(generator=torch.Generator().manual_seed(0))
    return longer


def beyond(model, rate: float, seed: int, train_ids, val_ids) -> float:
    """Nats at places 64 to 255, after 20 steps at this rate."""
    if rate:
        config = TrainConfig(20, 4, learning_rate=rate, eval_every=0, seed=seed)
        train(model, train_ids, val_ids[: LONG + 1], config, progress=False)
    mean, _ = loss_by_position(model, val_ids[: len(val_ids) // 4], LONG)
    return mean[SHORT:].mean().item()


def stretch() -> None:
    _, *data = corpus()
    model = cache(lambda position, seed: short_model(position, seed, *data))

    def slides(seed):
        old = model("rotary", seed)
        new = new_model(replace(old.config, attention="sliding", window=SHORT))
        new.load_state_dict(old.state_dict())
        return new

    for seed in SEEDS:
        run = {"way": "rotary, sliding", "rate": 0, "seed": seed}
        once("stretch", run, lambda: beyond(slides(seed), 0, seed, *data))  # noqa: B023
        for position, method in METHODS:
            for rate in STRETCH_RATES[position]:
                run = {"way": f"{position}, {method}", "rate": rate, "seed": seed}

                def measure(p=position, m=method, r=rate, s=seed):
                    return beyond(stretched(model(p, s), m), r, s, *data)

                once("stretch", run, measure)


# --- Runs ---


def once(kind: str, run: dict, measure) -> None:
    """Adds a run's loss to the results, unless it is there."""
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if any(run.items() <= old.items() for old in kept.get(kind, [])):
        return
    run["loss"] = round(measure(), 4)
    print(json.dumps(run), flush=True)
    harness.keep(RESULTS, kind, [*kept.get(kind, []), run])


if __name__ == "__main__":
    {"echo": echo, "stretch": stretch}[sys.argv[1]]()
