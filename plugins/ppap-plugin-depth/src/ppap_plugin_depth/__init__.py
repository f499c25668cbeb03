"""The guide ``depth`` for ppap-host: monocular depth by DPT, Depth Anything and their kin."""

from __future__ import annotations

from ppap_host.hookspecs import Entry, hookimpl

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
