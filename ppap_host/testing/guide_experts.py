"""Checks of what experts need: a patch plan, patches over the network, and a tuning that helps."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from ppap_host.experts.harvest import Lesson
from ppap_host.experts.patches import Patch
from ppap_host.experts.tuning import TuningConfig, tune
from ppap_host.files.errors import OptionError
from ppap_host.files.images import to_pixels, to_unit
from ppap_host.guides.guide import Guide, PatchPlan
from ppap_host.testing.checks import CannotCheck, Fault, Suite, require
from ppap_host.testing.comparing import differ
from ppap_host.testing.guide_subject import GuideUnderTest
from ppap_host.testing.worlds import GaussianWorld, pictures

CLAIMS = Suite[GuideUnderTest]()

_LOG_SNR = -1.0, 3.0
"""Noise at which an image can still be seen, and a network that knows none is in trouble."""
_LESSON, _BATCH, _STEPS, _LR = 8, 8, (40, 160), 1e-3


def _plan(subject: GuideUnderTest, guide: Guide) -> PatchPlan:
    """The guide's patch plan.

    Raises:
        CannotCheck: it has nothing to tune, and says so or shows it.
    """
    network = guide.network()
    if not subject.rgb_images():
        raise CannotCheck("experts are tuned on RGB images, and it looks at something else")
    if not any(True for _ in network.parameters()):
        raise CannotCheck("its network has no parameters, so there is nothing to tune")
    try:
        plan = guide.patch_plan(network)
    except OptionError as error:
        raise CannotCheck(f"the guide says that it cannot be tuned: {error.message}") from error
    if subject.noise_aware():
        raise CannotCheck("its network is told the noise, so experts have nothing to add")
    return plan


@CLAIMS.claim(
    "sees-through",
    why="Experts are shown images with through(): what see() does beside it they never see.",
    remedy="Put what happens to images before the network into prepare(); call the network that "
    "through() is given, not your own.",
)
def sees_through(subject: GuideUnderTest) -> None:
    """see() is through() with the guide's own network, and through() calls the one it is given."""
    guide = subject.guide
    if subject.noise_aware():
        raise CannotCheck("its network is told the noise, so experts have nothing to add")
    network = guide.network()
    shown: list[Tensor] = []

    def watched(prepared: Tensor) -> Tensor:
        shown.append(prepared)
        output: Tensor = network(prepared)
        return output

    with torch.no_grad():
        through = guide.through(watched, subject.x)
        prepared = guide.prepare(subject.x)
    require(shown, "through() does not call the network that it is given.")
    gap = differ(through, subject.output)
    require(gap < 1e-5, f"see() and through() of the same network differ by {gap:.1%}.")
    count = sum(len(one) for one in shown)
    if len(shown) == 1 and shown[0].shape == prepared.shape:
        gap = differ(shown[0], prepared.to(shown[0].dtype))
        require(gap < 1e-5, "The network is shown something else than prepare() returns.")
    require(count >= len(subject.x), f"Of {len(subject.x)} images the network is shown {count}.")


@CLAIMS.claim(
    "patch-plan",
    why="Experts change the parameters that the plan names, and no others.",
    remedy="Take the names from network.named_parameters(), or leave it to "
    "ppap_host.guides.guide.default_patch_plan; raise OptionError if there is nothing to tune.",
)
def patch_plan(subject: GuideUnderTest) -> None:
    """The patch plan names parameters of the network, with a sound rank."""
    guide = subject.guide
    plan = _plan(subject, guide)
    parameters = dict(guide.network().named_parameters(remove_duplicate=False))
    require(isinstance(plan, PatchPlan), f"patch_plan() returns a {type(plan).__name__}.")
    require(isinstance(plan.rank, int) and plan.rank >= 1, f"The rank is {plan.rank!r}.")
    named = (*plan.low_rank, *plan.direct)
    require(named, "The plan names no parameter: experts could learn nothing.")
    unknown = [name for name in named if name not in parameters]
    require(not unknown, f"The plan names {unknown[:3]}, which the network lacks.")
    flat = [name for name in plan.low_rank if parameters[name].ndim < 2]
    require(not flat, f"{flat[:3]} have one dimension and take no factors.", "Name them direct.")


