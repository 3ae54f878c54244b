"""The same small GPT on each tokenizer, equal training time: bits per byte.

    python benchmarks/tokenizers_compare.py times             measure ms a step; alone
    python benchmarks/tokenizers_compare.py times NAME        one, by CPU time, any time
    python benchmarks/tokenizers_compare.py train NAME SEED   one run, any time
    python benchmarks/tokenizers_compare.py names             what NAME can be

The model is that of chapter 07's preset, and so are all settings of the training; only
the number of steps differs. `times` times the steps of all tokenizers in turns, with
all threads and nothing else running, and gives each as many steps as fit into BUDGET
seconds. A run of a fixed number of steps gives the same loss on a busy machine, so
the runs can be made at any time. All results are in tokenizers.json beside this file.

Pieces see further back than characters and read more text in the same time. Two
controls: "char 145" has windows as long as those of 1,024 pieces, in the same time;
"bpe 1024 less" reads only as much text as characters do. The controls are younger than
the other runs, and models begin with other random numbers now: char with seed 0 was
2.617 bits per byte and is 2.603.
"""

import argparse
import json
import math
import statistics
import time
from dataclasses import replace
from pathlib import Path

import harness
import torch

from tinygpt_lib import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    NGram,
    TrainConfig,
    WordTokenizer,
    load_shakespeare,
    new_model,
    split,
    train,
)
from tinygpt_lib.tokenizers import score_text
from tinygpt_lib.training import cpu_preset

RESULTS = Path(__file__).with_name("tokenizers.json")
BUDGET = 40  # seconds of training for each, by the times measured
BPE_SIZES = (300, 512, 1024, 2048, 4096)
WORD_SIZES = (4096,)
KINDS = {
    "char": (CharTokenizer, {}),
    "byte": (ByteTokenizer, {}),
    **{f"bpe {n}": (BPETokenizer, {"vocab_size": n}) for n in BPE_SIZES},
    **{f"word {n}": (WordTokenizer, {"vocab_size": n}) for n in WORD_SIZES},
}
WINDOWS = {"char 145": 145}  # instead of the preset's 64
AS_MUCH = {"bpe 1024 less": ("bpe 1024", "char")}  # the first reads as the second did
NAMES = (*KINDS, *WINDOWS, *AS_MUCH)


def tokenizer_named(name: str):
    """Fitted on the training text alone; only char sees which characters exist."""
    kind, settings = KINDS.get(name) or KINDS[name.split()[0]]
    text = load_shakespeare()
    return kind.from_text(text if kind is CharTokenizer else split(text)[0], **settings)


def prepared(name: str, seed: int):
    """Tokenizer, untrained model, settings, and the ids of both parts of the text."""
    tokenizer = tokenizer_named(name)
    model_config, config = cpu_preset(tokenizer.vocab_size)
    block_size = WINDOWS.get(name, model_config.block_size)
    model_config = replace(model_config, block_size=block_size)
    torch.manual_seed(seed)
    _, *ids = harness.corpus(tokenizer)
    return (
        tokenizer,
        new_model(model_config),
        replace(config, seed=seed, eval_every=0),
        *ids,
    )


def update(section: str, values: dict) -> None:
    """Puts values into a section of the results; several runs may do so at once."""

    def change(results):
        merged = {**results.get(section, {}), **values}
        results[section] = dict(sorted(merged.items()))

    harness.update(RESULTS, change)


def times(rounds: int = 5, steps: int = 30) -> None:
    """Seconds a step for each tokenizer, in turns; and the steps that BUDGET allows."""
    seconds = {name: [] for name in KINDS}
    ready = {name: prepared(name, 0) for name in KINDS}
    for turn in range(rounds + 1):
        for name, (_, model, config, train_ids, val_ids) in ready.items():
            short = TrainConfig(
                steps=steps, learning_rate=config.learning_rate, eval_every=0
            )
            # Validating on two tokens, so that only the steps are timed.
            history = train(model, train_ids, val_ids[:2], short, progress=False)
            if turn:  # the first warms up
                seconds[name].append(history.seconds / steps)
    for name, values in seconds.items():
        median = statistics.median(values)
        measured = {
            "vocab_size": ready[name][1].config.vocab_size,
            "parameters": ready[name][1].n_parameters(),
            "ms_per_step": round(1000 * median, 3),
            "ms_min_max": [round(1000 * f(values), 3) for f in (min, max)],
            "threads": torch.get_num_threads(),
            "steps": round(BUDGET / median),
        }
        print(name, measured)
        update("times", {name: measured})


