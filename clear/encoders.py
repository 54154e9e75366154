"""The encoders that `clear` knows by name, as plain data.

A new encoder is a new entry here; no other file branches on these names. `clear.frozen.load_encoder` turns an entry
into something that encodes. Facts are those of the papers, of the authors' code and of the files' own pages; nobody
here has opened the hub's files themselves (`WeightSource.verified`), and what else could not be checked is said in
`unverified`.
"""

from __future__ import annotations

from typing import Any

from clear.card import (
    CLIP_MEAN,
    CLIP_STD,
    INCEPTION_MEAN,
    INCEPTION_STD,
    EncoderCard,
    WeightSource,
)
from clear.volume_input import VolumeInput
from clear.windows import Window

_MAMBAOUT = "Yu and Wang, MambaOut: Do We Really Need Mamba for Vision?, CVPR 2025"
_VMAMBA = "Liu et al., VMamba: Visual State Space Model, NeurIPS 2024"
_AUGREG = "Steiner et al., How to train your ViT?, TMLR 2022"
_DINO = "Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021"
_DINOV2 = "Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, TMLR 2024"
_REGISTERS = "Darcet et al., Vision Transformers Need Registers, ICLR 2024"
_DINOV3 = "Siméoni et al., DINOv3, arXiv 2508.10104, 2025"
_RESNET = "He et al., Deep Residual Learning, CVPR 2016; Wightman et al., ResNet strikes back, 2021"
_LECL = "Ligero, Lenz et al., CLEAR: lesion-enhanced contrastive learning for CT, MICCAI 2025"
_MOCO = "Chen, Xie and He, An Empirical Study of Training Self-Supervised Vision Transformers (MoCo v3), ICCV 2021"
_RADIO_DINO = "Zedda, Loddo and Di Ruberto, Radio DINO, Computers in Biology and Medicine 195:110583, 2025"
_RAD_DINO = (
    "Pérez-García et al., Exploring scalable medical image encoders beyond text supervision, Nat Mach Intell 2025"
)
_RADIMAGENET = "Mei et al., RadImageNet, Radiology: Artificial Intelligence 2022"
_SAM2 = "Ravi et al., SAM 2: Segment Anything in Images and Videos, 2024"
_BIOMEDCLIP = "Zhang et al., BiomedCLIP, NEJM AI 2025"
_MEDSIGLIP = "Sellergren et al., MedGemma Technical Report, arXiv 2507.05201, 2025"
_MEDIMAGEINSIGHT = "Codella et al., MedImageInsight, arXiv 2410.06542, 2024"
_CURIA = "Dancette et al., Curia: A Multi-Modal Foundation Model for Radiology, arXiv 2509.06830, 2025"
_MERLIN = "Blankemeier, Kumar et al., Merlin: a computed tomography vision-language foundation model, Nature 2026"
_CTCLIP = "Hamamci et al., Generalist foundation models from a multimodal dataset for 3D CT, arXiv 2403.17834"

_IMAGENET = "trained on ImageNet-1k photographs, no medical images"
_IMAGENET_21K = "trained on ImageNet-21k and ImageNet-1k photographs, no medical images"
_LVD142M = "trained on LVD-142M photographs, no medical images"


def _mambaout(size: str, dim: int, size_mb: float) -> EncoderCard:
    """MambaOut: the embedding is the final LayerNorm of the spatial mean, d = width of the last stage."""
    return EncoderCard(
        name=f"mambaout-{size}",
        architecture=f"timm:mambaout_{size}",
        dim=dim,
        source=WeightSource("hub", f"timm/mambaout_{size}.in1k", size_mb=size_mb),
        trained_on=_IMAGENET,
        pooling="mean_norm",
        ignored=("head.pre_logits.", "head.fc."),
        licence="Apache-2.0",
        citation=_MAMBAOUT,
    )


def _paper(
    name: str, architecture: str, dim: int, objective: str, source: WeightSource | None = None, **fields: Any
) -> EncoderCard:
    """An encoder of the CLEAR paper, prepared as its released code does; any size its checkpoint turns out to be."""
    lecl = objective == "LeCL"
    published_none = WeightSource(
        "none", "Train them with `clear pretrain`, or ask the authors.", "weights.safetensors"
    )
    return EncoderCard(
        name=name,
        architecture=architecture,
        dim=dim,
        source=source or published_none,
        trained_on=f"trained by {objective} on CT slices, as the file's origin has it",
        any_size=True,
        resize="bilinear",
        windows=("abdomen", "lung"),
        modalities=("CT",),
        licence="of the checkpoint you use",
        citation=_LECL if lecl else f"{_MOCO}; {_LECL}",
        **fields,
    )


