"""Training: torch's own AdamW beside ours, and a run that is stopped and goes on."""

import json
import math
import os
import random
import shutil
import signal
import threading
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tinygpt_lib import training
from tinygpt_lib.basics.files import CheckpointError, read_json
from tinygpt_lib.bigram import evaluate
from tinygpt_lib.runs import run as run_module
from tinygpt_lib.runs.checkpoints import load_checkpoint, read_run
from tinygpt_lib.runs.models import config_of, new_model
from tinygpt_lib.runs.run import Run, train
from tinygpt_lib.runs.settings import ENGINES, TrainConfig
from tinygpt_lib.speed import FusedAdamW, NGramEmbedding, newton_schulz
from tinygpt_lib.text import CharTokenizer, get_batch
from tinygpt_lib.training import AdamW, DivergedError, clip_gradients, learning_rate_at

ROOT = Path(__file__).resolve().parent.parent
QUICK = TrainConfig(steps=12, batch_size=2, eval_every=5, save_every=3, seed=7)


# --- AdamW ---


def some_parameters():
    """Matrices and a vector; one that never gets a gradient."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(5, 3), (7,), (2, 3, 4), (4, 4)]
    parameters = [torch.randn(shape, generator=generator) for shape in shapes]
    return [p.double().requires_grad_() for p in parameters]


def feed(parameters, step):
    """Gradients of many sizes, the same for every call with this step."""
    generator = torch.Generator().manual_seed(step)
    for i, p in enumerate(parameters[:-1]):
        slope = torch.randn(p.shape, generator=generator).double()
        p.grad = slope * 10.0 ** (i - step % 5)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(
    ("betas", "eps"), [((0.9, 0.99), 1e-8), ((0.9, 0.999), 1e-6), ((0.0, 0.5), 1e-3)]
)
def test_adamw_equals_torch_after_50_steps(betas, eps, weight_decay):
    ours, theirs = some_parameters(), some_parameters()
    start = [p.detach().clone() for p in ours]
    optimizer = AdamW(ours, 1e-2, betas, eps, weight_decay)
    groups = [
        {"params": [p for p in theirs if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in theirs if p.dim() < 2], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=1e-2, betas=betas, eps=eps)
    for step in range(50):
        optimizer.learning_rate = reference.param_groups[0]["lr"] = 1e-2 / (1 + step)
        reference.param_groups[1]["lr"] = optimizer.learning_rate
        feed(ours, step)
        feed(theirs, step)
        optimizer.step()
        reference.step()
    for mine, other, before in zip(ours[:-1], theirs[:-1], start[:-1], strict=True):
        assert (mine - before).abs().max() > 1e-3
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)
    # Without a gradient there is no step, and no decay either.
    assert torch.equal(ours[-1], start[-1])


def test_adamw_forgets_gradients_when_told():
    parameters = some_parameters()
    feed(parameters, 0)
    AdamW(parameters).zero_grad()
    assert all(p.grad is None for p in parameters)


def test_adamw_goes_on_from_its_state_bit_for_bit():
    def steps(optimizer, numbers):
        for step in numbers:
            feed(optimizer.parameters, step)
            optimizer.step()

    whole, first, second = (AdamW(some_parameters(), 1e-2) for _ in range(3))
    steps(whole, range(20))
    steps(first, range(11))
    second.load_state_dict({k: v.clone() for k, v in first.state_dict().items()})
    for p, q in zip(second.parameters, first.parameters, strict=True):
        p.data.copy_(q.data)
    steps(second, range(11, 20))
    for p, q in zip(whole.parameters, second.parameters, strict=True):
        assert torch.equal(p, q)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_the_state_of_adamw_is_a_copy_of_nothing_else():
    """What is loaded is copied: the donor's next step must not change it."""
    donor, heir = AdamW(some_parameters()), AdamW(some_parameters())
    feed(donor.parameters, 0)
    donor.step()
    heir.load_state_dict(donor.state_dict())
    before = {name: value.clone() for name, value in heir.state_dict().items()}
    feed(donor.parameters, 1)
    donor.step()
    for name, value in heir.state_dict().items():
        assert torch.equal(value, before[name]), name


# --- The learning rate ---


def rates(**settings):
    config = TrainConfig(learning_rate=1.0, **settings)
    return [learning_rate_at(step, config) for step in range(config.steps)]


def test_the_rate_rises_in_a_line_stays_and_falls_along_a_cosine():
    plan = rates(steps=100, warmup=0.2, cooldown=0.5)
    assert plan[:20] == pytest.approx([(i + 1) / 20 for i in range(20)])
    assert plan[20:50] == [1.0] * 30
    cosine = [0.5 * (1 + math.cos(math.pi * i / 50)) for i in range(50)]
    assert plan[50:] == pytest.approx(cosine)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 997])
