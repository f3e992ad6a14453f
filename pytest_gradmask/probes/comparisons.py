"""What the attacks of an audit, compared with one another, say about its gradients: pure functions, no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from pytest_gradmask.verdict.results import AttackResult, Finding
from pytest_gradmask.verdict.stats import mcnemar_p

#: Attacks that see nothing but outputs.
_BLACK_BOX = ("square", "zero-order", "hop-skip-jump", "boundary")
#: Attacks that follow the gradient of something other than the defense.
_TRANSFER, _BYPASS = ("transfer",), ("bpda", "inner-logits")
#: Share of images, and how many, that the placebo may break before the gradient attacks count as not converged.
_CONVERGED, _FEWEST = 0.01, 2


def compare_attacks(results: Sequence[AttackResult], total: int, confidence: float) -> list[Finding]:
    """All findings from the attacks' results alone.

    They keep no audit from ``NOT_MASKED``: the verdict measures the same differences against its margin, and a
    difference of a point or two between attacks is normal.

    Args:
        results: every attack of an audit.
        total: images of the audit.
        confidence: in (0.5, 1), of every test.
    """
    fallen = {index for result in results if result.kind == "gradient" for index in result.broken}
    # On randomized defenses, others go on where a gradient attack has broken an image but not in every forward.
    results = [
        replace(result, broken=tuple(index for index in result.broken if index not in fallen))
        for result in results
        if result.kind != "gradient"
    ]
    return [
        *black_box_beats_white_box(results, confidence),
        *transfer_beats_white_box(results, confidence),
        *bypass_beats_white_box(results, confidence),
        *transfer_failure(results, confidence),
        *not_converged(results, total),
    ]


def black_box_beats_white_box(results: Sequence[AttackResult], confidence: float) -> list[Finding]:
    """Attacks without any gradient break significantly more than gradient attacks (Athalye et al. 2018)."""
    seen = _beyond_gradients(results, _BLACK_BOX, confidence)
    return [Finding("black-box-beats-white-box", f"without a gradient, {seen}")] if seen else []


def transfer_beats_white_box(results: Sequence[AttackResult], confidence: float) -> list[Finding]:
    """Adversarial examples of another model break significantly more than gradient attacks (Carlini et al. 2019)."""
    seen = _beyond_gradients(results, _TRANSFER, confidence)
    return [Finding("transfer-beats-white-box", f"with the gradient of another model, {seen}")] if seen else []


def bypass_beats_white_box(results: Sequence[AttackResult], confidence: float) -> list[Finding]:
    """A gradient that skips submodules breaks significantly more than the true one (Athalye et al. 2018)."""
    seen = _beyond_gradients(results, _BYPASS, confidence)
    return [Finding("bypass-beats-white-box", f"with a gradient that skips submodules, {seen}")] if seen else []


def transfer_failure(results: Sequence[AttackResult], confidence: float) -> list[Finding]:
    """Attacks with a substitute's gradient break significantly less than attacks without any (Pintor et al. 2022)."""
    surrogate = _done(results, _named(_TRANSFER + _BYPASS))
    black_box = _done(results, _named(_BLACK_BOX))
    ours, theirs = _broken(black_box), _broken(surrogate)
    p_value = mcnemar_p(len(ours - theirs), len(theirs - ours))
    if not surrogate or p_value >= 1 - confidence:
        return []
    names = ", ".join(result.name for result in surrogate)
    return [
        Finding(
            "transfer-failure",
            f"{len(ours - theirs)} images fall to attacks without a gradient and to none with a substitute's ({names}; "
            f"p = {p_value:.2g})",
        )
    ]


def not_converged(results: Sequence[AttackResult], total: int) -> list[Finding]:
    """More of the same budget breaks more: the placebo is a gradient attack with another seed (Carlini et al. 2019)."""
    broken = len(_broken(_done(results, lambda result: result.kind == "placebo")))
    if broken < max(_FEWEST, _CONVERGED * total):
        return []
    return [
        Finding(
            "not-converged",
            f"a gradient attack with a fresh seed and the budget of the adaptive attacks breaks another {broken} of "
            f"{total} images",
        )
    ]


def _beyond_gradients(results: Sequence[AttackResult], names: Sequence[str], confidence: float) -> str:
    """In words, what these attacks break that gradient attacks and placebo do not; empty if that may be chance.

    Adaptive attacks and the placebo are given the images that survive all gradient attacks.
    """
    attacks = _done(results, _named(names))
    placebo = _broken(_done(results, lambda result: result.kind == "placebo"))
    ours, theirs = _broken(attacks) - placebo, placebo - _broken(attacks)
    p_value = mcnemar_p(len(ours), len(theirs))
    if p_value >= 1 - confidence:
        return ""
    who = " and ".join(result.name for result in attacks if set(result.broken) & ours)
    return f"{who} break {len(ours)} images that survive every gradient attack and the placebo (p = {p_value:.2g})"


def _named(prefixes: Sequence[str]) -> Callable[[AttackResult], bool]:
    return lambda result: result.kind == "adaptive" and result.name.startswith(tuple(prefixes))


def _done(results: Sequence[AttackResult], wanted: Callable[[AttackResult], bool]) -> list[AttackResult]:
    return [result for result in results if result.status == "done" and wanted(result)]


def _broken(results: Sequence[AttackResult]) -> set[int]:
    """Images that fall to any of these, beyond the gradient attacks."""
    return {index for result in results for index in result.broken}
