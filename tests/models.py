"""Small models for the tests, and weights away from where initializers put them. Keras is loaded when one is made."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from dl_techniques.card import ModelCard, seal_card, write_card
from dl_techniques.engines.engine import Engine
from dl_techniques.engines.formats import find_format
from dl_techniques.inference import files
from dl_techniques.inference.denoising_presets import DenoisingPredictors
from dl_techniques.inference.network import ignore
from dl_techniques.inference.predictor import Predictor
from dl_techniques.inference.settings import DenoisingOptions, PredictionOptions

if TYPE_CHECKING:
    import keras

    from dl_techniques.models.convunext.model import ConvUNextModel

DENOISER = {
    "depth": 2, "initial_filters": 4, "convnext_version": "v1", "use_bias": False, "block_kernel_size": 3,
    "stem_kernel_size": 3, "residual_learning": True, "equivariant_block": "no_norm", "downsample": "conv",
}  # fmt: skip


def small_model(**kwargs) -> "ConvUNextModel":
    """Return a ConvUNext that builds and runs in a moment."""
    from dl_techniques.models.convunext.model import ConvUNextModel

    defaults = {
        "input_shape": (None, None, 3),
        "depth": 3,
        "initial_filters": 8,
        "blocks_per_level": 1,
        "drop_path_rate": 0.0,
        "layer_scale_init_value": 0.5,
    }
    return ConvUNextModel(**{**defaults, **kwargs})


def randomize(model: "keras.layers.Layer", seed: int = 0) -> None:
    """Move every weight away from its initial value: kernels are drawn anew, scales stay positive and of order one."""
    from keras import ops

    rng = np.random.default_rng(seed)
    for variable in model.weights:
        shape = tuple(variable.shape)
        if len(shape) > 1:
            fan_in = np.prod(shape[:-1]) if shape[-1] > 1 else np.prod(shape[:2])
            value = rng.normal(scale=fan_in**-0.5, size=shape)
        elif variable.path.endswith(("moving_variance", "norm/gamma", "layer_scale/gamma")):
            value = rng.uniform(0.5, 1.5, size=shape)
        else:
            value = ops.convert_to_numpy(variable) + rng.normal(scale=0.3, size=shape)
        variable.assign(value.astype("float32"))


def run(model, x, compiled: bool = True) -> list[np.ndarray]:
    """Return the outputs at inference as NumPy arrays, one or several as a list.

    On JAX the model is compiled whole, as `predict` does it: one compilation per image size instead of hundreds.
    """
    import keras

    if compiled and keras.backend.backend() == "jax" and isinstance(model, keras.Model):
        outputs = model.predict(x, batch_size=len(x), verbose=0)
    else:
        outputs = model(x, training=False)
    outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    return [keras.ops.convert_to_numpy(output) for output in outputs]


def image(*shape: int, seed: int = 0) -> np.ndarray:
    """Return uniform float32 noise in [0, 1]."""
    return np.random.default_rng(seed).uniform(size=shape).astype("float32")


def relative_difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return ‖actual − expected‖ / ‖expected‖."""
    expected = np.asarray(expected, dtype="float64")
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def vouch(artifact: Path) -> Path:
    """Write the card of an export with the digests of its files, as `convunext export` does."""
    form = find_format(artifact)
    seal_card(artifact, ModelCard(task="denoise"), form.companions if form else ())
    return artifact


def smoothing_engine() -> Engine:
    """A denoiser whose effect is known: the mean of each pixel and its eight neighbours."""

    def mean(batch: np.ndarray) -> np.ndarray:
        padded = np.pad(batch, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        shifts = [padded[:, i : i + batch.shape[1], j : j + batch.shape[2]] for i in range(3) for j in range(3)]
        return np.mean(shifts, axis=0, dtype="float32")

    return Engine(mean, 1, "mean of neighbours", Path("mean"))


def denoise_pixels(pixels, engine: Engine, tile: int | None = None, on_tile=ignore, tta: int = 1) -> np.ndarray:
    """Return what a predictor of a denoiser makes of an image."""
    return Predictor(engine, tta, tile=tile, task="denoise")(pixels, on_tile).pixels


def predict_files(model, inputs, options: PredictionOptions, console: Console) -> list:
    """Apply one model to files."""
    predictor = files.create_predictor(model, options)
    return files.predict_files(lambda _: predictor, inputs, options, console)


def denoise_files(inputs, options: DenoisingOptions, console: Console) -> list:
    """Denoise files, as `convunext denoise` does."""
    return files.predict_files(DenoisingPredictors(options), [str(path) for path in inputs], options, console)


def saved(folder: Path, card: dict, **kwargs) -> Path:
    """Save a tiny model of random weights with a card."""
    model = small_model(**{"depth": 2, "initial_filters": 4, **kwargs})
    randomize(model)
    path = folder / "model.keras"
    model.save(path)
    write_card(path, card)
    return path
