"""What the stored trainings say about each claim of the paper: a rule, a verdict and the command to repeat it.

A verdict is "reproduced" where a claim's rule holds; "contradicted" where the bounds exclude it in the set-up measured
here; else "not reproduced". A question is "answered".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from audits.short import PAPER_ENSEMBLE
from audits.trained_masks.evidence import (
    Evidence,
    Measured,
    bounded,
    front_end_name,
    mean_of,
    mean_of_all,
    share_of,
)

#: Bounds that are further apart agree with nearly every figure, and so with none.
_NARROW = 0.3
_SAME, _OTHER, _PARTLY = "transfer-same-backbone", "transfer-other-backbones", "transfer-partly-masked"
_SMALL = ("deep-49-adamw-1e-6", "deep-49-adamw-1e-5", "deep-49-adamw-1e-5-standard")
_STRENGTHS = ("deep-49-vgg-standard", "deep-49-adamw-1e-5", "deep-49-vgg-adversarial")
_PARTLY_STRENGTHS = ("deep-33-vgg-standard", "deep-33-adamw-1e-5", "deep-33-vgg-adversarial")
_PARTLY_RATES = ("deep-33-adamw-1e-6", "deep-33-adamw-1e-5", "deep-33-adamw-1e-4", "deep-33-adamw-1e-3")
_RESNETS = ("deep-49-adamw-1e-5-standard", "deep-49-resnet-adversarial")
_PAPER_DEPTH = ("toolkit-sgd-1e-5", "trial-sgd-sum", "deep-17-adamw-1e-4")
_DEPTHS = ("deep-17-adamw-1e-4", "deep-25-adamw-1e-5", "deep-33-adamw-1e-5", "deep-49-adamw-1e-5")
_FROZEN = "fixed-49-adamw-1e-5"
_OTHERS = (_FROZEN, "unet-15-adamw-1e-5", "unet-50-adamw-1e-5", "invertible-48-adamw-1e-5")


def records(evidence: Evidence) -> list[dict[str, Any]]:
    """One record for each claim and rule, in the form of those of the audits."""
    return [
        *_masks(evidence),
        *_ensembles_as_published(evidence),
        _one_architecture(evidence, _SAME, "depth 49"),
        _one_architecture(evidence, _PARTLY, "depth 33, which mask in part,"),
        *_rates(evidence),
        *_strengths(evidence),
        _between_architectures(evidence),
        _whole_ensemble(evidence),
        *_other_front_ends(evidence),
        _why(evidence),
        _self_and_transfer(evidence),
    ]


def _masks(evidence: Evidence) -> list[dict[str, Any]]:
    deep = [evidence.last(name) for name in _SMALL]
    shallow = [evidence.last(name) for name in _PAPER_DEPTH]
    slow = [evidence.last("deep-49-adamw-1e-6")]
    return [
        _of_runs("1", "Depth 49, trained from the identity", deep, _reproduced(all(run.masked for run in deep))),
        _of_runs("1", "Depth 17, the paper's", shallow, _reproduced(all(run.masked for run in shallow))),
        _of_runs("experiment 1", "Depth 49", slow, _reproduced(all(run.masked for run in slow))),
        _of_runs("experiment 1", "Depth 17, the paper's", shallow, _reproduced(all(run.masked for run in shallow))),
    ]


def _ensembles_as_published(evidence: Evidence) -> list[dict[str, Any]]:
    """Claim 3 by AutoAttack with all its steps, and the paper's figures for it."""
    found = []
    for version in ("standard", "rand"):
        result = f"published-other-backbones-{version}"
        content = evidence.others.get(result)
        if content is None:
            continue
        shares = {name: mean_of_all(content[name]) for name in ("clean", "autoattack", "adaptive")}
        autoattack, adaptive = shares["autoattack"], shares["adaptive"]
        resists = autoattack.value >= shares["clean"].value - 0.2 and adaptive.high < autoattack.low
        backbones = ", ".join(f"`{run['backbone']}`" for run in content["runs"])
        ours = (
            f"three trained front ends of depth 49 before {backbones}: clean {bounded(shares['clean'])}, AutoAttack as "
            f"published ({version}) {bounded(autoattack)}, adaptive attack {bounded(adaptive)}"
        )
        same = all(
            shares[name].low <= high and low <= shares[name].high and shares[name].high - shares[name].low < _NARROW
            for name, (low, high) in PAPER_ENSEMBLE.items()
        )
        for claim, title, holds in (
            ("3", "", resists),
            ("3", "the paper's figures: ", same),
            ("experiment 2", "", resists),
        ):
            found.append(_of_ensemble(claim, evidence, result, title + ours, _reproduced(holds)))
    return found


def _one_architecture(evidence: Evidence, name: str, which: str) -> dict[str, Any]:
    found = _ensemble(evidence.others[name])
    half = found["clean"].value / 2
    verdict = "reproduced" if found["pgd"].high < half else "contradicted" if found["pgd"].low > half else ""
    ours = f"three front ends of {which} before one backbone, chosen at random: {_listed(found)}"
    return _of_ensemble("4", evidence, name, ours, verdict or "not reproduced")


