"""What code of the user raises, in words that say whose code it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from pytest_gradmask.errors import DefenseError, GradmaskError
from pytest_gradmask.execution.batching import out_of_memory


@contextmanager
def errors_attributed_to(name: str, images: Tensor) -> Iterator[None]:
    """Turn exceptions inside the block into an error with the name of the model.

    Out-of-memory errors and the errors of this package are passed on unchanged.

    Raises:
        DefenseError: the block raises another exception.
    """
    try:
        yield
    except GradmaskError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        raise DefenseError(
            f"{name} raised {type(error).__name__} on images of shape {tuple(images.shape)}: {error}"
        ) from error
