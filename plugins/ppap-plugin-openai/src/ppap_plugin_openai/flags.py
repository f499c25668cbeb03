"""Reads the flags that OpenAI's command lines describe their networks with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from ppap_host.files.errors import OptionError, nearest

# Flags of the same command lines that say nothing about the weights: the diffusion process
# around the network, and how the original code computed (precision, recomputation).
DIFFUSION_FLAGS: Final = frozenset(
    {
        "diffusion_steps",
        "noise_schedule",
        "timestep_respacing",
        "use_kl",
        "predict_xstart",
        "rescale_timesteps",
        "rescale_learned_sigmas",
    }
)
COMPUTE_FLAGS: Final = frozenset({"use_fp16", "use_checkpoint"})

MOST: Final = {
    "image_size": 4096, "large_size": 4096, "small_size": 4096, "num_res_blocks": 64,
    "classifier_depth": 64, "xf_layers": 512, "diffusion_steps": 100_000,
}  # fmt: skip
"""Largest values, far above any network that was ever made; others are at most 100,000. They keep
a damaged file from asking for one that no machine can build."""


def refuse_unknown(what: str, flags: Iterable[str], known: Mapping[str, Any]) -> None:
    unknown = sorted(set(flags) - set(known))
    if unknown:
        close = nearest(unknown[0], known)
        raise OptionError(
            f"Unknown {what} flag{'s' if len(unknown) > 1 else ''}: {', '.join(unknown)}.",
            remedy=f"Did you mean {' or '.join(close)}?" if close else "",
        )


def flag_value(name: str, value: Any, known: Mapping[str, Any]) -> Any:
    """``value`` as the kind of thing that the flag's default is, or an :class:`OptionError`."""
    default = known[name]
    if isinstance(default, tuple):
        items = value if isinstance(value, list | tuple) else str(value).split(",")
        try:
            numbers = tuple(float(item) for item in items if item != "")
        except (TypeError, ValueError) as error:
            raise OptionError(f"Flag {name} is {value!r}; it is a list of numbers.") from error
        if len(numbers) > 16 or not all(abs(number) <= 4096 for number in numbers):
            raise OptionError(f"Flag {name} is {str(value)[:60]!r}, which cannot be meant.")
        if name == "channel_mult":
            return numbers
        if not all(number.is_integer() for number in numbers):
            raise OptionError(f"Flag {name} is {value!r}; it is a list of whole numbers.")
        return tuple(int(number) for number in numbers)
    if default is None:
        default = 0
    if type(default) is float and type(value) is int:
        return float(value)
    if type(value) is not type(default):
        raise OptionError(
            f"Flag {name} is {value!r}; it is a value of type {type(default).__name__}."
        )
    most = MOST.get(name, 100_000)
    if type(value) is int and abs(value) > most:
        raise OptionError(f"Flag {name} is beyond {most:,}, which cannot be meant.")
    return value
