#!/usr/bin/env python
"""Turn notebooks/text/NN_name.py into executed notebooks/NN_name.ipynb, and back.

Converting and executing are one step, so no output outlives the text it came from.
Each notebook's metadata records, under `tinygpt`:

    text_sha256        the text that the outputs came from
    in_step            hashes of text and cells when the two last said the same:
      text_sha256        another hash now: the text was edited since
      cells_sha256       another hash now: the notebook was edited in Jupyter since
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import jupytext
import nbformat
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import (
    CellExecutionError,
    CellTimeoutError,
    DeadKernelError,
)

MAX_BYTES = 400_000  # of a notebook file, outputs included
MAX_PRINTED = 100_000  # characters that a cell prints to one stream
CUT = f"\n[cut here: a cell may print {MAX_PRINTED:,} characters]\n"
CELL_TIMEOUT = 600  # seconds
HELP_EPILOG = """
By default only notebooks whose own text changed are run. A change in the library
which a notebook imports does not run it again: use --all after one.
"""

# Every text's header. The filters keep versions, ids and this tool's record out of it.
METADATA = {
    "jupytext": {
        "cell_metadata_filter": "tags,jupyter,-all",
        "formats": "notebooks///ipynb,notebooks/text///py:percent",
        "notebook_metadata_filter": "kernelspec,jupytext,"
        "-jupytext.text_representation.jupytext_version",
    },
    "kernelspec": {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    },
}


@dataclass
class Chapter:
    """A notebook's two files; either may be missing."""

    text_path: Path
    notebook_path: Path

    @property
    def name(self) -> str:
        return self.text_path.stem

    @property
    def label(self) -> str:
        """The name, in a message."""
        aside = "solutions/" if self.text_path.parent.name == "solutions" else ""
        return aside + self.name

    def read_text(self) -> str | None:
        path = self.text_path
        return path.read_text(encoding="utf-8") if path.exists() else None

    def read_notebook(self) -> nbformat.NotebookNode | None:
        path = self.notebook_path
        return nbformat.read(path, as_version=4) if path.exists() else None


def find_chapters(root: Path, wanted: list[str]) -> list[Chapter]:
    """The chapters under `root` in number order, or the wanted ones among them."""
    return find_notebooks(root / "notebooks", "", wanted)


def find_solutions(root: Path, wanted: list[str]) -> list[Chapter]:
    """The same for the solutions, which are notebooks of their own."""
    return find_notebooks(root / "notebooks", "solutions", wanted)


def find_notebooks(folder: Path, under: str, wanted: list[str]) -> list[Chapter]:
    texts, notebooks = folder / "text" / under, folder / under
    names = {path.stem for path in texts.glob("[0-9][0-9]_*.py")}
    names |= {path.stem for path in notebooks.glob("[0-9][0-9]_*.ipynb")}
    chosen = {match_name(want, names) for want in wanted} or names
    return [
        Chapter(texts / f"{name}.py", notebooks / f"{name}.ipynb")
        for name in sorted(chosen)
    ]


def match_name(want: str, names: set[str]) -> str:
    """The chapter meant by `03`, `single_head`, `03_single_head` or a path to it."""
    stem = Path(want).stem
    for name in names:
        if stem in (name, *name.split("_", 1)):
            return name
    sys.exit(f"error: no notebook {want!r}: there are {', '.join(sorted(names))}")


# What the two files say, and whether they still agree


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def text_hash(text: str) -> str:
    """Hash of a text, the same whatever its line ends."""
    return sha256(text.replace("\r\n", "\n"))


def cells_hash(nb: nbformat.NotebookNode) -> str:
    """Hash of what a notebook's cells say, without what they put out."""
    cells = [[c.cell_type, c.source, c.metadata.get("tags", [])] for c in nb.cells]
    return sha256(json.dumps(cells))


def from_text(text: str) -> nbformat.NotebookNode:
    """The notebook of a text: no outputs, and cell ids that depend on sources alone."""
    nb = jupytext.reads(text, fmt="py:percent")
    nb.metadata = nbformat.from_dict(METADATA)
    nb.nbformat_minor = 5  # the first with cell ids
    seen: dict[str, int] = {}
    for cell in nb.cells:
        key = f"{cell.cell_type}\n{cell.source}"
        seen[key] = seen.get(key, 0) + 1
        cell.id = sha256(f"{key}\n{seen[key]}")[:12]
    return nb


def to_text(nb: nbformat.NotebookNode) -> str:
    """The text of a notebook, less the empty cells and lines that Jupyter leaves."""
    bare = nbformat.from_dict({**nb, "metadata": METADATA})
    for cell in bare.cells:
        cell.source = cell.source.rstrip()
    bare.cells = [cell for cell in bare.cells if cell.source]
    return jupytext.writes(bare, fmt="py:percent")


def record(nb: nbformat.NotebookNode) -> dict:
    return nb.metadata.get("tinygpt", {})


