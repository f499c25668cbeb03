"""Guided sampling as the papers write it, in numpy: what the product is compared with.

Nothing here comes from the product. States are float64 rows [b, n]; a level is abar of Ho et al.
(2020), so that x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps. The world is one where all is known: data
drawn from N(m, S), whose denoiser is linear, and a classifier of one hidden layer, whose gradient
is written out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = Any
SHAPE = (2, 16, 20)
N = math.prod(SHAPE)
PIXELS = SHAPE[1] * SHAPE[2]


def rms(x: Array) -> Array:
    """Of each row, [b, 1]."""
    return np.sqrt((x**2).mean(axis=1, keepdims=True))


def cut(g: Array, largest: float) -> Array:
    """No row longer than that."""
    return g * np.minimum(1, largest / np.maximum(rms(g), 1e-300))


def blurred(g: Array, width: float, shape: Sequence[int] = SHAPE) -> Array:
    """By a Gaussian of ``width`` times the shorter side, cut at three deviations, mirrored."""
    deviation = width * min(shape[1:])
    reach = min(math.ceil(3 * deviation), min(shape[1:]) - 1)
    kernel = [math.exp(-0.5 * (k / deviation) ** 2) for k in range(-reach, reach + 1)]
    kernel = np.array(kernel) / sum(kernel)
    picture = g.reshape(-1, *shape)
    for axis in (2, 3):
        sides = [(reach, reach) if a == axis else (0, 0) for a in range(4)]
        padded = np.pad(picture, sides, mode="reflect")
        picture = np.apply_along_axis(np.convolve, axis, padded, kernel, mode="valid")
    return picture.reshape(len(g), -1)


@dataclass(eq=False)
class World:
    """Data N(m, S): E[x_0 | x_t] = m + sqrt(abar) S (abar S + (1 - abar) I)^-1 (x - sqrt(abar) m).

    Attributes:
        clip: bound of a clean state, None for none.
        learned: whether it says how large the variance is, v = tanh(x / 2 + 0.3).
        clip_eps: whether the noise is that of the clipped state.
        small: whether its fixed variance is the posterior's, not beta.
    """

    clip: float | None = None
    learned: bool = False
    clip_eps: bool = True
    small: bool = False

    def __post_init__(self) -> None:
        rng = np.random.default_rng(11)
        self.mean = 0.4 * rng.standard_normal(N)
        base, _ = np.linalg.qr(rng.standard_normal((N, N)))
        self.base, self.spectrum = base, np.geomspace(0.02, 0.8, N)

    def through(self, rows: Array, ab: float) -> Array:
        """Rows times d x_0 / d x_t, which is symmetric."""
        gains = math.sqrt(ab) * self.spectrum / (ab * self.spectrum + 1 - ab)
        return gains * (rows @ self.base) @ self.base.T

    def raw(self, x: Array, ab: float) -> Array:
        return self.mean + self.through(x - math.sqrt(ab) * self.mean, ab)

    def clipped(self, x0: Array) -> Array:
        return x0 if self.clip is None else np.clip(x0, -self.clip, self.clip)

    def v(self, x: Array) -> Array:
        return np.tanh(x / 2 + 0.3)


class Net:
    """A decoder's picture y = P u + 0.1 a pixel, its logits W2 relu(W1 y), and their gradient.

    Shown noise with log-SNR l, the picture is multiplied by 1.5 + tanh(l / 4) / 2: a guide that is
    told another level, or none, gives another gradient.

    Attributes:
        joint, marginal: EluCD's temperatures.
        beta: of Softplus in place of ReLU.
        averages: whether the loss counts as a mean over pixels.
    """

    def __init__(self, label: int = 1, seed: int = 5, averages: bool = False) -> None:
        rng = np.random.default_rng(seed)
        self.mix = rng.standard_normal((3, 2))
        self.w1 = rng.standard_normal((9, 3 * PIXELS)) / math.sqrt(3 * PIXELS)
        self.w2 = rng.standard_normal((4, 9)) / 3
        self.label, self.averages = label, averages
        self.joint = self.marginal = 1.0
        self.beta = math.inf

    def told(self, ab: float | None) -> float:
        return 1.0 if ab is None else 1.5 + math.tanh(math.log(ab / (1 - ab)) / 4) / 2

    def picture(self, u: Array) -> Array:
        state = u.reshape(len(u), 2, PIXELS)
        return (np.einsum("ij,bjp->bip", self.mix, state) + 0.1).reshape(len(u), -1)

    def loss_and_pull(self, u: Array, ab: float | None) -> tuple[Array, Array]:
        """-(joint l_y - log sum exp(marginal l)) [b], and minus its gradient [b, n]."""
        size = self.told(ab)
        z = size * self.picture(u) @ self.w1.T
        if math.isinf(self.beta):
            hidden, gate = np.maximum(z, 0), (z > 0) * 1.0
        else:
            hidden = np.logaddexp(0, self.beta * z) / self.beta
            gate = 1 / (1 + np.exp(-self.beta * z))
        logits = hidden @ self.w2.T
        total = np.logaddexp.reduce(self.marginal * logits, axis=1)
        loss = total - self.joint * logits[:, self.label]
        at_logits = -self.marginal * np.exp(self.marginal * logits - total[:, None])
        at_logits[:, self.label] += self.joint
        at_picture = size * (gate * (at_logits @ self.w2)) @ self.w1
        pull = np.einsum("ij,bip->bjp", self.mix, at_picture.reshape(len(u), 3, PIXELS))
        return loss, pull.reshape(len(u), N) * (math.sqrt(N) if self.averages else 1)

    def smoothed(self, u: Array, noises: Sequence[Array]) -> tuple[Array, Array]:
        """-log mean_j exp(-loss(u + d_j)), and minus its gradient."""
        losses, pulls = zip(*(self.loss_and_pull(u + d, None) for d in noises), strict=True)
        weights = np.exp(-np.array(losses))
        pull = (weights[:, :, None] * np.array(pulls)).sum(axis=0)
        return -np.log(weights.mean(axis=0)), pull / weights.sum(axis=0)[:, None]


@dataclass(eq=False)
class At:
    """One evaluation of the world at x_t.

    Attributes:
        x0, eps: as a step will use them, changed by guides.
        seen: x_0 as the backbone predicts it.
        shift: added to an ancestral step's mean, times its variance.
        after: added to the state after the step.
    """

    world: World
    x: Array
    ab: float
    i: int
    abars: Sequence[float]
    ancestral: bool
    shift: Array | float = 0.0
    after: Array | float = 0.0

    def __post_init__(self) -> None:
        raw = self.world.raw(self.x, self.ab)
        self.seen = self.x0 = self.world.clipped(raw)
        self.eps = self.noise_of(self.seen if self.world.clip_eps else raw)

    def noise_of(self, x0: Array) -> Array:
        return (self.x - math.sqrt(self.ab) * x0) / math.sqrt(1 - self.ab)

    @property
    def sigma(self) -> float:
        return math.sqrt(1 - self.ab)

    def to(self, x0: Array, keep_eps: bool = False) -> None:
        self.x0 = self.world.clipped(x0)
        if not keep_eps:
            self.eps = self.noise_of(self.x0)

    def score(self, gradient: Array) -> None:
        """Dhariwal and Nichol (2021), algorithm 2: eps - sqrt(1 - abar) gradient."""
        self.eps = self.eps - self.sigma * gradient
        self.x0 = (self.x - self.sigma * self.eps) / math.sqrt(self.ab)

    def back(self, pull: Array) -> Array:
        """Through the backbone, clipping taken for the identity."""
        return self.world.through(pull, self.ab)


def kept(abars: Sequence[float], i: int) -> float:
    """alpha_t = abar_t / abar_(t-1) of step i."""
    return abars[i] / abars[i + 1]


def course(abars: Sequence[float], i: int, kind: str) -> float:
    """TFG's schedules, of mean one (Ye et al., 2024, section 4)."""
    shares = [kept(abars, k) for k in range(len(abars) - 1)]
    if kind == "decrease":
        shares = [1 - s for s in shares]
    return 1.0 if kind == "constant" else shares[i] / float(np.mean(shares))


