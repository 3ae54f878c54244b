"""Runs all checks, and says at the end of each part what took how long: `make test`.

On Windows it is `.venv\\Scripts\\python tools\\test.py`. Several files are tested at a
time, with one thread each: a notebook on each core, and one file of tests more than
there are cores, for tests often wait. Notebooks that measure time come last, one by
one, with all threads. OMP_NUM_THREADS, OMP_WAIT_POLICY and GOMP_SPINCOUNT of
your own win.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CODE = ("tinygpt_lib", "tests", "tools", "benchmarks", "notebooks", "site")
NBVAL = ("--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=600")
TIMED = {"12_speed"}  # notebooks that measure time
# The longest first, so that no core is left with a long one at the end. Their order is
# all that rests on these lists.
LONG_TESTS = """test_site test_scaling_out test_faults test_learn test_play test_alarms
    test_outputs test_detect test_anomalies test_training test_modern_parts test_main
    test_package test_export test_tokenizers""".split()
LONG_NOTEBOOKS = """07_training 16_anomalies 17_representations 11_long_context
    13_scaling_out 15_logs 09_tokenizers 10_modern_parts 05_blocks 03_single_head
    06_gpt 08_generation""".split()


def main():
    # Threads that wait for each other must not keep the others' threads from running.
    env = {"GOMP_SPINCOUNT": "1000", **os.environ}
    single = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    workers = min(8, max(2, cores()))  # the longest notebook takes an eighth of all
    spread = "--dist=loadfile", "--no-loadscope-reorder", "-n"
    tests = in_order("tests/test_*.py", LONG_TESTS)
    notebooks = in_order("notebooks/*.ipynb", LONG_NOTEBOOKS)
    notebooks += in_order("notebooks/solutions/*.ipynb", [])
    alone = [path for path in notebooks if Path(path).stem in TIMED]
    others = [path for path in notebooks if path not in alone]
    run(env, ROOT / "tools/export.py", "--check")
    run(env, "-m", "ruff", "check", *CODE)
    run(env, "-m", "ruff", "format", "--check", *CODE)
    pytest = ("-m", "pytest", "-q", "--durations=15")
    run(single, *pytest, "-p", "no:nbval", *spread, str(workers + 1), *tests)
    run(single, *pytest, *NBVAL, *spread, str(workers), *others)
    run(env, *pytest, *NBVAL, *alone)


def cores():
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_order(pattern, first):
    """Files of the project, those named first in front."""
    paths = sorted(ROOT.glob(pattern))
    ranks = {name: rank for rank, name in enumerate(first)}
    paths.sort(key=lambda path: ranks.get(path.stem, len(ranks)))
    return [path.relative_to(ROOT).as_posix() for path in paths]


def run(env, *arguments):
    """Runs this Python; ends the program if that fails."""
    failed = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=env).returncode
    if failed:
        sys.exit(failed)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
