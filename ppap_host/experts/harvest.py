"""Harvest: images that a backbone made by itself, for data-free knowledge transfer.

PPAP (Go et al., 2023, section 4.3): an expert is taught without any data set. The backbone's own
samples stand for the images, and what the frozen off-the-shelf network says of them, clean, is the
lesson for experts that see them noised.

A harvest is a folder: ``harvest.json`` (what made it), ``images-00000.safetensors`` ... (8-bit
RGB, one file a shard), ``latents-00000.safetensors`` ... where the backbone denoises latents,
``sheet.png`` to look at, and ``teacher-<guide>-<hash>/`` with a network's outputs for each shard.
Image k depends on the seed and k alone. A shard is always made in the same batches, and what is
found counts as made only if its length, shape and hash are right, so that any number of processes,
machines, interruptions, or power cuts end with the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ppap_host.backbones.backbone import Backbone, Condition, encode
from ppap_host.experts.patches import network_hash
from ppap_host.files import images
from ppap_host.files.errors import CheckpointError, DamageWarning, OptionError
from ppap_host.files.hashes import sha256_file
from ppap_host.files.reading import Document, require_regular
from ppap_host.files.settings import (
    Batch,
    Finite,
    Fraction,
    Images,
    Many,
    Place,
    Seed,
    Steps,
    read,
    settings,
)
from ppap_host.files.writing import write_file
from ppap_host.guides.guide import Guide
from ppap_host.sampling.streams import of_image

FORMAT = 1
DESCRIPTION = "harvest.json"
MOST_SHARDS = 100_000
"""Files that images are spread over: their names have five digits."""

_CLASSES = 1  # tells the stream of random classes from that of noise
_AGAIN = "Run the same `ppap harvest` again; it makes only that file."

Watch = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Lesson:
    """What experts learn from: images, and what is to be said of them.

    Attributes:
        pixels: uint8 RGB [n, 3, h, w].
        teacher: float [n, ...], the frozen network's outputs for the clean images, or ground truth
            in the same form (:meth:`ppap_host.guides.guide.Guide.from_labels`).
        identity: where both come from, as JSON values, for the experts' metadata.
        latents: float [n, ...], what the images were decoded from; None of pixels.
    """

    pixels: Tensor
    teacher: Tensor
    identity: dict[str, Any]
    latents: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def images(self, rows: Tensor | slice) -> Tensor:
        """RGB in [-1, 1], float32, of these rows."""
        return images.to_unit(self.pixels[rows])


def conditions(
    backbone: Backbone, prompts: Sequence[str], seed: int, rows: Sequence[int]
) -> Condition:
    """What these images of a harvest are conditioned on, one row each, or one for all.

    Image k is told prompt k modulo their number, and a class that depends on the seed and k alone.
    """
    if not any(prompts) and backbone.class_count is None:
        return encode(backbone, [""], [None])
    prompts = prompts or ("",)
    classes = [_random_class(backbone.class_count, seed, k) for k in rows]
    return encode(backbone, [prompts[k % len(prompts)] for k in rows], classes)


def _random_class(count: int | None, seed: int, k: int) -> int | None:
    if count is None:
        return None
    return int(np.random.default_rng(of_image(seed, k, _CLASSES)).integers(count))


@settings
class HarvestConfig:
    """Everything that decides the images of a harvest.

    Attributes:
        backbone, checkpoint, backbone_options: the diffusion model, as for a run. A
            class-conditional one is given random classes, image by image.
        num: images.
        prompts: for text backbones; image k is made with prompt k modulo their number. Empty:
            unconditional.
        cfg: classifier-free guidance scale with prompts; None takes the backbone's default.
        steps, sampler, eta: as for a run; None takes the backbone's. The folder holds values.
        seed: >= 0.
        shard: images a file.
        batch: images made at a time; must divide ``shard``.
        device, dtype: as for a run.
    """

    backbone: str = "shapes"
    checkpoint: Place | None = None
    backbone_options: Mapping[str, str] = field(default_factory=dict)
    num: Images = 2000
    prompts: Annotated[tuple[str, ...], Many, Field(max_length=1_000_000)] = ()
    cfg: Finite | None = None
    steps: Steps | None = None
    sampler: str | None = None
    eta: Fraction | None = None
    seed: Seed = 0
    shard: Batch = 100
    batch: Batch = 20
    device: str = "auto"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.num > MOST_SHARDS * self.shard:
            raise OptionError(
                f"--num {self.num} in files of --shard {self.shard} is more than {MOST_SHARDS:,} "
                "files.",
                remedy="Give a larger --shard.",
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


class _Description(BaseModel):
    """What ``harvest.json`` holds."""

    model_config = ConfigDict(strict=True, extra="forbid")

    format: Literal[1]
    config: dict[str, Any]
    model_files: dict[str, str]
    versions: dict[str, str]
    latent_shape: list[int] | None = None


_DOCUMENT = Document(
    "harvest", CheckpointError, "Make one with `ppap harvest --backbone NAME --out FOLDER`."
)


class Harvest:
    """A harvest in a folder, complete or not.

    Attributes:
        folder: where it lies.
        description: what ``harvest.json`` says: ``config``, ``model_files``, ``versions``, and of
            latents their ``latent_shape``.
        config: the first of these.
        latent_shape: of an image's latent, None of pixels.
    """

    def __init__(self, folder: Path, description: dict[str, Any]) -> None:
        self.folder, self.description = folder, description
        self.config = read(HarvestConfig, description["config"], str(folder))
        self.count, self.shard = self.config.num, self.config.shard
        shape = description.get("latent_shape")
        self.latent_shape: tuple[int, ...] | None = None if shape is None else tuple(shape)

    @classmethod
    def open(cls, folder: Path) -> Harvest:
        """A finished harvest.

        Raises:
            CheckpointError: there is none, it is damaged, or it is not complete.
        """
        found = cls.begun(folder)
        missing = found.missing()
        if missing:
            raise CheckpointError(
                f"The harvest {str(folder)!r} is not complete: {missing} of {found.shards} "
                "shards are missing.",
                remedy="Run the same `ppap harvest` again; it goes on where it stopped.",
            )
        shapes = {found.shape(i)[1:] for i in range(found.shards)}
        if len(shapes) != 1:
            sizes = " and ".join(sorted(f"{h} x {w}" for _, h, w in shapes))
            raise CheckpointError(
                f"The harvest {str(folder)!r} has images of {sizes}.",
                remedy="Remove the files of one size and run the same `ppap harvest` again.",
            )
        return found

    @classmethod
    def begun(cls, folder: Path) -> Harvest:
        """A harvest of which images may be missing.

        Raises:
            CheckpointError: there is none, or its description is damaged.
        """
        path = folder / DESCRIPTION
        described = _DOCUMENT.read(path, dict[str, Any])
        _DOCUMENT.check(described, _Description, str(path))
        try:
            return cls(folder, described)
        except OptionError as error:
            raise _DOCUMENT.fail(str(path), f"{error.message} {error.remedy}") from None

    def missing(self) -> int:
        """How many shards have no file."""
        there = {path.name for path in self.folder.glob("*.safetensors")}
        return sum(not {f.name for f in self.files(i)} <= there for i in range(self.shards))

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

    def latents_file(self, shard: int) -> Path:
        """Where the latents are that a shard's images were decoded from."""
        return self.folder / f"latents-{shard:05d}.safetensors"

    def files(self, shard: int) -> list[Path]:
        """All files of a shard."""
        latents = [] if self.latent_shape is None else [self.latents_file(shard)]
        return [self.images_file(shard), *latents]

    def shape(self, shard: int) -> tuple[int, ...]:
        """Of a shard's images, as its file says without being read: (n, 3, h, w).

        Raises:
            CheckpointError: the file is missing, cut short, or holds something else.
        """
        path = self.images_file(shard)
        with _opened(path) as file:
            part = file.get_slice("rgb") if set(file.keys()) == {"rgb"} else None
            shape = () if part is None else tuple(part.get_shape())
            kind = "" if part is None else part.get_dtype()
        if kind != "U8" or len(shape) != 4 or shape[:2] != (len(self.rows(shard)), 3):
            raise CheckpointError(
                f"The harvest's file {str(path)!r} does not hold {len(self.rows(shard))} images.",
                remedy=_AGAIN,
            )
        return shape

    def images(self, shard: int) -> Tensor:
        """Images of one shard, uint8 RGB [n, 3, h, w], compared with their SHA-256.

        Raises:
            CheckpointError: they are not whole.
        """
        self.shape(shard)
        return _read(self.images_file(shard), "rgb")

    def latents(self, shard: int) -> Tensor:
        """What the images of one shard were decoded from, float32 [n, ...], compared with their
        SHA-256.

        Raises:
            CheckpointError: they are not whole.
        """
        found = _read(self.latents_file(shard), "latents")
        if tuple(found.shape) != (len(self.rows(shard)), *(self.latent_shape or ())):
            raise CheckpointError(
                f"The harvest's file {str(self.latents_file(shard))!r} does not hold the latents "
                f"of {len(self.rows(shard))} images.",
                remedy=_AGAIN,
            )
        return found

    def pixels(self) -> Tensor:
        """All images, uint8 RGB [n, 3, h, w].

        Raises:
            CheckpointError: a file is not whole.
        """
        return torch.cat([self.images(i) for i in range(self.shards)])

    def identity(self) -> dict[str, Any]:
        """What an expert set keeps of the harvest it was tuned on."""

        def digest(file: Callable[[int], Path]) -> str:
            found = hashlib.sha256()
            for i in range(self.shards):
                found.update(bytes.fromhex(sha256_file(file(i))))
            return found.hexdigest()

        latent = self.latent_shape is not None
        kept = ("backbone", "num", "prompts", "cfg", "steps", "sampler", "eta", "seed")
        config = self.description["config"]
        return {
            "kind": "harvest",
            **{key: config.get(key) for key in kept},
            "images_sha256": digest(self.images_file),
            **({"latents_sha256": digest(self.latents_file)} if latent else {}),
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
            CheckpointError: an output is not finite.
            OutputError: the outputs cannot be written to the harvest's folder.
        """
        known_as = f"teacher-{guide.name}-{network_hash(guide.network())[:12]}"
        folder = self.folder / known_as
        files = [folder / f"outputs-{i:05d}.safetensors" for i in range(self.shards)]
        device = next((p.device for p in guide.network().parameters()), torch.device("cpu"))
        for i in range(process, self.shards, processes):
            if watch is not None:
                watch(f"asking the teacher {guide.name}", i, self.shards)
            rows = len(self.rows(i))
            if files[i].exists() and _holds(files[i], "output", rows):
                continue
            pixels = self.images(i)
            outputs = []
            with torch.no_grad():
                for part in pixels.split(20):
                    outputs.append(guide.see(images.to_unit(part.to(device))).cpu())
            output = torch.cat(outputs)
            lost = torch.nonzero(~output.isfinite().flatten(1).all(dim=1)).flatten().tolist()
            if lost:
                raise CheckpointError(
                    f"What the guide {guide.name!r} says of image {self.rows(i)[lost[0]]} of the "
                    "harvest is not finite.",
                    remedy="Use --dtype float32, or name another network with --model.",
                )
            small = output.half()
            fits = bool(small.isfinite().all()) and output.dtype == torch.float32
            kept = (small if fits else output).contiguous()
            write_tensor(files[i], "output", kept)
        if wait is not None:
            wait()
        teacher = torch.cat([_read(path, "output") for path in files])
        latents = None
        if self.latent_shape is not None:
            latents = torch.cat([self.latents(i) for i in range(self.shards)])
        return Lesson(self.pixels(), teacher.float(), self.identity(), latents)


def write_tensor(path: Path, key: str, tensor: Tensor) -> None:
    """Writes one tensor with its SHA-256, so that whoever reads it knows whether it is whole.

    Raises:
        OutputError: it cannot be written.
    """
    write_file(path, save({key: tensor}, {"sha256": _digest(tensor)}))


def _holds(path: Path, key: str, rows: int) -> bool:
    """Whether a file holds this tensor, whole and finite; says so if it does not."""
    try:
        found = _read(path, key)
        whole = len(found) == rows and bool(found.isfinite().all())
    except CheckpointError:
        whole = False
    if not whole:
        text = f"{str(path)!r} is damaged and is made again."
        warnings.warn(text, DamageWarning, stacklevel=2)
    return whole


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(-1).view(torch.uint8).numpy().data).hexdigest()


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    require_regular(path, CheckpointError, _AGAIN)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"The harvest's file {str(path)!r} cannot be read ({error}).", remedy=_AGAIN
        ) from None


def _read(path: Path, key: str) -> Tensor:
    with _opened(path) as file:
        tensor: Tensor = file.get_tensor(key)
        wanted = (file.metadata() or {}).get("sha256")
    if wanted is not None and wanted != _digest(tensor):
        raise CheckpointError(
            f"The harvest's file {str(path)!r} is damaged: its values are others than were "
            "written.",
            remedy=_AGAIN,
        )
    return tensor
