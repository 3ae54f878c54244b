"""Chapter 17: an induction circuit, and the texts that take it apart."""

from pen import GREEN, INK, TALK, Pen

drawing = pen = Pen(
    740,
    472,
    "An induction circuit on the text … A B … A: in block 1, arrow 1, B looks one back "
    "and notes that an A stood before it; in block 2, arrow 2, the new A looks for "
    "that note and finds B; below, the same text sound, with the first A gone, with B "
    "gone.",
)
OLD, B, NEW = 262, 332, 560  # where the tokens stand


def tokens(y, name, first="A", second="B"):
    """A row of the text; a token that was replaced is an x."""
    pen.text(20, y, name, anchor="start", font_weight=600)
    for x in OLD - 44, B + 44 if y > 300 else NEW - 44, NEW - 44:
        pen.text(x, y, "…")
    for x, token in (OLD, first), (B, second), (NEW, "A"):
        look = "dashed" if token == "x" else "solid"
        pen.cell(x, y, token, GREEN if token == "B" else INK, look)


for x, end in (OLD, 132), (B, 132), (NEW, 250):
    pen.line((x, 50), (x, end), width=4)
tokens(34, "the tokens")
tokens(150, "after block 1")
pen.line((B - 16, 134), (OLD + 16, 52), colour=TALK, width=2.6)
pen.text(OLD - 22, 92, "1 looks one back", TALK, anchor="end", font_weight=600)
pen.text(B + 26, 150, "“an A before me”", TALK, anchor="start")

pen.text(20, 268, "after block 2", anchor="start", font_weight=600)
pen.text(NEW - 44, 268, "…")
pen.cell(NEW, 268, "A")
pen.line((NEW - 16, 254), (B + 18, 170), colour=TALK, width=2.6)
pen.text(B + 84, 232, "2 looks for this note", TALK, anchor="end", font_weight=600)
pen.text(NEW + 26, 268, "next comes B", GREEN, anchor="start", font_weight=600)

pen.line((20, 314), (720, 314), width=1, tip=False)
for y, name, first, second, news in (
    (350, "sound", "A", "B", "next comes B"),
    (398, "the name is gone", "x", "B", "2 finds no note"),
    (446, "the answer is gone", "A", "x", "2 finds only x"),
):
    tokens(y, name, first, second)
    colour = GREEN if name == "sound" else TALK
    pen.text(NEW + 26, y, news, colour, anchor="start")
