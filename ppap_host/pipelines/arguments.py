"""What a pipeline's call is given: the options of a run, by the names in the call's own signature.

What a family needs is read from its components and its signature, not from the name of its class.
An option that a pipeline does not take is refused by name, and nothing is left out in silence.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    DiffusionPipeline,
    ModularPipeline,
)
from PIL import Image

from ppap_host.files.errors import OptionError, nearest
from ppap_host.files.images import fitted
from ppap_host.pipelines.hooks import original
from ppap_host.pipelines.steering import scheduler_of
from ppap_host.runs.config import RunConfig

_CFG = ("true_cfg_scale", "guidance_scale", "prior_guidance_scale")
"""What calls name the scale of classifier-free guidance; where there are several, the first is it:
``guidance_scale`` beside ``true_cfg_scale`` is what a distilled network is told."""

_SEVERAL = ("num_images_per_prompt", "num_videos_per_prompt", "batch_size")
"""What calls name the number of pictures of one prompt."""

_DISTILLED_STEPS = 4
_DISTILLED = re.compile(r"turbo|lightning|schnell|hyper-?sd|lcm|dmd2?|distill", re.I)
_OTHER_OPTIONS = {
    "generator": "seed", "num_inference_steps": "steps", "num_images_per_prompt": "num",
    "num_videos_per_prompt": "num", "batch_size": "num",
    "output_type": "", "return_dict": "", "output": "",
}  # fmt: skip
"""Arguments of a call that a run decides itself, and the option that says what."""


def taken_by(pipe: Any) -> dict[str, Any]:
    """The arguments that a pipeline's call takes, with their defaults; None for those without."""
    if isinstance(pipe, ModularPipeline):
        return {each.name: each.default for each in pipe.blocks.inputs if each.name}
    call = inspect.signature(original(type(pipe)).__call__)
    return {
        name: None if p.default is p.empty else p.default
        for name, p in call.parameters.items()
        if name != "self" and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }


def for_pictures(pipe: Any, config: RunConfig, pictures: Mapping[str, Image.Image]) -> Any:
    """The pipeline, or its relative of the same components that starts from a picture or fills one.

    Raises:
        OptionError: there is no such relative.
    """
    takes = taken_by(pipe)
    if "mask" in pictures and "mask_image" not in takes:
        return _relative(pipe, AutoPipelineForInpainting, "fills in a picture")
    if "image" in pictures and "mask" not in pictures:
        starts = "image" in takes and (config.strength is None or "strength" in takes)
        if not starts or ("mask_image" in takes and "mask_image" not in config.pipeline):
            return _relative(pipe, AutoPipelineForImage2Image, "starts from a picture")
    return pipe


def _relative(pipe: Any, auto: Any, does: str) -> Any:
    if isinstance(pipe, ModularPipeline):
        return pipe
    try:
        return auto.from_pipe(pipe)
    except (ValueError, TypeError) as error:
        raise OptionError(
            f"diffusers has no pipeline with the parts of {type(pipe).__name__} that {does} "
            f"({' '.join(str(error).split())[:200]}).",
            remedy="Leave out the picture, or give another --checkpoint.",
        ) from None


