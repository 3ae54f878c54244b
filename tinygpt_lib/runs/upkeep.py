"""A detector over the months: what it has learned from, updates, and its last versions.

Beside a detector's own files its folder holds `normal.safetensors`, the sessions and
windows that it was fitted on, and `versions`, with the files of its last ones.
"""

import filecmp
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch

from tinygpt_lib.basics.files import (
    NEXT,
    CheckpointError,
    current,
    locked,
    meaning,
    read_tensors,
    remove,
    scratch,
    write_tensors,
    writing,
)
from tinygpt_lib.runs.alarms import accepted_in
from tinygpt_lib.runs.detectors import AnomalyDetector
from tinygpt_lib.runs.watch import ALL, Cells, Watch

NORMAL, DECISIVE, VERSIONS = "normal.safetensors", "detector.safetensors", "versions"
KEPT = 3  # versions
RATE = 0.002  # that is promised where nothing else is asked, and as much can be


@dataclass
class Normal:
    """What is normal: sessions, whether they have ended, and the windows of the log."""

    sessions: list[Sequence[str]]
    ended: list[bool]
    cells: Cells = field(default_factory=Counter)
    windows: int = 0
    seconds: float = 1.0  # of a window

    def __add__(self, other: "Normal") -> "Normal":
        """This, and then the other."""
        cells = Counter(self.cells)
        for (window, event), number in other.cells.items():
            cells[self.windows + window, event] = number
        return Normal(
            [*self.sessions, *other.sessions],
            [*self.ended, *other.ended],
            cells,
            self.windows + other.windows,
            self.seconds,
        )

    def events(self) -> set[str]:
        """All events."""
        return {event for session in self.sessions for event in session}

    def save(self, folder: Path) -> None:
        """Writes it beside a detector."""
        events = sorted(self.events() | {event for _, event in self.cells} | {ALL})
        place = {event: i for i, event in enumerate(events)}
        cells = [(w, place[event], n) for (w, event), n in self.cells.items()]
        ids = [place[event] for session in self.sessions for event in session]
        tensors = {
            "ids": torch.tensor(ids, dtype=torch.int32),
            "lengths": torch.tensor([*map(len, self.sessions)], dtype=torch.int32),
            "ended": torch.tensor(self.ended, dtype=torch.uint8),
            "cells": torch.tensor(cells, dtype=torch.int32).reshape(-1, 3),
        }
        about = {"events": events, "windows": self.windows, "seconds": self.seconds}
        write_tensors(folder / NORMAL, tensors, about)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What `save` wrote; CheckpointError for anything else."""
        path = current(folder) / NORMAL
        if not path.exists():
            raise CheckpointError(
                f"{folder} doesn't hold what it was fitted on ({NORMAL}), as detectors "
                "of before don't: fit anew, on all normal logs"
            )
        tensors, about = read_tensors(path)
        try:
            events = about["events"]
            ids, lengths = tensors["ids"].tolist(), tensors["lengths"].tolist()
            if min([*ids, *lengths], default=0) < 0 or sum(lengths) != len(ids):
                raise ValueError("lengths that don't add up")
            rest = iter(ids)
            sessions = [[events[next(rest)] for _ in range(n)] for n in lengths]
            ended = list(map(bool, tensors["ended"].tolist()))
            if len(ended) != len(sessions):
                raise ValueError("sessions without an end")
            cells = Counter(
                {(w, events[e]): n for w, e, n in tensors["cells"].tolist()}
            )
            windows, seconds = int(about["windows"]), float(about["seconds"])
            if any(not 0 <= w < windows for w, _ in cells):
                raise ValueError("windows that are not there")
            return cls(sessions, ended, cells, windows, seconds)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is not what was normal: {error}") from error


def least_rate(n: int, parts: int) -> float:
    """The smallest rate that n sessions can promise, shared by some kinds of alarm."""
    digits = 10 ** (len(str(n + 1)) + 1)
    return -(-parts * digits // (n + 1)) / digits


def fitted(
    normal: Normal,
    *,
    false_alarms: float | None = None,
    tell: Callable[[str], None] = lambda text: None,
    about: dict,
    **settings,
) -> AnomalyDetector:
    """A detector of what is normal, with its watch, under one rate.

    Without a rate, RATE is promised, or the smallest that these sessions can promise.
    """
    n = sum(normal.ended)
    watch = Watch.fit(normal.cells, normal.windows, normal.seconds)
    parts = 3 if watch else 2
    if false_alarms is None:
        false_alarms = max(RATE, least_rate(n, parts)) if n > parts else RATE
        if false_alarms > RATE:
            tell(
                f"{n:,} sessions can promise a false-alarm rate of {false_alarms:g}, "
                f"and no less than that: {-(-parts // RATE) - 1:,.0f} could promise "
                f"{RATE:g}"
            )
    elif watch and false_alarms * (n + 1) < parts - 1e-9:
        tell(
            f"bursts and silences are not looked for: at a rate of {false_alarms:g} "
            f"that takes {-(-parts // false_alarms) - 1:,.0f} sessions"
        )
        watch = None
    about = {**about, **({"watch": watch.to_dict()} if watch else {})}
    return AnomalyDetector.fit(
        normal.sessions,
        ended=normal.ended,
        false_alarms=false_alarms,
        about=about,
        **settings,
    )


# --- Versions ---


def own_files(folder: Path) -> list[Path]:
    """The files that make a detector, relative to its folder, the decisive one last."""
    paths = [*folder.glob("[!.]*.safetensors"), *folder.glob("member-*/[!.]*")]
    paths = sorted(path.relative_to(folder) for path in paths if path.is_file())
    return sorted(paths, key=lambda path: path.name == DECISIVE)


def versions(folder: Path) -> list[Path]:
    """The folders of the versions before, the last one last."""
    found = (path.parent for path in (folder / VERSIONS).glob(f"*/{DECISIVE}"))
    found = (path for path in found if path.name.isdecimal())
    return sorted(found, key=lambda path: int(path.name))


def keep_version(folder: Path) -> None:
    """Keeps the files as they are now, and of older ones the last few.

    They are linked: files here are replaced by others, never written into.
    """
    before = versions(folder)
    if before and filecmp.cmp(before[-1] / DECISIVE, folder / DECISIVE, shallow=False):
        return  # what was to follow was stopped
    new = folder / VERSIONS / str(1 + int(before[-1].name) if before else 1)
    for path in own_files(folder):
        link(folder / path, new / path)
    for old in [*before, new][:-KEPT]:
        discard(folder, old)


def discard(folder: Path, version: Path | None = None) -> None:
    """Removes a version, and whatever somebody who was stopped has left of others."""
    if version:
        (version / DECISIVE).unlink()  # from now on it is none
    for path in (folder / VERSIONS).glob("[!.]*"):
        if not (path / DECISIVE).exists():
            remove(path)


def link(path: Path, other: Path) -> None:
    """Makes a file appear in another place too, in that of what was there."""
    if other.exists() and path.samefile(other):
        return  # renaming a link of a file to another would leave both
    other.parent.mkdir(parents=True, exist_ok=True)
    aside = other.with_name(f".{other.name}.partial")
    try:
        try:
            os.link(path, aside)
        except OSError:  # where there are no links
            shutil.copyfile(path, aside)
        os.replace(aside, other)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


@contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Within, a detector is changed: by one process at a time, from a settled state."""
    with writing(folder), locked(folder):
        for leftover in [*folder.rglob(".*.partial")]:
            remove(leftover)
        settle(folder)
        yield


