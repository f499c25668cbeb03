"""What is checked of a recipe."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ppap_host.backbones.backbone import ClassifierFree, Condition, Prediction
from ppap_host.backbones.noise import NoiseLevel
from ppap_host.files.errors import PpapError
from ppap_host.plugins.loading import load_sampler
from ppap_host.plugins.registry import registry
from ppap_host.recipes.ascents import Ascent
from ppap_host.recipes.blends import Blend
from ppap_host.recipes.energies import Energy, Question
from ppap_host.recipes.estimate import Estimate, Step
from ppap_host.recipes.gradients import each
from ppap_host.recipes.places import Place
from ppap_host.recipes.recipe import Move, Recipe
from ppap_host.recipes.selections import Selection
from ppap_host.recipes.strengths import Strength
from ppap_host.recipes.views import View
from ppap_host.sampling.evaluator import Guidance
from ppap_host.sampling.loop import Event, sample
from ppap_host.sampling.names import SAMPLER_SUMMARIES
from ppap_host.sampling.reading import Reader
from ppap_host.sampling.solvers import DDIM, Solver
from ppap_host.sampling.streams import ImageNoise
from ppap_host.testing.checks import CannotCheck, Check, Fault, Suite, require
from ppap_host.testing.comparing import differ, watched_randomness
from ppap_host.testing.worlds import GaussianWorld, PullGuide

_SIZE = 8, 8
_SCALES = 1.0, 4.0, 0.05, 0.2, 0.01, 50.0
"""What is tried until a recipe pulls; the units of absolute ones differ."""
_TARGET = 0.6
_STEPS = 12


class _Told(GaussianWorld):
    """Whose conditional branch expects images half-way to the target."""

    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:
        """The world's prediction, or the one of the condition, row by row."""
        plain = super().predict(x, level, {}).eps
        clean = (x - level.sigma * plain) / level.alpha
        told = (x - level.alpha * (clean + _TARGET) / 2) / level.sigma
        return Prediction(torch.where(each(condition["told"], x) > 0, told, plain))


class _AsUsual:
    """Classifier-free guidance as it is."""

    def __call__(self, estimate: Estimate) -> Tensor:
        """The noise."""
        return estimate.eps


class RecipeUnderTest:
    """What is checked.

    Args:
        recipe: should be a Recipe.
        seed: of all draws.
    """

    def __init__(self, recipe: object, seed: int) -> None:
        self.thing, self.seed = recipe, seed

    @property
    def recipe(self) -> Recipe:
        """The recipe."""
        require(isinstance(self.thing, Recipe), f"It is a {type(self.thing).__name__}, no Recipe.")
        assert isinstance(self.thing, Recipe)
        return self.thing

    @property
    def once(self) -> Recipe:
        """The recipe without repeated steps, which draw noise and lead elsewhere by themselves."""
        return replace(self.recipe, recurrence=1)

    def run(
        self,
        recipe: Recipe | None,
        scale: float | None = None,
        *,
        blind: bool = False,
        broken: tuple[int, ...] = (),
        solver: Solver | None = None,
        rows: Sequence[int] = range(3),
        steps: int = 8,
        clip: tuple[float, float] | None = None,
        shape: tuple[int, ...] | None = None,
        watch: Callable[[Event], None] | None = None,
    ) -> Tensor:
        """Clean states of a run in the analytic world; None guides by nothing.

        A recipe that asks no guide gets a world with two branches; the strength is then that of
        classifier-free guidance, at most 1.
        DDIM draws noise where no solver is named and the recipe under test needs some, as in a run.

        Args:
            scale: None takes 1, or a small one for absolute strength.
        """
        if scale is None:
            scale = 0.05 if recipe is not None and recipe.absolute else 1.0
        world = GaussianWorld(_SIZE, shape=shape)
        world.clip = clip
        # The rows of a population's particles lie together.
        size = 1 if recipe is None else recipe.particles
        rows_of = tuple(k * size + j for k in broken for j in range(size))
        guide = PullGuide(world, blind=blind, broken=rows_of)
        target = torch.full((1, *world.state_shape), _TARGET)
        denoise, guidance = ClassifierFree(world, {}, {}), list[Guidance]()
        process: Recipe | None = None
        if recipe is not None and recipe.guideless:
            known, unknown = ({"told": torch.tensor([float(t)])} for t in (not blind, False))
            process = recipe
            branches = _Told(_SIZE, shape=shape)
            denoise = ClassifierFree(branches, known, unknown, min(scale, 1.0), True)
        elif recipe is not None:
            guidance = [Guidance(guide, target, recipe, scale)]
        return sample(
            world,
            denoise,
            world.walk(steps),
            solver or DDIM(1.0 if self.recipe.needs else 0.0),
            ImageNoise(self.seed, rows, world.state_shape),
            guidance,
            process=process,
            watch=watch,
        )


