"""Representations: states, attention maps, scores of heads, vectors, probes."""

import numpy as np
import pytest
import torch
from sklearn.dummy import DummyClassifier
from sklearn.metrics import f1_score

from course import logdata as _logdata
from course import tasks as _tasks
from course.probing import (
    NGrams,
    confusions,
    f1_interval,
    macro_f1,
    nearest,
    on_bags,
    on_vectors,
    probe,
)
from tinygpt_lib.logs import EventTokenizer, SessionFinder, group_lines
from tinygpt_lib.representations import (
    attention_maps,
    embed,
    hidden_states,
    intervene,
    looks_back,
)
from tinygpt_lib.speed import MODERN, FastConfig, FastGPT
from tinygpt_lib.text import CharTokenizer

SHAPE = {"block_size": 12, "n_layer": 2, "n_head": 2, "n_embd": 16}
KINDS = {
    "plain": {},
    "modern": {**MODERN, "zero_outputs": False},
    "tied": {"tie_weights": True},
    "sliding": {"attention": "sliding", "window": 3},
    "explicit": {"attention": "explicit"},
    "ngrams": {"embedding": "ngrams"},
}


@pytest.fixture(params=KINDS)
def model(request):
    torch.manual_seed(0)
    return FastGPT(FastConfig(20, **SHAPE, **KINDS[request.param])).eval()


@pytest.fixture
def ids():
    return torch.randint(20, (3, 12), generator=torch.Generator().manual_seed(1))


# States


@torch.no_grad()
def test_the_last_state_read_out_is_what_the_model_says(model, ids):
    states = hidden_states(model, ids)
    assert [tuple(x.shape) for x in states] == [(3, 12, 16)] * 3
    assert torch.equal(model.read_out(states[-1]), model(ids))
    assert torch.equal(states[0], model.embed(ids))


@torch.no_grad()
def test_states_are_those_that_pass_through_the_blocks(model, ids):
    passed = []
    hooks = [
        block.register_forward_hook(lambda _, given, made: passed.append((given, made)))
        for block in model.blocks
    ]
    model(ids)
    for hook in hooks:
        hook.remove()
    states = hidden_states(model, ids)
    for i, (given, made) in enumerate(passed):
        assert torch.equal(states[i], given[0]) and torch.equal(states[i + 1], made)


def test_gradients_and_dropout_are_as_in_the_call(ids):
    model = FastGPT(FastConfig(20, **SHAPE, dropout=0.5))
    torch.manual_seed(3)
    expected = model(ids)
    torch.manual_seed(3)
    found = model.read_out(hidden_states(model, ids)[-1])
    assert torch.equal(found, expected) and found.requires_grad


# Attention


@torch.no_grad()
def test_maps_weigh_values_as_the_attention_does(model, ids):
    maps = attention_maps(model, ids)
    states = hidden_states(model, ids)
    for block, x, weights in zip(model.blocks, states, maps, strict=False):
        assert weights.shape == (3, 2, 12, 12)
        assert torch.allclose(weights.sum(-1), torch.ones(3, 2, 12))
        assert (weights.triu(1) == 0).all()
        normed = block.attention_norm(x)
        v = block.attention.project(normed)[2]
        ours = block.attention.merge(weights @ v)
        assert torch.allclose(ours, block.attention(normed), atol=1e-5)


@torch.no_grad()
def test_maps_of_a_window_stay_in_it(ids):
    model = FastGPT(FastConfig(20, **SHAPE, **KINDS["sliding"]))
    for weights in attention_maps(model, ids):
        assert (weights.tril(-3) == 0).all() and (
            weights.diagonal(-2, -2, -1) > 0
        ).all()


def test_looks_back_is_the_mean_of_a_diagonal():
    maps = [torch.rand(2, 3, 6, 6), torch.rand(2, 3, 6, 6)]
    for back, since in ((0, 0), (1, 0), (2, 4), (5, 0), (1, 5)):
        places = [t for t in range(max(back, since), 6)]
        for layer, weights in enumerate(maps):
            expected = sum(weights[:, :, t, t - back] for t in places).mean(0)
            found = looks_back(maps, back, since)[layer]
            assert torch.allclose(found, expected / len(places))
    for wrong in (-1, 6):
        with pytest.raises(ValueError, match="back"):
            looks_back(maps, wrong)
    with pytest.raises(ValueError, match="since"):
        looks_back(maps, 1, 6)


def test_what_no_head_changes_is_the_model_and_what_one_does_goes_on(model, ids):
    with torch.no_grad():
        said = model(ids)
    assert torch.equal(intervene(model, ids, lambda layer, found: found), said)
    heard = {}
    intervene(model, ids, lambda layer, found: heard.setdefault(layer, found))
    assert [tuple(heard[layer].shape) for layer in (0, 1)] == [(3, 2, 12, 8)] * 2

    def silence(layer, found):
        if layer == 0:
            found = found.clone()
            found[:, 1, 5] = 0
        return found

    changed = (intervene(model, ids, silence) != said).any(dim=-1).any(dim=0)
    assert not changed[:5].any() and changed[5]  # the past stays, the place doesn't
    assert torch.equal(model(ids), said)  # and so does the model


