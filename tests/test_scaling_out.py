"""Several processes learn what one learns, and a run survives what befalls one of them.

Most of these processes are forked from one that has imported everything, and join as if
torchrun had started them; the last tests start torchrun itself.
"""

import contextlib
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from tinygpt_lib.basics.devices import DeviceError
from tinygpt_lib.bigram import evaluate
from tinygpt_lib.commands import main
from tinygpt_lib.runs import processes as processes_module
from tinygpt_lib.runs.checkpoints import load_checkpoint, read_run
from tinygpt_lib.runs.processes import first_to_say, from_first, processes, threads_each
from tinygpt_lib.runs.run import Run, SavedRun, train
from tinygpt_lib.runs.settings import ENGINES, TrainConfig
from tinygpt_lib.scaling_out import evaluate_together, process_rank, shard
from tinygpt_lib.speed import FastConfig, FastGPT

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
LIMIT = 120  # seconds for any group of processes; of itself, it waits for up to 300
TINY = "--n-layer 1 --n-embd 16 --block-size 16 --batch-size 4 --dropout 0.1 "
TINY = (TINY + "--optimizer adamw --position learned").split()

forks = multiprocessing.get_context("forkserver")
preload = ["tinygpt_lib.commands", "pytest", "torch.distributed.fsdp"]
forks.set_forkserver_preload(preload)

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="several processes are refused on Windows"
)


# --- Processes ---


class Group:
    """n processes that run `work(*given)`, joined; what each returned or printed."""

    def __init__(self, n, folder, work, *given, patience=30, settings=()):
        # As torchrun does: who starts the processes keeps their table.
        self.store = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
        self.folder, self.members = folder, []
        for rank in range(n):
            env = {
                "RANK": rank,
                "WORLD_SIZE": n,
                "LOCAL_RANK": rank,
                "LOCAL_WORLD_SIZE": n,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": self.store.port,
                "TORCHELASTIC_USE_AGENT_STORE": "True",
                "OMP_NUM_THREADS": 1,
            }
            env = {name: str(value) for name, value in (env | dict(settings)).items()}
            arguments = env, folder, patience, work, given
            self.members.append(forks.Process(target=enter, args=arguments))
        for member in self.members:
            member.start()

    def wait(self, seconds=LIMIT):
        """Exit codes; whoever is still there then is killed, and that is a failure."""
        end = time.monotonic() + seconds
        for member in self.members:
            member.join(max(0, end - time.monotonic()))
        late = [member for member in self.members if member.is_alive()]
        for member in late:
            member.kill()
        assert not late, "".join(self.said())
        return [member.exitcode for member in self.members]

    def said(self):
        """What each of them wrote."""
        return [(self.folder / f"log{r}").read_text() for r in range(len(self.members))]


def enter(env, folder, patience, work, given):
    os.environ.update(env)
    rank = env["RANK"]
    sys.stdout = sys.stderr = open(folder / f"log{rank}", "w", buffering=1)
    torch.set_num_threads(1)
    # Where the tests run in the background, a process inherits a deaf ear.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if work is main:
        sys.exit(main([str(a) for a in given]))
    with processes(CPU, patience):
        torch.save(work(*given), folder / f"result{rank}")


def together(n, folder, work, *given):
    """What `work(*given)` returns in each of n processes."""
    group = Group(n, folder, work, *given)
    assert group.wait() == [0] * n, "".join(group.said())
    return [torch.load(folder / f"result{r}", weights_only=False) for r in range(n)]


@pytest.fixture(autouse=True)
def same_arithmetic(one_thread):
    """As in the other processes."""


# --- What is learnt does not depend on how many there are ---

