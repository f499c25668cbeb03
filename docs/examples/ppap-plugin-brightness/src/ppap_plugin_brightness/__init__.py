"""The guide ``brightness`` for ppap-host: a mean colour, without any network weights."""

from __future__ import annotations

from ppap_host.plugins.hookspecs import Entry, hookimpl

ppap_interface = 1


@hookimpl
def ppap_guides() -> list[Entry]:
    """The guide of this plugin."""
    return [
        Entry(
            "brightness",
            "ppap_plugin_brightness.guide:BrightnessGuide",
            "same mean colour as a named colour, #rrggbb, or an image",
        )
    ]
