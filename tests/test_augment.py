"""Augmentation: image and mask move together, classes stay classes, draws come from the generator alone."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dl_techniques.datasets import augmentation as augment
from dl_techniques.datasets.augmentation import SYMMETRIES, Augmentation
from dl_techniques.errors import ArgumentError
from models import image

GEOMETRY = {
    "horizontal_flip": lambda sample, rng: augment.horizontal_flip(sample),
    "vertical_flip": lambda sample, rng: augment.vertical_flip(sample),
    "rotation": augment.rotation,
    "affine": partial(augment.affine, scale=0.3, shift=0.1, angle=15.0),
    "elastic": partial(augment.elastic, spacing=8, displacement=0.4),
}
LIGHT = {
    "brightness": partial(augment.brightness, strength=0.1),
    "contrast": partial(augment.contrast, strength=0.3),
    "gamma": partial(augment.gamma, strength=0.4),
}
DISTURBANCE = {
    "noise": partial(augment.noise, strength=0.1),
    "blur": partial(augment.blur, strength=2.0),
}
ALWAYS = Augmentation(**dict.fromkeys([*GEOMETRY, *LIGHT, *DISTURBANCE], 1.0), elastic_spacing=8)
OPERATIONS = {**GEOMETRY, **LIGHT, **DISTURBANCE, "pipeline": lambda sample, rng: ALWAYS(*sample, rng)}


@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool", "float32"])
@pytest.mark.parametrize("name", OPERATIONS)
@given(height=st.integers(1, 20), width=st.integers(1, 20), seed=st.integers(0, 99))
def test_type_size_and_class_values_survive_and_nothing_is_changed_in_place(name, dtype, height, width, seed):
    rng = np.random.default_rng(seed)
    picture, mask = image(height, width, 3), rng.choice([0, 1, 7, 255], size=(height, width, 1)).astype(dtype)
    before = picture.copy(), mask.copy()
    moved, labels = OPERATIONS[name]((picture, mask), rng)
    assert moved.dtype == "float32" and moved.shape == picture.shape and np.isfinite(moved).all()
    assert labels.dtype == mask.dtype and labels.shape == mask.shape
    assert dtype == "float32" or set(np.unique(labels)) <= set(np.unique(mask))
    assert np.array_equal(picture, before[0]) and np.array_equal(mask, before[1])


@pytest.mark.parametrize("size", [(24, 24), (17, 30)])
@pytest.mark.parametrize("name", GEOMETRY)
def test_image_mask_and_continuous_target_move_alike(name, size):
    places = np.stack(np.indices(size), axis=-1)  # every pixel holds its own row and column
    for seed in range(5):
        moved, labels = GEOMETRY[name]((places.astype("float32"), places), np.random.default_rng(seed))
        assert np.abs(moved - labels).max() <= 0.5 + 1e-4 and not np.array_equal(labels, places)
        _, again = GEOMETRY[name]((places.astype("float32"), places.astype("float32")), np.random.default_rng(seed))
        assert np.array_equal(moved, again)


def test_image_and_mask_move_alike_through_the_whole_pipeline():
    places = np.stack(np.indices((40, 40)), axis=-1)
    geometry = Augmentation(**dict.fromkeys(GEOMETRY, 1.0), **dict.fromkeys([*LIGHT, *DISTURBANCE], 0.0))
    for seed in range(10):
        moved, labels = geometry(places.astype("float32"), places, np.random.default_rng(seed))
        assert np.abs(moved - labels).max() <= 1.5 and not np.array_equal(labels, places)  # the nearest pixel, twice


@pytest.mark.parametrize("name", [*LIGHT, *DISTURBANCE])
def test_intensity_changes_and_noise_leave_masks_alone(name, rng):
    picture, mask = image(24, 24, 3), rng.integers(3, size=(24, 24, 1))
    changed, labels = OPERATIONS[name]((picture, mask), rng)
    assert labels is mask and not np.array_equal(changed, picture)


@pytest.mark.parametrize("name", LIGHT)
def test_intensities_of_image_and_continuous_target_change_alike(name, rng):
    picture = image(24, 24, 3)
    changed, target = LIGHT[name]((picture, picture[:, ::-1]), rng)
    assert np.array_equal(changed, target[:, ::-1]) and not np.array_equal(changed, picture)


@pytest.mark.parametrize("name", OPERATIONS)
def test_draws_come_from_the_generator_alone(name):
    sample = image(24, 24, 3), image(24, 24, 1) > 0.5
    first, same = (OPERATIONS[name](sample, np.random.default_rng(3)) for _ in range(2))
    assert all(np.array_equal(one, other) for one, other in zip(first, same, strict=True))
    if name not in ("horizontal_flip", "vertical_flip"):
        assert any(
            not np.array_equal(OPERATIONS[name](sample, np.random.default_rng(n))[0], first[0]) for n in (4, 5, 6)
        )


def test_no_strength_changes_nothing(rng):
    sample = image(9, 14, 3), image(9, 14, 1) > 0.5
    still = Augmentation(**{name: 0.0 for name in Augmentation.__dataclass_fields__ if name != "elastic_spacing"})
    assert all(one is other for one, other in zip(still(*sample, rng), sample, strict=True))
    strengths = {name: 0.0 for name in Augmentation.__dataclass_fields__ if name.startswith("max_")}
    chances = {
        "horizontal_flip": 0.0,
        "vertical_flip": 0.0,
        "rotation": 0.0,
        **dict.fromkeys(["affine", "elastic", *LIGHT, *DISTURBANCE], 1),
    }
    changed, mask = Augmentation(**chances, **strengths)(*sample, rng)
    assert np.allclose(changed, sample[0], atol=1e-5) and np.array_equal(mask, sample[1])


def test_affine_is_its_matrix():
    picture = image(21, 31, 2)
    draws = iter([0.8, -7.0, (0.06, -0.04)])  # zoom, degrees, shift as a share of each axis

    class Fixed:
        def uniform(self, low, high, size=None):
            return next(draws) if size is None else np.array(next(draws))

    moved, _ = augment.affine((picture, picture), Fixed(), scale=0.3, shift=0.1, angle=15.0)
    zoom, angle = 1.3**0.8, np.radians(-7.0)
    centre, shift = np.array([10.0, 15.0]), np.array([0.06 * 21, -0.04 * 31])
    inverse = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / zoom
    mirrored = np.pad(picture.astype("float64"), ((30, 30), (30, 30), (0, 0)), mode="symmetric")
    for pixel in [(0, 0), (3, 28), (10, 15), (20, 30), (20, 1)]:
        place = inverse @ (np.array(pixel) - centre - shift) + centre + 30
        (row, column), (down, right) = np.floor(place).astype(int), place % 1
        above, below = mirrored[row, column : column + 2], mirrored[row + 1, column : column + 2]
        expected = (1 - down) * ((1 - right) * above[0] + right * above[1])
        expected += down * ((1 - right) * below[0] + right * below[1])
        assert np.allclose(moved[pixel], expected, atol=1e-5)


def test_strongest_deformation_folds_nothing():
    class Extreme:
        def __init__(self, seed):
            self.rng = np.random.default_rng(seed)

        def uniform(self, low, high, size):
            return self.rng.choice([low, high], size)

    places = np.stack(np.indices((64, 64)), axis=-1).astype("float32")
    for seed in range(20):
        deformed, _ = augment.elastic((places, places), Extreme(seed), spacing=16, displacement=0.479)
        inside = deformed[8:-8, 8:-8].astype("float64")  # away from the mirrored edge
        down, across = np.diff(inside, axis=0)[:, :-1], np.diff(inside, axis=1)[:-1]
        assert (down[..., 0] * across[..., 1] - down[..., 1] * across[..., 0]).min() > 0


def test_what_is_not_square_keeps_its_size_and_all_rotations_occur():
    square, oblong = image(6, 6, 1), image(6, 9, 1)
    turned = {augment.rotation((square, square), np.random.default_rng(n))[0].tobytes() for n in range(20)}
    assert turned == {np.rot90(square, quarters).tobytes() for quarters in (1, 2, 3)}
    assert np.array_equal(augment.rotation((oblong, oblong), np.random.default_rng(0))[0], oblong[::-1, ::-1])


def test_symmetries_keep_every_intensity(rng):
    clean = image(16, 16, 3)
    for _ in range(20):
        noisy, target = SYMMETRIES(clean + np.float32(1.5), clean, rng)
        assert np.array_equal(noisy, target + np.float32(1.5))
        assert np.array_equal(np.sort(target, axis=None), np.sort(clean, axis=None))


def test_intensity_changes_and_noise_have_the_strength_asked_for(rng):
    picture = image(64, 64, 1)
    sample = picture, picture > 0.5
    for _ in range(10):
        shift = augment.brightness(sample, rng, 0.1)[0] - picture
        assert np.ptp(shift) < 1e-6 and abs(shift.mean()) <= 0.1
        stretched = augment.contrast(sample, rng, 0.3)[0]
        assert abs(stretched.mean() - picture.mean()) < 1e-5 and 1 / 1.3 <= stretched.std() / picture.std() <= 1.3
        bowed = augment.gamma(sample, rng, 0.4)[0]
        assert np.allclose([bowed.min(), bowed.max()], [picture.min(), picture.max()])
        assert (np.argsort(bowed, axis=None) == np.argsort(picture, axis=None)).all()
        assert np.std(augment.noise(sample, rng, 0.1)[0] - picture) <= 0.105
    spike = np.pad(np.ones((1, 1, 1), "float32"), ((20, 20), (20, 20), (0, 0)))
    blurred = augment.blur((spike, spike), np.random.default_rng(1), 2.0)[0][..., 0].astype("float64")
    sigma = np.random.default_rng(1).uniform(0, 2.0)
    spread = np.sqrt((blurred.sum(1) * np.square(np.arange(-20, 21))).sum())
    assert blurred.sum() == pytest.approx(1, abs=1e-5) and spread == pytest.approx(sigma, rel=0.03)


def test_flat_images_stay_flat(rng):
    flat = np.full((8, 8, 3), 0.37, "float32")
    for name in (*GEOMETRY, *LIGHT, "blur"):
        changed, _ = OPERATIONS[name]((flat, flat[..., :1] > 0), rng)
        assert np.ptp(changed) < 1e-6 and np.isfinite(changed).all()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"horizontal_flip": 1.1}, r"`horizontal_flip` must be a probability in \[0, 1\]"),
        ({"max_scale": -0.1}, "`max_scale` must be at least 0"),
        ({"max_blur": np.inf}, "`max_blur` must be at least 0 and finite"),
        ({"elastic_spacing": 0}, "`elastic_spacing` must be at least 1"),
        ({"max_displacement": 0.5}, "`max_displacement` must be below 0.48, where images begin to fold"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ArgumentError, match=message):
        Augmentation(**settings)


def test_samples_that_do_not_fit_are_refused(rng):
    with pytest.raises(ArgumentError, match=r"`image` must be .* float32. Received: .*uint8 \(4, 4, 3\)"):
        Augmentation()(np.zeros((4, 4, 3), "uint8"), np.zeros((4, 4, 1), "uint8"), rng)
    with pytest.raises(ArgumentError, match="`target` must be .* of the image's 4x4 pixels"):
        Augmentation()(np.zeros((4, 4, 3), "float32"), np.zeros((4, 5, 1), "uint8"), rng)
