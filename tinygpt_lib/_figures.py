"""Figures of the course: one look for all, and words for those who cannot see them."""

import matplotlib.pyplot as plt
from IPython.display import display

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
    """Shows a figure once, with the text that stands for it where it can't be seen."""
    display(figure, metadata={"image/png": {"alt": alt}})
    plt.close(figure)
