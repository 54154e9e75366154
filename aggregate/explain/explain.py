"""Explaining one scan: from a run, its bags and the scan's pixels to an `Explanation` and its files."""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aggregate.aggregators import AGGREGATORS
from aggregate.bag_file import find_bags
from aggregate.cohort import choose_windows, rows_of_scans
from aggregate.explain.correctness import THRESHOLD
from aggregate.explain.explanation import Explanation
from aggregate.explain.models import models_for, pairs_for, siblings_of
from aggregate.explain.pixels import ScanFolder, find_encoder
from aggregate.explain.saliency import MAPS, default_map, saliency
from aggregate.explain.slice_attention import CONTRIBUTION, SliceAttention, aggregators_of, slice_attention
from aggregate.explain.target import Target, choose_target, scores_of_bag, targets_of
from aggregate.predict import check_bags
from aggregate.record import versions
from aggregate.run import Run, write_json
from clear.atomic import output_errors, write_aside
from clear.bag_format import ScanRow
from clear.bags import Bags
from clear.errors import InputError
from clear.scans import Scan
from clear.thumbnails import shown_window
from clear.volume import Volume

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OF_PIXELS = ("nifti", "dicom", "segmentation", "animation")
OUTPUTS = ("png", "csv", *OF_PIXELS)
OF_DICOM = ("dicom", "segmentation")
NIFTI = "saliency.nii.gz"
RECORD = "explanation.json"
PICTURES = ("attention.svg", "attention.png", "attention.csv", "montage.png", "stack.webp")
FILES = (*PICTURES, NIFTI, "parametric-map.dcm", "segmentation.dcm")  # all that an explanation may write
TOP = 6  # slices on the montage
SHOWN = 3  # slices marked on the profile


def explain(
    run: Run | Path | str,
    scan_id: str,
    *,
    bags: Bags | Path | str | None = None,
    scans: Path | str | None = None,
    endpoint: str | None = None,
    class_name: str | None = None,
    map: str | None = None,
    out: Path | str | None = None,
    device: str = "auto",
    outputs: Sequence[str] = ("png", "csv"),
    model: str | None = None,
    weights: Path | str | None = None,
) -> Explanation:
    """What a prediction of one scan was made of: the attention of its slices and, with its pixels, a saliency volume.

    A run whose aggregator weighs no slice (`mean`, `linear`, `mlp`) has contributions in place of attention.

    The models that explain are those that did not train on the scan's patient (`aggregate.explain.models`). bags: the
    file that holds the scan, the run's own by default. scans: a folder or plan in which the scan is found by its id or
    its voxels, and always confirmed by its digest; without it there is no saliency. endpoint, class_name: see
    `aggregate.explain.target.choose_target`. map: of `aggregate.explain.saliency.MAPS`, the one that suits the encoder
    by default. model, weights: see `aggregate.explain.pixels.find_encoder`.

    outputs: of OUTPUTS, what is written to `out` (by default `explain/SCAN` in the run folder, `explain/SCAN/FINDING`
    where it predicts several), beside explanation.json, which says what the files are of; none writes nothing. Files of
    an earlier explanation there are removed first.
    Raises InputError where the run cannot explain this scan, or what is found is not what was encoded.
    """
    opened_run = run if isinstance(run, Run) else Run.open(run)
    _check_arguments(outputs, map, scans)
    with ExitStack() as stack:
        opened = open_bags(opened_run, bags, stack)
        check_bags(opened_run, opened)
        row = opened.row(scan_id)
        siblings = siblings_of(opened, row)
        found = models_for(opened_run, scan_id, digest=row.digest, patient_id=row.patient_id, siblings=siblings)
        embeddings = features_of_scan(opened_run, opened, scan_id)
        scores = scores_of_bag(opened_run, found.models, found.pairs, embeddings)
        target, score, remarks = choose_target(opened_run.endpoints, scores, endpoint, class_name)
        attention = slice_attention(opened_run, opened, scan_id, endpoint=target.endpoint.name, output=target.output)
        remarks += _remarks(opened_run, attention, row, siblings)
        result = Explanation(
            scan_id=scan_id,
            source_digest=row.digest,
            endpoint=target.endpoint.name,
            class_name=target.class_name,
            score=score,
            map_name="",
            attention=attention,
            shown_window=shown_window(
                attention.windows[int(attention.weights.sum(axis=0).argmax())], opened.header, row.modality
            ),
            saliency=None,
            volume=None,
            out_of_fold=attention.out_of_fold,
            remarks=(),
        )
        scan = None
        if scans is None:
            remarks.append("without --scans there are no pixels: no pictures of slices, and no saliency")
        else:
            scan, volume = ScanFolder(scans).find(row)
            remarks += _check_outputs(outputs, scan, volume, scan_id)
            encoder = find_encoder(opened, model, weights, device)
            name = map or default_map(encoder)
            models = [opened_run.model(*pair) for pair in attention.pairs]
            maps = MAPS[name](encoder, volume, attention.windows, models, target.output, embeddings=embeddings)
            if not maps.any():
                remarks.append(f"the {name} map is 0 everywhere: no place in a slice speaks for {target.finding}")
            whole = saliency(attention.weights, maps, volume, encoder.card)
            result = replace(result, map_name=name, saliency=whole, volume=volume)
            if "segmentation" in outputs and not whole.any():
                outputs = [each for each in outputs if each != "segmentation"]
                remarks.append("segmentation.dcm is not written: the saliency is 0 everywhere")
        result = replace(result, remarks=tuple(remarks))
        if outputs:
            folder = Path(out) if out is not None else _folder(opened_run, scan_id, target)
            _clear(folder)
            result = replace(result, files=tuple(_write(result, folder, outputs, scan)))
            record = _record(opened_run, opened, result)
            write_json(folder / RECORD, {**record, "files": [file.name for file in result.files]})
    return result


