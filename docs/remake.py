"""Makes again what hangs on the built-in backbone, by the commands that the pages show.

    python docs/remake.py --work remake

is for the day on which the backbone changed: experts and frontiers fit the weights that they were
made with alone, and every figure and picture is of them. Steps follow each other; one that is done
is left out when the command is given again, and every step goes on where it was. ``--only NAME``
makes steps whose names begin with one of these, ``--list`` says which there are, and
``--processes 2`` shares those that can be shared. What a step made goes where the packages and the
pages have it. Then ``python docs/make_pictures.py`` and ``python docs/generate.py`` renew the rest.

Classifiers of ``docs/elucd.md`` and ``docs/bench.md`` that are trained for hours are no part of it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

DOCS = Path(__file__).parent
PLUGINS = DOCS.parent / "plugins"
RESULTS = DOCS / "results"
NETWORKS = {"classifier": "shapes-resnet", "depth": "shapes-dpt", "segmentation": "shapes-unet"}


@dataclass(frozen=True)
class Step:
    """One command, given in the work folder.

    Attributes:
        command: its words; standard output goes to ``stdout`` where that is named.
        puts: file below the work folder -> where it belongs.
        shared: whether several processes can share it.
    """

    name: str
    command: str
    puts: dict[str, Path] = field(default_factory=dict)
    stdout: str | None = None
    shared: bool = False


def weights(guide: str) -> Path:
    """Where the plugin of a guide has its weights."""
    return PLUGINS / f"ppap-plugin-{guide}" / "src" / f"ppap_plugin_{guide}" / "weights"


def _tuned(guide: str, experts: int, options: str = "") -> Step:
    made, kept = f"{guide}-{experts}", weights(guide) / "experts" / f"shapes-{experts}.safetensors"
    return Step(
        f"experts {made}",
        f"ppap tune {guide} --harvest harvest{options} --licence Apache-2.0 --out {made}",
        {f"{made}/experts.safetensors": kept},
        shared=True,
    )  # fmt: skip


def _frontier(guide: str) -> Step:
    return Step(
        f"frontier {guide}",
        f"ppap search --guide {guide} --frontier --budget 32 --num 64 --scale-range 0.5:12 "
        f"--dtype bfloat16 --confirm 192 --work search-{guide}",
        {f"search-{guide}/frontier.json": weights(guide) / NETWORKS[guide] / "frontier.json"},
    )


def _kept(folder: str, names: Sequence[str]) -> dict[str, Path]:
    return {f"{folder}/{name}": RESULTS / name for name in names}


STEPS = (
    Step("harvest", "ppap harvest --out harvest", shared=True),
    *(_tuned(guide, 5) for guide in NETWORKS),
    _tuned("classifier", 1, " --experts 1 --steps 1250"),
    _tuned("classifier", 2, " --experts 2 --steps 625"),
    _tuned("classifier", 10, " --experts 10 --steps 125"),
    *(_frontier(guide) for guide in NETWORKS),
    Step("judged", "ppap shapes evaluate all --num 512 --bfloat16 --out judged"),
    Step(
        "spoiled", "ppap shapes evaluate spoiled --num 128 --json",
        {"spoiled.json": RESULTS / "spoiled.json"}, stdout="spoiled.json",
    ),
    Step(
        "bench recipes", "ppap bench recipes --num 24 --evaluations 25 --out bench-recipes",
        _kept("bench-recipes", ("recipes.csv", "recipes.json", "recipes.png"))
        | {"bench-recipes/sheet.png": RESULTS / "recipes-sheet.png"},
    ),
    Step(
        "bench ppap", "ppap bench ppap --harvest harvest --retune --out bench",
        {"bench/results.json": RESULTS / "ppap.json"}
        | {
            f"bench/{folder}/{guide}{made}.png": RESULTS / f"{guide}-{kept}.png"
            for guide in NETWORKS
            for folder, made, kept in (
                ("sheets", "", "images"), ("plots", "-noise", "noise"),
                ("plots", "-strength", "strength"),
            )
        },
    ),
    Step(
        "search depth", "ppap search --guide depth --recipe x0 --budget 24 --num 12 --steps 20 "
        "--work search",
        {"search/trials.csv": RESULTS / "search-depth-x0.csv",
         "search/search.png": RESULTS / "search-depth-x0.png"},
    ),
)  # fmt: skip


def words(step: Step, processes: int) -> list[str]:
    """What is run for a step."""
    words = step.command.split()
    if step.shared and processes > 1:
        started = ["torchrun", "--standalone", "--nproc-per-node", str(processes), "-m"]
        words = [*started, "ppap_host", *words[1:]]
    return words


def make(step: Step, work: Path, processes: int) -> None:
    """Runs a step that is not done, and puts what it made where it belongs.

    Raises:
        SystemExit: the command failed.
    """
    done = work / f"{step.name.replace(' ', '-')}.done"
    if done.exists():
        print(f"{step.name}: done", flush=True)
        return
    print(f"{step.name}: {step.command}", flush=True)
    began = time.monotonic()
    environment = os.environ | {"OMP_NUM_THREADS": "1"} if step.shared else None
    run = subprocess.run(
        words(step, processes), cwd=work, env=environment, check=False,
        stdout=subprocess.PIPE if step.stdout else None,
    )  # fmt: skip
    if run.returncode:
        raise SystemExit(f"{step.name} failed ({run.returncode}): {step.command}")
    if step.stdout:
        (work / step.stdout).write_bytes(run.stdout)
    for made, belongs in step.puts.items():
        if step.name.startswith("experts"):
            _in_half(work / made, belongs)
        else:
            shutil.copyfile(work / made, belongs)
    done.write_text(f"{step.command}\n{time.monotonic() - began:.0f} seconds\n", encoding="utf-8")


def _in_half(made: Path, belongs: Path) -> None:
    """An expert set as it is shipped: in half precision, half as large."""
    import torch

    from ppap_host.experts.sets import ExpertSet

    ExpertSet.load(made).save(belongs, torch.float16)


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the steps that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="where steps leave what they make")
    parser.add_argument("--only", action="append", default=[], help="beginning of a step's name")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="say which steps there are")
    given = parser.parse_args(arguments)
    chosen = [s for s in STEPS if not given.only or s.name.startswith(tuple(given.only))]
    if not chosen:
        raise SystemExit(f"No such step. There are: {', '.join(s.name for s in STEPS)}.")
    if given.list:
        sys.stdout.writelines(f"{s.name}: {s.command}\n" for s in chosen)
        return
    given.work.mkdir(parents=True, exist_ok=True)
    for step in chosen:
        make(step, given.work, given.processes)


if __name__ == "__main__":
    main()
