"""The attack surface: what an adaptive attacker knows of a defense, given by the user or found by a search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from pytest_gradmask.attacks.bypass.bpda import bypassed, modules_in, removed
from pytest_gradmask.attacks.bypass.classifiers import InnerClassifier, JointClassifier
from pytest_gradmask.attacks.bypass.inner_classifiers import find_inner_classifiers
from pytest_gradmask.attacks.bypass.inner_logits import InnerLogits, find_inner_logits
from pytest_gradmask.attacks.bypass.operations.model import OperationsBypassed
from pytest_gradmask.attacks.bypass.operations.search import find_operations, hidden_at, points_of_search
from pytest_gradmask.attacks.bypass.operations.sites import Site
from pytest_gradmask.attacks.bypass.search import SEARCH_FORWARDS, SEARCH_IMAGES, find_bypass
from pytest_gradmask.attacks.oracle import Oracle, output_of, parameter_dtype
from pytest_gradmask.attacks.rejection import RejectOption
from pytest_gradmask.defense import Defense
from pytest_gradmask.errors import GradmaskError, InputError
from pytest_gradmask.execution.batching import on_fewer, out_of_memory
from pytest_gradmask.execution.first_state import FirstState
from pytest_gradmask.execution.second_try import at_second_try
from pytest_gradmask.loading.models.black_box import is_black_box
from pytest_gradmask.loading.models.composites import Mixture
from pytest_gradmask.randomized.streams import RandomStream
from pytest_gradmask.threat import PerturbationSet, ThreatModel
from pytest_gradmask.verdict.results import Finding

Found = TypeVar("Found")

#: Ids of findings.
SEARCH_FAILED = "search-failed"
NO_GRADIENT = "no-gradient"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackSurface:
    """A defense as its attacker sees it.

    Attributes:
        defense: what is audited.
        stream: random numbers of the defense.
        classes: number of logits that attacks see, which have no class "rejected".
        randomized: whether its answers differ from forward to forward.
        attacked: the module that adaptive attacks take gradients from: the model or, where the members of an
            ensemble are known, their mixture.
        approximations: submodules of ``attacked`` to bypass, each with its BPDA approximation (None: the identity).
        operations: operations in the code of ``attacked`` that hide its gradient, and how often each runs in a pass.
        inner: a submodule of ``attacked`` that returns logits which the defense then disguises; empty if there is none.
        inner_classifiers: submodules of the defense that classify images by themselves, and whose gradient is another;
            and several of them as one.
        scoreless: whether the outputs do not change with the image, so that they do not guide a score-based attack.
        norm_ball: whether attacks search a norm ball, and not another set.
        pictures: whether inputs are images, N x C x H x W, and no other data.
        black_box: whether there is no gradient at all, as the defense is a plain function.
        eot: forwards of ``attacked`` to average in each step; 1 unless its randomness has to be sampled.
        rejection: of a defense that may reject an image.
        first_state: of a defense that changes with its queries, if every query is to ask a fresh copy.
        findings: of searches that failed.
    """

    defense: Defense
    stream: RandomStream
    classes: int
    randomized: bool
    attacked: nn.Module
    approximations: dict[str, object] = field(default_factory=dict)
    operations: dict[Site, int] = field(default_factory=dict)
    inner: str = ""
    inner_classifiers: tuple[InnerClassifier | JointClassifier, ...] = ()
    scoreless: bool = False
    norm_ball: bool = True
    pictures: bool = True
    black_box: bool = False
    eot: int = 1
    rejection: RejectOption | None = None
    first_state: FirstState | None = None
    findings: tuple[Finding, ...] = ()

    def oracle(self, model: nn.Module | None = None) -> Oracle:
        """A fresh counter around the defense, or around a model made of ``attacked``."""
        if isinstance(model, Mixture):
            return Oracle.of_mixture(model, self.stream, self.defense.outputs, self.rejection, self.first_state)
        return Oracle(
            self.defense.model if model is None else model, self.stream, self.defense.outputs,
            rejection=self.rejection, first_state=self.first_state,
        )  # fmt: skip

    def inner_oracle(self, model: nn.Module) -> Oracle:
        """The same around a model that returns the inner logits, whatever the defense returns."""
        # A function reads the outputs of the defense, which inner logits are not.
        readable = self.rejection is not None and isinstance(self.rejection.rejects, int)
        rejection = self.rejection if readable else None
        return Oracle(model, self.stream, rejection=rejection, first_state=self.first_state)

    def with_operations_bypassed(self) -> nn.Module:
        """``attacked`` with natural gradients of its operations: member by member if it is a mixture."""
        return self._member_by_member(lambda model: OperationsBypassed(model, self.operations))

    def source_oracle(self, model: nn.Module) -> Oracle:
        """The same around another model of the same classes, which returns logits."""
        return Oracle(model, self.stream, rejection=self.rejection)

    def rewired(self, rewire: Callable[[nn.Module, dict[str, object]], nn.Module]) -> nn.Module:
        """``attacked`` with its approximations: member by member if it is a mixture, whose members then stay known."""
        if not isinstance(self.attacked, Mixture):
            return rewire(self.attacked, self.approximations)
        modules = dict(self.attacked.named_modules(remove_duplicate=False))
        by_module = {modules[name]: approximation for name, approximation in self.approximations.items()}
        return self._member_by_member(
            # By module, not by name: members may share one.
            lambda member: rewire(
                member, {name: by_module[module] for name, module in member.named_modules() if module in by_module}
            )
        )

    def _member_by_member(self, make: Callable[[nn.Module], nn.Module]) -> nn.Module:
        """What is made of ``attacked`` or, if it is a mixture, the mixture of what is made of each of its members."""
        if not isinstance(self.attacked, Mixture):
            return make(self.attacked)
        members = [make(member) for member in self.attacked.members]
        return Mixture(members, self.attacked.weights, probabilities=self.attacked.probabilities)


def find_attack_surface(
    defense: Defense,
    images: Tensor,
    *,
    stream: RandomStream,
    classes: int,
    randomized: bool,
    threat: PerturbationSet,
    eot: int,
    rejection: RejectOption | None = None,
    first_state: FirstState | None = None,
    first: Sequence[int] = (),
) -> AttackSurface:
    """What an adaptive attacker uses: what the user says, or else what a search finds.

    The searches are optional. One that fails has found nothing, and a finding says so.

    Args:
        defense: what is audited.
        images: of the audit, N x C x H x W; a few of them serve the search.
        stream: random numbers of the defense.
        classes, randomized: known from the preflight.
        threat: where attacks may search.
        eot: forwards to average in each step on a randomized defense.
        rejection: of a defense that may reject an image.
        first_state: of a defense of which every query asks a fresh copy.
        first: indices of images that the searches look at before others.

    Raises:
        InputError: the user bypasses a submodule that no member contains.
        DefenseError: the defense raises.
    """
    known = bool(defense.members)
    attacked = defense.model
    if known:
        attacked = Mixture(defense.members, defense.weights, probabilities=defense.outputs == "probabilities")
    surface = AttackSurface(
        defense=defense,
        stream=stream,
        classes=classes,
        randomized=randomized,
        attacked=attacked,
        eot=eot if randomized and not known else 1,
        rejection=rejection,
        first_state=first_state,
        norm_ball=isinstance(threat, ThreatModel),
        pictures=images.ndim == 4,
    )
    sample = images[list(dict.fromkeys([*first, *range(len(images))]))[:SEARCH_IMAGES]]
    return on_fewer(lambda few: _searched(surface, sample[:few], threat), len(sample))


def hidden_elsewhere(surface: AttackSurface, images: Tensor, threat: PerturbationSet) -> Tensor:
    """At which images operations hide the gradient that no attack bypasses, since the search looked at others; bool."""
    if surface.black_box:
        return torch.zeros(len(images), dtype=torch.bool)
    points = points_of_search(images, threat)
    return hidden_at(surface.attacked, points, surface.operations, stream=surface.stream)


def _searched(surface: AttackSurface, few: Tensor, threat: PerturbationSet) -> AttackSurface:
    """The same with what the searches find on a few images."""
    defense, known = surface.defense, bool(surface.defense.members)
    _check_members(surface, few)
    if all(is_black_box(model) for model in defense.members or [defense.model]):
        message = "the defense is a plain function: there is no gradient to judge, and attacks ask for outputs alone"
        return replace(surface, black_box=True, findings=(Finding(NO_GRADIENT, message, undermines_attacks=True),))
    findings: list[Finding] = []
    operations = searched("operations that hide the gradient", partial(_operations, surface, few, threat), findings)
    surface = replace(surface, operations=operations or {})
    approximations = searched("parts to bypass", partial(_approximations, surface, few, findings), findings)
    surface = replace(surface, approximations=approximations or {})
    if not known:
        surface = replace(surface, scoreless=not surface.randomized and _scoreless(surface.oracle(), few, threat))
        inner = searched("inner logits", partial(_inner_logits, surface, few), findings)
        surface = replace(surface, inner=inner or "")
    if not known and defense.bypassed_modules() is None:
        inside = searched("inner classifiers", partial(_inner_classifiers, surface, few, threat), findings)
        surface = replace(surface, inner_classifiers=inside or ())
    return replace(surface, findings=tuple(findings))


def _operations(surface: AttackSurface, images: Tensor, threat: PerturbationSet) -> dict[Site, int]:
    points, forwards = points_of_search(images, threat), SEARCH_FORWARDS if surface.eot > 1 else 1
    return find_operations(surface.attacked, points, forwards=forwards, stream=surface.stream)


def _inner_logits(surface: AttackSurface, images: Tensor) -> str:
    defense, forwards = surface.defense, SEARCH_FORWARDS if surface.randomized else 1
    with surface.stream.active():
        return find_inner_logits(defense.model, images, defense.outputs, forwards=forwards)


def _inner_classifiers(
    surface: AttackSurface, images: Tensor, threat: PerturbationSet
) -> tuple[InnerClassifier | JointClassifier, ...]:
    """Those that differ from every model that a planned attack already takes its gradient from."""
    attacked = [surface.source_oracle(source) for source in surface.defense.sources]
    if surface.operations:
        attacked.append(surface.oracle(surface.with_operations_bypassed()))
    if surface.approximations:
        attacked.append(surface.oracle(surface.rewired(removed)))
    if surface.inner:
        attacked.append(surface.inner_oracle(InnerLogits(surface.rewired(bypassed), f"model.{surface.inner}")))
    return find_inner_classifiers(
        surface.oracle(),
        images,
        threat=threat,
        approximations=surface.approximations,
        attacked=attacked,
        forwards=SEARCH_FORWARDS if surface.randomized else 1,
    )


def known_models(defense: Defense) -> Sequence[nn.Module]:
    """Every model that an audit may ask for the class of an image."""
    through = [attack.through for attack in defense.own_attacks() if attack.through is not None]
    return (defense.model, *defense.members, *defense.sources, *through)


def all_modules(defense: Defense) -> Sequence[nn.Module]:
    """The same, and the approximations of its bypassed submodules."""
    return (*known_models(defense), *modules_in(defense.bypassed_modules() or {}))


def searched(what: str, search: Callable[[], Found], findings: list[Finding]) -> Found | None:
    """What a search for ``what`` finds. If it raises, also when it is tried again, None and a finding.

    Out-of-memory errors and the errors of this package are passed on unchanged.
    """
    try:
        return at_second_try(search)
    except GradmaskError:
        raise
    except Exception as error:  # our search in the user's code: neither may end the audit
        if out_of_memory(error):
            raise
        message = f"the search for {what} found nothing, because it raised {type(error).__name__}: {error}"
        findings.append(Finding(SEARCH_FAILED, message))
        return None


def _approximations(surface: AttackSurface, images: Tensor, findings: list[Finding]) -> dict[str, object]:
    """What to bypass, under its name in ``surface.attacked``."""
    defense, attacked = surface.defense, surface.attacked
    user_bypass = defense.bypassed_modules()
    if user_bypass is None:
        with surface.stream.active():
            found = _search(surface, images, findings)
        with surface.stream.frozen(), surface.stream.active():  # frozen: later random numbers stay the same
            return _that_work(surface, found, images, findings)
    if not defense.members:
        return user_bypass
    # The user's names are those in the model. The mixture holds the same modules under other names.
    modules = dict(defense.model.named_modules())
    names = {module: name for name, module in attacked.named_modules()}
    outside = [name for name in user_bypass if modules[name] not in names]
    if outside:
        raise InputError(
            f"bypass: {', '.join(outside)} is part of {defense.name} but of none of its members; "
            "an attack on the members cannot bypass it: leave it or members= out"
        )
    return {names[modules[name]]: approximation for name, approximation in user_bypass.items()}


def _search(surface: AttackSurface, images: Tensor, findings: list[Finding]) -> dict[str, object]:
    if not surface.defense.members:
        return find_bypass(surface.attacked, images, forwards=SEARCH_FORWARDS if surface.eot > 1 else 1)
    found: dict[str, object] = {}
    for number, member in enumerate(surface.defense.members):
        what = f"parts of members[{number}] to bypass"
        parts = searched(what, partial(find_bypass, member, images), findings) or {}
        found |= {f"members.{number}.{name}": new for name, new in parts.items()}
    return found


def _that_work(
    surface: AttackSurface, found: dict[str, object], images: Tensor, findings: list[Finding]
) -> dict[str, object]:
    """Those of the approximations with which the defense can be attacked, all together."""
    kept: dict[str, object] = {}
    for name, approximation in found.items():
        more = {**kept, name: approximation}
        attack = partial(_attack_once, replace(surface, approximations=more), images)
        if searched(f"a way to bypass {name}", attack, findings):
            kept = more
    return kept


def _attack_once(surface: AttackSurface, images: Tensor) -> bool:
    """True, or raise what an attack on the bypassed defense would raise."""
    point = images.to(parameter_dtype(surface.attacked), copy=True).requires_grad_(True)
    with torch.enable_grad():
        logits = surface.rewired(bypassed)(point + 0)
    if logits.requires_grad:
        torch.autograd.grad(logits.sum(), point, allow_unused=True)
    return True


def _check_members(surface: AttackSurface, images: Tensor) -> None:
    """Name a member that raises. The random numbers of the defense stay where they are."""
    with torch.no_grad(), surface.stream.frozen(), surface.stream.active():
        for number, member in enumerate(surface.defense.members):
            output_of(f"members[{number}]", member, images.to(parameter_dtype(member), copy=True))


def _scoreless(oracle: Oracle, images: Tensor, threat: PerturbationSet) -> bool:
    """Whether the outputs mostly do not change at all when an image does; tried in three directions for each image."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        before = oracle(images)
        points = [threat.random_start(images, generator) for _ in range(3)]
        unchanged = [(oracle(each) == before).all(1) for each in points]
    return bool(torch.cat(unchanged).float().mean() > 0.5)
