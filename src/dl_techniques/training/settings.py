"""Settings of trainings, checked when made; the command line's flags are made from them. No import that takes time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from dl_techniques.errors import ArgumentError, check_counts
from dl_techniques.inference.memory import parse_memory


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings of every training.

    Attributes:
        images: Folder of images or a pattern such as `'slices/*.tif'`.
        output: Folder of the run; for `convunext plan`, the TOML file to write.
        val_images: Images to validate on, as `images`; some of `images` if not given.
        steps: Steps of training.
        steps_per_epoch: Steps between two validations, each with a checkpoint and a line in the log.
        patch: Height and width of the crops that are trained on, in pixels; chosen by the sizes of the images if not
            given.
        batch_size: Crops in a step; about 130,000 pixels if not given.
        learning_rate: Largest learning rate.
        precision: Of the computation: `"float32"`, or `"mixed_bfloat16"`, faster on GPUs; `"auto"`: mixed_bfloat16 on a
            GPU, float32 elsewhere.
        depth: Number of times the model halves the image.
        initial_filters: Channels of the model's finest level.
        blocks_per_level: ConvNeXt blocks in each level.
        channels: Samples of a pixel that are channels, whatever the files call alpha; if not given, all but alpha.
        cache_gb: Decoded images to keep in memory, in GB, all in all; what does not fit is read again each time.
        max_memory: What the network may take at once in a validation; larger images are computed in tiles.
        preview_every: Validations between two pictures of what the model does; 0: none.
        group_regex: Images stay on one side of the split whose name gives the same first group of this pattern, such
            as `'^([^_]+)_'` for the frames of one film.
        accumulate: Steps whose gradients are added up before the weights change: as if the batch were so many times
            larger, in the memory of one.
        patience: Stop after so many validations in a row without a better one; 0: never.
        seed: Seed of weights, crops and all random changes.
    """

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
        check_counts(self, "steps", "steps_per_epoch", "accumulate")
        for name in ("patch", "batch_size", "channels"):
            if getattr(self, name) is not None:
                check_counts(self, name)
        if self.steps % self.steps_per_epoch:
            rule = f"must be a multiple of steps_per_epoch={self.steps_per_epoch}"
            raise ArgumentError("steps", rule, self.steps)
        if self.steps % self.accumulate:
            raise ArgumentError("steps", f"must be a multiple of accumulate={self.accumulate}", self.steps)
        parse_memory(self.max_memory)
        for name in ("preview_every", "cache_gb", "patience"):
            if getattr(self, name) < 0:
                raise ArgumentError(name, "must be at least 0", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class DenoisingConfig(TrainingConfig):
    """Settings of the training of a denoiser.

    Attributes:
        images: Folder of clean images or a pattern such as `'scans/*.tif'`, or a CSV file with a column image; of noisy
            ones with `noisy_only`.
        val_images: Images to validate on, as `images`; the first `held_out` of `images` if not given.
        held_out: Images, the first by name, that are not trained on but validated on; with `group_regex`, about so many
            of groups chosen by seed and name.
        patience: Stop after so many validations in a row without a higher PSNR at sigma 25 (or gain, of noisy images
            alone), even before the learning rate falls; 0: never.
        noisy_only: The images are noisy and there are no clean ones: learn from them alone. Their noise must be white
            and Gaussian; its level is estimated for each.
        sigma: Largest standard deviation of the noise, in units of 1/255; each patch draws its own from 0 to it.
        gain: Largest intensity of a photon, in units of 1/255, for shot noise beside the Gaussian; each patch draws its
            own from 0 to it.
        cooldown: Share of the steps, at the end, over which the learning rate falls to zero.
        patch: Height and width of the crops that are trained on, in pixels, until the learning rate falls.
        final_patch: The same while it falls: larger, so that fewer pixels lie near borders.
        batch_size: Crops in a step; of larger ones fewer, with about as many pixels.
        learning_rate: Learning rate after the warm-up.
        filter_multiplier: Factor from the channels of one level to those of the next.
        block_kernel_size: Width of the blocks' depthwise kernels, in pixels.
        convnext_version: `"v1"`, whose output depends on nearby pixels alone, or `"v2"`, which pools the whole image.
        use_bias: Whether the model has additive parameters, and with them no scale-equivariance.
        equivariant_block: Design of the bias-free block.
        zero_mean_stem: Whether the model sees differences of intensities only.
    """

    noisy_only: bool = False
    sigma: float = 55.0
    gain: float = 0.0
    held_out: int = 8
    steps: int = 40_000
    steps_per_epoch: int = 1000
    cooldown: float = 0.3
    patch: int = 96
    final_patch: int = 136
    batch_size: int = 2
    initial_filters: int = 24
    filter_multiplier: int = 2
    blocks_per_level: int = 2
    block_kernel_size: int = 3
    convnext_version: Literal["v1", "v2"] = "v1"
    use_bias: bool = False
    equivariant_block: Literal["scale_layernorm", "no_norm", "batchnorm"] = "no_norm"
    zero_mean_stem: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "final_patch", "held_out")
        if not self.sigma > 0:
            raise ArgumentError("sigma", "must be above 0", self.sigma)
        if not self.gain >= 0:
            raise ArgumentError("gain", "must be at least 0", self.gain)
        if not 0 <= self.cooldown <= 1:
            raise ArgumentError("cooldown", "must be in [0, 1]", self.cooldown)

    @property
    def phases(self) -> tuple[Phase, Phase]:
        """The steps before and while the learning rate falls, a whole number of epochs each."""
        turn = round(self.steps * (1 - self.cooldown) / self.steps_per_epoch) * self.steps_per_epoch
        late_batch = max(1, round(self.batch_size * self.patch**2 / self.final_patch**2))
        return Phase(0, turn, self.patch, self.batch_size), Phase(turn, self.steps, self.final_patch, late_batch)


