"""Deblur a photo with the blind denoiser as its prior, beside Wiener's filter: PSNR, and a picture to look at.

    python benchmarks/deblurring.py --output deblurring.png

Half-quadratic splitting (Zhang et al. 2021, "Plug-and-play image restoration with deep denoiser prior", eq. 6): in turn
the image nearest to the blurred one in the least-squares sense, by Fourier transform, and the denoiser at a level that
falls. The photo is scikit-image's `camera` (CC0) unless another is named. Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from skimage import data, restoration

from dl_techniques.engines.loading import load_engine
from dl_techniques.images.display import contact_sheet, to_display
from dl_techniques.images.files import Picture, read_pixels, unit_range, write_image
from dl_techniques.inference.predictor import Predictor
from dl_techniques.inference.prior import denoise_prior
from dl_techniques.metrics import psnr

BLUR = 9  # width of the box, in pixels
NOISE = 2.55 / 255  # that the blurred photo carries
STEPS = 8
FIRST = 49 / 255  # level of the denoiser in the first step; in the last it is NOISE
FIDELITY = 0.5  # weight of the prior: lambda of the paper
BALANCES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)  # of Wiener's filter; the best is shown, ours has no such choice


def deblur(blurred: np.ndarray, transfer: np.ndarray, denoise: Callable[[np.ndarray, float], np.ndarray]) -> np.ndarray:
    """Return the deblurred image.

    Args:
        blurred: `(height, width)`, blurred with periodic borders, with noise of deviation `NOISE`.
        transfer: Fourier transform of the blur, of the same shape.
        denoise: Maps an image `(height, width, 1)` and a level to the denoised image.
    """
    x = blurred
    for sigma in np.geomspace(FIRST, NOISE, STEPS):
        weight = FIDELITY * (NOISE / sigma) ** 2
        spectrum = np.conj(transfer) * np.fft.fft2(blurred) + weight * np.fft.fft2(x)
        nearest = np.real(np.fft.ifft2(spectrum / (np.abs(transfer) ** 2 + weight)))
        x = denoise(nearest[..., None], sigma)[..., 0]
    return x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, help="a grey 8- or 16-bit photo")
    parser.add_argument("--model", default="denoise-gray", help="preset or model file")
    parser.add_argument("--output", type=Path, help="picture to write: photo, blurred, Wiener, ours")
    arguments = parser.parse_args()

    photo = data.camera()[..., None] if arguments.image is None else read_pixels(arguments.image, 1)
    clean = unit_range(photo)[..., 0].astype("float64")
    box = np.zeros_like(clean)
    box[:BLUR, :BLUR] = 1 / BLUR**2
    transfer = np.fft.fft2(np.roll(box, (-(BLUR // 2), -(BLUR // 2)), (0, 1)))
    noise = NOISE * np.random.default_rng(0).standard_normal(clean.shape)
    blurred = np.real(np.fft.ifft2(transfer * np.fft.fft2(clean))) + noise

    engine = load_engine(arguments.model)
    kernel = np.full((BLUR, BLUR), 1 / BLUR**2)
    wiener = max((restoration.wiener(blurred, kernel, balance) for balance in BALANCES), key=lambda x: psnr(x, clean))
    start = time.perf_counter()
    ours = deblur(blurred, transfer, denoise_prior(engine))
    seconds = time.perf_counter() - start
    predictor = Predictor(engine, task="denoise")
    blind = deblur(blurred, transfer, lambda x, _: predictor(x).pixels)
    results = {"blurred": blurred, "Wiener": wiener, "prior": ours, "the blind denoiser alone": blind}
    for name, result in results.items():
        print(f"| {name} | {psnr(np.clip(result, 0, 1), clean):.2f} |")
    print(f"{STEPS} steps on {clean.shape[1]}x{clean.shape[0]} pixels took {seconds:.1f} s")
    if arguments.output is not None:
        row = [("photo", clean), ("blurred", blurred), ("Wiener", wiener), ("denoise_prior", ours)]
        sheet = contact_sheet([[(name, to_display(x[..., None], 0, 1)) for name, x in row]])
        write_image(arguments.output, Picture(sheet))


if __name__ == "__main__":
    main()
