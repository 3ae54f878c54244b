# generated from notebooks/text/07_training.py: edit there
"""Training: how does it learn, and how do you know that it does?"""

import hashlib
import math
import os
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from tinygpt_lib._checks import check_choice, check_float, check_int
from tinygpt_lib._device import device_of, shapes_only
from tinygpt_lib._files import (
    CheckpointError,
    json_file,
    locked,
    read_bytes,
    read_json,
    read_tensors,
    remove_partial_files,
    tensor_file,
    write_tensors,
    write_together,
    writing,
)
from tinygpt_lib._interrupt import held_interrupt
from tinygpt_lib.bigram import evaluate, training_step
from tinygpt_lib.gpt import GPT, GPTConfig
from tinygpt_lib.text import get_batch, tokenizer_from_dict

__all__ = [
    "COOLDOWNS",
    "ENGINES",
    "MAY_CHANGE",
    "NOT_DESCRIBED",
    "OPTIMIZERS",
    "PRESETS",
    "RUNS",
    "TAME",
    "AdamW",
    "DivergedError",
    "History",
    "Run",
    "RunState",
    "SavedRun",
    "TrainConfig",
    "check_data",
    "check_free",
    "check_shapes",
    "check_tokenizer",
    "clip_gradients",
    "cpu_preset",
    "fingerprint",
    "first_line",
    "learning_rate_at",
    "load_checkpoint",
    "read_run",
    "save_checkpoint",
    "strip",
    "train",
    "write_model",
    "write_run",
]

# --- One step size for all? ---


class AdamW:
    """Steps of about the learning rate, whatever the size of the slope; matrices decay.

    Each parameter moves by mean(slope) / sqrt(mean(slope²)), both running means with
    their start corrected (Kingma and Ba, 2014). Parameters with two or more dimensions
    also shrink by learning_rate · weight_decay (Loshchilov and Hutter, 2017).
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        learning_rate: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ):
        self.parameters = list(parameters)
        self.learning_rate = learning_rate
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.steps = 0
        self.means = [torch.zeros_like(p) for p in self.parameters]
        self.squares = [torch.zeros_like(p) for p in self.parameters]

    def zero_grad(self) -> None:
        """Forgets the gradients of the last step; backward would add to them."""
        for p in self.parameters:
            p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Moves every parameter that has a gradient, in place."""
        self.steps += 1
        beta1, beta2 = self.betas
        start1, start2 = 1 - beta1**self.steps, 1 - beta2**self.steps
        for p, m, v in zip(self.parameters, self.means, self.squares, strict=True):
            if p.grad is None:
                continue
            m.lerp_(p.grad, 1 - beta1)
            v.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
            if p.dim() >= 2:
                p.mul_(1 - self.learning_rate * self.weight_decay)
            scale = (v / start2).sqrt_().add_(self.eps)
            p.addcdiv_(m, scale, value=-self.learning_rate / start1)

    def state_dict(self) -> dict[str, Tensor]:
        """All that it remembers, as tensors."""
        state = {"steps": torch.tensor(self.steps)}
        for i, (m, v) in enumerate(zip(self.means, self.squares, strict=True)):
            state[f"means.{i}"], state[f"squares.{i}"] = m, v
        return state

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes over what `state_dict` gave."""
        self.steps = int(state["steps"])
        for i, (m, v) in enumerate(zip(self.means, self.squares, strict=True)):
            m.copy_(state[f"means.{i}"])
            v.copy_(state[f"squares.{i}"])


# --- A plan for the learning rate ---

OPTIMIZERS = {
    "adamw": lambda model, config: AdamW(
        model.parameters(),
        config.learning_rate,
        (config.beta1, config.beta2),
        weight_decay=config.weight_decay,
    )
}
ENGINES = {"eager": lambda model, config: model}  # (model, config) -> ids -> logits
COOLDOWNS = {  # share that is left -> share of the rate
    "cosine": lambda left: 0.5 * (1 - math.cos(math.pi * left)),
    "linear": lambda left: left,
}


@dataclass
class TrainConfig:
    """All that describes a training run; ValueError for what makes no sense."""

    steps: int = 1000  # gradient steps
    batch_size: int = 12  # windows in a batch
    accumulate: int = 1  # parts that a batch is gone through in, to save memory
    context: int = 0  # tokens in a window; 0: the model's block_size
    optimizer: str = "adamw"  # a name in OPTIMIZERS
    engine: str = "eager"  # a name in ENGINES
    learning_rate: float = 3e-3  # the highest, between warm-up and cool-down
    matrix_rate: float = 0.03  # the same for matrices, where they are treated apart
    warmup: float = 0.05  # share of the run in which the rate rises to it
    cooldown: float = 0.95  # share of the run in which it falls to zero
    cooldown_shape: str = "cosine"  # a name in COOLDOWNS
    weight_decay: float = 0.1  # of matrices, a step shrinks them by rate · decay
    beta1: float = 0.9  # memory of AdamW's mean slope
    beta2: float = 0.99  # memory of AdamW's mean squared slope
    clip: float = 1.0  # longest gradient that is let through
    eval_every: int = 250  # steps between looks at all of the validation text; 0: end
    save_every: int = 250  # steps between checkpoints
    seed: int = 0  # of the batches

    def __post_init__(self):
        for name, low in (
            ("steps", 1),
            ("batch_size", 1),
            ("accumulate", 1),
            ("context", 0),
            ("eval_every", 0),
            ("save_every", 1),
            ("seed", 0),
        ):
            check_int(name, getattr(self, name), low=low, high=2**63 - 1)
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} can't be cut into accumulate "
                f"{self.accumulate} equal parts"
            )
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("engine", self.engine, ENGINES)
        check_choice("cooldown_shape", self.cooldown_shape, COOLDOWNS)
        for name in ("learning_rate", "matrix_rate", "clip"):
            allowed = "above 0 and at most 1e18"
            check_float(name, getattr(self, name), allowed, lambda x: 0 < x <= 1e18)
        allowed = "at least 0 and at most 1e18"
        check_float(
            "weight_decay", self.weight_decay, allowed, lambda x: 0 <= x <= 1e18
        )
        for name in ("warmup", "cooldown"):
            value = getattr(self, name)
            check_float(name, value, "in the range 0..1", lambda x: 0 <= x <= 1)
        if self.warmup + self.cooldown > 1 + 1e-9:
            raise ValueError(
                f"warmup {self.warmup} and cooldown {self.cooldown} overlap; together "
                "they must be at most 1"
            )
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            check_float(name, value, "at least 0 and below 1", lambda x: 0 <= x < 1)


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """The rate of step 0, 1, ...: up in a line, level, then down to zero."""
    done = (step + 1) / config.steps
    left = (config.steps - step) / config.steps
    if done < config.warmup:
        return config.learning_rate * done / config.warmup
    if left < config.cooldown:
        shape = COOLDOWNS[config.cooldown_shape]
        return config.learning_rate * shape(left / config.cooldown)
    return config.learning_rate


# --- A brake ---


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], longest: float) -> float:
    """Scales all gradients down, together, to a length of at most `longest`.

    Returns the length before, over all parameters as one vector. Pascanu et al., 2012.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    length = torch.stack([g.norm() for g in gradients]).norm().item()
    if length > longest:
        for g in gradients:
            g.mul_(longest / length)
    return length


