"""Chapter 08: what the key/value cache keeps, over three steps of generation."""

from pen import GREEN, INK, TALK, Pen

TEXT = "First"

drawing = pen = Pen(
    640,
    600,
    "Three steps of generation: with the cache the first computes keys and values of "
    "all three tokens and each later step those of the new one alone, 5 in all; "
    "without it every step computes all of them again, 12 in all.",
)


def step(y, number, read, new, sampled):
    """Reads the last `new` of `read` tokens, without a cache all of them."""
    pen.text(20, y, f"step {number}", anchor="start", font_weight=600)
    for row, name in enumerate(("query", "key", "value"), 1):
        pen.text(20, y + 36 * row, name, anchor="start")
    for x0, cached in (122, True), (394, False):
        for i, token in enumerate(TEXT[:read]):
            x, fresh = x0 + 36 * i, i >= read - new
            pen.text(x, y, token, font_weight=600 if fresh else 400)
            for row, letter in enumerate("qkv", 1):
                if fresh or not cached:
                    pen.cell(x, y + 36 * row, letter, TALK if fresh else INK)
                elif letter != "q":
                    pen.cell(x, y + 36 * row, letter, TALK, "light")
        end = x0 + 36 * read
        pen.line((end - 10, y), (end + 16, y), colour=GREEN)
        pen.text(end + 30, y, sampled, GREEN, font_weight=600)


pen.text(106, 20, "with the cache", TALK, anchor="start", font_weight=600)
pen.text(378, 20, "without it", TALK, anchor="start", font_weight=600)
step(58, 1, 3, 3, "s")
step(220, 2, 4, 1, "t")
step(382, 3, 5, 1, "␣")
pen.text(20, 538, "read", anchor="start")
pen.text(106, 538, "3 + 1 + 1 = 5 tokens", TALK, anchor="start", font_weight=600)
pen.text(378, 538, "3 + 4 + 5 = 12 tokens", anchor="start", font_weight=600)
for x, text, colour, look in (
    (30, "computed now", TALK, "solid"),
    (200, "kept from before", TALK, "light"),
    (392, "the same, computed again", INK, "solid"),
):
    pen.cell(x, 578, "", colour, look, 20)
    pen.text(x + 18, 578, text, colour, 14, "start")
