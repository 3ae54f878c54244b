"""What chapters 03 to 08 compare over several seeds or rates, too long there.

    python benchmarks/part_one.py           # half an hour of one core: part_one.json
    python benchmarks/part_one.py heads     # one comparison of it

Models and loops are the chapters' own: their definitions are read from notebooks/text,
and each chapter runs one of these runs again.
"""

import argparse
import ast
import importlib
import math
import statistics
from dataclasses import asdict, replace
from functools import partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from harness import HERE, REPO, corpus, machine, update, versions
from torch import nn

from tinygpt_lib import GPT, GPTConfig, TrainConfig, evaluate, train
from tinygpt_lib.bigram import SGD, NGram, training_step
from tinygpt_lib.training import cpu_preset

TOKENIZER, TRAIN_IDS, VAL_IDS = corpus()


def chapter(name: str, *wanted: str, **settings) -> SimpleNamespace:
    """What a chapter imports and exports, and the `wanted` of its other definitions."""
    text = (REPO / "notebooks" / "text" / f"{name}.py").read_text(encoding="utf-8")
    kept = [
        node
        for node in ast.parse(text).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        or getattr(node, "name", None) in wanted
    ]
    names = dict(vars(importlib.import_module(f"tinygpt_lib.{name[3:]}")))
    names |= {"V": TOKENIZER.vocab_size, "train_ids": TRAIN_IDS, "val_ids": VAL_IDS}
    names |= settings
    exec(compile(ast.Module(kept, []), name, "exec"), names)
    return SimpleNamespace(**names)


def number(x: float) -> float | None:
    """What JSON can hold: None stands for a run that blew up."""
    return round(x, 4) if math.isfinite(x) else None


def result(losses: list[float], loss: float, over: int) -> dict:
    """The loss on the validation text, and means of `over` training losses each."""
    parts = [losses[i : i + over] for i in range(0, len(losses), over)]
    curve = [number(statistics.fmean(part)) for part in parts]
    return {"loss": number(loss), "curve": curve}


def heads():
    """Chapter 04: one head or four, with and without a bypass."""
    c = chapter("04_multi_head", "Attending", "learn", T=32, steps=1500)
    for bypass in (True, False):
        for n_head in (1, 4):
            for seed in range(3):
                torch.manual_seed(seed)
                model = c.Attending(64, n_head, c.T, bypass)
                losses = c.learn(model, seed)
                loss = c.evaluate(model, VAL_IDS, c.T)
                about = {"n_head": n_head, "bypass": bypass, "seed": seed}
                yield about | result(losses, loss, 50)


def undivided():
    """Chapter 03: one head whose scores are divided or not, at five rates."""
    names = "SingleHead", "Undivided", "learn"
    c = chapter("03_single_head", *names, nn=nn, SGD=SGD, training_step=training_step)
    for make in (c.SingleHead, c.Undivided):
        for rate in (0.01, 0.03, 0.1, 0.3, 1.0):
            for seed in range(3):
                torch.manual_seed(seed)
                model = make()
                c.learn(model, seed, 1500, rate)
                loss = number(evaluate(model, VAL_IDS, 32))
                about = {"divided": make is c.SingleHead, "rate": rate, "seed": seed}
                yield about | {"loss": loss}


def looking():
    """Chapter 03: no looking back, one head without this or that, one head."""
    names = "SingleHead", "NoLooking", "Undivided", "learn"
    c = chapter("03_single_head", *names, nn=nn, SGD=SGD, training_step=training_step)
    makers = {
        "no looking back": c.NoLooking,
        "one head, no positions": lambda: c.SingleHead(use_positions=False),
        "one head, undivided": c.Undivided,
        "one head": c.SingleHead,
    }
    for name, make in makers.items():
        for seed in range(3):
            torch.manual_seed(seed)
            model = make()
            losses = c.learn(model, seed, 1500, learning_rate=0.3)
            loss = evaluate(model, VAL_IDS, 32)
            yield {"model": name, "seed": seed} | result(losses, loss, 50)


def stacks():
    """Chapter 05: four ways to stack six layers, at two rates."""
    ways = "plain", "residual", "post_norm", "pre_norm"
    c = chapter("05_blocks", *ways, "norm", "Stack", "learn")
    for way in ways:
        last = [c.norm] * (way == "pre_norm")
        for rate in (0.05, 0.2):
            for seed in range(3):
                torch.manual_seed(seed)
                model = c.Stack(6, getattr(c, way), *last)
                losses = c.learn(model, seed, rate, steps=160)
                loss = c.evaluate(model, VAL_IDS, 32)
                about = {"way": way, "rate": rate, "seed": seed}
                yield about | result(losses, loss, 20)


