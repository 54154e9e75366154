"""What a task is: endpoints, windows, split, protocol and metrics under one name, checked when it is made."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Literal, cast, get_args

from clear.endpoints import Endpoint
from clear.errors import InputError
from clear.presets import GRID_NAMES, PRESETS
from clear.windows import Window
from clear.yaml_file import shown

JoinRule = Literal["all", "first", "earliest", "pool"]
Protocol = Literal["cv", "cv-test", "nested-cv"]
Several = Literal["pool", "average"]
JOIN_RULES: tuple[JoinRule, ...] = get_args(JoinRule)
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
METRICS = ("auroc", "average_precision")  # of a task that names none
RESERVED = frozenset(  # columns and rows of a run
    {"id", "scan_id", "series_uid", "study_uid", "patient_id", "macro", "split", "event", "one_of"}
)
_OF_CLASSES = ("auroc", "average_precision", "f1", "balanced_accuracy", "sensitivity_at_specificity", "brier", "ece")
METRICS_OF_KIND: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "binary": (*_OF_CLASSES, "accuracy", "kappa"),
        "multiclass": (*_OF_CLASSES, "accuracy", "kappa"),
        "ordinal": ("kappa", *_OF_CLASSES, "accuracy", "mae"),
        "regression": ("mae", "r2"),
        "survival": ("c_index",),
    }
)
KNOWN_METRICS = tuple(dict.fromkeys(name for names in METRICS_OF_KIND.values() for name in names))
ID_GROUPS = ("patient_id", "study_uid", "series_uid")


def metrics_for(kind: str, wanted: Sequence[str]) -> tuple[str, ...]:
    """Those of the wanted metrics that an endpoint of this kind can have; the first two of its kind when none can."""
    of_kind = METRICS_OF_KIND.get(kind, METRICS)  # a kind may still be open
    return tuple(name for name in wanted if name in of_kind) or of_kind[:2]


@dataclass(frozen=True)
class Task:
    """Endpoints, windows, protocol and metrics under one name.

    windows: those that the aggregator sees, matched with the bag file by name and range; empty takes all of the file.
    labels: name of the reader for the label files, a key of `clear.label_readers.READERS`; `table` reads one table.
    table: the label table of a task file, with `labels: table`; id_column: its column of ids, when that is not called
        scan_id, series_uid, study_uid or patient_id.
    join: what to do with a label row that matches several scans; None stops and asks.
    several: several scans of one patient: `pool` makes one bag a patient of them, `average` scores each scan and
        averages the scores of a patient, None keeps every scan a case of its own (folds still keep patients together).
    protocol: `cv`, out-of-fold scores of patient-grouped folds; `cv-test`, folds among the scans that the official
        split does not call test, scored on those that it does; `nested-cv`, folds whose hyper-parameters are chosen
        from `grid` on inner folds.
    grid: hyper-parameters of nested-cv: field of a Preset, or `aggregator`, to the values tried.
    metrics: names of KNOWN_METRICS; each endpoint has those that its kind allows, see `metrics_of`.
    modality: what files hold that do not say it (NIfTI, arrays), as `--modality`; empty judges by their values.
    select: the condition on series that extraction uses when none is given (`clear.plan.select_series`).
    ids: a regular expression over a scan's path whose groups (patient_id, study_uid, series_uid) name what the files
        do not say, see `clear.task_scans.name_scans`.
    patients: where patient ids come from, in words.
    """

    name: str
    description: str
    endpoints: tuple[Endpoint, ...]
    windows: tuple[Window, ...] = ()
    labels: str = "table"
    table: str = ""
    id_column: str = ""
    join: JoinRule | None = None
    several: Several | None = None
    protocol: Protocol = "cv"
    folds: int = 5
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=lambda: MappingProxyType({}))
    preset: str = "adaptive"
    metrics: tuple[str, ...] = METRICS
    modality: str = ""
    select: str = ""
    ids: str = ""
    patients: str = ""
    citation: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise InputError("task: its name is empty; expected a word that names its labels and runs")
        self._check_endpoints()
        self._choice("preset", self.preset, tuple(PRESETS))
        self._choice("join", self.join, (None, *JOIN_RULES))
        self._choice("protocol", self.protocol, PROTOCOLS)
        self._choice("several", self.several, (None, *get_args(Several)))
        if isinstance(self.folds, bool) or not isinstance(self.folds, int) or self.folds < 2:
            raise InputError(f"task {self.name}: folds is {shown(self.folds)}; expected a whole number, 2 or more")
        if _contradict(self.join, self.several):
            raise InputError(
                f"task {self.name}: several is {self.several!r} but join is {self.join!r}; `pool` makes one bag a "
                "patient, so it goes with nothing else. Leave one of them out"
            )
        if "pool" in (self.join, self.several):  # two words for one decision
            object.__setattr__(self, "join", self.join or "pool")
            object.__setattr__(self, "several", self.several or "pool")
        for metric in self.metrics:
            self._choice("metrics", metric, KNOWN_METRICS)
        self._check_grid()
        self._check_ids()

    def metrics_of(self, endpoint: Endpoint) -> tuple[str, ...]:
        """The metrics of one endpoint, `metrics_for` its kind."""
        return metrics_for(endpoint.kind, self.metrics)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data = {each.name: getattr(self, each.name) for each in fields(self)}
        data["endpoints"] = [endpoint.as_dict() for endpoint in self.endpoints]
        data["windows"] = [window.as_dict() for window in self.windows]
        data["grid"] = {name: list(values) for name, values in self.grid.items()}
        return data | {"metrics": list(self.metrics), "notes": list(self.notes)}

    def _check_endpoints(self) -> None:
        names = [endpoint.name for endpoint in self.endpoints]
        if not all(name.strip() for name in names):
            raise InputError(f"task {self.name}: endpoints: the name of one is empty; expected a column's name")
        if not names or len(set(names)) != len(names):
            raise InputError(
                f"task {self.name}: endpoints: expected endpoints with different names; found {shown(names)}"
            )
        taken = [name for name in names if name in RESERVED]
        if taken:
            raise InputError(
                f"task {self.name}: {taken[0]!r} names an id, a split or a mean, not something to predict; choose "
                "another column, or rename this one"
            )

    def _choice(self, name: str, found: Any, expected: tuple[Any, ...]) -> None:
        if found not in expected:
            listed = ", ".join("none" if each is None else str(each) for each in expected)
            raise InputError(f"task {self.name}: {name} is {shown(found)}; expected one of {listed}")

    def _check_grid(self) -> None:
        if self.grid and self.protocol != "nested-cv":
            raise InputError(f"task {self.name}: grid: only nested-cv tries values; the protocol is {self.protocol}")
        for name, values in self.grid.items():
            self._choice("grid", name, GRID_NAMES)
            if not isinstance(values, tuple) or not values or len(set(values)) != len(values):
                raise InputError(f"task {self.name}: grid.{name} is {shown(values)}; expected different values to try")
            if name != "aggregator":
                for value in values:
                    PRESETS[self.preset].with_changes(**{name: value})

    def _check_ids(self) -> None:
        if not self.ids:
            return
        try:
            groups = re.compile(self.ids).groupindex
        except re.error as error:
            raise InputError(
                f"task {self.name}: ids is {shown(self.ids)}: not a regular expression ({error})"
            ) from error
        if not groups or not set(groups) <= set(ID_GROUPS):
            raise InputError(
                f"task {self.name}: ids is {shown(self.ids)}; expected named groups (?P<patient_id>...) out of "
                f"{', '.join(ID_GROUPS)}; found {sorted(groups) or 'none'}"
            )


def rule_of_scans(
    task: Task, join: JoinRule | None = None, several: str | None = None
) -> tuple[JoinRule | None, Several | None]:
    """(join rule, several) that hold: what is given here, else the task's; `average` alone means join `all`.

    Raises InputError for a word that is none, and for two that contradict each other.
    """
    if several is not None and several not in get_args(Several):
        raise InputError(
            f"--several {several}: expected pool (one bag a patient) or average (of the scans' predictions)"
        )
    if join is None and several is None:
        join, several = task.join, task.several
    if _contradict(join, several):
        raise InputError(
            f"--join {join} and --several {several} exclude each other: pool makes one bag a patient; leave one out"
        )
    rule = join or _RULE_OF_SEVERAL[several]
    return rule, "pool" if rule == "pool" else cast("Several | None", several)


def _contradict(join: str | None, several: str | None) -> bool:
    return join is not None and several is not None and (join == "pool") != (several == "pool")


_RULE_OF_SEVERAL: Mapping[str | None, JoinRule | None] = {None: None, "pool": "pool", "average": "all"}
