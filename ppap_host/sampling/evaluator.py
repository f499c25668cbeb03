"""One guided evaluation of a backbone: the part of a step that costs time."""

# Long because everything that moves a step shares what one evaluation knows.
from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ppap_host.backbones.backbone import Backbone
from ppap_host.backbones.noise import CLEAN, NoiseLevel
from ppap_host.guides.guide import Guide
from ppap_host.guides.sight import shown
from ppap_host.recipes.energies import Question
from ppap_host.recipes.estimate import End, Estimate, Step
from ppap_host.recipes.gradients import each, limited, root_mean_square
from ppap_host.recipes.places import Place
from ppap_host.recipes.recipe import Move, Recipe, black_box
from ppap_host.recipes.shares import Ruler, in_own_units, of_step, shared, unit
from ppap_host.recipes.views import Predicted, View
from ppap_host.sampling.balance import Balance, without_conflict
from ppap_host.sampling.reading import Denoiser, Reader
from ppap_host.sampling.room import at_once, in_parts
from ppap_host.sampling.selecting import Selector, picked
from ppap_host.sampling.streams import Stream


@dataclass(frozen=True)
class Guidance:
    """One guide at work: whom to ask, for what, how, and how strongly.

    Attributes:
        target: what its loss compares with, one row for all images or one an image.
        scale: strength. 1 moves every image by the same share of what is open, whatever guide and
            recipe are (:mod:`ppap_host.recipes.shares`); for a recipe that is absolute
            (:attr:`~ppap_host.recipes.recipe.Recipe.absolute`) it multiplies the gradient.
        name: what it is called in events and warnings; "" takes the guide's own.

    Raises:
        OptionError: the recipe cannot ask this guide.
    """

    guide: Guide
    target: Tensor
    recipe: Recipe
    scale: float
    name: str = ""

    def __post_init__(self) -> None:
        self.recipe.check(self.guide, self.target)
        if not self.name:
            object.__setattr__(self, "name", self.guide.name)


def told_apart(names: Sequence[str]) -> list[str]:
    """The names with a number behind those that came before: depth, depth-2, depth-3."""
    found: list[str] = []
    for name in names:
        number, unique = 1, name
        while unique in found:
            number += 1
            unique = f"{name}-{number}"
        found.append(unique)
    return found


@dataclass
class Said:
    """What one guide said in a step, image by image.

    Attributes:
        loss: its loss where it was first asked, [b].
        size: root mean square of its gradient there, as the recipe made it and with its scale,
            before it was cut or brought to its share, [b].
        cut: whether any of its gradients was cut: to the recipe's limit if its strength is
            absolute, otherwise because it was more than twice as large as any before, [b].
        skipped: whether any was left out because it was not finite, [b].
        gradient: where it is kept, [b, ...]; None otherwise.
    """

    loss: Tensor
    size: Tensor
    cut: Tensor
    skipped: Tensor
    gradient: Tensor | None = None


@dataclass
class Health:
    """What went wrong without stopping the run.

    Attributes:
        skipped: guide name -> how many image-steps went on without its guidance because its
            gradient was not finite, or its loss where a recipe selects by that.
        limited: guide name -> how often a gradient was cut (:attr:`Said.cut`).
        limitable: guide name -> how many gradients could be.
        asked: guide name -> how many gradients and losses there were.
        at_once: guide name -> of how many images of the last batch a gradient was taken at once.
    """

    skipped: dict[str, int] = field(default_factory=dict)
    limited: dict[str, int] = field(default_factory=dict)
    limitable: dict[str, int] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)
    at_once: dict[str, int] = field(default_factory=dict)

    def count(self, name: str, finite: Tensor, cut: Tensor, has_limit: bool) -> None:
        """Notes what became of what one guide said of a batch.

        Args:
            finite, cut: whether it was, image by image, [b].
            has_limit: whether it could be cut.
        """
        asked, skipped = len(finite), int((~finite).sum())
        limited = int((cut & finite).sum())
        self.asked[name] = self.asked.get(name, 0) + asked
        self.limitable[name] = self.limitable.get(name, 0) + asked * has_limit
        if skipped:
            self.skipped[name] = self.skipped.get(name, 0) + skipped
        if limited:
            self.limited[name] = self.limited.get(name, 0) + limited

    def warnings(self) -> list[str]:
        """What the user should know of, one sentence each."""
        return [
            f"What the guide {name!r} said was not finite in {skipped} of "
            f"{self.asked[name]} image-steps, which went on without it: a smaller --scale or "
            "--dtype float32 may help."
            for name, skipped in self.skipped.items()
        ]


