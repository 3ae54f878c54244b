"""Tokenizers: every text comes back; merges follow the rule; GPT-2's ids agree."""

import json
import math
import random
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import tiktoken
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tiktoken_ext.openai_public import r50k_pat_str
from transformers import GPT2Tokenizer

from tinygpt_lib.basics import tokens
from tinygpt_lib.basics.files import CheckpointError
from tinygpt_lib.bigram import evaluate
from tinygpt_lib.gpt import GPT, GPTConfig
from tinygpt_lib.runs.checkpoints import load_checkpoint, save_checkpoint
from tinygpt_lib.runs.huggingface import gpt2_alphabet, read_gpt2
from tinygpt_lib.runs.tokenizers import tokenizer_from_dict
from tinygpt_lib.text import CharTokenizer
from tinygpt_lib.tokenizers import (
    BPETokenizer,
    ByteTokenizer,
    WordTokenizer,
    chunks_of,
    learn_merges,
    score_text,
)

ROOT = Path(__file__).resolve().parent.parent

TRAPS = {
    "nothing": "",
    "a line break": "\n",
    "leading blanks": "   three before",
    "blanks behind": "three behind   ",
    "tabs": "\tif x:\n\t\treturn\t",
    "CRLF": "one\r\ntwo\r\n\r\nthree\r",
    "emoji with joiners": "\U0001f469\u200d\U0001f467 \U0001f3f3\ufe0f\u200d\U0001f308",
    "flags": "\U0001f1e8\U0001f1ed\U0001f1eb\U0001f1f7",
    "accents apart": "e\u0301 and é",
    "every script": "Ελληνικά العربية हिन्दी 日本語 ไทย 𓀀",
    "controls": "\x00\x01\x7f\x85\u2028\ufeff",
    "the replacement character": "\ufffd",
    "what <unk> looks like": "<unk> <|endoftext|>",
    "apostrophes": "don't 'tis o'er we'll ''",
    "a run": "a" * 20_000,
    "a run of blanks": " " * 20_000,
    "all Latin-1": "".join(map(chr, range(256))),
}
SOURCE = "the cat that sat on the mat, the hat\n" * 5 + "naïve 😀 don't\r\n\t"


def all_kinds(text):
    """One of each that knows text."""
    return [
        CharTokenizer.from_text(text or "a"),
        ByteTokenizer(),
        BPETokenizer.from_text(text, vocab_size=300),
        BPETokenizer.from_text(SOURCE, vocab_size=300),
        WordTokenizer.from_text(text, vocab_size=10**6),
    ]


# --- There and back ---


@pytest.mark.parametrize("text", TRAPS.values(), ids=TRAPS)
def test_the_known_traps_come_back(text):
    for tokenizer in all_kinds(text):
        ids = tokenizer.encode(text)
        assert ids.dtype == torch.int64 and ids.dim() == 1
        assert tokenizer.decode(ids) == text
        assert b"".join(tokenizer.pieces(text)) == text.encode()
        assert len(tokenizer.pieces(text)) == len(ids)


@given(st.text())
def test_every_text_comes_back(text):
    for tokenizer in all_kinds(text):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.decode(tokenizer.encode(text).tolist()) == text
        assert b"".join(tokenizer.pieces(text)) == text.encode()


@given(st.text(st.sampled_from("abcab \n'é")))
def test_every_text_of_few_characters_comes_back(text):
    """Where merges happen all the time."""
    for tokenizer in all_kinds(text):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("kind", [ByteTokenizer, BPETokenizer])
def test_all_256_bytes_have_their_token(kind):
    tokenizer = kind.from_text(SOURCE)
    joined = b"".join(tokenizer.pieces("".join(map(chr, range(0x250)))))
    assert len(set(joined)) > 100
    for byte in range(256):
        shown = bytes([byte]).decode("utf-8", errors="replace")
        assert tokenizer.decode([byte]) == shown


