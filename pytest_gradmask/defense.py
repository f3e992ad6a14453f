"""What is audited: a model, and what an attacker who adapts to it knows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import Tensor, nn

from pytest_gradmask.checks import as_number, check_callable, check_is, is_a, listed, shown
from pytest_gradmask.errors import InputError
from pytest_gradmask.printable import one_line
from pytest_gradmask.threat import Access

Outputs = Literal["logits", "probabilities", "multilabel"]
#: The index of the class that means "rejected", or a function from outputs (N x K) to whether each is rejected (N).
Rejects = int | Callable[[Tensor], Tensor]

_MODEL = (
    "a torch.nn.Module, not its class, file or state dict; of a function of arrays, give "
    "pytest_gradmask.black_box(function)"
)


@dataclass(frozen=True, slots=True)
class FromImages:
    """An approximation of everything between the defense's images and the input of a submodule.

    It is for code in a ``forward`` that is not a submodule itself. With ``bypass={"net": FromImages()}``, the backward
    pass treats the input of ``net`` as the images themselves, or as ``function(images)``.

    Attributes:
        function: differentiable, from the images to a tensor of the shape of the submodule's input; None: the identity.
    """

    function: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.function is not None:
            check_callable("function", self.function, "a function of the images, or None for the identity")


@dataclass(frozen=True, slots=True)
class Attack:
    """An attack of your own, written for this defense.

    Attributes:
        run: ``run(model, images, labels, *, threat, generator)`` returns images of the same shape, dtype and device,
            of which those outside of the ball or the bounds do not count. ``model`` gives logits (float32, N x K) and
            counts its passes, which the placebo gets, too. Random numbers come from ``generator`` (of the CPU).
        name: for reports; by default the function's.
        kind: ``"adaptive"``, or ``"gradient"`` for one that follows the defense's own gradient and knows nothing else.
        through: the module that ``model`` runs instead of the defense: a differentiable version of it, or another.
        access: what the attack sees of the defense: ``"gradient"``, ``"surrogate"`` (the gradient of another model),
            ``"bypass"`` (a gradient that skips operations, as in BPDA), ``"scores"`` (outputs alone) or ``"labels"``
            (decisions alone). Findings compare attacks by it. By default ``"surrogate"`` where ``through`` is given,
            otherwise ``"gradient"``.

    Raises:
        InputError: ``run`` cannot be called or is a class, ``through`` is not a module, ``kind`` or ``access`` is
            unknown, or there is no name.
    """

    run: Callable[..., Any]
    name: str = ""
    kind: Literal["adaptive", "gradient"] = "adaptive"
    through: nn.Module | None = None
    access: Access | None = None

    def __post_init__(self) -> None:
        check_callable("run", self.run, "a function from (model, images, labels) to images")
        check_is("name", self.name, "a text", str)
        check_is("kind", self.kind, "adaptive or gradient", str)
        check_is("access", self.access, f"one of {', '.join(get_args(Access))}", str, type(None))
        if self.kind not in ("adaptive", "gradient"):
            raise InputError(f"kind={shown(self.kind)}: must be adaptive or gradient")
        if self.kind == "gradient" and self.through is not None:
            raise InputError(
                f"through={type(self.through).__name__}: a gradient attack follows the defense's own gradient; drop "
                'through=, or give kind="adaptive"'
            )
        check_is("through", self.through, "a torch.nn.Module, or None for the defense itself", nn.Module, type(None))
        if self.access is None:
            object.__setattr__(self, "access", "gradient" if self.through is None else "surrogate")
        elif self.access not in get_args(Access):
            raise InputError(f"access={shown(self.access)}: must be one of {', '.join(get_args(Access))}")
        name = self.name or _name_of(self.run)
        if not name:
            raise InputError(f"name: {shown(self.run)} has none of its own; give it one")
        object.__setattr__(self, "name", one_line(name))


@dataclass(frozen=True, slots=True)
class Defense:
    """A classifier from images (N x C x H x W, inside the bounds) to logits (N x K), and its attacker's knowledge.

    Attributes:
        model: the module to audit, in eval mode.
        bypass: submodules that BPDA treats as the identity on the backward pass, as modules or by dotted name;
            a mapping gives each a differentiable approximation instead (a callable from its input to its output).
            ``None`` lets the audit look for candidates; ``()`` means that there are none.
        members: the members of a randomized ensemble, each a classifier.
        weights: with what chance each member answers; by default all with the same. Given with ``members`` only.
        sources: models whose adversarial examples may transfer to this one.
        attacks: of your own, as functions or as `Attack`; adaptive ones run before all others.
        outputs: ``"probabilities"`` if the model ends in a softmax; its logarithm is then attacked. An audit
            recognises probabilities by itself. ``"multilabel"`` if it returns a score for each of K labels, up to 8, of
            which any number may be on: above 0 where a label is on, before a sigmoid. Labels are then N x K, of 0 and
            1, and an image is correct if all its labels are.
        name: for reports; by default the model's class.
        rejects: of a defense that may reject an image: the index of the class that means "rejected", or a function of
            the model's outputs (N x K). It returns a score (float, N, above 0 where the image is rejected), which
            attacks follow, or only the decision (bool, N). A clean image is then correct if it is classified correctly
            and accepted. An adversarial image is broken if it is misclassified and accepted.

    Raises:
        InputError: ``model``, ``members`` or ``sources`` are not modules, ``weights`` do not fit the members,
            ``bypass`` names no submodule of the model or gives one something else than a function, two ``attacks``
            have one name, ``outputs`` is unknown, or ``rejects`` is neither a class index nor a function.
    """

    model: nn.Module
    bypass: Sequence[str | nn.Module] | Mapping[str | nn.Module, Any] | None = None
    members: Sequence[nn.Module] = ()
    weights: Sequence[float] | None = None
    sources: Sequence[nn.Module] = ()
    attacks: Sequence[Attack | Callable[..., Any]] = ()
    outputs: Outputs = "logits"
    name: str = field(default="")
    rejects: Rejects | None = None

    def __post_init__(self) -> None:
        check_is("model", self.model, _MODEL, nn.Module)
        for argument in ("members", "sources"):
            object.__setattr__(self, argument, tuple(listed_models(argument, getattr(self, argument))))
        attacks = listed("attacks", self.attacks, "a list of functions or of Attack", _is_attack)
        object.__setattr__(self, "attacks", tuple(attacks))
        check_is("name", self.name, "a text", str)
        check_is("outputs", self.outputs, f"one of {', '.join(get_args(Outputs))}", str)
        if self.outputs not in get_args(Outputs):
            raise InputError(f"outputs={shown(self.outputs)}: must be one of {', '.join(get_args(Outputs))}")
        index = self.rejects
        is_index = is_a(index, int) and not is_a(index, bool) and index >= 0  # type: ignore[operator]
        if not (self.rejects is None or is_index or (callable(self.rejects) and not is_a(self.rejects, type))):
            raise InputError(
                f"rejects={shown(self.rejects)}: must be the index of the class that means rejected, counted from 0, "
                "or a function of the outputs, such as lambda logits: 0.9 - logits.softmax(1).amax(1)"
            )
        if self.weights is not None:
            if not self.members:
                raise InputError(f"weights={shown(self.weights)}: there are no members to weigh; give members=, too")
            member_weights(self.weights, len(self.members))
        object.__setattr__(self, "name", one_line(self.name or type(self.model).__name__))
        names = [attack.name for attack in self.own_attacks()]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise InputError(
                f"attacks: two are called {shown(twice[0])}; give one another name, as in Attack(run, name=...)"
            )
        self.bypassed_modules()

    def own_attacks(self) -> list[Attack]:
        """Each of ``attacks`` as an `Attack`."""
        return [attack if isinstance(attack, Attack) else Attack(attack) for attack in self.attacks]

    def bypassed_modules(self) -> dict[str, Any] | None:
        """Dotted name of each submodule to bypass, with its approximation (None: the identity); None if not given."""
        if self.bypass is None:
            return None
        names = {module: name for name, module in self.model.named_modules(remove_duplicate=True)}
        by_name = dict(self.model.named_modules())
        found: dict[str, Any] = {}
        for entry, approximation in _entries("bypass", self.bypass):
            name: Any = names.get(entry) if is_a(entry, nn.Module) else entry
            if not is_a(name, str) or name not in by_name or name == "":
                known = ", ".join(map(repr, list(by_name)[1:8])) or "none"
                raise InputError(
                    f"bypass: {shown(entry)} is not a submodule of {self.name}; its submodules begin {known}"
                )
            found[name] = approximation
        return found


def listed_models(argument: str, value: Any) -> list[nn.Module]:
    """The models of a list.

    Raises:
        InputError: it is no list, or holds something else. One model is no list: iteration would give its layers.
    """
    if is_a(value, nn.Module) and not is_a(value, nn.ModuleList):
        raise InputError(f"{argument}: got one {type(value).__name__}; must be a list of torch.nn.Module")
    return listed(argument, value, "a list of torch.nn.Module", lambda entry: is_a(entry, nn.Module))


def _is_attack(entry: object) -> bool:
    return is_a(entry, Attack) or (callable(entry) and not is_a(entry, type))


def _name_of(function: object) -> str:
    try:
        return str(getattr(function, "__name__", ""))
    except Exception:  # the object is not ours
        return ""


def _entries(argument: str, value: Any) -> list[tuple[Any, Any]]:
    """The entries of ``bypass``, each with its approximation."""
    wanted = 'a list of names of submodules or modules, as in ["0"], or a mapping from these to functions'
    if not is_a(value, Mapping):
        return [(entry, None) for entry in listed(argument, value, wanted, lambda entry: is_a(entry, str, nn.Module))]
    pairs = listed(argument, value.items(), wanted, lambda pair: is_a(pair, tuple) and len(pair) == 2)
    for entry, approximation in pairs:
        if not _is_approximation(approximation):
            raise InputError(
                f"{argument}: {shown(entry)} has {shown(approximation)}; must have a function from its input to its "
                "output, None for the identity, or FromImages()"
            )
    return pairs


def _is_approximation(value: object) -> bool:
    return value is None or is_a(value, FromImages) or (callable(value) and not is_a(value, type))


def as_defense(defense: Defense | nn.Module) -> Defense:
    """A defense; a bare module becomes one about which the attacker knows nothing more.

    Raises:
        InputError: it is neither.
    """
    if is_a(defense, Defense):
        return defense  # type: ignore[return-value]
    check_is("defense", defense, f"a Defense or {_MODEL}", nn.Module)
    return Defense(defense)  # type: ignore[arg-type]


def member_weights(weights: Sequence[float] | None, members: int) -> tuple[float, ...]:
    """The chance with which each member answers; uniform by default.

    Raises:
        InputError: another number of weights than members, one that is not above 0, or their sum is not 1.
    """
    if weights is None:
        return (1 / members,) * members
    entries = listed("weights", weights, "numbers above 0", lambda weight: is_a(weight, int, float))
    given = tuple(math.nan if (number := as_number(weight)) is None else number for weight in entries)
    if len(given) != members:
        raise InputError(f"weights={given}: {len(given)} weights for {members} members; give one for each")
    if not (all(weight > 0 for weight in given) and abs(sum(given) - 1) < 1e-6):
        raise InputError(f"weights={given}: must be above 0 and sum to 1, as in (0.5, 0.3, 0.2)")
    return given