class Evaluator:
    """Evaluates backbone and guides at a state: the part of a step that costs time.

    One evaluator serves one batch from its first step to its last: it keeps what recipes remember.

    Args:
        backbone: for its clipping and its decoder.
        denoise: the backbone's prediction, classifier-free guidance included.
        ancestral: whether the solver shifts a mean (Dhariwal and Nichol, 2021, algorithm 1).
        reads_eps: whether it goes on with the estimate's noise
            (:attr:`~ppap_host.sampling.solvers.Solver.reads_eps`).
        balance: how several guides make room for each other.
        stream: noise for what recipes draw themselves, by name; see
            :meth:`~ppap_host.sampling.streams.ImageNoise.stream`.
        keep_gradients: whether :attr:`said` holds the gradients themselves.
        process: a recipe of the process itself, that asks no guide.

    Raises:
        OptionError: a guide looks at something else than the backbone makes, or two want to select
            images in different ways.

    Attributes:
        reader: asks the backbone.
        selector: chooses images by what the guides say of them.
        said: what each guide said since :meth:`begin`, by its name.
        unguided: the backbone's own x_0 at the first evaluation since then.
        plain: the whole of its own estimate there.
    """

    def __init__(
        self,
        backbone: Backbone,
        denoise: Denoiser,
        guidance: Sequence[Guidance],
        *,
        ancestral: bool,
        reads_eps: bool = True,
        health: Health,
        balance: Balance = without_conflict,
        stream: Stream | None = None,
        keep_gradients: bool = False,
        process: Recipe | None = None,
    ) -> None:
        self.backbone = backbone
        names = told_apart([g.name for g in guidance])
        self.guidance = [
            replace(g, guide=g.recipe.applied_to(g.guide), name=name)
            for g, name in zip(guidance, names, strict=True)
        ]
        self._shown = {g.name: shown(g.guide, backbone) for g in self.guidance}
        self.ancestral, self.reads_eps = ancestral, reads_eps
        self.health, self.balance = health, balance
        self._asked = dict[int, int]()
        self._memory = defaultdict[tuple[int, int], dict[Hashable, Any]](dict)
        self._entered = dict[int, Tensor]()
        self._at_once = dict[tuple[str, int], int]()
        self._keep_gradients = keep_gradients
        self.reader = Reader(backbone, denoise, stream, process)
        self.selector = Selector(self)
        self.said: dict[str, Said] = {}
        self.unguided: Tensor | None = None
        self.plain: Estimate | None = None

    def remember(self, before: Evaluator) -> None:
        """Goes on with what another evaluator's recipes have kept, if its guidance is the same."""
        mine, theirs = ([(g.name, g.recipe, g.scale) for g in e.guidance] for e in (self, before))
        if mine == theirs:
            self._memory = before._memory

    def begin(self) -> None:
        """Forgets what the guides said of the step before."""
        self.said, self.unguided, self.plain = {}, None, None

    def __call__(
        self,
        x: Float[Tensor, "b ..."],
        level: NoiseLevel,
        step: Step | None = None,
        first: bool = True,
    ) -> Estimate:
        """The guided estimate at ``x`` and ``level``; carries no graph.

        Args:
            step: where on the walk this is.
            first: whether it is the step's first evaluation; what acts once a step acts there.
        """
        active = self.active(step, level)
        rounds = [
            [
                (i, move)
                for i in active
                for move in self.guidance[i].recipe.moves[r : r + 1]
                if not move.place.enters and (first or not move.place.once)
            ]
            for r in range(max((len(self.guidance[i].recipe.moves) for i in active), default=0))
        ]
        through = sum(move.view.through_backbone for asked in rounds for _, move in asked)
        with torch.set_grad_enabled(through > 0):
            reading = self.reader.read(x.detach().requires_grad_(through > 0), level, step)
        guided = self.reader.detached(reading)
        if self.unguided is None:
            self.unguided, self.plain = guided.x0, guided
        draws = {i: self._shared_draws(x, f"smoothing {i}") for i in active}
        for r, asked in enumerate(rounds):
            ways = []
            for i, move in asked:
                through -= move.view.through_backbone
                source = guided if move.ascent.after else reading
                scale = self.guidance[i].scale
                source = replace(source, memory=self._memory[i, r], scale=scale)
                ways.append(self._way(i, move, source, draws[i], keep=through > 0))
            # What others have done to the state that entered the step cannot be taken back.
            mine = [i for i, _ in asked]
            before = [way for i, way in self._entered.items() if i not in mine]
            balanced = self.balance([*before, *ways])[len(before) :]
            for (i, move), way in zip(asked, balanced, strict=True):
                memory, scale = self._memory[i, r], self.guidance[i].scale
                place = self._sized(i, move, step)
                moved = place(replace(guided, memory=memory, scale=scale), way, self.ancestral)
                own = (
                    partial(_with_own, end, memory, scale) for end in moved.ends[len(guided.ends) :]
                )
                guided = replace(moved, ends=(*guided.ends, *own)).moved_by(way)
        return guided

    def entering(self, x: Float[Tensor, "b ..."], step: Step) -> Float[Tensor, "b ..."]:
        """The state that enters a step, moved by the recipes that do so before the backbone.

        They make room for each other as all guides do. Those that change the step itself come
        later: they make room for these, too.
        """
        nothing = torch.zeros_like(x)
        unread = Estimate(step.now, x, nothing, nothing, step=step, ask=self.reader)
        moved: list[tuple[Move, Estimate, Tensor, int]] = []
        for i in self.active(step, step.now):
            for r, move in enumerate(self.guidance[i].recipe.moves):
                if move.place.enters:
                    draws = self._shared_draws(x, f"smoothing {i}")
                    scale = self.guidance[i].scale
                    source = replace(unread, memory=self._memory[i, r], scale=scale)
                    way = self._way(i, move, source, draws, keep=False)
                    moved.append((move, source, way, i))
        self._entered.clear()
        ways = self.balance([way for *_, way, _ in moved]) if moved else []
        for (move, source, _, i), way in zip(moved, ways, strict=True):
            unread = move.place(replace(source, x=unread.x), way, self.ancestral)
            self._entered[i] = self._entered.get(i, 0.0) + way
        return unread.x

    def recurrence(self, step: Step) -> int:
        """How often a step is taken: as often as the guide says that wants it most often."""
        active = self.active(step, step.now)
        return max((self.guidance[i].recipe.recurrence for i in active), default=1)

    def started(self, x: Tensor, made: Callable[[Tensor], Tensor]) -> Tensor:
        """The initial noise as recipes make it better, one guide after the other.

        Args:
            made: from noise to the clean state at the end of the walk, differentiable.
        """
        for i, g in enumerate(self.guidance):
            if g.recipe.start is None or not g.scale:
                continue
            draws = self._shared_draws(x, f"smoothing {i}")

            def pull(x: Tensor, g: Guidance = g, draws: Any = draws) -> Tensor:
                with torch.enable_grad():
                    x = x.detach().requires_grad_(True)
                    clean = made(x)
                    known = Estimate(CLEAN, clean, clean, clean, ask=self.reader)
                    loss = g.recipe.energy(self._question(g, Predicted(), known, draws), clean)
                    gradient = _descent(loss, x, g)
                self._count(g.name, gradient)
                return gradient

            x = g.recipe.start(x, g.scale, pull)
        return x

    def value(self, i: int, view: View, estimate: Estimate) -> Tensor:
        """The loss [b] of what guide ``i`` is shown; any black box will do."""
        g = self.guidance[i]
        draws = self._shared_draws(estimate.x, f"smoothing {i}")
        with torch.no_grad():
            shown = view.shown(estimate, view.variable(estimate))
            loss = g.recipe.energy(self._question(g, view, estimate, draws), shown).detach()
        nothing = torch.zeros_like(loss)
        self._note(g.name, Said(loss, nothing, nothing.bool(), ~loss.isfinite()))
        self._count(g.name, loss)
        return loss

    def _count(self, name: str, said: Tensor) -> None:
        """Notes where what a guide said of a batch, which nothing cuts, is not finite."""
        finite = said.isfinite().flatten(1).all(dim=1) if said.ndim > 1 else said.isfinite()
        self.health.count(name, finite, torch.zeros_like(finite), False)

    def follow(self, index: Tensor) -> None:
        """What was kept of each row goes with it, where rows were selected."""
        rows = len(index)
        self._memory = picked(self._memory, index, rows)
        self.said = picked(self.said, index, rows)
        self.unguided = picked(self.unguided, index, rows)
        self.reader.unsound = picked(self.reader.unsound, index, rows)
        self.reader.memory = picked(self.reader.memory, index, rows)

    def active(self, step: Step | None, level: NoiseLevel) -> list[int]:
        """The guides that are asked, by their place."""
        return [
            i
            for i, g in enumerate(self.guidance)
            if g.scale
            and level.log_snr in g.recipe.interval
            and (step is None or step.index % g.recipe.every == 0)
        ]

    def _shared_draws(self, x: Tensor, name: str) -> Callable[[int], list[Tensor]]:
        """Draws that are made when they are first asked for, and are the same from then on."""
        made: list[Tensor] = []

        def draws(count: int) -> list[Tensor]:
            while len(made) < count:
                made.append(self.reader.noise(name, x))
            return made[:count]

        return draws

    def _question(
        self, g: Guidance, view: View, estimate: Estimate, draws: Callable[[int], list[Tensor]]
    ) -> Question:
        told = _told(g, view, estimate.level)
        return Question(g.guide, g.target, self._shown[g.name], estimate.level, told, draws)

    def _way(
        self,
        i: int,
        move: Move,
        estimate: Estimate,
        draws: Callable[[int], list[Tensor]],
        keep: bool,
    ) -> Tensor:
        """What a move adds at its place, as strong as it is to be; zero where it is not finite."""
        g = self.guidance[i]
        question = self._question(g, move.view, estimate, draws)
        absolute = g.recipe.absolute
        ascent, strong = move.ascent, self._limited if absolute else self._shared
        limit = math.isfinite(move.limit) if absolute else not (ascent.rated or move.place.own_size)
        if ascent.rated and not absolute:
            ascent = ascent.at_rate(self._rate(i, move, estimate))

        def pull(point: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                if not move.view.through_backbone:
                    point = point.detach().requires_grad_(True)
                loss = self._losses(g.name, move, question, move.view.shown(estimate, point))
                gradient = _descent(loss, point, g, keep)
            if g.guide.averages_pixels and not move.energy.in_pixels:
                gradient = gradient * math.sqrt(gradient[0].numel())
            known = replace(estimate, loss=loss.detach())
            for part in move.gradient:
                if getattr(part, "sized", False) and not absolute:
                    gradient = in_own_units(gradient, estimate.memory)
                gradient = part(gradient, known)
            added, cut = strong(i, move, estimate, gradient)
            cut, size = cut.flatten(), root_mean_square(g.scale * gradient).flatten()
            finite = (added.isfinite() & gradient.isfinite()).flatten(1).all(dim=1)
            self.health.count(g.name, finite, cut, limit)
            self._note(g.name, Said(loss.detach(), size, cut & finite, ~finite, g.scale * gradient))
            return torch.where(each(finite, added), added, 0.0), loss.detach()

        return ascent(pull, move.view.variable(estimate), estimate)

    def _losses(self, name: str, move: Move, question: Question, states: Tensor) -> Tensor:
        """Of what a guide is shown, [b, ...], the losses, [b]; of as many at once as fit."""

        def losses(part: Tensor, place: slice) -> Tensor:
            return move.energy(question.of(place), part)

        asked = name, id(move.energy)
        if asked not in self._at_once:
            # Without a decoder it is the guide's network alone, and many states have one in common.
            size = at_once(losses, states) if self.backbone.latent else len(states)
            self._at_once[asked] = size
            sizes = [size for (other, _), size in self._at_once.items() if other == name]
            self.health.at_once[name] = min(sizes)
        return in_parts(losses, states, self._at_once[asked])

    def _limited(
        self, i: int, move: Move, estimate: Estimate, gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The gradient at its absolute strength, and whether it was cut to the move's limit."""
        gradient = self.guidance[i].scale * gradient
        largest = move.limit * move.place.unit(estimate)
        added = limited(gradient, largest) * move.strength(estimate)
        return added, root_mean_square(gradient) > largest

    def _shared(
        self, i: int, move: Move, estimate: Estimate, gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The gradient at its share of the step, and whether it was cut."""
        g = self.guidance[i]
        if move.place.own_size or move.ascent.rated:
            way, length = unit(gradient)
            factor = g.scale if move.place.own_size else math.copysign(1.0, g.scale)
            return factor * way, torch.zeros_like(length, dtype=torch.bool)
        return shared(
            gradient * move.strength(estimate),
            self._ruler(move),
            estimate,
            self._portion(i, move, estimate.step),
            g.guide.expert_at(_told(g, move.view, estimate.level)),
            sized=bool(move.gradient) and getattr(move.gradient[-1], "sized", False),
        )

    def _sized(self, i: int, move: Move, step: Step | None) -> Place:
        """The place of a move; one whose size is its own affair is told its share."""
        if not move.place.own_size or self.guidance[i].recipe.absolute:
            return move.place
        return move.place.of_share(abs(self._portion(i, move, step)) * self.backbone.deviation)

    def _ruler(self, move: Move) -> Ruler:
        return Ruler(move.place, self.backbone.deviation, self.ancestral, self.reads_eps)

    def _rate(self, i: int, move: Move, estimate: Estimate) -> float:
        """The learning rate with which all iterations together go as far as their share."""
        one = replace(estimate, v=None)
        reach, _ = self._ruler(move).sizes(one, torch.ones_like(estimate.x[:1]))
        return abs(self._portion(i, move, estimate.step)) / float(reach)

    def _portion(self, i: int, move: Move, step: Step | None) -> float:
        """The share of one gradient: moves, iterations and repeats divide the step's."""
        recipe, weight = self.guidance[i].recipe, move.weight
        if not weight:
            return 0.0
        if i not in self._asked:
            levels = () if step is None else step.walk.levels[:-1]
            self._asked[i] = sum(
                level.log_snr in recipe.interval for level in levels[:: recipe.every]
            )
        # A repeat takes back a part of what the one before it has moved.
        times = move.ascent.steps * (1 if step is None else math.sqrt(self.recurrence(step)))
        weight /= sum(each.weight for each in recipe.moves)
        # Where every state is drawn anew, the next one keeps a part of a move: the power was found
        # by trying (docs/strength.md).
        asked = self._asked[i] ** (0.75 if move.place.replaces else 1.0)
        return of_step(self.guidance[i].scale, asked) * weight / times

    def _note(self, name: str, said: Said) -> None:
        """Keeps the first thing that a guide says in a step, and whether any was cut or skipped."""
        before = self.said.get(name)
        if before is None:
            said.gradient = said.gradient if self._keep_gradients else None
            self.said[name] = said
        else:
            before.cut, before.skipped = before.cut | said.cut, before.skipped | said.skipped


def _with_own(
    end: End, memory: dict[Hashable, Any], scale: float, x: Tensor, estimate: Estimate
) -> Tensor:
    """What a place does in the end, with what its own move knows."""
    return end(x, replace(estimate, memory=memory, scale=scale))


def _descent(loss: Tensor, point: Tensor, g: Guidance, keep: bool = False) -> Tensor:
    """Where a loss becomes smaller.

    Raises:
        OptionError: it has no gradient there.
    """
    found = None
    if loss.requires_grad:
        (found,) = torch.autograd.grad(-loss.sum(), point, retain_graph=keep, allow_unused=True)
    if found is None:
        raise black_box(g.name, g.recipe.name)
    return found


def _told(g: Guidance, view: View, level: NoiseLevel) -> NoiseLevel | None:
    """The level that the guide is told, None for a clean image."""
    return level if view.sees_noise or g.guide.knows_predictions else None
