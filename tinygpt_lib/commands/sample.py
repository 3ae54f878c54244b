"""`sample`: let a trained model write."""

from pathlib import Path

import torch

from tinygpt_lib.basics.checks import check_int
from tinygpt_lib.basics.devices import choose_device
from tinygpt_lib.basics.texts import read_text
from tinygpt_lib.commands.common import add_command
from tinygpt_lib.runs.checkpoints import (
    load_checkpoint,
)
from tinygpt_lib.runs.sampling import generate


def add_sample(commands) -> None:
    command = add_command(
        commands,
        "sample",
        run_sample,
        "let a trained model write",
        'sample runs/cpu --prompt "ROMEO:" --tokens 500 --temperature 0.8',
    )
    command.add_argument("folder", type=Path, help="a run, or any saved checkpoint")
    command.add_argument(
        "--prompt",
        help="what the text begins with, - for standard input (default: a break)",
    )
    command.add_argument("--tokens", type=int, default=500, help="(default: 500)")
    command.add_argument(
        "--temperature", type=float, default=0.8, help="0 is greedy (default: 0.8)"
    )
    command.add_argument("--top-k", type=int, help="draw from the k likeliest only")
    command.add_argument(
        "--top-p", type=float, help="draw from the likeliest that reach p"
    )
    command.add_argument("--seed", type=int, help="makes the text repeatable")


def run_sample(options) -> int:
    device = choose_device(options.device)
    if options.seed is not None:
        check_int("seed", options.seed, low=0, high=2**63 - 1)
    model, tokenizer = load_checkpoint(options.folder, device)
    prompt = read_text("-") if options.prompt == "-" else options.prompt
    if prompt is None:
        first = getattr(tokenizer, "begin", 0)
        prompt = "\n" if knows(tokenizer, "\n") else tokenizer.decode([first])
    generator = torch.Generator()
    seed = generator.seed() if options.seed is None else options.seed
    generator.manual_seed(seed)
    ids = generate(
        model,
        tokenizer.encode(prompt)[None],
        options.tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        generator=generator,
    )
    print(tokenizer.decode(ids[0]))
    return 0


def knows(tokenizer, text: str) -> bool:
    """Whether the tokenizer has a token for text."""
    try:
        return len(tokenizer.encode(text)) > 0
    except ValueError:
        return False
