"""LIDC-IDRI as downloaded: an XML file a scan beside its slices, whose readers outlined nodules on their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from clear.datasets.lidc import Outline, nodules
from clear.errors import InputError
from clear.labels import read_labels
from clear.tasks import TASKS

SERIES = "1.3.6.1.4.1.14519.5.2.1.6279.6001."
Nodule = tuple[int, int, int, int]  # left, top, slice, rating


def outline_xml(nodule: Nodule) -> str:
    left, top, at, rating = nodule
    edges = "".join(
        f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>"
        for x, y in ((left, top), (left + 6, top), (left + 6, top + 6), (left, top + 6))
    )
    return (
        f"<unblindedReadNodule><noduleID>n{left}</noduleID><characteristics><subtlety>5</subtlety>"
        f"<malignancy>{rating}</malignancy></characteristics><roi><imageZposition>{-100 - at}.0</imageZposition>"
        f"<imageSOP_UID>1.2.{at}</imageSOP_UID><inclusion>TRUE</inclusion>{edges}</roi></unblindedReadNodule>"
    )


SMALL = (
    "<unblindedReadNodule><noduleID>small</noduleID><roi><imageZposition>-100.0</imageZposition><imageSOP_UID>1.2.1"
    "</imageSOP_UID><inclusion>TRUE</inclusion><edgeMap><xCoord>9</xCoord><yCoord>9</yCoord></edgeMap></roi>"
    "</unblindedReadNodule><nonNodule><nonNoduleID>x</nonNoduleID></nonNodule>"
)


def write_xml(path: Path, series: str, readers: list[list[Nodule]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sessions = "".join(
        "<readingSession><annotationVersion>3.12</annotationVersion><servicingRadiologistID>anonymous"
        f"</servicingRadiologistID>{''.join(map(outline_xml, found))}{SMALL}</readingSession>"
        for found in readers
    )
    path.write_text(
        '<?xml version="1.0" encoding="UTF-8"?><LidcReadMessage uid="1.3.6" xmlns="http://www.nih.gov" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><ResponseHeader><Version>1.8.1</Version>'
        f"<SeriesInstanceUid>{SERIES}{series}</SeriesInstanceUid><StudyInstanceUID>1.3</StudyInstanceUID>"
        f"</ResponseHeader>{sessions}</LidcReadMessage>"
    )


HERE, NEAR, AWAY = (10, 10, 1), (13, 12, 1), (40, 40, 1)
SCANS: dict[str, list[list[Nodule]]] = {
    "1": [[(*HERE, 5)], [(*NEAR, 4)], [(*HERE, 3), (*AWAY, 1)], [(*AWAY, 1)]],  # mean 4 by three readers; AWAY by two
    "2": [[(*HERE, 1)], [(*NEAR, 2)], [(*HERE, 2)], []],
    "3": [[(*HERE, 2)], [(*HERE, 3)], [(*HERE, 4)], []],  # exactly 3
    "4": [[(*HERE, 5)], [(*HERE, 5)], [], []],  # two readers only
    "5": [[(*HERE, 1), (*AWAY, 5)], [(*HERE, 1), (*AWAY, 4)], [(*HERE, 1), (*AWAY, 5)], []],  # the worse one counts
}
MALIGNANCY = {"1": 1, "2": 0, "3": None, "4": None, "5": 1}


def write_download(folder: Path) -> Path:
    for number, readers in SCANS.items():
        write_xml(folder / "LIDC-XML-only" / "tcia-lidc-xml" / "157" / f"{number}.xml", number, readers)
    film = '<IdriReadMessage xmlns="http://www.nih.gov"><CXRreadingSession/></IdriReadMessage>'  # of the chest film
    (folder / "LIDC-XML-only" / "tcia-lidc-xml" / "157" / "9.xml").write_text(film)
    return folder


def test_the_most_suspicious_nodule_of_three_readers_is_the_scans_label(tmp_path: Path) -> None:
    frame = read_labels(write_download(tmp_path), TASKS["lidc-malignancy"]).frame
    assert dict(frame.select("id", "malignancy").iter_rows()) == {SERIES + key: v for key, v in MALIGNANCY.items()}


def test_outlines_of_two_readers_are_one_nodule_where_they_overlap_on_a_slice() -> None:
    def box(reader: int, left: int, at: str = "a") -> Outline:
        return Outline(reader, 3, {at: (left, left + 5, 0, 5)})

    def sizes(*outlines: Outline) -> list[int]:
        return sorted(len(nodule) for nodule in nodules(outlines))

    assert sizes(box(0, 0), box(1, 5)) == [2]  # they share a column of pixels
    assert sizes(box(0, 0), box(1, 6)) == [1, 1]
    assert sizes(box(0, 0), box(1, 0, "b")) == [1, 1]  # on another slice
    assert sizes(box(0, 0), box(0, 3)) == [1, 1]  # of one reader
    assert sizes(box(0, 0), box(1, 8), box(2, 4)) == [3]  # the third joins the two others
    assert sizes(box(2, 4), box(1, 8), box(0, 0)) == [3]  # whatever the order


def test_series_of_the_tree_join_and_the_chest_film_stays_out(tmp_path: Path, joined_of, dicom_series) -> None:
    root = write_download(tmp_path)
    for number in SCANS:
        place = root / "LIDC-IDRI" / f"LIDC-IDRI-000{number}" / "01-01-2000-NA-NA-30178" / "3000566.000000-NA-03192"
        dicom_series(place, f"LIDC-IDRI-000{number}", SERIES + number)
    film = root / "LIDC-IDRI" / "LIDC-IDRI-0001" / "01-01-2000-NA-NA-1" / "NA-28768"
    dicom_series(film, "LIDC-IDRI-0001", SERIES + "77", modality="DX")
    joined = joined_of(root, "lidc-malignancy")
    assert joined.frame["patient_id"].to_list() == ["LIDC-IDRI-0001", "LIDC-IDRI-0002", "LIDC-IDRI-0005"]
    assert joined.frame["malignancy"].to_list() == [1, 0, 1]


def test_volumes_of_luna16_join_by_their_name_and_get_patients_from_nbia(tmp_path: Path, joined_of) -> None:
    root = write_download(tmp_path)
    (root / "metadata.csv").write_text(
        "Series UID,Collection,Subject ID,Modality\n"
        + "".join(f"{SERIES}{number},LIDC-IDRI,LIDC-IDRI-000{number},CT\n" for number in SCANS)
    )
    (root / "subset0").mkdir()
    for number in ("1", "2"):
        values = np.random.default_rng(int(number)).integers(-1000, 500, (4, 6, 5)).astype(np.int16)
        sitk.WriteImage(sitk.GetImageFromArray(values), str(root / "subset0" / f"{SERIES}{number}.mhd"))
    joined = joined_of(root, "lidc-malignancy")
    assert joined.frame.select("scan_id", "patient_id", "malignancy").rows() == [
        (f"subset0/{SERIES}1", "LIDC-IDRI-0001", 1),
        (f"subset0/{SERIES}2", "LIDC-IDRI-0002", 0),
    ]


def test_other_xml_is_no_label_and_damage_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text("<notes/>")
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa">]><LidcReadMessage>&a;</LidcReadMessage>'
    (tmp_path / "b.xml").write_text(bomb)
    with pytest.raises(InputError, match="none of its XML files is a LidcReadMessage"):
        read_labels(tmp_path, TASKS["lidc-malignancy"])
    (tmp_path / "c.xml").write_text("<LidcReadMessage><ResponseHeader>")
    with pytest.raises(InputError, match=r"c\.xml: the XML is damaged"):
        read_labels(tmp_path, TASKS["lidc-malignancy"])


@pytest.mark.parametrize(
    ("edge", "says"),
    [
        ("<xCoord>12.5</xCoord><yCoord>3</yCoord>", r"an edgeMap of '12\.5' and '3'; expected two whole numbers"),
        ("<xCoord>12</xCoord>", "an edgeMap of '12' and ''"),
        ("<xCoord>12</xCoord><yCoord>" + "9" * 5000 + "</yCoord>", "an edgeMap of '12' and '999"),
    ],
)
def test_an_outline_that_is_no_pixels_is_named(tmp_path: Path, edge: str, says: str) -> None:
    write_xml(tmp_path / "a.xml", "1", [[(*HERE, 5)]])
    text = (tmp_path / "a.xml").read_text()
    (tmp_path / "a.xml").write_text(text.replace("<xCoord>9</xCoord><yCoord>9</yCoord>", edge))
    with pytest.raises(InputError, match=rf"a\.xml: .*{says}") as error:
        read_labels(tmp_path, TASKS["lidc-malignancy"])
    assert len(str(error.value)) < len(str(tmp_path)) + 300


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_file_that_hides_its_entities_in_another_encoding_is_refused(tmp_path: Path, encoding: str) -> None:
    name = b" LidcReadMessage".decode("utf-16-le" if encoding != "utf-16-be" else "utf-16-be")
    text = (
        f'<?xml version="1.0" encoding="UTF-16"?><!DOCTYPE LidcReadMessage [<!ENTITY u "1.2.3">]><!--{name}-->'
        "<LidcReadMessage><SeriesInstanceUid>&u;</SeriesInstanceUid></LidcReadMessage>"
    )
    (tmp_path / "a.xml").write_bytes(text.encode(encoding))
    with pytest.raises(InputError, match=r"a\.xml: is not UTF-8"):
        read_labels(tmp_path, TASKS["lidc-malignancy"])
