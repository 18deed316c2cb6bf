"""Train a denoiser on crops of photographs in rounds, each from the weights that the last one left.

    python recipes/denoise_photos.py gray --crops crops/ --runs runs/ --rounds 10
    python recipes/denoise_photos.py gray --crops crops/ --runs runs/ --rounds 1 --steps 20000 --cooldown 0.9

`photo_crops.py` makes the crops. A round ends with the average of its weights in `weights/gray/` beside this file and a
line in `denoise_photos.csv`; the same command goes on from there on any machine, and in the middle of a round from its
last epoch where its run folder still is. The last round lets the learning rate fall (`--cooldown`).
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from rich.console import Console

from dl_techniques.card import read_card
from dl_techniques.models.convunext.model import ConvUNextModel
from dl_techniques.models.convunext.presets import read_preset
from dl_techniques.models.convunext.weights import assign_weights
from dl_techniques.training.recipes.denoising.recipe import DenoisingRecipe, build_denoiser
from dl_techniques.training.recipes.denoising.settings import DenoisingConfig
from dl_techniques.training.trainer import MODEL, train

HERE = Path(__file__).parent
LOG = HERE / "denoise_photos.csv"
COLUMNS = ("kind", "round", "steps", "filters", "patch", "learning_rate", "cooldown", "psnr_15", "psnr_25", "psnr_50")


def finished_rounds(kind: str) -> int:
    """Return how many rounds the log has of a kind."""
    if not LOG.exists():
        return 0
    with LOG.open(newline="") as file:
        return sum(row["kind"] == kind for row in csv.DictReader(file))


def train_round(kind: str, config: DenoisingConfig) -> None:
    """Train one round, or the rest of it, and keep its weights."""
    kept = HERE / "weights" / kind

    def build(config: DenoisingConfig, channels: int) -> ConvUNextModel:
        model = build_denoiser(config, channels)
        if kept.exists():
            assign_weights(model, read_preset(kept)[1], source=str(kept))
        return model

    console = Console()
    result = train(
        config, console, config.output.exists(), lambda config, console: DenoisingRecipe(config, console, build)
    )
    staging = kept.with_name(f".{kind}")
    shutil.rmtree(staging, ignore_errors=True)
    result.model.save_to_preset(staging, read_card(config.output / MODEL), dtype="float16")
    shutil.rmtree(kept, ignore_errors=True)
    staging.rename(kept)
    new = not LOG.exists()
    with LOG.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(COLUMNS)
        settings = (config.steps, config.initial_filters, config.patch, config.learning_rate, config.cooldown)
        scores = (round(result.figures[name], 3) for name in COLUMNS[-3:])
        writer.writerow([kind, finished_rounds(kind), *settings, *scores])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("gray", "color"))
    parser.add_argument("--crops", type=Path, required=True, help="folder that photo_crops.py made")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the rounds' run folders")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4000, help="steps of a round")
    parser.add_argument("--cooldown", type=float, default=0.0, help="share of a round in which the learning rate falls")
    parser.add_argument("--filters", type=int, default=32, help="channels of the finest level")
    parser.add_argument("--patch", type=int, default=96, help="height and width of the patches, in pixels")
    arguments = parser.parse_args()

    for _ in range(arguments.rounds):
        config = DenoisingConfig(
            images=str(arguments.crops / arguments.kind),
            val_images=str(arguments.crops / "held_out" / arguments.kind),
            output=arguments.runs / f"{arguments.kind}-{finished_rounds(arguments.kind):03d}",
            steps=arguments.steps,
            cooldown=arguments.cooldown,
            initial_filters=arguments.filters,
            patch=arguments.patch,
            final_patch=min(192, arguments.patch * 4 // 3),
            seed=finished_rounds(arguments.kind),
        )
        train_round(arguments.kind, config)


if __name__ == "__main__":
    main()
