"""Names that the command line must know before torch is imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

PIPELINE = "pipeline"
"""The sampler of a pipeline of diffusers that takes its own steps, with its own scheduler."""

SAMPLER_SUMMARIES: dict[str, str] = {
    "ddim": "Song et al. 2021; deterministic at --eta 0",
    "ddpm": "Ho et al. 2020; ancestral, with the variance that the backbone has",
    "dpm++": "Lu et al. 2022; DPM-Solver++(2M), with noise by --eta",
    "heun": "Karras et al. 2022; two evaluations a step",
}
"""The host's own samplers."""

BALANCE_SUMMARIES: dict[str, str] = {
    "project": "Yu et al. 2020; a guide loses what points against another one's gradient",
    "sum": "the gradients are added as they are",
}


class Scheduled(NamedTuple):
    """A scheduler of diffusers as a sampler.

    Attributes:
        kind: name of its class.
        summary: for ``ppap list``.
        settings: of its configuration, over those of the backbone.
    """

    kind: str
    summary: str
    settings: Mapping[str, Any] = {}


_FLOW, _EDM, _OWN = "for flows", "for models of EDM's noise", "for models made for it"
DIFFUSERS: Mapping[str, Scheduled] = {
    "cogvideox-ddim": Scheduled("CogVideoXDDIMScheduler", "DDIM as CogVideoX takes it"),
    "consistency": Scheduled("CMStochasticIterativeScheduler", f"Song et al. 2023; {_OWN}"),
    "cosine-dpmsolver++": Scheduled(
        "CosineDPMSolverMultistepScheduler", f"DPM-Solver++ with noise, {_EDM}; needs torchsde"
    ),
    "ddim-parallel": Scheduled("DDIMParallelScheduler", "DDIM by diffusers' parallel class"),
    "ddpm-parallel": Scheduled("DDPMParallelScheduler", "DDPM by diffusers' parallel class"),
    "deis": Scheduled("DEISMultistepScheduler", "Zhang and Chen 2023; multistep"),
    "diffusers-ddim": Scheduled("DDIMScheduler", "Song et al. 2021, by diffusers"),
    "diffusers-ddpm": Scheduled("DDPMScheduler", "Ho et al. 2020, by diffusers"),
    "diffusers-heun": Scheduled("HeunDiscreteScheduler", "Karras et al. 2022, by diffusers"),
    "dpmsolver": Scheduled(
        "DPMSolverMultistepScheduler", "Lu et al. 2022a; multistep",
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
    ),
    "dpmsolver++": Scheduled("DPMSolverMultistepScheduler", "Lu et al. 2022b, by diffusers"),
    "dpmsolver++-sde": Scheduled(
        "DPMSolverMultistepScheduler", "Lu et al. 2022b with noise; multistep",
        {"algorithm_type": "sde-dpmsolver++"},
    ),
    "dpmsolver++-singlestep": Scheduled(
        "DPMSolverSinglestepScheduler", "Lu et al. 2022b; singlestep"
    ),
    "dpmsolver-sde": Scheduled(
        "DPMSolverSDEScheduler", "DPM-Solver with Brownian noise; needs torchsde"
    ),
    "edm-dpmsolver++": Scheduled("EDMDPMSolverMultistepScheduler", f"DPM-Solver++, {_EDM}"),
    "edm-euler": Scheduled("EDMEulerScheduler", f"Karras et al. 2022, Euler, {_EDM}"),
    "euler": Scheduled("EulerDiscreteScheduler", "Karras et al. 2022, first order"),
    "euler-ancestral": Scheduled("EulerAncestralDiscreteScheduler", "Euler with noise"),
    "flow-euler": Scheduled("FlowMatchEulerDiscreteScheduler", f"Esser et al. 2024, {_FLOW}"),
    "flow-heun": Scheduled("FlowMatchHeunDiscreteScheduler", f"second order, {_FLOW}"),
    "flow-lcm": Scheduled("FlowMatchLCMScheduler", f"few steps with noise, {_FLOW}"),
    "ipndm": Scheduled("IPNDMScheduler", f"improved PNDM, {_OWN}"),
    "kdpm2": Scheduled("KDPM2DiscreteScheduler", "second order, as in k-diffusion"),
    "kdpm2-ancestral": Scheduled("KDPM2AncestralDiscreteScheduler", "kdpm2 with noise"),
    "lcm": Scheduled("LCMScheduler", "Luo et al. 2023; few steps, for distilled models"),
    "lms": Scheduled("LMSDiscreteScheduler", "linear multistep, as in k-diffusion"),
    "ltx-euler-ancestral": Scheduled("LTXEulerAncestralRFScheduler", f"with noise, {_FLOW}"),
    "pndm": Scheduled("PNDMScheduler", "Liu et al. 2022; pseudo linear multistep"),
    "sa-solver": Scheduled("SASolverScheduler", "Xue et al. 2023; Adams with noise"),
    "tcd": Scheduled("TCDScheduler", "Zheng et al. 2024; few steps, for distilled models"),
    "unipc": Scheduled("UniPCMultistepScheduler", "Zhao et al. 2023; predictor and corrector"),
}  # fmt: skip
"""diffusers' schedulers by the names of samplers."""

