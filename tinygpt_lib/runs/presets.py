"""Recipes with a name: model and training settings that were measured together.

Chapters 07, 11 and 12 show what each is good for; benchmarks/presets.json its figures.
"""

from dataclasses import asdict, replace

from tinygpt_lib.logs import LogPlan, log_config
from tinygpt_lib.runs.settings import TrainConfig
from tinygpt_lib.speed import MODERN, FastConfig

WITH_MUON = TrainConfig(
    optimizer="muon",
    matrix_rate=0.03,
    weight_decay=0.0,
    beta2=0.95,
    warmup=0.02,
    cooldown=0.6,
    cooldown_shape="linear",
)


def speedrun_preset(vocab_size: int) -> tuple[FastConfig, TrainConfig]:
    """Two small blocks on tables of n-grams: the shortest way below 1.898 nats."""
    shape = {"block_size": 64, "n_layer": 2, "n_head": 3, "n_embd": 96}
    return (
        FastConfig(vocab_size, **shape, embedding="ngrams", **MODERN),
        replace(WITH_MUON, steps=140, learning_rate=0.03, cooldown=0.5, eval_every=0),
    )


def cpu_preset(vocab_size: int) -> tuple[FastConfig, TrainConfig]:
    """A GPT of 0.8 million parameters that learns in a minute or two on two cores.

    Its tables hold 2.7 million more, of which a token fetches three rows.
    """
    shape = {"block_size": 64, "n_layer": 4, "n_head": 4, "n_embd": 128}
    return (
        FastConfig(vocab_size, **shape, embedding="ngrams", **MODERN),
        replace(WITH_MUON, steps=750, learning_rate=0.02, eval_every=250),
    )


def best_preset(vocab_size: int) -> tuple[FastConfig, TrainConfig]:
    """Six blocks and much weight decay: half an hour on two cores with AVX-512."""
    shape = {"block_size": 256, "n_layer": 6, "n_head": 4, "n_embd": 256}
    plan = {"steps": 1200, "batch_size": 32, "learning_rate": 0.003, "eval_every": 300}
    return (
        FastConfig(
            vocab_size, **shape, **MODERN | {"norm": "layer", "qk_norm": "layer"}
        ),
        replace(WITH_MUON, **plan, matrix_rate=0.02, weight_decay=1.2, cooldown=0.7),
    )


def long_preset(vocab_size: int) -> tuple[FastConfig, TrainConfig]:
    """A GPT of 0.8 million parameters that learns from 64 tokens and reads 512 at once.

    A token looks at 64; through three layers it hears of 190.
    """
    shape = {"block_size": 512, "n_layer": 3, "n_head": 4, "n_embd": 144}
    others = {"attention": "sliding", "window": 64, "feed_forward": "swiglu"}
    plan = {"steps": 4000, "batch_size": 16, "learning_rate": 5e-3, "eval_every": 500}
    return (
        FastConfig(vocab_size, **shape, **MODERN | others | {"zero_outputs": False}),
        TrainConfig(**plan, context=64),
    )


def log_preset(vocab_size: int) -> tuple[FastConfig, TrainConfig]:
    """Chapter 15's GPT for logs and its plan, as a run takes them."""
    plan = asdict(LogPlan(steps=800, eval_every=200))
    return log_config(vocab_size), TrainConfig(optimizer="muon", **plan)


PRESETS = {
    "best": best_preset,
    "cpu": cpu_preset,
    "long": long_preset,
    "speedrun": speedrun_preset,
}
