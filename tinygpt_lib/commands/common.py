"""What several commands share: their options, the text they work on."""

import sys

from tinygpt_lib.basics.corpus import load_shakespeare
from tinygpt_lib.basics.devices import DEVICES
from tinygpt_lib.basics.ids import Ids
from tinygpt_lib.basics.texts import Text, read_texts
from tinygpt_lib.runs.data import Data
from tinygpt_lib.scaling_out import process_rank


def add_command(commands, name: str, run, does: str, example: str):
    """A command with its help, its example, and the option that all of them share."""
    command = commands.add_parser(
        name,
        help=does,
        description=does[0].upper() + does[1:] + ".",
        epilog=f"example: python -m tinygpt_lib {example}",
    )
    command.set_defaults(command=run, usage_error=command.error)
    command.add_argument(
        "--device",
        default="auto",
        help=f"{', '.join(DEVICES)} (default: auto, which takes CUDA if there is one)",
    )
    return command


def text_of(options, about: dict) -> tuple[str, Data]:
    """Name and content of the text: the one asked for, else what the run noted.

    Of several files, and of standard input, it is said what was read.
    """
    paths = options.text
    if paths is None:
        noted = about.get("text")
        paths = noted if isinstance(noted, list) else [noted] * (noted is not None)
        if not all(isinstance(path, str) for path in paths):
            raise ValueError(f"the checkpoint notes {noted!r} as its text; give --text")
        if "-" in paths:
            raise ValueError(
                "the run's text came by standard input and was not kept: give it "
                "again, by --text"
            )
    if not paths:
        return "Tiny Shakespeare", Data(Text.of(load_shakespeare()))
    text, seen = read_texts(paths)
    used = ["standard input" if f == "-" else f for f, why in seen.items() if not why]
    left = [f"{file} ({why})" for file, why in seen.items() if why]
    if process_rank() == 0 and (list(seen) != [str(paths[0])] or "-" in seen):
        print(f"read {few(used)}: {len(text):,} characters", file=sys.stderr)
        if left:
            print(f"left out {few(left)}", file=sys.stderr)
    name = used[0] if len(used) == 1 else f"the text of {len(used):,} files"
    return name, Data(text)


def few(names: list[str], n: int = 5) -> str:
    """The first n of the names, and how many more there are."""
    more = [f"{len(names) - n:,} more"] if len(names) > n else []
    return ", ".join([*names[:n], *more])


def encode_parts(tokenizer, name: str, data: Data) -> tuple[Ids, Ids]:
    """Ids to train on and ids to validate on. The text is cut before it is encoded."""
    parts = data.encode(tokenizer)
    if len(parts[1]) < 2:
        raise ValueError(
            f"{name} is too short: of its {len(data.text):,} characters the last tenth "
            f"is measured, {len(parts[1])} tokens here; it takes at least 2, as 20 "
            "characters have"
        )
    return parts
