"""From texts of any size to ids: what the lessons make, in less time and memory."""

import json
import os
import threading
import time
import tracemalloc
from collections import Counter
from functools import partial
from io import BytesIO
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygpt_lib.basics import texts
from tinygpt_lib.basics.ids import Ids
from tinygpt_lib.basics.texts import Text, read_texts
from tinygpt_lib.runs import data as runs_data
from tinygpt_lib.runs import pairs
from tinygpt_lib.runs.checkpoints import fingerprint
from tinygpt_lib.runs.data import Data
from tinygpt_lib.runs.run import train
from tinygpt_lib.runs.settings import TrainConfig
from tinygpt_lib.runs.tokenizers import TEXT_TOKENIZERS
from tinygpt_lib.text import split
from tinygpt_lib.tokenizers import BPETokenizer, learn_merges

SIZES = {"bpe": {"vocab_size": 270}, "word": {"vocab_size": 12}}
# Blanks of every kind, contractions, a line break of two characters, wide characters.
LETTERS = st.sampled_from([*"ab'st 1.=\n\r\t\x1c\x85\xa0é猫😀", "  ", "\r\n", "'s "])
TEXTS = st.lists(LETTERS, max_size=60).map("".join)


def lesson(kind, text):
    """Tokenizer and ids by the methods of the lessons."""
    parts = split(text)
    kind = TEXT_TOKENIZERS[kind]
    seen = text if kind is TEXT_TOKENIZERS["char"] else parts[0]
    tokenizer = kind.from_text(seen, **SIZES.get(kind_of(kind), {}))
    return tokenizer, [tokenizer.encode(part) for part in parts]


def kind_of(kind):
    return next(name for name, k in TEXT_TOKENIZERS.items() if k is kind)


@pytest.fixture
def small_pieces(monkeypatch):
    """A few bytes at a time, so that everything falls on an edge once."""
    monkeypatch.setattr(texts, "AT_ONCE", 7)
    monkeypatch.setattr(runs_data, "TAIL", 5)


@pytest.mark.parametrize("kind", TEXT_TOKENIZERS)
def test_the_tokenizer_and_the_ids_are_those_of_the_lesson(small_pieces, kind):
    @settings(max_examples=60)
    @given(TEXTS.filter(bool))
    def check(text):
        tokenizer, expected = lesson(kind, text)
        data = Data(Text.of(text))
        mine = data.learn(TEXT_TOKENIZERS[kind], **SIZES.get(kind, {}))
        assert mine.to_dict() == tokenizer.to_dict()
        for again in (data, Data(Text.of(text))):  # with what learning found, without
            for ids, wanted in zip(again.encode(mine), expected, strict=True):
                assert ids[:].dtype == torch.int64 and torch.equal(ids[:], wanted)

    check()


@settings(max_examples=100)
@given(st.lists(st.text("ab\xe9", max_size=20), max_size=12), st.integers(0, 40))
def test_merges_and_what_they_make_are_those_of_the_lesson(chunks, n):
    encoded = [chunk.encode() for chunk in chunks]
    counts = Counter(encoded)
    merges = pairs.learn_merges(counts, n)
    assert merges == learn_merges(counts, n)
    tokenizer = BPETokenizer(merges, byte_order=[*range(255, -1, -1)])
    ids, sizes = pairs.encode_chunks(tokenizer, encoded)
    wanted = [tokenizer.encode(chunk).tolist() for chunk in chunks]
    assert ids.tolist() == [*chain.from_iterable(wanted)]
    assert sizes.tolist() == [*map(len, wanted)]


