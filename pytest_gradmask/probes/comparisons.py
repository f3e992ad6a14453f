"""Findings from comparing the attacks of an audit with one another: pure functions, no torch.

Attacks are grouped by what they see of the defense (`threat.Access`), never by their names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from pytest_gradmask.threat import Access
from pytest_gradmask.verdict.results import AttackResult, Finding, Operation
from pytest_gradmask.verdict.stats import mcnemar_p

#: Share of images, and how many, that the placebo may break before the gradient attacks count as not converged.
_CONVERGED, _FEWEST = 0.01, 2


def compare_attacks(
    results: Sequence[AttackResult],
    total: int,
    confidence: float,
    *,
    hidden_by: Mapping[str, Sequence[Operation]] = MappingProxyType({}),
) -> list[Finding]:
    """All findings from the results of attacks alone.

    None of them refuses ``NOT_MASKED``: the verdict measures the same differences against its margin, and a difference
    of a percentage point or two between attacks is normal.

    Args:
        results: every attack of an audit.
        total: images of the audit.
        confidence: in (0.5, 1), of every test.
        hidden_by: the operations that an attack, by name, gives another gradient.
    """
    if not any(result.kind == "gradient" and result.status == "done" for result in results):
        return []  # without a gradient attack there is nothing to compare the others with
    by_gradient = {index for result in results if result.kind == "gradient" for index in result.broken}
    # On a randomized defense, others also attack an image that a gradient attack broke, but not in every forward.
    # Those that are deferred have not been tried on all images. What the placebo breaks elsewhere says nothing of them.
    gradient = [result for result in results if result.kind == "gradient" and result.status != "skipped"]
    tried = set(gradient[0].attacked).intersection(*(result.attacked for result in gradient))
    results = [
        replace(result, broken=tuple(index for index in result.broken if index not in by_gradient))
        for result in results
        if result.kind != "gradient" and result.status == "done"
    ]
    return [
        *black_box_beats_white_box(results, confidence),
        *transfer_beats_white_box(results, confidence),
        *hidden_gradient(results, hidden_by, confidence),
        *bypass_beats_white_box([result for result in results if result.name not in hidden_by], confidence),
        *misleading_loss(results, confidence),
        *transfer_failure(results, confidence),
        *not_converged(results, tried, total),
    ]


def black_box_beats_white_box(results: Sequence[AttackResult], confidence: float) -> list[Finding]:
    """Attacks without a gradient break significantly more than gradient attacks (Athalye et al. 2018)."""
    seen = _beyond_gradients(results, ("scores", "labels"), confidence)
    return [Finding("black-box-beats-white-box", f"without a gradient, {seen}")] if seen else []


def transfer_beats_white_box(results: Sequence[AttackResult], confidence: float) -> list[Finding]:
    """Adversarial examples of another model break significantly more than gradient attacks (Carlini et al. 2019)."""
    seen = _beyond_gradients(results, ["surrogate"], confidence)
    return [Finding("transfer-beats-white-box", f"with the gradient of another model, {seen}")] if seen else []


def bypass_beats_white_box(results: Sequence[AttackResult], confidence: float) -> list[Finding]:
    """A gradient that skips submodules breaks significantly more than the true one (Athalye et al. 2018)."""
    seen = _beyond_gradients(results, ["bypass"], confidence)
    return [Finding("bypass-beats-white-box", f"with a gradient that skips submodules, {seen}")] if seen else []


def misleading_loss(results: Sequence[AttackResult], confidence: float) -> list[Finding]:
    """Attacks that follow the same gradient in another way break significantly more than gradient attacks."""
    seen = _beyond_gradients(results, ["gradient"], confidence)
    return [Finding("misleading-loss", f"with its own gradient, but followed in another way, {seen}")] if seen else []


def hidden_gradient(
    results: Sequence[AttackResult], hidden_by: Mapping[str, Sequence[Operation]], confidence: float
) -> list[Finding]:
    """With natural gradients of some operations, an attack breaks significantly more: they hide the gradient."""
    found = []
    for name, operations in hidden_by.items():
        alone = [result for result in results if result.name == name or result.kind == "placebo"]
        seen = _beyond_gradients(alone, ["bypass"], confidence)
        if seen:
            message = f"the gradient is hidden by {', '.join(map(str, operations))}: with natural gradients, {seen}"
            found.append(Finding("hidden-gradient", message))
    return found


def transfer_failure(results: Sequence[AttackResult], confidence: float) -> list[Finding]:
    """Attacks with a surrogate's or bypassed gradient break significantly less than attacks without a gradient.

    An indicator of attack failure of Pintor et al. (2022).
    """
    surrogate = _with_access(results, ("surrogate", "bypass"))
    ours, theirs = _broken(_with_access(results, ("scores", "labels"))), _broken(surrogate)
    p_value = mcnemar_p(len(ours - theirs), len(theirs - ours))
    if not surrogate or p_value >= 1 - confidence:
        return []
    names = ", ".join(result.name for result in surrogate)
    return [
        Finding(
            "transfer-failure",
            f"attacks without a gradient break {len(ours - theirs)} images that no attack with a surrogate's or a "
            f"bypassed gradient breaks ({names}; p = {p_value:.2g})",
        )
    ]


def not_converged(results: Sequence[AttackResult], tried: Collection[int], total: int) -> list[Finding]:
    """More of the same budget breaks more: the placebo is a gradient attack with another seed (Carlini et al. 2019).

    Args:
        results: of the placebo, and of others.
        tried: images that every gradient attack was tried on.
        total: images of the audit.
    """
    broken = len(_broken([result for result in results if result.kind == "placebo"]).intersection(tried))
    if broken < max(_FEWEST, _CONVERGED * total):
        return []
    return [
        Finding(
            "not-converged",
            f"a gradient attack with a fresh seed and the budget of the adaptive attacks breaks another {broken} of "
            f"{total} images",
        )
    ]


def _beyond_gradients(results: Sequence[AttackResult], access: Collection[Access], confidence: float) -> str:
    """In words, what attacks with this access break beyond gradient attacks and placebo; empty if that may be chance.

    Adaptive attacks and the placebo are given the images that survive all gradient attacks.
    """
    attacks = _with_access(results, access)
    placebo = _broken([result for result in results if result.kind == "placebo"])
    ours, theirs = _broken(attacks) - placebo, placebo - _broken(attacks)
    p_value = mcnemar_p(len(ours), len(theirs))
    if p_value >= 1 - confidence:
        return ""
    who = " and ".join(result.name for result in attacks if set(result.broken) & ours)
    return f"{who} break {len(ours)} images that survive every gradient attack and the placebo (p = {p_value:.2g})"


def _with_access(results: Sequence[AttackResult], access: Collection[Access]) -> list[AttackResult]:
    return [result for result in results if result.kind == "adaptive" and result.access in access]


def _broken(results: Sequence[AttackResult]) -> set[int]:
    return {index for result in results for index in result.broken}
