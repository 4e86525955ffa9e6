"""Models of torchvision, timm and transformers with random weights, as after some training.

A model is asked for by its source, as on the command line: ``torchvision:resnet18``,
``timm:resnet18``, ``hf:BertModel`` (a small configuration; ``hf:BertModel ids`` takes token ids).
Nothing is downloaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOKENS, WIDTH, VOCABULARY = 16, 64, 200  # of the small text models


@dataclass(frozen=True)
class Case:
    """A model, and ``sample(n, generator)``: n of its inputs, [n, ...]; ``samples`` are enough."""

    source: str
    model: nn.Module
    sample: Callable[[int, torch.Generator], Tensor]
    samples: int = 16


# -- weights and inputs ---------------------------------------------------------------------------


def smooth(shape: tuple[int, ...], n: int, generator: torch.Generator) -> Tensor:
    """Random images or clips [n, C, ..., H, W] with the spectrum of natural ones, about 1 / f."""
    channels, *sizes = shape
    x = torch.zeros(n, channels, *sizes)
    octaves = int(math.log2(max(min(sizes[-2:]), 4)))
    mode = "bilinear" if len(sizes) == 2 else "trilinear"
    for k in range(1, octaves):
        coarse = tuple(max(1, min(size, 2**k)) for size in sizes)
        part = torch.randn(n, channels, *coarse, generator=generator)
        x += F.interpolate(part, size=tuple(sizes), mode=mode, align_corners=False) / 2 ** (k / 2)
    return x / x.std()


@torch.no_grad()
def wake(model: nn.Module, generator: torch.Generator) -> None:
    """Parameters that begin as constants, drawn anew: at their start a residual branch is off.

    Gains become 1 +- 0.2, layer scales 0.3, biases and positions +- 0.1, weights that are zero
    those of their fan-in.
    """
    for parameter in model.parameters():
        if parameter.numel() < 2 or parameter.min() != parameter.max():
            continue
        value, noise = (
            float(parameter.flatten()[0]),
            torch.randn(parameter.shape, generator=generator),
        )
        if value == 0 and parameter.dim() > 1 and parameter[0].numel() > 1:
            parameter.copy_(noise / math.sqrt(parameter[0].numel()))
        elif value == 0:
            parameter.copy_(0.1 * noise)
        else:
            parameter.copy_((0.3 if abs(value) < 0.05 else value) * (1 + 0.2 * noise))


@torch.no_grad()
def settle(model: nn.Module, x: Tensor) -> None:
    """Batch norms with the statistics that x has there, by one pass; everything in eval mode."""
    model.eval()
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [(m, m.momentum) for m in norms if m.track_running_stats]
    for norm, _ in before:
        norm.momentum = 1.0
        norm.train()
    model(x.clone())
    for norm, momentum in before:
        norm.momentum = momentum
        norm.eval()


def prepared(source: str, seed: int = 0) -> Case:
    """The model that ``source`` names, woken and settled on some of its inputs."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    library, _, name = source.partition(":")
    case = LIBRARIES[library](name)
    wake(case.model, generator)
    settle(case.model, case.sample(case.samples, generator))
    for parameter in case.model.parameters():
        parameter.requires_grad_(False)
    return case


def images(*shape: int) -> Callable[[int, torch.Generator], Tensor]:
    return lambda n, generator: smooth(shape, n, generator)


def runs(model: nn.Module, sample: Callable[[int, torch.Generator], Tensor]) -> bool:
    try:
        with torch.no_grad():
            model.eval()(sample(1, torch.Generator().manual_seed(0)))
    except Exception:  # whatever a model raises for an image too small for it
        return False
    return True


# -- torchvision ----------------------------------------------------------------------------------

FLOW = "optical_flow"
PARTS = (None, "segmentation", "video", FLOW)
# what is fed by default is 96 x 96, at which a model with average pooling takes seconds
SMALL = 96
WHOLE = {"maxvit_t": 224, "vit": 224, "vit_h_14": 112, "inception_v3": 128}
FEW = 4  # clips
CLIPS = {"mvit": (3, 16, 224, 224), "s3d": (3, 16, 224, 224), "swin3d": (3, 8, 64, 64)}


def torchvision_names() -> list[str]:
    """Those of classification, segmentation, video and optical flow."""
    from importlib import import_module

    from torchvision import models

    found = []
    for part in PARTS:
        module = models if part is None else import_module(f"torchvision.models.{part}")
        found += models.list_models(module=module)
    return found


