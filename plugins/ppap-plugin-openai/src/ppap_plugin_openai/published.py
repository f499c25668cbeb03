"""The files that OpenAI has published, for ``ppap weights``.

Names are those of the backbones; sizes and digests stand where they are publicly known.
"""

from __future__ import annotations

from typing import Final

from ppap_host.files.weights import PublishedFile

_STORE: Final = "https://openaipublic.blob.core.windows.net"


def _adm(
    name: str, file: str, summary: str, size: int | None = None, sha256: str | None = None
) -> PublishedFile:
    url = f"{_STORE}/diffusion/jul-2021/{file}"
    return PublishedFile(name, url, file, "MIT", summary, size, sha256, group="adm")


def _glide(name: str, file: str, summary: str) -> PublishedFile:
    url = f"{_STORE}/diffusion/dec-2021/{file}"
    return PublishedFile(name, url, file, "MIT", summary, group="glide")


def _gpt2(name: str, file: str, summary: str, size: int, sha256: str) -> PublishedFile:
    # In GLIDE's folder: its tokenizer looks for them beside the checkpoint.
    url = f"{_STORE}/gpt-2/encodings/main/{file}"
    return PublishedFile(name, url, file, "modified MIT", summary, size, sha256, group="glide")


PUBLISHED: Final[tuple[PublishedFile, ...]] = (
    _adm(
        "adm-64-cond",
        "64x64_diffusion.pt",
        "ADM: ImageNet, 64 x 64, by class",
        1_183_736_577,
        "a18558f9a2499615a3ff9759ad12299690ad36ee3378c395adbb94855e2b634f",
    ),
    _adm("adm-128-cond", "128x128_diffusion.pt", "ADM: ImageNet, 128 x 128, by class"),
    _adm(
        "adm-256-cond", "256x256_diffusion.pt", "ADM: ImageNet, 256 x 256, by class", 2_215_479_544
    ),
    _adm(
        "adm-256-uncond",
        "256x256_diffusion_uncond.pt",
        "ADM: ImageNet, 256 x 256",
        2_211_383_297,
        "a37c32fffd316cd494cf3f35b339936debdc1576dad13fe57c42399a5dbc78b1",
    ),
    _adm("adm-512-cond", "512x512_diffusion.pt", "ADM: ImageNet, 512 x 512, by class"),
    _adm("adm-64-256-upsampler", "64_256_upsampler.pt", "ADM: enlarges ImageNet's 64 x 64"),
    _adm("adm-128-512-upsampler", "128_512_upsampler.pt", "ADM: enlarges ImageNet's 128 x 128"),
    _adm("adm-lsun-bedroom", "lsun_bedroom.pt", "ADM: LSUN's bedrooms, 256 x 256"),
    _adm("adm-lsun-cat", "lsun_cat.pt", "ADM: LSUN's cats, 256 x 256"),
    _adm("adm-lsun-horse", "lsun_horse.pt", "ADM: LSUN's horses, 256 x 256"),
    _adm(
        "adm-lsun-horse-nodropout",
        "lsun_horse_nodropout.pt",
        "ADM: LSUN's horses, 256 x 256, trained without dropout",
    ),
    _adm(
        "adm-64-classifier",
        "64x64_classifier.pt",
        "guide adm-classifier for 64 x 64",
        261_889_658,
        "d5c4c240e4f0d36460f58520c2803a11490db7e5540e42d2ad75f0cf75bb3586",
    ),
    _adm("adm-128-classifier", "128x128_classifier.pt", "guide adm-classifier for 128 x 128"),
    _adm("adm-256-classifier", "256x256_classifier.pt", "guide adm-classifier for 256 x 256"),
    _adm("adm-512-classifier", "512x512_classifier.pt", "guide adm-classifier for 512 x 512"),
    _glide("glide", "base.pt", "GLIDE (filtered): reads prompts, 64 x 64"),
    _glide("glide-inpaint", "base_inpaint.pt", "GLIDE: reads prompts and fills in images"),
    _glide("glide-upsampler", "upsample.pt", "GLIDE: enlarges 64 x 64 to 256 x 256"),
    _glide(
        "glide-inpaint-upsampler", "upsample_inpaint.pt", "GLIDE: enlarges to 256 x 256, fills in"
    ),
    _gpt2(
        "glide-vocabulary",
        "encoder.json",
        "GLIDE: tokens of prompts (GPT-2's), with glide-merges",
        1_042_301,
        "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    ),
    _gpt2(
        "glide-merges",
        "vocab.bpe",
        "GLIDE: tokens of prompts (GPT-2's), with glide-vocabulary",
        456_318,
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    ),
)
"""Diffusion models, upsamplers, noise-aware classifiers, and GLIDE's vocabulary."""
