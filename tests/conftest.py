"""Settings for every test."""

import itertools
import os
import shutil
from types import SimpleNamespace

import pytest
from hypothesis import settings

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# Set before transformers is imported: a test must not ask the network for a model.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
# Reports are cut to a screen: the same one, whatever the tests run in.
os.environ["LINES"] = "40"

# The first example of a test may pay for an import, so no deadline; in CI the same
# examples every time, so that a red run says something about the change it tests.
settings.register_profile("tinygpt", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("tinygpt")


@pytest.fixture(scope="session")
def song():
    """A text that a tiny model learns in a second, its tokenizer and its two parts."""
    from tinygpt_lib.text import CharTokenizer, split

    lines = (f"{n} green bottles hanging on the wall,\n" for n in range(99, 0, -1))
    text = "".join(lines)
    tokenizer = CharTokenizer.from_text(text)
    train_ids, val_ids = split(tokenizer.encode(text))
    return SimpleNamespace(
        text=text, tokenizer=tokenizer, train_ids=train_ids, val_ids=val_ids
    )


@pytest.fixture(scope="session")
def tiny_gpt(song):
    """Makes a GPT for the song: tiny_gpt(seed, **settings)."""
    import torch

    from tinygpt_lib.runs.models import config_of, new_model

    def make(seed=0, **settings):
        tiny = {"block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8, **settings}
        torch.manual_seed(seed)
        config = {"vocab_size": song.tokenizer.vocab_size, **tiny}
        return new_model(config_of(config))

    return make


@pytest.fixture(scope="session")
def covering():
    """Of all combinations of choices, so many that any three choices meet in one."""

    def cover(**choices):
        meetings = {
            combination: set(itertools.combinations(enumerate(combination), 3))
            for combination in itertools.product(*choices.values())
        }
        left = set().union(*meetings.values())
        while left:
            best = max(meetings, key=lambda c: len(left & meetings[c]))
            left -= meetings[best]
            yield dict(zip(choices, best, strict=True))

    return cover


@pytest.fixture
def one_thread():
    """For results that a process with one thread must repeat bit for bit."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def browser():
    """Chromium or Chrome; where there is none the test is skipped, but never in CI.

    One for all files: a process can start the driver only once.
    """
    from playwright.sync_api import Error, sync_playwright

    there = next(filter(None, map(shutil.which, BROWSERS)), None)
    where = {"executable_path": there} if there else {"channel": "chrome"}
    with sync_playwright() as driver:
        try:
            chromium = driver.chromium.launch(**where)
        except Error as error:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip(
                f"no browser: install chromium ({error.message.splitlines()[0]})"
            )
        yield chromium
        chromium.close()
