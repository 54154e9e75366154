"""Explanations of the embedded cohort, whose lesions are known: do they point at them?

    python tests/bench/explain.py FOLDER [--findings liver_lesion,bone_lesion] [--also gated-abmil] [--maps gradcam]

Draws and extracts the demonstration's cohort into FOLDER and trains attention (ABMIL) and mean pooling a finding,
as `clear demo` does; what FOLDER holds already is not done again. Then the explanations of every run are judged against
the boxes of what was planted, with 95 % intervals over patients, beside baselines that know less; those of ABMIL by
every map, and by the first one also with the aggregator's weights, the encoder's weights and the labels destroyed.
Tables and pictures: FOLDER/judged.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import polars as pl

from aggregate.explain.evaluate import evaluate_explanations
from aggregate.explain.judge import ALONE, EVEN, RANDOM
from aggregate.explain.judgement import Evaluation
from aggregate.explain.sanity import CHECKS
from aggregate.run import Run
from clear.api import train
from clear.demonstration import MATRIX, PATIENTS, SLICES, demo
from clear.phantoms import BOXES_TABLE, DICOM_FOLDER, LABELS_TABLE
from clear.tasks import load_task

SHOWN = {"slice_top1": "top slice", "pointing": "pointing game", "energy": "energy inside", "dice": "Dice"}
BESIDE = (EVEN, ALONE, RANDOM, *CHECKS)


def runs_of(folder: Path, finding: str, known: dict[str, Run], also: list[str]) -> Iterator[tuple[str, Run]]:
    """The demonstration's runs of a finding, and those of further aggregators on the same bags and question."""
    yield from known.items()
    task = load_task("demo")
    question = replace(
        task, name=f"demo-{finding}", endpoints=tuple(each for each in task.endpoints if each.name == finding)
    )
    for aggregator in also:
        output = folder / "runs" / f"{finding}-{aggregator}"
        if not output.exists():
            print(f"training {aggregator} for {finding} into {output}", flush=True)
            labels = folder / "cohort" / LABELS_TABLE
            train(folder / "feats.h5", task=question, labels=labels, aggregator=aggregator, output=output)
        yield aggregator, Run(output)


def rows_of(finding: str, name: str, judged: Evaluation) -> Iterator[str]:
    """A line a method of what is shown."""
    first = True
    for method in (name, *BESIDE):
        rows = judged.table.filter(pl.col("method") == method)
        if not rows.height:
            continue
        of = {row["measure"]: row for row in rows.iter_rows(named=True)}
        cells = []
        for measure in SHOWN:
            row = of.get(measure)
            low, high = (None, None) if row is None else (row["ci_low"], row["ci_high"])
            text = "" if row is None else f"{row['estimate']:.2f}"
            cells.append(text + ("" if low is None else f" ({low:.2f}..{high:.2f})"))
        n = rows["n"].max() if first else ""
        label = f"{method}, {judged.map_name}" if first else f"  {method}"
        yield f"{finding if first else '':<14}{label:<26}{n!s:>4}  " + "".join(f"{cell:<20}" for cell in cells).rstrip()
        first = False


def main() -> None:
    """Judges and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--findings", help="those of the demonstration to judge, separated by commas; all by default")
    parser.add_argument("--also", default="", help="aggregators beside abmil and mean, separated by commas")
    parser.add_argument("--maps", default="gradcam,hirescam", help="in-slice maps, separated by commas")
    parser.add_argument("--patients", type=int, default=PATIENTS)
    parser.add_argument("--matrix", type=int, default=MATRIX)
    parser.add_argument("--slices", type=int, default=SLICES)
    given = parser.parse_args()
    also = [name for name in given.also.split(",") if name]
    result = demo(
        given.folder,
        patients=given.patients,
        matrix=given.matrix,
        slices=given.slices,
        report=lambda line: print(line, flush=True),
    )
    print(result.table())
    cohort = given.folder / "cohort"
    lines: list[str] = []
    for finding in given.findings.split(",") if given.findings else list(result.runs):
        for name, run in runs_of(given.folder, finding, result.runs[finding], also):
            for number, map_name in enumerate(given.maps.split(",")):
                judged = evaluate_explanations(
                    run,
                    bags=given.folder / "feats.h5",
                    scans=cohort / DICOM_FOLDER,
                    boxes=cohort / BOXES_TABLE,
                    map=map_name,
                    out=given.folder / "judged" / f"{finding}-{name}-{map_name}",
                    sanity=name == "abmil" and number == 0,
                    overwrite=True,
                )
                print(judged.text(), flush=True)
                lines += rows_of(finding, name, judged)
    heads = "".join(f"{head:<20}" for head in SHOWN.values())
    print("\n".join([f"\n{'finding':<14}{'explained by':<26}{'n':>4}  {heads}".rstrip(), *lines]))


if __name__ == "__main__":
    main()
