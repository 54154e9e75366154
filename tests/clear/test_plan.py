"""The plan: as a table, as text, as a file, and choosing among its rows."""

from __future__ import annotations

import errno
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from clear.atomic import OutputError
from clear.errors import InputError
from clear.plan import COLUMNS, plan_rows, plan_table, plan_text, read_plan, select_series, summary, to_json, write_plan
from clear.scans import Scan


def scan(scan_id: str, root: Path = Path("/data"), **facts: object) -> Scan:
    usual: dict[str, object] = {
        "patient_id": "P1",
        "study_uid": "1",
        "series_uid": scan_id,
        "format": "dicom",
        "modality": "CT",
        "plane": "axial",
        "n_slices": 100,
        "shape": (512, 511),
        "spacing_mm": (2.5, 0.8, 0.7),
        "source": scan_id,
        "files": (f"{scan_id}/2", f"{scan_id}/1"),
    }
    return Scan(scan_id=scan_id, root=root, **(usual | facts))  # type: ignore[arg-type]


def refused(scan_id: str, root: Path = Path("/data"), reason: str = "colour") -> Scan:
    return scan(
        scan_id,
        root,
        verdict="refused",
        reason=reason,
        message=f"{scan_id}: why",
        n_slices=0,
        shape=None,
        spacing_mm=None,
    )


def some(root: Path) -> list[Scan]:
    return [
        scan("a", root, remarks=("gantry tilt 14.0 degrees", "x"), kernel="B31f", thickness_mm=3.0, days_since_first=7),
        scan("b", root, spacing_mm=(math.nan, 0.8, 0.7), n_slices=1, patient_id=None, study_uid=None),
        refused("c", root),
        scan("=ünï\n<b>", root, contrast="y", manufacturer="GE"),
    ]


def kept(scans: list[Scan]) -> list[str]:
    return [scan.scan_id for scan in scans if scan.verdict == "use"]


def test_a_plan_comes_back_exactly(tmp_path: Path) -> None:
    scans = some(tmp_path)
    write_plan(scans, tmp_path / "scans.parquet")
    back = read_plan(tmp_path / "scans.parquet")
    assert back == scans
    assert [one.root for one in back] == [tmp_path.resolve()] * 4
    assert not [path for path in tmp_path.iterdir() if path.name != "scans.parquet"]


def test_a_plan_that_moved_with_its_folder_is_found_again(tmp_path: Path) -> None:
    (tmp_path / "old" / "in").mkdir(parents=True)
    write_plan(some(tmp_path / "old" / "in"), tmp_path / "old" / "scans.parquet")
    (tmp_path / "old").rename(tmp_path / "new")
    assert read_plan(tmp_path / "new" / "scans.parquet")[0].root.resolve() == (tmp_path / "new" / "in").resolve()
    (tmp_path / "new" / "in").rename(tmp_path / "new" / "elsewhere")
    with pytest.raises(InputError, match="is gone"):
        read_plan(tmp_path / "new" / "scans.parquet")


def test_other_files_are_no_plans(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    for make in (
        lambda: path.write_bytes(b"rubbish"),
        lambda: pl.DataFrame({"a": [1]}).write_parquet(path),
        lambda: plan_table(some(tmp_path)).write_parquet(path),
    ):
        make()
        with pytest.raises(InputError, match=r"x\.parquet.*plan"):
            read_plan(path)
    with pytest.raises(InputError):
        read_plan(tmp_path / "gone.parquet")


def test_a_plan_of_a_newer_version_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    plan_table(some(tmp_path)).write_parquet(path, metadata={"clear_plan": "2", "root": "/", "root_from_plan": "."})
    with pytest.raises(InputError, match="newer"):
        read_plan(path)


@pytest.mark.parametrize("file", ["../../etc/passwd", "/etc/passwd"])
def test_a_plan_cannot_lead_out_of_its_folder(tmp_path: Path, file: str) -> None:
    write_plan([scan("a", tmp_path, files=(file,))], tmp_path / "x.parquet")
    with pytest.raises(InputError, match="damaged"):
        read_plan(tmp_path / "x.parquet")


def test_a_plan_that_cannot_be_written_says_why_and_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OutputError, match=r"its folder .*gone does not exist"):
        write_plan(some(tmp_path), tmp_path / "gone" / "x.parquet")
    write_plan(some(tmp_path), tmp_path / "x.parquet")

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"x\.parquet: the disk is full"):
        write_plan(some(tmp_path)[:1], tmp_path / "x.parquet")
    assert len(read_plan(tmp_path / "x.parquet")) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["x.parquet"]


def test_the_table_has_its_columns_also_without_rows() -> None:
    assert plan_table([]).columns == list(COLUMNS)
    row = plan_table([scan("a")]).row(0, named=True)
    assert (row["rows"], row["columns"]) == (512, 511)
    assert (row["spacing_z_mm"], row["spacing_y_mm"], row["spacing_x_mm"]) == (2.5, 0.8, 0.7)


