"""Long context: windows equal a band mask, caches stay small, places stretch."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tinygpt_lib.gpt import GPT, GPTConfig
from tinygpt_lib.long_context import (
    WindowCache,
    loss_by_position,
    sliding_attention,
    with_context,
)
from tinygpt_lib.multi_head import fused_attention
from tinygpt_lib.runs.checkpoints import load_checkpoint, save_checkpoint
from tinygpt_lib.runs.models import new_model
from tinygpt_lib.runs.presets import PRESETS
from tinygpt_lib.runs.run import train
from tinygpt_lib.runs.sampling import generate
from tinygpt_lib.speed import FastConfig
from tinygpt_lib.text import CharTokenizer
from tinygpt_lib.training import cpu_preset

V, BLOCK = 11, 8


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make_model(block_size=BLOCK, **settings):
    """A GPT with opinions, in float64: no processor's rounding turns a near-tie."""
    torch.manual_seed(0)
    model = new_model(FastConfig(V, block_size, 2, 2, 16, **settings))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model.double().eval()


def some_ids(B, T, seed=0):
    return torch.randint(V, (B, T), generator=seeded(seed))


def qkv(Tq, Tk, D=4):
    q, k, v = (torch.randn(2, 3, T, D, generator=seeded(T)) for T in (Tq, Tk, Tk))
    return q, k, v.roll(1, dims=-1)


def banded(q, k, v, window):
    """The same with a mask of Tq x Tk, written out."""
    Tq, Tk = q.shape[-2], k.shape[-2]
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    for i, j in product(range(Tq), range(Tk)):
        if not 0 <= (Tk - Tq + i) - j < window:
            scores[..., i, j] = float("-inf")
    return scores.softmax(-1) @ v


# --- Attention in a window ---


@given(st.integers(1, 20), st.integers(0, 12), st.integers(1, 34))
def test_sliding_attention_is_a_band(Tq, before, window):
    q, k, v = qkv(Tq, Tq + before)
    ours = sliding_attention(q, k, v, window)
    torch.testing.assert_close(ours, banded(q, k, v, window), atol=1e-5, rtol=1e-5)


def test_an_empty_batch_stays_empty():
    q, k, v = (x[:0] for x in qkv(9, 9))
    assert sliding_attention(q, k, v, 4).shape == (0, 3, 9, 4)


@pytest.mark.parametrize("T", [1, 5, 12, 13])
def test_its_gradients_are_those_of_the_band(T):
    window, gradients = 4, []
    for function in (sliding_attention, banded):
        inputs = [x.requires_grad_() for x in qkv(T, T)]
        (function(*inputs, window) ** 2).sum().backward()
        gradients.append([x.grad for x in inputs])
    for ours, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [10, 11, 1000])
def test_a_window_that_covers_the_context_is_full_attention(window):
    for Tq in (1, 4, 10):
        q, k, v = qkv(Tq, 10)
        assert torch.equal(sliding_attention(q, k, v, window), fused_attention(q, k, v))


def test_a_token_outside_the_window_is_never_seen():
    q, k, v = qkv(12, 12)
    k2, v2 = k.clone(), v.clone()
    k2[:, :, 5], v2[:, :, 5] = 100.0, -100.0
    changed = sliding_attention(q, k2, v2, 3) != sliding_attention(q, k, v, 3)
    assert changed.any(-1).all(0).all(0).nonzero()[:, 0].tolist() == [5, 6, 7]


def test_no_tensor_of_it_grows_with_the_square_of_the_context():
    """All that autograd keeps of 40 windows is about 4 times that of 10."""

    def kept(T):
        sizes = []
        hooks = (lambda x: sizes.append(x.numel()) or x), (lambda x: x)
        inputs = [x.requires_grad_() for x in qkv(T, T)]
        with torch.autograd.graph.saved_tensors_hooks(*hooks):
            sliding_attention(*inputs, window=8)
        return sum(sizes)

    assert kept(320) < 5 * kept(80)


def test_more_queries_than_keys_are_refused():
    q, k, v = qkv(5, 4)
    with pytest.raises(ValueError, match="5 queries for 4 keys"):
        sliding_attention(q, k, v, 2)


@pytest.mark.parametrize("window", [0, -1, 2.0, True, None, "8"])
def test_windows_below_one_are_refused(window):
    with pytest.raises(ValueError, match=r"window is .* whole number at least 1"):
        sliding_attention(*qkv(3, 3), window)


@pytest.mark.parametrize("window", [0, -1, BLOCK + 1, 2.0, True])
def test_a_config_refuses_windows_that_make_no_sense(window):
    with pytest.raises(ValueError, match=f"window is {window}"):
        FastConfig(V, BLOCK, 2, 2, 16, attention="sliding", window=window)


