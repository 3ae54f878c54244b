"""What chapter 05 asks of its holes."""

import torch
import torch.nn.functional as F

from course.checks import Wrong, expect, normal, untouched
from tinygpt_lib import blocks as _ours


def shaken(module):
    """With weights that are not where they start: gains and biases, too."""
    with torch.no_grad():
        for seed, p in enumerate(module.parameters()):
            p.copy_(normal(*p.shape, seed=seed) / 2 + 0.1)
    return module


def FeedForward_forward(my):
    layer, x = shaken(my.FeedForward(4, activation=torch.tanh)), normal(2, 3, 4)
    with torch.no_grad(), untouched(x=x):
        wide = layer.widen(x)
        got = layer(x)
        expect(
            got,
            layer.output(torch.tanh(wide)),
            "x (2, 3, 4), with tanh for its bend.",
            {
                "Without the bend two matrices are just one.": layer.output(wide),
                "It has its own bend: call `self.activation`.": [
                    layer.output(F.gelu(wide, approximate="tanh")),
                    layer.output(F.relu(wide)),
                ],
                "The bend comes between the matrices.": torch.tanh(layer.output(wide)),
                "It is still wide: the second matrix is missing.": torch.tanh(wide),
                "The input is added: that comes later, and from outside.": (
                    x + layer.output(torch.tanh(wide))
                ),
            },
        )


def layer_norm(my):
    weight, bias = normal(6, seed=1), normal(6, seed=2)
    for x in (3 + 5 * normal(2, 4, 6), 0.01 * normal(5, 6)):
        with untouched(x=x, weight=weight, bias=bias):
            got = my.layer_norm(x, weight, bias)
        mean, variance = (x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True))
        unscaled = (x - mean) / (variance + 1e-5).sqrt()
        want = F.layer_norm(x, (6,), weight, bias)
        expect(
            got,
            want,
            f"x {tuple(x.shape)}, against torch's F.layer_norm.",
            {
                "The variance is divided by C - 1: the mean of the squares divides by C.": (
                    (x - mean) / (x.var(-1, keepdim=True) + 1e-5).sqrt() * weight + bias
                ),
                "The mean is not taken away.": x / (variance + 1e-5).sqrt() * weight + bias,
                "Mean and variance are taken over something else than each token's own numbers.": [
                    (x - x.mean(d, keepdim=True))
                    / (x.var(d, unbiased=False, keepdim=True) + 1e-5).sqrt()
                    * weight
                    + bias
                    for d in (0, -2, tuple(range(x.dim())))
                ],
                "The root is missing: divide by the deviation, not by the variance.": (
                    (x - mean) / (variance + 1e-5) * weight + bias
                ),
                "Weight and bias are left out.": unscaled,
                "The bias is left out.": unscaled * weight,
                "The weight is left out.": unscaled + bias,
                "First the weight, then the bias, which is not scaled.": (unscaled + bias) * weight,
                "eps is missing: it keeps the variance above zero.": (
                    (x - mean) / variance.sqrt() * weight + bias
                ),
                "eps belongs inside the root.": ((x - mean) / (variance.sqrt() + 1e-5) * weight + bias),
            },
            atol=1e-4,
        )
    flat = torch.full((2, 6), 3.0)
    expect(
        my.layer_norm(flat, weight, bias),
        bias.expand(2, 6),
        "All numbers of a token are equal.",
        {"A division by zero: eps keeps the variance above it.": True},
    )
    x = normal(3, 6)
    expect(my.layer_norm(x, weight, None), F.layer_norm(x, (6,), weight), "No bias, that is, bias=None.")


def LayerNorm_forward(my):
    layer, x = shaken(my.LayerNorm(6)), 2 + 3 * normal(2, 4, 6)
    with torch.no_grad(), untouched(x=x):
        expect(
            layer(x),
            F.layer_norm(x, (6,), layer.weight, layer.bias),
            "x (2, 4, 6), gains and biases that are not 1 and 0.",
            {
                "Weight and bias are left out.": F.layer_norm(x, (6,)),
                "The bias is left out.": F.layer_norm(x, (6,), layer.weight),
                "The norm goes over each token's own numbers, the last dimension alone.": (
                    F.layer_norm(x, (4, 6)) * layer.weight + layer.bias
                ),
            },
        )
        bare = shaken(my.LayerNorm(6, bias=False))
        expect(bare(x), F.layer_norm(x, (6,), bare.weight), "A LayerNorm without bias.")