def time_beside_char(name: str, rounds: int = 5, steps: int = 20) -> None:
    """What `times` measures, from CPU seconds beside those of char, on one thread."""
    torch.set_num_threads(1)
    seconds = {"char": [], name: []}
    ready = {each: prepared(each, 0) for each in seconds}
    for _ in range(rounds + 1):
        for each, (_, model, config, train_ids, val_ids) in ready.items():
            short = replace(config, steps=steps)
            begin = time.process_time()
            train(model, train_ids, val_ids[:2], short, progress=False)
            seconds[each].append((time.process_time() - begin) / steps)
    char, its = (values[1:] for values in seconds.values())  # the first warms up
    ratio = statistics.median(i / c for c, i in zip(char, its, strict=True))
    ms = json.loads(RESULTS.read_text())["times"]["char"]["ms_per_step"] * ratio
    model = ready[name][1]
    measured = {
        "vocab_size": model.config.vocab_size,
        "parameters": model.n_parameters(),
        "ms_per_step": round(ms, 3),
        "cpu_seconds_over_chars": round(ratio, 3),
        "steps": round(1000 * BUDGET / ms),
    }
    print(name, measured)
    update("times", {name: measured})


def planned_steps(name: str, tokens: int, per_step: int) -> int:
    """As many as fit into BUDGET, or as read as much text as another kind's run."""
    results = json.loads(RESULTS.read_text())
    if name not in AS_MUCH:
        return results["times"][name]["steps"]
    epochs = results["runs"][f"{AS_MUCH[name][1]} seed 0"]["epochs"]
    return round(epochs * tokens / per_step)


def spelling_nats(tokenizer: WordTokenizer, text: str) -> float:
    """What a 6-gram of characters pays to spell the unknown words of text.

    It has read the training text, sees the true text before each word, and also has
    to predict the character after the word, which says where the word ends.
    """
    train_text = split(load_shakespeare())[0]
    characters = CharTokenizer.from_text(load_shakespeare())
    ngram = NGram(characters.encode(train_text), 6, characters.vocab_size, strength=30)
    context = 5
    ids = characters.encode(train_text[-context:] + text)
    targets = ids[1:]
    nats = torch.empty(len(targets))
    with torch.no_grad():
        for start in range(0, len(targets), 8192):
            first = max(0, start - context)
            log_p = ngram(ids[None, first : start + 8192])[0, start - first :]
            chosen = targets[start : start + len(log_p), None]
            nats[start : start + len(log_p)] = -log_p.gather(1, chosen)[:, 0]
    nats = nats[context - 1 :]  # of each character of text
    total, place = 0.0, 0
    for i, (number, piece) in enumerate(
        zip(tokenizer.encode(text).tolist(), tokenizer.pieces(text), strict=True)
    ):
        end = place + len(piece.decode())
        if number < 2 and i > 0:  # the first token is no prediction
            place += number == 1  # the blank before it was predicted
            total += nats[place : end + 1].sum().item()
        place = end
    return total


def run(name: str, seed: int) -> None:
    """Trains one model and keeps its score."""
    trains = AS_MUCH[name][0] if name in AS_MUCH else name
    tokenizer, model, config, train_ids, val_ids = prepared(trains, seed)
    per_step = config.batch_size * model.config.block_size
    config = replace(config, steps=planned_steps(name, len(train_ids), per_step))
    begin = time.perf_counter()
    history = train(model, train_ids, val_ids[:2], config, progress=False)
    val_text = split(load_shakespeare())[1]
    score = score_text(model, tokenizer, val_text)
    result = {
        "bits_per_byte": round(score.bits_per_byte, 4),
        "nats_per_token": round(score.nats_per_token, 4),
        "last_training_loss": round(statistics.mean(history.losses[-50:]), 4),
        "tokens": score.n_tokens,
        "bytes": score.n_bytes,
        "unknown": score.n_unknown,
        "steps": config.steps,
        "epochs": round(config.steps * per_step / len(train_ids), 2),
        "seconds_of_this_run": round(history.seconds, 1),
        "threads_of_this_run": torch.get_num_threads(),
        "seconds_in_all": round(time.perf_counter() - begin, 1),
    }
    if score.n_unknown:
        extra = spelling_nats(tokenizer, val_text) / math.log(2) / score.n_bytes
        result["bits_per_byte_spelled"] = round(score.bits_per_byte + extra, 4)
    print(name, seed, result)
    update("runs", {f"{name} seed {seed}": result})


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("what", choices=("times", "train", "names"))
    options.add_argument("name", nargs="?", choices=NAMES)
    options.add_argument("seed", nargs="?", type=int, default=0)
    given = options.parse_args()
    if given.what == "names":
        print(*NAMES, sep="\n")
    elif given.what == "times":
        times() if given.name is None else time_beside_char(given.name)
    elif given.name is None:
        options.error("train needs a NAME and a SEED")
    else:
        run(given.name, given.seed)


if __name__ == "__main__":
    main()
