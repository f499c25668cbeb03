"""What was calibrated, on file, and the guide that uses it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor

from ppap_host.backbones.noise import NoiseLevel, NoiseRange
from ppap_host.experts.patches import network_hash
from ppap_host.experts.sets import VIEWS, ExpertSet, View, WithExperts
from ppap_host.files.errors import CheckpointError, OptionError
from ppap_host.files.writing import write_file
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
            remedy=f"Use --experts {self.experts or 'none'}, or calibrate this use of the guide "
            "with `ppap calibrate --experts`.",
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
    def from_dict(cls, values: Any, name: str) -> Calibration:
        """What :meth:`to_dict` gave.

        Args:
            name: of the file, for errors.

        Raises:
            CheckpointError: it is something else.
        """
        try:
            if values["format"] != FORMAT:
                raise _unsound(name, f"format {values['format']!r}, not {FORMAT}")
            if values["view"] not in VIEWS:
                raise _unsound(name, f"view {values['view']!r}")
            for key in ("guide", "network_sha256"):
                if not isinstance(values[key], str):
                    raise _unsound(name, f"no text for {key!r}")
            for key in ("experts", "experts_sha256"):
                if not isinstance(values[key], str | None):
                    raise _unsound(name, f"no text for {key!r}")
            ranges = tuple(_range(row, name) for row in values["ranges"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _unsound(name, f"{type(error).__name__}: {error}") from None
        ordered = sorted(ranges, key=lambda part: part.low)
        if not ranges or any(b.low < a.high for a, b in pairwise(ordered)):
            raise _unsound(name, "ranges that overlap, or none")
        own = {f.name for f in dataclasses.fields(cls)} | {"format"}
        return cls(
            guide=values["guide"],
            network_sha256=values["network_sha256"],
            view=values["view"],
            ranges=ranges,
            experts=values["experts"],
            experts_sha256=values["experts_sha256"],
            details={key: value for key, value in values.items() if key not in own},
        )

    def save(self, path: Path) -> None:
        """Writes it as JSON.

        Raises:
            OutputError: it cannot be written.
        """
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        write_file(path, text.encode())


def _range(row: Mapping[str, Any], name: str) -> RangeCalibration:
    fields = {f.name: row[f.name] for f in dataclasses.fields(RangeCalibration)}
    low = -math.inf if row["low"] is None else float(row["low"])
    high = math.inf if row["high"] is None else float(row["high"])
    for key in ("bins", "bins_after"):
        fields[key] = tuple(tuple(float(v) for v in part) for part in row[key])
        if any(len(part) != 3 for part in fields[key]):
            raise _unsound(name, f"{key!r} that are no count, accuracy and confidence")
    for key in fields.keys() - {"low", "high", "bins", "bins_after"}:
        number = fields[key]
        if not isinstance(number, int | float) or isinstance(number, bool):
            raise _unsound(name, f"no number for {key!r}")
        fields[key] = int(number) if key == "count" else float(number)
    if not LOWEST <= row["inverse_temperature"] <= HIGHEST:
        raise _unsound(name, f"inverse temperature {row['inverse_temperature']!r}")
    if not low < high:
        raise _unsound(name, f"a range from {low} to {high}")
    return RangeCalibration(**(fields | {"low": low, "high": high}))


def _unsound(name: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"{name!r} is no calibration ({what}).",
        remedy="Give the calibration.json that `ppap calibrate` wrote.",
    )


def calibration_file(path: str | Path) -> Path:
    """The file of a calibration that is given as itself or as the folder it is in."""
    return Path(path) / FILE if Path(path).is_dir() else Path(path)


def load_calibration(path: Path, guide: Guide | None = None) -> Calibration:
    """A calibration from its file, or from a folder that ``ppap calibrate`` wrote.

    Args:
        guide: that is to use it, in float32, with its experts if it has any; None checks nothing.

    Raises:
        CheckpointError: it cannot be read, or was measured for another guide, network or experts.
    """
    file = calibration_file(path)
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unsound(str(file), f"{type(error).__name__}: {error}") from None
    calibration = Calibration.from_dict(values, str(file))
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
