"""Every figure once, with names from a hostile table."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from aggregate.figures import (
    PLACES,
    SHARES,
    Spread,
    Training,
    along_z,
    along_z_figure,
    attention_profile_figure,
    by_group,
    calibration_bars,
    calibration_figure,
    concentration_figure,
    confusion_figure,
    missing_figure,
    pr_curve,
    pr_figure,
    roc_curve,
    roc_figure,
    share_of_top,
    spread_figure,
    training_figure,
)
from aggregate.figures.style import Drawing

Draw = Callable[[str], Drawing]


def scored(n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = np.arange(n) % 3 == 0
    return truth, 1 / (1 + np.exp(-rng.normal(size=n) - truth)), np.arange(n) // 2


def _spread(name: str) -> Drawing:
    folds = np.array([0.7, 0.9, np.nan])
    return spread_figure(
        [Spread(name, 0.8, 0.7, 0.9, folds), Spread("b", np.nan, np.nan, np.nan, folds)], reference=0.5, title=name
    )


def _training(name: str) -> Drawing:
    epoch = np.arange(1, 500.0)
    inner = np.where(epoch < 400, 1 / epoch, np.nan)
    return training_figure({name: Training(epoch, 2 / epoch, inner, best=300)}, title=name)


def _groups(name: str, by: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> dict:
    weights = [np.random.default_rng(i).dirichlet(np.ones(20 + i)) for i in range(8)]
    return by_group(np.stack([by(w) for w in weights]), x, [name, "b"] * 4, np.arange(8))


FIGURES: dict[str, Draw] = {
    "roc": lambda name: roc_figure({name: roc_curve(*scored(), name, n=50)}, title=name),
    "roc of runs": lambda name: roc_figure({f"{name}{i}": roc_curve(*scored(seed=i), "", n=50) for i in range(5)}),
    "pr": lambda name: pr_figure({name: pr_curve(*scored(), name, n=50)}, prevalence=1 / 3, title=name),
    "calibration": lambda name: calibration_figure({name: calibration_bars(*scored(), name)}, title=name),
    "calibration of runs": lambda name: calibration_figure(
        {f"{name}{i}": calibration_bars(*scored(seed=i), "") for i in range(2)}
    ),
    "confusion": lambda name: confusion_figure([[9, 1, 0], [2, 8, 0], [0, 0, 0]], [name, "b", "c"], title=name),
    "training": _training,
    "spread": _spread,
    "concentration": lambda name: concentration_figure(_groups(name, share_of_top, SHARES), title=name),
    "along z": lambda name: along_z_figure(
        _groups(name, lambda w: along_z(w, np.arange(len(w)) * 2.5), PLACES), ends=(name, "head"), title=name
    ),
    "profile": lambda name: attention_profile_figure(
        np.arange(300) * 1.25, np.random.default_rng(0).dirichlet(np.ones(600)).reshape(300, 2), [name, "lung"], [4, 5]
    ),
    "missing": lambda name: missing_figure(name, f"{name} has no scan"),
}


@pytest.fixture(params=FIGURES)
def draw(request: pytest.FixtureRequest) -> Draw:
    """Draws one of the figures, with this name wherever it takes one."""
    return FIGURES[request.param]