# Vectors


@pytest.fixture
def chars():
    return CharTokenizer.from_text("abcdefghijklmnopqrst")


@torch.no_grad()
def test_vectors_are_pooled_states(model, chars):
    texts = ["a", "abcabc", "tsrqponmlkji", "bb"]
    for pool in ("mean", "max", "last"):
        vectors = embed(model, chars, texts, pool=pool)
        assert vectors.shape == (3, 4, 16)
        for i, text in enumerate(texts):
            states = torch.stack(hidden_states(model, chars.encode(text)[None]))[:, 0]
            expected = {
                "mean": states.mean(1),
                "max": states.amax(1),
                "last": states[:, -1],
            }[pool]
            assert torch.allclose(vectors[:, i], expected, atol=1e-5)
        for layer in range(3):
            assert torch.equal(embed(model, chars, texts, layer, pool), vectors[layer])


@torch.no_grad()
def test_long_texts_are_read_in_windows_and_each_token_counts_once(chars):
    torch.manual_seed(0)
    model = FastGPT(FastConfig(20, **SHAPE)).eval()
    text = "abcdefghijklmnopqrst" * 2
    ids = chars.encode(text)
    kept = []
    for first in range(0, len(ids) - 6, 6):  # windows of 12, half of each is old
        states = torch.stack(hidden_states(model, ids[None, first : first + 12]))[:, 0]
        kept.append(states[:, 6 if first else 0 :])
    states = torch.cat(kept, dim=1)
    assert states.shape[1] == len(ids)
    for pool, expected in (
        ("mean", states.mean(1)),
        ("max", states.amax(1)),
        ("last", states[:, -1]),
    ):
        found = embed(model, chars, ["abc", text, "t"], pool=pool, tokens_at_once=24)
        assert torch.allclose(found[:, 1], expected, atol=1e-5)


def test_sessions_get_their_begin_and_end():
    tokenizer = EventTokenizer([f"event {i}" for i in range(17)])
    model = FastGPT(FastConfig(20, **SHAPE, dropout=0.5)).train()
    session = ["event 3", "unheard of", "event 5"]
    vector = embed(model, tokenizer, [session], layer=1)[0]
    assert model.training and not vector.requires_grad
    model.eval()
    states = hidden_states(model, torch.tensor([[1, 6, 0, 8, 2]]))
    assert torch.allclose(vector, states[1][0].mean(0), atol=1e-6)
    assert embed(model, tokenizer, [[]], layer=0).shape == (1, 16)
    by_ids = embed(model, tokenizer, [torch.tensor([1, 6, 0, 8])], layer=1)[0]
    open_end = hidden_states(model, torch.tensor([[1, 6, 0, 8]]))[1][0]
    assert torch.allclose(by_ids, open_end.mean(0), atol=1e-6)
    assert embed(model, tokenizer, []).shape == (3, 0, 16)


def test_what_can_not_be_embedded(chars):
    model = FastGPT(FastConfig(20, **SHAPE))
    with pytest.raises(ValueError, match="item 1 is empty"):
        embed(model, chars, ["a", ""])
    with pytest.raises(ValueError, match="layer"):
        embed(model, chars, ["a"], layer=3)
    with pytest.raises(ValueError, match="pool"):
        embed(model, chars, ["a"], pool="median")


def test_nearest_points_the_same_way():
    torch.manual_seed(0)
    vectors = torch.randn(30, 8)
    cosines, places = nearest(vectors, vectors[4:6] * 1.0, k=3)
    assert places[:, 0].tolist() == [4, 5]
    assert cosines[:, 0].tolist() == pytest.approx([1, 1], abs=1e-5)
    centered = vectors - vectors.mean(0)
    expected = torch.nn.functional.cosine_similarity(centered[4], centered)
    assert torch.allclose(cosines[0], expected.topk(3).values, atol=1e-5)
    with pytest.raises(ValueError, match="k is 31"):
        nearest(vectors, vectors, k=31)


# Probes


def clouds(seed=0, count=240, classes=3, apart=3.0):
    """Labelled points: a cloud around a center for each class."""
    dice = np.random.default_rng(seed)
    labels = dice.integers(classes, size=count)
    points = dice.normal(size=(count, 6))
    points[np.arange(count), labels] += apart
    return torch.tensor(points).float(), np.array([f"class {i}" for i in labels])


def halves(count):
    return [(np.arange(0, count, 2), np.arange(1, count, 2))]


