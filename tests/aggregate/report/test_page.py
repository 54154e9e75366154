"""The page: one file that loads nothing, holds no id, and is made of whatever a run has."""

from __future__ import annotations

import html
import json
import re
import shutil
import warnings
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest

import aggregate.report as module
import aggregate.report.case_list as list_module
from aggregate.report import report, report_beside
from aggregate.report.comparison import compared
from aggregate.report.ids import Ids
from aggregate.report.material import open_material
from aggregate.report.page import _cells, render
from aggregate.run import Run, write_table
from clear.api import compare
from clear.errors import InputError

Copy = Callable[[str], Path]
HOSTILE = ("<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "=cmd|' /C calc'!A0")


@pytest.fixture(autouse=True)
def few_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that opens few cases is drawn in a second."""
    monkeypatch.setattr(list_module, "OPENED", 6)


class Parsed(HTMLParser):
    """What a browser would see: elements with their attributes, ids, and the text of each section."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def made(folder: Path, tmp_path: Path, **settings: object) -> str:
    return report(folder / "run", out=tmp_path / "page.html", **settings).read_text(encoding="utf-8")  # type: ignore[arg-type]


def test_the_page_lies_in_the_run_folder_and_says_the_main_result_first(copied: Copy) -> None:
    folder = copied("several")
    place = report(folder / "run")
    assert place == folder / "run" / "report.html"
    text = Parsed(place.read_text(encoding="utf-8")).text
    run = Run(folder / "run")
    estimate = run.metrics.filter(endpoint="macro", metric="auroc", estimator="pooled")["estimate"][0]
    assert f"reaches a mean AUROC of {estimate:.2f}" in " ".join(text.split())


def test_the_page_has_every_part_that_the_run_has(runs: dict[str, Path], tmp_path: Path) -> None:
    text = made(runs["pixels"], tmp_path, scans=runs["pixels"] / "scans")
    for part in ("summary", "cautions", "question", "results", "folds", "attention", "cases", "settings"):
        assert f'id="r1-{part}"' in text
    assert "r1-missing" not in text
    parsed = Parsed(text)
    titles = [title for title in re.findall(r"<title[^>]*>([^<]*)</title>", text) if title]
    for figure in (
        "ROC",
        "Precision",
        "Calibration",
        "Confusion",
        "AUROC of each fold",
        "Training",
        "How conc",
        "Where",
    ):
        assert any(title.startswith(figure) for title in titles), figure
    assert len(parsed.all("img")) == 4 * 6
    assert {str(image["src"])[:23] for image in parsed.all("img")} == {"data:image/webp;base64,"}


def test_nothing_is_loaded_from_anywhere(runs: dict[str, Path], tmp_path: Path) -> None:
    text = made(runs["pixels"], tmp_path, scans=runs["pixels"] / "scans")
    parsed = Parsed(text)
    for tag, attributes in parsed.elements:
        for name in ("src", "href", "action", "data", "poster", "srcset", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, name, value)
        assert not [name for name in attributes if name.startswith("on")], tag
        assert tag not in ("iframe", "object", "embed", "base")
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    policy = next(m["content"] for m in parsed.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "unsafe-eval" not in policy
    assert "script-src 'sha256-" in policy
    assert len(parsed.all("script")) == 1


def test_ids_are_nowhere_on_the_page_unless_they_are_asked_for(runs: dict[str, Path], tmp_path: Path) -> None:
    text = html.unescape(made(runs["pixels"], tmp_path))
    for identity in (*HOSTILE, "scan0007", "patient0007"):
        assert identity not in text
    shown = made(runs["pixels"], tmp_path, show_ids=True)
    assert "scan0007" in shown
    assert "patient0007" in shown


def test_hostile_ids_stay_text(runs: dict[str, Path], tmp_path: Path) -> None:
    text = made(runs["pixels"], tmp_path, show_ids=True, scans=runs["pixels"] / "scans")
    assert HOSTILE[0] not in text
    assert html.escape(HOSTILE[0], quote=False) in text
    parsed = Parsed(text)
    assert not [image for image in parsed.all("img") if "onerror" in image]
    assert len(parsed.all("script")) == 1
    assert HOSTILE[1] in parsed.text


def test_two_pages_of_one_run_share_no_pseudonym_and_one_salt_gives_one_page(runs: dict[str, Path]) -> None:
    first, second, other = (
        render([open_material(runs["mean"] / "run", None)], salt=salt) for salt in (b"a", b"a", b"b")
    )
    assert first == second
    assert Ids(False, b"a")("scan0007") in first
    assert Ids(False, b"a")("scan0007") not in other


def test_the_numbers_of_tables_are_there_in_full(runs: dict[str, Path], tmp_path: Path) -> None:
    text = made(runs["mean"], tmp_path)
    run = Run(runs["mean"] / "run")
    row = run.metrics.filter(metric="auroc", estimator="pooled").row(0, named=True)
    cells = [json.loads(html.unescape(cell)) for cell in re.findall(r"data-cells='([^']*)'", text)]
    assert [row["estimate"], None, row["ci_low"], row["ci_high"]] in cells


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("history.csv", "the page lacks the training curves"),
        ("attention.h5", "attention.h5 is missing or damaged"),
        ("curves.csv", "the points of the curves"),
        ("metrics.csv", "the page lacks the table of metrics"),
        ("predictions.csv", "the page lacks curves with bands"),
        ("folds.csv", "how many scans each fold trained on"),
        ("run.json", "The training did not finish, or its record was lost"),
    ],
)
def test_a_run_that_lacks_a_file_gives_a_page_that_says_so(copied: Copy, lost: str, said: str) -> None:
    folder = copied("several")
    (folder / "run" / lost).unlink()
    text = Parsed(report(folder / "run").read_text(encoding="utf-8")).text
    assert "What is missing" in text
    assert said in " ".join(text.split())


