"""Experts: parameter-efficient patches on one frozen network, one for each noise range.

PPAP (Go et al., 2023, section 4.2): the off-the-shelf network stays frozen, and each expert holds
low-rank factors of its convolutions and linear layers, its own biases, and its own normalisation
parameters. A patch is laid over any :class:`torch.nn.Module` with
:func:`torch.func.functional_call`, so no adapter class is written for an architecture; merged once
for a noise range, a guided step costs what the plain network costs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.func import functional_call

from ppap_host.errors import CheckpointError
from ppap_host.guide import Guide, PatchPlan, Target
from ppap_host.images import write_file
from ppap_host.noise import NoiseLevel, NoiseRange

FORMAT = 1
_LOW_RANK = (".lora_A", ".lora_B")


def factor_shapes(weight: Sequence[int], rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shapes of the factors A and B for a weight of this shape.

    Linear, (out, in): A (r, in), B (out, r). Convolution, (out, in / groups, ..., k): the kernel's
    sides are spread over both factors, A (r k, in k) and B (out m, r k), where k is the last side
    and m the product of the others.
    """
    out, inner, *kernel = weight
    last = kernel[-1] if kernel else 1
    rest = math.prod(kernel[:-1]) if kernel else 1
    return (rank * last, inner * last), (out * rest, rank * last)


def low_rank_delta(a: Tensor, b: Tensor, shape: Sequence[int]) -> Tensor:
    """B A, read row by row as a weight of ``shape``; for 1 x 1 kernels the plain product."""
    return (b @ a).reshape(tuple(shape))


@dataclass
class Patch:
    """What one expert changes of a network.

    Attributes:
        low_rank: weight name -> (A, B); the weight becomes W + scaling * B A.
        direct: parameter or buffer name -> its own value, in place of the network's.
        scaling: alpha / r.
    """

    low_rank: dict[str, tuple[Tensor, Tensor]]
    direct: dict[str, Tensor]
    scaling: float = 1.0

    @classmethod
    def fresh(
        cls, network: nn.Module, plan: PatchPlan, scaling: float = 1.0, seed: int = 0
    ) -> Patch:
        """A patch that changes nothing yet: B is zero, A uniform in +-1 / sqrt(its columns).

        A weight for which the factors would hold as many numbers as the weight itself is trained
        directly. Running statistics of normalisation layers, where the network has them, belong to
        the patch: noised images have other statistics than clean ones.
        """
        generator = torch.Generator().manual_seed(seed)
        values = dict(network.named_parameters())
        low_rank, direct = {}, {}
        for name in plan.low_rank:
            weight = values[name]
            shape_a, shape_b = factor_shapes(weight.shape, plan.rank)
            if math.prod(shape_a) + math.prod(shape_b) >= weight.numel():
                direct[name] = weight.detach().clone()
                continue
            bound = shape_a[1] ** -0.5
            a = (2 * torch.rand(shape_a, generator=generator) - 1) * bound
            low_rank[name] = (a.to(weight), torch.zeros(shape_b).to(weight))
        for name in plan.direct:
            direct[name] = values[name].detach().clone()
        for name, buffer in network.named_buffers():
            if name.rsplit(".", 1)[-1] in ("running_mean", "running_var"):
                direct[name] = buffer.detach().clone()
        return cls(low_rank, direct, scaling)

    def trainable(self) -> list[Tensor]:
        """The tensors an optimiser moves: factors and direct parameters, not running statistics."""
        factors = [tensor for pair in self.low_rank.values() for tensor in pair]
        return factors + [v for name, v in self.direct.items() if ".running_" not in f".{name}"]

    def count(self) -> int:
        """How many numbers are trainable."""
        return sum(tensor.numel() for tensor in self.trainable())

    def merged(self, network: nn.Module) -> dict[str, Tensor]:
        """Parameters and buffers to lay over ``network``, differentiable in the patch.

        Raises:
            CheckpointError: the network lacks a name, or has it in another shape.
        """
        values = dict(network.named_parameters()) | dict(network.named_buffers())
        laid = {}
        for name, tensor in self.direct.items():
            known = values.get(name)
            if known is None or known.shape != tensor.shape:
                raise _mismatch(name, tensor.shape, known)
            laid[name] = tensor.to(known)
        for name, (a, b) in self.low_rank.items():
            known = values.get(name)
            if known is None or known.numel() != len(b) * a.shape[1]:
                raise _mismatch(name, (len(b), a.shape[1]), known)
            delta = low_rank_delta(a, b, known.shape)
            laid[name] = (known.detach().to(delta.dtype) + self.scaling * delta).to(known)
        return laid


def _mismatch(name: str, shape: Sequence[int], known: Tensor | None) -> CheckpointError:
    there = "lacks it" if known is None else f"has it as {tuple(known.shape)}"
    return CheckpointError(
        f"The expert changes {name!r} {tuple(shape)}, but the guide's network {there}.",
        remedy="Use the experts with the network they were tuned on; `--experts none` turns them "
        "off.",
    )


def network_hash(network: nn.Module) -> str:
    """SHA-256 of a network's parameter and buffer names, shapes and float32 values."""
    digest = sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} ".encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass
