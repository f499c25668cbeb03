"""How much memory a guided step takes, against an unguided one.

    python -m ppap_plugin_openai.memory

Builds the published ADM of 256 x 256 pixels without classes (554 million parameters) and the
noise-aware classifier of that size, both with random weights, and takes one step for one image on
the CPU: unguided, and with the guide shown x_t, the predicted x_0 held constant, and the predicted
x_0 with the gradient taken back through the backbone. Each case runs in a process of its own, so
that its peak is its own. Not for Windows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import torch

from ppap_host.backbones.backbone import ClassifierFree
from ppap_host.backbones.noise import Walk
from ppap_host.recipes.presets import PPAP, X0, X0_THROUGH
from ppap_host.recipes.recipe import Recipe
from ppap_host.sampling.evaluator import Guidance
from ppap_host.sampling.loop import sample
from ppap_host.sampling.solvers import DDIM
from ppap_host.sampling.streams import ImageNoise
from ppap_plugin_openai.adm import (
    PUBLISHED_ADM,
    PUBLISHED_CLASSIFIERS,
    ADMClassifier,
    build_adm,
)
from ppap_plugin_openai.backbone import ADMBackbone
from ppap_plugin_openai.guide import ADMClassifierGuide

CASES: Final[Mapping[str, Recipe | None]] = {
    "unguided": None,
    "guide at x_t": PPAP,
    "guide at x_0, held constant": X0,
    "guide at x_0, through the backbone": X0_THROUGH,
}
_BACKBONE, _CLASSIFIER = "adm-256-uncond", "adm-256-classifier"
_GIB = 2**30


@dataclass(frozen=True)
class Footprint:
    """What one case took.

    Attributes:
        loaded: peak of resident memory after the networks were made, bytes.
        peak: the same after the step.
        seconds: the step took.
    """

    loaded: int
    peak: int
    seconds: float


def measure(case: str, channels: int, batch: int = 1) -> Footprint:
    """Takes one step of a case in this process.

    Args:
        case: of :data:`CASES`.
        channels: base width of the U-Net; the published one has 256.
        batch: images.
    """
    config = replace(PUBLISHED_ADM[_BACKBONE].config, num_channels=channels)
    if channels % config.num_head_channels:
        config = replace(config, num_head_channels=channels)
    backbone = ADMBackbone(build_adm(config).eval().requires_grad_(False))
    recipe, guidance = CASES[case], []
    if recipe is not None:
        classifier = ADMClassifier(PUBLISHED_CLASSIFIERS[_CLASSIFIER].config)
        guide = ADMClassifierGuide.of(classifier.eval().requires_grad_(False))
        target = guide.read_target("0", backbone.image_size).value
        guidance = [Guidance(guide, target, recipe, 1.0)]
    loaded, began = _peak(), time.perf_counter()
    levels = backbone.levels()
    sample(
        backbone,
        ClassifierFree(backbone, {}, {}),
        Walk((levels[500], levels[480])),
        DDIM(),
        ImageNoise(0, range(batch), backbone.state_shape),
        guidance,
    )
    return Footprint(loaded, _peak(), time.perf_counter() - began)


def _peak() -> int:
    """Largest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # Linux lets the resource module's figure start at that of the process that began this one.
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kibibytes on Linux, bytes on macOS.
    return peak if sys.platform == "darwin" else 1024 * peak


def table(footprints: Mapping[str, Footprint]) -> str:
    """One line a case, with what it takes over the first."""
    least = next(iter(footprints.values())).peak
    lines = [f"{'step':36}{'networks':>10}{'peak':>10}{'over unguided':>15}{'seconds':>9}"]
    for case, taken in footprints.items():
        sizes = f"{taken.loaded / _GIB:6.2f} GiB{taken.peak / _GIB:6.2f} GiB"
        more = f"{(taken.peak - least) / _GIB:+.2f} GiB"
        lines.append(f"{case:36}{sizes}{more:>15}{taken.seconds:9.1f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures every case in a process of its own and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m ppap_plugin_openai.memory")
    parser.add_argument("--channels", type=int, default=256, help="width of the U-Net")
    parser.add_argument("--batch", type=int, default=1, help="images")
    parser.add_argument("--case", choices=CASES, help="measure only this, here, and print JSON")
    given = parser.parse_args(arguments)
    if given.case:
        torch.manual_seed(0)
        print(json.dumps(asdict(measure(given.case, given.channels, given.batch))))
        return
    footprints = {}
    for case in CASES:
        command = [sys.executable, "-m", __spec__.name, "--case", case]
        command += ["--channels", str(given.channels), "--batch", str(given.batch)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        footprints[case] = Footprint(**json.loads(output))
    print(table(footprints))


if __name__ == "__main__":
    main()
