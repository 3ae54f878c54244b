"""Trains the model of the site's live page, chapter 07's, and keeps it in float16.

    python site/model.py

takes chapter 07's run where it is there, else some minutes. Its loss over the whole
validation text, after rounding to float16, is printed and noted in model/config.json.
"""

import sys
from pathlib import Path

import torch

SITE = Path(__file__).resolve().parent
sys.path.insert(0, str(SITE.parent / "notebooks"))

from course import models  # noqa: E402
from tinygpt_lib import (  # noqa: E402
    CharTokenizer,
    evaluate,
    load_shakespeare,
    save_checkpoint,
    split,
)
from tinygpt_lib.training import cpu_preset  # noqa: E402


def main():
    text = load_shakespeare()
    tokenizer = CharTokenizer.from_text(text)
    data = split(tokenizer.encode(text))
    models.RUNS = SITE.parent / "runs/chapters"
    model, _ = models.trained(
        "cpu", *cpu_preset(tokenizer.vocab_size), *data, tokenizer
    )
    model = model.half()
    loss = evaluate(model.float(), data[1])
    about = {"name": "The GPT of chapter 07", "nats per character": round(loss, 4)}
    save_checkpoint(SITE / "model", model.half(), tokenizer, about)
    size = sum(path.stat().st_size for path in (SITE / "model").iterdir())
    print(f"{loss:.4f} nats per character over the whole validation text")
    print(f"{size / 1e6:.2f} MB, torch {torch.__version__}")


if __name__ == "__main__":
    main()
