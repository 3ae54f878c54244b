"""From a text of any size to ids for a run: read in pieces, held in 1 to 4 bytes.

The same tokenizers and ids as by `from_text` and `encode`, in less time and memory.
"""

import json
import os
import re
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from inspect import signature
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from tinygpt_lib.basics.bars import counted
from tinygpt_lib.basics.corpus import data_folder
from tinygpt_lib.basics.files import NOT_OURS, remove_partial_files
from tinygpt_lib.basics.ids import Ids
from tinygpt_lib.basics.texts import Text
from tinygpt_lib.runs.checkpoints import fingerprint
from tinygpt_lib.runs.pairs import encode_chunks, learn_merges
from tinygpt_lib.text import CharTokenizer, split
from tinygpt_lib.tokenizers import (
    BPETokenizer,
    ByteTokenizer,
    WordTokenizer,
    chunks_of,
)

CHUNKS = {BPETokenizer: chunks_of, WordTokenizer: WordTokenizer.pattern.findall}
LARGE = 2**24  # characters; the ids of a longer text are kept on the disk
KEPT = 30 * 24 * 3600  # seconds for which nobody may ask for them before they go
HEADER = 4096  # bytes; what follows begins at a page
SMALL = {t.__name__: t for t in (np.uint8, np.uint16, np.uint32)}

BOUNDARY = re.compile(r"[^\s\x00-\x20][ \n]")  # where no chunk goes across
TAIL = 2_000  # characters in which one is looked for


def whole_chunks(pieces: Iterable[str]) -> Iterator[str]:
    """The same text, cut before a blank or line break that follows a word or sign.

    Neither of the patterns has a match across, or looks further.
    """
    held = []
    for piece in pieces:
        ends = [
            m.end() - 1 for m in BOUNDARY.finditer(piece, max(0, len(piece) - TAIL))
        ]
        if ends:
            yield "".join([*held, piece[: ends[-1]]])
            held = []
        held.append(piece[ends[-1] :] if ends else piece)
    yield "".join(held)