@pytest.mark.parametrize("name", ["history.csv", "metrics.csv", "predictions.csv", "curves.csv", "folds.csv"])
@pytest.mark.parametrize("damage", [b"", b"x", b"endpoint,class\n", b"\xff\xfe\x00"])
def test_a_damaged_table_gives_a_page_that_says_so(copied: Copy, name: str, damage: bytes) -> None:
    folder = copied("mean")
    (folder / "run" / name).write_bytes(damage)
    assert name in Parsed(report(folder / "run").read_text(encoding="utf-8")).text


def missing_of(run: Path) -> str:
    """The section on what is missing, as text; "" where there is none."""
    page = report(run).read_text(encoding="utf-8")
    found = re.search(r'<div class="missing">.*?</div>', page, re.DOTALL)
    return " ".join(Parsed(found[0]).text.split()) if found else ""


def test_the_files_of_a_whole_run_do_not_differ(runs: dict[str, Path]) -> None:
    for name, folder in runs.items():
        assert open_material(folder / "run", None).differences == (), name


@pytest.mark.parametrize("name", ["predictions", "metrics", "history", "folds", "curves"])
def test_a_table_that_ends_in_a_line_is_damaged(copied: Copy, name: str) -> None:
    run = copied("mean") / "run"
    file = run / f"{name}.csv"
    file.write_bytes(file.read_bytes()[:-3])
    assert f"{name}.csv The file" in missing_of(run)


@pytest.mark.parametrize(
    ("name", "kept", "said"),
    [
        ("predictions", 15, "9 of 24 scores are not there (9 of 24 tested scans"),
        ("predictions", 15, "figures are over 24 scans, predictions.csv scores 15"),
        ("history", 4, "history.csv The file has the training of 2 of the 3 models of run.json"),
        ("history", 5, "The training of 1 of 3 models does not end at the step"),
        ("metrics", 3, "metrics.csv 1 of 4 figures are not there"),
        ("folds", 48, "folds.csv The file lists 2 of the 3 models of run.json"),
        ("folds", 60, "1 of 3 folds list fewer scans than the others, down to 12 of 24"),
        ("folds", 48, "scores are of scans, folds or classes that folds.csv"),
    ],
)
def test_a_table_cut_between_two_lines_is_told_from_the_other_files(
    copied: Copy, name: str, kept: int, said: str
) -> None:
    run = copied("mean") / "run"
    file = run / f"{name}.csv"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[: kept + 1]))
    assert said in missing_of(run)


