"""What the host itself offers, registered through the same hooks as any plugin's things."""

from __future__ import annotations

from ppap_host.plugins.hookspecs import INTERFACE, Entry, hookimpl

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
            "ppap_host.pipelines.loading:load",
            "a pipeline of diffusers (Stable Diffusion, SDXL, SD 3, PixArt, ...) by --checkpoint",
        ),
    ]


@hookimpl
def ppap_recipes() -> list[Entry]:
    """The host's presets."""
    return [
        Entry(name, f"ppap_host.recipes.presets:{value}", summary)
        for name, value, summary in (
            ("naive", "NAIVE", "gradient at x_t, as it is; an off-the-shelf guide fails here"),
            ("ppap", "PPAP", "gradient at x_t by the expert for its noise; needs an expert set"),
            ("x0", "X0", "gradient at the predicted x_0, held constant; no training, cheap"),
            ("x0-through", "X0_THROUGH", "as x0, but taken back through the backbone"),
            ("elucd", "ELUCD", "EluCD: smooth, tempered classifier at x_0, strength by a sine"),
            ("elucd-edm", "ELUCD_EDM", "EluCD's variant for EDM: at x_t, normalised"),
            ("dps", "DPS", "DPS: through the backbone, step size by the root of the loss"),
            ("freedom", "FREEDOM", "FreeDoM: through the backbone, steps repeated"),
            ("lgd-mc", "LGD_MC", "LGD-MC: through the backbone, averaged over noise around x_0"),
            ("mpgd", "MPGD", "MPGD: moves x_0 along its own gradient and keeps eps"),
            ("ugd", "UGD", "Universal Guidance: forward, backward by Adam, steps repeated"),
            ("tfg", "TFG", "TFG: all of the training-free parts, each with a strength"),
            ("adam-dps", "ADAM_DPS", "DPS with Adam's moments over the steps"),
            ("adam-mpgd", "ADAM_MPGD", "MPGD with Adam's moments over the steps"),
            ("pigdm", "PIGDM", "PiGDM: pseudo-inverse of a linear measurement"),
        )
    ]
