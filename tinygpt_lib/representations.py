# generated from notebooks/text/17_representations.py: edit there
"""Representations: what has it learnt on the way?"""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tinygpt_lib.basics.checks import check_choice, check_int
from tinygpt_lib.basics.devices import device_of
from tinygpt_lib.basics.evaluation import evaluating
from tinygpt_lib.gpt import GPT
from tinygpt_lib.logs import in_windows

__all__ = [
    "PENALTIES",
    "POOLS",
    "NGrams",
    "attention_maps",
    "confusions",
    "embed",
    "f1_interval",
    "hidden_states",
    "looks_back",
    "macro_f1",
    "nearest",
    "on_bags",
    "on_vectors",
    "probe",
    "repeated",
    "without_heads",
]

# --- What lies between ---


def hidden_states(model: GPT, ids: Tensor) -> list[Tensor]:
    """What the first block is given, and what each block makes of it: (B, T, C) each.

    ids (B, T) -> n_layer + 1 states; `model.read_out` of the last gives `model(ids)`.
    Gradients and dropout are as in that call.
    """
    states = [model.dropout(model.embed(ids))]
    for block in model.blocks:
        states.append(block(states[-1]))
    return states


# --- Where it looks ---


def attention_maps(model: GPT, ids: Tensor) -> list[Tensor]:
    """How much each token looks at each other: (B, H, T, T) for every layer.

    ids (B, T), T at most block_size. Rows sum to one. The model computes the same on
    its way, but never stores it; in training mode dropout is as in that call.
    """
    maps, T = [], ids.shape[1]
    for block, x in zip(model.blocks, hidden_states(model, ids), strict=False):
        q, k, _ = block.attention.project(block.attention_norm(x))
        rows = torch.eye(T).to(k).expand(*k.shape[:2], T, T)
        maps.append(block.attention.attend(q, k, rows))
    return maps


# --- Heads by a score ---


def looks_back(maps: Sequence[Tensor], back: int, since: int = 0) -> Tensor:
    """How much each head looks at the token `back` places before, on average: (L, H).

    `maps` are L of (B, H, T, T); only tokens from place `since` on are asked.
    """
    check_int("back", back, low=0, high=maps[0].shape[-1] - 1)
    check_int("since", since, low=0, high=maps[0].shape[-1] - 1)
    lines = torch.stack(
        [m.diagonal(-back, -2, -1) for m in maps]
    )  # (L, B, H, T - back)
    return lines[..., max(0, since - back) :].mean(dim=(1, 3))


def repeated(ids: Tensor, length: int, count: int, seed: int = 0) -> Tensor:
    """Rows of T = `length` tokens drawn from ids (N,), twice each: (count, 2T)."""
    check_int("length", length, low=1)
    check_int("count", count, low=1)
    dice = torch.Generator().manual_seed(seed)
    half = ids[torch.randint(len(ids), (count, length), generator=dice)]
    return torch.cat([half, half], dim=1)


def without_heads(model: GPT, heads: Sequence[tuple[int, int]]) -> GPT:
    """A copy of the model in which some heads, (layer, head) from 0, say nothing.

    ValueError for a head that the model does not have.
    """
    config = model.config
    D = config.n_embd // config.n_head
    less = copy.deepcopy(model)
    for layer, head in heads:
        check_int("layer", layer, low=0, high=config.n_layer - 1)
        check_int("head", head, low=0, high=config.n_head - 1)
        output = less.blocks[layer].attention.output
        with torch.no_grad():
            output.weight[:, head * D : (head + 1) * D] = 0
    return less


# --- One vector for a whole text ---

POOLS = ("mean", "max", "last")


@torch.no_grad()
def embed(
    model: GPT,
    tokenizer,
    items: Sequence,
    layer: int | None = None,
    pool: str = "mean",
    tokens_at_once: int = 16_384,
) -> Tensor:
    """A vector for each text or session: (N, C), or of all layers (n_layer + 1, N, C).

    `items` are strings, or lists of events for an EventTokenizer, which get their begin
    and end, or ids (n,). `layer` counts the blocks passed, from 0; `pool`, a name in
    POOLS, is how the states of tokens become one. Events that the tokenizer does not
    know are all the same to the model. ValueError for an item without a token.
    """
    check_choice("pool", pool, POOLS)
    config, coded = model.config, []
    if layer is not None:
        check_int("layer", layer, low=0, high=config.n_layer)
    for i, item in enumerate(items):
        if isinstance(item, str):
            item = tokenizer.encode(item)
        elif not isinstance(item, Tensor):
            item = tokenizer.encode_session([str(event) for event in item])
        coded.append(item)
        if not len(coded[-1]):
            raise ValueError(f"item {i} is empty: it has no token to take a state of")
    check_int("block_size", config.block_size, low=2)
    chosen = slice(None) if layer is None else slice(layer, layer + 1)
    n_states = len(range(config.n_layer + 1)[chosen])
    start = -torch.inf if pool == "max" else 0.0
    vectors = torch.full((n_states, len(coded), config.n_embd), start)
    with evaluating(model):
        # A window ends with a token that is only predicted: here the last one again.
        rows = [torch.cat([ids, ids[-1:]]) for ids in coded]
        for ids, places in in_windows(rows, config.block_size, tokens_at_once):
            states = hidden_states(model, ids[:, :-1].to(device_of(model)))[chosen]
            states = torch.stack(states).float().cpu()
            for row, (i, s, first, end) in enumerate(places):
                part, n = states[:, row, first:end], len(coded[i])
                if pool == "mean":
                    vectors[:, i] += part.sum(1) / n
                elif pool == "max":
                    vectors[:, i] = torch.maximum(vectors[:, i], part.amax(1))
                elif s + end == n:
                    vectors[:, i] = part[:, -1]
    return vectors if layer is None else vectors[0]


# --- Which past incident looks like this one? ---


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


# --- Is it of any use? ---


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
    from sklearn.base import clone
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_score

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


PENALTIES = (10.0, 100.0, 1000.0)


def on_vectors(*vectors: Tensor) -> list[tuple]:
    """Candidates for `probe`: linear classifiers of each of some vectors (N, C)."""
    from sklearn.linear_model import RidgeClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

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
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import RidgeClassifier
    from sklearn.pipeline import make_pipeline

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
    from scipy.stats import bootstrap

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
