"""Guidance of an unmodified diffusers pipeline, through its own ``callback_on_step_end``.

    pipe("a dog", callback_on_step_end=ppap_host.diffusers_callback(
        pipe, guides=["depth"], targets=["room.jpg"])).images[0]

At the end of each step the pipeline offers its latents, which have already gone to the next noise
level. What the network said of the latents before is not offered; the callback has it from the
scheduler, whose ``step`` it makes remember its arguments: the state x_t and the network's output
with classifier-free guidance and all else that the pipeline does to it. From these follow x_0 and
eps, the recipe changes them (:class:`ppap_host.sampling.evaluator.Evaluator`), and the latents are
moved by the difference that the change makes in a step of DDIM.

Where the scheduler's own step is DDIM's in other words (DDIM without eta, Euler, flow-matching
Euler, DPM-Solver of first order), that is the very step that the host's loop takes. Multistep and
stochastic schedulers take their own step, and guidance is added to first order.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from ppap_host.backbones.backbone import Backbone, Condition, Prediction
from ppap_host.backbones.noise import CLEAN, NoiseLevel, Walk
from ppap_host.files.errors import OptionError
from ppap_host.guides.guide import Guide
from ppap_host.pipelines.autoencoder import Autoencoder
from ppap_host.pipelines.schedules import Schedule, fixed_variance_of, schedule_of
from ppap_host.plugins.registry import registry
from ppap_host.recipes.estimate import Step
from ppap_host.recipes.recipe import Recipe
from ppap_host.runs.choice import NONE, choose
from ppap_host.runs.config import GuideConfig
from ppap_host.sampling.evaluator import Evaluator, Guidance, Health
from ppap_host.sampling.loop import take_step
from ppap_host.sampling.solvers import DDIM
from ppap_host.sampling.streams import ImageNoise


@dataclass
class _Asked:
    """One guide as it was asked for, and at work for the pictures' size of the moment."""

    guide: Guide
    target: str
    recipe: Recipe
    scale: float


