"""The live page: one HTML file with a model in it, that any browser opens and runs.

What it is made of, plain HTML, CSS and JavaScript, lies in `live`.
"""

import base64
import hashlib
import html
import json
import os
import re
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from tinygpt_lib.basics.files import read_json, write_atomically, writing
from tinygpt_lib.gpt import GPT
from tinygpt_lib.runs.checkpoints import load_checkpoint
from tinygpt_lib.runs.detectors import AnomalyDetector
from tinygpt_lib.runs.models import full_config

LIVE = Path(__file__).parent / "live"
LARGEST = (
    200_000_000  # bytes of weights: the largest page that Chromium was seen to run
)
MARK = '<meta name="generator" content="tinygpt_lib play">'
TYPES = {torch.float32: "f32", torch.float16: "f16"}  # others become float32


def page_of(folder: Path) -> bytes:
    """The page of a run, a checkpoint or a detector; ValueError for one too large."""
    name = folder.resolve().name
    if (folder / "detector.safetensors").exists():
        detector = AnomalyDetector.load(folder)
        models, tokenizer = detector.members, detector.tokenizer
        about = {"detector": what_it_knows(detector)}
    else:
        model, tokenizer = load_checkpoint(folder)
        models, noted = [model], read_json(folder / "config.json").get("about")
        noted = noted if isinstance(noted, dict) else {}
        name = str(noted.get("name", name))
        about = {"prompt": "ROMEO:" if noted.get("text") is None else ""}
    size = sum(t.nbytes for m in models for t in m.state_dict().values())
    if size > LARGEST:
        raise ValueError(
            f"{folder} holds {size / 1e6:,.1f} MB of weights; a page takes at most "
            f"{LARGEST / 1e6:,.0f} MB, which in float32 are {LARGEST / 4e6:,.0f} "
            "million parameters"
        )
    about["about"] = told(models, "detector" in about)
    run = {"name": name, "tokenizer": tokenizer.to_dict(), **about}
    run["models"], weights = packed(models)
    data = json.dumps(run).replace("<", r"\u003c")  # ASCII; nothing that ends a script
    text = (LIVE / "page.html").read_text(encoding="utf-8")
    text = text.replace(
        "<title></title>", f"{MARK}\n<title>{html.escape(name)}</title>"
    )
    text = inlined(text)
    head, foot = text.split("<!-- the run -->")
    return b"".join(
        [
            head.encode("utf-8", "xmlcharrefreplace"),
            b'<script type="application/json" id="run">',
            data.encode(),
            b'</script>\n<script type="application/octet-stream" id="weights">',
            base64.b64encode(weights),
            b"</script>\n",
            foot.encode(),
        ]
    )


def told(models: list[GPT], detector: bool) -> str:
    """What kind of model it is, in a sentence or two."""
    config, n = (
        models[0].config,
        sum(t.numel() for t in models[0].state_dict().values()),
    )
    what = f"A detector of {len(models)} GPTs, each of" if detector else "A GPT of"
    return (
        f"{what} {n:,} numbers: {config.n_layer} layers with {config.n_head} heads "
        f"each, {config.vocab_size:,} kinds of tokens, of which it sees up to "
        f"{config.block_size:,} at once. It runs here, in this page."
    )


def packed(models: list[GPT]) -> tuple[list[dict], bytearray]:
    """What describes each model, with where its tensors lie; and all their bytes."""
    described, weights = [], bytearray()
    for model in models:
        tensors = {}
        for name, tensor in model.state_dict().items():
            tensor = tensor if tensor.dtype in TYPES else tensor.float()
            place = {"type": TYPES[tensor.dtype], "start": len(weights)}
            tensors[name] = {**place, "shape": list(tensor.shape)}
            weights += in_order(tensor)
        config = asdict(full_config(model.config))
        described.append({"config": config, "weights": tensors})
    return described, weights


def in_order(tensor: Tensor) -> bytes:
    """The numbers of a tensor, the lowest byte of each first."""
    numbers = tensor.detach().cpu().contiguous().numpy()
    return numbers.astype(numbers.dtype.newbyteorder("<")).tobytes()


def what_it_knows(detector: AnomalyDetector) -> dict:
    """What a page needs to say how odd a session is, by its surprise."""
    events = detector.tokenizer.events
    same = os.path.commonprefix(events).rpartition(" ")  # noqa: RUF071 (no paths)
    return {
        "prefix": (same[0] + same[1]) or None,
        "price": detector.price,
        "score": detector.score_name,
        "rate": detector.false_alarms,
        "masks": detector.about.get("kinds", {}).get("masks") or {},
        # By each member, how many normal sessions it was tried on, and the oddest.
        "tried": [len(scores) for scores in detector.held_out[True]],
        "oddest": [scores[-1000:].tolist() for scores in detector.held_out[True]],
    }


def inlined(text: str) -> str:
    """The page with its styles and scripts in itself, and leave to run no others."""
    allowed = {"script": [], "style": []}

    def content(found: re.Match) -> str:
        file = found["script"] or found["style"]
        kind = "script" if found["script"] else "style"
        code = (LIVE / file).read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        allowed[kind].append(f"'sha256-{digest}'")
        return f"<{kind}>{code}</{kind}>"

    parts = r'<script src="(?P<script>[^"]+)"></script>'
    parts += r'|<link rel="stylesheet" href="(?P<style>[^"]+)">'
    text = re.sub(parts, content, text)
    policy = "; ".join(
        ["default-src 'none'"] + [f"{k}-src {' '.join(v)}" for k, v in allowed.items()]
    )
    header = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    return text.replace(MARK, f"{MARK}\n{header}")


def write_page(folder: Path, out: Path) -> int:
    """Writes the page of what is in a folder; its size in bytes.

    A page that is there is replaced, any other file is left alone: ValueError.
    """
    with writing(out):
        place = out.resolve()
        if place.exists() and not is_page(place):
            raise ValueError(f"{out} exists and is no page of ours: choose another")
    page = page_of(folder)
    with writing(out):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, page)
    return len(page)


def is_page(path: Path) -> bool:
    """Whether there is a page at path that `write_page` wrote."""
    if not path.is_file():  # a pipe, say, which nobody may ever write to
        return False
    with open(path, "rb") as file:
        return MARK.encode() in file.read(1000)
