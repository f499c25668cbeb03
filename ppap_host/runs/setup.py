"""Everything that a run needs, loaded and checked before its first step."""

# Long because what is set up is one thing, stage by stage and guide by guide.

from __future__ import annotations

import hashlib
import importlib.util
import reprlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppap_host.backbones.backbone import Backbone, Condition, encode
from ppap_host.backbones.noise import EVERYWHERE, NoiseRange, Walk
from ppap_host.experts.calibration import Calibrated, calibration_file, load_calibration
from ppap_host.files.errors import DeviceError, OptionError, TargetError
from ppap_host.files.hashes import file_hashes
from ppap_host.guides.functions import as_guide
from ppap_host.guides.guide import Guide, bare
from ppap_host.guides.sight import fitting
from ppap_host.guides.targets import Given, Reading, Target, read_known
from ppap_host.plugins.loading import load_backbone, load_guide, load_recipe, load_sampler
from ppap_host.plugins.plugin import Kind
from ppap_host.plugins.registry import Registry, registry
from ppap_host.recipes.recipe import Recipe
from ppap_host.recipes.settings import split_recipe
from ppap_host.runs.choice import NONE, Choice, choose
from ppap_host.runs.config import (
    OWN_CODE,
    GuideConfig,
    RunConfig,
    called,
    check_names,
    code_of,
)
from ppap_host.runs.devices import DTYPES, pick_device, pick_dtype
from ppap_host.runs.own import OwnSteps, itself
from ppap_host.runs.quality import OFF, with_quality
from ppap_host.sampling.evaluator import Guidance, told_apart
from ppap_host.sampling.names import PIPELINE
from ppap_host.sampling.solvers import Churn, Solver


@dataclass
class ActiveGuide:
    """A guide at a stage of this run, with what it was asked for.

    Attributes:
        targets: one for all images, or one an image.
        files: of code that the guide was read from.
        ours: whether the run has loaded it, and nobody else holds it.
    """

    config: GuideConfig
    guide: Guide
    targets: tuple[Target, ...]
    recipe: Recipe
    asked: str | Recipe
    scale: float
    experts: str | None = None
    expert_files: tuple[Path, ...] = ()
    calibration_file: Path | None = None
    files: tuple[Path, ...] = ()
    ours: bool = True

    @property
    def name(self) -> str:
        """What it is called in results."""
        return self.config.name

    def target(self, indices: Sequence[int]) -> Tensor:
        """What the loss of these images compares with: one row, or one an image."""
        if len(self.targets) == 1:
            return self.targets[0].value
        return torch.cat([self.targets[k].value for k in indices])


@dataclass
class Stage:
    """One diffusion model of a run, with the guides that steer it.

    Attributes:
        name: "base" or "upsampler".
        steps: as they were decided, a number or a spacing.
        solver: None where the backbone takes its own steps.
        cfg: classifier-free guidance scale.
        cfg_interval: noise levels at which it holds.
        condition, unconditional: of one image or of all of them, for both branches.
        process: a recipe of the process itself, that asks no guide.
    """

    name: str
    backbone: Backbone
    steps: int | str
    walk: Walk
    solver: Solver | None
    sampler: str
    eta: float | None
    cfg: float
    cfg_interval: NoiseRange = EVERYWHERE
    condition: Condition = field(default_factory=dict)
    unconditional: Condition = field(default_factory=dict)
    guides: list[ActiveGuide] = field(default_factory=list)
    process: Recipe | None = None

    @property
    def particles(self) -> int:
        """How many are alive for each image."""
        return max((g.recipe.particles for g in self.guides), default=1)

    def guidance(self, indices: Sequence[int]) -> list[Guidance]:
        """Its guides at work on these images."""
        return [
            Guidance(g.guide, g.target(indices), g.recipe, g.scale, g.name) for g in self.guides
        ]


