"""tools/export.py: what it writes, and what it refuses, on small trees in tmp_path."""

import importlib.util
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent


def load_tool():
    # Under a name of its own: `export` alone could be anyone's module.
    path = REPO / "tools/export.py"
    spec = importlib.util.spec_from_file_location("tools_export", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


export = load_tool()

HEADER = """\
# ---
# jupyter:
#   jupytext:
#     formats: notebooks///ipynb,notebooks/text///py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---
"""


def code(source):
    return f"# %%\n{source}\n"


def exported(source):
    return code(f"#| export\n{source}")


def markdown(source):
    lines = (f"# {line}".rstrip() for line in source.split("\n"))
    return "# %% [markdown]\n" + "\n".join(lines) + "\n"


def notebook(root, name, *cells, title=None, question="Why so?"):
    """Write a notebook: a title cell, then the cells given; return its path."""
    number, _, noun = name.partition("_")
    first = markdown(f"# {number} · {title or noun.capitalize()}\n> {question}")
    path = root / f"notebooks/text/{name}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([HEADER, first, *cells]), encoding="utf-8")
    return path


def run(root, *options):
    return export.main(["--root", str(root), *options])


def module(root, noun):
    assert run(root) == 0
    return (root / f"tinygpt_lib/{noun}.py").read_text(encoding="utf-8")


def line_of(path, text):
    """The number of the only line of the file that holds the text."""
    lines = path.read_text(encoding="utf-8").split("\n")
    [number] = [n for n, line in enumerate(lines, start=1) if text in line]
    return number


@pytest.fixture
def refused(tmp_path, capsys):
    """Export, be refused with nothing written; return the sentences on stderr."""

    def refused():
        before = sorted(tmp_path.rglob("*"))
        assert run(tmp_path) == 1
        assert sorted(tmp_path.rglob("*")) == before
        output = capsys.readouterr()
        assert output.out == ""
        return output.err.splitlines()

    return refused


def place(path, number, text):
    """How a refusal names the code cell with this number, and the line of the text."""
    return f"notebooks/text/{path.name}:{line_of(path, text)}: cell [{number}]: "


def assert_one_refusal(problems, path, number, text, *words):
    """One sentence, that names this cell, the line of the text, and the words."""
    assert len(problems) == 1, problems
    assert problems[0].startswith(place(path, number, text)), problems
    for word in words:
        assert word in problems[0]


# --- What it writes ---

ONE_HEAD = [
    exported(
        "import torch\n"
        "# the usual name\n"
        "import torch.nn.functional as F\n"
        "from tinygpt_lib.text import CharTokenizer"
    ),
    markdown("## Averaging the past\n\nBy loop."),
    code("draft = 1"),
    exported("import torch"),
    markdown("## One head\n\n```\n# no heading\n```"),
    exported("SCALE = 0.5  # see the figure\n\n_hidden = {}"),
    markdown("Prose without a heading."),
    "# %% tags=['keep']\n# | export\n"
    "from tinygpt_lib.text import split\n"
    "import torch\n\n"
    "# Why a function\n"
    "# and not a class.\n"
    "def attention(q: torch.Tensor, k):\n"
    "    import math\n\n"
    "    return F.softmax(q @ k * SCALE / math.sqrt(2), -1)\n",
    markdown("### In use ###"),
    exported("class Head:\n    parts = split, CharTokenizer, _hidden"),
    markdown("## Summary"),
]

ONE_HEAD_MODULE = '''\
# generated from notebooks/text/03_single_head.py: edit there
"""One head: how can a token look back, and choose where?"""

import torch

# the usual name
import torch.nn.functional as F

from tinygpt_lib.text import CharTokenizer, split

__all__ = ["SCALE", "Head", "attention"]

# --- One head ---

SCALE = 0.5  # see the figure

_hidden = {}


# Why a function
# and not a class.
def attention(q: torch.Tensor, k):
    import math

    return F.softmax(q @ k * SCALE / math.sqrt(2), -1)


# --- In use ---


class Head:
    parts = split, CharTokenizer, _hidden
'''


def one_head(root):
    """A notebook 01 with two names, and the notebook 03 whose module stands above."""
    notebook(root, "01_text", exported("class CharTokenizer: ...\ndef split(): ..."))
    question = "How can a token look back, and choose where?"
    title = {"title": "One head", "question": question}
    return notebook(root, "03_single_head", *ONE_HEAD, **title)


def test_a_module_reads_as_if_written_by_hand(tmp_path):
    one_head(tmp_path)
    assert module(tmp_path, "single_head") == ONE_HEAD_MODULE


def test_the_same_notebooks_give_the_same_bytes_and_leave_the_files_alone(tmp_path):
    one_head(tmp_path)
    first = module(tmp_path, "single_head")
    path = tmp_path / "tinygpt_lib/single_head.py"
    written = path.stat().st_mtime_ns
    assert module(tmp_path, "single_head") == first
    assert path.stat().st_mtime_ns == written
    path.unlink()
    assert module(tmp_path, "single_head") == first


def test_future_imports_come_first_and_conditional_ones_stay(tmp_path):
    lazy = "try:\n    import numpy\nexcept ImportError:\n    numpy = None\n"
    cells = (
        exported("import os"),
        exported(f"from __future__ import annotations\n{lazy}"),
    )
    notebook(tmp_path, "01_text", *cells)
    text = module(tmp_path, "text")
    assert '?"""\n\nfrom __future__ import annotations\n\nimport os\n\n__all__' in text
    assert lazy in text


def test_all_lists_what_is_defined_and_public(tmp_path):
    source = (
        "import os\n"
        "LIMIT: int = 3\n"
        "declared: int\n"
        "one, (two, *rest) = 1, (2, 3)\n"
        "table = {name: LIMIT for name in 'ab'}\n"
        "table['c'] = 4\n"
        "os.thing = 5\n"
        "_private = 6\n"
        "if LIMIT:\n    fast = True\nelse:\n    fast = False\n"
        "async def fetch(): inner = 7\n"
        "class Part: size = 8\n"
    )
    notebook(tmp_path, "01_text", exported(source))
    names = (
        "__all__ = ['LIMIT', 'Part', 'fast', 'fetch', 'one', 'rest', 'table', 'two']"
    )
    assert names.replace("'", '"') in module(tmp_path, "text")


@pytest.mark.parametrize(
    ("title", "question", "docstring"),
    [
        ("GPT", "What is a GPT, whole?", '"""GPT: what is a GPT, whole?"""'),
        ("Me", "I or you?", '"""Me: I or you?"""'),
        ("Bits", "BPE or bytes?", '"""Bits: BPE or bytes?"""'),
        ("Ways", "A long or\n> a short one?", '"""Ways: a long or a short one?"""'),
        (
            "Long",
            "Why " + "so " * 30 + "long?",
            f'"""Long.\n\nWhy {"so " * 27}so\nso so long?\n"""',
        ),
        ('A "b"', 'Is \\ a """?', '"""A \\"b\\": is \\\\ a \\"\\"\\"?"""'),
    ],
)
def test_title_and_question_become_the_docstring(tmp_path, title, question, docstring):
    notebook(tmp_path, "01_text", exported("x = 1"), title=title, question=question)
    text = module(tmp_path, "text")
    assert text.split("\n", 1)[1].startswith(docstring + "\n\n__all__")
    assert max(map(len, text.split("\n"))) <= 88
    compile(text, "text.py", "exec")


def test_a_notebook_that_exports_nothing_gives_an_empty_module(tmp_path):
    notebook(tmp_path, "13_scaling_out", markdown("## Two"), code("x = 1"))
    assert module(tmp_path, "scaling_out").endswith('so?"""\n\n__all__ = []\n')


# --- --check ---


def test_check_is_silent_where_library_and_notebooks_agree(tmp_path, capsys):
    one_head(tmp_path)
    run(tmp_path)
    assert "wrote tinygpt_lib/single_head.py" in capsys.readouterr().out
    assert run(tmp_path, "--check") == 0
    output = capsys.readouterr()
    assert output.out + output.err == ""


def test_check_shows_a_difference_and_writes_nothing(tmp_path, capsys):
    one_head(tmp_path)
    path = tmp_path / "tinygpt_lib/single_head.py"
    edited = module(tmp_path, "single_head").replace("SCALE = 0.5", "SCALE = 0.7")
    path.write_text(edited, encoding="utf-8")
    capsys.readouterr()
    assert run(tmp_path, "--check") == 1
    output = capsys.readouterr()
    assert "--- tinygpt_lib/single_head.py" in output.out
    assert "-SCALE = 0.7  # see" in output.out
    assert "+SCALE = 0.5  # see" in output.out
    assert "make export" in output.err
    assert path.read_text(encoding="utf-8") == edited


def test_check_shows_a_missing_module_and_writes_nothing(tmp_path, capsys):
    one_head(tmp_path)
    assert run(tmp_path, "--check") == 1
    assert "+class Head:" in capsys.readouterr().out
    assert not (tmp_path / "tinygpt_lib").exists()


def test_this_repository_is_in_step(capfd):
    assert export.main(["--check"]) == 0, capfd.readouterr()


# --- What it refuses ---


def test_a_public_name_exported_twice_in_one_notebook(tmp_path, refused):
    cells = exported("def split(): ..."), code("1"), exported("split = 'again'")
    path = notebook(tmp_path, "01_text", *cells)
    first = place(path, 1, "def split").removesuffix(": ")
    assert_one_refusal(refused(), path, 3, "'again'", "`split`", first)


def test_a_public_name_exported_by_two_notebooks(tmp_path, refused):
    first = notebook(tmp_path, "01_text", exported("def split(): ..."))
    path = notebook(tmp_path, "02_bigram", exported("_a = 1\nclass split: ..."))
    there = place(first, 1, "def split").removesuffix(": ")
    assert_one_refusal(refused(), path, 1, "class split", "`split`", there)


@pytest.mark.parametrize(
    "source",
    [
        "def f(): return [missing for x in 'ab']",
        "@missing\ndef f(): ...",
        "def f(): return missing, missing",
        "def f(x=missing): ...",
        "def f(x: 'list[missing]'): ...",
        "class A(missing): ...",
        "class A:\n    size = 1\n    def f(self): return self, size + missing",
        "def f(x):\n    match x:\n        case [y]: return missing",
        "missing()  # noqa",
        "use = missing\nmissing = 1",
    ],
)
def test_a_name_that_no_exported_cell_defines(tmp_path, refused, source):
    cells = code("missing = size = 1"), markdown("# Two\n\nlines"), exported(source)
    path = notebook(tmp_path, "01_text", *cells)
    row = next(row for row in source.split("\n") if "missing" in row)
    problems = [line for line in refused() if "`missing`" in line]
    assert_one_refusal(problems, path, 2, row, "define or import")


def test_names_that_are_defined_are_not_refused(tmp_path):
    source = (
        "def f(a, *b, c=1, **d):\n"
        "    try:\n        return [x + y for x in b if (y := x)]\n"
        "    except ValueError as e:\n        return e, later(a, c, d)\n"
        "    finally:\n        print(__name__, LIMIT)\n\n\n"
        "def g(x):\n"
        "    global LIMIT\n    LIMIT = 1\n"
        "    match x:\n        case {'k': v, **rest}:\n            return v, rest\n"
        "    return lambda z: z + LIMIT\n\n\n"
        "class A:\n    size = 1\n    sizes: 'list[A]' = [size]\n\n\n"
        "def later(*args): ...\n"
    )
    notebook(tmp_path, "01_text", exported(source))
    assert run(tmp_path) == 0


@pytest.mark.parametrize(
    "magic",
    ["%timeit f()", "# %timeit f()", "%%time", "!ls", "# !ls", "out = !ls", "f?"],
)
def test_a_magic_in_an_exported_cell(tmp_path, refused, magic):
    path = notebook(tmp_path, "01_text", exported(f"def f(): ...\n\n\n{magic}"))
    magic_in_notebook = magic.removeprefix("# ")
    assert_one_refusal(refused(), path, 1, magic, f"`{magic_in_notebook}`", "magic")


def test_a_magic_does_not_hide_another_problem(tmp_path, refused):
    path = notebook(tmp_path, "01_text", exported("%matplotlib inline\nx = missing"))
    magic, name = refused()
    assert_one_refusal([magic], path, 1, "%matplotlib", "magic")
    assert_one_refusal([name], path, 1, "x = missing", "`missing`")


def test_comments_strings_and_modulo_are_no_magics(tmp_path):
    source = 'x = """\n%timeit\n!ls\n"""\n# 50 % of it!\ny = 5 % 3  # %d and !\n'
    cells = code("%timeit 1\n!ls"), code("%%bash\necho a b | wc"), exported(source)
    notebook(tmp_path, "01_text", *cells)
    assert source.rstrip() in module(tmp_path, "text")


@pytest.mark.parametrize(
    "source",
    [
        "from course import show",
        "from course.models import trained",
        "from tinygpt_lib.commands import main",
        "import tinygpt_lib.runs.run",
        "from tinygpt_lib.runs.run import train",
        "from tinygpt_lib.runs import run",
        "from tinygpt_lib import runs",
    ],
)
def test_what_stands_above_the_lessons_is_for_example_cells(tmp_path, refused, source):
    path = notebook(tmp_path, "01_text", exported(source))
    assert_one_refusal(refused(), path, 1, source)
    notebook(tmp_path, "01_text", code(source), exported("def f(): ..."))
    assert run(tmp_path) == 0


IMPORTS = {
    "import tinygpt_lib.{module}": "{module}",
    "import tinygpt_lib.{module} as other": "{module}",
    "from tinygpt_lib.{module} import {name}": "{module}",
    "from tinygpt_lib import {module}": "{module}",
    "from tinygpt_lib import {name}": "{name}",
    "import tinygpt_lib; tinygpt_lib.{name}": "{name}",
    "def f():\n    from tinygpt_lib.{module} import {name}": "{module}",
    "%%time\nfrom tinygpt_lib import {name}": "{name}",
}


@pytest.mark.parametrize("form", IMPORTS)
@pytest.mark.parametrize("names", [("bigram", "Bigram"), ("gpt", "GPT")])
def test_an_import_from_this_or_a_later_notebook(tmp_path, refused, form, names):
    names = dict(zip(("module", "name"), names, strict=True))
    source, culprit = form.format(**names), IMPORTS[form].format(**names)
    cells = exported("class Bigram: ..."), code(f"1\n2\n\n{source}")
    if source.startswith("%%"):
        cells = exported("class Bigram: ..."), code(source)
    path = notebook(tmp_path, "02_bigram", *cells)
    notebook(tmp_path, "06_gpt", exported("class GPT: ..."))
    row = source.split("\n")[-1]
    whose = "this notebook" if "igram" in culprit else "notebooks/text/06_gpt.py"
    assert_one_refusal(refused(), path, 2, row, f"`{culprit}`", whose)


def test_an_import_from_an_earlier_notebook_is_fine(tmp_path):
    notebook(tmp_path, "02_bigram", exported("class Bigram: ..."))
    forms = [form.format(module="bigram", name="Bigram") for form in IMPORTS]
    handwritten = "from tinygpt_lib import load_shakespeare, _corpus"
    notebook(tmp_path, "06_gpt", *map(code, [*forms, handwritten]))
    assert run(tmp_path) == 0


@pytest.mark.parametrize("source", ["from .gpt import GPT", "from . import gpt"])
@pytest.mark.parametrize("cell", [code, exported])
def test_a_relative_import(tmp_path, refused, cell, source):
    path = notebook(tmp_path, "02_bigram", code("1"), cell(source))
    assert_one_refusal(refused(), path, 2, source, "relative")


@pytest.mark.parametrize("cell", [code, exported])
def test_a_star_import(tmp_path, refused, cell):
    path = notebook(tmp_path, "01_text", cell("from math import *"))
    assert_one_refusal(refused(), path, 1, "import *", "star import")


@pytest.mark.parametrize(
    "source", ["from tinygpt_lib import split", "import tinygpt_lib"]
)
def test_an_exported_cell_that_does_not_name_the_module(tmp_path, refused, source):
    notebook(tmp_path, "01_text", exported("def split(): ..."))
    path = notebook(tmp_path, "02_bigram", exported(f"x = 1\n{source}"))
    assert_one_refusal(refused(), path, 1, source, "must name the module")


@pytest.mark.parametrize(
    "first", ["# generated from notebooks/text/09_old.py", "x = 1"]
)
def test_a_module_that_no_notebook_owns(tmp_path, refused, first):
    notebook(tmp_path, "01_text", exported("x = 1"))
    library = tmp_path / "tinygpt_lib"
    library.mkdir()
    for name in ("old", "__init__", "__main__", "_corpus"):
        (library / f"{name}.py").write_text(f"{first}\n", encoding="utf-8")
    [problem] = refused()
    assert problem.startswith("tinygpt_lib/old.py: no notebook owns this module")
    assert run(tmp_path, "--check") == 1


@pytest.mark.parametrize(
    ("name", "same"), [("01_words", "number"), ("02_text", "noun")]
)
def test_two_notebooks_of_one_number_or_noun(tmp_path, refused, name, same):
    notebook(tmp_path, "01_text", exported("x = 1"))
    notebook(tmp_path, name, exported("y = 1"))
    [problem] = refused()
    assert problem.startswith(f"notebooks/text/{name}.py: has the same {same}")
    assert "notebooks/text/01_text.py" in problem


@pytest.mark.parametrize("name", ["1_text", "text", "01_Text", "01-text"])
def test_a_file_name_that_is_not_number_and_noun(tmp_path, refused, name):
    notebook(tmp_path, name)
    [problem] = refused()
    assert problem.startswith(f"notebooks/text/{name}.py: rename it")


@pytest.mark.parametrize(
    "first", ["# # 02 · Text\n# > Why?", "# # 01 · Text", "# Text"]
)
def test_a_notebook_without_its_number_title_and_question(tmp_path, refused, first):
    path = notebook(tmp_path, "01_text", exported("x = 1"))
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("# # 01 · Text\n# > Why so?", first), encoding="utf-8")
    [problem] = refused()
    assert problem.startswith("notebooks/text/01_text.py:1: the first markdown cell")


