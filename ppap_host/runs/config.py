"""The configuration of a run: one plain object, from the command line, a TOML file, or Python."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tomli_w
from pydantic import AfterValidator

from ppap_host.files import reading
from ppap_host.files.errors import OptionError, unknown_name
from ppap_host.files.settings import (
    Batch,
    Finite,
    Fraction,
    Images,
    Index,
    Many,
    NotNegative,
    Place,
    Positive,
    Seed,
    Side,
    Steps,
    Table,
    read,
    settings,
)
from ppap_host.plugins.listing import check_sampler
from ppap_host.recipes.settings import checked_recipe, split_recipe
from ppap_host.sampling.names import BALANCE_SUMMARIES, PIPELINE

if TYPE_CHECKING:
    from ppap_host.plugins.registry import Registry

STAGES = ("base", "upsampler", "both")
"""Of a cascade, for guides."""

MOST_GUIDES = 32


def _an_interval(text: str) -> str:
    from ppap_host.backbones.noise import NoiseRange

    NoiseRange.read(text)
    return text


Interval = Annotated[str, AfterValidator(_an_interval)]
"""Noise levels as :meth:`~ppap_host.backbones.noise.NoiseRange.read` reads them."""

GivenRecipe = Annotated[Any, AfterValidator(checked_recipe)]
"""A recipe by name, perhaps with settings, one in memory, or None."""


@settings
class GuideConfig:
    """One guide of a run: what steers, towards what, and how.

    Attributes:
        name: what it is called in results. Where ``what`` is left out, also what steers.
        target: what it should see: a label, a path, a table such as
            ``{path = "room.png", as = "depth", unit = "mm"}``, or another
            :data:`~ppap_host.guides.targets.Value`. None for guides without one, such as rewards. A
            tuple has one target an image.
        scale: guidance strength; None takes the guide's own default for the recipe. 1 is the same
            share of what a step may move for every guide, recipe and backbone.
        absolute: whether the scale is the recipe's paper's instead, which multiplies the gradient;
            it has no default. The same as the setting ``absolute=yes`` of the recipe.
        model: checkpoint, folder or hub name; None takes the network the plugin ships.
        recipe: its own recipe, perhaps with settings
            (:func:`~ppap_host.recipes.settings.split_recipe`), or a
            :class:`~ppap_host.recipes.recipe.Recipe` in memory; None takes the run's.
        experts: an expert set by name or path, or "none"; None takes a registered set that fits.
        interval: "low:high" in log-SNR, outside which the guide is not asked; either may be empty.
        stage: of a cascade that it guides: base, upsampler or both; None is the base.
        calibration: what `ppap calibrate` wrote for it, a file or its folder; None for none.
        what: what steers: the name of a guide, ``FILE.py:NAME`` of one's own code, or an object in
            memory (a guide, a module, a function, or a reward of one of them).
    """

    name: Place
    target: Any = None
    scale: Finite | None = None
    model: str | None = None
    recipe: GivenRecipe = None
    experts: str | None = None
    interval: Interval | None = None
    stage: Literal["base", "upsampler", "both"] | None = None
    calibration: str | None = None
    what: Any = None
    absolute: bool = False

    @property
    def steers(self) -> Any:
        """What steers: :attr:`what`, or the name of a guide."""
        return self.name if self.what is None else self.what

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; objects in memory as ``{"object": what they are called}``."""
        return _plain_fields(self)


