"""Texts as people have them: files, folders of them, standard input, odd encodings."""

import sys
from collections.abc import Iterable
from pathlib import Path

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


def decoded(data: bytes, name: object) -> str:
    """The text of UTF-8 data, less a byte order mark; ValueError if they are none."""
    why = not_text(data)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at, byte = error.start, data[error.start]
        why = why or (
            f"is not UTF-8 text: byte {at:,} (0x{byte:02x}) is not; if it is Latin-1, "
            + RECODE.format("WINDOWS-1252")
        )
    if why:
        raise ValueError(f"{name} {why}")
    return text


def read_text(path: Path | str) -> str:
    """The text in a file, line ends as they are; "-" is standard input."""
    if str(path) != "-":
        try:
            return decoded(Path(path).read_bytes(), path)
        except OSError as error:
            raise ValueError(f"{path} can't be read: {error.strerror}") from None
    if sys.stdin is None:
        raise ValueError("standard input can't be read: it is closed")
    return decoded(sys.stdin.buffer.read(), "standard input")


def read_texts(paths: Iterable[Path | str]) -> tuple[str, dict[str, str]]:
    """All texts, a blank line between two; of a folder those in it, by their names.

    Also what became of each file: the reason for which it was left out, or nothing.
    ValueError for a file that was asked for by its own name, and is no text or empty.
    """
    texts, seen = [], {}
    for path in paths:
        inside = [path]
        if folder := str(path) != "-" and Path(path).is_dir():
            inside = sorted(p for p in Path(path).rglob("*") if p.is_file())
            inside = [
                p for p in inside if "/." not in f"/{p.relative_to(path).as_posix()}"
            ]
        for file in inside:
            try:
                text, why = read_text(file), ""
                if not text:
                    raise ValueError(f"{file} is empty: there is nothing to learn from")
                texts.append(text)
            except ValueError as error:
                if not folder:
                    raise
                why = str(error).removeprefix(f"{file} ")
            seen[str(file)] = why
        if not texts:
            raise ValueError(f"{path} holds no text file")
    begun = [text.rstrip("\r\n") for text in texts[:-1]]
    return "\n\n".join([*begun, texts[-1]]), seen
