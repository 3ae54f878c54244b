"""What the holes of the workbooks are asked, one module per chapter, and who asks.

A hole's check is the function of its name (`AdamW_step` for `AdamW.step`). It gets `my`,
the names of the chapter's module with the reader's among them, and raises `Wrong` with
what was tried, what came out, what was expected, and where people usually go wrong.
"""

import faulthandler
import hashlib
import importlib
import inspect
import json
import linecache
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

FILE = "your cell"  # its name in a traceback
ROOT = Path(__file__).resolve().parents[3]


class Wrong(Exception):
    """What came out isn't what was expected; the message teaches."""


# --- For the checks ---


def expect(got, want, tried: str, clues: dict | None = None, atol: float = 1e-5):
    """Refuses `got` unless it is `want`; names the mistake that gives it.

    clues: what to say -> the value that this mistake gives (a list: one of them), or
    whether it was made.
    """
    if same(got, want, atol):
        return
    lines = [tried, f"came out: {show(got)}", f"expected: {show(want)}"]
    if got is None:
        lines.append("Nothing came out: is the `return` missing?")
    for clue, value in (clues or {}).items():
        values = value if isinstance(value, list) else [value]
        if value is True or any(same(got, each, atol) for each in values):
            lines.append(clue)
            break
    raise Wrong("\n".join(lines))


def same(got, want, atol: float = 1e-5) -> bool:
    if isinstance(want, Tensor):
        return (
            isinstance(got, Tensor)
            and got.shape == want.shape
            and got.is_floating_point() == want.is_floating_point()
            and torch.allclose(got.double(), want.double(), 1e-4, atol, equal_nan=True)
        )
    if isinstance(want, tuple | list):
        return (
            isinstance(got, tuple | list)
            and len(got) == len(want)
            and all(same(g, w, atol) for g, w in zip(got, want, strict=True))
        )
    if isinstance(want, float):
        if isinstance(got, Tensor):
            got = got.detach()
        try:
            return abs(float(got) - want) <= atol + 1e-4 * abs(want)
        except (TypeError, ValueError, RuntimeError):
            return False
    return type(got) is type(want) and got == want


def show(value) -> str:
    """A value in a line or two."""
    if isinstance(value, Tensor):
        kind = "" if value.is_floating_point() else f", {value.dtype}"
        if value.dim() == 0:
            return f"{value.item():.4g}"
        flat = value.detach().flatten()[:8].tolist()
        numbers = ", ".join(f"{n:.3g}" if isinstance(n, float) else str(n) for n in flat)
        more = ", ..." if value.numel() > 8 else ""
        return f"a tensor of shape {tuple(value.shape)}{kind}: {numbers}{more}"
    if isinstance(value, tuple | list):
        left, right = "()" if isinstance(value, tuple) else "[]"
        return left + "; ".join(show(each) for each in value) + right
    text = f"{value:.5g}" if isinstance(value, float) else repr(value)
    return text if len(text) < 200 else f"{text[:200]}..."


@contextmanager
def untouched(**given: Tensor) -> Iterator[None]:
    """Refuses what changes the tensors that it was given."""
    before = {name: tensor.clone() for name, tensor in given.items()}
    yield
    for name, tensor in given.items():
        if not torch.equal(tensor, before[name]):
            raise Wrong(
                f"`{name}` itself was changed, and whoever handed it over still needs it: "
                "make a new tensor instead of writing into it"
            )


def refuses(call: Callable, tried: str, clue: str = "") -> None:
    """Wants a ValueError."""
    try:
        got = call()
    except ValueError:
        return
    raise Wrong(f"{tried}\ncame out: {show(got)}\nexpected: a ValueError that says why\n{clue}".strip())


def plain(got, tried: str) -> None:
    """Wants a number, not the tensor that it stands in."""
    if isinstance(got, Tensor):
        clue = "A tensor keeps all that it was computed from; `.item()` gives the bare number."
        raise Wrong(f"{tried}\ncame out: a tensor\nexpected: a number\n{clue}")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- Judging ---


