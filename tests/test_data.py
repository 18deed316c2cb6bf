"""Shipped images, crops and targets."""

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dl_techniques.datasets.batches import seeded_batches
from dl_techniques.datasets.pairs import find_pairs
from dl_techniques.datasets.samples import NUCLEI
from dl_techniques.errors import ArgumentError, FileError
from dl_techniques.images.files import read_pixels
from dl_techniques.training.supervision import (
    channel_target,
    class_target,
    halve_by_mean,
    supervision_weights,
    target_pyramid,
)


def test_shipped_nuclei_are_small_pairs_of_images_and_binary_masks():
    pairs = find_pairs(str(NUCLEI / "image"), str(NUCLEI / "label"))
    assert len(pairs) == 24
    for pair in pairs:
        image, mask = read_pixels(pair.image, 1), read_pixels(pair.target, 1) > 0
        assert image.shape == mask.shape == (256, 256, 1) and set(np.unique(read_pixels(pair.target, 1))) == {0, 255}
        assert 0.03 <= mask.mean() < 0.6 and image[mask].mean() > 2 * image[~mask].mean()
    assert sum(path.stat().st_size for path in NUCLEI.rglob("*")) < 1_000_000


@pytest.mark.parametrize("damage", ["missing", "empty", "html", "truncated", "colour", "svg"])
def test_files_that_are_no_grey_image_are_refused_by_name(damage, tmp_path):
    path = tmp_path / "broken.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)).save(path)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "colour":
        Image.new("RGB", (4, 4)).save(path)
    else:
        changed = {"empty": b"", "html": b"<html></html>", "svg": b"<svg/>", "truncated": content[: len(content) // 2]}
        path.write_bytes(changed[damage])
    with pytest.raises(FileError, match="broken.png"):
        read_pixels(path, 1)


def test_oversized_images_are_refused_before_decoding(tmp_path):
    path = tmp_path / "bomb.png"
    Image.new("L", (30_000, 6_000)).save(path)
    with pytest.raises(FileError, match="bomb.png"):
        read_pixels(path, 1)


@given(height=st.integers(1, 9), width=st.integers(1, 9))
def test_coarse_targets_are_the_mean_of_the_pixels_they_cover(height, width):
    target = np.random.default_rng(0).uniform(size=(2, height, width, 3))
    halved = halve_by_mean(target)
    assert halved.shape == (2, -(-height // 2), -(-width // 2), 3)
    for i in range(halved.shape[1]):
        for j in range(halved.shape[2]):
            covered = target[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean(axis=(1, 2))
            assert np.allclose(halved[:, i, j], covered)


@given(height=st.integers(1, 9), width=st.integers(1, 9))
def test_coarse_class_targets_hold_the_fractions_of_the_pixels_that_count(height, width):
    labels = np.random.default_rng(0).choice([0, 1, 2, 255], size=(2, height, width, 1)).astype("uint8")
    coarse = target_pyramid(class_target(labels, 3, ignore=255), 2)[1]
    assert coarse.dtype == "float32" and coarse.shape == (2, -(-height // 2), -(-width // 2), 4)
    for i in range(coarse.shape[1]):
        for j in range(coarse.shape[2]):
            covered = labels[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            assert np.allclose(coarse[:, i, j, 3], (covered != 255).mean(axis=(1, 2, 3)))
            for label in range(3):
                assert np.allclose(coarse[:, i, j, label], (covered == label).mean(axis=(1, 2, 3)))


def test_channel_targets_keep_channels_separate_and_drop_a_pixel_ignored_in_one():
    masks = np.array([[[0, 1], [1, 1], [9, 1]]], "int32")  # (1, 3, 2): one row, one sample without batch axis
    assert np.array_equal(channel_target(masks, ignore=9), [[[0, 1, 1], [1, 1, 1], [0, 0, 0]]])
    assert np.array_equal(channel_target(masks[..., :1] == 1)[..., 0], [[0, 1, 0]])
    assert np.allclose(halve_by_mean(masks[:, :2]), [[[0.5, 1.0]]])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: class_target(np.full((2, 2, 1), 3), 3), "`labels` must be from 0 to 2. Received: labels=3"),
        (lambda: class_target(np.full((2, 2, 1), -1), 3, 255), "`labels` must be from 0 to 2, or 255 where ignored"),
        (lambda: class_target(np.zeros((2, 2, 3), int), 3), r"`labels` must have one channel. .* \(2, 2, 3\)"),
        (lambda: class_target(np.zeros((2, 2, 1)), 3), "`labels` must be integers. .* float64"),
        (lambda: channel_target(np.full((2, 2, 1), 255)), "`masks` must be from 0 to 1. Received: masks=255"),
    ],
)
def test_labels_out_of_range_are_refused(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()


def test_pyramid_and_weights_match_the_outputs():
    assert [t.shape[1:3] for t in target_pyramid(np.zeros((1, 33, 47, 1)), 3)] == [(33, 47), (17, 24), (9, 12)]
    assert np.allclose(supervision_weights(3), [4 / 7, 2 / 7, 1 / 7])


def draw(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    return rng.uniform(size=(2, 1)), rng.integers(1000, size=3)


def test_processes_share_a_batch_and_its_place_alone_decides_it():
    whole = list(seeded_batches(draw, 5, 6, seed=3, threads=2))
    assert [array.shape for array in whole[0]] == [(6, 2, 1), (6, 3)]
    parts = [list(seeded_batches(draw, 5, 6, seed=3, done=2, share=(part, 3))) for part in range(3)]
    for batch, *shares in zip(whole[2:], *parts, strict=True):
        for array, *rows in zip(batch, *shares, strict=True):
            np.testing.assert_array_equal(np.concatenate(rows), array)
    flat = np.concatenate([batch[0] for batch in whole]).ravel()
    assert len(np.unique(flat)) == flat.size
    assert not np.array_equal(next(seeded_batches(draw, 5, 6, seed=4))[0], whole[0][0])


@pytest.fixture
def count_threads() -> Callable[[], int]:
    """Return a function that counts the threads that make batches, beside those that other tests have left."""
    before = set(threading.enumerate())
    return lambda: sum(thread.name.startswith("batches") for thread in set(threading.enumerate()) - before)


def ends(count: Callable[[], int]) -> bool:
    """Return whether the threads end soon: they do with the batch in hand."""
    end = time.monotonic() + 10
    while count() and time.monotonic() < end:
        time.sleep(0.01)
    return not count()


def test_closing_batches_ends_their_threads(count_threads):
    batches = seeded_batches(draw, 1000, 4, seed=0, threads=2)
    next(batches)
    assert count_threads() == 2
    batches.close()
    assert ends(count_threads)


def test_error_of_a_sample_is_raised_where_its_batch_is_used(count_threads):
    made = []

    def third_fails(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        made.append(rng)
        if len(made) == 3:
            raise FileError("b.png", "is damaged.", "Replace it.")
        return draw(rng)

    batches = seeded_batches(third_fails, 10, 1, seed=0)
    next(batches), next(batches)
    with pytest.raises(FileError, match="b.png"):
        next(batches)
    assert ends(count_threads)
