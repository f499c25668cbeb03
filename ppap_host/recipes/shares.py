"""Relative strength: what part of the way that is still open a move goes, whatever its units.

A guide's gradient has units of its own, and so has every place. What they have in common is what
becomes of the clean image: a move is measured as the change of the state that its step ends in,
over that state's alpha, beside how far the clean image is still open there. The largest such size
of an image so far is kept, and moves are divided by it: the guide's own signal decides how they
compare with each other over the walk, and nothing but the share decides how far they go.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppap_host.backbones.noise import NoiseLevel
from ppap_host.recipes.estimate import Asking, Estimate
from ppap_host.recipes.gradients import root_mean_square
from ppap_host.recipes.places import Place

EASED = 3.0
"""By how much less than before a guide's next network has to say to be followed as far."""

SHARE = 1.0
"""What all steps of a guide at scale 1 may move together, of how far an image is open."""


def of_step(scale: float, asked: int | float) -> float:
    """The share of one step of so many in which a guide is asked; no step moves more than all."""
    share = SHARE * scale / max(asked, 1)
    return min(max(share, -1.0), 1.0)


def spread(level: NoiseLevel) -> float:
    """How far a clean image of unit variance is open: sigma / sqrt(alpha^2 + sigma^2)."""
    return level.sigma / level.scale


@dataclass(frozen=True)
class Ruler:
    """Measures moves at a place as what becomes of the clean image.

    Attributes:
        deviation: standard deviation of the backbone's clean states
            (:attr:`ppap_host.backbones.backbone.Backbone.deviation`).
        ancestral: whether the solver has a mean to shift.
        reads_eps: whether it goes on with the noise of the estimate; others work with x_0 alone,
            and an eps that a place keeps is not kept in their steps.
    """

    place: Place
    deviation: float
    ancestral: bool = False
    reads_eps: bool = True

    def sizes(self, estimate: Estimate, way: Tensor) -> tuple[Tensor, Tensor]:
        """How far a move goes and how strong it is, both as a part of what is open; [b, 1, ...].

        How far: the root mean square change of the state that the step ends in, over its alpha.
        With s = sigma / alpha, a moved x_0 counts times 1 - s_then / s_now, since an eps that
        follows takes the rest back, and as it is where eps stays; a moved score as the x_0 that it
        implies; additions to the state after the step, and shifts of its mean times the variance,
        as they are, beside what is open then; a move of the entering state over its own alpha.
        Where nothing is open any more it is inf.

        How strong: the same without what belongs to the step and not to the guide. x_0 counts as
        it is moved, and states at unit variance scale; else the first step out of pure noise, where
        alpha is next to nothing, would outweigh all that come after it.

        Args:
            way: what the place is given, [b, ...].
        """
        level, step = estimate.level, estimate.step
        zero = torch.zeros_like(way)
        # A place acts linearly on what it is given but for its clipping: from zero its effect can
        # be read as it is, without rounding.
        ask = _Still(self.deviation)
        still = Estimate(level, zero, zero, zero, estimate.v, step=step, ask=ask)
        moved = self.place(still, way, self.ancestral)
        now = level if step is None else step.now
        s, s_then = _relative(level), 0.0 if step is None else _relative(step.then)
        at_now = moved.x0 * (1 - min(s_then / _relative(now), 1.0))
        if self.place.replaces:  # new noise takes nothing back
            at_now = moved.x0
        elif self.reads_eps:
            at_now = at_now + s_then * (moved.eps + moved.x0 / s)
        open_now = spread(now) * self.deviation
        if self.place.enters:
            far = root_mean_square(moved.x / now.alpha) / open_now
            return far, root_mean_square(moved.x / now.scale) / open_now
        far, strong = root_mean_square(at_now) / open_now, root_mean_square(moved.x0) / open_now
        added = moved.next_shift
        if moved.mean_shift is not None:
            variance = estimate.on_walk().log_variance(estimate.v, zero).exp()
            shift = variance * moved.mean_shift
            added = shift if added is None else added + shift
        if added is None or step is None:
            return far, strong
        size, open_then = root_mean_square(added), spread(step.then) * self.deviation
        return (
            far + size / step.then.alpha / open_then,
            strong + size / step.then.scale / open_then,
        )


