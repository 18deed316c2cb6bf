"""The graph of an artifact, from pixels to its output; `python -m` writes it in a subprocess on another backend."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dl_techniques.engines.conversion import float32_network
from dl_techniques.engines.formats import FORMATS, ArtifactFormat
from dl_techniques.engines.keras import load_keras
from dl_techniques.engines.subprocess import exit_status_of, run_in_subprocess

if TYPE_CHECKING:
    from dl_techniques.models.convunext.model import ConvUNextModel


@dataclass(frozen=True)
class GraphOptions:
    """What an artifact computes besides its network: standardization, activation, a fixed size, sums of squares."""

    standardizes: bool
    activation: str
    size: tuple[int, int] | None
    sums_of_squares: bool


def artifact_model(network: ConvUNextModel, options: GraphOptions) -> Any:
    """Return the functional model of an artifact: of pixels, or of a tile and what it is normalized by."""
    import keras

    if options.sums_of_squares:
        from dl_techniques.models.convunext.tiles import tile_network

        tiles = tile_network(network)
        output, sums = tiles.outputs
        return keras.Model(tiles.inputs, [_activated(output, options.activation), sums])
    image = keras.Input((*(options.size or (None, None)), network.input_channels), dtype="float32", name="image")
    y = network(_standardized(image) if options.standardizes else image, training=False)
    return keras.Model(image, _activated(y, options.activation))


def write_artifact(
    network: ConvUNextModel, source: Path, options: GraphOptions, form: ArtifactFormat, path: Path
) -> None:
    """Write an artifact of a network, which `float32_network` made of `source`, a `.keras` file or a preset's folder.

    A subprocess does it where the format's writer needs another backend than this process has.

    OpenVINO files are made of its own operations: a graph that comes through TensorFlow takes twice the time.

    Raises:
        ConversionError: The subprocess cannot do it.
    """
    import keras

    if form.backend in ("", keras.backend.backend()):
        form.write(artifact_model(network, options), path)
    else:
        arguments = [str(source.resolve()), json.dumps(asdict(options)), form.name, str(path)]
        run_in_subprocess("dl_techniques.export.graph", arguments, form.backend, str(source))


def _activated(y, activation: str):
    import keras

    if activation == "sigmoid":
        y = keras.ops.sigmoid(y)
    elif activation == "softmax":
        y = keras.ops.softmax(y, axis=-1)
    elif activation == "argmax":
        y = keras.ops.top_k(y, 1)[1]  # Keras' argmax looks at bits, for which ONNX has no operation
    return y


def _standardized(image):
    """Return each image with mean 0 and variance 1, one of a single value as zeros; see `datasets.normalization`."""
    from keras import ops

    axes = (1, 2, 3)
    centred = image - ops.mean(image, axis=axes, keepdims=True)
    deviation = ops.sqrt(ops.mean(ops.square(centred), axis=axes, keepdims=True))
    varies = ops.max(image, axis=axes, keepdims=True) > ops.min(image, axis=axes, keepdims=True)
    return ops.where(varies, centred, 0.0) / ops.where(varies, deviation, 1.0)


def _write(source: str, options: str, form: str, path: str) -> None:
    loaded: Any = load_keras(Path(source)).model
    FORMATS[form].write(artifact_model(float32_network(loaded), GraphOptions(**json.loads(options))), Path(path))


if __name__ == "__main__":
    sys.exit(exit_status_of(lambda: _write(*sys.argv[1:])))