def load(noun: str, source: str, imports: str = "", below: dict | None = None) -> dict:
    """The names of the chapter's module, those of the source in front of them."""
    module = importlib.import_module(f"tinygpt_lib.{noun}")
    names = {**(below or {}), **vars(module)}
    linecache.cache[FILE] = len(source), None, source.splitlines(True), FILE
    exec(imports, names)
    exec(compile(source, FILE, "exec"), names)
    return names


def trial(noun: str, name: str, *given) -> str:
    """What is wrong with a hole of that source; nothing if it is right."""
    try:
        return judge(noun, name, load(noun, *given))
    except BaseException as error:  # `exit()` too
        return explain(error)


def judge(noun: str, name: str, names: dict) -> str:
    """What is wrong with a hole; nothing if it is right."""
    checks = importlib.import_module(f"course.checks.{noun}")
    torch.manual_seed(0)
    try:
        getattr(checks, name.replace(".", "_"))(SimpleNamespace(**names))
    except BaseException as error:
        return explain(error)
    return ""


def explain(error: BaseException) -> str:
    """What a check says, or an error in the reader's code, and where."""
    if isinstance(error, Wrong):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        raise error
    frames = traceback.extract_tb(error.__traceback__)
    where = [frame for frame in frames if frame.filename == FILE]
    text = f"{type(error).__name__}: {error}".strip().removesuffix(":")
    if where:
        return f"Your code stops at `{where[-1].line}`\n{text}"
    if isinstance(error, SyntaxError):
        return f"This is no Python yet, in line {error.lineno}: `{error.text}`\n{text}"
    last = f"`{frames[-1].line}`" if frames else "the check"
    return f"What your code gives can't be used: {last}\n{text}"


