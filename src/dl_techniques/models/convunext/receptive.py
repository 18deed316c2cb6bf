"""Receptive field of a ConvUNext."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dl_techniques.models.convunext.model import ConvUNextModel


def receptive_radius(model: ConvUNextModel) -> int:
    """Return the largest distance, in pixels, between an output pixel and an input pixel that it depends on.

    An upper bound, summed over the graph: half a kernel per convolution, times the pixel size of its level; one coarse
    pixel per upsampling; one fine pixel per halving. V2's response normalization, which pools the whole image, does not
    count: see `pools_image`.
    """
    block = model.block_kernel_size // 2 * model.blocks_per_level
    levels = sum(2**level * (2 * block + 1 + 2) for level in range(model.depth))
    return model.stem_kernel_size // 2 + levels + 2**model.depth * block


def pools_image(model: ConvUNextModel) -> bool:
    """Return whether every output pixel depends, through a statistic, on the whole image."""
    return model.convnext_version == "v2"