@dataclass
class Setup:
    """Everything loaded and checked before the first step.

    Attributes:
        config: as it was given, with names that tell its guides apart.
        stages: the base, and the upsampler of a cascade.
        guides: in the configuration's order, as they see the finished images.
        plugins: distributions that it uses.
        inputs: the image to fill in and its mask.
        objects: what is in memory and cannot be loaded again from a record.
        doubts: of what was asked for and changes nothing, a sentence each.
        quality: what a measured frontier has decided, for people; None where none has.
    """

    config: RunConfig
    stages: list[Stage]
    guides: list[ActiveGuide]
    device: torch.device
    plugins: set[str]
    inputs: dict[str, Reading] = field(default_factory=dict)
    objects: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    quality: str | None = None

    @property
    def particles(self) -> int:
        """Most that are alive for an image."""
        return max(stage.particles for stage in self.stages)

    @property
    def steps(self) -> int:
        """Of all stages."""
        return sum(len(stage.walk) for stage in self.stages)

    def decided(self) -> RunConfig:
        """The configuration with everything that defaults have decided, as values."""
        base = self.stages[0]
        strengthens = base.solver is not None and base.cfg != 1
        guides = []
        for given, last in zip(self.config.guides, self.guides, strict=True):
            steered = [g for stage in self.stages for g in stage.guides if g.config is last.config]
            recipe, experts, scale = chosen = (last.asked, last.experts or NONE, last.scale)
            # Otherwise the stages of a cascade choose for themselves again.
            if all((g.asked, g.experts or NONE, g.scale) == chosen for g in steered):
                # What is in memory is named where it was given, and has to be given again there.
                recipe = recipe if isinstance(recipe, str) else given.recipe
                given = replace(given, scale=scale, experts=experts, recipe=recipe)
            guides.append(replace(given, **_origin(given.steers, self.config.dtype)))
        upsampler = self.stages[1].steps if len(self.stages) > 1 else None
        return replace(
            self.config, guides=tuple(guides), steps=base.steps, upsampler_steps=upsampler,
            quality=OFF, sampler=base.sampler, eta=base.eta,
            cfg=base.cfg if self.config.conditional else None,
            cfg_interval=base.cfg_interval.text if strengthens else None,
            **_origin(self.config.backbone, self.config.dtype),
        )  # fmt: skip


def set_up(
    config: RunConfig,
    moved: Mapping[str, str] | None = None,
    found: Registry | None = None,
) -> Setup:
    """Checks a configuration and loads what it names.

    What is in memory already stays as it is: its device, number format, mode and gradients.

    Args:
        moved: for repeating a run whose files are elsewhere now: path as given -> path.
        found: the plugins to choose from; by default those installed.

    Raises:
        PpapError: anything the user can mend; see :mod:`ppap_host.files.errors`.
    """
    found = registry() if found is None else found
    check_names(config, found)
    names = told_apart([g.name for g in config.guides])
    told = [
        replace(g, name=name, what=g.steers if name != g.name else g.what)
        for g, name in zip(config.guides, names, strict=True)
    ]
    config = replace(config, guides=tuple(told))
    objects: list[str] = []
    config = _in_its_format(config)
    backbone, device = _backbone(config, found, objects)
    if not isinstance(config.recipe, str | None):
        objects.append(f"the recipe {config.recipe.name!r}")
    dtype = pick_dtype(config.dtype, device)
    config = replace(config, batch=config.batch or backbone.default_batch)
    loaded = [guide_of(g, found, objects, config.dtype) for g in config.guides]
    config, quality, doubts = with_quality(config, backbone, [guide for guide, *_ in loaded])
    inputs: dict[str, Reading] = {}
    own = itself(backbone, config, moved, (device, dtype), inputs)
    if own is None and not config.conditional and config.cfg not in (None, 1.0):
        raise OptionError(
            f"--cfg {config.cfg} strengthens a prompt or a class, and there is none.",
            remedy="Add --prompt or --class, or leave out --cfg.",
        )
    upsampler = backbone.upsampler()
    if upsampler is None and config.upsampler_steps is not None:
        raise OptionError(
            "--upsampler-steps belongs to an upsampler, and there is none.",
            remedy="Give one with --upsampler, or leave out --upsampler-steps.",
        )
    if own is not None:
        process = _process(config, found)
        if process is not None:
            raise OptionError(
                f"The recipe {process.name!r} is a process of the host's steps, and the pipeline "
                "takes its own.",
                remedy="Add --sampler ddim, or leave out the recipe.",
            )
        walk = own.walk(own.steps)
        stages = [Stage("base", own, own.steps, walk, None, PIPELINE, 0.0, own.cfg)]
    else:
        stages = [_stage("base", backbone, config.steps, config.cfg, config, found)]
    if upsampler is not None:
        stages.append(_stage("upsampler", upsampler, config.upsampler_steps, None, config, found))
    for stage in stages if own is None else []:
        if isinstance(config.backbone, str):
            stage.backbone.to(device, dtype)
            stage.backbone.device, stage.backbone.dtype = device, dtype
        inputs |= _set_conditions(stage, config, moved, device)
    objects += [f"the {name}" for name, reading in inputs.items() if reading.given.in_memory]
    guides = [
        _set_up_guide(g, of, config, stages, device, dtype, moved, found, objects)
        for g, of in zip(config.guides, loaded, strict=True)
    ]
    for stage in stages:
        _give_noise(stage, config, found)
    _refuse_what_does_nothing(config, stages)
    doubts += _idle(config, stages, _process(config, found))
    return Setup(
        config, stages, guides, device, _plugins(config, found), inputs, objects, doubts, quality
    )


