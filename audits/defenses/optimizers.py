"""Defenses that optimise at inference: they change each image, along gradients of the classifier that they protect."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

from audits.defenses.entry import Entry, around, story
from audits.defenses.references import ITSELF, attack_views, instead, multi_targeted, view_of


class AntiAdversary(nn.Module):
    """A perturbation that makes the classifier surer of its own answer, found by signed gradient steps.

    Proposed by Alfarra et al. ("Combating adversaries with anti-adversaries", AAAI 2022, arXiv:2103.14347), around
    adversarially trained classifiers and with these settings: two steps of 0.15. The perturbation has no gradient of
    its own, and the answer at the perturbed image is so sure that the rest of the gradient says little. Croce et al.
    ("Evaluating the adversarial robustness of adaptive test-time defenses", ICML 2022, arXiv:2202.13711) find that
    adversarial examples of the classifier inside transfer, as the layer hardly ever changes the class. The reference
    attacks this classifier, and uses BPDA: the outputs of the defense with the gradient of the classifier at the image.

    Args:
        model: the classifier inside.
        step_size: in input units.
        steps: of the optimisation.
    """

    def __init__(self, model: nn.Module, step_size: float = 0.15, steps: int = 2) -> None:
        super().__init__()
        self.model, self.step_size, self.steps = model, step_size, steps
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        with torch.enable_grad():
            change = torch.zeros_like(images, requires_grad=True)
            answers = self.model(images.detach()).argmax(1)
            for _ in range(self.steps):
                loss = cross_entropy(self.model(images.detach() + change), answers, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, change)
                change = (change - self.step_size * gradient.sign()).detach().requires_grad_(True)
        return self.model(images + change.detach())  # type: ignore[no-any-return]


class Hedge(nn.Module):
    """A perturbation that raises the sum of the cross-entropies of all classes.

    Proposed by Wu et al. ("Attacking adversarial attacks as a defense", 2021, arXiv:2106.04938), around adversarially
    trained classifiers: a wrong answer is less stable than a right one, so that attacking all classes at once often
    restores the right one. They search a ball of 8/255 from a random start in 20 steps of 4/255. Here the search starts
    at the image, so that the defense is deterministic, and has 5 steps. Croce et al. (ICML 2022, arXiv:2202.13711) find
    that it adds little against adversarial examples of the classifier inside and BPDA.

    Args:
        model: the classifier inside.
        eps: radius of the ball, in input units.
        step_size: in input units.
        steps: of the optimisation.
    """

    def __init__(self, model: nn.Module, eps: float = 8 / 255, step_size: float = 4 / 255, steps: int = 5) -> None:
        super().__init__()
        self.model, self.eps, self.step_size, self.steps = model, eps, step_size, steps
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        with torch.enable_grad():
            change = torch.zeros_like(images, requires_grad=True)
            for _ in range(self.steps):
                loss = -log_softmax(self.model(images.detach() + change), 1).sum()
                (gradient,) = torch.autograd.grad(loss, change)
                moved = (change + self.step_size * gradient.sign()).clamp(-self.eps, self.eps)
                change = moved.detach().requires_grad_(True)
        return self.model((images + change.detach()).clamp(0, 1))  # type: ignore[no-any-return]


def _static(model: nn.Module, images: Tensor) -> Tensor:
    """The classifier without its optimisation."""
    return model.get_submodule("model")(images)  # type: ignore[no-any-return]


#: Of the first view, examples are kept where they fool the defense, too.
_AROUND = (view_of(_static), instead(_static))

ENTRIES = tuple(
    Entry(
        name=name,
        backbone=backbone,
        build=around(kind, backbone),
        reference=partial(attack_views, views=views, losses=multi_targeted(10), steps=40),
        story=story(kind),
        suspicious=True,
        slow=True,
    )
    for name, kind, backbone, views in (
        ("anti-adversary", AntiAdversary, "resnet-adversarial", _AROUND),
        ("hedge", Hedge, "vgg-adversarial", (*_AROUND, ITSELF)),
    )
)
