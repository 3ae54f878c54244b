"""What chapter 06 asks of its holes."""

import math

import torch
from torch.utils.flop_counter import FlopCounterMode

from course.checks import Wrong, expect, normal, refuses, untouched
from tinygpt_lib import gpt as _ours


def model_of(my, **settings):
    """A small GPT with random weights, biases and gains too: two blocks, 16 wide."""
    shape = {"block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 16, **settings}
    model = my.GPT(_ours.GPTConfig(11, **shape))
    with torch.no_grad():
        for seed, p in enumerate(model.parameters()):
            p.copy_(normal(*p.shape, seed=seed) / 2)
    return model


IDS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])


def draw_weights(my):
    torch.manual_seed(0)
    model = _ours.GPT(_ours.GPTConfig(300, block_size=200, n_layer=8, n_head=2, n_embd=64))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(7.0)
    my.draw_weights(model)
    tried = "A GPT of 8 blocks, 64 wide, all of whose numbers were 7."
    want = {"token_embedding": 1.0, "position_embedding": 1.0, "head": 0.2 / 8}
    want |= {"attention.to_qkv": 1 / 8, "feed_forward.widen": 1 / 8}
    want |= {"attention.output": 1 / 8 / 4, "feed_forward.output": 1 / 16 / 4}
    for name, p in model.named_parameters():
        part = name.removesuffix(".weight").removesuffix(".bias")
        part = part.split(".", 2)[2] if part.startswith("blocks") else part
        if "norm" in name:
            continue
        if name.endswith("bias"):
            expect(p.detach().abs().max().item(), 0.0, f"{tried} The largest of {name}:")
            continue
        got, deviation = p.std().item(), want[part]
        wide = p.shape[1]
        if p.mean().abs() > 0.2:
            raise Wrong(f"{tried} {name}\ncame out: a mean of {p.mean():.2f}\nexpected: 0\nIt was not drawn.")
        near = 0.1 * deviation  # the deviation of a deviation of 4,096 numbers is 1.1 %
        expect(
            got,
            deviation,
            f"{tried} The standard deviation of {name}:",
            {
                "The factor for the 2L additions is missing.": abs(got - 4 * deviation) < 4 * near,
                "There are two additions in each block: 2L in all.": (
                    abs(got - math.sqrt(2) * deviation) < math.sqrt(2) * near
                ),
                "The factor is the root: 1 / sqrt(2L), not 1 / (2L).": abs(got - deviation / 4) < near / 4,
                "That is the variance: the deviation is its root.": abs(got - 1 / wide) < 0.1 / wide,
                "The head is as loud as any matrix: draw it five times smaller.": (
                    part == "head" and abs(got - 5 * deviation) < 5 * near
                ),
                "The number of inputs counts, `in_features`, not that of the outputs.": (
                    abs(got - p.shape[0] ** -0.5) < 0.1 * p.shape[0] ** -0.5
                ),
                "The factor belongs to the last matrix of each part alone.": (
                    abs(got - deviation / 4) < near / 4
                ),
            },
            atol=near,
        )


def GPT___init__(my):
    config = _ours.GPTConfig(11, block_size=8, n_layer=3, n_head=2, n_embd=16, dropout=0.25)
    model, want = my.GPT(config), _ours.GPT(config)
    ours, theirs = dict(want.named_parameters()), dict(model.named_parameters())
    tried = "GPTConfig(11, block_size=8, n_layer=3, n_head=2, n_embd=16)."
    missing, extra = sorted(ours.keys() - theirs), sorted(theirs.keys() - ours)
    if missing or extra:
        clue = ""
        if any(name.startswith("blocks") for name in missing):
            clue = "\nHow many blocks are there? And torch sees only those in an nn.ModuleList."
        if extra == ["head.bias"]:
            clue = "\nThe head has no bias."
        raise Wrong(
            f"{tried} The parameters by name.\ncame out: too many {extra[:3]}, missing {missing[:3]}\nexpected: {len(ours)} of them, {', '.join(list(ours)[:3])}, ...{clue}"
        )
    for name, p in ours.items():
        expect(
            tuple(theirs[name].shape),
            tuple(p.shape),
            f"{tried} The shape of {name}:",
            {"Positions have block_size rows, tokens vocab_size.": name.startswith("position")},
        )
    expect([block.dropout.p for block in model.blocks], [0.25] * 3, "Dropout 0.25: that of the blocks.")
    expect(getattr(getattr(model, "dropout", None), "p", None), 0.25, "Dropout 0.25: that of `dropout`.")
    heads = [block.attention.n_head for block in model.blocks]
    expect(heads, [2] * 3, f"{tried} The heads of each block:")
    bare = my.GPT(_ours.GPTConfig(11, n_layer=1, n_head=2, n_embd=16, bias=False))
    expect(
        [n for n, _ in bare.named_parameters() if "bias" in n],
        [],
        "bias=False. The biases that are there all the same:",
    )
    expect(
        len({id(block) for block in model.blocks}),
        3,
        "How many different blocks there are.",
        {"One block, used again and again: make a new one each time.": True},
    )


