"""Train a denoiser that ships, measure it, certify it and make its preset: one command, resumable.

    python recipes/denoise.py gray --images bsd400/ --test set12/ --run runs/gray
    python recipes/denoise.py color --images bsd432/train/ --test mcmaster/ --run runs/color

Stop it at any time; the same command goes on from the last epoch. The preset is written into the package, the log of
the training beside this file. Training images of the weights that ship: BSD400 (grey) and BSD432 (colour), by Arbelaez
et al. 2011, for non-commercial research and education.
"""

from __future__ import annotations

import argparse
import os
import shutil
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from rich.console import Console

from dl_techniques.card import read_card
from dl_techniques.engines.loading import load_engine
from dl_techniques.export.certify import certify, save_certificate
from dl_techniques.images.files import find_images, read_pixels, unit_range
from dl_techniques.metrics import denoising_psnr
from dl_techniques.models.convunext.presets import SHIPPED, write_preset_card
from dl_techniques.training.recipes.denoising.settings import DenoisingConfig
from dl_techniques.training.trainer import MODEL, train

SIGMAS = (15, 25, 50)
RECIPES = {
    "gray": {"steps": 66_000, "cooldown": 49 / 66},
    "color": {"steps": 40_000, "cooldown": 0.6},
}
DATA = {"gray": "BSD400", "color": "BSD432, 400 for training"}
TERMS = "Berkeley segmentation images (Arbelaez et al. 2011), for non-commercial research and education"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=sorted(RECIPES))
    parser.add_argument("--images", type=Path, required=True, help="folder of clean images to train on")
    parser.add_argument("--test", type=Path, required=True, help="folder of clean images to measure on")
    parser.add_argument("--run", type=Path, required=True, help="folder of the run")
    arguments = parser.parse_args()

    config = DenoisingConfig(images=str(arguments.images), output=arguments.run, **RECIPES[arguments.kind])
    model = train(config, Console(), resume=arguments.run.exists()).model

    card = read_card(arguments.run / MODEL)
    training = {
        "images": DATA[arguments.kind],
        "terms": TERMS,
        "patches_in_a_step": [phase.batch_size for phase in config.phases],
        "patch": [phase.patch for phase in config.phases],
    }
    details = {**card.details, "licence": "weights: the terms of the training images apply"}
    card = replace(card, training={**card.training, **training}, details=details)
    folder = SHIPPED / f"denoise-{arguments.kind}"
    staging = folder.with_name(f".{folder.name}")
    shutil.rmtree(staging, ignore_errors=True)
    model.save_to_preset(staging, card, dtype="float16")
    engine = load_engine(staging)  # what ships is what is measured
    clean = [unit_range(read_pixels(path, engine.channels)) for path in find_images([arguments.test])]
    scores = {str(s): round(denoising_psnr(lambda x: engine.function(x[None])[0], clean, s), 2) for s in SIGMAS}
    print(f"{arguments.test.name}: PSNR {scores}")
    metrics = {"psnr_db": {arguments.test.name: scores}, "protocol": "noise not clipped, output clipped"}
    write_preset_card(staging, replace(card, metrics=metrics))
    certificate = certify(engine)
    if not certificate.holds:
        raise SystemExit(f"not scale-equivariant: largest error {certificate.errors.max():.1e}")
    save_certificate(certificate, engine)
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)
    shutil.copy(arguments.run / "log.csv", Path(__file__).with_name(f"denoise_{arguments.kind}.csv"))
    print(folder)


if __name__ == "__main__":
    main()
