"""The backbones ``dit-xl-2-256``, ``dit-xl-2-512`` and ``dit`` for ppap-host."""

from __future__ import annotations

from ppap_host.files.weights import PublishedFile
from ppap_host.plugins.hookspecs import Entry, hookimpl

ppap_interface = 1


@hookimpl
def ppap_backbones() -> list[Entry]:
    """The two published networks, and any other of the same kind."""
    return [
        Entry(
            "dit-xl-2-256",
            "ppap_plugin_dit.backbone:dit_xl_2_256",
            "DiT-XL/2 (Peebles and Xie), ImageNet classes, 256 x 256; needs --checkpoint",
        ),
        Entry(
            "dit-xl-2-512",
            "ppap_plugin_dit.backbone:dit_xl_2_512",
            "DiT-XL/2 (Peebles and Xie), ImageNet classes, 512 x 512; needs --checkpoint",
        ),
        Entry(
            "dit",
            "ppap_plugin_dit.backbone:dit",
            "any DiT that facebookresearch/DiT has trained; needs --checkpoint",
        ),
    ]


@hookimpl
def ppap_weights() -> list[PublishedFile]:
    """The files that were published for these models."""
    from ppap_plugin_dit.published import PUBLISHED

    return list(PUBLISHED)
