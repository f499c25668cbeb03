"""diffusers pipelines of tiny random networks, and a guide for what they make."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    AutoencoderTiny,
    ControlNetModel,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
    UniPCMultistepScheduler,
    WanTransformer3DModel,
    ZImageTransformer2DModel,
)
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.embeddings import IPAdapterTimeImageProjection
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
)

from ppap_host.guides.guide import Guide
from ppap_host.guides.targets import Given, Target

WORDS = ("<pad>", "<unk>", "a", "dog", "red", "cube", "in", "the", "snow", "<end>")
LENGTH = 8


class ContrastGuide(Guide):
    """How much brighter the left half is than the right one: no normalisation evens that out."""

    name = "contrast"
    default_scale = {"": 4.0}  # noqa: RUF012

    def __init__(self, model: str | None = None) -> None:
        self._network = nn.Identity()

    def network(self) -> nn.Module:
        return self._network

    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        self.size = size
        return Target(given.words, torch.tensor([float(given.words)]))

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def see(self, x: Tensor, level: object = None) -> Tensor:
        left, right = x.chunk(2, dim=3)
        return (left - right).mean(dim=(1, 2, 3))

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square()

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (student - teacher).square()

    def picture(self, output: Tensor) -> list[Image.Image]:
        return [Image.new("RGB", (1, 1)) for _ in output]

    def measure(self, output: Tensor, target: Tensor) -> dict[str, list[float]]:
        return {"error": (output - target).abs().tolist()}


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        model_max_length=LENGTH,
    )


def clip(projection: bool = False) -> nn.Module:
    config = CLIPTextConfig(
        vocab_size=len(WORDS), hidden_size=8, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=LENGTH, projection_dim=8,
        bos_token_id=0, eos_token_id=9, pad_token_id=0,
    )  # fmt: skip
    model: nn.Module = CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)
    return model.eval()


def t5(width: int = 16) -> nn.Module:
    config = T5Config(
        vocab_size=len(WORDS), d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2,
        pad_token_id=0, decoder_start_token_id=0,
    )  # fmt: skip
    model: nn.Module = T5EncoderModel(config).eval()
    return model


def vae(channels: int = 4, **settings: Any) -> AutoencoderKL:
    network = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=16,
        **settings,
    )
    # Untrained decoders make grey images.
    network.decoder.conv_out.weight.data *= 20
    return network.eval()


def tiny_decoder(channels: int = 4) -> Any:
    """An autoencoder of the kind of TAESD, twice as large as its latents."""
    torch.manual_seed(5)
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), latent_channels=channels,
    )  # fmt: skip


def unet(text: int, channels: int = 4, out: int | None = None, **settings: Any) -> nn.Module:
    network: nn.Module = UNet2DConditionModel(
        sample_size=8, in_channels=channels, out_channels=out or channels, layers_per_block=1,
        block_out_channels=(8, 16), norm_num_groups=4, cross_attention_dim=text,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=2, **settings,
    )  # fmt: skip
    return network.eval()


def pixel_ddpm(scheduler: Any = None) -> Any:
    network = UNet2DModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=4,
    )  # fmt: skip
    return diffusers.DDPMPipeline(network.eval(), scheduler or DDPMScheduler())


def stable_diffusion(scheduler: Any = None) -> Any:
    return diffusers.StableDiffusionPipeline(
        vae=vae(scaling_factor=0.7), text_encoder=clip(), tokenizer=tokenizer(), unet=unet(8),
        scheduler=scheduler or DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def stable_diffusion_xl(scheduler: Any = None) -> Any:
    network = unet(
        16, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=32,
    )  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.1, 0.9, 1.0, 1.2]),
        text_encoder=clip(), text_encoder_2=clip(projection=True), tokenizer=tokenizer(),
        tokenizer_2=tokenizer(), unet=network, add_watermarker=False,
        scheduler=scheduler or EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1),
    )  # fmt: skip


def deepfloyd_if(scheduler: Any = None) -> Any:
    return diffusers.IFPipeline(
        tokenizer=tokenizer(), text_encoder=t5(8), unet=unet(8, channels=3, out=6),
        scheduler=scheduler or DDPMScheduler(variance_type="learned_range"),
        safety_checker=None, feature_extractor=None, watermarker=None,
        requires_safety_checker=False,
    )  # fmt: skip


def pixart(scheduler: Any = None) -> Any:
    network = PixArtTransformer2DModel(
        sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=2,
        caption_channels=8, cross_attention_dim=16, in_channels=4, out_channels=8,
        norm_num_groups=4, use_additional_conditions=False,
    )  # fmt: skip
    return diffusers.PixArtSigmaPipeline(
        tokenizer=tokenizer(), text_encoder=t5(8), vae=vae(), transformer=network.eval(),
        scheduler=scheduler or DPMSolverMultistepScheduler(),
    )  # fmt: skip


def stable_diffusion_3(scheduler: Any = None) -> Any:
    network = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16,
        pooled_projection_dim=16, out_channels=4, pos_embed_max_size=8,
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=network.eval(),
        scheduler=scheduler or FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(shift_factor=0.1, scaling_factor=1.3), text_encoder=clip(projection=True),
        tokenizer=tokenizer(), text_encoder_2=clip(projection=True), tokenizer_2=tokenizer(),
        text_encoder_3=t5(16), tokenizer_3=tokenizer(),
    )  # fmt: skip


def flux(scheduler: Any = None) -> Any:
    """Packed latents: 2 x 2 patches of the autoencoder's as tokens."""
    network = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    return diffusers.FluxPipeline(
        scheduler=scheduler or FlowMatchEulerDiscreteScheduler(), transformer=network.eval(),
        vae=vae(shift_factor=0.1, scaling_factor=1.3), text_encoder=clip(), tokenizer=tokenizer(),
        text_encoder_2=t5(16), tokenizer_2=tokenizer(),
    )  # fmt: skip


