"""The zoo of known defenses: each can be built, keeps accuracy, gives no hints, and its reference is valid."""

from __future__ import annotations

import functools
import importlib
import pkgutil

import pytest
import torch

from audits import defenses, test_known_defenses
from audits.defenses.entry import Entry
from audits.zoo import ZOO
from pytest_gradmask import Defense, load_dataset, load_model
from pytest_gradmask.defense import as_defense
from pytest_gradmask.threat import ThreatModel
from tests.toys import global_state, oracle, predictions, seeded

DATA = load_dataset("embedded")


@pytest.fixture(scope="module", params=ZOO)  # of the module, so that all tests of one entry follow each other
def entry(request: pytest.FixtureRequest) -> Entry:
    return ZOO[request.param]


@functools.lru_cache(maxsize=1)
def built(name: str) -> Defense:
    return as_defense(ZOO[name].build(load_model))


@functools.cache
def clean(backbone: str) -> float:
    return float((predictions(load_model(backbone), DATA.images) == DATA.labels).float().mean())


def test_there_are_enough_of_both_kinds() -> None:
    suspicious = [entry for entry in ZOO.values() if entry.suspicious]
    assert len(ZOO) >= 60
    assert 12 <= len(suspicious) <= len(ZOO) - 12


def test_every_name_belongs_to_one_entry() -> None:
    modules = [
        importlib.import_module(f"{defenses.__name__}.{each.name}") for each in pkgutil.iter_modules(defenses.__path__)
    ]
    assert len(ZOO) == sum(len(getattr(module, "ENTRIES", ())) for module in modules)


def test_it_keeps_accuracy_and_has_a_story(entry: Entry) -> None:
    defense = built(entry.name)
    labels = entry.labels(DATA.labels)
    logits = oracle(defense.model, outputs=defense.outputs)(DATA.images)
    assert float((logits.argmax(1) == labels).float().mean()) >= entry.keeps * clean(entry.backbone)
    assert len(entry.story) > 100


def test_it_gives_an_audit_no_hints(entry: Entry) -> None:
    defense = built(entry.name)
    assert defense.bypass is None
    assert not defense.members
    assert not defense.sources


def test_randomness_is_declared(entry: Entry) -> None:
    defense = built(entry.name)
    predict = oracle(defense.model)
    with torch.no_grad():
        repeats = torch.stack([predict(DATA.images[:2]) for _ in range(6)])
    assert bool((repeats != repeats[0]).any()) == entry.randomized


@pytest.mark.longer
def test_its_reference_is_valid_repeatable_and_leaves_no_trace(entry: Entry) -> None:
    defense, images = built(entry.name), DATA.images[:2]
    labels, threat, before = entry.labels(DATA.labels[:2]), ThreatModel(), global_state()
    modes = [module.training for module in defense.model.modules()]
    run = functools.partial(entry.reference, defense, images, labels, threat=threat, steps=1)
    if entry.randomized:  # a few forwards show as much as many
        run = functools.partial(run, eot=2, samples=2)
    first, second = (run(generator=seeded()) for _ in range(2))
    assert threat.contains(first, images).all()
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert global_state() == before
    assert [module.training for module in defense.model.modules()] == modes


def test_each_has_an_audit_and_quick_runs_skip_some() -> None:
    (marker,) = test_known_defenses.test_the_verdict_on_a_known_defense_is_true.pytestmark  # type: ignore[attr-defined]
    parameters = marker.args[1]
    assert [parameter.id for parameter in parameters] == list(ZOO)
    slow = {parameter.id for parameter in parameters if parameter.marks}
    assert {name for name, entry in ZOO.items() if entry.randomized} < slow
    assert {"gradient-killer", "undefended-vgg"} & slow == set()
