"""Trains the judges: ``python -m ppap_host.shapes.train_judges --work training``.

One set of rendered scenes, of a seed that trains nothing else, serves all three; each judge has a
seed of its own. Pictures are mirrored and mildly spoiled (blur or sharpening, fine and coarse
noise, brightness, contrast, saturation), because judges are shown what diffusion models make. A
judge whose weights are already there is left alone; delete its file to train it anew. Weights go to
``--out`` in float16, accuracy measured on fresh renders with the weights as stored to
``judges.json`` beside them.
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
import torch
from rich.progress import Progress
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ppap_host.shapes.dataset import RenderedScenes
from ppap_host.shapes.judges import (
    FEATURES,
    NETWORKS,
    WEIGHTS,
    ClassJudge,
    aligned,
    load_judge,
    weights_file,
)
from ppap_host.shapes.scenes import SEGMENTS

TRAIN_SEED = 101
FRESH_SEED = 909
FRESH_COUNT = 2000
SEEDS = {"classifier": 11, "depth": 12, "segmenter": 13}


class Spoiler:
    """Mild, label-preserving imperfections, drawn for each image from one generator."""

    def __init__(self, rng: np.random.Generator, device: torch.device) -> None:
        self._rng, self._device = rng, device
        row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=device) / 16
        self._blur = torch.outer(row, row).expand(3, 1, 5, 5).contiguous()

    def _uniform(self, low: float, high: float, count: int) -> Tensor:
        values = self._rng.uniform(low, high, (count, 1, 1, 1)).astype(np.float32)
        return torch.from_numpy(values).to(self._device)

    def _normal(self, *shape: int) -> Tensor:
        return torch.from_numpy(self._rng.standard_normal(shape, np.float32)).to(self._device)

    def __call__(self, x: Tensor) -> Tensor:
        """Spoiled copies of RGB images in [-1, 1], [b, 3, h, w]; about a third stay untouched."""
        n, _, h, w = x.shape
        blurred = F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), self._blur, groups=3)
        # Towards the blurred picture, or a little away from it: sharpening.
        y = x + self._uniform(-0.4, 1.0, n) * (blurred - x)
        coarse = F.interpolate(self._normal(n, 3, h // 8, w // 8), (h, w), mode="bilinear")
        y = y + self._uniform(0, 0.08, n) * coarse
        y = y + self._uniform(0, 0.08, n) * self._normal(n, 3, h, w)
        grey = y.mean(dim=1, keepdim=True)
        y = grey + self._uniform(0.8, 1.2, n) * (y - grey)
        y = self._uniform(0.85, 1.15, n) * y + self._uniform(-0.12, 0.12, n)
        return torch.where(self._uniform(0, 1, n) < 0.35, x, y.clamp(-1, 1))


class Batches:
    """Random mirrored and spoiled training batches."""

    def __init__(self, data: RenderedScenes, rng: np.random.Generator, device: torch.device):
        self._data, self._rng, self._device = data, rng, device
        self._spoil = Spoiler(rng, device)

    def draw(self, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images [b, 3, 64, 64], labels [b], depth in metres [b, 1, 64, 64], segments [b, ...]."""
        # Sorted, so that the memory-mapped files are read forwards.
        picks = np.sort(self._rng.integers(0, len(self._data), count))
        images, labels, depth, segments = read(self._data, picks, self._device)
        mirrored = torch.from_numpy(self._rng.random(count) < 0.5).to(self._device)
        mirror = mirrored.view(-1, 1, 1, 1)
        images = torch.where(mirror, images.flip(-1), images)
        depth = torch.where(mirror, depth.flip(-1), depth)
        segments = torch.where(mirror[:, 0], segments.flip(-1), segments)
        return self._spoil(images), labels, depth, segments


