"""Exports a model for another runtime and writes the artifact only if its outputs there match those of Keras."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dl_techniques import __version__
from dl_techniques.atomic import publish, staged_folder
from dl_techniques.card import ModelCard, artifact_digests, card_path, read_card, write_card
from dl_techniques.datasets.normalization import standardize
from dl_techniques.engines.conversion import float32_network, tiling_of
from dl_techniques.engines.engine import Engine, Tiling
from dl_techniques.engines.formats import FORMATS, RUNTIMES, ArtifactFormat, missing_modules
from dl_techniques.engines.loading import load_engine
from dl_techniques.errors import ArgumentError, ConvUNextError, ExportError, FileError, pip_install
from dl_techniques.export.certify import Certificate, certify, print_certificate
from dl_techniques.export.graph import GraphOptions, write_artifact
from dl_techniques.export.quantize import Loss, quantize, read_centres
from dl_techniques.export.settings import ExportOptions
from dl_techniques.models.convunext.receptive import pools_image
from dl_techniques.tasks.registry import task_of

if TYPE_CHECKING:
    from rich.console import Console

    from dl_techniques.models.convunext.model import ConvUNextModel

SIZES = ((1, 1), (33, 47), (128, 160))
BATCHES = (1, 2)
ALPHAS = (0.013, 0.37, 1.7, 73.0)  # no powers of two: floats scale by those exactly
LIMIT = 1e-4  # of the output's range, of the pixels of masks, and of f(a·x) = a·f(x)


@dataclass(frozen=True)
class Comparison:
    """Largest difference to Keras by the range of all outputs, or share of pixels of another class, and its limit."""

    measure: str
    value: float
    limit: float
    sizes: tuple[tuple[int, int], ...]
    batches: tuple[int, ...] = BATCHES

    def __str__(self) -> str:
        return f"{self.measure} {self.value:.1e}, allowed {self.limit:g}"

    @property
    def holds(self) -> bool:
        """Whether the value is finite and within the limit."""
        return self.value <= self.limit


@dataclass(frozen=True)
class Artifact:
    """An exported file or folder, its difference to Keras, its certificate, and what 8-bit integers cost."""

    path: Path
    comparison: Comparison
    certificate: Certificate | None
    loss: Loss | None = None


def export_model(source: str | os.PathLike, options: ExportOptions, console: Console) -> Artifact:
    """Export a model in a format for deployment.

    The artifact maps pixels, `(batch, height, width, channels)` float32, any batch, to the finest output in float32.
    Its card is the model's, with what was measured here; the normalization that the model's card names is done inside
    the artifact. All is written beside the output and moved there once it has run in its runtime and matches Keras.

    Args:
        source: A `.keras` file, a preset's name or folder.
        options: Settings.
        console: Where what was measured is printed.

    Raises:
        ExportError: The artifact cannot be made, or does not do what the model does; nothing is left of it.
        FileError: The model cannot be read, or the output exists or cannot be written.
        ArgumentError: A setting does not fit the model, or needs a module that is not installed.
    """
    form = options.artifact_format
    _check_installed(form)
    _check_free(options)
    engine = load_engine(source)
    card = read_card(engine.path)
    standardizes = card.standardizes(str(engine.path)) and not options.tiles  # inside the artifact
    if card.details.get("labels") and options.activation == "argmax":
        raise ArgumentError("activation", "must not be argmax: the labels of this model may overlap", "argmax")
    network = _exportable(engine, options)
    task = task_of(card, str(engine.path), "restore" if engine.use_bias is False else None) if options.int8 else None
    centres = read_centres(options.int8, task, engine.channels, options.size) if options.int8 and task else []
    with staged_folder(options.output) as staging:
        path = staging / options.output.name
        with _named(options.output, f"cannot be exported as {form.name}"):
            sums = options.tiles and pools_image(network)
            graph = GraphOptions(standardizes, options.activation, options.size, sums)
            write_artifact(network, engine.path, graph, form, path)
        write_card(path, ModelCard(export={"tiling": asdict(_tiling(card, network, options))}))
        with _named(options.output, "does not run"), _full_precision():
            exported = load_engine(path)
            comparison = _compare(exported, network, standardizes, options.activation)
            promises = not network.use_bias and not standardizes and options.activation == "none"
            certificate = certify(exported, ALPHAS, SIZES, LIMIT) if promises else None
        artifact = Artifact(options.output, comparison, certificate)
        _judge(artifact, exported, console)
        if task is not None:
            loss = quantize(path, centres, task, options.max_loss)
            artifact = replace(artifact, certificate=None, loss=loss)
            console.print(f"{options.output.name} in 8-bit integers against float: {loss}")
            if not loss.holds:
                remedy = f"Nothing was written. Add --max-loss {math.ceil(1000 * loss.value) / 1000:g} to accept it."
                raise ExportError(str(options.output), f"loses too much: {loss}.", remedy)
        write_card(path, _card(card, artifact, network, options, path))
        _check_free(options)  # again: minutes have passed
        publish(staging, _parts(options))
    return artifact


def _check_installed(form: ArtifactFormat) -> None:
    runtime = RUNTIMES[form.runtime]
    if missing := missing_modules((*runtime.modules, *form.modules)):
        rule = f"needs the module {missing[0]!r}, which is not installed"
        raise ArgumentError("format", rule, form.name, pip_install(runtime.extra) if runtime.extra else "")


# === The model ===


def _exportable(engine: Engine, options: ExportOptions) -> ConvUNextModel:
    """Return the float32 network of one output, any size, without what only training needs."""
    model, activation, form = engine.model, options.activation, options.artifact_format
    if model is None:
        raise FileError(str(engine.path), "is an export already.", "Name the .keras file or preset that was exported.")
    ending = getattr(model.final_activation, "__name__", "a function")
    if activation in ("sigmoid", "softmax") and ending != "linear":
        remedy = "Leave --activation out, or choose argmax."
        raise ArgumentError("activation", f"must be none or argmax: the model ends in {ending}", activation, remedy)
    if activation in ("softmax", "argmax") and model.output_channels == 1:
        rule = "must be none or sigmoid for a model of one output channel"
        raise ArgumentError("activation", rule, activation)
    if form.max_bytes is not None and 4 * model.count_params() >= form.max_bytes:
        remedy = f"Choose {' or '.join(name for name, row in FORMATS.items() if row.max_bytes is None)}."
        raise ArgumentError("format", "must be one that holds 2 GB and more for this model", form.name, remedy)
    return float32_network(model)


# === The artifact ===


def _compare(artifact: Engine, network: ConvUNextModel, standardizes: bool, activation: str) -> Comparison:
    from dl_techniques.models.convunext.function import keras_function

    function, rng = keras_function(network), np.random.default_rng(0)
    sizes = tuple(dict.fromkeys(artifact.fit(size) for size in SIZES))
    expected, actual = [], []
    for size in sizes:
        for batch in BATCHES:
            x = rng.uniform(size=(batch, *size, artifact.channels)).astype("float32")
            normalized = np.stack([standardize(image) for image in x]) if standardizes else x
            y = _activated(function(normalized).astype("float64"), activation)
            output = artifact.function(x)
            if output.shape != y.shape:
                raise ValueError(f"images of shape {x.shape} become {output.shape}, not {y.shape}")
            expected.append(y.ravel())
            actual.append(output.ravel())
    y = np.concatenate(expected)
    difference = np.abs(np.concatenate(actual) - y)
    if activation == "argmax":
        return Comparison("share of pixels of another class", float(np.mean(difference != 0)), LIMIT, sizes)
    share = float(difference.max() / np.ptp(y)) if difference.any() else 0.0
    return Comparison("largest difference by range of output", share, LIMIT, sizes)


def _activated(y: np.ndarray, activation: str) -> np.ndarray:
    """Return what an activation makes of float64 outputs, from its definition."""
    if activation == "sigmoid":
        return (1 + np.tanh(y / 2)) / 2
    if activation == "softmax":
        powers = np.exp(y - y.max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True)
    return np.argmax(y, axis=-1, keepdims=True) if activation == "argmax" else y


def _judge(artifact: Artifact, engine: Engine, console: Console) -> None:
    """Print what was measured and raise `ExportError` if it is too much."""
    comparison, certificate = artifact.comparison, artifact.certificate
    sizes = ", ".join(f"{height}x{width}" for height, width in comparison.sizes)
    console.print(f"{artifact.path.name} against Keras on images of {sizes}: {comparison}")
    if certificate is not None:
        print_certificate(certificate, engine, console)
    remedy = "Nothing was written. Try another format."
    if not comparison.holds:
        raise ExportError(str(artifact.path), f"does not match Keras: {comparison}.", remedy)
    if certificate is not None and not certificate.holds:
        raise ExportError(str(artifact.path), "is not scale-equivariant, as its model is: f(a*x) = a*f(x).", remedy)


def _card(
    card: ModelCard, artifact: Artifact, network: ConvUNextModel, options: ExportOptions, written: Path
) -> ModelCard:
    """Return the model's card with what holds for the artifact instead of what held for the model."""
    export = {
        "format": options.artifact_format.name,
        "size": options.size or "any",
        "normalization": "none" if options.tiles else card.normalization,  # done inside
        "activation": options.activation,
        "tiling": asdict(_tiling(card, network, options)),
        "against_keras": asdict(artifact.comparison),
        **({} if artifact.loss is None else {"int8": asdict(artifact.loss)}),
        "convunext_version": __version__,
        "sha256": artifact_digests(written, options.artifact_format.companions),
    }
    certificate = None if artifact.certificate is None else artifact.certificate.as_dict()
    outside = card.normalization if options.tiles else "none"
    return replace(card, normalization=outside, export=export, certificate=certificate)


