"""What the plugin offers: a guide. Imported at every start, so it imports nothing heavy."""

from ppap_host.plugins.hookspecs import Entry, hookimpl

ppap_interface = 1


@hookimpl
def ppap_guides() -> list[Entry]:
    """The guide, by name."""
    return [
        Entry(
            "palette",
            f"{__name__}.guide:PaletteGuide",
            "a colour palette, or the colours of a picture",
        )
    ]
