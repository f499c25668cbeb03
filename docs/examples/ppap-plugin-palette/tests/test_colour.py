"""OKLab as published, and a distance of colours that does not ask where they are."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ppap_plugin_palette.colour import OKLab, moments, quantiles, sliced_distance, to_srgb

Statistic = Callable[[Tensor], Tensor]


def plain(*rgb: float) -> Tensor:
    """A picture of one colour, [1, 3, 4, 4]."""
    return torch.tensor(rgb, dtype=torch.float32).view(1, 3, 1, 1).expand(1, 3, 4, 4)


def noise(seed: int, height: int = 16, width: int = 16) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


# L, a, b as CSS Color 4 and its test suite have them, to four digits.
@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((1.0, 1.0, 1.0), (1.0, 0.0, 0.0)),
        ((1.0, 0.0, 0.0), (0.6280, 0.2249, 0.1258)),
        ((0.0, 1.0, 0.0), (0.8664, -0.2339, 0.1795)),
        ((0.0, 0.0, 1.0), (0.4520, -0.0325, -0.3115)),
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
    ],
)
def test_colours_are_where_oklab_has_them_with_a_and_b_doubled(
    rgb: tuple[float, ...], lab: tuple[float, ...]
) -> None:
    wanted = torch.tensor(lab) * torch.tensor([1.0, 2.0, 2.0])
    torch.testing.assert_close(OKLab()(plain(*rgb))[0, :, 0, 0], wanted, atol=2e-4, rtol=0)


def test_every_colour_comes_back() -> None:
    pixels = torch.cat([noise(0), 0.02 * noise(1)])
    torch.testing.assert_close(to_srgb(OKLab()(pixels)), pixels, atol=1e-4, rtol=0)


@pytest.mark.parametrize("statistic", [quantiles, moments])
@pytest.mark.parametrize("level", [-0.5, 0.0, 0.04045, 0.5, 1.0])
def test_the_slope_is_finite_in_plain_grey_and_black(statistic: Statistic, level: float) -> None:
    x = plain(level, level, level).clone().requires_grad_()
    sliced_distance(OKLab()(x), OKLab()(noise(0)), statistic).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.abs().max() > 0


@pytest.mark.parametrize("statistic", [quantiles, moments])
def test_where_the_colours_are_does_not_matter(statistic: Statistic) -> None:
    lab = OKLab()(noise(0))
    assert sliced_distance(lab, lab.flip(2).mT, statistic).item() < 1e-10
    assert sliced_distance(lab, OKLab()(noise(0) / 2), statistic).item() > 1e-3


def test_only_the_distribution_tells_two_greys_from_the_greys_between() -> None:
    ramp = torch.linspace(0, 1, 256).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    spread = ramp.std(correction=0)
    halves = torch.where(ramp < 0.5, 0.5 - spread, 0.5 + spread)
    assert sliced_distance(ramp, halves, moments).item() < 1e-6
    assert sliced_distance(ramp, halves, quantiles).item() > 1e-3


def test_the_distance_of_plain_pictures_is_that_of_their_colours() -> None:
    black, white = OKLab()(plain(0, 0, 0)), OKLab()(plain(1, 1, 1))
    grey = OKLab()(plain(0.5, 0.5, 0.5))
    half = grey[0, 0, 0, 0].item()
    whole = sliced_distance(black, white, quantiles).item()
    assert sliced_distance(black, grey, quantiles).item() == pytest.approx(half**2 * whole)


def test_pictures_of_two_sizes_are_compared() -> None:
    lab = OKLab()(noise(0))
    larger = lab.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert sliced_distance(larger, lab, quantiles).item() < 1e-10
    assert sliced_distance(lab, larger, quantiles).item() < 1e-4
