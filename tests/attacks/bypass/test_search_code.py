"""The search for parts to bypass: code before a submodule."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.bypass.bpda import bypassed, removed
from pytest_gradmask.attacks.bypass.search import find_bypass
from pytest_gradmask.defense import FromImages
from tests.attacks.bypass.test_bpda import Inline, gradient, quantized
from tests.toys import (
    NearIdentityConv,
    convolutional,
    draw,
)


def scaled(images: Tensor) -> Tensor:
    return (images - 0.5) / 0.25


@pytest.mark.parametrize(
    ("change", "slope"),
    [
        (quantized, 1),
        (torch.detach, 1),
        (lambda images: scaled(quantized(images)), 4),
        (lambda images: 1 - quantized(images), -1),
        (lambda images: images + 0.02 * torch.sin(500 * images), 1),
    ],
    ids=["quantized", "detached", "quantized and scaled", "inverted", "ripple"],
)
def test_code_with_a_misleading_gradient(change: Callable[[Tensor], Tensor], slope: float) -> None:
    model, images = Inline(change, convolutional()).eval(), draw(8, 3, 8, 8)
    found = find_bypass(model, images)
    assert list(found) == ["net"]
    assert isinstance(found["net"], FromImages)
    approximation = found["net"].function
    assert approximation is not None
    point = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(approximation(point).sum(), point)
    torch.testing.assert_close(gradient, torch.full_like(images, slope), rtol=0.05, atol=0)
    assert torch.equal(bypassed(model, found)(images), model(images))


@pytest.mark.parametrize("change", [scaled, lambda images: images.clamp(0, 1), lambda images: images * 1])
def test_code_with_a_useful_gradient(change: Callable[[Tensor], Tensor]) -> None:
    assert find_bypass(Inline(change, convolutional()).eval(), draw(8, 3, 8, 8)) == {}


class Descending(nn.Module):
    """Changes its images along the gradient of its network, and hides the whole change, or only its size."""

    def __init__(self, net: nn.Module, *, hides_images: bool) -> None:
        super().__init__()
        self.net, self.hides_images = net, hides_images

    def forward(self, images: Tensor) -> Tensor:
        point = images.detach().requires_grad_(True)
        with torch.enable_grad():
            (ascent,) = torch.autograd.grad(self.net(point).logsumexp(1).sum(), point)
        return self.net((point.detach() if self.hides_images else images) + 0.01 * ascent.sign())  # type: ignore[no-any-return]


@pytest.mark.parametrize("net", [convolutional, lambda: nn.Sequential(convolutional(), nn.Identity())])
def test_images_that_a_defense_changes_by_its_own_gradient(net: Callable[[], nn.Module]) -> None:
    model, images = Descending(net(), hides_images=True).eval(), draw(8, 3, 8, 8)
    found = find_bypass(model, images)
    assert list(found) == ["net"]
    assert torch.equal(bypassed(model, found)(images), model(images)), "it still gets its own gradient"
    assert (gradient(bypassed(model, found), images) != 0).any()
    assert torch.isfinite(removed(model, found)(images)).all()
    assert find_bypass(Descending(net(), hides_images=False).eval(), images) == {}


def test_code_after_a_front_end() -> None:
    model = nn.Sequential(NearIdentityConv(), Inline(quantized, convolutional())).eval()
    found = find_bypass(model, draw(8, 3, 8, 8))
    assert list(found) == ["0", "1.net"]
    assert found["0"] is None
    assert (gradient(model, draw(8, 3, 8, 8)) == 0).all()
    assert not (gradient(bypassed(model, found), draw(8, 3, 8, 8)) == 0).all()