@pytest.mark.parametrize("kind", [ByteTokenizer, BPETokenizer])
def test_what_is_not_utf8_is_shown_as_such(kind):
    tokenizer = kind.from_text(SOURCE)
    half = [*"é".encode(), "é".encode()[0], ord("a"), 255]
    assert tokenizer.decode(half) == "é\ufffda\ufffd"


@pytest.mark.parametrize("kind", [ByteTokenizer, BPETokenizer, WordTokenizer])
def test_half_a_surrogate_pair_is_refused(kind):
    text = "ab cd\ud83d!"
    match = r"'\\ud83d' at position 5 is half of a surrogate pair"
    with pytest.raises(ValueError, match=match) as caught:
        kind.from_text(SOURCE).encode(text)
    assert not isinstance(caught.value, UnicodeError)
    if kind is not ByteTokenizer:  # which has nothing to fit
        with pytest.raises(ValueError, match=match):
            kind.from_text(text)


@pytest.mark.parametrize("bad", [-1, 10**6, 2**40])
def test_an_id_outside_the_vocabulary_is_named(bad):
    for tokenizer in all_kinds(SOURCE):
        last = tokenizer.vocab_size - 1
        with pytest.raises(ValueError, match=rf"id {bad} .* 0\.\.{last}$"):
            tokenizer.decode([0, bad])


@given(st.text())
def test_every_tokenizer_survives_json(text):
    for tokenizer in all_kinds(text):
        data = json.loads(json.dumps(tokenizer.to_dict()))
        again = tokenizer_from_dict(data)
        assert type(again) is type(tokenizer)
        assert again.vocab_size == tokenizer.vocab_size
        assert torch.equal(again.encode(text), tokenizer.encode(text))
        assert again.to_dict() == tokenizer.to_dict()


# --- CharTokenizer with a character for the unknown ---


def test_unknown_characters_become_what_was_asked_for():
    tokenizer = CharTokenizer.from_text("abc", unk="?")
    assert tokenizer.characters == ["?", "a", "b", "c"]
    assert tokenizer.decode(tokenizer.encode("abéc😀")) == "ab?c?"
    again = tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert again.decode(again.encode("xa")) == "?a"
    assert "unk" not in CharTokenizer.from_text("abc").to_dict()


@pytest.mark.parametrize("unk", ["z", "", "ab", 0])
def test_an_unk_that_is_no_character_of_the_vocabulary_is_refused(unk):
    with pytest.raises(ValueError, match="unk is"):
        CharTokenizer("abc", unk=unk)


# --- Chunks ---


# Libraries follow different versions of Unicode; what is new there would be a letter
# for one and nothing for the other.
settled = st.text(st.characters(exclude_categories=["Cs", "Cn", "Co"]))


@given(st.one_of(settled, st.text(st.sampled_from("ab  \n\t12'stlrevdm,."))))
@example(
    "it's I'm he'd Don't we'll they're  they've\n\n  two  blanks \n 12 of\u00a0123 "
)
def test_chunks_are_those_of_tiktoken_and_leave_nothing_out(text):
    assert "".join(chunks_of(text)) == text
    # tiktoken takes a chunk that is a token whole; here every part of the text is one.
    raw = text.encode()
    ranks = {bytes([b]): b for b in range(256)}
    for start in range(len(raw)):
        for end in range(start + 2, len(raw) + 1):
            ranks.setdefault(raw[start:end], len(ranks))
    reference = tiktoken.Encoding(
        "chunks", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={}
    )
    pieces = reference.decode_tokens_bytes(reference.encode_ordinary(text))
    assert pieces == [chunk.encode() for chunk in chunks_of(text)]


# --- Merges ---


def merge_everywhere(ids, pair, new):
    out = []
    while ids:
        if tuple(ids[:2]) == pair:
            out, ids = [*out, new], ids[2:]
        else:
            out, ids = [*out, ids[0]], ids[1:]
    return out


