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

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ppap_host.backbones.backbone import Backbone, Condition, encode
from ppap_host.experts.patches import network_hash
from ppap_host.files import images, writing
from ppap_host.files.errors import CheckpointError, OutputError
from ppap_host.guides.guide import Guide
from ppap_host.sampling.streams import of_image

FORMAT = 1
_CLASSES = 1  # tells the stream of random classes from that of noise


Watch = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Lesson:
    """What experts learn from: images, and what is to be said of them.

    Attributes:
        pixels: uint8 RGB [n, 3, h, w].
        teacher: float [n, ...], the frozen network's outputs for the clean images, or ground truth
            in the same form (:meth:`ppap_host.guides.guide.Guide.from_labels`).
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
            writing.write_file(files[i], save({"output": kept}))
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
