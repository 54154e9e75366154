"""CTViT: volumes as slabs of patches, seen by a spatial and then a temporal transformer, and named by a codebook.

Written from the structure of ibrahimethemhamamci/CT-CLIP, class `transformer_maskgit.ctvit.CTViT` (Hamamci et al.,
GenerateCT, ECCV 2024), as far as image latents need it, with its tensor names untouched. "Temporal" is along the body:
one step is one slab. Where the published code does something that looks like a slip, the trained weights live with it,
so it is done here too and said at its place.

The work runs over pieces of the volume, each a few slabs or sequences long, so that a volume of 240 x 480 x 480 needs
hundreds of megabytes, not gigabytes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

EPS = 1e-5
LOGIT_SCALE = 8.0  # of the cosine attention; fixed in the published class
PIECE_TOKENS = 2304  # four slabs of 24 x 24 patches: attention and feed-forward of one piece stay near 50 MB
CODE_TOKENS = 1024  # tokens compared with the whole codebook at a time: 1024 x 8192 similarities are 32 MB


class CTViT(nn.Module):
    """The encoder half of CTViT.

    image_size: H and W in pixels; patch_size: of a patch in the slice; temporal_patch_size: frames of a slab.
    """

    def __init__(
        self,
        *,
        dim: int,
        codebook_size: int,
        image_size: int,
        patch_size: int,
        temporal_patch_size: int,
        spatial_depth: int,
        temporal_depth: int,
        dim_head: int,
        heads: int,
        channels: int = 1,
    ) -> None:
        super().__init__()
        self.side, self.patch_size, self.temporal_patch_size = image_size // patch_size, patch_size, temporal_patch_size
        self.spatial_rel_pos_bias = PositionBias(dim, heads)
        values = channels * temporal_patch_size * patch_size**2
        # at 0 the published module cuts the patches, which has no tensors
        self.to_patch_emb = nn.Sequential(
            nn.Identity(), nn.LayerNorm(values, EPS), nn.Linear(values, dim), nn.LayerNorm(dim, EPS)
        )
        self.enc_spatial_transformer = Transformer(dim, spatial_depth, dim_head, heads)
        self.enc_temporal_transformer = Transformer(dim, temporal_depth, dim_head, heads)
        self.vq = Codebook(codebook_size, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, frames, H, W) in -1..1 to the quantised tokens (N, t, h, w, d), float32."""
        codes: Tensor = self.vq(self.encode(self.embed(x)))
        return codes

    def embed(self, x: Tensor) -> Tensor:
        """(N, C, frames, H, W) to patch embeddings (N, t, h, w, d), slab by slab.

        A patch is flattened as (channel, frame, row, column).
        """
        p, tp, side = self.patch_size, self.temporal_patch_size, self.side
        if x.shape[2] % tp or x.shape[3:] != (side * p, side * p):
            raise ValueError(f"expected frames in {tp}s and {side * p} x {side * p} pixels; found {tuple(x.shape[2:])}")
        slabs = []
        for slab in torch.split(x, tp, dim=2):
            patches = slab.reshape(*slab.shape[:3], side, p, side, p).permute(0, 3, 5, 1, 2, 4, 6).flatten(3)
            slabs.append(self.to_patch_emb(patches).float())
        return torch.stack(slabs, dim=1)

    def encode(self, tokens: Tensor) -> Tensor:
        """Patch embeddings (N, t, h, w, d) to tokens before the codebook, of the same shape."""
        return self.encode_temporal(self.encode_spatial(tokens))

    def encode_spatial(self, tokens: Tensor) -> Tensor:
        """Attention inside each slab, with the position bias: (N, t, h, w, d) to the same."""
        bias = self.spatial_rel_pos_bias(*tokens.shape[2:4])
        slabs = tokens.flatten(0, 1).flatten(1, 2)
        out: Tensor = self.enc_spatial_transformer(slabs, tokens.shape[:4], bias)
        return out.view(tokens.shape)

    def encode_temporal(self, tokens: Tensor) -> Tensor:
        """Attention along the body, for each place in the slice: (N, t, h, w, d) to the same."""
        n, t, h, w, d = tokens.shape
        columns = tokens.permute(0, 2, 3, 1, 4).reshape(n * h * w, t, d)
        out: Tensor = self.enc_temporal_transformer(columns, tokens.shape[:4])
        return out.view(n, h, w, t, d).permute(0, 3, 1, 2, 4)