@pytest.mark.parametrize(
    ("warmup", "cooldown"),
    [(0, 0), (0, 1), (1, 0), (0.05, 0.95), (0.5, 0.5), (0.3, 0.7), (0.1, 0.2), (1, 0)],
)
def test_the_rate_is_never_zero_and_never_too_high(steps, warmup, cooldown):
    plan = rates(steps=steps, warmup=warmup, cooldown=cooldown)
    assert all(0 < rate <= 1 for rate in plan)
    top = plan.index(max(plan))
    assert max(plan) >= 0.5 or steps == 1
    assert plan[: top + 1] == sorted(plan[: top + 1])
    assert plan[top:] == sorted(plan[top:], reverse=True)


def test_the_edges_of_the_plan():
    assert rates(steps=4, warmup=0, cooldown=0) == [1.0] * 4
    assert rates(steps=4, warmup=1, cooldown=0) == [0.25, 0.5, 0.75, 1.0]
    assert rates(steps=1) == [1.0]


# --- Clipping ---


@pytest.mark.parametrize("longest", [1e-3, 1.0, 1e9])
def test_clipping_equals_torch(longest):
    ours, theirs = some_parameters(), some_parameters()
    feed(ours, 3)
    feed(theirs, 3)
    before = [p.grad.clone() for p in ours[:-1]]
    length = clip_gradients(ours, longest)
    expected = torch.nn.utils.clip_grad_norm_(theirs, longest)
    assert length == pytest.approx(expected.item(), rel=1e-12)
    for p, q, g in zip(ours[:-1], theirs[:-1], before, strict=True):
        # torch divides by a length that is 1e-6 longer.
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-6 / length + 1e-12, atol=0)
        if longest > length:
            assert torch.equal(p.grad, g)


# --- The settings ---


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("steps", [0, -1, 1.5, "10", True, None, math.nan, 2**63]),
        ("batch_size", [0, -1, 2.0, None, 2**63]),
        ("eval_every", [-1, 0.5, "never"]),
        ("save_every", [0, -5, 1.0]),
        ("seed", [-1, 0.0, "a", 2**63]),
        ("learning_rate", [0, -1e-3, math.nan, math.inf, "1e-3", None, True]),
        ("learning_rate", [1e39, 10**400]),  # more than a float32, a float64 holds
        ("clip", [0, -1, math.nan, math.inf, "1"]),
        ("weight_decay", [-0.1, math.nan, math.inf, None, 1e39]),
        ("warmup", [-0.1, 1.1, math.nan, "0"]),
        ("cooldown", [-0.1, 1.1, math.nan, None]),
        ("beta1", [-0.1, 1, 1.0, math.nan]),
        ("beta2", [-0.1, 1, math.inf]),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(name, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"^{name} is .*; it must be ") as caught:
            TrainConfig(**{name: value})
        assert "\n" not in str(caught.value)


def test_warm_up_and_cool_down_must_not_overlap():
    TrainConfig(warmup=0.3, cooldown=0.7)
    with pytest.raises(ValueError, match=r"warmup 0\.3 and cooldown 0\.8 overlap"):
        TrainConfig(warmup=0.3, cooldown=0.8)


# --- A run ---


def run(song, model, config=QUICK, **options):
    parts = (song.train_ids, song.val_ids, config)
    return train(model, *parts, progress=False, **options)


def same(one, other):
    """The same losses and evaluations, bit for bit."""
    return (one.losses, one.evaluations) == (other.losses, other.evaluations)


class SlowMuon:
    """Muon, a matrix at a time."""

    def __init__(self, model, config):
        self.rate, self.decay = config.matrix_rate, config.weight_decay
        self.parts = {}
        for block in model.blocks:
            both = block.attention, block.feed_forward
            self.parts |= {part.output.weight: 1 for part in both}
            self.parts |= {both[0].to_qkv.weight: 3, both[1].widen.weight: 1}
        self.means = {p: torch.zeros_like(p) for p in self.parts}

    @torch.no_grad()
    def step(self, share):
        for p, parts in self.parts.items():
            self.means[p] = 0.95 * self.means[p] + 0.05 * p.grad
            p *= 1 - self.rate * share * self.decay
            ahead = 0.05 * p.grad + 0.95 * self.means[p]
            for matrix, slope in zip(p.chunk(parts), ahead.chunk(parts), strict=True):
                m, n = slope.shape
                step = newton_schulz(slope) if m <= n else newton_schulz(slope.mT).mT
                matrix -= self.rate * share * max(1, m / n) ** 0.5 * step


