"""The workbooks: what their checks let through and what not, and a whole walk."""

import copy
import os
import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from itertools import chain

import jupytext
import nbformat
import pytest
import torch

from course import checks
from tests.holes import HOLES
from tools import learn

LESSONS = learn.read_lessons()
EVERY = [
    pytest.param(lesson, task, name, id=f"{lesson.name[:2]}-{name}")
    for lesson in LESSONS
    for task, name in lesson.holes
]
each_hole = pytest.mark.parametrize(("lesson", "task", "name"), EVERY)


def filled(task, name, code):
    """The course's cell, with other code in one of its holes."""
    indent = "    " if "." in name else ""
    lines = textwrap.indent(textwrap.dedent(code).strip("\n"), indent).split("\n")
    first, last = learn.spans(task.source)[name]
    rows = task.source.split("\n")
    return "\n".join([*rows[: first - 1], *lines, *rows[last:]])


def judged(lesson, name, source):
    """The message; none if it is right."""
    source = source.replace("mygpt.", "tinygpt_lib.")
    names = checks.load(lesson.noun, source, learn.imports_for(source, lesson))
    return checks.judge(lesson.noun, name, names)


# --- Each hole ---


@each_hole
def test_the_courses_code_is_right(lesson, task, name):
    assert judged(lesson, name, task.source) == ""


@each_hole
def test_another_way_is_right(lesson, task, name):
    _, way = HOLES[lesson.noun][name]
    assert judged(lesson, name, filled(task, name, way)) == ""


@each_hole
def test_a_plausible_mistake_is_wrong_and_named(lesson, task, name):
    mistakes, _ = HOLES[lesson.noun][name]
    assert len(mistakes) >= 3
    code = textwrap.dedent("\n".join(learn.take(task.source, name)))
    for says, old, new in mistakes:
        assert code.count(old) == 1, old
        message = judged(lesson, name, filled(task, name, code.replace(old, new)))
        assert re.search(says, message), f"{new!r} for {old!r}:\n{message}"


KINDS = {
    "zeros": torch.zeros_like,
    "ones": torch.ones_like,
    "random": lambda tensor: torch.rand(tensor.shape).to(tensor.dtype),
}


def constant(value, kind, given):
    """Something of the value's shape and type that has nothing to do with it."""
    if kind == "None":
        return None
    if kind == "input":
        return given[0] if given else None
    if isinstance(value, torch.Tensor):
        return KINDS[kind](value)
    if isinstance(value, tuple | list):
        return type(value)(constant(each, kind, given) for each in value)
    numbers = {"zeros": 0, "ones": 1, "random": 0.5}
    if isinstance(value, bool | int | float):
        return type(value)(numbers[kind])
    return value[:0] if kind == "zeros" and isinstance(value, str) else None


def copied(value):
    try:
        return copy.deepcopy(value)
    except (RuntimeError, TypeError):  # a generator
        return value


@pytest.mark.parametrize("kind", [*KINDS, "input", "None"])
@each_hole
def test_a_constant_is_wrong(lesson, task, name, kind):
    names = checks.load(
        lesson.noun, task.source, learn.imports_for(task.source, lesson)
    )
    owner, _, last = name.rpartition(".")
    classes = [each for each in getattr(names.get(owner), "__mro__", ())]
    place = next((each for each in reversed(classes) if each.__name__ == owner), None)
    there = vars(place)[last] if owner else names[last]
    function = getattr(there, "__func__", getattr(there, "fget", there))

    def fake(*args, **kwargs):
        value = function(
            *map(copied, args), **{k: copied(v) for k, v in kwargs.items()}
        )
        return constant(value, kind, [*args[bool(owner) :], *kwargs.values()])

    wrap = type(there) if isinstance(there, classmethod | property) else lambda f: f
    if owner:
        setattr(place, last, wrap(fake))
    else:
        names[last] = fake
    assert checks.judge(lesson.noun, name, names)


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)
def test_no_solution_stands_in_a_workbook(lesson):
    workbook = jupytext.writes(learn.make_workbook(lesson), fmt="ipynb")
    holes = {task.cell for task in lesson.tasks}
    chapter = [cell.source for cell in lesson.nb.cells if cell.id not in holes]
    shown = learn.in_reader_terms("\n".join(chapter), lesson.nouns)
    for task in lesson.tasks:
        left = task.skeleton.split("\n")
        for row in task.source.split("\n"):
            line = row.partition("  # ")[0].strip()
            if row not in left and len(line) > 20 and line not in shown:
                assert line.replace('"', '\\"') not in workbook, line


# --- What a reader does ---


