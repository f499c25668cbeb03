"""Draws the figures of the page of concepts from real runs of the built-in world.

``python docs/figures.py`` draws all, ``python docs/figures.py guidance`` one of them. Seeds are
fixed. They need the plugins ``depth`` and ``classifier`` and matplotlib, which the extra
``evaluation`` brings.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from make_pictures import shrink
from ppap_plugin_bench.plots import COLOURS, new_figure, save_figure
from ppap_plugin_bench.shapes import FRESH_SEED
from torch import Tensor

from ppap_host.backbones.backbone import Backbone, ClassifierFree, encode, repeat_condition
from ppap_host.backbones.noise import NoiseLevel
from ppap_host.files.images import from_tensor
from ppap_host.guides.guide import Guide
from ppap_host.recipes.estimate import Estimate
from ppap_host.recipes.views import Noisy, Predicted, PredictedThrough, View
from ppap_host.runs.batches import generate
from ppap_host.runs.config import GuideConfig, RunConfig
from ppap_host.runs.setup import Setup, set_up
from ppap_host.sampling.evaluator import Health
from ppap_host.sampling.loop import Event, sample
from ppap_host.sampling.streams import ImageNoise
from ppap_host.shapes.judges import Judges
from ppap_host.shapes.renderer import render
from ppap_host.shapes.scenes import CLASS_NAMES, sample_scenes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOCS = Path(__file__).parent
_WIDTH = 8.5
"""Of a figure with a curve, in inches; grids of pictures are narrower."""
_ZOOM = 0.72
"""Of 64 pixels above a curve: about as wide as an eighth of a figure allows."""
TARGET = DOCS / "images" / "target.png"
CLASS = "green sphere"


@dataclass(frozen=True)
class Effort:
    """What a figure may cost.

    Attributes:
        steps: of every run, at least 2.
        num: images or scenes behind a curve, at least 2.
    """

    steps: int = 25
    num: int = 16


def _set_up(effort: Effort, *guides: GuideConfig) -> Setup:
    return set_up(RunConfig(guides=guides, steps=effort.steps, device="cpu"))


def _depth(recipe: str | None = None, scale: float | None = None) -> GuideConfig:
    return GuideConfig("depth", str(TARGET), recipe=recipe, scale=scale)


def _classifier(recipe: str | None = None, scale: float | None = None) -> GuideConfig:
    return GuideConfig("classifier", CLASS, recipe=recipe, scale=scale)


def _watched(setup: Setup, indices: list[int]) -> list[Event]:
    """What the loop tells after each step of a run."""
    (stage,) = setup.stages
    backbone = stage.backbone
    reports: list[Event] = []
    sample(
        backbone,
        ClassifierFree(backbone, stage.condition, stage.unconditional, stage.cfg),
        stage.walk,
        stage.solver,
        ImageNoise(setup.config.seed, indices, backbone.state_shape),
        stage.guidance([0]),
        watch=reports.append,
    )
    return reports


def _images(setup: Setup, num: int) -> Tensor:
    """The first images of a run, RGB in [-1, 1], [num, 3, h, w]."""
    return generate(setup, list(range(num)), Health())


def _show(ax: Any, picture: Any, title: str = "", left: str = "", **options: Any) -> None:
    """One picture in axes of its own; ``left`` is written beside it."""
    ax.imshow(picture, **options)
    ax.grid(False)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    if title:
        ax.set_title(title, fontsize=8)
    if left:
        ax.set_ylabel(left, fontsize=8, rotation=0, ha="right", va="center", labelpad=8)


def _strip(ax: Any, rows: Sequence[tuple[str, Sequence[Any]]], at: Sequence[float]) -> None:
    """Rows of pictures above a curve, each at its place on the curve's axis; None is no picture."""
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    ax.set_axis_off()
    ax.set_ylim(len(rows) - 0.5, -0.5)
    for y, (name, pictures) in enumerate(rows):
        ax.text(-0.015, y, name, transform=ax.get_yaxis_transform(), ha="right", va="center",
                fontsize=9)  # fmt: skip
        for x, picture in zip(at, pictures, strict=True):
            if picture is None:
                continue
            image = OffsetImage(picture, zoom=_ZOOM, interpolation="bicubic")
            box = AnnotationBbox(image, (x, y), frameon=False, pad=0)
            box.set_in_layout(False)
            ax.add_artist(box)


