"""A cohort: the labelled bags of one question, ready to be split and read.

Bags of scans become bags of the question: only the task's windows, and, where the rule is `pool`, one bag a patient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from aggregate.packed import PackedRows
from aggregate.targets import Targets, nothing_to_learn
from clear.endpoints import Endpoint
from clear.errors import InputError
from clear.label_join import Joined
from clear.tables import some
from clear.windows import Window, parse_window


class BagSource(Protocol):
    """What training needs of a bag file; `clear.bags.Bags` has it."""

    windows: tuple[Window, ...]
    digest: str

    @property
    def scans(self) -> pl.DataFrame: ...
    @property
    def features(self) -> Any: ...
    @property
    def slice(self) -> NDArray[np.int32]: ...
    @property
    def window(self) -> NDArray[np.uint8]: ...


@dataclass(frozen=True)
class Cohort:
    """B labelled bags.

    scan_ids: the scans of each bag (one, or several when pooled); names: what predictions call the bag, the scan id or
    several joined by `;`; patient_ids: (B,); targets: codes (B, E); parts: the rows of the bag file that each bag is
    made of; windows: those used.
    """

    scan_ids: tuple[tuple[str, ...], ...]
    patient_ids: tuple[str, ...]
    targets: Targets
    parts: tuple[tuple[slice, ...], ...]
    windows: tuple[Window, ...]
    remarks: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.scan_ids)

    @property
    def names(self) -> list[str]:
        return [";".join(ids) for ids in self.scan_ids]

    def by_scan(self) -> tuple[list[str], list[str], NDArray[np.bool_]]:
        """(scan ids, their patients, their class indicators), pooled bags as their single scans: for folds."""
        number = [bag for bag, ids in enumerate(self.scan_ids) for _ in ids]
        scans = [scan for ids in self.scan_ids for scan in ids]
        return scans, [self.patient_ids[bag] for bag in number], self.targets.indicators()[number]

    def strata(self, scans: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(n, C) what folds of these scans, by their number in `by_scan`, are stratified by: no other scan's value
        decides where a quantity is cut."""
        number = np.array([bag for bag, ids in enumerate(self.scan_ids) for _ in ids], dtype=np.int64)
        return self.targets.indicators(number[scans])

    def bags_of(self, scan_ids: Sequence[str]) -> NDArray[np.int64]:
        """The bags that these scans make up, ascending."""
        wanted = set(scan_ids)
        return np.array([bag for bag, ids in enumerate(self.scan_ids) if ids[0] in wanted], dtype=np.int64)

    def rows(self, bags: BagSource, device: str = "cpu") -> PackedRows:
        """The bags' features, in memory where they fit. Raises InputError where a value is not finite."""
        rows = PackedRows(bags.features, self.parts).in_memory(device)
        if wrong := rows.not_finite():
            names = [";".join(self.scan_ids[bag]) for bag in wrong]
            raise InputError(
                f"{len(names)} scans of the bag file have embeddings that are not finite, first {some(names, 3)}: the "
                "file is damaged. Extract these scans again (`clear bags validate` checks a file)"
            )
        return rows

    def row_numbers(self, bag: int) -> NDArray[np.int64]:
        """(K,) rows of the bag file, in the bag's order."""
        return np.concatenate([np.arange(part.start, part.stop, part.step or 1) for part in self.parts[bag]])


def build_cohort(
    bags: BagSource, joined: Joined, windows: tuple[Window, ...], folds: int, one_label: bool = False
) -> Cohort:
    """The labelled bags; raises InputError when the labels cannot be learnt from in so many folds.

    one_label: a patient's scans must agree in their labels, because their predictions will be averaged.
    """
    frame, remarks = joined.frame, []
    if joined.rule == "pool":
        frame, remark = _pool(frame, joined.endpoints)
        remarks += remark
    else:
        if one_label:
            _one_label_a_patient(frame, joined.endpoints, "--several average")
        frame = frame.with_columns(scan_id=pl.concat_list("scan_id"))
    endpoints, noted = usable_endpoints(frame, joined.endpoints, folds)
    remarks += noted
    names = [endpoint.name for endpoint in endpoints]
    frame = frame.filter(pl.any_horizontal(pl.col(name).is_not_null() for name in names))
    codes = _numbers(frame, names)
    rows = rows_of_scans(bags, windows)
    ids = [tuple(scans) for scans in frame["scan_id"].to_list()]
    return Cohort(
        scan_ids=tuple(ids),
        patient_ids=tuple(frame["patient_id"].to_list()),
        targets=Targets(tuple(endpoints), codes, _events(frame, endpoints)),
        parts=tuple(tuple(part for scan in scans for part in rows[scan]) for scans in ids),
        windows=windows,
        remarks=tuple(remarks),
    )


