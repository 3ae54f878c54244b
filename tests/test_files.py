"""Checkpoints: whole or absent, refused when damaged, and never any code run."""

import errno
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tinygpt_lib.basics import files as _files
from tinygpt_lib.basics.files import (
    CheckpointError,
    json_file,
    read_json,
    read_tensors,
    tensor_file,
    write_tensors,
)
from tinygpt_lib.runs import checkpoints, run
from tinygpt_lib.runs.checkpoints import load_checkpoint, read_run, save_checkpoint
from tinygpt_lib.runs.run import Run, train
from tinygpt_lib.runs.settings import TrainConfig
from tinygpt_lib.text import CharTokenizer

ROOT = Path(__file__).resolve().parent.parent
MODEL_FILES = ["config.json", "model.safetensors", "tokenizer.json"]
AT_ONCE = 10  # seconds of this process; what is believed would take hours, or memory
RUN_FILES = [*MODEL_FILES, "training.safetensors"]
QUICK = TrainConfig(steps=6, batch_size=2, eval_every=3, save_every=2)


def same_model(one, other):
    weights = other.state_dict()
    return one.config == other.config and all(
        torch.equal(value, weights[name]) for name, value in one.state_dict().items()
    )


def files_in(folder):
    """Names of the files; the lock of a run is none of them."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def refused(folder, match=None):
    """CheckpointError in one sentence, and nothing else."""
    with pytest.raises(CheckpointError, match=match) as caught:
        load_checkpoint(folder)
    message = str(caught.value)
    assert "\n" not in message and str(folder) in message


@pytest.fixture(scope="session")
def kept(song, tiny_gpt, tmp_path_factory):
    """A checkpoint to spoil copies of, and its model."""
    folder = tmp_path_factory.mktemp("kept") / "model"
    model = tiny_gpt().eval()
    save_checkpoint(folder, model, song.tokenizer)
    return folder, model


@pytest.fixture
def folder(kept, tmp_path):
    """A checkpoint to spoil."""
    return Path(shutil.copytree(kept[0], tmp_path / "model"))


@pytest.fixture(scope="session")
def kept_run(song, tiny_gpt, tmp_path_factory):
    """A run that is half done, to spoil copies of."""
    out = tmp_path_factory.mktemp("kept") / "run"
    real, calls = Run.learn, []

    def step(*args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "learn", step)
        with pytest.raises(KeyboardInterrupt):
            train_in(out, song, tiny_gpt())
    return out


@pytest.fixture
def run_folder(kept_run, tmp_path):
    return Path(shutil.copytree(kept_run, tmp_path / "run"))


def train_in(out, song, model, config=QUICK, **options):
    parts = (song.train_ids, song.val_ids, config)
    options = {"tokenizer": song.tokenizer, "progress": False, **options}
    return train(model, *parts, out=out, **options)


# --- Saved and loaded ---


def test_what_is_loaded_is_what_was_saved(song, tiny_gpt, tmp_path):
    model = tiny_gpt(n_layer=2, bias=False, dropout=0.1)
    save_checkpoint(tmp_path / "deep" / "model", model, song.tokenizer, {"by": "me"})
    assert files_in(tmp_path / "deep" / "model") == MODEL_FILES
    loaded, tokenizer = load_checkpoint(tmp_path / "deep" / "model")
    assert same_model(model, loaded)
    assert tokenizer.to_dict() == song.tokenizer.to_dict()
    assert not loaded.training
    assert all(p.requires_grad for p in loaded.parameters())
    ids = song.val_ids[None, :8]
    assert torch.equal(loaded(ids), model.eval()(ids))
    assert read_json(tmp_path / "deep" / "model" / "config.json")["about"] == {
        "by": "me"
    }


@pytest.mark.parametrize("characters", ["aé😀\u2028\x00\n\r", "a\udce9"])
def test_any_character_survives(tiny_gpt, tmp_path, characters):
    """Even half a surrogate pair, as in a file name that is not UTF-8."""
    tokenizer = CharTokenizer(characters)
    model = tiny_gpt()
    model = type(model)(replace(model.config, vocab_size=len(characters)))
    save_checkpoint(tmp_path, model, tokenizer, {"text": characters})
    loaded, again = load_checkpoint(tmp_path)
    assert same_model(model, loaded)
    assert again.characters == list(characters)


def test_a_fresh_process_computes_the_same(kept, song, tmp_path):
    folder, model = kept
    script = (
        "import sys, torch; from tinygpt_lib import load_checkpoint\n"
        "torch.set_num_threads(1)\n"
        "model, tokenizer = load_checkpoint(sys.argv[1])\n"
        "torch.save(model(tokenizer.encode('99 green')[None]), sys.argv[2])"
    )
    command = [sys.executable, "-c", script, folder, tmp_path / "logits"]
    subprocess.run(command, cwd=ROOT, check=True)
    expected = model(song.tokenizer.encode("99 green")[None])
    torch.testing.assert_close(torch.load(tmp_path / "logits"), expected)


def test_loading_and_saving_draw_no_random_numbers(kept, song, tmp_path):
    before = torch.get_rng_state()
    model, tokenizer = load_checkpoint(kept[0])
    save_checkpoint(tmp_path, model, tokenizer)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_checkpoint_may_replace_one_of_another_model(song, tiny_gpt, folder):
    other = tiny_gpt(seed=1, n_embd=16)
    save_checkpoint(folder, other, song.tokenizer)
    assert same_model(load_checkpoint(folder)[0], other)
    assert files_in(folder) == MODEL_FILES


def test_a_run_is_not_overwritten_by_another_model(song, tiny_gpt, run_folder):
    before = {name: (run_folder / name).read_bytes() for name in RUN_FILES}
    with pytest.raises(CheckpointError, match="a training run of another model"):
        save_checkpoint(run_folder, tiny_gpt(n_embd=16), song.tokenizer)
    assert {name: (run_folder / name).read_bytes() for name in RUN_FILES} == before
    save_checkpoint(run_folder, tiny_gpt(seed=3), song.tokenizer)
    assert same_model(load_checkpoint(run_folder)[0], tiny_gpt(seed=3))


def test_a_tokenizer_of_another_size_is_not_saved(tiny_gpt, tmp_path):
    with pytest.raises(ValueError, match="tokenizer has 2 tokens"):
        save_checkpoint(tmp_path / "model", tiny_gpt(), CharTokenizer("ab"))
    assert list(tmp_path.rglob("*.*")) == []


def test_modes_follow_the_umask(song, tiny_gpt, tmp_path):
    before = os.umask(0o027)
    try:
        train_in(tmp_path / "run", song, tiny_gpt())
        save_checkpoint(tmp_path / "model", tiny_gpt(), song.tokenizer)
    finally:
        os.umask(before)
    for folder, names in (("run", RUN_FILES), ("model", MODEL_FILES)):
        assert (tmp_path / folder).stat().st_mode & 0o777 == 0o750
        for name in names:
            assert (tmp_path / folder / name).stat().st_mode & 0o777 == 0o640, name


def test_a_file_that_is_replaced_keeps_its_mode(song, tiny_gpt, folder):
    for name in MODEL_FILES:
        (folder / name).chmod(0o600)
    save_checkpoint(folder, tiny_gpt(seed=1), song.tokenizer)
    assert {(folder / name).stat().st_mode & 0o777 for name in MODEL_FILES} == {0o600}


@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_a_folder_that_is_there_gets_all_or_nothing(
    song, tiny_gpt, tmp_path, monkeypatch, call
):
    out, real = tmp_path / "run", Path.replace
    out.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fails_at(call, real))
        with pytest.raises(CheckpointError, match="run can't be written: No space"):
            train_in(out, song, tiny_gpt())
    assert files_in(out) == []
    train_in(out, song, tiny_gpt())
    with pytest.raises(CheckpointError, match="is not empty: resume the run in it"):
        train_in(out, song, tiny_gpt())
    (out / "training.safetensors").unlink()
    with pytest.raises(CheckpointError, match="is not empty: choose another folder"):
        train_in(out, song, tiny_gpt())


def test_two_who_save_at_once_leave_a_whole_checkpoint(song, tiny_gpt, tmp_path):
    models = [tiny_gpt(seed) for seed in range(3)]
    errors = []

    def save(model):
        try:
            for _ in range(5):
                save_checkpoint(tmp_path, model, song.tokenizer)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=save, args=[model]) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert files_in(tmp_path) == MODEL_FILES
    assert any(same_model(load_checkpoint(tmp_path)[0], model) for model in models)


# --- Missing ---


@pytest.mark.parametrize("name", MODEL_FILES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    refused(folder, f"{name} can't be read: No such file")


@pytest.mark.parametrize("name", MODEL_FILES)
def test_a_folder_in_the_place_of_a_file_is_named(folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    refused(folder, f"{name} can't be read: Is a directory")


def test_no_folder_and_no_folder_but_a_file(song, tiny_gpt, tmp_path):
    refused(tmp_path / "nowhere", "can't be read: No such file")
    (tmp_path / "file").write_text("mine")
    refused(tmp_path / "file", "can't be read: Not a directory")
    with pytest.raises(CheckpointError, match="file can't be written: File exists"):
        save_checkpoint(tmp_path / "file", tiny_gpt(), song.tokenizer)
    assert (tmp_path / "file").read_text() == "mine"


# --- Damaged ---


def cuts(data):
    """Lengths to cut to: all of a short file, the interesting ones of a long one."""
    n = len(data)
    if n < 600:
        return range(n)
    header = 8 + int.from_bytes(data[:8], "little")
    edges = {0, 1, 7, 8, 9, header - 1, header, header + 1, n // 2, n - 8, n - 1}
    return sorted(edge for edge in edges if 0 <= edge < n)


@pytest.mark.parametrize("name", MODEL_FILES)
def test_a_file_cut_short_is_refused(folder, name):
    data = (folder / name).read_bytes()
    for n in cuts(data):
        (folder / name).write_bytes(data[:n])
        if not (name.endswith("json") and data[n:] == b"\n"):  # whole without it
            refused(folder, name)


@pytest.mark.parametrize("name", MODEL_FILES)
def test_more_at_the_end_is_refused(folder, name):
    with open(folder / name, "ab") as file:
        file.write(b"\x00")
    refused(folder, name)


def flips(data, n=150):
    """The data with one byte changed, many times; each byte of the first 16, too."""
    chance = random.Random(int(os.environ.get("SEED", "0")))
    header = len(data)
    if data[:1] != b"{":  # the header holds more surprises than the numbers
        header = 8 + int.from_bytes(data[:8], "little")
    places = [*range(min(16, len(data)))]
    places += [chance.randrange(header) for _ in range(n)]
    places += [chance.randrange(len(data)) for _ in range(n // 3)]
    for place in places:
        changed = bytearray(data)
        changed[place] ^= chance.choice([1, 2, 4, 8, 16, 32, 64, 128, 255])
        yield bytes(changed)


@pytest.mark.parametrize("name", MODEL_FILES)
def test_one_byte_changed_is_refused_or_harmless(kept, folder, name):
    data = (folder / name).read_bytes()
    n_refused = 0
    for changed in flips(data):
        (folder / name).write_bytes(changed)
        try:
            model, tokenizer = load_checkpoint(folder)
        except CheckpointError as error:
            assert "\n" not in str(error)
            n_refused += 1
        else:  # a space that became a tab, say
            assert same_model(model, kept[1])
            assert tokenizer.to_dict() == load_checkpoint(kept[0])[1].to_dict()
    assert n_refused > 100


def test_one_number_changed_is_refused(folder):
    """Every number of the weights counts."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    for place in range(header, len(data), 97):
        changed = bytearray(data)
        changed[place] ^= 1
        path.write_bytes(changed)
        refused(folder, "does not match its checksum")


