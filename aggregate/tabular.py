"""Models of one row a bag, in the folds of a question: what probes and baselines share.

An endpoint of which a fold's training patients teach nothing (one class, no event) has no score there. Whatever is
learnt, scaling and imputation included, is learnt from the training patients of the fold; patients of the
inner split train too, because nothing is stopped early here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.pipeline import make_pipeline

from aggregate.cohort import Cohort
from aggregate.folds import Folds
from aggregate.predictions import prediction_rows
from aggregate.survival import cox_loss
from aggregate.targets import Targets


@dataclass(frozen=True)
class RowModel:
    """What to fit to rows of features.

    prepare: makes a transformer, fitted in each training fold; classifier, regressor: make scikit-learn estimators;
    survival: makes an estimator with `fit(x, times, events)` and `predict(x)`; None where the model has no such form.
    """

    prepare: Callable[[], Any]
    classifier: Callable[[int], Any]
    regressor: Callable[[int], Any] | None
    survival: Callable[[], CoxRidge] | None = None

    def answers(self, kind: str) -> bool:
        """Whether the model can be fitted to an endpoint of this kind."""
        form = {"regression": self.regressor, "survival": self.survival}.get(kind, self.classifier)
        return form is not None


def row_predictions(cohort: Cohort, folds: Folds, rows: NDArray[Any], model: RowModel) -> pl.DataFrame:
    """Predictions, in the form of predictions.csv, of a model of rows (B, p) for every fold; endpoints that the model
    cannot answer are left out."""
    targets = _answerable(cohort.targets, model)
    parts = []
    for repeat, fold in folds.pairs:
        split = {name: cohort.bags_of(scans) for name, scans in folds.split(repeat, fold).items()}
        train = np.sort(np.concatenate([split["train"], split["inner"]]))
        scores = np.concatenate(
            [_endpoint_scores(targets, e, rows, train, split["test"], model) for e in range(len(targets.endpoints))],
            axis=1,
        )
        parts.append(
            prediction_rows(cohort.names, cohort.patient_ids, targets, split["test"], scores, repeat=repeat, fold=fold)
        )
    return pl.concat(parts).with_columns(pl.col("y_score").fill_nan(None))


def _answerable(targets: Targets, model: RowModel) -> Targets:
    chosen = [e for e, endpoint in enumerate(targets.endpoints) if model.answers(endpoint.kind)]
    events = None if targets.events is None else targets.events[:, chosen]
    return Targets(tuple(targets.endpoints[e] for e in chosen), targets.codes[:, chosen], events)


def _endpoint_scores(
    targets: Targets,
    e: int,
    rows: NDArray[Any],
    train: NDArray[np.int64],
    test: NDArray[np.int64],
    model: RowModel,
) -> NDArray[np.float64]:
    """(n, classes) probabilities or (n, 1) values of one endpoint, nan where the training bags teach nothing of it."""
    endpoint = targets.endpoints[e]
    if targets.nothing_to_learn(train)[e]:
        return np.full((len(test), len(endpoint.score_classes)), np.nan)
    known = train[np.isfinite(targets.codes[train, e])]
    truth = targets.codes[known, e]
    if endpoint.kind == "regression" and model.regressor is not None:
        fitted = make_pipeline(model.prepare(), model.regressor(len(known))).fit(rows[known], truth)
        return np.asarray(fitted.predict(rows[test]), dtype=np.float64)[:, None]
    if endpoint.kind == "survival" and model.survival is not None and targets.events is not None:
        prepare = model.prepare().fit(rows[known])
        cox = model.survival().fit(prepare.transform(rows[known]), truth, targets.events[known, e])
        return cox.predict(prepare.transform(rows[test]))[:, None]
    probabilities = np.zeros((len(test), len(endpoint.classes)))
    present = np.unique(truth).astype(int)
    fitted = make_pipeline(model.prepare(), model.classifier(len(known))).fit(rows[known], truth.astype(int))
    probabilities[:, present] = fitted.predict_proba(rows[test])
    return probabilities[:, [endpoint.classes.index(name) for name in endpoint.score_classes]]


class CoxRidge(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A linear log hazard that minimises the mean Cox loss over events plus `alpha` / 2 times its squared length."""

    def __init__(self, alpha: float = 0.01) -> None:
        self.alpha = alpha

    def fit(self, x: Any, times: NDArray[np.float64], events: NDArray[np.float64]) -> CoxRidge:
        """x: (n, p); times, events: (n,)."""
        rows = torch.as_tensor(np.asarray(x, dtype=np.float64))
        time, event = torch.as_tensor(times), torch.as_tensor(events)
        weights = torch.zeros(rows.shape[1], dtype=torch.float64, requires_grad=True)
        seen = max(float((events == 1).sum()), 1.0)
        optimiser = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            optimiser.zero_grad()
            loss = cox_loss(rows @ weights, time, event) / seen + self.alpha / 2 * (weights**2).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimiser.step(closure)  # type: ignore[no-untyped-call]
        self.weights_ = weights.detach().numpy()
        return self

    def predict(self, x: Any) -> NDArray[np.float64]:
        """(n,) log hazards."""
        return np.asarray(np.asarray(x, dtype=np.float64) @ self.weights_)
