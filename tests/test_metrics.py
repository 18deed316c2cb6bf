"""Metrics against counts by hand, sets of pixels and scikit-image."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from dl_techniques.errors import ArgumentError
from dl_techniques.metrics import Calibration, Confusion, ssim
from models import image


@given(seed=st.integers(0, 99), classes=st.integers(2, 5))
def test_confusion_over_many_images_is_that_of_all_their_pixels(seed, classes):
    rng = np.random.default_rng(seed)
    confusion = Confusion(classes)
    pixels = []
    for _ in range(3):
        true, predicted = rng.choice([0, classes - 1], size=(2, 4, 5, 1)).astype("uint8")
        predicted[0] = rng.integers(classes)
        valid = rng.uniform(size=true.shape) < 0.8
        true[~valid] = 255
        confusion.update(predicted, true, valid)
        pixels += [(int(t), int(p)) for t, p in zip(true[valid], predicted[valid], strict=True)]
    found = {p for _, p in pixels} | {t for t, _ in pixels}
    for label in range(classes):
        both = sum(t == p == label for t, p in pixels)
        either = sum(label in pair for pair in pixels)
        assert confusion.occurs[label] == (label in found)
        assert confusion.iou[label] == pytest.approx(both / either if either else 1.0)
        assert confusion.dice[label] == pytest.approx(2 * both / (either + both) if either else 1.0)
    assert confusion.mean_iou == pytest.approx(np.mean([confusion.iou[label] for label in found]))
    assert confusion.mean_dice == pytest.approx(np.mean([confusion.dice[label] for label in found]))
    assert confusion.accuracy == pytest.approx(np.mean([t == p for t, p in pixels]))


def test_empty_masks_agree_and_an_ignored_set_has_no_score():
    empty = np.zeros((3, 3), bool)
    agreed = Confusion(2).update(empty, empty)
    assert agreed.dice.tolist() == agreed.iou.tolist() == [1.0, 1.0] and agreed.mean_iou == 1.0
    ignored = Confusion(2).update(empty, ~empty, valid=empty)
    assert math.isnan(ignored.mean_iou) and math.isnan(ignored.mean_dice) and math.isnan(ignored.accuracy)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: Confusion(1), "`classes` must be at least 2"),
        (
            lambda: Confusion(2).update(np.zeros(3, int), np.full(3, 2)),
            "`true` must hold classes from 0 to 1 .* true=2",
        ),
        (lambda: Confusion(2).update(np.array([0, -1]), np.zeros(2, int)), "`predicted` must hold .* predicted=-1"),
        (lambda: Confusion(2).update(np.zeros(3, int), np.zeros((3, 1), int)), r"`true` must have the shape \(3,\)"),
        (lambda: Confusion(2).update(np.zeros(3, int), np.zeros(3, int), np.ones(2)), "`valid` must have the shape"),
        (lambda: Calibration(0), "`bins` must be at least 1"),
        (lambda: Calibration().update(np.array([0.5, np.nan]), np.ones(2)), r"`confidence` must be in \[0, 1\]"),
        (lambda: ssim(image(12, 12, 1), image(12, 13, 1)), "`image` must have the shape of the reference"),
        (lambda: ssim(image(10, 12, 1), image(10, 12, 1)), "`image` must be .* of at least 11x11 pixels"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_that_of_scikit_image(channels):
    reference = image(37, 53, channels)
    for other in (image(37, 53, channels, seed=1), 0.8 * reference + 0.1, np.clip(reference + 0.2, 0, 1)):
        expected = structural_similarity(
            other,
            reference,
            data_range=1.0,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert ssim(other, reference) == pytest.approx(expected, abs=1e-6)
    assert ssim(reference, reference) == pytest.approx(1.0)


def test_calibration_error_is_the_mean_distance_of_its_table():
    calibration = Calibration(bins=4)
    calibration.update(np.array([[0.1, 0.2], [0.3, 0.99]]), np.array([[True, False], [True, False]]))
    calibration.update(np.array([1.0, 0.6, 0.0]), np.array([True, True, True]), np.array([True, True, False]))
    low, second, third, high = calibration.table
    assert (low.low, low.high, low.count, low.accuracy) == (0.0, 0.25, 2, 0.5) and low.confidence == pytest.approx(0.15)
    assert (second.count, third.count, high.count, high.high) == (1, 1, 2, 1.0)
    assert high.confidence == pytest.approx(0.995) and high.accuracy == 0.5
    assert calibration.error == pytest.approx((2 * 0.35 + 0.7 + 0.4 + 2 * 0.495) / 6)
    assert math.isnan(Calibration(3).table[1].confidence) and math.isnan(Calibration(3).error)


def test_honest_probabilities_are_calibrated_and_exaggerated_ones_are_not(rng):
    probability = rng.uniform(size=(200, 200))
    truth = rng.uniform(size=probability.shape) < probability
    assert Calibration().update(probability, truth).error < 0.02
    assert Calibration().update(np.rint(probability), truth).error == pytest.approx(0.25, abs=0.02)
