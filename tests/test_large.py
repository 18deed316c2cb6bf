"""Validation and evaluation of images too large for the memory: in tiles, with the figures of the whole."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from dl_techniques.cli import main
from dl_techniques.engines.engine import Engine
from dl_techniques.errors import ArgumentError
from dl_techniques.inference.memory import bytes_per_pixel
from dl_techniques.inference.network import Network
from dl_techniques.inference.tiled_function import tiled_function
from dl_techniques.models.convunext.function import keras_function
from dl_techniques.tasks.segmentation.classes import Classes
from dl_techniques.tasks.segmentation.evaluation import evaluate
from dl_techniques.training.recipes.segmentation.recipe import SegmentationRecipe
from dl_techniques.training.recipes.segmentation.settings import SegmentationConfig
from dl_techniques.training.trainer import train
from models import randomize, relative_difference, saved, small_model

pytestmark = pytest.mark.usefixtures("eager")

SMALL = {"steps": 1, "steps_per_epoch": 1, "patch": 16, "batch_size": 1, "depth": 2, "initial_filters": 4}
DESIGN = {"depth": 2, "initial_filters": 4, "stem_kernel_size": 3, "block_kernel_size": 3}
QUIET = Console(quiet=True)


def engine_of(version, sizes):
    """Return a model in training, and note the sizes that it is given at once."""
    model = small_model(input_shape=(None, None, 1), convnext_version=version, enable_deep_supervision=True, **DESIGN)
    randomize(model)
    function = keras_function(model)

    def call(batch):
        sizes.append(batch.shape[1:3])
        return function(batch)

    return Engine(call, 1, "model", None, model)


@pytest.mark.each_backend
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_tiles_of_a_model_in_training_give_what_the_whole_gives(version):
    sizes = []
    engine = engine_of(version, sizes)
    side = Network(engine).smallest_tile
    memory = bytes_per_pixel(Network(engine)) * side**2
    batch = np.random.default_rng(0).normal(size=(1, side + 30, 24, 1)).astype("float32")
    expected = keras_function(engine.model)(batch)
    tiled = tiled_function(engine, memory, extent=side + 30)(batch)
    assert tiled.shape == expected.shape and relative_difference(tiled, expected) < 1e-5
    assert all(max(size) <= side for size in sizes) and (len(sizes) > 1 or version == "v2")
    small = batch[:, :40]
    assert np.array_equal(tiled_function(engine, memory, extent=40)(small), keras_function(engine.model)(small))
    with pytest.raises(ArgumentError, match="`max_memory` must leave .* MB for a tile"):
        tiled_function(engine, memory // 2, extent=side + 30)


def paint(folder, size=(330, 40)):  # few tiles of few sizes: JAX compiles for each
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for index in range(2):
        mask = np.uint8(rng.random(size) > 0.5)
        Image.fromarray(100 * mask + rng.integers(0, 50, size, dtype="uint8")).save(folder / "images" / f"{index}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{index}.png")
    return {"images": str(folder / "images"), "masks": str(folder / "masks")}


def test_runs_validate_large_images_in_tiles_with_the_figures_of_the_whole(tmp_path):
    config = SegmentationConfig(
        **paint(tmp_path / "data"), output=tmp_path / "run", max_memory="60MB", convnext_version="v1", **SMALL
    )
    result = train(config, QUIET)
    task = SegmentationRecipe(config, QUIET)
    assert task.inspection.largest == 330
    model = task.build()
    network = Network(Engine(keras_function(model), 1, "", tmp_path, model))
    assert bytes_per_pixel(network) * 330**2 > 60e6  # too large in one piece
    whole = evaluate(keras_function(result.model), task.validation, task.task.classes)
    assert np.abs(whole.confusion.counts - result.evaluation.confusion.counts).max() <= 2
    with pytest.raises(ArgumentError, match="`max_memory` must leave"):
        train(replace(config, output=tmp_path / "other", max_memory="1MB"), QUIET)
    with pytest.raises(ArgumentError, match="must be auto or an amount of memory"):
        replace(config, max_memory="much")


def test_evaluation_is_the_same_in_tiles(tmp_path, capfd):
    flags = [f"--{name}={path}" for name, path in paint(tmp_path / "data").items()]
    card = {"task": "segment", "channels": 1, "normalization": "standardize"}
    classes = Classes((0, 1), ("a", "b")).as_card()
    model = saved(
        tmp_path, card | classes, input_shape=(None, None, 1), output_channels=1, final_activation="sigmoid",
        convnext_version="v1", **DESIGN,
    )  # fmt: skip
    for name, memory in (("whole", "2GB"), ("tiled", "6MB")):
        assert main(["evaluate", str(model), *flags, f"--max-memory={memory}", "-o", str(tmp_path / name)]) == 0
    whole, tiled = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "tiled"))
    assert tiled["mean_dice"] == pytest.approx(whole["mean_dice"], abs=1e-4)
    assert main(["evaluate", str(model), *flags, "--max-memory=1MB", "-o", str(tmp_path / "none")]) == 2
    assert "`max_memory` must leave" in capfd.readouterr().err and not (tmp_path / "none").exists()


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.only_backend("torch")  # others record gradients when told to
def test_no_tensors_are_kept_for_gradients(version):
    import torch

    recording = []
    engine = engine_of(version, [])
    layer = next(layer for layer in engine.model.layers if layer.weights)  # the stem, of tiles too
    layer.register_forward_hook(lambda *_: recording.append(torch.is_grad_enabled()))
    side = Network(engine).smallest_tile
    memory = bytes_per_pixel(Network(engine)) * side**2
    function = tiled_function(engine, memory, extent=side + 30)
    for _ in range(2):  # the first call of V2 also makes its network for tiles
        recording.clear()
        function(np.zeros((1, side + 30, 24, 1), "float32"))
    assert len(recording) > 1 and not any(recording)
