"""Whether a guide that nobody tuned for is well served by the default strength, whatever steers.

Four guides, every recipe that can ask them, few steps and many, two backbones: the guide's own loss
is compared with that of the unguided images, and with the best of a grid of scales. A recipe that
leads to other pictures by itself, because it repeats steps, draws noise or selects, is compared
with what it makes at next to no strength. It says nothing of how good the pictures are; judges do,
in the other benchmarks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppap_host.backbones.backbone import Backbone
from ppap_host.files.hashes import package_versions
from ppap_host.files.settings import Batch, Images, Number, Positive, Seed, settings
from ppap_host.files.writing import json_text, write_file
from ppap_host.guides.functions import as_guide, reward
from ppap_host.guides.guide import Guide
from ppap_host.pipelines.backbone import PipelineBackbone
from ppap_host.plugins.loading import load_backbone, load_recipe
from ppap_host.plugins.registry import registry
from ppap_host.recipes.recipe import Recipe
from ppap_host.runs.batches import generate
from ppap_host.runs.config import GuideConfig, RunConfig
from ppap_host.runs.setup import set_up
from ppap_host.sampling.evaluator import Health
from ppap_host.shapes.renderer import render
from ppap_host.shapes.scenes import sample_scenes
from ppap_plugin_bench.benchmarks.arms import Watch
from ppap_plugin_bench.benchmarks.cells import Cell, Cells
from ppap_plugin_bench.benchmarks.tasks import GROUNDS, STEERS

GRID = (0.5, 2.0, 4.0)
"""Scales that are tried beside the default."""

RUINED = 0.01
"""Share of newly saturated pixels from which on a scale is none that anybody would choose."""

SATURATED = 127 / 127.5
"""From where on a channel of a pixel counts as saturated: the last of its 8-bit steps."""


@settings
class Settings:
    """What is run.

    Attributes:
        num: images of each combination.
        steps: numbers of steps.
        grid: scales tried beside 1; empty leaves the comparison out.
        batch: images at a time.
    """

    num: Images = 48
    steps: tuple[Number, ...] = (8, 50)
    guides: tuple[str, ...] = STEERS
    backbones: tuple[str, ...] = GROUNDS
    recipes: tuple[str, ...] = ()
    grid: tuple[Positive, ...] = GRID
    seed: Seed = 0
    batch: Batch = 16


@dataclass(frozen=True)
class Found:
    """What came of one combination, image by image."""

    loss: list[float]
    change: list[float]
    saturated: list[float]


@dataclass(frozen=True)
class Row:
    """A recipe with a guide on a backbone in so many steps.

    Attributes:
        improved: share of images whose loss is below that of the unguided image.
        gain: median of how far it fell.
        best: the scale of the grid, 1 included, with the largest such median, and that median, of
            the scales that saturate less than 1 % of the pixels; None without a grid.
        saturated: share of pixels that are saturated and were not.
        change: root mean square change of the picture, in units of [-1, 1]; the median.
        beside: why it stands apart: "shown noise", to networks that never saw any, or "selects".
    """

    backbone: str
    guide: str
    recipe: str
    steps: int
    improved: float
    gain: float
    best: tuple[float, float] | None
    saturated: float
    change: float
    beside: str


def mirrored(x: Tensor) -> Tensor:
    """Mean squared difference from the mirror image, of each image [b, 3, h, w]."""
    return (x - x.flip(-1)).square().mean(dim=(1, 2, 3))


def orange(x: Tensor) -> Tensor:
    """Squared distance of the mean colour from orange."""
    wanted = torch.tensor([0.8, 0.1, -0.6], device=x.device, dtype=x.dtype)
    return (x.mean(dim=(2, 3)) - wanted).square().sum(dim=1)


def contrast(x: Tensor) -> Tensor:
    """Standard deviation of the brightness, a reward."""
    return x.mean(dim=1).flatten(1).std(dim=1)


class Counter(nn.Module):
    """Counts the solids of a room, 1 to 3; its loss is the cross entropy of "three"."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.GroupNorm(4, outputs), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3))

    def logits(self, x: Tensor) -> Tensor:
        """Of the counts, [b, 3]."""
        found: Tensor = self.layers(F.interpolate(x, (32, 32), mode="area"))
        return found

    def forward(self, x: Tensor) -> Tensor:
        """The loss of each image, [b]."""
        return -self.logits(x).log_softmax(dim=1)[:, 2]


