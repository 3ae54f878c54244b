"""Write the library from the notebooks: cells marked `#| export` become its modules.

`notebooks/text/03_single_head.py` gives `tinygpt_lib/single_head.py`, always in this
direction. If anything would make the library wrong, every such thing is reported with
notebook, line and cell, and nothing is written.
"""

import argparse
import ast
import difflib
import itertools
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import jupytext
import nbformat
from IPython.core.inputtransformer2 import TransformerManager

REPO = Path(__file__).resolve().parent.parent
TEXT = "notebooks/text"
LIBRARY = "tinygpt_lib"
WIDTH = 88

FILE_NAME = re.compile(r"(\d\d)_([a-z][a-z0-9_]*)\.py")
CELL_MARKER = re.compile(r"\s*#\s*%%+(\s|$)")
MARK = re.compile(r"#\s*\|\s*export\s*")
HOLE = re.compile(r"(\s*)#\s*\|\s*(hole|end|exercise)\b:?\s*(.*)")  # see learn.py
TITLE = re.compile(r"# (\d\d) · (.+)\s+> ?(.+(?:\n>.*)*)")
HEADING = re.compile(r"#{1,6}\s+(?:\d\d · )?(.+?)(?:\s+#+)?\s*")

EXAMPLES = """examples:
  python tools/export.py           write what changed
  python tools/export.py --check   write nothing, show what would change
"""


@dataclass
class Cell:
    """A code cell; `number` is the [n] that a clean run shows beside it in Jupyter."""

    number: int
    line: int  # of its first row, in the text file; rows count from 1
    heading: str  # the nearest one above, in markdown
    rows: list[str]
    exported: bool = False
    tree: ast.Module = field(default_factory=lambda: ast.Module([], []))


@dataclass
class Notebook:
    """A numbered notebook, and what stands between it and its module."""

    number: int
    noun: str
    title: str = ""
    question: str = ""
    cells: list[Cell] = field(default_factory=list)
    problems: list[tuple[int, str]] = field(default_factory=list)
    broken: bool = False  # an exported cell does not parse, so its names are unknown

    @property
    def path(self) -> str:
        return f"{TEXT}/{self.number:02}_{self.noun}.py"

    @property
    def exported(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.exported]

    def place(self, cell: Cell, row: int) -> str:
        return f"{self.path}:{cell.line + row - 1}: cell [{cell.number}]"

    def refuse(self, cell: Cell, row: int, message: str) -> None:
        problem = cell.line + row - 1, f"{self.place(cell, row)}: {message}"
        self.problems.append(problem)


class Line(NamedTuple):
    """A line of a module, and the row of the cell that it came from, if any."""

    text: str
    cell: Cell | None = None
    row: int = 0


# --- From text to cells ---


def read_notebooks(root: Path) -> tuple[list[Notebook], list[str]]:
    """All notebooks in number order, and what is wrong with them as files."""
    notebooks, problems = [], []
    for path in sorted((root / TEXT).glob("*.py")):
        name = FILE_NAME.fullmatch(path.name)
        if not name:
            problems.append(f"{TEXT}/{path.name}: rename it like 03_single_head.py")
            continue
        notebook = Notebook(int(name[1]), name[2])
        notebooks.append(notebook)
        try:
            read_cells(notebook, path.read_text(encoding="utf-8"))
        except nbformat.ValidationError as error:
            problems.append(f"{notebook.path}:1: mend its header: {error.message}")
    for one, other in itertools.combinations(notebooks, 2):
        for same in ("number", "noun"):
            if getattr(one, same) == getattr(other, same):
                message = f"has the same {same} as {one.path}: rename one"
                problems.append(f"{other.path}: {message}")
    return notebooks, problems


def read_cells(notebook: Notebook, text: str) -> None:
    """Fill in the notebook's title, question and code cells."""
    heading, numbers = "", itertools.count(1)
    cells = jupytext.reads(text, fmt="py:percent").cells
    markdown = [cell.source for cell in cells if cell.cell_type == "markdown"]
    read_title(notebook, markdown[0] if markdown else "")
    for cell, line in zip(cells, cell_lines(text), strict=True):
        if cell.cell_type == "markdown":
            heading = last_heading(cell.source) or heading
        elif cell.cell_type == "code":
            rows = cell.source.split("\n")
            read_code(notebook, Cell(next(numbers), line, heading, rows))