MODEL = {"block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 16, "bias": False}
MODERN = {"position": "rotary", "norm": "rms", "qk_norm": "rms", "tie_weights": True}
# Short gradients: the brake works in every step, and must know all of the gradient.
PLAN = TrainConfig(steps=10, batch_size=12, eval_every=5, save_every=4, clip=0.1)


def new_model(vocab_size, seed=0, **settings):
    torch.manual_seed(seed)
    return FastGPT(FastConfig(vocab_size, **{**MODEL, **settings})).double()


def weights_of(model):
    tensors = model.state_dict().items()
    whole = {k: t.full_tensor() if hasattr(t, "full_tensor") else t for k, t in tensors}
    return {k: t.clone() for k, t in whole.items()}


def learn(ids, plan, settings, sharded=False, seed=0):
    """Weights and history of a run; `ids` are for training and for validation."""
    vocab_size = 1 + max(x.max().item() for x in ids)
    model = new_model(vocab_size, seed, **settings)
    history = train(shard(model) if sharded else model, *ids, plan, progress=False)
    return weights_of(model), history


def learn_four_ways(ids, settings):
    """Replicated and sharded, at once and in two parts."""
    ways = [(parts, sharded) for parts in (1, 2) for sharded in (False, True)]
    return {
        way: learn(ids, replace(PLAN, accumulate=way[0]), settings, way[1])
        for way in ways
    }


def assert_close(found, expected, tolerance=1e-9):
    (weights, history), (wanted, past) = found, expected
    for name, t in wanted.items():
        assert (weights[name] - t).abs().max() <= tolerance, name
    losses = torch.tensor(history.losses) - torch.tensor(past.losses)
    assert len(history.losses) == len(past.losses) and losses.abs().max() <= tolerance
    # Evaluation is float32.
    for (step, loss), (at, wanted) in zip(
        history.evaluations, past.evaluations, strict=True
    ):
        assert step == at and abs(loss - wanted) < 1e-5


@pytest.mark.parametrize("settings", [{}, MODERN], ids=["plain", "modern"])
def test_processes_and_parts_do_not_change_what_is_learnt(song, tmp_path, settings):
    ids = song.train_ids, song.val_ids
    expected = learn(ids, PLAN, settings)
    torch.manual_seed(5)  # other weights to begin with, and all else is in vain
    assert (new_model(40, 1).head.weight - new_model(40, 0).head.weight).any()
    for parts in (2, 3, 12):
        assert_close(learn(ids, replace(PLAN, accumulate=parts), settings), expected)
    for results in together(2, tmp_path, learn_four_ways, ids, settings):
        for way, found in results.items():
            assert_close(found, expected), way


def learn_from_weights_of_its_own(ids):
    """Replicated and sharded, each process with other weights to begin with."""
    seed = process_rank()
    return [learn(ids, PLAN, {}, sharded, seed) for sharded in (False, True)]


def test_all_begin_with_the_weights_of_the_first(song, tmp_path):
    ids = song.train_ids, song.val_ids
    expected = learn(ids, PLAN, {})
    for results in together(2, tmp_path, learn_from_weights_of_its_own, ids):
        for found in results:
            assert_close(found, expected)


def test_an_uneven_cut_of_the_weights(song, tmp_path):
    """Three processes: no size here is a multiple of three."""
    ids = song.train_ids, song.val_ids
    expected = learn(ids, PLAN, {})
    for found in together(3, tmp_path, learn, ids, PLAN, {}, True):
        assert_close(found, expected)


def test_every_process_has_the_same_history(song, tmp_path):
    ids = song.train_ids, song.val_ids
    plan = replace(PLAN, steps=4)
    (first, a), (second, b) = together(2, tmp_path, learn, ids, plan, {})
    assert a.losses == b.losses and a.evaluations == b.evaluations
    assert all(torch.equal(first[name], second[name]) for name in first)


class Listing(TorchDispatchMode):
    """Within, the names of all operations are written down."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.names.append(str(operation))
        return operation(*args, **(kwargs or {}))


def count_sums(ids):
    """In one part, and in three."""
    return [count_sums_of(ids, parts) for parts in (1, 3)]


def count_sums_of(ids, parts):
    """Numbers sent in one step, replicated; and sums scattered in one, sharded."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    plan = replace(PLAN, accumulate=parts)
    run = Run(new_model(40), *ids, plan)
    buckets = []

    def hook(state, bucket):
        buckets.append(bucket.buffer().numel())
        return allreduce_hook(state, bucket)

    run.network.register_comm_hook(None, hook)
    run.take_step()
    sharded = Run(shard(new_model(40)), *ids, plan)
    sharded.take_step()
    with Listing() as called:
        sharded.take_step()
    return sum(buckets), sum("reduce_scatter" in name for name in called.names)


def test_parts_are_summed_here_and_sent_once(song, tmp_path):
    ids = song.train_ids, song.val_ids
    n = new_model(40).n_parameters()
    for counts in together(2, tmp_path, count_sums, ids):
        for sent, scattered in counts:
            assert sent == n  # each gradient once
            assert scattered == MODEL["n_layer"] + 1  # each block once, and the rest


def learn_by_a_function(ids):
    ENGINES["function"] = lambda model, config: lambda x: model(x) * 1.0
    return learn(ids, replace(PLAN, engine="function"), {})


def test_an_engine_that_is_no_module(song, tmp_path):
    ids = song.train_ids, song.val_ids
    expected = learn(ids, PLAN, {})
    for found in together(2, tmp_path, learn_by_a_function, ids):
        assert_close(found, expected)


# --- Evaluation ---


def evaluate_lengths(lengths):
    """For texts of these lengths: shared out, sharded, and by this process alone."""
    torch.manual_seed(0)
    config = FastConfig(40, **MODEL)
    model, sharded = FastGPT(config), shard(new_model(40).float())
    sharded_whole = FastGPT(config)
    sharded_whole.load_state_dict(weights_of(sharded))
    rows = []
    for n in lengths:
        ids = torch.randint(40, (n,), generator=torch.Generator().manual_seed(n))
        rows.append(
            (
                evaluate_together(model, ids, 64),
                evaluate(model, ids, tokens_at_once=64),
                evaluate_together(sharded, ids, 64),
                evaluate(sharded_whole, ids, tokens_at_once=64),
            )
        )
    return rows


@pytest.mark.parametrize("n", [2, 3])
def test_shared_evaluation_is_the_same_to_the_last_bit(tmp_path, n):
    lengths = (2, 8, 9, 10, 64, 65, 66, 129, 500, 1000)
    for rows in together(n, tmp_path, evaluate_lengths, lengths):
        for shared, alone, sharded, whole in rows:
            assert shared == alone
            assert sharded == whole


# --- Dropout ---


def drawn(ids):
    """What dropout would draw first in this process."""
    run = Run(new_model(40), *ids, PLAN)
    return torch.rand(8), run.batches.get_state()


def test_each_process_drops_units_of_its_own(song, tmp_path):
    ids = song.train_ids, song.val_ids
    drawings, batches = zip(*together(3, tmp_path, drawn, ids), strict=True)
    for i in range(3):
        for j in range(i):
            assert not (drawings[i] == drawings[j]).any()
            assert torch.equal(batches[i], batches[j])
    new_model(40)
    assert torch.equal(drawings[0], torch.rand(8))  # the first draws what one would


# --- Checkpoints ---


class StoppedError(Exception):
    """Stands for whatever ends a run."""


class Stopping(SavedRun):
    """A run that ends before its seventh step; the last save was after the fourth."""

    def take_step(self):
        if self.step == 6:
            raise StoppedError
        return super().take_step()


def begin(ids, tokenizer, out, settings, sharded=False):
    """A run that is stopped."""
    model = new_model(tokenizer.vocab_size, **settings)
    model = shard(model) if sharded else model
    run = Stopping(model, *ids, PLAN, out, tokenizer)
    run.create()
    with contextlib.suppress(StoppedError), run.locked():
        run.go(progress=False)


def go_on(ids, tokenizer, out, settings, sharded=False, parts=1):
    """The rest of it, by other weights; and its whole history."""
    torch.manual_seed(99 + process_rank())
    model = new_model(tokenizer.vocab_size, seed=98, **settings)
    torch.manual_seed(99)
    options = {"out": out, "tokenizer": tokenizer, "resume": True, "progress": False}
    model = shard(model) if sharded else model
    history = train(model, *ids, replace(PLAN, accumulate=parts), **options)
    return weights_of(model), history


def saved_weights(out):
    tensors = read_run(out).tensors
    return {k[6:]: t for k, t in tensors.items() if k.startswith("model.")}


@pytest.mark.parametrize(
    "n, sharded", [(2, False), (2, True), (3, False)], ids=["whole", "sharded", "three"]
)
def test_stopped_and_gone_on_bit_for_bit(song, tmp_path, n, sharded):
    """With dropout, on as many processes as before."""
    ids, settings = (song.train_ids, song.val_ids), {"dropout": 0.2}
    expected = together(n, tmp_path, learn, ids, PLAN, settings, sharded)[0]
    out = tmp_path / "run"
    given = ids, song.tokenizer, out, settings, sharded
    together(n, tmp_path, begin, *given)
    assert len(read_run(out).history.losses) == 4
    for weights, history in together(n, tmp_path, go_on, *given):
        assert history.losses == expected[1].losses
        assert history.evaluations == expected[1].evaluations
        assert all(torch.equal(weights[k], t) for k, t in expected[0].items())
    assert all(torch.equal(saved_weights(out)[k], t) for k, t in expected[0].items())
    load_checkpoint(out)


def test_stopped_and_gone_on_by_others(song, tmp_path):
    """On more processes or fewer, sharded or not, in other parts."""
    ids = song.train_ids, song.val_ids
    expected = learn(ids, PLAN, {})
    for start, start_sharded, end, end_sharded, parts in (
        (2, True, 1, False, 3),
        (2, False, 3, True, 1),
        (1, False, 2, True, 2),
        (3, True, 2, False, 1),
    ):
        folder = tmp_path / f"{start}-{end}-{parts}"
        folder.mkdir()
        given = ids, song.tokenizer, folder / "run", {}
        together(start, folder, begin, *given, start_sharded)
        for found in together(end, folder, go_on, *given, end_sharded, parts):
            assert_close(found, expected)
        assert_close((saved_weights(folder / "run"), expected[1]), expected)


DROPPING = [{}, {"dropout": 0.2}]


def begin_each(ids, tokenizer, folder):
    """A run that draws random numbers, and one that doesn't."""
    for i, settings in enumerate(DROPPING):
        begin(ids, tokenizer, folder / str(i), settings)


def draw_after_going_on(ids, tokenizer, folders):
    """What each of these runs would draw first."""
    drawn = []
    for folder in folders:
        for i, settings in enumerate(DROPPING):
            model = new_model(tokenizer.vocab_size, **settings)
            run = SavedRun(model, *ids, PLAN, folder / str(i), tokenizer)
            run.restore()
            drawn.append(torch.rand(8))
    return drawn


def test_new_processes_draw_what_nobody_drew(song, tmp_path):
    """Three, after one or two, with and without dropout."""
    ids, folders = (song.train_ids, song.val_ids), [tmp_path / "1", tmp_path / "2"]
    for before, folder in enumerate(folders, start=1):
        folder.mkdir()
        together(before, folder, begin_each, ids, song.tokenizer, folder)
    fresh = [numbers for numbers, _ in together(3, tmp_path, drawn, ids)]
    given = ids, song.tokenizer, folders
    ranks = together(3, tmp_path, draw_after_going_on, *given)
    for i, later in enumerate(map(list, zip(*ranks, strict=True))):
        if i == 2:  # two that drew nothing: the second is where it began
            assert torch.equal(later[1], fresh[1])
            later.pop(1)
        numbers = torch.stack([*fresh[1:], *later])
        assert len(numbers.unique(dim=0)) == len(numbers)
        assert all(len(column.unique()) == len(column) for column in numbers.T)


def touched(ids, tokenizer, out):
    """The files in `out` that this process has dealt with in a whole run."""
    files = []

    def hook(event, given):
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            if isinstance(given[0], str | Path) and str(given[0]).startswith(str(out)):
                files.append((event, str(given[0])))

    sys.addaudithook(hook)
    begin(ids, tokenizer, out, {})
    go_on(ids, tokenizer, out, {}, True)
    return files


def test_only_the_first_process_touches_files(song, tmp_path):
    ids = song.train_ids, song.val_ids
    given = ids, song.tokenizer, tmp_path / "run"
    first, *others = together(3, tmp_path, touched, *given)
    assert any("training.safetensors" in name for _, name in first)
    assert any(".lock" in name for _, name in first)
    assert others == [[], []]


# --- Refused ---


def refusals(ids):
    """What each of these says."""
    said = []
    for plan, sharded in (
        (replace(PLAN, batch_size=7), False),
        (replace(PLAN, batch_size=6, accumulate=2), False),
        (replace(PLAN, optimizer="muon"), True),
        (replace(PLAN, optimizer="muon", steps=2), False),
    ):
        model = new_model(40)
        try:
            train(shard(model) if sharded else model, *ids, plan, progress=False)
            said.append("nothing")
        except ValueError as error:
            said.append(str(error))
    return said


def test_what_cannot_be_shared_out_is_refused_by_name(song, tmp_path):
    for said in together(2, tmp_path, refusals, (song.train_ids, song.val_ids)):
        multiple = r"batch_size {} can't be shared out: .* 2 \(processes\) times {} "
        assert re.match(multiple.format(7, 1), said[0])
        assert re.match(multiple.format(6, 2), said[1])
        assert said[2].startswith("optimizer 'muon' needs whole matrices")
        assert said[3] == "nothing"


def test_sharding_needs_processes():
    with pytest.raises(ValueError, match="start by torchrun"):
        shard(new_model(40))


@pytest.mark.parametrize("parts", [0, -1, 5, 1.0, True])
def test_parts_that_make_no_sense(parts):
    with pytest.raises(ValueError, match="accumulate"):
        TrainConfig(batch_size=12, accumulate=parts)


@pytest.mark.parametrize("name", ["mps", "cuda:1", "cuda"])
def test_devices_that_are_not_shared_out(monkeypatch, name):
    for variable in processes_module.TORCHRUN:
        monkeypatch.setenv(variable, "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    expected = "finds only 1 GPUs" if name == "cuda" else "can't be shared out"
    with pytest.raises(DeviceError, match=expected), processes(torch.device(name)):
        pass


def test_windows_is_refused(monkeypatch):
    for variable in processes_module.TORCHRUN:
        monkeypatch.setenv(variable, "1")
    monkeypatch.setattr(processes_module.sys, "platform", "win32")
    with pytest.raises(DeviceError, match="WSL"), processes(CPU):
        pass


def test_threads_are_the_cores_shared_out(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8), raising=False)
    for torchruns_own in (None, "1"):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if torchruns_own:
            monkeypatch.setenv("OMP_NUM_THREADS", torchruns_own)
        assert [threads_each(n) for n in (1, 2, 3, 8, 9)] == [8, 4, 2, 1, 1]
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert threads_each(2) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    torch.set_num_threads(5)
    assert threads_each(2) == 5


# --- When something goes wrong ---


def ask_the_first():
    """What from_first gives, and the error it passes on."""
    got = from_first(lambda: ("rank", process_rank()))
    try:
        from_first(lambda: [][process_rank()])
    except IndexError as error:
        return got, str(error)


def interface():
    return os.environ.get("GLOO_SOCKET_IFNAME")


def test_on_one_machine_no_network_is_needed(tmp_path):
    assert together(2, tmp_path, interface) == [processes_module.loopback()] * 2


def test_the_first_answers_for_all_of_them(tmp_path):
    for answer in together(3, tmp_path, ask_the_first):
        assert answer == (("rank", 0), "list index out of range")


def fail(everybody):
    if everybody or process_rank() == 1:
        raise ValueError("this can't be")
    dist.barrier()


def test_an_error_of_all_is_told_once(tmp_path):
    group = Group(3, tmp_path, fail, True)
    assert group.wait() == [1, 1, 1]
    assert "".join(group.said()).count("\nValueError: this can't be") == 1


def test_an_error_of_one_is_told_by_that_one_and_ends_all(tmp_path):
    group = Group(3, tmp_path, fail, False)
    assert group.wait() == [1, 1, 1]
    assert "this can't be" in group.said()[1]
    assert "".join(group.said()).count("LostProcessError: another process of") == 1


def forever():
    """Steps without end, with a sign of life."""
    print("working", flush=True)
    while True:
        dist.all_reduce(torch.ones(1000))


def wait_for(what, seconds=LIMIT):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.01)


