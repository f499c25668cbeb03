"""Smooth activations in place of those with kinks, in any network, without touching the network.

The gradient of a ReLU network jumps wherever an input crosses zero, and a guide is nothing but its
gradient. EluCD (Ma et al., 2024, "Elucidating the design space of classifier-guided diffusion
generation", arXiv 2310.11311, section 3.2) therefore evaluates the guide with Softplus(beta),
log(1 + exp(beta z)) / beta, where it was trained with ReLU. :func:`softened` does so for every call
of the ReLU family, whoever makes it: a module, a function, a method, in place or not. No layer is
replaced and no network copied, so that the same network can be used plainly a moment later, and no
list of architectures is needed.

With s(z) for Softplus(beta), which tends to max(z, 0) as beta grows, all others follow:

=====================  =================================================
relu                   s(z)
threshold at t to t    t + s(z - t)
leaky_relu, prelu      a z + (1 - a) s(z); also rrelu in evaluation mode
hardtanh in [l, h]     l + s(z - l) - s(z - h)
relu6                  hardtanh in [0, 6]
hardsigmoid            relu6(z + 3) / 6
hardswish              z hardsigmoid(z)
elu, selu              c (s(z) + a (exp(-s(-z)) - 1)), c = 1 for elu
clamp, where asked     hardtanh; with one bound, one of its two terms
=====================  =================================================

ELU with a = 1 and CELU have a continuous gradient already and stay as they are; so do GELU, SiLU
and Mish, unless ``gates`` is below 1: then f(z) becomes f(gates z) / gates, which has the same
limits and its bend spread over 1 / gates times the width, as Softplus(beta) has beside Softplus(1).

That is off by default because it was measured. Between the gradients of log p(y | x) at renders
that differ by noise of 0.05 (in [-1, 1]), the cosine is 0.78 for the shipped ReLU network and 0.84
with Softplus(3), which costs it 0.5 % of accuracy on 400 clean renders. Small GELU and SiLU
networks have 0.988 and 0.989 as they are. ``gates`` of 0.5 raises that to 0.991 and 0.996, and
costs 14 and 39 % of accuracy: there is nothing left to smooth, and much to break.
"""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ppap_host.backbones.noise import NoiseLevel
from ppap_host.files.errors import OptionError
from ppap_host.guides.guide import Guide, Wrapped

_THRESHOLD = 20.0
"""Above this, beta z, Softplus is the identity: torch's own default, which EluCD's code has."""

_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
"""Of Klambauer et al. (2017), as torch has them."""


@dataclass(frozen=True)
class _Softness:
    """What the formulas need to know.

    Attributes:
        beta: of Softplus, positive and finite.
        gates: factor inside GELU, SiLU and Mish, positive.
        clamps: whether clamps are softened.
    """

    beta: float
    gates: float
    clamps: bool

    def plus(self, z: Tensor) -> Tensor:
        """Softplus(beta) in place of max(z, 0)."""
        return F.softplus(z, self.beta, _THRESHOLD)


# Every formula has the arguments of torch's function; None leaves that to torch.
_Formula = Callable[..., Tensor | None]


def _relu(s: _Softness, input: Tensor, inplace: bool = False) -> Tensor:
    return s.plus(input)


def _threshold(
    s: _Softness, input: Tensor, threshold: float, value: float, inplace: bool = False
) -> Tensor | None:
    if threshold != value:  # it jumps, and is meant to
        return None
    return threshold + s.plus(input - threshold)


def _leaky(
    s: _Softness, input: Tensor, negative_slope: float | Tensor = 0.01, inplace: bool = False
) -> Tensor:
    return negative_slope * input + (1 - negative_slope) * s.plus(input)


def _prelu(s: _Softness, input: Tensor, weight: Tensor) -> Tensor:
    # One slope, or one a channel, which is the second axis.
    axes = [-1] + [1] * (input.ndim - 2) if weight.numel() > 1 else [1] * input.ndim
    return _leaky(s, input, weight.reshape(axes))


