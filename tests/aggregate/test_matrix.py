"""A matrix of questions: each cell once, go on where it stopped, ours beside the papers'."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import yaml

import aggregate.matrix
import aggregate.matrix_key
from aggregate.matrix import crossval
from aggregate.matrix_tables import deviation
from aggregate.published import published
from clear.errors import InputError
from clear.labels import write_labels
from clear.tasks import PRESETS, TASKS

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


def test_a_cell_trained_in_another_precision_is_another_cell(
    matrix, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = []
    for precision in ("float32", "bfloat16"):
        monkeypatch.setattr(aggregate.matrix, "training_precision", lambda asked, device, found=precision: found)
        keys.append({cell.key for cell in crossval(matrix(), progress=False).cells})
    assert len(trained) == 8
    assert not keys[0] & keys[1]


def test_a_change_of_features_alone_is_computed_again(matrix, trained: list[str], make_bags, planted) -> None:
    """The same scans and digests, encoded otherwise: what a bag file's own digest does not say."""
    crossval(matrix(), progress=False)
    del trained[:]
    make_bags({scan: -rows for scan, rows in planted(n=16)[0].items()}, name="a.h5")
    again = crossval(matrix(), progress=False)
    assert [name.rsplit("-", 1)[0] for name in trained] == ["y-one-mean", "y-one-abmil"]
    assert again.computed == 2


