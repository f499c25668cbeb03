"""What the plugin offers: a recipe. Imported at every start, so it imports nothing heavy."""

from ppap_host.plugins.hookspecs import Entry, hookimpl

ppap_interface = 1


@hookimpl
def ppap_recipes() -> list[Entry]:
    """The recipe, by name."""
    return [Entry("signed", "ppap_plugin_signed.recipe:SIGNED", "moves all pixels of x_0 alike")]
