"""Trains the bundled classifier: ``python -m ppap_plugin_classifier.train --work training``.

A small ResNet of timm (He et al., 2016) on clean renders of the built-in world, never on noise or
blurred pictures: it plays the off-the-shelf model. Its stem halves the picture twice, so that it
costs little at every sampling step. Where it subsamples it filters first (Zhang, 2019, "Making
convolutional networks shift-invariant again"): without that its gradient is full of aliased
patterns that no person sees, and guides badly.

``--arch`` trains another network on the same renders, for studies of how much the guide matters: a
ConvNeXt (Liu et al., 2022) with GELU or an EfficientNet (Tan and Le, 2019) with SiLU. ``--images``
says for how long.

Weights go to ``--out`` in float16, as a folder that timm itself loads (``local-dir:``); accuracy on
fresh renders, measured with the files as stored, to ``measured.json`` beside them. A finished model
is left alone; delete its folder to train it anew. ``--width`` scales all its channels, for studies
of the size.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from rich.progress import Progress
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ppap_host.shapes.dataset import RenderedScenes
from ppap_host.shapes.scenes import CLASS_NAMES
from ppap_plugin_classifier.guide import ClassifierGuide
from ppap_plugin_classifier.shipped import BUNDLED

TRAIN_SEED = 202
FRESH_SEED = 909
FRESH_COUNT = 2000
SEED = 22
SHIFT = 4
"""Largest random shift of a training picture, in pixels."""


@dataclass(frozen=True)
class Architecture:
    """A network of timm at the size of the built-in world's pictures.

    Attributes:
        timm: what timm calls it.
        arguments: what timm needs besides that and the number of classes; takes the factor on all
            channel counts.
        activation: in its layers, for people.
        lr: learning rate at its peak.
    """

    timm: str
    arguments: Callable[[float], dict[str, Any]]
    activation: str
    lr: float


def _scaled(channels: tuple[int, ...], width: float) -> list[int]:
    return [max(8, round(c * width / 8) * 8) for c in channels]


ARCHITECTURES = {
    "resnet": Architecture(
        "resnetblur18",
        lambda width: {"layers": [1, 1, 1, 1], "channels": _scaled((48, 96, 160, 224), width)},
        "ReLU",
        2e-3,
    ),
    # Steps of two pixels in the stem: a solid may be ten pixels wide.
    "convnext": Architecture(
        "convnext_atto",
        lambda width: {
            "patch_size": 2,
            "depths": [1, 1, 2, 1],
            "dims": _scaled((40, 80, 128, 192), width),
        },
        "GELU",
        2e-3,
    ),
    "efficientnet": Architecture(
        "test_efficientnet", lambda width: {"channel_multiplier": width}, "SiLU", 4e-3
    ),
}
"""By the names that ``--arch`` takes; the first is the one that is shipped."""


@dataclass(frozen=True)
class Settings:
    """How one network is trained.

    Attributes:
        arch: one of :data:`ARCHITECTURES`.
        scenes: different scenes to train on.
        images: to see in all.
        width: factor on all channel counts.
        batch: images a step.
        lr: learning rate at its peak; None: the architecture's own.
        seed: of initial weights and batches.
    """

    arch: str = "resnet"
    scenes: int = 12_000
    images: int = 40_000
    width: float = 1.0
    batch: int = 32
    lr: float | None = None
    seed: int = SEED


def _batches(count: int, batch: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Indices of random batches for ever; every scene once before any comes again."""
    order = np.empty(0, dtype=np.int64)
    while True:
        while len(order) < batch:
            order = np.concatenate([order, rng.permutation(count)])
        yield np.sort(order[:batch])
        order = order[batch:]


def augmented(x: Tensor, rng: np.random.Generator) -> Tensor:
    """``x`` [b, 3, h, w], each mirrored or not and shifted by up to :data:`SHIFT` pixels."""
    height, width = x.shape[-2:]
    mirrored = torch.from_numpy(rng.random(len(x)) < 0.5).to(x.device)
    x = torch.where(mirrored.view(-1, 1, 1, 1), x.flip(-1), x)
    wide = F.pad(x, (SHIFT,) * 4, mode="replicate")
    corners = rng.integers(0, 2 * SHIFT + 1, (len(x), 2)).tolist()
    cut = [one[:, r : r + height, c : c + width] for one, (r, c) in zip(wide, corners, strict=True)]
    return torch.stack(cut)


def train(data: RenderedScenes, settings: Settings, device: torch.device) -> nn.Module:
    """Trains a network on augmented images of ``data``; returns it in evaluation mode."""
    arch, batch = ARCHITECTURES[settings.arch], settings.batch
    lr = arch.lr if settings.lr is None else settings.lr
    torch.manual_seed(settings.seed)
    model = timm.create_model(
        arch.timm, num_classes=len(CLASS_NAMES), **arch.arguments(settings.width)
    )
    # Channels last is a third faster on a CPU; the numbers are the same.
    model = model.to(device, memory_format=torch.channels_last).train()
    rng = np.random.Generator(np.random.Philox(key=settings.seed))
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}], lr=lr
    )
    steps = math.ceil(settings.images / batch)
    batches = _batches(len(data), batch, rng)
    with Progress() as progress:
        task = progress.add_task("training", total=steps)
        average = 0.0
        for step in range(steps):
            warm = min(1.0, (step + 1) / (0.05 * steps))
            for group in optimiser.param_groups:
                group["lr"] = lr * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
            picks = next(batches)
            x = augmented(data.images(picks, device), rng)
            x = x.contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(model(x), data.labels[picks].to(device))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            average += (float(loss.detach()) - average) / min(step + 1, 100)
            progress.update(task, advance=1, description=f"training, loss {average:.4f}")
    trained: nn.Module = model.eval().to(memory_format=torch.contiguous_format)
    return trained


