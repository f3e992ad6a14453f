"""``python -m pytest_gradmask.report.robustbench``: an audit as an external evaluation for RobustBench.

RobustBench (Croce et al. 2021, arXiv:2010.09670) takes evaluations of its models by others: the adversarial images of
the whole test set, and an issue that describes them. This command makes these images, the text of the issue, and the
file of ``model_info`` with the new figure. It sends nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pytest_gradmask.auditing.bench import Bench, bench
from pytest_gradmask.auditing.budgets import Budget
from pytest_gradmask.errors import GradmaskError, InputError
from pytest_gradmask.execution.files import replaced
from pytest_gradmask.loading.datasets import load_dataset
from pytest_gradmask.loading.sources import load_model
from pytest_gradmask.loading.specs import parse_model
from pytest_gradmask.randomized.prediction import is_correct
from pytest_gradmask.report.evidence.reruns import run_again
from pytest_gradmask.report.wording import verdict_sentence
from pytest_gradmask.threat import ThreatModel

#: Images of the test set of each leaderboard: RobustBench takes 5,000 images of ImageNet.
TEST_IMAGES = {"cifar10": 10_000, "cifar100": 10_000, "imagenet": 5_000}
#: The eps of its leaderboards.
_EPS = {
    ("cifar10", "Linf"): 8 / 255, ("cifar100", "Linf"): 8 / 255, ("imagenet", "Linf"): 4 / 255, ("cifar10", "L2"): 0.5,
}  # fmt: skip
#: The fields of a file of ``model_info`` that an audit does not know.
_UNKNOWN = {
    "link": "", "name": "", "authors": "", "additional_data": None, "number_forward_passes": None, "venue": "",
    "architecture": "",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The worst adversarial images that were found, with what a deterministic defense makes of them.

    Attributes:
        images: N x C x H x W, float32, in the order of the test set. An image that nothing broke is as it was.
        clean, robust: percentages of the images that are classified correctly without and with the perturbation.
        attacks: those that broke an image which none before them broke.
    """

    images: Tensor
    clean: float
    robust: float
    attacks: tuple[str, ...]


def evaluate(prepared: Bench) -> Evaluation:
    """Run all attacks of a bench, each on what those before it left.

    Raises:
        InputError: the defense is randomized: RobustBench judges by one forward pass.
    """
    if prepared.predictions:
        raise InputError("the defense is randomized, and RobustBench takes deterministic ones only")
    scorer = prepared.scorer
    worst = scorer.images.clone()
    left = [index for index, right in enumerate(prepared.clean) if right]
    attacks = []
    for name in prepared.attacks:
        if not left:
            break
        rerun = run_again(prepared, name, left)
        broken = set(rerun.result.broken)
        for index, image in zip(rerun.attacked, rerun.returned, strict=False):
            if index in broken:
                worst[index] = image
        if broken:
            attacks.append(name)
            left = [index for index in left if index not in broken]
    robust = is_correct(scorer.oracle, worst, scorer.labels)
    clean = sum(prepared.clean) / len(worst)
    return Evaluation(
        images=worst.cpu(), clean=100 * clean, robust=100 * robust.float().mean().item(), attacks=tuple(attacks)
    )


def model_info(known: Mapping[str, Any], found: Evaluation, *, model: str, threat: ThreatModel) -> dict[str, Any]:
    """The file of RobustBench's ``model_info`` for a model, with the evaluation as its field ``external``.

    Args:
        known: the file as RobustBench has it, whose other fields stay. If empty, fields that an audit does not know
            are empty or null.
        found: the evaluation.
        model: ``robustbench:DATASET/THREAT/NAME``.
        threat: of the evaluation.
    """
    dataset = parse_model(model).name.split("/")[0]
    base = {"dataset": dataset, "eps": eps_text(threat), "clean_acc": f"{found.clean:.2f}"}
    external = f"{found.robust:.2f}"
    if known.get("external") and float(known["external"]) < found.robust:
        external = str(known["external"])  # an evaluation that is lower already
    return {**_UNKNOWN, **base, **known, "external": external}


def eps_text(threat: ThreatModel) -> str:
    """Eps as RobustBench writes it: in steps of 1/255 for Linf, and as a number otherwise."""
    return f"{255 * threat.eps:.3g}/255" if threat.norm == "Linf" else f"{threat.eps:g}"