def _rrelu(
    s: _Softness,
    input: Tensor,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    inplace: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor | None:
    return None if training else _leaky(s, input, (lower + upper) / 2)


def _hardtanh(
    s: _Softness,
    input: Tensor,
    min_val: float = -1.0,
    max_val: float = 1.0,
    inplace: bool = False,
) -> Tensor:
    return min_val + s.plus(input - min_val) - s.plus(input - max_val)


def _relu6(s: _Softness, input: Tensor, inplace: bool = False) -> Tensor:
    return _hardtanh(s, input, 0.0, 6.0)


def _hardsigmoid(s: _Softness, input: Tensor, inplace: bool = False) -> Tensor:
    return _relu6(s, input + 3) / 6


def _hardswish(s: _Softness, input: Tensor, inplace: bool = False) -> Tensor:
    return input * _hardsigmoid(s, input)


def _elu(
    s: _Softness,
    input: Tensor,
    alpha: float = 1.0,
    scale: float = 1.0,
    input_scale: float = 1.0,
    inplace: bool = False,
) -> Tensor | None:
    if alpha * input_scale == 1:
        return None
    below = torch.expm1(-input_scale * s.plus(-input))
    return scale * (s.plus(input) + alpha * below)


def _elu_of_module(
    s: _Softness, input: Tensor, alpha: float = 1.0, inplace: bool = False
) -> Tensor | None:
    return _elu(s, input, alpha)


def _selu(s: _Softness, input: Tensor, inplace: bool = False) -> Tensor | None:
    return _elu(s, input, _SELU_ALPHA, _SELU_SCALE)


def _clamp(
    s: _Softness,
    input: Tensor,
    min: float | Tensor | None = None,
    max: float | Tensor | None = None,
) -> Tensor | None:
    if not s.clamps:
        return None
    soft = input
    if min is not None:
        soft = min + s.plus(input - min)
    return soft if max is None else soft - s.plus(input - max)


def _clamp_min(s: _Softness, input: Tensor, min: float | Tensor) -> Tensor | None:
    return _clamp(s, input, min)


def _clamp_max(s: _Softness, input: Tensor, max: float | Tensor) -> Tensor | None:
    return _clamp(s, input, None, max)


def _silu(s: _Softness, input: Tensor, inplace: bool = False) -> Tensor:
    return F.silu(s.gates * input) / s.gates


def _mish(s: _Softness, input: Tensor, inplace: bool = False) -> Tensor:
    return F.mish(s.gates * input) / s.gates


def _gelu(s: _Softness, input: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(s.gates * input, approximate=approximate) / s.gates


_GATES = (_silu, _mish, _gelu)
"""What `gates` softens; `beta` all others."""


@dataclass(frozen=True)
class _Rule:
    """How calls of one of torch's functions are softened.

    Attributes:
        formula: in its place.
        signature: of the formula, to read the call's arguments with.
        inplace: whether it always writes into its input.
    """

    formula: _Formula
    signature: inspect.Signature
    inplace: bool


def _rules() -> dict[Any, _Rule]:
    """torch's function, as :class:`TorchFunctionMode` is told of it -> rule.

    By name, since each goes by several: ``F.relu``, ``torch.relu`` and ``Tensor.relu`` are three
    functions to torch, most have another form with an underscore, and exported graphs call those
    of ``torch.ops.aten``.
    """
    formulas: dict[str, _Formula] = {
        "relu": _relu,
        "relu6": _relu6,
        "threshold": _threshold,
        "leaky_relu": _leaky,
        "prelu": _prelu,
        "rrelu": _rrelu,
        "hardtanh": _hardtanh,
        "hardsigmoid": _hardsigmoid,
        "hardswish": _hardswish,
        "elu": _elu,
        "selu": _selu,
        "clamp": _clamp,
        "clip": _clamp,
        "clamp_min": _clamp_min,
        "clamp_max": _clamp_max,
        "silu": _silu,
        "mish": _mish,
        "gelu": _gelu,
    }
    found: dict[Any, _Rule] = {}
    for name, formula in formulas.items():
        for form, inplace in ((name, False), (f"{name}_", True)):
            functions = [getattr(owner, form, None) for owner in (torch, Tensor, F, torch._C._nn)]
            packet = getattr(torch.ops.aten, form, None)
            if packet is not None:
                functions += [packet, *(getattr(packet, kind) for kind in packet.overloads())]
            rule = _Rule(formula, inspect.signature(formula), inplace)
            found |= {function: rule for function in functions if function is not None}
    # The one function that has other arguments there.
    found[F.elu] = _Rule(_elu_of_module, inspect.signature(_elu_of_module), False)
    return found


_RULES = _rules()


class _Softening(TorchFunctionMode):
    """Watches every call of torch in this thread and answers those that have a rule."""

    def __init__(self, softness: _Softness) -> None:
        super().__init__()
        self.softness = softness

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        rule = _RULES.get(func)
        # Only the innermost of several counts, also where it is the one that leaves all as it is.
        if rule is not None and _active.modes[-1] is self:
            soft = _answer(self.softness, rule, args, kwargs)
            if soft is not None:
                return soft
        return func(*args, **kwargs)


class _Active(threading.local):
    """The modes of one thread, the innermost last; torch keeps its own the same way."""

    def __init__(self) -> None:
        self.modes: list[_Softening] = []


_active = _Active()


def _answer(
    softness: _Softness, rule: _Rule, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Tensor | None:
    as_it_is = softness.gates == 1 if rule.formula in _GATES else math.isinf(softness.beta)
    if as_it_is:
        return None
    try:
        bound = rule.signature.bind(softness, *args, **kwargs)
    except TypeError:  # a wrong call, about which torch complains better, or one with out=
        return None
    z = bound.arguments["input"]
    if not isinstance(z, Tensor) or not z.is_floating_point():
        return None
    inplace = rule.inplace or bool(bound.arguments.get("inplace", False))
    if inplace and torch.is_grad_enabled() and z.requires_grad:
        # The formulas keep their input for the backward pass, and it is about to be overwritten.
        bound.arguments["input"] = z.clone()
    soft = rule.formula(*bound.args, **bound.kwargs)
    if soft is None:
        return None
    # Autocast makes some of the parts float32, which the function itself would not.
    soft = soft.to(z.dtype)
    # Written back even if nobody seems to ask for it: callers may ignore the returned value.
    return z.copy_(soft) if inplace else soft


@contextmanager
def softened(beta: float, *, gates: float = 1.0, clamps: bool = False) -> Iterator[None]:
    """Every activation of the ReLU family is a smooth one in here (EluCD, section 3.2).

    It holds for what this thread calls through torch's Python interface, however deep below. Of
    several contexts inside each other the innermost counts. Not reached are

    - programs that torch has compiled: ``torch.jit``, ``torch.compile``;
    - kernels of other libraries, and :class:`torch.autograd.Function` with a backward pass of its
      own, which knows nothing of it;
    - activations put together from other parts: ``torch.maximum(x, 0)``, ``x * (x > 0)``, or a
      GELU written out;
    - max pooling, whose gradient jumps from one place to another: the paper leaves it;
    - other threads, such as those of :class:`torch.nn.DataParallel`;
    - what activation checkpointing computes once more, unless the backward pass is in here too.

    Args:
        beta: sharpness of Softplus, positive; EluCD takes 3 to 5. Infinity leaves the ReLU family
            as it is.
        gates: factor inside GELU, SiLU and Mish, positive; below 1 they are softened further, 1
            leaves them as they are.
        clamps: whether ``clamp``, ``clip``, ``clamp_min`` and ``clamp_max`` count as activations.
            Off, since pixels are clamped to their range and variances to be positive far more
            often than anything is activated so.

    Raises:
        OptionError: ``beta`` or ``gates`` is not positive, or ``gates`` not finite.
    """
    softness = _checked(beta, gates, clamps)
    if softness.beta == math.inf and softness.gates == 1 and not _active.modes:
        yield  # nothing to watch for, and torch may take its fused paths
        return
    mode = _Softening(softness)
    with mode:
        _active.modes.append(mode)
        try:
            yield
        finally:
            _active.modes.pop()


class Softened(Wrapped):
    """A guide whose network has smooth activations where it has kinks (EluCD, section 3.2).

    Only while it looks: the network itself, targets and experts stay as they are. Experts may lie
    below or above it, what they change is softened alike.

    Args:
        guide: any guide.
        beta: as :func:`softened`.
        gates: as :func:`softened`.

    Raises:
        OptionError: ``beta`` or ``gates`` make no sense, or parts of the network are out of reach;
            names one of them.
    """

    def __init__(self, guide: Guide, beta: float, gates: float = 1.0) -> None:
        self.softness = _checked(beta, gates, clamps=False)
        if math.isfinite(beta) or gates != 1:
            _check_reach(guide.name, guide.network())
        super().__init__(guide)

    @property
    def beta(self) -> float:
        """Sharpness of Softplus."""
        return self.softness.beta

    @property
    def gates(self) -> float:
        """Factor inside GELU, SiLU and Mish."""
        return self.softness.gates

    def see(self, x: Tensor, level: NoiseLevel | None = None) -> Tensor:
        """As the guide, smoothly."""
        with softened(self.beta, gates=self.gates):
            return self.guide.see(x, level)

    def through(self, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """As the guide, smoothly."""
        with softened(self.beta, gates=self.gates):
            return self.guide.through(network, x)


def _checked(beta: float, gates: float, clamps: bool) -> _Softness:
    if not beta > 0:
        raise OptionError(
            f"The sharpness of Softplus must be positive, not {beta:g}.",
            remedy="EluCD takes 3 to 5; inf keeps the activations as they are.",
        )
    if not 0 < gates < math.inf:
        raise OptionError(
            f"The factor inside GELU and SiLU must be positive and finite, not {gates:g}.",
            remedy="1 keeps them as they are, 0.5 makes their bend twice as wide.",
        )
    return _Softness(float(beta), float(gates), clamps)


def _check_reach(guide: str, network: nn.Module) -> None:
    """Whether all of a network is run by Python, as far as that can be seen from outside."""
    for name, module in network.named_modules():
        where = f"{name!r} of its network" if name else "its network"
        held = vars(module).values()
        scripted = isinstance(module, torch.jit.ScriptModule) or any(
            isinstance(value, torch.jit.ScriptFunction) for value in held
        )
        compiled = hasattr(module, "_orig_mod") or (
            getattr(module, "_compiled_call_impl", None) is not None
        )
        if scripted or compiled:
            raise OptionError(
                f"The activations of the guide {guide!r} cannot be softened: {where} is a "
                f"{'torch.jit' if scripted else 'torch.compile'} program.",
                remedy="Load the model as a plain module, or leave its activations as they are.",
            )
        if getattr(module, "grad_checkpointing", False) is True:
            raise OptionError(
                f"The activations of the guide {guide!r} cannot be softened: {where} computes them "
                "once more for its gradient (activation checkpointing), and would forget it.",
                remedy="Switch checkpointing off: set_grad_checkpointing(False).",
            )
