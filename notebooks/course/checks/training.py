"""What chapter 07 asks of its holes."""

import math
from functools import partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from course.checks import Wrong, expect, normal, plain, untouched
from tinygpt_lib import gpt as _gpt
from tinygpt_lib import text as _text
from tinygpt_lib import training as _ours

# --- AdamW ---


def adam(slopes, decay=0.0, start=True, beta2=0.99, rate=0.1, outside=True, weights=None):
    """Where a matrix of ones goes, by the formula, or by a wrong one."""
    p, m, v = torch.ones(2, 3), 0.0, 0.0
    for t, g in enumerate(slopes, 1):
        m, v = 0.9 * m + 0.1 * g, beta2 * v + (1 - beta2) * g * g
        a, b = (1 - 0.9**t, 1 - beta2**t) if start else (1.0, 1.0)
        move = (m / a) / ((v / b).sqrt() + 1e-8 if outside else (v / b + 1e-8).sqrt())
        p = p - rate * decay * p - rate * move
    return p


def AdamW_step(my):
    slopes = [normal(2, 3, seed=seed) * 3**seed for seed in range(4)]
    matrix, gain = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(3))
    still = nn.Parameter(torch.ones(3))
    optimizer = my.AdamW([matrix, gain, still], 0.1, weight_decay=0.0)
    for n, slope in enumerate(slopes, 1):
        matrix.grad, gain.grad = slope.clone(), slope[0].clone()
        with untouched(gradient=matrix.grad):
            optimizer.step()
        expect(
            matrix.detach(),
            adam(slopes[:n]),
            f"A matrix of ones after {n} steps at rate 0.1, without decay.",
            {
                "It stays where it was: change `p` in place, the model holds this very tensor.": torch.ones(
                    2, 3
                ),
                "It goes uphill.": 2 - adam(slopes[:n]),
                "The averages start at zero: divide by 1 - beta ** t when you use them.": adam(
                    slopes[:n], start=False
                ),
                "Do not write the corrected averages back: the next step would correct them again.": n > 1
                and not_counted(slopes[:n], matrix),
                "`self.steps` counts the steps, for the correction: it does not grow.": (
                    optimizer.steps == 0 or (n > 1 and optimizer.steps < n)
                ),
                "v averages the *square* of the slope.": n == 1 and not_square(slopes[0], matrix),
                "The rate is left out.": adam(slopes[:n], rate=1.0),
            },
            atol=1e-4,
        )
        expect(gain.detach(), adam(slopes[:n])[0], f"A row of ones after {n} steps.", atol=1e-4)
    expect(still.detach(), torch.ones(3), "A parameter without a gradient.")
    expect(
        optimizer.steps,
        4,
        "`steps`, after four of them.",
        {"Count a step once, not once for each parameter.": True},
    )
    matrix, gain = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(3))
    optimizer = my.AdamW([matrix, gain], 0.1, weight_decay=0.5)
    for slope in slopes[:2]:
        matrix.grad, gain.grad = slope.clone(), slope[0].clone()
        optimizer.step()
    penalty, p = [], torch.ones(2, 3)
    for slope in slopes[:2]:  # what a penalty in the loss would do
        penalty.append(slope + 0.5 * p)
        p = adam(penalty)
    expect(
        matrix.detach(),
        adam(slopes[:2], decay=0.5),
        "A matrix of ones after 2 steps at rate 0.1, with weight decay 0.5.",
        {
            "The decay is left out.": adam(slopes[:2]),
            "It shrinks by a share of itself, not by an amount: times 1 - rate · decay.": adam(slopes[:2])
            - 0.1,
            "The decay is part of the slope: AdamW shrinks the weight itself, by the share rate · decay.": p,
            "The decay goes by the rate, too: the share is rate · decay, here 0.05.": adam(
                slopes[:2], decay=5.0
            ),
        },
        atol=1e-4,
    )
    expect(
        gain.detach(),
        adam(slopes[:2])[0],
        "A row of ones, one dimension, with weight decay 0.5.",
        {"Only parameters with two or more dimensions decay.": adam(slopes[:2], decay=0.5)[0]},
        atol=1e-4,
    )
    tiny = nn.Parameter(torch.ones(2, 3))
    optimizer = my.AdamW([tiny], 0.1, weight_decay=0.0)
    tiny.grad = torch.full((2, 3), 1e-6)
    optimizer.step()
    expect(
        tiny.detach(),
        adam([tiny.grad]),
        "A slope of a millionth.",
        {"eps is added to the root, not under it.": adam([tiny.grad], outside=False)},
        atol=1e-4,
    )


