"""A cohort whose explanation is known: a checkered square in one slice is the finding, and the encoder sees checks.

Every scan has striped squares too, which mean nothing, and slices of different brightness.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import SimpleITK as sitk
import torch
from torch import Tensor, nn

from aggregate import train
from aggregate.run import Run
from clear.bags import Bag, BagHeader, ScanRow, write_bags
from clear.card import EncoderCard, WeightSource
from clear.frozen import Encoder
from clear.scans import find_scans, read_volume
from clear.windows import Window

SIDE, CELL, SLICES, PATIENTS = 32, 8, 6, 24
WINDOW = Window("wide", -500, 500)
CHECKS = np.indices((CELL, CELL)).sum(axis=0) % 2 * 2.0 - 1.0
STRIPES = np.tile(np.arange(CELL) % 2 * 2.0 - 1.0, (CELL, 1))
CARD = EncoderCard(
    name="checks-by-hand",
    architecture="timm:mambaout_femto",
    dim=4,
    source=WeightSource("file", "-"),
    trained_on="filters set by hand",
    input_size=SIDE,
    channels=1,
    mean=(0.5,),
    std=(1.0,),
    resize="bilinear",
    pooling="mean_norm",
)


class Filters(nn.Module):
    """Four filters of 8 x 8 pixels without overlap, ReLU; the embedding is the mean over the cells of the slice."""

    pools_map, reads_class_token = True, False

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.Conv2d(1, 4, CELL, CELL)

    def feature_map(self, x: Tensor) -> Tensor:
        return self.cells(x).relu().permute(0, 2, 3, 1)

    def embed_map(self, features: Tensor) -> Tensor:
        return features.mean(dim=(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.embed_map(self.feature_map(x))


def by_hand() -> Encoder:
    """Checks, two directions of stripes, and brightness: only the first tells the finding."""
    network = Filters()
    kernels = np.stack([CHECKS, STRIPES, STRIPES.T, np.ones_like(CHECKS)]) / CELL**2
    with torch.no_grad():
        network.cells.weight.copy_(torch.from_numpy(kernels[:, None]))
        network.cells.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 0.5]))
    return Encoder(CARD, network, "by hand", device="cpu", precision="float32")


@dataclass(frozen=True)
class Known:
    """folder: scans/ (NIfTI), boxes.csv, masks/, labels.csv, feats.h5, run/; places: of the finding, (z, row, column)
    of the cell by scan id; encoder: that made the bags."""

    folder: Path
    encoder: Encoder
    places: dict[str, tuple[int, int, int]]

    @property
    def run(self) -> Run:
        return Run(self.folder / "run")

    @property
    def scans(self) -> Path:
        return self.folder / "scans"

    @property
    def boxes(self) -> Path:
        return self.folder / "boxes.csv"

    @property
    def masks(self) -> Path:
        return self.folder / "masks"


def write_scan(path: Path, voxels: np.ndarray) -> None:
    image = sitk.GetImageFromArray(voxels.astype(np.int16))
    image.SetSpacing((1.0, 1.0, 5.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


@pytest.fixture(scope="session")
def known_cohort(tmp_path_factory: pytest.TempPathFactory) -> Known:
    folder = tmp_path_factory.mktemp("known")
    rng = np.random.default_rng(0)
    places: dict[str, tuple[int, int, int]] = {}
    rows, boxes = [], []
    for i in range(PATIENTS):
        name = f"scan{i:02d}"
        voxels = rng.normal(0, 20, (SLICES, SIDE, SIDE)) + rng.uniform(-200, 200, (SLICES, 1, 1))
        rows.append((name, f"patient{i:02d}", i % 2))
        for stripes in (STRIPES, STRIPES.T):
            z, r, c = int(rng.integers(SLICES)), int(rng.integers(4)), int(rng.integers(4))
            voxels[z, r * CELL : (r + 1) * CELL, c * CELL : (c + 1) * CELL] += 200 * stripes
        if i % 2:
            z, r, c = int(rng.integers(SLICES)), int(rng.integers(4)), int(rng.integers(4))
            voxels[z, r * CELL : (r + 1) * CELL, c * CELL : (c + 1) * CELL] += 200 * CHECKS
            places[name] = z, r, c
            boxes.append((name, c * CELL, r * CELL, (c + 1) * CELL, (r + 1) * CELL, z, "checks", "canonical"))
            mask = np.zeros((SLICES, SIDE, SIDE))
            mask[z, r * CELL : (r + 1) * CELL, c * CELL : (c + 1) * CELL] = 1
            write_scan(folder / "masks" / f"{name}.nii.gz", mask)
        write_scan(folder / "scans" / f"{name}.nii.gz", np.where(voxels < -1000, -1000, voxels))
    labels = pl.DataFrame(rows, schema=["scan_id", "patient_id", "checks"], orient="row")
    labels.write_csv(folder / "labels.csv")
    columns = ["scan_id", "x0", "y0", "x1", "y1", "slice", "label", "axes"]
    pl.DataFrame(boxes, schema=columns, orient="row").write_csv(folder / "boxes.csv")
    encoder = by_hand()
    _write_bags(folder, encoder)
    train(
        folder / "feats.h5",
        labels=folder / "labels.csv",
        target="checks",
        patients=folder / "labels.csv",
        folds=3,
        epochs=40,
        batch=8,
        lr=3e-3,
        output=folder / "run",
        baselines=(),
        device="cpu",
        progress=False,
    )
    return Known(folder, encoder, places)


@pytest.fixture
def known(known_cohort: Known, monkeypatch: pytest.MonkeyPatch) -> Known:
    """The cohort, with its encoder where one would be loaded or built by its name."""

    def found(bags: object, *_: object) -> Encoder:
        return known_cohort.encoder

    monkeypatch.setattr("aggregate.explain.explain.find_encoder", found)
    monkeypatch.setattr("aggregate.explain.evaluate.find_encoder", found)
    monkeypatch.setattr("aggregate.explain.sanity.build", lambda card: Filters())
    return known_cohort


def _write_bags(folder: Path, encoder: Encoder) -> None:
    scans = find_scans(folder / "scans", cache=False, workers=1, modality="CT")
    volumes = {scan.scan_id: read_volume(scan) for scan in scans}
    header = BagHeader(
        encoder=encoder.name,
        encoder_digest=encoder.digest,
        encoder_card=encoder.card.as_dict(),
        windows=(WINDOW,),
        preprocessing=encoder.card.preprocessing,
        provenance={"trained on": encoder.weights_note},
        dim=encoder.dim,
        dtype="float32",
    )
    rows = [
        ScanRow(
            scan_id=name,
            digest=volume.digest,
            length=volume.n_slices,
            n_slices=volume.n_slices,
            spacing_mm=volume.spacing_mm,
            plane=volume.plane,
            modality=volume.modality,
            patient_id=name.replace("scan", "patient"),
            source=f"{name}.nii.gz",
        )
        for name, volume in volumes.items()
    ]

    def load(row: ScanRow) -> Bag:
        volume = volumes[row.scan_id]
        return Bag(
            scan_id=row.scan_id,
            features=encoder.encode(volume, [WINDOW]),
            slice=np.arange(volume.n_slices, dtype=np.int32),
            window=np.zeros(volume.n_slices, dtype=np.uint8),
            position_mm=volume.positions_mm.astype(np.float32),
        )

    write_bags(folder / "feats.h5", header, rows, load)
