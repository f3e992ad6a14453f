"""`audits.trained_masks`: the front end, its training and what is kept of a run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from audits.trained_masks.diagnostics import diagnosed, under_stronger_attacks
from audits.trained_masks.front_end import IdentityStart, batch_statistics
from audits.trained_masks.images import _blacken, batch_rows, step_generator
from audits.trained_masks.package import Dataset
from audits.trained_masks.recipes import Recipe, load_recipes
from audits.trained_masks.residuals import Couplings
from audits.trained_masks.results import Log, collect, table
from audits.trained_masks.roughness import of_snapshots, roughness
from audits.trained_masks.storage import save_run, stored_recipe
from audits.trained_masks.training import Run, Seen, new_front_end
from audits.trained_masks.transfer import transfer
from audits.trained_masks.untrained import other_untrained, random_front_end


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small(**values: object) -> Recipe:
    base = Recipe(name="small", backbone="none", depth=4, width=4, batch_size=4, learning_rate=1e-2)
    return replace(base, **values)  # type: ignore[arg-type]


def data(count: int = 16) -> Dataset:
    images = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return Dataset(images, torch.arange(count) % 3, "random")


def backbone() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


def perturbed(front_end: IdentityStart) -> IdentityStart:
    """Not the identity any more, with statistics of its own."""
    with torch.no_grad():
        for parameter in front_end.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
        front_end.train()(data().images)
    return front_end.eval()


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_starts_as_the_identity(normalized: bool, training: bool) -> None:
    front_end = IdentityStart(17, 8, normalized=normalized).train(training)
    assert torch.equal(front_end(data().images), data().images)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("architecture", "depth"), [("unet", 15), ("invertible", 12)])
def test_other_front_ends_start_as_the_identity_too(architecture: str, depth: int, training: bool) -> None:
    front_end = IdentityStart(depth, 8, architecture=architecture, normalized=True).train(training)
    assert torch.allclose(front_end(data().images), data().images, atol=1e-6)
    changed = perturbed(front_end)
    assert not torch.allclose(changed(data().images), data().images, atol=1e-2)
    assert len(front_end.norms()) == (14 if architecture == "unet" else 8)


def test_the_invertible_one_can_be_inverted() -> None:
    front_end = perturbed(IdentityStart(12, 8, architecture="invertible"))
    assert isinstance(front_end.residual, Couplings)
    outputs = front_end(data().images)
    assert torch.allclose(front_end.residual.inverse(outputs), data().images, atol=1e-4)


def test_only_the_readout_is_trained_if_a_recipe_says_so(tmp_path: Path) -> None:
    recipe = small(trained="last")
    run = Run(recipe, backbone(), data(), tmp_path / "run.safetensors")
    run.go_on(2, lambda _: True)
    before = dict(new_front_end(recipe).named_parameters())
    changed = {name for name, value in run.front_end.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {f"residual.{len(run.front_end.residual) - 1}.weight"}  # type: ignore[arg-type]


def test_subtracts_its_residual() -> None:
    front_end = perturbed(IdentityStart(4, 4))
    images = data().images
    assert torch.allclose(front_end(images), images - front_end.residual(images), atol=1e-5)
    assert not torch.allclose(front_end(images), images, atol=1e-2)


def test_a_normalized_one_adds_at_most_a_deviation() -> None:
    """A normalized one adds no more than a deviation of what it sees."""
    front_end = perturbed(IdentityStart(4, 4, normalized=True))
    images = data().images
    wanted = images - front_end.std * front_end.residual((images - front_end.mean) / front_end.std)
    assert torch.allclose(front_end(images), wanted, atol=1e-5)


def test_batch_norm_is_set_as_in_the_authors_toolkit() -> None:
    front_end = IdentityStart()
    norms = front_end.norms()
    assert len(norms) == 15
    assert {(norm.num_features, norm.eps, norm.momentum) for norm in norms} == {(64, 1e-4, 0.95)}
    convolutions = [module for module in front_end.residual.modules() if isinstance(module, nn.Conv2d)]
    assert [layer.bias is not None for layer in convolutions] == [True] + [False] * 16
    flat = convolutions[1].weight.detach().flatten(1)
    assert torch.allclose(flat @ flat.T, torch.eye(64), atol=1e-4)


def test_statistics_of_a_batch_are_used_without_being_kept() -> None:
    front_end = perturbed(IdentityStart(4, 4))
    before = {name: value.clone() for name, value in front_end.state_dict().items()}
    images = data().images + 0.5
    running = front_end(images)
    with batch_statistics(front_end):
        assert not torch.allclose(front_end(images), running, atol=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in front_end.state_dict().items())
    assert torch.equal(front_end(images), running)
    assert front_end.norms()[0].momentum == 0.95


@pytest.mark.parametrize("values", [{}, {"optimizer": "sgd", "loss": "sum", "erase": True}])
def test_a_resumed_run_ends_as_one_that_was_never_stopped(tmp_path: Path, values: dict[str, object]) -> None:
    whole = Run(small(**values), backbone(), data(), tmp_path / "whole.safetensors")
    whole.go_on(3, lambda _: True)
    part = Run(small(**values), backbone(), data(), tmp_path / "part.safetensors")
    part.go_on(2, lambda _: True)
    part.save()
    resumed = Run(small(**values), backbone(), data(), tmp_path / "part.safetensors")
    assert resumed.step == 2
    assert stored_recipe(resumed.file) == small(**values)
    resumed.go_on(3, lambda _: True)
    expected = whole.front_end.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.front_end.state_dict().items())
    assert not torch.equal(expected["residual.0.weight"], new_front_end(small()).state_dict()["residual.0.weight"])


def test_the_backbone_stays_as_it_is(tmp_path: Path) -> None:
    net = nn.Sequential(nn.BatchNorm2d(3), backbone())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    run = Run(small(), net, data(), tmp_path / "run.safetensors")
    run.go_on(2, lambda _: True)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_proceed_stops_a_run(tmp_path: Path) -> None:
    run = Run(small(), backbone(), data(), tmp_path / "run.safetensors")
    run.go_on(4, lambda seen: seen.step < 2)
    assert run.step == 2
    assert run.total == 4


def test_an_epoch_takes_each_image_once() -> None:
    rows = torch.cat([batch_rows(16, 4, step, seed=0) for step in range(4)])
    assert sorted(rows.tolist()) == list(range(16))
    assert batch_rows(16, 4, 4, seed=0).tolist() != batch_rows(16, 4, 0, seed=0).tolist()


def test_erasing_blackens_a_tenth_to_a_quarter() -> None:
    images = torch.ones(50, 3, 32, 32)
    shares: list[float] = []
    for image in images:
        _blacken(image, step_generator(0, len(shares)))
        shares.append((image == 0).float().mean().item())
    assert min(shares) > 0.09
    assert max(shares) < 0.27


def test_figures_of_the_identity() -> None:
    front_end, net = IdentityStart(4, 4).eval(), backbone().eval().requires_grad_(False)
    figures = diagnosed(front_end, net, data(), steps=2)
    assert figures["images"] == 16
    for statistics in ("running", "batch"):
        own = figures[statistics]
        assert own["residual_sd"] == 0
        assert own["residual_gain_random"] == 0
        assert own["front_end_gain_gradient"] == pytest.approx(1)
        assert own["cosine"] == pytest.approx(1)
        assert own["pgd"] == own["bpda"]


def test_figures_of_a_front_end_that_doubles() -> None:
    class Doubling(IdentityStart):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return 2 * images

    own = diagnosed(Doubling(4, 4).eval(), backbone().eval().requires_grad_(False), data(), steps=1)["running"]
    assert own["front_end_gain_random"] == pytest.approx(2, rel=1e-5)
    assert own["residual_gain_gradient"] == pytest.approx(1, rel=1e-5)
    assert own["cosine"] == pytest.approx(1)


def test_stronger_attacks_leave_no_more_than_there_was() -> None:
    net = backbone().eval().requires_grad_(False)
    figures = under_stronger_attacks(IdentityStart(4, 4).eval().requires_grad_(False), net, data(), steps=3)
    assert set(figures) == {"clean", "pgd", "pgd_fine", "apgd", "apgd_restarts"}
    assert max(figures.values()) == figures["clean"]
    assert figures["apgd_restarts"] <= figures["apgd"]


def test_residual_of_an_untrained_front_end() -> None:
    """An untrained front end has the residual that was asked for."""
    images = data().images
    front_end = random_front_end(images, 0.02, depth=5, normalized=True, seed=0)
    assert (images - front_end(images)).std().item() == pytest.approx(0.02, rel=1e-3)


def test_what_is_kept_of_a_run(tmp_path: Path) -> None:
    options = argparse.Namespace(data="imagefolder:/somewhere/train", test="npz:/somewhere/test.npz")
    log = Log(tmp_path / "small.jsonl", options)
    log.start(small(), 0, 4)
    log.trained([Seen(1, 2.0, 0.5), Seen(2, 1.0, 1.0)])
    figures = diagnosed(new_front_end(small()).eval(), backbone().requires_grad_(False), data(), steps=1)
    log.measured(2, figures)
    log.measured(2, figures)
    lines = [json.loads(line) for line in (tmp_path / "small.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["kind"] for line in lines] == ["start", "training", "measurement", "measurement"]
    kept = json.loads(collect(tmp_path / "small.jsonl", tmp_path / "results").read_text(encoding="utf-8"))
    assert kept["training"] == [{"step": 2, "loss": 1.5, "accuracy": 0.75, "steps": 2}]
    assert len(kept["measurement"]) == 1
    expected = (
        "clean pgd bpda loss residual_sd residual_tint_sd gradient_norm front_end_gain_random residual_gain_random "
        "front_end_gain_gradient residual_gain_gradient cosine cosine_at_images"
    )
    assert set(kept["measurement"][0]["running"]) == set(expected.split())
    assert "somewhere" not in json.dumps(kept)
    assert "small (running)" in table(tmp_path / "results")


def test_a_later_log_adds_to_a_result(tmp_path: Path) -> None:
    options = argparse.Namespace(data="imagefolder:train", test="npz:test.npz")
    figures = diagnosed(new_front_end(small()).eval(), backbone().requires_grad_(False), data(), steps=1)
    first = Log(tmp_path / "first" / "small.jsonl", options)
    first.start(small(), 0, 4)
    first.trained([Seen(2, 1.0, 1.0)])
    first.measured(2, figures)
    collect(tmp_path / "first" / "small.jsonl", tmp_path / "results")
    later = Log(tmp_path / "later" / "small.jsonl", options)  # of a measurement alone, on more images
    later.measured(2, {**figures, "images": 32})
    kept = json.loads(collect(tmp_path / "later" / "small.jsonl", tmp_path / "results").read_text(encoding="utf-8"))
    assert [(line["step"], line["images"]) for line in kept["measurement"]] == [(2, 16), (2, 32)]
    assert [line["step"] for line in kept["training"]] == [2]
    assert kept["recipe"]["name"] == "small"


def test_a_log_of_unknown_or_other_training_is_refused(tmp_path: Path) -> None:
    options = argparse.Namespace(data="imagefolder:train", test="npz:test.npz")
    Log(tmp_path / "small.jsonl", options).measured(2, {"images": 16})
    with pytest.raises(ValueError, match="train the run first"):
        collect(tmp_path / "small.jsonl", tmp_path / "results")
    Log(tmp_path / "small.jsonl", options).start(small(), 0, 4)
    collect(tmp_path / "small.jsonl", tmp_path / "results")
    Log(tmp_path / "small.jsonl", options).start(small(depth=5), 0, 4)
    with pytest.raises(ValueError, match="another name"):
        collect(tmp_path / "small.jsonl", tmp_path / "results")


def test_every_recipe_is_one() -> None:
    recipes = load_recipes()
    assert all(name == recipe.name for name, recipe in recipes.items())
    with pytest.raises(ValueError, match="optimizer='adam'"):
        small(optimizer="adam")


def test_roughness_does_not_depend_on_the_size_of_the_residual() -> None:
    images = data().images

    class Scaled(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.scale = scale

        def forward(self, given: torch.Tensor) -> torch.Tensor:
            return given - self.scale * given

    small_one, large_one = (roughness(Scaled(scale), images) for scale in (0.01, 0.1))
    assert small_one["roughness"] == pytest.approx(1, rel=1e-3)
    assert large_one["roughness"] == pytest.approx(1, rel=1e-3)
    assert large_one["residual_sd"] == pytest.approx(10 * small_one["residual_sd"], rel=1e-3)
    assert roughness(IdentityStart(4, 4).eval(), images)["roughness"] == 0


def test_layers_stay_rough_under_a_smooth_readout(tmp_path: Path) -> None:
    front_end = IdentityStart(17, 8)
    save_run(tmp_path / "one.safetensors", front_end, None, 3, small(depth=17, width=8))
    (row,) = of_snapshots([tmp_path / "one.safetensors"], torch.rand(4, 3, 16, 16))
    assert (row["run"], row["step"], row["roughness"]) == ("small", 3, 0)
    assert row["layers"] > 5


def test_attacks_transfer_between_equal_front_ends() -> None:
    shared = backbone().eval().requires_grad_(False)
    front_ends = {name: IdentityStart(depth=3, width=4).eval().requires_grad_(False) for name in ("first", "second")}
    found = transfer(front_ends, dict.fromkeys(front_ends, shared), data())
    for attack in ("gradient", "bpda"):
        assert found[attack]["first"]["second"] == found[attack]["first"]["first"], "both are the identity"
    assert found["common"] <= found["images"] == 16
    assert found["ensemble"]["pgd"] <= found["ensemble"]["clean"]


def test_others_are_as_far_from_the_identity_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audits.trained_masks.untrained.OTHERS", (("unet", 10, 4), ("invertible", 6, 4)))
    rows = other_untrained(backbone().eval().requires_grad_(False), data(), data(), 0.02)
    assert [row["architecture"] for row in rows] == ["unet", "invertible"]
    assert all(row["residual_sd"] == pytest.approx(0.02, rel=0.05) for row in rows)
    assert all(row["roughness"] > 0 and row["images"] == 16 for row in rows)