def GPT_embed(my):
    model = model_of(my)
    tokens, places = model.token_embedding.weight, model.position_embedding.weight
    with torch.no_grad():
        for start in (0, 4):
            want = tokens[IDS[:, start:]] + places[start:6]
            expect(
                model.embed(IDS, start) if start else model.embed(IDS),
                want,
                f"ids (2, 6), start {start}.",
                {
                    "The positions are missing.": tokens[IDS[:, start:]],
                    "Each token keeps its place: those from `start` on.": tokens[IDS[:, start:]]
                    + places[: 6 - start],
                    "Only the tokens from `start` on are asked for.": [
                        tokens[IDS] + places[:6],
                        (tokens[IDS] + places[:6])[:, :start],
                    ],
                },
            )
    long = torch.zeros(1, 9, dtype=torch.int64)
    clue = "`self.places` gives the positions, and refuses too many."
    refuses(lambda: model.embed(long), "9 tokens, block_size 8.", clue)


def GPT_read_out(my):
    model, x = model_of(my), 3 * normal(2, 6, 16) + 1
    with torch.no_grad(), untouched(x=x):
        expect(
            model.read_out(x),
            model.head(model.norm(x)),
            "A stream (2, 6, 16).",
            {
                "The last norm is left out.": model.head(x),
                "Those are no logits yet: the head is missing.": model.norm(x),
                "Logits, please: the softmax is taken by the loss.": model.head(model.norm(x)).softmax(-1),
            },
        )


def GPT_forward(my):
    model = model_of(my)
    with torch.no_grad(), untouched(ids=IDS):
        got = model(IDS)
        x = start = model.embed(IDS)
        for block in model.blocks:
            x = block(x)
        once = model.blocks[0](start)
        expect(
            got,
            model.read_out(x),
            "ids (2, 6), two blocks.",
            {
                "The stream goes past no block.": model.read_out(start),
                "Only one block: each gets what the one before it made.": [
                    model.read_out(once),
                    model.read_out(model.blocks[1](start)),
                ],
                "`read_out` is missing.": x,
                "The blocks are in reverse.": model.read_out(model.blocks[0](model.blocks[1](start))),
                "The blocks add to the stream themselves.": got is not None and True,
            },
            atol=1e-4,
        )
    calls = []
    model.dropout.register_forward_hook(lambda *given: calls.append(given[1][0]))
    model(IDS)
    expect(len(calls), 1, "How often `self.dropout` is applied.", {"Once, where the stream begins.": True})
    expect(calls[0].detach(), start, "What goes through dropout: the stream where it begins.")


def GPT_n_parameters(my):
    for settings in ({}, {"n_layer": 1, "bias": False}, {"n_embd": 32, "block_size": 4}):
        model = model_of(my, **settings)
        want = sum(p.numel() for p in model.parameters())
        expect(
            model.n_parameters(),
            want,
            f"A GPT with {settings or 'two blocks'}.",
            {
                "Those are tensors: count the numbers in them.": len(list(model.parameters())),
                "Only the first dimension is counted.": sum(len(p) for p in model.parameters()),
            },
        )


# --- Exercises ---


def share(my):
    for C in (4, 32, 512):
        block = _ours.Block(C, 4)
        parts = {n: sum(p.numel() for p in part.parameters()) for n, part in block.named_children()}
        whole = sum(parts.values())
        expect(
            my.share(C),
            parts["feed_forward"] / whole,
            f"share({C}), against a block of that width.",
            {
                "Norms and biases count, too.": 2 / 3,
                "That is the attention's.": parts["attention"] / whole,
                "That is how many times the rest: divide by the whole block.": (
                    parts["feed_forward"] / (whole - parts["feed_forward"])
                ),
            },
            atol=1e-9 if C < 100 else 1e-6,
        )


def fits(my):
    shapes = [(12, 768), (24, 1024), (3, 48), (48, 1600)]
    for vocab_size in (1_000, 40_478, 50_257, 500_000):
        figures = []
        for n_layer, C in shapes:
            total = n_layer * (12 * C**2 + 13 * C) + (vocab_size + 1024 + 2) * C
            figures.append((n_layer, C, round(total / 1e6)))
        wrong = [*figures[:-1], (48, 1600, figures[-1][2] + 1)]
        tried = f"fits({vocab_size}, ...) with the figures that belong to it"
        expect(
            my.fits(vocab_size, figures),
            True,
            f"{tried}.",
            {"One matrix at both ends is counted once, and the last norm has 2C.": True},
        )
        expect(my.fits(vocab_size, wrong), False, f"{tried}, but for the last.", {"*All* have to fit.": True})
        expect(
            my.fits(vocab_size, wrong[::-1]),
            False,
            f"{tried}, but for the first.",
            {"*All* have to fit.": True},
        )


def flops(my):
    shapes = (65, 32, 1, 2, 16), (100, 16, 2, 2, 48), (30, 8, 3, 1, 8)
    for shape in shapes:
        config = _ours.GPTConfig(*shape)
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            _ours.GPT(config)(torch.zeros(1, config.block_size, dtype=torch.int64))
        counted = counter.get_flop_counts()["Global"]
        want = counted[torch.ops.aten.mm] + counted[torch.ops.aten.addmm]
        T, V, C = config.block_size, config.vocab_size, config.n_embd
        expect(
            my.flops(config),
            want,
            f"{config}, against what torch counts.",
            {
                "A multiplication *and* an addition for each weight and token.": want // 2,
                "That is for one token: a window has block_size of them.": want // T,
                "The head is a matrix, too.": want - 2 * T * V * C,
                "Embeddings are looked up, not multiplied.": want + 2 * T * (V * C + T * C),
                "The head counts once for each token, not for each block.": want
                + 2 * T * V * C * (config.n_layer - 1),
            },
        )
