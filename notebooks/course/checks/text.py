"""What chapter 01 asks of its holes."""

from math import log

import torch

from course.checks import Wrong, expect, untouched


def lesson(my):
    """The class as its cell has it; `hardened` hides some of its methods."""
    classes = my.CharTokenizer.__mro__
    return [each for each in classes if each.__name__ == "CharTokenizer"][-1]


def CharTokenizer_from_text(my):
    tokenizer = lesson(my).from_text("hello")
    got = getattr(tokenizer, "characters", tokenizer)
    expect(
        got,
        ["e", "h", "l", "o"],
        'CharTokenizer.from_text("hello").characters',
        {
            "Each character needs one id, not one for each time that it occurs.": (
                isinstance(got, list) and len(got) > 4
            ),
            "The right ones in another order: sort them, or the ids are others tomorrow.": (
                isinstance(got, list) and sorted(got) == ["e", "h", "l", "o"]
            ),
        },
    )

    class Other(lesson(my)):
        pass

    if type(Other.from_text("ab")) is not Other:
        raise Wrong(
            "A class that inherits from this one makes a tokenizer from a text.\n"
            "came out: one of another class\nexpected: one of its own kind\n"
            "`cls` is the class that was asked; use that, not the class's name."
        )


def CharTokenizer_encode(my):
    tokenizer = lesson(my)(["x", "a", "b"])
    for text, want in (("bab", [2, 1, 2]), ("xxxx", [0] * 4), ("", [])):
        got = tokenizer.encode(text)
        want = torch.tensor(want, dtype=torch.int64)
        expect(
            got,
            want,
            f'The characters are x, a, b; encode("{text}").',
            {
                "A list is not enough: models need a tensor.": [want.tolist()],
                "These numbers are no int64: say dtype=torch.int64.": (
                    isinstance(got, torch.Tensor) and got.dtype != torch.int64
                ),
                "These are the characters' numbers in Unicode: the id is a place in the vocabulary.": (
                    torch.tensor([ord(c) for c in text])
                ),
                "Count from 0: the first character has the id 0.": want + 1,
            },
        )
        if got.dtype != torch.int64:
            raise Wrong(f"came out: {got.dtype}\nexpected: torch.int64, for large vocabularies")


def CharTokenizer_decode(my):
    tokenizer = lesson(my)(["x", "a", "b"])
    ids = torch.tensor([2, 1, 0, 2])
    with untouched(ids=ids):
        for given in (ids, ids.tolist()):
            expect(
                tokenizer.decode(given),
                "baxb",
                f"The characters are x, a, b; decode({given!r}).",
                {
                    "Put nothing between the characters.": ["b a x b", "b,a,x,b", "b, a, x, b"],
                    "The characters are there; glue them together.": [list("baxb")],
                    "The ids are in reverse.": "bxab",
                },
            )
    expect(tokenizer.decode(ids[:0]), "", "decode of no ids at all.")


def split(my):
    ids = torch.arange(100, 115)
    cases = [(ids, 0.9), (ids, 0.5), ("to be or not to be", 0.75), ("a" * 101, 0.999)]
    for given, fraction in cases:
        cut = int(fraction * len(given))
        first, rest = given[:cut], given[cut:]
        got = my.split(given, fraction)
        expect(
            got,
            (first, rest),
            f"split of {len(given)} tokens with fraction {fraction}.",
            {
                "The parts are in the wrong order: first what is learned from.": [(rest, first)],
                "A token is missing, or there twice: the parts must add up to the whole.": (
                    isinstance(got, tuple) and sum(map(len, got)) != len(given)
                ),
                "The cut is rounded down, so that the first part is at most the fraction.": (
                    isinstance(got, tuple) and abs(len(got[0]) - cut) == 1
                ),
            },
        )


