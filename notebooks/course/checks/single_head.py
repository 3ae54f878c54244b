"""What chapter 03 asks of its holes."""

import math

import torch
import torch.nn.functional as F

from course.checks import Wrong, expect, normal, refuses, untouched
from tinygpt_lib import single_head as _ours


def attention_weights(my):
    q, k = normal(2, 5, 16), normal(2, 5, 16, seed=1)
    with untouched(q=q, k=k):
        got = my.attention_weights(q, k)
    future = torch.ones(5, 5, dtype=torch.bool).triu(1)
    scores = q @ k.mT / 4  # the square root of 16
    soft = scores.softmax(-1)
    want = scores.masked_fill(future, -math.inf).softmax(-1)
    if isinstance(got, torch.Tensor) and got.shape == want.shape:
        late = got.masked_fill(~future, 0.0)[0].abs()
        if late.max() > 1e-6:
            looks, at = (late == late.max()).nonzero()[0].tolist()
            raise Wrong(
                "Five random queries and keys.\n"
                f"came out: position {looks} gives the weight {late.max():.2f} to "
                f"position {at}, which is in its future\n"
                "expected: 0 for everything that comes later\n"
                "The future leaks: is the mask the lower triangle, and is it filled in "
                "with minus infinity before the softmax?"
            )
    raw = (q @ k.mT).masked_fill(future, -math.inf)
    expect(
        got,
        want,
        "Random queries and keys of shape (2, 5, 16).",
        {
            "The scores are not divided: by the square root of D, the width of a query.": (raw.softmax(-1)),
            "The scores are divided by D, not by its square root.": (raw / 16).softmax(-1),
            "The square root is of something else than D, the last dimension.": [
                (raw / math.sqrt(n)).softmax(-1) for n in (2, 5)
            ],
            "The rows don't sum to one: is the mask filled in after the softmax?": (
                soft.masked_fill(future, 0.0)
            ),
            "Each column sums to one, but each row should: the softmax is over keys.": (
                scores.masked_fill(future, -math.inf).softmax(-2)
            ),
            "Queries and keys have changed places: a row belongs to a query.": (
                scores.mT.masked_fill(future, -math.inf).softmax(-1)
            ),
            "These are scores: the softmax is missing.": (scores.masked_fill(future, -math.inf)),
            "A row in which nobody may be looked at is not a number: a token may look at itself, too.": (
                isinstance(got, torch.Tensor) and got.isnan().any().item()
            ),
        },
    )
    expect(
        my.attention_weights(q[:, -2:], k),
        want[:, -2:],
        "Only the last two of five queries, for all five keys.",
        {
            "With fewer queries than keys the triangle starts further right: by Tk - Tq.": (
                scores[:, -2:].masked_fill(torch.ones(2, 5, dtype=torch.bool).triu(1), -math.inf).softmax(-1)
            )
        },
    )


def attention(my):
    q, k, v = (normal(2, 3, 7, 8, seed=seed) for seed in range(3))
    with untouched(q=q, k=k, v=v):
        got = my.attention(q, k, v)
    weights = torch.ones(7, 7).tril() / torch.arange(1, 8)[:, None]
    expect(
        got,
        F.scaled_dot_product_attention(q, k, v, is_causal=True),
        "Random queries, keys and values, in a batch of 2 with 3 heads.",
        {
            "These are means with equal weights: who sets the weights?": weights @ v,
            "These are the values, unmixed.": v,
        },
    )
    wide = normal(2, 3, 7, 5)
    expect(
        my.attention(q, k, wide),
        F.scaled_dot_product_attention(q, k, wide, is_causal=True),
        "Values that are narrower than the queries.",
    )
    refuses(lambda: my.attention(q, k[:, :, :3], v[:, :, :3]), "7 queries for 3 keys.")


# --- Exercises ---


def previous(my):
    for n in (2, 5, 9):
        q, k = my.previous(n)
        got = _ours.attention_weights(q, k)
        want = torch.eye(n).roll(1, dims=0).tril()
        want[0, 0] = 1.0
        expect(
            got,
            want,
            f"previous({n}), and the weights that attention makes of it.",
            {
                "Each token looks at itself: which key does its query have to meet?": torch.eye(n),
                "Too much weight goes elsewhere: make the scores larger. They are divided by the square root of D, and with more tokens more of the others share in it.": (
                    got.shape == want.shape and torch.equal(got.argmax(1), want.argmax(1))
                ),
            },
            atol=0.01,
        )


def leaks(my):
    def careless(shift):
        def attend(q, k, v):
            n = q.shape[-2]
            past = torch.ones(n, n, dtype=torch.bool).tril(shift)
            return (q @ k.mT).masked_fill(~past, -math.inf).softmax(-1) @ v

        return attend

    every = [(i, j) for i in range(6) for j in range(i + 1, 6)]
    cases = {
        "this chapter's attention": (_ours.attention, []),
        "attention without a mask": (careless(6), every),
        "a mask that lies one place too far": (careless(1), [(i, i + 1) for i in range(5)]),
        "one that adds up the values of all tokens": (
            lambda q, k, v: v.sum(-2, keepdim=True).expand(v.shape),
            every,
        ),
        "one that uses only the keys, each token the next one's": (
            lambda q, k, v: k.roll(-1, dims=-2).cumsum(-2),
            [(i, j) for i in range(6) for j in range(i + 1, min(i + 2, 6))],
        ),
    }
    for name, (attend, want) in cases.items():
        got = my.leaks(attend)
        expect(
            sorted(map(tuple, got)) if isinstance(got, list | set | tuple) else got,
            want,
            f"leaks(attend) for {name}, with six tokens.",
            {
                "Some of these pairs look back, which is allowed: j must be later than i.": (
                    isinstance(got, list) and any(j <= i for i, j in got)
                ),
                "Change the keys, too: not only the values carry what a token knows.": (
                    "only the keys" in name
                ),
            },
        )
