"""Every registered encoder on one page, docs/encoders.md: `make encoders`, or `python tests/bench/encoders.py`.

What a card says, what a network counts (parameters, GFLOPs), how fast one core runs it on random weights, and how it
was verified. Time is the processor's, which neighbours on a shared machine disturb less than the clock. Each one is
measured in a process of its own, so that one that is too slow or too large costs its limit and no more.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import timm
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from clear.backbones import build
from clear.card import EncoderCard
from clear.encoders import ENCODERS
from clear.frozen import Encoder
from clear.models import bfloat16_text, input_text, unverified_text
from pretrain.initialise import random_network

PAGE = Path(__file__).parents[2] / "docs" / "encoders.md"
BATCH = 16
BATCH_FLOPS = 400e9  # a large network fills a core with fewer slices
LIMIT_S = int(os.environ.get("CLEAR_BENCH_LIMIT_S", "600"))  # of processor time, for building and measuring one encoder
NOT_MEASURED = "not measured"

# how each family was compared with its published class (tests/clear/test_fixtures.py and tests/clear/backbones)
FIXTURE = "its class's own numbers on a tiny network"
VERIFIED = {
    "timm:mambaout": FIXTURE,
    "timm:vit_small_patch16_224": "DINO's own numbers on a tiny network, other sizes and oblong ones too",
    "timm:vit": "DINO's and DINOv2's own numbers on tiny networks, other sizes and oblong ones too",
    "timm:resnet50": "timm's own forward pass",
    "vmamba": FIXTURE + ", of two configurations",
    "vit_conv": FIXTURE,
    "open_clip": FIXTURE,
    "sam2": FIXTURE,
    "davit": "timm's own forward pass; its names against the published loader's",
    "merlin": FIXTURE + "; resampling on hand-made volumes",
    "ctclip": FIXTURE + "; resampling on hand-made volumes",
}
# where no code of the authors' own was a reference; by a word of the name, the architecture or the source
BY_OTHERS = {
    "rad-dino": "transformers' numbers of its class on a tiny network, other sizes too",
    "curia": "transformers' numbers of its class on a tiny network, other sizes too",
    "dinov3": "transformers' names to timm's network",
    "siglip": "transformers' names to timm's network",
    "augreg": "timm's own forward pass",
}


def verified(card: EncoderCard) -> str:
    """How an encoder was compared with what its authors publish; nobody here has had the trained weights."""
    for word, how in BY_OTHERS.items():
        if word in card.name or word in card.architecture or word in card.source.place:
            return how
    fits = [prefix for prefix in VERIFIED if card.architecture.startswith(prefix)]
    return VERIFIED[max(fits, key=len)]


def empty_input(card: EncoderCard, batch: int) -> torch.Tensor:
    """Random values in the shape that the network takes."""
    inner = (card.input_size, card.input_size) if card.volume is None else card.volume.tensor_shape
    draw = torch.Generator().manual_seed(0)
    return torch.randn(batch, card.channels if card.volume is None else 1, *inner, generator=draw)


def flops(card: EncoderCard) -> int:
    """Of matrix products and convolutions of one slice or volume, two a multiply-add; VMamba's scan is not counted."""
    timm.layers.set_fused_attn(False)
    with torch.device("meta"):
        network = build(card)
    counter = FlopCounterMode(display=False)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        network = network.to_empty(device="cpu").requires_grad_(False)
        with counter, sdpa_kernel(SDPBackend.MATH):
            network(empty_input(card, 1))
    return counter.get_total_flops()


def measure(name: str) -> None:
    """What a process of its own prints, a JSON object a line, as soon as it knows."""
    card = ENCODERS[name]
    torch.set_num_threads(1)
    of_one = flops(card)
    print(json.dumps({"flops": of_one}), flush=True)
    timm.layers.set_fused_attn(True)
    batch = max(1, min(BATCH, int(BATCH_FLOPS / of_one)))
    x = empty_input(card, batch)
    if card.volume is None:
        x = x.contiguous(memory_format=torch.channels_last)
    precisions = ("float32", "bfloat16") if card.bfloat16 else ("float32",)
    encoders = {
        precision: Encoder(card, random_network(card), "untrained", device="cpu", precision=precision)
        for precision in precisions
    }
    for precision, encoder in encoders.items():
        with torch.inference_mode():
            if batch > 1:
                encoder.forward(x[:1])  # the first pass also prepares kernels
            started = time.process_time()
            encoder.forward(x)
        print(json.dumps({precision: batch / (time.process_time() - started)}), flush=True)


def measured(name: str) -> dict[str, float]:
    """What an encoder's process could say within its limit, after which the system ends it."""
    command = [sys.executable, __file__, "--measure", name]
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S))
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, check=False)
    if done.returncode not in (0, -signal.SIGXCPU, -signal.SIGKILL):
        raise RuntimeError(f"{name}: {done.stderr}")
    found: dict[str, float] = {}
    for line in done.stdout.splitlines():
        found |= json.loads(line)
    return found


