"""The command line of explanations: explain. No logic here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from clear.cli_options import Device, Out, Overwrite, Seed


def register(app: typer.Typer) -> None:
    """Adds this command to the command line."""
    app.command()(explain)


def explain(
    run: Annotated[Path, typer.Argument(help="A run folder that `clear train` wrote.")],
    scan: Annotated[Optional[str], typer.Option(help="The scan to explain, by its id.")] = None,  # noqa: UP045
    scans: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="The folder (or plan) of the scans themselves; each is confirmed by its voxels."),
    ] = None,
    bags: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="The bag file that holds the scan; the run's own by default."),
    ] = None,
    endpoint: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="What to explain, where the run predicts several."),
    ] = None,
    class_name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--class", help="Which class the map speaks for; the positive or the predicted one by default."),
    ] = None,
    map: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Where in a slice: attention, gradcam, occlusion, ...; what suits the encoder by default."),
    ] = None,
    nifti: Annotated[bool, typer.Option("--nifti", help="Write the saliency as NIfTI in the scan's geometry.")] = False,
    dicom: Annotated[bool, typer.Option("--dicom", help="Write it as a DICOM parametric map.")] = False,
    segmentation: Annotated[
        bool, typer.Option("--segmentation", help="Write where it reaches half its maximum as a DICOM segmentation.")
    ] = False,
    animation: Annotated[bool, typer.Option("--animation", help="Write an animated stack.")] = False,
    model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="The encoder's name or card, where the bag file's is not found here."),
    ] = None,
    weights: Annotated[Optional[Path], typer.Option(help="The encoder's checkpoint, where one was given.")] = None,  # noqa: UP045
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Judge the run's explanations over all scans with marked lesions.")
    ] = False,
    boxes: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="With --evaluate: a table of boxes (docs/explain.md)."),
    ] = None,
    masks: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="With --evaluate: a folder of masks (docs/explain.md)."),
    ] = None,
    sanity: Annotated[
        bool, typer.Option(help="With --evaluate: also with weights randomised and labels permuted.")
    ] = True,
    seed: Seed = 0,
    out: Out = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Show what a prediction was made of; or, with --evaluate, how often such pictures point at a marked lesion."""
    from clear.api import evaluate_explanations
    from clear.api import explain as of_scan

    if evaluate == (scan is not None):
        raise typer.BadParameter("expected the id of one scan, or --evaluate", param_hint="--scan")
    asked = {"nifti": nifti, "dicom": dicom, "segmentation": segmentation, "animation": animation}
    of_one = {"--endpoint": endpoint, "--class": class_name, **{f"--{name}": given for name, given in asked.items()}}
    of_all = {"--boxes": boxes, "--masks": masks, "--overwrite": overwrite}
    misplaced = [name for name, given in (of_one if evaluate else of_all).items() if given]
    if misplaced:
        raise typer.BadParameter(f"goes with {'--scan' if evaluate else '--evaluate'}", param_hint=misplaced[0])
    shared = {"scans": scans, "bags": bags, "map": map, "model": model, "weights": weights, "device": device}
    if scan is None:
        judged = evaluate_explanations(
            run,
            boxes=boxes,
            masks=masks,
            sanity=sanity,
            seed=seed,
            out=out or run / "explain" / "evaluation",
            overwrite=overwrite,
            **shared,
        )
        print(judged.text())
        return
    outputs = ("png", "csv", *(name for name, wanted in asked.items() if wanted))
    explained = of_scan(run, scan, endpoint=endpoint, class_name=class_name, out=out, outputs=outputs, **shared)
    print(explained.summary())
