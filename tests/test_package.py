"""The package from outside: its names, what its import costs, and the device."""

import importlib
import inspect
import json
import os
import pkgutil
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import torch

import tinygpt_lib
from tinygpt_lib import multi_head
from tinygpt_lib.basics import devices as _device
from tinygpt_lib.basics.devices import check_attention, choose_device, device_of
from tinygpt_lib.basics.extras import ANALYSIS, analysis

ROOT = Path(__file__).resolve().parent.parent

PROMISED = """load_shakespeare CharTokenizer GPTConfig GPT TrainConfig train evaluate
    generate save_checkpoint load_checkpoint""".split()
MODULES = [
    info.name
    for info in pkgutil.iter_modules(tinygpt_lib.__path__)
    if not info.name.startswith("_") and not info.ispkg
]
HEAVY = ["matplotlib", "IPython", "requests", "pooch", "transformers"]


@pytest.mark.parametrize("name", PROMISED)
def test_the_names_that_scripts_count_on_are_there(name):
    assert callable(getattr(tinygpt_lib, name))
    assert name in tinygpt_lib.__all__


def test_all_names_exist_once_and_are_explained():
    names = tinygpt_lib.__all__
    assert len(set(names)) == len(names)
    for name in set(names) - {"__version__"}:
        thing = getattr(tinygpt_lib, name)
        # `__doc__` of the class itself: inspect.getdoc would take a parent's.
        assert thing.__doc__ and thing.__doc__.strip(), name
    assert tinygpt_lib.__version__.count(".") >= 1


def test_every_chapter_has_its_module():
    assert {"text", "bigram", "single_head", "multi_head", "blocks", "gpt"} < {*MODULES}
    assert {"training", "generation"} < {*MODULES}


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_of_a_module_is_explained(name):
    module = importlib.import_module(f"tinygpt_lib.{name}")
    assert module.__doc__
    assert sorted(set(module.__all__)) == sorted(module.__all__)
    for public in module.__all__:
        getattr(module, public)
    for public, thing in vars(module).items():
        own = getattr(thing, "__module__", None) == module.__name__
        if own and not public.startswith("_"):
            if inspect.isfunction(thing) or inspect.isclass(thing):
                text = thing.__doc__ or ""
                made_up = text.startswith(f"{public}(")  # a dataclass writes its own
                assert text.strip() and not made_up, f"{name}.{public}"


IMPORT = f"""
import json, sys, time
import torch
start = time.process_time()
import tinygpt_lib
cost = time.process_time() - start
heavy = [name for name in {HEAVY} if name in sys.modules]
print(json.dumps([cost, heavy]))
"""


