"""Training: a whole cross-validation of ABMIL on packed bags against common practice.

    python tests/bench training          # 5 folds, 8 labels, 1,000 bags of 150-500 x 768: the issue's setting
    python tests/bench/training.py --bags 200 --epochs 2 --rounds 1

Common practice: one HDF5 file a scan, opened when the loader asks, padded to 512 with a mask, one fold after another in
float32, torch's own threads. Both sides start from the same weights, take the same batches in the same order, scale
features with the training bags' mean and standard deviation and use no dropout, so their losses must agree; both score
the test bags of each fold at its end. Few epochs make the least of ours, whose reading and scoring cost the same for
three or thirty. A second
line compares single training epochs of two batches, without the preparation before and the evaluation after.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import torch
from extraction import show
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from aggregate.aggregators import build_aggregator, predict
from aggregate.fit import Truth, fit, run_epoch, training_precision
from aggregate.packed import PackedRows
from aggregate.targets import Targets
from clear.endpoints import Endpoint
from clear.tasks import Preset

DIM, BATCH, PADDED = 768, 128, 512
BOUND, EPOCH_BOUND = 6.0, 0.25
SAME = 1e-2
LOSS = nn.functional.binary_cross_entropy_with_logits


@dataclass(frozen=True)
class Setting:
    """What is trained: so many bags, labels, folds, and epochs a fold."""

    bags: int = 1000
    labels: int = 8
    folds: int = 5
    epochs: int = 3


@dataclass(frozen=True)
class Data:
    """features: one (K, d) float16 array a bag; truth: (B, labels) 0 or 1."""

    features: list[np.ndarray]
    truth: np.ndarray

    @classmethod
    def of(cls, setting: Setting) -> Data:
        """Noise with a weak signal of each label in its positive bags."""
        random = np.random.default_rng(0)
        truth = random.integers(0, 2, (setting.bags, setting.labels))
        directions = random.standard_normal((setting.labels, DIM)) * 0.05
        lengths = random.integers(150, 501, setting.bags)
        features = [
            (random.standard_normal((int(k), DIM), dtype=np.float32) + t @ directions).astype(np.float16)
            for k, t in zip(lengths, truth, strict=True)
        ]
        return cls(features, truth)

    def write(self, folder: Path) -> Path:
        """All bags in one file that is mapped, as the features of a bag file are."""
        file = folder / "features.npy"
        np.save(file, np.concatenate(self.features))
        return file

    @property
    def targets(self) -> Targets:
        names = tuple(Endpoint(str(i), "binary", ("0", "1")) for i in range(self.truth.shape[1]))
        return Targets(names, self.truth.astype(np.float64))


def folds_of(setting: Setting) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(train, inner, test) bags of each fold: 64, 16 and 20 percent."""
    part = np.random.default_rng(1).permutation(setting.bags) % setting.folds
    out = []
    for fold in range(setting.folds):
        rest = np.random.default_rng([2, fold]).permutation(np.flatnonzero(part != fold))
        cut = len(rest) // 5
        out.append((np.sort(rest[cut:]), np.sort(rest[:cut]), np.flatnonzero(part == fold)))
    return out


def ours(file: Path, data: Data, setting: Setting) -> tuple[float, np.ndarray]:
    """(seconds, (folds, epochs, 2) losses) of our cross-validation: reading one file, fitting, scoring each fold."""
    started = time.perf_counter()
    preset = Preset("bench", batch=BATCH, epochs=setting.epochs, patience=setting.epochs, dropout=0.0)
    bounds = np.cumsum([0, *(len(bag) for bag in data.features)]).tolist()
    rows = PackedRows(np.load(file, mmap_mode="r"), [[slice(a, b)] for a, b in pairwise(bounds)]).in_memory()
    losses = []
    for fold, (train, inner, test) in enumerate(folds_of(setting)):
        fitted = fit(
            rows,
            data.targets,
            train,
            inner,
            lambda *a: build_aggregator("abmil", *a),
            preset,
            (0, 0, fold),
            precision=training_precision("auto", "cpu"),
        )
        losses.append([[row["train_loss"], row["inner_loss"]] for row in fitted.history])
        predict(fitted.model, rows, test)
    return time.perf_counter() - started, np.array(losses)


