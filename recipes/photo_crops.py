"""Cut training crops out of photographs, chosen by texture over scales, with a manifest of where each comes from.

    python recipes/photo_crops.py --photos CC0-1.0=photos_cc0/ Unsplash=photos_unsplash/ --output crops/

Photographs as they are hold mostly sky and blur; a denoiser trained on them removes texture. Each is reduced to several
sizes, and of a grid of crops those with texture stay: the mean of |4c - left - right - up - down| / 4 is at least 3 of
255. Sizes at which a photograph shows noise of its own are left out. `gray/` and `color/` hold the same crops;
`held_out/` those of photographs that no crop of the others was cut from; `manifest.csv` the photographs with licence,
digest and what was taken of them. The same photographs give the same crops.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from dl_techniques.datasets.noise import estimate_sigma
from dl_techniques.images.files import find_images

SIDES = (320, 480, 720, 1080)  # of the shorter side, in pixels
CROP, STRIDE = 192, 128
TEXTURE = 3.0  # of 255; BSD400 has 6.3, Set12 5.0, the photographs as they are 3.0
OWN_NOISE = 1.5  # of 255: most noise of its own that a photograph may show
HELD_OUT = 10  # every tenth photograph
PER_SIZE = 24  # crops of one photograph at one size, those with the most texture


def texture(gray: np.ndarray) -> float:
    """Return the mean magnitude of the Laplacian of a grey image, over 4."""
    laplacian = 4 * gray[1:-1, 1:-1] - gray[:-2, 1:-1] - gray[2:, 1:-1] - gray[1:-1, :-2] - gray[1:-1, 2:]
    return float(np.abs(laplacian).mean() / 4)


def own_noise(gray: np.ndarray) -> float:
    """Return the noise of the smoothest tenth of a grey image's 16x16 blocks, of 255."""
    rows, columns = (extent // 16 for extent in gray.shape)
    blocks = gray[: rows * 16, : columns * 16].reshape(rows, 16, columns, 16).swapaxes(1, 2).reshape(-1, 16, 16)
    lit = [block for block in blocks if 16 < block.mean() < 240]  # black and burnt-out parts hide their noise
    smooth = sorted(lit, key=lambda block: block.std())[: max(1, len(lit) // 10)]
    return float(np.median([estimate_sigma(block[..., None]) for block in smooth])) if smooth else 0.0


def sizes(photo: Image.Image) -> Iterator[Image.Image]:
    """Yield a photograph reduced to each of `SIDES` that is smaller, and as it is if it lies between them."""
    shorter = min(photo.size)
    for side in SIDES:
        if shorter >= side:
            size = [max(CROP, round(extent * side / shorter)) for extent in photo.size]
            yield photo.resize(size, Image.Resampling.LANCZOS) if side < shorter else photo


def textured(photo: Image.Image) -> list[tuple[float, Image.Image]]:
    """Return the crops of a grid that have texture, those with the most first."""
    gray = np.asarray(photo.convert("L"), "float32")
    found = []
    for top in range(0, gray.shape[0] - CROP + 1, STRIDE):
        for left in range(0, gray.shape[1] - CROP + 1, STRIDE):
            value = texture(gray[top : top + CROP, left : left + CROP])
            if value >= TEXTURE:
                found.append((value, photo.crop((left, top, left + CROP, top + CROP))))
    return sorted(found, key=lambda pair: -pair[0])[:PER_SIZE]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", nargs="+", required=True, metavar="LICENCE=FOLDER", help="photographs of a licence")
    parser.add_argument("--output", type=Path, required=True, help="folder of the crops; must not exist")
    arguments = parser.parse_args()

    folders = {name: arguments.output / name for name in ("gray", "color", "held_out/gray", "held_out/color")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    named = [
        (word.partition("=")[0], path) for word in arguments.photos for path in find_images([word.partition("=")[2]])
    ]
    rows, counts = [], {"": 0, "held_out/": 0}
    for number, (licence, path) in enumerate(track(named, "photographs", console=Console(stderr=True))):
        place, taken, noise = "held_out/" if number % HELD_OUT == HELD_OUT - 1 else "", {}, {}
        with Image.open(path) as opened:
            photo = opened.convert("RGB")
        for reduced in sizes(photo):
            side = min(reduced.size)
            noise[side] = own_noise(np.asarray(reduced.convert("L"), "float32"))
            if noise[side] > OWN_NOISE:
                continue
            crops = textured(reduced)
            taken[side] = len(crops)
            for index, (_, crop) in enumerate(crops):
                name = f"{path.stem}-{side}-{index:02d}.png"
                crop.convert("L").save(folders[f"{place}gray"] / name)
                crop.save(folders[f"{place}color"] / name)
        counts[place] += sum(taken.values())
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        found = (
            ";".join(f"{side}:{value:g}" for side, value in pairs.items())
            for pairs in (taken, {k: round(v, 2) for k, v in noise.items()})
        )
        rows.append([path.name, licence, digest, "validation" if place else "training", *found])
    with (arguments.output / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["photograph", "licence", "sha256", "use", "crops", "own_noise"], *rows])
    print(f"{counts['']} crops to train on, {counts['held_out/']} to validate on: {arguments.output}")


if __name__ == "__main__":
    main()
