"""The contenders: our model, and those of the peers that are there.

    python benchmarks/peers.py train NAME STEPS        milliseconds of each step
    python benchmarks/peers.py loss FOLDER CHECKPOINT  of nanoGPT's, as ours is measured

Peers' code stays outside: a checkout that is named, or a package that is installed. The
commands are for bench.py, which starts each contender in a process of its own.
"""

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from harness import commit, corpus, versions
from torch import nn

from tinygpt_lib import FastConfig, TrainConfig, evaluate, load_shakespeare, new_model
from tinygpt_lib.runs.run import Run
from tinygpt_lib.text import get_batch

VOCAB = 65  # Tiny Shakespeare's characters
SMALL = {"block_size": 64, "n_layer": 4, "n_head": 4, "n_embd": 128}
LARGE = {"block_size": 256, "n_layer": 6, "n_head": 6, "n_embd": 384}
BATCH = 12
# nanoGPT's command, as its README says for CPU.
COMMAND = (
    "train.py",
    "config/train_shakespeare_char.py",
    "--device=cpu",
    "--compile=False",
    "--eval_iters=20",
    "--log_interval=1",
    *(f"--{name}={value}" for name, value in SMALL.items()),
    f"--batch_size={BATCH}",
    "--max_iters=2000",
    "--lr_decay_iters=2000",
    "--dropout=0.0",
)
PACKAGES = {  # what we call a peer: the package, and the module to import
    "Hugging Face GPT-2": ("transformers", "transformers"),
    "x-transformers": ("x-transformers", "x_transformers"),
    "Hugging Face tokenizers": ("tokenizers", "tokenizers"),
}
CHECKOUTS = {"nanoGPT": "train.py", "minbpe": "minbpe/regex.py"}

# --- Who is there ---


@dataclass
class Peers:
    """Where the peers' checkouts are; packages are looked for where Python does."""

    nanogpt: Path | None = None
    minbpe: Path | None = None

    def missing(self, name: str) -> str | None:
        """Why a peer can't take part; None if it can."""
        if name in PACKAGES:
            package, module = PACKAGES[name]
            if importlib.util.find_spec(module) is None:
                return f"skipped, package {package} is not installed"
            return None
        folder = getattr(self, name.lower())
        if folder is None:
            return f"skipped, no --{name.lower()} PATH"
        if not (folder / CHECKOUTS[name]).is_file():
            return f"skipped, {CHECKOUTS[name]} is not in the folder given"
        return None

    def present(self, *names: str) -> tuple[list[str], dict[str, str]]:
        """Those of the peers that can take part, and why the others can't."""
        why = {name: self.missing(name) for name in names}
        here = [name for name in names if why[name] is None]
        return here, {name: text for name, text in why.items() if text}

    def versions(self) -> dict[str, str]:
        """Of all that takes part; checkouts by their commit."""
        found = versions(*(package for package, _ in PACKAGES.values()))
        for name in CHECKOUTS:
            if self.missing(name) is None:
                found[name] = commit(getattr(self, name.lower()))
        return found


# --- nanoGPT ---


def prepared_nanogpt(checkout: Path, folder: Path) -> Path:
    """A copy of the checkout in folder, with our corpus as its data.

    The checkout itself stays as it is. RuntimeError if its ids are not ours.
    """
    copy = folder / "nanoGPT"
    ignored = shutil.ignore_patterns(".git", "assets", "__pycache__", "*.ipynb", "*.md")
    shutil.copytree(checkout, copy, ignore=ignored)
    data = copy / "data" / "shakespeare_char"
    (data / "input.txt").write_bytes(load_shakespeare().encode())
    command = [sys.executable, "prepare.py"]
    subprocess.run(command, cwd=data, check=True, capture_output=True, text=True)
    for name, ids in zip(("train.bin", "val.bin"), corpus()[1:], strict=True):
        theirs = torch.frombuffer(
            bytearray((data / name).read_bytes()), dtype=torch.int16
        )
        if not torch.equal(theirs.long(), ids):
            raise RuntimeError(f"nanoGPT's {name} holds other ids than ours")
    return copy


