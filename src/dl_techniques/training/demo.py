"""The first real run: nuclei found in microscopy images, from training to a saved model and a report."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dl_techniques.errors import ArgumentError, FileError, check_counts

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from dl_techniques.datasets.samples import Sample
    from dl_techniques.metrics import Confusion
    from dl_techniques.models.convunext.model import ConvUNextModel


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Settings of the demo.

    Attributes:
        output: Folder for the model, the log and the report; it must not exist. A free name is chosen if not given.
        epochs: Epochs of training.
        steps: Steps in an epoch.
        batch_size: Crops in a step.
        crop: Height and width of a crop, in pixels, at most 256.
        filters: Channels of the model's finest level.
        seed: Seed of weights, crops and turns.
    """

    output: Path | None = None
    epochs: int = 10
    steps: int = 20
    batch_size: int = 8
    crop: int = 128
    filters: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(self, "epochs", "steps", "batch_size", "crop", "filters")
        if self.crop > 256:
            raise ArgumentError("crop", "must be at most 256, the size of the images", self.crop)
        if self.output is not None and self.output.exists():
            raise FileError(str(self.output), "exists already.", "Name a new folder, or move this one away.")


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        dice: Dice coefficient over all held-out pixels.
        iou: Intersection over union over all held-out pixels.
        folder: Where model, log and report lie.
    """

    dice: float
    iou: float
    folder: Path

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.folder / "report.html"


def run_demo(config: DemoConfig, console: Console) -> DemoResult:
    """Train, convert, save, reload and evaluate a small ConvUNext on the nuclei that ship with the package.

    Everything is written to a folder beside the final one and renamed at the end: an interrupted run leaves nothing.

    Args:
        config: Settings.
        console: Where to tell what happens.

    Raises:
        FileError: The output folder cannot be written.
    """
    folder = config.output or _free_name(Path("convunext-demo"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise FileError(str(folder), f"cannot be written: {error.strerror}.", "Choose another --output.") from error
    try:
        dice, iou = _run_in(staging, config, console)
        staging.chmod(0o755)
        os.rename(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return DemoResult(dice, iou, folder.resolve())


def _run_in(folder: Path, config: DemoConfig, console: Console) -> tuple[float, float]:
    import keras

    from dl_techniques.datasets.samples import load_nuclei
    from dl_techniques.metrics import Confusion

    keras.utils.set_random_seed(config.seed)
    train, held_out = load_nuclei()
    console.print(
        f"{len(train)} images to train on, {len(held_out)} held out · Keras {keras.__version__} on "
        f"{keras.backend.backend()}"
    )
    start = time.perf_counter()
    training_model, losses = _train(train, folder, config, console)
    seconds = time.perf_counter() - start
    model = _save_and_reload(training_model, folder, held_out, console)
    masks = [model(sample.image[None], training=False) for sample in held_out]
    predictions = [keras.ops.convert_to_numpy(mask)[0, ..., 0] > 0.5 for mask in masks]
    agreements, total = [], Confusion(2)
    for prediction, sample in zip(predictions, held_out, strict=True):
        truth = sample.mask[..., 0] > 0.5
        agreements.append(Confusion(2).update(prediction, truth))
        total.update(prediction, truth)
    dice, iou = float(total.dice[1]), float(total.iou[1])
    console.print(f"held-out images: Dice {dice:.3f}, IoU {iou:.3f}")
    _write_report(folder / "report.html", config, model, losses, seconds, held_out, predictions, agreements, total)
    return dice, iou


def _train(samples: list[Sample], folder: Path, config: DemoConfig, console: Console):
    import keras

    from dl_techniques.datasets.crops import RandomCrops
    from dl_techniques.models.convunext.model import ConvUNextModel
    from dl_techniques.training.callbacks import EpochLog
    from dl_techniques.training.interruption import interruptible
    from dl_techniques.training.progress import TrainingProgress
    from dl_techniques.training.supervision import supervision_weights, target_pyramid

    model = ConvUNextModel(
        input_shape=(None, None, 1),
        depth=3,
        initial_filters=config.filters,
        blocks_per_level=1,
        drop_path_rate=0.0,
        output_channels=1,
        final_activation="sigmoid",
        enable_deep_supervision=True,
        seed=config.seed,
        name="nuclei",
    )
    console.print(f"ConvUNext with {model.count_params():,} parameters, {model.depth} supervised outputs")
    batches = RandomCrops(
        [sample.image for sample in samples],
        [sample.mask for sample in samples],
        config.crop,
        config.batch_size,
        config.steps,
        config.seed,
        make_targets=lambda masks: tuple(target_pyramid(masks, model.depth)),
    )
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, config.epochs * config.steps, warmup_target=3e-3, warmup_steps=config.steps, alpha=0.01
    )
    model.compile(
        optimizer=keras.optimizers.AdamW(rate, weight_decay=1e-4, clipnorm=1.0),
        loss=["binary_crossentropy"] * model.depth,
        loss_weights=supervision_weights(model.depth),
    )
    progress = TrainingProgress(config.epochs, config.steps, console)
    try:
        with interruptible() as interruption:
            callbacks = [EpochLog(folder / "log.csv"), progress, interruption]
            history = model.fit(batches, epochs=config.epochs, shuffle=False, callbacks=callbacks, verbose=0)
    finally:
        progress.stop()
    return model, history.history["loss"]


def _save_and_reload(training_model, folder: Path, samples: list[Sample], console: Console) -> ConvUNextModel:
    import keras
    import numpy as np

    from dl_techniques.models.convunext.model import create_inference_model_from_training_model

    def output(model) -> np.ndarray:
        outputs = model(samples[0].image[None], training=False)
        return keras.ops.convert_to_numpy(outputs[0] if isinstance(outputs, list) else outputs)

    model = create_inference_model_from_training_model(training_model)
    model.save(folder / "model.keras")
    reloaded = keras.saving.load_model(folder / "model.keras", safe_mode=True, compile=False)
    for name, other in (("inference model", model), ("reloaded model.keras", reloaded)):
        difference = float(np.abs(output(other) - output(training_model)).max())
        console.print(f"{name} against the training model: largest difference {difference:g}")
    return reloaded


def _write_report(
    path: Path,
    config: DemoConfig,
    model: ConvUNextModel,
    losses: list[float],
    seconds: float,
    samples: list[Sample],
    predictions: list[np.ndarray],
    agreements: list[Confusion],
    total: Confusion,
) -> None:
    import keras
    import numpy as np
    from PIL import Image

    from dl_techniques import __version__
    from dl_techniques.images.display import contact_sheet
    from dl_techniques.report import ERROR_KEY, Report, error_picture

    rows = []
    for sample, prediction, agreement in zip(samples, predictions, agreements, strict=True):
        truth = sample.mask[..., 0] > 0.5
        shown = np.uint8(255 * np.clip(sample.image[..., 0], 0, 1) ** 0.7)
        rows.append(
            [
                (f"image {sample.name}", shown),
                ("truth", np.uint8(255 * truth)),
                (f"prediction, Dice {agreement.dice[1]:.3f}", np.uint8(255 * prediction)),
                (f"error, IoU {agreement.iou[1]:.3f}", error_picture(prediction, truth)),
            ]
        )
    Image.fromarray(contact_sheet(rows[:3])).save(path.with_name("preview.png"), optimize=True)
    Report(
        title="Nuclei found by ConvUNext",
        lead=f"{len(samples)} fluorescence images that the model did not see in training (BBBC038, CC0).",
        numbers={
            "Dice, all held-out pixels": f"{total.dice[1]:.3f}",
            "IoU, all held-out pixels": f"{total.iou[1]:.3f}",
        },
        facts={
            "model": f"ConvUNext {model.convnext_version}, depth {model.depth}, filters {model.filter_sizes}, "
            f"{model.count_params():,} parameters",
            "training": f"{config.epochs} epochs of {config.steps} steps of {config.batch_size} crops of "
            f"{config.crop}×{config.crop} pixels, {seconds:.0f} s",
            "settings": ", ".join(f"{name}={value}" for name, value in asdict(config).items() if name != "output"),
            "versions": f"convunext {__version__}, Keras {keras.__version__} on {keras.backend.backend()}",
            "files": "model.keras (inference model), log.csv (loss of each epoch), preview.png (some of the pictures)",
        },
        curves={"Loss": losses},
        key=ERROR_KEY,
        rows=rows,
    ).write(path)


def _free_name(path: Path) -> Path:
    if not path.exists():
        return path
    number = 2
    while (candidate := path.with_name(f"{path.name}-{number}")).exists():
        number += 1
    return candidate