def test_a_value_of_the_training_that_is_no_number_is_counted(copied: Copy) -> None:
    run = copied("mean") / "run"
    history = pl.read_csv(run / "history.csv", infer_schema=False)
    losses = ["n/a", None, *history["train_loss"][2:]]
    history.with_columns(train_loss=pl.Series(losses)).write_csv(run / "history.csv")
    said = missing_of(run)
    assert f"1 of {len(losses)} values of train_loss are no numbers; the training curves are without them" in said
    assert "inner_loss" not in said


@pytest.mark.parametrize("value", [None, "lost"])
@pytest.mark.parametrize("key", ["fits", "cohort", "task", "labels", "bags"])
def test_a_record_without_a_part_says_so(copied: Copy, key: str, value: str | None) -> None:
    run = copied("mean") / "run"
    settings = json.loads((run / "run.json").read_text())
    settings[key] = value
    (run / "run.json").write_text(json.dumps(settings))
    assert f"{key} of run.json run.json says nothing of it" in missing_of(run)


def test_nulls_of_a_record_are_as_if_they_were_not_there(copied: Copy) -> None:
    run = copied("mean") / "run"
    settings = json.loads((run / "run.json").read_text())
    settings |= {"repeats": None, "remarks": None}
    settings["task"]["notes"] = None
    settings["fits"] = [{**fit, "chosen": None, "not_learnt": None} for fit in settings["fits"]]
    (run / "run.json").write_text(json.dumps(settings))
    assert "repeats of run.json" in missing_of(run)


def test_a_bag_without_all_its_class_scores_is_not_listed(copied: Copy) -> None:
    run = copied("several") / "run"
    table = Run(run).predictions
    scan = table["scan_id"][0]
    lost = table.filter(endpoint="grade", scan_id=scan, **{"class": "high"})
    assert lost.height == 1
    write_table(run / "predictions.csv", table.join(lost, on=["scan_id", "endpoint", "class"], how="anti"))
    material = open_material(run, None)
    assert (len(material.scored["grade"]), len(material.scored["sick"])) == (23, 24)
    assert scan not in material.scored["grade"].scans
    said = missing_of(run)
    assert "1 of 120 scores are not there (1 of 24 tested scans of folds.csv are not or not wholly scored)" in said
    assert "grade: its figures are over 24 scans, predictions.csv scores 23" in said


def test_folds_of_which_all_bags_lack_scores_are_still_a_page(copied: Copy) -> None:
    run = copied("several") / "run"
    table = Run(run).predictions
    write_table(run / "predictions.csv", table.filter((table["fold"] != 0) | (table["class"] == "low")))
    assert len(open_material(run, None).scored["grade"]) == 16
    assert "tested scans of folds.csv are not or not wholly scored" in missing_of(run)


def test_a_number_that_is_none_is_null_in_every_table(copied: Copy) -> None:
    run = copied("mean") / "run"
    metrics = Run(run).metrics
    write_table(run / "metrics.csv", metrics.with_columns(estimate=pl.lit(float("nan")), ci_high=pl.lit(float("inf"))))
    text = report(run).read_text(encoding="utf-8")
    cells = [html.unescape(cell) for cell in re.findall(r"data-cells='([^']*)'", text)]
    assert not [cell for cell in cells if "NaN" in cell or "Infinity" in cell]
    assert "is not defined, because no fold defines it" in " ".join(Parsed(text).text.split())
    assert _cells([float("nan"), float("-inf"), 0.5, None, "a"]) == '[null, null, 0.5, null, "a"]'


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pool", "out of fold, over 12 bags (6 positive) of 12 patients."),
        ("average", "out of fold, over 12 patients (6 positive)."),
        ("mean", "out of fold, over 24 scans (12 positive) of 24 patients."),
    ],
)
def test_the_main_result_is_of_what_the_run_was_judged_by(runs: dict[str, Path], name: str, said: str) -> None:
    material = open_material(runs[name] / "run", None)
    text = " ".join(Parsed(render([material])).text.split())
    assert said in text
    assert f"positive 50 % of {material.unit}" in text


