# generated from notebooks/text/06_gpt.py: edit there
"""GPT: what is a GPT, whole?"""

from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor, nn

from tinygpt_lib._checks import check_bool, check_choice, check_float, check_int
from tinygpt_lib.blocks import Block, Dropout, FeedForward, LayerNorm
from tinygpt_lib.multi_head import ATTENTIONS

__all__ = ["FEED_FORWARDS", "GPT", "NORMS", "GPTConfig"]

# --- A config ---

NORMS = {"layer": LayerNorm}
FEED_FORWARDS = {
    "gelu": FeedForward,
    "relu": partial(FeedForward, activation=nn.functional.relu),
}


@dataclass
class GPTConfig:
    """All that describes a GPT; ValueError for a setting that makes no sense."""

    vocab_size: int  # how many different tokens
    block_size: int = 64  # longest context, in tokens
    n_layer: int = 4  # blocks
    n_head: int = 4  # attention heads in a block
    n_embd: int = 128  # width of the residual stream
    dropout: float = 0.0  # share of numbers zeroed in training
    bias: bool = True  # biases in linear layers and norms, as GPT-2 has them
    attention: str = "fused"  # a name in ATTENTIONS
    norm: str = "layer"  # a name in NORMS
    feed_forward: str = "gelu"  # a name in FEED_FORWARDS

    def __post_init__(self):
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            check_int(name, getattr(self, name), low=1)
        if self.n_embd % self.n_head:
            raise ValueError(
                f"n_embd {self.n_embd} can't be split into n_head {self.n_head} equal "
                "heads; n_embd must be a multiple of n_head"
            )
        below_one = "at least 0 and below 1"
        check_float("dropout", self.dropout, below_one, lambda p: 0 <= p < 1)
        check_bool("bias", self.bias)
        check_choice("attention", self.attention, ATTENTIONS)
        check_choice("norm", self.norm, NORMS)
        check_choice("feed_forward", self.feed_forward, FEED_FORWARDS)

    def to_dict(self) -> dict:
        """The config as plain JSON data; GPTConfig(**data) makes it again."""
        return asdict(self)


# --- The model ---


class GPT(nn.Module):
    """Predicts every next token from all before it: embeddings, blocks, norm, head.

    ids (B, T) int64 with T <= block_size -> logits (B, T, vocab_size). Radford et al.,
    2019.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        C = config.n_embd
        self.token_embedding = nn.Embedding(config.vocab_size, C)
        self.position_embedding = nn.Embedding(config.block_size, C)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(
                C,
                config.n_head,
                dropout=config.dropout,
                bias=config.bias,
                attention=ATTENTIONS[config.attention],
                norm=NORMS[config.norm],
                feed_forward=FEED_FORWARDS[config.feed_forward],
            )
            for _ in range(config.n_layer)
        )
        self.norm = NORMS[config.norm](C, config.bias)
        self.head = nn.Linear(C, config.vocab_size, bias=False)
        self._draw_weights()

    @torch.no_grad()
    def _draw_weights(self) -> None:
        """A stream that keeps its scale from the start, and a head with no opinion."""
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for block in self.blocks:  # all 2L additions together as loud as one
            for part in (block.attention, block.feed_forward):
                part.output.weight.mul_((2 * self.config.n_layer) ** -0.5)
        nn.init.normal_(self.head.weight, std=0.2 * self.config.n_embd**-0.5)

    def embed(self, ids: Tensor, start: int = 0) -> Tensor:
        """What each token is plus where it stands, counted from `start`: (B, T, C)."""
        end = start + ids.shape[1]
        if end > self.config.block_size:
            raise ValueError(
                f"{end} tokens are more than block_size {self.config.block_size}; "
                "give the model at most the last block_size tokens"
            )
        places = torch.arange(start, end, device=ids.device)
        return self.token_embedding(ids) + self.position_embedding(places)

    def forward(self, ids: Tensor, cache=None) -> Tensor:
        start = 0 if cache is None else cache.length
        x = self.dropout(self.embed(ids, start))  # (B, T, C)
        for i, block in enumerate(self.blocks):
            x = block(x, None if cache is None else cache.layers[i])
        return self.head(self.norm(x))  # (B, T, V)

    def n_parameters(self) -> int:
        """How many numbers the model learns."""
        return sum(p.numel() for p in self.parameters())
