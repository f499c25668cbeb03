"""Harvest: images that a backbone made by itself, for data-free knowledge transfer.

PPAP (Go et al., 2023, section 4.3): an expert is taught without any data set. The backbone's own
samples stand for the images, and what the frozen off-the-shelf network says of them, clean, is the
lesson for experts that see them noised.

A harvest is a folder: ``harvest.json`` (what made it), ``images-00000.safetensors`` ... (8-bit
RGB, one file a shard), ``sheet.png`` to look at, and ``teacher-<guide>-<hash>/`` with a network's
outputs for each shard. Image k depends on the seed and k alone. A shard is always made in the same
batches, written under another name and then renamed, so that any number of processes, machines, or
interruptions end with the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ppap_host import images
from ppap_host.backbone import Backbone, ClassifierFree, Condition, encode
from ppap_host.devices import pick_device, pick_dtype
from ppap_host.errors import CheckpointError, OptionError, OutputError
from ppap_host.experts import network_hash
from ppap_host.guide import Guide
from ppap_host.loading import load_backbone
from ppap_host.record import file_hashes, package_versions
from ppap_host.registry import Registry, registry
from ppap_host.sampling import ImageNoise, StepReport, make_solver, sample

FORMAT = 1
_CLASSES = 1  # tells the stream of random classes from that of noise
Watch = Callable[[str, int, int], None]


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


@dataclass(frozen=True)
class Lesson:
    """What experts learn from: images, and what is to be said of them.

    Attributes:
        pixels: uint8 RGB [n, 3, h, w].
        teacher: float [n, ...], the frozen network's outputs for the clean images, or ground truth
            in the same form (:meth:`ppap_host.guide.Guide.from_labels`).
        identity: where both come from, as JSON values, for the experts' metadata.
    """

    pixels: Tensor
    teacher: Tensor
    identity: dict[str, Any]

    def __len__(self) -> int:
        return len(self.pixels)

    def images(self, rows: Tensor | slice) -> Tensor:
        """RGB in [-1, 1], float32, of these rows."""
        return images.to_unit(self.pixels[rows])


class Harvest:
    """A harvest in a folder, complete or not.

    Attributes:
        folder: where it lies.
        description: what ``harvest.json`` says: ``config``, ``model_files``, ``versions``.
    """

    def __init__(self, folder: Path, description: dict[str, Any]) -> None:
        self.folder, self.description = folder, description
        config = description["config"]
        self.count: int = config["num"]
        self.shard: int = config["shard"]

    @classmethod
    def open(cls, folder: Path) -> Harvest:
        """A finished harvest.

        Raises:
            CheckpointError: there is none, it is damaged, or it is not complete.
        """
        found = cls._described(folder)
        missing = [i for i in range(found.shards) if not found.images_file(i).exists()]
        if missing:
            raise CheckpointError(
                f"The harvest {str(folder)!r} is not complete: {len(missing)} of {found.shards} "
                "shards are missing.",
                remedy="Run the same `ppap harvest` again; it goes on where it stopped.",
            )
        return found

    @classmethod
    def _described(cls, folder: Path) -> Harvest:
        path = folder / "harvest.json"
        try:
            described = json.loads(path.read_text(encoding="utf-8"))
            if described["format"] != FORMAT:
                raise ValueError(f"format {described['format']!r}")
            return cls(folder, described)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{str(folder)!r} is no harvest ({type(error).__name__}: {error}).",
                remedy="Make one with `ppap harvest --backbone NAME --out FOLDER`.",
            ) from None

    def __len__(self) -> int:
        return self.count

    @property
    def shards(self) -> int:
        """How many files the images are in."""
        return -(-self.count // self.shard)

    def rows(self, shard: int) -> range:
        """The images of one shard."""
        return range(shard * self.shard, min((shard + 1) * self.shard, self.count))

    def images_file(self, shard: int) -> Path:
        """Where a shard's images are."""
        return self.folder / f"images-{shard:05d}.safetensors"

    def pixels(self) -> Tensor:
        """All images, uint8 RGB [n, 3, h, w]."""
        return torch.cat([_read(self.images_file(i), "rgb") for i in range(self.shards)])

    def identity(self) -> dict[str, Any]:
        """What an expert set keeps of the harvest it was tuned on."""
        digest = hashlib.sha256()
        for i in range(self.shards):
            digest.update(hashlib.sha256(self.images_file(i).read_bytes()).digest())
        kept = ("backbone", "num", "prompts", "cfg", "steps", "sampler", "eta", "seed")
        config = self.description["config"]
        return {
            "kind": "harvest",
            **{key: config[key] for key in kept},
            "images_sha256": digest.hexdigest(),
            "model_files": self.description["model_files"],
        }

    def lesson(
        self,
        guide: Guide,
        watch: Watch | None = None,
        *,
        process: int = 0,
        processes: int = 1,
        wait: Callable[[], None] | None = None,
    ) -> Lesson:
        """The images with what the guide's network says of them, asked once and kept.

        Outputs are stored in half precision where they fit into it. With several processes each
        asks for its own shards, then ``wait`` lets them meet.

        Raises:
            OutputError: the outputs cannot be written to the harvest's folder.
        """
        known_as = f"teacher-{guide.name}-{network_hash(guide.network())[:12]}"
        folder = self.folder / known_as
        files = [folder / f"outputs-{i:05d}.safetensors" for i in range(self.shards)]
        device = next((p.device for p in guide.network().parameters()), torch.device("cpu"))
        for i in range(process, self.shards, processes):
            if watch is not None:
                watch(f"asking the teacher {guide.name}", i, self.shards)
            if files[i].exists():
                continue
            _make_folder(folder)
            pixels = _read(self.images_file(i), "rgb")
            outputs = []
            with torch.no_grad():
                for part in pixels.split(20):
                    outputs.append(guide.see(images.to_unit(part.to(device))).cpu())
            output = torch.cat(outputs)
            small = output.half()
            fits = bool(small.isfinite().all()) and output.dtype == torch.float32
            kept = (small if fits else output).contiguous()
            images.write_file(files[i], save({"output": kept}))
        if wait is not None:
            wait()
        teacher = torch.cat([_read(path, "output") for path in files])
        return Lesson(self.pixels(), teacher.float(), self.identity())


