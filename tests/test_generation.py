"""Generation: the cache changes nothing but the speed; each cut keeps what it says."""

from itertools import combinations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from tinygpt_lib import generation
from tinygpt_lib.generation import KVCache, pick
from tinygpt_lib.gpt import GPT, GPTConfig
from tinygpt_lib.runs.sampling import generate
from tinygpt_lib.speed import FastConfig, FastGPT

V, WINDOW = 11, 8


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make_model(dropout=0.0, **settings):
    """A GPT with opinions, in float64: no processor's rounding turns a near-tie."""
    torch.manual_seed(0)
    model = FastGPT(FastConfig(V, WINDOW, 2, 2, 16, dropout=dropout, **settings))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model.double()


@pytest.fixture(scope="module")
def model():
    return make_model()


def some_ids(B, T, seed=0):
    return torch.randint(V, (B, T), generator=seeded(seed))


def greedy_by_hand(model, ids, n):
    """One argmax after the other, on the last WINDOW tokens, row by row."""
    rows = []
    for row in ids:
        for _ in range(n):
            with torch.no_grad():
                logits = model(row[None, -WINDOW:])[0, -1]
            row = torch.cat((row, logits.argmax()[None]))
        rows.append(row)
    return torch.stack(rows)


# --- The whole ---

PROMPTS = [1, 3, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW + 3]
DRAWS = [
    {"temperature": 0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 4},
    {"temperature": 1.5, "top_p": 0.8},
    {"temperature": 1.0, "top_k": 5, "top_p": 0.9},
]


@pytest.mark.parametrize("attention", ["fused", "explicit"])
@pytest.mark.parametrize("draw", DRAWS, ids=str)
@pytest.mark.parametrize("T0", PROMPTS)
def test_cached_equals_uncached_token_for_token(T0, draw, attention):
    model, ids = make_model(attention=attention), some_ids(3, T0)
    for n in (1, WINDOW, 2 * WINDOW + 5):
        cached, uncached = (
            generate(model, ids, n, use_cache=c, generator=seeded(n), **draw)
            for c in (True, False)
        )
        assert torch.equal(cached, uncached)
        assert cached.shape == (3, T0 + n) and cached.dtype == torch.int64
        assert torch.equal(cached[:, :T0], ids)
        assert 0 <= cached.min() and cached.max() < V


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("T0", PROMPTS)
def test_temperature_0_is_an_argmax_loop(model, T0, use_cache):
    ids = some_ids(2, T0, seed=1)
    out = generate(model, ids, 20, temperature=0, use_cache=use_cache)
    assert torch.equal(out, greedy_by_hand(model, ids, 20))
    assert len(out[:, T0:].unique()) > 2  # not one token again and again


@pytest.mark.parametrize("draw", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-8}])
def test_settings_that_leave_one_token_are_greedy(model, draw):
    ids = some_ids(2, 3)
    out = generate(model, ids, 20, generator=seeded(), **draw)
    assert torch.equal(out, generate(model, ids, 20, temperature=0))