def naive_merges(chunks, n):
    """The rule, word for word: count everything anew, merge everything anew."""
    chunks, merges = [[*chunk] for chunk in chunks], []
    while len(merges) < n:
        counts = Counter(pair for c in chunks for pair in pairwise(c))
        if not counts or max(counts.values()) < 2:
            break
        most = max(counts.values())
        # A Counter keeps the order in which it met its keys.
        pair = next(pair for pair, count in counts.items() if count == most)
        chunks = [merge_everywhere(c, pair, 256 + len(merges)) for c in chunks]
        merges.append(pair)
    return merges, chunks


def test_the_string_that_can_be_followed_by_hand():
    tokenizer = BPETokenizer.from_text("aaabdaaabac", vocab_size=259)
    assert tokenizer.merges == [(97, 97), (256, 97), (257, 98)]
    assert tokenizer.encode("aaabdaaabac").tolist() == [258, 100, 258, 97, 99]
    assert tokenizer.tokens[256:] == [b"aa", b"aaa", b"aaab"]


letters = st.text(st.sampled_from("aab c"), max_size=80)


@given(st.one_of(letters, st.text(max_size=80)), st.integers(0, 60))
def test_merges_are_those_of_the_naive_way(text, n):
    chunks = [chunk.encode() for chunk in chunks_of(text)]
    expected, merged = naive_merges(chunks, n)
    tokenizer = BPETokenizer.from_text(text, vocab_size=256 + n)
    assert tokenizer.merges == expected
    assert tokenizer.vocab_size == 256 + len(expected)
    # What training made of the text is also what encoding makes of it.
    assert tokenizer.encode(text).tolist() == [i for chunk in merged for i in chunk]


def test_ties_and_overlaps_in_many_texts_of_few_letters():
    """Longer texts than Hypothesis likes to try; each with the order of its merges."""
    draw = random.Random(0)
    for _ in range(300):
        source, text = ("".join(draw.choices("aabbc ", k=80)) for _ in range(2))
        merges, _ = naive_merges([chunk.encode() for chunk in chunks_of(source)], 300)
        tokenizer = BPETokenizer.from_text(source, vocab_size=600)
        assert tokenizer.merges == merges
        expected = []
        for chunk in chunks_of(text):
            ids = [*chunk.encode()]
            for i, pair in enumerate(merges):
                ids = merge_everywhere(ids, pair, 256 + i)
            expected += ids
        assert tokenizer.encode(text).tolist() == expected
        assert tokenizer.decode(expected) == text
        by_lesson = super(BPETokenizer, tokenizer).merged
        chunks = chunks_of(text)
        assert [i for chunk in chunks for i in by_lesson(chunk.encode())] == expected


@pytest.mark.parametrize("kind", [ByteTokenizer, BPETokenizer, WordTokenizer])
def test_the_bare_lesson_gives_the_same(kind):
    """What is wrapped around it only refuses nonsense and saves time."""
    bare, ours = kind.__mro__[2].from_text(SOURCE), kind.from_text(SOURCE)
    for text in (SOURCE, *(text for text in TRAPS.values() if len(text) < 1000)):
        ids = bare.encode(text)
        assert torch.equal(ids, ours.encode(text))
        assert bare.decode(ids) == ours.decode(ids)
        assert bare.pieces(text) == ours.pieces(text)


def test_a_chunk_counts_as_often_as_it_occurs():
    once = learn_merges({b"ab": 2, b"cd": 1}, 5)
    assert once == [(97, 98)]  # (c, d) occurs once
    assert learn_merges({b"ab": 2, b"cd": 3}, 1) == [(99, 100)]
    assert learn_merges({b"ab": 3, b"cd": 3}, 1) == [(97, 98)]  # the first among equals


def test_the_corpus_gives_the_merges_of_the_naive_way():
    from tinygpt_lib import load_shakespeare

    text = load_shakespeare()[:10_000]
    expected, _ = naive_merges([c.encode() for c in chunks_of(text)], 60)
    assert BPETokenizer.from_text(text, 256 + 60).merges == expected


