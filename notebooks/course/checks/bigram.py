"""What chapter 02 asks of its holes."""

import torch
import torch.nn.functional as F
from torch import nn

from course.checks import Wrong, expect, normal, plain, untouched


def parameters_of(seed=0):
    """Two parameters with gradients, and one that has none."""
    parameters = [nn.Parameter(normal(3, 2, seed=seed)), nn.Parameter(normal(4, seed=1))]
    for p in parameters:
        p.grad = torch.ones_like(p) * 0.5
    return [*parameters, nn.Parameter(torch.ones(2))]


def SGD_zero_grad(my):
    parameters = parameters_of()
    my.SGD(parameters, 0.1).zero_grad()
    left = [p.grad for p in parameters if p.grad is not None and p.grad.any()]
    if left:
        raise Wrong(
            "zero_grad() of parameters whose gradients are all 0.5.\n"
            f"came out: {len(left)} of them still have one\nexpected: none, or zeros\n"
            "Go through all of self.parameters, and set `p.grad`, not a copy of it."
        )


def SGD_step(my):
    parameters = parameters_of()
    p, _, still = parameters
    start = [each.detach().clone() for each in parameters]
    optimizer = my.SGD(parameters, 0.1, momentum=0.5)
    optimizer.step()
    expect(
        p.detach(),
        start[0] - 0.05,
        "A step at rate 0.1, gradients 0.5. The first parameter:",
        {
            "It stays where it was: the model holds this very tensor, so change it in place.": start[0],
            "It goes uphill: against the gradient is down.": start[0] + 0.05,
            "The learning rate is left out.": start[0] - 0.5,
            "The first velocity is the first gradient; nothing has faded yet.": (start[0] - 0.025),
        },
    )
    expect(still.detach(), start[2], "And a parameter without a gradient:")
    for each in parameters[:2]:
        each.grad = torch.ones_like(each)
    optimizer.learning_rate = 0.01
    with untouched(gradient=p.grad):
        optimizer.step()
    expect(
        p.detach(),
        start[0] - 0.05 - 0.0125,
        "Then a step at rate 0.01, gradients 1, momentum 0.5. Both together:",
        {
            "The first step is forgotten: the old velocity counts by `momentum`.": start[0] - 0.06,
            "The velocity doesn't fade: it is multiplied by `momentum`.": start[0] - 0.065,
            "The old velocity is still at the old rate: keep slopes, and apply the rate in the move.": (
                start[0] - 0.05 - 0.035
            ),
        },
    )


