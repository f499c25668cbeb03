"""Expert sets: the experts of one guide, with their noise ranges and where they come from."""

# Long because what an expert set says of itself is read, checked and written together.
from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ppap_host.backbones.noise import NoiseLevel, NoiseRange
from ppap_host.experts.patches import (
    _LOW_RANK,
    Patch,
    Patched,
    _at_least_float32,
    _is_statistic,
    network_hash,
    twin,
)
from ppap_host.files.errors import CheckpointError, foreign
from ppap_host.files.reading import Document
from ppap_host.files.writing import json_text, write_file
from ppap_host.guides.guide import Guide, Wrapped

FORMAT = 1


View = Literal["noised", "predicted"]
"""What an expert is shown: noised images, or the clean images predicted behind them."""


VIEWS: tuple[View, ...] = get_args(View)

MOST = 1000
"""Experts in a set: one for each step of the schedules that people train with."""


class Backbone(BaseModel):
    """What made the images that a set was tuned on, by its name and its files' SHA-256."""

    model_config = ConfigDict(strict=True, extra="allow")

    name: str | None = None
    files: dict[str, str] = {}


class Trainable(BaseModel):
    """How many numbers: of the largest expert, of all experts, and of the network itself."""

    model_config = ConfigDict(strict=True, extra="allow")

    per_expert: int | None = None
    total: int | None = None
    network: PositiveInt | None = None


class Quality(BaseModel):
    """What was measured in one range; measures may be grouped by whose they are."""

    model_config = ConfigDict(strict=True, extra="allow")
    __pydantic_extra__: dict[str, FiniteFloat | str | list[Any] | Quality | None]

    standard_error: FiniteFloat | None = None


class Metadata(BaseModel):
    """What an expert set says of itself, as JSON values; other keys are kept.

    Attributes:
        guide: name of the guide.
        model: its --model as it was given, None for the one it ships.
        network_sha256: :func:`network_hash` of its network in float32.
        image_size: [height, width] in pixels of the images it was tuned on.
        view: a :data:`View`, what it was tuned on and what it may be shown; absent: "noised".
        backbone: what made these images.
        method: how the experts were tuned, e.g. "low-rank" or "full".
        rank: of the factors, None for full fine-tuning.
        tuning: the settings of the tuning.
        harvest: where the images came from: settings, count, hashes.
        quality: one table of measures a range, in the order of the ranges.
        licence: of the set, as an SPDX expression, and what it inherits.
        versions: of the packages that made it.
        trainable: how many numbers there are.
        merged_from: the sets that this one was joined from.
    """

    model_config = ConfigDict(strict=True, extra="allow")

    guide: str = ""
    model: str | None = None
    network_sha256: str = ""
    image_size: Annotated[list[PositiveInt], Field(min_length=2, max_length=2)] | None = None
    view: View = "noised"
    backbone: Backbone = Backbone()
    method: str = ""
    rank: int | None = None
    tuning: dict[str, Any] = {}
    harvest: dict[str, Any] | None = None
    quality: list[Quality] = []
    licence: str | None = None
    versions: dict[str, str] = {}
    trainable: Trainable = Trainable()
    merged_from: list[dict[str, Any]] = []


_Bounds = Annotated[list[str | FiniteFloat], Field(min_length=2, max_length=2)]


class _Header(Metadata):
    """The metadata of a set's file."""

    format: Literal[1]
    ranges: Annotated[list[_Bounds], Field(max_length=MOST)]
    scalings: Annotated[list[FiniteFloat], Field(max_length=MOST)]
    sha256: str | None = None

    @model_validator(mode="after")
    def _together(self) -> Self:
        if not len(self.ranges) == len(self.scalings):
            raise ValueError(f"{len(self.ranges)} ranges, and {len(self.scalings)} scalings")
        if self.quality and len(self.quality) != len(self.ranges):
            raise ValueError(f"{len(self.ranges)} ranges, and {len(self.quality)} of 'quality'")
        return self


_FILE = Document(
    "readable expert set", CheckpointError, "Give the safetensors file that `ppap tune` wrote."
)
_OWN = ("format", "ranges", "scalings", "sha256")  # of the header, beside the metadata


