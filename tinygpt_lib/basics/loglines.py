"""Lines of logs: read from files of many kinds, and the times that they tell."""

import bz2
import gzip
import lzma
import re
import signal
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from typing import IO, Self

import torch
from torch import Tensor

from tinygpt_lib.basics.tokens import checked_ids

__all__ = [
    "DATED",
    "LONGEST_LINE",
    "MASKS",
    "EventText",
    "bounded_lines",
    "compiled",
    "in_order",
    "read_lines",
    "seconds_of",
]

LONGEST_LINE = 10_000  # characters of a line that are looked at
DATED = (  # a time with its date: ISO 8601, then web servers', then syslog's
    r"\b\d{4}[-/]\d\d[-/]\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?"
    r"|\b\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d(?: [+-]\d{4})?"
    r"|\b[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d\b(?:[.,]\d+)?"
)
MASKS = {  # in this order: word that is put in -> pattern of what it stands for
    "<url>": r"\b[a-z][a-z+]{1,15}://[^\s\"'<>]+",
    "<address>": r"/?\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b"  # IPv4, then MAC, then IPv6
    r"|\b[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){5}\b"
    r"|(?<![\w:.])(?=[\d:]*(?:::|[a-fA-F]))(?=:*[0-9a-fA-F])"
    r"(?:[0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F]{0,4}(?![\w:])",
    "<time>": DATED + r"|\b\d\d:\d\d:\d\d\b(?:[.,]\d+)?",
    "<path>": r"(?<![\w<>/])(?:/[\w.+@~%=-]+)+/?",
    "<id>": r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b"
    r"|\b[A-Za-z]+_-\d{6,}\b|\b(?=\w*\d{6})[A-Za-z]\w*"
    r"|\b(?=[0-9a-fA-F]*\d)(?=\d*[a-fA-F])[0-9a-fA-F]{8,}\b",
    "<number>": r"\b0x[0-9a-fA-F]+\b"
    r"|(?<![\w<])[+-]?\d+(?:[.,]\d+)*(?:%|[A-Za-z]{1,3})?(?!\w)",
}


class Bounded:
    """A regular expression of people's own, or a stranger's: `patience` may end it.

    There are some, such as (a+)+$, that take centuries for one line.
    """

    calls, busy = 0, None  # of all: how many times one began, and which is at it

    def __init__(self, pattern: str, what: str):
        self.pattern, self.what = pattern, what
        try:
            self.compiled = re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{what} is no regular expression: {error}") from None

    def search(self, text: str) -> re.Match | None:
        """As of `re`."""
        Bounded.calls += 1
        Bounded.busy = self
        found = self.compiled.search(text)
        Bounded.busy = None
        return found

    def sub(self, word: str, text: str) -> str:
        """As of `re`."""
        Bounded.calls += 1
        Bounded.busy = self
        text = self.compiled.sub(word, text)
        Bounded.busy = None
        return text


@contextmanager
def patience(seconds: float = 2.0) -> Iterator[None]:
    """Within, ValueError for a regular expression that takes longer for a line.

    In the main thread only, and not on Windows: there is no clock to look at.
    """
    main = threading.current_thread() is threading.main_thread()
    if not (main and hasattr(signal, "setitimer")):
        yield
        return
    seen = -1

    def look(number, frame):
        nonlocal seen
        if (at := Bounded.busy) and Bounded.calls == seen:
            Bounded.busy = None
            raise ValueError(
                f"{at.what} takes more than {seconds:g} s for one line, as where "
                "something repeated is repeated"
            )
        seen = Bounded.calls

    before = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        Bounded.busy = None


def compiled(pattern: str, what: str) -> re.Pattern | Bounded:
    """A regular expression; ValueError, naming what it is, for one that is none."""
    if pattern in (DATED, *MASKS.values()):
        return re.compile(pattern)
    return Bounded(pattern, what)


def read_lines(*paths: str) -> Iterator[str]:
    """The lines of text files in turn, without their ends; "-" is standard input.

    Files, but not standard input, may be packed (gzip, bzip2, xz, zstd): their first
    bytes tell. Bytes that are not UTF-8 become U+FFFD, and long lines are cut to what
    is looked at. OSError for what can't be read, ValueError for a damaged packed file.
    """
    for path in paths:
        with ExitStack() as stack:
            if path == "-":
                file: IO[bytes] = sys.stdin.buffer
            else:
                file = stack.enter_context(open(path, "rb"))
                if opened := unpacker(file.peek(6)):
                    file = stack.enter_context(opened(file))
            try:
                yield from bounded_lines(file)
            except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
                raise ValueError(f"{path} is damaged: {error}") from None