def _vmamba(size: str, dim: int, file: str) -> EncoderCard:
    """VMamba as published on ImageNet: the mean over positions of the normed last map."""
    return EncoderCard(
        name=f"vmamba-{size}",
        architecture=f"vmamba:{size}",
        dim=dim,
        source=WeightSource("elsewhere", "https://github.com/MzeroMiko/VMamba/releases", file),
        trained_on=_IMAGENET,
        pooling="native",
        licence="MIT",
        citation=_VMAMBA,
        unverified="this generation of the network (v05_noz) against numbers of its own class",
    )


def _vit(name: str, size: str, dim: int, hub: str, size_mb: float) -> EncoderCard:
    """ViT of the AugReg recipe: class token after the final norm, 0.5 normalisation."""
    return EncoderCard(
        name=name,
        architecture=f"timm:vit_{size}_patch16_224",
        dim=dim,
        source=WeightSource("hub", hub, size_mb=size_mb),
        trained_on=_IMAGENET_21K,
        mean=INCEPTION_MEAN,
        std=INCEPTION_STD,
        ignored=("head.",),
        licence="Apache-2.0",
        citation=_AUGREG,
    )


def _dino(name: str, size: str, patch: int, dim: int, size_mb: float) -> EncoderCard:
    """DINO: class token; positions resized as its authors do."""
    return EncoderCard(
        name=name,
        architecture=f"timm:vit_{size}_patch{patch}_224",
        dim=dim,
        source=WeightSource("hub", f"timm/vit_{size}_patch{patch}_224.dino", size_mb=size_mb),
        trained_on=_IMAGENET,
        positions="dinov2",
        ignored=("head.",),
        licence="Apache-2.0",
        citation=_DINO,
    )


def _dinov2(name: str, size: str, dim: int, size_mb: float, *, registers: bool = False) -> EncoderCard:
    """DINOv2 at 224 px: class token after the final norm; positions resized as its authors do."""
    model = f"vit_{size}_patch14_{'reg4_' if registers else ''}dinov2"
    return EncoderCard(
        name=name,
        architecture=f"timm:{model}",
        dim=dim,
        source=WeightSource("hub", f"timm/{model}.lvd142m", size_mb=size_mb),
        trained_on=_LVD142M,
        settings={"img_size": 224},
        positions="dinov2_registers" if registers else "dinov2",
        licence="Apache-2.0",
        citation=f"{_DINOV2}; {_REGISTERS}" if registers else _DINOV2,
    )


def _dinov3(name: str, size: str, dim: int, size_mb: float) -> EncoderCard:
    """DINOv3 at 224 px: class token after the final norm; rotary positions know no size."""
    model = f"vit_{size}_patch16_dinov3"
    return EncoderCard(
        name=name,
        architecture=f"timm:{model}",
        dim=dim,
        source=WeightSource("hub", f"timm/{model}.lvd1689m", size_mb=size_mb),
        trained_on="trained on LVD-1689M photographs, no medical images",
        resize="bilinear",
        licence="DINOv3 License (https://ai.meta.com/resources/models-and-libraries/dinov3-license/)",
        citation=_DINOV3,
    )


def _radio_dino(
    name: str, size: str, dim: int, source: WeightSource, unverified: str = "", patch: int = 16
) -> EncoderCard:
    """Radio DINO: DINO on RadImageNet's 8-bit CT, MR and ultrasound slices; windows were the readers' own."""
    return EncoderCard(
        name=name,
        architecture=f"timm:vit_{size}_patch16_224",  # the one that timm has; its patch is a setting
        dim=dim,
        source=source,
        trained_on="trained on RadImageNet (1.35 million CT, MR and ultrasound slices)",
        settings={} if patch == 16 else {"patch_size": patch},
        positions="dinov2",
        ignored=("head.",),
        licence="CC-BY-4.0",
        citation=_RADIO_DINO,
        unverified=unverified,
    )


def _sam2(name: str, size: str, size_mb: float, version: str = "2") -> EncoderCard:
    """SAM 2's image encoder at the 224 px that CLEAR used: its neck's stride-16 map, averaged."""
    file = size.replace("-", "_")
    return EncoderCard(
        name=name,
        architecture=f"sam2:{file}",
        dim=256,
        source=WeightSource(
            "hub", f"facebook/sam{version}-hiera-{size}", f"sam{version}_hiera_{file}.pt", size_mb=size_mb
        ),
        trained_on="trained on photographs and videos (SA-1B, SA-V), no medical images",
        resize="bilinear",
        pooling="native",
        licence="Apache-2.0",
        citation=_SAM2,
    )


