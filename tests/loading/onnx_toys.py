"""A linear classifier as an ONNX file, written by hand: the protocol buffers of onnx.proto without its package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def _varint(number: int) -> bytes:
    low, high = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _varint(high) if high else bytes([low])


def _field(number: int, value: int | str | bytes) -> bytes:
    """One field: a whole number, or a text, bytes or another message with their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _tensor(name: str, array: np.ndarray[Any, Any]) -> bytes:
    dims = b"".join(_field(1, size) for size in array.shape)
    return dims + _field(2, 1) + _field(8, name) + _field(9, np.ascontiguousarray(array, dtype="<f4").tobytes())


def _value(name: str, *dims: int | str) -> bytes:
    shape = b"".join(_field(1, _field(2 if isinstance(size, str) else 1, size)) for size in dims)
    return _field(1, name) + _field(2, _field(1, _field(1, 1) + _field(2, shape)))


def _node(operator: str, inputs: Sequence[str], output: str) -> bytes:
    return b"".join(_field(1, each) for each in inputs) + _field(2, output) + _field(4, operator)


def linear_onnx(weight: np.ndarray[Any, Any], bias: np.ndarray[Any, Any], inputs: Sequence[str] = ("images",)) -> bytes:
    """A model of opset 13: ``flatten(images) @ weight.T + bias``; further inputs are not used."""
    graph = _field(1, _node("Flatten", inputs[:1], "flat"))
    graph += _field(1, _node("MatMul", ("flat", "weight"), "products"))
    graph += _field(1, _node("Add", ("products", "bias"), "logits"))
    graph += _field(2, "linear") + _field(5, _tensor("weight", weight.T)) + _field(5, _tensor("bias", bias))
    for name in inputs:
        graph += _field(11, _value(name, "N", 3, 8, 8))
    graph += _field(12, _value("logits", "N", len(bias)))
    return _field(1, 8) + _field(8, _field(2, 13)) + _field(7, graph)
