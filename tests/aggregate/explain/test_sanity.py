"""Sanity: what is destroyed is destroyed, and nothing else is."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from scipy.stats import spearmanr

from aggregate.explain.sanity import (
    permuted_aggregators,
    random_aggregators,
    random_encoder,
    rank_correlation,
)
from clear.bags import Bags
from clear.errors import InputError


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters())


def test_a_randomised_aggregator_keeps_its_scale_and_loses_its_weights(known: Any) -> None:
    run = known.run
    made = random_aggregators(run, seed=0)
    assert made.models is not None
    assert list(made.models) == run.pairs
    for pair, model in made.models.items():
        trained = run.model(*pair)
        assert torch.equal(model.mean, trained.mean)
        assert torch.equal(model.scale, trained.scale)
        for name, values in weights_of(trained).items():
            assert not torch.equal(values, weights_of(model)[name]), name
    again, other = random_aggregators(run, seed=0), random_aggregators(run, seed=1)
    assert again.models is not None
    assert other.models is not None
    first = next(iter(weights_of(made.models[0, 0])))
    assert torch.equal(weights_of(again.models[0, 0])[first], weights_of(made.models[0, 0])[first])
    assert not torch.equal(weights_of(other.models[0, 0])[first], weights_of(made.models[0, 0])[first])


def test_a_randomised_encoder_keeps_its_card_and_loses_its_weights(known: Any) -> None:
    before = {name: value.clone() for name, value in known.encoder.network.state_dict().items()}
    state = torch.random.get_rng_state()
    made = random_encoder(known.encoder, seed=0).encoder
    assert made is not None
    assert made.card == known.encoder.card
    assert made.digest != known.encoder.digest
    assert made.digest == random_encoder(known.encoder, seed=0).encoder.digest  # type: ignore[union-attr]
    assert all(torch.equal(before[name], value) for name, value in known.encoder.network.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_models_of_permuted_labels_no_longer_tell_the_classes(known: Any) -> None:
    run = known.run
    with Bags(known.folder / "feats.h5") as bags:
        made = permuted_aggregators(run, bags, seed=0, device="cpu")
        assert made.models is not None
        assert list(made.models) == run.pairs
        scores: dict[int, list[float]] = {0: [], 1: []}
        for (_, fold), model in made.models.items():
            test = run.folds.filter((pl.col("fold") == fold) & (pl.col("split") == "test"))["scan_id"]
            for scan in test:
                rows = torch.tensor(np.asarray(bags[scan].features))
                with torch.no_grad():
                    logit = float(model(rows, torch.tensor([0, len(rows)]))[0])
                scores[int(scan in known.places)].append(logit)
    wins = [sick > healthy for sick in scores[1] for healthy in scores[0]]
    assert 0.2 < np.mean(wins) < 0.8  # the run itself tells every pair
    own = run.metrics.filter((pl.col("metric") == "auroc") & (pl.col("estimator") == "pooled"))["estimate"].item()
    assert own > 0.95


def test_a_run_that_keeps_no_training_labels_cannot_be_trained_again(known: Any) -> None:
    run = known.run
    run.__dict__["predictions"] = run.predictions.filter(pl.col("scan_id") != "scan03")
    with Bags(known.folder / "feats.h5") as bags, pytest.raises(InputError, match="the labels of 1 scans that teach"):
        permuted_aggregators(run, bags)


def test_another_bag_file_than_the_runs_cannot_train_it_again(known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with Bags(known.folder / "feats.h5") as bags:
        monkeypatch.delitem(bags._index, "scan05")
        with pytest.raises(InputError, match=r"1 scans of the run .* are not in it"):
            permuted_aggregators(known.run, bags)


def test_rank_correlation_is_spearmans_with_ties() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, 40).astype(float), rng.integers(0, 5, 40).astype(float)
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert rank_correlation(a.reshape(5, 8), a.reshape(5, 8) ** 3) == pytest.approx(1.0)
    assert np.isnan(rank_correlation(np.ones(4), np.arange(4.0)))
