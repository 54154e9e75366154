"""Confusion matrices: every count, and shares of the true class."""

from __future__ import annotations

import numpy as np
import pytest

from aggregate.figures import confusion_figure, svg


def cells(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_a_cell_shows_its_count_and_its_share_of_the_true_class() -> None:
    figure = confusion_figure([[30, 10], [5, 15]], ["absent", "present"])
    assert cells(figure) == ["30\n75%", "10\n25%", "5\n25%", "15\n75%"]
    shades = [patch.get_facecolor()[3] for patch in figure.axes[0].patches]
    assert shades == pytest.approx([0.75, 0.25, 0.25, 0.75])


def test_true_classes_are_rows_from_above() -> None:
    axes = confusion_figure([[3, 0], [1, 0]], ["absent", "present"]).axes[0]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true", "called")
    assert axes.get_ylim() == (2, 0)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["absent", "present"]


def test_a_class_that_never_occurs_has_counts_and_no_share() -> None:
    assert cells(confusion_figure([[4, 0], [0, 0]], ["a", "b"])) == ["4\n100%", "0\n0%", "0", "0"]


def test_a_screen_reader_hears_the_counts() -> None:
    drawn = svg(confusion_figure([[30, 10], [0, 0]], ["absent", "present"]))
    assert "absent: 30 called absent, 10 called present; present: none" in drawn


def test_many_classes_still_fit() -> None:
    figure = confusion_figure(np.eye(20, dtype=int) * 7, [f"a class with a long name {i}" for i in range(20)])
    width, height = figure.get_size_inches() * 72
    assert width == 360
    assert height < 450
    assert len(cells(figure)) == 400


def test_an_empty_table_says_so_and_a_wrong_one_is_refused() -> None:
    assert "no scan is scored" in svg(confusion_figure(np.zeros((2, 2)), ["a", "b"]))
    with pytest.raises(ValueError, match=r"expected \(2, 2\) counts; found \(3, 3\)"):
        confusion_figure(np.eye(3), ["a", "b"])
