"""Published image encoders under timm's names: what Hugging Face transformers and the authors call their tensors.

No class of transformers is needed at run time, and no remote code: each of these networks is one of timm's, its
tensors are only called differently, or one is cut in pieces. Names as in transformers (Dinov2Model,
Dinov2WithRegistersModel, ViTModel, DINOv3ViTModel, SiglipModel), facebookresearch/dinov2 and dinov3, MedImageInsight
(davit_v1.py, class DaViT) and BMEII-AI/RadImageNet (pytorch_example.ipynb).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from clear.backbones.renaming import Renamed, renamed
from clear.checkpoints import check_kind
from clear.errors import WeightsError

Tensors = Mapping[str, Tensor]

ROPE_BASE = 100.0  # DINOv3, configuration of every published size


def to_timm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors under timm's names, recognised by its names; one that timm would know is left as it is.

    Query, key and value become one `qkv`; DINOv2's class position is added to the class token where there are
    registers, since timm's network has no place for it. Left out, since no embedding depends on them: mask_token
    (pretraining), ViTModel's pooler (not DINO's embedding), position_ids, a SigLIP's or MedImageInsight's text tower
    and logit scale, DINOv3's RoPE periods and bias masks where they hold what timm computes itself. Whatever is not
    known keeps its name, and nothing that is missing is made up, so that a strict load names both. Raises WeightsError
    where two tensors come by one name, or pieces do not fit together.
    """
    for marker, convert in _FORMS:
        for name in tensors:
            if (found := re.search(rf"(?:^|\.)(?:{marker})$", name)) is not None:
                return convert(tensors, name[: found.start() + found[0].startswith(".")])
    return dict(tensors)


def without_zero_biases(tensors: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """DINOv3's query and value biases left out where all of them are 0 and `network` has none.

    Meta's and transformers' files carry them, all 0; timm's `vit_*_dinov3` are built without, `vit_*_dinov3_qkvb` with
    (timm's model cards). A bias that is not 0 stays and makes the strict load fail. Names as `network` has them.
    """
    own = network.state_dict().keys()
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name in own or not name.endswith((".attn.q_bias", ".attn.v_bias")) or not _is_zero(tensor)
    }


# transformers: Dinov2Model, Dinov2WithRegistersModel (files of RAD-DINO, Curia, facebook/dinov2-*), ViTModel (DINO).
# Version 5 calls the parts q_proj, gate_proj, ... in memory and writes the older names to files; both are read.
_VIT_OUTER = {
    "embeddings.cls_token": "cls_token",
    "embeddings.register_tokens": "reg_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
}
_VIT_INNER = {
    "norm1": "norm1",
    "norm2": "norm2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.attention.query": "attn.q",
    "attention.attention.key": "attn.k",
    "attention.attention.value": "attn.v",
    "attention.output.dense": "attn.proj",
    "attention.q_proj": "attn.q",
    "attention.k_proj": "attn.k",
    "attention.v_proj": "attn.v",
    "attention.o_proj": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.weights_in": "mlp.fc1",  # SwiGLU: gate and value in one, in the order of timm's SwiGLUPacked
    "mlp.weights_out": "mlp.fc2",
    "mlp.gate_proj": "mlp.gate",
    "mlp.up_proj": "mlp.up",
    "mlp.down_proj": "mlp.fc2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
_SIGLIP_OUTER = {
    "embeddings.patch_embedding": "patch_embed.proj",
    "embeddings.position_embedding.weight": "pos_embed",
    "post_layernorm": "norm",
    "head.probe": "attn_pool.latent",
    "head.attention.in_proj_weight": "attn_pool.in.weight",
    "head.attention.in_proj_bias": "attn_pool.in.bias",
    "head.attention.out_proj": "attn_pool.proj",
    "head.layernorm": "attn_pool.norm",
    "head.mlp.fc1": "attn_pool.mlp.fc1",
    "head.mlp.fc2": "attn_pool.mlp.fc2",
}
_SIGLIP_INNER = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.q_proj": "attn.q",
    "self_attn.k_proj": "attn.k",
    "self_attn.v_proj": "attn.v",
    "self_attn.out_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_DINOV3_OUTER = {
    "embeddings.cls_token": "cls_token",
    "embeddings.register_tokens": "reg_token",
    "embeddings.patch_embeddings": "patch_embed.proj",
    "norm": "norm",
}
_DINOV3_INNER = {
    **{name: _VIT_INNER[name] for name in ("norm1", "norm2")},
    **{f"attention.{part}_proj": _VIT_INNER[f"attention.{part}_proj"] for part in "qkvo"},
    "layer_scale1.lambda1": "gamma_1",
    "layer_scale2.lambda1": "gamma_2",
    "mlp.gate_proj": "mlp.fc1_g",
    "mlp.down_proj": "mlp.fc2",
}


