"""Which design denoises at noise levels it was never trained on? Eight, of equal data, steps and nearly parameters.

    python benchmarks/generalization.py --images bsd400/ --test set12/ --runs runs/
    python benchmarks/generalization.py --images bsd400/ --test set12/ --runs runs/ --designs 7 --steps 16000 \\
        --markdown docs/denoising.md

Every design is trained on noise of σ ≤ 10 (of 255) and measured on σ 5…100: mean PSNR over the test images, noise
neither clipped nor rounded, output clipped. A design whose run is stopped goes on from its last epoch when the command
is given again. Writes a table of all runs in the folder into the Markdown file, and the curve beside it.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from keras import ops
from rich.console import Console

from dl_techniques.images.files import find_images, read_pixels, unit_range
from dl_techniques.metrics import denoising_psnr
from dl_techniques.models.convunext.function import keras_function
from dl_techniques.training.recipes.denoising.recipe import DenoisingRecipe, build_denoiser
from dl_techniques.training.recipes.denoising.settings import DenoisingConfig
from dl_techniques.training.trainer import train
from tables import replace_section

SIGMAS = (5, 10, 15, 25, 50, 75, 100)
TRAINED = 10.0
ADDITIVE = ("bias", "beta")


@keras.saving.register_keras_serializable("convunext_benchmarks")
class Standardization(keras.layers.Layer):
    """Return an image with mean 0 and variance 1, its mean and its deviation, each sample by itself."""

    def call(self, x):
        mean = ops.mean(x, axis=(1, 2, 3), keepdims=True)
        deviation = ops.sqrt(ops.mean(ops.square(x - mean), axis=(1, 2, 3), keepdims=True) + 1e-12)
        return (x - mean) / deviation, mean, deviation


def biased(config: DenoisingConfig, channels: int) -> keras.Model:
    return build_denoiser(config, channels)


def without_biases(config: DenoisingConfig, channels: int) -> keras.Model:
    """Return the textbook block with every additive parameter held at zero."""
    model = build_denoiser(config, channels)
    for variable in model.weights:
        if variable.path.endswith(ADDITIVE):
            variable.trainable = False
    return model


def standardized(config: DenoisingConfig, channels: int) -> keras.Model:
    """Return the biased net between normalization and denormalization of the whole image (equivariant to α > 0)."""
    inputs = keras.Input((None, None, channels))
    x, mean, deviation = Standardization(name="standardization")(inputs)
    x = build_denoiser(config, channels)(x)
    return keras.Model(inputs, x * deviation + mean)


# Name in the table: settings, builder.
DESIGNS = {
    "biased LayerNorm + GELU (textbook)": ({"use_bias": True}, biased),
    "the same, biases held at zero": ({"use_bias": True}, without_biases),
    "biased, whole image standardized": ({"use_bias": True}, standardized),
    "scale-carrying LayerNorm + GELU": ({"equivariant_block": "scale_layernorm"}, build_denoiser),
    "variance-only batch norm + ReLU": ({"equivariant_block": "batchnorm"}, build_denoiser),
    "no norm + ReLU": ({"equivariant_block": "no_norm"}, build_denoiser),
    "scale-carrying LayerNorm + GELU, zero-mean stem": (
        {"equivariant_block": "scale_layernorm", "zero_mean_stem": True},
        build_denoiser,
    ),
    "no norm + ReLU, zero-mean stem": ({"equivariant_block": "no_norm", "zero_mean_stem": True}, build_denoiser),
}


def train_and_measure(name: str, folder: Path, arguments: argparse.Namespace) -> dict:
    """Train a design, or go on with it, and return its PSNR at every level of `SIGMAS`."""
    settings, build = DESIGNS[name]
    config = DenoisingConfig(
        images=str(arguments.images), output=folder, sigma=TRAINED, steps=arguments.steps, depth=2,
        initial_filters=arguments.filters, **settings,
    )  # fmt: skip
    folder.parent.mkdir(parents=True, exist_ok=True)
    model = train(
        config, Console(), folder.exists(), lambda config, console: DenoisingRecipe(config, console, build)
    ).model
    clean = [unit_range(read_pixels(path, 1)) for path in find_images([arguments.test])]
    function = keras_function(model)
    scores = [denoising_psnr(lambda x: function(x[None])[0], clean, sigma) for sigma in SIGMAS]
    return {"design": name, "steps": arguments.steps, "parameters": model.count_params(), "psnr_db": scores}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of clean images to train on")
    parser.add_argument("--test", type=Path, required=True, help="folder of clean images to measure on")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs, one in it for each design")
    parser.add_argument("--steps", type=int, default=4000, help="steps of training of each design")
    parser.add_argument("--filters", type=int, default=16, help="channels of the finest level")
    parser.add_argument("--designs", nargs="+", choices=range(len(DESIGNS)), type=int, default=[*range(len(DESIGNS))])
    parser.add_argument("--markdown", type=Path, help="file whose table is replaced; the curve is drawn beside it")
    arguments = parser.parse_args()

    names = list(DESIGNS)
    for number in arguments.designs:
        folder = arguments.runs / f"design-{number}-{arguments.steps}"
        if not (folder / "psnr.json").exists():
            result = train_and_measure(names[number], folder, arguments)
            (folder / "psnr.json").write_text(json.dumps(result, indent=2), encoding="utf-8")
        print((folder / "psnr.json").read_text(encoding="utf-8"), flush=True)
    done = sorted(arguments.runs.glob("design-*/psnr.json"))
    results = [json.loads(path.read_text(encoding="utf-8")) for path in done]
    results.sort(key=lambda result: (result["steps"], names.index(result["design"])))
    if arguments.markdown is not None:
        replace_section(arguments.markdown, "generalization", "\n".join(table(results)))
        draw(results, arguments.markdown.with_name("generalization.svg"))


def table(results: list[dict]) -> list[str]:
    """Return the lines of a Markdown table, a row per design."""
    lines = [
        "| design | parameters | steps | " + " | ".join(f"σ {sigma}" for sigma in SIGMAS) + " |",
        "|---|---|---|" + "---|" * len(SIGMAS),
    ]
    for result in results:
        scores = " | ".join(f"{score:.2f}" for score in result["psnr_db"])
        lines.append(f"| {result['design']} | {result['parameters']:,} | {result['steps']:,} | {scores} |")
    return lines


def draw(results: list[dict], path: Path) -> None:
    """Draw PSNR against σ, a line per design."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 6), layout="constrained")
    for result in results:
        axes.plot(SIGMAS, result["psnr_db"], marker="o", label=f"{result['design']}, {result['steps']:,} steps")
    axes.axvspan(0, TRAINED, color="0.9", label="trained on")
    axes.set(xlabel="σ of the noise, of 255", ylabel="PSNR on Set12, dB", xlim=(0, max(SIGMAS)))
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    figure.savefig(path)


if __name__ == "__main__":
    main()
