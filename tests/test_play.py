"""The live page in a browser: numbers and text as torch's, and no text that acts."""

import base64
import errno
import json
import os
import random
import re
import webbrowser
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tinygpt_lib.anomalies import END
from tinygpt_lib.commands import main
from tinygpt_lib.generation import pick
from tinygpt_lib.gpt import GPTConfig
from tinygpt_lib.representations import attention_maps, hidden_states
from tinygpt_lib.runs import page as pages
from tinygpt_lib.runs.checkpoints import load_checkpoint, save_checkpoint
from tinygpt_lib.runs.detectors import AnomalyDetector
from tinygpt_lib.runs.models import new_model
from tinygpt_lib.runs.page import page_of, write_page
from tinygpt_lib.runs.sampling import generate
from tinygpt_lib.speed import FastConfig, FastGPT, NGramEmbedding
from tinygpt_lib.text import CharTokenizer
from tinygpt_lib.tokenizers import BPETokenizer, ByteTokenizer, WordTokenizer

SITE_MODEL = Path(__file__).resolve().parent.parent / "site/model"
TINY = FastConfig(29, block_size=16, n_layer=2, n_head=4, n_embd=24)


def random_model(seed=0, config=TINY, loud=1.0):
    """A fresh model, in which nothing is 0 or 1 by luck."""
    torch.manual_seed(seed)
    model = new_model(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
        for module in (getattr(model, "head", None), model.token_embedding):
            if module is not None:
                module.weight.mul_(loud)
    return model


def number(percent):
    """What is shown as 12% or <0.1%."""
    return float(percent.strip("<%"))


class Page:
    """An open page that has done nothing forbidden so far."""

    def __init__(self, browser, path, **settings):
        self.context = browser.new_context(**settings)
        self.tab = self.context.new_page()
        self.wrong = []
        self.tab.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.tab.on("dialog", lambda dialog: self.wrong.append(dialog.message))
        self.tab.on("console", lambda message: self.wrong.append(message.text))
        self.tab.on("request", lambda asked: self.wrong.append(asked.url))
        self.tab.goto(path.as_uri())
        assert self.wrong.pop(0) == path.as_uri()  # the one request, for itself
        self.tab.set_default_timeout(300_000)  # a machine may be busy

    def run(self, function, *given):
        """What a function in JavaScript makes of plain data; all of it goes as JSON."""
        call = f"(given) => JSON.stringify(({function})(...JSON.parse(given)) ?? null)"
        return json.loads(self.tab.evaluate(call, json.dumps(given)))

    def text(self):
        return self.tab.input_value("#text")

    def type(self, text):
        """Puts in a text, which the page has taken when this returns."""
        # Not while it writes: fill() selects and then replaces, in two steps.
        self.tab.get_by_role("button", name="Write on").wait_for()
        self.tab.fill("#text", text)
        self.tab.locator("#text").dispatch_event("change")

    def write(self, n, **settings):
        """Lets the model write on; the whole text."""
        self.tab.fill("#count", str(n))
        for name, value in settings.items():
            self.set(name, value)
        self.tab.click("#write")
        self.tab.get_by_role("button", name="Write on").wait_for()
        return self.text()

    def set(self, name, value):
        self.tab.locator(f"#{name}").evaluate(
            "(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); }",
            str(value),
        )

    def bars(self):
        """What the bars show: {token: (percent drawn, percent by the model)}."""
        labels = self.tab.locator("#bars button").evaluate_all(
            "all => all.map((e) => e.getAttribute('aria-label'))"
        )
        found = {}
        for label in labels:
            name, rest = label.rsplit(": ", 1)
            drawn, by_model = rest.split(", by the model ")
            by_model = by_model.split(";")[0]
            found[name] = number(drawn), number(by_model)
        return found


@pytest.fixture(scope="module")
def opened(browser, tmp_path_factory):
    """Opens the page of a folder, or of a model and a tokenizer."""
    opened_pages = []

    def open_page(model, tokenizer=None, name="run", **settings):
        folder = model
        if tokenizer is not None:
            folder = tmp_path_factory.mktemp("play") / name
            save_checkpoint(folder, model, tokenizer, {"text": "mine.txt"})
        path = tmp_path_factory.mktemp("page") / "page.html"
        write_page(folder, path)
        opened_pages.append(Page(browser, path, **settings))
        return opened_pages[-1]

    yield open_page
    for page in opened_pages:
        assert page.wrong == []
        page.context.close()


@pytest.fixture(scope="module")
def site_page(opened):
    """The page of the site's model."""
    return opened(SITE_MODEL)


# --- The same numbers as torch's ---

BY_ITSELF = [
    {},
    {"bias": False},
    {"norm": "rms"},
    *({"feed_forward": name} for name in ("gelu_exact", "relu", "relu2", "swiglu")),
    *({"position": name} for name in ("rotary", "sinusoidal", "none")),
    {"position": "rotary", "rotary_base": 50.0},
    {"position": "rotary", "rotary_scale": 3.0},
    {"qk_norm": "layer"},
    {"qk_norm": "rms"},
    {"n_kv_head": 1},
    {"n_kv_head": 2},
    {"tie_weights": True},
    {"zero_outputs": True},
    {"attention": "explicit"},
    {"attention": "sliding", "window": 5},
    {"embedding": "ngrams"},
    {"embedding": "ngrams", "tie_weights": True},
]
CHOICES = {
    "bias": (True, False),
    "norm": ("layer", "rms"),
    "feed_forward": ("gelu", "gelu_exact", "relu", "relu2", "swiglu"),
    "position": ("learned", "rotary", "sinusoidal", "none"),
    "qk_norm": ("none", "layer", "rms"),
    "n_kv_head": (0, 1, 2),
    "tie_weights": (True, False),
    "attention": ("fused", "sliding"),
    "embedding": ("token", "ngrams"),
}


def drawn_together(n):
    """Configs with all switches as chance has it."""
    dice = random.Random(0)
    for _ in range(n):
        drawn = {name: dice.choice(values) for name, values in CHOICES.items()}
        yield drawn | {"window": 5 * (drawn["attention"] == "sliding")}


def handed_over(models):
    """Models as a page holds them."""
    described, weights = pages.packed(models)
    return [described, base64.b64encode(weights).decode()]


ALL_AT_ONCE = """(models, weights, ids) => unpacked(models, weights).map((model) => {
    const { logits, states, maps } = model.look(ids);
    const list = (x) => [...x];
    const cached = ids.map((_, t) => list(model.after(ids.slice(0, t + 1)))).flat();
    return { logits: list(logits), states: states.map(list), cached,
      maps: maps.map((heads) => heads.map((rows) => rows.map(list))) };
})"""


def test_logits_states_and_attention_are_torchs_for_every_switch(
    site_page, monkeypatch
):
    monkeypatch.setattr(NGramEmbedding, "ROWS", 97)  # it takes time to hand them over
    configs = [replace(TINY, **given) for given in [*BY_ITSELF, *drawn_together(30)]]
    models = [random_model(i, config) for i, config in enumerate(configs)]
    models.append(random_model(99, GPTConfig(29, 16, 2, 4, 24)).double())
    ids = torch.randint(29, (1, 16), generator=torch.Generator().manual_seed(1))
    found = site_page.run(ALL_AT_ONCE, *handed_over(models), ids[0].tolist())
    for model, got in zip(models, found, strict=True):
        model = model.double()
        with torch.no_grad():
            logits, states = model(ids)[0], hidden_states(model, ids)
            maps = attention_maps(model, ids)
        for name in ("logits", "cached"):
            mine = torch.tensor(got[name]).view_as(logits)
            assert (mine - logits).abs().max() < 1e-4, (name, model.config)
        for mine, theirs in zip(got["states"], states, strict=True):
            assert (torch.tensor(mine).view_as(theirs) - theirs).abs().max() < 1e-4
        for heads, theirs in zip(got["maps"], maps, strict=True):
            for mine, wanted in zip(heads, theirs[0], strict=True):
                for t, row in enumerate(mine):
                    assert len(row) == t + 1 and abs(sum(row) - 1) < 1e-5
                    assert (torch.tensor(row) - wanted[t, : t + 1]).abs().max() < 1e-5


def test_float16_becomes_the_same_numbers(site_page):
    model = random_model().half()
    tensors = {"special": torch.tensor([0.0, -0.0, 6e-8, -6e-5, 65504, 1 / 3]).half()}
    model.state_dict = lambda: tensors
    found = site_page.run(
        "(models, weights) => [...unpacked(models, weights)[0].weights.special.data]",
        *handed_over([model]),
    )
    assert found == tensors["special"].tolist()


NEXT_ONES = """(models, weights, texts, n) =>
  unpacked(models, weights).map((model, i) => {
    const places = [...texts[i].keys()].slice(n);
    return places.map((t) => {
      const logits = model.after(texts[i].slice(0, t));
      const [first, second] = ranked(logits);
      const picked = pick(chances(logits, { temperature: 0 }));
      return [picked, logits[first] - logits[second]];
    });
  })"""
PAST_THE_WINDOW = [
    {},
    {"embedding": "ngrams", "tie_weights": True},
    {"position": "rotary", "n_kv_head": 2, "qk_norm": "rms"},
    *(
        {"attention": "sliding", "window": 5, "position": position}
        for position in ("learned", "rotary", "sinusoidal", "none")
    ),
]


def test_greedy_text_is_generates_past_the_windows_end(site_page, monkeypatch):
    """The likeliest is ahead by more than any rounding: the seed sees to it."""
    monkeypatch.setattr(NGramEmbedding, "ROWS", 97)
    configs = [replace(TINY, **given) for given in PAST_THE_WINDOW]
    models = [random_model(4, config) for config in configs]
    begin = torch.randint(29, (1, 7), generator=torch.Generator().manual_seed(2))
    n = TINY.block_size - 7 + 100
    texts = [generate(m, begin, n, temperature=0.0)[0].tolist() for m in models]
    found = site_page.run(NEXT_ONES, *handed_over(models), texts, 7)
    for config, text, next_ones in zip(configs, texts, found, strict=True):
        picked, ahead = zip(*next_ones, strict=True)
        assert min(ahead) > 1e-3, config  # choose another seed
        assert list(picked) == text[7:], config


def test_the_sites_model_writes_what_torch_writes(site_page):
    model, tokenizer = load_checkpoint(SITE_MODEL)
    ids = tokenizer.encode("ROMEO:\nO, ")[None]
    wanted = generate(model.float(), ids, 154, temperature=0.0)[0]
    site_page.type("ROMEO:\nO, ")
    assert site_page.write(154, temperature=0) == tokenizer.decode(wanted)
    assert "154 tokens, " in site_page.tab.inner_text("#speed")


def test_the_sites_model_is_small_and_good():
    files = list(SITE_MODEL.iterdir())
    assert sum(path.stat().st_size for path in files) < 2e6
    noted = json.loads((SITE_MODEL / "config.json").read_text(encoding="utf-8"))
    assert noted["about"]["nats per character"] < 1.85


def test_chances_are_those_that_pick_draws_by(site_page):
    logits = torch.randn(40, generator=torch.Generator().manual_seed(0)) * 2
    cases = [
        (1.0, None, None),
        (0.5, 7, None),
        (1.5, None, 0.6),
        (0.8, 5, 0.9),
        (2, 1, 1),
    ]
    for temperature, top_k, top_p in cases:
        settings = {"temperature": temperature, "topK": top_k or 99, "topP": top_p or 1}
        shares = site_page.run(
            "(logits, settings) => [...chances(logits, settings)]",
            logits.tolist(),
            settings,
        )
        assert sum(shares) == pytest.approx(1)
        drawn = (
            pick(logits.expand(4000, -1), temperature, top_k, top_p).unique().tolist()
        )
        allowed = [i for i, share in enumerate(shares) if share > 0]
        assert {*drawn} <= {*allowed}
        whole = (logits / temperature).softmax(0).double()[allowed]
        mine = torch.tensor([shares[i] for i in allowed])
        assert (mine - whole / whole.sum()).abs().max() < 1e-6
        if top_k == 5:
            assert len(allowed) <= 5
    one = site_page.run(
        "(logits) => [...chances(logits, { temperature: 0 })]", [0.5, 2, 2]
    )
    assert one == [0, 1, 0]


# --- The same tokens as Python's ---

NASTY = [
    "</script><script>document.title = 'taken'</script>",
    "<img src=x onerror=\"alert('taken')\">",
    "\u202eevil\u202c \u0627\u0644\u0633\u0644\u0627\u0645 \u05e9\u05dc\u05d5\u05dd",
    "\ufeffx\ufeff \x00\x1b[2J\x85\x1c \u2028\u2029",
    "na\u00efve cafe\u0301 \U0001f44d\U0001f3fd \U0001d7d8 \u0663\u00bd\u2167 \u6f22",
    "I'll  we've\t\n\n  they'd 'tis _x_ 3.14  ",
    "",
]
POOL = "aZ\u00e9\u03b29\u0663\u00bd'stlve  \t\n\r\x85\x1c\xa0\ufeff\u3000_-<."
POOL += "\u0301\u6f22\U0001f44d"


def some_texts():
    dice = random.Random(0)
    lengths = (dice.randrange(1, 30) for _ in range(400))
    return NASTY + ["".join(dice.choices(POOL, k=n)) for n in lengths]


TOKENIZERS = {
    "char": lambda text: CharTokenizer.from_text(text),
    "char with unk": lambda text: CharTokenizer.from_text(
        "aZ9 '\n<\ufffd", unk="\ufffd"
    ),
    "byte": lambda text: ByteTokenizer(),
    "bpe": lambda text: BPETokenizer.from_text(text, 500),
    "bpe of others": lambda text: BPETokenizer(
        BPETokenizer.from_text(text, 300).merges, [*range(255, -1, -1)], ["<|end|>"]
    ),
    "word": lambda text: WordTokenizer.from_text(text, 60),
}
BOTH_WAYS = """(data, texts, lists) => {
    const tokenizer = new TOKENIZERS[data.type](data);
    const ids = texts.map((text) => tokenizer.encode(text));
    const names = [...Array(tokenizer.size).keys()].map((id) => tokenizer.name(id));
    const back = lists.map((list) => tokenizer.decode(list));
    return { ids, names, size: tokenizer.size, back };
}"""


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_tokens_are_pythons(site_page, kind):
    texts = some_texts()
    tokenizer = TOKENIZERS[kind]("".join(texts))
    dice = random.Random(1)
    lists = [dice.choices(range(tokenizer.vocab_size), k=20) for _ in range(200)]
    found = site_page.run(BOTH_WAYS, tokenizer.to_dict(), texts, lists)
    assert found["size"] == tokenizer.vocab_size
    assert found["ids"] == [tokenizer.encode(text).tolist() for text in texts]
    assert found["back"] == [tokenizer.decode(ids) for ids in lists]
    assert all(isinstance(name, str) for name in found["names"])


def test_a_character_of_text_that_is_none_is_refused_as_in_python(site_page):
    refused = """(data) => {
        try { new TOKENIZERS[data.type](data).encode("ab" + "\\ud83d"); }
        catch (error) { return error.message; }
    }"""
    for make in TOKENIZERS.values():
        tokenizer = make("ab")
        told = site_page.run(refused, tokenizer.to_dict())
        try:
            tokenizer.encode("ab\ud83d")
        except ValueError:
            assert "position 2" in told
        else:
            assert told is None


@pytest.mark.parametrize("kind", ["char with unk", "byte", "bpe of others", "word"])
def test_a_page_of_each_tokenizer_shows_and_writes(opened, kind):
    tokenizer = TOKENIZERS[kind]("".join(some_texts()))
    config = replace(TINY, vocab_size=tokenizer.vocab_size)
    model = random_model(3, config)
    page = opened(model, tokenizer)
    ids = tokenizer.encode("aZ 9")
    wanted = generate(model, ids[None], 5, temperature=0.0)[0]
    page.type("aZ 9")
    shown = tokenizer.decode(wanted).replace("\r\n", "\n").replace("\r", "\n")
    assert (
        page.write(5, temperature=0) == shown
    )  # text fields have one kind of line end
    api = """(text) => {
        const ids = tinygpt.encode(text), layers = tinygpt.attention(ids).length;
        const logits = tinygpt.logits(ids).map((row) => [...row]);
        return [ids, tinygpt.decode(ids), logits, layers];
    }"""
    mine, text, logits, layers = page.run(api, "aZ 9")
    assert (mine, text, layers) == (ids.tolist(), tokenizer.decode(ids), 2)
    with torch.no_grad():
        assert (torch.tensor(logits) - model(ids[None])[0]).abs().max() < 1e-4


def test_what_can_not_be_read_is_an_error_of_the_api(site_page):
    refused = (
        "(ids) => { try { tinygpt.logits(ids); } catch (e) { return e.message; } }"
    )
    assert "at least one" in site_page.run(refused, [])
    assert "0..64" in site_page.run(refused, [65])
    assert "0..64" in site_page.run(refused, [0.5])
    assert "block_size 64" in site_page.run(refused, [0] * 65)


# --- The page ---


def test_the_bars_follow_temperature_top_k_and_top_p(site_page):
    site_page.type("ROMEO:\nI lo")
    model, tokenizer = load_checkpoint(SITE_MODEL)
    logits = model.float()(tokenizer.encode("ROMEO:\nI lo")[None])[0, -1]
    best = logits.softmax(0).topk(2)
    names = [tokenizer.decode([i]) for i in best.indices.tolist()]
    for name, value, shares in (
        ("temperature", 1, best.values.tolist()),
        ("temperature", 0, [1, 0]),
        ("temperature", 0.5, (logits / 0.5).softmax(0).topk(2).values.tolist()),
        ("top-k", 1, [1, 0]),
        ("top-k", 65, (logits / 0.5).softmax(0).topk(2).values.tolist()),
        ("top-p", 0.05, [1, 0]),
    ):
        site_page.set(name, value)
        bars = site_page.bars()
        assert [*bars][:2] == names
        for token, share, own in zip(names, shares, best.values.tolist(), strict=True):
            assert bars[token][0] == pytest.approx(100 * share, abs=0.51)
            assert bars[token][1] == pytest.approx(100 * own, abs=0.51)
    site_page.set("top-p", 1)


def test_a_bar_can_be_taken_and_the_own_text_comes_back(site_page):
    site_page.type("ROMEO:\nI lo")
    name = next(iter(site_page.bars()))
    site_page.tab.locator("#bars button").first.click()
    assert site_page.text() == f"ROMEO:\nI lo{name}"
    site_page.tab.keyboard.press("Tab")
    site_page.tab.locator(
        "#token-5"
    ).click()  # behind the colon, instead of all the rest
    site_page.tab.locator("#bars button").first.click()
    assert site_page.text() == "ROMEO:\n"
    site_page.tab.click("#back")
    assert site_page.text() == "ROMEO:\nI lo"


def test_who_types_while_it_writes_keeps_what_he_typed(site_page):
    site_page.type("ROMEO:")
    site_page.tab.fill("#count", "10000")
    site_page.tab.click("#write")
    site_page.tab.wait_for_timeout(200)
    put = "(e) => { e.value = 'JULIET:'; e.dispatchEvent(new Event('input')); }"
    site_page.tab.locator("#text").evaluate(put)  # at once: fill() takes two steps
    site_page.tab.get_by_role("button", name="Write on").wait_for()
    site_page.tab.wait_for_timeout(200)
    assert site_page.text() == "JULIET:"
    assert site_page.tab.locator("#tokens span").count() == 7
    site_page.tab.fill("#text", "ROMEO:\n")  # and writes on from that, at once
    site_page.tab.fill("#count", "1")
    site_page.tab.press("#text", "Control+Enter")
    site_page.tab.get_by_text("1 tokens, ").wait_for()
    assert len(site_page.text()) == 8


def test_attention_is_shown_over_the_text(site_page):
    site_page.type("ROMEO:\nI love")
    tab = site_page.tab
    model, tokenizer = load_checkpoint(SITE_MODEL)
    maps = attention_maps(model.float(), tokenizer.encode("ROMEO:\nI love")[None])

    def lit():
        weights = (
            "all => all.map((e) => parseFloat(e.style.getPropertyValue('--weight')))"
        )
        return [
            (x / 10) ** 2 for x in tab.locator("#tokens span").evaluate_all(weights)
        ]

    def expected(layer, head, t):
        row = [100 * w for w in maps[layer][0, head, t].tolist()]
        return pytest.approx(row, abs=0.51)

    assert lit() == expected(2, 0, 12)
    tab.hover("#token-4")
    assert lit() == expected(2, 0, 4)
    tab.hover("h1")
    assert lit() == expected(2, 0, 12)
    tab.get_by_role("button", name="layer 2, head 3").click()
    tab.hover("h1")
    assert lit() == expected(1, 2, 12)
    tab.focus("#tokens")
    for key, t in (("ArrowLeft", 11), ("Home", 0), ("ArrowRight", 1), ("End", 12)):
        tab.keyboard.press(key)
        assert lit() == expected(1, 2, t)
    tab.get_by_role("button", name="layer 3, head 1").click()


def test_each_layer_says_what_its_state_read_out_says(site_page):
    site_page.type("ROMEO:\nI love")
    model, tokenizer = load_checkpoint(SITE_MODEL)
    model = model.float()
    states = hidden_states(model, tokenizer.encode("ROMEO:\nI love")[None])
    rows = site_page.tab.locator("#lens tr")
    assert rows.count() == len(states) == 4
    for i, state in enumerate(states):
        best = model.read_out(state)[0, -1].softmax(-1).topk(1)
        cell = rows.nth(i).locator("td").first.inner_text()
        assert number(cell.rsplit(" ", 1)[1]) == pytest.approx(
            100 * best.values.item(), abs=0.51
        )


def test_everything_has_a_name_and_works_by_keyboard(site_page):
    tab = site_page.tab
    unnamed = """() => [...document.querySelectorAll("input, textarea, select, button")]
        .filter((e) => e.checkVisibility() && !e.labels?.length)
        .filter((e) => !e.ariaLabel && !e.textContent.trim()).map((e) => e.outerHTML)"""
    assert site_page.run(unnamed) == []
    site_page.type("ROMEO:")
    site_page.set("temperature", 0)
    tab.fill("#count", "3")
    tab.focus("#text")
    tab.keyboard.press("Control+Enter")
    tab.get_by_text("3 tokens, ").wait_for()
    assert len(site_page.text()) == 9
    reached = set()
    for _ in range(60):
        tab.keyboard.press("Tab")
        reached.add(site_page.run("() => document.activeElement.id"))
    wanted = {"write", "count", "back", "tokens", "temperature", "top-k", "top-p"}
    assert wanted <= reached


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(opened, scheme):
    phone = {"viewport": {"width": 360, "height": 640}, "color_scheme": scheme}
    page = opened(SITE_MODEL, **phone)
    page.write(40)
    assert page.run("() => document.documentElement.scrollWidth") <= 360


def test_hostile_text_is_text(opened, tmp_path):
    words = [*NASTY[:3], "\u202e", "onerror", " <b>"]
    tokenizer = WordTokenizer(words)
    model = random_model(0, replace(TINY, vocab_size=tokenizer.vocab_size))
    page = opened(model, tokenizer, name="<script>alert(1)<")
    for text in (*NASTY, "x" * 10_000, "</textarea>" * 1000):
        page.type(text)
        page.write(3)
        for i in range(len(words) + 1):  # the vocabulary is written, too
            page.run("(id) => tinygpt.decode([id])", i)
    page.run("() => { document.getElementById('text').value = 'a\\ud83db \\udc00'; }")
    page.tab.locator("#text").dispatch_event("input")
    page.tab.wait_for_timeout(200)
    page.write(2)
    inside = "() => document.querySelectorAll('main img, main script, main b').length"
    assert page.run(inside) == page.tab.locator("#heads b").count() == 2
    assert page.tab.title() == page.tab.inner_text("h1") == "<script>alert(1)<"


def test_characters_that_a_model_does_not_know_are_left_out_and_named(site_page):
    site_page.type("ROMEO: \u00e9\u6f22\u202e")
    said = site_page.tab.inner_text("#left-out")
    assert "\u00e9 \u6f22 \\u{202e}" in said
    site_page.write(2)
    assert site_page.text().startswith("ROMEO: ")


# --- Detectors ---


def taught_nothing(ids, config, seed):
    """A model of random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        small = replace(config, block_size=8, n_layer=1, n_head=2, n_embd=16)
        return FastGPT(small).eval()


@pytest.fixture(scope="module")
def detector():
    dice = random.Random(0)
    events = ["open <id>", "read", "write (<*>) to 1", "write (<*>) to 2", "close"]
    sessions = [["open <id>", *dice.choices(events, k=3), "close"] for _ in range(60)]
    return AnomalyDetector.fit(
        sessions,
        learn=taught_nothing,
        false_alarms=0.1,
        about={"kinds": {"masks": {"<id>": r"\bblk_\d+\b"}}},
    )


CELLS = """() => [...document.querySelectorAll("#events tr")].map(
    (row) => [...row.cells].map((cell) => cell.innerText))"""


def test_a_detector_explains_as_in_python(opened, detector, tmp_path):
    detector.save(tmp_path / "gate")
    page = opened(tmp_path / "gate")
    sessions = [
        ["open <id>", "read", "close"],
        ["read"],
        [*["open <id>", "write (<*>) to 2", "read"] * 7, "close"],  # read in windows
        ["open <id>", "<script>alert(1)</script>", "close"],
    ]
    for session in sessions:
        lines = [e.replace("<id>", "blk_17").replace("<*>", "7b") for e in session]
        page.tab.fill("#session", "\n".join(lines))
        rows = page.run(CELLS)[1:]
        reports = detector.explain(session)
        assert len(rows) == len(reports) == len(session) + 1
        for row, line, report in zip(rows, [*lines, END], reports, strict=True):
            event, nats, _, rank, expected = row
            assert event == line.replace("blk_17", "<id>").replace("7b", "<*>")
            assert float(nats) == pytest.approx(report.surprisal, abs=0.0051)
            assert rank == (str(report.rank) if report.known else "unknown")
            for told, (name, share) in zip(
                expected.split("\n"), report.expected, strict=True
            ):
                assert told.startswith(name)
                shown = number(told.rsplit(" ", 1)[1])
                assert shown == pytest.approx(100 * share, abs=0.51)
        verdict = page.tab.inner_text("#verdict")
        assert ("never came" in verdict) == any("<script>" in line for line in lines)
    page.tab.click("#another")
    written = page.tab.input_value("#session").split("\n")
    assert {*written} <= {"", *detector.tokenizer.events}
    assert page.tab.locator("#events tr").count() >= 2

    # How odd a session is by its surprise.
    session = ("open <id>", "read", "close")
    (reading,) = detector.read([session])
    nats = detector.surprise(reading, True)
    at_least = sum(
        int((kept >= score - 1e-3).sum())
        for kept, score in zip(detector.held_out[True], nats, strict=True)
    )
    page.tab.fill("#session", "\n".join(session))
    said = page.tab.inner_text("#verdict")
    (share,) = re.findall(r"as odd as ([\d.]+)% of", said)
    assert float(share) == pytest.approx(100 * (1 + at_least) / 61, abs=0.51)
    assert said.count("no alarm") == ((1 + at_least) / 61 > 0.05)


# --- The command ---


@pytest.fixture
def run_folder(tmp_path):
    tokenizer = CharTokenizer.from_text("abc\n")
    model = random_model(0, replace(TINY, vocab_size=4))
    save_checkpoint(tmp_path / "mine", model, tokenizer)
    return tmp_path / "mine"


@pytest.fixture
def shown(monkeypatch):
    """A browser that notes what it is asked to open."""
    asked = []
    seen = SimpleNamespace(open=lambda url: asked.append(url) or True)
    monkeypatch.setattr(webbrowser, "get", lambda: seen)
    return asked


def test_the_page_is_written_beside_the_run_and_opened(run_folder, shown, capsys):
    assert main(["play", str(run_folder)]) == 0
    out = run_folder.parent / "mine.html"
    assert shown == [out.as_uri()]
    assert capsys.readouterr().out.startswith(f"{out}: ")
    before = out.read_bytes()
    assert main(["play", str(run_folder), "--no-open"]) == 0  # again, in its place
    assert out.read_bytes() == before and len(shown) == 1
    assert [*run_folder.parent.glob(".*")] == []


def test_the_run_that_one_is_in(run_folder, shown, monkeypatch):
    monkeypatch.chdir(run_folder)
    assert main(["play", "."]) == 0
    assert shown == [(run_folder.parent / "mine.html").as_uri()]


@pytest.mark.parametrize("there", ["none", "of a terminal", "broken"])
def test_without_a_browser_it_is_said_where_the_page_is(
    run_folder, monkeypatch, capsys, there
):
    def get():
        if there == "none":
            raise webbrowser.Error("could not locate runnable browser")
        if there == "broken":
            return SimpleNamespace(open=lambda url: False)
        return webbrowser.GenericBrowser("lynx")

    monkeypatch.delenv("BROWSER", raising=False)
    monkeypatch.setattr(webbrowser, "get", get)
    out = run_folder.parent / "deep/page.html"
    assert main(["play", str(run_folder), "--out", str(out)]) == 0
    assert f"open it yourself: {out.as_uri()}" in capsys.readouterr().out


def refused(capsys, *arguments):
    """The one line that a command ends with which must fail."""
    assert main(["play", *map(str, arguments), "--no-open"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err


def test_what_is_no_page_is_not_overwritten(run_folder, tmp_path, capsys):
    mine = tmp_path / "mine.html"
    mine.write_text("<p>My notes</p>")
    assert "no page of ours" in refused(capsys, run_folder)
    assert mine.read_text() == "<p>My notes</p>"
    (tmp_path / "folder").mkdir()
    assert "no page" in refused(capsys, run_folder, "--out", tmp_path / "folder")
    os.mkfifo(tmp_path / "pipe")
    assert "no page" in refused(capsys, run_folder, "--out", tmp_path / "pipe")
    assert "can't be read" in refused(capsys, tmp_path / "nowhere")


def test_a_link_stays_one(run_folder, tmp_path):
    (tmp_path / "far").mkdir()
    link = tmp_path / "link.html"
    link.symlink_to("far/page.html")
    for _ in range(2):
        write_page(run_folder, link)
        assert link.is_symlink() and (tmp_path / "far/page.html").stat().st_size > 1000


def test_a_full_disk_leaves_the_old_page(run_folder, tmp_path, capsys, monkeypatch):
    out = tmp_path / "page.html"
    write_page(run_folder, out)
    before = out.read_bytes()

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left" in refused(capsys, run_folder, "--out", out)
    assert out.read_bytes() == before
    assert [*tmp_path.glob(".*partial")] == []


def test_what_is_too_large_is_said_before_anything_is_written(
    run_folder, capsys, monkeypatch
):
    monkeypatch.setattr(pages, "LARGEST", 10_000)
    said = refused(capsys, run_folder)
    assert "takes at most" in said
    assert not run_folder.with_name("mine.html").exists()


def test_the_page_says_nothing_of_where_it_was_made(run_folder):
    assert str(run_folder).encode() not in page_of(run_folder)
