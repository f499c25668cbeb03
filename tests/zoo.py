"""A tiny pipeline of random networks for each class that diffusers' AutoPipelines know.

A family says once which parts its pipelines are made of and what they are called with; a class
takes what its own signatures name.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler as Flow
from diffusers.guiders.ltx2_guidance import LTX2Guidance
from diffusers.pipelines import auto_pipeline
from PIL import Image
from pipelines import clip, filled, modular, tiny, tokenizer, unet, vae
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn

ROOM = Image.new("RGB", (16, 16), (200, 120, 40))
HALF = Image.new("L", (16, 16), 0)
HALF.paste(255, (0, 0, 8, 16))
Parts = tuple[dict[str, Any], dict[str, Any]]
"""Components by name, and arguments of a call by name."""


class StandsIn(nn.Module):
    """For a text encoder that is asked for nothing but its number format, or for a function."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, function: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        assert self.function is not None
        return self.function(*args)


STANDS_IN = StandsIn()


def embeds(width: int, count: int = 5, seed: int = 11) -> Tensor:
    """What stands for the states of a text encoder."""
    return torch.randn(1, count, width, generator=torch.Generator().manual_seed(seed))


def by_embeds(width: int, count: int = 5, mask: bool = False) -> dict[str, Any]:
    """A prompt and a negative one as states of a text encoder that has no small form here."""
    pooled = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(13))
    found: dict[str, Any] = {
        "prompt_embeds": embeds(width, count), "negative_prompt_embeds": embeds(width, count, 12),
        "pooled_prompt_embeds": pooled[0], "negative_pooled_prompt_embeds": pooled[1],
        "negative_prompt": None,
    }  # fmt: skip
    whole = torch.ones(1, count, dtype=torch.long)
    if mask:
        for name, rows in (("prompt_attention_mask", whole), ("prompt_embeds_mask", whole.bool())):
            found |= {name: rows, f"negative_{name}": rows}
    return found


def _stable_diffusion(name: str) -> Parts:
    parts = dict(tiny("sd").components)
    if "ControlNet" in name:
        parts |= tiny("controlnet").components
    if "Consistency" in name:
        parts |= {
            "unet": filled(unet(8, time_cond_proj_dim=8)),
            "scheduler": diffusers.LCMScheduler(clip_sample=False, original_inference_steps=50),
        }
    return parts, {"pag_applied_layers": ["mid"]}


def _stable_diffusion_xl(name: str) -> Parts:
    parts = dict(tiny("sdxl").components)
    options = {"conditioning_embedding_out_channels": (8, 16)}
    if "Union" in name:
        network = diffusers.ControlNetUnionModel(
            block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), cross_attention_dim=16,
            attention_head_dim=2, addition_embed_type="text_time", addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=32, num_trans_channel=8, num_trans_head=2,
            num_proj_channel=8, **options,
        )  # fmt: skip
        parts["controlnet"] = filled(network)
    elif "ControlNet" in name:
        parts["controlnet"] = filled(
            diffusers.ControlNetModel.from_unet(parts["unet"], conditioning_channels=3, **options)
        )
    return parts, {"pag_applied_layers": ["mid"], "control_mode": [0], "add_watermarker": False,
                   "requires_aesthetics_score": False}  # fmt: skip


def _stable_diffusion_3(name: str) -> Parts:
    parts = dict(tiny("sd3").components)
    if "Inpaint" in name and "ControlNet" not in name:  # it takes 16 channels or 33
        network = diffusers.SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=16, num_layers=1, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16,
            pooled_projection_dim=16, out_channels=16, pos_embed_max_size=8,
        )  # fmt: skip
        decoder = vae(16, shift_factor=0.1, scaling_factor=1.3)
        parts |= {"transformer": filled(network), "vae": decoder}
    if "ControlNet" in name:
        extra = 1 if "Inpaint" in name else 0
        network = diffusers.SD3ControlNetModel(
            sample_size=8, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16,
            pooled_projection_dim=16, out_channels=4, pos_embed_max_size=8,
            extra_conditioning_channels=extra,
        )  # fmt: skip
        parts["controlnet"] = filled(network)
    return parts, {"pag_applied_layers": ["0"]}


def _deepfloyd(name: str) -> Parts:
    return dict(tiny("if").components), {"image": _rgb(8), "mask_image": _mask(8)}


def _dit(name: str) -> Parts:
    network = diffusers.DiTTransformer2DModel(
        sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=2,
        in_channels=4, out_channels=8,
    )  # fmt: skip
    parts = {"transformer": filled(network), "vae": vae(), "scheduler": diffusers.DDIMScheduler()}
    return parts, {"class_labels": [1]}


def _frames_in_batch(name: str) -> Parts:
    """Videos whose frames are rows of the batch when the scheduler steps them."""
    network = diffusers.UNet3DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), cross_attention_dim=8,
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"), attention_head_dim=4,
    )  # fmt: skip
    return tiny("sd").components | {"unet": filled(network)}, {"num_frames": 5}


def _rgb(side: int) -> Image.Image:
    return ROOM.resize((side, side))


def _mask(side: int) -> Image.Image:
    return HALF.resize((side, side))


def _hunyuan(name: str) -> Parts:
    network = diffusers.HunyuanDiT2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, patch_size=2, sample_size=8,
        hidden_size=16, num_layers=2, cross_attention_dim=8, cross_attention_dim_t5=8,
        pooled_projection_dim=8, text_len=5, text_len_t5=5,
        use_style_cond_and_image_meta_size=False,
    )  # fmt: skip
    whole = torch.ones(1, 5, dtype=torch.long)
    call: dict[str, Any] = {"pag_applied_layers": ["1"]}
    for end in ("", "_2"):
        call |= {
            f"prompt_embeds{end}": embeds(8), f"negative_prompt_embeds{end}": embeds(8, seed=12),
            f"prompt_attention_mask{end}": whole, f"negative_prompt_attention_mask{end}": whole,
        }  # fmt: skip
    scheduler = diffusers.DDPMScheduler(prediction_type="v_prediction", clip_sample=False)
    return {"transformer": filled(network), "vae": vae(), "scheduler": scheduler,
            "text_encoder": STANDS_IN, "text_encoder_2": None, "tokenizer": None}, call  # fmt: skip


