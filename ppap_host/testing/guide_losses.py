"""Checks of the loss, the distance and their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from ppap_host.files.errors import PpapError
from ppap_host.testing.checks import CannotCheck, Suite, require
from ppap_host.testing.comparing import differ
from ppap_host.testing.guide_subject import CPU, GuideUnderTest

CLAIMS = Suite[GuideUnderTest]()

_STEPS = 1e-3, 1e-2, 1e-4, 3e-3, 3e-2, 1e-5
_DIRECTIONS = 3
_TOLERANCE = 0.05


@CLAIMS.claim(
    "gradient-flows",
    why="Guidance is nothing but the gradient of the loss with respect to the image.",
    remedy="Keep the way from the image to the loss differentiable: no detach(), no no_grad(), no "
    "numpy or PIL in prepare and see.",
)
def gradient_flows(subject: GuideUnderTest) -> None:
    """The gradient reaches every image, is finite and not zero."""
    subject.needs_gradient()
    gradient = subject.gradient(subject.guide, subject.x, subject.target)
    require(gradient.isfinite().all(), "The gradient is not finite.")
    for k, row in enumerate(gradient):
        require(row.any(), f"The gradient of image {k} is zero everywhere.")


@CLAIMS.claim(
    "gradient-right",
    why="A gradient that is not that of the loss leads elsewhere than the loss says, and no scale "
    "mends it.",
    remedy="Look for detach(), no_grad(), in-place operations, rounding, and hand-written backward "
    "passes between the image and the loss.",
)
def gradient_right(subject: GuideUnderTest) -> None:
    """The gradient agrees with finite differences in float64, along itself and at random.

    Several step sizes are tried, and the best counts, so that neither kinks of the network nor a
    loss that rounds to float32 disturb it.
    """
    subject.needs_gradient()
    guide = subject.fresh().to(CPU, torch.float64)
    x = subject.x[:2].double()
    target = subject.own_target(guide, subject.other().double())
    gradient = subject.gradient(guide, x, target)
    if not gradient.any():
        raise CannotCheck("the gradient is zero; see 'gradient-flows'")
    unit = gradient / gradient.square().mean().sqrt()

    def along(direction: Tensor) -> float:
        @torch.no_grad()
        def loss(h: float) -> float:
            return float(subject.loss(guide, x + h * direction, target).double().sum())

        return _mismatch(loss, gradient, direction)

    own = along(unit)
    require(
        own < _TOLERANCE,
        f"Along itself the gradient is off by {own:.0%} of what finite differences give.",
    )
    generator = torch.Generator().manual_seed(subject.seed)
    drawn = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for _ in range(_DIRECTIONS)]
    off = median(along(direction) for direction in drawn)
    require(
        off < _TOLERANCE, f"Along random directions the gradient is off by {off:.0%} of its size."
    )


def _mismatch(loss: Callable[[float], float], gradient: Tensor, direction: Tensor) -> float:
    """How far a directional derivative is from that of central differences, for the best step.

    As a part of what one expects of a gradient of this length.
    """
    predicted = float((gradient * direction).sum())
    usual = float(gradient.norm() * direction.norm() / math.sqrt(direction.numel()))
    best = math.inf
    for h in _STEPS:
        slope = (loss(h) - loss(-h)) / (2 * h)
        best = min(best, abs(slope - predicted) / max(abs(predicted), usual))
        if best < _TOLERANCE / 2:
            break
    return best


@CLAIMS.claim(
    "gradient-finite",
    why="Where the target is met, and in plain areas, roots and quotients have infinite slopes: "
    "one NaN there, and the image goes on without guidance.",
    remedy="Guard square roots, norms and divisions: (v + 1e-12).sqrt(), clamp_min before a "
    "division; F.normalize and cdist have infinite slopes at zero, too.",
)
def gradient_finite(subject: GuideUnderTest) -> None:
    """The gradient is finite at the target itself, in plain images, in noise and out of bounds."""
    subject.needs_gradient()
    guide = subject.guide
    met = subject.other()
    generator = torch.Generator().manual_seed(subject.seed)
    noise = torch.randn(met.shape, generator=generator)
    for what, x in (
        ("an image that is the target itself", met),
        ("a black image", torch.full_like(met, -1.0)),
        ("a grey image", torch.zeros_like(met)),
        ("a white image", torch.full_like(met, 1.0)),
        ("pure noise", noise),
        ("an image far out of bounds", 4 * noise),
    ):
        losses = subject.loss(guide, x, subject.target)
        require(losses.isfinite().all(), f"The loss of {what} is {losses.tolist()}.")
        gradient = subject.gradient(guide, x, subject.target)
        bad = int((~gradient.isfinite()).sum())
        require(not bad, f"The gradient at {what} has {bad} entries that are not finite.")


@CLAIMS.claim(
    "own-output",
    why="If something else than the wanted output has a smaller loss, guidance leads away from the "
    "target.",
    remedy="Check the sign of the loss, and that as_target() makes of an output the target that "
    "asks for it (a classifier's logits are no probabilities).",
)
def own_output(subject: GuideUnderTest) -> None:
    """No output has a smaller loss than the one that the target was made of.

    Where targets are chosen among a few, such as a class, that holds on average; of a reward the
    loss falls as its value rises.
    """
    guide, output = subject.guide, subject.output
    if guide.rewards:
        _values(subject)
        return
    if subject.named and not makes_targets(subject):
        raise CannotCheck("its targets are named, and not made of what it sees")
    if _chooses(subject):
        _chosen(subject)
        return
    generator = torch.Generator().manual_seed(subject.seed)
    spread = output.std(dim=0, correction=0).mean() + 1e-3 * output.abs().mean()
    rivals = [("that of another image", output.roll(shift, 0)) for shift in (1, 2)]
    for part in (0.03, 0.3):
        for sign in (1, -1):
            noise = sign * torch.randn(output.shape, generator=generator)
            rivals.append(("a disturbed one", output + part * spread * noise.to(output)))
    for k in range(len(output)):
        target = guide.as_target(output[k : k + 1])
        own = float(guide.loss(output[k : k + 1], target))
        for what, rival in rivals:
            found = float(guide.loss(rival[k : k + 1], target))
            require(
                own <= found + 1e-5 * max(1.0, abs(own)),
                f"For the target made of an output, that output has the loss {own:.4g}, and {what} "
                f"{found:.4g}.",
            )
    target = guide.as_target(output[:1])
    losses = guide.loss(output, target)
    require(
        bool((losses[1:] > losses[0]).any()),
        "The loss is the same for all outputs: it wants nothing.",
    )


def makes_targets(subject: GuideUnderTest) -> bool:
    """Whether as_target() gives what the loss takes in the place of a target that was named."""
    guide, output = subject.guide, subject.output
    made = guide.as_target(output[:1])
    try:
        found = guide.loss(output, made)
    except (PpapError, RuntimeError, IndexError, TypeError, ValueError):
        return False
    return made.shape == subject.target.shape and found.shape == (len(output),)


def _chooses(subject: GuideUnderTest) -> bool:
    """Whether outputs that differ a little ask for the very same target."""
    guide, output = subject.guide, subject.output
    near = output + 1e-3 * output.abs().mean() * torch.sign(output.roll(1, 0) - output)
    return torch.equal(guide.as_target(output), guide.as_target(near))


def _chosen(subject: GuideUnderTest) -> None:
    """Each output against the others, on average, for targets chosen among a few."""
    guide, output = subject.guide, subject.output
    targets = [guide.as_target(output[k : k + 1]) for k in range(len(output))]
    if all(torch.equal(target, targets[0]) for target in targets):
        raise CannotCheck("it sees the same target in all samples")
    table = torch.stack([guide.loss(output, target) for target in targets])
    own, others = table.diagonal().mean(), (table.sum() - table.diagonal().sum()) / 6
    require(
        own < others,
        f"For the targets made of outputs, these have the loss {own:.4g} on average, and others "
        f"{others:.4g}.",
    )


def _values(subject: GuideUnderTest) -> None:
    """The loss of a reward falls as its value rises."""
    guide, output = subject.guide, subject.output
    measured = guide.measure(output, subject.target)
    require("value" in measured, f"A reward measures {sorted(measured)}, and no 'value'.")
    values, losses = torch.tensor(measured["value"]), guide.loss(output, subject.target)
    order = values.argsort()
    falls = bool((losses[order].diff() <= 1e-6 * losses.abs().max()).all())
    require(
        falls and bool(losses.std() > 0),
        f"For the values {values.tolist()} the losses are {losses.tolist()}.",
        "Let the loss be minus the value, as ppap_host.guides.rewards.RewardGuide does.",
    )


@CLAIMS.claim(
    "distance",
    why="Experts learn by it (PPAP, eq. 8): an expert that says what the teacher says must have "
    "nothing left to learn.",
    remedy="Return one number an image, 0 for equal outputs and above 0 for different ones; often "
    "the loss will do.",
)
def distance(subject: GuideUnderTest) -> None:
    """The distance of outputs is zero on itself, positive otherwise, one number an image."""
    guide, output = subject.guide, subject.output
    itself, other = guide.distance(output, output), guide.distance(output, output.roll(1, 0))
    for found in (itself, other):
        shape = tuple(found.shape)
        require(shape == (len(output),), f"The distance has the shape {shape}.")
        require(found.isfinite().all(), f"The distance is {found.tolist()}.")
    size = float(other.abs().max())
    require(
        float(itself.abs().max()) <= 1e-4 * max(size, 1e-3),
        f"The distance of an output to itself is {itself.tolist()}.",
    )
    require(
        bool((other >= -1e-6).all()) and size > 0,
        f"The distance between different outputs is {other.tolist()}.",
    )


@CLAIMS.claim(
    "distance-gradient",
    why="Tuning follows the distance's gradient with respect to the student's output.",
    remedy="Keep the distance differentiable in its first argument, also where both are equal.",
)
def distance_gradient(subject: GuideUnderTest) -> None:
    """The distance has a finite gradient in the student's output, also where there is none left."""
    guide, teacher = subject.guide, subject.output
    for what, start in (("another output", teacher.roll(1, 0)), ("the teacher's own", teacher)):
        student = start.clone().requires_grad_(True)
        found = guide.distance(student, teacher).sum()
        require(found.requires_grad, "The distance has no gradient.")
        (gradient,) = torch.autograd.grad(found, student)
        require(gradient.isfinite().all(), f"Its gradient at {what} is not finite.")
        if start is not teacher:
            require(gradient.any(), f"Its gradient at {what} is zero.")