@settings
class RunConfig:
    """Everything that decides what a run makes; where it is written is not part of it.

    None, where a field allows it, leaves the choice to the backbone or the guides; what was chosen
    stands in the record (:meth:`ppap_host.runs.setup.Setup.decided`).

    Attributes:
        guides: in the order they are applied.
        backbone: name of the diffusion model, or a backbone or a pipeline of diffusers in memory.
        checkpoint: its weights, for backbones that do not ship them.
        prompt: text for text-conditional backbones, "" for none; one for all images or one each.
        class_index: of class-conditional backbones, >= 0; None for none; one for all or one each.
        backbone_options: what else the backbone's factory takes, such as ``vae`` or ``upsampler``.
        negative_prompt: what classifier-free guidance leads away from; one for all or one each.
        image, mask: a picture to be filled in where the mask is white; a picture alone is where a
            pipeline of diffusers starts from, or what its control network is shown. Paths,
            tables or pictures in memory, as of targets.
        strength: how much of the way from noise to picture a pipeline goes that starts from a
            picture, in [0, 1]; None takes the pipeline's default.
        height, width: in pixels, of pipelines of diffusers; None takes the pipeline's default.
        cfg: classifier-free guidance scale; None takes the backbone's default. Of a pipeline that
            has a ``true_cfg_scale`` it is that.
        cfg_interval: "low:high" in log-SNR, outside which ``cfg`` is 1; either may be empty. None
            takes the backbone's default.
        guidance_scale: of such a pipeline, the strength that its distilled network is told.
        pipeline: further arguments of a pipeline's call, by name.
        recipe: guidance method of guides that name none; None takes "ppap" for guides with experts
            and "x0" for the others. One that asks no guide ("cfg++") is the run's own, with or
            without guides that name theirs.
        balance: how several guides make room for each other: project or sum.
        steps: number of denoising steps, or a spacing such as "ddim25" or "10,10,10"; None takes
            the backbone's default.
        upsampler_steps: the same for the upsampler of a cascade.
        sampler: name of the solver; None takes the backbone's default.
        eta: stochasticity of DDIM, DPM-Solver++ and their kin, in [0, 1]; None takes the backbone's
            default for its sampler, and the sampler's own for others.
        churn: S_churn of the sampler heun (Karras et al., 2022), >= 0.
        churn_range: S_tmin:S_tmax in sigma / alpha, "low:high"; None: everywhere.
        churn_noise: S_noise, > 0.
        seed: >= 0; image k depends on the seed and k alone. With one seed an image, image k is what
            its seed makes as image 0.
        num: images to make.
        batch: images to make at a time, each particle of a population counting as one; None takes
            the backbone's default.
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: number format of the networks: float32, bfloat16 or float16.
        unguided: whether the same images are also made without guides, to compare.
        quality: point of the guides' measured frontiers (:mod:`ppap_host.runs.quality`) that steps,
            sampler, strengths, intervals and what their recipes leave open are taken from: draft,
            normal or best. None is normal where every guide has one; none takes the backbone's and
            the recipes' own.
    """

    guides: tuple[GuideConfig, ...] = ()
    backbone: Any = "shapes"
    checkpoint: Place | None = None
    prompt: str | Annotated[tuple[str, ...], Many] = ""
    class_index: Index | Annotated[tuple[Index | None, ...], Many] | None = None
    backbone_options: Mapping[str, str] = field(default_factory=dict)
    negative_prompt: str | Annotated[tuple[str, ...], Many] = ""
    image: Any = None
    mask: Any = None
    strength: Fraction | None = None
    height: Side | None = None
    width: Side | None = None
    cfg: Finite | None = None
    cfg_interval: Interval | None = None
    guidance_scale: Finite | None = None
    pipeline: Table = field(default_factory=dict)
    recipe: GivenRecipe = None
    balance: str = "project"
    steps: Steps | None = None
    upsampler_steps: Steps | None = None
    sampler: str | None = None
    eta: Fraction | None = None
    churn: NotNegative = 0.0
    churn_range: str | None = None
    churn_noise: Positive = 1.0
    seed: Seed | Annotated[tuple[Seed, ...], Many] = 0
    num: Images = 4
    batch: Batch | None = None
    device: str = "auto"
    dtype: str = "float32"
    unguided: bool = False
    quality: Literal["draft", "normal", "best", "none"] | None = None

    def __post_init__(self) -> None:
        if self.image is None and self.mask is not None:
            raise OptionError(
                "--mask says what of --image is to be made anew, and there is no --image.",
                remedy="Give the picture with --image, and with --mask one of the same picture "
                "that is white where it is to be made anew.",
            )
        lengths = {
            "prompt": self.prompt,
            "negative prompt": self.negative_prompt,
            "class": self.class_index,
            "seed": self.seed,
        }
        lengths |= {f"target of {g.name!r}": g.target for g in self.guides}
        for what, value in lengths.items():
            if isinstance(value, tuple) and len(value) not in (1, self.num):
                raise OptionError(
                    f"There are {len(value)} values of {what} for {self.num} images.",
                    remedy="Give one for all images, or one for each.",
                )

    @property
    def conditional(self) -> bool:
        """Whether there is a prompt or a class that classifier-free guidance can strengthen."""
        prompts, classes = self.of_images("prompt", [0]), self.of_images("class_index", [0])
        if isinstance(self.prompt, tuple):
            prompts = list(self.prompt)
        if isinstance(self.class_index, tuple):
            classes = list(self.class_index)
        return any(prompts) or any(c is not None for c in classes)

    def of_images(self, field: str, indices: Sequence[int]) -> list[Any]:
        """The value of a field for each of these images."""
        value = getattr(self, field)
        if not isinstance(value, tuple):
            return [value] * len(indices)
        return [value[k if len(value) > 1 else 0] for k in indices]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; objects in memory as ``{"object": what they are called}``."""
        return _plain_fields(self)

    def to_toml(self) -> str:
        """The configuration file that repeats this run."""
        plain = {k: v for k, v in self.to_dict().items() if v is not None and k != "guides"}
        plain["guide"] = [
            {k: v for k, v in g.to_dict().items() if v is not None} for g in self.guides
        ]
        return tomli_w.dumps(plain)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str) -> RunConfig:
        """From plain values (``guide`` or ``guides`` holds one table a guide).

        Args:
            source: names the origin in errors.

        Raises:
            OptionError: a key is unknown or a value has the wrong type.
        """
        values = dict(values)
        if "guide" in values and "guides" in values:
            raise OptionError(
                f"There are both 'guide' and 'guides' in {source}.",
                remedy="Write every guide as one [[guide]] table.",
            )
        tables = values.pop("guide", values.pop("guides", []))
        if not isinstance(tables, list | tuple) or not all(isinstance(t, Mapping) for t in tables):
            raise OptionError(
                f"'guide' in {source} is not a list of tables.",
                remedy='Write one [[guide]] table for each, with name = "..." and target = "...".',
            )
        if len(tables) > MOST_GUIDES:
            raise OptionError(
                f"There are {len(tables)} guides in {source}.",
                remedy=f"A run takes at most {MOST_GUIDES}.",
            )
        guides = []
        for table in tables:
            row = {
                k: tuple(v) if k == "target" and isinstance(v, list) else v
                for k, v in table.items()
            }
            guides.append(read(GuideConfig, row, f"a guide in {source}"))
        return read(cls, values | {"guides": tuple(guides)}, source)


def _plain_fields(config: Any) -> dict[str, Any]:
    found = {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if found.get("what", ...) is None:
        del found["what"]
    return found


def _plain(value: Any) -> Any:
    """A value as JSON has it; an object in memory by what it is called."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, os.PathLike):
        path = os.fspath(value)
        return {"path": path} if ":" in path else path  # it is no head of a target
    if getattr(value, "in_memory", None) is False:  # a target with what is known of it
        return value.table if value.is_path or value.kind else value.value
    if isinstance(value, GuideConfig):
        return value.to_dict()
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return {"object": called(value)}


