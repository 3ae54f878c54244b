"""Weights across: a model of ours as Hugging Face's transformers opens it, and back.

Learned positions and LayerNorm make a GPT-2; rotary positions, RMSNorm and SwiGLU a
Llama, and with normed queries and keys a Qwen3. Logits are the same, up to rounding.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from tinygpt_lib.basics.files import (
    CheckpointError,
    filling,
    json_file,
    read_bytes,
    read_json,
    write_together,
)
from tinygpt_lib.gpt import GPT
from tinygpt_lib.runs.checkpoints import (
    NOT_DESCRIBED,
    check_shapes,
    check_tokenizer,
    first_line,
)
from tinygpt_lib.runs.models import full_config, new_model
from tinygpt_lib.runs.tokenizers import tokenizer_from_dict
from tinygpt_lib.speed import FastConfig, FastGPT
from tinygpt_lib.tokenizers import BPETokenizer

TOKENIZER = "tinygpt_tokenizer.json"  # ours; tokenizer.json is the name of theirs
BENDS = {"gelu": "gelu_new", "gelu_exact": "gelu", "relu": "relu"}  # their names
EPS = 1e-5  # what our norms add; theirs say it in config.json


def family_of(config: FastConfig) -> str:
    """The name of the architecture that computes the same; ValueError if none does."""
    alike = {
        "gpt2": {"position": "learned", "norm": "layer", "feed_forward": (*BENDS,)},
        "llama": {"position": "rotary", "norm": "rms", "feed_forward": "swiglu"},
        "qwen3": {
            "position": "rotary",
            "norm": "rms",
            "feed_forward": "swiglu",
            "qk_norm": "rms",
            "bias": False,
        },
    }
    plain = {"embedding": "token", "window": 0, "qk_norm": "none"}
    for name, settings in alike.items():
        wanted = {**plain, **settings}
        if name == "gpt2" and config.n_kv_head not in (0, config.n_head):
            continue
        given = ((getattr(config, k), v) for k, v in wanted.items())
        if all(g in v if isinstance(v, tuple) else g == v for g, v in given):
            return name
    raise ValueError(
        "transformers has no model like this one; it can take over position 'learned' "
        f"with norm 'layer' and feed_forward {', '.join(map(repr, BENDS))}, or "
        "position 'rotary' with norm 'rms' and feed_forward 'swiglu' (and qk_norm "
        "'rms' where there are no biases), each without n-grams and window"
    )


def pairs_of(config: FastConfig, family: str) -> Iterator[tuple[str, list[str], bool]]:
    """Our tensor's name, those of theirs that it is stacked of, whether transposed."""
    kinds = ("weight", "bias") if config.bias or family == "gpt2" else ("weight",)
    if family == "gpt2":
        ends = {
            "token_embedding": "transformer.wte",
            "position_embedding": "transformer.wpe",
            "norm": "transformer.ln_f",
            "head": "lm_head",
        }
        block, inside = (
            "transformer.h.",
            {
                "attention_norm": ["ln_1"],
                "attention.to_qkv": ["attn.c_attn"],
                "attention.output": ["attn.c_proj"],
                "feed_forward_norm": ["ln_2"],
                "feed_forward.widen": ["mlp.c_fc"],
                "feed_forward.output": ["mlp.c_proj"],
            },
        )
    else:
        ends = {
            "token_embedding": "model.embed_tokens",
            "norm": "model.norm",
            "head": "lm_head",
        }
        block, inside = (
            "model.layers.",
            {
                "attention_norm": ["input_layernorm"],
                "attention.to_qkv": [f"self_attn.{x}_proj" for x in "qkv"],
                "attention.output": ["self_attn.o_proj"],
                "feed_forward_norm": ["post_attention_layernorm"],
                "feed_forward.widen": ["mlp.gate_proj", "mlp.up_proj"],
                "feed_forward.output": ["mlp.down_proj"],
            },
        )
        if family == "qwen3":
            inside["attention.query_norm"] = ["self_attn.q_norm"]
            inside["attention.key_norm"] = ["self_attn.k_norm"]
    rms = family != "gpt2"
    for ours, theirs in ends.items():
        for kind in kinds if ours == "norm" and not rms else ("weight",):
            yield f"{ours}.{kind}", [f"{theirs}.{kind}"], False
    for i in range(config.n_layer):
        for ours, theirs in inside.items():
            for kind in ("weight",) if rms and "norm" in ours else kinds:
                names = [f"{block}{i}.{name}.{kind}" for name in theirs]
                turned = not rms and kind == "weight" and "norm" not in ours
                yield f"blocks.{i}.{ours}.{kind}", names, turned