def not_counted(slopes, got):
    p, m, v = torch.ones(2, 3), 0.0, 0.0
    for t, g in enumerate(slopes, 1):
        m = (0.9 * m + 0.1 * g) / (1 - 0.9**t)
        v = (0.99 * v + 0.01 * g * g) / (1 - 0.99**t)
        p = p - 0.1 * m / v.sqrt()
    return torch.allclose(got.detach(), p, atol=1e-3)


def not_square(g, got):
    wrong = 1 - 0.1 * g / g.abs().sqrt()
    right = (got.detach() - wrong)[g > 0]
    return bool(right.abs().max() < 1e-3)


# --- The plan, the brake ---


def learning_rate_at(my):
    for settings in (
        {"warmup": 0.1, "cooldown": 0.4},
        {"warmup": 0.1, "cooldown": 0.4, "cooldown_shape": "linear"},
        {"warmup": 0.0, "cooldown": 0.0},
        {"warmup": 0.05, "cooldown": 0.95},
    ):
        config = _ours.TrainConfig(steps=100, learning_rate=2.0, **settings)
        shape = partial(_ours.learning_rate_at, config=config)
        other = {"cosine": "linear", "linear": "cosine"}[config.cooldown_shape]
        swapped = _ours.TrainConfig(steps=100, learning_rate=2.0, **settings | {"cooldown_shape": other})
        for step in (0, 4, 9, 10, 50, 59, 60, 61, 80, 99):
            up = (step + 1) / 100 < config.warmup
            got = my.learning_rate_at(step, config)
            expect(
                got,
                float(shape(step)),
                f"The rate of step {step} of 100, at most 2.0, {settings}.",
                {
                    "The warm-up is left out.": up and 2.0,
                    "The cool-down is left out.": not up and 2.0,
                    "The first step stands still: count it as done, (step + 1) / steps.": up
                    and 2.0 * step / 100 / config.warmup,
                    "The rate rises to `learning_rate`, not to 1.": up and shape(step) / 2,
                    "That is as if the cool-down had begun with the run.": not up
                    and step > 9
                    and float(2 * _ours.COOLDOWNS[config.cooldown_shape](1 - step / 100)),
                    "That is the other shape: `config.cooldown_shape` decides.": float(
                        _ours.learning_rate_at(step, swapped)
                    ),
                    "One step off: what is left is counted before the step, (steps - step) / steps; what is done, after it.": [
                        float(shape(min(step + 1, 100))),
                        float(shape(max(step - 1, 0))),
                    ],
                },
            )


def clip_gradients(my):
    def make():
        ps = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(3))]
        ps[0].grad, ps[1].grad = torch.tensor([3.0, 4.0]), torch.tensor([12.0])
        return ps

    parameters = make()
    got = my.clip_gradients(iter(parameters), 20.0)
    expect(
        got,
        13.0,
        "Gradients (3, 4) and (12), and one parameter without any; at most 20. What is returned:",
        {
            "That is the sum of the lengths: it is one long vector.": 17.0,
            "The root is missing.": 169.0,
            "That is the longest of them: it is one long vector.": 12.0,
            "That is the length of the parameters, not of their gradients.": 0.0,
        },
        atol=1e-3,
    )
    expect(
        parameters[0].grad,
        torch.tensor([3.0, 4.0]),
        "And the first gradient, which is short enough:",
        {"Gradients that are short enough stay as they are.": True},
    )
    parameters = make()
    got = my.clip_gradients(iter(parameters), 2.6)
    expect(
        [p.grad for p in parameters[:2]],
        [torch.tensor([0.6, 0.8]), torch.tensor([2.4])],
        "The same, at most 2.6: the gradients afterwards.",
        {
            "They stay as long as they were: change them in place. And `parameters` may be a generator, good "
            "for one pass: put the gradients into a list first.": [
                [torch.tensor([3.0, 4.0]), torch.tensor([12.0])]
            ],
            "Each is clipped by itself: that changes the direction.": [
                [torch.tensor([1.56, 2.08]), torch.tensor([2.6])]
            ],
            "Their length is 1 now: the factor is longest / length.": [
                [torch.tensor([3.0, 4.0]) / 13, torch.tensor([12.0]) / 13]
            ],
            "Each *number* is cut off: that changes the direction.": [
                [torch.tensor([2.6, 2.6]), torch.tensor([2.6])]
            ],
        },
        atol=1e-3,
    )
    expect(
        float(got),
        13.0,
        "What is returned then: the length before.",
        {"That is the length afterwards.": 2.6},
        atol=1e-3,
    )