def called(thing: Any) -> str:
    """What an object is called: its own name, a function's, or that of its class."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    own = getattr(thing, "name", None)
    if isinstance(own, str) and own:
        return own
    return str(getattr(thing, "__name__", type(thing).__name__))


OWN_CODE = "_ppap_"
"""What the names of modules begin with that are read from ``FILE.py:NAME``."""


def code_of(what: Any) -> tuple[Path, str] | None:
    """The file and the name in it that ``FILE.py:NAME`` means; None for anything else."""
    if not isinstance(what, str):
        return None
    file, colon, name = what.rpartition(":")
    if not colon or not file.endswith(".py") or not name.isidentifier():
        return None
    return Path(file).expanduser(), name


def refuse_code(config: RunConfig, source: str, named: Collection[str] = ()) -> None:
    """Refuses a configuration from a file that names code which the user has not named.

    Raises:
        OptionError: it does; says how to name it.
    """
    for guide in config.guides:
        if code_of(guide.steers) is not None and guide.steers not in named:
            raise OptionError(
                f"The code {guide.steers!r} would be run, which {source} names.",
                remedy="Look at it, and name it yourself with --guide.",
            )


def check_names(config: RunConfig, found: Registry) -> None:
    """Whether everything a configuration names exists; imports none of it.

    Raises:
        OptionError: the sampler is a scheduler that guides cannot use, or a guide is half of
            FILE.py:NAME.
        PluginError, UnknownNameError: as :meth:`ppap_host.plugins.registry.Registry.entry`.
    """
    if config.sampler not in (None, PIPELINE):
        check_sampler(found, config.sampler)
    if isinstance(config.backbone, str):
        found.entry("backbone", config.backbone)
    if config.balance not in BALANCE_SUMMARIES:
        raise unknown_name("balance", config.balance, BALANCE_SUMMARIES)
    for recipe in (config.recipe, *(g.recipe for g in config.guides)):
        if isinstance(recipe, str):
            found.entry("recipe", split_recipe(recipe)[0])
    for guide in config.guides:
        if not isinstance(guide.steers, str) or code_of(guide.steers) is not None:
            continue
        if guide.steers.endswith(".py") or ":" in guide.steers:
            raise OptionError(
                f"{guide.steers!r} names no code.",
                remedy="Give FILE.py:NAME, a guide or a function in a file.",
            )
        found.entry("guide", guide.steers)


RECORD_FORMAT = 1
"""Version of the layout of a run's record."""


def new_record(config: RunConfig) -> dict[str, Any]:
    """The record of a run that has not loaded anything yet; see :mod:`ppap_host.runs.record`."""
    return {
        "format": RECORD_FORMAT,
        "config": config.to_dict(),
        "status": "running",
        "failed": {},
        "targets": [],
        "skipped_guidance": {},
        "limited_guidance": {},
        "images_per_gradient": {},
        "warnings": [],
        "images": [],
    }


def read_toml(path: Path) -> dict[str, Any]:
    """The plain values of a configuration file.

    Raises:
        OptionError: it is missing or not valid TOML.
    """
    return reading.read_toml(
        path, OptionError, "Write one with `ppap run ... --print-config > run.toml`."
    )
