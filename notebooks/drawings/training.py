"""Chapter 07: how data flows through one step of training."""

from pen import GREEN, INK, LEARN, Pen

drawing = pen = Pen(
    640,
    680,
    "One step of training as a loop: inputs and their targets go down through model "
    "and loss, gradients come back up, one for each weight, the brake cuts them if "
    "they are too long, and the optimizer, at a rate from the plan, moves the weights "
    "that the model uses next.",
)


def step(x, y, number, colour=INK):
    pen.add("circle", cx=x, cy=y, r=11, fill=colour)
    pen.text(x, y, str(number), "#fff", 14, font_weight=600)


pen.text(175, 18, "text: ids  (N,)", font_weight=600)
pen.line((175, 32), (175, 56))
pen.box(175, 76, 270, "windows at random places")
step(40, 76, 2)
for x, tokens, name, colour in (
    (80, "irst", "targets", GREEN),
    (270, "Firs", "inputs", INK),
):
    pen.line((x, 96), (x, 122), colour=colour)
    for i, token in enumerate(tokens):
        look = "light" if colour == INK else "solid"
        pen.cell(x + 32 * (i - 1.5), 140, token, colour, look, 29)
    pen.text(x, 170, f"{name}  (B, T)", colour)

pen.line((270, 184), (270, 196))
pen.box(270, 220, 150, "model", height=48)
step(195, 220, 3)
pen.line((270, 244), (270, 356))
pen.text(282, 300, "logits  (B, T, V)", anchor="start")
pen.line((80, 184), (80, 356), colour=GREEN)
pen.box(175, 376, 310, "cross-entropy", LEARN)
step(20, 376, 4, LEARN)
pen.line((175, 396), (175, 418), colour=LEARN)
pen.text(175, 434, "loss: one number", LEARN, font_weight=600)

pen.line((252, 434), (452, 434), colour=LEARN)
pen.box(520, 434, 136, "backward", LEARN)
step(588, 434, 5, LEARN)
pen.line((520, 414), (520, 382), colour=LEARN)
pen.text(534, 398, "gradients", LEARN, anchor="start")
pen.box(520, 362, 136, "brake", LEARN)
step(588, 362, 6, LEARN)
pen.line((520, 342), (520, 310), colour=LEARN)
pen.box(520, 290, 136, "optimizer")
step(588, 290, 7)
pen.line((520, 270), (520, 244))
pen.text(534, 258, "small step", anchor="start")
pen.box(520, 220, 136, "weights", height=48)
pen.line((452, 220), (345, 220), width=4)
pen.text(400, 202, "used", size=14)
pen.box(520, 120, 136, "plan")
step(588, 120, 1)
pen.line((600, 120), (624, 120), (624, 290), (602, 290))
pen.text(600, 170, "rate")

for i, (code, colour) in enumerate(
    (
        ("optimizer.learning_rate = learning_rate_at(step, config)", INK),
        ("inputs, targets = get_batch(train_ids, *size, generator)", INK),
        ("logits = model(inputs)", INK),
        ("loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())", LEARN),
        ("optimizer.zero_grad(); loss.backward()", LEARN),
        ("clip_gradients(model.parameters(), config.clip)", LEARN),
        ("optimizer.step()", INK),
    )
):
    step(20, 490 + 28 * i, i + 1, colour)
    pen.code(44, 490 + 28 * i, code, colour)
pen.text(300, 658, "and again, thousands of times", anchor="start")