def variance(world: World, abars: Sequence[float], i: int, x: Array) -> Array | float:
    """Of the ancestral step: beta, beta tilde, or between them (Nichol and Dhariwal, eq. 15)."""

    def tilde(k: int) -> float:
        return (1 - abars[k + 1]) / (1 - abars[k]) * (1 - kept(abars, k))

    beta, last = 1 - kept(abars, i), i == len(abars) - 2
    lower = tilde(i - 1) if last else tilde(i)
    if not world.learned:
        return lower if world.small or last else beta
    v = world.v(x)
    return beta ** ((v + 1) / 2) * lower ** ((1 - v) / 2)


# Methods. A way is how far a guide's gradient leads; it is laid where the method says.

Way = Callable[[At], Array]
Lay = Callable[[At, Array], None]


@dataclass
class Method:
    """A published method with one guide in it.

    Attributes:
        moves: (way, how it is laid, whether only at the step's first evaluation).
        enters: moves the state before the backbone is asked.
        repeats: how often a step is taken.
        every: asked at steps 0, every, 2 every ... alone.
        low, high: asked at log-SNR from low on, below high.
    """

    moves: list[tuple[Way, Lay, bool]] = field(default_factory=list)
    enters: Callable[[Array, float, int, int], Array] | None = None
    repeats: int = 1
    every: int = 1
    low: float = -math.inf
    high: float = math.inf

    def asked(self, i: int, ab: float) -> bool:
        return i % self.every == 0 and self.low <= math.log(ab / (1 - ab)) < self.high


