"""`clear models`: which encoders there are, what each is, where its weights lie, and whether they are the right ones.

`table` and `describe` only read the registry and this machine's disk. `convert` makes an encoder card of a checkpoint
as its authors publish it; `verify` loads an encoder and compares it with what is known of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from clear.card import WEIGHTS_FILE, EncoderCard, WeightSource
from clear.encoders import BFLOAT16_REFUSED, ENCODERS
from clear.errors import InputError, WeightsError
from clear.sources import as_installed, expect_weights, find_card, from_package, local_weights

if TYPE_CHECKING:
    import polars as pl

    from clear.volume import Volume

SHOWN = 6  # values of an output that are shown and compared
TOLERANCE = 1e-3  # of the output's own spread, between processors; another input or pooling moves values by far more

ABSENT = {
    "hub": "on the hub",
    "elsewhere": "published elsewhere, to fetch by hand",
    "none": "not published",
    "file": "missing",
    "bundled": "missing in the package",
}
UNSEEN = {
    "hub": "the published file, which was not seen",
    "elsewhere": "the published file, which was not seen",
    "none": "there is no published file",
}


def table() -> pl.DataFrame:
    """A row an encoder: name, d, input, windows, licence, trained on, and where its weights are on this machine."""
    import polars as pl

    rows = [
        {
            "name": card.name,
            "d": card.dim,
            "input": input_text(card),
            "windows": window_text(card),
            "licence": card.licence,
            "trained on": card.trained_on,
            "weights": weights_text(ENCODERS[card.name]),
        }
        for card in map(as_installed, ENCODERS.values())
    ]
    return pl.DataFrame(rows)


def table_text() -> str:
    """The table for a terminal, one line an encoder."""
    shown = table().drop("trained on")
    rows = [shown.columns, *[[str(cell) for cell in row] for row in shown.rows()]]
    limits = {"licence": 28}
    cells = [
        [_short(cell, limits.get(name, 200)) for name, cell in zip(shown.columns, row, strict=True)] for row in rows
    ]
    widths = [max(len(row[column]) for row in cells) for column in range(len(shown.columns))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in cells)


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def describe(name: str) -> dict[str, str]:
    """Everything a card says, by field, for reading. Raises InputError for an unknown name."""
    registered = find_card(name)
    card, source = as_installed(registered), registered.source
    is_slices = card.volume is None
    other = f"{registered.dim} values from {input_text(registered)} ({registered.architecture}; any size of it)"
    size = f", {source.size_mb:.0f} MB" if source.size_mb else ""
    return {
        "name": card.name,
        "architecture": card.architecture,
        "settings": ", ".join(f"{key} = {value}" for key, value in card.settings.items()) or "none",
        "embedding": f"{card.dim} values, {card.pooling.replace('_', ' ')}",
        "input": input_text(card),
        "windows": window_text(card),
        "mean": ", ".join(f"{value:g}" for value in card.mean) if is_slices else "",
        "std": ", ".join(f"{value:g}" for value in card.std) if is_slices else "",
        "modalities": ", ".join(card.modalities) or "any",
        "planes": ", ".join(card.planes) or "any",
        "bfloat16": bfloat16_text(card),
        "trained on": card.trained_on,
        "weights": weights_text(registered),
        "with yours": other if registered.any_size else "",
        "source": f"{source.kind}: {', '.join(filter(None, (source.place, source.file)))}{size}"
        + (", gated" if source.gated else ""),
        "licence": card.licence,
        "citation": card.citation,
        "not verified": unverified_text(registered),
    }


def input_text(card: EncoderCard) -> str:
    """What goes in, in a few words: `224 px`, or a volume's size and spacing."""
    if card.volume is not None:
        spec = card.volume
        size, spacing = (" x ".join(f"{v:g}" for v in values) for values in (spec.shape, spec.spacing_mm))
        return f"volume {size} at {spacing} mm"
    field = "" if card.field_of_view_mm is None else f" of {card.field_of_view_mm:g} mm"
    return f"{card.input_size} px{field}"


def window_text(card: EncoderCard) -> str:
    """Which windows it takes: its own, those it was trained for, or any."""
    if card.own_windows:
        window = card.own_windows[0]
        return f"its own ({window.name})" if card.volume is None else "its own"
    return ", ".join(card.windows) or "any"


