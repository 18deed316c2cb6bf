"""What training on 1 to 1,024 accelerators should take, on paper, written into docs/scale.md.

    python benchmarks/scale_table.py --markdown docs/scale.md             # measures a step here and scales it
    python benchmarks/scale_table.py --seconds-per-image 0.004            # of `tiny`, measured on one accelerator

A step is that of one accelerator plus the exchange of gradients around a ring. All that is assumed is a constant below
and stands beside the tables.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from dl_techniques.models.convunext.variants import MODEL_VARIANTS
from tables import replace_section

COUNTS = (1, 8, 64, 256, 1024)
VARIANTS = ("tiny", "large", "xlarge")
GMAC = {"tiny": 9.0, "small": 19.4, "base": 63.1, "large": 184.4, "xlarge": 492.5}  # README.md, an image of 256x256
SIDE, BATCH = 256, 32  # images of an accelerator
IMAGE_BYTES = 3 * SIDE**2  # 8 bits, as decoded; files are smaller
GRADIENT_BYTES = 4  # float32
HOST = 8  # accelerators
INSIDE, BETWEEN = 300e9, 40e9  # bytes/s that one sends within a host, and to another: 400 Gbit/s, four fifths of it
LATENCY = 5e-6  # seconds of each of the 2(N - 1) turns of a ring
MEMORY = 2.0e12  # bytes/s that an accelerator moves
FASTER = 10  # what a step may be shorter by than it is taken to be
PRICE = 2.5  # dollars an hour and accelerator


@dataclass(frozen=True)
class Row:
    """What a number of accelerators does in a step; see `row`."""

    count: int
    sent: float  # bytes, by each
    exchange: float  # seconds
    step: float  # seconds, nothing overlapping
    efficiency: float  # of that
    overlapped: float  # efficiency if gradients travel while others are computed
    images: float  # a second, nothing overlapping

    def __str__(self) -> str:
        reading = self.images * IMAGE_BYTES / 1e9
        dollars = 1e6 / self.images * self.count * PRICE / 3600
        return (
            f"| {self.count:,} | {self.sent / 1e6:,.0f} | {1e3 * self.exchange:.1f} | {1e3 * self.step:.0f} "
            f"| {self.efficiency:.0%} | {self.overlapped:.0%} | {self.images:,.0f} | {reading:.2g} | {dollars:.2f} |"
        )


HEADER = """\
| accelerators | MB sent | exchange, ms | step, ms | efficiency | overlapped | images/s | GB/s read | $ per million |
| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""


def row(count: int, parameters: int, alone: float) -> Row:
    """Return what `count` accelerators do with a model, of which one takes `alone` seconds for a step."""
    sent = 2 * (count - 1) / count * GRADIENT_BYTES * parameters
    exchange = sent / (INSIDE if count <= HOST else BETWEEN) + 2 * (count - 1) * LATENCY
    step = alone + exchange
    return Row(count, sent, exchange, step, alone / step, alone / max(alone, exchange), count * BATCH / step)


def parameters(variant: str) -> int:
    """Return the parameters of a variant without building it: a quadratic in its filters, through three small ones."""
    from dl_techniques.models.convunext.model import create_convunext_variant

    wanted = MODEL_VARIANTS[variant]["initial_filters"]
    points = [(f, create_convunext_variant(variant, initial_filters=f).count_params()) for f in (4, 8, 12)]
    total = Fraction(0)
    for f, value in points:  # Lagrange
        others = [g for g, _ in points if g != f]
        total += value * Fraction((wanted - others[0]) * (wanted - others[1]), (f - others[0]) * (f - others[1]))
    if total.denominator != 1:
        raise SystemExit(f"the parameters of {variant} are no quadratic in its filters")
    return int(total)


def measure(turns: int = 3) -> tuple[float, float]:
    """Return the seconds of a training step of `tiny` for an image, and the bytes/s that memory moves, both here."""
    from dl_techniques.models.convunext.model import create_convunext_variant

    model = create_convunext_variant("tiny", output_channels=1)
    model.compile("adam", "mse")
    x = np.random.default_rng(0).uniform(size=(2, SIDE, SIDE, 3)).astype("float32")
    y, steps, copies = x[..., :1], [], []
    source = np.zeros(2**25, "float64")
    target = source.copy()
    for turn in range(turns + 1):
        start = time.perf_counter()
        model.train_on_batch(x, y)
        between = time.perf_counter()
        np.copyto(target, source)
        if turn:  # the first compiles
            steps.append((between - start) / len(x))
            copies.append(2 * source.nbytes / (time.perf_counter() - between))
    return min(steps), max(copies)


def tables(of_tiny: float) -> str:
    """Return a table for each variant, from the seconds of `tiny` for an image on one accelerator."""
    parts = []
    for variant in VARIANTS:
        count = parameters(variant)
        alone = BATCH * of_tiny * GMAC[variant] / GMAC["tiny"]
        rows = "\n".join(str(row(n, count, alone)) for n in COUNTS)
        gradients = f"{GRADIENT_BYTES * count / 1e6:,.0f} MB of gradients"
        faster = row(COUNTS[-1], count, alone / FASTER)
        parts.append(
            f"`{variant}`, {count:,} parameters, {gradients}:\n\n{HEADER}\n{rows}\n\n"
            f"Were the step {FASTER} times shorter, {COUNTS[-1]:,} would be {faster.efficiency:.0%} efficient, "
            f"{faster.overlapped:.0%} overlapped."
        )
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds-per-image", type=float, help="of a training step of tiny on one accelerator")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    of_tiny = options.seconds_per_image
    said = f"A training step of `tiny` takes {of_tiny} s for an image on one accelerator, as measured there."
    if of_tiny is None:
        here, moved = measure()
        of_tiny = float(f"{here * moved / MEMORY:.2g}")
        said = (
            f"Not measured on an accelerator: a training step of `tiny` took {here:.2g} s for an image on a machine "
            f"whose memory moved {moved / 1e9:.1f} GB/s. The network is bound by memory, so on an accelerator that "
            f"moves {MEMORY / 1e12:g} TB/s it is taken to be {1e3 * of_tiny:.2g} ms."
        )
    text = f"{said}\n\n{tables(of_tiny)}"
    print(text)
    if options.markdown:
        replace_section(options.markdown, "scale", text)


if __name__ == "__main__":
    main()
