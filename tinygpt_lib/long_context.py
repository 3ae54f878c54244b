# generated from notebooks/text/11_long_context.py: edit there
"""Long context: how far back can it look, what does that cost, and is it worth it?"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tinygpt_lib.basics.checks import check_choice, check_int
from tinygpt_lib.basics.evaluation import evaluating, most_tokens
from tinygpt_lib.generation import KVCache
from tinygpt_lib.gpt import GPT
from tinygpt_lib.modern_parts import ModernAttention, ModernConfig, ModernGPT
from tinygpt_lib.multi_head import fused_attention
from tinygpt_lib.single_head import attention

__all__ = [
    "ATTENTIONS",
    "LongAttention",
    "LongConfig",
    "LongGPT",
    "WindowCache",
    "loss_by_position",
    "sliding_attention",
    "with_context",
]

# --- Does Shakespeare need it? ---


def loss_by_position(
    model: GPT, ids: Tensor, length: int | None = None, stride: int | None = None
) -> tuple[Tensor, Tensor]:
    """Nats at each place of a window: mean and its standard error, each (length,).

    Windows begin every `stride` tokens, by default side by side; two must fit in ids.
    """
    length = model.config.block_size if length is None else length
    check_int("length", length, low=1)
    stride = length if stride is None else stride
    check_int("stride", stride, low=1)
    if len(ids) < length + 1 + stride:
        raise ValueError(f"{len(ids)} tokens; two windows of length {length} need more")
    windows = ids.to(next(model.parameters()).device).unfold(0, length + 1, stride)
    losses = []
    with torch.no_grad(), evaluating(model):
        for rows in windows.split(max(1, most_tokens(model) // length)):
            logits = model(rows[:, :-1]).transpose(1, 2).float()
            losses.append(F.cross_entropy(logits, rows[:, 1:], reduction="none"))
    losses = torch.cat(losses)  # (windows, length)
    return losses.mean(dim=0), losses.std(dim=0) / len(losses) ** 0.5


# --- A window that slides ---


def sliding_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Attention in which each query sees its own token and the window - 1 before it.

    q (B, H, Tq, D) of the last Tq tokens, k and v (B, H, Tk, D) -> (B, H, Tq, D). Time
    and memory grow with Tq · window. Child et al., 2019; Beltagy et al., 2020.
    """
    check_int("window", window, low=1)
    H, Tq = q.shape[1:3]
    if Tq > k.shape[-2]:
        raise ValueError(f"{Tq} queries for {k.shape[-2]} keys: each needs its own")
    # 1. What lies before the first query's window is seen by nobody.
    k, v = (x[:, :, -(Tq + window - 1) :] for x in (k, v))
    # 2. The first queries see every key before them: those are fewer than a window.
    before = k.shape[-2] - Tq
    first = min(Tq, window - before)
    y = fused_attention(q[:, :, :first], *(x[:, :, : before + first] for x in (k, v)))
    if first == Tq:
        return y
    # 3. The others, in padded blocks of `window`: each sees its own and the one before.

    def fold(x: Tensor, size: int) -> Tensor:  # -> (B, H · blocks, size, D)
        blocks = F.pad(x, (0, 0, 0, (first - Tq) % window)).unfold(2, size, window)
        return blocks.transpose(-1, -2).flatten(1, 2)

    blocks = fold(q[:, :, first:], window), fold(k, 2 * window), fold(v, 2 * window)
    seen = torch.ones(window, 2 * window, dtype=torch.bool, device=q.device)
    seen = seen.tril(window).triu(1)
    rest = F.scaled_dot_product_attention(*blocks, attn_mask=seen)
    rest = rest.unflatten(1, (H, -1)).flatten(2, 3)[:, :, : Tq - first]
    return torch.cat([y, rest], dim=2)


ATTENTIONS = dict(explicit=attention, fused=fused_attention, sliding=sliding_attention)


@dataclass
class LongConfig(ModernConfig):
    """A ModernConfig that also says how far attention looks back."""

    attention: str = "fused"  # a name in ATTENTIONS
    window: int = 0  # tokens that sliding attention looks back on

    def __post_init__(self):
        super().__post_init__()
        check_choice("attention", self.attention, ATTENTIONS)
        check_int("window", self.window, low=0, high=self.block_size)
        if (self.attention == "sliding") != (self.window > 0):
            about = f"{self.window}, but attention is {self.attention!r}"
            raise ValueError(f"window is {about}: only a sliding one has a window")


class LongAttention(ModernAttention):
    """Attention over all of the past or a window of it: x (B, T, C) -> (B, T, C)."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        window = [self.config.window] if self.config.window else []
        return ATTENTIONS[self.config.attention](*self.meet(q, k, v), *window)


class LongGPT(ModernGPT):
    """A ModernGPT that looks back as its config says: ids (B, T) -> (B, T, V)."""

    attention = LongAttention


# --- A memory that does not grow ---


class WindowCache(KVCache):
    """For sliding attention without learned positions: keeps the last window alone."""

    def __init__(self, model: LongGPT):
        super().__init__(model)
        self.room = float("inf")

    def join(self, i: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self.past[i] is not None:
            k, v = (torch.cat(x, dim=2) for x in zip(self.past[i], (k, v), strict=True))
        # A copy: a mere view would keep all of the tensor behind it alive.
        self.past[i] = [x[:, :, -self.model.config.window :].clone() for x in (k, v)]
        return k, v


# --- Beyond the trained length ---


def with_context(model: GPT, block_size: int, method: str = "none") -> GPT:
    """The same weights as a new GPT with a longer context, which its config describes.

    "none" counts on, with rows of zeros for learned places; "interpolate" squeezes them
    into the old range (Chen et al., 2023); "ntk" raises rotary_base (bloc97, 2023).
    """
    old = model.config
    check_int("block_size", block_size, low=old.block_size)
    check_choice("method", method, ("none", "interpolate", "ntk"))
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
        rows = state["position_embedding.weight"]  # (T, C)
        at = torch.arange(block_size, device=rows.device) * len(rows) / block_size
        below, above = at.long(), (at.long() + 1).clamp(max=len(rows) - 1)
        stretched = rows[below].lerp(rows[above], (at - below)[:, None].to(rows))
        added = F.pad(rows, (0, 0, 0, block_size - len(rows)))
        state["position_embedding.weight"] = added if method == "none" else stretched
    longer.to(next(model.parameters())).load_state_dict(state)
    return longer.train(model.training)