# --- What a run has to remember ---


@dataclass
class History:
    """What happened in a run, step by step."""

    losses: list[float] = field(default_factory=list)  # each step's batch, in nats
    evaluations: list[tuple[int, float]] = field(default_factory=list)  # (step, nats)
    seconds: float = 0.0  # spent on steps, evaluations and all saves but the last


@dataclass
class RunState:
    """Everything that going on with a run needs, as plain data and tensors."""

    model: dict  # GPTConfig
    training: dict  # TrainConfig
    tokenizer: dict
    data: str  # fingerprint of the training and validation ids
    about: dict  # notes of whoever started the run
    history: History
    tensors: dict[str, Tensor]  # weights, optimizer, random states


def fingerprint(*parts: Tensor) -> str:
    """A sha256 over ids: other data, another fingerprint."""
    digest = hashlib.sha256()
    for ids in parts:
        digest.update(f"{len(ids)}:".encode())
        digest.update(ids.cpu().contiguous().numpy())
    return digest.hexdigest()


def write_run(folder: Path, state: RunState) -> None:
    """Both halves of a checkpoint: what going on needs, and what using it needs."""
    history = asdict(state.history)
    tensors = {
        **state.tensors,
        "losses": torch.tensor(history.pop("losses"), dtype=torch.float64),
    }
    notes = {
        name: getattr(state, name)
        for name in ("model", "training", "tokenizer", "data", "about")
    }
    # The state last: when it says that a run is finished, the model is there already.
    weights = strip("model.", state.tensors)
    write_model(folder, state.model, state.tokenizer, weights, state.about)
    path = folder / "training.safetensors"
    write_tensors(path, tensors, {**notes, "history": history})


