"""The command line: `python -m tinygpt_lib train | sample | evaluate | detect`."""

import argparse
import dataclasses
import os
import shlex
import sys
from pathlib import Path

import torch

from tinygpt_lib import _detect
from tinygpt_lib._checks import check_int
from tinygpt_lib._corpus import CorpusError, load_shakespeare
from tinygpt_lib._device import DEVICES, DeviceError, choose_device
from tinygpt_lib._files import read_json
from tinygpt_lib._version import __version__
from tinygpt_lib.generation import generate
from tinygpt_lib.gpt import GPT, GPTConfig
from tinygpt_lib.runs.checkpoints import (
    RunState,
    check_free,
    fingerprint,
    load_checkpoint,
    read_run,
)
from tinygpt_lib.runs.presets import PRESETS
from tinygpt_lib.runs.processes import (
    LostProcessError,
    by_torchrun,
    from_first,
    processes,
)
from tinygpt_lib.runs.run import train
from tinygpt_lib.runs.settings import MAY_CHANGE, TrainConfig
from tinygpt_lib.scaling_out import process_rank, shard
from tinygpt_lib.speed import keep_freed_memory
from tinygpt_lib.text import TOKENIZERS, CharTokenizer, split, tokenizer_from_dict
from tinygpt_lib.tokenizers import BPETokenizer, WordTokenizer, score_text
from tinygpt_lib.training import DivergedError, History

INTERRUPTED = 130  # what shells report for a program that Ctrl-C ended
OURS = (CorpusError, DeviceError, DivergedError, LostProcessError)
SMALLEST = {BPETokenizer: 256, WordTokenizer: 2}  # the kinds with a size to choose


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0 done, 1 error, 2 usage, 130 Ctrl-C."""
    options = parser().parse_args(arguments)
    try:
        return options.command(options)
    except BrokenPipeError:  # as of `| head`: nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, *OURS) as error:
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
    """The commands and their options."""
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
    add_detect(commands)
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
        "--text", type=Path, help="a UTF-8 file (default: Tiny Shakespeare)"
    )
    command.add_argument(
        "--tokenizer",
        choices=sorted(TOKENIZERS),
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


def add_detect(commands) -> None:
    detect = commands.add_parser(
        "detect",
        help="find what is unlike normal in logs",
        description="Find what is unlike normal in logs.",
        epilog="example: python -m tinygpt_lib detect score runs/gate auth.log",
    ).add_subparsers(required=True, metavar="COMMAND")
    fit = add_command(
        detect,
        "fit",
        _detect.run_fit,
        "learn what is normal from logs of a time in which nothing was wrong",
        r"detect fit --normal auth.log.1 --out runs/gate --session-regex 'sshd\[(\d+)'",
    )
    _detect.add_fit(fit)
    score = add_command(
        detect,
        "score",
        _detect.run_score,
        "judge the sessions of logs, and show the lines that raise an alarm",
        "detect score runs/gate auth.log",
    )
    _detect.add_score(score)


def run_train(options) -> int:
    device = choose_device(options.device)
    keep_freed_memory()
    if not options.resume:
        check_size(options)
        check_settings(options)
        check_free(options.out)
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
        raise type(stop)(f"{why}, go on with: {going_on(options)}") from None
    return 0


def train_shared(options, device) -> tuple[History, str]:
    """Trains, with all others that `torchrun` started; what happened, and in what."""
    state = from_first(lambda: read_run(options.out)) if options.resume else None
    text = read_text(text_of(options, state.about if state else {}))
    if state is None:
        model, config, tokenizer, about = new_run(options, text)
    else:
        check_given(options, state)
        anew = {k: v for k, v in given(options, TrainConfig).items() if k in MAY_CHANGE}
        config = dataclasses.replace(TrainConfig(**state.training), **anew)
        model = GPT(GPTConfig(**state.model))
        tokenizer, about = tokenizer_from_dict(state.tokenizer), state.about
    train_ids, val_ids = encode_parts(tokenizer, text)
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
    return f"{python} -m tinygpt_lib train --out {folder} --resume{more}"


def check_size(options) -> None:
    """Refuses a --vocab-size that is too small, or without meaning, before any work."""
    if options.size is None:
        return
    kind = options.tokenizer or "char"
    if TOKENIZERS[kind] not in SMALLEST:
        options.usage_error(f"argument --vocab-size: has no meaning for {kind} tokens")
    check_int("vocab_size", options.size, low=SMALLEST[TOKENIZERS[kind]])


def check_settings(options) -> None:
    """ValueError for settings that make no sense, before any work."""
    model_config, config = PRESETS[options.preset or "cpu"](256)
    dataclasses.replace(model_config, **given(options, GPTConfig))
    dataclasses.replace(config, **given(options, TrainConfig))


def encode_parts(tokenizer, text: str):
    """Ids to train on and ids to validate on. The text is cut before it is encoded."""
    if isinstance(tokenizer, CharTokenizer):  # the same, and errors name the place
        return split(tokenizer.encode(text))
    return tuple(tokenizer.encode(part) for part in split(text))


def new_run(options, text: str):
    """Model, settings, tokenizer and notes of a run that begins here."""
    name = options.preset or "cpu"
    kind = TOKENIZERS[options.tokenizer or "char"]
    size = {} if options.size is None else {"vocab_size": options.size}
    # Merges and words are learnt from the training text alone, as the model is. Which
    # characters exist is not learnt, and all have to be known.
    seen = text if kind is CharTokenizer else split(text)[0]
    tokenizer = kind.from_text(seen, **size)
    model_config, config = PRESETS[name](tokenizer.vocab_size)
    model_config = dataclasses.replace(model_config, **given(options, GPTConfig))
    config = dataclasses.replace(config, **given(options, TrainConfig))
    torch.manual_seed(config.seed)
    path = str(options.text.absolute()) if options.text else None
    about = {"preset": name, "text": path, **size}
    return GPT(model_config), config, tokenizer, about


def given(options, config_class) -> dict:
    """The settings of a config that stand on the command line."""
    names = {field.name for field in dataclasses.fields(config_class)}
    return {name: value for name, value in vars(options).items() if name in names}


def check_given(options, state: RunState) -> None:
    """ValueError if a setting on the command line is not the run's own."""
    settings = {**state.model, **state.training}
    asked = {**given(options, GPTConfig), **given(options, TrainConfig)}
    asked = {name: value for name, value in asked.items() if name not in MAY_CHANGE}
    settings["preset"] = state.about.get("preset")
    settings["tokenizer"] = state.tokenizer.get("type")
    settings["vocab_size"] = state.about.get("vocab_size", "the default")
    asked["preset"], asked["tokenizer"] = options.preset, options.tokenizer
    asked["vocab_size"] = options.size
    for name, value in asked.items():
        if value is not None and value != settings[name]:
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
        first = getattr(tokenizer, "begin", 0)
        prompt = "\n" if knows(tokenizer, "\n") else tokenizer.decode([first])
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
    """Whether the tokenizer has a token for text."""
    try:
        return len(tokenizer.encode(text)) > 0
    except ValueError:
        return False