def _statistics(channels: int) -> dict[str, list[float]]:
    return {
        "latents_mean": [0.1 * (k % 3 - 1) for k in range(channels)],
        "latents_std": [1.0 + 0.1 * (k % 4) for k in range(channels)],
    }


def _no_saturation(network: Any) -> Any:
    # These autoencoders clip, and no guide can move what is clipped.
    network.decoder.conv_out.weight.data *= 0.5
    return network.eval()


def qwen_image(scheduler: Any = None) -> Any:
    """Packed latents and an autoencoder for videos; its text encoder has no small form."""
    network = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    decoder = AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2, 2], num_res_blocks=1,
        temperal_downsample=[False, True], **_statistics(4),
    )  # fmt: skip
    return diffusers.QwenImagePipeline(
        scheduler=scheduler or FlowMatchEulerDiscreteScheduler(), vae=_no_saturation(decoder),
        text_encoder=None, tokenizer=None, transformer=network.eval(),
    )  # fmt: skip


def wan(scheduler: Any = None) -> Any:
    """Videos."""
    network = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=16, in_channels=4,
        out_channels=4, text_dim=8, freq_dim=16, ffn_dim=16, num_layers=1, rope_max_seq_len=32,
    )  # fmt: skip
    decoder = AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 2, 2], num_res_blocks=1,
        temperal_downsample=[False, True], scale_factor_temporal=2, scale_factor_spatial=4,
        **_statistics(4),
    )  # fmt: skip
    return diffusers.WanPipeline(
        tokenizer=tokenizer(), text_encoder=t5(8), vae=_no_saturation(decoder),
        scheduler=scheduler or UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        transformer=network.eval(),
    )  # fmt: skip


def control_net(scheduler: Any = None) -> Any:
    """Stable Diffusion with a control network."""
    pipe = stable_diffusion(scheduler)
    network = ControlNetModel.from_unet(
        pipe.unet, conditioning_embedding_out_channels=(8, 16), conditioning_channels=3
    )
    return diffusers.StableDiffusionControlNetPipeline(
        **pipe.components, controlnet=network.eval(), requires_safety_checker=False
    )


