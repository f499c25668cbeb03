"""What a benchmark takes place in: a backbone, targets with their truth, and judges."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL.Image import Image
from torch import Tensor

from ppap_host.backbones.backbone import Backbone
from ppap_host.files import images, writing
from ppap_host.files.images import to_pixels, to_unit
from ppap_host.guides.functions import FunctionGuide
from ppap_host.guides.guide import Guide
from ppap_host.plugins.loading import load_backbone, load_guide
from ppap_host.plugins.registry import registry
from ppap_host.shapes.judges import Judges, aligned
from ppap_host.shapes.renderer import Render, render
from ppap_host.shapes.scenes import CLASS_NAMES, COLORS, SEGMENTS, sample_scenes
from ppap_plugin_bench import geometry
from ppap_plugin_bench.benchmarks.arms import Assignment
from ppap_plugin_bench.benchmarks.tasks import REWARDS
from ppap_plugin_bench.evaluation import (
    Measure,
    bootstrap_measure,
    confusions,
    mean_iou,
    mean_measure,
    share_measure,
)
from ppap_plugin_bench.shapes import FRESH_SEED

VALIDATION_SEED = FRESH_SEED + 10
"""Seed of the scenes whose targets strengths are chosen on."""
REFERENCES = 512
"""Renders that images are compared with as a set. From one such set to another, the Fréchet
distance of the same 192 images changes by as much as one and a half."""


QUALITY = ("pure", "well_shaped", "solids", "straightness")
"""Of :data:`ppap_plugin_bench.geometry.SCORES`, what benchmarks tell."""


Judge = tuple[Callable[[Tensor], dict[str, Measure]], Callable[[Tensor], list[str]]]
"""Measures of images in [-1, 1], and a word on each image."""


def symmetry(x: Tensor) -> Tensor:
    """How much images [n, 3, h, w] are their own mirror images: minus their mean square distance.

    Nobody trained it, and the world is not made that way: a reward that is told in one line.
    """
    return -(x - x.flip(-1)).square().mean(dim=(1, 2, 3))


def class_targets(count: int) -> Tensor:
    """Class indices [count]: colours and shapes alternate, and every 24 images have all classes."""
    return (7 * torch.arange(count)) % len(CLASS_NAMES)


def recoloured(labels: Tensor) -> Tensor:
    """The same solids [count] in other colours: each shape comes in all colours but its own."""
    colour, count = labels % len(COLORS), torch.arange(len(labels))
    return labels - colour + (colour + 1 + count % (len(COLORS) - 1)) % len(COLORS)


class World(Protocol):
    """What a benchmark asks for; kinds of guides are ``classifier``, ``depth``, ``segmentation``.

    Attributes:
        backbone: makes the images.
        objectives: guide -> (title, the judged measure that matters, whether higher is better).
    """

    @property
    def backbone(self) -> Backbone:
        """The diffusion model."""

    @property
    def objectives(self) -> dict[str, tuple[str, str, bool]]:
        """Guide -> (title, the judged measure that matters, whether higher is better)."""

    def guide(self, name: str) -> Guide:
        """The off-the-shelf guide of this name."""

    def features(self, x: Tensor) -> Tensor:
        """A judge's features [n, d] of images in [-1, 1]."""

    def quality(self, images: Tensor) -> dict[str, Measure]:
        """How good images in [-1, 1] are in themselves, whatever was asked for; may be empty."""

    def real(self, seed: int, count: int) -> Tensor:
        """Real images of a seed, uint8 [n, 3, h, w]."""

    def labelled(self, guide: str, seed: int, count: int) -> tuple[Tensor, Tensor]:
        """Real images, uint8, with labels as :meth:`Guide.from_labels` takes them."""

    def assignment(
        self, guide: Guide, count: int, seed: int, folder: Path, *, validation: bool
    ) -> Assignment:
        """``count`` targets; the first of many targets are the targets of few.

        Args:
            seed: of the images' noise.
            folder: where target pictures are written.
            validation: targets to choose strengths on, not to measure on.
        """

    def agreeing(self, guide: Guide, count: int, seed: int) -> Assignment:
        """Classes that the depth targets do not contradict.

        Args:
            seed: of the images' noise.
        """

    def floors(self, guide: Guide, count: int) -> dict[str, Measure]:
        """The judge's measures of the test targets' own pictures."""

    def pictures(self, guide: Guide, count: int) -> list[tuple[str, list[tuple[str, Image]]]]:
        """Rows of a contact sheet that show the test targets."""


