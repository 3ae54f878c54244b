"""Lines to events on loghub's sixteen samples: ours, Drain3's, masks alone.

    git clone https://github.com/logpai/loghub   # 2,000 lines of each, and their kinds
    pip install drain3                           # left out where it is not installed
    python benchmarks/loghub.py loghub           # writes loghub.json, half a minute

Settings were chosen on the first eight by alphabet; that numbers which count are no
codes was seen on one of the others, Zookeeper. Grouping accuracy (Zhu et al., 2019):
the share of lines whose group holds the very lines that their true kind has. Ours is
counted twice: by kind of line, and with the numbers that it keeps apart as codes. News:
of the last 600 lines those never seen in the first 1,400, that are of a kind (`true`)
or are no kind (`no_news`) that the sample calls new.
"""

import argparse
import csv
import json
import re
from collections import defaultdict
from pathlib import Path
from statistics import mean
from unittest.mock import patch

from harness import machine, today, versions

from tinygpt_lib import logs
from tinygpt_lib.basics.files import write_atomically
from tinygpt_lib.basics.logformats import LogFormat, Reader
from tinygpt_lib.logs import Masks, Templates
from tinygpt_lib.runs.reading import event_of

OUT = Path(__file__).with_name("loghub.json")
CHOSEN = "Android Apache BGL HDFS HPC Hadoop HealthApp Linux".split()
OTHERS = "Mac OpenSSH OpenStack Proxifier Spark Thunderbird Windows Zookeeper".split()
FIT = 1400  # lines that are normal
WORDS = re.compile(r"[^\d\s]{1,40}")  # codes that are no numbers


def read(folder: Path, name: str) -> tuple[list[str], list[str], list[str]]:
    """Lines as they are, what loghub calls their content, and their true kinds."""
    path = folder / name / f"{name}_2k.log"
    raw = path.read_bytes().decode("utf-8", errors="replace").split("\n")
    with open(f"{path}_structured.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [line.rstrip("\r") for line in raw[: len(rows)]]
    return lines, [row["Content"] for row in rows], [row["EventId"] for row in rows]


def accuracy(found: list[str], true: list[str]) -> float:
    """Grouping accuracy."""
    groups: list[dict] = [defaultdict(list), defaultdict(list)]
    for i, pair in enumerate(zip(found, true, strict=True)):
        for group, name in zip(groups, pair, strict=True):
            group[name].append(i)
    right = {tuple(places) for places in groups[1].values()}
    good = sum(len(p) for p in groups[0].values() if tuple(p) in right)
    return good / len(found)


def news(found: list[str], true: list[str]) -> dict:
    """Lines of the last part that were never seen before, right and wrong."""
    seen, known = set(found[:FIT]), set(true[:FIT])
    flags = [
        (event not in seen, kind not in known)
        for event, kind in zip(found[FIT:], true[FIT:], strict=True)
    ]
    wrong = {e for e, k in zip(found[FIT:], true[FIT:], strict=True) if k in known}
    return {
        "no_news": sum(flag and not new for flag, new in flags),
        "no_news_events": len(wrong - seen),
        "true": sum(flag and new for flag, new in flags),
        "of": sum(new for _, new in flags),
    }


def ours(lines: list[str], until: int | None = None, codes: bool = True) -> list[str]:
    """Events by what was learnt of the first lines."""
    with patch.object(logs, "CODE", logs.CODE if codes else WORDS):
        kinds = Templates.learn(lines[:until])
        return [kinds(line) for line in lines]


def whole(lines: list[str], until: int | None = None, codes: bool = True) -> tuple:
    """Events of lines as they are, and how they were read."""
    form = LogFormat.of(lines[:until])
    reader = Reader(form)
    records = [reader(line) for line in lines]
    found = ours([record.message for record in records], until, codes)
    texts = [event_of(r, lambda _, e=e: e) for r, e in zip(records, found, strict=True)]
    return texts, form, records, reader.counts


def drain(lines: list[str], until: int | None = None) -> list[str]:
    """Events by Drain3 as it is installed, frozen after the first lines."""
    from drain3 import TemplateMiner

    miner = TemplateMiner()
    for line in lines[:until]:
        miner.add_log_message(line)
    if until is None:  # a line's first cluster may have become another's
        return [str(miner.add_log_message(line)["cluster_id"]) for line in lines]
    found = [miner.match(line) for line in lines]
    pairs = zip(found, lines, strict=True)
    return [str(match.cluster_id) if match else line for match, line in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="a copy of loghub")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    results: dict = {"systems": {}, "mean": {}}
    for name in (*CHOSEN, *OTHERS):
        lines, content, true = read(options.folder, name)
        texts, form, records, counts = whole(lines)
        pairs = zip(records, content, strict=True)
        row = {
            "format": str(form),
            "not_read": counts["not read"],
            "content_found": float(
                mean(r.message.strip() == c.strip() for r, c in pairs)
            ),
            "content": accuracy(ours(content, codes=False), true),
            "content, codes apart": accuracy(ours(content), true),
            "lines": accuracy(whole(lines, codes=False)[0], true),
            "lines, codes apart": accuracy(texts, true),
            "news": news(whole(lines, FIT)[0], true),
            "masks": {
                "content": accuracy(list(map(Masks(), content)), true),
                "lines": accuracy(list(map(Masks(), lines)), true),
                "news": news(list(map(Masks(), lines)), true),
            },
        }
        try:
            row["drain3"] = {
                "content": accuracy(drain(content), true),
                "lines": accuracy(drain(lines), true),
                "news": news(drain(lines, FIT), true),
                "news, masked": news(drain(list(map(Masks(), lines)), FIT), true),
            }
        except ImportError:
            pass
        results["systems"][name] = row
        print(name, json.dumps(row), flush=True)
    for title, names in (("chosen on", CHOSEN), ("others", OTHERS), ("all", None)):
        rows = [results["systems"][n] for n in names or (*CHOSEN, *OTHERS)]
        results["mean"][title] = averages(rows)
    about = {"date": today(), "machine": machine(), "versions": versions("drain3")}
    write_atomically(
        options.out, (json.dumps(about | results, indent=1) + "\n").encode()
    )
    print(json.dumps(results["mean"], indent=1))


def averages(rows: list[dict]) -> dict:
    """Means of accuracies, sums of news, in rows of rows."""
    out: dict = {}
    for key, value in rows[0].items():
        if isinstance(value, dict):
            out[key] = averages([row[key] for row in rows])
        elif isinstance(value, float):
            out[key] = round(mean(row[key] for row in rows), 4)
        elif isinstance(value, int):
            out[key] = sum(row[key] for row in rows)
    return out


if __name__ == "__main__":
    main()