def cell_lines(text: str) -> list[int]:
    """The line of each cell's first row.

    jupytext does not tell, but it reads options from the markers: so give each marker
    its line number as an option, and let it decide which of them do start a cell.
    """
    labelled = [
        f"{line} line={number + 1}" if CELL_MARKER.match(line) else line
        for number, line in enumerate(text.split("\n"), start=1)
    ]
    cells = jupytext.reads("\n".join(labelled), fmt="py:percent").cells
    return [cell.metadata.get("line", 1) for cell in cells]


def read_title(notebook: Notebook, source: str) -> None:
    title = TITLE.match(source)
    if title and int(title[1]) == notebook.number:
        notebook.title = title[2].strip()
        notebook.question = " ".join(title[3].replace("\n>", " ").split())
    else:
        wanted = f"`# {notebook.number:02} · Title`, and below it `> Question?`"
        problem = f"{notebook.path}:1: the first markdown cell must hold {wanted}"
        notebook.problems.append((1, problem))


def last_heading(markdown: str) -> str:
    """The last heading of a markdown cell, comments in fenced code left aside."""
    prose = re.sub(r"^(```|~~~).*?^\1", "", markdown, flags=re.DOTALL | re.MULTILINE)
    headings = [HEADING.fullmatch(line) for line in prose.split("\n")]
    return next((found[1] for found in reversed(headings) if found), "")


def read_code(notebook: Notebook, cell: Cell) -> None:
    """Add the cell to the notebook, parsed; refuse what can't be Python in a module."""
    notebook.cells.append(cell)
    marks = [row for row, text in enumerate(cell.rows, 1) if MARK.fullmatch(text)]
    cell.exported = marks[:1] == [1]
    for row in marks[cell.exported :]:
        notebook.refuse(cell, row, "`#| export` must be the first line of its cell")

    python = plain_python(cell.rows)
    for row, (text, call) in enumerate(zip(cell.rows, python, strict=False), 1):
        if cell.exported and text != call and "get_ipython()" in call:
            message = (
                f"`{text.strip()}` is a magic or shell command (or a comment that "
                "jupytext takes for one): keep it out of exported cells"
            )
            notebook.refuse(cell, row, message)
    try:
        cell.tree = ast.parse("\n".join(python))
        if cell.exported:  # compiling also finds a `return` outside a function
            compile("\n".join(python), notebook.path, "exec", dont_inherit=True)
    except SyntaxError as error:
        if cell.rows[0].startswith("%%"):
            return  # another language
        notebook.broken |= cell.exported
        row = error.lineno or 1
        text = "".join(python[row - 1 : row]).strip()  # jupytext uncomments `# ls this`
        notebook.refuse(cell, row, f"`{text}` does not parse: {error.msg}")
    cell.rows = python


def plain_python(rows: list[str]) -> list[str]:
    """The rows with each magic turned into a call, as IPython would do it.

    A first row `%%time` becomes a comment, so that the code below it is still seen.
    """
    if rows[0].startswith("%%") or not rows[0].strip():
        rows = ["#" + rows[0], *rows[1:]]
    return TransformerManager().transform_cell("\n".join(rows)).split("\n")[:-1]


# --- What is refused ---


def find_problems(root: Path, notebooks: list[Notebook]) -> list[str]:
    """Everything that keeps these notebooks from becoming a library, one line each."""
    owners = check_owners(notebooks)
    for notebook in notebooks:
        for cell in notebook.cells:
            check_imports(notebook, cell)
            check_order(notebook, cell, owners)
        check_hoisting(notebook)
        if notebook.exported and not notebook.broken:
            check_names(notebook)
    found = [text for book in notebooks for _, text in sorted(set(book.problems))]
    return found + unowned_modules(root, notebooks)


def check_owners(notebooks: list[Notebook]) -> dict[str, Notebook]:
    """Map each public name and each module to its notebook; refuse a second owner."""
    owners, places = {}, {}
    for notebook in notebooks:
        for name, cell, row in definitions(notebook):
            if name in places:
                message = f"`{name}` is exported already at {places[name]}: rename one"
                notebook.refuse(cell, row, message)
            else:
                owners[name] = notebook
                places[name] = notebook.place(cell, row)
    return owners | {notebook.noun: notebook for notebook in notebooks}


def definitions(notebook: Notebook) -> list[tuple[str, Cell, int]]:
    """The public names of the notebook's module, each with its cell and row."""
    return [
        (name, cell, row)
        for cell in notebook.exported
        for statement in cell.tree.body
        for name, row in dict(public_names(statement)).items()
    ]


