"""A question: what is asked for decides over what the task says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from aggregate.question import ask
from clear.bags import Bags
from clear.endpoints import Endpoint
from clear.tasks import Task


@pytest.mark.parametrize(
    ("several", "bags", "kept"), [(None, 12, None), ("pool", 12, "pool"), ("average", 24, "average")]
)
def test_several_decides_over_the_join_rule_of_the_task(
    make_bags, tmp_path: Path, several: str | None, bags: int, kept: str | None
) -> None:
    names = [f"p{i:02d}-{day}" for i in range(12) for day in (0, 9)]
    path = make_bags(
        {name: np.ones((2, 4)) * i for i, name in enumerate(names)},
        patients={name: name[:3] for name in names},
        days={name: int(name[4:]) for name in names},
    )
    table = pl.DataFrame({"patient_id": [f"p{i:02d}" for i in range(12)], "y": [i % 2 for i in range(12)]})
    table.write_csv(tmp_path / "y.csv")
    task = Task("own", "", (Endpoint("y"),), join="earliest")
    with Bags(path) as opened:
        question = ask(opened, task=task, labels=tmp_path / "y.csv", several=several, folds=2)
    assert (len(question.cohort), question.several) == (bags, kept)
    assert {len(scans) for scans in question.cohort.scan_ids} == ({2} if several == "pool" else {1})