def _tiling(card: ModelCard, network: ConvUNextModel, options: ExportOptions) -> Tiling:
    # What pools over the whole image, the normalization too, gives another result for each crop.
    pools = card.normalization != "none" or pools_image(network)
    whole = options.size is not None or (pools and not options.tiles)
    outputs = 1 if options.activation == "argmax" else network.output_channels
    return tiling_of(network, outputs, options.artifact_format.runtime, whole)


@contextlib.contextmanager
def _named(output: Path, what: str) -> Iterator[None]:
    """Say whose fault it is; the errors of converters and runtimes have no class in common."""
    try:
        yield
    except ConvUNextError as error:
        raise ExportError(str(output), f"{what}: {error.reason}") from error
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(str(output), f"{what}: {reason}") from error


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Keep TensorFlow from rounding factors to ten bits on GPUs that can."""
    import keras

    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)


# === The place ===


def _parts(options: ExportOptions) -> list[Path]:
    """Return what an artifact consists of; the last makes it whole."""
    form, output = options.artifact_format, options.output
    card = [card_path(output)] if form.suffix else []  # a folder holds its card
    return [*form.parts(output)[:-1], *card, output]


def _check_free(options: ExportOptions) -> None:
    """Raise `FileError` if something lies where the artifact shall, unless it is one and to be replaced."""
    for part in _parts(options):
        if not part.exists():
            continue
        if not options.overwrite:
            raise FileError(str(part), "exists already.", "Choose another --output, or add --overwrite.")
        form = options.artifact_format
        if form.marker and not (part / form.marker).is_file():
            raise FileError(str(part), f"is not a {form.title}.", "Choose another --output.")
        if not form.marker and part.is_dir():
            raise FileError(str(part), "is a folder.", "Choose another --output.")
