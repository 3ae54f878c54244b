"""Chapter 10: a query and a key turn with their positions."""

from math import cos, sin

from pen import INK, TALK, THINK, Pen

drawing = pen = Pen(
    640,
    606,
    "Above, two of a query's numbers as an arrow that turns with its position, a fast "
    "pair far at each step, a slow pair hardly; below, a query two places after a key, "
    "early and then later: both have turned, the angle between them is the same.",
)


def circle(x, y, radius=84):
    pen.add("circle", cx=x, cy=y, r=radius, fill="none", stroke=INK, stroke_width=1.4)


def arrow(x, y, angle, name, colour, length=84, width=2.4):
    dx, dy = cos(angle), -sin(angle)
    pen.line((x, y), (x + length * dx, y + length * dy), colour=colour, width=width)
    pen.text(x + (length + 16) * dx, y + (length + 14) * dy, name, colour)


for x, speed, name in (150, 1.0, "a fast pair"), (470, 0.1, "a slow pair"):
    pen.text(x, 20, name, font_weight=600)
    circle(x, 152)
    for position in range(5):
        name = str(position) if speed == 1 or position in (0, 4) else ""
        arrow(x, 152, 0.3 + speed * position, name, TALK)
pen.text(150, 272, "turns by 1 radian a position")
pen.text(470, 272, "by a tenth of that")

for x, start in (150, 1), (470, 4):
    circle(x, 462)
    key, query = 0.2 + 0.4 * start, 0.9 + 0.4 * (start + 2)
    arrow(x, 462, key, f"k{start}", THINK)
    arrow(x, 462, query, f"q{start + 2}", TALK)
    arc = [key + (query - key) * i / 12 for i in range(13)]
    points = [(x + 40 * cos(a), 462 - 40 * sin(a)) for a in arc]
    pen.line(*points, tip=False)
    pen.text(x, 340, f"key at {start}, query at {start + 2}", font_weight=600)
pen.text(
    320, 584, "query and key are two apart in both: the same angle, the same score"
)
