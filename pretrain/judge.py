"""Judging an encoder while it trains: what nearest neighbours and a linear model tell from its embeddings.

The loss says how well views of a slice find each other, not what embeddings are good for. So every few epochs the
encoder, frozen, embeds a labelled set, and two models that hardly learn are scored on patients that they have not seen:
k nearest neighbours by cosine (20, of few items a quarter) and a logistic regression. `judged`, the mean of their AUCs,
chooses the best.

Two kinds of sets, both of slices in a store:

- slices: has the slice a lesion's box, or (target `label`) which label have its boxes;
- scans: a table of labels joined to scans, as in `clear train`; a scan is the mean of its slices' embeddings.

The set should share no patient with what is trained on; those that it does share are counted and said.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from torch import nn

from clear.card import EncoderCard
from clear.errors import InputError
from clear.label_join import join_labels
from clear.labels import read_labels
from clear.slices import prepare
from clear.tasks import target_task
from clear.windows import default_windows
from pretrain.accumulate import Autocast
from pretrain.distributed import rank, world_size
from pretrain.store import SliceStore

NEIGHBOURS = 20
STRENGTH = 10.0  # inverse of the penalty on unit vectors, as in `aggregate.probe`
FOLDS = 5
SLICES_OF_A_SCAN = 16  # evenly spaced; more say little more of its mean
MOST_SLICES = 4000  # of a set of slices, drawn once by the seed
BATCH = 64


@dataclass(frozen=True)
class LabelledSet:
    """Slices whose embeddings can be scored.

    rows: (n,) of the store, ascending. item: (n,) which of m items (slices or scans) a row belongs to. codes: (m,) of
    classes. groups: (m,) patients. classes: names. digest: of slices and labels. what: slices or scans. remarks: on the
    labels, as sentences.
    """

    store: SliceStore
    rows: NDArray[np.int64]
    item: NDArray[np.int64]
    codes: NDArray[np.int64]
    groups: NDArray[np.str_]
    classes: tuple[str, ...]
    digest: str
    what: str
    remarks: tuple[str, ...] = ()

    def describe(self) -> str:
        """One line: how many of what."""
        counts = ", ".join(f"{int((self.codes == i).sum())} {name}" for i, name in enumerate(self.classes))
        return f"judged on {len(self.codes)} {self.what} of {len(set(self.groups))} patients ({counts})"


def labelled_slices(store: SliceStore, target: str = "", *, seed: int = 0) -> LabelledSet:
    """Slices of a store, labelled by their boxes.

    target: "" for whether a slice has a box; `label` for which label its boxes have (slices with boxes of one label
    only). At most MOST_SLICES, drawn by the seed. Raises InputError where they cannot be scored.
    """
    table = store.table
    if target not in ("", "label"):
        raise InputError(
            f"--judge-target {target}: slices are labelled by their boxes; expected label (which label), or nothing "
            "(has the slice a box). Columns of a table need --judge-labels TABLE"
        )
    if target == "label":
        found = store.boxes.drop_nulls("label").group_by("row").agg(pl.col("label").unique())
        table = table.join(found, on="row", how="inner").filter(pl.col("label").list.len() == 1)
        table = table.with_columns(value=pl.col("label").list.first())
    else:
        table = table.with_columns(
            value=pl.when(pl.col("n_boxes") > 0).then(pl.lit("lesion")).otherwise(pl.lit("none"))
        )
        table = table.with_columns(pl.col("value").cast(pl.Enum(["none", "lesion"])))
    if table.height > MOST_SLICES:
        table = table.sample(MOST_SLICES, seed=seed)
    table = table.sort("row")
    groups = table.select(pl.coalesce("patient_id", "scan_id"))["patient_id"].to_list()
    rows = table["row"].to_numpy().astype(np.int64)
    return _checked(store, rows, np.arange(len(rows)), table["value"], groups, "slices")


def labelled_scans(
    store: SliceStore, labels: Path | str, target: str, *, patients: Path | str | None = None
) -> LabelledSet:
    """Scans of a store, labelled by a column of a table; see `clear.label_join` for how they meet.

    Raises InputError where they do not, or cannot be scored.
    """
    if not target:
        raise InputError("--judge-labels: expected --judge-target COLUMN beside it, the column to predict")
    scans = store.table.group_by("scan_id").first().sort("scan_id").rename({"scan_digest": "digest"})
    scans = scans.with_columns(days_since_first=pl.lit(None, dtype=pl.Int32))
    joined = join_labels(
        read_labels(labels, target_task(target)), scans, rule="all", patients=patients, source=str(store.path)
    )
    endpoint = joined.endpoints[0]
    if not endpoint.is_classes:
        raise InputError(f"--judge-target {target}: is a quantity; expected classes, such as 0 and 1")
    known = joined.frame.drop_nulls(endpoint.name)
    names = dict(enumerate(endpoint.classes))
    values = known[endpoint.name].replace_strict(names, return_dtype=pl.Enum(list(endpoint.classes)))
    number = {scan: i for i, scan in enumerate(known["scan_id"])}
    rows: list[int] = []
    item: list[int] = []
    for (scan,), part in (
        store.table.filter(pl.col("scan_id").is_in(list(number))).sort("row").group_by("scan_id", maintain_order=True)
    ):
        own = part.sort("slice")["row"].to_numpy()
        taken = own[np.unique(np.linspace(0, len(own) - 1, SLICES_OF_A_SCAN).round().astype(int))]
        rows += taken.tolist()
        item += [number[str(scan)]] * len(taken)
    order = np.argsort(rows)
    groups = known["patient_id"].to_list()
    found = _checked(store, np.array(rows, np.int64)[order], np.array(item)[order], values, groups, "scans")
    return replace(found, remarks=joined.remarks)


def _checked(
    store: SliceStore,
    rows: NDArray[np.int64],
    item: NDArray[np.int64],
    values: pl.Series,
    groups: list[str],
    what: str,
) -> LabelledSet:
    """Raises InputError unless every class has two patients or more."""
    order = list(values.dtype.categories) if isinstance(values.dtype, pl.Enum) else sorted(set(values))
    classes = tuple(name for name in order if name in set(values))
    codes = np.array([classes.index(value) for value in values], dtype=np.int64)
    patients = np.array(groups, dtype=np.str_)
    few = [name for i, name in enumerate(classes) if len(set(patients[codes == i])) < 2]
    if len(classes) < 2 or few:
        found = f"only {', '.join(classes) or 'none'}" if len(classes) < 2 else f"one patient with {', '.join(few)}"
        raise InputError(
            f"--judge {store.path}: expected {what} of two classes or more, each of two patients or more; found {found}"
        )
    shown = store.table[rows].select("scan_digest", "slice")  # not the whole store: it may have grown
    digest = hashlib.sha256("\n".join(f"{scan} {place}" for scan, place in shown.iter_rows()).encode())
    for array in (item, codes):
        digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
    digest.update("\n".join([*classes, *groups]).encode())
    return LabelledSet(store, rows, item, codes, patients, classes, digest.hexdigest(), what)


def judge(
    network: nn.Module,
    card: EncoderCard,
    labelled: LabelledSet,
    *,
    seed: int = 0,
    autocast: Autocast | None = None,
    check: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """`knn_auc`, `linear_auc` and `judged`, their mean, of the network's embeddings.

    Every process embeds its part and all get the same figures. The network is left in eval mode. check: called between
    batches; may raise to stop, where there is one process.
    """
    embeddings = embed(network, card, labelled, autocast=autocast, check=check)
    sums = np.zeros((len(labelled.codes), card.dim))
    np.add.at(sums, labelled.item, embeddings.astype(np.float64))
    return probe(sums / np.bincount(labelled.item)[:, None], labelled.codes, labelled.groups, seed=seed)


def embed(
    network: nn.Module,
    card: EncoderCard,
    labelled: LabelledSet,
    *,
    autocast: Autocast | None = None,
    check: Callable[[], None] = lambda: None,
) -> NDArray[np.float32]:
    """(n, d) embeddings of the set's rows, the mean over the windows that extraction would use."""
    device = next(network.parameters()).device
    windows = card.channel_windows or card.own_windows or default_windows("CT")
    limits = [(window.low, window.high) for window in windows]
    mine = labelled.rows[rank() :: world_size()]
    network.eval()
    parts: list[torch.Tensor] = []
    with torch.inference_mode():
        for first in range(0, len(mine), BATCH):
            check()
            images = []
            for row in mine[first : first + BATCH].tolist():
                stored = labelled.store.read(row)
                images.append(prepare(torch.from_numpy(stored.hu[None]).to(device), limits, stored.spacing_mm, card))
            x = torch.cat(images).contiguous(memory_format=torch.channels_last)
            if autocast is None:
                found = network(x)
            else:
                with autocast():
                    found = network(x)
            count = len(images)
            parts.append(found.float().reshape(count, -1, found.shape[-1]).mean(1).cpu())
    own = torch.cat(parts).numpy() if parts else np.empty((0, card.dim), np.float32)
    if world_size() == 1:
        return own
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, own)
    whole = np.empty((len(labelled.rows), card.dim), np.float32)
    for number, part in enumerate(gathered):
        whole[number :: world_size()] = part
    return whole


