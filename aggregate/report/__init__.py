"""A run as one page that is mailed around.

    report("runs/effusion-abmil")                         # report.html in the run folder
    report(["runs/a", "runs/b"], out="comparison.html")   # paired tests between them

`material` reads what is there of a run folder; from it come the cohort's flow (`cohort_flow`), facts (`facts`), figures
(`results`, `plots`), attention (`attended`, `attention_summary`), cases with their pictures (`cases`, `case_list`,
`pictures`), what to watch out for (`cautions`, `confounders`) and tests between runs (`comparison`). `ids` keeps ids
off the page; `page` puts everything through one template. What a run lacks is said on the page and stops nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from aggregate.bag_file import find_bags
from aggregate.report.material import Material, open_material
from aggregate.report.page import render
from aggregate.run import Run
from clear.atomic import write_aside
from clear.bags import Bags
from clear.errors import InputError

__all__ = ["FILE", "report", "report_beside"]

FILE = "report.html"


def report(
    runs: Run | Path | str | Sequence[Run | Path | str],
    *,
    scans: Path | str | None = None,
    bags: Bags | Path | str | None = None,
    out: Path | str | None = None,
    show_ids: bool = False,
) -> Path:
    """Write one self-contained page of a run, or of several side by side, and return its path.

    scans: the folder of the scans (or a plan), for pictures of the most attended slices; without it those that
    `extract --thumbnails` kept beside the bag file. bags: the bag file of the runs, where it no longer lies where they
    say. out: the page; without it report.html in the run folder, of several runs in this folder. show_ids: print scan
    and patient ids as they are; otherwise they get pseudonyms that mean nothing outside the page.

    Raises InputError for a place that holds nothing of a run, a bag file that is not the run's, a folder without scans.
    """
    given = [runs] if isinstance(runs, Run | Path | str) else list(runs)
    if not given:
        raise InputError("expected a run folder or several; found none")
    place = Path(out) if out is not None else (_path(given[0]) / FILE if len(given) == 1 else Path(FILE))
    if place.is_dir():
        raise InputError(f"{place}: is a folder; expected the name of the page to write, such as {place / FILE}")
    with ExitStack() as stack:
        here = bags if isinstance(bags, Bags) or bags is None else stack.enter_context(Bags(bags))
        materials = []
        for one, name in zip(given, _names([_path(each) for each in given], show_ids), strict=True):
            material = open_material(one, None, name)
            material.bags = _bags_of(material, here, alone=len(given) == 1)
            if material.bags is not None and material.bags is not here:
                stack.enter_context(material.bags)
            materials.append(material)
        if here is not None and all(material.bags is not here for material in materials):
            raise InputError(f"{here.path}: none of the runs was trained on this bag file; leave it out")
        html = render(materials, scans=scans, show_ids=show_ids)
    write_aside(place, html.encode("utf-8", "replace"))
    return place


def report_beside(run: Run, bags: Bags | Path | str) -> Path | None:
    """report.html in the folder of a run that was just trained; None, with a warning, where it cannot be made.

    A training of hours is over and its folder whole: nothing that a page may die of is worth an error then.
    """
    try:
        return report(run, bags=bags)
    except Exception as error:
        warnings.warn(
            f"{run.path}: the run is complete, but its {FILE} could not be written ({type(error).__name__}: {error}). "
            f"`clear report {run.path}` writes it",
            stacklevel=3,
        )
        return None


def _bags_of(material: Material, given: Bags | None, *, alone: bool) -> Bags | None:
    """The run's bag file; of several runs the given one belongs to those that were trained on it."""
    record = material.part("bags")
    if given is not None and not alone and given.digest != record.get("digest"):
        given = None
    return find_bags(material.run.path, record, given)


def _path(run: Any) -> Path:
    return run.path if isinstance(run, Run) else Path(run)


def _names(paths: list[Path], show_ids: bool) -> list[str]:
    """What runs are called: their folders' names; those that share one are numbered.

    Folders above them may be named after people: with show_ids as much of the path as tells them apart is there.
    """
    parts = [path.resolve().parts for path in paths]
    for length in range(1, (max(map(len, parts)) if show_ids else 1) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    last = [each[-1] for each in parts]
    return [f"{name} ({i})" if last.count(name) > 1 else name for i, name in enumerate(last, start=1)]
