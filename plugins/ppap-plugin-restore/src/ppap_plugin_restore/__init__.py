"""Guides for ppap-host that restore what a linear measurement has lost of a picture."""

from __future__ import annotations

from ppap_host.plugins.hookspecs import Entry, hookimpl

ppap_interface = 1


@hookimpl
def ppap_guides() -> list[Entry]:
    """The guides of this plugin, one for each measurement."""
    return [
        Entry(
            "super-resolution",
            "ppap_plugin_restore.guide:super_resolution",
            "a sharp image whose box average is a small picture",
        ),
        Entry(
            "inpainting",
            "ppap_plugin_restore.guide:inpainting",
            "an image with the known pixels of a picture (transparent or masked: unknown)",
        ),
        Entry(
            "deblur",
            "ppap_plugin_restore.guide:deblur",
            "a sharp image of which a picture is a Gaussian blur",
        ),
        Entry(
            "motion-deblur",
            "ppap_plugin_restore.guide:motion_deblur",
            "a sharp image of which a picture is blurred along a line",
        ),
        Entry(
            "colourise",
            "ppap_plugin_restore.guide:colourise",
            "a colour image with the luma of a grey picture",
        ),
    ]
