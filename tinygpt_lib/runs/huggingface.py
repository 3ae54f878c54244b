"""Weights across: a model of ours as Hugging Face's transformers opens it, and back.

Learned positions and LayerNorm make a GPT-2; rotary positions, RMSNorm and SwiGLU a
Llama, and with normed queries and keys a Qwen3. Logits are the same, up to rounding.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor

from tinygpt_lib.basics.files import (
    CheckpointError,
    filling,
    json_file,
    json_object,
    read_bytes,
    read_json,
    understood,
    write_together,
)
from tinygpt_lib.gpt import GPT
from tinygpt_lib.runs.checkpoints import check_shapes, check_tokenizer, model_of
from tinygpt_lib.runs.models import full_config
from tinygpt_lib.runs.tokenizers import tokenizer_from_dict
from tinygpt_lib.speed import FastConfig, FastGPT
from tinygpt_lib.tokenizers import BPETokenizer

TOKENIZER = "tinygpt_tokenizer.json"  # ours; tokenizer.json is the name of theirs
BENDS = {"gelu": "gelu_new", "gelu_exact": "gelu", "relu": "relu"}  # their names
EPS = 1e-5  # what our norms add; theirs say it in config.json

ARCHITECTURES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
ROTARY = {"position": "rotary", "norm": "rms", "feed_forward": "swiglu"}
ALIKE = {  # what is the same in a model of ours
    "gpt2": {"position": "learned", "norm": "layer", "qk_norm": "none"},
    "llama": {**ROTARY, "qk_norm": "none"},
    "qwen3": {**ROTARY, "qk_norm": "rms", "bias": False},
}
SETTINGS = {  # their names of our first five settings
    "gpt2": ("vocab_size", "n_positions", "n_layer", "n_head", "n_embd"),
    "llama": (
        "vocab_size",
        "max_position_embeddings",
        "num_hidden_layers",
        "num_attention_heads",
        "hidden_size",
    ),
}
FIXED = {  # theirs that have one value in ours
    "gpt2": {
        "layer_norm_epsilon": EPS,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
    },
    "llama": {"rms_norm_eps": EPS, "hidden_act": "silu", "use_sliding_window": False},
}
PARTS = {  # our parts, and those of theirs that they are stacked of
    "gpt2": {
        "token_embedding": ["transformer.wte"],
        "position_embedding": ["transformer.wpe"],
        "blocks.{}.attention_norm": ["transformer.h.{}.ln_1"],
        "blocks.{}.attention.to_qkv": ["transformer.h.{}.attn.c_attn"],
        "blocks.{}.attention.output": ["transformer.h.{}.attn.c_proj"],
        "blocks.{}.feed_forward_norm": ["transformer.h.{}.ln_2"],
        "blocks.{}.feed_forward.widen": ["transformer.h.{}.mlp.c_fc"],
        "blocks.{}.feed_forward.output": ["transformer.h.{}.mlp.c_proj"],
        "norm": ["transformer.ln_f"],
        "head": ["lm_head"],
    },
    "llama": {
        "token_embedding": ["model.embed_tokens"],
        "blocks.{}.attention_norm": ["model.layers.{}.input_layernorm"],
        "blocks.{}.attention.to_qkv": [
            f"model.layers.{{}}.self_attn.{x}_proj" for x in "qkv"
        ],
        "blocks.{}.attention.output": ["model.layers.{}.self_attn.o_proj"],
        "blocks.{}.feed_forward_norm": ["model.layers.{}.post_attention_layernorm"],
        "blocks.{}.feed_forward.widen": [
            f"model.layers.{{}}.mlp.{x}_proj" for x in ("gate", "up")
        ],
        "blocks.{}.feed_forward.output": ["model.layers.{}.mlp.down_proj"],
        "norm": ["model.norm"],
        "head": ["lm_head"],
    },
}
SETTINGS["qwen3"], FIXED["qwen3"] = SETTINGS["llama"], FIXED["llama"]
PARTS["qwen3"] = PARTS["llama"] | {
    "blocks.{}.attention.query_norm": ["model.layers.{}.self_attn.q_norm"],
    "blocks.{}.attention.key_norm": ["model.layers.{}.self_attn.k_norm"],
}


def family_of(config: FastConfig) -> str:
    """The name of the architecture that computes the same; ValueError if none does."""
    plain = config.embedding == "token" and not config.window
    gpt2 = config.feed_forward in BENDS and config.n_kv_head in (0, config.n_head)
    for family, settings in ALIKE.items():
        same = all(getattr(config, name) == v for name, v in settings.items())
        if same and plain and (gpt2 or family != "gpt2"):
            return family
    raise ValueError(
        "transformers has no model like this one; it can take over position 'learned' "
        f"with norm 'layer' and feed_forward {', '.join(map(repr, BENDS))}, or "
        "position 'rotary' with norm 'rms' and feed_forward 'swiglu' (and qk_norm "
        "'rms' where there are no biases), each without n-grams and window"
    )


def pairs_of(config: FastConfig, family: str) -> Iterator[tuple[str, list[str], bool]]:
    """Our tensor's name, those of theirs that it is stacked of, whether transposed."""
    gpt2 = family == "gpt2"
    for ours, theirs in PARTS[family].items():
        norm, inside = "norm" in ours, ours.startswith("blocks.")
        biased = gpt2 if norm else inside and (gpt2 or config.bias)
        for i in range(config.n_layer if inside else 1):
            for kind in ("weight", "bias") if biased else ("weight",):
                names = [f"{name}.{kind}".format(i) for name in theirs]
                turned = gpt2 and inside and not norm and kind == "weight"
                yield f"{ours}.{kind}".format(i), names, turned


