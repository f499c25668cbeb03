"""A world in which teaching takes seconds, as a plugin and as a program for processes to run.

``python teaching.py harvest FOLDER [PAUSE]`` and ``python teaching.py tune FOLDER HARVEST [PAUSE]``
with a pause in seconds at every network evaluation, so that a test can interrupt.
"""

from __future__ import annotations

import sys
import time
from importlib import metadata
from pathlib import Path

from ppap_host.plugins.hookspecs import Entry, hookimpl
from ppap_host.plugins.registry import Registry

ppap_interface = 1


@hookimpl
def ppap_backbones() -> list[Entry]:
    return [
        Entry("gaussian", "worlds:small_gaussian", "independent Gaussian pixels"),
        Entry("classes", "worlds:ClassBackbone", "three classes of Gaussian pixels"),
        Entry("latent", "worlds:LatentBackbone", "Gaussian latents"),
        Entry("filling", "worlds:FillingBackbone", "fills in images"),
    ]


@hookimpl
def ppap_guides() -> list[Entry]:
    return [Entry("colour", "worlds:ColourGuide", "mean colour")]


def world() -> Registry:
    """A registry that knows this world."""
    return Registry([metadata.EntryPoint("teaching", "teaching", "ppap")])


def main() -> None:
    import torch
    import worlds

    from ppap_host.experts.harvest import Harvest, HarvestConfig
    from ppap_host.experts.tuning import TuningConfig, tune
    from ppap_host.runs.harvesting import harvest
    from ppap_host.runs.processes import join

    torch.set_num_threads(1)
    what, folder, *rest = sys.argv[1:]
    pause = float(rest[-1]) if len(rest) == (1 if what == "harvest" else 2) else 0.0
    processes = join("cpu")
    share = {"process": processes.index, "processes": processes.count, "wait": processes.wait}

    def watch(name: str, done: int, total: int) -> None:
        time.sleep(pause)

    if what == "harvest":
        config = HarvestConfig(
            "gaussian", num=22, shard=4, batch=2, steps=5, seed=3, device="cpu", eta=0.5
        )
        harvest(config, Path(folder), watch, found=world(), **share)
        return
    guide = worlds.ColourGuide()
    lesson = Harvest.open(Path(rest[0])).lesson(guide, **share)
    experts = tune(
        guide,
        lesson,
        worlds.small_gaussian().levels(),
        TuningConfig(experts=2, rank=1, steps=30, batch=8, check_every=10, held_out=0.2),
        Path(folder),
        watch,
        accelerator=processes.accelerator,
        save_every=0.0,
    )
    if processes.first:
        experts.save(Path(folder) / "experts.safetensors")


if __name__ == "__main__":
    main()
