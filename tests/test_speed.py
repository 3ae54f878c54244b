"""Speed: Muon and its matrices, engines, roofs, presets, and the quick reader."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from tinygpt_lib import (
    CharTokenizer,
    generate,
    load_checkpoint,
    save_checkpoint,
    train,
)
from tinygpt_lib import speed as speed_module
from tinygpt_lib.generation import KVCache
from tinygpt_lib.modern_parts import PARTS
from tinygpt_lib.runs import fast as fast_module
from tinygpt_lib.runs.models import new_model
from tinygpt_lib.runs.presets import PRESETS
from tinygpt_lib.runs.run import SavedRun
from tinygpt_lib.runs.settings import ENGINES, OPTIMIZERS, TrainConfig
from tinygpt_lib.speed import (
    MODERN,
    FastConfig,
    FastGPT,
    FusedAdamW,
    Muon,
    NGramEmbedding,
    newton_schulz,
    step_operations,
)
from tinygpt_lib.training import AdamW

V, WINDOW = 11, 12


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make_model(**settings):
    """A GPT with opinions, in float64: no processor's rounding turns a near-tie."""
    torch.manual_seed(0)
    model = FastGPT(FastConfig(V, WINDOW, 2, 2, 16, **settings)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model.double()


def some_ids(B, T):
    return torch.randint(V, (B, T), generator=seeded())


# Operations


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("feed_forward", ["gelu", "swiglu"])
def test_operations_are_those_that_torch_counts(tie, feed_forward):
    from torch.utils.flop_counter import FlopCounterMode

    config = FastConfig(
        V,
        WINDOW,
        2,
        2,
        16,
        feed_forward=feed_forward,
        tie_weights=tie,
        attention="explicit",
    )
    model, ids = FastGPT(config), some_ids(3, WINDOW)
    with FlopCounterMode(display=False) as counter:
        model(ids).sum().backward()
    counted = counter.get_total_flops() / ids.numel()
    ours = step_operations(model)
    # The explicit attention computes the masked half too: T keys, not (T + 1) / 2.
    attention = ours["attention"] * WINDOW / ((WINDOW + 1) / 2)
    # The first layer's input is an embedding: nothing is left out, it has a slope too.
    assert counted == pytest.approx(ours["matrices"] + attention, rel=1e-6)


def test_a_window_saves_operations():
    full = FastGPT(FastConfig(V, 64, 1, 1, 8))
    narrow = FastGPT(FastConfig(V, 64, 1, 1, 8, attention="sliding", window=4))
    keys = sum(min(t, 4) for t in range(1, 65)) / 64
    assert step_operations(narrow)["attention"] == pytest.approx(12 * 8 * keys)
    assert step_operations(full)["attention"] == 12 * 8 * 65 / 2
    assert step_operations(full, 16)["attention"] == 12 * 8 * 17 / 2


# Newton-Schulz and Muon


@pytest.mark.parametrize("shape", [(8, 8), (8, 32), (3, 8, 20)])
def test_newton_schulz_keeps_directions_and_evens_out_their_sizes(shape):
    x = torch.randn(shape, generator=seeded(), dtype=torch.float64)
    U, _, Vt = torch.linalg.svd(x, full_matrices=False)
    inside = U.mT @ newton_schulz(x) @ Vt.mT  # diagonal, if the directions are kept
    sizes = inside.diagonal(dim1=-2, dim2=-1)
    assert (inside - torch.diag_embed(sizes)).abs().max() < 1e-9
    assert sizes.min() > 0.5 and sizes.max() < 1.3


def test_newton_schulz_takes_zeros_and_any_scale():
    assert newton_schulz(torch.zeros(4, 6)).eq(0).all()
    x = torch.randn(4, 6, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(newton_schulz(1e4 * x), newton_schulz(x))


def svd_step(mean, slope, momentum):
    """The reference: the exact U V^T of Nesterov's look ahead."""
    mean = torch.lerp(mean, slope, 1 - momentum)
    U, _, Vt = torch.linalg.svd(torch.lerp(slope, mean, momentum), full_matrices=False)
    return mean, U @ Vt


@pytest.mark.parametrize(("m", "n"), [(6, 6), (24, 6), (6, 24)])
def test_muon_steps_as_the_exact_decomposition_would(monkeypatch, m, n):
    def exact(x, rounds=5):
        U, _, Vt = torch.linalg.svd(x, full_matrices=False)
        return U @ Vt

    monkeypatch.setattr(speed_module, "newton_schulz", exact)
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(m, n, dtype=torch.float64))
    expected, mean = p.detach().clone(), torch.zeros(m, n, dtype=torch.float64)
    optimizer = Muon([(p, 1)], AdamW([], 1.0), rate=0.1, weight_decay=0.5)
    for _ in range(3):
        p.grad = torch.randn_like(p)
        mean, step = svd_step(mean, p.grad, 0.95)
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * max(1, m / n) ** 0.5 * step
        optimizer.step()
    torch.testing.assert_close(p.detach(), expected)


def test_parts_of_a_matrix_step_as_matrices_of_their_own():
    torch.manual_seed(0)
    whole = nn.Parameter(torch.randn(18, 6))
    parts = [nn.Parameter(t.clone()) for t in whole.detach().chunk(3)]
    together = Muon([(whole, 3)], AdamW([], 1.0))
    apart = Muon([(p, 1) for p in parts], AdamW([], 1.0))
    for _ in range(2):
        whole.grad = torch.randn_like(whole)
        for p, g in zip(parts, whole.grad.chunk(3), strict=True):
            p.grad = g.clone()
        together.step()
        apart.step()
    torch.testing.assert_close(whole.detach(), torch.cat([*parts]).detach())


@pytest.mark.parametrize("feed_forward", PARTS["feed_forward"])
def test_every_parameter_has_one_optimizer(feed_forward):
    model = make_model(feed_forward=feed_forward)
    optimizer = Muon.of(model, TrainConfig())
    matrices = [p for group in optimizer.groups.values() for p, _ in group]
    assert {id(p) for p in matrices} | {id(p) for p in optimizer.others.parameters} == {
        id(p) for p in model.parameters()
    }
    assert len(matrices) == 2 * 4  # two blocks of four matrices
    assert not {id(p) for p in matrices} & {id(p) for p in optimizer.others.parameters}
    parts = sum(parts for group in optimizer.groups.values() for _, parts in group)
    assert parts == 2 * (7 if feed_forward == "swiglu" else 6)


def test_both_rates_follow_the_plan():
    p, q = nn.Parameter(torch.zeros(4, 4)), nn.Parameter(torch.zeros(4))
    optimizer = Muon([(p, 1)], AdamW([q], 0.01), rate=0.2, momentum=0.0)
    moved = []
    for rate in (0.01, 0.005, 0.0):
        optimizer.learning_rate = rate
        before = p.detach().clone()
        p.grad, q.grad = torch.eye(4), torch.ones(4)
        optimizer.step()
        moved.append((p.detach() - before).norm().item())
    assert moved[1] == pytest.approx(moved[0] / 2, rel=1e-4) and moved[2] == 0


def test_muon_learns_more_from_the_same_batches(song):
    losses = {}
    for name in OPTIMIZERS:
        torch.manual_seed(0)
        config = FastConfig(song.tokenizer.vocab_size, 8, 2, 2, 16, zero_outputs=True)
        plan = TrainConfig(steps=60, optimizer=name, eval_every=0)
        history = train(
            FastGPT(config), song.train_ids, song.val_ids, plan, progress=False
        )
        losses[name] = sum(history.losses[-10:]) / 10
    assert losses["muon"] < losses["adamw"]  # by 0.2 to 0.28, over five seeds


def test_muon_stops_and_resumes_bit_for_bit(song, tmp_path):
    def new():
        torch.manual_seed(0)
        return FastGPT(FastConfig(song.tokenizer.vocab_size, 8, 2, 2, 16, dropout=0.1))

    data = song.train_ids, song.val_ids
    plan = TrainConfig(steps=12, optimizer="muon", save_every=5, eval_every=6)
    expected = train(new(), *data, plan, progress=False)

    class StoppedError(Exception):
        pass

    real = Muon.step

    def stop(self):
        if self.others.steps == 7:
            raise StoppedError
        real(self)

    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(Muon, "step", stop)
        train(new(), *data, plan, out=out, tokenizer=song.tokenizer, progress=False)
    other = FastGPT(FastConfig(song.tokenizer.vocab_size, 8, 2, 2, 16, dropout=0.1))
    resumed = train(
        other,
        *data,
        plan,
        out=out,
        tokenizer=song.tokenizer,
        resume=True,
        progress=False,
    )
    assert resumed.losses == expected.losses
    assert resumed.evaluations == expected.evaluations


def test_zero_outputs_begin_as_no_blocks_at_all():
    torch.manual_seed(0)
    model, ids = (
        FastGPT(FastConfig(V, WINDOW, 2, 2, 16, zero_outputs=True)),
        some_ids(2, 5),
    )
    with torch.no_grad():
        torch.testing.assert_close(model(ids), model.read_out(model.embed(ids)))


def test_adamw_in_one_pass_takes_the_same_steps():
    torch.manual_seed(0)
    shapes = [(7, 5), (5,), (), (0, 3), (4, 3, 2), (6, 6)]
    begin = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    optimizers = [
        kind([nn.Parameter(p.clone()) for p in begin], 0.01, weight_decay=0.5)
        for kind in (AdamW, FusedAdamW)
    ]
    for step in range(6):
        slopes = [torch.randn_like(p) for p in begin]
        for optimizer in optimizers:
            optimizer.learning_rate = 0.01 / (step + 1)
            for p, grad in zip(optimizer.parameters, slopes, strict=True):
                p.grad = grad.clone()
            optimizer.parameters[-1].grad = None  # it stays where it is
            optimizer.step()
        if step == 2:  # each goes on with what the other one remembers
            states = [
                {name: t.clone() for name, t in optimizer.state_dict().items()}
                for optimizer in optimizers
            ]
            for optimizer, state in zip(optimizers, reversed(states), strict=True):
                optimizer.load_state_dict(state)
    pairs = list(zip(*(optimizer.parameters for optimizer in optimizers), strict=True))
    for ours, fused in pairs:
        torch.testing.assert_close(ours, fused, rtol=1e-12, atol=1e-12)
    assert torch.equal(pairs[-1][1], begin[-1])
    assert not torch.equal(pairs[0][1], begin[0])
    FusedAdamW([nn.Parameter(torch.ones(2))]).step()  # no slopes at all


def test_a_straight_cooldown_is_straight():
    from tinygpt_lib.training import learning_rate_at

    config = TrainConfig(
        steps=100, warmup=0.0, cooldown=0.5, cooldown_shape="linear", learning_rate=1.0
    )
    rates = [learning_rate_at(step, config) for step in range(100)]
    assert rates[:50] == [1.0] * 50
    assert rates[51:] == pytest.approx([(100 - s) / 50 for s in range(51, 100)])
    with pytest.raises(ValueError, match="cooldown_shape is 'cubic'"):
        TrainConfig(cooldown_shape="cubic")


# Engines and presets


def test_a_run_may_go_on_with_another_engine(song, tmp_path, monkeypatch):
    monkeypatch.setattr(fast_module, "has_bfloat16", lambda device: True)
    data, out = (song.train_ids, song.val_ids), tmp_path / "run"
    given = {"out": out, "tokenizer": song.tokenizer, "progress": False}
    plan = TrainConfig(steps=4, save_every=2, eval_every=0, engine="bfloat16")

    def stop_at_3(run, *batch):
        if run.step == 3:
            raise KeyboardInterrupt
        return learn(run, *batch)

    learn = SavedRun.learn
    config = FastConfig(song.tokenizer.vocab_size, 8, 1, 1, 8)
    monkeypatch.setattr(SavedRun, "learn", stop_at_3)
    with pytest.raises(KeyboardInterrupt):
        train(FastGPT(config), *data, plan, **given)
    monkeypatch.undo()
    monkeypatch.setattr(fast_module, "has_bfloat16", lambda device: False)
    with pytest.raises(ValueError, match="engine 'bfloat16' would be slower"):
        train(FastGPT(config), *data, plan, resume=True, **given)
    history = train(
        FastGPT(config), *data, replace(plan, engine="eager"), resume=True, **given
    )
    assert len(history.losses) == 4


def test_bfloat16_is_near_float32_and_gives_float32(monkeypatch):
    monkeypatch.setattr(fast_module, "has_bfloat16", lambda device: True)
    model, ids = make_model().float(), some_ids(2, WINDOW)
    near = ENGINES["bfloat16"](model, TrainConfig())(ids)
    exact = model(ids)
    assert near.dtype == torch.float32
    assert 0 < (near - exact).abs().max() < 0.05 * exact.abs().max()
    near.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize(
    "settings",
    [{}, MODERN, {**MODERN, "norm": "layer", "qk_norm": "layer"}],
    ids=["Part I", "modern", "best"],
)
def test_the_compiled_engine_learns_the_same(song, monkeypatch, settings):
    # Without writing C++, which takes a minute: the program that torch traced is run.
    # All of the model has to be in it: with fullgraph whatever is left out is an error.
    real = partial(torch.compile, backend="eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", real)
    monkeypatch.setattr(fast_module.shutil, "which", lambda name: name)
    losses = []
    for engine in ("eager", "compiled"):
        torch.manual_seed(0)
        model = FastGPT(FastConfig(song.tokenizer.vocab_size, 8, 1, 1, 8, **settings))
        plan = TrainConfig(steps=3, engine=engine, eval_every=0)
        data = song.train_ids, song.val_ids
        losses.append(train(model, *data, plan, progress=False).losses)
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.parametrize("name", ["speedrun", "cpu", "best"])
def test_presets_train_save_and_load(song, tmp_path, name):
    model_config, config = PRESETS[name](song.tokenizer.vocab_size)
    config.steps, config.batch_size = 2, 2
    out = tmp_path / "run"
    ids = song.train_ids.repeat(10), song.val_ids
    train(
        FastGPT(model_config),
        *ids,
        config,
        out=out,
        tokenizer=song.tokenizer,
        progress=False,
    )
    model, tokenizer = load_checkpoint(out)
    prompt = tokenizer.encode(song.text[:3])[None]
    text, uncached = (
        generate(model, prompt, 8, temperature=0, use_cache=use)
        for use in (True, False)
    )
    assert torch.equal(text, uncached)


# Tables of n-grams


def ngram_model(**settings):
    return make_model(embedding="ngrams", position="rotary", **settings)


def test_an_ngram_embedding_is_the_sum_of_its_rows():
    torch.manual_seed(0)
    embedding = NGramEmbedding(torch.randn(V, 4), 0.0).double()
    for table in embedding.tables:
        nn.init.normal_(table)
    assert [len(t) for t in embedding.tables] == [12**2, 12**3, NGramEmbedding.ROWS]
    ids = some_ids(2, 9)
    whole = embedding(ids) + embedding.n_grams(ids)
    for start in range(1, 9):
        pieces = embedding.n_grams(ids, start)
        torch.testing.assert_close(pieces, embedding.n_grams(ids)[:, start:])
    for text, vectors in zip(ids.tolist(), whole, strict=True):
        padded = [V, V, V, *text]
        for i, vector in enumerate(vectors):
            one, *earlier = reversed(padded[i : i + 4])
            expected, number = embedding.weight[one].clone(), one
            for table, before in zip(embedding.tables, earlier, strict=True):
                number = number * (V + 1) + before
                expected += table[number % len(table)]
            torch.testing.assert_close(vector, expected)


def test_tables_of_ngrams_say_nothing_at_first():
    ids = some_ids(2, WINDOW)
    logits = []
    for embedding in ("token", "ngrams"):
        torch.manual_seed(0)
        config = FastConfig(V, WINDOW, 2, 2, 16, embedding=embedding)
        logits.append(FastGPT(config)(ids))
    assert torch.equal(*logits)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("settings", [{}, {"attention": "sliding", "window": 4}])
def test_ngrams_reach_over_the_pieces_that_a_cache_is_given(n, settings):
    model, ids = ngram_model(**settings), some_ids(3, WINDOW)
    cache = KVCache(model)
    with torch.no_grad():
        whole = model(ids)
        for end in range(n, WINDOW + 1, n):
            logits = cache.read(ids[:, :end])
            torch.testing.assert_close(logits, whole[:, end - 1], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("prompt", [1, 2, 5, WINDOW + 3])
@pytest.mark.parametrize("settings", [{}, {"attention": "sliding", "window": 4}])
def test_ngrams_write_the_same_with_and_without_a_cache(prompt, settings):
    model, ids = ngram_model(**settings), some_ids(2, prompt)
    texts = [
        generate(model, ids, 2 * WINDOW, use_cache=use, generator=seeded(1))
        for use in (True, False)
    ]
    assert torch.equal(*texts)


def test_muon_leaves_tables_of_ngrams_to_adamw():
    model = ngram_model()
    optimizer = Muon.of(model, TrainConfig(optimizer="muon"))
    others = {id(p) for p in optimizer.others.parameters}
    assert all(id(t) in others for t in model.token_embedding.tables)


def test_a_model_with_ngrams_comes_back_from_its_checkpoint(tmp_path):
    tokenizer = CharTokenizer("abcdefghijk")
    model, ids = new_model(ngram_model().config), some_ids(2, WINDOW)
    save_checkpoint(tmp_path / "run", model, tokenizer)
    again, _ = load_checkpoint(tmp_path / "run")
    assert torch.equal(again(ids), model(ids))
