"""Measures the library on this machine, beside every peer that is there: `make bench`.

    python benchmarks/bench.py [--nanogpt PATH] [--minbpe PATH]   twenty minutes
    python benchmarks/bench.py --only generation peak             some sections again

Contenders take turns, and a ratio is taken within each round. Each section goes into
benchmarks/results.json as soon as it is done, with its date and machine, and into the
table of the README. A peer that is missing is skipped by name; those that are packages
come with `pip install -e .[bench]`. Nothing else should be running.
"""

import argparse
import sys
import time
from pathlib import Path

import report
from bpe_speed import bpe
from compare import generation, imports, speedrun, training
from harness import keep, machine, reason, today
from peers import Peers
from roof import peak, scaling_cost

SECTIONS = {  # name: function (peers, repeats), and how many rounds it takes by itself
    "import": (imports, 7),
    "training": (training, 3),
    "generation": (generation, 5),
    "peak": (peak, 6),
    "scaling_cost": (scaling_cost, 3),
    "speedrun": (speedrun, 3),
    "bpe": (bpe, 7),
}


def measured(name: str, peers: Peers, repeats: int | None) -> dict:
    """A section's results, with all that says where, when and of what they are."""
    function, usual = SECTIONS[name]
    begin = time.perf_counter()
    where = {
        "date": today(),
        "machine": machine(),
        "versions": peers.versions(),
        "what": function.__doc__.partition("\n")[0],
    }
    found = function(peers, repeats or usual)
    return {**where, "took": round(time.perf_counter() - begin), **found}


def options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--minbpe", type=Path, help="a checkout of minbpe")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION")
    parser.add_argument("--repeats", type=int, help="rounds (default: a section's own)")
    parser.add_argument(
        "--out",
        type=Path,
        default=report.RESULTS,
        help="another file for the results; the README then stays as it is",
    )
    given = parser.parse_args(arguments)
    if given.repeats is not None and given.repeats < 1:
        parser.error("argument --repeats: must be at least 1")
    return given


def main(arguments: list[str] | None = None) -> int:
    """Runs the sections asked for; 1 if one of them failed, and the others went on."""
    given = options(arguments)
    paths = (p and p.expanduser().resolve() for p in (given.nanogpt, given.minbpe))
    peers, failed, results = Peers(*paths), [], {}
    for name in given.only or SECTIONS:
        print(f"{name}: {SECTIONS[name][0].__doc__.partition('.')[0]}", flush=True)
        try:
            section = measured(name, peers, given.repeats)
        except Exception as error:
            print(f"  {name} failed: {reason(error)}", file=sys.stderr, flush=True)
            failed.append(name)
            continue
        for peer, why in section.get("skipped", {}).items():
            print(f"  {peer}: {why}")
        print(f"  took {section['took']} s", flush=True)
        results = keep(given.out, name, section)
        if given.out.resolve() == report.RESULTS.resolve():
            report.write_readme()
    if results:
        print(report.table(results))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