@pytest.mark.parametrize("attention", ["fused", "explicit"])
def test_a_window_without_sliding_attention_is_refused(attention):
    with pytest.raises(ValueError, match=f"window is 4.*{attention}"):
        FastConfig(V, BLOCK, attention=attention, window=4)


@pytest.mark.parametrize("position", ["learned", "rotary"])
def test_a_model_with_a_full_window_is_the_fused_model(position):
    full = make_model(position=position)
    model = make_model(position=position, attention="sliding", window=BLOCK)
    ids = some_ids(2, BLOCK)
    with torch.no_grad():
        assert torch.equal(model(ids), full(ids))


def test_it_trains(song):
    config = FastConfig(
        song.tokenizer.vocab_size, 24, 2, 2, 16, attention="sliding", window=5
    )
    torch.manual_seed(0)
    model = new_model(config)
    _, settings = PRESETS["long"](config.vocab_size)
    settings.steps, settings.batch_size, settings.context = 60, 8, 0
    losses = train(model, song.train_ids, song.val_ids, settings, progress=False).losses
    # From ln 30; without learning it would stay there, whatever the seed.
    assert sum(losses[-5:]) / 5 < 0.8 * losses[0]


# --- Its cache ---


def storage(cache):
    """Bytes that a cache really holds on to, in one block."""
    return sum(x.untyped_storage().nbytes() for x in cache.past[0])


@pytest.mark.parametrize("window", [1, 4, 7])
@pytest.mark.parametrize(
    "pieces", [[12] + 8 * [1] + [3, 5], 28 * [1], [2, 2, 20, 4], [28]], ids=str
)
def test_pieces_of_any_size_give_the_whole(pieces, window):
    q, k, v = qkv(28, 28)
    whole = sliding_attention(q, k, v, window)
    cache, got = WindowCache(slim(window)), []
    parts = (x.split(pieces, dim=2) for x in (q, k, v))
    for q_part, k_part, v_part in zip(*parts, strict=True):
        keys, values = cache.join(0, k_part, v_part)
        got.append(sliding_attention(q_part, keys, values, window))
        assert all(x.shape[2] <= window for x in cache.past[0])
        assert storage(cache) <= 2 * window * 2 * 3 * 4 * 4  # B, H, D, float32
    torch.testing.assert_close(torch.cat(got, 2), whole, atol=1e-5, rtol=1e-5)


def slim(window):
    return make_model(position="rotary", attention="sliding", window=window)


KINDS = [
    {"attention": "fused"},
    {"attention": "explicit"},
    *({"attention": "sliding", "window": w} for w in (1, 3, BLOCK)),
]


