"""A report of 500 scans: seconds, memory and size of the page, with pictures from the scans and without.

    python tests/bench/report.py                        # 500 scans of 60 slices of 128 x 128 pixels
    python tests/bench/report.py --scans 40 --matrix 64
    taskset -c 0,1 python tests/bench/report.py         # on two cores

The scans are MetaImage files of one noisy disc, the embeddings numbers with a planted signal: a page takes as long
over them as over anything else of that size.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import SimpleITK

from aggregate.train import train
from clear.bags import Bag, BagHeader, ScanRow, write_bags
from clear.scans import read_volume
from clear.windows import ABDOMEN, LUNG

DIM = 8
WINDOWS = (ABDOMEN, LUNG)


def write_cohort(
    folder: Path,
    *,
    scans: int = 40,
    slices: int = 10,
    matrix: int = 0,
    names: Sequence[str] = (),
    labels: dict[str, list[object]] | None = None,
    remark: str = "nothing: random numbers",
    seed: int = 0,
) -> Path:
    """A bag file with a planted signal and its label table (`feats.h5`, `labels.csv`); returns the bag file.

    matrix: side of the slices in pixels; 0 writes no scans, otherwise they lie in `scans/`. names: ids of the first
    scans and of their patients. labels: columns of the table beside `sick`, 0 and 1 in turn. remark: on the weights.
    """
    rng = np.random.default_rng(seed)
    direction = rng.standard_normal(DIM)
    ids = [*names, *(f"scan{i:04d}" for i in range(len(names), scans))][:scans]
    digests = _write_volumes(folder / "scans", ids, slices, matrix, rng) if matrix else {}
    k = slices * len(WINDOWS)
    rows, features = [], {}
    for i, scan in enumerate(ids):
        values = rng.standard_normal((k, DIM)).astype(np.float32)
        if i % 2:
            start = int(rng.integers(0, k - 4))
            values[start : start + 4] += 2 * direction
        features[scan] = values
        rows.append(
            ScanRow(
                scan_id=scan,
                digest=digests.get(scan, f"{i:064x}"),
                length=k,
                n_slices=slices,
                spacing_mm=(3.0, 1.0, 1.0),
                plane="axial",
                modality="CT",
                patient_id=scan if i < len(names) else f"patient{i:04d}",
                manufacturer=("Alpha", "Beta")[i // 2 % 2],
                kernel=("soft", "sharp")[i // 2 % 2],
            )
        )
    header = BagHeader(
        encoder="fake",
        encoder_digest="0" * 64,
        encoder_card={},
        windows=WINDOWS,
        preprocessing={},
        provenance={"trained on": remark},
        dim=DIM,
        dtype="float32",
    )

    def load(row: ScanRow) -> Bag:
        number = np.arange(k)
        return Bag(
            scan_id=row.scan_id,
            features=features[row.scan_id],
            slice=(number // len(WINDOWS)).astype(np.int32),
            window=(number % len(WINDOWS)).astype(np.uint8),
            position_mm=np.stack([np.zeros(k), np.zeros(k), 3.0 * (number // len(WINDOWS))], 1).astype(np.float32),
        )

    folder.mkdir(parents=True, exist_ok=True)
    write_bags(folder / "feats.h5", header, rows, load)
    columns = {"sick": [i % 2 for i in range(len(ids))], **(labels or {})}
    pl.DataFrame({"scan_id": ids, **columns}).write_csv(folder / "labels.csv")
    return folder / "feats.h5"


def write_run(folder: Path, *, target: str | Sequence[str] = "sick", epochs: int = 3, **settings: object) -> Path:
    """`write_cohort`, and a run of it that was trained for a few epochs; returns the run folder.

    settings: of `write_cohort`, and `training`, a dict of settings of `aggregate.train`.
    """
    training = dict(settings.pop("training", {}))  # type: ignore[call-overload]
    bags = write_cohort(folder, **settings)  # type: ignore[arg-type]
    given = {"labels": folder / "labels.csv", "target": target, "folds": 3, "device": "cpu", **training}
    return train(bags, output=folder / "run", epochs=epochs, batch=16, progress=False, **given).path


def _write_volumes(folder: Path, ids: list[str], slices: int, matrix: int, rng: np.random.Generator) -> dict[str, str]:
    """scan_id -> digest of the scans written as `<id>.mha`."""
    folder.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[-1 : 1 : matrix * 1j, -1 : 1 : matrix * 1j]
    body = np.where(x**2 + y**2 < 0.8, 40, -1000) + rng.normal(0, 20, (slices, matrix, matrix))
    body = np.clip(body, -1024, 3000).astype(np.int16)
    digests = {}
    for number, scan in enumerate(ids):
        body[0, 0, :2] = number // 256 - 1000, number % 256 - 1000  # no two scans are the same
        image = SimpleITK.GetImageFromArray(body)
        image.SetSpacing((1.0, 1.0, 3.0))
        file = folder / (f"{scan}.mha" if scan.isalnum() else f"odd{number}.mha")
        SimpleITK.WriteImage(image, str(file))
        digests[scan] = read_volume(file, modality="CT").digest
    return digests


_MEASURED = """
import resource, sys, time
def most():  # VmHWM: ru_maxrss would begin with that of the process that started this one
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
started = time.perf_counter()
from aggregate.report import report
ready = time.perf_counter()
before = most()
page = report(sys.argv[1], scans=sys.argv[2] or None, out=sys.argv[3])
cpu = resource.getrusage(resource.RUSAGE_SELF)
print(ready - started, time.perf_counter() - ready, cpu.ru_utime + cpu.ru_stime, page.stat().st_size / 1e6,
      before / 1e3, most() / 1e3)
"""


def measure(run: Path, scans: Path | None, page: Path) -> dict[str, float]:
    """Seconds of import and report, CPU seconds of both, megabytes of the page, of memory before and at most.

    In a process of its own, so that the memory is that of a report.
    """
    arguments = [sys.executable, "-c", _MEASURED, str(run), str(scans or ""), str(page)]
    said = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.split()
    names = ("import_s", "report_s", "cpu_s", "page_mb", "memory_before_mb", "memory_mb")
    return dict(zip(names, map(float, said), strict=True))


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints; the whole cohort where nothing is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=500)
    parser.add_argument("--slices", type=int, default=60)
    parser.add_argument("--matrix", type=int, default=128)
    options = parser.parse_args(arguments if arguments is not None else [])
    print("\nreport")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        run = write_run(folder, scans=options.scans, slices=options.slices, matrix=options.matrix)
        print(f"{options.scans} scans of {options.slices} x {options.matrix} x {options.matrix}")
        for name, scans in (("pictures from the scans", folder / "scans"), ("without pictures", None)):
            found = measure(run, scans, folder / "page.html")
            print(f"{name}: " + ", ".join(f"{key} {value:.1f}" for key, value in found.items()))


if __name__ == "__main__":
    main(sys.argv[1:])
