"""docs/benchmarks.md, from the stored results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from audits.markdown import table
from benchmarks.queries import TIMES, gave_up, reached
from benchmarks.records import RESULTS, stored
from pytest_gradmask.auditing.research import replaced

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"

Record = Mapping[str, Any]


def write(results: Path = RESULTS, page: Path = PAGE) -> None:
    """Write the page in one atomic step."""
    with replaced(page) as part:
        part.write_text(text(results))


def text(results: Path = RESULTS) -> str:
    """The page."""
    sections = {
        "verdict": _verdicts, "step": _steps, "strength": _strengths, "cache": _cache, "memory": _memory,
        "growth": _growth, "passes": _passes, "chunks": _chunks, "startup": _startup, "queries": _queries,
        "searches": _searches, "losses": _losses, "surrogates": _surrogates, "waits": _waits,
    }  # fmt: skip
    parts = [(HERE / "introduction.md").read_text().rstrip()]
    for prefix, section in sections.items():
        records = stored(prefix, results)
        if records:
            parts += [section(records), _provenance(records)]
    return "\n\n".join(parts) + "\n"


def _verdicts(records: Sequence[Record]) -> str:
    rows = [
        (
            record["defense"], f"`{record['verdict']}`", f"{record['analysed']} of {record['images']}",
            f"{record['seconds']:.0f}", f"{record['autoattack_seconds']:.0f}", f"{record['bpda_seconds']:.0f}",
            *_by_hand(record),
        )
        for record in records
    ]  # fmt: skip
    headings = (
        "defense", "verdict", "images analysed", "audit, s", "AutoAttack standard, s", "BPDA-PGD-50, s",
        "times as long by hand", "accuracy under AutoAttack, %", "and BPDA, %",
    )  # fmt: skip
    return _section(
        "Time to a verdict",
        "One audit at the budget `ci`, without information about the defense and without a cache, and then the same "
        "question by hand: AutoAttack's version `standard`, and PGD with 50 steps and bypassed front ends. Where the "
        "work by hand took so long that it was stopped, the ratio is a lower bound. On a randomized defense the audit "
        "does more than the work by hand: its attacks average several forwards in each step, and each image is judged "
        "by repeated forwards, while `standard` judges by one forward.",
        table(headings, rows),
    )


def _by_hand(record: Record) -> tuple[str, ...]:
    ratio = f"{record['ratio']:.1f}"
    if record["stopped"]:
        return f"**> {ratio}**, stopped in `{record['stopped']}`", "-", f"at most {100 * record['with_bpda']:.1f}"
    return f"**{ratio}**", f"{100 * record['autoattack']:.1f}", f"{100 * record['with_bpda']:.1f}"


def _steps(records: Sequence[Record]) -> str:
    rows = [
        (
            record["defense"],
            str(record["images"]),
            *(f"{1000 * record['seconds'][which]:.2f}" if which in record["seconds"] else "-" for which in _STEPPED),
            *(_ratio(record, which) for which in _STEPPED[1:]),
        )
        for record in records
    ]
    headings = (
        "defense", "images", "upstream's APGD, ms", "our APGD, ms", "our APGD as BPDA, ms", "upstream's / ours",
        "upstream's / BPDA",
    )  # fmt: skip
    first = records[0]
    return _section(
        "One step",
        f"Milliseconds per image and step, forward and backward, of {first['steps']} steps on images that the "
        f"defense classifies correctly. They are medians of {first['rounds']} rounds in which attacks take turns. The "
        "ratios are medians of the rounds, too, with the smallest and the largest. As BPDA, the front end has no "
        "backward pass.",
        table(headings, rows),
    )


_STEPPED = ("upstream", "ours", "ours, BPDA")


def _ratio(record: Record, which: str) -> str:
    if which not in record["ratios"]:
        return "-"
    low, high = record["spread"][which]
    return f"**{record['ratios'][which]:.2f}** [{low:.2f}, {high:.2f}]"


def _strengths(records: Sequence[Record]) -> str:
    rows = [
        (
            record["defense"], row["attack"], row["library"], *(f"{100 * bound:.1f}" for bound in row["accuracy"]),
            f"{row['forwards']:.1f}", f"{row['backwards']:.1f}",
        )
        for record in records
        for row in record["rows"]
    ]  # fmt: skip
    above = ", ".join(
        f"{100 * record['above_best_peer']:+.1f} percentage points on {record['defense']}"
        for record in records
        if record["above_best_peer"] is not None
    )
    steps = ", ".join(dict.fromkeys(f"{record['steps']} steps on {record['images']} images" for record in records))
    headings = ("defense", "attack", "library", "accuracy, %", "at least", "at most", "forwards", "backwards")
    return _section(
        "Strength",
        f"The accuracy under attacks with {steps}, with bounds valid at 99 %, and their passes per image. Attacks may "
        "stop on images that they have broken. The accuracy under our best attack minus that under the best attack of "
        f"the other libraries: {above}.",
        table(headings, rows),
    )


def _cache(records: Sequence[Record]) -> str:
    rows = [
        (
            record["defense"], f"`{record['verdict']}`", f"{record['first']:.1f}", f"{record['again']:.2f}",
            f"**{record['ratio']:.0f}**",
        )
        for record in records
    ]  # fmt: skip
    return (
        "## A second run\n\nThe same audit of a newly made defense, with the results of the first in the cache.\n\n"
        + table(("defense", "verdict", "first, s", "again, s", "times as fast"), rows)
    )


def _memory(records: Sequence[Record]) -> str:
    rows = [
        (
            record["defense"], str(record["images"]),
            *(f"{record['mebibytes'][which]:.0f}" for which in ("nothing", "audit", "autoattack")),
            f"**{record['ratio']:.2f}**",
        )
        for record in records
    ]  # fmt: skip
    headings = (
        "defense", "images", "libraries, model, images; MiB", "audit, MiB", "AutoAttack, MiB", "AutoAttack / audit",
    )  # fmt: skip
    return _section("Peak memory", "Each run is in a new process.", table(headings, rows))


def _growth(records: Sequence[Record]) -> str:
    rows = [
        (
            record["axis"],
            ", ".join(str(row["value"]) for row in record["rows"]),
            ", ".join(f"{row['seconds']:.1f}" for row in record["rows"]),
            ", ".join(f"{row['mebibytes']:.0f}" for row in record["rows"]),
            f"{record['exponent']:.2f}",
            f"**{record['last']:.2f}**",
        )
        for record in records
    ]
    return _section(
        "How cost grows",
        "One thing grows, and all else stays: 20 images of 32 x 32 pixels, 10 classes, a network with two convolutions "
        "of 16 channels. Audits are exhaustive, at the budget `smoke`, and in a ball in which nothing breaks. So every "
        "attack runs on every image, and no audit of that size costs more. Exponent 1: twice as much of it takes twice "
        "the time. *Pixels* are those of a side. Memory is what the audit adds to the libraries.",
        table(("what grows", "values", "seconds", "MiB", "exponent", "of the last two"), rows),
    )


#: Of the plan: images, GPUs, and forwards that a GPU makes in a second.
_PLANNED_IMAGES, _PLANNED_GPUS, _SPEEDS = 50_000, 8, (1_000, 10_000)


def _passes(records: Sequence[Record]) -> str:
    records = sorted(records, key=lambda record: float(record["forwards"]))
    rows = [
        (
            f"`{record['budget']}`", f"{record['forwards']:,.0f}",
            f"`{max(record['attacks'], key=record['attacks'].__getitem__)}`",
            f"{100 * record['first']:.0f}",
            *(f"{record['forwards'] * _PLANNED_IMAGES / (speed * _PLANNED_GPUS * 3600):,.1f}" for speed in _SPEEDS),
        )
        for record in records
    ]  # fmt: skip
    return _section(
        "A plan for a large audit",
        "Forwards for each image of an exhaustive audit of a network without a mask, of which no image breaks; a "
        "backward counts as two. Most audits take far fewer: an image that breaks is not attacked again, and an audit "
        "that is not exhaustive ends with its verdict. A defense that can be bypassed faces more attacks, and a "
        "randomized one more forwards in each step. The hours are calculated, not measured: all of ImageNet's "
        f"{_PLANNED_IMAGES:,} validation images on {_PLANNED_GPUS} GPUs, by the forwards that each makes in a second. "
        "`python -m benchmarks gpu` measures those of three models. *Until the verdict* is what an audit of this "
        "network makes that ends with its verdict, in % of an exhaustive one. An exhaustive audit begins anew, also if "
        "such an audit is in the cache: to continue that one could save no more than this share.",
        table(
            (
                "budget",
                "forwards an image",
                "the dearest attack",
                "until the verdict, %",
                *(f"hours at {speed:,}" for speed in _SPEEDS),
            ),
            rows,
        ),
    )


def _chunks(records: Sequence[Record]) -> str:
    rows = [
        (
            record["model"], str(record["side"]), f"{record['graph']:.3g}", f"{record['chunk']:,}",
            ", ".join(f"{row['images']:,}" for row in record["rows"]),
            ", ".join(f"{row['microseconds']:,.0f}" for row in record["rows"]),
            ", ".join(f"{row['mebibytes']:,.0f}" for row in record["rows"]),
        )
        for record in sorted(records, key=lambda record: float(record["graph"]))
    ]  # fmt: skip
    headings = (
        "network", "pixels of a side", "graph of an image, MiB", "images at a time", "measured with",
        "µs for an image and step", "MiB",
    )  # fmt: skip
    return _section(
        "Images at a time",
        "An audit attacks so many images at a time that memory suffices ([the rule](scaling.md#images-at-a-time)). The "
        "time is that of APGD. Memory is what the attack adds to a process that has the network.",
        table(headings, rows),
    )


def _startup(records: Sequence[Record]) -> str:
    rows = [
        (
            f"{record['without']:.0f}", f"{record['with']:.0f}",
            f"**{record['more']:.0f}** [{record['spread'][0]:.0f}, {record['spread'][1]:.0f}]",
        )
        for record in records
    ]  # fmt: skip
    return _section(
        "Installed but not used",
        "`pytest --collect-only` on an empty folder, without any other plugin; medians of "
        f"{records[0]['rounds']} alternating rounds, and of their differences with quartiles.",
        table(("without the plugin, ms", "with it, ms", "more, ms"), rows),
    )


def _queries(records: Sequence[Record]) -> str:
    rows = []
    for record in records:
        for attack, images in record["growth"].items():
            ends = [gave_up(TIMES, image["gone"]) for image in images]
            broken = [end for end, image in zip(ends, images, strict=True) if reached(image["gone"]) >= 1]
            lost, spent = sum(end is not None for end in broken), [1.0 if end is None else end for end in ends]
            share = sum(spent) / max(len(spent), 1)
            counts = (len(images), len(broken), lost)
            rows.append((record["defense"], attack, *map(str, counts), f"{100 * share:.0f}"))
    return _section(
        "Images that are given up",
        "Square and zero-order PGD give an image up, from a quarter of their queries on, if the share of its clean "
        "logit margin that is gone is below the share of the queries that are spent. Here no image was given up, and "
        "the rule is applied to what was recorded at 30, 40, 50 and 75 % of the queries. `adversarial-resnet` hides "
        "nothing; the others are known masks.",
        table(("defense", "attack", "survive PGD", "broken", "of these given up", "queries spent, at most, %"), rows),
    )


def _searches(records: Sequence[Record]) -> str:
    rows = []
    for record in records:
        if not record["survivors"]:
            continue
        for attack in dict.fromkeys(row["attack"] for row in record["rows"]):
            own, rough = (row for row in record["rows"] if row["attack"] == attack)
            lost, won = set(own["broken"]) - set(rough["broken"]), set(rough["broken"]) - set(own["broken"])
            counts = (record["survivors"], len(own["broken"]), len(rough["broken"]), len(lost), len(won))
            seconds = (
                f"{own['seconds']:.1f}",
                f"{rough['seconds']:.1f}",
                f"**{own['seconds'] / rough['seconds']:.1f}**",
            )
            used = "yes" if record["chosen"] == "bfloat16" else "no"
            rows.append((record["defense"], attack, *map(str, counts), *seconds, used))
    return _section(
        "Searches in bfloat16",
        "Queries of Square and zero-order PGD that only compare points are answered in bfloat16 where the processor "
        "has matrix units for it and the answers are nearly the same. Square asks again in the defense's own precision "
        "near the border, and no image counts as broken by a rough answer. The images that survive PGD at the budget "
        "`ci`, in both precisions; *lost* are broken only in the defense's own, *won* only with bfloat16. *Used* says "
        "what an audit chooses.",
        table(
            (
                "defense", "attack", "survive PGD", "broken", "with bfloat16", "lost", "won", "s", "with bfloat16, s",
                "times as fast", "used",
            ),
            rows,
        ),
    )  # fmt: skip


def _losses(records: Sequence[Record]) -> str:
    variants = [row["variant"] for row in records[0]["rows"]]
    rows = [
        (record["defense"], str(record["rows"][0]["of"]), *(str(row["broken"]) for row in record["rows"]))
        for record in records
    ]
    return _section(
        "Other losses and starts",
        "Images that APGD breaks with other losses, other starts and gradients averaged over noise, each with about "
        "102 passes an image. No variant breaks more than cross-entropy on all four adversarially trained networks, "
        "and audits have APGD-T and FAB beside it, so none was added. Averaged gradients break fewer there, and on the "
        "known mask `random-front-end`, too. On the known mask `ripple`, margin decomposition breaks most.",
        table(("defense", "images", *variants), rows),
    )


def _surrogates(records: Sequence[Record]) -> str:
    attacks = [row["attack"] for row in records[0]["rows"]]
    rows = [
        (
            record["defense"], str(record["rows"][0]["of"]),
            *(f"{row['broken']} ({row['queries']} queries, {row['seconds']:.0f} s)" for row in record["rows"]),
        )
        for record in records
    ]  # fmt: skip
    return _section(
        "A surrogate trained by queries",
        "A small network is trained on what a defense answers around the images of the audit, and attacked; its "
        "attacks choose the next questions. Like Square and zero-order PGD, which here give hopeless images up as in "
        "an audit, it needs no code to read. Cells have the images that are broken, and the most queries for one "
        "image. It breaks fewer images, or as few, and takes many times as long: it was not added.",
        table(("defense", "images", *attacks), rows),
    )


def _waits(records: Sequence[Record]) -> str:
    [record] = records
    counts: Mapping[str, Mapping[str, int]] = record["waits"]
    steps = list(next(iter(counts.values())))
    return _section(
        "Waiting for a GPU",
        "A GPU works ahead of Python, until Python needs a value: then it waits. How often a run of an attack does "
        "that, counted on a pretend device whose tensors may not mix with the CPU's (`python -m tests.devices.waits`). "
        "No figure on this page was taken on a GPU.",
        table(
            ("attack", *(f"waits in {number} steps" for number in steps)),
            [(name, *(str(count) for count in row.values())) for name, row in counts.items()],
        ),
    )


def _section(title: str, text: str, figures: str) -> str:
    return f"## {title}\n\n{text}\n\n{figures}"


def _provenance(records: Sequence[Record]) -> str:
    machines = sorted({_machine(record["machine"]) for record in records})
    data = sorted({record["data"] for record in records if record["data"] != "embedded"})
    source = f"Images of {', '.join(data)}. " if data else ""
    return f"<sub>{source}Measured on {'; '.join(machines)}.</sub>"


def _machine(machine: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    cores = f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads"
    return f"{machine['device']} ({cores}) with {versions}"