def Dropout_forward(my):
    torch.manual_seed(0)
    dropout, x = my.Dropout(0.25), 1 + normal(100, 1000).abs()
    with untouched(x=x):
        got = dropout(x)
    tried = "100,000 numbers, dropout of 0.25, in training."
    if not isinstance(got, torch.Tensor) or got.shape != x.shape:
        expect(got, x, tried)
    dropped = (got == 0).float().mean().item()
    clues = {
        "Those are the ones to keep: drop with probability p.": abs(dropped - 0.75) < 0.01,
        "Nothing is dropped.": dropped == 0,
    }
    expect(dropped, 0.25, f"{tried} The share of zeros:", clues, atol=0.01)
    kept = got != 0
    ratio = (got[kept] / x[kept]).mean().item()
    expect(
        got[kept],
        x[kept] / 0.75,
        f"{tried} What was kept:",
        {
            "What is kept must be scaled up by 1 / (1 - p), so that the mean stays.": abs(ratio - 1) < 1e-3,
            "It is scaled down: divide by 1 - p.": abs(ratio - 0.75) < 1e-3,
            "Divide by 1 - p, the share that stays, not by p.": abs(ratio - 4) < 1e-3,
        },
    )
    rows = kept.float()
    if rows.mean(0).std() > 0.1 or rows.mean(1).std() > 0.1:
        raise Wrong(
            f"{tried}\ncame out: whole rows or columns are dropped together\nexpected: each number by itself"
        )
    if torch.equal(dropout(x) != 0, kept):
        raise Wrong(f"{tried} Twice.\ncame out: the same ones were dropped\nexpected: others each time")
    expect(dropout.eval()(x), x, "The same in evaluation: nothing is dropped.")
    expect(my.Dropout(0.0)(x), x, "p = 0, in training.")


def Block_forward(my):
    block, x = shaken(my.Block(8, 2)), normal(2, 5, 8)
    a, f, an, fn = (block.attention, block.feed_forward, block.attention_norm, block.feed_forward_norm)
    with torch.no_grad(), untouched(x=x):
        got = block(x)
        middle = x + a(an(x))
        expect(
            got,
            middle + f(fn(middle)),
            "x (2, 5, 8), all weights drawn at random.",
            {
                "The stream is replaced: each part must add to it.": [
                    f(fn(a(an(x)))),
                    f(fn(middle)),
                    a(an(x)) + f(fn(a(an(x)))),
                ],
                "The norms are left out.": x + a(x) + f(x + a(x)),
                "Feed-forward reads the stream as it was before the attention.": x + a(an(x)) + f(fn(x)),
                "That is post-norm: the norm belongs where a part reads, not around the stream.": (
                    fn(an(x + a(x)) + f(an(x + a(x))))
                ),
                "First communication, then computation.": x + f(fn(x)) + a(an(x + f(fn(x)))),
                "Each part has its own norm.": x + a(an(x)) + f(an(middle)),
                "Feed-forward adds to its normed input, not to the stream.": fn(middle) + f(fn(middle)),
            },
            atol=1e-4,
        )
        calls = []
        block.dropout.register_forward_hook(lambda *given: calls.append(given))
        block(x)
        expect(
            len(calls),
            2,
            "How often dropout is applied.",
            {"Once to each part's addition, before it is added.": True},
        )
        for (_, given, _), want, what in zip(
            calls, (a(an(x)), f(fn(middle))), ("attention", "feed-forward"), strict=True
        ):
            expect(
                given[0],
                want,
                f"What goes through dropout, of the {what}:",
                {"Only the addition does, never the stream.": True},
                atol=1e-4,
            )


# --- Exercises ---


def either(my):
    four = torch.tensor([[0.0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0]])
    with torch.no_grad():
        layer = my.either()
        third = layer(four)[:, 2]
    expect(
        third,
        torch.tensor([0.0, 1, 1, 0]),
        "The third number, for none, the first, the second and both.",
        {
            "That fires for both, too: each detector has to be silenced by the other number.": [
                torch.tensor([0.0, 1, 1, 1]),
                torch.tensor([0.0, 1, 1, 2]),
            ],
            "That is one of the two detectors.": [torch.tensor([0.0, 1, 0, 0]), torch.tensor([0.0, 0, 1, 0])],
            "That fires for both alone: it is chapter 05's `t and h`.": torch.tensor([0.0, 0, 0, 1]),
        },
    )


def quiet(my):
    block, x = shaken(_ours.Block(16, 2)), normal(2, 6, 16)
    before = {name: p.detach().clone() for name, p in block.named_parameters()}
    got = my.quiet(block)
    expect(
        block(x).detach(),
        x,
        "quiet(block), and then block(x).",
        {"It still adds something to the stream.": True},
    )
    changed = {n for n, p in block.named_parameters() if not torch.equal(p, before[n])}
    expect(
        len(changed),
        4,
        "How many parameters were changed.",
        {"Fewer are enough: which one is the last before the stream?": len(changed) > 4},
    )
    block(x).pow(2).sum().backward()
    moves = {n for n, p in block.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    expect(
        set(got) if isinstance(got, list | tuple) else got,
        moves,
        "The names of the parameters with a slope.",
        {
            "Those in front get none: their slope passes through a matrix of zeros.": isinstance(got, set)
            and got > moves
        },
    )


def contribution(my):
    block, x = shaken(_ours.Block(16, 2)), normal(2, 6, 16)
    with torch.no_grad(), untouched(x=x):
        want = block.attention(block.attention_norm(x))
        for scale in (1, 10):
            expect(
                my.contribution(block, scale * x),
                block.attention(block.attention_norm(scale * x)),
                f"A block with random weights, a stream (2, 6, 16) times {scale}.",
                {
                    "Attention reads the stream through its norm.": block.attention(scale * x),
                    "Only what is added, without the stream.": scale * x + want,
                    "That is what the whole block adds.": block(scale * x) - scale * x,
                    "Attention has a norm of its own.": block.attention(block.feed_forward_norm(scale * x)),
                },
                atol=1e-4,
            )
