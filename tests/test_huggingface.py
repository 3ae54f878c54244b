"""Weights across: the same logits in transformers and here, both ways."""

import json
import re

import pytest
import torch

from tinygpt_lib import BPETokenizer, CharTokenizer, generate, load_checkpoint
from tinygpt_lib.basics.files import CheckpointError
from tinygpt_lib.commands import main
from tinygpt_lib.gpt import GPT, GPTConfig
from tinygpt_lib.runs.checkpoints import save_checkpoint
from tinygpt_lib.runs.huggingface import load_hf, save_hf, to_hf
from tinygpt_lib.runs.models import new_model
from tinygpt_lib.speed import FastConfig

transformers = pytest.importorskip("transformers", reason="pip install transformers")
TOKENIZER = CharTokenizer("abcdefghijk")
MODERN = {"position": "rotary", "norm": "rms", "feed_forward": "swiglu"}
KINDS = {
    "gpt2": {},
    "gpt2 exact, no bias": {"feed_forward": "gelu_exact", "bias": False},
    "gpt2 relu, tied": {"feed_forward": "relu", "tie_weights": True},
    "llama": {**MODERN, "bias": False, "rotary_base": 500.0},
    "llama, biases": MODERN,
    "llama, grouped, tied": {**MODERN, "n_kv_head": 2, "tie_weights": True},
    "llama, stretched": {**MODERN, "bias": False, "rotary_scale": 2.0},
    "qwen3": {**MODERN, "bias": False, "qk_norm": "rms", "n_kv_head": 1},
}


def loud(**settings):
    """Every parameter far from where it starts; in float64, to compare closely."""
    torch.manual_seed(0)
    model = new_model(FastConfig(11, 12, 2, 4, 16, **settings))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model.eval()


def some_ids(T=12):
    return torch.randint(11, (3, T), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_transformers_opens_our_model_and_computes_the_same(tmp_path, kind):
    model, ids = loud(**KINDS[kind]), some_ids()
    save_hf(tmp_path / "out", model, TOKENIZER)
    theirs, told = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(told.values()), told  # no tensor missing, left over or misshapen
    assert kind.partition(" ")[0].strip(",") == theirs.config.model_type
    expected = model(ids)
    assert expected.std() > 0.3  # something to be equal to
    torch.testing.assert_close(
        theirs.eval()(ids).logits, expected, atol=2e-5, rtol=1e-4
    )
    again, tokenizer = load_hf(tmp_path / "out")
    torch.testing.assert_close(again(ids), expected, atol=2e-5, rtol=1e-4)
    assert tokenizer.to_dict() == TOKENIZER.to_dict()


@pytest.mark.parametrize("bare", [True, False])
@torch.no_grad()
def test_a_gpt2_of_transformers_opens_here(tmp_path, bare):
    """Seeded and small, tied as the published ones; with the prefix and without."""
    torch.manual_seed(0)
    shape = {"vocab_size": 300, "n_positions": 16, "n_layer": 2, "n_head": 2}
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=32, **shape))
    for p in theirs.parameters():
        p.add_(0.2 * torch.randn_like(p))
    (theirs.transformer if bare else theirs).save_pretrained(tmp_path)
    bpe = BPETokenizer.from_text("the cat sat on the mat, the rat sat on the cat", 270)
    merges = [*bpe.merges, *((33, 33 + i) for i in range(43 - len(bpe.merges)))]
    words = BPETokenizer(merges, special=["<|endoftext|>"])
    assert words.vocab_size == 300
    save_hf(tmp_path / "words", loud_of(words), words)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((tmp_path / "words" / name).read_bytes())
    model, tokenizer = load_hf(tmp_path)
    ids = torch.randint(300, (2, 16))
    expected = theirs.eval()(ids).logits
    torch.testing.assert_close(model(ids), expected, atol=2e-5, rtol=1e-4)
    ours = generate(model, ids[:, :4], 12, temperature=0)
    written = theirs.generate(ids[:, :4], max_new_tokens=12, do_sample=False)
    assert torch.equal(ours, written)
    text = "the rat sat, 3 cats"
    assert tokenizer.encode(text).tolist() == words.encode(text).tolist()