def fresh_import():
    """CPU seconds of `import tinygpt_lib` after `import torch`; what it brings."""
    run = [sys.executable, "-c", IMPORT]
    done = subprocess.run(run, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


ALONE = """
import importlib, json, pkgutil, re, sys, types
import torch

def tables():
    found = {}
    for name, module in list(sys.modules.items()):
        if name.startswith("tinygpt_lib."):
            for constant, value in vars(module).items():
                if constant.isupper() and isinstance(value, dict | tuple | set | list):
                    rows = value.items() if isinstance(value, dict) else value
                    found[f"{name}.{constant}"] = sorted(
                        re.sub(" at 0x[0-9a-f]+", "", str(
                            [getattr(x, "__qualname__", type(x).__name__)
                             if callable(x) else x for x in row]
                            if isinstance(row, tuple) else row)) for row in rows)
    return found

def forget():
    for name in [n for n in sys.modules if n.partition(".")[0] == "tinygpt_lib"]:
        del sys.modules[name]

import tinygpt_lib
path, whole = tinygpt_lib.__path__, tables()
names = [m.name for m in pkgutil.walk_packages(path, "tinygpt_lib.")]
for name in names:
    if not name.endswith("__main__"):
        forget()
        # A package that imports nothing by itself.
        sys.modules["tinygpt_lib"] = types.ModuleType("tinygpt_lib")
        sys.modules["tinygpt_lib"].__path__ = path
        importlib.import_module(name)
        for table, rows in tables().items():
            if rows != whole.get(table, rows):
                print(f"{table} is another one where {name} is imported alone")
"""


def test_importing_a_module_changes_no_other():
    """Each module alone finds every table as it is where all are imported."""
    run = [sys.executable, "-c", ALONE]
    assert subprocess.run(run, check=True, capture_output=True, text=True).stdout == ""


def test_the_import_is_cheap_and_brings_nothing_heavy():
    cost, heavy = fresh_import()
    assert not heavy
    # 0.05 on a quiet machine; once more, if other work emptied the caches meanwhile.
    assert cost < 0.3 or fresh_import()[0] < 0.3


# --- The types that a program sees ---

CLIENT = """
from typing import assert_type

from torch import Tensor

from tinygpt_lib import (load_shakespeare, CharTokenizer, ByteTokenizer, BPETokenizer,
                         WordTokenizer, GPTConfig, GPT, TrainConfig, train, evaluate,
                         generate, save_checkpoint, load_checkpoint)
from tinygpt_lib.training import History

text = assert_type(load_shakespeare(), str)
tok = assert_type(CharTokenizer.from_text(text), CharTokenizer)
assert_type(BPETokenizer.from_text(text, vocab_size=512), BPETokenizer)
assert_type(WordTokenizer.from_text(text).vocab_size, int)
ids = assert_type(ByteTokenizer().encode(text), Tensor)
model = GPT(GPTConfig(tok.vocab_size, block_size=64, n_layer=4, n_head=4, n_embd=128))
history = assert_type(train(model, ids, ids, TrainConfig(steps=9)), History)
assert_type(history.losses, list[float])
assert_type(evaluate(model, ids), float)
out = assert_type(generate(model, ids[None], 200, temperature=0.8, top_k=5), Tensor)
assert_type(tok.decode(out[0]), str)
save_checkpoint("runs/small", model, tok)
assert_type(load_checkpoint("runs/small")[0], GPT)
"""
# What no public name's type comes from: without these mypy needs a third of the time.
UNREAD = """_dynamo _export _functorch _higher_order_ops _inductor _prims _refs ao cuda
    _subclasses distributed export fx jit masked multiprocessing onnx profiler testing
    utils.data""".split()


def type_check(program, folder):
    (folder / "client.py").write_text(program)
    unread = ",".join(f"torch.{name}.*" for name in UNREAD) + ",sympy.*,networkx.*"
    settings = (
        "[mypy]\nstrict = true\nfollow_imports = silent\n"
        f"[mypy-{unread}]\nfollow_imports = skip\n"
    )
    (folder / "mypy.ini").write_text(settings)
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "client.py"]
    command += ["--cache-dir", str(ROOT / ".mypy_cache")]
    env = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    return done.stdout + done.stderr


def test_a_program_sees_the_types_of_the_library(tmp_path):
    assert (ROOT / "tinygpt_lib/py.typed").exists()
    assert type_check(CLIENT, tmp_path).startswith("Success")
    wrong = CLIENT.replace("steps=9", 'steps="9"').replace(
        "(model, ids), float", "(9, ids), str"
    )
    said = type_check(wrong, tmp_path)
    assert '"TrainConfig" has incompatible type "str"; expected "int"' in said
    assert '"evaluate" has incompatible type "int"' in said
    assert 'Expression is of type "float", not "str"' in said


# --- What only the analyses need ---


@pytest.mark.parametrize("name", [*ANALYSIS, "sklearn.base"])
def test_a_missing_package_is_an_error_that_names_its_extra(monkeypatch, name):
    for module in [m for m in sys.modules if m.partition(".")[0] == name[:7]]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed

    @analysis()
    def by_decorator():
        importlib.import_module(name)

    wanted = rf"{name}.* is missing: `pip install 'tinygpt-lib\[analysis\]'`"
    with pytest.raises(ModuleNotFoundError, match=wanted):
        by_decorator()
    with pytest.raises(ModuleNotFoundError, match=wanted), analysis():
        importlib.import_module(name)


def test_another_missing_package_keeps_its_error():
    with pytest.raises(ModuleNotFoundError, match="No module named 'nonesuch'"):
        with analysis():
            importlib.import_module("nonesuch")


