"""The gradient of what reaches a scheduler with respect to the state, through the pipeline itself.

Recipes such as DPS differentiate the prediction. In somebody else's pipeline it comes from one call
of a network or several, and from what the pipeline makes of them: classifier-free guidance, its
rescaling, a control network's residuals, packing. All of it is differentiated as it was computed:
gradients are recorded while the pipeline runs, whatever ``torch.no_grad`` it runs under, from the
state that a step returns to the prediction that reaches the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from ppap_host.files.errors import OptionError
from ppap_host.pipelines.hooks import frozen


class Recorded(TorchFunctionMode):
    """While it is entered, gradients are recorded through what a pipeline does to its state.

    Attributes:
        paused: whether all is as usual, for what the guides compute.
        first: whether the first state has yet to come; noise is then where gradients begin.
    """

    def __init__(self) -> None:
        super().__init__()
        self.paused, self.first = False, True

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """As torch, but for the functions that would end the record."""
        if self.paused:
            return func(*args, **(kwargs or {}))
        if func is torch._C._set_grad_enabled:
            return None
        if func in (Tensor.numpy, Tensor.__array__):
            return func(args[0].detach(), *args[1:], **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        if self.first and func in (torch.randn, torch.randn_like) and result.is_floating_point():
            # Not the leaf itself, so that a pipeline may write into it.
            return result.requires_grad_().clone()
        return result

    @contextmanager
    def pause(self) -> Iterator[None]:
        """All is as usual, and nothing recorded unless it is asked for."""
        before, self.paused = self.paused, True
        try:
            with torch.no_grad():
                yield
        finally:
            self.paused = before

    def next_state(self, state: Tensor) -> Tensor:
        """The state that a step returns, as one that gradients begin at."""
        self.first = False
        with torch.enable_grad():
            return state.detach().requires_grad_().clone()


@contextmanager
def recorded(networks: Sequence[nn.Module]) -> Iterator[Recorded]:
    """Records gradients of the state, and of nothing else: no weight of the networks wants one.

    Raises:
        OptionError: no gradient goes through these networks.
    """
    if any(p.is_inference() for network in networks for p in network.parameters()):
        raise OptionError(
            "The pipeline's networks were loaded under torch.inference_mode, and no gradient goes "
            "through such weights.",
            remedy="Load the pipeline outside of it, or use the recipe x0.",
        )
    # The record is kept in spite of the mode that the pipeline is called under.
    with (
        frozen(networks), torch.inference_mode(False), torch.enable_grad(), Recorded() as record,
    ):  # fmt: skip
        yield record


class Reached:
    """A prediction that reached a scheduler, as a function of the state.

    Args:
        output: the prediction, as the pipeline computed it.
        sample: the state as the pipeline gave it to the scheduler.
        returned: the state as the step before returned it, None at the first.
        uses: how often the gradient will be asked for; the record is let go with the last.

    Raises:
        OptionError: the prediction carries no gradient.
    """

    def __init__(self, output: Tensor, sample: Tensor, returned: Tensor | None, uses: int) -> None:
        if not output.requires_grad:
            raise OptionError(
                "The prediction that reached the scheduler carries no gradient to the state: the "
                "network, or what stands for it, computes without one.",
                remedy="Use the recipe x0, which needs none, or a network that is not quantised, "
                "compiled or cached.",
            )
        self.output, self._uses = output, uses
        self._roots = list(_edges(sample))
        if returned is not None and returned.shape == sample.shape:
            self._roots.append(get_gradient_edge(returned))
        if not self._roots:
            raise self._unrelated()

    def gradient(self, of_output: Tensor) -> Tensor:
        """With respect to the state, from one with respect to the prediction.

        Raises:
            OptionError: the prediction does not depend on the state.
        """
        self._uses -= 1
        found = torch.autograd.grad(
            self.output, self._roots, of_output, retain_graph=self._uses > 0, allow_unused=True
        )
        for gradient in found:
            if gradient is not None:
                return gradient
        raise self._unrelated()

    @staticmethod
    def _unrelated() -> OptionError:
        return OptionError(
            "The prediction that reached the scheduler was not computed from the state that came "
            "with it, so there is no gradient from one to the other.",
            remedy="Use the recipe x0, which does not differentiate the network.",
        )


class _Bridge(torch.autograd.Function):
    """The identity from one graph into another: forward a value, backward a given function."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, back: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.back = back
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return ctx.back(gradients[0]), None, None


def bridged(x: Tensor, value: Tensor, back: Callable[[Tensor], Tensor]) -> Tensor:
    """``value`` as a function of ``x`` whose gradient ``back`` computes."""
    bridge: Tensor = _Bridge.apply(x, value, back)
    return bridge


def _edges(sample: Tensor) -> Iterator[GradientEdge]:
    """Where gradients reach the state: itself, and what it was cast from for the scheduler."""
    if not sample.requires_grad:
        return
    yield get_gradient_edge(sample)
    node = sample.grad_fn
    while node is not None and node.name() == "ToCopyBackward0":
        before, number = node.next_functions[0]
        if before is None:
            return
        yield GradientEdge(before, number)
        node = before
