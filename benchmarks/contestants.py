"""Who takes part in the benchmarks of speed: each is built in a process of its own and then asked for steps.

Nothing heavy is imported until a contestant is built.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

WORKS = ("inference", "training")


@dataclass(frozen=True)
class Job:
    """What all contestants of a comparison compute.

    Attributes:
        variant: Named size of the network.
        version: Of its blocks: `"v2"` or, of ours alone, `"v1"`, whose blocks do not look at the whole image.
        batch: Images of a step.
        size: Their height and width, in pixels.
        dtype: `"float32"`, or `"bfloat16"`: weights in float32, computed in bfloat16.
        device: `"cpu"` or `"gpu"`.
        threads: CPU cores that a contestant may use; all if `None`.
        artifact: The network as a `.keras` file, for contestants that convert it.
        memory: Bytes that a runtime may take at once, in exact tiles where an image would take more; whole if `None`.
    """

    variant: str = "tiny"
    version: str = "v2"
    batch: int = 4
    size: int = 256
    dtype: str = "float32"
    device: str = "cpu"
    threads: int | None = None
    artifact: str = ""
    memory: int | None = None

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Return images `(batch, size, size, 3)` and targets of one channel, uniform in [0, 1], float32."""
        random = np.random.default_rng(0)
        image, target = (random.random((self.batch, self.size, self.size, c), dtype="float32") for c in (3, 1))
        return image, target


@dataclass
class Built:
    """A contestant in its process.

    Attributes:
        works: One step of each work, done when the function returns.
        facts: What the report tells of it: parameters, GMAC of an image, version, shape of the output.
        peak_device_memory: Returns the most bytes that were in use on the GPU.
    """

    works: dict[str, Callable[[], Any]]
    facts: dict[str, Any] = field(default_factory=dict)
    peak_device_memory: Callable[[], int] | None = None


@dataclass(frozen=True)
class Contestant:
    """One row of the comparison.

    Attributes:
        title: Its name in tables.
        build: Makes it, in its process.
        backend: Of Keras in that process.
        works: What it can do.
        same_graph: Whether it is the same function with as many parameters, or another network for the same job.
        devices: Where it runs.
    """

    title: str
    build: Callable[[Job], Built]
    backend: str = "tensorflow"
    works: tuple[str, ...] = WORKS
    same_graph: bool = True
    devices: tuple[str, ...] = ("cpu", "gpu")


# === Keras ===


def ours(job: Job, **changes) -> Built:
    """Return the variant of this package, without drop path, which the others do not have."""
    from dl_techniques.models.convunext.model import create_convunext_variant

    _set_policy(job)
    shape = (job.size, job.size, 3)
    changes |= {"convnext_version": job.version, "drop_path_rate": 0.0}
    return _keras(create_convunext_variant(job.variant, input_shape=shape, output_channels=1, **changes), job)


def ours_remat(job: Job) -> Built:
    """Return ours, the wide half of each block recomputed in the backward pass."""
    return ours(job, remat=True)


def textbook(job: Job) -> Built:
    """Return the same graph from the layers that Keras has."""
    from forward import stock_convunext

    _set_policy(job)
    return _keras(stock_convunext(job.variant, job.size), job)


def keras_hub_segmenter(job: Job) -> Built:
    """Return keras-hub's SegFormer with a MiT-B2 encoder, random weights."""
    import keras_hub  # type: ignore  # of the extra peers

    _set_policy(job)
    encoder = keras_hub.models.MiTBackbone(
        layerwise_depths=[3, 4, 6, 3], num_layers=4, layerwise_num_heads=[1, 2, 5, 8],
        layerwise_sr_ratios=[8, 4, 2, 1], max_drop_path_rate=0.1, image_shape=(job.size, job.size, 3),
        hidden_dims=[64, 128, 320, 512], layerwise_patch_sizes=[7, 3, 3, 3], layerwise_strides=[4, 2, 2, 2],
    )  # fmt: skip
    backbone = keras_hub.models.SegFormerBackbone(image_encoder=encoder, projection_filters=256)
    return _keras(keras_hub.models.SegFormerImageSegmenter(backbone=backbone, num_classes=1), job)


