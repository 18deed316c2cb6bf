"""Exports and --max-memory: computed in exact tiles, or refused before anything is computed."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from rich.console import Console

from dl_techniques.card import read_card, write_card
from dl_techniques.cli import main
from dl_techniques.engines.loading import load_engine
from dl_techniques.errors import ArgumentError
from dl_techniques.export.export import export_model
from dl_techniques.export.settings import ExportOptions
from dl_techniques.images.files import Picture, write_image
from dl_techniques.inference.memory import network_bytes
from dl_techniques.inference.network import Network
from dl_techniques.inference.predictor import Predictor
from dl_techniques.inference.tiled_function import tiled_function
from dl_techniques.tasks.segmentation.classes import Classes
from models import image, saved

# Exports are made on TensorFlow, and what runs them is the same on every backend.
pytestmark = pytest.mark.only_backend("tensorflow")

QUIET = Console(quiet=True)
CARD = {"task": "segment", "channels": 1, "normalization": "standardize", "training": {"patch": 32},
        **Classes((0, 1, 2), ("a", "b", "c")).as_card()}  # fmt: skip
DESIGN = {"input_shape": (None, None, 1), "output_channels": 3, "final_activation": "softmax",
          "stem_kernel_size": 3, "block_kernel_size": 3}  # fmt: skip
PIXELS = (200 * image(190, 170, 1)).astype("uint8")
PIXELS[:, 90:] //= 4  # two parts, so that no tile is like the whole
CASES = [("v1", ".xml"), ("v2", ".onnx"), ("v2", ".xml")]


@pytest.fixture(scope="module")
def segmenters(tmp_path_factory) -> dict[str, Path]:
    return {
        version: saved(tmp_path_factory.mktemp(version), CARD, convnext_version=version, **DESIGN)
        for version in ("v1", "v2")
    }


@pytest.fixture(scope="module")
def exported(segmenters, tmp_path_factory) -> Callable[..., Path]:
    """Export a segmenter, once."""

    @functools.cache
    def export(version: str, suffix: str, tiles: bool) -> Path:
        path = tmp_path_factory.mktemp("export") / f"model{suffix}"
        export_model(segmenters[version], ExportOptions(output=path, tiles=tiles), QUIET)
        return path

    return export


@pytest.mark.parametrize("version, suffix", CASES)
def test_exports_for_tiles_give_in_tiles_what_keras_gives_of_the_whole(version, suffix, exported, segmenters):
    path, pixels, memory = exported(version, suffix, True), PIXELS, "6MB"
    if (version, suffix) == ("v2", ".xml"):  # of one row of tiles: OpenVINO compiles for each of their sizes
        pixels, memory = PIXELS[:64], "3MB"
    assert (
        read_card(path).as_dict()["normalization"] == "standardize"
        and read_card(path).as_dict()["export"]["normalization"] == "none"
    )
    expected = Predictor(segmenters[version])(pixels)
    for settings in ({}, {"max_memory": memory}, {"tile": 96}):
        found = Predictor(path, **settings)(pixels)
        assert (found.passes[0].tiles > 1) == bool(settings) and (len(found.passes) > 1) == (
            bool(settings) and version == "v2"
        )
        assert np.abs(found.probabilities - expected.probabilities).max() <= 1e-4
        assert np.mean(found.pixels != expected.pixels) <= 1e-4
    found, expected = (Predictor(model, global_stats="tile")(pixels) for model in (path, segmenters[version]))
    assert np.abs(found.probabilities - expected.probabilities).max() <= 1e-4


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4), (9, 1)], ids=str)
def test_exports_for_tiles_take_the_smallest_images(size, exported, segmenters):
    """Fewer pixels than the bands whose sums are added up, at the coarsest level."""
    pixels = PIXELS[: size[0], : size[1]]
    found, expected = (Predictor(model)(pixels) for model in (exported("v2", ".xml", True), segmenters["v2"]))
    assert np.abs(found.probabilities - expected.probabilities).max() <= 1e-4


@pytest.mark.parametrize("version, suffix", CASES)
def test_exports_for_tiles_take_large_files_in_parts(version, suffix, exported, segmenters, tmp_path, capfd):
    pixels = PIXELS[:104, :120]
    tifffile.imwrite(tmp_path / "a.tif", pixels[..., 0], rowsperstrip=16)
    arguments = [
        "predict",
        str(exported(version, suffix, True)),
        str(tmp_path / "a.tif"),
        "-o",
        str(tmp_path / "b.tif"),
    ]
    assert main([*arguments, "--max-memory", "2.5MB"]) == 0
    assert "read and written in parts" in capfd.readouterr().out
    expected = Predictor(segmenters[version])(pixels).pixels[..., 0]
    assert np.mean(tifffile.imread(tmp_path / "b.tif") != expected) <= 1e-4


@pytest.mark.parametrize("version, suffix", CASES[::2])
def test_exports_that_take_images_whole_never_exceed_the_memory(
    version, suffix, exported, tmp_path, capfd, monkeypatch
):
    path = exported(version, suffix, False)
    engine = load_engine(path)
    needed = network_bytes(Network(engine), PIXELS.shape[:2])
    assert engine.tiling.whole_images_only and engine.tiling.outputs == 3
    for name in ("a.png", "a.tif"):
        write_image(tmp_path / name, Picture(PIXELS))
        arguments = ["predict", str(path), str(tmp_path / name), "-o", str(tmp_path / f"out-{name}")]
        assert main([*arguments, "--max-memory", f"{needed}"]) == 1  # arrays come on top
        said = capfd.readouterr().out
        assert f"{name}: `max_memory` must" in said and f"{path.name} takes images in one piece" in said
        assert "Raise --max-memory, or export the model again with --tiles." in said
        assert not (tmp_path / f"out-{name}").exists()
        assert main([*arguments, "--max-memory", f"{2 * needed}"]) == 0
        capfd.readouterr()
    batch = PIXELS[None].astype("float32")
    assert tiled_function(engine, needed, 190)(batch).shape == (1, 190, 170, 3)
    with pytest.raises(ArgumentError, match="takes images in one piece"):
        tiled_function(engine, needed - 1, 190)(batch)


def test_memory_that_the_card_does_not_state_is_noted(exported, tmp_path, capfd):
    whole = exported("v1", ".xml", False)
    path = tmp_path / "bare.xml"
    for suffix in (".xml", ".bin"):
        path.with_suffix(suffix).write_bytes(whole.with_suffix(suffix).read_bytes())
    write_card(path, {**read_card(whole).as_dict(), "export": {}})
    write_image(tmp_path / "a.png", Picture(PIXELS))
    assert main(["predict", str(path), str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png"), "--trust"]) == 0
    assert "the card does not state the network's memory" in capfd.readouterr().out
    assert Network(load_engine(path, trust=True)).whole_images_only


@pytest.mark.parametrize(
    "name, settings, rule",
    [
        ("a.tflite", {}, "needs an --output that ends in .onnx or .xml"),
        ("a", {}, "needs an --output that ends in .onnx or .xml"),
        ("a.onnx", {"size": (8, 8)}, "must not go with --size or --int8"),
        ("a.onnx", {"int8": Path("images")}, "must not go with --size or --int8"),
    ],
)
def test_what_cannot_be_made_for_tiles_is_refused(name, settings, rule):
    with pytest.raises(ArgumentError, match=rule):
        ExportOptions(output=Path(name), tiles=True, **settings)
