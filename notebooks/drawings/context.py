"""Chapter 01: ten tokens hold nine questions with their answers."""

from pen import GREEN, INK, Pen

TOKENS = "First Citi"
IDS = 18, 47, 56, 57, 58, 1, 15, 47, 58, 47

drawing = pen = Pen(
    640,
    560,
    "A triangle of nine rows from the ten tokens “First Citi”: each row holds one "
    "token more and asks for the next; stored as two rows, the targets are the inputs "
    "shifted by one.",
)


def place(i):
    return 36 + 40 * i


def show(i, y, colour, look):
    pen.cell(place(i), y, TOKENS[i].replace(" ", "␣"), colour, look)


for i, number in enumerate(IDS):
    show(i, 26, INK, "light")
    pen.text(place(i), 54, str(number), size=14)
pen.text(430, 26, "ten tokens", anchor="start", font_weight=600)
pen.text(430, 54, "and their ids", anchor="start")

for row in range(1, 10):
    y = 66 + 36 * row
    for i in range(row):
        show(i, y, INK, "light")
    show(row, y, GREEN, "solid")
pen.text(430, 102, "given “F”,", anchor="start")
pen.text(430, 124, "predict “i”", GREEN, anchor="start", font_weight=600)
pen.text(430, 246, "each answer is part of\nthe next question", anchor="start")
pen.text(430, 368, "given nine tokens,", anchor="start")
pen.text(430, 390, "predict “i”", GREEN, anchor="start", font_weight=600)

pen.text(20, 446, "All nine in two rows, as a batch stores them:", anchor="start")
for i in range(9):
    show(i, 482, INK, "light")
    pen.cell(place(i), 526, TOKENS[i + 1].replace(" ", "␣"), GREEN)
pen.text(430, 482, "inputs = ids[:-1]", anchor="start", font_weight=600)
pen.text(430, 526, "targets = ids[1:]", GREEN, anchor="start", font_weight=600)
