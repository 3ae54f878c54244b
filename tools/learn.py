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
import multiprocessing
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import chain
from pathlib import Path

import jupytext
import nbformat

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "notebooks")]

from tools import export, run  # noqa: E402

MINE = "mygpt"  # the reader's library
LIMIT = 20  # seconds that a hole's checks may take: they take a fraction of one
HINTS = re.compile(r"<!-- hints: (\S+)\n(.*?)-->\n*", re.DOTALL)
DOTS = "..."
POINTER = re.compile(r"`make learn CHAPTER=\d\d` cuts a workbook [^,]*, and\s+\[the")


# --- Holes ---


@dataclass
class Task:
    """A cell with holes: the course's code, what the reader gets, and the holes."""

    id: str
    source: str  # without marks
    skeleton: str  # with `...` in the holes
    names: list[str]  # `attention_weights`, `AdamW.step`


@dataclass
class Lesson:
    """A chapter: its notebook as the course has it, and its tasks by cell id."""

    name: str  # 03_single_head
    nb: nbformat.NotebookNode
    tasks: dict[str, Task] = field(default_factory=dict)
    exercises: dict[int, list[Task]] = field(default_factory=dict)
    hints: dict[str, list[str]] = field(default_factory=dict)  # of a hole, by its name
    imports: dict[str, str] = field(default_factory=dict)
    nouns: list[str] = field(default_factory=list)  # the chapters that have holes

    @property
    def noun(self) -> str:
        return self.name[3:]

    @property
    def holes(self) -> list[tuple[Task, str]]:
        return [(task, name) for task in self.all for name in task.names]

    @property
    def all(self) -> list[Task]:
        return [*self.tasks.values(), *chain(*self.exercises.values())]


def read_lessons(root: Path = ROOT) -> list[Lesson]:
    """The chapters that have holes."""
    texts = sorted((root / "notebooks/text").rglob("*.py"))
    return lessons_of(root, tuple((path, path.stat().st_mtime_ns) for path in texts))


@cache
def lessons_of(root: Path, stamp: tuple) -> list[Lesson]:
    lessons = []
    for chapter in run.find_chapters(root, []):
        text = chapter.read_text()
        path = chapter.text_path.parent / "solutions" / chapter.text_path.name
        if not is_marked(text) and not path.exists():
            continue
        lesson = Lesson(chapter.name, run.from_text(text))
        lesson.imports = read_imports(lesson.nb)
        solutions = (
            run.from_text(path.read_text("utf-8")).cells if path.exists() else []
        )
        for cell in [*lesson.nb.cells, *solutions]:
            if cell.cell_type == "markdown":
                for name, text in HINTS.findall(cell.source):
                    lesson.hints[name] = text.strip().split("\n\n")
            elif is_marked(cell.source):
                if number := re.match(r"#\s*\|\s*exercise (\d+)", cell.source):
                    task = read_task(cell.source, f"exercise-{number[1]}")
                    lesson.exercises.setdefault(int(number[1]), []).append(task)
                else:
                    lesson.tasks[cell.id] = read_task(cell.source, "hole")
        lessons.append(lesson)
    nouns = [lesson.noun for lesson in lessons if lesson.tasks]
    for lesson in lessons:
        lesson.nouns = nouns
    return lessons


def is_marked(source: str) -> bool:
    return any(export.HOLE.fullmatch(row) for row in source.split("\n"))


def read_task(source: str, kind: str) -> Task:
    """The task of a marked cell."""
    rows = source.split("\n")
    marks = [export.HOLE.fullmatch(row) for row in rows]
    holes = [at for at, mark in enumerate(marks, 1) if mark and mark[2] == "hole"]
    where = spans(source)
    names = [
        name for name, (a, b) in where.items() if any(a <= row <= b for row in holes)
    ]
    bare = "\n".join(row for row, mark in zip(rows, marks, strict=True) if not mark)
    first = names[0].replace(".", "-")
    return Task(f"{kind}-{first}", bare, cut(rows), names)


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
                kept.append(inside + DOTS)
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
    if name not in spans(source):
        return 1
    tree = ast.parse(textwrap.dedent("\n".join(take(source, name))))
    return sum(
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and node.value.value is ...
        for node in ast.walk(tree)
    )


def compose(mine: str, task: Task, ours: list[str]) -> str:
    """The reader's cell with the course's code in some of its holes."""
    for name in ours:
        segment, where = take(task.source, name), spans(mine)
        rows = mine.split("\n")
        if name in where:
            first, last = where[name]
        else:  # the reader's cell has none: at the end of the class, or of the cell
            inside = [b for each, (_, b) in where.items() if same_class(each, name)]
            if "." in name and not inside:
                return task.source
            first, last = (max(inside) + 1, max(inside)) if inside else (1, 0)
            segment = ["", *segment] if inside else [*segment, "", ""]
        mine = "\n".join([*rows[: first - 1], *segment, *rows[last:]])
    return mine


