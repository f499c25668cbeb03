"""Learns what the network of a guide knows: ``python -m ppap_host.shapes.train_familiarity``.

For networks that were trained on the built-in world, such as those that guides ship. The features
of fresh renders at one layer are described by their mean and covariance
(:mod:`ppap_host.guides.familiarity`). The limit lies between renders and pictures of other kinds,
at the geometric mean of the distances that 999 of 1000 renders and 1 of 100 other pictures have at
most. What it stops and what it lets through is then measured on further renders, plain, spoiled as
for the judges and compressed as JPEG, and on further pictures, and written into the file.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ppap_host.files.errors import TargetError
from ppap_host.files.images import from_tensor, read_rgb, to_pixels, to_tensor, to_unit
from ppap_host.guides.familiarity import FILE, Familiarity, learn, pooled
from ppap_host.plugins.loading import load_guide
from ppap_host.plugins.registry import registry
from ppap_host.shapes.model import IMAGE_SIZE
from ppap_host.shapes.renderer import render
from ppap_host.shapes.scenes import sample_scenes
from ppap_host.shapes.train_judges import Spoiler

SEEDS = (1_000_070, 1_000_071, 1_000_072)
"""Of the renders that are learnt, that the limit is found on, and that it is measured on."""

KNOWS = "rendered rooms with coloured solids"


def renders(seed: int, count: int) -> Tensor:
    """Renders as they would be read from files, [n, 3, 64, 64] in [-1, 1]."""
    return to_unit(to_pixels(render(sample_scenes(seed, 0, count)).rgb))


def spoiled(x: Tensor) -> Tensor:
    """The same pictures mildly spoiled, some of them, as the judges learn them."""
    rng = np.random.Generator(np.random.Philox(key=SEEDS[2]))
    return to_unit(to_pixels(Spoiler(rng, torch.device("cpu"))(x)))


def compressed(x: Tensor) -> Tensor:
    """The same pictures after JPEG compression at quality 75."""
    out = []
    for picture in from_tensor(x):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=75)
        out.append(to_tensor(Image.open(buffer)))
    return torch.cat(out)


def pictures(folders: list[Path]) -> Tensor:
    """All pictures in folders as targets are read, and the middle quarter of each."""
    found = []
    for path in sorted(path for folder in folders for path in folder.iterdir() if path.is_file()):
        try:
            whole = read_rgb(path)
        except TargetError:  # no picture
            continue
        w, h = whole.size
        for part in (whole, whole.crop((w // 4, h // 4, w - w // 4, h - h // 4))):
            size = (IMAGE_SIZE, IMAGE_SIZE)
            found.append(to_tensor(ImageOps.fit(part, size, Image.Resampling.LANCZOS)))
    return torch.cat(found)


def main() -> None:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--guide", required=True, help="its name; its own network is looked at")
    parser.add_argument("--layer", required=True, help="name of a module of its network")
    parser.add_argument("--out", type=Path, help="a folder; default: where its weights lie")
    parser.add_argument("--count", type=int, default=4000, help="renders to learn")
    parser.add_argument(
        "--pictures", type=Path, action="append", required=True,
        help="a folder of pictures of other kinds to find the limit on; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--others", type=Path, action="append", required=True,
        help="a folder of further ones to measure the limit on; repeatable",
    )  # fmt: skip
    args = parser.parse_args()
    guide = load_guide(registry(), args.guide)

    def see(x: Tensor) -> Tensor:
        return pooled(guide.network(), args.layer, guide.prepare(x))

    mean, whitening = learn(see, renders(SEEDS[0], args.count))
    known = Familiarity(args.layer, mean.float(), whitening.float(), math.inf, KNOWS)

    def distances(x: Tensor) -> Tensor:
        return torch.cat(
            [known.distance(guide.network(), guide.prepare(part)) for part in x.split(64)]
        )

    inside, outside = distances(renders(SEEDS[1], 2000)), distances(pictures(args.pictures))
    near, far = float(inside.quantile(0.999)), float(outside.quantile(0.01))
    limit = round(math.sqrt(near * far), 3)
    fresh = renders(SEEDS[2], 1000)
    sets = {
        "renders": distances(fresh),
        "spoiled renders": distances(spoiled(fresh)),
        "compressed renders": distances(compressed(fresh)),
        "pictures": outside,
        "other pictures": distances(pictures(args.others)),
    }
    measured: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "ppap_host.shapes.train_familiarity", *sys.argv[1:]])
    }
    for name, found in sets.items():
        measured[name] = {
            "count": len(found),
            "lowest": round(float(found.min()), 3),
            "median": round(float(found.median()), 3),
            "highest": round(float(found.max()), 3),
            "warned of": round(float((found >= limit).double().mean()), 4),
        }
    out = args.out or Path(guide.files()[0]).parent
    Familiarity(args.layer, known.mean, known.whitening, limit, KNOWS, measured).save(out / FILE)
    print(json.dumps({"limit": limit} | measured, indent=2))


if __name__ == "__main__":
    main()
