"""Texts as people have them: files, folders of them, standard input, odd encodings."""

import codecs
import hashlib
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Self

from tinygpt_lib.basics.bars import bar

Opener = Callable[[], BinaryIO]
AT_ONCE = 2**18  # bytes of a file that are in memory together

EXPORT, UNPACK = "save it as plain text first", "unpack it first"
RECODE = "turn it into UTF-8 first, as by `iconv -f {} -t UTF-8`"
STARTS = {  # what a file looks like that begins so, and what to do with it
    b"\x1f\x8b": ("a gzip archive", UNPACK),
    b"BZh": ("a bzip2 archive", UNPACK),
    b"\xfd7zXZ\0": ("an xz archive", UNPACK),
    b"\x28\xb5\x2f\xfd": ("a zstd archive", UNPACK),
    b"PK\x03\x04": ("a zip archive, or a document of Word", f"{UNPACK}, or {EXPORT}"),
    b"%PDF-": ("a PDF", EXPORT),
    b"{\\rtf": ("a rich text document", EXPORT),
    b"\xff\xfe": ("UTF-16", RECODE.format("UTF-16")),
    b"\xfe\xff": ("UTF-16", RECODE.format("UTF-16")),
}


def not_text(data: bytes) -> str | None:
    """What data look like that are no UTF-8 text, and what to do; the start is enough.

    None where nothing speaks against it; single bytes may still be wrong.
    """
    for start, (kind, remedy) in STARTS.items():
        if data.startswith(start):
            return f"looks like {kind}: {remedy}"
    if data.count(0) <= len(data) / 100:
        return None
    for end, high in (("LE", data[1::2]), ("BE", data[::2])):
        if high.count(0) > len(high) / 2:
            return f"looks like UTF-16: {RECODE.format('UTF-16' + end)}"
    return "looks like no text: it is full of NUL bytes"


def decoded(opened: Opener, name: object, see=lambda data: None) -> Iterator[str]:
    """The text of UTF-8 data, in pieces and less a byte order mark; ValueError if none.

    `see` is shown the data, too.
    """
    place, rest = 0, b""
    with opened() as file:
        while True:
            block = file.read(AT_ONCE)
            see(block)
            data = rest + block
            if why := not place and not_text(data):
                raise ValueError(f"{name} {why}")
            if not place and data.startswith(codecs.BOM_UTF8):
                place, data = len(codecs.BOM_UTF8), data[len(codecs.BOM_UTF8) :]
            try:
                text, used = codecs.utf_8_decode(data, "strict", not block)
            except UnicodeDecodeError as error:
                at, byte = place + error.start, data[error.start]
                raise ValueError(
                    f"{name} is not UTF-8 text: byte {at:,} (0x{byte:02x}) is not; if "
                    f"it is Latin-1, {RECODE.format('WINDOWS-1252')}"
                ) from None
            place, rest = place + used, data[used:]
            if text:
                yield text
            if not block:
                return


def opener(path: Path | str) -> Opener:
    """What opens a file again and again, even one that can be read only once."""
    try:
        if str(path) == "-":
            if sys.stdin is None:
                raise ValueError("standard input can't be read: it is closed")
            return partial(BytesIO, sys.stdin.buffer.read())
        if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
            return partial(BytesIO, Path(path).read_bytes())
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None
    return partial(open, path, "rb")


@dataclass
class Source:
    """A part of a text, and what is known of it once it was read."""

    name: str
    opened: Opener
    length: int = 0  # in characters
    breaks: int = 0  # line ends that it ends with
    digest: str = ""

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """The one at a path, "-" for standard input; ValueError where it is no text."""
        source = cls("standard input" if str(path) == "-" else str(path), opener(path))
        digest = hashlib.sha256()
        with bar(None, f"reading {source.name}", "characters") as shown:
            for piece in source.pieces(digest.update):
                n = len(piece.rstrip("\r\n"))
                source.breaks = len(piece) - n + (0 if n else source.breaks)
                source.length += len(piece)
                shown.update(len(piece))
        source.digest = digest.hexdigest()
        return source

    def pieces(self, see=lambda data: None) -> Iterator[str]:
        """Its text, some at a time."""
        try:
            yield from decoded(self.opened, self.name, see)
        except OSError as error:
            raise ValueError(f"{self.name} can't be read: {error.strerror}") from None


class Text:
    """A text in several sources, a blank line between two, that is read in pieces.

    So it may be larger than the memory.
    """

    def __init__(self, sources: Iterable[Source]):
        self.sources = list(sources)
        self.between = 2 * (len(self.sources) - 1)

    @classmethod
    def of(cls, text: str) -> Self:
        """One that is in memory already."""
        data = text.encode()
        digest = hashlib.sha256(data).hexdigest()
        return cls([Source("text", partial(BytesIO, data), len(text), 0, digest)])

    def __len__(self) -> int:
        """How many characters it has."""
        breaks = sum(source.breaks for source in self.sources[:-1])
        return sum(source.length for source in self.sources) - breaks + self.between

    def __str__(self) -> str:
        return "".join(self.pieces())

    @property
    def digest(self) -> str:
        """Other texts, another digest."""
        whole = " ".join(source.digest for source in self.sources)
        return hashlib.sha256(whole.encode()).hexdigest()

    def pieces(self, start: int = 0, stop: int | None = None) -> Iterator[str]:
        """Its characters from start to stop (default: all), some at a time."""
        place, stop = 0, len(self) if stop is None else stop
        for piece in chain.from_iterable(map(self.of_source, self.sources)):
            if part := piece[max(0, start - place) : max(0, stop - place)]:
                yield part
            place += len(piece)
            if place >= stop:
                return
        raise ValueError(f"{self.sources[-1].name} has changed while it was read")

    def of_source(self, source: Source) -> Iterator[str]:
        """The pieces of a source and, unless it is the last one, the blank line."""
        if source is self.sources[-1]:
            yield from source.pieces()
            return
        left = source.length - source.breaks
        for piece in source.pieces():
            yield piece[:left]
            left -= len(piece[:left])
        yield "\n\n"


def read_text(path: Path | str) -> str:
    """The text in a file, line ends as they are; "-" is standard input."""
    return "".join(Source.read(path).pieces())


def read_texts(paths: Iterable[Path | str]) -> tuple[Text, dict[str, str]]:
    """All texts, a blank line between two; of a folder those in it, by their names.

    Also what became of each file: the reason for which it was left out, or nothing.
    ValueError for a file that was asked for by its own name, and is no text or empty.
    """
    sources, seen = [], {}
    for path in paths:
        inside = [path]
        if folder := str(path) != "-" and Path(path).is_dir():
            inside = sorted(p for p in Path(path).rglob("*") if p.is_file())
            inside = [
                p for p in inside if "/." not in f"/{p.relative_to(path).as_posix()}"
            ]
        for file in inside:
            try:
                source, why = Source.read(file), ""
                if not source.length:
                    raise ValueError(f"{file} is empty: there is nothing to learn from")
                sources.append(source)
            except ValueError as error:
                if not folder:
                    raise
                why = str(error).removeprefix(f"{file} ")
            seen[str(file)] = why
        if not sources:
            raise ValueError(f"{path} holds no text file")
    return Text(sources), seen