@CLAIMS.claim(
    "patches",
    why="An expert is a patch laid over the frozen network, merged once a noise range: laid over "
    "and merged must be the same network, and the frozen one must not change.",
    remedy="Let the network read its parameters by their names at every call (no cached or fused "
    "copies), and let nothing but them decide what it sees.",
)
def patches(subject: GuideUnderTest) -> None:
    """A fresh patch changes nothing; a filled one does, exactly as if it were in the weights."""
    guide = subject.guide
    patch = Patch.fresh(guide.network(), _plan(subject, guide), seed=subject.seed)
    with torch.no_grad():
        fresh = guide.through(patch.over(guide.network()), subject.x)
        gap = differ(fresh, subject.output)
        require(gap < 1e-5, f"A patch that changes nothing changes the output by {gap:.1%}.")
        _fill(patch, subject.seed)
        laid = guide.through(patch.over(guide.network()), subject.x)
        require(differ(laid, subject.output) > 1e-7, "A filled patch does not change the output.")
        merged = copy.deepcopy(guide.network())
        missing = merged.load_state_dict(patch.merged(guide.network()), strict=False)
        require(not missing.unexpected_keys, f"It lacks {missing.unexpected_keys[:3]}.")
        gap = differ(guide.through(merged, subject.x), laid)
        require(gap < 1e-5, f"Merged into the weights the patch does {gap:.1%} otherwise.")
        after = guide.through(guide.network(), subject.x)
        require(differ(after, subject.output) < 1e-6, "The patch has changed the frozen network.")


def _fill(patch: Patch, seed: int) -> None:
    """Moves all of a patch a little, as a tuning would."""
    generator = torch.Generator().manual_seed(seed)
    for a, b in patch.low_rank.values():
        b.copy_(torch.randn(b.shape, generator=generator) * 0.02 / max(1.0, math.sqrt(len(a))))
    for value in patch.trainable():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator).to(value)
            value.add_(0.01 * value.abs().mean() * noise)


@CLAIMS.claim(
    "tuning",
    why="That is what experts are for: `ppap tune` must make the network see at noise what it sees "
    "without.",
    remedy="Check that distance() is differentiable and falls as outputs agree, and that the plan "
    "names the layers that noise disturbs.",
)
def tuning(subject: GuideUnderTest) -> None:
    """A tuning of a few steps brings an expert at noise nearer to what is seen without."""
    guide = subject.fresh()
    _plan(subject, guide)
    if not subject.trained:
        raise CannotCheck("its weights are random")
    pixels = to_pixels(pictures(_LESSON, subject.size, subject.seed + 2))
    with torch.no_grad():
        teacher = torch.cat([guide.see(to_unit(part)) for part in pixels.split(_BATCH)])
    low, high = _LOG_SNR
    levels = [v for v in GaussianWorld((8, 8)).levels() if low <= v.log_snr < high]
    # Each image is there four times, so that what is held out was learnt as well. What a trained
    # network says of patterns means nothing, and does not carry over from one to the next.
    lesson = Lesson(torch.cat([pixels] * 4), torch.cat([teacher.float()] * 4), {})
    # The first steps may lead astray: a network that is not better soon gets more of them.
    started: list[float] = []
    for steps in _STEPS:
        config = TuningConfig(
            experts=1, steps=steps, batch=_BATCH, lr=_LR, check_every=steps // 3, held_out=0.25
        )
        started.clear()
        found = tune(
            guide, lesson, levels, config, report=lambda told: started.append(told.held_out[0])
        )
        before, after = started[0], found.metadata["quality"][0]["expert"]["distance"]
        require(math.isfinite(before) and math.isfinite(after), f"Distances are {before}, {after}.")
        if after < 0.99 * before:
            return
    raise Fault(
        f"{steps} steps of tuning leave the distance at noise at {after:.4g}, before it was "
        f"{before:.4g}."
    )
