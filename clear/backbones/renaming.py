"""A checkpoint's tensors under other names, where no two may claim the same one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from clear.errors import WeightsError


class Renamed(dict[str, Tensor]):
    """Tensors by their new names; `origins` says under which name the file has each."""

    def __init__(self) -> None:
        super().__init__()
        self.origins: dict[str, str] = {}

    def claim(self, name: str, tensor: Tensor, origin: str) -> None:
        """Put the file's `origin` under `name`. Raises WeightsError when another of its tensors is there."""
        if name in self:
            raise WeightsError(
                f"tensors {self.origins[name]} and {origin} are two for one place, {name} of the encoder; "
                "expected one of them. Remove the one that is not the encoder's"
            )
        self[name] = tensor
        self.origins[name] = origin


def renamed(tensors: Mapping[str, Tensor], rename: Callable[[str], str | None]) -> Renamed:
    """Every tensor under the name that `rename` makes of its own; without those for which it gives None.

    Raises WeightsError when two come by one name.
    """
    out = Renamed()
    for origin, tensor in tensors.items():
        name = rename(origin)
        if name is not None:
            out.claim(name, tensor, origin)
    return out