# --- The package as it is built and installed ---


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A source distribution, and a wheel made of nothing but that."""
    folder = tmp_path_factory.mktemp("build")
    tree = folder / "tree"
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "tinygpt_lib", tree / "tinygpt_lib", ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    hook = (
        "import sys, setuptools.build_meta as b; getattr(b, sys.argv[1])(sys.argv[2])"
    )

    def build(what, source):
        command = [sys.executable, "-c", hook, f"build_{what}", str(folder)]
        done = subprocess.run(command, cwd=source, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    build("sdist", tree)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    build("wheel", folder / sdist.name.removesuffix(".tar.gz"))
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_the_wheel_holds_the_library_and_its_data(built):
    with zipfile.ZipFile(built) as archive:
        names = archive.namelist()
        (about,) = (name for name in names if name.endswith("/METADATA"))
        about = message_from_bytes(archive.read(about))
    held = {name for name in names if name.startswith("tinygpt_lib/")}
    kinds = (".py", ".json", ".typed", ".html", ".css", ".js")
    files = [path for path in (ROOT / "tinygpt_lib").rglob("*") if path.suffix in kinds]
    assert held == {path.relative_to(ROOT).as_posix() for path in files}
    assert about["Version"] == tinygpt_lib.__version__
    extras = [
        need
        for need in about.get_all("Requires-Dist")
        if "'analysis'" in need.replace('"', "'")
    ]
    assert len(extras) == len(ANALYSIS)
    assert "](" not in about.get_payload()  # a link there would lead nowhere


INSTALLED = """
import sys, torch, tinygpt_lib
from tinygpt_lib import *
assert tinygpt_lib.__file__.startswith(sys.prefix), tinygpt_lib.__file__
tok = CharTokenizer.from_text("to be or not to be")
model = GPT(GPTConfig(tok.vocab_size, block_size=8, n_layer=1, n_head=1, n_embd=8))
save_checkpoint("tiny", model, tok)
"""


def test_the_wheel_works_in_a_bare_environment(built, tmp_path):
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    programs = bare / ("Scripts" if os.name == "nt" else "bin")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def run(*command):
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    python = programs / "python"
    pip = [sys.executable, "-m", "pip", "--python", python]
    run(*pip, "install", "--no-deps", "--no-index", built)
    # torch and the like are those of this environment; ours is not taken from a path
    # file of a path file, as an editable install would need.
    (site,) = bare.rglob("site-packages")
    others = Path(torch.__file__).parent.parent
    (site / "others.pth").write_text(str(others))
    run(python, "-c", INSTALLED)
    assert "train" in run(programs / "tinygpt", "--help")
    text = run(
        programs / "tinygpt", "sample", "tiny", "--tokens", "30", "--prompt", "to"
    )
    assert text.startswith("to") and len(text.rstrip("\n")) >= 30


def test_the_project_is_cited_and_described_as_it_is():
    about = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    oldest = about["project"]["requires-python"].removeprefix(">=")
    tested = (ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8")
    assert f'"{oldest}"' in tested
    version = f"version: {tinygpt_lib.__version__}\n"
    assert version in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {tinygpt_lib.__version__}" in changes


# --- The device ---


def test_the_cpu_is_always_there():
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("there", [True, False])
def test_auto_takes_cuda_where_there_is_one(monkeypatch, there):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto").type == ("cuda" if there else "cpu")
    assert choose_device() == choose_device("auto")


@pytest.mark.parametrize("name", ["tpu", "", "CPU", "cuda0", "auto:1", "cpu:x"])
def test_an_unknown_device_is_named_with_the_known_ones(name):
    with pytest.raises(ValueError, match=rf"'{name}'.*auto, cpu, cuda, mps"):
        choose_device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_a_device_that_is_not_there_is_named(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match=f"'{name.split(':')[0]}'"):
        choose_device(name)


def test_mps_is_taken_only_after_its_check(monkeypatch):
    checked = []
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(_device, "check_attention", checked.append)
    assert choose_device("mps") == torch.device("mps")
    assert checked == [torch.device("mps")]


def test_fused_attention_is_right_on_the_cpu():
    check_attention(torch.device("cpu"))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda q, k, v: v,
        lambda q, k, v: v * float("nan"),
        lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v),
    ],
    ids=["values", "nan", "not causal"],
)
def test_a_wrong_fused_attention_is_found_out(monkeypatch, wrong):
    monkeypatch.setattr(multi_head, "fused_attention", wrong)
    with pytest.raises(RuntimeError, match="fused and explicit attention differ"):
        check_attention(torch.device("cpu"))


def test_attention_wrong_only_with_earlier_keys_is_found_out(monkeypatch):
    """As generation with a cache calls it: fewer queries than keys."""
    right = multi_head.fused_attention

    def wrong(q, k, v):
        return right(q, k, v) * (1.0 if q.shape == k.shape else 1.01)

    monkeypatch.setattr(multi_head, "fused_attention", wrong)
    with pytest.raises(RuntimeError, match="fused and explicit attention differ"):
        check_attention(torch.device("cpu"))


def test_the_device_of_a_model_is_that_of_its_first_tensor():
    with torch.device("meta"):
        assert device_of(torch.nn.Linear(2, 2)).type == "meta"
        assert device_of(torch.nn.BatchNorm1d(2, affine=False)).type == "meta"
    assert device_of(torch.nn.Linear(2, 2)).type == "cpu"
    assert device_of(torch.nn.Identity()).type == "cpu"


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, "None 1000"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None"),
        ({"GOMP_SPINCOUNT": "7"}, "None 7"),
    ],
)
def test_threads_that_wait_sleep_unless_told_otherwise(own, expected):
    names = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
    code = f"import os, tinygpt_lib; print(*map(os.environ.get, {names}))"
    env = {k: v for k, v in os.environ.items() if k not in names} | own
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, env=env, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == expected
