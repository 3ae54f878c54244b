"""Builds the course as static pages, from what is committed: `make site`.

    build.py [FOLDER]            the pages, by default in build/site
    build.py FOLDER linkcheck    the links to other hosts: do they answer?

No cell is run. The pages ask no other host for anything, open from a disk as well as
from a server, and may lie under any path. Links to Colab are made where
GITHUB_REPOSITORY is the owner/name of the repository, as in a workflow of its host.
"""

import importlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from importlib.metadata import files
from pathlib import Path

from sphinx.cmd.build import main as sphinx

# Notebooks can be read without it, and its grammars take two seconds to make.
sys.modules["rfc3987_syntax"] = None
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for tools; and the library is the one that is here
REPOSITORY = os.environ.get("GITHUB_REPOSITORY")
CHAPTERS = sorted(path.stem for path in ROOT.glob("notebooks/[0-9][0-9]_*.ipynb"))
SOLUTIONS = sorted(path.stem for path in ROOT.glob("notebooks/solutions/*.ipynb"))
PART_TWO = "09_tokenizers"
# What a page may link to, beside other pages, or show.
FOLDERS = "benchmarks notebooks site tests tinygpt_lib tools".split()
LINKED = {".py", ".js", ".json", ".svg", ".png"}
# By hand, below and above the lessons; the commands have a page of their own.
BY_HAND = {
    part: sorted(p.stem for p in ROOT.glob(f"tinygpt_lib/{part}/[a-z]*.py"))
    for part in ("basics", "runs")
}
# What pages carry of other packages, with their licences. MathJax draws formulas as
# SVG: a font would not be loaded by every browser from a disk.
OF_OTHERS = {
    "django-static-mathjax": "mathjax/static/mathjax/es5/tex-svg.js",
    "furo": "",
    "Sphinx": "",
}


