"""Draw the drawings: each script in notebooks/drawings leaves an SVG beside it.

A script makes a `drawing`, a Pen; `--check` writes nothing and fails where a script
and its SVG have parted.
"""

import argparse
import runpy
import sys
from pathlib import Path

DRAWINGS = Path(__file__).resolve().parent.parent / "notebooks/drawings"


def draw() -> dict[Path, str]:
    """Each SVG's path and what its script draws."""
    sys.path.insert(0, str(DRAWINGS))  # where the scripts find pen.py
    try:
        return {
            script.with_suffix(".svg"): runpy.run_path(str(script))["drawing"].svg()
            for script in sorted(DRAWINGS.glob("*.py"))
            if script.stem != "pen"
        }
    finally:
        sys.path.remove(str(DRAWINGS))


def parted(drawn: dict[Path, str]) -> list[Path]:
    """The SVGs that aren't what their scripts draw, or have no script."""
    there = {p: p.read_text(encoding="utf-8") for p in DRAWINGS.glob("*.svg")}
    return sorted(p for p in there | drawn if there.get(p) != drawn.get(p))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    drawn = draw()
    for path in parted(drawn):
        if check or path not in drawn:
            print(f"{path.name} and its script have parted", file=sys.stderr)
        else:
            path.write_text(drawn[path], encoding="utf-8")
            print(path.name)
    if parted(drawn):
        sys.exit("run tools/draw.py; an SVG without a script can only be deleted")


if __name__ == "__main__":
    main()
