"""The guide ``classifier``: what kind of thing is in the picture, by an image classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ppap_host.files.errors import TargetError
from ppap_host.guides.guide import Guide, PatchPlan, default_patch_plan
from ppap_host.guides.targets import Given, Target
from ppap_host.guides.temperatures import Tempered
from ppap_plugin_classifier.bars import chart
from ppap_plugin_classifier.checkpoint import load_checkpoint
from ppap_plugin_classifier.labels import Labels
from ppap_plugin_classifier.losses import cross_entropy, distillation, one_hot_logits
from ppap_plugin_classifier.shipped import BUNDLED

TEACHER_TEMPERATURE = 1.0
"""The teacher is taken at its word. PPAP's code sharpens it with 0.25."""

RANK = 6
"""Of the experts' factors: one expert then trains less than a tenth of the shipped network."""


class ClassifierGuide(Guide):
    """The class of what is shown.

    The network's output is a row of logits a picture, [b, c].

    Args:
        model: any classifier of timm, torchvision or transformers, see
            :func:`ppap_plugin_classifier.checkpoint.load_checkpoint`; None for the one that knows
            the built-in world.

    Attributes:
        labels: the names of the classes.
        teacher_temperature: of the teacher's logits in :meth:`distance`.

    Raises:
        CheckpointError: there is no such model, it is no classifier, or it is incomplete.
    """

    name = "classifier"
    # All from elucd on: best of `ppap search --guide classifier --recipe NAME --only scale
    # --num 12 --steps 20 --budget 6` with a --scale-range of three decades (docs/search.md);
    # elucd within the range where the Frechet distance is less than twice that of no guidance.
    default_scale: Mapping[str, float] = {
        "": 8.0, "x0": 32.0, "naive": 10.0,
        "elucd": 0.1, "elucd-edm": 2.9, "dps": 0.25, "freedom": 30.0, "lgd-mc": 0.048,
        "mpgd": 1.4, "ugd": 0.25, "tfg": 5.6, "adam-dps": 0.05, "adam-mpgd": 0.09,
    }  # fmt: skip
    tuning_steps = 600

    def __init__(self, model: str | None = None) -> None:
        checkpoint = load_checkpoint(str(BUNDLED) if model is None else model)
        self._network = checkpoint.network
        self._preparation = checkpoint.preparation
        self._files = checkpoint.files
        self.labels: Labels = checkpoint.labels
        self.teacher_temperature = TEACHER_TEMPERATURE

    def network(self) -> nn.Module:
        """Maps prepared pixels [b, 3, h', w'] to logits [b, c]."""
        return self._network

    def prepare(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        """The whole picture, resized and normalised as the checkpoint wants it."""
        return self._preparation(x)

    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        """Understands the path of an image, the name of a class, or its number.

        The value is a row of probabilities, [1, c]: what the network says of the image, or one for
        the class and zero for the others. Names count in any case; of ImageNet's synonyms each one
        will do. A file comes before a class of the same name.

        Raises:
            TargetError: the image cannot be read, or no class, or more than one, is called that.
        """
        if given.is_file:
            return self._read_image(given, size)
        try:
            index = self.labels.find(given.words)
        except TargetError:
            if given.means_file:
                given.photo(size)  # says what is wrong with it
            raise
        parameter = next(self._network.parameters())
        label = torch.tensor([index], device=parameter.device)
        value = F.one_hot(label, len(self.labels)).to(parameter.dtype)
        called = self.labels.short(index)
        understood = f"class {index} of {len(self.labels)}, {called!r}"
        pictures = {"target": chart([(called, 1.0)])}
        return Target(given.words, value, pictures, understood=understood)

    def _read_image(self, given: Given, size: tuple[int, int]) -> Target:
        photo = given.photo(size)
        parameter = next(self._network.parameters())
        pixels = photo.pixels.to(parameter.device, parameter.dtype)
        photo = photo.doubting(*self.doubts(pixels, given.source))
        with torch.no_grad():
            logits = self.see(pixels)
        pictures = {"target": photo.image, "seen as": self.picture(logits)[0]}
        likeliest = self.labels.short(int(logits.argmax()))
        then = f"its classes are what the network sees, {likeliest!r} first"
        return photo.target(logits.softmax(dim=1), pictures, then)

    def loss(
        self, output: Float[Tensor, "b c"], target: Float[Tensor, "one c"]
    ) -> Float[Tensor, " b"]:
        """Cross entropy in nats; for a class, -log p(y | x) (Dhariwal and Nichol, 2021)."""
        return cross_entropy(output, target)

    def tempered(self, joint: float, marginal: float) -> Guide:
        """The guide with the loss of EluCD's temperatures (Ma et al., 2024, section 3.3).

        Args:
            joint: factor on the logits of the target, positive.
            marginal: factor on the logits of all classes, not negative; 0 leaves a constant.

        Raises:
            OptionError: they make no sense.
        """
        return Tempered(self, joint, marginal)

    def distance(
        self, student: Float[Tensor, "b c"], teacher: Float[Tensor, "b c"]
    ) -> Float[Tensor, " b"]:
        """KL(teacher || student) in nats, the teacher at :attr:`teacher_temperature`.

        Summed over the classes. PPAP's code takes the mean over them, a constant factor that its
        learning rate makes up for.
        """
        return distillation(
            student,
            teacher,
            teacher_temperature=self.teacher_temperature,
            student_temperature=1.0,
        )

    def as_target(self, output: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
        """The probabilities of what the network sees."""
        return output.float().softmax(dim=1)

    def logits(self, output: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
        """The output itself, in float32."""
        return output.float()

    def from_labels(self, labels: Int64[Tensor, " b"]) -> Float[Tensor, "b c"]:
        """The output of a perfect teacher: logits that :meth:`distance` takes for one-hot.

        Args:
            labels: the number of each image's class.
        """
        return one_hot_logits(labels, len(self.labels), self.teacher_temperature)

    def picture(self, output: Float[Tensor, "b c"]) -> list[Image]:
        """The three most likely classes as bars."""
        probabilities = output.detach().float().cpu().softmax(dim=1)
        best = probabilities.topk(min(3, probabilities.shape[1]), dim=1)
        return [
            chart([(self.labels.short(k), p) for k, p in zip(indices, values, strict=True)])
            for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def measure(
        self, output: Float[Tensor, "b c"], target: Float[Tensor, "one c"]
    ) -> dict[str, list[float]]:
        """ "probability" of the target's (most likely) class, and whether it is seen: "right"."""
        wanted = target.detach().argmax(dim=1).expand(len(output))
        logits = output.detach().float()
        probability = logits.softmax(dim=1).gather(1, wanted[:, None])[:, 0]
        right = (logits.argmax(dim=1) == wanted).float()
        return {"probability": probability.tolist(), "right": right.tolist()}

    def patch_plan(self, network: nn.Module) -> PatchPlan:
        """Every convolution and linear layer with factors of rank :data:`RANK`, biases, norms."""
        return default_patch_plan(network, rank=RANK)

    def files(self) -> Sequence[Path]:
        """Weights and configuration that were read."""
        return self._files