class StepGuidance:
    """A ``callback_on_step_end``; made by :func:`diffusers_callback`.

    Attributes:
        health: how often a guide's gradient was not finite and was left out.
    """

    def __init__(self, pipe: Any, backbone: _Recorded, asked: Sequence[_Asked]) -> None:
        self.health = Health()
        self._pipe, self._backbone, self._asked = pipe, backbone, asked
        self._guided: Evaluator | None = None
        self._made_for: tuple[Any, ...] = ()

    def __call__(
        self, pipe: Any, step: int, timestep: Tensor, callback_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """The same tensors, the latents among them guided.

        Raises:
            OptionError: the pipeline is another one, its scheduler was changed, or its latents are
                not what this can guide.
        """
        backbone = self._backbone
        latents = callback_kwargs.get("latents")
        if latents is None:
            raise OptionError(
                "The pipeline offers no latents to the callback.",
                remedy='Leave callback_on_step_end_tensor_inputs as it is, or put "latents" in it.',
            )
        if latents.ndim != 4:
            raise OptionError(
                f"The latents of {type(pipe).__name__} are packed "
                f"({latents.ndim} dimensions, not 4); they cannot be decoded here.",
                remedy="Use a pipeline whose latents are [b, c, h, w], such as Stable Diffusion's.",
            )
        if pipe is not self._pipe or pipe.scheduler is not backbone.scheduler:
            raise OptionError(
                "The callback was made for another pipeline, or for another scheduler.",
                remedy="Call diffusers_callback(pipe, ...) when pipe has the scheduler it is to "
                "run with.",
            )
        at = backbone.step_of(step, timestep, int(pipe.num_timesteps))
        # Some multistep schedulers take a step twice; the second leads nowhere new.
        asked = [a for a in self._asked if a.scale and at.now.log_snr in a.recipe.interval]
        if not asked or at.then.log_snr <= at.now.log_snr:
            return callback_kwargs
        shift = self._shift(backbone.state(at.now), at, new=step == 0)
        moved = latents + (backbone.schedule.own_scale(at.then) * shift).to(latents.dtype)
        return {**callback_kwargs, "latents": moved}

    def _shift(self, x: Tensor, step: Step, new: bool) -> Tensor:
        """What guidance changes in a DDIM step; ``new`` says that it is the first of a picture."""
        size = self._backbone.size_of(x)
        made_for = (size, tuple(x.shape), x.device)
        if self._guided is None or new or self._made_for != made_for:
            self._guided, self._made_for = self._evaluator(self._guidance(size, x), x), made_for
        guided, _, _ = take_step(DDIM(), x, step, self._guided, _no_noise)
        plain, _, _ = take_step(DDIM(), x, step, self._evaluator([], x), _no_noise)
        return guided - plain

    def _evaluator(self, guidance: Sequence[Guidance], x: Tensor) -> Evaluator:
        """For one batch of pictures, from their first step to their last."""
        noise = ImageNoise(0, range(len(x)), tuple(x.shape[1:]))
        return Evaluator(
            self._backbone, self._backbone.denoise, guidance, ancestral=False,
            health=self.health, stream=noise.stream,
        )  # fmt: skip

    def _guidance(self, size: tuple[int, int], x: Tensor) -> list[Guidance]:
        """The guides with targets for the size of the pictures, on the device of the latents."""
        found = []
        for a in self._asked:
            a.guide.to(x.device, torch.float32)
            target = a.guide.read_target(a.target, size).value.to(x.device)
            found.append(Guidance(a.guide, target, a.recipe, a.scale))
        return found


def diffusers_callback(
    pipe: Any,
    guides: Sequence[str | Guide],
    targets: Sequence[str],
    scales: Sequence[float | None] | None = None,
    recipes: Sequence[str | Recipe | None] | None = None,
    experts: Sequence[str | None] | None = None,
    models: Sequence[str | None] | None = None,
) -> StepGuidance:
    """A ``callback_on_step_end`` that guides an unmodified diffusers pipeline.

    Guides may look at x_t (with experts for its noise) or at the predicted x_0 held constant. The
    gradient through the network is not to be had in a callback. The pipeline's autoencoder is
    frozen, and recomputes its blocks where a gradient is asked for.

    Args:
        pipe: with an autoencoder, latents [b, c, h, w] and a scheduler of first order.
        guides: names, or guides in memory, applied in this order.
        targets: one a guide, as for ``--target``.
        scales: strengths; None, or None for a guide, takes the guide's default for its recipe.
        recipes: names or recipes; None takes "ppap" where experts fit, else "x0".
        experts: an expert set a guide, by name or path, or "none".
        models: the networks of guides given by name, as for ``--model``.

    Raises:
        PpapError: a name is unknown, a target cannot be read, or the pipeline or the recipe cannot
            be guided this way.
    """
    if isinstance(guides, str) or isinstance(targets, str):
        raise OptionError("guides and targets are lists.", remedy='Give guides=["depth"].')
    count = len(guides)
    given = {
        "targets": list(targets),
        "scales": _each(scales, count),
        "recipes": _each(recipes, count),
        "experts": _each(experts, count),
        "models": _each(models, count),
    }
    for name, values in given.items():
        if len(values) != count:
            raise OptionError(
                f"There are {count} guides and {len(values)} {name}.",
                remedy="Give one for each guide; None stands for the default.",
            )
    backbone = _Recorded(pipe)
    asked = [
        _ask(backbone, guide, *row)
        for guide, *row in zip(guides, *given.values(), strict=True)
    ]  # fmt: skip
    return StepGuidance(pipe, backbone, asked)


def _each(values: Sequence[Any] | None, count: int) -> list[Any]:
    return [None] * count if values is None else list(values)


def _ask(
    backbone: _Recorded,
    guide: str | Guide,
    target: str,
    scale: float | None,
    recipe: str | Recipe | None,
    experts: str | None,
    model: str | None,
) -> _Asked:
    found = registry()
    if isinstance(guide, str):
        # Not guarded: this is somebody's own script, whose threads and settings are its own affair.
        guide = found.make("guide", guide, Guide, model=model)  # type: ignore[type-abstract]
    elif model is not None:
        raise OptionError(
            f"The guide {guide.name!r} has its network already, and is given {model!r}.",
            remedy="Leave out its model, or give the guide by its name.",
        )
    guide.network().requires_grad_(False)
    if isinstance(recipe, Recipe):
        chosen = recipe
        if experts not in (None, NONE):
            config = GuideConfig(guide.name, target, experts=experts)
            guide = choose(config, None, guide, backbone, backbone.walk(0), found).guide
    else:
        config = GuideConfig(guide.name, target, experts=experts)
        choice = choose(config, recipe, guide, backbone, backbone.walk(0), found)
        guide, chosen = choice.guide, choice.recipe
    if chosen.through_backbone:
        raise OptionError(
            f"The recipe {chosen.name!r} takes the gradient back through the backbone, which has "
            "run before the callback is called.",
            remedy="Use the recipe x0, or `ppap run --backbone diffusers`.",
        )
    if chosen.recurrence > 1 or any(move.place.enters for move in chosen.moves):
        raise OptionError(
            f"The recipe {chosen.name!r} asks the backbone again, which a callback cannot.",
            remedy=f"Use {chosen.name}:recurrence=1 if it repeats steps, the recipe x0, or "
            "`ppap run --backbone diffusers`.",
        )
    guide.read_target(target, backbone.image_size)  # says early what cannot be read
    if scale is None:
        scale = guide.usual_scale(chosen.name)
    return _Asked(guide, target, chosen, float(scale))


class _Recorded(Backbone):
    """A pipeline as a backbone whose prediction is the one that its scheduler was last given."""

    name = "diffusers"
    clip = None

    def __init__(self, pipe: Any) -> None:
        self.scheduler = pipe.scheduler
        kind, scheduler = type(pipe).__name__, type(pipe.scheduler).__name__
        if "callback_on_step_end" not in inspect.signature(type(pipe).__call__).parameters:
            raise OptionError(
                f"{kind} has no callback_on_step_end.",
                remedy="Use `ppap run --backbone diffusers`, which runs the loop itself.",
            )
        if getattr(pipe.scheduler, "order", 1) != 1:
            raise OptionError(
                f"{scheduler} starts each second half of a step from the state before, which "
                "undoes what a callback does.",
                remedy="Use a scheduler of first order, such as DDIM, Euler or DPM-Solver.",
            )
        vae: Any = getattr(pipe, "vae", None)
        if not hasattr(getattr(vae, "config", None), "block_out_channels"):
            raise OptionError(
                f"{kind} has no autoencoder that guides could see its latents through.",
                remedy="Use a latent diffusion pipeline, or `ppap run --backbone diffusers`.",
            )
        self.schedule: Schedule = schedule_of(pipe.scheduler)
        self.fixed_variance = fixed_variance_of(pipe.scheduler)
        self._autoencoder = Autoencoder(vae)
        self._last = _remembering(pipe.scheduler)
        network = getattr(pipe, "transformer", None) or pipe.unet
        size = network.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        self.state_shape = (int(vae.config.latent_channels), int(height), int(width))

    def step_of(self, step: int, timestep: Tensor, steps: int) -> Step:
        """The step of the scheduler's walk that a step of the pipeline is.

        Args:
            step, timestep: as the pipeline tells them.
            steps: how many the pipeline takes, which may be the last ones only.
        """
        times = self.scheduler.timesteps
        places = (times == timestep.to(times.device)).nonzero().flatten().tolist()
        likely = step + len(times) - steps
        here = min(places, key=lambda place: abs(place - likely), default=likely)
        walk = Walk(tuple(self.schedule.visited(self.scheduler)))
        return Step(walk, here, self.fixed_variance)

    def state(self, now: NoiseLevel) -> Tensor:
        """x_t as the scheduler was given it, on the host's scale, float32."""
        if self._last.sample is None:
            raise OptionError(
                "The scheduler's step was not seen by the callback.",
                remedy="Call diffusers_callback(pipe, ...) with the pipeline that is run.",
            )
        return self._last.sample.float() / self.schedule.own_scale(now)

    def denoise(self, x: Tensor, level: NoiseLevel) -> Prediction:
        """What the network said of ``x``, which must be :meth:`state`."""
        return self.predict(x, level, {})

    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:
        """What the network said of ``x``, which must be :meth:`state`."""
        assert self._last.output is not None
        out = self._last.output[:, : x.shape[1]].float()
        return Prediction(self.schedule.eps(x, out, level))

    def decode(self, x0: Tensor) -> Tensor:
        """RGB in about [-1, 1] by the pipeline's autoencoder."""
        return self._autoencoder.decode(x0)

    def walk(self, steps: int | str) -> Walk:
        """All levels of the training: the callback learns no sooner which ones are visited."""
        return Walk((*reversed(self.levels()), CLEAN))

    def levels(self) -> tuple[NoiseLevel, ...]:
        """All levels of the training."""
        return self.schedule.levels()

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the size that the network was trained for."""
        _, height, width = self.state_shape
        return height * self._autoencoder.factor, width * self._autoencoder.factor

    def size_of(self, x: Tensor) -> tuple[int, int]:
        """(height, width) in pixels of these latents."""
        return x.shape[-2] * self._autoencoder.factor, x.shape[-1] * self._autoencoder.factor

    def to(self, device: torch.device, dtype: torch.dtype) -> Backbone:
        """Nothing: the pipeline's networks are where their owner put them."""
        return self


@dataclass
class _Last:
    """What a scheduler's last step was given."""

    output: Tensor | None = None
    sample: Tensor | None = None


def _remembering(scheduler: Any) -> _Last:
    """Makes a scheduler remember what its last step was given; once, however often it is asked."""
    step: Callable[..., Any] = scheduler.step
    known = getattr(step, "last", None)
    if isinstance(known, _Last):
        return known
    last, signature = _Last(), inspect.signature(step)

    # Pipelines look at the signature to know what a scheduler's step takes; wraps keeps it.
    @functools.wraps(step)
    def remembered(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        last.output, last.sample = given["model_output"], given["sample"]
        return step(*args, **kwargs)

    remembered.last = last  # type: ignore[attr-defined]
    scheduler.step = remembered
    return last


def _no_noise() -> NoReturn:
    raise AssertionError("a deterministic step draws no noise")
