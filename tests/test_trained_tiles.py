"""V2 with trained weights: tiles whose statistics are added up give, pass by pass, what the whole image gives."""

import keras
import numpy as np
import pytest

from dl_techniques.cli import main
from dl_techniques.datasets.normalization import standardize
from dl_techniques.datasets.samples import NUCLEI
from dl_techniques.engines.loading import load_engine
from dl_techniques.images.files import read_image
from dl_techniques.inference.network import Network

TRAINING = ["--steps", "80", "--steps-per-epoch", "80", "--patch", "64", "--batch-size", "4", "--seed", "3"]
NET = ["--depth", "2", "--initial-filters", "8", "--blocks-per-level", "1", "--val-fraction", "0.1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A V2 segmenter trained for a moment on the nuclei that ship with the package."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    sources = ["--images", str(NUCLEI / "image"), "--masks", str(NUCLEI / "label"), "-o", str(folder)]
    assert main(["train", "segment", *sources, *TRAINING, *NET]) == 0
    return load_engine(folder)


def mosaic(rows: int, columns: int) -> np.ndarray:
    """Return images of nuclei, dim and bright ones, side by side as one."""
    paths = iter(sorted((NUCLEI / "image").glob("*.png")))
    return np.block([[[read_image(next(paths)).pixels] for _ in range(columns)] for _ in range(rows)])


def test_trained_network_uses_what_tiles_must_add_up(trained):
    gammas = [weight for weight in trained.model.weights if weight.path.endswith("grn/gamma")]
    moved = [float(np.abs(keras.ops.convert_to_numpy(gamma)).max()) for gamma in gammas]
    assert len(moved) >= 5 and min(moved) > 1e-3, moved  # they begin at 0


@pytest.mark.parametrize("tile", [160, 192, 256])
def test_passes_over_tiles_come_to_the_whole_image(trained, tile):
    pixels = mosaic(2, 2)[:451, :387]
    x = standardize(pixels)
    whole = trained.function(x[None])[0]
    by_pass: dict[int, np.ndarray] = {}

    def receive(part, output, number):
        by_pass.setdefault(number, np.empty_like(whole))[part.write] = output

    passes = Network(trained).scan(x, tile, receive)
    errors = [float(np.abs(by_pass[number] - whole).max() / np.ptp(whole)) for number in sorted(by_pass)]
    print(f"tile {tile}, {passes[0].tiles} tiles:", " ".join(f"{error:.1e}" for error in errors))
    assert passes[0].tiles >= 4 and 2 <= len(passes) <= 4
    assert errors[0] > 1e-3 and errors[-1] <= 1e-5, errors
    assert all(later < 0.1 * earlier or later <= 1e-6 for earlier, later in zip(errors, errors[1:], strict=False))
