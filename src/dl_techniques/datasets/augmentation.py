"""Random changes of a sample: geometry for image and target alike, intensities and noise for the image.

A sample is an image, `(height, width, channels)`, float32, normalised, and its target of the same height and width. The
target's type says what it is: integers and booleans are classes (taken from the nearest pixel, never mixed), floats are
intensities (interpolated linearly, brightened along with the image). Nothing is changed in place, sizes stay, and what
comes in from outside is the sample mirrored at its edge.

Reference: Simard et al. 2003 (elastic distortion); Ronneberger et al. 2015, section 3.1 (displacements of a coarse
grid). Deviation: cubic B-splines and bounded displacements, so that nothing folds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np

from dl_techniques.datasets.filters import filter_inside, gaussian_window
from dl_techniques.datasets.noise import add_gaussian_noise
from dl_techniques.errors import ArgumentError

Sample = tuple[np.ndarray, np.ndarray]

FOLD = 0.48  # of the grid's spacing: displacements below it cannot fold a cubic B-spline (Choi and Lee 2000)


def horizontal_flip(sample: Sample) -> Sample:
    """Exchange left and right."""
    image, target = sample
    return image[:, ::-1], target[:, ::-1]


def vertical_flip(sample: Sample) -> Sample:
    """Exchange top and bottom."""
    image, target = sample
    return image[::-1], target[::-1]


def rotation(sample: Sample, rng: np.random.Generator) -> Sample:
    """Rotate by 90, 180 or 270 degrees; what is not square by 180, which keeps its size."""
    image, target = sample
    quarters = int(rng.integers(1, 4)) if image.shape[0] == image.shape[1] else 2
    return np.rot90(image, quarters), np.rot90(target, quarters)


def affine(sample: Sample, rng: np.random.Generator, scale: float, shift: float, angle: float) -> Sample:
    """Scale and rotate about the centre, and shift, each by a uniform draw.

    A scale of 0.3 is a zoom from 1/1.3 to 1.3, its logarithm uniform; the shift is a share of each axis, the angle in
    degrees.
    """
    height, width = sample[0].shape[:2]
    zoom, radians = _factor(scale, rng), math.radians(rng.uniform(-angle, angle))
    down, right = rng.uniform(-shift, shift, 2) * (height, width)
    cos, sin = math.cos(radians) / zoom, math.sin(radians) / zoom
    row = np.arange(height, dtype="float32")[:, None] - (height - 1) / 2 - down
    column = np.arange(width, dtype="float32")[None] - (width - 1) / 2 - right
    rows = np.float32(cos) * row + (np.float32(sin) * column + np.float32((height - 1) / 2))
    columns = np.float32(-sin) * row + (np.float32(cos) * column + np.float32((width - 1) / 2))
    return _resample(sample, rows, columns)


def elastic(sample: Sample, rng: np.random.Generator, spacing: int, displacement: float) -> Sample:
    """Deform by a cubic B-spline with a random displacement at every node of a coarse grid.

    Nodes are `spacing` pixels apart; a displacement is a share of that, and nothing folds below 0.48.
    """
    height, width = sample[0].shape[:2]
    down, across = _spline_weights(height, spacing), _spline_weights(width, spacing)
    nodes = (2, down.shape[1], across.shape[1])
    moves = np.float32(displacement * spacing) * rng.uniform(-1, 1, nodes).astype("float32")
    rows, columns = down @ moves @ across.T  # (2, height, width)
    rows = rows + np.arange(height, dtype="float32")[:, None]
    columns = columns + np.arange(width, dtype="float32")
    return _resample(sample, rows, columns)


def brightness(sample: Sample, rng: np.random.Generator, strength: float) -> Sample:
    """Add one number of at most `strength`, in the unit of the image."""
    change = np.float32(rng.uniform(-strength, strength))
    return _map_intensities(sample, lambda values: values + change)


def contrast(sample: Sample, rng: np.random.Generator, strength: float) -> Sample:
    """Multiply the distance to the image's mean by a factor from `1 / (1 + strength)` to `1 + strength`."""
    mean, factor = sample[0].mean(dtype="float64").astype("float32"), np.float32(_factor(strength, rng))
    return _map_intensities(sample, lambda values: (values - mean) * factor + mean)


def gamma(sample: Sample, rng: np.random.Generator, strength: float) -> Sample:
    """Raise intensities, as shares of the sample's range, to a power from `1 / (1 + strength)` to `1 + strength`."""
    exponent = np.float32(_factor(strength, rng))
    known = [array for array in sample if array.dtype.kind == "f"]
    low, high = min(array.min() for array in known), max(array.max() for array in known)
    if not high > low:
        return sample
    span = np.float32(high - low)
    return _map_intensities(sample, lambda values: ((values - low) / span) ** exponent * span + low)


