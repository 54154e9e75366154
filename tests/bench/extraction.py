"""Extraction: against the encoder's bare forward, against common practice, the CPU time around it, and memory."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pydicom
import torch
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from clear.card import EncoderCard, WeightSource
from clear.encoders import ENCODERS
from clear.frozen import DEFAULT_BATCH, Encoder
from clear.scans import find_scans
from clear.windows import ABDOMEN
from extract import extract
from pretrain.initialise import random_network

SLICES, LONG_SLICES = 48, 150
ROUNDS = 3


def write_series(folder: Path, slices: int, series: int = 0, matrix: int = 512) -> None:
    """One uncompressed CT series of noise in a body-like disc, as a scanner's export would hold it."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(series)
    rows, columns = np.mgrid[-1 : 1 : matrix * 1j, -1 : 1 : matrix * 1j]
    body = np.hypot(rows, columns * 0.8) < 0.8
    for index in range(slices):
        values = np.where(body, 40, -1000) + random.normal(0, 20, (matrix, matrix))
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = f"2.25.{10**20 + series * 10**6 + index}"
        dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID = f"2.25.{10**21 + series}", f"2.25.{10**22 + series}"
        dataset.PatientID, dataset.Modality, dataset.InstanceNumber = f"P{series:04d}", "CT", index + 1
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.ImageOrientationPatient, dataset.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-180, -180, 2.5 * index]
        dataset.PixelSpacing, dataset.SliceThickness = [0.7, 0.7], 2.5
        dataset.Rows = dataset.Columns = matrix
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
        dataset.RescaleIntercept, dataset.RescaleSlope = 0, 1
        dataset.PixelData = values.astype("<i2").tobytes()
        dataset.save_as(folder / f"{index:04d}.dcm", enforce_file_format=True)


def encoder_for(name: str, precision: str = "auto") -> Encoder:
    """A registered encoder with random weights: speed does not depend on their values."""
    card = ENCODERS[name]
    return Encoder(
        card, random_network(card), "untrained random weights (benchmark)", device="cpu", precision=precision
    )


def bare_forward(encoder: Encoder, instances: int) -> float:
    """Seconds for the network alone on prepared inputs, in extraction's own batches and precision."""
    side = encoder.card.input_size
    x = torch.randn(DEFAULT_BATCH, 3, side, side).contiguous(memory_format=torch.channels_last)
    started = time.perf_counter()
    with torch.inference_mode():
        for first in range(0, instances, DEFAULT_BATCH):
            encoder.forward(x[: min(DEFAULT_BATCH, instances - first)])
    return time.perf_counter() - started


def whole_extraction(encoder: Encoder, folder: Path) -> float:
    """Seconds from a folder of DICOM files to a finished bag file, headers and all."""
    with tempfile.TemporaryDirectory() as place:
        started = time.perf_counter()
        extract(
            folder,
            Path(place) / "feats.h5",
            [encoder],
            scans=find_scans(folder),
            windows=[ABDOMEN],
            batch=DEFAULT_BATCH,
            progress=False,
        )
        return time.perf_counter() - started


def common_practice(encoder: Encoder, folder: Path) -> float:
    """Seconds for the usual script: slices to 8-bit PNG files, then float32, one image at a time."""
    network = random_network(encoder.card).eval()
    low, high = ABDOMEN.low, ABDOMEN.high
    mean = torch.tensor(encoder.card.mean).view(3, 1, 1)
    std = torch.tensor(encoder.card.std).view(3, 1, 1)
    side = encoder.card.input_size
    with tempfile.TemporaryDirectory() as place:
        started = time.perf_counter()
        datasets = [pydicom.dcmread(path) for path in folder.iterdir()]
        datasets.sort(key=lambda dataset: float(dataset.ImagePositionPatient[2]))
        for index, dataset in enumerate(datasets):
            hu = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
            grey = (np.clip((hu - low) / (high - low), 0, 1) * 255).astype(np.uint8)
            Image.fromarray(grey).save(Path(place) / f"{index:04d}.png")
        features = []
        for path in sorted(Path(place).iterdir()):
            image = Image.open(path).convert("RGB").resize((side, side), Image.BICUBIC)
            x = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255
            with torch.inference_mode():
                features.append(network(((x - mean) / std)[None]))
        torch.save(torch.cat(features), Path(place) / "features.pt")
        return time.perf_counter() - started


