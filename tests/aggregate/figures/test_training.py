"""Training curves of folds."""

from __future__ import annotations

import numpy as np

from aggregate.figures import Training, svg, training_figure
from aggregate.figures.style import thinned

EPOCH = np.arange(1, 41.0)


def test_each_fold_has_two_lines_and_a_dot_where_its_weights_were_kept() -> None:
    folds = {f"fold-{k}": Training(EPOCH, 1 / EPOCH, 2 / EPOCH + k, best=10 + k) for k in range(3)}
    lines = training_figure(folds).axes[0].lines
    assert len(lines) == 9
    dots = [(line.get_xdata()[0], line.get_ydata()[0]) for line in lines if len(line.get_xdata()) == 1]
    assert dots == [(10, 0.2), (11, 2 / 11 + 1), (12, 2 / 12 + 2)]


def test_without_an_inner_split_the_dot_lies_on_the_training_loss() -> None:
    figure = training_figure({"a": Training(EPOCH, 1 / EPOCH, np.full(40, np.nan), best=40)})
    assert [line.get_ydata()[-1] for line in figure.axes[0].lines if len(line.get_xdata())] == [1 / 40, 1 / 40]


def test_no_history_is_said() -> None:
    none = np.zeros(0)
    assert "no epoch is recorded" in svg(training_figure({"a": Training(none, none, none)}))
    assert "no epoch is recorded" in svg(training_figure({}))


def test_a_thinned_line_keeps_its_ends() -> None:
    rows = thinned(5000)
    assert (rows[0], rows[-1], len(rows)) == (0, 4999, 200)
    assert thinned(7).tolist() == list(range(7))
    assert len(thinned(0)) == 0
