"""Trains four classifiers of different quality: ``python -m ppap_plugin_classifier.qualities``.

For the question whether a better calibrated classifier guides better (EluCD, Ma et al., 2024,
section 3.1), there must be classifiers that differ:

===========  ======================================================================
``shipped``  the bundled ResNet as it is, ReLU
``hasty``    the same network, taught less than half as long, on half the scenes
``gelu``     a small ConvNeXt
``silu``     a small EfficientNet
===========  ======================================================================

Each is a folder below ``--out`` that ``--model`` takes, with ``measured.json`` beside its weights.
All are trained on clean renders of the same seed. Finished ones are left alone, so that an
interrupted training is repeated by giving the command again.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from ppap_plugin_classifier.shipped import BUNDLED
from ppap_plugin_classifier.train import Settings, run

SCENES = 6000

QUALITIES: dict[str, Settings | None] = {
    "shipped": None,
    "hasty": Settings("resnet", SCENES, images=18_000),
    "gelu": Settings("convnext", SCENES, images=40_000),
    "silu": Settings("efficientnet", SCENES, images=40_000),
}
"""How each is trained; None: it is there already."""


def make(work: Path, out: Path, names: Sequence[str], device: torch.device) -> dict[str, float]:
    """Trains those of ``names`` that are not there yet.

    Args:
        work: folder for rendered scenes.
        out: folder of the models, one folder each.

    Returns:
        The accuracy of each on fresh clean renders, in [0, 1].
    """
    accuracy = {}
    for name in names:
        settings = QUALITIES[name]
        if settings is None:
            shutil.copytree(BUNDLED, out / name, dirs_exist_ok=True)
        command = f"python -m ppap_plugin_classifier.qualities --only {name}"
        report = run(work, out / name, settings or Settings(), device, command)
        accuracy[name] = float(report["measured"]["accuracy"])
    return accuracy


def main() -> None:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for rendered scenes")
    parser.add_argument("--out", type=Path, required=True, help="folder of the models")
    parser.add_argument("--only", choices=QUALITIES, nargs="*", default=list(QUALITIES))
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its default")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    for name, accuracy in make(args.work, args.out, args.only, torch.device(args.device)).items():
        print(f"{name:10} {accuracy:.4f}")


if __name__ == "__main__":
    main()
