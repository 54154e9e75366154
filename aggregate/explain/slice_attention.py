"""How much each slice counted: the aggregator's own weights, by slice and window, or what stands in for them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from aggregate.aggregators import AGGREGATORS, Aggregator, predict
from aggregate.cohort import choose_windows, rows_of_scans
from aggregate.explain.contribution import contributions
from aggregate.explain.models import known_as, models_for, siblings_of
from aggregate.packed import PackedRows
from aggregate.predict import check_bags
from aggregate.predictions import scans_of
from aggregate.run import Run
from clear.bags import Bags
from clear.errors import InputError
from clear.volume import CANONICAL_AXES
from clear.windows import Window

ATTENTION, CONTRIBUTION = "attention", "contribution"


@dataclass(frozen=True)
class SliceAttention:
    """How much each slice of a scan counted, in each window.

    weights: (Z, W) float64, mean over the models, summing to 1 over both; by_model: (M, Z, W), the same of each model
    of `pairs`, 0 everywhere for one that gave this scan nothing of a bag of several; `weights` are then of the others,
    and even where none gave it any. windows: (W,) those that the run was trained on.
    position_mm: (Z, 3) LPS centre of each slice's first voxel; z_mm: (Z,) their coordinate along the plane's slice axis
    (`clear.volume.CANONICAL_AXES`: feet to head in axial scans), ascending.
    out_of_fold: as in `ScanModels`. share: of the bag's attention that fell on this scan, mean over the models: 1
    unless the run pools the scans of a patient into one bag.
    kind: ATTENTION, or CONTRIBUTION where an aggregator of the run weighs no slice (`aggregate.explain.contribution`).
    """

    scan_id: str
    windows: tuple[Window, ...]
    weights: NDArray[np.float64]
    z_mm: NDArray[np.float64]
    position_mm: NDArray[np.float64]
    by_model: NDArray[np.float64]
    pairs: tuple[tuple[int, int], ...]
    out_of_fold: bool
    share: float = 1.0
    kind: str = ATTENTION


def slice_attention(
    run: Run, bags: Bags | Path | str, scan_id: str, *, endpoint: str | None = None, output: int | None = None
) -> SliceAttention:
    """The attention of a scan's bag under the models that may explain it (`models_for`).

    Attention is not of an endpoint: a model with several outputs weighs slices once for all. endpoint: leaves out
    models that could not learn it. For a scan that the run scored these are the numbers of its attention.h5.
    output: of the models, for what takes the place of attention where one of the run's weighs nothing: how much each
    slice raised this output, by all of them.

    Raises InputError where an aggregator weighs nothing and no output is named, the bag file does not fit the run
    (encoder, preprocessing, windows), the scan's voxels are others than the run's, or its bag is one row for the whole
    volume.
    """
    with ExitStack() as stack:
        opened = bags if isinstance(bags, Bags) else stack.enter_context(Bags(bags))
        check_bags(run, opened)
        windows = choose_windows(opened, run.windows, str(opened.path))
        row, bag = opened.row(scan_id), opened[scan_id]
        if (bag.slice < 0).any():
            raise InputError(
                f"scan {scan_id}: {opened.encoder} gives one embedding of the whole volume, so there are no slices to "
                "weigh. Explain a run on a slice encoder"
            )
        found = models_for(
            run,
            scan_id,
            digest=row.digest,
            patient_id=row.patient_id,
            siblings=siblings_of(opened, row),
            endpoint=endpoint,
        )
        if output is None:
            for model in found.models:
                _check_weighs(model, run)
        number = {opened.windows.index(window): w for w, window in enumerate(windows)}
        ids = _scans_of_bag(run, opened, scan_id, row.digest)
        parts = rows_of_scans(opened, windows)
        rows = np.concatenate([np.asarray(opened.features[part]) for scan in ids for part in parts[scan]])
        before = sum(_length(parts[scan]) for scan in ids[: ids.index(scan_id)])
        start = int(opened.scans.filter(pl.col("scan_id") == scan_id)["start"][0])
        own = np.concatenate([np.arange(part.start, part.stop, part.step or 1) for part in parts[scan_id]]) - start
        slices, places = bag.slice[own], np.array([number[int(w)] for w in bag.window[own]])
        by_model = np.zeros((len(found.models), row.n_slices, len(windows)))
        kind = ATTENTION if output is None else kind_of(run)
        of_rows = np.concatenate([np.asarray(opened.window[part]) for scan in ids for part in parts[scan]])
        weights = instance_weights(found.models, rows, of_rows, kind, output)
        by_model[:, slices, places] = weights[:, before : before + len(own)]
        position_mm = np.full((row.n_slices, 3), np.nan)
        position_mm[bag.slice] = bag.position_mm
    share = by_model.sum(axis=(1, 2))
    by_model /= np.where(share > 0, share, 1.0)[:, None, None]
    axis = np.asarray(CANONICAL_AXES[row.plane][0], dtype=np.float64)  # type: ignore[index]  # checked when opened
    return SliceAttention(
        scan_id=scan_id,
        windows=windows,
        weights=by_model[share > 0].mean(axis=0) if share.any() else np.full(by_model.shape[1:], 1 / by_model[0].size),
        z_mm=position_mm @ axis,
        position_mm=position_mm,
        by_model=by_model,
        pairs=found.pairs,
        out_of_fold=found.out_of_fold,
        share=float(share.mean()),
        kind=kind,
    )


def kind_of(run: Run) -> str:
    """ATTENTION where every model of the run weighs instances, else CONTRIBUTION, so that all speak of the same."""
    return ATTENTION if all(AGGREGATORS[name].returns_attention for name in aggregators_of(run)) else CONTRIBUTION


def aggregators_of(run: Run) -> list[str]:
    """The aggregators of a run's models, sorted: one, but for a nested run whose folds chose different ones."""
    return sorted({str(fit.get("aggregator", run.settings["aggregator"])) for fit in run.settings["fits"]})


