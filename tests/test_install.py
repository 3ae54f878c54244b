"""tools/install.py and tools/test.py: what sets the project up, and what checks it."""

import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tools import install
from tools import test as checks

ROOT = Path(__file__).resolve().parent.parent
REQUIRED = "numpy==2.0\ntorch==2.13.0\ntorchvision==1.0\n"
OFFERED = '<a href="/whl/cpu/torch-2.13.0%2Bcpu-cp311-cp311-manylinux_2_28_x86_64.whl">'


@pytest.fixture
def linux(monkeypatch):
    """A Linux without a GPU and with no index chosen, where the CPU index answers."""
    asked = []
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(install, "has_gpu", lambda: False)
    monkeypatch.setattr(install, "page", lambda url: asked.append(url) or OFFERED)
    for name in install.CHOSEN:
        monkeypatch.delenv(name, raising=False)
    return asked


def test_linux_without_a_gpu_takes_the_cpu_build(linux):
    assert install.cpu_torch(REQUIRED) == "torch==2.13.0"
    assert linux == ["https://download.pytorch.org/whl/cpu/torch/"]


@pytest.mark.parametrize("page", ["", "<html>", OFFERED.replace("2.13.0", "2.12.0")])
def test_an_index_without_it_is_passed_over_and_said(linux, monkeypatch, capsys, page):
    monkeypatch.setattr(install, "page", lambda url: page)
    assert install.cpu_torch(REQUIRED) is None
    assert "torch from pip's own index" in capsys.readouterr().out


@pytest.mark.parametrize("why", ["gpu", "darwin", "win32", *install.CHOSEN])
def test_elsewhere_nobody_is_asked(linux, monkeypatch, why):
    if why == "gpu":
        monkeypatch.setattr(install, "has_gpu", lambda: True)
    elif why in install.CHOSEN:
        monkeypatch.setenv(why, "1")
    else:
        monkeypatch.setattr(sys, "platform", why)
    assert install.cpu_torch(REQUIRED) is None
    assert not linux


def test_a_page_is_read_or_given_up_in_time():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/here" else 404)
            self.end_headers()
            self.wfile.write(b"text")

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        home = f"http://127.0.0.1:{server.server_port}"
        assert install.page(f"{home}/here", within=60) == "text"
        assert install.page(f"{home}/gone", within=60) == ""
        server.shutdown()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert install.page(f"http://127.0.0.1:{port}/", within=0.2) == ""
    assert install.page(f"http://127.0.0.1:{port}/", within=60) == ""  # refused


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """A folder that looks like an environment, and a list of what pip is asked for."""
    programs = tmp_path / ("Scripts" if os.name == "nt" else "bin")
    programs.mkdir()
    for name in ("pip", "python"):
        path = programs / (f"{name}.exe" if os.name == "nt" else name)
        path.touch(mode=0o755)
    asked = []
    monkeypatch.setattr(install, "pip", lambda _python, _log, *what: asked.append(what))
    return tmp_path, asked


