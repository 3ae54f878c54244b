"""Text: nothing is lost on the way to numbers and back; targets are one later."""

import json
import tracemalloc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinygpt_lib.runs.tokenizers import TOKENIZERS, tokenizer_from_dict
from tinygpt_lib.text import CharTokenizer, get_batch, split
from tinygpt_lib.tokenizers import ByteTokenizer

some_text = st.text(min_size=1, max_size=60)


@given(some_text, st.data())
def test_every_text_over_the_vocabulary_comes_back(source, data):
    tokenizer = CharTokenizer.from_text(source)
    text = data.draw(st.text(st.sampled_from(source), max_size=60))
    ids = tokenizer.encode(text)
    assert ids.shape == (len(text),) and ids.dtype == torch.int64
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids.tolist()) == text
    assert tokenizer.vocab_size == len(set(source))


@given(some_text)
def test_ids_are_places_in_the_sorted_vocabulary(source):
    tokenizer = CharTokenizer.from_text(source)
    everything = range(tokenizer.vocab_size)
    assert tokenizer.decode(everything) == "".join(sorted(set(source)))
    assert tokenizer.encode(tokenizer.decode(everything)).tolist() == [*everything]


@given(some_text)
def test_a_tokenizer_survives_json(source):
    tokenizer = CharTokenizer.from_text(source)
    data = json.loads(json.dumps(tokenizer.to_dict()))
    for again in (CharTokenizer.from_dict(data), tokenizer_from_dict(data)):
        assert isinstance(again, CharTokenizer)
        assert again.characters == tokenizer.characters
        assert torch.equal(again.encode(source), tokenizer.encode(source))


@given(some_text)
def test_ids_are_those_of_the_lesson(source):
    """Which looks up one character after another; the library, many at once."""
    lesson = CharTokenizer.__mro__[1]
    assert lesson.__module__ == CharTokenizer.__module__
    expected = lesson.encode(lesson.from_text(source), source)
    assert torch.equal(CharTokenizer.from_text(source).encode(source), expected)


@pytest.mark.parametrize("tokenizer", [CharTokenizer("ab€"), ByteTokenizer()])
def test_encoding_makes_no_list(tokenizer):
    """8 bytes a token that is returned, and some that don't grow with the text."""
    text = "ab€" * 350_000
    tokenizer.encode("a")
    n = len(tokenizer.encode(text))
    tracemalloc.start()
    try:
        tokenizer.encode(text)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 8 * n + 2**20 + len(text.encode()) * isinstance(
        tokenizer, ByteTokenizer
    )


def test_an_unknown_character_is_named_with_its_place():
    tokenizer = CharTokenizer.from_text("abc")
    for far in (3, 200_000):
        text = "abc" * far + "éaé"
        match = rf"'é' at position {3 * far} .* 3 characters"
        with pytest.raises(ValueError, match=match):
            tokenizer.encode(text)


@pytest.mark.parametrize("bad", [-1, 3, 2**40])
def test_an_id_outside_the_vocabulary_is_named(bad):
    with pytest.raises(ValueError, match=rf"id {bad} .* 0\.\.2"):
        CharTokenizer.from_text("abc").decode([0, bad])


def test_empty_text_encodes_and_decodes_to_nothing():
    tokenizer = CharTokenizer.from_text("abc")
    assert tokenizer.encode("").shape == (0,)
    assert tokenizer.encode("").dtype == torch.int64
    assert tokenizer.decode(tokenizer.encode("")) == ""


@pytest.mark.parametrize("characters", ["", "aba", ["a", "bc"], ["a", ""]])
def test_a_vocabulary_that_makes_no_sense_is_refused(characters):
    with pytest.raises(ValueError, match="characters must"):
        CharTokenizer(characters)


@pytest.mark.parametrize("text", ["a\ud83d", "\ud83dx\ude00"])
def test_first_halves_of_characters_are_refused(text):
    with pytest.raises(ValueError, match="first half of a surrogate pair"):
        CharTokenizer.from_text(text)


def test_no_vocabulary_comes_from_an_empty_text():
    with pytest.raises(ValueError, match="text is empty"):
        CharTokenizer.from_text("")


@pytest.mark.parametrize("data", [{"type": "runes", "characters": "a"}, {}])
def test_an_unknown_kind_of_tokenizer_is_named_with_the_known_ones(data):
    with pytest.raises(ValueError, match=rf"{data.get('type')!r} .*char"):
        tokenizer_from_dict(data)


def test_the_table_of_tokenizers_says_what_to_dict_writes():
    kind = CharTokenizer("ab").to_dict()["type"]
    assert TOKENIZERS[kind] is CharTokenizer


def test_the_corpus_is_split_where_everybody_splits_it():
    ids = torch.arange(1_115_394)
    train_ids, val_ids = split(ids)
    assert (len(train_ids), len(val_ids)) == (1_003_854, 111_540)
    assert torch.equal(torch.cat((train_ids, val_ids)), ids)


@given(st.integers(0, 50), st.floats(0.01, 0.99))
def test_a_split_keeps_every_token_once_and_in_order(n, fraction):
    ids = torch.arange(n)
    first, second = split(ids, fraction)
    assert torch.equal(torch.cat((first, second)), ids)
    assert abs(len(first) - fraction * n) <= 1


def test_a_text_is_split_where_its_characters_are():
    text = "to be, or not to be: that"
    ids = CharTokenizer.from_text(text).encode(text)
    assert list(map(len, split(text))) == list(map(len, split(ids)))
    assert "".join(split(text)) == text


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_a_fraction_that_leaves_nothing_is_refused(fraction):
    with pytest.raises(ValueError, match=r"fraction is .* between 0 and 1"):
        split(torch.arange(10), fraction)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 40), st.integers(0, 99))
def test_targets_are_the_inputs_one_later(batch_size, block_size, more, seed):
    ids = 100 + torch.arange(block_size + more)
    generator = torch.Generator().manual_seed(seed)
    x, y = get_batch(ids, batch_size, block_size, generator)
    assert x.shape == y.shape == (batch_size, block_size)
    assert torch.equal(y, x + 1)  # holds on a text that counts upwards
    assert torch.equal(x, x[:, :1] + torch.arange(block_size))
    assert x.min() >= ids[0] and y.max() <= ids[-1]


def test_every_window_is_drawn_the_first_and_the_last_too():
    generator = torch.Generator().manual_seed(0)
    x, y = get_batch(torch.arange(7), 500, 4, generator)
    assert x[:, 0].unique().tolist() == [0, 1, 2]
    assert y.max() == 6
    shares = torch.bincount(x[:, 0]) / 500
    assert (shares - 1 / 3).abs().max() < 0.1  # five standard deviations


def test_a_text_of_exactly_one_window_is_enough():
    x, y = get_batch(torch.arange(5), 3, 4)
    assert x.tolist() == [[0, 1, 2, 3]] * 3 and y.tolist() == [[1, 2, 3, 4]] * 3


def test_the_same_generator_state_draws_the_same_batch():
    def draw(seed):
        return get_batch(torch.arange(999), 8, 16, torch.Generator().manual_seed(seed))

    assert all(map(torch.equal, draw(1), draw(1)))
    assert not torch.equal(draw(1)[0], draw(2)[0])


def test_a_text_shorter_than_a_window_and_its_target_is_refused():
    with pytest.raises(ValueError, match=r"4 tokens.*block_size 4.* 5"):
        get_batch(torch.arange(4), 2, 4)
