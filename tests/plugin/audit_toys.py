"""A ``conftest.py`` for tests of what the plugin does with audits: an audit of a toy takes no time."""

from __future__ import annotations

#: The name of the defense is the verdict of its audit; an audit of anything else raises.
CONFTEST = """
import pytest
import torch
from pytest_gradmask import Audit, Defense, InputError, Verdict

def audit(defense, images, labels, *, test, **_):
    if defense.name not in Verdict.__members__:
        raise InputError(f"images: there are none for {defense.name}")
    return Audit(
        defense=defense.name, verdict=Verdict[defense.name], reasons=("it is what it is",), clean=(True, True),
        attacks=(), gap=None, findings=(), images_needed=None, margin=0.25, confidence=0.99, test=test,
        provenance={
            "versions": {}, "device": "cpu", "seed": 0, "images": 2, "images_hash": "0" * 64, "budget": "smoke",
            "threat": {"norm": "Linf", "eps": 0.1, "bounds": [0.0, 1.0]}, "budget_settings": {}, "autoattack": "none",
        },
    )

@pytest.fixture(autouse=True)
def no_attacks(monkeypatch):
    monkeypatch.setattr("pytest_gradmask.auditing.run.audit", audit)

@pytest.fixture
def audited(gradmask):
    return lambda name: gradmask.audit(Defense(torch.nn.Identity(), name=name), torch.zeros(2, 1, 1, 1), torch.zeros(2))
"""
RUN = ("--gradmask", "--gradmask-device=cpu", "--gradmask-no-cache", "-p", "no:xdist")
