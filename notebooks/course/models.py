"""Models that several chapters look at: trained by whichever asks first, then kept."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

import tinygpt_lib
from tinygpt_lib.basics.files import CheckpointError
from tinygpt_lib.gpt import GPT, GPTConfig
from tinygpt_lib.runs.checkpoints import fingerprint
from tinygpt_lib.runs.models import new_model
from tinygpt_lib.runs.run import train
from tinygpt_lib.runs.settings import TrainConfig
from tinygpt_lib.training import History

RUNS = Path("../runs/chapters")  # notebooks run in notebooks/


def trained(
    name: str,
    model_config: GPTConfig,
    train_config: TrainConfig,
    train_ids: Tensor,
    val_ids: Tensor,
    tokenizer,
    seed: int = 0,  # of the weights
    train=train,
) -> tuple[GPT, History]:
    """A model and its history: from the runs folder if this run is there, else trained.

    It is this run if model, data, settings, torch and the library are the same; what
    was interrupted goes on. Your random numbers stay as they were, either way.
    """
    digest = hashlib.sha256(fingerprint(train_ids, val_ids).encode())
    parts = asdict(model_config), asdict(train_config), tokenizer.to_dict()
    for about in parts:
        digest.update(json.dumps(about, sort_keys=True).encode())
    digest.update(f"{seed} {torch.__version__}".encode())
    for module in sorted(Path(tinygpt_lib.__file__).parent.rglob("*.py")):
        digest.update(module.read_bytes())
    out = RUNS / f"{name}-{digest.hexdigest()[:12]}"

    def run(**kept) -> tuple[GPT, History]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = new_model(model_config)
            data = train_ids, val_ids
            return model, train(model, *data, train_config, progress=False, **kept)

    try:
        RUNS.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{out}.lock"):  # another chapter may be training it just now
            return run(out=out, tokenizer=tokenizer, resume=out.exists())
    except (OSError, CheckpointError):  # nothing can be kept here, or what was is cut
        return run()
