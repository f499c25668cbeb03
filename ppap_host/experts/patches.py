"""Experts: parameter-efficient patches on one frozen network, one for each noise range.

PPAP (Go et al., 2023, section 4.2): the off-the-shelf network stays frozen, and each expert holds
low-rank factors of its convolutions and linear layers, its own biases, and its own normalisation
parameters. A patch is laid over any :class:`torch.nn.Module` (:class:`Patched`), so no adapter
class is written for an architecture; merged once for a noise range, a guided step costs what the
plain network costs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

from ppap_host.files.errors import CheckpointError
from ppap_host.guides.guide import PatchPlan
from ppap_host.sampling.streams import derived, generator

_LOW_RANK = (".lora_A", ".lora_B")


_STATISTICS = ("running_mean", "running_var")


def factor_shapes(weight: Sequence[int], rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shapes of the factors A and B for a weight of this shape.

    Linear, (out, in): A (r, in), B (out, r). Convolution, (out, in / groups, ..., k): the kernel's
    sides are spread over both factors, A (r k, in k) and B (out m, r k), where k is the last side
    and m the product of the others. A transposed convolution, (in, out / groups, ..., k), has the
    two swapped, which changes neither the rank nor the count.
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
        direct: parameter or buffer name -> its own value, in place of the network's. Running
            statistics of normalisation layers are among them; :func:`estimate_statistics` says
            which rule they follow.
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
        directly. A parameter with several names is changed once, under its first. Tensors are
        float32 at least, so that a network in half precision can be tuned.

        Raises:
            CheckpointError: the plan names a parameter that the network lacks.
        """
        drawn = generator(derived("patch", seed))
        values, first = _named(network), _first_names(network)
        low_rank: dict[str, tuple[Tensor, Tensor]] = {}
        direct: dict[str, Tensor] = {}
        for name in (*plan.low_rank, *plan.direct):
            if name not in values:
                raise CheckpointError(
                    f"The patch plan names {name!r}, but the network lacks it.",
                    remedy="This is a fault of the guide's patch plan; tell the plugin's authors.",
                )
        for name in dict.fromkeys(first[n] for n in plan.low_rank):
            weight = values[name].detach()
            shape_a, shape_b = factor_shapes(weight.shape, plan.rank)
            if math.prod(shape_a) + math.prod(shape_b) >= weight.numel():
                direct[name] = _at_least_float32(weight).clone()
                continue
            bound = shape_a[1] ** -0.5
            a = (2 * torch.rand(shape_a, generator=drawn) - 1) * bound
            like = _at_least_float32(weight[:0])
            low_rank[name] = (a.to(like), torch.zeros(shape_b).to(like))
        for name in dict.fromkeys(first[n] for n in plan.direct):
            if name not in low_rank and name not in direct:
                direct[name] = _at_least_float32(values[name].detach()).clone()
        return cls(low_rank, direct | _statistics(network), scaling)

    @classmethod
    def full(cls, network: nn.Module) -> Patch:
        """Every parameter trained directly: a fully fine-tuned expert, the costly baseline."""
        direct = {n: _at_least_float32(p.detach()).clone() for n, p in network.named_parameters()}
        return cls({}, direct | _statistics(network))

    def trainable(self) -> list[Tensor]:
        """The tensors an optimiser moves: factors and direct parameters, not running statistics."""
        factors = [tensor for pair in self.low_rank.values() for tensor in pair]
        return factors + [v for name, v in self.direct.items() if not _is_statistic(name)]

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by the names they are stored under: a weight's factors end in .lora_A, _B."""
        factors = {
            f"{name}{suffix}": tensor
            for name, pair in self.low_rank.items()
            for suffix, tensor in zip(_LOW_RANK, pair, strict=True)
        }
        return factors | self.direct

    def count(self) -> int:
        """How many numbers are trainable."""
        return sum(tensor.numel() for tensor in self.trainable())

    def merged(self, network: nn.Module) -> dict[str, Tensor]:
        """Parameters and buffers to lay over ``network``, differentiable in the patch.

        They have the network's device and precision; sums are made in float32 at least. Persistent
        buffers that the patch leaves alone come as copies, so that a forward that writes to its
        buffers leaves the frozen network as it is.

        Raises:
            CheckpointError: the network lacks a name, or has it in another shape.
        """
        values = _named(network)
        laid = {name: buffer.clone() for name, buffer in _persistent_buffers(network)}
        for name, tensor in self.direct.items():
            known = values.get(name)
            if known is None or known.shape != tensor.shape:
                raise _mismatch(name, tensor.shape, known)
            laid[name] = tensor.to(known)
        for name, (a, b) in self.low_rank.items():
            known = values.get(name)
            if known is None or not _fit(a, b, known):
                raise _mismatch(name, (len(b), a.shape[-1]), known)
            work = torch.promote_types(torch.promote_types(a.dtype, known.dtype), torch.float32)
            a, b = a.to(known.device, work), b.to(known.device, work)
            delta = low_rank_delta(a, b, known.shape)
            laid[name] = (known.detach().to(work) + self.scaling * delta).to(known)
        return laid

    def over(self, network: nn.Module) -> Patched:
        """The network with this patch, callable as the network is; see :meth:`merged`."""
        return Patched(network, self.merged(network))


