"""`audits.trained_masks`: ensembles under AutoAttack as published."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from audits.trained_masks import ensembles
from audits.trained_masks.ensembles import MEASURED, attacked_as_published
from audits.trained_masks.package import Dataset

pytestmark = pytest.mark.filterwarnings("ignore")  # of upstream


def weak() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 10)).requires_grad_(False).eval()


def rightly_labelled(count: int) -> Dataset:
    images = 0.3 + 0.4 * torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return Dataset(images, weak()(images).argmax(1), "random")


def test_an_evaluation_goes_on_where_it_ended() -> None:
    front_ends, backbones, data = [nn.Identity()] * 2, [weak()] * 2, rightly_labelled(4)
    state = torch.get_rng_state()
    first, whole = attacked_as_published(front_ends, backbones, data, {}, chunk=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert (first["images"], whole["images"]) == (2, 4)
    assert list(attacked_as_published(front_ends, backbones, data, first, chunk=2)) == [whole]
    assert list(attacked_as_published(front_ends, backbones, data, whole)) == []
    assert [sum(whole[name]) for name in MEASURED] == [4, 0, 0, 0]


def test_what_no_attack_can_change_is_robust(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ensembles, "_THREAT", replace(ensembles._THREAT, eps=1e-6))
    (found,) = attacked_as_published([nn.Identity()] * 2, [weak()] * 2, rightly_labelled(2), {}, version="rand")
    assert [sum(found[name]) for name in MEASURED] == [2, 2, 2, 2]