def _set_policy(job: Job) -> None:
    import keras

    keras.config.set_dtype_policy("mixed_bfloat16" if job.dtype == "bfloat16" else "float32")


def _keras(model, job: Job) -> Built:
    """Return a Keras model's steps: Adam and the squared error, compiled as `compile` does by itself."""
    import keras

    from forward import compiled_forward

    model.compile(optimizer="adam", loss="mse")
    image, target = (keras.ops.convert_to_tensor(array) for array in job.arrays())
    forward = compiled_forward(model)
    facts = {
        "parameters": model.count_params(),
        "output": list(model.output_shape[1:]),
        "version": f"Keras {keras.__version__}",
        "jit_compile": bool(model.jit_compile),
    }

    def train() -> None:
        model.train_on_batch(image, target)  # returns the loss as a number: the step is done
        keras.ops.convert_to_numpy(model.optimizer.iterations)

    works = {"inference": lambda: keras.ops.convert_to_numpy(forward(image)), "training": train}
    return Built(works, facts, _peak_of_keras if job.device == "gpu" else None)


def _peak_of_keras() -> int:
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.config.experimental.get_memory_info("GPU:0")["peak"]
    if keras.backend.backend() == "jax":
        import jax

        return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    import torch

    return torch.cuda.max_memory_allocated()


# === PyTorch ===


def torch_eager(job: Job) -> Built:
    """Return the same graph written by hand for PyTorch, channels last in memory."""
    from torch_nets import TorchConvUNext

    return _torch(TorchConvUNext(job.variant), job)


def torch_compiled(job: Job) -> Built:
    """Return the same, through `torch.compile`."""
    from torch_nets import TorchConvUNext

    if job.device == "cpu" and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        raise ModuleNotFoundError("no C++ compiler on this machine, which torch.compile needs")
    return _torch(TorchConvUNext(job.variant), job, compiled=True)


def smp_unet(job: Job) -> Built:
    """Return the U-Net of segmentation_models_pytorch with a ConvNeXt encoder."""
    from torch_nets import smp_unet

    return _torch(smp_unet(), job)


def dncnn(job: Job) -> Built:
    """Return DnCNN, 17 layers of 64 filters."""
    from torch_nets import DnCNN

    return _torch(DnCNN(), job)


def _torch(net, job: Job, compiled: bool = False) -> Built:
    import torch

    from torch_nets import giga_products

    device = torch.device("cuda" if job.device == "gpu" else "cpu")
    facts = {
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "output": [job.size, job.size, 1],
        "version": f"PyTorch {torch.__version__}",
        "gmac": giga_products(net, job.size),
    }
    net = net.to(device, memory_format=torch.channels_last)
    forward: Any = torch.compile(net) if compiled else net
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    image, target = (
        torch.from_numpy(array).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last).to(device)
        for array in job.arrays()
    )
    precision = torch.autocast(device.type, torch.bfloat16, enabled=job.dtype == "bfloat16")

    def infer() -> None:
        net.eval()
        with torch.inference_mode(), precision:
            forward(image).float().cpu()

    def train() -> None:
        net.train()
        optimizer.zero_grad(set_to_none=True)
        with precision:
            output = forward(image)
        torch.nn.functional.mse_loss(output.float(), target).backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    peak = torch.cuda.max_memory_allocated if device.type == "cuda" else None
    return Built({"inference": infer, "training": train}, facts, peak)


# === Runtimes ===


def openvino(job: Job) -> Built:
    """Return our network on OpenVINO, converted as `--engine openvino` does it."""
    return _runtime(job, "openvino")


def openvino_bfloat16(job: Job) -> Built:
    """Return the same, computed in bfloat16 where the processor has it, and how far that is off."""
    from dl_techniques.engines.loading import precision_deviation
    from dl_techniques.engines.selection import select_engine

    built = _runtime(dataclasses.replace(job, dtype="bfloat16"), "openvino")
    share = precision_deviation(select_engine(job.artifact, "openvino", "bfloat16"))
    built.facts["note"] = f"off by up to {share:.2%} of the range of the output"
    return built


