"""From a config to a model, and from what a file says to a config."""

from dataclasses import asdict

from tinygpt_lib.gpt import GPT, GPTConfig
from tinygpt_lib.runs.fast import QuickGPT
from tinygpt_lib.speed import FastConfig

RENAMED = {  # parts of tensors' names in older checkpoints
    ".steps.0.query.": ".query_norm.",
    ".steps.0.key.": ".key_norm.",
}


def full_config(config: GPTConfig) -> FastConfig:
    """The same description with all switches that there are."""
    return FastConfig(**asdict(config))


def new_model(config: GPTConfig) -> QuickGPT:
    """A model with fresh weights, of any of the configs, with the quickest parts."""
    return QuickGPT(full_config(config))


def describe(model: GPT) -> dict:
    """The model's config as plain JSON data; FastConfig(**data) makes it again."""
    return asdict(full_config(model.config))


def with_new_names(tensors: dict) -> dict:
    """The tensors of an older checkpoint under the names that they have today."""
    renamed = {}
    for name, tensor in tensors.items():
        for old, new in RENAMED.items():
            name = name.replace(old, new)
        renamed[name] = tensor
    return renamed
