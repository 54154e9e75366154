"""The command line: it parses, calls the notebook surface and prints. No logic, and nothing heavy at import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from clear import __version__, cli_explain, cli_pretrain, cli_report, cli_tasks, cli_training
from clear.cli_options import Device

app = typer.Typer(
    name="clear",
    help="Learning from 3D radiology scans with frozen slice encoders: scans to bags of slice embeddings, "
    "bags to cross-validated answers.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
bags_app = typer.Typer(help="Look at bag files, check them, put shards together.", no_args_is_help=True)
app.add_typer(bags_app, name="bags")
models_app = typer.Typer(help="The encoders: what each is and where its weights lie.", invoke_without_command=True)
app.add_typer(models_app, name="models")

Window = Annotated[
    Optional[list[str]],  # noqa: UP045  # typer reads this spelling on every Python
    typer.Option("--window", "-w", help="abdomen, lung, percentile, or NAME=LOW..HIGH in HU; repeatable."),
]
Select = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help="One series a study: thinnest, most-slices, soft-kernel; or a condition such as \"modality = 'CT'\"."
    ),
]
ScansTable = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--scans", help="Table with a column path, and scan_id and/or patient_id to use instead of the found ones."
    ),
]
Modality = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="CT or MR, for formats that do not say it (NIfTI and the like)."),
]


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)] = False,
) -> None:
    """Answer --version."""
    if show:
        print(f"clear {__version__}")
        raise typer.Exit


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="A folder of scans, in any tree.")],
    out: Annotated[Optional[Path], typer.Option(help="Write the plan (Parquet), which extract takes as input.")] = None,  # noqa: UP045
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON row a series.")] = False,
    select: Select = None,
    scans: ScansTable = None,
    modality: Modality = None,
    workers: Annotated[Optional[int], typer.Option(help="Parallel header readers.")] = None,  # noqa: UP045
) -> None:
    """Show what a folder holds: a row a series, whether it can be used, and why not."""
    from clear import plan
    from clear.api import find_scans

    found = find_scans(folder, select=select, scans=scans, modality=modality, workers=workers)
    if out is not None:
        plan.write_plan(found, out)
    if as_json:
        print(plan.to_json(found))
    else:
        print(plan.plan_text(found))


@app.command()
def extract(
    source: Annotated[Path, typer.Argument(help="A folder of scans, or a plan from `clear inspect --out`.")],
    output: Annotated[
        Path, typer.Argument(help="The bag file to write: NAME.h5 or NAME.zarr; {model} stands for the encoder.")
    ],
    model: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--model", "-m", help="Encoder name or card; repeatable. [default: mambaout-lecl]"),
    ] = None,
    weights: Annotated[Optional[Path], typer.Option(help="A checkpoint to use instead of the encoder's own.")] = None,  # noqa: UP045
    window: Window = None,
    task: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Use this task's windows, and keep the labels found in the folder beside the bag file."),
    ] = None,
    select: Select = None,
    scans: ScansTable = None,
    modality: Modality = None,
    shard: Annotated[
        str | None, typer.Option(help="I/N: encode only this part; `clear bags merge` puts them together.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Scans read ahead in parallel.")] = 2,
    batch: Annotated[Optional[int], typer.Option(help="Slices in a window encoded at a time.")] = None,  # noqa: UP045
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float16 or float32, how features are stored.")] = "float16",
    thumbnails: Annotated[
        bool, typer.Option("--thumbnails", help="Keep small pictures of every slice beside the bag file, for reports.")
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace a bag file made with other settings.")] = False,
) -> None:
    """Encode every usable scan of a folder, once, into a bag file. Run it again to go on where it stopped."""
    from clear.api import DEFAULT_MODEL
    from clear.api import extract as run

    result = run(
        source,
        output,
        model=model or DEFAULT_MODEL,
        weights=weights,
        windows=window,
        task=task,
        select=select,
        scans=scans,
        modality=modality,
        shard=_shard(shard),
        workers=workers,
        batch=batch,
        device=device,
        precision=precision,
        dtype=dtype,
        thumbnails=thumbnails,
        overwrite=overwrite,
    )
    print(result.summary())
    raise typer.Exit(result.exit_status)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where the cohort and its results are written.")] = Path("demo"),
    patients: Annotated[Optional[int], typer.Option(help="How many patients to draw.")] = None,  # noqa: UP045
    seed: Annotated[int, typer.Option(help="Another seed is another cohort.")] = 0,
) -> None:
    """Draw the embedded synthetic cohort as DICOM, extract, train, and print the results."""
    from clear.demonstration import PATIENTS
    from clear.demonstration import demo as run

    print(run(folder, patients=patients or PATIENTS, seed=seed, report=print).table())


@bags_app.command("info")
def bags_info(file: Annotated[Path, typer.Argument(help="A bag file.")]) -> None:
    """What a bag file holds: encoder, windows, scans, and what its weights are."""
    from clear.bags import bags_info as info

    rows = info(file)
    width = max(map(len, rows)) + 2
    for key, value in rows.items():
        print(f"{key:<{width}}{value}")


@bags_app.command("validate")
def bags_validate(file: Annotated[Path, typer.Argument(help="A bag file.")]) -> None:
    """Check every promise of the format, the features included."""
    from clear.bags import validate

    print(validate(file))


@bags_app.command("merge")
def bags_merge(
    output: Annotated[Path, typer.Argument(help="The bag file whose shards are complete, or a new one.")],
    files: Annotated[list[Path] | None, typer.Argument(help="Bag files of the same encoder to put together.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the output.")] = False,
) -> None:
    """Make one bag file of finished shards (OUTPUT.parts) or of several bag files."""
    from extract import merge

    result = merge(output, files or [], overwrite=overwrite)
    print(result.summary())
    raise typer.Exit(result.exit_status)


@models_app.callback()
def models(context: typer.Context) -> None:
    """List the encoders: dimension, input, windows, licence, and where the weights are on this machine."""
    if context.invoked_subcommand is None:
        from clear.models import table_text

        print(table_text())


@models_app.command("show")
def models_show(name: Annotated[str, typer.Argument(help="An encoder's name, timm:MODEL, or a card.")]) -> None:
    """All that is known of one encoder."""
    from clear.models import describe

    for key, value in describe(name).items():
        if value:
            print(f"{key:<14}{value}")


@models_app.command("convert")
def models_convert(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint as its authors publish it, or of a training.")],
    card: Annotated[Path, typer.Argument(help="The folder to write: card.json and weights.safetensors.")],
    arch: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="The encoder that it is like, where the tensors do not tell (see `clear models`)."),
    ] = None,
    branch: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Of two copies in the file: base or momentum (MoCo), teacher or student (DINO)."),
    ] = None,
    name: Annotated[Optional[str], typer.Option(help="What the encoder shall be called.")] = None,  # noqa: UP045
    trained_on: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="One line that every output repeats: what it was trained on."),
    ] = None,
    set_: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--set", help="FIELD=VALUE of the card, as in input_size=256 or settings.num_heads=8; repeatable."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a card that is there.")] = False,
) -> None:
    """Make an encoder card of a checkpoint (MoCo, LeCL, DINO, official, open_clip or Hugging Face files)."""
    from clear.arguments import named_values
    from clear.models import convert

    made = convert(
        checkpoint,
        card,
        arch=arch,
        branch=branch,
        name=name,
        trained_on=trained_on,
        changes=named_values(set_ or [], "--set"),
        overwrite=overwrite,
    )
    print(
        f"{card / 'card.json'}: {made.name}, {made.architecture}, {made.dim} values, {made.pooling.replace('_', ' ')}"
    )
    if made.unverified:
        print(f"to be checked: {made.unverified}")


@models_app.command("verify")
def models_verify(
    name: Annotated[str, typer.Argument(help="An encoder's name, timm:MODEL, or a card.")],
    weights: Annotated[Optional[Path], typer.Option(help="A checkpoint to check instead of its own.")] = None,  # noqa: UP045
) -> None:
    """Load an encoder, run it on a fixed input, and compare tensors and output with what is known of it."""
    from clear.models import verify

    found = verify(name, weights)
    print(found.summary())
    raise typer.Exit(3 if found.agrees is False else 0)


cli_training.register(app)
cli_pretrain.register(app)
cli_tasks.register(app)
cli_report.register(app)
cli_explain.register(app)


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    i, _, n = text.partition("/")
    if not (i.isdigit() and n.isdigit() and 1 <= int(i) <= int(n)):
        raise typer.BadParameter(f"expected I/N with 1 <= I <= N, such as 1/8; found {text!r}", param_hint="--shard")
    return int(i), int(n)
