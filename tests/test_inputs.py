"""Files of strangers: any bytes give a loaded thing, or one ValueError that says where.

Never another exception, never gigabytes, never a hang. Seeded, so that it finds the
same everywhere; FUZZ=50 python -m pytest tests/test_inputs.py  looks further.
"""

import copy
import json
import os
import re
import resource
import shutil
import sys
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from test_detect import SETTINGS, blank, quick

from tinygpt_lib import AnomalyDetector, BPETokenizer, load_checkpoint, save_checkpoint
from tinygpt_lib.basics.files import json_file, read_tensors, write_tensors
from tinygpt_lib.basics.loglines import patience
from tinygpt_lib.commands import main
from tinygpt_lib.commands.detect import rules_of
from tinygpt_lib.runs.checkpoints import read_run
from tinygpt_lib.runs.huggingface import load_hf, save_hf
from tinygpt_lib.runs.models import config_of, new_model
from tinygpt_lib.runs.tokenizers import TEXT_TOKENIZERS, TOKENIZERS

EXAMPLES = int(os.environ.get("FUZZ", "1"))
SECONDS, MEMORY = 5, 2**30  # for each file, of this process; a hang takes hours
SHORT = 600  # characters of an error


def seeded(n):
    return settings(
        max_examples=n * EXAMPLES,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


# --- What may be in a file ---

NASTY = st.sampled_from(
    [
        *(None, True, False, 0, -1, 1, 2, 3, 7, 2**31, 2**63, -(2**70), 10**400, 0.5),
        *(1e308, float("nan"), float("inf"), "", "x", "char", "bpe", "word", "events"),
        *("\ud800", "a" * 10_000, "a\nb", [], {}, [[]], [1, 2], ["a", "a"], [None]),
        *({"a": 1}, [[97, 97]], [[97, 256]], [[97, 98], [256, 256], [257, 257]]),
        *("(a+)+$", ["(a+)+$"], {"<x>": "(a+)+$"}, "(a|a)*b", "(", "a{2,9999999}"),
        *("\\", json.loads("[" * 300 + "]" * 300), list(range(256)), [0.0] * 256),
    ]
)


@st.composite
def spoilt(draw, data):
    """JSON data with another value, or none, in some of its places."""
    data = copy.deepcopy(data)
    for _ in range(draw(st.integers(1, 2))):
        parent, key, here = None, None, data
        while isinstance(here, dict | list) and here and draw(st.integers(0, 4)):
            keys = list(here) if isinstance(here, dict) else range(min(9, len(here)))
            parent, key = here, draw(st.sampled_from(list(keys)))
            here = parent[key]
        value = copy.deepcopy(draw(NASTY))
        if parent is None:
            return value
        if isinstance(parent, dict) and draw(st.integers(0, 5)) == 0:
            del parent[key]
        elif isinstance(parent, dict) and draw(st.integers(0, 9)) == 0:
            parent[draw(st.sampled_from(["more", "type", "unk", "n_layer"]))] = value
        else:
            parent[key] = value
    return data


@st.composite
def damaged(draw, data: bytes):
    """Bytes that were cut, changed, doubled or replaced; mostly near the beginning."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        reach = draw(st.sampled_from([8, 16, 400, len(data)]))
        at = draw(st.integers(0, max(0, min(reach, len(data)) - 1)))
        piece = draw(st.binary(max_size=9) | st.sampled_from([b"9" * 30, b"[" * 5000]))
        size = draw(st.sampled_from([0, 1, len(piece), 10**9]))
        data[at : at + size] = piece
    return bytes(data)


# --- What has to come of it ---


@contextmanager
def bounded():
    """Fails for what takes longer than some seconds, or another gigabyte."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux":
        pages = int(open("/proc/self/statm").read().split()[0])
        room = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (room, before[1]))
    began = time.process_time()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert time.process_time() - began < SECONDS


def changed(before, after) -> set[str]:
    """The names of the fields that differ, and of those that they are in."""
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return set()
    keys = {k for k in before | after if before.get(k, ...) != after.get(k, ...)}
    return keys.union(*(changed(before.get(k), after.get(k)) for k in keys))