@dataclass(frozen=True, kw_only=True)
class PairedConfig(TrainingConfig):
    """Settings of trainings on images and what belongs to each.

    Attributes:
        images: Folder of images or a pattern such as `'slices/*.tif'`; or a CSV file with columns image and target.
        val_images: Images to validate on, as `images`; a share of `images` if not given.
        val_fraction: Share of the images, or of their groups, to validate on.
        patch: Height and width of the crops that are trained on, in pixels; chosen by the sizes of the images if not
            given. Smaller images are reflected at their borders.
        symmetries: Which turns of an image are trained on, too: `"all"` eight, or its mirror image only, `"mirror"`,
            where up and down differ, as in photographs; `"auto"`: the mirror for images of three channels, all for
            others.
        augment: How much crops are changed at random: `"none"`, not even mirrored; `"light"`, half as strong and half
            as often, never bent, blurred or noisy; `"default"`. In `train restore` both of the last are the symmetries
            alone, as all else would change what is to be undone.
    """

    val_fraction: float = 0.2
    symmetries: Literal["auto", "all", "mirror"] = "auto"
    augment: Literal["none", "light", "default"] = "default"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.val_fraction < 1:
            raise ArgumentError("val_fraction", "must be above 0 and below 1", self.val_fraction)


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig(PairedConfig):
    """Settings of the training of a segmenter.

    Attributes:
        masks: Folder or pattern of masks, each named like its image, all with the same ending or none: grey values,
            palette indices or colours, PNG or TIFF, stacks for stacks. Not with a CSV file.
        val_masks: Masks of `val_images`.
        mask_kind: `"classes"`: each mask value is a class; `"foreground"`: all but one value are one class, as in
            binary masks and instances; `"labels"`: each channel or page of a mask is a label, where it is not 0, and
            labels may overlap; `"auto"`: foreground for two values and for more than 24 without names.
        classes: Names of the classes, in the order of their mask values, or of the labels, in that of their channels.
        ignore: Mask values of pixels that neither train nor count; with labels, of those where all channels hold one.
        convnext_version: `"v1"`, whose output depends on nearby pixels alone, or `"v2"`, which pools the whole image.
        loss: `"dice_ce"`: soft Dice and cross-entropy; `"dice"` or `"cross_entropy"` alone; `"focal"`, which dwells on
            pixels that are hard; `"tversky"`, which finds more of what is small, at the price of false alarms.
        anneal_supervision: The coarser outputs' shares of the loss fall linearly to zero over the run, so that it ends
            on the full size alone; without, they stay.
    """

    masks: str | None = None
    val_masks: str | None = None
    mask_kind: Literal["auto", "classes", "foreground", "labels"] = "auto"
    classes: tuple[str, ...] = ()
    ignore: tuple[int, ...] = ()
    convnext_version: Literal["v1", "v2"] = "v2"
    loss: Literal["dice_ce", "dice", "cross_entropy", "focal", "tversky"] = "dice_ce"
    anneal_supervision: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.val_masks is not None and self.val_images is None:
            raise ArgumentError("val_masks", "must come with val_images", self.val_masks)


@dataclass(frozen=True, kw_only=True)
class RestorationConfig(PairedConfig):
    """Settings of the training of a model that restores images: sharp from blurred, clean from stained.

    Attributes:
        targets: Folder or pattern of what the images shall become, each named like its image, all with the same ending
            or none, and of the same size. Not with a CSV file.
        val_targets: Targets of `val_images`.
        loss: `"charbonnier"`, nearly the mean absolute error; `"mse"`, best for PSNR, smoother; or `"mae"`.
    """

    targets: str | None = None
    val_targets: str | None = None
    blocks_per_level: int = 2
    loss: Literal["charbonnier", "mse", "mae"] = "charbonnier"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.val_targets is not None and self.val_images is None:
            raise ArgumentError("val_targets", "must come with val_images", self.val_targets)


@dataclass(frozen=True)
class Phase:
    """Steps of a run with patches of one size.

    Attributes:
        first: Steps done before it.
        last: Steps done after it.
        patch: Height and width of its patches, in pixels.
        batch_size: Patches in a step.
    """

    first: int
    last: int
    patch: int
    batch_size: int


@dataclass(frozen=True)
class DeviceSettings:
    """What a training runs on; a run may be resumed on other devices than it began on.

    Attributes:
        devices: Number of devices of this host, or "all"; one if not given.
        model_parallel: Devices that share one copy of the weights; JAX only.
        distributed: Train with other processes, each started by this same command, on all their devices; JAX only.
            Where they are is told by the three flags below, or by SLURM, Open MPI or Kubernetes.
        coordinator: `host:port` of process 0, the same for all; the port must be free there.
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
