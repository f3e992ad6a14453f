"""The cache: unchanged audits are found again, and damaged entries are computed again."""

from __future__ import annotations

import errno
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pytest_gradmask import Defense, ThreatModel, Verdict
from pytest_gradmask.auditing.scoring import AttackJob
from pytest_gradmask.execution.cache import Cache
from pytest_gradmask.verdict.audit import Audit
from pytest_gradmask.verdict.results import AttackResult
from tests.execution.processes import at_once
from tests.toys import IMAGES, TINY, KillGradient, Noisy, Quantize, audited, linear, masked, predictions, timeless

DEFENSES: dict[str, Callable[[], nn.Module | Defense]] = {
    "masked": lambda: masked(KillGradient),
    "undefended": linear,
    "randomized": lambda: Noisy(linear(), 0.05).eval(),
}

#: Fixed labels: a randomized defense predicts something else each time.
LABELS = predictions(linear(), IMAGES)


def plain(audit: Audit) -> Audit:
    """Without its times and whether it came from the cache."""
    return replace(timeless(audit), cached=False)


def entries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.result"))


@pytest.mark.parametrize("make", DEFENSES.values(), ids=DEFENSES)
def test_unchanged_audit_is_found_again(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    first, second = (audited(make(), labels=LABELS, cache=tmp_path) for _ in range(2))
    assert (first.cached, second.cached) == (False, True)
    assert replace(second, cached=False) == first


@pytest.mark.parametrize("make", DEFENSES.values(), ids=DEFENSES)
def test_a_cache_changes_no_result(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    assert plain(audited(make(), labels=LABELS, cache=tmp_path)) == plain(audited(make(), labels=LABELS))


CHANGES: dict[str, dict[str, Any]] = {
    "seed": {"seed": 1},
    "eps": {"threat": ThreatModel(0.11)},
    "norm": {"threat": ThreatModel(0.1, "L2")},
    "budget": {"budget": replace(TINY, apgd_steps=6)},
    "margin": {"margin": 0.2},
    "confidence": {"confidence": 0.95},
    "exhaustive": {"exhaustive": True},
    "images": {"images": IMAGES + 1e-4 * (IMAGES < 0.5)},
    "defense": {"defense": masked(Quantize)},
    "weights": {"defense": masked(KillGradient, linear(seed=1))},
    "what the attacker knows": {"defense": Defense(masked(KillGradient), bypass=["0"])},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_key_covers_all_that_results_depend_on(change: dict[str, Any], tmp_path: Path) -> None:
    base: dict[str, Any] = {"defense": masked(KillGradient), "cache": tmp_path}
    audited(**base)
    assert not audited(**{**base, **change}).cached


def test_new_confidence_runs_no_attack_again(tmp_path: Path) -> None:
    audited(linear(), cache=tmp_path)
    before = len(entries(tmp_path))
    assert not audited(linear(), cache=tmp_path, confidence=0.95).cached
    assert len(entries(tmp_path)) == before + 1


def test_interrupted_audit_resumes_after_its_last_attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = audited(masked(Quantize), exhaustive=True)

    def interrupt(event: object) -> None:
        if str(event).startswith("square"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audited(masked(Quantize), exhaustive=True, cache=tmp_path, progress=interrupt)
    ran: list[str] = []
    run = AttackJob.__call__

    def watched(self: AttackJob, *chunk: Any) -> AttackResult:
        ran.append(self.attack.name)
        return run(self, *chunk)

    monkeypatch.setattr(AttackJob, "__call__", watched)
    resumed = audited(masked(Quantize), exhaustive=True, cache=tmp_path)
    assert ran == ["square", "zero-order", "placebo"]
    assert plain(resumed) == plain(undisturbed)


def test_failed_attack_is_tried_again(tmp_path: Path) -> None:
    class Flaky(nn.Module):
        """Raises when gradients are required, until ``works`` is set."""

        works = False

        def __init__(self) -> None:
            super().__init__()
            self.model = linear()

        def forward(self, images: Tensor) -> Tensor:
            if images.requires_grad and not Flaky.works:
                raise RuntimeError("not now")
            return self.model(images)  # type: ignore[no-any-return]

    assert audited(Flaky().eval(), cache=tmp_path).verdict is Verdict.INCONCLUSIVE
    Flaky.works = True
    again = audited(Flaky().eval(), cache=tmp_path)
    assert (again.verdict, again.cached) == (Verdict.NOT_MASKED, False)


def test_defense_without_fingerprint_is_not_cached(tmp_path: Path) -> None:
    model = linear()
    model.file = iter([])  # type: ignore[assignment]
    lines: list[str] = []
    for _ in range(2):
        assert not audited(model, cache=tmp_path, progress=lines.append).cached
    assert not entries(tmp_path)
    assert "no use of the cache, as Sequential contains builtins.list_iterator" in [str(event) for event in lines]


def test_without_a_folder_nothing_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    audited(linear())
    assert not list(tmp_path.iterdir())


# damage

KEY = "ab" * 32
RESULT = AttackResult(
    "bpda", "adaptive", access="bypass", attacked=(0, 1), broken=(1,), forwards=3, autoattack=("standard",)
)


def damaged(folder: Path, change: Callable[[bytes], bytes]) -> AttackResult | None:
    """What the cache returns for an entry whose file was changed."""
    cache = Cache(folder)
    cache.store_attack(KEY, RESULT)
    (file,) = entries(folder)
    file.write_bytes(change(file.read_bytes()))
    return cache.attack(KEY)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut off": lambda data: data[: len(data) // 2],
    "not JSON": lambda data: b"\x80\x04cposix\nsystem\n",
    "not an object": lambda data: b"[1, 2]",
    "another status": lambda data: data.replace(b'"broken": [1]', b'"broken": []'),
    "without a hash": lambda data: data.partition(b"\n")[2],
    "not UTF-8": lambda data: data.replace(b"bpda", b"\xff\xfe\xff\xfe"),
}


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE)
def test_damaged_entry_is_ignored_with_a_warning(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"gradmask cache: .* is damaged"):
        assert damaged(tmp_path, change) is None
    Cache(tmp_path).store_attack(KEY, RESULT)
    assert Cache(tmp_path).attack(KEY) == RESULT


@given(st.integers(0), st.integers(0, 7))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_flipped_bit_is_noticed(tmp_path: Path, index: int, bit: int) -> None:
    def flip(data: bytes) -> bytes:
        position = index % len(data)
        return data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :]

    with pytest.warns(UserWarning, match="damaged"):
        assert damaged(tmp_path, flip) is None


def test_damaged_audit_is_computed_again(tmp_path: Path) -> None:
    first = audited(linear(), cache=tmp_path)
    for file in entries(tmp_path):
        file.write_text(file.read_text().replace("NOT_MASKED", "MASKED"))
    with pytest.warns(UserWarning, match="damaged"):
        second = audited(linear(), cache=tmp_path)
    assert (second.cached, second.verdict) == (False, first.verdict)


def test_unwritable_folder_costs_no_result(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    with pytest.warns(UserWarning, match="cannot store"), pytest.warns(UserWarning, match="cannot count the audits"):
        assert audited(linear(), cache=file).verdict is Verdict.NOT_MASKED


def test_a_link_to_a_folder_is_as_good_as_the_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    assert not audited(linear(), cache=tmp_path / "link").cached
    assert audited(linear(), cache=tmp_path / "real").cached


def test_a_link_to_nowhere_costs_no_result(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert audited(linear(), cache=tmp_path / "link").verdict is Verdict.NOT_MASKED


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EROFS, errno.ENOSPC, errno.ESTALE, errno.EACCES])
def test_a_file_system_that_refuses_costs_no_result(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.warns(UserWarning, match="cannot store") as warned:
        assert audited(linear(), cache=tmp_path).verdict is Verdict.NOT_MASKED
    assert sum("cannot store" in str(each.message) for each in warned) == 1
    assert not [file for file in tmp_path.rglob("*") if file.suffix in (".part", ".result")]


def test_a_folder_that_is_deleted_meanwhile_costs_no_result(tmp_path: Path) -> None:
    def delete(event: object) -> None:
        if str(event).startswith("square"):
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)

    found = audited(linear(), cache=tmp_path / "cache", progress=delete, exhaustive=True)
    assert plain(found) == plain(audited(linear(), exhaustive=True))


def test_the_folder_may_be_a_text(tmp_path: Path) -> None:
    assert not audited(linear(), cache=str(tmp_path)).cached
    assert audited(linear(), cache=tmp_path).cached


WRITER = """
import sys, time, warnings
from pathlib import Path
from pytest_gradmask.execution.cache import Cache
from pytest_gradmask.verdict.results import AttackResult

warnings.simplefilter("error")
folder, started = Path(sys.argv[1]), time.monotonic()
cache = Cache(folder / "cache")
(folder / sys.argv[2]).touch()
while not (folder / "go").exists():
    assert time.monotonic() < started + 60
for turn in range(100):
    key, long = "ab" * 31 + f"{turn % 3:02}", tuple(range(2000))
    result = AttackResult("bpda", "adaptive", attacked=long, broken=long)
    cache.store_attack(key, result)
    assert cache.attack(key) == result
"""


@pytest.mark.longer
def test_several_processes_may_write_at_once(tmp_path: Path) -> None:
    ended = at_once(WRITER, tmp_path)
    assert [code for code, _, _ in ended] == [0, 0, 0], [errors for _, _, errors in ended]
    assert len(entries(tmp_path)) == 3
    assert not list(tmp_path.rglob("*.part"))