def depths():
    """Chapter 05: one, two and three blocks, and attention alone."""
    c = chapter("05_blocks", "AttentionOnly", "ReLUBlock", "Blocks", "learn", F=F)
    kinds = {"block": c.Block, "attention": c.AttentionOnly, "ReLU block": c.ReLUBlock}
    blocks = [("block", n) for n in (1, 2, 3)]
    others = [*(("attention", n) for n in (1, 3, 9)), ("ReLU block", 1)]
    for kind, n_layer in blocks + others:
        for seed in range(3):
            torch.manual_seed(seed)
            model = c.Blocks(n_layer, kinds[kind])
            losses = c.learn(model, seed, rate=0.3, steps=1200)
            loss = c.evaluate(model, VAL_IDS, 32)
            about = {"kind": kind, "n_layer": n_layer, "seed": seed}
            yield about | result(losses, loss, 50)


def opinions():
    """Chapter 06: heads that start quiet or loud, at five rates."""
    data = {"fit_ids": TRAIN_IDS[:-50_000], "judge_ids": TRAIN_IDS[-50_000:]}
    c = chapter("06_gpt", "with_loud_head", "learn", "opinionated", **data)
    for s in (0.2, 1.0, 4.0):
        for rate in (0.05, 0.1, 0.2, 0.4, 0.8):
            for seed in range(3):
                losses, loss = c.opinionated(s, rate, seed)
                yield {"s": s, "rate": rate, "seed": seed} | result(losses, loss, 10)


def valley():
    """Chapter 07: SGD and AdamW at six rates each, 200 steps; the last 50 losses."""
    c = chapter(
        "07_training", "learn", "small_gpt", "batches", "short_run", "at_the_end"
    )
    kinds = {
        "SGD": (partial(SGD, momentum=0.9), (0.03, 0.1, 0.3, 0.5, 0.7, 1.0)),
        "AdamW": (c.AdamW, (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)),
    }
    for name, (kind, rates) in kinds.items():
        for rate in rates:
            for seed in range(3):
                loss = number(c.at_the_end(c.short_run(kind, rate, seed=seed)))
                yield {"optimizer": name, "rate": rate, "seed": seed, "loss": loss}


def plans():
    """Chapter 07: four plans for the learning rate, at three rates."""
    c = chapter("07_training", "small_gpt", "batches", "planned_run")
    for warmup, cooldown in ((0.0, 0.0), (0.05, 0.0), (0.05, 0.95), (0.05, 0.4)):
        plan = {"warmup": warmup, "cooldown": cooldown}
        for rate in (0.01, 0.02, 0.04):
            for seed in range(3):
                loss = c.planned_run(rate, seed, **plan)
                yield {**plan, "rate": rate, "seed": seed, "loss": number(loss)}


def tails():
    """Chapter 08: cooling, top-k and top-p, three texts for each strength."""
    from course import models  # found once harness has said where

    models.RUNS = REPO / "runs" / "chapters"
    data = TRAIN_IDS, VAL_IDS, TOKENIZER
    model, _ = models.trained("cpu", *cpu_preset(TOKENIZER.vocab_size), *data)
    c = chapter(
        *("08_generation", "words_of", "judge", "written"),
        **{"model": model, "tokenizer": TOKENIZER},
        rival=NGram(TRAIN_IDS, 7, TOKENIZER.vocab_size, strength=30.0),
        train_text=TOKENIZER.decode(TRAIN_IDS),
    )
    for name, strengths in {
        "temperature": (1.0, 0.8, 0.6, 0.4),
        "top_k": (20, 10, 5, 3),
        "top_p": (0.95, 0.9, 0.8, 0.6),
    }.items():
        for strength in strengths:
            for seed in range(3):
                found = c.judge(c.written(seed, **{name: strength}))
                kept = {key: round(value, 4) for key, value in found.items()}
                yield {"how": name, "strength": strength, "seed": seed} | kept


