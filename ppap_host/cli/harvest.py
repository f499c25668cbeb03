"""``ppap harvest``: images from a backbone alone, to teach experts with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ppap_host.cli.options import (
    BackboneOption,
    Checkpoint,
    Upsampler,
    Vae,
    backbone_options,
)
from ppap_host.cli.output import for_people, print_json, stderr

BATCH = 20
"""Images at a time where nothing else is asked for, and the shards allow it."""


PROMPTS = 16 << 20
"""Most bytes of a file of prompts."""


def harvest(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write, or to go on with.")],
    backbone: Annotated[str, typer.Option("--backbone", "-b", help="Diffusion model.")] = "shapes",
    checkpoint: Checkpoint = None,
    vae: Vae = None,
    upsampler: Upsampler = None,
    backbone_option: BackboneOption = None,
    num: Annotated[int, typer.Option("--num", "-n", help="Images to make.")] = 2000,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="Text file, one prompt a line; default: unconditional."),
    ] = None,
    cfg: Annotated[
        float | None, typer.Option("--cfg", help="Classifier-free guidance scale of the prompts.")
    ] = None,
    steps: Annotated[str, typer.Option("--steps", help="Denoising steps, or a spacing.")] = "25",
    sampler: Annotated[str, typer.Option("--sampler", help="ddim, ddpm, dpm++ or heun.")] = "ddim",
    eta: Annotated[float, typer.Option("--eta", help="Stochasticity of ddim, 0 to 1.")] = 0.0,
    seed: Annotated[int, typer.Option("--seed", help="Image k depends on seed and k.")] = 0,
    shard: Annotated[int, typer.Option("--shard", help="Images a file.")] = 100,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch",
            help="Images at a time.",
            show_default=f"{BATCH}, or the largest smaller number that divides --shard",
        ),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, mps.")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="float32, bfloat16, float16.")] = "float32",
) -> None:
    """Let a backbone make the images that experts are taught with; no data set is needed.

    Give the same command again after an interruption: it goes on where it stopped, and the files
    are those of a run that was never stopped. A class-conditional backbone is given random classes.
    Several processes share the work:

    torchrun --nproc_per_node 2 -m ppap_host harvest --out harvest
    """
    from ppap_host.cli.run import progress_bar
    from ppap_host.experts.harvest import HarvestConfig
    from ppap_host.runs.harvesting import harvest as make
    from ppap_host.runs.processes import join, own_device

    processes = join(device)
    config = HarvestConfig(
        backbone=backbone, checkpoint=checkpoint,
        backbone_options=backbone_options(vae, upsampler, backbone_option), num=num,
        prompts=_read_prompts(prompts), cfg=cfg,
        steps=int(steps) if steps.isdecimal() else steps, sampler=sampler, eta=eta, seed=seed,
        shard=shard, batch=_usual_batch(shard) if batch is None else batch,
        device=own_device(device, processes), dtype=dtype,
    )  # fmt: skip
    with progress_bar() as watch:
        try:
            made = make(
                config, out, watch,
                process=processes.index, processes=processes.count, wait=processes.wait,
            )  # fmt: skip
        except KeyboardInterrupt:
            if processes.first:
                kept = len(list(out.glob("images-*.safetensors")))
                stderr().print(
                    f"Interrupted: {kept} finished shards in {out}; the same command goes on.",
                    style="yellow",
                )
            raise typer.Exit(130) from None
    if not processes.first:
        return
    if for_people(False):
        stderr().print(f"{len(made)} images in {out}; look at {out / 'sheet.png'}")
    else:
        print_json({"folder": str(out), "images": len(made), "identity": made.identity()})


def _usual_batch(shard: int) -> int:
    """The largest number of images at a time that divides a shard, at most :data:`BATCH`."""
    return max((size for size in range(1, BATCH + 1) if shard % size == 0), default=BATCH)


def _read_prompts(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    from ppap_host.files.errors import OptionError
    from ppap_host.files.reading import read_text

    text = read_text(path, OptionError, "Give a text file with one prompt a line.", PROMPTS)
    lines = [line.strip() for line in text.splitlines()]
    prompts = tuple(line for line in lines if line)
    if not prompts:
        raise OptionError(f"There is no prompt in {str(path)!r}.", remedy="Write one a line.")
    return prompts
