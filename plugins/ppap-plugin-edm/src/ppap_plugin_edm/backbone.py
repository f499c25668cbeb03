"""EDM as a backbone: denoisers of NVlabs/edm on the host's noise levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ppap_host.backbones.backbone import Backbone, Condition, Prediction
from ppap_host.backbones.noise import CLEAN, NoiseLevel, Walk
from ppap_host.files.errors import CheckpointError, OptionError
from ppap_host.files.models import own_path
from ppap_plugin_edm.checkpoint import PUBLISHED_URL, load
from ppap_plugin_edm.networks import Number
from ppap_plugin_edm.preconditioning import Denoiser

LEVELS = 1000
"""How many noise levels :meth:`EDMBackbone.levels` lists at most."""


def time_steps(
    steps: int,
    sigma_min: Number = 0.002,
    sigma_max: Number = 80.0,
    rho: Number = 7.0,
    limits: tuple[Number, Number] = (0.0, float("inf")),
) -> Float[Tensor, " n"]:
    """Karras et al. (2022), eq. 5: noise levels t_0 > ... > t_{n-1}, without the final 0.

    t_i = (sigma_max^(1/rho) + i / (n - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho. The
    equation has no value for one step; here that is sigma_max.

    Args:
        steps: n, at least 1.
        sigma_min, sigma_max: last and first level.
        rho: how much more finely the low levels are spaced, > 0.
        limits: (lowest, highest) level that the network knows.

    Returns:
        float64 [n].
    """
    low, high = max(sigma_min, limits[0]), min(sigma_max, limits[1])
    fraction = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
    ends = high ** (1 / rho), low ** (1 / rho)
    times: Tensor = (ends[0] + fraction * (ends[1] - ends[0])) ** rho
    return times


def _positive(name: str, value: Number | str) -> float:
    """An option's value, as a number above 0."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise OptionError(f"{name} {value!r} is out of range.", remedy="Give a number above 0.")
    return number


class EDMBackbone(Backbone):
    """A denoiser of NVlabs/edm in pixel space, unconditional or class-conditional.

    States are of the form x = x_0 + sigma eps (alpha is 1) and in float64; the network computes in
    the run's precision, float32 by default. Like the original sampler it does not clip the
    predicted clean image.

    Args:
        checkpoint: path of ``edm-*.pkl`` or of a converted file, see
            :func:`ppap_plugin_edm.checkpoint.load`; or the denoiser itself.
        sigma_min, sigma_max, rho: of the walk, see :func:`time_steps`; as numbers or as text.

    Raises:
        CheckpointError: there is no checkpoint, or it cannot be read.
        OptionError: the walk's numbers make none.
    """

    name = "edm"
    clip = None
    state_dtype = torch.float64

    def __init__(
        self,
        checkpoint: str | Denoiser | None = None,
        *,
        sigma_min: Number | str = 0.002,
        sigma_max: Number | str = 80.0,
        rho: Number | str = 7.0,
    ) -> None:
        if checkpoint is None:
            raise CheckpointError(
                f"The backbone {self.name!r} comes without weights.",
                remedy=f"Download a file from {PUBLISHED_URL} and give it with --checkpoint.",
            )
        self.sigma_min = _positive("sigma_min", sigma_min)
        self.sigma_max = _positive("sigma_max", sigma_max)
        self.rho = _positive("rho", rho)
        if self.sigma_min >= self.sigma_max:
            raise OptionError(
                f"sigma_min {self.sigma_min} is not below sigma_max {self.sigma_max}.",
                remedy="Give the lower noise level as sigma_min.",
            )
        self._files: tuple[Path, ...] = ()
        if isinstance(checkpoint, str):
            self._files = (own_path(checkpoint),)
            checkpoint = load(checkpoint)
        self.network = checkpoint
        size = checkpoint.img_resolution
        self.state_shape = (checkpoint.img_channels, size, size)
        self.class_count = checkpoint.label_dim or None

    def level_at(self, s: float) -> NoiseLevel:
        """The level of the noise sigma = ``s``, or the nearest one that the network knows."""
        rounded = self.network.round_sigma(torch.tensor([s], dtype=torch.float64))
        sigma = float(rounded[0])
        return NoiseLevel(alpha=1.0, sigma=sigma, time=sigma)

    def walk(self, steps: int | str) -> Walk:
        """The time steps of Karras et al. (2022), eq. 5, and then the clean image.

        Levels that an iDDPM network knows not to be different are visited once.

        Raises:
            OptionError: ``steps`` is not a count of at least 1.
        """
        try:
            count = int(steps)
        except ValueError:
            count = 0
        if not 1 <= count <= 10**5:
            raise OptionError(
                f"The steps {steps!r} are not a count that the backbone {self.name!r} can walk.",
                remedy="Give a whole number of at least 1, such as 18 or 256.",
            )
        limits = (self.network.sigma_min, self.network.sigma_max)
        times = time_steps(count, self.sigma_min, self.sigma_max, self.rho, limits)
        levels = [self.level_at(sigma) for sigma in times.tolist()]
        kept = [level for level, then in pairwise((*levels, CLEAN)) if level.sigma > then.sigma]
        return Walk((*kept, CLEAN))

    def levels(self) -> tuple[NoiseLevel, ...]:
        """A walk of :data:`LEVELS` steps, cleanest first: evenly spread in sigma^(1/rho)."""
        return self.walk(LEVELS).levels[-2::-1]

    def encode_classes(self, labels: Sequence[int | None]) -> Condition:
        """One-hot rows; None is a row of zeros.

        Zeros are what the network is given where its training left the class out. NVIDIA's class-
        conditional networks were trained without that: they answer, but never learned to.

        Raises:
            OptionError: the network knows no classes, or not this one.
        """
        known = self.class_count
        if known is None:
            return super().encode_classes(labels)
        rows = torch.zeros(len(labels), known)
        for row, label in zip(rows, labels, strict=True):
            if label is None:
                continue
            if not 0 <= label < known:
                raise OptionError(
                    f"The backbone {self.name!r} knows no class {label}.",
                    remedy=f"Give one from 0 to {known - 1}.",
                )
            row[label] = 1
        return {"classes": rows}

    def predict(
        self, x: Float[Tensor, "b c h w"], level: NoiseLevel, condition: Condition
    ) -> Prediction:
        """eps = (x - D(x; sigma)) / sigma, in the precision of ``x``."""
        classes = condition.get("classes")
        if classes is not None:
            classes = classes.to(x.device)
        clean = self.network(x, torch.tensor(level.sigma, device=x.device), classes)
        return Prediction((x - clean.to(x.dtype)) / level.sigma)

    def to(self, device: torch.device, dtype: torch.dtype) -> EDMBackbone:
        """Moves the network; its parameters alone take the precision."""
        self.network.to(device)
        for parameter in self.network.parameters():
            parameter.data = parameter.data.to(dtype)
        # Apple's GPUs have no float64.
        self.state_dtype = torch.float32 if device.type == "mps" else torch.float64
        self.device, self.dtype = device, dtype
        return self

    def files(self) -> Sequence[Path]:
        """The checkpoint, and the configuration beside a converted one."""
        beside = [path.with_suffix(".json") for path in self._files if path.suffix != ".pkl"]
        return (*self._files, *(path for path in beside if path.is_file()))
