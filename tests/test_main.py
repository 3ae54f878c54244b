"""The command line: what it prints, what it refuses, and with which exit code."""

import gzip
import io
import math
import os
import re
import shlex
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

from tinygpt_lib.basics.files import json_file, read_json, write_tensors
from tinygpt_lib.bigram import evaluate
from tinygpt_lib.commands import common, main
from tinygpt_lib.commands import train as train_command
from tinygpt_lib.runs import run
from tinygpt_lib.runs.checkpoints import load_checkpoint, read_run, save_checkpoint
from tinygpt_lib.runs.presets import PRESETS
from tinygpt_lib.runs.run import Run
from tinygpt_lib.text import CharTokenizer, split
from tinygpt_lib.tokenizers import score_text
from tinygpt_lib.training import History, cpu_preset

TINY = "--n-layer 1 --n-head 2 --n-embd 8 --block-size 8 --batch-size 2".split()


@pytest.fixture
def cli(capsys):
    """Runs a command in this process: cli("train", ...) -> code, stdout, stderr."""

    def run(*arguments):
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse
            code = stop.code or 0
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def fails(cli):
    """Runs a command that must fail, in one line, which it returns."""

    def run(*arguments):
        code, out, err = cli(*arguments)
        assert (code, out) == (1, "")
        assert err.startswith("error: ") and err.endswith("\n")
        assert err.count("\n") == 1, err
        return err

    return run


@pytest.fixture(scope="session")
def song_file(song, tmp_path_factory):
    file = tmp_path_factory.mktemp("song") / "song.txt"
    file.write_bytes(song.text.encode())
    return file


@pytest.fixture(scope="session")
def trained(song_file):
    """A finished run of 20 steps."""
    out = song_file.parent / "trained"
    given = ["--text", song_file, *TINY, "--steps", 20, "--save-every", 7]
    assert main([str(a) for a in ("train", "--out", out, *given)]) == 0
    return out


@pytest.fixture(scope="session")
def kept_stopped(song_file):
    """A run of 20 steps that ended after 9, of which 7 were saved."""
    real, steps = Run.learn, []

    def step(*arguments):
        steps.append(arguments)
        if len(steps) == 10:
            raise KeyboardInterrupt
        return real(*arguments)

    out = song_file.parent / "stopped"
    given = ["--text", song_file, *TINY, "--steps", 20, "--save-every", 7]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "learn", step)
        assert main([str(a) for a in ("train", "--out", out, *given)]) == 130
    assert len(read_run(out).history.losses) == 7
    return out


@pytest.fixture
def stopped(kept_stopped, tmp_path):
    """Such a run, to go on with."""
    return Path(shutil.copytree(kept_stopped, tmp_path / "stopped"))


# --- Help ---


@pytest.mark.parametrize(
    "command",
    [
        *([], ["train"], ["sample"], ["evaluate"], ["play"]),
        *(["detect", name] for name in ("fit", "score", "accept", "update", "undo")),
        ["detect", "status"],
    ],
    ids=" ".join,
)
def test_help_has_an_example(cli, command):
    code, out, err = cli(*command, "--help")
    assert (code, err) == (0, "")
    name = " ".join(command) or "train"
    assert f"example: python -m tinygpt_lib {name} " in " ".join(out.split())


def options_of(cli, command):
    """The options in the help of a command."""
    return set(re.findall(r"^  (--[a-z0-9-]+)", cli(command, "--help")[1], re.M))


SETTINGS = {  # another value than the preset's
    "--block-size": 32,
    "--n-layer": 2,
    "--n-head": 2,
    "--n-embd": 64,
    "--dropout": 0.1,
    "--bias": True,
    "--embedding": "token",
    "--attention": "explicit",
    "--norm": "layer",
    "--feed-forward": "gelu",
    "--position": "learned",
    "--rotary-base": 500.0,
    "--rotary-scale": 2.0,
    "--qk-norm": "none",
    "--tie-weights": True,
    "--zero-outputs": False,
    "--n-kv-head": 2,
    "--window": 3,
    "--steps": 5,
    "--batch-size": 4,
    "--accumulate": 2,
    "--context": 32,
    "--optimizer": "adamw",
    "--engine": "compiled",
    "--learning-rate": 0.01,
    "--matrix-rate": 0.01,
    "--warmup": 0.1,
    "--cooldown": 0.3,
    "--cooldown-shape": "cosine",
    "--weight-decay": 0.3,
    "--beta1": 0.5,
    "--beta2": 0.5,
    "--clip": 0.5,
    "--eval-every": 7,
    "--save-every": 7,
    "--seed": 5,
}
NEEDS = {  # what has to be given besides, with and without the option
    "--tie-weights": ["--embedding", "token"],
    "--window": ["--attention", "sliding", "--window", 5],
}


def test_every_setting_is_what_the_option_says_and_no_other_is(
    cli, song_file, tmp_path, planned
):
    others = set("--out --text --preset --tokenizer --vocab-size --resume".split())
    others |= {"--shard", "--device"}
    assert set(SETTINGS) == options_of(cli, "train") - others

    def plan(*given):
        given = ["--text", song_file, *NEEDS.get(option, ()), *given]
        code, _, err = cli("train", "--out", tmp_path / "run", *given)
        assert code == 0, err
        model_config, config, _ = planned.pop()
        return vars(model_config) | vars(config)

    for option, value in SETTINGS.items():
        flag = f"--no-{option[2:]}" if value is False else option
        before = plan()
        after = plan(flag, *([] if isinstance(value, bool) else [value]))
        name = option[2:].replace("-", "_")
        assert before[name] != value and after == {**before, name: value}, option


