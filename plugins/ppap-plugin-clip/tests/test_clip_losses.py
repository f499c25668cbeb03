"""Distances on the sphere and between Gram matrices: values, bounds and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ppap_plugin_clip.losses import cosine, gram, gram_distance, spherical_distance
from torch.nn import functional as F


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("degrees", [0.0, 1e-4, 1.0, 60.0, 90.0, 179.0, 180.0])
def test_the_distance_is_half_the_squared_angle(degrees: float) -> None:
    angle = math.radians(degrees)
    u = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    v = 3 * torch.tensor([[math.cos(angle), math.sin(angle), 0.0]], dtype=torch.float64)
    assert spherical_distance(u, v).item() == pytest.approx(angle**2 / 2, rel=1e-9, abs=1e-18)
    assert cosine(u, v).item() == pytest.approx(math.cos(angle), abs=1e-12)


def test_it_is_crowsons_formula() -> None:
    u, v = random(50, 8), random(50, 8, seed=1)
    chord = (F.normalize(u, dim=1) - F.normalize(v, dim=1)).norm(dim=1)
    torch.testing.assert_close(spherical_distance(u, v), 2 * (chord / 2).arcsin().square())


@given(st.integers(0, 10_000), st.floats(0.01, 100))
@settings(max_examples=30, deadline=None)
def test_length_does_not_count_and_order_does_not_matter(seed: int, factor: float) -> None:
    u, v = random(3, 6, seed=seed), random(3, 6, seed=seed + 1)
    distance = spherical_distance(u, v)
    assert ((distance >= 0) & (distance <= math.pi**2 / 2)).all()
    torch.testing.assert_close(spherical_distance(v, factor * u), distance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1, -1])
def test_gradients_are_finite_at_the_target_and_opposite_to_it(
    dtype: torch.dtype, sign: int
) -> None:
    target = random(1, 12).to(dtype)
    # Exactly there, and as near as numbers come.
    u = (sign * torch.cat([target, target * (1 + 1e-3), target.nextafter(target + 1)])).detach()
    u.requires_grad_()
    distance = spherical_distance(u, target)
    (gradient,) = torch.autograd.grad(distance.sum(), u)
    assert gradient.isfinite().all()
    assert gradient[0].abs().max() < 1e-3
    assert distance[0].item() == pytest.approx(0 if sign > 0 else math.pi**2 / 2, abs=1e-5)


def test_gradients_are_those_of_the_values() -> None:
    target = random(1, 6)
    u = random(3, 6, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: spherical_distance(x, target), (u,))
    tokens = random(2, 5, 4, seed=2).requires_grad_()
    wanted = gram(random(1, 5, 4, seed=3))
    assert torch.autograd.gradcheck(lambda x: gram_distance(gram(x), wanted), (tokens,))


def test_half_precision_is_compared_in_single() -> None:
    u, v = random(4, 8).half(), random(1, 8, seed=1).half()
    for compare in (spherical_distance, cosine):
        assert compare(u, v).dtype == torch.float32
        torch.testing.assert_close(compare(u, v), compare(u.float(), v.float()))
    # The square of one such token is beyond half precision.
    tokens = torch.full((1, 4, 3), 300.0, dtype=torch.float16)
    assert gram(tokens).eq(90_000).all()


def test_a_gram_matrix_forgets_where_the_tokens_are() -> None:
    tokens = random(2, 9, 4)
    shuffled = tokens[:, torch.randperm(9, generator=torch.Generator().manual_seed(0))]
    torch.testing.assert_close(gram(tokens), gram(shuffled))
    # Twice the same picture has its style.
    torch.testing.assert_close(gram(tokens), gram(torch.cat([tokens, tokens], dim=1)))
    pairs = torch.einsum("bni,bnj->bij", tokens, tokens) / 9
    torch.testing.assert_close(gram(tokens), pairs)


def test_the_style_distance_is_a_part_of_the_targets_length() -> None:
    target = gram(random(1, 9, 4))
    torch.testing.assert_close(gram_distance(target, target), torch.zeros(1).double())
    parts = gram_distance(torch.cat([1.25 * target, 0 * target, 3 * target]), target)
    torch.testing.assert_close(parts, torch.tensor([0.25, 1.0, 2.0]).double())
    other = gram(random(1, 9, 4, seed=1))
    frobenius = torch.linalg.norm(other[0] - target[0]) / torch.linalg.norm(target[0])
    torch.testing.assert_close(gram_distance(other, target)[0], frobenius)
    # Whatever the unit of the features is.
    torch.testing.assert_close(
        gram_distance(100 * other, 100 * target), gram_distance(other, target)
    )


def test_gradients_are_finite_at_the_same_style_and_for_a_black_target() -> None:
    tokens = random(1, 9, 4).requires_grad_()
    for target in (gram(tokens.detach()), torch.zeros(1, 4, 4).double()):
        (gradient,) = torch.autograd.grad(gram_distance(gram(tokens), target).sum(), tokens)
        assert gradient.isfinite().all()


def test_a_row_an_image_is_as_good_as_one_for_all() -> None:
    u, targets = random(4, 8), random(4, 8, seed=1)
    for compare in (spherical_distance, cosine):
        alone = torch.cat([compare(u[k : k + 1], targets[k : k + 1]) for k in range(4)])
        torch.testing.assert_close(compare(u, targets), alone)
    grams, wanted = gram(random(3, 5, 4)), gram(random(3, 5, 4, seed=1))
    alone = torch.cat([gram_distance(grams[k : k + 1], wanted[k : k + 1]) for k in range(3)])
    torch.testing.assert_close(gram_distance(grams, wanted), alone)