def test_what_a_preset_and_a_baseline_table_hold_is_part_of_the_question(
    matrix, trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pl.DataFrame({"patient_id": [f"scan{i:03d}" for i in range(16)], "age": range(16)})
    rows.write_csv(tmp_path / "ages.csv")
    one = {"encoders": {"one": "a.h5"}, "aggregators": ["mean"], "settings": {**SETTINGS, "baselines": ["ages.csv"]}}
    run = next(iter(crossval(matrix(**one), progress=False).runs.values()))
    assert set(run.baselines["baseline"]) == {"ages"}
    rows.with_columns(age=pl.col("age") * pl.col("age")).write_csv(tmp_path / "ages.csv")
    assert crossval(matrix(**one), progress=False).computed == 1
    preset = replace(PRESETS["adaptive"], weight_decay=0.5)
    monkeypatch.setattr("aggregate.question.PRESETS", {**PRESETS, "adaptive": preset})
    assert crossval(matrix(**one), progress=False).computed == 1
    assert crossval(matrix(**one), progress=False).computed == 0


def test_bag_files_are_read_once_and_again_only_when_they_change(matrix, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = aggregate.matrix_key._content
    monkeypatch.setattr(aggregate.matrix_key, "_content", lambda path: read.append(path.name) or original(path))
    crossval(matrix(), progress=False)
    crossval(matrix(), progress=False)
    assert read == ["a.h5", "b.h5"]


def test_two_entries_of_one_name_need_names_of_their_own(matrix, tmp_path: Path) -> None:
    table = pl.read_csv(tmp_path / "y.csv")
    table.with_columns(y=1 - table["y"]).write_csv(tmp_path / "other.csv")
    entries = [{"labels": "y.csv", "target": "y"}, {"labels": "other.csv", "target": "y"}]
    one = {"encoders": {"one": "a.h5"}, "aggregators": ["mean"]}
    with pytest.raises(InputError, match=r"two cells are called y, one, mean; name the tasks apart"):
        crossval(matrix(tasks=entries, **one), progress=False)
    result = crossval(
        matrix(tasks=[{"name": "first", **entries[0]}, {"name": "second", **entries[1]}], **one), progress=False
    )
    assert [cell.task for cell in result.runs] == ["first", "second"]
    assert result.table.filter(source="ours")["task"].unique().sort().to_list() == ["first", "second"]


def test_rows_of_different_scans_are_never_compared(matrix, make_bags, planted, tmp_path: Path) -> None:
    features, _ = planted(n=16)
    make_bags({scan: rows for scan, rows in features.items() if scan < "scan012"}, name="b.h5")
    result = crossval(matrix(encoders={"one": "a.h5", "two": "b.h5", "three": "a.h5"}), progress=False)
    own = result.table.filter(source="ours", metric="auroc")
    assert dict(own.select("row", "n").iter_rows()) == {
        f"{encoder}, {name}": n
        for encoder, n in (("one", 16), ("two", 12), ("three", 16))
        for name in ("mean", "abmil")
    }
    for (_,), rows in own.group_by("scans"):
        assert set(rows.filter("best")["mean"]) == {rows["mean"].max()}
    assert own["scans"].n_unique() == 2
    assert "| one, mean | 16 (a) |" in result.markdown
    assert "| two, mean | 12 (b) |" in result.markdown
    assert "| acquisition, no image | 12 (b) |" in result.markdown
    alone = crossval(
        matrix(encoders={"one": "a.h5", "two": "b.h5"}, aggregators=["mean"]), progress=False
    ).table.filter(source="ours")  # fmt: skip
    assert not alone["best"].any()


def test_published_rows_do_not_compare_with_a_question_of_our_own() -> None:
    """The task's protocol, windows and patients, or the difference named."""
    task = TASKS["deeplesion"].as_dict()
    kept = {"task": task, "protocol": "cv-test", "group": "", "windows": task["windows"]}
    assert deviation(kept) == ""
    assert deviation({**kept, "windows": task["windows"][::-1]}) == ""
    assert deviation({**kept, "protocol": "cv"}) == "protocol cv instead of cv-test"
    found = deviation({**kept, "protocol": "cv", "group": "site", "windows": task["windows"][1:]})
    assert found.endswith("each site held out, windows lung instead of abdomen, lung")


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
    split = pl.Series("split", ["train"] * 8 + ["val"] * 2 + ["test"] * 6)
    for task in ("deeplesion", "mrnet"):
        columns = {e.name: [(y + i // 4) % 2 for i, y in enumerate(labels.values())] for e in TASKS[task].endpoints}
        frame = pl.DataFrame({"scan_id": list(labels), "patient_id": list(labels), "split": split, **columns})
        write_labels(tmp_path / "a.h5", task, frame, TASKS[task].endpoints)
    tasks = ["deeplesion", {"task": "mrnet", "protocol": "cv", "windows": ["lung"]}]
    text = crossval(matrix(encoders={"one": "a.h5"}, aggregators=["mean"], tasks=tasks), progress=False).markdown
    first, second = text.split("## mrnet: auroc")[0], "## mrnet: auroc" + text.split("## mrnet: auroc")[1]
    assert "| VMamba-MoCo (CLEAR (MICCAI 2025), table 2) † |" in first
    assert "† scored on the authors own 20 % patient split" in first
    assert "not comparable" not in first
    beside, apart = second.split("Published, not comparable:")
    assert "MST, table" not in beside
    assert "MST (DINOv2 frozen) (MST, table 3 (backbone)) |" in apart
    assert "3D ResNet50" in apart
    assert "own 80/20 split; ours: protocol cv instead of cv-test, windows lung instead of" in apart
    assert "10.1038/s41598-025-09041-8" in apart
    assert published("mrnet", "auroc").height == apart.split("Difference")[0].count("(MST, table")


def test_the_papers_crops_and_sides_compare_with_no_question_of_whole_scans() -> None:
    for task in ("lidc-malignancy", "duke-breast"):
        assert set(published(task, "auroc")["comparable"]) == {"no"}


def test_a_cell_that_fails_is_listed_and_the_others_go_on(matrix, tmp_path: Path) -> None:
    pl.DataFrame({"patient_id": ["x"], "y": [1]}).write_csv(tmp_path / "alien.csv")
    tasks = [{"labels": "alien.csv", "target": "y"}, {"name": "own", "labels": "y.csv", "target": "y"}]
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
        ({"settings": {"epoch": 3}}, "settings: no setting epoch; expected some of .*epochs"),
        ({"settings": {"folds": "5"}}, "settings: folds is '5'; expected a whole number"),
        ({"settings": {"lr": "fast"}}, "lr is 'fast'; expected a number above 0"),
        ({"settings": {"windows": 3}}, "windows is 3; expected a text, or a list of texts"),
        ({"settings": {"grid": {"lr": 1}}}, "expected names with a list of values each"),
        ({"settings": {"device": "cpu"}}, "settings: no setting device"),
        ({"tasks": [{"labels": 7, "target": "y"}]}, "tasks: labels is 7; expected a text"),
        ({"tasks": [{"name": "", "labels": "y.csv", "target": "y"}]}, "name: expected a text"),
        ({"aggregators": ["mean", "mean"]}, "two cells are called y, one, mean"),
    ],
)
def test_a_matrix_that_is_none_says_which_field(matrix, changes, says: str) -> None:
    with pytest.raises(InputError, match=says):
        crossval(matrix(**changes), progress=False)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("output: [&a [x, x]]\nencoders: [*a, *a]", r"line 2: refers to an earlier value"),
        ("output: 2020-13-45", r"line 1: '2020-13-45' looks like"),
        ("encoders: " + "9" * 5000, "line 1: .*quotation marks"),
        ("encoders: [" + "x, " * 9999 + "]", r"encoders: expected names with a bag file each; found \['x', 'x'"),
        ("#" * 2**21, "larger than 1 MiB"),
    ],
)
def test_a_matrix_of_hostile_yaml_is_one_short_sentence(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(InputError, match=says) as error:
        crossval(tmp_path / "m.yaml")
    assert len(str(error.value)) < len(str(tmp_path)) + 300


def test_a_file_that_is_no_yaml_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("a: [")
    with pytest.raises(InputError, match="is not YAML"):
        crossval(tmp_path / "m.yaml")
    with pytest.raises(InputError, match="does not exist; expected a matrix file"):
        crossval(tmp_path / "absent.yaml")


def test_the_example_of_the_documentation_is_a_matrix_of_the_demonstrations_bags(
    make_bags, planted, tmp_path: Path, trained: list[str]
) -> None:
    example = Path(__file__).parents[2] / "docs" / "matrix.yaml"
    for folder in ("docs", "demo/cohort"):
        (tmp_path / folder).mkdir(parents=True)
    spec = yaml.safe_load(example.read_text())
    spec["settings"] |= {"folds": 2, "epochs": 1, "batch": 8}
    (tmp_path / "docs" / "matrix.yaml").write_text(yaml.safe_dump(spec))
    features, labels = planted(n=16)
    shutil.move(make_bags(features), tmp_path / "demo" / "feats.h5")
    columns = {e.name: [(y + i // 4) % 2 for i, y in enumerate(labels.values())] for e in TASKS["demo"].endpoints}
    pl.DataFrame({"patient_id": list(labels), **columns}).write_csv(tmp_path / "demo" / "cohort" / "labels.csv")
    result = crossval(tmp_path / "docs" / "matrix.yaml", progress=False)
    assert result.failures == {}
    assert len(trained) == len(result.cells) == 6
    assert result.path.resolve() == (tmp_path / "demo" / "matrix").resolve()
    assert {cell.task for cell in result.cells} == {"demo", "emphysema"}
    assert "slice-transformer (positions rotary)" in result.markdown
    assert any("slice-transformer_positions_rotary-" in name for name in trained)
