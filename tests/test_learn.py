"""The workbooks: what their checks let through and what not, and a whole walk."""

import copy
import re
import textwrap

import jupytext
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


@pytest.mark.parametrize("lesson", [each for each in LESSONS if each.holes], ids=str)
def test_no_solution_stands_in_a_workbook(lesson):
    workbook = jupytext.writes(learn.make_workbook(lesson), fmt="ipynb")
    chapter = [cell.source for cell in lesson.nb.cells if cell.id not in lesson.tasks]
    shown = learn.in_reader_terms("\n".join(chapter), lesson.nouns)
    for task in lesson.all:
        left = task.skeleton.split("\n")
        for row in task.source.split("\n"):
            line = row.partition("  # ")[0].strip()
            if row not in left and len(line) > 20 and line not in shown:
                assert line.replace('"', '\\"') not in workbook, line