def same_cells(nb: nbformat.NotebookNode, text: str) -> bool:
    # Through text and back, so that the white space which text drops does not count.
    return cells_hash(from_text(to_text(nb))) == cells_hash(from_text(text))


def edited_in_jupyter(nb: nbformat.NotebookNode, text: str) -> bool:
    """True if the notebook holds an edit that writing the text over it would lose."""
    in_step = record(nb).get("in_step", {}).get("cells_sha256") == cells_hash(nb)
    return not in_step and not same_cells(nb, text)


def edited_as_text(nb: nbformat.NotebookNode, text: str) -> bool:
    """True if the text holds an edit that writing the notebook over it would lose."""
    return record(nb).get("in_step", {}).get("text_sha256") != text_hash(text)


def is_current(nb: nbformat.NotebookNode | None, text: str) -> bool:
    """True if the notebook's outputs came from this text."""
    return (
        nb is not None
        and record(nb).get("text_sha256") == text_hash(text)
        and same_cells(nb, text)
    )


def both_edited(chapter: Chapter) -> str:
    return (
        f"error: {chapter.notebook_path.name} was edited in Jupyter and "
        f"{chapter.text_path.name} was edited too: put one of them back (git "
        "checkout), or carry its edit over to the other by hand"
    )


def write_aside(path: Path, content: str) -> None:
    """Write a file so that it is never seen half-written."""
    aside = path.with_name(path.name + ".partial")
    try:
        aside.write_text(content, encoding="utf-8", newline="\n")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_notebook(chapter: Chapter, nb: nbformat.NotebookNode) -> None:
    nbformat.validate(nb)
    write_aside(chapter.notebook_path, nbformat.writes(nb) + "\n")


# Text to notebook