@pytest.mark.parametrize("cell", [code, exported])
def test_a_cell_that_does_not_parse(tmp_path, refused, cell):
    path = notebook(tmp_path, "01_text", code("1"), cell("x = 1\ndef f(:\n    pass"))
    assert_one_refusal(refused(), path, 2, "def f(:", "`def f(:` does not parse")


def test_a_comment_that_jupytext_takes_for_a_command(tmp_path, refused):
    path = notebook(tmp_path, "01_text", exported("x = 1\n# ls the files"))
    assert_one_refusal(refused(), path, 1, "# ls", "`ls the files` does not parse")


def test_an_exported_cell_that_parses_but_does_not_compile(tmp_path, refused):
    path = notebook(tmp_path, "01_text", code("await f()"), exported("x = 1\nreturn x"))
    assert_one_refusal(refused(), path, 2, "return x", "does not parse")


def test_a_mark_that_is_not_the_first_line(tmp_path, refused):
    path = notebook(tmp_path, "01_text", code("x = 1\n#| export"))
    assert_one_refusal(refused(), path, 1, "#| export", "first line")


def test_one_name_for_two_imports(tmp_path, refused):
    same = exported(
        "import torch.nn.functional as F\nfrom torch.nn import functional as F"
    )
    path = notebook(tmp_path, "01_text", same, exported("import fractions as F\nF"))
    assert_one_refusal(refused(), path, 2, "import fractions", "`F`")


