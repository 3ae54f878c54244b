"""Ours beside the peers: time to a loss, steps of training, generation, importing.

Each function is a section of bench.py: (peers, repeats) -> plain data.
"""

import json
import re
import statistics
import sys
import tempfile
import time
from functools import partial
from itertools import count
from pathlib import Path

import torch
from harness import (
    REPO,
    comparison,
    corpus,
    process,
    reason,
    spread,
    take_turns,
    tried,
)
from peers import (
    BATCH,
    COMMAND,
    LARGE,
    SMALL,
    VOCAB,
    Peers,
    gpt2_model,
    nanogpt_model,
    prepared_nanogpt,
    x_transformers_model,
)

from tinygpt_lib import FastConfig, evaluate, generate, load_checkpoint, new_model
from tinygpt_lib.runs.presets import PRESETS

PEERS_PY = Path(__file__).with_name("peers.py")


def answer(*arguments) -> dict:
    """What a command of peers.py says, in its last line: peers print others."""
    _, printed = process([sys.executable, PEERS_PY, *arguments])
    return json.loads(printed.splitlines()[-1])


# --- Time to a loss ---

TARGET = 1.898  # nats: where nanoGPT's command was found to end


def speedrun(peers: Peers, repeats: int) -> dict:
    """Whole processes, from start to exit, and the loss that their weights reach.

    Ours with another seed each time; nanoGPT's seed is fixed in its script. Neither
    finds anything compiled by an earlier process.
    """
    preset = "speedrun" if "speedrun" in PRESETS else "cpu"
    here, skipped = peers.present("nanoGPT")
    endings = {"ours": [], "nanoGPT": []}
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        prepare = partial(prepared_nanogpt, peers.nanogpt, scratch)
        nanogpt = tried("nanoGPT", prepare, here, skipped) if here else None
        turns = count()

        def run(command, cwd):
            new = scratch / f"compiled-{next(turns)}"
            return process(command, cwd, TORCHINDUCTOR_CACHE_DIR=str(new))[0]

        def ours():
            seed = len(endings["ours"])
            out = scratch / f"ours-{seed}"
            options = ["--preset", preset, "--seed", seed, "--out", out]
            command = [sys.executable, "-m", "tinygpt_lib", "train", *options]
            seconds = run(command, REPO)
            endings["ours"].append(our_ending(out))
            return seconds

        def theirs():
            out = scratch / f"nanogpt-{next(turns)}"
            command = [sys.executable, *COMMAND, f"--out_dir={out}"]
            seconds = run(command, nanogpt)
            checkpoint = out / "ckpt.pt"
            endings["nanoGPT"].append(answer("loss", nanogpt, checkpoint))
            return seconds

        contenders = {"ours": ours, **({"nanoGPT": theirs} if here else {})}
        got, failed = take_turns(contenders, repeats)
    return {
        "preset": preset,
        "target": TARGET,
        "their command": " ".join(COMMAND),
        **comparison(got, "s"),
        # nanoGPT keeps the weights that it estimated to be its best: see the step.
        "endings": {name: endings[name] for name in got},
        "skipped": skipped | failed,
    }


def our_ending(folder: Path) -> dict:
    """The loss of a run's weights over the whole validation text."""
    model, tokenizer = load_checkpoint(folder)
    _, _, val_ids = corpus(tokenizer)
    return {
        "loss": evaluate(model, val_ids),
        "context": model.config.block_size,
    }


# --- Steps of training ---

WARM_UP, TIMED = 10, 60  # steps of each process


def training(peers: Peers, repeats: int) -> dict:
    """Tokens/s at nanoGPT's shape and batch: float32, eager, AdamW, clipped gradients.

    Each process counts by the median of its steps, batches and the reading of the loss
    included, the first few and all evaluations left out.
    """
    names = ("nanoGPT", "x-transformers", "Hugging Face GPT-2")
    here, skipped = peers.present(*names)
    parameters = {}

    def by_us(name):
        result = answer("train", name, WARM_UP + TIMED)
        parameters[name] = result["parameters"]
        return tokens_per_second(result["ms"])

    with tempfile.TemporaryDirectory() as scratch:

        def by_itself(nanogpt):
            last = [f"--max_iters={WARM_UP + TIMED - 1}", "--eval_interval=1000000"]
            command = [sys.executable, *COMMAND, *last, f"--out_dir={scratch}/out"]
            ms = nanogpt_milliseconds(process(command, nanogpt)[1])
            return tokens_per_second(ms)

        names = ["ours", *(name for name in here if name != "nanoGPT")]
        contenders = {name: partial(by_us, name) for name in names}
        if "nanoGPT" in here:
            prepare = partial(prepared_nanogpt, peers.nanogpt, Path(scratch))
            nanogpt = tried("nanoGPT", prepare, here, skipped)
        if "nanoGPT" in here:
            contenders["nanoGPT"] = partial(by_itself, nanogpt)
            model = nanogpt_model(peers.nanogpt, SMALL)
            parameters["nanoGPT"] = sum(p.numel() for p in model.parameters())
        got, failed = take_turns(contenders, repeats)
    return {
        "shape": {**SMALL, "batch_size": BATCH},
        "parameters": parameters,
        **comparison(got, "tokens/s"),
        "ms per step": {
            name: round(1000 * BATCH * SMALL["block_size"] / statistics.median(v), 2)
            for name, v in got.items()
        },
        "skipped": skipped | failed,
    }


