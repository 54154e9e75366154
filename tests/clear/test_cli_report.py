"""`clear report` on the command line, and the page that training leaves."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from clear import api, cli_report
from clear.errors import InputError


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with feats.h5 and labels.csv of 12 scans."""
    place = Path(__file__).parents[1] / "bench" / "report.py"
    spec = importlib.util.spec_from_file_location("bench_report", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("cohort")
    module.write_cohort(folder, scans=12, slices=4)
    return folder


def trained(cohort: Path, name: str, **settings: object) -> Path:
    given = {"labels": cohort / "labels.csv", "target": "sick", "folds": 2, "epochs": 1, "batch": 6, **settings}
    return api.train(cohort / "feats.h5", output=cohort / name, device="cpu", progress=False, **given).path


def report(*arguments: object) -> str:
    app = typer.Typer()
    cli_report.register(app)
    result = CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False, standalone_mode=False)
    return result.output


def test_training_ends_in_a_page_unless_it_is_told_not_to(cohort: Path) -> None:
    assert (trained(cohort, "with") / "report.html").stat().st_size > 10_000
    assert not (trained(cohort, "without", page=False) / "report.html").exists()


def test_the_command_writes_the_page_and_says_where(cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(cohort, "run", page=False)
    assert report(run) == f"the report is in {run}/report.html\n"
    monkeypatch.chdir(cohort)
    assert report(run, trained(cohort, "other", page=False)) == "the report is in report.html\n"
    assert "2 runs compared" in (cohort / "report.html").read_text(encoding="utf-8")
    report(run, "--show-ids", "--out", "named.html", "--bags", cohort / "feats.h5")
    assert "scan0003" in (cohort / "named.html").read_text(encoding="utf-8")


def test_a_folder_that_is_no_run_is_told_as_one(cohort: Path) -> None:
    with pytest.raises(InputError, match="not a finished run folder"):
        report(cohort)
