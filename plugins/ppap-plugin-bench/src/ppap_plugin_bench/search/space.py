"""What a search varies: the strength and the parameters that a recipe declares."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ppap_host.files.errors import OptionError, unknown_name
from ppap_host.recipes.recipe import Parameter, Recipe

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Value = float | int | bool | str

SCALE = "scale"
"""Name of the guidance strength among the dimensions."""

STEPS, INTERVAL, SOLVER = "steps", "interval", "solver"
"""Names of what a search can vary beside the recipe: steps, where a guide is asked, and by which
sampler the steps are taken, "NAME" or "NAME:ETA"."""

OUTSIDE = (SCALE, STEPS, INTERVAL, SOLVER)
"""Dimensions that are no parameters of a recipe."""

FRONTIER = (SCALE, STEPS, "every", INTERVAL, SOLVER)
"""What decides what guidance costs, and the strength that goes with it."""

INTERVALS = ("", ":-2", ":0", ":2", ":4")
"""Log-SNRs in which a guide may be asked: everywhere, or in noise alone."""

SOLVERS = ("ddim:0", "ddim:1", "dpm++:0", "dpm++:0.5", "dpm++:1")
"""Samplers that are tried."""

REACH = 30.0
"""The strengths that are tried go from the usual one over this to the usual one times this."""

DIGITS = 4
"""Significant digits of the numbers that are tried, so that a pasted command repeats a trial."""


@dataclass(frozen=True)
class Dimension:
    """One thing that is varied.

    Attributes:
        name: ``scale``, or a parameter of the recipe.
        start: its value in the first trial; may be one that the bounds don't hold, such as an
            infinite Softplus.
        low, high: bounds of a number.
        log: whether its logarithm is what is varied.
        choices: what it can be if it is no number, else empty.
    """

    name: str
    start: Value
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    choices: tuple[Value, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether it is a whole number."""
        return not self.choices and isinstance(self.start, int)

    def at(self, share: float) -> Value:
        """The value so far along the range; ``share`` is in [0, 1)."""
        if self.choices:
            return self.choices[int(share * len(self.choices))]
        if self.log:
            return self.tidy(self.low * (self.high / self.low) ** share)
        if self.whole:
            return self.tidy(math.floor(self.low + share * (self.high - self.low + 1)))
        return self.tidy(self.low + share * (self.high - self.low))

    def share(self, value: Value) -> float:
        """How far along the range a value is, in [0, 1); the middle of what :meth:`at` maps to it.

        Values out of bounds count as the nearest bound.
        """
        if self.choices:
            return (self.choices.index(value) + 0.5) / len(self.choices)
        number = float(self.within(value))
        if self.high == self.low:
            return 0.0
        if self.log:
            share = math.log(number / self.low) / math.log(self.high / self.low)
        elif self.whole:
            share = (number - self.low + 0.5) / (self.high - self.low + 1)
        else:
            share = (number - self.low) / (self.high - self.low)
        return min(max(share, 0.0), math.nextafter(1.0, 0.0))

    def within(self, value: Value) -> Value:
        """The value, or the bound that is nearest to it."""
        if self.choices:
            return value
        number = min(max(float(value), self.low), self.high)
        return round(number) if self.whole else number

    def tidy(self, value: Value) -> Value:
        """The value within the bounds, a number with :data:`DIGITS` significant digits."""
        if self.choices or self.whole:
            return self.within(value)
        return self.within(_rounded(float(value)))

    def read(self, plain: Any) -> Value:
        """A value from a record (:func:`plain`).

        Raises:
            ValueError, TypeError: it is none of this dimension.
        """
        if self.choices:
            if plain not in self.choices:
                raise ValueError(f"{plain!r} is none of {self.choices}")
            return self.choices[self.choices.index(plain)]
        return int(plain) if self.whole else float(plain)

    def distribution(self) -> BaseDistribution:
        """The same for Optuna."""
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        if self.choices:
            return CategoricalDistribution(self.choices)
        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)


def _rounded(number: float) -> float:
    """The number with :data:`DIGITS` significant digits."""
    return float(f"{number:.{DIGITS}g}")


