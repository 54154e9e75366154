"""Scans: which series lie in a folder, and how one becomes a `Volume`.

`find_scans` looks at every file below a folder once, in parallel, tells formats apart by their content and judges
each series from its header alone: use it, set it aside (a localizer, a mask) or refuse it with a reason. Nothing is
dropped silently: every series found is a `Scan`. `read_volume` then reads the voxels of one.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clear.errors import InputError, ScanRefused

if TYPE_CHECKING:
    from clear.volume import Volume

Verdict = Literal["use", "set aside", "refused"]


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One series found on disk: a row of the plan.

    scan_id: SeriesInstanceUID for DICOM, else the path relative to `root` without its ending, "/"-separated
    patient_id, study_uid, series_uid: from headers; names and birth dates are never kept
    format: dicom, nifti, nrrd, mha, radchestct, deeplesion, mrnet, medmnist or omezarr ("" when the file cannot be
        read at all)
    modality: "CT", "MR", ...; "" when unknown
    shape: (rows, columns) in canonical orientation
    spacing_mm: (z, y, x), z the median gap (nan for one slice of unknown thickness); None when the file does not say
    verdict: "use", "set aside" or "refused"; reason: its short stable name, message: the sentence behind it; both
        "" when used
    remarks: what was noted about a usable scan
    source: file or folder, files: all files, relative to `root` and "/"-separated; in canonical slice order where
        one file is one slice
    thickness_mm: as the header says, which may differ from the gap
    days_since_first: study date minus the patient's first study date in this folder
    """

    scan_id: str
    patient_id: str | None = None
    study_uid: str | None = None
    series_uid: str | None = None
    format: str
    modality: str = ""
    plane: str | None = None
    n_slices: int = 0
    shape: tuple[int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    verdict: Verdict = "use"
    reason: str = ""
    message: str = ""
    remarks: tuple[str, ...] = ()
    source: str
    files: tuple[str, ...] = ()
    root: Path = dataclasses.field(compare=False)
    manufacturer: str | None = None
    kernel: str | None = None
    thickness_mm: float | None = None
    contrast: str | None = None
    days_since_first: int | None = None

    def __post_init__(self) -> None:
        if self.verdict not in ("use", "set aside", "refused"):
            raise ValueError(f"verdict: expected 'use', 'set aside' or 'refused'; found {self.verdict!r}")
        if (self.verdict == "use") == bool(self.reason):
            raise ValueError(f"a reason goes with every verdict but 'use'; found {self.verdict!r}, {self.reason!r}")
        if self.spacing_mm is not None:  # one nan object, so that equal scans compare equal
            spacing = tuple(math.nan if math.isnan(v) else float(v) for v in self.spacing_mm)
            object.__setattr__(self, "spacing_mm", spacing)

    @property
    def refusal(self) -> str | None:
        """Why the scan is refused, as a sentence; None for one that is used or set aside."""
        return self.message if self.verdict == "refused" else None

    @property
    def paths(self) -> tuple[Path, ...]:
        """`files` as they lie on this machine."""
        return tuple(self.root / file for file in self.files)

    def _repr_html_(self) -> str:
        from clear.notebook import scan_card

        return scan_card(self)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without `root`."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "root"}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in data.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], root: Path) -> Scan:
        """The inverse of `as_dict`."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in data.items()
        }
        return cls(root=root, **values)


@dataclass(frozen=True)
class Survey:
    """All that one look at a folder found.

    scans: sorted by scan_id; n_files: files looked at, n_not_images: those that are no image at all (tables, text,
    indexes); unreadable: folders that could not be opened.
    """

    scans: list[Scan]
    n_files: int
    n_not_images: int
    unreadable: tuple[str, ...] = ()


def find_scans(
    folder: Path | str,
    *,
    workers: int | None = None,
    cache: Path | bool | None = None,
    select: str | None = None,
    modality: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Scan]:
    """Every series below a folder (or in one file), also those set aside or refused, sorted by scan_id.

    workers: processes that read headers; None decides by the size of the folder, 1 stays in this process.
    cache: folder that remembers headers; None the user's cache folder, False none.
    select: a rule that chooses series, see `clear.plan.select_series`.
    modality: what files without one (NIfTI, NRRD, MetaImage, OME-Zarr, arrays) hold; otherwise the values decide.
    progress: called with (files done, files in all).

    Raises InputError for a folder that is missing or holds no image.

    >>> find_scans("no/such/folder")
    Traceback (most recent call last):
    clear.errors.InputError: no/such/folder: no such folder. Check the path
    """
    scans = survey(folder, workers=workers, cache=cache, modality=modality, progress=progress).scans
    if select is not None:
        from clear.plan import select_series

        scans = select_series(scans, select)
    return scans


def survey(
    folder: Path | str,
    *,
    workers: int | None = None,
    cache: Path | bool | None = None,
    modality: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Survey:
    """As `find_scans`, with the counts of what was looked at."""
    from clear.header_cache import cached_records, default_folder
    from clear.tree import Entry, Tree, walk

    place = Path(folder)
    root, tree = place, None
    if place.is_file():
        root, status = place.parent, place.stat()
        tree = Tree([Entry(place.name, status.st_size, status.st_mtime_ns)], [])
    elif not place.is_dir():
        raise InputError(f"{folder}: no such folder. Check the path")
    elif _is_store(place):
        place = place.resolve()
        root = place.parent
        tree = Tree([entry for entry in walk(place).entries if entry.name == ""], [])
        tree = Tree([dataclasses.replace(entry, name=place.name) for entry in tree.entries], [])
    tree = tree or walk(root)
    kept = default_folder() if cache is None or cache is True else Path(cache) if cache else None
    records = cached_records(root, tree.entries, kept, modality=modality, workers=workers, progress=progress)
    named = [(entry.name, record) for entry, record in zip(tree.entries, records, strict=True)]
    scans = _scans(named, root)
    if not scans:
        raise InputError(f"{folder}: {_nothing_found(tree.unreadable, len(tree.entries))}")
    scans = sorted([*scans, *_locked(tree.unreadable, root)], key=lambda scan: (scan.scan_id, scan.source))
    not_images = sum(record["kind"] == "none" for record in records)
    return Survey(scans, len(tree.entries), not_images, tuple(tree.unreadable))


def read_volume(scan: Scan | Path | str, *, series: str | None = None, modality: str | None = None) -> Volume:
    """The voxels of one scan: (Z, Y, X) in canonical axes, HU for CT.

    scan: a Scan, or a path to a file or to a folder that holds one usable series.
    series: which scan_id, where a path holds several. modality: as in `find_scans`, for paths.

    Raises ScanRefused with a reason when the scan cannot be used, InputError when a path does not lead to one scan.
    """
    from clear import formats

    if not isinstance(scan, Scan):
        scan = _only_scan(scan, series, modality)
    if scan.verdict == "refused" or (scan.verdict == "set aside" and scan.reason not in NOT_CHOSEN):
        raise ScanRefused(scan.reason, scan.message)
    missing = next((file for file in scan.files if not (scan.root / file).exists()), None)
    if missing is not None:
        raise ScanRefused("missing_file", f"{missing}: the file was there when the scans were listed and is gone")
    module = formats.module(scan.format)
    if scan.format == "dicom":
        volume: Volume = module.read_series(scan)
        return volume
    try:
        volume = module.read(scan)
    except ScanRefused as refusal:
        message = str(refusal) if scan.source in str(refusal) else f"{scan.source}: {refusal}"
        raise ScanRefused(refusal.reason, message) from None
    except OSError as error:
        raise ScanRefused(
            "unreadable_file", f"{scan.source}: cannot be read ({error.strerror or 'I/O error'})"
        ) from None
    if (volume.n_slices, volume.voxels.shape[1:]) != (scan.n_slices, scan.shape):
        raise ScanRefused(
            "changed_since_plan",
            f"{scan.source}: now {volume.voxels.shape}, but {(scan.n_slices, *(scan.shape or ()))} when the scans were "
            "listed. List them again",
        )
    return volume


NOT_CHOSEN = ("not_selected", "not_in_table")
"""Reasons of scans that are set aside by the user's choice and can still be read."""


def _scans(named: list[tuple[str, dict[str, Any]]], root: Path) -> list[Scan]:
    """Scans of all records, sorted by scan_id; ids that occur twice are refused."""
    from clear import formats
    from clear.headers import scan_from_record

    by_kind: dict[str, list[tuple[str, Any]]] = defaultdict(list)
    for name, record in named:
        by_kind[record["kind"]].append((name, record.get("header", record)))
    scans: list[Scan] = []
    for _, record in by_kind["scan"]:
        scan = scan_from_record(record, root)
        many = scan.format == "medmnist" and scan.verdict == "use"  # one file, many volumes
        scans += formats.module("medmnist").unfold(scan) if many else [scan]
    if by_kind["dicom"]:
        scans += formats.module("dicom").series_from_headers(by_kind["dicom"], root)
    if by_kind["png"]:
        scans += formats.module("deeplesion").series_from_pngs(by_kind["png"], root)
    return sorted(_refuse_ambiguous(scans), key=lambda scan: (scan.scan_id, scan.source))


def _refuse_ambiguous(scans: Iterable[Scan]) -> list[Scan]:
    """An id names one scan: where two claim it, neither can be chosen without a look at its neighbours."""
    by_id: dict[str, list[Scan]] = defaultdict(list)
    for scan in scans:
        by_id[scan.scan_id].append(scan)
    result = []
    for scan_id, same in by_id.items():
        if len(same) > 1:
            sources = ", ".join(sorted({scan.source for scan in same}))
            message = f"{scan_id}: {len(same)} scans have this id ({sources}). Rename or remove all but one"
            same = [
                dataclasses.replace(scan, verdict="refused", reason="ambiguous_scan_id", message=message, remarks=())
                for scan in same
            ]
        result += same
    return result


def _only_scan(path: Path | str, series: str | None, modality: str | None) -> Scan:
    """The one scan at a path. Raises InputError naming the ids when several can be used."""
    if not Path(path).exists():
        raise InputError(f"{path}: no such file or folder. Check the path")
    scans = find_scans(path, cache=False, modality=modality)
    if series is not None:
        chosen = [scan for scan in scans if scan.scan_id == series]
        if not chosen:
            raise InputError(f"{path}: no series {series!r} here; found {_some([scan.scan_id for scan in scans])}")
        return chosen[0]
    usable = [scan for scan in scans if scan.verdict == "use"]
    if len(usable) > 1:
        raise InputError(
            f"{path}: holds {len(usable)} series; name one of them with series=: {_some([s.scan_id for s in usable])}"
        )
    return usable[0] if usable else next((scan for scan in scans if scan.verdict == "refused"), scans[0])


def _is_store(folder: Path) -> bool:
    from clear.formats import omezarr

    return omezarr.kind(folder) == "image"


def _nothing_found(unreadable: list[str], n_files: int) -> str:
    if unreadable:
        return (
            f"no image found, and {len(unreadable)} folder(s) cannot be opened, the first {unreadable[0]}. Check rights"
        )
    if not n_files:
        return "the folder is empty. Expected DICOM, NIfTI, NRRD, MetaImage, npz, npy, PNG or OME-Zarr scans"
    return (
        f"none of its {n_files} file(s) is an image that is known (DICOM, NIfTI, NRRD, MetaImage, RAD-ChestCT npz, "
        "MRNet npy, MedMNIST 3D npz, 16-bit PNG, OME-Zarr). Archives must be unpacked first"
    )


def _locked(folders: Iterable[str], root: Path) -> list[Scan]:
    """A row for each folder that cannot be opened: whatever lies in it must not be missing in silence."""
    found = []
    for folder in folders:
        name = folder.encode("utf-8", "backslashreplace").decode() + "/"
        message = f"{name}: the folder cannot be opened. Check access rights"
        found.append(
            Scan(
                scan_id=name,
                format="",
                verdict="refused",
                reason="unreadable_folder",
                message=message,
                source=name,
                root=root,
            )
        )
    return found


def _some(ids: list[str]) -> str:
    return ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
