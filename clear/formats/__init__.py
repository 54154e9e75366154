"""Formats: one module each, told apart by what a file holds and never by what it is called.

A format module has three functions: `probe(head, path)` (does this content belong to it; `head` holds the file's
first `HEAD_BYTES`), `scans(path, root, modality)` (what lies in the file, from its header) and `read(scan)`. All three
raise ScanRefused with a reason for content that cannot be used. DICOM is grouped over many files and PNG folders over
one folder, so these two have their own way of building scans; see `clear.headers`. A MedMNIST file holds many: its one
scan is unfolded when scans are listed.

This module is the table of them. Modules are imported when a file of their kind is met.
"""

from __future__ import annotations

import importlib
import re
from types import ModuleType

HEAD_BYTES = 1024
MAX_VOLUME_BYTES = 8 * 2**30
"""The largest volume that is read: what a header declares beyond this is damage or an attack."""

# format: the module that knows it
MODULES = {
    "dicom": "clear.formats.dicom",
    "nifti": "clear.formats.nifti",
    "nrrd": "clear.formats.itk",
    "mha": "clear.formats.itk",
    "radchestct": "clear.formats.radchestct",
    "deeplesion": "clear.formats.deeplesion",
    "mrnet": "clear.formats.mrnet",
    "medmnist": "clear.formats.medmnist",
    "omezarr": "clear.formats.omezarr",
}
# modules asked about a single file, in this order; DICOM, PNG and Zarr are recognised by clear.headers
ONE_FILE = (
    *("clear.formats.nifti", "clear.formats.itk", "clear.formats.radchestct", "clear.formats.mrnet"),
    "clear.formats.medmnist",
)

_ENDINGS = re.compile(r"\.(nii\.gz|nii|hdr|nrrd|nhdr|mha|mhd|npz|npy|ome\.zarr|zarr|dcm|dicom|ima|gz)$", re.IGNORECASE)


def module(name: str) -> ModuleType:
    """The module of a format, imported now."""
    return importlib.import_module(MODULES[name])


def without_ending(source: str) -> str:
    """A path without the ending of an image format; other dots stay, as in the UIDs that LUNA16 names files by.

    >>> without_ending("train_1/train_1_a_1.nii.gz"), without_ending("1.3.6.1.4")
    ('train_1/train_1_a_1', '1.3.6.1.4')
    """
    return _ENDINGS.sub("", source) or source


def claims_to_be_an_image(source: str) -> bool:
    """Whether the name has the ending of an image format: the only hint for a file that is empty or damaged."""
    return bool(re.search(r"\.(nii\.gz|nii|nrrd|nhdr|mha|mhd|npz|dcm|dicom|ima)$", source, re.IGNORECASE))


def may_be_an_image(source: str) -> bool:
    """Whether a file that cannot be opened must be reported: named like an image, or without an ending in letters.

    Archives write DICOM as IM0001, 1-001 or by its UID, so such a file may be a slice.

    >>> may_be_an_image("study/1.2.840.113"), may_be_an_image("study/IM0001"), may_be_an_image("notes.txt")
    (True, True, False)
    """
    return claims_to_be_an_image(source) or not re.search(r"\.[A-Za-z]\w{0,9}$", source)