def _movq() -> Any:
    network = diffusers.VQModel(
        block_out_channels=(32, 32), norm_num_groups=4, vq_embed_dim=4, norm_type="spatial",
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"), latent_channels=4,
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"), num_vq_embeddings=12,
    )  # fmt: skip
    network.decoder.conv_out.weight.data *= 20
    return network.eval()


def _kandinsky(name: str) -> Parts:
    from diffusers.pipelines.kandinsky.text_encoder import MultilingualCLIP
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
        XLMRobertaConfig,
    )

    text = clip(projection=True)
    vision = CLIPVisionModelWithProjection(
        CLIPVisionConfig(hidden_size=8, projection_dim=8, num_hidden_layers=1,
                         num_attention_heads=2, image_size=16, intermediate_size=8, patch_size=8)
    ).eval()  # fmt: skip
    prior = diffusers.PriorTransformer(
        num_attention_heads=2, attention_head_dim=4, embedding_dim=8, num_layers=1,
        num_embeddings=8, additional_embeddings=4,
    )  # fmt: skip
    prior.clip_std = nn.Parameter(torch.ones(prior.clip_std.shape))
    inpaints = 9 if "Inpaint" in name else 4
    common: dict[str, Any] = {
        "sample_size": 8, "in_channels": inpaints, "out_channels": 8, "layers_per_block": 1,
        "block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 2,
        "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "resnet_time_scale_shift": "scale_shift",
        "class_embed_type": None, "cross_attention_dim": 8,
    }  # fmt: skip
    if "V22" in name:
        common |= {"addition_embed_type": "image", "encoder_hid_dim": 8,
                   "encoder_hid_dim_type": "image_proj"}  # fmt: skip
        text_encoder = None
    else:
        common |= {"addition_embed_type": "text_image", "addition_embed_type_num_heads": 2,
                   "encoder_hid_dim": 8, "encoder_hid_dim_type": "text_image_proj"}  # fmt: skip
        config = XLMRobertaConfig(
            vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=8, max_position_embeddings=100, pad_token_id=0,
        )  # fmt: skip
        config.transformerDimensions, config.numDims = 8, 8
        text_encoder = MultilingualCLIP(config).eval()
        text_encoder.LinearTransformation.reset_parameters()  # which nothing else does
    network = diffusers.UNet2DConditionModel(**common)
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, prediction_type="epsilon", thresholding=False,
    )  # fmt: skip
    parts = {
        "unet": filled(network), "movq": _movq(), "scheduler": scheduler,
        "text_encoder": text_encoder, "tokenizer": _long_tokenizer(),
        "prior_prior": filled(prior), "prior_image_encoder": vision, "prior_text_encoder": text,
        "prior_tokenizer": tokenizer(), "prior_scheduler": diffusers.UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", num_train_timesteps=1000,
            clip_sample=True, clip_sample_range=5.0,
        ),
        "prior_image_processor": CLIPImageProcessor(
            crop_size=16, do_center_crop=True, do_normalize=True, do_resize=True, size=16,
            image_mean=[0.5] * 3, image_std=[0.5] * 3,
        ),
    }  # fmt: skip
    return parts, {"prompt": "a dog", "negative_prompt": "snow", "prior_num_inference_steps": 2}


def _long_tokenizer() -> Any:
    found = tokenizer()
    found.model_max_length = 77
    # An empty prompt has no token here, and a mean over none is none.
    found.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <end>", special_tokens=[("<end>", 9)]
    )
    return found


def _kandinsky_3(name: str) -> Parts:
    network = diffusers.Kandinsky3UNet(
        in_channels=4, time_embedding_dim=4, groups=2, attention_head_dim=4, layers_per_block=3,
        block_out_channels=(16, 32), cross_attention_dim=4, encoder_hid_dim=8,
    )  # fmt: skip
    whole = torch.ones(1, 5, dtype=torch.long)
    call = by_embeds(8) | {"attention_mask": whole, "negative_attention_mask": whole}
    parts = {
        "unet": filled(network), "movq": _movq(), "text_encoder": None, "tokenizer": None,
        "scheduler": diffusers.DDIMScheduler(clip_sample=False, steps_offset=1),
    }  # fmt: skip
    return parts, call


def _paella() -> Any:
    from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel

    torch.manual_seed(0)
    network = PaellaVQModel(
        bottleneck_blocks=1, num_vq_embeddings=2, levels=2, embed_dim=8, latent_channels=4
    )
    network.out_block[0].weight.data *= 20
    return filled(network)


def _wuerstchen(name: str) -> Parts:
    from diffusers.pipelines.deprecated.wuerstchen import WuerstchenDiffNeXt, WuerstchenPrior

    text = clip()
    prior = WuerstchenPrior(c_in=2, c=8, depth=2, c_cond=8, c_r=8, nhead=2)
    decoder = WuerstchenDiffNeXt(
        c_cond=8, c_hidden=[16], nhead=[-1], blocks=[4], level_config=["CT"], clip_embd=8,
        inject_effnet=[False], effnet_embd=2, c_r=8,
    )  # fmt: skip
    parts = {
        "tokenizer": tokenizer(), "text_encoder": text, "decoder": filled(decoder),
        "vqgan": _paella(), "prior_tokenizer": tokenizer(), "prior_text_encoder": text,
        "prior_prior": filled(prior), "scheduler": diffusers.DDPMWuerstchenScheduler(),
        "prior_scheduler": diffusers.DDPMWuerstchenScheduler(),
    }  # fmt: skip
    return parts, {"prompt": "a dog", "prior_num_inference_steps": 2, "height": 128, "width": 128}


