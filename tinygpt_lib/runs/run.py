"""A run around chapter 07's trainer: checked, kept in a folder, shared out, resumed."""

import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from operator import mul
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from tinygpt_lib.basics.checks import check_ids
from tinygpt_lib.basics.devices import device_of
from tinygpt_lib.basics.files import (
    filling,
    locked,
    read_bytes,
    remove_partial_files,
    understood,
    writing,
)
from tinygpt_lib.basics.interrupts import held_interrupt
from tinygpt_lib.bigram import evaluate
from tinygpt_lib.gpt import GPT, GPTConfig
from tinygpt_lib.runs.checkpoints import (
    RunState,
    check_tokenizer,
    fingerprint,
    read_run,
    strip,
    write_model,
    write_run,
)
from tinygpt_lib.runs.models import config_of, full_config
from tinygpt_lib.runs.processes import cut_as, from_first
from tinygpt_lib.runs.settings import (
    ENGINES,
    MAY_CHANGE,
    OPTIMIZERS,
    WHOLE_ONLY,
    TrainConfig,
)
from tinygpt_lib.runs.tokenizers import tokenizer_from_dict
from tinygpt_lib.scaling_out import (
    evaluate_together,
    n_processes,
    own_seed,
    process_rank,
    replicated,
)
from tinygpt_lib.training import DivergedError, History, Trainer

RANDOM = {"random.cpu": "cpu", "random.cuda": "cuda"}  # states, and whose they are

# The longest way to a logit multiplies five weights: through norm, hidden layer
# (squared, perhaps) and back. With all of them this large and of one sign, the sum over
# a width of 10,000 and its square in the next norm still stay within float32.
TAME = 16.0

LARGE, FEWEST = 2**18, 2**15  # tokens; of a longer text a run measures a sample


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
    untouched, when loss or weights are no longer finite. The checkpoint that stands
    computes finite numbers on all of the validation text.
    """
    if tokenizer is not None:
        check_tokenizer(tokenizer, model.config)
    if out is None:
        if resume:
            raise ValueError(
                "resume=True needs `out`, the folder of the run to go on with"
            )
        return Run(model, train_ids, val_ids, config).go(progress)
    run = SavedRun(model, train_ids, val_ids, config, Path(out), tokenizer, about)
    if resume:
        # No run, no lock either.
        from_first(partial(read_bytes, run.out / "training.safetensors", 1))
    else:
        run.create()
    with run.locked():
        if resume:
            run.restore()
        return run.go(progress)


def check_data(train_ids, val_ids, config: TrainConfig, model: GPTConfig) -> None:
    """ValueError, naming the culprit, for data that a run can't work with."""
    for name, ids in (("train_ids", train_ids), ("val_ids", val_ids)):
        check_ids(name, ids, 1, model.vocab_size)
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


def check_model(model: GPT) -> None:
    """ValueError, naming why, for a model that can't learn."""
    types = {p.dtype for p in model.parameters() if p.requires_grad}
    if not types:
        raise ValueError("the model has no parameter that learns (requires_grad)")
    if torch.float16 in types:
        raise ValueError(
            "the model is torch.float16, in which AdamW's eps is 0 and any useful step "
            "diverges: train in torch.bfloat16 or torch.float32, then convert it"
        )


def check_shares(config: TrainConfig, sharded: bool) -> None:
    """ValueError for a run that can't be shared out among the processes there are."""
    n, parts = n_processes(), config.accumulate
    if config.batch_size % (n * parts):
        raise ValueError(
            f"batch_size {config.batch_size} can't be shared out: it must be a "
            f"multiple of {n} (processes) times {parts} (accumulate)"
        )
    if sharded and config.optimizer in WHOLE_ONLY:
        raise ValueError(
            f"optimizer {config.optimizer!r} needs whole matrices, and a sharded model "
            "has none; choose another optimizer, or leave the model whole"
        )


