"""What chapter 04 asks of its holes."""

import torch
import torch.nn.functional as F
from torch import nn

from course.checks import expect, normal, untouched
from tinygpt_lib.single_head import attention


def fused_attention(my):
    q, k, v = (normal(2, 3, 6, 8, seed=seed) for seed in range(3))
    for n in (6, 1, 2, 5):
        last = q[:, :, -n:]
        free = (last @ k.mT / 8**0.5).softmax(-1) @ v
        first = torch.ones(n, 6).tril().bool()
        with untouched(q=last, k=k, v=v):
            got = my.fused_attention(last, k, v)
        expect(
            got,
            attention(last, k, v),
            f"{n} queries, 6 keys, against chapter 03's `attention`.",
            {
                "A single query, the newest token's, may see every key.": (
                    n == 1 and F.scaled_dot_product_attention(last, k, v, is_causal=True)
                ),
                "The future leaks: with several queries a mask is needed.": n > 1 and free,
                "With fewer queries than keys the triangle starts further right: by Tk - Tq.": (
                    1 < n < 6 and F.scaled_dot_product_attention(last, k, v, attn_mask=first)
                ),
            },
        )


def layer_of(my, bias=True):
    """Twelve wide, three heads, with weights that tell the heads apart."""
    layer = my.MultiHeadAttention(12, 3, bias)
    with torch.no_grad():
        for seed, p in enumerate(layer.parameters()):
            p.copy_(normal(*p.shape, seed=seed) / 3)
    return layer


def pieces(layer, x):
    """Queries, keys and values of each head, by slices of the big matrix."""
    weight, bias = layer.to_qkv.weight.detach(), layer.to_qkv.bias.detach()
    rows = [range(12 * kind + 4 * h, 12 * kind + 4 * h + 4) for kind in range(3) for h in range(3)]
    made = [x @ weight[list(r)].T + bias[list(r)] for r in rows]
    return [torch.stack(made[3 * kind : 3 * kind + 3], dim=1) for kind in range(3)]


def MultiHeadAttention_project(my):
    layer, x = layer_of(my), normal(2, 5, 12, seed=9)
    want = pieces(layer, x)
    with torch.no_grad(), untouched(x=x):
        got = layer.project(x)
        flat = layer.to_qkv(x)
    by_heads = flat.view(2, 5, 3, 3, 4).permute(3, 0, 2, 1, 4)
    glued = [each.reshape(2, 3, 5, 4) for each in flat.chunk(3, dim=-1)]
    got = list(got) if isinstance(got, tuple | list | torch.Tensor) else got
    expect(
        got,
        want,
        "x (2, 5, 12), three heads of width 4, against one small matrix for each head.",
        {
            "The axes stand in another order: each must be (B, H, T, D).": (
                [[w.transpose(1, 2) for w in want]]
            ),
            "Right shape, wrong numbers: `view` to (B, H, T, D) cuts across positions. Name the pieces in the order in which they lie, and then swap.": (
                [glued]
            ),
            "The 3C numbers are all queries first, then all keys, then all values: name the 3 before the heads.": (
                [list(by_heads)]
            ),
            "Queries, keys and values come in another order: q, k, v.": (
                [[want[1], want[0], want[2]], want[::-1], [want[2], want[0], want[1]]]
            ),
        },
    )


def MultiHeadAttention_merge(my):
    layer, y = layer_of(my), normal(2, 3, 5, 4, seed=8)
    side = torch.cat(list(y.unbind(1)), dim=-1)
    with torch.no_grad(), untouched(y=y):
        want, got = layer.output(side), layer.merge(y)
        careless = layer.output(y.reshape(2, 5, 12))
        mixed = layer.output(y.permute(0, 2, 3, 1).flatten(2))
    expect(
        got,
        want,
        "What three heads found, (2, 3, 5, 4), against the heads side by side and the output matrix.",
        {
            "The output matrix is left out.": side,
            "`reshape` alone puts a head's positions side by side: swap H and T first.": careless,
            "The heads are shuffled into each other: the first D numbers are head 0's.": mixed,
        },
    )