class Patched:
    """A network called with other parameters and buffers, itself unchanged afterwards.

    As :func:`torch.func.functional_call`, which would do but for two things: it costs about a
    millisecond a call on a transformer, because it looks every name up again, and it leaves a
    network that uses one submodule in two places with the other parameters for good. Where they go
    is found out once, here; a parameter with several names is replaced under all of them.

    Not to be called from two threads at once on the same network; see :func:`twin`.

    Args:
        network: any module of one input.
        tensors: by name; names that the network lacks are left out.
    """

    def __init__(self, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        self.network = network
        named = _named(network)
        wanted = {id(named[name]): tensor for name, tensor in tensors.items() if name in named}
        self._slots: list[tuple[dict[str, Any], str, Tensor]] = [
            (own, key, wanted[id(value)])
            for module in network.modules()
            for own in (module._parameters, module._buffers)
            for key, value in own.items()
            if id(value) in wanted
        ]

    def __call__(self, prepared: Tensor) -> Tensor:
        """The network's output for prepared inputs, differentiable in the tensors laid over it."""
        before = [own[key] for own, key, _ in self._slots]
        try:
            for own, key, tensor in self._slots:
                own[key] = tensor
            output: Tensor = self.network(prepared)
            return output
        finally:
            for (own, key, _), tensor in zip(self._slots, before, strict=True):
                own[key] = tensor


def twin(network: nn.Module) -> nn.Module:
    """The same network with a structure of its own: modules are copies, tensors are shared.

    Other parameters may be laid over it while somebody else calls the network.
    """
    tensors = [*network.parameters(), *network.buffers()]
    copied: nn.Module = deepcopy(network, {id(tensor): tensor for tensor in tensors})
    return copied


def _named(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under all their names."""
    parameters = dict(network.named_parameters(remove_duplicate=False))
    return parameters | dict(network.named_buffers(remove_duplicate=False))


def _first_names(network: nn.Module) -> dict[str, str]:
    """For every name of a parameter the first name of the same parameter."""
    first = {id(p): name for name, p in network.named_parameters()}
    return {name: first[id(p)] for name, p in network.named_parameters(remove_duplicate=False)}


def _persistent_buffers(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers that belong to the network's state, once each; the others are caches."""
    seen = set()
    for prefix, module in network.named_modules():
        for key, buffer in module._buffers.items():
            kept = buffer is not None and key not in module._non_persistent_buffers_set
            if kept and buffer is not None and id(buffer) not in seen:
                seen.add(id(buffer))
                yield (f"{prefix}.{key}" if prefix else key), buffer


def _is_statistic(name: str) -> bool:
    return name.rsplit(".", 1)[-1] in _STATISTICS


def _statistics(network: nn.Module) -> dict[str, Tensor]:
    buffers = {n: b.detach() for n, b in network.named_buffers() if _is_statistic(n)}
    return {name: _at_least_float32(buffer).clone() for name, buffer in buffers.items()}


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _fit(a: Tensor, b: Tensor, weight: Tensor) -> bool:
    """Whether these are factors of that weight, of any rank."""
    if weight.ndim < 2 or a.ndim != 2 or b.ndim != 2:
        return False
    last = weight.shape[-1] if weight.ndim > 2 else 1
    rank = len(a) // last
    return factor_shapes(weight.shape, rank) == (tuple(a.shape), tuple(b.shape))


def _mismatch(name: str, shape: Sequence[int], known: Tensor | None) -> CheckpointError:
    there = "lacks it" if known is None else f"has it as {tuple(known.shape)}"
    return CheckpointError(
        f"The expert changes {name!r} {tuple(shape)}, but the guide's network {there}.",
        remedy="Use the experts with the network they were tuned on; `--experts none` turns them "
        "off.",
    )


def estimate_statistics(network: nn.Module, patch: Patch, batches: Iterable[Tensor]) -> None:
    """Sets the patch's running statistics to those of the given inputs.

    The rule: running statistics (batch normalisation's mean and variance) belong to the patch,
    since noised images have other statistics than clean ones. They are estimated anew for each
    noise range, from noised images, before training; then they are fixed, and the network stays in
    evaluation mode throughout training and guidance.

    The estimate is what Wu and Johnson (2021, "Rethinking 'Batch' in BatchNorm", section 3) call
    precise: not a moving average but all inputs with equal weight. The mean is the mean of the
    batches' means; batch normalisation's variance is the mean of their (unbiased) variances plus
    the variance of their means. Only the layers that track statistics are in training mode
    meanwhile, and nothing is left of it afterwards: the network's own buffers and modes are as
    before, also when an exception is raised. Networks without such layers return at once, and the
    batches are not touched; without any batch the statistics stay as they are.

    Args:
        network: the frozen network.
        patch: changed in place: ``direct["....running_mean"]`` and ``direct["....running_var"]``.
        batches: prepared inputs of the network, [b, ...] each, best with all levels of the range
            mixed in every batch; b of at least 2 where a layer sees one value a channel and image.
    """
    layers = {
        f"{prefix}." if prefix else "": module
        for prefix, module in network.named_modules()
        # A layer that only reads statistics, such as a frozen batch normalisation, has no momentum.
        if isinstance(getattr(module, "running_mean", None), Tensor) and hasattr(module, "momentum")
    }
    if not layers:
        return
    names = [prefix + key for prefix in layers for key in _STATISTICS if _has(layers[prefix], key)]
    laid = patch.merged(network)
    laid.update({name: laid[name].clone() for name in names})
    patched = Patched(network, laid)
    dtype = next((p.dtype for p in network.parameters()), torch.float32)
    sums = {name: torch.zeros_like(laid[name], dtype=torch.float64) for name in names}
    squares = {name: torch.zeros_like(total) for name, total in sums.items()}
    images = 0
    with torch.no_grad(), _measuring(network, layers.values()):
        for batch in batches:
            patched(batch.to(dtype))
            images += len(batch)
            for name in names:
                value = laid[name].double()
                sums[name] += len(batch) * value
                squares[name] += len(batch) * value.square()
    if not images:
        return
    for prefix, module in layers.items():
        means, variances = (prefix + key for key in _STATISTICS)
        if variances in sums and isinstance(module, nn.modules.batchnorm._BatchNorm):
            # Of images, not of batches: what the batches' means differ by is variance, too.
            between = squares[means] / images - (sums[means] / images).square()
            sums[variances] += images * between.clamp_min(0)
    for name in names:
        like = patch.direct.get(name, laid[name])
        patch.direct[name] = (sums[name] / images).to(like)


def _has(module: nn.Module, key: str) -> bool:
    return isinstance(getattr(module, key, None), Tensor)


@contextmanager
def _measuring(network: nn.Module, layers: Iterable[nn.Module]) -> Iterator[None]:
    """Evaluation mode but for ``layers``, which report the statistics of the last batch alone."""
    modes = {module: module.training for module in network.modules()}
    momenta: dict[Any, Any] = {layer: layer.momentum for layer in layers}
    try:
        network.eval()
        for layer in momenta:
            layer.training, layer.momentum = True, 1.0
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for layer, momentum in momenta.items():
            layer.momentum = momentum


def network_hash(network: nn.Module) -> str:
    """SHA-256 of a network's parameter and buffer names, shapes and float32 values.

    A network that was moved to half precision has another hash than before.
    """
    digest = sha256()
    for name, value in sorted(network.state_dict().items()):
        if not isinstance(value, Tensor):  # a module's extra state may be anything
            continue
        digest.update(f"{name} {tuple(value.shape)} ".encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
