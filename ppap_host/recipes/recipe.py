"""Recipe: a guidance method as a composition of parts, and the numbers in it that can be set."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ppap_host.backbones.noise import EVERYWHERE, NoiseRange
from ppap_host.files.errors import OptionError, foreign, unknown_name
from ppap_host.guides.activations import Softened
from ppap_host.guides.guide import Guide
from ppap_host.recipes.ascents import Ascent, Gradient
from ppap_host.recipes.blends import Blend
from ppap_host.recipes.energies import Energy, Point
from ppap_host.recipes.gradients import GradientPart
from ppap_host.recipes.places import Place
from ppap_host.recipes.selections import Selection
from ppap_host.recipes.starts import NoiseAscent
from ppap_host.recipes.strengths import Constant, Strength
from ppap_host.recipes.views import View

ABSOLUTE = "absolute"
"""The setting by which a recipe is asked for with absolute strength, ``dps:absolute=yes``."""
CONSTANT, OWN_LOSS, ONCE = Constant(), Point(), Gradient()
MOST_STEPS, MOST_REPEATS = 1_000_000, 100


@dataclass(frozen=True)
class Move:
    """One thing that a recipe does with a guide's gradient in a step.

    Attributes:
        view: what the guide is shown.
        place: where the gradient changes the step.
        strength: the factor on it over the course of the walk.
        gradient: what is done to it, in this order.
        energy: how the loss of what is shown is evaluated.
        ascent: how often the gradient is followed, and how.
        limit: root mean square that the user's scale times the gradient is cut to, image by image,
            before the strength, in units of the place (:meth:`Place.unit`); no scale can then drive
            an image out of all bounds. Only with absolute strength: a share has no need of it.

    Raises:
        ValueError: the parts do not go together.
    """

    view: View
    place: Place
    strength: Strength = CONSTANT
    gradient: tuple[GradientPart, ...] = ()
    energy: Energy = OWN_LOSS
    ascent: Ascent = ONCE
    limit: float = math.inf

    def __post_init__(self) -> None:
        if self.view.through_backbone and self.ascent != ONCE:
            raise ValueError(
                "A gradient through the backbone is taken once: the backbone is not asked again."
            )
        if self.place.enters and not self.view.sees_noise:
            raise ValueError(
                "Before the backbone is asked there is nothing to show but the noised state."
            )

    @property
    def weight(self) -> float:
        """How much of a step's share this move gets, beside the recipe's others: the factor of its
        strength, >= 0; 1 for a strength that has none."""
        return float(getattr(self.strength, "factor", 1.0)) if self.ascent.steps else 0.0


@dataclass(frozen=True)
class Parameter:
    """A number or a word in a recipe that users and searches may set.

    Attributes:
        name: as in ``--recipe tfg:rho=0.5``.
        paths: where it is, from the recipe on, such as ``"strength.factor"`` or
            ``"also.0.strength.factor"``; all of them get the same value.
        low, high: what a search tries; other values are allowed.
        log: whether it searches on a logarithmic scale.
        choices: the words it can be, for parameters that are no numbers.
        absolute: whether it says something with absolute strength alone.
    """

    name: str
    paths: tuple[str, ...]
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    choices: tuple[str, ...] = ()
    absolute: bool = False

    def astray(self, recipe: Recipe) -> str | None:
        """The first path that leads nowhere in this recipe, None if all lead somewhere."""
        for path in self.paths:
            try:
                _at(recipe, path)
            except ValueError:
                return path
        return None


@dataclass(frozen=True)
class Recipe:
    """A guidance method.

    Attributes:
        name: what the user calls it.
        view, place, strength, gradient, energy, ascent, limit: of its (first) :class:`Move`.
            Without a place the guide is asked for a selection or a start alone. Without a view
            none is asked: such a recipe is one of the process itself.
        also: further moves, in this order.
        selection: how images are chosen by the guide's values, None if they are not.
        start: how the initial noise is made better before the first step, None if it is not.
        leads: which branch of classifier-free guidance the noise of the next state is from;
            "unconditional" is CFG++.
        blend: how the two branches become one prediction, None for the usual way; with ``leads``
            and ``cfg`` for recipes of the process itself.
        cfg: scale of classifier-free guidance where the user names none; None is the backbone's.
        interval: noise levels outside which the guide is not called at all.
        every: the guide is called at every so many steps, from the first on.
        recurrence: how often each step is taken; in between new noise leads back to its start (time
            travel; Lugmayr et al., 2022).
        softplus: beta of the Softplus that stands for every ReLU of the guide's network while it
            guides (EluCD, Ma et al., 2024, section 3.2); infinity leaves the network as it is.
        joint, marginal: temperatures of the guide's loss (:meth:`Guide.tempered`).
        needs_experts: whether it makes no sense with the plain network.
        parameters: which numbers in it can be set by name.
        absolute: whether the user's scale multiplies the gradient, in the units of the paper, and
            limits and learning rates hold. By default strength is relative: scale 1 is the same
            share of what a step may move for every recipe (:mod:`ppap_host.recipes.shares`).

    Raises:
        ValueError: the parts do not go together.
    """

    name: str
    view: View | None = None
    place: Place | None = None
    strength: Strength = CONSTANT
    gradient: tuple[GradientPart, ...] = ()
    interval: NoiseRange = EVERYWHERE
    needs_experts: bool = False
    limit: float = math.inf
    energy: Energy = OWN_LOSS
    ascent: Ascent = ONCE
    also: tuple[Move, ...] = ()
    every: int = 1
    recurrence: int = 1
    softplus: float = math.inf
    joint: float = 1.0
    marginal: float = 1.0
    parameters: tuple[Parameter, ...] = ()
    selection: Selection | None = None
    start: NoiseAscent | None = None
    leads: Literal["guided", "unconditional"] = "guided"
    cfg: float | None = None
    absolute: bool = False
    blend: Blend | None = None

    def __post_init__(self) -> None:
        self.moves  # noqa: B018  checks the first move's parts
        if not (1 <= self.every <= MOST_STEPS and 1 <= self.recurrence <= MOST_REPEATS):
            raise ValueError(
                f"every is from 1 to {MOST_STEPS}, recurrence from 1 to {MOST_REPEATS}"
            )
        if not self.softplus > 0:
            raise ValueError("softplus is above 0, and inf for none")
        if not (0 < self.joint < math.inf and 0 <= self.marginal < math.inf):
            raise ValueError("joint is above 0, marginal at least 0, and both are finite")
        alone = self.selection is None and self.start is None
        leads = (self.leads, self.cfg, self.blend) != ("guided", None, None)
        if self.view is not None and leads:
            raise ValueError(
                "leads, cfg and blend are of the process itself, which asks no guide: make two "
                "recipes, one for the run and one for the guide"
            )
        asks = (self.every, self.recurrence, self.softplus, self.joint, self.marginal)
        if self.view is None and (
            asks != (1, 1, math.inf, 1.0, 1.0) or self.interval != EVERYWHERE
        ):
            raise ValueError(
                "interval, every, recurrence, softplus and temperatures say how a guide is asked, "
                "and this recipe asks none"
            )
        if self.selection is not None and self.selection.corrected:
            for place in (move.place for move in self.moves):
                if place.enters or place.own_size or place.replaces or self.recurrence > 1:
                    raise ValueError(
                        f"weights cannot make up for {type(place).__name__}, or repeats: a "
                        "corrected selection goes with moves of x_0, of the noise, or of the mean"
                    )
        if self.view is None and not (alone and self.place is None and not self.also):
            raise ValueError("what a guide is asked, it has to be shown: give a view")
        if self.view is not None and self.place is None and alone:
            raise ValueError("a guide is asked for something: give a place, selection or start")

    @property
    def moves(self) -> tuple[Move, ...]:
        """All that it does in a step with a guide's gradient."""
        if self.view is None or self.place is None:
            return self.also
        first = Move(
            self.view, self.place, self.strength, self.gradient, self.energy, self.ascent,
            self.limit,
        )  # fmt: skip
        return (first, *self.also)

    @property
    def sees_noise(self) -> bool:
        """Whether the guide is shown noised images, for which experts are tuned."""
        return any(view.sees_noise for view in self._views)

    @property
    def sees_predictions(self) -> bool:
        """Whether the guide is shown predicted clean images."""
        return any(not view.sees_noise for view in self._views)

    @property
    def _views(self) -> list[View]:
        alone = self.selection is None and self.start is None
        own = [] if alone or self.view is None else [self.view]
        return own + [move.view for move in self.moves]

    @property
    def guideless(self) -> bool:
        """Whether it asks no guide."""
        return self.view is None

    @property
    def asks_in_steps(self) -> bool:
        """Whether the guide is asked within steps, not before the first or after the last alone."""
        selects = self.selection is not None and not self.selection.at_end
        return bool(self.moves) or selects

    @property
    def takes_best(self) -> bool:
        """Whether the guide is asked for values of which the best is taken, however far it is."""
        chosen = self.selection
        drawn = chosen is None or not (chosen.at_end or (chosen.branches > 1 and not chosen.draws))
        return not drawn and not self.moves and self.start is None

    @property
    def particles(self) -> int:
        """How many are alive for each image."""
        return 1 if self.selection is None else self.selection.size

    @property
    def needs(self) -> Literal["", "noise", "gaussian"]:
        """What it needs of the sampler's steps (:attr:`Selection.needs`, :attr:`Place.needs`)."""
        found = {move.place.needs for move in self.moves}
        if self.selection is not None:
            found.add(self.selection.needs)
        return "gaussian" if "gaussian" in found else "noise" if "noise" in found else ""

    @property
    def replaces(self) -> bool:
        """Whether it takes steps in the sampler's place, so that strength 0 is not the sampler."""
        return any(move.place.replaces for move in self.moves)

    @property
    def evaluations(self) -> int:
        """Of the backbone, for a step of an image with a solver that asks once."""
        asked = 1 + sum(move.ascent.asks for move in self.moves)
        if self.selection is not None and self.view is not None and not self.view.sees_noise:
            asked += self.selection.branches - 1
        if self.start is not None:  # there and back, and once more for the way back
            asked += 2 * self.start.iterations
        return asked * self.recurrence * self.particles

    @property
    def through_backbone(self) -> bool:
        """Whether a gradient flows through the backbone."""
        return any(move.view.through_backbone for move in self.moves)

    def applied_to(self, guide: Guide) -> Guide:
        """The guide as this recipe asks it: its temperatures and its activations changed."""
        if (self.joint, self.marginal) != (1.0, 1.0):
            guide = guide.tempered(self.joint, self.marginal)
        return guide if math.isinf(self.softplus) else Softened(guide, self.softplus)

    def check(self, guide: Guide, target: Tensor) -> None:
        """Whether this guide can be asked what the recipe wants to know.

        Raises:
            OptionError: it cannot.
        """
        if self.guideless:
            raise OptionError(
                f"The recipe {self.name!r} asks no guide, and is given {guide.name!r}.",
                remedy="Use it without a guide, or beside guides with recipes of their own.",
            )
        if not guide.differentiable and (self.moves or self.start is not None):
            raise black_box(guide.name, self.name)
        for energy in (self.energy, *(move.energy for move in self.also)):
            energy.check(guide, target)

    def tunable(self) -> dict[str, Parameter]:
        """What can be set, by name: what every recipe has, and the recipe's own parameters.

        A recipe made from another one with other parts has lost those that were in them, and one
        with relative strength those that say something with absolute strength alone.
        """
        corrected = self.selection is not None and self.selection.corrected
        common = [] if self.guideless else [
            *[Parameter("every", ("every",), 1.0, 5.0)] * self.asks_in_steps,
            *[Parameter("recurrence", ("recurrence",), 1.0, 4.0)] * (not corrected),
            Parameter("softplus", ("softplus",), 1.0, 30.0, log=True),
        ]  # fmt: skip
        own = (
            p for p in self.parameters if not p.astray(self) and (self.absolute or not p.absolute)
        )
        return {p.name: p for p in (*common, *own)}

    def value(self, name: str) -> Any:
        """The present value of a parameter of :meth:`tunable`, or of one for absolute strength."""
        known = self.tunable() | {p.name: p for p in self.parameters if p.absolute}
        return _at(self, known[name].paths[0])

    def with_values(self, values: Mapping[str, Any]) -> Recipe:
        """The recipe with these parameters; texts are read as what the parameter is.

        Args:
            values: :meth:`tunable` ones, and ``absolute``.

        Raises:
            OptionError: there is no such parameter, or the value is none for it.
        """
        recipe, values = self, dict(values)
        if ABSOLUTE in values:
            asked = _read(Parameter(ABSOLUTE, (ABSOLUTE,)), values.pop(ABSOLUTE), self.absolute)
            recipe = replace(recipe, absolute=asked)
        known = recipe.tunable()
        for name, value in values.items():
            if any(p.name == name and p.absolute for p in self.parameters) and name not in known:
                raise OptionError(
                    f"{name} of the recipe {self.name!r} says something with absolute strength "
                    "alone.",
                    remedy="Leave it out, or write "
                    f"{foreign(f'{self.name}:{ABSOLUTE}=yes,{name}={value}')}.",
                )
            if not known:
                raise OptionError(
                    f"The recipe {self.name!r} has no settings, and {name}={value} is given.",
                    remedy="Leave it out.",
                )
            if name not in known:
                raise unknown_name(f"parameter of the recipe {self.name!r}", name, known)
            for path in known[name].paths:
                read = _read(known[name], value, _at(recipe, path))
                try:
                    recipe = _with(recipe, path, read)
                except (ValueError, OptionError) as error:
                    plain = isinstance(error, ValueError)
                    raise OptionError(
                        f"{name}={value} does not go with the recipe {self.name!r}"
                        f"{f': {error}' if plain else ''}.",
                        remedy=getattr(error, "remedy", "") or "Give another value.",
                    ) from None
        return recipe


