"""Plugins with one fault each, beside the sound ones that they are made of.

Every fault names the check of :mod:`ppap_host.testing` that must catch it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ppap_host.backbones.backbone import Backbone, Condition, Prediction
from ppap_host.backbones.noise import NoiseLevel, Walk
from ppap_host.files.errors import OptionError, TargetError
from ppap_host.files.images import from_tensor
from ppap_host.guides.guide import Guide, PatchPlan, Wrapped
from ppap_host.guides.operators import LinearOperator
from ppap_host.guides.targets import Given, Target
from ppap_host.recipes.energies import Point, Question
from ppap_host.recipes.estimate import Estimate
from ppap_host.recipes.gradients import RootSize
from ppap_host.recipes.places import CleanPoint
from ppap_host.recipes.recipe import Parameter, Recipe
from ppap_host.recipes.selections import Selected, Selection
from ppap_host.recipes.strengths import PosteriorSpread
from ppap_host.recipes.views import Predicted
from ppap_host.testing import GaussianWorld

T = TypeVar("T")

GUIDES: list[tuple[str, Callable[[], Any]]] = []
BACKBONES: list[tuple[str, Callable[[], Any]]] = []
RECIPES: list[tuple[str, str, Any]] = []


def caught_by(check: str) -> Callable[[type[T]], type[T]]:
    """Registers a broken guide or backbone with the check that must catch it."""

    def register(kind: type[T]) -> type[T]:
        (BACKBONES if issubclass(kind, Backbone) else GUIDES).append((check, kind))
        return kind

    return register


# Guides


class SoundGuide(Guide):
    """Compares what a small convolutional network sees, pixel by pixel."""

    name = "sound"
    default_scale: Mapping[str, float] = {"": 1.0}
    averages_pixels = True

    def __init__(self) -> None:
        self._network = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.SiLU(),
            nn.Dropout(0.2),
            nn.Conv2d(8, 2, 3, padding=1),
        ).eval()
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in self._network.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))

    def network(self) -> nn.Module:
        return self._network

    def prepare(self, x: Tensor) -> Tensor:
        return (x + 1) / 2

    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        photo = given.photo(size)
        parameter = next(self._network.parameters())
        with torch.no_grad():
            value = self.see(photo.pixels.to(parameter))
        return photo.target(value, {"target": photo.image})

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().mean(dim=(1, 2, 3))

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.loss(student, teacher)

    def picture(self, output: Tensor) -> list[Image.Image]:
        return from_tensor(output.detach()[:, :1].float().expand(-1, 3, -1, -1).clamp(-1, 1))

    def measure(self, output: Tensor, target: Tensor) -> dict[str, list[float]]:
        return {"rmse": self.loss(output, target).sqrt().tolist()}


class SoundMeasurement(Guide):
    """Means of boxes of 2 x 2 pixels: a guide without weights that is a linear measurement."""

    name = "boxes"
    averages_pixels = True

    def __init__(self) -> None:
        self._network = nn.AvgPool2d(2).eval()

    def network(self) -> nn.Module:
        return self._network

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        photo = given.photo(size)
        return photo.target(self.see(photo.pixels))

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target.to(output)).square().mean(dim=(1, 2, 3))

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.loss(student, teacher)

    def operator(self, target: Tensor) -> LinearOperator:
        return Boxes()

    def picture(self, output: Tensor) -> list[Image.Image]:
        return from_tensor(output.detach().float().clamp(-1, 1))

    def measure(self, output: Tensor, target: Tensor) -> dict[str, list[float]]:
        return {"mse": self.loss(output, target).tolist()}


class Boxes(LinearOperator):
    """Means of 2 x 2 pixels."""

    def __call__(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2)

    def adjoint(self, y: Tensor) -> Tensor:
        return F.interpolate(y, scale_factor=2) / 4

    def pseudo_inverse(self, y: Tensor, ratio: float = 0.0) -> Tensor:
        return self.adjoint(y) / (1 / 4 + ratio)


@caught_by("made")
class Nameless(SoundGuide):
    name = ""


@caught_by("made")
class NotAGuide:
    def __init__(self) -> None:
        self.name = "other"


@caught_by("default-scale")
class ScaleForOneRecipe(SoundGuide):
    default_scale: Mapping[str, float] = {"x0": 1.0}


@caught_by("default-scale")
class ScaleOfZero(SoundGuide):
    default_scale: Mapping[str, float] = {"": 0.0}


@caught_by("network")
class AnotherNetworkEachTime(SoundGuide):
    def network(self) -> nn.Module:
        return nn.Sequential(*self._network).eval()


@caught_by("network")
class InTrainingMode(SoundGuide):
    def __init__(self) -> None:
        super().__init__()
        self._network.train()


@caught_by("output")
class SeesTheSameInAll(SoundGuide):
    def prepare(self, x: Tensor) -> Tensor:
        return 0 * x


@caught_by("output")
class SeesInAnotherPrecision(SoundGuide):
    def see(self, x: Tensor, level: NoiseLevel | None = None) -> Tensor:
        return super().see(x, level).to(torch.float64)


@caught_by("output")
class SeesNaN(SoundGuide):
    def prepare(self, x: Tensor) -> Tensor:
        return (x - 1).log()


@caught_by("loss")
class LossSummedOverTheBatch(SoundGuide):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return super().loss(output, target).sum()


@caught_by("loss")
class LossForEachRow(SoundGuide):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().mean(dim=(1, 3))


@caught_by("batch")
class LossAveragedOverTheBatch(SoundGuide):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return super().loss(output, target).mean().expand(len(output))


@caught_by("batch")
class NormalisedOverTheBatch(SoundGuide):
    def prepare(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, training=True)


@caught_by("precision")
class Float32Alone(SoundGuide):
    def see(self, x: Tensor, level: NoiseLevel | None = None) -> Tensor:
        output: Tensor = self.network()(self.prepare(x).float())
        return output


@caught_by("half-precision")
class OutputStaysInHalf(SoundGuide):
    def through(self, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return network(self.prepare(x).to(next(self._network.parameters()).dtype))


@caught_by("device")
class FetchesFromTheCard(SoundGuide):
    def prepare(self, x: Tensor) -> Tensor:
        return (x.cpu() + 1) / 2


@caught_by("device")
class ConstantOnTheCpu(SoundGuide):
    def prepare(self, x: Tensor) -> Tensor:
        return (x - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1).to(x.dtype)) / 2


@caught_by("deterministic")
class DropoutAlwaysOn(SoundGuide):
    def prepare(self, x: Tensor) -> Tensor:
        return F.dropout(super().prepare(x), 0.1, training=True)


@caught_by("deterministic")
class RemembersTheCallBefore(SoundGuide):
    calls = 0

    def prepare(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().prepare(x) * (1 + 0.01 * self.calls)


@caught_by("deterministic")
class RandomWeights(SoundGuide):
    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self._network[0].weight.normal_()


@caught_by("own-randomness")
class SeedsTheGlobalGenerator(SoundGuide):
    def prepare(self, x: Tensor) -> Tensor:
        torch.manual_seed(0)
        return super().prepare(x) + 0.01 * torch.randn(x.shape[1:]).to(x)


@caught_by("well-behaved")
class PrintsWhatItSees(SoundGuide):
    def prepare(self, x: Tensor) -> Tensor:
        print(f"{len(x)} images")
        return super().prepare(x)


@caught_by("well-behaved")
class SilencesEverybody(SoundGuide):
    def __init__(self) -> None:
        warnings.simplefilter("ignore")
        super().__init__()


@caught_by("well-behaved")
class ForgetsToRecordGradientsAgain(SoundGuide):
    def measure(self, output: Tensor, target: Tensor) -> dict[str, list[float]]:
        torch.set_grad_enabled(False)
        return super().measure(output, target)


@caught_by("inputs")
class WritesIntoTheImages(SoundGuide):
    def prepare(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x.clamp_(-0.5, 0.5)
        return super().prepare(x)


@caught_by("inputs")
class WritesIntoTheTarget(SoundGuide):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        target.mul_(0.99)
        return super().loss(output, target)


@caught_by("frozen")
class Thaws(SoundGuide):
    def network(self) -> nn.Module:
        return self._network.requires_grad_(True)


@caught_by("frozen")
class KeepsStatistics(SoundGuide):
    def through(self, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        with torch.no_grad():
            self._network[1].running_mean.add_(0.001 * x.mean())
        return super().through(network, x)


@caught_by("pickles")
class HoldsALambda(SoundGuide):
    def __init__(self) -> None:
        super().__init__()
        self._shift = lambda x: (x + 1) / 2


@caught_by("files")
class NamesAFileThatIsNot(SoundGuide):
    def files(self) -> Sequence[Path]:
        return (Path("weights-that-moved.safetensors"),)


@caught_by("target")
class TargetWithoutABatch(SoundGuide):
    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        found = super().understand(given, size)
        return replace(found, value=found.value[0])


@caught_by("target")
class TargetForThreeImages(SoundGuide):
    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        found = super().understand(given, size)
        return replace(found, value=found.value.expand(3, -1, -1, -1))


@caught_by("target")
class TargetWithAGraph(SoundGuide):
    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        found = super().understand(given, size)
        return replace(found, value=found.value.clone().requires_grad_(True))


@caught_by("bad-target")
class TakesNonsense(SoundGuide):
    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        try:
            return super().understand(given, size)
        except TargetError:
            return Target(given.words, torch.zeros(1, 2, *size))


@caught_by("bad-target")
class TakesAnyWord(SoundGuide):
    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        if " " in given.words and "/" not in given.words:
            return Target(given.words, torch.zeros(1, 2, *size))
        return super().understand(given, size)


@caught_by("bad-target")
class AnotherError(SoundGuide):
    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        try:
            return super().understand(given, size)
        except TargetError as error:
            raise ValueError(error.message) from None


@caught_by("bad-target")
class NoRemedy(SoundGuide):
    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        try:
            return super().understand(given, size)
        except TargetError:
            raise TargetError("Something is wrong.") from None


@caught_by("pictures")
class OnePictureForAll(SoundGuide):
    def picture(self, output: Tensor) -> list[Image.Image]:
        return super().picture(output)[:1]


@caught_by("pictures")
class PicturesNeedNoGraph(SoundGuide):
    def picture(self, output: Tensor) -> list[Image.Image]:
        return [Image.fromarray(row[0].numpy()) for row in output]


@caught_by("measures")
class OneMeasureForAll(SoundGuide):
    def measure(self, output: Tensor, target: Tensor) -> dict[str, list[float]]:
        return {"rmse": [float(self.loss(output, target).mean())]}


@caught_by("measures")
class MeasuresAreTensors(SoundGuide):
    def measure(self, output: Tensor, target: Tensor) -> Any:
        return {"rmse": list(self.loss(output, target).sqrt())}


@caught_by("measures")
class MeasuresAreInfinite(SoundGuide):
    def measure(self, output: Tensor, target: Tensor) -> dict[str, list[float]]:
        return {"psnr": [math.inf for _ in output]}


@caught_by("gradient-flows")
class DetachedPreparation(SoundGuide):
    def prepare(self, x: Tensor) -> Tensor:
        return super().prepare(x.detach())


@caught_by("gradient-flows")
class SeesWithoutGradient(SoundGuide):
    @torch.no_grad()
    def see(self, x: Tensor, level: NoiseLevel | None = None) -> Tensor:
        return super().see(x, level)


@caught_by("gradient-flows")
class RoundsToEightBits(SoundGuide):
    def prepare(self, x: Tensor) -> Tensor:
        return ((x + 1) * 127.5).round() / 255


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


@caught_by("gradient-right")
class GradientOfWrongSign(SoundGuide):
    def prepare(self, x: Tensor) -> Tensor:
        reversed_: Tensor = _Reversed.apply(x)
        return super().prepare(reversed_)


@caught_by("gradient-right")
class PartOfTheGradientIsMissing(SoundGuide):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        spread = output.std(dim=(1, 2, 3), keepdim=True)
        return super().loss(output / spread.detach(), target / target.std())


@caught_by("gradient-right")
class StraightThroughRounding(SoundGuide):
    def prepare(self, x: Tensor) -> Tensor:
        return super().prepare(x + (x.round() - x).detach())


@caught_by("gradient-finite")
class RootOfNothing(SoundGuide):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return super().loss(output, target).sqrt()


@caught_by("gradient-finite")
class DividesByContrast(SoundGuide):
    def prepare(self, x: Tensor) -> Tensor:
        return x / x.std(dim=(1, 2, 3), keepdim=True)


@caught_by("own-output")
class LossOfWrongSign(SoundGuide):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return -super().loss(output, target)


@caught_by("own-output")
class LossWantsSomethingElse(SoundGuide):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return super().loss(output, 1.5 * target)


@caught_by("distance")
class DistanceToItself(SoundGuide):
    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return super().distance(student, teacher) + 0.1


@caught_by("distance")
class NoDistanceAtAll(SoundGuide):
    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return 0 * super().distance(student, teacher)


@caught_by("distance")
class OneDistanceForAll(SoundGuide):
    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return super().distance(student, teacher).mean()


@caught_by("distance-gradient")
class DistanceOfDetachedOutputs(SoundGuide):
    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return super().distance(student.detach(), teacher)


@caught_by("distance-gradient")
class DistanceIsARoot(SoundGuide):
    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return super().distance(student, teacher).sqrt()


@caught_by("pixel-average")
class AverageUntold(SoundGuide):
    averages_pixels = False


@caught_by("pixel-average")
class SumCalledAverage(SoundGuide):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().sum(dim=(1, 2, 3))


class _Doubled(Wrapped):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return 2 * super().loss(output, target)


@caught_by("temperatures")
class TemperedAtOneIsAnother(SoundGuide):
    def tempered(self, joint: float, marginal: float) -> Guide:
        return _Doubled(self)


@caught_by("operator")
class WrongAdjoint(SoundMeasurement):
    class _Wrong(Boxes):
        def adjoint(self, y: Tensor) -> Tensor:
            return F.interpolate(y, scale_factor=2)

        def pseudo_inverse(self, y: Tensor, ratio: float = 0.0) -> Tensor:
            return self.adjoint(y)

    def operator(self, target: Tensor) -> LinearOperator:
        return self._Wrong()


@caught_by("operator")
class WrongInverse(SoundMeasurement):
    class _Wrong(Boxes):
        def pseudo_inverse(self, y: Tensor, ratio: float = 0.0) -> Tensor:
            return self.adjoint(y)

    def operator(self, target: Tensor) -> LinearOperator:
        return self._Wrong()


@caught_by("sees-through")
class SeesMoreThanThrough(SoundGuide):
    def see(self, x: Tensor, level: NoiseLevel | None = None) -> Tensor:
        return super().see(x, level).tanh()


@caught_by("sees-through")
class IgnoresTheNetworkItIsGiven(SoundGuide):
    def through(self, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return super().through(self._network, x)


@caught_by("patch-plan")
class PlanNamesWhatIsMissing(SoundGuide):
    def patch_plan(self, network: nn.Module) -> PatchPlan:
        return PatchPlan(2, ("encoder.weight",), ())


@caught_by("patch-plan")
class PlanNamesNothing(SoundGuide):
    def patch_plan(self, network: nn.Module) -> PatchPlan:
        return PatchPlan(2, (), ())


class _Cached(nn.Module):
    """Holds a copy of its weight that no patch reaches."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.weight = nn.Parameter(0.3 * torch.randn(2, 3, 3, 3, generator=generator))
        self._copies = [self.weight.detach().clone()]

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self._copies[0].to(x), padding=1)