def _cascade(name: str) -> Parts:
    text = clip(projection=True)
    prior = diffusers.StableCascadeUNet(
        conditioning_dim=8, block_out_channels=(8,), num_attention_heads=(2,),
        down_num_layers_per_block=(1,), up_num_layers_per_block=(1,), clip_image_in_channels=8,
        clip_text_in_channels=8, clip_text_pooled_in_channels=8, in_channels=4, out_channels=4,
        switch_level=[False], timestep_ratio_embedding_dim=8, down_blocks_repeat_mappers=(1,),
        up_blocks_repeat_mappers=(1,), block_types_per_layer=(
            ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),),
    )  # fmt: skip
    decoder = diffusers.StableCascadeUNet(
        in_channels=4, out_channels=4, conditioning_dim=8, block_out_channels=(8, 16),
        num_attention_heads=(-1, 2), down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1), down_blocks_repeat_mappers=(1, 1),
        up_blocks_repeat_mappers=(3, 3), clip_text_pooled_in_channels=8, effnet_in_channels=4,
        timestep_ratio_embedding_dim=8, kernel_size=3, dropout=(0.0, 0.0), self_attn=True,
        timestep_conditioning_type=("sca",), switch_level=None,
        block_types_per_layer=(
            ("SDCascadeResBlock", "SDCascadeTimestepBlock"),
            ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
        ),
    )  # fmt: skip
    parts = {
        "tokenizer": tokenizer(), "text_encoder": text, "decoder": filled(decoder),
        "vqgan": _paella(), "prior_tokenizer": tokenizer(), "prior_text_encoder": text,
        "prior_prior": filled(prior), "scheduler": diffusers.DDPMWuerstchenScheduler(),
        "prior_scheduler": diffusers.DDPMWuerstchenScheduler(),
        "prior_feature_extractor": None, "prior_image_encoder": None,
    }  # fmt: skip
    return parts, {"prompt": "a dog", "prior_num_inference_steps": 2, "height": 128, "width": 128}


def _pixart(name: str) -> Parts:
    parts = dict(tiny("pixart").components)
    return parts, {"prompt": "a dog", "pag_applied_layers": ["0"]}


def _sana(name: str) -> Parts:
    network = diffusers.SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=4, num_layers=1,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8,
        caption_channels=8, sample_size=8,
    )  # fmt: skip
    decoder = diffusers.AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1), encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)), decoder_norm_types=["rms_norm"] * 2,
        decoder_act_fns=["silu"] * 2, scaling_factor=0.5, downsample_block_type="conv",
        upsample_block_type="interpolate",
    )  # fmt: skip
    parts = {"transformer": filled(network), "vae": decoder.eval(), "scheduler": Flow(shift=3.0),
             "text_encoder": None, "tokenizer": None}  # fmt: skip
    layers = ["transformer_blocks.0"]
    return parts, by_embeds(8, mask=True) | {
        "pag_applied_layers": layers,
        "height": 32,
        "width": 32,
    }


def _auraflow(name: str) -> Parts:
    network = diffusers.AuraFlowTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1,
        attention_head_dim=8, num_attention_heads=2, joint_attention_dim=8,
        caption_projection_dim=16, pos_embed_max_size=64,
    )  # fmt: skip
    parts = {"transformer": filled(network), "vae": vae(), "scheduler": Flow(shift=1.7),
             "text_encoder": None, "tokenizer": None}  # fmt: skip
    return parts, by_embeds(8, mask=True)


def _flux(name: str) -> Parts:
    parts = dict(tiny("flux").components)
    common: dict[str, Any] = {
        "patch_size": 1, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": 16, "pooled_projection_dim": 8,
        "axes_dims_rope": (4, 4, 8), "guidance_embeds": True,
    }  # fmt: skip
    if "ControlNet" in name:
        parts["controlnet"] = filled(diffusers.FluxControlNetModel(in_channels=16, **common))
    elif "Control" in name:
        parts["transformer"] = filled(
            diffusers.FluxTransformer2DModel(in_channels=32, out_channels=16, **common)
        )
    call = {"prompt": "a dog", "_auto_resize": False, "max_area": 256}
    return parts, call


def _flux_2_autoencoder() -> Any:
    network = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4,
        sample_size=16, layers_per_block=1,
    )  # fmt: skip
    network.decoder.conv_out.weight.data *= 20
    network.bn.running_mean.copy_(torch.linspace(-0.2, 0.2, 16))
    network.bn.running_var.copy_(torch.linspace(0.8, 1.4, 16))
    return network.eval()


def _flux_2(name: str) -> Parts:
    network = diffusers.Flux2Transformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4), guidance_embeds="Klein" not in name,
    )  # fmt: skip
    parts = {"transformer": filled(network), "vae": _flux_2_autoencoder(), "scheduler": Flow(),
             "text_encoder": None, "tokenizer": None}  # fmt: skip
    return parts, by_embeds(16)


def _chroma(name: str) -> Parts:
    network = diffusers.ChromaTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8, approximator_hidden_dim=16, approximator_layers=1,
    )  # fmt: skip
    parts = {
        "transformer": filled(network), "vae": vae(shift_factor=0.1, scaling_factor=1.3),
        "scheduler": Flow(), "text_encoder": None, "tokenizer": None,
    }  # fmt: skip
    whole = torch.ones(1, 5)
    masks = {"prompt_attention_mask": whole, "negative_prompt_attention_mask": whole}
    return parts, by_embeds(16) | masks


def _ovis(name: str) -> Parts:
    network = diffusers.OvisImageTransformer2DModel(
        patch_size=1, in_channels=16, out_channels=16, num_layers=1, num_single_layers=1,
        attention_head_dim=16, num_attention_heads=2, joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    parts = {
        "transformer": filled(network), "vae": vae(shift_factor=0.1, scaling_factor=1.3),
        "scheduler": Flow(), "text_encoder": None, "tokenizer": None,
    }  # fmt: skip
    return parts, by_embeds(16)


def _lumina(name: str) -> Parts:
    if "2" in name:
        network: nn.Module = diffusers.Lumina2Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, hidden_size=24, num_layers=1,
            num_refiner_layers=1, num_attention_heads=3, num_kv_heads=1, multiple_of=16,
            axes_dim_rope=(4, 2, 2), axes_lens=(64, 32, 32), cap_feat_dim=8,
        )  # fmt: skip
    else:
        network = diffusers.LuminaNextDiT2DModel(
            sample_size=8, patch_size=2, in_channels=4, hidden_size=24, num_layers=1,
            num_attention_heads=3, num_kv_heads=1, multiple_of=16, cross_attention_dim=8,
        )  # fmt: skip
    parts = {
        "transformer": filled(network), "vae": vae(shift_factor=0.1, scaling_factor=1.3),
        "scheduler": Flow(), "text_encoder": None, "tokenizer": None,
    }  # fmt: skip
    return parts, by_embeds(8, mask=True)