def inpainting(scheduler: Any = None) -> Any:
    """Stable Diffusion with a network that is shown mask and picture, 9 channels."""
    parts = stable_diffusion(scheduler).components | {"unet": unet(8, channels=9, out=4)}
    return diffusers.StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)


BUILDERS: dict[str, Callable[..., Any]] = {
    "ddpm": pixel_ddpm,
    "sd": stable_diffusion,
    "sdxl": stable_diffusion_xl,
    "if": deepfloyd_if,
    "pixart": pixart,
    "sd3": stable_diffusion_3,
}


STEERED: dict[str, Callable[..., Any]] = {
    **BUILDERS,
    "flux": flux,
    "qwen": qwen_image,
    "wan": wan,
    "controlnet": control_net,
    "inpainting": inpainting,
}


def tiny(name: str, scheduler: Any = None) -> Any:
    """A pipeline of random networks, the same at every call; zero layers are filled."""
    torch.manual_seed(0)
    pipe = STEERED[name](scheduler)
    generator = torch.Generator().manual_seed(1)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            for parameter in part.parameters():
                if not parameter.any():
                    parameter.data.normal_(std=0.05, generator=generator)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def filled(network: nn.Module) -> nn.Module:
    """A network of random weights, the same at every call, without layers of zeros."""
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        if not parameter.any():
            parameter.data.normal_(std=0.05, generator=generator)
    return network.eval()


def modular(name: str, components: dict[str, Any], without: tuple[str, ...] = ()) -> Any:
    """A modular pipeline of its family's own blocks, but for some.

    Args:
        name: of its class.
        components: those that it wants are taken.
        without: blocks that are left out, such as those that need a text encoder.
    """
    kind = getattr(diffusers, name)
    family = importlib.import_module(kind.__module__.rsplit(".", 1)[0])
    blocks = getattr(family, kind.default_blocks_name)()
    for block in without:
        blocks.sub_blocks.pop(block)
    pipe = blocks.init_pipeline()
    pipe.update_components(**{k: v for k, v in components.items() if k in pipe._component_specs})
    blocks_of = [pipe.blocks, *pipe.blocks.sub_blocks.values()]
    for block in blocks_of:
        if hasattr(block, "set_progress_bar_config"):
            block.set_progress_bar_config(disable=True)
    return pipe


EMBEDS = torch.randn(2, 1, 5, 16, generator=torch.Generator().manual_seed(11))
"""What stands for the states of a text encoder: of a prompt, and of the empty one."""
_SIZE: dict[str, Any] = {"height": 16, "width": 16, "num_inference_steps": 4, "output_type": "pt"}
_MASK = torch.ones(1, 5, dtype=torch.long)
_BY_EMBEDS = {"prompt_embeds": EMBEDS[0], "negative_prompt_embeds": EMBEDS[1]}


def _modular_wan(network: str) -> Any:
    parts = dict(tiny("wan").components) | {"transformer_2": tiny("wan").transformer}
    return modular(network, parts, ("text_encoder",))


def _modular_z_image() -> Any:
    torch.manual_seed(0)
    network = ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=4, dim=32, n_layers=1,
        n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16, axes_dims=[8, 4, 4],
        axes_lens=[64, 32, 32],
    )  # fmt: skip
    parts = {
        "transformer": filled(network), "vae": vae(shift_factor=0.1, scaling_factor=1.3),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }  # fmt: skip
    return modular("ZImageModularPipeline", parts, ("text_encoder",))


