"""`train`: a run in a folder, begun or resumed, alone or under torchrun."""

import argparse
import dataclasses
import os
import shlex
from pathlib import Path

import torch

from tinygpt_lib.basics.checks import check_int
from tinygpt_lib.basics.devices import choose_device
from tinygpt_lib.basics.files import check_free
from tinygpt_lib.commands.common import add_command, encode_parts, text_of
from tinygpt_lib.runs.checkpoints import (
    RunState,
    fingerprint,
    read_run,
)
from tinygpt_lib.runs.data import Data
from tinygpt_lib.runs.fast import keep_freed_memory
from tinygpt_lib.runs.models import config_of, new_model
from tinygpt_lib.runs.presets import PRESETS
from tinygpt_lib.runs.processes import (
    LostProcessError,
    by_torchrun,
    from_first,
    processes,
)
from tinygpt_lib.runs.run import train
from tinygpt_lib.runs.settings import MAY_CHANGE, TrainConfig
from tinygpt_lib.runs.tokenizers import TEXT_TOKENIZERS, tokenizer_from_dict
from tinygpt_lib.scaling_out import process_rank, shard
from tinygpt_lib.speed import FastConfig
from tinygpt_lib.tokenizers import BPETokenizer, WordTokenizer
from tinygpt_lib.training import History

SMALLEST = {BPETokenizer: 256, WordTokenizer: 2}  # the kinds with a size to choose


def add_train(commands) -> None:
    command = add_command(
        commands,
        "train",
        run_train,
        "train a model on Tiny Shakespeare or on a text of your own",
        "train --out runs/mine --text my.txt --steps 500 --n-layer 3",
    )
    command.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for the run: a new one, or with --resume that of the run",
    )
    command.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --out, with its own settings",
    )
    command.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        help="settings to start from (default: cpu)",
    )
    command.add_argument(
        "--text",
        nargs="+",
        action="extend",
        metavar="FILE",
        help="UTF-8 files, folders of them, or - for standard input (default: Tiny "
        "Shakespeare)",
    )
    command.add_argument(
        "--tokenizer",
        choices=sorted(TEXT_TOKENIZERS),
        help="the unit of text (default: char)",
    )
    command.add_argument(
        "--vocab-size",
        type=int,
        dest="size",  # not a setting of the model's: the tokenizer decides
        metavar="INT",
        help="tokens at most, for bpe (default: 1024) and word (default: 4096)",
    )
    command.add_argument(
        "--shard",
        action="store_true",
        help="under torchrun: keep a part of the model in each process, not all of it",
    )
    command.set_defaults(usage_error=command.error)
    model, training = PRESETS["cpu"](1)
    for title, config in (("the model", model), ("the training", training)):
        group = command.add_argument_group(
            f"settings of {title} (default: the preset's)"
        )
        for field in dataclasses.fields(config):
            if field.name != "vocab_size":  # the tokenizer decides
                add_setting(group, field, getattr(config, field.name))


def add_setting(group, field: dataclasses.Field, default) -> None:
    """One option for one field of a config; absent from the result unless given."""
    flag = "--" + field.name.replace("_", "-")
    shared = {"default": argparse.SUPPRESS, "help": f"cpu: {default}"}
    if field.type is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, **shared)
    else:
        kind = field.type.__name__.upper()
        group.add_argument(flag, type=field.type, metavar=kind, **shared)


def run_train(options) -> int:
    device = choose_device(options.device)
    keep_freed_memory()
    if not options.resume:
        check_size(options)
        settings_of(options, 256)  # nonsense is named before any work
        check_free(options.out, "training.safetensors")
    if options.shard and not by_torchrun():
        raise ValueError("--shard needs processes to share with: start it by torchrun")
    try:
        with processes(device):
            history, what = train_shared(options, device)
            if process_rank() == 0:
                print(f"{what}: {outcome(history)}")
    except (KeyboardInterrupt, LostProcessError) as stop:
        if not (options.out / "training.safetensors").exists():
            raise  # too early: nothing to go on with
        why = f"{str(stop) or 'interrupted'}; {options.out} holds the last checkpoint"
        stop.args = (f"{why}, go on with: {going_on(options)}",)
        raise
    return 0


