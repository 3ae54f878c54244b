#!/usr/bin/env python
"""Workbooks: the chapters with holes in them, and what you wrote there.

    python tools/learn.py            the chapters, how far you are, what comes next
    python tools/learn.py 03         cut learn/03_single_head.ipynb, or update it
    python tools/learn.py --check    each hole: open, wrong or right; and what to read

A hole is a function with lines `#| hole: what to do`, in an exported cell of a chapter
or in an exercise of notebooks/text/solutions. Such a line takes away what follows, up
to the next one, to `#| end`, or to the end of the block. Hints stand below the cell, in
a comment of the markdown that no notebook shows; the checks are in course/checks. What
is right becomes a module of the reader's own library, learn/mygpt.
"""

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import textwrap
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import jupytext
import nbformat

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "notebooks")]

from tools import export, run  # noqa: E402

MINE = "mygpt"  # the reader's library
LIMIT = 20  # seconds of computing that a check may take: it takes a fraction of one
HINTS = re.compile(r"<!-- hints: (\S+)\n(.*?)-->\n*", re.DOTALL)
DOTS = re.compile(r"^\s+\.\.\.\s*(#.*)?$", re.MULTILINE)
NUMBERED = re.compile(r"^(?=\*\*\d+\.\*\*)", re.MULTILINE)
POINTER = re.compile(r"`make learn CHAPTER=\d\d` makes a workbook [^,]*, and\s+\[the")


# --- Holes ---


@dataclass
class Task:
    """A cell with holes: the course's code, what the reader gets, and the holes."""

    id: str  # hole-attention_weights, exercise-1-previous
    source: str  # without marks
    skeleton: str  # with `...` in the holes
    names: list[str]  # `attention_weights`, `AdamW.step`
    exercise: int = 0  # its number; 0: it is a cell of the chapter
    cell: str = ""  # the id of that


@dataclass
class Lesson:
    """A chapter: its notebook as the course has it, and its tasks."""

    name: str  # 03_single_head
    nb: nbformat.NotebookNode
    tasks: list[Task] = field(default_factory=list)
    hints: dict[str, list[str]] = field(default_factory=dict)  # of a hole, by its name
    imports: dict[str, str] = field(default_factory=dict)
    nouns: list[str] = field(default_factory=list)  # the chapters that have holes

    @property
    def noun(self) -> str:
        return self.name[3:]

    @property
    def holes(self) -> list[tuple[Task, str]]:
        return [(task, name) for task in self.tasks for name in task.names]

    @property
    def own_holes(self) -> list[str]:
        return [name for task, name in self.holes if not task.exercise]


@cache
def read_lessons(root: Path = ROOT) -> list[Lesson]:
    """The chapters that have holes."""
    lessons = []
    for chapter in run.find_chapters(root, []):
        path = chapter.text_path.parent / "solutions" / chapter.text_path.name
        texts = [run.from_text(chapter.read_text())]
        texts += [run.from_text(path.read_text("utf-8"))] if path.exists() else []
        lesson = Lesson(chapter.name, texts[0], imports=read_imports(texts[0]))
        for cell in chain(*(each.cells for each in texts)):
            if cell.cell_type == "markdown":
                for name, text in HINTS.findall(cell.source):
                    lesson.hints[name] = text.strip().split("\n\n")
            elif any(map(export.HOLE.fullmatch, cell.source.split("\n"))):
                lesson.tasks.append(read_task(cell))
        if lesson.tasks:
            lessons.append(lesson)
    nouns = [lesson.noun for lesson in lessons if lesson.own_holes]
    for lesson in lessons:
        lesson.nouns = nouns
    return lessons


