"""Chapters on logs: a log's way to a verdict. The numbers are made up."""

from pen import GREEN, INK, LEARN, Pen

drawing = pen = Pen(
    640,
    690,
    "A log's way to a verdict, from top to bottom: lines lose what varies and become "
    "events, the events of one block a session; a delete where an arrival was due "
    "surprises the model, no normal session kept back is as surprising, so p is small "
    "and an alarm names the line.",
)
ODD = LEARN  # what belongs to the fault
EVENTS = {
    "A": "Receiving block {} from {}",
    "B": "Received block {} from {}",
    "C": "Deleting block {} at {}",
}
LINES = ("A", 7, "3:4711"), ("A", 9, "5:4712"), ("C", 7, "3:4711"), ("B", 9, "5:4712")
SESSIONS = (7, "AAAC", (0.2, 0.1, 0.1, 6.5)), (9, "AAAB", (0.2, 0.1, 0.1, 0.4))
KEPT_BACK = 56, 38, 20, 12, 8, 5, 4, 3, 2, 2, 1  # sessions, by their largest surprisal


def stage(y, name):
    """A stage's name, and unless it is the first an arrow to it."""
    pen.text(20, y, name, anchor="start", font_weight=600)
    if y > 30:
        pen.line((48, y - 42), (48, y - 14))


stage(24, "lines")
pen.text(20, 46, "(made up)", size=14, anchor="start")
for i, (event, block, address) in enumerate(LINES):
    line = EVENTS[event].format(f"blk_{block}", f"/10.0.0.{address}")
    pen.code(140, 24 + 24 * i, line, ODD if event == "C" else INK)

stage(142, "events")
for i, (event, line) in enumerate(EVENTS.items()):
    pen.cell(154, 142 + 34 * i, event, INK, "light", 28)
    pen.code(180, 142 + 34 * i, line.format("<block>", "<address>"))

stage(264, "sessions")
stage(372, "surprisal")
for left, (block, events, nats) in zip((154, 414), SESSIONS, strict=True):
    pen.text(left + 176, 264, f"blk_{block}")
    for i, (event, height) in enumerate(zip(events, nats, strict=True)):
        colour = ODD if height > 1 else INK
        pen.cell(left + 38 * i, 264, event, colour, "light")
        pen.area(left + 38 * i, 390 - 6 * height, 24, 12 * height, colour, 1.0)
    colour = ODD if height > 1 else INK
    at = left + 136, 390 - 6 * height
    pen.text(*at, f"{max(nats)} nats", colour, anchor="start", font_weight=600)
pen.text(290, 374, "a B was due", ODD, 14, "start")

stage(478, "p-value")
pen.line((140, 510), (620, 510), width=1.6)
for i, count in enumerate(KEPT_BACK):
    pen.area(154 + 24 * i, 510 - count / 2, 22, count, GREEN, 1.0)
pen.text(
    240,
    458,
    "normal sessions kept back,\nby their largest surprisal",
    GREEN,
    14,
    "start",
)
pen.line((154 + 312, 484), (154 + 312, 509), colour=ODD)
pen.text(154 + 312, 470, "blk_7", ODD, font_weight=600)
pen.text(140, 534, "none of 999 is as large: p = (0 + 1) / (999 + 1)", ODD, 15, "start")

stage(610, "verdict")
pen.box(250, 610, 220, "p = 0.001 ≤ 0.01: alarm", ODD)
pen.code(140, 654, "Deleting block blk_7 at /10.0.0.3:4711", ODD)
