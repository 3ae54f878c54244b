"""Chapter 04: from (T, 3C) to heads of (T, D), and the reshape that mixes positions."""

from pen import GREEN, INK, LEARN, TALK, Pen

T, H, D = 2, 2, 2
C = H * D

drawing = pen = Pen(
    640,
    520,
    "Numbered q, k and v cells of two positions: view and transpose give head 0 the "
    "cells 0 1 and 12 13, a row for each position, while a view to (H, T, D) alone "
    "gives head 0 all of position 0 and head 1 all of position 1.",
)


def number(x, y, n):
    """Its colour is its position's; solid is head 0, light is head 1."""
    position, rest = divmod(n, 3 * C)
    look = "light" if rest % C >= D else "solid"
    pen.cell(x, y, str(n), (GREEN, LEARN)[position], look, 34)


def bracket(x0, x1, y, name, colour=INK):
    pen.line((x0, y + 6), (x0, y), (x1, y), (x1, y + 6), colour=colour, tip=False)
    pen.text((x0 + x1) / 2, y - 14, name, colour, font_weight=600)


def cell_x(n):
    n %= 3 * C
    return 135 + 36 * n + 10 * (n // C) + 2 * (n // D)


pen.text(
    20,
    22,
    "q, k and v side by side: (T, 3C), in numbered cells",
    anchor="start",
    font_weight=600,
)
for i, name in enumerate("qkv"):
    bracket(cell_x(i * C) - 17, cell_x(i * C + C - 1) + 17, 70, name)
for n in range(2 * 3 * C):
    number(cell_x(n), 100 + 40 * (n // (3 * C)), n)
for position, colour in enumerate((GREEN, LEARN)):
    pen.text(20, 100 + 40 * position, f"position {position}", colour, anchor="start")
pen.text(20, 178, "solid: for head 0; light: for head 1", anchor="start")


def table(x, y, head, cells):
    pen.text(x, y - 40, f"head {head}", font_weight=600)
    for i, n in enumerate(cells):
        number(x - 18 + 36 * (i % D), y + 36 * (i // D), n)


pen.line((316, 200), (316, 500), tip=False, stroke_dasharray="3 5")
pen.text(20, 218, "right (for q; k and v alike)", TALK, anchor="start", font_weight=600)
pen.code(20, 246, "q.view(T, H, D)")
pen.code(20, 268, " .transpose(0, 1)")
pen.text(20, 345, "position 0", anchor="start")
pen.text(20, 381, "position 1", anchor="start")
table(156, 345, 0, (0, 1, 12, 13))
table(256, 345, 1, (2, 3, 14, 15))
pen.text(20, 450, "each head has one row\nfor each position", anchor="start")

pen.text(340, 218, "wrong", TALK, anchor="start", font_weight=600)
pen.code(340, 246, "q.view(H, T, D)")
pen.text(340, 345, "“position 0”", anchor="start")
pen.text(340, 381, "“position 1”", anchor="start")
table(486, 345, 0, (0, 1, 2, 3))
table(586, 345, 1, (12, 13, 14, 15))
pen.text(
    340,
    460,
    "each head has one position,\ncut in two rows; merged back,\n"
    "position 0 gets what comes of\n12 and 13: the future leaks",
    anchor="start",
)