class PositionBias(nn.Module):
    """What attention adds for the way from one patch to another: a small network on sign(x) log(1 + |x|) of both
    offsets (Liu et al., Swin Transformer V2, CVPR 2022, section 3.3)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Sequential(nn.Linear(2, dim), nn.LeakyReLU(0.1)),
            nn.Sequential(nn.Linear(dim, dim), nn.LeakyReLU(0.1)),
            nn.Linear(dim, heads),
        )

    def forward(self, h: int, w: int) -> Tensor:
        """(heads, h*w, h*w) float32: entry (i, j) belongs to query i and key j, offset position i - position j.

        The network sees each of the (2h - 1)(2w - 1) offsets once, not once for each of the (h w)^2 pairs.
        """
        weight = next(self.parameters())
        device = weight.device
        rows, columns = (torch.arange(1 - n, n, device=device) for n in (h, w))
        offsets = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).float()
        with torch.autocast(device.type, enabled=False):
            values: Tensor = self.net((offsets.sign() * torch.log1p(offsets.abs())).to(weight.dtype)).float()
        row, column = torch.arange(h * w, device=device) // w, torch.arange(h * w, device=device) % w
        return values[row[:, None] - row + h - 1, column[:, None] - column + w - 1].permute(2, 0, 1).contiguous()


class Transformer(nn.Module):
    """Layers of position convolution, attention and feed-forward, each added to its input, and a final norm."""

    def __init__(self, dim: int, depth: int, dim_head: int, heads: int) -> None:
        super().__init__()
        inner = int(8 * dim / 3)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "0": PositionConvolution(dim),
                    "1": Attention(dim, dim_head, heads),
                    # the published list holds cross-attention at 2, which CTViT leaves empty
                    "3": nn.Sequential(
                        nn.LayerNorm(dim, EPS),
                        nn.Linear(dim, 2 * inner, bias=False),
                        GatedGelu(),
                        nn.Identity(),  # dropout
                        nn.Linear(inner, dim, bias=False),
                    ),
                }
            )
            for _ in range(depth)
        )
        self.norm_out = Norm(dim)

    def forward(self, x: Tensor, grid: torch.Size, bias: Tensor | None = None) -> Tensor:
        """x: (sequences, length, d); grid: (N, t, h, w), whose product is that of the first two.

        The sum stays float32 under autocast.
        """
        step = max(1, PIECE_TOKENS // x.shape[1])
        for layer in self.layers:
            convolve, attend, feed = layer["0"], layer["1"], layer["3"]  # type: ignore[index]  # a ModuleDict
            x = x + convolve(x, grid)
            pieces = []
            for piece in torch.split(x, step):
                piece = piece + attend(piece, bias)
                pieces.append(piece + feed(piece))
            x = torch.cat(pieces)
        return torch.cat([self.norm_out(piece) for piece in torch.split(x, step)])


class PositionConvolution(nn.Module):
    """A depthwise 3x3x3 convolution over the grid of tokens, causal along t: two frames of zeros before, none after."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dsconv = nn.Conv3d(dim, dim, 3, groups=dim)

    def forward(self, x: Tensor, grid: torch.Size) -> Tensor:
        """(sequences, length, d) to the same.

        x is read as the grid (N, t, h, w, d) in the order in which it lies. For the temporal transformer, whose
        sequences run (N h w) t, this mixes places, as the published code does in training and inference alike.
        """
        volume = x.reshape(*grid, x.shape[-1]).movedim(-1, 1)
        convolved: Tensor = self.dsconv(functional.pad(volume, (1, 1, 1, 1, 2, 0)))
        return convolved.movedim(1, -1).reshape(x.shape)


class Norm(nn.Module):
    """A LayerNorm whose shift is no parameter but a stored constant, 0 unless someone changed it."""

    beta: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))
        self.register_buffer("beta", torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) to the same."""
        return functional.layer_norm(x, x.shape[-1:], self.gamma, self.beta, EPS)


class Attention(nn.Module):
    """Cosine attention (Henry et al., 2020): queries and keys of unit length, scaled per channel, logits times 8.

    Queries come from the normalised tokens, keys and values from the tokens as they are: so the published code does it.
    """

    def __init__(self, dim: int, dim_head: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = Norm(dim)
        self.q_scale = nn.Parameter(torch.ones(dim_head))
        self.k_scale = nn.Parameter(torch.ones(dim_head))
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(dim, 2 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim, bias=False)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(n, length, d) to the same; bias: (heads, length, length), added to the logits."""
        products = (self.to_q(self.norm(x)), *self.to_kv(x).chunk(2, dim=-1))
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in products)
        q = functional.normalize(q.float(), dim=-1) * self.q_scale
        k = functional.normalize(k.float(), dim=-1) * self.k_scale
        if bias is not None:
            bias = bias.to(v)[None]  # of four axes: torch has a slow path of its own for three
        y = functional.scaled_dot_product_attention(q.to(v), k.to(v), v, bias, scale=LOGIT_SCALE)
        return self.to_out(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]  # a Linear's tensor


class GatedGelu(nn.Module):
    """(..., 2m) to (..., m): the first half times the exact GELU of the second (Shazeer, 2020)."""

    def forward(self, x: Tensor) -> Tensor:
        values, gate = x.chunk(2, dim=-1)
        return values * functional.gelu(gate)


class Codebook(nn.Module):
    """Replaces every token by the code nearest in direction; the code is handed out as stored, not of unit length.

    Always in float32: the nearest of thousands of codes is decided in the last digits.
    """

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self._codebook = nn.Module()
        self._codebook.register_buffer("embed", torch.randn(1, size, dim))

    @property
    def codes(self) -> Tensor:
        """(size, d), as stored."""
        embed: Tensor = self._codebook.embed  # type: ignore[assignment]  # the buffer above
        return embed[0]

    def indices(self, tokens: Tensor) -> Tensor:
        """(..., d) to the place of the nearest code (...), int64."""
        codes = functional.normalize(self.codes, dim=-1)
        flat = tokens.float().reshape(-1, tokens.shape[-1])
        with torch.autocast(tokens.device.type, enabled=False):
            found = [
                (functional.normalize(part, dim=-1) @ codes.T).argmax(-1) for part in torch.split(flat, CODE_TOKENS)
            ]
        return torch.cat(found).view(tokens.shape[:-1])

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., d) to the nearest codes (..., d), float32."""
        return self.codes[self.indices(tokens)]
