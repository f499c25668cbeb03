"""The backbone ``edm`` for ppap-host: diffusion models of NVlabs/edm."""

from __future__ import annotations

from ppap_host.files.weights import PublishedFile
from ppap_host.plugins.hookspecs import Entry, hookimpl

ppap_interface = 1


@hookimpl
def ppap_backbones() -> list[Entry]:
    """The backbone of this plugin."""
    return [
        Entry(
            "edm",
            "ppap_plugin_edm.backbone:EDMBackbone",
            "NVIDIA's EDM, VP, VE and iDDPM models (edm-*.pkl and baseline-*.pkl)",
        )
    ]


@hookimpl
def ppap_weights() -> list[PublishedFile]:
    """The files that were published for these models."""
    from ppap_plugin_edm.published import PUBLISHED

    return list(PUBLISHED)
