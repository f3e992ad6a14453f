"""Checkpoints: safetensors files, each with a card that records what the model is, how it was made and its accuracy.

A card is a JSON file. It ends with a hash of its other entries. Its ``sha256`` is the hash of the weights, which is
checked before they are used. A card may also describe a model made of other checkpoints, by their names: a composite
(``front_end`` and ``backbone``) or a randomized ensemble (``members``).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pytest_gradmask.checks import shown
from pytest_gradmask.errors import CheckpointError
from pytest_gradmask.execution.files import replaced
from pytest_gradmask.loading.models import build_model
from pytest_gradmask.loading.models.composites import Composite, RandomizedEnsemble

_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_SEAL = "card_sha256"


def fixtures_directory() -> Path:
    """The directory of the trained fixtures: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "fixtures", package.parent / "fixtures"):
        if folder.is_dir():
            return folder
    raise CheckpointError(f"no fixtures directory in {package} or beside it; reinstall pytest-gradmask")


def available(directory: Path | None = None) -> list[str]:
    """Names of all checkpoints, composites and ensembles in a directory (by default the package's fixtures)."""
    return sorted(file.stem for file in (directory or fixtures_directory()).glob("*.json"))


def load_card(name: str, directory: Path | None = None) -> dict[str, Any]:
    """Read a checkpoint's card.

    Raises:
        CheckpointError: there is no such card, it cannot be read, or it was changed since it was written.
    """
    folder = directory or fixtures_directory()
    _check_name(name)
    file = folder / f"{name}.json"
    try:
        text = file.read_text(encoding="utf-8")
        card = json.loads(text)
        sealed = _sealed(card) if isinstance(card, dict) else ""
    except FileNotFoundError:
        known = available(folder)
        near = difflib.get_close_matches(name, known, n=5, cutoff=0.8)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known) or 'none'}"
        raise CheckpointError(f"checkpoint {name!r}: no card {file}; {hint}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {name!r}: card {file} cannot be read ({error})") from error
    if not isinstance(card, dict) or "architecture" not in card:
        raise CheckpointError(f"checkpoint {name!r}: card {file} names no architecture")
    if text != sealed:
        raise CheckpointError(
            f"checkpoint {name!r}: card {file} is corrupted or was changed: its {_SEAL} is not the hash of the rest; "
            "restore the file, or write it again with save_card"
        )
    return {key: value for key, value in card.items() if key != _SEAL}


def _sealed(card: dict[str, Any]) -> str:
    """The text of a card's file, with a hash by which any change of a byte is noticed."""
    content = {key: value for key, value in card.items() if key != _SEAL}
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, _SEAL: digest}, indent=2) + "\n"


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise CheckpointError(f"checkpoint {name!r}: a name has lower-case letters, digits and dashes only")


def load_checkpoint(name: str, directory: Path | None = None) -> nn.Module:
    """Load a model of the fixtures by name, on the CPU and in eval mode.

    Raises:
        CheckpointError: the name is unknown, the weights are missing or corrupted (their hash differs from the card's),
            or they do not fit the architecture.
    """
    return _load(name, directory or fixtures_directory(), ())


def _load(name: str, folder: Path, parents: tuple[str, ...]) -> nn.Module:
    if name in parents:
        raise CheckpointError(f"checkpoint {parents[0]!r}: is a part of itself ({' > '.join((*parents, name))})")
    card = load_card(name, folder)
    if card["architecture"] not in ("composite", "ensemble"):
        return _load_weights(name, card, folder)
    parts = []
    for part in _parts(name, card):
        # A part that is not in the same folder is a fixture of the package.
        part_folder = folder if part in available(folder) else fixtures_directory()
        parts.append(_load(part, part_folder, (*parents, name)))
    return (Composite(*parts) if card["architecture"] == "composite" else RandomizedEnsemble(parts)).eval()


def _parts(name: str, card: dict[str, Any]) -> list[str]:
    composite = card["architecture"] == "composite"
    parts = [card.get("front_end"), card.get("backbone")] if composite else card.get("members")
    if not (isinstance(parts, list) and all(isinstance(part, str) for part in parts)):
        wanted = "front_end and backbone, a name each" if composite else "members, a list of names"
        raise CheckpointError(f"checkpoint {name!r}: its card must have {wanted}; got {shown(parts)}")
    return parts


def _load_weights(name: str, card: dict[str, Any], folder: Path) -> nn.Module:
    from safetensors import SafetensorError
    from safetensors.torch import load

    file = folder / f"{name}.safetensors"
    try:
        content = file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"checkpoint {name!r}: weights {file} cannot be read ({error})") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != card.get("sha256"):
        raise CheckpointError(
            f"checkpoint {name!r}: {file} is corrupted or was exchanged: its sha256 is {digest}, its card says "
            f"{card.get('sha256')}; restore the file or train it again"
        )
    with torch.device("meta"):  # of a size that needs no memory, as the card may say anything
        planned = build_model(card["architecture"], card.get("arguments"))
    try:
        state = load(content)
        sizes = {key: tensor.shape for key, tensor in planned.state_dict().items()}
        wrong = [key for key, size in sizes.items() if key not in state or state[key].shape != size]
        if wrong:
            found = tuple(state[wrong[0]].shape) if wrong[0] in state else "missing"
            raise RuntimeError(f"{wrong[0]} is {found}, not {tuple(sizes[wrong[0]])}")
        model = build_model(card["architecture"], card.get("arguments"))
        model.load_state_dict(state)
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"checkpoint {name!r}: {file} does not fit {card['architecture']} ({error})") from error
    # Channels-last is the fastest memory format in both cuDNN and oneDNN.
    return model.eval().to(memory_format=torch.channels_last)


def save_model(name: str, model: nn.Module, card: dict[str, Any], directory: Path) -> Path:
    """Write a model's weights and then its card, each in one atomic step.

    Args:
        name: lower-case letters, digits and dashes.
        card: at least ``architecture`` and ``arguments`` to rebuild the model; ``sha256`` is added.
        directory: created if missing.

    Returns:
        The path of the weights.
    """
    from safetensors.torch import save

    _check_name(name)
    directory.mkdir(parents=True, exist_ok=True)
    content = save({key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()})
    file = directory / f"{name}.safetensors"
    with replaced(file) as part:
        part.write_bytes(content)
    save_card(name, {**card, "sha256": hashlib.sha256(content).hexdigest()}, directory)
    return file


def save_card(name: str, card: dict[str, Any], directory: Path) -> Path:
    """Write the card of a composite or an ensemble in one atomic step. `save_model` writes all other cards.

    Args:
        name: lower-case letters, digits and dashes.
        card: its ``architecture`` is ``"composite"`` (with ``front_end`` and ``backbone``) or ``"ensemble"`` (with
            ``members``).
        directory: an existing directory.

    Returns:
        The path of the card.
    """
    _check_name(name)
    file = directory / f"{name}.json"
    with replaced(file) as part:
        part.write_text(_sealed(card), encoding="utf-8")
    return file
