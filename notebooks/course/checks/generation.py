"""What chapter 08 asks of its holes."""

import torch

from course.checks import Wrong, expect, normal, untouched
from tinygpt_lib import generation as _ours
from tinygpt_lib import gpt as _gpt


def small(**settings):
    torch.manual_seed(0)
    shape = {"block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 16, **settings}
    model = _gpt.GPT(_gpt.GPTConfig(11, **shape))
    with torch.no_grad():
        model.head.weight.mul_(20)  # so that it has opinions
        for block in model.blocks:
            block.attention.output.weight.mul_(3)
    return model.eval()


SHARES = torch.tensor([0.1, 0.5, 0.05, 0.2, 0.15])


def pick(my):
    logits = SHARES.log()
    n = 4_000
    many = logits.expand(n, 5)
    cases = {
        "no setting": ({}, SHARES),
        "temperature 0.5": ({"temperature": 0.5}, SHARES**2),
        "temperature 2": ({"temperature": 2.0}, SHARES**0.5),
        "top_k=2": ({"top_k": 2}, SHARES * torch.tensor([0, 1, 0, 1, 0])),
        "top_k=9": ({"top_k": 9}, SHARES),
        "top_p=0.75": ({"top_p": 0.75}, SHARES * torch.tensor([0, 1, 0, 1, 1])),
        "top_p=0.3": ({"top_p": 0.3}, SHARES * torch.tensor([0, 1, 0, 0, 0])),
        "top_p=1": ({"top_p": 1.0}, SHARES),
        "top_k=2, top_p=0.75": ({"top_k": 2, "top_p": 0.75}, SHARES * torch.tensor([0, 1, 0, 1, 0])),
        "top_k=4, top_p=0.6": ({"top_k": 4, "top_p": 0.6}, SHARES * torch.tensor([0, 1, 0, 1, 0])),
        "temperature 2, top_k=3": (
            {"temperature": 2.0, "top_k": 3},
            (SHARES * torch.tensor([0, 1, 0, 1, 1])) ** 0.5,
        ),
    }
    for name, (how, want) in cases.items():
        generator = torch.Generator().manual_seed(1)
        with untouched(logits=many):
            got = my.pick(many, generator=generator, **how)
        shape = tuple(getattr(got, "shape", ()))
        tried = f"4,000 rows with the probabilities 0.1, 0.5, 0.05, 0.2, 0.15; {name}."
        expect(shape, (n, 1), f"{tried} The shape:", {"One token for each row, as a column.": shape == (n,)})
        measured = torch.bincount(got.flatten(), minlength=5) / n
        want = want / want.sum()
        ordered = SHARES.sort(descending=True).values
        top_p, top_k = how.get("top_p", 1.0), how.get("top_k", 5)
        short = SHARES * (SHARES >= ordered[max(0, min(top_k, 5) - 2)])
        fewer = SHARES * torch.tensor([0.0, 1, 0, 1, 0])
        expect(
            measured,
            want,
            f"{tried} The shares of what was picked:",
            {
                "Nothing is cut off.": ("top" in name and near(measured, cut(how, None, None))),
                "The temperature divides the logits; it does not multiply them.": (
                    near(measured, SHARES ** how.get("temperature", 1.0))
                ),
                "The temperature is left out.": near(measured, cut({}, how.get("top_k"), how.get("top_p"))),
                "The likeliest must stay, even if it reaches top_p alone: what counts is what stands before a token.": top_p
                == 0.3,
                "The token that crosses top_p belongs to the kept ones: only those behind it go.": (
                    "top_p=0.75" in name and near(measured, fewer)
                ),
                "What was cut must be put back in its place: `scatter` with `order`.": (
                    near(measured.sort().values, (want / want.sum()).sort().values)
                ),
                "With both, what *both* keep.": "top_k" in how and "top_p" in how,
                "One too few are kept.": near(measured, short),
            },
            atol=0.04,  # five standard deviations of 0.008
        )
    best = my.pick(normal(6, 5), temperature=0)
    expect(
        best, normal(6, 5).argmax(-1, keepdim=True), "Temperature 0: the likeliest of each row, as a column."
    )
    rows = torch.stack([logits, logits.flip(0)])
    expect(my.pick(rows, top_k=1), torch.tensor([[1], [3]]), "Two different rows, top_k=1.")
    again = [my.pick(many[:50], generator=torch.Generator().manual_seed(7)) for _ in "ab"]
    expect(again[0], again[1], "The same generator, twice.")


def cut(how, top_k, top_p):
    p = SHARES ** (1 / how.get("temperature", 1.0))
    order = p.argsort(descending=True)
    kept = p[order]
    if top_k:
        kept[top_k:] = 0
    if top_p and top_p < 1:
        shares = SHARES[order]
        kept[shares.cumsum(0) - shares >= top_p] = 0
    return torch.zeros(5).scatter(0, order, kept)


def near(measured, shares):
    return bool((measured - shares / shares.sum()).abs().max() < 0.04)


def KVCache_join(my):
    cache = my.KVCache(small())
    ks, vs = normal(2, 2, 7, 4), normal(2, 2, 7, 4, seed=1)
    for start, end in ((0, 3), (3, 4), (4, 7)):
        k, v = ks[:, :, start:end], vs[:, :, start:end]
        for i in (0, 1):
            sign = 1 - 2 * i  # another block, other numbers
            got = cache.join(i, sign * k, sign * v)
            got = list(got) if isinstance(got, tuple | list | torch.Tensor) else got
            clues = {
                "Only the new ones came back: all that are there are needed.": [[k, v]] if start else [],
                "The whole room came back: `narrow` it to what is filled.": (
                    isinstance(got, list) and len(got) == 2 and got[0].shape[2] == 8
                ),
                "Keys and values have changed places.": [[vs[:, :, :end], ks[:, :, :end]]] if i == 0 else [],
                "The old ones are overwritten: the new ones belong behind them, from self.length on.": (
                    isinstance(got, list)
                    and start > 0
                    and not torch.equal(got[0][:, :, :start], sign * ks[:, :, :start])
                ),
            }
            expect(
                got,
                [sign * ks[:, :, :end], sign * vs[:, :, :end]],
                f"Tokens {start} to {end - 1} join block {i}.",
                clues,
            )
        cache.length = end  # as `read` does
    if cache.length != 7:
        raise Wrong(
            "`length` after three calls.\ncame out: another\nexpected: what `read` set\n`join` must leave it: the next block needs it."
        )


def KVCache_read(my):
    model, ids = (small(), torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]]))
    cache = my.KVCache(model)
    with torch.no_grad():
        whole = model(ids)
        start = model.embed(ids)
        shallow = model.read_out(start)
        for T in (3, 4, 6, 8):
            with untouched(ids=ids):
                got = cache.read(ids[:, :T])
            alone = model(ids[:, T - 1 : T])[:, 0]
            expect(
                got,
                whole[:, T - 1],
                f"The first {T} tokens are read, after the pieces before; against the whole model.",
                {
                    "Logits of the last token alone: (B, V).": [whole[:, :T], whole[:, T - 1 : T]],
                    "That is the first token's.": whole[:, 0],
                    "The blocks are left out.": shallow[:, T - 1],
                    "The new tokens look only at themselves, at their right places: is `join` asked for the old keys?": alone,
                    "The first piece was right, this one isn't: is `start` given to embed, and `length` kept?": T
                    > 3,
                },
                atol=1e-4,
            )
            expect(cache.length, T, f"`length`, when {T} tokens are read.")
    counted = []
    model.blocks[0].feed_forward.register_forward_hook(
        lambda part, given, out: counted.append(given[0].shape[1])
    )
    cache = my.KVCache(model)
    with torch.no_grad():
        for T in (3, 4, 6):
            cache.read(ids[:, :T])
    expect(
        counted,
        [3, 1, 2],
        "How many tokens each call computes, for 3, 4 and 6 in all.",
        {"Only what was not read before is computed: that is what the cache is for.": True},
    )


