"""Whose weights are found, and what is said, how soon, when they are not."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from clear.card import WEIGHTS_FILE, WeightSource
from clear.encoders import ENCODERS
from clear.errors import WeightsError
from clear.sources import find_weights, local_weights


def test_weights_are_looked_for_where_the_user_says_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = ENCODERS["mambaout-lecl"]
    assert find_weights(card).path.parent.name == "mambaout-lecl"
    assert "untrained" in find_weights(card).note
    assert find_weights(card).card.input_size == 128  # the small stand-in has a card of its own
    monkeypatch.setenv("CLEAR_WEIGHTS", str(tmp_path))
    local = tmp_path / "mambaout-lecl.safetensors"
    local.write_bytes(b"x")
    assert find_weights(card).path == local
    assert find_weights(card).card == card
    mine = tmp_path / "mine.pth"
    mine.write_bytes(b"x")
    assert find_weights(card, mine).path == mine
    assert "mine.pth" in find_weights(card, mine).note


def test_absent_weights_say_at_once_what_to_fetch_and_where_to_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    started = time.perf_counter()
    with pytest.raises(WeightsError) as error:
        find_weights(replace(ENCODERS["mambaout-base"], source=WeightSource("hub", "someone/no-such", size_mb=340)))
    assert time.perf_counter() - started < 2
    for part in ("model.safetensors", "340 MB", "someone/no-such", "--weights", "CLEAR_WEIGHTS", "Apache-2.0"):
        assert part in str(error.value)
    with pytest.raises(WeightsError, match="no such file"):
        find_weights(ENCODERS["mambaout-base"], tmp_path / "absent.pth")


def test_a_file_with_everybodys_name_is_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEAR_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("model.safetensors", "weights.safetensors", "pytorch_model.bin"):
        (tmp_path / name).write_bytes(b"x")
    for card in ENCODERS.values():
        place = local_weights(card)
        assert place is None or place.parent != tmp_path, card.name


def test_a_file_under_its_authors_own_name_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEAR_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("CT-CLIP_v2.pt", "sam2_hiera_tiny.pt"):
        (tmp_path / name).write_bytes(b"x")
    assert local_weights(ENCODERS["ct-clip"]) == tmp_path / "CT-CLIP_v2.pt"
    assert local_weights(ENCODERS["sam2-t"]) == tmp_path / "sam2_hiera_tiny.pt"
    assert local_weights(ENCODERS["sam2.1-t"]) is None


def test_a_card_of_ones_own_takes_the_weights_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / WEIGHTS_FILE).write_bytes(b"other")
    (tmp_path / "mine").mkdir()
    monkeypatch.setenv("CLEAR_WEIGHTS", str(tmp_path / "folder"))
    card = replace(ENCODERS["vit-s"], source=WeightSource("file", str(tmp_path / "mine" / WEIGHTS_FILE), WEIGHTS_FILE))
    with pytest.raises(WeightsError, match="are missing at"):
        find_weights(card)
    (tmp_path / "mine" / WEIGHTS_FILE).write_bytes(b"own")
    assert find_weights(card).path == tmp_path / "mine" / WEIGHTS_FILE


def test_encoders_without_published_weights_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLEAR_WEIGHTS", raising=False)
    for name in ("vmamba-lecl", "mambaout-moco", "vit-conv-lecl", "radio-dino-t"):
        with pytest.raises(WeightsError, match=r"published no weights.*--weights FILE, or put it as " + name):
            find_weights(ENCODERS[name])


def test_a_gated_encoder_names_the_page_where_its_licence_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"Accept its licence at https://huggingface.co/google/medsiglip-448 first"):
        find_weights(ENCODERS["medsiglip"])


@pytest.fixture
def silent_host() -> Iterator[int]:
    """The port of a host that takes connections and never says a word, as some firewalls do."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        for connection in held:
            connection.close()


@pytest.mark.parametrize("through", ["endpoint", "proxy"])
def test_a_host_that_takes_the_call_and_says_nothing_is_not_waited_for(
    through: str, silent_host: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("clear.sources.ANSWER_TIMEOUT_S", 0.5)
    if through == "endpoint":
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{silent_host}")
    else:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{silent_host}")
    started = time.monotonic()
    with pytest.raises(WeightsError, match="could not be fetched"):
        find_weights(replace(ENCODERS["vit-s"], source=WeightSource("hub", "someone/no-such")))
    assert time.monotonic() - started < 5


def test_an_absent_encoder_is_answered_before_anything_heavy_is_loaded(tmp_path: Path) -> None:
    asked = (
        "import sys, clear\n"
        "try: clear.extract(sys.argv[1], sys.argv[2], model='dinov2-b')\n"
        "except clear.ClearError: print('torch' in sys.modules)"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", asked, str(tmp_path), str(tmp_path / "feats.h5")],
        capture_output=True, text=True, env=environment, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.stdout.strip() == "False"
    assert list(tmp_path.iterdir()) == []