def write_model(
    folder: Path, model: dict, tokenizer: dict, weights: dict[str, Tensor], about: dict
) -> None:
    """What using the model needs, in three files."""
    belongs = {"model": model, "tokenizer": tokenizer}
    files = {
        "tokenizer.json": json_file({"tokenizer": tokenizer}),
        "config.json": json_file({"model": model, "about": about}),
        "model.safetensors": tensor_file(weights, belongs),
    }
    write_together({folder / name: data for name, data in files.items()})


def strip(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with prefix, under the rest of their names."""
    return {
        k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)
    }


# What a description that is not ours may lead to, sizes beyond all memory included.
NOT_DESCRIBED = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


def first_line(error: Exception) -> str:
    """The error in one line; torch likes to go on."""
    return str(error).partition("\n")[0]


def check_free(out: Path) -> None:
    """CheckpointError for a folder in which there is something already."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise CheckpointError(
            f"{out} exists and is not empty: resume the run in it, or choose another "
            "folder"
        )


def read_run(folder: str | os.PathLike) -> RunState:
    """The state of the run in `folder`; CheckpointError if there is none that fits."""
    path = Path(folder) / "training.safetensors"
    tensors, notes = read_tensors(path)
    try:
        past, losses = notes.pop("history"), tensors.pop("losses")
        history = History(
            [float(loss) for loss in losses.tolist()],
            [(int(step), float(loss)) for step, loss in past["evaluations"]],
            float(past["seconds"]),
        )
        state = RunState(**notes, history=history, tensors=tensors)
        state.training = asdict(TrainConfig(**state.training))
        config = GPTConfig(**state.model)
        state.model = config.to_dict()  # older runs lack the fields added since
        check_shapes(config, strip("model.", tensors))
        tokenizer_from_dict(state.tokenizer)
        if not isinstance(state.about, dict):
            raise TypeError(f"about is {state.about!r}")
    except NOT_DESCRIBED as error:
        raise CheckpointError(
            f"{path} does not describe a run: {first_line(error)}"
        ) from error
    return state


def save_checkpoint(
    folder: str | os.PathLike, model: GPT, tokenizer, about: dict | None = None
) -> None:
    """Writes config.json, tokenizer.json, model.safetensors, each whole or not at all.

    `about` is JSON data of your own, kept in config.json. CheckpointError for a folder
    that holds a training run of another model, or where nothing can be written;
    ValueError for a tokenizer of another size than the model's vocabulary.
    """
    check_tokenizer(tokenizer, model.config)
    folder = Path(folder)
    run = folder / "training.safetensors"
    if run.exists() and read_run(folder).model != model.config.to_dict():
        raise CheckpointError(
            f"{folder} holds a training run of another model; choose another folder"
        )
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        config, words = model.config.to_dict(), tokenizer.to_dict()
        write_model(folder, config, words, model.state_dict(), about or {})


def check_tokenizer(tokenizer, config: GPTConfig) -> None:
    """ValueError unless tokenizer and model share a vocabulary, by its size."""
    if tokenizer.vocab_size != config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, and the model a "
            f"vocab_size of {config.vocab_size}; they must be the same"
        )


