"""The same in less time: parts with fewer passes, engines, slices, kept memory."""

import os
import platform
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

from tinygpt_lib import generate, keep_freed_memory
from tinygpt_lib.generation import KVCache
from tinygpt_lib.generation import generate as bare_generate
from tinygpt_lib.long_context import ATTENTIONS
from tinygpt_lib.modern_parts import (
    PARTS,
    Rotary,
    angles,
    squared_relu,
)
from tinygpt_lib.runs import fast as fast_module
from tinygpt_lib.runs import sampling
from tinygpt_lib.runs.fast import (
    QuickRotary,
    Rotate,
    SlicedLinear,
    SquaredReLU,
    quick_reader,
    turned,
)
from tinygpt_lib.runs.models import new_model
from tinygpt_lib.runs.settings import ENGINES, TrainConfig
from tinygpt_lib.speed import FastConfig, FastGPT

V, WINDOW = 11, 12


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make_model(**settings):
    """A GPT with opinions, in float64: no processor's rounding turns a near-tie."""
    torch.manual_seed(0)
    model = FastGPT(FastConfig(V, WINDOW, 2, 2, 16, **settings)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model.double()


def some_ids(B, T):
    return torch.randint(V, (B, T), generator=seeded())


# Engines


def test_engines_refuse_what_the_machine_lacks(monkeypatch):
    model = make_model()
    monkeypatch.setattr(fast_module, "has_bfloat16", lambda device: False)
    with pytest.raises(ValueError, match="engine 'bfloat16' would be slower"):
        ENGINES["bfloat16"](model, TrainConfig())
    monkeypatch.setattr(fast_module.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="needs a C\\+\\+ compiler"):
        ENGINES["compiled"](model, TrainConfig())


@pytest.mark.parametrize("slow", [torch.float32, torch.bfloat16])
def test_the_clock_decides_whether_there_is_bfloat16(monkeypatch, slow):
    """Products of one type take a second, a busy one hits both types once."""
    clock, calls = [0.0], []

    class Product:
        def __init__(self, dtype):
            self.dtype = dtype

        def __matmul__(self, other):
            calls.append(self.dtype)
            clock[0] += (1.0 if self.dtype == slow else 0.5) + (len(calls) in (3, 4))

    monkeypatch.setattr(fast_module.torch, "ones", lambda *_, dtype: Product(dtype))
    monkeypatch.setattr(fast_module.time, "perf_counter", lambda: clock[0])
    has = fast_module.has_bfloat16(torch.device("cpu"))
    assert has == (slow == torch.float32)
    assert set(calls) == {torch.float32, torch.bfloat16}


# Memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc listens")
def test_freed_memory_is_kept():
    code = """
import resource, torch
from tinygpt_lib import keep_freed_memory
x = torch.ones(2**22)

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        x.clone()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = new_pages()
print(keep_freed_memory(), keep_freed_memory(2**28))
x.clone()
print(new_pages() < first / 4)
"""
    tunable = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # as if 16 MB were more than it keeps
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | tunable,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["True"] * 3


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(fast_module.sys, "platform", "darwin")
    assert keep_freed_memory() is False


# The quick reader

slice_all = partial(quick_reader, large=0)  # however small

SWITCHES = {
    "attention": ATTENTIONS,
    "norm": PARTS["norm"],
    "feed_forward": PARTS["feed_forward"],
    "position": PARTS["position"],
    "qk_norm": PARTS["qk_norm"],
    "n_kv_head": (0, 1),
    "tie_weights": (True, False),
    "bias": (True, False),
}


def test_every_switch_gives_the_same_logits_and_the_same_tokens(covering):
    for switches in covering(**SWITCHES):
        window = 5 if switches["attention"] == "sliding" else 0
        model = make_model(**switches, window=window)
        twin, ids = slice_all(model), some_ids(3, WINDOW)
        with torch.no_grad():
            ours, theirs = KVCache(twin), KVCache(model)
            for end in (5, 6, 7, 11, 12):
                torch.testing.assert_close(
                    ours.read(ids[:, :end]),
                    theirs.read(ids[:, :end]),
                    atol=1e-9,
                    rtol=1e-9,
                    msg=lambda text, s=switches: f"{s}: {text}",
                )
        texts = [
            bare_generate(m, ids[:, :7], 7, generator=seeded(1)) for m in (model, twin)
        ]
        assert torch.equal(*texts), switches


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n_out", [1, 7, 12, 48])
@pytest.mark.parametrize(
    "shape", [(), (1,), (3, 1), (2, 5), (4, 8), (3, 11), (2, 3, 4)]
)
def test_slices_together_are_the_whole(shape, n_out, bias):
    torch.manual_seed(0)
    linear = nn.Linear(6, n_out, bias=bias, dtype=torch.float64)
    x = torch.randn(*shape, 6, dtype=torch.float64)
    with torch.no_grad():
        y = SlicedLinear(linear)(x)
        torch.testing.assert_close(y, linear(x), atol=1e-14, rtol=1e-12)


def test_the_twin_shares_every_parameter_and_follows_its_changes():
    model = make_model()
    twin, ids = slice_all(model), some_ids(1, 4)
    assert [p.data_ptr() for p in twin.parameters()] == [
        p.data_ptr() for p in model.parameters()
    ]
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
        torch.testing.assert_close(twin(ids), model(ids), atol=1e-9, rtol=1e-9)


def test_the_model_itself_keeps_its_parts():
    model = make_model()
    before = [(name, id(part)) for name, part in model.named_modules()]
    twin = slice_all(model)
    assert [(name, id(part)) for name, part in model.named_modules()] == before
    assert any(isinstance(part, SlicedLinear) for part in twin.modules())
    assert not any(isinstance(part, SlicedLinear) for part in model.modules())


def test_small_layers_and_layers_of_another_kind_stay_whole():
    class Own(nn.Linear):
        pass

    parts = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 5), Own(9, 9))
    kinds = [type(part) for part in quick_reader(parts, large=20)]
    assert kinds == [nn.Linear, SlicedLinear, Own]