class Table(nn.Module):
    """A bigram model of five tokens, which notes what is done with it."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(normal(5, 5))
        self.modes = []

    def forward(self, ids):
        self.modes.append(self.training)
        return self.table[ids]


def training_step(my):
    ids = torch.tensor([[0, 1, 2, 3], [4, 3, 2, 1], [0, 0, 1, 1]])
    targets = torch.tensor([[1, 2, 3, 4], [3, 2, 1, 0], [0, 1, 1, 4]])
    reference = Table()
    loss = F.cross_entropy(reference(ids).flatten(0, 1), targets.flatten())
    loss.backward()
    slope, start = reference.table.grad, reference.table.detach()
    model = Table()
    model.table.grad = torch.ones(5, 5)  # left from an earlier step
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    got = my.training_step(model, optimizer, ids, targets)
    moved = F.cross_entropy((start - 0.1 * slope)[ids].flatten(0, 1), targets.flatten())
    tried = "A batch (3, 4), a table of 5 logits a row, SGD at rate 0.1."
    nothing_moved = "Nothing moved: is `optimizer.step()` called?"
    no_gradient = "There was no gradient at the step: `zero_grad` must come before `backward`."
    expect(
        model.table.detach(),
        start - 0.1 * slope,
        f"{tried} The table after the step:",
        {
            no_gradient: model.table.grad is None,
            nothing_moved: start,
            "The gradient that was there before counts, too: is `zero_grad` called before backward?": (
                start - 0.1 * (slope + 1)
            ),
        },
    )
    expect(
        got,
        loss.item(),
        f"{tried} The loss that is returned:",
        {
            "That is the loss after the move.": moved.item(),
            "That is the sum over all tokens: take the mean.": loss.item() * 12,
        },
    )
    plain(got, "The loss that is returned.")


def evaluate(my):
    ids = torch.tensor([0, 1, 2, 3, 4, 3, 2, 1, 0, 0, 1, 1])  # 11 to predict
    model = Table()
    every = F.cross_entropy(model(ids[:-1]), ids[1:], reduction="none").detach()
    want = every.mean().item()
    pieces = [every[i : i + 4] for i in (0, 4, 8)]
    for block_size in (4, 11, 100):
        expect(
            my.evaluate(model, ids, block_size),
            want,
            f"12 tokens in windows of {block_size}.",
            {
                "The last window is shorter: a mean of means counts its tokens too much.": [
                    sum(p.mean().item() for p in pieces) / 3,
                    (every[:8].mean().item() + every[8:].mean().item()) / 2,
                ],
                "That is the sum: divide by the number of tokens.": every.sum().item(),
                "Twelve tokens hold eleven predictions: divide by those.": want * 11 / 12,
                "A mean of each batch is added up: use reduction='sum'.": [
                    pieces_mean / 11
                    for pieces_mean in (
                        every.mean().item(),
                        every[:8].mean().item() + every[8:].mean().item(),
                    )
                ],
            },
        )
    model.train()
    got = my.evaluate(model, ids, 4)
    expect(type(got), float, "What kind of thing is returned:")


# --- Exercises ---


def gradient(my):
    for n in (5, 1):
        logits = normal(n, 7).requires_grad_()
        targets = torch.tensor([3, 1, 4, 1, 5])[:n]
        F.cross_entropy(logits, targets).backward()
        bare = logits.detach()
        with untouched(logits=bare, targets=targets):
            got = my.gradient(bare, targets)
        p = bare.softmax(1)
        expect(
            got,
            logits.grad,
            f"Random logits ({n}, 7), against torch's backward.",
            {
                "The loss is a mean over the rows: each has an N-th of the slope.": logits.grad * n,
                "That is what was predicted: take away what came.": [p, p / n],
                "The other way round: the prediction minus the truth.": -logits.grad,
                "The softmax goes over each row.": (bare.softmax(0) - F.one_hot(targets, 7)) / n,
            },
        )


def gradient_lengths(my):
    model, reference = Table(), Table()
    ids = torch.randint(5, (4, 3, 6), generator=torch.Generator().manual_seed(0))
    batches, want, tables, largest = [(x[:, :-1], x[:, 1:]) for x in ids], [], [], []
    theirs = torch.optim.SGD(reference.parameters(), lr=2.0)
    for x, y in batches:
        theirs.zero_grad()
        F.cross_entropy(reference(x).flatten(0, 1), y.flatten()).backward()
        want.append(reference.table.grad.norm().item())
        largest.append(reference.table.grad.abs().max().item())
        theirs.step()
        tables.append(reference.table.norm().item())
    ours = torch.optim.SGD(model.parameters(), lr=2.0)
    got = my.gradient_lengths(model, ours, iter(batches))
    expect(
        got,
        want,
        "Four batches for a table (5, 5), SGD at rate 2.",
        {
            "That is the length of the table, not of its gradient.": [tables],
            "The length is the root of the sum of the squares.": [[length**2 for length in want], largest],
        },
    )
    expect(model.table.detach(), reference.table.detach(), "The table afterwards:")


def occurring(my):
    for text in ("abab", "hello", "aaaa", "to be or not to be"):
        for k in (1, 2, 3):
            found, V = ({text[i : i + k] for i in range(len(text) - k + 1)}, len(set(text)))
            expect(
                my.occurring(text, k),
                len(found) / V**k,
                f'occurring("{text}", {k})',
                {
                    "Equal pieces count once.": (len(text) - k + 1) / V**k,
                    "The last piece is left out.": (
                        len({text[i : i + k] for i in range(len(text) - k)}) / V**k
                    ),
                    "V choices at each of k places make V ** k.": len(found) / (V * k),
                    "The characters of *this* text, not 65.": len(found) / 65**k,
                },
            )
