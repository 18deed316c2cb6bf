"""Training on pairs of what is and what it should be."""

import json
from dataclasses import replace

import keras
import numpy as np
import pytest
from rich.console import Console

from dl_techniques.card import read_card
from dl_techniques.cli import main
from dl_techniques.engines.loading import load_engine
from dl_techniques.errors import ArgumentError, FileError
from dl_techniques.export.certify import certify
from dl_techniques.images.files import Picture, write_image
from dl_techniques.training.recipes.restoration.recipe import RestorationRecipe
from dl_techniques.training.recipes.restoration.settings import RestorationConfig
from dl_techniques.training.run_folder import read_log, stored_config, task_of
from dl_techniques.training.trainer import train

SMALL = {
    "steps": 120,
    "steps_per_epoch": 60,
    "patch": 16,
    "batch_size": 4,
    "depth": 2,
    "initial_filters": 8,
    "blocks_per_level": 1,
}
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Five pairs of 16-bit images: what it should be, and half of that with stripes."""
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "images").mkdir()
    (folder / "targets").mkdir()
    rng = np.random.default_rng(0)
    for index in range(5):
        target = np.kron(rng.uniform(10_000, 60_000, (4, 5, 1)), np.ones((8, 8, 1)))
        image = target * (0.5 + 0.3 * (np.arange(40) % 2))[None, :, None]
        for name, pixels in (("images", image), ("targets", target)):
            write_image(folder / name / f"{index}.png", Picture(pixels.astype("uint16")))
    return folder


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "run"
    config = RestorationConfig(images=str(data / "images"), targets=str(data / "targets"), output=output, **SMALL)
    return config, train(config, QUIET)


def test_run_restores_what_it_did_not_see(finished):
    config, result = finished
    log = read_log(config.output)
    assert log[-1]["loss"] < log[0]["loss"] and result.figures["psnr_db"] > result.figures["psnr_db_before"] + 3
    assert max(row["val_psnr"] for row in log) == pytest.approx(result.figures["psnr_db"], abs=1e-3)
    figures = json.loads((config.output / "metrics.json").read_text())
    assert figures["images"] == 1 and 0 < figures["ssim_before"] < figures["ssim"] <= 1
    assert result.report.read_text().count("<figure>") == 4
    assert read_card(config.output / "model.keras").as_dict()["metrics"] == figures
    settled = replace(config, symmetries="all", precision="float32")
    assert task_of(config.output) == "restore" and stored_config(config.output, RestorationConfig) == settled


def test_restored_images_keep_their_unit(finished):
    engine = load_engine(finished[0].output / "model.keras")
    assert engine.model is not None and engine.model.residual_learning and certify(engine).holds


def test_finished_run_resumes_to_the_same_result(finished, capfd):
    config, result = finished
    before = (config.output / "metrics.json").read_text()
    assert main(["train", "--resume", str(config.output)]) == 0
    assert capfd.readouterr().out.splitlines()[-1] == str(result.report)
    assert (config.output / "metrics.json").read_text() == before


def test_targets_may_have_other_channels(data, tmp_path):
    (tmp_path / "targets").mkdir()
    for index in range(5):
        write_image(tmp_path / "targets" / f"{index}.tif", Picture(np.full((32, 40, 3), index, "uint8")))
    sources = {"images": str(data / "images"), "targets": str(tmp_path / "targets")}
    settings = {**SMALL, "steps": 2, "steps_per_epoch": 1}
    config = RestorationConfig(**sources, output=tmp_path / "run", **settings)
    result = train(config, QUIET)
    model = keras.saving.load_model(config.output / "model.keras", compile=False, safe_mode=True)
    assert model.output_channels == 3 and not model.residual_learning and "psnr_db_before" not in result.figures


def test_images_too_small_for_ssim_are_measured_without(data, tmp_path):
    for name in ("images", "targets"):
        (tmp_path / name).mkdir()
        for index in range(5):
            pixels = np.random.default_rng(index).integers(0, 255, (8, 8, 1))
            write_image(tmp_path / name / f"{index}.png", Picture(pixels.astype("uint8")))
    sources = {name: str(tmp_path / name) for name in ("images", "targets")}
    config = RestorationConfig(**sources, output=tmp_path / "run", **{**SMALL, "steps": 2, "steps_per_epoch": 1})
    result = train(config, QUIET)
    assert "NaN" not in (config.output / "metrics.json").read_text() and "SSIM</" not in result.report.read_text()
    assert set(read_card(config.output / "model.keras").as_dict()["metrics"]) == {"images", "psnr_db", "psnr_db_before"}


def test_wrong_pairs_are_named_before_anything_is_written(data, tmp_path):
    (tmp_path / "targets").mkdir()
    for index in range(5):
        size = (32, 40) if index != 2 else (30, 40)
        write_image(tmp_path / "targets" / f"{index}.tif", Picture(np.full((*size, 1), np.nan, "float32")))
    sources = {"images": str(data / "images"), "targets": str(tmp_path / "targets")}
    config = RestorationConfig(**sources, output=tmp_path / "run", **SMALL)
    with pytest.raises(FileError, match=r"5 of 5 pairs cannot be used:\n.*0.tif: holds 1280 samples that are NaN"):
        train(config, QUIET)
    for index in range(5):
        size = (32, 40) if index != 2 else (30, 40)
        write_image(tmp_path / "targets" / f"{index}.tif", Picture(np.zeros((*size, 1), "float32")))
    with pytest.raises(FileError, match="2.tif: is 40x30 pixels, its image 2.png 40x32"):
        train(config, QUIET)
    write_image(tmp_path / "targets" / "2.tif", Picture(np.zeros((32, 40, 3), "float32")))
    with pytest.raises(FileError, match="2.tif: has 3 channels where most have 1"):
        RestorationRecipe(config, QUIET)
    assert not config.output.exists()
    with pytest.raises(ArgumentError, match="`val_targets` must come with val_images"):
        RestorationConfig(**sources, output=tmp_path / "run", val_targets="x")
