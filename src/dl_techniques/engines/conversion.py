"""A Keras model as the graph of another runtime; `python -m` runs it in a process of its own, see `cache.convert`."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dl_techniques.engines.cache import FACTS, SUFFIX, Runtime
from dl_techniques.engines.footprint import model_bytes_per_pixel
from dl_techniques.engines.loading import Tiling, load_engine
from dl_techniques.engines.runtimes import import_openvino
from dl_techniques.engines.subprocess import answer, without_tensorflow

if TYPE_CHECKING:
    from dl_techniques.models.convunext.model import ConvUNextModel


def float32_network(model: ConvUNextModel) -> ConvUNextModel:
    """Return a model's network of one output for images of any size, in float32, without what only training needs."""
    from dl_techniques.models.convunext.model import create_inference_model_from_training_model

    return create_inference_model_from_training_model(
        model,
        input_shape=(None, None, model.input_channels),
        dtype="float32",
        drop_path_rate=0.0,
        dropout_rate=0.0,
        remat=False,
    )


def tiling_of(network: ConvUNextModel, outputs: int, runtime: str, whole: bool = False) -> Tiling:
    """Return what a model's graph tells of its application to parts of images.

    Args:
        network: The model.
        outputs: Channels of the output of what is made of it.
        runtime: What computes it: `"keras"`, `"onnxruntime"` or `"openvino"`.
        whole: Whether that takes whole images only.
    """
    from dl_techniques.models.convunext.receptive import pools_image, receptive_radius
    from dl_techniques.models.convunext.tiles import energy_sizes

    energies = tuple(energy_sizes(network)) if pools_image(network) else ()
    each = model_bytes_per_pixel(network, runtime)
    return Tiling(receptive_radius(network), 2**network.depth, each, outputs, whole, energies)


def write_artifact(model, path: Path, form: str) -> None:
    """Write a Keras model in a format of `Model.export`, its inputs named and of their own types; needs TensorFlow.

    Args:
        model: A functional model.
        path: Where to.
        form: `"onnx"`, `"saved_model"` or `"litert"`.
    """
    import keras
    import tensorflow as tf

    specs = [keras.InputSpec(shape=x.shape, dtype="float32", name=x.name) for x in model.inputs]
    signature: list[Any] = specs if len(specs) == 1 else [specs]  # the model is called with one argument, a list
    # Nothing beyond LiteRT's own operations: its runtime alone, without TensorFlow's, must do.
    builtin = {"target_spec": {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]}} if form == "litert" else {}
    with warnings.catch_warnings():
        # Keras mends tf2onnx under NumPy 2 and is warned for looking.
        warnings.filterwarnings("ignore", "In the future `np.object`", FutureWarning)
        name = {"saved_model": "tf_saved_model"}.get(form, form)
        model.export(str(path), format=name, verbose=False, input_signature=signature, **builtin)


def write_openvino(model, path: Path) -> None:
    """Write a Keras model as OpenVINO has it, without TensorFlow: Keras on OpenVINO makes the graph of any size.

    Keras' own export there sees images of one pixel and leaves that size in the graph. A graph with sums over the image
    takes one image at a time.

    Args:
        model: A functional model.
        path: Where to, an `.xml` file; its `.bin` comes beside it.
    """
    import keras
    import numpy as np

    openvino = import_openvino()
    opset13 = openvino.opset13

    batch = -1 if len(model.inputs) == 1 else 1
    inputs = [
        opset13.parameter([batch, *(-1 if size is None else size for size in x.shape[1:])], np.float32, name=x.name)
        for x in model.inputs
    ]
    tensors = [keras.ops.convert_to_tensor(given.output(0)) for given in inputs]
    outputs = keras.tree.flatten(model(tensors[0] if len(tensors) == 1 else tensors, training=False))
    for given, x in zip(inputs, model.inputs, strict=True):
        given.output(0).set_names({x.name})
    results = [opset13.result(output.output) for output in outputs]
    for name, result in zip(("output", "sums"), results, strict=False):
        result.output(0).set_names({name})
    graph = openvino.Model(results, inputs)
    openvino.save_model(graph, str(path), compress_to_fp16=False)


def convert_model(source: str, runtime: Runtime, folder: Path) -> None:
    """Write a model's network for a runtime, that for tiles with statistics of a V2 model, and the facts.

    Args:
        source: A `.keras` file or a preset's folder.
        runtime: What it shall run on.
        folder: Where to.
    """
    from dl_techniques.models.convunext.receptive import pools_image
    from dl_techniques.models.convunext.tiles import tile_network

    loaded: Any = load_engine(source).model
    network = float32_network(loaded)
    networks = {"network": network}
    if pools_image(network):
        networks["tiles"] = tile_network(network)
    for name, model in networks.items():
        path = folder / f"{name}{SUFFIX[runtime]}"
        if runtime == "openvino":
            write_openvino(model, path)
        else:
            write_artifact(model, path, "onnx")
    facts = {
        "channels": network.input_channels,
        "use_bias": network.use_bias,
        "tiling": asdict(tiling_of(network, network.output_channels, runtime)),
    }
    (folder / FACTS).write_text(json.dumps(facts))


def main(source: str, runtime: Runtime, folder: str) -> int:
    """Convert, or say in the last line of stderr why not."""
    if runtime == "openvino":
        without_tensorflow()
        import_openvino()  # before Keras imports it
    return answer(lambda: convert_model(source, runtime, Path(folder)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], "openvino" if sys.argv[2] == "openvino" else "onnxruntime", sys.argv[3]))
