"""Small cohorts: bag files with a planted signal, written as extraction writes them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from clear.bags import Bag, BagHeader, ScanRow, write_bags
from clear.windows import ABDOMEN, LUNG, Window

MakeBags = Callable[..., Path]


@pytest.fixture
def make_bags(tmp_path: Path) -> MakeBags:
    """A bag file of features by scan id; every slice in every window."""

    def make(
        features: Mapping[str, np.ndarray],
        *,
        name: str = "feats.h5",
        patients: Mapping[str, str | None] | None = None,
        windows: Sequence[Window] = (ABDOMEN, LUNG),
        digests: Mapping[str, str] | None = None,
        days: Mapping[str, int] | None = None,
        studies: Mapping[str, str] | None = None,
    ) -> Path:
        dim = next(iter(features.values())).shape[1]
        header = BagHeader(
            encoder="fake",
            encoder_digest="0" * 64,
            encoder_card={},
            windows=tuple(windows),
            preprocessing={},
            provenance={"trained on": "nothing: a fake encoder for tests"},
            dim=dim,
            dtype="float32",
        )
        rows = [
            ScanRow(
                scan_id=scan,
                digest=(digests or {}).get(scan, hashlib.sha256(scan.encode()).hexdigest()),
                length=len(rows),
                n_slices=len(rows) // len(windows),
                spacing_mm=(2.0, 1.0, 1.0),
                plane="axial",
                modality="CT",
                patient_id=scan if patients is None else patients.get(scan),
                study_uid=(studies or {}).get(scan),
                days_since_first=(days or {}).get(scan),
            )
            for scan, rows in features.items()
        ]

        def load(row: ScanRow) -> Bag:
            k, n = row.length, len(windows)
            return Bag(
                scan_id=row.scan_id,
                features=features[row.scan_id].astype(np.float32),
                slice=(np.arange(k) // n).astype(np.int32),
                window=(np.arange(k) % n).astype(np.uint8),
                position_mm=np.stack([np.zeros(k), np.zeros(k), np.arange(k) // n], 1).astype(np.float32),
            )

        path = tmp_path / name
        write_bags(path, header, rows, load)
        return path

    return make


@pytest.fixture
def planted() -> Callable[..., tuple[dict[str, np.ndarray], dict[str, int]]]:
    """(features by scan, label by scan): in positive scans a few slices carry a direction of their own."""

    def make(
        n: int = 40, dim: int = 16, slices: tuple[int, int] = (8, 16), strength: float = 4.0, seed: int = 0
    ) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        rng = np.random.default_rng(seed)
        direction = rng.standard_normal(dim)
        direction /= np.linalg.norm(direction)
        features, labels = {}, {}
        for i in range(n):
            k = 2 * int(rng.integers(*slices))
            rows = rng.standard_normal((k, dim))
            label = i % 2
            if label:
                start = int(rng.integers(0, k - 3))
                rows[start : start + 3] += strength * direction
            features[f"scan{i:03d}"], labels[f"scan{i:03d}"] = rows.astype(np.float32), label
        return features, labels

    return make
