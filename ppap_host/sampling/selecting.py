"""Images chosen by what guides say of them: populations of particles, and branches of a step."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from ppap_host.backbones.backbone import Prediction
from ppap_host.backbones.noise import CLEAN, NoiseLevel
from ppap_host.files.errors import OptionError
from ppap_host.recipes.estimate import Estimate, Step
from ppap_host.recipes.selections import Branched, Selection, spread
from ppap_host.recipes.views import Predicted, View
from ppap_host.sampling.streams import Draw, Stream

if TYPE_CHECKING:
    from ppap_host.sampling.evaluator import Evaluator, Guidance

Thing = TypeVar("Thing")


def selection_of(guidance: Sequence[Guidance]) -> Selection | None:
    """How images are selected under these guides; what they are worth then is added up.

    Raises:
        OptionError: two of them want it in different ways.
    """
    found = [g for g in guidance if g.recipe.selection is not None]
    for g in found[1:]:
        if g.recipe.selection != found[0].recipe.selection:
            raise OptionError(
                f"The guides {found[0].name!r} and {g.name!r} select images in different ways "
                f"({found[0].recipe.name}, {g.recipe.name}).",
                remedy="Give all guides that select the same recipe with the same settings.",
            )
    return found[0].recipe.selection if found else None


class Particles:
    """Noise for several particles of every image, which lie together: [b * n, ...].

    The first one's is the image's own, so that it is what the image would be by itself.

    Args:
        draw: of the images.
        streams: further noise for them, by name.
        size: particles an image.
        name: what the further streams begin with.
    """

    def __init__(self, draw: Draw, streams: Stream, size: int, name: str = "") -> None:
        self._draws = [draw, *(streams(f"{name}particle {j}") for j in range(1, size))]

    @property
    def generators(self) -> list[torch.Generator]:
        """Of every particle, for samplers that draw by themselves."""
        each = [draw.generators for draw in self._draws]  # type: ignore[attr-defined]
        return [generator for of_image in zip(*each, strict=True) for generator in of_image]

    def __call__(self) -> Tensor:
        """The next draw of every particle."""
        return torch.stack([draw() for draw in self._draws], dim=1).flatten(0, 1)

    @staticmethod
    def streams(streams: Stream, size: int) -> Stream:
        """Noise of other names for the same particles."""
        return lambda name: Particles(streams(name), streams, size, f"{name} of ")


def picked(thing: Thing, index: Tensor, rows: int) -> Thing:
    """Whatever was kept of a batch, with other rows in its rows; what has no rows stays.

    What cannot tell its rows from other things by their number has a method of this name.

    Args:
        index: which row comes to each.
        rows: of the batch before.
    """
    found: Any = thing
    if hasattr(thing, "picked"):
        found = thing.picked(index)
    elif isinstance(thing, Tensor):
        found = thing[index.to(thing.device)] if thing.ndim and len(thing) == rows else thing
    elif isinstance(thing, list | tuple) and not hasattr(thing, "_fields"):
        found = type(thing)(picked(each, index, rows) for each in thing)
    elif isinstance(thing, Mapping):
        found = copy.copy(thing)
        found.update({key: picked(each, index, rows) for key, each in thing.items()})
    elif is_dataclass(thing) and not isinstance(thing, type):
        changes = {f.name: getattr(thing, f.name) for f in fields(thing) if f.init}
        held = {k: v for k, v in changes.items() if isinstance(v, _KEPT) or _is_scheduler(v)}
        found = replace(thing, **picked(held, index, rows)) if held else thing
    elif _is_scheduler(thing):
        # Its tables are vectors, which must not be taken for a row each; what it remembers is not.
        found = copy.copy(thing)
        remembered = {k: v for k, v in vars(thing).items() if not _is_table(v)}
        found.__dict__.update(picked(remembered, index, rows))
    return found  # type: ignore[no-any-return]


_KEPT = (Tensor, list, tuple, Mapping)


def _is_scheduler(thing: object) -> bool:
    """Whether it is one of diffusers', by what it can do; the host knows none of them here."""
    return hasattr(thing, "set_timesteps") and hasattr(thing, "step")


def _is_table(thing: object) -> bool:
    return not isinstance(thing, list | tuple) and getattr(thing, "ndim", 1) < 2