def same_class(one: str, other: str) -> bool:
    return "." in other and one.split(".")[0] == other.split(".")[0]


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
    return "\n".join(
        sorted({lesson.imports[name] for name in used & lesson.imports.keys()})
    )


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
> **Workbook.** This is chapter {number} with {holes} in it for you to fill, and
> {more} in its exercises. A hole is a function in which lines are missing: each `...`
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
    url = subprocess.run(
        ["git", "-C", str(ROOT), "remote", "get-url", "origin"],
        capture_output=True,
        text=True,
    ).stdout.strip()
    skipping, terms = False, partial(in_reader_terms, nouns=lesson.nouns)

    def add(id_: str, source: str, code: bool = False) -> None:
        new = nbformat.v4.new_code_cell if code else nbformat.v4.new_markdown_cell
        cell = new(source, id=re.sub(r"[^\w-]", "-", id_)[:64])
        cell.metadata["tinygpt"] = f"{id_} {short_hash(source)}"
        nb.cells.append(cell)

    def add_task(task: Task) -> None:
        add(task.id, terms(task.skeleton), code=True)
        folded = "\n".join(
            fold(lesson.hints[name], name if len(task.names) > 1 else "")
            for name in task.names
            if name in lesson.hints
        )
        if folded:
            add(f"hints-{task.id}", folded.strip())
        names = ", ".join(f'"{name}"' for name in task.names)
        add(f"check-{task.id}", f"check({names})", code=True)

    for at, cell in enumerate(lesson.nb.cells):
        source = HINTS.sub("", cell.source)
        if cell.cell_type == "markdown":
            skipping &= not source.startswith("## ")
            skipping |= source.startswith("## Solutions")
            if source.strip() and not skipping:
                add_prose(add, add_task, lesson, cell.id, terms(source))
        elif skipping:
            continue
        elif cell.id in lesson.tasks:
            add_task(lesson.tasks[cell.id])
        elif source.strip():
            add(cell.id, terms(source), code=cell.cell_type == "code")
        if at == 0:
            holes = sum(len(task.names) for task in lesson.tasks.values())
            more, counted = len(lesson.holes) - holes, f"{holes} hole{'s'[: holes > 1]}"
            said = {"number": lesson.name[:2], "holes": counted, "more": more}
            add("welcome", WELCOME.format(**said))
            add(
                "head", HEAD.format(url=url, folder=folder, name=lesson.name), code=True
            )
    return nb


def add_prose(add, add_task, lesson: Lesson, id_: str, source: str) -> None:
    """A markdown cell; below each exercise's text its cells."""
    if not source.startswith("## Exercises") or not lesson.exercises:
        return add(id_, source)
    for at, part in enumerate(re.split(r"^(?=\*\*\d+\.\*\*)", source, flags=re.M)):
        add(f"{id_}-{at}", part.strip())
        for task in lesson.exercises.get(at, []):
            add_task(task)


def fold(hints: list[str], name: str) -> str:
    """Hints as folds, each inside the one before it."""
    text = ""
    for hint in reversed(hints):
        label = (
            "More" if hint is not hints[0] else f"Hint for {name}" if name else "Hint"
        )
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
        there = theirs.get(id_)
        edited = there is not None and short_hash(there.source) != mark_of(there)[1]
        if edited and is_now != mark_of(there)[1]:  # by both
            there.metadata["tinygpt"] = f"{id_} {is_now}"
            source = BESIDE.format(source=cell.source)
            beside = nbformat.v4.new_markdown_cell(source)
            beside.metadata["tinygpt"] = f"beside-{id_} {short_hash(source)}"
            cells += [there, beside]
            news.append(f"{id_}: yours stays, the course's new one stands below it")
        elif there is not None and (edited or there.source == cell.source):
            cells.append(there)
        else:
            cells.append(cell)
            changed += 1
        cells += own.pop(id_, [])
    if changed or [each.source for each in cells] != [c.source for c in old.cells]:
        news.insert(0, f"{changed} cells of the course are new or changed")
    new.cells = cells
    return news


def write_workbook(path: Path, nb: nbformat.NotebookNode) -> None:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".py":
        nb.metadata["jupytext"] = {"cell_metadata_filter": "tinygpt,-all"}
        text = jupytext.writes(nb, fmt="py:percent")
    else:
        text = nbformat.writes(nb) + "\n"
    run.write_aside(path, text)


def workbooks(lesson: Lesson, folder: Path) -> list[nbformat.NotebookNode]:
    """What the reader has of a chapter: its notebook, its script, both or none."""
    paths = [folder / f"{lesson.name}{suffix}" for suffix in (".ipynb", ".py")]
    return [nb for nb in map(jupytext.read, filter(Path.exists, paths))]


