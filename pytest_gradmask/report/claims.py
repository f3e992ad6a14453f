"""Whether a published robust accuracy is compatible with what an audit's attacks leave."""

from __future__ import annotations

from pytest_gradmask.checks import as_number, check_is, is_a, shown
from pytest_gradmask.errors import InputError
from pytest_gradmask.report.wording import threat_text
from pytest_gradmask.verdict.audit import Audit
from pytest_gradmask.verdict.results import Verdict


def assert_claim(audit: Audit, *, robust_accuracy: float, source: str) -> None:
    """Fail if a published robust accuracy is above what this audit's attacks leave, at the audit's confidence.

    The claim is refuted if it is above the upper bound of the accuracy under all attacks together. The message is then
    the sentence of a review. An ``INCONCLUSIVE`` audit neither refutes nor supports a claim below this bound, so the
    assertion fails then, too. A claim may be compatible although the gradient is masked: for example, one that was
    measured with adaptive attacks. Whether images and threat model are those of the claim is for the caller to see to.

    Args:
        audit: of the defense that the claim is about, on a random sample of the images that the claim is about.
        robust_accuracy: the claim, as a share of all images in [0, 1].
        source: who claims it, for the message, such as ``"Table 2 of arXiv:2402.17018"``.

    Raises:
        InputError: the claim is no share, or has no source.
    """
    __tracebackhide__ = True
    check_is("audit", audit, "what audit() returned", Audit)
    claim = None if is_a(robust_accuracy, bool) else as_number(robust_accuracy)
    if claim is None or not 0 <= claim <= 1:
        raise InputError(
            f"robust_accuracy={shown(robust_accuracy)}: must be a share of images between 0 and 1, such as 0.72"
        )
    if not is_a(source, str) or not source.strip():
        raise InputError(f"source={shown(source)}: must say who claims it, such as 'Table 2 of arXiv:2402.17018'")
    found = audit.robust_accuracy
    claims = f"{source} claims a robust accuracy of {claim:.1%} for {audit.defense}"
    if claim > found.high:
        raise AssertionError(f"{claims}, but {_left(audit)}. The claim does not hold for these images.")
    if audit.verdict is Verdict.INCONCLUSIVE:
        why = "; ".join(audit.reasons)
        raise AssertionError(f"{claims}. This audit does not refute it, and does not support it either: {why}")


def _left(audit: Audit) -> str:
    """What the attacks leave, which of them breaks most, and what gradient attacks alone would have left."""
    found, threat = audit.robust_accuracy, audit.provenance.get("threat")
    under = f" under {threat_text(threat)}" if threat else ""
    strongest = max(audit.attacks, key=lambda result: len(result.broken))
    text = (
        f"attacks{under} leave {found.value:.1%} of {found.total} images, and at most {found.high:.1%} at "
        f"{audit.confidence:.0%} confidence; {strongest.name} alone breaks {len(strongest.broken)}"
    )
    if audit.verdict is Verdict.MASKED:
        text += f". Gradient attacks alone leave {audit.gradient_accuracy.value:.1%}: the gradient is masked"
    return text
