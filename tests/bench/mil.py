"""Real labelled data: the classic MIL sets, MNIST bags, and the LIDC nodules.

    python tests/bench/mil.py classic [--sets elephant,fox] [--repeats 5]     # CLEAR_TEST_DATA names the shared folder
    python tests/bench/mil.py mnist
    python tests/bench/mil.py lidc

Hyper-parameters were fixed beforehand (`CLASSIC`, `MNIST`) and are the same for every set. Nothing here is tuned on
what it reports.
"""

from __future__ import annotations

import argparse
import gzip
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import SimpleITK as sitk
import torch
from scipy.io import loadmat
from scipy.stats import t as student
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from aggregate.aggregators import predict as score_bags
from aggregate.cohort import Cohort
from aggregate.crossval import builder, fit_fold
from aggregate.fit import fit
from aggregate.folds import make_folds
from aggregate.intervals import delong, logit_interval
from aggregate.packed import PackedRows
from aggregate.targets import Targets, predicted
from clear.endpoints import Endpoint
from clear.tasks import Preset

TASK_FILE = Path(__file__).parents[1] / "clear" / "datasets" / "lidc-nodules.yaml"
# the pooling baseline's ridge penalty, the same for every set; of 1, 0.1 and 0.01 it is where the baseline is strongest
# on most sets and nearest to data/README.md, which does not state its own
POOLING_C = 0.1
INNER = 0.1  # of the training bags stop the training
BINARY = (Endpoint("y", "binary", ("0", "1")),)
CLASSIC = Preset(
    "classic MIL", lr=5e-4, weight_decay=5e-3, batch=8, epochs=60, patience=15, inner_fraction=INNER, dropout=0.5
)
MNIST = Preset("MNIST bags", lr=5e-4, weight_decay=1e-4, batch=8, epochs=60, patience=20, dropout=0.25)
# Ilse et al. 2018, Table 1, as quoted from memory and not verified in data/README.md: attention, gated attention
ILSE = {
    "musk1": ("0.892 ± 0.040", "0.900 ± 0.050"),
    "musk2": ("0.858 ± 0.048", "0.863 ± 0.042"),
    "elephant": ("0.868 ± 0.022", "0.857 ± 0.027"),
    "fox": ("0.615 ± 0.043", "0.603 ± 0.029"),
    "tiger": ("0.839 ± 0.022", "0.845 ± 0.018"),
}
# what data/README.md measured with mean, maximum and minimum and a logistic regression
README = {"musk1": 0.873, "musk2": 0.838, "elephant": 0.858, "fox": 0.591, "tiger": 0.804}


@dataclass(frozen=True)
class Bagged:
    """bags: (K, d) each; labels: (B,) 0 or 1."""

    bags: list[np.ndarray]
    labels: np.ndarray


def shared() -> Path:
    """The folder of real data; ends the program when it is not named."""
    place = os.environ.get("CLEAR_TEST_DATA")
    if not place:
        raise SystemExit("CLEAR_TEST_DATA does not name the folder of real test data")
    return Path(place) / "data"


def read_classic(name: str) -> Bagged:
    """One of the classic sets, as its README describes the files."""
    folder = shared() / "mil_benchmarks" / name
    if name == "musk1":
        lines = [line.rstrip(".\n").split(",") for line in (folder / "musk1.data").open() if line.strip()]
        owner = [line[0] for line in lines]
        rows = np.array([line[2:-1] for line in lines], dtype=np.float32)
        truth = {line[0]: int(float(line[-1])) for line in lines}
    elif name == "elephant":
        table = np.loadtxt(folder / "elephant.csv", delimiter=",")
        owner = [f"{int(bag):04d}" for bag in table[:, 1]]
        rows = table[:, 2:].astype(np.float32)
        truth = {bag: int(label > 0) for bag, label in zip(owner, table[:, 0], strict=True)}
    else:
        arrays = {file.stem.lower(): _only(file) for file in folder.glob("*.mat")}
        owner = [f"{int(bag):04d}" for bag in arrays["bag2"].ravel()]
        rows = np.asarray(arrays["x"], dtype=np.float32)
        truth = {f"{i + 1:04d}": int(label > 0) for i, label in enumerate(arrays["bagi"].ravel())}
    names = sorted(set(owner))
    index = np.array(owner)
    return Bagged([rows[index == bag] for bag in names], np.array([truth[bag] for bag in names]))


