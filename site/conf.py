"""How the pages look, and what Sphinx does for them: site/build.py calls it."""

import dataclasses
import inspect
import re

project = "tiny-gpt-from-scratch"
html_title = project
html_copy_source = False
html_show_copyright = False
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
mathjax_path = "django-static-mathjax/tex-svg.js"  # put there by site/build.py
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_argparse_cli",
]
exclude_patterns = ["beside"]
smartquotes = False
highlight_language = "none"

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


def add_fields(app, what, name, thing, options, lines):
    """A dataclass's fields, with the comments behind them, as what they are about."""
    if dataclasses.is_dataclass(thing):
        comments = re.findall(r"^ {4}(\w+): .*  # (.+)$", inspect.getsource(thing), re.M)
        lines += ["", *(f":param {field}: {comment}" for field, comment in comments)]


def setup(app):
    app.connect("autodoc-process-docstring", add_fields)
    return {"parallel_read_safe": True}
