"""Checks of a guide's outside: network, shapes, precision, and that it is a function."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor, nn

from ppap_host.backbones.backbone import MEDIA
from ppap_host.experts.patches import network_hash
from ppap_host.files.errors import PpapError, nearest
from ppap_host.guides.guide import Guide
from ppap_host.plugins.containment import contained
from ppap_host.testing.checks import CannotCheck, Fault, Suite, require
from ppap_host.testing.comparing import differ, watched_randomness
from ppap_host.testing.guide_subject import CPU, GuideUnderTest

CLAIMS = Suite[GuideUnderTest]()


@CLAIMS.claim(
    "made",
    why="Commands, records and expert sets know a guide by its attributes.",
    remedy="Derive from ppap_host.guides.guide.Guide, give it a name, and return it from the "
    "factory.",
)
def made(subject: GuideUnderTest) -> None:
    """The factory returns a Guide, and its attributes are of their types."""
    try:
        guide: object = subject.make()
    except PpapError as error:
        raise CannotCheck(f"the guide cannot be made: {error}") from error
    require(isinstance(guide, Guide), f"The factory returns a {type(guide).__name__}.")
    assert isinstance(guide, Guide)
    name = getattr(guide, "name", None)
    require(isinstance(name, str) and name.strip(), f"Its name is {name!r}.")
    steps = guide.tuning_steps
    require(isinstance(steps, int) and steps >= 1, f"tuning_steps is {steps!r}.")
    for key in ("averages_pixels", "knows_predictions", "rewards", "differentiable"):
        value = getattr(guide, key)
        require(isinstance(value, bool), f"{key} is {value!r}, neither True nor False.")
    looks_at, channels = guide.looks_at, guide.channels
    require(looks_at is None or isinstance(looks_at, str), f"looks_at is {looks_at!r}, no word.")
    known = (*MEDIA.values(), "arrays")
    meant = nearest(looks_at, known, 1, 0.8) if looks_at and looks_at not in known else []
    require(not meant, f"looks_at is {looks_at!r}; backbones say {''.join(meant)!r}.")
    number = channels is None or (isinstance(channels, int) and channels >= 1)
    require(number, f"channels is {channels!r}, no number of them.")


@CLAIMS.claim(
    "default-scale",
    why="A run without --scale takes the strength from it, for any recipe there is or will be.",
    remedy='Give default_scale an entry "" for all recipes without one of their own, such as '
    '{"": 1.0}.',
)
def default_scale(subject: GuideUnderTest) -> None:
    """The usual strength is a positive number for every recipe."""
    scales = subject.guide.default_scale
    require("" in scales, f"default_scale has entries for {sorted(scales)} alone.")
    for recipe, scale in scales.items():
        number = isinstance(scale, int | float) and math.isfinite(scale) and scale > 0
        require(number, f"The scale for {recipe or 'all other recipes'!r} is {scale!r}.")


@CLAIMS.claim(
    "network",
    why="The host moves network() to the device and patches it for experts: another object, or one "
    "in training mode, is not the network that guides.",
    remedy="Make the network once in __init__, call eval() on it, and return it from network().",
)
def network(subject: GuideUnderTest) -> None:
    """network() is one module, the same object at every call, in evaluation mode."""
    guide = subject.guide
    found = guide.network()
    require(isinstance(found, nn.Module), f"network() returns a {type(found).__name__}.")
    require(guide.network() is found, "network() returns another object at every call.")
    training = [name or "the network" for name, part in found.named_modules() if part.training]
    require(not training, f"In training mode: {', '.join(training[:3])}.")


@CLAIMS.claim(
    "output",
    why="The host shows the guide images in the sampler's precision and differentiates what it "
    "sees; the rest of the batch is taken for granted everywhere.",
    remedy="Return one tensor, batch first, in the precision and on the device of the images.",
)
def output(subject: GuideUnderTest) -> None:
    """What is seen is one finite tensor, batch first, in the images' precision."""
    seen: object = subject.guide.see(subject.x)
    require(isinstance(seen, Tensor), f"see() returns a {type(seen).__name__}.")
    assert isinstance(seen, Tensor)
    batch = seen.ndim >= 1 and len(seen) == len(subject.x)
    require(batch, f"{len(subject.x)} images are seen as {tuple(seen.shape)}.")
    require(seen.dtype == subject.x.dtype, f"Images in float32 are seen in {seen.dtype}.")
    require(seen.isfinite().all(), "It sees values that are not finite.")
    gap = max(differ(seen[:1], seen[k : k + 1]) for k in range(1, len(seen)))
    require(gap > 1e-6, "It sees the same in different images.")