def trained_counter(size: int, watch: Watch, steps: int = 400) -> Counter:
    """A counter of renders of a size; the random generators are left as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        scenes = sample_scenes(seed=2, start=0, count=2000)
        images, counts = render(scenes, size=size).rgb, scenes.count.long() - 1
        network = Counter()
        network(images[:2])
        optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
        for step in range(steps):
            watch("training the counting network", step, steps)
            rows = torch.randint(len(images), (64,))
            seen = images[rows] + 0.05 * torch.randn_like(images[rows])
            loss = F.cross_entropy(network.logits(seen), counts[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return network.eval().requires_grad_(False)


def small_backbone(watch: Watch, steps: int = 200) -> Any:
    """The pipeline of docs/howto/own-backbone.md: 16 x 16 rooms, half a minute of training."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images = render(sample_scenes(seed=1, start=0, count=500), size=16).rgb
        unet = UNet2DModel(
            sample_size=16, block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"), layers_per_block=1, norm_num_groups=8,
        )  # fmt: skip
        scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
        optimiser = torch.optim.AdamW(unet.parameters())
        rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=5e-3, total_steps=steps)
        for step in range(steps):
            watch("training the small backbone", step, steps)
            x0 = images[torch.randint(len(images), (32,))]
            noise, t = torch.randn_like(x0), torch.randint(1000, (32,))
            predicted = unet(scheduler.add_noise(x0, noise, t), t).sample
            loss = (predicted - scheduler.get_velocity(x0, noise, t)).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            rate.step()
    return DDPMPipeline(unet, scheduler)


class Bench:
    """The benchmark, with what it has loaded and the cells that are made already."""

    def __init__(self, out: Path, settings: Settings, watch: Watch) -> None:
        self.settings, self.watch = settings, watch
        self.cells = Cells(out / "cells")
        self._backbones: dict[str, Backbone] = {}
        self._guides: dict[tuple[str, int], Guide] = {}
        self.recipes = _recipes(settings.recipes)
        runs = 1 + len(settings.grid)
        each = len(settings.backbones) * len(settings.steps)
        self._total = each * runs * len(settings.guides) * len(self.recipes)
        self._plain: dict[str, Tensor] = {}
        self._done = 0

    def rows(self) -> Iterator[Row]:
        """The combinations, those of few steps first."""
        s = self.settings
        for steps in s.steps:
            for backbone in s.backbones:
                for guide in s.guides:
                    for text, recipe in self.recipes.items():
                        plain = self._unguided(backbone, steps, text, recipe)
                        yield self._row(backbone, guide, text, recipe, steps, plain)

    def _row(
        self, backbone: str, guide: str, text: str, recipe: Recipe, steps: int, plain: Tensor
    ) -> Row:
        size = plain.shape[-1]
        before = self._losses(guide, size, plain)

        def gain(found: Found) -> float:
            return median(b - a for a, b in zip(found.loss, before, strict=True))

        found = self._found(backbone, guide, text, recipe, steps, 1.0, plain)
        gains = {1.0: gain(found)}
        for scale in self.settings.grid:
            tried = self._found(backbone, guide, text, recipe, steps, scale, plain)
            if _mean(tried.saturated) < RUINED:
                gains[scale] = gain(tried)
        best = max(gains, key=lambda scale: gains[scale])
        better = [a < b for a, b in zip(found.loss, before, strict=True)]
        return Row(
            backbone, guide, text, steps, sum(better) / len(better), gains[1.0],
            (best, gains[best]) if self.settings.grid else None,
            _mean(found.saturated), median(found.change),
            _beside(recipe),
        )  # fmt: skip

    def _found(
        self, backbone: str, guide: str, text: str, recipe: Recipe, steps: int, scale: float,
        plain: Tensor,
    ) -> Found:  # fmt: skip
        def make() -> Cell:
            x = self._made(backbone, steps, guide, text, scale)
            change = (x - plain).square().mean(dim=(1, 2, 3)).sqrt()
            full = [(y.abs() >= SATURATED).any(dim=1) for y in (x, plain)]
            new = (full[0] & ~full[1]).float().mean(dim=(1, 2))
            loss = self._losses(guide, x.shape[-1], x)
            return Cell({"loss": loss, "change": change.tolist(), "saturated": new.tolist()})

        name = f"{backbone}-{steps}-{guide}-{text}-{scale:g}"
        cell = self.cells.get(name, self._settings(recipe=repr(recipe)), make)
        self._tell()
        return Found(**cell.values)

    def _unguided(self, backbone: str, steps: int, text: str, recipe: Recipe) -> Tensor:
        """The images without guidance; of a recipe with a process of its own, by that process."""
        still = text if _own_process(recipe) else None
        name = f"{backbone}-{steps}-unguided{'' if still is None else f'-{text}'}"
        if name not in self._plain:

            def make() -> Cell:
                return Cell({}, {"images": self._made(backbone, steps, "symmetry", still, 1e-9)})

            settings = self._settings(recipe=repr(still and recipe))
            self._plain[name] = self.cells.get(name, settings, make).tensors["images"]
        return self._plain[name]

    def _settings(self, **others: Any) -> dict[str, Any]:
        s = self.settings
        return {"num": s.num, "seed": s.seed, "batch": s.batch, **others}

    def _tell(self) -> None:
        self._done += 1
        self.watch("guiding", self._done, self._total)

    def _made(
        self, backbone: str, steps: int, guide: str, recipe: str | None, scale: float
    ) -> Tensor:
        """Images in [-1, 1]; without a recipe they are unguided."""
        world, s = self._backbone(backbone), self.settings
        guides: tuple[GuideConfig, ...] = ()
        if recipe is not None:
            what = self._guide(guide, world.image_size[-1])
            guides = (GuideConfig(guide, what=what, recipe=recipe, scale=scale, experts="none"),)
        config = RunConfig(
            guides, world, steps=steps, sampler="ddim", seed=s.seed, num=s.num, batch=s.batch
        )  # the host's steps, which every recipe can change
        setup, parts = set_up(config), []
        for first in range(0, s.num, s.batch):
            indices = range(first, min(first + s.batch, s.num))
            parts.append(generate(setup, indices, Health()))
        return torch.cat(parts).clamp(-1, 1)

    def _losses(self, guide: str, size: int, x: Tensor) -> list[float]:
        steers = self._guide(guide, size)
        with torch.no_grad():
            found: list[float] = steers.loss(steers.see(x), torch.zeros(1, 0)).tolist()
        return found

    def _backbone(self, name: str) -> Backbone:
        if name not in self._backbones:
            made = (
                load_backbone(registry(), "shapes", None, {})
                if name == "shapes"
                else PipelineBackbone(small_backbone(self.watch))
            )
            self._backbones[name] = made
        return self._backbones[name]

    def _guide(self, name: str, size: int) -> Guide:
        key = (name, size)
        if key not in self._guides:
            what: Mapping[str, Callable[[], Any]] = {
                "symmetry": lambda: mirrored,
                "counting": lambda: trained_counter(size, self.watch),
                "colour": lambda: orange,
                "reward": lambda: reward(contrast),
            }
            self._guides[key] = as_guide(what[name](), name)
        return self._guides[key]