def noise(sample: Sample, rng: np.random.Generator, strength: float) -> Sample:
    """Add Gaussian noise to the image, its standard deviation at most `strength`, in the unit of the image."""
    image, target = sample
    return add_gaussian_noise(image, rng.uniform(0, strength), rng), target


def blur(sample: Sample, rng: np.random.Generator, strength: float) -> Sample:
    """Blur the image by a Gaussian whose standard deviation is at most `strength` pixels."""
    image, target = sample
    sigma = max(rng.uniform(0, strength), 1e-3)  # never 0: it divides
    reach = math.ceil(3 * sigma)
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="symmetric")
    return filter_inside(padded, gaussian_window(sigma, reach)), target


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes of a sample: the probability of each, and its largest strength.

    The defaults suit objects without an upright position, in images of unit range; photographs want `vertical_flip=0,
    rotation=0`.

    Attributes:
        horizontal_flip: Probability of exchanging left and right.
        vertical_flip: Probability of exchanging top and bottom.
        rotation: Probability of a rotation by right angles.
        affine: Probability of scaling, shift and small rotation.
        elastic: Probability of elastic deformation.
        brightness: Probability of another brightness.
        contrast: Probability of another contrast.
        gamma: Probability of another gamma.
        noise: Probability of Gaussian noise.
        blur: Probability of Gaussian blur.
        max_scale: Largest zoom less 1.
        max_shift: Largest shift, as a share of the length of the axis.
        max_angle: Largest small rotation, in degrees.
        elastic_spacing: Distance of the nodes of elastic deformation, in pixels.
        max_displacement: Largest displacement of a node, as a share of their distance, below 0.48.
        max_brightness: Largest change of brightness, in the unit of the image.
        max_contrast: Largest factor of contrast less 1.
        max_gamma: Largest exponent less 1.
        max_noise: Largest standard deviation of the noise, in the unit of the image.
        max_blur: Largest standard deviation of the blur, in pixels.
    """

    horizontal_flip: float = 0.5
    vertical_flip: float = 0.5
    rotation: float = 0.75
    affine: float = 0.3
    elastic: float = 0.15
    brightness: float = 0.2
    contrast: float = 0.2
    gamma: float = 0.2
    noise: float = 0.1
    blur: float = 0.1
    max_scale: float = 0.3
    max_shift: float = 0.1
    max_angle: float = 15.0
    elastic_spacing: int = 48
    max_displacement: float = 0.25
    max_brightness: float = 0.1
    max_contrast: float = 0.3
    max_gamma: float = 0.4
    max_noise: float = 0.05
    max_blur: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.startswith("max_") and not 0 <= value < math.inf:
                raise ArgumentError(field.name, "must be at least 0 and finite", value)
            if not field.name.startswith(("max_", "elastic_")) and not 0 <= value <= 1:
                raise ArgumentError(field.name, "must be a probability in [0, 1]", value)
        if self.elastic_spacing < 1:
            raise ArgumentError("elastic_spacing", "must be at least 1", self.elastic_spacing)
        if not self.max_displacement < FOLD:
            raise ArgumentError(
                "max_displacement", f"must be below {FOLD}, where images begin to fold", self.max_displacement
            )

    def __call__(self, image: np.ndarray, target: np.ndarray, rng: np.random.Generator) -> Sample:
        """Return a changed sample, the same for the same state of `rng`.

        Args:
            image: `(height, width, channels)`, float32, normalised.
            target: `(height, width, channels)`, integers or booleans for classes, float32 for intensities.
            rng: Source of all draws.

        Raises:
            ArgumentError: The image is of another type, or the sizes differ.
        """
        if image.dtype != np.float32 or image.ndim != 3:
            raise ArgumentError("image", "must be (height, width, channels), float32", f"{image.dtype} {image.shape}")
        if target.ndim != 3 or target.shape[:2] != image.shape[:2]:
            rule = f"must be (height, width, channels) of the image's {image.shape[0]}x{image.shape[1]} pixels"
            raise ArgumentError("target", rule, f"shape {target.shape}")
        sample = image, target
        changes = (
            (self.horizontal_flip, lambda: horizontal_flip(sample)),
            (self.vertical_flip, lambda: vertical_flip(sample)),
            (self.rotation, lambda: rotation(sample, rng)),
            (self.affine, lambda: affine(sample, rng, self.max_scale, self.max_shift, self.max_angle)),
            (self.elastic, lambda: elastic(sample, rng, self.elastic_spacing, self.max_displacement)),
            (self.blur, lambda: blur(sample, rng, self.max_blur)),
            (self.brightness, lambda: brightness(sample, rng, self.max_brightness)),
            (self.contrast, lambda: contrast(sample, rng, self.max_contrast)),
            (self.gamma, lambda: gamma(sample, rng, self.max_gamma)),
            (self.noise, lambda: noise(sample, rng, self.max_noise)),
        )
        for probability, change in changes:
            if rng.random() < probability:
                sample = change()
        return sample

    def __str__(self) -> str:
        words = {
            "flips": self.horizontal_flip + self.vertical_flip,
            "rotations": self.rotation,
            "scaling": self.affine,
            "elastic deformation": self.elastic,
            "brightness": self.brightness + self.contrast + self.gamma,
            "blur": self.blur,
            "noise": self.noise,
        }
        return ", ".join(word for word, probability in words.items() if probability) or "none"


# By the name that the settings of a training give.
STRENGTHS = {
    "none": Augmentation(
        horizontal_flip=0, vertical_flip=0, rotation=0, affine=0, elastic=0, brightness=0, contrast=0, gamma=0, noise=0,
        blur=0,
    ),
    "light": Augmentation(
        elastic=0, noise=0, blur=0, affine=0.15, brightness=0.1, contrast=0.1, gamma=0.1,
        max_scale=0.15, max_shift=0.05, max_angle=7.5, max_brightness=0.05, max_contrast=0.15, max_gamma=0.2,
    ),
    "default": Augmentation(),
}  # fmt: skip

# For images whose clean counterpart is known: interpolation, noise and blur would change what is to be undone.
SYMMETRIES = Augmentation(affine=0, elastic=0, brightness=0, contrast=0, gamma=0, noise=0, blur=0)


def _factor(strength: float, rng: np.random.Generator) -> float:
    """Return a factor from 1 / (1 + strength) to 1 + strength, its logarithm uniform."""
    return math.exp(math.log1p(strength) * rng.uniform(-1, 1))


def _map_intensities(sample: Sample, change: Callable[[np.ndarray], np.ndarray]) -> Sample:
    image, target = sample
    return change(image), change(target) if target.dtype.kind == "f" else target


def _spline_weights(size: int, spacing: int) -> np.ndarray:
    """Return the weight of every node for every pixel of an axis, `(size, nodes)`, by the cubic B-spline."""
    position = np.arange(size, dtype="float32")[:, None] / np.float32(spacing)
    nodes = np.arange(-1, math.floor((size - 1) / spacing) + 3, dtype="float32")
    distance = np.abs(position - nodes)
    near = 2 / 3 - np.square(distance) + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, near, far).astype("float32")


def _resample(sample: Sample, rows: np.ndarray, columns: np.ndarray) -> Sample:
    """Fetch every pixel from the place that `rows` and `columns`, `(height, width)`, name."""
    image, target = sample
    return _linear(image, rows, columns), (_linear if target.dtype.kind == "f" else _nearest)(target, rows, columns)


def _linear(array: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    height, width, channels = array.shape
    (top, bottom), down = _neighbours(rows, height)
    (left, right), across = _neighbours(columns, width)
    pixels = array.reshape(-1, channels)
    top, bottom = top * width, bottom * width
    upper, lower = (
        _blend(pixels.take(row + left, axis=0), pixels.take(row + right, axis=0), across) for row in (top, bottom)
    )
    return _blend(upper, lower, down)


def _blend(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    second -= first
    second *= share
    first += second
    return first


def _neighbours(places: np.ndarray, size: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Return the pixels before and after places on an axis, and the share of the second, `(height, width, 1)`."""
    floor = np.floor(places)
    before = floor.astype(np.intp)
    return (_reflect(before, size), _reflect(before + 1, size)), (places - floor)[..., None]


def _nearest(array: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    height, width, channels = array.shape
    row = _reflect(np.rint(rows).astype(np.intp), height)
    column = _reflect(np.rint(columns).astype(np.intp), width)
    return array.reshape(-1, channels).take(row * width + column, axis=0)


def _reflect(index: np.ndarray, size: int) -> np.ndarray:
    """Return indices that continue an axis by its mirror image at both ends, again and again."""
    low, high = int(index.min()), int(index.max())
    if low >= 0 and high < size:
        return index
    table = np.arange(low, high + 1) % (2 * size)
    table = np.minimum(table, 2 * size - 1 - table)
    return table.take(index - low)
