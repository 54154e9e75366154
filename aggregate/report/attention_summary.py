"""How a run's attention is spread: how many slices it rests on, where along the scan, and in which window."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aggregate.figures import (
    PLACES,
    SHARES,
    along_z,
    along_z_figure,
    attention_profile_figure,
    by_group,
    concentration_figure,
    effective_slices,
    share_of_top,
    svg,
)
from aggregate.report.attended import Attended, AttentionOfRun, top_slices
from aggregate.report.material import Material
from aggregate.scored import Scored

ENDS = {"axial": ("feet", "head"), "sagittal": ("right", "left"), "coronal": ("front", "back")}
_NO_ENDS = ("first slice", "last slice")
GROUPED = 3  # endpoints by whose classes attention is shown
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Spent:
    """The attention of the scans of one class, medians over them.

    effective: slices that it rests on, with quartiles; slices: of a scan; top: share of the most attended slice;
    centre: of attention along the scan, 0 its first and 1 its last slice. Shares by window are means.
    """

    group: str
    n: int
    effective: tuple[float, float, float]
    slices: float
    top: float
    centre: float
    windows: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class AttentionPanel:
    """Attention by the classes of one endpoint."""

    name: str
    rows: tuple[Spent, ...]
    figures: tuple[str, ...]


def attention_panels(material: Material, attention: AttentionOfRun, mark: str) -> list[AttentionPanel]:
    """By the true classes of the first endpoints; of a run without classes, all scans together."""
    panels = []
    with_classes = [s for s in material.scored_scans.values() if s.endpoint.is_classes and len(s)][:GROUPED]
    for number, scored in enumerate(with_classes or list(material.scored_scans.values())[:1]):
        panel = _panel(scored, attention, f"{mark}-a{number}")
        if panel is not None:
            panels.append(panel)
    return panels


def profile_svg(attended: tuple[Attended, ...], marked: int, mark: str) -> list[str]:
    """Attention along each scan of a bag, with the most attended slices marked."""
    top = [(one.scan, slice) for one, slice, _, _ in top_slices(attended, marked)]
    drawn = []
    for number, one in enumerate(attended):
        slices, z_mm, _ = one.by_slice()
        windows, table = one.by_window()
        places = [int(np.searchsorted(slices, slice)) for scan, slice in top if scan == one.scan]
        figure = attention_profile_figure(z_mm, table, windows, places, slices=slices.tolist())
        drawn.append(svg(figure, name=f"{mark}-p{number}"))
    return drawn


def effective(attended: tuple[Attended, ...]) -> float:
    """Slices that a bag's attention rests on, over all its scans."""
    return effective_slices(np.concatenate([one.by_slice()[2] for one in attended]))


def _panel(scored: Scored, attention: AttentionOfRun, mark: str) -> AttentionPanel | None:
    endpoint = scored.endpoint
    groups, patients, bags = [], [], []
    for i, name in enumerate(scored.scans):
        attended = attention.of(name)
        if attended:
            bags.append(attended)
            patients.append(scored.patients[i])
            groups.append(endpoint.classes[int(scored.truth[i])] if endpoint.is_classes else "all scans")
    if not bags:
        return None
    order = [name for name in (endpoint.classes if endpoint.is_classes else ("all scans",)) if name in groups]
    rows = tuple(
        _spent(name, [bag for bag, group in zip(bags, groups, strict=True) if group == name]) for name in order
    )
    longest = [max(bag, key=lambda one: float(one.weights.sum())) for bag in bags]  # of a pooled bag, one scan
    people = np.array(patients)
    top = np.array([share_of_top(one.by_slice()[2]) for one in longest])
    place = np.array([along_z(one.by_slice()[2], one.by_slice()[1]) for one in longest])
    held, lies = by_group(top, SHARES, groups, people), by_group(place, PLACES, groups, people)
    ends = ends_of({one.plane for one in longest})
    drawn = (
        svg(concentration_figure({name: held[name] for name in order}), name=f"{mark}-top"),
        svg(along_z_figure({name: lies[name] for name in order}, ends=ends), name=f"{mark}-z"),
    )
    return AttentionPanel(endpoint.name, rows, drawn)


def ends_of(planes: Iterable[str]) -> tuple[str, str]:
    """What the first and the last slice of scans of these planes are near."""
    names = {ENDS.get(plane, _NO_ENDS) for plane in planes}
    return names.pop() if len(names) == 1 else _NO_ENDS


def _spent(group: str, bags: list[tuple[Attended, ...]]) -> Spent:
    several = np.array([effective(bag) for bag in bags])
    low, middle, high = (float(v) for v in np.quantile(several, [0.25, 0.5, 0.75]))
    weights = [np.concatenate([one.by_slice()[2] for one in bag]) for bag in bags]
    centres = [sum(float((one.weights * one.slice).sum()) / max(one.n_slices - 1, 1) for one in bag) for bag in bags]
    shares: dict[str, float] = {}
    for bag in bags:
        for one in bag:
            for window, share in zip(one.by_window()[0], one.by_window()[1].sum(axis=0), strict=True):
                shares[window.name] = shares.get(window.name, 0.0) + float(share) / len(bags)
    return Spent(
        group,
        len(bags),
        (low, middle, high),
        float(np.median([len(each) for each in weights])),
        float(np.median([each.max() for each in weights])),
        float(np.median(centres)),
        tuple(shares.items()),
    )