def test_bags_of_one_scan_each_are_called_scans(copied: Copy) -> None:
    run = copied("mean") / "run"
    settings = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(settings | {"several": "pool"}))
    assert open_material(run, None).unit == "scans"
    assert open_material(copied("pool") / "run", None).unit == "bags"


def test_no_error_is_quoted(copied: Copy) -> None:
    run = copied("average") / "run"
    table = Run(run).predictions
    first = table["scan_id"][0]
    other = pl.when(pl.col("scan_id") == first).then(1 - pl.col("y_true")).otherwise(pl.col("y_true"))
    write_table(run / "predictions.csv", table.with_columns(y_true=other))
    material = open_material(run, None)
    assert (material.scored, len(material.gaps)) == ({}, 1)
    assert material.gaps[0].why == "Patients have scans with different labels, so their scores cannot be averaged."

    run = copied("mean") / "run"
    table = Run(run).predictions
    write_table(run / "predictions.csv", pl.concat([table, table.head(1)]))
    material = open_material(run, None, "a")
    assert material.scored == {}
    assert material.gaps[0].why.startswith("The scores contradict themselves: a bag has two rows of a class")
    (pair,) = compared([material, open_material(run, None, "b")])
    assert pair.missing == "The scores of a contradict themselves, so they cannot be compared."


def test_what_is_missing_is_named_only_where_that_section_is(copied: Copy) -> None:
    run = copied("mean") / "run"
    for file in run.iterdir():
        if file.is_file() and file.name != "folds.csv":
            file.unlink()
    text = report(run).read_text(encoding="utf-8")
    assert "see what is missing" in text
    assert 'id="r1-missing"' in text
    template = (Path(module.__file__).parent / "report.html.j2").read_text(encoding="utf-8")
    assert template.count("see what is missing") == template.count('": see what is missing" if view.gaps')


def test_numbers_of_the_case_list_are_numbers_in_full(runs: dict[str, Path], tmp_path: Path) -> None:
    def first_two(name: str) -> list[list[object]]:
        text = made(runs[name], tmp_path)
        cells = re.findall(
            r"<td data-column=\"truth\" data-cells='([^']*)'>[^<]*</td><td(?: data-cells='([^']*)')?", text
        )
        return [[json.loads(html.unescape(truth)), json.loads(called or "[null]")] for truth, called in cells]

    rows = Run(runs["quantity"] / "run").predictions
    truth = dict(rows.select("y_score", "y_true").iter_rows())
    listed = first_two("quantity")
    assert len(listed) == 24
    assert {(called, true) for (true,), (called,) in listed} == set(truth.items())
    times = Run(runs["survival"] / "run").predictions
    states = {(time, "event" if event else "censored") for time, event in times.select("y_true", "event").iter_rows()}
    assert {tuple(true) for true, _ in first_two("survival")} == states


def test_the_calling_of_ordered_classes_is_told(runs: dict[str, Path], tmp_path: Path) -> None:
    assert "of several classes the most probable, of ordered ones the median" in made(runs["several"], tmp_path)


def test_a_damaged_record_gives_a_page_of_the_tables(copied: Copy) -> None:
    folder = copied("several")
    (folder / "run" / "run.json").write_text('{"format": "clear-run", ')
    text = Parsed(report(folder / "run").read_text(encoding="utf-8")).text
    assert "The run's record cannot be read" in text
    assert "AUROC" in text
    assert "errors first" in text


def test_only_a_list_of_folds_is_still_a_page(copied: Copy) -> None:
    folder = copied("mean")
    for file in (folder / "run").iterdir():
        if file.is_file() and file.name != "folds.csv":
            file.unlink()
    text = Parsed(report(folder / "run").read_text(encoding="utf-8")).text
    assert "This run has no metrics to show" in text
    assert "Scans of each fold" in text