def _rates(evidence: Evidence) -> list[dict[str, Any]]:
    small, large = evidence.surest("deep-49-adamw-1e-5"), evidence.last("deep-49-adamw-1e-3")
    shallow = evidence.last("deep-17-adamw-1e-4")
    partly = [evidence.surest(name) for name in _PARTLY_RATES]
    ends_partly = _reproduced(partly[-1].pgd.high < evidence.surest("deep-33-adamw-1e-5").pgd.low)
    stands = "contradicted" if small.masked else _reproduced(small.bpda.high >= small.pgd.low)
    ends = _reproduced(large.pgd.high < small.pgd.low)
    costs = _of_runs("6", "and costs clean accuracy", [small, large], _reproduced(large.clean.high < small.clean.low))
    clean = "; ".join(f"{run.name}: clean {bounded(run.clean)}" for run in (small, large))
    costs["short"] = f"and costs clean accuracy: {clean}"
    course = list(evidence.runs["deep-49-adamw-1e-3"])
    boundary = [*evidence.runs["deep-49-adamw-1e-6"], *evidence.runs["deep-49-adamw-1e-5"], *course]
    return [
        _of_runs("6", "A rate of 1e-5 already ends the mask", [small], stands),
        _of_runs("6", "A rate of 1e-3 ends it", [small, *course], ends),
        costs,
        _of_runs("6", "A rate of 1e-3 ends it, depth 33, which masks in part", partly, ends_partly),
        _of_runs("experiment 3", "The mask is gone at 1e-5, depth 49", [small], stands),
        _of_runs(
            "experiment 3", "The mask is gone at 1e-4, depth 17, where a smaller rate has made one", [shallow],
            "not reproduced",
        ),
        _of_runs("next check 1", "Rates and steps at depth 49", boundary, "answered"),
        _of_runs("next check 1", "Rates at depth 33, 200 steps", partly, "answered"),
    ]  # fmt: skip


def _strengths(evidence: Evidence) -> list[dict[str, Any]]:
    found = []
    compared = {
        "VGG at eps 0, 4/255 and 8/255": _STRENGTHS,
        "ResNet at eps 0 and 8/255": _RESNETS,
        "VGG at eps 0, 4/255 and 8/255, depth 33, which masks in part": _PARTLY_STRENGTHS,
    }
    for label, names in compared.items():
        runs = [evidence.surest(name) for name in names]
        weak, strong = runs[0].pgd, runs[-1].pgd
        verdict = "contradicted" if strong.high < weak.low else _reproduced(strong.low > weak.high)
        found.append(_of_runs("7", label, runs, verdict))
    return found


def _between_architectures(evidence: Evidence) -> dict[str, Any]:
    same, other = (_transferred(evidence.others[name]) for name in (_SAME, _OTHER))
    holds = {attack: other[attack].high < same[attack].low for attack in ("bpda", "gradient")}
    ours = "; ".join(
        f"{name} fools a composite of the same backbone in {bounded(same[attack])} of cases, "
        f"one of another in {bounded(other[attack])}"
        for attack, name in (("bpda", "BPDA-10"), ("gradient", "PGD-10"))
    )
    record = _of_ensemble("B", evidence, _OTHER, ours, "answered: yes" if all(holds.values()) else "")
    record["commands"] = [_command(evidence, name) for name in (_SAME, _OTHER)]
    record["images"] = sorted({found["common"] for found in (evidence.others[_SAME], evidence.others[_OTHER])})
    if not all(holds.values()):
        record["verdict"] = "answered: for BPDA only" if holds["bpda"] else "answered: no"
    return record


def _whole_ensemble(evidence: Evidence) -> dict[str, Any]:
    found = _ensemble(evidence.others[_OTHER])
    yes = found["bpda"].high < found["pgd"].low
    ours = f"three front ends of depth 49 before three backbones, attacked on their mean: {_listed(found)}"
    return _of_ensemble("C", evidence, _OTHER, ours, f"answered: {'yes' if yes else 'no'}")


def _other_front_ends(evidence: Evidence) -> list[dict[str, Any]]:
    trained = [
        _of_runs(
            "next check 3", f"Trained from the identity, {evidence.last(name).front_end}", [evidence.last(name)],
            f"answered: {'masks' if evidence.last(name).masked else 'does not mask'}",
        )
        for name in _OTHERS
        if name in evidence.runs
    ]  # fmt: skip
    rows = [
        # This file is older than its command's note of what it was measured with.
        *({"architecture": "dncnn", "width": 64, **row} for row in evidence.others.get("untrained", [])),
        *_rows(evidence.others.get("untrained-others", {})),
    ]
    return [*trained, *map(_untrained, rows)]


