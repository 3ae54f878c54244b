"""Chapter 06: the whole GPT, a stream with branches."""

from pen import GREEN, INK, TALK, THINK, Pen

X = 150  # where the stream runs

drawing = pen = Pen(
    640,
    800,
    "The whole GPT, from top to bottom: ids become embeddings, positions are added, "
    "one stream runs past L blocks that read it at the side and add to it, and at the "
    "end a norm and the head make logits of it.",
)


def branch(y, name, colour, note):
    """Reads off the stream at y and adds to it 52 further down."""
    pen.line((X, y), (222, y), colour=colour)
    pen.box(254, y, 64, "norm", INK, 34)
    pen.line((286, y), (330, y), colour=colour)
    pen.box(400, y, 140, name, colour)
    pen.line((400, y + 20), (400, y + 52), (X + 14, y + 52), colour=colour)
    pen.text(X + 30, y + 37, note, colour, 14, "start")
    pen.plus(X, y + 52)


def block(y, height, name):
    dashes = {"rx": 9, "stroke_dasharray": "6 5"}
    pen.area(275, y + height / 2, 430, height, INK, 0.0, **dashes)
    pen.text(504, y + 20, name, anchor="start", font_weight=600)


for i, (token, number) in enumerate(zip("Firs", (18, 47, 56, 57), strict=True)):
    pen.cell(X - 54 + 36 * i, 48, str(number), look="light")
    pen.text(X - 54 + 36 * i, 18, token)
pen.text(X + 94, 48, "ids  (B, T)", anchor="start", font_weight=600)
pen.line((X, 68), (X, 98))
pen.box(X, 118, 170, "token embedding", THINK)
pen.text(X + 96, 118, "looks up a row for each id", THINK, 14, "start")

pen.line((X, 138), (X, 606), width=5)
pen.text(X - 22, 164, "(B, T, C)", size=14, anchor="end")
pen.box(405, 190, 190, "position embedding", THINK)
pen.line((310, 190), (X + 14, 190), colour=THINK)
pen.text(236, 176, "(T, C)", THINK, 14)
pen.plus(X, 190)

block(226, 216, "block 1")
branch(258, "attention", TALK, "positions talk")
branch(362, "feed-forward", THINK, "each position alone")
block(456, 40, "block 2")
pen.text(X + 30, 476, "the same parts, other weights", size=14, anchor="start")
for i in range(3):
    pen.add("circle", cx=X + 120, cy=508 + 11 * i, r=3, fill=INK)
block(542, 40, "block L")
pen.text(X - 22, 476, "(B, T, C)", size=14, anchor="end")

pen.box(X, 626, 90, "norm", INK)
pen.line((X, 646), (X, 674))
pen.text(X + 14, 658, "(B, T, C)", size=14, anchor="start")
pen.box(X, 694, 170, "head", THINK)
pen.text(X + 96, 694, "a score for each token of the vocabulary", THINK, 14, "start")
pen.line((X, 714), (X, 752))
pen.text(X, 770, "logits  (B, T, V)", font_weight=600)
pen.line((X + 82, 770), (318, 770))
pen.text(272, 754, "softmax", size=14)
for i, (token, chance) in enumerate(zip("ehtuy", (8, 5, 34, 3, 6), strict=True)):
    pen.area(340 + 34 * i, 764 - chance / 2, 20, chance, GREEN, 1.0)
    pen.text(340 + 34 * i, 778, token, GREEN, 14)
pen.text(504, 760, "what follows\n“Firs”?", GREEN, 14, "start")
