"""The guide ``depth`` for ppap-host: monocular depth by DPT, Depth Anything and their kin."""

from __future__ import annotations

from ppap_host.plugins.hookspecs import Entry, hookimpl
from ppap_plugin_depth import shipped

ppap_interface = 1


@hookimpl
def ppap_guides() -> list[Entry]:
    """The guide of this plugin."""
    return [
        Entry(
            "depth",
            "ppap_plugin_depth.guide:DepthGuide",
            "same depth as an image or a depth map (DPT, Depth Anything)",
        )
    ]


@hookimpl
def ppap_expert_sets() -> list[Entry]:
    """The expert set for the shipped network, where it is there."""
    if not shipped.shapes_5().exists():
        return []
    return [
        Entry(
            "depth-shapes-5",
            "ppap_plugin_depth.shipped:shapes_5",
            "5 experts on the shipped DPT, for the built-in world",
        )
    ]
