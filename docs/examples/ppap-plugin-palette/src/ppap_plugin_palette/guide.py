"""The guide ``palette``: a colour palette, or the colours of a picture."""

from collections.abc import Callable, Mapping

import torch
from PIL import Image
from ppap_host.files.errors import OptionError
from ppap_host.guides.guide import Guide
from ppap_host.guides.targets import Given, Target
from torch import Tensor, nn

from ppap_plugin_palette import palettes
from ppap_plugin_palette.colour import OKLab, moments, quantiles, sliced_distance

STATISTICS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "distribution": quantiles,
    "moments": moments,
}
COLOURS = 8
"""Of the palettes that people are shown and that images are measured by."""


class PaletteGuide(Guide):
    """Steers towards colours and the share of each, wherever in the image they are.

    Args:
        model: the --model option, which names the statistic of the colours that is to agree:
            "distribution" (the default) or "moments", their mean and covariance alone.

    Raises:
        OptionError: there is no such statistic.
    """

    name = "palette"
    # The loss is a mean over pixels, which makes the gradient tiny; the host undoes that.
    averages_pixels = True

    def __init__(self, model: str | None = None) -> None:
        if model is not None and model not in STATISTICS:
            raise OptionError(
                f"The guide {self.name!r} knows no statistic {model!r}.",
                remedy=f"Give --model {' or '.join(STATISTICS)}, or leave it out.",
            )
        self._statistic = STATISTICS[model or "distribution"]
        self._network = OKLab().eval()

    def network(self) -> nn.Module:
        """Maps sRGB [b, 3, h, w] to OKLab [b, 3, h, w]."""
        return self._network

    def prepare(self, x: Tensor) -> Tensor:
        """From RGB in [-1, 1] to sRGB in [0, 1]."""
        return (x + 1) / 2

    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        """Understands the path of a picture, or colours with or without weights.

        Raises:
            TargetError: it is neither, or cannot be read.
        """
        if given.means_file:
            photo = given.photo(size)
            value = self.see(photo.pixels)
            pictures = {"target": photo.image, "its palette": self.picture(value)[0]}
            return photo.target(value, pictures)
        lab = palettes.shaded(palettes.parse(given.words).bars(*size))
        return Target(given.words, lab[None], {"palette": palettes.draw(lab)})

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The statistic's squared difference, mean over directions, [b]."""
        # A guide without parameters cannot tell its device before it sees an image.
        return sliced_distance(output, target.to(output), self._statistic)

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Squared difference of the colours pixel by pixel, mean over pixels, [b]."""
        return (student - teacher).square().sum(dim=1).mean(dim=(1, 2))

    def picture(self, output: Tensor) -> list[Image.Image]:
        """Each image in the colours of its palette, and over its lowest fifth the palette."""
        return [_poster(lab) for lab in output.detach().cpu().float()]

    def measure(self, output: Tensor, target: Tensor) -> dict[str, list[float]]:
        """How well the colours and their shares agree with the target's.

        swd: the sliced Wasserstein distance in OKLab; 0 is best, white and black are about 0.6
        apart. delta-e: the distance of a pixel to the nearest colour of the target's palette, mean
        over pixels; 0 is best. intersection: of the two histograms over that palette (Swain and
        Ballard, 1991); 1 is best.
        """
        palette = palettes.find(target[0], COLOURS)
        delta_e, intersection = [], []
        for lab in output.detach().cpu().float():
            distances, which = palette.nearest(lab)
            shares = which.flatten().bincount(minlength=len(palette.shares)) / which.numel()
            delta_e.append(distances.mean().item())
            intersection.append(torch.minimum(shares, palette.shares).sum().item())
        swd = sliced_distance(output, target.to(output), quantiles).sqrt()
        return {"swd": swd.tolist(), "delta-e": delta_e, "intersection": intersection}


def _poster(lab: Tensor) -> Image.Image:
    palette = palettes.find(lab, COLOURS)
    poster = palette.colours[palette.nearest(lab)[1]].permute(2, 0, 1)
    bars = palette.bars(max(lab.shape[1] // 5, 1), lab.shape[2])
    return palettes.draw(torch.cat([poster[:, : -bars.shape[1]], bars], dim=1))
