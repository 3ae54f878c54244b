"""Modern parts: each against torch or a second way to write it, and all together."""

import math
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tinygpt_lib.basics.files import read_tensors, write_tensors
from tinygpt_lib.blocks import FeedForward
from tinygpt_lib.generation import KVCache
from tinygpt_lib.long_context import ATTENTIONS
from tinygpt_lib.modern_parts import PARTS as KINDS
from tinygpt_lib.modern_parts import (
    GatedFeedForward,
    RMSNorm,
    Rotary,
    angles,
    squared_relu,
)
from tinygpt_lib.runs.checkpoints import load_checkpoint, read_run, save_checkpoint
from tinygpt_lib.runs.models import new_model
from tinygpt_lib.runs.run import SavedRun, train
from tinygpt_lib.runs.sampling import generate
from tinygpt_lib.runs.settings import TrainConfig
from tinygpt_lib.speed import FastConfig
from tinygpt_lib.training import AdamW

PARTS = {
    "norm": sorted(KINDS["norm"]),
    "position": KINDS["position"],
    "qk_norm": sorted(KINDS["qk_norm"]),
    "n_kv_head": (0, 1),
    "feed_forward": sorted(KINDS["feed_forward"]),
    "tie_weights": (False, True),
    "attention": sorted(ATTENTIONS),
}


def combined(**parts):
    """A tiny GPT with these parts, in float64, every parameter far from its start."""
    shape = {"block_size": 12, "n_layer": 2, "n_head": 2, "n_embd": 8}
    window = 5 if parts.get("attention") == "sliding" else 0
    config = FastConfig(**{"vocab_size": 11, **shape, "window": window, **parts})
    torch.manual_seed(0)
    model = new_model(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model.double()


def some_ids(B, T, V=11, seed=1):
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(seed))


def test_every_name_of_the_design_is_there():
    assert {"layer", "rms"} <= KINDS["norm"].keys()
    assert {"learned", "rotary"} <= {*KINDS["position"]}
    assert {"gelu", "relu", "swiglu", "relu2"} <= KINDS["feed_forward"].keys()


# RMSNorm


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_rms_norm_is_torchs(size):
    torch.manual_seed(0)
    ours, theirs = RMSNorm(17), nn.RMSNorm(17, eps=1e-5)
    with torch.no_grad():
        theirs.weight.copy_(ours.weight.normal_())
    x = size * (2 + torch.randn(3, 5, 17))
    torch.testing.assert_close(ours(x), theirs(x))


def test_rms_norm_of_zeros_is_zero():
    assert torch.equal(RMSNorm(4)(torch.zeros(2, 4)), torch.zeros(2, 4))


# Rotary positions


def heads(seed=0, T=16, D=8, dtype=torch.float64):
    torch.manual_seed(seed)
    return torch.randn(2, 2, 3, T, D, dtype=dtype)  # q and k of (B, H, T, D)


def rotary(D=8, length=32, base=100.0, scale=1.0):
    return Rotary(D, length, base, scale)


def test_rotation_is_multiplication_by_a_complex_number():
    x, turns = heads()[0], angles(0, 16, 8, 50.0, 1.0)
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(
        torch.ones_like(turns), turns
    )
    expected = torch.cat([turned.real, turned.imag], dim=-1)
    torch.testing.assert_close(Rotary.turn(x, turns.cos(), turns.sin()), expected)