def public_names(node: ast.AST) -> Iterator[tuple[str, int]]:
    """The public names that a top-level statement defines, with their rows."""
    names = []
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            names = [node.name]
        case ast.Assign() | ast.AnnAssign(value=ast.expr()):
            targets = getattr(node, "targets", None) or [node.target]
            parts = [part for target in targets for part in ast.walk(target)]
            names = [
                part.id
                for part in parts
                if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
            ]
        case ast.If() | ast.Try() | ast.ExceptHandler() | ast.With():
            for child in ast.iter_child_nodes(node):
                yield from public_names(child)
    yield from ((name, node.lineno) for name in names if not name.startswith("_"))


def check_imports(notebook: Notebook, cell: Cell) -> None:
    """Refuse star and relative imports; in an exported cell the bare package, too."""
    by_module = f"write `from {LIBRARY}.module import name`"
    for node in filter(is_import, ast.walk(cell.tree)):
        touched = [getattr(node, "module", None), *(each.name for each in node.names)]
        if getattr(node, "level", 0):
            message = f"a relative import does not work in a notebook: {by_module}"
        elif "*" in touched:
            message = "a star import hides where names come from: name what is used"
        elif cell.exported and LIBRARY in touched:
            message = f"an exported cell must name the module: {by_module}"
        elif cell.exported and any(is_above(name or "") for name in touched):
            message = "an exported cell can't use what stands above the lessons"
        else:
            continue
        notebook.refuse(cell, node.lineno, message)


def is_above(module: str) -> bool:
    """Whether a module is made for the reader's cells, or around the lessons."""
    above = "course.", f"{LIBRARY}.runs.", f"{LIBRARY}.commands."
    return f"{module}.".startswith(above)


def check_order(notebook: Notebook, cell: Cell, owners: dict[str, Notebook]) -> None:
    """Refuse what reaches into the notebook's own module or a later one's."""
    for node in ast.walk(cell.tree):
        for name in reached(node):
            owner = owners.get(name)
            if owner and owner.number >= notebook.number:
                later = f"{owner.path}, which comes later"
                whose = "this notebook" if owner is notebook else later
                message = f"`{name}` is made in {whose}: use earlier notebooks only"
                notebook.refuse(cell, node.lineno, message)


def reached(node: ast.AST) -> list[str]:
    """The modules or names that an import, or `tinygpt_lib.name`, takes from there."""
    match node:
        case ast.Import(names=names):
            paths = [alias.name for alias in names]
        case ast.ImportFrom(module=str(module), names=names, level=0):
            paths = [f"{module}.{alias.name}" for alias in names]
        case ast.Attribute(value=ast.Name(id=module), attr=name):
            paths = [f"{module}.{name}"]
        case _:
            paths = []
    inside = [path.split(".")[1] for path in paths if path.startswith(f"{LIBRARY}.")]
    return list(dict.fromkeys(inside))


def check_hoisting(notebook: Notebook) -> None:
    """Refuse one name for two imports, since both move to the module's top."""
    first = {}
    for cell in notebook.exported:
        for node in filter(is_import, cell.tree.body):
            module = getattr(node, "module", None)
            for each in node.names:
                name = each.asname or each.name
                source = f"{module}.{each.name}" if module else each.name
                if first.setdefault(name, source) != source:
                    message = f"`{name}` was `{first[name]}` above: use two names"
                    notebook.refuse(cell, node.lineno, message)


def is_import(node: ast.AST) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def check_names(notebook: Notebook) -> None:
    """Refuse names that the module would not know, found by ruff's F821."""
    lines = module_lines(notebook)
    options = ("--select=F821", "--ignore-noqa", "--output-format=json", "--exit-zero")
    refused = {line for line, _ in notebook.problems}
    for found in json.loads(ruff("check", *options, text=as_text(lines))):
        _, cell, row = lines[found["location"]["row"] - 1]
        message = found["message"]
        if message.endswith("`get_ipython`") and cell.line + row - 1 in refused:
            continue  # what a magic became
        if found["code"] == "F821":
            message += " in the exported cells: define or import it in one of them"
        notebook.refuse(cell, row, message)


def unowned_modules(root: Path, notebooks: list[Notebook]) -> list[str]:
    nouns = {notebook.noun for notebook in notebooks}
    return [
        f"{LIBRARY}/{path.name}: no notebook owns this module: delete it, or put it "
        "into basics, runs or commands if it is written by hand"
        for path in sorted((root / LIBRARY).glob("*.py"))
        if not path.name.startswith("_") and path.stem not in nouns
    ]


# --- From cells to module ---