@CLAIMS.claim(
    "loss",
    why="The host sums the losses of the images and differentiates: a loss that is summed or "
    "averaged already steers each image by a strength that depends on the batch.",
    remedy="Reduce over all dimensions but the first; a target is a batch of one and broadcasts.",
)
def loss(subject: GuideUnderTest) -> None:
    """The loss is one finite number an image, as a tensor [b]."""
    found: object = subject.guide.loss(subject.output, subject.target)
    require(isinstance(found, Tensor), f"loss() returns a {type(found).__name__}.")
    assert isinstance(found, Tensor)
    wanted = (len(subject.x),)
    require(
        tuple(found.shape) == wanted, f"The loss has the shape {tuple(found.shape)}, not {wanted}."
    )
    require(found.is_floating_point(), f"The loss is of type {found.dtype}.")
    require(found.isfinite().all(), f"The loss is not finite: {found.tolist()}.")


@CLAIMS.claim(
    "precision",
    why="--dtype and the sampler decide the precision; a tensor of a fixed one meets another one "
    "in the middle of a run.",
    remedy="Name no dtype: make tensors with new_tensor or .to(x), and constants as buffers of the "
    "network.",
)
def precision(subject: GuideUnderTest) -> None:
    """In float64 images are seen and differentiated in float64, much as in float32."""
    guide = subject.fresh().to(CPU, torch.float64)
    x = subject.x.double()
    seen = guide.see(x)
    require(seen.dtype == torch.float64, f"Images in float64 are seen in {seen.dtype}.")
    require(
        differ(seen.detach(), subject.output.double()) < 1e-2,
        "In float64 it sees something else than in float32.",
    )
    target = subject.own_target(guide, subject.other().double())
    gradient = subject.gradient(guide, x, target)
    require(gradient.dtype == torch.float64, f"The gradient is of type {gradient.dtype}.")


@CLAIMS.claim(
    "half-precision",
    why="--dtype bfloat16 halves memory and time on graphics cards; the images stay in float32.",
    remedy="Let Guide.through cast what it prepares to the network's precision and the output back "
    "to that of the images.",
)
def half_precision(subject: GuideUnderTest) -> None:
    """With a network in bfloat16 all is finite and keeps the precision of the images."""
    guide = subject.fresh().to(CPU, torch.bfloat16)
    try:
        seen = guide.see(subject.x)
        target = subject.own_target(guide, subject.other())
        gradient = subject.gradient(guide, subject.x, target)
    except (NotImplementedError, RuntimeError) as error:
        if "not implemented" in str(error) or "Unsupported" in str(error):
            raise CannotCheck(f"this CPU cannot compute it in bfloat16 ({error})") from error
        raise
    require(seen.dtype == subject.x.dtype, f"Images in float32 are seen in {seen.dtype}.")
    require(gradient.dtype == subject.x.dtype, f"The gradient is of type {gradient.dtype}.")
    sound = seen.isfinite().all() and gradient.isfinite().all()
    require(sound, "What it sees or its gradient is not finite.")


@CLAIMS.claim(
    "device",
    why="On a graphics card a tensor that was left on the CPU, or is fetched from the card, stops "
    "the run.",
    remedy="Make tensors on x.device, or as buffers of the network; call neither .cpu() nor "
    ".numpy() in prepare, see and loss.",
)
def device(subject: GuideUnderTest) -> None:
    """Images, network and target on another device give output, loss and gradient there.

    Without a graphics card it is torch's "meta" device, which computes shapes alone.
    """
    place = torch.device("cuda" if torch.cuda.is_available() else "meta")
    guide = subject.fresh().to(place, torch.float32)
    target = subject.target.to(place)
    try:
        x = subject.x.to(place).requires_grad_(True)
        seen = guide.see(x)
        found = guide.loss(seen, target)
        gradient = x
        if guide.differentiable:
            (gradient,) = torch.autograd.grad(found.sum(), x)
    except (NotImplementedError, RuntimeError) as error:
        text = " ".join(str(error).split())
        if place.type == "meta" and ("item()" in text or "not implemented" in text.lower()):
            raise CannotCheck(
                f"it looks at values, and there is no other device ({text})"
            ) from None
        raise Fault(f"On the device {place.type!r}: {text}") from error
    for what, tensor in (("output", seen), ("loss", found), ("gradient", gradient)):
        require(tensor.device.type == place.type, f"The {what} is on {tensor.device}.")


