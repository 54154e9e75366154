"""What holds for every objective."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from clear.backbones import build
from clear.encoders import ENCODERS
from clear.errors import InputError
from pretrain.objectives import OBJECTIVES, build_objective
from pretrain.objectives.objective import Objective
from pretrain.views import Views

PAIRS = [
    *[("moco-v3", arch) for arch in ("mambaout", "vit", "vit_conv", "vmamba", "resnet")],
    *[("lecl", arch) for arch in ("mambaout", "vit", "vit_conv")],
    *[("dino", arch) for arch in ("mambaout", "vit", "resnet")],
    ("dinov2", "vit"),
]
EACH = [("moco-v3", "mambaout"), ("lecl", "vit_conv"), ("dino", "resnet"), ("dinov2", "vit")]


@pytest.fixture
def made(request: pytest.FixtureRequest, tiny: ModuleType) -> tuple[Objective, Views]:
    """An objective of this kind around a tiny network, and a batch of 8 slices for it."""
    name, architecture = request.param
    settings = {"freeze_last_epochs": 0} if name.startswith("dino") else {}
    wanted = tiny.objective(name, architecture, settings)
    return wanted, tiny.batch(wanted, channels=tiny.CARDS[architecture].channels)


def backward(tiny: ModuleType, wanted: Objective, views: Views, progress: float = 0.0) -> dict[str, torch.Tensor]:
    losses = tiny.losses(wanted, views, progress)
    losses["loss"].backward()
    return losses


def test_every_objective_is_tried() -> None:
    assert {name for name, _ in PAIRS} == set(OBJECTIVES) == {name for name, _ in EACH}


@pytest.mark.parametrize("made", PAIRS, indirect=True)
def test_all_that_wants_a_gradient_gets_one_and_all_of_it_is_finite(
    made: tuple[Objective, Views], tiny: ModuleType
) -> None:
    wanted, views = made
    losses = backward(tiny, wanted, views)
    assert torch.isfinite(losses["loss"])
    assert not any(part.requires_grad for name, part in losses.items() if name != "loss")
    without = [
        name for name, parameter in wanted.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    assert without == []
    gradients = [parameter.grad for parameter in wanted.parameters() if parameter.grad is not None]
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


@pytest.mark.parametrize("made", PAIRS, indirect=True)
def test_no_gradient_reaches_the_teacher(made: tuple[Objective, Views], tiny: ModuleType) -> None:
    wanted, views = made
    backward(tiny, wanted, views)
    for _, teacher in wanted.pairs():
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
        assert all(parameter.grad is None for parameter in teacher.parameters())
    features = wanted.encode_teacher(views.images[0], 0)
    assert not any(tensor.requires_grad for tensor in features)


@pytest.mark.parametrize("made", EACH, indirect=True)
def test_the_teacher_begins_as_the_student_and_follows_it(made: tuple[Objective, Views], tiny: ModuleType) -> None:
    wanted, views = made
    before = {name: tensor.clone() for name, tensor in wanted.state_dict().items()}
    for student, teacher in wanted.pairs():
        assert all(torch.equal(teacher.state_dict()[name], tensor) for name, tensor in student.state_dict().items())
    backward(tiny, wanted, views)
    torch.optim.SGD(wanted.parameters(), lr=0.1).step()
    momentum = wanted.update_teacher(0.25)
    assert math.isclose(momentum, wanted.momentum(0.25))
    for student, teacher in wanted.pairs():
        prefix = next(name for name, module in wanted.named_modules() if module is teacher)
        names = [name for name, _ in student.named_parameters()]
        expected = {
            name: before[f"{prefix}.{name}"] * momentum + tensor.detach() * (1 - momentum)
            for name, tensor in student.named_parameters()
        }
        assert names
        for name, tensor in teacher.named_parameters():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("made", EACH, indirect=True)
def test_the_momentum_rises_to_one(made: tuple[Objective, Views]) -> None:
    wanted, _ = made
    values = [wanted.momentum(progress) for progress in (0.0, 0.3, 0.7, 1.0)]
    assert values == sorted(values)
    assert values[-1] == 1.0


@pytest.mark.parametrize("made", EACH, indirect=True)
def test_a_teachers_batch_norms_use_the_batch_and_keep_statistics_of_their_own(
    made: tuple[Objective, Views], tiny: ModuleType
) -> None:
    wanted, views = made
    backward(tiny, wanted, views)
    norms = [module for _, teacher in wanted.pairs() for module in teacher.modules() if isinstance(module, _BatchNorm)]
    assert all(norm.training for norm in norms)
    assert all(int(norm.num_batches_tracked) > 0 for norm in norms)
    wanted.update_teacher(0.0)
    counts = [int(norm.num_batches_tracked) for norm in norms]
    wanted.update_teacher(0.0)
    assert [int(norm.num_batches_tracked) for norm in norms] == counts


def test_dropout_and_stochastic_depth_rest_in_the_teacher(tiny: ModuleType) -> None:
    card = tiny.CARDS["vit"]
    dropping = replace(card, settings={**card.settings, "drop_path_rate": 0.5, "proj_drop_rate": 0.5})
    wanted = build_objective("moco-v3", dropping, tiny.MOCO).train()
    images = tiny.batch(wanted, channels=1).images[0]
    assert torch.equal(wanted.encode_teacher(images, 0)[0], wanted.encode_teacher(images, 0)[0])
    assert not torch.equal(wanted.encode_student(images, 0)[0], wanted.encode_student(images, 0)[0])
    assert wanted.student.training
    wanted.eval()
    assert torch.equal(wanted.encode_student(images, 0)[0], wanted.encode_teacher(images, 0)[0])


@pytest.mark.parametrize("made", EACH, indirect=True)
def test_a_batch_of_one_is_refused_in_one_sentence(made: tuple[Objective, Views], tiny: ModuleType) -> None:
    wanted, views = made
    single = Views([image[:1] for image in views.images], views.lesion[:1], views.rows[:1])
    student = [_first(wanted.encode_student(views.images[view], view)) for view in wanted.student_views]
    teacher = [_first(wanted.encode_teacher(views.images[view], view)) for view in wanted.teacher_views]
    with pytest.raises(InputError, match=rf"objective {wanted.name}: a batch of 1 .* 2 slices or more") as caught:
        wanted.loss(student, teacher, single, 0.0)
    assert "\n" not in str(caught.value)


def _first(features: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The first slice's, which were encoded with the others for BatchNorms in encoders."""
    return tuple(tensor[:1] for tensor in features)


