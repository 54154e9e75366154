"""Duke Breast Cancer MRI: Clinical_and_Other_Features.xlsx, sheet `Data`, under three header rows.

The rows are group, name, and legend of the values; names may end in a blank or repeat, and the first of a name counts.
The codes are those of one public loader: ER, PR 0/1; HER2 0/1/2 (2 equivocal); Mol Subtype 0 luminal-like, 1 HR+HER2+,
2 HER2, 3 triple-negative. They are not verified against the legend row.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import polars as pl

from clear.datasets.assemble import assemble, whole_number
from clear.datasets.files import need_files
from clear.errors import InputError, MissingExtra
from clear.labels import Labels
from clear.tables import some
from clear.task import Task

FILES = ("Clinical_and_Other_Features*.xlsx",)
ORIGIN = "Duke-Breast-Cancer-MRI (the Cancer Imaging Archive): Clinical_and_Other_Features.xlsx"
SHEET, ID = "Data", "Patient ID"
UNKNOWN = ("", "na", "nc", "np", "-1")
# our column: (theirs, their code -> ours)
DERIVED: Mapping[str, tuple[str, Mapping[str, str | None]]] = MappingProxyType(
    {
        "er": ("ER", {"0": "0", "1": "1"}),
        "pr": ("PR", {"0": "0", "1": "1"}),
        "her2": ("HER2", {"0": "0", "1": "1", "2": None}),
        "triple_negative": ("Mol Subtype", {"0": "0", "1": "0", "2": "0", "3": "1"}),
    }
)


def read(path: Path, task: Task) -> Labels:
    """Receptor status of each patient, and any other column of the sheet by its name; ids are `Patient ID`.

    Blank, NA, NC, NP and -1 are unknown. Raises InputError for an absent sheet or column and for other codes.
    """
    (file, *_) = need_files(path, FILES, ORIGIN)
    sheet = _sheet(file)
    columns: dict[str, list[str | None]] = {"id": sheet[ID], "patient_id": sheet[ID]}
    for endpoint in task.endpoints:
        for column in filter(None, (endpoint.source_column, endpoint.event)):
            columns[column] = _column(sheet, column, file)
    return assemble(pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String)), task, str(file), "patient_id")


def is_source(column: str, label: str) -> bool:
    """Whether the label follows from a column: the subtype is made of the receptors, so it tells each of them.

    >>> is_source("Mol Subtype", "er"), is_source("HER2", "triple_negative"), is_source("HER2", "er")
    (True, True, False)
    """
    if label not in DERIVED:
        return False
    receptors = [theirs for theirs, _ in DERIVED.values()]
    used = receptors if label == "triple_negative" else [DERIVED[label][0], "Mol Subtype"]
    return column.strip().lower() in {name.lower() for name in used}


def _column(sheet: Mapping[str, list[str | None]], name: str, file: Path) -> list[str | None]:
    theirs, code_of = DERIVED.get(name, (name, {}))
    if theirs not in sheet:
        raise InputError(f"{file}: sheet {SHEET} has no column {theirs!r}; its columns are {some(sheet, 12)}")
    words = [None if word is None or word.lower() in UNKNOWN else word for word in map(whole_number, sheet[theirs])]
    if not code_of:
        return words
    strange = sorted({word for word in words if word is not None and word not in code_of})
    if strange:
        raise InputError(f"{file}: {theirs} holds {some(strange, 3)}; expected {', '.join(code_of)} or unknown")
    return [None if word is None else code_of[word] for word in words]


def _sheet(file: Path) -> dict[str, list[str | None]]:
    """Column name to cells as stripped text, from the row after the legend on."""
    try:
        import fastexcel
    except ImportError:
        raise MissingExtra("fastexcel", "excel", f"Reading {file.name}") from None
    try:
        book = fastexcel.read_excel(file)
        if SHEET not in book.sheet_names:
            raise InputError(f"{file}: no sheet {SHEET!r}; it has {some(book.sheet_names)}")
        rows = book.load_sheet(SHEET, header_row=None, dtypes="string").to_polars().rows()
    except fastexcel.FastExcelError as error:
        raise InputError(f"{file}: cannot be read as an Excel workbook; download it again") from error
    plain = [[None if cell is None or not str(cell).strip() else str(cell).strip() for cell in row] for row in rows]
    at = next((number for number, row in enumerate(plain[:6]) if ID in row), None)
    if at is None:
        raise InputError(f"{file}: none of the first rows of sheet {SHEET} holds {ID!r}; expected it in row 2 of three")
    names, below = plain[at], plain[at + 2 :]
    place = names.index(ID)
    patients = [row for row in below if row[place] is not None]
    first = {name: number for number, name in reversed(list(enumerate(names))) if name is not None}
    return {name: [row[number] for row in patients] for name, number in first.items()}
