"""Figures of the course: one look for all, and words for those who cannot see them."""

from base64 import b64encode
from io import BytesIO

import matplotlib.pyplot as plt
from IPython.display import display
from PIL import Image

# Okabe and Ito's palette: told apart under every common colour blindness.
BLUE, ORANGE, GREEN, PINK, SKY, RED, YELLOW, BLACK = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#F0E442",
    "#000000",
)

plt.rcParams.update(
    {
        "figure.dpi": 100,
        "figure.figsize": (7, 3.4),
        "figure.constrained_layout.use": True,
        "axes.prop_cycle": plt.cycler(
            color=[BLUE, RED, GREEN, ORANGE, PINK, SKY, BLACK]
        ),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.alpha": 0.3,
        "image.cmap": "viridis",
        "legend.frameon": False,
        "font.size": 10,
    }
)


def show(figure: plt.Figure, alt: str) -> None:
    """Shows a figure once, with the text that stands for it where it can't be seen.

    In 128 colours, which nobody sees, it is a third of the size.
    """
    full, small = BytesIO(), BytesIO()
    figure.savefig(full, bbox_inches="tight")
    plt.close(figure)
    Image.open(full).convert("RGB").quantize(128).save(small, "png", optimize=True)
    data = {"image/png": b64encode(small.getvalue()).decode(), "text/plain": alt}
    display(data, raw=True, metadata={"image/png": {"alt": alt}})


# --- The ladder: losses on the validation text ---

# In nats per character. Each chapter adds its own line.
RUNGS = {
    "knowing nothing": 4.174,
    "counting characters": 3.347,
    "bigram": 2.484,
    "one head": 2.37,
    "four heads": 2.196,
    "three blocks": 2.033,
    "trained GPT": 1.80,
    "modern parts": 1.77,
    "best half hour": 1.434,
}
OPPONENTS = {"bzip2": 1.662, "7-grams": 1.586}


def show_ladder(rung: str, loss: float, opponent: str) -> None:
    """The losses so far, the new rung marked, and the opponent that is still below."""
    if abs(loss - RUNGS[rung]) > 0.03:
        raise ValueError(f"{rung} is at {RUNGS[rung]} in RUNGS, and here at {loss:.3f}")
    names = list(RUNGS)[: list(RUNGS).index(rung) + 1]
    losses = [RUNGS[name] for name in names[:-1]] + [loss]
    below = OPPONENTS[opponent]
    figure, ax = plt.subplots(figsize=(8, 2.8))
    for i, (name, at) in enumerate(zip(names, losses, strict=True)):
        color = RED if name == rung else BLUE
        ax.hlines(at, i, i + 0.9, color=color, lw=4)
        y = at + 0.1 if at > below else at - 0.6  # clear of the dashed line
        label = f"{name}\n{at:.2f}"
        ax.text(i + 0.45, y, label, ha="center", color=color, fontsize=8.5)
    ax.axhline(below, color="gray", ls="--")
    ax.text(0, below - 0.25, f"{opponent}: {below:.2f}")
    ax.set(
        ylabel="loss (nats per character)",
        ylim=(min(1.2, losses[-1] - 0.7), 5.1),
        xticks=[],
    )
    ax.set_xlim(-0.3, len(names) + 0.1)
    ax.grid(axis="x", visible=False)
    far = "far below, " if loss > below else ""
    steps = ", ".join(f"{n} {at:.2f}" for n, at in zip(names, losses, strict=True))
    show(
        figure,
        alt=f"Steps that lead down, in nats per character: {steps}; {far}dashed, "
        f"{opponent} at {below:.2f}.",
    )
