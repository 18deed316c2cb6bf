"""ConvUNext: a modern U-Net of ConvNeXt blocks in Keras 3, from import to a trained, certified, deployed model.

Importing this package loads no backend; `dl_techniques.models.convunext.model` does.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("convunext")
except PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