def _in_its_format(config: RunConfig) -> RunConfig:
    """The configuration in the number format of a backbone in memory, if nothing else has one."""
    given = config.backbone
    own = next((n for n, f in DTYPES.items() if f == getattr(given, "dtype", None)), config.dtype)
    if own == config.dtype or any(isinstance(g.steers, str) for g in config.guides):
        return config
    if config.dtype != RunConfig.dtype:
        raise OptionError(
            f"The backbone {called(given)!r} is in {own}, not in {config.dtype}.",
            remedy=f"Load it in that, or give the dtype {own}: what is given stays as it is.",
        )
    return replace(config, dtype=own)


def _origin(thing: Any, dtype: str) -> Mapping[str, Any]:
    """What loads a thing in memory by name as it is, in this number format; empty if none does."""
    own = getattr(thing, "dtype", None)
    if isinstance(thing, Guide):
        own = next((p.dtype for p in thing.network().parameters()), None)
    same = own in (None, DTYPES.get(dtype))
    return (getattr(thing, "origin", None) or {}) if same else {}


def _backbone(
    config: RunConfig, found: Registry, objects: list[str]
) -> tuple[Backbone, torch.device]:
    """The diffusion model, and the device of the run."""
    given = config.backbone
    if isinstance(given, str):
        made = load_backbone(found, given, config.checkpoint, config.backbone_options)
        return made, _device_of_objects(config) or pick_device(config.device)
    if config.checkpoint is not None or config.backbone_options:
        raise OptionError(
            f"The backbone {called(given)!r} is in memory, and a checkpoint or options are given.",
            remedy="Leave them out, or name the backbone.",
        )
    if not _origin(given, config.dtype):
        objects.append(f"the backbone {called(given)!r}")
    backbone = given if isinstance(given, Backbone) else as_backbone(given, found)
    if config.device != "auto" and pick_device(config.device) != backbone.device:
        raise DeviceError(
            f"The backbone {called(given)!r} is on {backbone.device}, not on {config.device}.",
            remedy="Move it before, or leave out the device: what is given stays as it is.",
        )
    return backbone, backbone.device


def as_backbone(thing: Any, found: Registry) -> Backbone:
    """A backbone around a diffusion model in memory, such as a pipeline of diffusers.

    Raises:
        PpapError: it is none that is known.
    """
    if "diffusers" not in sys.modules:  # what it makes is not there either
        raise OptionError(
            f"{reprlib.repr(thing)} is no diffusion model.",
            remedy="Give the name of a backbone, a Backbone, or a pipeline of diffusers.",
        )
    made = found.load("backbone", "diffusers")(checkpoint=thing)
    assert isinstance(made, Backbone)
    return made