def _with_error(ax: Any, x: Sequence[float], values: Tensor, **style: Any) -> None:
    """The mean over images of ``values`` [points, images], with a band of its standard error."""
    mean, error = values.mean(dim=1), values.std(dim=1) / values.shape[1] ** 0.5
    ax.plot(x, mean, linewidth=1.8, **style)
    ax.fill_between(x, mean - error, mean + error, color=style["color"], alpha=0.2, linewidth=0)


def guidance(effort: Effort) -> Figure:
    """The predicted clean image over the steps, without and with guidance, above the loss."""
    figure, (above, below) = new_figure(
        _WIDTH, 5.3, nrows=2, height_ratios=[3.6, 1.6], sharex=True
    )  # fmt: skip
    guided = _set_up(effort, _depth("x0"))
    active = guided.guides[0]
    steps = list(range(effort.steps))
    shown = sorted({round(k * (effort.steps - 1) / 6) for k in range(7)})
    # Beside the last step stands the target.
    at = [*shown, effort.steps * 1.13]
    rows: list[tuple[str, list[Any]]] = []
    for name, run, colour, beside in (
        ("without guidance", _set_up(effort), COLOURS[7], (None, None)),
        ("with guidance", guided, COLOURS[0], tuple(active.targets[0].pictures.values())),
    ):
        reports = _watched(run, list(range(effort.num)))
        with torch.no_grad():
            seen = [active.guide.see(r.estimate.x0) for r in reports]
            losses = torch.stack([active.guide.loss(s, active.targets[0].value) for s in seen])
            depths = [active.guide.picture(seen[k][:1])[0] for k in shown]
        images = [from_tensor(reports[k].estimate.x0[:1])[0] for k in shown]
        size = images[0].size
        last = [None if picture is None else picture.resize(size) for picture in beside]
        rows += [(name.replace(" ", "\n"), [*images, last[0]])]
        rows += [("what the\nguide sees", [*depths, last[1]])]
        below.plot(steps, losses[:, 0], color=colour, linewidth=1.0, linestyle=":",
                   label=f"{name}, this image")  # fmt: skip
        _with_error(below, steps, losses, color=colour, label=f"{name}, mean of {effort.num}")
    _strip(above, rows, at)
    above.text(at[-1], 1.4, "target", ha="center", va="bottom", fontsize=9)
    below.set_xlim(-0.07 * effort.steps, 1.2 * effort.steps)
    below.set_xticks(shown)
    below.set(xlabel="step, noisiest first", ylabel="loss of the guide", ylim=(0, None))
    below.legend(fontsize=8, frameon=False, ncols=2)
    return figure


def _read(setup: Setup, x: Tensor, level: NoiseLevel) -> Estimate:
    """What the backbone of a run says of noised images; its graph reaches back to ``x``."""
    backbone = setup.stages[0].backbone
    condition = repeat_condition(encode(backbone, [""], [None]), len(x))
    eps = backbone.predict(x, level, condition).eps
    x0 = (x - level.sigma * eps) / level.alpha
    if backbone.clip is not None:
        x0 = x0.clamp(*backbone.clip)
    return Estimate(level, x, x0, eps, clip=backbone.clip)


def _scenes(num: int) -> Tensor:
    """Fresh renders, RGB in [-1, 1], [num, 3, 64, 64]."""
    return render(sample_scenes(FRESH_SEED, 0, num)).rgb


def _noised(clean: Tensor, level: NoiseLevel, seed: int = 0) -> Tensor:
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    return level.alpha * clean + level.sigma * noise


