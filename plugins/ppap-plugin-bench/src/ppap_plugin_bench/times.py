"""Times that the project promises: ``python -m ppap_plugin_bench.times`` (or ``nox -s bench``).

Each figure is the median of interleaved repetitions, printed as JSON beside its bound.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

BASELINE = "import typer, rich, pluggy"


def seconds(action: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def medians(actions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median wall time of each action, repetitions interleaved so that all see the same noise."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeats):
        for name, action in actions.items():
            times[name].append(seconds(action))
    return {name: statistics.median(values) for name, values in times.items()}


def command(*args: str) -> Callable[[], object]:
    """Runs the command line in a new process, output thrown away."""
    return lambda: subprocess.run(
        [sys.executable, *args], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def start_up(repeats: int) -> dict[str, Any]:
    """``ppap --help`` and ``ppap list`` against importing the libraries they stand on."""
    found = medians(
        {
            "baseline": command("-c", BASELINE),
            "help": command("-m", "ppap_host", "--help"),
            "list": command("-m", "ppap_host", "list"),
        },
        repeats,
    )
    bound = 2 * found["baseline"] + 0.2
    return found | {"bound": bound, "within": max(found["help"], found["list"]) <= bound}


def default_run(target: Path) -> dict[str, Any]:
    """The README's run of 4 images, start-up included; at most 60 s on 2 cores."""
    with tempfile.TemporaryDirectory() as scratch:
        run = command(
            "-m", "ppap_host", "run", "--guide", "depth", "--target", str(target),
            "--out", f"{scratch}/run",
        )  # fmt: skip
        taken = seconds(run)
    return {"seconds": taken, "bound": 60.0, "within": taken <= 60}


def guided_step(target: Path, batch: int, repeats: int) -> dict[str, Any]:
    """A guided step against its bare parts: one backbone forward, one guide forward and backward.

    Aim: 1.05; at most 1.15.
    """
    import torch

    from ppap_host.backbones.backbone import repeat_condition
    from ppap_host.runs.config import GuideConfig, RunConfig
    from ppap_host.runs.setup import set_up
    from ppap_host.sampling.evaluator import Evaluator, Guidance, Health

    config = RunConfig(guides=(GuideConfig("depth", str(target)),), num=batch, batch=batch)
    setup = set_up(config)
    active, base = setup.guides[0], setup.stages[0]
    condition = repeat_condition(base.backbone.encode_prompts([""]), batch)
    solver = base.solver
    assert solver is not None
    middle = len(base.walk) // 2
    level = base.walk.levels[middle]
    x = torch.randn(batch, *base.backbone.state_shape)
    evaluator = Evaluator(
        base.backbone,
        lambda x, level: base.backbone.predict(x, level, condition),
        [Guidance(active.guide, active.targets[0].value, active.recipe, active.scale)],
        ancestral=solver.ancestral,
        health=Health(),
    )

    def backbone_alone() -> None:
        with torch.no_grad():
            base.backbone.predict(x, level, condition)

    def guide_alone() -> None:
        leaf = x.clone().requires_grad_(True)
        loss = active.guide.loss(active.guide.see(leaf), active.targets[0].value)
        torch.autograd.grad(loss.sum(), leaf)

    def whole_step() -> None:
        solver.step(
            x,
            middle,
            base.walk,
            evaluator,
            lambda: torch.zeros_like(x),
            None,
        )

    parts = {"backbone": backbone_alone, "guide": guide_alone, "step": whole_step}
    medians(parts, 3)
    found = medians(parts, repeats)
    ratio = found["step"] / (found["backbone"] + found["guide"])
    return found | {"batch": batch, "ratio": ratio, "bound": 1.15, "within": ratio <= 1.15}


def main() -> None:
    """Command line of the benchmark; exit code 1 if a bound is not met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=Path, default=Path("docs/images/target.png"))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batch", type=int, default=4)
    args = parser.parse_args()
    found = {
        "start_up": start_up(args.repeats),
        "guided_step": guided_step(args.target, args.batch, args.repeats),
        "default_run": default_run(args.target),
    }
    print(json.dumps(found, indent=2))
    sys.exit(0 if all(part["within"] for part in found.values()) else 1)


if __name__ == "__main__":
    main()
