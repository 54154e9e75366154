"""run.json: everything needed to repeat a run, and what the cohort was."""

from __future__ import annotations

import hashlib
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch

from aggregate.cohort import Cohort
from aggregate.run import FORMAT, VERSION
from clear.bags import Bags
from clear.training_record import seen_in_pretraining

if TYPE_CHECKING:
    from aggregate.question import Question


def record_of(bags: Bags, question: Question) -> dict[str, Any]:
    """run.json but for the aggregator's settings and what the fits add."""
    joined, cohort, folds = question.joined, question.cohort, question.folds
    return {
        "format": FORMAT,
        "version": VERSION,
        "task": question.task.as_dict(),
        "endpoints": [endpoint.as_dict() for endpoint in cohort.targets.endpoints],
        "labels": {"source": question.labels.source, "joined_by": joined.flow["joined_by"], "join": joined.rule},
        "label_counts": label_counts(cohort),
        "cohort": {**joined.flow, "bags": len(cohort), "patients": len(set(cohort.patient_ids))},
        "remarks": list(question.remarks),
        "windows": [window.as_dict() for window in question.windows],
        "training": question.preset.as_dict(),
        "protocol": question.protocol,
        "group": question.group,
        "several": question.several,
        "n_folds": folds.table["fold"].n_unique(),
        "repeats": folds.table["repeat"].n_unique(),
        "bags": bags_record(bags),
        "scan_digests": scan_digests(bags, cohort),
        "versions": versions(),
    }


def bags_record(bags: Bags) -> dict[str, Any]:
    """What a bag file is and what its encoder was trained on."""
    return {
        "path": str(bags.path),
        "digest": bags.digest,
        "encoder": bags.encoder,
        "encoder_digest": bags.encoder_digest,
        "trained_on": trained_on(bags),
        "dim": bags.dim,
        "windows": [window.as_dict() for window in bags.windows],
        "preprocessing": bags.preprocessing,
        "provenance": bags.provenance,
    }


def scan_digests(bags: Bags, cohort: Cohort) -> dict[str, str]:
    """scan_id -> digest of its voxels, of the cohort's scans: they are known again under any name."""
    used = {scan for ids in cohort.scan_ids for scan in ids}
    pairs = bags.scans.select("scan_id", "digest").drop_nulls().iter_rows()
    return {scan: digest for scan, digest in pairs if scan in used}


def trained_on(bags: Bags) -> str:
    """The line that says what the encoder's weights are."""
    line = bags.provenance.get("trained on", "weights not described")
    if isinstance(line, dict):
        line = "; ".join(map(str, line.get("several", [line])))
    return str(line)


def known_to_encoder(bags: Bags, cohort: Cohort) -> list[bool]:
    """For each bag whether the encoder's training record knows its patient, a scan of it, or its voxels."""
    digests = dict(bags.scans.select("scan_id", "digest").iter_rows())
    names = [
        {name for name in (patient, *ids, *(digests[scan] for scan in ids)) if name}
        for ids, patient in zip(cohort.scan_ids, cohort.patient_ids, strict=True)
    ]
    seen = seen_in_pretraining(bags.encoder_card, set().union(*names))
    return [bool(seen & mine) for mine in names]


def encoder_remarks(bags: Bags, cohort: Cohort) -> list[str]:
    """A sentence where the encoder was pretrained on patients of the cohort, whose scores then flatter it."""
    known = known_to_encoder(bags, cohort)
    patients = {patient for patient, seen in zip(cohort.patient_ids, known, strict=True) if seen}
    if not patients:
        return []
    return [
        f"{len(patients)} of {len(set(cohort.patient_ids))} patients were seen in the encoder's training "
        f"({trained_on(bags)}): on new patients it may do less well"
    ]


def label_counts(cohort: Cohort) -> dict[str, dict[str, Any]]:
    """endpoint -> bags of each class, or known values (of survival: events and censored), and unknown ones."""
    counts: dict[str, dict[str, Any]] = {}
    for e, endpoint in enumerate(cohort.targets.endpoints):
        codes = cohort.targets.codes[:, e]
        if endpoint.is_classes:
            here = {name: int((codes == code).sum()) for code, name in enumerate(endpoint.classes)}
        elif endpoint.kind == "survival" and cohort.targets.events is not None:
            events = cohort.targets.events[:, e]
            here = {"event": int((events == 1).sum()), "censored": int((events == 0).sum())}
        else:
            here = {"known": int(np.isfinite(codes).sum())}
        counts[endpoint.name] = {**here, "unknown": int(np.isnan(codes).sum())}
    return counts


def versions() -> dict[str, str]:
    """Of clear, Python and what computes."""
    try:
        own = metadata.version("clear-mil")
    except metadata.PackageNotFoundError:
        own = "not installed as a package"
    return {
        "clear": own,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "polars": pl.__version__,
    }


def file_record(path: Path | str | None) -> dict[str, str] | None:
    """A file that was given: its path, and its sha256 (of a folder the path alone)."""
    if path is None:
        return None
    here = Path(path)
    digest = {"sha256": hashlib.sha256(here.read_bytes()).hexdigest()} if here.is_file() else {}
    return {"path": str(path), **digest}
