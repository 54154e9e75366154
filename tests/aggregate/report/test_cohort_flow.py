"""The cohort's flow, from the quality record and run.json."""

from __future__ import annotations

from pathlib import Path

from aggregate.report.cautions import cautions
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


def test_rare_reasons_are_counted_by_status_so_that_refused_series_stay_visible(copied) -> None:  # type: ignore[no-untyped-def]
    folder: Path = copied("mean")
    rows = [QualityRow(scan_id=f"s{i}", status="done") for i in range(24)]
    for number in range(6):
        reason = f"reason_{number}"
        rows += [QualityRow(scan_id=f"a{number}{i}", status="set aside", reason=reason) for i in range(9 - number)]
    for status, n in (("refused", 3), ("failed", 2), ("set aside", 1)):
        rows += [QualityRow(scan_id=f"{status}{i}", status=status, reason=f"rare_{i}") for i in range(n)]  # type: ignore[arg-type]
    write_quality(folder / "feats.qc.csv", rows)
    material = open_material(folder / "run", Bags(folder / "feats.h5"))
    flow = cohort_flow(material)
    encoded = lost_in_extraction(flow)
    assert encoded is not None
    assert encoded.lost[:6] == tuple((9 - i, f"set aside: reason {i}") for i in range(6))
    assert encoded.lost[6:] == (
        (3, "refused: other reasons"), (2, "failed: other reasons"), (1, "set aside: other reasons"),
    )  # fmt: skip
    (said,) = [caution.text for caution in cautions(material, [], flow) if caution.about == "refused scans"]
    assert said.startswith("5 of 69 series were not encoded (3 refused: other reasons; 2 failed: other reasons)")


def test_without_a_quality_record_the_flow_begins_at_the_bag_file(runs: dict[str, Path]) -> None:
    material = open_material(runs["mean"] / "run", Bags(runs["mean"] / "feats.h5"))
    assert cohort_flow(material)[0].name == "scans in the bag file"
    assert [gap.what for gap in material.gaps] == ["feats.qc.csv"]
