"""Judged measures of the built-in world: does the backbone follow prompts, does guidance work?

Judges never guided or taught anything (:mod:`ppap_host.shapes.judges`). Targets and references are
fresh renders, of seeds that no network was trained on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ppap_host.backbones.backbone import Backbone, ClassifierFree, Condition, Prediction
from ppap_host.backbones.noise import EVERYWHERE, NoiseLevel, NoiseRange
from ppap_host.files import images
from ppap_host.files.settings import Batch, Finite, Seed, Steps, settings
from ppap_host.sampling.evaluator import Guidance, Health
from ppap_host.sampling.loop import Event, sample
from ppap_host.sampling.reading import Denoiser
from ppap_host.sampling.solvers import Solver
from ppap_host.sampling.streams import ImageNoise
from ppap_host.shapes.judges import Judges
from ppap_host.shapes.renderer import render
from ppap_host.shapes.scenes import CLASS_NAMES, Scenes, sample_scenes
from ppap_plugin_bench import geometry
from ppap_plugin_bench.evaluation import Measure, frechet_distance, share_measure
from ppap_plugin_bench.spoils import SPOILS

FRESH_SEED = 1_000_003
"""Seed of the fresh renders that targets and references come from."""

Watch = Callable[[str, int, int], None]


@settings
class Settings:
    """How images are sampled for a measurement.

    Attributes:
        steps: a count or a spacing.
        cfg: classifier-free guidance scale of prompted images.
        cfg_interval: noise levels at which it holds.
        seed: of the noise.
        batch: images at a time.
        bfloat16: whether unguided and prompted images are made with the backbone in bfloat16
            autocast, where the measures are the same to within their errors in half the time.
    """

    steps: Steps = 50
    cfg: Finite = 2.0
    cfg_interval: NoiseRange = EVERYWHERE
    seed: Seed = 0
    batch: Batch = 16
    bfloat16: bool = False


class _Autocast:
    """A denoiser in bfloat16 autocast."""

    def __init__(self, denoise: Denoiser) -> None:
        self._denoise = denoise

    def __call__(self, x: Tensor, level: NoiseLevel) -> Prediction:
        with torch.autocast(x.device.type, torch.bfloat16):
            return self._denoise(x, level)


def _generate(
    backbone: Backbone,
    solver: Solver,
    settings: Settings,
    count: int,
    watch: Watch,
    *,
    condition: Callable[[slice], Condition] | None = None,
    guidance: Callable[[slice], Sequence[Guidance]] | None = None,
    what: str,
) -> Tensor:
    """``count`` images as they would be written (8 bits), RGB in [-1, 1], [n, 3, h, w]."""
    walk = solver.walk(backbone, settings.steps)
    empty = backbone.encode_prompts([""])
    done = []
    for first in range(0, count, settings.batch):
        rows = slice(first, min(first + settings.batch, count))
        size = rows.stop - rows.start

        def step(report: Event, first: int = first, size: int = size) -> None:
            watch(what, first * report.steps + (report.index + 1) * size, count * report.steps)

        denoise: Denoiser = ClassifierFree(
            backbone,
            condition(rows) if condition else empty,
            empty,
            settings.cfg if condition else 1.0,
            interval=settings.cfg_interval,
        )
        x = sample(
            backbone,
            _Autocast(denoise) if settings.bfloat16 and guidance is None else denoise,
            walk,
            solver,
            ImageNoise(settings.seed, range(rows.start, rows.stop), backbone.state_shape),
            guidance(rows) if guidance else (),
            watch=step,
            health=Health(),
        )
        with torch.no_grad():
            x = backbone.decode(x)
        done.append(torch.cat([images.to_tensor(p) for p in images.from_tensor(x)]))
    return torch.cat(done)


def prompt_accuracy(
    backbone: Backbone, solver: Solver, settings: Settings, per_class: int, watch: Watch
) -> dict[str, Any]:
    """Share of images of the prompts "a <colour> <shape>" that the judge puts in their class."""
    labels = torch.arange(len(CLASS_NAMES)).repeat(per_class)
    prompts = [f"a {CLASS_NAMES[k]}" for k in labels.tolist()]
    made = _generate(
        backbone,
        solver,
        settings,
        len(labels),
        watch,
        condition=lambda rows: backbone.encode_prompts(prompts[rows]),
        what="prompted images",
    )
    with torch.no_grad():
        right = Judges.load().classify(made).argmax(dim=1) == labels
    by_class = {
        CLASS_NAMES[k]: float(right[labels == k].float().mean()) for k in range(len(CLASS_NAMES))
    }
    return {
        "accuracy": float(right.float().mean()),
        "images": len(labels),
        "worst_class": min(by_class, key=by_class.__getitem__),
        "by_class": by_class,
    }


def frechet(
    backbone: Backbone, solver: Solver, settings: Settings, count: int, watch: Watch
) -> dict[str, Any]:
    """Frechet distance, in the judge's features, of captioned images to fresh renders.

    Heusel et al. (2017), eq. 6, with another network than Inception: comparable within this world
    only. ``between_renders`` is the distance of two sets of renders of the same size, the floor.
    """
    sets = [sample_scenes(FRESH_SEED + i, 0, count) for i in range(2)]
    captions = sets[0].captions()
    made = _generate(
        backbone,
        solver,
        settings,
        count,
        watch,
        condition=lambda rows: backbone.encode_prompts(captions[rows]),
        what="captioned images",
    )
    judges = Judges.load()
    renders = [_pixels(scenes) for scenes in sets]
    return {**_frechet(judges, images.to_pixels(made), *renders), "images": count}


def _pixels(scenes: Scenes) -> Tensor:
    """Renders of scenes as they would be written, uint8 [n, 3, 64, 64]."""
    return images.to_pixels(render(scenes).rgb)


def _frechet(judges: Judges, made: Tensor, renders: Tensor, reference: Tensor) -> dict[str, float]:
    """Frechet distances to ``reference`` of images and of other renders; all uint8."""

    def features(pixels: Tensor) -> Tensor:
        return torch.cat([judges.features(images.to_unit(part)) for part in pixels.split(256)])

    real = features(reference)
    return {
        "frechet": frechet_distance(real, features(made)),
        "between_renders": frechet_distance(real, features(renders)),
    }


# Geometry


def _beside(
    made: Mapping[str, Measure], renders: Mapping[str, Measure]
) -> dict[str, dict[str, float | None]]:
    """Measures of images and of renders, and the one as a share of the other."""

    def number(value: float | None) -> float | None:
        return None if value is None or math.isnan(value) else round(value, 4)

    return {
        name: {
            "made": number(found.value),
            "error": number(found.error),
            "renders": number(renders[name].value),
            "share_of_renders": number(found.value / renders[name].value)
            if renders[name].value
            else None,
        }
        for name, found in made.items()
    }


def _compared(judges: Judges, made: Tensor, renders: Tensor, reference: Tensor) -> dict[str, Any]:
    """Geometry and distance of images beside renders', both against a reference; all uint8."""
    of_made, of_renders, of_reference = (
        geometry.read(pixels, judges) for pixels in (made, renders, reference)
    )
    return {
        **_frechet(judges, made, renders, reference),
        "scores": _beside(
            geometry.scores(of_made, of_reference), geometry.scores(of_renders, of_reference)
        ),
        "nyquist": _beside(geometry.nyquist_ratio(of_made), geometry.nyquist_ratio(of_renders)),
    }