@pytest.mark.parametrize("unit", ["=", " ", "a", "thecatsatonthematandthedog"])
def test_one_long_chunk_is_merged_as_the_lesson_merges_it(unit):
    text = unit * (20_000 // len(unit))
    merges = pairs.learn_merges({text.encode(): 2}, 60)
    assert merges == learn_merges({text.encode(): 2}, 60)
    ids, _ = pairs.encode_chunks(BPETokenizer(merges), [text.encode()])
    assert ids.tolist() == BPETokenizer(merges).merged(text.encode())


def test_a_text_in_pieces_is_the_text(small_pieces, tmp_path):
    contents = ["\ufeffone\r\n\n", "\n\n\n", "zwei é猫😀", "x\n" * 9, "\nend\n\n"]
    paths = [tmp_path / str(i) for i in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content.encode())
    for n in range(1, 6):
        text, _ = read_texts(paths[:n])
        whole = [c.removeprefix("\ufeff") for c in contents[:n]]
        joined = "\n\n".join([*(c.rstrip("\r\n") for c in whole[:-1]), whole[-1]])
        assert str(text) == joined and len(text) == len(joined)
        for start, stop in ((0, 5), (3, 6), (len(joined) - 2, len(joined))):
            assert "".join(text.pieces(start, stop)) == joined[start:stop]
    digest = text.digest
    assert digest == read_texts(paths)[0].digest
    paths[0].write_text("now shorter")
    assert read_texts(paths)[0].digest != digest
    with pytest.raises(ValueError, match="4 has changed while it was read"):
        paths[4].write_text("")
        str(text)
    paths[0].write_bytes(b"all well\xff")
    with pytest.raises(ValueError, match=r"0 is not UTF-8 text: byte 8 \(0xff\)"):
        read_texts(paths)
    paths[0].write_bytes("half é".encode()[:-1])
    with pytest.raises(ValueError, match=r"0 is not UTF-8 text: byte 5 \(0xc3\)"):
        read_texts(paths)


def test_a_pipe_is_a_text(song, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(
        target=(tmp_path / "pipe").write_text, args=[song.text], daemon=True
    )
    writer.start()
    text, _ = read_texts([tmp_path / "pipe"])
    assert str(text) == str(text) == song.text


@pytest.fixture
def large(monkeypatch, tmp_path, song):
    """Texts that count as large, and where their ids are kept."""
    monkeypatch.setattr(runs_data, "LARGE", 100)
    monkeypatch.setenv("TINYGPT_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ids"


def files_in(folder):
    return sorted(path for path in folder.iterdir() if path.name != ".lock")


@pytest.mark.parametrize(("kind", "held"), [("bpe", 2), ("char", 1)])
def test_ids_of_a_large_text_are_found_again(song, large, kind, held, monkeypatch):
    tokenizer, expected = lesson(kind, song.text)
    parts = Data(Text.of(song.text)).encode(tokenizer)
    (path,) = files_in(large)
    assert path.stat().st_size == runs_data.HEADER + held * sum(map(len, expected))
    assert fingerprint(*parts) == fingerprint(*expected)
    with monkeypatch.context() as patch:
        patch.setattr(Data, "arrays", None)  # nothing is encoded once more
        again = Data(Text.of(song.text)).encode(tokenizer)
    places = torch.tensor([[0, 5], [7, 2]])
    for ids, wanted in zip(again, expected, strict=True):
        assert isinstance(ids.array, np.memmap) and ids.array.itemsize == held
        assert torch.equal(ids[:], wanted) and torch.equal(ids[places], wanted[places])
    Data(Text.of(song.text + "!")).encode(TEXT_TOKENIZERS["byte"]())
    assert len(files_in(large)) == 2


@pytest.mark.parametrize("spoil", ["cut", "changed", "header", "nonsense", "empty"])
def test_a_file_of_ids_that_was_altered_is_made_anew(song, large, spoil):
    expected = split(song.tokenizer.encode(song.text))
    Data(Text.of(song.text)).encode(song.tokenizer)
    (path,) = files_in(large)
    whole = path.read_bytes()
    header = json.loads(whole[: runs_data.HEADER])
    path.write_bytes(
        {
            "cut": whole[:-2],
            "changed": whole[:-2] + b"\xff\xff",
            "header": json.dumps({**header, "sizes": [10**15, 3]}).encode().ljust(4096),
            "nonsense": b"[" * 5000,
            "empty": b"",
        }[spoil]
    )
    parts = Data(Text.of(song.text)).encode(song.tokenizer)
    assert fingerprint(*parts) == fingerprint(*expected)
    assert path.read_bytes() == whole


def test_what_nobody_asks_for_is_forgotten_and_no_cache_is_no_harm(
    song, large, capsys, monkeypatch
):
    encode = partial(Data(Text.of(song.text)).encode, song.tokenizer)
    encode()
    (path,) = files_in(large)
    (large / f".{path.name}-0.partial").write_bytes(b"half")
    month = time.time() - runs_data.KEPT - 1
    os.utime(path, (month, month))
    Data(Text.of(song.text * 2)).encode(song.tokenizer)
    (other,) = files_in(large)
    assert other != path and capsys.readouterr().err == ""
    monkeypatch.setenv("TINYGPT_DATA", str(other))  # no folder
    parts = encode()
    assert not isinstance(parts[0].array, np.memmap)
    assert torch.equal(parts[0][:], song.train_ids)
    assert "ids are held in memory: " in capsys.readouterr().err


def test_processes_take_turns(song, large, capsys):
    parts = []
    with runs_data.taking_turns(make(large)):
        encode = Data(Text.of(song.text)).encode
        others = [
            threading.Thread(target=lambda: parts.append(encode(song.tokenizer)))
            for _ in range(3)
        ]
        for other in others:
            other.start()
        others[0].join(1.5)
        assert parts == []
    for other in others:
        other.join()
    assert {fingerprint(*two) for two in parts} == {
        fingerprint(song.train_ids, song.val_ids)
    }
    assert "waiting: another process" in capsys.readouterr().err
    assert len(files_in(large)) == 1


def make(folder):
    folder.mkdir(parents=True)
    return folder


def test_a_run_on_ids_in_a_file_is_the_run_on_a_tensor(song, large, tiny_gpt):
    config = TrainConfig(steps=4, batch_size=2, eval_every=2)
    kept = Data(Text.of(song.text)).encode(song.tokenizer)
    histories = [
        train(tiny_gpt(), *parts, config, progress=False)
        for parts in (kept, (song.train_ids, song.val_ids))
    ]
    assert histories[0].losses == histories[1].losses
    assert histories[0].evaluations == histories[1].evaluations
    beyond = Ids(np.full(100, song.tokenizer.vocab_size, np.uint16))
    with pytest.raises(ValueError, match="train_ids hold ids from"):
        train(tiny_gpt(), beyond, kept[1], config, progress=False)


@pytest.mark.parametrize(
    ("kind", "held", "peak"),
    [("byte", 1, 3), ("char", 1, 6), ("bpe", 2, 12), ("word", 1, 11)],
)
def test_what_a_megabyte_takes(kind, held, peak, monkeypatch):
    """Bytes for each of the text; a list of ints would take 8 and more, strings 50."""
    monkeypatch.setattr(texts, "AT_ONCE", 2**16)
    words = np.random.default_rng(0).integers(3000, size=200_000).tolist()
    data = " ".join(map(str, words)).encode()
    source = texts.Source("made", partial(BytesIO, data), len(data))
    tracemalloc.start()
    try:
        mine = Data(Text([source]))
        tokenizer = mine.learn(TEXT_TOKENIZERS[kind], **SIZES.get(kind, {}))
        parts = mine.encode(tokenizer)
        taken = tracemalloc.get_traced_memory()[1] / len(data)
    finally:
        tracemalloc.stop()
    assert taken <= peak
    assert {ids.array.itemsize for ids in parts} == {held}
