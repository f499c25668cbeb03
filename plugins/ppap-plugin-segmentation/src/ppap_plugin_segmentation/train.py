"""Trains the bundled network: ``python -m ppap_plugin_segmentation.train --work training``.

A small U-Net (Ronneberger et al., 2015) on clean renders of the built-in world, mirrored at random,
never on noise and never blurred: it plays the off-the-shelf model. The loss is the usual cross
entropy of the six segments.

Weights go to ``--out`` in float16, in segmentation-models-pytorch's format; accuracy on fresh
renders, measured with the files as stored, to ``measured.json`` beside them. A finished model is
left alone; delete its folder to train it anew.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import segmentation_models_pytorch as smp
import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional as F

from ppap_host.shapes.dataset import RenderedScenes
from ppap_host.shapes.scenes import SEGMENTS
from ppap_plugin_segmentation.guide import SegmentationGuide
from ppap_plugin_segmentation.shipped import BUNDLED
from ppap_plugin_segmentation.targets import one_hot

TRAIN_SEED = 202
FRESH_SEED = 909
FRESH_COUNT = 2000
SEED = 23

_PREPROCESSING = {
    "transform": {
        "__class_fullname__": "Compose",
        "p": 1.0,
        "transforms": [
            {"__class_fullname__": "Resize", "p": 1.0, "height": 64, "width": 64,
             "interpolation": 1},
            {"__class_fullname__": "Normalize", "p": 1.0, "mean": [0.5] * 3, "std": [0.5] * 3,
             "max_pixel_value": 255.0, "normalization": "standard"},
        ],
    }
}  # fmt: skip


def build_model() -> smp.Unet:
    """The untrained network, 64 x 64 RGB to logits of the six segments at 64 x 64.

    Its encoder is a ResNet-10-T, narrower than usual where the maps are large, which is where the
    time goes, and as wide as usual at 4 x 4, where the parameters are. In all 1.04 M parameters and
    61 M multiply-adds.
    """
    return smp.Unet(
        "tu-resnet10t",
        encoder_depth=4,
        encoder_weights=None,
        decoder_channels=(40, 24, 16, 10),
        classes=len(SEGMENTS),
        channels=(36, 72, 256, 512),
        stem_width=12,
    )


def _segments(data: RenderedScenes, picks: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(data.segmentation[picks]).to(device).long()


def train(
    data: RenderedScenes, images: int, batch: int, lr: float, device: torch.device
) -> smp.Unet:
    """Trains the model on ``images`` randomly mirrored images; returns it in evaluation mode."""
    torch.manual_seed(SEED)
    # Channels last: half as fast again on a processor.
    model = build_model().to(device, memory_format=torch.channels_last).train()
    rng = np.random.Generator(np.random.Philox(key=SEED))
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}], lr=lr
    )
    steps = math.ceil(images / batch)
    with Progress() as progress:
        task = progress.add_task("training", total=steps)
        average = 0.0
        for step in range(steps):
            warm = min(1.0, (step + 1) / (0.05 * steps))
            for group in optimiser.param_groups:
                group["lr"] = lr * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
            picks = np.sort(rng.integers(0, len(data), batch))
            x, truth = data.images(picks, device), _segments(data, picks, device)
            mirrored = torch.from_numpy(rng.random(batch) < 0.5).to(device)
            x = torch.where(mirrored.view(-1, 1, 1, 1), x.flip(-1), x)
            truth = torch.where(mirrored.view(-1, 1, 1), truth.flip(-1), truth)
            loss = F.cross_entropy(model(x.contiguous(memory_format=torch.channels_last)), truth)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            average += (float(loss.detach()) - average) / min(step + 1, 100)
            progress.update(task, advance=1, description=f"training, loss {average:.4f}")
    return model.eval()


def save(model: smp.Unet, folder: Path) -> None:
    """Writes the model in float16 with its preprocessing and its labels."""
    model.to("cpu", torch.float16, memory_format=torch.contiguous_format).save_pretrained(folder)
    # A model card, which the library writes with placeholders to be filled in.
    (folder / "README.md").unlink(missing_ok=True)
    (folder / "albumentations_config_eval.json").write_text(
        json.dumps(_PREPROCESSING, indent=2) + "\n"
    )
    (folder / "labels.json").write_text(json.dumps(list(SEGMENTS)) + "\n")


@torch.no_grad()
def measure(
    guide: SegmentationGuide, data: RenderedScenes, device: torch.device
) -> dict[str, float]:
    """Mean measures of ``guide`` an image, and the IoU of each class over all images together."""
    guide.to(device, torch.float32)
    count = len(guide.labels)
    columns: dict[str, list[float]] = {}
    confusion = torch.zeros(count * count, dtype=torch.int64)
    for start in range(0, len(data), 100):
        picks = np.arange(start, min(start + 100, len(data)))
        output, truth = guide.see(data.images(picks, device)), _segments(data, picks, device)
        target = one_hot(truth, count)
        rows = guide.measure(output, target) | {"loss": guide.loss(output, target).tolist()}
        for name, values in rows.items():
            columns.setdefault(f"{name} of an image", []).extend(values)
        pairs = truth * count + output.argmax(dim=1)
        confusion += torch.bincount(pairs.flatten().cpu(), minlength=count * count)
    table = confusion.view(count, count).double()
    iou = table.diag() / (table.sum(dim=0) + table.sum(dim=1) - table.diag())
    means = {name: round(float(np.mean(values)), 4) for name, values in columns.items()}
    classes = {f"iou of {k}": round(v, 4) for k, v in zip(guide.labels, iou.tolist(), strict=True)}
    return {"miou": round(float(iou.mean()), 4)} | means | classes


def main() -> None:
    """Command line of the training script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for rendered scenes")
    parser.add_argument("--out", type=Path, default=BUNDLED, help="folder of the model")
    parser.add_argument("--scenes", type=int, default=12_000, help="different scenes to train on")
    parser.add_argument("--images", type=int, default=24_000, help="images to see in all")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its default")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if (args.out / "measured.json").exists():
        print(f"{args.out} is there already; delete it to train it anew.")
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    data = RenderedScenes(args.work / "scenes", TRAIN_SEED, args.scenes)
    began = time.time()
    model = train(data, args.images, args.batch, args.lr, device)
    seconds = time.time() - began
    save(model, args.out)
    fresh = RenderedScenes(args.work / "scenes", FRESH_SEED, FRESH_COUNT)
    report = {
        "command": shlex.join(["python", "-m", "ppap_plugin_segmentation.train", *sys.argv[1:]]),
        "trained_on": {
            "scene_seed": TRAIN_SEED,
            "scenes": args.scenes,
            "seed": SEED,
            "images": args.images,
            "seconds": round(seconds),
        },
        "measured_on": {"scene_seed": FRESH_SEED, "scenes": FRESH_COUNT},
        "measured": measure(SegmentationGuide(str(args.out)), fresh, device),
    }
    (args.out / "measured.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report["measured"]))


if __name__ == "__main__":
    main()