def read_task(cell: nbformat.NotebookNode) -> Task:
    """The task of a marked cell."""
    rows = cell.source.split("\n")
    marks = [export.HOLE.fullmatch(row) for row in rows]
    holes = [at for at, mark in enumerate(marks, 1) if mark and mark[2] == "hole"]
    ends = spans(cell.source).items()
    names = [name for name, (a, b) in ends if any(a <= row <= b for row in holes)]
    bare = "\n".join(row for row, mark in zip(rows, marks, strict=True) if not mark)
    number = re.match(r"#\s*\|\s*exercise (\d+)", cell.source)
    kind = f"exercise-{number[1]}" if number else "hole"
    number, first = int(number[1]) if number else 0, names[0].replace(".", "-")
    return Task(f"{kind}-{first}", bare, cut(rows), names, number, cell.id)


def cut(rows: list[str]) -> str:
    """The rows with what stands in holes taken away."""
    kept, inside, blank = [], None, 0  # the indent of the hole that we are in
    for row in rows:
        if mark := export.HOLE.fullmatch(row):
            inside = None
            if mark[2] == "hole":
                inside, text = mark[1], f"Your code: {mark[3]}".removesuffix(": ")
                lines = textwrap.wrap(text, export.WIDTH - len(inside) - 2)
                kept += [f"{inside}# {line}" for line in lines]
                kept.append(f"{inside}...")
        elif inside is not None and not row.strip():
            blank += 1  # belongs to the hole, or stands behind it
        elif inside is not None and row.startswith(inside):
            blank = 0
        else:
            kept += [""] * blank * (inside is not None) + [row]
            inside, blank = None, 0
    return "\n".join(kept)


def spans(source: str) -> dict[str, tuple[int, int]]:
    """First and last row of each function and method, by name."""
    found = {}

    def look(nodes: list[ast.stmt], prefix: str) -> None:
        for node in nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                above = [each.lineno for each in node.decorator_list]
                found[prefix + node.name] = min([node.lineno, *above]), node.end_lineno
            elif isinstance(node, ast.ClassDef) and not prefix:
                look(node.body, f"{node.name}.")

    look(ast.parse(source).body, "")
    return found


def take(source: str, name: str) -> list[str]:
    first, last = spans(source)[name]
    return source.split("\n")[first - 1 : last]


def steps_left(source: str, name: str) -> int:
    """How many `...` a hole still holds; one that isn't there is open too."""
    try:
        return len(DOTS.findall("\n".join(take(source, name))))
    except KeyError:
        return 1
    except SyntaxError:  # somebody has been at work
        return 0


def compose(mine: str, task: Task, ours: list[str]) -> str:
    """The reader's cell with the course's code in some of its holes."""
    for name in ours:
        segment, where, rows = take(task.source, name), spans(mine), mine.split("\n")
        owner = name[: name.find(".") + 1]  # `AdamW.`; of a function, nothing
        ends = [last for each, (_, last) in where.items() if each.startswith(owner)]
        if name in where:
            first, last = where[name]
        elif not owner:  # the reader's cell has none: on top of it
            first, last, segment = 1, 0, [*segment, "", ""]
        elif ends:  # or at the end of the class
            first, last, segment = max(ends) + 1, max(ends), ["", *segment]
        else:
            return task.source
        mine = "\n".join([*rows[: first - 1], *segment, *rows[last:]])
    return mine


def defined(source: str) -> str:
    """The source without what it only tries out: calls, prints, values to look at."""
    rows = source.split("\n")
    for node in reversed(ast.parse(source).body):
        if isinstance(node, ast.Expr):
            del rows[node.lineno - 1 : node.end_lineno]
    return "\n".join(rows).strip("\n")


def imports_for(source: str, lesson: Lesson) -> str:
    """Those imports of the chapter's other cells that the source uses."""
    names = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Name)]
    stored = {n.id for n in names if isinstance(n.ctx, ast.Store)}
    used = {n.id for n in names} - stored
    return "\n".join(sorted({lesson.imports[n] for n in used & lesson.imports.keys()}))


def read_imports(nb: nbformat.NotebookNode) -> dict[str, str]:
    """The imports of the cells that aren't exported, by the name that each makes."""
    found = {}
    for cell in nb.cells:
        if cell.cell_type != "code" or cell.source.startswith(("%%", "#| export")):
            continue
        python = export.plain_python(cell.source.split("\n"))
        for node in filter(export.is_import, ast.parse("\n".join(python)).body):
            for each in node.names:
                node.names = [each]
                found[each.asname or each.name] = ast.unparse(node)
    return found


