"""The built-in world with pictures to restore: clean renders, measured, and compared with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ppap_host.files.images import to_unit
from ppap_host.guides.guide import Guide
from ppap_host.plugins.loading import load_guide
from ppap_host.plugins.registry import registry
from ppap_host.shapes.scenes import CLASS_NAMES
from ppap_plugin_bench.benchmarks.arms import Assignment
from ppap_plugin_bench.benchmarks.world import Judge, ShapesWorld, class_targets
from ppap_plugin_bench.evaluation import Measure, mean_measure
from ppap_plugin_bench.shapes import FRESH_SEED

MODELS = {
    "super-resolution": "factor=4,measure=yes",
    "inpainting": "box=0.5,measure=yes",
}
"""What the guides of ppap-plugin-restore are told: they measure the clean render themselves."""

BEST_PSNR = 100.0
"""What equal images count as, in dB: JSON knows no infinity."""


def peak_signal_to_noise(x: Tensor, clean: Tensor) -> Tensor:
    """PSNR of each image in dB, [n], float64, at most :data:`BEST_PSNR`.

    Args:
        x, clean: RGB in [-1, 1], [n, 3, h, w].
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    pair = [(image.double().clamp(-1, 1) + 1) / 2 for image in (x, clean)]
    each: Tensor = peak_signal_noise_ratio(*pair, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return each.clamp(max=BEST_PSNR)


def structural_similarity(x: Tensor, clean: Tensor) -> Tensor:
    """SSIM of each image (Wang et al., 2004), [n], float64, at most 1.

    With the paper's Gaussian window of 11 pixels.

    Args:
        x, clean: RGB in [-1, 1], [n, 3, h, w], at least 11 pixels a side.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    pair = [(image.double().clamp(-1, 1) + 1) / 2 for image in (x, clean)]
    each: Tensor = structural_similarity_index_measure(*pair, data_range=1.0, reduction="none")
    return each.view(-1)


class RestoringWorld(ShapesWorld):
    """The built-in world for guides of classes, depth and segments, and for those that restore.

    A restoring guide is given the measurement of a fresh render: the mean of every four by four
    pixels, or all but a square in the middle of half the side. Judged is how close the result comes
    to the render (PSNR and SSIM), and how well it meets the measurement (``residual``, root mean
    square over what was measured, for images in [0, 1]).
    """

    objectives = {  # noqa: RUF012
        **ShapesWorld.objectives,
        "super-resolution": ("Super-resolution", "psnr", True),
        "inpainting": ("Inpainting", "psnr", True),
    }

    def __init__(self, checkpoint: str | None = None) -> None:
        super().__init__(checkpoint)
        self._guides: dict[str, Guide] = {}

    def guide(self, name: str) -> Guide:
        """The installed guide with the model it ships, or for the measurement of this world."""
        if name not in self._guides:
            installed = name in MODELS
            self._guides[name] = (
                load_guide(registry(), name, MODELS[name]) if installed else super().guide(name)
            )
        return self._guides[name]

    def assignment(
        self, guide: Guide, count: int, seed: int, folder: Path, *, validation: bool
    ) -> Assignment:
        """As :meth:`ShapesWorld.assignment`."""
        asked = super().assignment(guide, count, seed, folder, validation=validation)
        if guide.name not in MODELS:
            return asked
        return replace(asked, identity={**asked.identity, "model": MODELS[guide.name]})

    def floors(self, guide: Guide, count: int) -> dict[str, Measure]:
        """The measures of the targets' own pictures, or of the measurements' pseudo-inverses."""
        if guide.name not in MODELS:
            return super().floors(guide, count)
        judge, _ = self.judge(guide.name, FRESH_SEED, count)
        with torch.no_grad():
            y = guide.see(to_unit(self.real(FRESH_SEED, count)))
            operator = guide.operator(y)
            return {} if operator is None else judge(operator.pseudo_inverse(y).clamp(-1, 1))

    def wanted(self, guide: Guide, count: int) -> list[str]:
        """What each of the test targets asks for, in a word; empty where it is a picture."""
        if guide.name != "classifier":
            return [""] * count
        return [CLASS_NAMES[k] for k in class_targets(count).tolist()]

    def judge(self, guide: str, scenes: int, count: int) -> Judge:
        if guide not in MODELS:
            return super().judge(guide, scenes, count)
        clean, reader = to_unit(self.real(scenes, count)), self.guide(guide)
        with torch.no_grad():
            measured = reader.see(clean)

        def judge(x: Tensor) -> dict[str, Measure]:
            with torch.no_grad():
                residual = reader.measure(reader.see(x), measured)["rmse"]
            return {
                "psnr": mean_measure(peak_signal_to_noise(x, clean)),
                "ssim": mean_measure(structural_similarity(x, clean)),
                "residual": mean_measure(residual),
            }

        def words(x: Tensor) -> list[str]:
            return [f"{value:.1f} dB" for value in peak_signal_to_noise(x, clean).tolist()]

        return judge, words
