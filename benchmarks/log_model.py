"""Chapter 15's GPT, three seeds, on HDFS and on the synthetic log: bits per event.

    python benchmarks/log_model.py      # writes log_model.json, two minutes

The chapter trains the first of each again and finds the same but for rounding.
"""

from dataclasses import replace
from pathlib import Path

import harness
import torch

from course.logdata import Log, load_hdfs, synthetic_log
from tinygpt_lib import new_model, split, train
from tinygpt_lib.logs import (
    EventTokenizer,
    SessionFinder,
    bits_per_event,
    group_lines,
    stream,
)
from tinygpt_lib.runs.presets import log_preset

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
    train_ids, val_ids = (stream(part, tokenizer) for part in (known, held_out))
    coded = [tokenizer.encode_session(session) for session in held_out]
    model_config, plan = log_preset(tokenizer.vocab_size)
    bits = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        model = new_model(model_config)
        own = replace(plan, seed=seed, eval_every=0)
        train(model, train_ids, val_ids, own, progress=False)
        bits.append(round(bits_per_event(model, coded), 4))
        print(bits, flush=True)
    return bits


if __name__ == "__main__":
    for name, load in (("HDFS", load_hdfs), ("SYNTHETIC", synthetic_log)):
        harness.keep(RESULTS, name, bits_by_seed(load()))