def _vit(tensors: Tensors, prefix: str) -> Renamed:
    """transformers' Dinov2Model, Dinov2WithRegistersModel and ViTModel to timm's VisionTransformer."""
    dropped = ("embeddings.mask_token", "pooler.dense.weight", "pooler.dense.bias")
    out = _by_tables(tensors, prefix, r"(?:encoder\.layer|layers)\.(\d+)\.", _VIT_OUTER, _VIT_INNER, dropped)
    _join(out, ("attn.q", "attn.k", "attn.v"), "attn.qkv")
    _join(out, ("mlp.gate", "mlp.up"), "mlp.fc1")
    return _fold_class_position(out)


def _dinov3(tensors: Tensors, prefix: str) -> Renamed:
    """transformers' DINOv3ViTModel to timm's Eva, whose key has no bias, as DINOv3's has none."""
    gated = any(re.search(r"\.mlp\.gate_proj\.(weight|bias)$", name) for name in tensors)
    inner = {**_DINOV3_INNER, "mlp.up_proj": "mlp.fc1_x" if gated else "mlp.fc1"}
    out = _by_tables(tensors, prefix, r"(?:model\.)?layer\.(\d+)\.", _DINOV3_OUTER, inner, ("embeddings.mask_token",))
    _join(out, ("attn.q", "attn.k", "attn.v"), "attn.qkv", kinds=("weight",))
    return renamed(out, lambda name: re.sub(r"\.attn\.([qv])\.bias$", r".attn.\1_bias", name))


def _siglip(tensors: Tensors, prefix: str) -> Renamed:
    """transformers' SiglipModel or SiglipVisionModel to timm's VisionTransformer with attention pooling."""
    if prefix:
        base = prefix.removesuffix("vision_model.")
        text = tuple(base + name for name in ("text_model.", "logit_scale", "logit_bias"))
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(text)}
    dropped = ("embeddings.position_ids",)
    out = _by_tables(tensors, prefix, r"encoder\.layers\.(\d+)\.", _SIGLIP_OUTER, _SIGLIP_INNER, dropped)
    _join(out, ("attn.q", "attn.k", "attn.v"), "attn.qkv")
    if "pos_embed" in out and out["pos_embed"].ndim == 2:
        out["pos_embed"] = out["pos_embed"][None]
    for kind in ("weight", "bias"):  # torch's MultiheadAttention keeps q, k, v in one; timm's pooling q apart
        packed = out.get(f"attn_pool.in.{kind}")
        if packed is not None and packed.ndim > 0:
            del out[f"attn_pool.in.{kind}"]
            width, origin = len(packed) // 3, out.origins[f"attn_pool.in.{kind}"]
            out.claim(f"attn_pool.q.{kind}", packed[:width], origin)
            out.claim(f"attn_pool.kv.{kind}", packed[width:], origin)
    return out


def _dinov2_official(tensors: Tensors, prefix: str) -> Renamed:
    """facebookresearch/dinov2 to timm's VisionTransformer; chunked blocks of training checkpoints are numbered on."""

    def rename(name: str) -> str | None:
        if name == prefix + "mask_token":
            return None
        name = name.removeprefix(prefix).replace("register_tokens", "reg_token")
        name = re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)
        return name.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2.")

    return _fold_class_position(renamed(tensors, rename))