def run_evaluate(options) -> int:
    device = choose_device(options.device)
    model, tokenizer = load_checkpoint(options.folder, device)
    about = read_json(options.folder / "config.json").get("about")
    if not isinstance(about, dict):
        about = {}
    text = read_text(text_of(options, about))
    parts = encode_parts(tokenizer, text)  # names an unknown character by its place
    noted = about.get("data")
    if options.text is None and noted not in (None, fingerprint(*parts)):
        raise ValueError(
            f"{text_of(options, about) or 'Tiny Shakespeare'} is not the text any more "
            "that the run was trained on: its last tenth is another one; to measure it "
            "all the same, give it by --text"
        )
    score = score_text(model, tokenizer, split(text)[1])
    print(f"{score.n_tokens:,} tokens predicted, the whole validation text")
    print(f"{score.nats_per_token:.4f} nats per token")
    print(f"{score.bits_per_byte:.4f} bits per byte")
    if score.n_unknown:
        share = score.n_unknown / score.n_tokens
        print(
            f"{score.n_unknown:,} of the tokens ({share:.1%}) are unknown; what they "
            "stand for was not predicted, so the true bits per byte are more"
        )
    return 0


def leave(code: int) -> None:
    """Ends the process with an exit code."""
    if by_torchrun():
        # While Python takes itself down, a thread of torch's that wakes up aborts the
        # process (seen once): a run that was finished and saved would count as failed.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    leave(main())
