"""GPT: the logits of Hugging Face's GPT-2, and what must hold for every config."""

import importlib.util
import json
import math
import warnings
from dataclasses import asdict, fields, replace

import pytest
import torch
import torch.nn.functional as F

from tinygpt_lib.blocks import Dropout
from tinygpt_lib.gpt import GPT, GPTConfig
from tinygpt_lib.modern_parts import angles
from tinygpt_lib.runs.models import full_config, new_model
from tinygpt_lib.speed import FastConfig, FastGPT

NEEDS = "GPT-2 as the reference needs transformers: pip install transformers"


def tiny(**settings):
    defaults = {"block_size": 10, "n_layer": 2, "n_head": 2, "n_embd": 16}
    return GPTConfig(**{"vocab_size": 13, **defaults, **settings})


def switched(**settings):
    """The same with switches."""
    lean = {field.name for field in fields(GPTConfig)}
    config = full_config(tiny(**{k: v for k, v in settings.items() if k in lean}))
    return replace(config, **{k: v for k, v in settings.items() if k not in lean})


def built(config):
    return FastGPT(config) if isinstance(config, FastConfig) else GPT(config)


def loud(config, seed=0):
    """A GPT whose every parameter is random and far from what it starts with."""
    torch.manual_seed(seed)
    model = built(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


def some_ids(config, B=3, T=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (B, config.block_size if T is None else T)
    return torch.randint(config.vocab_size, shape, generator=generator)


@pytest.fixture(scope="module")
def transformers():
    if importlib.util.find_spec("transformers") is None:
        warnings.warn(NEEDS, stacklevel=1)  # seen without -rs, which a skip is not
    return pytest.importorskip("transformers", reason=NEEDS)


@pytest.fixture(scope="module")
def gpt2(transformers):
    """Hugging Face's GPT-2 with random weights, and ours with the same."""
    torch.manual_seed(0)
    config = GPTConfig(29, block_size=16, n_layer=3, n_head=4, n_embd=32)
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=29,
            n_positions=16,
            n_layer=3,
            n_head=4,
            n_embd=32,
            activation_function="gelu_new",
            tie_word_embeddings=False,
            attn_implementation="eager",
        )
    ).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.1 * torch.randn_like(p))
    source = theirs.state_dict()
    assert not torch.equal(source["lm_head.weight"], source["transformer.wte.weight"])

    names = {
        "token_embedding.weight": "transformer.wte.weight",
        "position_embedding.weight": "transformer.wpe.weight",
        "norm.weight": "transformer.ln_f.weight",
        "norm.bias": "transformer.ln_f.bias",
        "head.weight": "lm_head.weight",
    }
    parts = {
        "attention_norm": "ln_1",
        "attention.to_qkv": "attn.c_attn",
        "attention.output": "attn.c_proj",
        "feed_forward_norm": "ln_2",
        "feed_forward.widen": "mlp.c_fc",
        "feed_forward.output": "mlp.c_proj",
    }
    for i in range(config.n_layer):
        for ours_part, their_part in parts.items():
            for kind in ("weight", "bias"):
                name = f"blocks.{i}.{ours_part}.{kind}"
                names[name] = f"transformer.h.{i}.{their_part}.{kind}"

    def ours_from(tensors):
        """Their matrices inside the blocks are (in, out), ours are (out, in)."""
        return {
            ours: t.mT if ".h." in name and t.dim() == 2 else t
            for ours, name in names.items()
            for t in [tensors[name]]
        }

    ours = GPT(config).eval()
    ours.load_state_dict(ours_from(source))  # strict: no parameter is left out
    return ours, theirs, ours_from


@pytest.mark.parametrize("T", [1, 5, 16])
def test_logits_equal_those_of_gpt2(gpt2, T):
    ours, theirs, _ = gpt2
    ids = some_ids(ours.config, T=T, seed=T)
    with torch.no_grad():
        logits, expected = ours(ids), theirs(ids).logits
    assert expected.std() > 0.3  # something to be equal to
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