def test_torch_comes_first_and_then_everything(environment, monkeypatch, capsys):
    folder, asked = environment
    monkeypatch.setattr(install, "cpu_torch", lambda text: "torch==2.13.0")
    install.main(str(folder))
    alone = ("--no-deps", "--index-url", install.CPU_INDEX, "torch==2.13.0")
    assert asked == [alone, ("-r", "requirements.txt")]
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_only_what_is_named_is_installed(environment, monkeypatch, capsys):
    folder, asked = environment
    monkeypatch.setattr(install, "cpu_torch", lambda text: pytest.fail("asked"))
    install.main(str(folder), "-e", ".[bench]")
    assert asked == [("-e", ".[bench]")]
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_an_old_python_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(install, "OLDEST", (99, 0))
    with pytest.raises(SystemExit, match=r"name one with PYTHON=python3\.12"):
        install.main(str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_what_pip_says_is_kept_and_shown_if_it_fails(tmp_path, capfd):
    log = tmp_path / "install.log"
    install.pip(sys.executable, log, "--help")
    assert "Usage" in log.read_text()
    assert capfd.readouterr() == ("", "")
    with pytest.raises(SystemExit, match=r"install\.log"):
        install.pip(sys.executable, log, "--no-index", "-f", tmp_path, "no-such-thing")
    assert "No matching distribution found for no-such-thing" in capfd.readouterr().err
    assert "Usage" in log.read_text()


@pytest.mark.skipif(os.name == "nt", reason="without make there")
def test_make_names_a_python_that_is_not_there(tmp_path):
    command = ["make", "env", "PYTHON=python9", f"VENV={tmp_path / 'new'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no python9 here: name a Python from 3.11")


# --- tools/test.py ---


@pytest.fixture
def plan(monkeypatch):
    """Makes the list of what is run: (settings, arguments)."""
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)

    def make(cores=2, **env):
        runs = []
        with monkeypatch.context() as patch:
            patch.setattr(checks, "run", lambda env, *args: runs.append((env, args)))
            patch.setattr(checks, "cores", lambda: cores)
            for name, value in env.items():
                patch.setenv(name, value)
            checks.main()
        return runs

    return make


def test_every_test_and_notebook_is_run_once(plan):
    files = [
        f for _, run in plan() for f in run if str(f).endswith((".ipynb", "_*.py"))
    ]
    assert sorted(files) == sorted(
        p.relative_to(ROOT).as_posix()
        for folder in ("notebooks", "notebooks/solutions")
        for p in ROOT.glob(f"{folder}/*.ipynb")
    )
    files = [f for _, run in plan() for f in run if str(f).startswith("tests/")]
    assert sorted(files) == sorted(
        f"tests/{p.name}" for p in ROOT.glob("tests/test_*.py")
    )


def test_notebooks_that_measure_time_come_last_and_alone(plan):
    *_, (_, others), (_, timed) = plan()
    assert [f for f in timed if f.endswith(".ipynb")] == ["notebooks/12_speed.ipynb"]
    assert "-n" in others and "-n" not in timed
    assert "notebooks/12_speed.ipynb" not in others


def test_one_thread_each_unless_the_user_says_otherwise(plan):
    spread = [env["OMP_NUM_THREADS"] for env, run in plan() if "-n" in run]
    assert spread == ["1", "1"]
    assert "OMP_NUM_THREADS" not in plan()[-1][0]
    waits = [env.get("OMP_WAIT_POLICY") for env, run in plan() if "-n" in run]
    assert waits == ["PASSIVE", "PASSIVE"]
    assert plan()[-1][0]["GOMP_SPINCOUNT"] == "1000"
    given = plan(OMP_NUM_THREADS="2", OMP_WAIT_POLICY="ACTIVE")
    assert {env["OMP_NUM_THREADS"] for env, _ in given} == {"2"}
    assert {env["OMP_WAIT_POLICY"] for env, _ in given} == {"ACTIVE"}


@pytest.mark.parametrize(("cores", "workers"), [(1, 2), (2, 2), (4, 4), (64, 8)])
def test_a_worker_for_each_core(plan, cores, workers):
    said = [run[run.index("-n") + 1] for _, run in plan(cores) if "-n" in run]
    assert said == [str(workers + 1), str(workers)]


def test_the_named_files_exist_and_come_first():
    notebooks = [Path(f).stem for f in checks.in_order("notebooks/*.ipynb", ())]
    tests = [Path(f).stem for f in checks.in_order("tests/test_*.py", ())]
    assert {*checks.TIMED, *checks.LONG_NOTEBOOKS} <= {*notebooks}
    assert {*checks.LONG_TESTS} <= {*tests}
    first = [Path(f).stem for f in checks.in_order("tests/test_*.py", ["test_text"])]
    assert first == ["test_text", *(name for name in tests if name != "test_text")]


def test_the_first_failure_ends_it_with_its_code():
    checks.run(os.environ, "-c", "")
    with pytest.raises(SystemExit) as stop:
        checks.run(os.environ, "-c", "raise SystemExit(3)")
    assert stop.value.code == 3
