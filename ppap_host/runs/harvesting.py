"""Makes a harvest, a folder of :mod:`ppap_host.experts.harvest`, with a backbone."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppap_host.backbones.backbone import Backbone, ClassifierFree, encode
from ppap_host.backbones.noise import Walk
from ppap_host.experts.harvest import (
    DESCRIPTION,
    FORMAT,
    Harvest,
    HarvestConfig,
    Watch,
    conditions,
    write_tensor,
)
from ppap_host.files import images
from ppap_host.files.errors import (
    CheckpointError,
    DamageWarning,
    GuidanceWarning,
    OptionError,
    OutputError,
    SamplingError,
)
from ppap_host.files.folders import Job
from ppap_host.files.hashes import file_hashes, package_versions
from ppap_host.files.offline import nothing_fetched
from ppap_host.files.previews import is_image, is_saturated, of_saturated
from ppap_host.files.writing import write_json, write_png
from ppap_host.plugins.loading import load_backbone, load_sampler
from ppap_host.plugins.registry import Registry, registry
from ppap_host.runs.devices import pick_device, pick_dtype
from ppap_host.sampling.loop import Event, sample
from ppap_host.sampling.solvers import Solver
from ppap_host.sampling.streams import ImageNoise

SHOWN = 48
"""Images on the sheet of a harvest."""
_PROMPTS_AT_ONCE = 100


def backbone_of(
    made: Harvest,
    found: Registry,
    name: str | None = None,
    checkpoint: str | None = None,
    options: Mapping[str, str] | None = None,
) -> Backbone:
    """The backbone that made a harvest.

    Args:
        name: that it must have; None takes any.
        checkpoint, options: instead of what the harvest names, which may lie elsewhere now. What
            the harvest alone names is not fetched.

    Raises:
        OptionError: the harvest is another backbone's.
        PpapError: it cannot be loaded.
    """
    config = made.config
    if name not in (None, config.backbone):
        raise OptionError(
            f"The harvest {str(made.folder)!r} was made by the backbone {config.backbone!r}, "
            f"not by {name!r}.",
            remedy="Leave out --backbone, or give a harvest of that backbone.",
        )
    theirs = {"checkpoint": config.checkpoint, **config.backbone_options}
    mine = {**({} if checkpoint is None else {"checkpoint": checkpoint}), **(options or {})}
    chosen: dict[str, Any] = {**theirs, **mine}
    left = any(value is not None for key, value in theirs.items() if key not in mine)
    remedy = "Give what the harvest names yourself, such as --checkpoint, if you want it."
    with nothing_fetched(str(made.folder) if left else "", remedy):
        return load_backbone(found, config.backbone, chosen.pop("checkpoint"), chosen)


def harvest(
    config: HarvestConfig,
    out: Path,
    watch: Watch | None = None,
    *,
    process: int = 0,
    processes: int = 1,
    wait: Callable[[], None] | None = None,
    found: Registry | None = None,
) -> Harvest:
    """Makes what is missing of a harvest in the folder ``out``.

    Args:
        watch: told of progress: (what, images done by this process, its images in all).
        process, processes: this process makes the shards i with i mod processes = process.
        wait: lets all processes meet; called twice.
        found: the plugins to choose from; by default those installed.

    Raises:
        OptionError: ``out`` holds a harvest of other settings; names what differs.
        OutputError: ``out`` cannot be written.
        PpapError: the backbone cannot be loaded or told what is asked for.
    """
    found = registry() if found is None else found
    wait = wait or (lambda: None)
    watch = watch or (lambda what, done, total: None)
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    # mypy takes an abstract class for no type.
    backbone = load_backbone(found, config.backbone, config.checkpoint, config.backbone_options)
    steps, sampler, eta = backbone.sampling(config.steps, config.sampler, config.eta)
    config = replace(config, steps=steps, sampler=sampler, eta=eta)
    solver = load_sampler(found, sampler, backbone, eta)
    maker = _Maker(config, solver.walk(backbone, steps), solver, backbone, device, dtype)
    described = {
        "format": FORMAT,
        "config": config.to_dict(),
        "model_files": file_hashes(backbone.files(), config.backbone),
        "versions": package_versions(
            plugin.distribution for plugin, _ in found.names("backbone")[config.backbone]
        ),
        **({"latent_shape": list(backbone.state_shape)} if backbone.latent else {}),
    }
    with Job(out) if process == 0 else nullcontext():
        if process == 0:
            _begin(out, described)
        wait()
        result = Harvest(out, described)
        mine = range(process, result.shards, processes)
        total, done = sum(len(result.rows(i)) for i in mine), 0
        saturated: list[int] = []
        for i in mine:
            rows = result.rows(i)
            if not _is_made(result, i):

                def on_batch(made: float, before: int = done) -> None:
                    watch("harvesting images", int(before + made), total)

                pixels, latents = maker.make(rows, on_batch)
                shown = pixels.permute(0, 2, 3, 1).numpy()
                saturated += [k for k, p in zip(rows, shown, strict=True) if is_saturated(p)]
                if result.latent_shape is not None:
                    write_tensor(result.latents_file(i), "latents", latents)
                write_tensor(result.images_file(i), "rgb", pixels)
            done += len(rows)
            watch("harvesting images", done, total)
        for text in of_saturated(saturated):
            warnings.warn(text, GuidanceWarning, stacklevel=2)
        wait()
        if process == 0:
            _write_sheet(result)
    return Harvest.open(out)


def _begin(out: Path, described: dict[str, Any]) -> None:
    """Describes the harvest in its folder, or looks whether it is the one that is there.

    Raises:
        OptionError: it is another one; names what differs.
        OutputError: there is none, and files of such names are somebody else's.
    """
    if not os.path.exists(out / DESCRIPTION):
        others = [*out.glob("images-*.safetensors"), *out.glob("latents-*.safetensors")]
        if others:
            raise OutputError(
                f"{str(out)!r} holds {others[0].name!r} and no {DESCRIPTION}: another's file would "
                "be lost.",
                remedy="Give another folder with --out, or move the file away.",
            )
        write_json(out / DESCRIPTION, described)
        return
    there = Harvest.begun(out).description
    kept = ("model_files", "latent_shape")
    mine, theirs = ({**d["config"], **{k: d.get(k) for k in kept}} for d in (described, there))
    differing = sorted(k for k in mine if mine[k] != theirs.get(k))
    # Where it is computed does not decide what it is.
    differing = [k for k in differing if k != "device"]
    if differing:
        pairs = "; ".join(f"{k}: {theirs.get(k)!r} there, {mine[k]!r} now" for k in differing[:4])
        raise OptionError(
            f"{str(out)!r} holds a harvest of other settings ({pairs}).",
            remedy="Give the same settings to go on with it, or another folder with --out.",
        )


def _is_made(result: Harvest, shard: int) -> bool:
    """Whether a shard is there, whole: not only its name."""
    if not all(os.path.lexists(file) for file in result.files(shard)):
        return False
    try:
        result.images(shard)
        if result.latent_shape is not None:
            result.latents(shard)
    except CheckpointError as error:
        text = f"{error.message} It is made again."
        warnings.warn(text, DamageWarning, stacklevel=2)
        return False
    return True


class _Maker:
    """Makes the images of a shard."""

    def __init__(
        self,
        config: HarvestConfig,
        walk: Walk,
        solver: Solver,
        backbone: Backbone,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.config, self.backbone, self.device = config, backbone, device
        self.walk, self.solver = walk, solver
        if not is_image(backbone.decoded_shape, backbone.makes):
            raise OptionError(
                f"The backbone {backbone.name!r} makes {backbone.makes} of shape "
                f"{list(backbone.decoded_shape)}, and a harvest holds images.",
                remedy="Experts are tuned on images; recipes such as x0 need none.",
            )
        conditional = any(config.prompts) or backbone.class_count is not None
        if not conditional and config.cfg not in (None, 1.0):
            raise OptionError(
                f"--cfg {config.cfg} strengthens prompts or classes, and there are none.",
                remedy="Add --prompts, or leave out --cfg.",
            )
        if len(config.prompts) > config.num:
            text = (
                f"Only the first {config.num} of {len(config.prompts)} prompts are used, one an "
                "image; a larger --num uses more."
            )
            warnings.warn(text, GuidanceWarning, stacklevel=4)
        used = list(dict.fromkeys(config.prompts[: config.num])) or [""]
        for first in range(0, len(used), _PROMPTS_AT_ONCE):  # says early what it does not know
            backbone.encode_prompts(used[first : first + _PROMPTS_AT_ONCE])
        backbone.to(device, dtype)
        cfg = backbone.default_cfg if config.cfg is None else config.cfg
        self.cfg = cfg if conditional else 1.0
        self.condition = partial(conditions, backbone, config.prompts, config.seed)
        self.empty = self.condition([0]) if self.cfg == 1 else encode(backbone, [""], [None])

    def make(self, rows: Sequence[int], on_batch: Callable[[float], None]) -> tuple[Tensor, Tensor]:
        """uint8 RGB [n, 3, h, w], and the states that it was decoded from, float32 [n, ...]."""
        made, states = [], []
        for first in range(0, len(rows), self.config.batch):
            part = list(rows[first : first + self.config.batch])

            def step(report: Event, first: int = first, size: int = len(part)) -> None:
                on_batch(first + size * (report.index + 1) / report.steps)

            x = sample(
                self.backbone,
                ClassifierFree(
                    self.backbone,
                    self.condition(part),
                    self.empty,
                    self.cfg,
                    interval=self.backbone.default_cfg_interval,
                ),
                self.walk,
                self.solver,
                ImageNoise(self.config.seed, part, self.backbone.state_shape),
                device=self.device,
                watch=step,
            )
            with torch.no_grad():
                decoded = self.backbone.decode(x)
            if not decoded.isfinite().all():
                raise SamplingError(
                    f"An image of {part[0]} to {part[-1]} is not finite once it is decoded.",
                    remedy="Use --dtype float32, or weights that are finite.",
                )
            made.append(images.to_pixels(images.in_rgb(decoded)).cpu())
            states.append(x.float().cpu())
        # Decoders may leave another memory format.
        return torch.cat(made).contiguous(), torch.cat(states).contiguous()


def _write_sheet(result: Harvest) -> None:
    """The first images, to look at; says how many there are of all."""
    pixels = result.images(0)[:SHOWN]
    pictures = images.from_tensor(images.to_unit(pixels))
    rows = [("", [("", p) for p in pictures[i : i + 8]]) for i in range(0, len(pictures), 8)]
    if len(result) > len(pictures):
        rows[0] = (f"The first {len(pictures)} of {len(result)} images", rows[0][1])
    write_png(result.folder / "sheet.png", images.contact_sheet(rows, cell=128))