@pytest.mark.parametrize("made", PAIRS, indirect=True)
def test_the_order_of_the_slices_does_not_matter(made: tuple[Objective, Views], tiny: ModuleType) -> None:
    wanted, views = made
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    shuffled = Views([image[order] for image in views.images], views.lesion[order], views.rows[order])
    with torch.no_grad():
        wanted.student.eval()  # stochastic depth draws by position
        one, other = tiny.losses(wanted, views)["loss"], tiny.losses(wanted, shuffled)["loss"]
    torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("made", EACH, indirect=True)
def test_computing_a_loss_twice_gives_it_twice(made: tuple[Objective, Views], tiny: ModuleType) -> None:
    wanted, views = made
    assert torch.equal(tiny.losses(wanted, views)["loss"], tiny.losses(wanted, views)["loss"])


@pytest.mark.parametrize("made", PAIRS, indirect=True)
def test_encoding_in_micro_batches_gives_the_same_features(made: tuple[Objective, Views]) -> None:
    wanted, views = made
    wanted.eval()
    for view in wanted.student_views:
        images = views.images[view]
        whole = wanted.encode_student(images, view)
        parts = [wanted.encode_student(part, view) for part in images.split(3)]
        for index, tensor in enumerate(whole):
            joined = torch.cat([part[index] for part in parts])
            if tensor.dtype == torch.bool:
                assert torch.equal(joined, tensor)
            else:
                torch.testing.assert_close(joined, tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("made", EACH, indirect=True)
def test_a_run_goes_on_from_its_state(made: tuple[Objective, Views], tiny: ModuleType) -> None:
    wanted, views = made
    backward(tiny, wanted, views)
    torch.optim.SGD(wanted.parameters(), lr=0.1).step()
    wanted.update_teacher(0.0)
    architecture = dict(EACH)[wanted.name]
    settings = {"freeze_last_epochs": 0} if wanted.name.startswith("dino") else {}
    resumed = tiny.objective(wanted.name, architecture, settings, seed=5)
    resumed.load_state_dict(wanted.state_dict())
    assert torch.equal(tiny.losses(resumed, views, 0.1)["loss"], tiny.losses(wanted, views, 0.1)["loss"])


@pytest.mark.parametrize("made", EACH, indirect=True)
def test_other_weights_reach_the_teacher_by_a_restart(made: tuple[Objective, Views], tiny: ModuleType) -> None:
    wanted, _ = made
    other = tiny.objective(wanted.name, dict(EACH)[wanted.name], seed=9)
    wanted.student.load_state_dict(other.student.state_dict())
    before = wanted.teacher.state_dict()
    assert any(not torch.equal(before[name], tensor) for name, tensor in wanted.student.state_dict().items())
    wanted.restart_teacher()
    after = wanted.teacher.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in wanted.student.state_dict().items())