def test_files_of_two_models_are_refused(song, tiny_gpt, folder, tmp_path):
    other = tmp_path / "other"
    tokenizer = CharTokenizer(song.tokenizer.characters[::-1])
    save_checkpoint(other, tiny_gpt(n_head=4), tokenizer)
    for name in MODEL_FILES:
        mixed = Path(shutil.copytree(folder, tmp_path / f"mixed-{name}"))
        shutil.copy(other / name, mixed / name)
        refused(mixed, "do not belong together")


def test_weights_of_the_same_shapes_may_be_exchanged(song, tiny_gpt, folder, tmp_path):
    """So a kill between two files of a run does no harm."""
    other = tiny_gpt(seed=1)
    save_checkpoint(tmp_path / "other", other, song.tokenizer)
    shutil.copy(tmp_path / "other" / "model.safetensors", folder)
    assert same_model(load_checkpoint(folder)[0], other)


def test_what_safetensors_cannot_hold_is_said_before_training():
    """A vocabulary of 100 MB stands in the header."""
    with pytest.raises(CheckpointError, match="the vocabulary is too large"):
        tensor_file({"a": torch.zeros(1)}, {"words": "a" * 10**8})


# --- Of another kind ---


@pytest.mark.parametrize("name", MODEL_FILES)
@pytest.mark.parametrize(
    ("stamp", "match"),
    [
        ({"version": 2}, "has version '?2'? of the format; this tinygpt_lib reads"),
        ({"version": 0}, "has version '?0"),
        ({"version": None}, "has version '?None"),
        ({"format": "another"}, "was not written by tinygpt_lib"),
        ({"format": None}, "was not written by tinygpt_lib"),
    ],
)
def test_another_version_or_format_is_refused(folder, name, stamp, match, monkeypatch):
    path = folder / name
    if name.endswith("json"):
        data = json.loads(path.read_bytes()) | stamp
        path.write_text(json.dumps({k: v for k, v in data.items() if v is not None}))
    else:
        tensors, about = read_tensors(path)
        with monkeypatch.context() as patch:
            patch.setattr(_files, "VERSION", stamp.get("version", 1))
            patch.setattr(_files, "FORMAT", stamp.get("format", "tinygpt_lib") or "")
            write_tensors(path, tensors, about)
    refused(folder, f"{name} {match}")


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return open, (self.target, "w")


