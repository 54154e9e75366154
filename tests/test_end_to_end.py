"""The whole line against a computation of its own: pydicom by hand, Pillow's resize, timm's forward."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

import clear
from clear.api import extract
from clear.frozen import load_encoder
from clear.windows import ABDOMEN

BUNDLED = Path(clear.__file__).parent / "weights" / "mambaout-lecl"


def by_hand(folder: Path, window: tuple[float, float], weights: Path, side: int, resample: int) -> np.ndarray:
    """(Z, 288) embeddings of a small MambaOut, written without any of our code."""
    files = [pydicom.dcmread(path) for path in folder.iterdir() if path.is_file()]
    files.sort(key=lambda dataset: float(dataset.ImagePositionPatient[2]))
    network = timm.create_model("mambaout_femto").eval()
    state = {name: tensor.float() for name, tensor in load_file(weights).items()}
    missing, surplus = network.load_state_dict(state, strict=False)  # the classifier alone may be missing
    assert not surplus
    assert {name.split(".")[1] for name in missing} == {"pre_logits", "fc"}
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    rows = []
    for dataset in files:
        hu = dataset.pixel_array.astype(np.float64) * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
        grey = np.clip((hu - window[0]) / (window[1] - window[0]), 0, 1).astype(np.float32)
        image = np.clip(np.asarray(Image.fromarray(grey).resize((side, side), resample)), 0, 1)
        x = (torch.from_numpy(image.copy())[None].expand(3, -1, -1) - mean) / std
        with torch.inference_mode():
            maps = network.forward_features(x[None])
            rows.append(network.head.norm(maps.mean((1, 2)))[0].numpy())
    return np.stack(rows)


def disagreement(found: np.ndarray, expected: np.ndarray) -> tuple[float, bool]:
    """Largest relative error of a row once the scan's mean is gone; whether each row's nearest neighbour is itself."""
    found, expected = found - found.mean(0), expected - expected.mean(0)
    error = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    distances = np.linalg.norm(found[:, None] - expected[None], axis=-1)
    return float(error.max()), bool((distances.argmin(1) == np.arange(len(expected))).all())


@pytest.fixture
def chest(shared_data: Path, tmp_path: Path) -> Path:
    """Every fourth slice of a real chest CT: the whole chest, with wider gaps."""
    series = tmp_path / "series"
    series.mkdir()
    for path in sorted((shared_data / "data" / "ct_dicom" / "covidctmd_P002_chest").iterdir())[::4]:
        (series / path.name).symlink_to(path)
    return series


@pytest.mark.parametrize(
    ("precision", "dtype", "bound"),
    [("float32", "float16", 0.01), ("float32", "float32", 0.01), ("bfloat16", "float32", 0.05)],
)
def test_extracted_features_equal_a_computation_by_hand(
    chest: Path, tmp_path: Path, precision: str, dtype: str, bound: float
) -> None:
    weights, side, resample = BUNDLED / "weights.safetensors", 128, Image.BILINEAR
    file = tmp_path / "feats.h5"
    result = extract(
        chest, file, model="mambaout-lecl", windows=["abdomen", "lung"], device="cpu", precision=precision, dtype=dtype
    )
    assert result.exit_status == 0
    bags = clear.Bags(file)
    (scan_id,) = bags
    features = np.asarray(bags[scan_id].features, dtype=np.float64)
    for number, limits in enumerate([(-175, 275), (-1500, 500)]):
        own = features[bags[scan_id].window == number]
        expected = by_hand(chest, limits, weights, side, resample).astype(np.float64)
        error, own_neighbour = disagreement(own, expected)
        assert error <= bound
        assert own_neighbour
        reversed_error, _ = disagreement(own[::-1], expected)
        assert reversed_error > 10 * bound  # the measure sees a wrong slice order


def test_a_mirrored_slice_falls_outside_the_tolerance(chest: Path) -> None:
    volume = clear.read_volume(chest)
    encoder = load_encoder("mambaout-lecl", device="cpu", precision="float32")
    straight = encoder.encode(volume, [ABDOMEN])
    mirrored = encoder.encode(replace(volume, voxels=np.ascontiguousarray(volume.voxels[:, :, ::-1])), [ABDOMEN])
    errors = np.linalg.norm(mirrored - straight, axis=1) / np.linalg.norm(straight - straight.mean(0), axis=1)
    assert errors.min() > 0.01
