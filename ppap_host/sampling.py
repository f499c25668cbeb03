"""The sampling loop, and the solvers it can run.

There is one loop. At every step the backbone is evaluated (:class:`Evaluator`), each guide's
gradient changes the estimate as its recipe says, and a solver takes the step.
"""

from __future__ import annotations

import math
import zlib
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ppap_host.backbone import Backbone, FixedVariance, Prediction
from ppap_host.balance import Balance, without_conflict
from ppap_host.errors import OptionError
from ppap_host.guide import Guide
from ppap_host.noise import NoiseLevel, Walk
from ppap_host.recipes import Estimate, Move, Question, Recipe, Step, limited, root_mean_square

Denoiser = Callable[[Tensor, NoiseLevel], Prediction]
Evaluate = Callable[[Tensor, NoiseLevel], Estimate]
LevelAt = Callable[[float], NoiseLevel]
Draw = Callable[[], Tensor]
Stream = Callable[[str], Draw]


class ImageNoise:
    """Gaussian noise for each image from its own stream.

    Image k of seed s always sees the same draws, whatever the batch it is in, the number of images
    asked for, or the device: the numbers are made on the CPU in float32.

    Args:
        seed: the run's seed, >= 0.
        indices: which images (0, 1, ...) the rows of a batch are.
        shape: of one state, (c, h, w).
        stage: of a cascade, >= 0; every stage has noise of its own.
        name: of a stream of its own beside the sampler's; empty for the sampler's.
    """

    def __init__(
        self,
        seed: int,
        indices: Sequence[int],
        shape: tuple[int, ...],
        stage: int = 0,
        name: str = "",
    ) -> None:
        self._streams = []
        self._seed, self._indices, self._shape, self._stage = seed, indices, shape, stage
        for k in indices:
            entropy = [seed, k, stage] if stage or name else [seed, k]
            if name:
                entropy.append(zlib.crc32(name.encode()))
            word = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
            self._streams.append(torch.Generator().manual_seed(int(word >> np.uint64(1))))

    def __call__(self) -> Tensor:
        """The next draw for every image, float32 [b, c, h, w] on the CPU."""
        return torch.stack([torch.randn(self._shape, generator=g) for g in self._streams])

    def stream(self, name: str) -> ImageNoise:
        """Noise for the same images that owes nothing to the sampler's, so that what a recipe draws
        leaves the rest of the run as it was."""
        return ImageNoise(self._seed, self._indices, self._shape, self._stage, name)


@dataclass(frozen=True)
class Guidance:
    """One guide at work: whom to ask, for what, how, and how strongly.

    Raises:
        OptionError: the recipe cannot ask this guide.
    """

    guide: Guide
    target: Tensor
    recipe: Recipe
    scale: float

    def __post_init__(self) -> None:
        self.recipe.check(self.guide, self.target)


