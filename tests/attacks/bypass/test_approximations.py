"""Approximations that are fitted to what a part does."""

from __future__ import annotations

import torch

from pytest_gradmask.attacks.bypass.approximations import fit_affine, fit_convolution
from tests.toys import (
    draw,
)


def test_fit_affine() -> None:
    images = draw(4, 3, 8, 8)
    slope, offset = torch.tensor([2.0, -1.0, 0.5]).view(1, 3, 1, 1), torch.tensor([0.1, 1.0, 0.0]).view(1, 3, 1, 1)
    approximation, error = fit_affine(images, images * slope + offset)
    assert error < 1e-5
    torch.testing.assert_close(approximation(images), images * slope + offset)
    assert fit_affine(images, draw(4, 3, 8, 8, seed=1))[1] > 0.9


def test_no_fit_to_noise_or_another_size() -> None:
    images = draw(8, 3, 16, 16)
    assert fit_convolution(images, draw(8, 3, 16, 16, seed=1), seed=0) is None
    assert fit_convolution(images, images[:, :, ::2], seed=0) is None
    assert fit_convolution(images, torch.ones(8, 3, 16, 16), seed=0) is None


def test_seed_decides_the_fit() -> None:
    images = draw(8, 3, 8, 8)
    first, again, other = (fit_convolution(images, 1 - images, seed=seed) for seed in (0, 0, 1))
    assert first is not None
    assert again is not None
    assert other is not None
    assert torch.equal(first(images), again(images))
    assert not torch.equal(first(images), other(images))
