"""What was asked and how it was answered: task, labels, protocol, encoder and settings, as lines of a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aggregate.report.ids import Ids, file_name
from aggregate.report.material import Material
from clear.windows import Window

KINDS: Mapping[str, str] = {
    "binary": "two classes",
    "multiclass": "classes",
    "ordinal": "ordered classes",
    "regression": "a quantity",
    "survival": "time to an event",
    "auto": "not settled",
}


@dataclass(frozen=True)
class Asked:
    """One endpoint and how many bags have each label."""

    name: str
    kind: str
    counts: tuple[tuple[str, int], ...]


def asked(material: Material) -> list[Asked]:
    """The endpoints, with the numbers of run.json."""
    counts = material.part("label_counts")
    rows = []
    for endpoint in material.endpoints:
        known = counts.get(endpoint.name)
        pairs = tuple((str(name), int(n)) for name, n in known.items()) if isinstance(known, dict) else ()
        rows.append(Asked(endpoint.name, KINDS[endpoint.kind], pairs))
    return rows


def protocol(settings: Mapping[str, Any]) -> str:
    """How it was judged, as a phrase; "" when run.json does not say.

    >>> protocol({"n_folds": 5, "protocol": "cv", "repeats": 2})
    '5-fold cross-validation by patient, repeated 2 times'
    """
    folds, kind = settings.get("n_folds"), settings.get("protocol", "cv")
    if folds is None:
        return ""
    repeats = settings.get("repeats") or 1
    again = f", repeated {repeats} times" if repeats > 1 else ""
    if settings.get("group"):
        return f"cross-validation with each {settings['group']} held out, {folds} folds{again}"
    if kind == "cv-test":
        return f"{folds} models on folds by patient, all scored on the fixed test set{again}"
    if kind == "nested-cv":
        return f"nested {folds}-fold cross-validation by patient{again}"
    return f"{folds}-fold cross-validation by patient{again}"


def question_facts(material: Material, ids: Ids) -> list[tuple[str, str]]:
    """Task, labels and protocol."""
    settings, labels = material.settings, material.part("labels")
    task = material.part("task")
    several = {"pool": "pooled into one bag a patient", "average": "scores averaged by patient"}
    facts = [
        ("task", str(task.get("name", ""))),
        ("about", str(task.get("description", ""))),
        ("judged by", protocol(settings)),
        ("labels from", _place(str(labels.get("source", "")), ids)),
        ("joined by", _join(labels)),
        ("several scans of a patient", several.get(str(settings.get("several")), "") or "each a case of its own"),
        ("patients", str(task.get("patients", ""))),
        *(("note", ids.sentence(str(note), material.ids)) for note in (task.get("notes") or [])),
        ("cite", str(task.get("citation", ""))),
    ]
    return [(name, text) for name, text in facts if text] if settings.get("task") else []


def encoder_facts(material: Material, ids: Ids) -> list[tuple[str, str]]:
    """The bag file and what made it."""
    bags = material.part("bags")
    if not bags:
        return []
    made = {key: value for key, value in material.part("bags", "provenance").items() if key != "trained on"}
    card = {} if material.bags is None else material.bags.encoder_card
    facts = [
        ("encoder", str(bags.get("encoder", ""))),
        ("weights", str(bags.get("trained_on", ""))),
        ("licence", str(card.get("licence", "") or "")),
        ("encoder digest", str(bags.get("encoder_digest", ""))),
        ("embedding", f"{bags.get('dim')} values a slice and window"),
        ("windows", "; ".join(windows_text(settings_windows(material)))),
        ("input", _input(material.part("bags", "preprocessing"))),
        ("bag file", _place(str(bags.get("path", "")), ids)),
        ("bag file digest", str(bags.get("digest", ""))),
        ("made with", ", ".join(f"{key} {_value(value)}" for key, value in made.items())),
    ]
    return [(name, text) for name, text in facts if text]


def training_facts(material: Material, ids: Ids) -> list[tuple[str, str]]:
    """Aggregator, optimiser and machine."""
    settings, preset = material.settings, dict(material.part("training"))
    if "aggregator" not in settings:
        return []
    tried = material.part("grid")
    best = [fit["best_epoch"] for fit in material.fits if isinstance(fit.get("best_epoch"), int)]
    batches = sorted({fit["batch"] for fit in material.fits if "batch" in fit})
    files = {
        key: value for key, value in material.part("arguments").items() if isinstance(value, dict) and "path" in value
    }
    facts = [
        ("aggregator", str(settings["aggregator"])),
        ("options", _pairs(material.part("options"))),
        ("tried on inner folds", _pairs(tried)),
        ("preset", str(preset.pop("name", ""))),
        *((key.replace("_", " "), _value(value)) for key, value in preset.items()),
        ("batch used", ", ".join(map(str, batches))),
        ("best epoch of each model", ", ".join(map(str, best))),
        ("seed", _value(settings.get("seed"))),
        ("device", f"{settings.get('device')}, {settings.get('precision')}, {settings.get('threads')} threads"),
        *((f"file of {key.replace('_', ' ')}", _given(value, ids)) for key, value in files.items()),
        ("versions", ", ".join(f"{name} {version}" for name, version in material.part("versions").items())),
    ]
    return [(name, text) for name, text in facts if text]


def settings_windows(material: Material) -> tuple[Window, ...]:
    """The windows that the models were trained on; none when run.json does not say."""
    try:
        return material.run.windows
    except (KeyError, TypeError, ValueError):
        return ()


def windows_text(windows: tuple[Window, ...]) -> list[str]:
    """`abdomen -175 to 275 HU` and the like."""
    units = {"range": " HU", "percentile": "th percentile"}
    return [
        f"{window.name}, as the encoder prepares values"
        if window.kind == "encoder"
        else f"{window.name} {window.low:g} to {window.high:g}{units[window.kind]}"
        for window in windows
    ]


def _place(path: str, ids: Ids) -> str:
    return path if ids.show else file_name(path)


def _given(record: Mapping[str, Any], ids: Ids) -> str:
    digest = record.get("sha256")
    return _place(str(record["path"]), ids) + (f", sha256 {digest}" if digest else "")


def _join(labels: Mapping[str, Any]) -> str:
    by, rule = labels.get("joined_by"), labels.get("join")
    return f"{by}{f', rule {rule}' if rule else ''}" if by else ""


def _input(preprocessing: Mapping[str, Any]) -> str:
    if "input_size" not in preprocessing:
        return ""
    side, view = preprocessing["input_size"], preprocessing.get("field_of_view_mm")
    return f"{side} × {side} pixels, {preprocessing.get('resize', '')}" + (
        f", field of view {view:g} mm" if view else ""
    )


def _pairs(record: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_value(value)}" for key, value in record.items())


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return " or ".join(map(_value, value))
    if isinstance(value, dict):
        return _pairs(value)
    return str(value)
