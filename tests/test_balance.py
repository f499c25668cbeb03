"""Several guides make room for each other."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from worlds import GaussianBackbone, QuadraticGuide

from ppap_host.recipes.presets import NAIVE
from ppap_host.sampling.balance import plain_sum, without_conflict
from ppap_host.sampling.evaluator import Evaluator, Guidance, Health
from ppap_host.sampling.loop import sample
from ppap_host.sampling.solvers import DDIM
from ppap_host.sampling.streams import ImageNoise


def drawn(seed: int, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, 4, 4, generator=generator) for _ in range(count)]


def inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=(1, 2, 3))


@given(st.integers(0, 10_000))
def test_of_two_guides_none_works_against_the_other(seed: int) -> None:
    a, b = drawn(seed, 2)
    for sign in (1.0, -1.0):
        left, right = without_conflict([a, sign * b])
        assert (inner(left, sign * b) >= -1e-4).all()
        assert (inner(right, a) >= -1e-4).all()
        assert (inner(left, a) >= 0).all()


def test_guides_that_agree_are_left_as_they_are() -> None:
    a, b = drawn(0, 2)
    other = torch.where(inner(a, b).view(-1, 1, 1, 1) < 0, -b, b)
    for got, given_ in zip(without_conflict([a, other]), [a, other], strict=True):
        assert torch.equal(got, given_)
    assert all(g is h for g, h in zip(plain_sum([a, b]), [a, b], strict=True))


def test_a_silent_guide_changes_nothing_and_opposite_ones_cancel() -> None:
    (a,) = drawn(1, 1)
    left, silent = without_conflict([a, torch.zeros_like(a)])
    assert torch.equal(left, a)
    assert not silent.any()
    for gradient in without_conflict([a, -2 * a]):
        assert gradient.abs().max() < 1e-5


def test_images_of_a_batch_are_balanced_one_by_one() -> None:
    a, b = drawn(3, 2)
    together = without_conflict([a, b])
    for k in range(2):
        alone = without_conflict([a[k : k + 1], b[k : k + 1]])
        for got, expected in zip(together, alone, strict=True):
            torch.testing.assert_close(got[k : k + 1], expected)


def test_a_second_guide_that_wants_the_opposite_half_leaves_the_first_its_own() -> None:
    """Guides of different halves of the picture: both get what each gets alone."""
    world = GaussianBackbone()

    class Half(QuadraticGuide):
        def __init__(self, top: bool) -> None:
            super().__init__(noise=1.0)
            self.rows = slice(0, 2) if top else slice(2, 4)

        def loss(self, output: Tensor, target: Tensor) -> Tensor:
            return (output - target)[:, :, self.rows].square().sum(dim=(1, 2, 3)) / 2

    def made(*halves: bool) -> Tensor:
        target = torch.full((1, 3, 4, 4), 0.9)
        guidance = [Guidance(Half(top), target, NAIVE, 0.2) for top in halves]
        return sample(
            world, lambda x, level: world.predict(x, level, {}), world.walk(20), DDIM(),
            ImageNoise(0, [0, 1], world.state_shape), guidance,
        )  # fmt: skip

    top, bottom, both = made(True), made(False), made(True, False)
    torch.testing.assert_close(both[:, :, :2], top[:, :, :2])
    torch.testing.assert_close(both[:, :, 2:], bottom[:, :, 2:])


def test_the_loop_uses_the_balance_it_is_given() -> None:
    world, calls = GaussianBackbone(), []

    def watched(gradients: list[Tensor]) -> list[Tensor]:
        calls.append(len(gradients))
        return plain_sum(gradients)

    guidance = [
        Guidance(QuadraticGuide(), torch.full((1, 3, 4, 4), v), NAIVE, 0.1) for v in (0.9, -0.9)
    ]
    evaluator = Evaluator(
        world, lambda x, level: world.predict(x, level, {}), guidance,
        ancestral=False, health=Health(), balance=watched,
    )  # fmt: skip
    evaluator(torch.zeros(1, 3, 4, 4), world.walk(5).levels[1])
    assert calls == [2]
