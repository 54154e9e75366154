"""Small pretrainings, for tests and for processes of their own.

`small_runs.py STORE RUN MODEL JSON`: one pretraining with settings from JSON; beside them `die_at` (SIGKILL before that
step), `stop_at` (SIGTERM during it), `nan_at` (a loss that is no number), `fails_in` (an error of this process alone).
Prints what the run reports.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from clear.card import EncoderCard, WeightSource, write_card
from clear.phantoms import draw_patient
from clear.scans import Scan
from pretrain.boxes import Box
from pretrain.store import SliceStore
from pretrain.store_tables import begin, commit
from pretrain.stored_scan import write_scan

CARD = EncoderCard(
    name="small",
    architecture="timm:mambaout_femto",
    dim=24,
    source=WeightSource("file", "weights.safetensors"),
    trained_on="nothing",
    settings={"depths": [1, 1, 1, 1], "dims": [8, 12, 16, 24]},
    input_size=32,
    pooling="mean_norm",
    resize="bilinear",
)
VIT = replace(
    CARD,
    name="small-vit",
    architecture="timm:vit_tiny_patch16_224",
    dim=16,
    settings={"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
    pooling="class_token",
)
SETTINGS: dict[str, Any] = {
    "objective": "lecl",
    "options": {"hidden": 16, "dim": 8},
    "epochs": 3,
    "batch": 8,
    "lr": 0.05,
    "precision": "float32",
    "workers": 0,
    "tensorboard": False,
    "progress": False,
    "device": "cpu",
}


def write_store(path: Path, *, patients: int = 6, slices: int = 4, boxes: bool = True, prefix: str = "P") -> Path:
    """Phantoms of 40 pixels; every patient has one finding or more, and so some slices with boxes."""
    path.mkdir(parents=True)
    begin(path)
    stored, marks = [], {}
    for index in range(patients):
        findings = ["effusion"] if index % 2 else ["liver_lesion"]
        phantom = draw_patient(seed=5, index=index, matrix=40, slices=slices, findings=findings)
        scan = Scan(
            scan_id=f"{prefix}-scan-{index}",
            patient_id=f"{prefix}-{index}",
            series_uid=f"{prefix}.{index}",
            study_uid=f"{prefix}.{index}.1",
            format="dicom",
            modality="CT",
            plane="axial",
            source=f"{prefix}{index}",
            root=path.parent,
        )
        volume = phantom.series[0].volume
        written = write_scan(path, scan, volume, origin="", fingerprint="", dataset=None)
        stored.append(replace(written, spacing_mm=(1.0, 1.0, 1.0)))  # or crops in mm would be a few of the 40 pixels
        marks[scan.scan_id] = tuple(
            Box(at, float(box.x[0]), float(box.y[0]), float(box.x[1]), float(box.y[1]), box.finding)
            for box in (phantom.boxes if boxes else ())
            for at in range(*box.slices)
        )
    commit(path, stored, marks)
    return path


def write_model(folder: Path, card: EncoderCard = CARD) -> Path:
    """A card without weights, for `--model`."""
    write_card(card, folder)
    return folder


def train(store: Path | SliceStore, run: Path, model: Path, **changes: Any) -> Any:
    """A pretraining in this process, one thread."""
    from pretrain import pretrain

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return pretrain(store, run, model=str(model), **{**SETTINGS, **changes})
    finally:
        torch.set_num_threads(threads)


def start(
    store: Path, run: Path, model: Path, *, processes: int = 1, **changes: Any
) -> subprocess.CompletedProcess[str]:
    """A pretraining in processes of its own."""
    launcher: Sequence[str] = []
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *launcher, __file__, str(store), str(run), str(model), json.dumps(changes)]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


def main(store: str, run: str, model: str, text: str) -> None:
    """See above."""
    from clear.errors import ClearError
    from pretrain import loop

    settings = json.loads(text)
    die_at, stop_at, nan_at, fails_in = (
        settings.pop(name, None) for name in ("die_at", "stop_at", "nan_at", "fails_in")
    )
    real = loop.backward

    def watched(objective: Any, views: Any, progress: float, **options: Any) -> Any:
        step = 1 + round(progress * steps())
        if step == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        if fails_in is not None and fails_in == int(os.environ.get("RANK", "0")):
            raise ClearError("what only this process knows")
        computed = real(objective, views, progress, **options)
        if step == nan_at:
            computed.losses["loss"] = computed.losses["loss"] * float("nan")
        return computed

    loops: list[Any] = []
    began = loop.Loop.__post_init__

    def remember(self: Any) -> None:
        began(self)
        loops.append(self)

    def steps() -> int:
        return int(loops[-1].steps)

    loop.backward = watched
    loop.Loop.__post_init__ = remember  # type: ignore[method-assign]
    try:
        result = train(Path(store), Path(run), Path(model), report=lambda line: print(line, flush=True), **settings)
    except ClearError as error:
        print(f"Error: {error}", flush=True)
        sys.exit(error.exit_status)
    if os.environ.get("RANK", "0") == "0":
        print(result.summary(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
