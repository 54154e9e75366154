from __future__ import annotations

import pickle
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from clear.card import WeightSource
from clear.checkpoints import digest_of, find_weights, load_strictly, read_tensors
from clear.encoders import ENCODERS
from clear.errors import WeightsError


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
def test_pytorch_files_of_tensors_are_read(tmp_path: Path, wrap) -> None:
    path = tmp_path / "weights.pth"
    torch.save(wrap(small().state_dict()), path)
    tensors = read_tensors(path)
    assert list(tensors) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert torch.equal(tensors["0.weight"], small().state_dict()["0.weight"])


def test_safetensors_are_told_by_content_not_by_name(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    save_file(small().state_dict(), path)
    assert torch.equal(read_tensors(path)["0.bias"], small().state_dict()["0.bias"])


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def test_a_pickle_with_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, dump in (("torch.pth", torch.save), ("plain.pkl", lambda o, p: Path(p).write_bytes(pickle.dumps(o)))):
        dump({"a": Bomb()}, tmp_path / name)
        with pytest.raises(WeightsError, match="cannot be opened without running code"):
            read_tensors(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("keep", [0, 4, 30, 200])
def test_a_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(small().state_dict(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"weights\.safetensors"):
        read_tensors(path)


def test_loading_is_strict_and_names_the_tensor() -> None:
    state = dict(small().state_dict())
    with pytest.raises(WeightsError, match=r"here: does not fit this encoder: missing 0\.bias"):
        load_strictly(small(), {k: v for k, v in state.items() if k != "0.bias"}, "here")
    with pytest.raises(WeightsError, match="surplus extra"):
        load_strictly(small(), {**state, "extra": torch.zeros(1)}, "here")
    with pytest.raises(WeightsError, match=r"0\.bias has shape \(3,\); expected \(2,\)"):
        load_strictly(small(), {**state, "0.bias": torch.zeros(3)}, "here")
    with pytest.raises(WeightsError, match=r"0\.bias holds values that are not finite"):
        load_strictly(small(), {**state, "0.bias": torch.tensor([0.0, float("nan")])}, "here")


def test_half_precision_files_load_as_float32_and_the_digest_is_of_the_values() -> None:
    network = small()
    half = {name: tensor.half() for name, tensor in network.state_dict().items()}
    load_strictly(network, half, "here")
    assert network.state_dict()["0.weight"].dtype == torch.float32
    before = digest_of(network)
    load_strictly(network, half, "here")
    assert digest_of(network) == before
    with torch.no_grad():
        network[0].bias[0] += 1e-3
    assert digest_of(network) != before


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
