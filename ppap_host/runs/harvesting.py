"""Makes a harvest, a folder of :mod:`ppap_host.experts.harvest`, with a backbone."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ppap_host.backbones.backbone import Backbone, ClassifierFree, encode
from ppap_host.experts.harvest import FORMAT, Harvest, Watch, _make_folder, _read, conditions
from ppap_host.files import images, writing
from ppap_host.files.errors import OptionError
from ppap_host.files.hashes import file_hashes, package_versions
from ppap_host.plugins.loading import load_backbone
from ppap_host.plugins.registry import Registry, registry
from ppap_host.runs.devices import pick_device, pick_dtype
from ppap_host.sampling.loop import Event, sample
from ppap_host.sampling.solvers import make_solver
from ppap_host.sampling.streams import ImageNoise


@dataclass(frozen=True)
class HarvestConfig:
    """Everything that decides the images of a harvest.

    Attributes:
        backbone, checkpoint, backbone_options: the diffusion model, as for a run. A
            class-conditional one is given random classes, image by image.
        num: images.
        prompts: for text backbones; image k is made with prompt k modulo their number. Empty:
            unconditional.
        cfg: classifier-free guidance scale with prompts; None takes the backbone's default.
        steps, sampler, eta: as for a run.
        seed: >= 0.
        shard: images a file.
        batch: images made at a time; must divide ``shard``.
        device, dtype: as for a run.
    """

    backbone: str = "shapes"
    checkpoint: str | None = None
    backbone_options: Mapping[str, str] = field(default_factory=dict)
    num: int = 2000
    prompts: tuple[str, ...] = ()
    cfg: float | None = None
    steps: int | str = 25
    sampler: str = "ddim"
    eta: float = 0.0
    seed: int = 0
    shard: int = 100
    batch: int = 20
    device: str = "auto"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name, low in (("num", 1), ("seed", 0), ("shard", 1), ("batch", 1)):
            if getattr(self, name) < low:
                raise OptionError(
                    f"--{name} {getattr(self, name)} is out of range.",
                    remedy=f"Give a whole number from {low} on.",
                )
        if self.shard % self.batch:
            raise OptionError(
                f"--batch {self.batch} does not divide --shard {self.shard}.",
                remedy="Give a batch that does; the same batches must come out of any number of "
                "processes.",
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self) | {"prompts": list(self.prompts)}


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
    maker = _Maker(config, backbone, device, dtype)
    described = {
        "format": FORMAT,
        "config": config.to_dict(),
        "model_files": file_hashes(backbone.files(), config.backbone),
        "versions": package_versions(
            plugin.distribution for plugin, _ in found.names("backbone")[config.backbone]
        ),
    }
    _make_folder(out)
    if process == 0:
        _check_same(out, described)
        for left in out.glob(".images-*"):  # half-written by a process that was killed
            left.unlink(missing_ok=True)
        if not (out / "harvest.json").exists():
            text = json.dumps(described, indent=2, ensure_ascii=False) + "\n"
            writing.write_file(out / "harvest.json", text.encode())
    wait()
    result = Harvest(out, described)
    mine = list(range(process, result.shards, processes))
    total, done = sum(len(result.rows(i)) for i in mine), 0
    for i in mine:
        rows = result.rows(i)
        if not result.images_file(i).exists():

            def on_batch(made: float, before: int = done) -> None:
                watch("harvesting images", int(before + made), total)

            pixels = maker.make(rows, on_batch)
            writing.write_file(result.images_file(i), save({"rgb": pixels}))
        done += len(rows)
        watch("harvesting images", done, total)
    wait()
    if process == 0:
        _write_sheet(result)
    return Harvest.open(out)


class _Maker:
    """Makes the images of a shard."""

    def __init__(
        self, config: HarvestConfig, backbone: Backbone, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.config, self.backbone, self.device = config, backbone, device
        self.walk = backbone.walk(config.steps)
        self.solver = make_solver(config.sampler, config.eta, backbone)
        conditional = any(config.prompts) or backbone.class_count is not None
        if not conditional and config.cfg not in (None, 1.0):
            raise OptionError(
                f"--cfg {config.cfg} strengthens prompts or classes, and there are none.",
                remedy="Add --prompts, or leave out --cfg.",
            )
        backbone.encode_prompts(list(config.prompts) or [""])  # says early what it does not know
        backbone.to(device, dtype)
        cfg = backbone.default_cfg if config.cfg is None else config.cfg
        self.cfg = cfg if conditional else 1.0
        self.condition = partial(conditions, backbone, config.prompts, config.seed)
        self.empty = self.condition([0]) if self.cfg == 1 else encode(backbone, [""], [None])

    def make(self, rows: Sequence[int], on_batch: Callable[[float], None]) -> Tensor:
        """uint8 RGB [n, 3, h, w]."""
        made = []
        for first in range(0, len(rows), self.config.batch):
            part = list(rows[first : first + self.config.batch])

            def step(report: Event, first: int = first, size: int = len(part)) -> None:
                on_batch(first + size * (report.index + 1) / report.steps)

            x = sample(
                self.backbone,
                ClassifierFree(self.backbone, self.condition(part), self.empty, self.cfg),
                self.walk,
                self.solver,
                ImageNoise(self.config.seed, part, self.backbone.state_shape),
                device=self.device,
                watch=step,
            )
            with torch.no_grad():
                made.append(images.to_pixels(self.backbone.decode(x)).cpu())
        return torch.cat(made).contiguous()  # decoders may leave another memory format


def _check_same(out: Path, described: dict[str, Any]) -> None:
    """Refuses to mix two harvests."""
    if not os.path.exists(out / "harvest.json"):
        return
    there = Harvest._described(out).description
    mine, theirs = ({**d["config"], "model_files": d["model_files"]} for d in (described, there))
    differing = sorted(k for k in mine if mine[k] != theirs.get(k))
    # Where it is computed does not decide what it is.
    differing = [k for k in differing if k != "device"]
    if differing:
        pairs = "; ".join(f"{k}: {theirs.get(k)!r} there, {mine[k]!r} now" for k in differing[:4])
        raise OptionError(
            f"{str(out)!r} holds a harvest of other settings ({pairs}).",
            remedy="Give the same settings to go on with it, or another folder with --out.",
        )


def _write_sheet(result: Harvest) -> None:
    """The first images, to look at."""
    if (result.folder / "sheet.png").exists():
        return
    pixels = _read(result.images_file(0), "rgb")[:48]
    pictures = images.from_tensor(images.to_unit(pixels))
    rows = [("", [("", p) for p in pictures[i : i + 8]]) for i in range(0, len(pictures), 8)]
    writing.write_png(result.folder / "sheet.png", images.contact_sheet(rows, cell=128))