def open_bags(run: Run, bags: Bags | Path | str | None, stack: ExitStack) -> Bags:
    """The bag file that is given, else the run's own, also where both were moved together.

    Raises InputError where that is no longer there.
    """
    if isinstance(bags, Bags):
        return bags
    if bags is not None:
        return stack.enter_context(Bags(bags))
    path = Path(run.settings["bags"]["path"])
    found = find_bags(run.path, run.settings["bags"])
    if found is None and not path.exists():
        raise InputError(f"{run.path}: its bag file {path} is no longer there. Say where it is now with --bags")
    return stack.enter_context(found or Bags(path))  # one that has grown since is another file of the same scans


def features_of_scan(run: Run, bags: Bags, scan_id: str) -> NDArray[np.floating]:
    """(Z * W, d) a scan's rows in the run's windows: slice by slice, in a slice in the windows' order."""
    parts = rows_of_scans(bags, choose_windows(bags, run.windows, str(bags.path)))[scan_id]
    return np.concatenate([np.asarray(bags.features[part]) for part in parts])


def encoder_line(run: Run) -> str:
    """The remark that every output repeats: what saw the slices, and what it was trained on."""
    return f"encoder: {run.settings['bags']['encoder']}, {run.settings['bags']['trained_on']}"


def safe_name(scan_id: str) -> str:
    """A folder's name for a scan id: letters, digits, dots and dashes; what had to be changed ends in a digest.

    >>> safe_name("1.2.840.113619"), safe_name("../a b")
    ('1.2.840.113619', '..-a-b-0ca175b9')
    """
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", scan_id)[:80]
    if plain == scan_id and plain.strip("."):
        return plain
    return f"{plain}-{hashlib.sha256(scan_id.encode('utf-8', 'backslashreplace')).hexdigest()[:8]}"


def _folder(run: Run, scan_id: str, target: Target) -> Path:
    """Where an explanation goes unless told."""
    folder = run.path / "explain" / safe_name(scan_id)
    several = sum(each.has_maps for each in targets_of(run.endpoints)) > 1
    return folder / safe_name(target.finding) if several else folder


def _clear(folder: Path) -> None:
    """Makes the folder and removes what an earlier explanation, finished or not, left in it."""
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in (RECORD, *FILES):  # without the record what is left is known to be half written
            (folder / name).unlink(missing_ok=True)


def _record(run: Run, bags: Bags, result: Explanation) -> dict[str, Any]:
    """What the files are of, for explanation.json."""
    return {
        "format": "clear-explanation",
        "version": 1,
        "run": str(run.path),
        "bags": bags.digest,
        "encoder": bags.encoder,
        "scan_id": result.scan_id,
        "source_digest": result.source_digest,
        "endpoint": result.endpoint,
        "class": result.class_name,
        "score": result.score if math.isfinite(result.score) else None,
        "slices": result.attention.kind,
        "map": result.map_name,
        "models": [list(pair) for pair in result.attention.pairs],
        "out_of_fold": result.out_of_fold,
        "windows": [window.as_dict() for window in result.attention.windows],
        "remarks": list(result.remarks),
        "versions": versions(),
    }


def _check_arguments(outputs: Sequence[str], map: str | None, scans: Path | str | None) -> None:
    unknown = [name for name in outputs if name not in OUTPUTS]
    if unknown:
        raise InputError(f"outputs: no such output {unknown[0]!r}; expected some of {', '.join(OUTPUTS)}")
    if map is not None and map not in MAPS:
        raise InputError(f"--map {map}: no such map; expected one of {', '.join(MAPS)}")
    needs = [f"--{name}" for name in outputs if name in OF_PIXELS] + (["--map"] if map is not None else [])
    if scans is None and needs:
        raise InputError(f"{needs[0]}: needs the scan's pixels; name their folder with --scans DIR")
    if any(name in OF_DICOM for name in outputs):
        from aggregate.explain.dicom import load_highdicom

        load_highdicom()


