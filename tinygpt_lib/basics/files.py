"""Files that are whole or absent: atomic writes, and tensors that come with a checksum.

Nothing here runs code that a file holds: JSON and safetensors only, never a pickle.
"""

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor

from tinygpt_lib.basics.interrupts import held_interrupt

FORMAT = "tinygpt_lib"
VERSION = 1
KINDS = {  # what a folder with this file holds, and what that is for
    "detector.safetensors": "a detector, for `detect score`",
    "training.safetensors": "a run, for `sample`, `evaluate` and `train --resume`",
    "model.safetensors": "a model without a run, for `sample` and `evaluate`",
}
NEXT = (
    "versions/next"  # in a detector's folder: what it becomes, until it has become it
)
ASIDE = ".-*.partial"  # what `filling` writes aside in, within a folder


# What data that are not ours may lead to, sizes beyond all memory included.
NOT_OURS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
)


class CheckpointError(ValueError):
    """A checkpoint that can't be read or written; says which file, and why."""


@contextmanager
def understood(otherwise: str) -> Iterator[None]:
    """CheckpointError, of those words and the cause, for what is not ours."""
    try:
        yield
    except CheckpointError:
        raise
    except NOT_OURS as error:
        lacks = "lacks " if isinstance(error, KeyError) else ""
        raise CheckpointError(f"{otherwise}: {lacks}{first_line(error)}") from error


def first_line(error: Exception) -> str:
    """The error in one line; torch likes to go on, and so may what a file holds."""
    line = str(error).partition("\n")[0]
    return line if len(line) <= 300 else f"{line[:300]}..."


def current(folder: Path) -> Path:
    """Where a detector's files are: while they are exchanged, in a folder aside."""
    coming = folder / NEXT
    return coming if (coming / "detector.safetensors").exists() else folder


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """CheckpointError, naming the folder, for whatever keeps us from writing in it."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{folder} can't be written: {error.strerror or error}"
        ) from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from training in the folder; CheckpointError if one is."""
    with writing(folder):
        try:
            held = FileLock(folder / ".lock").acquire(timeout=0)
        except Timeout:  # which is an OSError
            raise CheckpointError(f"another process is training in {folder}") from None
    with held:
        yield


def check_free(folder: Path, decisive: str) -> None:
    """CheckpointError unless the folder is new, empty, or what a kill left of a start.

    Such a start has all files aside, but did not come to its decisive one.
    """
    with writing(folder):
        there = {folder} if folder.exists() else set()
        there = {*folder.iterdir()} if folder.is_dir() else there
    # The root of a volume has the second by itself.
    there -= {folder / ".lock", folder / "lost+found"}
    asides = {path for path in there if path.match(ASIDE)}
    whole = folder / decisive in there
    begun = any((aside / "new" / decisive).exists() for aside in asides)
    if whole or (there > asides and not begun):
        go_on = "resume the run in it, or " if whole else ""
        raise CheckpointError(
            f"{folder} exists and is not empty: {go_on}choose another folder"
        )


@contextmanager
def filling(folder: Path, decisive: str) -> Iterator[Path]:
    """A folder to write files in, which then appear in `folder`, all or none of them.

    A folder that is not there appears with them. One that is there stays what it is (a
    mount point, a link, somebody's with a mode and owner of its own) and gets them one
    by one, the decisive one last: it is nothing before. CheckpointError unless it is
    free, and for what keeps us from writing.
    """
    check_free(folder, decisive)
    with writing(folder), ExitStack() as stack:
        place = folder.resolve()
        there = place.exists()
        if there:
            stack.enter_context(locked(folder))
            check_free(folder, decisive)
            remove_partial_files(folder)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
        beside = (place, ".-") if there else (place.parent, f".{place.name}-")
        aside = stack.enter_context(scratch(*beside)) / "new"
        aside.mkdir()
        with meaning(aside, folder):
            yield aside
        if not there:
            aside.rename(place)
            return
        files = sorted(aside.iterdir(), key=lambda path: path.name == decisive)
        try:
            for file in files:
                remove(place / file.name)  # a folder that a kill has left, say
                file.replace(place / file.name)
        except BaseException:
            for file in files:
                remove(place / file.name)
            raise


@contextmanager
def meaning(aside: Path, folder: Path) -> Iterator[None]:
    """Errors of files in a folder aside name the one that they are to be in."""
    try:
        yield
    except CheckpointError as error:
        told = str(error).replace(str(aside), str(folder))
        raise CheckpointError(told) from error


@contextmanager
def scratch(folder: Path, prefix: str) -> Iterator[Path]:
    """A new folder, which goes in any case: not even Ctrl-C keeps it."""
    path = Path(tempfile.mkdtemp(".partial", prefix, folder))
    try:
        yield path
    finally:
        with held_interrupt() as stopped:
            shutil.rmtree(path, ignore_errors=True)
        if stopped():
            raise KeyboardInterrupt


