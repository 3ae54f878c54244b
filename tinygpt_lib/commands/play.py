"""`play`: a page on which one sees a trained model think."""

import os
import webbrowser
from pathlib import Path

from tinygpt_lib.commands.common import add_command
from tinygpt_lib.runs.page import write_page


def add_play(commands) -> None:
    command = add_command(
        commands,
        "play",
        run_play,
        "write a page on which one sees a model or a detector think, and open it",
        "play runs/cpu",
    )
    command.add_argument(
        "folder", type=Path, help="a run, any saved checkpoint, or a detector"
    )
    command.add_argument(
        "--out",
        type=Path,
        help="the page, one HTML file that needs nothing else (default: beside the "
        "run, as runs/cpu.html)",
    )
    command.add_argument(
        "--no-open", action="store_true", help="write it, and open no browser"
    )


def run_play(options) -> int:
    folder = options.folder
    if folder.name in ("", ".."):  # the folder that one is in
        folder = folder.resolve()
    out = options.out or folder.with_name(f"{folder.name}.html")
    size = write_page(options.folder, out)
    print(f"{out}: {size / 1e6:.1f} MB, the model and all that runs it", flush=True)
    if not options.no_open and not opened(out.resolve().as_uri()):
        print(f"no browser was found; open it yourself: {out.resolve().as_uri()}")
    return 0


def opened(url: str) -> bool:
    """Whether there was a browser to show it; those of terminals run no scripts."""
    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        return False
    of_terminal = type(browser) is webbrowser.GenericBrowser
    if of_terminal and "BROWSER" not in os.environ:
        return False
    return browser.open(url)
