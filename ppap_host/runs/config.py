"""The configuration of a run: one plain object, from the command line, a TOML file, or both."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from ppap_host.files.errors import OptionError, nearest, unknown_name
from ppap_host.recipes.settings import split_recipe
from ppap_host.sampling.names import BALANCE_SUMMARIES, SAMPLER_SUMMARIES

if TYPE_CHECKING:
    from ppap_host.plugins.registry import Registry

STAGES = ("base", "upsampler", "both")
"""Of a cascade, for guides."""


@dataclass(frozen=True)
class GuideConfig:
    """One guide of a run.

    Attributes:
        name: of the guide.
        target: what it should see; a label or a path.
        scale: guidance strength; None takes the guide's own default for the recipe.
        model: checkpoint, folder or hub name; None takes the network the plugin ships.
        recipe: its own recipe, perhaps with settings (:func:`split_recipe`); None takes the run's.
        experts: an expert set by name or path, or "none"; None takes a registered set that fits.
        interval: "low:high" in log-SNR, outside which the guide is not asked; either may be empty.
        stage: of a cascade that it guides: base, upsampler or both; None is the base.
        calibration: what `ppap calibrate` wrote for it, a file or its folder; None for none.
    """

    name: str
    target: str
    scale: float | None = None
    model: str | None = None
    recipe: str | None = None
    experts: str | None = None
    interval: str | None = None
    stage: str | None = None
    calibration: str | None = None

    def __post_init__(self) -> None:
        if self.stage not in (None, *STAGES):
            raise unknown_name("stage", str(self.stage), STAGES)


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a run makes; where it is written is not part of it.

    Attributes:
        guides: in the order they are applied.
        backbone: name of the diffusion model.
        checkpoint: its weights, for backbones that do not ship them.
        prompt: text for text-conditional backbones, "" for none.
        class_index: of class-conditional backbones, >= 0; None for none.
        backbone_options: what else the backbone's factory takes, such as ``vae`` or ``upsampler``.
        image, mask: a picture to be filled in where the mask is white; for inpainting backbones.
        cfg: classifier-free guidance scale; None takes the backbone's default.
        recipe: guidance method of guides that name none; None takes "ppap" for guides with experts
            and "x0" for the others.
        balance: how several guides make room for each other: project or sum.
        steps: number of denoising steps, or a spacing such as "ddim25" or "10,10,10".
        upsampler_steps: the same for the upsampler of a cascade; None takes its own default.
        sampler: name of the solver.
        eta: stochasticity of DDIM, in [0, 1].
        churn: S_churn of the sampler heun (Karras et al., 2022), >= 0.
        churn_range: S_tmin:S_tmax in sigma / alpha, "low:high"; None: everywhere.
        churn_noise: S_noise, > 0.
        seed: >= 0; image k depends on the seed and k alone.
        num: images to make.
        batch: images to make at a time.
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: number format of the networks: float32, bfloat16 or float16.
    """

    guides: tuple[GuideConfig, ...] = ()
    backbone: str = "shapes"
    checkpoint: str | None = None
    prompt: str = ""
    class_index: int | None = None
    backbone_options: Mapping[str, str] = field(default_factory=dict)
    image: str | None = None
    mask: str | None = None
    cfg: float | None = None
    recipe: str | None = None
    balance: str = "project"
    steps: int | str = 50
    upsampler_steps: int | str | None = None
    sampler: str = "ddim"
    eta: float = 0.0
    churn: float = 0.0
    churn_range: str | None = None
    churn_noise: float = 1.0
    seed: int = 0
    num: int = 4
    batch: int = 8
    device: str = "auto"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if (self.image is None) != (self.mask is None):
            raise OptionError(
                "--image and --mask belong together.",
                remedy="Give the picture with --image, and with --mask one of the same picture "
                "that is white where it is to be made anew.",
            )
        for name, low in (("num", 1), ("batch", 1), ("seed", 0), ("class_index", 0)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise OptionError(
                    f"--{name.removesuffix('_index')} {value} is out of range.",
                    remedy=f"Give a whole number from {low} on.",
                )

    @property
    def conditional(self) -> bool:
        """Whether there is a prompt or a class that classifier-free guidance can strengthen."""
        return bool(self.prompt) or self.class_index is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; None where a default decides."""
        return dataclasses.asdict(self) | {"guides": [dataclasses.asdict(g) for g in self.guides]}

    def to_toml(self) -> str:
        """The configuration file that repeats this run."""
        plain = {k: v for k, v in self.to_dict().items() if v is not None and k != "guides"}
        plain["guide"] = [
            {k: v for k, v in dataclasses.asdict(g).items() if v is not None} for g in self.guides
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
        if not isinstance(tables, list) or not all(isinstance(t, Mapping) for t in tables):
            raise OptionError(
                f"'guide' in {source} is not a list of tables.",
                remedy='Write one [[guide]] table for each, with name = "..." and target = "...".',
            )
        guides = tuple(GuideConfig(**_checked(GuideConfig, t, source)) for t in tables)
        return cls(guides=guides, **_checked(cls, values, source))


def check_names(config: RunConfig, found: Registry) -> None:
    """Whether everything a configuration names exists; imports none of it.

    Raises:
        PluginError, UnknownNameError: as :meth:`ppap_host.plugins.registry.Registry.entry`.
    """
    if config.sampler not in SAMPLER_SUMMARIES:
        raise unknown_name("sampler", config.sampler, SAMPLER_SUMMARIES)
    found.entry("backbone", config.backbone)
    if config.balance not in BALANCE_SUMMARIES:
        raise unknown_name("balance", config.balance, BALANCE_SUMMARIES)
    for recipe in (config.recipe, *(g.recipe for g in config.guides)):
        if recipe is not None:
            found.entry("recipe", split_recipe(recipe)[0])
    for guide in config.guides:
        found.entry("guide", guide.name)


RECORD_FORMAT = 1
"""Version of the layout of a run's record."""


def new_record(config: RunConfig) -> dict[str, Any]:
    """The record of a run that has not loaded anything yet; see :mod:`ppap_host.runs.record`."""
    return {
        "format": RECORD_FORMAT,
        "config": config.to_dict(),
        "status": "running",
        "skipped_guidance": {},
        "limited_guidance": {},
        "warnings": [],
        "images": [],
    }


_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "str | None": (str,),
    "float | None": (int, float),
    "int | None": (int,),
    "int | str": (int, str),
    "int | str | None": (int, str),
    "Mapping[str, str]": (dict,),
}