def written(lesson: Lesson, task: Task, folder: Path) -> str:
    """What stands in the reader's cell; the skeleton if nothing was written there."""
    for nb in workbooks(lesson, folder):
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
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()  # so that its end is seen when the process dies
        self.pipe.recv()  # torch is being imported

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.join()
            self.process = None

    def __call__(self, lesson: Lesson, name: str, source: str) -> str:
        """What is wrong with a hole's code; nothing if it is right."""
        if not self.process:
            self.start()
        self.pipe.send((lesson.noun, name, source, imports_for(source, lesson)))
        problem = f"No end after {self.limit:g} s: is there a loop that never ends?"
        try:
            if self.pipe.poll(self.limit):
                return self.pipe.recv()
        except (EOFError, ConnectionError):
            problem = "Your code ended Python itself. Does it run out of memory?"
        self.stop()
        return problem


def serve(pipe) -> None:
    from course.checks import serve

    serve(pipe)


@dataclass
class Verdict:
    """What became of one hole."""

    state: str  # "open", "wrong", "right"
    message: str = ""


OPEN = Verdict("open")


def judge_task(
    judge: Judge, lesson: Lesson, task: Task, mine: str
) -> tuple[dict[str, Verdict], str]:
    """The verdict on each hole of a cell, and its code for the library.

    A hole is right if it works among our code, or among the reader's other: so one that
    is wrong spoils no other.
    """
    try:
        left = {name: steps_left(mine, name) for name in task.names}
    except SyntaxError as error:
        line = (error.text or "").strip()
        message = (
            f"This is no Python yet, in line {error.lineno}: `{line}`\n{error.msg}"
        )
        return {name: Verdict("wrong", message) for name in task.names}, task.source
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
        if message and judge.process and any(not left[other] for other in others):
            alone, ours = message, [other for other in others if left[other]]
            message = trial(name, ours) and alone
        verdicts[name] = Verdict("wrong" if message else "right", message)
    while True:  # what is right by itself should also be right together
        right = [name for name in task.names if verdicts[name].state == "right"]
        ours = [name for name in task.names if name not in right]
        spoiled = {n: m for n in right if len(right) > 1 and (m := trial(n, ours))}
        if not spoiled:
            return verdicts, defined(
                compose(mine, task, ours)
            ) if right else task.source
        for name, message in spoiled.items():
            message = f"Right by itself, but not with what else is yours:\n{message}"
            verdicts[name] = Verdict("wrong", message)


# --- The reader's library ---


def code_of(lesson: Lesson, mine: dict[str, str]) -> str:
    """The text of a chapter with that code in its holes: headings and exports alone."""
    nb = nbformat.v4.new_notebook()
    for at, cell in enumerate(lesson.nb.cells):
        task, source = lesson.tasks.get(cell.id), cell.source
        if task:
            source = re.sub(r"\A#\s*\|\s*export\n", "", mine[task.id])
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


def write_library(
    lessons: list[Lesson],
    folder: Path,
    sources: dict[str, str],
    verdicts: dict[str, Verdict],
) -> None:
    """learn/mygpt: what is right there is the reader's, all else the course's."""
    library, borrowed = folder / MINE, {}
    library.mkdir(parents=True, exist_ok=True)
    for lesson in lessons:
        if not lesson.tasks:
            continue
        mine = {
            task.id: sources.get(f"{lesson.name} {task.id}", task.source)
            for task in lesson.tasks.values()
        }
        text = module_text(lesson.name, tuple(lesson.nouns), code_of(lesson, mine))
        open_ = [
            name
            for task, name in lesson.holes
            if task.id.startswith("hole")
            and verdicts.get(f"{lesson.name} {name}", OPEN).state != "right"
        ]
        borrowed[lesson.noun] = open_
        whose = f"the course's: {', '.join(open_)}" if open_ else "all of it yours"
        head = f"# made from learn/{lesson.name}.ipynb by `make check`; {whose}\n"
        run.write_aside(library / f"{lesson.noun}.py", head + text)
    init = f'"""Your own library, chapter by chapter."""\n\nBORROWED = {borrowed!r}\n'
    run.write_aside(library / "__init__.py", init)


# --- The commands ---


def read_state(folder: Path) -> tuple[dict[str, str], dict[str, Verdict]]:
    """What the last check found: code for the library, and the verdicts."""
    path = folder / MINE / "state.json"
    state = json.loads(path.read_text("utf-8")) if path.exists() else {}
    verdicts = {key: Verdict(*each) for key, each in state.get("verdicts", {}).items()}
    return state.get("sources", {}), verdicts


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
        write_library(lessons, folder, *read_state(folder))
    how = "" if suffix == ".py" else f" (`make learn CHAPTER={name[:2]} OPEN=1`)"
    print(f"Open it in JupyterLab{how} or VS Code; `make check` says what is right.")


