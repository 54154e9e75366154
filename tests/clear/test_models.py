"""`clear models`: the list, one encoder's page, conversion of published files, verification, and absent weights."""

from __future__ import annotations

import argparse
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from clear.__main__ import run
from clear.arguments import named_values
from clear.card import read_card, write_card
from clear.encoders import ENCODERS
from clear.errors import InputError, WeightsError
from clear.frozen import Encoder, load_encoder
from clear.models import convert, fixed_volume, table, verify, with_changes
from clear.sources import BUNDLED, find_card
from clear.windows import LUNG

Tensors = dict[str, torch.Tensor]
TINY_VIT = {"embed_dim": 64, "depth": 2, "num_heads": 1, "img_size": 48, "patch_size": 16}


def fixture_tensors(shared_data: Path, name: str) -> Tensors:
    with np.load(shared_data / "fixtures" / f"{name}.npz", allow_pickle=False) as file:
        return {key[3:]: torch.from_numpy(file[key]) for key in file.files if key.startswith("sd/")}


def moco_file(tensors: Tensors, path: Path) -> Path:
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith("head.")}
    state = {f"module.base_encoder.{name}": tensor for name, tensor in own.items()}
    state |= {f"module.momentum_encoder.{name}": tensor * 0.5 for name, tensor in own.items()}
    state["module.base_encoder.head.0.weight"] = torch.ones(2, 2)
    torch.save({"epoch": 1, "state_dict": state}, path)
    return path


def cpu(name: Path | str, weights: Path | None = None) -> Encoder:
    return load_encoder(str(name), weights, device="cpu", precision="float32")


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without weights, network or weights folder; returns the (empty) cache."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.delenv("CLEAR_WEIGHTS", raising=False)
    return cache


def test_the_list_has_a_line_an_encoder_with_its_size_and_where_its_weights_are(
    offline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["models"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "d", "input", "windows", "licence", "weights"]
    rows = {line.split()[0]: line for line in lines}
    assert list(rows) == list(ENCODERS)
    assert rows["mambaout-lecl"].endswith("in the package")
    assert rows["dinov2-b"].split()[1:4] == ["768", "224", "px"]
    assert rows["vmamba-lecl"].endswith("not published")
    assert rows["vmamba-tiny"].endswith("published elsewhere, to fetch by hand")
    assert rows["curia"].endswith("on the hub, licence to accept there")
    assert "volume 240 x 480 x 480 at 1.5 x 0.75 x 0.75 mm" in rows["ct-clip"]
    assert "its own (wide+soft_tissue+brain)" in rows["medsiglip"]


def test_the_list_shows_a_file_that_the_user_put_there(
    offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLEAR_WEIGHTS", str(tmp_path))
    (tmp_path / "dinov2-b.safetensors").write_bytes(b"x")
    places = dict(table().select("name", "weights").rows())
    assert places["dinov2-b"] == str(tmp_path / "dinov2-b.safetensors")
    assert places["dinov2-l"] == "on the hub"


Show = Callable[[str], dict[str, str]]


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str]) -> Show:
    """What `clear models show` prints, by field."""

    def shown(name: str) -> dict[str, str]:
        assert run(["models", "show", name]) == 0
        lines = capsys.readouterr().out.splitlines()
        return {line[:14].strip(): line[14:] for line in lines}

    return shown


def test_one_encoders_page_says_what_decides_its_features(show: Show, capsys: pytest.CaptureFixture[str]) -> None:
    page = show("rad-dino")
    assert page["input"] == "518 px"
    assert page["mean"] == "0.5307, 0.5307, 0.5307"
    assert page["architecture"] == "timm:vit_base_patch14_dinov2"
    assert "microsoft/rad-dino" in page["source"]
    assert page["licence"] == "MIT"
    page = show("merlin")
    assert "mean" not in page  # of slices
    assert page["planes"] == "any"
    assert run(["models", "show", "dinov2-x"]) == 2
    assert "Did you mean dinov2-" in capsys.readouterr().err


def test_a_page_says_why_bfloat16_is_refused(show: Show, tmp_path: Path) -> None:
    assert show("merlin")["bfloat16"] == show("ct-clip")["bfloat16"] == "refused: not compared"
    assert show("curia")["bfloat16"] == "refused: loses more than 5 % here (5.3 %, with another seed 4.0 %)"
    assert show("resnet50")["bfloat16"] == "refused: loses more than 5 % here (52 %)"
    assert show("timm:resnet18.a1_in1k")["bfloat16"] == "refused: not compared"
    assert show("dinov2-b")["bfloat16"] == "where the hardware has it"
    write_card(replace(ENCODERS["vit-s"], bfloat16=False), tmp_path)
    assert show(str(tmp_path))["bfloat16"] == "refused: its card says so"


