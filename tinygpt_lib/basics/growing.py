"""Lines of a file that grows: rotated, emptied, filled again, or not there yet."""

import glob
import mmap
import os
import queue
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Self

from tinygpt_lib.basics.loglines import LONGEST_LINE, bounded_lines

POLL = 0.2  # seconds between two looks
FIRST, LAST = 1024, 256  # bytes of a file, and of what was read last, that are kept
AT_ONCE = 2**20  # bytes that are read at a time

Batch = list[tuple[int, str]]  # lines with their numbers


@dataclass
class Place:
    """How far a file was read: to the end of a line, and how to know it again."""

    offset: int = 0
    number: int = 0  # lines that were read, of whatever file was there
    first: bytes = b""  # of the file
    last: bytes = b""  # before the offset
    skipping: bool = False  # in the middle of an overlong line

    def to_dict(self) -> dict:
        """The place as plain data."""
        return {**asdict(self), "first": self.first.hex(), "last": self.last.hex()}

    @classmethod
    def from_dict(cls, data: dict) -> Self:
        """What `to_dict` described; ValueError, TypeError or KeyError for nonsense."""
        first, last = bytes.fromhex(data["first"]), bytes.fromhex(data["last"])
        place = cls(**{**data, "first": first, "last": last})
        numbers = place.offset, place.number
        if not all(isinstance(n, int) and n >= 0 for n in numbers):
            raise ValueError("a place is two numbers")
        return place

    def is_in(self, file: IO[bytes]) -> bool:
        """Whether it is this file that was read so far."""
        file.seek(0)
        if file.read(len(self.first)) != self.first:
            return False
        file.seek(self.offset - len(self.last))
        return file.read(len(self.last)) == self.last


class GrowingFile:
    """Reads what is added to a file, whatever becomes of it meanwhile.

    A file in another's place is read from its beginning, after the rest of the old one;
    so is one that was emptied and filled again, whatever its length. Where what was
    read last stands in it, as in a log that is cut at its beginning, it is read from
    there on. `tell` is told of what people should know.
    """

    def __init__(
        self,
        path: str,
        place: Place | None = None,
        tell: Callable[[str], None] = lambda text: None,
    ):
        self.path, self.place, self.tell = Path(path), place or Place(), tell
        self.file: IO[bytes] | None = None
        self.waiting = False
        if place is not None and not self.go_on():
            self.other(None)

    def read(self) -> Batch:
        """The lines that are whole by now, some at a time; none if there are none."""
        if self.file is None and not self.go_on():
            return []
        if not self.place.is_in(self.file):
            self.close()
            self.tell(f"{self.path} was emptied, or another file put in its place")
            self.other(None)
            return self.read() if self.file else []
        before = None
        while self.place.offset != before:  # nothing may be left of an overlong line
            before = self.place.offset
            self.file.seek(before)
            data = self.file.read(AT_ONCE)
            if lines := self.lines_of(data):
                return lines
        if not self.replaced():
            return []
        self.close()
        rest = self.lines_of(data + b"\n") if data else []
        self.other(self.place.number)
        return rest or (self.read() if self.file else [])

    def go_on(self) -> bool:
        """Opens the file where it was read; False if it isn't there or is another."""
        try:
            file = open(self.path, "rb", buffering=0)
        except FileNotFoundError:
            if not self.waiting:
                self.tell(f"{self.path} is not there yet: waiting for it")
            self.waiting = True
            return False
        self.waiting = False
        if file.read(2) == b"\x1f\x8b":
            file.close()
            raise ValueError(f"{self.path} is gzipped: it can't be followed")
        if not self.place.is_in(file):
            file.close()
            return False
        self.file = file
        return True

    def other(self, number: int | None) -> None:
        """Turns to a file that is not the one that was read so far.

        Unless that was read to its end, its rest is looked for, under another name.
        """
        if number is None:
            for name in glob.glob(f"{glob.escape(str(self.path))}*"):
                with suppress(OSError):
                    file = open(name, "rb", buffering=0)
                    longer = os.fstat(file.fileno()).st_size > self.place.offset
                    if self.place.offset and longer and self.place.is_in(file):
                        self.file = file  # and then it is `replaced`
                        return
                    file.close()
        offset = 0
        with suppress(OSError, ValueError), open(self.path, "rb") as file:
            if self.place.last:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as there:
                    offset = there.rfind(self.place.last) + len(self.place.last)
                    found = offset >= len(self.place.last)
                offset = offset if found else 0
            last, first = self.place.last if offset else b"", file.read(FIRST)[:offset]
            self.place = Place(offset, self.place.number, first, last)
            self.go_on()
            return
        self.place = Place(number=self.place.number)

    def lines_of(self, data: bytes) -> Batch:
        """The whole lines at the beginning of data; the place is then behind them."""
        whole, newline, _ = data.rpartition(b"\n")
        if not newline and len(data) < AT_ONCE:
            return []
        used = len(whole) + 1 if newline else len(data)
        texts, place, lines = data[:used].split(b"\n"), self.place, []
        ends = (
            texts.pop() if newline else None
        )  # an overlong line has begun, or goes on
        for text in texts:
            if not place.skipping:
                place.number += 1
                line = text.decode("utf-8", errors="replace").rstrip("\r")
                lines.append((place.number, line[:LONGEST_LINE]))
            place.skipping = ends is None
        place.offset += used
        place.last = (place.last + data[:used])[-LAST:]
        if len(place.first) < FIRST and place.offset - used == len(place.first):
            place.first = (place.first + data[:used])[:FIRST]
        return lines

    def replaced(self) -> bool:
        """Whether there is another file at the path than the one that is read."""
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            return False  # somebody is about to put a new one there
        here = os.fstat(self.file.fileno())
        return (there.st_ino, there.st_dev) != (here.st_ino, here.st_dev)

    def close(self) -> None:
        """Closes the file."""
        if self.file is not None:
            self.file.close()
            self.file = None


def growing(file: GrowingFile) -> Iterator[Batch]:
    """Lines of a file as they come, many at a time; none while there are none."""
    while True:
        lines = file.read()
        yield lines
        if not lines:
            time.sleep(POLL)


def is_stream(path: str) -> bool:
    """Whether that is standard input or a pipe, which can be read once."""
    with suppress(FileNotFoundError):
        return path == "-" or not stat.S_ISREG(os.stat(path).st_mode)
    return False


def own_stdin() -> IO[bytes]:
    """Standard input as a file of one's own.

    Python closes sys.stdin when it exits, and can't while a thread waits for a line.
    """
    try:
        return open(os.dup(sys.stdin.fileno()), "rb")
    except OSError:  # it is no real file
        return sys.stdin.buffer


def arriving(path: str, number: int = 0) -> Iterator[Batch]:
    """Lines of a stream, which another thread waits for; none while there are none."""
    waiting: queue.Queue[str | Exception | None] = queue.Queue(maxsize=10_000)
    opened = own_stdin if path == "-" else partial(open, path, "rb")

    def fetch() -> None:
        try:
            for line in bounded_lines(opened()):
                waiting.put(line)
        except Exception as error:
            waiting.put(error)
        waiting.put(None)

    threading.Thread(target=fetch, daemon=True).start()
    line: str | Exception | None = ""
    while line is not None:
        lines = []
        with suppress(queue.Empty):
            line = waiting.get(timeout=POLL)
            while isinstance(line, str):
                number += 1
                lines.append((number, line))
                line = waiting.get_nowait() if len(lines) < 10_000 else ""
                if len(lines) == 10_000:
                    break
        yield lines
        if isinstance(line, Exception):
            raise line
