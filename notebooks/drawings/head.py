"""Chapter 03: what one head computes, from x to y."""

from math import exp

from pen import INK, TALK, THINK, Pen

drawing = pen = Pen(
    640,
    560,
    "One head, from top to bottom: each position makes a query, a key and a value "
    "from its own x; every query meets every key in the scores, softmax makes weights "
    "of those that aren't in the future, and the weights mix the values into y.",
)


scores = [
    (0.5, 1.4, 0.2, 0.8),
    (2, 0.6, 1.2, 0.1),
    (0.9, 0.2, 0.6, 1.9),
    (0, 2, 0.8, 1),
]
weights = [
    [exp(s) for s in row[: i + 1]] + [0] * (3 - i) for i, row in enumerate(scores)
]
weights = [[w / sum(row) for w in row] for row in weights]


def grid(x, y, rows):
    """A matrix of four by four: the larger a number, the stronger its colour."""
    for i, row in enumerate(rows):
        for j, number in enumerate(row):
            middle = x + 22 * (j - 1.5), y + 22 * (i - 1.5)
            pen.area(*middle, 22, 22, TALK, number)


pen.text(310, 20, "x  (T, C)", font_weight=600)
pen.line((310, 32), (310, 56), width=4, tip=False)
for x, name, what in (
    (100, "query", "what am I looking for?"),
    (310, "key", "what do I offer?"),
    (520, "value", "what do I pass on?"),
):
    pen.line((310, 56), (x, 56), (x, 86))
    pen.box(x, 106, 120, name, THINK)
    pen.text(x, 142, what, THINK, 14)

for x, name in (100, "q"), (310, "k"):
    pen.line((x, 156), (x, 200))
    pen.text(x + 10, 175, f"{name}  (T, D)", anchor="start")
pen.box(205, 220, 300, "q @ kᵀ / √D", TALK)

pen.line((100, 240), (100, 272))
grid(100, 316, [[score / 2.2 for score in row] for row in scores])
pen.text(100, 378, "scores  (T, T)")
pen.line((146, 316), (170, 316))
pen.box(216, 316, 90, "no future,\nsoftmax", height=56, size=14)
pen.line((262, 316), (286, 316))
grid(332, 316, weights)
pen.text(332, 378, "weights  (T, T)")

pen.line((332, 392), (332, 424))
pen.line((520, 156), (520, 424))
pen.text(530, 290, "v  (T, D)", anchor="start")
pen.box(426, 444, 260, "weights @ v", TALK)
pen.line((426, 464), (426, 500))
pen.text(426, 514, "y  (T, D)", font_weight=600)
pen.text(20, 448, "blue: each position alone", THINK, 14, "start")
pen.text(20, 472, "orange: positions meet", TALK, 14, "start")
pen.text(20, 514, "a row looks, a column is looked at", INK, 14, "start")
