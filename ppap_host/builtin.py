"""What the host itself offers, registered through the same hooks as any plugin's things."""

from __future__ import annotations

from ppap_host.hookspecs import INTERFACE, Entry, hookimpl

ppap_interface = INTERFACE


@hookimpl
def ppap_backbones() -> list[Entry]:
    """The built-in world's diffusion model, and diffusers' pipelines."""
    return [
        Entry(
            "shapes",
            "ppap_host.shapes.backbone:ShapesBackbone",
            "rooms with coloured solids, 64 x 64, reads captions; ships with the host",
        ),
        Entry(
            "diffusers",
            "ppap_host.pipelines.backbone:load",
            "a pipeline of diffusers (Stable Diffusion, SDXL, SD 3, PixArt, ...) by --checkpoint",
        ),
    ]


@hookimpl
def ppap_recipes() -> list[Entry]:
    """The host's presets."""
    return [
        Entry(
            "naive",
            "ppap_host.recipes:NAIVE",
            "gradient at x_t, as it is; an off-the-shelf guide fails here, an expert does not",
        ),
        Entry(
            "ppap",
            "ppap_host.recipes:PPAP",
            "gradient at x_t by the expert for its noise level (PPAP); needs an expert set",
        ),
        Entry(
            "x0",
            "ppap_host.recipes:X0",
            "gradient at the predicted x_0, held constant; no training, one guide call a step",
        ),
        Entry(
            "x0-through",
            "ppap_host.recipes:X0_THROUGH",
            "gradient at the predicted x_0, taken back through the backbone; twice the cost",
        ),
    ]