@dataclass
class Health:
    """What went wrong without stopping the run.

    Attributes:
        skipped: guide name -> how many image-steps went on without its guidance because its
            gradient was not finite.
        limited: guide name -> how often a gradient was cut to the recipe's limit.
        limitable: guide name -> how many gradients had a limit.
        asked: guide name -> how many gradients there were.
    """

    skipped: dict[str, int] = field(default_factory=dict)
    limited: dict[str, int] = field(default_factory=dict)
    limitable: dict[str, int] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)

    def count(self, name: str, finite: Tensor, cut: Tensor, has_limit: bool) -> None:
        """Notes what became of the gradients of one guide for a batch.

        Args:
            finite, cut: whether the gradient of each image was, [b].
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
            f"The gradient of the guide {name!r} was not finite in {skipped} of "
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
        balance: how several guides make room for each other.
        stream: noise for what recipes draw themselves, by name; see :meth:`ImageNoise.stream`.
    """

    def __init__(
        self,
        backbone: Backbone,
        denoise: Denoiser,
        guidance: Sequence[Guidance],
        *,
        ancestral: bool,
        health: Health,
        balance: Balance = without_conflict,
        stream: Stream | None = None,
    ) -> None:
        self.backbone, self.denoise = backbone, denoise
        self.guidance = [replace(g, guide=g.recipe.applied_to(g.guide)) for g in guidance]
        self.ancestral, self.health, self.balance = ancestral, health, balance
        self._stream, self._streams = stream, dict[str, Draw]()
        self._memory = defaultdict[tuple[int, int], dict[Hashable, Any]](dict)

    def __call__(
        self,
        x: Float[Tensor, "b c h w"],
        level: NoiseLevel,
        step: Step | None = None,
        first: bool = True,
    ) -> Estimate:
        """The guided estimate at ``x`` and ``level``; carries no graph.

        Args:
            step: where on the walk this is.
            first: whether it is the step's first evaluation; what acts once a step acts there.
        """
        active = self._active(step, level)
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
            reading = self._read(x.detach().requires_grad_(through > 0), level, step)
        guided = self._detached(reading)
        draws = {i: self._shared_draws(x, f"smoothing {i}") for i in active}
        for r, asked in enumerate(rounds):
            ways = []
            for i, move in asked:
                through -= move.view.through_backbone
                source = guided if move.ascent.after else reading
                source = replace(source, memory=self._memory[i, r])
                ways.append(self._way(self.guidance[i], move, source, draws[i], keep=through > 0))
            for (_, move), way in zip(asked, self.balance(ways), strict=True):
                guided = move.place(guided, way, self.ancestral)
        return guided

    def entering(self, x: Float[Tensor, "b c h w"], step: Step) -> Float[Tensor, "b c h w"]:
        """The state that enters a step, moved by the recipes that do so before the backbone."""
        for i in self._active(step, step.now):
            for r, move in enumerate(self.guidance[i].recipe.moves):
                if move.place.enters:
                    nothing = torch.zeros_like(x)
                    memory = self._memory[i, r]
                    unread = Estimate(step.now, x, nothing, nothing, step=step, memory=memory)
                    draws = self._shared_draws(x, f"smoothing {i}")
                    way = self._way(self.guidance[i], move, unread, draws, keep=False)
                    x = move.place(unread, way, self.ancestral).x
        return x

    def recurrence(self, step: Step) -> int:
        """How often a step is taken: as often as the guide says that wants it most often."""
        active = self._active(step, step.now)
        return max((self.guidance[i].recipe.recurrence for i in active), default=1)

    def noise(self, name: str, like: Tensor) -> Tensor:
        """The next draw of a stream of its own, as ``like``."""
        if name not in self._streams:
            if self._stream is None:
                raise ValueError(f"A recipe draws noise ({name}): give a stream to draw it from.")
            self._streams[name] = self._stream(name)
        return self._streams[name]().to(like)

    def _active(self, step: Step | None, level: NoiseLevel) -> list[int]:
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
                made.append(self.noise(name, x))
            return made[:count]

        return draws

    def _read(self, x: Tensor, level: NoiseLevel, step: Step | None) -> Estimate:
        """The estimate with the network's own eps: views may differentiate through it."""
        prediction = self.denoise(x, level)
        x0 = (x - level.sigma * prediction.eps) / level.alpha
        if self.backbone.clip is not None:
            x0 = x0.clamp(*self.backbone.clip)
        clip = self.backbone.clip
        return Estimate(level, x, x0, prediction.eps, prediction.v, clip=clip, step=step)

    def _detached(self, reading: Estimate) -> Estimate:
        """The estimate without graphs, its eps that of the clipped x_0 if the backbone wants it."""
        level, x, x0 = reading.level, reading.x.detach(), reading.x0.detach()
        eps = reading.eps.detach()
        if self.backbone.clip_eps:
            eps = (x - level.alpha * x0) / level.sigma
        v = None if reading.v is None else reading.v.detach()
        return Estimate(level, x, x0, eps, v, clip=reading.clip, step=reading.step)

    def _way(
        self,
        g: Guidance,
        move: Move,
        estimate: Estimate,
        draws: Callable[[int], list[Tensor]],
        keep: bool,
    ) -> Tensor:
        """What a move adds at its place: scaled, limited, and zero where it is not finite."""
        told = estimate.level if move.view.sees_noise or g.guide.knows_predictions else None
        question = Question(
            g.guide, g.target, self.backbone.decode, estimate.level, told, draws
        )  # fmt: skip
        largest = move.limit * move.place.unit(estimate)

        def pull(point: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                if not move.view.through_backbone:
                    point = point.detach().requires_grad_(True)
                loss = move.energy(question, move.view.shown(estimate, point))
                (gradient,) = torch.autograd.grad(-loss.sum(), point, retain_graph=keep)
            if g.guide.averages_pixels and not move.energy.in_pixels:
                gradient = gradient * math.sqrt(gradient[0].numel())
            known = replace(estimate, loss=loss.detach())
            for part in move.gradient:
                gradient = part(gradient, known)
            gradient = g.scale * gradient
            finite = gradient.isfinite().flatten(1).all(dim=1)
            cut = root_mean_square(gradient).flatten() > largest
            self.health.count(g.guide.name, finite, cut, math.isfinite(largest))
            gradient = limited(gradient, largest) * move.strength(estimate)
            return torch.where(finite.view(-1, 1, 1, 1), gradient, 0.0), loss.detach()

        return move.ascent(pull, move.view.variable(estimate), estimate)


class Solver(ABC):
    """Takes one step down a walk of noise levels. Concrete solvers are final.

    Attributes:
        name: what the user calls it.
        ancestral: whether it draws from a Gaussian with a mean that guidance may shift.
    """

    name: str
    ancestral: bool = False

    @abstractmethod
    def step(
        self, x: Tensor, i: int, walk: Walk, evaluate: Evaluate, draw: Draw, memory: Any
    ) -> tuple[Tensor, Estimate, Any]:
        """From ``walk.levels[i]`` to ``walk.levels[i + 1]``.

        Args:
            x: the state entering the step.
            evaluate: the guided estimate at a state and its noise level, which need not be one of
                the walk's.
            draw: standard normal noise of the state's shape; called once a step by every solver
                that is stochastic for some setting, so that settings share their noise.
            memory: what the step before returned, None at the first.

        Returns:
            The next state, the estimate the step was based on, and the new memory.
        """


@dataclass(frozen=True)
class DDPM(Solver):
    """Ancestral sampling (Ho et al., 2020, algorithm 2), with learned or fixed variance.

    The variance is that of :meth:`ppap_host.recipes.Step.log_variance`. Guidance shifts the mean by
    variance * gradient (Dhariwal and Nichol, 2021, algorithm 1), in the last step too, which draws
    no noise.

    Attributes:
        variance: what to use when the backbone learned none.
    """

    variance: FixedVariance = "large"
    name = "ddpm"
    ancestral = True

    def step(
        self, x: Tensor, i: int, walk: Walk, evaluate: Evaluate, draw: Draw, memory: Any
    ) -> tuple[Tensor, Estimate, Any]:
        """One ancestral step; see :meth:`Solver.step`."""
        estimate, posterior, noise = evaluate(x, walk.levels[i]), walk.posterior(i), draw().to(x)
        log_variance = Step(walk, i, self.variance).log_variance(estimate.v, x)
        mean = posterior.of_x0 * estimate.x0 + posterior.of_xt * x
        if estimate.mean_shift is not None:
            mean = mean + log_variance.exp() * estimate.mean_shift
        if i == len(walk) - 1:
            return mean, estimate, None
        return mean + (0.5 * log_variance).exp() * noise, estimate, None


@dataclass(frozen=True)
class DDIM(Solver):
    """Song et al. (2021), eq. 12, for any schedule.

    Attributes:
        eta: 0 is deterministic; 1 has the variance of DDPM's posterior.
    """

    eta: float = 0.0
    name = "ddim"

    def step(
        self, x: Tensor, i: int, walk: Walk, evaluate: Evaluate, draw: Draw, memory: Any
    ) -> tuple[Tensor, Estimate, Any]:
        """One implicit step; see :meth:`Solver.step`."""
        estimate, then = evaluate(x, walk.levels[i]), walk.levels[i + 1]
        spread = self.eta * math.sqrt(walk.posterior(i).variance)
        inward = math.sqrt(max(then.sigma**2 - spread**2, 0.0))
        x = then.alpha * estimate.x0 + inward * estimate.eps
        if self.eta:
            x = x + spread * draw().to(x)
        return x, estimate, None


@dataclass(frozen=True)
class DPMSolverPP2M(Solver):
    """DPM-Solver++(2M) (Lu et al., 2022b, algorithm 2): second order, multistep, deterministic.

    Works on the predicted x_0 in half log-SNR, lambda = log(alpha / sigma); the first and the last
    step are of first order. Not to be confused with DPM-Solver-2, which evaluates twice a step.
    """

    name = "dpm++"

    def step(
        self, x: Tensor, i: int, walk: Walk, evaluate: Evaluate, draw: Draw, memory: Any
    ) -> tuple[Tensor, Estimate, Any]:
        """One multistep step; memory is (lambda, x_0) of the step before."""
        now, then = walk.levels[i], walk.levels[i + 1]
        estimate = evaluate(x, now)
        lam, d = now.log_snr / 2, estimate.x0
        if then.sigma == 0:
            return then.alpha * d, estimate, None
        h = then.log_snr / 2 - lam
        if memory is not None:
            lam_before, d_before = memory
            r = (lam - lam_before) / h
            d = d + (d - d_before) / (2 * r)
        x = (then.sigma / now.sigma) * x - then.alpha * math.expm1(-h) * d
        return x, estimate, (lam, estimate.x0)


@dataclass(frozen=True)
class Churn:
    """How much noise is put back before each step (Karras et al., 2022, algorithm 2).

    Noise is measured as s = sigma / alpha, which is sigma for EDM.

    Attributes:
        amount: S_churn, >= 0: over the whole walk; a step's share is S_churn / steps, at most
            sqrt(2) - 1, and raises s by that fraction. 0 is none.
        low, high: S_tmin and S_tmax, >= 0: the steps from s within these bounds get some.
        noise: S_noise, > 0: standard deviation of the new noise, 1 or a little more.

    Raises:
        OptionError: a value is out of range.
    """

    amount: float = 0.0
    low: float = 0.0
    high: float = math.inf
    noise: float = 1.0

    @classmethod
    def of(cls, amount: float, between: str | None = None, noise: float = 1.0) -> Churn:
        """From what a user writes: ``between`` is "low:high", either side may be empty.

        Raises:
            OptionError: it is no interval, or a value is out of range.
        """
        try:
            low, high = (between or ":").split(":")
            return cls(amount, float(low or 0), float(high or "inf"), noise)
        except ValueError:
            raise OptionError(
                f"--churn-range {between!r} is no interval of noise.",
                remedy="Give LOW:HIGH in sigma / alpha, such as 0.05:50.",
            ) from None

    def __post_init__(self) -> None:
        if not 0 <= self.amount < math.inf:
            raise OptionError(
                f"The churn {self.amount} is out of range.", remedy="Give a number of at least 0."
            )
        if not 0 <= self.low <= self.high:
            raise OptionError(
                f"Churn from {self.low} to {self.high} is no interval of noise.",
                remedy="Give two numbers of at least 0, the lower one first.",
            )
        if not 0 < self.noise < math.inf:
            raise OptionError(
                f"The churn's noise {self.noise} is out of range.",
                remedy="Give a number above 0, such as 1.003.",
            )


@dataclass(frozen=True)
class Heun(Solver):
    """Karras et al. (2022), algorithms 1 and 2: second order, two evaluations a step.

    Integrates dy/ds = (y - x_0) / s for y = x / alpha and s = sigma / alpha, so that it serves
    every schedule. The step to the clean image is a plain Euler step. Deterministic without churn;
    with churn each step first goes back to a higher noise level, one not on the walk.

    Attributes:
        churn: how much noise is put back; it is drawn at every step, also where none is put back.
        level_at: the level to go back to for its s; needed for churn alone
            (:meth:`ppap_host.backbone.Backbone.level_at`).
    """

    churn: Churn = Churn()
    level_at: LevelAt | None = field(default=None, repr=False)
    name = "heun"

    def __post_init__(self) -> None:
        if self.churn.amount and self.level_at is None:
            raise ValueError("Heun with churn needs level_at, such as backbone.level_at.")

    def step(
        self, x: Tensor, i: int, walk: Walk, evaluate: Evaluate, draw: Draw, memory: Any
    ) -> tuple[Tensor, Estimate, Any]:
        """One step with its trapezoidal correction; see :meth:`Solver.step`."""
        now, then = walk.levels[i], walk.levels[i + 1]
        if self.churn.amount:
            x, now = self._churned(x, now, len(walk), draw().to(x))
        estimate = evaluate(x, now)
        s, s_then = now.sigma / now.alpha, then.sigma / then.alpha
        y = x / now.alpha
        d = (y - estimate.x0) / s
        if s_then == 0:
            return then.alpha * estimate.x0, estimate, None
        ahead = y + (s_then - s) * d
        d_then = (ahead - evaluate(then.alpha * ahead, then).x0) / s_then
        return then.alpha * (y + (s_then - s) * (d + d_then) / 2), estimate, None

    def _churned(
        self, x: Tensor, now: NoiseLevel, steps: int, noise: Tensor
    ) -> tuple[Tensor, NoiseLevel]:
        """The state at a raised noise level, and that level (algorithm 2, lines 4 to 6)."""
        s, churn = now.sigma / now.alpha, self.churn
        if self.level_at is None or not churn.low <= s <= churn.high:
            return x, now
        raised = self.level_at(s * (1 + min(churn.amount / steps, math.sqrt(2) - 1)))
        s_raised = raised.sigma / raised.alpha
        # Where the network knows no level between, the nearest one is this one.
        if s_raised <= s:
            return x, now
        y = x / now.alpha + math.sqrt(s_raised**2 - s**2) * churn.noise * noise
        return raised.alpha * y, raised


SAMPLERS: Mapping[str, Callable[[float, Backbone], Solver]] = {
    "ddim": lambda eta, _: DDIM(eta=eta),
    "ddpm": lambda _, backbone: DDPM(variance=backbone.fixed_variance),
    "dpm++": lambda *_: DPMSolverPP2M(),
    "heun": lambda _, backbone: Heun(level_at=backbone.level_at),
}
"""How each sampler of :data:`ppap_host.names.SAMPLER_SUMMARIES` is made, from eta and backbone."""


@dataclass(frozen=True)
class StepReport:
    """What a watcher of the loop is told after each step.

    Attributes:
        step, steps: 0-based index and number of steps.
        x: the state after the step.
        estimate: what the step was based on.
    """

    step: int
    steps: int
    x: Tensor
    estimate: Estimate


def sample(
    backbone: Backbone,
    denoise: Denoiser,
    walk: Walk,
    solver: Solver,
    draw: Draw,
    guidance: Sequence[Guidance] = (),
    *,
    device: torch.device | str = "cpu",
    watch: Callable[[StepReport], None] | None = None,
    start: Tensor | None = None,
    health: Health | None = None,
    balance: Balance = without_conflict,
    stream: Stream | None = None,
) -> Float[Tensor, "b c h w"]:
    """Runs the reverse process for one batch.

    Args:
        backbone: the model, for its clipping and decoder.
        denoise: its prediction at a state and level (:class:`~ppap_host.backbone.ClassifierFree`).
        walk: the noise levels.
        solver: how a step is taken.
        draw: standard normal noise for the batch; its first draw is the initial state.
        guidance: the guides, applied in this order.
        watch: called after every step.
        start: the initial state instead of a first draw, in the schedule's own scale.
        health: counts what went wrong without stopping.
        balance: how several guides make room for each other (:mod:`ppap_host.balance`).
        stream: noise for what recipes draw themselves, by name; None takes ``draw.stream`` where
            there is one.

    Returns:
        The clean states in the backbone's ``state_dtype``; RGB in about [-1, 1] for pixel models.
    """
    health = Health() if health is None else health
    if stream is None and isinstance(draw, ImageNoise):
        stream = draw.stream
    evaluator = Evaluator(
        backbone,
        denoise,
        guidance,
        ancestral=solver.ancestral,
        health=health,
        balance=balance,
        stream=stream,
    )
    if start is None:
        start = backbone.start_temperature * walk.levels[0].scale * draw()
    x = start.to(device=device, dtype=backbone.state_dtype)
    memory: Any = None
    for i in range(len(walk)):
        step = Step(walk, i, backbone.fixed_variance)
        x, estimate, memory = take_step(solver, x, step, evaluator, draw, memory)
        if watch is not None:
            watch(StepReport(i, len(walk), x, estimate))
    return x


def take_step(
    solver: Solver, x: Tensor, step: Step, evaluator: Evaluator, draw: Draw, memory: Any = None
) -> tuple[Tensor, Estimate, Any]:
    """One step with all that recipes do around the solver's own, as often as they repeat it.

    Args:
        x: the state at ``step.now``.
        memory: what the step before returned, None at the first.

    Returns:
        The state at ``step.then``, the estimate that it was based on, and the new memory.
    """
    for repeats_left in reversed(range(evaluator.recurrence(step))):
        then, estimate, after = _taken_once(solver, x, step, evaluator, draw, memory)
        if repeats_left:
            x = step.back(then, evaluator.noise("recurrence", then))
    return then, estimate, after


def _taken_once(
    solver: Solver, x: Tensor, step: Step, evaluator: Evaluator, draw: Draw, memory: Any
) -> tuple[Tensor, Estimate, Any]:
    evaluations = 0

    def evaluate(x: Tensor, level: NoiseLevel) -> Estimate:
        nonlocal evaluations
        evaluations += 1
        return evaluator(x, level, step, first=evaluations == 1)

    x = evaluator.entering(x, step)
    x, estimate, memory = solver.step(x, step.index, step.walk, evaluate, draw, memory)
    if estimate.next_shift is not None:
        x = x + estimate.next_shift
    return x.detach(), estimate, memory


def make_solver(name: str, eta: float, backbone: Backbone, churn: Churn | None = None) -> Solver:
    """The sampler ``name``.

    Args:
        eta: of DDIM, 0 for none.
        churn: of Heun, None for none.

    Raises:
        OptionError: ``eta`` or ``churn`` is given to a sampler that has none, or ``eta`` is out of
            [0, 1].
    """
    if not 0 <= eta <= 1:
        raise OptionError(f"--eta {eta} is out of range.", remedy="Give a number from 0 to 1.")
    if eta and name != "ddim":
        raise OptionError(
            f"--eta belongs to the sampler 'ddim', not to {name!r}.",
            remedy="Leave out --eta, or use --sampler ddim.",
        )
    solver = SAMPLERS[name](eta, backbone)
    if churn is None or not churn.amount:
        return solver
    if not isinstance(solver, Heun):
        raise OptionError(
            f"Churn belongs to the sampler 'heun', not to {name!r}.",
            remedy="Leave out the churn, or use --sampler heun.",
        )
    return replace(solver, churn=churn)


__all__ = [
    "DDIM", "DDPM", "SAMPLERS", "Churn", "DPMSolverPP2M", "Evaluator", "Guidance",
    "Health", "Heun", "ImageNoise", "Solver", "StepReport", "make_solver", "sample", "take_step",
]  # fmt: skip