def test_a_page_names_all_that_was_not_verified(show: Show, tmp_path: Path) -> None:
    unseen = "the published file, which was not seen"
    assert show("dinov2-b")["not verified"] == unseen
    assert show("rad-dino")["not verified"] == f"{ENCODERS['rad-dino'].unverified}; {unseen}"
    assert show("mambaout-moco")["not verified"] == "there is no published file"
    assert "the paper's own checkpoint" in show("mambaout-lecl")["not verified"]
    assert "bilinearly without antialias" in show("medsiglip")["not verified"]
    write_card(replace(ENCODERS["vit-s"], unverified=""), tmp_path)
    assert "not verified" not in show(str(tmp_path))


def test_a_page_names_where_files_lie_that_cannot_be_fetched_from_the_hub(offline: Path, show: Show) -> None:
    page = show("vmamba-tiny")
    assert page["weights"] == "published elsewhere, to fetch by hand"
    where = "https://github.com/MzeroMiko/VMamba/releases, vssm1_tiny_0230s_ckpt_epoch_264.pth"
    assert page["source"] == f"elsewhere: {where}"
    page = show("radio-dino-t-sp")
    assert page["source"] == "elsewhere: https://github.com/Snarci/Radio-DINO"
    linked = "linked on a file-sharing site by their repository Snarci/Radio-DINO"
    for name in ("radio-dino-t", "radio-dino-t-sp"):
        assert linked in show(name)["not verified"]


@pytest.mark.parametrize("branch", [None, "momentum"])
def test_a_moco_checkpoint_becomes_a_card_of_the_same_embeddings(
    branch: str | None, shared_data: Path, tmp_path: Path
) -> None:
    tensors = fixture_tensors(shared_data, "mambaout_official_tiny")
    file = moco_file(tensors, tmp_path / "lecl_0100.pth.tar")
    card = convert(file, tmp_path / "card", arch="mambaout-lecl", branch=branch)
    assert (card.name, card.dim, card.settings["dims"]) == ("lecl-0100", 40, (8, 16, 24, 40))
    converted = cpu(tmp_path / "card")
    scale = 1.0 if branch is None else 0.5
    save_file({name: tensor * scale for name, tensor in tensors.items()}, tmp_path / "wanted.safetensors")
    direct = cpu("mambaout-lecl", tmp_path / "wanted.safetensors")
    assert converted.digest == direct.digest
    features = converted.encode(fixed_volume(), [LUNG])
    assert np.array_equal(features, direct.encode(fixed_volume(), [LUNG]))
    assert features.std() > 0


