# generated from notebooks/text/06_gpt.py: edit there
"""GPT: what is a GPT, whole?"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tinygpt_lib.basics.checks import check_bool, check_float, check_int
from tinygpt_lib.blocks import Block, Dropout, LayerNorm

__all__ = ["GPT", "GPTConfig", "draw_weights"]

# --- A config ---


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


# --- The model ---


class GPT(nn.Module):
    """Predicts every next token from all before it: embeddings, blocks, norm, head.

    ids (B, T) int64 with T <= block_size -> logits (B, T, vocab_size). Radford et al.,
    2019.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        c = self.config = config
        self.token_embedding = nn.Embedding(c.vocab_size, c.n_embd)
        self.position_embedding = nn.Embedding(c.block_size, c.n_embd)
        self.dropout = Dropout(c.dropout)
        self.blocks = nn.ModuleList(
            Block(c.n_embd, c.n_head, c.dropout, c.bias) for _ in range(c.n_layer)
        )
        self.norm = LayerNorm(c.n_embd, c.bias)
        self.head = nn.Linear(c.n_embd, c.vocab_size, bias=False)
        draw_weights(self)

    def places(self, start: int, end: int) -> Tensor:
        """The vectors of positions start..end - 1: (end - start, C)."""
        if end > self.config.block_size:
            raise ValueError(
                f"{end} tokens are more than block_size {self.config.block_size}; "
                "give the model at most the last block_size tokens"
            )
        return self.position_embedding.weight[start:end]

    def embed(self, ids: Tensor, start: int = 0) -> Tensor:
        """What each token is plus where it stands: ids (B, T) -> (B, T - start, C)."""
        return self.token_embedding(ids[:, start:]) + self.places(start, ids.shape[1])

    def read_out(self, x: Tensor) -> Tensor:
        """What the stream says of the next token: (B, T, C) -> (B, T, vocab_size)."""
        return self.head(self.norm(x))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.dropout(self.embed(ids))  # (B, T, C)
        for block in self.blocks:
            x = block(x)
        return self.read_out(x)  # (B, T, V)

    def n_parameters(self) -> int:
        """How many numbers the model learns."""
        return sum(p.numel() for p in self.parameters())


# --- The first weights ---


@torch.no_grad()
def draw_weights(model: GPT) -> None:
    """A stream that keeps its scale from the start, and logits near zero."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for block in model.blocks:  # all 2L additions together weigh as much as one
        for part in (block.attention, block.feed_forward):
            part.output.weight.mul_((2 * len(model.blocks)) ** -0.5)
    nn.init.normal_(model.head.weight, std=0.2 * model.head.in_features**-0.5)