class PaddedAttention(nn.Module):
    """ABMIL in the paper's shape over zero-padded bags with a mask, as it is commonly written."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(DIM, 256), nn.ReLU())
        self.attention = nn.Sequential(nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 1))
        self.head = nn.Sequential(nn.LayerNorm(256), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, labels))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, PADDED, d) and (B, PADDED) to (B, labels)."""
        rows = self.embed(x)
        scores = self.attention(rows).masked_fill(~mask[..., None], float("-inf"))
        return self.head((scores.softmax(dim=1) * rows).sum(dim=1))

    @classmethod
    def like(cls, labels: int, seed: tuple[int, ...]) -> PaddedAttention:
        """The model with the weights that `fit` draws for this seed."""
        with torch.random.fork_rng(devices=[]):
            state = np.random.SeedSequence(list(seed)).generate_state(1, np.uint64)
            torch.manual_seed(int(state[0] >> np.uint64(1)))
            start = build_aggregator("abmil", DIM, labels, 0.0)
        model = cls(labels)
        pairs = [
            (model.embed[0], start.project),
            (model.attention[0], start.attention_hidden),
            (model.attention[2], start.attention_score),
            (model.head[0], start.head.norm),
            (model.head[1], start.head.hidden),
            (model.head[3], start.head.out),
        ]
        for own, other in pairs:
            own.load_state_dict(other.state_dict())
        return model


class FileBags(Dataset):
    """One HDF5 file a scan, opened when asked for, scaled and padded with zeros."""

    def __init__(self, folder: Path, truth: np.ndarray) -> None:
        self.folder = folder
        self.truth = torch.from_numpy(truth).float()
        self.mean, self.sd = torch.zeros(DIM), torch.ones(DIM)

    def __len__(self) -> int:
        return len(self.truth)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        with h5py.File(self.folder / f"{index}.h5") as file:
            features = torch.from_numpy(file["feats"][:]).float()
        x, mask = torch.zeros(PADDED, DIM), torch.zeros(PADDED, dtype=torch.bool)
        x[: len(features)], mask[: len(features)] = (features - self.mean) / self.sd, True
        return x, mask, self.truth[index]


def common(folder: Path, data: Data, setting: Setting) -> tuple[float, np.ndarray]:
    """(seconds, (folds, epochs, 2) losses) of common practice. The scale is given to it and costs it nothing."""
    scales = [_scale(data, train) for train, _, _ in folds_of(setting)]
    started = time.perf_counter()
    losses = []
    for fold, (train, inner, test) in enumerate(folds_of(setting)):
        bags = FileBags(folder, data.truth)
        bags.mean, bags.sd = scales[fold]
        model = PaddedAttention.like(setting.labels, (0, 0, fold))
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-2)
        order = np.random.default_rng(np.random.SeedSequence([0, 0, fold]).spawn(1)[0])
        of_fold = []
        for _ in range(setting.epochs):
            train_loss = common_epoch(model, bags, order.permutation(train), optimiser)
            total = 0.0
            model.eval()
            with torch.no_grad():
                for x, mask, truth in DataLoader(Subset(bags, inner.tolist()), batch_size=BATCH):
                    total += LOSS(model(x, mask), truth).item() * len(x)
            of_fold.append([train_loss, total / len(inner)])
        losses.append(of_fold)
        with torch.no_grad():
            for x, mask, _ in DataLoader(Subset(bags, test.tolist()), batch_size=BATCH):
                model(x, mask)
    return time.perf_counter() - started, np.array(losses)


def common_epoch(model: PaddedAttention, bags: FileBags, order: np.ndarray, optimiser: torch.optim.Optimizer) -> float:
    """One pass over the bags in this order, as it is commonly written; the mean loss."""
    total = 0.0
    model.train()
    for x, mask, truth in DataLoader(Subset(bags, order.tolist()), batch_size=BATCH):
        optimiser.zero_grad()
        loss = LOSS(model(x, mask), truth)
        loss.backward()
        optimiser.step()
        total += loss.item() * len(x)
    return total / len(order)


def epoch_ratio(folder: Path, data: Data, setting: Setting) -> float:
    """Time of a training epoch of ours over one of common practice: the median of five pairs, after one unmeasured."""
    train = folds_of(setting)[0][0][: 2 * BATCH]
    rows, precision = PackedRows.of(data.features), training_precision("auto", "cpu")
    model = build_aggregator("abmil", DIM, setting.labels, 0.0)
    model.fit_scale(rows, train)
    prepared, truth = model.prepare(rows, precision), Truth.of(data.targets)
    bags = FileBags(folder, data.truth)
    bags.mean, bags.sd = _scale(data, train)
    padded = PaddedAttention.like(setting.labels, (0,))
    optimisers = [torch.optim.AdamW(each.parameters(), lr=1e-4) for each in (model, padded)]
    random, ratios = np.random.default_rng(3), []
    for _ in range(6):
        started = time.perf_counter()
        run_epoch(model, prepared, truth, random.permutation(train), optimisers[0], BATCH)
        between = time.perf_counter()
        common_epoch(padded, bags, random.permutation(train), optimisers[1])
        ratios.append((between - started) / (time.perf_counter() - between))
    return statistics.median(ratios[1:])