def by_hand(model, ids, config):
    """The losses of a run made of torch's own AdamW and one slow line after another."""
    slow = SlowMuon(model, config) if config.optimizer == "muon" else None
    rest = [p for p in model.parameters() if not slow or p not in slow.parts]
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in rest if p.dim() > 1]},
            {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
        ],
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
    )
    batches, losses = torch.Generator().manual_seed(config.seed), []
    network = ENGINES[config.engine](model.train(), config)
    for step in range(config.steps):
        rate = learning_rate_at(step, config)
        context = config.context or model.config.block_size
        x, y = get_batch(ids, config.batch_size, context, batches)
        model.zero_grad()
        losses.append(0.0)
        n = config.accumulate
        for inputs, targets in zip(x.chunk(n), y.chunk(n), strict=True):
            logits = network(inputs).flatten(0, 1)
            loss = F.cross_entropy(logits, targets.flatten()) / n
            loss.backward()
            losses[-1] += loss.item()
        slopes = [p.grad for p in model.parameters()]
        length = torch.cat([slope.flatten() for slope in slopes]).norm()
        for slope in slopes:
            slope *= min(1, config.clip / length)
        for group in adamw.param_groups:
            group["lr"] = rate
        adamw.step()
        if slow:
            slow.step(rate / config.learning_rate)
    return losses


# Another value for each setting, and what of the run it changes. Rates and decay are
# high and the longest gradient is short, so that six steps are enough to tell.
BASE = TrainConfig(
    steps=6,
    batch_size=2,
    learning_rate=0.02,
    warmup=0.3,
    cooldown=0.4,
    weight_decay=2.0,
    clip=0.5,
    eval_every=4,
    save_every=4,
)
ANOTHER = {
    "steps": (7, "losses looks saves"),
    "batch_size": (4, "losses shapes"),
    "accumulate": (2, "losses shapes"),  # dropout is drawn for each part
    "context": (5, "losses shapes"),
    "optimizer": ("muon", "losses"),
    "engine": ("loud", "losses"),
    "learning_rate": (0.01, "losses"),
    "matrix_rate": (0.015, "losses"),
    "warmup": (0.6, "losses"),
    "cooldown": (0.7, "losses"),
    "cooldown_shape": ("linear", "losses"),
    "weight_decay": (1.0, "losses"),
    "beta1": (0.5, "losses"),
    "beta2": (0.5, "losses"),
    "clip": (0.8, "losses"),
    "eval_every": (2, "looks"),
    "save_every": (3, "saves"),
    "seed": (1, "losses"),
}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_setting_makes_another_run_the_one_written_out_by_hand(
    song, tiny_gpt, tmp_path, monkeypatch, optimizer
):
    """In float64, where nothing but rounding, 1e-15 or so a step, is between them."""
    assert ANOTHER.keys() == {field.name for field in fields(TrainConfig)}
    monkeypatch.setitem(ENGINES, "loud", lambda model, _: lambda ids: 2 * model(ids))
    saves, note = [], lambda self, state: saves.append(self.step)
    monkeypatch.setattr(run_module.SavedRun, "save", note)

    def happens(config, out):
        def new():
            return tiny_gpt(dropout=0.1).double().eval()

        model, shapes = new(), []
        hook = model.token_embedding.register_forward_pre_hook(
            lambda module, args: shapes.append(tuple(args[0].shape))
        )
        given = {"out": out, "tokenizer": song.tokenizer}
        saves.clear()
        history = run(song, model, config, **given)
        hook.remove()
        reference = new()
        expected = by_hand(reference, song.train_ids, config)
        assert history.losses == pytest.approx(expected, rel=1e-9), config
        for (name, p), q in zip(
            model.named_parameters(), reference.parameters(), strict=True
        ):
            torch.testing.assert_close(
                p, q, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: f"{n}, {config}: {m}"
            )
        looks = [step for step, _ in history.evaluations]
        found = {"losses": history.losses, "looks": looks, "saves": [*saves]}
        return found | {"shapes": shapes[: config.accumulate]}

    base = replace(BASE, optimizer=optimizer)
    expected = happens(base, tmp_path / "base")
    assert expected["looks"] == expected["saves"] == [4, 6]
    assert expected["shapes"] == [(2, 8)]
    for name, (value, differs) in ANOTHER.items():
        if getattr(base, name) == value:
            value = "adamw"
        elif name == "matrix_rate" and optimizer == "adamw":
            differs = ""  # there are no matrices apart
        found = happens(replace(base, **{name: value}), tmp_path / name)
        unlike = {what for what in found if found[what] != expected[what]}
        assert unlike == set(differs.split()), name


def test_a_model_in_evaluation_mode_trains_with_its_dropout(song, tiny_gpt):
    model = tiny_gpt(dropout=0.5).eval()
    assert same(run(song, model), run(song, tiny_gpt(dropout=0.5)))


