"""Transfer matrices as plain text: a table, and the failure messages of their assertions."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_gradmask.report.text import aligned
from pytest_gradmask.transfer.matrix import TransferMatrix
from pytest_gradmask.verdict.stats import clopper_pearson, images_to_exclude

_SHOWN = 5  # pairs in a message

_STRONGER = (
    "Nothing is shown of what an attack would do that works. Where gradients may be masked use "
    'transfer_matrix(attack="bpda"), else more steps, a larger eps or more images.'
)
_MORE = "This is no pass, and no proof of failure. Settle it with more images."


def transfer_table(matrix: TransferMatrix) -> list[str]:
    """One line a model that the attack was crafted on: the share of the common images that it makes others get wrong.

    The diagonal tells how well the attack works at all.
    """
    rows: list[Sequence[str]] = [("crafted on \\ tested on", *matrix.names)]
    rows += [
        (source, *(f"{matrix.fooled(source, target).value:.1%}" for target in matrix.names)) for source in matrix.names
    ]
    return aligned(rows)


def explain_transferability(matrix: TransferMatrix, at_most: float) -> str:
    """Why low transferability is not shown: the worst pairs, how sure that is, the table, the next step."""
    rates = {pair: matrix.transfer_rate(*pair) for pair in matrix.pairs}
    idle = [name for name in matrix.names if not matrix.fooled_images(name, name)]
    open_pairs = [(pair, rate) for pair, rate in rates.items() if rate is not None and rate.high > at_most]
    open_pairs.sort(key=lambda entry: entry[1].value, reverse=True)
    # To say of single pairs that they are above is to look at all of them, so the error is shared out (Bonferroni).
    each = 1 - (1 - matrix.confidence) / len(rates)
    above = {pair for pair, rate in open_pairs if clopper_pearson(round(rate.count), rate.total, each)[0] > at_most}
    wrong = len(open_pairs) + sum(rate is None for rate in rates.values())
    lines = [
        f"expected what fools one model to fool another in at most {at_most:.1%} of cases, but of {wrong} of "
        f"{len(rates)} pairs that is not shown" + (f"; {len(above)} are surely above" if above else ""),
        "",
    ]
    for (source, target), rate in open_pairs[:_SHOWN]:
        line = f"  crafted on {source}, tested on {target}: fools it {rate.count} times of {rate.total}: {rate}"
        needed = images_to_exclude(at_most, rate.value, matrix.confidence)
        if (source, target) in above:
            line += ", surely above"
        elif needed is not None:
            line += f"; at that rate about {needed} images that fool {source} would settle it"
        lines.append(line)
    if len(open_pairs) > _SHOWN:
        lines.append(f"  and {len(open_pairs) - _SHOWN} pairs more")
    lines += [f"  crafted on {name}: does not fool {name} itself, so nothing is known of its transfer" for name in idle]
    if above:
        step = (
            "Who can attack one of these models can attack the other: as members of an ensemble they add little. Make "
            "them differ more (architecture, data, front end, training for diversity), or expect less."
        )
    else:
        step = _STRONGER if idle else _MORE
    return "\n".join([*lines, *_setting(matrix), "", step])


def explain_diversity(matrix: TransferMatrix, at_least: float) -> str:
    """Why diversity is not shown: on how many images it was tested, how sure it is, the table, the next step."""
    found = matrix.diversity
    expected = f"expected no crafted image to fool all models for at least {at_least:.1%} of the images"
    own = ", ".join(f"{name} {len(matrix.fooled_images(name, name))}" for name in matrix.names)
    if found is None:
        said = "there is none on which the attack fools every model when crafted on it"
        step = _STRONGER
    else:
        said = f"that holds for {found.count} of {found.total}: {found}"
        if found.high < at_least:
            step = (
                "Surely fewer. Where one perturbation fools all members, choosing among them at random does not help. "
                "Make them differ more (architecture, data, front end, training for diversity), or expect less."
            )
        else:
            needed = images_to_exclude(1 - at_least, 1 - found.value, matrix.confidence)
            enough = "" if needed is None else f" About {needed} on which every attack works, if the share stays."
            step = _MORE + enough
    lines = [f"{expected}, but {said}", ""]
    lines.append(f"  Of {len(matrix.common)} images that every model has right, the attack fools its own model: {own}")
    return "\n".join([*lines, *_setting(matrix), "", step])


def _setting(matrix: TransferMatrix) -> list[str]:
    threat = matrix.threat
    lines = [
        "",
        f"fooled by the {matrix.attack} attack ({threat.norm}, eps={threat.eps:.4g}), of the {len(matrix.common)} "
        "images that every model has right:",
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
        f"crafted on {name}: {count} images outside of the ball or the bounds, or not finite, fool nobody"
        for name, count in zip(matrix.names, matrix.invalid, strict=False)
        if count
    ]
    return lines
