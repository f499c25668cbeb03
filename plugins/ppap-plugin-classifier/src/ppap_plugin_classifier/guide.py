"""The guide ``classifier``: what kind of thing is in the picture, by an image classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from PIL.Image import Image
from torch import Tensor, nn

from ppap_host.files.errors import OptionError, TargetError
from ppap_host.guides.guide import Guide, PatchPlan, default_patch_plan
from ppap_host.guides.labels import Labels
from ppap_host.guides.targets import Given, Target
from ppap_host.guides.temperatures import Tempered
from ppap_plugin_classifier.bars import chart
from ppap_plugin_classifier.checkpoint import load_checkpoint
from ppap_plugin_classifier.losses import (
    OPEN,
    binary_cross_entropy,
    binary_distillation,
    cross_entropy,
    distillation,
    one_hot_logits,
)
from ppap_plugin_classifier.shipped import BUNDLED

TEACHER_TEMPERATURE = 1.0
"""The teacher is taken at its word. PPAP's code sharpens it with 0.25."""

RANK = 6
"""Of the experts' factors: one expert then trains less than a tenth of the shipped network."""


class ClassifierGuide(Guide):
    """The class of what is shown.

    The network's output is a row of logits a picture, [b, c]. Their softmax is the probability of
    the classes, or, where these do not exclude each other (multi-label), the sigmoid of each. A
    network with one logit has two classes, no and yes.

    Args:
        model: any classifier of timm, torchvision or transformers, see
            :func:`ppap_plugin_classifier.checkpoint.load_checkpoint`; None for the one that knows
            the built-in world.

    Attributes:
        labels: the names of the classes.
        exclusive: whether the classes exclude each other.
        teacher_temperature: of the teacher's logits in :meth:`distance`.

    Raises:
        CheckpointError: there is no such model, it is no classifier, or it is incomplete.
    """

    name = "classifier"
    # By judged accuracy of 24 images of all classes in 25 steps (docs/recipes.md, Scale).
    default_scale: Mapping[str, float] = {"": 4.0, "ppap": 4.0, "x0": 16.0, "elucd": 8.0}
    tuning_steps = 600

    def __init__(self, model: str | None = None) -> None:
        checkpoint = load_checkpoint(str(BUNDLED) if model is None else model)
        self._network = checkpoint.network
        self._preparation = checkpoint.preparation
        self._files = checkpoint.files
        self._remarks = checkpoint.remarks
        self.labels: Labels = checkpoint.labels
        self.exclusive = checkpoint.exclusive
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
        will do. A file comes before a class of the same name. Where classes do not exclude each
        other, several may be named with + between them, and nothing is asked of the others.

        Raises:
            TargetError: the image cannot be read, or no class, or more than one, is called that.
        """
        if given.is_file:
            return self._read_image(given, size)
        try:
            wanted = self._classes(given.words)
        except TargetError:
            if given.means_file:
                given.photo(size)  # says what is wrong with it
            raise
        called = " + ".join(repr(self.labels.short(index)) for index in wanted)
        numbers = " and ".join(map(str, wanted))
        kind = "class" if len(wanted) == 1 else "classes"
        understood = f"{kind} {numbers} of {len(self.labels)}, {called}"
        pictures = {"target": chart([(self.labels.short(k), 1.0) for k in wanted[:3]])}
        number = given.words.strip()
        doubts = []
        if number.isdecimal() and wanted != [int(number)] and int(number) < len(self.labels):
            doubts.append(
                f"The target {number!r} is the name of class {wanted[0]}, and the number of "
                f"another, {self.labels.short(int(number))!r}. The name counts."
            )
        return Target(
            given.words, self._row(wanted), pictures, understood=understood, doubts=doubts
        )

    def _classes(self, text: str) -> list[int]:
        """The class that a text names, or several where they do not exclude each other."""
        another = "The path of an image is a target as well."
        try:
            return [self.labels.find(text, another)]
        except TargetError:
            parts = text.split("+")
            if self.exclusive or len(parts) < 2:
                raise
        return sorted({self.labels.find(part.strip(), another) for part in parts})

    def _row(self, wanted: Sequence[int]) -> Float[Tensor, "1 c"]:
        """The value of a target that asks for these classes."""
        parameter = next(self._network.parameters())
        row = torch.full((1, len(self.labels)), 0.0 if self.exclusive else OPEN)
        row[0, list(wanted)] = 1.0
        return row.to(parameter)

    def _read_image(self, given: Given, size: tuple[int, int]) -> Target:
        photo = given.photo(size)
        parameter = next(self._network.parameters())
        wide = torch.promote_types(parameter.dtype, torch.float32)
        pixels = photo.pixels.to(parameter.device, wide)
        photo = photo.doubting(*self.doubts(pixels, given.source))
        with torch.no_grad():
            logits = self.see(pixels)
        pictures = {"target": photo.image, "seen as": self.picture(logits)[0]}
        likeliest = self.labels.short(int(logits.argmax()))
        then = f"its classes are what the network sees, {likeliest!r} first"
        return photo.target(self._probabilities(logits), pictures, then)

    def _probabilities(self, logits: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
        return logits.softmax(dim=1) if self.exclusive else logits.sigmoid()

    def loss(
        self, output: Float[Tensor, "b c"], target: Float[Tensor, "one c"]
    ) -> Float[Tensor, " b"]:
        """Cross entropy in nats; for a class, -log p(y | x) (Dhariwal and Nichol, 2021).

        Where classes do not exclude each other it is the sum of each one's own.
        """
        if not self.exclusive:
            return binary_cross_entropy(output, target)
        return cross_entropy(output, target)

    def tempered(self, joint: float, marginal: float) -> Guide:
        """The guide with the loss of EluCD's temperatures (Ma et al., 2024, section 3.3).

        Args:
            joint: factor on the logits of the target, positive.
            marginal: factor on the logits of all classes, not negative; 0 leaves a constant.

        Raises:
            OptionError: they make no sense, or the classes do not exclude each other.
        """
        if not self.exclusive:
            if joint == marginal == 1:
                return self
            raise self._not_exclusive()
        return Tempered(self, joint, marginal)

    def _not_exclusive(self) -> OptionError:
        return OptionError(
            "The classes of this multi-label network do not exclude each other, so that it has no "
            "joint and marginal temperature.",
            remedy="Use a recipe without temperatures, such as x0, or a network for one class an "
            "image.",
        )

    def distance(
        self, student: Float[Tensor, "b c"], teacher: Float[Tensor, "b c"]
    ) -> Float[Tensor, " b"]:
        """KL(teacher || student) in nats, the teacher at :attr:`teacher_temperature`.

        Summed over the classes. PPAP's code takes the mean over them, a constant factor that its
        learning rate makes up for. Where classes do not exclude each other it is the sum of each
        one's own divergence.
        """
        if not self.exclusive:
            return binary_distillation(student, teacher)
        return distillation(
            student,
            teacher,
            teacher_temperature=self.teacher_temperature,
            student_temperature=1.0,
        )

    def as_target(self, output: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
        """The probabilities of what the network sees."""
        return self._probabilities(output.float())

    def logits(self, output: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
        """The output itself, in float32.

        Raises:
            OptionError: the classes do not exclude each other.
        """
        if not self.exclusive:
            raise self._not_exclusive()
        return output.float()

    def from_labels(self, labels: Int64[Tensor, " b"]) -> Float[Tensor, "b c"]:
        """The output of a perfect teacher: logits that :meth:`distance` takes for one-hot.

        Args:
            labels: the number of each image's class.
        """
        if not self.exclusive:
            return super().from_labels(labels)
        return one_hot_logits(labels, len(self.labels), self.teacher_temperature)

    def picture(self, output: Float[Tensor, "b c"]) -> list[Image]:
        """The three most likely classes as bars."""
        probabilities = self._probabilities(output.detach().float().cpu())
        best = probabilities.topk(min(3, probabilities.shape[1]), dim=1)
        return [
            chart([(self.labels.short(k), p) for k, p in zip(indices, values, strict=True)])
            for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def measure(
        self, output: Float[Tensor, "b c"], target: Float[Tensor, "one c"]
    ) -> dict[str, list[float]]:
        """ "probability" of the target's (most likely) class, and whether it is seen: "right".

        Where classes do not exclude each other, the least probability of those that are wanted
        (with more than a half, or else most), and whether it is more than a half.
        """
        logits = output.detach().float()
        if not self.exclusive:
            target = target.detach().float()
            chosen = (target > 0.5) | (target == target.amax(dim=1, keepdim=True))
            least = logits.sigmoid().masked_fill(~chosen, 1.0).amin(dim=1)
            return {"probability": least.tolist(), "right": (least > 0.5).float().tolist()}
        wanted = target.detach().argmax(dim=1).expand(len(output))
        probability = logits.softmax(dim=1).gather(1, wanted[:, None])[:, 0]
        right = (logits.argmax(dim=1) == wanted).float()
        return {"probability": probability.tolist(), "right": right.tolist()}

    def patch_plan(self, network: nn.Module) -> PatchPlan:
        """Every convolution and linear layer with factors of rank :data:`RANK`, biases, norms."""
        return default_patch_plan(network, rank=RANK)

    def files(self) -> Sequence[Path]:
        """Weights and configuration that were read."""
        return self._files

    def remarks(self) -> Sequence[str]:
        """What had to be chosen or guessed when the checkpoint was read."""
        return self._remarks
