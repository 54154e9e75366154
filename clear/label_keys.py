"""Label keys: which id of a scan the ids of a label table are, and how the two are spelt alike."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import polars as pl

from clear.errors import InputError
from clear.formats import without_ending
from clear.labels import ID_COLUMNS, Labels
from clear.tables import some


def matching_key(labels: Labels, scans: pl.DataFrame, source: str) -> tuple[str, pl.Series]:
    """(id name, the id of each scan as the table spells it); raises InputError when nothing joins."""
    wanted = set(labels.frame["id"].to_list())
    keys = ID_COLUMNS if labels.key == "any" else (labels.key,)
    for key in keys:
        if key in scans.columns and any(value in wanted for value in scans[key].to_list()):
            return key, scans[key].alias("id")
    if "scan_id" in keys:  # a file found in a sub-folder has the folder in its scan_id, a table often does not
        names = [str(value).rsplit("/", 1)[-1] for value in scans["scan_id"].to_list()]
        found = Counter(name for name in names if name in wanted)
        if found and max(found.values()) == 1:
            return "scan_id (its last part)", pl.Series("id", names, dtype=pl.String)
        if found:
            name, count = found.most_common(1)[0]
            same = [value for value in scans["scan_id"].to_list() if str(value).rsplit("/", 1)[-1] == name]
            raise InputError(
                f"{labels.source}: its id {name!r} is the name of {count} scans of {source} ({some(same, 3)}). Extract "
                "one of these folders alone, or write the whole scan_id into the table"
            )
    shown = keys[0] if len(keys) == 1 else "scan_id"
    here = [str(value) for value in scans[shown].to_list() if value is not None] if shown in scans.columns else []
    others = [
        other
        for other in ID_COLUMNS
        if other in scans.columns and other not in keys and any(value in wanted for value in scans[other].to_list())
    ]
    hint = f" Its ids are {others[0]}s of the bag file: name the column {others[0]}." if others else ""
    plain = {_plain(value) for value in labels.frame["id"].to_list()}
    if not others and any(_plain(value) in plain for value in here):
        hint = " They differ in leading zeros, a trailing .0 or case: keep ids as text, spelt as in the bag file."
    raise InputError(
        f"{labels.source}: none of its {labels.frame.height} ids is a {shown} of {source}. The table has "
        f"{some(labels.frame['id'].to_list(), 3)}; {source} has {some(here, 3) if here else 'no such ids'}.{hint}"
    )


def without_endings(labels: Labels, scans: pl.DataFrame) -> Labels:
    """Ids that are file names (`case7.nii.gz`) as scans are called (`case7`); others as they are."""
    ids = labels.frame["id"].to_list()
    shorter = [without_ending(value) for value in ids]
    if labels.key not in ("scan_id", "any") or shorter == ids or len(set(shorter)) < len(ids):
        return labels
    known = {str(value) for value in scans["scan_id"]} | {str(value).rsplit("/", 1)[-1] for value in scans["scan_id"]}
    if known & set(ids) or not known & set(shorter):
        return labels
    return replace(labels, frame=labels.frame.with_columns(id=pl.Series(shorter, dtype=pl.String)))


def _plain(name: str) -> str:
    """An id without what spreadsheets take away or add."""
    return name.lower().removesuffix(".0").lstrip("0")