def _refuse_what_does_nothing(config: RunConfig, stages: Sequence[Stage]) -> None:
    """Raises OptionError for options that would change nothing."""
    if not config.churn and (config.churn_range is not None or config.churn_noise != 1):
        raise OptionError(
            "--churn-range and --churn-noise say how --churn puts noise back, and there is none.",
            remedy="Add --churn, or leave them out.",
        )
    base = stages[0]
    if config.cfg_interval is not None:
        if base.cfg == 1:
            raise OptionError(
                "--cfg-interval says where --cfg holds, and there is no classifier-free guidance.",
                remedy="Add --prompt or --class, and --cfg other than 1, or leave it out.",
            )
        if not any(level.log_snr in base.cfg_interval for level in base.walk.levels[:-1]):
            raise OptionError(
                f"--cfg-interval {config.cfg_interval} holds none of the "
                f"{len(base.walk.levels) - 1} steps, so that --cfg would do nothing.",
                remedy=f"The steps go from log-SNR {base.walk.levels[0].log_snr:.1f} to "
                f"{base.walk.levels[-2].log_snr:.1f}.",
            )
    for stage in stages:
        amounts = [level.sigma / level.alpha for level in stage.walk.levels[:-1] if level.alpha]
        churn = Churn.of(config.churn, config.churn_range, config.churn_noise)
        if churn.amount and not any(churn.low <= amount <= churn.high for amount in amounts):
            raise OptionError(
                f"--churn-range {config.churn_range} holds none of the {len(amounts)} steps, so "
                "that --churn would do nothing.",
                remedy=f"The steps go from sigma / alpha = {max(amounts):.3g} to "
                f"{min(amounts):.3g}.",
            )
        levels = [level.log_snr for level in stage.walk.levels[:-1]]
        for g in stage.guides:
            asked = levels[:: g.recipe.every]
            inside = any(level in g.recipe.interval for level in asked)
            if g.recipe.asks_in_steps and not inside:
                raise OptionError(
                    f"The guide {g.name!r} would never be asked: none of its {len(asked)} steps "
                    "is in its interval of noise levels.",
                    remedy=f"The steps go from log-SNR {levels[0]:.1f} to {levels[-1]:.1f}.",
                )


def _idle(config: RunConfig, stages: Sequence[Stage], process: Recipe | None) -> Iterator[str]:
    """What was asked for and changes nothing, a sentence each."""
    steered = [g for stage in stages for g in stage.guides]
    name = config.recipe and split_recipe(config.recipe)[0]
    if process is not None:
        if not config.conditional:
            yield (
                f"The recipe {name!r} strengthens a prompt or a class, and there is none: "
                "the images are what the backbone makes by itself."
            )
    elif name is not None and all(g.recipe.name != name for g in steered):
        why = "every guide has its own" if steered else "there is no guide"
        yield f"The recipe {name!r} does nothing: {why}."
    if config.balance != RunConfig.balance and all(len(stage.guides) < 2 for stage in stages):
        yield f"The balance {config.balance!r} does nothing: no two guides steer the same step."
    if config.unguided and not steered:
        yield "All images are unguided, and are made once: there is no guide to compare with."
    for stage in stages:
        for g in stage.guides:
            if g.config.interval is not None and not g.recipe.asks_in_steps:
                yield (
                    f"The interval of the guide {g.name!r} does nothing: the recipe "
                    f"{g.recipe.name!r} does not ask it within the steps."
                )
            asked = split_recipe(g.asked)[1].keys() & {"joint", "marginal"}
            if asked and type(bare(g.guide)).tempered is Guide.tempered:
                yield (
                    f"The temperatures of the recipe {g.recipe.name!r} ({', '.join(sorted(asked))})"
                    f" do nothing: the guide {g.name!r} knows no classes."
                )
            if abs(g.scale) < torch.finfo(torch.float32).tiny and not g.recipe.replaces:
                yield f"The guide {g.name!r} steers nothing: its scale is {g.scale:g}."
            elif (
                g.recipe.takes_best
                and len(stage.guides) == 1
                and g.scale not in (1, g.guide.usual_scale(g.recipe.name))
            ):
                yield (
                    f"The scale {g.scale:g} of the guide {g.name!r} does what any other of its "
                    f"sign does: the recipe {g.recipe.name!r} takes what is best."
                )