def seconds(function):
    begin = time.process_time()  # others may be at work on this machine
    function()
    return time.process_time() - begin


@pytest.mark.parametrize("unit", ["a", "thecatthatsatonthemat"], ids=len)
def test_long_chunks_take_time_in_proportion(unit):
    """100,000 letters without a blank, in far less than the square of 1,000."""
    tokenizer = BPETokenizer.from_text(unit * 200, vocab_size=500)
    text = (unit * 100_000)[:100_000]
    assert chunks_of(text) == [text]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert seconds(lambda: tokenizer.encode(text)) < 5  # it takes a tenth of a second
    assert seconds(lambda: BPETokenizer.from_text(text, vocab_size=500)) < 5


# --- Sizes ---


@pytest.mark.parametrize("size", [255, 0, -1, 300.0, "300", True, None])
def test_a_bpe_vocabulary_below_256_is_refused_before_any_work(size, monkeypatch):
    monkeypatch.setattr("tinygpt_lib.tokenizers.chunks_of", None)
    match = rf"vocab_size is {size!r}; it must be a whole number at least 256"
    with pytest.raises(ValueError, match=match):
        BPETokenizer.from_text("text", vocab_size=size)


@pytest.mark.parametrize("size", [1, 0, -1, 2.5])
def test_a_word_vocabulary_below_2_is_refused(size):
    with pytest.raises(ValueError, match=rf"vocab_size is {size}; .* at least 2"):
        WordTokenizer.from_text("text", vocab_size=size)


def test_no_more_merges_than_there_are_pairs():
    assert BPETokenizer.from_text("", vocab_size=10**9).vocab_size == 256
    assert BPETokenizer.from_text("hello", vocab_size=10**9).vocab_size == 256
    assert BPETokenizer.from_text("hello hello", vocab_size=256).merges == []
    assert BPETokenizer.from_text("hello hello", vocab_size=10**9).vocab_size == 260


# --- Special tokens ---


def test_special_tokens_are_made_on_request_alone():
    # One begins another, one looks like a pattern.
    names = ["<|end|>", "<|end|>>", "a.c"]
    tokenizer = BPETokenizer.from_text(SOURCE, vocab_size=270, special=names)
    assert tokenizer.vocab_size == 270
    text = "the cat<|end|>>abc <|end|>a.c"
    plain, special = tokenizer.encode(text), tokenizer.encode(text, special=True)
    assert plain.max() < 267 and tokenizer.decode(plain) == text
    assert special[special >= 267].tolist() == [268, 267, 269]
    assert tokenizer.decode(special) == text
    begin = tokenizer.encode("the cat")
    assert torch.equal(special[: len(begin)], begin)
    again = tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert torch.equal(again.encode(text, special=True), special)
    without = BPETokenizer(tokenizer.merges)
    assert torch.equal(without.encode(text, special=True), plain)


@given(st.text(st.sampled_from("<|endoftext> a")))
def test_text_never_becomes_a_special_token(text):
    tokenizer = BPETokenizer.from_text("<|endoftext|>" * 9, 300, ["<|endoftext|>"])
    last = tokenizer.vocab_size - 1
    for written in (text, f"{text}<|endoftext|>{text}"):
        assert last not in tokenizer.encode(written)
    assert last in tokenizer.encode(written, special=True)


# --- Words ---


def test_words_signs_and_line_breaks_are_kept():
    text = "Speak, speak.\n\nI don't;  no\t1234 x_y"
    tokenizer = WordTokenizer.from_text(text)
    pieces = ["Speak", ",", " speak", ".", "\n", "\n", "I", " don", "'t", ";", " "]
    pieces += [" no", "\t", "1234", " x_y"]
    assert [p.decode() for p in tokenizer.pieces(text)] == pieces
    assert set(tokenizer.words) == {"<unk>", " <unk>", *pieces}


def test_the_most_frequent_words_are_kept_and_the_first_among_equals():
    text = "b b b c a c a d"
    expected = ["<unk>", " <unk>", " b", " c", " a"]
    for size in (2, 3, 4, 5):
        assert WordTokenizer.from_text(text, vocab_size=size).words == expected[:size]