def _read(path: Path, key: str) -> Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(key)
            return tensor
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"The harvest's file {str(path)!r} cannot be read ({error}).",
            remedy="Delete that file and run the same command again; only it is made anew.",
        ) from None


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"Cannot write to {str(folder)!r}: {error.strerror}.",
            remedy="Choose another folder with --out.",
        ) from None


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
            images.write_file(out / "harvest.json", text.encode())
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
            images.write_file(result.images_file(i), save({"rgb": pixels}))
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
        self.empty = self.condition([0]) if self.cfg == 1 else encode(backbone, [""], [None])

    def make(self, rows: Sequence[int], on_batch: Callable[[float], None]) -> Tensor:
        """uint8 RGB [n, 3, h, w]."""
        made = []
        for first in range(0, len(rows), self.config.batch):
            part = list(rows[first : first + self.config.batch])

            def step(report: StepReport, first: int = first, size: int = len(part)) -> None:
                on_batch(first + size * (report.step + 1) / report.steps)

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

    def condition(self, part: list[int]) -> Condition:
        """What these images of the harvest are conditioned on, one row each or one for all."""
        prompts = self.config.prompts
        if not any(prompts) and self.backbone.class_count is None:
            return encode(self.backbone, [""], [None])  # one row for all
        prompts = prompts or ("",)
        classes = [self._class(k) for k in part]
        return encode(self.backbone, [prompts[k % len(prompts)] for k in part], classes)

    def _class(self, k: int) -> int | None:
        """The class of image k, which depends on the seed and k alone."""
        count = self.backbone.class_count
        if count is None:
            return None
        return int(np.random.default_rng([self.config.seed, k, _CLASSES]).integers(count))


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
    images.write_png(result.folder / "sheet.png", images.contact_sheet(rows, cell=128))