def MultiHeadAttention_forward(my):
    layer, x = layer_of(my), normal(2, 5, 12, seed=9)
    theirs = nn.MultiheadAttention(12, 3, batch_first=True)
    q, k, v = pieces(layer, x)
    with torch.no_grad(), untouched(x=x):
        theirs.in_proj_weight.copy_(layer.to_qkv.weight)
        theirs.in_proj_bias.copy_(layer.to_qkv.bias)
        theirs.out_proj.weight.copy_(layer.output.weight)
        theirs.out_proj.bias.copy_(layer.output.bias)
        future = torch.ones(5, 5, dtype=torch.bool).triu(1)
        want, _ = theirs(x, x, x, attn_mask=future)
        free, _ = theirs(x, x, x)
        got = layer(x)
        found = attention(q, k, v)
        unmerged = found.transpose(1, 2).flatten(2)
        values = layer.output(v.transpose(1, 2).flatten(2))
        swapped = layer.output(attention(k, q, v).transpose(1, 2).flatten(2))
    expect(
        got,
        want,
        "x (2, 5, 12), three heads, against torch's nn.MultiheadAttention with the same weights.",
        {
            "The future leaks: use `attend`, which has the mask.": free,
            "The heads are not merged.": [found, unmerged],
            "Nobody looks at anybody: `attend` is left out.": values,
            "Queries and keys have changed places.": swapped,
            "The input is added: that comes in chapter 05.": want + x,
        },
    )


# --- Exercises ---


def without(my):
    q, k, v = (normal(2, 4, 5, 8, seed=seed) for seed in range(3))
    kept = attention(q, k, v)

    def attend(*given):
        return kept

    for heads in ([0], [1, 3], [], [0, 1, 2, 3]):
        less = my.without(attend, heads)
        expect(callable(less), True, "Is what comes back a function?")
        with untouched(found=kept):
            got = less(q, k, v)
        want, places, rest = kept.clone(), kept.clone(), torch.zeros_like(kept)
        want[:, heads] = 0.0
        places[:, :, heads] = 0.0
        rest[:, heads] = kept[:, heads]
        expect(
            got,
            want,
            f"Four heads, without {heads}.",
            {
                "Those are positions: the heads are the second dimension.": places,
                "Only those are left that should be missing.": rest,
                "Nothing is missing.": kept,
            },
        )


def by_hand(my):
    positions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    value = {"a": [1.0, 0.0], "b": [0.0, 1.0]}
    layer = my.by_hand()
    for word in ("abba", "baba", "aaab", "bb", "ab"):
        letters = torch.tensor([value[c] for c in word])
        with torch.no_grad():
            y = layer(torch.cat([letters, positions[: len(word)]], dim=1)[None])[0]
        expect(
            y[1:],
            torch.cat([letters[1:], letters[:-1]], dim=1),
            f"The word {word}: what its letters put out, from the second on.",
            {
                "The two halves have changed places: first its own letter.": (
                    torch.cat([letters[:-1], letters[1:]], dim=1)
                ),
                "Both heads look at the token itself.": torch.cat([letters[1:], letters[1:]], dim=1),
                "The turn goes the wrong way, into the future, where nobody may look.": (
                    same_halves(y[1:], letters[1:])
                ),
            },
            atol=0.01,
        )


def same_halves(y, letters):
    return bool(torch.allclose(y[:, :2], letters, atol=0.01) and y[:, 2:].std() > 0)


def moved_by_last(my):
    class Careless(my.MultiHeadAttention):
        def merge(self, y):
            B, H, T, D = y.shape
            return self.output(y.reshape(B, T, H * D))

    for n, heads in ((10, 4), (6, 2), (8, 8), (5, 1), (3, 6)):
        layer, x = Careless(8 * heads, heads), normal(1, n, 8 * heads)
        changed = x.clone()
        changed[:, -1] += 1.0
        with torch.no_grad():
            moves = (layer(changed) - layer(x)).abs().amax((0, 2)) > 1e-6
        got = my.moved_by_last(n, heads)
        expect(
            list(got) if isinstance(got, tuple | set) else got,
            moves.nonzero().flatten().tolist(),
            f"moved_by_last({n}, {heads}), against what moves in such a layer.",
            {"Without the transpose it is not the last output alone.": [[n - 1]]},
        )