class ThisPython(KernelSpecManager):
    """Names one kernel, whatever is installed elsewhere: the running interpreter's."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        # It would warn, each time, that it talks to this process unencrypted.
        return KernelSpec(**get_kernel_dict(extra_arguments=["--log-level=ERROR"]))


class CellFailed(Exception):
    """A cell did not do its work; says which cell, and why."""

    def __init__(self, nb: nbformat.NotebookNode, index: int, what: str) -> None:
        source = textwrap.indent(nb.cells[index].source, "    ")
        super().__init__(f"cell {index + 1} {what}. The cell:\n{source}")


class Client(NotebookClient):
    """Joins what a cell prints, as a terminal shows it: no more than MAX_PRINTED."""

    def output(self, outs, msg, *more):
        out = super().output(outs, msg, *more)
        if out is None or out.output_type != "stream":
            return out
        first = next(o for o in outs if o.get("name") == out.name)
        before = "" if first is out else first.text
        if first is not out:
            outs.pop()
        if not before.endswith(CUT):
            first.text = printed(before, out.text)
        return first


def printed(before: str, more: str) -> str:
    """What is to be seen when `more` is printed after `before`."""
    head, newline, last = before.rpartition("\n")
    lines = []
    for line in (last + more).split("\n"):
        body = line.rstrip("\r")  # what stands before a \r is written over
        lines.append(body.rpartition("\r")[2] + line[len(body) :])
    text = head + newline + "\n".join(lines)
    return text if len(text) <= MAX_PRINTED else text[:MAX_PRINTED] + CUT


def execute(nb: nbformat.NotebookNode, folder: Path) -> None:
    """Run all cells in a fresh kernel; raise CellFailed if one fails."""
    client = Client(
        nb,
        km=AsyncKernelManager(kernel_spec_manager=ThisPython()),
        timeout=CELL_TIMEOUT,
        startup_timeout=120,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    at = 0

    def note_cell(cell: nbformat.NotebookNode, cell_index: int) -> None:
        nonlocal at
        at = cell_index

    client.on_cell_start = note_cell
    try:
        client.execute(cleanup_kc=True)
    except CellExecutionError as error:
        print(error.traceback, file=sys.stderr)
        what = f"raised {error.ename}: {error.evalue}"
        raise CellFailed(nb, at, what) from error
    except CellTimeoutError as error:
        raise CellFailed(nb, at, f"took longer than {CELL_TIMEOUT} s") from error
    except DeadKernelError as error:
        raise CellFailed(nb, at, "ended its kernel (out of memory?)") from error
    for i, cell in enumerate(nb.cells):
        # The two streams race each other; so a cell's outputs stand in one order.
        names = [output.get("name") for output in cell.get("outputs", [])]
        for j, pair in enumerate(pairwise(names)):
            if pair == ("stderr", "stdout"):
                cell.outputs[j : j + 2] = cell.outputs[j : j + 2][::-1]
        for output in cell.get("outputs", []):
            if output.output_type == "error":  # let through by the tag raises-exception
                what = f"put out an error, {output.ename}: {output.evalue}"
                raise CellFailed(nb, i, what)


def run_chapter(chapter: Chapter) -> None:
    """Convert and execute one text, then put the notebook in its place."""
    text = chapter.read_text()
    nb = from_text(text)
    started = time.perf_counter()
    print(f"{chapter.label} ...", flush=True)
    chapter.notebook_path.parent.mkdir(exist_ok=True)
    try:
        execute(nb, chapter.notebook_path.parent)
    except CellFailed as failure:
        file = chapter.notebook_path.name
        sys.exit(f"error: {chapter.label}, {failure}\n{file} is left as it was")
    nb.metadata["language_info"] = {"name": "python"}  # enough for highlighting
    step = {"text_sha256": text_hash(text), "cells_sha256": cells_hash(nb)}
    nb.metadata["tinygpt"] = {"text_sha256": step["text_sha256"], "in_step": step}
    there = chapter.read_notebook()
    if there is not None and edited_in_jupyter(there, text):
        sys.exit(f"error: {chapter.notebook_path.name} was edited while it was run")
    write_notebook(chapter, nb)
    seconds = time.perf_counter() - started
    size = chapter.notebook_path.stat().st_size
    print(f"{chapter.label}: {seconds:.1f} s, {size / 1000:.0f} KB")
    if size > MAX_BYTES:
        print(f"warning: {chapter.name} is over {MAX_BYTES // 1000} KB")


def run(chapters: list[Chapter], everything: bool) -> None:
    """Run the chapters that changed, after making sure that no edit would be lost."""
    stale = []
    for chapter in chapters:
        text, nb = chapter.read_text(), chapter.read_notebook()
        file = chapter.notebook_path.name
        if text is None:
            sys.exit(f"error: {file} has no text: `make text` writes it")
        if nb is not None and edited_in_jupyter(nb, text):
            if edited_as_text(nb, text):
                sys.exit(both_edited(chapter))
            sys.exit(
                f"error: {file} was edited in Jupyter: keep the edit with `make text`, "
                "or drop it with git checkout"
            )
        if everything or not is_current(nb, text):
            stale.append(chapter)
    for chapter in stale:
        run_chapter(chapter)
    if not stale:
        print("Every notebook is as its text says (--all runs them all the same).")


# Notebook to text


def tidy(text: str) -> str:
    """Format as `make test` asks for."""
    command = [sys.executable, "-m", "ruff", "format", "--quiet", "-"]
    done = subprocess.run(command, input=text, stdout=subprocess.PIPE, encoding="utf-8")
    return done.stdout if done.returncode == 0 else text  # a cell may not parse yet


def write_text(chapter: Chapter) -> bool:
    """Bring a Jupyter edit into the text; True if there was something to write."""
    text, nb = chapter.read_text(), chapter.read_notebook()
    source = nb
    if text is not None and (nb is None or not edited_in_jupyter(nb, text)):
        source = from_text(text)  # nothing to bring over; but its form may be off
    elif text is not None and edited_as_text(nb, text):
        sys.exit(both_edited(chapter))
    for i, cell in enumerate(source.cells):
        if images := ", ".join(cell.get("attachments", {})):
            sys.exit(
                f"error: cell {i + 1} of {chapter.notebook_path.name} holds {images}, "
                "which a text can't: save it as a file beside the notebooks, link to "
                "that, and delete the pasted one"
            )
    new = tidy(to_text(source))
    if new == text and source is not nb:
        return False
    write_aside(chapter.text_path, new)
    if source is nb:  # so that either file may be edited from here on
        step = {"text_sha256": text_hash(new), "cells_sha256": cells_hash(nb)}
        nb.metadata["tinygpt"] = {**record(nb), "in_step": step}
        write_notebook(chapter, nb)
    print(f"wrote {chapter.text_path.name}: `make notebooks` runs it")
    return True


def main(argv: list[str] | None = None) -> None:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as tinygpt_lib sets it, for torch
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog=HELP_EPILOG
    )
    parser.add_argument(
        "notebooks",
        nargs="*",
        metavar="NOTEBOOK",
        help="03, single_head, 03_single_head or a path to either file (default: all)",
    )
    parser.add_argument("--all", action="store_true", help="run unchanged ones too")
    parser.add_argument(
        "--text",
        action="store_true",
        help="the other way: bring edits made in Jupyter into the texts",
    )
    here = Path(__file__).resolve().parent.parent
    parser.add_argument("--root", type=Path, default=here, help="the project's folder")
    args = parser.parse_args(argv)
    chapters = find_chapters(args.root.resolve(), args.notebooks)
    names = {chapter.name for chapter in chapters}
    chapters += [
        each for each in find_solutions(args.root.resolve(), []) if each.name in names
    ]
    if not args.text:
        run(chapters, args.all)
    elif not sum([write_text(chapter) for chapter in chapters]):
        print("Every text already says what its notebook says.")


if __name__ == "__main__":
    main()
