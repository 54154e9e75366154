"""A small cohort in memory and encoders that need no network; the kill tests run this file in other processes too."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clear.errors import ScanRefused
from clear.scans import Scan
from clear.volume import Volume, stack_geometry
from clear.windows import Window


@dataclass(frozen=True)
class FakeCard:
    dim: int
    input_size: int = 8
    own_windows: tuple[Window, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {"dim": self.dim, "input_size": self.input_size, "mean": (0.5,), "source": {"kind": "bundled"}}

    @property
    def preprocessing(self) -> dict[str, Any]:
        return {"input_size": self.input_size, "resize": "none"}


@dataclass
class FakeEncoder:
    """Moments of every windowed slice, batch by batch, as a real encoder would go through it."""

    name: str = "moments"
    dim: int = 6
    delay_s: float = 0.0
    fails_on: Callable[[Volume], Exception | None] = lambda volume: None
    spoil: Callable[[np.ndarray], np.ndarray] = lambda features: features
    calls: list[int] = field(default_factory=list)
    weights_note: str = "moments of a slice, no weights"

    @property
    def card(self) -> FakeCard:
        return FakeCard(self.dim)

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"{self.name} {self.dim}".encode()).hexdigest()

    @property
    def provenance(self) -> dict[str, Any]:
        return {"precision": "float32", "device": "cpu", "threads": 1}

    def encode(
        self,
        volume: Volume,
        windows: Sequence[Window] | None = None,
        *,
        batch: int = 16,
        on_batch: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        assert windows is not None
        self.calls.append(volume.n_slices)
        if error := self.fails_on(volume):
            raise error
        out = np.empty((volume.n_slices * len(windows), self.dim), np.float32)
        limits = [window.limits(volume.voxels) for window in windows]
        for done in range(0, len(out), batch):
            for row in range(done, min(done + batch, len(out))):
                low, high = limits[row % len(windows)]
                x = np.clip((volume.voxels[row // len(windows)].astype(np.float32) - low) / (high - low), 0, 1)
                out[row] = [(x ** (power + 1)).mean() for power in range(self.dim)]
            if self.delay_s:
                time.sleep(self.delay_s)
            if on_batch is not None:
                on_batch(min(batch, len(out) - done))
        return self.spoil(out)


def make_scans(folder: Path, n: int = 6, *, slices: int = 5, modality: str = "CT", prefix: str = "scan") -> list[Scan]:
    """Scans whose files hold raw voxels; `read_raw` reads them."""
    folder.mkdir(exist_ok=True)
    scans = []
    for i in range(n):
        n_slices = slices + i % 3
        dtype = np.int16 if modality == "CT" else np.float32
        voxels = np.random.default_rng(i).integers(-1000, 1500, (n_slices, 12, 10)).astype(dtype)
        file = f"{prefix}-{i:03}.npy"
        if not (folder / file).exists():
            np.save(folder / file, voxels)
        scans.append(
            Scan(
                scan_id=f"{prefix}-{i:03}",
                patient_id=f"p{i // 2}",
                format="raw",
                modality=modality,
                plane="axial",
                n_slices=n_slices,
                shape=(12, 10),
                spacing_mm=(2.5, 0.8, 0.8),
                source=file,
                files=(file,),
                root=folder,
                manufacturer="Acme",
                thickness_mm=2.5,
                days_since_first=i % 2,
                remarks=("gantry tilt 3.0 degrees",) if i == 1 else (),
            )
        )
    return scans


def read_raw(scan: Scan) -> Volume:
    voxels = np.load(scan.root / scan.files[0])
    positions = [(0.0, 0.0, 2.5 * z) for z in range(len(voxels))]
    geometry = stack_geometry(positions, (1, 0, 0), (0, 1, 0), voxels.shape[1:], (0.8, 0.8), 2.5)
    return Volume.from_stack(voxels, geometry, scan.modality)


@dataclass
class Reader:
    """`read_raw` that counts, and that some scans can be made to fail for."""

    reads: list[str] = field(default_factory=list)
    problems: dict[str, Exception] = field(default_factory=dict)

    def __call__(self, scan: Scan) -> Volume:
        self.reads.append(scan.scan_id)
        if scan.scan_id in self.problems:
            raise self.problems[scan.scan_id]
        return read_raw(scan)


@pytest.fixture
def scans(tmp_path: Path) -> list[Scan]:
    return make_scans(tmp_path / "cohort")


@pytest.fixture
def reader() -> Reader:
    return Reader()


@pytest.fixture
def encoder() -> FakeEncoder:
    return FakeEncoder()


@pytest.fixture
def truncated() -> ScanRefused:
    return ScanRefused("truncated_pixel_data", "scan-002.npy: expected 240 bytes of pixels; found 17")


@pytest.fixture
def cohort_of() -> Callable[..., list[Scan]]:
    return make_scans


@pytest.fixture
def encoder_of() -> type[FakeEncoder]:
    return FakeEncoder
