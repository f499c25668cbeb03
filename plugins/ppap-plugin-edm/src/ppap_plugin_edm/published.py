"""The files that NVIDIA has published with EDM, for ``ppap weights``.

Names are those of the files. Nobody seems to have published their sizes or digests.
"""

from __future__ import annotations

from typing import Final

from ppap_host.files.weights import PublishedFile

_STORE: Final = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/"
_IMAGES: Final = {
    "cifar10-32x32-uncond": "CIFAR-10, 32 x 32",
    "cifar10-32x32-cond": "CIFAR-10, 32 x 32, by class",
    "ffhq-64x64-uncond": "faces (FFHQ), 64 x 64",
    "afhqv2-64x64-uncond": "animals' faces (AFHQv2), 64 x 64",
    "imagenet-64x64-cond": "ImageNet, 64 x 64, by class",
}
_NETWORKS: Final = {"vp": "DDPM++", "ve": "NCSN++", "adm": "ADM"}


def _file(kind: str, images: str, network: str) -> PublishedFile:
    name = f"{kind}-{images}-{network}"
    folder, trained = ("baseline/", "baseline") if kind == "baseline" else ("", "EDM")
    return PublishedFile(
        name,
        f"{_STORE}{folder}{name}.pkl",
        f"{name}.pkl",
        "CC BY-NC-SA 4.0",
        f"{trained}: {_IMAGES[images]} ({_NETWORKS[network]})",
        group="edm",
    )


PUBLISHED: Final[tuple[PublishedFile, ...]] = (
    *(
        _file("edm", images, network)
        for images in _IMAGES
        if images != "imagenet-64x64-cond"
        for network in ("vp", "ve")
    ),
    _file("edm", "imagenet-64x64-cond", "adm"),
    _file("baseline", "cifar10-32x32-uncond", "vp"),
    _file("baseline", "cifar10-32x32-uncond", "ve"),
    _file("baseline", "imagenet-64x64-cond", "adm"),
)
"""EDM's own networks, and those of earlier papers that it compares itself with."""