class Selector:
    """Selects in one batch, from its first step to its last, as its guides' recipes say.

    Args:
        evaluator: asks backbone and guides.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self.selection = selection_of(evaluator.guidance)
        self.particles = 1 if self.selection is None else self.selection.size
        self._population: Any = None
        self._began = False
        self._owed: Tensor | None = None
        self._units: dict[int, Tensor] = {}
        self._worth: Tensor | None = None

    def branch(self, x: Tensor, noise: Tensor, estimate: Estimate, step: Step) -> Tensor:
        """Of several next states the one that is worth most, image by image.

        Args:
            x: the first, which the step has drawn.
            noise: its part of ``x``, deviation and all.
        """
        selection, asked = self.selection, self._asked(step)
        last = step.index == len(step.walk) - 1
        branches = isinstance(selection, Branched) or getattr(selection, "branches", 1) > 1
        if selection is None or not branches or last or not asked:
            return x
        made = [x]
        for _ in range(1, selection.branches):
            new = estimate.deviation * self._evaluator.reader.noise("branches", x)
            made.append(x - noise + new)
        values, predictions = [], []
        for state in made:
            there, prediction = self._foreseen(asked, state, step.then)
            values.append(self._values(asked, there))
            predictions.append(prediction)
        uniforms = self._evaluator.reader.uniform("selection", x) if selection.draws else None
        index = selection.chosen(torch.stack(values), uniforms)
        best: Tensor = _of_each(made, index)
        read = [p for p in predictions if p is not None]
        if read:
            self._evaluator.reader.foresee(best, _of_each(read, index))
        return best

    def select(self, estimate: Estimate, step: Step) -> Tensor | None:
        """Which row each row of the next state is to be; None where all stay."""
        selection, asked, x = self.selection, self._asked(step), estimate.x
        if selection is None or selection.size < 2 or selection.at_end or not asked:
            return None
        if not selection.active(step.index, len(step.walk)):
            return None
        worth = self._values(asked, estimate).view(-1, selection.size)
        if not self._began:
            self._population, self._began = selection.begin(len(worth), worth), True
        uniforms = self._evaluator.reader.uniform("selection", x).to(worth).view_as(worth)
        told = {} if self._owed is None else {"owed": self._owed.to(worth).view_as(worth)}
        i, steps = step.index, len(step.walk)
        chosen = selection(worth, self._population, i, steps, uniforms, **told)
        self._population, self._owed = chosen.after, None
        first = torch.arange(len(worth), device=x.device)[:, None] * selection.size
        index = (first + chosen.index).flatten()
        self._worth = worth.flatten()[index]
        return index

    @property
    def corrected(self) -> bool:
        """Whether it is to be told what guides have moved (:meth:`owe`)."""
        return self.selection is not None and self.selection.corrected

    def owe(self, x: Tensor, noise: Tensor, own: Tensor, estimate: Estimate) -> None:
        """Notes how much likelier a step is for the backbone than as guides have had it drawn.

        Args:
            x: the state after the step.
            noise: its part of ``x``, deviation and all.
            own: the mean as it would be without guides.
        """
        deviation = torch.as_tensor(estimate.deviation, dtype=torch.float64, device=x.device)
        variance = deviation.square().expand_as(x)
        gap = noise.double().square() - (x - own).double().square()
        share = torch.where((variance > 0) & (noise != 0), gap / (2 * variance), 0.0)
        owed = share.flatten(1).sum(dim=1)
        self._owed = owed if self._owed is None else self._owed + owed

    def best(self, x: Tensor, failed: Iterable[int], clean: bool) -> Tensor:
        """The row of each image that is worth most, the first of equal ones.

        Args:
            x: the states; without ``clean`` it goes by the last selection. With it the selection
                says which is the image.
            failed: rows that count nothing.
        """
        asked = [i for i, g in enumerate(self._evaluator.guidance) if g.recipe.selection]
        worth = self._worth
        if clean and asked and self.particles > 1:
            worth = self._values(asked, Estimate(CLEAN, x, x, x), clean=True)
        if worth is None:
            worth = torch.zeros(len(x), device=x.device)
        worth = worth.clone()
        worth[list(failed)] = -math.inf
        ranks = worth.view(-1, self.particles)
        first = torch.arange(len(ranks), device=x.device) * self.particles
        if self.selection is None or not clean:
            return first + ranks.argmax(dim=1)
        uniforms = self._evaluator.reader.uniform("final", x)[:: self.particles]
        return first + self.selection.final(ranks, self._population, uniforms)

    def _asked(self, step: Step) -> list[int]:
        active = self._evaluator.active(step, step.now)
        return [i for i in active if self._evaluator.guidance[i].recipe.selection is not None]

    def _foreseen(
        self, asked: Sequence[int], x: Tensor, level: NoiseLevel
    ) -> tuple[Estimate, Prediction | None]:
        """What will be known of a state; the backbone isn't asked where noise is shown."""
        views = [self._evaluator.guidance[i].recipe.view for i in asked]
        if all(view is not None and view.sees_noise for view in views):
            return Estimate(level, x, x, x), None
        return self._evaluator.reader.ahead(x, level)

    def _values(self, asked: Sequence[int], estimate: Estimate, clean: bool = False) -> Tensor:
        """Minus the guides' losses, in their units, times their scales, added up; [b]."""
        relative = self.selection is not None and self.selection.relative
        total = torch.zeros(len(estimate.x), device=estimate.x.device)
        for i in asked:
            g = self._evaluator.guidance[i]
            view: View = Predicted() if clean or g.recipe.view is None else g.recipe.view
            loss = self._evaluator.value(i, view, estimate)
            if not g.scale:
                continue
            if relative:
                each = loss.view(-1, self.particles)
                unit = self._units.setdefault(i, spread(each))
                loss = (each / unit).flatten()
            total = total - g.scale * loss.nan_to_num(math.inf, math.inf, -math.inf)
        return total


def _of_each(things: Sequence[Any], index: Tensor) -> Any:
    """Row b of the result is row b of ``things[index[b]]``; of tensors or predictions."""
    if isinstance(things[0], Prediction):
        return Prediction(
            *(
                _of_each([getattr(p, f.name) for p in things], index)
                for f in fields(Prediction)
            )
        )  # fmt: skip
    if things[0] is None:
        return None
    return torch.stack(list(things))[index, torch.arange(len(index), device=index.device)]
