"""The preflight: checks of the batch and the defense before any attack runs.

Input that cannot be audited raises an error that names the argument, the value and the fix. Input that is unusual but
can be audited becomes a finding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pytest_gradmask.attacks.arguments import check_images, check_labels_of, check_set, check_set_on
from pytest_gradmask.attacks.oracle import Oracle, as_logits, output_of, parameter_dtype
from pytest_gradmask.checks import as_number, check_is, is_a, shown
from pytest_gradmask.defense import Defense
from pytest_gradmask.errors import DefenseError, InputError
from pytest_gradmask.execution.batching import in_batches, on_fewer
from pytest_gradmask.probes.labels import tied_logits
from pytest_gradmask.probes.rejection import check_rejects, examine_rejections, unused_class
from pytest_gradmask.threat import PerturbationSet, ThreatModel, ball_of
from pytest_gradmask.verdict.results import Finding

#: Forward passes that must agree before a defense counts as deterministic. A random choice between two equally likely
#: members is detected with probability 1 - 2**-15. With known members, one of them may answer rarely: a member that
#: answers one in 20 passes is detected with 96 %.
_REPEATS, _REPEATS_OF_MEMBERS = 16, 64
BATCH = 250  # images of one forward pass, if memory allows
_LEAST_MARGIN = 1e-9  # below, the images that would be needed are more than a float counts
_LEAST_LEVELS = 0.1  # grey levels of a radius: the smallest of the literature are a quarter of one
_SAMPLE = 2  # images in the checks that repeat
_VOTERS = 100  # most members of a vote that is recognised by its shares
_SAME = 1e-4  # largest difference of logits, relative to their size, that counts as equal
#: The same between an image in a batch and the image alone. Rounding differs there, and a deep front end amplifies it
#: a thousandfold. Batch norm in train mode or attention across images changes logits by tens of percent.
_SAME_ALONE = 0.02


@dataclass(frozen=True, slots=True)
class Preflight:
    """Properties of a defense that are known before it is attacked.

    Attributes:
        classes: number of classes, without one that means "rejected".
        randomized: whether the same image gets different logits.
        findings: about unusual behaviour.
        rejected: whether the defense rejects each clean image; empty for a defense without a reject option.
        predictions: classes that it answers to all clean images, int64, N.
    """

    classes: int
    randomized: bool
    findings: tuple[Finding, ...]
    rejected: tuple[bool, ...] = ()
    predictions: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long), compare=False)


def check_setting(confidence: float, seed: int = 0, margin: float = 0.05, attempt: int = 1) -> None:
    """Raise `InputError` unless confidence, margin, seed and attempt are valid and gradients can be taken."""
    if not _between(confidence, 0.5, 1):
        raise InputError(f"confidence={shown(confidence)}: must be between 0.5 and 1, such as 0.99")
    if not _between(margin, _LEAST_MARGIN, 1):
        raise InputError(f"margin={shown(margin)}: must be a share of images between 0 and 1, such as 0.05")
    if is_a(seed, bool) or not is_a(seed, int) or abs(seed) >= 2**63:
        raise InputError(f"seed={shown(seed)}: must be an integer, such as 0")
    if is_a(attempt, bool) or not is_a(attempt, int) or not 1 <= attempt <= 10**6:
        raise InputError(
            f"attempt={shown(attempt)}: must be an integer of at least 1, which is the first audit of a defense"
        )
    if torch.is_inference_mode_enabled():
        raise InputError("torch.inference_mode() is on: no gradient can be taken inside; call this outside of it")


def check_deadline(deadline: float) -> float:
    """The deadline; `InputError` unless it is a number of seconds above 0."""
    if is_a(deadline, bool) or not _between(deadline, 0, math.inf):
        raise InputError(f"deadline={shown(deadline)}: must be a number of seconds above 0, or None")
    return deadline


def _between(value: object, low: float, high: float) -> bool:
    number = as_number(value)
    return number is not None and low < number < high


def check_device(device: str) -> torch.device:
    """The device of this name; `InputError` if there is none or if it cannot compute."""
    check_is("device", device, "the name of a device, such as cpu or cuda", str, torch.device)
    try:
        found = torch.device(device)
        torch.zeros(1, device=found).item()
    except Exception as error:  # each backend raises an exception of another type
        fix = "use cpu, cuda or cuda:N, of which this machine has "
        count = torch.cuda.device_count()
        available = ", ".join(["cpu", *(f"cuda:{index}" for index in range(count))])
        raise InputError(
            f"device={shown(device)}: cannot be used ({type(error).__name__}); {fix}{available}"
        ) from error
    return found


def check_ball(threat: PerturbationSet) -> None:
    """Raise `InputError` unless this is a norm ball."""
    if not is_a(threat, ThreatModel):
        raise InputError(f"threat={shown(threat)}: must be a ThreatModel, such as ThreatModel(eps=8/255)")


def check_batch(images: Tensor, labels: Tensor, threat: PerturbationSet) -> None:
    """Raise `InputError` unless images and labels are ready to use."""
    check_set(threat)
    check_images(images)
    check_labels_of(images, labels)
    low, high = images.min().item(), images.max().item()
    tolerance = ball_of(threat).tolerance
    if low < threat.bounds[0] - tolerance or high > threat.bounds[1] + tolerance:
        hint = "; divide by 255" if high > 2 and threat.bounds == (0.0, 1.0) else ""
        raise InputError(
            f"images: values from {low:.4g} to {high:.4g} are outside the bounds {threat.bounds}{hint}; put a "
            "normalisation inside the model, or give ThreatModel(bounds=...)"
        )
    check_set_on(threat, images[:_SAMPLE])


def small_eps(threat: PerturbationSet, images: Tensor) -> list[Finding]:
    """Whether the radius is far below a grey level of the images, which are N x C x H x W.

    Usually the bounds are then (0, 255), and eps is one for (0, 1). No attack succeeds, and nothing else says why.
    """
    if not isinstance(threat, ThreatModel) or threat.norm != "Linf" or images.ndim != 4:
        return []
    width = threat.bounds[1] - threat.bounds[0]
    levels = 255 * threat.eps / width
    if levels >= _LEAST_LEVELS or width <= 1:  # inside (0, 1) nobody mistakes the units, and a tiny eps is meant
        return []
    return [
        Finding(
            "tiny-eps",
            f"eps={threat.eps:.3g} is {levels:.2g} grey levels of images in {threat.bounds}: eps is in input units, "
            f"such as {threat.eps * width:.3g} if it was meant for images in (0, 1)",
            undermines_attacks=True,
        )
    ]


def check_defense(defense: Defense, oracle: Oracle, images: Tensor, labels: Tensor) -> Preflight:
    """Check how the defense behaves on clean images.

    Raises:
        DefenseError: the defense is in train mode, its forward raises, its output is not a finite N x K tensor of
            floats, or it returns probabilities although logits were declared.
        InputError: labels are out of range, or ``rejects`` does not fit the outputs.
    """
    for model in (defense.model, *defense.members, *defense.sources):
        _check_eval_mode(model)
    raw = _outputs(defense, oracle, images)
    classes = raw.shape[1]
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"labels: range from {labels.min().item()} to {labels.max().item()}, but {defense.name} has {classes} "
            f"classes; labels must be in 0..{classes - 1}"
        )
    check_rejects(defense, raw, labels)
    logits = as_logits(raw, defense.outputs)
    rejected: tuple[bool, ...] = ()
    if defense.rejects is None:
        findings = unused_class(logits, labels)
    else:
        findings, rejected = examine_rejections(defense.rejects, raw, logits)
    findings += tied_logits(logits, labels)
    number = _REPEATS_OF_MEMBERS if defense.members else _REPEATS

    def repeated(few: int) -> Tensor:
        return torch.stack([oracle(images[:few]) for _ in range(number)])

    with torch.no_grad():
        repeats = on_fewer(repeated, len(images[:_SAMPLE]))
        scale = repeats.abs().amax().clamp_min(1e-12)
        spread = ((repeats.amax(0) - repeats.amin(0)).max() / scale).item()
        randomized = spread > _SAME
        if randomized:
            findings.append(
                Finding("randomized", f"the same image gets logits that differ by up to {spread:.2g} of their size")
            )
        elif len(images) > 1:
            alone = oracle(images[:1])
            together = in_batches(lambda start, end: oracle(images[start:end]), len(images[:BATCH]), BATCH)[0]
            change = ((alone - together[:1]).abs().max() / scale).item()
            if change > _SAME_ALONE:
                findings.append(
                    Finding(
                        "batch-dependence",
                        f"an image's logits differ by {change:.2g} of their size alone and in a batch: each image's "
                        "robustness depends on its neighbours",
                        undermines_attacks=True,
                    )
                )
    if defense.outputs == "probabilities":
        findings.append(
            Finding("probabilities", f"the model returns {_kind_of_probabilities(raw)}; attacks used their logarithm")
        )
    classes_of_rejection = isinstance(defense.rejects, int)
    return Preflight(classes - classes_of_rejection, randomized, tuple(findings), rejected, raw.argmax(1))


def _check_eval_mode(model: nn.Module) -> None:
    if getattr(model, "training", False) and not _without_modes(model):
        raise DefenseError(f"{type(model).__name__} is in train mode; call model.eval() first")
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.training:
            raise DefenseError(
                f"the batch norm layer {shown(name)} is in train mode, so images change each other's logits; "
                "call model.eval() first (dropout left on by intention may stay in train mode)"
            )


def _without_modes(model: nn.Module) -> bool:
    """Whether a model is an exported program, whose mode is that of its export: its own ``eval`` raises."""
    return isinstance(model, torch.fx.GraphModule) and "eval" in vars(model)


def _outputs(defense: Defense, oracle: Oracle, images: Tensor) -> Tensor:
    """The outputs for all images as the model returns them, N x K, computed and checked batch by batch."""

    def part(start: int, end: int) -> Tensor:
        # Not through the oracle, which converts the output of the model.
        batch = images[start:end].to(parameter_dtype(defense.model), copy=True)
        oracle.refresh()
        with torch.no_grad():
            raw = output_of(defense.name, defense.model, batch)
        _check_output(defense, raw, images[start:end])
        return raw

    return torch.cat(in_batches(part, len(images), BATCH))


def _check_output(defense: Defense, output: object, images: Tensor) -> None:
    if not isinstance(output, Tensor):
        raise DefenseError(
            f"{defense.name} returns {type(output).__name__}, not a tensor of logits; wrap it in a module that "
            "returns the logits alone"
        )
    if output.is_nested or output.layout is not torch.strided:
        kind, plain = ("a nested tensor", "torch.stack(logits.unbind())") if output.is_nested else (
            f"logits of layout {output.layout}", "logits.to_dense()"
        )  # fmt: skip
        raise DefenseError(f"{defense.name} returns {kind}; use {plain}")
    if output.ndim != 2 or len(output) != len(images) or output.shape[1] < 2:
        raise DefenseError(
            f"{defense.name} maps images of shape {tuple(images.shape)} to shape {tuple(output.shape)}; logits must "
            f"be {len(images)} x K with K of at least 2 (for a single score s before a sigmoid return "
            '(0, s); after it return (1 - s, s), and give outputs="probabilities")'
        )
    if not output.is_floating_point():
        raise DefenseError(f"{defense.name} returns {output.dtype}; logits must be floating point: use logits.float()")
    if output.device != images.device:
        raise DefenseError(
            f"{defense.name} returns logits on {output.device} for images on {images.device}; "
            "use logits.to(images.device)"
        )
    if not output.isfinite().all():
        bad = int((~output.isfinite().all(1)).sum())
        raise DefenseError(f"{defense.name} returns NaN or infinite logits for {bad} of {len(images)} clean images")
    probabilities = are_probabilities(output)
    if defense.outputs == "logits" and probabilities:
        raise DefenseError(
            f"{defense.name} returns {_kind_of_probabilities(output)}, not logits. Return what they are computed from, "
            'or pass Defense(model, outputs="probabilities") to have their logarithm attacked'
        )
    if defense.outputs == "probabilities" and not probabilities:
        raise DefenseError(
            f'{defense.name} was declared with outputs="probabilities", but its rows do not sum to 1; drop outputs='
        )


def are_probabilities(output: Tensor) -> bool:
    """Whether outputs, N x K, may be probabilities: none below zero, and the sum of each row is 1."""
    if output.ndim != 2 or not output.is_floating_point():
        return False
    values = output.float()
    return bool((values >= -_SAME).all() and ((values.sum(1) - 1).abs() < 1e-3).all())


def _kind_of_probabilities(output: Tensor) -> str:
    """What probabilities probably come from."""
    values = output.detach().double().cpu()
    if bool((values.minimum((1 - values).abs()) < 1e-6).all()):
        return "0 and 1 alone (hard labels, or a softmax that saturates)"
    for voters in range(2, _VOTERS + 1):
        counts = values * voters
        # As exact as shares are: a softmax that is nearly sure is within 1e-4 of 0 and 1 as well.
        rounding = min(1e-4, 4 * voters * torch.finfo(output.dtype).eps)
        if bool(((counts - counts.round()).abs() < rounding).all()):
            return f"vote shares (multiples of 1/{voters}, or a mean of softmaxes that saturate)"
    return "probabilities"
