"""Claims 3 and 4: a random choice among composites, with different backbones or with the same."""

from __future__ import annotations

from typing import Any

import pytest

from audits.claims import not_reproduced
from audits.conftest import Reproduction, images_for
from audits.measures import correct_under_attacks, figures, listed, plain, shares, summary, under_autoattack
from pytest_gradmask import Audit, Defense, Mixture, Proportion, RandomizedEnsemble, Verdict, bypassed
from pytest_gradmask.plugin.fixtures import EvalBatch, Gradmask

pytestmark = pytest.mark.gradmask


@pytest.mark.parametrize("ensemble", ["standard-ensemble"], indirect=True)
def test_autoattack_does_not_break_a_diverse_ensemble(
    gradmask: Gradmask, ensemble: RandomizedEnsemble, eval_batch: EvalBatch, reproduction: Reproduction
) -> None:
    """Claim 3 in short: the audit ends with its verdict, and AutoAttack's attacks run on all images beside it."""
    defense = Defense(ensemble, members=list(ensemble.members), name="standard-ensemble")
    audit, settings = gradmask.audit(defense, eval_batch), gradmask.settings
    autoattack = under_autoattack(defense, eval_batch, budget=settings.budget, seed=settings.seed)
    reproduction.check("3", **_resists(audit, autoattack), stored=False)


# Exhaustive, for the accuracy under each attack on all images.
@pytest.mark.slow
@pytest.mark.gradmask(exhaustive=True)
@pytest.mark.parametrize(
    "ensemble",
    ["adversarial-ensemble", "standard-ensemble"],
    ids=["adversarial", "standard"],
    indirect=True,
)
def test_a_diverse_ensemble_resists_autoattack_only(
    gradmask: Gradmask,
    ensemble: RandomizedEnsemble,
    reproduction: Reproduction,
    request: pytest.FixtureRequest,
) -> None:
    """Claim 3: AutoAttack lowers the clean accuracy by at most 20 percentage points, an adaptive attack by far more."""
    audit = gradmask.audit(
        Defense(ensemble, members=list(ensemble.members), name=f"{request.node.callspec.id}-ensemble"),
        *images_for(request),
    )
    assert audit.autoattack_accuracy is not None
    reproduction.check("3", **_resists(audit, audit.autoattack_accuracy))


def _resists(audit: Audit, autoattack: Proportion) -> dict[str, Any]:
    """Whether claim 3 holds, and the figures that say so."""
    found = figures(audit)
    found["accuracies"] |= plain({"autoattack": autoattack})
    return {
        "holds": audit.verdict is Verdict.MASKED
        and audit.gap is not None
        and autoattack.value >= audit.clean_accuracy.value - 0.2
        and audit.gap.low > 0.1,
        "ours": f"{summary(audit)}; AutoAttack's attacks together {autoattack}; gap {audit.gap}",
        "images": audit.total,
        "details": {"audits": [found]},
    }


@not_reproduced("test_an_ensemble_of_one_architecture", "PGD does not even fool a single member")
@pytest.mark.parametrize("ensemble", ["uniform-ensemble"], indirect=True)
def test_an_ensemble_of_one_architecture_is_fooled_by_pgd(
    ensemble: RandomizedEnsemble, eval_batch: EvalBatch, reproduction: Reproduction
) -> None:
    """Claim 4: plain PGD lowers the clean accuracy of an ensemble of one architecture by at least half."""
    found = _accuracies(ensemble, eval_batch)
    reproduction.check(
        "4",
        holds=found["PGD on the whole ensemble"].high < found["clean"].value / 2,
        ours=listed(found),
        images=len(eval_batch.labels),
        details={"accuracies": plain(found)},
    )


@pytest.mark.parametrize("ensemble", ["standard-ensemble"], indirect=True)
def test_an_adversary_of_the_whole_ensemble(
    ensemble: RandomizedEnsemble, eval_batch: EvalBatch, reproduction: Reproduction
) -> None:
    """Question C: BPDA breaks the ensemble's expected output, and attacks with its true gradient do not."""
    found = _accuracies(ensemble, eval_batch)
    reproduction.check(
        "C",
        holds=found["BPDA on the whole ensemble"].high < found["PGD on the whole ensemble"].low,
        ours=listed(found),
        images=len(eval_batch.labels),
        details={"accuracies": plain(found)},
    )


def _accuracies(ensemble: RandomizedEnsemble, batch: EvalBatch) -> dict[str, Proportion]:
    """Accuracies of the ensemble's expected output."""
    mixture = Mixture(list(ensemble.members)).eval()
    front_ends = {f"members.{number}.front_end": None for number in range(len(mixture.members))}
    sources = {"PGD on the whole ensemble": mixture, "BPDA on the whole ensemble": bypassed(mixture, front_ends)}
    return shares(correct_under_attacks(mixture, sources, batch))