@caught_by("patches")
class WeightsAreCached(SoundGuide):
    def __init__(self) -> None:
        self._network: Any = _Cached().eval()


@caught_by("patches")
class PatchesAreDropped(SoundGuide):
    def through(self, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        seen = super().through(network, x)
        return seen + (super().through(self._network, x) - seen).detach()


@caught_by("tuning")
class DistanceLeadsAway(SoundGuide):
    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        reversed_: Tensor = _Reversed.apply(student)
        return super().distance(reversed_, teacher)


@caught_by("guided-run")
class ScaleFarTooSmall(SoundGuide):
    default_scale: Mapping[str, float] = {"": 1e-12}


@caught_by("guided-run")
class MeasuresSomethingElse(SoundGuide):
    def measure(self, output: Tensor, target: Tensor) -> dict[str, list[float]]:
        first = (output - target).square().mean(dim=(1, 2, 3)) > 1e-6
        return {"missed": first.double().tolist()}


@caught_by("batch")
class OneTargetForAll(SoundGuide):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return super().loss(output, target[:1])


@caught_by("batch")
class MeasuresByOneTarget(SoundGuide):
    def measure(self, output: Tensor, target: Tensor) -> dict[str, list[float]]:
        return super().measure(output, target[:1])


@caught_by("made")
class LooksAtAnotherWord(SoundGuide):
    looks_at = "image"


# Backbones


class SoundBackbone(GaussianWorld):
    """Three classes of smooth images, each of another mean; its state is half the image."""

    name = "sound"
    class_count = 3

    def __init__(self) -> None:
        super().__init__((8, 8), spread=0.3)
        self.dtype = torch.float32

    def encode_classes(self, labels: Sequence[int | None]) -> Condition:
        for label in labels:
            if label is not None and not 0 <= label < 3:
                raise OptionError(f"There is no class {label}.", remedy="Give 0, 1 or 2.")
        means = [-0.6 if label is None else 0.3 * label - 0.3 for label in labels]
        return {"mean": torch.tensor(means)}

    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:
        mean = condition["mean"].view(-1, 1, 1, 1).to(x)
        inner = x - level.alpha * mean
        return super().predict(inner, level, {})

    def decode(self, x0: Tensor) -> Tensor:
        return 2 * x0

    def to(self, device: torch.device, dtype: torch.dtype) -> Backbone:
        self.dtype = dtype
        return self


@caught_by("made")
class ShapeInWords(SoundBackbone):
    state_shape = "3 x 64 x 64"  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.state_shape = type(self).state_shape


@caught_by("made")
class SampledByNothing(SoundBackbone):
    default_sampler = "dimm"


@caught_by("images")
class DeviatesFromItsWord(SoundBackbone):
    deviation = 50.0  # type: ignore[assignment]


@caught_by("levels")
class OneLevelForAll(SoundBackbone):
    def level_at(self, s: float) -> NoiseLevel:
        return self.levels()[len(self.levels()) // 2]


@caught_by("images")
class FlatState(SoundBackbone):
    def __init__(self) -> None:
        super().__init__()
        self.state_shape = (8, 8)  # type: ignore[assignment]


@caught_by("levels")
class LevelsNoisyFirst(SoundBackbone):
    def levels(self) -> tuple[NoiseLevel, ...]:
        return super().levels()[::-1]


@caught_by("levels")
class FarFromTheLevelAskedFor(SoundBackbone):
    def level_at(self, s: float) -> NoiseLevel:
        return self.levels()[0]


@caught_by("walk")
class WalkNotMonotone(SoundBackbone):
    def walk(self, steps: int | str) -> Walk:
        levels = list(super().walk(steps).levels)
        levels[0], levels[1] = levels[1], levels[0]
        return Walk(tuple(levels))


@caught_by("walk")
class WalkEndsInNoise(SoundBackbone):
    def walk(self, steps: int | str) -> Walk:
        levels = super().walk(steps).levels
        return Walk((*levels[:-1], replace(levels[-1], sigma=0.01)))


@caught_by("walk")
class WalkOfOtherLength(SoundBackbone):
    def walk(self, steps: int | str) -> Walk:
        return Walk(super().walk(steps).levels[1:])


@caught_by("bad-steps")
class StepsOfAnyKind(SoundBackbone):
    def walk(self, steps: int | str) -> Walk:
        try:
            return super().walk(steps)
        except OptionError:
            return super().walk(10)


@caught_by("bad-steps")
class BadStepsAreAnotherError(SoundBackbone):
    def walk(self, steps: int | str) -> Walk:
        return super().walk(int(steps))


@caught_by("prediction")
class VarianceOfWrongShape(SoundBackbone):
    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:
        eps = super().predict(x, level, condition).eps
        return Prediction(eps, torch.zeros_like(eps[:, :1]))


@caught_by("denoises")
class PredictsTheImage(SoundBackbone):
    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:
        eps = super().predict(x, level, condition).eps
        return Prediction((x - level.sigma * eps) / level.alpha)


@caught_by("denoises")
class PredictsTheVelocity(SoundBackbone):
    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:
        eps = super().predict(x, level, condition).eps
        x0 = (x - level.sigma * eps) / level.alpha
        return Prediction(level.alpha * eps - level.sigma * x0)


@caught_by("denoises")
class NoiseOfWrongSign(SoundBackbone):
    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:
        return Prediction(-super().predict(x, level, condition).eps)


@caught_by("differentiable")
class PredictsWithoutGradient(SoundBackbone):
    @torch.no_grad()
    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:
        return super().predict(x, level, condition)


@caught_by("function")
class WritesIntoTheState(SoundBackbone):
    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:
        with torch.no_grad():
            x.clamp_(-1, 1)
        return super().predict(x, level, condition)


@caught_by("function")
class DrawsWhilePredicting(SoundBackbone):
    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:
        eps = super().predict(x, level, condition).eps
        return Prediction(eps + 0.01 * torch.randn_like(eps))


@caught_by("batch")
class PredictionDependsOnTheBatch(SoundBackbone):
    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:
        eps = super().predict(x, level, condition).eps
        return Prediction(eps + 0.1 * eps.mean(dim=0, keepdim=True))


@caught_by("images")
class ImagesDependOnTheBatch(SoundBackbone):
    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:
        eps = super().predict(x, level, condition).eps
        return Prediction(eps * (1 + 0.05 * len(x)))


@caught_by("condition")
class ConditionIgnored(SoundBackbone):
    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:
        return super().predict(x, level, {"mean": torch.zeros(len(x))})


@caught_by("condition")
class UnconditionalOfOtherShape(SoundBackbone):
    def encode_classes(self, labels: Sequence[int | None]) -> Condition:
        found = dict(super().encode_classes(labels))
        if None in labels:
            found["mean"] = found["mean"][:, None]
        return found


@caught_by("condition")
class FirstConditionForAll(SoundBackbone):
    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:
        return super().predict(x, level, {"mean": condition["mean"][:1].expand(len(x))})


@caught_by("bad-condition")
class AnyClassWillDo(SoundBackbone):
    def encode_classes(self, labels: Sequence[int | None]) -> Condition:
        return super().encode_classes([None if k is None else k % 3 for k in labels])


@caught_by("bad-condition")
class BadClassIsAnotherError(SoundBackbone):
    def encode_classes(self, labels: Sequence[int | None]) -> Condition:
        means = [-0.6 if k is None else (-0.3, 0.0, 0.3)[k if k >= 0 else 9] for k in labels]
        return {"mean": torch.tensor(means)}


@caught_by("decoding")
class DecodesWithoutGradient(SoundBackbone):
    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        return super().decode(x0)


@caught_by("decoding")
class DecodesToOtherPixels(SoundBackbone):
    def decode(self, x0: Tensor) -> Tensor:
        return F.interpolate(x0, scale_factor=2)


@caught_by("decoding")
class DecodesToBytes(SoundBackbone):
    def decode(self, x0: Tensor) -> Tensor:
        return (x0 + 1) * 127.5


@caught_by("half-precision")
class PredictionStaysInHalf(SoundBackbone):
    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:
        return Prediction(super().predict(x, level, condition).eps.to(self.dtype))


@caught_by("files")
class NamesACheckpointThatIsNot(SoundBackbone):
    def files(self) -> Sequence[Path]:
        return (Path("checkpoint-that-moved.pt"),)


# Recipes

SOUND_RECIPE = Recipe(
    name="sound",
    view=Predicted(),
    place=CleanPoint(),
    strength=PosteriorSpread(factor=0.25),
    gradient=(RootSize(),),
    limit=2.0,
    parameters=(Parameter("power", ("strength.power",), 0.0, 2.0),),
)


@dataclass(frozen=True)
class Fading(CleanPoint):
    """Moves x_0 towards grey by itself."""

    def __call__(self, estimate: Estimate, gradient: Tensor, ancestral: bool) -> Estimate:
        estimate = replace(estimate, x0=0.98 * estimate.x0)
        return super().__call__(estimate, gradient, ancestral)


@dataclass(frozen=True)
class Away(CleanPoint):
    """Moves x_0 against the gradient."""

    def __call__(self, estimate: Estimate, gradient: Tensor, ancestral: bool) -> Estimate:
        return super().__call__(estimate, -gradient, ancestral)


@dataclass(frozen=True)
class OverTheBatch:
    """Divides by the mean length of the batch's gradients."""

    def __call__(self, gradient: Tensor, estimate: Estimate) -> Tensor:
        return gradient / gradient.square().mean().sqrt().clamp_min(1e-12)


@dataclass(frozen=True)
class Mixed:
    """Adds a little of the next image's gradient."""

    def __call__(self, gradient: Tensor, estimate: Estimate) -> Tensor:
        return gradient + 0.3 * gradient.roll(1, 0)


@dataclass(frozen=True)
class Drawn:
    """Adds noise from the global generator."""

    def __call__(self, gradient: Tensor, estimate: Estimate) -> Tensor:
        return gradient * (1 + 0.1 * torch.randn_like(gradient))


@dataclass(frozen=True)
class KeptForever:
    """Momentum that outlives the run."""

    kept: ClassVar[dict[str, Tensor]] = {}

    def __call__(self, gradient: Tensor, estimate: Estimate) -> Tensor:
        before = self.kept.get("momentum", torch.zeros(1))
        if before.shape != gradient.shape:
            before = torch.zeros_like(gradient)
        self.kept["momentum"] = 0.9 * before + gradient
        return self.kept["momentum"]


@dataclass(frozen=True)
class Amplified(CleanPoint):
    """Leaves every limit behind."""

    def __call__(self, estimate: Estimate, gradient: Tensor, ancestral: bool) -> Estimate:
        return super().__call__(estimate, 1e6 * gradient, ancestral)


@dataclass
class Unhashable:
    """A part that no run can keep by its value."""

    def __call__(self, gradient: Tensor, estimate: Estimate) -> Tensor:
        return gradient


def _with(**parts: Any) -> Recipe:
    """The sound recipe with parts that its constructor would not take in a test."""
    recipe = replace(SOUND_RECIPE)
    for name, part in parts.items():
        object.__setattr__(recipe, name, part)
    return recipe


def _recipe_fault(name: str, check: str, recipe: Any) -> None:
    RECIPES.append((name, check, recipe))


_recipe_fault("a word in place of a recipe", "made", "x0")
_recipe_fault("a number for a part", "made", _with(strength=1.0))
_recipe_fault(
    "a part that cannot be hashed", "made", replace(SOUND_RECIPE, gradient=(Unhashable(),))
)
_recipe_fault(
    "a path astray",
    "parameters",
    replace(SOUND_RECIPE, parameters=(Parameter("width", ("gradient.1.width",), 0.0, 2.0),)),
)
_recipe_fault(
    "a value out of its bounds",
    "parameters",
    replace(SOUND_RECIPE, parameters=(Parameter("power", ("strength.power",), 2.0, 3.0),)),
)
_recipe_fault(
    "a word that is no choice",
    "parameters",
    replace(
        SOUND_RECIPE, parameters=(Parameter("power", ("strength.power",), choices=("up", "down")),)
    ),
)
_recipe_fault("acts without a gradient", "no-gradient", replace(SOUND_RECIPE, place=Fading()))
_recipe_fault("leads away", "pulls", replace(SOUND_RECIPE, place=Away()))
_recipe_fault("no limit", "bounded", replace(SOUND_RECIPE, limit=math.inf))
_recipe_fault("more than the limit", "bounded", replace(SOUND_RECIPE, place=Amplified()))
_recipe_fault("divides by the batch", "batch", replace(SOUND_RECIPE, gradient=(OverTheBatch(),)))
_recipe_fault("mixes images", "batch", replace(SOUND_RECIPE, gradient=(RootSize(), Mixed())))
_recipe_fault("draws globally", "function", replace(SOUND_RECIPE, gradient=(RootSize(), Drawn())))
_recipe_fault("remembers", "function", replace(SOUND_RECIPE, gradient=(KeptForever(), RootSize())))


@dataclass(frozen=True)
class OfImagesAlone:
    """Takes three dimensions for granted."""

    def __call__(self, gradient: Tensor, estimate: Estimate) -> Tensor:
        return gradient / gradient.square().mean(dim=(1, 2, 3), keepdim=True).sqrt().clamp_min(1e-9)


_recipe_fault(
    "images alone", "any-state", replace(SOUND_RECIPE, gradient=(OfImagesAlone(), RootSize()))
)
_recipe_fault("spreads NaN", "broken-guide", replace(SOUND_RECIPE, gradient=(OverTheBatch(),)))


@dataclass(frozen=True)
class InPlace(CleanPoint):
    """Writes into the prediction that it is given."""

    def __call__(self, estimate: Estimate, gradient: Tensor, ancestral: bool) -> Estimate:
        estimate.x0.add_(gradient)
        return super().__call__(estimate, torch.zeros_like(gradient), ancestral)


@dataclass(frozen=True)
class Summed(Point):
    """One number for all images."""

    def __call__(self, question: Question, state: Tensor) -> Tensor:
        return question.loss(state).sum()


@dataclass(frozen=True)
class TurnsBack:
    """Points away from the target in the end."""

    def __call__(self, estimate: Estimate) -> float:
        return 1.0 if estimate.on_walk().index < 4 else -0.3


class Rivals(Selection):
    """Lets images compete with each other."""

    size = 4

    def active(self, i: int, steps: int) -> bool:
        return i % 3 == 2

    def __call__(
        self, rewards: Tensor, before: Any, i: int, steps: int, uniforms: Tensor, **told: Tensor
    ) -> Selected:
        return Selected((rewards.flatten().argmax() % 4).expand(len(rewards), 4))


class TheWorst(Rivals):
    """Ends with the worst particle."""

    def final(self, rewards: Tensor, before: Any, uniforms: Tensor) -> Tensor:
        return rewards.argmin(dim=1)


class Dice(Rivals):
    """Draws from the global generator."""

    def final(self, rewards: Tensor, before: Any, uniforms: Tensor) -> Tensor:
        return torch.randint(4, (len(rewards),))


@dataclass(frozen=True)
class FromNowhere:
    """A blend that leads away from what was asked for."""

    def __call__(self, estimate: Estimate) -> Tensor:
        assert estimate.conditional is not None and estimate.unconditional is not None
        return 3 * estimate.unconditional - 2 * estimate.conditional


def _choosing(selection: Selection) -> Recipe:
    return Recipe("choosing", view=Predicted(), selection=selection)


_recipe_fault("writes into a prediction", "function", replace(SOUND_RECIPE, place=InPlace()))
_recipe_fault("one energy for all", "made", replace(SOUND_RECIPE, energy=Summed()))
_recipe_fault("a strength below zero", "made", replace(SOUND_RECIPE, strength=TurnsBack()))
_recipe_fault("images compete", "batch", _choosing(Rivals()))
_recipe_fault("the worst particle", "pulls", _choosing(TheWorst()))
_recipe_fault("global dice", "function", _choosing(Dice()))
_recipe_fault("a blend astray", "zero-strength", Recipe("astray", blend=FromNowhere()))
_recipe_fault("a number for a blend", "made", _with(blend=1.0))
