"""One battery over every registered encoder, with small-cost random weights."""

from __future__ import annotations

import pytest
import torch

from clear.backbones import build
from clear.encoders import ENCODERS


@pytest.mark.parametrize("card", ENCODERS.values(), ids=list(ENCODERS))
def test_every_encoder_builds_and_gives_the_embedding_its_card_promises(card) -> None:
    network = build(card)
    x = torch.randn(1, card.channels, card.input_size, card.input_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        embedding = network(x)
        again = network(x)
    assert embedding.shape == (1, card.dim)
    assert torch.equal(embedding, again)  # no dropout: eval mode
    assert embedding.std() > 0
    if card.pooling in ("mean_norm", "class_token"):  # a LayerNorm as constructed is the last step
        assert embedding.mean().abs() < 1e-5
        assert embedding.std(correction=0) == pytest.approx(1, abs=1e-2)


def test_every_card_says_where_its_weights_are_and_on_what_terms() -> None:
    for card in ENCODERS.values():
        assert card.licence
        assert card.citation
        assert card.trained_on.startswith(("trained on", "untrained"))
        assert card.source.place


def test_names_are_spelled_one_way() -> None:
    assert all(name == card.name == name.lower() and "_" not in name for name, card in ENCODERS.items())
