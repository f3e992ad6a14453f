"""Clean answers against labels: are the images labelled as the defense numbers its classes? No query of its own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import binom
from torch import Tensor

from pytest_gradmask.randomized.prediction import label_wins
from pytest_gradmask.verdict.results import Finding
from pytest_gradmask.verdict.stats import mcnemar_p

#: A useful model is this share of the way from guessing to perfect, or more: 40 % of 10 classes, 67 % of 2. A finding
#: needs evidence against it, too, with an error of a tenth of the audit's: on 20 images of 10 classes, a model that
#: is right at 40 % cannot be told from a guess at 99 % one time in four, and is called one 1 time in 2,000.
_USEFUL, _SURE = 1 / 3, 0.1
#: Wrong answers that a constant answer must give. Of 7 wrong ones, a useful model does not answer all alike.
_CONSTANT = 7
#: Share of all images that a relabelling must correct: two classes of ten exchanged correct 18 % at 90 % accuracy.
_GAIN = 0.1
#: Shuffles of the answers: the smallest p-value that they can give is a third of what a confidence of 99 % asks for.
_SHUFFLES = 999
#: A fit of more labels than this is only tested by halves: each shuffle costs a fit, and those grow with the cube.
_FITTED = 100
#: Labels that a message lists.
_LISTED = 5

_Array = np.ndarray[tuple[int], np.dtype[np.int64]]


def tied_logits(logits: Tensor, labels: Tensor) -> list[Finding]:
    """Images that ``argmax`` calls correct, though another class has the same logit: they count as misclassified.

    Args:
        logits: of the clean images, N x K.
        labels: of these images, N.
    """
    tied = int(((logits.argmax(1) == labels) & ~label_wins(logits, labels)).sum())
    if not tied:
        return []
    return [
        Finding(
            "tied-logits",
            f"{tied} of {len(labels)} clean images have a label whose logit is tied with another: they count as "
            "misclassified, though argmax may return the label",
        )
    ]


def check_labels(predictions: Tensor, labels: Tensor, classes: int, confidence: float) -> list[Finding]:
    """Whether labels and answers fit together: answers that are all alike, renumbered classes, and guesses.

    Of several findings only the first is returned, as it explains the others.

    Args:
        predictions: what the defense answers to the clean images, int64, N.
        labels: of these images, int64, N.
        classes: number of classes of the defense; both are in ``range(classes)``.
        confidence: in (0.5, 1), of every test.
    """
    if len(predictions) < 2:
        return []
    answers, given = predictions.cpu().numpy(), labels.cpu().numpy()
    return (
        constant_predictions(answers, given)
        or permuted_labels(answers, given, classes, confidence)
        or chance_accuracy(answers, given, classes, confidence)
    )


def constant_predictions(answers: _Array, labels: _Array) -> list[Finding]:
    """One class for all images, and not because they are of one class."""
    wrong = int((answers != labels).sum())
    if len(np.unique(answers)) > 1 or wrong < _CONSTANT or len(np.unique(labels)) == 1:
        return []
    return [
        Finding(
            "constant-predictions",
            f"all {len(labels)} clean images are answered as class {answers[0]}, and {wrong} of them have other "
            "labels: check weights and normalisation",
            undermines_attacks=True,
        )
    ]


def chance_accuracy(answers: _Array, labels: _Array, classes: int, confidence: float) -> list[Finding]:
    """As many right answers as a guess gets, and surely fewer than a useful model.

    A guess gives the same answers to images in another order: that is exact for classes of any sizes. Where the order
    hardly matters, as with images of one class, it is a draw among all classes.
    """
    total, right = len(labels), int((answers == labels).sum())
    shuffled = _shuffled(answers, labels)
    most = int(np.minimum(_counts(answers, classes), _counts(labels, classes)).sum())
    if _tail(shuffled, most) <= 1 - confidence:
        p_value, chance = _tail(shuffled, right), float(shuffled.mean()) / total
    else:
        p_value, chance = float(binom.sf(right - 1, total, 1 / classes)), 1 / classes
    useful = 1 / classes + _USEFUL * (1 - 1 / classes)
    if p_value <= 1 - confidence or binom.cdf(right, total, useful) > _SURE * (1 - confidence):
        return []
    return [
        Finding(
            "chance-accuracy",
            f"{right} of {total} clean images are classified correctly, and guesses would get {chance * total:.3g}: "
            "check weights, normalisation, label order",
            undermines_attacks=True,
        )
    ]


def permuted_labels(answers: _Array, labels: _Array, classes: int, confidence: float) -> list[Finding]:
    """Many more right answers if the labels were renumbered, and more than such a fit finds by chance.

    Three exact tests share the error. Of renumberings that are known beforehand (text order, offsets), each is
    compared with the labels image by image. The best one is fitted to each half of the images and compared on the
    other. On few images, what it gains is compared with what it gains where answers are shuffled.
    """
    total, right = len(labels), int((answers == labels).sum())
    if total - right < _GAIN * total:
        return []
    level = (1 - confidence) / 3
    name, mapping = _known_order(answers, labels, classes, level)
    if not name:
        if not (_halves_agree(answers, labels, level) or _gains_more_than_shuffled(answers, labels, level)):
            return []
        mapping = _fit(answers, labels)[0]
    renumbered = _renumbered(labels, mapping)
    found = int((answers == renumbered).sum())
    if found - right < _GAIN * total:
        return []
    moved = sorted(label for label in set(labels.tolist()) if mapping.get(label, label) != label)
    moved = [label for label in moved if ((labels == label) & (answers == mapping[label])).any()]
    listed = ", ".join(f"label {label} is answered as {mapping[label]}" for label in moved[:_LISTED])
    return [
        Finding(
            "permuted-labels",
            f"{right} of {total} clean images are classified correctly, and {found} if the labels are renumbered: "
            f"{listed}{', ...' if len(moved) > _LISTED else ''}{f' ({name})' if name else ''}; "
            "check weights, normalisation, label order",
            undermines_attacks=True,
        )
    ]


def known_orders(classes: int) -> dict[str, _Array]:
    """Renumberings that go wrong in practice: for each, by label, what a right model answers; see also `_offset`."""
    from_zero = np.array(sorted(range(classes), key=str))
    from_one = np.array(sorted(range(1, classes + 1), key=str)) - 1
    return {
        "the labels are numbers in text order: 0, 1, 10, 11, 2, ...": from_zero,
        "the labels are numbers in text order: 1, 10, 11, 2, ...": from_one,
        "the classes of the defense are numbers in text order: 0, 1, 10, 11, 2, ...": np.argsort(from_zero),
        "the classes of the defense are numbers in text order: 1, 10, 11, 2, ...": np.argsort(from_one),
        "the order is reversed": np.arange(classes)[::-1],
    }


def _offset(answers: _Array, labels: _Array, classes: int) -> tuple[str, _Array]:
    """The most frequent difference between answers and labels but 0, in words and as a renumbering."""
    counts = np.bincount((answers - labels) % classes, minlength=classes)
    counts[0] = -1
    shift = int(counts.argmax())
    words = f"{shift} too low" if shift <= classes - shift else f"{classes - shift} too high"
    return f"the labels are {words}", (np.arange(classes) + shift) % classes


def _known_order(answers: _Array, labels: _Array, classes: int, level: float) -> tuple[str, dict[int, int]]:
    """The known renumbering under which most answers are right, if that is surely one; its name is empty otherwise."""
    orders = known_orders(classes)
    name, order = _offset(answers, labels, classes)
    tried = len(orders) + classes - 1
    orders[name] = order
    name = max(orders, key=lambda known: int((orders[known][labels] == answers).sum()))
    order = orders[name]
    now, before = order[labels] == answers, labels == answers
    gained, lost = int((now & ~before).sum()), int((before & ~now).sum())
    if tried * mcnemar_p(gained, lost) > level or gained - lost < _GAIN * len(labels):
        return "", {}
    return name, dict(enumerate(order.tolist()))


def _fit(answers: _Array, labels: _Array) -> tuple[dict[int, int], int]:
    """The renumbering of the labels under which most answers are right, one class for each label; and how many are."""
    seen, rows = np.unique(labels, return_inverse=True)
    # A label may keep its number though nothing is answered so.
    known, columns = np.unique(np.concatenate([answers, labels]), return_inverse=True)
    table = np.zeros((len(seen), len(known)))
    np.add.at(table, (rows, columns[: len(answers)]), 1)
    own = np.zeros_like(table)
    own[np.arange(len(seen)), np.searchsorted(known, seen)] = 0.5 / len(seen)  # of equal fits, the one closest to it
    chosen, to = linear_sum_assignment(table + own, maximize=True)
    mapping = {int(seen[row]): int(known[column]) for row, column in zip(chosen, to, strict=True)}
    return mapping, int(table[chosen, to].sum())


def _halves_agree(answers: _Array, labels: _Array, level: float) -> bool:
    """Whether the fit to one half of the images gets surely more images of the other half right than the labels do."""
    order = np.argsort(labels, kind="stable")  # alternate within each label
    halves = order[::2], order[1::2]
    gain, p_values = 0, []
    for fitted, held in (halves, halves[::-1]):
        renumbered = _renumbered(labels[held], _fit(answers[fitted], labels[fitted])[0])
        now, before = renumbered == answers[held], labels[held] == answers[held]
        gain += int(now.sum()) - int(before.sum())
        p_values.append(mcnemar_p(int((now & ~before).sum()), int((before & ~now).sum())))
    return gain >= _GAIN * len(labels) and 2 * min(p_values) <= level


def _gains_more_than_shuffled(answers: _Array, labels: _Array, level: float) -> bool:
    """Whether the best renumbering gains more than it does on the same answers in random order."""
    if len(np.unique(labels)) > _FITTED:
        return False
    random = np.random.default_rng(0)

    def gain(some: _Array) -> int:
        return _fit(some, labels)[1] - int((labels == some).sum())

    seen = gain(answers)
    beaten, allowed = 0, int(level * (_SHUFFLES + 1))
    for _ in range(_SHUFFLES):
        beaten += gain(random.permutation(answers)) >= seen
        if beaten >= allowed:
            return False
    return True


def _shuffled(answers: _Array, labels: _Array) -> _Array:
    """How many answers are right in random order, many times."""
    random = np.random.default_rng(0)
    return np.array([(random.permutation(answers) == labels).sum() for _ in range(_SHUFFLES)])


def _tail(shuffled: _Array, count: int) -> float:
    """p-value of a count: how often shuffled answers reach it."""
    return float(1 + (shuffled >= count).sum()) / (1 + len(shuffled))


def _counts(numbers: _Array, classes: int) -> _Array:
    return np.bincount(numbers, minlength=classes)


def _renumbered(labels: _Array, mapping: Mapping[int, int]) -> _Array:
    return np.array([mapping.get(label, label) for label in labels.tolist()])
