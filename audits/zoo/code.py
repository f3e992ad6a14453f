"""How much of what the reference breaks does operation-level BPDA break alone?"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from audits.defenses.entry import Entry
from pytest_gradmask import Budget, Dataset, ThreatModel, load_model
from pytest_gradmask.auditing.research import as_defense, bench, versions

#: Name of the attack in audits.
OPERATIONS = "bpda-operations"

Record = dict[str, Any]


def alone(
    entry: Entry,
    data: Dataset,
    *,
    budget: Budget,
    threat: ThreatModel | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> Record | None:
    """Operation-level BPDA and the reference, each on all images that are classified correctly.

    The attack gets no hint. No gradient attack runs before it, and no other attack beside it.

    Args:
        entry: the defense.
        data: images with the labels of the data.
        budget: of the attack.
        threat: by default the audit's.
        device: torch device.
        seed: of every random choice.

    Returns:
        ``correct`` (a number of images), ``reference`` and ``operations`` (how many of these each breaks), ``both``,
        the ``seconds`` of both attacks, the replaced operations as ``lines``, with budget, seed, data and versions.
        None if no operation of the defense hides its gradient.
    """
    defense, untouched = (as_defense(entry.build(load_model)) for _ in range(2))  # an audit may change its own

    def reference(_: object, images: Tensor, labels: Tensor, **arguments: Any) -> Tensor:
        return entry.reference(untouched, images, labels, **arguments)

    labels = entry.labels(data.labels)
    with bench(defense, data.images, labels, threat=threat, budget=budget, device=device, seed=seed) as prepared:
        if OPERATIONS not in prepared.attacks:
            return None
        found = {"operations": prepared.runner(OPERATIONS)(), "reference": prepared.runner(reference)()}
        broken = {name: set(result.broken) for name, result in found.items()}
        return {
            "budget": budget.name, "seed": seed, "data": data.source.rpartition("/")[2],
            "correct": sum(prepared.clean), "both": len(broken["operations"] & broken["reference"]),
            **{name: len(each) for name, each in broken.items()},
            "seconds": {name: round(result.seconds, 1) for name, result in found.items()},
            "lines": list(map(str, prepared.surface.operations)), "versions": versions("pytest-gradmask", "torch"),
        }  # fmt: skip
