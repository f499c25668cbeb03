"""Judged measures of the built-in world: does the backbone follow prompts, does guidance work?

Judges never guided or taught anything (:mod:`ppap_host.shapes.judges`). Targets and references are
fresh renders, of seeds that no network was trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppap_host.backbones.backbone import Backbone, ClassifierFree, Condition
from ppap_host.files import images
from ppap_host.guides.guide import Guide
from ppap_host.recipes.recipe import Recipe
from ppap_host.sampling.evaluator import Guidance, Health
from ppap_host.sampling.loop import Event, sample
from ppap_host.sampling.solvers import Solver
from ppap_host.sampling.streams import ImageNoise
from ppap_host.shapes.judges import Judges, aligned
from ppap_host.shapes.renderer import render
from ppap_host.shapes.scenes import CLASS_NAMES, sample_scenes
from ppap_plugin_bench.evaluation import frechet_distance

FRESH_SEED = 1_000_003
"""Seed of the fresh renders that targets and references come from."""

Watch = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Settings:
    """How images are sampled for a measurement."""

    steps: int | str = 50
    cfg: float = 2.0
    seed: int = 0
    batch: int = 16


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
    walk = backbone.walk(settings.steps)
    empty = backbone.encode_prompts([""])
    done = []
    for first in range(0, count, settings.batch):
        rows = slice(first, min(first + settings.batch, count))
        size = rows.stop - rows.start

        def step(report: Event, first: int = first, size: int = size) -> None:
            watch(what, first * report.steps + (report.index + 1) * size, count * report.steps)

        x = sample(
            backbone,
            ClassifierFree(
                backbone,
                condition(rows) if condition else empty,
                empty,
                settings.cfg if condition else 1.0,
            ),
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

    def features(x: Tensor) -> Tensor:
        return torch.cat(
            [judges.features(images.to_unit(part)) for part in images.to_pixels(x).split(256)]
        )

    of_renders = [features(render(scenes).rgb) for scenes in sets]
    return {
        "frechet": frechet_distance(of_renders[1], features(made)),
        "between_renders": frechet_distance(of_renders[1], of_renders[0]),
        "images": count,
    }


def class_accuracy(
    backbone: Backbone,
    solver: Solver,
    settings: Settings,
    guide: Guide,
    recipe: Recipe,
    scale: float,
    per_class: int,
    watch: Watch,
) -> dict[str, Any]:
    """Share of images guided to the classes, without any prompt, that the judge puts in them.

    Args:
        guide: a classifier, for the recipe (with experts if it needs them).
    """
    labels = torch.arange(len(CLASS_NAMES)).repeat(per_class)
    rows = [guide.read_target(name, backbone.image_size).value for name in CLASS_NAMES]
    targets = torch.cat(rows).repeat(per_class, 1)
    judges = Judges.load()

    def share(made: Tensor) -> float:
        return float((judges.classify(made).argmax(dim=1) == labels).float().mean())

    made = _generate(
        backbone,
        solver,
        settings,
        len(labels),
        watch,
        guidance=lambda part: [Guidance(guide, targets[part], recipe, scale)],
        what=f"images guided by {recipe.name}",
    )
    unguided = _generate(backbone, solver, settings, len(labels), watch, what="unguided images")
    return {
        "recipe": recipe.name,
        "scale": scale,
        "guided": share(made),
        "unguided": share(unguided),
        "images": len(labels),
        "made": made,
    }


def depth_error(
    backbone: Backbone,
    solver: Solver,
    settings: Settings,
    guide: Guide,
    recipe: Recipe,
    scale: float,
    count: int,
    watch: Watch,
) -> dict[str, Any]:
    """Judged depth error of guided and of unguided images, against the targets' true depth.

    Mean absolute relative error, |judged - true| / true over all pixels, after the judged depth is
    aligned to the truth in scale and shift (Eigen et al., 2014; Ranftl et al., 2020, section 5):
    how large a room is cannot be told from its picture, by nobody. ``metric`` is the same without
    alignment. ``judge_on_targets`` is the error of the judge on the targets themselves, the floor.
    """
    view = render(sample_scenes(FRESH_SEED, 0, count))
    shown = torch.cat([images.to_tensor(p) for p in images.from_tensor(view.rgb)])
    with torch.no_grad():
        targets = guide.see(shown)
    judges = Judges.load()

    def errors(made: Tensor) -> dict[str, float]:
        with torch.no_grad():
            judged = judges.depth(made)
        return {
            "aligned": float(
                ((aligned(judged, view.depth) - view.depth).abs() / view.depth).mean()
            ),
            "metric": float(((judged - view.depth).abs() / view.depth).mean()),
        }

    unguided = errors(_generate(backbone, solver, settings, count, watch, what="unguided images"))
    made = _generate(
        backbone,
        solver,
        settings,
        count,
        watch,
        guidance=lambda rows: [Guidance(guide, targets[rows], recipe, scale)],
        what=f"images guided by {recipe.name}",
    )
    guided = errors(made)
    return {
        "recipe": recipe.name,
        "scale": scale,
        "guided": guided,
        "unguided": unguided,
        "ratio": {name: guided[name] / unguided[name] for name in guided},
        "judge_on_targets": errors(shown),
        "images": count,
        "made": made,
        "targets": shown,
    }