# --- Workbooks ---

HEAD = """\
# Finds the course, whose code your code is tried with. Run this cell first.
import os
import subprocess
import sys
from pathlib import Path

here = Path.cwd()
found = [each for each in (here, *here.parents) if (each / "tools/learn.py").exists()]
if not found and {url!r}:  # Colab, say: fetch the course, and what it needs
    subprocess.run(["git", "clone", "-q", "--depth=1", {url!r}, "course"], check=True)
    pip = [sys.executable, "-m", "pip", "install", "-q", "-e", "./course[course]"]
    subprocess.run(pip, check=True)
    found = [here / "course"]
if not found:
    raise SystemExit("put this workbook into the folder `learn` of the course")
sys.path[:0] = [str(found[0] / each) for each in ("notebooks", "{folder}", "")]
(found[0] / "{folder}").mkdir(exist_ok=True)
os.chdir(found[0] / "{folder}")
from course.checks import begin

check = begin("{name}")"""

WELCOME = """\
> **Workbook.** This is chapter {} with {} in it for you to fill, and
> {} in its exercises. A hole is a function in which lines are missing: each `...`
> stands for some, below a comment that says what to do. Delete the dots and write your
> code. The cell below checks it, as `make check` does for all chapters. What you leave
> open is taken from the course, so that the rest runs. Stuck? The hints fold out, and
> each says a little more than the one before."""

BESIDE = """\
**The course has changed the cell above.** Yours is as you left it. Ours is now:
```python
{source}
```
Delete this cell when you have taken from it what you want."""


def make_workbook(lesson: Lesson, folder: str = "learn") -> nbformat.NotebookNode:
    """The chapter with its holes, without outputs; each cell's metadata has its id."""
    kernel = {"kernelspec": run.METADATA["kernelspec"]}
    nb = nbformat.v4.new_notebook(metadata=kernel)
    git = ["git", "-C", str(ROOT), "remote", "get-url", "origin"]
    url = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    terms = partial(in_reader_terms, nouns=lesson.nouns)
    tasks = {task.cell: task for task in lesson.tasks if not task.exercise}
    own = len(lesson.own_holes)

    def add(id_: str, source: str, code: bool = False) -> None:
        new = nbformat.v4.new_code_cell if code else nbformat.v4.new_markdown_cell
        cell = new(source, id=re.sub(r"[^\w-]", "-", id_)[:64])
        cell.metadata["tinygpt"] = f"{id_} {short_hash(source)}"
        nb.cells.append(cell)

    def add_task(task: Task) -> None:
        add(task.id, terms(task.skeleton), code=True)
        several, hints = len(task.names) > 1, lesson.hints
        folds = [fold(hints[n], n if several else "") for n in task.names if n in hints]
        if folds:
            add(f"hints-{task.id}", "\n".join(folds).strip())
        names = ", ".join(f'"{name}"' for name in task.names)
        add(f"check-{task.id}", f"check({names})", code=True)

    for at, cell in enumerate(lesson.nb.cells):
        source = terms(HINTS.sub("", cell.source))
        if cell.id in tasks:
            add_task(tasks[cell.id])
        elif source.startswith("## Exercises"):  # below each one's text its cells
            for i, part in enumerate(NUMBERED.split(source)):
                add(f"{cell.id}-{i}", part.strip())
                for task in lesson.tasks:
                    if i and task.exercise == i:
                        add_task(task)
        elif source.strip():
            add(cell.id, source, code=cell.cell_type == "code")
        if at == 0:
            count = f"{own} hole{'s'[: own > 1]}", len(lesson.holes) - own
            add("welcome", WELCOME.format(lesson.name[:2], *count))
            head = HEAD.format(url=url, folder=folder, name=lesson.name)
            add("head", head, code=True)
    return nb


