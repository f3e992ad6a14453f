"""Classifiers of timm, torchvision and RobustBench, with weights from this machine or from a download."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from pytest_gradmask.errors import CheckpointError, DependencyError, InputError
from pytest_gradmask.execution.files import cache_directory
from pytest_gradmask.loading.models.backbones import Normalize
from pytest_gradmask.loading.sources.weights import with_weights
from pytest_gradmask.loading.specs import ModelSpec

#: With pretrained weights, torchvision builds these two so that they rescale normalised images.
_RESCALING = ("googlenet", "inception_v3")


def _unknown(spec: ModelSpec, library: str, names: Iterable[str]) -> InputError:
    near = difflib.get_close_matches(spec.name.rpartition("/")[2], list(names), n=5, cutoff=0.5)
    return InputError(f"model {spec.text!r}: {library} has no such model; similar ones: {', '.join(near) or 'none'}")


def _not_local(spec: ModelSpec, file: str) -> CheckpointError:
    return CheckpointError(
        f"model {spec.text!r}: its weights are not on this machine, and nothing is downloaded unasked; pass "
        f"--gradmask-download (in Python download=True){file}"
    )


def _downloaded(spec: ModelSpec, get: Callable[[], Any], file: str) -> Any:
    """Return the result of ``get``. Raise a `CheckpointError` for any error of a download."""
    try:
        return get()
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or "no reason given"
        raise CheckpointError(
            f"model {spec.text!r}: could not download or read its weights ({type(error).__name__}: {reason}){file}"
        ) from error


def _local_file(spec: ModelSpec) -> str:
    return f", or give a local file: {spec.kind}:{spec.name}@FILE"


def _normalized(network: nn.Module, mean: Any, std: Any) -> nn.Module:
    return nn.Sequential(Normalize(mean, std), network).eval()


def load_timm(spec: ModelSpec, *, download: bool) -> nn.Module:
    """A classifier of timm; see `pytest_gradmask.loading.sources.load_model`."""
    import timm

    if spec.name.startswith("hf-hub:"):
        network = _from_hub(spec, download=download)
    else:
        try:
            config = timm.get_pretrained_cfg(spec.name) if timm.is_model(spec.name) else None
        except RuntimeError:  # timm knows the model but not the weights after its dot
            config = None
        if config is None:
            raise _unknown(spec, "timm", (*timm.list_models(), *timm.list_pretrained()))
        if spec.file is not None:
            network = with_weights(partial(timm.create_model, spec.name), spec.file, spec.name)
        else:
            network = _pretrained(spec, config, download=download)
    config = cast("dict[str, Any]", network.pretrained_cfg)
    return _normalized(network, config["mean"], config["std"])


def _pretrained(spec: ModelSpec, config: Any, *, download: bool) -> nn.Module:
    import timm
    from huggingface_hub import try_to_load_from_cache

    if not config.has_weights:
        raise CheckpointError(f"model {spec.text!r}: timm has no weights for it{_local_file(spec)}")
    create = partial(timm.create_model, spec.name, pretrained=True)
    cached = try_to_load_from_cache(config.hf_hub_id, "model.safetensors") if config.hf_hub_id else None
    if isinstance(cached, str):
        return create(pretrained_cfg_overlay={"file": cached})  # type: ignore[no-any-return]
    if not download:
        raise _not_local(spec, _local_file(spec))
    return _downloaded(spec, create, _local_file(spec))  # type: ignore[no-any-return]


def _from_hub(spec: ModelSpec, *, download: bool) -> nn.Module:
    import timm
    from huggingface_hub import try_to_load_from_cache

    repository, _, revision = spec.name.removeprefix("hf-hub:").partition("@")
    try:
        files = [
            try_to_load_from_cache(repository, file, revision=revision or None)
            for file in ("config.json", "model.safetensors")
        ]
    except ValueError as error:
        raise InputError(f"model {spec.text!r}: {error}") from error
    if all(isinstance(file, str) for file in files):
        # Name the file: old releases of timm would pick any weights in the folder and run the code of pickled ones.
        safe = {"file": files[1], "source": ""}
        return timm.create_model(  # type: ignore[no-any-return]
            f"local-dir:{Path(str(files[0])).parent}", pretrained=True, pretrained_cfg_overlay=safe
        )
    alternative = ", or give an architecture and a local file: timm:NAME@FILE"
    if not download:
        raise _not_local(spec, alternative)
    return _downloaded(spec, partial(timm.create_model, spec.name, pretrained=True), alternative)  # type: ignore[no-any-return]


def load_torchvision(spec: ModelSpec, *, download: bool) -> nn.Module:
    """A classifier of torchvision; see `pytest_gradmask.loading.sources.load_model`."""
    from torchvision import models

    name, _, tag = spec.name.partition(".")
    if name not in models.list_models(module=models):
        raise _unknown(spec, "torchvision", models.list_models(module=models))
    known = models.get_model_weights(name)
    if tag and tag not in known.__members__:
        raise InputError(f"model {spec.text!r}: {name} has no weights {tag!r}; use {', '.join(known.__members__)}")
    weights = known[tag or "DEFAULT"]
    if spec.file is not None:
        arguments = {"transform_input": True, "init_weights": False} if name in _RESCALING else {}
        network = with_weights(partial(models.get_model, name, weights=None, **arguments), spec.file, name)
    else:
        if not (download or Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2]).is_file()):
            raise _not_local(spec, _local_file(spec))
        # Read the file here first, because torchvision does not refuse code in it.
        _downloaded(spec, partial(weights.get_state_dict, check_hash=True, weights_only=True), _local_file(spec))
        network = models.get_model(name, weights=weights)
    preset = weights.transforms()
    return _normalized(network, preset.mean, preset.std)


def load_robustbench(spec: ModelSpec, *, download: bool) -> nn.Module:
    """A model of RobustBench; see `pytest_gradmask.loading.sources.load_model`.

    It normalises images itself. Its weights are stored in the cache directory of this package.
    """
    try:
        bench = importlib.import_module("robustbench.utils")
        enums = importlib.import_module("robustbench.model_zoo.enums")
    except ImportError as error:  # RobustBench does not declare all of its dependencies
        raise DependencyError(
            f"model {spec.text!r}: RobustBench cannot be imported ({error}); install what it lacks"
        ) from error
    data, threat, name = spec.name.split("/")
    known = bench.all_models[enums.BenchmarkDataset(data)].get(enums.ThreatModel(threat), {})
    if name not in known:
        raise _unknown(spec, "RobustBench", known)
    folder = cache_directory() / "robustbench"
    model_folder = folder / data / threat
    stored = (model_folder / f"{name}.pt").is_file() or (model_folder / f"{name}.pt_m0.pt").is_file()
    alternative = f", or put its file into {model_folder}"
    if not (download or stored):
        raise _not_local(spec, alternative)
    load = partial(bench.load_model, model_name=name, model_dir=folder, dataset=data, threat_model=threat)
    model: nn.Module = _downloaded(spec, load, alternative)
    return model.cpu().eval()