def render(notebook: Notebook) -> str:
    """The text of the notebook's module, sorted and formatted by ruff."""
    text = as_text(module_lines(notebook))
    text = ruff("check", "--select=I,RUF022", "--fix-only", "--quiet", text=text)
    return ruff("format", text=text)


def module_lines(notebook: Notebook) -> list[Line]:
    """The module before formatting: docstring, imports, `__all__`, sections."""
    imports, body, heading = [], [], ""
    for cell in notebook.exported:
        hoisted, code = split_imports(cell)
        imports += hoisted
        if code and cell.heading != heading:
            heading = cell.heading
            body += [Line(f"# --- {heading} ---"), Line("")]
        body += [*code, Line("")] if code else []
    names = sorted({name for name, _, _ in definitions(notebook)})
    head = [f"# generated from {notebook.path}: edit there", *docstring(notebook), ""]
    tail = ["", f"__all__ = {names}", ""]
    return [*map(Line, head), *imports, *map(Line, tail), *body]


def split_imports(cell: Cell) -> tuple[list[Line], list[Line]]:
    """The cell's top-level imports, each with the comment above it, and its code."""
    hoisted, end = set(), 1  # row 1 is the mark
    for node in cell.tree.body:
        first = node.lineno
        if is_import(node):
            while first - 1 > end and cell.rows[first - 2].startswith("#"):
                first -= 1
            hoisted.update(range(first, node.end_lineno + 1))
        end = node.end_lineno
    lines = [Line(text, cell, row) for row, text in enumerate(cell.rows, 1)][1:]
    imports = [line for line in lines if line.row in hoisted]
    code = [
        line
        for line in lines
        if line.row not in hoisted and not HOLE.fullmatch(line.text)
    ]
    filled = [at for at, line in enumerate(code) if line.text.strip()]
    return imports, code[filled[0] : filled[-1] + 1] if filled else []


def docstring(notebook: Notebook) -> list[str]:
    """Title and question as a docstring: on one line where they fit, else wrapped."""
    title, question = (
        text.replace("\\", "\\\\").replace('"', '\\"')
        for text in (notebook.title, notebook.question)
    )
    line = f'"""{title}: {uncapitalised(question)}"""'
    if len(line) <= WIDTH:
        return [line]
    paragraphs = [f'"""{title}.', "", question, '"""']
    return [line for text in paragraphs for line in textwrap.wrap(text, WIDTH) or [""]]


def uncapitalised(sentence: str) -> str:
    """`How far?` gives `how far?`, but an acronym or a lone `I` stays as it is."""
    first, _, _ = sentence.partition(" ")
    if first == "I" or first[1:] != first[1:].lower():
        return sentence
    return sentence[:1].lower() + sentence[1:]


def as_text(lines: list[Line]) -> str:
    return "".join(f"{line.text}\n" for line in lines)


def ruff(command: str, *options: str, text: str) -> str:
    """Run a ruff command over the text, with the project's own settings."""
    # The package is named, for ruff looks for its folder, and that may not exist yet.
    first_party = f'lint.isort.known-first-party=["{LIBRARY}"]'
    settings = ["--config", str(REPO / "pyproject.toml"), "--config", first_party]
    run = [sys.executable, "-m", "ruff", command, *settings, *options, "-"]
    done = subprocess.run(
        run, input=text, stdout=subprocess.PIPE, encoding="utf-8", check=True
    )
    return done.stdout


# --- The command ---


def differences(modules: dict[Path, str], root: Path) -> str:
    """What writing the modules would change, as a unified diff."""
    diff = []
    for path, text in modules.items():
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        lines = old.splitlines(), text.splitlines()
        name = str(path.relative_to(root))
        diff += difflib.unified_diff(*lines, name, f"{name} (notebook)", lineterm="")
    return "\n".join(diff)


def write(modules: dict[Path, str], root: Path) -> None:
    """Write the modules whose text changed, and say which."""
    for path, text in modules.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(root)}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Write the library's modules from the notebooks' exported cells.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    parser.add_argument("--root", type=Path, default=REPO, help="the repository")
    options = parser.parse_args(arguments)
    if not options.root.is_dir():
        parser.error(f"--root must be a folder, and {options.root} is none")

    notebooks, problems = read_notebooks(options.root)
    problems += find_problems(options.root, notebooks)
    if problems:
        print(*problems, sep="\n", file=sys.stderr)
        return 1

    library = options.root / LIBRARY
    modules = {library / f"{book.noun}.py": render(book) for book in notebooks}
    if not options.check:
        write(modules, options.root)
    elif diff := differences(modules, options.root):
        print(diff)
        print(f"{LIBRARY} is not what the notebooks say: make export", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