MODULAR: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "sdxl": (
        lambda: modular("StableDiffusionXLModularPipeline", tiny("sdxl").components),
        {"prompt": "a dog", "output": "images"},
    ),
    "sd3": (
        lambda: modular("StableDiffusion3ModularPipeline", tiny("sd3").components),
        {"prompt": "a dog", "output": "images", "max_sequence_length": 8},
    ),
    "flux": (
        lambda: modular("FluxModularPipeline", tiny("flux").components),
        {"prompt": "a dog", "output": "images", "max_sequence_length": 8},
    ),
    "qwen": (
        lambda: modular("QwenImageModularPipeline", tiny("qwen").components, ("text_encoder",)),
        {**_BY_EMBEDS, "prompt_embeds_mask": _MASK, "negative_prompt_embeds_mask": _MASK,
         "output": "images"},
    ),
    "z-image": (
        _modular_z_image,
        {"prompt_embeds": [EMBEDS[0][0]], "negative_prompt_embeds": [EMBEDS[1][0]],
         "output": "images"},
    ),
    "wan": (
        lambda: _modular_wan("WanModularPipeline"),
        {k: v[..., :8] for k, v in _BY_EMBEDS.items()} | {"num_frames": 5, "output": "videos"},
    ),
    "wan22": (
        lambda: _modular_wan("Wan22ModularPipeline"),
        {k: v[..., :8] for k, v in _BY_EMBEDS.items()} | {"num_frames": 5, "output": "videos"},
    ),
}  # fmt: skip
"""Modular pipelines, and what they are called with."""


def run_modular(pipe: Any, name: str, **changes: Any) -> Tensor:
    """The pictures or the frames of one call."""
    torch.manual_seed(7)
    generator = torch.Generator().manual_seed(3)
    made = pipe(**{**_SIZE, **MODULAR[name][1], "generator": generator, **changes})
    return torch.as_tensor(made)


def clip_vision(size: int = 16) -> Any:
    """What sees the pictures of an IP-Adapter."""
    torch.manual_seed(2)
    config = CLIPVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        image_size=size, patch_size=8, projection_dim=8,
    )  # fmt: skip
    return CLIPVisionModelWithProjection(config).eval()


def siglip_vision() -> Any:
    """The same of Stable Diffusion 3."""
    torch.manual_seed(2)
    config = SiglipVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        image_size=16, patch_size=8,
    )  # fmt: skip
    return SiglipVisionModel(config).eval()


def ip_adapter(network: Any, seen: int = 8) -> dict[str, Tensor]:
    """An IP-Adapter for a network, with the keys of the published files: four tokens a picture.

    Args:
        seen: numbers in what the image encoder says of a picture.
    """
    generator = torch.Generator().manual_seed(3)

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    if "SD3" in type(network).__name__:
        return _ip_adapter_of_sd3(network, seen)
    if "Flux" in type(network).__name__:
        text, width = network.config.joint_attention_dim, network.inner_dim
        start, key = "double_blocks.0.processor.ip_adapter_double_stream_", "ip_adapter_proj_model"
        return {
            f"{key}.proj.weight": some(4 * text, seen), f"{key}.proj.bias": some(4 * text),
            f"{key}.norm.weight": some(text), f"{key}.norm.bias": some(text),
            **{f"{start}{which}_proj.weight": some(width, text) for which in "kv"},
            **{f"{start}{which}_proj.bias": some(width) for which in "kv"},
        }  # fmt: skip
    text = network.config.cross_attention_dim
    found = {
        "image_proj.proj.weight": some(4 * text, seen), "image_proj.proj.bias": some(4 * text),
        "image_proj.norm.weight": some(text), "image_proj.norm.bias": some(text),
    }  # fmt: skip
    for number, (name, module) in enumerate(
        (n, network.get_submodule(n.removesuffix(".processor"))) for n in network.attn_processors
    ):
        if name.endswith("attn2.processor"):
            for key in ("to_k_ip", "to_v_ip"):
                width = module.to_q.out_features
                found[f"ip_adapter.{number}.{key}.weight"] = some(width, text) / 4
    return found


def _ip_adapter_of_sd3(network: Any, seen: int) -> dict[str, Tensor]:
    width, inner = 64, network.inner_dim
    torch.manual_seed(3)
    parts = {
        "image_proj": IPAdapterTimeImageProjection(
            embed_dim=seen, output_dim=inner, hidden_dim=width, heads=1, num_queries=4
        ),
        "ip_adapter.0": SD3IPAdapterJointAttnProcessor2_0(
            inner, inner, network.config.attention_head_dim, width
        ),
    }  # fmt: skip
    named = {f"{name}.{k}": v for name, part in parts.items() for k, v in part.state_dict().items()}
    return {name: value.clone() for name, value in named.items()}
