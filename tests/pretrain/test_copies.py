"""Copies: whoever shares voxels with somebody left out is left out, and whoever shares voxels with them."""

from __future__ import annotations

from pretrain.copies import with_copies


def test_nobody_else_is_left_out_without_a_shared_scan() -> None:
    assert with_copies(["a"], [], [("a", "x"), ("b", "y"), (None, "z")]) == ({"a"}, {"x"})


def test_a_chain_of_shared_scans_is_followed_to_its_end() -> None:
    scans = [("d", "4"), ("c", "4"), ("c", "3"), ("b", "3"), ("b", "2"), ("a", "2"), ("e", "5")]
    people, voxels = with_copies(["a"], [], scans)
    assert people == {"a", "b", "c", "d"}
    assert voxels == {"2", "3", "4"}


def test_voxels_of_nobody_known_link_nobody_but_are_left_out() -> None:
    assert with_copies([], ["x"], [(None, "x"), (None, "y"), ("a", "y")]) == (set(), {"x"})
    assert with_copies([], ["y"], [(None, "x"), (None, "y"), ("a", "y")]) == ({"a"}, {"y"})
