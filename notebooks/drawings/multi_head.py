"""Chapter 04: the whole layer, with the shape of what passes along each arrow."""

from pen import INK, TALK, THINK, Pen

drawing = pen = Pen(
    640,
    430,
    "The layer, from top to bottom: x (B, T, C) becomes (B, T, 3C), and every head "
    "gets its queries, keys and values (B, T, D); what the heads find stands side "
    "by side, (B, T, C), and the output matrix mixes it.",
)


def shape(y, text, x=342):
    pen.text(x, y, text, anchor="start")


pen.text(330, 20, "x  (B, T, C)", font_weight=600)
pen.line((330, 34), (330, 62))
pen.box(330, 84, 380, "to_qkv", THINK)
pen.line((330, 104), (330, 150), tip=False)
shape(124, "(B, T, 3C)")
xs = 185, 330, 475
pen.line((xs[0], 172), (xs[0], 150), (xs[2], 150), (xs[2], 172), tip=False)
for i, x in enumerate(xs):
    pen.line((x, 150), (x, 208))
    pen.text(x + 12, 174, "q k v", anchor="start", font_weight=600)
    pen.box(x, 230, 120, f"head {i}" if i < 2 else "head H - 1", TALK)
    pen.line((x, 250), (x, 292), tip=False)
pen.text(402, 230, "…", font_weight=600)
shape(270, "(B, T, D)", 197)
pen.line((xs[0], 292), (xs[2], 292), tip=False)
pen.line((330, 292), (330, 338))
shape(314, "(B, T, C), side by side")
pen.box(330, 360, 380, "output", THINK)
pen.line((330, 380), (330, 402))
pen.text(330, 416, "(B, T, C)", font_weight=600)
for y, name in (84, "project"), (230, "attend"), (360, "merge"):
    pen.code(20, y, name)
pen.line((20, 188), (120, 188), tip=False, stroke_dasharray="3 5")
pen.line((20, 284), (120, 284), tip=False, stroke_dasharray="3 5")
pen.text(552, 174, "(B, T, D)\neach", INK, anchor="start")
