"""The message of a test that fails: what was found, what hides the gradient, what to report and what to do next."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pytest_gradmask.printable import printable
from pytest_gradmask.report.json import to_json
from pytest_gradmask.report.text import attack_notes, attack_table
from pytest_gradmask.report.wording import (
    bypassed_text,
    headline,
    hidden_by,
    plain_spaces,
    report_instead,
    submodules_bypassed,
    verdict_sentence,
)
from pytest_gradmask.verdict.audit import Audit
from pytest_gradmask.verdict.interim import attempt_share
from pytest_gradmask.verdict.results import Finding, Verdict
from pytest_gradmask.verdict.rule import IN_DOUBT

if TYPE_CHECKING:
    from pytest_gradmask.binarization.run import BinarizationTest

_WIDTH = 72  # of sentences: a terminal of 80 columns, in which pytest indents a message by eight
#: Attacks on the defense without the parts that the audit names as bypassed.
_BYPASSING = ("bpda", "transfer-backbone")
#: Findings that say most about a verdict: their page is suggested first.
_TELLING = ("hidden-gradient", "bypass-beats-white-box")


def explain(audit: Audit, expected: str) -> str:
    """Why an audit is not as expected. The first line is the shortest form of it: ``MASKED: jpegish, gap 85``.

    Then come the verdict with its figures, what hides the gradient, what to report instead, a table of attacks,
    findings, and what to do next.
    """
    plain = to_json(audit)
    inconclusive = audit.verdict is Verdict.INCONCLUSIVE and audit.gap is not None
    blocks = [
        [headline(plain)],
        [
            *_sentence(f"Expected {expected}. {verdict_sentence(plain, with_reasons=not inconclusive)}"),
            *([line for reason in audit.reasons for line in _sentence(f"- {reason}", "  ")] if inconclusive else []),
        ],
        _answer(plain),
        [*attack_table(audit), *_wrapped(attack_notes(audit))],
        _wrapped(_evidence(audit, plain)),
        [line for finding in audit.findings for line in _finding(finding)],
        _next(audit, plain),
    ]
    return printable(plain_spaces("\n\n".join("\n".join(lines) for lines in blocks if lines)))


def _sentence(text: str, indent: str = "") -> list[str]:
    """Its lines. All but the first are indented."""
    return textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False, subsequent_indent=indent)


def _wrapped(sentences: Iterable[str]) -> list[str]:
    return [line for sentence in sentences for line in _sentence(sentence)]


def _answer(plain: Mapping[str, Any]) -> list[str]:
    """What hides the gradient, and what to report instead of the figure under gradient attacks."""
    answers = {"hidden by": hidden_by(plain), "report instead": report_instead(plain)}
    return [line for name, text in answers.items() if text for line in _sentence(f"{name}: {text}", "  ")]


def _evidence(audit: Audit, plain: Mapping[str, Any]) -> list[str]:
    """What belongs to the verdict and is not in its sentence."""
    lines = [*audit.reasons] if audit.verdict is Verdict.MASKED else []
    if audit.operations and not any(finding.id == "hidden-gradient" for finding in audit.findings):
        lines.append(
            f"operations with a natural gradient in place of their own: {', '.join(map(str, audit.operations))}"
        )
    if audit.bypassed and any(attack.status == "done" and attack.name in _BYPASSING for attack in audit.attacks):
        lines.append(f"BPDA bypassed {bypassed_text(plain)}")
    if audit.attempt > 1:
        lines.append(
            f"attempt {audit.attempt}: all audits of this defense share the error, and this one has "
            f"{attempt_share(audit.attempt):.2g} of it"
        )
    if audit.earlier >= audit.attempt:
        lines.append(
            f"not the first: the cache knows {audit.earlier} earlier audits of this defense. The confidence is that of "
            f"this one alone; with --gradmask-attempt={audit.earlier + 1} it holds for all of them together"
        )
    return lines


def _finding(finding: Finding) -> list[str]:
    # The links of our own findings lead into the documentation, which --gradmask-explain prints.
    address = f" ({finding.link})" if finding.link.startswith(("https://", "http://")) else ""
    return _sentence(f"finding {finding.id}: {finding.message}{address}", "  ")


def _next(audit: Audit, plain: Mapping[str, Any]) -> list[str]:
    """Lines to paste: code, the command that explains a finding, and the command that repeats the audit."""
    reproduce = str(audit.provenance.get("reproduce", ""))
    if audit.verdict is Verdict.MASKED:
        submodules = submodules_bypassed(plain)
        code = f"Defense(model, bypass={json.dumps(submodules)})" if submodules else "assert_gradient_masking(audit)"
        what = "tells the next audit where to look" if submodules else "if this mask is known"
        lines = [f"next: {code}  # {what}"]
    elif audit.verdict is Verdict.NOT_MASKED:
        how = "can be reported as it is" if audit.exhaustive else "is at most this. For a table, use exhaustive=True"
        lines = _sentence(f"next: gradient attacks and adaptive attacks agree: the robust accuracy {how}.", "  ")
    else:
        lines = _go_on(audit, reproduce)
    names = sorted((finding.id for finding in audit.findings), key=lambda name: name not in (*_TELLING, *IN_DOUBT))
    if names:
        lines.append(f"explain: pytest --gradmask-explain={names[0]}")
    return [*lines, f"reproduce: {reproduce}"] if reproduce else lines


def _go_on(audit: Audit, reproduce: str) -> list[str]:
    """How to go on after an ``INCONCLUSIVE`` audit, so that all audits together keep the error of one."""
    if not audit.has_gradient:
        return _sentence(
            "This does not pass, and no audit of a plain function can. Audit the model where its gradient can be "
            "taken, as a torch.nn.Module, or give a model like it as Defense(sources=[...]) for a tighter bound."
        )
    if audit.gap is None:
        return _sentence("This does not pass. See the reason above, and audit again.")
    doubtful = [finding.id for finding in audit.findings if finding.undermines_attacks and finding.id in IN_DOUBT]
    if doubtful:
        return _sentence(
            f"This does not pass, and more images alone do not change that. First see to {', '.join(doubtful)}, which "
            "the command below explains, and audit again."
        )
    needed = audit.images_needed
    number, samples = ("more", "N") if needed is None else (f"about {needed}", needed)
    return [
        *_sentence(
            "This does not pass. More images may decide it: use --gradmask-budget=ci or full, or give audit() "
            f"{number} of them. Where the test takes those of --gradmask-data, use --gradmask-samples={samples}. "
            "Every further audit of this defense is another chance of a wrong verdict, so it gets a smaller share of "
            "the error."
        ),
        f"next: {reproduce or 'pytest --gradmask'} --gradmask-attempt={audit.next_attempt}  # with more images",
    ]


def explain_binarization_test(result: BinarizationTest, attack: str, defense: str) -> str:
    """Why an attack does not pass the binarization test on a defense: what it found, with bounds, and the next step."""
    lines = [f"expected {attack} to pass the binarization test on {defense}, but {_found(result)}", ""]
    lines.append(
        "  For each image, a new last layer was fitted for which an adversarial example inside the ball is known."
    )
    total = len(result.outcomes)
    if result.trivial:
        lines.append(
            f"  {result.trivial} of {total} images do not count: random points find an adversarial example, too."
        )
    if result.unseparable:
        lines.append(
            f"  {result.unseparable} of {total} images do not count: no adversarial example could be embedded, as no "
            "last layer separates the features at the boundary of the ball from those inside."
        )
    if result.invalid:
        lines.append(
            f"  {result.invalid} of {total} returned images were outside of the ball or the bounds, or not finite."
        )
    if result.fails:
        step = (
            f"A robust accuracy under {attack} means nothing on this defense: if the attack finds no adversarial "
            "example, there may be one nevertheless. Adapt the attack: use BPDA around what hides the gradient "
            "(through=bypassed(...)), more forwards a step (eot=) on a randomized defense, another loss if logits "
            "saturate (loss=logit_margin), or more steps."
        )
    elif result.tested == 0:
        step = "The test shows nothing. Check eps, gap and what the defense does to noise, or try other images."
    else:
        step = f"This does not pass, and it does not prove a failure. More than {total} images may decide it."
    return printable("\n".join([*lines, "", step]))


def _found(result: BinarizationTest) -> str:
    if result.rate is None:
        return f"none of the {len(result.outcomes)} images can be used for it"
    return (
        f"it found {result.passed} of {result.tested} embedded adversarial examples: {result.rate} at "
        f"{result.confidence:.0%} confidence"
    )