def _cogview(name: str) -> Parts:
    common: dict[str, Any] = {
        "patch_size": 2, "in_channels": 8 if "Control" in name else 4, "num_layers": 1,
        "attention_head_dim": 8, "num_attention_heads": 2, "out_channels": 4, "text_embed_dim": 8,
        "time_embed_dim": 8, "condition_dim": 2, "pos_embed_max_size": 8, "sample_size": 8,
    }  # fmt: skip
    if "3" in name:
        network: nn.Module = diffusers.CogView3PlusTransformer2DModel(**common)
        scheduler: Any = diffusers.CogVideoXDDIMScheduler(clip_sample=False)
    else:
        network = diffusers.CogView4Transformer2DModel(**common, rope_axes_dim=(8, 8))
        scheduler = Flow(base_shift=0.25, max_shift=0.75, base_image_seq_len=256,
                         use_dynamic_shifting=True, time_shift_type="linear")  # fmt: skip
    parts = {"transformer": filled(network), "vae": vae(), "scheduler": scheduler,
             "text_encoder": None, "tokenizer": None}  # fmt: skip
    return parts, by_embeds(8)


def _glm(name: str) -> Parts:
    network = diffusers.GlmImageTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8,
        num_attention_heads=2, text_embed_dim=8, time_embed_dim=8, condition_dim=2,
        prior_vq_quantizer_codebook_size=16,
    )  # fmt: skip
    decoder = vae(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.1, 0.9, 1.0, 1.2])
    parts = {
        "transformer": filled(network), "vae": decoder, "scheduler": Flow(),
        "text_encoder": None, "tokenizer": None, "processor": None,
        "vision_language_encoder": None,
    }  # fmt: skip
    tokens = torch.arange(16)[None] % 16
    return parts, by_embeds(8) | {"prior_token_ids": tokens}


def _qwen(name: str) -> Parts:
    parts = dict(tiny("qwen").components) | {"processor": None, "text_encoder": STANDS_IN}
    if "ControlNet" in name:
        network = diffusers.QwenImageControlNetModel(
            patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=16, axes_dims_rope=(8, 4, 4),
        )  # fmt: skip
        parts["controlnet"] = filled(network)
    call = by_embeds(16, mask=True) | {"resolution": 640, "layers": 2}
    parts["instead"] = {"get_image_caption": lambda *_, **__: "a dog"}
    return parts, call


def _qwen_21(name: str) -> Parts:
    network = diffusers.QwenImage21Transformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=16,
        num_attention_heads=2, context_in_dim=16, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    decoder = diffusers.AutoencoderKLQwenImage21(
        base_dim=8, decoder_base_dim=8, z_dim=4, dim_mult=[1] * 5, num_res_blocks=1,
        temperal_downsample=[False, True, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.1, 0.9, 1.0, 1.2],
    )  # fmt: skip
    parts = {"transformer": filled(network), "vae": decoder.eval(), "scheduler": Flow(),
             "text_encoder": None, "processor": _Processor()}  # fmt: skip
    return parts, by_embeds(16, mask=True) | {"height": 64, "width": 64}


class _Processor:
    """What stands for the processor of a vision-language model: it is asked for lengths alone."""

    tokenizer = SimpleNamespace(encode=lambda text: [0])

    def apply_chat_template(self, messages: Any, **_: Any) -> list[list[int]]:
        return [[0]]


def z_image_transformer(**changes: Any) -> Any:
    torch.manual_seed(0)
    return filled(diffusers.ZImageTransformer2DModel(**{
        "all_patch_size": (2,), "all_f_patch_size": (1,), "in_channels": 4, "dim": 32,
        "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 16,
        "axes_dims": [8, 4, 4], "axes_lens": [64, 32, 32], **changes,
    }))  # fmt: skip


def _z_image(name: str) -> Parts:
    parts: dict[str, Any] = {
        "transformer": z_image_transformer(), "scheduler": Flow(shift=3.0),
        "vae": vae(shift_factor=0.1, scaling_factor=1.3), "text_encoder": None, "tokenizer": None,
        "siglip": None, "siglip_processor": None,
    }  # fmt: skip
    if "ControlNet" in name:
        parts["controlnet"] = filled(diffusers.ZImageControlNetModel(
            control_layers_places=[0], control_refiner_layers_places=[0],
            add_control_noise_refiner="control_layers",
            control_in_dim=9 if "Inpaint" in name else 4, all_patch_size=(2,),
            all_f_patch_size=(1,), dim=32, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
        ))  # fmt: skip
    call: dict[str, Any] = {
        "prompt_embeds": [embeds(16)[0]], "negative_prompt_embeds": [embeds(16, seed=12)[0]],
    }  # fmt: skip
    if "Omni" in name:
        parts["transformer"] = z_image_transformer(siglip_feat_dim=8)
        call = {k: [v] for k, v in call.items()}
    return parts, call


def _prx(name: str) -> Parts:
    network = diffusers.PRXTransformer2DModel(
        in_channels=4, patch_size=2, context_in_dim=8, hidden_size=16, num_heads=2, depth=1,
        axes_dim=[4, 4],
    )  # fmt: skip
    parts = {
        "transformer": filled(network), "vae": vae(shift_factor=0.1, scaling_factor=1.3),
        "scheduler": Flow(), "text_encoder": None, "tokenizer": None, "default_sample_size": 16,
    }  # fmt: skip
    return parts, by_embeds(8, mask=True)


def _krea(name: str) -> Parts:
    network = diffusers.Krea2Transformer2DModel(
        in_channels=16, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=16, timestep_embed_dim=16, text_hidden_dim=16,
        num_text_layers=2, text_num_attention_heads=2, text_num_key_value_heads=2,
        text_intermediate_size=16, num_layerwise_text_blocks=1, num_refiner_text_blocks=1,
        axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    parts = dict(tiny("qwen").components) | {"transformer": filled(network)}
    call = by_embeds(16, mask=True)
    for key in ("prompt_embeds", "negative_prompt_embeds"):
        call[key] = call[key][:, :, None].repeat(1, 1, 2, 1)
    return parts, call


def _nucleus(name: str) -> Parts:
    network = diffusers.NucleusMoEImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, axes_dims_rope=(8, 4, 4), mlp_ratio=2.0,
        moe_enabled=False,
    )  # fmt: skip
    parts = dict(tiny("qwen").components) | {"transformer": filled(network), "processor": None}
    return parts, by_embeds(16, mask=True)


