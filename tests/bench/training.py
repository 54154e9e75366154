"""Training: an epoch of ABMIL over packed bags against common practice."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch
from extraction import show
from torch import nn
from torch.utils.data import DataLoader, Dataset

from aggregate.aggregators import build_aggregator
from aggregate.fit import run_epoch, training_precision
from aggregate.packed import PackedRows
from aggregate.targets import Targets
from clear.endpoints import Endpoint

BAGS, DIM, LABELS, BATCH, PADDED = 256, 768, 8, 128, 512
ROUNDS = 5


class PaddedAttention(nn.Module):
    """ABMIL in the paper's shape over zero-padded bags with a mask, as it is commonly written."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(DIM, 256), nn.ReLU())
        self.attention = nn.Sequential(nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 1))
        self.head = nn.Sequential(
            nn.LayerNorm(256), nn.Linear(256, 256), nn.Dropout(0.5), nn.SiLU(), nn.Linear(256, LABELS)
        )

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, PADDED, d) and (B, PADDED) to (B, LABELS)."""
        rows = self.embed(x)
        scores = self.attention(rows).masked_fill(~mask[..., None], float("-inf"))
        return self.head((scores.softmax(dim=1) * rows).sum(dim=1))


class FileBags(Dataset):
    """One HDF5 file a scan, opened when asked for and padded with zeros."""

    def __init__(self, folder: Path, truth: torch.Tensor) -> None:
        self.folder = folder
        self.truth = truth

    def __len__(self) -> int:
        return len(self.truth)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        with h5py.File(self.folder / f"{index}.h5") as file:
            features = torch.from_numpy(file["feats"][:])
        x, mask = torch.zeros(PADDED, DIM), torch.zeros(PADDED, dtype=torch.bool)
        x[: len(features)], mask[: len(features)] = features, True
        return x, mask, self.truth[index]


def common_epoch(model: nn.Module, data: FileBags, optimiser: torch.optim.Optimizer) -> float:
    """Seconds for one epoch of common practice."""
    started = time.perf_counter()
    model.train()
    for x, mask, truth in DataLoader(data, batch_size=BATCH, shuffle=True):
        optimiser.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(model(x, mask), truth).backward()
        optimiser.step()
    return time.perf_counter() - started


def main() -> None:
    """Print the table of ratios."""
    print(f"\ntraining: {BAGS} bags of 150 to 500 x {DIM}, {LABELS} labels, {torch.get_num_threads()} threads")
    random = np.random.default_rng(0)
    bags = [random.standard_normal((int(k), DIM), dtype=np.float32) for k in random.integers(150, 501, BAGS)]
    truth = random.integers(0, 2, (BAGS, LABELS))
    targets = Targets(tuple(Endpoint(str(i), "binary", ("0", "1")) for i in range(LABELS)), truth.astype(np.float64))
    packed = PackedRows.of([bag.astype(np.float16) for bag in bags])
    ours = build_aggregator("abmil", DIM, LABELS, 0.5)
    ours.fit_scale(packed, np.arange(BAGS))
    precision = training_precision("auto", "cpu")
    prepared = ours.prepare(packed, precision)
    codes = torch.tensor(targets.codes, dtype=torch.float32)
    theirs = PaddedAttention()
    optimisers = [torch.optim.AdamW(model.parameters(), lr=1e-4) for model in (ours, theirs)]
    with tempfile.TemporaryDirectory() as place:
        for index, bag in enumerate(bags):
            with h5py.File(Path(place) / f"{index}.h5", "w") as file:
                file["feats"] = bag
        data = FileBags(Path(place), torch.from_numpy(truth).float())
        ratios = []
        for _ in range(ROUNDS + 1):
            started = time.perf_counter()
            run_epoch(ours, prepared, targets, codes, random.permutation(BAGS), optimisers[0], BATCH)
            own = time.perf_counter() - started
            other = common_epoch(theirs, data, optimisers[1])
            ratios.append(own / other)
    show(f"ABMIL epoch, {precision}", f"{statistics.median(ratios[1:]):.3f} of common practice's time (bound 0.25)")


if __name__ == "__main__":
    main()
