"""``ppap harvest``: images from a backbone alone, to teach experts with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ppap_host.cli import options
from ppap_host.cli.checks import check_weights
from ppap_host.cli.options import (
    MACHINE,
    MODEL,
    AsJson,
    BackboneOption,
    Checkpoint,
    Eta,
    OpenIt,
    Sampler,
    Upsampler,
    Vae,
    backbone_options,
    option,
    spacing,
)
from ppap_host.cli.output import counted, open_file, print_json, remark, tell_path
from ppap_host.cli.progress import progress_bar
from ppap_host.cli.surroundings import INTERRUPTED
from ppap_host.files.errors import OptionError
from ppap_host.runs.processes import alone_or_first

BATCH = 20
"""Images at a time where nothing else is asked for, and the shards allow it."""
PROMPTS = 16 << 20
"""Most bytes of a file of prompts."""


def harvest(
    out: Annotated[Path, options.out("Folder to write, or to go on with.")],
    num: Annotated[int, options.num("Images to make.")] = 2000,
    prompts: Annotated[
        Path | None, option("Text, one prompt a line; default: unconditional.", metavar="FILE")
    ] = None,
    steps: Annotated[
        str | None, options.steps("Denoising steps, or a spacing. [default: the backbone's]")
    ] = None,
    seed: Annotated[int, option("Image k depends on seed and k.")] = 0,
    backbone: Annotated[str, options.backbone()] = "shapes",
    checkpoint: Checkpoint = None,
    vae: Vae = None,
    upsampler: Upsampler = None,
    backbone_option: BackboneOption = None,
    cfg: Annotated[
        float | None, option("Classifier-free guidance scale of the prompts.", panel=MODEL)
    ] = None,
    sampler: Sampler = None,
    eta: Eta = None,
    shard: Annotated[int, option("Images a file.", panel=MACHINE)] = 100,
    batch: Annotated[int | None, option(
        "Images at a time.",
        panel=MACHINE, show_default=f"{BATCH}, or the largest smaller number that divides --shard",
    )] = None,
    device: Annotated[str, options.device()] = "auto",
    dtype: Annotated[str, options.dtype()] = "float32",
    open_it: OpenIt = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Let a backbone make the images that experts are taught with; no data set is needed.

    Give the same command again after an interruption: it goes on where it stopped, and the files
    are those of a run that was never stopped. A class-conditional backbone is given random classes.
    Several processes share the work:

    torchrun --nproc_per_node 2 -m ppap_host harvest --out harvest
    """
    from ppap_host.plugins.listing import check_sampler
    from ppap_host.plugins.registry import registry

    # What can be told without torch is told at once.
    texts = _read_prompts(prompts)
    registry().entry("backbone", backbone)
    check_weights(checkpoint)
    check_sampler(registry(), sampler)
    with progress_bar(disable=not alone_or_first()) as watch:
        watch("loading libraries", 0, 1)
        from ppap_host.experts.harvest import HarvestConfig
        from ppap_host.runs.harvesting import harvest as make
        from ppap_host.runs.processes import join, own_device

        processes = join(device)
        config = HarvestConfig(
            backbone=backbone, checkpoint=checkpoint,
            backbone_options=backbone_options(backbone_option, vae=vae, upsampler=upsampler),
            num=num, prompts=texts, cfg=cfg, steps=steps and spacing(steps), sampler=sampler,
            eta=eta, seed=seed,
            shard=shard, batch=_usual_batch(shard) if batch is None else batch,
            device=own_device(device, processes), dtype=dtype,
        )  # fmt: skip
        try:
            made = make(
                config, out, watch,
                process=processes.index, processes=processes.count, wait=processes.wait,
            )  # fmt: skip
        except KeyboardInterrupt:
            if processes.first:
                kept = counted(len(list(out.glob("images-*.safetensors"))), "finished shard")
                remark(f"Interrupted: {kept} in {out}; the same command goes on.", "yellow")
            raise typer.Exit(INTERRUPTED) from None
    if not processes.first:
        return
    if as_json:
        print_json({"folder": str(out), "images": len(made), "identity": made.identity()})
    else:
        tell_path(f"Harvest of {counted(len(made), 'image')}", out)
        tell_path("Sheet", out / "sheet.png")
    if open_it:
        open_file(out / "sheet.png")


def _usual_batch(shard: int) -> int:
    """The largest number of images at a time that divides a shard, at most :data:`BATCH`."""
    return max((size for size in range(1, BATCH + 1) if shard % size == 0), default=BATCH)


def _read_prompts(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    from ppap_host.files.reading import read_text

    text = read_text(path, OptionError, "Give a text file with one prompt a line.", PROMPTS)
    lines = [line.strip() for line in text.splitlines()]
    prompts = tuple(line for line in lines if line)
    if not prompts:
        raise OptionError(f"There is no prompt in {str(path)!r}.", remedy="Write one a line.")
    return prompts
