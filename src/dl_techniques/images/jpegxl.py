"""JPEG XL, by imagecodecs; its colour profile and EXIF are not read."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from dl_techniques.images.codestreams import declared_size
from dl_techniques.images.source import Decoded, ImageSource


class Source(ImageSource):
    """An open JPEG XL file of one image."""

    @cached_property
    def _content(self) -> bytes:
        self.file.seek(0)
        return self.file.read()

    @cached_property
    def _array(self) -> np.ndarray:
        import imagecodecs

        array = np.asarray(imagecodecs.jpegxl_decode(self._content))
        if array.ndim > 3:
            raise ValueError(f"it holds {len(array)} frames, not one image")
        return array

    def _shape(self, page: int) -> tuple[int, int, int]:
        size = declared_size(self._content)
        if size is None or size.height * size.width > self.max_pixels:
            return (size.height, size.width, 1) if size else (0, 0, 0)  # refused before it is decoded
        height, width, *samples = self._array.shape  # turned upright by the decoder
        return height, width, samples[0] if samples else 1

    def _decode(self, page: int) -> Decoded:
        samples = self._shape(page)[2]
        alpha = samples - 1 if samples % 2 == 0 else None
        return Decoded(self._array, ("its colour profile and EXIF are not read",), {}, alpha)
