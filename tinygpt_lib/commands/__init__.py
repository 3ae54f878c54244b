"""The command line: `python -m tinygpt_lib train | sample | evaluate | ...`."""

import argparse
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tinygpt_lib._version import __version__
from tinygpt_lib.basics.corpus import CorpusError
from tinygpt_lib.basics.devices import DeviceError
from tinygpt_lib.basics.interrupts import exit_code, raising_ends
from tinygpt_lib.commands.convert import add_convert
from tinygpt_lib.commands.detect import add_detect
from tinygpt_lib.commands.evaluate import add_evaluate
from tinygpt_lib.commands.play import add_play
from tinygpt_lib.commands.sample import add_sample
from tinygpt_lib.commands.train import add_train
from tinygpt_lib.runs.processes import LostProcessError, by_torchrun
from tinygpt_lib.training import DivergedError

OURS = (CorpusError, DeviceError, DivergedError, LostProcessError)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0 done, 1 error, 2 usage, 130 Ctrl-C.

    143 for SIGTERM, 129 for a terminal that was closed.
    """
    options = parser().parse_args(arguments)
    try:
        with raising_ends(), escaping():
            code = options.command(options)
            if sys.stdout:
                sys.stdout.flush()  # that it can't be written must be heard of here
        return code
    except BrokenPipeError:  # as of `| head`: nobody reads any more
        give_up(sys.stdout)
        return 1
    except (ValueError, OSError, *OURS) as error:
        return tell(f"error: {error}", 1)
    except (MemoryError, RuntimeError) as error:
        # torch has a type of its own for this on CUDA only; other errors are bugs.
        no_room = ("allocate", "Storage size calculation overflowed")
        known = any(words in str(error) for words in no_room)
        if not isinstance(error, MemoryError) and not known:
            raise
        return tell("error: there is not enough memory for sizes like these", 1)
    except KeyboardInterrupt as stop:
        return tell(f"\n{str(stop) or 'interrupted'}", exit_code(stop))


@contextmanager
def escaping() -> Iterator[None]:
    """Within, a character that the terminal can't show is escaped, and no error."""
    kept = []
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            kept.append((stream, stream.errors))
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in kept:
            with suppress(OSError):  # it flushes, too
                stream.reconfigure(errors=errors)


def tell(message: str, code: int) -> int:
    """Says how it ended, if anybody can still hear it; returns the exit code."""
    for stream, text in ((sys.stdout, ""), (sys.stderr, f"{message}\n")):
        try:
            if stream:
                print(text, end="", file=stream, flush=True)
        except OSError:
            give_up(stream)
    return code


def give_up(stream) -> None:
    """What is still to be written there goes nowhere; else Python tries as it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


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
    add_play(commands)
    add_convert(commands)
    add_detect(commands)
    return top


def leave(code: int) -> None:
    """Ends the process with an exit code."""
    if by_torchrun():
        # While Python takes itself down, a thread of torch's that wakes up aborts the
        # process (seen once): a run that was finished and saved would count as failed.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
