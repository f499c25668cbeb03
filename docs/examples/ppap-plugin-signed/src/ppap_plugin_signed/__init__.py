"""What the plugin offers: a recipe. Imported at every start, so it imports nothing heavy."""

from ppap_host.plugins.hookspecs import Entry, hookimpl

ppap_interface = 1


@hookimpl
def ppap_recipes() -> list[Entry]:
    """The recipe, by name."""
    summary = "moves every pixel of x_0 by the same amount, up or down"
    return [Entry("signed", "ppap_plugin_signed.recipe:SIGNED", summary)]
