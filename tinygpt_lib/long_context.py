# generated from notebooks/text/11_long_context.py: edit there
"""Long context: how far back can it look, what does that cost, and is it worth it?"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tinygpt_lib.basics.checks import check_choice, check_int
from tinygpt_lib.basics.devices import device_of
from tinygpt_lib.basics.evaluation import evaluating, most_tokens
from tinygpt_lib.generation import KVCache
from tinygpt_lib.gpt import GPT
from tinygpt_lib.modern_parts import ModernAttention, ModernConfig, ModernGPT, Rotary
from tinygpt_lib.multi_head import fused_attention
from tinygpt_lib.single_head import attention

__all__ = [
    "ATTENTIONS",
    "CONTEXT_METHODS",
    "LongAttention",
    "LongConfig",
    "LongGPT",
    "WindowCache",
    "longer_table",
    "loss_by_position",
    "sliding_attention",
    "with_context",
]

# --- Does Shakespeare need it? ---


@torch.no_grad()
def loss_by_position(
    model: GPT, ids: Tensor, length: int | None = None, stride: int | None = None
) -> tuple[Tensor, Tensor]:
    """Nats at each place of a window: mean and its standard error, each (length,).

    Windows of `length` tokens (default: the model's block_size) begin every `stride`
    tokens of ids (N,), by default side by side. ValueError if fewer than two fit.
    """
    length = model.config.block_size if length is None else length
    check_int("length", length, low=1)
    stride = length if stride is None else stride
    check_int("stride", stride, low=1)
    if len(ids) < length + 1 + stride:
        raise ValueError(f"{len(ids)} tokens; two windows of length {length} need more")
    windows = ids.to(device_of(model)).unfold(0, length + 1, stride)
    losses = []
    with evaluating(model):
        for rows in windows.split(max(1, most_tokens(model) // length)):
            logits = model(rows[:, :-1]).transpose(1, 2).float()
            losses.append(F.cross_entropy(logits, rows[:, 1:], reduction="none"))
    losses = torch.cat(losses)  # (windows, length)
    return losses.mean(dim=0), losses.std(dim=0) / len(losses) ** 0.5


# --- A window that slides ---


def sliding_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Attention in which each query sees its own token and the window - 1 before it.

    q (B, H, Tq, D), k and v (B, H, Tk, D) with Tq <= Tk, the queries being those of the
    last Tq tokens -> (B, H, Tq, D). Time and memory grow with Tq · window. ValueError
    for a window below 1. Child et al., 2019; Beltagy et al., 2020.
    """
    check_int("window", window, low=1)
    B, H, Tq, _ = q.shape
    if Tq > k.shape[-2]:
        raise ValueError(f"{Tq} queries for {k.shape[-2]} keys: each needs its own")
    # 1. What lies before the first query's window is seen by nobody.
    k, v = (x[:, :, -(Tq + window - 1) :] for x in (k, v))
    # 2. The first queries see every key before them: those are fewer than a window.
    before = k.shape[-2] - Tq
    first = min(Tq, window - before)
    k_first, v_first = (x[:, :, : before + first] for x in (k, v))
    y = fused_attention(q[:, :, :first], k_first, v_first)
    rest = Tq - first
    if rest == 0:
        return y
    # 3. The others, in blocks of `window`: what a block may see lies in it and in the
    #    block before. The last block is filled up; the real queries don't see that far.
    missing = -rest % window

    def fold(x: Tensor, size: int) -> Tensor:
        """(B, H, T, D) -> (B, H · blocks, size, D), a block every `window` tokens."""
        blocks = F.pad(x, (0, 0, 0, missing)).unfold(2, size, window)
        return blocks.transpose(-1, -2).flatten(1, 2)

    mine = torch.arange(window, 2 * window, device=q.device)[:, None]
    distance = mine - torch.arange(2 * window, device=q.device)  # (window, 2 · window)
    seen = (distance >= 0) & (distance < window)
    blocks = fold(q[:, :, first:], window), fold(k, 2 * window), fold(v, 2 * window)
    y_rest = F.scaled_dot_product_attention(*blocks, attn_mask=seen)
    y_rest = y_rest.view(B, H, rest + missing, y.shape[-1])
    return torch.cat([y, y_rest[:, :, :rest]], dim=2)


ATTENTIONS = {"explicit": attention, "fused": fused_attention}


@dataclass
class LongConfig(ModernConfig):
    """A ModernConfig that also says how far attention looks back."""

    attention: str = "fused"  # a name in ATTENTIONS, or "sliding"
    window: int = 0  # tokens that sliding attention looks back on

    def __post_init__(self):
        super().__post_init__()
        check_choice("attention", self.attention, (*ATTENTIONS, "sliding"))
        check_int("window", self.window, low=0, high=self.block_size)
        if (self.attention == "sliding") != (self.window > 0):
            about = f"{self.window}, but attention is {self.attention!r}"
            raise ValueError(f"window is {about}: only a sliding one has a window")


class LongAttention(ModernAttention):
    """Attention over all of the past or a window of it: x (B, T, C) -> (B, T, C)."""

    def __init__(self, config: LongConfig, turns: Rotary | None):
        super().__init__(config, turns)
        self.kind, self.window = config.attention, config.window

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = self.meet(q, k, v)
        if self.kind == "sliding":
            return sliding_attention(q, k, v, self.window)
        return ATTENTIONS[self.kind](q, k, v)


class LongGPT(ModernGPT):
    """A ModernGPT that looks back as its config says: ids (B, T) -> (B, T, V)."""

    def new_attention(self) -> LongAttention:
        return LongAttention(self.config, self.turns)


# --- A memory that does not grow ---


class WindowCache(KVCache):
    """A cache that keeps the last `window` tokens, and so takes a text of any length.

    For sliding attention, where no place has to be learnt.
    """

    def __init__(self, model: LongGPT):
        super().__init__(model)
        self.room = math.inf

    def join(self, i: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self.past[i] is not None:
            pairs = zip(self.past[i], (k, v), strict=True)
            k, v = (torch.cat(pair, dim=2) for pair in pairs)
        # A copy: a mere view would keep all of the tensor behind it alive.
        window = self.model.config.window
        self.past[i] = [x[:, :, -window:].clone() for x in (k, v)]
        return k, v


# --- Beyond the trained length ---


def longer_table(table: Tensor, length: int, method: str) -> Tensor:
    """Learned places (T, C), continued by zeros or stretched: (length, C)."""
    if method == "none":
        return F.pad(table, (0, 0, 0, length - len(table)))
    places = torch.arange(length, device=table.device) * len(table) / length
    below = places.long()
    above = (below + 1).clamp(max=len(table) - 1)
    return torch.lerp(table[below], table[above], (places - below)[:, None].to(table))


CONTEXT_METHODS = ("none", "interpolate", "ntk")


def with_context(model: GPT, block_size: int, method: str = "none") -> GPT:
    """The same weights as a new GPT with a longer context, which its config describes.

    "none" goes on counting places, learned ones from zero vectors; "interpolate"
    squeezes all into the old range (Chen et al., 2023); "ntk" raises rotary_base, so
    that near places hardly change and the slowest turn reaches no further than before
    (bloc97, 2023). ValueError for a shorter context or a method that doesn't fit.
    """
    old = model.config
    check_int("block_size", block_size, low=old.block_size)
    check_choice("method", method, CONTEXT_METHODS)
    position = getattr(old, "position", "learned")
    check_choice("position", position, ("learned", "rotary"))
    ratio, D, changes = block_size / old.block_size, old.n_embd // old.n_head, {}
    if method == "interpolate" and position == "rotary":
        changes["rotary_scale"] = old.rotary_scale * ratio
    if method == "ntk":
        if position != "rotary" or D < 4:
            has = f"position {position!r}, heads of {D}"
            raise ValueError(f"'ntk' needs rotary heads of at least 4; it has {has}")
        changes["rotary_base"] = old.rotary_base * ratio ** (D / (D - 2))
    with torch.random.fork_rng(devices=[]):  # draws no random numbers of yours
        longer = type(model)(replace(old, block_size=block_size, **changes))
    state = model.state_dict()
    if position == "learned":
        name = "position_embedding.weight"
        state[name] = longer_table(state[name], block_size, method)
    longer.to(next(model.parameters())).load_state_dict(state)
    return longer.train(model.training)