def plain(value: Value) -> Value:
    """A value as records hold it: JSON knows no infinity."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def shown(value: Value) -> str:
    """A value as it is written on the command line; reads back as the same value."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def dimensions(
    recipe: Recipe,
    scale: float,
    only: Sequence[str] = (),
    scale_range: tuple[float, float] | None = None,
    steps: int | str = 50,
    interval: str = "",
    solver: str = "",
) -> tuple[Dimension, ...]:
    """What is varied of a recipe.

    Args:
        scale: the strength of the first trial, > 0.
        only: names of :data:`OUTSIDE` and of :meth:`Recipe.tunable`; empty takes ``scale`` and all
            of the recipe's own parameters.
        scale_range: bounds of the strength; None takes :data:`REACH` times more and less.
        steps, interval, solver: of the first trial.

    Raises:
        UnknownNameError: the recipe has no such parameter.
        OptionError: the bounds are none, or the start lies outside of them.
    """
    known = recipe.tunable()
    own = [p.name for p in recipe.parameters if p.name in known]
    for name in only:
        if name not in (*OUTSIDE, *known):
            others = (*OUTSIDE, *known)
            raise unknown_name(f"parameter of the recipe {recipe.name!r}", name, others)
    wanted = list(dict.fromkeys(only)) or [SCALE, *own]
    if scale_range is not None and SCALE not in wanted:
        raise OptionError(
            "--scale-range belongs to a search for the strength, and --only leaves it out.",
            remedy="Leave out one of them, or add scale to --only.",
        )
    if STEPS in wanted and not isinstance(steps, int):
        raise OptionError(
            f"The number of steps cannot be varied from the spacing {steps!r}.",
            remedy="Give a number with --steps, or leave out steps.",
        )
    made: dict[str, Callable[[], Dimension]] = {
        SCALE: lambda: _strength(scale, scale_range),
        STEPS: lambda: _steps(int(steps)),
        INTERVAL: lambda: Dimension(
            INTERVAL, interval, choices=tuple(dict.fromkeys((interval, *INTERVALS)))
        ),
        SOLVER: lambda: Dimension(SOLVER, solver, choices=tuple(dict.fromkeys((solver, *SOLVERS)))),
    }
    return tuple(
        made[name]() if name in made else _of_parameter(known[name], recipe.value(name))
        for name in wanted
    )


def _strength(start: float, bounds: tuple[float, float] | None) -> Dimension:
    if not (math.isfinite(start) and start > 0):
        raise OptionError(
            f"A search cannot start from the strength {start:g}.",
            remedy="Give a positive one with --scale.",
        )
    low, high = bounds or (_rounded(start / REACH), _rounded(start * REACH))
    if not (0 < low < high < math.inf):
        raise OptionError(
            f"Strengths from {low:g} to {high:g} are no range.",
            remedy="Give --scale-range LOW:HIGH with two positive numbers, the lower one first.",
        )
    # A usual strength elsewhere says nothing of the range that was asked for.
    inside = start if low <= start <= high else _rounded(math.sqrt(low * high))
    return Dimension(SCALE, float(inside), low, high, log=True)


def _steps(start: int) -> Dimension:
    return Dimension(STEPS, start, min(start, max(2, start // 10)), start, log=True)


def _of_parameter(parameter: Parameter, start: Any) -> Dimension:
    """The dimension of a parameter; its range is widened to hold a finite start."""
    if parameter.choices:
        return Dimension(parameter.name, start, choices=parameter.choices)
    if isinstance(start, bool):
        return Dimension(parameter.name, start, choices=(False, True))
    low, high, log = parameter.low, parameter.high, parameter.log
    if math.isfinite(start) and (start > 0 or not log):
        low, high = min(low, start), max(high, start)
    if isinstance(start, int):
        low, high = math.ceil(low), math.floor(high)
    return Dimension(parameter.name, start, low, high, log)


def parameters(values: Mapping[str, Value]) -> dict[str, Value]:
    """Those of the values that are the recipe's."""
    return {k: value for k, value in values.items() if k not in OUTSIDE}
