"""Settings of trainings, checked when made; the command line's flags are made from them. No import that takes time."""

# No postponed annotations here: the command line resolves those of a subclass in the module of the subclass.

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeVar

from cyclopts import Parameter

from dl_techniques.errors import ArgumentError, FileError, check_counts
from dl_techniques.inference.memory import parse_memory

LARGEST_STEP = 2**30  # pixels of the crops of a step
LARGEST_DEPTH = 30  # sizes are multiples of 2**depth; the model itself refuses less


def check_crops(patch: int | None, batch_size: int | None) -> None:
    """Raise `ArgumentError` for crops whose pixels no memory holds."""
    pixels = (patch or 1) ** 2 * (batch_size or 1)
    if pixels > LARGEST_STEP:
        raise ArgumentError("patch", f"must leave batch_size x patch^2 at {LARGEST_STEP} pixels or less", patch)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings of every training.

    Attributes:
        images: Folder of images or a pattern such as `'slices/*.tif'`.
        output: Folder of the run; for `convunext plan`, the TOML file to write.
        val_images: Images to validate on, given like `images` (default: some of `images`).
        steps: Training steps.
        steps_per_epoch: Steps between two validations, each with a checkpoint and a line in the log.
        patch: Height and width of the training crops, in pixels (default: chosen by the sizes of the images).
        batch_size: Crops in a step (default: about 130,000 pixels in all).
        learning_rate: Largest learning rate.
        precision: Computation precision: `"float32"`, `"mixed_bfloat16"`, faster on GPUs, or `"auto"`: mixed_bfloat16
            on a GPU, float32 elsewhere.
        depth: Number of times the model halves the image.
        initial_filters: Channels of the model's finest level.
        blocks_per_level: ConvNeXt blocks in each level.
        channels: Samples per pixel to use as channels, including alpha (default: all but alpha).
        cache_gb: Memory for decoded images, in GB; images that do not fit are read again each time.
        max_memory: Memory limit of the network in validation; larger images are computed in tiles.
        preview_every: Validations between two preview pictures; 0: none.
        group_regex: Pattern whose first group is equal for images that stay on one side of the split, such as
            `'^([^_]+)_'` for the frames of one film.
        accumulate: Steps whose gradients are averaged before the weights are updated: the effect of a batch that many
            times larger, without its memory.
        patience: Stop after this many validations in a row without improvement; 0: never.
        seed: Seed of weights, crops and augmentation.
    """

    summary: ClassVar[str]  # what the training does, the first line of its help

    images: str
    output: Annotated[Path, Parameter(name=("--output", "-o"))]
    val_images: str | None = None
    steps: int = 1000
    steps_per_epoch: int = 100
    patch: int | None = None
    batch_size: int | None = None
    channels: int | None = None
    learning_rate: float = 2e-3
    precision: Literal["auto", "float32", "mixed_bfloat16"] = "auto"
    depth: int = 3
    initial_filters: int = 16
    blocks_per_level: int = 1
    cache_gb: float = 4.0
    max_memory: str = "2GB"
    preview_every: int = 5
    group_regex: str | None = None
    accumulate: int = 1
    patience: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(self, "steps", "steps_per_epoch", "accumulate", "initial_filters", "blocks_per_level")
        check_counts(self, "depth", largest=LARGEST_DEPTH)
        for name in ("patch", "batch_size", "channels"):
            if getattr(self, name) is not None:
                check_counts(self, name)
        check_crops(self.patch, self.batch_size)
        if self.steps % self.steps_per_epoch:
            rule = f"must be a multiple of steps_per_epoch={self.steps_per_epoch}"
            raise ArgumentError("steps", rule, self.steps)
        if self.steps % self.accumulate:
            raise ArgumentError("steps", f"must be a multiple of accumulate={self.accumulate}", self.steps)
        parse_memory(self.max_memory)
        for name in ("preview_every", "cache_gb", "patience"):
            if not getattr(self, name) >= 0:
                raise ArgumentError(name, "must be at least 0", getattr(self, name))
        if not self.learning_rate > 0:
            raise ArgumentError("learning_rate", "must be above 0", self.learning_rate)
        if not 0 <= self.seed < 2**32:
            raise ArgumentError("seed", "must be at least 0 and below 2**32", self.seed)


@dataclass(frozen=True, kw_only=True)
class PairedConfig(TrainingConfig):
    """Settings of trainings on pairs of image and target.

    Attributes:
        images: Folder of images or a pattern such as `'slices/*.tif'`; or a CSV file with columns image and target.
        val_images: Images to validate on, given like `images` (default: a share of `images`).
        val_fraction: Share of the images, or of their groups, to validate on.
        patch: Height and width of the training crops, in pixels (default: chosen by the sizes of the images). Smaller
            images are reflected at their borders.
        symmetries: Flips and rotations used for augmentation: `"all"` eight symmetries of the square; `"mirror"`,
            horizontal flips only, for images whose up and down differ, such as photographs; `"auto"`: mirror for
            images of three channels, all for others.
        augment: Strength of augmentation: `"none"`, not even flips; `"light"`, half as strong and half as often,
            without elastic deformation, blur and noise; `"default"`. In `train restore`, light and default use flips
            and rotations only, since other changes would alter the degradation.
    """

    val_fraction: float = 0.2
    symmetries: Literal["auto", "all", "mirror"] = "auto"
    augment: Literal["none", "light", "default"] = "default"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.val_fraction < 1:
            raise ArgumentError("val_fraction", "must be above 0 and below 1", self.val_fraction)


@dataclass(frozen=True)
class DeviceSettings:
    """Devices of a training; a run may be resumed on other devices.

    Attributes:
        devices: Number of devices of this host, or "all" (default: one).
        model_parallel: Devices that share one copy of the weights; JAX only.
        distributed: Train on all devices of several processes, each started by this same command; JAX only. The
            processes find each other by the three flags below, or by SLURM, Open MPI or Kubernetes.
        coordinator: `host:port` of process 0, the same for all processes; the port must be free.
        processes: Number of processes.
        process: Number of this process, from 0.
    """

    devices: int | Literal["all"] | None = None
    model_parallel: int = 1
    distributed: bool = False
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.devices, int) and self.devices < 1:
            raise ArgumentError("devices", "must be at least 1, or all", self.devices)
        if self.model_parallel < 1:
            raise ArgumentError("model_parallel", "must be at least 1", self.model_parallel)
        if not self.distributed:
            for name in ("coordinator", "processes", "process"):
                if getattr(self, name) is not None:
                    raise ArgumentError(name, "must come with --distributed", getattr(self, name))

    @property
    def plain(self) -> bool:
        """Whether one device is all that is asked for."""
        return self == DeviceSettings()


@dataclass(frozen=True, kw_only=True)
class MovedData:
    """Where the data of a run are now, if not where they were.

    Attributes:
        images: Folder, pattern or CSV file.
        masks: Folder or pattern.
        targets: Folder or pattern.
        val_images: Folder, pattern or CSV file.
        val_masks: Folder or pattern.
        val_targets: Folder or pattern.
    """

    images: str | None = None
    masks: str | None = None
    targets: str | None = None
    val_images: str | None = None
    val_masks: str | None = None
    val_targets: str | None = None


Config = TypeVar("Config", bound=TrainingConfig)


def moved(config: Config, data: MovedData, command: str) -> Config:
    """Return settings of a run whose data are elsewhere now.

    Raises:
        ArgumentError: The run has no such data.
        FileError: Data are not where they were; the remedy names the command that resumes the run.
    """
    given = {name: value for name, value in asdict(data).items() if value is not None}
    for name, value in given.items():
        if getattr(config, name, None) is None:
            raise ArgumentError(name, "must be given only where the run was started with it", value)
    for field in fields(data):
        place = getattr(config, field.name, None)
        if isinstance(place, str) and field.name not in given and not (set("*?[") & set(place) or Path(place).exists()):
            flag = f"--{field.name.replace('_', '-')}"
            raise FileError(place, "does not exist.", f"If the data were moved, add {flag}: {command} {flag} FOLDER.")
    return replace(config, **given)