def _dinov3_official(tensors: Tensors, prefix: str) -> Renamed:
    """facebookresearch/dinov3 to timm's Eva; the key's third of qkv.bias is left out where its mask makes it 0."""
    out = Renamed()
    words = {"storage_tokens": "reg_token", ".ls1.gamma": ".gamma_1", ".ls2.gamma": ".gamma_2"}
    words |= {".mlp.w1.": ".mlp.fc1_g.", ".mlp.w2.": ".mlp.fc1_x.", ".mlp.w3.": ".mlp.fc2."}
    for origin, tensor in tensors.items():
        name = origin.removeprefix(prefix)
        mask = tensors.get(f"{prefix}{name}_mask")
        if name == "mask_token" or (name.endswith(".qkv.bias_mask") and _masks_key(tensor)):
            continue
        if name == "rope_embed.periods" and _is_timms_rope(tensor):
            continue
        if name.endswith(".qkv.bias") and mask is not None and mask.shape == tensor.shape and _masks_key(mask):
            query, _, value = tensor.chunk(3)
            out.claim(name.replace("qkv.bias", "q_bias"), query, origin)
            out.claim(name.replace("qkv.bias", "v_bias"), value, origin)
            continue
        for theirs, ours in words.items():
            name = name.replace(theirs, ours)
        out.claim(name, tensor, origin)
    return out


def _davit(tensors: Tensors, prefix: str) -> Renamed:
    """MedImageInsight's image encoder (UniCL's DaViT) to timm's davit_*_fl; its projection becomes `head.fc`, no bias.

    Both spellings that its loader takes: convs/blocks, and conv_embeds/main_blocks with numbered parts.
    """
    text = ("lang_encoder.", "text.", "lang_projection", "text_projection", "logit_scale")
    out = Renamed()
    for origin, tensor in tensors.items():
        if prefix and origin.startswith(text):
            continue
        if origin in ("image_projection", "vision_projection"):  # (d, projected), multiplied from the right
            out.claim("head.fc.weight", tensor.T.contiguous() if tensor.ndim == 2 else tensor, origin)
            continue
        name = re.sub(r"^(?:convs|conv_embeds)\.(\d+)\.(norm|proj)\.", _davit_patches, origin.removeprefix(prefix))
        name = re.sub(r"^(?:main_)?blocks\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2.", name)
        for pattern, ours in _DAVIT_PARTS:
            name = re.sub(pattern, ours, name)
        out.claim(re.sub(r"^norms\.", "head.norm.", name), tensor, origin)
    return out


_DAVIT_PARTS = (
    (r"(blocks\.\d+)\.0\.", r"\1.spatial_block."),
    (r"(blocks\.\d+)\.1\.", r"\1.channel_block."),
    (r"\.cpe\.0\.proj\.|\.conv1\.fn\.dw\.", ".cpe1.proj."),
    (r"\.cpe\.1\.proj\.|\.conv2\.fn\.dw\.", ".cpe2.proj."),
    (r"\.(?:window|channel)_attn\.norm\.", ".norm1."),
    (r"\.(?:window|channel)_attn\.fn\.", ".attn."),
    (r"\.ffn\.norm\.", ".norm2."),
    (r"\.ffn\.fn\.net\.", ".mlp."),
)


def _davit_patches(match: re.Match[str]) -> str:
    stage, part = match[1], {"proj": "conv", "norm": "norm"}[match[2]]
    return f"stem.{part}." if stage == "0" else f"stages.{stage}.downsample.{part}."


def _resnet(tensors: Tensors, prefix: str) -> Renamed:
    """RadImageNet's ResNet-50: torchvision's children in an nn.Sequential, the classifier cut off."""
    parts = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}

    def rename(name: str) -> str:
        number, _, rest = name.removeprefix(prefix).partition(".")
        return f"{parts[number]}.{rest}" if number in parts else name

    return renamed(tensors, rename)


def _by_tables(
    tensors: Tensors, prefix: str, block: str, outer: dict[str, str], inner: dict[str, str], dropped: tuple[str, ...]
) -> Renamed:
    """Names looked up whole, then without `.weight` or `.bias`; `block` finds a block's number. Unknown names stay."""

    def rename(name: str) -> str | None:
        if not name.startswith(prefix):
            return name
        inside = name.removeprefix(prefix)
        if inside in dropped:
            return None
        table, start, rest = outer, "", inside
        if match := re.match(block, inside):
            table, start, rest = inner, f"blocks.{match[1]}.", inside[match.end() :]
        module, _, kind = rest.rpartition(".")
        if rest in table:
            return start + table[rest]
        if module in table and kind in ("weight", "bias"):
            return f"{start}{table[module]}.{kind}"
        return name

    return renamed(tensors, rename)


