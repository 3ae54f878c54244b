"""`evaluate`: measure a trained model on the whole validation text."""

from pathlib import Path

from tinygpt_lib.basics.bars import bar
from tinygpt_lib.basics.devices import choose_device
from tinygpt_lib.basics.files import read_json
from tinygpt_lib.commands.common import add_command, encode_parts, text_of
from tinygpt_lib.runs.checkpoints import fingerprint, load_checkpoint
from tinygpt_lib.tokenizers import score_text


def add_evaluate(commands) -> None:
    command = add_command(
        commands,
        "evaluate",
        run_evaluate,
        "measure a trained model on the whole validation text, the last tenth",
        "evaluate runs/cpu",
    )
    command.add_argument("folder", type=Path, help="a run, or any saved checkpoint")
    command.add_argument(
        "--text",
        action="append",
        help="a UTF-8 file, a folder of them, or - for standard input; repeatable "
        "(default: what it was trained on)",
    )


def run_evaluate(options) -> int:
    device = choose_device(options.device)
    model, tokenizer = load_checkpoint(options.folder, device)
    about = read_json(options.folder / "config.json").get("about")
    if not isinstance(about, dict):
        about = {}
    name, data = text_of(options, about)
    parts = encode_parts(tokenizer, name, data)  # names an unknown character's place
    noted = about.get("data")
    if options.text is None and noted not in (None, fingerprint(*parts)):
        raise ValueError(
            f"{name} is not the text any more that the run was trained on: its last "
            "tenth is another one; to measure it all the same, give it by --text"
        )
    text = "".join(data.pieces(1, "reading"))
    with bar(len(parts[1]) - 1, "measuring", "tokens") as shown:
        model.register_forward_hook(lambda _, read, __: shown.update(read[0].numel()))
        score = score_text(model, tokenizer, text)
    print(f"{score.n_tokens:,} tokens predicted, the whole validation text")
    print(f"{score.nats_per_token:.4f} nats per token")
    print(f"{score.bits_per_byte:.4f} bits per byte")
    if score.n_unknown:
        share = score.n_unknown / score.n_tokens
        print(
            f"{score.n_unknown:,} of the tokens ({share:.1%}) are unknown; what they "
            "stand for was not predicted, so the true bits per byte are more"
        )
    return 0
