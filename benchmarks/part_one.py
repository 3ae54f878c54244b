"""What chapters 04 to 07, and 10, compare over several seeds or rates, too long there.

    python benchmarks/part_one.py           # fifteen minutes of one core: part_one.json
    python benchmarks/part_one.py heads     # one comparison of it

Models and loops are the chapters' own: their definitions are read from notebooks/text,
and each chapter runs one of these runs again.
"""

import argparse
import ast
import importlib
import math
import statistics
from dataclasses import replace
from types import SimpleNamespace

import torch
from harness import HERE, REPO, corpus, machine, update, versions

from tinygpt_lib.bigram import SGD

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
    """Chapter 04: one head or four, with and without a way around them."""
    c = chapter("04_multi_head", "Attending", "learn", T=32, steps=1500)
    for around in (True, False):
        for n_head in (1, 4):
            for seed in range(3):
                torch.manual_seed(seed)
                model = c.Attending(64, n_head, c.T, around)
                losses = c.learn(model, seed)
                loss = c.evaluate(model, VAL_IDS, c.T)
                about = {"n_head": n_head, "around": around, "seed": seed}
                yield about | result(losses, loss, 50)


def stacks():
    """Chapter 05: four ways to stack six layers, at two rates."""
    c = chapter("05_blocks", "Stack", "connect", "learn", steps=160)
    for kind in ("plain", "residual", "post-norm", "pre-norm"):
        for rate in (0.05, 0.2):
            torch.manual_seed(0)
            model = c.Stack(kind, n_layer=6)
            losses = c.learn(model, 0, rate)
            loss = c.evaluate(model, VAL_IDS, 32)
            yield {"kind": kind, "rate": rate} | result(losses, loss, 20)


def blocks():
    """Chapter 05: three blocks, trained longer."""
    c = chapter("05_blocks", "Blocks", "learn", steps=1200)
    for seed in range(2):
        torch.manual_seed(seed)
        model = c.Blocks()
        losses = c.learn(model, seed, rate=0.3)
        yield {"seed": seed} | result(losses, c.evaluate(model, VAL_IDS, 32), 50)


def weights():
    """Chapter 06: our first weights and torch's, at three rates."""
    c = chapter("06_gpt", "with_torchs_weights", "learn", steps=140)
    for name, make in {"ours": c.GPT, "torch's": c.with_torchs_weights}.items():
        for rate in (0.03, 0.1, 0.3):
            torch.manual_seed(0)
            model = make(c.GPTConfig(c.V))
            losses = c.learn(model, 0, rate)
            loss = c.evaluate(model, VAL_IDS)
            yield {"weights": name, "rate": rate} | result(losses, loss, 10)


def plans():
    """Chapter 07: four plans for the learning rate, at three rates."""
    c = chapter("07_training", "small_gpt", "batches", "planned_run")
    for warmup, cooldown in ((0.0, 0.0), (0.05, 0.0), (0.05, 0.95), (0.05, 0.4)):
        plan = {"warmup": warmup, "cooldown": cooldown}
        for rate in (0.01, 0.02, 0.04):
            for seed in range(3):
                loss = c.planned_run(rate, seed, **plan)
                yield {**plan, "rate": rate, "seed": seed, "loss": number(loss)}


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


def dropout():
    """Chapter 10: a text so short that it is learnt by heart, dropout or not."""
    c = chapter("10_modern_parts", "on_little_text")
    for p in (0.0, 0.2):
        for seed in range(3):
            model, history = c.on_little_text(p, seed)
            loss = c.evaluate(model, TRAIN_IDS[:10_000])
            looks = [[step, number(loss)] for step, loss in history.evaluations]
            yield {"p": p, "seed": seed, "known": number(loss), "unseen": looks}


PARTS = {f.__name__: f for f in (heads, stacks, blocks, weights, plans, sgd, dropout)}


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
