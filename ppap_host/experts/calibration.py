"""What was calibrated, on file, and the guide that uses it."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator
from torch import Tensor

from ppap_host.backbones.noise import NoiseLevel, NoiseRange
from ppap_host.experts.patches import network_hash
from ppap_host.experts.sets import MOST, ExpertSet, View, WithExperts
from ppap_host.files.errors import CheckpointError, OptionError, foreign
from ppap_host.files.reading import Document
from ppap_host.files.writing import write_json
from ppap_host.guides.guide import Guide, Wrapped

FORMAT = 1
FILE = "calibration.json"
"""The calibration in a folder that ``ppap calibrate`` wrote."""

LOWEST, HIGHEST = 0.01, 100.0
"""Bounds of inverse temperatures. At the lower one nothing is left of what a network says, which is
right where it knows nothing; the upper one is reached where it is never wrong."""


@dataclass(frozen=True)
class RangeCalibration:
    """One noise range.

    Attributes:
        low, high: bounds of log-SNR, half-open: ``low <= log_snr < high``.
        inverse_temperature: what the logits are multiplied by, fitted on all images.
        count: predictions, images times noise levels.
        accuracy: mean of how right they are, in [0, 1].
        confidence, confidence_after: mean confidence without and with the inverse temperature.
        ece, ece_after: expected calibration error without and with it.
        smooth_ece, smooth_ece_after: smooth ECE without and with it.
        ece_error, ece_error_after: standard errors of the ECE, by resampling images.
        bins, bins_after: rows of :func:`~ppap_plugin_bench.calibration.measures.reliability`.

    What comes "after" was measured on images that the temperature was not fitted on: that of the
    first half of the images on the second and the other way round.
    """

    low: float
    high: float
    inverse_temperature: float
    count: int
    accuracy: float
    confidence: float
    confidence_after: float
    ece: float
    ece_after: float
    smooth_ece: float
    smooth_ece_after: float
    ece_error: float
    ece_error_after: float
    bins: tuple[tuple[float, ...], ...] = ()
    bins_after: tuple[tuple[float, ...], ...] = ()

    @property
    def range(self) -> NoiseRange:
        """The range itself."""
        return NoiseRange(self.low, self.high)

    @property
    def name(self) -> str:
        """The range, for people."""
        if math.isinf(self.low) and math.isinf(self.high):
            return "all"
        if math.isinf(self.high):
            return f"from {self.low:.2f}"
        if math.isinf(self.low):
            return f"below {self.high:.2f}"
        return f"{self.low:.2f} to {self.high:.2f}"

    @property
    def temperature(self) -> float:
        """What the logits are divided by."""
        return 1 / self.inverse_temperature

    def to_dict(self) -> dict[str, Any]:
        """JSON values; open ends of the range are null."""
        values = dataclasses.asdict(self)
        for key in ("low", "high"):
            values[key] = values[key] if math.isfinite(values[key]) else None
        for key in ("bins", "bins_after"):
            values[key] = [list(row) for row in values[key]]
        return values


@dataclass(frozen=True)
class Calibration:
    """The inverse temperatures of a guide, one a noise range, and what they were measured by.

    Attributes:
        guide: its name.
        network_sha256: :func:`ppap_host.experts.patches.network_hash` of its network in float32.
        view: what it was shown: x_t at unit variance scale ("noised"), or the clean image
            predicted from it ("predicted").
        ranges: none overlap.
        experts: name or path of its expert set, None without one.
        experts_sha256: :func:`experts_hash` of the set.
        details: where it comes from and what else was measured, as JSON values.
    """

    guide: str
    network_sha256: str
    view: View
    ranges: tuple[RangeCalibration, ...]
    experts: str | None = None
    experts_sha256: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def inverse_temperature(self, level: NoiseLevel) -> float:
        """The factor of the logits at a noise level.

        Raises:
            CheckpointError: no range holds the level.
        """
        for part in self.ranges:
            if level.log_snr in part.range:
                return part.inverse_temperature
        raise CheckpointError(
            f"The calibration of the guide {self.guide!r} has no range for log-SNR "
            f"{level.log_snr:.2f}.",
            remedy="Calibrate with ranges that hold all noise levels (--ranges 5).",
        )

    def check(self, guide: Guide) -> None:
        """Whether it was measured for this guide, its network and its experts.

        Args:
            guide: before it is moved to half precision, with its experts if it has any.

        Raises:
            CheckpointError: it was not; names what differs.
        """
        if guide.name != self.guide:
            raise CheckpointError(
                f"The calibration is for the guide {self.guide!r}, not for {guide.name!r}.",
                remedy=f"Make one with `ppap calibrate {guide.name}`.",
            )
        known = network_hash(guide.network())
        if known != self.network_sha256:
            raise CheckpointError(
                f"The calibration of the guide {self.guide!r} was measured on another network: "
                f"{self.network_sha256[:12]}..., not {known[:12]}....",
                remedy="Use it with the same --model, or calibrate this one with `ppap calibrate`.",
            )
        experts = experts_of(guide)
        if (None if experts is None else experts_hash(experts)) == self.experts_sha256:
            return
        mine = "without experts" if self.experts is None else f"with the experts {self.experts!r}"
        if experts is None:
            theirs = "it has none here"
        else:
            theirs = "it has some here" if self.experts is None else "it has others here"
        raise CheckpointError(
            f"The calibration of the guide {self.guide!r} was measured {mine}; {theirs}.",
            remedy=f"Use --experts {foreign(self.experts or 'none')}, or calibrate this use of the "
            "guide with `ppap calibrate --experts`.",
        )

    def check_view(self, sees_noise: bool) -> None:
        """Whether it was measured on what a recipe shows the guide.

        Args:
            sees_noise: of the recipe's view, :attr:`ppap_host.recipes.views.View.sees_noise`.

        Raises:
            OptionError: it was not.
        """
        if sees_noise != (self.view == "noised"):
            shows = "noised images" if sees_noise else "predicted clean images"
            raise OptionError(
                f"The recipe shows the guide {shows}; it was calibrated on "
                f"{'noised images' if self.view == 'noised' else 'predicted clean images'}.",
                remedy=f"Calibrate with --view {'noised' if sees_noise else 'predicted'}, or use "
                f"another --recipe.",
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "format": FORMAT,
            "guide": self.guide,
            "network_sha256": self.network_sha256,
            "view": self.view,
            "experts": self.experts,
            "experts_sha256": self.experts_sha256,
            "ranges": [part.to_dict() for part in self.ranges],
            **self.details,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], name: str) -> Calibration:
        """What :meth:`to_dict` gave.

        Args:
            name: of the file, for errors.

        Raises:
            CheckpointError: it is something else.
        """
        read = _DOCUMENT.check(values, _File, name)
        ranges = tuple(RangeCalibration(**part.values()) for part in read.ranges)
        return cls(
            guide=read.guide,
            network_sha256=read.network_sha256,
            view=read.view,
            ranges=ranges,
            experts=read.experts,
            experts_sha256=read.experts_sha256,
            details=read.model_extra or {},
        )

    def save(self, path: Path) -> None:
        """Writes it as JSON.

        Raises:
            OutputError: it cannot be written.
        """
        write_json(path, self.to_dict())


_Bin = Annotated[list[FiniteFloat], Field(min_length=3, max_length=3)]


class _Row(BaseModel):
    """One range in a file; the fields of :class:`RangeCalibration`, open ends being null."""

    model_config = ConfigDict(strict=True, extra="forbid")

    low: FiniteFloat | None
    high: FiniteFloat | None
    inverse_temperature: Annotated[float, Field(ge=LOWEST, le=HIGHEST)]
    count: Annotated[int, Field(ge=0, le=2**62)]
    accuracy: FiniteFloat
    confidence: FiniteFloat
    confidence_after: FiniteFloat
    ece: FiniteFloat
    ece_after: FiniteFloat
    smooth_ece: FiniteFloat
    smooth_ece_after: FiniteFloat
    ece_error: FiniteFloat
    ece_error_after: FiniteFloat
    bins: list[_Bin]
    bins_after: list[_Bin]

    @property
    def bounds(self) -> tuple[float, float]:
        return (
            -math.inf if self.low is None else self.low,
            math.inf if self.high is None else self.high,
        )

    def values(self) -> dict[str, Any]:
        low, high = self.bounds
        tables = {k: tuple(map(tuple, getattr(self, k))) for k in ("bins", "bins_after")}
        return self.model_dump() | tables | {"low": low, "high": high}

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        low, high = self.bounds
        if not low < high:
            raise ValueError(f"a range from {low} to {high}")
        return self


class _File(BaseModel):
    """What ``calibration.json`` holds; other keys are kept."""

    model_config = ConfigDict(strict=True, extra="allow")

    format: Literal[1]
    guide: str
    network_sha256: str
    view: View
    experts: str | None
    experts_sha256: str | None
    ranges: Annotated[list[_Row], Field(min_length=1, max_length=MOST)]

    @model_validator(mode="after")
    def _apart(self) -> Self:
        ordered = sorted(part.bounds for part in self.ranges)
        if any(b[0] < a[1] for a, b in pairwise(ordered)):
            raise ValueError("ranges that overlap")
        return self


_DOCUMENT = Document(
    "calibration", CheckpointError, "Give the calibration.json that `ppap calibrate` wrote."
)


def calibration_file(path: str | Path) -> Path:
    """The file of a calibration that is given as itself or as the folder it is in."""
    return Path(path) / FILE if os.path.isdir(path) else Path(path)


def load_calibration(path: Path, guide: Guide | None = None) -> Calibration:
    """A calibration from its file, or from a folder that ``ppap calibrate`` wrote.

    Args:
        guide: that is to use it, in float32, with its experts if it has any; None checks nothing.

    Raises:
        CheckpointError: it cannot be read, or was measured for another guide, network or experts.
    """
    file = calibration_file(path)
    calibration = Calibration.from_dict(_DOCUMENT.read(file, dict[str, Any]), str(file))
    if guide is not None:
        calibration.check(guide)
    return calibration


def experts_of(guide: Guide) -> ExpertSet | None:
    """The experts of a guide, whatever else it is wrapped in."""
    while isinstance(guide, Wrapped):
        if isinstance(guide, WithExperts):
            return guide.experts
        guide = guide.guide
    return None


def experts_hash(experts: ExpertSet) -> str:
    """SHA-256 of an expert set's ranges and of the names, shapes and values of its tensors."""
    digest = sha256()
    for part, patch in zip(experts.ranges, experts.patches, strict=True):
        digest.update(f"{part.low!r} {part.high!r} {patch.scaling!r} ".encode())
        for name, value in sorted(patch.tensors().items()):
            digest.update(f"{name} {tuple(value.shape)} ".encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class Calibrated(Wrapped):
    """A guide whose confidence is honest at every noise level.

    What it sees is multiplied by the inverse temperature of the level's range (temperature scaling;
    Guo et al., 2017, section 4.2), so its loss is a calibrated -log p(y | x). Clean images are seen
    as before. For guides whose logits are proportional to their output, as
    :func:`~ppap_plugin_bench.calibration.measurement.check_classes` finds out; ``ppap calibrate``
    refuses others.

    Args:
        guide: that was calibrated, with its experts if it has any, before it is moved to half
            precision.
        calibration: of this guide.

    Raises:
        CheckpointError: the calibration was measured for another guide, network or experts.
    """

    def __init__(self, guide: Guide, calibration: Calibration) -> None:
        calibration.check(guide)
        super().__init__(guide)
        self.calibration = calibration
        self.knows_predictions = guide.knows_predictions or calibration.view == "predicted"

    def see(self, x: Tensor, level: NoiseLevel | None = None) -> Tensor:
        """As the guide, the output times the level's inverse temperature.

        Args:
            x: clean images without a level; noised ones, or with a calibration of that view
                predicted ones, with theirs.
        """
        if level is None:
            return self.guide.see(x)
        predicted = self.calibration.view == "predicted"
        told = None if predicted and not self.guide.knows_predictions else level
        return self.guide.see(x, told) * self.calibration.inverse_temperature(level)