def remove(path: Path) -> None:
    """Removes a file, or a folder and all that is in it, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Puts data at path, wholly or not at all, whatever happens on the way."""
    write_together({path: data})


def write_together(files: Mapping[Path, bytes]) -> None:
    """Puts data at each path; while any of it can't be written, nothing changes."""
    # Written beside its place, since a rename is atomic only within a file system, and
    # under a name of its own, since another process may be writing the same file.
    asides = {
        p: p.with_name(f".{p.name}-{uuid.uuid4().hex[:8]}.partial") for p in files
    }
    try:
        for path, aside in asides.items():
            with open(aside, "xb") as file:
                if path.exists():  # a file that is private stays so
                    shutil.copymode(path, aside)
                file.write(files[path])
                file.flush()
                os.fsync(file.fileno())  # else a power cut may leave an empty file
        for path, aside in asides.items():
            os.replace(aside, path)
    except BaseException:
        for aside in asides.values():
            aside.unlink(missing_ok=True)
        raise


def remove_partial_files(folder: Path) -> None:
    """Removes what a killed process left half-written; only for who owns the folder."""
    for leftover in folder.glob(".*.partial"):
        if leftover.match(ASIDE):
            shutil.rmtree(leftover, ignore_errors=True)
        elif leftover.is_file():  # a folder is a run that somebody starts in here
            leftover.unlink(missing_ok=True)


def json_file(data: dict) -> bytes:
    """Data, with the format's name and version, as people can read it."""
    stamped = {"format": FORMAT, "version": VERSION, **data}
    text = json.dumps(stamped, indent=2, ensure_ascii=False) + "\n"
    # Half of a surrogate pair is no text, but may stand in the name of a file.
    return text.encode("utf-8", "surrogatepass")


def json_object(path: Path) -> dict:
    """What a JSON file holds; CheckpointError unless that is an object."""
    content = read_bytes(path)
    with understood(f"{path} is not valid JSON, or was cut short or altered"):
        data = json.loads(content)
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} was altered: it holds no JSON object")
    return data


def read_json(path: Path) -> dict:
    """What `json_file` made, less the stamp; CheckpointError for anything else."""
    data = json_object(path)
    if "model_type" in data and "format" not in data:
        raise CheckpointError(
            f"{path} is of a model of Hugging Face's: `convert --from hf "
            f"{path.parent}` makes one of ours of it"
        )
    check_stamp(path, data)
    return data


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: dict) -> None:
    """Writes what `tensor_file` makes."""
    write_atomically(path, tensor_file(tensors, about))


def tensor_file(tensors: Mapping[str, Tensor], about: dict) -> bytes:
    """Tensors as safetensors, with JSON data `about` them and a checksum."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    text = json.dumps(about)
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "about": text,
        "sha256": checksum(tensors, text),
    }
    try:
        return to_safetensors(tensors, metadata)
    except SafetensorError as error:  # at most 100 MB may be said about the tensors
        raise CheckpointError(
            f"these tensors can't be kept as safetensors: the vocabulary is too large "
            f"({error})"
        ) from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    """What `write_tensors` wrote; CheckpointError if a single byte differs."""
    data = read_bytes(path)  # at once: a run may save in between
    with understood(
        f"{path} is not a whole safetensors file: it was cut short, altered, or is "
        "something else (a pickle, say, which is never loaded)"
    ):
        tensors = from_safetensors(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata = header.get("__metadata__", {})
        check_stamp(path, metadata)
        text = metadata.get("about", "")
        if metadata.get("sha256") != checksum(tensors, text):
            raise CheckpointError(
                f"{path} was altered: its content does not match its checksum"
            )
        return tensors, json.loads(text)


def checksum(tensors: Mapping[str, Tensor], about: str) -> str:
    """A sha256 over every name, type, shape and byte."""
    digest = hashlib.sha256(about.encode())
    for name, t in sorted(tensors.items()):
        digest.update(f"\n{name} {t.dtype} {tuple(t.shape)}\n".encode())
        digest.update(t.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def check_stamp(path: Path, data: dict) -> None:
    """Takes the stamp off; CheckpointError for another format or version than ours."""
    name, version = data.pop("format", None), data.pop("version", None)
    if name != FORMAT:
        raise CheckpointError(f"{path} was not written by {FORMAT}")
    if str(version) != str(VERSION):
        raise CheckpointError(
            f"{path} has version {version!r:.50} of the format; this {FORMAT} reads "
            f"version {VERSION} only"
        )


def read_bytes(path: Path, size: int = -1) -> bytes:
    """The file's first `size` bytes (default: all); CheckpointError if it can't be."""
    try:
        with open(path, "rb") as file:
            return file.read(size)
    except OSError as error:
        reason = error.strerror or str(error)
        for name, what in KINDS.items():
            if isinstance(error, FileNotFoundError) and (path.parent / name).exists():
                reason += f" ({path.parent} holds {what})"
                break
        raise CheckpointError(f"{path} can't be read: {reason}") from error
