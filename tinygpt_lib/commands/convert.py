"""`convert`: a run for Hugging Face's transformers, and their models as runs."""

from pathlib import Path

from tinygpt_lib.basics.files import check_free, filling
from tinygpt_lib.commands.common import add_command
from tinygpt_lib.runs.checkpoints import load_checkpoint, save_checkpoint
from tinygpt_lib.runs.huggingface import load_hf, save_hf


def add_convert(commands) -> None:
    command = add_command(
        commands,
        "convert",
        run_convert,
        "take a model to Hugging Face's transformers, or from there",
        "convert runs/mine --to hf exported",
    )
    command.add_argument("folder", type=Path, nargs="?", help="a run, for --to")
    command.add_argument(
        "--to",
        nargs=2,
        metavar=("hf", "DIR"),
        help="write a folder that transformers opens",
    )
    command.add_argument(
        "--from",
        nargs=2,
        metavar=("hf", "DIR"),
        dest="source",
        help="read a GPT-2, Llama or Qwen3 (config.json, model.safetensors)",
    )
    command.add_argument("--out", type=Path, help="the new run, for --from")


def run_convert(options) -> int:
    kind, other = options.to or options.source or (None, None)
    if (options.to is None) == (options.source is None) or kind != "hf":
        options.usage_error("give either --to hf DIR or --from hf DIR")
    if options.to:
        if options.folder is None or options.out:
            options.usage_error("--to wants a run to read, and no --out")
        model, tokenizer = load_checkpoint(options.folder)
        save_hf(other, model, tokenizer)
        print(f"{other} can be opened by AutoModelForCausalLM.from_pretrained")
    else:
        if options.folder or options.out is None:
            options.usage_error("--from wants --out, the folder of the new run")
        check_free(options.out, "model.safetensors")
        model, tokenizer = load_hf(other)
        with filling(options.out, "model.safetensors") as aside:
            save_checkpoint(aside, model, tokenizer, {"converted from": str(other)})
        print(f"{options.out} holds {model.n_parameters():,} parameters")
    return 0
