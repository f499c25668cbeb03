"""The guide ``adm-classifier``: a class, by a classifier that was trained on noised images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn import functional as F

from ppap_host.backbones.noise import DiscreteSchedule, NoiseLevel
from ppap_host.files.errors import CheckpointError, OptionError, TargetError, foreign
from ppap_host.files.images import shortened
from ppap_host.files.models import own_path
from ppap_host.files.reading import read_text
from ppap_host.guides.guide import Guide, PatchPlan
from ppap_host.guides.labels import Labels
from ppap_host.guides.targets import Given, Target
from ppap_host.guides.temperatures import Tempered
from ppap_plugin_openai.adm import (
    PUBLISHED_CLASSIFIERS,
    PUBLISHED_URL,
    ADMClassifier,
    ADMClassifierConfig,
    load_adm_classifier,
)
from ppap_plugin_openai.backbone import BETAS
from ppap_plugin_openai.loading import recognise, shapes_in
from ppap_plugin_openai.named import flags_file, read_flags

_CLASSIFIER_STEPS = 1000


class ADMClassifierGuide(Guide):
    """The noise-aware classifier of classifier guidance (Dhariwal and Nichol, 2021, section 4).

    It is told how noisy the image is, so the plain gradient at x_t is a good one: the recipe
    ``naive`` is the paper's method, and experts have nothing to add. The network's output is a row
    of logits an image, [b, c].

    Args:
        model: a file of guided-diffusion. Which published classifier it is, its tensors say; for
            any other its flags are in ``<model>.json``. Class names may be in ``<model>.txt``, one
            class a line.

    Raises:
        CheckpointError: there is no such file, or it is no classifier.
        OptionError: its flags make no sense.
    """

    name = "adm-classifier"
    # The paper's for its conditional models at 64 and 256 pixels; see the documentation.
    _files: tuple[Path, ...] = ()
    _remarks: tuple[str, ...] = ()

    def __init__(self, model: str | None = None) -> None:
        if model is None:
            files = ", ".join(entry.file for entry in PUBLISHED_CLASSIFIERS.values())
            raise CheckpointError(
                f"The guide {self.name!r} ships no weights.",
                remedy=f"Download one of {files} from {PUBLISHED_URL} and give it with --model.",
            )
        path = own_path(model)
        config, schedule = _identified(path)
        remarks: list[str] = []
        self._set_up(load_adm_classifier(path, config, remarks), schedule)
        self._remarks = tuple(remarks)
        named, names = _labels_beside(path, config.out_channels)
        self.labels = named
        flags = flags_file(path)
        self._files = (path, *([flags] if flags.exists() else []), *names)

    @classmethod
    def of(cls, classifier: ADMClassifier, noise_schedule: str = "linear") -> ADMClassifierGuide:
        """A guide around a network in memory, trained on the noise of this schedule."""
        guide = cls.__new__(cls)
        guide._set_up(classifier, noise_schedule)
        return guide

    def _set_up(self, classifier: ADMClassifier, noise_schedule: str) -> None:
        self._network, self.config = classifier, classifier.config
        self.labels = Labels.numbered(self.config.out_channels)
        levels = DiscreteSchedule.from_betas(BETAS[noise_schedule](_CLASSIFIER_STEPS)).levels()
        # Ascending, as np.interp wants it.
        self._noise = np.array([-level.log_snr for level in levels])

    def network(self) -> nn.Module:
        """Maps images [b, 3, h, w] and timesteps [b] to logits [b, c]."""
        return self._network

    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        """Understands the number of a class and, with a file of names, its name.

        The value is a row of probabilities, [1, c].

        Raises:
            TargetError: there is no such class, or the classifier is for images of another size.
        """
        side = self.config.image_size
        if size != (side, side):
            raise TargetError(
                f"The guide {self.name!r} was trained on noise in {side} x {side} pixels; "
                f"these images have {size[0]} x {size[1]}.",
                remedy="Give the classifier of the backbone's size with --model.",
            )
        index = self.labels.find(
            given.words, "Names may stand beside the model, in <model>.txt, one line a class."
        )
        parameter = next(self._network.parameters())
        label = torch.tensor([index], device=parameter.device)
        value = F.one_hot(label, self.config.out_channels).to(parameter.dtype)
        called = self.labels.short(index)
        understood = f"class {index} of {self.config.out_channels}, {called!r}"
        pictures = {"target": _bars([(called, 1.0)])}
        return Target(given.words, value, pictures, understood=understood)

    def prepare(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Nothing: it was trained on pixels in [-1, 1]."""
        return x

    def time(self, level: NoiseLevel | None) -> float:
        """The timestep of the classifier's own schedule with this much noise, 0..999.

        For a backbone with the same schedule it is the level's own time. For any other it is the
        one of the same log-SNR, between steps where need be. Clean images are taken for step 0.
        """
        if level is None:
            return 0.0
        return float(np.interp(-level.log_snr, self._noise, np.arange(len(self._noise))))

    def see(self, x: Float[Tensor, "b 3 h w"], level: NoiseLevel | None = None) -> Tensor:
        """Logits [b, c] for images at a noise level, of which the network is told."""
        own = next(self._network.parameters()).dtype
        time = torch.full((len(x),), self.time(level), device=x.device)
        output: Tensor = self._network(self.prepare(x).to(own), time)
        return output.to(x.dtype)

    def loss(
        self, output: Float[Tensor, "b c"], target: Float[Tensor, "one c"]
    ) -> Float[Tensor, " b"]:
        """-log p(y | x_t, t) in nats (Dhariwal and Nichol, 2021, section 4)."""
        return -(target.to(output.dtype) * output.log_softmax(dim=1)).sum(dim=1)

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
        """KL(teacher || student) in nats, summed over the classes."""
        log_teacher = teacher.log_softmax(dim=1)
        difference = log_teacher - student.log_softmax(dim=1)
        return (log_teacher.exp() * difference).sum(dim=1)

    def as_target(self, output: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
        """The probabilities of what the network sees."""
        return output.softmax(dim=1)

    def logits(self, output: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
        """The output itself, in float32."""
        return output.float()

    def picture(self, output: Float[Tensor, "b c"]) -> list[Image.Image]:
        """The three most likely classes as bars."""
        best = output.detach().float().cpu().softmax(dim=1).topk(min(3, output.shape[1]), dim=1)
        return [
            _bars([(self.labels.short(k), p) for k, p in zip(classes, values, strict=True)])
            for classes, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def measure(
        self, output: Float[Tensor, "b c"], target: Float[Tensor, "one c"]
    ) -> dict[str, list[float]]:
        """ "probability" of the target's class, and whether it is the likeliest: "right"."""
        wanted = target.detach().argmax(dim=1).expand(len(output))
        logits = output.detach().float()
        probability = logits.softmax(dim=1).gather(1, wanted[:, None])[:, 0]
        right = (logits.argmax(dim=1) == wanted).float()
        return {"probability": probability.tolist(), "right": right.tolist()}

    def patch_plan(self, network: nn.Module) -> PatchPlan:
        """There is nothing to tune: the classifier has been trained on noise.

        Raises:
            OptionError: always.
        """
        raise OptionError(
            f"The guide {self.name!r} knows noise already, and takes no experts.",
            remedy="Use it as it is with --recipe naive, or tune the guide classifier.",
        )

    def files(self) -> Sequence[Path]:
        """The weights, and what lies beside them: flags and class names, if there are any."""
        return self._files

    def remarks(self) -> Sequence[str]:
        """What had to be chosen in the weights' file."""
        return self._remarks


def _labels_beside(model: Path, count: int) -> tuple[Labels, tuple[Path, ...]]:
    """Names from ``<model>.txt``, one class a line, if there is such a file, and the file.

    Raises:
        CheckpointError: it cannot be read, or does not have one line for each class.
    """
    path = model.with_name(f"{model.name}.txt")
    if not path.is_file():
        return Labels.numbered(count), ()
    names = read_text(path, CheckpointError, "Write one line for each class.").splitlines()
    if len(names) != count:
        raise CheckpointError(
            f"{path}: {len(names)} class names for {count} classes.",
            remedy="Write one line for each class, in the order of their numbers.",
        )
    return Labels(names), (path,)


def _identified(path: Path) -> tuple[ADMClassifierConfig, str]:
    """A classifier's configuration and the noise schedule it knows."""
    flags = read_flags(path)
    if flags is not None:
        schedule = flags.get("noise_schedule", "linear")
        if schedule not in BETAS:
            raise OptionError(
                f"{path}.json: noise_schedule is {schedule!r}.",
                remedy=f"Known: {', '.join(BETAS)}.",
            )
        return ADMClassifierConfig.from_flags(
            {name: value for name, value in flags.items() if name != "noise_schedule"}
        ), str(schedule)
    names = recognise(shapes_in(path))
    for name in names:
        if name in PUBLISHED_CLASSIFIERS:
            entry = PUBLISHED_CLASSIFIERS[name]
            return entry.config, entry.noise_schedule
    if names:
        raise CheckpointError(
            f"{path}: no classifier. It has the shapes of the published {' or '.join(names)}.",
            remedy=f"Give a classifier from {PUBLISHED_URL}.",
        )
    raise CheckpointError(
        f"{path}: none of the published classifiers.",
        remedy=f"Write its flags to {foreign(path.name)}.json beside it, or give one from "
        f"{PUBLISHED_URL}.",
    )


_SIDE, _INK, _PAPER, _BAR, _EMPTY = 192, "#26241f", "#fbfaf7", "#2f6f4f", "#e4e0d6"


def _bars(rows: Sequence[tuple[str, float]]) -> Image.Image:
    """A square picture with label, percentage and bar a row, for at most three classes."""
    picture = Image.new("RGB", (_SIDE, _SIDE), _PAPER)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(16)
    for k, (label, probability) in enumerate(rows):
        top = 14 + 58 * k
        number = f"{probability:.0%}"
        room = _SIDE - 26 - draw.textlength(number, font=font)
        shown = shortened(label, int(room), font)
        draw.text((10, top), shown, fill=_INK, font=font)
        draw.text((_SIDE - 10, top), number, fill=_INK, font=font, anchor="ra")
        draw.rectangle((10, top + 24, _SIDE - 10, top + 36), fill=_EMPTY)
        length = round((_SIDE - 20) * min(max(0.0, probability), 1.0))
        if length:
            draw.rectangle((10, top + 24, 10 + length, top + 36), fill=_BAR)
    return picture
