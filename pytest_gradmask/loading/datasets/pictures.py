"""Images of Pillow as 8-bit pixels, whatever their mode is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_gradmask.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

#: Full white in 16 bits, divided by that in 8 bits.
_SIXTEEN_BITS = 65535 // 255


def eight_bits(image: Image.Image) -> Image.Image:
    """The image in mode L if it is grey with more than 8 bits, otherwise as it is.

    Pillow's own conversion of 16-bit grey cuts off all values above 255, which leaves white.

    Raises:
        DataError: its pixels have no known range.
    """
    from PIL import Image

    if not image.mode.startswith(("I", "F")):
        return image
    pixels: np.ndarray[Any, Any] = np.asarray(image)
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
        raise DataError(
            f"its pixels have the mode {image.mode}, with values from {pixels.min()} to {pixels.max()}, of which white "
            "is not known; store 8 or 16 bits"
        )
    return Image.fromarray(((pixels.astype(np.int64) + _SIXTEEN_BITS // 2) // _SIXTEEN_BITS).astype(np.uint8))


def grey_or_colour(image: Image.Image) -> Image.Image:
    """The image in mode L if it is grey, otherwise in mode RGB; of 8 bits. Raises as `eight_bits` does."""
    image = eight_bits(image)
    return image if image.mode == "L" else image.convert("RGB")
