"""Which shipped denoiser an image needs: one for grey images, one for colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dl_techniques.engines.selection import Model
from dl_techniques.errors import FileError
from dl_techniques.images.files import open_image
from dl_techniques.inference.files import create_predictor
from dl_techniques.inference.pipeline import find_inputs
from dl_techniques.inference.predictor import Predictor
from dl_techniques.inference.settings import DenoisingOptions
from dl_techniques.models.convunext.presets import shipped_presets


class DenoisingPredictors:
    """The predictor for each file of `convunext denoise`; that of a preset is loaded when a file first needs it.

    Args:
        options: Settings.
        models: What runs the models of these names, where that is selected already.
    """

    def __init__(self, options: DenoisingOptions, models: Mapping[str, Model] | None = None) -> None:
        self.options, self.models = options, models or {}
        self._loaded: dict[str, Predictor] = {}
        for name in (options.model,) if options.model else self.models:
            self._load(name)  # a broken model is reported once, not for each image

    def __call__(self, source: Path) -> Predictor:
        """Return the predictor for a file; that for grey images where the file cannot be read."""
        if self.options.model:
            return self._load(self.options.model)
        try:
            return self._load(_preset_for(source))
        except FileError:  # reported when it is read
            return self._load(GRAY)

    def _load(self, name: str) -> Predictor:
        if name not in self._loaded:
            self._loaded[name] = create_predictor(self.models.get(name, name), self.options, "denoise")
        return self._loaded[name]


GRAY, COLOUR = "denoise-gray", "denoise-color"


def presets_for(inputs: Sequence[str]) -> list[str]:
    """Return the names of the presets that image files need, by their heads; of files that cannot be read, none.

    Raises:
        FileError: No input is there.
    """
    names: list[str] = []
    for path in find_inputs(inputs).files:
        try:
            name = _preset_for(path)
        except FileError:
            continue  # reported when it is read
        names += [] if name in names else [name]
        if len(names) == 2:
            break
    return names


def _preset_for(source: Path) -> str:
    with open_image(source) as file:
        grey = not file.is_coloured
    return GRAY if grey or COLOUR not in shipped_presets() else COLOUR