def _merlin(name: str, dim: int, output: str) -> EncoderCard:
    """Merlin on whole scans: RAS, 1.5 x 1.5 x 3 mm, the mean of its last map or its contrastive head."""
    return EncoderCard(
        name=name,
        architecture="merlin:i3_resnet152",
        dim=dim,
        source=WeightSource(
            "hub",
            "stanfordmimi/Merlin",
            "i3_resnet_clinical_longformer_best_clip_04-02-2024_23-21-36_epoch_99.pt",
            size_mb=1080.0,
        ),
        trained_on="trained on abdominal CTs with their reports and diagnosis codes",
        settings={"output": output},
        volume=VolumeInput(
            spacing_mm=(3.0, 1.5, 1.5),
            shape=(160, 224, 224),
            hu=(-1000, 1000),
            out=(0.0, 1.0),
            pad=0.0,
            axes="RAS",
            grid="first_centre",
            clip="after",
        ),
        pooling="native",
        bfloat16=False,
        modalities=("CT",),
        licence="MIT",
        citation=_MERLIN,
        unverified="the size of its file, and whether its licence must be accepted first; bfloat16 on its real weights",
    )


_SNARCI = "https://github.com/Snarci/Radio-DINO"
_LINKED = "linked on a file-sharing site by their repository Snarci/Radio-DINO"