def test_json_rows_hold_no_nan(tmp_path: Path) -> None:
    scans = some(tmp_path)
    assert plan_rows(scans)[1]["spacing_z_mm"] is None
    assert json.loads(to_json(scans)) == plan_rows(scans)
    json.dumps(plan_rows(scans), allow_nan=False)


def test_the_text_names_everything_on_one_line_a_scan(tmp_path: Path) -> None:
    lines = plan_text(some(tmp_path)).splitlines()
    assert len(lines) == 7
    assert lines[0].split() == ["scan", "patient", "modality", "slices", "spacing", "(mm)", "verdict", "remark"]
    assert "2.5 x 0.8 x 0.7" in lines[1]
    assert "gantry tilt 14.0 degrees; x" in lines[1]
    assert "? x 0.8 x 0.7" in lines[2]
    assert "refused: colour" in lines[3]
    assert "c: why" in lines[3]
    assert "=ünï?<b>" in lines[4]
    assert lines[-1] == "4 series: 3 to use, 0 set aside, 1 refused (1 colour)"
    assert summary(some(tmp_path)) == lines[-1]


def test_the_text_fits_a_terminal_and_cannot_steer_it() -> None:
    long = scan("1.2.840." + "9" * 50, remarks=("r" * 300,), patient_id="\x1b[2Jgone")
    for line in plan_text([long], width=100).splitlines()[:2]:
        assert len(line) <= 100
    assert "\x1b" not in plan_text([long])
    assert long.scan_id in plan_text([long])


STUDY = [
    scan("thick", spacing_mm=(5.0, 0.8, 0.8), n_slices=60, kernel="B31f", manufacturer="SIEMENS"),
    scan("thin", spacing_mm=(1.0, 0.8, 0.8), n_slices=300, kernel="B70f", manufacturer="SIEMENS"),
    scan("thin-more", spacing_mm=(1.0, 0.8, 0.8), n_slices=320, kernel="B60f", manufacturer="SIEMENS"),
    scan("single", spacing_mm=(math.nan, 0.8, 0.8), n_slices=1),
    scan("mr", modality="MR", n_slices=20),
    scan("other", study_uid="2", spacing_mm=(5.0, 1, 1)),
    scan("alone-1", study_uid=None),
    scan("alone-2", study_uid=None),
    refused("broken"),
]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("thinnest", "thin-more"), ("most-slices", "thin-more"), ("soft-kernel", "thick")],
)
def test_a_rule_chooses_one_series_a_study_and_modality(rule: str, expected: str) -> None:
    chosen = select_series(STUDY, rule)
    assert kept(chosen) == [expected, "mr", "other", "alone-1", "alone-2"]
    assert [one.scan_id for one in chosen] == [one.scan_id for one in STUDY]
    aside = {one.scan_id: one for one in chosen if one.verdict == "set aside"}
    assert set(aside) | {expected} == {"thick", "thin", "thin-more", "single"}
    assert {one.reason for one in aside.values()} == {"not_selected"}
    assert chosen[-1] == STUDY[-1]


def test_the_choice_does_not_depend_on_the_order_of_rows() -> None:
    tied = [replace(STUDY[1], scan_id=name) for name in "cab"]
    for rule in ("thinnest", "most-slices", "soft-kernel"):
        assert kept(select_series(tied, rule)) == kept(select_series(tied[::-1], rule)) == ["a"]
        assert set(kept(select_series(STUDY, rule))) == set(kept(select_series(STUDY[::-1], rule)))


def test_without_a_soft_kernel_the_thinnest_is_taken() -> None:
    assert "thin-more" in kept(select_series(STUDY[1:], "soft-kernel"))


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("n_slices >= 100 AND kernel LIKE 'B%'", ["thin", "thin-more"]),
        ("spacing_z_mm <= 1 OR modality = 'MR'", ["thin", "thin-more", "mr"]),
        ("kernel IS NULL AND study_uid IS NOT NULL", ["single", "mr", "other"]),
        ("true", kept(STUDY)),
        ("kernel = 'B31f'", ["thick"]),
    ],
)
def test_a_condition_keeps_the_rows_that_fulfil_it(expression: str, expected: list[str]) -> None:
    chosen = select_series(STUDY, expression)
    assert kept(chosen) == expected
    assert len(chosen) == len(STUDY)


@pytest.mark.parametrize(
    "expression", ["thinest", "n_slices", "n_slices >", "sum(n_slices) > 3 AND", "n_slices > 'x'", "", "SELECT 1"]
)
def test_a_condition_that_means_nothing_is_one_clear_message(expression: str) -> None:
    with pytest.raises(InputError, match=r"--select .*thinnest, most-slices, soft-kernel"):
        select_series(STUDY, expression)
