"""Values of a wrong type that people are likely to give: the error names the argument, the value and what to give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

import pytest_gradmask as gradmask
from pytest_gradmask import Attack, Defense, FromImages, InputError
from tests.project.api import FEW, LABELS
from tests.toys import Quantize, linear, masked

FUNCTION = "must have a function from its input to its output, None for the identity, or FromImages()"
NAMES = 'must be a list of names of submodules or modules, as in ["0"], or a mapping from these to functions'


def defense(**arguments: Any) -> Callable[[], object]:
    return lambda: Defense(masked(Quantize), **arguments)


MISTAKES: dict[str, tuple[Callable[[], object], str]] = {
    "an approximation by name": (defense(bypass={"0": "identity"}), f"bypass: '0' has 'identity'; {FUNCTION}"),
    "a number for one": (defense(bypass={"0": 3}), f"bypass: '0' has 3; {FUNCTION}"),
    "a list for one": (defense(bypass={"0": [None]}), f"bypass: '0' has [None]; {FUNCTION}"),
    "a class for one": (defense(bypass={"0": FromImages}), f"; {FUNCTION}"),
    "a text to bypass": (defense(bypass="0"), f"bypass='0': {NAMES}"),
    "an index to bypass": (defense(bypass=[0]), f"bypass: holds 0; {NAMES}"),
    "an index with a function": (
        defense(bypass={0: None}),
        "bypass: 0 is not a submodule of Sequential; its submodules begin '0', '1'",
    ),
    "one model as members": (
        defense(members=linear()), "members: got one Sequential; must be a list of torch.nn.Module",
    ),
    "one model as sources": (
        defense(sources=linear()), "sources: got one Sequential; must be a list of torch.nn.Module",
    ),
    "one model as an ensemble": (
        lambda: gradmask.RandomizedEnsemble(linear()),  # type: ignore[arg-type]
        "members: got one Sequential; must be a list of torch.nn.Module",
    ),
    "one model as a mixture": (
        lambda: gradmask.Mixture(linear()),  # type: ignore[arg-type]
        "members: got one Sequential; must be a list of torch.nn.Module",
    ),
    "a class that rejects": (defense(rejects=int), "rejects=<class 'int'>: must be the index of the class that means"),
    "a class as an attack": (lambda: Attack(nn.Linear), "must be a function from (model, images, labels) to images"),
    "weights of a model": (
        lambda: gradmask.audit(linear().state_dict(), FEW, LABELS),  # type: ignore[arg-type]
        "must be a Defense or a torch.nn.Module, not its class, file or state dict",
    ),
    "a path as a model": (
        lambda: gradmask.audit("model.pth", FEW, LABELS),  # type: ignore[arg-type]
        "defense='model.pth': must be a Defense or a torch.nn.Module, not its class, file or state dict",
    ),
    "a module to load": (lambda: gradmask.load_model(linear()), "spec=Sequential("),  # type: ignore[arg-type]
    "images to load": (lambda: gradmask.load_dataset(3), "spec=3: must be a text: "),  # type: ignore[arg-type]
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_the_error_says_what_to_give(case: str) -> None:
    call, message = MISTAKES[case]
    with pytest.raises(InputError) as raised:
        call()
    assert message in str(raised.value)


@pytest.mark.parametrize(
    "bypass", [{"0": None}, {"0": nn.Identity()}, {"0": abs}, {"0": FromImages()}, ["0"], ()], ids=str
)
def test_what_can_be_bypassed(bypass: Any) -> None:
    assert Defense(masked(Quantize), bypass=bypass).bypassed_modules() is not None


def test_lists_of_models_that_are_modules() -> None:
    models = nn.ModuleList([linear(), linear(seed=1)])
    found = Defense(linear(), members=models, sources=models)  # type: ignore[arg-type]
    assert (len(found.members), len(found.sources)) == (2, 2)
