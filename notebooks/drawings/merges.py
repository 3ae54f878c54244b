"""Chapter 09: BPE merges the commonest pair, again and again."""

from collections import Counter
from itertools import pairwise

from pen import GREEN, INK, Pen

drawing = pen = Pen(
    640,
    424,
    "Three merges on aaabdaaabac, row by row: the commonest pair, first aa, then aa a, "
    "then aaa b, becomes one token of its own, so 11 tokens become 9, 7 and 5, until "
    "no pair occurs twice.",
)


def row(y, tokens, pair, made):
    """The tokens, those that were just made solid, the next pair underlined."""
    pen.text(20, y, f"{len(tokens)} tokens", anchor="start", font_weight=600)
    ends = [126 + 36 * sum(map(len, tokens[:i])) for i in range(len(tokens) + 1)]
    for token, left, right in zip(tokens, ends[:-1], ends[1:], strict=True):
        look = "solid" if token == made else "light"
        colour = GREEN if len(token) > 1 else INK
        pen.cell((left + right) / 2, y, token, colour, look, 32, right - left - 4)
    for i in places(tokens, pair):
        under = (ends[i] + 2, y + 24), (ends[i + 2] - 2, y + 24)
        pen.line(*under, colour=GREEN, width=4, tip=False)


def places(tokens, pair):
    """Where the pair stands, from left to right; what is used is used up."""
    found, i = [], 0
    while i < len(tokens) - 1:
        here = pair == (tokens[i], tokens[i + 1])
        found += [i] * here
        i += 1 + here
    return found


tokens, made, y = list("aaabdaaabac"), None, 40
for number in range(256, 260):
    pair, count = Counter(pairwise(tokens)).most_common(1)[0]
    if count < 2:
        row(y, tokens, None, made)
        pen.text(126, y + 38, "no pair occurs twice", anchor="start")
        break
    row(y, tokens, pair, made)
    made = "".join(pair)
    often = "twice" if count == 2 else f"{count} times"
    news = f"{pair[0]} + {pair[1]} occurs {often}: token {number} is {made}"
    pen.text(126, y + 46, news, GREEN, anchor="start")
    if number == 256:
        pen.text(622, y + 46, "(each aaa holds it twice)", anchor="end")
    for i in reversed(places(tokens, pair)):
        tokens[i : i + 2] = [made]
    y += 112
