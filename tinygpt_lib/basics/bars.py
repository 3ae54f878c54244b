"""Progress that is shown where it lasts, and only by one of several processes."""

from collections.abc import Iterable, Iterator

from tqdm import tqdm


def bar(total: int, what: str, unit: str) -> tqdm:
    """A bar for what takes longer than half a second."""
    return tqdm(total=total, desc=what, unit=f" {unit}", unit_scale=True, delay=0.5)


def counted(pieces: Iterable[str], total: int, what: str) -> Iterator[str]:
    """The pieces of a text, with a bar of its characters."""
    with bar(total, what, "characters") as shown:
        for piece in pieces:
            yield piece
            shown.update(len(piece))
