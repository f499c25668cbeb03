"""What a trial is worth: the measure it was asked for, distance to clean images, and cost.

A measure alone is best where a guide is followed until pictures break. So a trial is scored by

    gain - distance * (D - D_0) / D_0 - cost * log2(C / C_0),

with its Fréchet distance D to clean images and its cost C, and D_0, C_0 those of the same images
without guidance at the settings that the search starts from. The gain is the part of what separates
unguided images from perfect ones that is gone: 0 without guidance, 1 for a perfect measure. Both
weights are declared, kept in the record, and can be chosen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ppap_host.files.errors import OptionError
from ppap_host.files.settings import NotNegative, read, settings

if TYPE_CHECKING:
    from ppap_plugin_bench.search.study import Trial

PERFECT: Mapping[str, float] = {
    "accuracy": 1, "right": 1, "probability": 1, "miou": 1, "pixel-accuracy": 1, "delta<1.25": 1,
    "similarity": 1, "abs-rel": 0, "rmse": 0, "error": 0, "style": 0, "depth_error": 0,
    "psnr": math.inf,
}  # fmt: skip
"""The best value of each known measure; above 0, more is better."""

QUALITIES: Mapping[str, float] = {"draft": 0.2, "normal": 0.05, "best": 0.0}
"""Weight of the cost by which each quality is chosen among the points of a frontier. With 0.05,
twice the cost has to bring a twentieth of the way from unguided images to perfect ones."""


@settings
class Weights:
    """How much distance and cost count against the gain.

    Attributes:
        distance: for each time the unguided images' distance on top of it, >= 0.
        cost: for each doubling, >= 0.
    """

    distance: NotNegative = 0.1
    cost: NotNegative = QUALITIES["normal"]

    @classmethod
    def read(cls, text: str) -> Weights:
        """From "distance=0.1,cost=0.05"; what is left out has its default.

        Raises:
            OptionError: it is no such text.
        """
        try:
            pairs = [part.split("=") for part in text.split(",") if part.strip()]
            values = {key.strip(): float(value) for key, value in pairs}
            if len(values) != len(pairs):
                raise ValueError("twice")
        except ValueError:
            raise OptionError(
                f"--score {text!r} gives no weights.",
                remedy="Give distance=NUMBER,cost=NUMBER, each once and at least 0.",
            ) from None
        return read(cls, values, f"--score {text!r}")


USUAL = Weights()


@dataclass(frozen=True)
class Measured:
    """What was measured of a trial's images.

    Attributes:
        measure: that the search is for.
        distance: Fréchet distance to clean images, None where there are none to compare with.
        cost: of an image, in floating point operations; 0 where none are known.
    """

    measure: float
    distance: float | None
    cost: float

    def left(self, name: str, higher_is_better: bool) -> float:
        """How far the measure is from perfect, >= 0; for one whose best is not known, minus it."""
        best = PERFECT.get(name)
        if best is None:
            return -self.measure if higher_is_better else self.measure
        return 10 ** (-self.measure / 20) if math.isinf(best) else abs(best - self.measure)

    def score(
        self, unguided: Measured, name: str, higher_is_better: bool, weights: Weights
    ) -> float:
        """What it is worth beside the unguided images; theirs is 0."""
        left, before = (each.left(name, higher_is_better) for each in (self, unguided))
        score = (before - left) / (abs(before) or 1.0)
        if self.distance is not None and unguided.distance:
            score -= weights.distance * (self.distance / unguided.distance - 1)
        if self.cost and unguided.cost:
            score -= weights.cost * math.log2(self.cost / unguided.cost)
        return score


UNKNOWN = Measured(0.0, None, 0.0)
"""Nothing was measured."""


def frontier(trials: Iterable[Trial], *, higher_is_better: bool) -> list[Trial]:
    """The trials that no other one beats in measure, distance and cost at once, cheapest first."""
    good = [trial for trial in trials if trial.judged is not None]

    def worth(trial: Trial) -> tuple[float, float, float]:
        assert trial.judged is not None
        found = trial.judged.measured
        measure = -found.measure if higher_is_better else found.measure
        return found.cost, measure, found.distance or 0.0

    points = {trial.number: worth(trial) for trial in good}
    kept = [
        trial
        for trial in good
        if not any(
            other != points[trial.number]
            and all(a <= b for a, b in zip(other, points[trial.number], strict=True))
            for other in points.values()
        )
    ]
    return sorted(kept, key=lambda trial: points[trial.number])


def chosen(
    points: Sequence[Trial], unguided: Measured, name: str, higher_is_better: bool, weights: Weights
) -> dict[str, Trial]:
    """The point of a frontier for each of :data:`QUALITIES`."""

    def best(cost: float) -> Trial:
        weighed = Weights(weights.distance, cost)
        return max(
            points,
            key=lambda trial: trial.judged.measured.score(  # type: ignore[union-attr]
                unguided, name, higher_is_better, weighed
            ),
        )

    return {quality: best(cost) for quality, cost in QUALITIES.items()}