def loaded_or_refused(load, folder, fields=(), file=r"\w+\.\w+"):
    """What was loaded, or None after one ValueError that names the file and a field."""
    with bounded():
        try:
            return load(folder)
        except ValueError as error:
            said = str(error)
    assert "\n" not in said and re.search(rf"{folder}(/\S+)?/{file}\b", said), said
    assert not fields or any(re.search(rf"\b{f}\b", said) for f in fields), said
    assert len(said) < SHORT, said[:SHORT]
    return None


def use(model, tokenizer):
    """What was loaded works, or says why not in a ValueError."""
    with bounded():
        text = tokenizer.decode([0, tokenizer.vocab_size - 1])
        try:
            tokenizer.encode(text + "a b")
        except ValueError:
            pass
        if model.config.block_size < 1000 and tokenizer.vocab_size < 10_000:
            with torch.no_grad():
                assert model(torch.zeros(1, 1, dtype=torch.int64)).isfinite().all()


@pytest.fixture(scope="module")
def kept(song, tiny_gpt, tmp_path_factory):
    """A checkpoint of each tokenizer, a run, a detector, a folder of Hugging Face's."""
    folder = tmp_path_factory.mktemp("kept")
    tokenizers = {k: TEXT_TOKENIZERS[k].from_text(song.text[:400]) for k in ("char",)}
    tokenizers["bpe"] = BPETokenizer.from_text(song.text, 262)
    tokenizers["word"] = TEXT_TOKENIZERS["word"].from_text(song.text[:400], 9)
    tokenizers["events"] = TOKENIZERS["events"](["one", "two"])
    for name, tokenizer in tokenizers.items():
        model = tiny_gpt(vocab_size=tokenizer.vocab_size)
        save_checkpoint(folder / name, model, tokenizer)
    modern = {"position": "rotary", "norm": "rms", "feed_forward": "swiglu"}
    for name, settings_ in (("gpt2", {}), ("llama", {**modern, "bias": False})):
        shape = {"block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8}
        model = new_model(config_of({"vocab_size": 262, **shape, **settings_}))
        save_hf(folder / name, model, tokenizers["bpe"])
    (folder / "log").write_text("\n".join(f"s{i // 3} e{i % 3}" for i in range(60)))
    (folder / "text").write_text(song.text)
    tiny = "--n-layer 1 --n-head 2 --n-embd 8 --block-size 8 --batch-size 2 --steps 1"
    train = ["train", "--out", folder / "run", "--text", folder / "text"]
    fit = ["detect", "fit", "--normal", folder / "log", "--out", folder / "detector"]
    fit += [*"--session-regex \\w+ --false-alarms 0.2 --folds 2".split()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SETTINGS, "learn", lambda *a: quick(*a, learn=blank))
        for command in ([*train, *tiny.split(), "--position", "learned"], fit):
            assert main([*map(str, command)]) == 0
    return folder


LOADERS = {
    "char": load_checkpoint,
    "bpe": load_checkpoint,
    "run": read_run,
    "detector": AnomalyDetector.load,
    "gpt2": load_hf,
    "llama": load_hf,
}


@pytest.mark.parametrize("kind", LOADERS)
def test_any_bytes(kept, tmp_path, kind):
    """In any of the files of a folder."""
    folder, whole = tmp_path / kind, kept / kind
    names = [p.relative_to(whole) for p in sorted(whole.rglob("*.*")) if p.is_file()]
    names = [name for name in names if name.name != ".lock"]
    shutil.copytree(whole, folder)

    @seeded(25)
    @given(st.data())
    def check(data):
        name = data.draw(st.sampled_from(names))
        before = (whole / name).read_bytes()
        (folder / name).write_bytes(data.draw(damaged(before)))
        loaded_or_refused(LOADERS[kind], folder, file=name.name)
        (folder / name).write_bytes(before)

    check()


@pytest.mark.parametrize("kind", ["char", "bpe", "word", "events"])
def test_checkpoints_that_hold_together_and_lie(kept, tmp_path, kind):
    """As an attacker would write them: every checksum is right."""
    folder = tmp_path / "forged"
    shutil.copytree(kept / kind, folder)
    tensors, notes = read_tensors(folder / "model.safetensors")

    @seeded(25)
    @given(spoilt(notes))
    def check(lies):
        lies = lies if isinstance(lies, dict) else {"model": lies, "tokenizer": lies}
        config = json_file({"model": lies.get("model"), "about": lies.get("about")})
        (folder / "config.json").write_bytes(config)
        words = json_file({"tokenizer": lies.get("tokenizer")})
        (folder / "tokenizer.json").write_bytes(words)
        write_tensors(folder / "model.safetensors", tensors, lies)
        if loaded := loaded_or_refused(load_checkpoint, folder, changed(notes, lies)):
            use(*loaded)

    check()


@pytest.mark.parametrize(
    ("kind", "name"),
    [("run", "training.safetensors"), ("detector", "detector.safetensors")],
)
def test_notes_that_lie(kept, tmp_path, kind, name):
    folder = tmp_path / "forged"
    shutil.copytree(kept / kind, folder)
    tensors, notes = read_tensors(folder / name)
    options = SimpleNamespace(folder=folder, events=False, session_regex=None)
    options.seconds = options.time_regex = options.time_format = None

    def with_rules(folder):
        """As `detect score` uses it."""
        detector = AnomalyDetector.load(folder)
        _, reading = rules_of(detector, options)
        for line in ("a" * 40 + "!", "s1 one"):
            try:
                with patience(0.1):
                    list(reading.sessions([line]) if reading else ())
            except ValueError as error:  # of this line, not of the file
                assert len(str(error)) < SHORT
        return detector

    def evil(about):
        return {**notes, "about": {**notes.get("about", {}), **about}}

    def masked(pattern):
        kinds = notes.get("about", {}).get("kinds", {})
        return evil({"kinds": {**kinds, "masks": {"<x>": pattern}}})

    @seeded(25)
    @given(spoilt(notes), st.data())
    @example(evil({"sessions": {"session_regex": "(a+)+$"}}), None)
    @example(masked("(a|a)*b"), None)
    @example(masked("(a{1,9999}){1,9999}b"), None)
    def check(lies, data):
        numbers, fields = dict(tensors), changed(notes, lies)
        if data and data.draw(st.integers(0, 2)) == 0:
            key = data.draw(st.sampled_from(sorted(numbers)))
            shape = data.draw(st.sampled_from([(0,), (3,), (1, 1), ()]))
            kind_ = data.draw(st.sampled_from([torch.float32, torch.int64, torch.bool]))
            numbers[key], fields = torch.ones(shape, dtype=kind_), ()
        write_tensors(folder / name, numbers, lies)
        loaded_or_refused(read_run if kind == "run" else with_rules, folder, fields)

    check()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_descriptions_of_hugging_face_that_lie(kept, tmp_path, kind):
    folder = tmp_path / "forged"
    shutil.copytree(kept / kind, folder)
    names = ["config.json", "vocab.json", "tinygpt_tokenizer.json"]
    parts = {name: json.loads((folder / name).read_text("utf-8")) for name in names}

    @seeded(25)
    @given(spoilt(parts))
    def check(lies):
        for name in names:
            (folder / name).unlink(missing_ok=True)
            if isinstance(lies, dict) and name in lies:
                (folder / name).write_text(json.dumps(lies[name]))
        if loaded := loaded_or_refused(load_hf, folder, changed(parts, lies)):
            use(*loaded)

    check()


def test_headers_of_safetensors_that_lie(kept, tmp_path):
    """What stands before the numbers: sizes, types, places."""
    folder = tmp_path / "forged"
    shutil.copytree(kept / "char", folder)
    path = folder / "model.safetensors"
    data = path.read_bytes()
    n = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:n])

    @seeded(25)
    @given(spoilt(header), st.sampled_from([0, 0, 0, 1, -1, 2**40, 2**63]))
    def check(lies, more):
        said = json.dumps(lies).encode()
        size = (len(said) + more) % 2**64
        path.write_bytes(size.to_bytes(8, "little") + said + data[n:])
        loaded_or_refused(load_checkpoint, folder)

    check()