def unguided(
    backbone: Backbone, solver: Solver, settings: Settings, count: int, watch: Watch
) -> dict[str, Any]:
    """Geometry (:mod:`ppap_plugin_bench.geometry`) and Frechet distance of images of no prompt.

    Beside each measure stands that of ``count`` renders. Numbers of solids and features are
    compared with those of ``count`` renders of another seed, for images and renders alike.
    """
    made = _generate(backbone, solver, settings, count, watch, what="unguided images")
    watch("looking at unguided images", 0, 1)
    judges = Judges.load()
    renders = [_pixels(sample_scenes(FRESH_SEED + i, 0, count)) for i in range(2)]
    return {
        "images": count,
        **_compared(judges, images.to_pixels(made), *renders),
        "made": made,
    }


def scenes_of_two(seed: int, count: int) -> Scenes:
    """The first ``count`` scenes of a seed that have exactly two solids."""
    drawn = sample_scenes(seed, 0, 4 * count + 16)
    return drawn[(drawn.count == 2).nonzero()[:count, 0]]


def two_objects(
    backbone: Backbone, solver: Solver, settings: Settings, count: int, watch: Watch
) -> dict[str, Any]:
    """Share of images of two-object prompts that show both as they were asked for.

    The prompts are the captions of fresh scenes of two solids, such as "a red cube and a small blue
    sphere". Beside each share (:func:`ppap_plugin_bench.geometry.two_objects`) stands that of the
    renders of these scenes. Geometry and distance, too, are compared with renders of two solids.
    """
    scenes = [scenes_of_two(FRESH_SEED + i, count) for i in range(2)]
    captions = scenes[0].captions()
    made = _generate(
        backbone,
        solver,
        settings,
        count,
        watch,
        condition=lambda rows: backbone.encode_prompts(captions[rows]),
        what="images of two objects",
    )
    watch("looking at images of two objects", 0, 1)
    judges = Judges.load()
    pixels = images.to_pixels(made)
    renders = [_pixels(each) for each in scenes]
    hits = [
        geometry.two_objects(geometry.read(each, judges), scenes[0])
        for each in (pixels, renders[0])
    ]
    shares = [{name: share_measure(h) for name, h in found.items()} for found in hits]
    return {
        "images": count,
        "shares": _beside(*shares),
        **_compared(judges, pixels, *renders),
        "made": made,
        "captions": captions,
        "right": hits[0]["right"].tolist(),
    }