def _give_noise(stage: Stage, config: RunConfig, found: Registry) -> None:
    """Lets a sampler that can draw noise do so for recipes that need some, if nobody said how much.

    Raises:
        OptionError: the sampler's steps have none, or none that a recipe can build on.
    """
    needs = {g.recipe.name: g.recipe.needs for g in stage.guides if g.recipe.needs}
    if needs and stage.sampler in ("ddim", "dpm++") and config.eta is None and not stage.eta:
        stage.eta = 1.0
        stage.solver = load_sampler(found, stage.sampler, stage.backbone, stage.eta)
    if stage.solver is None:
        assert isinstance(stage.backbone, OwnSteps)
        for g in stage.guides:
            stage.backbone.check(g.recipe)
        return
    for name, need in needs.items():
        if stage.solver.noise not in (need, "gaussian"):
            raise OptionError(
                f"The recipe {name!r} works on the noise of a step, and the sampler "
                f"{stage.sampler!r} draws none there, or does not tell which.",
                remedy="Use --sampler ddim --eta 1, or --sampler ddpm.",
            )
    for g in stage.guides:
        if g.recipe.start is not None and stage.solver.draws_itself:
            raise OptionError(
                f"The recipe {g.recipe.name!r} goes through all steps several times with the same "
                f"noise, and the sampler {stage.sampler!r} draws its own.",
                remedy="Use a sampler of the host, such as --sampler ddim.",
            )


def _device_of_objects(config: RunConfig) -> torch.device | None:
    """Where the guides in memory are, if the run is free to go there."""
    if config.device != "auto":
        return None
    for guide in config.guides:
        thing = getattr(guide.steers, "what", guide.steers)
        network = thing.network() if isinstance(thing, Guide) else thing
        if isinstance(network, torch.nn.Module):
            for parameter in network.parameters():
                return parameter.device
    return None


def _plugins(config: RunConfig, found: Registry) -> set[str]:
    used: list[tuple[Kind, str]] = []
    if isinstance(config.backbone, str):
        used.append(("backbone", config.backbone))
    used += [
        ("guide", g.steers)
        for g in config.guides
        if isinstance(g.steers, str) and code_of(g.steers) is None
    ]
    return {plugin.distribution for kind, name in used for plugin, _ in found.names(kind)[name]}


def _set_up_guide(
    config: GuideConfig,
    loaded: tuple[Guide, bool, tuple[Path, ...]],
    run: RunConfig,
    stages: list[Stage],
    device: torch.device,
    dtype: torch.dtype,
    moved: Mapping[str, str] | None,
    found: Registry,
    objects: list[str],
) -> ActiveGuide:
    """Gives a loaded guide to the stages that it steers, and returns it as it sees the end."""
    guide, ours, files = loaded
    steered = _steered(config, stages)
    for stage in (*steered, stages[-1]):
        fitting(guide, stage.backbone)
    choices = [
        calibrated(
            config,
            choose(config, config.recipe or run.recipe, guide, stage.backbone, stage.walk, found),
        )
        for stage in steered
    ]
    if ours:
        guide.to(device, dtype)
    else:
        _check_device(guide, config.name, device)
    rows = config.target if isinstance(config.target, tuple) else (config.target,)
    given = [None if r is None else Given.of(r, guide.target_kinds, moved) for r in rows]
    if any(row is not None and row.in_memory for row in given):
        objects.append(f"the target of {config.name!r}")
    if not isinstance(config.recipe, str | None):
        objects.append(f"the recipe of {config.name!r}")
    sizes = {stage.backbone.image_size for stage in (*steered, stages[-1])}
    targets = {size: tuple(target_of(guide, row, size, device) for row in given) for size in sizes}
    active = []
    for stage, choice in zip(steered, choices, strict=True):
        usual = choice.guide.usual_scale(choice.recipe.name)
        active.append(
            ActiveGuide(
                config, choice.guide, targets[stage.backbone.image_size], choice.recipe,
                choice.asked, usual if config.scale is None else config.scale,
                choice.experts, choice.files, choice.calibration_file, files, ours,
            )
        )  # fmt: skip
        stage.guides.append(active[-1])
    return replace(active[-1], guide=guide, targets=targets[stages[-1].backbone.image_size])


