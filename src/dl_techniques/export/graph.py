"""What an export computes, from pixels to its answer; `python -m` writes that as OpenVINO has it, see `export`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dl_techniques.engines.runtimes import import_openvino
from dl_techniques.engines.subprocess import answer, run_apart, without_tensorflow

if TYPE_CHECKING:
    from dl_techniques.models.convunext.model import ConvUNextModel


@dataclass(frozen=True)
class GraphOptions:
    """What an artifact does beside its network.

    Attributes:
        standard: Whether images are brought to mean 0 and variance 1 inside.
        activation: Done to the output: `none`, `sigmoid`, `softmax` or `argmax`.
        size: Height and width of all images; any if not given.
        energies: Whether the statistics of the whole image, of a V2 network, go in and out.
    """

    standard: bool
    activation: str
    size: tuple[int, int] | None
    energies: bool


def artifact_model(network: ConvUNextModel, around: GraphOptions) -> Any:
    """Return the functional model of an artifact: of pixels, or of a tile and what it is normalized by."""
    import keras

    if around.energies:
        from dl_techniques.models.convunext.tiles import tile_network

        tiles = tile_network(network)
        output, energies = tiles.outputs
        return keras.Model(tiles.inputs, [_active(output, around.activation), energies])
    image = keras.Input((*(around.size or (None, None)), network.input_channels), dtype="float32", name="image")
    y = network(_standardized(image) if around.standard else image, training=False)
    return keras.Model(image, _active(y, around.activation))


def write_openvino_apart(source: Path, around: GraphOptions, path: Path) -> None:
    """Write an artifact as OpenVINO's own operations: a graph that comes through TensorFlow takes twice the time.

    Args:
        source: A `.keras` file or a preset's folder.
        around: What the artifact does beside the network.
        path: Where to, an `.xml` file.

    Raises:
        ConversionError: It cannot be done.
    """
    told = [str(source.resolve()), json.dumps(asdict(around)), str(path)]
    run_apart("dl_techniques.export.graph", told, "openvino", str(source))


def _active(y, activation: str):
    import keras

    if activation == "sigmoid":
        y = keras.ops.sigmoid(y)
    elif activation == "softmax":
        y = keras.ops.softmax(y, axis=-1)
    elif activation == "argmax":
        y = keras.ops.top_k(y, 1)[1]  # Keras' argmax looks at bits, for which ONNX has no operation
    return y


def _standardized(image):
    """Return each image with mean 0 and variance 1, one of a single value as zeros; see `data.normalization`."""
    from keras import ops

    axes = (1, 2, 3)
    centred = image - ops.mean(image, axis=axes, keepdims=True)
    deviation = ops.sqrt(ops.mean(ops.square(centred), axis=axes, keepdims=True))
    varies = ops.max(image, axis=axes, keepdims=True) > ops.min(image, axis=axes, keepdims=True)
    return ops.where(varies, centred, 0.0) / ops.where(varies, deviation, 1.0)


def _write(source: str, around: GraphOptions, path: Path) -> None:
    from dl_techniques.engines.conversion import float32_network, write_openvino
    from dl_techniques.engines.loading import load_engine

    loaded: Any = load_engine(source).model
    write_openvino(artifact_model(float32_network(loaded), around), path)


if __name__ == "__main__":
    without_tensorflow()
    import_openvino()  # before Keras imports it
    _, named, given, output = sys.argv
    sys.exit(answer(lambda: _write(named, GraphOptions(**json.loads(given)), Path(output))))
