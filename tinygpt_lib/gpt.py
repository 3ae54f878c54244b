# generated from notebooks/text/06_gpt.py: edit there
"""GPT: what is a GPT, whole?"""

from dataclasses import asdict, dataclass
from functools import partial
from inspect import signature

import torch
from torch import Tensor, nn

from tinygpt_lib.basics.checks import check_bool, check_choice, check_float, check_int
from tinygpt_lib.blocks import Block, Dropout, FeedForward, LayerNorm
from tinygpt_lib.multi_head import ATTENTIONS

__all__ = [
    "EMBEDDINGS",
    "FEED_FORWARDS",
    "GPT",
    "NORMS",
    "POSITIONS",
    "QK_NORMS",
    "GPTConfig",
    "LearnedPositions",
    "TokenEmbedding",
]

# --- A config ---

NORMS = {"layer": LayerNorm}
QK_NORMS = {"none": None}  # for queries and keys; so far there is no other
FEED_FORWARDS = {
    "gelu": FeedForward,
    "relu": partial(FeedForward, activation=nn.functional.relu),
}


class TokenEmbedding(nn.Embedding):
    """A learnt vector for each token: ids (B, T) -> (B, T, C)."""

    looks_back = 0  # tokens before the first one that it asks for

    def __init__(self, config: "GPTConfig"):
        super().__init__(config.vocab_size, config.n_embd)

    def forward(self, ids: Tensor, before: Tensor | None = None) -> Tensor:
        return super().forward(ids)


EMBEDDINGS = {"token": TokenEmbedding}


class LearnedPositions(nn.Embedding):
    """A learnt vector for each place, added to the token's: (B, T, C) -> (B, T, C)."""

    steps = ()  # what it does to queries and keys
    endless = False  # is there a place for any number of tokens?

    def __init__(self, config: "GPTConfig"):
        super().__init__(config.block_size, config.n_embd)

    @staticmethod
    def check(config: "GPTConfig") -> None:
        """ValueError for a config that these positions can't work with."""

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        end = start + x.shape[1]
        if end > self.num_embeddings:
            raise ValueError(
                f"{end} tokens are more than block_size {self.num_embeddings}; "
                "give the model at most the last block_size tokens"
            )
        return x + super().forward(torch.arange(start, end, device=x.device))


POSITIONS = {"learned": LearnedPositions}


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
    embedding: str = "token"  # a name in EMBEDDINGS
    attention: str = "fused"  # a name in ATTENTIONS
    norm: str = "layer"  # a name in NORMS
    feed_forward: str = "gelu"  # a name in FEED_FORWARDS
    position: str = "learned"  # a name in POSITIONS
    rotary_base: float = 10_000.0  # of rotary positions: the slowest turn
    rotary_scale: float = 1.0  # of rotary positions: places are divided by it
    qk_norm: str = "none"  # a name in QK_NORMS
    tie_weights: bool = False  # one matrix for token embedding and head
    zero_outputs: bool = False  # blocks begin by adding nothing
    window: int = 0  # tokens that attention looks back on; 0: all of them

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
        check_choice("embedding", self.embedding, EMBEDDINGS)
        check_choice("attention", self.attention, ATTENTIONS)
        check_choice("norm", self.norm, NORMS)
        check_choice("feed_forward", self.feed_forward, FEED_FORWARDS)
        check_choice("position", self.position, POSITIONS)
        for name in ("rotary_base", "rotary_scale"):
            allowed = "at least 1 and at most 1e9"
            check_float(name, getattr(self, name), allowed, lambda x: 1 <= x <= 1e9)
        check_choice("qk_norm", self.qk_norm, QK_NORMS)
        check_bool("tie_weights", self.tie_weights)
        check_bool("zero_outputs", self.zero_outputs)
        check_int("window", self.window, low=0, high=self.block_size)
        POSITIONS[self.position].check(self)
        takes_window = "window" in signature(ATTENTIONS[self.attention]).parameters
        if takes_window != (self.window > 0):
            needs = "at least 1" if takes_window else "0: it looks at every token"
            raise ValueError(
                f"window is {self.window}; attention {self.attention!r} needs {needs}"
            )

    def to_dict(self) -> dict:
        """The config as plain JSON data; GPTConfig(**data) makes it again."""
        return asdict(self)


# --- The model ---


class GPT(nn.Module):
    """Predicts every next token from all before it: embeddings, blocks, norm, head.

    ids (B, T) int64 with T <= block_size -> logits (B, T, vocab_size). Radford et al.,
    2019. (Without learned positions T may be larger; the model has not seen such.)
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        C = config.n_embd
        self.token_embedding = EMBEDDINGS[config.embedding](config)
        self.position_embedding = POSITIONS[config.position](config)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(self._block() for _ in range(config.n_layer))
        self.norm = NORMS[config.norm](C, config.bias)
        if not config.tie_weights:
            self.head = nn.Linear(C, config.vocab_size, bias=False)
        self._draw_weights()

    def _block(self) -> Block:
        """One block of the kind that the config describes."""
        config = self.config
        attention = ATTENTIONS[config.attention]
        if config.window:
            attention = partial(attention, window=config.window)
        qk_norm = QK_NORMS[config.qk_norm]
        own = [] if qk_norm is None else [qk_norm(config.n_embd // config.n_head)]
        return Block(
            config.n_embd,
            config.n_head,
            dropout=config.dropout,
            bias=config.bias,
            attention=attention,
            norm=NORMS[config.norm],
            feed_forward=FEED_FORWARDS[config.feed_forward],
            steps=[*own, *self.position_embedding.steps],
        )

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
        # All 2L additions together as loud as one, or none of them to be heard yet.
        loud = 0.0 if self.config.zero_outputs else (2 * self.config.n_layer) ** -0.5
        for block in self.blocks:
            for part in (block.attention, block.feed_forward):
                part.output.weight.mul_(loud)
        quiet = self.config.n_embd**-0.5
        if self.config.tie_weights:
            self.token_embedding.weight.mul_(quiet)  # `embed` makes it loud again
        else:
            nn.init.normal_(self.head.weight, std=0.2 * quiet)

    def embed(self, ids: Tensor, start: int = 0, before=None) -> Tensor:
        """What each token is plus where it stands, counted from `start`: (B, T, C).

        `before` holds the last tokens before them, (B, any), if there are some.
        """
        x = self.token_embedding(ids, before)
        if self.config.tie_weights:
            x = x * self.config.n_embd**0.5
        return self.position_embedding(x, start)

    def read_out(self, x: Tensor) -> Tensor:
        """What the stream says of the next token: (B, T, C) -> (B, T, vocab_size)."""
        x = self.norm(x)
        if self.config.tie_weights:
            return nn.functional.linear(x, self.token_embedding.weight)
        return self.head(x)

    def forward(self, ids: Tensor, cache=None) -> Tensor:
        if cache is None:
            x = self.embed(ids)  # (B, T, C)
        else:
            x = self.embed(ids, cache.length, cache.before(ids))
        x = self.dropout(x)
        for i, block in enumerate(self.blocks):
            x = block(x, None if cache is None else cache.layers[i])
        return self.read_out(x)  # (B, T, V)

    def n_parameters(self) -> int:
        """How many numbers the model learns."""
        return sum(p.numel() for p in self.parameters())
