"""What the machine can do, how near a step of ours comes, and how its cost grows.

Each function is a section of bench.py: (peers, repeats) -> plain data.
"""

import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from harness import corpus, ratios, significant, spread, take_turns
from peers import LARGE, VOCAB, Peers

from tinygpt_lib import FastConfig, TrainConfig, keep_freed_memory, new_model
from tinygpt_lib.runs.run import Run
from tinygpt_lib.speed import step_operations

# --- What the machine can do ---

BATCH = 8  # windows of 256: 2,048 tokens
TOKENS = BATCH * LARGE["block_size"]
C = LARGE["n_embd"]
# (m, k, n): squares, and products that a step of the large model has.
SHAPES = (
    (512, 512, 512),
    (1024, 1024, 1024),
    (2048, 2048, 2048),
    (TOKENS, C, 3 * C),
    (TOKENS, C, 4 * C),
    (TOKENS, 4 * C, C),
    (4 * C, TOKENS, C),
)
SLOW = 5  # times slower than float32: no type for this CPU
PATIENCE = 0.1  # seconds for each shape, and at least one product


def product_speed(shape: tuple[int, int, int], dtype: torch.dtype) -> float:
    """GFLOP/s of a matrix product (m, k) @ (k, n), by a linear layer."""
    m, k, n = shape
    x, weight = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
    F.linear(x[: m // 8], weight)
    done, begin = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - begin) < PATIENCE or not done:
        F.linear(x, weight)
        done += 1
    return 2 * m * k * n * done / elapsed / 1e9


def copy_speed(megabytes: int = 256) -> float:
    """GB/s of copying, bytes read and bytes written, in memory that was used before."""
    source = torch.ones(megabytes * 2**18)
    target = torch.zeros_like(source)
    target.copy_(source)
    begin, times = time.perf_counter(), 3
    for _ in range(times):
        target.copy_(source)
    seconds = time.perf_counter() - begin
    return 2 * times * source.numel() * source.element_size() / seconds / 1e9


@contextmanager
def product_precision(name: str) -> Iterator[None]:
    """torch's setting for products of float32, put back afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


SETTINGS = {  # name: type of the products measured, precision, context of the step
    "float32": (torch.float32, "highest", nullcontext),
    "float32, medium": (torch.float32, "medium", nullcontext),
    "bfloat16": (
        torch.bfloat16,
        "highest",
        partial(torch.autocast, "cpu", dtype=torch.bfloat16),
    ),
}


def peak(peers: Peers, repeats: int) -> dict:
    """The best speed of matrix products, and the share of it that a step reaches.

    Steps and products take turns, in one process that keeps freed memory, as that of
    the command line does. A round's share is that of its own best product.
    """
    keep_freed_memory()
    run = large_run()
    operations = step_operations(run.model)
    result = {
        "shape": {**LARGE, "batch_size": BATCH},
        "parameters": run.model.n_parameters(),
        "operations per token": operations,
        "copying, GB/s": spread([copy_speed() for _ in range(repeats)]),
        "settings": {},
    }
    probe = product_speed(SHAPES[0], torch.float32)
    for name, (dtype, precision, around) in SETTINGS.items():
        print(f"  {name}, GFLOP/s")
        with product_precision(precision):
            slow = product_speed(SHAPES[0], dtype) < probe / SLOW
            result["settings"][name] = (
                products_alone(dtype)
                if slow
                else share_of_peak(run, operations, dtype, around, repeats)
            )
    return result


def products_alone(dtype: torch.dtype) -> dict:
    """What there is to say where the CPU has no instructions for a type."""
    return {
        "peak GFLOP/s": spread([product_speed(SHAPES[0], dtype)]),
        "step left out": f"more than {SLOW} times slower than float32 on this CPU",
    }


def share_of_peak(run, operations, dtype, around, repeats: int) -> dict:
    """Products and steps in turns; each round's step over its best product."""
    by_shape = []
    per_token = sum(operations.values())

    def products():
        by_shape.append([product_speed(shape, dtype) for shape in SHAPES])
        return max(by_shape[-1])

    def step():
        begin = time.perf_counter()
        with around():
            run.take_step()
        return TOKENS * per_token / (time.perf_counter() - begin) / 1e9

    step()
    got, _ = take_turns({"ours, products": products, "ours": step}, repeats)
    best, steps = got["ours, products"], got["ours"]
    medians = map(statistics.median, zip(*by_shape, strict=True))
    return {
        "peak GFLOP/s": spread(best),
        "by shape": {
            "x".join(map(str, shape)): significant(speed)
            for shape, speed in zip(SHAPES, medians, strict=True)
        },
        "step GFLOP/s": spread(steps),
        "step ms": spread([TOKENS * per_token / s / 1e6 for s in steps]),
        "tokens/s": spread([1e9 * s / per_token for s in steps]),
        "share of peak": ratios(steps, best),
    }


def large_run() -> Run:
    """A training run of the large model, ready to take steps."""
    torch.manual_seed(0)
    _, train_ids, val_ids = corpus()
    model = new_model(FastConfig(VOCAB, **LARGE))
    config = TrainConfig(steps=10_000, batch_size=BATCH)
    return Run(model, train_ids, val_ids[:2], config)


# --- How the cost grows ---

BASE = {"n_embd": 256, "context": 128, "batch_size": 8}
STEP_TOKENS = BASE["context"] * BASE["batch_size"]
WIDTHS = (64, 96, 128, 192, 256, 384, 512)
CONTEXTS = (16, 32, 64, 128, 256, 512, 1024)
BATCHES = (1, 2, 4, 8, 16, 32)


def grids() -> dict[str, list[dict]]:
    """One thing grows at a time, around BASE: 4 layers, heads of 32, float32.

    Against the context, the tokens in a step stay the same, so the windows get fewer.
    """
    return {
        "parameters": [{**BASE, "n_embd": width} for width in WIDTHS],
        "context": [
            {**BASE, "context": T, "batch_size": STEP_TOKENS // T} for T in CONTEXTS
        ],
        "batch": [{**BASE, "batch_size": B} for B in BATCHES],
    }


def scaling_cost(peers: Peers, repeats: int) -> dict:
    """Microseconds of training a token against parameters, context and batch.

    The slope is that of a line through the logarithms: time per token ~ size^slope.
    Freed memory is kept, as the command line does.
    """
    keep_freed_memory()
    _, train_ids, val_ids = corpus()
    grown = {name: {} for name in grids()}
    parameters = []
    for name, points in grids().items():
        for point in points:
            run = run_of(point, train_ids, val_ids[:2])
            if name == "parameters":
                parameters.append(run.model.n_parameters())
            run.take_step()
            grown[name][f"ours, {name} {point}"] = partial(per_token, run)
    contenders = {k: v for points in grown.values() for k, v in points.items()}
    got, _ = take_turns(contenders, repeats, say=lambda text: None)
    sizes = {"parameters": parameters, "context": CONTEXTS, "batch": BATCHES}
    result = {"base": {**BASE, "n_layer": 4, "head_size": 32}, "unit": "us per token"}
    for name, points in grown.items():
        times = [got[label] for label in points]
        result[name] = {
            "points": [
                {"size": size, **point, **spread(values)}
                for size, point, values in zip(
                    sizes[name], grids()[name], times, strict=True
                )
            ],
            "slope": slopes(sizes[name], times),
        }
        print(f"  {name}: slope {result[name]['slope']['median']}")
    return result


def run_of(point: dict, train_ids, val_ids) -> Run:
    """A training run of the model, context and batch that a point of a grid names."""
    torch.manual_seed(0)
    C = point["n_embd"]
    model = new_model(
        FastConfig(VOCAB, point["context"], n_layer=4, n_head=C // 32, n_embd=C)
    )
    config = TrainConfig(steps=10_000, batch_size=point["batch_size"])
    return Run(model, train_ids, val_ids, config)


def per_token(run: Run, patience: float = 0.15) -> float:
    """Microseconds of training a token, by the median of some steps."""
    times = []
    while sum(times) < patience:
        begin = time.perf_counter()
        run.take_step()
        times.append(time.perf_counter() - begin)
    return 1e6 * statistics.median(times) / (run.config.batch_size * run.context)


def slopes(sizes: list[float], times: list[list[float]]) -> dict:
    """The spread of the slopes of log time against log size, round by round."""
    logs = [math.log(size) for size in sizes]
    return spread(
        [slope(logs, [math.log(t) for t in turn]) for turn in zip(*times, strict=True)]
    )


def slope(x: list[float], y: list[float]) -> float:
    return statistics.linear_regression(x, y).slope
