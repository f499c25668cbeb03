"""The files that Meta has published, for ``ppap weights``.

Names are those of the backbones; sizes and digests stand where they are publicly known.
"""

from __future__ import annotations

from typing import Final

from ppap_host.files.weights import PublishedFile

PUBLISHED: Final[tuple[PublishedFile, ...]] = (
    PublishedFile(
        "dit-xl-2-256",
        "https://dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-256x256.pt",
        "DiT-XL-2-256x256.pt",
        "CC BY-NC 4.0",
        "DiT-XL/2: ImageNet, 256 x 256, by class",
        2_700_611_775,
        "9ec1876e4c03471bca126663a30e2d1b20610b6d2f87850a39a36f25cc685521",
        group="dit",
    ),
    PublishedFile(
        "dit-xl-2-512",
        "https://dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-512x512.pt",
        "DiT-XL-2-512x512.pt",
        "CC BY-NC 4.0",
        "DiT-XL/2: ImageNet, 512 x 512, by class",
        2_704_152_777,
        group="dit",
    ),
)
"""Both published networks."""
