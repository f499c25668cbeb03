"""What `ppap search --frontier` measured of a guide, and what each quality takes from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from ppap_host.backbones.backbone import Backbone
from ppap_host.files.errors import CheckpointError
from ppap_host.files.hashes import file_hashes
from ppap_host.files.reading import Document
from ppap_host.files.settings import Finite, Number
from ppap_host.guides.guide import Guide
from ppap_host.recipes.recipe import Recipe
from ppap_host.recipes.settings import split_recipe
from ppap_host.runs.config import GuideConfig, Interval, RunConfig

FILES = "frontier*.json"
"""Frontiers lie beside a network's weights, one file for each backbone."""

USUAL: Final = "normal"
"""The quality of a run that names none."""
OFF: Final = "none"
"""The quality that decides nothing."""

_Word = Annotated[str, Field(pattern=r"^[\w.:+-]*$")]  # no settings beside the one it is of
_DOCUMENT = Document(
    "frontier", CheckpointError, "Delete it, or write it again with `ppap search --frontier`."
)


class Point(BaseModel):
    """Settings of one point; what is not named here is a parameter of the recipe."""

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, int | float | bool | _Word] = Field(init=False)

    scale: Finite
    steps: Number | Annotated[str, Field(pattern=r"^(ddim)?[1-9]\d{0,5}(,[1-9]\d{0,5})*$")]
    interval: Literal[""] | Interval = ""
    solver: str = Field("", pattern=r"^(|[a-z0-9+_-]+(:(0|1|0?\.\d+))?)$")


class Frontier(BaseModel):
    """What was measured of a guide with its network, on one backbone.

    Attributes:
        backbone_files: SHA-256 of the backbone's files, by name.
        experts: the set that it was measured with, None for none.
        qualities: a point for each.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1]
    guide: str
    backbone: str
    backbone_files: Mapping[str, str]
    recipe: str
    experts: str | None
    qualities: Mapping[str, Point]

    def serves(self, config: GuideConfig, recipe: str | Recipe | None) -> bool:
        """Whether it was measured with what was asked for, as far as that was said."""
        if not isinstance(recipe, str | None):
            return False
        named = None if recipe is None else split_recipe(recipe)[0]
        return named in (None, self.recipe) and config.experts in (None, self.experts or "none")


def written(sampler: str, eta: float | None) -> str:
    """A sampler with its eta, "ddim:0.5", as a point has it."""
    return sampler if eta is None else f"{sampler}:{eta:g}"


def read_solver(text: str) -> tuple[str, float | None]:
    """Sampler and eta of what :func:`written` gives; None where it has none."""
    name, _, eta = text.partition(":")
    return name, float(eta) if eta else None


def frontiers(guide: Guide, backbone: Backbone) -> list[Frontier]:
    """What was measured of a guide's network on a backbone, with these weights of it.

    Raises:
        CheckpointError: a file beside the guide's weights is no frontier.
    """
    folders = dict.fromkeys(path.parent for path in guide.files())
    paths = [path for folder in folders for path in sorted(folder.glob(FILES))]
    found = [_DOCUMENT.read(path, Frontier) for path in paths]
    found = [f for f in found if (f.guide, f.backbone) == (guide.name, backbone.name)]
    ours = set(file_hashes(backbone.files(), "").values()) if found else set()
    return [f for f in found if set(f.backbone_files.values()) == ours]


def with_quality(
    config: RunConfig, backbone: Backbone, guides: Sequence[Guide]
) -> tuple[RunConfig, str | None, list[str]]:
    """The configuration with what its quality decides, as values; what was given stays.

    Without one it is "normal" where every guide has such a point, and nothing is decided elsewhere.

    Args:
        guides: loaded, in the configuration's order.

    Returns:
        The configuration; what was decided, for people; and a sentence for each guide of which
        nothing was measured, and for a quality that had nothing to decide.

    Raises:
        CheckpointError: a file beside a guide's weights is no frontier.
    """
    wanted, asked = config.quality or USUAL, config.quality is not None
    if wanted == OFF:
        return config, None, []
    told, doubts, taken = list(config.guides), [], list[Point]()
    for i, (given, guide) in enumerate(zip(config.guides, guides, strict=True)):
        recipe = given.recipe or config.recipe
        fitting = [] if given.absolute else [
            f for f in frontiers(guide, backbone)
            if wanted in f.qualities and f.serves(given, recipe)
        ]  # fmt: skip
        if not fitting:
            doubts.append(
                f"No frontier was measured for the guide {given.name!r} with these settings on the "
                f"backbone {backbone.name!r}: quality {wanted!r} decides nothing for it."
            )
            continue
        point = fitting[0].qualities[wanted]
        taken.append(point)
        told[i] = replace(
            given,
            scale=point.scale if given.scale is None else given.scale,
            interval=given.interval if given.interval is not None else point.interval or None,
            recipe=_with_parameters(recipe or fitting[0].recipe, point.__pydantic_extra__),
        )
    if doubts and not asked:  # the steps that were chosen for one guide may be few for another
        return config, None, []
    if not config.guides:
        doubts.append(f"Quality {wanted!r} decides nothing: there is no guide.")
    decided = replace(config, guides=tuple(told))
    if taken:
        # Of several guides, the steps and the sampler of the one that needs most.
        most = max(taken, key=lambda point: _count(point.steps))
        if config.steps is None:
            decided = replace(decided, steps=most.steps)
        if config.sampler is None and config.eta is None and most.solver:
            sampler, eta = read_solver(most.solver)
            decided = replace(decided, sampler=sampler, eta=eta)
    said = None
    if decided != config:
        settings = [f"{decided.steps} steps"]
        if decided.sampler != config.sampler and decided.sampler is not None:
            settings[0] += f" of {written(decided.sampler, decided.eta)}"
        settings += [
            f"{g.name} {g.recipe} at scale {g.scale:g}" + f" in {g.interval}" * bool(g.interval)
            for g, before in zip(told, config.guides, strict=True)
            if g != before
        ]
        said = f"Quality {wanted}, as measured: {', '.join(settings)}"
    elif taken:
        doubts.append(f"Quality {wanted!r} decides nothing: everything it decides was given.")
    return decided, said, doubts if asked else []


def _count(steps: int | str) -> int:
    return steps if isinstance(steps, int) else sum(map(int, steps.removeprefix("ddim").split(",")))


def _with_parameters(recipe: str, parameters: Mapping[str, object]) -> str:
    """The recipe as one would write it, with the parameters that it does not set itself."""
    name, own = split_recipe(recipe)
    values = {k: v for k, v in parameters.items() if k != "every" or v != 1} | own
    return name + ":" * bool(values) + ",".join(f"{k}={v}" for k, v in values.items())