RECIPE = Suite[RecipeUnderTest]()
"""All that is checked of a recipe."""


@RECIPE.claim(
    "made",
    why="The sampling loop calls the parts by their protocols, and records name the recipe.",
    remedy="Make it a ppap_host.recipes.recipe.Recipe of parts that are frozen dataclasses.",
)
def made(subject: RecipeUnderTest) -> None:
    """It is a Recipe with a name, and its parts are what they stand for."""
    recipe = subject.recipe
    require(isinstance(recipe.name, str) and recipe.name.strip(), f"Its name is {recipe.name!r}.")
    require(recipe.interval.low < recipe.interval.high, f"Its interval is {recipe.interval}.")
    for move in recipe.moves:
        for key, kind in (
            ("view", View), ("place", Place), ("strength", Strength), ("energy", Energy),
            ("ascent", Ascent),
        ):  # fmt: skip
            part = getattr(move, key)
            require(isinstance(part, kind), f"As {key} it has a {type(part).__name__}.")
        require(move.limit > 0, f"The limit is {move.limit}.")
        for part in move.gradient:
            require(callable(part), f"The gradient part {part!r} cannot be called.")
        _one_each(move)
    blend = recipe.blend
    require(blend is None or isinstance(blend, Blend), f"As blend it has a {type(blend).__name__}.")
    chosen = recipe.selection
    require(
        chosen is None or isinstance(chosen, Selection),
        f"As selection it has a {type(chosen).__name__}.",
    )
    size = recipe.particles
    require(isinstance(size, int) and size >= 1, f"Of an image it has {size!r} particles.")
    hash(recipe)


def _one_each(move: Move) -> None:
    """Whether strengths and energies are what they are said to be, at both ends of a walk."""
    world = GaussianWorld(_SIZE)
    walk, noise = world.walk(_STEPS), ImageNoise(0, range(3), world.state_shape)
    state = noise()
    guide, target = PullGuide(world), torch.full((1, *world.state_shape), _TARGET)
    for i in (0, _STEPS - 1):
        level = walk.levels[i]
        ask = Reader(world, ClassifierFree(world, {}, {}), noise.stream, None)
        known = Estimate(level, state, state, state, step=Step(walk, i), ask=ask)
        strength = torch.as_tensor(move.strength(known))
        sound = bool((strength.isfinite() & (strength >= 0)).all())
        require(sound, f"The strength is {strength.flatten()[0]:.3g} at step {i} of {_STEPS}.")
        made = Question(
            guide, target, world.decode, level, None, lambda n: [torch.zeros_like(state)] * n
        )
        found: object = move.energy(made, state)
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        require(shape == (3,), f"The energy of three images is {shape}, not one number each.")


@RECIPE.claim(
    "parameters",
    why="`--recipe NAME:KEY=VALUE` and `ppap search` set them by name; one that leads nowhere is "
    "silently not there.",
    remedy="Write each path as it would be written in Python from the recipe on, with numbers for "
    'places in a tuple: "gradient.0.width".',
)
def parameters(subject: RecipeUnderTest) -> None:
    """Every parameter leads somewhere, starts within its bounds, and can be set."""
    recipe = subject.recipe
    for parameter in recipe.parameters:
        astray = parameter.astray(recipe)
        require(not astray, f"{parameter.name!r}: the path {astray!r} leads nowhere.")
    names = [parameter.name for parameter in recipe.parameters]
    require(len(set(names)) == len(names), f"Two parameters have the same name: {names}.")
    for name, parameter in recipe.tunable().items():
        value = recipe.value(name)
        other: object
        if parameter.choices:
            require(value in parameter.choices, f"{name!r} is {value!r}, none of its choices.")
            other = next((c for c in parameter.choices if c != value), value)
        elif isinstance(value, bool):
            other = not value
        elif isinstance(value, int | float):
            low, high = parameter.low, parameter.high
            require(low < high, f"The bounds of {name!r} are {low} and {high}.")
            require(not parameter.log or low > 0, f"{name!r} is logarithmic from {low} on.")
            within = not math.isfinite(value) or low <= value <= high
            require(within, f"{name!r} is {value}, out of its own bounds {low} to {high}.")
            other = type(value)(high if value != high else low)
        else:
            raise Fault(f"{name!r} is {value!r}: neither a number nor a word.")
        try:
            changed = recipe.with_values({name: str(other)})
        except PpapError as error:
            raise Fault(f"{name!r} cannot be set to {other}: {error}") from error
        require(changed.value(name) == other, f"{name}={other} does not arrive.")


