"""Models from every source that users can name, and the errors if they cannot be loaded."""

from __future__ import annotations

import json
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from pytest_gradmask import load_model
from pytest_gradmask.errors import CheckpointError, DependencyError, InputError
from pytest_gradmask.loading import checkpoints
from pytest_gradmask.loading.checkpoints import save_model
from pytest_gradmask.loading.models import build_model
from pytest_gradmask.loading.models.backbones import Normalize
from pytest_gradmask.loading.sources import check_classes
from tests.loading.stand_ins import robustbench
from tests.toys import Boom, convolutional, draw, global_state

TIMM = "test_efficientnet.r160_in1k"  # the smallest model of timm, made for its own tests
VISION = "squeezenet1_1"  # the smallest of torchvision


def same(first: nn.Module, second: nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def refuse(*_: object, **__: object) -> None:
    """Stands in for a server that cannot be reached."""
    raise OSError("no route to host")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hugging Face Hub. Downloads from its server fail."""

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("timm.models._hub.hf_hub_download", refuse)
    return tmp_path / "hub"


def cached(hub: Path, repository: str, network: nn.Module, **config: Any) -> None:
    """Put a model into the cache as a download does."""
    folder = hub / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    save_file(network.state_dict(), folder / "snapshots" / "abc" / "model.safetensors")
    (folder / "snapshots" / "abc" / "config.json").write_text(json.dumps(config))


@pytest.fixture
def vision_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch.hub. Downloads from its server fail."""

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


# fixtures and cards


def test_a_name_alone_is_a_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = {"architecture": "vgg", "arguments": {"layout": [4, "M", 4], "num_classes": 3}}
    network = build_model(**card)  # type: ignore[arg-type]
    save_model("tiny", network, card, tmp_path)
    assert same(load_model(f"checkpoint:{tmp_path}/tiny.json"), network)
    monkeypatch.setattr(checkpoints, "fixtures_directory", lambda: tmp_path)
    assert same(load_model("tiny"), network)
    with pytest.raises(CheckpointError, match=r"no card .*; there are tiny"):
        load_model("large")


# timm and the Hub


@pytest.mark.parametrize("spec", [f"timm:{TIMM}", "timm:hf-hub:some/one", "timm:hf-hub:some/one@main"])
def test_nothing_is_downloaded_unasked(spec: str, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timm.models._hub.hf_hub_download", lambda *args, **kwargs: pytest.fail("it downloads"))
    with pytest.raises(CheckpointError, match=r"not on this machine.* pass --gradmask-download .*timm:.*@FILE"):
        load_model(spec)
    assert not hub.exists()


@pytest.mark.parametrize("spec", [f"timm:{TIMM}", "timm:hf-hub:some/one"])
def test_without_a_network_it_says_what_to_do(spec: str, hub: Path) -> None:
    said = r"could not download .*OSError: no route to host\), or give .*a local file: timm:.*@FILE"
    with pytest.raises(CheckpointError, match=said):
        load_model(spec, download=True)
    assert not hub.exists()


@pytest.mark.parametrize("download", [False, True])
def test_what_was_downloaded_before_is_found(download: bool, hub: Path) -> None:
    network = timm.create_model(TIMM, pretrained=False)
    cached(hub, f"timm/{TIMM}", network)
    model = load_model(f"timm:{TIMM}", download=download)
    assert isinstance(model, nn.Sequential)
    assert same(model[1], network)
    assert not model.training


@pytest.mark.parametrize("revision", ["", "@abc"])
def test_hub_model_normalises_by_its_configuration(revision: str, hub: Path) -> None:
    network = timm.create_model(TIMM, pretrained=False, num_classes=7)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    config = {"mean": mean, "std": std, "num_classes": 7, "input_size": [3, 64, 64], "classifier": "classifier"}
    cached(hub, "some/one", network, architecture="test_efficientnet", num_classes=7, pretrained_cfg=config)
    model, images = load_model(f"timm:hf-hub:some/one{revision}"), draw(2, 3, 64, 64)
    normalised = (images - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(model(images), network.eval()(normalised))


def test_a_pickle_beside_the_weights_is_not_opened(hub: Path) -> None:
    network = timm.create_model(TIMM, pretrained=False)
    cached(hub, "some/one", network, architecture="test_efficientnet", pretrained_cfg={"mean": [0.5], "std": [0.5]})
    snapshot = hub / "models--some--one" / "snapshots" / "abc"
    (snapshot / "pytorch_model.bin").write_bytes(pickle.dumps(Boom()))
    load_model("timm:hf-hub:some/one")
    assert not Boom.opened


def test_another_revision_of_the_hub_is_not_taken(hub: Path) -> None:
    cached(hub, "some/one", timm.create_model(TIMM, pretrained=False), architecture="test_efficientnet")
    with pytest.raises(CheckpointError, match="not on this machine"):
        load_model("timm:hf-hub:some/one@v2")


@pytest.mark.usefixtures("hub")
def test_a_malformed_name_of_the_hub_is_refused() -> None:
    with pytest.raises(InputError, match="hf-hub:a/b/c"):
        load_model("timm:hf-hub:a/b/c")


def test_a_model_without_weights_wants_a_file() -> None:
    name = next(name for name in timm.list_models() if not timm.models.is_model_pretrained(name))
    with pytest.raises(CheckpointError, match="timm has no weights for it, or give a local file"):
        load_model(f"timm:{name}", download=True)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_decides_how_many_classes_there_are(suffix: str, tmp_path: Path) -> None:
    network, file = timm.create_model(TIMM, num_classes=10), tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": {f"module.{key}": value for key, value in network.state_dict().items()}}, file)
    else:
        save_file(network.state_dict(), file)
    model = load_model(f"timm:{TIMM}@{file}")
    assert isinstance(model, nn.Sequential)
    assert same(model[1], network)


def test_partly_matching_names_are_refused(tmp_path: Path) -> None:
    weights = timm.create_model(TIMM).state_dict()
    renamed = {("other" if number == 0 else key): value for number, (key, value) in enumerate(weights.items())}
    torch.save(renamed, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=f"they have no '{next(iter(weights))}'"):
        load_model(f"timm:{TIMM}@{tmp_path / 'weights.pth'}")


def test_first_tensor_that_does_not_fit_is_named(tmp_path: Path) -> None:
    weights = timm.create_model(TIMM).state_dict()
    first = next(iter(weights))
    save_file({**weights, first: torch.ones(5)}, tmp_path / "weights.safetensors")
    said = f"'{first}' is (5,), there {tuple(weights[first].shape)}"
    with pytest.raises(CheckpointError, match=re.escape(said)):
        load_model(f"timm:{TIMM}@{tmp_path / 'weights.safetensors'}")


# torchvision


@pytest.mark.parametrize("tag", ["", ".IMAGENET1K_V1"])
def test_a_classifier_of_torchvision(tag: str, vision_home: Path) -> None:
    network = models.get_model(VISION, weights=None).eval()
    torch.save(network.state_dict(), vision_home / "squeezenet1_1-b8a52dc0.pth")
    model = load_model(f"torchvision:{VISION}{tag}")
    assert isinstance(model, nn.Sequential)
    assert isinstance(model[0], Normalize)
    assert model[0].mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert model[0].std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])
    assert same(model[1], network)
    assert not model.training


def test_torchvision_downloads_nothing_unasked(vision_home: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not on this machine.*torchvision:squeezenet1_1@FILE"):
        load_model(f"torchvision:{VISION}")
    with pytest.raises(CheckpointError, match=r"could not download .*no route to host.*torchvision:squeezenet1_1@FILE"):
        load_model(f"torchvision:{VISION}", download=True)
    assert not list(vision_home.iterdir())


@pytest.mark.parametrize("where", ["cache", "file"])
def test_no_code_of_a_file_is_run(where: str, vision_home: Path) -> None:
    file = vision_home / "squeezenet1_1-b8a52dc0.pth"
    torch.save({"layer": Boom()}, file)
    with pytest.raises(CheckpointError, match=r"(?i)weights.*only"):
        load_model(f"torchvision:{VISION}" + (f"@{file}" if where == "file" else ""))
    assert not Boom.opened


def test_weights_of_a_file_for_torchvision(tmp_path: Path) -> None:
    network = models.get_model(VISION, weights=None, num_classes=7)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    model = load_model(f"torchvision:{VISION}@{tmp_path / 'weights.safetensors'}")
    assert isinstance(model, nn.Sequential)
    assert same(model[1], network)


def test_googlenet_from_a_file_rescales_its_input(tmp_path: Path) -> None:
    arguments = {"init_weights": False, "aux_logits": True}
    save_file(models.googlenet(weights=None, **arguments).state_dict(), tmp_path / "weights.safetensors")
    model: Any = load_model(f"torchvision:googlenet@{tmp_path / 'weights.safetensors'}")
    assert model[1].transform_input


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("torchvision:reznet50", "torchvision has no such model; similar ones: resnet50"),
        ("torchvision:deeplabv3_resnet50", "torchvision has no such model"),
        ("torchvision:resnet50.V9", "resnet50 has no weights 'V9'; use .*IMAGENET1K_V1"),
    ],
)
def test_unknown_names_of_torchvision_are_refused(spec: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_model(spec)


# RobustBench


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    return robustbench(monkeypatch, tmp_path, lambda: convolutional().train())


def test_robustbench_model_is_stored_in_the_cache(bench: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not on this machine.* or put its file into .*cifar10/Linf"):
        load_model("robustbench:Standard")
    assert not bench
    assert not load_model("robustbench:Standard", download=True).training
    folder = tmp_path / "pytest-gradmask" / "robustbench"
    wanted = {"model_name": "Standard", "model_dir": folder, "dataset": "cifar10", "threat_model": "Linf"}
    assert bench == wanted
    (folder / "cifar10" / "Linf").mkdir(parents=True)
    (folder / "cifar10" / "Linf" / "Standard.pt").touch()
    load_model("robustbench:cifar10/Linf/Standard")


@pytest.mark.parametrize("spec", ["robustbench:Standrd", "robustbench:imagenet/L2/Standard"])
@pytest.mark.usefixtures("bench")
def test_an_unknown_model_of_robustbench_is_refused(spec: str) -> None:
    near = "Standard" if spec.endswith("Standrd") else "none"
    with pytest.raises(InputError, match=f"RobustBench has no such model; similar ones: {near}"):
        load_model(spec)


@pytest.mark.usefixtures("bench")
def test_robustbench_without_a_network() -> None:
    with pytest.raises(CheckpointError, match=r"could not download .*no route to host"):
        load_model("robustbench:Gone2020", download=True)


def test_robustbench_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "robustbench", None)
    with pytest.raises(DependencyError, match="RobustBench cannot be imported"):
        load_model("robustbench:Standard")


# modules of the user


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("my_project", "my_broken", "my_needy"):
        monkeypatch.setitem(sys.modules, name, None)  # so that the end of the test removes it again
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "my_broken.py").write_text("1 / 0")
    (tmp_path / "my_needy.py").write_text("import no_such_package")
    (tmp_path / "my_project.py").write_text(
        "from torch import nn\n"
        "MODEL = nn.Linear(2, 3)\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self): super().__init__(2, 3)\n"
        "class Zoo:\n"
        "    defense = staticmethod(Net)\n"
        "def load_defense(): return Net().train()\n"
        "def load_settings(): return {}\n"
        "def load_large(size): return Net()\n"
        "settings = {}\n"
    )