class ShapesWorld:
    """The built-in world, judged by :mod:`ppap_host.shapes.judges`.

    Class targets go through all classes in order. Targets of depth and segmentation are fresh
    renders, read by the guide from a file as a user would give it.
    """

    objectives = {  # noqa: RUF012
        "classifier": ("Class", "accuracy", True),
        "depth": ("Depth", "depth_error", False),
        "segmentation": ("Segmentation", "miou", True),
        "symmetry": ("Symmetry, a reward", "reward", True),
    }

    def __init__(self, checkpoint: str | None = None) -> None:
        self.backbone: Backbone = load_backbone(registry(), "shapes", checkpoint)
        self._renders: dict[tuple[int, int], Render] = {}

    @cached_property
    def judges(self) -> Judges:
        """The judges."""
        return Judges.load()

    def guide(self, name: str) -> Guide:
        """The installed guide with the model it ships, or a reward of the benchmark's own."""
        if name in REWARDS:
            return FunctionGuide(symmetry, name, rewards=True)
        return load_guide(registry(), name)

    def features(self, x: Tensor) -> Tensor:
        """The classifier judge's pooled features."""
        return torch.cat([self.judges.features(part) for part in x.split(64)])

    @cached_property
    def _reference(self) -> geometry.Reading:
        return geometry.read(self.real(FRESH_SEED + 1, REFERENCES), self.judges)

    def quality(self, images: Tensor) -> dict[str, Measure]:
        """Colour, form and number of solids, and the room's edge (:data:`QUALITY`)."""
        found = geometry.scores(geometry.read(to_pixels(images), self.judges), self._reference)
        return {name: found[name] for name in QUALITY}

    def real(self, seed: int, count: int) -> Tensor:
        """Renders."""
        return to_pixels(self._render(seed, count).rgb)

    def labelled(self, guide: str, seed: int, count: int) -> tuple[Tensor, Tensor]:
        """Renders with classes, depth in metres, or segment indices."""
        view = self._render(seed, count)
        labels = {
            "classifier": lambda: sample_scenes(seed, 0, count).labels,
            "depth": lambda: view.depth[:, 0],
            "segmentation": lambda: view.segmentation.long(),
        }
        return to_pixels(view.rgb), labels[guide]()

    def assignment(
        self, guide: Guide, count: int, seed: int, folder: Path, *, validation: bool
    ) -> Assignment:
        """As :meth:`World.assignment`."""
        scenes = VALIDATION_SEED if validation else FRESH_SEED
        size = self.backbone.image_size
        identity: dict[str, Any]
        if guide.name == "classifier":
            labels = class_targets(count)
            return self._classes(guide, labels, seed, {"classes": len(CLASS_NAMES)})
        if guide.name in REWARDS:
            targets, identity = torch.zeros(count, 0), {}
        else:
            pictures = images.from_tensor(to_unit(self.real(scenes, count)))
            files = [folder / f"{scenes}-{k:03d}.png" for k in range(count)]
            for file, picture in zip(files, pictures, strict=True):
                writing.write_png(file, picture)
            targets = torch.cat([guide.read_target(str(f), size).value for f in files])
            identity = {"renders": scenes}
        judge, captions = self.judge(guide.name, scenes, count)
        return Assignment(targets, seed, judge, identity, captions)

    def agreeing(self, guide: Guide, count: int, seed: int) -> Assignment:
        """The main solid of each test scene, in another colour."""
        labels = recoloured(sample_scenes(FRESH_SEED, 0, count).labels)
        return self._classes(guide, labels, seed, {"recoloured": FRESH_SEED})

    def _classes(
        self, guide: Guide, labels: Tensor, seed: int, identity: Mapping[str, Any]
    ) -> Assignment:
        rows = [guide.read_target(name, self.backbone.image_size).value for name in CLASS_NAMES]
        judge, captions = self.class_judge(labels)
        targets = torch.cat([rows[k] for k in labels.tolist()])
        return Assignment(targets, seed, judge, identity, captions)

    def floors(self, guide: Guide, count: int) -> dict[str, Measure]:
        """As :meth:`World.floors`; none for classes, whose targets have no picture."""
        if guide.name == "classifier":
            return {}
        judge, _ = self.judge(guide.name, FRESH_SEED, count)
        return judge(to_unit(self.real(FRESH_SEED, count)))

    def pictures(self, guide: Guide, count: int) -> list[tuple[str, list[tuple[str, Image]]]]:
        """The targets' pictures, and what the guide sees in them."""
        if guide.name == "classifier" or guide.name in REWARDS:
            return []
        shown = to_unit(self.real(FRESH_SEED, count))
        with torch.no_grad():
            seen = guide.picture(guide.see(shown))
        rows = (("target", images.from_tensor(shown)), ("what the guide sees in it", seen))
        return [(title, [("", picture) for picture in row]) for title, row in rows]

    def _render(self, seed: int, count: int) -> Render:
        """Scenes of a seed; rendered once, the first of many are those of few."""
        for (known_seed, known), view in self._renders.items():
            if known_seed == seed and known >= count:
                return Render(view.rgb[:count], view.depth[:count], view.segmentation[:count])
        view = render(sample_scenes(seed, 0, count))
        self._renders[seed, count] = view
        return view

    def judge(self, guide: str, scenes: int, count: int) -> Judge:
        """The judge of a kind of guide, and its word on each image."""
        if guide == "classifier":
            return self.class_judge(class_targets(count))
        if guide in REWARDS:
            return (
                lambda x: {"reward": mean_measure(symmetry(x))},
                lambda x: [f"{value:.2f}" for value in symmetry(x).tolist()],
            )
        if guide == "depth":
            return self._depth_judge(scenes, count)
        return self._segment_judge(scenes, count)

    def class_judge(self, labels: Tensor) -> Judge:
        """Whether images show these classes, [n]."""

        def seen(x: Tensor) -> Tensor:
            return self.judges.classify(x).argmax(dim=1).cpu()

        def words(x: Tensor) -> list[str]:
            pairs = zip(seen(x).tolist(), labels.tolist(), strict=True)
            return [
                CLASS_NAMES[wanted] if k == wanted else f"not {CLASS_NAMES[wanted]}"
                for k, wanted in pairs
            ]

        return lambda x: {"accuracy": share_measure(seen(x) == labels)}, words

    def _depth_judge(self, scenes: int, count: int) -> Judge:
        truth = self._render(scenes, count).depth
        of_target = self.judges.depth(to_unit(self.real(scenes, count))).cpu()

        def errors(x: Tensor, against: Tensor) -> Tensor:
            judged = self.judges.depth(x).cpu()
            relative = (aligned(judged, against) - against).abs() / against
            return relative.mean(dim=(1, 2, 3))

        def judge(x: Tensor) -> dict[str, Measure]:
            return {
                "depth_error": mean_measure(errors(x, truth)),
                "depth_error_to_judge": mean_measure(errors(x, of_target)),
            }

        return judge, lambda x: [f"error {e:.2f}" for e in errors(x, truth).tolist()]

    def _segment_judge(self, scenes: int, count: int) -> Judge:
        truth = self._render(scenes, count).segmentation.long()

        def matrices(x: Tensor) -> Tensor:
            return confusions(self.judges.segment(x).argmax(dim=1).cpu(), truth, len(SEGMENTS))

        def judge(x: Tensor) -> dict[str, Measure]:
            each = matrices(x)
            return {"miou": bootstrap_measure(lambda rows: mean_iou(each[rows].sum(0)), count)}

        return judge, lambda x: [f"IoU {mean_iou(m):.2f}" for m in matrices(x)]
