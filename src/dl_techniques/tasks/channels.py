"""Samples of a file's pixels to channels of a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dl_techniques.errors import FileError


@dataclass(frozen=True)
class ChannelLayout:
    """Which samples of a pixel go into a network.

    There are several runs where colours are restored one by one. The sample `alpha` stays beside a restored image.
    """

    runs: tuple[tuple[int, ...], ...]
    alpha: int | None = None
    notes: tuple[str, ...] = ()


def plan_channels(
    colours: int,
    wanted: int,
    restores: bool,
    alpha: int | None,
    equal_colours: Callable[[], bool],
    names: tuple[str, str],
) -> ChannelLayout:
    """Adapt the samples of a file to a network where nothing is lost by it.

    Args:
        colours: Samples that are no alpha.
        wanted: Channels of the network.
        restores: See `tasks.base.Task`.
        alpha: The sample that is alpha, if there is one.
        equal_colours: Whether three colours are the same everywhere; called only if that matters.
        names: File and model, for messages.

    Raises:
        FileError: Something would be lost.
    """
    every = tuple(range(colours))
    if restores and wanted in (1, colours):
        return ChannelLayout(tuple((n,) for n in every) if wanted == 1 else (every,), alpha)
    notes = () if alpha is None else ("alpha left out",)
    if wanted == colours:
        return ChannelLayout((every,), None, notes)
    if not restores and colours == 1 and wanted == 3:
        return ChannelLayout(((0, 0, 0),), None, (*notes, "grey taken as RGB"))
    if not restores and colours == 3 and wanted == 1 and equal_colours():
        return ChannelLayout(((0,),), None, (*notes, "RGB of equal colours taken as grey"))
    source, model = names
    raise FileError(source, f"has {colours} channels; {model} takes {wanted}.", "Convert it, or name another model.")