def unpacker(start: bytes) -> Callable[[IO[bytes]], IO[bytes]] | None:
    """What opens a packed file that begins so; None for a plain one."""
    if start.startswith(b"\x28\xb5\x2f\xfd"):
        try:
            from zstandard import open as opened  # a package of its own
        except ImportError:
            raise ValueError(
                "a file is packed by zstd: unpack it, or install the package zstandard"
            ) from None
        return opened
    known = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
    return next((how for magic, how in known.items() if start.startswith(magic)), None)


def in_order(paths: Sequence[str]) -> list[str]:
    """Files with rotated ones in the order they were written: log.2.gz, log.1, log."""

    def age(path: str) -> tuple[str, int, str]:
        name = re.sub(r"\.(?:gz|bz2|xz|zst)$", "", path)
        found = re.fullmatch(r"(.+?)(?:\.(\d{1,3})|[-.](\d{8}(?:\d\d)?))?", name, re.S)
        stem, number, date = found.groups()
        return stem, -int(number or 0), date or "9"

    first = {}
    for place, path in enumerate(paths):
        first.setdefault(age(path)[0], place)
    return sorted(paths, key=lambda path: (first[age(path)[0]], *age(path)[1:]))


def bounded_lines(file: IO[bytes]) -> Iterator[str]:
    """Decoded lines of a binary file; of a long one the beginning only."""
    begun, data = b"", b"\n"
    while data:
        data = file.read1(2**20)
        whole, newline, left = (data or b"\n").rpartition(b"\n")
        if newline and (begun or data):
            text = (begun + whole).decode("utf-8", errors="replace")
            for line in text.split("\n"):
                yield line.rstrip("\r")[:LONGEST_LINE]
            begun = b""
        begun = (begun + left)[: 4 * LONGEST_LINE]  # a character has at most 4 bytes


def from_iso(text: str) -> datetime | None:
    """The time that a text in ISO 8601 gives with its date; None for another text."""
    if not re.match(r"\d{4}-\d\d-\d\d(?:[T ]|$)", text):
        return None
    try:  # many times as quick as dateutil, and logs are long
        return datetime.fromisoformat(text.replace(",", "."))
    except ValueError:
        return None


@lru_cache(maxsize=4096)
def seconds_of(text: str, time_format: str | None = None) -> float | None:
    """Seconds since 1970 of a time as text, UTC unless it says; None if it is none.

    Without a `time_format` (as for `strptime`), ISO 8601, web servers', syslog's and
    Unix times (in milli- and microseconds, too) are known, and most others; 05/06/2024
    is then a day in May. A time without a year is taken to be of 2000.
    """
    from dateutil import parser  # here, because few need it

    try:
        if time_format is not None:
            if not re.search(r"%[YyGcxDFs]", time_format):  # it tells no year
                text, time_format = f"2000 {text}", f"%Y {time_format}"
            time = datetime.strptime(text, time_format)
        elif re.fullmatch(r"\d{9,11}(?:\.\d+)?", text):
            return float(text)
        elif re.fullmatch(r"1\d{12}|1\d{15}", text):  # milli- or microseconds
            return int(text) / (1e3 if len(text) == 13 else 1e6)
        else:
            if re.match(r"\d\d/[A-Z][a-z]{2}/\d{4}:", text):  # as web servers write
                text = text.replace(":", " ", 1)
            time = from_iso(text) or parser.parse(text, default=datetime(2000, 1, 1))
    except (ValueError, OverflowError):
        return None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


class EventText:
    """What chapter 15's EventTokenizer needs to take its place among the tokenizers.

    Texts with an event, or <begin> or <end>, on each line; kept as plain data.
    """

    @classmethod
    def from_text(cls, text: str) -> Self:
        """The tokenizer of a text's events; empty lines don't count."""
        return cls.from_sessions([[line for line in text.split("\n") if line]])

    def encode(self, text: str) -> Tensor:
        """Ids of a text."""
        ids = {name: i for i, name in enumerate(self.names) if i}
        lines = [line for line in text.split("\n") if line]
        return torch.tensor([ids.get(line, self.unknown) for line in lines]).long()

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """The events of ids (N,), a line each; ValueError for an id that is none."""
        ids = checked_ids(ids, self.vocab_size)
        return "".join(f"{self.names[i]}\n" for i in ids)

    def pieces(self, text: str) -> list[bytes]:
        """What each token of text stands for; joined, they are its UTF-8 bytes."""
        return [piece.encode() for piece in re.findall(r"\n*[^\n]+\n*", text)]

    def to_dict(self) -> dict:
        """The tokenizer as plain JSON data."""
        return {"type": "events", "events": self.events}

    @classmethod
    def from_dict(cls, data: dict) -> Self:
        """The tokenizer that `to_dict` described; ValueError for nonsense."""
        if not isinstance(data.get("events"), list):
            raise ValueError("events must be a list")
        return cls(data["events"])
