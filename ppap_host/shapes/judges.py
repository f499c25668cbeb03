"""Judges of the built-in world: networks that measure results and never guide or teach.

Guidance can please the network it comes from without making a better picture, so a result is
measured by networks that took no part in making it. Each judge differs from the guide of its kind
in architecture, training scenes and seed, and has seen mild blur, noise and colour shifts, so that
it reads the slightly imperfect pictures of a diffusion model as it reads renders.

The networks are plain torch, so the host needs no vision library to measure itself.
:mod:`ppap_host.shapes.train_judges` made their weights; ``weights/judges.json`` says how good they
are.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from ppap_host.files.errors import CheckpointError
from ppap_host.shapes.scenes import CLASS_NAMES, SEGMENTS

__all__ = ["FEATURES", "NETWORKS", "WEIGHTS", "ClassJudge", "DepthJudge", "Judges", "SegmentJudge"]

WEIGHTS = Path(__file__).parent / "weights"
"""Where the shipped weights lie."""

FEATURES = 128
"""Length of the classifier's pooled feature vector."""


def _conv(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(
            inputs, outputs, 3, stride=stride, padding=dilation, dilation=dilation, bias=False
        ),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class _ConvNeXtBlock(nn.Module):
    """Depthwise convolution, then a pointwise network (Liu et al., 2022, figure 4).

    Batch instead of layer normalisation: at this size it learns several times faster.
    """

    def __init__(self, width: int, expansion: int = 3) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(width, width, 5, padding=2, groups=width, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.expand = nn.Conv2d(width, expansion * width, 1)
        self.contract = nn.Conv2d(expansion * width, width, 1)
        self.scale = nn.Parameter(torch.full((width, 1, 1), 0.2))

    def forward(self, x: Tensor) -> Tensor:
        inner = nn.functional.gelu(self.expand(self.norm(self.spatial(x))))
        out: Tensor = x + self.scale * self.contract(inner)
        return out


class ClassJudge(nn.Module):
    """A small ConvNeXt: what the main solid is."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, 24, stride=2), _conv(24, 64, stride=2))
        self.fine = nn.Sequential(_ConvNeXtBlock(64), _ConvNeXtBlock(64))
        self.down = nn.Sequential(
            nn.BatchNorm2d(64), nn.Conv2d(64, FEATURES, 2, stride=2, bias=False)
        )
        self.coarse = nn.Sequential(
            *(_ConvNeXtBlock(FEATURES) for _ in range(3)), nn.BatchNorm2d(FEATURES), nn.GELU()
        )
        self.head = nn.Linear(FEATURES, len(CLASS_NAMES))

    def maps(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 128 h/8 w/8"]:
        """Features before pooling, of images in [-1, 1]."""
        maps: Tensor = self.coarse(self.down(self.fine(self.stem(x))))
        return maps

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 24"]:
        """Logits of ``CLASS_NAMES``."""
        logits: Tensor = self.head(self.maps(x).mean(dim=(2, 3)))
        return logits


def _twice(x: Tensor) -> Tensor:
    return nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class DepthJudge(nn.Module):
    """A convolutional U-Net (Ronneberger et al., 2015) on 2 x 2 patches: log of metric depth."""

    def __init__(self) -> None:
        super().__init__()
        self.level1 = nn.Sequential(_conv(12, 32), _conv(32, 32))  # 32 x 32
        self.level2 = nn.Sequential(_conv(32, 56, stride=2), _conv(56, 56))  # 16 x 16
        self.level3 = nn.Sequential(_conv(56, 88, stride=2), _conv(88, 88))  # 8 x 8
        self.level4 = nn.Sequential(_conv(88, 112, stride=2), _conv(112, 88))  # 4 x 4
        self.up3 = _conv(88 + 88, 56)
        self.up2 = _conv(56 + 56, 32)
        self.up1 = _conv(32 + 32, 32)
        self.out = nn.Conv2d(32, 4, 3, padding=1)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
        """Natural logarithm of the depth in metres."""
        one = self.level1(nn.functional.pixel_unshuffle(x, 2))
        two = self.level2(one)
        three = self.level3(two)
        y = self.level4(three)
        y = self.up3(torch.cat([_twice(y), three], dim=1))
        y = self.up2(torch.cat([_twice(y), two], dim=1))
        y = self.up1(torch.cat([_twice(y), one], dim=1))
        # The offset is the logarithm of a usual distance, so that training starts near the answer.
        return nn.functional.pixel_shuffle(self.out(y), 2) + 1.25


class _DilatedBlock(nn.Module):
    """Two dilated convolutions with a residual connection (Yu et al., 2017)."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.first = _conv(width, width, dilation=dilation)
        self.second = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(self.first(x)))


class SegmentJudge(nn.Module):
    """A dilated fully convolutional network (Long et al., 2015; Yu et al., 2017).

    Scores of three resolutions are added, as in FCN; borders are settled at full resolution, where
    the colours themselves show them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(_conv(12, 24), _conv(24, 32))  # 32 x 32
        self.middle = nn.Sequential(_conv(32, 56, stride=2), _conv(56, 56))  # 16 x 16
        self.coarse = nn.Sequential(
            _conv(56, 112, stride=2), _DilatedBlock(112, 1), _DilatedBlock(112, 2)
        )  # 8 x 8
        self.to_middle = nn.Conv2d(112, 56, 1)
        self.join_middle = _conv(56, 56)
        self.to_fine = nn.Conv2d(56, 32, 1)
        self.join_fine = _conv(32, 32)
        self.unfold = nn.Conv2d(32, 4 * 12, 1)
        self.border = _conv(12 + 3, 16)
        self.out = nn.Conv2d(16, len(SEGMENTS), 3, padding=1)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 6 h w"]:
        """Logits of ``SEGMENTS``."""
        fine = self.fine(nn.functional.pixel_unshuffle(x, 2))
        middle = self.middle(fine)
        coarse = self.to_middle(self.coarse(middle))
        middle = self.join_middle(middle + _twice(coarse))
        fine = self.join_fine(fine + _twice(self.to_fine(middle)))
        y = nn.functional.pixel_shuffle(self.unfold(fine), 2)
        logits: Tensor = self.out(self.border(torch.cat([y, x], dim=1)))
        return logits


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "classifier": ClassJudge,
    "depth": DepthJudge,
    "segmenter": SegmentJudge,
}
"""The untrained network of each judge, by the name its file carries."""


def aligned(depth: Tensor, truth: Tensor) -> Tensor:
    """``depth`` [b, 1, h, w] scaled and shifted to ``truth`` by least squares, per image.

    The scale is not negative: a map with near and far exchanged fits as badly as a constant one.
    """
    d = depth - depth.mean(dim=(1, 2, 3), keepdim=True)
    centre = truth.mean(dim=(1, 2, 3), keepdim=True)
    covariance = (d * (truth - centre)).mean(dim=(1, 2, 3), keepdim=True)
    variance = d.square().mean(dim=(1, 2, 3), keepdim=True)
    return covariance.clamp_min(0) / variance.clamp_min(1e-12) * d + centre


def weights_file(name: str, folder: Path = WEIGHTS) -> Path:
    """Where the weights of the judge ``name`` lie in ``folder``."""
    return folder / f"judge-{name}.safetensors"


def load_judge(name: str, folder: Path, device: torch.device | str) -> nn.Module:
    path = weights_file(name, folder)
    network = NETWORKS[name]()
    try:
        tensors = load_file(path)
        network.load_state_dict(tensors)
    except FileNotFoundError:
        raise CheckpointError(
            f"The judge's weights {path} are missing.",
            remedy="Reinstall ppap-host, or run `python -m ppap_host.shapes.train_judges`.",
        ) from None
    except Exception as error:
        # safetensors has its own exception class, torch raises RuntimeError on misfits.
        raise CheckpointError(
            f"The judge's weights {path} are damaged or of another version: {error}",
            remedy="Reinstall ppap-host.",
        ) from error
    return network.to(device).eval().requires_grad_(False)


class Judges:
    """The three judges of the ``shapes`` world.

    All methods take RGB images in [-1, 1], float32, [b, 3, 64, 64], on any device, and return
    float32 tensors on the judges' device, without gradients: a judge must not guide.
    """

    def __init__(
        self,
        classifier: ClassJudge,
        depth: DepthJudge,
        segmenter: SegmentJudge,
        files: list[Path] | None = None,
    ) -> None:
        self._classifier, self._depth, self._segmenter = classifier, depth, segmenter
        self._files = list(files or [])
        self._device = next(classifier.parameters()).device

    @classmethod
    def load(cls, device: torch.device | str = "cpu", folder: Path = WEIGHTS) -> Judges:
        """The trained judges.

        Args:
            device: where they work.
            folder: where their weights lie; the shipped ones by default.

        Raises:
            CheckpointError: a weight file is missing or damaged.
        """
        classifier, depth, segmenter = (load_judge(name, folder, device) for name in NETWORKS)
        assert isinstance(classifier, ClassJudge)
        assert isinstance(depth, DepthJudge)
        assert isinstance(segmenter, SegmentJudge)
        return cls(classifier, depth, segmenter, [weights_file(name, folder) for name in NETWORKS])

    @torch.no_grad()
    def classify(self, images: Float[Tensor, "b 3 64 64"]) -> Float[Tensor, "b 24"]:
        """Logits of the main solid's class, in the order of ``CLASS_NAMES``."""
        logits: Tensor = self._classifier(self._own(images))
        return logits

    @torch.no_grad()
    def features(self, images: Float[Tensor, "b 3 64 64"]) -> Float[Tensor, "b 128"]:
        """Pooled features of the classifier, for a Frechet distance (Heusel et al., 2017, eq. 6).

        Distances are comparable among themselves only, not with an Inception network's FID.
        """
        return self._classifier.maps(self._own(images)).mean(dim=(2, 3))

    @torch.no_grad()
    def depth(self, images: Float[Tensor, "b 3 64 64"]) -> Float[Tensor, "b 1 64 64"]:
        """Depth along the view axis in metres, as far as a picture tells them.

        The world leaves its absolute scale and the lens's width to chance, and no picture shows
        them; compare depth maps after alignment of scale and shift.
        """
        log_depth: Tensor = self._depth(self._own(images))
        return log_depth.exp()

    @torch.no_grad()
    def segment(self, images: Float[Tensor, "b 3 64 64"]) -> Float[Tensor, "b 6 64 64"]:
        """Logits of each pixel's class, in the order of ``SEGMENTS``."""
        logits: Tensor = self._segmenter(self._own(images))
        return logits

    def files(self) -> list[Path]:
        """The weight files, for a run's record."""
        return list(self._files)

    def _own(self, images: Tensor) -> Tensor:
        return images.to(self._device, torch.float32)
