"""Stacks: the pages of a TIFF and those of its masks as samples of their own, never torn apart without a word."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from rich.console import Console

from dl_techniques.cli import main
from dl_techniques.datasets.inspection import inspect_pairs
from dl_techniques.datasets.pairs import Pair, find_pairs, split_pairs
from dl_techniques.errors import ArgumentError, FileError
from dl_techniques.images.files import open_image, read_image
from dl_techniques.tasks.segmentation.readers import MaskReader
from dl_techniques.training.recipes.restoration.recipe import RestorationRecipe
from dl_techniques.training.recipes.restoration.settings import RestorationConfig
from dl_techniques.training.recipes.segmentation.recipe import SegmentationRecipe
from dl_techniques.training.recipes.segmentation.settings import SegmentationConfig

pytestmark = pytest.mark.usefixtures("eager")

SMALL = {"steps": 2, "steps_per_epoch": 2, "patch": 16, "batch_size": 1, "depth": 2, "initial_filters": 4}
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()] + ["--convnext-version=v1"]
QUIET = Console(quiet=True)


def stack(path, pages, seed=0, size=(20, 24)):
    """Write a stack of pages that all differ, and its masks: where a page is bright."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 255, (pages, *size), dtype="uint8")
    for name, array in (("images", images), ("masks", np.uint8(255) * (images > 127))):
        (path.parent / name).mkdir(exist_ok=True)
        tifffile.imwrite(path.parent / name / path.name, array, photometric="minisblack")
    return images


def sources(folder) -> dict[str, str]:
    return {"images": str(folder / "images"), "masks": str(folder / "masks")}


def pages_of(folder) -> list[Pair]:
    return inspect_pairs(find_pairs(*sources(folder).values()), QUIET, MaskReader()).pairs


def test_one_stack_is_trained_on_validated_by_a_block_measured_and_predicted(tmp_path, capfd):
    images = stack(tmp_path / "em.tif", 6)
    flags, run = [f"--{name}={path}" for name, path in sources(tmp_path).items()], tmp_path / "run"
    assert main(["train", "segment", *flags, "--val-fraction=0.3", *FLAGS, "-o", str(run)]) == 0
    said = capfd.readouterr().out
    rows = [line.split(",") for line in (run / "split.csv").read_text().split()[1:]]
    sides = dict(sorted((name.strip('"'), side) for side, name in rows))
    assert list(sides) == [f"em-{page:04d}" for page in range(6)]
    held_out = [number for number, side in enumerate(sides.values()) if side == "validation"]
    assert len(held_out) == 2 and held_out[1] == held_out[0] + 1
    assert f"pages em-{held_out[0]:04d} to em-{held_out[1]:04d} are the validation set" in said

    assert main(["evaluate", str(run), *flags, "-o", str(tmp_path / "evaluation")]) == 0
    assert json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["images"] == 6
    assert main(["predict", str(run), flags[0].split("=")[1], "-o", str(tmp_path / "out")]) == 0
    with open_image(tmp_path / "out" / "em.tif") as masks:
        assert masks.count == len(images) and masks.shape() == (20, 24, 1)


def test_pages_are_pairs_and_read_one_by_one(tmp_path):
    images = stack(tmp_path / "a.tif", 3)
    stack(tmp_path / "b.tif", 1)
    pairs = pages_of(tmp_path)
    assert [(pair.name, pair.page) for pair in pairs] == [("a-0000", 0), ("a-0001", 1), ("a-0002", 2), ("b", None)]
    for pair in pairs[:3]:
        assert np.array_equal(read_image(pair.image, page=pair.page).pixels[..., 0], images[pair.page])
    with pytest.raises(FileError, match="a.tif: holds 3 pages, no page 4"):
        read_image(pairs[0].image, page=3)


def test_reduced_copies_are_no_pages(tmp_path):
    pages = np.random.default_rng(0).integers(0, 255, (2, 8, 8), dtype="uint8")
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for page in pages:
            file.write(page, photometric="minisblack")
            file.write(page[::2, ::2], photometric="minisblack", subfiletype=1)
    assert np.array_equal(read_image(tmp_path / "a.tif", page=1).pixels[..., 0], pages[1])


def test_stacks_of_different_length_are_named_both(tmp_path):
    stack(tmp_path / "a.tif", 3)
    tifffile.imwrite(tmp_path / "masks" / "a.tif", np.zeros((2, 20, 24), "uint8"), photometric="minisblack")
    with pytest.raises(FileError, match="masks/a.tif: holds 2 pages, its image .*images/a.tif 3 pages"):
        pages_of(tmp_path)
    (tmp_path / "masks" / "a.tif").write_bytes(b"II*\0")
    with pytest.raises(FileError, match="masks/a.tif: cannot be read"):
        pages_of(tmp_path)


