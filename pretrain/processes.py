"""The processes of a run: one, or those that `torchrun` starts, which find each other here.

    torchrun --nproc-per-node 8 -m clear pretrain slices.zarr runs/lecl --objective lecl --model vit-conv-lecl

Each takes an equal share of the global batch. Processes on GPUs talk through NCCL, on processors through gloo.
"""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from clear.errors import ClearError, InputError
from clear.frozen import choose_device
from clear.launch import launched
from clear.stopping import Interrupted
from pretrain.loop import Diverged

# longer than one process alone works while the others wait for it; a process that dies is the launcher's to notice
PATIENCE = datetime.timedelta(hours=2)


@contextmanager
def processes(device: str) -> Iterator[torch.device]:
    """The device of this process, and all processes connected while the block runs.

    device: `auto`, `cpu`, `cuda` or `cuda:N`; several processes on GPUs take one each, by their number on the machine.
    Raises InputError for a device that is not there.
    """
    place = choose_device(device)
    if launched() == 1 or dist.is_initialized():
        if place.type == "cuda":
            torch.cuda.set_device(place)
        yield place
        return
    if place.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise InputError(
                f"torchrun started process {local} of this machine, which has {torch.cuda.device_count()} GPUs; "
                "start as many processes as there are GPUs (--nproc-per-node)"
            )
        place = torch.device("cuda", local)
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield place
    except (Interrupted, Diverged):  # of all processes; the first one says it
        raise
    except ClearError as error:
        if dist.get_rank():  # perhaps of this process alone: nobody else could say it
            print(f"process {dist.get_rank()}: {error}", file=sys.stderr, flush=True)
        raise
    except RuntimeError as error:
        if not _lost(error):
            raise
        raise ClearError(
            "the connection to another process of this run is lost: it ended first, and its own message says why. "
            "The last checkpoint is kept; the same command goes on from there"
        ) from error
    finally:
        dist.destroy_process_group()


def _lost(error: RuntimeError) -> bool:
    """Whether a collective failed because another process is gone: NCCL has a type for it, gloo says its name."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)