def to_hf(model: GPT) -> tuple[dict, dict[str, Tensor]]:
    """What transformers wants of a model: config.json as data, and its tensors."""
    config = full_config(model.config)
    family, C, D = family_of(config), config.n_embd, config.n_embd // config.n_head
    state = dict(model.state_dict())
    if config.tie_weights:  # there the two ends differ by a factor
        state["head.weight"] = state["token_embedding.weight"]
        state["token_embedding.weight"] = state["head.weight"] * C**0.5
    n_kv_head = config.n_kv_head or config.n_head
    tensors = {}
    for ours, theirs, turned in pairs_of(config, family):
        tensor = state.get(ours)
        if tensor is None:  # GPT-2 always has biases
            weight = state[ours.removesuffix("bias") + "weight"]
            tensor = weight.new_zeros(len(weight))
        kv = n_kv_head * D
        sizes = [C, kv, kv] if len(theirs) == 3 else len(tensor) // len(theirs)
        for their, part in zip(theirs, tensor.split(sizes), strict=True):
            tensors[their] = (part.mT if turned else part).contiguous()
    about = {
        **dict(zip(SETTINGS[family], asdict(config).values(), strict=False)),
        **FIXED[family],
        "model_type": family,
        "architectures": [ARCHITECTURES[family]],
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": str(next(iter(tensors.values())).dtype).removeprefix("torch."),
    }
    if family == "gpt2":
        dropouts = "attn_pdrop", "embd_pdrop", "resid_pdrop"
        about |= dict.fromkeys(dropouts, config.dropout)
        return about | {"activation_function": BENDS[config.feed_forward]}, tensors
    turns = {"rope_type": "default", "rope_theta": config.rotary_base}
    if config.rotary_scale != 1:
        turns |= {"rope_type": "linear", "factor": config.rotary_scale}
    return about | {
        "intermediate_size": len(tensors["model.layers.0.mlp.up_proj.weight"]),
        "num_key_value_heads": n_kv_head,
        "head_dim": D,
        "rope_parameters": turns,
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
    }, tensors


