# generated from notebooks/text/01_text.py: edit there
"""Text: how does text become numbers, and what is there to predict?"""

import torch
from torch import Tensor

from tinygpt_lib.basics.tokens import hardened

__all__ = ["CharTokenizer", "get_batch", "split"]

# --- The tokenizer as a class ---


@hardened
class CharTokenizer:
    """One token per character; its id is the character's place in the vocabulary."""

    def __init__(self, characters):
        self.characters = list(characters)
        self.number = {c: i for i, c in enumerate(self.characters)}

    @classmethod
    def from_text(cls, text: str) -> "CharTokenizer":
        return cls(sorted(set(text)))

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> Tensor:
        return torch.tensor([self.number[c] for c in text], dtype=torch.int64)

    def decode(self, ids) -> str:
        return "".join(self.characters[i] for i in ids)


# --- What must stay unseen ---


def split(ids: Tensor | str, fraction: float = 0.9) -> tuple:
    """The first `fraction` of ids (N,), or of a text, and the rest: to validate on."""
    if not 0 < fraction < 1:
        raise ValueError(f"fraction is {fraction}; it must lie between 0 and 1")
    cut = int(fraction * len(ids))
    return ids[:cut], ids[cut:]


# --- Batches ---


def get_batch(
    ids: Tensor,
    batch_size: int,
    block_size: int,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Random windows of ids (N,): inputs (B, T) and their targets (B, T), one later."""
    if len(ids) < block_size + 1:
        raise ValueError(
            f"the text has {len(ids)} tokens; a window of block_size {block_size} "
            f"and its targets need at least {block_size + 1}"
        )
    last = len(ids) - block_size - 1
    starts = torch.randint(last + 1, (batch_size, 1), generator=generator)
    places = starts + torch.arange(block_size)  # (B, T)
    return ids[places], ids[places + 1]
