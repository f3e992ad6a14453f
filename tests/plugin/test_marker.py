"""The marker: which arguments it takes, and which wins."""

from __future__ import annotations

import pytest

BAD_MARKERS = {
    "unknown argument": ("epsilon=0.1", "unknown gradmask marker argument epsilon"),
    "positional argument": ("0.1", "keyword arguments only"),
    "eps of zero": ("eps=0", "eps=0"),
    "eps in pixels": ("eps=8", "did you mean 0.03137"),
    "unknown norm": ("norm='L0'", "norm='L0'"),
    "bounds": ("bounds=(1, 0)", "bounds=(1, 0)"),
    "unknown budget": ("budget='huge'", "budget='huge'"),
    "margin above 1": ("margin=5", "margin=5"),
    "confidence": ("confidence=0.3", "confidence=0.3"),
    "seed": ("seed=-1", "seed=-1"),
    "samples": ("samples=0.5", "samples=0.5"),
    "attempt": ("attempt=0", "attempt=0"),
    "no attempt": ("attempt=None", "attempt=None"),
    "exhaustive": ("exhaustive=1", "exhaustive=1"),
}


@pytest.mark.parametrize(("arguments", "expected"), BAD_MARKERS.values(), ids=BAD_MARKERS)
@pytest.mark.parametrize("options", [[], ["--gradmask", "--gradmask-device=cpu"]], ids=["skipped", "run"])
def test_a_bad_marker_is_a_usage_error(
    pytester: pytest.Pytester, arguments: str, expected: str, options: list[str]
) -> None:
    pytester.makepyfile(
        f"""
        import pytest

        def test_first():
            print("a test ran")

        @pytest.mark.gradmask({arguments})
        def test_audit():
            pass
        """
    )
    result = pytester.runpytest("-s", *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    output = result.stdout.str() + result.stderr.str()
    assert expected in output
    assert "test_audit" in output
    assert "a test ran" not in output


def test_the_closest_marker_wins_argument_by_argument(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        pytestmark = pytest.mark.gradmask(eps=0.1, norm="L2", seed=5)

        @pytest.mark.gradmask(eps=0.2, budget="ci", margin=0.07, confidence=0.95, samples=3)
        def test_audit(gradmask, threat_model, eval_batch):
            settings = gradmask.settings
            assert threat_model == settings.threat
            assert (settings.threat.eps, settings.threat.norm, settings.seed) == (0.2, "L2", 5)
            assert (settings.budget.name, settings.margin, settings.confidence) == ("ci", 0.07, 0.95)
            assert len(eval_batch.labels) == 3
        """
    )
    result = pytester.runpytest("--gradmask", "--gradmask-device=cpu", "--gradmask-seed=1", "--gradmask-samples=4")
    result.assert_outcomes(passed=1)


def test_the_margin_follows_the_budget_unless_given(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.gradmask(budget="full")
        def test_audit(gradmask):
            assert gradmask.settings.margin == 0.02
        """
    )
    pytester.runpytest("--gradmask", "--gradmask-device=cpu").assert_outcomes(passed=1)


def test_the_marker_is_registered(pytester: pytest.Pytester) -> None:
    pytester.runpytest("--markers").stdout.fnmatch_lines(["@pytest.mark.gradmask(*"])
