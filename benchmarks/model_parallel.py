"""Weights split among devices (`--model-parallel`): what one of them holds, and whether a step is that of one device.

Run: `python benchmarks/model_parallel.py --variant large` (JAX; the devices are simulated on the CPU). Prints the share
of the bytes of weights and optimizer that the first device holds, and after a step the relative difference of the
weights and that of what the optimizer keeps, which is made of the gradients; the larger counts.
"""

from __future__ import annotations

import argparse
import json
import os

os.environ["KERAS_BACKEND"] = "jax"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import keras
import numpy as np

from dl_techniques.models.convunext.model import create_convunext_variant
from dl_techniques.training.distribution import gathered_value, on_devices
from dl_techniques.training.loop import averaged_adamw
from dl_techniques.training.settings import DeviceSettings


def step(settings: DeviceSettings, batch: tuple[np.ndarray, np.ndarray], **model) -> tuple[float, list, list]:
    """Train one step; return the share of the bytes that the first device holds, all weights, all moments."""
    with on_devices(settings):
        keras.utils.set_random_seed(0)
        network = create_convunext_variant(input_shape=(None, None, 3), output_channels=1, **model)
        network.compile(averaged_adamw(keras.optimizers.schedules.PolynomialDecay(1e-3, 100), 0.99), loss="mse")
        network.optimizer.build(network.trainable_variables)
        network.train_on_batch(*batch)
        variables = [*network.variables, *network.optimizer.variables]
        first = [part.data.nbytes for v in variables for part in v.value.addressable_shards if part.device.id == 0]
        share = sum(first) / sum(v.value.nbytes for v in variables)
        moments = [v for v in network.optimizer.variables if "momentum" in v.path or "velocity" in v.path]
        weights, moments = (
            [np.array(gathered_value(v)) for v in kept] for kept in (network.trainable_variables, moments)
        )
        return share, weights, [gathered_value(v) for v in moments]


def difference(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    """Return the norm of the difference by the norm of the other."""
    squares = [
        (np.sum(np.square(a.astype("float64") - b)), np.sum(np.square(b.astype("float64"))))
        for a, b in zip(one, other, strict=True)
    ]
    return float(np.sqrt(sum(d for d, _ in squares) / sum(b for _, b in squares)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="large")
    parser.add_argument("--parts", type=int, default=4, help="devices that share a weight")
    parser.add_argument("--side", type=int, default=32, help="height and width of the two images, in pixels")
    parser.add_argument("--set", type=json.loads, default={}, help="other arguments of the model, as JSON")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    shapes = [(2, options.side, options.side, channels) for channels in (3, 1)]
    image, target = (rng.uniform(size=shape).astype("float32") for shape in shapes)
    model = {"variant": options.variant, **options.set}
    share, weights, moments = step(
        DeviceSettings(devices="all", model_parallel=options.parts), (image, target), **model
    )
    _, plain_weights, plain_moments = step(DeviceSettings(), (image, target), **model)
    found = {"weights": difference(weights, plain_weights), "moments": difference(moments, plain_moments)}
    numbers = sum(value.size for value in (*plain_weights, *plain_moments))
    print(f"{options.variant}, {numbers:,} weights and moments, {options.parts} of 8 devices: {found}")
    print(json.dumps({"share_of_a_device": round(share, 4), "difference_after_a_step": max(found.values())}))


if __name__ == "__main__":
    main()
