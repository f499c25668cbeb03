"""``ppap bench capacity``: one noise-aware network against several experts, at equal cost.

PPAP (Go et al., 2023, section 4.1) says that one network cannot serve all noise levels. Whether
that holds depends on how much one network can learn and how long it is taught. Here both sides get
the same numbers to train and the same number of training images: N experts of rank r, each taught
on 1 / N of them, against one patch of rank N r taught on all. What they read at every noise level
is compared with the truth of fresh renders, over several sizes of the network and several seeds.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ppap_host.backbones.noise import NoiseLevel
from ppap_host.experts.harvest import Harvest, Lesson
from ppap_host.experts.patches import network_hash
from ppap_host.experts.sets import WithExperts
from ppap_host.experts.tuning import TuningConfig, tune
from ppap_host.files.hashes import package_versions
from ppap_host.files.images import to_unit
from ppap_host.files.settings import Batch, Images, Parts, Seed, settings
from ppap_host.files.writing import write_file
from ppap_host.guides.guide import Guide
from ppap_plugin_bench.benchmarks.cells import Cell, Cells
from ppap_plugin_bench.benchmarks.ppap import CURVE_SEED
from ppap_plugin_bench.benchmarks.world import World
from ppap_plugin_bench.evaluation import accuracy_against_noise
from ppap_plugin_bench.plots import COLOURS, new_figure, save_figure


@settings
class Settings:
    """Size of the study.

    Attributes:
        counts: numbers of experts, N.
        seeds: of tuning.
        rank: r, of one expert's factors.
        images: training images in all, shared out to the experts.
        batch: images a step.
        fresh: renders to measure on.
        levels: noise levels to measure at, evenly spread over the backbone's.
    """

    counts: tuple[Parts, ...] = (1, 2, 5, 10)
    seeds: tuple[Seed, ...] = (0, 1, 2)
    rank: Parts = 2
    images: Images = 12_800
    batch: Batch = 32
    fresh: Images = 240
    levels: Parts = 20


@dataclass(frozen=True)
class Side:
    """One way to spend the budget: how many experts, of what rank."""

    experts: int
    rank: int

    @property
    def name(self) -> str:
        """For tables."""
        return f"PPAP-{self.experts}" if self.experts > 1 else f"one patch, rank {self.rank}"


@dataclass(frozen=True)
class Row:
    """A side on a network, over all seeds.

    Attributes:
        network: the model's name.
        parameters: of the network.
        trainable: numbers trained, all experts together.
        measure: means over noise levels, one a seed.
        by_level: means over seeds, one a level, cleanest first.
    """

    network: str
    parameters: int
    side: Side
    trainable: int
    measure: list[float]
    by_level: list[float]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.measure)

    @property
    def deviation(self) -> float:
        """Standard deviation over the seeds; 0 for a single one."""
        return statistics.stdev(self.measure) if len(self.measure) > 1 else 0.0


def sides(settings: Settings) -> list[Side]:
    """N experts of rank r, and one patch of rank N r, for every N."""
    found = []
    for count in settings.counts:
        found.append(Side(count, settings.rank))
        if count > 1:
            found.append(Side(1, settings.rank * count))
    return found


def spread(levels: Sequence[NoiseLevel], count: int) -> list[NoiseLevel]:
    """``count`` levels in the middle of equal parts of all, cleanest first."""
    return [levels[(2 * i + 1) * len(levels) // (2 * count)] for i in range(count)]


def run(
    out: Path,
    world: World,
    name: str,
    guides: dict[str, Callable[[], Guide]],
    harvest: Harvest,
    settings: Settings,
    measure: str,
    watch: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[Row]:
    """All sides on all networks; what an interrupted study has finished in ``out`` is kept.

    Args:
        name: of the guide.
        guides: model's name -> makes the guide with it.
        measure: of the guide (:meth:`Guide.measure`), higher is better.
    """
    cells, levels = Cells(out / "cells"), world.backbone.levels()
    pixels, labels = world.labelled(name, CURVE_SEED, settings.fresh)
    shown = spread(levels, settings.levels)
    wanted, done = sides(settings), 0
    total = len(guides) * len(wanted) * len(settings.seeds)
    rows = []
    for model, make in guides.items():
        guide = make()
        guide.network().requires_grad_(False)
        lesson = harvest.lesson(guide, watch)
        truth = guide.from_labels(labels)
        for side in wanted:
            values: list[float] = []
            curves: list[list[float]] = []
            trainable = 0
            for seed in settings.seeds:
                config = TuningConfig(
                    experts=side.experts,
                    rank=side.rank,
                    steps=max(1, settings.images // settings.batch // side.experts),
                    batch=settings.batch,
                    seed=seed,
                    check_every=10_000,
                )

                def taught(
                    guide: Guide = guide,
                    lesson: Lesson = lesson,
                    truth: torch.Tensor = truth,
                    config: TuningConfig = config,
                ) -> Cell:
                    experts = tune(guide, lesson, levels, config)
                    points = accuracy_against_noise(
                        WithExperts(guide, experts), to_unit(pixels), truth, shown
                    )
                    curve = [point.measures[measure].value for point in points]
                    return Cell({"curve": curve, "trainable": experts.metadata["trainable"]})

                watch(f"{model}, {side.name}, seed {seed}", done, total)
                cell = cells.get(
                    f"capacity-{model}-{side.experts}-{side.rank}-{seed}",
                    {
                        "network": network_hash(guide.network()),
                        "lesson": lesson.identity,
                        "tuning": asdict(config),
                        "fresh": settings.fresh,
                        "levels": settings.levels,
                        "measure": measure,
                    },
                    taught,
                )
                done += 1
                curves.append(cell.values["curve"])
                values.append(statistics.fmean(cell.values["curve"]))
                trainable = cell.values["trainable"]["total"]
            by_level = torch.tensor(curves).mean(dim=0).tolist()
            parameters = sum(p.numel() for p in guide.network().parameters())
            rows.append(Row(model, parameters, side, trainable, values, by_level))
    return rows


def write_report(
    rows: Sequence[Row], levels: Sequence[NoiseLevel], settings: Settings, measure: str,
    command: str, harvest: Harvest, out: Path,
) -> dict[str, Any]:  # fmt: skip
    """Writes ``capacity.md``, ``capacity.json`` and ``capacity.png``; returns the JSON."""
    lines = [
        f"| network | parameters | taught | trained numbers | {measure}, mean over noise levels |",
        "|---|---:|---|---:|---:|",
    ]
    lines += [
        f"| {row.network} | {row.parameters:,} | {row.side.name} | {row.trainable:,} "
        f"| {row.mean:.4f} ± {row.deviation:.4f} |"
        for row in rows
    ]
    write_file(out / "capacity.md", ("\n".join(lines) + "\n").encode())
    described = {
        "command": command,
        "settings": asdict(settings),
        "harvest": harvest.identity(),
        "log_snr": [level.log_snr for level in levels],
        "measure": measure,
        "rows": [
            asdict(row) | {"mean": row.mean, "deviation": row.deviation, "name": row.side.name}
            for row in rows
        ],
        "versions": package_versions(),
    }
    text = json.dumps(described, indent=1, ensure_ascii=False) + "\n"
    write_file(out / "capacity.json", text.encode())
    _plot(rows, settings, measure, out / "capacity.png")
    return described


def _plot(rows: Sequence[Row], settings: Settings, measure: str, path: Path) -> None:
    networks = list(dict.fromkeys(row.network for row in rows))
    figure, axes = new_figure(
        3.6 * len(networks), 3.6, ncols=len(networks), sharey=True, squeeze=False
    )
    for ax, network in zip(axes[0], networks, strict=True):
        own = [row for row in rows if row.network == network]
        several = {row.side.experts: row for row in own if row.side.rank == settings.rank}
        single = {row.side.rank // settings.rank: row for row in own if row.side.experts == 1}
        for found, colour, marker, label in (
            (several, COLOURS[0], "o", f"N experts of rank {settings.rank}"),
            (single, COLOURS[1], "s", f"one patch of rank {settings.rank} N"),
        ):
            counts = sorted(found)
            ax.errorbar(
                range(len(counts)),
                [found[n].mean for n in counts],
                yerr=[found[n].deviation for n in counts],
                color=colour, marker=marker, label=label, capsize=3, linewidth=1.4,
            )  # fmt: skip
            ax.set_xticks(range(len(counts)), [str(n) for n in counts])
        ax.set_xlabel("N")
        ax.set_title(f"{network}, {own[0].parameters / 1e6:.1f} M parameters", fontsize=10)
    axes[0][0].set_ylabel(f"{measure}, mean over noise levels")
    axes[0][0].legend(fontsize=8, frameon=False)
    save_figure(figure, path)
