"""Chapter 07: how data flows through one step of training."""

from pen import GREEN, INK, LEARN, Pen

drawing = pen = Pen(
    640,
    600,
    "One step of training as a loop: inputs and their targets go down through model "
    "and loss, gradients come back up, one for each weight, and the optimizer moves "
    "the weights that the model uses next.",
)


def step(x, y, number, colour=INK):
    pen.add("circle", cx=x, cy=y, r=11, fill=colour)
    pen.text(x, y, str(number), "#fff", 14, font_weight=600)


pen.text(175, 18, "text: ids  (N,)", font_weight=600)
pen.line((175, 32), (175, 56))
pen.box(175, 76, 270, "windows at random places")
step(40, 76, 1)
for x, tokens, name, colour in (
    (80, "irst", "targets", GREEN),
    (270, "Firs", "inputs", INK),
):
    pen.line((x, 96), (x, 122), colour=colour)
    for i, token in enumerate(tokens):
        look = "light" if colour == INK else "solid"
        pen.cell(x + 32 * (i - 1.5), 140, token, colour, look, 29)
    pen.text(x, 170, f"{name}  (B, T)", colour)

pen.line((270, 184), (270, 216))
pen.box(270, 240, 150, "model", height=48)
step(195, 240, 2)
pen.line((270, 264), (270, 316))
pen.text(282, 286, "logits  (B, T, V)", anchor="start")
pen.line((80, 184), (80, 316), colour=GREEN)
pen.box(175, 336, 310, "cross-entropy", LEARN)
step(20, 336, 3, LEARN)
pen.line((175, 356), (175, 390), colour=LEARN)
pen.text(175, 408, "loss: one number", LEARN, font_weight=600)

pen.line((252, 408), (452, 408), colour=LEARN)
pen.box(520, 408, 136, "backward", LEARN)
step(588, 408, 4, LEARN)
pen.line((520, 388), (520, 346), colour=LEARN)
pen.text(534, 370, "gradients", LEARN, anchor="start")
pen.box(520, 326, 136, "optimizer")
step(588, 326, 5)
pen.line((520, 306), (520, 264))
pen.text(534, 284, "small step", anchor="start")
pen.box(520, 240, 136, "weights", height=48)
pen.line((452, 240), (345, 240), width=4)
pen.text(400, 222, "used", size=14)

for i, (code, colour) in enumerate(
    (
        ("inputs, targets = get_batch(ids, B, T)", INK),
        ("logits = model(inputs)", INK),
        ("loss = F.cross_entropy(logits.mT, targets)", LEARN),
        ("optimizer.zero_grad(); loss.backward()", LEARN),
        ("optimizer.step()", INK),
    )
):
    step(20, 462 + 28 * i, i + 1, colour)
    pen.code(44, 462 + 28 * i, code, colour)
pen.text(460, 518, "and again,\nthousands of times", anchor="start")