def _mean_or_score(at: At, way: Array) -> None:
    if at.ancestral:
        at.shift = at.shift + way
    else:
        at.score(way)


def _after(at: At, way: Array) -> None:
    at.after = at.after + way


def _carried(at: At, way: Array) -> None:
    """Delta_t of TFG's algorithm 1: x_(t-1) + Delta_t / sqrt(alpha_t)."""
    at.after = at.after + way / math.sqrt(kept(at.abars, at.i))


def _clean(at: At, way: Array) -> None:
    at.to(at.x0 + way)


def _clean_only(at: At, way: Array) -> None:
    at.to(at.x0 + way, keep_eps=True)


def _moments() -> Callable[[Array], Array]:
    """Adam's ratio of unbiased moments (Kingma and Ba, 2015, algorithm 1)."""
    sums: list[Array] = []

    def ratio(g: Array) -> Array:
        sums.append(g)
        t = len(sums)
        m = sum(0.1 * 0.9 ** (t - 1 - k) * g for k, g in enumerate(sums)) / (1 - 0.9**t)
        v = sum(0.001 * 0.999 ** (t - 1 - k) * g**2 for k, g in enumerate(sums)) / (1 - 0.999**t)
        return m / (np.sqrt(v) + 1e-8)

    return ratio


def _adam(net: Net, scale: float, at: At, iterations: int = 3, rate: float = 0.01) -> Array:
    """Universal Guidance's backward part: so many steps of Adam from x_0 on."""
    point, ratio = at.x0, _moments()
    for _ in range(iterations):
        point = at.world.clipped(point)
        loss, pull = net.loss_and_pull(point, None)
        moved = point + rate * ratio(scale * pull)
        point = np.where(loss[:, None] < 0, point, moved)
    return point - at.x0