def test_greedy_draws_nothing(model):
    state = torch.get_rng_state()
    generate(model, some_ids(2, 3), 9, temperature=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_cache_saves_work():
    """Within the window each token passes each block once."""
    model, fed = make_model(), []
    for part in (model.blocks[0].attention_norm, model.blocks[1].feed_forward):
        part.register_forward_pre_hook(lambda m, args: fed.append(args[0].shape[1]))
    generate(model, some_ids(1, 3), WINDOW - 3, temperature=0)
    assert fed == [3, 3] + [1, 1] * (WINDOW - 4)


@pytest.mark.parametrize("draw", DRAWS, ids=str)
def test_the_lesson_s_own_generate_writes_the_same_text(draw):
    """Bare, and by the quickest way: with and without cache, past the window."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(V, WINDOW, 2, 2, 16)).double()
    for T0 in (1, WINDOW, WINDOW + 3):
        ids = some_ids(2, T0)
        checked = generate(model, ids, 20, generator=seeded(1), **draw)
        for cache in (KVCache, None):
            bare = generation.generate(
                model, ids, 20, cache=cache, generator=seeded(1), **draw
            )
            assert torch.equal(bare, checked)


def test_what_lies_before_the_window_is_forgotten(model):
    ids, other = some_ids(1, WINDOW + 4), some_ids(1, WINDOW + 4, seed=5)
    other[:, 4:] = ids[:, 4:]
    out, same = (
        generate(model, x, 12, generator=seeded())[:, WINDOW + 4 :]
        for x in (ids, other)
    )
    assert torch.equal(out, same)


@pytest.mark.parametrize("use_cache", [True, False])
def test_the_same_seed_writes_the_same_text_another_seed_another(model, use_cache):
    ids = some_ids(1, 3)

    def text(seed):
        out = generate(model, ids, 40, use_cache=use_cache, generator=seeded(seed))
        return out.tolist()

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_without_a_generator_torchs_own_seed_decides(model):
    def text(seed):
        torch.manual_seed(seed)
        return generate(model, some_ids(1, 3), 40).tolist()

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_greedy_rows_of_a_batch_do_not_mix(model):
    ids = some_ids(4, 5)
    together = generate(model, ids, 12, temperature=0)
    alone = [generate(model, row[None], 12, temperature=0) for row in ids]
    assert torch.equal(together, torch.cat(alone))


def test_rows_with_the_same_prompt_are_drawn_apart(model):
    out = generate(model, some_ids(1, 3).expand(8, 3), 20, generator=seeded())
    assert len(out.unique(dim=0)) > 1


def test_no_tokens_asked_for_is_the_prompt(model):
    ids = some_ids(2, 5)
    out = generate(model, ids, 0)
    assert torch.equal(out, ids) and out.data_ptr() != ids.data_ptr()


def test_the_prompt_is_left_as_it_was(model):
    ids = some_ids(2, 5)
    before = ids.clone()
    generate(model, ids, 12)
    assert torch.equal(ids, before)


@pytest.mark.parametrize("mode", [True, False])
def test_dropout_is_off_and_the_mode_restored(model, mode):
    noisy, ids = make_model(dropout=0.5).train(mode), some_ids(2, 3)
    out = generate(noisy, ids, 12, temperature=0)
    assert torch.equal(out, generate(model, ids, 12, temperature=0))
    assert all(part.training == mode for part in noisy.modules())


def test_the_mode_is_restored_when_generating_is_interrupted(model):
    def stop(module, args):
        raise KeyboardInterrupt

    stopped = make_model(dropout=0.5).train()
    stopped.blocks[0].attention_norm.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        generate(stopped, some_ids(1, 3), 4)
    assert stopped.training


def test_a_model_in_16_bits_is_drawn_from_in_32(monkeypatch):
    """Where probabilities in bfloat16 would be off by up to 1 in 256, and their sum."""
    seen, real = [], generation.pick
    spy = lambda logits, *more: seen.append(logits.dtype) or real(logits, *more)  # noqa: E731
    monkeypatch.setattr(generation, "pick", spy)
    for use_cache in (True, False):
        generate(make_model().bfloat16(), some_ids(1, 3), 2, use_cache=use_cache)
    assert seen == [torch.float32] * 4


def test_no_gradient_is_recorded():
    model, recording = make_model(), []
    last = model.blocks[-1].feed_forward
    last.register_forward_hook(lambda m, args, y: recording.append(y.requires_grad))
    generate(model, some_ids(1, 3), 4)
    assert recording == [False] * 4


# --- What is refused, before any work ---


class Untouchable(nn.Module):
    """A model that must not be asked."""

    config = FastConfig(V, WINDOW, 1, 1, 4)

    def forward(self, *args):
        raise AssertionError("the model was called")


NAN, INF = float("nan"), float("inf")
GOOD = torch.zeros(1, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": GOOD[:, :0]}, "prompt is empty"),
        ({"ids": GOOD[:0]}, "prompt is empty"),
        (
            {"ids": GOOD.tolist()},
            r"ids are a list; they must be a torch.Tensor \(B, T\)",
        ),
        ({"ids": GOOD[0]}, r"ids have shape \(3,\)"),
        ({"ids": GOOD[None]}, r"ids have shape \(1, 1, 3\)"),
        ({"ids": GOOD.int()}, r"torch.int32; they must be \(B, T\) and torch.int64"),
        ({"ids": GOOD.float()}, "type torch.float32; they must be"),
        ({"ids": GOOD - 1}, r"-1 to -1.* 0\.\.10"),
        ({"ids": torch.tensor([[0, V]])}, r"0 to 11.* 0\.\.10"),
        *(
            ({"temperature": t}, r"temperature is .* at least 0")
            for t in (-0.1, -1, NAN, INF, -INF, True, "1", None)
        ),
        *(
            ({"top_k": k}, r"top_k is .* whole number in the range 1\.\.11")
            for k in (0, -1, V + 1, 2.0, True, "3")
        ),
        *(
            ({"top_p": p}, r"top_p is .* above 0 and at most 1")
            for p in (0, 0.0, -0.5, 1.01, NAN, INF, True, "1")
        ),
        *(
            ({"n_tokens": n}, r"n_tokens is .* whole number at least 0")
            for n in (-1, 2.0, NAN, True, "5", None)
        ),
    ],
)
def test_nonsense_is_refused_before_the_model_is_asked(changes, message):
    arguments = {"ids": GOOD, "n_tokens": 5, **changes}
    with pytest.raises(ValueError, match=message):
        generate(Untouchable(), **arguments)


def test_the_limits_themselves_are_allowed(model):
    ids = torch.tensor([[0, V - 1]])
    draw = {"temperature": 1, "top_k": V, "top_p": 1}
    plain = generate(model, ids, 20, generator=seeded())
    assert torch.equal(generate(model, ids, 20, generator=seeded(), **draw), plain)


# --- One choice ---

DRAWN = 4000
# Distinct logits whose smallest share is above 0.008, so that 4000 draws miss a kept
# token with probability 1e-14.
rows = st.lists(st.integers(-15, 15), min_size=1, max_size=6, unique=True).map(
    lambda row: torch.tensor(row) / 10
)


def shares(logits, **draw):
    chosen = pick(logits.expand(DRAWN, -1), generator=seeded(), **draw)
    assert chosen.shape == (DRAWN, 1) and chosen.dtype == torch.int64
    return torch.bincount(chosen[:, 0], minlength=len(logits)) / DRAWN


def assert_drawn(drawn, p, kept):
    """Only `kept` was drawn, each as often as its share of what was kept."""
    assert set(drawn.nonzero()[:, 0].tolist()) == set(kept)
    expected = torch.zeros_like(p)
    expected[kept] = p[kept] / p[kept].sum()
    assert (drawn - expected).abs().max() < 6 * 0.5 / DRAWN**0.5


def smallest_set(p, top_p):
    """By trying them all: the fewest tokens that reach top_p, the likeliest such."""
    for size in range(1, len(p) + 1):
        best = max(combinations(range(len(p)), size), key=lambda s: p[[*s]].sum())
        if p[[*best]].sum() >= top_p:
            break
    return [*best]


@settings(max_examples=40)
@given(rows, st.floats(0.4, 3.0))
def test_temperature_divides_the_logits(logits, temperature):
    p = (logits / temperature).softmax(-1)
    drawn = shares(logits, temperature=temperature)
    assert (drawn - p).abs().max() < 6 * 0.5 / DRAWN**0.5


@settings(max_examples=40)
@given(rows, st.data())
def test_top_k_keeps_exactly_k(logits, data):
    k = data.draw(st.integers(1, len(logits)))
    kept = sorted(range(len(logits)), key=lambda i: -logits[i])[:k]
    assert_drawn(shares(logits, top_k=k), logits.softmax(-1), kept)


@settings(max_examples=40)
@given(rows, st.integers(1, 100))
def test_top_p_keeps_the_fewest_that_reach_it(logits, percent):
    p, top_p = logits.softmax(-1), percent / 100 - 1e-4  # never a matter of rounding
    assert_drawn(shares(logits, top_p=top_p), p, smallest_set(p, top_p))


def test_top_p_is_enough_where_it_is_reached_exactly():
    """Four equals of a quarter each, in numbers that a float holds: half is two."""
    equals = torch.zeros(4)
    for top_p, n in ((0.25, 1), (0.5, 2), (0.75, 3), (1.0, 4)):
        assert (shares(equals, top_p=top_p) > 0).tolist() == [True] * n + [False] * (
            4 - n
        )


@settings(max_examples=40)
@given(rows, st.integers(1, 100), st.integers(1, 6))
# Of the two that top_k keeps, the first has over half; of all, it has not.
@example(torch.tensor([0.4, 0.3, 0.2, 0.1]).log(), 50, 2)
def test_top_k_with_top_p_keeps_what_both_keep(logits, percent, k):
    k = min(k, len(logits))
    p, top_p = logits.softmax(-1), percent / 100 - 1e-4
    by_k = sorted(range(len(logits)), key=lambda i: -logits[i])[:k]
    kept = [i for i in smallest_set(p, top_p) if i in by_k]
    assert_drawn(shares(logits, top_k=k, top_p=top_p), p, kept)


@pytest.mark.parametrize("temperature", [0, 1.0, 1e30])
def test_top_k_keeps_k_of_equals(temperature):
    logits = torch.tensor([1.0, 2.0, 2.0, 2.0, 0.0]).expand(500, 5)
    for k in (1, 2):
        chosen = pick(logits, temperature, top_k=k, generator=seeded())
        assert len(chosen.unique()) <= k


@pytest.mark.parametrize(
    "draw",
    [
        *({"temperature": t} for t in (1e-8, 1e-40, 1e-300, 5e-324)),
        *({"top_p": p} for p in (1e-6, 1e-40, 1e-300)),
    ],
    ids=str,
)
def test_the_smallest_temperature_or_top_p_is_greedy_and_never_nan(model, draw):
    ids = some_ids(4, 3)
    drawn = generate(model, ids, 20, generator=seeded(), **draw)
    assert torch.equal(drawn, generate(model, ids, 20, temperature=0))


def test_the_largest_temperature_is_even():
    drawn = shares(torch.tensor([-5.0, 0.0, 5.0]), temperature=1e300)
    assert (drawn - 1 / 3).abs().max() < 6 * 0.5 / DRAWN**0.5


# --- The cache ---


@pytest.mark.parametrize("settings", [{}, {"position": "rotary"}, {"n_kv_head": 1}])
def test_a_cache_that_reads_piece_by_piece_equals_the_whole(settings):
    model, ids = make_model(**settings), some_ids(2, WINDOW)
    with torch.no_grad():
        whole = model(ids)
        for ends in ([8], range(1, 9), [3, 8], [5, 6, 8], [1, 8]):
            cache = KVCache(model)
            for end in ends:
                logits = cache.read(ids[:, :end])
                torch.testing.assert_close(
                    logits, whole[:, end - 1], atol=1e-9, rtol=1e-9
                )
                assert cache.length == end


def test_a_cache_gives_back_all_that_was_put_in(model):
    k, v = torch.randn(2, 2, 3, WINDOW, 4, generator=seeded())
    cache = KVCache(model)
    for end in (2, 3, 8):
        new = slice(cache.length, end)
        all_k, all_v = cache.join(1, k[:, :, new], v[:, :, new])
        assert torch.equal(all_k, k[:, :, :end]) and torch.equal(all_v, v[:, :, :end])
        cache.length = end


def test_a_model_refuses_more_than_its_context_from_a_cache(model):
    cache, ids = KVCache(model), some_ids(1, WINDOW + 1)
    with torch.no_grad():
        cache.read(ids[:, :WINDOW])
        with pytest.raises(ValueError, match=r"9 tokens .*block_size 8"):
            cache.read(ids)
    assert cache.length == WINDOW
