"""A frozen encoder: card, weights and preprocessing as one thing that turns volumes into embeddings."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clear.backbones import build, convert, fitted_card
from clear.card import EncoderCard
from clear.checkpoints import digest_of, load_strictly, read_tensors
from clear.errors import InputError, ScanRefused
from clear.slices import prepare
from clear.sources import find_card, find_weights
from clear.volume import Volume
from clear.volume_input import prepare_volume
from clear.windows import Window, check_windows, default_windows

DEFAULT_BATCH = 16


def load_encoder(
    name: str, weights: Path | str | None = None, *, device: str = "auto", precision: str = "auto"
) -> Encoder:
    """The encoder called `name` (see `clear.sources.find_card`), with weights.

    weights: a checkpoint instead of the encoder's own. device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
    precision: `auto` (bfloat16 where the hardware multiplies it natively, else float32), `float32` or `bfloat16`.
    Raises InputError for an unknown name or device, WeightsError for weights that are absent or do not fit.
    """
    card = find_card(name)
    found = find_weights(card, None if weights is None else Path(weights))
    tensors = read_tensors(found.path)
    card = fitted_card(found.card, tensors)
    network = build(card)
    load_strictly(network, convert(card, tensors, network), str(found.path))
    return Encoder(card, network, found.note, device=device, precision=precision)


class Encoder:
    """A frozen network with everything that decides its features.

    name, card, dim; digest: sha256 of weights, pooling and preprocessing; weights_note: one line saying what the
    weights are; provenance: precision, device, threads and versions, which may change features in the last digits.
    """

    def __init__(
        self,
        card: EncoderCard,
        network: torch.nn.Module,
        weights_note: str,
        *,
        device: str = "auto",
        precision: str = "auto",
    ) -> None:
        self.card = card
        self.name = card.name
        self.dim = card.dim
        self.weights_note = weights_note
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device, card)
        self.digest = card.digest(digest_of(network))
        self.network: Any = network.requires_grad_(False).eval().to(self.device)
        if card.volume is None:
            self.network.to(memory_format=torch.channels_last)
        if self.precision == "bfloat16" and getattr(network, "rounds_weights", False):
            _round_products(self.network)
        if self.precision == "bfloat16" and self.device.type == "cpu" and not _has_amx():
            from clear.backbones.vit_attention import use_plain_attention

            use_plain_attention(self.network)

    @property
    def provenance(self) -> dict[str, Any]:
        """What may move features by rounding, without being their identity."""
        import timm

        return {
            "precision": self.precision,
            "device": self.device.type,
            "device_name": torch.cuda.get_device_name(self.device)
            if self.device.type == "cuda"
            else platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "timm": timm.__version__,
            "trained on": self.weights_note,
        }

    def windows_for(self, volume: Volume, windows: Sequence[Window] | None) -> tuple[Window, ...]:
        """The windows used on a volume: the encoder's own, else these, else the modality's defaults.

        Raises ScanRefused for what this encoder is not for.
        """
        if self.card.modalities and volume.modality not in self.card.modalities:
            raise ScanRefused(
                "modality",
                f"{volume.modality or 'unknown'} scan, but encoder {self.name} knows "
                f"{', '.join(self.card.modalities)} only; choose another --model for it",
            )
        if self.card.planes and volume.plane not in self.card.planes:
            raise ScanRefused(
                "plane", f"{volume.plane} slices, but encoder {self.name} knows {', '.join(self.card.planes)} only"
            )
        if self.card.own_windows:
            return self.card.own_windows
        return check_windows(windows if windows is not None else default_windows(volume.modality))

    def encode(
        self,
        volume: Volume,
        windows: Sequence[Window] | None = None,
        *,
        batch: int = DEFAULT_BATCH,
        on_batch: Callable[[int], None] | None = None,
    ) -> NDArray[np.float32]:
        """Embeddings of every slice in every window: (Z * windows, d), slice by slice, windows inside a slice.

        An encoder that stacks windows into its channels gives (Z, d), one of whole volumes (1, d).
        batch: at most this many instances at a time (never less than one slice), all of this scan.
        on_batch: told the number of instances after each batch; may raise to stop.
        Raises ScanRefused when the encoder is not for this modality or plane.
        """
        windows = self.windows_for(volume, windows)
        if self.card.volume is not None:
            with torch.inference_mode():
                whole = self.forward(prepare_volume(volume, self.card.volume).to(self.device)).cpu().numpy()
            if on_batch is not None:
                on_batch(1)
            return whole
        out = np.empty((volume.n_slices * len(windows), self.dim), dtype=np.float32)
        for start, x in self.prepared(volume, windows, batch=batch):
            with torch.inference_mode():
                embeddings = self.forward(x)
            out[start : start + len(embeddings)] = embeddings.cpu().numpy()
            if on_batch is not None:
                on_batch(len(embeddings))
        return out

    def prepared(
        self, volume: Volume, windows: Sequence[Window], *, batch: int = DEFAULT_BATCH
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """What a slice encoder is given, batch by batch: (number of the first instance, (n, C, S, S) on the device).

        Instances run slice by slice, windows inside a slice; windows: as `windows_for` gives them; batch: at most this
        many at a time, never less than one slice.
        """
        limits = [window.limits(volume.voxels) for window in self.card.channel_windows or windows]
        step = max(1, batch // len(windows))
        voxels = torch.from_numpy(volume.voxels)
        padding = None if volume.padding is None else torch.from_numpy(volume.padding).to(self.device)
        for first in range(0, volume.n_slices, step):
            part = voxels[first : first + step]
            if self.device.type == "cuda":
                part = part.pin_memory().to(self.device, non_blocking=True)
            with torch.no_grad():
                x = prepare(
                    part,
                    limits,
                    (volume.spacing_mm[1], volume.spacing_mm[2]),
                    self.card,
                    is_ct=volume.modality == "CT",
                    padding=None if padding is None else padding[first : first + step],
                )
            yield first * len(windows), x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Prepared inputs (N, C, S, S) to embeddings (N, d) float32, in this encoder's precision."""
        with self._precision():
            embeddings: torch.Tensor = self.network(x)
        return embeddings.float()

    def feature_map(self, x: torch.Tensor) -> torch.Tensor:
        """The last map (N, h, w, d') before pooling, float32: patch tokens after the final norm, or the neck's map.

        For an encoder of whole volumes (N, t, h, w, d').
        """
        with self._precision():
            features: torch.Tensor = self.network.feature_map(x)
        return features.float()

    @property
    def pools_map(self) -> bool:
        """Whether the embedding is computed from `feature_map` alone, by `embed_map`."""
        return bool(self.network.pools_map)

    def embed_map(self, feature_map: torch.Tensor) -> torch.Tensor:
        """The rest of the way: what `feature_map` gave, (N, h, w, d'), to embeddings (N, d) float32; differentiable.

        Raises InputError where the embedding is not computed from the map (`pools_map`).
        """
        if not self.pools_map:
            raise InputError(
                f"encoder {self.name}: its embedding is not pooled from its last map; use attention or occlusion for it"
            )
        with self._precision():
            embeddings: torch.Tensor = self.network.embed_map(feature_map)
        return embeddings.float()

    def through_inner_map(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(embeddings (N, d) float32, map (N, h, w, d')): an inner map of the network, with a gradient between.

        The map has ceil(S / 8) cells a side, is a leaf of the graph that ends in the embeddings, and all of them goes
        through it; nothing before it is recorded. Raises InputError where no stage of the network is known to be so, as
        in vision transformers.
        """
        stage = getattr(self.network, "inner_stage", None)
        if stage is None:
            raise InputError(
                f"encoder {self.name} has no inner map of a cell for 8 pixels; use attention, gradcam or occlusion"
            )
        maps: list[torch.Tensor] = []

        def cut(_: torch.nn.Module, __: Any, features: torch.Tensor) -> torch.Tensor:
            last = self.network.inner_channels_last
            maps.append((features if last else features.permute(0, 2, 3, 1)).detach().requires_grad_(True))
            return maps[0] if last else maps[0].permute(0, 3, 1, 2)

        handle = stage.register_forward_hook(cut)
        try:
            with self._precision():
                embeddings: torch.Tensor = self.network(x)
        finally:
            handle.remove()
        return embeddings.float(), maps[0]

    def last_attention(self, x: torch.Tensor) -> torch.Tensor:
        """(N, heads, T, T) attention of the last block, float32; the first `prefix_tokens` of T are no patches.

        Raises InputError for an encoder without attention over patches.
        """
        if not hasattr(self.network, "last_attention"):
            raise InputError(f"encoder {self.name} has no attention over patches; use Grad-CAM or occlusion for it")
        with self._precision():
            attention: torch.Tensor = self.network.last_attention(x)
        return attention.float()

    @property
    def reads_class_token(self) -> bool:
        """Whether the embedding is made of a class token, whose last attention says where it looked."""
        return bool(getattr(self.network, "reads_class_token", False))

    def through_attention(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(embeddings (N, d) float32, attention (N, heads, T, T)): as `last_attention`, with a gradient between them.

        The attention is a leaf of the graph that ends in the embeddings; nothing before it is recorded.
        Raises InputError where the embedding is no class token.
        """
        if not self.reads_class_token:
            raise InputError(f"encoder {self.name}: no class token leads from its attention to its embedding")
        with self._precision():
            embeddings, attention = self.network.through_attention(x)
        return embeddings.float(), attention

    @property
    def prefix_tokens(self) -> int:
        """Class token and registers that stand before the patches; 0 without."""
        return int(getattr(self.network, "prefix_tokens", 0))

    @property
    def patch_size(self) -> int:
        """Pixels a patch of a vision transformer; 0 for another network."""
        return int(getattr(self.network, "patch_size", 0))

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "bfloat16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()


def _round_products(network: torch.nn.Module) -> None:
    """Weights of matrix products and convolutions to bfloat16, in place: what autocast does anew in every batch."""
    for module in network.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d | torch.nn.Conv3d):
            module.bfloat16()


def choose_device(device: str) -> torch.device:
    """`auto` is the first GPU if there is one, else the CPU. Raises InputError for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise InputError(f"--device {device}: expected auto, cpu, cuda or cuda:N") from None
    if chosen.type not in ("cpu", "cuda") or (chosen.type == "cuda" and not torch.cuda.is_available()):
        raise InputError(f"--device {device}: not available here; expected auto or cpu")
    return chosen


def choose_precision(precision: str, device: torch.device, card: EncoderCard) -> str:
    """`auto` is bfloat16 where the hardware multiplies it natively and the card allows it, else float32.

    Raises InputError for another word, and for bfloat16 with an encoder whose features it would spoil.
    """
    if precision not in ("auto", "float32", "bfloat16"):
        raise InputError(f"--precision {precision}: expected auto, float32 or bfloat16")
    if precision == "bfloat16" and not card.bfloat16:
        raise InputError(
            f"--precision bfloat16: encoder {card.name} is not known to keep its embeddings in it; use float32"
        )
    if precision != "auto":
        return precision
    return "bfloat16" if card.bfloat16 and has_native_bfloat16(device) else "float32"


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products run in hardware: GPUs from Ampere on, CPUs with AMX-bf16 or AVX512-bf16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return _has_amx() or bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def _has_amx() -> bool:
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())  # torch has no public name for it