@CLAIMS.claim(
    "batch",
    why="Image k of a seed must not depend on the batch it is made in, or no run can be repeated "
    "with another --batch.",
    remedy="Let no operation mix images: no sum or mean over the batch, no batch normalisation in "
    "training mode. A target has one row for all images or one an image: let it broadcast, and "
    "never look at target[0] alone.",
)
def batch(subject: GuideUnderTest) -> None:
    """Output, loss and gradient of an image are the same alone and in a batch.

    So are loss and measures where every image has a target of its own.
    """
    guide, x, target = subject.guide, subject.x, subject.target
    losses = guide.loss(subject.output, target)
    gradients = subject.gradient(guide, x, target)
    for k in range(len(x)):
        alone = x[k : k + 1]
        seen = guide.see(alone).detach()
        for what, one, all_ in (
            ("output", seen, subject.output[k : k + 1]),
            ("loss", guide.loss(seen, target), losses[k : k + 1]),
            ("gradient", subject.gradient(guide, alone, target), gradients[k : k + 1]),
        ):
            gap = differ(one, all_)
            require(gap < 2e-3, f"The {what} of image {k} is off by {gap:.1%} in a batch.")
    _own_targets(subject)


def _own_targets(subject: GuideUnderTest) -> None:
    """Loss and measures of images with a target each, against those of one after the other."""
    guide, output, targets = subject.guide, subject.output, [subject.target] * len(subject.x)
    if not subject.named:
        targets = [guide.as_target(row[None]).detach() for row in output.roll(1, 0)]
    together = torch.cat(targets)
    losses = guide.loss(output, together)
    require(
        tuple(losses.shape) == (len(output),),
        f"With a target an image the loss has the shape {tuple(losses.shape)}.",
    )
    measured = guide.measure(output, together)
    for k, target in enumerate(targets):
        one = output[k : k + 1]
        gap = differ(guide.loss(one, target), losses[k : k + 1])
        require(gap < 2e-3, f"With a target an image the loss of image {k} is off by {gap:.1%}.")
        for name, values in guide.measure(one, target).items():
            gap = abs(values[0] - measured[name][k])
            require(
                not gap > 2e-3 * abs(values[0]) + 1e-5,
                f"With a target an image the measure {name!r} of image {k} is off by {gap:.3g}.",
            )


@CLAIMS.claim(
    "deterministic",
    why="The same command must make the same images; a guide's own chance is in no record.",
    remedy="Put the network in evaluation mode (dropout!), and draw nothing; where chance is "
    "meant, draw it from a generator with a fixed seed.",
)
def deterministic(subject: GuideUnderTest) -> None:
    """Two calls see the same, and so does a second guide from the same factory."""
    guide, target = subject.guide, subject.target
    first = subject.gradient(guide, subject.x, target)
    again = guide.see(subject.x).detach()
    require(differ(again, subject.output) < 1e-6, "It sees something else at the second call.")
    same = differ(subject.gradient(guide, subject.x, target), first) < 1e-5
    require(same, "The gradient is another one at the second call.")
    other = subject.fresh().see(subject.x).detach()
    require(differ(other, subject.output) < 1e-5, "A second guide of the factory sees otherwise.")


@CLAIMS.claim(
    "own-randomness",
    why="Who draws from a global generator changes what everybody else draws, so that a run "
    "depends on which guides were asked before.",
    remedy="Draw from a torch.Generator of your own with a fixed seed.",
)
def own_randomness(subject: GuideUnderTest) -> None:
    """Seeing and the loss leave the global random generators alone."""
    target = subject.target
    subject.gradient(subject.guide, subject.x, target)
    with watched_randomness() as drawn:  # from the second time on: imports may draw, too
        subject.gradient(subject.guide, subject.x, target)
    require(not drawn, f"It draws from the global generator of {' and '.join(drawn)}.")


def _read(subject: GuideUnderTest) -> None:
    """Reads the target, if there is one to be read."""
    with suppress(CannotCheck, PpapError):
        subject.read(subject.guide)