class Reader:
    """Someone at work in a folder `learn`."""

    def __init__(self, folder, judge, root=learn.ROOT):
        self.folder, self.judge, self.root = folder, judge, root

    def learn(self, name, suffix=".ipynb"):
        learn.learn(self.folder, name, suffix, self.root)

    def path(self, name, suffix=".ipynb"):
        return self.folder / f"{name}{suffix}"

    def cells(self, name, suffix=".ipynb"):
        return jupytext.read(self.path(name, suffix)).cells

    def fill(self, name, task, source, suffix=".ipynb"):
        self.fill_all(name, {task.id: source}, suffix)

    def fill_all(self, name, sources, suffix=".ipynb"):
        nb = jupytext.read(self.path(name, suffix))
        cells = {learn.mark_of(cell)[0]: cell for cell in nb.cells}
        for id_, source in sources.items():
            cells[id_].source = source
        learn.write_workbook(self.path(name, suffix), nb)

    def check(self, **how):
        found = learn.check(self.folder, root=self.root, judge=self.judge, **how)
        return {key.split(" ")[1]: verdict[0] for key, verdict in found.items()}


@pytest.fixture(scope="module")
def judge():
    judge = learn.Judge()
    yield judge
    judge.stop()


@pytest.fixture
def reader(tmp_path, judge):
    return Reader(tmp_path / "learn", judge)


def task_of(name):
    return next(
        task for lesson in LESSONS for task, each in lesson.holes if each == name
    )


def test_the_whole_walk(reader, capfd):
    """Chapter after chapter, every hole filled: the reader's library trains a GPT."""
    for lesson in LESSONS:
        reader.learn(lesson.name)
        reader.fill_all(lesson.name, {task.id: task.source for task in lesson.tasks})
    capfd.readouterr()
    verdicts = reader.check(steps=4)
    assert set(verdicts.values()) == {"right"}
    assert len(verdicts) == sum(len(lesson.holes) for lesson in LESSONS)
    said = capfd.readouterr().out
    assert "All of that is right.\nEvery hole of every chapter is filled" in said
    assert "Every line of this GPT is yours." in said
    assert "as `make check` wrote it last: all of it is yours" in said
    loss = float(re.search(r"4 steps: (\S+) nats", said)[1])
    assert said.count("ROMEO:") == 1
    for lesson in LESSONS:  # nothing of the course's lessons is used
        text = (reader.folder / "mygpt" / f"{lesson.noun}.py").read_text("utf-8")
        assert f"from learn/{lesson.name}.ipynb" in text.split("\n")[0]
        assert "tinygpt_lib" not in text.replace("tinygpt_lib.basics.", "")
    assert abs(loss - course_loss(4)) < 0.05  # another summing order is worth less


def course_loss(steps):
    """The same run by the course's own code."""
    from tinygpt_lib import CharTokenizer, load_shakespeare, split
    from tinygpt_lib.gpt import GPT
    from tinygpt_lib.training import cpu_preset, train_simply

    text = load_shakespeare()
    tokenizer = CharTokenizer.from_text(text)
    shape, plan = cpu_preset(tokenizer.vocab_size)
    torch.manual_seed(0)
    train_ids, val_ids = split(tokenizer.encode(text))
    given = train_ids, val_ids[:5_001], replace(plan, steps=steps)
    return train_simply(GPT(shape), *given).evaluations[-1][1]


# Does what a kernel would with a workbook, but trains nothing.
KERNEL = """
import sys, jupytext
from IPython.core.interactiveshell import InteractiveShell
from tools import learn
from traitlets.config import Config
for path in sys.argv[1:]:
    shell = InteractiveShell(config=Config(HistoryManager={"enabled": False}))
    nb = jupytext.read(path)
    for cell in nb.cells:
        mark = learn.mark_of(cell)[0]
        ours = mark.startswith(("head", "hole", "exercise", "check"))
        if ours or cell.source.startswith("#| export"):
            shell.run_cell(cell.source, store_history=True).raise_error()
        if mark == "head":
            imports = learn.read_imports(nb).values()
            some = [row for row in imports if "from course import" not in row]
            shell.run_cell("\\n".join(some)).raise_error()
import mygpt.generation, mygpt.training
print(mygpt.BORROWED)
"""


def mixed(lesson, task, states):
    """The course's cell with some holes open, and some filled with a mistake."""
    for name in task.names:
        if states[name] == "wrong":
            _, old, new = HOLES[lesson.noun][name][0][0]
            code = "\n".join(learn.take(task.source, name))
            code = textwrap.dedent(code).replace(old, new)
            task = replace(task, source=filled(task, name, code))
    left = [name for name in task.names if states[name] == "open"]
    return learn.compose(task.source, replace(task, source=task.skeleton), left)


