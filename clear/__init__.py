"""Learning from 3D radiology scans with frozen slice encoders.

This package is the core that every stage shares: scan discovery and reading, volumes, windows, slice preprocessing,
encoders and their weights, the bag file, tasks and label tables. `extract` turns scans into bags, `aggregate` bags and
labels into models, `pretrain` slices into encoders; they meet in files.

What the command line does, one call here does; importing `clear` loads neither torch nor a stage:

    scans = clear.find_scans("ct_dir")
    clear.extract("ct_dir", "feats.h5", model="mambaout-lecl")
    run = clear.train("feats.h5", task="rad-chestct")  # and report.html in its folder
    clear.explain(run, scan_id, scans="ct_dir")
    clear.build_slices("ct_dir", "slices.zarr", boxes="boxes.csv")
    clear.pretrain("slices.zarr", "runs/lecl", objective="lecl", model="mambaout-lecl")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# name: module that holds it; looked up on first use
_SURFACE = {
    "Bags": "clear.bags",
    "ClearError": "clear.errors",
    "Volume": "clear.volume",
    "Window": "clear.windows",
    "attach_labels": "clear.api",
    "build_slices": "clear.api",
    "compare": "clear.api",
    "crossval": "clear.api",
    "demo": "clear.demonstration",
    "evaluate_explanations": "clear.api",
    "explain": "clear.api",
    "extract": "clear.api",
    "find_scans": "clear.api",
    "inspect": "clear.api",
    "load_encoder": "clear.api",
    "open_run": "clear.api",
    "predict": "clear.api",
    "pretrain": "clear.api",
    "probe": "clear.api",
    "read_volume": "clear.api",
    "report": "clear.api",
    "train": "clear.api",
}
__all__ = [
    "Bags",
    "ClearError",
    "Volume",
    "Window",
    "__version__",
    "attach_labels",
    "build_slices",
    "compare",
    "crossval",
    "demo",
    "evaluate_explanations",
    "explain",
    "extract",
    "find_scans",
    "inspect",
    "load_encoder",
    "open_run",
    "predict",
    "pretrain",
    "probe",
    "read_volume",
    "report",
    "train",
]

if TYPE_CHECKING:
    from clear.api import (
        attach_labels,
        build_slices,
        compare,
        crossval,
        evaluate_explanations,
        explain,
        extract,
        find_scans,
        inspect,
        load_encoder,
        open_run,
        predict,
        pretrain,
        probe,
        read_volume,
        report,
        train,
    )
    from clear.bags import Bags
    from clear.demonstration import demo
    from clear.errors import ClearError
    from clear.volume import Volume
    from clear.windows import Window


def __getattr__(name: str) -> Any:
    if name not in _SURFACE:
        raise AttributeError(f"module 'clear' has no attribute {name!r}")
    return getattr(importlib.import_module(_SURFACE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
