# generated from notebooks/text/14_scaling_laws.py: edit there
"""Scaling laws: what loss for the money?"""

from collections.abc import Callable

import numpy as np

__all__ = [
    "bootstrap",
    "fit_product",
    "fit_sum",
    "least_squares",
    "product_at",
    "sum_at",
]

# --- A law ---


def least_squares(x: np.ndarray, y: np.ndarray, times: np.ndarray) -> np.ndarray:
    """p with x @ p near y, for each row of `times`, how often a run counts.

    x (runs, k), y (runs,), times (rows, runs) -> (rows, k).
    """
    k = x.shape[1]
    xx = (times @ (x[:, :, None] * x[:, None]).reshape(-1, k * k)).reshape(-1, k, k)
    xy = (times * y) @ x
    return np.linalg.solve(xx + 1e-9 * np.eye(k), xy[..., None])[..., 0]


def fit_sum(N, D, loss, times=None) -> np.ndarray:
    """E, A, B, a, b of E + A / N^a + B / D^b for each row of `times`: (rows, 5).

    Exponents from 0.05 to 1.5; E, A and B not negative. Hoffmann et al., 2022. Count N
    and D in units near those of the runs.
    """
    times = np.ones((1, len(loss))) if times is None else times
    best, least = np.zeros((len(times), 5)), np.full(len(times), np.inf)
    for a in np.geomspace(0.05, 1.5, 45):
        for b in np.geomspace(0.05, 1.5, 45):
            x = np.stack([np.ones_like(N), N**-a, D**-b], axis=1)  # (runs, 3)
            p = least_squares(x, loss, times)
            errors = (times * (p @ x.T - loss) ** 2).sum(axis=1)
            better = (errors < least) & (p >= 0).all(axis=1)
            least[better] = errors[better]
            best[better] = np.insert(p, 3, [[a], [b]], axis=1)[better]
    return best


def sum_at(law: np.ndarray, N, D):
    """The loss by a law of `fit_sum`."""
    E, A, B, a, b = law.T
    return E + A * N**-a + B * D**-b


# --- How sure is that? ---


def bootstrap(fit: Callable, N, D, loss, n: int = 2000, seed: int = 0) -> np.ndarray:
    """The fits to n draws of the runs, with replacement. Efron, 1979."""
    runs = len(loss)
    rng = np.random.default_rng(seed)
    return fit(
        N, D, loss, rng.multinomial(runs, [1 / runs] * runs, size=n).astype(float)
    )


# --- A rival ---


def fit_product(N, D, loss, times=None) -> np.ndarray:
    """c, a, b of c / (N^a · D^b) for each row of `times`: (rows, 3)."""
    times = np.ones((1, len(loss))) if times is None else times
    x = np.stack([np.ones_like(N), -np.log(N), -np.log(D)], axis=1)
    p = least_squares(x, np.log(loss), times)
    return np.concatenate([np.exp(p[:, :1]), p[:, 1:]], axis=1)


def product_at(law: np.ndarray, N, D):
    """The loss by a law of `fit_product`."""
    c, a, b = law.T
    return c * N**-a * D**-b