def test_a_process_that_does_not_answer(tmp_path):
    group = Group(2, tmp_path, forever, patience=2)
    logs = [tmp_path / "log0", tmp_path / "log1"]
    wait_for(lambda: all(log.exists() and "working" in log.read_text() for log in logs))
    frozen = group.members[1]
    os.kill(frozen.pid, signal.SIGSTOP)
    group.members[0].join(LIMIT)
    assert group.members[0].exitcode == 1
    frozen.kill()
    group.wait()
    assert "another process of this run has not answered for 2 s" in group.said()[0]


def test_nobody_keeps_the_table():
    class Gone:
        def add(self, key, value):
            raise RuntimeError("Connection reset by peer")

    assert first_to_say(Gone(), ValueError("x"))


@pytest.fixture
def song_file(song, tmp_path):
    file = tmp_path / "song.txt"
    file.write_text(song.text)
    return file


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("victim", [0, 1])
def test_killed_and_gone_on(song_file, tmp_path, victim, sharded):
    """The survivor tells what to do, at once, and the last checkpoint is sound."""
    out = tmp_path / "run"
    given = ["train", "--out", out, "--text", song_file, *TINY, "--steps", 100_000]
    given += ["--save-every", 5, "--eval-every", 0, *(["--shard"] if sharded else [])]
    group = Group(2, tmp_path, main, *given)
    wait_for(lambda: out.exists() and len(read_run(out).history.losses) > 4)
    group.members[victim].kill()
    codes = group.wait()
    assert codes == [-9 if rank == victim else 1 for rank in range(2)]
    (line,) = [x for x in group.said()[1 - victim].splitlines() if "error: " in x]
    died = f"another process of this run died, or the run was told to end; {out} holds "
    assert died + "the last checkpoint, go on with: torchrun --nproc-per-node 2" in line
    assert "Traceback" not in group.said()[1 - victim]
    assert line.endswith("--resume --shard" if sharded else "--resume")
    load_checkpoint(out)
    assert len(read_run(out).history.losses) % 5 == 0
    assert not list(out.glob(".lock.*"))


