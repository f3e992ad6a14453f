"""A run's log, line by line while it runs, and what is kept of it: one JSON file a run, and one table of all."""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from audits.trained_masks.package import replaced
from audits.trained_masks.recipes import Recipe, as_table
from audits.trained_masks.training import Seen

RESULTS = Path(__file__).with_name("results")


def versions() -> dict[str, str]:
    """What a measurement depends on."""
    return {"python": platform.python_version(), "torch": torch.__version__}


class Log:
    """JSON lines: ``start`` (recipe, versions), ``training`` (means since the last) and ``measurement``.

    Args:
        file: lines are added to it.
        options: of the command; names of data are kept, folders are not.
    """

    def __init__(self, file: Path, options: argparse.Namespace) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file
        self._options = options

    def start(self, recipe: Recipe, step: int, total: int) -> None:
        data = {key: Path(getattr(self._options, key)).name for key in ("data", "test")}
        self._write("start", step, {"total": total, "recipe": as_table(recipe), "versions": versions(), "data": data})

    def trained(self, seen: Sequence[Seen]) -> None:
        means = {key: sum(getattr(one, key) for one in seen) / len(seen) for key in ("loss", "accuracy")}
        self._write("training", seen[-1].step, {**means, "steps": len(seen)})

    def measured(self, step: int, figures: dict[str, Any]) -> None:
        self._write("measurement", step, figures)

    def _write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        line = json.dumps({"kind": kind, "step": step, "time": round(time.time()), **values})
        with self._file.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)


def collect(log: Path, folder: Path = RESULTS) -> Path:
    """Add a run's log to its result, one JSON file. Of what was measured twice on as many images, the last counts.

    Raises:
        ValueError: the log does not say what was trained, and no result does, or both do and differ.
    """
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    result = folder / f"{log.stem}.json"
    before = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}
    started = next((line for line in reversed(lines) if line["kind"] == "start"), before)
    if not started:
        raise ValueError(f"{log}: it has no line of kind 'start', and {result} is not there; train the run first")
    if before and Recipe(**_short(before["recipe"])) != Recipe(**_short(started["recipe"])):
        raise ValueError(f"{log}: its recipe is not that of {result}; take another name for the run")
    content = {key: started[key] for key in ("recipe", "total", "versions", "data")}
    for kind in ("training", "measurement"):
        own = [line for line in lines if line["kind"] == kind]
        latest = {(line["step"], line.get("images")): line for line in [*before.get(kind, []), *own]}
        content[kind] = [line for _, line in sorted(latest.items(), key=lambda item: (item[0][0], item[0][1] or 0))]
    content["steps_taken"] = max([*(line["step"] for line in lines), before.get("steps_taken", 0)])
    return keep(log.stem, content, folder)


def keep(name: str, content: Any, folder: Path = RESULTS) -> Path:
    """Write a result in one step, its figures to four digits."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    with replaced(file) as part:
        part.write_text(json.dumps(_short(content), indent=1) + "\n", encoding="utf-8")
    return file


def stored_result(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    """What `keep` wrote; empty if there is nothing."""
    file = folder / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _short(own) for key, own in value.items() if key not in ("kind", "time")}
    if isinstance(value, list):
        return [_short(own) for own in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def table(folder: Path = RESULTS) -> str:
    """All runs as they stand, in Markdown: the last measurement of each, running statistics of batch norm first."""
    rows = [
        "| run | backbone | steps of | optimizer | images | clean | PGD-10 | BPDA-10 | residual SD | gain | cosine |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for file in sorted(folder.glob("*.json")):
        run = json.loads(file.read_text(encoding="utf-8"))
        if not (isinstance(run, dict) and run.get("measurement")):
            continue
        recipe, last = run["recipe"], run["measurement"][-1]
        for statistics in ("running", "batch"):
            own = last[statistics]
            shares = " | ".join(f"{100 * own[key]:.0f} %" for key in ("clean", "pgd", "bpda"))
            rows.append(
                f"| {recipe['name']} ({statistics}) | {recipe['backbone']} | {last['step']} of {run['total']} "
                f"| {recipe['optimizer']} {recipe['learning_rate']:g} | {last['images']} | {shares} "
                f"| {own['residual_sd']:.3f} | {own['residual_gain_gradient']:.2f} | {own['cosine']:.2f} |"
            )
    return "\n".join(rows)
