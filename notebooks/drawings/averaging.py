"""Chapter 03: averaging the past is one matrix product."""

from pen import INK, TALK, Pen

VALUES = (2, 0), (4, 6), (0, 3)

drawing = pen = Pen(
    640,
    334,
    "A lower triangle of weights, rows 1, ½ ½ and ⅓ ⅓ ⅓ with zeros for the future, "
    "times three tokens' values gives each token the mean of itself and all before "
    "it.",
)


def matrix(x, y, rows, colour, example=None):
    """None is a weight that the future can't have."""
    for i, row in enumerate(rows):
        for j, number in enumerate(row):
            look = "dashed" if number is None else "solid" if i == example else "light"
            at = x + 50 * j, y + 50 * i
            pen.cell(*at, str(number or 0), colour, look, 46, font=18)


weights = [["1", None, None], ["½", "½", None], ["⅓", "⅓", "⅓"]]
pasts = [VALUES[: i + 1] for i in range(3)]
means = [[sum(c) // len(past) for c in zip(*past, strict=True)] for past in pasts]

for i in range(3):
    pen.text(24, 120 + 50 * i, f"token {i}", anchor="start")
    pen.text(120 + 50 * i, 78, str(i))
pen.text(170, 24, "weights  (T, T)", TALK, font_weight=600)
pen.text(170, 52, "how much of token …")
matrix(120, 120, weights, TALK, example=1)
pen.text(276, 170, "@", size=22)
pen.text(355, 24, "values  (T, C)", font_weight=600)
matrix(330, 120, VALUES, INK)
pen.text(432, 170, "=", size=22)
pen.text(513, 24, "means  (T, C)", TALK, font_weight=600)
matrix(488, 120, means, TALK, example=1)
pen.text(24, 282, "dashed: the future, no weight at all", TALK, anchor="start")
pen.text(24, 312, "token 1:  ½ · (2, 0)  +  ½ · (4, 6)  =  (3, 3)", anchor="start")