def choose_windows(bags: BagSource, wanted: Sequence[Window | str], source: str) -> tuple[Window, ...]:
    """The windows of the bag file that are wanted, in that order; all of them, in the file's, when none is named.

    A text may be a window's name.

    A file of an encoder that prepares values in its own way has one window, which serves for any.
    Raises InputError for one that the file lacks, or has with another range under the same name.
    """
    if not wanted or all(window.kind == "encoder" for window in bags.windows):
        return bags.windows
    of_name = {window.name: window for window in bags.windows}
    chosen = []
    for item in wanted:
        window = of_name[item] if isinstance(item, str) and item in of_name else item
        window = parse_window(window) if isinstance(window, str) else window
        if window not in bags.windows:
            listed = ", ".join(_range(each) for each in bags.windows)
            raise InputError(
                f"{source}: no window {_range(window)}; it has {listed}. Extract again with --window, or train on "
                "windows that are there"
            )
        chosen.append(window)
    return tuple(dict.fromkeys(chosen))


def usable_endpoints(
    frame: pl.DataFrame, endpoints: Sequence[Endpoint], folds: int
) -> tuple[list[Endpoint], list[str]]:
    """(endpoints that can be learnt, remarks on the others); raises InputError when none can.

    A question with a single endpoint must have a patient of every class (of survival: with an event) for every fold.
    Among several, an endpoint of one class or value is set aside and a rare class is a remark: its metric is not
    defined in some folds.
    """
    kept, remarks = [], []
    for endpoint in endpoints:
        known = frame.drop_nulls(endpoint.name)
        counts = _counts(known, endpoint)
        events = _events(known, [endpoint])
        what = nothing_to_learn(
            endpoint, _numbers(known, [endpoint.name])[:, 0], None if events is None else events[:, 0]
        )
        if what:
            if len(endpoints) == 1:
                raise InputError(f"{endpoint.name}: {what}; there is nothing to learn")
            remarks.append(f"{endpoint.name}: set aside, {what.removeprefix('one class only: ')}")
            continue
        rare = [name for name, count in counts.items() if count < folds]
        if rare and len(endpoints) == 1:
            name = min(rare, key=lambda each: counts[each])
            ways = [f"give --folds {counts[name]}"] if counts[name] >= 2 else []
            ways += ["merge it with another class"] if len(endpoint.classes) > 2 else []
            raise InputError(
                f"{endpoint.name}: only {counts[name]} of {known['patient_id'].n_unique()} labelled patients are "
                f"{name!r}, too few for {folds} folds with one in each; {', or '.join([*ways, 'label more patients'])}"
            )
        for name in rare:
            remarks.append(f"{endpoint.name}: only {counts[name]} patients are {name!r}; not defined in some folds")
        kept.append(endpoint)
    if not kept:
        raise InputError(
            f"none of the endpoints {some([endpoint.name for endpoint in endpoints])} has two classes among the "
            f"{frame.height} labelled scans; there is nothing to learn"
        )
    return kept, remarks


def _counts(known: pl.DataFrame, endpoint: Endpoint) -> dict[str, int]:
    """Patients of each class, or with an event; empty for a quantity."""
    if endpoint.kind == "survival":
        return {"event": known.filter(pl.col(f"{endpoint.name}.event") == 1)["patient_id"].n_unique()}
    return {
        name: known.filter(pl.col(endpoint.name) == code)["patient_id"].n_unique()
        for code, name in enumerate(endpoint.classes)
    }


