"""What several commands share: their options, the text they work on."""

from pathlib import Path

from tinygpt_lib.basics.corpus import load_shakespeare
from tinygpt_lib.basics.devices import DEVICES
from tinygpt_lib.text import CharTokenizer, split


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


def encode_parts(tokenizer, text: str):
    """Ids to train on and ids to validate on. The text is cut before it is encoded."""
    if isinstance(tokenizer, CharTokenizer):  # the same, and errors name the place
        return split(tokenizer.encode(text))
    return tuple(tokenizer.encode(part) for part in split(text))
