"""Cases: every scored bag of every endpoint, the worst errors first.

A case is called as the metrics call it (`aggregate.metrics`): at 0.5, the most probable class, or the median of ordered
ones. Its error is 1 minus the probability that its true class got; of a quantity the distance to the truth; of a
survival time the share of comparable pairs of its fold that are ranked the wrong way round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from aggregate.metrics import called, median_class
from aggregate.scored import Scored

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """One bag and one endpoint.

    truth, predicted: as a reader says them; predicted "" for a survival time. score: the mean over the models that
    scored it: of binary endpoints the probability of the positive class, of several classes that of the called one, a
    value, a log hazard. wrong: None where nothing is called. models: (repeat, fold) of each.
    true_number, called_number: of quantities and times, in full; state: of a time, `event` or `censored`.
    """

    scan: str
    patient: str
    endpoint: str
    truth: str
    predicted: str
    score: float
    error: float
    wrong: bool | None
    models: tuple[tuple[int, int], ...]
    true_number: float | None = None
    called_number: float | None = None
    state: str = ""


def cases(scored: Mapping[str, Scored], predictions: pl.DataFrame) -> list[Case]:
    """Errors before the rest, larger errors first, endpoints taking turns."""
    rows = predictions.filter(pl.col("split") == "test")
    patient_of = dict(rows.select("scan_id", "patient_id").unique().iter_rows())
    models = [(int(repeat), int(fold)) for repeat, fold in rows.select("repeat", "fold").unique().sort(pl.all()).rows()]
    found: list[tuple[tuple[bool, int, int], Case]] = []
    for number, here in enumerate(scored.values()):
        of_endpoint = endpoint_cases(here, patient_of, models)
        of_endpoint.sort(key=lambda case: (case.wrong is False, -case.error))
        found += [((case.wrong is False, place, number), case) for place, case in enumerate(of_endpoint)]
    return [case for _, case in sorted(found, key=lambda pair: pair[0])]


def endpoint_cases(scored: Scored, patient_of: Mapping[str, str], models: Sequence[tuple[int, int]]) -> list[Case]:
    """The cases of one endpoint, in the order of their scans."""
    if not len(scored):
        return []
    endpoint, means, truth = scored.endpoint, scored.mean_scores, scored.truth
    said: list[tuple[str, str, bool | None]]
    numbers: list[tuple[float | None, float | None, str]] = [(None, None, "")] * len(scored)
    by_model = np.asarray(np.isfinite(scored.of_model).all(axis=2))
    if endpoint.is_classes:
        codes = truth.astype(np.int64)
        guess = called_codes(scored)
        if endpoint.kind == "binary":
            score, of_truth = means[:, 0], np.where(codes == 1, means[:, 0], 1 - means[:, 0])
        else:
            score = means[np.arange(len(means)), guess]
            of_truth = means[np.arange(len(means)), codes]
        error = 1 - of_truth
        said = [
            (endpoint.classes[code], endpoint.classes[call], bool(code != call))
            for code, call in zip(codes, guess, strict=True)
        ]
    elif endpoint.kind == "survival":
        score, error = means[:, 0], misranked(scored)
        said = [(f"{'event' if event == 1 else 'censored'} at {time:g}", "", None) for time, event in truth]
        numbers = [(float(time), None, "event" if event == 1 else "censored") for time, event in truth]
    else:
        score, error = means[:, 0], np.abs(means[:, 0] - truth)
        said = [(f"{value:.4g}", f"{guess:.4g}", None) for value, guess in zip(truth, score, strict=True)]
        numbers = [(float(value), float(guess), "") for value, guess in zip(truth, score, strict=True)]
    return [
        Case(
            scan,
            patient_of.get(scan, ""),
            endpoint.name,
            truth=said[i][0],
            predicted=said[i][1],
            score=float(score[i]),
            error=float(error[i]),
            wrong=said[i][2],
            models=tuple(pair for pair, has in zip(models, by_model[:, i], strict=True) if has),
            true_number=numbers[i][0],
            called_number=numbers[i][1],
            state=numbers[i][2],
        )
        for i, scan in enumerate(scored.scans)
    ]


def called_codes(scored: Scored) -> NDArray[np.int64]:
    """(n,) the class that is called of each bag."""
    means = scored.mean_scores
    if scored.endpoint.kind == "binary":
        return called(means[:, 0])
    return called(median_class(means) if scored.endpoint.kind == "ordinal" else means)


def misranked(scored: Scored) -> Floats:
    """(n,) of each bag the share of its comparable pairs (Harrell) that a model ranks wrongly, the mean over models.

    Only bags of the same fold are compared; equal risks count one half; 0 where a bag has no comparable pair.
    """
    wrong, pairs = np.zeros(len(scored)), np.zeros(len(scored))
    for scores, rows in zip(scored.of_model, scored.rows_of, strict=True):
        time, event = scored.truth[rows, 0], scored.truth[rows, 1]
        risk = scores[rows, 0]
        for i in np.flatnonzero(event == 1):
            later = (time > time[i]) | ((time == time[i]) & (event == 0))
            lost = np.where(risk > risk[i], 1.0, np.where(risk == risk[i], 0.5, 0.0)) * later
            pairs[rows] += later
            wrong[rows] += lost
            pairs[rows[i]] += later.sum()
            wrong[rows[i]] += lost.sum()
    return np.asarray(np.divide(wrong, pairs, out=np.zeros(len(scored)), where=pairs > 0))