def load_checkpoint(folder: str | os.PathLike, device="cpu") -> tuple[GPT, object]:
    """The model, in evaluation mode, and the tokenizer that `save_checkpoint` wrote.

    CheckpointError, naming the file, for one that is missing, cut short, altered or of
    another version. No code that a file may hold is ever run.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json").get("model")
    words = read_json(folder / "tokenizer.json").get("tokenizer")
    tensors, notes = read_tensors(folder / "model.safetensors")
    try:
        belong = notes == {"model": config, "tokenizer": words}
    except RecursionError:  # nested too deep to be ours
        belong = False
    if not belong:
        raise CheckpointError(
            f"{folder} holds files that do not belong together: config.json or "
            "tokenizer.json is not the one that model.safetensors was saved with"
        )
    try:
        tokenizer = tokenizer_from_dict(words)
        config = GPTConfig(**config)
        check_shapes(config, tensors)
    except NOT_DESCRIBED as error:
        raise CheckpointError(
            f"{folder} does not describe a model: {first_line(error)}"
        ) from error
    if tokenizer.vocab_size != config.vocab_size:
        raise CheckpointError(
            f"{folder} pairs a tokenizer of {tokenizer.vocab_size} tokens with a model "
            f"of vocab_size {config.vocab_size}"
        )
    with torch.random.fork_rng(devices=[]):  # draws no random numbers of yours
        model = GPT(config).to(next(iter(tensors.values())).dtype)
    model.load_state_dict(tensors)
    return model.to(device).eval(), tokenizer


def check_shapes(config: GPTConfig, tensors: dict[str, Tensor]) -> None:
    """ValueError unless the tensors are just those that a model of `config` has."""
    if config.n_layer > len(tensors):
        raise ValueError(f"n_layer {config.n_layer} is more than the file has tensors")
    with shapes_only():  # nothing is allocated, whatever the config says
        expected = {name: t.shape for name, t in GPT(config).state_dict().items()}
    found = {name: t.shape for name, t in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            wanted, got = (
                tuple(d[name]) if name in d else "absent" for d in (expected, found)
            )
            raise ValueError(f"tensor {name} should be {wanted} and is {got}")
    if len(types := {t.dtype for t in tensors.values()}) > 1:
        raise ValueError(f"its tensors are of several types: {sorted(map(str, types))}")
    if not types.pop().is_floating_point:
        raise ValueError("its tensors are no floating-point numbers")


# --- The loop ---


class DivergedError(RuntimeError):
    """Training produced a loss or weights that are not finite numbers."""


def train(
    model: GPT,
    train_ids: Tensor,
    val_ids: Tensor,
    config: TrainConfig,
    *,
    out: str | os.PathLike | None = None,
    tokenizer=None,
    resume: bool = False,
    about: dict | None = None,
    progress: bool = True,
) -> History:
    """Trains the model in place, where it is; returns what happened.

    With `out`, a folder that must not hold a run yet, checkpoints are kept there (and
    the tokenizer with them). With resume=True the run in `out` goes on, bit for bit as
    if it had never stopped. Ctrl-C ends it after the current step, saved. ValueError
    for data or settings that can't work; DivergedError, the last good checkpoint
    untouched, when loss or weights are no longer finite.
    """
    if tokenizer is not None:
        check_tokenizer(tokenizer, model.config)
    if out is None:
        if resume:
            raise ValueError(
                "resume=True needs `out`, the folder of the run to go on with"
            )
        return RUNS["memory"](model, train_ids, val_ids, config).go(progress)
    given = model, train_ids, val_ids, config, Path(out), tokenizer, about
    run = RUNS["folder"](*given)
    if resume:
        run.check_started()  # no run, no lock either
    else:
        run.create()
    with run.locked():
        if resume:
            run.restore()
        return run.go(progress)


def check_data(train_ids, val_ids, config: TrainConfig, model: GPTConfig) -> None:
    """ValueError, naming the culprit, for data that a run can't work with."""
    for name, ids in (("train_ids", train_ids), ("val_ids", val_ids)):
        if ids.dim() != 1 or ids.dtype != torch.int64:
            raise ValueError(
                f"{name} have shape {tuple(ids.shape)} and type {ids.dtype}; they "
                "must be (N,) and torch.int64"
            )
    context = config.context or model.block_size
    if context > model.block_size:
        raise ValueError(
            f"context is {context}; it must be at most the model's block_size, "
            f"{model.block_size}"
        )
    if len(train_ids) < context + 1:
        name = "context" if config.context else "block_size"
        raise ValueError(
            f"the training text has {len(train_ids)} tokens; {name} {context} needs "
            f"at least {context + 1}"
        )
    if len(val_ids) < 2:
        raise ValueError(
            f"the validation text has {len(val_ids)} tokens; it needs at least 2"
        )
    for name, ids in (("train_ids", train_ids), ("val_ids", val_ids)):
        if ids.min() < 0 or ids.max() >= model.vocab_size:
            raise ValueError(
                f"{name} hold ids from {ids.min()} to {ids.max()}; the model's "
                f"vocabulary allows 0..{model.vocab_size - 1}"
            )


