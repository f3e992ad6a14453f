"""Reject options: a detector as one more class, and what counts as broken then.

A defense with a reject option has logits z of its classes and a logit d of "rejected" (Carlini and Wagner 2017,
arXiv:1705.07263). If ``rejects`` is a class index, d is the logit of that class. If it is a function with a score s,
logits are taken relative to the largest one, z - max(z), and d = s: "rejected" is then largest exactly where s > 0.

An adversarial image with the label y is *broken* if a class other than y is at least as large as both z_y and d: it is
misclassified, and it is accepted. Both the label and "rejected" are safe answers. So attacks and their scoring get

    g_y = max(z_y, d),    g_j = z_j for every other class j,

in which the image is misclassified exactly where it is broken. Every loss of g is a joint objective. Its gradient acts
on the classifier where the label is the larger safe answer, and on the detector where "rejected" is (the selective
attack of Bryniarski et al. 2021, arXiv:2106.15023).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from pytest_gradmask.attacks.users_code import errors_attributed_to
from pytest_gradmask.defense import Rejects
from pytest_gradmask.execution.second_try import at_second_try


class RejectOption:
    """The logits of a defense with a reject option. All oracles of one audit share it.

    Args:
        rejects: of the `Defense`. The first outputs must be those of the defense itself. Other models, such as the
            sources of transfer attacks, have the same option only if they have as many outputs.

    Attributes:
        rejects: a class index or a function.
        column: the class that means "rejected" in the logits of clean images. Of a function, it is the one after all
            classes, and -1 before the first outputs.
    """

    def __init__(self, rejects: Rejects) -> None:
        self.rejects = rejects
        self.column = rejects if isinstance(rejects, int) else -1
        self._outputs = 0
        self._label: int | None = None

    def __call__(self, raw: Tensor, logits: Tensor) -> Tensor:
        """Logits with "rejected" as a class, or those of `under_attack` inside of that.

        Args:
            raw: outputs of a model, N x K.
            logits: the same as logits.
        """
        if self._outputs == 0:
            self._outputs = raw.shape[1]
            self.column = self.rejects if isinstance(self.rejects, int) else self._outputs
        if raw.shape[1] != self._outputs:
            return logits
        if isinstance(self.rejects, int):
            rejection = logits[:, self.rejects]
            classes = torch.cat([logits[:, : self.rejects], logits[:, self.rejects + 1 :]], 1)
        else:
            rejection = as_score(at_second_try(partial(_asked, self.rejects, raw)))
            classes = logits - logits.amax(1, keepdim=True)
        if self._label is not None:
            return _joint(classes, rejection, self._label)
        return logits if isinstance(self.rejects, int) else torch.cat([classes, rejection[:, None]], 1)

    def counted(self, labels: Tensor) -> Tensor:
        """Class indices, N, as they are counted without the class "rejected"."""
        return labels - (labels > self.column).to(labels) if isinstance(self.rejects, int) else labels

    @contextmanager
    def under_attack(self, labels: Tensor) -> Iterator[Tensor]:
        """Inside, logits have no class "rejected", and an image is misclassified exactly where it is broken.

        Args:
            labels: of the images that are attacked, all the same: a model does not see whose logits it returns.

        Yields:
            The labels, counted without the class "rejected".
        """
        counted = self.counted(labels)
        self._label = int(counted[0])
        try:
            yield counted
        finally:
            self._label = None


@contextmanager
def under_attack(rejection: RejectOption | None, labels: Tensor) -> Iterator[Tensor]:
    """`RejectOption.under_attack`; without a reject option nothing changes, and labels may differ."""
    if rejection is None or len(labels) == 0:
        yield labels
        return
    with rejection.under_attack(labels) as counted:
        yield counted


def _asked(rejects: Callable[[Tensor], Tensor], raw: Tensor) -> Tensor:
    with errors_attributed_to("rejects", raw):
        return rejects(raw)


def as_score(rejected: Tensor) -> Tensor:
    """The answer of a function ``rejects`` as a score, above 0 where an image is rejected; float32, N."""
    return 2.0 * rejected.float() - 1 if rejected.dtype == torch.bool else rejected.float()


def _joint(classes: Tensor, rejection: Tensor, label: int) -> Tensor:
    """The logits g of the equation above."""
    safe = torch.maximum(classes[:, label], rejection)
    if classes.requires_grad and not rejection.requires_grad:
        # Nothing leads away from a rejection that has no gradient, so attacks go on along the classifier's.
        safe = classes[:, label] + (safe - classes[:, label]).detach()
    return torch.cat([classes[:, :label], safe[:, None], classes[:, label + 1 :]], 1)
