"""The graph of a variant, and networks that do the same jobs, written for PyTorch as its users write them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from dl_techniques.models.convunext.variants import MODEL_VARIANTS


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of `(batch, channels, height, width)`; in channels-last memory nothing is copied."""

    def forward(self, input):
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ResponseNorm(nn.Module):
    """Global response normalization of ConvNeXt V2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x):
        response = (x.float().square().sum(dim=(2, 3), keepdim=True) + 1e-12).sqrt()
        share = (response / (response.mean(dim=1, keepdim=True) + 1e-6)).to(x.dtype)
        return self.gamma * (x * share) + self.beta + x


class Block(nn.Module):
    """`x + branch(x)` of ConvNeXt V2."""

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(filters, filters, 7, padding=3, groups=filters),
            ChannelNorm(filters, eps=1e-6),
            nn.Conv2d(filters, 4 * filters, 1),
            nn.GELU(),
            ResponseNorm(4 * filters),
            nn.Conv2d(4 * filters, filters, 1),
        )

    def forward(self, x):
        return x + self.branch(x)


class TorchConvUNext(nn.Module):
    """The graph of a variant, V2 with biases, one output channel; parameters in the order of the graph.

    Args:
        variant: Name of the variant.
        channels: Channels of the images.

    Call arguments:
        x: `(batch, channels, height, width)`, height and width multiples of `2**depth`.

    Returns:
        `(batch, 1, height, width)`.
    """

    def __init__(self, variant: str, channels: int = 3) -> None:
        super().__init__()
        settings = MODEL_VARIANTS[variant]
        depth, blocks = settings["depth"], settings["blocks_per_level"]
        filters = [settings["initial_filters"] * 2**level for level in range(depth + 1)]

        def level_of_blocks(level: int) -> nn.Sequential:
            return nn.Sequential(*(Block(filters[level]) for _ in range(blocks)))

        self.stem = nn.Sequential(nn.Conv2d(channels, filters[0], 7, padding=3), ChannelNorm(filters[0], eps=1e-6))
        self.encoder, self.downs = nn.ModuleList(), nn.ModuleList()
        self.fusions, self.decoder = nn.ModuleList(), nn.ModuleList()
        for level in range(depth):
            self.encoder.append(level_of_blocks(level))
            self.downs.append(nn.Conv2d(filters[level], filters[level + 1], 1))
        self.bottleneck = level_of_blocks(depth)
        for level in reversed(range(depth)):
            self.fusions.append(nn.Conv2d(filters[level + 1] + filters[level], filters[level], 1))
            self.decoder.append(level_of_blocks(level))
        self.head = nn.Conv2d(filters[0], 1, 1)

    def forward(self, x):
        x = stem = self.stem(x)
        skips = []
        for blocks, down in zip(self.encoder, self.downs, strict=True):
            x = blocks(x)
            skips.append(x)
            x = down(functional.max_pool2d(x, 2))
        x = self.bottleneck(x)
        for fusion, blocks in zip(self.fusions, self.decoder, strict=True):
            x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = blocks(fusion(torch.cat([x, skips.pop()], dim=1)))
        return self.head(x + stem)


class DnCNN(nn.Module):
    """A denoiser of plain 3×3 convolutions that predicts the noise.

    Reference: Zhang et al. 2017, Beyond a Gaussian Denoiser, figure 1: 17 layers of 64 filters.
    """

    def __init__(self, channels: int = 3, filters: int = 64, layers: int = 17) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(channels, filters, 3, padding=1), nn.ReLU(inplace=True)]
        for _ in range(layers - 2):
            parts += [nn.Conv2d(filters, filters, 3, padding=1, bias=False), nn.BatchNorm2d(filters)]
            parts.append(nn.ReLU(inplace=True))
        self.layers = nn.Sequential(*parts, nn.Conv2d(filters, 1, 3, padding=1))

    def forward(self, x):
        return self.layers(x)


def smp_unet() -> nn.Module:
    """Return the U-Net of segmentation_models_pytorch with a ConvNeXt encoder, random weights, one output channel."""
    try:
        import torchvision  # type: ignore  # noqa: F401
    except RuntimeError:  # built for another PyTorch than this one; its own operators are not needed, but looked for
        global _operators
        _operators = torch.library.Library("torchvision", "DEF")  # they last as long as this object
        for name in ("nms", "qnms"):
            _operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import segmentation_models_pytorch  # type: ignore  # of the extra peers

    return segmentation_models_pytorch.Unet("tu-convnext_tiny", encoder_weights=None, in_channels=3, classes=1)


def giga_products(net: nn.Module, size: int) -> float:
    """Return the GMAC of one image of `size` × `size` pixels: convolutions and matrix products, as PyTorch counts them.

    Args:
        net: Takes `(batch, 3, height, width)`; on the CPU.
        size: Height and width in pixels.
    """
    from torch.utils.flop_counter import FlopCounterMode

    training, counter = net.training, FlopCounterMode(display=False)
    net.eval()
    with torch.no_grad(), counter:
        net(torch.zeros(1, 3, size, size))
    net.train(training)
    return counter.get_total_flops() / 2e9  # a product and its sum are two