def test_it_learns_one_window_by_heart(song, tiny_gpt):
    model = tiny_gpt(n_embd=32)
    config = TrainConfig(steps=150, batch_size=4, learning_rate=1e-2, eval_every=0)
    window = song.train_ids[: model.config.block_size + 1]
    history = train(model, window, window, config, progress=False)
    # Random weights know nothing, ln V; after that each token follows from the last.
    assert history.losses[0] == pytest.approx(math.log(song.tokenizer.vocab_size), 0.1)
    assert history.losses[-1] < 0.02
    assert history.evaluations == [(150, pytest.approx(history.losses[-1], abs=0.01))]


def test_the_history_is_complete(song, tiny_gpt):
    model = tiny_gpt(dropout=0.1)
    history = run(song, model)
    assert len(history.losses) == 12
    assert all(math.isfinite(loss) for loss in history.losses)
    assert [step for step, _ in history.evaluations] == [5, 10, 12]
    assert history.seconds > 0
    assert not model.training
    assert history.evaluations[-1][1] == evaluate(model, song.val_ids)


def test_a_look_at_the_last_step_is_taken_once(song, tiny_gpt):
    history = run(song, tiny_gpt(), replace(QUICK, eval_every=6))
    assert [step for step, _ in history.evaluations] == [6, 12]


def test_eval_every_0_looks_at_the_end_only(song, tiny_gpt):
    history = run(song, tiny_gpt(), replace(QUICK, eval_every=0))
    assert [step for step, _ in history.evaluations] == [12]


def test_looking_does_not_change_the_run(song, tiny_gpt):
    often = run(song, tiny_gpt(dropout=0.2), replace(QUICK, eval_every=1))
    never = run(song, tiny_gpt(dropout=0.2), replace(QUICK, eval_every=0))
    assert often.losses == never.losses


def test_saving_does_not_change_the_run(song, tiny_gpt, tmp_path):
    plain = run(song, tiny_gpt(dropout=0.2))
    model = tiny_gpt(dropout=0.2)
    saved = run(song, model, out=tmp_path / "run", tokenizer=song.tokenizer)
    assert same(plain, saved)
    loaded, tokenizer = load_checkpoint(tmp_path / "run")
    assert tokenizer.to_dict() == song.tokenizer.to_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


