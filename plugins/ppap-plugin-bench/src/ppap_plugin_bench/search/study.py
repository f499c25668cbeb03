"""The search itself: what to try next, and what came of it.

What is proposed depends on the seed and on the trials so far, and on nothing else. A search that
was stopped goes on as if it had not been: nothing but its finished trials has to be kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ppap_host.plugins.containment import in_a_line
from ppap_host.sampling.streams import derived
from ppap_plugin_bench.search.score import UNKNOWN, Measured
from ppap_plugin_bench.search.space import Dimension, Value, plain

_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)


@dataclass(frozen=True)
class Judged:
    """What came of one trial.

    Attributes:
        score: what it is worth, more is better (:mod:`ppap_plugin_bench.search.score`); NaN if it
            could not be measured.
        measured: what the score is made of.
        error: standard error of the measure, None if it has none.
        details: whatever else was measured, by name.
    """

    score: float
    measured: Measured = UNKNOWN
    error: float | None = None
    details: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Judged:
        """From JSON values.

        Raises:
            KeyError, TypeError, ValueError: they are none.
        """
        details = {
            name: math.nan if value is None else value  # as JSON has it
            for name, value in record.get("details", {}).items()
        }
        measured = Measured(**record["measured"])
        return cls(**{**record, "details": details, "measured": measured})


@dataclass(frozen=True)
class Trial:
    """One trial that has been finished, or has failed.

    Attributes:
        number: from 0 on, in the order they were tried.
        values: what was tried, by dimension.
        judged: None if it failed.
        problem: why it failed, None if it did not.
        seconds: wall time.
    """

    number: int
    values: Mapping[str, Value]
    judged: Judged | None
    problem: str | None = None
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "number": self.number,
            "values": {name: plain(value) for name, value in self.values.items()},
            "judged": None if self.judged is None else asdict(self.judged),
            "problem": self.problem,
            "seconds": round(self.seconds, 2),
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], space: Sequence[Dimension]) -> Trial:
        """From :meth:`to_dict`.

        Raises:
            KeyError, TypeError, ValueError: it is no trial in this space.
        """
        values = {d.name: d.read(record["values"][d.name]) for d in space}
        judged = None
        if record["judged"] is not None:
            judged = Judged.from_dict(record["judged"])
        return cls(record["number"], values, judged, record["problem"], record["seconds"])


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """The trials, best first.

    Equal scores are decided by the lower strength, then by who came first. Those that failed come
    last.
    """

    def worth(trial: Trial) -> tuple[float, float, int]:
        if trial.judged is None:
            return (math.inf, 0.0, trial.number)
        strength = float(trial.values.get("scale", 0.0))
        return (-trial.judged.score, strength, trial.number)

    return sorted(trials, key=worth)


def propose(space: Sequence[Dimension], trials: Sequence[Trial], seed: int) -> dict[str, Value]:
    """What to try next: first the start, then a few points spread over the space, then by Optuna.

    The spread points are Halton's (1960), shifted so that the start is the first of them. Then the
    tree-structured Parzen estimator (Bergstra et al., 2011) is asked. It looks at the order of the
    trials alone, so it is told their ranks: ties are then decided as everywhere else, and a trial
    that failed is the worst there is.
    """
    number = len(trials)
    if number == 0:
        return {d.name: d.start for d in space}
    if number < 2 + 2 * len(space):
        return {
            d.name: d.at((d.share(d.start) + _radical_inverse(number, prime)) % 1.0)
            for d, prime in zip(space, _PRIMES * (1 + len(space) // len(_PRIMES)), strict=False)
        }
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    drawn = int(derived("search", seed, number).generate_state(1)[0])
    sampler = optuna.samplers.TPESampler(seed=drawn, n_startup_trials=1)
    study = optuna.create_study(direction="minimize", sampler=sampler)
    known = {d.name: d.distribution() for d in space}
    order = ranked(trials)
    places = {trial.number: place for place, trial in enumerate(order)}
    good = sum(trial.judged is not None for trial in trials)
    for trial in trials:
        study.add_trial(
            optuna.trial.create_trial(
                params={d.name: d.within(trial.values[d.name]) for d in space},
                distributions=known,
                value=float(min(places[trial.number], good)),
            )
        )
    asked = study.ask(known).params
    return {d.name: d.tidy(asked[d.name]) for d in space}


def _radical_inverse(number: int, base: int) -> float:
    """The digits of a number in a base, mirrored at the point (Halton, 1960); in [0, 1)."""
    inverse, share = 0.0, 1.0 / base
    while number:
        number, digit = divmod(number, base)
        inverse += digit * share
        share /= base
    return inverse


def run_trials(
    space: Sequence[Dimension],
    attempt: Callable[[Mapping[str, Value]], Judged],
    budget: int,
    seed: int,
    *,
    done: Sequence[Trial] = (),
    after: Callable[[list[Trial]], None] = lambda trials: None,
) -> list[Trial]:
    """Tries until there are ``budget`` trials.

    Args:
        attempt: tries these values. What it raises makes a trial that failed; a score that is not
            finite does too.
        budget: trials in all, those that are done already included.
        done: trials of the same space and seed.
        after: told of all trials after each new one.

    Raises:
        KeyboardInterrupt: passed on; what ``after`` was told of before is all that is finished.
    """
    trials = list(done)
    while len(trials) < budget:
        values = propose(space, trials, seed)
        before = next((t for t in trials if t.values == values), None)
        if before is None:
            trials.append(_tried(len(trials), values, attempt))
        else:  # few choices: the same values come to the same
            trials.append(Trial(len(trials), values, before.judged, before.problem))
        after(trials)
    return trials


def _tried(
    number: int, values: Mapping[str, Value], attempt: Callable[[Mapping[str, Value]], Judged]
) -> Trial:
    began = time.perf_counter()
    judged, problem = None, None
    try:
        judged = attempt(values)
        if not math.isfinite(judged.score):
            judged, problem = None, "the score is not finite"
    except Exception as error:
        problem = in_a_line(error)[:500]
    return Trial(number, values, judged, problem, time.perf_counter() - began)