def save(model: nn.Module, settings: Settings, out: Path, trained: dict[str, Any]) -> None:
    """Writes ``config.json`` and, in float16, ``model.safetensors`` as timm reads them."""
    arch = ARCHITECTURES[settings.arch]
    known: Any = model
    config = {
        "architecture": arch.timm,
        "num_classes": len(CLASS_NAMES),
        "num_features": known.num_features,
        "global_pool": "avg",
        "label_names": list(CLASS_NAMES),
        "model_args": {"num_classes": len(CLASS_NAMES), **arch.arguments(settings.width)},
        "pretrained_cfg": {
            "tag": "shapes",
            "custom_load": False,
            "input_size": [3, 64, 64],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "num_classes": len(CLASS_NAMES),
            "pool_size": [2, 2],
            "first_conv": known.pretrained_cfg["first_conv"],
            "classifier": known.pretrained_cfg["classifier"],
            "license": "apache-2.0",
        },
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    state = {
        name: value.half() if value.is_floating_point() else value
        for name, value in model.cpu().state_dict().items()
    }
    # In the file itself, so that its origin travels with it.
    metadata = {"format": "pt", "trained_on": json.dumps(trained)}
    save_file(state, out / "model.safetensors", metadata=metadata)


@torch.no_grad()
def measure(guide: ClassifierGuide, data: RenderedScenes, device: torch.device) -> dict[str, float]:
    """Accuracy, probability and negative log probability of the right class, means over ``data``.

    ``calibration_error`` is the expected calibration error of Guo et al. (2017, eq. 3), 10 bins.
    """
    guide.to(device, torch.float32)
    columns: dict[str, list[float]] = {}
    for start in range(0, len(data), 100):
        picks = np.arange(start, min(start + 100, len(data)))
        logits = guide.see(data.images(picks, device))
        labels = data.labels[picks].to(device)
        probabilities = logits.softmax(dim=1)
        rows = {
            "accuracy": (logits.argmax(dim=1) == labels).double(),
            "probability": probabilities.gather(1, labels[:, None])[:, 0],
            "loss": F.cross_entropy(logits, labels, reduction="none"),
            "confidence": probabilities.amax(dim=1),
        }
        for name, values in rows.items():
            columns.setdefault(name, []).extend(values.tolist())
    right, confidence = np.array(columns["accuracy"]), np.array(columns["confidence"])
    bins = np.minimum((confidence * 10).astype(int), 9)
    gaps = [abs(right[bins == k].sum() - confidence[bins == k].sum()) for k in range(10)]
    means = {name: float(np.mean(values)) for name, values in columns.items()}
    means["calibration_error"] = float(sum(gaps)) / len(data)
    return {name: round(value, 4) for name, value in means.items()}


def run(
    work: Path, out: Path, settings: Settings, device: torch.device, command: str
) -> dict[str, Any]:
    """Trains and measures one network; what is there of it already is kept.

    Args:
        work: folder for rendered scenes.
        out: folder of the model.
        command: what the report says it was made with.

    Returns:
        What ``measured.json`` says.
    """
    measured, weights = out / "measured.json", out / "model.safetensors"
    if measured.exists():
        known: dict[str, Any] = json.loads(measured.read_text())
        return known
    if not weights.exists():
        data = RenderedScenes(work / "scenes", TRAIN_SEED, settings.scenes)
        began = time.time()
        model = train(data, settings, device)
        trained = {
            "scene_seed": TRAIN_SEED,
            "scenes": settings.scenes,
            "seed": settings.seed,
            "images": settings.images,
            "seconds": round(time.time() - began),
        }
        save(model, settings, out, trained)
    with safe_open(weights, "pt") as file:
        trained = json.loads(file.metadata()["trained_on"])
    guide = ClassifierGuide(str(out))
    fresh = RenderedScenes(work / "scenes", FRESH_SEED, FRESH_COUNT)
    report = {
        "command": command,
        "trained_on": trained,
        "measured_on": {"scene_seed": FRESH_SEED, "scenes": FRESH_COUNT},
        "parameters": sum(p.numel() for p in guide.network().parameters()),
        "measured": measure(guide, fresh, device),
    }
    measured.write_text(json.dumps(report, indent=2) + "\n")
    return report


def main() -> None:
    """Command line of the training script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for rendered scenes")
    parser.add_argument("--out", type=Path, default=BUNDLED, help="folder of the model")
    parser.add_argument("--arch", choices=ARCHITECTURES, default="resnet", help="network")
    parser.add_argument("--scenes", type=int, default=12_000, help="different scenes to train on")
    parser.add_argument("--images", type=int, default=40_000, help="images to see in all")
    parser.add_argument("--width", type=float, default=1.0, help="factor on all channel counts")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, help="learning rate; otherwise the network's own")
    parser.add_argument("--seed", type=int, default=SEED, help="of initial weights and batches")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its default")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if (args.out / "measured.json").exists():
        print(f"{args.out} is there already; delete it to train it anew.")
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    settings = Settings(
        args.arch, args.scenes, args.images, args.width, args.batch, args.lr, args.seed
    )
    command = shlex.join(["python", "-m", "ppap_plugin_classifier.train", *sys.argv[1:]])
    report = run(args.work, args.out, settings, torch.device(args.device), command)
    print(json.dumps(report["measured"]))


if __name__ == "__main__":
    main()
