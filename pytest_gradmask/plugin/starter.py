"""``--gradmask-init``: write a first test for a model, which is given by its import path."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_gradmask.execution.files import replaced

if TYPE_CHECKING:
    from torch import nn

FILE = "test_gradient_masking.py"

_TEST = '''\
"""Does {module}:{attribute} mask its gradients? Run with: pytest --gradmask --gradmask-data=npz:test.npz"""

import pytest
from {module} import {attribute}
from pytest_gradmask import Defense, assert_no_gradient_masking


@pytest.mark.gradmask(eps=8 / 255, norm="Linf", budget="smoke")  # your threat model, in the units of your images
def test_gradient_masking(gradmask, eval_batch):
    images, labels = eval_batch  # the images of --gradmask-data
    # CIFAR-10 in place of them:
    # from pytest_gradmask import load_dataset
    # data = load_dataset("cifar10", samples=200, download=True)
    # images, labels = data.images, data.labels
    model = {attribute}{call}.eval()
    defense = Defense(model, name="{name}"{outputs})
{hint}    audit = gradmask.audit(defense, images, labels)
    assert_no_gradient_masking(audit)
'''

_HINT = """\
    # If you know which submodules hide the gradient, such as a front end, name them: they are {children}.
    # defense = Defense(model, name="{name}"{outputs}, bypass=[{first}])
"""

_NEXT = """\
{file} is written, a test of {path}. Next:
  1. Save some test images that the model classifies well, 200 if you can,
     as uint8 N x H x W x C, with their labels:
     numpy.savez("test.npz", images=images, labels=labels)
  2. Set eps and norm in {file} to your threat model.
  3. pytest {file} --gradmask --gradmask-data=npz:test.npz
Without --gradmask-data, the images are 20 of CIFAR-10. With more images and
--gradmask-budget=ci, an audit decides on smaller masking gaps."""


def import_path(value: str) -> str:
    """Check that an option's value has the form ``MODULE:ATTR``, and return it."""
    module, _, attribute = value.partition(":")
    if not (attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise argparse.ArgumentTypeError(
            f"{value!r} is not MODULE:ATTR, as in my_project.models:load_defense for a model, or a function without "
            "arguments that returns one"
        )
    return value


def write_starter(path: str, folder: Path) -> str:
    """Write a test of the model at ``path`` (``MODULE:ATTR``) into a folder, and return a text with the next steps.

    Raises:
        pytest.UsageError: the file exists already, or there is no model at ``path``.
    """
    file = folder / FILE
    if file.exists():
        raise pytest.UsageError(f"--gradmask-init: {file} is there already; move it, or remove it")
    if importlib.util.find_spec("torch") is None:
        raise pytest.UsageError("--gradmask-init needs PyTorch; install it with pip install torch torchvision")
    module, _, attribute = path.partition(":")
    model, call = _as_model(path, _imported(module, attribute, folder))
    names = [name for name, _ in model.named_children()]
    blanks = {
        "module": module,
        "attribute": attribute,
        "call": call,
        "name": attribute,
        "outputs": ', outputs="probabilities"' if _ends_in_softmax(model) else "",
        "children": ", ".join(map(json.dumps, names[:8])) + (", ..." if len(names) > 8 else ""),
        "first": ", ".join(map(json.dumps, names[:1])),
    }
    text = _TEST.format(**blanks, hint=_HINT.format(**blanks) if names else "")
    with replaced(file) as part:
        part.write_text(text, encoding="utf-8")
    return _NEXT.format(file=FILE, path=path)


def _imported(module: str, attribute: str, folder: Path) -> Any:
    """The object at ``module:attribute``, imported as a test in the folder would import it."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        imported = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's module raises when it is imported
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
            raise pytest.UsageError(
                f"--gradmask-init: there is no module {error.name!r} to import from {folder}; run pytest where "
                f"'import {module}' works, or install your project (pip install -e .)"
            ) from error
        raise pytest.UsageError(
            f"--gradmask-init: importing {module} raises {type(error).__name__}: {error}; make "
            f'python -c "import {module}" work first'
        ) from error
    if not hasattr(imported, attribute):
        public = [name for name in vars(imported) if not name.startswith("_")]
        import difflib  # imported here, as every run of pytest imports this module

        near = difflib.get_close_matches(attribute, public, cutoff=0.5) or public[:8]
        hint = f"did you mean {' or '.join(near)}?" if near else "it has no public names"
        raise pytest.UsageError(f"--gradmask-init: {module} has no {attribute!r}; {hint}")
    return getattr(imported, attribute)


def _as_model(path: str, found: Any) -> tuple[nn.Module, str]:
    """The model, which is the imported object or what it returns when called, and ``"()"`` if it was called."""
    from torch import nn

    if isinstance(found, nn.Module):
        return found, ""
    advice = "give a torch.nn.Module, or a function without arguments that returns one"
    if not callable(found):
        raise pytest.UsageError(f"--gradmask-init: {path} is of type {type(found).__name__}; {advice}")
    try:
        model = found()
    except (Exception, SystemExit) as error:
        raise pytest.UsageError(
            f"--gradmask-init: calling {path}() raises {type(error).__name__}: {error}; {advice}"
        ) from error
    if not isinstance(model, nn.Module):
        raise pytest.UsageError(f"--gradmask-init: {path}() returns {type(model).__name__}; {advice}")
    return model, "()"


def _ends_in_softmax(model: nn.Module) -> bool:
    from torch import nn

    return isinstance(list(model.modules())[-1], nn.Softmax)