class Run:
    """One training run: a model, its optimizer, its place in the data, its history."""

    def __init__(self, model, train_ids, val_ids, config):
        check_data(train_ids, val_ids, config, model.config)
        self.model, self.config = model, config
        self.context = config.context or model.config.block_size
        self.device = device_of(model)
        self.train_ids = train_ids.to(self.device)
        self.val_ids = val_ids.to(self.device)
        self.optimizer = OPTIMIZERS[config.optimizer](model, config)
        self.network = ENGINES[config.engine](model, config)
        self.batches = torch.Generator().manual_seed(config.seed)
        self.history = History()

    @property
    def step(self) -> int:
        """Steps done so far."""
        return len(self.history.losses)

    def go(self, progress: bool = True) -> History:
        """Takes the steps that are left."""
        config, history = self.config, self.history
        self.model.train()
        started = time.perf_counter() - history.seconds
        per_step = config.batch_size * self.context
        bar = tqdm(
            total=config.steps * per_step,
            initial=self.step * per_step,
            unit="tok",
            unit_scale=True,
            disable=not progress,
        )
        with self.interrupts() as interrupted, bar:
            stop = False
            while self.step < config.steps and not stop:
                history.losses.append(self.take_step())
                bar.update(per_step)
                bar.set_postfix_str(self.summary(), refresh=False)
                last = self.step == config.steps
                if last or (config.eval_every and self.step % config.eval_every == 0):
                    loss = self.validate()
                    if not math.isfinite(loss):
                        self.diverged("the validation loss")
                    history.evaluations.append((self.step, loss))
                    bar.set_postfix_str(self.summary())
                history.seconds = time.perf_counter() - started
                stop = interrupted()  # one look: it is saved if, and only if, we stop
                self.after_step(last or stop)
        if self.step < config.steps:
            raise KeyboardInterrupt(f"stopped after step {self.step}")
        self.model.eval()
        return history

    def take_step(self) -> float:
        """One batch, one gradient step; its loss."""
        config = self.config
        self.optimizer.learning_rate = learning_rate_at(self.step, config)
        batch = get_batch(self.train_ids, config.batch_size, self.context, self.batches)
        loss = self.learn(*batch)
        if not math.isfinite(loss):
            self.diverged("the loss")
        return loss

    def learn(self, inputs: Tensor, targets: Tensor) -> float:
        """A gradient step on a batch, its length braked; the loss before it."""
        return training_step(self.network, self.optimizer, inputs, targets, self.brake)

    def brake(self) -> None:
        """Shortens a gradient that is too long; refuses one that has no length."""
        length = clip_gradients(self.model.parameters(), self.config.clip)
        if not math.isfinite(length):
            self.diverged("the gradient")

    def validate(self) -> float:
        """The loss over the whole validation text."""
        return evaluate(self.model, self.val_ids)

    def interrupts(self):
        """Holds Ctrl-C back; what it gives tells whether there was one."""
        return held_interrupt()

    def after_step(self, ends: bool) -> None:
        """What else happens after a step; `ends` if it is the last one for now."""

    def summary(self) -> str:
        """The latest losses, for the progress bar."""
        text = f"loss {self.history.losses[-1]:.3f}"
        if self.history.evaluations:
            text += f", validation {self.history.evaluations[-1][1]:.3f}"
        return text

    def diverged(self, what: str) -> None:
        raise DivergedError(
            f"{what} stopped being a finite number at step {self.step}: most often the "
            f"learning rate ({self.config.learning_rate}) is too high; what was saved "
            "before is untouched"
        )


# The longest way to a logit multiplies five weights: through norm, hidden layer (squared,
# perhaps) and back. With all of them this large and of one sign, the sum over a
# width of 10,000 and its square in the next norm still stay within float32.
TAME = 16.0