def loud_of(tokenizer):
    return GPT(GPTConfig(tokenizer.vocab_size, 8, 1, 1, 8))


def test_byte_pairs_are_those_of_their_tokenizer(tmp_path):
    text = "the cat sat on the mat; it's 42 cats, \u00e9t\u00e9!  two\n\nlines " * 3
    tokenizer = BPETokenizer.from_text(text, 300)
    save_hf(tmp_path / "out", loud_of(tokenizer), tokenizer)
    theirs = transformers.GPT2TokenizerFast.from_pretrained(tmp_path / "out")
    written = {v: k for k, v in theirs.get_vocab().items() if v < 256}
    assert len(written) == 256
    assert theirs.encode(text) == tokenizer.encode(text).tolist()


@pytest.mark.parametrize(
    "settings",
    [
        {"position": "none"},
        {"norm": "rms"},
        {"position": "rotary"},
        {"feed_forward": "relu2"},
        {"qk_norm": "rms"},
        {**MODERN, "qk_norm": "rms"},  # with biases
        {"embedding": "ngrams"},
        {"n_kv_head": 2},
        {"attention": "sliding", "window": 4},
    ],
    ids=str,
)
def test_what_they_have_not_is_refused_before_anything_is_written(tmp_path, settings):
    with pytest.raises(ValueError, match="transformers has no model like this one"):
        save_hf(tmp_path / "out", loud(**settings), TOKENIZER)
    assert not (tmp_path / "out").exists()


STRANGE = [
    ({"model_type": "bert"}, "model_type is 'bert'"),
    ({"n_embd": "16"}, "n_embd is '16'"),
    ({"n_layer": 10**9}, "lacks"),
    ({"n_layer": 3}, "lacks"),
    ({"n_layer": 1}, "has no place"),
    ({"vocab_size": 12}, "should be"),
    ({"activation_function": "silu"}, "activation_function is 'silu'"),
    ({"layer_norm_epsilon": 1e-3}, "layer_norm_epsilon is 0.001"),
    ({"n_inner": 8}, "n_inner is 8"),
]


@pytest.mark.parametrize(("change", "message"), STRANGE, ids=lambda x: str(x)[:30])
def test_folders_of_strangers_are_refused_in_one_sentence(tmp_path, change, message):
    save_hf(tmp_path / "out", loud(), TOKENIZER)
    path = tmp_path / "out" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=re.escape(message)) as error:
        load_hf(tmp_path / "out")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"\x80\x04."])
def test_files_that_are_not_what_they_should_be(tmp_path, name, content):
    save_hf(tmp_path / "out", loud(), TOKENIZER)
    path = tmp_path / "out" / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        load_hf(tmp_path / "out")


def test_without_a_tokenizer_nothing_is_loaded(tmp_path):
    save_hf(tmp_path / "out", loud(), TOKENIZER)
    (tmp_path / "out" / "tinygpt_tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        load_hf(tmp_path / "out")


def test_the_command_goes_there_and_back(tmp_path, capsys):
    model, ids = loud(), some_ids()
    run, there, back = (tmp_path / name for name in ("run", "there", "back"))
    save_checkpoint(run, model, TOKENIZER)
    assert main(["convert", str(run), "--to", "hf", str(there)]) == 0
    assert main(["convert", "--from", "hf", str(there), "--out", str(back)]) == 0
    assert torch.equal(load_checkpoint(back)[0](ids), model(ids))
    # Nothing that is there already is written over.
    assert main(["convert", str(run), "--to", "hf", str(there)]) == 1
    assert main(["convert", "--from", "hf", str(there), "--out", str(back)]) == 1
    assert "exists and is not empty" in capsys.readouterr().err
    for wrong in (
        ["convert"],
        ["convert", str(run)],
        ["convert", str(run), "--to", "onnx", str(there)],
        ["convert", "--from", "hf", str(there)],
        ["convert", str(run), "--to", "hf", "a", "--from", "hf", "b"],
    ):
        with pytest.raises(SystemExit) as leaving:
            main(wrong)
        assert leaving.value.code == 2


def test_dropout_is_told_and_nothing_is_drawn():
    config, _ = to_hf(loud(dropout=0.25))
    assert config["attn_pdrop"] == config["resid_pdrop"] == 0.25
