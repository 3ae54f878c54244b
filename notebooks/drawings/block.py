"""Chapter 05: a block is a stream with two branches."""

from pen import INK, TALK, THINK, Pen

drawing = pen = Pen(
    640,
    470,
    "A block, from top to bottom: the stream x runs straight through; attention, "
    "then feed-forward, each read a normalized copy of it and add their result "
    "back.",
)


def branch(y, name, colour, notes, code):
    """Reads off the stream at y and adds to it 130 further down."""
    pen.line((120, y), (250, y), colour=colour)
    pen.box(292, y, 80, "norm", INK)
    pen.line((332, y), (440, y), (440, y + 42), colour=colour)
    pen.box(440, y + 66, 180, name, colour, height=48)
    pen.text(545, y + 66, notes, colour, 14, "start")
    pen.line((440, y + 90), (440, y + 130), (134, y + 130), colour=colour)
    pen.code(146, y + 112, code, colour)


pen.text(120, 20, "x  (B, T, C)", font_weight=600)
pen.line((120, 36), (120, 432), width=5)
branch(
    80, "attention", TALK, "talks to\nearlier\npositions", "x = x + attention(norm(x))"
)
pen.plus(120, 210)
branch(
    264, "feed-forward", THINK, "works on\neach alone", "x = x + feed_forward(norm(x))"
)
pen.plus(120, 394)
pen.text(120, 450, "x  (B, T, C)", font_weight=600)
pen.text(104, 145, "the stream:\nnothing\non it but\nsums", size=14, anchor="end")
