"""The notebooks keep the house's rules, and tools/run.py and the Makefile theirs."""

import ast
import json
import os
import re
import subprocess
import sys
import time
from itertools import groupby
from pathlib import Path

import nbformat
import pytest

from tools import run

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = run.find_chapters(ROOT, [])
NOTEBOOKS = CHAPTERS + run.find_solutions(ROOT, [])
MAX_CELL_LINES = 45
MAX_CODE_CELLS_IN_A_ROW = 3

each_chapter = pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: c.name)
each_notebook = pytest.mark.parametrize("chapter", NOTEBOOKS, ids=lambda c: c.label)


def code_cells(nb):
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def outputs(nb):
    return [output for cell in code_cells(nb) for output in cell.outputs]


def headings(nb):
    prose = [cell.source for cell in nb.cells if cell.cell_type == "markdown"]
    return [line for source in prose for line in source.splitlines() if line[:1] == "#"]


def before_solutions(nb):
    for cell in nb.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("## Solutions"):
            return
        yield cell


# The numbers, names and files of DESIGN 2


def test_numbers_have_no_gap():
    numbers = [int(chapter.name[:2]) for chapter in CHAPTERS]
    assert numbers == list(range(1, len(CHAPTERS) + 1))
    assert numbers, "no notebooks"


@each_chapter
def test_module_and_test_bear_the_name(chapter):
    noun = chapter.name[3:]
    assert (ROOT / "tinygpt_lib" / f"{noun}.py").exists()
    assert (ROOT / "tests" / f"test_{noun}.py").exists()


@each_notebook
def test_text_and_notebook_say_the_same(chapter):
    assert chapter.text_path.exists(), "`make text` writes it"
    assert chapter.notebook_path.exists(), "`make notebooks` writes it"
    text, nb = chapter.read_text(), chapter.read_notebook()
    wanted = run.from_text(text)
    for cell, want in zip(nb.cells, wanted.cells, strict=True):
        assert (cell.cell_type, cell.source) == (want.cell_type, want.source)
        assert cell.metadata.get("tags") == want.metadata.get("tags")
        assert cell.id == want.id
    recorded = nb.metadata.tinygpt.text_sha256
    assert recorded == run.text_hash(text), "the text changed: `make notebooks`"


@each_notebook
def test_text_survives_jupyter(chapter):
    text = chapter.read_text()
    assert run.to_text(run.from_text(text)) == text, "`make text` brings it into form"
    assert run.to_text(chapter.read_notebook()) == text  # JupyterLab compares the two


# What the outputs are


@each_notebook
def test_outputs_come_from_one_clean_run(chapter):
    nb = chapter.read_notebook()
    counts = [cell.execution_count for cell in code_cells(nb)]
    assert counts == list(range(1, len(counts) + 1))
    errors = [output for output in outputs(nb) if output.output_type == "error"]
    assert not errors


@each_notebook
def test_notebook_is_small_and_without_widgets(chapter):
    assert chapter.notebook_path.stat().st_size <= run.MAX_BYTES
    nb = chapter.read_notebook()
    kinds = {kind for output in outputs(nb) for kind in output.get("data", {})}
    assert not [kind for kind in kinds if "widget" in kind]
    assert "widgets" not in nb.metadata


@each_chapter
def test_figures_have_alt_text(chapter):
    for output in outputs(chapter.read_notebook()):
        if "image/png" in output.get("data", {}):
            alt = output.metadata.get("image/png", {}).get("alt", "")
            assert alt.strip(), "show(fig, alt=...) of course"


# How a chapter reads


@each_chapter
def test_chapter_opens_with_its_number_and_question(chapter):
    first = chapter.read_notebook().cells[0]
    assert first.cell_type == "markdown"
    title, question = first.source.splitlines()[:2]
    assert re.fullmatch(rf"# {chapter.name[:2]} · \S.*", title)
    assert re.fullmatch(r"> \S.*\?", question)


@each_chapter
def test_chapter_ends_with_summary_and_exercises(chapter):
    lines = headings(chapter.read_notebook())
    assert "## Summary" in lines
    assert "## Exercises" in lines
    assert lines.index("## Summary") < lines.index("## Exercises")