def sample_of(ids: Tensor, config: TrainConfig, context: int) -> list[Tensor]:
    """What to measure during a run: all, or of a LARGE text 16 stretches, by the seed.

    Forward is a third of a step, so they take a twentieth of the steps' time, unless
    they were the FEWEST tokens that say something.
    """
    if len(ids) <= LARGE:
        return [ids[:]]
    per_look = config.batch_size * context * (config.eval_every or config.steps)
    room = len(ids) // 16
    length = min(room, max(FEWEST, 3 * per_look // 20) // 16)
    generator = torch.Generator().manual_seed(config.seed)
    free = torch.randint(room - length + 1, (16,), generator=generator).tolist()
    starts = [i * room + more for i, more in enumerate(free)]
    return [ids[start : start + length + 1] for start in starts]


class Run(Trainer):
    """A trainer with a progress bar, whose batches may be shared out among processes.

    Their number, and that of the parts a batch is gone through in, does not change what
    is learnt, but for rounding, and for dropout: that draws from random numbers of its
    own in each process.
    """

    def __init__(self, model, train_ids, val_ids, config):
        config = TrainConfig(**asdict(config))  # chapter 07's has fewer settings
        check_data(train_ids, val_ids, config, model.config)
        check_model(model)
        self.sharded = any(hasattr(p, "full_tensor") for p in model.parameters())
        check_shares(config, self.sharded)
        self.device = device_of(model)
        super().__init__(model, train_ids.to(self.device), config)
        self.val_ids = val_ids.to(self.device)
        self.context = config.context or self.context
        self.sample = sample_of(self.val_ids, config, self.context)
        self.network = ENGINES[config.engine](model, config)
        self.stop, self.pressed = False, lambda: False
        if n_processes() > 1 and not self.sharded:
            self.network = replicated(self.model, self.network)
            self.rehearse()
        if process_rank() > 0:
            torch.manual_seed(own_seed(config.seed, 0))

    def new_optimizer(self):
        return OPTIMIZERS[self.config.optimizer](self.model, self.config)

    def rehearse(self) -> None:
        """A pass for nothing else: DDP arranges its buckets anew after the first."""
        gpu = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(gpu):
            self.network(self.train_ids[: self.context][None]).sum().backward()
        self.optimizer.zero_grad()

    def go(self, progress: bool = True) -> History:
        """Takes the steps that are left."""
        config, history = self.config, self.history
        self.model.train()
        started = time.perf_counter() - history.seconds
        per_step = config.batch_size * self.context
        quiet = not (progress and process_rank() == 0)
        all_of_it = len(self.sample) == 1
        if not (quiet or all_of_it):
            n = sum(len(part) - 1 for part in self.sample)
            about = f"validation: {n:,} of {len(self.val_ids):,} tokens during the run"
            print(f"{about}, all of them at its end", file=sys.stderr)
        bar = tqdm(
            total=config.steps * per_step,
            initial=self.step * per_step,
            unit="tok",
            unit_scale=True,
            disable=quiet,
        )
        stop = False
        with held_interrupt() as self.pressed, bar:
            while self.step < config.steps and not stop:
                self.take_step()
                bar.update(per_step)
                bar.set_postfix_str(self.summary(), refresh=False)
                last = self.step == config.steps
                look = config.eval_every and self.step % config.eval_every == 0
                if (last and all_of_it) or (look and not last):
                    self.measure(self.sample)
                    bar.set_postfix_str(self.summary())
                history.seconds = time.perf_counter() - started
                # One look: it is saved if, and only if, we stop.
                stop = self.stop if n_processes() > 1 else self.pressed()
                self.after_step(last or stop)
        if self.step < config.steps or (stop and not self.measured()):
            raise KeyboardInterrupt(f"stopped after step {self.step}")
        if not self.measured():  # a large text, once; what was learnt is saved already
            self.measure(self.whole(quiet))
            history.seconds = time.perf_counter() - started
            self.after_step(True)
        self.model.eval()
        return history

    def learn(self, inputs: Tensor, targets: Tensor) -> float:
        parts = self.config.accumulate
        # 1. The slice of this process, in parts.
        n = len(inputs) // n_processes()
        mine = slice(n * process_rank(), n * (process_rank() + 1))
        batches = zip(
            inputs[mine].chunk(parts), targets[mine].chunk(parts), strict=True
        )
        # 2. The gradient of its mean loss; with the last part, everybody's mean.
        self.optimizer.zero_grad()
        total = 0.0
        for i, (x, y) in enumerate(batches, start=1):
            self.send_gradients(i == parts)
            logits = self.network(x)  # (B, T, V)
            loss = F.cross_entropy(logits.flatten(0, 1), y.flatten()) / parts
            loss.backward()
            total += loss.detach()
        # 3. Every process knows everybody's loss, and takes the same step.
        total = self.agree(total.item())
        self.brake()
        self.optimizer.step()
        return total

    def send_gradients(self, wanted: bool) -> None:
        """Whether the next pass sends them; else they are added up here."""
        if self.sharded:
            self.model.set_requires_gradient_sync(wanted)
        elif n_processes() > 1:
            self.network.require_backward_grad_sync = wanted

    def agree(self, loss: float) -> float:
        """The mean of everybody's losses; also, whether anybody wants to stop."""
        if n_processes() > 1:
            numbers = torch.tensor([loss, self.pressed()], dtype=torch.float64)
            dist.all_reduce(numbers)
            loss = numbers[0].item() / n_processes()
            self.stop = numbers[1].item() > 0
        return loss

    def measured(self) -> bool:
        """Whether the loss after this step is known."""
        return [step for step, _ in self.history.evaluations[-1:]] == [self.step]

    def measure(self, parts: Iterable[Tensor]) -> None:
        """Notes the loss over parts of the validation text."""
        loss = self.validate(parts)
        self.check_finite("the validation loss", loss)
        self.history.evaluations.append((self.step, loss))

    def validate(self, parts: Iterable[Tensor]) -> float:
        """The loss over parts of the validation text, each token as much as any."""
        together = evaluate if n_processes() == 1 else evaluate_together
        losses, sizes = [], []
        for part in parts:
            losses.append(together(self.model, part))
            sizes.append(len(part) - 1)
        if len(losses) == 1:
            return losses[0]
        return sum(map(mul, losses, sizes)) / sum(sizes)

    def whole(self, quiet: bool = True) -> Iterable[Tensor]:
        """All of the validation text, window by window the same, with a bar."""
        ids, size = self.val_ids, self.model.config.block_size
        size *= max(1, LARGE // size)
        starts = range(0, len(ids) - 1, size)
        for start in tqdm(starts, "all of the validation text", disable=quiet):
            yield ids[start : start + size + 1]

    def after_step(self, ends: bool) -> None:
        """What else happens after a step; `ends` if it is the last one for now."""

    def check_finite(self, what: str, number: float) -> None:
        if not math.isfinite(number):
            raise DivergedError(
                f"{what} stopped being a finite number at step {self.step}: most "
                f"often the learning rate ({self.config.learning_rate}) is too high; "
                "what was saved before is untouched"
            )

    def summary(self) -> str:
        """The latest losses, for the progress bar."""
        text = f"loss {self.history.losses[-1]:.3f}"
        if self.history.evaluations:
            text += f", validation {self.history.evaluations[-1][1]:.3f}"
        return text


class SavedRun(Run):
    """A run that keeps its checkpoints in the folder `out`, whole ones.

    Of several processes the first alone writes and reads; the others are told.
    """

    def __init__(self, model, train_ids, val_ids, config, out, tokenizer, about=None):
        super().__init__(model, train_ids, val_ids, config)
        self.out, self.tokenizer, self.about = out, tokenizer, about or {}
        self.data = fingerprint(train_ids, val_ids)

    def after_step(self, ends: bool) -> None:
        if ends or self.step % self.config.save_every == 0:
            state = self.state()
            self.check_sound(state)
            from_first(partial(self.save, state))

    def check_sound(self, state: RunState) -> None:
        """DivergedError unless all of the validation text gets finite numbers.

        That takes an evaluation, but only of weights large enough to overflow, at a
        step that was not evaluated anyway: a healthy run pays a look at its weights.
        """
        size = from_first(partial(largest_weight, state))
        self.check_finite("a weight", size)
        known = self.measured() and (
            len(self.sample) == 1 or self.step == self.config.steps
        )
        if not (size <= TAME or known):
            self.check_finite("what the weights compute", self.validate(self.whole()))

    def state(self) -> RunState:
        """Everything that going on needs; the tensors in the first process alone."""
        own, tensors = self.own_tensors(), {}
        for name, part in own.items():
            tensor = part.full_tensor() if hasattr(part, "full_tensor") else part
            if process_rank() == 0:  # the others hold no more than one at a time
                tensors[name] = tensor.cpu()
        if n_processes() > 1:
            random = {k: t for k, t in own.items() if k in RANDOM}
            everyones = [None] * n_processes()
            dist.all_gather_object(everyones, random)
            for rank, states in enumerate(everyones[1:], 1):
                tensors |= {f"{k}.{rank}": t for k, t in states.items()}
        return RunState(
            model=asdict(self.model.config),
            training=asdict(self.config),
            tokenizer=self.tokenizer.to_dict(),
            data=self.data,
            about=self.about,
            history=self.history,
            tensors=tensors,
        )

    def own_tensors(self) -> dict[str, Tensor]:
        """Weights, optimizer and random states of this process."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"optimizer.{k}": v for k, v in self.optimizer.state_dict().items()}
        tensors["random.batches"] = self.batches.get_state()
        tensors["random.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.device)
        elif self.device.type == "mps":
            tensors["random.mps"] = torch.mps.get_rng_state()
        return tensors

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

        def make_folder() -> None:
            with filling(self.out, "training.safetensors") as aside:
                write_run(aside, state)

        from_first(make_folder)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps others out of the folder for as long as a `with` lasts."""
        with ExitStack() as stack:
            from_first(lambda: stack.enter_context(locked(self.out)))
            yield

    def restore(self) -> None:
        """Takes over the run in `out`, if it is the same model, data and settings."""
        state = from_first(partial(read_run, self.out))
        self.check_same(state)
        self.take_over(state)
        from_first(partial(self.mend, state))

    def check_same(self, state: RunState) -> None:
        """ValueError unless the run that was saved is this one."""
        configs = config_of(state.model), self.model.config
        for what, saved, given in (
            ("model", *(asdict(full_config(c)) for c in configs)),
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
        tensors = self.own_part(state)
        with understood(f"{self.out}/training.safetensors does not fit the model"):
            self.model.load_state_dict(strip("model.", tensors))
            self.optimizer.load_state_dict(strip("optimizer.", tensors))
            self.batches.set_state(tensors["random.batches"])
            torch.set_rng_state(tensors["random.cpu"])
            if "random.cuda" in tensors and self.device.type == "cuda":
                torch.cuda.set_rng_state(tensors["random.cuda"], self.device)
            if "random.mps" in tensors and self.device.type == "mps":
                torch.mps.set_rng_state(tensors["random.mps"])

    def own_part(self, state: RunState) -> dict[str, Tensor]:
        """The saved tensors, cut as this run's own are; its own random numbers."""
        tensors, rank = dict(state.tensors), process_rank()
        if self.sharded:
            for name, mine in self.own_tensors().items():
                if hasattr(mine, "full_tensor") and name in tensors:
                    tensors[name] = cut_as(mine, tensors[name])
        seed = own_seed(self.config.seed, len(state.history.losses))
        for name, device in RANDOM.items():
            if rank > 0 and name in tensors:
                fresh = torch.Generator(device).manual_seed(seed).get_state()
                tensors[name] = tensors.get(f"{name}.{rank}", fresh)
        return tensors

    def mend(self, state: RunState) -> None:
        """Brings the folder in order: a kill may have left files of two saves."""
        remove_partial_files(self.out)
        weights = strip("model.", state.tensors)
        with writing(self.out):
            write_model(self.out, state.model, state.tokenizer, weights, state.about)


def largest_weight(state: RunState) -> float:
    """The greatest absolute value among the weights; NaN if one is NaN."""
    weights = strip("model.", state.tensors).values()
    return torch.stack([w.abs().max() for w in weights]).max().item()
