"""From a config to a model, and from what a file says to a config."""

from dataclasses import asdict, fields

from tinygpt_lib.gpt import GPT, GPTConfig
from tinygpt_lib.runs.fast import QuickGPT
from tinygpt_lib.speed import FastConfig

RENAMED = {  # parts of tensors' names in older checkpoints
    ".steps.0.query.": ".query_norm.",
    ".steps.0.key.": ".key_norm.",
}


def config_of(data: dict) -> GPTConfig:
    """The config that a file describes: chapter 06's, or the one with all switches."""
    lean = data.keys() <= {field.name for field in fields(GPTConfig)}
    return GPTConfig(**data) if lean else FastConfig(**data)


def full_config(config: GPTConfig) -> FastConfig:
    """The same description with all switches that there are."""
    return FastConfig(**asdict(config))


def new_model(config: GPTConfig) -> GPT:
    """A model with fresh weights, of any of the configs, with the quickest parts."""
    if type(config) is GPTConfig:
        return GPT(config)
    return QuickGPT(full_config(config))


def with_new_names(tensors: dict) -> dict:
    """The tensors of an older checkpoint under the names that they have today."""
    renamed = {}
    for name, tensor in tensors.items():
        for old, new in RENAMED.items():
            name = name.replace(old, new)
        renamed[name] = tensor
    return renamed
