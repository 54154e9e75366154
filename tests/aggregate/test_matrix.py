"""A matrix of questions: each cell once, go on where it stopped, ours beside the papers'."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
import pytest
import yaml

import aggregate.matrix
from aggregate.matrix import crossval
from aggregate.published import published
from clear.errors import InputError
from clear.labels import write_labels
from clear.tasks import TASKS

SETTINGS = {"folds": 2, "epochs": 1, "batch": 8}


@pytest.fixture
def matrix(make_bags, planted, tmp_path: Path):
    """Writes a matrix file of two encoders, two aggregators and a task, with changes; counts what is trained."""
    features, labels = planted(n=16)
    make_bags(features, name="a.h5")
    make_bags(
        {scan: rows * 2 for scan, rows in features.items()},
        name="b.h5",
        digests={s: f"{i:064x}" for i, s in enumerate(features)},
    )
    pl.DataFrame({"patient_id": list(labels), "y": list(labels.values())}).write_csv(tmp_path / "y.csv")

    def write(**changes: object) -> Path:
        spec = {
            "encoders": {"one": "a.h5", "two": "b.h5"},
            "aggregators": ["mean", "abmil"],
            "tasks": [{"labels": "y.csv", "target": "y"}],
            "settings": SETTINGS,
            **changes,
        }
        path = tmp_path / "matrix.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in spec.items() if v is not None}))
        return path

    return write


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the runs that are computed, as they are."""
    names: list[str] = []
    original = aggregate.matrix.train

    def counted(*args, **kwargs):
        names.append(Path(kwargs["output"]).name)
        return original(*args, **kwargs)

    monkeypatch.setattr(aggregate.matrix, "train", counted)
    return names


def test_every_cell_is_computed_once_and_a_second_call_computes_nothing(matrix, trained: list[str]) -> None:
    first = crossval(matrix(), progress=False)
    assert len(first.cells) == len(set(trained)) == first.computed == 4
    again = crossval(matrix(), progress=False)
    assert again.computed == 0
    assert len(trained) == 4
    assert again.table.equals(first.table)
    assert first.exit_status == 0


def test_it_goes_on_where_it_stopped(matrix, trained: list[str]) -> None:
    first = crossval(matrix(), progress=False)
    shutil.rmtree(first.runs[first.cells[2]].path)
    (first.runs[first.cells[3]].path / "run.json").unlink()  # a run folder half-written
    shutil.move(first.runs[first.cells[3]].path, first.path / "elsewhere")
    del trained[:]
    crossval(matrix(), progress=False)
    assert trained == [cell.folder for cell in first.cells[2:]]


def test_a_cell_is_known_by_its_content_and_not_by_its_name(matrix, trained: list[str], tmp_path: Path) -> None:
    crossval(matrix(), progress=False)
    shutil.copy(tmp_path / "a.h5", tmp_path / "renamed.h5")
    del trained[:]
    renamed = crossval(matrix(encoders={"first": "renamed.h5", "two": "b.h5"}), progress=False)
    assert trained == []
    assert {cell.encoder for cell in renamed.runs} == {"first", "two"}
    table = pl.read_csv(tmp_path / "y.csv")
    table.with_columns(y=1 - table["y"]).write_csv(tmp_path / "y.csv")
    crossval(matrix(), progress=False)
    assert len(trained) == 4
    del trained[:]
    crossval(matrix(settings={**SETTINGS, "seed": 1}), progress=False)
    assert len(trained) == 4


def test_the_table_has_mean_and_sd_over_folds_and_the_best_in_bold(matrix, tmp_path: Path) -> None:
    result = crossval(matrix(), progress=False)
    own = result.table.filter(source="ours", metric="auroc")
    for cell, run in result.runs.items():
        metric = run.metrics.filter(metric="auroc", estimator="fold_mean").row(0, named=True)
        row = own.filter(row=f"{cell.encoder}, {cell.aggregator}").row(0, named=True)
        assert row["mean"] == pytest.approx(100 * metric["estimate"])
        assert row["sd"] == pytest.approx(100 * metric["fold_sd"])
    best = own.filter(pl.col("best"))
    assert set(best["mean"]) == {own["mean"].max()}
    assert f"**{own['mean'].max():.1f} ± " in result.markdown
    assert "acquisition, no image" in result.markdown
    assert (result.path / "table.md").read_text() == result.markdown
    assert pl.read_csv(result.path / "table.csv").height == result.table.height


