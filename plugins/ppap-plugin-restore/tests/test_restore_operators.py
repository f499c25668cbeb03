"""The operators: adjoints, pseudo-inverses and what they measure, against other ways to do it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from ppap_plugin_restore.operators import (
    BoxDownsample,
    GaussianBlur,
    Greyscale,
    Masking,
    Measurement,
    MotionBlur,
    motion_kernel,
)
from torch import Tensor

from ppap_host.files.images import to_tensor


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Measurement, Tensor, Tensor]:
    """An operator, images x that fit it, and any measurement y."""
    seed = draw(st.integers(0, 2**16))
    batch = draw(st.integers(1, 2))
    height, width = draw(st.integers(2, 12)), draw(st.integers(2, 12))
    smallest = draw(st.sampled_from([0.0, 0.01, 0.2]))
    kind = draw(st.sampled_from(["box", "mask", "grey", "gaussian", "motion"]))
    operator: Measurement
    if kind == "box":
        factor = draw(st.integers(1, 4))
        height, width = height * factor, width * factor
        operator = BoxDownsample(factor)
    elif kind == "mask":
        operator = Masking((random(1, 1, height, width, seed=seed + 2) > 0).double())
    elif kind == "grey":
        operator = Greyscale()
    elif kind == "gaussian":
        operator = GaussianBlur(draw(st.floats(0.1, 4)), smallest)
    else:
        operator = MotionBlur(draw(st.floats(1, 15)), draw(st.floats(-360, 360)), smallest)
    x = random(batch, 3, height, width, seed=seed)
    return operator, x, random(*operator(x).shape, seed=seed + 1)


def as_matrix(operator: Measurement, x: Tensor) -> Tensor:
    """A as a matrix, for one image of the size of ``x``."""
    columns = torch.eye(x[0].numel(), dtype=x.dtype).view(-1, *x.shape[1:])
    return operator(columns).flatten(1).T


@settings(max_examples=150, deadline=None)
@given(cases())
def test_the_adjoint_is_the_adjoint(case: tuple[Measurement, Tensor, Tensor]) -> None:
    operator, x, y = case
    left, right = (operator(x) * y).sum(), (x * operator.adjoint(y)).sum()
    torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)


@settings(max_examples=100, deadline=None)
@given(cases(), st.floats(1e-3, 10))
def test_with_a_ratio_the_pseudo_inverse_solves_its_equation(
    case: tuple[Measurement, Tensor, Tensor], ratio: float
) -> None:
    """z = A^T (A A^T + ratio I)^-1 y is the one z with A^T y = A^T A z + ratio z."""
    operator, _, y = case
    z = operator.pseudo_inverse(y, ratio)
    torch.testing.assert_close(
        operator.adjoint(operator(z)) + ratio * z, operator.adjoint(y), rtol=1e-9, atol=1e-9
    )


@settings(max_examples=30, deadline=None)
@given(cases(), st.floats(1e-2, 10))
def test_with_a_ratio_the_pseudo_inverse_is_the_formula(
    case: tuple[Measurement, Tensor, Tensor], ratio: float
) -> None:
    operator, x, y = case
    matrix = as_matrix(operator, x)
    inner = matrix @ matrix.T + ratio * torch.eye(len(matrix), dtype=matrix.dtype)
    expected = matrix.T @ torch.linalg.solve(inner, y.flatten(1).T)
    found = operator.pseudo_inverse(y, ratio).flatten(1).T
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@settings(max_examples=100, deadline=None)
@given(cases())
def test_without_a_ratio_it_is_the_inverse_of_moore_and_penrose(
    case: tuple[Measurement, Tensor, Tensor],
) -> None:
    operator, x, y = case
    if isinstance(operator, GaussianBlur | MotionBlur) and not operator.smallest:
        return  # as ill-conditioned as its narrowest response

    def there_and_back(x: Tensor) -> Tensor:
        return operator.pseudo_inverse(operator(x))

    def back_and_there(y: Tensor) -> Tensor:
        return operator(operator.pseudo_inverse(y))

    torch.testing.assert_close(operator(there_and_back(x)), operator(x))
    torch.testing.assert_close(
        there_and_back(operator.pseudo_inverse(y)), operator.pseudo_inverse(y)
    )
    # Both products are projections onto a subspace at right angles, so they are symmetric.
    other, image = random(*y.shape, seed=7), random(*x.shape, seed=8)
    torch.testing.assert_close(
        (back_and_there(y) * other).sum(), (y * back_and_there(other)).sum(), rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(
        (there_and_back(x) * image).sum(), (x * there_and_back(image)).sum(), rtol=1e-6, atol=1e-6
    )


def test_box_averages_are_pillows() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    small = to_tensor(image.reduce(4))
    torch.testing.assert_close(BoxDownsample(4)(to_tensor(image)), small, rtol=0, atol=1.01 / 255)


def test_luma_is_pillows() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    luma = to_tensor(image.convert("L"))[:, :1]
    # Half a step of 8 bits, which is 1 / 255 of [-1, 1].
    torch.testing.assert_close(Greyscale()(to_tensor(image)), luma, rtol=0, atol=1.01 / 255)


@pytest.mark.parametrize("sigma", [0.4, 1.5, 5.0])
def test_the_gaussian_blur_is_a_convolution_of_the_mirrored_image(sigma: float) -> None:
    x = random(1, 3, 7, 10)
    reach = math.ceil(6 * sigma)
    at = np.arange(-reach, reach + 1)
    kernel = np.exp(-(at**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    expected = np.pad(x[0].numpy(), ((0, 0), (reach, reach), (reach, reach)), mode="symmetric")
    for axis in (1, 2):
        expected = np.apply_along_axis(np.convolve, axis, expected, kernel, mode="valid")
    found = GaussianBlur(sigma, smallest=0.0)(x)[0]
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("length", "angle"), [(9.0, 45.0), (4.0, 0.0), (5.5, -70.0), (30.0, 20.0)])
def test_the_motion_blur_is_a_convolution_of_the_wrapped_image(length: float, angle: float) -> None:
    x = random(1, 3, 8, 11)
    kernel = motion_kernel(length, angle)
    reach = len(kernel) // 2
    expected = torch.zeros_like(x)
    for row in range(-reach, reach + 1):
        for column in range(-reach, reach + 1):
            weight = kernel[row + reach, column + reach]
            expected += weight * x.roll((row, column), (-2, -1))
    torch.testing.assert_close(MotionBlur(length, angle, smallest=0.0)(x), expected)


def test_motion_is_along_its_angle_counter_clockwise() -> None:
    level = motion_kernel(5.0, 0.0)
    torch.testing.assert_close(level[3], torch.tensor([0, 1, 1, 1, 1, 1, 0]).double() / 5)
    assert float(level.sum()) == pytest.approx(1)
    torch.testing.assert_close(motion_kernel(5.0, 90.0), level.T)
    slanted = motion_kernel(9.0, 45.0)
    up_right, up_left = slanted.flip(1).trace(), slanted.trace()
    assert up_right > 5 * up_left
    alone = torch.zeros(3, 3, dtype=torch.float64)
    alone[1, 1] = 1
    torch.testing.assert_close(motion_kernel(1.0, 30.0), alone)


@pytest.mark.parametrize(
    ("exact", "cut"),
    [
        (GaussianBlur(1.5, smallest=0.0), GaussianBlur(1.5)),
        (MotionBlur(9.0, 45.0, smallest=0.0), MotionBlur(9.0, 45.0)),
    ],
)
def test_lost_frequencies_are_no_step_of_8_bits(exact: Measurement, cut: Measurement) -> None:
    """Of the hardest edges there are, from black to white."""
    x = -torch.ones(1, 3, 64, 64)
    x[:, :, 20:40, 17:51] = 1
    assert float((exact(x) - cut(x)).abs().max()) < 2 / 255


OPERATORS = [
    BoxDownsample(2),
    Masking(torch.ones(1, 1, 4, 6)),
    Greyscale(),
    GaussianBlur(0.8),
    MotionBlur(3.0, 45.0),
]


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda o: type(o).__name__)
def test_gradients_are_those_of_finite_differences(operator: Measurement) -> None:
    x = random(1, 3, 4, 6).requires_grad_()
    y = operator(x).detach().requires_grad_()
    assert torch.autograd.gradcheck(operator, (x,))
    assert torch.autograd.gradcheck(operator.adjoint, (y,))
    assert torch.autograd.gradcheck(lambda y: operator.pseudo_inverse(y, 0.1), (y,))


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda o: type(o).__name__)
def test_single_precision_stays_single_and_agrees_with_double(operator: Measurement) -> None:
    x = random(2, 3, 4, 6)
    y = operator(x.float())
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), operator(x), rtol=1e-5, atol=1e-5)
    back = operator.pseudo_inverse(y, 0.1)
    assert back.dtype == torch.float32
    torch.testing.assert_close(
        back.double(), operator.pseudo_inverse(operator(x), 0.1), rtol=1e-5, atol=1e-5
    )


def test_tables_made_without_gradients_serve_gradients_later() -> None:
    with torch.inference_mode():
        GaussianBlur(0.77)(torch.zeros(1, 3, 5, 9))
        MotionBlur(3.3, 12.0)(torch.zeros(1, 3, 5, 9))
    for operator in (GaussianBlur(0.77), MotionBlur(3.3, 12.0)):
        x = torch.zeros(1, 3, 5, 9, requires_grad=True)
        operator(x).sum().backward()
        assert x.grad is not None
