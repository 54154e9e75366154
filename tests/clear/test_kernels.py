"""Which kernels count as soft."""

from __future__ import annotations

import pytest

from clear.kernels import is_soft_kernel


@pytest.mark.parametrize(
    ("kernel", "manufacturer"),
    [
        ("B20f", "SIEMENS"),
        ("B31f", "Siemens"),
        ("Br40d", "Siemens Healthineers"),
        ("I30f\\3", "SIEMENS"),
        ("['Br36f', '3']", "SIEMENS"),
        ("B40s", None),
        ("STANDARD", "GE MEDICAL SYSTEMS"),
        ("SOFT", "GE MEDICAL SYSTEMS"),
        ("B", "Philips"),
        ("C", "Philips Medical Systems"),
        ("FC08", "TOSHIBA"),
        ("FC18-H", "Canon Medical Systems"),
        ("standard", None),
    ],
)
def test_soft_kernels(kernel: str, manufacturer: str | None) -> None:
    assert is_soft_kernel(kernel, manufacturer)


@pytest.mark.parametrize(
    ("kernel", "manufacturer"),
    [
        ("B70f", "SIEMENS"),
        ("Bl57d", "SIEMENS"),
        ("LUNG", "GE MEDICAL SYSTEMS"),
        ("BONEPLUS", "GE MEDICAL SYSTEMS"),
        ("YB", "Philips"),
        ("D", "Philips"),
        ("FC52", "TOSHIBA"),
        ("FC30", None),
        ("", "SIEMENS"),
        (None, None),
    ],
)
def test_other_kernels(kernel: str | None, manufacturer: str | None) -> None:
    assert not is_soft_kernel(kernel, manufacturer)


def test_a_known_vendor_is_judged_by_its_own_names() -> None:
    assert not is_soft_kernel("FC08", "GE MEDICAL SYSTEMS")
    assert not is_soft_kernel("B", "GE MEDICAL SYSTEMS")
