"""Task files: YAML with the fields of a task, whose mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from clear.endpoints import Endpoint
from clear.errors import InputError
from clear.label_join import join_labels
from clear.labels import read_labels
from clear.plan import plan_table
from clear.scans import find_scans
from clear.task import Task
from clear.task_files import init_text, read_task_file
from clear.task_labels import find_labels
from clear.task_scans import name_scans
from clear.tasks import load_task
from clear.windows import ABDOMEN, LUNG, Window


def write(folder: Path, text: str) -> Path:
    path = folder / "own.yaml"
    path.write_text(text)
    return path


def test_every_field_of_a_task_can_be_written(tmp_path: Path) -> None:
    text = """
name: everything
description: one of each
endpoints:
  - fracture
  - {name: grade, kind: ordinal, classes: [1, 2, 3], column: Grading}
  - {name: os, kind: survival, column: days, event: died}
windows: [abdomen, "bone=-450..1050", {name: fat, low: -200, high: 0}]
table: tables/labels.csv
id_column: Fallnummer
join: earliest
several: average
protocol: nested-cv
folds: 4
grid: {lr: [1e-4, 0.001, 1], batch: [16, 32], aggregator: [abmil, mean]}
preset: paper
metrics: [auroc, kappa, c_index]
modality: CT
select: modality = 'CT'
ids: '(?P<patient_id>P\\d+)_'
patients: the file name
citation: ours
notes: [first, second]
"""
    assert load_task(write(tmp_path, text)) == Task(
        name="everything",
        description="one of each",
        endpoints=(
            Endpoint("fracture"),
            Endpoint("grade", "ordinal", ("1", "2", "3"), column="Grading"),
            Endpoint("os", "survival", column="days", event="died"),
        ),
        windows=(ABDOMEN, Window("bone", -450, 1050), Window("fat", -200, 0)),
        table=str(tmp_path / "tables" / "labels.csv"),
        id_column="Fallnummer",
        join="earliest",
        several="average",
        protocol="nested-cv",
        folds=4,
        grid={"lr": (1e-4, 0.001, 1.0), "batch": (16, 32), "aggregator": ("abmil", "mean")},
        preset="paper",
        metrics=("auroc", "kappa", "c_index"),
        modality="CT",
        select="modality = 'CT'",
        ids=r"(?P<patient_id>P\d+)_",
        patients="the file name",
        citation="ours",
        notes=("first", "second"),
    )


def test_the_template_is_a_task_that_works(tmp_path: Path) -> None:
    task = read_task_file(write(tmp_path, init_text()))
    assert (task.name, task.protocol, task.windows) == ("my-task", "cv", (ABDOMEN, LUNG))
    (tmp_path / "labels.csv").write_text("scan_id,fracture\na,present\nb,absent\nc,NA\n")
    place = find_labels(task, tmp_path / "scans")
    assert place == tmp_path / "labels.csv"
    assert read_labels(place, task).frame["fracture"].to_list() == [1, 0, None]


def test_every_commented_line_of_the_template_works_too(tmp_path: Path) -> None:
    text = init_text().replace("protocol: cv ", "protocol: nested-cv ")
    text = text.replace("windows: [abdomen, lung]\n# windows", "windows").replace("# notes: [what", "notes: [what")
    for line in text.splitlines():
        field = line.removeprefix("# ")
        if line.startswith(("# join:", "# several:", "# grid:", "#   ", "# select:", "# ids:", "  # ", "# id_column")):
            uncommented = "  " + line.removeprefix("  # ") if line.startswith("  # ") else field
            text = text.replace(line + "\n", uncommented + "\n")
    task = read_task_file(write(tmp_path, text.replace("# several: pool", "").replace("several: pool\n", "")))
    assert [endpoint.kind for endpoint in task.endpoints] == ["binary", "ordinal", "survival"]
    assert task.grid["aggregator"] == ("abmil", "mean")
    assert task.windows == (Window("bone", -450, 1050),)
    assert (task.join, task.id_column) == ("earliest", "Fallnummer")


def test_a_name_is_that_of_the_file_when_left_out(tmp_path: Path) -> None:
    assert read_task_file(write(tmp_path, "endpoints: [a]")).name == "own"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("endpoint: [a]", r"own\.yaml: no field 'endpoint'; did you mean 'endpoints'\?"),
        ("name: x", "endpoints is missing"),
        ("endpoints: a", "endpoints is 'a'; expected a list"),
        ("endpoints: [{kind: binary}]", r"endpoints\[0\] is .*at least `name`"),
        ("endpoints: [a, {name: b, klasses: [x, y]}]", r"endpoints\[1\]: no field 'klasses'; did you mean 'classes'"),
        ("endpoints: [{name: a, kind: binary, classes: [x]}]", r"endpoints\[0\]: endpoint a: a binary endpoint"),
        (
            "endpoints: [{name: a, kind: binary, classes: [no, yes]}]",
            r"classes is False; expected text \(write yes, no",
        ),
        ("endpoints: [{name: a, kind: many}]", r"endpoints\[0\]: endpoint a: kind is 'many'"),
        ("endpoints: [{name: a, kind: survival}]", r"endpoints\[0\]: endpoint a: .*event"),
        ("name: ''\nendpoints: [a]", "its name is empty"),
        ("name: ' '\nendpoints: [a]", "its name is empty"),
        ("endpoints: ['']", "the name of one is empty"),
        ("endpoints: [a, {name: ' ', kind: regression}]", "the name of one is empty"),
        ("name: 2020-13-45\nendpoints: [a]", "line 1: '2020-13-45' looks like"),
        ("notes: [&a [x, x]]\nendpoints: [*a, *a]", r"line 2: refers to an earlier value by '\*a'"),
        ("endpoints: [a, a]", "endpoints: expected endpoints with different names"),
        ("endpoints: [patient_id]", "'patient_id' names an id"),
        ("endpoints: [a]\nwindows: [bones]", r"windows\[0\]: expected one of abdomen, lung"),
        ("endpoints: [a]\nwindows: [{name: x, low: 5, high: 1}]", r"windows\[0\]: .*low < high"),
        ("endpoints: [a]\nwindows: [{name: x, width: 5}]", r"windows\[0\]: no field 'width'"),
        ("endpoints: [a]\nwindows: [3]", r"windows\[0\] is 3"),
        ("endpoints: [a]\nfolds: many", "folds is 'many'; expected a whole number"),
        ("endpoints: [a]\nfolds: 1", "folds is 1"),
        ("endpoints: [a]\njoin: sometimes", "join is 'sometimes'; expected one of none, all, first"),
        ("endpoints: [a]\nseveral: both", "several is 'both'"),
        ("endpoints: [a]\njoin: pool\nseveral: average", "several is 'average' but join is 'pool'"),
        ("endpoints: [a]\nprotocol: loo", "protocol is 'loo'; expected one of cv, cv-test, nested-cv"),
        ("endpoints: [a]\npreset: big", "preset is 'big'"),
        ("endpoints: [a]\nmetrics: [auc]", "metrics is 'auc'; expected one of auroc"),
        ("endpoints: [a]\nlabels: kaggle", "labels is 'kaggle'; expected one of table, deeplesion"),
        ("endpoints: [a]\nlabels: mrnet\ntable: x.csv", "table goes with `labels: table`"),
        ("endpoints: [a]\ngrid: {lr: [0.1]}", "grid: only nested-cv"),
        ("endpoints: [a]\nprotocol: nested-cv\ngrid: {rate: [1]}", "grid: no field 'rate'"),
        ("endpoints: [a]\nprotocol: nested-cv\ngrid: {lr: [fast]}", r"grid\.lr holds 'fast'; expected float"),
        ("endpoints: [a]\nprotocol: nested-cv\ngrid: {batch: [1.5]}", r"grid\.batch holds 1.5; expected int"),
        ("endpoints: [a]\nprotocol: nested-cv\ngrid: {lr: [-1]}", "lr is -1"),
        ("endpoints: [a]\nprotocol: nested-cv\ngrid: {lr: 0.1}", r"grid\.lr is 0.1; expected a list"),
        ("endpoints: [a]\nids: '('", "ids is .*not a regular expression"),
        ("endpoints: [a]\nids: '(?P<name>x)'", "ids is .*expected named groups"),
        ("endpoints: [a]\nname: [x]", r"name is \['x'\]; expected text"),
        ("- a\n- b", "expected fields with names.*found list"),
        ("endpoints: [a", r"is not YAML in line \d"),
        ("endpoints: !!python/object/apply:os.getcwd []", "is not YAML"),
    ],
)
def test_a_mistake_is_named_with_its_field(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        read_task_file(write(tmp_path, text))
    assert str(error.value).startswith(str(tmp_path / "own.yaml"))


@pytest.mark.parametrize("field", ["endpoints", "windows", "notes", "folds", "name", "join", "grid"])
def test_a_large_value_in_the_wrong_place_is_not_repeated_in_full(tmp_path: Path, field: str) -> None:
    large = "[" + ", ".join([f"[{', '.join(['x'] * 1000)}]"] * 20) + "]"
    endpoints = "" if field == "endpoints" else "endpoints: [a]\n"
    with pytest.raises(InputError) as error:
        read_task_file(write(tmp_path, f"{endpoints}{field}: {large}"))
    assert len(str(error.value)) < len(str(tmp_path)) + 500


def test_an_absent_file_says_how_to_begin(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not exist.*clear tasks init"):
        load_task(tmp_path / "none.yaml")


def test_the_file_for_the_real_nodules_finds_and_joins_their_table(shared_data: Path) -> None:
    task = load_task(Path(__file__).parent / "datasets" / "lidc-nodules.yaml")
    folder = shared_data / "data" / "labelled_lidc_nodules" / "image"
    table = find_labels(task, folder)
    assert table == folder.resolve().parent / "labels.csv"
    scans = plan_table(name_scans(find_scans(folder, cache=False, workers=1), task))
    joined = join_labels(read_labels(table, task), scans.with_columns(digest=scans["scan_id"]))
    assert (joined.frame.height, joined.flow["patients_used"], joined.frame["target"].sum()) == (414, 286, 167)
    assert joined.flow["label_rows_without_scan"] == 0


def test_the_example_of_the_manual_is_a_task_that_works(tmp_path: Path) -> None:
    manual = Path(__file__).parents[2] / "docs" / "tasks.md"
    text = manual.read_text(encoding="utf-8").split("```yaml\n", 1)[1].split("```", 1)[0]
    task = read_task_file(write(tmp_path, text))
    assert [endpoint.kind for endpoint in task.endpoints] == ["binary", "ordinal", "survival"]
    assert task.grid["lr"] == (1e-4, 1e-3)
