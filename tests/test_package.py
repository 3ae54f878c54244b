"""The package from outside: its names, what its import costs, and the device."""

import importlib
import inspect
import json
import pkgutil
import statistics
import subprocess
import sys

import pytest
import torch

import tinygpt_lib
from tinygpt_lib import _device, multi_head
from tinygpt_lib._device import check_attention, choose_device, device_of

PROMISED = """load_shakespeare CharTokenizer GPTConfig GPT TrainConfig train evaluate
    generate save_checkpoint load_checkpoint""".split()
MODULES = [
    info.name
    for info in pkgutil.iter_modules(tinygpt_lib.__path__)
    if not info.name.startswith("_")
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
start = time.perf_counter()
import tinygpt_lib
cost = time.perf_counter() - start
heavy = [name for name in {HEAVY} if name in sys.modules]
print(json.dumps([cost, heavy]))
"""


def fresh_import():
    """Seconds that `import tinygpt_lib` takes after `import torch`; what it brings."""
    run = [sys.executable, "-c", IMPORT]
    done = subprocess.run(run, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def test_the_import_is_cheap_and_brings_nothing_heavy():
    for _attempt in range(2):  # another process may have had the machine
        costs, heavy = zip(*(fresh_import() for _ in range(3)), strict=True)
        assert not any(heavy)
        if statistics.median(costs) < 0.3:
            break
    assert statistics.median(costs) < 0.3


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
