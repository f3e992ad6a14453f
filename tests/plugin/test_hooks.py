"""What other plugins and conftest files add to audits."""

from __future__ import annotations

import json

import pytest

from tests.plugin.test_reporting import RUN, read

#: A robust classifier of dark and light images with a trapdoor that only its inventor finds.
TESTS = """
    import pytest
    import torch
    from torch import nn

    class Trapdoor(nn.Module):
        def forward(self, images):
            score = 20 * (images.mean((1, 2, 3)) - 0.5)
            tenths = 10 * images[:, 0, 0, :3]
            caught = ((tenths - tenths.round()).abs() < 1e-3).all(1)
            score = torch.where(caught, -score, score)
            return torch.stack([-score, score], 1)

    @pytest.mark.gradmask(eps=0.06)
    def test_hidden(gradmask):
        labels = torch.arange(20) % 2
        images = 0.3 * torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        gradmask.audit(Trapdoor().eval(), images + 0.7 * labels.view(-1, 1, 1, 1), labels)
"""

CONFTEST = """
    from pytest_gradmask import Finding

    def tenths(model, images, labels, *, threat, generator):
        model(images)
        images = images.clone()
        images[:, 0, 0, :3] = (10 * images[:, 0, 0, :3]).round() / 10
        return images

    def suspicious(model, images, labels, *, threat, generator):
        return [Finding("suspicious", f"{len(images)} images are suspicious")]

    def pytest_gradmask_attacks(config, defense):
        return [tenths]

    def pytest_gradmask_probes(config, defense):
        return [suspicious]

    def pytest_gradmask_report(config, audits, provenance):
        with open("seen.txt", "a") as file:
            for audit in audits:
                print(audit["verdict"], *audit["robust_accuracy"], provenance["python"], file=file)
"""


@pytest.mark.longer
@pytest.mark.parametrize("workers", [0, 2])
def test_a_conftest_adds_attacks_probes_and_reports(pytester: pytest.Pytester, workers: int) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_it=TESTS)
    if workers:
        pytest.importorskip("xdist")
    # The hooks are the conftest's, whichever process runs the test; the report hook is called once.
    spread = ("-n", str(workers)) if workers else ("-p", "no:xdist")
    pytester.runpytest(*RUN, "--gradmask-json=out.json", *spread).assert_outcomes(passed=1)
    (audit,) = read(pytester.path / "out.json")
    assert audit["verdict"] == "MASKED"
    assert audit["robust_accuracy"]["tenths"]["kind"] == "adaptive"
    assert "suspicious" in {finding["id"] for finding in audit["findings"]}
    (line,) = (pytester.path / "seen.txt").read_text().splitlines()
    assert line.startswith("MASKED pgd apgd-ce fab-t apgd-margin tenths ")


def test_without_the_conftest_the_verdict_differs(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=TESTS)
    pytester.runpytest(*RUN, "--gradmask-json=out.json").assert_outcomes(passed=1)
    assert read(pytester.path / "out.json")[0]["verdict"] == "NOT_MASKED"


def test_a_conftest_applies_to_its_folder_only(pytester: pytest.Pytester) -> None:
    for name, conftest in (("inside", CONFTEST), ("outside", "")):
        folder = pytester.mkdir(name)
        (folder / "conftest.py").write_text("\n".join(line[4:] for line in conftest.splitlines()))
        (folder / f"test_{name}.py").write_text("\n".join(line[4:] for line in TESTS.splitlines()))
    pytester.runpytest(*RUN, "--gradmask-json=out.json").assert_outcomes(passed=2)
    run = json.loads((pytester.path / "out.json").read_text())
    verdicts = {audit["test"].split("/")[0]: audit["verdict"] for audit in run["audits"]}
    assert verdicts == {"inside": "MASKED", "outside": "NOT_MASKED"}


def test_a_hook_that_raises_fails_the_test(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("def pytest_gradmask_attacks(config, defense):\n    raise ValueError('no such attack')\n")
    pytester.makepyfile(test_it=TESTS)
    result = pytester.runpytest(*RUN, "--gradmask-json=out.json")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*ValueError: no such attack*"])
    assert read(pytester.path / "out.json")[0]["verdict"] == "INCONCLUSIVE"


def test_a_hook_of_an_unknown_name_is_refused(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("def pytest_gradmask_atacks(config, defense):\n    return []\n")
    result = pytester.runpytest(*RUN)
    assert "unknown hook 'pytest_gradmask_atacks'" in "\n".join(result.outlines + result.errlines)


def test_a_report_hook_that_raises(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("def pytest_gradmask_report(config, audits, provenance):\n    raise ValueError('no paper')\n")
    pytester.makepyfile(test_it=TESTS)
    result = pytester.runpytest(*RUN, "--gradmask-json=out.json")
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    result.stdout.fnmatch_lines(["*NOT_MASKED*test_hidden*", "a report failed: ValueError: no paper", "*1 passed*"])
    assert read(pytester.path / "out.json")
