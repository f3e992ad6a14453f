"""The same attacks from other libraries, for benchmarks, as functions with the signature of our attacks."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pytest_gradmask import ThreatModel, apgd, pgd
from pytest_gradmask.auditing.research import autoattack, random_state_kept, seeded_by

Attack = Callable[..., Tensor]


def _imported(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # SciPy warns of names that foolbox imports
        return importlib.import_module(name)


def foolbox_pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    threat: ThreatModel,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """Foolbox's Linf PGD with our step size, 2.5 eps / steps. It returns the last iterate."""
    foolbox = _imported("foolbox")
    attack = foolbox.attacks.LinfPGD(rel_stepsize=2.5 / steps, steps=steps, random_start=True)
    with seeded_by(generator, images.device):
        wrapped = foolbox.PyTorchModel(model, bounds=threat.bounds, device=images.device)
        found: Tensor = attack.run(wrapped, images, foolbox.criteria.Misclassification(labels), epsilon=threat.eps)
    return found


def torchattacks_pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    threat: ThreatModel,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """Torchattacks' Linf PGD with our step size, for images in [0, 1]. It returns the last iterate."""
    attack = _imported("torchattacks").PGD(model, eps=threat.eps, alpha=2.5 * threat.eps / steps, steps=steps)
    with seeded_by(generator, images.device):
        found: Tensor = attack(images, labels)
    return found


def torchattacks_apgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    threat: ThreatModel,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """Torchattacks' Linf APGD on cross-entropy, for images in [0, 1]."""
    seed = int(torch.randint(2**31, (1,), generator=generator))
    with random_state_kept(images.device):
        attack = _imported("torchattacks").APGD(model, eps=threat.eps, steps=steps, seed=seed, loss="ce")
        found: Tensor = attack(images, labels)
    return found


def adv_lib_apgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    threat: ThreatModel,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """Adv-lib's Linf APGD on cross-entropy, for images in [0, 1]."""
    with seeded_by(generator, images.device):
        run = _imported("adv_lib.attacks.auto_pgd").apgd
        found: Tensor = run(model, images, labels, eps=threat.eps, norm=float("inf"), n_iter=steps, loss_function="ce")
    return found


#: For each attack and library, the package that must be installed and the function. Each function takes ``steps``.
PEERS: dict[tuple[str, str], tuple[str, Attack]] = {
    ("pgd", "pytest-gradmask"): ("pytest_gradmask", pgd),
    ("pgd", "foolbox"): ("foolbox", foolbox_pgd),
    ("pgd", "torchattacks"): ("torchattacks", torchattacks_pgd),
    ("apgd", "pytest-gradmask"): ("pytest_gradmask", apgd),
    ("apgd", "autoattack"): ("pyautoattack", autoattack.apgd_ce),
    ("apgd", "torchattacks"): ("torchattacks", torchattacks_apgd),
    ("apgd", "adv-lib"): ("adv_lib", adv_lib_apgd),
}


def installed(package: str) -> bool:
    """Whether a library is installed, so that a comparison can include it."""
    names = ("autoattack", "pyautoattack") if package == "pyautoattack" else (package,)
    return any(importlib.util.find_spec(name) is not None for name in names)
