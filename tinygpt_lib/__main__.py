"""The command line: `python -m tinygpt_lib train | sample | evaluate`."""

import argparse
import dataclasses
import math
import shlex
import sys
from pathlib import Path

import torch

from tinygpt_lib._checks import check_int
from tinygpt_lib._corpus import CorpusError, load_shakespeare
from tinygpt_lib._device import DEVICES, DeviceError, choose_device
from tinygpt_lib._files import read_json
from tinygpt_lib._version import __version__
from tinygpt_lib.bigram import evaluate
from tinygpt_lib.generation import generate
from tinygpt_lib.gpt import GPT, GPTConfig
from tinygpt_lib.text import CharTokenizer, split, tokenizer_from_dict
from tinygpt_lib.training import (
    PRESETS,
    DivergedError,
    RunState,
    TrainConfig,
    load_checkpoint,
    read_run,
    train,
)

INTERRUPTED = 130  # what shells report for a program that Ctrl-C ended


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0 done, 1 error, 2 usage, 130 Ctrl-C."""
    options = parser().parse_args(arguments)
    try:
        return options.command(options)
    except (ValueError, OSError, CorpusError, DeviceError, DivergedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        # torch has a type of its own for this on CUDA only; other errors are bugs.
        no_room = ("allocate", "Storage size calculation overflowed")
        known = any(words in str(error) for words in no_room)
        if not isinstance(error, MemoryError) and not known:
            raise
        print("error: there is not enough memory for sizes like these", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"\n{str(stop) or 'interrupted'}", file=sys.stderr)
        return INTERRUPTED


def parser() -> argparse.ArgumentParser:
    """The three commands and their options."""
    top = argparse.ArgumentParser(
        prog="python -m tinygpt_lib",
        description="Train a small GPT on a text, let it write, and measure it.",
        epilog="example: python -m tinygpt_lib train --preset cpu --out runs/cpu",
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    add_train(commands)
    add_sample(commands)
    add_evaluate(commands)
    return top


def add_command(commands, name: str, run, does: str, example: str):
    """A command with its help, its example, and the option that all of them share."""
    command = commands.add_parser(
        name,
        help=does,
        description=does[0].upper() + does[1:] + ".",
        epilog=f"example: python -m tinygpt_lib {example}",
    )
    command.set_defaults(command=run)
    command.add_argument(
        "--device",
        default="auto",
        help=f"{', '.join(DEVICES)} (default: auto, which takes CUDA if there is one)",
    )
    return command


def add_train(commands) -> None:
    command = add_command(
        commands,
        "train",
        run_train,
        "train a model on Tiny Shakespeare or on a text of your own",
        "train --out runs/mine --text my.txt --steps 500 --n-layer 3",
    )
    command.add_argument(
        "--out", type=Path, required=True, help="folder for the run; must be new"
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
        "--text", type=Path, help="a UTF-8 file (default: Tiny Shakespeare)"
    )
    model, training = PRESETS["cpu"](1)
    for title, config in (("the model", model), ("the training", training)):
        group = command.add_argument_group(
            f"settings of {title} (default: the preset's)"
        )
        for field in dataclasses.fields(config):
            if field.name != "vocab_size":  # the text decides
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


def add_sample(commands) -> None:
    command = add_command(
        commands,
        "sample",
        run_sample,
        "let a trained model write",
        'sample runs/cpu --prompt "ROMEO:" --tokens 500 --temperature 0.8',
    )
    command.add_argument("folder", type=Path, help="a run, or any saved checkpoint")
    command.add_argument(
        "--prompt", help="what the text begins with (default: a break)"
    )
    command.add_argument("--tokens", type=int, default=500, help="(default: 500)")
    command.add_argument(
        "--temperature", type=float, default=0.8, help="0 is greedy (default: 0.8)"
    )
    command.add_argument("--top-k", type=int, help="draw from the k likeliest only")
    command.add_argument(
        "--top-p", type=float, help="draw from the likeliest that reach p"
    )
    command.add_argument("--seed", type=int, help="makes the text repeatable")


def add_evaluate(commands) -> None:
    command = add_command(
        commands,
        "evaluate",
        run_evaluate,
        "measure a trained model on the whole validation text, the last tenth",
        "evaluate runs/cpu",
    )
    command.add_argument("folder", type=Path, help="a run, or any saved checkpoint")
    command.add_argument(
        "--text", type=Path, help="a UTF-8 file (default: the one it was trained on)"
    )


def run_train(options) -> int:
    device = choose_device(options.device)
    state = read_run(options.out) if options.resume else None
    text = read_text(text_of(options, state.about if state else {}))
    if state is None:
        model, config, tokenizer, about = new_run(options, text)
    else:
        check_given(options, state)
        model, config = GPT(GPTConfig(**state.model)), TrainConfig(**state.training)
        tokenizer, about = tokenizer_from_dict(state.tokenizer), state.about
    train_ids, val_ids = split(tokenizer.encode(text))
    # Going on with a finished run takes no step, but mends what a kill left half-saved.
    finished = state is not None and len(state.history.losses) >= config.steps
    try:
        history = train(
            model.to(device),
            train_ids,
            val_ids,
            config,
            out=options.out,
            tokenizer=tokenizer,
            resume=options.resume,
            about=about,
            progress=not finished,
        )
    except KeyboardInterrupt as stop:
        run = options.out / "training.safetensors"
        if not run.exists():  # too early: nothing to go on with
            raise
        folder = shlex.quote(str(options.out))
        go_on = f"python -m tinygpt_lib train --out {folder} --resume"
        why = f"{str(stop) or 'interrupted'}; {options.out} holds the last checkpoint"
        raise KeyboardInterrupt(f"{why}, go on with: {go_on}") from None
    what = f"{options.out} is finished" if finished else options.out
    print(f"{what}: {outcome(history)}")
    return 0


def new_run(options, text: str):
    """Model, settings, tokenizer and notes of a run that begins here."""
    name = options.preset or "cpu"
    tokenizer = CharTokenizer.from_text(text)
    model_config, config = PRESETS[name](tokenizer.vocab_size)
    model_config = dataclasses.replace(model_config, **given(options, GPTConfig))
    config = dataclasses.replace(config, **given(options, TrainConfig))
    torch.manual_seed(config.seed)
    path = str(options.text.absolute()) if options.text else None
    return GPT(model_config), config, tokenizer, {"preset": name, "text": path}


def given(options, config_class) -> dict:
    """The settings of a config that stand on the command line."""
    names = {field.name for field in dataclasses.fields(config_class)}
    return {name: value for name, value in vars(options).items() if name in names}


def check_given(options, state: RunState) -> None:
    """ValueError if a setting on the command line is not the run's own."""
    settings = {**state.model, **state.training}
    asked = {**given(options, GPTConfig), **given(options, TrainConfig)}
    if options.preset:
        settings["preset"], asked["preset"] = state.about.get("preset"), options.preset
    for name, value in asked.items():
        if value != settings[name]:
            flag = "--" + name.replace("_", "-")
            raise ValueError(
                f"{flag} is {value}, but the run in {options.out} was started with "
                f"{settings[name]}; leave it out to go on"
            )


