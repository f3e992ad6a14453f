"""Assertions on audits and transfer matrices. Their messages say what was found, with bounds, and what to do next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_gradmask.checks import as_number, check_is, is_a, refuse, shown
from pytest_gradmask.errors import DefenseError, InputError
from pytest_gradmask.report.expectations import expect
from pytest_gradmask.report.failure import explain, explain_binarization_test
from pytest_gradmask.report.transfer import explain_diversity, explain_transferability
from pytest_gradmask.transfer.matrix import TransferMatrix
from pytest_gradmask.verdict.audit import Audit
from pytest_gradmask.verdict.results import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor, nn

    from pytest_gradmask.defense import Defense
    from pytest_gradmask.threat import ThreatModel


def assert_no_gradient_masking(audit: Audit) -> None:
    """Fail unless the verdict is ``NOT_MASKED``. An inconclusive audit shows nothing, and so it fails, too."""
    __tracebackhide__ = True
    check_is("audit", audit, "what audit() returned", Audit)
    expect(audit, Verdict.NOT_MASKED)
    if audit.verdict is not Verdict.NOT_MASKED:
        raise AssertionError(explain(audit, "no gradient masking"))


def assert_gradient_masking(audit: Audit) -> None:
    """Fail unless the verdict is ``MASKED``."""
    __tracebackhide__ = True
    check_is("audit", audit, "what audit() returned", Audit)
    expect(audit, Verdict.MASKED)
    if audit.verdict is not Verdict.MASKED:
        raise AssertionError(explain(audit, "gradient masking"))


def assert_robust_accuracy(audit: Audit, *, at_least: float) -> None:
    """Fail unless the robust accuracy under all attacks together is at least ``at_least`` (a share of images).

    The measured figure is compared, not its lower bound, as papers quote it; the message gives the bounds. The
    assertion also fails if the verdict is not ``NOT_MASKED``, because a robust accuracy under masked gradients means
    nothing.
    """
    __tracebackhide__ = True
    check_is("audit", audit, "what audit() returned", Audit)
    number = as_number(at_least)
    if number is None or not 0 <= number <= 1:
        raise InputError(f"at_least={shown(at_least)}: must be a share of images between 0 and 1, such as 0.4")
    expect(audit, Verdict.NOT_MASKED)
    if audit.verdict is not Verdict.NOT_MASKED:
        raise AssertionError(explain(audit, "a robust accuracy that can be trusted"))
    if audit.robust_accuracy.value < at_least:
        raise AssertionError(explain(audit, f"a robust accuracy of at least {at_least:.1%}"))


def assert_attack_passes_binarization_test(
    attack: Callable[..., Tensor],
    defense: Defense | nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    threat: ThreatModel,
    generator: torch.Generator,
    through: nn.Module | None = None,
    confidence: float = 0.99,
) -> None:
    """Fail unless the attack passes the binarization test (Zimmermann et al. 2022, arXiv:2206.13991).

    The test embeds an adversarial example for each image in the defense. The attack has to find (nearly) all of them.
    Arguments and errors are those of `pytest_gradmask.binarization.run.binarization_test`. At least 7 images are
    needed: with fewer, the assertion fails, and its message says so.
    """
    __tracebackhide__ = True
    from pytest_gradmask.binarization.run import binarization_test
    from pytest_gradmask.defense import as_defense
    from pytest_gradmask.transfer.run import attack_name

    result = binarization_test(
        attack, defense, images, labels, threat=threat, generator=generator, through=through, confidence=confidence
    )
    if not result.ok:
        raise AssertionError(explain_binarization_test(result, attack_name(attack), as_defense(defense).name))


def assert_low_transferability(matrix: TransferMatrix, *, at_most: float) -> None:
    """Fail unless adversarial images of each model are shown to fool each other model in at most ``at_most`` of cases.

    Passes if the upper bound of every transfer rate off the diagonal is at most ``at_most``. All pairs have to pass, so
    no correction for their number is needed: a wrong pass needs a wrong bound of a pair that is above, which has a
    chance of at most 1 - confidence (an intersection-union test; Berger 1982). If the attack does not fool the model
    that it was crafted on, nothing is shown and the assertion fails. So masked gradients do not make it pass.

    Args:
        matrix: from `pytest_gradmask.transfer.run.transfer_matrix`.
        at_most: a share of the images that fool the source model, above 0 and below 1.
    """
    __tracebackhide__ = True
    check_is("matrix", matrix, "what transfer_matrix() returned", TransferMatrix)
    _check_share("at_most", at_most)
    rates = [matrix.transfer_rate(*pair) for pair in matrix.pairs]
    if not all(rate is not None and rate.high <= at_most for rate in rates):
        raise AssertionError(explain_transferability(matrix, at_most))


def assert_members_diverse(matrix: TransferMatrix, *, at_least: float) -> None:
    """Fail unless adversarial images that fool one model are shown to fool all models at once only rarely.

    Only images count on which the attack fools every model when crafted on that model. Passes if, for at least
    ``at_least`` of these images, no crafted image fools all models at once. The exact lower bound of
    `TransferMatrix.diversity` is compared.

    `assert_low_transferability` answers another question. For example, two of three members may be equal: adversarial
    images always transfer between them, and still none fools the third member. And if adversarial images transfer
    rarely between each two members, those crafted on all members together may still cover most images. Kariyappa and
    Qureshi (2019, arXiv:1901.09981) train ensembles so that members share only a small adversarial subspace.

    Args:
        matrix: from `pytest_gradmask.transfer.run.transfer_matrix`.
        at_least: a share of those images, above 0 and below 1.
    """
    __tracebackhide__ = True
    check_is("matrix", matrix, "what transfer_matrix() returned", TransferMatrix)
    _check_share("at_least", at_least)
    found = matrix.diversity
    if found is None or found.low < at_least:
        raise AssertionError(explain_diversity(matrix, at_least))


def _check_share(argument: str, value: object) -> None:
    number = as_number(value)
    if number is None or not 0 < number < 1:
        raise InputError(f"{argument}={shown(value)}: must be a share of images above 0 and below 1, such as 0.3")


def assert_near_identity(front_end: nn.Module, images: Tensor, *, atol: float) -> None:
    """Fail unless ``front_end(images)`` differs from ``images`` by at most ``atol``, averaged over each image.

    Args:
        front_end: maps N x C x H x W to the same shape.
        images: in the units of ``atol``.
        atol: largest mean absolute difference of an image, in the units of ``images``.
    """
    __tracebackhide__ = True
    from pytest_gradmask.attacks.arguments import check_images

    if (least := as_number(atol)) is None or least < 0:
        raise refuse("atol", atol, "a number of at least 0")
    check_images(images)
    output = _output_of("front_end", front_end, images)
    if output.shape != images.shape:
        raise AssertionError(
            f"expected a near-identity front end, but it maps shape {tuple(images.shape)} to {tuple(output.shape)}"
        )
    change = (output - images).abs().flatten(1).mean(1)
    worst = int(change.argmax())
    if not bool((change <= atol).all()):  # NaN fails, too
        raise AssertionError(
            f"expected a front end within {atol:.4g} of the identity, but {int((~(change <= atol)).sum())} of "
            f"{len(images)} images change by more: image {worst} by {change[worst].item():.4g} on average "
            f"(mean over all images {change.mean().item():.4g})"
        )


def assert_clean_accuracy_retained(
    defense: nn.Module, backbone: nn.Module, images: Tensor, labels: Tensor, *, within: float = 0.02
) -> None:
    """Fail unless the defense's clean accuracy is at most ``within`` (a share of images) below the backbone's."""
    __tracebackhide__ = True
    from pytest_gradmask.attacks.arguments import check_images, check_labels_of

    if (share := as_number(within)) is None or not 0 <= share <= 1:
        raise refuse("within", within, "a share of images between 0 and 1, such as 0.02")
    check_images(images)
    check_labels_of(images, labels)
    answers = [_output_of(name, model, images) for name, model in (("defense", defense), ("backbone", backbone))]
    for name, logits in zip(("defense", "backbone"), answers, strict=True):
        if logits.ndim != 2 or len(logits) != len(images) or not logits.shape[1] or logits.is_complex():
            raise DefenseError(f"{name}: returns {tuple(logits.shape)}, {logits.dtype}; must return logits, N x K")
    defended, bare = (float((logits.argmax(1) == labels).float().mean()) for logits in answers)
    if not defended >= bare - within:
        raise AssertionError(
            f"expected the defense to keep the backbone's clean accuracy of {bare:.1%} within {100 * within:.3g} "
            f"percentage points, but it has {defended:.1%} on the same {len(labels)} images"
        )


def _output_of(argument: str, model: nn.Module, images: Tensor) -> Tensor:
    """What a model returns, a tensor with values.

    Raises:
        InputError: it is no module.
        DefenseError: it raises, or returns something else.
    """
    import torch

    from pytest_gradmask.attacks.oracle import output_of

    check_is(argument, model, "a torch.nn.Module", torch.nn.Module)
    with torch.no_grad():
        output = output_of(argument, model, images)
    if not is_a(output, torch.Tensor) or output.is_meta or output.layout is not torch.strided or output.is_quantized:
        raise DefenseError(f"{argument}: returns {shown(output)}, not a tensor of numbers")
    return output