def onnxruntime(job: Job) -> Built:
    """Return our network on ONNX Runtime."""
    return _runtime(job, "onnxruntime")


def _runtime(job: Job, name: str) -> Built:
    import importlib.metadata

    from dl_techniques.engines.loading import load_engine
    from dl_techniques.inference.tiled_function import tiled_function

    if name == "openvino":
        engine = load_engine(job.artifact, "openvino", "bfloat16" if job.dtype == "bfloat16" else "float32")
    elif job.dtype != "float32":
        raise ModuleNotFoundError(f"{name} is exported in float32 only")
    else:
        engine = load_engine(job.artifact, "onnxruntime")
    function = engine.function if job.memory is None else tiled_function(engine, job.memory, job.size)
    image, _ = job.arrays()
    facts = {
        "output": [job.size, job.size, engine.tiling.outputs if engine.tiling else 1],
        "version": f"{name} {importlib.metadata.version(name)}",
    }
    return Built({"inference": lambda: function(image)}, facts)


def save_network(job: Job) -> Built:
    """Write our network to `job.artifact`, the same in every run, for the runtimes; then there is nothing to do."""
    import keras

    from dl_techniques.models.convunext.model import create_convunext_variant

    keras.utils.set_random_seed(0)
    changes = {"convnext_version": job.version, "drop_path_rate": 0.0}
    model = create_convunext_variant(job.variant, input_shape=(None, None, 3), output_channels=1, **changes)
    as_trained(model)
    model.save(Path(job.artifact))
    return Built({}, {"parameters": model.count_params()})


def as_trained(layer) -> None:
    """Move all weights a little: runtimes leave out a bias of 0, and with it what it costs a trained network."""
    random = np.random.default_rng(0)
    for weight in layer.weights:
        weight.assign(np.asarray(weight) + random.normal(0.0, 0.02, weight.shape).astype("float32"))


# In the order in which they are measured: where time is short, the last ones are left out.
CONTESTANTS: dict[str, Contestant] = {
    "textbook-tensorflow": Contestant("textbook Keras, TensorFlow", textbook),
    "ours-tensorflow": Contestant("ours, TensorFlow", ours),
    "ours-remat": Contestant("ours, TensorFlow, `remat`", ours_remat, works=("training",)),
    "openvino": Contestant("ours, OpenVINO", openvino, works=("inference",), devices=("cpu",)),
    "openvino-bfloat16": Contestant(
        "ours, OpenVINO, bfloat16", openvino_bfloat16, works=("inference",), devices=("cpu",)
    ),
    "onnxruntime": Contestant("ours, ONNX Runtime", onnxruntime, works=("inference",), devices=("cpu",)),
    "torch-compiled": Contestant("by hand, PyTorch, `torch.compile`", torch_compiled, "torch"),
    "torch-eager": Contestant("by hand, PyTorch", torch_eager, "torch"),
    "ours-torch": Contestant("ours, PyTorch", ours, "torch"),
    "ours-jax": Contestant("ours, JAX", ours, "jax"),
    "smp": Contestant("U-Net of segmentation_models_pytorch, ConvNeXt-T", smp_unet, "torch", same_graph=False),
    "keras-hub": Contestant("SegFormer of keras-hub, MiT-B2, TensorFlow", keras_hub_segmenter, same_graph=False),
    "dncnn": Contestant("DnCNN, PyTorch", dncnn, "torch", same_graph=False),
    "textbook-jax": Contestant("textbook Keras, JAX", textbook, "jax"),
    "textbook-torch": Contestant("textbook Keras, PyTorch", textbook, "torch"),
}


def machine_backend() -> str:
    """Return what measures the machine: PyTorch, whose matrix products are the vendor's, or else NumPy."""
    return "numpy" if importlib.util.find_spec("torch") is None else "torch"