def test_gradients_equal_those_of_gpt2(gpt2):
    ours, theirs, ours_from = gpt2
    ids = some_ids(ours.config)
    x, y = ids[:, :-1], ids[:, 1:].flatten()
    F.cross_entropy(ours(x).flatten(0, 1), y).backward()
    F.cross_entropy(theirs(x).logits.flatten(0, 1), y).backward()
    expected = ours_from({n: p.grad for n, p in theirs.named_parameters()})
    for name, p in ours.named_parameters():
        torch.testing.assert_close(
            p.grad, expected[name], atol=1e-5, rtol=1e-4, msg=lambda m, n=name: n + m
        )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("V", "T", "L", "H", "C"),
    [(65, 64, 4, 4, 128), (13, 10, 1, 1, 8), (7, 3, 5, 2, 6), (2, 1, 2, 3, 9)],
)
def test_parameters_counted_by_formula(V, T, L, H, C, bias):
    model = GPT(GPTConfig(V, T, L, H, C, bias=bias))
    block = 12 * C * C + 2 * C  # matrices of attention (4) and feed-forward (8), norms
    if bias:
        block += 9 * C + 2 * C  # of q k v, output, widen, narrow; and of the norms
    expected = 2 * V * C + T * C + L * block + C + (C if bias else 0)
    assert model.n_parameters() == expected
    assert sum(p.numel() for p in model.state_dict().values()) == expected


def test_a_gpt2_sized_model_has_as_many_parameters_as_gpt2():
    with torch.device("meta"):  # nothing is allocated
        model = GPT(GPTConfig(50257, 1024, 12, 12, 768))
    assert model.n_parameters() - 50257 * 768 == 124_439_808  # GPT-2 has no own head


