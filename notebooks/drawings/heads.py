"""Chapter 04: from (T, 3C) to heads of (T, D), and the reshape that mixes positions."""

from pen import GREEN, INK, LEARN, TALK, THINK, Pen

T, H, D = 3, 2, 2
C = H * D
COLOURS = GREEN, LEARN, THINK

drawing = pen = Pen(
    640,
    600,
    "Numbered q, k and v cells of three positions: reshape and transpose give head 0 "
    "the cells 0 1, 12 13 and 24 25, a row for each position, while a reshape to (H, "
    "T, D) alone gives it the cells 0 1, 2 3 and 12 13, from two positions only.",
)


def number(x, y, n):
    """Its colour is its position's; solid is head 0, light is head 1."""
    position, rest = divmod(n, 3 * C)
    look = "light" if rest % C >= D else "solid"
    pen.cell(x, y, str(n), COLOURS[position], look, 34)


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
for n in range(T * 3 * C):
    number(cell_x(n), 100 + 40 * (n // (3 * C)), n)
for position, colour in enumerate(COLOURS):
    pen.text(20, 100 + 40 * position, f"position {position}", colour, anchor="start")
pen.text(20, 218, "solid: for head 0; light: for head 1", anchor="start")


def heads(x, name, rows):
    """What each head gets: one row for each position, or what it takes for one."""
    for head in range(H):
        left = x + 100 * head
        pen.text(left, 345, f"head {head}", font_weight=600)
        for i, n in enumerate(rows[head]):
            number(left - 18 + 36 * (i % D), 385 + 36 * (i // D), n)
    for position in range(T):
        pen.text(x - 136, 385 + 36 * position, name.format(position), anchor="start")


pen.line((316, 240), (316, 580), tip=False, stroke_dasharray="3 5")
pen.text(20, 258, "right (for q; k and v alike)", TALK, anchor="start", font_weight=600)
pen.code(20, 286, "q.reshape(T, H, D)")
pen.code(20, 308, " .transpose(0, 1)")
heads(156, "position {}", ((0, 1, 12, 13, 24, 25), (2, 3, 14, 15, 26, 27)))
pen.text(20, 520, "each head has one row\nfor each position", anchor="start")

pen.text(340, 258, "wrong", TALK, anchor="start", font_weight=600)
pen.code(340, 286, "q.reshape(H, T, D)")
heads(476, "“position {}”", ((0, 1, 2, 3, 12, 13), (14, 15, 24, 25, 26, 27)))
pen.text(
    340,
    538,
    "a position fills two rows;\nmerged back, position 0\n"
    "gets what comes of 14, 15:\nthe future leaks",
    anchor="start",
)