def test_what_an_unknown_word_loses():
    tokenizer = WordTokenizer.from_text("the cat and the dog", vocab_size=10)
    ids = tokenizer.encode("the bird and (the) dog")
    assert (ids == 0).sum() == 1 and (ids == 1).sum() == 2
    assert tokenizer.decode(ids) == "the <unk> and <unk>the<unk> dog"
    older = WordTokenizer(["the", " and", " the", " dog"])  # it has one for both
    assert older.decode(older.encode("the bird and the dog")) == "the<unk> and the dog"


# --- GPT-2's own files ---


def small_gpt2(folder):
    """encoder.json and vocab.bpe of a small vocabulary, in the format of GPT-2's."""
    folder.mkdir(exist_ok=True)
    source = SOURCE + "  two  blanks\n\n12 of 123 été été 日本 日本 's 'll we'll"
    merges, _ = naive_merges([c.encode() for c in chunks_of(source)], 60)
    written = {byte: character for character, byte in gpt2_alphabet().items()}
    names = [written[b] for b in range(256)]
    lines = ["#version: 0.2"]
    for a, b in merges:
        lines.append(f"{names[a]} {names[b]}")
        names.append(names[a] + names[b])
    numbered = [*gpt2_alphabet(), *names[256:], "<|endoftext|>"]
    encoder = {name: i for i, name in enumerate(numbered)}
    (folder / "encoder.json").write_text(json.dumps(encoder))
    (folder / "vocab.bpe").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory):
    return small_gpt2(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def references(gpt2_folder):
    """tiktoken's and Hugging Face's, each with its own reader of the two files."""
    encoder, merges = str(gpt2_folder / "encoder.json"), str(gpt2_folder / "vocab.bpe")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", "")  # it would keep copies in /tmp
        ranks = data_gym_to_mergeable_bpe_ranks(merges, encoder)
    special = {"<|endoftext|>": len(ranks)}
    tik = tiktoken.Encoding(
        "gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special
    )
    return tik, GPT2Tokenizer(encoder, merges)


@given(st.one_of(settled, st.text(st.sampled_from("the cat é日本 \n'l12"))))
def test_gpt2_files_give_the_ids_of_tiktoken(gpt2_folder, references, text):
    tokenizer = read_gpt2(gpt2_folder)
    reference, _ = references
    assert tokenizer.vocab_size == reference.n_vocab > 280
    ids = tokenizer.encode(text).tolist()
    assert ids == reference.encode_ordinary(text)
    assert tokenizer.decode(ids) == reference.decode(ids) == text


@pytest.mark.parametrize(
    "text", [SOURCE, "The café: 3 o'clock\n\n  we'll", "\x00\xad\xa0~"]
)
def test_gpt2_files_give_the_ids_of_hugging_face(gpt2_folder, references, text):
    tokenizer = read_gpt2(gpt2_folder)
    _, reference = references
    assert tokenizer.encode(text).tolist() == reference(text)["input_ids"]
    assert tokenizer.encode("!").tolist() == [0]  # GPT-2 counts from the first visible


def test_what_gpt2_calls_a_special_token_is_shown_and_never_made(gpt2_folder):
    tokenizer = read_gpt2(gpt2_folder)
    last = tokenizer.vocab_size - 1
    assert tokenizer.decode([0, last]) == "!<|endoftext|>"
    ids = tokenizer.encode("<|endoftext|>").tolist()
    assert last not in ids and tokenizer.decode(ids) == "<|endoftext|>"
    assert tokenizer.encode("!<|endoftext|>!", special=True).tolist() == [0, last, 0]


def test_gpt2_files_survive_json_and_other_names(gpt2_folder, tmp_path):
    tokenizer = read_gpt2(gpt2_folder)
    (tmp_path / "vocab.json").write_bytes((gpt2_folder / "encoder.json").read_bytes())
    (tmp_path / "merges.txt").write_bytes((gpt2_folder / "vocab.bpe").read_bytes())
    renamed = read_gpt2(tmp_path, "vocab.json", "merges.txt")
    again = tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    for other in (renamed, again):
        assert other.tokens == tokenizer.tokens
        assert torch.equal(other.encode(SOURCE), tokenizer.encode(SOURCE))


@pytest.mark.parametrize(
    ("name", "spoil", "match"),
    [
        ("encoder.json", lambda s: s[:-5], "is not valid JSON"),
        ("encoder.json", lambda s: "[]", "holds no JSON object"),
        ("encoder.json", lambda s: s.replace('"!": 0', '"!": 1'), "not numbered as"),
        ("encoder.json", lambda s: s[:-1] + ', "<s>": 9999}', "not numbered as"),
        ("vocab.bpe", lambda s: s + "zz z\n", "'zz z' is no merge"),
        ("vocab.bpe", lambda s: s + "a b c\n", "'a b c' is no merge"),
        ("vocab.bpe", lambda s: s + "~ ~\n", "not numbered as"),
        ("vocab.bpe", lambda s: "", "are not numbered as"),
    ],
)
def test_files_that_are_not_gpt2s_are_refused(
    gpt2_folder, tmp_path, name, spoil, match
):
    for path in gpt2_folder.iterdir():
        text = path.read_text("utf-8")
        text = spoil(text) if path.name == name else text
        (tmp_path / path.name).write_text(text, "utf-8")
    with pytest.raises(ValueError, match=match):
        read_gpt2(tmp_path)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"encoder\.json can't be read"):
        read_gpt2(tmp_path)


