"""AutoAttack's attacks through our wrappers: strong, and without upstream's side effects."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pytest_gradmask.attacks import autoattack
from pytest_gradmask.threat import Norm, ThreatModel
from tests.toys import convolutional, draw, global_state, half_problem, linear, oracle, predictions, seed_all, seeded

Attack = Callable[..., Tensor]

#: Each with enough steps for a linear model, and the fewest classes it can attack.
WRAPPERS: dict[str, tuple[Attack, int]] = {
    "apgd-ce": (partial(autoattack.apgd_ce, steps=10), 2),
    "apgd-dlr": (partial(autoattack.apgd_dlr, steps=10), 3),
    "apgd-t": (partial(autoattack.apgd_t, steps=10, targets=3), 4),
    "fab-t": (partial(autoattack.fab_t, steps=10, targets=1), 2),
    "square": (partial(autoattack.square, steps=150), 2),
}
NORMS: list[Norm] = ["Linf", "L2"]
every_wrapper = pytest.mark.parametrize("name", WRAPPERS)
both_norms = pytest.mark.parametrize("norm", NORMS)


def ball(norm: Norm, eps: float = 0.1, bounds: tuple[float, float] = (0.0, 1.0)) -> ThreatModel:
    """A ball in which the linear toy can be broken, in either norm."""
    return ThreatModel(eps if norm == "Linf" else eps * 192**0.5, norm, bounds)


def problem(classes: int = 4, count: int = 8) -> tuple[nn.Module, Tensor, Tensor]:
    model, images = linear(classes), draw(count, 3, 8, 8)
    return model, images, predictions(model, images)


@pytest.mark.parametrize(
    ("name", "classes"),
    [(name, classes) for name, (_, fewest) in WRAPPERS.items() for classes in (2, 3, 4, 6) if classes >= fewest],
)
@both_norms
def test_images_are_broken_inside_the_ball(name: str, norm: Norm, classes: int) -> None:
    attack = WRAPPERS[name][0]
    model, images, labels = problem(classes)
    threat = ball(norm)
    found = attack(model, images, labels, threat=threat, generator=seeded())
    assert found.shape == images.shape
    assert threat.contains(found, images).all()
    assert not found.requires_grad
    # FAB with one of several target classes and Square with few queries may miss some.
    enough = 2 if name in ("fab-t", "square") else 8
    assert int((predictions(model, found) != labels).sum()) >= enough


@pytest.mark.parametrize("name", ["apgd-ce", "fab-t"])
@both_norms
def test_images_break_exactly_above_their_boundary_distance(name: str, norm: Norm) -> None:
    model, images, labels = half_problem(6, (1, 4, 4), norm, distance=0.02)
    attack = partial(WRAPPERS[name][0], steps=40)
    for eps, broken in ((0.02 * 1.05, True), (0.02 * 0.999, False)):
        threat = ThreatModel(eps, norm, (-10.0, 10.0))
        found = attack(model, images, labels, threat=threat, generator=seeded())
        assert threat.contains(found, images).all()
        assert ((predictions(model, found) != labels) == broken).all()


@every_wrapper
@both_norms
@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (0.0, 255.0), (-2.5, 0.5)], ids=str)
def test_bounds_are_those_of_the_threat_model(name: str, norm: Norm, bounds: tuple[float, float]) -> None:
    class Rescale(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            assert images.min() >= low - 1e-4 * width
            assert images.max() <= high + 1e-4 * width
            return (images - low) / width

    low, high = bounds
    width = high - low
    model, images, labels = problem()
    threat = ball(norm, 0.1 * width, bounds)
    stretched = images * width + low
    scaled = nn.Sequential(Rescale(), model)
    found = WRAPPERS[name][0](scaled, stretched, labels, threat=threat, generator=seeded())
    assert threat.contains(found, stretched).all()
    assert int((predictions(scaled, found) != labels).sum()) >= 4


@every_wrapper
@both_norms
def test_one_image(name: str, norm: Norm) -> None:
    model, images, labels = problem(count=1)
    found = WRAPPERS[name][0](model, images, labels, threat=ball(norm), generator=seeded())
    assert ball(norm).contains(found, images).tolist() == [True]


@every_wrapper
@both_norms
def test_permuted_images(name: str, norm: Norm) -> None:
    model, images, labels = problem()
    permuted = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert not permuted.is_contiguous()
    run = partial(WRAPPERS[name][0], model, labels=labels, threat=ball(norm))
    torch.testing.assert_close(run(permuted, generator=seeded()), run(images, generator=seeded()))


@every_wrapper
@pytest.mark.parametrize("labels", ["none correct", "one correct"])
def test_misclassified_clean_images(name: str, labels: str) -> None:
    model, images, truth = problem()
    given = (truth + 1) % 4
    if labels == "one correct":
        given[3] = truth[3]
    threat = ball("Linf")
    found = WRAPPERS[name][0](model, images, given, threat=threat, generator=seeded())
    assert threat.contains(found, images).all()


@every_wrapper
def test_tensors_of_the_caller_are_unchanged(name: str) -> None:
    model, images, labels = problem()
    before = images.clone(), labels.clone()
    WRAPPERS[name][0](model, images, labels, threat=ball("Linf"), generator=seeded())
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])


@every_wrapper
def test_global_generators_are_not_used(name: str) -> None:
    model, images, labels = problem()
    results = []
    for seed in (1, 2):
        seed_all(seed)
        before = global_state()
        results.append(WRAPPERS[name][0](model, images, labels, threat=ball("Linf", 0.02), generator=seeded()))
        assert global_state() == before
    assert torch.equal(*results)


@every_wrapper
def test_generators_are_restored_if_the_model_raises(name: str) -> None:
    class Brittle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.calls = linear(), 0

        def forward(self, images: Tensor) -> Tensor:
            self.calls += 1
            if self.calls > 3:
                raise RuntimeError("too many calls")
            return self.model(images)  # type: ignore[no-any-return]

    _, images, labels = problem()
    brittle = Brittle()
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="too many calls"):
        WRAPPERS[name][0](brittle, images, labels, threat=ball("Linf", 0.01), generator=seeded())
    assert torch.equal(torch.get_rng_state(), before)


@every_wrapper
def test_the_seed_decides(name: str) -> None:
    # Not a linear model, for which all starts lead to the same corner of the ball.
    model, images = convolutional(), draw(8, 3, 8, 8)
    run = partial(WRAPPERS[name][0], model, images, predictions(model, images), threat=ball("Linf"))
    assert torch.equal(run(generator=seeded(1)), run(generator=seeded(1)))
    if name != "fab-t":  # which starts at the image itself
        assert not torch.equal(run(generator=seeded(1)), run(generator=seeded(2)))


@every_wrapper
def test_nothing_is_logged_or_printed(
    name: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    model, images, labels = problem()
    zero = linear()
    for parameter in zero.parameters():
        nn.init.zeros_(parameter)  # upstream warns about zero gradients
    with caplog.at_level(logging.DEBUG):
        for attacked in (model, zero):
            WRAPPERS[name][0](attacked, images, labels, threat=ball("Linf"), generator=seeded())
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def tracer() -> Iterator[Any]:
    """Install a trace function, as coverage and debuggers do."""

    def trace(frame: FrameType, event: str, arg: Any) -> None:
        del frame, event, arg

    before = sys.gettrace()
    sys.settrace(trace)
    yield trace
    sys.settrace(before)


@every_wrapper
def test_the_tracer_is_kept(name: str, tracer: Any) -> None:
    model, images, labels = problem(count=2)
    WRAPPERS[name][0](model, images, labels, threat=ball("Linf"), generator=seeded())
    kept = sys.gettrace()
    assert kept is tracer


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-dlr", "apgd-t"])
def test_eot_takes_more_passes(name: str) -> None:
    model, images, labels = problem()
    spent = []
    for eot in (1, 4):
        target = oracle(model)
        WRAPPERS[name][0](target, images, labels, threat=ball("Linf", 0.001), generator=seeded(), eot=eot)
        spent.append(target.backwards)
    assert spent[1] == 4 * spent[0] > 0


@pytest.mark.parametrize("queries", [20, 100])
def test_square_respects_its_number_of_queries(queries: int) -> None:
    model, images, labels = problem()
    target = oracle(model)
    autoattack.square(target, images, labels, threat=ball("Linf", 0.001), steps=queries, generator=seeded())
    assert target.backwards == 0
    assert target.forwards <= len(images) * (queries + 3)
