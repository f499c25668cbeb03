"""The guide ``classifier`` for ppap-host: any classifier of timm, torchvision, transformers."""

from __future__ import annotations

from ppap_host.plugins.hookspecs import Entry, hookimpl
from ppap_plugin_classifier import shipped

ppap_interface = 1


@hookimpl
def ppap_guides() -> list[Entry]:
    """The guide of this plugin."""
    return [
        Entry(
            "classifier",
            "ppap_plugin_classifier.guide:ClassifierGuide",
            "a class by name, or what an image is seen as (ResNet, ViT, ConvNeXt ...)",
        )
    ]


@hookimpl
def ppap_expert_sets() -> list[Entry]:
    """The expert sets whose files are there, the one to use by default first."""
    offered = []
    for count, path in (
        (5, shipped.shapes_5),
        (1, shipped.shapes_1),
        (2, shipped.shapes_2),
        (10, shipped.shapes_10),
    ):
        if path().exists():
            name = f"shapes-{count}"
            experts = "1 expert" if count == 1 else f"{count} experts"
            offered.append(
                Entry(
                    f"classifier-{name}",
                    f"ppap_plugin_classifier.shipped:{path.__name__}",
                    f"{experts} on the shipped classifier, for the built-in world",
                )
            )
    return offered