@pytest.mark.parametrize("target", ["MODEL", "Net", "load_defense", "Zoo.defense"])
@pytest.mark.usefixtures("project")
def test_model_of_the_user(target: str) -> None:
    model = load_model(f"import:my_project:{target}")
    assert isinstance(model, nn.Linear)
    assert not model.training


@pytest.mark.parametrize(
    ("target", "said"),
    {
        "no_such_project:model": "No module named 'no_such_project'; put its folder into pytest's ini value pythonpath",
        "my_project.models:model": "importing my_project.models raised ModuleNotFoundError",
        "my_broken:model": "importing my_broken raised ZeroDivisionError: division by zero$",
        "my_needy:model": "importing my_needy raised ModuleNotFoundError: No module named 'no_such_package'$",
        "my_project:load_defence": r"my_project has no 'load_defence'; it has load_defense",
        "my_project:xyz": r"my_project has no 'xyz'; it has MODEL, Net, Zoo, load_defense",
        "my_project:Zoo.attack": "Zoo has no 'attack'; it has defense",
        "my_project:settings": "is a dict; must be a Module, or return one when called",
        "my_project:load_settings": "returned a dict; must return a Module",
        "my_project:load_large": "called without arguments, it raised TypeError: .*size",
    }.items(),
)
@pytest.mark.usefixtures("project")
def test_what_is_no_model_is_refused(target: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        load_model(f"import:{target}")
    assert f"import:{target}" in str(caught.value)


# classes


def test_model_needs_the_classes_of_the_data() -> None:
    model, images = convolutional(classes=4).train(), draw(2, 3, 8, 8)
    before = global_state()
    for classes in (4, None):
        check_classes("mine", model, images, classes, "theirs")
    with pytest.raises(InputError, match="model 'mine': has 4 classes, but data 'theirs' have 10"):
        check_classes("mine", model, images, 10, "theirs")
    with pytest.raises(InputError, match=r"raised RuntimeError on an image of data 'theirs', of shape \(3, 9, 9\)"):
        check_classes("mine", model, draw(2, 3, 9, 9), 4, "theirs")
    assert global_state() == before
    assert model.training
