"""``python -m audits.calibration``: docs/calibration.md and its picture, from audits/calibration/result.json.

With ``--simulate`` it first repeats the simulation and writes that file. This takes about a quarter of an hour on one
core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import count, product
from pathlib import Path
from typing import Any

from audits.calibration import randomized
from audits.calibration.attempts import Next, repeat
from audits.calibration.exact import (
    by_new_rule,
    by_old_rule,
    chances,
    decision_shares,
    false_alarm_bound,
    images_for_power,
    not_masked_chances,
)
from audits.calibration.populations import FINDERS, PlaceboGets, Population, costs, patterns
from audits.calibration.randomized import RandomizedPopulation
from audits.calibration.simulation import MASKED, NOT_MASKED, audit_rule, disagreements, simulate
from pytest_gradmask.auditing.research import BUDGETS, replaced, versions

HERE = Path(__file__).parent
DOCS = HERE.parent.parent / "docs"
FILE = HERE / "result.json"

AUDITS = 10_000
#: Default margins of the budgets, and one that 50 images can resolve.
MARGINS = {20: 0.25, 50: 0.10, 200: 0.05, 1000: 0.02}
#: So small that only the tests prevent false alarms: an audit that is ``MASKED`` at any margin is so at this one.
NO_MARGIN = 0.001
#: Up to so many images, each population is also judged by `decide`, and the gap's bounds are compared with the truth.
#: Both take most of the time.
_FEW = 200
GAPS = (0.05, 0.1, 0.2, 0.4)
SIZES = tuple(sorted({round(10 * 100 ** (step / 60)) for step in range(61)}))

Row = dict[str, Any]


def without_masking(
    audits: int = AUDITS,
    sizes: Sequence[int] = (20, 100, 500),
    effects: Sequence[float] = (0.0, 0.01, 0.02, 0.05, 0.1),
    accuracies: Sequence[float] = (0.1, 0.5, 0.9),
    correlations: Sequence[float] = (0.0, 0.5, 1.0),
) -> Iterator[Row]:
    """Audits without masking: adaptive attacks break survivors as the placebo does, with equal or with real costs."""
    cases = product(sizes, effects, accuracies, correlations, ("equal", "ci"))
    for seed, (images, effect, accuracy, correlation, spent) in zip(count(), cases, strict=False):
        population = Population(accuracy, effect, correlation, **(costs(BUDGETS["ci"]) if spent == "ci" else {}))
        seen = patterns(population)
        discordant = [seen.discordant(analysis) for analysis in range(len(population.costs))]
        shares = decision_shares(images, NO_MARGIN, len(population.costs))
        yield _row(population, images, audits, NO_MARGIN, seed) | {
            "costs": spent,
            "bound": false_alarm_bound(images, discordant, shares) if spent == "equal" else None,
        }


def with_a_gap(audits: int = AUDITS, sizes: Sequence[int] = tuple(MARGINS)) -> Iterator[Row]:
    """Audits with a gap: some of the 60 % survivors are masked, and attacks have the costs of the budget ``ci``."""
    for seed, (images, effect) in zip(count(1000, 100), product(sizes, (0.0, 0.02)), strict=False):
        cases = product(sorted({*GAPS, MARGINS[images]}), FINDERS)
        for number, (gap, finders) in enumerate(cases):
            population = Population(0.6, effect, gap=gap, finders=finders, **costs(BUDGETS["ci"]))
            yield _row(population, images, audits, MARGINS[images], seed + number)


def around_the_margin(audits: int = AUDITS, sizes: Sequence[int] = (200, 1000)) -> Iterator[Row]:
    """Audits with gaps of zero, half the margin and the margin, where more budget alone also breaks images."""
    cases = product(sizes, (0.0, 0.5, 1.0), (0.0, 0.01, 0.02, 0.05))
    for seed, (images, share, effect) in zip(count(3000), cases, strict=False):
        population = Population(0.6, effect, gap=share * MARGINS[images])
        yield _row(population, images, audits, MARGINS[images], seed) | {"share": share}


def early_stopping(
    audits: int = AUDITS,
    settings: Sequence[tuple[int, float]] = ((200, 0.05), (1000, 0.02)),
    shares: Sequence[float] = (0.5, 0.7, 0.9),
    correlations: Sequence[float] = (0.0, 0.5),
) -> Iterator[Row]:
    """Audits without masking where adaptive attacks break a large share of the survivors and leave those at once.

    The placebo gets what an unbroken image faced or, as a negative control, the mean passes of all attacked images.
    """
    gets: tuple[PlaceboGets, ...] = ("unbroken", "mean")
    cases = product(settings, shares, correlations, gets)
    for seed, ((images, margin), share, correlation, which) in zip(count(5000), cases, strict=False):
        spent = costs(BUDGETS["ci"]) | {"restart": 1}  # so that the placebo gets no pass more than it is due
        population = Population.breaking(share, correlation, placebo_gets=which, **spent)
        yield _row(population, images, audits, margin, seed) | {"broken": share, "placebo_gets": which}


def candidate_points(
    audits: int = 1000, settings: Sequence[tuple[int, float]] = ((200, NO_MARGIN), (200, 0.05), (1000, 0.02))
) -> Iterator[Row]:
    """Audits of randomized defenses without masking, whose chances differ between the points that attacks return.

    The placebo runs as often as there are adaptive attacks or, as a negative control, once.
    """
    for seed, ((images, margin), between, runs) in zip(
        count(7000), product(settings, (0.0, 0.1), (7, 1)), strict=False
    ):
        population = RandomizedPopulation(runs, between_points=between)
        tally = randomized.simulate(population, images, audits, margin, seed)
        yield {"images": images, "margin": margin, "between": between, "runs": runs, "audits": audits, **asdict(tally)}


def repeated_attempts(audits: int = AUDITS, sizes: Sequence[int] = (200, 300, 450, 675, 1000)) -> Iterator[Row]:
    """Users who audit again and again until the verdict is wrong: `MASKED` without a gap, `NOT_MASKED` with one.

    The second gap is one of the margin, which is the hardest to tell from none.
    """
    ways: tuple[Next, ...] = ("new", "more")
    settings = [(MASKED, NO_MARGIN, effect) for effect in (0.05, 0.1)]
    settings += [(NOT_MASKED, MARGINS[200], effect) for effect in (0.0, 0.02)]
    for seed, ((wanted, margin, effect), images) in zip(count(9000), product(settings, ways), strict=False):
        gap = margin if wanted == NOT_MASKED else 0.0
        population = (
            Population(0.6, effect, gap=gap, finders="parts", **costs(BUDGETS["ci"]))
            if gap
            else Population(0.9, effect)
        )
        tally = repeat(population, sizes, wanted, margin, audits, seed, images=images)
        yield {"margin": margin, "effect": effect, "gap": gap, "images": images, "sizes": sizes, **asdict(tally)}


def compared_rules() -> dict[str, list[list[float]]]:
    """Exact figures of the rule up to version 0.1 and of the present one.

    ``images``: the gap, and how many images it takes for a power of 90 % at a margin of 2 points and 16 decisions, by
    either rule. ``not_masked``: images, margin and placebo effect, and the chance to exclude a gap of the margin.
    """
    return {
        "images": [
            [gap, *(images_for_power(gap, 0.02, rule(16)) for rule in (by_old_rule, by_new_rule))]
            for gap in (0.05, 0.1, 0.2, 0.4)
        ],
        "not_masked": [
            [images, margin, effect, *not_masked_chances(images, margin, effect)]
            for images, margin in ((200, 0.05), (1000, 0.02))
            for effect in (0.0, 0.005, 0.01, 0.02)
        ],
    }


def power_curves() -> dict[str, list[list[float]]]:
    """Numbers of images with the exact power, for each gap: one attack finds the gap, and the margin is 5 %."""
    return {f"{gap:g}": [[size, chances(size, 0.05, gap)[0]] for size in SIZES] for gap in GAPS}


def _row(population: Population, images: int, audits: int, margin: float, seed: int) -> Row:
    small = images <= _FEW
    wrong = disagreements(population, images, margin, min(audits, 1000), seed, only_last=True) if small else []
    if wrong:
        raise RuntimeError(f"the simulation no longer has the rules of verdict.decide: {'; '.join(wrong)}")
    tally = simulate(population, images, audits, audit_rule(margin), seed, margin, bounds=small)
    return {
        "images": images,
        "margin": margin,
        "survival": population.survival,
        "effect": population.placebo,
        "correlation": population.correlation,
        "gap": population.gap,
        "finders": population.finders,
        "true_gap": patterns(population).gap(len(population.costs) - 1),
        "audits": audits,
        "exhaustive": tally.exhaustive,
        "in_turn": tally.in_turn,
        "analyses": tally.analyses,
        "sizes": tally.sizes,
        "misses": tally.misses,
    }


def measure() -> dict[str, Any]:
    """All results that the page shows."""
    return {
        "without_masking": list(without_masking()),
        "with_a_gap": list(with_a_gap()),
        "around_the_margin": list(around_the_margin()),
        "early_stopping": list(early_stopping()),
        "candidate_points": list(candidate_points()),
        "repeated_attempts": list(repeated_attempts()),
        "compared_rules": compared_rules(),
        "power": power_curves(),
        "versions": versions("numpy", "scipy", "pytest-gradmask"),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate if an option asks for it, draw the picture, write the page."""
    from audits.calibration.page import draw, markdown

    parser = argparse.ArgumentParser(prog="python -m audits.calibration", description=__doc__)
    parser.add_argument("--simulate", action="store_true", help=f"simulate again and write {FILE.name}")
    if parser.parse_args(arguments).simulate:
        FILE.parent.mkdir(parents=True, exist_ok=True)
        with replaced(FILE) as part:
            part.write_text(_json(measure()))
    stored = json.loads(FILE.read_text())
    draw(stored["power"], DOCS / "figures")
    (DOCS / "calibration.md").write_text(markdown(stored))


def _json(content: Mapping[str, Any]) -> str:
    """JSON with one row per line, so that a difference between versions is readable."""
    parts = []
    for key, value in content.items():
        if isinstance(value, list):
            lines = ",\n  ".join(json.dumps(row) for row in value)
            parts.append(f" {json.dumps(key)}: [\n  {lines}\n ]")
        else:
            parts.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    main()