def black_box(guide: str, recipe: str) -> OptionError:
    """The error of a guide without a gradient, asked for one."""
    return OptionError(
        f"The loss of the guide {guide!r} has no gradient towards the image, and the recipe "
        f"{recipe!r} follows one.",
        remedy="Leave torch.inference_mode, or use torch.no_grad instead."
        if torch.is_inference_mode_enabled()
        else "Compute it from the image with torch, without detach, numpy, no_grad or whole "
        "numbers; or choose by values: --recipe best-of-n, fk or svdd.",
    )


def _at(thing: Any, path: str) -> Any:
    for key in path.split("."):
        try:
            thing = thing[int(key)] if isinstance(thing, tuple) else getattr(thing, key)
        except (AttributeError, IndexError, ValueError):
            raise ValueError(f"the path {path!r} leads nowhere at {key!r}") from None
    return thing


def _with(thing: Any, path: str, value: Any) -> Any:
    key, _, rest = path.partition(".")
    if isinstance(thing, tuple):
        i = int(key)
        inner = _with(thing[i], rest, value) if rest else value
        return (*thing[:i], inner, *thing[i + 1 :])
    inner = _with(getattr(thing, key), rest, value) if rest else value
    return replace(thing, **{key: inner})


def _read(parameter: Parameter, value: Any, present: Any) -> Any:
    """A value of the type that the parameter has now."""
    if parameter.choices:
        if value in parameter.choices:
            return value
        raise unknown_name(parameter.name, str(value), parameter.choices)
    if isinstance(present, bool):
        words = {"yes": True, "no": False, "True": True, "False": False}
        if str(value) in words:
            return words[str(value)]
        raise OptionError(f"{parameter.name}={value} is neither yes nor no.", remedy="Give one.")
    whole = isinstance(present, int)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if (
        isinstance(value, bool)
        or math.isnan(number)
        or number < 0
        or (whole and not number.is_integer())
    ):
        kind = "a whole number" if whole else "a number"
        raise OptionError(
            f"{parameter.name}={value} is out of range.", remedy=f"Give {kind} of at least 0."
        )
    return int(number) if whole else number


def parts_of(move: Move) -> tuple[Any, ...]:
    """All parts of a move, for tables and records."""
    return tuple(
        part
        for f in dataclasses.fields(move)
        if f.name != "limit"
        for part in (getattr(move, f.name) if f.name == "gradient" else (getattr(move, f.name),))
    )
