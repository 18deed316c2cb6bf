"""A restorer from pairs: blurred and noisy photos to sharp ones, trained by the command's defaults, measured on others.

    python benchmarks/restoration.py --images bsd400/ --test set12/ --runs runs/

Every image is blurred by a Gaussian, gets noise and is written as float32 TIFF, `blurred/` beside `sharp/`; then
`convunext train restore --images runs/blurred --targets runs/sharp -o runs/run` is what runs. A run that is stopped
goes on from its last epoch when the command is given again. Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from rich.console import Console
from skimage.filters import gaussian

from dl_techniques.datasets.noise import add_gaussian_noise
from dl_techniques.images.files import Picture, find_images, read_pixels, unit_range, write_image
from dl_techniques.inference.predictor import Predictor
from dl_techniques.metrics import psnr
from dl_techniques.training.recipes.restoration.settings import RestorationConfig
from dl_techniques.training.trainer import train


def degraded(sharp: np.ndarray, blur: float, sigma: float, seed: int) -> np.ndarray:
    """Return an image `(height, width, 1)` in [0, 1] blurred, with noise that is neither clipped nor rounded."""
    blurred = gaussian(sharp, blur, channel_axis=-1)
    return add_gaussian_noise(blurred, sigma / 255, np.random.default_rng(seed)).astype("float32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of sharp grey images to train on")
    parser.add_argument("--test", type=Path, required=True, help="folder of sharp grey images to measure on")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the pairs and the run")
    parser.add_argument("--blur", type=float, default=1.6, help="standard deviation of the blur, in pixels")
    parser.add_argument("--sigma", type=float, default=2.0, help="level of the noise, of 255")
    parser.add_argument("--steps", type=int, default=RestorationConfig.steps, help="steps of the run")
    arguments = parser.parse_args()

    for number, path in enumerate(find_images([arguments.images])):
        target, blurred = (arguments.runs / folder / f"{path.stem}.tif" for folder in ("sharp", "blurred"))
        if not blurred.exists():  # the last to be written
            sharp = unit_range(read_pixels(path, 1)).astype("float32")
            for file, pixels in ((target, sharp), (blurred, degraded(sharp, arguments.blur, arguments.sigma, number))):
                file.parent.mkdir(parents=True, exist_ok=True)
                write_image(file, Picture(pixels))
    run = arguments.runs / "run"
    config = RestorationConfig(
        images=str(arguments.runs / "blurred"),
        targets=str(arguments.runs / "sharp"),
        output=run,
        steps=arguments.steps,
    )
    train(config, Console(), resume=run.exists())
    predictor, before, after = Predictor(run), [], []
    for number, path in enumerate(find_images([arguments.test])):
        sharp = unit_range(read_pixels(path, 1)).astype("float32")
        blurred = degraded(sharp, arguments.blur, arguments.sigma, 10_000 + number)
        before.append(psnr(blurred, sharp))
        after.append(psnr(predictor(blurred).pixels, sharp))
    print(f"| {arguments.steps:,} steps | {np.mean(before):.2f} dB | {np.mean(after):.2f} dB |")


if __name__ == "__main__":
    main()