def read(
    data: RenderedScenes, picks: np.ndarray, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rendered scenes ``picks``, as :meth:`Batches.draw` returns them but untouched."""
    rgb = data.images(picks, device)
    depth = torch.from_numpy(data.depth[picks].astype(np.float32)).to(device)[:, None]
    segments = torch.from_numpy(data.segmentation[picks].astype(np.int64)).to(device)
    return rgb, data.labels[torch.from_numpy(picks)].to(device), depth, segments


class ClassTraining(nn.Module):
    """Cross-entropy of the class, plus that of a segmentation read off the unpooled features.

    The second term tells the features where which solid is; without it they need several times as
    many images. Its head is not part of the judge.
    """

    def __init__(self, judge: ClassJudge) -> None:
        super().__init__()
        self.judge = judge
        self.layout = nn.Conv2d(FEATURES, 16 * len(SEGMENTS), 1)

    def forward(self, images: Tensor, labels: Tensor, depth: Tensor, segments: Tensor) -> Tensor:
        maps = self.judge.maps(images)
        of_class = F.cross_entropy(self.judge.head(maps.mean(dim=(2, 3))), labels)
        layout = F.pixel_shuffle(self.layout(maps), 4)
        return of_class + 0.5 * F.cross_entropy(layout, segments[:, ::2, ::2])


def _normalised(depth: Tensor) -> Tensor:
    """Depth less its median, over its mean absolute deviation (Ranftl et al., 2020, eq. 5)."""
    centred = depth - depth.flatten(1).median(dim=1).values.view(-1, 1, 1, 1)
    return centred / centred.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-5)


class DepthTraining(nn.Module):
    """Error of depth up to scale and shift, plus a little error of log depth in metres.

    A picture does not tell how many metres the scene is wide, nor how wide the lens was (a longer
    lens from farther away sees almost the same): both are random in this world and amount to a
    scale and a shift of depth. Trained on metres alone, the network spends itself on guessing them;
    the small second term gives it their best guess.
    """

    def __init__(self, judge: nn.Module) -> None:
        super().__init__()
        self.judge = judge

    def forward(self, images: Tensor, labels: Tensor, depth: Tensor, segments: Tensor) -> Tensor:
        log_depth = self.judge(images)
        shape = F.l1_loss(_normalised(log_depth.exp()), _normalised(depth))
        return shape + 0.2 * F.l1_loss(log_depth, depth.log())


class SegmentTraining(nn.Module):
    """Cross-entropy, with the solids (a fifth of the pixels) counted twice."""

    def __init__(self, judge: nn.Module) -> None:
        super().__init__()
        self.judge = judge
        self.weight: Tensor
        self.register_buffer("weight", torch.tensor([1.0, 1.0, 2.0, 2.0, 2.0, 2.0]))

    def forward(self, images: Tensor, labels: Tensor, depth: Tensor, segments: Tensor) -> Tensor:
        return F.cross_entropy(self.judge(images), segments, self.weight)


def _training(name: str, judge: nn.Module) -> nn.Module:
    if isinstance(judge, ClassJudge):
        return ClassTraining(judge)
    return DepthTraining(judge) if name == "depth" else SegmentTraining(judge)


def train(
    name: str, data: RenderedScenes, images: int, batch: int, lr: float, device: torch.device
) -> nn.Module:
    """Trains the judge ``name`` on ``images`` images; returns it in evaluation mode."""
    torch.manual_seed(SEEDS[name])
    judge = NETWORKS[name]()
    training = _training(name, judge).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches = Batches(data, np.random.Generator(np.random.Philox(key=SEEDS[name])), device)
    optimiser = torch.optim.AdamW(training.parameters(), lr=lr, weight_decay=0.02)
    steps = math.ceil(images / batch)
    with Progress() as progress:
        task = progress.add_task(f"training judge {name}", total=steps)
        average = 0.0
        for step in range(steps):
            warm = min(1.0, (step + 1) / (0.05 * steps))
            for group in optimiser.param_groups:
                group["lr"] = lr * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
            picture, *truth = batches.draw(batch)
            loss = training(picture.contiguous(memory_format=torch.channels_last), *truth)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(training.parameters(), 1.0)
            optimiser.step()
            average += (float(loss.detach()) - average) / min(step + 1, 100)
            progress.update(
                task, advance=1, description=f"training judge {name}, loss {average:.3f}"
            )
    return judge.eval()


@torch.no_grad()
def measure(
    name: str, judge: nn.Module, data: RenderedScenes, device: torch.device
) -> dict[str, float]:
    """The judge's accuracy on renders it has not seen, clean and spoiled, by measure.

    Depth is measured after alignment of scale and shift, which no picture of this world tells;
    ``abs_rel_unaligned`` is what is left without.
    """
    result: dict[str, float] = {}
    for condition in ("clean", "spoiled"):
        spoil = Spoiler(np.random.Generator(np.random.Philox(key=FRESH_SEED)), device)
        right = error = close = metric = 0.0
        confusion = torch.zeros(len(SEGMENTS), len(SEGMENTS), dtype=torch.int64)
        for start in range(0, len(data), 100):
            picks = np.arange(start, min(start + 100, len(data)))
            images, labels, depth, segments = read(data, picks, device)
            output = judge(spoil(images) if condition == "spoiled" else images)
            if name == "classifier":
                right += float((output.argmax(1) == labels).sum())
            elif name == "depth":
                fitted = aligned(output.exp(), depth) / depth
                error += float((fitted - 1).abs().mean(dim=(1, 2, 3)).sum())
                near = torch.maximum(fitted, 1 / fitted.clamp_min(1e-3)) < 1.25
                close += float(near.float().mean(dim=(1, 2, 3)).sum())
                metric += float((output.exp() / depth - 1).abs().mean(dim=(1, 2, 3)).sum())
            else:
                pairs = segments * len(SEGMENTS) + output.argmax(1)
                counts = torch.bincount(pairs.flatten().cpu(), minlength=confusion.numel())
                confusion += counts.view(confusion.shape)
        if name == "classifier":
            result[f"accuracy_{condition}"] = right / len(data)
        elif name == "depth":
            result[f"abs_rel_{condition}"] = error / len(data)
            result[f"delta_1.25_{condition}"] = close / len(data)
            result[f"abs_rel_unaligned_{condition}"] = metric / len(data)
        else:
            hit = confusion.diag().double()
            iou = hit / (confusion.sum(0) + confusion.sum(1) - hit)
            result[f"miou_{condition}"] = float(iou.mean())
            for segment, value in zip(SEGMENTS, iou.tolist(), strict=True):
                result[f"iou_{segment}_{condition}"] = value
    return {key: round(value, 4) for key, value in result.items()}


def main() -> None:
    """Command line of the training script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for rendered scenes")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder for the weights")
    parser.add_argument("--only", choices=list(NETWORKS), action="append", help="repeatable")
    parser.add_argument("--scenes", type=int, default=12_000, help="different scenes to train on")
    parser.add_argument("--images", type=int, default=24_000, help="images each judge sees")
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its default")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    report_file = args.out / "judges.json"
    for name in args.only or NETWORKS:
        path = weights_file(name, args.out)
        if path.exists():
            print(f"{path} is there already; delete it to train it anew.")
            continue
        data = RenderedScenes(args.work / "scenes", TRAIN_SEED, args.scenes)
        began = time.time()
        judge = train(name, data, args.images, args.batch, args.lr, device)
        seconds = time.time() - began
        halves = {key: value.half().contiguous() if value.is_floating_point() else value
                  for key, value in judge.cpu().state_dict().items()}  # fmt: skip
        partial = path.with_suffix(".partial")
        save_file(halves, partial)
        partial.replace(path)
        fresh = RenderedScenes(args.work / "scenes", FRESH_SEED, FRESH_COUNT)
        report = json.loads(report_file.read_text()) if report_file.exists() else {}
        report[name] = {
            "command": shlex.join(["python", "-m", "ppap_host.shapes.train_judges", *sys.argv[1:]]),
            "trained_on": {
                "scene_seed": TRAIN_SEED,
                "scenes": args.scenes,
                "seed": SEEDS[name],
                "images": args.images,
                "seconds": round(seconds),
            },
            "measured_on": {"scene_seed": FRESH_SEED, "scenes": FRESH_COUNT},
            "measured": measure(name, load_judge(name, args.out, device), fresh, device),
        }
        report_file.write_text(json.dumps(report, indent=2) + "\n")
        print(json.dumps({name: report[name]["measured"]}), flush=True)


if __name__ == "__main__":
    main()