def _ideogram(name: str) -> Parts:
    network = diffusers.Ideogram4Transformer2DModel(
        in_channels=16, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        intermediate_size=16, adaln_dim=16, llm_features_dim=16, mrope_section=(4, 2, 2),
    )  # fmt: skip
    parts = {
        "transformer": filled(network), "unconditional_transformer": network,
        "vae": _flux_2_autoencoder(), "scheduler": Flow(), "text_encoder": STANDS_IN,
        "tokenizer": _Words(),
        "instead": {"_get_text_encoder_hidden_states": lambda *_: [embeds(16, 8)]},
    }  # fmt: skip
    return parts, {"prompt": "a dog", "guidance_scale": 3.0, "guidance_schedule": None}


class _Words:
    """What stands for a tokenizer of chats."""

    def apply_chat_template(self, messages: Any, **_: Any) -> str:
        return str(messages[0]["content"][0]["text"])

    def __call__(self, text: str, **_: Any) -> dict[str, Tensor]:
        return {"input_ids": torch.zeros(1, 5, dtype=torch.long)}


def _kolors(name: str) -> Parts:
    parts, call = _stable_diffusion_xl(name)
    parts = parts | {"text_encoder": None, "tokenizer": None}
    return parts, call | by_embeds(16)


def _helios(name: str) -> Parts:
    network = diffusers.HeliosTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4,
        out_channels=4, text_dim=8, freq_dim=16, ffn_dim=16, num_layers=1, rope_dim=(4, 4, 4),
        has_multi_term_memory_patch=True, guidance_cross_attn=True,
    )  # fmt: skip
    stages = 3 if "Pyramid" in name else 1
    parts = dict(tiny("wan").components) | {
        "transformer": filled(network),
        "scheduler": diffusers.HeliosScheduler(stages=stages, scheduler_type="unipc"),
    }  # fmt: skip
    call = by_embeds(8) | {"num_frames": 5, "num_latent_frames_per_chunk": 3,
                           "history_sizes": [4, 2, 1]}  # fmt: skip
    if stages > 1:
        call |= {"height": 64, "width": 64}
    return parts, call


def _ltx(name: str) -> Parts:
    network = diffusers.LTXVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8,
        cross_attention_dim=16, num_layers=1, caption_channels=8,
    )  # fmt: skip
    decoder = diffusers.AutoencoderKLLTXVideo(
        latent_channels=4, block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        layers_per_block=(1, 1), decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, False), decoder_spatio_temporal_scaling=(True, False),
        decoder_inject_noise=(False,) * 3, upsample_residual=(False, False),
        upsample_factor=(1, 1), timestep_conditioning=False, patch_size=1, patch_size_t=1,
        down_block_types=("LTXVideoDownBlock3D",) * 2, encoder_causal=True, decoder_causal=False,
        downsample_type=("conv", "conv"),
    )  # fmt: skip
    decoder.decoder.conv_out.conv.weight.data *= 5
    parts = {"transformer": filled(network), "vae": decoder.eval(), "scheduler": Flow(),
             "text_encoder": None, "tokenizer": None}  # fmt: skip
    return parts, by_embeds(8, mask=True) | {"num_frames": 9, "height": 32, "width": 32}


def _ltx_2(name: str) -> Parts:
    """Videos with sound, each with a state of its own."""
    audio: dict[str, Any] = {
        "audio_in_channels": 4, "audio_out_channels": 4, "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 4, "audio_cross_attention_dim": 8,
    }  # fmt: skip
    network = diffusers.LTX2VideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8,
        cross_attention_dim=16, num_layers=1, caption_channels=16, rope_double_precision=False,
        rope_type="split", **audio,
    )  # fmt: skip
    decoder = diffusers.AutoencoderKLLTX2Video(
        latent_channels=4, block_out_channels=(8,), decoder_block_out_channels=(8,),
        layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,), decoder_inject_noise=(False, False),
        downsample_type=("spatiotemporal",), upsample_residual=(False,), upsample_factor=(1,),
        patch_size=1, decoder_causal=False, spatial_compression_ratio=2,
        temporal_compression_ratio=2, down_block_types=("LTX2VideoDownBlock3D",),
        upsample_type=("spatiotemporal",),
    )  # fmt: skip
    decoder.decoder.conv_out.conv.weight.data *= 5
    sound = diffusers.AutoencoderKLLTX2Audio(
        base_channels=4, ch_mult=(1,), num_res_blocks=1, resolution=32, latent_channels=2,
        mel_bins=8,
    )  # fmt: skip
    parts = {
        "transformer": filled(network), "vae": decoder.eval(), "audio_vae": sound.eval(),
        "scheduler": Flow(), "vocoder": StandsIn(lambda mel: mel.mean(-1)),
        "guider": LTX2Guidance(3.0, spatio_temporal_guidance_blocks=[0]),
        "audio_guider": LTX2Guidance(3.0, spatio_temporal_guidance_blocks=[0]),
    }  # fmt: skip
    if "25" in name:
        parts["diffusion_decoder"] = _Decodes(decoder)
    call: dict[str, Any] = {"num_frames": 5, "batch_size": 1, "dtype": torch.float32}
    for seed, start in ((11, ""), (12, "negative_")):
        call |= {
            f"{start}connector_prompt_embeds": embeds(16, seed=seed),
            f"{start}connector_audio_prompt_embeds": embeds(16, seed=seed + 2),
            f"{start}connector_attention_mask": torch.ones(1, 5, dtype=torch.long),
        }
    return parts, call


