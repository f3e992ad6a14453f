"""Fixtures: evaluation images, trained models, the facade."""

from __future__ import annotations

import pytest

RUN = ("--gradmask", "--gradmask-device=cpu")


def test_the_default_images_are_the_embedded_ones(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import torch

        def test_images(gradmask, eval_batch):
            images, labels = eval_batch
            assert images.shape == (20, 3, 32, 32)
            assert images.dtype == torch.float32
            assert 0 <= images.min() < images.max() <= 1
            assert labels.tolist()[:4] == [3, 8, 8, 0]
        """
    )
    pytester.runpytest(*RUN).assert_outcomes(passed=1)


def test_images_are_chosen_by_option_and_seed(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import numpy as np, pytest

        @pytest.mark.gradmask(seed=1)
        def test_one(eval_batch):
            np.save("one.npy", eval_batch.images.numpy())
            assert len(eval_batch.labels) == 5

        @pytest.mark.gradmask(seed=1)
        def test_same(eval_batch):
            assert (np.load("one.npy") == eval_batch.images.numpy()).all()

        @pytest.mark.gradmask(seed=2)
        def test_other(eval_batch):
            assert (np.load("one.npy") != eval_batch.images.numpy()).any()
        """
    )
    pytester.runpytest(*RUN, "--gradmask-samples=5").assert_outcomes(passed=3)


def test_tests_do_not_share_images(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        pytestmark = pytest.mark.gradmask

        def test_one(eval_batch):
            eval_batch.images.zero_()

        def test_two(eval_batch):
            assert eval_batch.images.max() > 0
        """
    )
    pytester.runpytest(*RUN).assert_outcomes(passed=2)


def test_too_many_samples_are_an_error(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_images(gradmask, eval_batch): pass")
    result = pytester.runpytest(*RUN, "--gradmask-samples=21")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*InputError: samples 21*20 images*"])


@pytest.mark.parametrize("fixture", ["backbone", "composite", "ensemble"])
def test_models_come_in_eval_mode_and_afresh(pytester: pytest.Pytester, fixture: str) -> None:
    pytester.makepyfile(
        f"""
        import pytest, torch
        pytestmark = pytest.mark.gradmask

        def test_one({fixture}):
            assert not any(module.training for module in {fixture}.modules())
            with torch.no_grad():
                assert {fixture}(torch.rand(2, 3, 32, 32)).shape == (2, 10)
                next({fixture}.parameters()).zero_()

        def test_two({fixture}):
            assert next({fixture}.parameters()).abs().sum() > 0
        """
    )
    pytester.runpytest(*RUN).assert_outcomes(passed=2)


def test_models_are_chosen_by_name(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.gradmask
        @pytest.mark.parametrize("backbone", ["vgg-standard"], indirect=True)
        def test_name(backbone):
            assert "VGG" in type(backbone[1]).__name__
        """
    )
    pytester.runpytest(*RUN).assert_outcomes(passed=1)


def test_an_unknown_name_lists_those_there_are(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.gradmask
        @pytest.mark.parametrize("backbone", ["resnet-9000"], indirect=True)
        def test_name(backbone):
            pass
        """
    )
    result = pytester.runpytest(*RUN)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*CheckpointError*resnet-9000*vgg-standard*"])