def serve() -> None:
    """Judges the jobs that come in, a line each; what code prints goes elsewhere.

    Ends with 1 if one computes for longer than it may, or waits for ten times as long.
    """
    answers, ends = os.fdopen(os.dup(1), "w", encoding="utf-8"), math.inf
    os.dup2(2, 1)

    def watch() -> None:
        while time.process_time() < ends:
            time.sleep(0.1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    torch.set_num_threads(1)
    for line in sys.stdin:
        limit, job = json.loads(line)
        ends = time.process_time() + limit
        faulthandler.dump_traceback_later(10 * limit, exit=True)
        message = trial(*job)
        faulthandler.cancel_dump_traceback_later()
        ends = math.inf
        print(json.dumps(message), file=answers, flush=True)


# --- In a workbook ---


def begin(name: str) -> Callable[..., None]:
    """Says whose the earlier chapters are; returns what checks this one's holes."""
    from tools import learn

    lessons, folder = learn.read_lessons(), learn.ROOT / "learn"
    if importlib.util.find_spec("mygpt") is None:
        learn.write_library(lessons, folder, learn.read_state(folder))
        importlib.invalidate_caches()
    from mygpt import BORROWED

    before = [each.noun for each in lessons if each.name < name]
    if earlier := {noun: BORROWED[noun] for noun in before if BORROWED.get(noun)}:
        print(f"Still the course's, of the chapters before: {listed(earlier)}")
    elif before:
        print("All of the chapters before is yours.")
    shell = inspect.currentframe().f_back.f_globals
    lesson = next(each for each in lessons if each.name == name)

    def judge_here(lesson, hole: str, source: str) -> str:
        imports = learn.imports_for(source, lesson)
        return trial(lesson.noun, hole, source, imports, shell)

    def written(hole: str) -> str:
        """The last cell with this hole in it: of those that were run, or of the script."""
        cells = shell.get("In") or learn.read_cells(shell["__file__"])
        for source in reversed(cells):
            try:
                if hole in learn.spans(source):
                    return learn.defined(source)
            except SyntaxError:  # a magic
                continue
        return ""

    def check(*holes: str) -> None:
        """As `make check` does; the course's code stands in for what is open."""
        task = next(task for task, hole in lesson.holes if hole == holes[0])
        mine = "\n\n".join(dict.fromkeys(map(written, holes))).strip() or task.skeleton
        given = mine.replace("mygpt.", "tinygpt_lib.")
        verdicts, _ = learn.judge_task(judge_here, lesson, task, given)
        left = [hole for hole in holes if verdicts[hole].state == "open"]
        stands_in = "" if task.exercise else ": the course's stands in for it"
        for hole, verdict in verdicts.items():
            aside = stands_in if hole in left else ""
            message = f"\n{verdict.message}\n" if verdict.message else ""
            print(f"{hole} is {verdict.state}{aside}.{message}")
        if left and not task.exercise:
            exec(learn.compose(mine, task, left), shell)

    return check


def listed(borrowed: dict[str, list[str]]) -> str:
    return "; ".join(f"{noun}: {', '.join(of)}" for noun, of in borrowed.items())


def trained(name, model_config, train_config, train_ids, val_ids, tokenizer, seed=0):
    """The reader's GPT, trained by the reader's code, or as that has trained before.

    That code is learn/mygpt as `make check` wrote it last: it is imported anew.
    """
    for loaded in [n for n in sys.modules if n.split(".")[0] == "mygpt"]:
        del sys.modules[loaded]
    importlib.invalidate_caches()
    from mygpt import BORROWED
    from mygpt.gpt import GPT
    from mygpt.training import History
    from mygpt.training import train_simply as train

    theirs = {noun: of for noun, of in BORROWED.items() if of and noun != "generation"}
    print("Trained by learn/mygpt, as `make check` wrote it last", end=": ")
    print("the course's in it are " + listed(theirs) if theirs else "all of it is yours")
    library = Path(sys.modules["mygpt"].__file__).parent
    digest = hashlib.sha256(f"{model_config} {train_config} {seed}".encode())
    digest.update(train_ids.numpy().tobytes())
    for path in sorted(library.glob("*.py")):
        if path.stem not in ("__init__", "generation"):
            digest.update(path.read_bytes())
    kept = library / "runs" / f"{name}-{digest.hexdigest()[:12]}.pt"
    torch.manual_seed(seed)
    model, history = GPT(model_config), History()
    if kept.exists():
        weights, history.losses, history.evaluations = torch.load(kept)
        model.load_state_dict(weights)
        return model.eval(), history
    print(f"{train_config.steps} steps ...", flush=True)
    history = train(model, train_ids, val_ids, train_config)
    kept.parent.mkdir(exist_ok=True)
    torch.save((model.state_dict(), history.losses, history.evaluations), kept)
    return model, history


def graduate(steps: int = 0) -> None:
    """The run of chapter 07 by the reader's library: its loss, and what it writes."""
    from mygpt.generation import generate
    from mygpt.text import CharTokenizer, split
    from mygpt.training import cpu_preset

    from course import PROMPT
    from tinygpt_lib import load_shakespeare

    text = load_shakespeare()
    tokenizer = CharTokenizer.from_text(text)
    train_ids, val_ids = split(tokenizer.encode(text))
    shape, plan = cpu_preset(tokenizer.vocab_size)
    length = 400
    if steps:  # only to see that it works
        plan, val_ids, length = replace(plan, steps=steps), val_ids[:5_001], 40
    given = train_ids, val_ids, tokenizer
    model, history = trained("cpu", shape, plan, *given)
    done, loss = history.evaluations[-1]
    print(f"{model.n_parameters():,} parameters, {done} steps: {loss:.3f} nats\n")
    generator = torch.Generator().manual_seed(0)
    start = tokenizer.encode(PROMPT)[None]
    out = generate(model, start, length, temperature=0.7, generator=generator)
    print(tokenizer.decode(out[0]))
