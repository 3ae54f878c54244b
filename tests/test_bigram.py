"""Counts, steps and the measure: each against a slower way to the same number."""

import math
import re
from collections import Counter, defaultdict
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tinygpt_lib.basics.evaluation import most_tokens
from tinygpt_lib.bigram import SGD, NGram, evaluate, training_step
from tinygpt_lib.gpt import GPT, GPTConfig

V = 4
some_ids = st.lists(st.integers(0, V - 1), min_size=2, max_size=60)


def slow_ngram(ids, n, strength):
    """The same smoothing with dictionaries: context and next token -> probability."""
    following = defaultdict(Counter)
    for k in range(n):
        for i in range(max(k, 1), len(ids)):
            following[tuple(ids[i - k : i])][ids[i]] += 1

    def probability(context, token):
        p = 1 / V
        for k in range(min(n - 1, len(context)) + 1):
            seen = following[tuple(context[len(context) - k :])]
            p = (seen[token] + strength * p) / (seen.total() + strength)
        return p

    return probability


@settings(max_examples=60)
@given(
    some_ids,
    st.integers(1, 5),
    st.sampled_from([0.5, 10.0]),
    st.lists(st.integers(0, V - 1), min_size=1, max_size=12),
)
def test_ngram_equals_dictionaries(ids, n, strength, text):
    n = min(n, len(ids))
    model = NGram(torch.tensor(ids), n, V, strength)
    probability = slow_ngram(ids, n, strength)
    expected = torch.tensor(
        [
            [probability(text[: t + 1], token) for token in range(V)]
            for t in range(len(text))
        ]
    )
    p = model(torch.tensor([text])).exp()[0]
    torch.testing.assert_close(p, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(p.sum(-1), torch.ones(len(text)))


def test_a_bigram_is_the_table_of_pairs():
    ids = torch.randint(V, (2000,), generator=torch.Generator().manual_seed(0))
    table = torch.zeros(V, V)
    for a, b in zip(ids[:-1].tolist(), ids[1:].tolist(), strict=True):
        table[a, b] += 1
    # Next to no smoothing leaves the plain shares of the pairs.
    p = NGram(ids, 2, V, strength=1e-6)(torch.arange(V)[None]).exp()[0]
    torch.testing.assert_close(p, table / table.sum(1, keepdim=True))


def test_a_context_never_seen_falls_back_on_the_shorter_one():
    ids = torch.tensor([0, 1, 0, 1, 0, 1, 2])  # nothing follows 2; 2 2 was never seen
    short, long = NGram(ids, 1, V), NGram(ids, 3, V)
    text = torch.tensor([[2, 2]])
    torch.testing.assert_close(long(text), short(text))


@pytest.mark.parametrize("n", [1, 2, 3, 8])
@pytest.mark.parametrize("T", [1, 2, 4, 5])
def test_ngram_reads_windows_shorter_than_its_context(n, T):
    ids = torch.randint(V, (300,), generator=torch.Generator().manual_seed(n))
    model = NGram(ids, n, V)
    text = ids[None, 50:70]
    torch.testing.assert_close(model(text[:, :T]), model(text)[:, :T])


def test_ngram_rows_of_a_batch_do_not_mix():
    ids = torch.randint(V, (300,), generator=torch.Generator().manual_seed(3))
    model, batch = NGram(ids, 3, V), ids[:40].view(4, 10)
    alone = torch.cat([model(row[None]) for row in batch])
    assert torch.equal(model(batch), alone)


def test_ngram_can_not_see_the_future():
    ids = torch.randint(V, (300,), generator=torch.Generator().manual_seed(4))
    model, text = NGram(ids, 4, V), ids[None, :12]
    for t in range(1, 12):
        other = text.clone()
        other[:, t:] = (other[:, t:] + 1) % V
        assert torch.equal(model(other)[:, :t], model(text)[:, :t])


def test_ngram_on_its_own_text_beats_a_uniform_guess_and_a_shorter_context():
    ids = torch.arange(400) % V
    losses = [evaluate(NGram(ids, n, V), ids, block_size=50) for n in (1, 2)]
    assert losses[1] < 0.3 < losses[0] <= math.log(V) + 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, r"n is 0; .* 1\.\.100"),
        ({"n": 101}, r"n is 101; .* 1\.\.100"),
        ({"n": 11, "vocab_size": 65}, r"n is 11; .* up to n = 10"),
        ({"strength": 0}, r"strength is 0; .*above 0"),
        ({"strength": -1.0}, r"strength is -1\.0"),
        ({"strength": math.nan}, r"strength is nan"),
        ({"ids": torch.tensor([1])}, r"1 token"),
        ({"ids": torch.tensor([0, -1, 2])}, r"-1.*0\.\.3"),
        ({"ids": torch.tensor([0, 4, 2])}, r"4.*0\.\.3"),
    ],
)
def test_ngram_refuses_what_it_can_not_count(arguments, message):
    good = {"ids": torch.arange(100) % V, "n": 1, "vocab_size": V}
    with pytest.raises(ValueError, match=message):
        NGram(**{**good, **arguments})


