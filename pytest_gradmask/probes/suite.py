"""All probes that ask the defense, in one go."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

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
from pytest_gradmask.threat import ThreatModel
from pytest_gradmask.verdict.results import Finding

#: ``probe(model, images, labels, *, threat, generator)`` returns findings.
Probe = Callable[..., Iterable[Finding]]

_EOT = 4  # forwards to average where a randomized defense cannot be frozen


def probe_defense(
    oracle: Oracle,
    images: torch.Tensor,
    labels: torch.Tensor,
    threat: ThreatModel,
    generator: torch.Generator,
    randomized: bool = False,
) -> list[Finding]:
    """Look for symptoms of gradient masking on at most 12 images.

    They share one short path, and but for it look only at images that it does not break. An image that breaks at
    once costs 3 passes each way; one that nothing breaks at most 15 + 24 + 10 + 1 + 42 forwards and
    14 + 40 backwards. The derivative check adds about 10 forwards and 2 passes each way of four images in float64.

    A randomized defense is looked at with its random numbers frozen (Carlini et al. 2019, section 3.2: attacks have
    to succeed if the randomness is fixed). One that keeps a generator of its own cannot be; then the
    probes that compare losses are left out, whose differences would be its noise.

    Args:
        oracle: the defense.
        images, labels: N x C x H x W and N, classified correctly.
        threat: where attacks may search.
        generator: of every random choice; a CPU generator.
        randomized: whether the same image gets different logits.
    """
    with oracle.frozen():
        steady = not randomized or _repeats(oracle, images)
        eot = 1 if steady else _EOT
        trace = trace_pgd(oracle, images, labels, threat, generator, eot, whole=randomized)
        findings = [
            *optimizes_at_inference(oracle, images),
            *zero_gradient(oracle, trace),
            *nan_gradient(trace),
            *vanishing_gradient(trace),
            *exploding_gradient(trace),
            *saturated_logits(trace),
            *tiny_logits(trace),
        ]
        if steady:
            findings += [
                *gradient_noise(oracle, trace, generator),
                *random_search(oracle, trace, generator),
                *one_step(oracle, trace),
                *no_fall_with_eps(trace),
                *silent_success(trace),
            ]
        findings += unbounded_attack(oracle, trace, generator, eot)
        if steady:
            first = torch.argsort((~trace.standing(1.0)).int(), stable=True)  # the images that attacks are about
            own = torch.Generator().manual_seed(generator.initial_seed())
            findings += wrong_gradient(oracle, trace.images[first], threat, own)
        return findings


def ask(
    probe: Probe,
    oracle: Oracle,
    images: torch.Tensor,
    labels: torch.Tensor,
    threat: ThreatModel,
    generator: torch.Generator,
) -> list[Finding]:
    """What a probe of the user's finds. If it fails, that is a finding, too: nobody knows what it would have found."""
    name = getattr(probe, "__name__", repr(probe))
    try:
        found = list(probe(oracle, images, labels, threat=threat, generator=generator))
        strange = next((each for each in found if not isinstance(each, Finding)), None)
    except Exception as error:
        return [Finding("probe-fails", f"{name} raises {type(error).__name__}: {error}", True)]
    if strange is not None:
        return [Finding("probe-fails", f"{name} returns {strange!r}, which is not a Finding", True)]
    return found


def _repeats(oracle: Oracle, images: torch.Tensor) -> bool:
    with torch.no_grad():
        first, second = oracle(images[:1]), oracle(images[:1])
    return torch.allclose(first, second, rtol=1e-3, atol=1e-6, equal_nan=True)
