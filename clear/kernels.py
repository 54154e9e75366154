"""Convolution kernels: which reconstructions are for soft tissue.

Kernel names are the vendors' own and no standard lists them; the rules below are the conventions of their product
lines, stated vendor by vendor.
"""

from __future__ import annotations

import re
from collections.abc import Callable


def is_soft_kernel(kernel: str | None, manufacturer: str | None) -> bool:
    """Whether a convolution kernel is one for soft tissue, by the vendors' naming conventions.

    Siemens: a letter or two and a number that grows with sharpness (B31f, Br40d, I30f): below 46. GE: STANDARD or
    SOFT. Philips: A, B or C. Toshiba and Canon: FC00 to FC19. Names of an unknown vendor may follow any of these.

    >>> is_soft_kernel("B31f", "SIEMENS"), is_soft_kernel("LUNG", "GE MEDICAL SYSTEMS"), is_soft_kernel("FC08", None)
    (True, False, True)
    """
    name = re.split(r"[\\,\s\['\"]+", (kernel or "").strip("[]'\" "))[0].upper()
    if not name:
        return False
    vendor = (manufacturer or "").upper()
    known = [rule for key, rule in _SOFT.items() if any(word in vendor for word in key)]
    return any(rule(name) for rule in (known or _SOFT.values()))


def _is_soft_siemens(name: str) -> bool:
    match = re.match(r"^[A-Z]{1,2}(\d\d)(?!\d)", name)
    return bool(match) and not name.startswith("FC") and int(match[1]) <= 45  # type: ignore[index]  # matched


_SOFT: dict[tuple[str, ...], Callable[[str], bool]] = {
    ("SIEMENS",): _is_soft_siemens,
    ("GE ", "GE_", "GENERAL ELECTRIC", "GEMS"): lambda name: name in ("STANDARD", "SOFT", "STND"),
    ("PHILIPS",): lambda name: name in ("A", "B", "C"),
    ("TOSHIBA", "CANON"): lambda name: bool(re.match(r"^FC[01]\d", name)),
}