def guide_of(
    config: GuideConfig, found: Registry, objects: list[str], dtype: str = "float32"
) -> tuple[Guide, bool, tuple[Path, ...]]:
    """What steers, whether the run owns it, and the file of code that it is in."""
    what = config.steers
    code = code_of(what)
    if isinstance(what, str) and code is None:
        return load_guide(found, what, config.model), True, ()
    if config.model is not None:
        raise OptionError(
            f"{config.name!r} has its network already, and is given the model {config.model!r}.",
            remedy="Leave out the model, or name a guide.",
        )
    targeted = config.target is not None
    if code is not None:
        return as_guide(_load_code(*code), config.name, targeted), True, (code[0],)
    if not _origin(what, dtype):
        objects.append(f"the guide {config.name!r}")
    return as_guide(what, config.name, targeted), False, ()


def _load_code(path: Path, name: str) -> Any:
    """A name from a Python file that the user has named."""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise OptionError(
            f"Cannot read the code {str(path)!r}: {error.strerror}.",
            remedy="Give FILE.py:NAME, the path of a file and a guide or a function in it.",
        ) from None
    module_name = f"{OWN_CODE}{path.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise OptionError(f"{str(path)!r} is no Python file.", remedy="Give FILE.py:NAME.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a script may end itself
        del sys.modules[module_name]
        raise OptionError(
            f"The code {str(path)!r} fails: {type(error).__name__}: {error}.",
            remedy="Mend it; the traceback, on the command line --debug, shows where it fails.",
        ) from error
    if not hasattr(module, name):
        offered = ", ".join(n for n in vars(module) if not n.startswith("_"))
        raise OptionError(
            f"There is no {name!r} in {str(path)!r}.", remedy=f"It has: {offered or 'nothing'}."
        )
    return getattr(module, name)


def _check_device(guide: Guide, name: str, device: torch.device) -> None:
    for parameter in guide.network().parameters():
        if parameter.device.type != device.type:
            raise DeviceError(
                f"The guide {name!r} is on {parameter.device}, and the run on {device}.",
                remedy="Move one of them: what is given stays where it is.",
            )
        return


def _stage(
    name: str,
    backbone: Backbone,
    steps: int | str | None,
    cfg: float | None,
    config: RunConfig,
    found: Registry,
) -> Stage:
    process = _process(config, found) if name == "base" and config.conditional else None
    scale = (backbone.default_cfg if cfg is None else cfg) if config.conditional else 1.0
    if backbone.least_cfg is not None:
        scale = max(scale, backbone.least_cfg)
    if process is not None:
        if process.leads == "unconditional" and cfg is not None and not 0 <= cfg <= 1:
            raise OptionError(
                f"--cfg {cfg:g} is no weight of the recipe {process.name!r}, which goes from the "
                "unconditional estimate (0) to the conditional one (1).",
                remedy="Give a number from 0 to 1, such as 0.6.",
            )
        scale = process.cfg if cfg is None and process.cfg is not None else scale
    interval = backbone.default_cfg_interval
    if process is not None and process.leads == "unconditional":
        interval = EVERYWHERE
    if config.cfg_interval is not None and name == "base":
        interval = NoiseRange.read(config.cfg_interval)
    churn = Churn.of(config.churn, config.churn_range, config.churn_noise)
    steps, sampler, eta = backbone.sampling(steps, config.sampler, config.eta)
    solver = load_sampler(found, sampler, backbone, eta, churn)
    return Stage(
        name, backbone, steps, solver.walk(backbone, steps), solver, sampler, eta, scale, interval,
        process=process,
    )  # fmt: skip


