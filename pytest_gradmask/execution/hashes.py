"""Hashes of plain values and tensors, of which fingerprints are made."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pytest_gradmask.errors import GradmaskError


class FingerprintError(GradmaskError):
    """An object cannot be hashed; the message names it."""


def hashed(*parts: str | bytes) -> bytes:
    """SHA-256 of parts, of which each counts with its length."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode(errors="surrogatepass") if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little"))
        total.update(data)
    return total.digest()


def hash_of_plain(value: object) -> bytes:
    """Hash of a number, a text or another plain value."""
    name = value.decode(errors="surrogateescape") if isinstance(value, bytes) else value
    # A text may be the name of a variable. Shells set "_" to the path of the last command.
    if isinstance(name, str) and name != "_" and "\0" not in name and name in os.environ:
        return hashed(type(value).__name__, name, os.environ[name])
    return hashed(type(value).__name__, repr(value))


def content_of_plain(kind: type, value: Any) -> Iterable[object]:
    """What an object of a subclass of a plain type has of that type."""
    return (kind.__repr__(value),)  # type: ignore[call-arg]


def hash_of_tensor(tensor: Tensor) -> bytes:
    """Hash of the values, the shape and the type of a tensor.

    Raises:
        FingerprintError: it is sparse, quantized, nested, or has no values.
    """
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_nested:
        raise FingerprintError(f"a tensor of layout {tensor.layout}")
    with torch._C.DisableTorchFunctionSubclass():
        values = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        data = values.reshape(-1).view(torch.uint8).numpy() if values.numel() else np.zeros(0, np.uint8)
        return hashed("tensor", repr((values.dtype, tuple(values.shape))), data.tobytes())