def _checked(cls: type, values: Mapping[str, Any], source: str) -> dict[str, Any]:
    fields = {f.name: f for f in dataclasses.fields(cls) if f.name != "guides"}
    checked = {}
    for key, value in values.items():
        if key not in fields:
            close = nearest(key, fields, 1)
            raise OptionError(
                f"Unknown option {key!r} in {source}.",
                remedy=(f"Did you mean {close[0]!r}? " if close else "")
                + f"Known: {', '.join(fields)}.",
            )
        kinds = _TYPES[str(fields[key].type)]
        optional = "None" in str(fields[key].type)
        if not (optional and value is None) and (
            not isinstance(value, kinds) or isinstance(value, bool)
        ):
            raise OptionError(
                f"{key!r} in {source} is {value!r}.",
                remedy=f"It must be {' or '.join(k.__name__ for k in kinds)}.",
            )
        if isinstance(value, dict) and not all(isinstance(v, str) for v in value.values()):
            raise OptionError(
                f"{key!r} in {source} is {value!r}.", remedy="All its values must be texts."
            )
        checked[key] = (
            _finite(key, value, source) if float in kinds and value is not None else value
        )
    missing = [
        f.name
        for f in fields.values()
        if f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
        and f.name not in values
    ]
    if missing:
        raise OptionError(
            f"A guide in {source} has no {missing[0]!r}.", remedy=f'Add {missing[0]} = "...".'
        )
    return checked


def _finite(key: str, value: Any, source: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise OptionError(f"{key!r} in {source} is {value}.", remedy="It must be finite.")
    return number


def read_toml(path: Path) -> dict[str, Any]:
    """The plain values of a configuration file.

    Raises:
        OptionError: it is missing or not valid TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(
            f"Cannot read the configuration {str(path)!r}: {error.strerror}.",
            remedy="Write one with `ppap run ... --print-config > run.toml`.",
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionError(
            f"The configuration {str(path)!r} is not valid TOML ({error}).",
            remedy="Write one with `ppap run ... --print-config > run.toml`.",
        ) from None
