"""From bags to answers on the command line: what each command shows, and how a newcomer's mistakes end."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from clear.__main__ import run
from clear.bags import Bag, BagHeader, ScanRow, write_bags
from clear.windows import LUNG

PATIENTS = [f"P{i:02d}" for i in range(24)]
SICK = [i % 2 for i in range(24)]
FAST = ["--device", "cpu", "--epochs", "2", "--batch", "8"]


def write(path: Path, patients: list[str], sick: list[int], digest: str = "0") -> Path:
    """A bag file of one scan a patient; the mean of the first feature tells who is sick."""
    rng = np.random.default_rng(len(path.name))
    header = BagHeader(
        encoder="fake",
        encoder_digest=digest * 64,
        encoder_card={},
        windows=(LUNG,),
        preprocessing={},
        provenance={"trained on": "nothing: a fake encoder"},
        dim=6,
        dtype="float32",
    )
    rows = [
        ScanRow(
            scan_id=f"s-{patient}",
            digest=hashlib.sha256(patient.encode()).hexdigest(),
            length=5,
            n_slices=5,
            spacing_mm=(1.0 + i % 3, 1.0, 1.0),
            plane="axial",
            modality="CT",
            patient_id=patient,
        )
        for i, patient in enumerate(patients)
    ]
    shift = {f"s-{patient}": 2.0 * here for patient, here in zip(patients, sick, strict=True)}

    def load(row: ScanRow) -> Bag:
        features = rng.standard_normal((5, 6)).astype(np.float32)
        features[:, 0] += shift[row.scan_id]
        place = np.arange(5)
        position = np.stack([0 * place, 0 * place, place], axis=1).astype(np.float32)
        window = np.zeros(5, np.uint8)
        return Bag(row.scan_id, features=features, slice=place.astype(np.int32), window=window, position_mm=position)

    write_bags(path, header, rows, load)
    return path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: feats.h5, new.h5 of other patients, table.csv and new.csv."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "feats.h5", PATIENTS, SICK)
    others = [f"N{i:02d}" for i in range(12)]
    write(tmp_path / "new.h5", others, [i % 2 for i in range(12)])
    columns = {
        "patient_id": PATIENTS,
        "sick": SICK,
        "site": ["north", "south", "west", "west"] * 6,
        "split": ["train"] * 14 + ["val"] * 2 + ["test"] * 8,
        "age": [40.5 + 2 * i for i in range(24)],
    }
    pl.DataFrame(columns).write_csv(tmp_path / "table.csv")
    pl.DataFrame({"patient_id": PATIENTS, "age": columns["age"]}).write_csv(tmp_path / "clinic.csv")
    pl.DataFrame({"patient_id": others, "sick": [i % 2 for i in range(12)]}).write_csv(tmp_path / "new.csv")
    return tmp_path


def answer(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    """What a command that must work prints."""
    status = run(list(command))
    shown = capsys.readouterr()
    assert status == 0, shown.err
    return shown.out


def refusal(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    """The one sentence of a command that must not."""
    assert run(list(command)) == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: ")
    assert len(error.splitlines()) == 1
    return error


def trained(capsys: pytest.CaptureFixture[str], *options: str, out: str = "run", table: str = "table.csv") -> str:
    given = ["--labels", table, "--target", "sick", "--folds", "3", *FAST, "--out", out]
    if "--group" in options:
        del given[4:6]
    return answer(capsys, "train", "feats.h5", *given, *options)


def test_tasks_are_listed_shown_and_begun(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "rad-chestct" in answer(capsys, "tasks", "list")
    shown = answer(capsys, "tasks", "show", "demo").splitlines()
    assert shown[2] == "endpoints     lung_nodule: binary"
    assert shown[3] == "              emphysema: binary"  # further lines of a field stand under it
    assert "clear train --task own.yaml feats.h5" in answer(capsys, "tasks", "init", "own.yaml")
    assert "endpoints     fracture: binary" in answer(capsys, "tasks", "show", "own.yaml")
    assert "own.yaml: exists and is not replaced" in refusal(capsys, "tasks", "init", "own.yaml")
    assert "no such task" in refusal(capsys, "tasks", "show", "nonsense")


def test_labels_are_attached_once_and_training_needs_no_more(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "name: own\ndescription: own\nendpoints: [sick]\nfolds: 3\n"
    (place / "own.yaml").write_text(text)
    error = refusal(capsys, "labels", "feats.h5", "--task", "own.yaml")
    assert "none were given. Give --labels TABLE, or --folder DIR" in error
    assert "labels of 24 of 24 scans (24 patients) from table.csv, by patient_id" in answer(
        capsys, "labels", "feats.h5", "--task", "own.yaml", "--labels", "table.csv"
    )
    assert (place / "feats.labels" / "own.parquet").is_file()
    assert "the run is in mine/" in answer(
        capsys, "train", "feats.h5", "--task", "own.yaml", *FAST, "--out", "mine"
    )  # fmt: skip


def test_a_run_is_named_predicted_and_compared(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = trained(capsys)
    assert "sick · abmil · 3-fold cross-validation by patient" in shown
    assert "baseline acquisition" in shown
    assert shown.endswith("the run is in run/\n")
    trained(capsys, "--aggregator", "mean", "--baseline", "none", out="mean")
    compared = answer(capsys, "compare", "run", "mean", "--out", "c.csv")
    assert "A - B (95 % CI)" in compared
    assert "paired DeLong" in compared
    assert "the runs have other folds" not in compared
    assert "paired DeLong" in pl.read_csv("c.csv")["test"].to_list()
    predicted = answer(capsys, "predict", "run", "new.h5", "--labels", "new.csv")
    assert "12 bags scored by 3 models" in predicted
    assert "AUROC, ensemble (95 % CI)" in predicted
    assert "scores are in predictions/run-on-new/" in predicted
    scores = pl.read_csv("predictions/run-on-new/predictions.csv")
    assert scores.height == 12
    assert scores["y_score"].is_between(0, 1).all()
    own = answer(capsys, "predict", "run", "feats.h5", "--labels", "table.csv", "--out", "own")
    assert "24 patients were seen in this run's training" in own
    assert "no external metrics" in own


def test_another_site_or_a_fixed_test_set_is_asked_for_by_a_column(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = trained(capsys, "--group", "site", "--baseline", "clinic.csv", out="site")
    assert "cross-validation with each site held out, 3 folds" in shown
    assert "baseline clinic" in shown
    assert "--group site: folds 0 = north, 1 = south, 2 = west" in shown
    trained(capsys)
    assert "note: the runs have other folds, so the split is part of the difference" in answer(
        capsys, "compare", "run", "site"
    )
    shown = trained(capsys, "--protocol", "cv-test", out="fixed")
    assert "scored on the fixed test set" in shown
    assert "AUROC, ensemble (95 % CI)" in shown


def test_nested_cross_validation_says_what_it_chose(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = ["--grid", "aggregator=abmil,mean", "--grid", "lr=1e-9,1e-2"]
    shown = trained(capsys, "--protocol", "nested-cv", *grid)
    assert "sick · abmil or mean · nested 3-fold" in shown
    line = next(line for line in shown.splitlines() if "chosen on inner folds: " in line)
    assert line.endswith("of 3 folds")
    assert "lr 0.01" in line


def test_an_option_reaches_the_aggregator_and_sampling_the_fit(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--aggregator", "slice-transformer", "--option", "positions=rotary", "--option", "heads=3"]
    trained(capsys, *options, "--sampling", "balanced", "--several", "average")
    record = json.loads((place / "run" / "run.json").read_text())
    assert record["options"] == {"positions": "rotary", "heads": 3}
    assert record["training"]["sampling"] == "balanced"
    assert record["several"] == "average"


def test_probes_answer_the_same_question_in_the_same_words(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    question = ["--labels", "table.csv", "--target", "sick"]
    shown = answer(capsys, "probe", "feats.h5", *question, "--folds", "3", "--repeats", "2", "--out", "probe.csv")
    assert shown.splitlines()[0].split() == [
        *("endpoint", "bag", "file", "mean", "over", "folds"),
        *("knn-1", "knn-5", "knn-20", "linear"),
    ]
    assert shown.splitlines()[1].startswith("sick      feats.h5            AUROC")
    assert "knn-20: a fold has 16 bags to learn from" in shown
    assert set(pl.read_csv("probe.csv")["probe"]) == {"knn-1", "knn-5", "knn-20", "linear"}
    assert "folds 0 = north" in answer(capsys, "probe", "feats.h5", *question, "--group", "site")
    fixed = answer(capsys, "probe", "feats.h5", *question, "--protocol", "cv-test", "--several", "average")
    assert "sick" in fixed
    assert "--several best" in refusal(capsys, "probe", "feats.h5", *question, "--several", "best")


def test_a_matrix_is_run_once_and_printed_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "matrix.yaml").write_text(
        "encoders: {fake: feats.h5}\naggregators: [abmil, mean]\ntasks: [{labels: table.csv, target: sick}]\n"
        "settings: {folds: 2, epochs: 1, batch: 8}\n"
    )
    first = answer(capsys, "crossval", "matrix.yaml", "--device", "cpu")
    assert "cell 2 of 2: sick-fake-mean-" in first
    assert "| fake, abmil |" in first
    assert "2 of 2 cells, 2 computed now; tables in matrix/" in first
    again = answer(capsys, "crossval", "matrix.yaml", "--device", "cpu")
    assert "2 of 2 cells, 0 computed now" in again
    assert "cell 1" not in again
    (place / "matrix.yaml").write_text("encoders: {}\n")
    assert "encoders: expected names with a bag file each" in refusal(capsys, "crossval", "matrix.yaml")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sick": ["NaN"] * 24}, "column 'sick' holds no known value (24 rows are empty or unknown)"),
        ({"sick": [1] * 24}, "column 'sick' holds one class only: '1' in all 24 known rows"),
        ({"patient_id": [f"X{i}" for i in range(24)]}, "none of its 24 ids is a patient_id of feats.h5"),
        ({"patient_id": ["P00"] * 2 + PATIENTS[2:]}, "first patient_id 'P00' (2 rows differ in sick)"),
        ({"sick": ["1", "0", *["NaN"] * 22]}, "only 1 of 2 labelled patients"),
    ],
    ids=["NaN", "one class", "another cohort", "duplicate ids", "fewer patients than folds"],
)
def test_a_table_that_cannot_be_learnt_from_is_one_sentence(
    place: Path, capsys: pytest.CaptureFixture[str], change: dict[str, list[object]], says: str
) -> None:
    table = pl.read_csv("table.csv").with_columns(**{name: pl.Series(values) for name, values in change.items()})
    table.write_csv("odd.csv")
    error = refusal(capsys, "train", "feats.h5", "--labels", "odd.csv", "--target", "sick", *FAST)
    assert says in error
    assert not (place / "runs").exists()


def test_nan_strings_among_labels_are_unknown_and_counted(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pl.read_csv("table.csv").with_columns(sick=pl.Series(["NaN", "nan", *map(str, SICK[2:])]))
    table.write_csv("some.csv")
    shown = trained(capsys, table="some.csv")
    assert "22 labelled and used" in shown
    assert "unknown and left out" in shown


def test_a_half_written_run_is_no_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(capsys)
    shutil.copytree("run", "half")
    (place / "half" / "run.json").unlink()
    again = ["train", "feats.h5", "--labels", "table.csv", "--target", "sick", *FAST, "--out", "half", "--overwrite"]
    assert "half: not a finished run folder" in refusal(capsys, "predict", "half", "new.h5")
    assert "half: not a finished run folder" in refusal(capsys, "compare", "run", "half")
    assert "half-written one, and is not replaced. Remove it yourself" in refusal(capsys, *again)
    (place / "half" / "run.json").write_text((place / "run" / "run.json").read_text()[:200])
    assert "damaged; train again" in refusal(capsys, "predict", "half", "new.h5")
    shutil.copy("run/run.json", "half/run.json")
    (place / "half" / "fold-1" / "model.safetensors").unlink()
    assert "fold-1/model.safetensors: missing or damaged" in refusal(capsys, "predict", "half", "new.h5")
    assert not (place / "predictions").exists()
    (place / "half" / "predictions.csv").unlink()
    assert "half/predictions.csv: missing or damaged" in refusal(capsys, "compare", "run", "half")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--aggregator", "best"], "no such aggregator; expected one of abmil"),
        (["--option", "wings=2"], "no option 'wings'; it has none"),
        (["--option", "wings"], "--option wings: expected NAME=VALUE"),
        (["--aggregator", "mlp"], "takes one vector a scan"),
        (["--grid", "lr=1e-3"], "searched by --protocol nested-cv only"),
        (["--protocol", "nested-cv", "--grid", "lr"], "--grid lr: expected NAME=VALUE"),
        (["--protocol", "loo"], "expected one of cv, cv-test, nested-cv"),
        (["--several", "best"], "expected pool"),
        (["--group", "town"], "no column 'town'"),
        (["--baseline", "absent.csv"], "absent.csv"),
        (["--preset", "paper", "--sampling", "balanced"], "set one of them to none"),
        (["--class-weights", "some"], "expected none or balanced"),
        (["--join", "some"], "some"),
    ],
)
def test_arguments_that_cannot_be_stop_before_training(
    place: Path, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    command = ["train", "feats.h5", "--labels", "table.csv", "--target", "sick", *FAST, "--out", "run", *options]
    assert says in refusal(capsys, *command)
    assert not (place / "run").exists()


@pytest.mark.parametrize("page", ["README.md", "docs/tasks.md"])
def test_the_commands_of_the_manual_have_arguments_that_exist(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8")
    lines = [line.split("#")[0] for line in text.splitlines() if line.startswith("clear ")]
    assert len(lines) > 5
    for line in lines:
        status = run([*shlex.split(line)[1:], "--help"])  # parsed whole before the help is shown
        assert status == 0, line + capsys.readouterr().err
    assert run(["train", "feats.h5", "--wings", "--help"]) == 2


def test_bags_of_another_encoder_are_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(capsys)
    write(place / "other.h5", ["N1", "N2"], [0, 1], digest="1")
    assert "other.h5: encoded by fake (111111111111); the run run was trained on fake (000000000000)" in refusal(
        capsys, "predict", "run", "other.h5"
    )
