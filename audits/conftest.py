"""Shows the paper's figures beside ours: the fixture ``reproduction``, its summary and the records that it stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from audits.claims import CLAIMS, merge
from pytest_gradmask.plugin.fixtures import EvalBatch

_PROPERTY = "reproduction"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options: the file for the measurements of a run, and weights that the user provides."""
    group = parser.getgroup("gradmask")
    group.addoption(
        "--store-claims", type=Path, metavar="FILE", help="add this run's measurements of the paper's claims to FILE"
    )
    group.addoption(
        "--imagenet-weights", type=Path, metavar="FILE", help="a state dict of timm's tf_efficientnet_lite0"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker of benchmarks and, on the controller only, the collector of figures."""
    config.addinivalue_line("markers", "benchmark: times attacks; runs with --benchmark-only")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Reproductions(config.getoption("--store-claims")), "audits-reproductions")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect benchmarks without ``--benchmark-only``: other tests on the machine would distort their times."""
    if config.getoption("benchmark_only", default=False):
        return
    benchmarks = [item for item in items if item.get_closest_marker("benchmark")]
    if benchmarks:
        config.hook.pytest_deselected(items=benchmarks)
        items[:] = [item for item in items if item not in benchmarks]


class Reproduction:
    """Checks one claim of the paper: records the paper's figure and ours, then asserts that it holds."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request = request

    def check(
        self,
        number: str,
        *,
        holds: bool,
        ours: str,
        images: int,
        details: dict[str, Any] | None = None,
        stored: bool = True,
    ) -> None:
        """Record and assert.

        Args:
            number: of the claim, a key of `CLAIMS`.
            holds: whether it holds here.
            ours: our figures in words, with intervals.
            images: how many they were measured on.
            details: plain data for tables and pictures.
            stored: whether ``--store-claims`` keeps it. It need not where another test measures the same case in full.
        """
        __tracebackhide__ = True
        claim = CLAIMS[number]
        options = self._request.config.option
        record = {
            "claim": number,
            "test": self._request.node.nodeid,
            "holds": bool(holds),
            "ours": ours,
            "images": images,
            "details": details or {},
            "data": (options.gradmask_data or "embedded").rpartition("/")[2],
            "budget": options.gradmask_budget or "smoke",
            "seed": options.gradmask_seed or 0,
        }
        self._request.node.user_properties.append((_PROPERTY, (record, stored)))
        assert holds, f"claim {number} ({claim.text})\n  paper: {claim.paper}\n  here:  {ours} ({images} images)"


@pytest.fixture
def reproduction(request: pytest.FixtureRequest) -> Reproduction:
    """Checks a claim of the paper: ``reproduction.check("1", holds=..., ours=..., images=...)``."""
    return Reproduction(request)


@pytest.fixture
def many_images(eval_batch: EvalBatch) -> EvalBatch:
    """At least 50 evaluation images, for claims that compare similar figures: 20 images are too few for these."""
    return _at_least(50, eval_batch)


@pytest.fixture
def very_many_images(eval_batch: EvalBatch) -> EvalBatch:
    """At least 890 evaluation images, for claims that compare figures of which both are nearly 100 %."""
    return _at_least(890, eval_batch)


def _at_least(count: int, batch: EvalBatch) -> EvalBatch:
    if len(batch.labels) < count:
        wanted = max(count, 100)
        pytest.skip(f"needs {count} images or more: --gradmask-data=cifar10 --gradmask-samples={wanted}")
    return batch


def images_for(request: pytest.FixtureRequest) -> EvalBatch:
    """The evaluation images; at least 50 for a test with ``adversarial`` in its parameters.

    An adversarially trained backbone is itself robust to many attacks. The masking gap is then smaller, and 20 images
    are too few to measure it.
    """
    adversarial = "adversarial" in request.node.callspec.id
    batch: EvalBatch = request.getfixturevalue("many_images" if adversarial else "eval_batch")
    return batch


class Reproductions:
    """Collects the records of all workers of a run."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._records: list[dict[str, Any]] = []
        self._stored: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect the records of one report."""
        if report.when == "call":
            found: list[Any] = [value for name, value in report.user_properties if name == _PROPERTY]
            self._records += [record for record, _ in found]
            self._stored += [record for record, stored in found if stored]

    def pytest_sessionfinish(self) -> None:
        """Store the records, replacing those of the same tests."""
        if self._file is not None and self._stored:
            merge(self._file, self._stored)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The paper's figure beside ours, claim by claim."""
        if not self._records:
            return
        terminalreporter.section("the paper's claims (arXiv:2402.17018)")
        for line in _lines(self._records):
            terminalreporter.write_line(line)


def _lines(records: list[dict[str, Any]]) -> Iterator[str]:
    for number in CLAIMS:
        of_claim = [record for record in records if record["claim"] == number]
        if not of_claim:
            continue
        yield f"{number}. {CLAIMS[number].text}"
        yield f"   paper: {CLAIMS[number].paper}"
        for record in of_claim:
            outcome = "holds" if record["holds"] else "DOES NOT HOLD"
            yield f"   {outcome}: {record['ours']} ({record['images']} images)  {record['test'].rpartition('::')[2]}"
