"""results.json as a table, and the part of the README that is made from it.

python benchmarks/report.py     writes the README's part again
"""

import json
from pathlib import Path

from harness import HERE, REPO, significant

RESULTS, README = HERE / "results.json", REPO / "README.md"
BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
ALSO = {"ours, no cache": "ours without the cache"}


def short(value: float) -> str:
    """Three digits that count, thousands with commas."""
    value = significant(value, 3)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:g}"


def times(ratio: dict) -> str:
    """How many times as fast, and the range over the rounds if there are more."""
    middle, low, high = (factor(ratio[end]) for end in ("median", "min", "max"))
    text = f"{middle} times as fast"
    return text if low == high else f"{text} ({low} to {high})"


def factor(value: float) -> str:
    """A ratio: two decimals below ten, where a tenth matters."""
    return f"{value:.2f}" if value < 10 else short(value)


def versus(part: dict, what: str, note=lambda name: "") -> list[tuple[str, str, str]]:
    """The row of a comparison: what, ours, and how each of the others did."""
    unit = part["unit"]

    def value(name):
        return f"{short(part['measured'][name]['median'])} {unit}{note(name)}"

    beside = [
        f"{ALSO.get(name, name)} {value(name)}: {times(ratio)}"
        for name, ratio in part["times as fast"].items()
    ]
    return [(what, value("ours"), "; ".join(beside))]


def speedrun_rows(section: dict) -> list:
    """Time to the loss; a loss above the target is said to be one."""

    def note(name):
        losses = [ending["loss"] for ending in section["endings"][name]]
        text = f", {sum(losses) / len(losses):.3f} nats"
        steps = {ending.get("step") for ending in section["endings"][name]} - {None}
        if steps:
            text += f" (weights of its step {', '.join(map(str, sorted(steps)))})"
        if max(losses) >= section["target"] + 0.0005:
            text += ", target missed"
        return text

    what = f"to {section['target']} nats, whole process, preset {section['preset']}"
    return versus(section, what, note)


def training_rows(section: dict) -> list:
    shape = section["shape"]
    what = (
        f"training, {shape['n_layer']} layers of {shape['n_embd']}, windows of "
        f"{shape['block_size']}, batches of {shape['batch_size']}, float32"
    )
    return versus(section, what)


def generation_rows(section: dict) -> list:
    rows = []
    for kind in ("one stream", "batch of 8"):
        what = (
            f"generation at {section['parameters']['ours'] / 1e6:.1f} million "
            f"parameters, window {section['shape']['block_size']}, prompt of "
            f"{section['prompt']}, then {section['new']} tokens; {kind}"
        )
        rows += versus(section[kind], what)
    return rows


def peak_rows(section: dict) -> list:
    rows = []
    for name, found in section["settings"].items():
        best = found["peak GFLOP/s"]["median"]
        what = f"training step at {section['parameters'] / 1e6:.1f} million parameters"
        if "share of peak" not in found:
            product = f"matrix product {short(best)} GFLOP/s"
            rows.append((f"{what}, {name}", "left out", product))
            continue
        share = found["share of peak"]
        here = f"{short(found['step GFLOP/s']['median'])} GFLOP/s"
        beside = (
            f"{share['median']:.0%} ({share['min']:.0%} to {share['max']:.0%}) of the "
            f"best matrix product, {short(best)} GFLOP/s"
        )
        rows.append((f"{what}, {name}", here, beside))
    return rows


def scaling_rows(section: dict) -> list:
    rows = []
    for name in ("parameters", "context", "batch"):
        points, slope = section[name]["points"], section[name]["slope"]
        first, last = points[0], points[-1]
        rows.append(
            (
                f"training a token, {name} from {first['size']:,} to {last['size']:,}",
                f"{short(first['median'])} to {short(last['median'])} µs",
                f"as {name} to the power {slope['median']:.2f} "
                f"({slope['min']:.2f} to {slope['max']:.2f})",
            )
        )
    return rows


def bpe_rows(section: dict) -> list:
    what = (
        f"BPE, {section['characters']:,} characters, {section['vocab_size']:,} tokens"
    )
    return [
        *versus(section["training"], f"{what}: training"),
        *versus(section["encoding"], f"{what}: encoding"),
    ]


def import_rows(section: dict) -> list:
    over, torchs = (section["seconds"][name] for name in ("over torch", "torch"))
    here = f"{over['median']:.2f} s ({over['min']:.2f} to {over['max']:.2f})"
    beside = f"`import torch` {torchs['median']:.2f} s"
    return [("`import tinygpt_lib`, over `import torch`", here, beside)]


ROWS = {
    "speedrun": speedrun_rows,
    "training": training_rows,
    "generation": generation_rows,
    "peak": peak_rows,
    "scaling_cost": scaling_rows,
    "bpe": bpe_rows,
    "import": import_rows,
}


def table(results: dict) -> str:
    """All that was measured, as a table in markdown, and where and when it was."""
    lines = ["| what | ours | beside it |", "|---|---|---|"]
    for name, rows in ROWS.items():
        if name in results:
            lines += [f"| {' | '.join(row)} |" for row in rows(results[name])]
    lines.append("")
    lines += [f"{line}  " for line in circumstances(results)]
    return "\n".join(lines).rstrip()


def circumstances(results: dict) -> list[str]:
    """One sentence for each machine that results are from, then who was left out."""
    seen = {}
    for name in ROWS:
        if name in results:
            machine = describe(results[name]["machine"])
            seen.setdefault(machine, []).append((results[name]["date"], name))
    lines = []
    for machine, parts in seen.items():
        dates = sorted({date for date, _ in parts})
        when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
        which = "" if len(seen) == 1 else f" ({', '.join(name for _, name in parts)})"
        lines.append(f"Measured {when}{which} on {machine}.")
    out = [
        f"{name}: {peer} {why}"
        for name in ROWS
        for peer, why in results.get(name, {}).get("skipped", {}).items()
    ]
    return [*lines, *([f"Left out: {'; '.join(out)}."] if out else [])]


def describe(machine: dict) -> str:
    """A machine in a few words."""
    memory = machine.get("memory_gb")
    parts = [
        machine["cpu"],
        f"{machine['cores']} cores" if machine.get("cores") else "",
        f"{memory} GB" if memory else "",
        ", ".join(machine.get("flags", [])),
        machine.get("os", ""),
        f"{machine['threads']} threads" if machine.get("threads") else "",
    ]
    return ", ".join(part for part in parts if part)


def with_table(readme: str, results: dict) -> str:
    """The README's text, with a new table between its two marks; ValueError without."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the README has no {BEGIN} with an {END} behind it")
    return f"{before}{BEGIN}\n{table(results)}\n{END}{after}"


def write_readme(path: Path = README, results: Path = RESULTS) -> None:
    """Puts what results.json says into the README."""
    data = json.loads(results.read_text("utf-8"))
    path.write_bytes(with_table(path.read_text("utf-8"), data).encode())


if __name__ == "__main__":
    write_readme()
