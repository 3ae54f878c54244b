"""The site of `make site`: built once, read as files, then opened in a browser."""

import base64
import json
import os
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import tinygpt_lib

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(ROOT.glob("notebooks/[0-9][0-9]_*.ipynb"))
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 360, "height": 800}
# A page of each kind, for what costs seconds on each.
KINDS = "index notebooks/13_scaling_out library/gpt commands search live/index".split()


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The folder of the site, as where it is hosted; no other test needs it built."""
    out = tmp_path_factory.mktemp("a folder") / "site"
    env = {**os.environ, "GITHUB_REPOSITORY": "owner/name"}
    command = [sys.executable, ROOT / "site" / "build.py", out]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="session")
def pages(site):
    """Every page, read: {path: Page}."""
    return {path: Page(path) for path in site.rglob("*.html")}


class Page(HTMLParser):
    """What a page says of links, anchors and pictures."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.images, self.anchors = [], [], [], set()
        self.counts = {}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors.add(attributes.get("id"))
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        if tag == "img":
            self.images.append(attributes)
        if tag in ("img", "script", "iframe") and "src" in attributes:
            self.loads.append(attributes["src"])
        if tag == "link" and "href" in attributes:
            self.loads.append(attributes["href"])
        for name in (attributes.get("class") or "").split():
            self.counts[name] = self.counts.get(name, 0) + 1

    handle_startendtag = handle_starttag


@pytest.fixture
def open_page(browser):
    """Opens a page; what it asks another host for, or complains of, is a failure."""
    faults, contexts = [], []

    def open_page(viewport=WIDE, **settings):
        context = browser.new_context(viewport=viewport, **settings)
        contexts.append(context)
        page = context.new_page()
        page.on(
            "request", lambda request: local(request.url) or faults.append(request.url)
        )
        page.on("pageerror", lambda error: faults.append(f"{page.url}: {error}"))
        page.on("console", lambda said: heard(page, said))
        return page

    def heard(page, said):
        if said.type in ("error", "warning"):
            faults.append(f"{page.url}: {said.text}")

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


def local(url):
    return url.startswith(("file:", "data:", "http://127.0.0.1:"))


# --- As files ---


def test_every_inner_link_and_anchor_leads_somewhere(site, pages):
    lost = []
    for path, page in pages.items():
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            there = path.parent / unquote(parts.path) if parts.path else path
            there = Path(os.path.normpath(there))
            anchors = pages[there].anchors if there in pages else set()
            inside = there.is_relative_to(site) and there.is_file()
            if not inside or (
                parts.fragment and unquote(parts.fragment) not in anchors
            ):
                lost.append(f"{path.relative_to(site)}: {link}")
    assert lost == []


def test_nothing_is_loaded_from_another_host_and_every_picture_has_words(pages):
    loads = [load for page in pages.values() for load in page.loads]
    assert loads and not [load for load in loads if urlsplit(load).netloc]
    images = [image for page in pages.values() for image in page.images]
    assert len(images) > 60 and all(image.get("alt") for image in images)