def methods(net: Net, scale: float, mc: Iterator[Array]) -> dict[str, Callable[[], Method]]:
    """The presets, made anew for every run: some remember."""
    root = math.sqrt(N)

    def clean(at: At, through: bool = False) -> tuple[Array, Array]:
        loss, pull = net.loss_and_pull(at.seen, None)
        return loss, at.back(pull) if through else pull

    def naive() -> Method:
        def way(at: At) -> Array:
            return cut(scale * net.loss_and_pull(at.x, at.ab)[1], 2 / at.sigma)

        return Method([(way, _mean_or_score, False)])

    def ppap() -> Method:
        def way(at: At) -> Array:
            pull = blurred(root * net.loss_and_pull(at.x, at.ab)[1], 3 / 64)
            return at.sigma / 4 * cut(scale * pull, 2)

        return Method([(way, _clean, False)])

    def x0() -> Method:
        def way(at: At) -> Array:
            return at.sigma / 4 * cut(scale * blurred(root * clean(at)[1], 3 / 64), 2)

        return Method([(way, _clean, False)])

    def x0_through() -> Method:
        def way(at: At) -> Array:
            return at.sigma / 4 * cut(scale * root * clean(at, True)[1], 2)

        return Method([(way, _clean, False)])

    def elucd() -> Method:
        """S + gamma sin(pi k / N) S_max at k = N - 1 .. 0 (Ma et al., 2024, section 3.4)."""
        net.joint, net.marginal, net.beta = 1.0, 0.5, 3.0

        def way(at: At) -> Array:
            count = len(at.abars) - 1
            largest = max(1 - kept(at.abars, k) for k in range(count))
            sine = math.sin(math.pi * (count - 1 - at.i) / count)
            strength = variance(at.world, at.abars, at.i, at.x) + 0.3 * sine * largest
            return strength * cut(scale * root * clean(at)[1], 2)

        return Method([(way, _after, True)])

    def elucd_edm() -> Method:
        """The published code: 0.02 (1 - i / (N + 1)), and 0.02 * 0.3 sin(pi i / N)."""
        net.joint, net.marginal, net.beta = 1.0, 0.0, 4.0

        def enters(x: Array, ab: float, i: int, count: int) -> Array:
            pull = net.loss_and_pull(x / np.maximum(rms(x), 1), ab)[1]
            strength = 0.02 * (1 - i / (count + 1)) + 0.02 * 0.3 * math.sin(math.pi * i / count)
            return strength * cut(scale * rms(x) * pull / rms(pull), 50)

        return Method(enters=enters)

    def dps() -> Method:
        """zeta / ||y - A x_0|| times the gradient of the square (Chung et al., 2023, alg. 1)."""

        def way(at: At) -> Array:
            loss, pull = clean(at, True)
            return cut(scale * root * pull / np.sqrt(loss)[:, None], 1)

        return Method([(way, _after, True)])

    def freedom() -> Method:
        def way(at: At) -> Array:
            return course(at.abars, at.i, "increase") * cut(scale * root * clean(at, True)[1], 1)

        return Method([(way, _carried, True)], repeats=2)

    def lgd_mc() -> Method:
        """r_t = sigma / sqrt(1 + sigma^2) in EDM's sigma: here sqrt(1 - abar)."""

        def way(at: At) -> Array:
            noises = [at.sigma * next(mc) for _ in range(4)]
            return cut(scale * root * at.back(net.smoothed(at.seen, noises)[1]), 1)

        return Method([(way, _carried, True)])

    def mpgd() -> Method:
        return Method([(lambda at: cut(scale * root * clean(at)[1], 1), _clean_only, False)])

    def ugd() -> Method:
        def way(at: At) -> Array:
            return cut(scale * root * clean(at, True)[1], 2 / at.sigma)

        backward = (lambda at: _adam(net, scale, at), _clean, False)
        return Method([(way, lambda at, way: at.score(way), False), backward], repeats=2)

    def tfg() -> Method:
        """Ye et al. (2024), algorithm 1: rho 1 and mu 0.25, both increasing; four iterations."""
        drawn: dict[At, Array] = {}

        def noise(at: At) -> list[Array]:
            """The same for both moves."""
            if at not in drawn:
                drawn[at] = next(mc)
            return [0.1 * at.sigma * drawn[at]]

        def outer(at: At) -> Array:
            pull = at.back(net.smoothed(at.seen, noise(at))[1])
            return course(at.abars, at.i, "increase") * cut(scale * root * pull, 1)

        def inner(at: At) -> Array:
            way = np.zeros_like(at.x)
            for _ in range(4):
                pull = net.smoothed(at.seen + way, noise(at))[1]
                mu = 0.25 * course(at.abars, at.i, "increase")
                way = way + mu * cut(scale * root * pull, 1)
            return way

        return Method([(outer, _carried, True), (inner, _clean_only, False)])

    def adam_dps() -> Method:
        ratio = _moments()
        return Method(
            [(lambda at: cut(scale * ratio(clean(at, True)[1]), 1), _after, True)]
        )  # fmt: skip

    def adam_mpgd() -> Method:
        ratio = _moments()
        return Method([(lambda at: cut(scale * ratio(clean(at)[1]), 1), _clean_only, False)])

    made = (
        naive, ppap, x0, x0_through, elucd, elucd_edm, dps, freedom, lgd_mc, mpgd, ugd, tfg,
        adam_dps, adam_mpgd,
    )  # fmt: skip
    return {m.__name__.replace("_", "-"): m for m in made}