class Arguments:
    """The arguments of a pipeline's calls in one run.

    Args:
        pipe: the pipeline that will be called.
        config: the run's.
        pictures: ``image`` and ``mask`` where they are given, ``pipeline.NAME`` for others.
        names: of the checkpoint, from which a distilled one may be known.

    Attributes:
        cfg, steps: as the call is told, or what its own default is.
        notes: what had to be chosen, a sentence each.

    Raises:
        OptionError: the call does not take an option that is given; names it.
    """

    def __init__(
        self,
        pipe: Any,
        config: RunConfig,
        pictures: Mapping[str, Image.Image],
        names: Sequence[str] = (),
    ) -> None:
        self._pipe, self._config = pipe, config
        self._takes = taken_by(pipe)
        self._name = type(pipe).__name__
        self.notes: list[str] = []
        self._fixed: dict[str, Any] = {}
        self._extras(pictures)
        self._described = any(
            ("prompt" in key and (key.endswith("embeds") or "_embeds_" in key))
            or key.endswith("input_ids")
            for key in self._fixed
        )
        self._why_distilled = self._distilled(names)
        self.steps = self._steps()
        self.cfg = self._guidance()
        self._sizes(pictures)
        self._refuse()
        if "negative_prompt_embeds" in self._fixed and "negative_prompt" in self._takes:
            self._fixed.setdefault("negative_prompt", None)  # some have a text for a default

    def of(self, indices: Sequence[int], seeds: Sequence[int]) -> dict[str, Any]:
        """The arguments of the call that makes these images, each from a generator of its seed."""
        call, count = dict(self._fixed), len(indices)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        if "generator" in self._takes:
            call["generator"] = generators[0] if count == 1 else generators
        each = {
            "prompt": self._config.of_images("prompt", indices),
            "negative_prompt": self._config.of_images("negative_prompt", indices),
            "class_labels": self._config.of_images("class_index", indices),
        }
        alike = all(len(set(values)) == 1 for values in each.values())
        several = next((name for name in _SEVERAL if name in self._takes), None)
        listed = not alike or (count > 1 and several is None and not self._described)
        for name, values in each.items():
            if name in self._takes and name not in call and self._is_said(name, values):
                call[name] = values if listed or name == "class_labels" else values[0]
        each_said = listed and not self._described and "prompt" in call
        if count > 1 and not each_said and "class_labels" not in call:
            if several is None:
                raise OptionError(
                    f"{self._name} makes one image at a time.", remedy="Leave out --batch."
                )
            call[several] = count
        return call

    def value(self, name: str) -> Any:
        """What the call has for an argument, given or by default; None where it takes none."""
        return self._fixed.get(name, self._takes.get(name))

    def _is_said(self, name: str, values: Sequence[Any]) -> bool:
        """Whether prompts or classes are passed on: none where embeddings are given."""
        if any(value not in ("", None) for value in values):
            return True
        return name == "prompt" and not self._described

    def _extras(self, pictures: Mapping[str, Image.Image]) -> None:
        """The further arguments, by the names of the call."""
        for name, value in self._config.pipeline.items():
            if name in _OTHER_OPTIONS:
                option = _OTHER_OPTIONS[name]
                raise OptionError(
                    f"The argument {name!r} of the pipeline is the run's to decide.",
                    remedy=f"Give --{option}." if option else "Leave it out.",
                )
            if name not in self._takes:
                close = nearest(name, self._takes, 1)
                raise OptionError(
                    f"{self._name} takes no {name!r}.",
                    remedy=(f"Did you mean {close[0]!r}? " if close else "")
                    + f"It takes: {', '.join(self._takes)}.",
                )
            self._fixed[name] = pictures.get(f"pipeline.{name}", value)

    def _steps(self) -> int:
        """How many steps, as the call counts them."""
        asked, name = self._config.steps, "num_inference_steps"
        for listed in ("timesteps", "sigmas"):
            if self._fixed.get(listed) is not None:
                if asked not in (None, len(self._fixed[listed])):
                    raise OptionError(
                        f"The call takes as many steps as it is given {listed}, which are "
                        f"{len(self._fixed[listed])}.",
                        remedy="Leave out --steps.",
                    )
                return len(self._fixed[listed])
        if isinstance(asked, str):
            raise OptionError(
                f"{asked!r} is no number of steps.",
                remedy="Give a whole number with --steps, or --sampler ddim for a spacing.",
            )
        if name not in self._takes:
            if asked is not None:
                raise OptionError(
                    f"{self._name} takes no number of steps.", remedy="Leave out --steps."
                )
            return 0
        if asked is None:
            asked = int(self._takes[name] or 50)
            if self._why_distilled and asked > _DISTILLED_STEPS:
                asked = _DISTILLED_STEPS
                self.notes.append(
                    f"The model looks distilled ({self._why_distilled}): it takes {asked} steps "
                    "where --steps names no other number."
                )
        self._fixed[name] = asked
        return asked

    def _guidance(self) -> float:
        """The scale of classifier-free guidance, 1 where the call has none."""
        config = self._config
        known = [name for name in _CFG if name in self._takes]
        told_by = {"prompt", "class_labels"} & self._takes.keys()
        untold = told_by and not told_by & self._fixed.keys() and not config.conditional
        if config.cfg is not None and untold and not self._described:
            raise OptionError(
                f"--cfg {config.cfg:g} strengthens a prompt or a class, and there is none.",
                remedy="Add --prompt, or leave out --cfg.",
            )
        if config.guidance_scale is not None:
            if len(known) < 2 or known[0] != "true_cfg_scale":
                raise OptionError(
                    "--guidance-scale is for pipelines that have a true_cfg_scale beside it, and "
                    f"{self._name} has one scale of guidance.",
                    remedy="Give --cfg.",
                )
            self._fixed["guidance_scale"] = config.guidance_scale
        if not known:
            return self._of_guider(config.cfg)
        name, scale = known[0], config.cfg
        if scale is None:
            if name in self._fixed:
                return float(self._fixed[name] or 0.0)
            default = self._takes[name]
            scale = 1.0 if default is None else float(default)
            if self._why_distilled and scale > 1 and not self._is_told_guidance():
                scale = self._fixed[name] = 0.0
                self.notes.append(
                    f"The model looks distilled ({self._why_distilled}): no classifier-free "
                    f"guidance where --cfg does not ask for it; {self._name} itself would take "
                    f"{float(default):g}."
                )
            return scale
        self._fixed[name] = scale
        if "guidance_schedule" in self._takes:  # of each step, by default
            self._fixed.setdefault("guidance_schedule", None)
        against = config.of_images("negative_prompt", [0])
        if name == "true_cfg_scale" and scale > 1 and not any(against) and not self._described:
            # Without one these pipelines leave the scale aside.
            self._fixed["negative_prompt"] = ""
        return scale

    def _of_guider(self, scale: float | None) -> float:
        """The scale that the guider of a modular pipeline has; the copy's guider is exchanged."""
        guider = getattr(self._pipe, "guider", None)
        if guider is None or not hasattr(guider, "guidance_scale"):
            if scale is not None:
                raise OptionError(
                    f"{self._name} has no classifier-free guidance.", remedy="Leave out --cfg."
                )
            return 1.0
        if scale is None:
            return float(guider.guidance_scale)
        vars(self._pipe)["guider"] = guider.new(guidance_scale=scale)
        return scale

    def _is_told_guidance(self) -> bool:
        """Whether the scale is an input of the network, as of consistency models and Flux."""
        for part in ("unet", "transformer"):
            config = getattr(getattr(self._pipe, part, None), "config", None) or {}
            if config.get("time_cond_proj_dim") or config.get("guidance_embeds"):
                return True
        return False

    def _distilled(self, names: Sequence[str]) -> str:
        """By what a model for few steps is known; empty for others."""
        scheduler = scheduler_of(self._pipe)
        kind, config = type(scheduler).__name__, scheduler.config
        if kind in ("LCMScheduler", "TCDScheduler"):
            return f"its scheduler is {kind}"
        turbo = {"timestep_spacing": "trailing", "prediction_type": "epsilon"}
        plain = kind.startswith("Euler") and not config.get("rescale_betas_zero_snr")
        if plain and all(config.get(key) == value for key, value in turbo.items()):
            return f"its {kind} has trailing timesteps"
        for name in names:
            found = _DISTILLED.search(os.path.basename(str(name).rstrip("/")))
            if found is not None:
                return f"{found[0]!r} is in its name"
        return ""

    def _sizes(self, pictures: Mapping[str, Image.Image]) -> None:
        """Height, width, and the pictures that it starts from."""
        config, wanted = self._config, {"height": self._config.height, "width": self._config.width}
        wanted = {name: value for name, value in wanted.items() if value is not None}
        shown = {name: pictures[name] for name in ("image", "mask") if name in pictures}
        if set(wanted) <= set(self._takes):
            self._fixed |= wanted
        elif "image" not in shown:
            raise OptionError(
                f"{self._name} takes no {' and no '.join(wanted)}: its images have one size.",
                remedy=f"Leave out --{next(iter(wanted))}.",
            )
        if wanted and "image" in shown:
            size = (config.height or shown["image"].height, config.width or shown["image"].width)
            shown = {name: fitted(picture, size) for name, picture in shown.items()}
        for name, argument in (("image", "image"), ("mask", "mask_image")):
            if name in shown:
                if argument not in self._takes:
                    raise OptionError(
                        f"{self._name} takes no {argument}.", remedy=f"Leave out --{name}."
                    )
                self._fixed[argument] = shown[name]

    def _refuse(self) -> None:
        """What the call does not take."""
        config = self._config
        options = {
            "prompt": any(config.of_images("prompt", range(config.num))),
            "negative_prompt": any(config.of_images("negative_prompt", range(config.num))),
            "strength": config.strength is not None,
            "eta": bool(config.eta),
        }
        for name, given in options.items():
            if given and name not in self._takes:
                raise OptionError(
                    f"{self._name} takes no {name.replace('_', ' ')}.",
                    remedy=f"Leave out --{name.replace('_', '-')}.",
                )
        if config.strength is not None:
            self._fixed["strength"] = config.strength
        if config.eta:
            self._fixed["eta"] = config.eta
        if config.churn or config.churn_range is not None or config.churn_noise != 1:
            raise OptionError(
                "--churn belongs to the host's sampler heun.",
                remedy="Add --sampler heun, or leave it out.",
            )
        if config.cfg_interval is not None:
            raise OptionError(
                "--cfg-interval belongs to the host's steps, and the pipeline takes its own.",
                remedy="Add --sampler ddim, or leave it out.",
            )
        classes = any(c is not None for c in config.of_images("class_index", range(config.num)))
        if classes and "class_labels" not in self._takes:
            raise OptionError(f"{self._name} knows no classes.", remedy="Leave out --class.")


def is_pipeline(thing: Any) -> bool:
    """Whether it is a pipeline of diffusers, classic or modular."""
    return isinstance(thing, DiffusionPipeline | ModularPipeline)