def tiny_gpt(dropout=0.0, block_size=8):
    torch.manual_seed(0)
    model = GPT(GPTConfig(V, block_size, 1, 2, 8, dropout=dropout))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.5)  # far from uniform, so that a wrong target shows
    return model


def loss_token_by_token(model, ids, block_size):
    """Every token but the first, predicted alone from its own window's start."""
    model.eval()
    total = 0.0
    for i in range(1, len(ids)):
        start = (i - 1) // block_size * block_size
        log_p = model(ids[None, start:i])[0, -1].log_softmax(-1)
        total -= log_p[ids[i]].item()
    return total / (len(ids) - 1)


@pytest.mark.parametrize("tokens_at_once", [1, 16, 16_384, None])
@pytest.mark.parametrize("N", [2, 3, 8, 9, 10, 16, 17, 18, 40, 41, 47])
def test_evaluate_equals_a_loop_over_tokens(N, tokens_at_once):
    model = tiny_gpt()
    ids = torch.randint(V, (N,), generator=torch.Generator().manual_seed(N))
    expected = loss_token_by_token(model, ids, 8)
    assert evaluate(model, ids, tokens_at_once=tokens_at_once) == pytest.approx(
        expected, abs=1e-5
    )


def test_the_logits_of_a_large_vocabulary_do_not_fill_the_memory():
    model = tiny_gpt()
    assert most_tokens(nn.Linear(1, 1)) == most_tokens(model) == 16_384
    model.config = replace(model.config, vocab_size=50_257)
    assert 0.9 * 2**24 < most_tokens(model) * 50_257 <= 2**24
    shapes, ids = [], torch.randint(V, (4001,))
    model.register_forward_hook(lambda _, given, logits: shapes.append(logits.shape[0]))
    evaluate(model, ids)
    assert shapes == [*[41] * 12, 8]  # windows of 8: 328 tokens, not 16,384


@pytest.mark.parametrize("block_size", [1, 3, 5])
def test_evaluate_takes_a_shorter_window_when_told(block_size):
    model = tiny_gpt()
    ids = torch.randint(V, (23,), generator=torch.Generator().manual_seed(1))
    assert evaluate(model, ids, block_size) == pytest.approx(
        loss_token_by_token(model, ids, block_size), abs=1e-5
    )


