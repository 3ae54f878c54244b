"""Files that grow: rotated, emptied, filled again, and gone on with."""

import os
import shutil
import sys

import pytest

from tinygpt_lib.basics import growing as _growing
from tinygpt_lib.basics.growing import AT_ONCE, GrowingFile, Place, arriving
from tinygpt_lib.basics.loglines import LONGEST_LINE


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log"


def append(path, data):
    with open(path, "ab") as file:
        file.write(data)


def texts(file):
    """All that can be read now."""
    found = []
    while lines := file.read():
        found += [text for _, text in lines]
    return found


def dated(hour, count=40):
    """Lines of a log, no two of them the same."""
    return b"".join(b"%02d:%02d:00 tick\n" % (hour, m) for m in range(count))


def test_a_line_is_read_when_it_is_whole(path):
    path.write_bytes(b"one\ntw")
    file = GrowingFile(str(path))
    assert file.read() == [(1, "one")] and file.read() == []
    append(path, b"o\r\nthree\n")
    assert file.read() == [(2, "two"), (3, "three")]
    path.write_bytes(b"anew\n")  # shorter
    assert texts(file) == ["anew"] and file.place.number == 4


def test_a_file_in_its_place_is_read_after_the_rest_of_the_old_one(path, tmp_path):
    path.write_bytes(dated(1))
    file = GrowingFile(str(path))
    assert len(texts(file)) == 40
    append(path, b"last\nhalf")
    path.rename(tmp_path / "log.1")
    assert texts(file) == ["last"]
    append(tmp_path / "log.1", b" a line\nnot ended")
    path.write_bytes(b"first\n")
    assert texts(file) == ["half a line", "not ended", "first"]


@pytest.mark.parametrize("count", [0, 10, 40, 90])
def test_an_emptied_file_is_read_anew_whatever_its_length(path, count):
    """Also one that was filled to its old length between two looks."""
    path.write_bytes(dated(1))
    file = GrowingFile(str(path))
    texts(file)
    path.write_bytes(dated(2, count))
    assert len(texts(file)) == count
    append(path, b"more\n")
    assert texts(file) == ["more"]


def test_what_was_not_read_is_taken_from_the_copy(path, tmp_path):
    """As logrotate's copytruncate makes one."""
    path.write_bytes(dated(1))
    file = GrowingFile(str(path))
    texts(file)
    append(path, b"in the last moment\n")
    shutil.copy(path, tmp_path / "log.1")
    path.write_bytes(dated(2, 2))
    assert texts(file) == ["in the last moment", "02:00:00 tick", "02:01:00 tick"]


@pytest.mark.parametrize("in_place", [True, False])
def test_of_a_log_of_fixed_length_only_what_is_new(path, tmp_path, in_place):
    lines = dated(1).splitlines(keepends=True)
    path.write_bytes(b"".join(lines))
    file = GrowingFile(str(path))
    texts(file)
    new = [*lines[3:], b"a new\n", b"b new\n", b"c new\n"]
    other = path if in_place else tmp_path / "aside"
    other.write_bytes(b"".join(new))
    os.replace(other, path)
    assert texts(file) == ["a new", "b new", "c new"]


def test_a_file_that_is_not_there_yet_is_waited_for(path):
    said = []
    file = GrowingFile(str(path), tell=said.append)
    assert file.read() == [] and file.read() == []
    assert said == [f"{path} is not there yet: waiting for it"]
    path.write_bytes(b"here\n")
    assert texts(file) == ["here"]


def again(file):
    """A file gone on with, from plain data."""
    return GrowingFile(str(file.path), Place.from_dict(file.place.to_dict()))


@pytest.mark.parametrize("how", ["nothing", "rename", "copy", "twice", "gone"])
def test_it_goes_on_where_it_was(path, tmp_path, how):
    path.write_bytes(dated(1))
    file = GrowingFile(str(path))
    texts(file)
    append(path, b"while it was off\n")
    if how == "rename":
        path.rename(tmp_path / "log.1")
        path.write_bytes(b"anew\n")
    elif how == "copy":
        shutil.copy(path, tmp_path / "log.1")
        path.write_bytes(b"anew\n")
    elif how == "twice":  # and nobody knows what was in between
        path.write_bytes(b"anew\n")
    elif how == "gone":
        path.unlink()
        path.write_bytes(dated(3, 1))
    file = again(file)
    expected = {
        "nothing": ["while it was off"],
        "twice": ["anew"],
        "gone": ["03:00:00 tick"],
    }.get(how, ["while it was off", "anew"])
    assert texts(file) == expected
    append(path, b"more\n")
    assert texts(file) == ["more"] and again(file).read() == []


def test_an_overlong_line_is_one_line(path):
    path.write_bytes(b"x" * (2 * AT_ONCE + 5) + b"\nshort\n" + b"y" * AT_ONCE)
    file = GrowingFile(str(path))
    assert texts(file) == ["x" * LONGEST_LINE, "short", "y" * LONGEST_LINE]
    append(path, b"yy\nend\n")
    assert texts(file) == ["end"]


def test_what_can_not_be_followed(path):
    path.write_bytes(b"\x1f\x8b not a log")
    with pytest.raises(ValueError, match="is gzipped"):
        GrowingFile(str(path)).read()
    for change in ({"offset": -1}, {"number": None}, {"first": "x"}, {"more": 1}):
        with pytest.raises((ValueError, TypeError)):
            Place.from_dict({**Place().to_dict(), **change})


def test_standard_input_is_waited_for(monkeypatch):
    monkeypatch.setattr(_growing, "POLL", 0.05)
    reading, writing = os.pipe()
    with open(reading) as end:
        monkeypatch.setattr(sys, "stdin", end)
        batches = arriving("-")
        assert next(batches) == []
        os.write(writing, b"one\ntwo\n")
        told = []
        while len(told) < 2:
            told += next(batches)
        assert told == [(1, "one"), (2, "two")]
        os.close(writing)
        assert all(batch == [] for batch in batches)