class _Decodes(nn.Module):
    """What stands for a decoder that draws noise: the one of the autoencoder."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.decoder, self.config, self.dtype = [autoencoder], autoencoder.config, torch.float32

    def decode(self, latents: Tensor, generator: Any = None, return_dict: bool = False) -> Any:
        return self.decoder[0].decode(latents, return_dict=False)


def _cosmos_3(name: str) -> Parts:
    network = diffusers.Cosmos3OmniTransformer(
        head_dim=16, hidden_size=32, intermediate_size=32, latent_channel=4, patch_latent_dim=16,
        num_attention_heads=2, num_hidden_layers=1, num_key_value_heads=1, vocab_size=16,
        rope_axes_dim=(4, 2, 2),
    )  # fmt: skip
    parts: dict[str, Any] = dict(tiny("wan").components) | {"transformer": filled(network)}
    parts["config"] = {"enable_safety_checker": False}
    call: dict[str, Any] = {
        "cond_input_ids": [1, 2, 3, 4], "uncond_input_ids": [5, 6], "num_frames": 5, "fps": 24.0,
    }  # fmt: skip
    if "Distilled" in name:
        parts["scheduler"] = Flow()
        parts["config"]["distilled_sigmas"] = [1.0, 0.75, 0.5, 0.25]
        call["guidance_scale"] = None
    return parts, call


def _wan_animate(name: str) -> Parts:
    from diffusers.models.transformers import transformer_wan_animate_2 as module
    from torch.nn.attention.flex_attention import create_block_mask
    from transformers import CLIPVisionConfig, CLIPVisionModel

    # Without a compiler, which takes minutes for what is a few numbers here.
    module.create_block_mask = lambda *args, _compile, **more: create_block_mask(*args, **more)
    network = diffusers.WanAnimate2Transformer3DModel(
        text_len=8, in_dim=12, dim=32, ffn_dim=16, freq_dim=16, text_dim=8, out_dim=4, num_heads=2,
        num_layers=1,
    )  # fmt: skip
    eye = CLIPVisionModel(CLIPVisionConfig(
        hidden_size=1280, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        image_size=224, patch_size=112,
    ))  # fmt: skip
    decoder = diffusers.AutoencoderKLWan(  # the network takes its factor for 8
        base_dim=16, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True], latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.1, 0.9, 1.0, 1.2],
    )  # fmt: skip
    parts = dict(tiny("wan").components) | {
        "transformer": filled(network), "image_encoder": eye.eval(), "vae": decoder.eval(),
        "scheduler": Flow(shift=3.0),
    }  # fmt: skip
    return parts, by_embeds(8) | {
        "height": 32, "width": 32,
        "prompt_ref_embeds": embeds(8, seed=15), "driving_video": [ROOM] * 5,
        "segment_frame_length": 5,
    }  # fmt: skip


def _without_parts(**parts: Any) -> Callable[[str], Parts]:
    """What is refused before any network is asked."""
    return lambda name: (parts, {})


def _wan(name: str) -> Parts:
    return dict(tiny("wan").components), by_embeds(8) | {"num_frames": 5}


def _anyflow(name: str) -> Parts:
    network = diffusers.AnyFlowTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=16, in_channels=4,
        out_channels=4, text_dim=8, freq_dim=16, ffn_dim=16, num_layers=1, rope_max_seq_len=32,
    )  # fmt: skip
    parts = dict(tiny("wan").components) | {
        "transformer": filled(network), "scheduler": diffusers.FlowMapEulerDiscreteScheduler(),
    }  # fmt: skip
    return parts, by_embeds(8) | {"num_frames": 5}


def _hidream(name: str) -> Parts:
    network = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1,
        attention_head_dim=8, num_attention_heads=2, caption_channels=[8, 8], text_emb_dim=16,
        num_routed_experts=2, num_activated_experts=1, axes_dims_rope=(4, 2, 2),
        max_resolution=(16, 16), llama_layers=[0, 1], force_inference_output=True,
    )  # fmt: skip
    parts: dict[str, Any] = {
        "transformer": filled(network), "vae": vae(shift_factor=0.1, scaling_factor=1.3),
        "scheduler": Flow(shift=3.0),
    }  # fmt: skip
    for end in ("", "_2", "_3", "_4"):
        parts |= {f"text_encoder{end}": None, f"tokenizer{end}": None}
    pooled = torch.randn(2, 1, 16, generator=torch.Generator().manual_seed(13))
    llama = torch.randn(2, 2, 1, 5, 8, generator=torch.Generator().manual_seed(14))
    call = {
        "prompt_embeds_t5": embeds(8), "negative_prompt_embeds_t5": embeds(8, seed=12),
        "prompt_embeds_llama3": llama[0], "negative_prompt_embeds_llama3": llama[1],
        "pooled_prompt_embeds": pooled[0], "negative_pooled_prompt_embeds": pooled[1],
    }  # fmt: skip
    return parts, call


def _flux_3(name: str) -> Parts:
    network = diffusers.Flux3Transformer2DModel(
        in_channels=16, cond_in_channels=16, num_layers=1, num_single_layers=1,
        attention_head_dim=16, num_attention_heads=2, joint_attention_dim=16,
        timestep_channels=16, axes_dims_rope=(4, 4, 4, 4), flow_map="Distilled" in name,
    )  # fmt: skip
    parts = {
        "transformer": filled(network), "vae": _flux_2_autoencoder(), "scheduler": Flow(shift=3.0)
    }  # fmt: skip
    return parts, by_embeds(16)


def _ernie(name: str) -> Parts:
    network = diffusers.ErnieImageTransformer2DModel(
        hidden_size=32, num_attention_heads=2, num_layers=1, ffn_hidden_size=32, in_channels=16,
        out_channels=16, text_in_dim=16, rope_axes_dim=(4, 6, 6),
    )  # fmt: skip
    parts = {
        "transformer": filled(network), "vae": _flux_2_autoencoder(), "scheduler": Flow(shift=3.0)
    }  # fmt: skip
    values = by_embeds(16)
    return parts, {key: [value[0]] for key, value in values.items() if value is not None}


def _anima(name: str) -> Parts:
    network = diffusers.CosmosTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1,
        mlp_ratio=2.0, text_embed_dim=16, adaln_lora_dim=4, max_size=(4, 16, 16),
        patch_size=(1, 2, 2), extra_pos_embed_type=None, concat_padding_mask=True,
    )  # fmt: skip
    conditioner = diffusers.AnimaTextConditioner(
        source_dim=16, target_dim=16, model_dim=16, num_layers=1, num_attention_heads=2,
        target_vocab_size=10, min_sequence_length=8,
    )  # fmt: skip
    parts = {
        "transformer": filled(network), "vae": tiny("qwen").vae, "scheduler": Flow(shift=3.0),
        "text_conditioner": filled(conditioner),
    }  # fmt: skip
    call: dict[str, Any] = {}
    for seed, start in ((11, ""), (12, "negative_")):
        call |= {
            f"{start}qwen_prompt_embeds": embeds(16, seed=seed),
            f"{start}qwen_attention_mask": torch.ones(1, 5, dtype=torch.long),
            f"{start}t5_input_ids": torch.arange(1, 6)[None] % seed,
            f"{start}t5_attention_mask": torch.ones(1, 5, dtype=torch.long),
        }
    return parts, call


def _hunyuan_video(name: str) -> Parts:
    network = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1,
        num_refiner_layers=1, mlp_ratio=2.0, text_embed_dim=16, text_embed_2_dim=8,
        image_embed_dim=8, rope_axes_dim=(4, 6, 6), target_size=16, task_type="t2v",
    )  # fmt: skip
    decoder = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(8, 16, 16), layers_per_block=1,
        spatial_compression_ratio=4, temporal_compression_ratio=4,
    )  # fmt: skip
    parts = {"transformer": filled(network), "vae": filled(decoder), "scheduler": Flow(shift=3.0)}
    call: dict[str, Any] = {"batch_size": 1, "num_frames": 5}
    for seed, start in ((11, ""), (12, "negative_")):
        call |= {
            f"{start}prompt_embeds": embeds(16, seed=seed),
            f"{start}prompt_embeds_2": embeds(8, seed=seed),
            f"{start}prompt_embeds_mask": torch.ones(1, 5, dtype=torch.long),
            f"{start}prompt_embeds_mask_2": torch.ones(1, 5, dtype=torch.long),
        }
    return parts, call


FAMILIES: tuple[tuple[str, Callable[[str], Parts]], ...] = (
    ("StableDiffusion3", _stable_diffusion_3),
    ("StableDiffusionXL", _stable_diffusion_xl),
    ("StableDiffusion", _stable_diffusion),
    ("LatentConsistency", _stable_diffusion),
    ("StableCascade", _cascade),
    ("IF", _deepfloyd),
    ("HunyuanDiT", _hunyuan),
    ("Kandinsky3", _kandinsky_3),
    ("Kandinsky", _kandinsky),
    ("Wuerstchen", _wuerstchen),
    ("PixArt", _pixart),
    ("Sana", _sana),
    ("AuraFlow", _auraflow),
    ("Flux2", _flux_2),
    ("Flux3", _flux_3),
    ("ErnieImage", _ernie),
    ("Anima", _anima),
    ("HunyuanVideo15", _hunyuan_video),
    ("MiniMaxMusic3", _without_parts(scheduler=Flow(), vocoder=nn.Identity())),
    ("MiniMaxH3", _without_parts(scheduler=diffusers.MiniMaxH3Scheduler())),
    ("Echo", _without_parts()),
    ("Cosmos3", _cosmos_3),
    ("Flux", _flux),
    ("Chroma", _chroma),
    ("Ovis", _ovis),
    ("Lumina", _lumina),
    ("CogView", _cogview),
    ("GlmImage", _glm),
    ("QwenImage21", _qwen_21),
    ("QwenImage", _qwen),
    ("ZImage", _z_image),
    ("PRX", _prx),
    ("Krea2", _krea),
    ("Nucleus", _nucleus),
    ("Ideogram4", _ideogram),
    ("Kolors", _kolors),
    ("Helios", _helios),
    ("LTX2", _ltx_2),
    ("LTX", _ltx),
    ("WanAnimate2", _wan_animate),
    ("Wan", _wan),
    ("AnyFlow", _anyflow),
    ("HiDream", _hidream),
    ("DiT", _dit),
    ("TextToVideoSD", _frames_in_batch),
)
"""What a class's name begins with, first come first served, and what its pipelines are made of."""