def nanogpt_milliseconds(printed: str) -> list[float]:
    """The times that nanoGPT's log gives for its iterations, in their order."""
    found = re.findall(r"^iter \d+: loss [\d.]+, time ([\d.]+)ms", printed, re.M)
    if not found:
        raise RuntimeError("nanoGPT's log holds no line that begins with iter")
    return [float(ms) for ms in found]


def tokens_per_second(ms: list[float]) -> float:
    """By the median of the steps after the warm-up."""
    return 1000 * BATCH * SMALL["block_size"] / statistics.median(ms[WARM_UP:])


# --- Generation ---

PROMPT, NEW, TEMPERATURE = 192, 64, 0.8


def generation(peers: Peers, repeats: int) -> dict:
    """Tokens/s at 10 million parameters: a prompt of 192 tokens, then 64 more.

    Untrained weights, temperature 0.8, no cut: what is drawn does not change the time.
    All contenders live in one process. The batch takes longer, and half the rounds.
    """
    names = ("nanoGPT", "Hugging Face GPT-2", "x-transformers")
    here, skipped = peers.present(*names)
    writers, parameters = {}, {}
    torch.manual_seed(0)
    for name in ("ours", *here):
        try:
            model, write = WRITERS[name](peers)
            writers[name] = partial(write, model.eval())
            writers[name](torch.zeros(1, PROMPT, dtype=torch.int64), 2)  # warms up
        except Exception as error:  # a peer of another version than we know
            if name == "ours":
                raise
            skipped[name] = f"failed: {reason(error)}"
            writers.pop(name, None)
        else:
            parameters[name] = sum(p.numel() for p in model.parameters())
    writers["ours, no cache"] = partial(writers["ours"], use_cache=False)
    result = {
        "shape": LARGE,
        "prompt": PROMPT,
        "new": NEW,
        "temperature": TEMPERATURE,
        "parameters": parameters,
    }
    for kind, streams in (("one stream", 1), ("batch of 8", 8)):
        prompt = torch.randint(VOCAB, (streams, PROMPT))

        def speed(write, prompt=prompt):
            begin = time.perf_counter()
            shape = tuple(write(prompt, NEW).shape)
            seconds = time.perf_counter() - begin
            if shape[1] not in (NEW, PROMPT + NEW):  # with the prompt or without
                raise RuntimeError(f"wrote {shape} instead of {NEW} tokens each")
            return len(prompt) * NEW / seconds

        rounds = repeats if streams == 1 else max(1, repeats // 2)
        contenders = {name: partial(speed, write) for name, write in writers.items()}
        got, failed = take_turns(contenders, rounds)
        skipped |= failed
        result[kind] = comparison(got, "tokens/s")
        writers = {name: writers[name] for name in got}
    return {**result, "skipped": skipped}


def our_writer(peers):
    def write(model, ids, n, use_cache=True):
        return generate(model, ids, n, temperature=TEMPERATURE, use_cache=use_cache)

    return new_model(FastConfig(VOCAB, **LARGE)), write


def nanogpt_writer(peers):
    def write(model, ids, n):  # top_k as its sample.py has it: more than there are
        return model.generate(ids, n, temperature=TEMPERATURE, top_k=200)

    return nanogpt_model(peers.nanogpt, LARGE), write


def gpt2_writer(peers):
    def write(model, ids, n):
        return model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=n,
            min_new_tokens=n,
            do_sample=True,
            temperature=TEMPERATURE,
            top_k=0,
            use_cache=True,
            pad_token_id=0,
        )

    return gpt2_model(LARGE), write


def x_transformers_writer(peers):
    def write(model, ids, n):
        return model.generate(
            ids,
            n,
            temperature=TEMPERATURE,
            filter_logits_fn=lambda logits: logits,
            cache_kv=True,
        )

    return x_transformers_model(LARGE), write


WRITERS = {
    "ours": our_writer,
    "nanoGPT": nanogpt_writer,
    "Hugging Face GPT-2": gpt2_writer,
    "x-transformers": x_transformers_writer,
}

# --- Importing ---


def imports(peers: Peers, repeats: int) -> dict:
    """Seconds that `import tinygpt_lib` takes after `import torch`, new processes."""
    code = (
        "from time import perf_counter as t; a = t(); import torch; b = t(); "
        "import tinygpt_lib; print(b - a, t() - b)"
    )

    def seconds() -> list[float]:
        return [float(s) for s in process([sys.executable, "-c", code])[1].split()]

    seconds()  # the files are in memory from now on
    torchs, ours = zip(*(seconds() for _ in range(repeats)), strict=True)
    return {"seconds": {"torch": spread(torchs), "over torch": spread(ours)}}