def main(out=ROOT / "build" / "site", builder="html"):
    started, out = time.perf_counter(), Path(out).resolve()
    if out.exists() and not (out / "_static").exists():
        sys.exit(f"error: {out} is there and holds no site: name another folder")
    shutil.rmtree(out, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        pages, doctrees = Path(folder, "pages"), Path(folder, "doctrees")
        gather(pages)
        options = ["-q", "-W", "--keep-going", "-j", "auto", "-c", str(ROOT / "site")]
        options += ["-b", builder, "-d", str(doctrees)]
        failed = sphinx([*options, str(pages), str(out)])
        if failed:
            sys.exit(failed)
        shutil.copytree(pages / "beside", out, dirs_exist_ok=True)
    files = [path for path in out.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    n_pages = sum(path.suffix == ".html" for path in files)
    seconds = time.perf_counter() - started
    print(f"{out}: {n_pages} pages, {size / 1e6:.1f} MB, {seconds:.0f} s")


def gather(pages):
    """What Sphinx reads; and in `beside` what lies between its pages as it is."""
    linked = [ROOT / "CHANGELOG.md", ROOT / "LICENSE", ROOT / "benchmarks" / "LOG.md"]
    for folder in FOLDERS:
        linked += [p for p in (ROOT / folder).rglob("*") if p.suffix in LINKED]
    for path in linked:
        copy(path, pages / path.relative_to(ROOT))
    for package, pattern in OF_OTHERS.items():
        for path in files_of(package, pattern):
            copy(path, pages / "beside" / "_static" / package / path.name)
    live = importlib.import_module("tinygpt_lib.runs.page")
    live.write_page(ROOT / "site" / "model", pages / "beside" / "live" / "index.html")
    write(pages / "index.md", front_page())
    cut = workbooks(pages / "beside" / "workbooks")
    for name in CHAPTERS + [f"solutions/{name}" for name in SOLUTIONS]:
        original = ROOT / "notebooks" / f"{name}.ipynb"
        copy(original, pages / "beside" / "notebooks" / f"{name}.ipynb")
        notebook = mended(json.loads(original.read_text(encoding="utf-8")))
        if name in CHAPTERS:
            title, rest = notebook["cells"][0]["source"].split("\n\n", 1)
            text = f"{title}\n\n{bar(name, cut)}\n\n{rest}"
            notebook["cells"][0]["source"] = text
        write(pages / "notebooks" / f"{name}.ipynb", json.dumps(notebook))
    write(pages / "library" / "index.md", library())
    for name in CHAPTERS:
        explained = f"[Chapter {name[:2]}](../notebooks/{name}.ipynb) explains it · "
        page = f"# {noun(name)}\n{explained}{module(noun(name))}"
        write(pages / "library" / f"{noun(name)}.md", page)
    for part, names in BY_HAND.items():
        sections = [f"## {name}\n{module(f'{part}.{name}')}" for name in names]
        write(pages / "library" / f"{part}.md", "\n".join([f"# {part}", *sections]))
    copy(ROOT / "site" / "commands.md", pages / "commands.md")


def files_of(package, pattern):
    """Files of an installed package, its licence among them."""
    wanted = re.compile(rf"{pattern}|.*\.dist-info/(.*/)?LICEN[CS]E.*")
    return [file.locate() for file in files(package) if wanted.fullmatch(str(file))]


def copy(path, to):
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, to)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def noun(chapter):
    return chapter.split("_", 1)[1]


# --- Pages ---


def front_page():
    """The README, with all pages in their order behind it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    link = '<a href="live/index.html">Play with a small GPT in the browser</a>'
    text = text.replace("\n\n![", f"\n\n{link}\n\n![", 1)
    at = CHAPTERS.index(PART_TWO)
    nouns = [f"notebooks/{name}" for name in CHAPTERS]
    contents = {
        "Part I: a GPT, from characters up": nouns[:at],
        "Part II: what it lets you try": nouns[at:],
        "Solutions": [f"notebooks/solutions/{name}" for name in SOLUTIONS],
        "Reference": ["library/index", "commands"],
        "More": ["benchmarks/LOG", "CHANGELOG"],
    }
    trees = "\n".join(
        toctree(documents, f":caption: {caption}")
        for caption, documents in contents.items()
        if documents
    )
    return f"{text}\n{trees}"


def toctree(documents, *options):
    options = [":hidden:", ":titlesonly:", *options]
    return "\n".join(["```{toctree}", *options, "", *documents, "```", ""])


def mended(notebook):
    """The notebook with what Sphinx must know of it, and a link to the solutions."""
    sources = ["".join(cell["source"]) for cell in notebook["cells"]]
    here = any(source.startswith("## Solutions") for source in sources)
    for cell, source in zip(notebook["cells"], sources, strict=True):
        link = here and source.startswith("## Exercises")
        cell["source"] = source + "\n\n[To the solutions](#solutions)" * link
        if cell["metadata"].get("jupyter", {}).get("source_hidden"):
            cell["metadata"]["tags"] = ["hide-input"]
        for output in cell.get("outputs", []):
            if alt := output.get("metadata", {}).get("image/png", {}).get("alt"):
                cell["metadata"]["mystnb"] = {"image": {"alt": alt}}
    return notebook


def bar(name, cut):
    links = [f'<a href="{name}.ipynb" download>Download this notebook</a>']
    if name in cut:
        there = f"../workbooks/{name}.ipynb"
        links.append(f'<a href="{there}" download>Download this workbook</a>')
    if REPOSITORY:
        place = f"github/{REPOSITORY}/blob/main/notebooks/{name}.ipynb"
        colab = f"https://colab.research.google.com/{place}"
        links.append(f'<a href="{colab}">Open in Colab</a>')
    links.append(f'<a href="{source(noun(name))}">Source of the module</a>')
    exports = ", ".join(
        f"{{py:obj}}`~tinygpt_lib.{noun(name)}.{public}`"
        for public in importlib.import_module(f"tinygpt_lib.{noun(name)}").__all__
    )
    rows = [" · ".join(links), f"Exports {exports}"]
    return "\n".join([":::{container} chapter-bar", "\n\n".join(rows), ":::"])


def source(module):
    """Where a module's source stands, from a page one folder down."""
    return f"../_modules/tinygpt_lib/{module.replace('.', '/')}.html"


def workbooks(folder):
    """Cuts the workbooks, where the course can; the chapters that have one."""
    if not (ROOT / "tools" / "learn.py").exists():
        return set()
    learn = importlib.import_module("tools.learn")
    folder.mkdir(parents=True)
    lessons = [lesson for lesson in learn.read_lessons() if lesson.holes]
    for lesson in lessons:
        path = folder / f"{lesson.name}.ipynb"
        learn.write_workbook(path, learn.make_workbook(lesson))
    return {lesson.name for lesson in lessons}


# --- The library ---


def library():
    """What the package itself offers, each with its first line; then all modules."""
    package = importlib.import_module("tinygpt_lib")
    rows = []
    for name in sorted(package.__all__, key=str.lower):
        thing = getattr(package, name)
        if callable(thing):
            does = thing.__doc__.split("\n\n")[0].replace("\n", " ")
            place = f"{thing.__module__}.{thing.__qualname__}"
            rows.append(f"| {{py:obj}}`{name} <{place}>` | {does} |")
    intro = (
        "What `from tinygpt_lib import ...` finds. Each lesson's module comes from the "
        "chapter of its name; `basics` below them and `runs` above are written by hand."
    )
    head = ["# The library", intro, "", "| name | what it is or does |", "|---|---|"]
    lessons = [noun(name) for name in CHAPTERS]
    return "\n".join([*head, *rows, "", toctree([*lessons, *BY_HAND])])


def module(name):
    """What a module's docstrings say."""
    link = f'<a href="{source(name)}">source</a>'
    rst = f".. automodule:: tinygpt_lib.{name}"
    return "\n".join([link, "", "```{eval-rst}", rst, "```", ""])


if __name__ == "__main__":
    main(*sys.argv[1:])
