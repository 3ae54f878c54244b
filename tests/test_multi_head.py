"""Several heads: equal to torch's module, fast equal to slow, blind to the future."""

from functools import partial

import pytest
import torch
from torch import nn

from tinygpt_lib.long_context import ATTENTIONS, sliding_attention
from tinygpt_lib.multi_head import MultiHeadAttention, fused_attention
from tinygpt_lib.single_head import attention

B, T, C = 2, 7, 12
# Each attention as one that looks at everything; a window of 64 covers all texts here.
FULL = {**ATTENTIONS, "sliding": partial(sliding_attention, window=64)}


def some_x(seed=0):
    return torch.randn(B, T, C, generator=torch.Generator().manual_seed(seed))


def module(n_head=3, bias=True, attend=fused_attention):
    torch.manual_seed(0)
    ours = MultiHeadAttention(C, n_head, bias)
    ours.attend = attend
    with torch.no_grad():
        for p in ours.parameters():
            p.normal_(std=0.4)  # biases too, which would start at zero in the GPT
    return ours


@pytest.mark.parametrize(
    ("Tq", "Tk"), [(1, 1), (2, 2), (2, 3), *((Tq, T) for Tq in range(1, T + 1))]
)
def test_fused_equals_explicit_gradients_too(Tq, Tk):
    generator = torch.Generator().manual_seed(Tq)
    q, k, v = (
        torch.randn(B, 3, n, 4, generator=generator).requires_grad_()
        for n in (Tq, Tk, Tk)
    )
    fast, slow = fused_attention(q, k, v), attention(q, k, v)
    torch.testing.assert_close(fast, slow, atol=1e-6, rtol=1e-5)
    weight = torch.randn(fast.shape, generator=generator)
    for a, b in zip(
        torch.autograd.grad((fast * weight).sum(), (q, k, v)),
        torch.autograd.grad((slow * weight).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("function", FULL.values(), ids=FULL)
def test_more_queries_than_keys_are_refused(function):
    q, k = torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 3, 2)
    with pytest.raises(ValueError, match="4 queries for 3 keys"):
        function(q, k, k)


@pytest.mark.parametrize("function", FULL.values(), ids=FULL)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n_head", [1, 3, 12])
def test_equals_torchs_module_with_copied_weights(n_head, bias, function):
    ours = module(n_head, bias, function)
    theirs = nn.MultiheadAttention(C, n_head, bias=bias, batch_first=True)
    pairs = [
        (ours.to_qkv.weight, theirs.in_proj_weight),
        (ours.output.weight, theirs.out_proj.weight),
    ]
    if bias:
        pairs += [
            (ours.to_qkv.bias, theirs.in_proj_bias),
            (ours.output.bias, theirs.out_proj.bias),
        ]
    with torch.no_grad():
        for a, b in pairs:
            b.copy_(a)
    x = some_x().requires_grad_()
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    y = ours(x)
    expected, _ = theirs(x, x, x, attn_mask=future, need_weights=False)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
    weight = some_x(1)
    inputs = (x, *(a for a, _ in pairs))
    references = (x, *(b for _, b in pairs))
    for a, b in zip(
        torch.autograd.grad((y * weight).sum(), inputs),
        torch.autograd.grad((expected * weight).sum(), references),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("function", FULL.values(), ids=FULL)
def test_the_future_changes_nothing_to_the_bit(function):
    ours, x = module(attend=function), some_x()
    for t in range(1, T):
        other = x.clone()
        other[:, t:] += 3.0
        assert torch.equal(ours(other)[:, :t], ours(x)[:, :t])
        assert not torch.equal(ours(other)[:, t:], ours(x)[:, t:])


def test_project_attend_merge_is_all_that_forward_does():
    ours, x = module(), some_x()
    q, k, v = ours.project(x)
    assert q.shape == k.shape == v.shape == (B, 3, T, C // 3)
    heads = ours.attend(q, k, v)
    assert heads.shape == (B, 3, T, C // 3)
    assert torch.equal(ours.merge(heads), ours(x))


def test_without_bias_there_is_none():
    names = [name for name, _ in module(bias=False).named_parameters()]
    assert names == ["to_qkv.weight", "output.weight"]


@pytest.mark.parametrize("n_head", [0, -3, 5, 24])
def test_heads_that_do_not_divide_the_width_are_refused(n_head):
    with pytest.raises(ValueError, match=rf"n_embd 12 .*n_head {n_head} "):
        MultiHeadAttention(C, n_head)