def issue(
    audit: Mapping[str, Any], found: Evaluation, *, model: str, threat: ThreatModel, author: str, images: str
) -> str:
    """The text of RobustBench's issue "New external evaluation(s)", in Markdown; its title is the first line.

    Args:
        audit: of this model, in the JSON form of a run.
        found: the evaluation.
        model: ``robustbench:DATASET/THREAT/NAME``.
        threat: of the evaluation.
        author: who made it.
        images: link to the adversarial images, or their file.
    """
    dataset, norm, name = parse_model(model).name.split("/")
    version = audit["provenance"].get("versions", {}).get("pytest-gradmask", "")
    number, whole = len(found.images), TEST_IMAGES[dataset]
    lines = [
        f"[New evaluation] <{name}>",
        "",
        "## Target model",
        f"+ **Model identifier(s):** {name}",
        f"+ **Leaderboard(s):** {dataset}, {norm}, eps = {eps_text(threat)}",
        "",
        "## New evaluation",
        f"+ **Link to adversarial images:** {images}",
        f"+ **Robust accuracy:** {found.robust:.2f}% (clean: {found.clean:.2f}%)",
        f"+ **Author(s):** {author}",
        f"+ **Description of the method used:** pytest-gradmask {version}, budget {audit['provenance']['budget']}. "
        f"The attacks that broke images, each on what those before it left: {', '.join(found.attacks) or 'none'}. "
        f"Its audit for gradient masking: {verdict_sentence(audit)}",
    ]
    if number != whole:
        lines += ["", f"These are {number:,} images. The leaderboard needs all {whole:,} of its test set."]
    wanted = ThreatModel(_EPS.get((dataset, norm), threat.eps), threat.norm)
    if abs(threat.eps - wanted.eps) > threat.tolerance:
        lines += ["", f"This is about eps = {eps_text(threat)}. The leaderboard is about eps = {eps_text(wanted)}."]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m pytest_gradmask.report.robustbench", description=(__doc__ or "").partition(": ")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("run", type=Path, help="what --gradmask-json wrote")
    parser.add_argument("--model", required=True, help="robustbench:NAME or robustbench:DATASET/THREAT/NAME")
    parser.add_argument("--data", required=True, help="the test set, in its order: as for --gradmask-data")
    parser.add_argument("--by", required=True, help="who made the evaluation")
    parser.add_argument("--images", default="", help="where the adversarial images can be downloaded")
    parser.add_argument("--model-info", type=Path, help="the JSON file that RobustBench has for this model")
    parser.add_argument("--test", default="", help="the test of the run, if it has several audits")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path(), help="folder for the three files")
    try:
        _write(parser.parse_args(arguments))
    except (GradmaskError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _write(options: argparse.Namespace) -> None:
    spec = parse_model(options.model)
    if spec.kind != "robustbench":
        raise InputError(f"--model {options.model!r}: must be one of RobustBench, as in robustbench:Standard")
    audit = _audit(options.run, options.test)
    threat = _threat(audit, spec.name.split("/")[1])
    known = _read(options.model_info) if options.model_info else {}
    data = load_dataset(options.data)
    provenance = audit["provenance"]
    with bench(
        load_model(options.model), data.images, data.labels, threat=threat,
        budget=Budget(name=provenance["budget"], **provenance["budget_settings"]), device=options.device,
        seed=provenance["seed"],
    ) as prepared:  # fmt: skip
        found = evaluate(prepared)
    name = spec.name.rpartition("/")[2]
    options.output.mkdir(parents=True, exist_ok=True)
    files = [options.output / f"{name}{end}" for end in (".pt", ".json", "-issue.md")]
    with replaced(files[0]) as part:
        torch.save(found.images, part)
    files[1].write_text(json.dumps(model_info(known, found, model=options.model, threat=threat), indent=2) + "\n")
    text = issue(
        audit, found, model=options.model, threat=threat, author=options.by, images=options.images or files[0].name
    )
    files[2].write_text(text, encoding="utf-8")
    for file in files:
        print(file)


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: must hold an object")
    return content


def _audit(file: Path, test: str) -> dict[str, Any]:
    audits = [audit for audit in _read(file).get("audits", ()) if test in audit["test"] and not audit["error"]]
    if len(audits) != 1:
        raise InputError(f"{file}: has {len(audits)} audits of {test!r}; name one with --test")
    audit: dict[str, Any] = audits[0]
    if "budget_settings" not in audit["provenance"]:
        raise InputError(f"{file}: its audit did not end, or is of an earlier version; audit again")
    return audit


def _threat(audit: Mapping[str, Any], norm: str) -> ThreatModel:
    threat = audit["provenance"]["threat"]
    if threat["norm"] != norm:
        raise InputError(f"the audit is about {threat['norm']}, and the leaderboard about {norm}")
    return ThreatModel(threat["eps"], threat["norm"], tuple(threat["bounds"]))


if __name__ == "__main__":
    sys.exit(main())