def _check_outputs(outputs: Sequence[str], scan: Scan, volume: Volume, scan_id: str) -> list[str]:
    """What to know of the outputs. Raises InputError where this scan cannot have one, before any work is done."""
    remarks = []
    if "nifti" in outputs:
        from aggregate.explain.nifti import OFF_GRID_MM, check_grid, off_grid

        check_grid(NIFTI, volume)
        off_mm = off_grid(volume)
        if off_mm > OFF_GRID_MM:
            remarks.append(
                f"{NIFTI}: slices lie up to {off_mm:.2f} mm off the even grid of its affine; DICOM keeps the place of "
                "each"
            )
    if any(name in OF_DICOM for name in outputs):
        from aggregate.explain.dicom import check_source

        check_source(scan, volume)
        if scan.scan_id != scan_id:
            remarks.append(
                "the bag file calls this scan by a name of its own, but the DICOM output copies patient name, patient "
                "id, dates and UIDs of the source series: it tells who is behind the name"
            )
    return remarks


def _remarks(run: Run, attention: SliceAttention, row: ScanRow, siblings: Sequence[str]) -> list[str]:
    remarks = []
    out_of_fold = attention.out_of_fold
    if attention.kind == CONTRIBUTION:
        dumb = [name for name in aggregators_of(run) if not AGGREGATORS[name].returns_attention]
        remarks.append(
            f"{' and '.join(dumb)} weighs no slice: in place of attention stands how much each slice raised the answer "
            "(gradient times its difference from the scan's mean slice)"
            + ("" if len(dumb) == len(aggregators_of(run)) else ", for the models of other folds as well")
        )
    if attention.share < 1 - 1e-6:
        remarks.append(
            f"the run reads the scans of a patient as one bag: {100 * attention.share:.1f} % of its {attention.kind} "
            "fell on this scan. Shares of slices are of the scan alone, and so is the score"
            + ("" if attention.share else "; as none fell on it, all its slices are shown alike")
        )
    if not out_of_fold and row.patient_id is None:
        remarks.append(
            "the bag file has no patient id of this scan: whether a model was fitted on another scan of the patient "
            "cannot be told, and none is left out"
        )
    elif not out_of_fold:
        pairs = pairs_for(run, row.scan_id, digest=row.digest, patient_id=row.patient_id, siblings=siblings)
        left = len(run.pairs) - len(pairs)
        if left:
            remarks.append(
                f"{left} of {len(run.pairs)} models are left out: they were fitted on another scan of this patient"
            )
    return [*remarks, encoder_line(run)]


def _write(result: Explanation, folder: Path, outputs: Sequence[str], scan: Scan | None) -> list[Path]:
    """The files asked for; the large ones last."""
    files: list[Path] = []
    if "png" in outputs:
        from aggregate.figures.attention import attention_profile_figure
        from aggregate.figures.style import svg

        attention = result.attention
        figure = attention_profile_figure(
            attention.z_mm,
            attention.weights,
            attention.windows,
            result.top_slices(SHOWN),
            title=attention.kind.capitalize(),
            quantity=attention.kind,
        )
        write_aside(folder / "attention.svg", svg(figure).encode())
        files += [folder / "attention.svg", write_png(folder / "attention.png", figure)]
    if "csv" in outputs:
        from aggregate.explain.slice_table import slice_table, write_slice_table

        # images are named by their UIDs only where the bag file uses the scan's own id, and no pseudonym
        named = scan if scan is not None and scan.scan_id == result.scan_id else None
        files.append(write_slice_table(folder / "attention.csv", slice_table(result.attention, named)))
    if "png" in outputs and result.volume is not None:
        from aggregate.explain.montage import montage_figure, png

        title = f"{result.scan_id}\n{result.answer}, score {result.score:.3f}, {result.map_name}"
        weights, window = result.slice_weights, result.shown_window
        montage = montage_figure(result.volume, window, result.saliency, weights, n=TOP, title=title)
        write_aside(folder / "montage.png", png(montage))
        files.append(folder / "montage.png")
    return files + _write_volumes(result, folder, outputs, scan)


def _write_volumes(result: Explanation, folder: Path, outputs: Sequence[str], scan: Scan | None) -> list[Path]:
    """NIfTI, DICOM and the animated stack, where they are asked for."""
    if result.volume is None or result.saliency is None or scan is None:
        return []
    files: list[Path] = []
    if "nifti" in outputs:
        from aggregate.explain.nifti import write_nifti

        files.append(write_nifti(folder / NIFTI, result.saliency, result.volume))
    said = f"Saliency: {result.answer}"
    if "dicom" in outputs:
        from aggregate.explain.dicom import write_dicom

        files += write_dicom(folder, result.saliency, result.volume, scan, series_description=said)
    if "segmentation" in outputs:
        from aggregate.explain.dicom import write_dicom

        files += write_dicom(
            folder,
            result.saliency,
            result.volume,
            scan,
            kind="segmentation",
            threshold=THRESHOLD,
            series_description=said,
        )
    if "animation" in outputs:
        from aggregate.explain.animation import write_animation

        weights = result.slice_weights
        place = folder / "stack.webp"
        files.append(write_animation(place, result.volume, result.shown_window, result.saliency, weights))
    return files


def write_png(path: Path, figure: Figure) -> Path:
    """The figure on white as a PNG file; returns its path."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, facecolor="white", metadata={"Software": None})
    write_aside(path, buffer.getvalue())
    return path