def test_rotation_is_an_orthogonal_matrix_per_place():
    """A third way: the block matrix of the paper, built for one place."""
    place, D, base = 7, 6, 30.0
    R = torch.zeros(D, D, dtype=torch.float64)
    for i in range(D // 2):
        a = place * base ** (-2 * i / D)
        R[i, i] = R[i + D // 2, i + D // 2] = math.cos(a)
        R[i, i + D // 2], R[i + D // 2, i] = -math.sin(a), math.sin(a)
    x = torch.randn(D, dtype=torch.float64)
    turns = angles(place, place + 1, D, base, 1.0)
    torch.testing.assert_close(Rotary.turn(x[None], turns.cos(), turns.sin())[0], R @ x)
    torch.testing.assert_close(R @ R.T, torch.eye(D, dtype=torch.float64))


@pytest.mark.parametrize("start", [1, 15, 16, 40, 5_000, 1_000_000])
def test_scores_depend_on_distance_alone(start):
    q, k = heads(dtype=torch.float32)
    q0, k0 = rotary()(q, k)
    cos, sin = rotary().table(start, start + 16)
    q1, k1 = Rotary.turn(q, cos, sin), Rotary.turn(k, cos, sin)
    assert not torch.allclose(q0, q1, atol=1e-2)
    torch.testing.assert_close(q0 @ k0.mT, q1 @ k1.mT, atol=1e-4, rtol=0)


def test_scores_do_depend_on_distance():
    q, k = (x[..., :1, :].expand(-1, -1, 16, -1) for x in heads())  # one token, often
    q, k = rotary()(q.float(), k.float())
    scores = (q @ k.mT)[0, 0]
    for distance in range(16):
        along = scores.diagonal(-distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), atol=1e-5, rtol=0)
    assert scores[:, 0].std() > 0.05


def test_rotation_keeps_lengths():
    q, k = heads()
    turned, _ = rotary()(q.float(), k.float())
    torch.testing.assert_close(turned.norm(dim=-1), q.float().norm(dim=-1))


def test_places_beyond_the_table_are_turned_the_same_way():
    q, k = heads(dtype=torch.float32)
    short, long = rotary(length=4), rotary(length=64)
    for T in (3, 4, 5, 16):
        few, many = (r(q[..., :T, :], k[..., :T, :]) for r in (short, long))
        torch.testing.assert_close(few, many)


def test_fewer_queries_than_keys_are_those_of_the_last_places():
    q, k = heads(dtype=torch.float32)
    whole_q, whole_k = rotary()(q, k)
    for Tq in (1, 5, 15):
        some_q, all_k = rotary()(q[..., -Tq:, :], k)
        torch.testing.assert_close(some_q, whole_q[..., -Tq:, :])
        torch.testing.assert_close(all_k, whole_k)


def test_scale_divides_the_places():
    q, k = heads(dtype=torch.float32)
    wide, plain = rotary(scale=2.0), rotary()
    torch.testing.assert_close(
        wide(q, k)[0][..., ::2, :],
        plain(q[..., ::2, :], k[..., ::2, :])[0],
    )


def test_a_rotary_model_does_not_care_where_the_text_begins():
    """Shifted places, the same logits: nothing else in the model knows of places."""
    model = combined(position="rotary")
    ids = some_ids(2, 12)
    expected = model(ids)
    table = model.turns.table
    model.turns.table = lambda start, end: table(start + 777, end + 777)
    torch.testing.assert_close(model(ids), expected, atol=1e-4, rtol=1e-4)


def test_a_rotary_model_knows_order():
    """Without positions a permuted past would give the same last logits (chapter 03).

    One layer: further ones see the causal mask, which tells of order by itself.
    """
    model = combined(position="rotary", n_layer=1)
    ids = torch.tensor([[1, 2, 3, 4], [2, 3, 1, 4]])
    one, other = model(ids)[:, -1]
    assert (one - other).abs().max() > 1e-2


def test_rotary_needs_no_parameters_and_no_place_in_a_checkpoint():
    model = combined(position="rotary")
    assert not [name for name in model.state_dict() if "position" in name]
    assert not [name for name in model.state_dict() if "turns" in name]


@pytest.mark.parametrize(("n_embd", "n_head"), [(6, 2), (5, 1), (9, 3)])
def test_odd_head_sizes_are_refused(n_embd, n_head):
    sizes = {"n_embd": n_embd, "n_head": n_head}
    FastConfig(5, **sizes)  # fine with learned positions
    size = f"n_embd / n_head is {n_embd // n_head}; rotary positions need it even"
    with pytest.raises(ValueError, match=size):
        FastConfig(5, **sizes, position="rotary")


# Query/key norm


@pytest.mark.parametrize("norm", sorted(KINDS["norm"]))
def test_queries_and_keys_are_normed_in_every_head_values_are_not(norm):
    plain, model = combined(), combined(qk_norm=norm)
    model.load_state_dict(plain.state_dict(), strict=False)
    one, other = (m.blocks[0].attention for m in (plain, model))
    x = torch.randn(2, 12, 8, dtype=torch.float64)
    (q, k, v), (q_normed, k_normed, same) = one.project(x), other.project(x)
    assert torch.equal(same, v)
    for raw, normed, part in (
        (q, q_normed, other.query_norm),
        (k, k_normed, other.key_norm),
    ):
        centred = raw - raw.mean(-1, keepdim=True) if norm == "layer" else raw
        size = (centred**2).mean(-1, keepdim=True).add(1e-5).sqrt()
        torch.testing.assert_close(normed, centred / size * part.weight)


def test_query_key_norm_makes_scores_blind_to_the_size_of_queries_and_keys():
    model = combined(position="rotary", qk_norm="rms")
    ids = some_ids(2, 12)
    expected = model(ids)
    with torch.no_grad():
        for block in model.blocks:
            qkv = block.attention.to_qkv
            qkv.weight[:16] *= 50  # queries and keys; the last third are values
            qkv.bias[:16] *= 50
    torch.testing.assert_close(model(ids), expected, atol=1e-3, rtol=1e-3)


def test_query_key_norm_comes_before_the_rotation():
    """The norms' own scales would otherwise make scores depend on places."""
    model, x = combined(position="rotary", qk_norm="rms"), torch.randn(1, 1, 8).double()
    attention = model.blocks[0].attention
    q, k, v = attention.project(x.expand(1, 12, 8))
    q, k, _ = attention.meet(q, k, v)
    scores = (q @ k.mT)[0, 0]
    along = scores.diagonal(-2)
    torch.testing.assert_close(along, along[:1].expand_as(along), atol=1e-6, rtol=0)


# Fewer heads of keys and values


def test_shared_keys_and_values_equal_a_model_that_repeats_them():
    """Two heads of queries on one of keys and values, against full attention."""
    grouped, full = combined(n_kv_head=1), combined()
    state = dict(grouped.state_dict())
    for name, tensor in grouped.state_dict().items():
        if "to_qkv" in name:
            q, k, v = tensor.split([8, 4, 4])
            state[name] = torch.cat([q, k, k, v, v])
    full.load_state_dict(state)
    ids = some_ids(2, 12)
    torch.testing.assert_close(grouped(ids), full(ids))
    cache, large = KVCache(grouped), KVCache(full)
    with torch.no_grad():
        torch.testing.assert_close(cache.read(ids), large.read(ids))
    assert 2 * cache.past[0].nbytes == large.past[0].nbytes


# Positions that are not learnt


def test_sinusoidal_positions_are_the_paper_s():
    """Sines and cosines side by side in halves; otherwise as in Vaswani et al."""
    model, ids = combined(position="sinusoidal"), some_ids(1, 12)
    places = model.embed(ids) - model.token_embedding(ids)
    for t in range(12):
        for i in range(4):
            a = t / 10_000 ** (2 * i / 8)
            pair = places[0, t, [i, i + 4]]
            expected = torch.tensor([math.sin(a), math.cos(a)], dtype=torch.float64)
            torch.testing.assert_close(pair, expected, atol=1e-6, rtol=0)


def test_without_positions_nothing_is_added():
    model, ids = combined(position="none"), some_ids(1, 12)
    assert torch.equal(model.embed(ids), model.token_embedding(ids))


# Feed-forward parts


@pytest.mark.parametrize("bias", [True, False])
def test_gated_feed_forward_from_three_separate_matrices(bias):
    torch.manual_seed(0)
    part = GatedFeedForward(12, bias)
    width = part.output.in_features
    gate, value = nn.Linear(12, width, bias), nn.Linear(12, width, bias)
    with torch.no_grad():
        for i, layer in enumerate((gate, value)):
            rows = slice(i * width, (i + 1) * width)
            layer.weight.copy_(part.widen.weight[rows])
            if bias:
                layer.bias.copy_(part.widen.bias[rows])
    x = torch.randn(3, 4, 12)
    g = gate(x)
    expected = part.output(g / (1 + torch.exp(-g)) * value(x))
    torch.testing.assert_close(part(x), expected)


@pytest.mark.parametrize(
    ("C", "width"), [(12, 32), (64, 176), (128, 344), (144, 384), (384, 1024)]
)
def test_gated_feed_forward_has_about_as_many_parameters(C, width):
    """8/3 of C or the next multiple of 8 above it, as saved checkpoints have it."""
    plain, gated = (
        sum(p.numel() for p in part(C).parameters())
        for part in (FeedForward, GatedFeedForward)
    )
    assert abs(gated / plain - 1) < 0.07
    for bias in (True, False):
        shapes = {
            name: tuple(p.shape)
            for name, p in GatedFeedForward(C, bias).named_parameters()
        }
        expected = {"widen.weight": (2 * width, C), "output.weight": (C, width)}
        biases = {"widen.bias": (2 * width,), "output.bias": (C,)}
        assert shapes == expected | (biases if bias else {})


def test_squared_relu():
    x = torch.tensor([-2.0, 0.0, 0.5, 3.0])
    assert squared_relu(x).tolist() == [0.0, 0.0, 0.25, 9.0]
    part = KINDS["feed_forward"]["relu2"](6)
    y = torch.randn(2, 6)
    expected = part.output(F.relu(part.widen(y)) * F.relu(part.widen(y)))
    torch.testing.assert_close(part(y), expected)


# One matrix for both ends


def test_tied_weights_are_one_parameter():
    tied, untied = combined(tie_weights=True), combined()
    assert untied.n_parameters() - tied.n_parameters() == 11 * 8
    assert "head.weight" not in tied.state_dict()
    optimizer = AdamW(tied.parameters())
    assert len({id(p) for p in optimizer.parameters}) == len(optimizer.parameters)


def test_tied_weights_get_the_gradient_of_both_ends():
    """Against a model with two matrices that hold the same numbers."""
    tied, untied = combined(tie_weights=True), combined()
    weights = tied.state_dict()
    embedding = weights["token_embedding.weight"]
    untied.load_state_dict(
        {
            **weights,
            "token_embedding.weight": embedding * math.sqrt(8),
            "head.weight": embedding,
        }
    )
    ids, targets = some_ids(2, 12), some_ids(2, 12, seed=2).flatten()
    for model in (tied, untied):
        F.cross_entropy(model(ids).flatten(0, 1), targets).backward()
    torch.testing.assert_close(tied(ids), untied(ids))
    one, two = untied.token_embedding.weight.grad, untied.head.weight.grad
    expected = one * math.sqrt(8) + two
    torch.testing.assert_close(tied.token_embedding.weight.grad, expected)


def test_tied_weights_survive_saving_training_and_loading(song, tmp_path):
    shape = {"block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8}
    config = FastConfig(song.tokenizer.vocab_size, **shape, tie_weights=True)

    def new():
        torch.manual_seed(0)
        return new_model(config)

    ids = song.train_ids, song.val_ids
    whole = new()
    plan = TrainConfig(steps=12, eval_every=0, save_every=5)
    expected = train(whole, *ids, plan, progress=False)

    out = tmp_path / "run"
    run = SavedRun(new(), *ids, plan, out, song.tokenizer)
    run.create()
    for _ in range(5):
        run.take_step()
    run.save(run.state())
    resumed = new()
    history = train(
        resumed,
        *ids,
        plan,
        out=out,
        tokenizer=song.tokenizer,
        resume=True,
        progress=False,
    )
    assert history.losses == expected.losses
    model, _ = load_checkpoint(out)
    for name, t in whole.state_dict().items():
        assert torch.equal(model.state_dict()[name], t), name
    save_checkpoint(tmp_path / "again", model, song.tokenizer)
    again, _ = load_checkpoint(tmp_path / "again")
    assert torch.equal(again(ids[0][None, :8]), model(ids[0][None, :8]))


# All together


def test_whatever_is_combined(covering, song, tmp_path):
    """A cache changes nothing, no token sees the future, all learns, all is saved."""
    ids, changed = some_ids(2, 12), some_ids(2, 12)
    changed[:, 7:] = (changed[:, 7:] + 1) % 11
    for i, parts in enumerate(covering(**PARTS)):
        model = combined(vocab_size=song.tokenizer.vocab_size, **parts)
        whole = model(ids)
        with torch.no_grad():
            other = model(changed)
            cache, ends = KVCache(model), [4, 5, 6, 9, 12]
            pieces = [cache.read(ids[:, :end]) for end in ends]
        torch.testing.assert_close(
            torch.stack(pieces, dim=1),
            whole.detach()[:, [end - 1 for end in ends]],
            atol=1e-9,
            rtol=1e-9,
            msg=lambda text, parts=parts: f"{parts}: {text}",
        )
        assert torch.equal(other[:, :7], whole[:, :7]), parts
        assert not torch.equal(other[:, 7:], whole[:, 7:]), parts
        for temperature in (0, 1):  # past the window
            texts = [
                generate(
                    model,
                    ids[:, :3],
                    12,
                    temperature=temperature,
                    use_cache=use_cache,
                    generator=torch.Generator().manual_seed(0),
                )
                for use_cache in (True, False)
            ]
            assert torch.equal(*texts), parts
        whole.square().mean().backward()
        for name, p in model.named_parameters():
            assert p.grad is not None and p.grad.abs().max() > 0, (parts, name)
        if i % 5 == 0:
            save_checkpoint(tmp_path / str(i), model, song.tokenizer)
            loaded, _ = load_checkpoint(tmp_path / str(i))
            assert loaded.config == model.config
            assert torch.equal(loaded(ids), whole), parts


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "rsm"}, "norm is 'rsm'; it must be one of 'layer', 'rms'"),
        ({"position": "rope"}, "position is 'rope'; it must be one of 'learned'"),
        (
            {"qk_norm": True},
            "qk_norm is True; it must be one of 'layer', 'none', 'rms'",
        ),
        ({"feed_forward": "glu"}, "feed_forward is 'glu'; it must be one of 'gelu'"),
        ({"tie_weights": 1}, "tie_weights is 1; it must be True or False"),
        ({"rotary_base": 0.5}, "rotary_base is 0.5; it must be at least 1"),
        ({"rotary_scale": math.nan}, "rotary_scale is nan; it must be at least 1"),
        ({"n_kv_head": 3}, "n_kv_head 3 does not divide n_head 4"),
        ({"n_head": 3}, "n_embd 128 can't be split into n_head 3 equal heads"),
    ],
)
def test_nonsense_is_refused_in_one_sentence(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        FastConfig(65, **settings)
    assert "\n" not in str(error.value)


def test_an_older_checkpoint_without_the_new_fields_still_resumes(song, tmp_path):
    """Fields added since take their defaults, which say what was done without them."""
    shape = {"block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8}
    config = FastConfig(song.tokenizer.vocab_size, **shape)
    ids = song.train_ids, song.val_ids
    plan = TrainConfig(steps=2, eval_every=0)
    out = tmp_path / "run"
    torch.manual_seed(0)
    train(
        new_model(config), *ids, plan, out=out, tokenizer=song.tokenizer, progress=False
    )
    path = out / "training.safetensors"
    tensors, notes = read_tensors(path)
    lacking = {
        "model": {
            "embedding": "token",
            "position": "learned",
            "rotary_base": 10_000.0,
            "rotary_scale": 1.0,
            "qk_norm": "none",
            "tie_weights": False,
            "zero_outputs": False,
            "window": 0,
        },
        "training": {
            "accumulate": 1,
            "context": 0,
            "optimizer": "adamw",
            "engine": "eager",
            "cooldown_shape": "cosine",
        },
    }
    for part, settings in lacking.items():
        notes[part] = {k: v for k, v in notes[part].items() if k not in settings}
    write_tensors(path, tensors, notes)
    state = read_run(out)
    assert state.model == asdict(config)
    for part, settings in lacking.items():
        assert getattr(state, part).items() >= settings.items()
    train(
        new_model(config),
        *ids,
        plan,
        out=out,
        tokenizer=song.tokenizer,
        resume=True,
        progress=False,
    )
