"""Texts, large and odd: time and memory until a run can begin, beside the peers.

The texts are made on the spot from a seed. Each measurement is a process of its own
with one thread: `cpu` is its user and system time after the imports, `added` the MB by
which its peak stands above what they and the text, where it is held, take.

    python benchmarks/big_text.py            all, into big_text.json (ten minutes)
    python benchmarks/big_text.py NAME ...   some of it
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from bpe_speed import hf_from
from harness import REPO, keep, machine, significant, today, versions

from tinygpt_lib import BPETokenizer, ByteTokenizer, CharTokenizer, evaluate
from tinygpt_lib.basics.texts import Text, read_texts
from tinygpt_lib.commands.common import encode_parts, text_of
from tinygpt_lib.runs import run
from tinygpt_lib.runs.data import Data, small_ids
from tinygpt_lib.runs.models import new_model
from tinygpt_lib.runs.pairs import encode_chunks, learn_merges
from tinygpt_lib.runs.presets import PRESETS
from tinygpt_lib.runs.tokenizers import TEXT_TOKENIZERS
from tinygpt_lib.speed import FastConfig

OUT = Path(__file__).with_suffix(".json")
MB = 10**6


def made(n_bytes: int, seed: int = 0) -> str:
    """Words of made-up syllables, as often as words are (Zipf), some are Chinese."""
    chance = np.random.default_rng(seed)
    heads = [*"bcdfghlmnprstvw", "st", "th", "tr", "ch", "sh", ""]
    syllables = [h + v + e for h in heads for v in "aeiou" for e in ["", *"nrstl"]]
    sizes = np.minimum(chance.geometric(0.45, 200_000), 6)
    drawn = iter(chance.choice(syllables, sizes.sum()).tolist())
    words = ["".join(next(drawn) for _ in range(n)) for n in sizes.tolist()]
    for i in range(7, len(words), 50):
        words[i] = "".join(map(chr, chance.integers(0x4E00, 0x5600, 2)))
    share = 1 / np.arange(1, len(words) + 1) ** 1.05
    edges = np.cumsum(share / share.sum())
    ends = [*" " * 7, ", ", ". ", "\n", "; ", " 1984 ", "'s "]
    parts, size = [], 0
    while size < n_bytes:
        ids = np.searchsorted(edges, chance.random(100_000)).clip(max=len(words) - 1)
        marks = chance.choice(ends, len(ids)).tolist()
        piece = "".join(words[i] + e for i, e in zip(ids.tolist(), marks, strict=True))
        parts.append(piece)
        size += len(piece.encode())
    return "".join(parts).encode()[:n_bytes].decode(errors="ignore")


def letters(n: int) -> str:
    """Made text without a blank: one chunk of letters."""
    return "".join(filter(str.isalpha, made(2 * n)))[:n]


def make_files(folder: Path) -> None:
    """The texts, before they are measured: making them takes memory, too."""
    text = made(100 * MB)
    data = text.encode()
    files = {f"{n}": data[: n * MB].decode(errors="ignore") for n in (100, 20, 2)}
    files |= {"letters 10": letters(10 * MB), "letters 1": letters(MB)}
    files |= {"= 1": "=" * MB, "blanks 1": " " * MB}
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")


# --- What one process measures: (prepare, the work, what more to note) ---


def begun(kind: str):
    """What `train` does with a text before its first step."""

    def work(_, folder):
        name, data = text_of(SimpleNamespace(text=[f"{folder}/100"]), {})
        parts = encode_parts(data.learn(TEXT_TOKENIZERS[kind]), name, data)
        held = sum(ids.array.itemsize * len(ids) for ids in parts)
        return {"bytes a token": held / sum(map(len, parts))}

    return None, work


def encoded(make, encode):
    """Encoding by a tokenizer that is there already; with the ids, their size."""

    def prepare(folder):
        text = read(folder, "20")
        return make(text), text

    def work(both, folder):
        ids = encode(*both)
        size = sys.getsizeof(ids) if isinstance(ids, list) else ids.nbytes
        return {"tokens": len(ids), "MB of ids": size / MB}

    return prepare, work


def held(kind, learnt_from: str):
    """Encoding as a run does it: from a file, to ids as it keeps them."""

    def prepare(folder):
        seen, text = (read_texts([f"{folder}/{n}"])[0] for n in (learnt_from, "20"))
        return Data(seen).learn(kind, 1024), Data(text)

    def work(both, folder):
        return {"tokens": sum(map(len, both[1].encode(both[0])))}

    return prepare, work


def bpe(text: str) -> BPETokenizer:
    """Byte pairs of its beginning, up to 1,024 tokens."""
    return Data(Text.of(text[: 2 * MB])).learn(BPETokenizer, 1024)


def read(folder: str, name: str) -> str:
    return (Path(folder) / name).read_text("utf-8")


def tiktoken_of(ours: BPETokenizer):
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str

    ranks = {token: i for i, token in enumerate(ours.tokens)}
    return tiktoken.Encoding(
        "ours", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={}
    )


def by_lines(theirs, text: str) -> np.ndarray:
    lines = text.splitlines(keepends=True)
    return np.concatenate([np.uint16(theirs.encode(line).ids) for line in lines])


def trained_by_ours(size):
    def work(_, folder):
        text, _ = read_texts([f"{folder}/20"])
        return {"merges": len(Data(text).learn(BPETokenizer, size).merges)}

    return None, work


def trained_by_hf(size):
    def work(_, folder):
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=size, initial_alphabet=alphabet, show_progress=False
        )
        text = read(folder, "20")
        lines = text[: len(text) * 9 // 10].splitlines(keepends=True)  # as ours
        tokenizer.train_from_iterator(lines, trainer)
        return {"merges": tokenizer.get_vocab_size() - 256}

    return None, work


LONG = ("=", "blanks", "letters")


def one_chunk(name: str, peer: bool):
    def prepare(folder):
        ours = bpe(read(folder, "2"))
        return (tiktoken_of(ours) if peer else ours), read(folder, f"{name} 1")

    def work(both, folder):
        tokenizer, text = both
        if peer:
            return {"tokens": len(tokenizer.encode_ordinary(text))}
        return {"tokens": len(encode_chunks(tokenizer, [text.encode()])[0])}

    return prepare, work


def without_a_blank(text, folder):
    begin = time.process_time()
    merges = learn_merges({text.encode(): 1}, 768)
    train = time.process_time() - begin
    tokenizer = BPETokenizer(merges)
    encode_chunks(tokenizer, [text.encode()])
    return {"train": train, "encode": time.process_time() - begin - train}


def many_characters(_, folder):
    import torch

    model = new_model(FastConfig(5006, 64, 2, 2, 32)).eval()
    evaluate(model, torch.randint(5006, (129,)))
    before = peak()
    evaluate(model, torch.randint(5006, (50_000,)))
    return {"MB more": peak() - before}


def validation(_, folder):
    """A default run but for its end: seconds of validation beside those of the rest."""
    data = Data(read_texts([f"{folder}/20"])[0])
    tokenizer, spent = data.learn(CharTokenizer), []
    real = run.Run.validate

    def validate(self, parts):
        begin = time.process_time()
        loss = real(self, parts)
        spent.append(time.process_time() - begin)
        return loss

    def stop(self, quiet=True):
        raise KeyboardInterrupt

    run.Run.validate, run.Run.whole = validate, stop
    parts = data.encode(tokenizer)
    config, plan = PRESETS["cpu"](tokenizer.vocab_size)
    begin = time.process_time()
    try:
        run.train(new_model(config), *parts, plan, progress=False)
    except KeyboardInterrupt:
        pass
    took = time.process_time() - begin
    return {"validation": sum(spent), "run": took, "share": sum(spent) / took}


NAMES = {
    **{f"begin 100 MB, {kind}": begun(kind) for kind in TEXT_TOKENIZERS},
    "encode bytes": encoded(ByteTokenizer.from_text, ByteTokenizer.encode),
    "encode bytes, held": encoded(ByteTokenizer.from_text, small_ids),
    "encode characters": encoded(CharTokenizer.from_text, CharTokenizer.encode),
    "encode characters, held": held(CharTokenizer, "20"),
    "train 1024, ours": trained_by_ours(1024),
    "train 1024, HF": trained_by_hf(1024),
    "train 8192, ours": trained_by_ours(8192),
    "train 8192, HF": trained_by_hf(8192),
    "encode bpe, ours": held(BPETokenizer, "2"),
    "encode bpe, HF by lines": encoded(lambda text: hf_from(bpe(text)), by_lines),
    "encode bpe, tiktoken": encoded(
        lambda text: tiktoken_of(bpe(text)), lambda t, x: t.encode_ordinary(x)
    ),
    **{
        f"one chunk of {name}, {who}": one_chunk(name, who == "tiktoken")
        for name in LONG
        for who in ("ours", "tiktoken")
    },
    "10 MB without a blank": (
        lambda folder: read(folder, "letters 10"),
        without_a_blank,
    ),
    "validation of 5,006 characters": (None, many_characters),
    "validation in a default run": (None, validation),
}


def peak() -> float:
    """The most that this process ever held, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MB


