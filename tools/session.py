#!/usr/bin/env python
"""An administrator's session with this machine's own log, as the README shows it.

    python tools/session.py [LOG]       # prints it; default: /var/log/dpkg.log

The first half of the log is taken for normal, and the other is judged.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

PACKAGE = r"([a-z0-9][a-z0-9.+-]+):(?:amd64|all)"
COMMANDS = (  # and which of the lines that each prints are shown
    ("inspect old.log", [0]),
    (
        f"fit --normal old.log --out run --session-regex ' {PACKAGE}' "
        f"--mask '<package>={PACKAGE}'",
        [1, 2],
    ),
    ("score run new.log", [0, 1, 2, 3, -2, -1]),
    ("accept run --event 'startup packages triggers-only'", [0]),
    ("update run new.log", [0, 1, 2, 3]),
    ("score run new.log", [-1]),
)


def told(command: str, lines: list[int], folder: str) -> list[str]:
    """A command and some of the lines that it prints."""
    python = [sys.executable, "-m", "tinygpt_lib", "detect", *shlex.split(command)]
    run = subprocess.run(python, cwd=folder, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"detect {command}: {run.stderr}")
    printed, shown = run.stdout.splitlines(), []
    for place in sorted(
        {i % len(printed) for i in lines if -len(printed) <= i < len(printed)}
    ):
        shown.append(printed[place][:150])
    return [f"$ python -m tinygpt_lib detect {command}", *shown]


def main() -> None:
    log = Path(sys.argv[1] if len(sys.argv) > 1 else "/var/log/dpkg.log")
    lines = log.read_text(errors="replace").splitlines(keepends=True)
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).parents[1]))
    with TemporaryDirectory() as folder:
        cut = len(lines) // 2
        Path(folder, "old.log").write_text("".join(lines[:cut]))
        Path(folder, "new.log").write_text("".join(lines[cut:]))
        for command, places in COMMANDS:
            print(*told(command, places, folder), sep="\n", flush=True)


if __name__ == "__main__":
    main()