def test_ctrl_c_in_one_of_them_stops_all_after_the_same_step(song_file, tmp_path):
    out = tmp_path / "run"
    given = ["train", "--out", out, "--text", song_file, *TINY, "--steps", 100_000]
    given += ["--save-every", 100_000, "--eval-every", 0]
    group = Group(2, tmp_path, main, *given)
    log = tmp_path / "log0"
    wait_for(lambda: log.exists() and "loss" in log.read_text())
    os.kill(group.members[1].pid, signal.SIGINT)
    assert group.wait() == [130, 130]
    text, done = "".join(group.said()), len(read_run(out).history.losses)
    assert 0 < done < 100_000 and "Traceback" not in text
    assert text.count(f"stopped after step {done}; {out} holds the last") == 1


@pytest.mark.parametrize(
    "given, why, times",
    [
        (["--batch-size", 5], "batch_size 5 can't be shared out", 1),
        (["--device", "mps"], "device 'mps'", 2),  # they are not together yet
        (
            ["--shard", "--optimizer", "muon"],
            "optimizer 'muon' needs whole matrices",
            1,
        ),
    ],
    ids=["batch", "device", "optimizer"],
)
def test_the_command_line_refuses(song_file, tmp_path, given, why, times):
    out = tmp_path / "run"
    arguments = ["train", "--out", out, "--text", song_file, *TINY, *given]
    group = Group(2, tmp_path, main, *arguments)
    assert group.wait() == [1, 1]
    text = "".join(group.said())
    assert text.count(f"error: {why}") == times
    assert "Traceback" not in text and not out.exists()