def to_hf(model: GPT) -> tuple[dict, dict[str, Tensor]]:
    """What transformers wants of a model: config.json as data, and its tensors."""
    config = full_config(model.config)
    family, C, D = family_of(config), config.n_embd, config.n_embd // config.n_head
    state = dict(model.state_dict())
    if config.tie_weights:  # there the two ends differ by a factor
        state["head.weight"] = state["token_embedding.weight"]
        state["token_embedding.weight"] = state["head.weight"] * C**0.5
    kv = (config.n_kv_head or config.n_head) * D
    tensors = {}
    for ours, theirs, turned in pairs_of(config, family):
        tensor = state.get(ours)
        if tensor is None:  # GPT-2 always has biases
            weight = state[ours.removesuffix("bias") + "weight"]
            tensor = weight.new_zeros(len(weight))
        sizes = [C, kv, kv] if len(theirs) == 3 else len(tensor) // len(theirs)
        for their, part in zip(theirs, tensor.split(sizes), strict=True):
            tensors[their] = (part.mT if turned else part).contiguous()
    shared = {
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": str(next(iter(tensors.values())).dtype).removeprefix("torch."),
        "model_type": family,
    }
    if family == "gpt2":
        return shared | {
            "architectures": ["GPT2LMHeadModel"],
            "n_positions": config.block_size,
            "n_layer": config.n_layer,
            "n_head": config.n_head,
            "n_embd": C,
            "activation_function": BENDS[config.feed_forward],
            "layer_norm_epsilon": EPS,
            **dict.fromkeys(
                ("attn_pdrop", "embd_pdrop", "resid_pdrop"), config.dropout
            ),
        }, tensors
    turns = {"rope_type": "default", "rope_theta": config.rotary_base}
    if config.rotary_scale != 1:
        turns |= {"rope_type": "linear", "factor": config.rotary_scale}
    return shared | {
        "architectures": [{"llama": "Llama", "qwen3": "Qwen3"}[family] + "ForCausalLM"],
        "hidden_size": C,
        "intermediate_size": tensors["model.layers.0.mlp.up_proj.weight"].shape[0],
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head or config.n_head,
        "head_dim": D,
        "hidden_act": "silu",
        "max_position_embeddings": config.block_size,
        "rms_norm_eps": EPS,
        "rope_parameters": turns,
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
    }, tensors


