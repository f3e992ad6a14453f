"""The fixtures of audits and data. Each imports what needs torch when it is first used."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Never

import pytest

from pytest_gradmask.checks import is_a, listed
from pytest_gradmask.errors import InputError
from pytest_gradmask.plugin.evaluation import data_of
from pytest_gradmask.plugin.extensions import more_probes, with_attacks
from pytest_gradmask.plugin.machines import running_engine, share_of_cpus
from pytest_gradmask.plugin.marker import TestSettings, read_marker
from pytest_gradmask.plugin.progress import progress_line
from pytest_gradmask.plugin.settings import reproducing
from pytest_gradmask.plugin.stash import AUDITS, EXPECTED, SETTINGS, TRANSFERS, UNCHECKED
from pytest_gradmask.plugin.timeout import time_limit
from pytest_gradmask.printable import printable_data
from pytest_gradmask.report.records import AuditRecord

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pytest_gradmask.defense import Defense
    from pytest_gradmask.loading.inputs import Batch
    from pytest_gradmask.plugin.deadline import RunDeadline
    from pytest_gradmask.threat import PerturbationSet, ThreatModel
    from pytest_gradmask.transfer.matrix import TransferMatrix
    from pytest_gradmask.verdict.audit import Audit
    from pytest_gradmask.verdict.results import Verdict


class EvalBatch(NamedTuple):
    """Evaluation images (float32, N x C x H x W, in [0, 1]) and their labels (int64, N)."""

    images: Tensor
    labels: Tensor

    def __repr__(self) -> str:
        """Short: pytest prints it above a failure."""
        return f"<{len(self.images)} images of {' x '.join(map(str, self.images.shape[1:]))}>"


class Gradmask:
    """What the ``gradmask`` fixture gives a test: audits with the run's and the test's settings."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request, self._node = request, request.node
        self._config = request.config
        self._audits = 0
        self._results: dict[int, Audit] = {}
        self.settings: TestSettings = read_marker(request.node, request.config.stash[SETTINGS])

    def __repr__(self) -> str:
        """Short: pytest prints it above a failure."""
        return f"<audits with the budget {self.settings.budget.name}>"

    def audit(
        self,
        defense: Defense | nn.Module,
        images: Any,
        labels: Any = None,
        *,
        threat: PerturbationSet | None = None,
        class_names: Sequence[str] = (),
        **of_the_marker: Never,
    ) -> Audit:
        """Audit a defense on these images; see `pytest_gradmask.audit`. The run's reports include the result.

        ``threat`` is for sets that are no norm ball, which the marker cannot name. By default it is that of the marker.
        ``class_names`` is for the pictures of the report: a name for each class, in the order of labels. The images of
        ``eval_batch`` bring theirs, if their source says them. All else is set by the marker.

        Raises:
            InputError: images, labels or settings cannot be used, or there are other keyword arguments.
        """
        from pytest_gradmask.attacks.arguments import check_images, check_set
        from pytest_gradmask.auditing.run import audit
        from pytest_gradmask.loading.inputs import as_batch
        from pytest_gradmask.report.json import crash_to_json, to_json

        settings = self.settings
        threat = settings.threat if threat is None else threat
        try:
            if of_the_marker:
                raise InputError(
                    f"{', '.join(of_the_marker)}: no argument of audit(); settings of a test are those of its marker, "
                    "as in @pytest.mark.gradmask(eps=8/255)"
                )
            check_set(threat)
            names = listed("class_names", class_names, "a name for each class, such as ['cat', 'dog']", _is_text)
            defense = with_attacks(self._node, defense)
            # Once: a loader may give other images the second time.
            batch = as_batch(
                images,
                labels,
                bounds=threat.bounds,
                at_most=settings.samples or settings.budget.samples,
                seed=settings.seed,
            )
            check_images(batch.images)
            with (
                share_of_cpus(self._config),
                self._progress(defense, batch) as progress,
                time_limit(self._config.stash[SETTINGS].timeout),
            ):
                result = audit(
                    defense,
                    batch,
                    batch.labels,
                    threat=threat,
                    budget=settings.budget,
                    margin=settings.margin,
                    confidence=settings.confidence,
                    device=self._config.stash[SETTINGS].torch_device,
                    seed=settings.seed,
                    exhaustive=settings.exhaustive,
                    attempt=settings.attempt,
                    test=self._node.nodeid,
                    probes=more_probes(self._node, defense),
                    cache=_cache_folder(self._config),
                    engine=running_engine(self._config),
                    precision=self._config.stash[SETTINGS].precision,
                    deadline=_share_of_deadline(self._config),
                    progress=progress,
                )
        except (KeyboardInterrupt, pytest.exit.Exception, pytest.skip.Exception):  # the test did not run
            raise
        except BaseException as error:  # also what pytest-timeout raises in the midst of an attack
            name = getattr(defense, "name", type(defense).__name__)
            self._record(crash_to_json(self._node.nodeid, name, error))
            raise
        command = reproducing(self._config, self._node.nodeid)
        result = replace(result, provenance={**result.provenance, "reproduce": command})
        # First the record, then the evidence: if the test is stopped in between, the audit is reported nevertheless.
        record = self._record(to_json(result))
        self._results[self._audits] = result
        self._node.stash.setdefault(UNCHECKED, {})[self._audits] = result.defense
        record["evidence"] = printable_data(self._evidence(result, defense, batch, names, threat))
        return result

    def _progress(
        self, defense: Defense | nn.Module, images: Sized
    ) -> AbstractContextManager[Callable[[object], None]]:
        """The line that shows what an audit is doing: which test of how many, and its defense."""
        selection = self._config.pluginmanager.getplugin("gradmask-selection")
        audits = [] if selection is None else selection.audits
        number = f"{audits.index(self._node.nodeid) + 1}/{len(audits)} " if self._node.nodeid in audits else ""
        name = getattr(defense, "name", type(defense).__name__)
        settings = self.settings
        of_verdict = {"margin": settings.margin, "confidence": settings.confidence}
        return progress_line(self._config, f"{number}{name}", len(images), defense=name, **of_verdict)

    def _record(self, audit: dict[str, Any]) -> AuditRecord:
        """Store an audit in its JSON form for the test's report; its evidence is empty at first."""
        from pytest_gradmask.report.properties import properties

        audit = printable_data(audit)
        record = AuditRecord(audit=audit, evidence={})
        self._node.stash.setdefault(AUDITS, []).append(record)
        self._audits += 1
        self._node.user_properties += properties(audit, self._audits)
        return record

    def expects(self, audit: Audit, verdict: Verdict) -> None:
        """Note that the test expects this verdict of one of its audits."""
        for number, result in self._results.items():
            if result is audit:
                self._node.stash.setdefault(EXPECTED, {})[number] = verdict.name
                self._node.stash[UNCHECKED].pop(number, None)

    def _evidence(
        self,
        result: Audit,
        defense: Defense | nn.Module,
        batch: Batch,
        class_names: Sequence[str],
        threat: PerturbationSet,
    ) -> dict[str, Any]:
        """What the HTML report shows beyond the audit. Without an HTML report it is empty and costs nothing."""
        settings = self._config.stash[SETTINGS]
        if settings.html is None:
            return {}
        from pytest_gradmask.report.evidence.adversarial import file_name
        from pytest_gradmask.report.evidence.collection import collect_evidence

        file = None if settings.adversarial is None else settings.adversarial / file_name(result.test, self._audits)
        with share_of_cpus(self._config), self._progress(defense, batch) as progress:
            evidence = collect_evidence(
                result,
                defense,
                batch.images,
                batch.labels,
                threat=threat,
                device=settings.torch_device,
                seed=self.settings.seed,
                class_names=class_names or self._class_names(batch.labels),
                adversarial=None if file is None else self._config.invocation_params.dir / file,  # a test may go away
                progress=progress,
            )
        if file is not None and "error" not in evidence["adversarial"]:
            evidence["adversarial"]["file"] = str(file)
        return evidence

    def _class_names(self, labels: Tensor) -> tuple[str, ...]:
        """The names of the classes of ``eval_batch``, if these are its labels."""
        if "eval_batch" not in self._request.fixturenames:
            return ()
        data = data_of(self._request)
        return data.class_names if labels.tolist() == data.labels[: len(labels)].tolist() else ()