def _only(file: Path) -> np.ndarray:
    values = [value for key, value in loadmat(file).items() if not key.startswith("__")]
    array = values[0]
    return np.asarray(array.todense() if hasattr(array, "todense") else array)


def cohort_of(data: Bagged, patients: list[str] | None = None) -> tuple[Cohort, PackedRows]:
    """The bags as a cohort of one endpoint; every bag a patient of its own unless told."""
    names = tuple((f"b{i:04d}",) for i in range(len(data.bags)))
    owners = tuple(patients or [name[0] for name in names])
    return Cohort(names, owners, Targets(BINARY, data.labels[:, None].astype(float)), (), (), ()), PackedRows.of(
        data.bags
    )


def pooling_features(data: Bagged) -> np.ndarray:
    """(B, 3 d) mean, maximum and minimum over the instances: the baseline of data/README.md."""
    return np.stack([np.concatenate([bag.mean(0), bag.max(0), bag.min(0)]) for bag in data.bags])


def classic(sets: list[str], repeats: int, folds: int = 10) -> None:
    """Accuracy of 10-fold cross-validation, repeated, and paired intervals against the pooling baseline."""
    print(
        f"classic MIL sets: {folds}-fold, {repeats} repeats, "
        f"features scaled in each training fold, pooling C = {POOLING_C}, inner share {INNER}, {CLASSIC}"
    )
    print(
        "set       model        accuracy (sd over repeats)  minus pooling (95 % paired)      Ilse et al. (unverified)"
    )
    for name in sets:
        data = read_classic(name)
        cohort, rows = cohort_of(data)
        table = make_folds(*cohort.by_scan(), folds=folds, repeats=repeats, seed=0, inner_fraction=INNER)
        features = pooling_features(data)
        right: dict[str, np.ndarray] = {m: np.zeros((repeats, folds)) for m in ("pooling", "abmil", "gated-abmil")}
        for repeat, fold in table.pairs:
            split = {part: cohort.bags_of(ids) for part, ids in table.split(repeat, fold).items()}
            train, test = np.concatenate([split["train"], split["inner"]]), split["test"]
            model = make_pipeline(StandardScaler(), LogisticRegression(C=POOLING_C, max_iter=5000))
            model.fit(features[train], data.labels[train])
            right["pooling"][repeat, fold] = (model.predict(features[test]) == data.labels[test]).mean()
            for aggregator in ("abmil", "gated-abmil"):
                found = fit_fold(cohort, rows, table, repeat, fold, aggregator=aggregator, preset=CLASSIC)
                right[aggregator][repeat, fold] = ((found.scores[:, 0] > 0.5) == data.labels[found.scored]).mean()
        for number, (aggregator, values) in enumerate(right.items()):
            of_repeats = values.mean(axis=1)
            sd = of_repeats.std(ddof=1) if repeats > 1 else float("nan")
            line = f"{name:<9} {aggregator:<12} {values.mean():.3f} ± {sd:.3f}"
            if aggregator == "pooling":
                print(f"{line:<50} {'(README: ' + format(README[name], '.3f') + ')'}", flush=True)
                continue
            low, high = corrected_interval(values - right["pooling"], folds)
            verdict = "wholly below 0" if high < 0 else "not wholly below 0"
            difference = (values - right["pooling"]).mean()
            print(
                f"{line:<50} {difference:+.3f} ({low:+.3f} to {high:+.3f}) {verdict}   {ILSE[name][number - 1]}",
                flush=True,
            )


