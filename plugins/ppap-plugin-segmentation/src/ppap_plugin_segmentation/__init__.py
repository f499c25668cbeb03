"""The guide ``segmentation`` for ppap-host: U-Net, DeepLabV3, SegFormer, Mask2Former and kin."""

from __future__ import annotations

from ppap_host.plugins.hookspecs import Entry, hookimpl
from ppap_plugin_segmentation.shipped import SHAPES_EXPERTS

ppap_interface = 1


@hookimpl
def ppap_guides() -> list[Entry]:
    """The guide of this plugin."""
    return [
        Entry(
            "segmentation",
            "ppap_plugin_segmentation.guide:SegmentationGuide",
            "same segments as an image, a label map or a class mask (U-Net, SegFormer)",
        )
    ]


@hookimpl
def ppap_expert_sets() -> list[Entry]:
    """The expert set for the shipped network, where it is there."""
    if not SHAPES_EXPERTS.is_file():
        return []
    return [
        Entry(
            "segmentation-shapes-5",
            "ppap_plugin_segmentation.shipped:shapes_experts",
            "5 experts on the shipped U-Net, for the built-in world",
        )
    ]