def measure(name: str, folder: str) -> dict:
    """What this process, in which nothing else has happened, needs for one of NAMES."""
    prepare, work = NAMES[name]
    os.environ["TINYGPT_DATA"] = f"{folder}/cache of {name}"
    given = prepare(folder) if prepare else None
    before, begin = peak(), time.process_time()
    more = work(given, folder)
    cpu, most = time.process_time() - begin, peak()
    found = {"cpu": cpu, "peak MB": most, "added MB": most - before, **more}
    return {k: significant(v) for k, v in found.items()}


def main(names: list[str]) -> None:
    """Measures by name, each in a process of its own, and keeps what they found."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        # Made elsewhere: a process takes over the peak of the one that starts it.
        make = [sys.executable, __file__, "--make", folder]
        subprocess.run(make, cwd=REPO, check=True)
        for name in names or NAMES:
            command = [sys.executable, __file__, "--one", name, folder]
            done = subprocess.run(
                command, cwd=REPO, env=env, capture_output=True, text=True
            )
            if done.returncode:  # a peer's limit, of its stack, is a result too
                found = {"failed": (done.stderr.splitlines() or ["killed"])[-1][:100]}
            else:
                found = json.loads(done.stdout.splitlines()[-1])
            print(f"{name:32}", *(f"{k} {v}" for k, v in found.items()), sep="  ")
            keep(OUT, name, found)
    keep(OUT, "machine", machine())
    keep(OUT, "versions", versions("tiktoken", "tokenizers"))
    keep(OUT, "date", today())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(*sys.argv[2:])))
    elif sys.argv[1:2] == ["--make"]:
        make_files(Path(sys.argv[2]))
    else:
        main(sys.argv[1:])
