"""What the page says, as HTML."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from dl_techniques.inference.predictor import Predictor
from dl_techniques.page.applying import Shown


def describe_model(predictor: Predictor) -> str:
    """Return what the page says of a model before there is an image."""
    facts = {"model": predictor.engine.source, "task": predictor.task.name}
    kinds = {1: "grey or RGB images", 3: "RGB images"}
    taken = kinds.get(predictor.channels, f"images of {predictor.channels} channels")
    facts["takes"] = f"{taken}, 8 or 16 bits or floats"
    facts |= predictor.task.facts()
    return _table(facts)


def describe_result(shown: Shown) -> str:
    """Return what the page says of a result."""
    rows = [
        f'<tr><td><i style="background:{escape(colour)}"></i>{escape(name)}</td><td>{share:.2%}</td></tr>'
        for colour, name, share in shown.legend
    ]
    warnings = "".join(f"<p>{escape(warning)}</p>" for warning in shown.warnings)
    return _table(shown.facts, "".join(rows)) + warnings


def describe_refusal(reason: str) -> str:
    """Return what the page says where there is no result."""
    return f"<p>{escape(reason.strip())}</p>"


def _table(facts: Mapping[str, str], rows: str = "") -> str:
    cells = (f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in facts.items())
    return f"<table>{''.join(cells)}{rows}</table>"