# --- Checkpoints, also false ones ---

HOSTILE = {
    "no merges": {"type": "bpe"},
    "a text": {"type": "bpe", "merges": "aabb"},
    "half a pair": {"type": "bpe", "merges": [[97]]},
    "a pair of texts": {"type": "bpe", "merges": [["a", "b"]]},
    "floats": {"type": "bpe", "merges": [[97.0, 97]]},
    "true and false": {"type": "bpe", "merges": [[True, 97]]},
    "the future": {"type": "bpe", "merges": [[97, 256]]},
    "below zero": {"type": "bpe", "merges": [[-1, 97]]},
    "twice": {"type": "bpe", "merges": [[97, 97], [97, 97]]},
    "an order of three": {"type": "bpe", "merges": [], "byte_order": [0, 1, 2]},
    "an order of texts": {"type": "bpe", "merges": [], "byte_order": ["a"] * 256},
    "an order, no list": {"type": "bpe", "merges": [], "byte_order": 5},
    "special, no list": {"type": "bpe", "merges": [], "special": 5},
    "special numbers": {"type": "bpe", "merges": [], "special": [5]},
    "a special surrogate": {"type": "bpe", "merges": [], "special": ["\ud800"]},
    "special, the same twice": {"type": "bpe", "merges": [], "special": ["a", "a"]},
    "no words": {"type": "word"},
    "words, no list": {"type": "word", "words": {"a": 1}},
    "numbers for words": {"type": "word", "words": [1]},
    "an empty word": {"type": "word", "words": [""]},
    "a word twice": {"type": "word", "words": ["a", "a"]},
    "the unknown word": {"type": "word", "words": ["<unk>"]},
    "half a surrogate": {"type": "word", "words": ["\ud800"]},
    "an unk of two": {"type": "char", "characters": "ab", "unk": "ab"},
    "an unk in a list": {"type": "char", "characters": "ab", "unk": ["a"]},
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_nonsense_is_refused(data):
    with pytest.raises(ValueError) as caught:
        tokenizer_from_dict(json.loads(json.dumps(data)))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_a_vocabulary_that_would_fill_the_memory_is_refused(monkeypatch):
    """Token 256 + i is 2**(i + 1) bytes long. At a limit that a fault here may pass."""
    assert tokens.MAX_VOCABULARY_BYTES <= 2**28
    merges = [(97, 97), *((i, i) for i in range(256, 264))]
    size = sum(map(len, BPETokenizer(merges).tokens))
    monkeypatch.setattr(tokens, "MAX_VOCABULARY_BYTES", size)
    BPETokenizer(merges)
    monkeypatch.setattr(tokens, "MAX_VOCABULARY_BYTES", size - 1)
    with pytest.raises(ValueError, match=f"longer than {size - 1} bytes"):
        BPETokenizer(merges)


def model_for(tokenizer):
    torch.manual_seed(0)
    return GPT(GPTConfig(tokenizer.vocab_size, 8, n_layer=1, n_head=2, n_embd=8))


def test_a_checkpoint_brings_its_tokenizer_to_a_new_process(tmp_path):
    kinds, expected = (ByteTokenizer, BPETokenizer, WordTokenizer), []
    for kind in kinds:
        tokenizer = kind.from_text(SOURCE)
        save_checkpoint(tmp_path / kind.__name__, model_for(tokenizer), tokenizer)
        expected.append(tokenizer.encode("the cat").tolist())
    code = (
        "import sys; from tinygpt_lib import load_checkpoint\n"
        "for folder in sys.argv[1:]:\n"
        "    print(load_checkpoint(folder)[1].encode('the cat').tolist())"
    )
    run = [sys.executable, "-c", code, *(tmp_path / kind.__name__ for kind in kinds)]
    out = subprocess.run(run, cwd=ROOT, check=True, capture_output=True, text=True)
    assert [json.loads(line) for line in out.stdout.splitlines()] == expected


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_a_false_checkpoint_is_refused_in_one_sentence(data, tmp_path):
    tokenizer = ByteTokenizer()
    tokenizer.to_dict = lambda: data
    save_checkpoint(tmp_path, model_for(tokenizer), tokenizer)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


# --- One score for all ---


def test_the_score_counts_bytes_of_text():
    text = "Füße 😀 the cat\n" * 9
    tokenizer = CharTokenizer.from_text(text)
    score = score_text(model_for(tokenizer), tokenizer, text)
    assert score.n_tokens == len(text) - 1 and score.n_unknown == 0
    assert score.n_bytes == len(text[1:].encode())
    assert score.bits_per_byte == pytest.approx(
        score.nats_per_token * score.n_tokens / math.log(2) / score.n_bytes
    )


def test_the_first_token_may_be_a_part_of_a_character():
    tokenizer = ByteTokenizer()
    score = score_text(model_for(tokenizer), tokenizer, "😀a")
    assert (score.n_tokens, score.n_bytes) == (4, 4)
    merged = BPETokenizer.from_text("😀😀😀", vocab_size=257)
    score = score_text(model_for(merged), merged, "😀a")
    assert (score.n_tokens, score.n_bytes) == (3, 3)


def test_unknown_words_are_counted_with_their_bytes():
    tokenizer = WordTokenizer.from_text("the cat", vocab_size=10)
    model = model_for(tokenizer)
    score = score_text(model, tokenizer, "zebra the zebra <unk> cat")
    assert (score.n_tokens, score.n_unknown) == (6, 5)  # all but " cat"
    assert score.n_bytes == len(" the zebra <unk> cat")
    assert score.nats_per_token == evaluate(
        model, tokenizer.encode("zebra the zebra <unk> cat")
    )


def test_unknown_characters_are_counted_but_not_the_one_that_stands_for_them():
    tokenizer = CharTokenizer.from_text("abc?", unk="?")
    score = score_text(model_for(tokenizer), tokenizer, "éa?éb😀")
    assert (score.n_tokens, score.n_unknown, score.n_bytes) == (5, 2, 9)


@pytest.mark.parametrize("text", ["", "a"])
def test_a_text_too_short_to_predict_is_refused(text):
    with pytest.raises(ValueError, match="at least 2"):
        score_text(model_for(ByteTokenizer()), ByteTokenizer(), text)
