"""What all measurements share: the machine, the corpus, taking turns, keeping results.

Nothing here knows what is measured. The scripts beside it import it by name, since
Python looks in a script's own folder first.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from filelock import FileLock

from tinygpt_lib import CharTokenizer, load_shakespeare, split
from tinygpt_lib.basics.files import write_atomically

HERE = Path(__file__).parent
REPO = HERE.parent
sys.path.insert(0, str(REPO / "notebooks"))  # for `import course`
# What decides how fast a CPU multiplies matrices, as Linux names it.
FLAGS = (
    "avx2",
    "avx512f",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "sve",
    "bf16",
)

# --- The machine ---


def machine() -> dict:
    """This machine, as far as it says what it is; None for what it does not tell."""
    memory = None
    with suppress(AttributeError, ValueError, OSError):  # there is none on Windows
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory_gb": memory and round(memory / 2**30),
        "flags": cpu_flags(),
        "kernels": torch.backends.cpu.get_cpu_capability(),  # what torch chose
        "os": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
    }


def cpu_info(field: str) -> str:
    """The first value of a field of /proc/cpuinfo; empty where there is none."""
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == field:
                return value.strip()
    return ""


def cpu_name() -> str:
    """What the maker calls the CPU, else what Python knows of it."""
    name = cpu_info("model name")
    if not name and platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        with suppress(OSError, subprocess.CalledProcessError):
            name = subprocess.check_output(command, text=True).strip()
    return name or platform.processor() or platform.machine()


def cpu_flags() -> list[str]:
    """Those of FLAGS that the CPU has, where the system lists them."""
    has = (cpu_info("flags") or cpu_info("Features")).split()
    return [flag for flag in FLAGS if flag in has]


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python, torch, the library, and of `packages` where installed."""
    found = {"python": platform.python_version()}
    for name in ("torch", "tinygpt-lib", *packages):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def commit(checkout: Path) -> str:
    """The short name of a checkout's commit; "unknown" if git can't say."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def today() -> str:
    return datetime.date.today().isoformat()


# --- The corpus ---


def corpus(tokenizer=None) -> tuple:
    """A tokenizer (default: of characters), training ids and validation ids."""
    text = load_shakespeare()
    tokenizer = tokenizer or CharTokenizer.from_text(text)
    train_text, val_text = split(text)
    return tokenizer, tokenizer.encode(train_text), tokenizer.encode(val_text)


# --- Taking turns ---


def process(command: list, cwd: Path = REPO, **environment: str) -> tuple[float, str]:
    """Runs a process to its end: the seconds that it took, and what it printed."""
    begin = time.perf_counter()
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=os.environ | environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return time.perf_counter() - begin, done.stdout


def tried(name: str, function: Callable, here: list[str], skipped: dict[str, str]):
    """What function returns; where it fails, the peer is skipped and says why."""
    try:
        return function()
    except Exception as error:
        here.remove(name)
        skipped[name] = f"failed: {reason(error)}"


def take_turns(
    contenders: dict[str, Callable[[], float]],
    rounds: int,
    say: Callable[[str], None] = print,
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Measures each contender once a round; what each one got, and who fell out, why.

    Each round has an order of its own, so that nobody always follows the same one. A
    peer that raises is out, with all that it got; whatever ours raises is raised.
    """
    got = {name: [] for name in contenders}
    failed = {}
    for turn in range(rounds):
        for name in random.Random(turn).sample(sorted(got), len(got)):
            try:
                value = contenders[name]()
            except Exception as error:
                if name.startswith("ours"):
                    raise
                failed[name] = f"failed: {reason(error)}"
                del got[name]
                say(f"  {name} {failed[name]}")
            else:
                got[name].append(value)
                say(f"  round {turn + 1} of {rounds}: {name} {significant(value)}")
    return got, failed


def reason(error: Exception) -> str:
    """An error in one line; of a process, the last line that it complained in."""
    text = getattr(error, "stderr", None) or f"{type(error).__name__}: {error}"
    return (text.strip().splitlines() or [type(error).__name__])[-1][:200]


def significant(value: float, digits: int = 4) -> float:
    """Rounded to so many digits, wherever the point is."""
    return float(f"{value:.{digits}g}")


def spread(values: list[float]) -> dict:
    """Median, smallest, largest, and all of several measurements."""
    return {
        "median": significant(statistics.median(values)),
        "min": significant(min(values)),
        "max": significant(max(values)),
        "all": [significant(v) for v in values],
    }


def ratios(above: list[float], below: list[float]) -> dict:
    """The spread of the ratios, round by round: what drifts, drifts for both."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def comparison(got: dict[str, list[float]], unit: str) -> dict:
    """What each contender got, and how many times as fast as each peer ours is.

    In units of time less is better; in units per time, such as tokens/s, more is.
    """
    times = {}
    for name, values in got.items():
        if name != "ours":
            faster = (got["ours"], values) if "/" in unit else (values, got["ours"])
            times[name] = ratios(*faster)
    measured = {name: spread(values) for name, values in got.items()}
    return {"unit": unit, "measured": measured, "times as fast": times}


# --- Keeping results ---


def update(path: Path, change: Callable[[dict], None]) -> dict:
    """Changes the JSON object in a file, whole or not at all, whoever else does so."""
    with FileLock(f"{path}.lock"):
        data = json.loads(path.read_text("utf-8")) if path.exists() else {}
        change(data)
        write_atomically(path, (layout(data) + "\n").encode())
    return data


def keep(path: Path, name: str, value) -> dict:
    """Puts a value under its name into a file of results; returns them all."""
    return update(path, lambda data: data.update({name: value}))


def merged(old: list[dict], new: list[dict], key: Callable[[dict], tuple]) -> list:
    """Results sorted by their key; new ones in place of old ones that have the same."""
    return [r for _, r in sorted({key(r): r for r in [*old, *new]}.items())]


def layout(value, indent: int = 0) -> str:
    """JSON in which whatever fits on a line stands on one."""
    text = json.dumps(value)
    if len(text) + indent <= 88 or not value or not isinstance(value, dict | list):
        return text
    inner = "\n" + " " * (indent + 1)
    if isinstance(value, list):
        parts, ends = [layout(v, indent + 1) for v in value], "[]"
    else:
        parts = [
            f"{json.dumps(str(k))}: {layout(v, indent + 1)}" for k, v in value.items()
        ]
        ends = "{}"
    return f"{ends[0]}{inner}{f',{inner}'.join(parts)}\n{' ' * indent}{ends[1]}"