def bfloat16_text(card: EncoderCard) -> str:
    """Whether it runs in bfloat16, and why not where it refuses."""
    if card.bfloat16:
        return "where the hardware has it"
    own = card.source.kind in ("file", "bundled")
    return f"refused: {'its card says so' if own else BFLOAT16_REFUSED.get(card.name, 'not compared')}"


def unverified_text(card: EncoderCard) -> str:
    """What of it could not be checked: what its card says, and that its file was not seen."""
    unseen = "" if card.source.verified else UNSEEN.get(card.source.kind, "")
    return "; ".join(filter(None, (card.unverified, unseen)))


def weights_text(card: EncoderCard) -> str:
    """Where the weights are on this machine, or how they come here."""
    place = local_weights(card)
    if place is not None:
        return "in the package" if from_package(place) else str(place)
    return ABSENT[card.source.kind] + (", licence to accept there" if card.source.gated else "")


def convert(
    checkpoint: Path,
    folder: Path,
    *,
    arch: str | None = None,
    branch: str | None = None,
    name: str | None = None,
    trained_on: str | None = None,
    changes: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> EncoderCard:
    """A checkpoint as its authors publish it (MoCo, LeCL, DINO, official, open_clip, Hugging Face) as an encoder card.

    arch: the registered encoder (or card) whose architecture, preprocessing and pooling it shares; without it the
    family is recognised by the tensors' names, and size and width are read off their shapes. branch: `momentum` or
    `student` instead of the trained encoder or the teacher. name, trained_on: what the card says. changes: fields of
    the card, for what shapes do not tell (`input_size`, `pooling`, `mean`, `settings.num_heads`, ...).
    overwrite: replace a card that is there. Returns the card that was written. Raises WeightsError when the tensors fit
    no family, or not the one named, InputError when the folder holds a card or weights already; never is the
    checkpoint itself overwritten.
    """
    from clear.backbones import build, fitted_card
    from clear.backbones import convert as renamed
    from clear.checkpoints import Branch, load_strictly, read_tensors
    from clear.export import check_folder, export_encoder

    if checkpoint.exists() and (target := folder / WEIGHTS_FILE).exists() and target.samefile(checkpoint):
        raise InputError(
            f"{checkpoint}: the card in {folder} would be written over this very file, and what the card leaves out "
            "would be lost. Name another folder"
        )
    check_folder(folder, overwrite=overwrite)
    if branch not in (None, *get_args(Branch)):
        raise InputError(f"--branch {branch}: expected one of {', '.join(get_args(Branch))}")
    tensors = read_tensors(checkpoint, cast("Branch | None", branch))
    base = recognised(tensors, str(checkpoint)) if arch is None else find_card(arch)
    card = with_changes(fitted_card(with_changes(base, changes or {}), tensors), changes or {})
    network = build(card)
    load_strictly(network, renamed(card, tensors, network), str(checkpoint))
    card = replace(
        card,
        name=name or checkpoint.name.partition(".")[0].lower().replace("_", "-"),
        trained_on=trained_on or f"converted from {checkpoint.name}; what it was trained on is not recorded",
        source=WeightSource("file", WEIGHTS_FILE, WEIGHTS_FILE),
        any_size=False,
        ignored=(),
        licence="of the checkpoint that was converted",
        unverified="" if arch else f"what shapes do not tell, taken as that of {base.name}: {_guessed(card)}",
    )
    export_encoder(card, network, folder, overwrite=overwrite)
    return card


def _guessed(card: EncoderCard) -> str:
    """What of a recognised card is an assumption."""
    heads = card.settings.get("num_heads")
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (card.mean, card.std))
    values = f" (mean {mean}, std {std})" if card.volume is None else ""
    attention = f", {heads} attention heads, positions as {card.positions}" if heads else ""
    return f"preprocessing{values}, pooling{attention}"


