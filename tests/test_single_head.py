"""One head: equal to torch's, blind to the future."""

import pytest
import torch
import torch.nn.functional as F

from tinygpt_lib.single_head import attention, attention_weights

SHAPES = [(1, 1), (5, 5), (1, 5), (2, 5), (4, 5)]  # queries, keys


def qkv(Tq, Tk, batch=(2, 3), D=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(*batch, T, D, generator=generator).requires_grad_()
        for T in (Tq, Tk, Tk)
    )
    return q, k, v


def reference(q, k, v):
    """torch's own, told in a mask which keys the last Tq tokens may look at."""
    Tq, Tk = q.shape[-2], k.shape[-2]
    places = torch.arange(Tk)
    mask = places[None, :] <= places[Tk - Tq :, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize(("Tq", "Tk"), SHAPES)
def test_equals_torch_gradients_too(Tq, Tk, batch):
    q, k, v = qkv(Tq, Tk, batch)
    ours, theirs = attention(q, k, v), reference(q, k, v)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    for a, b in zip(
        torch.autograd.grad((ours * weight).sum(), (q, k, v)),
        torch.autograd.grad((theirs * weight).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_equals_torchs_causal_switch():
    q, k, v = qkv(6, 6)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(attention(q, k, v), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("Tq", "Tk"), SHAPES)
def test_weights_are_means_over_the_past(Tq, Tk):
    q, k, v = qkv(Tq, Tk)
    w = attention_weights(q, k)
    assert w.shape == (2, 3, Tq, Tk)
    torch.testing.assert_close(w.sum(-1), torch.ones(2, 3, Tq))
    future = torch.arange(Tk)[None, :] > torch.arange(Tk - Tq, Tk)[:, None]
    assert (w[..., future] == 0).all() and (w[..., ~future] > 0).all()
    torch.testing.assert_close(attention(q, k, v), w @ v)


def test_the_future_changes_nothing_to_the_bit():
    q, k, v = qkv(7, 7)
    y = attention(q, k, v)
    for t in range(1, 7):
        others = [x.detach().clone() for x in (q, k, v)]
        for x in others:
            x[..., t:, :] += 3.0
        assert torch.equal(attention(*others)[..., :t, :], y[..., :t, :])
        assert not torch.equal(attention(*others)[..., t:, :], y[..., t:, :])


def test_the_last_queries_alone_get_what_all_queries_get():
    q, k, v = qkv(6, 6)
    for Tq in range(1, 7):
        torch.testing.assert_close(
            attention(q[..., -Tq:, :], k, v), attention(q, k, v)[..., -Tq:, :]
        )


def test_large_scores_do_not_overflow():
    q, k, v = qkv(5, 5)
    y = attention(1e4 * q, 1e4 * k, v)
    assert y.isfinite().all()
    torch.testing.assert_close(y, reference(1e4 * q, 1e4 * k, v))


def test_more_queries_than_keys_are_refused():
    q, k, v = qkv(4, 3)
    with pytest.raises(ValueError, match="4 queries for 3 keys"):
        attention(q, k, v)
