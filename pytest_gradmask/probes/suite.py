"""All probes that query the defense."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.probes.derivative import wrong_gradient
from pytest_gradmask.probes.gradients import exploding_gradient, nan_gradient, vanishing_gradient, zero_gradient
from pytest_gradmask.probes.inference import optimizes_at_inference
from pytest_gradmask.probes.logits import saturated_logits, tiny_logits
from pytest_gradmask.probes.noise import gradient_noise
from pytest_gradmask.probes.search import (
    no_fall_with_eps,
    one_step,
    random_search,
    silent_success,
    unbounded_attack,
)
from pytest_gradmask.probes.trace import trace_pgd
from pytest_gradmask.threat import PerturbationSet, ThreatModel
from pytest_gradmask.verdict.results import Finding

_EOT = 4  # forward passes to average if a randomized defense cannot be frozen


class Probe(Protocol):
    """A probe of the user: ``probe(model, images, labels, *, threat, generator)`` returns findings."""

    def __call__(
        self, model: Oracle, images: Tensor, labels: Tensor, /, *, threat: PerturbationSet, generator: torch.Generator
    ) -> Iterable[Finding]:
        """Query the defense, and return a finding for each symptom; see `probe_defense` for the arguments."""


def probe_defense(
    oracle: Oracle,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    generator: torch.Generator,
    *,
    randomized: bool = False,
) -> list[Finding]:
    """Test for symptoms of gradient masking on at most 12 images.

    All probes share one PGD trace. Otherwise they only query images that the trace does not break. An image that
    breaks at once costs 3 passes each way. An image that never breaks costs at most 15 + 24 + 10 + 1 + 42 forward and
    14 + 40 backward passes, and where one step beats many of the trace another 11 and 10. The derivative check adds
    about 10 forward passes, and 2 passes each way, of four images in float64.

    A randomized defense is probed with its random numbers frozen: attacks have to succeed if the randomness is fixed
    (Carlini et al. 2019, arXiv:1902.06705, section 3.2). A defense with a random generator of its own cannot be frozen.
    Then the probes that compare losses are left out, because they would measure its noise.

    Args:
        oracle: the defense.
        images, labels: N x C x H x W and N, classified correctly.
        threat: where attacks may search.
        generator: of every random choice; a CPU generator.
        randomized: whether the same image gets different logits.
    """
    with oracle.frozen():
        repeatable = not randomized or _repeats(oracle, images)
        eot = 1 if repeatable else _EOT
        trace = trace_pgd(oracle, images, labels, threat, generator, eot=eot, all_active=randomized)
        findings = [
            *optimizes_at_inference(oracle, images),
            *zero_gradient(oracle, trace),
            *nan_gradient(trace),
            *vanishing_gradient(trace),
            *exploding_gradient(trace),
            *saturated_logits(trace),
            *tiny_logits(trace),
        ]
        if repeatable:
            findings += [
                *gradient_noise(oracle, trace, generator),
                *random_search(oracle, trace, generator),
                *one_step(oracle, trace),
                *no_fall_with_eps(trace),
                *silent_success(trace),
            ]
        findings += unbounded_attack(oracle, trace, generator, eot=eot)
        if repeatable:
            first = torch.argsort((~trace.survivors(1.0)).int(), stable=True)  # survivors first
            directions = torch.Generator().manual_seed(generator.initial_seed())
            findings += wrong_gradient(oracle, trace.images[first], threat, directions)
        return findings


def run_probe(
    probe: Probe,
    oracle: Oracle,
    images: Tensor,
    labels: Tensor,
    threat: PerturbationSet,
    generator: torch.Generator,
) -> list[Finding]:
    """The findings of a user's probe. A probe that fails is a finding itself, because its findings are then unknown."""
    name = getattr(probe, "__name__", repr(probe))
    try:
        findings = list(probe(oracle, images, labels, threat=threat, generator=generator))
        invalid = next((found for found in findings if not isinstance(found, Finding)), None)
    except Exception as error:  # the probe is the user's
        return [Finding("probe-fails", f"{name} raises {type(error).__name__}: {error}", undermines_attacks=True)]
    if invalid is not None:
        return [Finding("probe-fails", f"{name} returns {invalid!r}, which is not a Finding", undermines_attacks=True)]
    return findings


def _repeats(oracle: Oracle, images: Tensor) -> bool:
    with torch.no_grad():
        first, second = oracle(images[:1]), oracle(images[:1])
    return torch.allclose(first, second, rtol=1e-3, atol=1e-6, equal_nan=True)