def probe(
    embeddings: NDArray[np.float64], codes: NDArray[np.int64], groups: NDArray[np.str_], *, seed: int = 0
) -> dict[str, float]:
    """AUCs of out-of-fold scores, folds grouped by patient and stratified; several classes: the mean of one against
    the rest. Embeddings are standardised with the training patients' statistics and cut to unit length."""
    folds = min(FOLDS, min(len(set(groups[codes == code])) for code in np.unique(codes)))
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    n_classes = int(codes.max()) + 1
    models: Mapping[str, Callable[[int], Any]] = {
        "knn": lambda n: KNeighborsClassifier(min(NEIGHBOURS, max(1, n // 4))),
        "linear": lambda n: LogisticRegression(C=STRENGTH, max_iter=2000),
    }
    found = {}
    pairs = list(split.split(embeddings, codes, groups))
    for name, model in models.items():
        scores = np.full((len(codes), n_classes), np.nan)
        for training, held_out in pairs:
            if len(np.unique(codes[training])) < 2:
                continue
            fitted = make_pipeline(StandardScaler(), Normalizer(), model(len(training)))
            fitted.fit(embeddings[training], codes[training])
            scores[np.ix_(held_out, fitted.classes_)] = fitted.predict_proba(embeddings[held_out])
        found[f"{name}_auc"] = _auc(codes, scores)
    return {**found, "judged": float(np.mean(list(found.values())))}


def _auc(codes: NDArray[np.int64], scores: NDArray[np.float64]) -> float:
    """Mean over classes of the AUC of one against the rest, of what has a score; one AUC where there are two."""
    aucs = []
    for code in range(scores.shape[1]) if scores.shape[1] > 2 else (1,):
        known = np.isfinite(scores[:, code])
        if len(np.unique(codes[known] == code)) == 2:
            aucs.append(roc_auc_score(codes[known] == code, scores[known, code]))
    return float(np.mean(aucs)) if aucs else math.nan
