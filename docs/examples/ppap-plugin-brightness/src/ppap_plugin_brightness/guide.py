"""The guide ``brightness``: how light a picture is on average, and in which colour."""

from __future__ import annotations

from jaxtyping import Float
from PIL import Image, ImageColor
from torch import Tensor, nn

from ppap_host.files.errors import OptionError, TargetError
from ppap_host.files.images import from_tensor, to_tensor
from ppap_host.guides.guide import Guide
from ppap_host.guides.targets import Given, Target


class MeanColour(nn.Module):
    """The mean of each colour channel; stands where other guides have a trained network."""

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3"]:
        """Mean colour, in the range of the pixels."""
        return pixels.mean(dim=(2, 3))


class BrightnessGuide(Guide):
    """Mean colour, RGB in [0, 1].

    Args:
        model: the --model option; this guide has none.

    Raises:
        OptionError: a model is given.
    """

    name = "brightness"
    # The mean over pixels makes the gradient tiny; the host undoes that.
    averages_pixels = True

    def __init__(self, model: str | None = None) -> None:
        if model is not None:
            raise OptionError(
                f"The guide 'brightness' has no network, and --model is {model!r}.",
                remedy="Leave out --model.",
            )
        self._network = MeanColour().eval()

    def network(self) -> nn.Module:
        """Maps pixels [b, 3, h, w] to their mean colour [b, 3]."""
        return self._network

    def prepare(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """From [-1, 1] to [0, 1]."""
        return (x + 1) / 2

    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        """Understands a colour ("orange", "#ff8800") or the path of an image.

        Raises:
            TargetError: it is neither.
        """
        if given.means_file:
            photo = given.photo(size)
            value = self.see(photo.pixels)
            pictures = {"target": photo.image, "its mean colour": _swatch(value[0])}
            return photo.target(value, pictures)
        try:
            plain = Image.new("RGB", (size[1], size[0]), ImageColor.getrgb(given.words)[:3])
        except ValueError:
            raise TargetError(
                f"The target {given.words!r} is neither a colour nor an image file.",
                remedy="Give a name such as orange, a code such as '#ff8800', or a path.",
            ) from None
        value = self.see(to_tensor(plain))
        return Target(given.words, value, {"target": plain, "its mean colour": _swatch(value[0])})

    def loss(self, output: Float[Tensor, "b 3"], target: Float[Tensor, "one 3"]) -> Tensor:
        """Mean squared difference of the colours, [b]."""
        # A guide without parameters cannot tell its device before it sees an image.
        return (output - target.to(output)).square().mean(dim=1)

    def distance(self, student: Float[Tensor, "b 3"], teacher: Float[Tensor, "b 3"]) -> Tensor:
        """As :meth:`loss`."""
        return self.loss(student, teacher)

    def picture(self, output: Float[Tensor, "b 3"]) -> list[Image.Image]:
        """A plain patch of the mean colour."""
        return [_swatch(colour) for colour in output]

    def measure(
        self, output: Float[Tensor, "b 3"], target: Float[Tensor, "one 3"]
    ) -> dict[str, list[float]]:
        """Root mean square difference of the colours, in [0, 1]."""
        return {"difference": self.loss(output, target).sqrt().tolist()}


def _swatch(colour: Float[Tensor, " 3"]) -> Image.Image:
    return from_tensor((2 * colour.detach() - 1).view(1, 3, 1, 1).expand(1, 3, 64, 64))[0]
