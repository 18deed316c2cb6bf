"""Presets: trained models in folders.

A preset is a folder in the layout of keras-hub, without code: `config.json` (constructor
arguments, plain values only), `model.weights.safetensors`, `metadata.json` (versions, digests of the other files) and
`card.json` (what the model is for, how it was trained and measured).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dl_techniques import __version__
from dl_techniques.atomic import write_file
from dl_techniques.card import ModelCard, card_path, file_digest, read_card, write_card
from dl_techniques.data_files import read_json
from dl_techniques.errors import ArgumentError, FileError

SHIPPED = Path(__file__).parent / "shipped"
FORMAT = 1
CONFIG, WEIGHTS, METADATA = "config.json", "model.weights.safetensors", "metadata.json"
DIGESTS = "files"  # key of the metadata: SHA-256 of config and card
# Arguments of training, which a preset does not store.
NOT_STORED = ("name", "trainable", "dtype", "kernel_initializer", "kernel_regularizer", "final_activation")


def shipped_presets() -> list[str]:
    """Return the names of the presets that ship with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{CONFIG}"))


def preset_folder(preset: str | os.PathLike) -> Path:
    """Return the folder of a preset, given its name or the folder itself.

    Raises:
        ArgumentError: There is no such preset; the message lists those that ship.
    """
    for folder in (SHIPPED / str(preset), Path(preset)):
        if (folder / CONFIG).is_file():
            return folder
    raise ArgumentError("preset", f"must be a preset's folder or one of {shipped_presets()}", str(preset))


def save_preset(model, folder: Path, card: ModelCard | Mapping[str, Any], dtype: str = "float32") -> None:
    """Write a model as a preset into a new folder; weights as `"float32"`, or `"float16"` for half the size.

    Raises:
        FileError: The folder exists or cannot be written.
    """
    import keras
    from safetensors.numpy import save

    if folder.exists():
        raise FileError(str(folder), "exists already.", "Name a new folder.")
    config = {name: value for name, value in model.get_config().items() if name not in NOT_STORED}
    config["final_activation"] = keras.activations.serialize(model.final_activation)
    if not isinstance(config["final_activation"], str):
        raise ArgumentError("final_activation", "must be one of Keras' own, by name", config["final_activation"])
    arrays = {weight.path: np.array(keras.ops.convert_to_numpy(weight)).astype(dtype) for weight in model.weights}
    weights = save(arrays)
    metadata = {
        "format": FORMAT,
        "convunext_version": __version__,
        "keras_version": keras.__version__,
        "parameter_count": model.count_params(),
        "sha256": hashlib.sha256(weights).hexdigest(),  # under this name since version 0.1
    }
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise FileError(str(folder), f"cannot be written: {error.strerror}.", "Choose another folder.") from error
    write_file(folder / WEIGHTS, weights)
    stored = json.dumps({"class_name": "ConvUNextModel", "config": config}, indent=2).encode()
    metadata[DIGESTS] = {CONFIG: hashlib.sha256(stored).hexdigest()}
    write_file(folder / METADATA, json.dumps(metadata, indent=2).encode())
    write_preset_card(folder, card)
    write_file(folder / CONFIG, stored)  # last: a folder with it is complete


def write_preset_card(folder: Path, card: ModelCard | Mapping[str, Any]) -> None:
    """Write the card of a preset, and its digest beside those of the other files.

    Raises:
        FileError: It cannot be written.
    """
    metadata = read_json(folder / METADATA, "Get the preset again.")
    write_card(folder, card)
    digests = {**metadata.get(DIGESTS, {}), card_path(folder).name: file_digest(card_path(folder))}
    write_file(folder / METADATA, json.dumps({**metadata, DIGESTS: digests}, indent=2).encode())


def check_preset(folder: Path) -> dict[str, Any]:
    """Return the metadata of a preset; those of version 0.1 state the digest of the weights only.

    Raises:
        FileError: The config or the card is not the one whose digest is stated, or the preset is of a newer format.
    """
    metadata = read_json(folder / METADATA, "Get the preset again.")
    if metadata.get("format") != FORMAT:
        reason = f"is of format {metadata.get('format')!r}; this version reads {FORMAT}."
        raise FileError(str(folder / METADATA), reason, "Update convunext.")
    stated = metadata.get(DIGESTS, {})
    for name in (CONFIG, card_path(folder).name):
        if isinstance(stated, dict) and name not in stated:
            continue
        try:
            found = file_digest(folder / name)
        except OSError as error:
            raise FileError(str(folder / name), f"cannot be read: {error.strerror}.", "Get it again.") from error
        if not isinstance(stated, dict) or found != stated[name]:
            reason = f"is not as it was written: its SHA-256 is not that in {METADATA}."
            remedy = f"Get it again; if you edited it, remove its digest from {METADATA}."
            raise FileError(str(folder / name), reason, remedy)
    return metadata


def read_preset(preset: str | os.PathLike) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return a preset's constructor arguments and its weights by path.

    Args:
        preset: Name of a preset that ships, or a preset's folder.

    Raises:
        ArgumentError: There is no such preset.
        FileError: One of its files is damaged or of a newer format.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    folder = preset_folder(preset)
    metadata, config = check_preset(folder), read_json(folder / CONFIG, "Get the preset again.")
    try:
        content = (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise FileError(str(folder / WEIGHTS), f"cannot be read: {error.strerror}.", "Get the preset again.") from error
    if hashlib.sha256(content).hexdigest() != metadata.get("sha256"):
        raise FileError(str(folder / WEIGHTS), "is damaged: its SHA-256 is not that in metadata.json.", "Get it again.")
    try:
        arrays = load(content)
    except SafetensorError as error:
        raise FileError(str(folder / WEIGHTS), f"is no safetensors file: {error}.", "Get it again.") from error
    arguments = config.get("config")
    plain = (bool, int, float, str, type(None), list)
    if not isinstance(arguments, dict) or not all(isinstance(value, plain) for value in arguments.values()):
        raise FileError(str(folder / CONFIG), "does not hold plain constructor arguments.", "Get it again.")
    return arguments, arrays


def preset_card(preset: str | os.PathLike) -> ModelCard:
    """Return the card of a preset: what it is for, how it was trained and measured."""
    return read_card(preset_folder(preset))