def train_shared(options, device) -> tuple[History, str]:
    """Trains, with all others that `torchrun` started; what happened, and in what."""
    state = from_first(lambda: read_run(options.out)) if options.resume else None
    if by_torchrun() and "-" in (options.text or ()):
        raise ValueError("standard input can't be read by several processes")
    name, data = text_of(options, state.about if state else {})
    if state is None:
        model, config, tokenizer, about = new_run(options, data)
    else:
        check_given(options, state)
        anew = {k: v for k, v in given(options, TrainConfig).items() if k in MAY_CHANGE}
        config = dataclasses.replace(TrainConfig(**state.training), **anew)
        model = new_model(config_of(state.model))
        tokenizer, about = tokenizer_from_dict(state.tokenizer), state.about
    train_ids, val_ids = encode_parts(tokenizer, name, data)
    window = config.context or model.config.block_size
    if len(train_ids) <= window:
        raise ValueError(
            f"{name} is too short: of its {len(data.text):,} characters the first nine "
            f"tenths are trained on, {len(train_ids)} tokens here; "
            f"{'context' if config.context else 'block_size'} {window} needs at least "
            f"{window + 1}"
        )
    about = {**about, "data": fingerprint(train_ids, val_ids)}
    model = model.to(device)
    # Going on with a finished run takes no step, but mends what a kill left half-saved.
    finished = state is not None and len(state.history.losses) >= config.steps
    history = train(
        shard(model) if options.shard else model,
        train_ids,
        val_ids,
        config,
        out=options.out,
        tokenizer=tokenizer,
        resume=options.resume,
        about=about,
        progress=not finished,
    )
    return history, f"{options.out} is finished" if finished else f"{options.out}"


def going_on(options) -> str:
    """The command that goes on with the run."""
    python = "python"
    if by_torchrun():
        here = os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])
        python = f"torchrun --nproc-per-node {here}"
    folder, more = shlex.quote(str(options.out)), " --shard" if options.shard else ""
    if options.device != "auto":
        more += f" --device {options.device}"
    if "-" in (options.text or ()):
        more += " --text -"
    return f"{python} -m tinygpt_lib train --out {folder} --resume{more}"


def check_size(options) -> None:
    """Refuses a --vocab-size that is too small, or without meaning, before any work."""
    if options.size is None:
        return
    kind = options.tokenizer or "char"
    if TEXT_TOKENIZERS[kind] not in SMALLEST:
        options.usage_error(f"argument --vocab-size: has no meaning for {kind} tokens")
    check_int("vocab_size", options.size, low=SMALLEST[TEXT_TOKENIZERS[kind]])


def settings_of(options, vocab_size: int) -> tuple[FastConfig, TrainConfig]:
    """The preset's, but for those given; ValueError for what makes no sense."""
    configs = PRESETS[options.preset or "cpu"](vocab_size)
    return tuple(dataclasses.replace(c, **given(options, type(c))) for c in configs)


def new_run(options, data: Data):
    """Model, settings, tokenizer and notes of a run that begins here."""
    kind = TEXT_TOKENIZERS[options.tokenizer or "char"]
    size = {} if options.size is None else {"vocab_size": options.size}
    tokenizer = data.learn(kind, **size)
    model_config, config = settings_of(options, tokenizer.vocab_size)
    torch.manual_seed(config.seed)
    paths = [p if p == "-" else str(Path(p).absolute()) for p in options.text or ()]
    noted = paths if len(paths) > 1 else next(iter(paths), None)
    about = {"preset": options.preset or "cpu", "text": noted, **size}
    return new_model(model_config), config, tokenizer, about


def given(options, config_class) -> dict:
    """The settings of a config that stand on the command line."""
    names = {field.name for field in dataclasses.fields(config_class)}
    return {name: value for name, value in vars(options).items() if name in names}


def check_given(options, state: RunState) -> None:
    """ValueError if a setting on the command line is not the run's own."""
    settings = {
        **state.model,
        **state.training,
        "preset": state.about.get("preset"),
        "tokenizer": state.tokenizer.get("type"),
        "vocab_size": state.about.get("vocab_size", "the default"),
    }
    asked = {name: value for name, value in vars(options).items() if name in settings}
    asked["vocab_size"] = options.size
    asked = {name: v for name, v in asked.items() if name not in MAY_CHANGE}
    for name, value in asked.items():
        if value is not None and value != settings[name]:
            flag = "--" + name.replace("_", "-")
            raise ValueError(
                f"{flag} is {value}, but the run in {options.out} was started with "
                f"{settings[name]}; leave it out to go on"
            )


def outcome(history) -> str:
    """How a finished run ended."""
    step, loss = history.evaluations[-1]
    return (
        f"{step} steps in {history.seconds:.0f} s, {loss:.4f} nats per token over the "
        "whole validation text"
    )
