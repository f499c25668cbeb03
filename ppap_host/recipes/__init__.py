"""Guidance methods as compositions of small parts, and the presets that have names.

A recipe says what the guide is shown (:class:`View`), how its loss is evaluated there
(:class:`Energy`), what is done to the gradient (:class:`GradientPart`), how often it is followed
(:class:`Ascent`), where it is applied (:class:`Place`), how strongly (:class:`Strength`) and at
which steps. The sampling loop in :mod:`ppap_host.sampling` is the same for all of them.

Sign and units: ``gradient`` is the gradient of *minus* the guide's loss, that is of a log
likelihood up to scale, per image, its length that of a label's gradient also where the loss is a
mean over pixels (:attr:`ppap_host.guide.Guide.averages_pixels`); it is multiplied by the
user's scale and the recipe's strength.
"""

from ppap_host.recipes.ascents import Adam, Ascent, Gradient, Pull
from ppap_host.recipes.energies import Energy, LinearPosterior, MonteCarlo, Point, Question
from ppap_host.recipes.estimate import Estimate, Step
from ppap_host.recipes.gradients import (
    AdamMoments,
    Clipped,
    GradientPart,
    Normalised,
    PerRootLoss,
    RootSize,
    Smoothed,
    StateSize,
    UnitScale,
    limited,
    root_mean_square,
)
from ppap_host.recipes.places import (
    CleanPoint,
    Entering,
    MeanOrScore,
    NextState,
    Place,
    Score,
)
from ppap_host.recipes.presets import (
    ADAM_DPS,
    ADAM_MPGD,
    DPS,
    ELUCD,
    ELUCD_EDM,
    FREEDOM,
    LGD_MC,
    MPGD,
    NAIVE,
    PIGDM,
    PPAP,
    TFG,
    UGD,
    X0,
    X0_THROUGH,
)
from ppap_host.recipes.recipe import (
    EVERYWHERE,
    Move,
    Parameter,
    Recipe,
    parts_of,
)
from ppap_host.recipes.strengths import (
    Constant,
    LinearSine,
    PosteriorSpread,
    Scheduled,
    SignalScale,
    SineVariance,
    Strength,
)
from ppap_host.recipes.views import Noisy, NoisyUnitSize, Predicted, PredictedThrough, View

__all__ = [
    "ADAM_DPS", "ADAM_MPGD", "DPS", "ELUCD", "ELUCD_EDM", "EVERYWHERE", "FREEDOM", "LGD_MC",
    "MPGD", "NAIVE", "PIGDM", "PPAP", "TFG", "UGD", "X0", "X0_THROUGH", "Adam", "AdamMoments",
    "Ascent", "CleanPoint", "Clipped", "Constant", "Energy", "Entering", "Estimate", "Gradient",
    "GradientPart", "LinearPosterior", "LinearSine", "MeanOrScore", "MonteCarlo", "Move",
    "NextState", "Noisy", "NoisyUnitSize", "Normalised", "Parameter", "PerRootLoss", "Place",
    "Point", "PosteriorSpread", "Predicted", "PredictedThrough", "Pull", "Question", "Recipe",
    "RootSize", "Scheduled", "Score", "SignalScale", "SineVariance", "Smoothed", "StateSize",
    "Step", "Strength", "UnitScale", "View", "limited", "parts_of", "root_mean_square",
]  # fmt: skip