def test_published_rows_stand_beside_ours_and_what_does_not_compare_stands_apart(
    make_bags, planted, matrix, tmp_path: Path
) -> None:
    _, labels = planted(n=16)
    for task in ("deeplesion", "mrnet"):
        columns = {e.name: [(y + i // 4) % 2 for i, y in enumerate(labels.values())] for e in TASKS[task].endpoints}
        frame = pl.DataFrame({"scan_id": list(labels), "patient_id": list(labels), **columns})
        write_labels(tmp_path / "a.h5", task, frame, TASKS[task].endpoints)
    tasks = [{"task": "deeplesion", "protocol": "cv"}, {"task": "mrnet", "protocol": "cv", "windows": ["lung"]}]
    text = crossval(matrix(encoders={"one": "a.h5"}, aggregators=["mean"], tasks=tasks), progress=False).markdown
    first, second = text.split("## mrnet: auroc")[0], "## mrnet: auroc" + text.split("## mrnet: auroc")[1]
    assert "| VMamba-MoCo (CLEAR (MICCAI 2025), table 2) † |" in first
    assert "† scored on the authors own 20 % patient split" in first
    assert "not comparable" not in first
    beside, apart = second.split("Published, not comparable:")
    assert "MST (DINOv2 frozen) (MST, table 3 (backbone)) † |" in beside
    assert "3D ResNet50" in apart
    assert "Difference: encoder fine-tuned end to end" in apart
    assert "10.1038/s41598-025-09041-8" in apart
    assert published("mrnet", "auroc").filter(comparable="no").height == apart.split("Difference")[0].count(
        "(MST, table"
    )


def test_a_cell_that_fails_is_listed_and_the_others_go_on(matrix, tmp_path: Path) -> None:
    pl.DataFrame({"patient_id": ["x"], "y": [1]}).write_csv(tmp_path / "alien.csv")
    tasks = [{"labels": "alien.csv", "target": "y"}, {"labels": "y.csv", "target": "y"}]
    result = crossval(matrix(tasks=tasks, encoders={"one": "a.h5"}), progress=False)
    assert len(result.failures) == len(result.runs) == 2
    assert result.exit_status == 3
    assert "failed: y-one-mean" in result.summary()


def test_windows_are_a_dimension_too(matrix) -> None:
    windows = {"both": ["abdomen", "lung"], "lung": ["lung"]}
    result = crossval(matrix(windows=windows, encoders={"one": "a.h5"}, aggregators=["mean"]), progress=False)
    assert [len(run.windows) for run in result.runs.values()] == [2, 1]
    assert "| model | windows |" in result.markdown


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"encoders": None}, "encoders: expected names with a bag file each"),
        ({"tasks": []}, "tasks: expected a list"),
        ({"speed": 3}, "no field speed; expected encoders"),
        ({"aggregators": ["best"]}, "no such aggregator"),
        ({"aggregators": [{"name": "abmil", "wings": 2}]}, "no option 'wings'"),
        ({"tasks": ["nope"]}, "no such task"),
        ({"tasks": [7]}, "expected a task's name"),
        ({"settings": [1]}, "settings: expected names"),
    ],
)
def test_a_matrix_that_is_none_says_which_field(matrix, changes, says: str) -> None:
    with pytest.raises(InputError, match=says):
        crossval(matrix(**changes), progress=False)


def test_a_file_that_is_no_yaml_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("a: [")
    with pytest.raises(InputError, match="is not YAML"):
        crossval(tmp_path / "m.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        crossval(tmp_path / "absent.yaml")
