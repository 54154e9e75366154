"""Endpoints: what one target column is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from clear.errors import InputError

Kind = Literal["auto", "binary", "multiclass", "ordinal", "regression", "survival"]
_CLASSES: Mapping[str, tuple[int, int]] = {
    "auto": (0, 0),
    "binary": (2, 2),
    "multiclass": (3, 10_000),
    "ordinal": (3, 10_000),
    "regression": (0, 0),
    "survival": (0, 0),
}


@dataclass(frozen=True)
class Endpoint:
    """One target column; two for survival.

    kind: `binary`, `multiclass`, `ordinal` (classes with an order), `regression` (a quantity), `survival` (a time, and
    whether it ends in the event), or `auto` (inferred from the column's values when the labels are read).
    classes: names in code order; for binary (negative, positive), for ordinal from the lowest. Empty for a quantity, a
    time, while the kind is `auto`, and for an ordinal endpoint of numbers until the labels are read.
    column: the label table's column; the endpoint's own name when empty. For survival the time.
    event: survival only, the column that says 1 = the event was seen at that time, 0 = censored then.
    """

    name: str
    kind: Kind = "auto"
    classes: tuple[str, ...] = ()
    column: str = ""
    event: str = ""

    def __post_init__(self) -> None:
        if self.kind not in _CLASSES:
            raise InputError(f"endpoint {self.name}: kind is {self.kind!r}; expected {', '.join(_CLASSES)}")
        low, high = _CLASSES[self.kind]
        settled_later = self.kind == "ordinal" and not self.classes
        fits = low <= len(self.classes) <= high or settled_later
        if not fits or len(set(self.classes)) != len(self.classes):
            raise InputError(
                f"endpoint {self.name}: a {self.kind} endpoint cannot have the classes {list(self.classes)}; "
                "binary has 2 different ones, multiclass and ordinal 3 or more, auto, regression and survival none"
            )
        if self.kind == "survival" and not self.event:
            raise InputError(
                f"endpoint {self.name}: a survival endpoint needs `event`, the column that says 1 = event, 0 = censored"
            )
        if self.event and self.kind != "survival":
            raise InputError(f"endpoint {self.name}: only a survival endpoint has an event column; this is {self.kind}")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Endpoint:
        """The endpoint that `as_dict` wrote, also by a version that knew no events."""
        return cls(data["name"], data["kind"], tuple(data["classes"]), data["column"], data.get("event", ""))

    @property
    def source_column(self) -> str:
        """The column of the label table that holds the values."""
        return self.column or self.name

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The columns of a frame of labels: codes, values or times, and for survival the events beside them."""
        return (self.name, f"{self.name}.event") if self.kind == "survival" else (self.name,)

    @property
    def is_classes(self) -> bool:
        """Whether a label is one of a few classes: binary, multiclass, ordinal."""
        return self.kind in ("binary", "multiclass", "ordinal")

    @property
    def n_out(self) -> int:
        """Outputs of a model: multiclass one a class, ordinal one less (cumulative logits), every other kind one."""
        if self.kind == "multiclass":
            return len(self.classes)
        return len(self.classes) - 1 if self.kind == "ordinal" else 1

    @property
    def score_classes(self) -> tuple[str, ...]:
        """What the rows of predictions.csv are named by: the positive class, every class, or "" for a number."""
        if not self.is_classes:
            return ("",)
        return self.classes[1:] if self.kind == "binary" else self.classes

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data = {"name": self.name, "kind": self.kind, "classes": list(self.classes), "column": self.source_column}
        return {**data, "event": self.event} if self.kind == "survival" else data