def sgd(rates=(0.03, 0.06, 0.12, 0.24, 0.48, 0.96, 1.92)):
    """Chapter 07: the chapter's run with SGD and momentum instead of AdamW.

    First a quarter of the steps at each rate, judged by the end of the training text,
    which they don't read; then all of them at the best, on the validation text.
    """
    c = chapter("07_training")
    shape, plan = c.cpu_preset(c.V)

    class SGDTrainer(c.Trainer):
        def new_optimizer(self):
            return SGD(self.model.parameters(), self.config.learning_rate, 0.9)

    def run(ids, judge, **changes):
        torch.manual_seed(0)
        trainer = SGDTrainer(c.GPT(shape), ids, replace(plan, **changes))
        try:
            while trainer.step < trainer.config.steps:
                trainer.take_step()
        except c.DivergedError:
            return None
        return number(c.evaluate(trainer.model, judge))

    tried = {}
    for rate in rates:
        changes = {"steps": plan.steps // 4, "learning_rate": rate}
        tried[rate] = run(TRAIN_IDS[:-50_000], TRAIN_IDS[-50_000:], **changes)
        yield {"steps": changes["steps"], "rate": rate, "loss": tried[rate]}
    rate = min(tried, key=lambda rate: tried[rate] or math.inf)
    loss = run(TRAIN_IDS, VAL_IDS, learning_rate=rate)
    yield {"steps": plan.steps, "rate": rate, "loss": loss}


def trials():
    """Chapter 07: other shapes, rates and plans for its run.

    Judged by the end of the training text, which these runs don't read.
    """
    shape, plan = cpu_preset(TOKENIZER.vocab_size)
    for changes in (
        *({"seed": seed} for seed in range(2)),
        *({"learning_rate": rate} for rate in (0.0025, 0.01)),
        *({"n_layer": n, "n_embd": C} for n, C in ((2, 176), (4, 128))),
        *({"cooldown": 0.95, "seed": seed} for seed in range(2)),
    ):
        in_shape = {k: v for k, v in changes.items() if k in asdict(shape)}
        in_plan = {k: v for k, v in changes.items() if k not in in_shape}
        torch.manual_seed(changes.get("seed", 0))
        model = GPT(replace(shape, **in_shape))
        config = replace(plan, eval_every=0, **in_plan)
        train(model, TRAIN_IDS[:-50_000], VAL_IDS[:2], config, progress=False)
        yield changes | {"loss": number(evaluate(model, TRAIN_IDS[-50_000:]))}


def dropout():
    """Chapter 05: a text so short that it is memorized, with dropout and without."""
    data = TRAIN_IDS[:10_000], VAL_IDS[:20_000]
    for p in (0.0, 0.2):
        for seed in range(3):
            sizes = {"block_size": 64, "n_layer": 3, "n_embd": 96}
            torch.manual_seed(seed)
            model = GPT(GPTConfig(TOKENIZER.vocab_size, **sizes, dropout=p))
            rate = {"learning_rate": 5e-3, "eval_every": 100, "seed": seed}
            history = train(model, *data, TrainConfig(600, **rate), progress=False)
            loss = evaluate(model, TRAIN_IDS[:10_000])
            looks = [[step, number(loss)] for step, loss in history.evaluations]
            yield {"p": p, "seed": seed, "known": number(loss), "unseen": looks}


def head_counts():
    """Chapter 04: the same width in more and more heads; 1 and 4 are in `heads`."""
    c = chapter("04_multi_head", "Attending", "learn", T=32, steps=1500)
    for n_head in (2, 8, 16):
        for seed in range(3):
            torch.manual_seed(seed)
            model = c.Attending(64, n_head, c.T)
            losses = c.learn(model, seed)
            loss = c.evaluate(model, VAL_IDS, c.T)
            yield {"n_head": n_head, "seed": seed} | result(losses, loss, 50)


def longer():
    """Chapter 05: one block, three, and a wide one, trained four times as long."""
    c = chapter("05_blocks", "Blocks", "learn")
    for n_layer, width in ((1, 64), (3, 64), (1, 108)):
        for seed in range(2):
            torch.manual_seed(seed)
            model = c.Blocks(n_layer, width=width)
            losses = c.learn(model, seed, rate=0.3, steps=4800)
            loss = c.evaluate(model, VAL_IDS, 32)
            about = {"n_layer": n_layer, "width": width, "seed": seed}
            yield about | result(losses, loss, 200)


PARTS = {
    f.__name__: f
    for f in (
        *(looking, undivided, heads, head_counts, stacks, depths, longer),
        *(opinions, valley, plans, sgd, trials, tails, dropout),
    )
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("parts", nargs="*", metavar="PART", help=" ".join(PARTS))
    for name in options.parse_args().parts or PARTS:
        runs = []
        for run in PARTS[name]():
            runs.append(run)
            print(name, {k: v for k, v in run.items() if k != "curve"}, flush=True)

        def change(data, name=name, runs=runs):
            data["machine"], data["versions"] = machine(), versions()
            data[name] = runs

        update(HERE / "part_one.json", change)


if __name__ == "__main__":
    main()