def _own_process(recipe: Recipe) -> bool:
    """Whether it makes other images than the plain sampler where no guide is felt."""
    return bool(
        recipe.recurrence > 1 or recipe.needs or recipe.replaces or recipe.selection is not None
    )


def _beside(recipe: Recipe) -> str:
    if recipe.sees_noise:
        return "shown noise"
    return "selects" if recipe.selection is not None else ""


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _recipes(names: Sequence[str]) -> dict[str, Recipe]:
    """Those asked for; without names all that need neither experts nor an operator."""
    found = registry()
    every = {text: load_recipe(found, text) for text in names or found.names("recipe")}
    return {
        text: recipe
        for text, recipe in every.items()
        if names or not (recipe.needs_experts or recipe.absolute or not recipe.moves)
    }


def run(out: Path, settings: Settings, command: str, watch: Watch) -> dict[str, Any]:
    """Makes what is missing, and writes ``strength.json`` and ``strength.md`` to a folder."""
    began = time.perf_counter()
    rows = list(Bench(out, settings, watch).rows())
    results = {
        "command": command,
        "settings": asdict(settings),
        "rows": [asdict(row) for row in rows],
        "recipes": summaries(rows),
        "versions": package_versions({"ppap-plugin-bench"}),
        "seconds": round(time.perf_counter() - began, 1),
    }
    write_file(out / "strength.json", json_text(results).encode())
    write_file(out / "strength.md", table(results).encode())
    return results


def summaries(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Over the guides: of each recipe, on each backbone, in so many steps."""
    found = []
    for key in dict.fromkeys((r.backbone, r.steps, r.recipe, r.beside) for r in rows):
        own = [r for r in rows if (r.backbone, r.steps, r.recipe, r.beside) == key]
        parts = [r.gain / r.best[1] for r in own if r.best is not None and r.best[1] > 0]
        found.append({
            "backbone": key[0], "steps": key[1], "recipe": key[2], "beside": key[3],
            "improved": sum(r.improved for r in own) / len(own),
            "worst": min(r.improved for r in own),
            "of_best": median(parts) if parts else None,
            "least_of_best": min(parts) if parts else None,
            "saturated": max(r.saturated for r in own),
            "change": math.exp(sum(math.log(max(r.change, 1e-9)) for r in own) / len(own)),
        })  # fmt: skip
    return found


def table(results: Mapping[str, Any]) -> str:
    """The summaries as Markdown."""
    lines = [
        "| backbone | steps | recipe | images improved | of the worst guide | median gain, of the "
        "best scale's | of the worst guide | pixels saturated, most | RMS change |",
        "|---|---|---|---|---|---|---|---|---|",
    ]

    def share(value: float | None) -> str:
        return "–" if value is None else f"{value:.0%}"

    for row in sorted(results["recipes"], key=lambda r: r["beside"]):
        name = f"`{row['recipe']}`" + (f" ({row['beside']})" if row["beside"] else "")
        lines.append(
            f"| {row['backbone']} | {row['steps']} | {name} | {share(row['improved'])} | "
            f"{share(row['worst'])} | {share(row['of_best'])} | {share(row['least_of_best'])} | "
            f"{row['saturated']:.2%} | {row['change']:.2f} |"
        )
    return "\n".join(lines) + "\n"
