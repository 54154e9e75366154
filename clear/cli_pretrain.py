"""The command line from slices to encoders: slices build, info and validate, pretrain. No logic here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from clear.cli_options import Device
from clear.launch import launched_rank

slices_app = typer.Typer(help="Slice stores: what encoders are trained on.", no_args_is_help=True)

# typer reads Optional[...] on every Python; each noqa below says so to the linter
Store = Annotated[Path, typer.Argument(help="A slice store that `clear slices build` wrote.")]
Whole = Optional[int]  # noqa: UP045
Number = Optional[float]  # noqa: UP045
Word = Optional[str]  # noqa: UP045
Words = Optional[list[str]]  # noqa: UP045
Switch = Optional[bool]  # noqa: UP045
File = Optional[Path]  # noqa: UP045


def register(app: typer.Typer) -> None:
    """Adds these commands to the command line."""
    app.add_typer(slices_app, name="slices")
    app.command()(pretrain)


@slices_app.command("build")
def slices_build(
    inputs: Annotated[list[Path], typer.Argument(help="Folders or files of CT scans, or plans of `clear inspect`.")],
    store: Annotated[Path, typer.Argument(help="The store to write or to add to: NAME.zarr.")],
    boxes: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option("--boxes", help="Table of lesions' boxes: DL_info.csv, boxes.csv, or your own; repeatable."),
    ] = None,
    task: Annotated[Word, typer.Option(help="The task (data set) whose scans these are, such as deeplesion.")] = None,
    leave_out: Annotated[
        Word,
        typer.Option(
            help="Patients to keep out: a table with patient_id (if it has a split, its test rows), a .txt of ids, or "
            "test: the official test patients of --task."
        ),
    ] = None,
    select: Annotated[Word, typer.Option(help="Which series of a study, as in `clear extract`.")] = None,
    scans: Annotated[File, typer.Option("--scans", help="Table with path, and scan_id and/or patient_id.")] = None,
    modality: Annotated[Word, typer.Option(help="CT, for formats that do not say it (NIfTI and the like).")] = None,
    workers: Annotated[int, typer.Option(help="Processes that read scans.")] = 2,
) -> None:
    """Store the slices of every usable CT scan, with lesions' boxes. Run it again to go on, or to add scans."""
    from clear.api import build_slices

    result = build_slices(
        inputs,
        store,
        boxes=boxes,
        task=task,
        leave_out=leave_out,
        select=select,
        scans=scans,
        modality=modality,
        workers=workers,
    )
    print(result.summary())
    raise typer.Exit(result.exit_status)


@slices_app.command("info")
def slices_info(store: Store) -> None:
    """What a slice store holds: slices, scans, patients, boxes."""
    from clear.api import slices_info as info

    rows = info(store)
    width = max(map(len, rows)) + 2
    for key, value in rows.items():
        print(f"{key:<{width}}{value}")


@slices_app.command("validate")
def slices_validate(store: Store) -> None:
    """Check every promise of the format, the voxels included."""
    from clear.api import validate_slices

    print(validate_slices(store))


