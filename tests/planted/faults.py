"""Faults that the tests must notice: text of the product, and what it is replaced by.

Each is of a kind that has been seen to slip through: a missing factor, a wrong sign, a shifted
index, an open bound for a closed one, a thing made twice, a part that is never asked.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        what: in a few words.
        file: from the root of the repository.
        old, new: text that occurs there once, and what stands there instead.
        tests: at least one of them fails, without vectors.
    """

    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


_EQ = "tests/equations"


def _method(preset: str, *solvers: str) -> tuple[str, ...]:
    return tuple(
        f"{_EQ}/test_methods.py::test_a_preset_is_its_papers_method[{s}-{preset}]" for s in solvers
    )


def _part(name: str) -> tuple[str, ...]:
    return (f"{_EQ}/test_parts.py::test_{name}",)


_RECIPES = "ppap_host/recipes"

FAULTS: tuple[Fault, ...] = (
    Fault(
        "the learned variance is inverted",
        f"{_RECIPES}/estimate.py",
        "fraction * posterior.log_upper + (1 - fraction) * posterior.log_lower",
        "fraction * posterior.log_lower + (1 - fraction) * posterior.log_upper",
        _part("the_variance_of_an_ancestral_step"),
    ),
    Fault(
        "EluCD-EDM's strength rises",
        f"{_RECIPES}/strengths.py",
        "self.maximum / (count + 1) * (count + 1 - i)",
        "self.maximum / (count + 1) * (i + 1)",
        _part("elucds_strength_for_edm_falls_in_a_line_and_bulges_in_a_sine"),
    ),
    Fault(
        "the strength of `ppap`, `x0` and `x0-through` is constant",
        f"{_RECIPES}/strengths.py",
        "return self.factor * math.pow(level.sigma / level.scale, self.power)",
        "return self.factor",
        _method("ppap", "ddim"),
    ),
    Fault(
        "the division of PerRootLoss is left out",
        f"{_RECIPES}/gradients.py",
        "return gradient / root.view(-1, 1, 1, 1).to(gradient)",
        "return gradient",
        _method("dps", "ddim"),
    ),
)
