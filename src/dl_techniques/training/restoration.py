"""Training of models that restore images, from pairs of what is and what it should be."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dl_techniques import __version__
from dl_techniques.card import write_card
from dl_techniques.data.augment import SYMMETRIES
from dl_techniques.data.files import read_image, write_file
from dl_techniques.data.normalization import to_one_unit
from dl_techniques.data.pairs import Pair
from dl_techniques.data.pictures import to_display
from dl_techniques.data.pipeline import random_crop, seeded_batches
from dl_techniques.metrics import psnr, ssim
from dl_techniques.training.choices import choose_augmentation, choose_patch
from dl_techniques.training.evaluation import extremes
from dl_techniques.training.inspection import Inspection, find_and_inspect
from dl_techniques.training.report import Report
from dl_techniques.training.run import best_so_far, check_run, open_run, read_log, write_split
from dl_techniques.training.settings import RestorationConfig

if TYPE_CHECKING:
    import keras
    from rich.console import Console

    from dl_techniques.models.convunext.function import Function
    from dl_techniques.models.convunext.model import ConvUNextModel

BEST, MODEL, REPORT = "best.keras", "model.keras", "report.html"


@dataclass(frozen=True)
class RestorationSample:
    """An image and what it should be.

    Attributes:
        name: Stem of the image's file.
        image: `(height, width, channels)`, float32, about [0, 1].
        target: `(height, width, target channels)`, float32, about [0, 1].
    """

    name: str
    image: np.ndarray
    target: np.ndarray


@dataclass(frozen=True)
class RestorationResult:
    """What a run gave, on the validation images and by the best weights.

    Attributes:
        psnr: Mean PSNR in dB.
        before: Mean PSNR of the images as they came; `None` where they have other channels than their targets.
        folder: Where model, log and report lie.
    """

    psnr: float
    before: float | None
    folder: Path

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.folder / REPORT


def train_restorer(config: RestorationConfig, console: Console, resume: bool = False) -> RestorationResult:
    """Train a model that restores images, or go on with a run that was stopped, and measure its best weights.

    The model has no additive parameter and works in any unit of intensity; images and targets must share theirs.

    Args:
        config: Settings; those of the first start when resuming.
        console: Where to tell what happens.
        resume: Go on from the newest checkpoint in `config.output`.

    Raises:
        FileError: Files are missing, broken or do not fit, or the folder cannot be written or holds a run already.
        ArgumentError: A setting does not fit the data.
    """
    import keras

    from dl_techniques.training.callbacks import Validation
    from dl_techniques.training.loop import Stage, fit_stages

    check_run(config.output, config, resume)
    training, validation, inspection = load_data(config, console)
    patch, batch_size = choose_patch(config, inspection)
    chosen = choose_augmentation(config, inspection)
    augmentation = replace(SYMMETRIES, upend=chosen.upend, turn=chosen.turn)
    console.print(f"{config.steps} steps of {batch_size} crops of {patch}x{patch} pixels")

    def pair(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        sample = training[int(rng.integers(len(training)))]
        return augmentation(*random_crop(sample.image, sample.target, patch, rng), rng)

    def batches(done: int) -> Iterator[tuple]:
        return seeded_batches(pair, config.steps, batch_size, config.seed, done, threads=2)

    def measure(function: Function) -> dict[str, float]:
        return dict(zip(("psnr", "ssim"), np.mean(scores(function, validation), axis=0).tolist(), strict=True))

    with open_run(config.output, "restore", config, resume) as checkpoints:
        write_split(config.output, training, validation)
        keras.utils.set_random_seed(config.seed)
        fit_stages(
            lambda: build_restorer(config, inspection),
            [Stage(0, config.steps, batches)],
            config.steps_per_epoch,
            checkpoints,
            [Validation(measure, "psnr", config.output / BEST, best_so_far(config.output, "val_psnr"))],
            console,
            resume,
        )
        return _finish(config, validation, inspection, console)


def load_data(
    config: RestorationConfig, console: Console
) -> tuple[list[RestorationSample], list[RestorationSample], Inspection]:
    """Find, split, inspect and read images and targets: those to train on, those to validate on, what was found.

    Raises:
        FileError: Files are missing, broken or do not fit; the first ten are named.
        ArgumentError: A setting does not fit the data.
    """
    count, inspection = find_and_inspect(config, config.targets, config.val_targets, console, masks=False)
    samples = _read([facts.pair for facts in inspection.facts])
    return samples[:count], samples[count:], inspection


def _read(pairs: Sequence[Pair]) -> list[RestorationSample]:
    arrays = to_one_unit([read_image(file).pixels for pair in pairs for file in (pair.image, pair.target)])
    sides = zip(pairs, arrays[::2], arrays[1::2], strict=True)
    return [RestorationSample(pair.name, image, target) for pair, image, target in sides]


def build_restorer(config: RestorationConfig, inspection: Inspection) -> keras.Model:
    """Return the untrained model of a run, compiled; it learns the difference of target and image if it can."""
    from dl_techniques.losses import CharbonnierLoss
    from dl_techniques.models.convunext.model import ConvUNextModel
    from dl_techniques.training.loop import averaged_adamw
    from dl_techniques.training.schedule import warmup_cosine

    outputs = inspection.facts[0].target_channels
    model = ConvUNextModel(
        input_shape=(None, None, inspection.channels),
        output_channels=outputs,
        depth=config.depth,
        initial_filters=config.initial_filters,
        blocks_per_level=config.blocks_per_level,
        block_kernel_size=3,
        convnext_version="v1",
        use_bias=False,
        equivariant_block="no_norm",
        layer_scale_init_value=0.2,
        drop_path_rate=0.0,
        downsample="conv",
        residual_learning=outputs == inspection.channels,
        seed=config.seed,
    )
    optimizer = averaged_adamw(warmup_cosine(config.learning_rate, config.steps), 0.99)
    model.compile(optimizer=optimizer, loss=CharbonnierLoss())
    model.optimizer.build(model.trainable_variables)
    return model


def scores(function: Function, samples: Sequence[RestorationSample]) -> list[tuple[float, float]]:
    """Return PSNR in dB and SSIM of each restored image, clipped to [0, 1]; SSIM is NaN below 11 pixels."""
    return [_score(function(sample.image[None])[0], sample.target) for sample in samples]


def _score(image: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    clipped = np.clip(image, 0, 1)
    return psnr(clipped, target), ssim(clipped, target) if min(target.shape[:2]) >= 11 else np.nan


def _finish(
    config: RestorationConfig, samples: list[RestorationSample], inspection: Inspection, console: Console
) -> RestorationResult:
    import keras

    from dl_techniques.models.convunext.function import keras_function

    model = keras.saving.load_model(config.output / BEST, compile=False, safe_mode=True)
    function = keras_function(model)
    after = scores(function, samples)
    comparable = samples[0].image.shape[2] == samples[0].target.shape[2]
    figures = {"images": len(samples), **_means(after, "")}
    if comparable:
        figures |= _means([_score(sample.image, sample.target) for sample in samples], "_before")
    card = {
        "task": "restore",
        "channels": inspection.channels,
        "normalization": "none",
        "value_range": "any: the model is scale-equivariant",
        "output": "the restored image, in the unit of the input",
        "training": {"steps": config.steps, "seed": config.seed},
        "metrics": figures,
    }
    write_file(config.output / MODEL, (config.output / BEST).read_bytes())
    write_card(config.output / MODEL, card)
    write_file(config.output / "metrics.json", json.dumps(figures, indent=2).encode())
    shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
    console.print(f"validation: {shown}", markup=False)
    report = _report(config, model, samples, function, figures, after)
    write_file(config.output / REPORT, report.to_html().encode())
    return RestorationResult(figures["psnr_db"], figures.get("psnr_db_before"), config.output.resolve())


def _means(values: Sequence[tuple[float, float]], ending: str) -> dict[str, float]:
    mean_psnr, mean_ssim = np.mean(values, axis=0).tolist()
    return {f"psnr_db{ending}": mean_psnr, f"ssim{ending}": mean_ssim}


def _report(
    config: RestorationConfig,
    model: ConvUNextModel,
    samples: Sequence[RestorationSample],
    function: Function,
    figures: dict[str, float],
    after: Sequence[tuple[float, float]],
) -> Report:
    import keras

    rows = []
    for word, index in extremes([value for value, _ in after]):
        sample = samples[index]
        restored = function(sample.image[None])[0]
        error = np.abs(restored - sample.target).mean(axis=2, keepdims=True)
        rows.append(
            [
                (f"{word}: {sample.name}", to_display(sample.image, 0, 1)),
                (f"restored, PSNR {after[index][0]:.2f} dB", to_display(restored, 0, 1)),
                ("target", to_display(sample.target, 0, 1)),
                ("error, eight times", to_display(error, 0, 1 / 8)),
            ]
        )
    log = read_log(config.output)
    return Report(
        title=f"Restoration: {config.output.name}",
        lead=f"{len(samples)} validation images that the model did not see in training.",
        numbers={
            "PSNR, dB": f"{figures['psnr_db']:.2f}",
            **({"before": f"{figures['psnr_db_before']:.2f}"} if "psnr_db_before" in figures else {}),
            "SSIM": f"{figures['ssim']:.4f}",
        },
        curves={
            "Loss in training": [row["loss"] for row in log],
            "PSNR on the validation images, dB": [row["val_psnr"] for row in log],
        },
        facts={
            "model": f"ConvUNext {model.convnext_version} without bias, filters {model.filter_sizes}, "
            f"{model.count_params():,} parameters",
            "settings": ", ".join(f"{k}={v}" for k, v in asdict(config).items() if k != "output" and v is not None),
            "versions": f"convunext {__version__}, Keras {keras.__version__} on {keras.backend.backend()}",
            "files": "model.keras (the weights that were best on the validation images, with their card), log.csv, "
            "metrics.json, split.csv, config.json, checkpoints/",
        },
        rows=rows,
    )
