"""Assembling: a data set's table, already in our columns, becomes `Labels` with the official split beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import polars as pl

from clear.labels import Labels, labels_from_frame
from clear.task import Task

SPLITS = ("train", "val", "test")
_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trn", "development"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "tune", "tuning"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}


def assemble(table: pl.DataFrame, task: Task, source: str, key: str, remarks: Sequence[str] = ()) -> Labels:
    """Labels of a table of text with the columns `id`, the endpoints' source columns and, where known, `patient_id`,
    `split` (train, val or test) and `one_of` (rows of one value are versions of one scan: the first that is there
    counts).

    key: which id of a scan `id` is, one of `clear.labels.ID_COLUMNS`, or `any`. Raises InputError as
    `clear.labels.labels_from_frame` does.
    """
    labels = labels_from_frame(table, task, source, id_column="id", key=key)
    frame = labels.frame
    if "one_of" in table.columns:
        versions = table.select("id", "one_of").drop_nulls("id").unique("id", keep="first")
        frame = frame.join(versions, on="id", how="left", maintain_order="left")
    return replace(labels, frame=frame, remarks=(*labels.remarks, *remarks))


def split_name(word: str | None) -> str | None:
    """train, val or test for what people and data sets write, in any case; None for anything else.

    >>> split_name("Validation"), split_name("TEST"), split_name("fold 1")
    ('val', 'test', None)
    """
    return None if word is None else _SPLIT_WORDS.get(word.strip().lower())


def whole_number(word: str | None) -> str | None:
    """A whole number as spreadsheets and floating-point columns write it, in plain digits; other text as it is.

    >>> whole_number("3.0"), whole_number("-1"), whole_number("NA")
    ('3', '-1', 'NA')
    """
    if word is None:
        return None
    try:
        number = float(word)
    except ValueError:
        return word
    return str(int(number)) if number.is_integer() else word
