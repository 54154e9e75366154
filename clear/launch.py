"""How many processes `torchrun` started, and which of them this is, from the environment alone."""

from __future__ import annotations

import os


def launched() -> int:
    """How many processes `torchrun` started with this one; 1 without it."""
    count = os.environ.get("WORLD_SIZE", "1")
    return int(count) if count.isdigit() and "RANK" in os.environ else 1


def launched_rank() -> int:
    """This process's number among them, before they have found each other."""
    return int(os.environ["RANK"]) if launched() > 1 else 0
