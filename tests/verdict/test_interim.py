"""At how many images an audit looks, and that the looks together are wrong no more often than one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_gradmask.verdict.interim import Look, plan_looks
from pytest_gradmask.verdict.stats import clopper_pearson


@given(st.integers(1, 20_000), st.floats(0.001, 0.9), st.floats(0.51, 0.9999))
def test_looks_share_the_error_and_end_with_all_images(images: int, margin: float, confidence: float) -> None:
    looks = plan_looks(images, margin, confidence)
    sizes = [look.images for look in looks]
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == images
    assert all(size >= min(20, images) for size in sizes)
    assert {look.number for look in looks} == {len(looks)}
    assert sum(look.exclusion for look in looks) == pytest.approx(1)
    assert sum(1 - look.establishing(confidence) for look in looks) == pytest.approx(1 - confidence)
    assert sum(1 - look.excluding(confidence) for look in looks) == pytest.approx(1 - confidence)


@pytest.mark.parametrize(("images", "margin"), [(200, 0.05), (1000, 0.02), (100, 0.25)])
def test_one_look_before_the_last_can_exclude_a_gap_and_the_last_hardly_less_than_an_only_one(
    images: int, margin: float
) -> None:
    def broken(look: Look) -> int:
        """Images that may fall without a gap of the margin; -1 for none."""
        each = [clopper_pearson(count, look.images, look.excluding(0.99))[1] < margin for count in range(look.images)]
        return sum(each) - 1

    looks = plan_looks(images, margin, 0.99)
    early = [look for look in looks[:-1] if broken(look) >= 0]
    assert early
    assert early[0].images <= 0.75 * images
    assert broken(looks[-1]) == broken(Look(images))


@pytest.mark.parametrize(("images", "margin"), [(1, 0.25), (20, 0.25), (38, 0.1)])
def test_few_images_get_one_look(images: int, margin: float) -> None:
    assert plan_looks(images, margin, 0.99) == [Look(images)]
    assert (Look(images).establishing(0.99), Look(images).excluding(0.99)) == (0.99, 0.99)


def test_a_large_audit_looks_early() -> None:
    assert plan_looks(200, 0.05, 0.99)[0].images < 50
    assert plan_looks(10_000, 0.02, 0.99)[0].images < 50
