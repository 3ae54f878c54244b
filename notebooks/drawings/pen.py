"""What the drawings share, so that the same things look the same in every chapter.

The stream is a thick grey line, and a sum on it a circled plus. What computes is a box
with round corners; a token or a number is a square cell. Orange lets positions talk,
blue works on each position alone, purple belongs to learning: loss and gradients.
Every colour stands out as much from a white page as from a dark one, and shapes and
words say the same again for those who can't tell two colours apart.
"""

from html import escape
from math import hypot

INK, TALK, THINK = "#808080", "#c8660a", "#2b7bb9"
LEARN, GREEN = "#bd4f94", "#1b8a5a"
FONT = "DejaVu Sans, Verdana, sans-serif"
MONO = "DejaVu Sans Mono, Menlo, Consolas, monospace"


class Pen:
    """A drawing of one idea; x runs to the right, y down, and (x, y) is a middle."""

    def __init__(self, width, height, title):
        self.width, self.height, self.title, self.parts = width, height, title, []

    def add(self, tag, text="", **attributes):
        values = {
            name.replace("_", "-"): f"{value:.6g}"
            if isinstance(value, float)
            else value
            for name, value in attributes.items()
        }
        named = "".join(f' {name}="{value}"' for name, value in values.items())
        self.parts.append(f"<{tag}{named}>{escape(text, False)}</{tag}>")

    def text(self, x, y, text, colour=INK, size=15, anchor="middle", **more):
        """One or more lines around y; anchor "start" has them begin at x."""
        lines = text.split("\n")
        for i, line in enumerate(lines):
            base = y + 0.36 * size + (i - (len(lines) - 1) / 2) * 1.3 * size
            look = {"font_size": size, "text_anchor": anchor, "fill": colour}
            self.add("text", line, x=x, y=float(base), **look, **more)

    def code(self, x, y, text, colour=INK, size=14, anchor="start"):
        self.text(x, y, text, colour, size, anchor, font_family=MONO)

    def box(self, x, y, width, text, colour=INK, height=40, size=15):
        """What computes."""
        self.area(x, y, width, height, colour, 0.1, rx=9)
        self.text(x, y, text, colour, size, font_weight=600)

    def cell(self, x, y, text="", colour=INK, look="solid", size=32, width=0, font=15):
        """A token or a number: solid, light, or dashed for what isn't there."""
        filled = {"solid": 1.0, "light": 0.1, "dashed": 0.0}[look]
        dashes = {"stroke_dasharray": "3 3"} if look == "dashed" else {}
        self.area(x, y, width or size, size, colour, filled, **dashes)
        ink = "#fff" if look == "solid" else colour
        self.text(x, y, text, ink, font, font_weight=600)

    def area(self, x, y, width, height, colour, filled, **more):
        corner = {"x": x - width / 2, "y": y - height / 2}
        look = {"fill": colour, "fill_opacity": filled, "stroke": colour, **more}
        self.add("rect", **corner, width=width, height=height, stroke_width=1.6, **look)

    def line(self, *points, colour=INK, width=2, tip=True, **more):
        """Through the points, with an arrow's tip at the last."""
        (x0, y0), (x, y) = points[-2:]
        if tip:
            far = hypot(x - x0, y - y0)
            dx, dy = (x - x0) / far, (y - y0) / far
            a, b = 7 + width, 3 + 0.75 * width  # the tip's length, half its breadth
            back = x - a * dx, y - a * dy
            corners = (x, y), (back[0] - b * dy, back[1] + b * dx)
            corners += ((back[0] + b * dy, back[1] - b * dx),)
            shape = " ".join(f"{p:.5g},{q:.5g}" for p, q in corners)
            self.add("polygon", points=shape, fill=colour)
            points = (*points[:-1], back)
        path = "M" + " L".join(f"{p:.5g} {q:.5g}" for p, q in points)
        look = {"stroke": colour, "stroke_width": width, "stroke_linejoin": "round"}
        self.add("path", d=path, fill="none", **look, **more)

    def plus(self, x, y):
        """A sum on the stream."""
        self.add("circle", cx=x, cy=y, r=12, fill=INK)
        for dx, dy in (6, 0), (0, 6):
            ends = (x - dx, y - dy), (x + dx, y + dy)
            self.line(*ends, colour="#fff", width=2.4, tip=False)

    def svg(self):
        size = f'width="{self.width}" height="{self.height}"'
        view = f'viewBox="0 0 {self.width} {self.height}"'
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} {view} role="img" '
            f'font-family="{FONT}">\n<title>{escape(self.title, False)}</title>\n'
            + "\n".join(self.parts)
            + "\n</svg>\n"
        )
