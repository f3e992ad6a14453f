"""Internals for research code: this project's own experiments in `audits/` and `benchmarks/` import them from here.

**These names are not covered by any promise of compatibility.** A new version may rename, change or remove any of
them. Code that only describes and audits defenses needs no more than the names of `pytest_gradmask` itself.

Attacks:
    - `Oracle` is a defense as attacks see it: it counts passes and draws the defense's random numbers from a
      `RandomStream`.
    - `Loss` is the type of a loss for each image. `cross_entropy` and `logit_margin` are two of them.
    - `RejectOption` and `under_attack` give attacks the joint objective on a defense that may reject an image.
    - `arc`, `joint_margins` and `member_by_member` attack randomized ensembles whose members are known.
    - `autoattack` is the module that calls AutoAttack's own attacks and checks.
    - `hopeless` says which images an attack that needs many queries gives up.
    - Inside of `every_query`, attacks also make the queries that repeat the one before.

Running and scoring attacks:
    - `PlannedAttack` is an attack that is ready to run, and `Run` the type of its function. `known_models` lists all
      modules that a defense consists of.
    - `Scorer` runs a planned attack and scores what it returns, as an audit does. `Precision` is the type of the
      precision in which the defense computes. `subseed` derives the seed of one named random stream.
    - `bench` prepares a defense for attacks that are timed or compared one at a time, and gives a `Bench`.
    - `chunk_size` says how many images an attack gets at a time, by what the `graph_bytes` of an image are.
    - `BUDGETS` holds the named budgets. `get_budget` finds one of them.

Randomized defenses:
    - `Sampler` predicts each image by Monte Carlo sampling, and `plan_sampler` chooses its settings.
      `samples_needed` is the number of samples for one image. `draws_shared` says whether the images of a batch share
      random numbers.

Rule and statistics:
    - `decide` is the decision rule for one audit, and `judge` the same rule for the counts of many audits at once.
      `InterimAnalysis` and `plan_analyses` say when an audit analyses its results, and with which share of the error.
    - `measure_gap` measures the masking gap of given attacks. `accuracy` is the robust accuracy under given attacks.
    - `accuracy_bounds`, `clopper_pearson`, `rejected_below`, `mcnemar_p` and `mean_p` are the bounds and tests that
      verdicts rest on.

Probes and the binarization test:
    - `wrong_gradient` compares the gradient with differences. `DerivativeCheck` and `points_near` are its parts.
    - `trace_pgd` follows at most `MAX_IMAGES` images with PGD, and `known_cosines` measures gradient noise at the radii
      `RADII`. `CLOSENESS` says where the threshold of a binarized classifier lies.

Models and data:
    - `as_defense` makes a `Defense` of a bare module. `Outputs` says whether a module returns logits or probabilities.
    - `DnCNN` and `calibrated_front_end` are the paper's front end. `folded` runs such layers with their batch norms
      folded into convolutions.
    - `CIFAR10_MEAN` and `CIFAR10_STD` normalize CIFAR-10 images.
    - `available` lists stored checkpoints and `load_checkpoint` loads one.

Isolation and files:
    - `moved` moves models to a device for a while. `no_trace` restores all global state and the models afterwards.
      `isolated` does both.
    - `random_state_kept` restores the global random generators, and `seeded_by` seeds them from a generator.
    - `replaced` writes a file in one atomic step. `versions` are the versions of installed packages, for records.
"""

from __future__ import annotations

from pytest_gradmask.attacks import autoattack
from pytest_gradmask.attacks.arc import arc
from pytest_gradmask.attacks.asked_once import every_query
from pytest_gradmask.attacks.ensembles import joint_margins, member_by_member
from pytest_gradmask.attacks.hopeless import hopeless
from pytest_gradmask.attacks.losses import Loss, cross_entropy, logit_margin
from pytest_gradmask.attacks.oracle import Oracle
from pytest_gradmask.attacks.rejection import RejectOption, under_attack
from pytest_gradmask.auditing.bench import Bench, bench
from pytest_gradmask.auditing.budgets import BUDGETS, get_budget
from pytest_gradmask.auditing.planned import PlannedAttack, Run
from pytest_gradmask.auditing.prepare import isolated
from pytest_gradmask.auditing.scoring import Scorer, subseed
from pytest_gradmask.auditing.surface import known_models
from pytest_gradmask.binarization.classifier import CLOSENESS
from pytest_gradmask.defense import Outputs, as_defense
from pytest_gradmask.execution.chunks import chunk_size, graph_bytes
from pytest_gradmask.execution.files import replaced
from pytest_gradmask.execution.generators import random_state_kept, seeded_by
from pytest_gradmask.execution.isolation import moved, no_trace
from pytest_gradmask.execution.precision import Precision
from pytest_gradmask.execution.versions import versions
from pytest_gradmask.loading.checkpoints import available, load_checkpoint
from pytest_gradmask.loading.models.backbones import CIFAR10_MEAN, CIFAR10_STD
from pytest_gradmask.loading.models.batch_norm import folded
from pytest_gradmask.loading.models.front_ends import DnCNN, calibrated_front_end
from pytest_gradmask.probes.derivative import DerivativeCheck, points_near, wrong_gradient
from pytest_gradmask.probes.noise import RADII, known_cosines
from pytest_gradmask.probes.trace import MAX_IMAGES, trace_pgd
from pytest_gradmask.randomized.prediction import Sampler, draws_shared, plan_sampler, samples_needed
from pytest_gradmask.randomized.streams import RandomStream
from pytest_gradmask.verdict.interim import InterimAnalysis, plan_analyses
from pytest_gradmask.verdict.paired import rejected_below
from pytest_gradmask.verdict.results import accuracy
from pytest_gradmask.verdict.rule import decide, judge, measure_gap
from pytest_gradmask.verdict.stats import accuracy_bounds, clopper_pearson, mcnemar_p, mean_p

__all__ = [
    "BUDGETS",
    "CIFAR10_MEAN",
    "CIFAR10_STD",
    "CLOSENESS",
    "MAX_IMAGES",
    "RADII",
    "Bench",
    "DerivativeCheck",
    "DnCNN",
    "InterimAnalysis",
    "Loss",
    "Oracle",
    "Outputs",
    "PlannedAttack",
    "Precision",
    "RandomStream",
    "RejectOption",
    "Run",
    "Sampler",
    "Scorer",
    "accuracy",
    "accuracy_bounds",
    "arc",
    "as_defense",
    "autoattack",
    "available",
    "bench",
    "calibrated_front_end",
    "chunk_size",
    "clopper_pearson",
    "cross_entropy",
    "decide",
    "draws_shared",
    "every_query",
    "folded",
    "get_budget",
    "graph_bytes",
    "hopeless",
    "isolated",
    "joint_margins",
    "judge",
    "known_cosines",
    "known_models",
    "load_checkpoint",
    "logit_margin",
    "mcnemar_p",
    "mean_p",
    "measure_gap",
    "member_by_member",
    "moved",
    "no_trace",
    "plan_analyses",
    "plan_sampler",
    "points_near",
    "random_state_kept",
    "rejected_below",
    "replaced",
    "samples_needed",
    "seeded_by",
    "subseed",
    "trace_pgd",
    "under_attack",
    "versions",
    "wrong_gradient",
]