def test_every_other_option_of_a_run_has_an_effect(
    cli, song, song_file, trained, tmp_path, planned
):
    def outcome(out, *given):
        code, _, err = cli("train", "--out", out, *given)
        if not planned:
            return code, err
        model_config, config, options = planned.pop()
        return model_config, config, options["tokenizer"].to_dict(), options["out"]

    other = tmp_path / "other.txt"
    other.write_text(song.text.upper())
    run, text = tmp_path / "run", ["--text", song_file]
    plain = outcome(run, *text)
    assert outcome(run, "--text", other) != plain
    assert outcome(tmp_path / "elsewhere", *text) != plain
    for more in ("--preset best", "--tokenizer byte", "--shard", "--device nonsense"):
        assert outcome(run, *text, *more.split()) != plain
    words = outcome(run, *text, "--tokenizer", "word")
    assert outcome(run, *text, "--tokenizer", "word", "--vocab-size", 9) != words
    assert "is not empty" in outcome(trained)[1]
    assert outcome(trained, "--resume")[3] == trained


READING = {  # of the commands that only read: an option, and what is given besides
    "sample": {
        "--prompt": "98",
        "--tokens": 9,
        "--temperature": 5,
        "--top-k": 1,
        "--top-p": 1e-9,
        "--seed": 2,
        "--device": "nonsense",
    },
    "evaluate": {"--text": "other.txt", "--device": "nonsense"},
}


@pytest.mark.parametrize("command", READING)
def test_every_option_that_reads_a_run_has_an_effect(
    cli, song, trained, tmp_path, monkeypatch, command
):
    monkeypatch.chdir(tmp_path)
    Path("other.txt").write_text(song.text[1000:])
    assert set(READING[command]) == options_of(cli, command)
    base = ["--seed", 1, "--tokens", 99] if command == "sample" else []
    plain = cli(command, trained, *base)
    assert plain == cli(command, trained, *base) and plain[0] == 0
    for option, value in READING[command].items():
        found = cli(command, trained, *base, option, value)
        assert found != plain and found[0] == (option == "--device"), option


def test_version(cli):
    code, out, _ = cli("--version")
    assert code == 0 and re.fullmatch(r"\d+\.\d+\S*\n", out)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["train"],
        ["sample"],
        ["evaluate"],
        ["train", "--out", "x", "--steps", "many"],
        ["train", "--out", "x", "--preset", "huge"],
        ["train", "--out", "x", "--vocab-size", "5"],
        ["train", "--out", "x", "--tokenizer", "byte", "--vocab-size", "300"],
        ["train", "--out", "x", "--tokenizer", "rune"],
        ["train", "--out", "x", "--colour", "red"],
        ["sample", "x", "--tokens", "1.5"],
    ],
)
def test_usage_errors_exit_with_2(cli, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    assert "usage: python -m tinygpt_lib" in err and "error: " in err
    assert list(tmp_path.iterdir()) == []


# --- train ---


def test_train_on_a_text_of_ones_own(cli, song, song_file, tmp_path):
    out = tmp_path / "run"
    settings = ["--steps", 12, "--eval-every", 5, "--seed", 3, "--learning-rate", 0.01]
    arguments = ["train", "--out", out, "--text", song_file, *TINY, *settings]
    code, stdout, stderr = cli(*arguments, "--dropout", 0.1, "--no-bias")
    assert code == 0
    assert "loss" in stderr and "tok/s" in stderr and "validation" in stderr
    state = read_run(out)
    assert state.model["n_embd"] == state.model["block_size"] == 8
    assert state.model["bias"] is False and state.model["dropout"] == 0.1
    assert state.model["vocab_size"] == song.tokenizer.vocab_size
    assert state.training["learning_rate"] == 0.01 and state.training["seed"] == 3
    assert [step for step, _ in state.history.evaluations] == [5, 10, 12]
    loss = state.history.evaluations[-1][1]
    expected = rf"{re.escape(str(out))}: 12 steps in \d+ s, {loss:.4f} nats per token"
    assert re.match(expected, stdout)
    model, tokenizer = load_checkpoint(out)
    assert evaluate(model, song.val_ids) == pytest.approx(loss)
    assert tokenizer.to_dict() == song.tokenizer.to_dict()


def test_the_seed_decides_the_run(cli, song_file, tmp_path):
    losses = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        given = ["--text", song_file, *TINY, "--steps", 3, "--seed", seed]
        assert cli("train", "--out", tmp_path / name, *given)[0] == 0
        losses[name] = read_run(tmp_path / name).history.losses
    assert losses["a"] == losses["b"]
    assert losses["a"][0] != losses["c"][0]


@pytest.fixture
def planned(monkeypatch):
    """What `train` would have been called with, instead of calling it."""
    calls = []

    def fake(model, train_ids, val_ids, config, **options):
        calls.append((model.config, config, options))
        return History([0.0] * config.steps, [(config.steps, 1.0)], 0.0)

    monkeypatch.setattr(train_command, "train", fake)
    return calls


def test_the_preset_and_what_differs_from_it(cli, song, song_file, tmp_path, planned):
    given = ["--preset", "cpu", "--text", song_file, "--steps", 120, "--save-every", 10]
    assert cli("train", "--out", tmp_path / "run", *given)[0] == 0
    model_config, config, options = planned[0]
    preset_model, preset = PRESETS["cpu"](song.tokenizer.vocab_size)
    assert model_config == preset_model
    preset.steps, preset.save_every = 120, 10
    assert config == preset
    about = options["about"]
    assert about.pop("data") and about == {"preset": "cpu", "text": str(song_file)}
    assert cli("train", "--out", tmp_path / "run", "--text", song_file)[0] == 0
    assert planned[1][0] == preset_model


def test_the_plays_are_the_text_unless_told(cli, tmp_path, planned, monkeypatch):
    plays = "First Citizen:\nBefore we proceed\n" * 20
    monkeypatch.setattr(common, "load_shakespeare", lambda: plays)
    assert cli("train", "--out", tmp_path / "run")[0] == 0
    assert planned[0][0].vocab_size == len(set(plays))
    assert planned[0][2]["about"]["text"] is None


def test_line_ends_are_kept(cli, tmp_path):
    file = tmp_path / "dos.txt"
    file.write_bytes(b"one\r\ntwo\rthree\n" * 20)
    arguments = ["--text", file, *TINY, "--steps", 1]
    assert cli("train", "--out", tmp_path / "run", *arguments)[0] == 0
    assert "\r" in load_checkpoint(tmp_path / "run")[1].characters
    _, out, _ = cli("evaluate", tmp_path / "run")
    assert out.startswith("29 tokens predicted")  # a tenth of 300, less the first


def test_a_text_in_the_working_folder_is_found_from_elsewhere(
    cli, song, song_file, tmp_path, monkeypatch
):
    monkeypatch.chdir(song_file.parent)
    given = ["--text", song_file.name, *TINY, "--steps", 1]
    assert cli("train", "--out", tmp_path / "run", *given)[0] == 0
    monkeypatch.chdir(tmp_path)
    assert cli("evaluate", tmp_path / "run")[0] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="file names are UTF-8 elsewhere")