def test_a_probe_finds_what_is_there_and_nothing_else():
    points, labels = clouds()
    alone = np.arange(240)
    guesses = probe(on_vectors(points), labels, halves(240), alone)
    assert (guesses[::2] == "").all()
    assert (guesses[1::2] == labels[1::2]).mean() > 0.9
    noise = np.random.default_rng(1).permutation(labels)
    guesses = probe(on_vectors(points), noise, halves(240), alone)
    low, high = f1_interval(noise, guesses, alone)
    assert low < 1 / 3 + 0.08 and high < 0.5


def test_the_candidate_is_chosen_without_the_test():
    points, labels = clouds()
    ((known, asked),) = halves(240)
    # Weak where it is learnt from, as good as can be where it is tested.
    trap = points.clone()
    trap[known] += 4 * torch.randn(len(known), 6, generator=torch.manual_seed(0))
    alone, truth = np.arange(240), labels[asked]
    direction = torch.nn.functional.one_hot(
        torch.tensor(np.unique(labels, return_inverse=True)[1])
    )
    trap[asked, :3] = 50.0 * direction[asked].float()
    by_trap = probe(on_vectors(trap), labels, halves(240), alone)[asked]
    own = probe(on_vectors(points), labels, halves(240), alone)[asked]
    assert (by_trap == truth).mean() == 1 > (own == truth).mean()
    chosen = probe(on_vectors(trap, points), labels, halves(240), alone)[asked]
    assert (chosen == own).all()


