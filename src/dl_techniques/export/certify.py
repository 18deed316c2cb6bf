"""The certificate of a bias-free model: f(a·x) = a·f(x), measured on the model itself, whatever it was exported to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dl_techniques.card import card_path, read_card, write_card
from dl_techniques.engines.engine import Engine
from dl_techniques.engines.formats import find_format
from dl_techniques.models.convunext.presets import write_preset_card

if TYPE_CHECKING:
    from rich.console import Console

# From 1e-3 to 1e3, no powers of two: floats scale by those exactly and prove nothing.
ALPHAS = (0.001, 0.0137, 0.37, 1.7, 73.0, 999.0)
SIZES = ((1, 1), (17, 31), (64, 64), (97, 61), (128, 160))
LIMIT = 1e-5


@dataclass(frozen=True)
class Certificate:
    """Errors `‖f(a·x) − a·f(x)‖ / ‖a·f(x)‖` of a model, a row per image size, a column per factor.

    `black` is the largest magnitude of the output for a black image: 0 without additive parameters.
    """

    errors: np.ndarray
    sizes: tuple[tuple[int, int], ...]
    alphas: tuple[float, ...]
    black: float
    limit: float

    @property
    def holds(self) -> bool:
        """Whether every error is finite and within the limit, and black stays black."""
        return bool(np.all(self.errors <= self.limit)) and self.black == 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return what the card keeps."""
        return {
            "property": "f(a*x) = a*f(x)",
            "holds": self.holds,
            "largest_error": float(self.errors.max()),
            "limit": self.limit,
            "alphas": list(self.alphas),
            "sizes": [list(size) for size in self.sizes],
            "black_image": self.black,
        }


def certify(
    engine: Engine,
    alphas: tuple[float, ...] = ALPHAS,
    sizes: tuple[tuple[int, int], ...] = SIZES,
    limit: float = LIMIT,
) -> Certificate:
    """Measure the scale-equivariance of a model on random images; one of a fixed size is measured at its own.

    `limit` is the largest relative error of a model that keeps the promise, about a hundred float32 roundings.
    """
    sizes = tuple(dict.fromkeys(engine.fit(size) for size in sizes))
    errors = np.empty((len(sizes), len(alphas)))
    for row, size in enumerate(sizes):
        image = np.random.default_rng(row).uniform(size=(1, *size, engine.channels)).astype("float32")
        expected = engine.function(image).astype("float64")
        for column, alpha in enumerate(alphas):
            scale = np.float32(alpha)
            difference = np.linalg.norm(engine.function(scale * image) - float(scale) * expected)
            norm = float(scale) * np.linalg.norm(expected)
            errors[row, column] = difference / norm if difference else 0.0
    black = float(np.abs(engine.function(np.zeros((1, *engine.fit((33, 47)), engine.channels), "float32"))).max())
    return Certificate(np.nan_to_num(errors, nan=np.inf), sizes, alphas, black, limit)


def print_certificate(certificate: Certificate, engine: Engine, console: Console) -> None:
    """Show the errors, a row per size and a column per factor, and the verdict."""
    from rich.table import Table

    table = Table("image", *(f"a = {alpha:g}" for alpha in certificate.alphas), title="|f(a*x) - a*f(x)| / |a*f(x)|")
    for (height, width), errors in zip(certificate.sizes, certificate.errors, strict=True):
        table.add_row(f"{height}x{width}", *(f"{error:.1e}" for error in errors))
    console.print(table)
    verdict = "holds" if certificate.holds else "is BROKEN"
    console.print(
        f"{engine.source}: scale-equivariance {verdict}: largest error {certificate.errors.max():.1e}, "
        f"allowed {certificate.limit:g}; a black image gives {certificate.black:g}"
    )


def save_certificate(certificate: Certificate, engine: Engine) -> Path:
    """Write the certificate into the model's card and return where the card lies.

    Raises:
        FileError: The card cannot be written.
    """
    preset = engine.path.is_dir() and find_format(engine.path) is None
    write = write_preset_card if preset else write_card
    write(engine.path, replace(read_card(engine.path), certificate=certificate.as_dict()))
    return engine.path if engine.path.suffix == ".keras" else card_path(engine.path)