def classes() -> dict[str, list[type]]:
    """Classes of the installed diffusers by the list that they stand on."""
    lists = {
        "text to image": auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING,
        "image to image": auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
        "inpainting": auto_pipeline.AUTO_INPAINT_PIPELINES_MAPPING,
        "text to video": auto_pipeline.AUTO_TEXT2VIDEO_PIPELINES_MAPPING,
    }
    return {name: list(mapping.values()) for name, mapping in lists.items()}


def built(kind: type) -> tuple[Any, dict[str, Any]]:
    """A tiny pipeline of a class, the same at every call, and what it is called with."""
    name = kind.__name__
    torch.manual_seed(0)
    parts, values = next(make(name) for start, make in FAMILIES if name.startswith(start))
    wanted = inspect.signature(kind.__init__).parameters
    given = {k: v for k, v in (values | parts).items() if k in wanted}
    if "requires_safety_checker" in wanted:
        given["requires_safety_checker"] = False
    for part in ("safety_checker", "feature_extractor", "image_encoder", "watermarker"):
        if part in wanted:
            given.setdefault(part, None)
    module: Any = sys.modules[kind.__module__]
    areas = getattr(module, "calculate_dimensions", None)
    if areas is not None:  # Qwen-Image's editors work at a million pixels, whatever they are shown
        module.calculate_dimensions = lambda *args: (32, 32, *areas(*args)[2:])
    pipe: Any = kind(**given)
    for method, stands_in in parts.get("instead", {}).items():
        setattr(pipe, method, stands_in)
    pipe.set_progress_bar_config(disable=True)
    return pipe, call_of(kind, values)


COMMON: Mapping[str, Any] = {
    "num_inference_steps": 4, "height": 16, "width": 16, "strength": 0.8, "guidance_scale": 3.0,
    "true_cfg_scale": 3.0, "max_sequence_length": 8, "clean_caption": False,
    "use_resolution_binning": False, "image": ROOM, "mask_image": HALF, "control_image": ROOM,
    "control_mask": HALF, "prior_guidance_scale": 1.0,
}  # fmt: skip