@each_chapter
def test_cells_are_short_and_explained(chapter):
    nb = chapter.read_notebook()
    for cell in code_cells(nb):
        # A class can't be cut in two: a longer cell must be one exported definition.
        if len(cell.source.splitlines()) > MAX_CELL_LINES:
            assert cell.source.startswith("#| export"), cell.source
            assert len(ast.parse(cell.source).body) == 1, cell.source
    for kind, cells in groupby(before_solutions(nb), lambda cell: cell.cell_type):
        if kind == "code":
            row = list(cells)
            assert len(row) <= MAX_CODE_CELLS_IN_A_ROW, row[0].source


# tools/run.py

TEXT = """\
# %% [markdown]
# # 01 · Toy
# > What is a toy?

# %% tags=["nbval-check-output"]
import os
import sys

print("one", flush=True)
print("two")
sys.executable, os.getcwd()

# %%
x = 2
x

# %%
x + 1
"""


class Tree:
    """A project with one notebook, 01_toy, and tools/run.py working on it."""

    def __init__(self, root):
        self.root = root
        (self.chapter,) = run.find_chapters(root, [])
        self.text_path = self.chapter.text_path
        self.notebook_path = self.chapter.notebook_path

    def run(self, *args):
        run.main(["--root", str(self.root), *args])

    def refusal(self, *args):
        """The message with which tools/run.py exits."""
        with pytest.raises(SystemExit) as exit_:
            self.run(*args)
        assert isinstance(exit_.value.code, str)  # so the process's exit code is 1
        return exit_.value.code

    def edit_text(self, old, new):
        text = self.text_path.read_text(encoding="utf-8")
        assert old in text
        self.text_path.write_text(text.replace(old, new), encoding="utf-8")

    def edit_in_jupyter(self, index, source):
        nb = self.chapter.read_notebook()
        nb.cells[index].source = source
        nbformat.write(nb, self.notebook_path)

    def cells(self):
        return self.chapter.read_notebook().cells


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The files of a project after its first run: {path: content}."""
    root = tmp_path_factory.mktemp("first")
    text_path = root / "notebooks" / "text" / "01_toy.py"
    text_path.parent.mkdir(parents=True)
    text_path.write_text(run.to_text(run.from_text(TEXT)), encoding="utf-8")
    run.main(["--root", str(root)])
    paths = [path for path in root.rglob("*") if path.is_file()]
    return {path.relative_to(root): path.read_bytes() for path in paths}


@pytest.fixture
def tree(executed, tmp_path):
    for path, content in executed.items():
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return Tree(tmp_path)


@pytest.fixture
def ran(monkeypatch):
    """Numbers of cells of the notebooks that would have been executed since."""
    ran = []
    monkeypatch.setattr(run, "execute", lambda nb, folder: ran.append(len(nb.cells)))
    return ran


def test_run_executes_beside_the_notebook_with_this_python(executed):
    assert set(map(str, executed)) == {
        os.path.join("notebooks", "01_toy.ipynb"),
        os.path.join("notebooks", "text", "01_toy.py"),
    }
    nb = json.loads(executed[Path("notebooks") / "01_toy.ipynb"])
    printed, value = nb["cells"][1]["outputs"]
    assert "".join(printed["text"]) == "one\ntwo\n"  # one stream, though flushed
    shown = "".join(value["data"]["text/plain"])
    assert repr(sys.executable) in shown
    assert re.search(r"first\d*[/\\]+notebooks'", shown)
    assert nb["metadata"]["language_info"] == {"name": "python"}
    assert [cell["metadata"] for cell in nb["cells"]] == [
        {},
        {"tags": ["nbval-check-output"]},
        {},
        {},
    ]


@pytest.mark.parametrize(
    ("pieces", "seen"),
    [
        (["one\n", "two", "\n"], "one\ntwo\n"),
        (["\r 10%", "\r 20%", "\r100%\nend"], "100%\nend"),
        (["a\r", "b\r\n", "c\r"], "b\r\nc\r"),
        (["a" * 70_000, "b" * 70_000, "c"], "a" * 70_000 + "b" * 30_000 + run.CUT),
        (["\r" + 5000 * "x"] * 1000, 5000 * "x"),
    ],
)
def test_what_is_printed_stands_as_a_terminal_shows_it(pieces, seen):
    text = ""
    for piece in pieces:
        text = run.printed(text, piece) if not text.endswith(run.CUT) else text
    assert text == seen


LONG_LINE = """# %%
import sys
print("b", file=sys.stderr, flush=True)
print("a" * 10**6)
"""


def test_a_cell_that_prints_one_long_line_is_cut_in_words(tmp_path):
    """In no time: a regex for it took more than a minute."""
    nb = run.from_text(LONG_LINE)
    started = time.process_time()
    run.execute(nb, tmp_path)
    assert time.process_time() - started < 10
    long, *rest = nb.cells[0].outputs
    assert long.text == "a" * run.MAX_PRINTED + run.CUT
    assert [(output.name, output.text) for output in rest] == [("stderr", "b\n")]


def test_run_skips_what_did_not_change(tree, ran):
    before = tree.notebook_path.read_bytes()
    tree.run()
    assert not ran
    assert tree.notebook_path.read_bytes() == before
    tree.run("--all")
    assert ran == [4]


def test_line_ends_are_no_change(tree, ran):
    content = tree.text_path.read_bytes()
    tree.text_path.write_bytes(content.replace(b"\n", b"\r\n"))
    tree.run()
    assert not ran
    assert run.text_hash("x\r\ny") == run.text_hash("x\ny")


def test_run_follows_an_edit_and_keeps_the_other_cells_ids(tree):
    before = [cell.id for cell in tree.cells()]
    tree.edit_text("# %%\nx = 2", "# %%\nw = 5\n\n# %%\nx = 2 + w")
    tree.run("toy")
    after = [cell.id for cell in tree.cells()]
    assert [id_ in before for id_ in after] == [True, True, False, False, True]
    assert tree.cells()[4].outputs[0].data["text/plain"] == "8"
    assert tree.chapter.read_notebook().metadata.tinygpt.text_sha256 == run.text_hash(
        tree.chapter.read_text()
    )


def test_equal_cells_have_different_ids():
    ids = [cell.id for cell in run.from_text("# %%\nx\n\n# %%\nx\n").cells]
    assert len(set(ids)) == 2


def test_run_refuses_to_write_over_an_edit_made_in_jupyter(tree, ran):
    tree.edit_in_jupyter(2, "x = 3\nx")
    before = tree.notebook_path.read_bytes()
    for args in [(), ("--all",)]:
        message = tree.refusal(*args)
        assert "01_toy.ipynb was edited in Jupyter" in message
        assert "`make text`" in message
    assert not ran
    assert tree.notebook_path.read_bytes() == before


def test_text_brings_a_jupyter_edit_over(tree, ran):
    tree.edit_in_jupyter(2, "x = 3\nx\n\n")  # white space at the end is no text
    tree.run("--text")
    assert "# %%\nx = 3\nx\n\n# %%\nx + 1\n" in tree.chapter.read_text()
    tree.edit_in_jupyter(3, "x + 5")  # and another one, before the first was run
    tree.run("--text")
    assert "# %%\nx + 5\n" in tree.chapter.read_text()
    tree.edit_text("x = 3", "x = 4")  # now from the other side
    tree.run()
    assert ran == [4]
    assert tree.cells()[2].source == "x = 4\nx"


def test_an_image_that_was_pasted_is_refused_by_name(tree, ran):
    before = tree.text_path.read_text(encoding="utf-8")
    nb = tree.chapter.read_notebook()
    nb.cells[0].source += "\n![a cat](attachment:cat.png)"
    nb.cells[0].attachments = {"cat.png": {"image/png": "iVBORw0KGgo="}}
    nbformat.write(nb, tree.notebook_path)
    said = tree.refusal("--text")
    assert "cell 1 of 01_toy.ipynb holds cat.png, which a text can't" in said
    assert "edited in Jupyter" in tree.refusal()  # and nothing is written over it
    assert tree.text_path.read_text(encoding="utf-8") == before


def test_text_settles_an_edit_of_the_form_alone(tree, ran):
    before = tree.text_path.read_bytes()
    tree.edit_in_jupyter(2, "x=2\nx")
    assert "`make text`" in tree.refusal()
    tree.run("--text")
    assert tree.text_path.read_bytes() == before  # formatted, it says the same
    tree.run()
    assert ran == [4]


def test_an_empty_cell_left_by_jupyter_is_no_edit(tree, ran):
    nb = tree.chapter.read_notebook()
    nb.cells.append(nbformat.v4.new_code_cell())
    nbformat.write(nb, tree.notebook_path)
    before = tree.text_path.read_bytes()
    tree.run("--text")
    assert tree.text_path.read_bytes() == before
    tree.run()
    assert not ran


def test_text_leaves_an_edited_text_alone(tree):
    tree.edit_text("x = 2", "x = 7")
    before = tree.text_path.read_bytes()
    tree.run("--text")
    assert tree.text_path.read_bytes() == before


def test_both_edited_is_refused_in_both_directions(tree, ran):
    tree.edit_text("x = 2", "x = 7")
    tree.edit_in_jupyter(2, "x = 3\nx")
    before = tree.text_path.read_bytes(), tree.notebook_path.read_bytes()
    for args in [(), ("--text",)]:
        message = tree.refusal(*args)
        assert "01_toy.ipynb was edited in Jupyter" in message
        assert "01_toy.py was edited too" in message
    assert (tree.text_path.read_bytes(), tree.notebook_path.read_bytes()) == before
    assert not ran


def test_the_same_edit_on_both_sides_is_run(tree, ran):  # as JupyterLab's pairing does
    tree.edit_text("x = 2", "x = 3")
    tree.edit_in_jupyter(2, "x = 3\nx")
    tree.run()
    assert ran == [4]


def test_a_notebook_without_text_is_refused_until_it_has_one(tree, ran):
    text = tree.text_path.read_bytes()
    tree.text_path.unlink()
    assert "01_toy.ipynb has no text: `make text`" in tree.refusal()
    tree.run("--text")
    assert tree.text_path.read_bytes() == text


@pytest.mark.parametrize(
    ("mark", "said"), [("", "raised"), (' tags=["raises-exception"]', "put out")]
)
def test_an_error_output_is_refused(tree, capsys, mark, said):
    before = tree.notebook_path.read_bytes()
    tree.edit_text("# %%\nx = 2\nx", f"# %%{mark}\nx = 2\nx / 0")
    message = tree.refusal()
    assert f"01_toy, cell 3 {said}" in message
    assert "ZeroDivisionError: division by zero" in message
    assert "x / 0" in message
    assert "01_toy.ipynb is left as it was" in message
    assert tree.notebook_path.read_bytes() == before
    assert not list(tree.root.rglob("*.partial"))


def test_a_write_that_fails_leaves_the_old_file(tree, ran, monkeypatch):
    before = tree.notebook_path.read_bytes()

    def full(source, target):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        tree.run("--all")
    assert tree.notebook_path.read_bytes() == before
    assert not list(tree.root.rglob("*.partial"))


def test_an_unknown_notebook_is_refused(tree):
    assert tree.refusal("09") == "error: no notebook '09': there are 01_toy"


# The Makefile


def make(*args, **env):
    """Standard output of make, as if called from a shell and not by `make test`."""
    ours = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "TINYGPT_DATA")
    env = {key: value for key, value in os.environ.items() if key not in ours} | env
    command = ["make", *args]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_make_alone_lists_the_targets():
    listed = [line.split()[1] for line in make().splitlines()]
    wanted = "help run test learn check lab notebooks text export bench site clean"
    assert listed == wanted.split()


@pytest.mark.parametrize(
    ("given", "exported"),
    [
        ("cache", f"{ROOT}/cache"),
        ("my cache", f"{ROOT}/my cache"),
        ("/my cache", "/my cache"),
        ("", ""),
    ],
)
def test_make_exports_an_absolute_data_folder(tmp_path, given, exported):
    probe = tmp_path / "probe.mk"
    probe.write_text('include Makefile\nprobe:\n\t@echo "$$TINYGPT_DATA"\n')
    assert make("-f", str(probe), "probe", TINYGPT_DATA=given) == exported + "\n"
    assert make("-f", str(probe), "probe", f"TINYGPT_DATA={given}") == exported + "\n"