def parameters(card: EncoderCard) -> int:
    """How many numbers the network learns."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build(card).parameters())


def same_network(card: EncoderCard) -> str:
    """Equal for encoders that compute the same, with other weights."""
    same = (card.architecture, dict(card.settings), card.input_size, card.channels, card.pooling, card.bfloat16)
    return json.dumps([*same, card.volume and card.volume.as_dict()], sort_keys=True)


def row(card: EncoderCard, found: dict[str, float]) -> list[str]:
    """One line of the table."""
    unit = "" if card.volume is None else " volumes"

    def speed(precision: str) -> str:
        if precision == "bfloat16" and not card.bfloat16:
            return bfloat16_text(card)
        return f"{found[precision]:.3g}{unit}" if precision in found else NOT_MEASURED

    return [
        f"`{card.name}`",
        card.citation,
        str(card.dim),
        input_text(card),
        f"{parameters(card) / 1e6:.1f}",
        f"{found['flops'] / 1e9:.1f}" if "flops" in found else NOT_MEASURED,
        speed("float32"),
        speed("bfloat16"),
        card.licence,
        verified(card),
        unverified_text(card),
    ]


HEAD = (
    "name",
    "paper",
    "d",
    "input",
    "parameters, 10⁶",
    "GFLOPs",
    "slices/s, float32",
    "slices/s, bfloat16",
    "licence",
    "verified against",
    "not verified",
)


NOTES = (
    "Written by `make encoders`; change `clear/encoders.py` and `tests/bench/encoders.py` instead. `clear models show "
    "NAME` says more of each.",
    "Parameters and GFLOPs (two a multiply-add, in matrix products and convolutions, of one slice or volume; VMamba's "
    "scan is not counted) are of what is kept, without classifiers, text towers and projectors. `mambaout-lecl` stands "
    "for the paper's 23M network; what comes with the package under its name is a small one, trained on synthetic "
    "patients (docs/pretraining.md).",
    f"Slices a second: the network alone on random weights, batch {BATCH} (less where that is more than "
    f"{BATCH_FLOPS / 1e9:.0f} GFLOPs; volumes one by one), one pass, in "
    f"processor time of one core ({{machine}}, torch {torch.__version__}). The machine was shared and busy, "
    "so only ratios count, and those roughly. "
    f'"{NOT_MEASURED}": it took more than {LIMIT_S} s of processor time; nothing is extrapolated.',
    "bfloat16 is used where embeddings stay within 5 % of float32 once a scan's mean is gone, the worst of 12 slices "
    "of a real chest CT (tests/clear/test_bfloat16.py), one member or more of each family, with random weights: "
    "trained ones could not be had and may round differently. An encoder that refuses it runs in float32, and its "
    "cell says whether it lost more here or was not compared. MambaOut was compared at its library's start, all sizes "
    "with seeds 0, 1 and 2: 1.4 to 1.7 %. All others have seeded weights that put every layer to work. With those "
    "MambaOut loses more, because each of its blocks adds as much as all before it: `mambaout-femto` 4.95, 5.16, 5.03 "
    "%, `mambaout-kobe` 5.76, 6.05, 5.96 %, `mambaout-tiny` 4.83, 4.59, 5.52 %, the paper's 23M (`mambaout-lecl`, "
    "`mambaout-moco`) 4.85, 4.49, 5.62 %, `mambaout-small` 7.64, 7.41, 8.73 %, `mambaout-base` 7.55, 7.66, 6.85 %. "
    "Where that matters, `--precision float32` is safe.",
    "How each was verified: a tiny random instance of the published class gave inputs and outputs, and a file of its "
    "tensors, loaded through a card, reproduces them within the stated tolerance (tests/clear/test_fixtures.py); where "
    "there are no such numbers the column says what stands in. Trained weights could not be fetched where this was "
    "written, so no encoder has been compared on its published file; `clear models verify NAME` prints what to compare "
    "once it is there.",
)


def processor() -> str:
    """Its name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def page(rows: list[list[str]]) -> str:
    """The whole of docs/encoders.md."""
    table = [HEAD, ["---"] * len(HEAD), *rows]
    lines = ["| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |" for cells in table]
    notes = [note.replace("{machine}", processor()) for note in NOTES]
    return "\n".join(["# The encoders", "", *(line for note in notes for line in (note, "")), *lines, ""])


def main() -> None:
    """Measure each network once and write the page."""
    known: dict[str, dict[str, float]] = {}
    rows = []
    for card in ENCODERS.values():
        key = same_network(card)
        if key not in known:
            known[key] = measured(card.name)
            print(card.name, known[key], flush=True)
        rows.append(row(card, known[key]))
    aside = PAGE.with_suffix(".md.tmp")
    aside.write_text(page(rows), encoding="utf-8")
    aside.replace(PAGE)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2])
    else:
        main()
