"""Trains a latent backbone of the built-in world, in the form of Stable Diffusion.

    python -m ppap_plugin_bench.train_latents --work training --autoencoder
    python -m ppap_plugin_bench.train_latents --work training
    python -m ppap_plugin_bench.train_latents --work training --export latent-shapes
    ppap run --backbone diffusers --checkpoint latent-shapes --prompt "a red sphere"

First a small autoencoder (Rombach et al., 2022, section 3.1, without its discriminator): 64 x 64
pixels become 4 x 16 x 16 latents. Then a U-Net on these with a small CLIP text encoder, by the loop
and the objective of :mod:`~ppap_host.shapes.train_backbone`, without a learned variance. Both can
be stopped and go on from where they were; the second takes several processes.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from ppap_host.files.models import from_pretrained
from ppap_host.pipelines.backbone import PipelineBackbone
from ppap_host.shapes.dataset import RenderedScenes
from ppap_host.shapes.model import IMAGE_SIZE, MAX_WORDS, TEXT_WIDTH
from ppap_host.shapes.renderer import render
from ppap_host.shapes.scenes import VOCABULARY, sample_scenes
from ppap_host.shapes.train_backbone import (
    HELD_OUT_SEED,
    Subject,
    arguments,
    launch,
)

CHANNELS, CELLS = 4, IMAGE_SIZE // 4
KL = 1e-6
"""Weight of the divergence from a standard normal (Rombach et al., 2022, appendix G)."""


def tokenizer() -> PreTrainedTokenizerFast:
    """Of the words of the built-in world."""
    words = ["<pad>", "<end>", "<unk>", *VOCABULARY]
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"[,.]"), "isolated"), pre_tokenizers.WhitespaceSplit()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<end>", unk_token="<unk>",
        model_max_length=MAX_WORDS,
    )  # fmt: skip


def tokens(captions: Sequence[str]) -> Tensor:
    """Of captions, int64 [b, MAX_WORDS]."""
    found: Tensor = tokenizer()(
        list(captions), padding="max_length", max_length=MAX_WORDS, truncation=True,
        return_tensors="pt",
    ).input_ids  # fmt: skip
    return found


def autoencoder() -> Any:
    """The untrained autoencoder."""
    return AutoencoderKL(
        block_out_channels=(32, 64, 64), layers_per_block=1, latent_channels=CHANNELS,
        norm_num_groups=16, sample_size=IMAGE_SIZE, down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
    )  # fmt: skip


class LatentNetworks(nn.Module):
    """What is trained together on latents: U-Net and text encoder, untrained."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(
            sample_size=CELLS, block_out_channels=(96, 160, 224), layers_per_block=1,
            norm_num_groups=16, attention_head_dim=4, cross_attention_dim=TEXT_WIDTH,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip
        words = tokenizer()
        self.text = CLIPTextModel(CLIPTextConfig(
            vocab_size=len(words), hidden_size=TEXT_WIDTH, intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=MAX_WORDS,
            bos_token_id=words.pad_token_id, eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        ))  # fmt: skip

    def forward(self, x: Tensor, timestep: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """The velocity, [b, 4, h, w], of noised latents; and zeros, for no variance is learned."""
        states = self.text(words)[0]
        velocity: Tensor = self.unet(x, timestep, encoder_hidden_states=states).sample
        return velocity, torch.zeros_like(velocity)


def pipeline(networks: LatentNetworks, vae: Any) -> Any:
    """Both as a pipeline of diffusers."""
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False,
        timestep_spacing="trailing",
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=vae, text_encoder=networks.text, tokenizer=tokenizer(), unet=networks.unet,
        scheduler=scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def subject(vae: Any, device: str) -> Subject:
    """What the loop of the pixel backbone trains in the latents of an autoencoder."""

    @torch.no_grad()
    def states(x: Tensor) -> Tensor:
        latents: Tensor = vae.encode(x.to(device)).latent_dist.mode().cpu()
        return latents * float(vae.config.scaling_factor)

    return Subject(
        "latents", LatentNetworks, tokens, (CHANNELS, CELLS, CELLS), states,
        lambda networks: PipelineBackbone(pipeline(networks, vae)),
    )  # fmt: skip


def train_autoencoder(args: argparse.Namespace) -> None:
    """Trains the autoencoder, goes on with one that was begun, and writes it to ``vae``.

    The loss is the mean absolute error plus the divergence from a standard normal.
    """
    data = RenderedScenes(args.work / "scenes", args.seed, args.scenes)
    torch.manual_seed(args.seed)
    vae, state_file, step = autoencoder().to(args.device), args.work / "vae-state.pt", 0
    optimiser = torch.optim.AdamW(vae.parameters(), lr=args.lr, weight_decay=0.0)
    if state_file.exists():
        state = torch.load(state_file, map_location=args.device, weights_only=True)
        vae.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        step = state["step"]
    stopped = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda caught, frame: stopped.append(caught))
    steps = max(args.images // args.batch, 1)
    while step < steps and not stopped:
        rng = np.random.Generator(np.random.Philox(key=args.seed, counter=[0, 0, 2, step]))
        torch.manual_seed(int(rng.integers(2**62)))
        x = data.images(rng.integers(0, len(data), args.batch), torch.device(args.device))
        for group in optimiser.param_groups:
            group["lr"] = args.lr * min((step + 1) / args.warmup, 1.0) * (1 - step / steps)
        with torch.autocast(x.device.type, torch.bfloat16, args.bfloat16):
            posterior = vae.encode(x).latent_dist
            error = (vae.decode(posterior.sample()).sample - x).abs().mean()
        optimiser.zero_grad(set_to_none=True)
        (error + KL * posterior.kl().mean()).backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        step += 1
        if step % 50 == 0 or step == steps:
            print({"step": step, "error": round(error.item(), 5)}, flush=True)
        if step % args.save_every == 0 or step == steps or stopped:
            state = {"model": vae.state_dict(), "optimiser": optimiser.state_dict(), "step": step}
            torch.save(state, state_file.with_suffix(".partial"))
            os.replace(state_file.with_suffix(".partial"), state_file)
    if step < steps:
        print(f"stopped at step {step}; the same command goes on from here", flush=True)
        return
    with torch.no_grad():
        known = render(sample_scenes(HELD_OUT_SEED, 0, 64)).rgb.to(args.device)
        spread = float(vae.encode(known).latent_dist.mode().std())
    vae.register_to_config(scaling_factor=1 / spread)
    vae.save_pretrained(args.work / "vae")


def main() -> None:
    """Command line of the training script."""
    parser = arguments(__doc__)
    parser.add_argument("--autoencoder", action="store_true", help="train this first")
    args = parser.parse_args()
    if args.autoencoder:
        train_autoencoder(args)
        return
    folder: Path = args.work / "vae"
    if not folder.is_dir():
        raise SystemExit(f"There is no autoencoder in {folder}: train it first, --autoencoder.")
    vae = from_pretrained(AutoencoderKL, folder, use_safetensors=True).to(args.device)
    trained = subject(vae.requires_grad_(False).eval(), args.device)
    if args.export is None:
        launch(args, trained)
        return
    networks = LatentNetworks()
    state = torch.load(trained.state_file(args.work), map_location="cpu", weights_only=True)
    networks.load_state_dict(state["average"])
    pipeline(networks, vae).to("cpu").save_pretrained(args.export)
    print(f"{args.export}: {state['seen']} images seen, {state['step']} steps")


if __name__ == "__main__":
    main()