def test_a_file_name_that_is_not_utf8(cli, song, tmp_path):
    name = os.fsdecode(bytes(tmp_path) + b"/caf\xe9.txt")
    Path(name).write_text(song.text)
    given = ["--text", name, *TINY, "--steps", 1]
    assert cli("train", "--out", tmp_path / "run", *given)[0] == 0
    assert cli("evaluate", tmp_path / "run")[0] == 0


BAD_SETTINGS = {
    "--n-head 3": "n_embd 8 can't be split into n_head 3",
    "--n-embd 0": "n_embd is 0",
    "--n-embd 1000000000000000000000000000000": "n_embd is 1000",
    "--steps 0": "steps is 0",
    "--learning-rate nan": "learning_rate is nan",
    "--warmup 0.9": "warmup 0.9 and cooldown 0.6 overlap",
    "--attention magic": "attention is 'magic'; it must be one of 'explicit', 'fused'",
    "--device nonsense": "device is 'nonsense'; it must be one of auto, cpu, cuda, mps",
    "--device cpu:nonsense": "device is 'cpu:nonsense'",
    "--device auto:1": "device is 'auto:1'",
    "--block-size 4000": "3377 tokens here; block_size 4000 needs at least 4001",
}


@pytest.mark.parametrize("setting", BAD_SETTINGS)
def test_a_bad_setting_is_named_before_any_work(fails, song_file, tmp_path, setting):
    given = ["--text", song_file, *TINY, *setting.split()]
    assert BAD_SETTINGS[setting] in fails("train", "--out", tmp_path / "run", *given)
    if "--block-size 4000" not in setting:  # the others: before the text is read
        given[1] = tmp_path / "none"
        told = fails("train", "--out", tmp_path / "run", *given)
        assert BAD_SETTINGS[setting] in told
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_taken_is_named_before_the_text_is_read(fails, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").touch()
    error = fails("train", "--out", tmp_path / "run", "--text", tmp_path / "none")
    assert "run exists and is not empty" in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
def test_cuda_that_is_not_there(fails, song_file, tmp_path):
    given = ["--text", song_file, *TINY, "--device", "cuda"]
    error = fails("train", "--out", tmp_path / "run", *given)
    assert "'cuda' was asked for, but torch finds no CUDA" in error
    assert list(tmp_path.iterdir()) == []


def test_sizes_that_no_memory_holds(cli, fails, song_file, tmp_path, trained):
    """8 petabytes are more than any process can address."""
    given = ["--text", song_file, *TINY, "--batch-size", 10**15]
    code, _, err = cli("train", "--out", tmp_path / "run", *given)
    assert code == 1
    assert "error: there is not enough memory" in err.splitlines()[-1]
    assert "not enough memory" in fails("sample", trained, "--tokens", 10**15)


SMALL = "text.txt is too short: of its {} characters the "
TEXTS = [  # what is in a file, and what is said about it
    (None, "can't be read: No such file"),
    (b"", "is empty: there is nothing to learn from"),
    (b"\xef\xbb\xbf", "is empty: there is nothing to learn from"),
    (
        b"caf\xe9 au lait" * 50,
        "is not UTF-8 text: byte 3 (0xe9) is not; if it is Latin",
    ),
    (
        "é".encode("utf-16") * 50,
        "looks like UTF-16: turn it into UTF-8 first, as by `ic",
    ),
    ("no mark".encode("utf-16-le") * 50, "looks like UTF-16: turn it into UTF-8 first"),
    ("no mark".encode("utf-16-be") * 50, "`iconv -f UTF-16BE -t UTF-8`"),
    (b"ab\0" * 50, "looks like no text: it is full of NUL bytes"),
    (gzip.compress(b"ab" * 50, mtime=0), "looks like a gzip archive: unpack it first"),
    (b"PK\x03\x04" + b"ab" * 50, "looks like a zip archive, or a document of Word: "),
    (b"%PDF-1.4\n" + b"ab" * 50, "looks like a PDF: save it as plain text first"),
    (
        b"a",
        SMALL.format(1) + "last tenth is measured, 1 tokens here; it takes at least 2",
    ),
    (b"ab" * 4, SMALL.format(8) + "last tenth is measured, 1 tokens here"),
    (b"ab" * 5, SMALL.format(10) + "last tenth is measured, 1 tokens here"),
    (b"abcd" * 5, None),
]


@pytest.mark.parametrize(("content", "match"), TEXTS)
def test_texts_that_do_not_do(cli, fails, trained, tmp_path, content, match):
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    given = ["train", "--out", tmp_path / "run", "--text", file, *TINY, "--steps", 1]
    if match is None:
        assert cli(*given)[0] == 0
        return
    error = fails(*given)
    assert match in error and str(file) in error
    assert not (tmp_path / "run").exists()
    if "short" not in match:
        assert fails("evaluate", trained, "--text", file) == error


def test_a_text_shorter_than_a_window(fails, song_file, tmp_path):
    given = ["--text", song_file, *TINY, "--block-size", 50, "--context"]
    error = fails("train", "--out", tmp_path / "run", *given, 0, "--block-size", 4000)
    assert "nine tenths are trained on, 3377 tokens here; block_size 4000" in error
    assert "needs at least 4001" in error
    error = fails("train", "--out", tmp_path / "run", *given, 51)
    assert "context is 51; it must be at most the model's block_size" in error


def given_by(monkeypatch, data):
    """Standard input that holds data."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_a_byte_order_mark_is_no_character(cli, song, tmp_path, monkeypatch):
    file = tmp_path / "text.txt"
    file.write_bytes(b"\xef\xbb\xbf" + song.text.encode())
    assert (
        cli("train", "--out", tmp_path / "run", "--text", file, *TINY, "--steps", 1)[0]
        == 0
    )
    tokenizer = load_checkpoint(tmp_path / "run")[1]
    assert tokenizer.characters == song.tokenizer.characters
    given_by(monkeypatch, b"\xef\xbb\xbf99")
    out = cli("sample", tmp_path / "run", "--prompt", "-", "--tokens", 0)[1]
    assert out == "99\n"


def test_several_texts_and_folders_of_them(cli, fails, tmp_path, planned, monkeypatch):
    files = {
        "b.txt": b"bbb\n" * 9,
        "docs/z.md": b"zzz\n\n" * 9,
        "docs/deep/y.txt": b"yyy" * 9,
        "docs/.hidden": b"hidden",
        "docs/.git/config": b"hidden",
        "docs/picture.png": b"\x89PNG\0\0",
        "docs/empty": b"",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none").mkdir()
    blank = ["b" + "bb\nb" * 8 + "bb", "y" * 27, "zzz\n\n" * 9]
    read = "read b.txt, docs/deep/y.txt, docs/z.md: 111 characters\n"
    left = (
        "left out docs/empty (is empty: there is nothing to learn from), docs/picture"
    )

    def text_of_plan(*given):
        seen = []
        real = train_command.encode_parts
        with monkeypatch.context() as patch:
            patch.setattr(
                train_command, "encode_parts", lambda *a: seen.append(a) or real(*a)
            )
            code, _, err = cli("train", "--out", "run", *given, "--block-size", 8)
        assert code == 0, err
        return str(seen[0][2].text), err, planned[-1][2]["about"]["text"]

    for given in ("--text b.txt docs", "--text b.txt --text docs"):
        text, err, noted = text_of_plan(*given.split())
        assert text == "\n\n".join(blank)
        assert err.startswith(read + left)
        assert noted == [str(tmp_path / "b.txt"), str(tmp_path / "docs")]
    text, err, noted = text_of_plan("--text", "b.txt")
    assert (err, noted) == ("", str(tmp_path / "b.txt")) and text == "bbb\n" * 9
    given_by(monkeypatch, files["b.txt"])
    text, err, noted = text_of_plan("--text", "-")
    assert err == "read standard input: 36 characters\n" and text == "bbb\n" * 9
    assert noted == "-"
    assert "none holds no text file" in fails("train", "--out", "run", "--text", "none")
    assert "left out" not in fails(
        "train", "--out", "run", "--text", "docs/picture.png"
    )


def test_several_texts_go_on_and_are_measured(cli, fails, song, tmp_path, monkeypatch):
    """Those of files are found again; one from standard input has to come again."""
    half = len(song.text) // 2
    folder, out, piped = (tmp_path / name for name in ("texts", "run", "piped"))
    folder.mkdir()
    (folder / "a").write_text(song.text[:half])
    (folder / "b").write_text(song.text[half:])
    steps = [*TINY, "--steps", 2]
    assert cli("train", "--out", out, "--text", folder, *steps)[0] == 0
    assert cli("train", "--out", out, "--resume")[0] == 0
    measured = cli("evaluate", out)
    assert measured[0] == 0
    given_by(monkeypatch, song.text.encode())
    assert cli("train", "--out", piped, "--text", "-", *steps)[0] == 0
    for again in (["train", "--resume", "--out"], ["evaluate"]):
        assert "came by standard input and was not kept" in fails(*again, piped)
        given_by(monkeypatch, song.text.encode())
        assert cli(*again, piped, "--text", "-")[0] == 0
    a, b = ("--text", folder / "a"), ("--text", folder / "b")
    assert cli("evaluate", out, *a, *b)[1] == measured[1]
    monkeypatch.setattr(sys, "stdin", None)
    assert "standard input can't be read: it" in fails("evaluate", piped, "--text", "-")


def test_an_out_that_exists(cli, fails, song_file, trained, tmp_path):
    before = {path: path.read_bytes() for path in trained.glob("*.*")}
    given = ["--text", song_file, *TINY]
    error = fails("train", "--out", trained, *given)
    assert f"{trained} exists and is not empty: resume the run in it" in error
    assert {path: path.read_bytes() for path in trained.glob("*.*")} == before
    error = fails("train", "--out", song_file, *given)
    assert "song.txt exists" in error
    error = fails("train", "--out", song_file / "run", *given)
    assert f"{song_file / 'run'} can't be written" in error


def test_a_loss_that_is_no_number(cli, song_file, tmp_path):
    frail = ["--optimizer", "adamw", "--qk-norm", "none", "--learning-rate", 1e18]
    given = ["--text", song_file, *TINY, *frail, "--warmup", 0]
    code, out, err = cli("train", "--out", tmp_path / "run", *given)
    assert (code, out) == (1, "")
    last = err.splitlines()[-1]
    assert re.match(r"error: .* at step \d+: .*learning rate \(1e\+18\)", last)
    load_checkpoint(tmp_path / "run")


# --- train --tokenizer ---

KINDS = {
    "char": [],
    "byte": ["--tokenizer", "byte"],
    "bpe": ["--tokenizer", "bpe", "--vocab-size", 300],
    "word": ["--tokenizer", "word", "--vocab-size", 30],
}


def stop_after(monkeypatch, steps):
    """Ctrl-C in the middle of a run; undone by `monkeypatch.undo()`."""
    real, done = Run.learn, []

    def step(*arguments):
        done.append(arguments)
        if len(done) > steps:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(Run, "learn", step)


@pytest.mark.parametrize("kind", KINDS)
def test_every_tokenizer_trains_resumes_writes_and_is_measured(
    cli, song_file, tmp_path, monkeypatch, kind
):
    given = ["--text", song_file, *TINY, "--steps", 8, "--save-every", 2, *KINDS[kind]]
    assert cli("train", "--out", tmp_path / "whole", *given)[0] == 0
    stop_after(monkeypatch, 5)
    assert cli("train", "--out", tmp_path / "run", *given)[0] == 130
    monkeypatch.undo()
    assert cli("train", "--out", tmp_path / "run", "--resume")[0] == 0
    whole, run = (read_run(tmp_path / name) for name in ("whole", "run"))
    assert run.history.losses == whole.history.losses
    assert run.history.evaluations == whole.history.evaluations
    assert run.tokenizer["type"] == kind

    code, out, err = cli("sample", tmp_path / "run", "--tokens", 20)
    assert (code, err) == (0, "") and out.startswith("\n")
    code, out, err = cli("evaluate", tmp_path / "run")
    assert (code, err) == (0, "")
    loss = run.history.evaluations[-1][1]
    assert f"{loss:.4f} nats per token" in out
    # Said again, the same settings are fine.
    assert cli("train", "--out", tmp_path / "run", "--resume", *given)[0] == 0


def test_merges_and_words_are_learnt_from_the_training_text_alone(
    cli, tmp_path, planned
):
    file = tmp_path / "text.txt"
    file.write_text("the cat sat. " * 90 + "zzzz qqqq " * 13)  # the end: to validate
    train_text, val_text = split(file.read_text())
    assert "q" not in train_text and "q" in val_text
    for kind in ("bpe", "word"):
        given = ["--tokenizer", kind, "--text", file]
        assert cli("train", "--out", tmp_path / "run", *given)[0] == 0
        tokenizer = planned[-1][2]["tokenizer"]
        alone = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
        learnt = alone[256:] if kind == "bpe" else alone
        assert any("cat" in token for token in learnt)
        assert not any("q" in token or "z" in token for token in learnt)


def test_sizes_are_what_was_asked_for(cli, song_file, tmp_path, planned):
    for given, size in (("bpe", 270), ("word", 40)):
        options = ["--tokenizer", given, "--vocab-size", size, "--text", song_file]
        assert cli("train", "--out", tmp_path / "run", *options)[0] == 0
        assert planned[-1][0].vocab_size == size
        assert planned[-1][2]["about"]["vocab_size"] == size


@pytest.mark.parametrize(
    ("kind", "size", "least"), [("bpe", 255, 256), ("bpe", -1, 256), ("word", 1, 2)]
)
def test_sizes_too_small_are_refused_before_the_text_is_read(
    fails, tmp_path, kind, size, least
):
    given = ["--tokenizer", kind, "--vocab-size", size, "--text", tmp_path / "none"]
    error = fails("train", "--out", tmp_path / "run", *given)
    assert f"vocab_size is {size}; it must be a whole number at least {least}" in error
    assert list(tmp_path.iterdir()) == []


def test_unknown_words_are_reported_with_the_bits(cli, tmp_path, monkeypatch):
    """And, where it takes longer than here, how far it has come."""
    target = "tinygpt_lib.commands.evaluate.bar"
    monkeypatch.setattr(target, lambda total, *_: tqdm(total=total))
    file = tmp_path / "text.txt"
    file.write_text("the cat sat on a mat\n" * 95 + "the zebra sat on a mat\n" * 5)
    given = ["--tokenizer", "word", "--text", file, *TINY, "--steps", 2]
    assert cli("train", "--out", tmp_path / "run", *given)[0] == 0
    code, out, err = cli("evaluate", tmp_path / "run")
    assert code == 0
    model, tokenizer = load_checkpoint(tmp_path / "run")
    val_text = split(file.read_text())[1]
    score = score_text(model, tokenizer, val_text)
    rest = tokenizer.pieces(val_text)[1:]
    assert score.n_unknown == rest.count(b" zebra") == 5
    size = sum(map(len, rest))
    assert f"| {len(rest)}/{len(rest)} [" in err
    assert f"{score.nats_per_token * len(rest) / math.log(2) / size:.4f} bits" in out
    share = f"{score.n_unknown} of the tokens ({score.n_unknown / len(rest):.1%})"
    assert out.splitlines()[3].startswith(f"{share} are unknown; what they stand for")


@pytest.mark.parametrize(
    ("given", "was"), [("--tokenizer bpe", "char"), ("--vocab-size 512", "the default")]
)
def test_going_on_with_another_tokenizer_is_refused(fails, stopped, given, was):
    error = fails("train", "--out", stopped, "--resume", *given.split())
    assert f"error: {given.split()[0]} is {given.split()[1]}, but the run" in error
    assert f"was started with {was}; leave it out to go on" in error


# --- train --resume ---


def test_going_on_with_the_same_settings_said_again(cli, song_file, trained, stopped):
    given = ["--preset", "cpu", *TINY, "--steps", 20, "--text", song_file]
    assert cli("train", "--out", stopped, "--resume", *given)[0] == 0
    assert read_run(stopped).history.losses == read_run(trained).history.losses


def test_going_on_with_a_copy_of_the_text(cli, song_file, stopped, tmp_path):
    copy = tmp_path / "copy.txt"
    copy.write_bytes(song_file.read_bytes())
    assert cli("train", "--out", stopped, "--resume", "--text", copy)[0] == 0


@pytest.mark.parametrize(
    ("given", "was"),
    [
        ("--steps 30", "20"),
        ("--n-embd 16", "8"),
        ("--bias", "False"),
        ("--attention explicit", "fused"),
    ],
)
def test_going_on_otherwise_is_refused(fails, stopped, given, was):
    error = fails("train", "--out", stopped, "--resume", *given.split())
    flag = given.split()[0].replace("--no-", "--")
    assert f"error: {flag} is " in error
    assert f"was started with {was}; leave it out to go on" in error
    assert len(read_run(stopped).history.losses) == 7


def test_going_on_with_another_preset_is_refused(fails, stopped, monkeypatch):
    presets = {**PRESETS, "gpu": cpu_preset}
    monkeypatch.setattr(train_command, "PRESETS", presets)
    error = fails("train", "--out", stopped, "--resume", "--preset", "gpu")
    assert "--preset is gpu, but the run in" in error
    assert "was started with cpu" in error


def test_going_on_with_another_text_is_refused(fails, song, stopped, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text(song.text[:-100] + song.text[:100])
    error = fails("train", "--out", stopped, "--resume", "--text", other)
    assert f"the run in {stopped} was started with another text" in error
    other.write_text(song.text.replace("g", "G"))
    assert "'G'" in fails("train", "--out", stopped, "--resume", "--text", other)
    other.unlink()
    error = fails("train", "--out", stopped, "--resume", "--text", other)
    assert f"{other} can't be read: No such file" in error
    assert len(read_run(stopped).history.losses) == 7


@pytest.mark.parametrize("given", [[], ["--steps", 20], ["--preset", "cpu"]])
def test_a_finished_run_says_so(cli, trained, given):
    before = (trained / "training.safetensors").read_bytes()
    code, out, err = cli("train", "--out", trained, "--resume", *given)
    assert (code, err) == (0, "")
    loss = read_run(trained).history.evaluations[-1][1]
    assert out.startswith(f"{trained} is finished: 20 steps in ")
    assert f" {loss:.4f} nats per token" in out
    assert (trained / "training.safetensors").read_bytes() == before


def test_going_on_with_no_run(fails, song, tiny_gpt, tmp_path):
    out = tmp_path / "nowhere"
    assert str(out) in fails("train", "--out", out, "--resume")
    assert not out.exists()
    save_checkpoint(tmp_path / "model", tiny_gpt(), song.tokenizer)
    error = fails("train", "--out", tmp_path / "model", "--resume")
    assert "training.safetensors can't be read: No such file" in error


# --- sample ---


def test_sample(cli, trained):
    code, out, err = cli("sample", trained, "--tokens", 30, "--prompt", "99 ")
    assert (code, err) == (0, "")
    assert out.startswith("99 ") and len(out) == 33 + 1
    assert len(cli("sample", trained)[1]) == 501 + 1
    assert cli("sample", trained, "--prompt", "99", "--tokens", 0)[1] == "99\n"


def test_without_a_seed_the_text_is_another_one(cli, trained):
    free = [cli("sample", trained, "--tokens", 60)[1] for _ in range(2)]
    assert free[0] != free[1]  # 60 draws of some 24 characters


def test_a_text_without_line_breaks_can_be_sampled(cli, tmp_path):
    file = tmp_path / "flat.txt"
    file.write_text("abc" * 50)
    given = ["--text", file, *TINY, "--steps", 1]
    assert cli("train", "--out", tmp_path / "run", *given)[0] == 0
    code, out, _ = cli("sample", tmp_path / "run", "--tokens", 9)
    assert code == 0 and re.fullmatch("[abc]{10}\n", out)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (["--prompt", "Ökonom"], "character 'Ö' at position 0 is not among the"),
        (["--prompt", ""], "the prompt is empty; it must hold at least one token"),
        (["--temperature", "nan"], "temperature is nan"),
        (["--top-k", 0], "top_k is 0; it must be a whole number in the range 1.."),
        (["--top-p", 0], "top_p is 0.0; it must be above 0 and at most 1"),
        (["--tokens", -1], "tokens is -1; it must be a whole number at least 0"),
        (["--seed", -1], "seed is -1; it must be a whole number in the range 0.."),
        (["--seed", 2**63], "seed is 9223372036854775808; it must be"),
        (["--device", "nonsense"], "device is 'nonsense'; it must be one of"),
    ],
)
def test_what_sample_refuses(fails, trained, given, match):
    assert match in fails("sample", trained, *given)


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_a_folder_without_a_checkpoint(fails, tmp_path, command):
    error = fails(command, tmp_path / "nowhere")
    assert "nowhere/config.json can't be read: No such file" in error
    assert "config.json can't be read: No such file" in fails(command, tmp_path)


def test_a_folder_of_another_kind(fails, song, tiny_gpt, trained, tmp_path):
    """Whatever is missing in it, the folder is called what it is."""
    detector, model = tmp_path / "detector", tmp_path / "model"
    detector.mkdir()
    write_tensors(detector / "detector.safetensors", {}, {})
    save_checkpoint(model, tiny_gpt(), song.tokenizer)
    kinds = {
        detector: "a detector, for `detect score`",
        trained: "a run, for `sample`, `evaluate` and `train --resume`",
        model: "a model without a run, for `sample` and `evaluate`",
    }
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    for command in ("sample", "evaluate"):
        assert f"`convert --from hf {tmp_path}` makes one" in fails(command, tmp_path)
    log = tmp_path / "log"
    log.write_text("a line\n")
    for command, wrong in (
        (["sample"], [detector]),
        (["evaluate"], [detector]),
        (["train", "--resume", "--out"], [detector, model]),
        (["detect", "score"], [trained, model]),
    ):
        for folder in wrong:
            error = fails(*command, folder, *[log] * (command[0] == "detect"))
            assert error.endswith(
                f"No such file or directory ({folder} holds {kinds[folder]})\n"
            )


# --- evaluate ---


def test_evaluate_is_right_in_bits_per_byte(cli, tmp_path):
    """Counted by hand: a token may be worth one byte or four."""
    text = "Füße: 25 € 😀 ñandú\n" * 30
    file = tmp_path / "text.txt"
    file.write_text(text, encoding="utf-8")
    given = ["--text", file, *TINY, "--steps", 5]
    assert cli("train", "--out", tmp_path / "run", *given)[0] == 0
    code, out, err = cli("evaluate", tmp_path / "run")
    assert (code, err) == (0, "")

    model, tokenizer = load_checkpoint(tmp_path / "run")
    _, ids = split(tokenizer.encode(text))
    nats = 0.0
    for start in range(0, len(ids) - 1, 8):  # block_size
        window = ids[start : start + 9]
        p = model(window[None, :-1])[0].log_softmax(-1)
        nats -= p.gather(1, window[1:, None]).double().sum().item()
    n = len(ids) - 1
    size = len(text[-n:].encode("utf-8"))
    assert size > n
    assert out.splitlines() == [
        f"{n} tokens predicted, the whole validation text",
        f"{nats / n:.4f} nats per token",
        f"{nats / math.log(2) / size:.4f} bits per byte",
    ]


def test_evaluate_on_another_text(cli, fails, song, trained, tmp_path):
    same = tmp_path / "same.txt"
    same.write_text(song.text)
    assert cli("evaluate", trained, "--text", same) == cli("evaluate", trained)
    other = tmp_path / "other.txt"
    other.write_text(song.text[1000:])
    assert cli("evaluate", trained, "--text", other)[1] != cli("evaluate", trained)[1]
    other.write_text("Zürich")
    assert "'Z'" in fails("evaluate", trained, "--text", other)
    other.write_text(song.text[:9])
    error = fails("evaluate", trained, "--text", other)
    assert "other.txt is too short: of its 9 characters the last tenth is" in error


@pytest.mark.parametrize("about", [None, [], "x", {}, {"text": None}])
def test_evaluate_without_a_noted_text_takes_the_plays(
    cli, song, tiny_gpt, tmp_path, monkeypatch, about
):
    monkeypatch.setattr(common, "load_shakespeare", lambda: song.text)
    save_checkpoint(tmp_path, tiny_gpt(), song.tokenizer)
    config = read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_bytes(json_file({**config, "about": about}))
    assert cli("evaluate", tmp_path)[0] == 0


def test_evaluate_notices_that_the_text_has_changed(cli, fails, song, tmp_path):
    file, out = tmp_path / "song.txt", tmp_path / "run"
    file.write_text(song.text)
    given = ["--text", file, *TINY, "--steps", 1]
    assert cli("train", "--out", out, *given)[0] == 0
    assert cli("evaluate", out)[0] == 0
    file.write_text(song.text[:40] + song.text)  # then the cut is elsewhere
    assert "song.txt is not the text any more" in fails("evaluate", out)
    assert cli("evaluate", out, "--text", file)[0] == 0


def test_evaluate_with_a_nonsense_note(fails, song, tiny_gpt, tmp_path):
    save_checkpoint(tmp_path, tiny_gpt(), song.tokenizer, {"text": 5})
    assert "notes 5 as its text" in fails("evaluate", tmp_path)


# --- Ctrl-C ---


def test_ctrl_c_saves_and_says_how_to_go_on(cli, song_file, tmp_path, monkeypatch):
    given = ["--text", song_file, *TINY, "--steps", 30, "--dropout", 0.1]
    given += ["--save-every", 1000, "--device", "cpu"]
    out, real, steps = tmp_path / "my runs" / "one", Run.learn, []

    def step(*arguments):
        steps.append(arguments)
        if len(steps) == 9:  # in the middle of a step, which is then taken
            os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)

    # As in the foreground, wherever the tests run.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Run, "learn", step)
            code, stdout, err = cli("train", "--out", out, *given)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert (code, stdout) == (130, "") and "Traceback" not in err
    assert len(read_run(out).history.losses) == 9
    quoted = shlex.quote(str(out))
    go_on = f"python -m tinygpt_lib train --out {quoted} --resume --device cpu"
    last = f"stopped after step 9; {out} holds the last checkpoint, go on with: "
    assert err.splitlines()[-1] == last + go_on
    load_checkpoint(out)

    assert cli(*shlex.split(go_on)[3:])[0] == 0
    assert cli("train", "--out", tmp_path / "never stopped", *given)[0] == 0
    expected = read_run(tmp_path / "never stopped").history
    history = read_run(out).history
    assert history.losses == expected.losses
    assert history.evaluations == expected.evaluations


def test_ctrl_c_in_the_middle_of_a_save(cli, stopped, monkeypatch):
    """A second Ctrl-C does not wait; what was saved before is there."""

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "write_run", interrupted)
    code, out, err = cli("train", "--out", stopped, "--resume")
    assert (code, out) == (130, "")
    assert f"\ninterrupted; {stopped} holds the last checkpoint, go on with" in err
    assert len(read_run(stopped).history.losses) == 7


def test_ctrl_c_before_there_is_a_run(cli, song_file, tmp_path, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_command, "train", interrupted)
    given = ["--text", song_file, *TINY]
    code, out, err = cli("train", "--out", tmp_path / "run", *given)
    assert (code, out, err) == (130, "", "\ninterrupted\n")


# --- Standard output ---


@pytest.mark.parametrize(
    ("out", "encoding", "code", "said", "err"),
    [
        ("file", "ascii", 0, b"\\u2603", ""),
        ("file", "latin-1", 0, b"\\u2603", ""),
        ("file", "utf-8", 0, "☃".encode(), ""),
        ("/dev/full", "utf-8", 1, None, "error: [Errno 28] No space left on device\n"),
        ("closed", "utf-8", 1, None, ""),
    ],
)
def test_what_was_generated_is_not_lost(
    song, tiny_gpt, tmp_path, monkeypatch, capsys, out, encoding, code, said, err
):
    """Nor is there a traceback where nobody can read it."""
    characters = song.tokenizer.characters
    save_checkpoint(tmp_path, tiny_gpt(), CharTokenizer(["☃", *characters[1:]]))
    arguments = ["sample", str(tmp_path), "--prompt", "☃", "--tokens", "1"]
    reading, closed = os.pipe()
    os.close(reading)
    where = {"file": tmp_path / "out", "closed": closed}.get(out, out)
    with monkeypatch.context() as patch, open(where, "w", encoding=encoding) as stdout:
        patch.setattr(sys, "stdout", stdout)
        assert main(arguments) == code
        assert said is None or stdout.errors == "strict"
    # Closed without an error, as by Python when it exits.
    assert capsys.readouterr().err == err
    assert said is None or where.read_bytes().startswith(said)