def test_every_split_is_tested_and_groups_stay_together():
    labels = clouds(count=120)[1]
    groups = np.arange(120) // 4
    seen, shared = [], []

    class Spy(DummyClassifier):
        def fit(self, inputs, labels):
            seen.append({int(i) // 4 for (i,) in inputs})
            return super().fit(inputs, labels)

        def predict(self, inputs):
            shared.append({int(i) // 4 for (i,) in inputs} & seen[-1])
            return super().predict(inputs)

    places = np.arange(120)[:, None]
    thirds = [
        (np.flatnonzero(groups % 3 != k), np.flatnonzero(groups % 3 == k))
        for k in range(3)
    ]
    guesses = probe([(Spy(), places)], labels, thirds, groups)
    assert (guesses != "").all() and len(seen) == 12  # 3 folds and the last, thrice
    assert len(shared) == 12 and not any(shared)


def test_a_candidate_that_fails_is_not_the_best():
    class Broken(DummyClassifier):
        def predict(self, inputs):
            raise RuntimeError("out of order")

    points, labels = clouds(count=60)
    with pytest.raises(RuntimeError, match="out of order"):
        both = [*on_vectors(points), (Broken(), points.numpy())]
        probe(both, labels, halves(60), np.arange(60))


def test_bags_tell_texts_and_sessions_apart():
    texts = ["the cat sat on the mat" * 2, "colourless green ideas sleep"] * 30
    labels = np.array(["cat", "green"] * 30)
    for items in (texts, [text.split() for text in texts]):
        guesses = probe(
            on_bags(items), labels, [(np.arange(40), np.arange(40, 60))], np.arange(60)
        )
        assert (guesses[40:] == labels[40:]).all()
    assert NGrams(2)("aba") == [("a",), ("b",), ("a",), ("a", "b"), ("b", "a")]
    assert NGrams(3)(["x", "y"]) == [("x",), ("y",), ("x", "y")]


def test_macro_f1_is_that_of_scikit_learn():
    dice = np.random.default_rng(0)
    labels = dice.choice(["a", "b", "c", "d"], 90)
    guesses = np.where(dice.random(90) < 0.5, labels, "b").astype(object)
    groups = dice.integers(20, size=90)
    counts = confusions(labels, guesses, groups)
    assert counts.shape[1:] == (4, 4) and counts.sum() == 90
    expected = f1_score(labels, guesses.astype(str), average="macro")
    assert macro_f1(counts.sum(0)) == pytest.approx(expected)
    # A class that is not there to be found does not count, guessed or not.
    assert macro_f1(np.diag([3, 0, 2])) == 1
    assert macro_f1(np.array([[2, 1], [0, 0]])) == pytest.approx(0.8)


def test_intervals_widen_with_groups_and_compare_on_the_same_draws():
    dice = np.random.default_rng(0)
    labels = dice.choice(["a", "b"], 400)
    right = dice.random(400) < 0.8
    right[:100] = True
    guesses = np.where(right, labels, np.where(labels == "a", "b", "a")).astype(object)
    alone, together = np.arange(400), np.arange(400) // 100
    low, high = f1_interval(labels, guesses, alone)
    f1 = macro_f1(confusions(labels, guesses, alone).sum(0))
    assert low < f1 < high and 0.05 < high - low < 0.09
    wide = f1_interval(labels, guesses, together)
    assert wide[1] - wide[0] > 1.3 * (high - low)
    assert f1_interval(labels, guesses, alone, against=guesses) == (0, 0)
    other = guesses.copy()
    other[0] = ""
    with pytest.raises(ValueError, match="different items"):
        f1_interval(labels, guesses, alone, against=other)
    with pytest.raises(ValueError, match="two groups"):
        f1_interval(labels, guesses, np.zeros(400))
    gain = f1_interval(labels, labels.astype(object), alone, against=guesses)
    assert 0.1 < gain[0] < 1 - f1 < gain[1] < 0.2


# Tasks


def no_overlap(task):
    for known, asked in task.splits:
        assert not {*task.groups[known]} & {*task.groups[asked]}
        assert len({*task.labels[asked]}) == len({*task.labels})


def test_the_speeches_that_are_tested_are_not_read_before():
    names = ["ANNE", "BEN", "CID"]
    text = "\n\n".join(f"{names[i % 3]}:\nline {i}\nand more" for i in range(60)) + "\n"
    assert _tasks.speeches(text)[1] == ("BEN", "line 1\nand more")
    task = _tasks.speaker_task(text, speakers=2)
    no_overlap(task)
    ((known, asked),) = task.splits
    assert len(known) == 28 and len(asked) == 12 and {*task.labels} == {"ANNE", "BEN"}
    for i in asked:
        words = task.items[i].split("\n")[0]
        assert f"{words}\n" in text and f"{words}\n" not in task.pretraining
    assert all(task.items[i].split("\n")[0] in task.pretraining for i in known)
    with pytest.raises(ValueError, match="CID speaks once"):
        _tasks.speaker_task("\n\n".join(["ANNE:\na"] * 3 + ["CID:\nb"]))
    short = _tasks.speaker_task("ANNE:\na\n\nBEN:\nb\n\n" * 2)
    assert [len(part) for part in short.splits[0]] == [2, 2]
    # The last ones are tested: what comes later is to be told from what was before.
    assert {int(task.items[i].split()[1]) for i in asked} == {
        *range(42, 60, 3),
        *range(43, 60, 3),
    }


@pytest.fixture(scope="module")
def synthetic():
    log = _logdata.synthetic_log(600, seed=5)
    found = group_lines((x.text for x in log.lines), SessionFinder(r"blk_-?\d+"))
    return log, list(found.values())


def test_blocks_that_are_tested_tell_what_was_never_told_before(synthetic):
    log, blocks = synthetic
    jobs = _tasks.workload_task(log, blocks)
    deleted = _tasks.deletion_task(blocks)
    for task in (jobs, deleted):
        no_overlap(task)
        ((_, asked),) = task.splits
        assert 0.25 < len(asked) / len(task.items) < 0.45
    assert {*jobs.labels} == {"rand", "randtxt", "sortrand"}
    unseen = {tuple(jobs.items[i]) for i in jobs.splits[0][1]}
    assert not unseen & {*map(tuple, jobs.pretraining)}
    assert len({*map(tuple, jobs.items)}) == len(jobs.items)
    unseen = {tuple(deleted.items[i]) for i in deleted.splits[0][1]}
    assert not unseen & {tuple(s[:10]) for s in deleted.pretraining}
    assert all(len(item) == 10 for item in deleted.items)
    assert max(np.bincount(deleted.groups)) == 10
    assert not any("delete" in e.lower() for item in deleted.items for e in item)
    again = _tasks.workload_task(log, blocks)
    assert again.items == jobs.items and (again.labels == jobs.labels).all()


def test_a_job_shows_in_what_its_blocks_do():
    log = _logdata.synthetic_log(600, seed=5)
    jobs = {"rand": [], "randtxt": [], "sortrand": []}
    served = {}
    for line in log.lines:
        served[line.session] = served.get(line.session, 0) + ("Served" in line.text)
    for line in log.lines:
        if "allocateBlock" in line.text:
            jobs[line.text.split("/")[3]].append(served[line.session])
    assert np.mean(jobs["randtxt"]) > 2 * np.mean(jobs["rand"])


def test_runs_of_an_attack_stay_together():
    runs = [f"{kind}_{i}" for kind in ("Adduser", "Web") for i in range(6)]
    groups = [run for run in runs for _ in range(3)] + [""] * 5
    trial = _logdata.Trial(
        train=[["1", "2"]],
        test=[[str(i)] for i in range(41)],
        kinds=[g.rsplit("_", 1)[0] for g in groups],
        origin="",
        groups=groups,
    )
    task = _tasks.attack_task(trial, folds=3)
    assert len(task.items) == 36 and len({*task.groups}) == 12
    no_overlap(task)
    asked = np.concatenate([asked for _, asked in task.splits])
    assert sorted(asked) == [*range(36)] and task.pretraining == [["1", "2"]]
