"""What the paper claims, its figures, and where ours are stored."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim of arXiv:2402.17018 or a question it leaves open.

    Attributes:
        text: the claim, in our words.
        paper: what the paper says in figures.
        explanation: why it came out as it did here, as far as we know.
    """

    text: str
    paper: str
    explanation: str = ""


CLAIMS = {
    "1": Claim(
        "Composites keep clean accuracy; PGD and AutoAttack's gradient attacks largely fail on them; BPDA succeeds",
        "for every ResNet and vision transformer tried, without a single failure case",
    ),
    "2": Claim(
        "Square and zero-order PGD partly overcome the masking of a single composite",
        "both lower its accuracy far below that under gradient attacks",
    ),
    "3": Claim(
        "A randomized ensemble of composites with different backbones resists full AutoAttack, and no adaptive attack",
        "adversarially trained backbones, CIFAR-10: AutoAttack 90.8 ± 2.5 %, adaptive attack 18.2 ± 3.6 % (99 %)",
    ),
    "4": Claim(
        "An ensemble of composites with one and the same architecture is fooled by plain PGD",
        "transfer between its members is high, and PGD succeeds",
    ),
    "5": Claim(
        "BPDA works because the front end is nearly the identity; where it is not, identity BPDA fails",
        "stated as the reason for BPDA's success",
    ),
    "6": Claim(
        "With a larger learning rate or longer training, clean accuracy falls and the masking goes",
        "small learning rate (about 1e-6) and about one epoch mask; 1e-5 and more, or more epochs, do not",
    ),
    "7": Claim(
        "Adversarial training of the backbone amplifies the effect",
        "accuracy under AutoAttack is higher with adversarially trained backbones",
    ),
    "A": Claim(
        "Depth and batch norm make the mask, with no training at all; a front end that is shallow, without batch norm "
        "or the identity does not mask",
        "an open question: which parts of the front end matter",
        "Depth does it: of 49 or 33 convolutions the gradient is no guide, of 17 or 9 it is, whatever their width and "
        "however small the residual. Batch norm is not needed, though without it PGD breaks twice as many images. The "
        "skip connection keeps the image; nothing can be masked where it is lost. A front end of the paper's size (17 "
        "convolutions of 64 channels) does not mask before it is trained, so there it must be training that makes the "
        "mask, and here it is there from the start.",
    ),
    "B": Claim(
        "Attacks on one member transfer less to members of another architecture",
        "given as the reason why a diverse ensemble resists and a uniform one does not",
    ),
    "C": Claim(
        "An adversary who attacks the whole ensemble breaks it",
        "an open question",
    ),
}


def merge(file: Path, records: list[dict[str, Any]]) -> None:
    """Add records to a file in one atomic step; those of the same test are replaced."""
    versions = {"python": platform.python_version()} | {
        name: version(name) for name in ("pytest-gradmask", "torch", "torchvision", "timm", "pyautoattack")
    }
    kept = json.loads(file.read_text()) if file.exists() else []
    fresh = {record["test"] for record in records}
    merged = [record for record in kept if record["test"] not in fresh]
    merged += [{**record, "versions": versions} for record in records]
    merged.sort(key=lambda record: (record["claim"], record["test"]))
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(file.name + ".part")
    temporary.write_text(json.dumps(merged, indent=1) + "\n")
    os.replace(temporary, file)