def fold(hints: list[str], name: str) -> str:
    """Hints as folds, each inside the one before it."""
    text, first = "", f"Hint for {name}" if name else "Hint"
    for hint in reversed(hints):
        label = first if hint is hints[0] else "More"
        opened = f"<details>\n<summary>{label}</summary>\n\n{hint}\n\n"
        text = f"{opened}{text}</details>\n"
    return text


def in_reader_terms(source: str, nouns: list[str]) -> str:
    """Imports from the reader's library, and pictures from where they are."""
    ours = rf"\btinygpt_lib\.({'|'.join(nouns)})\b(?= import)"
    source = re.sub(ours, rf"{MINE}.\1", source)
    source = source.replace("from course.models import", "from course.checks import")
    source = re.sub(r"\]\((drawings|solutions)/", r"](../notebooks/\1/", source)
    return POINTER.sub("[The", source)


def short_hash(source: str) -> str:
    return run.sha256(source.strip())[:8]


# --- Keeping what the reader wrote ---


def mark_of(cell: nbformat.NotebookNode) -> tuple[str, str]:
    """The cell's id, and the hash of what stood in it when it was cut."""
    id_, _, cut_hash = cell.metadata.get("tinygpt", "").partition(" ")
    return id_, cut_hash


def merge(old: nbformat.NotebookNode, new: nbformat.NotebookNode) -> list[str]:
    """Put the old workbook's own into the new one; say what was done.

    Everything that the reader wrote stays: edited cells stand in the place of ours, the
    reader's own behind the cell that they stood behind.
    """
    ids = {mark_of(cell)[0] for cell in new.cells}
    theirs, own, above, news = {}, {}, None, []
    for cell in old.cells:
        id_, was = mark_of(cell)
        if id_ in ids and id_ not in theirs:
            theirs[id_], above = cell, id_
        elif short_hash(cell.source) != was or id_ in ids or id_.startswith("beside-"):
            own.setdefault(above, []).append(cell)
    cells, changed = own.pop(None, []), 0
    for cell in new.cells:
        id_, is_now = mark_of(cell)
        there = theirs.get(id_, cell)
        was = mark_of(there)[1]
        edited = short_hash(there.source) != was
        if not edited and (id_ not in theirs or there.source != cell.source):
            there, changed = cell, changed + 1
        cells.append(there)
        if edited and is_now != was:  # by both
            there.metadata["tinygpt"] = f"{id_} {is_now}"
            beside = nbformat.v4.new_markdown_cell(BESIDE.format(source=cell.source))
            beside.metadata["tinygpt"] = f"beside-{id_} {short_hash(beside.source)}"
            cells.append(beside)
            news.append(f"{id_}: yours stays, the course's new one stands below it")
        cells += own.pop(id_, [])
    if changed or [each.source for each in cells] != [c.source for c in old.cells]:
        news.insert(0, f"{changed} cells of the course are new or changed")
    new.cells = cells
    return news


def write_workbook(path: Path, nb: nbformat.NotebookNode) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".py":
        nb.metadata["jupytext"] = {"cell_metadata_filter": "tinygpt,-all"}
        text = jupytext.writes(nb, fmt="py:percent")
    else:
        text = nbformat.writes(nb) + "\n"
    run.write_aside(path, text)


def read_cells(path: str | Path) -> list[str]:
    return [cell.source for cell in jupytext.read(path).cells]


def workbooks(lesson: Lesson, folder: Path) -> list[nbformat.NotebookNode]:
    """What the reader has of a chapter: its notebook, its script, both or none."""
    paths = [folder / f"{lesson.name}{suffix}" for suffix in (".ipynb", ".py")]
    return [nb for nb in map(jupytext.read, filter(Path.exists, paths))]