class Data:
    """A text that becomes ids: nine tenths to train on, the rest to validate on."""

    def __init__(self, text: Text):
        self.text = text
        cut = len(split(range(len(text)))[0])
        self.ranges = (0, cut), (cut, len(text))
        self.found: dict[type, tuple] = {}

    def pieces(self, part: int, doing: str) -> Iterator[str]:
        """The text of the first or second part, some at a time, with a bar."""
        start, stop = self.ranges[part]
        what = f"{doing}, {('to train on', 'to validate on')[part]}"
        return counted(self.text.pieces(start, stop), stop - start, what)

    def chunks(self, kind: type) -> tuple[list[str], list[list[np.ndarray]]]:
        """All chunks that differ, those to train on first; by number, both parts."""
        if kind not in self.found:
            numbers: dict[str, int] = defaultdict()
            numbers.default_factory = numbers.__len__
            parts = []
            for part in (0, 1):
                pieces = whole_chunks(self.pieces(part, "cutting into chunks"))
                found = map(CHUNKS[kind], pieces)
                numbered = (map(numbers.__getitem__, chunks) for chunks in found)
                parts.append([np.fromiter(n, dtype=np.int32) for n in numbered])
            self.found[kind] = [*numbers], parts
        return self.found[kind]

    def characters(self) -> list[str]:
        """All that occur, sorted."""
        occurs = np.zeros(sys.maxunicode + 1, dtype=bool)
        for part in (0, 1):
            for piece in self.pieces(part, "looking for characters"):
                occurs[np.frombuffer(piece.encode("utf-32-le"), np.uint32)] = True
        return [*map(chr, np.flatnonzero(occurs))]

    def learn(self, kind: type, vocab_size: int | None = None):
        """The tokenizer that the kind's `from_text` makes.

        Merges and words are learnt from the training text alone, as the model is. Which
        characters exist is not learnt, and all have to be known.
        """
        if kind is CharTokenizer:
            return kind(self.characters())
        if kind is ByteTokenizer:
            return kind()
        if vocab_size is None:
            vocab_size = signature(kind.from_text).parameters["vocab_size"].default
        chunks, (train, _) = self.chunks(kind)
        counts = sum(np.bincount(part, minlength=len(chunks)) for part in train)
        n = np.count_nonzero(counts)  # of the others they are the first
        if kind is BPETokenizer:
            encoded = (chunk.encode() for chunk in chunks[:n])
            often = dict(zip(encoded, counts[:n].tolist(), strict=True))
            return kind(learn_merges(often, vocab_size - 256))
        often = np.argsort(-counts[:n], kind="stable")[: vocab_size - 2]
        return kind([f" {kind.unk}", *(chunks[i] for i in often)])

    def encode(self, tokenizer) -> tuple[Ids, Ids]:
        """Ids to train on and ids to validate on.

        Those of a large text are kept in the cache folder, and found there again.
        """
        if len(self.text) >= LARGE:
            about = f"{self.text.digest} {json.dumps(tokenizer.to_dict())}"
            path = data_folder() / "ids" / sha256(about.encode()).hexdigest()
            try:
                return kept(path) or self.keep(path, tokenizer)
            except OSError as error:
                why = error.strerror or error
                print(f"ids are held in memory: {path} ({why})", file=sys.stderr)
        none = np.empty(0, small_type(tokenizer))
        arrays = ([none, *self.arrays(tokenizer, part)] for part in (0, 1))
        return tuple(Ids(np.concatenate(part)) for part in arrays)

    def arrays(self, tokenizer, part: int) -> Iterator[np.ndarray]:
        """The ids of the first or second part, some at a time, as small numbers."""
        small = small_type(tokenizer)
        if type(tokenizer) in CHUNKS:
            chunks, parts = self.chunks(type(tokenizer))
            if isinstance(tokenizer, BPETokenizer):
                encoded = (chunk.encode() for chunk in chunks)
                ids, sizes = encode_chunks(tokenizer, encoded)
            else:  # a line break between two chunks is a chunk
                ids = tokenizer.encode("\n".join(chunks))[::2].numpy()
                sizes = np.ones_like(ids)
            ids, begins = ids.astype(small), np.cumsum(sizes) - sizes
            for numbers in parts[part]:
                n = sizes[numbers]
                ends = np.cumsum(n)
                shift = np.repeat(begins[numbers] - (ends - n), n)
                yield ids[np.arange(len(shift)) + shift]
            return
        pieces, place = self.pieces(part, "encoding"), self.ranges[part][0]
        if type(tokenizer) not in (ByteTokenizer, CharTokenizer):
            pieces = ["".join(pieces)]
        for piece in pieces:
            yield small_ids(tokenizer, piece, place)
            place += len(piece)

    def keep(self, path: Path, tokenizer) -> tuple[Ids, Ids]:
        """Writes the ids to a file, unless another process has done so meanwhile."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with taking_turns(path.parent):
            if there := kept(path):
                return there
            forget(path.parent)
            aside = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}.partial")
            try:
                with open(aside, "x+b") as file:
                    file.write(b" " * HEADER)
                    sizes = []
                    for part in (0, 1):
                        sizes.append(0)
                        for ids in self.arrays(tokenizer, part):
                            ids.tofile(file)
                            sizes[-1] += len(ids)
                    file.flush()
                    about = {"sizes": sizes, "type": small_type(tokenizer).__name__}
                    digest = fingerprint(*mapped(file, about))
                    file.seek(0)
                    file.write(json.dumps({**about, "fingerprint": digest}).encode())
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(aside, path)
            except BaseException:
                aside.unlink(missing_ok=True)
                raise
            return kept(path)


def small_type(tokenizer) -> type:
    """The smallest type of numbers that holds all ids."""
    return np.min_scalar_type(tokenizer.vocab_size - 1).type


def small_ids(tokenizer, text: str, place: int = 0) -> np.ndarray:
    """The ids of what begins at a place in a longer text; those of bytes, no copy."""
    if type(tokenizer) is ByteTokenizer:
        return np.frombuffer(text.encode(), np.uint8)
    if type(tokenizer) is CharTokenizer:
        return tokenizer.look_up(text, place).astype(small_type(tokenizer))
    return tokenizer.encode(text).numpy().astype(small_type(tokenizer))


def mapped(file, about: dict) -> tuple[Ids, Ids]:
    """What a file with such a header holds."""
    (n, m), dtype = about["sizes"], np.dtype(SMALL[about["type"]])
    begins = HEADER, HEADER + n * dtype.itemsize
    both = zip((n, m), begins, strict=True)
    return tuple(
        Ids(np.memmap(file, dtype, "r", at, (size,)), file) for size, at in both
    )


def kept(path: Path) -> tuple[Ids, Ids] | None:
    """The ids that are in a file; None if there is none, or one that was altered."""
    if not path.exists():
        return None
    file = open(path, "rb")  # for as long as the ids are in use
    try:
        about = json.loads(file.read(HEADER))
        parts = mapped(file, about)
        if fingerprint(*parts) == about["fingerprint"]:
            path.touch()
            return parts
    except (*NOT_OURS, OSError):
        pass
    file.close()
    return None


def forget(folder: Path) -> None:
    """Removes what nobody has asked for in a month, or a kill has left half-written."""
    remove_partial_files(folder)
    for path in folder.iterdir():
        if time.time() - path.stat().st_mtime > KEPT and path.name != ".lock":
            path.unlink()


@contextmanager
def taking_turns(folder: Path) -> Iterator[None]:
    """Only one process writes at a time; the others say that they wait."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=1)
    except Timeout:
        print("waiting: another process writes ids of a text", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