class SavedRun(Run):
    """A run that keeps its checkpoints in the folder `out`."""

    def __init__(self, model, train_ids, val_ids, config, out, tokenizer, about=None):
        super().__init__(model, train_ids, val_ids, config)
        self.out, self.tokenizer, self.about = out, tokenizer, about or {}
        self.data = fingerprint(train_ids, val_ids)

    def after_step(self, ends: bool) -> None:
        if ends or self.step % self.config.save_every == 0:
            state = self.state()
            self.check_sound(state)
            self.save(state)

    def check_sound(self, state: RunState) -> None:
        """DivergedError unless all of the validation text gets finite numbers.

        That takes an evaluation, but only of weights large enough to overflow, at a
        step that was not evaluated anyway: a healthy run pays a look at its weights.
        """
        size = self.largest_weight(state)
        if not math.isfinite(size):
            self.diverged("a weight")
        dtype = next(self.model.parameters()).dtype
        tame = size <= TAME and dtype != torch.float16
        known = [step for step, _ in self.history.evaluations[-1:]] == [self.step]
        if not (tame or known or math.isfinite(self.validate())):
            self.diverged("what the weights compute")

    def largest_weight(self, state: RunState) -> float:
        """The greatest absolute value among the weights; NaN if one is NaN."""
        weights = strip("model.", state.tensors).values()
        return torch.stack([w.abs().max() for w in weights]).max().item()

    def state(self) -> RunState:
        """Everything that going on needs."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"optimizer.{k}": v for k, v in self.optimizer.state_dict().items()}
        tensors["random.batches"] = self.batches.get_state()
        tensors["random.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.device)
        elif self.device.type == "mps":
            tensors["random.mps"] = torch.mps.get_rng_state()
        return RunState(
            model=self.model.config.to_dict(),
            training=asdict(self.config),
            tokenizer=self.tokenizer.to_dict(),
            data=self.data,
            about=self.about,
            history=self.history,
            tensors=tensors,
        )

    def save(self, state: RunState) -> None:
        """Writes a checkpoint."""
        with writing(self.out):
            write_run(self.out, state)

    def create(self) -> None:
        """Makes the folder, which appears only with the checkpoint of step 0 in it."""
        if self.tokenizer is None:
            raise ValueError(
                "`out` needs a tokenizer too: a model is useless without it"
            )
        state = self.state()
        self.check_sound(state)
        self.make_folder(state)

    def make_folder(self, state: RunState) -> None:
        """Puts a checkpoint where nothing may be yet; all of it appears at once."""
        out = self.out
        check_free(out)
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(
                prefix=f".{out.name}-", suffix=".partial", dir=out.parent
            ) as scratch:
                aside = Path(scratch) / "run"
                aside.mkdir()
                write_run(aside, state)
                if out.exists():
                    out.rmdir()
                aside.rename(out)

    def check_started(self) -> None:
        """CheckpointError unless there is a run in the folder."""
        read_bytes(self.out / "training.safetensors", 1)

    def locked(self):
        """Keeps others out of the folder for as long as a `with` lasts."""
        return locked(self.out)

    def restore(self) -> None:
        """Takes over the run in `out`, if it is the same model, data and settings."""
        state = self.read()
        self.check_same(state)
        self.take_over(state)
        self.mend(state)

    def read(self) -> RunState:
        """The last checkpoint in the folder."""
        return read_run(self.out)

    def check_same(self, state: RunState) -> None:
        """ValueError unless the run that was saved is this one."""
        for what, saved, given in (
            ("model", state.model, self.model.config.to_dict()),
            ("training", state.training, asdict(self.config)),
        ):
            for name in sorted((saved.keys() | given.keys()) - MAY_CHANGE):
                if saved.get(name) != given.get(name):
                    raise ValueError(
                        f"{what} setting {name} is {given.get(name)!r}, but the run in "
                        f"{self.out} was started with {saved.get(name)!r}"
                    )
        if state.data != self.data:
            raise ValueError(f"the run in {self.out} was started with another text")

    def take_over(self, state: RunState) -> None:
        """Puts everything at where it was when the state was saved."""
        self.tokenizer = tokenizer_from_dict(state.tokenizer)
        self.about, self.history = state.about, state.history
        try:
            self.model.load_state_dict(strip("model.", state.tensors))
            self.optimizer.load_state_dict(strip("optimizer.", state.tensors))
            self.batches.set_state(state.tensors["random.batches"])
            torch.set_rng_state(state.tensors["random.cpu"])
            if "random.cuda" in state.tensors and self.device.type == "cuda":
                torch.cuda.set_rng_state(state.tensors["random.cuda"], self.device)
            if "random.mps" in state.tensors and self.device.type == "mps":
                torch.mps.set_rng_state(state.tensors["random.mps"])
        except NOT_DESCRIBED as error:
            raise CheckpointError(
                f"{self.out}/training.safetensors does not fit the model: "
                f"{first_line(error)}"
            ) from error

    def mend(self, state: RunState) -> None:
        """Brings the folder in order: a kill may have left files of two saves."""
        remove_partial_files(self.out)
        weights = strip("model.", state.tensors)
        with writing(self.out):
            write_model(self.out, state.model, state.tokenizer, weights, state.about)


RUNS = {"memory": Run, "folder": SavedRun}
MAY_CHANGE = {"accumulate"}  # settings with which a run may go on otherwise

# --- The run ---


def cpu_preset(vocab_size: int) -> tuple[GPTConfig, TrainConfig]:
    """A GPT of 0.8 million parameters that learns in a minute or two on two cores."""
    return (
        GPTConfig(vocab_size, block_size=64, n_layer=3, n_head=4, n_embd=144),
        TrainConfig(steps=1400, learning_rate=5e-3, eval_every=350),
    )


PRESETS = {"cpu": cpu_preset}