@pytest.mark.parametrize(("name", "which"), [("moco-v3", "student"), ("lecl", "student"), ("dino", "teacher")])
def test_what_is_exported_is_what_its_authors_evaluate(tiny: ModuleType, name: str, which: str) -> None:
    wanted = tiny.objective(name, "mambaout")
    assert wanted.exported() is getattr(wanted, which)


@pytest.mark.parametrize("made", PAIRS, indirect=True)
def test_what_is_exported_has_the_tensors_of_the_cards_own_network(
    made: tuple[Objective, Views], request: pytest.FixtureRequest, tiny: ModuleType
) -> None:
    wanted, _ = made
    architecture = request.node.callspec.params["made"][1]
    plain = build(tiny.CARDS[architecture])
    plain.load_state_dict(wanted.exported().state_dict(), strict=True)
    images = torch.randn(2, *tiny.batch(wanted, channels=tiny.CARDS[architecture].channels).images[0].shape[1:])
    with torch.no_grad():
        torch.testing.assert_close(plain(images), wanted.exported().eval()(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("made", EACH, indirect=True)
def test_under_bfloat16_autocast_the_loss_is_float32_and_near(made: tuple[Objective, Views], tiny: ModuleType) -> None:
    wanted, views = made
    expected = tiny.losses(wanted, views)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        found = tiny.losses(wanted, views)["loss"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.2, atol=0.2)
    found.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in wanted.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_student_comes_nearer_to_a_teacher_that_stays(tiny: ModuleType, name: str) -> None:
    wanted, other = tiny.objective(name, "vit"), tiny.objective(name, "vit", seed=1)
    for (student, _), (stranger, _) in zip(wanted.pairs(), other.pairs(), strict=True):
        student.load_state_dict(stranger.state_dict())
    views = tiny.batch(wanted, channels=1)
    optimiser = torch.optim.AdamW(wanted.parameters(), lr=1e-3)
    curve = []
    for _ in range(15):
        optimiser.zero_grad()
        curve.append(float(backward(tiny, wanted, views, 0.5)["loss"].detach()))
        optimiser.step()
    assert curve[-1] < 0.9 * curve[0]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("simclr", {}, "objective 'simclr' is unknown; expected one of moco-v3, lecl, dino, dinov2"),
        ("moco-v3", {"lambda": 1}, "objective moco-v3: unknown setting 'lambda'; expected one of crop, dim, epochs"),
        ("lecl", {"lambda": -1}, "objective lecl: lambda is -1; expected 0 or more"),
        ("lecl", {"tau": 0}, "objective lecl: tau is 0; expected a temperature above 0"),
        ("lecl", {"variant": "paper"}, "lecl: variant is 'paper'; expected equation or released"),
        ("lecl", {"own_key": 1}, "lecl: own_key is 1; expected true or false"),
        ("moco-v3", {"momentum": 1.5}, "moco-v3: momentum is 1.5; expected 0 to 1"),
        ("moco-v3", {"hidden": 2.5}, "moco-v3: hidden is 2.5; expected a whole number"),
        ("moco-v3", {"crop": 0.2}, "moco-v3: crop is 0.2; expected two numbers"),
        ("dino", {"teacher_temperature": 0}, "dino: teacher_temperature is 0; expected a temperature above 0"),
        ("dino", {"local_views": -1}, "dino: local_views must be 0 or more"),
        ("dinov2", {"mask_share": [0.6, 0.2]}, "dinov2: mask_share must be two shares"),
        ("dinov2", {"centring": "centering"}, "dinov2: centring is 'centering'; expected centre or sinkhorn"),
        ("dinov2", {}, "dinov2: timm:mambaout_femto has no class token beside patch tokens"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_sentence(
    tiny: ModuleType, name: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        build_objective(name, tiny.CARDS["mambaout"], settings)
    assert "\n" not in str(caught.value)


def test_an_encoder_of_whole_scans_is_refused() -> None:
    whole = next(card for card in ENCODERS.values() if card.volume is not None)
    with pytest.raises(InputError, match="takes whole scans; objectives train encoders of slices"):
        build_objective("moco-v3", whole, {})


def test_lambda_may_be_written_as_in_python_or_as_in_a_file(tiny: ModuleType) -> None:
    for name in ("lambda", "lambda_"):
        assert build_objective("lecl", tiny.CARDS["vit"], {**tiny.MOCO, name: 3}).options.lambda_ == 3.0


def test_lecl_asks_for_a_lesion_and_the_whole_slice_and_moco_for_two_crops(tiny: ModuleType) -> None:
    first, second = tiny.objective("lecl", "vit").kinds
    assert (first.lesion, first.full, second.lesion, second.full) == (True, False, False, True)
    assert first.scale == second.scale == (0.08, 1.0)
    assert not any(kind.lesion or kind.full for kind in tiny.objective("moco-v3", "vit").kinds)


@pytest.mark.parametrize("settings", [{"lambda": 0}, {"lambda": 0, "variant": "released"}])
def test_lecl_with_lambda_zero_trains_as_moco_does(tiny: ModuleType, settings: dict[str, Any]) -> None:
    tau = 0.2
    moco, lecl = tiny.objective("moco-v3", "vit"), tiny.objective("lecl", "vit", settings)
    views = tiny.batch(moco, channels=1)
    scale = 1.0 if "variant" in settings else 2 * tau
    theirs, ours = backward(tiny, moco, views)["loss"], backward(tiny, lecl, views)["loss"]
    torch.testing.assert_close(ours * scale, theirs, rtol=1e-6, atol=0)
    for (name, expected), found in zip(moco.named_parameters(), lecl.parameters(), strict=True):
        if expected.grad is not None:
            assert found.grad is not None, name
            largest = float(expected.grad.abs().max())
            torch.testing.assert_close(found.grad * scale, expected.grad, rtol=0, atol=1e-4 * largest)


def test_lecl_without_a_lesion_in_the_batch_is_moco_whatever_lambda(tiny: ModuleType) -> None:
    moco, lecl = tiny.objective("moco-v3", "vit"), tiny.objective("lecl", "vit", {"lambda": 5})
    views = tiny.batch(moco, channels=1)
    views = Views(views.images, torch.zeros(8, dtype=torch.bool), views.rows)
    torch.testing.assert_close(
        tiny.losses(lecl, views)["loss"] * 0.4, tiny.losses(moco, views)["loss"], rtol=1e-6, atol=0
    )


def test_both_views_go_through_both_networks(tiny: ModuleType) -> None:
    lecl = tiny.objective("lecl", "vit", {"lambda": 3})
    views = tiny.batch(lecl, channels=1)
    swapped = Views(views.images[::-1], views.lesion, views.rows)
    torch.testing.assert_close(tiny.losses(lecl, swapped)["loss"], tiny.losses(lecl, views)["loss"])
    assert lecl.student_views == lecl.teacher_views == (0, 1)


def test_an_embedding_that_is_one_for_all_slices_shows_in_the_cosines(tiny: ModuleType) -> None:
    wanted = tiny.objective("moco-v3", "vit").eval()  # with running statistics, constants stay constant
    views = tiny.batch(wanted, channels=1)
    same = Views([image[:1].expand_as(image) for image in views.images], views.lesion, views.rows)
    found = tiny.losses(wanted, same)
    torch.testing.assert_close(found["cosine_own"] * 2, found["cosine_others"] * 2, rtol=1e-4, atol=1e-5)


def test_heads_are_no_part_of_the_encoder(tiny: ModuleType) -> None:
    wanted = tiny.objective("moco-v3", "vit")
    assert isinstance(wanted.projector, nn.Sequential)
    assert not any("projector" in name or "predictor" in name for name in wanted.exported().state_dict())