def call_of(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call that a class takes."""
    takes = inspect.signature(kind.__call__).parameters  # type: ignore[operator]
    prompt = (
        {} if "prompt_embeds" in values or "prompt_embeds_t5" in values else {"prompt": "a dog"}
    )
    call = {k: v for k, v in {**COMMON, **prompt, **values}.items() if k in takes}
    if not _wants_image(kind):
        call.pop("image", None)
    return call


def _wants_image(kind: type) -> bool:
    """Whether a class is shown a picture; some take one if they are given it."""
    name = kind.__name__
    parameter = inspect.signature(kind.__call__).parameters.get("image")  # type: ignore[operator]
    optional = ("Flux2", "QwenImage21", "Helios", "GlmImage", "ZImageOmni")
    return parameter is not None and not name.startswith(optional)


# Modular pipelines

_NO_PICTURES = {
    f"{which}image_pad_mask": torch.zeros(1, 5, dtype=torch.bool) for which in ("", "negative_")
}
"""Where pictures stand among the tokens of a prompt."""

_COSMOS = ("text_encoder", "vae_encoder", "after_decode")
_LTX_2 = (
    "prompt_enhancer", "text_encoder", "duration", "vae_encoder", "condition_encoder",
    "reference_encoder",
)  # fmt: skip

MODULAR: Mapping[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "StableDiffusionXLModularPipeline": ("StableDiffusionXL", (), {"prompt": "a dog"}),
    "StableDiffusion3ModularPipeline": ("StableDiffusion3", (), {"prompt": "a dog"}),
    "FluxModularPipeline": ("Flux", (), {"prompt": "a dog"}),
    "FluxKontextModularPipeline": ("FluxKontext", (), {"prompt": "a dog", "image": ROOM}),
    "Flux2ModularPipeline": ("Flux2", ("text_encoder",), {}),
    "Flux2KleinModularPipeline": ("Flux2Klein", ("text_encoder",), {}),
    "Flux2KleinBaseModularPipeline": ("Flux2Klein", ("text_encoder",), {}),
    "QwenImageModularPipeline": ("QwenImage", ("text_encoder",), {}),
    "QwenImage21ModularPipeline": ("QwenImage21", ("text_encoder",), _NO_PICTURES),
    "QwenImage21TurboModularPipeline": ("QwenImage21", ("text_encoder",), _NO_PICTURES),
    "QwenImageEditModularPipeline": ("QwenImageEdit", ("text_encoder",), {"image": ROOM}),
    "QwenImageEditPlusModularPipeline": ("QwenImageEdit", ("text_encoder",), {"image": ROOM}),
    "QwenImageLayeredModularPipeline": ("QwenImageEdit", ("text_encoder",), {"image": ROOM}),
    "Krea2ModularPipeline": ("Krea2", ("text_encoder",), {}),
    "Krea2TurboModularPipeline": ("Krea2", ("text_encoder",), {}),
    "Ideogram4ModularPipeline": (
        "Ideogram4",
        ("prompt_upsample", "text_encoder"),
        {
            "text_features": embeds(16, 8),
            "text_lengths": torch.tensor([8]),
            "guidance_schedule": [3.0] * 4,
        },
    ),
    "Flux3ModularPipeline": ("Flux3", ("prompt_upsampler", "text_encoder"), {}),
    "Flux3DistilledModularPipeline": ("Flux3Distilled", ("prompt_upsampler", "text_encoder"), {}),
    "ErnieImageModularPipeline": ("ErnieImage", ("prompt_enhancer", "text_encoder"), {}),
    "AnimaModularPipeline": ("Anima", ("text_encoder",), {}),
    "HunyuanVideo15ModularPipeline": ("HunyuanVideo15", ("text_encoder",), {}),
    "MiniMaxMusic3ModularPipeline": ("MiniMaxMusic3", (), {}),
    "MiniMaxH3ModularPipeline": ("MiniMaxH3", (), {}),
    "EchoModularPipeline": ("Echo", (), {}),
    "Cosmos3OmniModularPipeline": ("Cosmos3", _COSMOS, {}),
    "Cosmos3DistilledModularPipeline": ("Cosmos3Distilled", _COSMOS[:2], {}),
    "LTX2ModularPipeline": ("LTX2", _LTX_2, {}),
    "LTX25ModularPipeline": ("LTX25", _LTX_2, {}),
    "WanAnimate2ModularPipeline": ("WanAnimate2", ("text_encoder",), {"image": ROOM}),
    "WanAnimate2DistilledModularPipeline": ("WanAnimate2", ("text_encoder",), {"image": ROOM}),
    "WanImage2VideoModularPipeline": (
        "WanImageToVideo",
        ("text_encoder", "image_encoder"),
        {"image": ROOM, "image_embeds": embeds(8, 4)},
    ),
    "Wan22VaceModularPipeline": ("Wan", ("text_encoder",), {}),
    "ZImageModularPipeline": ("ZImage", ("text_encoder",), {}),
    "LTXModularPipeline": ("LTX", ("text_encoder",), {}),
    "HeliosModularPipeline": ("Helios", ("text_encoder",), {}),
    "HeliosPyramidModularPipeline": ("HeliosPyramid", ("text_encoder",), {}),
    "HeliosPyramidDistilledModularPipeline": ("HeliosPyramid", ("text_encoder",), {}),
    "WanModularPipeline": ("Wan", ("text_encoder",), {}),
    "Wan22ModularPipeline": ("Wan", ("text_encoder",), {}),
    "Wan22Image2VideoModularPipeline": ("WanImageToVideo", ("text_encoder",), {"image": ROOM}),
}
"""By name: what its parts are taken from, which blocks are left out, and more of its call."""


def _told(network: Any) -> dict[str, Any]:
    """What a network was made with; without the list of defaults, which would be taken again."""
    return {key: value for key, value in network.config.items() if not key.startswith("_")}


def modular_classes() -> list[str]:
    """The modular pipelines of the installed diffusers."""
    ends = "ModularPipeline"
    return sorted(n for n in dir(diffusers) if n.endswith(ends) and n != ends)


def built_modular(name: str) -> tuple[Any, dict[str, Any]]:
    """A tiny modular pipeline and what it is called with."""
    family, without, more = MODULAR[name]
    torch.manual_seed(0)
    parts, values = next(make(family) for start, make in FAMILIES if family.startswith(start))
    if "Wan22" in name:
        parts["transformer_2"] = tiny("wan").transformer
    if "Vace" in name:
        config = {
            **_told(tiny("wan").transformer), "vace_layers": [0],
            "vace_in_channels": 2 * 4 + 4 * 4,
        }  # fmt: skip
        for part in ("transformer", "transformer_2"):
            parts[part] = filled(diffusers.WanVACETransformer3DModel.from_config(config))
    if "Image2Video" in name:  # latents, those of the picture, and which frames are it
        for part in ("transformer", "transformer_2"):
            config = {**_told(tiny("wan").transformer), "in_channels": 10}
            if "Wan22" not in name:
                config |= {"image_dim": 8, "added_kv_proj_dim": 32}
            parts[part] = filled(diffusers.WanTransformer3DModel.from_config(config))
    pipe = modular(name, parts, without)
    pipe.register_to_config(**parts.get("config", {}))
    takes = {each.name for each in pipe.blocks.inputs}
    call = {k: v for k, v in {**COMMON, "num_frames": 5, **values, **more}.items() if k in takes}
    for key in ("image", "mask_image", "control_image", "strength", "control_mode"):
        if key not in more:
            call.pop(key, None)
    outputs = {each.name for each in pipe.blocks.outputs}
    call["output"] = "videos" if "videos" in outputs else "images"
    return pipe, call