def test_the_command_converts_and_says_what_it_made(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = moco_file(fixture_tensors(shared_data, "mambaout_official_tiny"), tmp_path / "theirs.pth.tar")
    arguments = ["models", "convert", str(file), str(tmp_path / "card"), "--branch", "momentum", "--name", "mine"]
    assert run([*arguments, "--trained-on", "our slices", "--set", "input_size=64"]) == 0
    out = capsys.readouterr().out
    assert "mine, timm:mambaout_tiny, 40 values, mean norm" in out
    assert "to be checked: what shapes do not tell, taken as that of mambaout-lecl" in out  # --arch was left out
    card = read_card(tmp_path / "card")
    assert (card.name, card.trained_on, card.input_size) == ("mine", "our slices", 64)


def test_a_dino_checkpoint_is_recognised_and_its_teacher_taken(
    tmp_path: Path, seeded_weights: Callable[..., Any]
) -> None:
    base = replace(ENCODERS["dino-s16"], dim=64, input_size=48, settings=TINY_VIT)
    tensors = {n.removeprefix("network."): t for n, t in seeded_weights(base).state_dict().items()}
    teacher = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
    student = {f"module.backbone.{name}": tensor + 1 for name, tensor in tensors.items()}
    heads = {"head.mlp.0.weight": torch.ones(2)}
    content = {"teacher": teacher | heads, "student": student, "args": argparse.Namespace(arch="vit")}
    torch.save(content, tmp_path / "checkpoint.pth")
    card = convert(tmp_path / "checkpoint.pth", tmp_path / "card", changes={"input_size": 48})
    assert (card.dim, card.settings["depth"], card.settings["patch_size"], card.positions) == (64, 2, 16, "dinov2")
    assert (card.mean, card.resize) == (base.mean, base.resize)
    assert "dino-s16" in card.unverified
    assert "(mean 0.485, 0.456, 0.406, std 0.229, 0.224, 0.225)" in card.unverified  # an AugReg ViT looks the same
    loaded = cpu(tmp_path / "card").network.state_dict()
    assert all(torch.equal(loaded[f"network.{name}"], tensor) for name, tensor in tensors.items())
    convert(tmp_path / "checkpoint.pth", tmp_path / "other", branch="student", changes={"input_size": 48})
    loaded = cpu(tmp_path / "other").network.state_dict()
    assert torch.equal(loaded["network.norm.weight"], tensors["norm.weight"] + 1)


def hugging_face_names(tensors: Tensors) -> Tensors:
    """timm's ViT under the names of transformers' ViTModel, whose files are of this form."""
    out: Tensors = {"embeddings.mask_token": torch.zeros(1, 1, 64)}
    outer = {"cls_token": "cls_token", "pos_embed": "position_embeddings"}
    for name, tensor in tensors.items():
        if name in outer:
            out[f"embeddings.{outer[name]}"] = tensor
        elif name.startswith("patch_embed.proj."):
            out[name.replace("patch_embed.proj", "embeddings.patch_embeddings.projection")] = tensor
        elif name.startswith("norm."):
            out[f"layernorm.{name.removeprefix('norm.')}"] = tensor
        else:
            _, number, rest = name.split(".", 2)
            block = f"encoder.layer.{number}."
            if rest.startswith("attn.qkv."):
                for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                    out[f"{block}attention.attention.{part}.{rest.rpartition('.')[2]}"] = piece
                continue
            words = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense"}
            words |= {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
            module, _, kind = rest.rpartition(".")
            out[f"{block}{words[module]}.{kind}"] = tensor
    return out


def test_a_hugging_face_file_and_an_official_one_become_the_same_card(
    tmp_path: Path, seeded_weights: Callable[..., Any]
) -> None:
    base = replace(ENCODERS["dino-s16"], dim=64, input_size=48, settings=TINY_VIT)
    tensors = {n.removeprefix("network."): t for n, t in seeded_weights(base).state_dict().items()}
    save_file(tensors, tmp_path / "official.safetensors")
    theirs = {name: tensor.contiguous() for name, tensor in hugging_face_names(tensors).items()}
    save_file(theirs, tmp_path / "theirs.safetensors")
    for name in ("official", "theirs"):
        changes = {"input_size": 48, "dim": 64, **{f"settings.{key}": value for key, value in TINY_VIT.items()}}
        convert(tmp_path / f"{name}.safetensors", tmp_path / name, arch="dino-s16", changes=changes)
    official, converted = cpu(tmp_path / "official"), cpu(tmp_path / "theirs")
    assert converted.digest == official.digest
    assert load_file(tmp_path / "theirs" / "weights.safetensors").keys() == tensors.keys()
    features = converted.encode(fixed_volume(), [LUNG])
    assert np.array_equal(features, official.encode(fixed_volume(), [LUNG]))
    assert np.ptp(features, axis=0).max() > 0.1


def test_what_cannot_be_converted_is_named(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"layer.weight": torch.ones(2)}, tmp_path / "odd.safetensors")
    arguments = ["models", "convert", str(tmp_path / "odd.safetensors"), str(tmp_path / "card")]
    assert run(arguments) != 0
    assert "of no family that is recognised by itself (they begin layer.weight)" in capsys.readouterr().err
    file = moco_file(fixture_tensors(shared_data, "mambaout_official_tiny"), tmp_path / "theirs.pth.tar")
    arguments[2] = str(file)
    for option, message in (
        (["--set", "colour=red"], "--set colour: a card has no such field; expected settings.NAME or one of any_size"),
        (["--set", "input_size"], "--set input_size: expected NAME=VALUE"),
        (
            ["--set", "settings=3", "--set", "settings.a=2"],
            "--set settings: is 3; expected a table of names and values",
        ),
        (["--set", "settings.a=2", "--set", "settings=3"], "settings is 3; expected a table of names and values"),
        (["--branch", "left"], "--branch left: expected one of base, momentum, student, teacher"),
        (["--branch", "teacher"], "has no teacher encoder; expected one of base, momentum"),
    ):
        assert run([*arguments, *option]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "card").exists()


def test_a_conversion_never_destroys_its_own_input(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "weights.safetensors"
    tensors = fixture_tensors(shared_data, "mambaout_official_tiny")
    both = {f"base_encoder.{n}": t for n, t in tensors.items() if not n.startswith("head.")}
    save_file(both | {n.replace("base", "momentum"): t * 0.5 for n, t in both.items()}, own)
    before = own.read_bytes()
    (tmp_path / "link.safetensors").symlink_to(own)
    for checkpoint in (own, tmp_path / "link.safetensors"):
        for more in ([], ["--overwrite"]):
            assert run(["models", "convert", str(checkpoint), str(tmp_path), *more]) == 2
            assert "would be written over this very file" in capsys.readouterr().err
    assert own.read_bytes() == before
    assert not (tmp_path / "card.json").exists()


def test_weights_that_are_there_are_not_overwritten_unasked(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = moco_file(fixture_tensors(shared_data, "mambaout_official_tiny"), tmp_path / "theirs.pth.tar")
    card = tmp_path / "card"
    card.mkdir()
    (card / "weights.safetensors").write_bytes(b"somebody's")
    arguments = ["models", "convert", str(file), str(card)]
    assert run(arguments) == 2
    assert (
        "card: holds weights.safetensors already. Name another folder, or give --overwrite" in capsys.readouterr().err
    )
    assert (card / "weights.safetensors").read_bytes() == b"somebody's"
    assert run([*arguments, "--overwrite"]) == 0
    assert run(arguments) == 2
    assert "holds card.json and weights.safetensors already" in capsys.readouterr().err
    assert run([*arguments[:3], str(file)]) == 2
    assert "is a file; expected a folder" in capsys.readouterr().err


def test_changes_reach_the_settings_and_leave_the_rest() -> None:
    card = ENCODERS["dinov2-s"]
    given = ["settings.depth=3", "pooling=patch_mean", "mean=[0.1, 0.2, 0.3]"]
    changed = with_changes(card, named_values(given, "--set"))
    assert changed == replace(card, settings={"img_size": 224, "depth": 3}, pooling="patch_mean", mean=(0.1, 0.2, 0.3))
    assert with_changes(card, {}) == card


def test_the_bundled_encoder_verifies_and_a_changed_tensor_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CLEAR_WEIGHTS", raising=False)
    assert run(["models", "verify", "mambaout-lecl"]) == 0
    assert "Both agree with the registry." in capsys.readouterr().out
    known = ENCODERS["mambaout-lecl"].source
    found = verify("mambaout-lecl")
    assert (found.agrees, found.tensors) == (True, known.sha256)
    assert found.output == pytest.approx(known.output, abs=1e-3)

    changed = tmp_path / "mambaout-lecl"
    changed.mkdir()
    bundled = BUNDLED / "mambaout-lecl"
    tensors = load_file(bundled / "weights.safetensors")
    tensors["stem.conv1.bias"][0] += 0.5
    save_file(tensors, changed / "weights.safetensors")
    (changed / "card.json").write_bytes((bundled / "card.json").read_bytes())
    monkeypatch.setattr("clear.sources.BUNDLED", tmp_path)
    assert run(["models", "verify", "mambaout-lecl"]) == 3
    assert "They DIFFER from the registry" in capsys.readouterr().out
    other = verify("mambaout-lecl")
    assert other.tensors != known.sha256
    assert max(abs(a - b) for a, b in zip(other.output, known.output, strict=True)) > 1e-3


def test_an_output_that_is_not_finite_does_not_verify(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = fixture_tensors(shared_data, "mambaout_official_tiny")
    stem = tensors["downsample_layers.0.conv1.weight"]
    tensors["downsample_layers.0.conv1.weight"] = stem / stem.abs().max() * 3e38
    save_file(tensors, tmp_path / "huge.safetensors")
    assert run(["models", "verify", "mambaout-lecl", "--weights", str(tmp_path / "huge.safetensors")]) == 3
    assert "The output holds values that are NOT FINITE" in capsys.readouterr().out


def test_what_the_registry_does_not_know_is_neither_right_nor_wrong(shared_data: Path, tmp_path: Path) -> None:
    save_file(fixture_tensors(shared_data, "mambaout_official_tiny"), tmp_path / "mine.safetensors")
    found = verify("mambaout-lecl", tmp_path / "mine.safetensors")
    assert found.agrees is None
    assert "knows no digest" in found.summary()


def test_weights_of_another_size_bring_their_own_width(shared_data: Path, tmp_path: Path) -> None:
    save_file(fixture_tensors(shared_data, "mambaout_official_tiny"), tmp_path / "mine.safetensors")
    encoder = cpu("mambaout-lecl", tmp_path / "mine.safetensors")
    assert (encoder.dim, encoder.card.input_size, encoder.name) == (40, 224, "mambaout-lecl")
    assert dict(encoder.card.settings) == {"depths": (1, 2, 2, 1), "dims": (8, 16, 24, 40)}
    save_file(fixture_tensors(shared_data, "vit_conv_tiny"), tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="not the tensors of a MambaOut or a ViT"):
        cpu("mambaout-lecl", tmp_path / "other.safetensors")


# mean and std as timm's configurations state them; resize filter; d
TIMM = {
    "resnet18.a1_in1k": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", 512),
    "convnext_atto.d2_in1k": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", 320),
    "vit_small_patch16_224.augreg_in21k_ft_in1k": ((0.5,) * 3, (0.5,) * 3, "bicubic", 384),
    "mambaout_femto.in1k": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", 288),
}


@pytest.mark.parametrize("model", TIMM)
def test_any_timm_model_has_the_preprocessing_that_timm_states(model: str) -> None:
    card = find_card(f"timm:{model}")
    assert (card.mean, card.std, card.resize, card.dim) == TIMM[model]
    assert (card.name, card.source.place, card.input_size) == (f"timm:{model}", f"timm/{model}", 224)


def test_a_timm_model_runs_in_bfloat16_only_where_its_family_was_compared() -> None:
    allowed = {model: find_card(f"timm:{model}").bfloat16 for model in TIMM}
    assert list(allowed.values()) == [False, False, True, True]  # in the order of TIMM: two CNNs, a ViT, a MambaOut


def test_a_timm_model_gives_what_timm_gives(tmp_path: Path) -> None:
    import timm

    network = timm.create_model("resnet18", pretrained=False).eval()
    save_file(network.state_dict(), tmp_path / "resnet18.safetensors")
    encoder = cpu("timm:resnet18.a1_in1k", tmp_path / "resnet18.safetensors")
    network.reset_classifier(0)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        np.testing.assert_allclose(encoder.forward(x).numpy(), network(x).numpy(), rtol=1e-5, atol=1e-5)


def test_a_timm_model_that_is_absent_or_unknown_says_so(offline: Path) -> None:
    with pytest.raises(WeightsError) as error:
        load_encoder("timm:resnet18.a1_in1k")
    for part in ("https://huggingface.co/timm/resnet18.a1_in1k", "timm_resnet18.a1_in1k.safetensors", "CLEAR_WEIGHTS"):
        assert part in str(error.value)
    with pytest.raises(InputError, match=r"timm:resnet1: timm \S+ has no such model"):
        load_encoder("timm:resnet1")


def cpu_seconds(command: list[str], environment: dict[str, str]) -> tuple[subprocess.CompletedProcess[str], float]:
    """What a process answered and how long it worked: on a shared machine the clock says something else."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.fixture
def silent_host() -> Iterator[str]:
    """The address of a host whose system takes the call, and where nobody ever answers it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


VIT_B = (
    "encoder dinov2-b",
    "Fetch model.safetensors (346 MB)",
    "https://huggingface.co/timm/vit_base_patch14_dinov2.lvd142m",
    "put it as dinov2-b.safetensors into the folder that $CLEAR_WEIGHTS names",
    "Licence: Apache-2.0",
)
RESNET = (
    "encoder timm:resnet18.a1_in1k",
    "Fetch model.safetensors from https://huggingface.co/timm/resnet18.a1_in1k",
    "put it as timm_resnet18.a1_in1k.safetensors into",
)


@pytest.mark.parametrize(
    ("name", "is_silent", "parts"),
    [
        ("dinov2-b", False, VIT_B),
        ("dinov2-b", True, VIT_B),
        ("timm:resnet18.a1_in1k", False, RESNET),
        ("timm:resnet18.a1_in1k", True, RESNET),
    ],
    ids=["offline", "silent proxy", "timm offline", "timm, silent proxy"],
)
def test_extraction_with_absent_weights_stops_at_once_says_all_and_leaves_nothing(
    name: str, is_silent: bool, parts: tuple[str, ...], silent_host: str, tmp_path: Path
) -> None:
    (tmp_path / "scans").mkdir()
    unset = ("CLEAR_WEIGHTS", "HF_HUB_OFFLINE", "HF_HUB_ETAG_TIMEOUT", "NO_PROXY", "no_proxy", "https_proxy")
    environment = {key: value for key, value in os.environ.items() if key not in unset}
    environment |= {"HF_HUB_CACHE": str(tmp_path / "cache")}
    environment |= {"HTTPS_PROXY": silent_host} if is_silent else {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "clear", "extract", "--model", name]
    done, seconds = cpu_seconds([*command, str(tmp_path / "scans"), str(tmp_path / "out.h5")], environment)
    assert done.returncode == 2, done.stderr
    for part in (*parts, "said nothing within 1 s" if is_silent else "HF_HUB_OFFLINE is set"):
        assert part in done.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"scans", "cache"}
    assert list((tmp_path / "scans").iterdir()) == []
    assert seconds < 2