@CLAIMS.claim(
    "pixel-average",
    why="The host makes up for a loss that is a mean over pixels, and for no other: otherwise a "
    "scale that is right at one resolution is wrong at the next.",
    remedy="Set averages_pixels = True for a mean over pixels; divide a sum over pixels by their "
    "number.",
)
def pixel_average(subject: GuideUnderTest) -> None:
    """averages_pixels says whether the loss is a mean over pixels (outputs that are maps)."""
    guide, output = subject.guide, subject.output
    height, width = subject.size
    is_map = output.ndim in (3, 4) and output.shape[-2] * width == output.shape[-1] * height
    if not is_map or min(output.shape[-2:]) < 4:
        raise CannotCheck("its output is no map of pixels")
    if guide.rewards:
        raise CannotCheck("a reward has a unit of its own")
    with torch.no_grad():
        target = subject.own_target(guide, subject.other())
        once = guide.loss(output, target)
        try:
            four = guide.loss(_tiled(output), _tiled(target))
        except (PpapError, RuntimeError, ValueError) as error:
            raise CannotCheck(f"its loss takes no larger maps ({error})") from error
    ratio = float((four / once.clamp_min(1e-12)).median())
    if not 0.7 < ratio < 1.4 and not 2.8 < ratio < 5.6:
        raise CannotCheck(f"four times the pixels have {ratio:.2g} times the loss")
    if ratio < 2:
        require(
            guide.averages_pixels,
            "Four times the pixels have the same loss, a mean, but averages_pixels is False.",
        )
    else:
        require(
            not guide.averages_pixels,
            "Four times the pixels have four times the loss, a sum, but averages_pixels is True.",
        )