def text_of(options, about: dict) -> Path | None:
    """The text that was asked for, else the one that the run noted."""
    if options.text is not None:
        return options.text
    noted = about.get("text")
    if not isinstance(noted, str | None):
        raise ValueError(f"the checkpoint notes {noted!r} as its text; give --text")
    return Path(noted) if noted else None


def read_text(path: Path | None) -> str:
    """The text in a file, line ends as they are; Tiny Shakespeare for None."""
    if path is None:
        return load_shakespeare()
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text: byte {error.start} is not"
        ) from None
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None
    if not text:
        raise ValueError(f"{path} is empty: there is nothing to learn from")
    return text


def outcome(history) -> str:
    """How a finished run ended."""
    step, loss = history.evaluations[-1]
    return (
        f"{step} steps in {history.seconds:.0f} s, {loss:.4f} nats per token over the "
        "whole validation text"
    )


def run_sample(options) -> int:
    device = choose_device(options.device)
    if options.seed is not None:
        check_int("seed", options.seed, low=0, high=2**63 - 1)
    model, tokenizer = load_checkpoint(options.folder, device)
    prompt = options.prompt
    if prompt is None:
        prompt = "\n" if knows(tokenizer, "\n") else tokenizer.decode([0])
    generator = torch.Generator()
    if options.seed is None:
        generator.seed()
    else:
        generator.manual_seed(options.seed)
    ids = generate(
        model,
        tokenizer.encode(prompt)[None],
        options.tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        generator=generator,
    )
    print(tokenizer.decode(ids[0]))
    return 0


def knows(tokenizer, text: str) -> bool:
    """Whether the tokenizer can encode text."""
    try:
        tokenizer.encode(text)
    except ValueError:
        return False
    return True


def run_evaluate(options) -> int:
    device = choose_device(options.device)
    model, tokenizer = load_checkpoint(options.folder, device)
    about = read_json(options.folder / "config.json").get("about")
    if not isinstance(about, dict):
        about = {}
    _, val_ids = split(tokenizer.encode(read_text(text_of(options, about))))
    loss = evaluate(model, val_ids)
    predicted = val_ids[1:]
    size = len(tokenizer.decode(predicted).encode("utf-8"))
    bits = loss * len(predicted) / math.log(2) / size
    print(f"{len(predicted):,} tokens predicted, the whole validation text")
    print(f"{loss:.4f} nats per token")
    print(f"{bits:.4f} bits per byte")
    return 0


if __name__ == "__main__":
    sys.exit(main())