class NoNetwork(torch.nn.Module):
    """Stands in for the network, so that what is left is everything else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 0, :16, :16].flatten(1)


def cpu_around_forward(folder: Path, slices: int) -> tuple[float, float]:
    """Milliseconds of CPU a slice outside the forward, and for the header pass before it.

    On one torch thread: several would count the time in which they wait for each other.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    card = EncoderCard("none", "timm:none", 256, WeightSource("file", "-"), "no network (benchmark)")
    encoder = Encoder(card, NoNetwork(), "no network (benchmark)", device="cpu", precision="float32")
    best, headers = [], []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as place:
            begun = time.process_time()
            found = find_scans(folder, workers=1)
            started = time.process_time()
            extract(folder, Path(place) / "feats.h5", [encoder], scans=found, windows=[ABDOMEN], progress=False)
            best.append((time.process_time() - started) / slices * 1e3)
            headers.append((started - begun) / slices * 1e3)
    torch.set_num_threads(threads)
    return statistics.median(best), statistics.median(headers)


MEMORY = """
import json, sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[2])
from extraction import MemoryCard, NoNetwork, Encoder, ABDOMEN, extract, find_scans
encoder = Encoder(MemoryCard, NoNetwork(), "no network (benchmark)", device="cpu", precision="float32")
scans = find_scans(Path(sys.argv[1]), workers=1)[: int(sys.argv[3])]
Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports, which would hide any growth
extract(Path(sys.argv[1]), Path(sys.argv[4]), [encoder], scans=scans, windows=[ABDOMEN], progress=False)
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(json.dumps({"scans": len(scans), "peak": int(status["VmHWM"].split()[0]) / 1024}))
"""
MemoryCard = EncoderCard("none", "timm:none", 256, WeightSource("file", "-"), "no network (benchmark)")


def peak_memory(folder: Path, scans: int) -> float:
    """MiB at the peak of a process that extracts `scans` scans."""
    with tempfile.TemporaryDirectory() as place:
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(folder), str(Path(__file__).parent), str(scans), f"{place}/feats.h5"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    report = json.loads(done.stdout.strip().splitlines()[-1])
    assert report["scans"] == scans
    return float(report["peak"])


def main() -> None:
    """Print the table of ratios."""
    print(
        f"\nextraction: {SLICES} slices of 512 x 512, one window, batch {DEFAULT_BATCH}, "
        f"{torch.get_num_threads()} threads"
    )
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "series"
        write_series(folder, SLICES)
        write_series(Path(place) / "long", LONG_SLICES, series=1)
        around, headers = cpu_around_forward(Path(place) / "long", LONG_SLICES)
        show("CPU outside the forward", f"{around:.2f} ms a slice (bound 4); header pass {headers:.2f} ms a file")
        for name, bound in (("mambaout-base", 3), ("vit-b", 4)):
            encoder = encoder_for(name)
            bare_forward(encoder, DEFAULT_BATCH)
            ends, practices = [], []
            for _ in range(ROUNDS):
                bare = bare_forward(encoder, SLICES)
                end = whole_extraction(encoder, folder)
                practice = common_practice(encoder, folder)
                ends.append(bare / end)
                practices.append(practice / end)
            show(f"{name}, {encoder.precision}", f"{statistics.median(ends):.3f} of bare forward speed (bound 0.95)")
            show("", f"{statistics.median(practices):.2f} times common practice (bound {bound})")
        cohort = Path(place) / "cohort"
        for scan in range(100):
            write_series(cohort / f"{scan:03d}", 20, series=scan)
        few, many = peak_memory(cohort, 10), peak_memory(cohort, 100)
        show("peak memory", f"{few:.0f} MiB for 10 scans, {many:.0f} MiB for 100: ratio {many / few:.3f}")


def show(what: str, figure: str) -> None:
    """One line of the table."""
    print(f"  {what:<28}{figure}", flush=True)


if __name__ == "__main__":
    main()