def test_who_cannot_join_hears_the_cause(tmp_path):
    settings = {"GLOO_SOCKET_IFNAME": "nonsense0"}
    group = Group(2, tmp_path, fail, True, settings=settings)
    assert all(code != 0 for code in group.wait())
    text = "".join(group.said())
    assert "nonsense0" in text and "LostProcessError" not in text
    assert "Process group cannot be None" not in text


def test_shard_alone_is_refused(song_file, tmp_path, capsys):
    given = ["--out", str(tmp_path / "run"), "--text", str(song_file), "--shard"]
    assert main(["train", *given]) == 1
    assert "--shard needs processes to share with" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_parts_may_change_on_the_command_line(song_file, tmp_path, capsys):
    out = str(tmp_path / "run")
    given = ["--text", str(song_file), *TINY, "--steps", "4", "--accumulate", "2"]
    assert main(["train", "--out", out, *given]) == 0
    assert read_run(out).training["accumulate"] == 2
    assert main(["train", "--out", out, "--resume", "--accumulate", "4"]) == 0
    assert main(["train", "--out", out, "--resume", "--batch-size", "8"]) == 1


# --- torchrun itself ---


@contextlib.contextmanager
def torchrun(log, *arguments, n=2):
    """`torchrun -m tinygpt_lib`, writing into a file; gone at the end."""
    launcher = "torch.distributed.run --standalone --local-addr 127.0.0.1"
    command = [sys.executable, "-m", *launcher.split(), "--nproc-per-node", n]
    env = {k: v for k, v in os.environ.items() if k != "GLOO_SOCKET_IFNAME"}
    with open(log, "w") as file:
        process = subprocess.Popen(
            [*map(str, command), "-m", "tinygpt_lib", *map(str, arguments)],
            cwd=ROOT,
            env=env,
            stdout=file,
            stderr=file,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        yield process
    finally:  # a launcher that is killed leaves its processes running
        for pid in (*children(process.pid), process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def children(pid):
    """The processes that a process has started."""
    table = subprocess.check_output(["ps", "-A", "-o", "pid=,ppid="], text=True)
    pairs = [map(int, line.split()) for line in table.splitlines()]
    return [child for child, parent in pairs if parent == pid]


@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM], ids=str)
def test_told_to_end_all_are_saved(song_file, tmp_path, told):
    out, log = tmp_path / "my run", tmp_path / "log"
    given = ["--text", song_file, *TINY, "--steps", 100_000, "--save-every", 100_000]
    with torchrun(log, "train", "--out", out, *given, "--eval-every", 0) as process:
        wait_for(lambda: ", loss" in log.read_text() or "loss " in log.read_text())
        process.send_signal(told)
        process.wait(LIMIT)
    text = log.read_text()
    done = len(read_run(out).history.losses)
    assert 0 < done < 100_000
    said = f"stopped after step {done}"
    if told == signal.SIGTERM:
        said = "another process of this run died, or the run was told to end"
    assert text.count(f"{said}; {out} holds the last") == 1
    go_on = f"torchrun --nproc-per-node 2 -m tinygpt_lib train --out '{out}' --resume"
    assert go_on in text and shlex.split(go_on)
    state = read_run(out)
    assert {"random.cpu", "random.cpu.1"} < set(state.tensors)
    assert process.returncode != 0


