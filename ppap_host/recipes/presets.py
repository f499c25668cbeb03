"""The recipes that have names.

Scales are of one order in all of them but ``naive``, ``pigdm`` and ``elucd-edm``: the gradient is
multiplied by the root of the number of the state's entries (:class:`RootSize`), so that at scale 1
a gradient of length one moves every pixel by about the strength of the step. The strength zeta of a
paper is the scale here times that root.
"""

from __future__ import annotations

from dataclasses import replace

from ppap_host.recipes.ascents import Adam, Gradient
from ppap_host.recipes.chains import Chain
from ppap_host.recipes.energies import LinearPosterior, MonteCarlo
from ppap_host.recipes.gradients import (
    AdamMoments,
    Normalised,
    PerRootLoss,
    RootSize,
    Smoothed,
    StateSize,
    UnitScale,
)
from ppap_host.recipes.places import (
    CleanPoint,
    Entering,
    MeanOrScore,
    NextState,
    Renoised,
    Score,
    Sphere,
)
from ppap_host.recipes.recipe import Move, Parameter, Recipe
from ppap_host.recipes.selections import POTENTIALS, Branched, FeynmanKac
from ppap_host.recipes.starts import NoiseAscent
from ppap_host.recipes.strengths import (
    LinearSine,
    PosteriorSpread,
    Scheduled,
    SignalScale,
    SineVariance,
)
from ppap_host.recipes.views import Noisy, NoisyUnitSize, Predicted, PredictedThrough

COURSES = ("increase", "decrease", "constant")

