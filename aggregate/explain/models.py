"""Which of a run's models may explain a scan: never one that was fitted on its patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from aggregate.aggregators import Aggregator
from aggregate.run import Run, fold_name
from clear.bag_format import ScanRow
from clear.bags import Bags
from clear.errors import InputError

FITTED = ("train", "inner")  # `inner` patients ended the training, so the weights depend on them


@dataclass(frozen=True)
class ScanModels:
    """models: in eval mode, one a pair; pairs: their (repeat, fold); out_of_fold: the run knows the scan and none of
    these models was fitted on its patient. False for a scan that the run does not know, which has the models that were
    not fitted on its patient as far as the bag file names one."""

    models: tuple[Aggregator, ...]
    pairs: tuple[tuple[int, int], ...]
    out_of_fold: bool


def models_for(
    run: Run,
    scan_id: str,
    *,
    digest: str | None = None,
    patient_id: str | None = None,
    siblings: Sequence[str] = (),
    endpoint: str | None = None,
) -> ScanModels:
    """The models that explain a scan, none of which was fitted on its patient (`pairs_for`).

    digest: of the scan's voxels, by which the run knows it again under another name. patient_id: as the bag file has
    it. siblings: other scans of the patient in the bag file (`siblings_of`). endpoint: leaves out the models that could
    not learn it (`Run.not_learnt`), whose logits mean nothing.
    Raises InputError where every model was fitted on the scan's patient, or none learnt the endpoint.
    """
    known = known_as(run, scan_id, digest)
    pairs = pairs_for(run, scan_id, digest=digest, patient_id=patient_id, siblings=siblings)
    if not pairs:
        raise InputError(
            f"{run.path}: every model of the run was fitted on the patient of scan {scan_id}, so none can explain it "
            "honestly. Explain a scan that the run scored, or cross-validate so that each is scored once"
        )
    learnt = [pair for pair in pairs if endpoint is None or endpoint not in run.not_learnt(*pair)]
    if not learnt:
        folds = ", ".join(fold_name(*pair) for pair in pairs)
        raise InputError(f"{run.path}: {folds} had nothing to learn {endpoint} from; explain another endpoint or scan")
    return ScanModels(tuple(run.model(*pair) for pair in learnt), tuple(learnt), known is not None)


def pairs_for(
    run: Run,
    scan_id: str,
    *,
    digest: str | None = None,
    patient_id: str | None = None,
    siblings: Sequence[str] = (),
) -> list[tuple[int, int]]:
    """The (repeat, fold) of the models that were not fitted on a scan's patient; none where all were.

    Those that scored a scan of the run. For one that the run does not know, those that saw no other scan of
    patient_id (a series that `--join first` left out, one without a label), nor of whom the run takes the siblings to
    be, which may be another id (`--patients`); without a patient_id all of them, as there is nothing to tell by.
    """
    known = known_as(run, scan_id, digest)
    own = run.folds.filter(pl.col("scan_id") == (scan_id if known is None else known))
    scored = set(own.filter(pl.col("split") == "test").select("repeat", "fold").iter_rows())
    if scored:
        return [pair for pair in run.pairs if pair in scored]
    theirs = run.folds.filter(pl.col("scan_id").is_in(list(siblings)))["patient_id"].to_list()
    patients = set(own["patient_id"].to_list()) or {patient_id, *theirs} - {None}
    seen = run.folds.filter(pl.col("patient_id").is_in(list(patients)) & pl.col("split").is_in(FITTED))
    fitted = set(seen.select("repeat", "fold").iter_rows())
    return [pair for pair in run.pairs if pair not in fitted]


def siblings_of(bags: Bags, row: ScanRow) -> list[str]:
    """The other scans of a scan's patient in its bag file; none where that names no patient."""
    if row.patient_id is None:
        return []
    scans = bags.scans.filter((pl.col("patient_id") == row.patient_id) & (pl.col("scan_id") != row.scan_id))
    return [str(each) for each in scans["scan_id"].to_list()]


def known_as(run: Run, scan_id: str, digest: str | None = None) -> str | None:
    """The run's own name of a scan, by its id or by its voxels; None where it does not know it.

    Raises InputError where a scan of the run has this id but other voxels.
    """
    digests: dict[str, str] = run.settings.get("scan_digests", {})
    if scan_id in set(run.folds["scan_id"].to_list()):
        if digest is not None and digests.get(scan_id, digest) != digest:
            raise InputError(
                f"scan {scan_id}: its voxels ({digest[:12]}) are not those that the run {run.path} knows by this id "
                f"({digests[scan_id][:12]}). Use the bag file of the run, or give the scan an id of its own"
            )
        return scan_id
    return next((name for name, own in digests.items() if own == digest), None) if digest else None
