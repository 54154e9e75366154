"""The whole line against a computation of its own: pydicom by hand, Pillow's resize, timm's forward."""

from __future__ import annotations

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

WEIGHTS = Path(clear.__file__).parent / "weights" / "mambaout-lecl" / "weights.safetensors"


def by_hand(folder: Path, window: tuple[float, float]) -> np.ndarray:
    """(Z, 288) embeddings of the bundled encoder, written without any of our code."""
    files = [pydicom.dcmread(path) for path in folder.iterdir() if path.is_file()]
    files.sort(key=lambda dataset: float(dataset.ImagePositionPatient[2]))
    network = timm.create_model("mambaout_femto").eval()
    state = {name: tensor.float() for name, tensor in load_file(WEIGHTS).items()}
    missing, surplus = network.load_state_dict(state, strict=False)  # the classifier alone may be missing
    assert not surplus
    assert {name.split(".")[1] for name in missing} == {"pre_logits", "fc"}
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    rows = []
    for dataset in files:
        hu = dataset.pixel_array.astype(np.float64) * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
        grey = np.clip((hu - window[0]) / (window[1] - window[0]), 0, 1).astype(np.float32)
        image = Image.fromarray(grey).resize((224, 224), Image.BILINEAR)
        x = (torch.from_numpy(np.asarray(image).copy())[None].expand(3, -1, -1) - mean) / std
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


@pytest.mark.parametrize(("precision", "bound"), [("float32", 0.01), ("bfloat16", 0.05)])
def test_extracted_features_equal_a_computation_by_hand(
    shared_data: Path, tmp_path: Path, precision: str, bound: float
) -> None:
    series = tmp_path / "series"
    series.mkdir()
    chest = sorted((shared_data / "data" / "ct_dicom" / "covidctmd_P002_chest").iterdir())
    for path in chest[: 24 if precision == "float32" else 8]:
        (series / path.name).symlink_to(path)
    result = extract(
        series, tmp_path / "feats.h5", windows=["abdomen", "lung"], device="cpu", precision=precision, progress=False
    )
    assert result.exit_status == 0
    (scan_id,) = clear.Bags(tmp_path / "feats.h5")
    bag = clear.Bags(tmp_path / "feats.h5")[scan_id]
    features = np.asarray(bag.features, dtype=np.float64)
    for window, limits in enumerate([(-175, 275), (-1500, 500)]):
        expected = by_hand(series, limits).astype(np.float64)
        error, own_neighbour = disagreement(features[bag.window == window], expected)
        assert error <= bound
        assert own_neighbour
        mirrored, _ = disagreement(features[bag.window == window][::-1], expected)
        assert mirrored > 10 * bound  # the measure sees a wrong slice order


def test_a_mirrored_slice_falls_outside_the_tolerance(shared_data: Path) -> None:
    folder = shared_data / "data" / "ct_dicom" / "covidctmd_P002_chest"
    volume = clear.read_volume(folder)
    encoder = load_encoder("mambaout-lecl", device="cpu", precision="float32")
    few = slice(40, 46)

    def part(voxels: np.ndarray):
        return type(volume)(
            np.ascontiguousarray(voxels), "CT", "axial", volume.spacing_mm, volume.positions_mm[few],
            volume.row_direction, volume.column_direction, volume.normal,
        )  # fmt: skip

    straight = encoder.encode(part(volume.voxels[few]))
    mirrored = encoder.encode(part(volume.voxels[few][:, :, ::-1]))
    error, _ = disagreement(mirrored, straight)
    assert error > 0.05
