"""Steer any trained diffusion model with any trained vision model, plug and play.

    import ppap_host as ppap

    world = ppap.load_backbone("shapes")
    result = ppap.sample(world, ppap.guidance("depth", target="room.png"), prompt="a red cube")
    result.save("out")

Names are imported when they are asked for; until then there is no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppap_host.files.errors import PpapError as PpapError
    from ppap_host.guides.functions import reward as reward
    from ppap_host.guides.guide import Guide as Guide
    from ppap_host.guides.rewards import RewardGuide as RewardGuide
    from ppap_host.guides.targets import Target as Target
    from ppap_host.guides.targets import target as target
    from ppap_host.pipelines.callback import diffusers_callback as diffusers_callback
    from ppap_host.pipelines.guider import guider as guider
    from ppap_host.pipelines.steer import steer as steer
    from ppap_host.plugins.listing import list_backbones as list_backbones
    from ppap_host.plugins.listing import list_experts as list_experts
    from ppap_host.plugins.listing import list_guides as list_guides
    from ppap_host.plugins.listing import list_recipes as list_recipes
    from ppap_host.plugins.listing import list_samplers as list_samplers
    from ppap_host.runs.run import Result as Result
    from ppap_host.runs.run import Run as Run
    from ppap_host.runs.script import guidance as guidance
    from ppap_host.runs.script import load_backbone as load_backbone
    from ppap_host.runs.script import load_guide as load_guide
    from ppap_host.runs.script import rerun as rerun
    from ppap_host.runs.script import sample as sample
    from ppap_host.runs.script import trajectory as trajectory
    from ppap_host.sampling.loop import Event as Event

    __version__: str

_HOME = {
    "files.errors": ("PpapError",),
    "guides.functions": ("reward",),
    "guides.guide": ("Guide",),
    "guides.rewards": ("RewardGuide",),
    "guides.targets": ("Target", "target"),
    "pipelines.callback": ("diffusers_callback",),
    "pipelines.guider": ("guider",),
    "pipelines.steer": ("steer",),
    "plugins.listing": (
        "list_backbones", "list_experts", "list_guides", "list_recipes", "list_samplers",
    ),
    "runs.run": ("Result", "Run"),
    "runs.script": (
        "guidance", "load_backbone", "load_guide", "rerun", "sample", "trajectory",
    ),
    "sampling.loop": ("Event",),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    """Imports what is asked for."""
    if name == "__version__":
        from importlib.metadata import version

        return version("ppap-host")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