@pytest.mark.parametrize("position", ["learned", "rotary"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_cached_equals_uncached_token_for_token(kind, position):
    model = make_model(position=position, **kind)
    for T0, n in product((1, BLOCK - 1, BLOCK, 3 * BLOCK + 1), (1, 3 * BLOCK)):
        cached, uncached = (
            generate(model, some_ids(2, T0), n, use_cache=c, generator=seeded(n))
            for c in (True, False)
        )
        assert torch.equal(cached, uncached)


def test_with_rotary_positions_it_writes_on_and_never_rebuilds():
    model, fed = slim(3), []
    ids = some_ids(1, 2 * BLOCK)
    watch = lambda module, args: fed.append(args[0].shape[1])  # noqa: E731
    hook = model.blocks[0].feed_forward.register_forward_pre_hook(watch)
    out = generate(model, ids, 20 * BLOCK, generator=seeded())
    hook.remove()
    assert fed == [2 * BLOCK] + (20 * BLOCK - 1) * [1]
    cache = WindowCache(model)
    with torch.no_grad():  # what it saw is what one pass over the whole text sees
        whole = model(out)
        for end in range(2 * BLOCK, out.shape[1] + 1):
            logits = cache.read(out[:, :end])
            torch.testing.assert_close(logits, whole[:, end - 1], atol=1e-4, rtol=1e-4)


def test_with_learned_positions_it_rebuilds_past_the_context():
    model, fed = make_model(attention="sliding", window=3), []
    watch = lambda module, args: fed.append(args[0].shape[1])  # noqa: E731
    model.blocks[0].feed_forward.register_forward_pre_hook(watch)
    generate(model, some_ids(1, BLOCK - 2), 6, temperature=0)
    assert fed == [BLOCK - 2, 1, 1, BLOCK, BLOCK, BLOCK]


def test_the_memory_of_a_model_stays_within_the_window():
    cache, ids = WindowCache(slim(3)), some_ids(2, 38)
    with torch.no_grad():
        for end in (30, 31, 32, 37, 38):
            cache.read(ids[:, :end])
            assert storage(cache) <= 2 * 2 * 3 * 16 * 8  # k, v; B, window, C; float64
    assert cache.length == 38 and cache.room > 10**9


# --- Longer contexts ---


@pytest.mark.parametrize("position", ["learned", "rotary"])
def test_the_same_length_is_the_same_model(position):
    model = make_model(position=position)
    ids = some_ids(2, BLOCK)
    for method in ("none", "interpolate"):
        same = with_context(model, BLOCK, method)
        assert same.config == model.config and same is not model
        with torch.no_grad():
            assert torch.equal(same(ids), model(ids))


def test_the_model_of_chapter_06_gets_longer_too():
    model, ids = GPT(GPTConfig(V, BLOCK, 2, 2, 16)), some_ids(2, BLOCK)
    longer = with_context(model, 2 * BLOCK)
    assert type(longer) is GPT and longer.config.block_size == 2 * BLOCK
    assert torch.equal(longer(ids), model(ids))


def test_none_keeps_the_old_places_and_starts_new_ones_at_zero():
    model = make_model()
    table = model.position_embedding.weight
    new = with_context(model, 20).position_embedding.weight
    assert new.shape == (20, 16) and torch.equal(new[:BLOCK], table)
    assert not new[BLOCK:].any()


def test_an_interpolated_table_has_the_old_rows_and_means_between_them():
    model = make_model()
    table = model.position_embedding.weight
    new = with_context(model, 2 * BLOCK, "interpolate").position_embedding.weight
    assert torch.equal(new[::2], table)
    torch.testing.assert_close(new[1:-1:2], (table[:-1] + table[1:]) / 2)
    assert torch.equal(new[-1], table[-1])  # nothing lies beyond the last


def test_interpolated_rotary_sees_every_other_place_as_before():
    """Every second place of the longer model turns as the old model's places do."""
    model = make_model(position="rotary")
    longer = with_context(model, 2 * BLOCK, "interpolate")
    assert longer.config.rotary_scale == 2.0
    turn, longer_turn = (m.turns for m in (model, longer))
    for old, new in zip(turn.table(0, 8), longer_turn.table(0, 16), strict=True):
        torch.testing.assert_close(new[::2], old)


def test_ntk_keeps_the_fastest_turn_and_slows_the_slowest_by_the_ratio():
    model = make_model(position="rotary")
    longer = with_context(model, 4 * BLOCK, "ntk")
    D, ratio = 8, 4
    old, new = (m.config.rotary_base for m in (model, longer))
    slowest_old, slowest_new = old ** -((D - 2) / D), new ** -((D - 2) / D)
    assert slowest_old / slowest_new == pytest.approx(ratio)
    turn, longer_turn = (m.turns for m in (model, longer))
    assert torch.equal(turn.table(0, 8)[0][:, 0], longer_turn.table(0, 8)[0][:, 0])


@pytest.mark.parametrize("method", ["interpolate", "ntk"])
def test_twice_longer_and_again_is_four_times_longer(method):
    """Each goes on from the model's own base and scale, whatever they are."""
    model = make_model(position="rotary", rotary_base=300.0, rotary_scale=1.5)
    step = with_context(model, 2 * BLOCK, method)
    twice, once = (with_context(m, 4 * BLOCK, method) for m in (step, model))
    ids = some_ids(2, 4 * BLOCK)
    with torch.no_grad():
        torch.testing.assert_close(twice(ids), once(ids), atol=1e-4, rtol=1e-4)
    scale, base = (6.0, 300.0) if method == "interpolate" else (1.5, 300 * 4 ** (8 / 6))
    assert once.config.rotary_scale == twice.config.rotary_scale == scale
    for config in (once.config, twice.config):
        assert config.rotary_base == pytest.approx(base)


def test_ntk_needs_two_turns_to_tell_apart():
    """Of heads of 4 the faster turn is kept; in heads of 2 the only one is both."""
    two, four = (
        new_model(FastConfig(V, BLOCK, 1, n_head, 8, position="rotary"))
        for n_head in (4, 2)
    )
    assert with_context(four, 2 * BLOCK, "ntk").config.rotary_base == 10_000 * 2**2
    with pytest.raises(ValueError, match=r"heads of at least 4; .* heads of 2"):
        with_context(two, 2 * BLOCK, "ntk")


@pytest.mark.parametrize(
    ("position", "method"),
    [*product(("learned", "rotary"), ("none", "interpolate")), ("rotary", "ntk")],
)
def test_a_checkpoint_holds_the_longer_model(tmp_path, position, method):
    longer = with_context(make_model(position=position), 4 * BLOCK, method)
    tokenizer, ids = CharTokenizer("abcdefghijk"), some_ids(2, 4 * BLOCK)
    save_checkpoint(tmp_path / "run", longer, tokenizer)
    loaded, _ = load_checkpoint(tmp_path / "run")
    with torch.no_grad():
        assert torch.equal(loaded(ids), longer(ids))


def test_the_old_model_and_the_random_numbers_are_left_alone():
    for position in ("learned", "rotary"):
        model = make_model(position=position).train()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        state = torch.get_rng_state()
        longer = with_context(model, 2 * BLOCK)
        assert torch.equal(torch.get_rng_state(), state)
        assert longer.training
        with torch.no_grad():
            for p in longer.parameters():
                p.zero_()
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        assert model.config.block_size == BLOCK


def test_type_mode_and_window_are_kept():
    model = make_model(position="rotary", attention="sliding", window=3).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.rand_like(p))  # to the last digit
    longer = with_context(model, 4 * BLOCK, "ntk")
    assert longer.config.window == 3 and not longer.training
    assert {p.dtype for p in longer.parameters()} == {torch.float64}
    for p, q in zip(model.parameters(), longer.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize(
    ("settings", "block_size", "method", "message"),
    [
        ({}, BLOCK - 1, "none", "block_size is 7.*at least 8"),
        ({}, 16.0, "none", "block_size is 16.0"),
        ({}, 16, "yarn", "method is 'yarn'.*'interpolate', 'none', 'ntk'"),
        ({}, 16, "ntk", "'ntk' needs rotary.*position 'learned'"),
        ({"position": "rotary"}, 2**62, "ntk", "rotary_base is .*at most 1e9"),
        ({"position": "rotary"}, 2**62, "interpolate", "rotary_scale is .*at most 1e9"),
    ],
)
def test_contexts_that_make_no_sense_are_refused(settings, block_size, method, message):
    with pytest.raises(ValueError, match=message):
        with_context(make_model(**settings), block_size, method)


# --- Loss by position ---


def test_loss_by_position_is_the_mean_over_windows():
    model, ids = make_model(), some_ids(1, 6 * BLOCK + 5)[0]
    mean, error = loss_by_position(model, ids)
    losses = []
    for start in range(0, 6 * BLOCK, BLOCK):
        with torch.no_grad():
            log_p = model(ids[None, start : start + BLOCK])[0].log_softmax(-1)
        targets = ids[start + 1 : start + BLOCK + 1]
        losses.append(-log_p[torch.arange(BLOCK), targets])
    losses = torch.stack(losses)
    assert mean.shape == error.shape == (BLOCK,)
    torch.testing.assert_close(mean, losses.mean(0).float())
    torch.testing.assert_close(error, (losses.std(0) / 6**0.5).float())


def test_losses_of_a_model_in_16_bits_are_float32():
    model, ids = make_model().bfloat16(), some_ids(1, 6 * BLOCK + 1)[0]
    mean, error = loss_by_position(model, ids)
    with torch.no_grad():
        logits = model(ids[:-1].view(6, BLOCK)).double().transpose(1, 2)
    losses = F.cross_entropy(logits, ids[1:].view(6, BLOCK), reduction="none")
    assert mean.dtype == error.dtype == torch.float32
    torch.testing.assert_close(mean.double(), losses.mean(0), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("tokens_at_once", "stride"), [(1, 2), (20, 1), (10**6, 3)])
def test_overlapping_windows_in_batches_of_any_size(
    tokens_at_once, stride, monkeypatch
):
    model, ids = make_model(), some_ids(1, 40)[0]
    most = "tinygpt_lib.long_context.most_tokens"
    monkeypatch.setattr(most, lambda model: tokens_at_once)
    mean, _ = loss_by_position(model, ids, 4, stride)
    with torch.no_grad():
        starts = range(0, 40 - 4, stride)
        windows = torch.stack([ids[s : s + 5] for s in starts])
        log_p = model(windows[:, :-1]).log_softmax(-1)
    losses = -log_p.gather(-1, windows[:, 1:, None])[..., 0]
    torch.testing.assert_close(mean, losses.mean(0).float())


def test_loss_by_position_restores_the_mode_and_refuses_too_little_text():
    model = make_model(dropout=0.5).train()
    ids = some_ids(1, 2 * BLOCK + 1)[0]
    first, again = (loss_by_position(model, ids)[0] for _ in range(2))
    assert torch.equal(first, again) and model.training
    with pytest.raises(ValueError, match=r"16 tokens; two windows of length 8"):
        loss_by_position(model, ids[:-1])
    for name in ("length", "stride"):
        with pytest.raises(ValueError, match=f"{name} is 0"):
            loss_by_position(model, ids, **{name: 0})


# --- The preset ---


def test_the_long_preset_looks_back_on_at_least_512_tokens():
    config, settings = PRESETS["long"](65)
    assert config.block_size >= 512 and settings.context == config.window == 64
    model = new_model(config)
    assert abs(model.n_parameters() - GPT(cpu_preset(65)[0]).n_parameters()) < 3e4
    logits = model(torch.zeros(1, config.block_size, dtype=torch.int64))
    assert logits.shape == (1, config.block_size, 65)
