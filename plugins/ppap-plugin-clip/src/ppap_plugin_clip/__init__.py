"""The guides ``clip`` and ``style`` for ppap-host: text, contents and style of images by CLIP."""

from __future__ import annotations

from ppap_host.plugins.hookspecs import Entry, hookimpl

ppap_interface = 1


@hookimpl
def ppap_guides() -> list[Entry]:
    """The guides of this plugin."""
    return [
        Entry(
            "clip",
            "ppap_plugin_clip.clip_guide:ClipGuide",
            "a text, or what an image shows, by CLIP (needs --model)",
        ),
        Entry(
            "style",
            "ppap_plugin_clip.style_guide:StyleGuide",
            "the style of an image, by CLIP's patch tokens (needs --model)",
        ),
    ]
