"""Settings of the page; the command line's flags are made from them. No import that takes time."""

from __future__ import annotations

from dataclasses import dataclass

from dl_techniques.engines.formats import EngineName
from dl_techniques.errors import ArgumentError, check_counts

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class PageOptions:
    """Settings of `convunext page`.

    Attributes:
        host: Address to listen on. With any other than 127.0.0.1, everyone who reaches it can use the models.
        port: Port to listen on (default: the first free one from 7860).
        max_megabytes: Refuse larger files.
        max_pixels: Refuse larger images before they are decoded.
        max_memory: Memory limit of arrays and network without the runtime; larger images are computed in tiles.
        engine: Engine: `keras`, or `openvino` or `onnxruntime`, for which Keras models are converted once, or `auto`,
            the fastest that is installed. Exports run in their own runtime.
        queue: Most images that may wait; one is computed at a time.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    max_megabytes: int = 64
    max_pixels: int = 40_000_000
    max_memory: str = "2GB"
    engine: EngineName = "auto"
    queue: int = 8

    def __post_init__(self) -> None:
        check_counts(self, "max_megabytes", "max_pixels", "queue")
        if self.port is not None and not 1 <= self.port <= 65535:
            raise ArgumentError("port", "must be from 1 to 65535", self.port)
