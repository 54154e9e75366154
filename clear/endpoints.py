"""Endpoints: what one target column is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from clear.errors import InputError


@dataclass(frozen=True)
class Endpoint:
    """One target column.

    kind: `binary`, `multiclass`, or `auto` (inferred from the column's values when the labels are read).
    classes: names in code order; for binary (negative, positive). Empty while the kind is `auto`.
    column: the label table's column; the endpoint's own name when empty.
    """

    name: str
    kind: Literal["auto", "binary", "multiclass"] = "auto"
    classes: tuple[str, ...] = ()
    column: str = ""

    def __post_init__(self) -> None:
        expected = {"auto": (0, 0), "binary": (2, 2), "multiclass": (3, 10_000)}
        if self.kind not in expected:
            raise InputError(f"endpoint {self.name}: kind is {self.kind!r}; expected auto, binary or multiclass")
        low, high = expected[self.kind]
        if not low <= len(self.classes) <= high or len(set(self.classes)) != len(self.classes):
            raise InputError(
                f"endpoint {self.name}: a {self.kind} endpoint cannot have the classes {list(self.classes)}; "
                "binary has 2 different ones, multiclass 3 or more, auto none"
            )

    @property
    def source_column(self) -> str:
        """The column of the label table that holds the values."""
        return self.column or self.name

    @property
    def n_out(self) -> int:
        """Outputs of a model for this endpoint: one logit when binary, else one a class."""
        return 1 if self.kind == "binary" else len(self.classes)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"name": self.name, "kind": self.kind, "classes": list(self.classes), "column": self.source_column}
