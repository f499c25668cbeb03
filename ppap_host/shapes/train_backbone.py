"""Trains the built-in backbone: ``python -m ppap_host.shapes.train_backbone --work training``.

The hybrid objective of Nichol and Dhariwal (2021), eq. 16: an error of the predicted noise plus the
variational bound for the learned variance with the mean held constant. The noise is predicted as
velocity (Salimans and Ho, 2022) and its error has the cap of min-SNR (Hang et al., 2023, gamma =
5): plain noise prediction learns to ignore captions, whose content is decided in high noise, where
the error of the noise hardly notices it. The learning rate is constant after a warm-up and falls
linearly to zero over the last ``--cooldown`` images, so training can be prolonged from any constant
part. State is written every ``--save-every`` steps and when the process is asked to stop; a stopped
run goes on from there with the same random numbers.

Several processes share a batch, and average their gradients, under torch's own launcher:
``torchrun --standalone --nproc-per-node 2 -m ppap_host.shapes.train_backbone --work training``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ppap_host.backbones.backbone import Backbone, ClassifierFree
from ppap_host.backbones.noise import DiscreteSchedule, cosine_betas
from ppap_host.files.images import contact_sheet, from_tensor
from ppap_host.files.writing import write_png
from ppap_host.sampling.loop import sample
from ppap_host.sampling.solvers import DDIM
from ppap_host.sampling.streams import ImageNoise
from ppap_host.shapes.backbone import ShapesBackbone, save_backbone
from ppap_host.shapes.dataset import RenderedScenes
from ppap_host.shapes.model import Networks, WordTokenizer
from ppap_host.shapes.renderer import render
from ppap_host.shapes.scenes import VOCABULARY, caption_variant, sample_scenes

CAPTION_DROPOUT = 0.15
MIN_SNR_GAMMA = 5.0
HELD_OUT_SEED, HELD_OUT_SCENES = 777, 512
"""Scenes that no training sees; their error says whether it still improves."""


@dataclass(frozen=True)
class Subject:
    """What is trained, of which the loop knows no more.

    Attributes:
        name: what its files in the work folder begin with.
        networks: makes them untrained; called with noised states [b, ...], steps [b] and tokens,
            they say velocity and variance coefficient, each of the states' shape.
        tokens: of captions, int64 [b, n].
        state_shape: of a clean state.
        states: of images, RGB in [-1, 1], [b, 3, h, w].
        backbone: samples with networks.
    """

    name: str
    networks: Callable[[], nn.Module]
    tokens: Callable[[Sequence[str]], Tensor]
    state_shape: tuple[int, ...]
    states: Callable[[Tensor], Tensor]
    backbone: Callable[[Any], Backbone]

    def state_file(self, work: Path) -> Path:
        """Where a training is kept to go on from."""
        return work / f"{self.name}-state.pt"


PIXELS = Subject(
    "backbone", Networks.untrained, WordTokenizer(VOCABULARY), ShapesBackbone.state_shape,
    lambda x: x, ShapesBackbone.of,
)  # fmt: skip


class HybridLoss:
    """Weighted error of the velocity, plus the variational bound in bits per dimension."""

    def __init__(self, schedule: DiscreteSchedule) -> None:
        abar = torch.from_numpy(schedule.alphas_cumprod)
        before = torch.cat([torch.ones(1, dtype=abar.dtype), abar[:-1]])
        beta = 1 - abar / before
        posterior = beta * (1 - before) / (1 - abar)
        self.alpha, self.sigma = abar.sqrt().float(), (1 - abar).sqrt().float()
        self.log_upper = beta.log().float()
        self.log_lower = torch.cat([posterior[1:2], posterior[1:]]).log().float()
        self.noise_to_mean = (beta / ((1 - beta).sqrt() * (1 - abar).sqrt())).float()
        snr = abar / (1 - abar)
        self.weight = ((snr + 1).clamp(max=MIN_SNR_GAMMA) * (1 - abar)).float()
        self.steps = len(abar)

    def noised(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t [b, 3, h, w] of images and noise at steps t [b]."""
        alpha, sigma = self.alpha[t].view(-1, 1, 1, 1), self.sigma[t].view(-1, 1, 1, 1)
        return alpha * x0 + sigma * noise

    def __call__(
        self, velocity: Tensor, v: Tensor, x0: Tensor, noise: Tensor, t: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Both parts, scalar, from predictions, image and noise [b, 3, h, w] at steps t [b]."""

        def at(table: Tensor) -> Tensor:
            return table[t].view(-1, 1, 1, 1)

        gap = velocity - (at(self.alpha) * noise - at(self.sigma) * x0)
        error = (at(self.weight) * gap.square()).mean()
        fraction = (v + 1) / 2
        log_variance = fraction * at(self.log_upper) + (1 - fraction) * at(self.log_lower)
        # Means of posterior and model differ by their noises alone (x_t is shared).
        mean_gap = at(self.noise_to_mean) * at(self.alpha) * gap.detach()
        kl = 0.5 * (
            log_variance - at(self.log_lower) - 1
            + (at(self.log_lower) - log_variance).exp()
            + mean_gap.square() * (-log_variance).exp()
        )  # fmt: skip
        # At t = 0 the bound is a discretised likelihood, whose gradient for v is tiny: left out.
        bound = (kl.mean(dim=(1, 2, 3)) * (t > 0)).mean() / np.log(2.0)
        return error, bound


def export(state_file: Path, folder: Path) -> None:
    """Writes the averaged weights of a training state as a backbone folder."""
    model = Networks.untrained()
    state = torch.load(state_file, map_location="cpu", weights_only=True)
    model.load_state_dict(state["average"])
    save_backbone(model, folder)
    print(f"{folder}: {state['seen']} images seen, {state['step']} steps")


SHEET_PROMPTS = (
    "a red sphere", "a yellow cube", "a green cylinder", "a cyan cone",
    "a large blue cube and a small red sphere", "a purple cone and a small yellow cylinder",
    "a cone", "",
)  # fmt: skip


def sample_sheet(backbone: Backbone, path: Path, device: str) -> None:
    """Writes what the averaged networks draw for fixed prompts and noise."""
    made = []
    for i, prompt in enumerate(SHEET_PROMPTS):
        x = sample(
            backbone,
            ClassifierFree(
                backbone,
                backbone.encode_prompts([prompt]),
                backbone.encode_prompts([""]),
                backbone.default_cfg if prompt else 1.0,
                interval=backbone.default_cfg_interval,
            ),
            backbone.walk(25),
            DDIM(),
            ImageNoise(0, [4 * i, 4 * i + 1], backbone.state_shape),
            device=device,
        )
        with torch.no_grad():
            pictures = from_tensor(backbone.decode(x))
        made += [(prompt or "(no prompt)", picture) for picture in pictures]
    rows = [("", made[i : i + 4]) for i in range(0, len(made), 4)]
    write_png(path, contact_sheet(rows, cell=160))


class HeldOut:
    """The hybrid loss on scenes, captions, noise and levels that are always the same."""

    def __init__(self, loss: HybridLoss, device: str, subject: Subject = PIXELS) -> None:
        self.loss, self.device = loss, device
        scenes = sample_scenes(HELD_OUT_SEED, 0, HELD_OUT_SCENES)
        self.x0 = torch.cat([subject.states(part) for part in render(scenes).rgb.split(64)])
        self.tokens = subject.tokens(scenes.captions())
        rng = np.random.Generator(np.random.Philox(key=HELD_OUT_SEED))
        self.noise = torch.from_numpy(rng.standard_normal(self.x0.shape, dtype=np.float32))
        self.t = torch.arange(HELD_OUT_SCENES) * loss.steps // HELD_OUT_SCENES

    @torch.no_grad()
    def __call__(self, networks: nn.Module) -> float:
        """Weighted error of the velocity, a mean over all scenes."""
        errors = []
        for part in torch.arange(HELD_OUT_SCENES).split(64):
            x0, noise, t = self.x0[part], self.noise[part], self.t[part]
            outs = networks(
                self.loss.noised(x0, noise, t).to(self.device), t.to(self.device),
                self.tokens[part].to(self.device),
            )  # fmt: skip
            velocity, v = (out.float().cpu() for out in outs)
            errors.append(self.loss(velocity, v, x0, noise, t)[0])
        return float(torch.stack(errors).mean())


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The command line of a training script."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--work", type=Path, required=True, help="folder for data and state")
    parser.add_argument("--scenes", type=int, default=60_000, help="different scenes to train on")
    parser.add_argument("--images", type=int, default=1_000_000, help="images to see in all")
    parser.add_argument("--cooldown", type=int, default=0, help="images of falling learning rate")
    parser.add_argument("--batch", type=int, default=32, help="images a step, of all processes")
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--warmup", type=int, default=400, help="steps")
    parser.add_argument("--ema", type=float, default=0.9993)
    parser.add_argument("--save-every", type=int, default=250, help="steps between saved states")
    parser.add_argument("--sheet-every", type=int, default=1000, help="steps between sample sheets")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--bfloat16", action=argparse.BooleanOptionalAction, default=_has_bfloat16(),
        help="autocast of the forward; the default is whether the processor has it",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--export", type=Path, help="write the averaged weights here and stop")
    return parser


def main() -> None:
    """Command line of the training script."""
    args = arguments(__doc__).parse_args()
    if args.export is not None:
        export(PIXELS.state_file(args.work), args.export)
        return
    launch(args, PIXELS)


def launch(args: argparse.Namespace, subject: Subject) -> None:
    """Trains in as many processes as torch's launcher has begun."""
    shared = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if shared:
        dist.init_process_group("nccl" if args.device.startswith("cuda") else "gloo")
    try:
        rank, processes = (dist.get_rank(), dist.get_world_size()) if shared else (0, 1)
        train(args, rank, processes, subject)
    finally:
        if shared:
            dist.destroy_process_group()


def _has_bfloat16() -> bool:
    return torch.cuda.is_available() or bool(torch.cpu._is_avx512_bf16_supported())


def train(args: argparse.Namespace, rank: int, processes: int, subject: Subject = PIXELS) -> None:
    """Trains in one of ``processes`` that share each batch; the first one writes."""
    if args.batch % processes:
        raise SystemExit(f"--batch {args.batch} cannot be shared by {processes} processes.")
    first, device = rank == 0, args.device
    args.work.mkdir(parents=True, exist_ok=True)
    if first:
        RenderedScenes(args.work / "scenes", args.seed, args.scenes)
    if processes > 1:
        dist.barrier()
    data = RenderedScenes(args.work / "scenes", args.seed, args.scenes)
    torch.manual_seed(args.seed)
    model = subject.networks().to(device)
    average = subject.networks().to(device).requires_grad_(False)
    average.load_state_dict(model.state_dict())
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    loss_of = HybridLoss(DiscreteSchedule.from_betas(cosine_betas(1000)))
    held_out = HeldOut(loss_of, device, subject)
    state_file = subject.state_file(args.work)
    seen = step = 0
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        seen, step = state["seen"], state["step"]
    networks = model if processes == 1 else DistributedDataParallel(model)
    autocast = torch.autocast(torch.device(device).type, torch.bfloat16, args.bfloat16)
    log = (args.work / f"{subject.name}-log.jsonl").open("a") if first else None
    began, counted, sums = time.time(), 0, torch.zeros(2)
    stopped = torch.zeros(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda caught, frame: stopped.fill_(1))

    while seen < args.images:
        rng = np.random.Generator(np.random.Philox(key=args.seed, counter=[0, 0, 1, step]))
        picks = rng.integers(0, len(data), args.batch)
        captions = [
            "" if rng.random() < CAPTION_DROPOUT else caption_variant(data.scenes, int(i), rng)
            for i in picks
        ]
        mirrored = torch.from_numpy(rng.random(args.batch) < 0.5)
        # One step from each equal part of the schedule: lower variance than independent draws.
        parts = (rng.permutation(args.batch) + rng.random(args.batch)) / args.batch
        t = torch.from_numpy(np.minimum(parts * loss_of.steps, loss_of.steps - 1).astype(np.int64))
        noise = torch.from_numpy(
            rng.standard_normal((args.batch, *subject.state_shape), dtype=np.float32)
        )
        mine = slice(rank, None, processes)
        x0, noise, t = data.images(picks[mine], torch.device("cpu")), noise[mine], t[mine]
        x0 = subject.states(torch.where(mirrored[mine].view(-1, 1, 1, 1), x0.flip(-1), x0))
        tokens = subject.tokens(captions[mine]).to(device)
        with autocast:
            velocity, v = networks(loss_of.noised(x0, noise, t).to(device), t.to(device), tokens)
        error, bound = loss_of(velocity.float().cpu(), v.float().cpu(), x0, noise, t)

        left = (args.images - seen) / args.cooldown if args.cooldown else 1.0
        lr = args.lr * min(1.0, (step + 1) / args.warmup, max(left, 0.0))
        for group in optimiser.param_groups:
            group["lr"] = lr
        optimiser.zero_grad(set_to_none=True)
        (error + bound).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        decay = min(args.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for ema, now in zip(average.parameters(), model.parameters(), strict=True):
                ema.lerp_(now, 1 - decay)
        step, seen, counted = step + 1, seen + args.batch, counted + 1
        sums += torch.stack([error.detach(), bound.detach()])
        asked = stopped.clone()
        if processes > 1:  # they stop after the same step
            dist.all_reduce(asked, dist.ReduceOp.MAX)
        if first and step % 50 == 0:
            rate = counted * args.batch / (time.time() - began)
            row = {"step": step, "seen": seen, "error": round(float(sums[0] / counted), 5),
                   "bound": round(float(sums[1] / counted), 5), "lr": lr,
                   "images_per_second": round(rate, 1)}  # fmt: skip
            if step % args.sheet_every == 0:
                row["held_out"] = round(held_out(average), 5)
            print(json.dumps(row), file=log, flush=True)
            print(row, flush=True)
            began, counted, sums = time.time(), 0, torch.zeros(2)
        if first and (step % args.save_every == 0 or seen >= args.images or asked.item()):
            state = {"model": model.state_dict(), "average": average.state_dict(),
                     "optimiser": optimiser.state_dict(), "seen": seen, "step": step}  # fmt: skip
            partial = state_file.with_suffix(".partial")
            torch.save(state, partial)
            os.replace(partial, state_file)
        if first and step % args.sheet_every == 0:
            sheet = args.work / "sheets" / f"{subject.name}-{seen:08d}.png"
            sample_sheet(subject.backbone(average), sheet, device)
            print(f"sample sheet: {sheet}", flush=True)
        if asked.item():
            if first:
                print(f"stopped at step {step}; the same command goes on from here", flush=True)
            break


if __name__ == "__main__":
    main()
