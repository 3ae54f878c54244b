"""The one table of tokenizers, in which what a file says is looked up."""

from tinygpt_lib.logs import EventTokenizer
from tinygpt_lib.text import CharTokenizer
from tinygpt_lib.tokenizers import BPETokenizer, ByteTokenizer, WordTokenizer

TEXT_TOKENIZERS = {
    "bpe": BPETokenizer,
    "byte": ByteTokenizer,
    "char": CharTokenizer,
    "word": WordTokenizer,
}
TOKENIZERS = {**TEXT_TOKENIZERS, "events": EventTokenizer}


def tokenizer_from_dict(data: dict):
    """The tokenizer, of whatever kind, that its own `to_dict` described."""
    kind = data.get("type")
    if kind not in TOKENIZERS:
        known = ", ".join(sorted(TOKENIZERS))
        raise ValueError(f"tokenizer type {kind!r} is not known; known are: {known}")
    return TOKENIZERS[kind].from_dict(data)
