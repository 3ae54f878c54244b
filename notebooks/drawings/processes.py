"""Chapter 13: two processes, and how their gradients meet, over time."""

from pen import GREEN, INK, LEARN, TALK, Pen

drawing = pen = Pen(
    640,
    456,
    "Two processes over time, each with half of the batch: both run forward, then "
    "backward from layer 4 to layer 1; the gradients of layers 4 and 3 are averaged "
    "between them while backward still runs, then those of 2 and 1, and both take the "
    "same step.",
)


def bar(left, right, y, text, colour, look="light"):
    pen.cell((left + right) / 2, y, text, colour, look, 40, right - left - 4)


for y, name in (70, "process 0"), (270, "process 1"):
    pen.text(20, y, name, anchor="start", font_weight=600)
    bar(116, 220, y, "forward", INK)
    for i in range(4):
        bar(220 + 48 * i, 268 + 48 * i, y, str(4 - i), LEARN)
    bar(540, 612, y, "step", INK)
    pen.text(316, y - 34 if y < 200 else y + 34, "backward, layer by layer", LEARN, 14)
pen.text(20, 170, "between\nthem", TALK, anchor="start", font_weight=600)
for left, name in (316, "mean 4, 3"), (412, "mean 2, 1"):
    bar(left, left + 96, 170, name, TALK, "solid")
    for y, sign in (70, 1), (270, -1):
        down = (left, y + 24 * sign), (left, 170 - 22 * sign)
        pen.line(*down, colour=LEARN)
for y in 70, 270:
    pen.line((508, 170), (524, 170), (524, y), (541, y), colour=TALK)
pen.line((116, 326), (612, 326), width=1.6)
pen.text(612, 348, "time", size=14, anchor="end")
pen.text(
    116, 348, "backward goes on while the first mean travels", size=14, anchor="start"
)

pen.text(20, 400, "gradient of\none weight", anchor="start", font_weight=600)
for x, number in (176, "0.4"), (266, "0.2"):
    pen.cell(x, 400, number, GREEN, width=44)
pen.text(176, 432, "process 0", size=14)
pen.text(266, 432, "process 1", size=14)
pen.line((296, 400), (362, 400), colour=TALK)
pen.text(326, 384, "mean", TALK, 14)
for x in 390, 440:
    pen.cell(x, 400, "0.3", GREEN, width=44)
pen.text(474, 400, "same step, so\nthe weights\nstay equal", anchor="start")
