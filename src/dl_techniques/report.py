"""A self-contained HTML page: numbers, the curve of the loss, pictures side by side. No network, no scripts."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

REPORT = "report.html"

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #1d2433; }
h1 { font-size: 1.6rem; margin-bottom: 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
table { border-collapse: collapse; }
td, th { padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top; }
th { font-weight: 600; }
img { width: 100%; border-radius: 4px; background: #000; }
figure { margin: 0; }
.lead, figcaption, small { color: #5a6478; }
.lead { margin-top: .2rem; }
.numbers { display: flex; margin: 1rem 0; }
.big { font-size: 2rem; font-weight: 650; margin-right: 2.5rem; }
small { font-size: .9rem; font-weight: 400; display: block; }
figcaption { font-size: .85rem; }
.row { display: grid; grid-template-columns: repeat(var(--columns), 1fr); gap: .5rem; margin-bottom: .9rem; }
.key i { display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 1em; }
"""


@dataclass(frozen=True)
class Table:
    """A table of a report, as text; the first cell of each row names it."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def to_html(self) -> str:
        """Return heading and table."""
        header = "".join(f"<th>{html.escape(cell)}</th>" for cell in self.header)
        rows = "".join(
            f"<tr><th>{html.escape(row[0])}</th>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row[1:])}</tr>"
            for row in self.rows
        )
        return f"<h2>{html.escape(self.title)}</h2><table><tr>{header}</tr>{rows}</table>"


@dataclass
class Report:
    """A page: title, lead, headline numbers, tables, curves over epochs, facts, and rows of captioned pictures.

    `key` is colour and meaning of what pictures show; pictures are uint8, grey or RGB. `targets` is how targets were
    understood.
    """

    title: str
    lead: str
    numbers: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    tables: Sequence[Table] = ()
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    key: Sequence[tuple[str, str]] = ()
    rows: Sequence[Sequence[tuple[str, np.ndarray]]] = ()
    targets: Sequence[tuple[str, np.ndarray]] = ()

    def to_html(self) -> str:
        """Return the page, pictures inside."""
        escape = html.escape
        numbers = "".join(
            f'<div class="big">{escape(v)}<small>{escape(k)}</small></div>' for k, v in self.numbers.items()
        )
        facts = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in self.facts.items())
        key = "".join(f'<i style="background:{escape(colour)}"></i>{escape(meaning)}' for colour, meaning in self.key)
        curves = "".join(
            f"<h2>{escape(name)}</h2>{curve_svg(values, name)}"
            for name, values in self.curves.items()
            if len(values) > 1
        )
        parts = [
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(self.title)}</title>',
            f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>',
            f'<h1>{escape(self.title)}</h1><p class="lead">{escape(self.lead)}</p><div class="numbers">{numbers}</div>',
            f'<h2>Pictures</h2><p class="key">{key}</p>{"".join(map(_row, self.rows))}' if self.rows else "",
            f"<h2>Targets as they were understood</h2>{_row(self.targets)}" if self.targets else "",
            *(table.to_html() for table in self.tables),
            curves,
            f"<h2>Facts</h2><table>{facts}</table></html>\n",
        ]
        return "".join(parts)


def png_data_url(image: np.ndarray) -> str:
    """Return an image, uint8, grey or RGB, as a `data:` address that HTML can show."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def curve_svg(values: Sequence[float], name: str, width: int = 640, height: int = 220) -> str:
    """Return a line through `values` over 1, 2, 3 … as SVG, its extremes and ends labelled."""
    low, high = min(values), max(values)
    left, top, right, bottom = 64, 12, width - 12, height - 28
    span = (high - low) or 1.0
    points = [
        (left + (right - left) * i / (len(values) - 1), bottom - (bottom - top) * (value - low) / span)
        for i, value in enumerate(values)
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    label = '<text x="{:.0f}" y="{:.0f}" font-size="12" fill="#5a6478" text-anchor="{}">{}</text>'
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{html.escape(name)} over epochs">'
        f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="#c3c9d5"/>'
        f'<polyline points="{path}" fill="none" stroke="#2b6cb0" stroke-width="2"/>'
        + label.format(left - 6, top + 8, "end", f"{high:.3g}")
        + label.format(left - 6, bottom, "end", f"{low:.3g}")
        + label.format(left, height - 8, "start", "epoch 1")
        + label.format(right, height - 8, "end", f"epoch {len(values)}")
        + "</svg>"
    )


def worst_and_best(scores: Sequence[float], count: int = 3) -> list[tuple[str, int]]:
    """Return the positions of the worst and the best scores, each once, with the word for it; NaN is neither."""
    order = [index for index in np.argsort(scores, kind="stable").tolist() if not np.isnan(scores[index])]
    worst = order[:count]
    best = [index for index in reversed(order) if index not in worst][:count]
    return [("worst", index) for index in worst] + [("best", index) for index in best]


def _row(pictures: Sequence[tuple[str, np.ndarray]]) -> str:
    figures = "".join(_figure(caption, image) for caption, image in pictures)
    return f'<div class="row" style="--columns:{len(pictures)}">{figures}</div>'


def _figure(caption: str, image: np.ndarray) -> str:
    text = html.escape(caption)
    return f'<figure><img alt="{text}" src="{png_data_url(image)}"><figcaption>{text}</figcaption></figure>'
