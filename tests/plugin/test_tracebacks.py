"""Errors that we raise deliberately show the user's frames and the message alone."""

from __future__ import annotations

import pytest

TESTS = """
    import pytest
    import torch
    from torch import nn
    from pytest_gradmask import Defense, ThreatModel, audit

    class Faulty(nn.Module):
        def forward(self, images):
            return self.inner(images)

        def inner(self, images):
            raise RuntimeError("a fault of the user's")

    def test_images(gradmask):
        gradmask.audit(nn.Flatten().eval(), torch.zeros(3, 3, 8, 8), torch.zeros(3))

    IMAGES = torch.zeros(3, 3, 8, 8)

    def test_no_images(gradmask):
        gradmask.audit(nn.Flatten().eval(), None, [0, 1, 2])

    def test_no_batch(gradmask):
        gradmask.audit(nn.Flatten().eval(), torch.tensor(0.5), [0])

    def test_no_set(gradmask):
        gradmask.audit(nn.Flatten().eval(), IMAGES, [0, 1, 2], threat="Linf")

    def test_eps(gradmask):
        gradmask.audit(nn.Flatten().eval(), IMAGES, [0, 1, 2], eps=8 / 255, budget="ci")

    def test_weights(gradmask):
        gradmask.audit(nn.Linear(100, 100).state_dict(), IMAGES, [0, 1, 2])

    def test_without_the_fixture():
        audit(nn.Flatten().eval(), torch.zeros(3, 3, 8, 8), torch.zeros(3))

    def test_constructor():
        Defense(nn.Identity(), bypass=["nowhere"])

    def test_threat():
        ThreatModel(eps=-1)

    def test_other_error():
        raise ValueError("it is not ours")

    @pytest.fixture
    def broken():
        ThreatModel(eps=-1)

    def test_fixture(broken):
        pass

    def test_forward(gradmask):
        gradmask.audit(Faulty().eval(), torch.zeros(3, 3, 8, 8), torch.zeros(3).long())
"""
RUN = ("--gradmask", "--gradmask-device=cpu", "-p", "no:xdist", "-p", "no:cacheprovider")
MESSAGES = {
    "images": "*InputError: labels: dtype is torch.float32*",
    "no_images": "*InputError: images: must be a torch.Tensor, got NoneType*",
    "no_batch": "*InputError: images: shape is (); a batch has at least two axes*",
    "no_set": "*InputError: threat='Linf': must be a ThreatModel, such as *",
    "eps": "*InputError: eps, budget: no argument of audit(); *@pytest.mark.gradmask(eps=8/255)",
    "weights": "*InputError: defense=OrderedDict(*: must be a Defense or a torch.nn.Module, not its class*",
    "without_the_fixture": "*InputError: labels: dtype is torch.float32*",
    "constructor": "*InputError: bypass: 'nowhere' is not a submodule*",
    "threat": "*InputError: eps=-1*",
    "fixture": "*InputError: eps=-1*",
    "forward": "*DefenseError: Faulty raised RuntimeError*",
}


@pytest.mark.parametrize(("name", "message"), MESSAGES.items(), ids=MESSAGES)
def test_no_frame_of_ours_is_shown(pytester: pytest.Pytester, name: str, message: str) -> None:
    pytester.makepyfile(test_it=TESTS)
    result = pytester.runpytest(*RUN, f"test_it.py::test_{name}")
    result.stdout.fnmatch_lines([f"E *{message}"])
    text = result.stdout.str()
    assert "pytest_gradmask/" not in text
    assert "torch/nn" not in text
    assert len(text.splitlines()) < 75


def test_the_users_frames_are_shown(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=TESTS)
    result = pytester.runpytest(*RUN, "test_it.py::test_forward")
    result.stdout.fnmatch_lines(
        ["*return self.inner(images)*", "*a fault of the user's*", "*direct cause*", ">*gradmask.audit(Faulty*"]
    )


def test_full_tracebacks_can_be_had(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=TESTS)
    result = pytester.runpytest(*RUN, "--full-trace", "test_it.py::test_constructor")
    assert "pytest_gradmask/defense.py" in result.stdout.str()


def test_other_errors_keep_their_traceback(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("""
        import pytest

        def audit(*_, **__):
            raise KeyError("a fault of ours")

        @pytest.fixture(autouse=True)
        def faulty(monkeypatch):
            monkeypatch.setattr("pytest_gradmask.auditing.run.audit", audit)
    """)
    pytester.makepyfile(test_it=TESTS)
    result = pytester.runpytest(*RUN, "test_it.py::test_images")
    assert "pytest_gradmask/plugin/fixtures.py" in result.stdout.str()


def test_the_short_summary_has_room_for_what_is_wrong(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=TESTS)
    result = pytester.runpytest(*RUN, "test_it.py::test_threat", "test_it.py::test_other_error")
    result.stdout.fnmatch_lines(["FAILED test_it.py::test_threat - InputError: eps=-1*", "FAILED * - ValueError: it*"])