def written(task: Task, books: list[nbformat.NotebookNode]) -> str:
    """What stands in the reader's cell; the skeleton if nothing was written there."""
    for nb in books:
        # All cells of that id: one may have been split in two.
        cells = [cell for cell in nb.cells if mark_of(cell)[0] == task.id]
        source = "\n\n".join(cell.source for cell in cells)
        if cells and short_hash(source) != mark_of(cells[0])[1]:
            return source.replace(f"{MINE}.", "tinygpt_lib.")
    return task.skeleton


# --- Judging ---


class Judge:
    """A process that tries the reader's code: one that hangs or dies is replaced."""

    def __init__(self, limit: float = LIMIT):
        self.limit = limit
        self.process = None

    def start(self) -> None:
        path = os.pathsep.join([str(ROOT), str(ROOT / "notebooks")])
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from course.checks import serve; serve()"],
            env={**os.environ, "PYTHONPATH": path},
            encoding="utf-8",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def stop(self) -> int:
        """How the process ends, which it does when nothing more can come."""
        process, self.process = self.process, None
        if process:
            process.communicate()
        return process.returncode if process else 0

    def __call__(self, lesson: Lesson, name: str, source: str) -> str:
        """What is wrong with a hole's code; nothing if it is right."""
        if not self.process:
            self.start()
        job = lesson.noun, name, source, imports_for(source, lesson)
        self.process.stdin.write(json.dumps([self.limit, job]) + "\n")
        self.process.stdin.flush()
        if answer := self.process.stdout.readline():
            return json.loads(answer)
        if self.stop() == 1:  # its own way to say so
            return f"No end after {self.limit:g} s: is there a loop that never ends?"
        return "Your code ended Python itself. Does it run out of memory?"


class Verdict(NamedTuple):
    """What became of one hole."""

    state: str  # "open", "wrong", "right"
    message: str = ""


def judge_task(
    judge: Judge, lesson: Lesson, task: Task, mine: str
) -> tuple[dict[str, Verdict], str]:
    """The verdict on each hole of a cell, and its code for the library.

    A hole is right if it works among our code, or among the reader's other: so one that
    is wrong spoils no other.
    """
    try:
        ast.parse(mine)
    except SyntaxError as error:
        where = f"in line {error.lineno}: `{(error.text or '').strip()}`"
        wrong = Verdict("wrong", f"This is no Python yet, {where}\n{error.msg}")
        return dict.fromkeys(task.names, wrong), task.source
    left = {name: steps_left(mine, name) for name in task.names}
    verdicts = {}

    def trial(name: str, ours: list[str]) -> str:
        return judge(lesson, name, compose(mine, task, ours))

    for name, dots in left.items():
        if dots:
            of = f"{dots} of its `...` are left" if dots > 1 else "a `...` is left"
            verdicts[name] = Verdict("open", of if mine != task.skeleton else "")
            continue
        others = [other for other in task.names if other != name]
        message = trial(name, others)
        again = getattr(judge, "process", True)  # it hasn't died of it
        if message and again and any(not left[other] for other in others):
            alone, ours = message, [other for other in others if left[other]]
            message = trial(name, ours) and alone
        verdicts[name] = Verdict("wrong" if message else "right", message)
    while True:  # what is right by itself should also be right together
        right = [name for name in task.names if verdicts[name].state == "right"]
        ours = [name for name in task.names if name not in right]
        spoiled = {n: m for n in right if len(right) > 1 and (m := trial(n, ours))}
        if not spoiled:
            code = compose(mine, task, ours)
            return verdicts, defined(code) if right else task.source
        for name, message in spoiled.items():
            message = f"Right by itself, but not with what else is yours:\n{message}"
            verdicts[name] = Verdict("wrong", message)


# --- The reader's library ---


def code_of(lesson: Lesson, mine: dict[str, str]) -> str:
    """The text of a chapter with that code in its holes: headings and exports alone."""
    nb = nbformat.v4.new_notebook()
    tasks = {task.cell: task for task in lesson.tasks}
    for at, cell in enumerate(lesson.nb.cells):
        source = cell.source
        if cell.id in tasks:
            source = re.sub(r"\A#\s*\|\s*export\n", "", mine[tasks[cell.id].id])
            source = f"#| export\n{imports_for(source, lesson)}\n{source}"
        if source.startswith("#| export"):
            nb.cells.append(nbformat.v4.new_code_cell(source))
        elif cell.cell_type == "markdown" and (at == 0 or export.last_heading(source)):
            nb.cells.append(nbformat.v4.new_markdown_cell(source))
    return run.to_text(nb)


