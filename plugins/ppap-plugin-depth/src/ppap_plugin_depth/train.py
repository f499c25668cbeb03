"""Trains the bundled depth model: ``python -m ppap_plugin_depth.train --work training``.

A small DPT (Ranftl et al., 2021, "Vision transformers for dense prediction") on clean renders of
the built-in world, never on noise: it plays the off-the-shelf model. As published DPTs, it predicts
inverse depth up to scale and shift and is trained with MiDaS's loss. At the end one scale and one
shift, the same for every image, are folded into its last layer, so that its numbers are about
1 / metres: that changes no picture and no loss, but leaves it in a defined unit.

Weights go to ``--out`` in float16, in transformers' format; accuracy on fresh renders, measured
with the files as stored, to ``measured.json`` beside them. A finished model is left alone; delete
its folder to train it anew.
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
from torch import Tensor, nn
from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

from ppap_host.shapes.dataset import RenderedScenes
from ppap_plugin_depth.guide import BUNDLED, DepthGuide
from ppap_plugin_depth.losses import scale_and_shift_invariant

TRAIN_SEED = 202
FRESH_SEED = 909
FRESH_COUNT = 2000
SEED = 21


def build_model() -> DPTForDepthEstimation:
    """The untrained network, 64 x 64 RGB to a 64 x 64 map.

    Half the usual reassemble factors, since its patches of 8 pixels are half as large as usual.
    """
    config = DPTConfig(
        image_size=64,
        patch_size=8,
        hidden_size=112,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=336,
        backbone_out_indices=[0, 1, 2, 3],
        reassemble_factors=[2, 1, 0.5, 0.25],
        neck_hidden_sizes=[40, 48, 64, 80],
        fusion_hidden_size=40,
        readout_type="ignore",
        use_auxiliary_head=False,
    )
    model = DPTForDepthEstimation(config)
    last = model.head.head[4]
    # The map passes a ReLU: starting high above zero keeps every pixel's gradient alive.
    nn.init.constant_(last.bias, 2.0)
    return model


def _inverse_depth(data: RenderedScenes, picks: np.ndarray, device: torch.device) -> Tensor:
    return 1 / torch.from_numpy(data.depth[picks].astype(np.float32)).to(device)


def train(
    data: RenderedScenes, images: int, batch: int, lr: float, device: torch.device
) -> DPTForDepthEstimation:
    """Trains the model on ``images`` randomly mirrored images; returns it in evaluation mode."""
    torch.manual_seed(SEED)
    model = build_model().to(device).train()
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
            x, truth = data.images(picks, device), _inverse_depth(data, picks, device)
            mirrored = torch.from_numpy(rng.random(batch) < 0.5).to(device)
            x = torch.where(mirrored.view(-1, 1, 1, 1), x.flip(-1), x)
            truth = torch.where(mirrored.view(-1, 1, 1), truth.flip(-1), truth)
            predicted = model(pixel_values=x).predicted_depth
            loss = scale_and_shift_invariant(predicted, truth).mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            average += (float(loss.detach()) - average) / min(step + 1, 100)
            progress.update(task, advance=1, description=f"training, loss {average:.4f}")
    return model.eval()


@torch.no_grad()
def set_unit(model: DPTForDepthEstimation, data: RenderedScenes, device: torch.device) -> None:
    """Folds the scale and shift that bring its maps nearest to 1 / metres into the last layer."""
    predicted, truth = [], []
    for start in range(0, min(1000, len(data)), 100):
        picks = np.arange(start, min(start + 100, len(data)))
        predicted.append(model(pixel_values=data.images(picks, device)).predicted_depth.flatten())
        truth.append(_inverse_depth(data, picks, device).flatten())
    d, t = torch.cat(predicted).double(), torch.cat(truth).double()
    scale = ((d - d.mean()) * (t - t.mean())).mean() / (d - d.mean()).square().mean()
    if scale <= 0:
        raise RuntimeError("The trained maps do not rise with inverse depth: training failed.")
    last = model.head.head[4]
    last.weight.mul_(scale.float())
    last.bias.mul_(scale.float()).add_((t.mean() - scale * d.mean()).float())


@torch.no_grad()
def measure(guide: DepthGuide, data: RenderedScenes, device: torch.device) -> dict[str, float]:
    """Mean measures of ``guide`` against the renderer's depth, and the mean training loss."""
    guide.to(device, torch.float32)
    columns: dict[str, list[float]] = {}
    for start in range(0, len(data), 100):
        picks = np.arange(start, min(start + 100, len(data)))
        output = guide.see(data.images(picks, device))
        truth = _inverse_depth(data, picks, device)
        rows = guide.measure(output, truth) | {"loss": guide.loss(output, truth).tolist()}
        for name, values in rows.items():
            columns.setdefault(name, []).extend(values)
    return {name: round(float(np.mean(values)), 4) for name, values in columns.items()}


def main() -> None:
    """Command line of the training script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for rendered scenes")
    parser.add_argument("--out", type=Path, default=BUNDLED, help="folder of the model")
    parser.add_argument("--scenes", type=int, default=12_000, help="different scenes to train on")
    parser.add_argument("--images", type=int, default=24_000, help="images to see in all")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1.5e-3)
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
    set_unit(model, data, device)
    seconds = time.time() - began
    model.cpu().half().save_pretrained(args.out)
    DPTImageProcessor(
        size={"height": 64, "width": 64}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(args.out)
    fresh = RenderedScenes(args.work / "scenes", FRESH_SEED, FRESH_COUNT)
    report = {
        "command": shlex.join(["python", "-m", "ppap_plugin_depth.train", *sys.argv[1:]]),
        "trained_on": {
            "scene_seed": TRAIN_SEED,
            "scenes": args.scenes,
            "seed": SEED,
            "images": args.images,
            "seconds": round(seconds),
        },
        "measured_on": {"scene_seed": FRESH_SEED, "scenes": FRESH_COUNT},
        "measured": measure(DepthGuide(str(args.out)), fresh, device),
    }
    (args.out / "measured.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report["measured"]))


if __name__ == "__main__":
    main()
