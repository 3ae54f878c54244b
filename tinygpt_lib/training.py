# generated from notebooks/text/07_training.py: edit there
"""Training: how does it learn, and how do you know that it does?"""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from tinygpt_lib.bigram import evaluate
from tinygpt_lib.gpt import GPT, GPTConfig
from tinygpt_lib.text import get_batch

__all__ = [
    "COOLDOWNS",
    "AdamW",
    "DivergedError",
    "History",
    "TrainConfig",
    "Trainer",
    "clip_gradients",
    "cpu_preset",
    "learning_rate_at",
    "train_simply",
]

# --- AdamW ---


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

COOLDOWNS = {  # share of the cool-down that is left -> share of the rate
    "cosine": lambda left: 0.5 * (1 - math.cos(math.pi * left)),
    "linear": lambda left: left,
}


@dataclass
class TrainConfig:
    """All that describes a training run."""

    steps: int = 1000  # gradient steps
    batch_size: int = 12  # windows in a batch
    learning_rate: float = 3e-3  # the highest, between warm-up and cool-down
    warmup: float = 0.05  # share of the run in which the rate rises to it
    cooldown: float = 0.95  # share of the run in which it falls to zero
    cooldown_shape: str = "cosine"  # or "linear"
    weight_decay: float = 0.1  # of matrices, a step shrinks them by rate · decay
    beta1: float = 0.9  # memory of AdamW's mean slope
    beta2: float = 0.99  # memory of AdamW's mean squared slope
    clip: float = 1.0  # longest gradient that is let through
    eval_every: int = 250  # steps between looks at all of the validation text; 0: end
    seed: int = 0  # of the batches


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """The rate of step 0, 1, ...: up in a line, level, then down to zero."""
    done = (step + 1) / config.steps
    if done < config.warmup:
        return config.learning_rate * done / config.warmup
    left = (config.steps - step) / config.steps
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


# --- The run ---


def cpu_preset(vocab_size: int) -> tuple[GPTConfig, TrainConfig]:
    """A GPT of 0.8 million parameters that learns in a minute or two on two cores."""
    return (
        GPTConfig(vocab_size, block_size=64, n_layer=3, n_head=4, n_embd=144),
        TrainConfig(steps=1400, learning_rate=5e-3, cooldown=0.4, eval_every=350),
    )


# --- Appendix: a run that can be stopped ---


class DivergedError(RuntimeError):
    """Training produced a loss, a gradient or weights that are not finite numbers."""


@dataclass
class History:
    """What happened in a run, step by step."""

    losses: list[float] = field(default_factory=list)  # each step's batch, in nats
    evaluations: list[tuple[int, float]] = field(default_factory=list)  # (step, nats)
    seconds: float = 0.0  # spent on steps and evaluations


class Trainer:
    """A model in training: its optimizer, its place in the data, its past."""

    def __init__(self, model: GPT, train_ids: Tensor, config: TrainConfig):
        self.model, self.train_ids, self.config = model, train_ids, config
        self.context = model.config.block_size  # tokens in a window
        self.optimizer = self.new_optimizer()
        self.batches = torch.Generator().manual_seed(config.seed)
        self.history = History()

    def new_optimizer(self) -> AdamW:
        betas, decay = (self.config.beta1, self.config.beta2), self.config.weight_decay
        return AdamW(self.model.parameters(), betas=betas, weight_decay=decay)

    @property
    def step(self) -> int:
        """Steps done so far."""
        return len(self.history.losses)

    def take_step(self) -> None:
        """One turn of the loop. DivergedError when a number is no longer finite."""
        self.optimizer.learning_rate = learning_rate_at(self.step, self.config)
        size = self.config.batch_size, self.context
        loss = self.learn(*get_batch(self.train_ids, *size, self.batches))
        self.check_finite("the loss", loss)
        self.history.losses.append(loss)

    def learn(self, inputs: Tensor, targets: Tensor) -> float:
        """Learns from a batch of ids (B, T); returns the loss before that, in nats."""
        logits = self.model(inputs)  # (B, T, V)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        self.brake()
        self.optimizer.step()
        return loss.item()

    def brake(self) -> None:
        length = clip_gradients(self.model.parameters(), self.config.clip)
        self.check_finite("the gradient", length)

    def check_finite(self, what: str, number: float) -> None:
        if not math.isfinite(number):
            raise DivergedError(f"{what} is {number} at step {self.step}")


def train_simply(
    model: GPT, train_ids: Tensor, val_ids: Tensor, config: TrainConfig
) -> History:
    """Trains the model in place; returns what happened, and leaves it in eval mode."""
    trainer, began = Trainer(model, train_ids, config), time.perf_counter()
    history = trainer.history
    model.train()
    while trainer.step < config.steps:
        trainer.take_step()
        due = config.eval_every and trainer.step % config.eval_every == 0
        if due or trainer.step == config.steps:
            history.evaluations.append((trainer.step, evaluate(model, val_ids)))
    history.seconds = time.perf_counter() - began
    model.eval()
    return history