def _is_text(value: object) -> bool:
    return is_a(value, str)


def _share_of_deadline(config: pytest.Config) -> float | None:
    run: RunDeadline | None = config.pluginmanager.getplugin("gradmask-deadline")
    return None if run is None else run.share()


def _cache_folder(config: pytest.Config) -> Path | None:
    settings = config.stash[SETTINGS]
    if settings.no_cache:
        return None
    if settings.cache is not None:
        return settings.cache
    cache = getattr(config, "cache", None)
    if cache is None:  # without pytest's cache plugin (-p no:cacheprovider) no results are stored
        return None
    try:
        return Path(cache.mkdir("gradmask"))
    except OSError as error:  # in a folder that cannot be written to, an audit is not lost
        warnings.warn(f"gradmask cache: results are not stored, and audits are not counted ({error})", stacklevel=2)
        return None


@pytest.fixture
def gradmask(request: pytest.FixtureRequest) -> Iterator[Gradmask]:
    """Audits defenses: ``gradmask.audit(defense, images, labels)``."""
    from pytest_gradmask.report.expectations import listening

    audits = Gradmask(request)
    with listening(audits.expects):
        yield audits


@pytest.fixture
def threat_model(request: pytest.FixtureRequest) -> ThreatModel:
    """The test's threat model: Linf, 8/255, bounds [0, 1], unless its marker says otherwise."""
    return read_marker(request.node, request.config.stash[SETTINGS]).threat


@pytest.fixture
def transfer_matrix(request: pytest.FixtureRequest, gradmask: Gradmask) -> Callable[..., TransferMatrix]:
    """The function `pytest_gradmask.transfer.run.transfer_matrix` with the run's and the test's settings.

    Threat model, confidence, seed and device are those of the test and of the run. The number of steps is that of BPDA
    in the test's budget. A keyword argument overrides each of them.
    """
    from pytest_gradmask.report.json import transfer_to_json
    from pytest_gradmask.transfer.run import transfer_matrix

    settings = gradmask.settings

    def recorded(*arguments: Any, **keywords: Any) -> TransferMatrix:
        matrix = transfer_matrix(*arguments, **keywords)
        request.node.stash.setdefault(TRANSFERS, []).append(
            printable_data(transfer_to_json(request.node.nodeid, matrix))
        )
        return matrix

    return functools.partial(
        share_of_cpus(request.config)(recorded),
        threat=settings.threat,
        steps=settings.budget.bpda_steps,
        confidence=settings.confidence,
        seed=settings.seed,
        device=request.config.stash[SETTINGS].torch_device,
    )


@pytest.fixture
def eval_batch(request: pytest.FixtureRequest) -> EvalBatch:
    """Evaluation images and labels, as chosen by ``--gradmask-data`` and ``--gradmask-samples``."""
    data = data_of(request)
    return EvalBatch(data.images.clone(), data.labels.clone())  # a test may change its copy in place
