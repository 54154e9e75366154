"""The phantom is a function of the patient's own coordinates, so what a tensor must hold is known for every voxel."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from clear.encoders import ENCODERS
from clear.errors import InputError, ScanRefused
from clear.frozen import Encoder
from clear.scans import read_volume
from clear.volume import Volume, grid_geometry, stack_geometry
from clear.volume_input import VolumeInput, prepare_volume


def registered(name: str) -> VolumeInput:
    """What a registered encoder takes: what is checked here is what users get."""
    spec = ENCODERS[name].volume
    assert spec is not None
    return spec


MERLIN, CT_CLIP = registered("merlin"), registered("ct-clip")
SMALL_MERLIN = replace(MERLIN, shape=(10, 14, 18))
SMALL_CT_CLIP = replace(CT_CLIP, shape=(18, 22, 26))
STORAGES = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))
SPACING = (0.8, 0.9, 2.0)  # x, y, z
SIZE = (31, 26, 13)

Field = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def lumps(lps: NDArray[np.float64]) -> NDArray[np.float64]:
    """HU (...) at LPS positions (..., 3): smooth, beyond both clipping ends, and alike in no two directions."""
    x, y, z = np.moveaxis(lps, -1, 0)
    return 900 * np.sin(x / 4) + 700 * np.cos(y / 3 + 1) * np.sin(z / 7) + 60 * x - 30 * y + 25 * z - 150


def plane_field(lps: NDArray[np.float64]) -> NDArray[np.float64]:
    """HU that grow evenly, so that linear interpolation is exact."""
    return lps @ np.array([8.0, -12.0, 20.0]) + 40


def lps_affine(axes: tuple[int, ...] = (0, 1, 2), signs: tuple[int, ...] = (1, 1, 1)) -> NDArray[np.float64]:
    """(4, 4) from array index to LPS, of the same box of the patient, whatever the storage."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for column, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[axis, column] = sign * SPACING[axis]
        affine[axis, 3] = (0 if sign > 0 else (SIZE[axis] - 1) * SPACING[axis]) - 5.0
    return affine


def array_on(affine: NDArray[np.float64], shape: tuple[int, ...], field: Field = lumps) -> NDArray[np.int16]:
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return np.rint(field(index @ affine[:3, :3].T + affine[:3, 3])).astype(np.int16)


def volume_on(affine: NDArray[np.float64], shape: tuple[int, ...], field: Field = lumps) -> Volume:
    array = array_on(affine, shape, field)
    axis, geometry = grid_geometry(affine, shape)
    return Volume.from_stack(np.moveaxis(array, axis, 0), geometry, "CT")


def volume_of(
    slices: NDArray[np.int16], positions: Any, spacing: tuple[float, float] = (1.0, 1.0), **more: Any
) -> Volume:
    geometry = stack_geometry(positions, (1, 0, 0), (0, 1, 0), slices.shape[1:], spacing, 1.0)
    return Volume.from_stack(slices, geometry, "CT", **more)


def stack_at(z_mm: Any, drift: tuple[float, float] = (0.0, 0.0), side: int = 24) -> Volume:
    """Axial slices of the even field at z_mm, moved by drift (x, y) for each mm along z."""
    z = np.asarray(z_mm, dtype=float)
    positions = np.stack([drift[0] * z, drift[1] * z, z], axis=1)
    y, x = np.mgrid[:side, :side].astype(float)
    slices = [plane_field(np.stack([x + px, y + py, np.full_like(x, pz)], -1)) for px, py, pz in positions]
    return volume_of(np.rint(slices).astype(np.int16), positions)


def box(tensor: torch.Tensor) -> NDArray[np.float32]:
    assert tensor.shape[:2] == (1, 1)
    assert tensor.dtype == torch.float32
    return tensor[0, 0].numpy()


