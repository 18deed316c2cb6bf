"""What do clean images give that noisy ones alone do not? Two denoisers of equal data and steps, PSNR on clean images.

    python benchmarks/noisy_only.py --images bsd400/ --test set12/ --runs runs/ --markdown docs/denoising.md

Noise of one level is added to the images, neither clipped nor rounded, and they are written as float32 TIFF. One
denoiser is trained on these files alone (`--noisy-only`), the other on the clean ones, with noise of all levels up to
one fifth more. A run that is stopped goes on from its last epoch when the command is given again.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from rich.console import Console

from dl_techniques.datasets.noise import add_gaussian_noise
from dl_techniques.images.files import Picture, find_images, read_pixels, unit_range, write_image
from dl_techniques.metrics import denoising_psnr
from dl_techniques.models.convunext.function import keras_function
from dl_techniques.training.recipes.denoising.settings import DenoisingConfig
from dl_techniques.training.trainer import train
from tables import replace_section


def write_noisy(images: Path, folder: Path, sigma: float) -> None:
    """Write noisy versions of all images of a folder; one that is there stays."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(find_images([images])):
        target = folder / f"{path.stem}.tif"
        if not target.exists():
            clean = unit_range(read_pixels(path, 1))
            noisy = add_gaussian_noise(clean, sigma / 255, np.random.default_rng(number))
            write_image(target, Picture(noisy.astype("float32")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of clean grey images to train on")
    parser.add_argument("--test", type=Path, required=True, help="folder of clean grey images to measure on")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the noisy images and the two runs")
    parser.add_argument("--sigma", type=float, default=25.0, help="level of the noise, of 255")
    parser.add_argument("--steps", type=int, default=5000, help="steps of each run")
    parser.add_argument("--markdown", type=Path, help="file whose table is replaced")
    arguments = parser.parse_args()

    noisy = arguments.runs / f"noisy-{arguments.sigma:g}"
    write_noisy(arguments.images, noisy, arguments.sigma)
    common = {"steps": arguments.steps, "cooldown": 0.6}
    runs = {
        "clean images": {"images": str(arguments.images), "sigma": 1.2 * arguments.sigma},
        "noisy images alone": {"images": str(noisy), "noisy_only": True},
    }
    clean = [unit_range(read_pixels(path, 1)) for path in find_images([arguments.test])]
    lines = ["| trained on | steps | PSNR, dB |", "|---|---|---|"]
    for name, settings in runs.items():
        folder = arguments.runs / name.replace(" ", "-")
        config = DenoisingConfig(output=folder, **settings, **common)
        function = keras_function(train(config, Console(), resume=folder.exists()).model)
        score = denoising_psnr(lambda x, function=function: function(x[None])[0], clean, arguments.sigma)
        lines.append(f"| {name} | {arguments.steps:,} | {score:.2f} |")
        print(lines[-1], flush=True)
    print("\n".join(lines))
    if arguments.markdown is not None:
        replace_section(arguments.markdown, "noisy-only", "\n".join(lines))


if __name__ == "__main__":
    main()