def test_hooks_of_parts_are_called_as_before():
    model, seen = make_model(), []
    for part in (model.blocks[1].feed_forward, model.blocks[1].attention.output):
        part.register_forward_hook(lambda part, args, y: seen.append(y.shape[1]))
    bare_generate(slice_all(model), some_ids(1, 4), 3)
    assert seen == [4, 4, 1, 1, 1, 1]


def test_it_is_what_generate_uses_on_the_cpu(monkeypatch):
    calls = []
    monkeypatch.setattr(sampling, "quick_reader", slice_all)
    forward = SlicedLinear.forward
    monkeypatch.setattr(
        SlicedLinear, "forward", lambda self, x: calls.append(1) or forward(self, x)
    )
    generate(make_model(), some_ids(1, 3), 4)
    assert len(calls) == 4 * (2 * 4 + 1)  # passes, layers of two blocks, the head


# Squared ReLU


def test_squared_relu_is_the_plain_one_there_and_back():
    x = torch.randn(7, 5, dtype=torch.float64, generator=seeded())
    x[0] = 0.0  # where the slope could go either way
    x.requires_grad_()
    slope = torch.randn(7, 5, dtype=torch.float64, generator=seeded(1))
    plain, ours = squared_relu(x), SquaredReLU.apply(x)
    assert torch.equal(ours, plain)
    torch.testing.assert_close(
        *(torch.autograd.grad(y, x, slope)[0] for y in (ours, plain))
    )
    assert torch.autograd.gradcheck(SquaredReLU.apply, x.detach()[1:].requires_grad_())


def test_squared_relu_refuses_a_second_way_back():
    x = torch.ones(3, requires_grad=True)
    loss = SquaredReLU.apply(x).square().sum()
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


# Turning queries and keys


def test_the_quick_turn_is_the_plain_one_there_and_back():
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64, generator=seeded())
    x = x.transpose(1, 2).requires_grad_()  # (B, H, T, D) as heads come: not in a row
    cos, sin = angles(3, 8, 8, 10_000, 1).cos(), angles(3, 8, 8, 10_000, 1).sin()
    slope = torch.randn(2, 3, 5, 8, dtype=torch.float64, generator=seeded(1))
    plain, ours = Rotary.turn(x, cos, sin), Rotate.apply(x, cos, sin)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(
        *(torch.autograd.grad(y, x, slope)[0] for y in (ours, plain))
    )
    assert torch.autograd.gradcheck(lambda x: Rotate.apply(x, cos, sin), x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_quick_turn_takes_what_autocast_hands_it(dtype):
    x = torch.randn(1, 2, 5, 8, generator=seeded()).to(dtype)
    turns = angles(0, 5, 8, 10_000, 1).float()
    plain = Rotary.turn(x, turns.cos(), turns.sin())
    ours = turned(x, turns.cos(), turns.sin())
    assert ours.dtype == plain.dtype == torch.float32
    torch.testing.assert_close(ours, plain)


def test_a_new_model_has_the_quick_parts_and_computes_the_same(covering):
    for switches in covering(**SWITCHES):
        window = 5 if switches["attention"] == "sliding" else 0
        plain, ids = make_model(**switches, window=window), some_ids(2, WINDOW)
        quick = new_model(plain.config).double()
        quick.load_state_dict(plain.state_dict())
        torch.testing.assert_close(quick(ids), plain(ids), atol=1e-9, rtol=1e-9)
        kinds = {type(part) for part in quick.modules()}
        assert (QuickRotary in kinds) == (switches["position"] == "rotary")
        assert Rotary not in kinds
        bend = getattr(quick.blocks[0].feed_forward, "activation", None)
        assert (bend == SquaredReLU.apply) == (switches["feed_forward"] == "relu2")


def test_all_blocks_share_one_table_of_turns():
    config = FastConfig(5, block_size=8, n_layer=2, n_embd=16, position="rotary")
    turns = [block.attention.turns for block in new_model(config).blocks]
    assert type(turns[0]) is QuickRotary and turns[0] is turns[1]