def overview(folder: Path, root: Path = ROOT) -> None:
    """The chapters, how far the reader is, and what comes next."""
    lessons, (_, verdicts) = read_lessons(root), read_state(folder)
    for lesson in lessons:
        state = "not begun"
        if workbooks(lesson, folder):
            mine = [
                (written(lesson, task, folder), name) for task, name in lesson.holes
            ]
            filled = sum(not is_open(source, name) for source, name in mine)
            right = len(mine) - len(not_right(lesson, verdicts))
            state = f"{filled} of {len(mine)} filled, {right} right"
            state = "all right" if right == len(mine) else state
        print(f"{lesson.name:16} {len(lesson.holes):3} holes   {state}")
    say_next(lessons, verdicts)


def not_right(lesson: Lesson, verdicts: dict[str, Verdict]) -> list[tuple[Task, str]]:
    """The holes that were not right when they were last looked at."""
    states = {key for key, verdict in verdicts.items() if verdict.state == "right"}
    return [each for each in lesson.holes if f"{lesson.name} {each[1]}" not in states]


def say_next(lessons: list[Lesson], verdicts: dict[str, Verdict]) -> None:
    for lesson in lessons:
        if not_right(lesson, verdicts):
            return print(f"Next: make learn CHAPTER={lesson.name[:2]}")
    print("Every hole of every chapter is filled, and right.")


def is_open(source: str, name: str) -> bool:
    try:
        return bool(steps_left(source, name))
    except SyntaxError:
        return False


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
    lessons = read_lessons(root)
    sources, verdicts = read_state(folder)
    chosen = [each for each in lessons if workbooks(each, folder)]
    if wanted:
        name = run.match_name(wanted, {lesson.name for lesson in lessons})
        chosen = [lesson for lesson in chosen if lesson.name == name]
    if not chosen:
        sys.exit(f"not begun: `make learn CHAPTER={wanted or '01'}` cuts the workbook")
    mine, found = judge or Judge(), []
    for lesson in chosen:
        print(lesson.name)
        for task in lesson.all:
            cell = written(lesson, task, folder)
            states, code = judge_task(mine, lesson, task, cell)
            sources[f"{lesson.name} {task.id}"] = code
            for name, verdict in states.items():
                verdicts[f"{lesson.name} {name}"] = verdict
                found.append((lesson.name, name, verdict))
                aside = " (exercise)" if task.id.startswith("exercise") else ""
                print(f"  {name + aside:34} {verdict.state}")
    if not judge:
        mine.stop()
    write_library(lessons, folder, sources, verdicts)
    state = {
        "sources": sources,
        "verdicts": {key: [v.state, v.message] for key, v in verdicts.items()},
    }
    run.write_aside(folder / MINE / "state.json", json.dumps(state, indent=1))
    for wrong in ("wrong", "open"):  # the first that is, and no more at a time
        if first := next((each for each in found if each[2].state == wrong), None):
            chapter, name, verdict = first
            print(f"\n{chapter}: {name} is {wrong}, so it comes next.")
            print(verdict.message or f"It waits in {folder.name}/, with its hints.")
            break
    else:
        print("\nAll of that is right.")
        say_next(lessons, verdicts)
    part_one = [
        task.id
        for lesson in lessons
        for task, _ in not_right(lesson, verdicts)
        if lesson.name < "09" and task.id.startswith("hole")
    ]
    if not part_one:
        print("\nEvery line of this GPT is yours.", flush=True)
        paths = [str(each) for each in (folder, ROOT / "notebooks", ROOT)]
        run_it = f"sys.path[:0] = {paths}; from course.checks import graduate"
        code = f"import sys; {run_it}; graduate({steps})"
        subprocess.run([sys.executable, "-c", code])
    return verdicts


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chapter", nargs="?", default="", help="03, or single_head")
    parser.add_argument("--check", action="store_true", help="judge what was written")
    parser.add_argument("--script", action="store_true", help="a script, no notebook")
    parser.add_argument("--library", action="store_true", help="write learn/mygpt")
    steps = {"type": int, "default": 0, "help": "of your GPT's training, if fewer"}
    parser.add_argument("--steps", **steps)
    folder = {"type": Path, "default": ROOT / "learn", "help": "where you work"}
    parser.add_argument("--folder", **folder)
    args = parser.parse_args(argv)
    if args.library:
        write_library(read_lessons(), args.folder, *read_state(args.folder))
    elif args.check:
        check(args.folder, args.chapter, steps=args.steps)
    elif args.chapter:
        learn(args.folder, args.chapter, ".py" if args.script else ".ipynb")
    else:
        overview(args.folder)


if __name__ == "__main__":
    main()