def torch_zip(bomb, path):
    torch.save({"weights": torch.zeros(3), "bomb": bomb}, path)


def torch_legacy(bomb, path):
    torch.save(bomb, path, _use_new_zipfile_serialization=False)


def plain_pickle(bomb, path):
    path.write_bytes(pickle.dumps(bomb))


@pytest.mark.parametrize("disguise", [torch_zip, torch_legacy, plain_pickle])
@pytest.mark.parametrize("name", RUN_FILES)
def test_a_pickle_in_disguise_is_refused_unopened(
    song, tiny_gpt, run_folder, tmp_path, disguise, name
):
    target = tmp_path / "exploded"
    disguise(Bomb(target), run_folder / name)
    if name == "training.safetensors":
        with pytest.raises(CheckpointError, match="never loaded"):
            read_run(run_folder)
        with pytest.raises(CheckpointError, match="never loaded"):
            train_in(run_folder, song, tiny_gpt(), resume=True)
    else:
        refused(run_folder, name)
    assert not target.exists()
    # And the bomb was live:
    pickle.loads(pickle.dumps(Bomb(target)))
    assert target.exists()


# --- Hostile: files that hold together and lie ---


def forge(folder, change_model=None, change_tokenizer=None):
    """The three files, with other descriptions, as an attacker would write them."""
    tensors, _ = read_tensors(folder / "model.safetensors")
    model = read_json(folder / "config.json")["model"]
    tokenizer = read_json(folder / "tokenizer.json")["tokenizer"]
    model = (change_model or dict)(model)
    tokenizer = (change_tokenizer or dict)(tokenizer)
    config = json_file({"model": model, "about": {}})
    (folder / "config.json").write_bytes(config)
    (folder / "tokenizer.json").write_bytes(json_file({"tokenizer": tokenizer}))
    about = {"model": model, "tokenizer": tokenizer}
    write_tensors(folder / "model.safetensors", tensors, about)