def recognised(tensors: Mapping[str, Any], origin: str) -> EncoderCard:
    """A registered card of the kind that these tensors are of, taking any size: the first whose positions agree too.

    Raises WeightsError when no family knows them, and `--arch` must name one, or when one of them does not fit the
    others.
    """
    from clear.backbones import kind, variant
    from clear.backbones.variants import AnotherFamily

    seen = set()
    for card in ENCODERS.values():
        likeness = kind(card), card.positions
        if likeness in seen:
            continue
        seen.add(likeness)
        try:
            found = variant(card, tensors)
        except AnotherFamily:
            continue
        if (kind(found), found.positions) != likeness:
            continue
        return replace(card, any_size=True, windows=(), modalities=(), planes=(), licence="", citation="")
    raise WeightsError(
        f"{origin}: its tensors are of no family that is recognised by itself (they begin "
        f"{', '.join(sorted(tensors)[:3])}). Name the encoder that it is like with --arch (see `clear models`)"
    )


def with_changes(card: EncoderCard, changes: Mapping[str, Any]) -> EncoderCard:
    """The card with fields set as its JSON spells them, those of `settings` as `settings.NAME`.

    Raises InputError for a field that a card does not have, or a value that it cannot take.
    """
    if not changes:
        return card
    data = card.as_dict()
    known = sorted(set(data) - {"format", "version"})
    for key, value in changes.items():
        name, dot, inner = key.partition(".")
        if name not in known or (dot and name != "settings"):
            raise InputError(
                f"--set {key}: a card has no such field; expected settings.NAME or one of {', '.join(known)}"
            )
        if dot and not isinstance(data[name], Mapping):
            raise InputError(f"--set {name}: is {data[name]!r}; expected a table of names and values")
        data[name] = {**data[name], inner: value} if dot else value
    return EncoderCard.from_dict(data, "--set")


@dataclass(frozen=True)
class Verified:
    """What `verify` saw. tensors: sha256 over all tensors; output: first values on the fixed input; finite: whether
    all of its values are; agrees: False when they are not, None when the registry knows neither tensors nor output,
    else whether what it knows is what was found."""

    name: str
    tensors: str
    output: tuple[float, ...]
    finite: bool
    agrees: bool | None

    def summary(self) -> str:
        """One paragraph: the digest, the values, the verdict."""
        verdict = {
            None: "The registry knows no digest of it to compare with; these are what to compare between machines.",
            True: "Both agree with the registry.",
            False: "They DIFFER from the registry: these are other weights than those this clear was checked with.",
        }[self.agrees]
        if not self.finite:
            verdict = "The output holds values that are NOT FINITE: these weights cannot be used, whatever they are."
        values = ", ".join(f"{value:.4f}" for value in self.output)
        lines = [f"{self.name}: loaded, every tensor in its place", f"tensors  {self.tensors}"]
        return "\n".join([*lines, f"output   {values}, ...", verdict])


def verify(name: str, weights: Path | str | None = None) -> Verified:
    """Load an encoder, run it on a fixed input in float32 on the CPU, and compare with what the registry knows.

    Raises WeightsError when its weights are absent or do not fit.
    """
    import numpy as np

    expect_weights(name, None if weights is None else Path(weights))
    from clear.checkpoints import digest_of
    from clear.frozen import load_encoder

    encoder = load_encoder(name, weights, device="cpu", precision="float32")
    digest = digest_of(encoder.network)
    output = encoder.encode(fixed_volume())[0]
    first = tuple(float(value) for value in output[:SHOWN])
    known = find_card(name).source
    if known.kind == "bundled" and (weights is not None or not from_package(local_weights(find_card(name)))):
        known = replace(known, sha256="", output=())  # what it holds is of the package's own file
    finite = bool(np.isfinite(output).all())
    agrees: bool | None = None if finite else False
    if finite and (known.sha256 or known.output):
        same = not known.output or bool(np.allclose(first, known.output, rtol=0, atol=TOLERANCE * output.std()))
        agrees = same and (not known.sha256 or known.sha256 == digest)
    return Verified(encoder.name, digest, first, finite, agrees)


def fixed_volume() -> Volume:
    """A small synthetic chest (4 slices of 96 pixels), the same on every machine."""
    from clear.phantoms import draw_patient

    volume = draw_patient(seed=0, index=0, matrix=96, slices=4).series[0].volume
    return volume