_ENTRIES: tuple[EncoderCard, ...] = (
    # --- the CLEAR paper's own ---
    _paper(  # without --weights: the small stand-in that comes with the package (`make weights`), and its own card
        "mambaout-lecl",
        "timm:mambaout_tiny",
        576,
        "LeCL",
        WeightSource(
            "bundled",
            "mambaout-lecl",
            "weights.safetensors",
            verified=True,
            sha256="7be4d4ffc79eb323f056b2f5015e0814997eb580e86ecd93953c741a483fb4cd",
            output=(3.7583, -0.3529, 1.9930, 0.4567, -7.2570, -0.9453),
        ),
        pooling="mean_norm",
        unverified="the paper's own checkpoint, which is not published",
    ),
    _paper("mambaout-moco", "timm:mambaout_tiny", 576, "MoCo v3", pooling="mean_norm"),
    _paper("vmamba-lecl", "vmamba:vssm", 768, "LeCL", pooling="native"),
    _paper("vmamba-moco", "vmamba:vssm", 768, "MoCo v3", pooling="native"),
    _paper("vit-conv-lecl", "vit_conv:base", 768, "LeCL"),
    _paper("vit-conv-moco", "vit_conv:base", 768, "MoCo v3"),
    # --- photographs ---
    _mambaout("femto", 288, 29.2),
    _mambaout("kobe", 288, 36.5),
    _mambaout("tiny", 576, 106.2),
    _mambaout("small", 576, 194.0),
    _mambaout("base", 768, 339.3),
    _vmamba("tiny", 768, "vssm1_tiny_0230s_ckpt_epoch_264.pth"),
    _vmamba("small", 768, "vssm_small_0229_ckpt_epoch_222.pth"),
    _vmamba("base", 1024, "vssm_base_0229_ckpt_epoch_237.pth"),
    _vit("vit-s", "small", 384, "timm/vit_small_patch16_224.augreg_in21k_ft_in1k", 88.2),
    _vit("vit-b", "base", 768, "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k", 346.3),
    _dino("dino-s16", "small", 16, 384, 86.7),
    _dino("dino-s8", "small", 8, 384, 86.7),
    _dino("dino-b16", "base", 16, 768, 343.2),
    _dino("dino-b8", "base", 8, 768, 343.2),
    _dinov2("dinov2-s", "small", 384, 88.2),
    _dinov2("dinov2-b", "base", 768, 346.3),
    _dinov2("dinov2-l", "large", 1024, 1217.5),
    _dinov2("dinov2-s-reg", "small", 384, 88.2, registers=True),
    _dinov2("dinov2-b-reg", "base", 768, 346.3, registers=True),
    _dinov2("dinov2-l-reg", "large", 1024, 1217.5, registers=True),
    _dinov3("dinov3-s", "small", 384, 86.4),
    _dinov3("dinov3-b", "base", 768, 342.6),
    _dinov3("dinov3-l", "large", 1024, 1212.0),
    EncoderCard(
        name="resnet50",
        architecture="timm:resnet50",
        dim=2048,
        source=WeightSource("hub", "timm/resnet50.a1_in1k", size_mb=102.5),
        trained_on=_IMAGENET,
        pooling="mean",
        bfloat16=False,
        ignored=("fc.",),
        licence="Apache-2.0",
        citation=_RESNET,
    ),
    _sam2("sam2-t", "tiny", 156.0),
    _sam2("sam2-s", "small", 184.0),
    _sam2("sam2-b", "base-plus", 323.5),
    _sam2("sam2-l", "large", 898.0),
    _sam2("sam2.1-t", "tiny", 156.0, "2.1"),
    _sam2("sam2.1-s", "small", 184.4, "2.1"),
    _sam2("sam2.1-b", "base-plus", 323.6, "2.1"),
    _sam2("sam2.1-l", "large", 898.1, "2.1"),
    # --- medical images ---
    EncoderCard(
        name="biomedclip",
        architecture="open_clip:vit_base_patch16_224",
        dim=512,
        source=WeightSource(
            "hub",
            "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
            "open_clip_pytorch_model.bin",
            size_mb=784.0,
        ),
        trained_on="trained on PMC-15M (15 million figures and captions of biomedical articles)",
        mean=CLIP_MEAN,
        std=CLIP_STD,
        pooling="native",
        licence="MIT",
        citation=_BIOMEDCLIP,
    ),
    EncoderCard(
        name="radimagenet-resnet50",
        architecture="timm:resnet50",
        dim=2048,
        source=WeightSource("hub", "Lab-Rasool/RadImageNet", "ResNet50.pt", size_mb=94.2),
        trained_on="trained on RadImageNet (1.35 million CT, MR and ultrasound slices)",
        mean=INCEPTION_MEAN,
        std=INCEPTION_STD,
        resize="bilinear",
        pooling="mean",
        bfloat16=False,
        ignored=("fc.",),
        licence="MIT by the mirror's page; the weights' own terms are not stated there",
        citation=_RADIMAGENET,
        unverified="that the mirror's file is the authors' PyTorch one; 0.5 normalisation is the authors' notebook's, "
        "the mirror's page names ImageNet's",
    ),
    _radio_dino(
        "radio-dino-t",
        "tiny",
        192,
        WeightSource("elsewhere", _SNARCI, "RadioDINO_tiny.pth"),  # as their loader, RadioDINO.py, saves it
        f"{_LINKED}; no hub repository was found",
    ),
    _radio_dino(
        "radio-dino-t-sp",
        "tiny",
        192,
        WeightSource("elsewhere", _SNARCI, ""),
        f"{_LINKED}, under a name that was not seen; no hub repository was found; its patch, 8 as the small one's",
        8,
    ),
    _radio_dino(
        "radio-dino-s-sp",
        "small",
        384,
        WeightSource("hub", "Snarcy/RadioDino-s8", size_mb=86.7),
        "the hub's file name and size",
        patch=8,
    ),
    _radio_dino("radio-dino-s", "small", 384, WeightSource("hub", "Snarcy/RadioDino-s16", size_mb=86.7)),
    _radio_dino(
        "radio-dino-b", "base", 768, WeightSource("hub", "Snarcy/RadioDino-b16", size_mb=343.2), "the hub's file name"
    ),
    EncoderCard(
        name="radio-dinov2",
        architecture="timm:vit_small_patch14_dinov2",
        dim=384,
        source=WeightSource("none", "Its authors name it in their paper; no published file was found.", ""),
        trained_on="trained on RadImageNet (1.35 million CT, MR and ultrasound slices)",
        settings={"img_size": 224},
        positions="dinov2",
        ignored=("head.",),
        any_size=True,
        licence="CC-BY-4.0",
        citation=_RADIO_DINO,
        unverified="its size and patch, which are read off the file that is given",
    ),
    EncoderCard(
        name="rad-dino",
        architecture="timm:vit_base_patch14_dinov2",
        dim=768,
        source=WeightSource("hub", "microsoft/rad-dino", size_mb=346.0),
        trained_on="trained on chest radiographs only; CT and MR slices are outside of that",
        settings={"img_size": 518},
        input_size=518,
        mean=(0.5307,) * 3,
        std=(0.2583,) * 3,
        positions="exact",
        licence="MIT",
        citation=_RAD_DINO,
        unverified="mean and std, which are quoted by others from its preprocessor_config",
    ),
    EncoderCard(
        name="medsiglip",
        architecture="timm:vit_so400m_patch14_siglip_384",
        dim=1152,
        source=WeightSource("hub", "google/medsiglip-448", size_mb=3500.0, gated=True),
        trained_on="trained on medical image and text pairs, CT and MR slices among them",
        settings={"img_size": 448, "act_layer": "gelu_tanh"},
        input_size=448,
        mean=INCEPTION_MEAN,
        std=INCEPTION_STD,
        channel_windows=(Window("wide", -1225, 1025), Window("soft_tissue", -135, 215), Window("brain", 0, 80)),
        pooling="native",
        positions="exact",
        modalities=("CT",),
        licence="Health AI Developer Foundations terms of use",
        citation=_MEDSIGLIP,
        unverified="that its own training stacked the three CT windows of its technical report, as MedGemma's did; the "
        "filter: its model card resizes bilinearly without antialias to reproduce its evaluations, the image processor "
        "of its serving code bicubically, as here",
    ),
    EncoderCard(
        name="medimageinsight",
        architecture="davit:davit_huge_fl",
        dim=1024,
        source=WeightSource(
            "hub", "lion-ai/MedImageInsights", "2024.09.27/vision_model/medimageinsigt-v1.0.0.pt", size_mb=2460.0
        ),
        trained_on="trained on 8-bit medical images of 14 domains, CT and MR among them",
        input_size=480,
        pooling="native",
        bfloat16=False,
        licence="MIT by the mirror's page",
        citation=_MEDIMAGEINSIGHT,
        unverified="which of its loader's two spellings the file has (both are read)",
    ),
    EncoderCard(
        name="curia",
        architecture="timm:vit_giant_patch14_dinov2",
        dim=768,
        source=WeightSource("hub", "raidium/curia", size_mb=344.3, gated=True),
        trained_on="trained on CT and MR slices",
        settings={
            "embed_dim": 768,
            "depth": 12,
            "num_heads": 12,
            "patch_size": 16,
            "img_size": 512,
            "mlp_ratio": 5.33334,
        },
        input_size=512,
        channels=1,
        mean=(0.0,),
        std=(1.0,),
        intensity="slice_zscore",
        positions="exact",
        bfloat16=False,
        licence="research only; see its page on the hub",
        citation=_CURIA,
        unverified="its preprocessor_config on the hub, which was not seen; licence reports differ",
    ),
    # --- whole volumes ---
    _merlin("merlin", 2048, "embedding"),
    _merlin("merlin-contrastive", 512, "contrastive"),
    EncoderCard(
        name="ct-clip",
        architecture="ctclip:ctvit",
        dim=512,
        source=WeightSource(
            "hub",
            "datasets/ibrahimhamamci/CT-RATE",
            "models/CT-CLIP-Related/CT-CLIP_v2.pt",
            size_mb=1770.0,
            gated=True,
        ),
        trained_on="trained on chest CTs without contrast and their reports (CT-RATE)",
        settings={"output": "latent"},
        volume=VolumeInput(
            spacing_mm=(1.5, 0.75, 0.75),
            shape=(240, 480, 480),
            hu=(-1000, 1000),
            out=(-1.0, 1.0),
            pad=-1.0,
            axes="SLP",
            grid="extent",
            clip="before",
        ),
        pooling="native",
        bfloat16=False,
        modalities=("CT",),
        licence="CC-BY-NC-SA-4.0",
        citation=_CTCLIP,
        unverified="its axes, which its users report and its authors' code does not set; the size of its file",
    ),
)

ENCODERS = {card.name: card for card in _ENTRIES}

_OVER_5_PERCENT = "loses more than 5 % here"
_NOT_COMPARED = "not compared"

# why an encoder refuses bfloat16 (`bfloat16=False`). Losses are of the worst embedding of 12 slices of a real chest CT
# with seeded weights, once their mean is gone (tests/clear/test_bfloat16.py)
BFLOAT16_REFUSED = {
    "resnet50": f"{_OVER_5_PERCENT} (52 %)",
    "radimagenet-resnet50": f"{_OVER_5_PERCENT} (51 %)",
    "medimageinsight": f"{_OVER_5_PERCENT} (51 %)",
    "curia": f"{_OVER_5_PERCENT} (5.3 %, with another seed 4.0 %)",
    "merlin": _NOT_COMPARED,
    "merlin-contrastive": _NOT_COMPARED,
    "ct-clip": _NOT_COMPARED,
}