def without(name):
    return lambda data: {k: v for k, v in data.items() if k != name}


def instead(value):
    return lambda data: value


SIZES = ["vocab_size", "block_size", "n_layer", "n_head", "n_embd"]
HOSTILE = {
    f"{name}={value!r:.20}": {name: value}
    for name in SIZES
    for value in (0, -1, "8", True, None, 8.0, [8], {}, 10**9, 10**30)
}
HOSTILE |= {
    "n_layer=10**5": {"n_layer": 10**5},
    "n_embd=10**7": {"n_embd": 10**7},
    "n_embd=10**12": {"n_embd": 2 * 10**12},
    "block_size=10**18": {"block_size": 10**18},
    "dropout=1": {"dropout": 1},
    "dropout=nan": {"dropout": float("nan")},
    "dropout=10**400": {"dropout": 10**400},
    "dropout=[]": {"dropout": []},
    "bias=1": {"bias": 1},
    "attention=[]": {"attention": []},
    "attention=os.system": {"attention": "os.system"},
    "norm={}": {"norm": {}},
    "feed_forward=None": {"feed_forward": None},
    "one more": {"__class__": "os.system"},
    "rotary=10**12": {"position": "rotary", "block_size": 10**12},
    "sliding=10**12": {
        "position": "rotary",
        "block_size": 10**12,
        "attention": "sliding",
        "window": 10**11,
    },
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_config_that_lies_is_refused_at_once(folder, change):
    forge(folder, lambda model: {**model, **change})
    started = time.process_time()
    refused(folder, "does not describe a model")
    assert time.process_time() - started < AT_ONCE


@pytest.mark.parametrize(
    "change",
    [
        without("n_embd"),
        without("vocab_size"),
        instead({}),
        instead([]),
        instead(None),
        instead("model"),
        instead(5),
        instead([["n_embd", 8]]),
    ],
)
def test_a_config_that_lacks_something_is_refused(folder, change):
    if change({"n_embd": 8}) == {}:  # without n_embd, it takes another width
        forge(folder, lambda model: {**model, "n_embd": 16})
    else:
        forge(folder, change)
    refused(folder)


@pytest.mark.parametrize(
    "change",
    [without("type"), without("characters"), instead({}), instead(None), instead([])]
    + [instead("char"), instead({"type": ["char"], "characters": "ab"})]
    + [instead({"type": "char", "characters": c}) for c in ("", "aa", 5, None, ["ab"])]
    + [instead({"type": "char", "characters": c}) for c in ([[]], [1], [{}], {"a": 1})]
    + [instead({"type": "pickle", "characters": "ab"})],
)
def test_a_tokenizer_that_lies_is_refused(folder, change):
    forge(folder, change_tokenizer=change)
    refused(folder)


def test_a_tokenizer_of_another_size_is_refused(folder):
    forge(folder, change_tokenizer=lambda data: {**data, "characters": "abc"})
    refused(folder, "the tokenizer has 3 tokens, and the model a vocab_size of")


@pytest.mark.parametrize("depth", [900, 950, 970, 980, 985, 990, 995, 1000, 100_000])
def test_deep_nesting_is_refused(folder, depth):
    nest = "[" * depth + "]" * depth
    for name in ("config.json", "tokenizer.json"):
        copy = Path(shutil.copytree(folder, folder.parent / name))
        stamp = '{"format": "tinygpt_lib", "version": 1, '
        field = '"model": ' if name == "config.json" else '"tokenizer": '
        (copy / name).write_text(stamp + field + nest + "}")
        refused(copy)
    # The same in all files, so that they belong together.
    try:
        value = json.loads(nest)
        forge(folder, lambda model: {**model, "n_layer": value})
    except RecursionError:
        return
    refused(folder)


@pytest.mark.parametrize("text", ["[]", "5", "null", '"x"', "{}", "\xff", "", "NaN"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_other_json_is_refused(folder, name, text):
    (folder / name).write_bytes(text.encode("latin-1"))
    refused(folder, name)


def lose_a_tensor(tensors):
    tensors.pop("head.weight")


def add_a_tensor(tensors):
    tensors["more"] = torch.zeros(3)


def turn_a_tensor(tensors):
    tensors["token_embedding.weight"] = tensors["token_embedding.weight"].T


@pytest.mark.parametrize("change", [lose_a_tensor, add_a_tensor, turn_a_tensor])
def test_tensors_that_do_not_fit_are_refused(folder, change):
    path = folder / "model.safetensors"
    tensors, about = read_tensors(path)
    change(tensors)
    write_tensors(path, tensors, about)
    refused(folder, "tensor .* should be .* and is")


def forged_run(folder, change):
    path = folder / "training.safetensors"
    tensors, notes = read_tensors(path)
    write_tensors(path, tensors, change(tensors, notes) or notes)


def say(name, **changes):
    return lambda tensors, notes: {**notes, name: {**notes[name], **changes}}


def replaced(name, value):
    return lambda tensors, notes: {**notes, name: value}


def lose(name):
    def change(tensors, notes):
        tensors.pop(name)

    return change


def put(name, value):
    def change(tensors, notes):
        tensors[name] = value

    return change


LIES = {
    "notes are a list": lambda tensors, notes: [1],
    "notes are a string": lambda tensors, notes: "x",
    "one note more": lambda tensors, notes: {**notes, "more": 1},
    "one note less": lambda tensors, notes: {
        k: v for k, v in notes.items() if k != "data"
    },
    "n_layer": say("model", n_layer=10**5),
    "n_embd": say("model", n_embd=10**7),
    "huge n_embd": say("model", n_embd=10**30),
    "text for n_embd": say("model", n_embd="8"),
    "a model setting more": say("model", more=1),
    "no model": replaced("model", None),
    "steps": say("training", steps=-1),
    "text for steps": say("training", steps="many"),
    "a training setting more": say("training", more=1),
    "no training": replaced("training", []),
    "about is text": replaced("about", "about"),
    "history is a list": replaced("history", []),
    "evaluations": say("history", evaluations=5),
    "an evaluation": say("history", evaluations=[5]),
    "text for an evaluation": say("history", evaluations=[[1, "low"]]),
    "seconds": say("history", seconds="long"),
    "no losses": lose("losses"),
    "one loss": put("losses", torch.tensor(3.0)),
    "a square of losses": put("losses", torch.zeros(2, 2)),
    "a weight less": lose("model.head.weight"),
    "a weight more": put("model.more", torch.zeros(2)),
    "a weight of another shape": put("model.norm.weight", torch.zeros(3)),
    "no optimizer steps": lose("optimizer.steps"),
    "many optimizer steps": put("optimizer.steps", torch.zeros(2)),
    "no mean": lose("optimizer.means.0"),
    "a mean of another shape": put("optimizer.means.0", torch.zeros(3, 3)),
    "no random state": lose("random.batches"),
    "a random state of another type": put("random.batches", torch.zeros(5056)),
    "a random state of another size": put("random.cpu", torch.zeros(3).byte()),
}


@pytest.mark.parametrize("change", LIES.values(), ids=LIES)
def test_a_run_that_lies_is_refused_at_once(song, tiny_gpt, run_folder, change):
    forged_run(run_folder, change)
    started = time.process_time()
    with pytest.raises(ValueError) as caught:
        train_in(run_folder, song, tiny_gpt(), resume=True)
    assert time.process_time() - started < AT_ONCE
    assert "\n" not in str(caught.value)


def test_a_rotary_model_of_endless_context_takes_no_memory(song, tiny_gpt, tmp_path):
    """No tensor in the file says how long a context is: it may be any."""
    save_checkpoint(tmp_path, tiny_gpt(position="rotary"), song.tokenizer)
    forge(tmp_path, lambda model: {**model, "block_size": 10**12})
    started = time.process_time()
    model, _ = load_checkpoint(tmp_path)
    assert time.process_time() - started < AT_ONCE
    ids = song.train_ids[None, :20]
    expected = tiny_gpt(position="rotary").eval()(ids[:, :8])
    torch.testing.assert_close(model(ids)[:, :8], expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_checkpoint_keeps_its_type_of_numbers(song, tiny_gpt, tmp_path, dtype):
    model = tiny_gpt().to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.rand_like(p))  # to the last digit
    save_checkpoint(tmp_path, model, song.tokenizer)
    loaded, _ = load_checkpoint(tmp_path)
    assert same_model(loaded, model)
    assert {p.dtype for p in loaded.parameters()} == {dtype}


@pytest.mark.parametrize("dtype, why", [(torch.float64, "several"), (torch.int8, "no")])
def test_a_checkpoint_of_odd_numbers_is_refused(song, tiny_gpt, tmp_path, dtype, why):
    save_checkpoint(tmp_path, tiny_gpt(), song.tokenizer)
    tensors, about = read_tensors(tmp_path / "model.safetensors")
    names = sorted(tensors)[:1] if why == "several" else sorted(tensors)
    tensors |= {name: tensors[name].to(dtype) for name in names}
    write_tensors(tmp_path / "model.safetensors", tensors, about)
    with pytest.raises(CheckpointError, match=f"its tensors are (of )?{why}"):
        load_checkpoint(tmp_path)


def test_a_file_that_is_replaced_while_it_is_read(tmp_path, monkeypatch):
    """By a run that saves while somebody samples: it is the one file or the other."""
    path, real = tmp_path / "x.safetensors", _files.read_bytes
    write_tensors(path, {"x": torch.zeros(3)}, {"step": 1})

    def replaced(*arguments):
        data = real(*arguments)
        write_tensors(path, {"x": torch.ones(3)}, {"step": 2})
        return data

    monkeypatch.setattr(_files, "read_bytes", replaced)
    tensors, about = read_tensors(path)
    assert about == {"step": 1} and not tensors["x"].any()


# --- A disk that is full, a folder that is closed ---


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fails_at(call, real, failure=full):
    """Works until its n-th call, which fails."""
    calls = []

    def sometimes(*args, **kwargs):
        calls.append(args)
        return (failure if len(calls) == call else real)(*args, **kwargs)

    return sometimes


@pytest.mark.parametrize(
    "function, settings", [("fsync", {}), ("fsync", {"n_embd": 16}), ("replace", {})]
)
@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_full_disk_leaves_a_whole_checkpoint(
    song, tiny_gpt, folder, kept, monkeypatch, function, call, settings
):
    new = tiny_gpt(seed=1, **settings)
    with monkeypatch.context() as patch:
        patch.setattr(_files.os, function, fails_at(call, getattr(os, function)))
        with pytest.raises(CheckpointError, match="can't be written: No space left"):
            save_checkpoint(folder, new, song.tokenizer)
    assert files_in(folder) == MODEL_FILES
    assert same_model(load_checkpoint(folder)[0], kept[1])


def test_the_first_save_fails_and_nothing_stays(song, tiny_gpt, tmp_path, monkeypatch):
    """Whatever the failure is: `out` appears with a checkpoint that loads, or not."""

    def broken(*args):
        raise RuntimeError("a bug")

    for module, name in (
        (checkpoints, "write_tensors"),
        (checkpoints, "json_file"),
        (checkpoints, "write_together"),
        (run, "write_run"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, broken)
            with pytest.raises(RuntimeError, match="a bug"):
                train_in(tmp_path / "run", song, tiny_gpt())
        assert list(tmp_path.iterdir()) == []


def test_out_holds_a_checkpoint_before_the_first_step(
    song, tiny_gpt, tmp_path, monkeypatch
):
    model = tiny_gpt()
    seen = []

    def look(*args):
        seen.append(same_model(load_checkpoint(tmp_path / "run")[0], model))
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "learn", look)
    with pytest.raises(KeyboardInterrupt):
        train_in(tmp_path / "run", song, model)
    assert seen == [True]
    assert files_in(tmp_path / "run") == RUN_FILES


def denied(*args, **kwargs):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_no_permission(song, tiny_gpt, folder, kept, monkeypatch):
    """By a patch: for root, who may run the tests, no file is closed."""
    with monkeypatch.context() as patch:
        patch.setattr(_files, "open", denied, raising=False)
        refused(folder, r"config\.json can't be read: Permission denied")
        with pytest.raises(CheckpointError, match="can't be written: Permission"):
            save_checkpoint(folder, tiny_gpt(seed=1), song.tokenizer)
        with pytest.raises(CheckpointError, match=r"run can't be written: Permission"):
            train_in(folder.parent / "run", song, tiny_gpt())
    assert files_in(folder) == MODEL_FILES
    assert same_model(load_checkpoint(folder)[0], kept[1])
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_a_closed_folder(song, tiny_gpt, folder, run_folder):
    for closed in (folder, run_folder):
        closed.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match="can't be written: Permission"):
            save_checkpoint(folder, tiny_gpt(), song.tokenizer)
        with pytest.raises(CheckpointError, match="can't be written: Permission"):
            train_in(folder / "run", song, tiny_gpt())
        load_checkpoint(folder)
    finally:
        for closed in (folder, run_folder):
            closed.chmod(0o700)


# --- The parts ---


def test_going_on_removes_what_a_kill_left(song, tiny_gpt, run_folder):
    (run_folder / ".model.safetensors-0123abcd.partial").write_bytes(b"half")
    (run_folder / ".inner-0123abcd.partial").mkdir()  # of a run that begins in here
    (run_folder / "notes.partial").write_text("mine")
    train_in(run_folder, song, tiny_gpt(), resume=True)
    rest = [".inner-0123abcd.partial", *RUN_FILES, "notes.partial"]
    assert files_in(run_folder) == sorted(rest)


def test_tensors_of_every_type_survive(tmp_path):
    path = tmp_path / "t.safetensors"
    types = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8]
    tensors = {
        str(t): torch.arange(6).to(t).reshape(2, 3) for t in [*types, torch.bool]
    }
    tensors |= {"none": torch.zeros(0), "one": torch.tensor(2.5)}
    tensors["turned"] = torch.randn(3, 2).T
    about = {"unicode": "é\ud800", "list": [1, 2.5, None]}
    write_tensors(path, tensors, about)
    found, notes = read_tensors(path)
    assert notes == about
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name
