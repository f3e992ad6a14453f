"""The transfer matrix as plain data, without torch."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_gradmask.checks import check_between, check_is, is_a, listed
from pytest_gradmask.errors import InputError
from pytest_gradmask.threat import ThreatModel
from pytest_gradmask.verdict.results import Proportion


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferMatrix:
    """Results of an attack that was crafted on each model (the rows) and tested on all of them (the columns).

    Attributes:
        names: names of the models, in the order of rows and columns.
        clean: for each model, whether it classifies each image correctly without an attack.
        correct: ``correct[row][column]``: whether the column's model classifies each image correctly after the attack
            on the row's model has perturbed it. The returned images are scored again, whatever the attack reports.
        attack: name of the attack.
        threat: threat model of the attack.
        confidence: confidence level of every bound.
        bypassed: for each row, what the attack bypassed, in words.
        invalid: for each row, the number of returned images outside the ball or the bounds, or not finite. They fool no
            model.

    Raises:
        InputError: there are fewer than two names, a name occurs twice, or the results have another shape.
    """

    names: tuple[str, ...]
    clean: tuple[tuple[bool, ...], ...]
    correct: tuple[tuple[tuple[bool, ...], ...], ...]
    attack: str
    threat: ThreatModel
    confidence: float
    bypassed: tuple[tuple[str, ...], ...] = ()
    invalid: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("names", "clean", "correct", "bypassed", "invalid"):
            check_is(name, getattr(self, name), "a tuple", tuple)
        check_is("attack", self.attack, "a text", str)
        check_is("threat", self.threat, "a ThreatModel", ThreatModel)
        check_between("confidence", self.confidence, 0.5, 1, "0.99")
        listed("names", self.names, "texts", lambda name: is_a(name, str))
        listed("clean", self.clean, "tuples of True and False, one a model", _are_outcomes)
        for row in listed("correct", self.correct, "tuples of tuples, one a model", lambda row: is_a(row, tuple)):
            listed("correct", row, "tuples of True and False, one a model", _are_outcomes)
        count = len(self.names)
        if count < 2:
            raise InputError(f"names: a transfer matrix needs at least 2 models, got {count}")
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise InputError(f"names: {', '.join(twice)} is there more than once; give each model another name")
        square = len(self.correct) == count and all(len(row) == count for row in self.correct)
        if (
            not square
            or len(self.clean) != count
            or len({len(cell) for row in (self.clean, *self.correct) for cell in row}) != 1
        ):
            raise InputError(f"correct: must be {count} x {count} outcomes of as many images as clean has")

    @property
    def total(self) -> int:
        """Number of images."""
        return len(self.clean[0])

    @property
    def common(self) -> frozenset[int]:
        """Images that every model classifies correctly without an attack."""
        return frozenset(image for image in range(self.total) if all(row[image] for row in self.clean))

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """All ordered pairs of different models, as source and target."""
        return [(source, target) for source in self.names for target in self.names if source != target]

    def clean_accuracy(self, name: str) -> Proportion:
        """Accuracy of a model on all images without an attack."""
        return Proportion.of(sum(self.clean[self._index(name)]), self.total, self.confidence)

    def robust_accuracy(self, source: str, target: str) -> Proportion:
        """Share of all images that ``target`` classifies correctly both clean and after the attack on ``source``."""
        clean, correct = self.clean[self._index(target)], self._outcomes(source, target)
        return Proportion.of(sum(map(all, zip(clean, correct, strict=True))), self.total, self.confidence)

    def fooled_images(self, source: str, target: str) -> frozenset[int]:
        """The `common` images that ``target`` misclassifies after the attack on ``source``."""
        correct = self._outcomes(source, target)
        return frozenset(image for image in self.common if not correct[image])

    def fooled(self, source: str, target: str) -> Proportion:
        """Share of the `common` images that ``target`` misclassifies after the attack on ``source``."""
        return Proportion.of(len(self.fooled_images(source, target)), len(self.common), self.confidence)

    def transfer_rate(self, source: str, target: str) -> Proportion | None:
        """Share of the images that fool the source that also fool the target; None if no image fools the source."""
        fooling = self.fooled_images(source, source)
        if not fooling:
            return None
        return Proportion.of(len(fooling & self.fooled_images(source, target)), len(fooling), self.confidence)

    @property
    def diversity(self) -> Proportion | None:
        """How often models that can all be fooled cannot be fooled together.

        It counts the `common` images on which the attack fools every model when it is crafted on that model. It is the
        share of them for which no crafted image fools all models at once. None if there are no such images.

        A crafted image that fools all models lies in the shared adversarial subspace of an ensemble (Kariyappa and
        Qureshi 2019, arXiv:1901.09981). Images on which the attack fails against one model are not counted. There, it
        cannot fool all models anyway, which may be due to masked gradients instead of diversity.
        """
        breakable = frozenset.intersection(*(self.fooled_images(name, name) for name in self.names))
        shared: set[int] = set()
        for source in self.names:
            shared |= frozenset.intersection(*(self.fooled_images(source, target) for target in self.names))
        return Proportion.of(len(breakable - shared), len(breakable), self.confidence) if breakable else None

    def _outcomes(self, source: str, target: str) -> tuple[bool, ...]:
        return self.correct[self._index(source)][self._index(target)]

    def _index(self, name: str) -> int:
        if name not in self.names:
            raise KeyError(f"no model {name!r}; there are {', '.join(self.names)}")
        return self.names.index(name)


def _are_outcomes(entry: object) -> bool:
    return is_a(entry, tuple) and all(is_a(each, bool) for each in entry)  # type: ignore[attr-defined]