def test_open_wrong_and_right_side_by_side(reader):
    """None spoils another, neither in `make check` nor in a workbook's own checks."""
    given, paths = {}, []
    for lesson in LESSONS:
        reader.learn(lesson.name)
        paths.append(reader.path(lesson.name))
        turns = enumerate((name for _, name in lesson.holes), len(given))
        given |= {name: ("right", "open", "wrong")[at % 3] for at, name in turns}
        sources = {task.id: mixed(lesson, task, given) for task in lesson.tasks}
        reader.fill_all(lesson.name, sources)
    assert reader.check() == given
    for part in ("tools", "notebooks", "tinygpt_lib"):  # a course around the folder
        (reader.folder.parent / part).symlink_to(learn.ROOT / part)
    done = subprocess.run(
        [sys.executable, "-c", KERNEL, *paths],
        cwd=reader.folder,
        env={
            **os.environ,
            "IPYTHONDIR": str(reader.folder),
            "PYTHONPATH": str(learn.ROOT),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = re.findall(r"^(\S+) is (open|wrong|right)[:.]", done.stdout, re.MULTILINE)
    assert dict(said) == given
    borrowed = [*chain(*eval(done.stdout.splitlines()[-1]).values())]
    chapter_holes = [name for lesson in LESSONS for name in lesson.own_holes]
    assert borrowed == [name for name in chapter_holes if given[name] != "right"]


def test_nothing_is_open_and_neither_wrong_nor_right(reader):
    for name in ("01_text", "03_single_head"):
        reader.learn(name)
    assert set(reader.check().values()) == {"open"}
    task = task_of("attention_weights")
    first, _, rest = task.skeleton.partition("    ...\n")  # one of two steps done
    reader.fill("03_single_head", task, f"{first}    scores = q @ k.mT\n{rest}")
    assert set(reader.check().values()) == {"open"}


def test_a_loop_a_crash_and_nonsense_hide_no_other_hole(reader, monkeypatch):
    monkeypatch.setattr(reader.judge, "limit", 2)
    reader.learn("03_single_head")
    reader.learn("01_text")
    for lesson, name, old, new in (
        (
            "03_single_head",
            "attention_weights",
            "    scores = q",
            "    while True: pass",
        ),
        ("03_single_head", "previous", "    places =", "    import os; os._exit(3)"),
        ("03_single_head", "leaks", "    before,", "    print('{}'); exit()"),
        ("01_text", "split", "def split(", "def split"),
        ("01_text", "get_batch", "    places =", "    1 / 0"),
    ):
        task = task_of(name)
        at = task.source.index(old)
        reader.fill(lesson, task, task.source[:at] + new + "\n" + task.source[at:])
    verdicts = reader.check()
    found = learn.read_state(reader.folder).verdicts
    for name, says in {
        "attention_weights": "a loop that never ends",
        "previous": "ended Python itself",
        "leaks": "SystemExit",
        "split": "no Python yet, in line 2",
        "get_batch": "stops at `1 / 0`\nZeroDivisionError",
    }.items():
        (message,) = (v[1] for key, v in found.items() if key.endswith(f" {name}"))
        assert verdicts[name] == "wrong" and says in message
    assert verdicts["attention"] == "right"


def test_a_wrong_hole_does_not_spoil_the_next(reader):
    reader.learn("03_single_head")
    task = task_of("attention_weights")
    bad = task.source.replace(" / math.sqrt(q.shape[-1])", "")
    reader.fill("03_single_head", task, bad)
    verdicts = reader.check()
    assert (verdicts["attention_weights"], verdicts["attention"]) == ("wrong", "right")
    text = (reader.folder / "mygpt/single_head.py").read_text("utf-8")
    assert "math.sqrt" in text.partition("def attention(")[0]  # the course's


def test_what_a_reader_adds_comes_along(reader):
    """Imports, helpers and other names; what only tries things out stays behind."""
    reader.learn("03_single_head")
    code = """
import math as m
from mygpt.text import split


def scaled(q, k):
    return q @ k.transpose(-1, -2) / m.sqrt(q.size(-1))


def attention_weights(q, k):
    n, N = q.size(-2), k.size(-2)
    if n > N:
        raise ValueError("no")
    late = torch.ones(n, N).triu(N - n + 1).bool()
    return F.softmax(scaled(q, k).masked_fill(late, -m.inf), -1)


def attention(q, k, v):
    return attention_weights(q, k) @ v


print(attention(torch.ones(2, 2), torch.ones(2, 2), torch.ones(2, 2)))
"""
    reader.fill("03_single_head", task_of("attention"), code)
    verdicts = reader.check()
    assert verdicts["attention_weights"] == verdicts["attention"] == "right"
    text = (reader.folder / "mygpt/single_head.py").read_text("utf-8")
    assert "import torch.nn.functional as F" in text and "def scaled" in text
    assert "print(" not in text and "from mygpt.text import split" in text
    compile(text, "single_head.py", "exec")


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)
def test_the_library_of_the_courses_code_is_the_courses(lesson):
    code = learn.code_of(lesson, {task.id: task.source for task in lesson.tasks})
    text = learn.module_text(lesson.name, tuple(lesson.nouns), code)
    path = learn.ROOT / "tinygpt_lib" / f"{lesson.noun}.py"
    _, _, ours = path.read_text("utf-8").partition("\n")
    assert text.replace("mygpt.", "tinygpt_lib.") == ours


# --- Nothing of the reader's is lost ---


def test_a_second_time_it_opens_what_is_there(reader, capsys):
    reader.learn("03_single_head")
    reader.fill("03_single_head", task_of("attention"), "mine = 1")
    before = reader.path("03_single_head").read_bytes()
    reader.learn("03")
    assert reader.path("03_single_head").read_bytes() == before
    assert "as you left it" in capsys.readouterr().out


@pytest.fixture
def course(tmp_path):
    """A course of one chapter, to be changed."""
    for path in ("notebooks/text", "notebooks/text/solutions"):
        (tmp_path / path).mkdir(parents=True)
        shutil.copy(learn.ROOT / path / "03_single_head.py", tmp_path / path)
    return tmp_path


@pytest.mark.parametrize("suffix", [".ipynb", ".py"])
def test_an_update_of_the_course_in_between(course, judge, suffix, capsys):
    reader, name = Reader(course / "learn", judge, course), "03_single_head"
    reader.learn(name, suffix)
    task = task_of("attention")
    mine = task.source.replace("scores", "my_scores")
    reader.fill(name, task, mine, suffix)
    nb = jupytext.read(reader.path(name, suffix))
    ids = [learn.mark_of(cell)[0] for cell in nb.cells]
    note = nbformat.v4.new_markdown_cell("A note of mine.")
    prose = next(c for c in nb.cells if c.source.startswith("## Blind to order"))
    prose.source += "\n\nI don't believe it."
    nb.cells.insert(ids.index(task.id) + 1, note)
    learn.write_workbook(reader.path(name, suffix), nb)

    text = course / "notebooks/text/03_single_head.py"
    source = text.read_text("utf-8")
    for old, new in {
        "# ## Blind to order\n": "# ## Blind to order\n# New prose.\n#\n",
        "# The plan has three parts.": "# The plan has 3 parts.",
        "    #| hole: the scores, each": "    #| hole: the scores: each",
    }.items():
        assert source.count(old) == 1
        source = source.replace(old, new)
    text.write_text(source, "utf-8")
    learn.read_lessons.cache_clear()
    reader.learn(name, suffix)
    said = capsys.readouterr().out
    assert "brought up to date, with everything that you wrote" in said
    assert "hole-attention_weights: yours stays" in said
    sources = [cell.source for cell in reader.cells(name, suffix)]
    assert sources.count(mine) == 1 and sources.count("A note of mine.") == 1
    at = sources.index(mine)
    assert "The course has changed the cell above" in sources[at + 1]
    assert "the scores: each" in sources[at + 1]
    assert sources[at + 2] == "A note of mine."
    assert any("I don't believe it." in each for each in sources)
    assert any("New prose." in each for each in sources)
    assert any("The plan has 3 parts." in each for each in sources)
    assert not any("The plan has three parts." in each for each in sources)
    assert reader.check()["attention_weights"] == "right"
    before = reader.path(name, suffix).read_bytes()
    reader.learn(name, suffix)
    assert reader.path(name, suffix).read_bytes() == before


def test_cells_that_were_split_copied_or_deleted(reader):
    name = "03_single_head"
    reader.learn(name)
    task = task_of("attention")
    nb = jupytext.read(reader.path(name))
    (cell,) = [cell for cell in nb.cells if learn.mark_of(cell)[0] == task.id]
    at = nb.cells.index(cell)
    first, _, second = task.source.partition("\n\n\ndef attention(")
    other = copy.deepcopy(cell)
    cell.source, other.source = first, "def attention(" + second
    other.id = "another"
    nb.cells.insert(at + 1, other)
    del nb.cells[2:5]
    learn.write_workbook(reader.path(name), nb)
    assert reader.check()["attention"] == "right"
    reader.learn(name)
    sources = [cell.source for cell in reader.cells(name)]
    assert first in sources and other.source in sources
    assert len(sources) == len(learn.make_workbook(LESSONS[2]).cells) + 1
    assert reader.check()["attention_weights"] == "right"


def test_make_clean_leaves_learn_alone():
    makefile = (learn.ROOT / "Makefile").read_text("utf-8")
    recipe = makefile.partition("\nclean:")[2].partition("\n\n")[0]
    assert "learn" not in recipe.partition("\n")[2]
