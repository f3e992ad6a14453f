"""What an audit takes, leaves behind and returns, whatever its verdict."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from torch import nn

from pytest_gradmask import ThreatModel, Verdict, audit
from pytest_gradmask.auditing.budgets import BUDGETS
from pytest_gradmask.errors import DefenseError, InputError
from tests.toys import (
    IMAGES,
    THREAT,
    TINY,
    Detach,
    Noisy,
    Quantize,
    QuantizeInPlace,
    Spy,
    audited,
    global_state,
    linear,
    masked,
    predictions,
    seed_all,
    timeless,
)


@pytest.mark.parametrize(
    "make",
    [linear, lambda: masked(Quantize), lambda: Noisy(linear(), 0.1).eval()],
    ids=["undefended", "masked", "noisy"],
)
def test_the_seed_decides_whatever_the_global_generators(make: Callable[[], nn.Module]) -> None:
    results = []
    for seed in (1, 2):
        seed_all(seed)
        results.append(timeless(audited(make(), labels=predictions(linear(), IMAGES), seed=3)))
    assert results[0] == results[1]


@pytest.mark.longer
def test_another_seed_draws_other_noise() -> None:
    defense = Noisy(linear(), scale=3.0).eval()
    labels = predictions(linear(), IMAGES)
    results = [timeless(audited(defense, labels=labels, seed=seed, threat=ThreatModel(0.02))) for seed in (1, -2)]
    assert results[0].attacks != results[1].attacks


def test_no_trace_is_left() -> None:
    model = nn.Sequential(QuantizeInPlace(), nn.BatchNorm2d(3), linear()).eval()
    model[1].weight.requires_grad_(False)
    model[1].weight.grad = torch.ones(3)
    images, labels = IMAGES.clone(), predictions(model, IMAGES)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    given = labels.clone()
    before = global_state()
    audit(model, images, labels, threat=THREAT, budget=TINY)
    assert global_state() == before
    assert torch.equal(images, IMAGES)
    assert torch.equal(labels, given)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == ["1.weight"]
    assert [name for name, parameter in model.named_parameters() if parameter.grad is not None] == ["1.weight"]
    assert not any(module.training for module in model.modules())
    assert not any(module._forward_hooks or "forward" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("wrap", [torch.no_grad, torch.enable_grad])
def test_the_callers_grad_mode_does_not_matter(wrap: Callable[[], Any]) -> None:
    with wrap():
        assert audited(linear()).verdict is Verdict.NOT_MASKED
        assert audited(masked(Detach)).verdict is Verdict.MASKED


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"margin": 0}, r"margin=0: must be a share of images"),
        ({"margin": 5}, r"margin=5: must be a share of images between 0 and 1"),
        ({"margin": float("nan")}, r"margin=nan"),
        ({"confidence": 0.5}, r"confidence=0.5: must be between 0.5 and 1"),
        ({"confidence": 99}, r"confidence=99: must be"),
        ({"confidence": "high"}, r"confidence='high': must be"),
        ({"margin": "0.1"}, r"margin='0.1': must be"),
        ({"seed": 1.5}, r"seed=1.5: must be an integer"),
        ({"budget": 3}, r"budget=3: unknown; .* or a Budget of your own"),
        ({"threat": 8 / 255}, r"threat=0.03.*: must be a ThreatModel"),
        ({"device": "gpu"}, r"device='gpu': cannot be used \(RuntimeError\); use cpu, .* this machine has cpu"),
        ({"device": "meta"}, r"device='meta': cannot be used"),
        ({"budget": "huge"}, r"budget='huge': unknown; use one of smoke, ci, full"),
        ({"labels": torch.zeros(3)}, r"labels: dtype is torch.float32"),
        ({"images": IMAGES * 255}, r"divide by 255"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_before_the_model_is_asked(arguments: dict[str, Any], message: str) -> None:
    spy = Spy(linear()).eval()
    images = arguments.pop("images", IMAGES)
    labels = arguments.pop("labels", torch.zeros(24, dtype=torch.int64))
    with pytest.raises(InputError, match=message):
        audit(spy, images, labels, **arguments)
    assert spy.counts == []


def test_margin_and_confidence_decide_the_verdict() -> None:
    strict = audited(linear(), margin=0.1)
    assert strict.verdict is Verdict.INCONCLUSIVE
    assert strict.images_needed == 98
    assert audited(linear(), margin=0.1, confidence=0.9).verdict is Verdict.NOT_MASKED


def test_progress_and_provenance_tell_what_was_done() -> None:
    events: list[object] = []
    result = audited(linear(), seed=7, progress=events.append)
    assert str(events[0]) == "preflight"
    assert "pgd on 24 of 24 images" in map(str, events)
    assert result.provenance["seed"] == 7
    assert result.provenance["threat"] == {"norm": "Linf", "eps": 0.1, "bounds": [0.0, 1.0]}
    assert result.provenance["budget"] == "tiny"
    assert result.provenance["budget_settings"]["apgd_steps"] == TINY.apgd_steps
    assert result.seconds > 0


def test_a_result_is_plain_data() -> None:
    plain = {**asdict(audited(masked(Quantize))), "verdict": None}
    assert json.loads(json.dumps(plain))["margin"] == 0.25


def test_passes_are_counted_per_attack() -> None:
    spy = Spy(linear()).eval()
    result = audited(spy, threat=ThreatModel(1e-6), exhaustive=True)
    done = [attack for attack in result.attacks if attack.status == "done"]
    assert all(attack.forwards > 0 for attack in done)
    assert sum(attack.forwards for attack in done) < sum(spy.counts)
    assert {attack.name for attack in done if attack.backwards == 0} == {"square", "zero-order"}


def test_a_defense_too_large_for_memory() -> None:
    class Huge(nn.Module):
        def forward(self, _: torch.Tensor) -> torch.Tensor:
            raise MemoryError("no room")

    with pytest.raises(DefenseError, match=r"Huge needs more memory than there is.*MemoryError: no room.*another"):
        audit(Huge().eval(), IMAGES, torch.zeros(24, dtype=torch.int64))


def test_a_budget_is_what_its_numbers_are() -> None:
    weak = replace(BUDGETS["full"], apgd_steps=1)
    with pytest.raises(InputError, match=r"budget: name='full' is that of a budget with other numbers"):
        audited(linear(), budget=weak)
    assert BUDGETS["full"].autoattack == "AutoAttack"
    assert replace(weak, name="mine").autoattack == "AutoAttack (mine subset)"
    assert replace(BUDGETS["full"], name="mine", bpda_steps=3).autoattack == "AutoAttack"


def test_the_placebo_matches_what_unbroken_images_faced() -> None:
    # BPDA breaks half of the images at once and leaves them; the others face all of its steps.
    result = audited(masked(Quantize), exhaustive=True)
    adaptive = sum(attack.passes for attack in result.attacks if attack.kind == "adaptive")
    assert result.attack("placebo").passes >= adaptive
    bpda = result.attack("bpda")
    assert (bpda.forwards + bpda.backwards) / len(bpda.attacked) <= bpda.passes
