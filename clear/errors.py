"""What can go wrong, as sentences.

Every error that a user can meet is a `ClearError`: its text says which file, what was expected, what was
found and what to do. The command line prints that text and exits with `exit_status`; it never shows a traceback
for one of these. Anything else that escapes is a defect of ours.
"""

from __future__ import annotations


class ClearError(Exception):
    """A problem that the user can act on; the message is complete as it stands.

    exit_status: what the command line returns: 2 for bad arguments or input, see the subclasses.
    """

    exit_status = 2


class InputError(ClearError):
    """Arguments, a table, a card or a folder that cannot be used as given."""


class ScanRefused(ClearError):
    """One scan cannot be used; the others go on.

    reason: a short stable name (`not_a_volume`, `truncated_pixel_data`, ...) that tables and tests can rely on.
    """

    exit_status = 3

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[ScanRefused], tuple[str, str]]:
        return type(self), (self.reason, str(self))


class BagFileError(ClearError):
    """A bag file that is damaged, of a newer version, or does not fit what it is used with."""


class WeightsError(ClearError):
    """Weights that are absent, unsafe to open or do not fit the encoder."""


class MissingExtra(ClearError):
    """An optional package is not installed.

    package: the import name that failed; extra: the `clear-mil[extra]` that brings it.
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed. "
            f"Install it with: pip install 'clear-mil[{extra}]'"
        )
        self.package = package
        self.extra = extra

    def __reduce__(self) -> tuple[type[ClearError], tuple[str]]:
        return ClearError, (str(self),)
