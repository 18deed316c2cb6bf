"""The blind denoiser as a prior of plug-and-play restoration."""

from pathlib import Path

import numpy as np
import pytest

from dl_techniques.engines.engine import Engine
from dl_techniques.errors import ArgumentError
from dl_techniques.inference.prior import denoise_prior
from models import denoise_pixels, image, relative_difference, smoothing_engine


def test_prior_adds_the_noise_it_removes():
    identity = Engine(lambda batch: batch, 1, "identity", Path("identity"))
    x = image(96, 96, 1, seed=3)
    prior = denoise_prior(identity)
    first, second = prior(x, 0.2) - x, prior(x, 0.2) - x
    assert np.std(first) == pytest.approx(0.2, rel=0.05) and abs(np.mean(first)) < 0.01
    assert abs(np.mean(first * second)) < 0.005  # drawn anew
    np.testing.assert_array_equal(denoise_prior(identity)(x, 0.2) - x, first)
    np.testing.assert_array_equal(denoise_prior(smoothing_engine())(x, 0.0), denoise_pixels(x, smoothing_engine()))


def test_prior_is_homogeneous(engine):
    x = image(24, 32, 1, seed=4).astype("float64")
    expected = 255.0 * denoise_prior(engine, seed=7)(x, 0.1)
    assert relative_difference(denoise_prior(engine, seed=7)(255.0 * x, 25.5), expected) <= 1e-5


@pytest.mark.parametrize("sigma", [-0.1, np.nan, np.inf])
def test_prior_refuses_a_level_that_is_none(sigma):
    with pytest.raises(ArgumentError, match="sigma"):
        denoise_prior(smoothing_engine())(image(8, 8, 1), sigma)


def test_prior_refuses_integers():
    with pytest.raises(ArgumentError, match="image.*floats"):
        denoise_prior(smoothing_engine())(np.zeros((8, 8, 1), "uint8"), 1.0)