@cache
def module_text(name: str, nouns: tuple[str, ...], code: str) -> str:
    """The module that our exporter makes of it, among modules of the reader's."""
    book = export.Notebook(int(name[:2]), name[3:])
    export.read_cells(book, code)
    text = export.render(book).split("\n", 1)[1]
    return re.sub(rf"\btinygpt_lib\.({'|'.join(nouns)})\b", rf"{MINE}.\1", text)


@dataclass
class State:
    """What the last check found, by chapter and cell, and by chapter and hole."""

    sources: dict[str, str] = field(default_factory=dict)  # for the library
    verdicts: dict[str, Verdict] = field(default_factory=dict)

    def left(self, lesson: Lesson) -> list[str]:
        """The holes that were not right."""
        names = {key for key, verdict in self.verdicts.items() if verdict[0] == "right"}
        return [n for _, n in lesson.holes if f"{lesson.name} {n}" not in names]


def read_state(folder: Path) -> State:
    path = folder / MINE / "state.json"
    return State(**json.loads(path.read_text("utf-8"))) if path.exists() else State()


def write_library(lessons: list[Lesson], folder: Path, state: State) -> None:
    """learn/mygpt: what is right there is the reader's, all else the course's."""
    library, borrowed = folder / MINE, {}
    library.mkdir(parents=True, exist_ok=True)
    for lesson in lessons:
        keys = {task.id: f"{lesson.name} {task.id}" for task in lesson.tasks}
        mine = {t.id: state.sources.get(keys[t.id], t.source) for t in lesson.tasks}
        text = module_text(lesson.name, tuple(lesson.nouns), code_of(lesson, mine))
        left = [name for name in state.left(lesson) if name in lesson.own_holes]
        borrowed[lesson.noun] = left
        whose = f"the course's: {', '.join(left)}" if left else "all of it yours"
        head = f"# made from learn/{lesson.name}.ipynb by `make check`; {whose}\n"
        run.write_aside(library / f"{lesson.noun}.py", head + text)
    init = f'"""Your own library, chapter by chapter."""\n\nBORROWED = {borrowed!r}\n'
    run.write_aside(library / "__init__.py", init)
    run.write_aside(library / "state.json", json.dumps(asdict(state), indent=1))


# --- The commands ---


def learn(folder: Path, wanted: str, suffix: str, root: Path = ROOT) -> None:
    """Cut a workbook, or bring the one that is there up to date."""
    lessons = read_lessons(root)
    name = run.match_name(wanted, {each.name for each in run.find_chapters(root, [])})
    lesson = next((each for each in lessons if each.name == name), None)
    if lesson is None:
        sys.exit(f"{name} has no holes (yet): read it with `make lab`")
    new, path = make_workbook(lesson, folder.name), folder / f"{name}{suffix}"
    shown = path.relative_to(folder.parent)
    if not path.exists():
        write_workbook(path, new)
        print(f"{shown}: cut, {len(lesson.holes)} holes, exercises included")
    elif news := merge(jupytext.read(path), new):
        write_workbook(path, new)
        print(f"{shown}: brought up to date, with everything that you wrote")
        print(*(f"  {each}" for each in news), sep="\n")
    else:
        print(f"{shown}: as you left it")
    if not (folder / MINE / "__init__.py").exists():
        write_library(lessons, folder, read_state(folder))
    how = "" if suffix == ".py" else f" (`make learn CHAPTER={name[:2]} OPEN=1`)"
    print(f"Open it in JupyterLab{how} or VS Code; `make check` says what is right.")