def config_from_hf(theirs: dict) -> tuple[FastConfig, str]:
    """Our config for one of theirs, and its family; ValueError for what we lack."""
    family = theirs.get("model_type")
    if family not in PARTS:
        raise ValueError(f"model_type is {family!r}; it must be gpt2, llama or qwen3")

    def need(name: str, *allowed):
        value = theirs.get(name, allowed[0])
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}; here it can only be {allowed}")
        return value

    sizes = *_, n_head, n_embd = [theirs[name] for name in SETTINGS[family]]
    for name, value in FIXED[family].items():
        need(name, value)
    if family == "gpt2":
        need("n_inner", None, 4 * n_embd)
        bends = {**{v: k for k, v in BENDS.items()}, "gelu_pytorch_tanh": "gelu"}
        bend = bends[need("activation_function", *bends)]
        return FastConfig(*sizes, feed_forward=bend), family
    turns = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    if turns.get("rope_type", "default") not in ("default", "linear"):
        raise ValueError(f"rope_type is {turns['rope_type']!r}; ours turn evenly")
    need("head_dim", n_embd // n_head, None)
    bias = theirs.get("attention_bias", False)
    need("mlp_bias", bias)
    return FastConfig(
        *sizes,
        **ALIKE[family] | {"bias": bias},
        rotary_base=float(turns.get("rope_theta", theirs.get("rope_theta", 1e4))),
        rotary_scale=float(turns.get("factor", 1.0)),
        n_kv_head=theirs.get("num_key_value_heads") or 0,
    ), family


def from_hf(theirs: dict, tensors: dict[str, Tensor]) -> FastGPT:
    """A model of ours from config.json as data, and its tensors; ValueError if none."""
    config, family = config_from_hf(theirs)
    if family == "gpt2":  # the published ones lack a prefix, and hold masks besides
        tensors = {
            re.sub(r"^(?!transformer\.|lm_head\.)", "transformer.", name): t
            for name, t in tensors.items()
            if not name.endswith((".attn.bias", ".attn.masked_bias"))
        }
    (first,) = PARTS[family]["token_embedding"]
    tensors = {"lm_head.weight": tensors[f"{first}.weight"], **tensors}  # if tied
    state = {}
    for ours, names, turned in pairs_of(config, family):
        parts = [tensors.pop(name) for name in names]
        state[ours] = torch.cat([part.mT if turned else part for part in parts])
    if tensors:
        raise ValueError(f"tensor {min(tensors)} has no place in a model of ours")
    check_shapes(config, state)
    return model_of(config, state)


def save_hf(folder: str | Path, model: GPT, tokenizer) -> None:
    """A folder that transformers opens, by AutoModelForCausalLM.from_pretrained.

    The tokenizer is kept beside it, as ours; one by byte pairs as theirs too.
    """
    check_tokenizer(tokenizer, model.config)
    folder = Path(folder)
    config, tensors = to_hf(model)
    cpu = {name: t.detach().cpu() for name, t in tensors.items()}
    files = {
        TOKENIZER: json_file({"tokenizer": tokenizer.to_dict()}),
        "config.json": json.dumps(config, indent=2).encode(),
        "model.safetensors": to_safetensors(cpu, {"format": "pt"}),
    }
    if isinstance(tokenizer, BPETokenizer):
        files |= gpt2_files(tokenizer)
    with filling(folder, "config.json") as aside:
        write_together({aside / name: data for name, data in files.items()})


def gpt2_files(tokenizer: BPETokenizer) -> dict[str, bytes]:
    """vocab.json and merges.txt, as GPT-2's tokenizer has them."""
    visible = {byte: character for character, byte in gpt2_alphabet().items()}
    n = 256 + len(tokenizer.merges)
    written = ["".join(visible[b] for b in token) for token in tokenizer.tokens[:n]]
    lines = [f"{written[a]} {written[b]}" for a, b in tokenizer.merges]
    numbers = {token: i for i, token in enumerate([*written, *tokenizer.special])}
    return {
        "vocab.json": json.dumps(numbers, ensure_ascii=False).encode(),
        "merges.txt": "\n".join(["#version: 0.2", *lines, ""]).encode(),
    }


def load_hf(folder: str | Path) -> tuple[FastGPT, object]:
    """Model and tokenizer from a folder that transformers or `save_hf` wrote.

    CheckpointError, naming the file, for what can't be read or has no likeness here. No
    code that a file may hold is ever run.
    """
    folder = Path(folder)
    path = folder / "model.safetensors"
    theirs = json_object(folder / "config.json")
    read_bytes(path, 1)  # missing or forbidden: say so in our words
    with understood(f"{path} is not a whole safetensors file"):
        tensors = load_file(path)
    with understood(f"{folder / 'config.json'} describes no model of ours"):
        model = from_hf(theirs, tensors)
        tokenizer = tokenizer_in(folder)
        check_tokenizer(tokenizer, model.config)
    return model, tokenizer


def gpt2_alphabet() -> dict[str, int]:
    """The visible character that GPT-2's files write for each byte, in id order."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in visible]
    written = [*map(chr, visible), *(chr(256 + i) for i in range(len(hidden)))]
    return dict(zip(written, visible + hidden, strict=True))


def read_gpt2(
    folder: str | Path, encoder="encoder.json", merges="vocab.bpe"
) -> BPETokenizer:
    """GPT-2's own tokenizer, from the two files that OpenAI published.

    Hugging Face calls them vocab.json and merges.txt. ValueError for other formats.
    """
    encoder, merges = Path(folder) / encoder, Path(folder) / merges
    numbers, lines = json_object(encoder), read_bytes(merges)
    with understood(f"{encoder} and {merges}"):
        return BPETokenizer(*merges_of_gpt2(numbers, lines.decode().split("\n")))


def merges_of_gpt2(numbers: dict[str, int], lines: Sequence[str]):
    """For BPETokenizer, from tokens' numbers and a merge in each line."""
    alphabet = gpt2_alphabet()
    order = sorted(alphabet, key=lambda written: numbers.get(written, -1))
    known = {written: i for i, written in enumerate(order)}
    pairs = []
    for line in lines[lines[0].startswith("#version") :]:
        if not line:
            continue
        parts = line.split(" ")
        if len(parts) != 2 or not all(part in known for part in parts):
            raise ValueError(f"{line!r:.50} is no merge of earlier tokens")
        pairs.append((known[parts[0]], known[parts[1]]))
        known["".join(parts)] = 255 + len(pairs)
    special = [token for token in numbers if re.fullmatch("<.+>", token)]
    special = [token for token in special if token not in known]
    known.update({token: 256 + len(pairs) + i for i, token in enumerate(special)})
    if numbers != known:
        raise ValueError(
            "the tokens are not numbered as GPT-2's are: 256 bytes, the merges in "
            "their order, then the rest"
        )
    return pairs, [alphabet[written] for written in order], special


def tokenizer_in(folder: Path):
    """The tokenizer that lies in a folder, ours or by byte pairs as GPT-2's."""
    files = (folder / n for n in (TOKENIZER, "vocab.json", "tokenizer.json"))
    if (path := next(filter(Path.exists, files), None)) is None:
        why = f"{folder} holds no tokenizer: no {TOKENIZER}, no vocab.json"
        raise CheckpointError(why)
    with understood(f"{path} describes no tokenizer"):
        if path.name == TOKENIZER:
            return tokenizer_from_dict(read_json(path)["tokenizer"])
        if path.name == "vocab.json":
            return read_gpt2(folder, path.name, "merges.txt")
        data = json_object(path)["model"]
        merges = [m if isinstance(m, str) else " ".join(m) for m in data["merges"]]
        return BPETokenizer(*merges_of_gpt2(data["vocab"], merges))