@RECIPE.claim(
    "zero-strength",
    why="--scale 0 is the run without guidance that others are compared with.",
    remedy="Do nothing to the state that is not multiplied by the gradient.",
)
def zero_strength(subject: RecipeUnderTest) -> None:
    """At strength zero it makes the very images of a run without any guide.

    A blend of branches makes those of the conditional one at scale 1.
    """
    if subject.recipe.blend is not None:
        usual = replace(subject.recipe, blend=_AsUsual())
        gap = differ(subject.run(subject.recipe, 1.0), subject.run(usual, 1.0))
        require(gap < 1e-4, f"At scale 1 it is off from the conditional branch by {gap:.1%}.")
        return
    for solver in (DDIM(), DDIM(1.0)):
        plain = subject.run(None, solver=solver)
        same = torch.equal(subject.run(subject.recipe, 0.0, solver=solver), plain)
        require(same, "At strength 0 the images are others than without a guide.")


@RECIPE.claim(
    "no-gradient",
    why="A guide that has what it wants must leave the image alone; what a recipe adds by itself "
    "is no guidance.",
    remedy="Let the place add the gradient and nothing else, and the parts of the gradient keep "
    "zero at zero.",
)
def no_gradient(subject: RecipeUnderTest) -> None:
    """A guide whose gradient is zero changes nothing.

    Of a recipe that takes steps in the sampler's place: nothing that is not the same at every
    strength. Of a population, which may draw among equals: its moves alone.
    """
    for clip in (None, (-1.0, 1.0)):
        plain = subject.run(None, clip=clip)
        if subject.recipe.replaces:
            plain = subject.run(subject.once, 2.0, blind=True, clip=clip)
        found = subject.run(subject.once, 1.0, blind=True, clip=clip)
        gap = differ(found, plain)
        if gap >= 1e-3 and subject.recipe.particles > 1:
            if not subject.recipe.moves:
                raise CannotCheck("particles that are worth the same are drawn among")
            alone = replace(subject.once, selection=None)
            gap = differ(subject.run(alone, 1.0, blind=True, clip=clip), plain)
        require(gap < 1e-3, f"A guide without any gradient changes the images by {gap:.1%}.")


@RECIPE.claim(
    "pulls",
    why="That is what a recipe is for.",
    remedy="The gradient that parts and places get is that of minus the loss: add it.",
)
def pulls(subject: RecipeUnderTest) -> None:
    """At some strength it brings images nearer to the target, with every sampler that suits it."""
    needs = subject.recipe.needs
    # What only chooses among a few cannot be worse than the first of them, nor better by much.
    enough = 0.98 if subject.recipe.moves else 1.0
    for name in SAMPLER_SUMMARIES:
        eta = 1.0 if needs and name == "ddim" else None
        solver = load_sampler(registry(), name, GaussianWorld(_SIZE), eta)
        if needs and solver.noise not in (needs, "gaussian"):
            continue
        plain = _error(subject.run(None, solver=solver, steps=_STEPS))
        best = math.inf
        for scale in _SCALES:
            best = min(best, _error(subject.run(subject.once, scale, solver=solver, steps=_STEPS)))
            if best < enough * plain:
                break
        require(
            best < enough * plain,
            f"With the sampler {name!r} the error is {plain:.3g} without guidance, and {best:.3g} "
            f"at the best of the strengths {', '.join(map(str, _SCALES))}.",
        )


def _error(x: Tensor) -> float:
    found = float((x - _TARGET).abs().mean())
    return found if found == found else math.inf


@RECIPE.claim(
    "bounded",
    why="A scale that is too large by far should spoil a picture, not end in NaN.",
    remedy="Give the recipe a limit (Recipe.limit, in units of the place), or clip what the place "
    "makes: absolute strength can be asked for with every recipe.",
)
def bounded(subject: RecipeUnderTest) -> None:
    """No strength, relative or absolute, drives images out of all bounds."""
    for recipe in dict.fromkeys((subject.recipe, replace(subject.recipe, absolute=True))):
        what = "absolute strength" if recipe.absolute else "strength"
        for clip in (None, (-1.0, 1.0)):
            for scale in (1e2, 1e6, 1e30):
                x = subject.run(recipe, scale, clip=clip)
                size = float(x.abs().max())
                sound = bool(x.isfinite().all()) and size < 100
                require(sound, f"At {what} {scale:g} the images reach {size:.3g}.")


