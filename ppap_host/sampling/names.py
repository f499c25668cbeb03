"""Names that the command line must know before torch is imported."""

from __future__ import annotations

SAMPLER_SUMMARIES: dict[str, str] = {
    "ddim": "Song et al. 2021; deterministic at --eta 0",
    "ddpm": "Ho et al. 2020; ancestral, with the variance that the backbone has",
    "dpm++": "Lu et al. 2022; DPM-Solver++(2M)",
    "pipeline": "a pipeline of diffusers takes its own steps, with its own scheduler",
    "heun": "Karras et al. 2022; two evaluations a step",
}

BALANCE_SUMMARIES: dict[str, str] = {
    "project": "Yu et al. 2020; a guide loses what points against another one's gradient",
    "sum": "the gradients are added as they are",
}
