"""Settings of the training of denoisers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from dl_techniques.errors import ArgumentError, check_counts
from dl_techniques.training.settings import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class DenoisingConfig(TrainingConfig):
    """Settings of the training of a denoiser.

    Attributes:
        images: Folder of clean images (of noisy ones with `noisy_only`) or a pattern such as `'scans/*.tif'`, or a CSV
            file with a column image.
        val_images: Images to validate on, given like `images` (default: the first `held_out` of `images`).
        held_out: Number of images, the first by name, for validation only; with `group_regex`, about this number from
            groups chosen by seed and name.
        patience: Stop after this many validations in a row without a higher PSNR at sigma 25 (with `noisy_only`, a
            higher gain), even before the learning rate falls; 0: never.
        noisy_only: Train on noisy images, without clean ones. The noise must be white and Gaussian; its level is
            estimated for each image.
        sigma: Largest standard deviation of the noise, in units of 1/255; drawn for each patch from 0 to this value.
        gain: Largest intensity of a photon, in units of 1/255, for shot noise beside the Gaussian; drawn for each patch
            from 0 to this value.
        cooldown: Share of the steps, at the end, over which the learning rate falls to zero.
        patch: Height and width of the training crops, in pixels, until the learning rate falls.
        final_patch: The same while it falls: larger, so that fewer pixels lie near borders.
        batch_size: Crops in a step; fewer when crops are larger, with about as many pixels.
        learning_rate: Learning rate after the warm-up.
        filter_multiplier: Factor from the channels of one level to those of the next.
        block_kernel_size: Width of the blocks' depthwise kernels, in pixels.
        convnext_version: `"v1"`, whose receptive field is bounded, or `"v2"`, which pools over the whole image.
        use_bias: Whether the model has additive parameters; it is then not scale-equivariant.
        equivariant_block: Design of the bias-free block.
        zero_mean_stem: Whether the stem passes on only differences of intensities.
    """

    summary: ClassVar[str] = (
        "Train a blind denoiser on clean images, to which Gaussian noise of every level up to sigma is added."
    )

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


@dataclass(frozen=True)
class Phase:
    """Steps `first` to `last` of a run, with patches of one size in pixels, and how many of them are in a step."""

    first: int
    last: int
    patch: int
    batch_size: int
