"""OpenAI's published diffusion models and noise-aware classifiers as parts of ppap-host."""

from __future__ import annotations

from ppap_host.files.weights import PublishedFile
from ppap_host.plugins.hookspecs import Entry, hookimpl

ppap_interface = 1

# By the names of `adm.PUBLISHED_ADM` and `glide.PUBLISHED_GLIDE`, which import torch.
_BACKBONES = {
    "adm": "any network of guided-diffusion, by its flags in <checkpoint>.json",
    "adm-64-cond": "ImageNet, 64 x 64, by class",
    "adm-128-cond": "ImageNet, 128 x 128, by class",
    "adm-256-cond": "ImageNet, 256 x 256, by class",
    "adm-256-uncond": "ImageNet, 256 x 256",
    "adm-512-cond": "ImageNet, 512 x 512, by class",
    "adm-64-256-upsampler": "enlarges ImageNet's 64 x 64 to 256 x 256, by class",
    "adm-128-512-upsampler": "enlarges ImageNet's 128 x 128 to 512 x 512, by class",
    "adm-lsun-bedroom": "LSUN's bedrooms, 256 x 256",
    "adm-lsun-cat": "LSUN's cats, 256 x 256",
    "adm-lsun-horse": "LSUN's horses, 256 x 256",
    "adm-lsun-horse-nodropout": "LSUN's horses, 256 x 256, trained without dropout",
    "glide": "reads prompts, 64 x 64 (GLIDE, filtered)",
    "glide-inpaint": "reads prompts and fills in images, 64 x 64",
    "glide-upsampler": "reads prompts and enlarges 64 x 64 to 256 x 256",
    "glide-inpaint-upsampler": "reads prompts, enlarges to 256 x 256 and fills in",
}


@hookimpl
def ppap_backbones() -> list[Entry]:
    """Every published diffusion model; each needs its file (--checkpoint)."""
    return [
        Entry(name, f"ppap_plugin_openai.named:{name.replace('-', '_')}", summary)
        for name, summary in _BACKBONES.items()
    ]


@hookimpl
def ppap_guides() -> list[Entry]:
    """The published noise-aware classifiers."""
    return [
        Entry(
            "adm-classifier",
            "ppap_plugin_openai.guide:ADMClassifierGuide",
            "an ImageNet class, by a classifier that was trained on noise; for the recipe naive",
        )
    ]


@hookimpl
def ppap_weights() -> list[PublishedFile]:
    """The files that were published for these models."""
    from ppap_plugin_openai.published import PUBLISHED

    return list(PUBLISHED)