@CLAIMS.claim(
    "well-behaved",
    why="Standard output carries results for other programs, and default dtypes, thread counts and "
    "warning filters are everybody's: the host undoes such changes, at the cost of a warning.",
    remedy="Log instead of printing, and use context managers such as torch.no_grad().",
)
def well_behaved(subject: GuideUnderTest) -> None:
    """Making and asking it prints nothing and leaves the settings of the process alone."""
    target = subject.target
    subject.gradient(subject.guide, subject.x, target)
    for conduct in subject.conducts:
        require(not conduct, f"Making it {conduct}.")
    asked: dict[str, Callable[[], object]] = {
        "Seeing, the loss or its gradient": lambda: subject.gradient(
            subject.guide, subject.x, target
        ),
        "read_target()": lambda: _read(subject),
        "as_target()": lambda: subject.guide.as_target(subject.output),
        "distance()": lambda: subject.guide.distance(subject.output, subject.output),
        "patch_plan()": lambda: subject.guide.patch_plan(subject.guide.network()),
        "measure()": lambda: subject.guide.measure(subject.output, target),
        "picture()": lambda: subject.guide.picture(subject.output),
    }
    for what, call in asked.items():
        with contained(draws=False) as conduct:
            call()
        require(not conduct, f"{what} {conduct}.")


@CLAIMS.claim(
    "inputs",
    why="The sampler goes on with the very tensors that it shows: what a guide writes into them is "
    "in the image.",
    remedy="Use x * a instead of x.mul_(a), and clone before writing.",
)
def inputs(subject: GuideUnderTest) -> None:
    """Images, outputs and targets are left as they were."""
    guide = subject.guide
    x, target = subject.x.clone(), subject.target.clone()
    with torch.no_grad():
        guide.prepare(x)
        require(torch.equal(x, subject.x), "prepare() writes into the images.")
        seen = guide.see(x)
        require(torch.equal(x, subject.x), "see() writes into the images.")
        kept = seen.clone()
        guide.loss(seen, target)
        require(torch.equal(seen, kept), "loss() writes into the output.")
        require(_same(target, subject.target), "loss() writes into the target.")
        other = seen.flip(0).clone()
        guide.distance(seen, other)
        same = torch.equal(seen, kept) and torch.equal(other, kept.flip(0))
        require(same, "distance() writes into its outputs.")
        guide.measure(seen, target)
        guide.picture(seen)
        same = torch.equal(seen, kept) and _same(target, subject.target)
        require(same, "measure() or picture() writes into the output or the target.")


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether targets are equal; what is unknown in them may be NaN."""
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


@CLAIMS.claim(
    "frozen",
    why="A network that is trained on the side, or collects gradients, is not the one that the "
    "record names, and fills the memory.",
    remedy="Leave requires_grad alone: the gradient flows to the images through frozen weights. "
    "Keep the network in evaluation mode.",
)
def frozen(subject: GuideUnderTest) -> None:
    """Use leaves weights and buffers as they were, and the parameters frozen."""
    guide = subject.fresh()
    before = network_hash(guide.network())
    target = subject.own_target(guide, subject.other())
    x = subject.x.clone().requires_grad_(True)
    loss = subject.loss(guide, x, target).sum()
    if guide.differentiable:
        loss.backward()
    found = guide.network()
    trainable = [name for name, p in found.named_parameters() if p.requires_grad]
    require(not trainable, f"After use these parameters want gradients: {_few(trainable)}.")
    collected = [name for name, p in found.named_parameters() if p.grad is not None]
    require(not collected, f"Use leaves gradients in the parameters {_few(collected)}.")
    require(network_hash(found) == before, "Use changes the network's weights or buffers.")


@CLAIMS.claim(
    "pickles",
    why="Worker processes and process pools get the guide as a pickle.",
    remedy="Keep no lambdas, local functions, open files or locks on the guide; functions of a "
    "module and functools.partial will do.",
)
def pickles(subject: GuideUnderTest) -> None:
    """It survives pickling, before it was used, and sees the same afterwards."""
    guide = subject.fresh()
    try:
        copy = pickle.loads(pickle.dumps(guide))
    except Exception as error:
        raise Fault(f"It cannot be pickled ({type(error).__name__}: {error}).") from error
    seen = copy.see(subject.x).detach()
    require(differ(seen, subject.output) < 1e-6, "The copy sees something else.")


@CLAIMS.claim(
    "files",
    why="Their hashes are in the record of every run, and say later which network it was.",
    remedy="Return the paths that were read; none for a guide without files.",
)
def files(subject: GuideUnderTest) -> None:
    """files() names files that exist."""
    missing = [str(path) for path in subject.guide.files() if not path.is_file()]
    require(not missing, f"files() names what does not exist: {_few(missing)}.")


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