_TOKENS = "steps tokens, and a gradient cannot move those"
_CALLED_OTHERWISE = "takes its steps by step_pred, or by arguments of its own"
_FLOW_MAP = "is for networks that predict the way to another level, not a clean state"
_INVERSE = "walks from a picture to noise"
NOT_GUIDED: Mapping[str, str] = {
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "DiscreteDDIMScheduler": _TOKENS,
    "EntropyBoundScheduler": _TOKENS,
    "VQDiffusionScheduler": _TOKENS,
    "RFD4ProteinaScheduler": "steps the structure of a protein, not a picture",
    "KarrasVeScheduler": _CALLED_OTHERWISE,
    "ScoreSdeVeScheduler": _CALLED_OTHERWISE,
    "ScoreSdeVpScheduler": _CALLED_OTHERWISE,
    "FlowMapEulerDiscreteScheduler": _FLOW_MAP,
    "MiniMaxH3Scheduler": (
        "steps the rows of one sequence in which a video and its sound are packed, not pictures in "
        "a batch"
    ),
    "PiflowScheduler": _FLOW_MAP,
    "DDIMInverseScheduler": _INVERSE,
    "DPMSolverMultistepInverseScheduler": _INVERSE,
}
"""Schedulers that have no prediction of a clean picture to guide, and why."""

NO_SAMPLERS: Mapping[str, str] = {
    **NOT_GUIDED,
    "CogVideoXDPMScheduler": "is given the prediction of the step before by its pipeline",
    "ConsistencyDecoderScheduler": "belongs to a decoder, whose condition is another latent",
    "DDPMWuerstchenScheduler": "belongs to Wuerstchen's pipelines, which ppap.steer guides",
    "HeliosDMDScheduler": "goes up a pyramid of sizes, as Helios' pipelines do",
    "HeliosScheduler": "goes up a pyramid of sizes, as Helios' pipelines do",
    "RePaintScheduler": "fills in a picture that it is given at every step",
    "SCMScheduler": "belongs to Sana-Sprint's pipelines, which ppap.steer guides",
    "UnCLIPScheduler": "is told by its pipeline where each step leads to",
}
"""Schedulers that are no samplers by themselves, and why."""


def in_python(name: str) -> str:
    """A sampler's name as one of Python: dpmsolver++-sde is dpmsolver_pp_sde."""
    return name.replace("++", "_pp").replace("-", "_")


def why_no_sampler(name: str) -> tuple[str, str] | None:
    """The class that a name means which is no sampler, and why; None for any other name.

    Args:
        name: of a sampler as one might guess it: "ddim-inverse", "vqdiffusion" or a class's name.
    """
    plain = _plain(name)
    for kind, why in NO_SAMPLERS.items():
        if plain in (_plain(kind), _plain(kind).removesuffix("scheduler")):
            return kind, why
    return None


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
