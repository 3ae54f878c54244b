"""Scaling laws: fits find laws that are known, and weights are repetitions."""

import numpy as np
import pytest

from tinygpt_lib.scaling_laws import (
    bootstrap,
    fit_product,
    fit_sum,
    least_squares,
    product_at,
    sum_at,
)

SIZES = np.array([0.03, 0.1, 0.3, 1.0])
N, D = (x.ravel() for x in np.meshgrid(SIZES, SIZES))
SUM = np.array([1.0, 0.1, 0.5, 0.4, 0.3])
PRODUCT = np.array([1.6, 0.03, 0.09])


def test_least_squares_is_numpys():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(9, 3)), rng.normal(size=9)
    (ours,) = least_squares(x, y, np.ones((1, 9)))
    np.testing.assert_allclose(ours, np.linalg.lstsq(x, y, rcond=None)[0], atol=1e-6)


def test_the_product_is_found_again():
    (law,) = fit_product(N, D, product_at(PRODUCT, N, D))
    np.testing.assert_allclose(law, PRODUCT, rtol=1e-5)


def test_the_sum_forecasts_what_it_was_made_of():
    """Exponents are tried in steps of 8 %, so a forecast near by is nearly exact."""
    (law,) = fit_sum(N, D, sum_at(SUM, N, D))
    assert sum_at(law, 2.0, 2.0) == pytest.approx(sum_at(SUM, 2.0, 2.0), abs=0.005)


def test_no_part_of_the_sum_is_negative():
    (law,) = fit_sum(N, D, 2 - 0.2 * SIZES.repeat(4))  # more text, lower; size nothing
    assert (law >= 0).all()


@pytest.mark.parametrize("fit", [fit_sum, fit_product])
def test_a_run_that_counts_twice_is_a_run_made_twice(fit):
    loss = sum_at(SUM, N, D) + np.random.default_rng(0).normal(0, 0.01, len(N))
    times = np.ones((2, len(N)))
    times[1, :5] = 2
    twice = [np.concatenate([x, x[:5]]) for x in (N, D, loss)]
    once, weighted = fit(N, D, loss, times)
    np.testing.assert_allclose(weighted, fit(*twice)[0], rtol=1e-6)
    np.testing.assert_allclose(once, fit(N, D, loss)[0], rtol=1e-6)


def test_draws_scatter_around_the_fit_and_follow_their_seed():
    loss = product_at(PRODUCT, N, D) * np.exp(
        np.random.default_rng(0).normal(0, 0.01, len(N))
    )
    laws = bootstrap(fit_product, N, D, loss, n=500)
    low, high = np.percentile(laws[:, 0], [0.5, 99.5])
    assert low < fit_product(N, D, loss)[0, 0] < high
    np.testing.assert_array_equal(laws, bootstrap(fit_product, N, D, loss, n=500))
    assert (laws != bootstrap(fit_product, N, D, loss, n=500, seed=1)).any()
