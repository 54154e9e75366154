"""Which member of its family a file of tensors is: sizes read off shapes, each confirmed by several tensors.

One damaged tensor must not turn into a network of another size, whose loading would then accuse the sound ones. So
every size is put to the vote of several tensors. The strict load then names the one that stands against the others;
where they stand one against one, both are named here.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from clear.errors import WeightsError

if TYPE_CHECKING:
    from clear.card import EncoderCard

SAME_RATIO = 1e-3  # ratios are rounded in cards: 5.33334 for 4096 / 768


class AnotherFamily(WeightsError):
    """Tensors that are of another family altogether, not of a damaged file of this one."""


@dataclass(frozen=True)
class Variant:
    """What tensors tell of the network that takes them.

    architecture, dim: as a card has them. settings: what makes the architecture this member, sizes and what no tensor
    tells (as it is usual). told: what the tensors tell, whether `settings` must say it or not; witnesses: the one
    tensor that tells a setting, where it is only one. positions, ignored: as is usual for such files; "" and () for
    what a card says by itself.
    """

    architecture: str
    dim: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    told: Mapping[str, Any] = field(default_factory=dict)
    witnesses: Mapping[str, str] = field(default_factory=dict)
    positions: str = ""
    ignored: tuple[str, ...] = ()

    def check(self, card: EncoderCard) -> None:
        """Raises WeightsError where the card states a setting and the tensors tell another."""
        for name, told in self.told.items():
            if name in card.settings and not _same(card.settings[name], told):
                where = f" by tensor {self.witnesses[name]}" if name in self.witnesses else ""
                raise WeightsError(
                    f"encoder {card.name}: its card says {name} = {card.settings[name]!r}, but the tensors are of a "
                    f"network with {name} = {told!r}{where}. Correct the card or choose the weights that belong to it"
                )

    def fit(self, card: EncoderCard) -> EncoderCard:
        """The card for these tensors: what it states stays, sizes are theirs, and the network's input is the card's."""
        settings = {**self.settings, **card.settings}
        if "img_size" in self.settings:
            settings["img_size"] = card.input_size
        return replace(
            card,
            architecture=self.architecture,
            dim=self.dim,
            settings=settings,
            ignored=card.ignored or self.ignored,
        )


class At(NamedTuple):
    """An axis of a tensor, whose length is `times` the size in question, plus `plus`."""

    name: str
    axis: int
    times: int = 1
    plus: int = 0


class Sizes:
    """The sizes of a network, read off a file's tensors by their names."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def shape(self, name: str, axes: int) -> tuple[int, ...]:
        """A tensor's shape. Raises WeightsError when it is missing or has another number of axes."""
        if name not in self.tensors:
            raise WeightsError(f"tensor {name} is missing")
        shape = tuple(self.tensors[name].shape)
        if len(shape) != axes:
            raise WeightsError(f"tensor {name} has shape {shape}; expected {axes} axes")
        return shape

    def agreed(self, size: str, *places: At) -> int:
        """The size that most of these tensors have; the strict load names the one that has another or is missing.

        Raises WeightsError naming all of them when no size has most of the votes, or none is there to vote.
        """
        votes = Counter(
            Fraction(self.tensors[name].shape[axis] - plus, times)
            for name, axis, times, plus in places
            if name in self.tensors and self.tensors[name].ndim > axis
        )
        usual, count = votes.most_common(1)[0] if votes else (Fraction(0), 0)
        if 2 * count <= votes.total() or usual.denominator != 1 or usual < 1:
            names = dict.fromkeys(place.name for place in places)
            found = {name: tuple(self.tensors[name].shape) if name in self.tensors else "missing" for name in names}
            raise WeightsError(
                f"its tensors do not tell {size}: {', '.join(f'{name} {shape}' for name, shape in found.items())}"
            )
        return int(usual)


def counts(names: Iterable[str], pattern: str) -> tuple[int, ...]:
    """How many numbers stand in the second group of the pattern, for each first group in order."""
    pairs = {(match[1], match[2]) for name in names if (match := re.match(pattern, name))}
    groups = sorted({group for group, _ in pairs}, key=lambda group: (len(group), group))
    return tuple(sum(first == group for first, _ in pairs) for group in groups)


def ratio(whole: int, part: int) -> float:
    """whole / part, such that the integer part of `part` times it is `whole`, as libraries compute widths."""
    exact = whole / part
    return exact if int(part * exact) == whole else (whole + 0.5) / part


def any_named(names: Iterable[str], pattern: str) -> bool:
    """Whether a name begins as the pattern says."""
    return any(re.match(pattern, name) for name in names)


def _same(stated: Any, told: Any) -> bool:
    """Whether a card's setting is what tensors tell: lists for tuples, one number for a square, ratios rounded."""
    if isinstance(stated, list | tuple):
        if isinstance(told, list | tuple):
            return len(stated) == len(told) and all(map(_same, stated, told))
        return bool(stated) and all(_same(value, told) for value in stated)
    if isinstance(told, float) and isinstance(stated, int | float) and not isinstance(stated, bool):
        return math.isclose(stated, told, rel_tol=SAME_RATIO)
    return bool(stated == told)
