"""What the host itself offers, registered through the same hooks as any plugin's things."""

from __future__ import annotations

from ppap_host.plugins.hookspecs import INTERFACE, Entry, hookimpl
from ppap_host.sampling.names import DIFFUSERS, SAMPLER_SUMMARIES, in_python

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
            ("dsg", "DSG", "DSG: turns the noise of a step towards the gradient, its length kept"),
            ("daps", "DAPS", "DAPS: samples x_0 between the flow's end and the guide, renoises it"),
            ("best-of-n", "BEST_OF_N", "best of N images by value; any black box will do"),
            ("fk", "FK", "FK steering: particles resampled by value; any black box will do"),
            ("svdd", "SVDD", "SVDD: best of several next states by value; any black box will do"),
            ("unicode", "UNICODE", "UniCoDe: as fk, its particles also follow gradients, as x0"),
            ("dno", "DNO", "noise optimised through the whole sampler; for runs of few steps"),
            ("cfg++", "CFG_PP", "CFG++: classifier-free guidance that renoises without; no guide"),
        )
    ]


@hookimpl
def ppap_samplers() -> list[Entry]:
    """The host's own solvers, and diffusers' schedulers."""
    own = {"dpm++": "dpm_plus_plus"}
    return [
        *(
            Entry(name, f"ppap_host.sampling.solvers:{own.get(name, name)}", summary)
            for name, summary in SAMPLER_SUMMARIES.items()
        ),
        *(
            Entry(name, f"ppap_host.pipelines.samplers:{in_python(name)}", one.summary)
            for name, one in DIFFUSERS.items()
        ),
    ]