@dataclass
class ExpertSet:
    """The N experts of one guide.

    Attributes:
        ranges: the noise range each expert serves, as log-SNR, in any order; they do not overlap.
        patches: one for each range.
        metadata: provenance as JSON values, with the keys of :class:`Metadata`: at least ``guide``,
            ``network_sha256``, ``image_size``. Other keys are kept.

    Raises:
        CheckpointError: ranges are empty, overlap, or are not as many as the patches.
    """

    ranges: list[NoiseRange]
    patches: list[Patch]
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.ranges) != len(self.patches):
            raise _unsound(f"has {len(self.ranges)} ranges for {len(self.patches)} experts")
        for part in self.ranges:
            if not part.low < part.high:
                raise _unsound(f"has the empty range {_shown(part)}")
        clash = overlap(self.ranges, self.ranges)
        if clash is not None:
            raise _unsound(f"has overlapping ranges {_shown(clash[0])} and {_shown(clash[1])}")

    @property
    def view(self) -> View:
        """What its experts are shown at the level they serve."""
        return view_of(self.metadata)

    def serving(self, level: NoiseLevel) -> int:
        """Index of the expert that serves a noise level.

        Raises:
            CheckpointError: none does.
        """
        for i, part in enumerate(self.ranges):
            if level.log_snr in part:
                return i
        covered = ", ".join(_shown(part) for part in self.ranges) or "nothing"
        raise CheckpointError(
            f"No expert serves log-SNR {level.log_snr:.2f}; the set covers {covered}.",
            remedy="Use a set that covers the backbone's schedule, or --experts none.",
        )

    def covers(self, levels: Iterable[NoiseLevel]) -> bool:
        """Whether every one of these noise levels has its expert."""
        return all(any(level.log_snr in part for part in self.ranges) for level in levels)

    def check(
        self, network: nn.Module, guide_name: str, image_size: tuple[int, int] | None = None
    ) -> None:
        """Whether the set is for this guide, its network and images of this size.

        Args:
            network: the guide's, in the precision it was loaded in.
            guide_name: the guide's name.
            image_size: (height, width) in pixels of the images to be guided; None: any.

        Raises:
            CheckpointError: it is for another one; names both.
        """
        guide = self.metadata.get("guide")
        if guide is not None and guide != guide_name:
            raise CheckpointError(
                f"These experts were tuned for the guide {guide!r}, not for {guide_name!r}.",
                remedy=f"Use them with --guide {foreign(guide)}, or --experts none.",
            )
        size = self.metadata.get("image_size")
        if size is not None and image_size is not None and tuple(size) != tuple(image_size):
            raise CheckpointError(
                f"These experts were tuned for {_size(size)}, this backbone makes "
                f"{_size(image_size)}.",
                remedy="Tune a set on this backbone (`ppap tune`), or use --experts none.",
            )
        tuned_on = self.metadata.get("network_sha256")
        if tuned_on is None:
            return
        found = network_hash(network)
        if tuned_on != found:
            model = self.metadata.get("model")
            named = f" of {model!r}" if model else ""
            raise CheckpointError(
                f"These experts were tuned on the network {tuned_on[:12]}...{named}, "
                f"the guide {guide_name!r} has {found[:12]}....",
                remedy="Give the --model they were tuned on, or --experts none.",
            )

    def describe(self) -> dict[str, Any]:
        """All there is to say of the set, as JSON values.

        ``experts`` has one entry a range, from clean to noisy: ``log_snr`` [low, high] with None
        for no bound, ``trainable`` numbers, their ``share`` of the network's where that is known,
        and ``quality``. ``view`` is always there. The rest is the metadata.
        """
        network = (self.metadata.get("trainable") or {}).get("network")
        quality = self.metadata.get("quality") or [{} for _ in self.ranges]
        counts = [patch.count() for patch in self.patches]

        def share(count: int) -> float | None:
            return count / network if network else None

        order = sorted(range(len(self.ranges)), key=lambda i: -self.ranges[i].low)
        experts = [
            {
                "log_snr": [
                    bound if math.isfinite(bound) else None
                    for bound in (self.ranges[i].low, self.ranges[i].high)
                ],
                "trainable": counts[i],
                "share": share(counts[i]),
                "quality": quality[i],
            }
            for i in order
        ]
        total = sum(counts)
        trainable = {"total": total, "network": network, "share": share(total)}
        rest = {k: v for k, v in self.metadata.items() if k not in ("quality", "trainable")}
        return {"experts": experts, "trainable": trainable, **rest, "view": self.view}

    def save(self, path: Path, dtype: torch.dtype | None = None) -> None:
        """Writes one safetensors file; its metadata is readable with any safetensors tool.

        Args:
            dtype: store in this precision, e.g. ``torch.float16`` to ship half the bytes. Running
                statistics and whatever would overflow are kept as they are.

        Raises:
            OutputError: the file cannot be written.
        """
        tensors = {
            f"expert.{i}.{name}": _stored(name, tensor.detach().cpu(), dtype)
            for i, patch in enumerate(self.patches)
            for name, tensor in patch.tensors().items()
        }
        described = {
            **self.metadata,
            "format": FORMAT,
            "ranges": [[str(p.low), str(p.high)] for p in self.ranges],
            "scalings": [p.scaling for p in self.patches],
            "sha256": digest_of(tensors),
        }
        write_file(path, save(tensors, {"ppap": json_text(described, None, sort_keys=True)}))

    @staticmethod
    def read_metadata(path: Path) -> dict[str, Any]:
        """What a set says of itself (:class:`Metadata`), without reading its tensors.

        Raises:
            CheckpointError: as :meth:`load`, as far as that can be told.
        """
        described, _ = _read(path)
        return {key: value for key, value in described.items() if key not in _OWN}

    @classmethod
    def load(cls, path: Path) -> ExpertSet:
        """Reads a set; tensors in half precision become float32.

        Raises:
            CheckpointError: the file is missing, damaged, or no expert set.
        """
        tensors: dict[str, Tensor] = {}
        described, header = _read(path, tensors)
        try:
            ranges = [NoiseRange(float(low), float(high)) for low, high in header.ranges]
        except ValueError:
            raise _unsound("has no valid ranges", path) from None
        patches = _sorted_out(tensors, header.scalings, path)
        metadata = {key: value for key, value in described.items() if key not in _OWN}
        try:
            return cls(ranges, patches, metadata)
        except CheckpointError as error:
            raise CheckpointError(f"{str(path)!r}: {error.message}", remedy=error.remedy) from None


