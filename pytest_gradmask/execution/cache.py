"""Results on disk. The key of an entry is a hash of everything that the result depends on.

A killed run continues from its last stored result, and an audit in which nothing has changed costs nothing.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pytest_gradmask.execution.files import replaced
from pytest_gradmask.verdict.audit import Audit
from pytest_gradmask.verdict.results import AttackResult, Finding, Gap, Operation, Prediction, Verdict


class Cache:
    """A folder with one file per entry.

    Every file begins with a hash of the rest. If the hash does not match, or if the file cannot be read, the cache
    warns and the result is computed again. Several processes may use one folder at the same time.

    Args:
        folder: created when the first entry is stored.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._warned = False

    def attack(self, key: str) -> AttackResult | None:
        """A stored result of one attack, or None."""
        found = self._get(key)
        return None if found is None else _attack(found)

    def store_attack(self, key: str, result: AttackResult) -> None:
        """Store a result of one attack."""
        self._put(key, _plain(result))

    def audit(self, key: str) -> Audit | None:
        """A stored audit, or None."""
        found = self._get(key)
        if found is None:
            return None
        return Audit(
            **{
                **found,
                "verdict": Verdict[found["verdict"]],
                "reasons": tuple(found["reasons"]),
                "clean": tuple(found["clean"]),
                "attacks": tuple(_attack(each) for each in found["attacks"]),
                "gap": None if found["gap"] is None else Gap(**found["gap"]),
                "findings": tuple(Finding(**each) for each in found["findings"]),
                "bypassed": tuple(found["bypassed"]),
                "operations": tuple(Operation(**each) for each in found["operations"]),
                "predictions": _predictions(found["predictions"]),
                "images": tuple(found["images"]),
                "rejected": tuple(found["rejected"]),
                "cached": True,
            }
        )

    def store_audit(self, key: str, audit: Audit) -> None:
        """Store an audit."""
        attacks = [_plain(result) for result in audit.attacks]
        self._put(
            key,
            {
                **asdict(audit),
                "verdict": audit.verdict.name,
                "attacks": attacks,
                "predictions": _listed(audit.predictions),
            },
        )

    def answers(self, key: str) -> dict[str, Any] | None:
        """Recorded answers of a defense, or None."""
        found: dict[str, Any] | None = self._get(key)
        return found

    def store_answers(self, key: str, answers: Mapping[str, Any]) -> None:
        """Record answers of a defense: plain data. They replace those before."""
        self._put(key, answers)

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.result"

    def _get(self, key: str) -> Any:
        file = self._file(key)
        try:
            digest, _, content = file.read_bytes().partition(b"\n")
            if digest == _hash(content):
                return json.loads(content)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError:
            pass  # an unreadable file is treated like one whose hash does not match
        warnings.warn(f"gradmask cache: {file} is damaged, so its content is computed again", stacklevel=2)
        return None

    def _put(self, key: str, content: Mapping[str, Any]) -> None:
        file = self._file(key)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with replaced(file) as part:
                text = json.dumps(content).encode()
                part.write_bytes(_hash(text) + b"\n" + text)
        except OSError as error:  # the audit must not lose its result because the disk is full
            if not self._warned:
                self._warned = True  # once: what is true of one entry is true of the next
                warnings.warn(f"gradmask cache: cannot store to {self.folder} ({error})", stacklevel=2)


def _hash(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def _plain(result: AttackResult) -> dict[str, Any]:
    return {**asdict(result), "predictions": _listed(result.predictions)}


def _attack(content: Mapping[str, Any]) -> AttackResult:
    return AttackResult(
        **{
            **content,
            "attacked": tuple(content["attacked"]),
            "broken": tuple(content["broken"]),
            "autoattack": tuple(content["autoattack"]),
            "predictions": _predictions(content["predictions"]),
        }
    )


def _listed(predictions: Mapping[int, Prediction]) -> list[list[Any]]:
    # JSON has no numbers as keys.
    return [[index, *asdict(found).values()] for index, found in predictions.items()]


def _predictions(content: list[list[Any]]) -> dict[int, Prediction]:
    return {index: Prediction(*values) for index, *values in content}
