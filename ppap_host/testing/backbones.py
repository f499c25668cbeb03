"""What is checked of a backbone."""

# Long because every claim on a backbone stands here beside its reason and its remedy.
from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from ppap_host.backbones.backbone import Backbone, ClassifierFree, Condition, Prediction, encode
from ppap_host.backbones.backbone import repeat_condition as repeated
from ppap_host.backbones.noise import NoiseLevel, Walk
from ppap_host.files.errors import OptionError, PpapError, UnknownNameError
from ppap_host.plugins.containment import in_a_line
from ppap_host.plugins.loading import load_sampler
from ppap_host.plugins.registry import registry
from ppap_host.sampling.loop import sample
from ppap_host.sampling.names import PIPELINE
from ppap_host.sampling.solvers import DDIM
from ppap_host.sampling.streams import ImageNoise
from ppap_host.testing.checks import CannotCheck, Check, Fault, Suite, require
from ppap_host.testing.comparing import differ, watched_randomness

_STEPS = 6
_COUNT = 3
CPU = torch.device("cpu")


class BackboneUnderTest:
    """What is checked, made when it is first needed.

    Args:
        make: returns the backbone, a new one at every call.
        prompt: a text that it understands; None to try one.
        trained: whether its weights mean anything.
        seed: of all draws.
    """

    def __init__(
        self, make: Callable[[], Backbone], prompt: str | None, trained: bool, seed: int
    ) -> None:
        self.make, self.prompt, self.trained, self.seed = make, prompt, trained, seed

    @cached_property
    def backbone(self) -> Backbone:
        """The backbone, where it was made."""
        return self.fresh()

    def fresh(self) -> Backbone:
        """Another one."""
        try:
            return self.make()
        except Exception as error:
            raise CannotCheck(f"the backbone cannot be made ({in_a_line(error)})") from error

    @cached_property
    def walk(self) -> Walk:
        """A short one."""
        return self.backbone.walk(_STEPS)

    @cached_property
    def nothing(self) -> Condition:
        """The condition where nothing was asked for, one row (or empty)."""
        return _nothing(self.backbone)

    def asked(self) -> list[Condition]:
        """Two different conditions, one row each.

        Raises:
            CannotCheck: it takes none, or none is known.
        """
        backbone = self.backbone
        if backbone.class_count is not None:
            if backbone.class_count < 2:
                raise CannotCheck("it knows one class alone")
            return [encode(backbone, [""], [k]) for k in (0, backbone.class_count - 1)]
        try:
            backbone.encode_prompts(["a red cone" if self.prompt is None else self.prompt])
        except OptionError as error:
            if self.prompt is not None:
                raise
            raise CannotCheck(
                f"it takes no classes, and not this prompt; name one with prompt= (--prompt on "
                f"the command line) if it reads any ({error.message})"
            ) from error
        text = "a red cone" if self.prompt is None else self.prompt
        return [backbone.encode_prompts([text]), backbone.encode_prompts([""])]

    def noise(self, count: int = _COUNT) -> Tensor:
        """Standard normal states."""
        draw = ImageNoise(self.seed, range(count), self.backbone.state_shape)
        return draw().to(self.backbone.state_dtype)

    def state(self, level: NoiseLevel, count: int = _COUNT) -> Tensor:
        """What a state at a level looks like: its own images, noised."""
        return level.alpha * self.images[:count] + level.sigma * self.noise(count)

    def sampled(self, rows: range, seed: int | None = None) -> Tensor:
        """Clean states of images of a seed."""
        backbone = self.backbone
        with torch.no_grad():
            return sample(
                backbone,
                ClassifierFree(backbone, self.nothing, self.nothing),
                self.walk,
                DDIM(),
                ImageNoise(
                    self.seed + 7 if seed is None else seed, list(rows), backbone.state_shape
                ),
            )

    @cached_property
    def images(self) -> Tensor:
        """Clean states that it makes itself."""
        return self.sampled(range(_COUNT))

    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:
        """One prediction, a condition of one row for all."""
        return self.backbone.predict(x, level, repeated(condition, len(x)))

    def some_levels(self) -> list[NoiseLevel]:
        """A noisy, a middling and a rather clean one of the walk."""
        levels = self.walk.levels[:-1]
        return [levels[0], levels[len(levels) // 2], levels[-1]]


def _nothing(backbone: Backbone) -> Condition:
    """The unconditional branch; the first class where there is none."""
    try:
        return encode(backbone, [""], [None])
    except OptionError:
        return encode(backbone, [""], [0])


BACKBONE = Suite[BackboneUnderTest]()
"""All that is checked of a backbone."""


@BACKBONE.claim(
    "made",
    why="The sampler asks these attributes how to run the model.",
    remedy="Derive from ppap_host.backbones.backbone.Backbone and set name, state_shape and what "
    "differs.",
)
def made(subject: BackboneUnderTest) -> None:
    """The factory returns a Backbone, and its attributes make sense."""
    try:
        found: object = subject.make()
    except PpapError as error:
        raise CannotCheck(f"the backbone cannot be made: {error}") from error
    require(isinstance(found, Backbone), f"The factory returns a {type(found).__name__}.")
    assert isinstance(found, Backbone)
    name = getattr(found, "name", None)
    require(isinstance(name, str) and name.strip(), f"Its name is {name!r}.")
    shape = getattr(found, "state_shape", None)
    several = isinstance(shape, tuple) and len(shape) >= 1
    require(
        several and all(isinstance(n, int) and n > 0 for n in shape or ()),
        f"state_shape is {shape!r}, no tuple of numbers such as (channels, height, width).",
    )
    require(isinstance(found.makes, str) and found.makes, f"It makes {found.makes!r}, no word.")
    require(len(found.image_size) == 2, f"image_size is {found.image_size!r}.")
    clip = found.clip
    require(clip is None or clip[0] < clip[1], f"clip is {clip!r}.")
    require(found.fixed_variance in ("large", "small"), f"fixed_variance: {found.fixed_variance!r}")
    require(math.isfinite(found.default_cfg), f"default_cfg is {found.default_cfg!r}.")
    require(found.state_dtype.is_floating_point, f"state_dtype is {found.state_dtype}.")
    _, sampler, eta = found.sampling()
    try:
        if sampler != PIPELINE:
            load_sampler(registry(), sampler, found, eta)
    except UnknownNameError as error:
        raise Fault(f"By default it is sampled by {sampler!r}: {error}") from error


@BACKBONE.claim(
    "levels",
    why="Noise ranges of experts are cut from them, in this order.",
    remedy="Return the levels of the training schedule, cleanest first, each once.",
)
def levels(subject: BackboneUnderTest) -> None:
    """levels() goes from clean to noisy, every level noisier than the one before."""
    found = subject.backbone.levels()
    require(len(found) >= 2, f"There are {len(found)} levels.")
    for before, after in pairwise(found):
        _sound(after)
        require(
            before.log_snr > after.log_snr,
            f"The level of log-SNR {before.log_snr:.3g} comes before that of {after.log_snr:.3g}.",
        )
    _sound(found[0])
    for k in (1, 2, 3):
        level = found[k * len(found) // 4]
        s = level.sigma / level.alpha
        near = subject.backbone.level_at(s)
        ratio = near.sigma / near.alpha / s
        require(0.8 < ratio < 1.25, f"level_at({s:.3g}) is at {near.sigma / near.alpha:.3g}.")


def _sound(level: NoiseLevel) -> None:
    numbers = all(map(math.isfinite, (level.alpha, level.sigma, level.time)))
    require(numbers and 0 <= level.alpha <= 1 and level.sigma >= 0, f"{level} makes no sense.")


@BACKBONE.claim(
    "walk",
    why="A solver divides by the steps between neighbouring levels, and ends where the walk ends.",
    remedy="Return the levels noisiest first, without repeats, and ppap_host.backbones.noise.CLEAN "
    "last; DiscreteSchedule.walk does.",
)
def walk(subject: BackboneUnderTest) -> None:
    """A walk has as many steps as asked for, falls monotonously in noise and ends clean."""
    for steps in (2, 5, 10):
        found = subject.backbone.walk(steps)
        require(len(found) == steps, f"A walk of {steps} steps has {len(found)}.")
        require(found.levels[-1].sigma == 0, f"It ends at {found.levels[-1]}, which is not clean.")
        for level in found.levels:
            _sound(level)
            require(level.alpha > 0, f"It visits {level}, where no x_0 can be predicted.")
        for before, after in pairwise(found.levels):
            require(
                before.log_snr < after.log_snr,
                f"Of {steps} steps one leads from log-SNR {before.log_snr:.3g} to "
                f"{after.log_snr:.3g}: not to less noise.",
            )


@BACKBONE.claim(
    "bad-steps",
    why="--steps is what a user types.",
    remedy="Raise ppap_host.files.errors.OptionError for what is no number of steps; "
    "ppap_host.backbones.noise.respace does.",
)
def bad_steps(subject: BackboneUnderTest) -> None:
    """Steps that make no sense are refused as an OptionError with a remedy."""
    backbone = subject.backbone
    for steps in ("many", 0, -3):
        try:
            backbone.walk(steps)
        except OptionError as error:
            require(error.remedy, f"For {steps!r} steps the OptionError has no remedy.")
        except Exception as error:
            raise Fault(f"{steps!r} steps raise {type(error).__name__}, no OptionError.") from error
        else:
            raise Fault(f"{steps!r} steps are accepted.")


@BACKBONE.claim(
    "prediction",
    why="The solvers compute with eps in the state's shape and precision.",
    remedy="Return Prediction(eps, v), both shaped and typed as x; split off a learned variance.",
)
def prediction(subject: BackboneUnderTest) -> None:
    """Predictions have the state's shape and precision and are finite."""
    for level in subject.some_levels():
        x = subject.state(level)
        found = subject.predict(x, level, subject.nothing)
        require(isinstance(found, Prediction), f"predict() returns a {type(found).__name__}.")
        parts = {"eps": found.eps} | ({} if found.v is None else {"v": found.v})
        for name, tensor in parts.items():
            same = tensor.shape == x.shape
            require(same, f"{name} is {tuple(tensor.shape)} for x of {tuple(x.shape)}.")
            require(tensor.dtype == x.dtype, f"{name} is {tensor.dtype} for x in {x.dtype}.")
            require(tensor.isfinite().all(), f"{name} is not finite at log-SNR {level.log_snr:.3g}")


@BACKBONE.claim(
    "denoises",
    why="x_0 = (x_t - sigma eps) / alpha is what guides are shown: if eps is something else, such "
    "as x_0, a velocity, or the noise of another level, everything after it is wrong.",
    remedy="Convert what the network predicts to eps with alpha and sigma of the level (for a "
    "velocity: eps = sigma x + alpha v), and give the network the level's own time.",
)
def denoises(subject: BackboneUnderTest) -> None:
    """From its own images, noised, it predicts the noise and the image, in agreement."""
    if not subject.trained:
        raise CannotCheck("its weights are random")
    noise = subject.noise()
    spread = float((subject.images - subject.images.mean()).square().mean().sqrt())
    for level in subject.some_levels():
        x = subject.state(level)
        with torch.no_grad():
            found = subject.predict(x, level, subject.nothing)
        off = float((found.eps - noise).square().mean().sqrt())
        x0 = (x - level.sigma * found.eps) / level.alpha
        clip = subject.backbone.clip
        x0 = x0 if clip is None else x0.clamp(*clip)
        gap = float((x0 - subject.images).square().mean().sqrt())
        told = f"at log-SNR {level.log_snr:.2g}"
        relative = level.sigma / level.alpha
        if relative > 3:
            require(off < 0.5, f"In nearly pure noise the predicted noise is off by {off:.2g}.")
        # What one guesses without a network: the mean image, or x_t itself.
        guess = min(spread, relative)
        require(
            gap < 2 * guess + 0.02,
            f"The predicted image is off by {gap:.2g} {told}; a guess is off by {guess:.2g}.",
        )
        if found.v is not None:
            middle = float(found.v.abs().median())
            require(middle <= 1.5, f"The variance's coefficient v is about {middle:.2g} {told}.")


@BACKBONE.claim(
    "differentiable",
    why="Recipes such as dps take the guide's gradient back through the network.",
    remedy="No no_grad() or detach() in predict(); the sampler decides when gradients are needed.",
)
def differentiable(subject: BackboneUnderTest) -> None:
    """Predictions have a finite gradient in the state."""
    level = subject.some_levels()[1]
    x = subject.state(level).detach().requires_grad_(True)
    found = subject.predict(x, level, subject.nothing).eps.square().sum()
    require(found.requires_grad, "eps does not depend on x: there is no gradient.")
    (gradient,) = torch.autograd.grad(found, x)
    require(gradient.isfinite().all() and gradient.any(), "The gradient is zero or not finite.")


@BACKBONE.claim(
    "function",
    why="The same command must make the same images, and the sampler goes on with the tensors it "
    "shows.",
    remedy="Evaluation mode, no draws of your own, no in-place operations on x.",
)
def function(subject: BackboneUnderTest) -> None:
    """Predicting draws nothing, writes into nothing, and is the same twice."""
    level = subject.some_levels()[1]
    x = subject.state(level)
    kept = x.clone()
    with torch.no_grad():
        first = subject.predict(x, level, subject.nothing).eps.clone()
        with watched_randomness() as drawn:  # from the second time on: imports may draw, too
            again = subject.predict(x, level, subject.nothing).eps
    require(torch.equal(x, kept), "predict() writes into x.")
    require(not drawn, f"predict() draws from the global generator of {' and '.join(drawn)}.")
    require(differ(again, first) < 1e-6, "The second prediction is another one.")


@BACKBONE.claim(
    "batch",
    why="Image k of a seed is the same in any batch, or no run can be repeated.",
    remedy="Let no operation mix images, and give every image its own row of the condition.",
)
def batch(subject: BackboneUnderTest) -> None:
    """The prediction for an image is the same alone and in a batch."""
    level = subject.some_levels()[1]
    x = subject.state(level)
    with torch.no_grad():
        together = subject.predict(x, level, subject.nothing).eps
        for k in range(len(x)):
            alone = subject.predict(x[k : k + 1], level, subject.nothing).eps
            gap = differ(alone, together[k : k + 1])
            require(gap < 2e-3, f"eps of image {k} is off by {gap:.1%} in a batch.")


@BACKBONE.claim(
    "images",
    why="A seed and a number name an image: in records, in harvests, in comparisons.",
    remedy="See the checks 'batch' and 'function'; draw nothing beside the sampler.",
)
def images(subject: BackboneUnderTest) -> None:
    """A short run makes the same image k of a seed in any batch, and others of another seed."""
    made_ = subject.images
    require(made_.isfinite().all(), "The images are not finite.")
    told = subject.backbone.deviation
    require(math.isfinite(told) and told > 0, f"deviation is {told!r}.")
    size = float(made_.square().mean().sqrt())
    require(
        not subject.trained or told / 5 < size < 5 * told,
        f"Clean states are of size {size:.2g}, and their deviation is said to be {told:.2g}.",
        "Say with Backbone.deviation what the standard deviation of clean states is: relative "
        "strength is measured with it.",
    )
    alone = subject.sampled(range(1, 2))
    gap = differ(alone, made_[1:2])
    require(gap < 1e-2, f"Image 1 is off by {gap:.1%} when made alone.")
    again = subject.sampled(range(_COUNT))
    require(differ(again, made_) < 1e-4, "The same seed makes other images the second time.")
    other = subject.sampled(range(1), seed=subject.seed + 8)
    require(differ(other, made_[:1]) > 1e-4, "Another seed makes the same image.")


@BACKBONE.claim(
    "condition",
    why="Classifier-free guidance computes both branches in one batch and extrapolates between "
    "them.",
    remedy='Encode "" and None as the unconditional branch, in tensors of the same keys and '
    "shapes as any other condition, one row an image.",
)
def condition(subject: BackboneUnderTest) -> None:
    """A condition changes the prediction, row by row, and drops to the unconditional one."""
    backbone, (one, two) = subject.backbone, subject.asked()
    nothing = subject.nothing
    for other in (two, nothing):
        require(set(one) == set(other), f"Conditions have the keys {set(one)} and {set(other)}.")
        for key, rows in one.items():
            require(len(rows) == 1, f"{key!r} of one image has {len(rows)} rows.")
            same = rows.shape[1:] == other[key].shape[1:]
            require(same, f"{key!r} is {tuple(rows.shape)} and {tuple(other[key].shape)}.")
    level = subject.some_levels()[1]
    x = subject.state(level, 2)
    with torch.no_grad():
        a, b = (subject.predict(x, level, c).eps for c in (one, two))
        gap = differ(a, b)
        require(gap > 1e-6, "The prediction is the same whatever the condition is.")
        both = {key: torch.cat([one[key], two[key]]) for key in one}
        mixed = backbone.predict(x, level, both).eps
        gap = max(differ(mixed[:1], a[:1]), differ(mixed[1:], b[1:]))
        require(gap < 2e-3, f"In a batch of two conditions a prediction is off by {gap:.1%}.")
        guided = backbone.cfg_channels  # the others keep the conditional prediction
        free = ClassifierFree(backbone, one, nothing, 0.0)(x, level).eps[:, :guided]
        gap = differ(free, subject.predict(x, level, nothing).eps[:, :guided])
        require(gap < 2e-3, f"At scale 0 it is off from the unconditional one by {gap:.1%}.")


@BACKBONE.claim(
    "bad-condition",
    why="Prompts and classes are what a user types; what it cannot read must not be ignored.",
    remedy="Raise ppap_host.files.errors.OptionError; Backbone's own encode_prompts and "
    "encode_classes do where a model knows none.",
)
def bad_condition(subject: BackboneUnderTest) -> None:
    """Classes that do not exist are refused as an OptionError."""
    backbone = subject.backbone
    count = backbone.class_count
    for label in (-1, 0 if count is None else count):
        try:
            backbone.encode_classes([label])
        except OptionError:
            continue
        except Exception as error:
            raise Fault(f"Class {label} raises {type(error).__name__}, no OptionError.") from error
        raise Fault(f"Class {label} is accepted, and there are {count or 'none'}.")


@BACKBONE.claim(
    "decoding",
    why="Guides see decoded images, and their gradient must come back to the state.",
    remedy="Decode without no_grad() and without rounding, to RGB of image_size in [-1, 1]; say "
    "with decoded_shape what else is made.",
)
def decoding(subject: BackboneUnderTest) -> None:
    """States decode to RGB of image_size, or to decoded_shape, with a finite gradient."""
    x = subject.images.detach().clone().requires_grad_(True)
    rgb = subject.backbone.decode(x)
    wanted = (len(x), *subject.backbone.decoded_shape)
    require(tuple(rgb.shape) == wanted, f"decode() returns {tuple(rgb.shape)}, not {wanted}.")
    require(rgb.isfinite().all(), "Decoded images are not finite.")
    require(rgb.requires_grad, "No gradient goes through decode().")
    (gradient,) = torch.autograd.grad(rgb.square().sum(), x)
    require(gradient.isfinite().all() and gradient.any(), "The gradient is zero or not finite.")
    with torch.no_grad():
        alone = subject.backbone.decode(subject.images[1:2])
    gap = differ(alone, rgb[1:2].detach())
    require(gap < 2e-3, f"Image 1 is decoded otherwise alone, by {gap:.1%}.")
    if subject.trained and subject.backbone.makes in ("images", "video"):
        size = float(rgb.detach().abs().median())
        require(size < 1.5, f"Decoded pixels are of size {size:.2g}, not within [-1, 1].")


@BACKBONE.claim(
    "half-precision",
    why="--dtype bfloat16 moves the networks; the state stays as it is.",
    remedy="Cast x to the network's precision in predict(), and eps and v back to that of x.",
)
def half_precision(subject: BackboneUnderTest) -> None:
    """With its networks in bfloat16, predictions keep the state's precision and are about right."""
    level = subject.some_levels()[1]
    x = subject.state(level)
    with torch.no_grad():
        full = subject.predict(x, level, subject.nothing).eps
        other = subject.fresh()
        require(other.to(CPU, torch.bfloat16) is other, "to() does not return the backbone itself.")
        try:
            found = other.predict(x, level, repeated(_nothing(other), len(x))).eps
        except (NotImplementedError, RuntimeError) as error:
            if "not implemented" in str(error):
                raise CannotCheck(f"this CPU cannot compute it ({in_a_line(error)})") from error
            raise
    require(found.dtype == x.dtype, f"eps is {found.dtype} for x in {x.dtype}.")
    off = float((found - full).square().mean().sqrt() / full.square().mean().sqrt())
    require(found.isfinite().all(), "In bfloat16 eps is not finite.")
    require(off < 0.2 or not subject.trained, f"In bfloat16 eps is off by {off:.0%}.")


@BACKBONE.claim(
    "files",
    why="Their hashes are in the record of every run, and say later which model it was.",
    remedy="Return the paths that were read.",
)
def files(subject: BackboneUnderTest) -> None:
    """files() names files that exist."""
    missing = [str(path) for path in subject.backbone.files() if not path.is_file()]
    require(not missing, f"files() names what does not exist: {missing[:3]}.")


def check_backbone(
    make: Callable[[], Backbone],
    prompt: str | None = None,
    *,
    trained: bool = True,
    seed: int = 0,
) -> list[Check]:
    """The checks of a backbone, to be called one by one; nothing is made or loaded before.

    Args:
        make: returns the backbone, a new one at every call.
        prompt: a text that it understands, for text-conditional ones.
        trained: False for random weights: whether they denoise is then not checked.
        seed: of all random draws.
    """
    return BACKBONE.checks(BackboneUnderTest(make, prompt, trained, seed))
