"""What belongs to the whole process is after each call what it was before it.

One row for each public name: a new one fails `test_every_public_name_has_a_row`.
"""

import os
import random
import signal
import sys
import threading
import warnings
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_detect import SETTINGS, blank

import tinygpt_lib as lib

SHAPE = {"block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8}
SESSIONS = [["a", "b", "c"]] * 30


@dataclass
class Row:
    """How a name is used, and how it is used wrongly, with the things there are."""

    right: object
    wrong: object = None
    draws: bool = False  # random numbers of the process, as weights and dropout do


def ids_of(t):
    return t.song.train_ids[:65]


def fit(t, sessions=SESSIONS):
    detector = lib.AnomalyDetector.fit(sessions, false_alarms=0.2, folds=2)
    detector.save(t.folder / "detector")
    again = lib.AnomalyDetector.load(t.folder / "detector")
    return again.score([["a", "d"]]), again.explain(["a"]), use(again.stream())


def use(stream):
    stream.push("one", "a")
    return stream.report("one"), stream.close("one")


def train(t, rate=1e-3, **options):
    parts, config = (t.song.train_ids, t.song.val_ids), {"steps": 2, "batch_size": 2}
    plan = lib.TrainConfig(**config, learning_rate=rate, eval_every=1)
    return lib.train(t.model, *parts, plan, progress=False, **options)


def tokenizer(kind, wrong):
    def right(t):
        made = kind.from_text(t.song.text)
        assert made.decode(made.encode("99")) and made.from_dict(made.to_dict())

    return Row(right, wrong)


def stepped(optimizer):
    def right(t):
        made = optimizer(t)
        t.model(ids_of(t)[None, :8]).sum().backward()
        made.step()
        made.zero_grad()

    return right


def module(make, wrong=None):
    return Row(lambda t: make()(torch.ones(1, 4, 8)), wrong, draws=True)


@torch.no_grad()
def read(cache, t):
    cache.read(ids_of(t)[None, :4])


def nan(t):
    with torch.no_grad():
        next(t.model.parameters()).fill_(float("nan"))
    return train(t)


Q = torch.ones(1, 2, 4, 8)
ROWS = {
    "GPT": Row(
        lambda t: lib.GPT(lib.GPTConfig(30, **SHAPE))(ids_of(t)[None, :8] % 30),
        lambda t: t.model(torch.full((1, 3), 10**6)),
        draws=True,
    ),
    "AdamW": Row(stepped(lambda t: lib.AdamW(t.model.parameters())), draws=True),
    "AnomalyDetector": Row(fit, lambda t: fit(t, [])),
    "BPETokenizer": tokenizer(lib.BPETokenizer, lambda t: lib.BPETokenizer([(9, 999)])),
    "Block": module(lambda: lib.Block(8, 2)),
    "ByteTokenizer": tokenizer(
        lib.ByteTokenizer, lambda t: lib.ByteTokenizer().encode("\ud800")
    ),
    "CharTokenizer": tokenizer(lib.CharTokenizer, lambda t: lib.CharTokenizer("aa")),
    "CheckpointError": Row(lambda t: lib.CheckpointError("x")),
    "CorpusError": Row(lambda t: lib.CorpusError("x")),
    "Dropout": module(lambda: lib.Dropout(0.5)),
    "EventStream": Row(lambda t: None, lambda t: lib.EventStream(None, max_sessions=0)),
    "EventTokenizer": Row(
        lambda t: lib.EventTokenizer(["a"]).encode_session(["a", "b"]),
        lambda t: lib.EventTokenizer(["a", "a"]),
    ),
    "FastConfig": Row(
        lambda t: lib.FastConfig(9, **SHAPE), lambda t: lib.FastConfig(0, **SHAPE)
    ),
    "FastGPT": Row(
        lambda t: lib.FastGPT(lib.FastConfig(30, **SHAPE, position="rotary")),
        lambda t: lib.FastGPT(lib.FastConfig(30, **SHAPE, norm="none")),
        draws=True,
    ),
    "FeedForward": module(lambda: lib.FeedForward(8)),
    "GPTConfig": Row(lambda t: lib.GPTConfig(9), lambda t: lib.GPTConfig(9, n_head=0)),
    "KVCache": Row(lambda t: read(lib.KVCache(t.windowed), t)),
    "LayerNorm": module(lambda: lib.LayerNorm(8)),
    "Masks": Row(lambda t: lib.Masks()("a 1"), lambda t: lib.Masks({"<x>": "("})),
    "MultiHeadAttention": module(lambda: lib.MultiHeadAttention(8, 2)),
    "Muon": Row(
        stepped(lambda t: lib.Muon([(t.model.head.weight, 1)], lib.AdamW([]))),
        draws=True,
    ),
    "NGram": Row(
        lambda t: lib.NGram(ids_of(t), 2, 50), lambda t: lib.NGram(ids_of(t), 99, 50)
    ),
    "RMSNorm": module(lambda: lib.RMSNorm(8)),
    "SessionFinder": Row(
        lambda t: lib.SessionFinder("a+")("aa"), lambda t: lib.SessionFinder("(")
    ),
    "TrainConfig": Row(
        lambda t: lib.TrainConfig(), lambda t: lib.TrainConfig(steps=-1)
    ),
    "WindowCache": Row(lambda t: read(lib.WindowCache(t.windowed), t)),
    "WordTokenizer": tokenizer(lib.WordTokenizer, lambda t: lib.WordTokenizer([""])),
    "__version__": Row(lambda t: None),
    "attention": Row(lambda t: lib.attention(Q, Q, Q)),
    "attention_maps": Row(
        lambda t: lib.attention_maps(t.model, ids_of(t)[None, :8]), draws=True
    ),
    "bits_per_event": Row(
        lambda t: lib.bits_per_event(t.model, [ids_of(t)]),
        lambda t: lib.bits_per_event(t.model, []),
    ),
    "choose_device": Row(
        lambda t: lib.choose_device(), lambda t: lib.choose_device("tpu")
    ),
    "embed": Row(
        lambda t: lib.embed(t.model, t.song.tokenizer, ["99 green"]),
        lambda t: lib.embed(t.model, t.song.tokenizer, ["\u2603"]),
    ),
    "evaluate": Row(
        lambda t: lib.evaluate(t.model, ids_of(t)),
        lambda t: lib.evaluate(t.model, ids_of(t) + 1000),
    ),
    "generate": Row(
        lambda t: lib.generate(
            t.model, ids_of(t)[None, :4], 9, generator=torch.Generator()
        ),
        lambda t: lib.generate(t.model, ids_of(t)[None], 9, temperature=-1.0),
    ),
    "get_batch": Row(
        lambda t: lib.get_batch(ids_of(t), 2, 8, torch.Generator()),
        lambda t: lib.get_batch(ids_of(t), 2, 8000),
    ),
    "group_lines": Row(
        lambda t: lib.group_lines(["a1", "a2"], lib.SessionFinder("a")),
        lambda t: lib.group_lines([1], lib.SessionFinder("a")),
    ),
    "hidden_states": Row(
        lambda t: lib.hidden_states(t.model, ids_of(t)[None, :8]), draws=True
    ),
    "keep_freed_memory": Row(lambda t: None),  # what it says is that it changes it
    "load_checkpoint": Row(
        lambda t: lib.load_checkpoint(t.saved), lambda t: lib.load_checkpoint(t.folder)
    ),
    "load_shakespeare": Row(
        lambda t: lib.load_shakespeare(), lambda t: with_data(t.saved)
    ),
    "loss_by_position": Row(
        lambda t: lib.loss_by_position(t.model, ids_of(t)),
        lambda t: lib.loss_by_position(t.model, ids_of(t)[:1]),
    ),
    "new_model": Row(
        lambda t: lib.new_model(lib.FastConfig(30, **SHAPE)),
        lambda t: lib.new_model(lib.FastConfig(30, **SHAPE, norm="none")),
        draws=True,
    ),
    "processes": Row(lambda t: alone(), lambda t: alone(torch.zeros(2) + "x")),
    "read_lines": Row(
        lambda t: [*lib.read_lines(str(t.text))],
        lambda t: [*lib.read_lines(str(t.folder / "none"))],
    ),
    "save_checkpoint": Row(
        lambda t: lib.save_checkpoint(t.folder / "new", t.model, t.song.tokenizer),
        lambda t: lib.save_checkpoint(t.text, t.model, t.song.tokenizer),
    ),
    "shard": Row(lambda t: None, lambda t: lib.shard(t.model)),
    "sliding_attention": Row(lambda t: lib.sliding_attention(Q, Q, Q, 2)),
    "split": Row(lambda t: lib.split("abc"), lambda t: lib.split("abc", 2)),
    "surprisals": Row(
        lambda t: lib.surprisals(t.model, [ids_of(t)]),
        lambda t: lib.surprisals(t.model, [ids_of(t) + 1000]),
    ),
    "train": Row(
        lambda t: train(t, out=t.folder / "run", tokenizer=t.song.tokenizer), nan
    ),
    "training_step": Row(
        lambda t: lib.training_step(
            t.model, lib.AdamW(t.model.parameters()), *(2 * [ids_of(t)[None, :8]])
        ),
        lambda t: lib.training_step(t.model, None, None, None),
    ),
    "with_context": Row(
        lambda t: lib.with_context(t.windowed, 16),
        lambda t: lib.with_context(t.model, 16, "none of them"),
    ),
}


def with_data(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYGPT_DATA", str(folder / "config.json"))
        lib.load_shakespeare()


def alone(*failing):
    with lib.processes(torch.device("cpu")):
        assert not failing


def test_every_public_name_has_a_row():
    assert ROWS.keys() == set(lib.__all__)


def state(t):
    """All that a call may leave behind."""
    random_numbers = {
        "torch": torch.get_rng_state().tolist(),
        "random": random.getstate(),
        "numpy": str(np.random.get_state()),
    }
    return random_numbers, {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "threads of torch": torch.get_num_threads(),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "modes": [(m.training) for x in t.models for m in x.modules()],
        "learning": [p.requires_grad for x in t.models for p in x.parameters()],
        "warnings": (list(warnings.filters), warnings.showwarning),
        "signals": [signal.getsignal(n) for n in sorted(signal.valid_signals())],
        "timer": signal.getitimer(signal.ITIMER_REAL),
        "threads": [x for x in threading.enumerate() if not x.daemon],
        "streams": (sys.stdin, sys.stdout, sys.stderr),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "hooks": (sys.excepthook, sys.getrecursionlimit()),
    }


@pytest.fixture
def things(song, tiny_gpt, tmp_path, monkeypatch):
    """What calls work on; the models in training mode, dropout and all."""

    def learn(ids, config, seed):  # rotary positions take torch seconds of imports
        return blank(ids, replace(config, **SHAPE, position="learned"), seed)

    monkeypatch.setitem(SETTINGS, "learn", learn)
    t = SimpleNamespace(song=song, folder=tmp_path, text=tmp_path / "text")
    t.saved = tmp_path / "saved"
    t.text.write_text("a\nb\n")
    t.model = tiny_gpt(dropout=0.1)
    window = {"attention": "sliding", "window": 4, "position": "rotary"}
    t.windowed = tiny_gpt(**window)
    lib.save_checkpoint(t.saved, t.model, song.tokenizer)
    t.models = t.model.train(), t.windowed.train()
    return t


@pytest.mark.parametrize("name", ROWS)
def test_a_call_leaves_the_process_as_it_was(name, things):
    """As does one that fails."""
    row = ROWS[name]
    for call in (row.right, row.wrong):
        if call is None:
            continue
        numbers, before = state(things)
        if call is row.wrong:
            with pytest.raises(Exception):  # noqa: B017
                call(things)
        else:
            call(things)
        left, after = state(things)
        if name == "train":  # leaves its own model in evaluation mode, and says so
            before["modes"], after["modes"] = [], []
        draws = row.draws or name in ("train", "training_step")  # dropout does
        assert after == before and (draws or left == numbers)