def settle(folder: Path) -> None:
    """Puts the files of the version that is to be next in their places.

    Whoever is stopped meanwhile leaves it where `current` finds it.
    """
    coming = current(folder)
    if coming != folder:
        for path in own_files(coming):
            link(coming / path, folder / path)
    discard(folder, coming if coming != folder else None)
    with suppress(OSError):  # unless there are others
        (folder / VERSIONS).rmdir()


def undo(folder: Path) -> None:
    """Puts the version before in place of this one."""
    if not versions(folder):
        raise CheckpointError(f"{folder} holds no version from before")
    with changing(folder):
        become(folder, versions(folder)[-1])


def become(folder: Path, version: Path) -> None:
    """Makes a folder with a version the detector's, at once and for good."""
    version.rename(folder / NEXT)
    settle(folder)


def accept(folder: Path, events: Iterable[str]) -> list[str]:
    """Takes events for normal from now on; gives those that it hadn't so far.

    They are left out of what is judged, as what was news in the normal log was left out
    of what it is judged by: the promise stands.
    """
    with changing(folder):
        tensors, settings = read_tensors(folder / DECISIVE)
        kept = settings["about"]["accepted"] = accepted_in(settings["about"])
        new = [event for event in dict.fromkeys(events) if event not in kept]
        if new:
            kept.extend(new)
            keep_version(folder)
            write_tensors(folder / DECISIVE, tensors, settings)
    return new


def replace_detector(folder: Path, detector: AnomalyDetector, normal: Normal) -> None:
    """Puts a detector in the place of the one in a folder, which is kept."""
    with changing(folder):
        (folder / VERSIONS).mkdir(exist_ok=True)
        with scratch(folder / VERSIONS, ".-") as aside:
            new = aside / "new"
            new.mkdir()
            with meaning(new, folder):
                normal.save(new)
                detector.save(new)
            keep_version(folder)
            become(folder, new)