def spoiled(count: int, watch: Watch) -> dict[str, Any]:
    """What each measure says of renders that were spoiled in known ways.

    Returns:
        ``rows``: for :data:`~ppap_plugin_bench.spoils.SPOILS`, all measures of ``count`` renders.
    """
    judges = Judges.load()
    scenes = sample_scenes(FRESH_SEED, 0, count)
    reference = _pixels(sample_scenes(FRESH_SEED + 1, 0, count))
    of_reference = geometry.read(reference, judges)
    rows = []
    for done, spoil in enumerate(SPOILS):
        watch(f"renders, {spoil.name}", done, len(SPOILS))
        pixels = spoil.spoiled(scenes)
        reading = geometry.read(pixels, judges)
        two = (scenes.count == 2).nonzero()[:, 0]
        pairs = geometry.two_objects(reading[two], scenes[two])
        rows.append(
            {
                "name": spoil.name,
                "about": spoil.about,
                "scores": {
                    name: round(m.value, 4)
                    for name, m in geometry.scores(reading, of_reference).items()
                },
                "nyquist": {
                    name: round(m.value, 4) for name, m in geometry.nyquist_ratio(reading).items()
                },
                "two_objects": round(float(pairs["right"].double().mean()), 4),
                "frechet": round(_frechet(judges, pixels, pixels, reference)["frechet"], 3),
            }
        )
    return {"images": count, "of_two_objects": int((scenes.count == 2).sum()), "rows": rows}


def everything(
    backbone: Backbone, solver: Solver, settings: Settings, count: int, watch: Watch
) -> dict[str, Any]:
    """A backbone judged in one go: unguided, by prompts of one object and of two.

    Args:
        count: unguided images; there are 25 images of two objects for 64 of them, and 4 of each
            class for 512.
    """
    parts: dict[str, Callable[[], object]] = {
        "unguided": lambda: unguided(backbone, solver, settings, count, watch),
        "pairs": lambda: two_objects(
            backbone, solver, settings, max(2, round(count * 25 / 64)), watch
        ),
        "prompts": lambda: prompt_accuracy(backbone, solver, settings, max(1, count // 128), watch),
    }
    found: dict[str, Any] = {}
    seconds = {}
    for name, judge in parts.items():
        began = time.perf_counter()
        found[name] = judge()
        seconds[name] = round(time.perf_counter() - began, 1)
    return {**found, "seconds": seconds}