def generate(my):
    model, prompt = small(), torch.tensor([[3, 1, 4], [1, 5, 9]])
    reads = []

    class Counting(_ours.KVCache):
        def read(self, ids):
            reads.append(ids.shape[1])
            return super().read(ids)

    with torch.no_grad(), untouched(ids=prompt):
        ids = prompt
        for _ in range(12):
            ids = torch.cat([ids, model(ids[:, -8:])[:, -1].argmax(-1, keepdim=True)], dim=1)
        for cache in (None, Counting):
            got = my.generate(model, prompt, 12, temperature=0, cache=cache)
            how = "without a cache" if cache is None else "with one"
            expect(
                got,
                ids,
                f"Two prompts of 3 tokens, 12 more, temperature 0, a window of 8, {how}.",
                {
                    "The prompt is missing.": ids[:, 3:],
                    "One token too many or too few.": [ids[:, :-1], ids[:, 1:]],
                    "Right up to the end of the window: past it, the model reads the last block_size tokens anew.": (
                        isinstance(got, torch.Tensor)
                        and got.shape == ids.shape
                        and torch.equal(got[:, :8], ids[:, :8])
                    ),
                    "The last place knows what comes next: take its logits.": True,
                },
            )
        expect(
            reads,
            [3, 4, 5, 6, 7, 8],
            "How many tokens the cache was asked to read.",
            {"While it has room the cache does the work, and not longer.": True},
        )
        for how in ({"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.4}):
            dice = [torch.Generator().manual_seed(5) for _ in "ab"]
            want = _ours.generate(model, prompt, 12, cache=None, generator=dice[0], **how)
            got = my.generate(model, prompt, 12, cache=None, generator=dice[1], **how)
            expect(
                got,
                want,
                f"{how}, with a generator.",
                {"Are temperature, top_k, top_p and the generator all handed to `pick`?": True},
            )
        expect(my.generate(model, prompt, 0), prompt, "No new token at all.")
    noisy = small(dropout=0.5).train()
    first, second = (my.generate(noisy, prompt, 5, temperature=0) for _ in "ab")
    expect(
        first,
        second,
        "A model in training, with dropout, temperature 0, twice.",
        {"`evaluating` turns dropout off: stay inside its block.": True},
    )
    expect(noisy.training, True, "And is it in training afterwards?")


# --- Exercises ---


def own_cost(my):
    for logits in (SHARES.log(), 2 * normal(7), torch.tensor([0.0, 0.0])):
        for T in (1.0, 0.5, 2.0):
            drawn, told = (logits / T).softmax(0), logits.log_softmax(0)
            with untouched(logits=logits):
                got = my.own_cost(logits, T)
            expect(
                got,
                -(drawn * told).sum().item(),
                f"{len(logits)} logits, temperature {T}.",
                {
                    "It is judged at 1: the cost is -ln of the probability without the temperature.": -(
                        drawn * drawn.log()
                    )
                    .sum()
                    .item(),
                    "It is drawn at the temperature, and only judged at 1.": -(told.exp() * told)
                    .sum()
                    .item(),
                    "Drawn at 1 and judged at the temperature: it is the other way round.": -(
                        told.exp() * drawn.log()
                    )
                    .sum()
                    .item(),
                    "A cost is positive: minus the logarithm.": (drawn * told).sum().item(),
                    "A mean by how often each is drawn, not over all tokens alike.": -told.mean().item(),
                },
            )


def min_p(my):
    both = torch.tensor([[0.1, 0.5, 0.05, 0.2, 0.15], [0.2, 0.2, 0.2, 0.2, 0.2], [0.9, 0.1, 0.0, 0.0, 0.0]])
    for m in (0.22, 0.4, 0.0, 1.0):
        enough = both * (both >= m * both.amax(-1, keepdim=True))
        with untouched(probabilities=both):
            got = my.min_p(both, m)
        expect(
            got,
            enough / enough.sum(-1, keepdim=True),
            f"Three rows, m = {m}.",
            {
                "What is left must sum to one again.": enough,
                "m is a share of the likeliest one's probability, not a probability.": (both * (both >= m))
                / (both * (both >= m)).sum(-1, keepdim=True),
                "The likeliest of each row counts, not of all.": (both * (both >= m * 0.9))
                / (both * (both >= m * 0.9)).sum(-1, keepdim=True),
                "`At least` m times: equal is enough.": (both * (both > m * both.amax(-1, keepdim=True)))
                / (both * (both > m * both.amax(-1, keepdim=True))).sum(-1, keepdim=True),
                "The largest are cut off, not the smallest.": (
                    (both - enough) / (both - enough).sum(-1, keepdim=True)
                ),
            },
        )
