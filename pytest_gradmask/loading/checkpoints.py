"""Checkpoints: safetensors files, each with a card that says what it is, how it was made and what it measured.

A card is JSON. It ends with a hash of itself, and its ``sha256`` is checked before a weight is read. A card may also
describe a model made of others: a composite (``front_end`` and ``backbone``) or a randomized ensemble (``members``), by
their names.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pytest_gradmask.errors import CheckpointError
from pytest_gradmask.execution.files import replaced
from pytest_gradmask.loading.models import build_model
from pytest_gradmask.loading.models.composites import Composite, RandomizedEnsemble

_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_SEAL = "card_sha256"


def fixtures_directory() -> Path:
    """Where the trained fixtures are: inside an installed package, or beside it in a checkout."""
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
        CheckpointError: no such card, or it cannot be read, or it is not as `save_model` or `save_card` wrote it.
    """
    folder = directory or fixtures_directory()
    _check_name(name)
    file = folder / f"{name}.json"
    try:
        text = file.read_text(encoding="utf-8")
        card = json.loads(text)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"checkpoint {name!r}: no card {file}; there are {', '.join(available(folder)) or 'none'}"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {name!r}: card {file} cannot be read ({error})") from error
    if not isinstance(card, dict) or "architecture" not in card:
        raise CheckpointError(f"checkpoint {name!r}: card {file} names no architecture")
    if text != _sealed(card):
        raise CheckpointError(
            f"checkpoint {name!r}: card {file} is corrupted or was changed: its {_SEAL} is not the hash of the rest; "
            "restore the file, or write it anew by save_card"
        )
    return {key: value for key, value in card.items() if key != _SEAL}


def _sealed(card: dict[str, Any]) -> str:
    """The text of a card's file: no byte of it can change unnoticed."""
    content = {key: value for key, value in card.items() if key != _SEAL}
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, _SEAL: digest}, indent=2) + "\n"


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise CheckpointError(f"checkpoint {name!r}: a name has lower-case letters, digits and dashes only")


def load_checkpoint(name: str, directory: Path | None = None) -> nn.Module:
    """Load a model of the fixtures by name, on the CPU and in eval mode.

    Raises:
        CheckpointError: unknown name, missing or corrupted weights (their hash is not the card's), or weights that do
            not fit the architecture.
    """
    return _load(name, directory or fixtures_directory(), ())


def _load(name: str, folder: Path, wholes: tuple[str, ...]) -> nn.Module:
    if name in wholes:
        raise CheckpointError(f"checkpoint {wholes[0]!r}: is a part of itself ({' > '.join((*wholes, name))})")
    card = load_card(name, folder)
    if card["architecture"] not in ("composite", "ensemble"):
        return _load_weights(name, card, folder)
    parts = []
    for part in _parts(name, card):
        # A part that does not lie beside its whole is one of the package's own.
        home = folder if part in available(folder) else fixtures_directory()
        parts.append(_load(part, home, (*wholes, name)))
    return (Composite(*parts) if card["architecture"] == "composite" else RandomizedEnsemble(parts)).eval()


def _parts(name: str, card: dict[str, Any]) -> list[str]:
    composite = card["architecture"] == "composite"
    parts = [card.get("front_end"), card.get("backbone")] if composite else card.get("members")
    if not (isinstance(parts, list) and all(isinstance(part, str) for part in parts)):
        wanted = "front_end and backbone, a name each" if composite else "members, a list of names"
        raise CheckpointError(f"checkpoint {name!r}: its card must have {wanted}; got {parts!r}")
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
    model = build_model(card["architecture"], card.get("arguments"))
    try:
        model.load_state_dict(load(content))
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"checkpoint {name!r}: {file} does not fit {card['architecture']} ({error})") from error
    # Channels-last is what both cuDNN and oneDNN run fastest.
    return model.eval().to(memory_format=torch.channels_last)


def save_model(name: str, model: nn.Module, card: dict[str, Any], directory: Path) -> Path:
    """Write a model's weights and its card, each in one atomic step, weights first.

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
    """Write the card of a model made of others, in one atomic step; `save_model` writes all other cards.

    Args:
        name: lower-case letters, digits and dashes.
        card: ``architecture`` is ``"composite"`` (with ``front_end`` and ``backbone``) or ``"ensemble"`` (``members``).
        directory: exists.

    Returns:
        The path of the card.
    """
    _check_name(name)
    file = directory / f"{name}.json"
    with replaced(file) as part:
        part.write_text(_sealed(card), encoding="utf-8")
    return file