def test_a_folder_that_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a finished run folder"):
        report(tmp_path)
    with pytest.raises(InputError, match="is a folder"):
        report(tmp_path, out=tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mean", "mean weighs no instance, so there is no attention to show"),
        ("survival", "reaches a C-index of"),
        ("quantity", "reaches an R² of"),
        ("several", "rare: 3 patients of '1'"),
    ],
)
def test_every_kind_of_run_gives_a_page(runs: dict[str, Path], tmp_path: Path, name: str, said: str) -> None:
    text = " ".join(Parsed(made(runs[name], tmp_path)).text.split())
    assert said in text
    assert "errors first" in text


def test_scored_scans_of_one_class_have_no_auroc_and_the_page_says_why(copied: Copy) -> None:
    folder = copied("mean")
    run = folder / "run"
    table = Run(run).predictions
    write_table(run / "predictions.csv", table.filter(table["y_true"] == 1))
    nothing = dict.fromkeys(("estimate", "fold_sd", "ci_low", "ci_high"))
    metrics = Run(run).metrics.with_columns(
        **{k: pl.lit(v, pl.Float64) for k, v in nothing.items()}, n=12, n_positive=12
    )
    write_table(run / "metrics.csv", metrics)
    text = " ".join(Parsed(report(run).read_text(encoding="utf-8")).text.split())
    assert "is not defined, because all scored scans are of one class" in text
    assert "all 12 scans are positive" in text


def test_several_runs_are_compared_on_one_page(runs: dict[str, Path], tmp_path: Path) -> None:
    both = [runs["mean"] / "run", runs["abmil"] / "run"]
    text = report(both, out=tmp_path / "both.html").read_text(encoding="utf-8")
    parsed = Parsed(text)
    said = " ".join(parsed.text.split())
    (row,) = [
        row
        for row in compare(*both).table.iter_rows(named=True)
        if row["test"] == "paired DeLong" and row["metric"] == "auroc"
    ]
    assert f"difference {row['difference']:+.2f}, 95 % interval {row['ci_low']:+.2f} to {row['ci_high']:+.2f}" in said
    assert f"p = {row['p']:.3f} (paired DeLong)" in said
    assert "Paired tests: run (1) minus run (2)" in said
    assert 'id="r1"' in text
    assert 'id="r2"' in text
    ids = [str(attributes["id"]) for _, attributes in parsed.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))


def test_runs_that_share_nothing_say_why_they_are_not_compared(runs: dict[str, Path], tmp_path: Path) -> None:
    place = report([runs["mean"] / "run", runs["survival"] / "run"], out=tmp_path / "both.html")
    assert "have no endpoint in common" in Parsed(place.read_text(encoding="utf-8")).text


def test_a_bag_file_is_given_to_the_runs_that_were_trained_on_it(runs: dict[str, Path], tmp_path: Path) -> None:
    both, out = [runs["mean"] / "run", runs["pixels"] / "run"], tmp_path / "both.html"
    text = report(both, bags=runs["pixels"] / "feats.h5", out=out).read_text(encoding="utf-8")
    assert 'id="r2-attention1"' in text
    shutil.copytree(runs["mean"] / "run", tmp_path / "run")
    with pytest.raises(InputError, match="none of the runs was trained on this bag file"):
        report([runs["mean"] / "run", tmp_path / "run"], bags=runs["pixels"] / "feats.h5", out=out)


def test_a_page_that_cannot_be_made_is_a_warning_after_training(copied: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copied("mean")

    def broken(*_: object, **__: object) -> str:
        raise RuntimeError("no such font")

    monkeypatch.setattr(module, "render", broken)
    with pytest.warns(
        UserWarning, match=r"the run is complete, but its report.html could not be written .*no such font"
    ):
        assert report_beside(Run(folder / "run"), folder / "feats.h5") is None
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert report_beside(Run(folder / "run"), folder / "feats.h5") == folder / "run" / "report.html"