def noise(effort: Effort) -> Figure:
    """What the network, its experts, and the network on predictions see as noise grows."""
    figure, (above, below) = new_figure(
        _WIDTH, 6.6, nrows=2, height_ratios=[4.6, 2.0], sharex=True
    )  # fmt: skip
    setup = _set_up(effort, _depth("naive"), _depth("ppap"))
    network, experts = (active.guide for active in setup.stages[0].guides)
    backbone = setup.stages[0].backbone
    levels = [_level(backbone, log_snr) for log_snr in range(7, -8, -1)]
    pictured = levels[::2]
    clean = _scenes(effort.num)
    rows: dict[str, list[Any]] = {
        name: []
        for name in (
            "noised image", "the network\nsees in it", "its experts\nsee in it",
            "predicted\nclean image", "the network\nsees in that",
        )
    }  # fmt: skip
    distances: list[list[Tensor]] = [[], [], []]
    with torch.no_grad():
        teacher = network.see(clean)
        for level in levels:
            x = _noised(clean, level)
            estimate = _read(setup, x, level)
            seen = [
                network.see(x / level.scale),
                experts.see(x / level.scale, level),
                network.see(estimate.x0),
            ]
            for kept, output in zip(distances, seen, strict=True):
                kept.append(network.distance(output, teacher))
            if level in pictured:
                (off, by_experts, of_prediction) = (network.picture(s[:1])[0] for s in seen)
                noised, predicted = (from_tensor(v[:1])[0] for v in (x / level.scale, estimate.x0))
                shown = (noised, off, by_experts, predicted, of_prediction)
                for pictures, picture in zip(rows.values(), shown, strict=True):
                    pictures.append(picture)
    at = [level.log_snr for level in levels]
    _strip(above, list(rows.items()), [level.log_snr for level in pictured])
    for values, colour, label in zip(
        distances,
        (COLOURS[5], COLOURS[0], COLOURS[2]),
        ("the network on the noised image", "its experts on the noised image",
         "the network on the predicted clean image"),
        strict=True,
    ):  # fmt: skip
        _with_error(below, at, torch.stack(values), color=colour, label=label)
    below.set_xlim(max(at) + 1, min(at) - 1)
    below.set(xlabel="log-SNR (left: nearly clean)", ylim=(0, None))
    below.set_ylabel("distance to what it sees\nin the clean image")
    below.legend(fontsize=8, frameon=False)
    return figure


_VIEWS: tuple[tuple[str, View, bool], ...] = (
    ("network at\nnoised image", Noisy(), False),
    ("experts at\nnoised image", Noisy(), True),
    ("network at\nprediction", Predicted(), False),
    ("the same through\nthe backbone", PredictedThrough(), False),
)
"""Who is asked, at what, and whether through experts."""


def _gradient(guide: Guide, target: Tensor, view: View, estimate: Estimate) -> Tensor:
    """The gradient of a guide's loss as a recipe with this view takes it, [b, 3, h, w]."""
    point = view.variable(estimate)
    if not view.through_backbone:
        point = point.detach().requires_grad_(True)
    output = guide.see(view.shown(estimate, point), estimate.level if view.sees_noise else None)
    loss = guide.loss(output, target).sum()
    (gradient,) = torch.autograd.grad(loss, point, retain_graph=True)
    return gradient


def gradient(effort: Effort) -> Figure:
    """Where the gradient goes at a noisy step, and how much of it another noise would repeat."""
    setup = _set_up(effort, _depth("naive"), _depth("ppap"))
    backbone = setup.stages[0].backbone
    network, experts = (active.guide for active in setup.stages[0].guides)
    target = setup.guides[0].targets[0].value
    clean = _scenes(effort.num)
    levels = [_level(backbone, log_snr) for log_snr in (4, 1, -2)]
    figure, axes = new_figure(6.6, 3.9, nrows=len(levels), ncols=2 + len(_VIEWS))
    titles = ("noised image", "predicted\nclean image", *(name for name, _, _ in _VIEWS))
    for row, level in enumerate(levels):
        draws = []
        for seed in (0, 1):
            x = _noised(clean, level, seed).requires_grad_(True)
            estimate = _read(setup, x, level)
            draws.append(
                [
                    _gradient(experts if by_experts else network, target, view, estimate)
                    for _, view, by_experts in _VIEWS
                ]
            )
            if seed == 0:
                shown = (x / level.scale, estimate.x0)
        pictures = [from_tensor(v[:1])[0] for v in shown]
        head = titles if row == 0 else [""] * len(titles)
        _show(axes[row, 0], pictures[0], head[0], f"log-SNR\n{level.log_snr:.0f}")
        _show(axes[row, 1], pictures[1], head[1])
        for column, (one, other) in enumerate(zip(*draws, strict=True), start=2):
            size = one[0].norm(dim=0)
            largest = float(size.quantile(0.995))
            colours: dict[str, Any] = dict(cmap="magma", vmin=0, vmax=largest)
            _show(axes[row, column], size.numpy(), head[column], **colours)
            alike = torch.cosine_similarity(one.flatten(1), other.flatten(1)).mean()
            axes[row, column].set_xlabel(f"repeats: {float(alike):.2f}", fontsize=8)
    return figure


