"""Prepares the environment: `make` calls it; on Windows it is `py tools\\install.py`.

    install.py [FOLDER [WHAT...]]   the environment (.venv), and what pip installs there

A line for each thing done. What pip says is kept in install.log in the environment; its
end is shown where pip fails. On Linux without a GPU torch comes from PyTorch's index of
CPU builds, if that answers: the package index's own is several gigabytes of CUDA. Who
has set an index for pip in the environment has chosen, and is not overruled.
"""

import os
import platform
import re
import shutil
import ssl
import subprocess
import sys
import threading
import urllib.request
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CHOSEN = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX")
OLDEST = (3, 11)


def main(folder=".venv", *what):
    if sys.version_info < OLDEST:
        sys.exit(
            f"error: {sys.executable} is Python {platform.python_version()}, and this "
            "project needs 3.11 to 3.13: name one with PYTHON=python3.12, say"
        )
    folder = Path(folder)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    if shutil.which("pip", path=str(programs)) is None:
        print(f"environment: {folder}, Python {platform.python_version()}", flush=True)
        made = subprocess.run([sys.executable, "-m", "venv", str(folder)])
        if made.returncode:
            sys.exit(f"error: {folder} could not be made")
    log = folder / "install.log"
    log.unlink(missing_ok=True)
    python = shutil.which("python", path=str(programs.absolute()))
    if not what:
        what = ("-r", "requirements.txt")
        torch = cpu_torch((ROOT / "requirements.txt").read_text(encoding="utf-8"))
        if torch:
            print(f"packages: {torch} for the CPU, from {CPU_INDEX}", flush=True)
            pip(python, log, "--no-deps", "--index-url", CPU_INDEX, torch)
    print(f"packages: {what[-1]}, may take minutes (log: {log})", flush=True)
    pip(python, log, *what)


def pip(python, log, *arguments):
    """pip install; ends the program, with the end of what pip said, if it fails."""
    command = [python, "-m", "pip", "install", *arguments]
    with open(log, "a", encoding="utf-8") as file:
        failed = subprocess.run(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        ).returncode
    if failed:
        said = log.read_text(encoding="utf-8", errors="replace").splitlines()
        print(*said[-30:], sep="\n", file=sys.stderr)
        sys.exit(f"error: pip failed; all that it said is in {log}")


def cpu_torch(requirements):
    """The torch that is required, if its CPU build is wanted and can be had."""
    if sys.platform != "linux" or has_gpu() or any(map(os.environ.get, CHOSEN)):
        return None
    torch = re.search(r"^torch==(\S+)", requirements, re.MULTILINE)
    if f"torch-{torch[1]}+cpu-" in unquote(page(f"{CPU_INDEX}/torch/")):
        return torch[0]
    print(f"packages: torch from pip's own index, as {CPU_INDEX} has none", flush=True)
    return None


def has_gpu():
    return bool(shutil.which("nvidia-smi") or [*Path("/dev").glob("nvidia*")])


def page(url, within=8):
    """What stands at a URL; nothing, if it isn't there within so many seconds."""
    text = []

    def ask():
        with suppress(OSError, ValueError):
            trusted = ssl.create_default_context(cafile=os.environ.get("PIP_CERT"))
            with urllib.request.urlopen(url, timeout=within, context=trusted) as reply:
                text.append(reply.read().decode())

    # In a thread, since looking up a name and trying its addresses know no limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(within)
    return "".join(text)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
