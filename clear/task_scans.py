"""The scans of a task: ids that its data set writes into file names, given to scans whose files do not say them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from clear.scans import Scan
from clear.task import ID_GROUPS, Task


def name_scans(scans: Sequence[Scan], task: Task) -> list[Scan]:
    """The same scans, with patient_id, study_uid and series_uid from the task's `ids` where they are not known.

    What a header says is never replaced. A path that the expression does not fit keeps its scan as it is.
    """
    if not task.ids:
        return list(scans)
    pattern = re.compile(task.ids)
    named = []
    for scan in scans:
        match = pattern.search(scan.source)
        found = match.groupdict() if match else {}
        new = {name: found[name] for name in ID_GROUPS if found.get(name) and not getattr(scan, name)}
        named.append(dataclasses.replace(scan, **new) if new else scan)  # type: ignore[arg-type]  # text fields only
    return named
