"""The slice transformer: MST's own numbers, and the full layer written with torch's modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from aggregate.aggregators import predict
from aggregate.packed import PackedRows
from aggregate.slice_transformer import TABLE_ROWS, SliceTransformer, from_mst, rotated
from clear.errors import InputError

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}  # the fixture's


@pytest.fixture
def reference(shared_data: Path) -> Any:
    return np.load(shared_data / "fixtures" / "mst_slice_transformer_tiny.npz", allow_pickle=False)


def loaded(reference: Any, prefix: str = "sd/", **options: Any) -> SliceTransformer:
    state = {
        name[len(prefix) :]: torch.from_numpy(reference[name]) for name in reference.files if name.startswith(prefix)
    }
    model = SliceTransformer(48, 2, **options)
    model.load_state_dict(from_mst(state))
    return model.eval()


def test_msts_logits_features_and_slice_attention_are_reproduced(reference: Any) -> None:
    model, slices = loaded(reference), torch.from_numpy(reference["in/slice_embeddings"])
    offsets = torch.tensor([0, 9, 18, 27])
    with torch.no_grad():
        logits, attention = model(slices.flatten(0, 1), offsets)
        features, _ = model.pool(slices.flatten(0, 1), offsets)
    np.testing.assert_allclose(logits.numpy(), reference["out/logits"], **TOLERANCE)
    np.testing.assert_allclose(features.numpy(), reference["out/cls_feature"], **TOLERANCE)
    np.testing.assert_allclose(attention.view(3, 9).numpy(), reference["out/slice_attention"], **TOLERANCE)


def test_msts_masked_slices_are_slices_that_are_not_there(reference: Any) -> None:
    model, mask = loaded(reference), reference["in/key_padding_mask"]
    bags = [slices[~padded] for slices, padded in zip(reference["in/slice_embeddings"], mask, strict=True)]
    logits, attention = predict(model, PackedRows.of(bags), range(3))
    np.testing.assert_allclose(logits.numpy(), reference["out/logits_masked"], **TOLERANCE)
    for bag in range(3):
        row = reference["out/attention_weights_masked"][bag, :, 0, 1:][:, ~mask[bag]]
        np.testing.assert_allclose(attention[bag], (row / row.sum(1, keepdims=True)).mean(0), **TOLERANCE)


def test_msts_attention_weights_are_reproduced_for_every_token(reference: Any) -> None:
    model, mask = loaded(reference), reference["in/key_padding_mask"]
    for bag, slices in enumerate(torch.from_numpy(reference["in/slice_embeddings"])):
        with torch.no_grad():
            whole = model.attention_maps(slices)
            kept = model.attention_maps(slices[~torch.from_numpy(mask[bag])])
        np.testing.assert_allclose(whole.numpy(), reference["out/attention_weights"][bag], **TOLERANCE)
        there = np.flatnonzero(np.concatenate([[True], ~mask[bag]]))
        masked = reference["out/attention_weights_masked"][bag][:, there][:, :, there]
        np.testing.assert_allclose(kept.numpy(), masked, **TOLERANCE)


def test_msts_additive_positions_are_reproduced(reference: Any) -> None:
    model = loaded(reference, "sd_adpe/", positions="additive")
    logits, _ = predict(model, PackedRows.of(list(reference["in/slice_embeddings"])), range(3))
    np.testing.assert_allclose(logits.numpy(), reference["out/logits_adpe"], **TOLERANCE)


def test_a_whole_checkpoint_of_mst_loads_without_its_image_encoder(reference: Any) -> None:
    state = {name[3:]: torch.from_numpy(reference[name]) for name in reference.files if name.startswith("sd/")}
    assert from_mst({**state, "encoder.pos_embed": torch.zeros(1)}).keys() == from_mst(state).keys()
    rotary = SliceTransformer(48, 2, positions="rotary")
    rotary.load_state_dict(from_mst(state, rotary=True))  # strict: every tensor has its place
    assert torch.equal(rotary.attention.key.bias, state["slice_fusion.layers.0.self_attn.in_proj_bias"][48:96])


def test_a_state_dict_of_something_else_is_named(reference: Any) -> None:
    state = {name[3:]: torch.from_numpy(reference[name]) for name in reference.files if name.startswith("sd/")}
    del state["cls_token"]
    with pytest.raises(InputError, match=r"surplus \['bottleneck.weight'\], missing \['cls_token'\]"):
        from_mst({**state, "bottleneck.weight": torch.zeros(1)})


def random_model(**options: Any) -> SliceTransformer:
    torch.manual_seed(0)
    model = SliceTransformer(24, 2, heads=6, **options).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.eval()


@pytest.mark.parametrize("positions", ["none", "additive"])
def test_one_token_s_attention_gives_what_torchs_whole_layer_gives(positions: Any) -> None:
    model = random_model(positions=positions)
    layer = nn.TransformerEncoderLayer(24, 6, 24, dropout=0.0, batch_first=True, norm_first=True, dtype=torch.float64)
    attention = model.attention
    with torch.no_grad():
        parts = (attention.query, attention.key, attention.value)
        layer.self_attn.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        layer.self_attn.in_proj_bias.copy_(
            torch.cat([attention.query.bias, torch.zeros(24).double(), attention.value.bias])
        )
        layer.self_attn.out_proj.load_state_dict(attention.out.state_dict())
        pairs = [("linear1", "widen"), ("linear2", "narrow"), ("norm1", "norm_attention"), ("norm2", "norm_feed")]
        for theirs, ours in pairs:
            getattr(layer, theirs).load_state_dict(getattr(model, ours).state_dict())
    bag = torch.randn(7, 24, dtype=torch.float64)
    placed = bag + model.position_table[:7] if positions == "additive" else bag
    tokens = layer(torch.cat([model.class_token[None], placed])[None])
    expected = model.head(model.norm_out(tokens[0, :1]))
    torch.testing.assert_close(model(bag, torch.tensor([0, 7]))[0], expected)


@pytest.mark.parametrize("positions", ["none", "additive", "rotary"])
def test_attention_is_the_class_tokens_row_of_the_map_without_itself(positions: Any) -> None:
    model = random_model(positions=positions)
    bag = torch.randn(7, 24, dtype=torch.float64)
    row = model.attention_maps(bag)[:, 0, 1:]
    torch.testing.assert_close(model(bag, torch.tensor([0, 7]))[1], (row / row.sum(1, keepdim=True)).mean(0))


def test_rotary_logits_equal_the_layer_written_out() -> None:
    model = random_model(positions="rotary")
    bag = torch.randn(7, 24, dtype=torch.float64)
    tokens = torch.cat([model.class_token[None], bag])
    values = model.attention.value(model.norm_attention(tokens)).unflatten(1, (6, 4))
    mixed = torch.einsum("hk,khi->hi", model.attention_maps(bag)[:, 0], values).flatten()
    first = model.class_token + model.attention.out(mixed)
    second = first + model.narrow(model.widen(model.norm_feed(first)).relu())
    torch.testing.assert_close(model(bag, torch.tensor([0, 7]))[0][0], model.head(model.norm_out(second)))


def test_rotated_products_depend_on_the_distance_alone() -> None:
    query, key = torch.randn(2, 1, 3, 8, dtype=torch.float64)
    products = [
        (rotated(query, torch.tensor([place])) * rotated(key, torch.tensor([place + 5]))).sum(-1)
        for place in (0, 1, 17, 400)
    ]
    for each in products[1:]:
        torch.testing.assert_close(each, products[0])
    assert not torch.allclose(products[0], (query * key).sum(-1))


def test_rotating_turns_neighbouring_pairs_by_place_over_powers_of_the_base() -> None:
    turned = rotated(torch.tensor([[[1.0, 0.0, 0.0, 1.0]]], dtype=torch.float64), torch.tensor([3]))
    slow = 3 * 10_000.0**-0.5
    expected = [np.cos(3), np.sin(3), -np.sin(slow), np.cos(slow)]
    assert turned.flatten().tolist() == pytest.approx(expected)


def test_a_bag_longer_than_the_table_is_spread_over_it() -> None:
    model = random_model(positions="additive")
    length = 2 * TABLE_ROWS - 1  # so that every second row lies on an entry
    placed = model._placed(torch.zeros(length + 3, 24, dtype=torch.float64), torch.tensor([0, length, length + 3]))
    table = model.position_table
    torch.testing.assert_close(placed[:length:2], table)
    torch.testing.assert_close(placed[1:length:2], (table[:-1] + table[1:]) / 2)
    torch.testing.assert_close(placed[length:], table[:3])  # a short bag takes the first entries, as MST does