def get_batch(my):
    ids = torch.arange(30) * 10 + 3
    draw = torch.Generator().manual_seed
    with untouched(ids=ids):
        got = my.get_batch(ids, 64, 4, draw(1))
    tried = "64 windows of 4 from the ids 3, 13, 23, ..., 293."
    if not (isinstance(got, tuple | list) and len(got) == 2):
        expect(got, (ids[:4], ids[1:5]), tried)
    x, y = got
    for part, name in ((x, "inputs"), (y, "targets")):
        shape = tuple(getattr(part, "shape", ()))
        expect(shape, (64, 4), f"{tried} The shape of the {name}:")
    expect(x.dtype, torch.int64, f"{tried} The kind of numbers:")
    steps = x[:, 1:] - x[:, :-1]
    expect(
        steps,
        torch.full((64, 3), 10),
        f"{tried} Differences of neighbours in a window:",
        {"These are places in the text: look up what stands there.": torch.ones(64, 3).long()},
    )
    expect(
        y[:, :-1],
        x[:, 1:],
        f"{tried} The targets, less the last of each window:",
        {
            "The targets are the inputs: shift them by one.": x[:, :-1],
            "The targets are what came before, not what comes next.": (
                (y == x - 10).float().mean().item() > 0.9
            ),
        },
    )
    if len(x[:, 0].unique()) < 5:
        raise Wrong(f"{tried}\ncame out: all begin at {x[:, 0].unique().tolist()}\nexpected: random places")
    every, _ = my.get_batch(torch.arange(5), 200, 3, draw(2))
    expect(
        every[:, 0].unique().tolist(),
        [0, 1],
        "200 windows of 3 from five tokens: the places where they start.",
        {
            "The last place is never drawn: `randint(n, ...)` ends at n - 1.": [[0]],
            "A window that starts there has no target for its last token.": [[0, 1, 2]],
        },
    )
    for seed in (1, 2):  # the generator decides, and torch's own seed does not
        torch.manual_seed(seed)
        expect(
            my.get_batch(ids, 64, 4, draw(1)),
            (x, y),
            "The same generator again, with the same seed.",
            {"Other windows came out: is the generator handed to randint?": True},
        )
    torch.manual_seed(0)
    expect(my.get_batch(ids, 2, 4)[0].shape, torch.Size([2, 4]), "No generator at all.")


# --- Exercises ---

TEXTS = ["abababab", "to be or not to be, that is the question", "aaaa", "abc"]


def starts(my):
    for text in TEXTS:
        for T in (1, 2, 3):
            expect(
                my.starts(text, T),
                len(text) - T,
                f'starts("{text}", {T})',
                {
                    "The last window needs a target, too: one more token.": len(text) - T + 1,
                    "That is one too few: the last token of the text can be a target.": (len(text) - T - 1),
                },
            )


def different(my):
    for text in TEXTS:
        for T in (1, 2, 3):
            want = len({text[i : i + T] for i in range(len(text) - T)})
            expect(
                my.different(text, T),
                want,
                f'different("{text}", {T})',
                {
                    "These are all windows: count equal ones once.": len(text) - T,
                    "The last window has no target: it does not start there.": (
                        len({text[i : i + T] for i in range(len(text) - T + 1)})
                    ),
                },
            )


def LowerTokenizer_from_text(my):
    got = my.LowerTokenizer.from_text("To Be, or not")
    expect(
        getattr(got, "characters", got),
        sorted(set("to be, or not")),
        'LowerTokenizer.from_text("To Be, or not").characters',
        {"There are capitals in it: lower the text first.": [sorted(set("To Be, or not"))]},
    )
    expect(type(got), my.LowerTokenizer, "What kind of tokenizer that is:")


def LowerTokenizer_encode(my):
    lower = my.LowerTokenizer([" ", "c", "e", "f", "i", "n", "r", "s", "t", "z"])
    for text in ("First Citizen", "fist", "TTT"):
        got = lower.encode(text)
        want = torch.tensor([lower.characters.index(c) for c in text.lower()])
        expect(
            got,
            want,
            f'The characters are " cefinrstz"; encode("{text}").',
            {"A list is not enough: models need a tensor.": [want.tolist()]},
        )


def bound(my):
    pairs = ("abracadabra", "abba"), ("aab", "ab"), ("To be, or not", "not to be or")
    for past, new in pairs:
        share = {c: past.count(c) / len(past) for c in past}
        own = {c: new.count(c) / len(new) for c in new}
        want = sum(-log(share[c]) for c in new) / len(new)
        expect(
            my.bound(past, new),
            want,
            f'bound("{past}", "{new}")',
            {
                "These are bits: the natural logarithm gives nats.": want / log(2),
                "Nobody knows the shares of the second text beforehand: count in the first.": (
                    sum(-log(own[c]) for c in new) / len(new)
                ),
                "That is the sum: divide by the length.": want * len(new),
                "That is knowing nothing: some characters are more common than others.": (log(len(share))),
                "What has to be paid for is the second text.": (
                    sum(-log(share[c]) for c in past) / len(past)
                ),
            },
        )
