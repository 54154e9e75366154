"""The judge: planted labels are found, no patient is on both sides, and sets that cannot be scored say so."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl
import pytest
import torch

from clear.errors import InputError
from clear.frozen import Encoder
from pretrain.initialise import random_network
from pretrain.judge import SLICES_OF_A_SCAN, embed, judge, labelled_scans, labelled_slices, probe
from pretrain.store import SliceStore


def planted(strength: float, patients: int = 30, slices: int = 4, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Embeddings, codes and patients: half of the patients are shifted along one axis by so many deviations."""
    rng = np.random.default_rng(seed)
    groups = np.repeat([f"p{i}" for i in range(patients)], slices)
    codes = np.repeat(np.arange(patients) % 2, slices)
    embeddings = rng.standard_normal((len(groups), 8))
    embeddings[:, 0] += strength * codes
    return embeddings, codes, groups


def test_a_planted_difference_is_found_and_noise_is_not() -> None:
    strong = probe(*planted(3.0))
    assert strong["knn_auc"] > 0.95
    assert strong["linear_auc"] > 0.95
    assert strong["judged"] == pytest.approx((strong["knn_auc"] + strong["linear_auc"]) / 2)
    chance = [probe(*planted(0.0, seed=seed))["judged"] for seed in range(5)]
    assert 0.35 < np.mean(chance) < 0.65


def test_patients_are_never_on_both_sides() -> None:
    """Each patient has a signature of its own, and labels follow patients at random: leaking would be perfect."""
    rng = np.random.default_rng(1)
    groups = np.repeat([f"p{i}" for i in range(40)], 6)
    signature = rng.standard_normal((40, 8)) * 10
    embeddings = np.repeat(signature, 6, axis=0) + rng.standard_normal((240, 8)) * 0.01
    codes = np.repeat(rng.permutation(np.arange(40) % 2), 6)
    assert probe(embeddings, codes, groups)["knn_auc"] < 0.75


def test_several_classes_are_judged_one_against_the_rest() -> None:
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(30) % 3, 3)
    groups = np.repeat([f"p{i}" for i in range(30)], 3)
    embeddings = rng.standard_normal((90, 6))
    embeddings[np.arange(90), codes] += 4.0
    assert probe(embeddings, codes, groups)["linear_auc"] > 0.95


def test_embeddings_are_those_of_extraction(small: ModuleType, store: Path) -> None:
    opened = SliceStore(store)
    network = random_network(small.CARD)
    found = embed(network, small.CARD, labelled_slices(opened))
    volume = small.draw_patient(seed=5, index=2, matrix=40, slices=4, findings=["liver_lesion"]).series[0].volume
    expected = Encoder(small.CARD, network, "", device="cpu", precision="float32").encode(volume)
    of_scan = opened.table.filter(scan_id="P-scan-2")["row"].to_list()
    assert np.allclose(found[of_scan], expected.reshape(4, 2, -1).mean(1), atol=1e-5)


def test_slices_are_labelled_by_their_boxes(store: Path) -> None:
    opened = SliceStore(store)
    found = labelled_slices(opened)
    assert found.classes == ("none", "lesion")
    assert found.codes.tolist() == (opened.table["n_boxes"] > 0).cast(int).to_list()
    assert (
        found.describe()
        == f"judged on 24 slices of 6 patients ({(found.codes == 0).sum()} none, {found.codes.sum()} lesion)"
    )
    by_label = labelled_slices(opened, "label")
    assert by_label.classes == ("effusion", "liver_lesion")
    assert len(by_label.codes) == int(found.codes.sum())
    assert by_label.digest != found.digest


def test_scans_are_labelled_by_a_table_and_stand_for_the_mean_of_their_slices(
    small: ModuleType, store: Path, tmp_path: Path
) -> None:
    opened = SliceStore(store)
    table = pl.DataFrame({"patient_id": [f"P-{i}" for i in range(5)], "sick": [0, 1, 0, 1, 0]})
    table.write_csv(tmp_path / "labels.csv")
    found = labelled_scans(opened, tmp_path / "labels.csv", "sick")
    assert found.codes.tolist() == [0, 1, 0, 1, 0]
    assert found.groups.tolist() == [f"P-{i}" for i in range(5)]
    assert len(found.rows) == 20
    assert np.array_equal(np.bincount(found.item), [4] * 5)
    assert set(judge(random_network(small.CARD), small.CARD, found)) == {"knn_auc", "linear_auc", "judged"}


def test_long_scans_are_sampled_evenly(small: ModuleType, tmp_path: Path) -> None:
    opened = SliceStore(small.write_store(tmp_path / "long.zarr", patients=4, slices=40))
    pl.DataFrame({"patient_id": [f"P-{i}" for i in range(4)], "sick": [0, 1, 0, 1]}).write_csv(tmp_path / "l.csv")
    found = labelled_scans(opened, tmp_path / "l.csv", "sick")
    slices = opened.table[found.rows]["slice"].to_numpy().reshape(4, SLICES_OF_A_SCAN)
    assert slices[:, 0].tolist() == [0] * 4
    assert slices[:, -1].tolist() == [opened.table["n_slices"][0] - 1] * 4
    assert np.diff(slices).min() >= 2


def test_judging_leaves_weights_and_generators_alone(small: ModuleType, store: Path) -> None:
    network = random_network(small.CARD)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = judge(network, small.CARD, labelled_slices(SliceStore(store)))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert judge(network, small.CARD, labelled_slices(SliceStore(store))) == first


def test_a_stop_between_batches_ends_it(small: ModuleType, store: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge(random_network(small.CARD), small.CARD, labelled_slices(SliceStore(store)), check=stop)


def test_sets_that_cannot_be_scored_say_why(small: ModuleType, store: Path, tmp_path: Path) -> None:
    opened = SliceStore(store)
    plain = SliceStore(small.write_store(tmp_path / "plain.zarr", patients=2, boxes=False))
    with pytest.raises(InputError, match=r"plain\.zarr: expected slices of two classes or more.*found only none"):
        labelled_slices(plain)
    with pytest.raises(InputError, match=r"--judge-target sick: slices are labelled by their boxes.*--judge-labels"):
        labelled_slices(opened, "sick")
    table = pl.DataFrame({"patient_id": [f"P-{i}" for i in range(6)], "sick": [1, 0, 0, 0, 0, 0]})
    table = table.with_columns(size=pl.Series([1.5, 2.5, 3.5, 4.25, 5.0, 6.0]))
    table.write_csv(tmp_path / "labels.csv")
    with pytest.raises(InputError, match="one patient with 1"):
        labelled_scans(opened, tmp_path / "labels.csv", "sick")
    with pytest.raises(InputError, match="is a quantity; expected classes"):
        labelled_scans(opened, tmp_path / "labels.csv", "size")
    with pytest.raises(InputError, match="expected --judge-target COLUMN"):
        labelled_scans(opened, tmp_path / "labels.csv", "")