# --- The loop ---

IDS = torch.randint(7, (200,), generator=torch.Generator().manual_seed(0))


def small(seed=0):
    torch.manual_seed(seed)
    return _gpt.GPT(_gpt.GPTConfig(7, block_size=8, n_layer=1, n_head=2, n_embd=8))


PLAN = _ours.TrainConfig(steps=6, batch_size=4, learning_rate=0.02, eval_every=4)


def Trainer_take_step(my):
    trainer, ours = my.Trainer(small(), IDS, PLAN), _ours.Trainer(small(), IDS, PLAN)
    seen = []

    def learn(inputs, targets):
        seen.append((inputs, targets, trainer.optimizer.learning_rate))
        return [1.5, 1.25, math.nan][len(seen) - 1]

    trainer.learn, batches = learn, torch.Generator().manual_seed(0)
    trainer.take_step()
    trainer.take_step()
    expect(len(seen), 2, "Two calls of take_step: how often `learn` was called.")
    expect(
        trainer.history.losses,
        [1.5, 1.25],
        "`history.losses`, after two steps.",
        {"Each loss is kept, once.": True},
    )
    for n, (x, y, rate) in enumerate(seen):
        expect(
            (x, y),
            _text.get_batch(IDS, 4, 8, batches),
            f"The batch of step {n}.",
            {
                "Draw 4 windows of `self.context` tokens with `self.batches`, the trainer's own generator.": True
            },
        )
        expect(
            rate,
            float(_ours.learning_rate_at(n, PLAN)),
            f"The optimizer's rate in step {n}.",
            {
                "The rate must be set before the step is taken.": n == 0
                and rate == ours.optimizer.learning_rate,
                "That is the rate of another step: `self.step` counts those done.": [
                    float(_ours.learning_rate_at(n + d, PLAN)) for d in (-1, 1)
                ],
            },
        )
    try:
        trainer.take_step()
    except _ours.DivergedError:
        pass
    except RuntimeError as error:
        if type(error).__name__ != "DivergedError":
            raise
    else:
        raise Wrong(
            "A loss that is not a number.\ncame out: the loop goes on\nexpected: a DivergedError\n`self.check_finite` raises it."
        )
    expect(
        trainer.history.losses,
        [1.5, 1.25],
        "`history.losses`, after a loss that is no number.",
        {"Check the loss before you keep it.": True},
    )


def Trainer_learn(my):
    x, y = _text.get_batch(IDS, 4, 8, torch.Generator().manual_seed(1))
    trainer, ours = my.Trainer(small(), IDS, PLAN), _ours.Trainer(small(), IDS, PLAN)
    seen = []
    brake = trainer.brake

    def note():
        slope = trainer.model.head.weight.grad
        still = torch.equal(trainer.model.head.weight, small().head.weight)
        if slope is None or not still:
            raise Wrong(
                "When `self.brake()` is called.\n"
                f"came out: {'no gradient' if slope is None else 'the weights have moved'}\n"
                "expected: gradients, and weights that have not moved yet\n"
                "The brake belongs between `backward` and the step."
            )
        seen.append(slope.clone())
        brake()

    trainer.brake = note
    for each in (trainer, ours):
        for p in each.model.parameters():
            p.grad = torch.ones_like(p)  # left from an earlier step
    first = F.cross_entropy(ours.model(x).flatten(0, 1), y.flatten()).item()
    got, want = trainer.learn(x, y), ours.learn(x, y)
    expect(
        len(seen),
        1,
        "How often `self.brake()` was called.",
        {"Once, when the gradients are there and nothing has moved.": True},
    )
    after = F.cross_entropy(ours.model(x).flatten(0, 1), y.flatten()).item()
    expect(
        got,
        want,
        "A batch (4, 8) for a small GPT. The loss that is returned:",
        {
            "That is the loss after the step.": after,
            "That is the sum: take the mean over all tokens.": first * 32,
        },
    )
    plain(got, "The loss that is returned.")
    moved = (trainer.model.head.weight - small().head.weight).abs().max().item()
    slope = ours.model.head.weight.grad
    ratio = slope.norm() / seen[0].norm()
    expect(
        seen[0] * ratio,
        slope,
        "The gradient of the head when `brake` is called (its direction).",
        {"The gradients of the last step are still in there: clear them before `backward`.": True},
        atol=1e-4,
    )
    expect(
        [p.detach() for p in trainer.model.parameters()],
        [p.detach() for p in ours.model.parameters()],
        "All weights after the step.",
        {"Nothing moved: is `self.optimizer.step()` called?": moved == 0},
        atol=1e-4,
    )


