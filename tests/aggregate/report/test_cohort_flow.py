"""The cohort's flow, from the quality record and run.json."""

from __future__ import annotations

from pathlib import Path

from aggregate.report.cohort_flow import Step, cohort_flow, lost_in_extraction
from aggregate.report.material import open_material
from clear.bags import Bags
from extract.quality import QualityRow, write_quality

COHORT = {
    "scans_in_file": 24, "label_rows": 26, "scans_joined": 23, "label_rows_without_scan": 3, "scans_used": 20,
    "bags": 18, "patients": 18,
}  # fmt: skip


def test_the_flow_goes_from_series_found_to_patients(copied) -> None:  # type: ignore[no-untyped-def]
    folder: Path = copied("mean")
    rows = [QualityRow(scan_id=f"s{i}", status="done") for i in range(24)]
    rows += [QualityRow(scan_id=f"l{i}", status="set aside", reason="localizer") for i in range(4)]
    rows += [QualityRow(scan_id="r", status="refused", reason="uneven_spacing")]
    write_quality(folder / "feats.qc.csv", rows)
    material = open_material(folder / "run", Bags(folder / "feats.h5"))
    material.run.settings["cohort"] = COHORT
    steps = cohort_flow(material)
    assert [(step.name, step.count) for step in steps] == [
        ("series found", 29), ("encoded", 24), ("scans in the bag file", 24), ("joined to a label row", 23),
        ("used", 20), ("bags", 18), ("patients", 18),
    ]  # fmt: skip
    assert lost_in_extraction(steps) == Step(
        "encoded", 24, ((4, "set aside: localizer"), (1, "refused: uneven spacing"))
    )
    assert steps[3].lost == ((1, "scans have no label row"), (3, "of 26 label rows have no scan"))
    assert [n for n, _ in steps[4].lost + steps[5].lost] == [3, 2]
    assert material.gaps == []


def test_without_a_quality_record_the_flow_begins_at_the_bag_file(runs: dict[str, Path]) -> None:
    material = open_material(runs["mean"] / "run", Bags(runs["mean"] / "feats.h5"))
    assert cohort_flow(material)[0].name == "scans in the bag file"
    assert [gap.what for gap in material.gaps] == ["feats.qc.csv"]