def _process(config: RunConfig, found: Registry) -> Recipe | None:
    """The run's recipe where that asks no guide."""
    if config.recipe is None:
        return None
    recipe = load_recipe(found, config.recipe)
    return recipe if recipe.guideless else None


def _steered(guide: GuideConfig, stages: list[Stage]) -> list[Stage]:
    """The stages that a guide steers."""
    wanted = {None: ("base",), "both": ("base", "upsampler")}.get(guide.stage, (guide.stage,))
    if len(stages) == 1 and "upsampler" in wanted:
        raise OptionError(
            f"The guide {guide.name!r} is to steer an upsampler, and there is none.",
            remedy="Give one with --upsampler, or leave out --stage.",
        )
    return [stage for stage in stages if stage.name in wanted]


def calibrated(config: GuideConfig, choice: Choice) -> Choice:
    """The choice with the guide's calibration, if one was asked for."""
    if config.calibration is None:
        return choice
    calibration = load_calibration(Path(config.calibration), choice.guide)
    calibration.check_view(choice.recipe.sees_noise)
    guide = Calibrated(choice.guide, calibration)
    return replace(choice, guide=guide, calibration_file=calibration_file(config.calibration))


def target_of(guide: Guide, given: Any, size: tuple[int, int], device: torch.device) -> Target:
    """What a guide reads of a target, on the run's device."""
    try:
        target = guide.read_target("" if given is None else given, size)
    except TargetError as error:
        if given is not None:
            raise
        raise OptionError(
            f"The guide {guide.name!r} was given no target, and it is no reward.",
            remedy=f"Add --target. {error.remedy}",
        ) from error
    return replace(target, value=target.value.to(device))


def _set_conditions(
    stage: Stage, config: RunConfig, moved: Mapping[str, str] | None, device: torch.device
) -> dict[str, Reading]:
    """What the images are conditioned on, and the unconditional branch where one is needed.

    Returns:
        The image to fill in and its mask, where there are any.
    """
    backbone = stage.backbone
    given: Condition = {}
    inputs: dict[str, Reading] = {}
    if config.image is not None and config.mask is not None:
        photo, mask, known = read_known(
            Given.of(config.image, ("photo",), moved), Given.of(config.mask, ("mask",), moved),
            backbone.image_size,
        )  # fmt: skip
        given = backbone.inpainting(photo.pixels.to(device), known.to(device))
        inputs = {"image": photo, "mask": mask}
    each = isinstance(config.prompt, tuple) or isinstance(config.class_index, tuple)
    rows = range(config.num) if each else range(1)
    prompts, classes = config.of_images("prompt", rows), config.of_images("class_index", rows)
    stage.condition = {**encode(backbone, prompts, classes), **given}
    stage.unconditional = stage.condition
    if stage.cfg != 1 or stage.process is not None:
        each = isinstance(config.negative_prompt, tuple)
        against = config.of_images("negative_prompt", range(config.num) if each else range(1))
        empty = encode(backbone, against, [None] * len(against))
        stage.unconditional = {**empty, **given}
    elif config.negative_prompt:
        raise OptionError(
            "--negative-prompt does nothing without classifier-free guidance.",
            remedy="Add --cfg above 1, or leave it out.",
        )
    return inputs


def model_files(setup: Setup) -> dict[str, str]:
    """SHA-256 of every file that a network of the run was read from, by name."""
    found: dict[str, str] = {}
    for stage in setup.stages:
        base = stage is setup.stages[0]
        known_as = called(setup.config.backbone) if base else stage.name
        if isinstance(setup.config.backbone, str) and base:
            known_as = setup.config.backbone
        found |= file_hashes(stage.backbone.files(), known_as)
        for g in stage.guides:
            found |= file_hashes(g.expert_files, f"{g.name}-experts")
            if g.calibration_file is not None:
                found |= file_hashes([g.calibration_file], f"{g.name}-calibration")
    for g in setup.guides:
        found |= file_hashes((*g.guide.files(), *g.files), g.name)
    return found