# The limit leaves every step of the published method alone that does not destroy the image anyway.
NAIVE = Recipe(
    name="naive",
    view=Noisy(),
    place=MeanOrScore(),
    limit=2.0,
)
# The factor makes scales of order one good ones; with the limit, no step moves x_0 by a root mean
# square of more than half of what is still open.
PPAP = Recipe(
    name="ppap",
    view=Noisy(),
    place=CleanPoint(),
    strength=PosteriorSpread(factor=0.25),
    gradient=(UnitScale(), RootSize(), Smoothed()),
    needs_experts=True,
    limit=2.0,
    parameters=(
        Parameter("smoothing", ("gradient.2.width",), 0.01, 0.1, log=True),
        Parameter("power", ("strength.power",), 0.0, 2.0),
    ),
)
X0 = Recipe(
    name="x0",
    view=Predicted(),
    place=CleanPoint(),
    strength=PosteriorSpread(factor=0.25),
    gradient=(RootSize(), Smoothed()),
    limit=2.0,
    parameters=(
        Parameter("smoothing", ("gradient.1.width",), 0.01, 0.1, log=True),
        Parameter("power", ("strength.power",), 0.0, 2.0),
    ),
)
X0_THROUGH = Recipe(
    name="x0-through",
    view=PredictedThrough(),
    place=CleanPoint(),
    strength=PosteriorSpread(factor=0.25),
    gradient=(UnitScale(), RootSize()),
    limit=2.0,
    parameters=(Parameter("power", ("strength.power",), 0.0, 2.0),),
)
ELUCD = Recipe(
    name="elucd",
    view=Predicted(),
    place=NextState(unit_scale=True),
    strength=SineVariance(gamma=0.3),
    gradient=(RootSize(),),
    limit=2.0,
    softplus=3.0,
    joint=1.0,
    marginal=0.5,
    parameters=(
        Parameter("gamma", ("strength.gamma",), 0.0, 1.0),
        Parameter("joint", ("joint",), 0.5, 2.0),
        Parameter("marginal", ("marginal",), 0.0, 1.0),
    ),
)
ELUCD_EDM = Recipe(
    name="elucd-edm",
    view=NoisyUnitSize(),
    place=Entering(),
    strength=LinearSine(),
    gradient=(Normalised(), StateSize()),
    limit=50.0,
    softplus=4.0,
    joint=1.0,
    marginal=0.0,
    parameters=(
        Parameter("add", ("strength.add",), 0.0, 1.0),
        Parameter("joint", ("joint",), 0.5, 2.0),
        Parameter("marginal", ("marginal",), 0.0, 1.0),
    ),
)
DPS = Recipe(
    name="dps",
    view=PredictedThrough(),
    place=NextState(),
    gradient=(PerRootLoss(), RootSize()),
    limit=1.0,
)
FREEDOM = Recipe(
    name="freedom",
    view=PredictedThrough(),
    place=NextState(carried=True),
    strength=Scheduled(course="increase"),
    gradient=(RootSize(),),
    limit=1.0,
    recurrence=2,
    parameters=(Parameter("course", ("strength.course",), choices=COURSES),),
)
LGD_MC = Recipe(
    name="lgd-mc",
    view=PredictedThrough(),
    place=NextState(carried=True),
    energy=MonteCarlo(samples=4),
    gradient=(RootSize(),),
    limit=1.0,
    parameters=(
        Parameter("samples", ("energy.samples",), 1.0, 8.0),
        Parameter("width", ("energy.width",), 0.05, 1.0, log=True),
    ),
)
MPGD = Recipe(
    name="mpgd",
    view=Predicted(),
    place=CleanPoint(keep_eps=True),
    gradient=(RootSize(),),
    limit=1.0,
)
UGD = Recipe(
    name="ugd",
    view=PredictedThrough(),
    place=Score(),
    gradient=(RootSize(),),
    limit=2.0,
    also=(Move(Predicted(), CleanPoint(), ascent=Adam(steps=3, rate=0.01)),),
    recurrence=2,
    parameters=(
        Parameter("iterations", ("also.0.ascent.steps",), 0.0, 6.0),
        Parameter("rate", ("also.0.ascent.rate",), 0.001, 0.1, log=True, absolute=True),
    ),
)
TFG = Recipe(
    name="tfg",
    view=PredictedThrough(),
    place=NextState(carried=True),
    strength=Scheduled(1.0, "increase"),
    energy=MonteCarlo(samples=1, width=0.1),
    gradient=(RootSize(),),
    limit=1.0,
    also=(
        Move(
            Predicted(),
            CleanPoint(keep_eps=True),
            Scheduled(0.25, "increase"),
            (RootSize(),),
            MonteCarlo(samples=1, width=0.1),
            Gradient(steps=4),
            limit=1.0,
        ),
    ),
    parameters=(
        Parameter("rho", ("strength.factor",), 0.05, 4.0, log=True),
        Parameter("mu", ("also.0.strength.factor",), 0.05, 4.0, log=True),
        Parameter("sigma", ("energy.width", "also.0.energy.width"), 0.01, 1.0, log=True),
        Parameter("samples", ("energy.samples", "also.0.energy.samples"), 1.0, 4.0),
        Parameter("iterations", ("also.0.ascent.steps",), 1.0, 6.0),
        Parameter("rho-course", ("strength.course",), choices=COURSES),
        Parameter("mu-course", ("also.0.strength.course",), choices=COURSES),
        Parameter("sigma-fades", ("energy.fading", "also.0.energy.fading")),
    ),
)
_MOMENTS = ("beta1", 0.5, 0.99), ("beta2", 0.9, 0.9999)
ADAM_DPS = Recipe(
    name="adam-dps",
    view=PredictedThrough(),
    place=NextState(),
    gradient=(AdamMoments(),),
    limit=1.0,
    parameters=tuple(Parameter(n, (f"gradient.0.{n}",), a, b) for n, a, b in _MOMENTS),
)
ADAM_MPGD = Recipe(
    name="adam-mpgd",
    view=Predicted(),
    place=CleanPoint(keep_eps=True),
    gradient=(AdamMoments(),),
    limit=1.0,
    parameters=tuple(Parameter(n, (f"gradient.0.{n}",), a, b) for n, a, b in _MOMENTS),
)
PIGDM = Recipe(
    name="pigdm",
    view=PredictedThrough(),
    place=NextState(),
    strength=SignalScale(),
    energy=LinearPosterior(),
    limit=4.0,
    parameters=(Parameter("noise", ("energy.noise",), 0.0, 0.5),),
    absolute=True,
)
DSG = Recipe(
    name="dsg",
    view=PredictedThrough(),
    place=Sphere(),
    limit=1.0,
    parameters=(Parameter("rate", ("place.rate",), 0.01, 1.0, log=True, absolute=True),),
)
# Five updates of at most 1/20 of what is open, and a fifth of it in all at the gradients of `x0`.
DAPS = Recipe(
    name="daps",
    view=Predicted(),
    place=Renoised(),
    strength=PosteriorSpread(factor=0.05, power=2.0),
    gradient=(RootSize(), Smoothed()),
    ascent=Chain(),
    limit=2.0,
    parameters=(
        Parameter("updates", ("ascent.steps",), 1.0, 20.0),
        Parameter("rate", ("ascent.rate",), 1e-5, 0.1, log=True),
        Parameter("flow", ("ascent.flow.steps",), 1.0, 8.0),
        Parameter("smoothing", ("gradient.1.width",), 0.01, 0.1, log=True),
    ),
)
CFG_PP = Recipe(name="cfg++", leads="unconditional", cfg=0.6)
_POPULATION = (
    Parameter("particles", ("selection.size",), 1.0, 16.0),
    Parameter("lambda", ("selection.factor",), 0.1, 20.0, log=True),
    Parameter("period", ("selection.period",), 1.0, 10.0),
    Parameter("potential", ("selection.potential",), choices=POTENTIALS),
)
BEST_OF_N = Recipe(
    name="best-of-n",
    view=Predicted(),
    selection=FeynmanKac(potential="bon"),
    parameters=_POPULATION[:1],
)
FK = Recipe(name="fk", view=Predicted(), selection=FeynmanKac(), parameters=_POPULATION)
SVDD = Recipe(
    name="svdd",
    view=Predicted(),
    selection=Branched(),
    parameters=(
        Parameter("branches", ("selection.branches",), 1.0, 16.0),
        Parameter("temperature", ("selection.temperature",), 0.0, 1.0),
    ),
)
DNO = Recipe(
    name="dno",
    view=Predicted(),
    start=NoiseAscent(),
    parameters=(
        Parameter("iterations", ("start.iterations",), 1.0, 20.0),
        Parameter("rate", ("start.rate",), 0.01, 1.0, log=True),
    ),
)
UNICODE = replace(
    X0, name="unicode", selection=FeynmanKac(), parameters=(*X0.parameters, *_POPULATION)
)