def test_evaluate_switches_dropout_off_and_leaves_no_trace():
    model, ids = tiny_gpt(dropout=0.5), torch.arange(30) % V
    expected = loss_token_by_token(model, ids, 8)
    recording = []
    model.register_forward_hook(lambda m, args, y: recording.append(y.requires_grad))
    state = torch.get_rng_state()
    for mode in (True, False):
        model.train(mode)
        assert evaluate(model, ids) == pytest.approx(expected, abs=1e-5)
        assert all(part.training == mode for part in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert recording and not any(recording)


def test_evaluate_restores_the_mode_when_the_model_fails():
    model = tiny_gpt(dropout=0.5).train()
    with pytest.raises(ValueError, match="block_size 8"):
        evaluate(model, torch.arange(30) % V, block_size=9)
    assert model.training


def test_the_loss_of_a_model_in_16_bits_is_summed_in_32():
    """The logits of a Table in bfloat16 are known; their loss is that in float64."""
    model, ids = Table().bfloat16(), torch.arange(3000) ** 2 % 7 % V
    expected = F.cross_entropy(model(ids[:-1]).double(), ids[1:]).item()
    assert evaluate(model, ids, block_size=50) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("n", [0, 1])
def test_evaluate_needs_a_token_to_predict(n):
    with pytest.raises(ValueError, match=rf"{n} tokens; at least 2"):
        evaluate(tiny_gpt(), torch.zeros(n, dtype=torch.int64))


@pytest.mark.parametrize(
    ("ids", "why"),
    [
        ([1, 2, 3], "are a list; they must be a torch.Tensor (N,)"),
        (torch.zeros(3), "have shape (3,) and type torch.float32; they must be (N,)"),
        (torch.zeros(1, 3, dtype=torch.int64), "have shape (1, 3)"),
        (
            torch.tensor([1, V]),
            f"hold ids from 1 to {V}; the model's vocabulary allows",
        ),
        (torch.tensor([1, -1]), "hold ids from -1 to 1"),
    ],
)
def test_evaluate_says_what_is_wrong_with_ids(ids, why):
    with pytest.raises(ValueError, match=re.escape(f"ids {why}")):
        evaluate(tiny_gpt(), ids)


def test_evaluate_refuses_an_empty_window():
    with pytest.raises(ValueError, match="block_size is 0"):
        evaluate(tiny_gpt(), torch.arange(9) % V, block_size=0)


class Table(nn.Module):
    """The learned bigram: row i holds the logits of what follows token i."""

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(V, V, generator=generator))

    def forward(self, ids):
        return self.table[ids]


def batch():
    ids = (torch.arange(60) ** 2 % 7 % V).view(4, 15)
    return ids[:, :-1], ids[:, 1:]


def test_training_steps_lower_the_loss_and_return_the_one_before():
    model = Table()
    x, y = batch()
    optimizer = SGD(model.parameters(), learning_rate=1.0)
    for _ in range(30):
        with torch.no_grad():
            before = F.cross_entropy(model(x).flatten(0, 1), y.flatten()).item()
        assert training_step(model, optimizer, x, y) == pytest.approx(before)
        with torch.no_grad():
            after = F.cross_entropy(model(x).flatten(0, 1), y.flatten()).item()
        assert after < before


def test_the_gradient_of_one_step_is_not_added_to_the_last():
    model = Table()
    optimizer = SGD(model.parameters(), learning_rate=0.0)  # stays where it is
    training_step(model, optimizer, *batch())
    first = model.table.grad.clone()
    training_step(model, optimizer, *batch())
    assert torch.equal(model.table.grad, first)
    assert first.abs().max() > 0


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_equals_torchs(momentum):
    ours, theirs = Table(1).double(), Table(1).double()
    optimizer = SGD(ours.parameters(), 0.5, momentum)
    reference = torch.optim.SGD(theirs.parameters(), 0.5, momentum)
    for _ in range(20):
        training_step(ours, optimizer, *batch())
        training_step(theirs, reference, *batch())
    assert (ours.table - Table(1).table).abs().max() > 0.1
    torch.testing.assert_close(ours.table, theirs.table, atol=1e-12, rtol=0)


def test_sgd_leaves_a_parameter_without_a_gradient_alone():
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = SGD([used, unused], 0.1, 0.9)
    used.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(unused, torch.ones(2)) and torch.equal(used, 0.9 * unused)
