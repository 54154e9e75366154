"""Copies: the same voxels under two ids are of one person, and whoever is left out by one id is left out by the other.

Voxels are compared by the scan's digest, which is of voxels and geometry and knows no name. A series that was cut,
resampled or rounded is no copy by this rule.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable


def with_copies(
    patients: Collection[str], digests: Collection[str], scans: Iterable[tuple[str | None, str]]
) -> tuple[frozenset[str], frozenset[str]]:
    """Patients and digests of scans, and those of everybody who shares a scan with them, and so on.

    scans: (patient, None where not known; digest) of every scan there is.

    >>> people, voxels = with_copies(["a"], [], [("a", "x"), ("b", "x"), ("b", "y"), ("c", "z")])
    >>> sorted(people), sorted(voxels)
    (['a', 'b'], ['x', 'y'])
    """
    everything = frozenset(scans)
    people, voxels = frozenset(patients), frozenset(digests)
    while True:
        more = voxels | {digest for patient, digest in everything if patient in people}
        others = people | {patient for patient, digest in everything if digest in more and patient is not None}
        if (more, others) == (voxels, people):
            return people, voxels
        people, voxels = others, more
