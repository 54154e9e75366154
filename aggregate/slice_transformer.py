"""The slice transformer of MST (Müller-Franzes et al., 2024): one pre-norm transformer layer over a scan's slices.

    t   = (class token, x_1 + p_1, ..., x_K + p_K)
    t'  = t + MultiHead(LN(t)),   t'' = t' + W2 relu(W1 LN(t'))
    logits = W LN(t''_0) + b

Only the class token is read, so only its attention is computed (`aggregate.query_attention`): linear in the slices,
no slice-by-slice matrix, and the same numbers. Attention of a slice is the class token's, without its own share, each
head summing to one, averaged over the heads: MST's slice attention.

Positions: `none`, as published; `additive`, MST's learned table (256 entries there), added to the slices and not to
the class token, over which a bag of more rows is spread evenly by linear interpolation, so that nothing is cut off;
`rotary` (Su et al., RoFormer, 2021, eq. 34): queries and keys turned by their place, the class token at 0 and row k
at k, the pairs being neighbouring values and the base 10,000. MST names rotary positions without an equation, so this
is RoFormer's form and not held to a reference. A place is a row of the bag: a slice in two windows takes two.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear

from aggregate.aggregator import Aggregator
from aggregate.heads import LinearHead
from aggregate.query_attention import MultiHead, choose_heads, mix_rows, scores_of_rows
from clear.errors import InputError

POSITIONS = ("none", "additive", "rotary")
HEADS = 12
TABLE_ROWS = 256
ROTARY_BASE = 10_000.0
PARTS = ("query", "key", "value")  # the order of their rows in one (3 d, d) matrix
# names in MST's DinoV2ClassifierSlice -> ours
MST_NAMES = MappingProxyType(
    {
        "cls_token": "class_token",
        "slice_pos_emb.weight": "position_table",
        "slice_fusion.layers.0.self_attn.in_proj_weight": "attention.{}.weight",  # of query, key, value
        "slice_fusion.layers.0.self_attn.in_proj_bias": "attention.{}.bias",
        "slice_fusion.layers.0.self_attn.out_proj.weight": "attention.out.weight",
        "slice_fusion.layers.0.self_attn.out_proj.bias": "attention.out.bias",
        "slice_fusion.layers.0.linear1.weight": "widen.weight",
        "slice_fusion.layers.0.linear1.bias": "widen.bias",
        "slice_fusion.layers.0.linear2.weight": "narrow.weight",
        "slice_fusion.layers.0.linear2.bias": "narrow.bias",
        "slice_fusion.layers.0.norm1.weight": "norm_attention.weight",
        "slice_fusion.layers.0.norm1.bias": "norm_attention.bias",
        "slice_fusion.layers.0.norm2.weight": "norm_feed.weight",
        "slice_fusion.layers.0.norm2.bias": "norm_feed.bias",
        "slice_fusion.norm.weight": "norm_out.weight",
        "slice_fusion.norm.bias": "norm_out.bias",
        "linear.weight": "head.out.weight",
        "linear.bias": "head.out.bias",
    }
)


class SliceTransformer(Aggregator):
    """heads: 12 as in MST, or the largest number below that divides d. positions: none, additive or rotary.

    Dropout acts on the class token's feature before the last layer (MST has none: dropout 0).
    """

    def __init__(
        self,
        dim: int,
        n_out: int,
        dropout: float = 0.0,
        *,
        heads: int | None = None,
        positions: Literal["none", "additive", "rotary"] = "none",
    ) -> None:
        super().__init__(dim, dropout, kept=dim)
        if positions not in POSITIONS:
            raise InputError(f"aggregator option positions={positions!r}: expected one of {', '.join(POSITIONS)}")
        self.positions = positions
        self.ordered = positions != "none"
        self.class_token = nn.Parameter(torch.randn(dim))
        if positions == "additive":
            self.position_table = nn.Parameter(torch.randn(TABLE_ROWS, dim))
        self.norm_attention = nn.LayerNorm(dim)
        rotary = positions == "rotary"
        self.attention = MultiHead(dim, choose_heads(heads, HEADS, dim, even=rotary), key_bias=rotary)
        self.norm_feed = nn.LayerNorm(dim)
        self.widen = nn.Linear(dim, dim)
        self.narrow = nn.Linear(dim, dim)
        self.norm_out = nn.LayerNorm(dim)
        self.head = LinearHead(dim, n_out)

    def pool(self, rows: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """(class token's feature (B, d), slice attention (ΣK,)).

        The layer norm's weights act on the query's side and on the mixed row, never on all rows.
        """
        gain, shift = self.norm_attention.weight, self.norm_attention.bias
        rows = self._normalised(self._placed(rows, offsets))
        token = self._normalised(self.class_token[None])
        query = self.attention.queries(token * gain + shift)
        if self.positions == "rotary":
            scores, own_scores = self._rotary_scores(rows, offsets, token, query)
        else:
            reach = self.attention.reach(query) * gain
            scores, own_scores = scores_of_rows(rows, offsets, reach), token @ reach[0].t()
        bags = len(offsets) - 1
        mixed, attention = mix_rows(rows, offsets, scores, token.expand(bags, -1), own_scores.expand(bags, -1))
        tokens = self.class_token + self.attention.values(mixed * gain + shift)
        tokens = tokens + self.narrow(self.widen(self.norm_feed(tokens)).relu())
        return self.norm_out(tokens), attention

    def attention_maps(self, rows: Tensor) -> Tensor:
        """(heads, 1 + K, 1 + K) attention of every token of one bag, (K, d) as the bag file holds them; token first.

        Computed the plain way, for looking at: the logits need its first row only.
        """
        rows = self._placed(self.standardised(rows), torch.tensor([0, len(rows)], device=rows.device))
        tokens = self.norm_attention(torch.cat([self.class_token[None], rows]))
        queries, keys = self.attention.queries(tokens), self.attention.keys(tokens)
        if self.positions == "rotary":
            places = torch.arange(len(tokens), device=rows.device)
            queries, keys = rotated(queries, places), rotated(keys, places)
        return torch.einsum("qhi,khi->hqk", queries, keys).softmax(-1)

    def _placed(self, rows: Tensor, offsets: Tensor) -> Tensor:
        if self.positions != "additive":
            return rows
        table, last = self.position_table, TABLE_ROWS - 1
        places = []
        for length in offsets.diff().tolist():
            step = last / (length - 1) if length > TABLE_ROWS else 1.0
            places.append(torch.arange(length, device=rows.device, dtype=torch.float64) * step)
        place = torch.cat(places).clamp_max(last)
        below = place.long()
        share = (place - below)[:, None].to(table.dtype)
        return rows + torch.lerp(table[below], table[(below + 1).clamp_max(last)], share)

    def _normalised(self, rows: Tensor) -> Tensor:
        return layer_norm(rows, (rows.shape[1],), eps=self.norm_attention.eps)

    def _rotary_scores(self, rows: Tensor, offsets: Tensor, token: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """((ΣK, heads), (1, heads)): the query at place 0 meets the key at place k; the query is turned back by k."""
        gain, shift = self.norm_attention.weight, self.norm_attention.bias
        weight, bias = self.attention.key.weight, self.attention.key.bias
        keys = linear(rows, weight * gain, weight @ shift + bias).reshape(len(rows), self.attention.heads, -1)
        lengths = offsets.diff()
        place = torch.cat([torch.arange(1, n + 1, device=rows.device) for n in lengths.tolist()])
        turned = rotated(query.expand(int(lengths.max()) + 1, -1, -1), -torch.arange(int(lengths.max()) + 1).to(place))
        own = (query * self.attention.keys(token * gain + shift)).sum(-1)
        return (keys * turned[place]).sum(-1), own


def rotated(vectors: Tensor, places: Tensor) -> Tensor:
    """(n, heads, w) with each neighbouring pair turned by place x 10000^(-2i / w) (RoFormer, eq. 34)."""
    width = vectors.shape[-1]
    pairs = torch.arange(0, width, 2, device=vectors.device, dtype=torch.float64)
    angle = places.double()[:, None] * ROTARY_BASE ** (-pairs / width)
    cos, sin = angle.cos().to(vectors.dtype)[:, None], angle.sin().to(vectors.dtype)[:, None]
    first, second = vectors[..., 0::2], vectors[..., 1::2]
    return torch.stack([first * cos - second * sin, first * sin + second * cos], -1).flatten(-2)


def from_mst(state: Mapping[str, Tensor], *, rotary: bool = False) -> dict[str, Tensor]:
    """A state dict of MST's DinoV2ClassifierSlice under our names, for features that are not standardised.

    `encoder.*`, the image encoder, is left out: it makes the features; so is the keys' bias, which has no effect unless
    positions are rotary (which the tensors do not tell). `slice_pos_emb.weight` is there for `positions="additive"`.
    Raises InputError naming any other surplus or missing tensor.
    """
    given = {name: value for name, value in state.items() if not name.startswith("encoder.")}
    surplus = [name for name in given if name not in MST_NAMES]
    missing = [name for name in MST_NAMES if name not in given and name != "slice_pos_emb.weight"]
    if surplus or missing:
        raise InputError(
            f"not the state dict of MST's slice transformer: surplus {surplus or 'none'}, missing {missing or 'none'}"
        )
    renamed: dict[str, Tensor] = {}
    for name, value in given.items():
        ours = MST_NAMES[name]
        if "{}" in ours:
            renamed |= {ours.format(part): each for part, each in zip(PARTS, value.chunk(3), strict=True)}
        else:
            renamed[ours] = value
    if not rotary:
        del renamed["attention.key.bias"]
    renamed["class_token"] = renamed["class_token"].flatten()
    dim = len(renamed["class_token"])
    return {**renamed, "mean": torch.zeros(dim), "scale": torch.ones(dim)}
