"""What a DICOM object is, when it is no volume: the names under which such series are set aside.

Decided from the SOP class (PS3.4 B.5, PS3.6 A), the modality and the image type (PS3.3 C.7.6.1.1.2), in this order:
a dose report is one even when its page is stored as a CT secondary capture.
"""

from __future__ import annotations

from collections.abc import Sequence

IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1."
DIRECTORY_STORAGE = "1.2.840.10008.1.3.10"

MODALITY_OF_CLASS = {
    IMAGE_STORAGE + "2": "CT",
    IMAGE_STORAGE + "2.1": "CT",
    IMAGE_STORAGE + "2.2": "CT",
    IMAGE_STORAGE + "4": "MR",
    IMAGE_STORAGE + "4.1": "MR",
    IMAGE_STORAGE + "4.4": "MR",
    IMAGE_STORAGE + "128": "PT",
    IMAGE_STORAGE + "128.1": "PT",
    IMAGE_STORAGE + "130": "PT",
}
USED_MODALITIES = frozenset({"CT", "MR", "PT"})

# SOP class below IMAGE_STORAGE, or a prefix of it ending in a dot: reason. The longest match counts.
REASON_OF_CLASS = {
    "4.2": "spectroscopy",
    "4.3": "colour",
    "7": "screenshot",
    "7.": "screenshot",
    "9.": "waveform",
    "11.": "presentation_state",
    "30": "parametric_map",
    "66": "raw_data",
    "66.1": "registration",
    "66.2": "fiducials",
    "66.3": "registration",
    "66.4": "seg",
    "66.5": "seg",
    "66.6": "tractography",
    "66.7": "seg",
    "67": "value_mapping",
    "68.": "surface",
    "88.": "sr",
    "88.59": "key_object",
    "88.67": "dose_report",
    "88.68": "dose_report",
    "88.76": "dose_report",
    "104.": "document",
    "481.1": "rt_image",
    "481.2": "rtdose",
    "481.3": "rtstruct",
    "481.4": "rt_record",
    "481.5": "rtplan",
    "481.6": "rt_record",
    "481.7": "rt_record",
    "481.8": "rtplan",
    "481.9": "rt_record",
    "481.": "rt_object",
}
REASON_OF_MODALITY = {
    "RTSTRUCT": "rtstruct",
    "RTDOSE": "rtdose",
    "RTPLAN": "rtplan",
    "RTIMAGE": "rt_image",
    "RTRECORD": "rt_record",
    "SEG": "seg",
    "SR": "sr",
    "PR": "presentation_state",
    "KO": "key_object",
    "REG": "registration",
    "FID": "fiducials",
    "DOC": "document",
    "PLAN": "rtplan",
}
LOCALIZER_WORDS = frozenset({"LOCALIZER", "SCOUT", "SURVEY", "SURVIEW", "REF_SURVIEW", "TOPOGRAM", "SCANOGRAM"})
DOSE_WORDS = frozenset({"DOSE_INFO", "DOSEINFO", "DOSE INFO", "DOSE REPORT", "DOSE_REPORT"})
SCREEN_WORDS = frozenset({"SCREEN SAVE", "SCREENSAVE", "SCREENSHOT", "SCREEN CAPTURE"})

SENTENCES = {
    "localizer": "a localizer (overview image), not a stack of slices",
    "dose_report": "a dose report",
    "screenshot": "a secondary capture (screenshot or report page): its pixels are no measurement",
    "colour": "a colour image: its pixels are no measurement",
    "rtstruct": "a radiotherapy structure set: contours without pixels",
    "rtdose": "a radiotherapy dose grid",
    "rtplan": "a radiotherapy plan",
    "rt_image": "a radiotherapy portal image",
    "rt_record": "a radiotherapy treatment record",
    "rt_object": "a radiotherapy object",
    "seg": "a segmentation",
    "sr": "a structured report",
    "key_object": "a key object selection",
    "presentation_state": "a presentation state",
    "registration": "a registration",
    "fiducials": "a set of fiducial points",
    "tractography": "a tractography result",
    "value_mapping": "a table of real world values",
    "surface": "a surface scan",
    "spectroscopy": "MR spectroscopy, not an image",
    "parametric_map": "a parametric map computed from images",
    "raw_data": "raw scanner data, not an image",
    "waveform": "a waveform",
    "document": "an encapsulated document",
    "not_an_image": "an object without pixel data",
    "unsupported_modality": "of a modality that is not read",
}


def aside_reason(sop_class: str, modality: str, image_type: Sequence[str], *, colour: bool, pixels: bool) -> str:
    """Why an object is set aside, a key of SENTENCES; "" when it can be a slice or a stack of slices.

    sop_class: SOPClassUID; modality: as `modality_of` says; colour: more than one sample a pixel or a palette;
    pixels: whether it has a matrix of pixels at all.
    """
    words = {word.strip().upper() for word in image_type}
    if words & DOSE_WORDS:
        return "dose_report"
    if words & LOCALIZER_WORDS:
        return "localizer"
    reason = _reason_of_class(sop_class) or REASON_OF_MODALITY.get(modality, "")
    if reason:
        return reason
    if words & SCREEN_WORDS:
        return "screenshot"
    if not pixels:
        return "not_an_image"
    if modality not in USED_MODALITIES:
        return "unsupported_modality"
    return "colour" if colour else ""


def modality_of(sop_class: str, modality: str) -> str:
    """Modality (0008,0060), or what the SOP class implies where the tag is empty."""
    return modality.strip().upper() or MODALITY_OF_CLASS.get(sop_class, "")


def _reason_of_class(sop_class: str) -> str:
    if not sop_class.startswith(IMAGE_STORAGE):
        return ""
    name = sop_class[len(IMAGE_STORAGE) :]
    if name in REASON_OF_CLASS:
        return REASON_OF_CLASS[name]
    prefixes = [prefix for prefix in REASON_OF_CLASS if prefix.endswith(".") and name.startswith(prefix)]
    return REASON_OF_CLASS[max(prefixes, key=len)] if prefixes else ""