class ExpertSet:
    """The N experts of one guide.

    Attributes:
        ranges: the noise range each expert serves, as log-SNR; they do not overlap.
        patches: one for each range.
        metadata: provenance as JSON values: at least ``guide``, ``network_sha256``, ``image_size``.
    """

    ranges: list[NoiseRange]
    patches: list[Patch]
    metadata: dict[str, Any] = field(default_factory=dict)

    def serving(self, level: NoiseLevel) -> int:
        """Index of the expert that serves a noise level.

        Raises:
            CheckpointError: none does.
        """
        for i, part in enumerate(self.ranges):
            if level.log_snr in part:
                return i
        covered = ", ".join(f"[{p.low:.2f}, {p.high:.2f})" for p in self.ranges)
        raise CheckpointError(
            f"No expert serves log-SNR {level.log_snr:.2f}; the set covers {covered}.",
            remedy="Use a set that covers the backbone's schedule, or --experts none.",
        )

    def save(self, path: Path) -> None:
        """Writes one safetensors file; its metadata is readable with any safetensors tool.

        Raises:
            OutputError: the file cannot be written.
        """
        tensors: dict[str, Tensor] = {}
        for i, patch in enumerate(self.patches):
            for name, pair in patch.low_rank.items():
                for suffix, tensor in zip(_LOW_RANK, pair, strict=True):
                    tensors[f"expert.{i}.{name}{suffix}"] = tensor.detach().cpu().contiguous()
            for name, tensor in patch.direct.items():
                tensors[f"expert.{i}.{name}"] = tensor.detach().cpu().contiguous()
        described = {
            "format": FORMAT,
            "ranges": [[str(p.low), str(p.high)] for p in self.ranges],
            "scalings": [p.scaling for p in self.patches],
            **self.metadata,
        }
        write_file(path, save(tensors, {"ppap": json.dumps(described, sort_keys=True)}))

    @classmethod
    def load(cls, path: Path) -> ExpertSet:
        """Reads a set.

        Raises:
            CheckpointError: the file is missing, damaged, or no expert set.
        """
        try:
            with safe_open(path, framework="pt") as file:
                described = json.loads((file.metadata() or {})["ppap"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"{str(path)!r} is no readable expert set ({type(error).__name__}: {error}).",
                remedy="Give the safetensors file that `ExpertSet.save` wrote.",
            ) from None
        if described.get("format") != FORMAT:
            raise CheckpointError(
                f"{str(path)!r} has format {described.get('format')!r}, not {FORMAT}.",
                remedy="Use the version of ppap-host that wrote it.",
            )
        ranges = [NoiseRange(float(low), float(high)) for low, high in described.pop("ranges")]
        patches = [Patch({}, {}, scaling) for scaling in described.pop("scalings")]
        described.pop("format")
        for key, tensor in tensors.items():
            _, index, name = key.split(".", 2)
            patch = patches[int(index)]
            if name.endswith(_LOW_RANK[0]):
                plain = name.removesuffix(_LOW_RANK[0])
                patch.low_rank[plain] = (tensor, tensors[f"expert.{index}.{plain}{_LOW_RANK[1]}"])
            elif not name.endswith(_LOW_RANK[1]):
                patch.direct[name] = tensor
        return cls(ranges, patches, described)


class WithExperts(Guide):
    """A guide that sees noised images through the expert for their level, clean ones as it is.

    Weights are merged once for each noise range and kept until another range is asked for.

    Raises:
        CheckpointError: the set was tuned on another network; names both.
    """

    def __init__(self, guide: Guide, experts: ExpertSet) -> None:
        self.guide, self.experts = guide, experts
        self.name, self.default_scale = guide.name, guide.default_scale
        self._active: tuple[int, dict[str, Tensor]] | None = None
        tuned_on = experts.metadata.get("network_sha256")
        found = network_hash(guide.network())
        if tuned_on is not None and tuned_on != found:
            raise CheckpointError(
                f"These experts were tuned on the network {tuned_on[:12]}..., "
                f"the guide {guide.name!r} has {found[:12]}....",
                remedy="Give the --model they were tuned on, or --experts none.",
            )

    def see(self, x: Tensor, level: NoiseLevel | None = None) -> Tensor:
        """Through the expert that serves ``level``; through the plain network if it is None."""
        if level is None:
            return self.guide.see(x)
        network, index = self.network(), self.experts.serving(level)
        if self._active is None or self._active[0] != index:
            with torch.no_grad():
                self._active = (index, self.experts.patches[index].merged(network))
        prepared = self.prepare(x)
        own = next((p.dtype for p in network.parameters()), prepared.dtype)
        output: Tensor = functional_call(network, self._active[1], (prepared.to(own),))
        return output.to(x.dtype)

    def to(self, device: torch.device, dtype: torch.dtype) -> Guide:
        """Moves the network; merged weights follow at the next step."""
        self.guide.to(device, dtype)
        self._active = None
        return self

    def network(self) -> nn.Module:
        """The frozen network under the experts."""
        return self.guide.network()

    def read_target(self, text: str, size: tuple[int, int]) -> Target:
        """As the guide."""
        return self.guide.read_target(text, size)

    def prepare(self, x: Tensor) -> Tensor:
        """As the guide."""
        return self.guide.prepare(x)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """As the guide."""
        return self.guide.loss(output, target)

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """As the guide."""
        return self.guide.distance(student, teacher)

    def picture(self, output: Tensor) -> list[Image]:
        """As the guide."""
        return self.guide.picture(output)

    def measure(self, output: Tensor, target: Tensor) -> dict[str, list[float]]:
        """As the guide."""
        return self.guide.measure(output, target)

    def patch_plan(self, network: nn.Module) -> PatchPlan:
        """As the guide."""
        return self.guide.patch_plan(network)

    def files(self) -> Sequence[Path]:
        """As the guide."""
        return self.guide.files()


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
