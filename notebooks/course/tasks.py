"""Tasks to try representations on: what to learn from, and what not to have seen.

Each has items (texts or sessions), a label for each, groups that must not be cut in
two, and what a model may learn from before: nothing of what a probe is tested on.
"""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from course.logdata import Log, Trial
from tinygpt_lib.basics.extras import analysis
from tinygpt_lib.logs import Session

Item = str | Sequence[str]


@dataclass
class Task:
    """Items with labels, and which may be learnt from where which are guessed."""

    name: str
    items: list[Item]
    labels: np.ndarray  # (N,) of str
    groups: np.ndarray  # (N,) of int: items of a group are learnt from or tested on
    splits: list[tuple[np.ndarray, np.ndarray]]  # (train, test) places of items
    pretraining: str | list[list[str]]  # without the items of any test


def speeches(text: str) -> list[tuple[str, str]]:
    """Who speaks, and what is said, of the plays as the corpus prints them."""
    parts = (part.partition(":\n") for part in text.split("\n\n"))
    return [(name, words) for name, _, words in parts if words]


def speaker_task(text: str, speakers: int = 10, share: float = 0.3) -> Task:
    """Who says it? Of those who speak most often, the last speeches are tested."""
    spoken = speeches(text)
    top = [
        name for name, _ in Counter(name for name, _ in spoken).most_common(speakers)
    ]
    by_name: dict[str, list[int]] = defaultdict(list)
    for i, (name, _) in enumerate(spoken):
        by_name[name].append(i)
    tested = set()
    for name in top:
        own = by_name[name]
        if len(own) < 2:
            raise ValueError(f"{name} speaks once: there is nothing to test")
        tested.update(own[len(own) - max(1, round(share * len(own))) :])
    chosen = [i for i, (name, _) in enumerate(spoken) if name in top]
    is_test = np.array([i in tested for i in chosen])
    rest = [f"{n}:\n{words}" for i, (n, words) in enumerate(spoken) if i not in tested]
    return Task(
        "speaker",
        [spoken[i][1] for i in chosen],
        np.array([spoken[i][0] for i in chosen]),
        np.arange(len(chosen)),
        [(np.flatnonzero(~is_test), np.flatnonzero(is_test))],
        "\n\n".join(rest),
    )


def workload_task(log: Log, sessions: Sequence[Session], seed: int = 0) -> Task:
    """Which job wrote the block? The path that says it is masked in the events."""
    jobs = {}
    for line in log.lines:
        if path := re.search(r"allocateBlock: /user/root/([a-z]+)", line.text):
            jobs[line.session] = path[1]
    common = {job for job, n in Counter(jobs.values()).items() if n >= 50}
    labels = {s.id: jobs[s.id] for s in sessions if jobs.get(s.id) in common}
    return task_of_blocks("workload", sessions, labels, None, 1, seed)


def deletion_task(sessions: Sequence[Session], seed: int = 0, first: int = 10) -> Task:
    """Is the block deleted before the log ends? A task to fail at.

    Asked of the first events of blocks that were not deleted among these. When a block
    is deleted is decided by others, and whether before the end hangs on its age.
    """
    labels = {}
    for session in sessions:
        gone = ["delete" in event.lower() for event in session.events]
        if len(gone) >= first and not any(gone[:first]):
            labels[session.id] = "deleted" if any(gone) else "kept"
    return task_of_blocks("deletion", sessions, labels, first, 10, seed)


def task_of_blocks(
    name: str,
    sessions: Sequence[Session],
    labels: dict[str, str],
    first: int | None,
    at_most: int,
    seed: int,
) -> Task:
    """Of the blocks that tell the same, some drawn by chance; a third of all tested."""
    rng = random.Random(seed)
    alike = defaultdict(list)
    for session in sessions:
        if session.id in labels:
            alike[tuple(session.events[:first])].append(labels[session.id])
    drawn = [
        (group, list(events), label)
        for group, (events, found) in enumerate(alike.items())
        for label in rng.sample(found, min(at_most, len(found)))
    ]
    groups, items, kinds = zip(*drawn, strict=True)
    tested = {*rng.sample(range(len(alike)), len(alike) // 3)}
    is_test = np.array([group in tested for group in groups])
    unseen = {events for i, events in enumerate(alike) if i in tested}
    known = [s.events for s in sessions if tuple(s.events[:first]) not in unseen]
    splits = [(np.flatnonzero(~is_test), np.flatnonzero(is_test))]
    return Task(name, [*items], np.array(kinds), np.array(groups), splits, known)


def attack_task(trial: Trial, folds: int = 5) -> Task:
    """Which attack was it? Traces of one run of an attack stay together."""
    with analysis():
        from sklearn.model_selection import StratifiedGroupKFold

    attacks = [i for i, kind in enumerate(trial.kinds) if kind]
    labels = np.array([trial.kinds[i] for i in attacks])
    runs = np.unique([trial.groups[i] for i in attacks], return_inverse=True)[1]
    dealt = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
    splits = list(dealt.split(labels, labels, runs))
    items = [trial.test[i] for i in attacks]
    return Task("attack", items, labels, runs, splits, trial.train)
