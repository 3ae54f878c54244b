"""Probes and their rivals: linear classifiers on vectors or on bags of n-grams.

Chapter 17 says what to beware of. Nothing here is chosen by what is tested.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import bootstrap
from sklearn.base import clone
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import StratifiedGroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from tinygpt_lib.basics.checks import check_int

PENALTIES = (10.0, 100.0, 1000.0)


def probe(
    candidates: Sequence[tuple],
    labels: np.ndarray,
    splits: Sequence[tuple[np.ndarray, np.ndarray]],
    groups: np.ndarray,
) -> np.ndarray:
    """Guesses (N,) of labels (N,) by the best candidate; "" where nothing is tested.

    A candidate is a classifier of scikit-learn, and what that is given for each item.
    For each split (train, test) the one is used that does best in a cross-validation on
    the first part alone, by macro-F1. Items of a group (N,) are not torn apart in it.
    """
    guesses = np.full(len(labels), "", dtype=object)
    for known, asked in splits:
        folds = StratifiedGroupKFold(3, shuffle=True, random_state=0)
        quality = [
            cross_val_score(
                classifier,
                [inputs[i] for i in known],
                labels[known],
                groups=groups[known],
                cv=folds,
                scoring="f1_macro",
                error_score="raise",
            ).mean()
            for classifier, inputs in candidates
        ]
        classifier, inputs = candidates[int(np.argmax(quality))]
        classifier = clone(classifier)
        classifier.fit([inputs[i] for i in known], labels[known])
        guesses[asked] = classifier.predict([inputs[i] for i in asked])
    return guesses


def on_vectors(*vectors: Tensor) -> list[tuple]:
    """Candidates for `probe`: linear classifiers of each of some vectors (N, C)."""
    return [
        (
            make_pipeline(
                StandardScaler(), RidgeClassifier(penalty, class_weight="balanced")
            ),
            part.numpy(),
        )
        for part in vectors
        for penalty in PENALTIES
    ]


def on_bags(items: Sequence) -> list[tuple]:
    """Candidates for `probe`: linear classifiers of n-grams of texts or sessions."""
    longest = (3, 4, 5) if isinstance(items[0], str) else (1, 2, 3)
    return [
        (
            make_pipeline(
                TfidfVectorizer(analyzer=NGrams(n), sublinear_tf=True, min_df=2),
                RidgeClassifier(penalty, class_weight="balanced"),
            ),
            items,
        )
        for n in longest
        for penalty in (0.1, 1.0, 10.0)
    ]


class NGrams:
    """The n-grams of a text or a session, of one token and more, up to n."""

    def __init__(self, n: int):
        self.n = n

    def __call__(self, item: Sequence) -> list[tuple]:
        return [
            tuple(item[i : i + size])
            for size in range(1, self.n + 1)
            for i in range(len(item) - size + 1)
        ]


def macro_f1(counts: np.ndarray) -> np.ndarray:
    """Mean F1 of the classes, from counts (..., truth, guess): (...).

    Of those classes that are there to be found.
    """
    hits = counts.diagonal(0, -2, -1)
    there = counts.sum(-1) > 0
    both = counts.sum(-1) + counts.sum(-2)
    f1 = 2 * hits / np.maximum(both, 1)
    return (f1 * there).sum(-1) / np.maximum(there.sum(-1), 1)


def confusions(
    labels: np.ndarray, guesses: np.ndarray, groups: np.ndarray
) -> np.ndarray:
    """How often each label was guessed as each, in each tested group: (G, c, c).

    Labels, guesses and groups are (N,); where a guess is "", nothing was tested.
    """
    names = np.unique(labels)
    asked = guesses != ""
    of = np.unique(groups[asked], return_inverse=True)[1]
    counts = np.zeros((of.max() + 1, len(names), len(names)))
    truth, said = (
        np.searchsorted(names, x[asked].astype(str)) for x in (labels, guesses)
    )
    np.add.at(counts, (of, truth, said), 1)
    return counts


def f1_interval(
    labels: np.ndarray,
    guesses: np.ndarray,
    groups: np.ndarray,
    against: np.ndarray | None = None,
) -> tuple[float, float]:
    """95 % interval of the macro-F1, or of its gain on that of other guesses.

    Arguments as for `confusions`. It says how much the test may vary, with the probes
    as they are. ValueError for fewer than two groups, and if not the same was tested.
    """
    both = [guesses] if against is None else [guesses, against]
    if any(((x == "") != (guesses == "")).any() for x in both):
        raise ValueError("the guesses to compare are of different items")
    tables = [confusions(labels, x, groups) for x in both]
    if len(tables[0]) < 2:
        raise ValueError("an interval needs at least two groups that were tested")

    def statistic(rows, axis):
        first, *other = (macro_f1(table[rows].sum(-3)) for table in tables)
        return first - other[0] if other else first

    found = bootstrap(
        (np.arange(len(tables[0])),),
        statistic,
        n_resamples=2000,
        batch=100,
        method="percentile",
        random_state=0,
    )
    return tuple(float(x) for x in found.confidence_interval)


def nearest(vectors: Tensor, queries: Tensor, k: int = 3) -> tuple[Tensor, Tensor]:
    """Which k of vectors (N, C) are most like queries (M, C): cosines, places (M, k).

    Both are centered by the mean of `vectors` first. ValueError for k above N.
    """
    check_int("k", k, low=1, high=len(vectors))
    center = vectors.mean(0)
    kept, asked = (
        torch.nn.functional.normalize(x - center, dim=-1) for x in (vectors, queries)
    )
    best = (asked @ kept.T).topk(k)
    return best.values, best.indices
