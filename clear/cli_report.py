"""The command line from a run to the page that is mailed around. No logic here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer


def register(app: typer.Typer) -> None:
    """Adds this command to the command line."""
    app.command()(report)


def report(
    runs: Annotated[list[Path], typer.Argument(help="A run folder that `clear train` wrote, or several to compare.")],
    scans: Annotated[
        Optional[Path],  # noqa: UP045  # typer reads this spelling on every Python
        typer.Option(help="The folder of the scans, for pictures of the most attended slices."),
    ] = None,
    bags: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="The bag file of the run, where it no longer lies where the run says."),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="The page to write. [default: report.html in the run folder; of several here]"),
    ] = None,
    show_ids: Annotated[bool, typer.Option("--show-ids", help="Print scan and patient ids as they are.")] = False,
) -> None:
    """Write a run, or several compared, as one self-contained page that can be mailed."""
    from clear.api import report as run

    page = run(runs, scans=scans, bags=bags, out=out, show_ids=show_ids)
    print(f"the report is in {page}")
