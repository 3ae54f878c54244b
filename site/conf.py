"""How the pages look, and what Sphinx does for them: site/build.py calls it."""

import dataclasses
import inspect
import re
from functools import partial

project = "tiny-gpt-from-scratch"
html_title = project
html_copy_source = False
html_show_copyright = False
html_theme = "furo"
pygments_dark_style = "a11y-high-contrast-dark"  # the theme's own is too pale
html_favicon = "static/favicon.svg"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
mathjax_path = "django-static-mathjax/tex-svg.js"  # put there by site/build.py
mathjax3_config = {"options": {"enableMenu": False}}  # else Tab stops at each formula
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_argparse_cli",
]
exclude_patterns = ["beside"]
smartquotes = False
highlight_language = "text"

# Notebooks, as they were executed
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # by default from another host
nb_code_prompt_show = "Show the solution"
nb_code_prompt_hide = "Hide the solution"
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

# Docstrings
default_role = "py:obj"
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_inherit_docstrings = False

TREES = {}  # by the way up from a page to the front page


def add_fields(app, what, name, thing, options, lines):
    """A dataclass's fields, with the comments behind them, as what they are about."""
    if dataclasses.is_dataclass(thing):
        code = inspect.getsource(thing)
        comments = re.findall(r"^ {4}(\w+): .*  # (.+)$", code, re.MULTILINE)
        lines += ["", *(f":param {field}: {comment}" for field, comment in comments)]


def skip_partial(app, what, name, thing, skip, options):
    """Another function with some arguments given: its docstring is not ours."""
    return True if isinstance(thing, partial) else None


def cheap_tree(app, page, template, context, doctree):
    """The tree of all pages is made once for each depth, not anew for each page."""
    up = "../" * page.count("/")

    def toctree(**how):
        if up not in TREES:
            TREES[up] = app.builder._get_local_toctree("-/" * page.count("/"), **how)
        tree = TREES[up]
        for here in (page, f"{page.rpartition('/')[0]}/index"):
            link = f'reference internal" href="{up}{here}.html"'
            old, new = f'"><a class="{link}', f' current"><a class="current {link}'
            tree = tree.replace(old, new)
        return tree

    context["toctree"] = toctree


def mend_navigation(app, page, template, context, doctree):
    """The level of the captions, which the theme forgets; the live page."""
    tree = context["furo_navigation_tree"]
    tree = tree.replace('role="heading"', 'role="heading" aria-level="2"')
    href = context["pathto"]("live/index.html", resource=True)
    link = f'<a class="reference internal" href="{href}">Play with a GPT</a>'
    tree = f'<ul><li class="toctree-l1">{link}</li></ul>{tree}'
    context["furo_navigation_tree"] = tree


def setup(app):
    app.connect("autodoc-process-docstring", add_fields)
    app.connect("autodoc-skip-member", skip_partial)
    app.connect("html-page-context", cheap_tree, priority=400)  # before the theme's
    app.connect("html-page-context", mend_navigation, priority=900)  # after the theme's
    return {"parallel_read_safe": True, "parallel_write_safe": True}
