"""A Keras model in the format of another runtime; `python -m` writes it in a subprocess, see `cache.convert`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dl_techniques.engines.cache import FACTS
from dl_techniques.engines.engine import Tiling
from dl_techniques.engines.footprint import model_bytes_per_pixel
from dl_techniques.engines.formats import CONVERTED
from dl_techniques.engines.keras import load_keras
from dl_techniques.engines.subprocess import exit_status_of

if TYPE_CHECKING:
    from dl_techniques.models.convunext.model import ConvUNextModel


def float32_network(model: ConvUNextModel) -> ConvUNextModel:
    """Return a model's network of one output for images of any size, in float32, without what only training needs."""
    from dl_techniques.models.convunext.model import create_inference_model_from_training_model

    return create_inference_model_from_training_model(
        model,
        input_shape=(None, None, model.input_channels),
        dtype="float32",
        drop_path_rate=0.0,
        dropout_rate=0.0,
        remat=False,
    )


def tiling_of(network: ConvUNextModel, outputs: int, runtime: str, whole_images_only: bool = False) -> Tiling:
    """Return what a model's graph says of its application to parts of images, given what is made of it."""
    from dl_techniques.models.convunext.receptive import pools_image, receptive_radius
    from dl_techniques.models.convunext.tiles import sum_sizes

    sums = tuple(sum_sizes(network)) if pools_image(network) else ()
    memory = model_bytes_per_pixel(network, runtime)
    return Tiling(receptive_radius(network), 2**network.depth, memory, outputs, whole_images_only, sums)


def convert_model(source: str, runtime: str, folder: str) -> None:
    """Write a model's network for a runtime, that for tiles with statistics of a V2 model, and the facts."""
    from dl_techniques.models.convunext.receptive import pools_image
    from dl_techniques.models.convunext.tiles import tile_network

    loaded: Any = load_keras(Path(source)).model
    network, target = float32_network(loaded), CONVERTED[runtime]
    networks = {"network": network, **({"tiles": tile_network(network)} if pools_image(network) else {})}
    for name, model in networks.items():
        target.write(model, Path(folder) / f"{name}{target.suffix}")
    facts = {
        "channels": network.input_channels,
        "use_bias": network.use_bias,
        "tiling": asdict(tiling_of(network, network.output_channels, runtime)),
    }
    (Path(folder) / FACTS).write_text(json.dumps(facts))


if __name__ == "__main__":
    sys.exit(exit_status_of(lambda: convert_model(*sys.argv[1:])))
