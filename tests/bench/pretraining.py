"""Pretraining: how fast the loop is, and what MoCo v3 and LeCL teach.

    python tests/bench pretraining                                    # images/s against bare forward and backward
    python tests/bench/pretraining.py table build/weights             # short runs, judged on patients they never saw
    python tests/bench/pretraining.py nodules build/weights           # the long ones on the size-blind LIDC nodules

`table` trains the small encoder of `pretrain.shipped` from its untrained start with MoCo v3 and with LeCL at lambda 0,
1, 3 and 5, three seeds each, beside the long runs of `make weights`, and scores every encoder on the demonstration's
cohort: nearest neighbours, a linear probe and ABMIL, a finding a question. What stands in the folder is not done again.
It prints what comes out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from extraction import show
from mil import lidc

import clear
from clear.card import read_card
from clear.demonstration import MATRIX, PATIENTS, SLICES
from clear.export import export_encoder
from clear.frozen import choose_precision
from clear.phantoms import FINDINGS, write_cohort
from clear.tasks import load_task
from pretrain import shipped
from pretrain.accumulate import backward
from pretrain.augmentation import augmentation
from pretrain.batches import make_batches
from pretrain.initialise import UNTRAINED, centre_embeddings, random_network, write_untrained
from pretrain.settings import PretrainSettings
from pretrain.start import starting_objective, starting_point
from pretrain.store import SliceStore

SEEDS = (0, 1, 2)
SHORT_EPOCHS = 1
LAMBDAS = (0.0, 1.0, 3.0, 5.0)
PROBES = ("knn-20", "linear")
BOUND = 0.9
Scores = dict[str, dict[str, tuple[float, float, float]]]  # finding -> method -> (estimate, low, high)


@dataclass(frozen=True)
class Row:
    """One kind of encoder. make: (folder, seed) to the card of one."""

    name: str
    make: Callable[[Path, int], Path]
    seeds: tuple[int, ...] = SEEDS


def rows() -> Iterator[Row]:
    """Every kind of encoder in the table, in its order."""
    yield Row("untrained, library's start", library_start)
    yield Row("untrained, filter bank", lambda folder, seed: write_untrained(folder / f"filter-bank-{seed}", seed))
    yield Row("MoCo v3", lambda folder, seed: trained(folder, "moco-v3", {}, seed))
    for value in LAMBDAS:
        options = {"lambda_": value}
        yield Row(f"LeCL, λ = {value:g}", lambda folder, seed, own=options: trained(folder, "lecl", own, seed))
    for name, objective in (("MoCo v3", "moco-v3"), ("LeCL, λ = 1", "lecl")):  # the long runs, as `make weights` does
        title = f"{name}, {shipped.EPOCHS} epochs, one seed"
        yield Row(title, lambda folder, _, own=objective: shipped.train(folder, own).card, seeds=(0,))


def library_start(folder: Path, seed: int) -> Path:
    """MambaOut as its library begins it, embeddings centred as the filter bank's are."""
    from clear.phantoms import draw_patient

    network = random_network(UNTRAINED, seed)
    patients = [draw_patient(seed=10_000, index=index, matrix=MATRIX, slices=SLICES) for index in range(3)]
    centre_embeddings(network, UNTRAINED, [patient.series[0].volume for patient in patients])
    card = replace(UNTRAINED, trained_on="untrained: as timm begins it")
    return export_encoder(card, network, folder / f"library-{seed}", half=True, overwrite=True)


def trained(folder: Path, objective: str, options: Mapping[str, Any], seed: int) -> Path:
    """A short run's card."""
    name = "-".join([objective, *(f"{value:g}" for value in options.values()), str(seed)])
    result = shipped.train(
        folder, objective, options=options, output=folder / "runs" / name, epochs=SHORT_EPOCHS, seed=seed
    )
    minutes = result.seconds / 60
    print(result.summary() + (f", {minutes:.1f} min" if result.new_steps else ""), flush=True)
    return result.card


def cohort(folder: Path) -> Path:
    """The demonstration's patients, whom no pretraining sees."""
    place = folder / "scored"
    if not place.is_dir():
        aside = folder / ".scored"
        write_cohort(aside, patients=PATIENTS, seed=0, matrix=MATRIX, slices=SLICES)
        aside.rename(place)
    return place


def scores(card: Path, folder: Path) -> Scores:
    """What its embeddings say of the findings; pooled out-of-fold AUROC with its 95 % interval over patients."""
    kept = card.parent / "scores.json"
    digest = clear.load_encoder(str(card), device="cpu", precision="float32").digest
    if kept.is_file():
        found = json.loads(kept.read_text())
        if found["encoder"] == digest:
            return dict(found["scores"])
    place, bags = cohort(folder), card.parent / "feats.h5"
    labels = place / "labels.csv"
    clear.extract(
        place / "dicom", bags, model=str(card), task="demo", select="soft-kernel", overwrite=True, progress=False
    )
    task = load_task("demo")
    out: Scores = {name: {} for name in FINDINGS}
    probed = clear.probe(bags, task=task, labels=labels).metrics
    for name in FINDINGS:
        for probe in PROBES:
            out[name][probe] = _pooled(probed.filter(endpoint=name, probe=probe))
    with tempfile.TemporaryDirectory() as runs:
        for endpoint in task.endpoints:
            question = replace(task, name=endpoint.name, endpoints=(endpoint,))
            run = clear.train(bags, task=question, labels=labels, output=Path(runs) / endpoint.name, progress=False)
            out[endpoint.name]["abmil"] = _pooled(run.metrics)
    bags.unlink()
    kept.write_text(json.dumps({"encoder": digest, "scores": out}))
    return out