class Pair(nn.Module):
    """A model of two images, which come one behind the other in the channels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model(x[:, :3], x[:, 3:], num_flow_updates=2)


def of(table: dict[str, Any], name: str, default: Any) -> Any:
    """The entry of the longest name in the table that ``name`` begins with."""
    known = [key for key in table if name.startswith(key)]
    return table[max(known, key=len)] if known else default


def torchvision_case(name: str) -> Case:
    from torchvision import models

    source, size = f"torchvision:{name}", of(WHOLE, name, SMALL)
    options: dict[str, Any] = {"weights": None}
    if name in models.list_models(module=models.segmentation):
        options["weights_backbone"] = None
    if name.startswith("vit_"):
        options["image_size"] = size
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    model = models.get_model(name, **options)
    if name in models.list_models(module=models.optical_flow):
        return Case(source, Pair(model), images(6, 128, 128))
    if name in models.list_models(module=models.video):
        clips = images(*of(CLIPS, name, (3, 16, 64, 64)))
        return Case(source, model, clips, FEW)
    return Case(source, model, images(3, size, size))


# -- timm -----------------------------------------------------------------------------------------

# of timm 1.0.31: in each of its modules the smallest model of each name before the first digit, and
# some that are much used
TIMM = """
aimv2_large_patch14_224 bat_resnext26ts beit3_base_patch16_224 beit_base_patch16_224
beitv2_base_patch16_224 botnet26t_256 caformer_s18 cait_xxs24_224 coat_tiny coatnet_pico_rw_224
coatnext_nano_rw_224 convformer_s18 convit_tiny convmixer_768_32 convnext_tiny
convnext_zepto_rms convnextv2_atto cpubone_nano crossvit_tiny_240 cs3darknet_focus_s csatv2
cspdarknet53 cspnext_tiny cspresnet50 cspresnext50 darknet17 darknetaa53 davit_tiny
deepseek_vit_412m deit3_small_patch16_224 deit_tiny_patch16_224 densenet121 densenetblur121d
dla46x_c dm_nfnet_f0 dpn48b eca_botnext26ts_256 eca_nfnet_l0 eca_resnext26ts eca_vovnet39b
ecaresnet26t ecaresnetlight ecaresnext26t_32x4d edgenext_xx_small efficientformer_l1
efficientformerv2_s0 efficientnet_b0 efficientnet_es efficientnet_lite0 efficientnetv2_rw_t
efficientvim_m1 efficientvit_b0 efficientvit_m0 ese_vovnet19b_slim_dw eva02_tiny_patch14_224
eva_large_patch14_196 fasternet_t0 fastvit_t8 fbnetc_100 fbnetv3_b flexivit_small
focalnet_tiny_srf gc_efficientnetv2_rw_t gcresnet33ts gcresnet50t gcresnext26ts gcvit_xxtiny
gemma4_vit_167m gernet_s ghostnet_050 ghostnetv2_100 ghostnetv3_050 gmixer_12_224 gmlp_ti16_224
halo2botnet50ts_256 halonet_h1 haloregnetz_b hardcorenas_b hgnet_tiny hgnetv2_b0 hiera_tiny_224
hieradet_small hrnet_w18_small iformer_t inception_next_atto inception_resnet_v2 inception_v3
inception_v4 lambda_resnet26t lamhalobotnet50ts_256 lcnet_035 lcnetv2_small legacy_seresnet18
legacy_xception levit_128s lowformer_b0 mambaout_femto maxvit_pico_rw_256
maxxvit_rmlp_nano_rw_256 maxxvitv2_nano_rw_256 mixer_s16_224 mixnet_s mnasnet_small
mobilenet_edgetpu_100 mobilenetv2_035 mobilenetv3_large_100 mobilenetv3_small_050
mobilenetv4_conv_small mobilenetv4_hybrid_medium mobilenetv5_base mobileone_s0 mobileone_s1
mobilevit_xxs mobilevitv2_050 mvitv2_tiny naflexvit_base_patch16_parfac_gap nasnetalarge
nest_tiny nextvit_small nf_regnet_b0 nfnet_l0 pit_ti_224 pnasnet5large poolformer_s12
poolformerv2_s12 pvt_v2_b0 qwen3_vit_88m rdnet_tiny regnetv_040 regnetx_002 regnety_002
regnetz_005 regnetz_b16 repghostnet_050 repvgg_a0 repvit_m1 res2next50 resmlp_12_224 resnest14d
resnet10t resnet18 resnet32ts resnet50 resnetaa34d resnetblur18 resnetrs50 resnetv2_18
resnetv2_50 resnext26ts resnext50_32x4d rexnet_100 rexnetr_100 sam2_hiera_tiny
samvit_base_patch16_224 sebotnet33ts_256 sedarknet21 sehalonet33ts selecsls42 semnasnet_050
senet154 sequencer2d_s seresnet18 seresnet33ts seresnetaa50d seresnext26t_32x4d seresnext26ts
seresnextaa101d_32x8d shvit_s1 skresnet18 skresnext50_32x4d spnasnet_100 starnet_s050
swiftformer_xs swin_tiny_patch4_window7_224 swinv2_cr_tiny_224 swinv2_tiny_window8_256
test_byobnet test_coatnet test_convnext test_efficientnet test_mambaout test_nfnet test_resnet
test_vit test_vit_relpos tf_efficientnet_cc_b0_4e tf_efficientnetv2_b0 tf_mixnet_s
tf_mobilenetv3_small_075 tiny_vit_5m_224 tinynet_e tnt_s_legacy_patch16_224 tresnet_m
twins_svt_small vgg11 visformer_tiny vit_base_patch16_siglip_224 vit_dwee_patch16_reg1_gap_256
vit_small_patch14_dinov2 vit_srelpos_small_patch16_224 vit_tiny_patch16_224
vit_tiny_patch16_dinov3_qkvb vit_tiny_r_s16_p8_224 vitamin_small_224 volo_d1_224 vovnet39a
wide_resnet50_2 xception41p xcit_nano_12_p8_224
""".split()


def timm_case(name: str) -> Case:
    """At 96 x 96 where the model takes that, else at its own size."""
    import timm

    model = timm.create_model(name)
    own = model.pretrained_cfg["input_size"]
    shapes = (
        [own] if model.pretrained_cfg.get("fixed_input_size") else [(own[0], SMALL, SMALL), own]
    )
    for shape in shapes:
        if runs(model, images(*shape)):
            break
    return Case(f"timm:{name}", model, images(*shape))


# -- transformers ---------------------------------------------------------------------------------

TEXT = {
    "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 128, "vocab_size": VOCABULARY, "max_position_embeddings": 64,
    "pad_token_id": 0,
}  # fmt: skip
CAUSAL = {**TEXT, "num_key_value_heads": 2, "use_cache": False}
PATCHES = {
    "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 128, "image_size": 64, "patch_size": 16,
}  # fmt: skip
WINDOWS = {
    "image_size": 64,
    "embed_dim": 24,
    "depths": [1, 1],
    "num_heads": [2, 4],
    "window_size": 4,
}
STAGES = {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1]}
SEGFORMER = {
    **STAGES, "num_attention_heads": [1, 2, 2, 4], "decoder_hidden_size": 32, "num_labels": 5
}  # fmt: skip
WAVES = {
    **TEXT, "conv_dim": (32, 32, 32), "conv_stride": (5, 2, 2), "conv_kernel": (10, 3, 3),
    "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip

# model -> its configuration, small. The class of the configuration is the model's own.
TEXTS: dict[str, dict[str, Any]] = {
    "BertModel": TEXT,
    "RobertaModel": TEXT,
    "XLMRobertaModel": TEXT,
    "DistilBertModel": {
        "dim": WIDTH, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "vocab_size": VOCABULARY},
    "ElectraModel": {**TEXT, "embedding_size": WIDTH},
    "AlbertModel": {**TEXT, "embedding_size": WIDTH},
    "MPNetModel": {**TEXT, "pad_token_id": 1},
    "DebertaV2Model": TEXT,
    "ModernBertModel": {**TEXT, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1,
                        "sep_token_id": 2},
    "T5EncoderModel": {"d_model": WIDTH, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4,
                       "vocab_size": VOCABULARY},
    "FNetModel": TEXT,
    "GPT2Model": {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 64,
                  "vocab_size": VOCABULARY, "use_cache": False},
    "GPTNeoXModel": {**TEXT, "use_cache": False},
    "OPTModel": {**TEXT, "ffn_dim": 128, "word_embed_proj_dim": WIDTH, "use_cache": False},
    "LlamaModel": CAUSAL,
    "MistralModel": CAUSAL,
    "Qwen2Model": CAUSAL,
    "Qwen3Model": {**CAUSAL, "head_dim": 16},
    "GemmaModel": {**CAUSAL, "head_dim": 16},
    "PhiModel": CAUSAL,
    "MambaModel": {"hidden_size": WIDTH, "state_size": 8, "num_hidden_layers": 2,
                   "vocab_size": VOCABULARY, "use_cache": False},
}  # fmt: skip
OTHERS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "ViTModel": (PATCHES, (3, 64, 64)),
    "DeiTModel": (PATCHES, (3, 64, 64)),
    "BeitModel": (PATCHES, (3, 64, 64)),
    "Dinov2Model": ({**PATCHES, "mlp_ratio": 2}, (3, 64, 64)),
    "YolosModel": ({**PATCHES, "image_size": [64, 64], "num_detection_tokens": 5}, (3, 64, 64)),
    "CLIPVisionModel": (PATCHES, (3, 64, 64)),
    "SiglipVisionModel": (PATCHES, (3, 64, 64)),
    "SwinModel": (WINDOWS, (3, 64, 64)),
    "Swinv2Model": (WINDOWS, (3, 64, 64)),
    "ConvNextModel": (STAGES, (3, 64, 64)),
    "ConvNextV2Model": (STAGES, (3, 64, 64)),
    "SegformerModel": (SEGFORMER, (3, 64, 64)),
    "SegformerForSemanticSegmentation": (SEGFORMER, (3, 64, 64)),
    "MobileViTModel": ({"image_size": 64, "hidden_sizes": [24, 32, 40],
                        "neck_hidden_sizes": [8, 16, 24, 32, 40, 48, 64]}, (3, 64, 64)),
    "MobileNetV2Model": ({}, (3, 64, 64)),
    "EfficientNetModel": ({"width_coefficient": 0.25, "depth_coefficient": 0.25,
                           "hidden_dim": 320}, (3, 64, 64)),
    "PoolFormerModel": (STAGES, (3, 64, 64)),
    "ResNetModel": ({**STAGES, "embedding_size": 16}, (3, 64, 64)),
    "RegNetModel": ({**STAGES, "embedding_size": 16, "groups_width": 8}, (3, 64, 64)),
    "HieraModel": ({"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4],
                    "image_size": [64, 64]}, (3, 64, 64)),
    "PvtV2Model": ({**STAGES, "image_size": 64, "num_attention_heads": [1, 2, 2, 4]}, (3, 64, 64)),
    "LevitModel": ({"image_size": 64, "hidden_sizes": [32, 48, 64], "depths": [1, 1, 1],
                    "num_attention_heads": [2, 3, 4], "key_dim": [16, 16, 16]}, (3, 64, 64)),
    "ASTModel": ({**TEXT, "num_mel_bins": 32, "max_length": 64, "patch_size": 16}, (64, 32)),
    "WhisperEncoder": ({"d_model": WIDTH, "encoder_layers": 2, "encoder_attention_heads": 4,
                        "encoder_ffn_dim": 128, "max_source_positions": 50}, (80, 100)),
    "Wav2Vec2Model": (WAVES, (2000,)),
    "HubertModel": (WAVES, (2000,)),
}  # fmt: skip


class Called(nn.Module):
    """A model of transformers by its keyword; its first output, a tensor."""

    def __init__(self, model: nn.Module, keyword: str) -> None:
        super().__init__()
        self.model, self.keyword = model, keyword

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.model(**{self.keyword: x})[0]
        return found


def transformers_names() -> list[str]:
    return [*TEXTS, *(f"{name} ids" for name in TEXTS), *OTHERS]


def transformers_model(name: str) -> nn.Module:
    import transformers

    if name == "WhisperEncoder":
        from transformers.models.whisper.modeling_whisper import WhisperEncoder as kind
    else:
        kind = getattr(transformers, name)
    options = TEXTS[name] if name in TEXTS else OTHERS[name][0]
    model: nn.Module = kind(kind.config_class(**options))
    return model.eval()


def transformers_case(name: str) -> Case:
    name, _, kind = name.partition(" ")
    model, source = transformers_model(name), f"hf:{name}{' ' + kind if kind else ''}"
    if name in OTHERS:
        shape = OTHERS[name][1]
        wave = len(shape) < 3
        sample = noise(*shape) if wave else images(*shape)
        return Case(source, Called(model, str(model.main_input_name)), sample)
    if kind:
        return Case(source, Called(model, "input_ids"), ids)
    table: Any = model.get_input_embeddings()  # type: ignore[operator]

    def sample_embeddings(n: int, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            found: Tensor = table(ids(n, generator))
        return found.clone()

    return Case(source, Called(model, "inputs_embeds"), sample_embeddings)


def ids(n: int, generator: torch.Generator) -> Tensor:
    """Token ids without padding and special tokens."""
    return torch.randint(5, VOCABULARY, (n, TOKENS), generator=generator)


def noise(*shape: int) -> Callable[[int, torch.Generator], Tensor]:
    return lambda n, generator: torch.randn(n, *shape, generator=generator)


LIBRARIES: dict[str, Callable[[str], Case]] = {
    "torchvision": torchvision_case,
    "timm": timm_case,
    "hf": transformers_case,
}
