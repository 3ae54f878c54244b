"""BPE, ours beside minbpe and Hugging Face tokenizers: the section "bpe" of bench.py.

On the first million characters of the corpus, 1,024 tokens, one thread for all three,
which split as GPT-2 does. Merges must be equal to minbpe's, and the ids of all three
with those merges; Hugging Face breaks ties otherwise, so the merges that it learns may
differ from the first tie on, and are counted.
"""

import json
import os
import sys
import time
from functools import partial

from harness import comparison, ratios, spread, take_turns, tried
from peers import Peers

from tinygpt_lib import BPETokenizer, load_shakespeare
from tinygpt_lib.runs.huggingface import gpt2_alphabet

SIZE, CHARACTERS = 1024, 1_000_000


def hf_trained(text: str):
    """Hugging Face's byte-level BPE, trained on text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def hf_from(ours: BPETokenizer):
    """Hugging Face's tokenizer with our merges, a new one, so that no cache is warm."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    written = {byte: character for character, byte in gpt2_alphabet().items()}
    names = ["".join(written[b] for b in token) for token in ours.tokens]
    assert len(set(names)) == len(names)  # it has no two ids for the same bytes
    model = models.BPE(
        {name: i for i, name in enumerate(names)},
        [(names[a], names[b]) for a, b in ours.merges],
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def hf_merges(tokenizer) -> list[tuple[bytes, bytes]]:
    """The merges that Hugging Face learnt, as bytes."""
    byte = gpt2_alphabet()
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(bytes(byte[c] for c in part) for part in pair) for pair in merges]


def minbpe_trained(peers: Peers, text: str):
    """minbpe's tokenizer, trained on text: minutes."""
    if str(peers.minbpe) not in sys.path:
        sys.path.insert(0, str(peers.minbpe))
    from minbpe.regex import GPT2_SPLIT_PATTERN, RegexTokenizer

    tokenizer = RegexTokenizer(GPT2_SPLIT_PATTERN)
    tokenizer.train(text, SIZE)
    return tokenizer


def bpe(peers: Peers, repeats: int, characters: int = CHARACTERS) -> dict:
    """Seconds of training and of encoding; minbpe's training once, since it is slow."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread for all three
    text = load_shakespeare()[:characters]
    here, skipped = peers.present("minbpe", "Hugging Face tokenizers")
    made, ids, once = {}, {}, []

    def seconds(kept, name, function):
        begin = time.perf_counter()
        kept[name] = function()
        return time.perf_counter() - begin

    if "minbpe" in here:
        print("  minbpe trains, which takes minutes")
        train = partial(seconds, made, "minbpe", partial(minbpe_trained, peers, text))
        once = [tried("minbpe", train, here, skipped)]
    BPETokenizer.from_text(text[:1000])  # imports regex
    trainers = {"ours": lambda: BPETokenizer.from_text(text, SIZE)}
    encoders = {"ours": lambda tokenizer: tokenizer.encode(text).tolist()}
    if "Hugging Face tokenizers" in here:
        name = "Hugging Face tokenizers"
        trainers[name] = lambda: hf_trained(text)
        encoders[name] = lambda tokenizer: tokenizer.encode(text).ids
    trained, failed = take_turns(
        {name: partial(seconds, made, name, f) for name, f in trainers.items()},
        repeats,
    )
    if "minbpe" in made:
        encoders["minbpe"] = lambda tokenizer: tokenizer.encode(text)

    def encoding(name):
        tokenizer = made[name]
        if name == "Hugging Face tokenizers":
            tokenizer = hf_from(made["ours"])
        return seconds(ids, name, partial(encoders[name], tokenizer))

    here = [name for name in encoders if name not in failed]
    encoded, more = take_turns(
        {name: partial(encoding, name) for name in here}, repeats
    )
    training = comparison(trained, "s")
    if "minbpe" in made:
        training["measured"]["minbpe"] = spread(once)
        training["times as fast"]["minbpe"] = ratios(once * repeats, trained["ours"])
    result = {
        "characters": len(text),
        "vocab_size": SIZE,
        "tokens": len(ids["ours"]),
        "training": training,
        "encoding": comparison(encoded, "s"),
        "skipped": skipped | failed | more,
    }
    if "minbpe" in ids:
        equal = list(made["minbpe"].merges) == made["ours"].merges
        result["merges equal to minbpe's"] = equal
        result["ids equal to minbpe's"] = ids["minbpe"] == ids["ours"]
    if "Hugging Face tokenizers" in ids:
        equal = ids["Hugging Face tokenizers"] == ids["ours"]
        result["ids equal to Hugging Face's with our merges"] = equal
        result["first merge that differs from Hugging Face's own"] = first_difference(
            made["ours"], hf_merges(made["Hugging Face tokenizers"])
        )
    return result


def first_difference(ours: BPETokenizer, theirs: list) -> int | None:
    """Where, counted from 0, the first merge is that differs; None if none does."""
    learnt = [(ours.tokens[a], ours.tokens[b]) for a, b in ours.merges]
    different = [a != b for a, b in zip(learnt, theirs, strict=True)]
    return different.index(True) if True in different else None