def without_conflict(ways: Sequence[Array]) -> list[Array]:
    """Yu et al. (2020), algorithm 1, in the order of the guides; a way below 1e-15 is none."""
    balanced = []
    for i, way in enumerate(ways):
        for other in [*ways[:i], *ways[i + 1 :]]:
            inner = (way * other).sum(axis=1, keepdims=True)
            square = (other * other).sum(axis=1, keepdims=True)
            way = np.where(inner < 0, way - inner / np.maximum(square, 1e-30) * other, way)
        balanced.append(way)
    return balanced


# Solvers

Evaluate = Callable[[Array, float, bool], At]


def ddim(eta: float) -> Any:
    """Song et al. (2021), eqs. 12 and 16."""

    def step(x: Array, i: int, abars: Sequence[float], evaluate: Evaluate, draw: Any, memory: Any):  # type: ignore[no-untyped-def]
        ab, then = abars[i], abars[i + 1]
        at = evaluate(x, ab, True)
        spread = eta * math.sqrt((1 - then) / (1 - ab)) * math.sqrt(1 - ab / then)
        noise = spread * draw() if eta else 0.0
        x = math.sqrt(then) * at.x0 + math.sqrt(max(1 - then - spread**2, 0)) * at.eps + noise
        return x + at.after, None

    return step


def ddpm(x: Array, i: int, abars: Sequence[float], evaluate: Evaluate, draw: Any, memory: Any):  # type: ignore[no-untyped-def]
    """Ho et al. (2020), eq. 7 and algorithm 2; Dhariwal and Nichol (2021), algorithm 1."""
    ab, then, noise = abars[i], abars[i + 1], draw()
    at = evaluate(x, ab, True)
    alpha = ab / then
    mean = math.sqrt(then) * (1 - alpha) / (1 - ab) * at.x0
    mean = mean + math.sqrt(alpha) * (1 - then) / (1 - ab) * x
    spread = variance(at.world, abars, i, x)
    mean = mean + spread * at.shift
    x = mean if i == len(abars) - 2 else mean + np.sqrt(spread) * noise
    return x + at.after, None


