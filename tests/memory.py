"""What a guided step needs of memory, counted without any: the table of the documentation.

    python tests/memory.py docs/backbones/memory.md

builds published networks on the meta device, by their configurations, and follows every tensor that
a step makes: the denoiser, and the decoder and the guide with their gradient. ``--measure`` runs
the same on the CPU with random weights at a smaller size, and compares the count with what the
process really took.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ppap_host.pipelines.autoencoder import LentAutoencoder
from ppap_host.sampling.room import Counted

GB = 1e9


class _Attention(torch.autograd.Function):
    """Attention by a kernel that keeps no matrix of scores, as graphics cards have it."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        q, k, v, _ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


@contextmanager
def lean() -> Iterator[None]:
    """Attention without a matrix of scores where there is no kernel to choose, as on meta."""
    usual = F.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        if query.device.type == "meta":
            return _Attention.apply(query, key, value)
        return usual(query, key, value, *args, **kwargs)

    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = usual


@dataclass
class Model:
    """A published diffusion model.

    Attributes:
        size: of its pictures in pixels.
        cfg: states a step asks the denoiser for; two for classifier-free guidance.
        denoiser, encoders, autoencoder: make its networks.
        ask: asks the denoiser once, for so many states of a height and width in latents.
    """

    size: int
    cfg: int
    denoiser: Callable[[], nn.Module]
    encoders: Callable[[], list[nn.Module]]
    autoencoder: dict[str, Any]
    ask: Callable[[Any, Callable[..., Tensor], int, int], Any]


_BLOCKS: dict[str, Any] = dict(
    block_out_channels=(128, 256, 512, 512), layers_per_block=2,
    down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
)  # fmt: skip


def _clip(width: int, layers: int, projection: int, heads: int) -> nn.Module:
    config = transformers.CLIPTextConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=heads, projection_dim=projection,
    )  # fmt: skip
    return transformers.CLIPTextModelWithProjection(config)


def clip_l() -> nn.Module:
    return _clip(768, 12, 768, 12)


def clip_g() -> nn.Module:
    return _clip(1280, 32, 1280, 20)


def t5() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return transformers.T5EncoderModel(config)


def sd15() -> nn.Module:
    return diffusers.UNet2DConditionModel(
        sample_size=64, cross_attention_dim=768, attention_head_dim=8
    )


def sdxl() -> nn.Module:
    return diffusers.UNet2DConditionModel(
        sample_size=128, cross_attention_dim=2048, attention_head_dim=(5, 10, 20),
        block_out_channels=(320, 640, 1280), use_linear_projection=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10), addition_embed_type="text_time",
        addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
    )  # fmt: skip


def sd35() -> nn.Module:
    return diffusers.SD3Transformer2DModel(
        sample_size=128, num_layers=24, num_attention_heads=24, attention_head_dim=64,
        caption_projection_dim=1536, joint_attention_dim=4096, pooled_projection_dim=2048,
        pos_embed_max_size=384, qk_norm="rms_norm", dual_attention_layers=tuple(range(13)),
        out_channels=16, in_channels=16,
    )  # fmt: skip


def flux() -> nn.Module:
    return diffusers.FluxTransformer2DModel(guidance_embeds=True)


def _ask_sd(net: Any, some: Callable[..., Tensor], n: int, side: int) -> Any:
    return net(some(n, 4, side, side), some(n), encoder_hidden_states=some(n, 77, 768))


def _ask_sdxl(net: Any, some: Callable[..., Tensor], n: int, side: int) -> Any:
    added = {"text_embeds": some(n, 1280), "time_ids": some(n, 6)}
    text = some(n, 77, 2048)
    return net(some(n, 4, side, side), some(n), encoder_hidden_states=text, added_cond_kwargs=added)


def _ask_sd35(net: Any, some: Callable[..., Tensor], n: int, side: int) -> Any:
    return net(
        some(n, 16, side, side), encoder_hidden_states=some(n, 333, 4096),
        pooled_projections=some(n, 2048), timestep=some(n),
    )  # fmt: skip