def nanogpt_module(folder: Path) -> ModuleType:
    """nanoGPT's model.py, under a name of its own."""
    spec = importlib.util.spec_from_file_location(
        "nanogpt_model", Path(folder, "model.py")
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def nanogpt_model(folder: Path, shape: dict) -> nn.Module:
    """nanoGPT's GPT of our vocabulary; without biases, as its command has it."""
    module = nanogpt_module(folder)
    return module.GPT(module.GPTConfig(vocab_size=VOCAB, bias=False, **shape))


class AllLogits(nn.Module):
    """nanoGPT's model as `evaluate` wants one: ids (B, T) -> logits (B, T, V)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, ids):
        return self.model(ids, ids)[0]  # with targets it gives them for every place


def nanogpt_loss(folder: Path, checkpoint: Path) -> dict:
    """Nats per character of a checkpoint, over the whole validation text, as ours."""
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    module = nanogpt_module(folder)
    model = module.GPT(module.GPTConfig(**saved["model_args"]))
    model.load_state_dict(saved["model"])
    _, _, val_ids = corpus()
    return {
        "loss": evaluate(AllLogits(model), val_ids),
        "context": model.config.block_size,
        "step": saved["iter_num"],
    }


# --- The packages ---


def gpt2_model(shape: dict) -> nn.Module:
    """Hugging Face's GPT-2; with the exact GELU, as nanoGPT has it."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCAB,
        n_positions=shape["block_size"],
        n_layer=shape["n_layer"],
        n_head=shape["n_head"],
        n_embd=shape["n_embd"],
        activation_function="gelu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return GPT2LMHeadModel(config)


def x_transformers_model(shape: dict) -> nn.Module:
    """x-transformers' decoder in its wrapper; fused attention, as all of us use."""
    from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

    layers = Decoder(
        dim=shape["n_embd"],
        depth=shape["n_layer"],
        heads=shape["n_head"],
        attn_dim_head=shape["n_embd"] // shape["n_head"],
        attn_flash=True,
    )
    return AutoregressiveWrapper(
        TransformerWrapper(
            num_tokens=VOCAB, max_seq_len=shape["block_size"], attn_layers=layers
        )
    )


# --- A step of training ---


class TimedRun(Run):
    """A training run that notes when each of its steps was done."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.moments = [time.perf_counter()]

    def after_step(self, ends: bool) -> None:
        self.moments.append(time.perf_counter())
        super().after_step(ends)


def milliseconds(moments: list[float]) -> list[float]:
    """Between each moment, in seconds, and the next."""
    return [1000 * (b - a) for a, b in pairwise(moments)]


def our_steps(steps: int) -> tuple[nn.Module, list[float]]:
    """Our model as nanoGPT's is, tied and without biases, in our training loop."""
    _, train_ids, val_ids = corpus()
    same = {"bias": False, "tie_weights": True, "feed_forward": "gelu_exact"}
    model = new_model(FastConfig(VOCAB, **same, **SMALL))
    config = TrainConfig(steps=steps, batch_size=BATCH, eval_every=0)
    run = TimedRun(model, train_ids, val_ids[:2], config)
    run.go()
    return model, milliseconds(run.moments)


def plain_steps(model, logits_of, steps: int) -> tuple[nn.Module, list[float]]:
    """A package that brings no loop, in the one that everybody writes for it."""
    _, train_ids, _ = corpus()
    optimizer = torch.optim.AdamW(
        model.parameters(), 3e-3, betas=(0.9, 0.99), weight_decay=0.1
    )
    model.train()
    moments = [time.perf_counter()]
    for _ in range(steps):
        inputs, targets = get_batch(train_ids, BATCH, SMALL["block_size"])
        logits = logits_of(model, inputs)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()
        moments.append(time.perf_counter())
    return model, milliseconds(moments)


TRAINED = {  # in a process of its own each; nanoGPT's is its own train.py
    "ours": our_steps,
    "x-transformers": lambda steps: plain_steps(
        # Its wrapper's own loss would compute a 65th place, and throw it away.
        x_transformers_model(SMALL),
        lambda model, ids: model.net(ids),
        steps,
    ),
    "Hugging Face GPT-2": lambda steps: plain_steps(
        gpt2_model(SMALL), lambda model, ids: model(ids, use_cache=False).logits, steps
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    arguments = commands.add_parser("train")
    arguments.add_argument("name", choices=TRAINED)
    arguments.add_argument("steps", type=int)
    arguments = commands.add_parser("loss")
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("checkpoint", type=Path)
    given = parser.parse_args()
    if given.command == "loss":
        result = nanogpt_loss(given.folder, given.checkpoint)
    else:
        torch.manual_seed(0)
        model, ms = TRAINED[given.name](given.steps)
        parameters = sum(p.numel() for p in model.parameters())
        result = {"parameters": parameters, "ms": ms}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