def test_each_chapter_is_there_as_it_was_executed(site, pages):
    drawn = {path.read_bytes() for path in site.glob("_images/*.png")}
    for path in NOTEBOOKS:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = notebook["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        figures = [o for o in outputs if "image/png" in o.get("data", {})]
        assert {base64.b64decode(o["data"]["image/png"]) for o in figures} <= drawn
        page = pages[site / "notebooks" / f"{path.stem}.html"]
        words = {o["metadata"]["image/png"]["alt"] for o in figures}
        assert words <= {image["alt"] for image in page.images}
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        assert page.counts["prev-page"] == page.counts["next-page"] == 1
        assert page.counts["cell_input"] == len(code)
        hidden = [cell for cell in code if cell["metadata"].get("jupyter")]
        assert page.counts.get("hide", 0) == len(hidden)
        assert (site / "notebooks" / path.name).read_bytes() == path.read_bytes()
        noun = path.stem[3:]
        links = {path.name, f"../_modules/tinygpt_lib/{noun}.html"}
        assert links <= {*page.links}
        assert {"#solutions", f"solutions/{path.stem}.html"} & {*page.links}
        workbook = site / "workbooks" / path.name
        assert (f"../workbooks/{path.name}" in page.links) == workbook.exists()
        host = "https://colab.research.google.com/github/owner/name"
        assert f"{host}/blob/main/notebooks/{path.name}" in page.links


def test_workbooks_come_along(site):
    assert len([*site.glob("workbooks/*.ipynb")]) >= 8


def test_every_public_name_and_every_command_is_explained(site, pages):
    anchors = set().union(*(page.anchors for page in pages.values()))
    things = [getattr(tinygpt_lib, name) for name in tinygpt_lib.__all__]
    names = [f"{t.__module__}.{t.__qualname__}" for t in things if callable(t)]
    assert len(names) > 50 and {*names} <= anchors
    commands = pages[site / "commands.html"].anchors
    assert {"tinygpt-train", "tinygpt-detect-fit", "tinygpt-sample---top-p"} <= commands


def test_it_is_small(site):
    assert sum(p.stat().st_size for p in site.rglob("*") if p.is_file()) < 30e6


def test_what_it_carries_of_others_comes_with_a_licence(site):
    carried = {path.parent.name for path in site.glob("_static/*/LICENSE*")}
    assert carried == {"django-static-mathjax", "furo", "Sphinx"}


def test_a_folder_of_somebody_else_is_not_touched(tmp_path):
    (tmp_path / "mine").write_text("mine")
    command = [sys.executable, ROOT / "site" / "build.py", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "name another folder" in done.stderr
    assert (tmp_path / "mine").read_text() == "mine"


# --- In a browser ---

SET = """MathJax.startup.promise.then(
    () => document.querySelectorAll("mjx-container").length)"""


# What stands out of the window and can't be scrolled there.
CUT = """[...document.querySelectorAll(
    "article :is(p, li, dt, h1, h2, h3, img, pre, code, table, mjx-container)"
)].filter(e => e.getBoundingClientRect().right > innerWidth + 1)
  .filter(e => {
    for (; e.tagName !== "ARTICLE"; e = e.parentElement)
      if (/auto|scroll/.test(getComputedStyle(e).overflowX)) return false;
    return true;
  }).map(e => e.outerHTML.slice(0, 200))"""


def test_no_page_complains_or_is_cut_and_formulas_are_set(site, pages, open_page):
    page, cut = open_page(NARROW), []
    for path, read in pages.items():
        name = path.relative_to(site).with_suffix("").as_posix()
        if name.startswith("_modules/") and name != "_modules/tinygpt_lib/gpt":
            continue  # one piece of code on each, and nothing else
        page.goto(path.as_uri())
        formulas = read.counts.get("math", 0)
        if formulas:
            assert page.evaluate(SET) == formulas
            assert page.locator("mjx-merror").count() == 0
        for size in (NARROW, WIDE) if name in KINDS else (NARROW,):
            page.set_viewport_size(size)
            cut += [(name, element) for element in page.evaluate(CUT)]
            across = page.evaluate("document.documentElement.scrollWidth")
            assert across <= size["width"], name
        page.set_viewport_size(NARROW)
    assert cut == []
    assert sum(read.counts.get("math", 0) for read in pages.values()) > 250


# Contrast takes axe seconds, word by word: of what stands in the same tags and classes
# all the way up, and so looks the same, three stand for all.
FEWER = """() => {
    const path = (e) => e ? `${path(e.parentElement)} ${e.tagName}.${e.className}` : "";
    const seen = {};
    for (const e of [...document.body.querySelectorAll("*")].reverse())
        if (!e.children.length && !e.closest("svg, mjx-container")) {
            const name = `${path(e)} ${e.getAttribute("style")}`;
            if ((seen[name] = (seen[name] ?? 0) + 1) > 3) e.remove();
        }
}"""


def test_axe_finds_no_serious_fault(site, open_page):
    from axe_playwright_python.sync_playwright import Axe

    page = open_page(NARROW)

    def serious(**options):
        options["preload"] = False  # it would ask for the style sheets anew
        options["resultTypes"] = ["violations"]
        found = Axe().run(page, options=options).response["violations"]
        grave = [v for v in found if v["impact"] in ("serious", "critical")]
        return [(v["id"], v["nodes"][0]["html"]) for v in grave]

    for kind in KINDS:
        page.emulate_media(color_scheme="light")
        page.goto((site / f"{kind}.html").as_uri())
        assert serious(rules={"color-contrast": {"enabled": False}}) == [], kind
        page.evaluate(FEWER)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert serious(runOnly=["color-contrast"]) == [], (kind, scheme)


def test_search_finds_softmax_on_disk_and_below_a_path(site, open_page):
    page = open_page()
    page.goto((site / "index.html").as_uri())
    page.get_by_placeholder("Search").fill("softmax")
    page.keyboard.press("Enter")
    results = page.locator("#search-results")
    results.get_by_role("link", name="03 · One head", exact=True).click()
    page.wait_for_url("**/03_single_head.html*")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=site.parent)
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        home = f"http://127.0.0.1:{server.server_port}/{site.name}"
        page.goto(f"{home}/search.html?q=softmax")
        page.locator("#search-results .context", has_text="softmax").first.wait_for()
        page.goto("about:blank")
        server.shutdown()


def test_the_keyboard_gets_everywhere(site, open_page):
    page = open_page(NARROW)
    page.goto((site / "notebooks" / "09_tokenizers.html").as_uri())
    focused = page.locator(":focus")
    page.keyboard.press("Tab")
    assert focused.inner_text() == "Skip to content"
    for _ in range(40):
        page.keyboard.press("Tab")
        if focused.inner_text() == "09 · Tokenizers":
            break
    page.wait_for_timeout(500)  # the side bar slides in
    assert focused.bounding_box()["x"] >= 0
    page.locator(".cell_input pre").first.focus()
    assert page.evaluate("document.activeElement.tagName") == "PRE"
    solution = page.locator("details.hide").first
    assert solution.get_attribute("open") is None
    solution.locator("summary").focus()
    page.keyboard.press("Enter")
    assert solution.get_attribute("open") is not None


def test_light_and_dark_by_a_button_or_by_the_system(site, open_page):
    def brightness(page):
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return int(colour.removeprefix("rgb(").split(",")[0])

    page = open_page(color_scheme="dark")
    page.goto((site / "index.html").as_uri())
    assert brightness(page) < 50
    page.locator(".theme-toggle-content button").click()
    assert brightness(page) > 200
