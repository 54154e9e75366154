"""Judging explanations: over a cohort whose lesions are marked, how often they point at one.

For every finding that is marked and predicted, over the scans that have it: is a lesion in the slices that the run
attends to, and in the places that its maps light up (`correctness`)? Beside the run stand what knows less:

    even attention     its own in-slice maps, all slices alike
    attention alone    its own slice attention (contributions, where it weighs none), all places in a slice alike
    centre             a bell in the middle of the volume, whatever the image
    random             what a map that has nothing to do with the scan is expected to score, exactly

and the run with something destroyed (`sanity`), whose maps must fall apart. Only scans that have the finding count:
in others there is nothing to point at.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
from tqdm import tqdm

from aggregate.explain.boxes import read_boxes
from aggregate.explain.cases import Marks, find_cases
from aggregate.explain.correctness import MEASURES
from aggregate.explain.explain import encoder_line, open_bags, safe_name, write_png
from aggregate.explain.hits import hits_figure
from aggregate.explain.judge import Judge
from aggregate.explain.judgement import RANKS, Evaluation, judged_table
from aggregate.explain.masks import find_masks
from aggregate.explain.pixels import ScanFolder, find_encoder
from aggregate.explain.saliency import MAPS, default_map
from aggregate.explain.sanity import Destroyed, permuted_aggregators, random_aggregators, random_encoder
from aggregate.predict import check_bags
from aggregate.record import file_record, versions
from aggregate.run import Run, check_output, new_run_folder, write_json, write_table
from clear.bags import Bags
from clear.errors import InputError
from clear.frozen import Encoder

FORMAT, VERSION = "clear-evaluation", 1
QUIET: dict[str, Any] = {"desc": "judging", "disable": None, "leave": False}  # a bar on terminals alone


def evaluate_explanations(
    run: Run | Path | str,
    *,
    scans: Path | str | None = None,
    boxes: Path | str | None = None,
    masks: Path | str | None = None,
    bags: Bags | Path | str | None = None,
    map: str | None = None,
    out: Path | str | None = None,
    sanity: bool = True,
    device: str = "auto",
    seed: int = 0,
    model: str | None = None,
    weights: Path | str | None = None,
    overwrite: bool = False,
) -> Evaluation:
    """How often a run's explanations point at what is marked, with 95 % intervals over patients.

    boxes: a table (`aggregate.explain.boxes`) or masks: a folder (`aggregate.explain.masks`), one of the two. scans:
    the folder of the scans; without it slices alone are judged, and by boxes alone. sanity: also with the aggregator's
    weights, the encoder's weights and the labels destroyed. bags, map, model, weights: as in `explain`. out: a new
    folder for evaluation.csv, scans.csv, evaluation.json and the pictures; nothing is written without. A scan that
    cannot be read or is not the one that was encoded is left out, with its reason among the remarks.
    Raises InputError for arguments that do not go together, and where nothing can be judged.
    """
    opened_run = run if isinstance(run, Run) else Run.open(run)
    _check_arguments(scans, boxes, masks, map)
    if out is not None:
        check_output(Path(out), overwrite, "evaluation.json")
    with ExitStack() as stack:
        opened = open_bags(opened_run, bags, stack)
        check_bags(opened_run, opened)
        marks: Marks = read_boxes(boxes, opened.scans) if boxes else find_masks(str(masks), frozenset(opened))
        cases, remarks = find_cases(opened_run, opened, marks)
        folder = None if scans is None else ScanFolder(scans)
        encoder = None if scans is None else find_encoder(opened, model, weights, device)
        name = (map or default_map(encoder)) if encoder is not None else ""
        destroyed, noted = _destroyed(opened_run, opened, encoder, seed, device) if sanity else ([], [])
        judge = Judge(opened_run, opened, marks, folder, encoder, name, destroyed)
        for scan_id in tqdm(sorted({scan for each in cases for scan in each.patients}), unit="scan", **QUIET):
            judge.scan(scan_id, [each for each in cases if scan_id in each.patients])
    if not judge.rows:
        raise InputError(f"none of the marked scans could be judged: {'; '.join(judge.remarks)}")
    table = pl.DataFrame(judge.rows, infer_schema_length=None)
    measures = [each for each in (*MEASURES, *RANKS) if each in table.columns]
    result = Evaluation(
        judged_table(table, measures, seed), table, name, (*remarks, *noted, *judge.remarks, encoder_line(opened_run))
    )
    if out is None:
        return result
    with new_run_folder(Path(out), overwrite, "evaluation.json") as aside:
        write_table(aside / "evaluation.csv", result.table)
        write_table(aside / "scans.csv", result.scans)
        for finding, panels in judge.panels.items():
            write_png(aside / f"hits-{safe_name(finding)}.png", hits_figure(finding, panels[True], panels[False]))
        record = {
            "format": FORMAT,
            "version": VERSION,
            "run": str(opened_run.path),
            "bags": opened.digest,
            "map": name,
            "boxes": file_record(boxes),
            "masks": file_record(masks),
            "scans": None if scans is None else str(scans),
            "seed": seed,
            "remarks": list(result.remarks),
            "versions": versions(),
        }
        write_json(aside / "evaluation.json", record)
    return replace(result, path=Path(out))


def _destroyed(
    run: Run, bags: Bags, encoder: Encoder | None, seed: int, device: str
) -> tuple[list[Destroyed], list[str]]:
    """(what can be destroyed of this run, why the rest cannot)."""
    made = [random_aggregators(run, seed)]
    remarks = []
    if encoder is None:
        remarks.append("without --scans the encoder cannot be run with random weights, so that check is left out")
    else:
        made.append(random_encoder(encoder, seed))
    try:
        made.append(permuted_aggregators(run, bags, seed, device))
    except InputError as error:
        remarks.append(f"the check with permuted labels is left out: {error}")
    return made, remarks


def _check_arguments(
    scans: Path | str | None, boxes: Path | str | None, masks: Path | str | None, map: str | None
) -> None:
    if (boxes is None) == (masks is None):
        raise InputError("expected what is marked: --boxes TABLE or --masks DIR, one of the two")
    if scans is None and (masks is not None or map is not None):
        raise InputError(f"{'--masks' if masks else '--map'}: needs the scans' pixels; name their folder with --scans")
    if map is not None and map not in MAPS:
        raise InputError(f"--map {map}: no such map; expected one of {', '.join(MAPS)}")