def test_a_broken_header_names_the_notebook(tmp_path, refused):
    path = notebook(tmp_path, "01_text", exported("x = 1"))
    text = path.read_text(encoding="utf-8").replace(
        "#     display_name: Python 3\n", ""
    )
    path.write_text(text, encoding="utf-8")
    [problem] = refused()
    assert problem.startswith("notebooks/text/01_text.py:1: mend its header")
    assert "display_name" in problem


def test_all_problems_are_reported_in_order(tmp_path, refused):
    later = code("from tinygpt_lib.gpt import GPT"), exported("x = missing")
    notebook(tmp_path, "02_bigram", *later, code("from os import *"))
    notebook(tmp_path, "06_gpt", exported("class GPT: ..."), code("def ("))
    problems = refused()
    found = ["`gpt`", "`missing`", "star import", "does not parse"]
    assert len(problems) == len(found)
    assert all(word in line for word, line in zip(found, problems, strict=True))


def test_lines_are_right_below_what_only_looks_like_a_marker(tmp_path, refused):
    fence = markdown("```\n%% no marker\n```")
    text = code('text = """\n# %% no marker\n"""')
    path = notebook(tmp_path, "01_text", fence, text, exported("\n\nx = missing"))
    assert_one_refusal(refused(), path, 2, "x = missing", "`missing`")


def test_a_root_that_is_no_folder(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path / "nowhere")
    assert "nowhere" in capsys.readouterr().err
