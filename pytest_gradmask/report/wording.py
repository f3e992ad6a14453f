"""Sentences and figures of an audit that can be quoted, from its JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def headline(audit: Mapping[str, Any]) -> str:
    """The verdict in a few words: ``MASKED: jpegish, gap 85``."""
    start = f"{audit['verdict']}: {audit['defense']}"
    if audit["verdict"] == "MASKED" and audit["gap"]:
        return f"{start}, gap {100 * audit['gap']['estimate']:.0f}"
    if audit["verdict"] == "NOT_MASKED":
        return f"{start}, robust accuracy {percent(audit['all_attacks']['value'])}"
    return f"{start}, {first_reason(audit)}"


#: Verdicts as reports show them, worst first.
SHOWN_VERDICTS = ("MASKED", "ERROR", "INCONCLUSIVE", "MASKED as expected", "NOT_MASKED")


def shown_verdict(audit: Mapping[str, Any]) -> str:
    """The verdict as reports show it: an audit that raised is an ``ERROR``, and a mask may be what the test expects."""
    if audit.get("error"):
        return "ERROR"
    as_expected = audit["verdict"] == audit.get("expected") == "MASKED"
    return "MASKED as expected" if as_expected else str(audit["verdict"])


def first_reason(audit: Mapping[str, Any]) -> str:
    """The first reason of a verdict."""
    return _clause(audit["reasons"][:1])


def card_reason(audit: Mapping[str, Any]) -> str:
    """Why the verdict is this one, in a line: what hides the gradient if that is known, else the first reason."""
    hidden = hidden_by(audit) if audit["verdict"] == "MASKED" else ""
    return f"hidden by {hidden}" if hidden else first_reason(audit)


def verdict_sentence(audit: Mapping[str, Any], *, with_reasons: bool = True) -> str:
    """The verdict with its figures. An ``INCONCLUSIVE`` comes with its reasons, unless they are not wanted."""
    name, verdict, reasons = audit["defense"], audit["verdict"], audit["reasons"]
    gradient, everything, gap = (audit.get(key) for key in ("gradient_attacks", "all_attacks", "gap"))
    if not (gradient and everything and gap):
        return f"{name}: {verdict}, as {_clause(reasons)}."
    provenance = audit["provenance"]
    setting = f"At {threat_text(provenance.get('threat'))} on {audit['images']} images"
    if "budget" in provenance:
        setting += f" with the budget {provenance['budget']}"
    figures = f"robust accuracy is {share_text(gradient)} under gradient attacks"
    masking_gap, confidence = f"masking gap of {gap_text(gap)}", f"confidence {percent(audit['confidence'])}"
    if (attempt := audit.get("attempt") or 1) > 1:
        confidence += f", attempt {attempt}"
    if verdict == "MASKED":
        return (
            f"{setting}, {_possessive(name)} {figures}, but {share_text(everything)} once adaptive attacks join them: "
            f"MASKED ({masking_gap} beyond a placebo of the same budget, {confidence})."
        )
    figures = f"{figures} and {share_text(everything)} once adaptive attacks join them"
    if verdict == "NOT_MASKED":
        return (
            f"{setting}, {_possessive(name)} {figures}: NOT_MASKED ({masking_gap}, so it is not above the margin of "
            f"{_number(100 * audit['margin'])} percentage points, {confidence})."
        )
    why = f": {_clause(reasons)}" if with_reasons else ""
    return f"{setting}, {_possessive(name)} {figures}, which is {verdict}{why}."


def hidden_by(audit: Mapping[str, Any]) -> str:
    """What hides the gradient, by name; empty if the audit has not shown it."""
    found = {finding["id"] for finding in audit["findings"]}
    if "hidden-gradient" in found and audit["operations"]:
        return ", ".join(f"`{each['name']}` at {each['file']}:{each['line']}" for each in audit["operations"])
    if "bypass-beats-white-box" in found:
        return bypassed_text(audit)
    return ""


def report_instead(audit: Mapping[str, Any]) -> str:
    """The figure to report in place of that under gradient attacks, and the attack behind it; empty if not masked."""
    broken = {name: each["broken"] for name, each in audit["robust_accuracy"].items() if each["kind"] == "adaptive"}
    if audit["verdict"] != "MASKED" or not broken:
        return ""
    share = share_text(audit["all_attacks"])
    strongest = max(broken, key=lambda name: broken[name])
    return f"{'' if audit['exhaustive'] else 'at most '}{share} (all attacks; most by {strongest})"


def bypassed_text(audit: Mapping[str, Any]) -> str:
    """What attacks bypassed, in words: ``the submodule "front"``."""
    return ", ".join(map(_part, audit["bypassed"]))


def submodules_bypassed(audit: Mapping[str, Any]) -> list[str]:
    """Names of the submodules that attacks bypassed, such as `Defense` takes as ``bypass=``."""
    return [name for name in audit["bypassed"] if " " not in name]


def _part(name: str) -> str:
    """A bypassed part in words. Its name alone may be a number, as in an `nn.Sequential`."""
    where, _, inner = name.rpartition(" ")
    return f'{where} the submodule "{inner}"' if where else f'the submodule "{inner}"'


def plain_spaces(text: str) -> str:
    """The text for files and terminals, where a no-break space may look odd or hinder a search."""
    return text.replace("\N{NO-BREAK SPACE}", " ")


def percent(share: float) -> str:
    """A share as a percentage with at most one decimal and a no-break space: ``95 %``."""
    return f"{_number(round(100 * share, 1))}\N{NO-BREAK SPACE}%"


def share_text(share: Mapping[str, Any]) -> str:
    """A share with its bounds: ``95 % [89.1, 98.2]``."""
    return (
        f"{percent(share['value'])} [{_number(round(100 * share['low'], 1))}, {_number(round(100 * share['high'], 1))}]"
    )


def gap_text(gap: Mapping[str, Any]) -> str:
    """A masking gap with its bounds, in percentage points: ``90 percentage points [83, 95.1]``."""
    value, _, bounds = gap_figures(gap).partition(" ")
    return f"{value} percentage points {bounds}"


def gap_figures(gap: Mapping[str, Any]) -> str:
    """A masking gap with its bounds for a table whose column names the unit, percentage points: ``90 [83, 95.1]``."""
    value, low, high = (_number(round(100 * gap[key], 1)) for key in ("estimate", "low", "high"))
    return f"{value} [{low}, {high}]"


def eps_text(eps: float, bounds: tuple[float, float] | list[float] = (0.0, 1.0)) -> str:
    """A radius as papers write it: ``8/255`` if it is such a fraction and images lie in [0, 1], else a decimal."""
    levels = 255 * eps
    halves = round(2 * levels)
    # Above 4/255 only whole levels count: otherwise 0.1 and 0.2 would be written as fractions, too.
    usual = halves % 2 == 0 if levels > 4 else halves > 0
    if (
        tuple(bounds) == (0.0, 1.0) and usual and levels < 33 and abs(2 * levels - halves) < 1e-4
    ):  # the precision of a float32
        return f"{_number(halves / 2)}/255"
    return f"{eps:.4g}"


def threat_text(threat: Mapping[str, Any] | None) -> str:
    """Radius and norm: ``eps 8/255 (Linf)``."""
    if not threat:
        return "an unknown eps"
    return f"eps {eps_text(threat['eps'], threat['bounds'])} ({threat['norm']})"


def moment(iso: object) -> str:
    """A time as people write it: ``2026-01-31 12:00:00 UTC``."""
    return str(iso).replace("T", " ").replace("+00:00", " UTC")


def _clause(reasons: list[str]) -> str:
    return "; ".join(reason.rstrip(".") for reason in reasons) or "no reason was recorded"


def _possessive(name: str) -> str:
    return f"{name}'" if name.endswith("s") else f"{name}'s"


def _number(value: float) -> str:
    return f"{value:.10g}"
