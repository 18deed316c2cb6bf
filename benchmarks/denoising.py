"""Denoisers side by side on the same noisy images: PSNR, SSIM and seconds.

    python benchmarks/denoising.py --images set12/ --sigma 15 25 50

The presets are blind; BM3D, non-local means, wavelets and total variation are told the level of the noise. Noise is
neither clipped nor rounded, outputs are clipped, means are over images. Methods alternate image by image, so that the
drift of a busy machine hits all of them. Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from skimage import restoration

from dl_techniques.datasets.noise import add_gaussian_noise
from dl_techniques.images.files import find_images, read_image, unit_range
from dl_techniques.inference.predictor import Predictor
from dl_techniques.metrics import psnr, ssim

Method = Callable[[np.ndarray, float], np.ndarray]


def bm3d_method(noisy: np.ndarray, sigma: float) -> np.ndarray:
    import bm3d

    result = bm3d.bm3d(noisy[..., 0], sigma) if noisy.shape[2] == 1 else bm3d.bm3d_rgb(noisy, sigma)
    return result.reshape(noisy.shape)


def nlm_method(noisy: np.ndarray, sigma: float) -> np.ndarray:
    return restoration.denoise_nl_means(
        noisy, patch_size=7, patch_distance=11, h=0.6 * sigma, sigma=sigma, fast_mode=True, channel_axis=-1
    )


def wavelet_method(noisy: np.ndarray, sigma: float) -> np.ndarray:
    return restoration.denoise_wavelet(
        noisy, sigma=sigma, method="BayesShrink", mode="soft", channel_axis=-1, rescale_sigma=True
    )


def tv_method(noisy: np.ndarray, sigma: float) -> np.ndarray:
    return restoration.denoise_tv_chambolle(noisy, weight=1.2 * sigma, channel_axis=-1)


def preset_method(name: str, tta: int) -> Method:
    predictor = Predictor(name, tta)
    return lambda noisy, _: predictor(noisy).pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of clean images, never trained on")
    parser.add_argument("--sigma", type=float, nargs="+", default=[15.0, 25.0, 50.0], help="in units of 1/255")
    parser.add_argument("--models", nargs="+", default=["denoise-gray"], help="presets or model files")
    parser.add_argument("--tta", type=int, nargs="+", default=[1, 4], help="symmetries that presets average over")
    parser.add_argument("--models-only", action="store_true", help="leave out the methods that are told the level")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    arguments = parser.parse_args()

    methods = {
        name if tta == 1 else f"{name}, {tta} symmetries": preset_method(name, tta)
        for name in arguments.models
        for tta in arguments.tta
    }
    if not arguments.models_only:
        methods |= {"BM3D": bm3d_method, "non-local means": nlm_method, "wavelet": wavelet_method, "TV": tv_method}
    paths = find_images([arguments.images])
    rows = []
    for sigma in arguments.sigma:
        rng = np.random.default_rng(0)
        figures: dict[str, list[tuple[float, float, float]]] = {name: [] for name in methods}
        for path in paths:
            clean = unit_range(read_image(path).pixels)
            noisy = add_gaussian_noise(clean, sigma / 255, rng)
            for name, method in methods.items():
                if not figures[name]:
                    method(noisy, sigma / 255)  # what is set up once is not timed
                start = time.perf_counter()
                result = np.clip(method(noisy, sigma / 255), 0, 1).reshape(clean.shape)  # some drop a single channel
                seconds = time.perf_counter() - start
                figures[name].append((psnr(result, clean), ssim(result, clean), seconds))
        for name, values in figures.items():
            mean = np.mean(values, axis=0)
            rows.append({"sigma": sigma, "method": name, "psnr": mean[0], "ssim": mean[1], "seconds": mean[2]})
            print(f"| {sigma:g} | {name} | {mean[0]:.2f} | {mean[1]:.4f} | {mean[2]:.2f} |", flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=2, default=float), encoding="utf-8")


if __name__ == "__main__":
    main()