def corrected_interval(differences: np.ndarray, folds: int, level: float = 0.95) -> tuple[float, float]:
    """Of the mean of (repeats, folds) paired differences: the t interval with the variance corrected for overlapping
    training sets (Nadeau and Bengio, Machine Learning 2003, 52, 239-281: 1 / J + test / train in place of 1 / J)."""
    flat = differences.ravel()
    error = np.sqrt(flat.var(ddof=1) * (1 / len(flat) + 1 / (folds - 1)))
    half = float(student.ppf(0.5 + level / 2, len(flat) - 1)) * error
    return float(flat.mean() - half), float(flat.mean() + half)


def mnist_bags(
    images: np.ndarray, digits: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[Bagged, list[np.ndarray]]:
    """(bags of about ten digits, positive when one is a nine and half of them so; which instances are nines)."""
    nines, others = np.flatnonzero(digits == 9), np.flatnonzero(digits != 9)
    bags, labels, where = [], [], []
    for b in range(count):
        size = max(int(rng.normal(10, 2)), 2)
        chosen = rng.choice(others, size, replace=False)
        if b % 2:
            wanted = rng.choice(size, int(rng.integers(1, 3)), replace=False)
            chosen[wanted] = rng.choice(nines, len(wanted), replace=False)
        bags.append(images[chosen])
        labels.append(b % 2)
        where.append(digits[chosen] == 9)
    return Bagged(bags, np.array(labels)), where


def mnist(sizes: list[int]) -> None:
    """AUC with interval on 500 test bags, and how often attention puts a nine first in positive bags."""
    folder = shared() / "mnist_t10k"
    images, digits = (_idx(next(folder.glob(pattern))) for pattern in ("*images*", "*labels*"))
    pixels = images.reshape(len(images), -1).astype(np.float32) / 255
    order = np.random.default_rng(0).permutation(len(pixels))
    halves = order[:5000], order[5000:]  # no digit is in training and in test
    test, nines = mnist_bags(pixels[halves[1]], digits[halves[1]], 500, np.random.default_rng(1))
    print(f"MNIST bags: pixels as features, mean bag size 10, target 9, 500 test bags, {MNIST}")
    for size in sizes:
        own, _ = mnist_bags(pixels[halves[0]], digits[halves[0]], size, np.random.default_rng([2, size]))
        cohort, rows = cohort_of(Bagged([*own.bags, *test.bags], np.concatenate([own.labels, test.labels])))
        held = np.random.default_rng([3, size]).permutation(size)
        train, inner = np.sort(held[size // 5 :]), np.sort(held[: size // 5])
        scored = np.arange(size, size + 500)
        for name in ("mean", "abmil", "gated-abmil"):
            fitted = fit(rows, cohort.targets, train, inner, builder(name), MNIST, (0, size))
            logits, attention = score_bags(fitted.model, rows, scored)
            scores = predicted(logits, cohort.targets)[:, 0]
            auc, covariance = delong(test.labels == 1, scores[None])
            low, high = logit_interval(float(auc[0]), float(covariance[0, 0]))
            first = np.mean([n[np.argmax(a)] for a, n, y in zip(attention, nines, test.labels, strict=True) if y])
            chance = np.mean([n.mean() for n, y in zip(nines, test.labels, strict=True) if y])
            finds = (
                ""
                if name == "mean"
                else f"  attention's first is a nine in {first:.2f} of positive bags (chance {chance:.2f})"
            )
            print(f"{size:>4} bags  {name:<12} AUC {auc[0]:.3f} ({low:.3f} to {high:.3f}){finds}", flush=True)


def _idx(file: Path) -> np.ndarray:
    """An IDX file of unsigned bytes, gzipped or not."""
    raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    dimensions = raw[3]
    shape = np.frombuffer(raw, ">u4", dimensions, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


VARIANTS = {
    "whole": "crops as they are",
    "fixed": "fixed field of view and count of slices",
    "scaled": "field of view and depth in proportion to the diameter, fixed count of slices",
}


def lidc(model: str, repeats: int, limit: int, variants: Sequence[str] = tuple(VARIANTS)) -> None:
    """Malignancy of the LIDC nodules, 5-fold by patient, beside diameter and slice count; then without a sight of size.

    Two variants cannot see how large the crop is; both read 4 slices of 32 x 32 pixels around the centre of every
    nodule and never use its crop's own extent or its mask. `fixed` reads the same 20 x 20 x 4 mm of each, in which a
    nodule's own size can still be seen; `scaled` reads twice its diameter across and its diameter in depth, in which
    nothing but resolution tells the size.
    """
    from aggregate import train
    from clear.api import extract

    folder = shared() / "labelled_lidc_nodules"
    table = pl.read_csv(folder / "labels.csv")
    table = table.gather_every(max(table.height // limit, 1)) if limit else table
    scans = [file.split(".")[0] for file in table["file"]]
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        labels = place / "labels.csv"
        table.select("file", "patient_id", "target").write_csv(labels)
        for variant in variants:
            images = place / f"images-{variant}"
            images.mkdir()
            slices = [
                _nodule(folder / "image" / file, images / file, variant, diameter)
                for file, diameter in table.select("file", "diameter_mm").iter_rows()
            ]
            sizes = {"log_slices": np.log(slices), "log_diameter": np.log(table["diameter_mm"].to_numpy())}
            baselines = []
            for column, values in sizes.items():
                pl.DataFrame({"scan_id": scans, column: values}).write_csv(place / f"{column}.csv")
                baselines.append(place / f"{column}.csv")
            bags = place / f"feats-{variant}.h5"
            extract(images, bags, model=model, windows=["lung"], modality="CT", workers=1, progress=False)
            for aggregator in ("abmil", "mean"):
                run = train(
                    bags, task=TASK_FILE, labels=labels, aggregator=aggregator, repeats=repeats, baselines=baselines,
                    output=place / f"run-{aggregator}-{variant}", progress=False,
                )  # fmt: skip
                print(f"\nLIDC nodules, {VARIANTS[variant]}, {len(scans)} nodules\n{run.table()}", flush=True)


def _nodule(source: Path, target: Path, variant: str, diameter_mm: float) -> int:
    """Writes one nodule's crop, as it is or on the variant's grid; returns how many slices the crop itself has."""
    image = sitk.ReadImage(str(source))
    slices = image.GetSize()[2]
    if variant != "whole":
        size = (32, 32, 4)
        across, depth = (20.0, 4.0) if variant == "fixed" else (2 * diameter_mm, diameter_mm)
        spacing = (across / size[0], across / size[1], depth / size[2])
        centre = image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()])
        directions = np.array(image.GetDirection()).reshape(3, 3)
        origin = np.array(centre) - directions @ ((np.array(size) - 1) / 2 * np.array(spacing))
        grid = sitk.ResampleImageFilter()
        grid.SetSize(size)
        grid.SetOutputSpacing(spacing)
        grid.SetOutputOrigin(origin.tolist())
        grid.SetOutputDirection(image.GetDirection())
        grid.SetInterpolator(sitk.sitkLinear)
        grid.SetUseNearestNeighborExtrapolator(True)  # a crop that ends before the grid must not show where
        image = grid.Execute(image)
    sitk.WriteImage(image, str(target))
    return int(slices)


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "classic": lambda given: classic(given.sets.split(","), given.repeats),
    "mnist": lambda given: mnist([int(size) for size in given.sizes.split(",")]),
    "lidc": lambda given: lidc(given.model, given.repeats, given.limit, given.variants.split(",")),
}


def main(arguments: list[str] | None = None) -> None:
    """Run what is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=COMMANDS)
    parser.add_argument("--sets", default=",".join(ILSE))
    parser.add_argument("--sizes", default="50,100,200")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", default="mambaout-lecl")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--limit", type=int, default=0, help="lidc: about so many nodules only; 0 for all")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    COMMANDS[given.what](given)


if __name__ == "__main__":
    main()
