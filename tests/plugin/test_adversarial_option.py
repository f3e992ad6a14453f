"""``--gradmask-adversarial``: a file for each audit, beside the report; and the names of classes in the report."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.plugin.test_reporting import DEFENSES, RUN

pytest.importorskip("jinja2", reason="needs jinja2: pip install 'pytest-gradmask[report]'")
pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'pytest-gradmask[report]'")

TEST = (
    DEFENSES
    + """
    @pytest.mark.parametrize("number", [1, 2])
    def test_masked(gradmask, monkeypatch, tmp_path, number):
        monkeypatch.chdir(tmp_path)  # the files are nevertheless where the run was started
        model = masked()
        assert_gradient_masking(gradmask.audit(model, *batch(model), class_names=["ant", "bee", "cow", "dog", "eel"]))
"""
)


@pytest.mark.longer
@pytest.mark.parametrize(
    "more",
    [
        pytest.param(("-p", "no:xdist"), id="alone"),
        pytest.param(("-n2",), id="with workers", marks=pytest.mark.slow),
    ],
)
def test_each_audit_has_a_file(pytester: pytest.Pytester, more: tuple[str, ...]) -> None:
    pytest.importorskip("xdist")
    pytester.makepyfile(test_it=TEST)
    result = pytester.runpytest(*RUN, "--gradmask-html=out.html", "--gradmask-adversarial=new/saved", *more)
    result.assert_outcomes(passed=2)
    files = sorted((pytester.path / "new" / "saved").iterdir())
    assert [re.sub(r"-\w{8}-1", "", file.name) for file in files] == [
        f"test_it.py-test_masked-{n}-.npz" for n in (1, 2)
    ]
    page = (pytester.path / "out.html").read_text()
    for file in files:
        with np.load(file, allow_pickle=False) as arrays:
            assert arrays["broken"].any()
        result.stdout.fnmatch_lines([f"* adversarial images written to new/saved/{file.name}"])
        assert f"<code>new/saved/{file.name}</code>" in page
    assert re.search(r"clean: (ant|bee|cow|dog|eel) \(", page)


@pytest.mark.longer
def test_the_ini_value_does_the_same(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=TEST)
    pytester.makeini("[pytest]\ngradmask_adversarial = saved\ngradmask_html = out.html")
    pytester.runpytest(*RUN, "-k", "1").assert_outcomes(passed=1, deselected=1)
    assert len(list((pytester.path / "saved").iterdir())) == 1


def test_it_needs_a_report(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=TEST)
    result = pytester.runpytest("--gradmask", "--gradmask-adversarial=saved")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--gradmask-adversarial: say where the report goes, too, with --gradmask-html=FILE"])


@pytest.mark.longer
def test_a_file_that_cannot_be_written_fails_the_run(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("numpy.savez_compressed", full)
    pytester.makepyfile(test_it=TEST)
    result = pytester.runpytest(*RUN, "-k", "1", "--gradmask-html=out.html", "--gradmask-adversarial=saved")
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    result.stdout.fnmatch_lines(["*saving adversarial images to saved failed: OSError: OSError: the disk is full"])
    assert "could not be made: OSError: the disk is full" in (pytester.path / "out.html").read_text()
    assert not list((pytester.path / "saved").iterdir())


NAMED = (
    DEFENSES
    + """
    from pytest_gradmask.errors import InputError
    from pytest_gradmask.plugin.stash import AUDITS

    def test_it(gradmask, eval_batch):
        images, labels = eval_batch
        gradmask._evidence = lambda audit, defense, batch, *_: {"names": gradmask._class_names(batch.labels)}
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)).eval()
        for some in ((images, labels), (images[:7], labels[:7]), (images, labels.flip(0))):
            gradmask.audit(model, *some)
        names = [record["evidence"]["names"] for record in gradmask._node.stash[AUDITS]]
        assert [len(each) for each in names] == [10, 10, 0]  # the last has other labels than eval_batch
        assert names[0][8] == "ship"

    def test_of_own_images(gradmask):
        assert repr(gradmask) == "<audits with the budget smoke>"
        assert gradmask._class_names(torch.zeros(2)) == ()

    def test_odd_names(gradmask):
        model = linear()
        for odd in ("ant", [1, 2], 3):
            with pytest.raises(InputError, match="class_names"):
                gradmask.audit(model, *batch(model), class_names=odd)
"""
)


def test_images_of_the_run_bring_the_names_of_their_classes(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=NAMED)
    pytester.runpytest(*RUN).assert_outcomes(passed=3)
