"""What every audit needs before its first attack: a defense isolated, checked, and ready to be attacked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.attacks.rejection import RejectOption
from pytest_gradmask.attacks.users_set import named_if_it_fails
from pytest_gradmask.auditing.budgets import Budget
from pytest_gradmask.auditing.scoring import Scorer, subseed
from pytest_gradmask.auditing.search_precision import search_precision
from pytest_gradmask.auditing.surface import AttackSurface, all_modules, find_attack_surface
from pytest_gradmask.defense import Defense
from pytest_gradmask.execution.cache import Cache
from pytest_gradmask.execution.chunks import graph_bytes
from pytest_gradmask.execution.deadline import Deadline
from pytest_gradmask.execution.engine import LOCAL, Engine
from pytest_gradmask.execution.first_state import FirstState
from pytest_gradmask.execution.isolation import moved, no_trace
from pytest_gradmask.execution.precision import Precision
from pytest_gradmask.execution.second_try import faults_noticed
from pytest_gradmask.probes.adaptation import check_adapted
from pytest_gradmask.probes.preflight import small_eps
from pytest_gradmask.randomized.prediction import plan_sampler
from pytest_gradmask.randomized.streams import RandomStream
from pytest_gradmask.threat import PerturbationSet
from pytest_gradmask.verdict.results import Finding


@dataclass(frozen=True, slots=True)
class Prepared:
    """A defense that is ready to be attacked.

    Attributes:
        surface: the defense as its attacker sees it.
        scorer: runs attacks, and scores what they return.
        findings: of the preflight.
        predictions: classes of all clean images, by the first forward; int64, N.
        rejected: whether the defense rejects each clean image; empty for a defense without a reject option.
        faults: what the searches raised once, and not when they were tried again.
    """

    surface: AttackSurface
    scorer: Scorer
    findings: tuple[Finding, ...]
    predictions: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    rejected: tuple[bool, ...] = ()
    faults: tuple[str, ...] = ()


@contextmanager
def isolated(models: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Inside, the models are on the device. On exit they, and the state of the process, are as they were before."""
    with moved(models, device), no_trace(models, device):
        yield


@contextmanager
def prepared(
    defense: Defense,
    images: Tensor,
    labels: Tensor,
    *,
    threat: PerturbationSet,
    budget: Budget,
    margin: float,
    seed: int,
    cache: Cache | None = None,
    key: str = "",
    engine: Engine = LOCAL,
    first_state: FirstState | None = None,
    precision: Precision = "auto",
    deadline: Deadline | None = None,
    search_first: Sequence[int] = (),
) -> Iterator[Prepared]:
    """Isolate a defense, check it, and find out what its attacker knows and how its answers are scored.

    Args:
        defense: what is audited.
        images, labels: checked, and on the device to run on.
        threat: where attacks may search.
        budget: of the audit.
        margin: of the verdict.
        seed: of every random choice.
        cache, key: where results of attacks are kept, and everything they depend on besides attack and images.
        engine: where attacks run.
        first_state: of a defense that changes with its queries, if every query is to ask a fresh copy.
        precision: in which the defense computes under attack.
        deadline: of the audit.
        search_first: indices of images that the searches look at before others.

    Raises:
        DefenseError, InputError: the defense cannot be audited; the message says what to change.
    """
    threat = named_if_it_fails(threat)
    with isolated(all_modules(defense), images.device):
        stream = RandomStream(subseed(seed, "defense"), images.device)
        rejection = None if defense.rejects is None else RejectOption(defense.rejects)
        oracle = Oracle(defense.model, stream, defense.outputs, rejection=rejection, first_state=first_state)
        with stream.active():
            defense, oracle, checked = check_adapted(defense, oracle, images, labels)
        faults: list[str] = []
        with faults_noticed(faults):
            surface = find_attack_surface(
                defense, images, stream=stream, classes=checked.classes, randomized=checked.randomized, threat=threat,
                eot=budget.eot, rejection=rejection, first_state=first_state, first=search_first,
            )  # fmt: skip
            attacked = surface.oracle(surface.attacked)
            with attacked.frozen():  # its random numbers are those of a defense that was not asked
                graph = 0 if surface.black_box else graph_bytes(attacked, images)
            search: Precision = "own"
            if precision == "auto" and not (surface.black_box or checked.randomized or first_state):
                search = search_precision(oracle, images, threat=threat, seed=subseed(seed, "search precision"))
        sampler, findings = None, [*small_eps(threat, images), *checked.findings, *surface.findings]
        if checked.randomized:
            ensemble = surface.oracle(surface.attacked) if defense.members else None
            sampler, unusual = plan_sampler(oracle, ensemble, images, pilot=budget.pilot_samples, margin=margin)
            findings += unusual
        scorer = Scorer(
            oracle=oracle, images=images, labels=labels, threat=threat, seed=seed, sampler=sampler, cache=cache,
            key=key, engine=engine, precision="own" if precision == "auto" else precision, search_precision=search,
            deadline=deadline, graph=graph,
        )  # fmt: skip
        yield Prepared(surface, scorer, tuple(findings), checked.predictions, checked.rejected, tuple(faults))
