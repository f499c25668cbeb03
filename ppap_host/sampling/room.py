"""How many images a gradient is taken of at once: as many as there is memory for.

What one image needs is measured by one gradient of it alone, whose result is thrown away; what is
free is what the system says. The images of a batch are then taken in equal parts. Of what is made,
this changes nothing but rounding, as another size of a batch does.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SHARE = 0.8
"""Of the memory that is free, what gradients may take: kernels need some that nobody counts."""


class Counted(TorchDispatchMode):
    """Follows the memory of all tensors that are made while it is entered.

    What is not made but only used then, such as weights, counts nothing.

    Attributes:
        peak: the most bytes that were there at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self._known.add(tensor.untyped_storage()._cdata)
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage())
        return made

    def _follow(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def free(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where nobody knows."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    return int(psutil.virtual_memory().available) if device.type == "cpu" else None


def at_once(losses: Callable[[Tensor, slice], Tensor], states: Tensor) -> int:
    """Of how many of these states a gradient is to be taken at once, in equal parts; at least one.

    Args:
        losses: of some states, [b, ...], and the place of these in the batch: their losses, [b].
    """
    count, device = len(states), states.device
    room = free(device) if count > 1 else None
    if room is None:
        return count
    cards = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cards), Counted() as counted:
        _gradient(losses, states, slice(0, 1))
    fit = max(int(SHARE * room) // max(counted.peak, 1), 1)
    parts = -(-count // fit)
    return int(-(-count // parts))


def in_parts(losses: Callable[[Tensor, slice], Tensor], states: Tensor, size: int) -> Tensor:
    """The losses of all states, [b], which carry the gradient: so many are taken at once.

    Args:
        losses: as in :func:`at_once`.
    """
    if size >= len(states):
        return losses(states, slice(None))
    made: Tensor = _InParts.apply(states, losses, size)
    return made


class _InParts(torch.autograd.Function):
    """Losses whose gradients are taken part by part on the way forwards."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, losses: Any, size: int) -> Tensor:
        places = [slice(i, i + size) for i in range(0, len(states), size)]
        found = [_gradient(losses, states, place) for place in places]
        ctx.save_for_backward(torch.cat([gradient for _, gradient in found]))
        return torch.cat([loss for loss, _ in found])

    @staticmethod
    def backward(ctx: Any, *of_losses: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        rows = of_losses[0].view(-1, *[1] * (gradient.ndim - 1))
        return rows.to(gradient) * gradient, None, None


def _gradient(
    losses: Callable[[Tensor, slice], Tensor], states: Tensor, place: slice
) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        part = states[place].detach().requires_grad_()
        loss = losses(part, place)
        (gradient,) = torch.autograd.grad(loss.sum(), part)
    return loss.detach(), gradient
