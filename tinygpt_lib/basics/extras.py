"""Packages that only the analyses need."""

from collections.abc import Iterator
from contextlib import contextmanager

ANALYSIS = ("pyarrow", "scipy", "sklearn")


@contextmanager
def analysis() -> Iterator[None]:
    """Around what imports them: where one is missing, the error names the extra.

    `with analysis():`, or `@analysis()` on a function.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ANALYSIS:
            raise
        raise ModuleNotFoundError(
            f"{error.name} is missing: `pip install 'tinygpt-lib[analysis]'` brings it",
            name=error.name,
        ) from error