def instance_weights(
    models: Sequence[Aggregator],
    rows: NDArray[np.floating],
    windows: NDArray[np.integer],
    kind: str,
    output: int | None = None,
) -> NDArray[np.float64]:
    """(M, K) of each model over a bag (K, d), each summing to 1: its attention, or what raised `output` (`kind`).

    windows: (K,) which window an instance is in.
    """
    if kind == CONTRIBUTION:
        assert output is not None
        return np.stack([contributions(model, rows, windows, output) for model in models])
    packed = PackedRows.of([rows])
    return np.stack([predict(model, packed, [0])[1][0].astype(np.float64) for model in models])


def _check_weighs(model: Aggregator, run: Run) -> None:
    """Raises InputError for a model that has no weights of its own for instances."""
    if not model.returns_attention:
        name = next(name for name, kind in AGGREGATORS.items() if type(model) is kind)
        weighing = ", ".join(each for each, kind in AGGREGATORS.items() if kind.returns_attention)
        raise InputError(
            f"{run.path}: {name} weighs no instance, so there is no slice attention; name an endpoint's output for "
            f"what each slice contributed. Aggregators that weigh: {weighing}"
        )


def _scans_of_bag(run: Run, bags: Bags, scan_id: str, digest: str) -> list[str]:
    """The scans that the models see as one bag with this one, in order: itself, unless the run pools patients."""
    if run.settings["labels"]["join"] != "pool":
        return [scan_id]
    known = known_as(run, scan_id, digest)
    for name in run.predictions["scan_id"].unique().to_list():
        ids = scans_of(name, set(run.folds["scan_id"].to_list()))
        if known == scan_id and scan_id in ids:
            return [str(each) for each in ids]
    patient = bags.row(scan_id).patient_id
    if patient is None:
        return [scan_id]
    return [str(each) for each in bags.scans.filter(pl.col("patient_id") == patient)["scan_id"].to_list()]


def _length(parts: tuple[slice, ...]) -> int:
    return sum(len(range(part.start, part.stop, part.step or 1)) for part in parts)