def test_a_validation_text_shorter_than_a_window_works(song, tiny_gpt):
    history = train(tiny_gpt(), song.train_ids, song.val_ids[:2], QUICK, progress=False)
    assert math.isfinite(history.evaluations[-1][1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
def test_it_trains_where_the_model_is(song, tiny_gpt, tmp_path):
    model = tiny_gpt().to("cuda")
    run(song, model, out=tmp_path / "run", tokenizer=song.tokenizer)
    assert next(model.parameters()).device.type == "cuda"
    loaded, _ = load_checkpoint(tmp_path / "run", "cuda")
    assert next(loaded.parameters()).device.type == "cuda"


def test_it_trains_outside_the_main_thread(song, tiny_gpt):
    histories = []
    model = tiny_gpt()
    thread = threading.Thread(target=lambda: histories.append(run(song, model)))
    thread.start()
    thread.join()
    assert same(histories[0], run(song, tiny_gpt()))


def bare_loop(train_ids):
    """The loop of chapter 07, as it stands there."""
    text = (ROOT / "notebooks" / "text" / "07_training.py").read_text("utf-8")
    (cell,) = [part for part in text.split("# %%") if "\ndef bare_loop(" in part]
    names = vars(training) | {"train_ids": train_ids}
    exec(cell.partition("\n\n\nconfig =")[0].partition("\n")[2], names)
    return names["bare_loop"]


def test_the_bare_loop_and_a_run_find_the_same_losses(song, tiny_gpt, tmp_path):
    """Whatever is wrapped around the lesson, it is the lesson that trains."""
    config = replace(QUICK, learning_rate=1e-2, clip=0.5)
    bare = bare_loop(song.train_ids)(tiny_gpt(dropout=0.1), config)
    data = song.train_ids, song.val_ids
    lesson = training.train_simply(tiny_gpt(dropout=0.1), *data, config)
    options = {"out": tmp_path / "run", "tokenizer": song.tokenizer}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "new_optimizer", training.Trainer.new_optimizer)
        kept = run(song, tiny_gpt(dropout=0.1), config, **options)
    assert bare == lesson.losses == kept.losses
    assert lesson.evaluations == kept.evaluations
    fused = run(
        song, tiny_gpt(dropout=0.1), config
    )  # AdamW in one pass rounds otherwise
    assert fused.losses == pytest.approx(bare, abs=1e-4)


# --- What can't work is refused before anything is done ---


def refused(song, model, out, match, train_ids=None, val_ids=None, tokenizer=None):
    """A ValueError in one sentence; no folder, no step, the weights as they were."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=match) as caught:
        train(
            model,
            song.train_ids if train_ids is None else train_ids,
            song.val_ids if val_ids is None else val_ids,
            QUICK,
            out=out,
            tokenizer=tokenizer or song.tokenizer,
            progress=False,
        )
    assert "\n" not in str(caught.value)
    assert list(out.parent.iterdir()) == []
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_training_text_shorter_than_a_window(song, tiny_gpt, tmp_path):
    for n in (0, 1, 8):
        match = f"training text has {n} tokens; block_size 8 needs at least 9"
        ids = song.train_ids[:n]
        refused(song, tiny_gpt(), tmp_path / "run", match, train_ids=ids)
    train(tiny_gpt(), song.train_ids[:9], song.val_ids, QUICK, progress=False)


def test_a_validation_text_with_nothing_to_predict(song, tiny_gpt, tmp_path):
    for n in (0, 1):
        match = f"validation text has {n} tokens; it needs at least 2"
        ids = song.val_ids[:n]
        refused(song, tiny_gpt(), tmp_path / "run", match, val_ids=ids)


@pytest.mark.parametrize("part", ["train_ids", "val_ids"])
@pytest.mark.parametrize("beyond", [False, True])
def test_ids_outside_the_vocabulary(song, tiny_gpt, tmp_path, part, beyond):
    ids, V = getattr(song, part).clone(), song.tokenizer.vocab_size
    ids[5] = wrong = V if beyond else -1
    match = rf"{part} hold ids from .*{wrong}.*vocabulary allows 0\.\.{V - 1}"
    refused(song, tiny_gpt(), tmp_path / "run", match, **{part: ids})


@pytest.mark.parametrize("part", ["train_ids", "val_ids"])
@pytest.mark.parametrize(
    "spoil",
    [
        torch.Tensor.float,
        torch.Tensor.int,
        torch.Tensor.numpy,
        torch.Tensor.tolist,
        lambda ids: ids[None].repeat(20, 1),
    ],
)
def test_ids_of_a_wrong_type_or_shape(song, tiny_gpt, tmp_path, part, spoil):
    ids = spoil(getattr(song, part))
    refused(song, tiny_gpt(), tmp_path / "run", f"^{part} (have|are)", **{part: ids})


def test_a_tokenizer_of_another_size(song, tiny_gpt, tmp_path):
    """Else the folder would hold a checkpoint that does not load."""
    wrong = CharTokenizer("ab")
    match = "tokenizer has 2 tokens"
    refused(song, tiny_gpt(), tmp_path / "run", match, tokenizer=wrong)


def test_a_run_to_keep_needs_a_tokenizer(song, tiny_gpt, tmp_path):
    with pytest.raises(ValueError, match="needs a tokenizer"):
        run(song, tiny_gpt(), out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_bad_from_the_start(song, tiny_gpt, tmp_path):
    model = tiny_gpt()
    model.head.weight.data[0, 0] = math.nan
    with pytest.raises(DivergedError, match=r"weight .* step 0"):
        run(song, model, out=tmp_path / "run", tokenizer=song.tokenizer)
    assert list(tmp_path.iterdir()) == []


# --- Stop and go on ---


class StoppedError(Exception):
    """Stands for whatever ends a process."""


@contextmanager
def ending(when, at):
    """Every run within ends when it comes to step `at`: before, in or after it."""
    names = {"before": "take_step", "in": "brake", "after": "summary"}
    target = training if when == "in" else Run
    name = "clip_gradients" if when == "in" else names[when]
    real = getattr(target, name)
    steps = []  # of the runs within; clip_gradients knows nothing of them

    def count(self):
        steps.append(self.step)
        return real_take_step(self)

    def stop(*args):
        now = steps[-1] if when == "in" else args[0].step - (when == "after")
        if now == at:
            raise StoppedError
        return real(*args)

    real_take_step = Run.take_step
    with pytest.MonkeyPatch.context() as patch:
        if when != "before":
            patch.setattr(Run, "take_step", count)
        patch.setattr(target, name, stop)
        with pytest.raises(StoppedError):
            yield


def moments(n=8, steps=25):
    chance = random.Random(int(os.environ.get("SEED", "0")))
    steps = chance.sample(range(1, steps), n - 1)
    return [
        (0, "before"),
        *((s, chance.choice(["before", "in", "after"])) for s in steps),
    ]


@pytest.mark.parametrize(("step", "when"), moments())
def test_stopped_anywhere_it_goes_on_bit_for_bit(song, tiny_gpt, tmp_path, step, when):
    config = TrainConfig(steps=25, batch_size=2, eval_every=4, save_every=3, seed=step)
    never_stopped = tiny_gpt(dropout=0.2)
    expected = run(song, never_stopped, config)

    options = {"out": tmp_path / "run", "tokenizer": song.tokenizer}
    with ending(when, step):
        run(song, tiny_gpt(dropout=0.2), config, **options)
    kept = len(read_run(tmp_path / "run").history.losses)
    assert kept == step - step % 3
    resumed = tiny_gpt(seed=99, dropout=0.2)  # whose weights must not matter
    torch.manual_seed(98)  # nor must the random state
    history = run(song, resumed, config, **options, resume=True)
    assert same(history, expected)
    for name, value in never_stopped.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert torch.equal(
        load_checkpoint(tmp_path / "run")[0].head.weight, never_stopped.head.weight
    )


def test_stopped_again_and_again(song, tiny_gpt, tmp_path):
    expected = run(song, tiny_gpt(dropout=0.2))
    options = {"out": tmp_path / "run", "tokenizer": song.tokenizer}
    for life, step in enumerate((2, 4, 7, 11)):
        with ending("before", step):
            run(song, tiny_gpt(life, dropout=0.2), **options, resume=life > 0)
    history = run(song, tiny_gpt(9, dropout=0.2), **options, resume=True)
    # Life 0 began with seed 0, and so did the run that was never stopped.
    assert same(history, expected)


@pytest.fixture
def ctrl_c_works():
    """Ctrl-C as in a terminal, even where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_does_not_wait(song, tiny_gpt, monkeypatch, ctrl_c_works):
    def press_twice(*args):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("it waited")

    monkeypatch.setattr(training, "clip_gradients", press_twice)
    with pytest.raises(KeyboardInterrupt):
        run(song, tiny_gpt())


def test_a_ctrl_c_that_is_ignored_stays_ignored(
    song, tiny_gpt, monkeypatch, ctrl_c_works
):
    """A shell script's background jobs start so; its Ctrl-C is not meant for them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    real = training.clip_gradients

    def press(*args):
        signal.raise_signal(signal.SIGINT)
        return real(*args)

    monkeypatch.setattr(training, "clip_gradients", press)
    assert len(run(song, tiny_gpt()).losses) == 12


def test_of_a_large_validation_text_a_sample_is_measured_and_at_the_end_all(
    song, tiny_gpt, tmp_path, monkeypatch, capsys
):
    small = run(song, tiny_gpt())
    monkeypatch.setattr(run_module, "LARGE", 100)
    monkeypatch.setattr(run_module, "FEWEST", 64)
    model, measured, parts = tiny_gpt(), [], []

    def spy(model, ids):
        parts.append(ids)
        measured.append(evaluate(model, ids))
        return measured[-1]

    monkeypatch.setattr(run_module, "evaluate", spy)
    history = train(model, song.train_ids, song.val_ids, QUICK)
    assert (
        "validation: 64 of 376 tokens during the run, all of" in capsys.readouterr().err
    )
    assert history.losses == small.losses
    assert [step for step, _ in history.evaluations] == [5, 10, 12]
    assert [len(ids) for ids in parts] == [5] * 32 + [97, 97, 97, 88]
    assert sum(map(torch.equal, parts[:16], parts[16:32])) == 16  # the same each time
    for i, (_, loss) in enumerate(history.evaluations[:2]):
        assert loss == pytest.approx(sum(measured[16 * i : 16 * i + 16]) / 16)
    assert history.evaluations[2][1] == pytest.approx(small.evaluations[2][1])
    # Ctrl-C in the last measurement: what was learnt is saved, and going on measures.
    options = {"out": tmp_path / "run", "tokenizer": song.tokenizer}
    with monkeypatch.context() as patch:
        patch.setattr(Run, "whole", lambda *args: [][1])
        with pytest.raises(IndexError):
            run(song, tiny_gpt(), **options)
    assert len(read_run(tmp_path / "run").history.losses) == 12
    assert same(run(song, tiny_gpt(seed=4), **options, resume=True), history)


@pytest.mark.parametrize("look", range(1, 16))
def test_whenever_ctrl_c_is_noticed_the_step_is_saved(
    song, tiny_gpt, tmp_path, monkeypatch, look
):
    """It may come between any two looks at it, and then none must lose a step."""

    @contextmanager
    def noticed_at_look():
        looks = []
        yield lambda: looks.append(1) or len(looks) >= look

    monkeypatch.setattr(run_module, "held_interrupt", noticed_at_look)
    config = replace(QUICK, steps=100, save_every=100)
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt) as stop:
        run(song, tiny_gpt(), config, out=out, tokenizer=song.tokenizer)
    done = int(str(stop.value).removeprefix("stopped after step "))
    assert len(read_run(out).history.losses) == done


def test_what_is_said_about_a_run_outlives_a_stop(song, tiny_gpt, tmp_path):
    out, about = tmp_path / "run", {"why": "to see", "tries": [1, 2]}
    with ending("before", 5):
        run(song, tiny_gpt(), out=out, tokenizer=song.tokenizer, about=about)
    assert read_json(out / "config.json")["about"] == about
    run(song, tiny_gpt(), out=out, resume=True)
    assert read_json(out / "config.json")["about"] == read_run(out).about == about


def test_a_finished_run_returns_at_once(song, tiny_gpt, tmp_path, monkeypatch):
    options = {"out": tmp_path / "run", "tokenizer": song.tokenizer}
    first_model = tiny_gpt()
    first = run(song, first_model, **options)
    monkeypatch.setattr(Run, "take_step", None)
    model = tiny_gpt(seed=5)
    again = run(song, model, **options, resume=True)
    assert asdict(first) == asdict(again)
    assert not model.training
    assert torch.equal(model.head.weight, first_model.head.weight)


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("settings", "change", "named"),
    [
        ({}, {"learning_rate": 1e-4}, "training setting learning_rate is 0.0001"),
        ({}, {"steps": 13}, "training setting steps is 13"),
        ({}, {"seed": 8}, "training setting seed is 8"),
        ({"n_embd": 16}, {}, "model setting n_embd is 16"),
        ({"dropout": 0.1}, {}, "model setting dropout is 0.1"),
        ({"n_layer": 2}, {}, "model setting n_layer is 2"),
    ],
)
def test_going_on_with_other_settings_is_refused(
    song, tiny_gpt, tmp_path, settings, change, named
):
    out = tmp_path / "run"
    with ending("before", 5):
        run(song, tiny_gpt(), out=out, tokenizer=song.tokenizer)
    before = snapshot(out)
    with pytest.raises(ValueError, match=rf"^{named}, but the run in .* with"):
        run(song, tiny_gpt(**settings), replace(QUICK, **change), out=out, resume=True)
    assert snapshot(out) == before


@pytest.mark.parametrize("part", ["train_ids", "val_ids"])
def test_going_on_with_another_text_is_refused(song, tiny_gpt, tmp_path, part):
    out = tmp_path / "run"
    with ending("before", 5):
        run(song, tiny_gpt(), out=out, tokenizer=song.tokenizer)
    ids = {"train_ids": song.train_ids, "val_ids": song.val_ids}
    ids[part] = ids[part].flip(0)
    with pytest.raises(ValueError, match="started with another text"):
        train(tiny_gpt(), **ids, config=QUICK, out=out, resume=True, progress=False)
    # One long text, cut elsewhere, is another one as well.
    whole = torch.cat((song.train_ids, song.val_ids))
    with pytest.raises(ValueError, match="started with another text"):
        train(tiny_gpt(), whole[:-50], whole[-50:], QUICK, out=out, resume=True)


def test_going_on_with_nothing_is_refused(song, tiny_gpt, tmp_path):
    with pytest.raises(ValueError, match="needs `out`"):
        run(song, tiny_gpt(), resume=True)
    (tmp_path / "empty").mkdir()
    for name in ("missing", "empty"):
        with pytest.raises(CheckpointError, match=name):
            run(song, tiny_gpt(), out=tmp_path / name, resume=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_a_folder_that_holds_something_is_refused(song, tiny_gpt, tmp_path):
    options = {"tokenizer": song.tokenizer}
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for name in ("file", "full"):
        with pytest.raises(CheckpointError, match=f"{name} exists and is not empty"):
            run(song, tiny_gpt(), out=tmp_path / name, **options)
    with pytest.raises(CheckpointError, match="can't be written"):
        run(song, tiny_gpt(), out=tmp_path / "file" / "run", **options)
    assert {path.name for path in tmp_path.rglob("*")} == {"file", "full", "notes.txt"}
    (tmp_path / "empty").mkdir()
    run(song, tiny_gpt(), out=tmp_path / "empty", **options)
    assert read_run(tmp_path / "empty").history.losses


# --- Divergence ---


def assert_sound(out, val_ids):
    """`out` holds finite weights that compute a finite loss on the validation text."""
    state = read_run(out)
    for name, value in state.tensors.items():
        if value.is_floating_point():
            assert value.isfinite().all(), name
    model, _ = load_checkpoint(out)
    assert all(p.isfinite().all() for p in model.parameters())
    assert math.isfinite(evaluate(model, val_ids))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_the_first_bad_number_ends_the_run(
    song, tiny_gpt, tmp_path, monkeypatch, bad, what
):
    """The step is named, and nothing bad is ever written over what is good."""
    place, name = {"loss": (Run, "learn"), "gradient": (training, "clip_gradients")}[
        what
    ]
    real, calls = getattr(place, name), []

    def spoilt(*args):
        calls.append(args)
        return bad if len(calls) == 8 else real(*args)  # step 7, counted from 0

    monkeypatch.setattr(place, name, spoilt)
    out = tmp_path / "run"
    with pytest.raises(
        DivergedError, match=rf"{what} .* at step 7: .* rate \(0\.003\)"
    ):
        run(song, tiny_gpt(), out=out, tokenizer=song.tokenizer)
    assert len(calls) == 8
    assert len(read_run(out).history.losses) == 6
    assert_sound(out, song.val_ids)


def test_an_absurd_learning_rate_never_spoils_the_checkpoint(song, tiny_gpt, tmp_path):
    """However far such a run comes, and wherever it goes."""
    every = TrainConfig(steps=50, batch_size=2, save_every=1, warmup=0, cooldown=0)
    config, out = replace(every, learning_rate=1e4, eval_every=0), tmp_path / "run"
    try:
        run(song, tiny_gpt(), config, out=out, tokenizer=song.tokenizer)
    except DivergedError as error:
        assert "learning rate" in str(error)
        assert "\n" not in str(error)
    assert_sound(out, song.val_ids)


def with_row(model, optimizer_step, size):
    """An optimizer's step that leaves the last letter a row of `size`, up and down."""

    def step(self):
        optimizer_step(self)
        row = model.token_embedding.weight.data[-1]
        row[::2], row[1::2] = size, -size

    return step


@pytest.mark.parametrize("size", [8.0, 1e3, 3e38])
def test_finite_weights_are_saved_if_all_of_the_text_gets_numbers(
    song, tiny_gpt, tmp_path, monkeypatch, size
):
    """The line: a row so large that its letter, which comes late, gets none."""
    model, out = tiny_gpt(), tmp_path / "run"
    monkeypatch.setattr(FusedAdamW, "step", with_row(model, FusedAdamW.step, size))
    looks, real = [], evaluate
    monkeypatch.setattr(
        run_module, "evaluate", lambda *given: looks.append(1) or real(*given)
    )
    # Each letter of the song but the last; that stands in the last window alone.
    V = song.tokenizer.vocab_size
    val_ids = torch.cat((torch.arange(V - 1).repeat(30), torch.tensor([V - 1, 0])))
    config = TrainConfig(steps=4, batch_size=2, save_every=1, eval_every=0)

    def go():
        parts = song.train_ids, val_ids, config
        options = {"out": out, "tokenizer": song.tokenizer}
        return train(model, *parts, progress=False, **options)

    if size == 3e38:
        with pytest.raises(DivergedError, match=r"what the weights compute .* step 1"):
            go()
        assert len(read_run(out).history.losses) == 0
    else:
        go()
        # Small weights are looked at, larger ones evaluated, the last step but once.
        assert len(looks) == (1 if size == 8.0 else 4)
        assert len(read_run(out).history.losses) == 4
    assert_sound(out, val_ids)


def test_a_model_that_cannot_learn_is_refused_before_any_work(song, tiny_gpt, capsys):
    """In float16, AdamW's eps is 0."""
    parts = song.train_ids, song.val_ids, QUICK
    with pytest.raises(
        ValueError, match=r"is torch\.float16, .*train in torch\.bfloat16"
    ):
        train(tiny_gpt().half(), *parts)
    with pytest.raises(ValueError, match="no parameter that learns"):
        train(tiny_gpt().requires_grad_(False), *parts)
    assert capsys.readouterr().err == ""


def test_windows_may_be_shorter_than_the_model_allows(song, tiny_gpt):
    """`context` is the length of a training window; evaluation keeps block_size."""
    ids, model = (song.train_ids, song.val_ids), tiny_gpt()
    history = train(model, *ids, TrainConfig(steps=2, context=3), progress=False)
    assert history.evaluations[-1][1] == evaluate(model, song.val_ids, 8)
    with pytest.raises(ValueError, match="context is 9; it must be at most"):
        train(tiny_gpt(), *ids, TrainConfig(context=9), progress=False)
    with pytest.raises(ValueError, match="context is -1"):
        TrainConfig(context=-1)


# --- Runs of before ---


@pytest.mark.parametrize("kind", ["plain", "modern"])
def test_a_run_of_an_older_version_loads_and_goes_on(
    song, tiny_gpt, tmp_path, monkeypatch, kind
):
    """Written in November 2026: half a run, and the losses of all of it."""
    monkeypatch.setattr(NGramEmbedding, "ROWS", 31)
    kept, out = ROOT / "tests" / "data" / kind, tmp_path / "run"
    shutil.copytree(kept, out)
    state = read_run(out)
    assert len(state.history.losses) == 6
    assert math.isfinite(evaluate(load_checkpoint(out)[0], song.val_ids))
    model = new_model(config_of(state.model))
    config = TrainConfig(**state.training)
    history = run(song, model, config, out=out, resume=True)
    expected = json.loads(kept.with_suffix(".json").read_text())
    assert history.losses == pytest.approx(expected["losses"], abs=1e-3)
    (_, last), *_ = reversed(history.evaluations)
    assert last == pytest.approx(expected["evaluations"][-1][1], abs=1e-3)
