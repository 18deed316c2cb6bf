"""Checked transfer of weights from files and other models: all weights match before any is assigned."""

from __future__ import annotations

import io
import os
import zipfile
from collections import Counter
from collections.abc import Mapping
from typing import Any

import h5py
import keras
import numpy as np

from dl_techniques.errors import WeightsError

MEMBER = "model.weights.h5"  # of a `.keras` file


def check_weights_file(model: keras.Model, path: str | os.PathLike) -> None:
    """Raise `WeightsError` unless a `.weights.h5` or `.keras` file holds exactly the weights that the model has.

    Keras ignores weights that the model does not have, and stops halfway at weights that the file does not have.

    Args:
        model: The model to load into.
        path: The file.
    """
    if not os.path.exists(path):
        raise WeightsError(str(path), "does not exist.", "Check the path.")
    stored = stored_shapes(path)
    remedy = "Build the model with the arguments that the weights were saved with."
    counts = Counter(stored.values())
    for weight in model.weights:
        shape = tuple(weight.shape)
        counts[shape] -= 1
        if counts[shape] < 0:
            raise WeightsError(
                str(path),
                "holds the weights of another architecture; "
                f"first mismatch: nothing in it fits {weight.path!r} of shape {shape}.",
                remedy,
            )
    for name, shape in stored.items():
        if counts[shape] > 0:
            raise WeightsError(
                str(path),
                "holds the weights of another architecture; "
                f"first mismatch: the model has no place for {name!r} of shape {shape}.",
                remedy,
            )


def transfer_weights(source: keras.Model, target: keras.Model, left_behind: set[str]) -> None:
    """Copy every weight by its name, or none: all must match but those of layers `left_behind` of the source."""
    values = {weight.path: weight for weight in source.weights}
    missing = [w.path for w in target.weights if w.path not in values or values[w.path].shape != w.shape]
    if missing:
        raise WeightsError("training_model", f"has no weight of that shape for {missing[0]!r} of the new model.")
    placed = {weight.path for weight in target.weights}
    unplaced = [path for path in values if path not in placed and path.split("/")[0] not in left_behind]
    if unplaced:
        raise WeightsError("training_model", f"has the weight {unplaced[0]!r}, for which the new model has no place.")
    for weight in target.weights:
        # Through a copy: on JAX both would share one array, and training or predicting with one deletes it for both.
        weight.assign(np.array(keras.ops.convert_to_numpy(values[weight.path])))


def assign_weights(model: keras.Model, arrays: Mapping[str, np.ndarray], source: str) -> None:
    """Assign arrays to the weights of the same paths.

    Raises:
        WeightsError: A name or shape differs; the message names the first, and nothing has been assigned.
    """
    shapes = {weight.path: tuple(weight.shape) for weight in model.weights}
    stored = {name: tuple(array.shape) for name, array in arrays.items()}
    if shapes != stored:
        first = min(name for name in shapes.keys() | stored.keys() if shapes.get(name) != stored.get(name))
        reason = f"holds weights that do not fit: {first!r} is {stored.get(first)}, not {shapes.get(first)}."
        raise WeightsError(source, reason, "Leave out the arguments that change the architecture.")
    for weight in model.weights:
        weight.assign(arrays[weight.path].astype("float32"))


def stored_shapes(path: str | os.PathLike) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight in the file by its name, without optimizer and random generators.

    Args:
        path: A `.weights.h5` or `.keras` file; in the latter each weight is stored in full.

    Raises:
        WeightsError: The file is broken, or weights of it lie elsewhere.
    """
    try:
        return _read_shapes(path)
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise WeightsError(
            str(path), f"is not a complete file of weights: {error}.", "Save the weights again, or take another copy."
        ) from error


def _read_shapes(path: str | os.PathLike) -> dict[str, tuple[int, ...]]:
    shapes, archived = {}, str(path).endswith(".keras")

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset) and name.startswith("layers/") and "/seed_generator" not in name:
            if item.is_virtual or item.external:
                raise OSError(f"{name!r} lies in another file")
            if archived and item.id.get_storage_size() < item.nbytes:  # of what is missing HDF5 makes zeros
                raise OSError(f"{name!r} of shape {item.shape} is not stored in full")
            shapes[name] = tuple(item.shape)

    if archived:
        with zipfile.ZipFile(path) as archive:
            content: Any = io.BytesIO(archive.read(MEMBER))
    else:
        content = path

    def not_hard_link(name: str, link: h5py.HardLink | h5py.SoftLink | h5py.ExternalLink) -> str | None:
        return None if isinstance(link, h5py.HardLink) else f"{name!r} is a {type(link).__name__}"

    with h5py.File(content, "r") as file:
        if reason := file.visititems_links(not_hard_link):
            raise OSError(reason)
        file.visititems(visit)
    return shapes