def _level(backbone: Backbone, log_snr: float) -> NoiseLevel:
    return backbone.level_at(math.exp(-log_snr / 2))


_COMPARED = ("naive", "x0", "x0-through", "dps", "elucd", "ppap")


def recipes(effort: Effort) -> Figure:
    """The same seeds and targets under several recipes, each at its guide's usual strength."""
    asked = {
        CLASS: _classifier,
        "depth of\nthe target": _depth,
    }
    each = 2
    columns = ("unguided", *_COMPARED)
    figure, axes = new_figure(7.2, 4.6, nrows=each * len(asked), ncols=len(columns))
    for block, (name, guide) in enumerate(asked.items()):
        for column, recipe in enumerate(columns):
            guides = () if recipe == "unguided" else (guide(recipe),)
            pictures = from_tensor(_images(_set_up(effort, *guides), each))
            for k, picture in enumerate(pictures):
                row = each * block + k
                left = f"{name},\nimage {k}" if column == 0 else ""
                _show(axes[row, column], picture, recipe if row == 0 else "", left)
    return figure


_TIMES_USUAL = (1 / 64, 1 / 16, 1 / 4, 1, 4, 16, 64)


def scale(effort: Effort) -> Figure:
    """Strengths from too weak to too strong: the images, and what guide and judge say of them."""
    figure, (above, below) = new_figure(
        _WIDTH, 4.2, nrows=2, height_ratios=[2.1, 1.8], sharex=True
    )  # fmt: skip
    usual = _set_up(effort, _classifier()).guides[0].scale
    scales = [usual * times for times in _TIMES_USUAL]
    judges, label = Judges.load(), CLASS_NAMES.index(CLASS)
    rows: list[tuple[str, list[Any]]] = [("image 0", []), ("image 1", [])]
    by_guide, by_judge = [], []
    for strength in scales:
        setup = _set_up(effort, _classifier(scale=strength))
        made = _images(setup, effort.num)
        for (_, pictures), picture in zip(rows, from_tensor(made), strict=False):
            pictures.append(picture)
        active = setup.guides[0]
        with torch.no_grad():
            # The guide's loss is -log p.
            by_guide.append(
                active.guide.loss(active.guide.see(made), active.targets[0].value).neg().exp()
            )
            by_judge.append(judges.classify(made).softmax(dim=1)[:, label])
    above.set_xscale("log")
    _strip(above, rows, scales)
    for values, colour, who in (
        (by_guide, COLOURS[0], "the guide itself"),
        (by_judge, COLOURS[5], "a judge"),
    ):
        _with_error(
            below, scales, torch.stack(values), color=colour, marker="o", markersize=4,
            label=f"says {who}, mean of {effort.num}",
        )  # fmt: skip
    below.set_xlim(scales[0] / 3, scales[-1] * 3)
    below.set_xticks(scales, [f"{s:g}" for s in scales])
    below.minorticks_off()
    below.set(xlabel="--scale", ylabel=f"probability of\n{CLASS}", ylim=(0, 1.05))
    below.legend(fontsize=8, frameon=False, loc="lower right")
    return figure


FIGURES: Mapping[str, Callable[[Effort], Figure]] = {
    draw.__name__: draw for draw in (guidance, noise, gradient, recipes, scale)
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(FIGURES)}; all if none")
    parser.add_argument("--out", type=Path, default=DOCS / "figures", help="folder to write")
    parser.add_argument("--steps", type=int, default=Effort.steps, help="of every run")
    parser.add_argument("--num", type=int, default=Effort.num, help="images behind a curve")
    options = parser.parse_args(arguments)
    unknown = set(options.names) - set(FIGURES)
    if unknown:
        parser.error(f"there is no figure {', '.join(sorted(unknown))}")
    for name in options.names or FIGURES:
        path = options.out / f"{name}.png"
        save_figure(FIGURES[name](Effort(options.steps, options.num)), path)
        shrink(path)
        print(f"wrote {path}", flush=True)


if __name__ == "__main__":
    main()