def overview(folder: Path, root: Path = ROOT) -> None:
    """The chapters, how far the reader is, and what comes next."""
    lessons, found = read_lessons(root), read_state(folder)
    for lesson in lessons:
        state, n, books = "not begun", len(lesson.holes), workbooks(lesson, folder)
        if books:
            left = [
                steps_left(written(task, books), name) for task, name in lesson.holes
            ]
            right = n - len(found.left(lesson))
            state = f"{left.count(0)} of {n} filled, {right} right"
            state = "all right" if right == n else state
        print(f"{lesson.name:16} {n:3} holes   {state}")
    say_next(lessons, folder, found)


def say_next(lessons: list[Lesson], folder: Path, found: State) -> None:
    """The first chapter with something to do, from where the reader began."""
    begun = next((at for at, each in enumerate(lessons) if workbooks(each, folder)), 0)
    in_order = lessons[begun:] + lessons[:begun]
    if chapter := next((each.name for each in in_order if found.left(each)), None):
        print(f"Next: make learn CHAPTER={chapter[:2]}")
    else:
        print("Every hole of every chapter is filled, and right.")


def check(
    folder: Path,
    wanted: str = "",
    root: Path = ROOT,
    judge: Judge | None = None,
    steps: int = 0,
) -> dict[str, Verdict]:
    """Judge all that was written, say what to read, export what is right.

    When nothing of Part I is open, the reader's library trains its GPT (`steps`: for
    fewer steps than the chapter takes).
    """
    lessons, state, bad = read_lessons(root), read_state(folder), []
    name = run.match_name(wanted, {each.name for each in lessons}) if wanted else ""
    books = {each.name: workbooks(each, folder) for each in lessons}
    chosen = [each for each in lessons if books[each.name] and name in ("", each.name)]
    if not chosen:
        sys.exit(f"not begun: `make learn CHAPTER={wanted or '01'}` cuts the workbook")
    mine = judge or Judge()
    for lesson in chosen:
        print(lesson.name)
        for task in lesson.tasks:
            cell = written(task, books[lesson.name])
            verdicts, code = judge_task(mine, lesson, task, cell)
            state.sources[f"{lesson.name} {task.id}"] = code
            for name, verdict in verdicts.items():
                state.verdicts[f"{lesson.name} {name}"] = verdict
                shown = f"{name} (exercise)" if task.exercise else name
                print(f"  {shown:34} {verdict.state}")
                if verdict.state != "right":
                    bad.append((lesson.name, name, *verdict))
    if not judge:
        mine.stop()
    write_library(lessons, folder, state)
    if bad:  # the first wrong one, or else the first that is open
        chapter, name, which, message = min(bad, key=lambda each: each[2] != "wrong")
        print(f"\n{chapter}: {name} is {which}, so it comes next.")
        print(message or f"It waits in {folder.name}/, with its hints.")
    else:
        print("\nAll of that is right.")
        say_next(lessons, folder, state)
    part_one = [each for each in lessons if each.name < "09"]
    if not any({*state.left(each)} & {*each.own_holes} for each in part_one):
        print("\nEvery line of this GPT is yours.", flush=True)
        paths = [str(each) for each in (folder, ROOT / "notebooks", ROOT)]
        run_it = f"sys.path[:0] = {paths}; from course.checks import graduate"
        code = f"import sys; {run_it}; graduate({steps})"
        subprocess.run([sys.executable, "-c", code])
    return state.verdicts


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chapter", nargs="?", default="", help="03, or single_head")
    parser.add_argument("--check", action="store_true", help="judge what was written")
    parser.add_argument("--script", action="store_true", help="a script, no notebook")
    parser.add_argument("--steps", type=int, default=0, help="of your GPT, if fewer")
    parser.add_argument("--folder", type=Path, default=ROOT / "learn", help="yours")
    args = parser.parse_args(argv)
    if args.check:
        check(args.folder, args.chapter, steps=args.steps)
    elif args.chapter:
        learn(args.folder, args.chapter, ".py" if args.script else ".ipynb")
    else:
        overview(args.folder)


if __name__ == "__main__":
    main()