def view_of(metadata: Mapping[str, Any]) -> View:
    """What a set with this metadata is shown; sets that do not say it are of noised images."""
    view: View = metadata.get("view", "noised")
    return view


def overlap(
    some: Sequence[NoiseRange], others: Sequence[NoiseRange]
) -> tuple[NoiseRange, NoiseRange] | None:
    """The first two different entries that share a noise level, or None.

    Given the same list twice, no range is compared with itself.
    """
    for i, a in enumerate(some):
        for k, b in enumerate(others):
            if (some is not others or i < k) and max(a.low, b.low) < min(a.high, b.high):
                return a, b
    return None


def joined(sets: Mapping[str, ExpertSet]) -> ExpertSet:
    """One set of the experts of several, from clean to noisy.

    Metadata that all sets share is kept; quality and trainable numbers are those of all experts.

    Args:
        sets: by what people call them, such as their paths.

    Raises:
        CheckpointError: two sets are of different guides, networks, image sizes or views, or serve
            the same noise levels; names both.
    """
    names = list(sets)
    if not names:
        raise CheckpointError("There are no expert sets to join.", remedy="Name at least one.")
    for i, name in enumerate(names):
        for other in names[:i]:
            a, b = sets[other], sets[name]
            for key in ("guide", "network_sha256", "image_size", "view"):
                values = [str(({"view": s.view} | s.metadata).get(key)) for s in (a, b)]
                if values[0] != values[1]:
                    raise CheckpointError(
                        f"{other!r} and {name!r} differ in {key}: {values[0]} and {values[1]}.",
                        remedy="Join only sets of the same guide, network, image size and view.",
                    )
            clash = overlap(a.ranges, b.ranges)
            if clash is not None:
                raise CheckpointError(
                    f"{other!r} serves {_shown(clash[0])} and {name!r} serves {_shown(clash[1])}: "
                    "they overlap.",
                    remedy="Join only sets whose ranges of log-SNR are disjoint.",
                )
    metadata = {
        key: value
        for key, value in sets[names[0]].metadata.items()
        if key not in ("quality", "trainable", "merged_from")
        and all(key in s.metadata and s.metadata[key] == value for s in sets.values())
    }
    parts = [
        (part, patch, quality)
        for s in sets.values()
        for part, patch, quality in zip(
            s.ranges, s.patches, s.metadata.get("quality") or [{} for _ in s.ranges], strict=True
        )
    ]
    parts.sort(key=lambda p: -p[0].low)
    if any(quality for *_, quality in parts):
        metadata["quality"] = [quality for *_, quality in parts]
    totals = {(s.metadata.get("trainable") or {}).get("network") for s in sets.values()}
    counts = [patch.count() for _, patch, _ in parts]
    metadata["trainable"] = {"per_expert": max(counts), "total": sum(counts)}
    if len(totals) == 1 and None not in totals:
        metadata["trainable"]["network"] = totals.pop()
    return ExpertSet([part for part, *_ in parts], [patch for _, patch, _ in parts], metadata)