def _ask_flux(net: Any, some: Callable[..., Tensor], n: int, side: int) -> Any:
    return net(
        hidden_states=some(n, side * side // 4, 64), encoder_hidden_states=some(n, 512, 4096),
        pooled_projections=some(n, 768), timestep=some(n), guidance=some(n),
        img_ids=some(side * side // 4, 3), txt_ids=some(512, 3),
    )  # fmt: skip


_FOUR = {**_BLOCKS, "latent_channels": 4, "scaling_factor": 0.18215, "force_upcast": False}
_SIXTEEN = {
    **_BLOCKS, "latent_channels": 16, "scaling_factor": 1.5, "shift_factor": 0.06,
    "use_quant_conv": False, "use_post_quant_conv": False, "force_upcast": False,
}  # fmt: skip
MODELS = {
    "Stable Diffusion 1.5": Model(512, 2, sd15, lambda: [clip_l()], _FOUR, _ask_sd),
    "Stable Diffusion XL": Model(1024, 2, sdxl, lambda: [clip_l(), clip_g()], _FOUR, _ask_sdxl),
    "Stable Diffusion 3.5 medium": Model(
        1024, 2, sd35, lambda: [clip_l(), clip_g(), t5()], _SIXTEEN, _ask_sd35
    ),
    "Flux.1 dev": Model(1024, 1, flux, lambda: [clip_l(), t5()], _SIXTEEN, _ask_flux),
}


def dpt_large() -> nn.Module:
    config = transformers.DPTConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
        image_size=384, backbone_out_indices=[5, 11, 17, 23], is_hybrid=False,
    )  # fmt: skip
    return transformers.DPTForDepthEstimation(config)


def depth_anything_small() -> nn.Module:
    seen = transformers.Dinov2Config(
        image_size=518, patch_size=14, hidden_size=384, num_hidden_layers=12, mlp_ratio=4,
        num_attention_heads=6, out_indices=[3, 6, 9, 12], apply_layernorm=True,
        reshape_hidden_states=False,
    )  # fmt: skip
    config = transformers.DepthAnythingConfig(
        backbone_config=seen,
        reassemble_hidden_size=384,
        neck_hidden_sizes=[48, 96, 192, 384],
        fusion_hidden_size=64,
    )
    return transformers.DepthAnythingForDepthEstimation(config)


GUIDES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "DPT-large": (dpt_large, 384),
    "Depth-Anything-small": (depth_anything_small, 518),
}
"""Guides, and the side of the pictures that they are shown."""


def size_of(*networks: nn.Module) -> int:
    """Bytes of weights."""
    return sum(t.numel() * t.element_size() for t in _tensors(*networks))


def _tensors(*networks: nn.Module) -> list[Tensor]:
    return [t for net in networks for t in (*net.parameters(), *net.buffers())]


def built(make: Callable[[], nn.Module], device: str, dtype: torch.dtype) -> nn.Module:
    """A network of no weights, or of whatever is in memory."""
    with torch.device(device):
        network = make()
    return network.to(dtype).requires_grad_(False).eval()


def guided(
    decoder: LentAutoencoder, guide: nn.Module, side: int, z: Tensor, shrink: int = 1
) -> Tensor:
    """The gradient of a guide's loss with respect to latents, as a guided step takes it."""
    with torch.enable_grad(), decoder.lent():
        z = z.requires_grad_()
        x = decoder.decode(F.avg_pool2d(z, shrink))
        seen = F.interpolate(x, (side, side), mode="bicubic", antialias=True)
        own = next(guide.parameters()).dtype
        loss = guide(seen.to(own)).predicted_depth.to(x.dtype).square().mean()
        (gradient,) = torch.autograd.grad(loss, z)
    return gradient


def peak(work: Callable[[], Any]) -> int:
    """Bytes that some work makes at most besides the weights."""
    gc.collect()
    with lean(), Counted() as counted:
        made = work()
        del made
    return counted.peak


