"""The published tables: all rows there, under our names, with what they mean."""

from __future__ import annotations

import polars as pl
import pytest

from aggregate.published import CITATIONS, MEAN, published, results
from clear.tasks import TASKS


def test_every_printed_number_is_there_once_with_its_paper() -> None:
    table = results()
    assert table.height == 465
    assert set(table["paper"]) == set(CITATIONS)
    assert set(table["comparable"]) == {"yes", "partly", "no"}
    assert table.filter(pl.col("difference").is_null()).height == 0
    key = ["paper", "table", "task", "model", "endpoint", "metric"]
    assert not table.select(key).is_duplicated().any()
    assert table["mean_percent"].is_between(0, 100).all()


@pytest.mark.parametrize(("task", "metric"), [("deeplesion", "auroc"), ("rad-chestct", "auroc")])
def test_the_papers_endpoints_are_those_of_our_task(task: str, metric: str) -> None:
    rows = published(task, metric)
    assert set(rows["endpoint"]) == {*(endpoint.name for endpoint in TASKS[task].endpoints), MEAN}
    assert rows["model"].n_unique() == 13


def test_the_average_of_the_paper_is_near_the_mean_of_its_columns() -> None:
    for (_, _), rows in published("deeplesion", "auroc").group_by("model", "paper"):
        mean = rows.filter(pl.col("endpoint") != MEAN)["mean_percent"].mean()
        assert rows.filter(endpoint=MEAN)["mean_percent"][0] == pytest.approx(mean, abs=1.0)


def test_a_task_of_another_name_in_the_paper_is_found_and_an_unknown_one_has_nothing() -> None:
    assert set(published("mrnet", "auroc")["endpoint"]) == {"meniscus"}
    assert set(published("nsclc-radiomics")["metric"]) == {"auroc", "average_precision", "f1"}
    assert published("mine").height == 0