def dpm(eta: float = 0.0) -> Any:
    """Lu et al. (2022b), algorithm 2: D = (1 + 1 / 2r) x_0 - 1 / 2r x_0 before.

    And with noise (SDE-DPM-Solver++(2M), at eta 1): x relaxes towards D for (1 + eta) h, and gets
    the variance that a state at rest loses by relaxing for eta h more than the noise level falls.
    """

    def step(x: Array, i: int, abars: Sequence[float], evaluate: Evaluate, draw: Any, memory: Any):  # type: ignore[no-untyped-def]
        ab, then = abars[i], abars[i + 1]
        at, drawn = evaluate(x, ab, True), draw() if eta else 0.0
        if then == 1:
            return at.x0 + at.after, None
        lam = math.log(ab / (1 - ab)) / 2
        h, d = math.log(then / (1 - then)) / 2 - lam, at.x0
        if memory is not None:
            r = (lam - memory[0]) / h
            d = (1 + 1 / (2 * r)) * at.x0 - 1 / (2 * r) * memory[1]
        stays = math.exp(-eta * h)
        towards = math.sqrt(then) * (1 - math.exp(-h) * stays) * d
        noise = math.sqrt((1 - then) * (1 - stays**2)) * drawn
        x = math.sqrt((1 - then) / (1 - ab)) * stays * x + towards + noise
        return x + at.after, (lam, at.x0)

    return step


def heun(churn: float = 0.0, low: float = 0.0, high: float = math.inf, noise: float = 1.0) -> Any:
    """Karras et al. (2022), algorithm 2, of y = x / sqrt(abar) at t = sqrt(1 / abar - 1)."""

    def step(x: Array, i: int, abars: Sequence[float], evaluate: Evaluate, draw: Any, memory: Any):  # type: ignore[no-untyped-def]
        ab, then = abars[i], abars[i + 1]
        y, t, t_then = x / math.sqrt(ab), math.sqrt(1 / ab - 1), math.sqrt(1 / then - 1)
        if churn:
            drawn = noise * draw()
            if low <= t <= high:
                raised = t + min(churn / (len(abars) - 1), math.sqrt(2) - 1) * t
                y, t = y + math.sqrt(raised**2 - t**2) * drawn, raised
                ab = 1 / (1 + t**2)
        at = evaluate(math.sqrt(ab) * y, ab, True)
        d = (y - at.x0) / t
        y_then = y + (t_then - t) * d
        if t_then:
            corrected = evaluate(math.sqrt(then) * y_then, then, False)
            y_then = y + (t_then - t) * (d + (y_then - corrected.x0) / t_then) / 2
        return math.sqrt(then) * y_then + at.after, None

    return step


def run(
    world: World,
    guides: Sequence[Method],
    solver: Any,
    abars: Sequence[float],
    x: Array,
    draw: Callable[[], Array],
    renoise: Callable[[], Array],
    ancestral: bool = False,
    balance: Callable[[Sequence[Array]], list[Array]] = without_conflict,
) -> list[Array]:
    """All states of a guided walk, from ``abars[0]`` to a last one of 1."""
    states, memory = [x], None
    count = len(abars) - 1
    for i in range(count):
        active = {k: g for k, g in enumerate(guides) if g.asked(i, abars[i])}
        for left in reversed(range(max((g.repeats for g in active.values()), default=1))):
            entered = {k: g.enters(x, abars[i], i, count) for k, g in active.items() if g.enters}
            moved = dict(zip(entered, balance(list(entered.values())), strict=True))
            x_in = x + sum(moved.values()) if moved else x

            def evaluate(x: Array, ab: float, first: bool) -> At:
                at = At(world, x, ab, i, abars, ancestral)  # noqa: B023
                for r in range(max((len(g.moves) for g in guides), default=0)):
                    asked = [
                        (k, *g.moves[r])
                        for k, g in enumerate(guides)
                        if r < len(g.moves) and (first or not g.moves[r][2]) and g.asked(i, ab)  # noqa: B023
                    ]
                    before = [way for k, way in moved.items() if k not in [a[0] for a in asked]]  # noqa: B023
                    ways = balance([*before, *(way(at) for _, way, *_ in asked)])[len(before) :]
                    for (_, _, lay, _), way in zip(asked, ways, strict=True):
                        lay(at, way)
                return at

            then, after = solver(x_in, i, abars, evaluate, draw, memory)
            if left:
                alpha = kept(abars, i)
                x = math.sqrt(alpha) * then + math.sqrt(1 - alpha) * renoise()
        x, memory = then, after
        states.append(x)
    return states