@pytest.mark.parametrize(("seed", "C", "V"), [(0, 128, 13), (1, 32, 65), (2, 64, 999)])
def test_the_first_loss_is_that_of_a_guess(seed, C, V):
    torch.manual_seed(seed)
    config = GPTConfig(V, block_size=32, n_layer=3, n_head=4, n_embd=C)
    ids = some_ids(config, B=64, seed=seed)
    with torch.no_grad():
        logits = GPT(config)(ids[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()
    assert abs(loss - math.log(V)) < 0.05


STARTS = {  # standard deviation of the first weights, for L layers, C wide
    "token_embedding": lambda L, C: 1.0,
    "position_embedding": lambda L, C: 1.0,
    "attention.to_qkv": lambda L, C: C**-0.5,
    "attention.output": lambda L, C: (2 * L * C) ** -0.5,
    "feed_forward.widen": lambda L, C: C**-0.5,
    "feed_forward.output": lambda L, C: (2 * L * 4 * C) ** -0.5,
    "head": lambda L, C: 0.2 * C**-0.5,
}


@pytest.mark.parametrize("changes", [{}, {"tie_weights": True}, {"zero_outputs": True}])
def test_each_matrix_starts_at_its_scale_biases_at_0_and_norms_at_1(changes):
    L, C = 3, 48
    torch.manual_seed(0)
    model = FastGPT(FastConfig(67, 40, L, 4, C, **changes))
    for name, p in model.named_parameters():
        part, kind = name.rsplit(".", 1)
        part = part.removeprefix("blocks.").lstrip("0123456789").lstrip(".")
        if kind == "bias":
            assert p.eq(0).all(), name
        elif "norm" in part:
            assert p.eq(1).all(), name
        elif part.endswith("output") and model.config.zero_outputs:
            assert p.eq(0).all(), name
        else:
            tied = part == "token_embedding" and model.config.tie_weights
            expected = C**-0.5 if tied else STARTS[part](L, C)
            # n numbers know their deviation to one part in sqrt(2n): five of these.
            off = 5 * (2 * p.numel()) ** -0.5
            assert p.std().item() == pytest.approx(expected, rel=off), name
            assert abs(p.mean().item()) < 5 * expected * p.numel() ** -0.5, name


def test_with_tied_weights_it_starts_as_a_parrot_and_knows_nothing_of_the_rest():
    """The stream still holds the token itself, and the head asks for the like of it."""
    torch.manual_seed(0)
    config = FastConfig(65, 32, n_layer=3, n_head=4, n_embd=64, tie_weights=True)
    model, ids = FastGPT(config), some_ids(config, B=32)
    with torch.no_grad():
        logits = model(ids)
        assert model.embed(ids).std().item() == pytest.approx(2**0.5, rel=0.1)
    echo = logits.gather(-1, ids[..., None])[..., 0]
    # The token's share of the stream: with the place's it is half, and all blocks add
    # up to one more at most. Normed, the stream is sqrt(64) long, the head's rows 1.
    assert 0.95 * 8 / 3**0.5 < echo.mean().item() < 1.05 * 8 / 2**0.5
    others = logits.scatter(-1, ids[..., None], float("nan"))
    assert others[~others.isnan()].std().item() == pytest.approx(1, rel=0.1)


def test_the_embedding_is_dropped_out_before_the_first_block_as_in_each():
    model = loud(switched(dropout=0.3, zero_outputs=True, n_embd=64, n_head=4))
    ids, stream = (
        some_ids(model.config, B=20),
        model.embed(some_ids(model.config, B=20)),
    )
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    model.train()(ids)
    dropped = seen[0] == 0
    deviation = (0.3 * 0.7 / dropped.numel()) ** 0.5
    assert abs(dropped.float().mean().item() - 0.3) < 5 * deviation
    torch.testing.assert_close(seen[0][~dropped], stream[~dropped] / 0.7)
    shares = [part.p for part in model.modules() if isinstance(part, Dropout)]
    assert shares == [0.3] * 3  # once here, and in each of two blocks


def test_the_stream_starts_as_loud_in_a_deep_model():
    ids = some_ids(tiny())
    ends = []
    for n_layer in (1, 24):
        torch.manual_seed(0)
        model, seen = GPT(tiny(n_layer=n_layer, n_embd=64)), []
        model.norm.register_forward_pre_hook(lambda m, x, s=seen: s.append(x[0].std()))
        model(ids)
        ends.append(seen[0].item())
    assert ends[1] < 2 * ends[0]


@pytest.mark.parametrize("attention", ["explicit", "fused"])
def test_the_future_changes_nothing(attention):
    model = loud(switched(attention=attention)).eval()
    ids = some_ids(model.config)
    logits = model(ids)
    for t in range(1, ids.shape[1]):
        other = ids.clone()
        other[:, t:] = (other[:, t:] + 1) % 13
        assert torch.equal(model(other)[:, :t], logits[:, :t])
        assert not torch.equal(model(other)[:, t:], logits[:, t:])


def test_a_shorter_text_gets_the_same_logits():
    model = loud(tiny())
    ids = some_ids(model.config)
    for T in range(1, 11):
        logits = model(ids[:, :T])
        assert logits.shape == (3, T, 13) and logits.dtype == torch.float32
        torch.testing.assert_close(logits, model(ids)[:, :T], atol=1e-5, rtol=1e-5)


def test_position_matters():
    """The same token everywhere: without positions all logits would be the same."""
    model = loud(tiny())
    logits = model(torch.zeros(1, 10, dtype=torch.int64))[0]
    assert (logits[1:] - logits[:-1]).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("settings", [{}, {"bias": False}, {"dropout": 0.2}])
def test_the_model_with_switches_left_alone_is_this_model(settings):
    """The same weights from the same seed, to the bit, and the same logits."""
    torch.manual_seed(1)
    lean = GPT(tiny(**settings))
    for kind in (FastGPT, new_model):
        torch.manual_seed(1)
        other = kind(full_config(lean.config))
        state, expected = other.state_dict(), lean.state_dict()
        assert list(state) == list(expected)
        assert all(torch.equal(state[name], expected[name]) for name in expected)
        ids = some_ids(lean.config)
        assert torch.equal(lean.eval()(ids), other.eval()(ids))


@pytest.mark.parametrize("settings", [{}, {"bias": False}, {"feed_forward": "relu"}])
def test_explicit_and_fused_models_agree(settings):
    fused = loud(switched(**settings))
    explicit = FastGPT(switched(attention="explicit", **settings))
    explicit.load_state_dict(fused.state_dict())
    ids = some_ids(fused.config)
    torch.testing.assert_close(fused(ids), explicit(ids), atol=1e-5, rtol=1e-5)


ROTARY = {"position": "rotary"}
SLIDING = {"attention": "sliding", "window": 4}
# For each setting: what is set in both models, what in the other one, what differs.
ANOTHER = {
    "vocab_size": ({}, {"vocab_size": 12}, "logits parts"),
    "block_size": ({}, {"block_size": 11}, "logits parts room"),  # its places are new
    "n_layer": ({}, {"n_layer": 3}, "logits parts"),
    "n_head": ({}, {"n_head": 4}, "logits"),
    "n_embd": ({}, {"n_embd": 18}, "logits parts"),
    "dropout": ({}, {"dropout": 0.2}, "logits"),
    "bias": ({}, {"bias": False}, "logits parts"),
    "embedding": ({}, {"embedding": "ngrams"}, "logits parts"),
    "attention": ({}, {"attention": "explicit"}, "attention"),
    "norm": ({"bias": False}, {"norm": "rms"}, "logits"),
    "feed_forward": ({}, {"feed_forward": "relu"}, "logits"),
    "position": ({}, {"position": "rotary"}, "logits parts room"),
    "rotary_base": (ROTARY, {"rotary_base": 20.0}, "logits"),
    "rotary_scale": (ROTARY, {"rotary_scale": 2.0}, "logits"),
    "qk_norm": ({}, {"qk_norm": "rms"}, "logits parts"),
    "tie_weights": ({}, {"tie_weights": True}, "logits parts"),
    "zero_outputs": ({}, {"zero_outputs": True}, "start"),
    "window": (SLIDING, {"window": 3}, "logits"),
    "n_kv_head": ({}, {"n_kv_head": 1}, "logits parts"),
}


def test_every_setting_makes_another_model():
    assert ANOTHER.keys() == {field.name for field in fields(FastConfig)}
    ids = some_ids(tiny(vocab_size=12), T=9)

    def facts(config, weights):
        model = loud(config)
        parts = {name: p.shape for name, p in model.named_parameters()}
        known = {k: v for k, v in weights.items() if parts.get(k) == v.shape}
        model.load_state_dict(known, strict=False)
        try:
            model(some_ids(config, T=11))
            room = True
        except ValueError:
            room = False
        attention = model.blocks[0].attention
        start = FastGPT(config).blocks[0].attention.output.weight
        found = {"logits": model.train()(ids), "parts": parts, "room": room}
        found["start"] = start.abs().max() > 0
        return found | {"attention": attention.config.attention}, model

    def same(one, other):
        if not torch.is_tensor(one):
            return one == other
        return one.shape == other.shape and torch.allclose(one, other, atol=1e-4)

    for name, (both, change, differs) in ANOTHER.items():
        first, model = facts(switched(**both), {})
        second, _ = facts(switched(**both | change), model.state_dict())
        unlike = {what for what in first if not same(first[what], second[what])}
        assert unlike == set(differs.split()), name


def test_the_config_s_turns_are_those_of_its_base_and_scale():
    """In the table and past it."""
    turn = FastGPT(
        switched(position="rotary", rotary_base=123.0, rotary_scale=3.0)
    ).turns
    for start, end in ((0, 10), (7, 12), (50_000, 50_003)):
        places = torch.arange(start, end, dtype=torch.float64)[:, None] / 3
        turns = places * 123.0 ** -(torch.arange(4, dtype=torch.float64) / 4)
        torch.testing.assert_close(angles(start, end, 8, 123.0, 3.0), turns)
        for ours, expected in zip(
            turn.table(start, end), (turns.cos(), turns.sin()), strict=True
        ):
            torch.testing.assert_close(ours, expected.float())


@pytest.mark.parametrize("T", [11, 50])
def test_more_tokens_than_the_context_are_refused(T):
    model = GPT(tiny())
    with pytest.raises(ValueError, match=rf"{T} tokens .*block_size 10"):
        model(some_ids(model.config, T=T))


def test_without_bias_there_is_none():
    model = GPT(tiny(bias=False))
    names = [name for name, _ in model.named_parameters()]
    assert not any("bias" in name for name in names)
    assert model(some_ids(model.config)).isfinite().all()
    with_bias = [name for name, _ in GPT(tiny()).named_parameters()]
    assert names == [name for name in with_bias if "bias" not in name]


def test_dropout_is_random_in_training_and_off_in_evaluation():
    plain = loud(tiny())
    model = GPT(tiny(dropout=0.3))
    model.load_state_dict(plain.state_dict())
    ids = some_ids(model.config)
    assert not torch.equal(model.train()(ids), model(ids))
    assert torch.equal(model.eval()(ids), plain(ids))


def test_every_parameter_learns():
    model = loud(tiny())
    ids = some_ids(model.config, B=20)
    F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
    silent = [n for n, p in model.named_parameters() if p.grad.abs().max() == 0]
    assert not silent


def test_the_same_seed_makes_the_same_model():
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in GPT(tiny()).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_on_the_meta_device_only_shapes_are_computed():
    with torch.device("meta"):
        model = GPT(tiny(dropout=0.1))
        logits = model(torch.zeros(2, 10, dtype=torch.int64))
    assert all(p.is_meta for p in model.parameters())
    assert logits.is_meta and logits.shape == (2, 10, 13)


NOT_COUNTS = [0, -1, 2.0, "4", None, True, math.nan]


@pytest.mark.parametrize("value", NOT_COUNTS)
@pytest.mark.parametrize(
    "field", ["vocab_size", "block_size", "n_layer", "n_head", "n_embd"]
)
def test_a_count_that_makes_no_sense_is_named(field, value):
    with pytest.raises(ValueError, match=rf"^{field} is .* whole number at least 1"):
        tiny(**{field: value})


@pytest.mark.parametrize(
    ("field", "values", "allowed"),
    [
        ("dropout", [-0.1, 1, 1.0, math.nan, math.inf, "0.1", None, True], "below 1"),
        ("bias", [0, 1, "yes", None], "True or False"),
        ("attention", ["flash", None, ["fused"]], "'explicit', 'fused'"),
        ("norm", ["batch", None, {}], "'layer', 'rms'"),
        ("feed_forward", ["swish", None, 3], "'gelu', .*'relu'"),
        ("qk_norm", ["batch", True, None], "'none'"),
        ("tie_weights", [0, 1, None], "True or False"),
        ("zero_outputs", [0, 1, "no"], "True or False"),
        ("rotary_base", [0.5, 1.1e9, math.nan, "1e4"], "at least 1 and at most 1e9"),
        ("rotary_scale", [0, 1.1e9, math.inf, None], "at least 1 and at most 1e9"),
        ("window", [-1, 11, 1.0, False], r"0\.\.10"),
        ("n_kv_head", [-1, 3, 1.0, None], r"0\.\.2"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(field, values, allowed):
    for value in values:
        with pytest.raises(ValueError, match=rf"^{field} is .*{allowed}"):
            switched(**{field: value})


def test_the_limits_themselves_are_allowed():
    switched(rotary_base=1, rotary_scale=1e9, n_layer=1, block_size=1, n_kv_head=2)
    tiny(n_layer=1, n_head=1, n_embd=1, block_size=1)
    switched(attention="sliding", window=10)
    for settings in ({"attention": "sliding"}, {"window": 1}):
        with pytest.raises(ValueError, match=r"^window is .* attention is"):
            switched(**settings)


def test_heads_that_do_not_divide_the_width_are_named():
    with pytest.raises(ValueError, match=r"n_embd 16 .*n_head 3 "):
        tiny(n_head=3)


def test_a_config_survives_json():
    config = switched(dropout=0.25, attention="explicit", feed_forward="relu")
    assert FastConfig(**json.loads(json.dumps(asdict(config)))) == config
