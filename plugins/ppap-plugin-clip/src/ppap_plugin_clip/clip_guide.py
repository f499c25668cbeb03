"""The guide ``clip``: what a text says, or what another picture shows, by CLIP."""

from __future__ import annotations

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional as F

from ppap_host.files.errors import TargetError
from ppap_host.guides.targets import Given, Target
from ppap_plugin_clip.base import ClipEyes
from ppap_plugin_clip.checkpoint import encode, load_checkpoint
from ppap_plugin_clip.losses import cosine, spherical_distance
from ppap_plugin_clip.networks import ImageEmbedding
from ppap_plugin_clip.pictures import card


class ClipGuide(ClipEyes):
    """How well the picture fits a text, or another picture.

    The network's output is an embedding an image, [b, d], in the space that CLIP's images and texts
    share. Only its direction counts.

    Args:
        model: a local folder or a hub name of a CLIP of transformers. There is none of its own.

    Attributes:
        temperature: CLIP's own, exp(logit_scale), by which :meth:`loss` is multiplied.

    Raises:
        CheckpointError: no model is given, there is no such model, it is no CLIP, or it is
            incomplete.
    """

    name = "clip"

    def __init__(self, model: str | None = None) -> None:
        checkpoint = load_checkpoint(self.name, model)
        super().__init__(checkpoint, ImageEmbedding(checkpoint.vision, checkpoint.projection))
        self.temperature = checkpoint.temperature
        self._checkpoint = checkpoint
        # What the score cards of `picture` refer to: the last target that was read.
        self._asked: tuple[str, Tensor] | None = None

    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        """Understands a text, or the path of an image.

        The value is a direction, [1, d]. A text is read once, by CLIP's text tower, as it stands:
        no template such as "a photo of ..." is put around it. A file comes before a text of the
        same name.

        Raises:
            TargetError: the text is empty or has more tokens than CLIP reads (77 with its start and
                end, for published ones), or the image is missing or cannot be read.
            CheckpointError: the tokenizer or the text tower cannot be loaded.
        """
        if given.means_file:
            photo, seen = self._look_at(given, size)
            called = given.path.name if given.files else given.text
            self._asked = (called, F.normalize(seen.float(), dim=1).to(seen))
            return photo.target(self._asked[1], {"target": photo.image})
        text = given.words
        if not text.strip():
            raise TargetError(
                "The target of the guide 'clip' is empty.",
                remedy='Describe the picture (--target "a red cube"), or give the path of one.',
            )
        if self._asked is None or self._asked[0] != text:
            self._asked = (text, F.normalize(encode(self._checkpoint, text), dim=1))
        parameter = next(self._network.parameters())
        value = self._asked[1].to(
            parameter.device, torch.promote_types(parameter.dtype, torch.float32)
        )
        return Target(text, value, {"target": card(text)}, understood=f"the text {text!r}")

    def loss(
        self, output: Float[Tensor, "b d"], target: Float[Tensor, "one d"]
    ) -> Float[Tensor, " b"]:
        """Half the squared angle to the target (Crowson, 2021), times :attr:`temperature`.

        The temperature makes it a negative log likelihood in nats, for small angles that of CLIP's
        own logits (Radford et al., 2021, figure 3), as a classifier's is. 1000 times Crowson's
        loss, her usual scale, is 10 times this one where the temperature is 100.
        """
        return self.temperature * spherical_distance(output, target)

    def distance(
        self, student: Float[Tensor, "b d"], teacher: Float[Tensor, "b d"]
    ) -> Float[Tensor, " b"]:
        """As :meth:`loss`."""
        return self.loss(student, teacher)

    def picture(self, output: Float[Tensor, "b d"]) -> list[Image]:
        """A card each, with the similarity to the last target that was read."""
        if self._asked is None:
            return [card("no target was read") for _ in output]
        label, value = self._asked
        scores = cosine(output.detach(), value.to(output.device)).tolist()
        return [card(label, score) for score in scores]

    def measure(
        self, output: Float[Tensor, "b d"], target: Float[Tensor, "one d"]
    ) -> dict[str, list[float]]:
        """The cosine of the angle to the target, in [-1, 1] ("similarity").

        For texts, published CLIPs rarely give more than 0.4 even to a perfect picture.
        """
        with torch.no_grad():
            return {"similarity": cosine(output, target).tolist()}