def _stored(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype is None or not tensor.is_floating_point() or _is_statistic(name):
        return tensor.contiguous()
    narrow = tensor.to(dtype)
    fits = bool((narrow.isfinite() == tensor.isfinite()).all())
    return (narrow if fits else tensor).contiguous()


def _read(path: Path, tensors: dict[str, Tensor] | None = None) -> tuple[dict[str, Any], _Header]:
    """The header of a set's file, as it is and as it was checked; its tensors are put into
    ``tensors``."""
    described: dict[str, Any] = _FILE.header(path, "ppap")
    if tensors is not None:
        try:
            with safe_open(path, framework="pt") as file:
                tensors.update({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
        except (OSError, RuntimeError, SafetensorError) as error:
            raise _FILE.fail(str(path), str(error)) from None
    header = _FILE.check(described, _Header, str(path))
    if tensors is not None and header.sha256 not in (None, digest_of(tensors)):
        raise _unsound("is damaged: its tensors are others than were written", path)
    return described, header


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors' names, formats, shapes and bytes, hexadecimal."""
    digest = sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sorted_out(
    tensors: Mapping[str, Tensor], scalings: Sequence[float], path: Path
) -> list[Patch]:
    """Patches from the tensors of a file, by their names ``expert.<index>.<name>``."""
    patches = [Patch({}, {}, scaling) for scaling in scalings]
    halves: list[dict[str, list[Tensor | None]]] = [{} for _ in scalings]
    for key, tensor in tensors.items():
        word, _, rest = key.partition(".")
        index, _, name = rest.partition(".")
        number = int(index) if index.isdecimal() and len(index) < 6 else len(patches)
        if word != "expert" or not name or number >= len(patches):
            raise _unsound(f"holds {key!r}, which belongs to none of its experts", path)
        tensor = _at_least_float32(tensor) if tensor.is_floating_point() else tensor
        if name.endswith(_LOW_RANK):
            pair = halves[number].setdefault(name[: -len(_LOW_RANK[0])], [None, None])
            pair[_LOW_RANK.index(name[-len(_LOW_RANK[0]) :])] = tensor
        else:
            patches[number].direct[name] = tensor
    for i, pairs in enumerate(halves):
        for name, (a, b) in pairs.items():
            if a is None or b is None:
                missing = _LOW_RANK[0 if a is None else 1]
                raise _unsound(f"lacks the factor {f'expert.{i}.{name}{missing}'!r}", path)
            patches[i].low_rank[name] = (a, b)
    return patches


def _unsound(what: str, path: Path | None = None) -> CheckpointError:
    subject = "The expert set" if path is None else repr(str(path))
    return CheckpointError(
        f"{subject} {what}.", remedy="It is damaged or was made by hand; get another copy."
    )


def _shown(part: NoiseRange) -> str:
    return f"[{part.low:.2f}, {part.high:.2f})"


def _size(size: Sequence[int]) -> str:
    return " x ".join(str(side) for side in size)


class WithExperts(Wrapped):
    """A guide that sees images with a noise level through the expert for it, others as it is.

    The level is that of the noised image, or, for a set that was tuned on predictions
    (:attr:`ExpertSet.view`), the one at which a clean image was predicted:
    :attr:`~ppap_host.guides.guide.Guide.knows_predictions` says which. It is the caller who shows
    it the right ones. Weights are merged once for each noise range and kept until another range is
    asked for.

    Args:
        guide: before it is moved to half precision.
        experts: what :meth:`ExpertSet.check` finds to fit it.
        image_size: (height, width) in pixels of the images to be guided; None: any.

    Raises:
        CheckpointError: the set is for another guide, network or image size; names both.
    """

    def __init__(
        self, guide: Guide, experts: ExpertSet, image_size: tuple[int, int] | None = None
    ) -> None:
        experts.check(guide.network(), guide.name, image_size)
        super().__init__(guide)
        self.experts = experts
        self.knows_predictions = experts.view == "predicted"
        self._active: tuple[int, Patched] | None = None
        self._twin: nn.Module | None = None

    def see(self, x: Tensor, level: NoiseLevel | None = None) -> Tensor:
        """Through the expert that serves ``level``; through the plain network if it is None."""
        if level is None:
            return self.guide.see(x)
        index = self.experts.serving(level)
        if self._active is None or self._active[0] != index:
            if self._twin is None:  # the guide may serve another run at the same time
                self._twin = twin(self.network())
            with torch.no_grad():
                self._active = (index, self.experts.patches[index].over(self._twin))
        return self.through(self._active[1], x)

    def expert_at(self, level: NoiseLevel | None) -> int | None:
        """The expert that serves ``level``; None for the plain network."""
        return None if level is None else self.experts.serving(level)

    def to(self, device: torch.device, dtype: torch.dtype) -> Guide:
        """Moves the network; merged weights follow at the next step."""
        self._active = self._twin = None
        return super().to(device, dtype)


def report(network: nn.Module, experts: ExpertSet) -> Mapping[str, float]:
    """Trainable numbers of each expert and of the set, and their share of the network's."""
    total = sum(p.numel() for p in network.parameters())
    each = [patch.count() for patch in experts.patches]
    return {
        "network": total,
        "largest_expert": max(each),
        "all_experts": sum(each),
        "share_of_largest": max(each) / total,
        "share_of_all": sum(each) / total,
    }