def config_from_hf(theirs: dict) -> tuple[FastConfig, str]:
    """Our config for one of theirs, and its family; ValueError for what we lack."""
    family = theirs.get("model_type")
    if family not in ("gpt2", "llama", "qwen3"):
        raise ValueError(f"model_type is {family!r}; it must be gpt2, llama or qwen3")

    def need(name: str, *allowed):
        value = theirs.get(name, allowed[0])
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}; here it can only be {allowed}")

    if family == "gpt2":
        need("layer_norm_epsilon", EPS)
        need("n_inner", None, 4 * theirs["n_embd"])
        need("scale_attn_weights", True)
        need("scale_attn_by_inverse_layer_idx", False)
        bends = {**{v: k for k, v in BENDS.items()}, "gelu_pytorch_tanh": "gelu"}
        need("activation_function", "gelu_new", *bends)
        return FastConfig(
            theirs["vocab_size"],
            theirs["n_positions"],
            theirs["n_layer"],
            theirs["n_head"],
            theirs["n_embd"],
            feed_forward=bends[theirs.get("activation_function", "gelu_new")],
        ), family
    turns = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    heads, C = theirs["num_attention_heads"], theirs["hidden_size"]
    need("rms_norm_eps", EPS)
    need("hidden_act", "silu")
    need("head_dim", C // heads, None)
    need("use_sliding_window", False)
    if turns.get("rope_type", "default") not in ("default", "linear"):
        raise ValueError(f"rope_type is {turns['rope_type']!r}; ours turn evenly")
    bias = theirs.get("attention_bias", False)
    need("mlp_bias", bias)
    return FastConfig(
        theirs["vocab_size"],
        theirs["max_position_embeddings"],
        theirs["num_hidden_layers"],
        heads,
        C,
        bias=bias,
        norm="rms",
        feed_forward="swiglu",
        position="rotary",
        rotary_base=float(turns.get("rope_theta", theirs.get("rope_theta", 1e4))),
        rotary_scale=float(turns.get("factor", 1.0)),
        qk_norm="rms" if family == "qwen3" else "none",
        n_kv_head=theirs.get("num_key_value_heads") or 0,
    ), family


def from_hf(theirs: dict, tensors: dict[str, Tensor]) -> FastGPT:
    """A model of ours from config.json as data, and its tensors; ValueError if none."""
    config, family = config_from_hf(theirs)
    if family == "gpt2":  # the published ones lack a prefix, and hold masks besides
        tensors = {
            name
            if name.startswith(("transformer.", "lm_head."))
            else f"transformer.{name}": t
            for name, t in tensors.items()
            if not name.endswith((".attn.bias", ".attn.masked_bias"))
        }
    first = (
        "transformer.wte.weight" if family == "gpt2" else "model.embed_tokens.weight"
    )
    tensors = {"lm_head.weight": tensors[first], **tensors}  # tied, where there is none
    state = {}
    for ours, names, turned in pairs_of(config, family):
        parts = [tensors.pop(name) for name in names]
        state[ours] = torch.cat([part.mT if turned else part for part in parts])
    if tensors:
        raise ValueError(f"tensor {min(tensors)} has no place in a model of ours")
    check_shapes(config, state)
    with torch.random.fork_rng(devices=[]):  # draws no random numbers of yours
        model = new_model(config).to(next(iter(state.values())).dtype)
    model.load_state_dict(state)
    return model.eval()


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
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {k: file.get_tensor(k).clone() for k in file.keys()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file") from error
    try:
        model = from_hf(theirs, tensors)
        tokenizer = tokenizer_in(folder)
        check_tokenizer(tokenizer, model.config)
    except CheckpointError:
        raise
    except NOT_DESCRIBED as error:
        missing = "lacks " if isinstance(error, KeyError) else ""
        raise CheckpointError(
            f"{folder} holds no model of ours: {missing}{first_line(error)}"
        ) from error
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
    try:
        numbers, lines = json_object(encoder), read_bytes(merges).decode().split("\n")
        return BPETokenizer(*merges_of_gpt2(numbers, lines))
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{encoder} and {merges}: {error}") from None


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
    if (folder / TOKENIZER).exists():
        return tokenizer_from_dict(read_json(folder / TOKENIZER)["tokenizer"])
    whole, vocab = folder / "tokenizer.json", folder / "vocab.json"
    if vocab.exists():
        return read_gpt2(folder, "vocab.json", "merges.txt")
    if whole.exists():
        data = json_object(whole)["model"]
        merges = [m if isinstance(m, str) else " ".join(m) for m in data["merges"]]
        return BPETokenizer(*merges_of_gpt2(data["vocab"], merges))
    raise CheckpointError(f"{folder} holds no tokenizer: no {TOKENIZER}, no vocab.json")


def json_object(path: Path) -> dict:
    """What a JSON file of strangers holds; CheckpointError unless it is an object."""
    try:
        data = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is not valid JSON") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return data