def counted(
    model: Model, guide: Callable[[], nn.Module], side: int, size: int, dtype: torch.dtype
) -> dict[str, float]:
    """Gigabytes of one guided step of one picture."""
    net, eye = (built(make, "meta", dtype) for make in (model.denoiser, guide))
    encoders = [built(lambda one=one: one, "meta", dtype) for one in _on_meta(model.encoders)]
    vae = built(lambda: diffusers.AutoencoderKL(**model.autoencoder), "meta", dtype)

    def some(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta", dtype=dtype)

    def ask() -> Any:
        with torch.no_grad():
            return model.ask(net, some, model.cfg, size // 8)

    decoder, channels = LentAutoencoder(vae), model.autoencoder["latent_channels"]
    shape = (1, channels, size // 8, size // 8)
    latents = torch.empty(shape, device="meta", dtype=torch.float32)
    work = {
        "denoiser": peak(ask),
        "gradient": peak(lambda: guided(decoder, eye, side, latents)),
    }
    weights = size_of(net, vae, eye)
    return {
        "text encoders": size_of(*encoders) / GB,
        "weights": weights / GB,
        **{name: value / GB for name, value in work.items()},
        "all": (weights + size_of(*encoders) + max(work.values())) / GB,
        "offloaded": max(
            weights + work["denoiser"], size_of(vae, eye) + work["gradient"],
            size_of(eye) + max(size_of(one) for one in encoders),
        ) / GB,
    }  # fmt: skip


def views() -> list[str]:
    """Rows of what a guided step of Stable Diffusion 1.5 costs by how the guide sees it."""
    half = torch.float16
    vae = built(lambda: diffusers.AutoencoderKL(**_FOUR), "meta", half)
    net = built(sd15, "meta", half)
    tiny = built(diffusers.AutoencoderTiny, "meta", half)
    eye, side = built(depth_anything_small, "meta", half), 518

    def some(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta", dtype=half)

    def operations(work: Callable[[], Any]) -> float:
        with FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops() / 1e12

    with torch.no_grad():
        plain = operations(lambda: _ask_sd(net, some, 2, 64))
    rows = [f"| no guide | | {plain:.2f} | 1 |"]
    whole = 0.0
    for words, network, shrink in (
        ("the pipeline's decoder", vae, 1), ("`shrink=2`", vae, 2),
        ("`decoder=madebyollin/taesd`", tiny, 1), ("both", tiny, 2),
    ):  # fmt: skip

        def work(network: Any = network, shrink: int = shrink) -> Tensor:
            z = torch.empty(1, 4, 64, 64, device="meta")
            return guided(LentAutoencoder(network), eye, side, z, shrink)

        all_of_it = plain + operations(work)
        whole = whole or all_of_it
        memory = peak(work) / GB
        rows.append(f"| {words} | {memory:.2f} | {all_of_it:.2f} | {all_of_it / plain:.1f} |")
    for k, part in ((2, "half"), (4, "a quarter")):
        mean = (whole + (k - 1) * plain) / k
        words = f"its decoder, `--recipe x0:every={k}` or an `--interval` of {part} of the steps"
        rows.append(f"| {words}: the mean step | | {mean:.2f} | {mean / plain:.1f} |")
    return rows


def _on_meta(make: Callable[[], list[nn.Module]]) -> list[nn.Module]:
    with torch.device("meta"):
        return make()


def measured(size: int, name: str) -> tuple[float, float]:
    """(counted, really taken) gigabytes of a gradient in float32 besides the weights."""
    make, side = GUIDES[name]
    torch.set_num_threads(1)

    def on(device: str) -> tuple[LentAutoencoder, nn.Module]:
        vae = built(lambda: diffusers.AutoencoderKL(**_FOUR), device, torch.float32)
        return LentAutoencoder(vae), built(make, device, torch.float32)

    def latents(device: str, pixels: int) -> Tensor:
        return torch.zeros(1, 4, pixels // 8, pixels // 8, device=device)

    decoder, eye = on("meta")
    z = latents("meta", size)
    count = peak(lambda: guided(decoder, eye, side, z))
    decoder, eye = on("cpu")
    guided(decoder, eye, 56, latents("cpu", 64))  # loads what is loaded when it is first needed
    before = _taken("VmRSS")
    guided(decoder, eye, side, latents("cpu", size))
    return count / GB, (_taken("VmHWM") - before) / GB


_GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Memory that is free is no longer the process's, as torch's own on a graphics card."""


def _taken(key: str) -> int:
    """Bytes of this process's memory, now (VmRSS) or at most so far (VmHWM)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (line,) = (line for line in lines if line.startswith(key + ":"))
    return int(line.split()[1]) * 1024


HEAD = """# What fits in memory

Gigabytes (10⁹ bytes) for one guided step of one picture, with `--dtype bfloat16` and the recipe `x0`; in float32, the default, it is about twice as much. Nothing was measured on a graphics card: the networks were built on the meta device by their published configurations, and every tensor of a step was counted. What a card's driver and its kernels need for themselves comes on top, often half a gigabyte to one.

- **denoiser**: what one evaluation makes besides the weights, with classifier-free guidance where the model has it.
- **gradient**: what decoder and guide make, forwards and backwards; the decoder's blocks are computed again for the gradient.
- **all**: all weights are there, and the larger of the two.
- **offloaded**: with `--offload model`, where a network is there while it computes. The guide always is, and the decoder from the first guided step on.

| model | picture | guide | text encoders | other weights | denoiser | gradient | all | offloaded |
|---|---:|---|---:|---:|---:|---:|---:|---:|
"""  # noqa: E501

TAIL = """
**Is the count right?** What decoder and guide make besides their weights, in float32 on the CPU with random weights:

| guide | picture | counted | taken by the process | apart |
|---|---:|---:|---:|---:|
{rows}

## Cheaper views

Stable Diffusion 1.5 at 512 with Depth-Anything-small: what the gradient makes in memory besides weights, and the multiplications and additions of a whole step, by [how the guide sees the picture](diffusers.md#make-a-step-cheaper). Time follows the operations only roughly.

| the guide sees by | gradient, GB | 10¹² operations a step | of an unguided step |
|---|---:|---:|---:|
{views}

What these views cost in quality was not measured here.

In float16, an autoencoder whose configuration says `force_upcast` decodes in float32 for the guide, which doubles its gradient; in bfloat16 it does not.

**What makes it less**: `--offload model`, then `--offload sequential`; `--dtype bfloat16`; a smaller `--height` and `--width`; `--tiling`, which decodes a large picture in tiles; a [small decoder or half the resolution](diffusers.md#make-a-step-cheaper) for the guide; a smaller guide. Recipes that go back through the denoiser (`x0-through`, `dps` and their kin) need its activations as well, which are not counted here.

## Several images

A pipeline that makes several pictures at a time (`--batch 8`, or `num_images_per_prompt=8` under `ppap.steer`) asks its denoiser for all of them. The guide's gradient is taken of as many as fit. At the first guided step the gradient of one picture is taken alone and every tensor of it is counted; four fifths of what is free on the device, or in the machine, decide how many go together, in equal parts. `--batch` is the most that are. The report of `ppap.steer` says how many it were, and a record has them as `images_per_gradient`. The pictures differ by rounding alone, as with another `--batch`; where all fit, by nothing. The probe costs one gradient of one picture in every call.

This page is written by `nox -s memory`; the tests count one of its rows again.
"""  # noqa: E501


def row(model: str, guide: str, size: int | None = None) -> str:
    """A row of the table."""
    one, (make, side) = MODELS[model], GUIDES[guide]
    size = size or one.size
    found = counted(one, make, side, size, torch.bfloat16)
    keys = ("text encoders", "weights", "denoiser", "gradient", "all", "offloaded")
    cells = " | ".join(f"{found[key]:.1f}" for key in keys)
    return f"| {model} | {size} | {guide} | {cells} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the page, or measures one case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path, nargs="?")
    parser.add_argument("--measure", nargs=2, metavar=("SIZE", "GUIDE"))
    given = parser.parse_args(arguments)
    if given.measure:
        print(*measured(int(given.measure[0]), given.measure[1]))
        return
    lines = [row(model, guide) for model in MODELS for guide in GUIDES]
    checks = []
    for guide, size in (("DPT-large", 256), ("Depth-Anything-small", 384)):
        # Each in a process of its own: what was taken at most is never given back.
        told = subprocess.run(
            [sys.executable, __file__, "--measure", str(size), guide],
            check=True, capture_output=True, text=True, env={**os.environ, **_GIVES_BACK},
        ).stdout.split()  # fmt: skip
        count, taken = map(float, told[-2:])
        checks.append(
            f"| {guide} | {size} | {count:.2f} | {taken:.2f} | {abs(taken / count - 1):.0%} |"
        )
    text = (
        HEAD
        + "\n".join(lines)
        + "\n"
        + TAIL.format(rows="\n".join(checks), views="\n".join(views()))
    )
    given.page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