def _tiled(maps: Tensor) -> Tensor:
    """Two by two copies side by side."""
    return torch.cat([torch.cat([maps, maps], dim=-1)] * 2, dim=-2)


@CLAIMS.claim(
    "temperatures",
    why="Recipes such as elucd ask for the guide at two temperatures; at 1 and 1 that must be the "
    "guide itself.",
    remedy="Let tempered(1, 1) have the loss of the guide, and logits() unnormalised log "
    "probabilities; leave both out if the guide knows no classes.",
)
def temperatures(subject: GuideUnderTest) -> None:
    """A guide that knows classes has its own loss at temperatures of 1, and logits for each."""
    guide = subject.guide
    same = guide.tempered(1.0, 1.0)
    gap = differ(
        same.loss(subject.output, subject.target), guide.loss(subject.output, subject.target)
    )
    require(gap < 1e-4, f"At temperatures of 1 and 1 the loss is off by {gap:.1%}.")
    try:
        logits = guide.logits(subject.output)
    except PpapError as error:
        raise CannotCheck("it knows no classes") from error
    shape = tuple(logits.shape)
    require(len(shape) == 2 and shape[0] == len(subject.x), f"The logits have the shape {shape}.")


@CLAIMS.claim(
    "operator",
    why="Recipes such as pigdm move images by the pseudo-inverse; if it does not belong to the "
    "measurement, they miss the target.",
    remedy="Make adjoint and pseudo_inverse those of the operator itself: <A x, y> = <x, A^T y>, "
    "and A A^+ A = A.",
)
def operator(subject: GuideUnderTest) -> None:
    """A guide that is a linear measurement has its own adjoint and pseudo-inverse."""
    found = subject.guide.operator(subject.target)
    if found is None:
        raise CannotCheck("it is no linear measurement")
    x, other = subject.x.double(), subject.other(len(subject.x)).double()
    y = found(x)
    require(differ(y, subject.output.double()) < 1e-3, "A x is not what the guide sees.")
    line = found(x + 2 * other) - (y + 2 * found(other))
    require(float(line.abs().max()) < 1e-3, "A (x + 2 z) is not A x + 2 A z: it is not linear.")
    probe = found(other)
    left, right = float((y * probe).sum()), float((x * found.adjoint(probe)).sum())
    gap = abs(left - right) / max(abs(left), 1e-6)
    require(gap < 1e-3, f"<A x, y> and <x, A^T y> differ by {gap:.1%}.")
    gap = differ(found(found.pseudo_inverse(y)), y)
    require(gap < 0.02, f"A A^+ A x and A x differ by {gap:.1%}.")
