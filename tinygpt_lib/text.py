# generated from notebooks/text/01_text.py: edit there
"""Text: how does text become numbers, and what is there to predict?"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

__all__ = [
    "TOKENIZERS",
    "CharTokenizer",
    "checked_ids",
    "get_batch",
    "split",
    "tokenizer_from_dict",
]

# --- Numbers for characters ---


def checked_ids(ids: Tensor | Sequence[int], vocab_size: int) -> list[int]:
    """ids (N,) as a list; ValueError for one outside the vocabulary."""
    ids = torch.as_tensor(ids, dtype=torch.int64).flatten().tolist()
    for i in ids:
        if not 0 <= i < vocab_size:
            raise ValueError(f"id {i} is not in the range 0..{vocab_size - 1}")
    return ids


class CharTokenizer:
    """One token per character; the id is the character's place in the vocabulary.

    `unk`, one of the characters, stands in for every unknown one; without it, an
    unknown character is an error.
    """

    def __init__(self, characters: Sequence[str], unk: str | None = None):
        self.characters = list(characters)
        self.unk = unk
        self._ids = {c: i for i, c in enumerate(self.characters)}
        if any(len(c) != 1 for c in self.characters) or not self.characters:
            raise ValueError("characters must be one or more single characters")
        # With the second half behind it, it would be saved as one character.
        if any("\ud800" <= c <= "\udbff" for c in self.characters):
            raise ValueError("no character may be the first half of a surrogate pair")
        if len(self._ids) != len(self.characters):
            raise ValueError("characters must not hold the same character twice")
        if unk is not None and unk not in self.characters:
            raise ValueError(f"unk is {unk!r}; it must be one of the characters")

    @classmethod
    def from_text(cls, text: str, unk: str | None = None) -> Self:
        """The tokenizer whose vocabulary is every character of text and unk, sorted."""
        if not text:
            raise ValueError("text is empty: a vocabulary needs at least one character")
        return cls(sorted({*text, unk} - {None}), unk)

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> Tensor:
        """Ids of shape (len(text),), int64; ValueError for an unknown character."""
        if self.unk is not None:
            text = "".join(c if c in self._ids else self.unk for c in text)
        try:
            return torch.tensor([self._ids[c] for c in text], dtype=torch.int64)
        except KeyError as error:
            unknown = error.args[0]
            raise ValueError(
                f"character {unknown!r} at position {text.index(unknown)} is not among "
                f"the {self.vocab_size} characters that this tokenizer knows"
            ) from None

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """The text of ids (N,); ValueError for an id outside the vocabulary."""
        return "".join(self.characters[i] for i in checked_ids(ids, self.vocab_size))

    def to_dict(self) -> dict:
        """The tokenizer as plain JSON data."""
        data = {"type": "char", "characters": "".join(self.characters)}
        return data if self.unk is None else {**data, "unk": self.unk}

    @classmethod
    def from_dict(cls, data: dict) -> Self:
        """The tokenizer that `to_dict` described."""
        return cls(data["characters"], data.get("unk"))


TOKENIZERS = {"char": CharTokenizer}


def tokenizer_from_dict(data: dict):
    """The tokenizer, of whatever kind, that its own `to_dict` described."""
    kind = data.get("type")
    if kind not in TOKENIZERS:
        known = ", ".join(sorted(TOKENIZERS))
        raise ValueError(f"tokenizer type {kind!r} is not known; known are: {known}")
    return TOKENIZERS[kind].from_dict(data)


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
    """Random windows of ids (N,): inputs (B, T) and their targets (B, T), one later.

    `generator` makes the draw repeatable. ValueError if ids are shorter than T + 1.
    """
    if len(ids) < block_size + 1:
        raise ValueError(
            f"the text has {len(ids)} tokens; a window of block_size {block_size} "
            f"and its targets need at least {block_size + 1}"
        )
    device = ids.device if generator is None else generator.device
    shape = (batch_size, 1)
    starts = torch.randint(
        len(ids) - block_size, shape, generator=generator, device=device
    )
    places = starts.to(ids.device) + torch.arange(block_size, device=ids.device)
    return ids[places], ids[places + 1]  # (B, T)