@dataclass(frozen=True)
class _Still(Asking):
    """Answers a place that is measured: no noise, and the linear denoiser of states around zero."""

    deviation: float

    def clean(self, x: Tensor, level: NoiseLevel) -> Tensor:
        """Of Gaussian clean states."""
        signal = level.alpha * self.deviation**2
        return x * (signal / (level.alpha * signal + level.sigma**2))

    def level_at(self, s: float) -> NoiseLevel:
        """At unit scale."""
        scale = math.hypot(1, s)
        return NoiseLevel(1 / scale, s / scale, 0.0)

    def noise(self, name: str, like: Tensor) -> Tensor:
        """None."""
        return torch.zeros_like(like)

    def uniform(self, name: str, like: Tensor) -> Tensor:
        """The middle."""
        return torch.full((len(like),), 0.5, dtype=torch.float64, device=like.device)


def _relative(level: NoiseLevel) -> float:
    """sigma / alpha; a level without any signal counts as one of very little."""
    return level.sigma / max(level.alpha, 1e-12)


@dataclass(frozen=True)
class _Largest:
    """The largest size of each image so far, 0 where there was none; in which step; of whom."""

    size: Tensor
    step: int | None
    network: Hashable


def _largest(
    memory: MutableMapping[Hashable, Any], network: Hashable, size: Tensor, step: int | None
) -> Tensor:
    """The largest size so far, this one included, [b, 1, ...]; it changes once a step.

    A size that is zero or not finite leaves it alone. It at most doubles from step to step: one
    outlier, whose own move is cut to what is kept, must not silence the rest of the run. Another
    network finds a part of it (:data:`EASED`): its sizes are others, but where the one before has
    reached the target, little is left to say, and that must not be drawn out to full length.

    Args:
        network: which of a guide's networks has said it.
        step: its number; None outside of a walk, where every call counts.
    """
    kept: _Largest = memory.get("size") or _Largest(torch.zeros_like(size), None, network)
    before = kept.size if network == kept.network else kept.size / EASED
    usable = torch.where(size.isfinite(), size, 0.0)
    grown = before
    if step is None or step != kept.step:
        grown = torch.maximum(before, torch.minimum(usable, 2 * before))
    found = torch.where(before > 0, grown, usable)
    memory["size"] = _Largest(found, step, network)
    return found


def unit(way: Tensor) -> tuple[Tensor, Tensor]:
    """The way of each image at root mean square 1 (zero stays zero), and what it was."""
    length = root_mean_square(way)
    return way / torch.where(length > 0, length, 1.0), length


def in_own_units(gradient: Tensor, memory: MutableMapping[Hashable, Any]) -> Tensor:
    """A gradient beside the size of the first one of its image that had any.

    For parts that set constants of their own beside its size, such as Adam's eps.
    """
    length = root_mean_square(gradient)
    first: Tensor = memory.get("unit", torch.zeros_like(length))
    first = torch.where((first == 0) & length.isfinite(), length, first)
    memory["unit"] = first
    return gradient / torch.where(first > 0, first, 1.0)


def shared(
    way: Tensor, ruler: Ruler, estimate: Estimate, share: float, key: Hashable, sized: bool = False
) -> tuple[Tensor, Tensor]:
    """The way cut to its share: at most ``share`` of what is open, less where it was larger before.

    Args:
        way: in any units, [b, ...].
        estimate: where its place acts; its memory keeps the largest size.
        key: of the network that says where to go.
        sized: whether the way's own root mean square says how it compares with others.

    Returns:
        What the place is to be given, and whether it was cut: larger than what the memory could
        follow, [b, 1, ...].
    """
    direction, length = unit(way)
    reach, strong = ruler.sizes(estimate, direction)
    size = length if sized else length * strong
    step = None if estimate.step is None else estimate.step.index
    usable = torch.where(reach.isfinite(), size, 0.0)
    most = _largest(estimate.memory, key, usable, step)
    part = usable / torch.where(usable > most, usable, most)
    factor = torch.where(usable > 0, share * part / reach, 0.0)
    return direction * factor, usable > most
