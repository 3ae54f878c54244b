"""Measures the library's figures on this machine, interleaved: `make bench`.

    python benchmarks/bench.py [--repeats 5]

Prints a table and writes benchmarks/results.json. Nothing else should be running.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from tinygpt_lib import (
    GPT,
    CharTokenizer,
    GPTConfig,
    TrainConfig,
    generate,
    load_shakespeare,
    split,
    train,
)

HERE = Path(__file__).parent


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest of several measurements."""
    return {
        "median": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
    }


def generation(repeats: int) -> dict:
    """Tokens/s at 10M parameters: window 256, prompt of 192, then 64 tokens."""
    torch.manual_seed(0)
    config = GPTConfig(65, block_size=256, n_layer=6, n_head=6, n_embd=384)
    model, prompt = GPT(config), torch.randint(65, (1, 192))
    speeds = {True: [], False: []}
    generate(model, prompt, 8)
    for _ in range(repeats):
        for use_cache in (True, False):
            begin = time.perf_counter()
            generate(model, prompt, 64, use_cache=use_cache)
            speeds[use_cache].append(64 / (time.perf_counter() - begin))
    ratios = [a / b for a, b in zip(speeds[True], speeds[False], strict=True)]
    return {
        "parameters": model.n_parameters(),
        "tokens/s with cache": spread(speeds[True]),
        "tokens/s without": spread(speeds[False]),
        "ratio": spread(ratios),
    }


def training(repeats: int) -> dict:
    """Tokens/s of training: 4 layers of 128, windows of 64, batches of 12, float32."""
    ids = CharTokenizer.from_text(text := load_shakespeare()).encode(text)
    train_ids, val_ids = split(ids)
    speeds = []
    for _ in range(repeats):
        config = TrainConfig(steps=100, eval_every=0)
        history = train(
            GPT(GPTConfig(65)), train_ids, val_ids[:2], config, progress=False
        )
        speeds.append(100 * 12 * 64 / history.seconds)
    return {"tokens/s": spread(speeds)}


def imports(repeats: int) -> dict:
    """Seconds that `import tinygpt_lib` costs over `import torch`, new processes."""
    code = "from time import perf_counter as t; b = t(); import {}; print(t() - b)"
    seconds = {"torch": [], "tinygpt_lib": []}
    for _ in range(repeats):
        for name, values in seconds.items():
            run = [sys.executable, "-c", code.format(name)]
            values.append(float(subprocess.check_output(run)))
    over = zip(seconds["tinygpt_lib"], seconds["torch"], strict=True)
    return {"seconds over torch": spread([ours - torchs for ours, torchs in over])}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--repeats", type=int, default=5)
    repeats = options.parse_args().repeats
    results = {
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "generation": generation(repeats),
        "training": training(repeats),
        "import": imports(repeats),
    }
    text = json.dumps(results, indent=2)
    (HERE / "results.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
