"""What a run leaves on the disk: checkpoints that are read as if a stranger wrote them.

`training.safetensors` holds all that going on needs; config.json, tokenizer.json and
model.safetensors what using the model needs. Safetensors and JSON can't hold code.
"""

import hashlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from tinygpt_lib.basics.devices import shapes_only
from tinygpt_lib.basics.files import (
    CheckpointError,
    json_file,
    read_json,
    read_tensors,
    tensor_file,
    understood,
    write_tensors,
    write_together,
    writing,
)
from tinygpt_lib.basics.ids import Ids
from tinygpt_lib.gpt import GPT, GPTConfig
from tinygpt_lib.runs.models import config_of, full_config, new_model, with_new_names
from tinygpt_lib.runs.settings import TrainConfig
from tinygpt_lib.runs.tokenizers import tokenizer_from_dict
from tinygpt_lib.training import History


@dataclass
class RunState:
    """Everything that going on with a run needs, as plain data and tensors."""

    model: dict  # GPTConfig or FastConfig
    training: dict  # TrainConfig
    tokenizer: dict
    data: str  # fingerprint of the training and validation ids
    about: dict  # notes of whoever started the run
    history: History
    tensors: dict[str, Tensor]  # weights, optimizer, random states


def fingerprint(*parts: Tensor | Ids) -> str:
    """A sha256 over ids: other data, another fingerprint."""
    first, *rest = parts
    if isinstance(first, Ids) and first.known and first.known[0] == rest:
        return first.known[1]  # they are many, and don't change
    digest = hashlib.sha256()
    for ids in parts:
        digest.update(f"{len(ids)}:".encode())
        for piece in ids.pieces() if isinstance(ids, Ids) else [ids.cpu().contiguous()]:
            digest.update(piece.numpy())
    if isinstance(first, Ids):
        first.known = rest, digest.hexdigest()
    return digest.hexdigest()


def write_run(folder: Path, state: RunState) -> None:
    """Both halves of a checkpoint: what going on needs, and what using it needs."""
    notes = {**vars(state), "history": asdict(state.history)}
    losses = torch.tensor(notes["history"].pop("losses"), dtype=torch.float64)
    tensors = {**notes.pop("tensors"), "losses": losses}
    # The state last: when it says that a run is finished, the model is there already.
    weights = strip("model.", state.tensors)
    write_model(folder, state.model, state.tokenizer, weights, state.about)
    path = folder / "training.safetensors"
    write_tensors(path, tensors, notes)


def write_model(
    folder: Path, model: dict, tokenizer: dict, weights: dict[str, Tensor], about: dict
) -> None:
    """What using the model needs, in three files."""
    belongs = {"model": model, "tokenizer": tokenizer}
    files = {
        "tokenizer.json": json_file({"tokenizer": tokenizer}),
        "config.json": json_file({"model": model, "about": about}),
        "model.safetensors": tensor_file(weights, belongs),
    }
    write_together({folder / name: data for name, data in files.items()})


def strip(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with prefix, under the rest of their names."""
    return {
        k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)
    }


def read_run(folder: str | os.PathLike) -> RunState:
    """The state of the run in `folder`; CheckpointError if there is none that fits."""
    path = Path(folder) / "training.safetensors"
    tensors, notes = read_tensors(path)
    tensors = with_new_names(tensors)
    no_run = f"{path} does not describe a run"
    with understood(f"{no_run}: history"):
        past, losses = notes.pop("history"), tensors.pop("losses")
        history = History(
            [float(loss) for loss in losses.tolist()],
            [(int(step), float(loss)) for step, loss in past["evaluations"]],
            float(past["seconds"]),
        )
    with understood(no_run):
        state = RunState(**notes, history=history, tensors=tensors)
    with understood(f"{no_run}: training"):
        state.training = asdict(TrainConfig(**state.training))
    with understood(f"{no_run}: model"):
        config = config_of(state.model)
        state.model = asdict(config)  # older runs lack the fields added since
        check_shapes(config, strip("model.", tensors))
    with understood(f"{no_run}: tokenizer"):
        tokenizer_from_dict(state.tokenizer)
    with understood(no_run):
        if not isinstance(state.about, dict):
            raise TypeError(f"about is {state.about!r}")
    return state


def save_checkpoint(
    folder: str | os.PathLike, model: GPT, tokenizer, about: dict | None = None
) -> None:
    """Writes config.json, tokenizer.json, model.safetensors, each whole or not at all.

    `about` is JSON data of your own, kept in config.json. CheckpointError for a folder
    that holds a training run of another model, or where nothing can be written;
    ValueError for a tokenizer of another size than the model's vocabulary.
    """
    check_tokenizer(tokenizer, model.config)
    folder = Path(folder)
    run = folder / "training.safetensors"
    if run.exists() and full_config(config_of(read_run(folder).model)) != full_config(
        model.config
    ):
        raise CheckpointError(
            f"{folder} holds a training run of another model; choose another folder"
        )
    with writing(folder):
        folder.resolve().mkdir(parents=True, exist_ok=True)
        config, words = asdict(model.config), tokenizer.to_dict()
        write_model(folder, config, words, model.state_dict(), about or {})


def check_tokenizer(tokenizer, config: GPTConfig) -> None:
    """ValueError unless tokenizer and model share a vocabulary, by its size."""
    if tokenizer.vocab_size != config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, and the model a "
            f"vocab_size of {config.vocab_size}; they must be the same"
        )


def load_checkpoint(folder: str | os.PathLike, device="cpu") -> tuple[GPT, object]:
    """The model, in evaluation mode, and the tokenizer that `save_checkpoint` wrote.

    CheckpointError, naming the file, for one that is missing, cut short, altered or of
    another version. No code that a file may hold is ever run.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json").get("model")
    words = read_json(folder / "tokenizer.json").get("tokenizer")
    tensors, notes = read_tensors(folder / "model.safetensors")
    with understood(f"{folder / 'tokenizer.json'} does not describe a tokenizer"):
        if notes != {"model": config, "tokenizer": words}:
            raise CheckpointError(
                f"{folder}/model.safetensors, config.json and tokenizer.json do not "
                "belong together: they were not saved with each other"
            )
        tokenizer = tokenizer_from_dict(words)
    with understood(f"{folder / 'config.json'} does not describe a model"):
        config = config_of(config)
        check_tokenizer(tokenizer, config)
        tensors = with_new_names(tensors)
        check_shapes(config, tensors)
    return model_of(config, tensors).to(device), tokenizer


def model_of(config: GPTConfig, tensors: dict[str, Tensor]) -> GPT:
    """A model with these weights, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):  # draws no random numbers of yours
        model = new_model(config).to(next(iter(tensors.values())).dtype)
    model.load_state_dict(tensors)
    return model.eval()


def check_shapes(config: GPTConfig, tensors: dict[str, Tensor]) -> None:
    """ValueError unless the tensors are just those that a model of `config` has."""
    if config.n_layer > len(tensors):
        raise ValueError(f"n_layer {config.n_layer} is more than the file has tensors")
    with shapes_only():  # nothing is allocated, whatever the config says
        expected = {n: t.shape for n, t in new_model(config).state_dict().items()}
    found = {name: t.shape for name, t in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            wanted, got = (
                tuple(d[name]) if name in d else "absent" for d in (expected, found)
            )
            raise ValueError(f"tensor {name} should be {wanted} and is {got}")
    if len(types := {t.dtype for t in tensors.values()}) > 1:
        raise ValueError(f"its tensors are of several types: {sorted(map(str, types))}")
    if not types.pop().is_floating_point:
        raise ValueError("its tensors are no floating-point numbers")
