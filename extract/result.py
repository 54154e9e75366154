"""What came of an extraction, in counts and one line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ExtractionResult:
    """What came of an extraction; counts are of scans, a scan counting by the worst of its outputs.

    done: in the outputs, new ones and those of earlier runs; new: encoded in this run; slices: encoded in this run.
    outputs: bag files (of a shard: those that `merge` will write); quality: what became of every series.
    """

    outputs: tuple[Path, ...]
    quality: tuple[Path, ...]
    done: int
    new: int
    set_aside: int
    refused: int
    failed: int
    slices: int
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def exit_status(self) -> int:
        """0 when all usable scans are in, 3 when some were refused or failed."""
        return 3 if self.refused or self.failed else 0

    def summary(self) -> str:
        """One line, and one more for each note."""
        names = ", ".join(str(path) for path in self.outputs)
        counts = (
            f"{self.done} scans ({self.new} new), {self.set_aside} set aside, "
            f"{self.refused} refused, {self.failed} failed"
        )
        speed = f"; {self.slices / self.seconds:.1f} slices/s" if self.slices and self.seconds > 0 else ""
        lines = [f"{names}: {counts}; {_as_time(self.seconds)}{speed}", *self.notes]
        if self.exit_status:
            lines.append(f"Reasons are in {', '.join(str(path) for path in self.quality)}")
        return "\n".join(lines)


def _as_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
