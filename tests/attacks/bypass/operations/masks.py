"""Front ends whose code hides the gradient, one way each, in the middle of a function.

A comment ``# hides: NAME, ...`` names what is found on its line. Images are in [0, 1], and so is what a mask returns.
"""

from __future__ import annotations

# Each of these modules adds its masks to the table.
from tests.attacks.bypass.operations import masks_of_choices, masks_of_gradients, masks_of_numbers, masks_outside
from tests.attacks.bypass.operations.masked import MASKS, Masked

PARTS = (masks_of_choices, masks_of_gradients, masks_of_numbers, masks_outside)

__all__ = ["MASKS", "PARTS", "Masked"]
