"""What the chapters share: figures, models, logs, and what workbooks are asked."""

from importlib import import_module
from importlib.util import find_spec

PROMPT = "ROMEO:\n"  # every chapter's model continues it


def __getattr__(name: str):
    """Figures, when a chapter asks for them: matplotlib takes a second to load."""
    if name.startswith("_") or find_spec(f"{__name__}.{name}"):
        raise AttributeError(name)
    return getattr(import_module(f"{__name__}.figures"), name)
