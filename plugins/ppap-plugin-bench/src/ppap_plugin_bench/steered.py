"""How well the shipped guides steer the built-in world, in runs as a user would ask for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

import ppap_host as ppap
from ppap_host.files import images
from ppap_host.files.images import to_unit
from ppap_host.shapes.scenes import CLASS_NAMES, sample_scenes
from ppap_plugin_bench.benchmarks.world import REFERENCES, ShapesWorld, class_targets, recoloured
from ppap_plugin_bench.evaluation import Measure, frechet_distance
from ppap_plugin_bench.shapes import FRESH_SEED

KINDS: Mapping[str, tuple[str, ...]] = {
    "classes": ("classifier",),
    "depth": ("depth",),
    "segments": ("segmentation",),
    "together": ("classifier", "depth"),
}
"""What is measured, and the guides that it asks for."""

Watch = Callable[[str, int, int], None]


def steered(
    what: str,
    checkpoint: str | None,
    num: int,
    guiding: Mapping[str, Any],
    sampling: Mapping[str, Any],
    watch: Watch,
) -> dict[str, Any]:
    """Runs of the guides of :data:`KINDS`, judged by networks that never guide.

    Class targets go through all classes, fresh renders are the targets of depth and segmentation.
    ``together`` asks for the depth of a render and for its main solid in another colour, and for
    each of the two alone.

    Args:
        checkpoint: of the backbone; None takes the shipped one.
        num: images; for classes: of each class.
        guiding: settings of each guide, as :func:`ppap_host.guidance` takes them.
        sampling: settings of the runs, as :func:`ppap_host.sample` takes them.

    Returns:
        ``measures``, of what steered: of each measure, the mean and its standard error; the Fréchet
        distance to renders; processor seconds an image, without loading. ``made`` and
        ``targets``, [n, 3, h, w] in [-1, 1]. How they were made.
    """
    watch("rendering references", 0, 1)
    world = ShapesWorld(checkpoint)
    count = num * len(CLASS_NAMES) if what == "classes" else num
    labels = class_targets(count)
    if what == "together":
        labels = recoloured(sample_scenes(FRESH_SEED, 0, count).labels)
    renders = to_unit(world.real(FRESH_SEED, count))
    targets = {
        "classifier": [CLASS_NAMES[k] for k in labels.tolist()],
        "depth": images.from_tensor(renders),
        "segmentation": images.from_tensor(renders),
    }
    judges = {
        name: (
            world.class_judge(labels)
            if name == "classifier"
            else world.judge(name, FRESH_SEED, count)
        )[0]
        for name in KINDS[what]
    }
    reference = world.features(to_unit(world.real(FRESH_SEED + 1, REFERENCES)))

    def of(name: str, measure: Measure) -> dict[str, dict[str, float | None]]:
        return {name: {"mean": measure.value, "error": measure.error}}

    def measured(x: Tensor, names: Iterable[str] = judges) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in names:
            for key, measure in judges[name](x).items():
                found |= of(key, measure)
        if count > 1:
            found |= of("frechet", Measure(frechet_distance(reference, world.features(x))))
        return found

    def made(names: tuple[str, ...], title: str) -> tuple[Tensor, dict[str, Any], dict[str, Any]]:
        run = ppap.trajectory(
            world.backbone,
            [ppap.guidance(name, target=targets[name], **guiding) for name in names],
            num=count,
            unguided=False,
            watch=lambda done_what, done, total: watch(f"{title}, {done_what}", done, total),
            **sampling,
        )
        began = time.process_time()
        with run:
            for _ in run:
                pass
        seconds = time.process_time() - began
        x = run.result().tensor
        assert x is not None
        cost = of("seconds_an_image", Measure(seconds / count))
        return x, measured(x.float()) | cost, run.record["config"]

    measures = {"unguided": made((), "unguided")[1]}
    if len(KINDS[what]) > 1:
        measures |= {f"{name} alone": made((name,), f"{name} alone")[1] for name in KINDS[what]}
    x, measures["guided"], config = made(KINDS[what], "guided")
    if pictured := [name for name in KINDS[what] if name != "classifier"]:
        measures["the targets themselves"] = measured(renders, pictured)
    guides = [
        {key: guide[key] for key in ("name", "recipe", "scale", "interval", "experts")}
        for guide in config["guides"]
    ]
    settings = {key: config[key] for key in ("steps", "sampler", "eta", "seed", "dtype")}
    shown = {} if what == "classes" else {"targets": renders}
    return {
        "images": count, "measures": measures, "guides": guides, **settings, "made": x, **shown,
    }  # fmt: skip