def _join(tensors: Renamed, parts: tuple[str, ...], whole: str, kinds: tuple[str, ...] = ("weight", "bias")) -> None:
    """In every block that has all `parts`, stack their rows as `whole`."""
    for kind in kinds:
        for first in [name for name in tensors if name.endswith(f".{parts[0]}.{kind}")]:
            start = first.removesuffix(f"{parts[0]}.{kind}")
            names = [f"{start}{part}.{kind}" for part in parts]
            if all(name in tensors for name in names):
                origins = [tensors.origins[name] for name in names]
                pieces = [tensors.pop(name) for name in names]
                _check_pieces(dict(zip(origins, pieces, strict=True)))
                tensors.claim(f"{start}{whole}.{kind}", torch.cat(pieces), origins[0])


def _fold_class_position(tensors: Renamed) -> Renamed:
    """With registers: class token + its position, and positions of the patches alone. Registers have no position."""
    names = ("cls_token", "pos_embed", "reg_token")
    if all(name in tensors for name in names):
        _check_pieces({name: tensors[name] for name in names}, but=1)
        positions = tensors["pos_embed"]
        tensors["cls_token"] = tensors["cls_token"] + positions[:, :1]
        tensors["pos_embed"] = positions[:, 1:]
    return tensors


def _check_pieces(pieces: Mapping[str, Tensor], but: int | None = None) -> None:
    """Raises WeightsError naming a piece of another kind or shape than the others; along `but` any length is right."""
    for name, tensor in pieces.items():
        check_kind(name, tensor, whole=False)
    shapes = {name: tuple(tensor.shape) for name, tensor in pieces.items()}
    outlines = {name: (*shape[:but], *shape[but + 1 :]) if but else shape for name, shape in shapes.items()}
    usual, count = Counter(outlines.values()).most_common(1)[0]
    odd = [name for name, outline in outlines.items() if outline != usual]
    if odd and 2 * count > len(pieces):
        witness = next(name for name in pieces if name not in odd)
        raise WeightsError(
            f"tensor {odd[0]} has shape {shapes[odd[0]]}, which does not fit {witness} {shapes[witness]}"
        )
    if odd:
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise WeightsError(f"tensors that belong together do not fit: {found}")


def _is_zero(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not bool(tensor.float().count_nonzero())


def _masks_key(mask: Tensor) -> bool:
    thirds = mask.chunk(3) if mask.ndim == 1 and len(mask) % 3 == 0 else ()
    return len(thirds) == 3 and not bool(thirds[1].count_nonzero())


def _is_timms_rope(periods: Tensor) -> bool:
    """base^(i/n) for n periods; Meta's files hold them in bfloat16, timm and transformers compute them in float32."""
    if periods.ndim != 1 or not periods.is_floating_point():
        return False
    count = len(periods)
    return torch.allclose(periods.float(), ROPE_BASE ** (torch.arange(count) / count), rtol=0.01)


# Names by which a form is known, after whatever prefix; the first that fits. More than one of each form, so that one
# that is missing does not make all others unknown.
_FORMS: tuple[tuple[str, Callable[[Tensors, str], Renamed]], ...] = (
    (r"embeddings\.patch_embeddings\.projection\.(?:weight|bias)", _vit),
    (r"embeddings\.patch_embeddings\.(?:weight|bias)", _dinov3),
    (r"embeddings\.patch_embedding\.(?:weight|bias)", _siglip),
    (r"storage_tokens|rope_embed\.periods|blocks\.0\.attn\.qkv\.bias_mask", _dinov3_official),
    (r"register_tokens|mask_token|blocks\.0\.mlp\.w(?:12|3)\.(?:weight|bias)", _dinov2_official),
    (r"blocks\.0\.0\.ls[12]\.gamma", _dinov2_official),
    (r"(?:convs|conv_embeds)\.0\.proj\.(?:weight|bias)", _davit),
    (r"4\.0\.conv[13]\.weight", _resnet),
)
