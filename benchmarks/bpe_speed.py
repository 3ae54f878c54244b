"""BPE, ours beside minbpe and Hugging Face tokenizers: seconds, in one run.

    git clone https://github.com/karpathy/minbpe /tmp/minbpe
    pip install tokenizers
    python benchmarks/bpe_speed.py --minbpe /tmp/minbpe

On the first million characters of the corpus, 1,024 tokens. All three split as GPT-2
does. Merges must be equal to minbpe's, and the ids of all three with those merges;
Hugging Face breaks ties otherwise, so the merges that it learns may differ from the
first tie on, and are counted. Writes bpe_speed.json beside this file.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread for all three

from tinygpt_lib import BPETokenizer, load_shakespeare
from tinygpt_lib.tokenizers import gpt2_alphabet

SIZE, CHARACTERS = 1024, 1_000_000


def timed(function):
    """Seconds that a call takes, and what it returns."""
    begin = time.perf_counter()
    result = function()
    return time.perf_counter() - begin, result


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


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--minbpe", type=Path, required=True, help="its checkout")
    options.add_argument("--repeats", type=int, default=7, help="of all but its slow")
    given = options.parse_args()
    sys.path.insert(0, str(given.minbpe))
    import tokenizers
    from minbpe.regex import GPT2_SPLIT_PATTERN, RegexTokenizer

    text = load_shakespeare()[:CHARACTERS]
    BPETokenizer.from_text(text[:1000])  # imports regex
    seconds = {what: [] for what in ("train ours", "train hf", "encode ours")}
    seconds["encode hf"] = []
    for _ in range(given.repeats):
        elapsed, ours = timed(lambda: BPETokenizer.from_text(text, SIZE))
        seconds["train ours"].append(elapsed)
        elapsed, theirs = timed(lambda: hf_trained(text))
        seconds["train hf"].append(elapsed)
        elapsed, ids = timed(lambda ours=ours: ours.encode(text))
        seconds["encode ours"].append(elapsed)
        fresh = hf_from(ours)
        elapsed, hf_ids = timed(lambda fresh=fresh: fresh.encode(text).ids)
        seconds["encode hf"].append(elapsed)

    peer = RegexTokenizer(GPT2_SPLIT_PATTERN)
    elapsed, _ = timed(lambda: peer.train(text, SIZE))
    seconds["train minbpe"] = [elapsed]
    seconds["encode minbpe"] = []
    for _ in range(3):
        elapsed, peer_ids = timed(lambda: peer.encode(text))
        seconds["encode minbpe"].append(elapsed)

    learnt = [(ours.tokens[a], ours.tokens[b]) for a, b in ours.merges]
    same = [a == b for a, b in zip(learnt, hf_merges(theirs), strict=True)]
    median = {what: statistics.median(values) for what, values in seconds.items()}
    results = {
        "characters": len(text),
        "vocab_size": SIZE,
        "tokens": len(ids),
        "seconds": {
            what: {
                "median": round(median[what], 4),
                "min": round(min(values), 4),
                "max": round(max(values), 4),
                "runs": len(values),
            }
            for what, values in seconds.items()
        },
        "training, times as fast as minbpe": round(
            median["train minbpe"] / median["train ours"], 1
        ),
        "encoding, times as fast as minbpe": round(
            median["encode minbpe"] / median["encode ours"], 1
        ),
        "training, times as slow as Hugging Face": round(
            median["train ours"] / median["train hf"], 2
        ),
        "encoding, times as slow as Hugging Face": round(
            median["encode ours"] / median["encode hf"], 2
        ),
        "merges equal to minbpe's": list(peer.merges) == ours.merges,
        "ids equal to minbpe's": peer_ids == ids.tolist(),
        "ids equal to Hugging Face's with our merges": hf_ids == ids.tolist(),
        "first merge that differs from Hugging Face's own": (
            same.index(False) if False in same else None
        ),
        "python": platform.python_version(),
        "tokenizers": tokenizers.__version__,
    }
    report = json.dumps(results, indent=2)
    Path(__file__).with_name("bpe_speed.json").write_text(report + "\n")
    print(report)


if __name__ == "__main__":
    main()
