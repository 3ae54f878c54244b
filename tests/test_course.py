"""Chapters share what they train, and never something else."""

import threading

import pytest
import torch

from course import models as _course
from tinygpt_lib import CharTokenizer, GPTConfig, TrainConfig
from tinygpt_lib.runs.run import train

TOKENIZER = CharTokenizer.from_text("to be or not to be, that is the question")
IDS = TOKENIZER.encode("to be or not to be, that is the question " * 9)
SHAPE = GPTConfig(TOKENIZER.vocab_size, 8, n_layer=1, n_head=1, n_embd=8, dropout=0.1)
PLAN = TrainConfig(steps=4, eval_every=2)


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """`trained` in an empty runs folder, and the list of what really took steps."""
    monkeypatch.setattr(_course, "RUNS", tmp_path / "runs")
    took = []

    def counting(model, train_ids, val_ids, config, **kept):
        took.append(kept.get("resume"))
        return train(model, train_ids, val_ids, config, **kept)

    def call(shape=SHAPE, plan=PLAN, ids=IDS, **more):
        given = shape, plan, ids, ids[:20], TOKENIZER
        return _course.trained("toy", *given, train=counting, **more)

    call.took, call.folder = took, tmp_path / "runs"
    return call


def same(one, other):
    weights = zip(one[0].parameters(), other[0].parameters(), strict=True)
    return all(torch.equal(*pair) for pair in weights) and one[1] == other[1]


def test_the_second_to_ask_gets_the_first_ones_model(trained):
    before = torch.get_rng_state()
    first, second = trained(), trained()
    assert same(first, second)
    assert not second[0].training
    assert trained.took == [False, True]
    assert torch.equal(torch.get_rng_state(), before)


def test_another_model_plan_text_or_seed_is_another_run(trained):
    trained()
    trained(plan=TrainConfig(steps=4, eval_every=2, learning_rate=1e-3))
    trained(shape=GPTConfig(TOKENIZER.vocab_size, 8, n_layer=1, n_head=2, n_embd=8))
    trained(ids=IDS[1:])
    trained(seed=1)
    assert trained.took == [False] * 5


def test_what_was_cut_short_is_never_used(trained):
    first = trained()
    (state,) = trained.folder.glob("toy-*/training.safetensors")
    state.write_bytes(state.read_bytes()[:-1])
    again = trained()
    assert torch.equal(first[0].head.weight, again[0].head.weight)


def test_where_nothing_can_be_kept_it_is_trained_all_the_same(trained):
    trained.folder.write_text("a file is in the way")
    assert len(trained()[1].losses) == 4


def test_two_at_a_time_train_once(trained):
    results = []
    both = [threading.Thread(target=lambda: results.append(trained())) for _ in "ab"]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert same(*results)
    assert sorted(trained.took) == [False, True]
