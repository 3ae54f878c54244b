"""Chapter 15's GPT, three seeds, on HDFS and on the synthetic log: bits per event.

    python benchmarks/log_model.py      # writes log_model.json, two minutes

The chapter trains the first of each again and finds the same but for rounding.
"""

from pathlib import Path

import harness
import torch

from course.logdata import Log, load_hdfs, synthetic_log
from tinygpt_lib import split
from tinygpt_lib.logs import (
    EventTokenizer,
    SessionFinder,
    bits_per_event,
    group_lines,
    learn,
    log_config,
    stream,
)

RESULTS = Path(__file__).with_suffix(".json")
SEEDS = range(3)


def bits_by_seed(log: Log) -> list[float]:
    """Bits per event over the validation sessions, for each seed."""
    lines = (line.text for line in log.lines)
    found = group_lines(lines, SessionFinder(r"blk_-?\d+"))
    normal = [s.events for name, s in found.items() if not log.anomalous[name]]
    order = torch.randperm(len(normal), generator=torch.Generator().manual_seed(0))
    known, held_out = split([normal[i] for i in order])
    tokenizer = EventTokenizer.from_sessions(known)
    train_ids = stream(known, tokenizer)
    coded = [tokenizer.encode_session(session) for session in held_out]
    bits = []
    for seed in SEEDS:
        model = learn(train_ids, log_config(tokenizer.vocab_size), seed, early=False)
        bits.append(round(bits_per_event(model, coded), 4))
        print(bits, flush=True)
    return bits


if __name__ == "__main__":
    for name, load in (("HDFS", load_hdfs), ("SYNTHETIC", synthetic_log)):
        harness.keep(RESULTS, name, bits_by_seed(load()))