def centred(values: NDArray[np.float64], shape: tuple[int, ...], pad: float) -> NDArray[np.float64]:
    """Each axis cut or padded in turn, what is odd on the far side."""
    for axis, wanted in enumerate(shape):
        extra = wanted - values.shape[axis]
        if extra > 0:
            margins = [(0, 0)] * 3
            margins[axis] = (extra // 2, extra - extra // 2)
            values = np.pad(values, margins, constant_values=pad)
        else:
            values = np.take(values, np.arange(wanted) + (-extra) // 2, axis=axis)
    return values


def expected_merlin(ras: NDArray[np.int16], spacing: Any, spec: VolumeInput) -> NDArray[np.float64]:
    """MONAI's steps, written with scipy: samples from the first voxel's centre, the edge going on behind the last."""
    steps = np.array(spec.spacing_mm[::-1]) / spacing
    sizes = [int(np.round((n - 1) / step + 1)) for n, step in zip(ras.shape, steps, strict=True)]
    places = np.meshgrid(*(np.arange(n) * step for n, step in zip(sizes, steps, strict=True)), indexing="ij")
    values = map_coordinates(ras.astype(np.float64), places, order=1, mode="nearest")
    return centred(np.clip((values + 1000) / 2000, 0, 1), spec.tensor_shape, 0.0)


def expected_ct_clip(slp: NDArray[np.int16], spacing: Any, spec: VolumeInput) -> NDArray[np.float64]:
    """The inference script's steps, in torch."""
    target = (1.5, 0.75, 0.75)
    size = [int(n * (s / t)) for n, s, t in zip(slp.shape, spacing, target, strict=True)]
    values = torch.from_numpy(np.clip(slp, -1000, 1000).astype(np.float64))[None, None]
    values = torch.nn.functional.interpolate(values, size=size, mode="trilinear", align_corners=False)[0, 0]
    return centred(values.numpy() / 1000, spec.tensor_shape, -1.0)


@pytest.mark.parametrize("shape", [(10, 14, 18), (40, 44, 46), (9, 40, 15)], ids=["cut", "padded", "both"])
def test_merlins_grid_is_monais(shape: tuple[int, int, int]) -> None:
    spec = replace(MERLIN, shape=tuple(reversed(shape)))
    array = array_on(lps_affine(), SIZE)
    ras = array[::-1, ::-1]
    found = box(prepare_volume(volume_on(lps_affine(), SIZE), spec))
    assert np.abs(found - expected_merlin(ras, SPACING, spec)).max() < 1e-6


@pytest.mark.parametrize(
    "spacing", [(0.31, 0.31, 0.7), (1.5, 1.5, 3.0), (4.0, 3.9, 9.0)], ids=["fine", "own", "coarse"]
)
def test_merlins_grid_is_monais_at_any_spacing(spacing: tuple[float, float, float]) -> None:
    affine = np.diag([*spacing, 1.0])
    found = box(prepare_volume(volume_on(affine, (20, 17, 15)), SMALL_MERLIN))
    ras = array_on(affine, (20, 17, 15))[::-1, ::-1]
    assert np.abs(found - expected_merlin(ras, spacing, SMALL_MERLIN)).max() < 1e-6


@pytest.mark.parametrize("spacing", [(0.31, 0.31, 0.7), (0.75, 0.75, 1.5), (0.8, 0.9, 2.0), (4.0, 3.9, 9.0)])
def test_ct_clips_grid_is_that_of_torchs_interpolate(spacing: tuple[float, float, float]) -> None:
    affine = np.diag([*spacing, 1.0])
    slp = array_on(affine, (31, 26, 13)).transpose(2, 0, 1)
    for shape in ((18, 22, 26), (60, 70, 80), (8, 70, 12)):
        spec = replace(CT_CLIP, shape=shape)
        found = box(prepare_volume(volume_on(affine, (31, 26, 13)), spec))
        assert np.abs(found - expected_ct_clip(slp, [spacing[i] for i in (2, 0, 1)], spec)).max() < 1e-6


def test_the_published_boxes_are_filled_in_the_models_axes() -> None:
    volume = volume_on(lps_affine(), SIZE)
    for spec, shape in ((MERLIN, (224, 224, 160)), (CT_CLIP, (240, 480, 480))):
        assert spec.tensor_shape == shape
        found = box(prepare_volume(volume, spec))
        assert found.shape == shape
        assert (found == spec.pad).mean() > 0.9  # the phantom is a few centimetres wide


@pytest.mark.parametrize("spec", [SMALL_MERLIN, SMALL_CT_CLIP], ids=["merlin", "ct-clip"])
def test_the_tensor_does_not_depend_on_how_the_scan_was_stored(spec: VolumeInput, tmp_path: Path) -> None:
    expected = box(prepare_volume(volume_on(lps_affine(), SIZE), spec))
    assert expected.std() > 0.1
    for k, (axes, signs) in enumerate(STORAGES):
        affine = lps_affine(axes, signs)
        array = array_on(affine, tuple(SIZE[axis] for axis in axes))
        path = tmp_path / f"{k}.nii"
        nibabel.save(nibabel.Nifti1Image(array, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine), path)
        found = box(prepare_volume(read_volume(path), spec))
        assert np.abs(found - expected).max() < 1e-5, (axes, signs)


PLANES = ("sagittal", "coronal", "axial")


def volume_in_plane(slice_axis: int) -> Volume:
    """One set of voxels, called sagittal, coronal or axial: what is where in the patient is the same."""
    affine = lps_affine()
    array = np.moveaxis(array_on(affine, SIZE), slice_axis, 0)
    rows, columns = (axis for axis in range(3) if axis != slice_axis)
    geometry = stack_geometry(
        affine[:3, 3] + np.arange(SIZE[slice_axis])[:, None] * affine[:3, slice_axis],
        np.eye(3)[columns],
        np.eye(3)[rows],
        (SIZE[rows], SIZE[columns]),
        (SPACING[rows], SPACING[columns]),
    )
    volume = Volume.from_stack(array, geometry, "CT")
    assert volume.plane == PLANES[slice_axis]
    return volume


@pytest.mark.parametrize("slice_axis", [0, 1, 2], ids=PLANES)
def test_the_plane_of_the_slices_does_not_matter(slice_axis: int) -> None:
    affine, volume = lps_affine(), volume_in_plane(slice_axis)
    for spec in (SMALL_MERLIN, SMALL_CT_CLIP):
        expected = box(prepare_volume(volume_on(affine, SIZE), spec))
        assert np.abs(box(prepare_volume(volume, spec)) - expected).max() < 1e-5


# fields and settings of narrow networks, and the box that they take
NARROW = {"layers": (1, 1, 1, 1), "planes": (8, 8, 16, 16), "stem": 8}
BLOCKS = {"dim": 16, "dim_head": 8, "heads": 2, "spatial_depth": 1, "temporal_depth": 1}
PATCHES = {"image_size": 24, "patch_size": 8, "temporal_patch_size": 4, "codebook_size": 64, "dim_latent": 12}
TINY: dict[str, tuple[int, dict[str, Any], tuple[int, int, int]]] = {
    "merlin": (64, NARROW, (16, 32, 32)),
    "merlin-contrastive": (12, {**NARROW, "contrastive_dim": 12}, (16, 32, 32)),
    "ct-clip": (12, {**BLOCKS, **PATCHES}, (16, 24, 24)),
}


@pytest.mark.parametrize("name", [name for name, card in ENCODERS.items() if card.volume is not None])
def test_an_encoder_of_volumes_takes_them_in_every_plane_and_orientation(
    name: str, seeded: Callable[..., Encoder], tmp_path: Path
) -> None:
    card, (dim, settings, shape) = ENCODERS[name], TINY[name]
    spec = replace(registered(name), shape=shape)
    tiny = replace(card, dim=dim, settings={**card.settings, **settings}, volume=spec)
    encoder = seeded(tiny)
    volume = volume_on(lps_affine(), SIZE)
    expected = encoder.encode(volume)
    assert expected.shape == (1, tiny.dim)
    scale = float(expected.std())
    assert scale > 1e-3
    for slice_axis in range(3):
        assert np.abs(encoder.encode(volume_in_plane(slice_axis)) - expected).max() < 1e-3 * scale, slice_axis
    for axes, signs in STORAGES[5::7]:
        affine = lps_affine(axes, signs)
        stored = volume_on(affine, tuple(SIZE[axis] for axis in axes))
        assert np.abs(encoder.encode(stored) - expected).max() < 1e-3 * scale, (axes, signs)
    mirrored = replace(volume, voxels=np.ascontiguousarray(volume.voxels[:, :, ::-1]))
    assert np.abs(encoder.encode(mirrored) - expected).max() > 1e-2 * scale

    # a file whose thickest voxels lie across is read as sagittal slices; the voxels are those of axial ones
    affine = np.diag([1.0, 0.7, 0.7, 1.0])
    array = array_on(affine, (24, 30, 32))
    nibabel.save(nibabel.Nifti1Image(array, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine), tmp_path / "ct.nii")
    sagittal = read_volume(tmp_path / "ct.nii", modality="CT")
    assert sagittal.plane == "sagittal"
    axial = volume_of(array.transpose(2, 1, 0), [(0, 0, 0.7 * z) for z in range(32)], (0.7, 1.0))
    assert axial.plane == "axial"
    assert np.abs(encoder.encode(sagittal) - encoder.encode(axial)).max() < 1e-3 * scale


def test_axes_are_those_that_simpleitk_gives_by_the_same_letters() -> None:
    image = sitk.GetImageFromArray(array_on(lps_affine(), SIZE).transpose(2, 1, 0))
    image.SetSpacing(SPACING)
    image.SetDirection(np.eye(3).ravel().tolist())
    volume = volume_on(lps_affine(), SIZE)
    for axes in ("RAS", "SLP", "LPS", "PIR", "AIL"):
        oriented = sitk.GetArrayFromImage(sitk.DICOMOrient(image, axes)).transpose(2, 1, 0)
        spec = replace(
            CT_CLIP, axes=axes, shape=SIZE[::-1], spacing_mm=SPACING[::-1], hu=(-4000, 4000), out=(-4.0, 4.0)
        )
        assert np.allclose(box(prepare_volume(volume, spec)) * 1000, oriented, atol=1e-2)


@pytest.mark.parametrize("spec", [SMALL_MERLIN, SMALL_CT_CLIP], ids=["merlin", "ct-clip"])
def test_a_mirrored_patient_gives_another_tensor(spec: VolumeInput) -> None:
    volume = volume_on(lps_affine(), SIZE)
    straight = box(prepare_volume(volume, spec))
    for axis in range(3):
        mirrored = replace(volume, voxels=np.ascontiguousarray(np.flip(volume.voxels, axis)))
        assert np.abs(box(prepare_volume(mirrored, spec)) - straight).mean() > 0.05


def test_a_patient_lying_askew_stays_askew() -> None:
    turn = np.deg2rad(9)
    askew = np.eye(4)
    askew[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    array = array_on(lps_affine(), SIZE)
    axis, geometry = grid_geometry(askew @ lps_affine(), SIZE)
    turned = Volume.from_stack(np.moveaxis(array, axis, 0), geometry, "CT")
    for spec in (SMALL_MERLIN, SMALL_CT_CLIP):
        expected = box(prepare_volume(volume_on(lps_affine(), SIZE), spec))
        assert np.abs(box(prepare_volume(turned, spec)) - expected).max() < 1e-5


def test_stored_padding_is_air_and_nothing_near_it_is() -> None:
    slices = np.full((12, 40, 40), 100, np.int16)
    slices[:, :, :20] = -2000
    slices[3, 30:, 20:] = -2000
    padding = np.full((12, 2), -2000, np.int16)
    padding[3] = 1, 0
    spec = replace(
        CT_CLIP, spacing_mm=(1.0, 1.0, 1.0), shape=(12, 40, 40), axes="SPL", hu=(-3000, 1000), out=(-3.0, 1.0)
    )
    found = box(prepare_volume(volume_of(slices, [(0, 0, z) for z in range(12)], padding=padding), spec))
    assert np.allclose(found[2, :, :20], -1.0)
    assert np.allclose(found[2, :, 20:], 0.1)
    assert np.allclose(found[3, 30:, 20:], -2.0)  # a slice without a padding range keeps its values
    assert np.allclose(found[3, :, :20], -2.0)


def test_clipping_comes_before_or_after_interpolation_as_the_card_says() -> None:
    slices = np.array([-1000, 3000, -1000, 3000], np.int16)[:, None, None] * np.ones((1, 8, 8), np.int16)
    volume = volume_of(slices, [(0, 0, z) for z in range(4)])
    halfway = replace(MERLIN, spacing_mm=(0.5, 1.0, 1.0), shape=(7, 8, 8), axes="SPL")
    assert np.allclose(box(prepare_volume(volume, halfway))[1], 1.0)  # the mean is 1000 HU
    assert np.allclose(box(prepare_volume(volume, replace(halfway, clip="before")))[1], 0.5)


def test_missing_slices_are_blended_and_the_others_kept() -> None:
    even = prepare_volume(stack_at(np.arange(0, 24, 2.0)), SMALL_MERLIN)
    assert even.std() > 0.01
    gaps = stack_at(np.delete(np.arange(0, 24, 2.0), [3, 7, 8]))
    assert not gaps.has_even_gaps
    assert torch.allclose(prepare_volume(gaps, SMALL_MERLIN), even, atol=1e-3)
    crooked = stack_at([0, 1.5, 4, 6, 9.5, 10, 12, 15, 16, 18, 20.5, 22])
    assert torch.allclose(prepare_volume(crooked, SMALL_MERLIN), even, atol=1e-3)
    painted = replace(gaps, padding=np.tile(np.int16([[-32000, 32000]]), (gaps.n_slices, 1)))
    assert float(prepare_volume(painted, replace(SMALL_MERLIN, shape=(8, 14, 14))).max()) == 0.0


def test_a_fine_part_of_an_uneven_scan_keeps_its_slices() -> None:
    z = [*range(7), *range(11, 47, 5)]
    slices = np.zeros((len(z), 8, 8), np.int16)
    slices[0:7:2] = 1000
    volume = volume_of(slices, [(0, 0, place) for place in z])
    assert volume.spacing_mm[0] == 5.0
    spec = replace(MERLIN, spacing_mm=(1.0, 1.0, 1.0), shape=(47, 8, 8), axes="SPL")
    found = box(prepare_volume(volume, spec))[:, 4, 4]
    assert np.allclose(found[:7], [1, 0.5, 1, 0.5, 1, 0.5, 1])
    assert np.allclose(found[11:], 0.5)


def test_a_wide_gap_is_refused_but_wide_even_slices_are_not() -> None:
    with pytest.raises(ScanRefused, match=r"2\.0 to 12\.0 mm apart") as refusal:
        prepare_volume(stack_at([0, 2, 4, 6, 8, 20, 22]), SMALL_MERLIN)
    assert refusal.value.reason == "uneven_spacing"
    assert prepare_volume(stack_at(np.arange(0, 60, 12.0)), SMALL_MERLIN).std() > 0


@pytest.mark.parametrize("drift", [(0.0, -0.4), (0.24, 0.33)], ids=["one way", "both ways"])
def test_a_tilted_gantrys_slices_are_put_straight(drift: tuple[float, float]) -> None:
    # 16 slices of 40 x 40 mm, 2.5 mm apart; the straight box holds them all and lies in the middle of 60 x 60 mm
    z = np.arange(0, 40, 2.5)
    tilted = stack_at(z, drift, side=40)
    assert any("gantry tilt" in remark for remark in tilted.remarks)
    spec = replace(
        CT_CLIP, spacing_mm=(2.5, 1.0, 1.0), shape=(16, 60, 60), axes="SPL", hu=(-3000, 3000), out=(-3.0, 3.0)
    )
    found = box(prepare_volume(tilted, replace(spec, pad=-3.0)))
    moved = np.array(drift) * z[-1]
    sides = 40 + np.ceil(np.abs(moved) - 1e-6).astype(int)
    first = np.floor(np.minimum(moved, 0) + 1e-6) - (60 - sides) // 2
    places = np.stack(np.meshgrid(z, first[1] + np.arange(60), first[0] + np.arange(60), indexing="ij"), -1)[..., ::-1]
    in_slice = places[..., :2] - places[..., 2:] * drift  # (x, y) of the place, from its own slice's first voxel
    scanned = ((in_slice > -0.5) & (in_slice < 39.5)).all(-1)
    inner = ((in_slice >= 0) & (in_slice <= 39)).all(-1)
    assert inner.mean() > 0.35
    assert np.abs(found - plane_field(places) / 1000)[inner].max() < 1e-3
    assert np.isin(found[~scanned], [-1.0, -3.0]).all()  # air in the straight box, padding around it
    assert (found == -3.0).all(axis=(0, 1)).sum() == 60 - sides[0]


def test_uneven_slices_that_are_tilted_or_shifted_are_refused() -> None:
    with pytest.raises(ScanRefused, match="shifted against each other") as refusal:
        prepare_volume(stack_at([0, 2, 4, 7, 9], (0.0, 0.4)), SMALL_MERLIN)
    assert refusal.value.reason == "uneven_spacing"


def test_a_tilt_too_small_to_be_one_changes_no_grid() -> None:
    straight, nearly = (stack_at(np.arange(0, 30, 2.5), (0.0, drift)) for drift in (0.0, 0.004))
    found = [prepare_volume(volume, SMALL_MERLIN) for volume in (straight, nearly)]
    assert torch.equal(found[0] == 0, found[1] == 0)
    assert torch.allclose(*found, atol=2e-3)


def test_a_spacing_in_single_precision_gives_the_same_grid() -> None:
    array = array_on(lps_affine(), (40, 40, 20))
    for spec in (replace(MERLIN, shape=(12, 24, 24)), replace(CT_CLIP, shape=(24, 44, 44))):
        found = []
        for spacing in (0.9, float(np.float32(0.9)), 0.9 - 1e-7):
            volume = volume_of(array.T, [(0, 0, 1.8 * z) for z in range(20)], (spacing, spacing))
            found.append(prepare_volume(volume, spec))
        assert torch.allclose(found[0], found[1], atol=1e-4)
        assert torch.allclose(found[0], found[2], atol=1e-4)


def test_what_is_no_ct_volume_is_refused_by_name() -> None:
    volume = volume_on(lps_affine(), SIZE)
    magnetic = replace(volume, modality="MR", voxels=volume.voxels.astype(np.float32))
    one = volume_of(volume.voxels[:1], [(0, 0, 0)])
    nowhere = replace(volume, spacing_mm=(2.0, float("nan"), 0.8))
    for odd, reason in ((magnetic, "modality"), (one, "single_slice"), (nowhere, "unknown_spacing")):
        with pytest.raises(ScanRefused) as refusal:
            prepare_volume(odd, MERLIN)
        assert refusal.value.reason == reason


def test_the_volume_itself_is_left_as_it_was() -> None:
    volume = volume_on(lps_affine(), SIZE)
    before = volume.voxels.copy()
    prepare_volume(replace(volume, padding=np.tile(np.int16([[-100, 300]]), (volume.n_slices, 1))), SMALL_CT_CLIP)
    assert np.array_equal(volume.voxels, before)


@pytest.mark.parametrize("spec", [MERLIN, CT_CLIP], ids=["merlin", "ct-clip"])
def test_the_description_survives_json(spec: VolumeInput) -> None:
    assert VolumeInput.from_dict(json.loads(json.dumps(spec.as_dict()))) == spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spacing_mm": [3.0, 1.5]}, r"spacing_mm is \(3.0, 1.5\); expected \(z, y, x\) in mm"),
        ({"spacing_mm": [3.0, 1.5, 0]}, "spacing_mm"),
        ({"spacing_mm": 3.0}, "spacing_mm is 3.0"),
        ({"shape": [160, 224.0, 224]}, "shape"),
        ({"shape": [160, 224, 0]}, "shape"),
        ({"hu": [1000, -1000]}, "hu"),
        ({"hu": [-1000, 40000]}, "HU within int16"),
        ({"out": [1.0, 1.0]}, "out"),
        ({"pad": float("nan")}, "pad is nan; expected a number"),
        ({"axes": "RLS"}, "axes is 'RLS'; expected three letters"),
        ({"axes": "xyz"}, "axes"),
        ({"axes": ["R", "A", "S"]}, "axes"),
        ({"grid": "corners"}, "grid is 'corners'; expected first_centre or extent"),
        ({"clip": "never"}, "clip is 'never'; expected before or after"),
        ({"window": "lung"}, r"unknown field\(s\) window"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        VolumeInput.from_dict({**MERLIN.as_dict(), **change})


def test_a_missing_field_is_named() -> None:
    data = MERLIN.as_dict()
    del data["pad"]
    with pytest.raises(InputError, match=r"missing.*'pad'"):
        VolumeInput.from_dict(data)