@RECIPE.claim(
    "batch",
    why="Image k of a seed must not depend on the batch it is made in.",
    remedy="Reduce over channels and pixels, never over the batch; keep what is remembered image "
    "by image.",
)
def batch(subject: RecipeUnderTest) -> None:
    """Image k is the same alone and in a batch."""
    for scale in (0.05, 1.0):
        together = subject.run(subject.recipe, scale, solver=DDIM(1.0))
        for k in range(len(together)):
            alone = subject.run(subject.recipe, scale, solver=DDIM(1.0), rows=[k])
            gap = differ(alone, together[k : k + 1])
            require(gap < 1e-3, f"Image {k} is off by {gap:.1%} in a batch.")


@RECIPE.claim(
    "function",
    why="The same command must make the same images.",
    remedy="Draw through Question.draws alone, and remember through Estimate.memory alone, which "
    "is new for every batch.",
)
def function(subject: RecipeUnderTest) -> None:
    """Two runs make the same images, and the global random generators are left alone."""
    first = subject.run(subject.recipe, solver=DDIM(1.0))
    _leaves_alone(subject)
    with watched_randomness() as drawn:  # from the second run on: imports may draw, too
        again = subject.run(subject.recipe, solver=DDIM(1.0))
    require(not drawn, f"It draws from the global generator of {' and '.join(drawn)}.")
    require(torch.equal(first, again), "The second run makes other images.")


def _leaves_alone(subject: RecipeUnderTest) -> None:
    """Whether the backbone's own prediction is still what it was after a step."""
    told: list[Event] = []
    subject.run(subject.recipe, solver=DDIM(1.0), steps=3, watch=told.append)
    world = GaussianWorld(_SIZE)
    if subject.recipe.guideless or any(move.place.enters for move in subject.recipe.moves):
        return
    for event in told:
        own = world.predict(event.x, event.level, {}).eps
        x0 = (event.x - event.level.sigma * own) / event.level.alpha
        gap = differ(event.x0_unguided, x0)
        require(
            gap < 1e-3,
            f"The backbone's own prediction is off by {gap:.1%} after a step.",
            "Write into no tensor that is given: x0 = estimate.x0 + gradient, not +=.",
        )


@RECIPE.claim(
    "broken-guide",
    why="A gradient that is not finite is left out for its image at that step, and the run goes "
    "on; it must not reach the others.",
    remedy="Work image by image, and keep what is not finite out of what is remembered.",
)
def broken_guide(subject: RecipeUnderTest) -> None:
    """An image whose gradient is NaN stays finite, and leaves the others as they were."""
    if subject.recipe.guideless:
        return
    sound = subject.run(subject.recipe)
    found = subject.run(subject.recipe, broken=(1,))
    require(found.isfinite().all(), "A gradient of NaN ends in the images.")
    for k in (0, 2):
        gap = differ(found[k : k + 1], sound[k : k + 1])
        require(gap < 1e-3, f"NaN in image 1 changes image {k} by {gap:.1%}.")


@RECIPE.claim(
    "any-state",
    why="Backbones make video [b, c, t, h, w], sound [b, c, n] and vectors [b, d] as well.",
    remedy="Reduce over all dimensions but the first (ppap_host.recipes.gradients.sides), spread "
    "one number an image with each(), or raise OptionError where a part makes no sense.",
)
def any_state(subject: RecipeUnderTest) -> None:
    """It guides states of any rank, and leaves their shape alone."""
    for shape in ((2,), (1, 12), (2, 3, 4, 4)):
        found = subject.run(subject.recipe, shape=shape)
        told = tuple(found.shape[1:])
        require(told == shape, f"States of shape {shape} end as {told}.")
        require(found.isfinite().all(), f"States of shape {shape} are not finite in the end.")


def check_recipe(recipe: Recipe, *, seed: int = 0) -> list[Check]:
    """The checks of a recipe, to be called one by one.

    Args:
        recipe: as its entry names it.
        seed: of all random draws.
    """
    return RECIPE.checks(RecipeUnderTest(recipe, seed))
