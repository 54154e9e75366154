"""Whose weights are found, and what is said, how soon, when they are not."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from clear.card import WEIGHTS_FILE, WeightSource
from clear.encoders import ENCODERS
from clear.errors import InputError, WeightsError
from clear.hub import place_of_timm, silence
from clear.sources import expect_weights, find_weights, local_weights


def test_weights_are_looked_for_where_the_user_says_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = ENCODERS["mambaout-lecl"]
    assert find_weights(card).path.parent.name == "mambaout-lecl"
    assert "not for clinical conclusions" in find_weights(card).note
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
    for name in ("model.safetensors", "weights.safetensors", "weights.pth", "pytorch_model.bin"):
        (tmp_path / name).write_bytes(b"x")
    for card in ENCODERS.values():
        place = local_weights(card)
        assert place is None or place.parent != tmp_path, card.name


def test_a_file_under_its_authors_own_name_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEAR_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    own = {
        "ct-clip": "CT-CLIP_v2.pt",
        "sam2-t": "sam2_hiera_tiny.pt",
        "vmamba-tiny": "vssm1_tiny_0230s_ckpt_epoch_264.pth",
        "vmamba-small": "vssm_small_0229_ckpt_epoch_222.pth",
        "vmamba-base": "vssm_base_0229_ckpt_epoch_237.pth",
        "radio-dino-t": "RadioDINO_tiny.pth",
    }
    for name in own.values():
        (tmp_path / name).write_bytes(b"x")
    assert {name: local_weights(ENCODERS[name]) for name in own} == {n: tmp_path / file for n, file in own.items()}
    assert local_weights(ENCODERS["sam2.1-t"]) is None
    assert local_weights(ENCODERS["radio-dino-t-sp"]) is None  # its name is not known


@pytest.mark.parametrize("name", ["mambaout-lecl", "dinov2-b", "vmamba-tiny"])
def test_a_folder_of_weights_that_is_not_there_is_an_error(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file = tmp_path / "file"
    file.write_bytes(b"x")
    for place in (tmp_path / "wieghts", file):
        monkeypatch.setenv("CLEAR_WEIGHTS", str(place))
        with pytest.raises(InputError, match=rf"\$CLEAR_WEIGHTS is {place}: no such folder"):
            find_weights(ENCODERS[name])
    assert find_weights(ENCODERS[name], file).path == file  # it is not asked for


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
    for name in ("vmamba-lecl", "mambaout-moco", "vit-conv-lecl", "radio-dinov2"):
        with pytest.raises(WeightsError, match=r"published no weights.*--weights FILE, or put it as " + name):
            find_weights(ENCODERS[name])


def test_weights_that_are_published_elsewhere_name_the_page_and_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLEAR_WEIGHTS", raising=False)
    vmamba = "https://github.com/MzeroMiko/VMamba/releases, fetch vssm_small_0229_ckpt_epoch_222.pth and pass it with"
    radio = "https://github.com/Snarci/Radio-DINO, fetch the file that it links and pass it with"
    for name, text, own in (
        ("vmamba-small", vmamba, "vssm_small_0229_ckpt_epoch_222.pth"),
        ("radio-dino-t-sp", radio, ""),
    ):
        with pytest.raises(WeightsError) as error:
            find_weights(ENCODERS[name])
        assert text in str(error.value)
        assert f"put it as {name}.safetensors{f' (or under its own name, {own})' if own else ''} into" in str(
            error.value
        )
        assert "published no weights" not in str(error.value)


def test_a_gated_encoder_names_the_page_where_its_licence_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"Accept its licence at https://huggingface.co/google/medsiglip-448 first"):
        find_weights(ENCODERS["medsiglip"])


Serve = Callable[[socket.socket], None]


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that may ask the hub, by no proxy, and has no weights."""
    from huggingface_hub import constants

    for name in ("CLEAR_WEIGHTS", "HF_HUB_OFFLINE", "HF_HUB_ETAG_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # as read when an earlier test loaded it
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))


@pytest.fixture
def host() -> Iterator[Callable[[Serve], int]]:
    """The port of a host that takes connections, lets the given function answer, and then never says a word."""
    servers: list[socket.socket] = []
    held: list[socket.socket] = []

    def start(answer: Serve) -> int:
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)

        def accept() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                    answer(held[-1])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        return int(server.getsockname()[1])

    yield start
    for each in (*servers, *held):
        each.close()


def nothing(_: socket.socket) -> None:
    """As some firewalls do."""


def connected(client: socket.socket) -> None:
    """A proxy that says it has reached the hub, which then is silent."""
    client.recv(4096)
    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")


