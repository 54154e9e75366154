"""DeepLesion: DL_info.csv, a row a lesion, becomes a row a block of slices with the sites marked in it.

A block is (folder, Slice_range): one folder can hold several. Its id is that of the scan, `000091_03_01_036-073`, as
`clear.formats.deeplesion` and the authors' NIfTI files name it. Facts: donghwanseo/joint_conference `DL_info.csv`,
AIM-Harvard/foundation-cancer-image-biomarker `data/preprocessing/deeplesion/`.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from clear.datasets.assemble import assemble, whole_number
from clear.datasets.files import need_files
from clear.errors import InputError
from clear.labels import Labels
from clear.tables import need_column, read_table, some
from clear.task import Task

FILES = ("*DL_info*.csv",)
ORIGIN = "DeepLesion (nihcc.app.box.com/v/DeepLesion): DL_info.csv"
SITES = ("bone", "abdomen", "mediastinum", "liver", "lung", "kidney", "soft_tissue", "pelvis")  # types 1 to 8
TYPES = {str(number): site for number, site in enumerate(SITES, 1)}
SPLIT = {"1": "train", "2": "val", "3": "test"}
_COLUMNS = ("File_name", "Patient_index", "Coarse_lesion_type", "Possibly_noisy", "Slice_range", "Train_Val_Test")


def read(path: Path, task: Task) -> Labels:
    """Sites of each block: 1 where a lesion of the type is marked, 0 where none is, null where no row tells a type.

    Rows of type -1 and rows that are possibly noisy say nothing. Raises InputError for a table without its columns, an
    unknown type, or one block in two official sets.
    """
    (file, *_) = need_files(path, FILES, ORIGIN)
    table = read_table(file)
    for column in _COLUMNS:
        need_column(table, column, file)
    rows = pl.DataFrame(
        {
            "id": [_block(name, span) for name, span in zip(table["File_name"], table["Slice_range"], strict=True)],
            "patient_id": [whole_number(word) for word in table["Patient_index"]],
            "type": [whole_number(word) for word in table["Coarse_lesion_type"]],
            "noisy": [whole_number(word) for word in table["Possibly_noisy"]],
            "split": [SPLIT.get(whole_number(word) or "") for word in table["Train_Val_Test"]],
        },
        schema=dict.fromkeys(("id", "patient_id", "type", "noisy", "split"), pl.String),
    )
    strange = set(rows["type"].drop_nulls()) - {*TYPES, "-1"}
    if strange:
        raise InputError(f"{file}: Coarse_lesion_type holds {some(sorted(strange), 3)}; expected -1 or 1 to 8")
    remarks = []
    unreadable = rows["id"].null_count()
    if unreadable:
        remarks.append(f"{file}: {unreadable} rows have no File_name and Slice_range that can be read; left out")
    rows = rows.drop_nulls("id")
    several = rows.group_by("id").agg(pl.col("split").n_unique(), pl.col("patient_id").n_unique())
    torn = several.filter((pl.col("split") > 1) | (pl.col("patient_id") > 1)).sort("id")
    if torn.height:
        raise InputError(f"{file}: block {torn['id'][0]} lies in two official sets or patients; expected one of each")
    tells = pl.col("type").is_in(list(TYPES)) & (pl.col("noisy").fill_null("0") != "1")
    silent = rows.filter(~tells)
    if silent.height:
        noisy = silent.filter(pl.col("noisy") == "1").height
        remarks.append(
            f"{silent.height} of {rows.height} lesions are left out: {silent.height - noisy} of unknown type, "
            f"{noisy} possibly noisy"
        )
    type_of = {site: number for number, site in TYPES.items()}
    strangers = [each.name for each in task.endpoints if each.source_column not in type_of]
    if strangers:
        raise InputError(f"task {task.name}: no lesion type {strangers[0]!r}; DeepLesion has {', '.join(type_of)}")
    marked = [
        pl.when(tells.any())
        .then((tells & (pl.col("type") == type_of[each.source_column])).any().cast(pl.Int8))
        .cast(pl.String)
        .alias(each.source_column)
        for each in task.endpoints
    ]
    blocks = rows.group_by("id", maintain_order=True).agg(
        pl.col("patient_id").first(), pl.col("split").first(), *marked
    )
    return assemble(blocks, task, str(file), "scan_id", remarks)


def _block(file_name: str | None, slice_range: str | None) -> str | None:
    """`000091_03_01_036-073` for a file name `000091_03_01_050.png` and a range `36, 73`."""
    try:
        series, _, _ = (file_name or "").rpartition("_")
        first, last = (int(word) for word in (slice_range or "").split(","))
    except ValueError:
        return None
    return f"{series}_{first:03d}-{last:03d}" if series else None
