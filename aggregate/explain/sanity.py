"""Sanity checks: an explanation must fall apart when what it explains is destroyed.

Adebayo, Gilmer, Muelly, Goodfellow, Hardt and Kim, Sanity checks for saliency maps (NeurIPS 2018, sections 3 and 4): a
map that looks the same with random weights, or by a model that learnt random labels, shows the image and not the model.
Three things are destroyed here, each on its own: the aggregator's weights, the encoder's weights, and the labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from aggregate.aggregators import AGGREGATORS, Aggregator, build_aggregator
from aggregate.cohort import Cohort, choose_windows, rows_of_scans
from aggregate.crossval import fit_fold
from aggregate.folds import COLUMNS, Folds
from aggregate.predictions import scans_of
from aggregate.run import Run
from aggregate.targets import Targets
from aggregate.train import check_device
from clear.backbones import build
from clear.bags import Bags
from clear.errors import InputError
from clear.frozen import Encoder
from clear.tasks import Preset

AGGREGATOR, ENCODER, LABELS = "aggregator randomised", "encoder randomised", "labels permuted"
CHECKS = (AGGREGATOR, ENCODER, LABELS)
Pair = tuple[int, int]


@dataclass(frozen=True)
class Destroyed:
    """What explains in place of the run's own: aggregators by (repeat, fold), or an encoder."""

    name: str
    models: Mapping[Pair, Aggregator] | None = None
    encoder: Encoder | None = None


def random_aggregators(run: Run, seed: int = 0) -> Destroyed:
    """Each model of a run with weights drawn anew; the standardisation of the features stays."""
    fresh = {}
    for repeat, fold in run.pairs:
        trained = run.model(repeat, fold)
        name = next(name for name, kind in AGGREGATORS.items() if type(trained) is kind)
        n_out = sum(endpoint.n_out for endpoint in run.endpoints)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_seed(seed, 1, repeat, fold))
            model = build_aggregator(
                name, int(run.settings["bags"]["dim"]), n_out, trained.dropout, run.settings.get("options") or None
            )
        model.mean.copy_(trained.mean)
        model.scale.copy_(trained.scale)
        fresh[repeat, fold] = model.eval()
    return Destroyed(AGGREGATOR, models=fresh)


def random_encoder(encoder: Encoder, seed: int = 0) -> Destroyed:
    """The encoder's architecture and preprocessing with weights as constructed; bags must be encoded anew."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_seed(seed, 2))
        network = build(encoder.card)
    other = Encoder(encoder.card, network, "random weights", device=str(encoder.device), precision=encoder.precision)
    return Destroyed(ENCODER, encoder=other)


def permuted_aggregators(run: Run, bags: Bags, seed: int = 0, device: str = "auto") -> Destroyed:
    """The models of a run's first repeat, fitted again with its own settings on labels dealt out at random.

    The labels of a bag stay together, so classes keep their sizes and endpoints what they have in common. Raises
    InputError where the run folder does not hold the labels of all bags that teach (they stand with the scores, so a
    run with a fixed test set keeps those of the test set alone).
    """
    labels = _labels(run)
    repeat = min(repeat for repeat, _ in run.pairs)
    taught = run.folds.filter((pl.col("repeat") == repeat) & pl.col("split").is_in(["train", "inner"]))
    folded = set(run.folds["scan_id"].to_list())
    known = {scan for name in labels for scan in scans_of(name, folded)}
    lacking = set(taught["scan_id"].to_list()) - known
    if lacking:
        raise InputError(
            f"{run.path}: the labels of {len(lacking)} scans that teach are not in its predictions.csv, so it cannot "
            "be trained again on permuted ones; this check needs a run by cross-validation"
        )
    gone = {scan for scan in known if scan not in bags}
    if gone:
        raise InputError(
            f"{bags.path}: {len(gone)} scans of the run {run.path} are not in it, so the run cannot be trained again; "
            "this check needs the bag file that the run was trained on"
        )
    cohort = _permuted_cohort(run, bags, labels, np.random.default_rng([seed, 3]))
    place = check_device(device)
    rows = cohort.rows(bags, place)
    folds = Folds(run.folds.select(COLUMNS).filter(pl.col("repeat") == repeat))
    models = {}
    for fit in run.settings["fits"]:
        if fit["repeat"] != repeat:
            continue
        changes = {name: value for name, value in fit.get("chosen", {}).items() if name != "aggregator"}
        result = fit_fold(
            cohort,
            rows,
            folds,
            repeat,
            fit["fold"],
            aggregator=fit.get("aggregator", run.settings["aggregator"]),
            preset=Preset(**run.settings["training"]).with_changes(**changes),
            options=run.settings.get("options") or None,
            seed=int(run.settings["seed"]),
            device=place,
            precision="float32",
        )
        models[repeat, fit["fold"]] = result.fitted.model.cpu().eval()
    return Destroyed(LABELS, models=models)


def rank_correlation(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Spearman's: the correlation of the ranks, equal values sharing theirs; nan where one is the same everywhere.

    >>> round(rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([1.0, 10.0, 100.0])), 6)
    1.0
    """
    ranks = [rankdata(values, axis=None) for values in (a, b)]
    centred = [each - each.mean() for each in ranks]
    size = float(np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float((centred[0] * centred[1]).sum()) / size if size > 0 else float("nan")


def _labels(run: Run) -> dict[str, tuple[str, NDArray[np.float64], NDArray[np.float64]]]:
    """bag name -> (patient, codes (E,), events (E,)) from the rows of the scores; nan where unknown."""
    count = len(run.endpoints)
    found: dict[str, tuple[str, NDArray[np.float64], NDArray[np.float64]]] = {}
    place = {endpoint.name: e for e, endpoint in enumerate(run.endpoints)}
    code = {
        (endpoint.name, name): endpoint.classes.index(name)
        for endpoint in run.endpoints
        if endpoint.is_classes
        for name in endpoint.score_classes
    }
    known = run.predictions.drop_nulls("y_true").unique(["scan_id", "endpoint", "class"], maintain_order=True)
    for scan, patient, name, class_name, truth, event in known.select(
        "scan_id", "patient_id", "endpoint", "class", "y_true", "event"
    ).iter_rows():
        _, codes, events = found.setdefault(scan, (patient, np.full(count, np.nan), np.full(count, np.nan)))
        e = place[name]
        if (name, class_name) not in code:
            codes[e], events[e] = truth, np.nan if event is None else event
        elif truth == 1:
            codes[e] = code[name, class_name]
        elif run.endpoints[e].kind == "binary":
            codes[e] = 0
    return found


def _permuted_cohort(
    run: Run,
    bags: Bags,
    labels: Mapping[str, tuple[str, NDArray[np.float64], NDArray[np.float64]]],
    rng: np.random.Generator,
) -> Cohort:
    windows = choose_windows(bags, run.windows, str(bags.path))
    rows = rows_of_scans(bags, windows)
    names = sorted(labels)
    order = rng.permutation(len(names))
    codes, events = (np.stack([labels[names[i]][part] for i in order]) for part in (1, 2))
    return Cohort(
        scan_ids=tuple(tuple(scans_of(name, rows)) for name in names),
        patient_ids=tuple(labels[name][0] for name in names),
        targets=Targets(run.endpoints, codes, events),
        parts=tuple(tuple(part for scan in scans_of(name, rows) for part in rows[scan]) for name in names),
        windows=windows,
        remarks=(),
    )


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