def _rows(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each row with what holds for all."""
    common = {key: value for key, value in content.items() if key != "rows"}
    return [{"command": "others", **common, **row} for row in content.get("rows", [])]


def _untrained(row: Mapping[str, Any]) -> dict[str, Any]:
    """Of a front end with no training at all: it masks by the rule of `Measured.masked`."""
    found = {attack: share_of(row[attack], row["images"]) for attack in ("clean", "pgd", "bpda")}
    masks = found["pgd"].low > found["bpda"].high and found["pgd"].count >= found["clean"].count / 2
    name = front_end_name(row["architecture"], row["depth"], row["width"])
    rough = f", roughness {row['roughness']:,.1f}" if "roughness" in row else ""
    return {
        "claim": "next check 3",
        "verdict": f"answered: {'masks' if masks else 'does not mask'}",
        "ours": f"random and untrained, {name} before `{row['backbone']}`, "
        f"residual of SD {row['residual_sd']:.2g}{rough}: {_listed(found)}",
        "images": [row["images"]],
        "data": row.get("data", {}).get("test", ""),
        "seed": str(row.get("seed", "")),
        "versions": row.get("versions", {}),
        "commands": [f"python -m audits.trained_masks {row.get('command', 'untrained')} --data imagefolder:DIR"],
    }


def _why(evidence: Evidence) -> dict[str, Any]:
    start = {
        (row["depth"], row["width"]): row["layers"]
        for row in evidence.others["roughness"]["at_start"]
        if row["normalized"]
    }
    rough = ", ".join(f"{depth} x {width}: {layers:,.0f}" for (depth, width), layers in start.items() if width == 16)
    runs = [evidence.last(name) for name in (*_DEPTHS, _FROZEN)]
    record = _of_runs("open question 2", "Depth, and layers that stay random", runs, "answered")
    images = evidence.others["roughness"]["images"]
    record["ours"] += f". Roughness of the layers at the start ({images} images): {rough}"
    record["commands"].append("python -m audits.trained_masks roughness --test TEST --out DIR")
    return record


def _self_and_transfer(evidence: Evidence) -> dict[str, Any]:
    runs = [evidence.surest(name) for name in _STRENGTHS]
    record = _of_runs("open question 3", "Self attacks, VGG at eps 0, 4/255 and 8/255", runs, "answered")
    content = evidence.others[_OTHER]
    backbones = {run["run"]: run["backbone"] for run in content["runs"]}
    crossed = "; ".join(
        f"from {backbones[source]} to {backbones[target]} "
        f"PGD-10 {bounded(share_of(content['gradient'][source][target], content['common']))}, "
        f"BPDA-10 {bounded(share_of(content['bpda'][source][target], content['common']))}"
        for source in backbones
        for target in backbones
    )
    record["ours"] += f". Fooled by transfer, of {content['common']} images that all three get right: {crossed}"
    record["commands"].append(_command(evidence, _OTHER))
    return record


def _reproduced(holds: bool) -> str:
    return "reproduced" if holds else "not reproduced"


def _of_runs(claim: str, title: str, runs: Sequence[Measured], verdict: str) -> dict[str, Any]:
    steps = {run.recipe.name: run.step for run in runs}
    return {
        "claim": claim,
        "verdict": verdict,
        "ours": title,  # a table of the runs has the figures
        "short": f"{title}: " + "; ".join(map(str, runs if len(runs) < 3 else (runs[0], runs[-1]))),
        "images": sorted({run.clean.total for run in runs}),
        "runs": list(runs),
        "data": ", ".join(dict.fromkeys(run.test for run in runs)),
        "seed": ", ".join(sorted({str(run.recipe.seed) for run in runs})),
        "versions": dict(runs[0].versions),
        "commands": [f"python -m audits.trained_masks train {name} --steps {step}" for name, step in steps.items()],
    }


def _of_ensemble(claim: str, evidence: Evidence, result: str, ours: str, verdict: str) -> dict[str, Any]:
    content = evidence.others[result]
    return {
        "claim": claim,
        "verdict": verdict,
        "ours": ours,
        "images": [content["images"]],
        "runs": [],
        "data": content.get("data", {}).get("test", ""),
        "seed": str(content.get("seed", "")),
        "versions": content.get("versions", {}),
        "commands": [_command(evidence, result)],
    }


def _ensemble(content: Mapping[str, Any]) -> dict[str, Any]:
    return {attack: mean_of(share, content["images"]) for attack, share in content["ensemble"].items()}


def _listed(found: Mapping[str, Any]) -> str:
    names = {"clean": "clean", "pgd": "PGD-10", "bpda": "BPDA-10"}
    return ", ".join(f"{name} {bounded(found[key])}" for key, name in names.items())


def _transferred(content: Mapping[str, Any]) -> dict[str, Any]:
    """The mean over pairs of different composites."""
    means = {}
    for attack in ("gradient", "bpda"):
        rows = content[attack].items()
        pairs = [share for source, row in rows for target, share in row.items() if source != target]
        means[attack] = mean_of(sum(pairs) / len(pairs), content["common"])
    return means


def _command(evidence: Evidence, result: str) -> str:
    """What measures the result of an ensemble anew, by the name of its file."""
    content = evidence.others[result]
    kind, _, name = result.partition("-")
    version = content["version"] if kind == "published" else ""
    named = [name.removesuffix(f"-{version}"), *(run["run"] for run in content["runs"])]
    return f"python -m audits.trained_masks {kind} {' '.join(named)}" + (f" --version {version}" if version else "")
