"""Is the gradient the derivative of the function that is evaluated?

A backward pass can be written by hand. One that is wrong sends gradient attacks astray while the forward pass, and so
every other figure, stays as it was.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.execution.second_try import at_second_try
from pytest_gradmask.probes.differences import RESOLVED, Comparison, Subject, backward, compare, differences
from pytest_gradmask.probes.double import RoundingToSingle, computing_in_double, double_copy
from pytest_gradmask.probes.locate import locate
from pytest_gradmask.threat import ThreatModel, per_image
from pytest_gradmask.verdict.results import Finding

#: Points at which derivatives are compared, and random directions at each. A point at which they disagree is asked
#: again, alone and in more directions; at most two are.
_POINTS, _DIRECTIONS, _CONFIRM, _SUSPECTS = 4, 3, 8, 2
#: In float64: the steps to try, as shares of the range of pixels, so small that hardly a unit changes sides. The second
#: is for functions whose derivative changes over the first. On 63 honest models errors are 3e-6 and less
#: (audits/honest; 37 of them with four seeds each in audits/honest/derivative.json).
_STEPS, _KINK, _DISAGREE = (1e-9, 1e-11), 0.02, 0.05
#: Change of the logits, as a share of the largest, that two points a thousandth of the last step apart can only show
#: where something is computed in float32.
_NOT_DOUBLE = 1e-8
#: In float32 of its own: the same, and the number of directions. The gradient of the defense itself has errors of up to
#: 0.05 on honest models in float32 against differences in float64, and of up to 0.32 in bfloat16.
_OWN_STEPS, _OWN_KINK, _OWN_DISAGREE, _OWN_DIRECTIONS = (3e-4, 3e-3), 0.05, 0.3, 8
#: Points are off the grid of 8 bits and this share of the range inside the bounds, where a clamp has a kink.
_INSIDE = 1e-3
#: Cosine with the derivative above which attacks can follow a gradient all the same.
_FOLLOWED = 0.9
#: Distances, as shares of eps, at which an attack may follow a gradient that is not the derivative at a point; the
#: cosine with the changes of the margin over one of them that shows it, and the directions in which it is estimated.
_FAR, _FOLLOWED_FAR, _FAR_DIRECTIONS = (1 / 16, 1 / 4, 1.0), 0.95, 16
#: Share of the error of a gradient in float32 that rounding after each operation has to make to explain it. It makes
#: 0.34 to 1.02 of that of random-front-end and trained-front-end (16 points), as operations also round inside.
_ROUNDING = 0.2
#: Change of the logits by float64, as a share of their spread, above which the copy is another function.
#: Noise that is drawn in float64 is other noise, and moves logits by more.
_SAME = 0.002


def wrong_gradient(oracle: Oracle, images: Tensor, threat: ThreatModel, generator: torch.Generator) -> list[Finding]:
    """Whether gradients by autograd are the derivatives of the logits, and where in the defense they are not.

    Looks at four points near images: at the derivatives of two functions of the logits, the margin one of them, in
    four random directions. A copy of the defense in float64 tells them exactly. A defense that cannot be copied, or
    does not compute in float64 when it is asked to, is looked at in float32, if that is its own precision and tells
    anything.

    Costs 10 forwards and 2 passes each way of four images in float64, and one pass each way of the defense itself;
    more only where derivatives disagree. What fails here is no finding: other probes say where a gradient cannot be
    taken.

    Args:
        oracle: the defense, its random numbers frozen: the same images get the same logits.
        images: N x C x H x W, of which the first are taken.
        threat: its eps tells how far from the images the points are.
        generator: draws points, directions and functions; a CPU generator.
    """
    points = points_near(images[:_POINTS], threat, generator).to(oracle.dtype)
    check = DerivativeCheck(oracle, points, threat, generator)
    for attempt in (check.in_double, check.in_own_precision):
        # A copy may be impossible for reasons that are nobody's fault, and the user cannot help what it warns of.
        with suppress(Exception), oracle.without_rejection(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = at_second_try(attempt)
            if found is not None:
                return found
    return []


def points_near(images: Tensor, threat: ThreatModel, generator: torch.Generator) -> Tensor:
    """Points near images, every other one as far as eps; off the grid, and inside the bounds."""
    low, high = threat.bounds
    inside = _INSIDE * (high - low)
    far = threat.pixel_eps(images[0].numel())
    reach = per_image(torch.full((len(images),), inside, dtype=images.dtype), images)
    reach[1::2] = max(inside, min(far, high - low))
    noise = (2 * torch.rand(images.shape, generator=generator) - 1) * reach
    moved = (images + noise.to(images)).clamp(low, high)
    return low + inside + (moved - low) * (1 - 2 * _INSIDE)


@dataclass(frozen=True, slots=True)
class _Seen:
    """Derivatives of 2 functions of the logits at N points.

    Attributes:
        comparison: D x 2N, the margin first.
        gradients: of the two functions, each N x C x H x W, float64.
        weights: the two functions, as N x K weights of logits.
        logits: N x K.
        derivatives: the directions (D x N x C x H x W), the slopes ahead and behind (D x 2N) and their floor (2N).
        noise: change of the logits between neighbouring points, as a share of the largest.
    """

    comparison: Comparison
    gradients: list[Tensor]
    weights: list[Tensor]
    logits: Tensor
    derivatives: tuple[Tensor, ...]
    noise: float

    def tells(self) -> bool:
        """Whether derivatives are measured at half of the points or more."""
        errors = self.comparison.errors()
        return 2 * int((~errors.isnan()).sum()) >= len(errors)

    def against(self, gradient: Tensor, known: Tensor) -> Comparison:
        """The derivatives of the margin against another gradient of it, at the points that are known; bool, N."""
        directions, ahead, behind, floor = self.derivatives
        promised = (gradient.double() * directions).flatten(2).sum(2)
        count = len(self.logits)
        floor = floor[:count].masked_fill(~known, float("inf"))
        return compare(promised, ahead[:, :count], behind[:, :count], floor, _OWN_KINK)


@dataclass(frozen=True, slots=True)
class DerivativeCheck:
    """The check of one defense at some points.

    Attributes:
        oracle: the defense, its random numbers frozen.
        points: N x C x H x W, in the precision of the defense.
        threat: of which the bounds and eps are taken.
        generator: draws directions and functions; a CPU generator.
    """

    oracle: Oracle
    points: Tensor
    threat: ThreatModel
    generator: torch.Generator

    def double_subjects(self) -> list[Subject]:
        """A copy of the defense in float64, with each step to try."""
        model = double_copy(self.oracle.model)
        inside = partial(_inside, self.oracle)
        return [
            Subject(model=model, inside=inside, dtype=torch.float64, step=step, kink=_KINK, disagree=_DISAGREE)
            for step in _STEPS
        ]

    def in_double(self) -> list[Finding] | None:
        """None where a copy does not compute in float64."""
        for subject in self.double_subjects():
            seen = self.see(subject, self.points)
            if seen.tells():
                return self._judge(subject, seen)
        return None if seen.noise > _NOT_DOUBLE else []  # or else it is too rough

    def in_own_precision(self) -> list[Finding] | None:
        """None where rounding hides the derivatives."""
        if self.oracle.dtype != torch.float32:
            return None
        for step in _OWN_STEPS:
            subject = Subject(
                model=self.oracle.model, inside=self.oracle.drawing, dtype=torch.float32, step=step, kink=_OWN_KINK,
                disagree=_OWN_DISAGREE,
            )  # fmt: skip
            seen = self.see(subject, self.points, _OWN_DIRECTIONS)
            if seen.tells():
                return self._judge(subject, seen)
        return None

    def _judge(self, subject: Subject, seen: _Seen) -> list[Finding]:
        wrong = (seen.comparison.errors() > subject.disagree).view(2, -1).any(0)
        if subject.dtype == torch.float64 and self.oracle.dtype == torch.float32:
            wrong |= self.own(seen, self.points)[0].errors() > _OWN_DISAGREE
        wrong &= seen.gradients[0].flatten(1).any(1)  # a gradient of zero has a finding of its own
        suspects = wrong.nonzero().flatten().tolist()
        asked = [self._confirm(subject, self.points[index : index + 1]) for index in suspects[:_SUSPECTS]]
        confirmed = [each for each in asked if each]
        if confirmed and subject.dtype == torch.float64 and all(each.comparison.is_step() for each in confirmed):
            # A step, or something that is computed in float32 all the same: then larger steps show its derivatives.
            found = self.in_own_precision()
            if found is not None:
                return found
        return self._finding(subject, confirmed, len(suspects)) if confirmed else []

    def see(self, subject: Subject, points: Tensor, directions: int = _DIRECTIONS) -> _Seen:
        """Derivatives of the margin and of a random function of the logits, by autograd and by differences."""
        function = partial(_logits, subject, self.oracle)
        points = points.to(subject.dtype)
        step = subject.step * (self.threat.bounds[1] - self.threat.bounds[0])
        with torch.no_grad():
            logits = function([points])[0]
        if logits.dtype != subject.dtype:
            raise TypeError(f"logits are {logits.dtype}")
        logits = logits.double()
        top = logits.topk(2, dim=1).indices
        margin = torch.zeros_like(logits).scatter(1, top[:, :1], -1.0).scatter(1, top[:, 1:], 1.0)
        random = torch.randn(logits.shape, generator=self.generator, dtype=torch.float64).to(logits)
        weights = [margin, random / logits.shape[1] ** 0.5]
        gradients = [backward(function, [points], [each])[0].double() for each in weights]
        seen = differences(function, [points], step, directions, self.generator)
        ways = torch.stack([way.double() for (way,) in seen.directions])
        promised = torch.cat([(each * ways).flatten(2).sum(2) for each in gradients], 1)
        ahead, behind = (
            torch.cat([(torch.stack([slope for (slope,) in side]) * each).sum(2) for each in weights], 1)
            for side in (seen.ahead, seen.behind)
        )
        floor = torch.cat([(seen.noise[0] * each).norm(dim=1) for each in weights])
        comparison = compare(promised, ahead, behind, floor, subject.kink)
        noise = float(seen.noise[0].abs().amax() * step / RESOLVED / logits.abs().amax().clamp_min(1e-300))
        return _Seen(comparison, gradients, weights, logits, (ways, ahead, behind, floor), noise)

    def own(self, seen: _Seen, points: Tensor) -> tuple[Comparison, Tensor]:
        """The comparison with the margin's gradient that the defense itself gives, and this gradient.

        Not measured where the logits of the defense are not those of the copy.
        """
        logits: list[Tensor] = []

        def recorded(inputs: Sequence[Tensor]) -> list[Tensor]:
            logits[:] = [self.oracle(inputs[0])]
            return logits

        (gradient,) = backward(recorded, [points], [seen.weights[0]])
        changed = (logits[0].detach().double() - seen.logits).abs().amax(1)
        same = changed <= _SAME * (seen.logits.amax(1) - seen.logits.amin(1))
        return seen.against(gradient, same & gradient.flatten(1).any(1)), gradient

    def _confirm(self, subject: Subject, point: Tensor) -> _Confirmed | None:
        """What is wrong at one point, asked alone: in a batch, another image may be the reason."""
        seen = self.see(subject, point, _CONFIRM)
        if bool((seen.comparison.errors() > subject.disagree).any()):
            return _Confirmed(point, seen, seen.comparison, seen.gradients[0])
        if subject.dtype != torch.float64 or self.oracle.dtype != torch.float32:
            return None
        own, gradient = self.own(seen, point)
        if bool((own.errors() > _OWN_DISAGREE).any()) and own.cosine() < _FOLLOWED:
            return _Confirmed(point, seen, own, gradient, own=True)
        return None

    def _is_followed(self, subject: Subject, confirmed: Sequence[_Confirmed]) -> bool:
        """Whether the gradient foresees changes of the margin over one of the distances at which attacks step."""
        function = partial(_logits, subject, self.oracle)
        for share in _FAR:
            size = share * self.threat.pixel_eps(self.points[0].numel())
            promised, changes = [], []
            for each in confirmed:
                point = each.point.to(subject.dtype)
                for _ in range(_FAR_DIRECTIONS):
                    signs = torch.randn(point.shape, generator=self.generator).sign().to(point)
                    up, down = ((point + sign * size * signs).clamp(*self.threat.bounds) for sign in (1, -1))
                    with torch.no_grad():
                        change = function([up])[0].double() - function([down])[0].double()
                    promised.append((each.gradient * (up - down)).sum() / each.gradient.norm())
                    changes.append((change * each.seen.weights[0]).sum() / each.gradient.norm())
            left, right = torch.stack(promised), torch.stack(changes)
            if float(left @ right / (left.norm() * right.norm()).clamp_min(1e-300)) > _FOLLOWED_FAR:
                return True
        return False

    def _is_rounding(self, subject: Subject, confirmed: _Confirmed) -> bool:
        """Whether the gradient of the copy is as far off where its operations round as those of the defense do."""
        function, exact = partial(_logits, subject, self.oracle), confirmed.seen.gradients[0]

        def rounded(inputs: Sequence[Tensor]) -> list[Tensor]:
            with RoundingToSingle():
                return function(inputs)

        with suppress(Exception):  # not every operation bears it
            (found,) = backward(rounded, [confirmed.point.to(subject.dtype)], [confirmed.seen.weights[0]])
            return float((found - exact).norm()) > _ROUNDING * float((confirmed.gradient - exact).norm())
        return False

    def _finding(self, subject: Subject, confirmed: list[_Confirmed], suspects: int) -> list[Finding]:
        worst = min(confirmed, key=lambda each: each.comparison.cosine())
        cosine, step = worst.comparison.cosine(), worst.comparison.is_step()
        followed = cosine >= _FOLLOWED or self._is_followed(subject, confirmed)
        precision = str(subject.dtype).removeprefix("torch.")
        if worst.own:
            own, why = str(self.oracle.dtype).removeprefix("torch."), "rounding does not explain it"
            if self._is_rounding(subject, worst):
                why = "rounding alone changes it about as much, and the backward pass is right in float64"
            message = (
                f"in {own} the gradient by autograd is not the derivative of the logits, while that of a copy in "
                f"float64 is (cosine {cosine:.2f}): {why}"
            )
            return [Finding("wrong-gradient", message, not followed)]
        weights = worst.seen.weights[0]
        places = locate(subject, partial(_logits, subject, self.oracle), worst.point, weights, self.generator)
        # What is random may have the gradient of its mean over draws, which attacks that average follow.
        smooth = [place for place in places if not (place.is_step or place.is_random)]
        if followed and not smooth:
            return []  # a straight-through gradient that says what the loss does over the steps of an attack
        where = "; they part at " + " and ".join(str(place) for place in places) if places else ""
        return [
            Finding(
                "wrong-gradient",
                f"at {suspects} of {len(self.points)} points near images the gradient by autograd is not the "
                f"derivative of the logits by central differences in {precision} (cosine {cosine:.2f}){where}",
                not followed and (bool(smooth) or not (places or step)),
            )
        ]


@dataclass(frozen=True, slots=True)
class _Confirmed:
    point: Tensor
    seen: _Seen
    comparison: Comparison
    gradient: Tensor
    own: bool = False


@contextmanager
def _inside(oracle: Oracle) -> Iterator[None]:
    with oracle.drawing(), computing_in_double():
        yield


def _logits(subject: Subject, oracle: Oracle, inputs: Sequence[Tensor]) -> list[Tensor]:
    with subject.inside():
        raw = subject.model(inputs[0])
    return [raw.clamp_min(torch.finfo(raw.dtype).tiny).log() if oracle.outputs == "probabilities" else raw]