def _numbers(frame: pl.DataFrame, names: Sequence[str]) -> NDArray[np.float64]:
    """(B, len(names)) values, nan where null."""
    columns = frame.select(pl.col(name).cast(pl.Float64).fill_null(float("nan")) for name in names)
    return np.asarray(columns.to_numpy(), dtype=np.float64)


def _events(frame: pl.DataFrame, endpoints: Sequence[Endpoint]) -> NDArray[np.float64] | None:
    """(B, E) event indicators of survival endpoints, nan elsewhere; None when there is no survival endpoint."""
    if all(endpoint.kind != "survival" for endpoint in endpoints):
        return None
    events = np.full((frame.height, len(endpoints)), np.nan)
    for e, endpoint in enumerate(endpoints):
        if endpoint.kind == "survival":
            events[:, e] = _numbers(frame, [f"{endpoint.name}.event"])[:, 0]
    return events


def _pool(frame: pl.DataFrame, endpoints: Sequence[Endpoint]) -> tuple[pl.DataFrame, list[str]]:
    _one_label_a_patient(frame, endpoints, "--join pool")
    names = [column for endpoint in endpoints for column in endpoint.label_columns]
    grouped = frame.group_by("patient_id", maintain_order=True)
    pooled = grouped.agg(pl.col("scan_id"), *(pl.col(name).drop_nulls().first() for name in names))
    several = pooled.filter(pl.col("scan_id").list.len() > 1).height
    remarks = [f"--join pool: {frame.height} scans form {pooled.height} bags; {several} patients have several scans"]
    return pooled.select("scan_id", "patient_id", *names), remarks if several else []


def _one_label_a_patient(frame: pl.DataFrame, endpoints: Sequence[Endpoint], option: str) -> None:
    for endpoint in endpoints:
        for name in endpoint.label_columns:
            counts = frame.group_by("patient_id", maintain_order=True).agg(pl.col(name).drop_nulls().n_unique())
            differing = counts.filter(pl.col(name) > 1)
            if differing.height:
                raise InputError(
                    f"{option}: {differing.height} patients have scans with different {name}, first "
                    f"{differing['patient_id'][0]!r}; one answer a patient needs one label a patient"
                )


def rows_of_scans(bags: BagSource, windows: tuple[Window, ...]) -> dict[str, tuple[slice, ...]]:
    """scan_id -> rows of the bag file in these windows, as slices: slice by slice, in a slice in the windows' order."""
    wanted = [bags.windows.index(window) for window in windows]
    everything = wanted == list(range(len(bags.windows)))
    in_order = wanted == sorted(wanted)
    place = np.full(len(bags.windows), len(wanted))
    place[wanted] = np.arange(len(wanted))
    numbers = None if everything else np.isin(bags.window, wanted)
    out: dict[str, tuple[slice, ...]] = {}
    for scan, start, length in bags.scans.select("scan_id", "start", "length").iter_rows():
        if numbers is None:
            out[scan] = (slice(start, start + length),)
            continue
        rows = start + np.flatnonzero(numbers[start : start + length])
        if not len(rows):
            raise InputError(f"scan {scan} has no instance in the windows {some([window.name for window in windows])}")
        if not in_order:
            rows = rows[np.lexsort((place[bags.window[rows]], bags.slice[rows]))]
        out[scan] = _as_slices(rows)
    return out


def _as_slices(rows: NDArray[np.int64]) -> tuple[slice, ...]:
    """Row numbers as one strided slice where they ascend evenly, else as runs.

    >>> _as_slices(np.array([1, 3, 5])), _as_slices(np.array([1, 2, 4]))
    ((slice(1, 6, 2),), (slice(1, 3, 1), slice(4, 5, 1)))
    """
    gaps = np.diff(rows)
    if len(gaps) and gaps[0] > 0 and (gaps == gaps[0]).all():
        return (slice(int(rows[0]), int(rows[-1]) + 1, int(gaps[0])),)
    runs = np.split(rows, np.flatnonzero(gaps != 1) + 1)
    return tuple(slice(int(run[0]), int(run[-1]) + 1, 1) for run in runs)


def _range(window: Window) -> str:
    unit = " %" if window.kind == "percentile" else " HU"
    return f"{window.name} ({window.low:g}..{window.high:g}{unit})"
