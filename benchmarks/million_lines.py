"""Time and memory of `detect fit` and `detect score` on a log of a million lines.

    python benchmarks/million_lines.py        # writes million_lines.json, two minutes

The lines are synthetic (life cycles of blocks, see `logdata.py`); each command runs
in a process of its own, whose largest memory the system tells. (It counts the memory
of the process that started it too, so this one has to stay small.)
"""

import json
import os
import subprocess
import sys
import time
from multiprocessing import Process
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1] / "notebooks"))  # for `course`
OUT = Path(__file__).with_name("million_lines.json")
SIZES = (1_000_000,)
CHUNK = 8_000  # sessions that are made at a time


def write_log(path: Path, lines: int, share: float, seed: int) -> None:
    """A log of so many lines."""
    from course.logdata import synthetic_log

    written = 0
    with path.open("w") as file:
        while written < lines:
            for line in synthetic_log(CHUNK, share, seed).lines[: lines - written]:
                file.write(f"{line.seconds:.0f} {line.component} {line.text}\n")
                written += 1
            seed += 1


def measured(*arguments) -> dict:
    """Seconds, by the clock and of CPU, and largest memory (MB) of a command."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "tinygpt_lib", "detect", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    said = process.stdout.read().splitlines()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    seconds = time.perf_counter() - start
    # Linux counts in kilobytes, macOS in bytes.
    unit = 1e3 if sys.platform != "darwin" else 1e6
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_mb": round(usage.ru_maxrss / unit),
        "said": said[-1],
    }


def main() -> None:
    results = {}
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for lines in SIZES:
            normal, new = folder / "normal.log", folder / "new.log"
            for path, share, seed in ((normal, 0.0, 1), (new, 0.01, 1001)):
                settings = (path, lines, share, seed)
                made = Process(target=write_log, args=settings)
                made.start()
                made.join()
            run = folder / f"run-{lines}"
            rule = ("--session-regex", r"blk_-?\d+", "--false-alarms", "0.005")
            row = {"bytes": normal.stat().st_size}
            row["fit"] = measured("fit", "--normal", normal, "--out", run, *rule)
            row["score"] = measured("score", run, new)
            row["score json"] = measured("score", run, new, "--json", "--open-ends")
            row["score json"]["said"] = ""
            results[lines] = row
            print(lines, json.dumps(row), flush=True)
    OUT.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