def test_what_is_wrong_with_a_page_is_said_with_its_number(tmp_path):
    stack(tmp_path / "a.tif", 3)
    masks = [np.zeros((20, 24), "uint8"), np.zeros((20, 23), "uint8"), np.ones((20, 24), "uint8")]
    with tifffile.TiffWriter(tmp_path / "masks" / "a.tif") as file:
        for mask in masks:
            file.write(mask, photometric="minisblack")
    config = SegmentationConfig(**sources(tmp_path), output=tmp_path / "run", **SMALL)
    with pytest.raises(FileError, match="1 of 3 pairs cannot be used:\n.*a.tif, page 2: is 23x20 pixels"):
        SegmentationRecipe(config, QUIET)


def test_pages_stay_on_one_side(tmp_path):
    for number in range(5):
        stack(tmp_path / f"film{number}.tif", 3, seed=number)
    pairs = pages_of(tmp_path)
    for regex in (None, "[0-9]$"):
        training, validation = split_pairs(pairs, 0.2, 0, regex)
        assert len(validation) == 3 and len({pair.image for pair in validation}) == 1
        assert not {pair.image for pair in training} & {pair.image for pair in validation}
    task = SegmentationRecipe(SegmentationConfig(**sources(tmp_path), output=tmp_path / "run", **SMALL), QUIET)
    assert task.inspection.notes == ("5 stacks: all pages of a stack are in training or all in validation",)


def test_blocks_of_one_stack_move_with_the_seed_and_are_never_all(tmp_path):
    stack(tmp_path / "a.tif", 10)
    pairs = pages_of(tmp_path)
    firsts = set()
    for seed in range(12):
        training, validation = split_pairs(pairs, 0.25, seed)
        pages = [pair.page for pair in validation]
        assert pages == [pages[0], pages[0] + 1] and len(training) == 8 and not set(training) & set(validation)
        firsts.add(pages[0])
    assert len(firsts) > 2
    assert len(split_pairs(pairs[:2], 0.99, 0)[0]) == 1
    with pytest.raises(ArgumentError, match="must give at least two groups"):
        split_pairs(pairs, 0.2, 0, "a")


def test_stacks_are_restored_page_by_page_and_validated_on_another(tmp_path):
    for name in ("train", "val"):
        (tmp_path / name).mkdir()
        stack(tmp_path / name / f"{name}.tif", 2, seed=len(name))
    config = RestorationConfig(
        images=str(tmp_path / "train" / "images"), targets=str(tmp_path / "train" / "masks"),
        val_images=str(tmp_path / "val" / "images"), val_targets=str(tmp_path / "val" / "masks"),
        output=tmp_path / "run", **SMALL,
    )  # fmt: skip
    task = RestorationRecipe(config, QUIET)
    assert task.training.names == ["train-0000", "train-0001"] and task.validation.names == ["val-0000", "val-0001"]
    sample = task.training[1]
    assert np.array_equal(sample.target, np.float32(sample.image > 127.5 / 255))
    assert "2 stacks" in task.inspection.notes[0]


def test_what_the_inspection_read_is_not_read_again_as_far_as_there_is_room(tmp_path):
    images = stack(tmp_path / "a.tif", 4)
    config = SegmentationConfig(**sources(tmp_path), output=tmp_path / "run", **SMALL)
    read_again = SegmentationRecipe(replace(config, cache_gb=0.0), QUIET)
    expected = [*read_again.training, *read_again.validation]
    one = images[0].nbytes + 4 * images[0].size  # the image, and the mask as it is read
    partly = SegmentationRecipe(replace(config, cache_gb=2.5 * one / 1e9), QUIET)
    task = SegmentationRecipe(config, QUIET)
    for folder in sources(tmp_path).values():
        for path in Path(folder).iterdir():
            path.unlink()
    for sample, again in zip([*task.training, *task.validation], expected, strict=True):
        assert np.array_equal(sample.image, again.image) and np.array_equal(sample.target, again.target)
    assert [sample.name for sample in task.training] == task.training.names  # kept, now as samples
    assert task.inspection.decoded.budget.free == round(4e9) - sum(sample.nbytes for sample in expected)
    held = 0
    for samples in (partly.training, partly.validation):
        for number in range(len(samples)):
            with contextlib.suppress(FileError):
                held += samples[number] is not None
    assert held == 2
    with pytest.raises(FileError, match="a.tif: does not exist"):
        read_again.training[0]