def pretrain(
    store: Store,
    run: Annotated[Path, typer.Argument(help="The run folder: new, or one to go on with.")],
    objective: Annotated[Word, typer.Option(help="lecl, moco-v3, dino or dinov2. [default: lecl]")] = None,
    model: Annotated[
        Word, typer.Option("--model", "-m", help="Encoder name, timm:MODEL, or a card. [default: mambaout-lecl]")
    ] = None,
    settings: Annotated[File, typer.Option(help="YAML file of settings; options here stand before it.")] = None,
    option: Annotated[Words, typer.Option(help="NAME=VALUE of the objective: lambda=3, tau=0.2; repeatable.")] = None,
    init: Annotated[Word, typer.Option(help="random, own (the model's weights), or a file. [default: random]")] = None,
    epochs: Annotated[Whole, typer.Option(help="[default: 100]")] = None,
    batch: Annotated[Whole, typer.Option(help="Slices in a step, over all processes. [default: 256]")] = None,
    micro_batch: Annotated[Whole, typer.Option(help="Slices encoded at a time: less memory, same gradient.")] = None,
    lr: Annotated[Number, typer.Option(help="At a batch of 256; scaled to yours. [default: the objective's]")] = None,
    warmup_epochs: Annotated[Number, typer.Option(help="[default: a tenth of the epochs]")] = None,
    weight_decay: Annotated[Number, typer.Option(help="[default: the objective's]")] = None,
    weight_decay_end: Annotated[Number, typer.Option(help="Reached along a cosine. [default: the objective's]")] = None,
    clip: Annotated[Number, typer.Option(help="Largest norm of the gradient; 0 for none.")] = None,
    optimizer: Annotated[Word, typer.Option(help="adamw or lars. [default: adamw]")] = None,
    input_size: Annotated[Whole, typer.Option(help="Of the encoder's input, in pixels. [default: the card's]")] = None,
    augmentation: Annotated[Word, typer.Option(help="ct, paper or none. [default: ct]")] = None,
    augment: Annotated[Words, typer.Option(help="NAME=VALUE of augmentation: flips=left_right; repeatable.")] = None,
    annotated_share: Annotated[Number, typer.Option(help="Of slices with a box in a batch. [as they come]")] = None,
    leave_out: Annotated[
        Word,
        typer.Option(
            help="Patients not to train on: a table with patient_id (of one with a split, its test rows), or ids in a "
            "text file."
        ),
    ] = None,
    freeze_patch_embed: Annotated[
        Switch,
        typer.Option(
            "--freeze-patch-embed/--no-freeze-patch-embed",
            help="Keep a ViT's patch embedding as it begins. [default: as the objective's authors]",
        ),
    ] = None,
    checkpoint_grads: Annotated[
        Switch, typer.Option("--checkpoint-grads", help="Compute activations anew: less memory, a third more time.")
    ] = None,
    judge: Annotated[File, typer.Option(help="Labelled set: a slice store, or scans with --judge-labels.")] = None,
    judge_labels: Annotated[File, typer.Option(help="Table of labels of the judge's scans.")] = None,
    judge_target: Annotated[Word, typer.Option(help="Its column; or of a store with boxes: label.")] = None,
    judge_patients: Annotated[File, typer.Option(help="Table of scan_id and patient_id of the judge's scans.")] = None,
    judge_every: Annotated[Whole, typer.Option(help="Epochs between judgements. [default: 10]")] = None,
    name: Annotated[Word, typer.Option(help="What the encoder is called. [default: the run folder's name]")] = None,
    note: Annotated[Word, typer.Option(help="Ends the line that says what it was trained on.")] = None,
    half: Annotated[Switch, typer.Option("--half", help="Store the weights as float16.")] = None,
    seed: Annotated[Whole, typer.Option(help="Everything random follows from it. [default: 0]")] = None,
    workers: Annotated[Whole, typer.Option(help="Processes that prepare slices, each. [default: 2]")] = None,
    device: Device = "auto",
    precision: Annotated[Word, typer.Option(help="auto, float32 or bfloat16. [default: auto]")] = None,
    tensorboard: Annotated[
        Switch, typer.Option("--tensorboard/--no-tensorboard", help="[default: where it is installed]")
    ] = None,
) -> None:
    """Train an encoder on slices and write its card. Run it again to go on where it stopped; torchrun: on many GPUs."""
    from clear.api import pretrain as train
    from clear.arguments import named_values
    from clear.errors import ClearError

    given: dict[str, Any] = {
        "objective": objective,
        "model": model,
        "init": init,
        "epochs": epochs,
        "batch": batch,
        "micro_batch": micro_batch,
        "lr": lr,
        "warmup_epochs": warmup_epochs,
        "weight_decay": weight_decay,
        "weight_decay_end": weight_decay_end,
        "clip": clip,
        "optimizer": optimizer,
        "input_size": input_size,
        "annotated_share": annotated_share,
        "freeze_patch_embed": freeze_patch_embed,
        "checkpoint_grads": checkpoint_grads,
        "judge": None if judge is None else str(judge),
        "judge_labels": None if judge_labels is None else str(judge_labels),
        "judge_target": judge_target,
        "judge_every": judge_every,
        "name": name,
        "note": note,
        "half": half,
        "seed": seed,
        "workers": workers,
        "precision": precision,
    }
    try:
        result = train(
            store,
            run,
            settings=settings,
            options=named_values(option, "--option") if option else None,
            augmentation=augmentation,
            augment=named_values(augment, "--augment") if augment else None,
            leave_out=leave_out,
            judge_patients=judge_patients,
            device=device,
            tensorboard=tensorboard,
            report=lambda line: print(line, flush=True),
            **{key: value for key, value in given.items() if value is not None},
        )
    except ClearError as error:
        if launched_rank() != 0:  # the first process says it for all; `pretrain.processes` what it cannot know
            raise typer.Exit(error.exit_status) from None
        raise
    if launched_rank() == 0:
        print(result.summary())
