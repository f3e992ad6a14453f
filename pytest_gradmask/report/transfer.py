"""Transfer matrices as plain text: a table, and the failure messages of their assertions."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_gradmask.printable import printable
from pytest_gradmask.report.text import aligned
from pytest_gradmask.transfer.matrix import TransferMatrix
from pytest_gradmask.verdict.stats import clopper_pearson, images_to_exclude

_SHOWN = 5  # pairs in a message

_STRONGER = (
    "The attack is too weak to show anything. If gradients may be masked, use "
    'transfer_matrix(attack="bpda"). Otherwise use more steps, a larger eps or more images.'
)
_MORE = "This does not pass, and it does not prove a failure. More images may decide it."


def transfer_table(matrix: TransferMatrix) -> list[str]:
    """One line for each source model: the share of the common images on which its adversarial images fool each model.

    The diagonal shows how well the attack works at all.
    """
    rows: list[Sequence[str]] = [("crafted on \\ tested on", *matrix.names)]
    rows += [
        (source, *(f"{matrix.fooled(source, target).value:.1%}" for target in matrix.names)) for source in matrix.names
    ]
    return aligned(rows)


def explain_transferability(matrix: TransferMatrix, at_most: float) -> str:
    """Why low transferability is not shown: the worst pairs with their bounds, the table, the next step."""
    rates = {pair: matrix.transfer_rate(*pair) for pair in matrix.pairs}
    failed = [name for name in matrix.names if not matrix.fooled_images(name, name)]
    open_pairs = [(pair, rate) for pair, rate in rates.items() if rate is not None and rate.high > at_most]
    open_pairs.sort(key=lambda entry: entry[1].value, reverse=True)
    # Naming single pairs as above the limit means testing all pairs, so they share the error (Bonferroni).
    each = 1 - (1 - matrix.confidence) / len(rates)
    above = {pair for pair, rate in open_pairs if clopper_pearson(round(rate.count), rate.total, each)[0] > at_most}
    wrong = len(open_pairs) + sum(rate is None for rate in rates.values())
    lines = [
        f"expected adversarial images of one model to fool another model in at most {at_most:.1%} of cases, but that "
        f"is not shown for {wrong} of {len(rates)} pairs"
        + (f"; {len(above)} are significantly above" if above else ""),
        "",
    ]
    for (source, target), rate in open_pairs[:_SHOWN]:
        line = f"  crafted on {source}, tested on {target}: {rate.count} of {rate.total} images fool it: {rate}"
        needed = images_to_exclude(at_most, rate.value, matrix.confidence)
        if (source, target) in above:
            line += ", significantly above"
        elif needed is not None:
            line += f"; at that rate about {needed} images that fool {source} would decide it"
        lines.append(line)
    if len(open_pairs) > _SHOWN:
        lines.append(f"  and {len(open_pairs) - _SHOWN} more pairs")
    lines += [
        f"  crafted on {name}: the attack does not fool {name} itself, so it shows nothing about transfer"
        for name in failed
    ]
    if above:
        step = (
            "An attack on one of these models also works on the other, so an ensemble of them gains little. Make them "
            "differ more (architecture, data, front end, training for diversity), or expect less."
        )
    else:
        step = _STRONGER if failed else _MORE
    return printable("\n".join([*lines, *_setting(matrix), "", step]))


def explain_diversity(matrix: TransferMatrix, at_least: float) -> str:
    """Why diversity is not shown: on how many images it was tested, its bounds, the table, the next step."""
    found = matrix.diversity
    expected = f"expected no crafted image to fool all models for at least {at_least:.1%} of the images"
    fooled = ", ".join(f"{name} {len(matrix.fooled_images(name, name))}" for name in matrix.names)
    if found is None:
        outcome = "there is none on which the attack fools every model when crafted on it"
        step = _STRONGER
    else:
        outcome = f"that holds for {found.count} of {found.total}: {found}"
        if found.high < at_least:
            step = (
                "The share is significantly smaller. If one perturbation fools all members, choosing a member at "
                "random does not help. Make them differ more (architecture, data, front end, training for diversity), "
                "or expect less."
            )
        else:
            needed = images_to_exclude(1 - at_least, 1 - found.value, matrix.confidence)
            enough = (
                ""
                if needed is None
                else f" At this share, about {needed} images on which every attack works would decide it."
            )
            step = _MORE + enough
    lines = [f"{expected}, but {outcome}", ""]
    lines.append(
        f"  Of {len(matrix.common)} images that every model classifies correctly, the attack fools the model it was "
        f"crafted on: {fooled}"
    )
    return printable("\n".join([*lines, *_setting(matrix), "", step]))


def _setting(matrix: TransferMatrix) -> list[str]:
    threat = matrix.threat
    lines = [
        "",
        f"fooled by the {matrix.attack} attack ({threat.norm}, eps={threat.eps:.4g}), of the {len(matrix.common)} "
        "images that every model classifies correctly:",
        *transfer_table(matrix),
        "",
        f"bounds each valid at {matrix.confidence:.0%}",
    ]
    lines += [
        f"bypassed in {name}: {', '.join(names)}"
        for name, names in zip(matrix.names, matrix.bypassed, strict=False)
        if names
    ]
    lines += [
        f"crafted on {name}: {count} images outside of the ball or the bounds, or not finite, do not count"
        for name, count in zip(matrix.names, matrix.invalid, strict=False)
        if count
    ]
    return lines
