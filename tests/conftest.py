"""Settings for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import pytest_socket
import torch
import torchvision  # noqa: F401 - tests that run pytest in their own process forget what it loads, and this loads once
from hypothesis import HealthCheck, settings

from tests.training.training_toys import GUARDED_TOML, TOML, separable

# A busy machine is no failure, and no property here needs the examples of an earlier run.
settings.register_profile(
    "gradmask", deadline=None, max_examples=50, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("gradmask")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models run faster on one thread than on many."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def own_machine() -> Iterator[None]:
    """Tests of what a person sees and of what a CI machine prints say which they mean, wherever they run."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CI", "BUILD_NUMBER", "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GITHUB_WORKSPACE"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(autouse=True)
def no_network(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test reaches for the network, except for a cluster on this machine."""
    if request.node.get_closest_marker("enable_socket") is None:
        pytest_socket.disable_socket(allow_unix_socket=True)
    yield
    pytest_socket.enable_socket()


@pytest.fixture(autouse=True)
def normal_number_left_over() -> None:
    """NumPy's global generator draws normal numbers in pairs; who loses the second one has left a trace."""
    while not np.random.get_state(legacy=False)["has_gauss"]:
        np.random.standard_normal()


@pytest.fixture
def no_operations_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks whose operations cannot be watched, such as compiled ones: what finds them without operation-level BPDA?"""
    monkeypatch.setattr("pytest_gradmask.auditing.surface.find_operations", lambda *_, **__: {})


@pytest.fixture
def pytester(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Runs tests in the order in which they are written. Many audit and leave it to the test around them to assert."""
    unchecked = "pytest_gradmask.plugin.unchecked.UncheckedAuditWarning"
    monkeypatch.setenv("PYTEST_ADDOPTS", f"-p no:randomly -p no:rerunfailures -W default::{unchecked}")
    return pytester


@pytest.fixture
def workshop(tmp_path: Path) -> Path:
    """A directory with recipes of a model and of a front end before it, and data to train them on."""
    (tmp_path / "tiny.toml").write_text(TOML)
    (tmp_path / "guarded.toml").write_text(GUARDED_TOML)
    train_data, test_data = separable(48), separable(24, seed=1)
    arrays = {}
    for split, data in (("train", train_data), ("test", test_data)):
        arrays[f"{split}_x"] = (data.images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        arrays[f"{split}_y"] = data.labels.numpy()
    np.savez(tmp_path / "data.npz", **arrays)  # type: ignore[arg-type]
    return tmp_path
