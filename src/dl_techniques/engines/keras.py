"""Models of Keras: `.keras` files and presets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dl_techniques.engines.engine import Engine


def load_keras(path: Path) -> Engine:
    """Return the engine of a `.keras` file or of a preset's folder.

    Raises:
        FileError: It is broken or holds another kind of model.
    """
    from dl_techniques.models.convunext.function import keras_function
    from dl_techniques.models.convunext.model import ConvUNextModel

    model = ConvUNextModel.from_preset(path) if path.is_dir() else _read_archive(path)
    height, width, channels = model.input_shape
    name = f"preset {path.name}" if path.is_dir() else path.name
    return Engine(keras_function(model), channels, name, path, model, (height, width), use_bias=model.use_bias)


def _read_archive(path: Path) -> Any:
    import keras

    from dl_techniques.models.convunext.archive import check_archive
    from dl_techniques.models.convunext.model import ConvUNextModel
    from dl_techniques.models.convunext.weights import stored_shapes

    config = check_archive(path)
    ConvUNextModel.check_stored(config["config"], stored_shapes(path), path)
    model: Any = keras.saving.deserialize_keras_object({**config, "compile_config": None}, safe_mode=True)
    model.load_weights(path)  # looks at them first: Keras leaves what it does not find as it was drawn
    return model