@pytest.mark.parametrize(
    ("variable", "answer"),
    [("HF_ENDPOINT", nothing), ("HTTPS_PROXY", nothing), ("ALL_PROXY", nothing), ("HTTPS_PROXY", connected)],
    ids=["endpoint", "proxy", "proxy for all", "tunnel"],
)
@pytest.mark.usefixtures("online")
def test_a_host_that_takes_the_call_and_says_nothing_is_waited_for_a_second(
    variable: str, answer: Serve, host: Callable[[Serve], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    place = f"http://127.0.0.1:{host(answer)}"
    if variable == "HF_ENDPOINT":
        monkeypatch.setattr(constants, "ENDPOINT", place)
    else:
        monkeypatch.setenv(variable, place)
    started = time.monotonic()
    with pytest.raises(WeightsError, match=r"could not be fetched \(\S+ said nothing within 1 s; HF_HUB_ETAG_TIMEOUT"):
        find_weights(replace(ENCODERS["vit-s"], source=WeightSource("hub", "someone/no-such")))
    assert time.monotonic() - started < 2


@pytest.mark.usefixtures("online")
def test_the_user_may_wait_longer_for_the_first_word(
    host: Callable[[Serve], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    def late(client: socket.socket) -> None:
        time.sleep(0.5)
        client.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    monkeypatch.setattr("clear.hub.FIRST_WORD_S", 0.2)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{host(late)}")
    assert "said nothing within 0.2 s" in silence()
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "5")
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 5)
    assert silence() == ""


@pytest.mark.usefixtures("online")
def test_a_proxy_that_refuses_has_spoken(host: Callable[[Serve], int], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(client: socket.socket) -> None:
        client.recv(4096)
        client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")

    monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{host(refuse)}")
    assert silence() == ""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # nobody takes the call
    assert "huggingface.co said nothing" in silence()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert silence() == "HF_HUB_OFFLINE is set"


def test_a_hub_that_speaks_at_once_may_take_its_time_over_a_file(tmp_path: Path) -> None:
    class Slow(BaseHTTPRequestHandler):
        """Answers for the file after longer than the first word may take."""

        def answer(self, content: bytes) -> None:
            if not self.path.endswith("/model.safetensors"):
                self.send_error(404)
                return
            time.sleep(1.2)
            self.send_response(200)
            for name, value in (("X-Repo-Commit", "0" * 40), ("ETag", '"abc"'), ("Content-Length", "5")):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def do_HEAD(self) -> None:
            self.answer(b"")

        def do_GET(self) -> None:
            self.answer(b"12345")

        def log_message(self, *_: object) -> None:
            """Not into the tests' output."""

    asked = "from clear.hub import fetch; print(fetch('someone/something', 'model.safetensors').read_text())"
    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1", "PATH": ""}
        done = subprocess.run(
            [sys.executable, "-c", asked],
            capture_output=True, text=True, env=environment, check=False, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        server.shutdown()
    assert done.stdout.strip() == "12345", done.stderr


def test_timms_source_says_where_its_weights_are_as_timm_does() -> None:
    from timm.models import get_pretrained_cfg

    models = ("resnet18.a1_in1k", "resnet18", "mambaout_base", "vit_small_patch16_224", "convnext_base", "fastvit_mci0")
    known = {model: place_of_timm(model) for model in models}
    assert known["resnet18"] == "timm/resnet18.a1_in1k"
    for model, place in known.items():
        config = get_pretrained_cfg(model)
        assert config is not None
        assert place in (None, config.hf_hub_id), model
    # not of its own name, commented out, unknown: timm must say
    for model in ("vit_base_mci_224.apple_mclip", "vit_huge_patch14_gap_224.in1k_ijepa", "resnet1", "", "x.y"):
        assert place_of_timm(model) is None


def test_an_absent_timm_model_is_answered_by_its_name_and_a_present_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CLEAR_WEIGHTS", str(tmp_path))
    page = "https://huggingface.co/timm/resnet18.a1_in1k"
    for name in ("timm:resnet18.a1_in1k", "timm:resnet18"):
        with pytest.raises(WeightsError, match=rf"HF_HUB_OFFLINE is set.*Fetch model.safetensors from {page} and pass"):
            expect_weights(name)
        expect_weights(name, tmp_path / "given.pth")
        (tmp_path / f"{name.replace(':', '_')}.safetensors").write_bytes(b"x")
        expect_weights(name)
    for name in ("dinov2-b", "timm:resnet1", "timm:fastvit_mci0", "card.json"):  # others have the word
        expect_weights(name)


@pytest.mark.parametrize("name", ["dinov2-b", "timm:resnet18.a1_in1k", "timm:resnet18", "vmamba-tiny"])
def test_an_absent_encoder_is_answered_before_anything_heavy_is_loaded(name: str, tmp_path: Path) -> None:
    asked = (
        "import sys, clear\n"
        f"try: clear.extract(sys.argv[1], sys.argv[2], model={name!r})\n"
        "except clear.ClearError: print('torch' in sys.modules)"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", asked, str(tmp_path), str(tmp_path / "feats.h5")],
        capture_output=True, text=True, env=environment, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.stdout.strip() == "False"
    assert list(tmp_path.iterdir()) == []