def _pooled(metrics: Any) -> tuple[float, float, float]:
    row = metrics.filter(metric="auroc", estimator="pooled").row(0, named=True)
    return row["estimate"], row["ci_low"], row["ci_high"]


def table(folder: Path) -> None:
    """Print a line a kind and method: the mean over the seeds, and the hull of their intervals."""
    lines = [
        f"AUROC of five findings on 150 synthetic patients that no pretraining saw; runs of {SHORT_EPOCHS} epoch where "
        "nothing else is said. Mean over three seeds, and from the lowest lower to the highest upper end of their 95 % "
        "intervals (over patients, conditional on the fitted models).",
        "",
        "| encoder | method | " + " | ".join(name.replace("_", " ") for name in FINDINGS) + " | mean |",
        "| --- | --- |" + " --- |" * (len(FINDINGS) + 1),
    ]
    for row in rows():
        of_seeds = [scores(row.make(folder, seed), folder) for seed in row.seeds]
        for method in (*PROBES, "abmil"):
            cells, means = [], []
            for name in FINDINGS:
                values = [found[name][method] for found in of_seeds]
                means.append(statistics.mean(value[0] for value in values))
                low, high = min(value[1] for value in values), max(value[2] for value in values)
                cells.append(f"{means[-1]:.3f} ({low:.3f}–{high:.3f})")
            lines.append(f"| {row.name} | {method} | {' | '.join(cells)} | {statistics.mean(means):.3f} |")
            print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    (folder / "table.md").write_text(text)
    print("\n" + text)


def nodules(folder: Path, repeats: int) -> None:
    """The size-blind task on real scans: both untrained starts, and MoCo v3 and LeCL as `make weights` trains them."""
    cards = [library_start(folder, 0), shipped.untrained(folder)]
    cards += [shipped.train(folder, objective).card for objective in ("moco-v3", "lecl")]
    for card in cards:
        print(f"\n{card.parent.name}: {read_card(card).trained_on}", flush=True)
        lidc(str(card), repeats, limit=0, variants=("fixed", "scaled"))


def speed() -> None:
    """Images a second of whole epochs, everything included, over forward and backward alone of a batch in memory."""
    print("\npretraining: the shipped encoder at 128 px, LeCL, batch 64")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        store = shipped.training_store(folder, patients=32)
        rates: dict[str, float] = {}
        for precision in ("float32", choose_precision("auto", torch.device("cpu"), replace(UNTRAINED, bfloat16=True))):
            loop, bare = _rates(folder, store, precision)
            show(
                f"loop over bare, {precision}", f"{loop / bare:.2f} ({loop:.1f} of {bare:.1f} images/s; bound {BOUND})"
            )
            rates[precision] = loop
        if len(rates) == 2:
            show("bfloat16 over float32", f"{rates['bfloat16'] / rates['float32']:.2f}")


def _rates(folder: Path, store: Path, precision: str) -> tuple[float, float]:
    """(images/s of a run's later epochs, images/s of bare forward and backward passes).

    Bare passes are timed before and after the run, alone, so that nothing is prepared meanwhile. The run is a whole
    one: reading, views, optimiser, teacher, norms and history are its own; the first epoch, which starts the workers
    and prepares kernels, is left out, as are checkpoints between epochs.
    """
    before = _bare_rate(folder, store, precision)
    result = shipped.train(folder, "lecl", output=folder / precision, store=store, epochs=4, precision=precision)
    later = result.epochs[1:]
    bare = statistics.mean([before, _bare_rate(folder, store, precision)])
    return len(later) / sum(1 / row["images_per_s"] for row in later), bare


def _bare_rate(folder: Path, store: Path, precision: str, steps: int = 6) -> float:
    """Images a second of forward and backward passes of one batch that lies in memory, the teacher's pass included."""
    asked = PretrainSettings(
        objective="lecl", model=str(shipped.untrained(folder)), precision=precision, **shipped.SETTINGS
    ).settled()
    start = starting_point(asked)
    objective = starting_objective(asked, start, torch.device("cpu"))
    kind = torch.bfloat16 if precision == "bfloat16" else torch.float32

    def autocast() -> Any:
        return torch.autocast("cpu", kind, enabled=precision == "bfloat16")

    opened, augment = SliceStore(store), augmentation("ct")
    with make_batches(opened, start.card, objective.kinds, augment, batch=asked.batch, seed=0) as batches:
        views = next(batches.epoch(0))
    backward(objective, views, 0.0, micro_batch=None, autocast=autocast)  # prepares kernels
    started = time.perf_counter()
    for _ in range(steps):
        objective.zero_grad(set_to_none=True)
        backward(objective, views, 0.0, micro_batch=None, autocast=autocast)
    return steps * asked.batch / (time.perf_counter() - started)


def main(arguments: list[str] | None = None) -> None:
    """`speed` where nothing is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("speed", "table", "nodules"), default="speed")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("build") / "weights")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args(arguments if arguments is not None else [])
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if given.what == "speed":
        speed()
    elif given.what == "table":
        table(given.folder)
    else:
        nodules(given.folder, given.repeats)


if __name__ == "__main__":
    main(sys.argv[1:])