def test_a_process_killed_under_torchrun_ends_the_run(song_file, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    given = ["--text", song_file, *TINY, "--steps", 100_000, "--save-every", 5]
    with torchrun(log, "train", "--out", out, *given, "--eval-every", 0) as process:
        wait_for(lambda: out.exists() and len(read_run(out).history.losses) > 4)
        os.kill(max(children(process.pid)), signal.SIGKILL)
        assert process.wait(LIMIT) == 1
    text = log.read_text()
    assert text.count("error: another process of this run died, or the run was") == 1
    assert f"{out} holds the last checkpoint, go on with: torchrun" in text
    load_checkpoint(out)


LEAVE = """
import atexit, sys
from tinygpt_lib.commands import leave
shards = "torch.distributed.fsdp", "torch.distributed.tensor"
print([name for name in shards if name in sys.modules])
atexit.register(print, "taken down")
print("said", end=" ")
leave(3)
"""


def test_a_process_of_several_leaves_at_once_and_loses_no_word():
    """And the import brings nothing that only shards need."""
    ranked = dict.fromkeys(processes_module.TORCHRUN, "0")
    for more, said in (ranked, "said "), ({}, "said taken down\n"):
        environment = {k: v for k, v in os.environ.items() if k not in ranked} | more
        done = subprocess.run(
            [sys.executable, "-c", LEAVE], env=environment, stdout=-1, text=True
        )
        assert (done.returncode, done.stdout) == (3, f"[]\n{said}")