def train_simply(my):
    calls = []

    class Counting(_ours.Trainer):
        def take_step(self):
            calls.append(self.model.training)
            super().take_step()

    measured = []

    def evaluate(model, ids):
        measured.append((len(calls), ids))
        return 2.0 + len(calls)

    names = my.train_simply.__globals__
    kept = {name: names[name] for name in ("Trainer", "evaluate")}
    names.update(Trainer=Counting, evaluate=evaluate)
    try:
        for every, want in ((4, [4, 6]), (0, [6]), (3, [3, 6]), (100, [6])):
            calls.clear()
            measured.clear()
            config = SimpleNamespace(**{**vars(PLAN), "eval_every": every})
            model = small()
            history = my.train_simply(model, IDS, IDS[:50], config)
            tried = f"6 steps, eval_every={every}."
            expect(len(calls), 6, f"{tried} How many steps were taken:")
            expect(
                history.evaluations,
                [(n, 2.0 + n) for n in want],
                f"{tried} `history.evaluations`: (steps done, loss).",
                {
                    "The end is looked at, too, whether it is due or not.": [
                        [(n, 2.0 + n) for n in want[:-1]]
                    ],
                    "The end is looked at once, even if it is due anyway.": (
                        isinstance(history.evaluations, list) and len(history.evaluations) == len(want) + 1
                    ),
                    "Steps *done*: `trainer.step`, after take_step.": [[(n - 1, 2.0 + n) for n in want]],
                },
            )
            if not all(torch.equal(ids, IDS[:50]) for _, ids in measured):
                raise Wrong(f"{tried}\ncame out: a loss on something else\nexpected: the loss on val_ids")
    finally:
        names.update(kept)


# --- Exercises ---


def first_step(my):
    for beta1, beta2 in ((0.9, 0.99), (0.9, 0.999), (0.5, 0.75), (0.8, 0.64)):
        want = (1 - beta1) / (1 - beta2) ** 0.5
        expect(
            my.first_step(beta1, beta2),
            want,
            f"first_step({beta1}, {beta2})",
            {
                "The step is m / sqrt(v): where is the root?": (1 - beta1) / (1 - beta2),
                "After one slope g, m is (1 - beta1) g.": [beta1 / beta2**0.5, beta1 / (1 - beta2) ** 0.5],
                "That is with the correction.": 1.0,
            },
            atol=1e-9,
        )


def penalized(my):
    for weight, slope in ((1.0, 3.0), (2.0, -0.5), (-1.0, 0.01), (3.0, -0.1), (-1.0, 0.2)):
        p = torch.tensor([[weight]], requires_grad=True)
        reference = torch.optim.Adam([p], lr=0.1, betas=(0.9, 0.99), weight_decay=0.1)
        p.grad = torch.tensor([[slope]])
        reference.step()
        q = torch.tensor([[weight]], requires_grad=True)
        q.grad = torch.tensor([[slope]])
        _ours.AdamW([q], 0.1, weight_decay=0.1).step()
        sign = math.copysign(0.1, slope)
        got = my.penalized(weight, slope)
        expect(
            got,
            p.item(),
            f"penalized({weight}, {slope}), against torch's Adam with a penalty.",
            {
                "That is AdamW: the penalty belongs into the slope.": q.item(),
                "The penalty's slope is decay · weight, and it is added.": [
                    weight - sign,
                    weight - math.copysign(0.1, slope - 0.1 * weight),
                ],
                "That is plain gradient descent: Adam's first step has the length of the rate.": weight
                - 0.1 * (slope + 0.1 * weight),
            },
        )


def forgetful(my):
    stream = torch.Generator().manual_seed(3)
    batches = [_text.get_batch(IDS, 4, 8, stream) for _ in range(6)]

    def run(clear):
        model, losses = small(), []
        optimizer = _ours.AdamW(model.parameters(), 1e-2)
        for x, y in batches:
            loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
            if clear:
                optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    model = small()
    got = my.forgetful(model, _ours.AdamW(model.parameters(), 1e-2), iter(batches))
    expect(
        got,
        run(False),
        "Six batches for a small GPT, AdamW at rate 1e-2.",
        {"That is the healthy run: `zero_grad` must be forgotten.": [run(True)]},
        atol=1e-4,
    )
