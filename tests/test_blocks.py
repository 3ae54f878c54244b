"""Blocks: each part equal to torch's, the whole blind to the future."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tinygpt_lib.blocks import (
    Block,
    Dropout,
    FeedForward,
    LayerNorm,
    fast_gelu,
    layer_norm,
)

B, T, C = 2, 6, 8


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_same(ours, theirs, inputs):
    """Values and gradients by `inputs` agree."""
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    weight = draw(*ours.shape, seed=9)
    for a, b in zip(
        torch.autograd.grad((ours * weight).sum(), inputs),
        torch.autograd.grad((theirs * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])  # at 1e-3 eps counts
def test_layer_norm_equals_torch(bias, scale):
    x = (scale * draw(B, T, C) + 3 * scale).requires_grad_()
    weight = draw(C, seed=1).requires_grad_()
    shift = draw(C, seed=2).requires_grad_() if bias else None
    inputs = [x, weight] + [shift] * bias
    expected = F.layer_norm(x, (C,), weight, shift)
    assert_same(layer_norm(x, weight, shift), expected, inputs)

    module = LayerNorm(C, bias)
    theirs = nn.LayerNorm(C, bias=bias)
    with torch.no_grad():
        for p, q in zip(module.parameters(), theirs.parameters(), strict=True):
            q.copy_(p.normal_())
    assert_same(module(x), theirs(x), [x])


@pytest.mark.parametrize("bias", [True, False])
def test_a_new_layer_norm_only_norms(bias):
    y = LayerNorm(C, bias)(5 + 3 * draw(B, T, C))
    torch.testing.assert_close(y.mean(-1), torch.zeros(B, T), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        y.var(-1, correction=0), torch.ones(B, T), atol=1e-4, rtol=0
    )
    assert len(list(LayerNorm(C, bias).parameters())) == 1 + bias


def test_fast_gelu_equals_torch_and_nearly_the_exact_one():
    x = torch.linspace(-6, 6, 1001).requires_grad_()
    assert_same(fast_gelu(x), nn.GELU(approximate="tanh")(x), [x])
    assert (fast_gelu(x) - nn.GELU()(x)).abs().max() < 1e-3


@pytest.mark.parametrize("bias", [True, False])
def test_feed_forward_equals_two_linears(bias):
    ours, x = FeedForward(C, bias), draw(B, T, C).requires_grad_()
    theirs = nn.Sequential(
        nn.Linear(C, 4 * C, bias), nn.GELU("tanh"), nn.Linear(4 * C, C, bias)
    )
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        b.data.copy_(a.data)
    assert_same(ours(x), theirs(x), [x])
    torch.testing.assert_close(ours(x[:, 2:3]), ours(x)[:, 2:3])  # each by itself


def test_without_being_told_otherwise_parts_have_biases():
    for part in (FeedForward(C), LayerNorm(C), Block(C, 2)):
        names = [name for name, _ in part.named_parameters()]
        assert len([n for n in names if "bias" in n]) == len(names) / 2


def test_feed_forward_takes_another_activation():
    ours, x = FeedForward(C, activation=F.relu), draw(B, T, C)
    expected = ours.output(F.relu(ours.widen(x)))
    torch.testing.assert_close(ours(x), expected)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_zeroes_its_share_and_keeps_the_mean(p):
    torch.manual_seed(0)
    n = 100_000
    x = torch.full((n,), 2.0, requires_grad=True)
    y = Dropout(p)(x)
    dropped = y == 0
    deviation = (p * (1 - p) / n) ** 0.5
    assert abs(dropped.float().mean().item() - p) < 5 * deviation
    torch.testing.assert_close(
        y[~dropped], torch.full((n - dropped.sum(),), 2 / (1 - p))
    )
    assert abs(y.mean().item() - 2) < 5 * 2 * deviation / (1 - p)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, y.detach() / 2)  # the same mask, and scale


def test_dropout_draws_anew_each_time_and_again_from_the_same_seed():
    drop, x = Dropout(0.5), torch.ones(1000)
    torch.manual_seed(1)
    first, second = drop(x), drop(x)
    torch.manual_seed(1)
    assert not torch.equal(first, second) and torch.equal(drop(x), first)


@pytest.mark.parametrize(("p", "mode"), [(0.5, False), (0.0, True), (0.0, False)])
def test_dropout_that_is_off_touches_nothing(p, mode):
    x, state = draw(B, T, C), torch.get_rng_state()
    assert torch.equal(Dropout(p).train(mode)(x), x)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("p", [-0.1, 1, 1.5, float("nan")])
def test_a_share_that_makes_no_sense_is_refused(p):
    with pytest.raises(ValueError, match=r"dropout is .* at least 0 and below 1"):
        Dropout(p)


def test_block_equals_torchs_encoder_layer():
    torch.manual_seed(0)
    ours = Block(C, 2)
    with torch.no_grad():
        for p in ours.parameters():
            p.normal_(std=0.4)
    theirs = nn.TransformerEncoderLayer(
        C, 2, 4 * C, 0.0, fast_gelu, batch_first=True, norm_first=True
    )
    theirs.load_state_dict(
        {
            "self_attn.in_proj_weight": ours.attention.to_qkv.weight,
            "self_attn.in_proj_bias": ours.attention.to_qkv.bias,
            "self_attn.out_proj.weight": ours.attention.output.weight,
            "self_attn.out_proj.bias": ours.attention.output.bias,
            "linear1.weight": ours.feed_forward.widen.weight,
            "linear1.bias": ours.feed_forward.widen.bias,
            "linear2.weight": ours.feed_forward.output.weight,
            "linear2.bias": ours.feed_forward.output.bias,
            "norm1.weight": ours.attention_norm.weight,
            "norm1.bias": ours.attention_norm.bias,
            "norm2.weight": ours.feed_forward_norm.weight,
            "norm2.bias": ours.feed_forward_norm.bias,
        }
    )
    x = draw(B, T, C).requires_grad_()
    future = nn.Transformer.generate_square_subsequent_mask(T)
    assert_same(ours(x), theirs(x, src_mask=future, is_causal=True), [x])


def test_block_can_not_see_the_future():
    torch.manual_seed(0)
    block, x = Block(C, 2), draw(B, T, C)
    for t in range(1, T):
        other = x.clone()
        other[:, t:] += 3.0
        assert torch.equal(block(other)[:, :t], block(x)[:, :t])
        assert not torch.equal(block(other)[:, t:], block(x)[:, t:])


def test_block_drops_out_of_both_branches_in_training_only():
    torch.manual_seed(0)
    block, x = Block(C, 2, dropout=0.5), draw(B, T, C)
    assert not torch.equal(block(x), block(x))
    # The stream itself is never dropped: with silent branches it passes untouched.
    for part in (block.attention, block.feed_forward):
        for p in part.output.parameters():
            nn.init.zeros_(p)
    assert torch.equal(block(x), x)
    for part in (block.attention, block.feed_forward):
        nn.init.ones_(part.output.bias)
        added = block(x) - x
        assert ((added.abs() < 1e-6) | ((added - 2).abs() < 1e-5)).all()
        assert (added.abs() < 1e-6).any() and ((added - 2).abs() < 1e-5).any()
        nn.init.zeros_(part.output.bias)
    block.eval()
    assert torch.equal(block(x), block(x))


def test_block_without_bias_has_none():
    names = [name for name, _ in Block(C, 2, bias=False).named_parameters()]
    assert len(names) == 6 and not any("bias" in name for name in names)