def _scale(data: Data, train: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    mean, sd = PackedRows.of(data.features).moments(train)
    return mean, sd


def peak_gb() -> float:
    """The largest memory that this process had since its peak was last forgotten (Linux)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024**2


def main(arguments: list[str] | None = None) -> None:
    """Print the ratio, whether the losses agree, the peak memory and what ten endpoints cost."""
    parser = argparse.ArgumentParser()
    for name, value in (("bags", 1000), ("epochs", 3), ("folds", 5), ("rounds", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--memory", choices=["ours", "data"], help="print the peak of one side alone")
    given = parser.parse_args(arguments if arguments is not None else [])
    setting = Setting(given.bags, 8, given.folds, given.epochs)
    data = Data.of(setting)
    if given.memory:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports, which would hide any growth
        if given.memory == "ours":
            with tempfile.TemporaryDirectory() as place:
                ours(data.write(Path(place)), data, setting)
        print(peak_gb())
        return
    size = sum(len(bag) for bag in data.features)
    print(
        f"\ntraining: {setting.folds} folds x {setting.epochs} epochs, {setting.bags} bags of 150 to 500 x {DIM} "
        f"({size * DIM * 2 / 1e9:.2f} GB in float16), {setting.labels} labels, {torch.get_num_threads()} threads"
    )
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # a second of imports at the first one, which is nobody's
    seconds, worst = [], 0.0
    with tempfile.TemporaryDirectory() as place:
        for index, bag in enumerate(data.features):
            with h5py.File(Path(place) / f"{index}.h5", "w") as file:
                file["feats"] = bag
        whole = data.write(Path(place))
        for number in range(given.rounds):
            if number % 2:  # who goes first takes turns
                other, others = common(Path(place), data, setting)
                own, losses = ours(whole, data, setting)
            else:
                own, losses = ours(whole, data, setting)
                other, others = common(Path(place), data, setting)
            seconds.append((own, other))
            worst = max(worst, float(np.abs(losses - others).max()))
        of_epoch = epoch_ratio(Path(place), data, setting)
    precision = training_precision("auto", "cpu")
    ratios = [other / own for own, other in seconds]
    fast = statistics.median(ratios)
    spread = f"{min(ratios):.1f} to {max(ratios):.1f}"
    verdict = "met" if fast >= BOUND else "MISSED"
    show(
        f"ABMIL folds, {precision}",
        f"{fast:.1f} times common practice's speed ({spread}; bound {BOUND:.0f}: {verdict})",
    )
    own, other = (statistics.median(side) for side in zip(*seconds, strict=True))
    show("seconds", f"{own:.1f} against {other:.1f}")
    show(f"ABMIL epoch, {precision}", f"{of_epoch:.3f} of common practice's time (bound {EPOCH_BOUND})")
    show("difference of losses", f"{worst:.1e} (bound {SAME:.0e}): {'same' if worst <= SAME else 'NOT THE SAME'}")
    show("ten endpoints over one", f"{_ten_over_one(setting):.2f} times the time of one endpoint, same bags and epochs")
    flags = ["--bags", str(given.bags), "--epochs", "1", "--folds", "2"]
    peak, base = (_peak(side, flags) for side in ("ours", "data"))
    show("peak memory of a fit", f"{peak:.2f} GB, of which {base:.2f} GB are the interpreter and the bags themselves")


def _ten_over_one(setting: Setting) -> float:
    """Time of ten endpoints trained at once over that of one, the median of three pairs."""
    small = [Setting(min(setting.bags, 300), labels, 2, 2) for labels in (1, 10)]
    data = [Data.of(each) for each in small]
    ratios = []
    with tempfile.TemporaryDirectory() as one_file, tempfile.TemporaryDirectory() as ten_file:
        files = [each.write(Path(place)) for each, place in zip(data, (one_file, ten_file), strict=True)]
        for _ in range(3):
            one, ten = (ours(f, d, s)[0] for f, d, s in zip(files, data, small, strict=True))
            ratios.append(ten / one)
    return statistics.median(ratios)


def _peak(side: str, flags: list[str]) -> float:
    """GB, in a process of its own."""
    command = [sys.executable, __file__, "--memory", side, *flags]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


if __name__ == "__main__":
    main(sys.argv[1:])
